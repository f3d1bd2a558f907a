package rpm_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"drover/internal/fault"
	"drover/internal/rpm"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// cpioFile is an entry of a payload, and what the header says of the file.
type cpioFile struct {
	name string
	mode uint32
	ino  uint32
	link string // target
	body string // in the payload
	size int    // in the header; the body's for all but earlier names of hard links
	full string // content, in the header
}

// goodFiles is a file, a directory, a link and two names of one file.
func goodFiles() []cpioFile {
	return []cpioFile{
		{name: "/usr/a", mode: 0o100644, ino: 1, body: "hello", size: 5, full: "hello"},
		{name: "/usr/d", mode: 0o040755, ino: 2},
		{name: "/usr/h1", mode: 0o100644, ino: 3, size: 2, full: "xy"},
		{name: "/usr/h2", mode: 0o100644, ino: 3, body: "xy", size: 2, full: "xy"},
		{name: "/usr/l", mode: 0o120777, ino: 4, link: "a", body: "a", size: 1},
	}
}

func cpioEntry(name string, mode, ino uint32, body string) string {
	e := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", ino, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(name)+1, 0) + name + "\x00"
	e += strings.Repeat("\x00", -len(e)&3) + body
	return e + strings.Repeat("\x00", -len(e)&3)
}

func cpio(files []cpioFile) (out string) {
	for _, f := range files {
		out += cpioEntry("."+f.name, f.mode, f.ino, f.body)
	}
	return out + cpioEntry("TRAILER!!!", 0, 0, "")
}

// owner is a binary package with these files in its header and the given payload.
func owner(t *testing.T, files []cpioFile, payload string) (*rpm.Package, *strings.Reader) {
	t.Helper()
	texts := map[rpm.Tag]string{}
	numbers := map[rpm.Tag][]uint32{rpm.FileDigAlgo: {8}}
	var modes []byte
	for _, f := range files {
		sum := ""
		if f.mode&0o170000 == 0o100000 {
			sum = hexSum([]byte(f.full))
		}
		texts[rpm.OldFilenames] += f.name + "\x00"
		texts[rpm.FileDigests] += sum + "\x00"
		texts[rpm.FileLinktos] += f.link + "\x00"
		modes = binary.BigEndian.AppendUint16(modes, uint16(f.mode))
		numbers[rpm.FileSizes] = append(numbers[rpm.FileSizes], uint32(f.size))
		numbers[rpm.FileInodes] = append(numbers[rpm.FileInodes], f.ino)
	}
	var store string
	var entries [][4]uint32
	for _, tag := range slices.Sorted(maps.Keys(numbers)) {
		entries = append(entries, [4]uint32{uint32(tag), rpm.TypeInt32, uint32(len(store)), uint32(len(numbers[tag]))})
		for _, n := range numbers[tag] {
			store += string(binary.BigEndian.AppendUint32(nil, n))
		}
	}
	entries = append(entries, [4]uint32{uint32(rpm.FileModes), rpm.TypeInt16, uint32(len(store)), uint32(len(files))})
	store += string(modes)
	for _, tag := range slices.Sorted(maps.Keys(texts)) {
		entries = append(entries, [4]uint32{uint32(tag), rpm.TypeArray, uint32(len(store)), uint32(len(files))})
		store += texts[tag]
	}
	entries = append(entries, [4]uint32{uint32(rpm.SourceRPM), rpm.TypeString, uint32(len(store)), 1})
	h, _, err := rpm.ParseHeader(header(store+"a.src.rpm\x00", entries...))
	if err != nil {
		t.Fatal(err)
	}
	return &rpm.Package{Sig: h, Header: h, Size: int64(len(payload))}, strings.NewReader(payload)
}

