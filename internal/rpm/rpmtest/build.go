package rpmtest

import (
	"bytes"
	"compress/gzip"
	"crypto/md5"  //nolint:gosec // a digest of the format
	"crypto/sha1" //nolint:gosec // likewise
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
	"slices"
	"strconv"
	"strings"

	"drover/internal/rpm"
)

// Spec describes a package.
type Spec struct {
	rpm.NEVRA
	Source                                                            string // file name of the source RPM
	Summary, Description, License, URL, Vendor, Packager, Group, Host string
	BuildTime                                                         int64
	Installed, Archive                                                int64 // sizes that it claims
	Modularity                                                        string
	Requires, Provides, Conflicts, Obsoletes                          []rpm.Dep
	Recommends, Suggests, Supplements, Enhances                       []rpm.Dep
	Files                                                             []File
	Changes                                                           []rpm.Change // newest first
}

// File is a file of a package.
type File struct {
	Path  string
	Dir   bool
	Ghost bool
}

// header collects the entries of a header.
type header struct{ entries []entry }

type entry struct {
	tag   rpm.Tag
	typ   uint32
	count int
	data  []byte
}

func (h *header) text(tag rpm.Tag, s string) {
	if s != "" {
		h.entries = append(h.entries, entry{tag, rpm.TypeString, 1, append([]byte(s), 0)})
	}
}

func (h *header) translated(tag rpm.Tag, s string) {
	h.entries = append(h.entries, entry{tag, rpm.TypeI18N, 1, append([]byte(s), 0)})
}

func (h *header) texts(tag rpm.Tag, list []string) {
	if len(list) > 0 {
		h.entries = append(h.entries, entry{tag, rpm.TypeArray, len(list), append([]byte(strings.Join(list, "\x00")), 0)})
	}
}

