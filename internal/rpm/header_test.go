package rpm_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"drover/internal/fault"
	"drover/internal/rpm"
)

// rpmCommand prepares one of rpm's programs with a home and a database of its own.
func rpmCommand(t testing.TB, home string, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.Command(args[0], append([]string{"--define", "_dbpath " + filepath.Join(home, "rpmdb")}, args[1:]...)...)
	c.Env = append(os.Environ(), "HOME="+home, "LC_ALL=C.UTF-8", "LANGUAGE=")
	return c
}

// xmlTag is a tag as "rpm --xml" prints it.
type xmlTag struct {
	Name   string `xml:"name,attr"`
	Values []struct {
		XMLName xml.Name
		Text    string `xml:",chardata"`
	} `xml:",any"`
}

// tagNames is how rpm names those of our tags that fixtures have. Tags that are not here
// are compared all the same, by order and value.
var tagNames = map[string]rpm.Tag{"Headeri18ntable": rpm.I18NTable, "Sha256header": rpm.SigSHA256, "Sha1header": rpm.SigSHA1, "Rsaheader": rpm.SigRSA, "Dsaheader": rpm.SigDSA, "Name": rpm.Name, "Version": rpm.Version,
	"Release": rpm.Release, "Epoch": rpm.Epoch, "Summary": rpm.Summary, "Description": rpm.Description, "Buildtime": rpm.BuildTime, "Buildhost": rpm.BuildHost, "Size": rpm.Size, "Vendor": rpm.Vendor,
	"License": rpm.License, "Packager": rpm.Packager, "Group": rpm.Group, "Url": rpm.URL, "Os": rpm.OS, "Arch": rpm.Arch, "Source": rpm.Sources, "Patch": rpm.Patches, "Prein": rpm.PreIn, "Postin": rpm.PostIn,
	"Preun": rpm.PreUn, "Postun": rpm.PostUn, "Oldfilenames": rpm.OldFilenames, "Filesizes": rpm.FileSizes, "Filemodes": rpm.FileModes, "Filerdevs": rpm.FileRdevs, "Filemtimes": rpm.FileMtimes,
	"Filedigests": rpm.FileDigests, "Filelinktos": rpm.FileLinktos, "Fileflags": rpm.FileFlags, "Fileusername": rpm.FileUser, "Filegroupname": rpm.FileGroup, "Sourcerpm": rpm.SourceRPM,
	"Fileverifyflags": rpm.FileVerify, "Archivesize": rpm.ArchiveSize, "Providename": rpm.ProvideName, "Requireflags": rpm.RequireFlags, "Requirename": rpm.RequireName, "Requireversion": rpm.RequireVer,
	"Conflictflags": rpm.ConflFlags, "Conflictname": rpm.ConflName, "Conflictversion": rpm.ConflVer, "Rpmversion": rpm.RPMVersion, "Changelogtime": rpm.ChangeTime, "Changelogname": rpm.ChangeName,
	"Changelogtext": rpm.ChangeText, "Preinprog": rpm.PreInProg, "Postinprog": rpm.PostInProg, "Preunprog": rpm.PreUnProg, "Postunprog": rpm.PostUnProg, "Buildarchs": rpm.BuildArchs, "Obsoletename": rpm.ObsName,
	"Cookie": rpm.Cookie, "Filedevices": rpm.FileDevices, "Fileinodes": rpm.FileInodes, "Filelangs": rpm.FileLangs, "Sourcepackage": rpm.SourcePkg, "Provideflags": rpm.ProvideFlags, "Provideversion": rpm.ProvideVer,
	"Obsoleteflags": rpm.ObsFlags, "Obsoleteversion": rpm.ObsVer, "Dirindexes": rpm.DirIndexes, "Basenames": rpm.Basenames, "Dirnames": rpm.DirNames, "Optflags": rpm.OptFlags, "Payloadformat": rpm.PayloadFmt,
	"Payloadcompressor": rpm.PayloadComp, "Payloadflags": rpm.PayloadFlags, "Platform": rpm.Platform, "Filecolors": rpm.FileColors, "Pretrans": rpm.PreTrans, "Posttrans": rpm.PostTrans,
	"Longfilesizes": rpm.LongFileSize, "Longsize": rpm.LongSize, "Filecaps": rpm.FileCaps, "Filedigestalgo": rpm.FileDigAlgo, "Bugurl": rpm.BugURL, "Vcs": rpm.VCS, "Recommendname": rpm.RecName,
	"Recommendversion": rpm.RecVer, "Recommendflags": rpm.RecFlags, "Suggestname": rpm.SugName, "Suggestversion": rpm.SugVer, "Suggestflags": rpm.SugFlags, "Supplementname": rpm.SupName,
	"Supplementversion": rpm.SupVer, "Supplementflags": rpm.SupFlags, "Enhancename": rpm.EnhName, "Enhanceversion": rpm.EnhVer, "Enhanceflags": rpm.EnhFlags, "Encoding": rpm.Encoding,
	"Payloaddigest": rpm.PayloadSHA, "Payloaddigestalgo": rpm.PayloadAlgo, "Payloaddigestalt": rpm.PayloadAlt, "Filesignatures": 5090, "Filesignaturelength": 5091,
	"Sigsize": 257, "Sigmd5": 261, "Sigpgp": 259, "Siggpg": 262}

