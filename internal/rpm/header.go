package rpm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"

	"drover/internal/fault"
)

// Limits of a header, those of librpm (lib/header.c).
const (
	maxEntries = 0xffff
	maxStore   = 256<<20 - 1
	introSize  = 16
	entrySize  = 16
)

var magic = [8]byte{0x8e, 0xad, 0xe8, 0x01, 0, 0, 0, 0}

// Header is a view of a header's bytes. It copies nothing: strings and bytes that it gives
// out share the bytes it was made of, which must not change.
type Header struct {
	raw   []byte // intro, index and store
	index []byte
	store []byte
}

func bad(format string, args ...any) error {
	return fault.Invalid("rpm_header", "bad RPM header: "+format, args...).Fix("the file is damaged or no RPM; fetch or build it again")
}

// headerSize reads the intro: the size of the whole header in bytes.
func headerSize(intro []byte) (size int, err error) {
	if len(intro) < introSize {
		return 0, bad("cut in the intro")
	}
	if !bytes.Equal(intro[:4], magic[:4]) {
		return 0, bad("wrong magic %x", intro[:4])
	}
	il, dl := binary.BigEndian.Uint32(intro[8:]), binary.BigEndian.Uint32(intro[12:])
	if il == 0 || il > maxEntries {
		return 0, bad("%d entries", il)
	}
	if dl > maxStore {
		return 0, bad("a store of %d bytes", dl)
	}
	return introSize + int(il)*entrySize + int(dl), nil
}

// ParseHeader checks the header at the start of b and returns a view of it and its size in
// bytes. Every entry is checked: type, alignment, bounds, and for strings that they end.
func ParseHeader(b []byte) (Header, int, error) {
	size, err := headerSize(b)
	if err != nil {
		return Header{}, 0, err
	}
	if size > len(b) {
		return Header{}, 0, bad("%d bytes announced, %d there", size, len(b))
	}
	il := int(binary.BigEndian.Uint32(b[8:]))
	h := Header{raw: b[:size:size], index: b[introSize : introSize+il*entrySize], store: b[introSize+il*entrySize : size]}
	for i := range il {
		if err := h.check(i); err != nil {
			return Header{}, 0, err
		}
	}
	return h, size, nil
}

// entry is one line of the index.
type entry struct {
	tag    Tag
	typ    uint32
	offset uint32
	count  uint32
}

func (h Header) entry(i int) entry {
	e := h.index[i*entrySize : i*entrySize+entrySize]
	return entry{Tag(binary.BigEndian.Uint32(e)), binary.BigEndian.Uint32(e[4:]), binary.BigEndian.Uint32(e[8:]), binary.BigEndian.Uint32(e[12:])}
}

// width is the size of one value, 0 for strings.
func width(typ uint32) int {
	switch typ {
	case TypeChar, TypeInt8, TypeBin:
		return 1
	case TypeInt16:
		return 2
	case TypeInt32:
		return 4
	case TypeInt64:
		return 8
	}
	return 0
}

func (h Header) check(i int) error {
	e := h.entry(i)
	if e.typ > TypeI18N {
		return bad("tag %d has type %d", e.tag, e.typ)
	}
	if uint64(e.offset) > uint64(len(h.store)) || e.count > uint32(len(h.store)) && e.typ != TypeNull {
		return bad("tag %d lies outside the store", e.tag)
	}
	data := h.store[e.offset:]
	switch e.typ {
	case TypeNull:
		return nil
	case TypeString, TypeArray, TypeI18N:
		if e.count == 0 || e.typ == TypeString && e.count != 1 {
			return bad("tag %d has %d strings", e.tag, e.count)
		}
		for range e.count {
			n := bytes.IndexByte(data, 0)
			if n < 0 {
				return bad("a string of tag %d does not end", e.tag)
			}
			data = data[n+1:]
		}
		return nil
	}
	w := width(e.typ)
	if e.count == 0 || uint64(e.count)*uint64(w) > uint64(len(data)) {
		return bad("tag %d has %d values, more than the store holds", e.tag, e.count)
	}
	if e.offset%uint32(w) != 0 {
		return bad("tag %d is not aligned", e.tag)
	}
	return nil
}

// Len is the number of entries.
func (h Header) Len() int { return len(h.index) / entrySize }

// Raw is the whole header: intro, index and store. It is what header signatures and
// header digests cover when it is a package's main header.
func (h Header) Raw() []byte { return h.raw }

// Each gives every entry: its tag, type and number of values, in the order of the index.
func (h Header) Each(fn func(tag Tag, typ uint32, count int)) {
	for i := range h.Len() {
		e := h.entry(i)
		fn(e.tag, e.typ, int(e.count))
	}
}