func (h *header) ints(tag rpm.Tag, list ...uint32) {
	if len(list) == 0 {
		return
	}
	b := make([]byte, 0, 4*len(list))
	for _, n := range list {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	h.entries = append(h.entries, entry{tag, rpm.TypeInt32, len(list), b})
}

func (h *header) shorts(tag rpm.Tag, list []uint16) {
	if len(list) == 0 {
		return
	}
	b := make([]byte, 0, 2*len(list))
	for _, n := range list {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	h.entries = append(h.entries, entry{tag, rpm.TypeInt16, len(list), b})
}

func (h *header) long(tag rpm.Tag, n uint64) {
	h.entries = append(h.entries, entry{tag, rpm.TypeInt64, 1, binary.BigEndian.AppendUint64(nil, n)})
}

func (h *header) binary(tag rpm.Tag, b []byte) {
	h.entries = append(h.entries, entry{tag, rpm.TypeBin, len(b), b})
}

// bytes writes the header with everything in its region.
func (h *header) bytes(region rpm.Tag) []byte {
	slices.SortStableFunc(h.entries, func(a, b entry) int { return int(a.tag) - int(b.tag) })
	n := len(h.entries) + 1
	index := make([]byte, 0, 16*n)
	var store []byte
	line := func(b []byte, tag rpm.Tag, typ uint32, offset int32, count int) []byte {
		b = binary.BigEndian.AppendUint32(b, uint32(tag))
		b = binary.BigEndian.AppendUint32(b, typ)
		b = binary.BigEndian.AppendUint32(b, uint32(offset))
		return binary.BigEndian.AppendUint32(b, uint32(count))
	}
	for _, e := range h.entries {
		align := map[uint32]int{rpm.TypeInt16: 2, rpm.TypeInt32: 4, rpm.TypeInt64: 8}[e.typ]
		for align > 0 && len(store)%align != 0 {
			store = append(store, 0)
		}
		index = line(index, e.tag, e.typ, int32(len(store)), e.count)
		store = append(store, e.data...)
	}
	first := line(nil, region, rpm.TypeBin, int32(len(store)), 16)
	store = line(store, region, rpm.TypeBin, int32(-16*n), 16)
	b := []byte{0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = binary.BigEndian.AppendUint32(b, uint32(len(store)))
	return slices.Concat(b, first, index, store)
}

// payload is a packed archive without files, and its text.
func payload() (packed, open []byte) {
	open = []byte("070701" + strings.Repeat("0", 11*8) + "0000000b" + "00000000" + "TRAILER!!!\x00")
	for len(open)%4 != 0 {
		open = append(open, 0)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(open) // to memory
	_ = z.Close()
	return b.Bytes(), open
}

// depTags is the tags of names, flags and versions.
func (s *Spec) deps(h *header) {
	for _, k := range []struct {
		list             []rpm.Dep
		name, flags, ver rpm.Tag
	}{{s.Requires, rpm.RequireName, rpm.RequireFlags, rpm.RequireVer}, {s.Provides, rpm.ProvideName, rpm.ProvideFlags, rpm.ProvideVer}, {s.Conflicts, rpm.ConflName, rpm.ConflFlags, rpm.ConflVer},
		{s.Obsoletes, rpm.ObsName, rpm.ObsFlags, rpm.ObsVer}, {s.Recommends, rpm.RecName, rpm.RecFlags, rpm.RecVer}, {s.Suggests, rpm.SugName, rpm.SugFlags, rpm.SugVer},
		{s.Supplements, rpm.SupName, rpm.SupFlags, rpm.SupVer}, {s.Enhances, rpm.EnhName, rpm.EnhFlags, rpm.EnhVer}} {
		var names, vers []string
		var flags []uint32
		for _, d := range k.list {
			names, vers, flags = append(names, d.Name), append(vers, d.EVR), append(flags, d.Flags)
		}
		h.texts(k.name, names)
		h.ints(k.flags, flags...)
		h.texts(k.ver, vers)
	}
}

// files writes the tags of the files, which come sorted by path.
func (s *Spec) files(h *header) {
	files := slices.SortedFunc(slices.Values(s.Files), func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	files = slices.CompactFunc(files, func(a, b File) bool { return a.Path == b.Path })
	n := len(files)
	if n == 0 {
		return
	}
	var bases, dirs, digests []string
	var modes []uint16
	index, sizes, flags, inodes := make([]uint32, n), make([]uint32, n), make([]uint32, n), make([]uint32, n)
	nth := map[string]uint32{}
	for i, f := range files {
		cut := strings.LastIndexByte(f.Path, '/') + 1
		dir := f.Path[:cut]
		d, ok := nth[dir]
		if !ok {
			d = uint32(len(dirs))
			nth[dir] = d
			dirs = append(dirs, dir)
		}
		bases, index[i], inodes[i] = append(bases, f.Path[cut:]), d, uint32(i+1)
		mode, digest := uint16(0o100644), hex.EncodeToString(random(f.Path).bytes(32))
		if f.Dir {
			mode, digest = 0o040755, ""
		}
		if f.Ghost {
			flags[i] = rpm.FileGhost
			digest = ""
		} else if !f.Dir {
			sizes[i] = uint32(random(f.Path).below(40_000))
		}
		modes, digests = append(modes, mode), append(digests, digest)
	}
	same := func(s string) []string { return slices.Repeat([]string{s}, n) }
	times := slices.Repeat([]uint32{uint32(s.BuildTime)}, n)
	h.texts(rpm.Basenames, bases)
	h.texts(rpm.DirNames, dirs)
	h.ints(rpm.DirIndexes, index...)
	h.ints(rpm.FileSizes, sizes...)
	h.shorts(rpm.FileModes, modes)
	h.shorts(rpm.FileRdevs, make([]uint16, n))
	h.ints(rpm.FileMtimes, times...)
	h.texts(rpm.FileDigests, digests)
	h.texts(rpm.FileLinktos, same(""))
	h.ints(rpm.FileFlags, flags...)
	h.texts(rpm.FileUser, same("root"))
	h.texts(rpm.FileGroup, same("root"))
	h.ints(rpm.FileVerify, slices.Repeat([]uint32{0xffffffff}, n)...)
	h.ints(rpm.FileDevices, slices.Repeat([]uint32{1}, n)...)
	h.ints(rpm.FileInodes, inodes...)
	h.texts(rpm.FileLangs, same(""))
	h.ints(rpm.FileDigAlgo, 8)
}

// Build makes the package file. Its digests are right; it has no signature.
func (s Spec) Build() []byte {
	packed, open := payload()
	var h header
	h.texts(rpm.I18NTable, []string{"C"})
	h.text(rpm.Name, s.Name)
	h.text(rpm.Version, s.Version)
	h.text(rpm.Release, s.Release)
	if s.Epoch != 0 {
		h.ints(rpm.Epoch, s.Epoch)
	}
	h.translated(rpm.Summary, s.Summary)
	h.translated(rpm.Description, s.Description)
	group := s.Group
	if group == "" {
		group = "Unspecified"
	}
	h.translated(rpm.Group, group)
	for tag, v := range map[rpm.Tag]string{rpm.License: s.License, rpm.URL: s.URL, rpm.Vendor: s.Vendor, rpm.Packager: s.Packager, rpm.BuildHost: s.Host, rpm.OS: "linux", rpm.Arch: s.Arch, rpm.SourceRPM: s.Source,
		rpm.RPMVersion: "4.16.1.3", rpm.PayloadFmt: "cpio", rpm.PayloadComp: "gzip", rpm.PayloadFlags: "9", rpm.Encoding: "utf-8", rpm.Modularity: s.Modularity} {
		h.text(tag, v)
	}
	h.ints(rpm.BuildTime, uint32(s.BuildTime))
	if s.Installed > math.MaxUint32 {
		h.long(rpm.LongSize, uint64(s.Installed))
	} else {
		h.ints(rpm.Size, uint32(s.Installed))
	}
	s.deps(&h)
	s.files(&h)
	var times []uint32
	var names, texts []string
	for _, c := range s.Changes {
		times, names, texts = append(times, uint32(c.Time)), append(names, c.Author), append(texts, c.Text)
	}
	h.ints(rpm.ChangeTime, times...)
	h.texts(rpm.ChangeName, names)
	h.texts(rpm.ChangeText, texts)
	sum := func(b []byte) string { h := sha256.Sum256(b); return hex.EncodeToString(h[:]) }
	h.texts(rpm.PayloadSHA, []string{sum(packed)})
	h.ints(rpm.PayloadAlgo, 8)
	h.texts(rpm.PayloadAlt, []string{sum(open)})
	main := h.bytes(rpm.RegionImmutable)

	var sig header
	s1 := sha1.Sum(main) //nolint:gosec // of the format
	m5 := md5.New()      //nolint:gosec // of the format
	m5.Write(main)
	m5.Write(packed)
	sig.text(rpm.SigSHA1, hex.EncodeToString(s1[:]))
	sig.text(rpm.SigSHA256, sum(main))
	sig.ints(rpm.SigSize, uint32(len(main)+len(packed)))
	sig.binary(rpm.SigMD5, m5.Sum(nil))
	archive := uint64(s.Archive)
	if archive == 0 {
		archive = uint64(len(open))
	}
	if archive > math.MaxUint32 {
		sig.long(rpm.SigLongArch, archive)
	} else {
		sig.ints(rpm.SigPayload, uint32(archive))
	}
	head := sig.bytes(rpm.SigRegion)
	head = append(head, make([]byte, -len(head)&7)...)

	lead := make([]byte, rpm.LeadSize)
	copy(lead, []byte{0xed, 0xab, 0xee, 0xdb, 3, 0, 0, 0, 0, 1})
	copy(lead[10:75], s.NVR())
	lead[77], lead[79] = 1, 5
	return slices.Concat(lead, head, main, packed)
}

// stream is random numbers that follow from a text.
type stream struct {
	seed [32]byte
	n    int
	left []byte
}

func random(of string) *stream { return &stream{seed: sha256.Sum256([]byte(of))} }

func (s *stream) bytes(n int) []byte {
	for len(s.left) < n {
		b := sha256.Sum256(append(s.seed[:], strconv.Itoa(s.n)...))
		s.n++
		s.left = append(s.left, b[:]...)
	}
	out := s.left[:n]
	s.left = s.left[n:]
	return out
}

// below is a number from 0 to n-1.
func (s *stream) below(n int) int { return int(binary.BigEndian.Uint32(s.bytes(4)) % uint32(n)) }