// merged is where rpm shows the tags of the signature header among those of the main one
// (lib/package.c).
var merged = map[rpm.Tag]rpm.Tag{rpm.SigSize: 257, rpm.SigPGP: 259, rpm.SigMD5: 261, rpm.SigGPG: 262, rpm.SigPayload: rpm.ArchiveSize,
	rpm.SigFileSigs: 5090, rpm.SigFileLen: 5091}

type value struct {
	tag      rpm.Tag
	kind     string
	texts    []string
	optional bool // of the signature header, which rpm shows a part of
}

func values(h rpm.Header, sig bool) (out []value) {
	h.Each(func(tag rpm.Tag, typ uint32, count int) {
		if tag == rpm.SigRegion || tag == rpm.RegionImmutable {
			return
		}
		v := value{tag: tag, optional: sig}
		if m, ok := merged[tag]; ok && sig {
			v.tag = m
		} else if sig && tag >= 999 {
			return
		}
		switch typ {
		case rpm.TypeString, rpm.TypeArray, rpm.TypeI18N:
			v.kind, v.texts = "string", h.Strings(tag)
		case rpm.TypeBin:
			v.kind, v.texts = "base64", []string{base64.StdEncoding.EncodeToString(h.Bytes(tag))}
		default:
			v.kind = "integer"
			for n, i := h.Ints(tag), 0; i < n.Len(); i++ {
				v.texts = append(v.texts, strconv.FormatUint(n.At(i), 10))
			}
			if n := h.Ints(tag); n.Len() != count {
				panic(fmt.Sprintf("tag %d: %d of %d numbers", tag, n.Len(), count))
			}
		}
		out = append(out, v)
	})
	return out
}

// sameTags compares what rpm prints of a header as XML with what we read, and notes in shown
// which tags rpm printed.
func sameTags(t *testing.T, name string, out []byte, ours []value, shown map[rpm.Tag]bool) {
	t.Helper()
	var doc struct {
		Tags []xmlTag `xml:"rpmTag"`
	}
	if err := xml.Unmarshal(out, &doc); err != nil {
		t.Fatal(err)
	}
	slices.SortStableFunc(ours, func(a, b value) int { return int(a.tag) - int(b.tag) })
	if len(doc.Tags) < 20 {
		t.Errorf("%s: rpm shows %d tags", name, len(doc.Tags))
	}
	for _, want := range doc.Tags {
		var texts []string
		kind := ""
		for _, v := range want.Values {
			kind = v.XMLName.Local
			if kind == "base64" {
				v.Text = strings.Join(strings.Fields(v.Text), "")
			}
			texts = append(texts, v.Text)
		}
		tag, named := tagNames[want.Name]
		for len(ours) > 0 && ours[0].optional && (ours[0].kind != kind || !slices.Equal(ours[0].texts, texts)) {
			ours = ours[1:]
		}
		if len(ours) == 0 {
			t.Errorf("%s: only rpm has %s", name, want.Name)
			break
		}
		got := ours[0]
		ours = ours[1:]
		shown[got.tag] = true
		if named && got.tag != tag {
			t.Errorf("%s: rpm shows %s where we have tag %d", name, want.Name, got.tag)
		}
		if got.kind != kind || !slices.Equal(got.texts, texts) {
			t.Errorf("%s: tag %d is %s %.500q, rpm has %s %.500q", name, got.tag, got.kind, got.texts, kind, texts)
		}
	}
	for _, left := range ours {
		if !left.optional {
			t.Errorf("%s: rpm does not show tag %d", name, left.tag)
		}
	}
}