// find looks a tag up. Indexes are sorted by tag in every header that rpm wrote since
// 1997, but nothing enforces it, so a miss of the search is followed by a walk.
func (h Header) find(tag Tag) (entry, bool) {
	lo, hi := 0, h.Len()
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if Tag(binary.BigEndian.Uint32(h.index[mid*entrySize:])) < tag {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < h.Len() {
		if e := h.entry(lo); e.tag == tag {
			return e, true
		}
	}
	if h.sorted() {
		return entry{}, false
	}
	for i := range h.Len() {
		if Tag(binary.BigEndian.Uint32(h.index[i*entrySize:])) == tag {
			return h.entry(i), true
		}
	}
	return entry{}, false
}

func (h Header) sorted() bool {
	// The region tag comes first and has the lowest number; what follows is sorted.
	last := uint32(0)
	for o := 0; o < len(h.index); o += entrySize {
		t := binary.BigEndian.Uint32(h.index[o:])
		if t < last {
			return false
		}
		last = t
	}
	return true
}

// Has tells whether the header has the tag.
func (h Header) Has(tag Tag) bool { _, ok := h.find(tag); return ok }

// cstring is the string at the start of b, which ends in it.
func cstring(b []byte) []byte { return b[:bytes.IndexByte(b, 0)] }

// Bytes is the value of a binary tag, or nil.
func (h Header) Bytes(tag Tag) []byte {
	e, ok := h.find(tag)
	if !ok || e.typ != TypeBin && e.typ != TypeChar && e.typ != TypeInt8 {
		return nil
	}
	return h.store[e.offset : e.offset+e.count : e.offset+e.count]
}

// Text is the first string of a tag, of whatever string type, as bytes of the header.
func (h Header) Text(tag Tag) []byte {
	e, ok := h.find(tag)
	if !ok || e.typ != TypeString && e.typ != TypeArray && e.typ != TypeI18N {
		return nil
	}
	return cstring(h.store[e.offset:])
}

// String is the first string of a tag; for a translated tag that is the C locale's.
func (h Header) String(tag Tag) string { return string(h.Text(tag)) }

// Texts gives the strings of a tag one by one as bytes of the header.
func (h Header) Texts(tag Tag) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		e, ok := h.find(tag)
		if !ok || e.typ != TypeString && e.typ != TypeArray && e.typ != TypeI18N {
			return
		}
		data := h.store[e.offset:]
		for i := range int(e.count) {
			s := cstring(data)
			if !yield(i, s) {
				return
			}
			data = data[len(s)+1:]
		}
	}
}

// Count is the number of values of a tag.
func (h Header) Count(tag Tag) int {
	e, _ := h.find(tag)
	return int(e.count)
}

// Strings is all strings of a tag.
func (h Header) Strings(tag Tag) []string {
	n := h.Count(tag)
	if n == 0 {
		return nil
	}
	out := make([]string, 0, min(n, 1<<16))
	for _, s := range h.Texts(tag) {
		out = append(out, string(s))
	}
	return out
}

// Ints is a number tag of any width, read without copying.
type Ints struct {
	data  []byte
	width int
}

// Len is the number of values.
func (n Ints) Len() int {
	if n.width == 0 {
		return 0
	}
	return len(n.data) / n.width
}

// At is value i, or 0 outside.
func (n Ints) At(i int) uint64 {
	if i < 0 || i >= n.Len() {
		return 0
	}
	b := n.data[i*n.width:]
	switch n.width {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.BigEndian.Uint16(b))
	case 4:
		return uint64(binary.BigEndian.Uint32(b))
	}
	return binary.BigEndian.Uint64(b)
}

// Ints is the numbers of a tag.
func (h Header) Ints(tag Tag) Ints {
	e, ok := h.find(tag)
	if !ok || e.typ == TypeBin {
		return Ints{}
	}
	w := width(e.typ)
	if w == 0 {
		return Ints{}
	}
	return Ints{h.store[e.offset : int(e.offset)+int(e.count)*w], w}
}

// Int is the first number of a tag, or 0.
func (h Header) Int(tag Tag) uint64 { return h.Ints(tag).At(0) }

// NEVRA is the package's name, epoch, version, release and arch. A source package has the
// arch "src" or "nosrc".
func (h Header) NEVRA() NEVRA {
	n := NEVRA{Name: h.String(Name), Epoch: uint32(h.Int(Epoch)), Version: h.String(Version), Release: h.String(Release), Arch: h.String(Arch)}
	if h.IsSource() {
		n.Arch = "src"
	}
	return n
}

// IsSource tells whether the header is of a source package: it names no source RPM.
func (h Header) IsSource() bool { return h.Has(SourcePkg) || !h.Has(SourceRPM) }

// Dep is one dependency.
type Dep struct {
	Name  string
	Flags uint32
	EVR   string // "[epoch:]version[-release]", empty when any version does
}

// DepKind is one of the kinds of dependencies.
type DepKind int

// The kinds of dependencies.
const (
	Requires DepKind = iota
	Provides
	Conflicts
	Obsoletes
	Recommends
	Suggests
	Supplements
	Enhances
)