func TestHostilePayloadsAreRefused(t *testing.T) {
	good := cpio(goodFiles())
	named := func(name string) string { return cpioEntry(name, 0o100644, 9, "x") + cpioEntry("TRAILER!!!", 0, 0, "") }
	packed := func(w io.WriteCloser, b *bytes.Buffer) string {
		zeros := make([]byte, 1<<20)
		for range 64 {
			if _, err := w.Write(zeros); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	// An entry of 64 MiB of zeros, packed to some kilobytes.
	head := cpioEntry("./usr/a", 0o100644, 1, "")
	head = head[:54] + fmt.Sprintf("%08x", 64<<20) + head[62:]
	var gz, zs bytes.Buffer
	g := gzip.NewWriter(&gz)
	z, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.Writer{g, z} {
		if _, err := io.WriteString(w, head); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct{ payload, code string }{
		"out of the root":          {named("../../etc/passwd"), "rpm_path"},
		"out of the root later":    {named("./usr/../../etc/passwd"), "rpm_path"},
		"out of an absolute root":  {named("//etc/passwd"), "rpm_path"},
		"two slashes":              {named("usr//a"), "rpm_path"},
		"the root as a file":       {named("."), "rpm_path"},
		"no name":                  {named(""), "rpm_path"},
		"a line in a name":         {named("usr/a\nb"), "rpm_path"},
		"NUL in a name":            {named("usr/a\x00b"), "rpm_payload"},
		"a name of 5000 bytes":     {named(strings.Repeat("a", 5000)), "rpm_payload"},
		"a name without end":       {strings.Replace(good, "./usr/a\x00", "./usr/aa", 1), "rpm_payload"},
		"empty":                    {"", "rpm_payload"},
		"of no kind":               {"hello", "rpm_payload"},
		"no numbers":               {strings.Replace(good, "070701000", "0707010x0", 1), "rpm_payload"},
		"old format":               {strings.Replace(good, "070701", "070707", 1), "rpm_payload"},
		"no trailer":               {strings.TrimSuffix(good, cpioEntry("TRAILER!!!", 0, 0, "")), "rpm_payload"},
		"cut":                      {good[:len(good)/2], "rpm_payload"},
		"too many entries":         {strings.Repeat(cpioEntry("./usr/a", 0o100644, 1, ""), 100), "rpm_payload"},
		"a stripped entry of none": {"07070X00000005\x00\x00", "rpm_payload"},
		"an entry of 4 GiB":        {head[:54] + "ffffffff" + head[62:], "rpm_payload"},
		"a gzip bomb":              {packed(g, &gz), "rpm_payload"},
		"a zstd bomb":              {packed(z, &zs), "rpm_payload"},
		"half a gzip":              {gz.String()[:20], "rpm_payload"},
		"half an xz":               {"\xfd7zXZ\x00\x00\x04", "rpm_payload"},
		"half an lzma":             {"\x5d\x00\x00\x80\x00", "rpm_payload"},
		"an lzma of 2 GiB":         {"\x5d\x00\x00\x00\x80\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00\x00", "rpm_payload"},
		"a broken bzip2":           {"BZh91AY&SYxxxxxxxx", "rpm_payload"},
	} {
		p, r := owner(t, goodFiles(), c.payload)
		for what, f := range map[string]func() error{
			"Payload": func() error { return p.Payload(r, 1<<20, func(rpm.PayloadFile, io.Reader) error { return nil }) },
			"PayloadDigests": func() error {
				_, err := p.PayloadDigests(r, 1<<20)
				return err
			},
		} {
			var err error
			bounded(t, name, len(c.payload)+len(p.Header.Raw()), lists, window([]byte(c.payload)), func() { err = f() })
			if fault.Code(err) != c.code {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
	}
}

func TestPayloadsThatAreNotTheHeadersAreRefused(t *testing.T) {
	p, r := owner(t, goodFiles(), cpio(goodFiles()))
	if err := p.VerifyPayload(r, 1<<20); err != nil {
		t.Fatal(err)
	}
	sums, err := p.PayloadDigests(r, 1<<20)
	if err != nil || len(sums) != 3 || sums["usr/a"] != hexSum([]byte("hello")) || sums["usr/h1"] != hexSum([]byte("xy")) || sums["usr/h1"] != sums["usr/h2"] {
		t.Errorf("%v %v", sums, err)
	}
	for name, change := range map[string]func(fs []cpioFile) []cpioFile{
		"another content":        func(fs []cpioFile) []cpioFile { fs[0].body = "hellO"; return fs },
		"a longer content":       func(fs []cpioFile) []cpioFile { fs[0].body = "hello!"; return fs },
		"no content":             func(fs []cpioFile) []cpioFile { fs[0].body = ""; return fs },
		"another target":         func(fs []cpioFile) []cpioFile { fs[4].body = "b"; return fs },
		"a longer target":        func(fs []cpioFile) []cpioFile { fs[4].body = "ab"; return fs },
		"a link for a file":      func(fs []cpioFile) []cpioFile { fs[0].mode = 0o120777; return fs },
		"a file for a directory": func(fs []cpioFile) []cpioFile { fs[1].mode = 0o100644; return fs },
		"a directory of bytes":   func(fs []cpioFile) []cpioFile { fs[1].body = "x"; return fs },
		"one missing":            func(fs []cpioFile) []cpioFile { return fs[1:] },
		"one more":               func(fs []cpioFile) []cpioFile { return append(fs, cpioFile{name: "/usr/b", mode: 0o100644, ino: 7}) },
		"another name":           func(fs []cpioFile) []cpioFile { fs[0].name = "/usr/b"; return fs },
		"one twice":              func(fs []cpioFile) []cpioFile { return append(fs[:4:4], fs[0]) },
		"a hard link alone":      func(fs []cpioFile) []cpioFile { fs[3].ino = 8; return fs },
		"a hard link's content":  func(fs []cpioFile) []cpioFile { fs[3].body = "yx"; return fs },
	} {
		p, r := owner(t, goodFiles(), cpio(change(goodFiles())))
		if err := p.VerifyPayload(r, 1<<20); fault.Code(err) != "rpm_digest" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostileFileNamesAreRefused(t *testing.T) {
	one := func(name string) []cpioFile { return []cpioFile{{name: name, mode: 0o100644}} }
	for _, name := range []string{"usr/a", "a", "/usr/../etc/passwd", "/..", "/.", "/usr//a", "//a", "/usr/./a", "/usr/a/", "", "/usr/a\nb", "../a"} {
		p, _ := owner(t, one(name), "")
		if err := p.CheckPaths(); fault.Code(err) != "rpm_path" {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"/a", "/usr/..a/b", "/usr/a b"} {
		p, _ := owner(t, one(name), "")
		if err := p.CheckPaths(); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	// A source package, which names no other, has plain names.
	const array, i16 = rpm.TypeArray, rpm.TypeInt16
	for name, code := range map[string]string{"a.spec": "", "/a": "rpm_path", "a/b": "rpm_path", "..": "rpm_path", ".": "rpm_path", "": "rpm_path"} {
		h, _, err := rpm.ParseHeader(header("\x81\xa4"+name+"\x00", [4]uint32{uint32(rpm.FileModes), i16, 0, 1}, [4]uint32{uint32(rpm.OldFilenames), array, 2, 1}))
		if err != nil {
			t.Fatal(err)
		}
		p := &rpm.Package{Sig: h, Header: h}
		if err := p.CheckPaths(); code == "" && err != nil || code != "" && fault.Code(err) != code {
			t.Errorf("%q of a source package: %v", name, err)
		}
	}
	twice := append(one("/a"), one("/a")...)
	p, r := owner(t, twice, cpio(twice))
	if err := p.CheckPaths(); fault.Code(err) != "rpm_header" {
		t.Errorf("one name twice: %v", err)
	}
	if err := p.VerifyPayload(r, 1<<20); fault.Code(err) != "rpm_header" {
		t.Errorf("one name twice: %v", err)
	}
}