// Every tag with every value is the same as rpm prints it, in packages of format 4 and 6.
// rpm 4.18 names tags that came later "(unknown)" and shows their values all the same, so
// nothing of format 6 is left out. Its OpenPGP parser refuses the ECDSA and ML-DSA
// signatures of two fixtures: signatures are switched off here.
func TestHeadersAsRPMReadsThem(t *testing.T) {
	home := t.TempDir()
	shown := map[rpm.Tag]bool{}
	for name, b := range fixtures(t) {
		file := filepath.Join(home, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c := rpmCommand(t, home, "rpm", "--nosignature", "-qp", "--xml", file)
		var stderr bytes.Buffer
		c.Stderr = &stderr
		out, err := c.Output()
		if err != nil {
			t.Errorf("%s: rpm: %v: %s", name, err, stderr.String())
			continue
		}
		p := read(t, b)
		sameTags(t, name, out, append(values(p.Header, false), values(p.Sig, true)...), shown)
	}
	for _, tag := range []rpm.Tag{257, 261, rpm.SigRSA, rpm.SigSHA1, rpm.SigSHA256, 5090, rpm.RPMFormat, rpm.Payload512, rpm.PayloadSHA3, rpm.RecName, rpm.ChangeText} {
		if !shown[tag] {
			t.Errorf("no fixture shows tag %d", tag)
		}
	}
}

// What typed accessors make of the header is what rpm's queries print.
func TestTypedAccessorsAsRPM(t *testing.T) {
	home := t.TempDir()
	for name, b := range fixtures(t) {
		file := filepath.Join(home, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		p := read(t, b)
		query := func(format string) string {
			out, err := rpmCommand(t, home, "rpm", "--nosignature", "-qp", "--qf", format, file).Output()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return string(out)
		}
		n := p.NEVRA()
		if !p.Header.IsSource() {
			if got := strings.Replace(query("%{NEVRA}"), "-0:", "-", 1); got != n.String() {
				t.Errorf("%s: %s, rpm has %s", name, n, got)
			}
		}
		var files, deps, changes strings.Builder
		fs, err := p.Header.Files()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fs {
			fmt.Fprintf(&files, "%s|%d|%d|%d|%d|%s|%s|%s|%s\n", f.Path, f.Mode, f.Flags, f.Size, f.Mtime, f.Digest, f.Linkto, f.User, f.Group)
		}
		if want := query("[%{FILENAMES}|%{FILEMODES}|%{FILEFLAGS}|%{LONGFILESIZES}|%{FILEMTIMES}|%{FILEDIGESTS}|%{FILELINKTOS}|%{FILEUSERNAME}|%{FILEGROUPNAME}\n]"); want != files.String() && len(fs) > 0 {
			t.Errorf("%s: files\n%s, rpm has\n%s", name, &files, want)
		}
		for k, tag := range map[rpm.DepKind]string{rpm.Requires: "REQUIRE", rpm.Provides: "PROVIDE", rpm.Conflicts: "CONFLICT", rpm.Obsoletes: "OBSOLETE", rpm.Recommends: "RECOMMEND", rpm.Suggests: "SUGGEST",
			rpm.Supplements: "SUPPLEMENT", rpm.Enhances: "ENHANCE"} {
			deps.Reset()
			for _, d := range p.Header.DepList(k) {
				fmt.Fprintf(&deps, "%s|%d|%s\n", d.Name, d.Flags, d.EVR)
			}
			want := query("[%{" + tag + "NAME}|%{" + tag + "FLAGS}|%{" + tag + "VERSION}\n]")
			if want != deps.String() && want != "(none)|(none)|(none)\n" {
				t.Errorf("%s: %s %s, rpm has %s", name, k, &deps, want)
			}
		}
		for _, c := range p.Header.Changes() {
			fmt.Fprintf(&changes, "%d|%s|%s\n", c.Time, c.Author, c.Text)
		}
		if want := query("[%{CHANGELOGTIME}|%{CHANGELOGNAME}|%{CHANGELOGTEXT}\n]"); want != changes.String() && changes.Len() > 0 {
			t.Errorf("%s: changelog %s, rpm has %s", name, &changes, want)
		}
	}
}

// header writes a main header with the given index and store, without a region.
func header(store string, entries ...[4]uint32) []byte {
	b := []byte{0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, uint32(len(entries)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(store)))
	for _, e := range entries {
		for _, v := range e {
			b = binary.BigEndian.AppendUint32(b, v)
		}
	}
	return append(b, store...)
}

func TestHostileHeadersAreRefused(t *testing.T) {
	const text, i32, bin, array = rpm.TypeString, rpm.TypeInt32, rpm.TypeBin, rpm.TypeArray
	region := "\x00\x00\x00\x3f\x00\x00\x00\x07\xff\xff\xff\xf0\x00\x00\x00\x10"
	for name, b := range map[string][]byte{
		"empty":                    nil,
		"cut intro":                {0x8e, 0xad, 0xe8, 1},
		"wrong magic":              append([]byte{0x8f}, header("a\x00", [4]uint32{1000, text, 0, 1})[1:]...),
		"reserved bytes set":       append([]byte{0x8e, 0xad, 0xe8, 1, 0, 0, 0, 1}, header("a\x00", [4]uint32{1000, text, 0, 1})[8:]...),
		"no entries":               header("a\x00"),
		"4 G entries":              {0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0},
		"store of 4 GiB":           {0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0},
		"store longer than file":   header("a\x00", [4]uint32{1000, text, 0, 1})[:33],
		"string without end":       header("abc", [4]uint32{1000, text, 0, 1}),
		"offset outside":           header("a\x00", [4]uint32{1000, text, 2, 1}),
		"offset near 4 G":          header("a\x00", [4]uint32{1000, text, 0xffffffff, 1}),
		"count of 4 G":             header("aaaa", [4]uint32{1000, i32, 0, 0xffffffff}),
		"count that wraps":         header("aaaa", [4]uint32{1000, i32, 0, 0x40000001}),
		"count of 4 G strings":     header("a\x00", [4]uint32{1000, array, 0, 0xffffffff}),
		"two strings, one there":   header("a\x00", [4]uint32{1000, array, 0, 2}),
		"string of count 2":        header("a\x00b\x00", [4]uint32{1000, text, 0, 2}),
		"no values":                header("aaaa", [4]uint32{1000, bin, 0, 0}),
		"type 0":                   header("aaaa", [4]uint32{1000, 0, 0, 1}),
		"type 10":                  header("aaaa", [4]uint32{1000, 10, 0, 1}),
		"not aligned":              header("aaaaaaaa", [4]uint32{1000, i32, 1, 1}),
		"overlap":                  header("a\x00b\x00", [4]uint32{1000, array, 0, 2}, [4]uint32{1001, text, 2, 1}),
		"one tag twice":            header("a\x00b\x00", [4]uint32{1000, text, 0, 1}, [4]uint32{1000, text, 2, 1}),
		"one tag twice, apart":     header("a\x00b\x00c\x00", [4]uint32{1001, text, 0, 1}, [4]uint32{1000, text, 2, 1}, [4]uint32{1001, text, 4, 1}),
		"reserved tag":             header("a\x00", [4]uint32{64, text, 0, 1}),
		"region in the middle":     header("a\x00"+region, [4]uint32{1000, text, 0, 1}, [4]uint32{63, bin, 2, 16}),
		"region outside":           header(region, [4]uint32{63, bin, 1, 16}),
		"region of another tag":    header("\x00\x00\x00\x3e"+region[4:], [4]uint32{63, bin, 0, 16}),
		"region covers too little": header("a\x00"+region, [4]uint32{63, bin, 2, 16}, [4]uint32{1000, text, 0, 1}),
		"bytes behind the region":  header(region+"a\x00", [4]uint32{63, bin, 0, 16}),
		"text in the trailer":      header("a\x00"+region[:8]+"\xff\xff\xff\xe0"+region[12:], [4]uint32{63, bin, 2, 16}, [4]uint32{1000, text, 3, 1}),
	} {
		if h, n, err := rpm.ParseHeader(b); err == nil {
			t.Errorf("%s: read as %d entries, %d bytes", name, h.Len(), n)
		} else if fault.Code(err) != "rpm_header" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, n, err := rpm.ParseHeader(append(header("a\x00", [4]uint32{1000, text, 0, 1}), "more"...)); err != nil || n != 34 {
		t.Errorf("a good one: %d, %v", n, err)
	}
}

func TestFileListsMustFit(t *testing.T) {
	const array, i16, i32 = rpm.TypeArray, rpm.TypeInt16, rpm.TypeInt32
	modes := [4]uint32{uint32(rpm.FileModes), i16, 0, 2}
	for name, b := range map[string][]byte{
		"directory 2 of 1":     header("\x81\xa4\x81\xa4\x00\x00\x00\x00\x00\x00\x00\x02a\x00b\x00/\x00", modes, [4]uint32{uint32(rpm.DirIndexes), i32, 4, 2}, [4]uint32{uint32(rpm.Basenames), array, 12, 2}, [4]uint32{uint32(rpm.DirNames), array, 16, 1}),
		"one index, two names": header("\x81\xa4\x81\xa4\x00\x00\x00\x00a\x00b\x00/\x00", modes, [4]uint32{uint32(rpm.DirIndexes), i32, 4, 1}, [4]uint32{uint32(rpm.Basenames), array, 8, 2}, [4]uint32{uint32(rpm.DirNames), array, 12, 1}),
		"no directories":       header("\x81\xa4\x81\xa4\x00\x00\x00\x00\x00\x00\x00\x00a\x00b\x00", modes, [4]uint32{uint32(rpm.DirIndexes), i32, 4, 2}, [4]uint32{uint32(rpm.Basenames), array, 12, 2}),
		"no modes":             header("\x00\x00\x00\x00a\x00/\x00", [4]uint32{uint32(rpm.DirIndexes), i32, 0, 1}, [4]uint32{uint32(rpm.Basenames), array, 4, 1}, [4]uint32{uint32(rpm.DirNames), array, 6, 1}),
	} {
		h, _, err := rpm.ParseHeader(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if fs, err := h.Files(); err == nil {
			t.Errorf("%s: %v", name, fs)
		}
	}
	// One long directory of many files: the list is refused, the metadata stays small.
	const files = 10_000
	store := strings.Repeat("\x81\xa4", files) + strings.Repeat("\x00\x00\x00\x00", files) + strings.Repeat("a\x00", files) + "/" + strings.Repeat("bin/", 25_000) + "\x00"
	long, _, err := rpm.ParseHeader(header(store, [4]uint32{uint32(rpm.FileModes), i16, 0, files}, [4]uint32{uint32(rpm.DirIndexes), i32, 2 * files, files},
		[4]uint32{uint32(rpm.Basenames), array, 6 * files, files}, [4]uint32{uint32(rpm.DirNames), array, 8 * files, 1}))
	if err != nil {
		t.Fatal(err)
	}
	p := &rpm.Package{Sig: long, Header: long}
	if fs, err := long.Files(); fault.Code(err) != "rpm_header" {
		t.Errorf("a directory of 100 kB, %d times: %d files, %v", files, len(fs), err)
	}
	if err := p.CheckPaths(); fault.Code(err) != "rpm_header" {
		t.Errorf("a directory of 100 kB, %d times: %v", files, err)
	}
	for _, b := range [][]byte{rpm.Primary(nil, p, rpm.Place{}), rpm.Filelists(nil, long, "")} {
		if len(b) > 8*len(long.Raw()) {
			t.Errorf("a header of %d bytes gives %d bytes of metadata", len(long.Raw()), len(b))
		}
	}
	// Files in no order of directories are walked all the same.
	h, _, err := rpm.ParseHeader(header("\x81\xa4\x81\xa4\x81\xa4\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01a\x00b\x00c\x00/x/\x00/y/\x00", [4]uint32{uint32(rpm.FileModes), i16, 0, 3},
		[4]uint32{uint32(rpm.DirIndexes), i32, 8, 3}, [4]uint32{uint32(rpm.Basenames), array, 20, 3}, [4]uint32{uint32(rpm.DirNames), array, 26, 2}))
	if err != nil {
		t.Fatal(err)
	}
	fs, err := h.Files()
	if err != nil || len(fs) != 3 || fs[0].Path != "/y/a" || fs[1].Path != "/x/b" || fs[2].Path != "/y/c" {
		t.Errorf("%v %v", fs, err)
	}
}

// walk reads what an index of packages needs, and returns something of all of it.
func walk(h rpm.Header) (n int) {
	n = len(h.Text(rpm.Name)) + len(h.Text(rpm.Version)) + len(h.Text(rpm.Release)) + len(h.Text(rpm.Arch)) + int(h.Int(rpm.Epoch))
	for k := rpm.Requires; k <= rpm.Enhances; k++ {
		for d := h.Deps(k); d.Next(); {
			n += len(d.Name()) + len(d.EVR()) + int(d.Flags()&1)
		}
	}
	for f, err := h.FileWalk(); err == nil && f.Next(); {
		n += len(f.Dir()) + len(f.Base()) + int(f.Mode()&1) + int(f.Flags()&1)
	}
	return n
}

func TestHeadersAreReadWithoutAllocating(t *testing.T) {
	for name, b := range fixtures(t) {
		raw := read(t, b).Header.Raw()
		sum := 0
		// A walk over files that don't come sorted by directory makes one table.
		want := map[string]float64{"rpm-file-attrs-1.0-1.noarch.rpm": 1}[name]
		if n := testing.AllocsPerRun(100, func() {
			h, _, err := rpm.ParseHeader(raw)
			if err != nil {
				t.Fatal(err)
			}
			sum += walk(h)
		}); n != want || sum == 0 {
			t.Errorf("%s: %v allocations, %d read", name, n, sum)
		}
	}
}