func (k DepKind) tags() (name, flags, ver Tag) {
	switch k {
	case Provides:
		return ProvideName, ProvideFlags, ProvideVer
	case Conflicts:
		return ConflName, ConflFlags, ConflVer
	case Obsoletes:
		return ObsName, ObsFlags, ObsVer
	case Recommends:
		return RecName, RecFlags, RecVer
	case Suggests:
		return SugName, SugFlags, SugVer
	case Supplements:
		return SupName, SupFlags, SupVer
	case Enhances:
		return EnhName, EnhFlags, EnhVer
	}
	return RequireName, RequireFlags, RequireVer
}

// String is the kind's name as in repository metadata.
func (k DepKind) String() string {
	return [...]string{"requires", "provides", "conflicts", "obsoletes", "recommends", "suggests", "supplements", "enhances"}[k]
}

// Deps gives the dependencies of one kind; name and version are bytes of the header.
func (h Header) Deps(kind DepKind) iter.Seq2[[]byte, struct {
	Flags uint32
	EVR   []byte
}] {
	type rest = struct {
		Flags uint32
		EVR   []byte
	}
	return func(yield func([]byte, rest) bool) {
		nt, ft, vt := kind.tags()
		flags := h.Ints(ft)
		next, stop := iter.Pull2(h.Texts(vt))
		defer stop()
		for i, name := range h.Texts(nt) {
			_, ver, _ := next()
			if !yield(name, rest{uint32(flags.At(i)), ver}) {
				return
			}
		}
	}
}

// DepList is all dependencies of one kind.
func (h Header) DepList(kind DepKind) []Dep {
	nt, ft, vt := kind.tags()
	names, vers, flags := h.Strings(nt), h.Strings(vt), h.Ints(ft)
	out := make([]Dep, len(names))
	for i, n := range names {
		out[i] = Dep{Name: n, Flags: uint32(flags.At(i))}
		if i < len(vers) {
			out[i].EVR = vers[i]
		}
	}
	return out
}

// File is one file of a package.
type File struct {
	Path   string
	Mode   uint16
	Flags  uint32
	Size   uint64
	Mtime  uint32
	Digest string // hex, empty for what is no regular file
	Linkto string
	User   string
	Group  string
	Inode  uint32
	Rdev   uint16
}

// IsDir tells whether the file is a directory.
func (f File) IsDir() bool { return f.Mode&0o170000 == 0o040000 }

// Files is the files of a package in the header's order, or an error when the lists do not
// fit each other.
func (h Header) Files() ([]File, error) {
	var paths []string
	if h.Has(Basenames) {
		bases, dirs, idx := h.Strings(Basenames), h.Strings(DirNames), h.Ints(DirIndexes)
		if idx.Len() != len(bases) {
			return nil, bad("%d file names with %d directories", len(bases), idx.Len())
		}
		paths = bases
		total := 0
		for i, b := range bases {
			d := idx.At(i)
			if d >= uint64(len(dirs)) {
				return nil, bad("file %d lies in directory %d of %d", i, d, len(dirs))
			}
			// Names share bytes in the header; a long directory shared by many files must not grow past reason.
			if total += len(dirs[d]) + len(b); total > 64<<20 && total > 64*len(h.raw) {
				return nil, bad("file names of over %d bytes", total)
			}
			paths[i] = dirs[d] + b
		}
	} else {
		paths = h.Strings(OldFilenames)
	}
	modes, flags, sizes, mtimes := h.Ints(FileModes), h.Ints(FileFlags), h.Ints(FileSizes), h.Ints(FileMtimes)
	if h.Has(LongFileSize) {
		sizes = h.Ints(LongFileSize)
	}
	digests, links, users, groups := h.Strings(FileDigests), h.Strings(FileLinktos), h.Strings(FileUser), h.Strings(FileGroup)
	inodes, rdevs := h.Ints(FileInodes), h.Ints(FileRdevs)
	at := func(s []string, i int) string {
		if i < len(s) {
			return s[i]
		}
		return ""
	}
	out := make([]File, len(paths))
	for i, p := range paths {
		out[i] = File{Path: p, Mode: uint16(modes.At(i)), Flags: uint32(flags.At(i)), Size: sizes.At(i), Mtime: uint32(mtimes.At(i)), Digest: at(digests, i),
			Linkto: at(links, i), User: at(users, i), Group: at(groups, i), Inode: uint32(inodes.At(i)), Rdev: uint16(rdevs.At(i))}
	}
	return out, nil
}

// Change is one changelog entry.
type Change struct {
	Time   uint64
	Author string
	Text   string
}

// Changes is the changelog, newest first as packages have it.
func (h Header) Changes() []Change {
	times, names, texts := h.Ints(ChangeTime), h.Strings(ChangeName), h.Strings(ChangeText)
	n := min(times.Len(), len(names), len(texts))
	out := make([]Change, n)
	for i := range n {
		out[i] = Change{times.At(i), names[i], texts[i]}
	}
	return out
}

// GoString names the header for a debugger.
func (h Header) GoString() string { return fmt.Sprintf("rpm.Header(%s)", h.NEVRA()) }
