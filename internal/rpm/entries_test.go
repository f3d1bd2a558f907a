package rpm_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"drover/internal/fault"
	"drover/internal/rpm"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
)

// The roots that the three files have anywhere.
const (
	primaryHead   = `<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm" packages="1">`
	filelistsHead = `<filelists xmlns="http://linux.duke.edu/metadata/filelists" packages="1">`
	otherHead     = `<otherdata xmlns="http://linux.duke.edu/metadata/other" packages="1">`
)

const goodFilelists = `<package pkgid="` + sum64 + `" name="a" arch="noarch">
  <version epoch="0" ver="1" rel="1"/>
  <file>/etc/a &amp; b &#x3e; "c" > d</file>
  <file type="dir">/usr</file>
</package>
`

// readEntries reads entries and puts them together again.
func readEntries(b []byte, k rpm.Kind) (body []byte, ids []string, pkgs []rpm.PrimaryPackage, err error) {
	err = rpm.ReadEntries(bytes.NewReader(b), k, func(e rpm.Entry) error {
		body, ids = append(body, e.XML...), append(ids, e.PkgID)
		if k == rpm.KindPrimary {
			pkgs = append(pkgs, e.Package)
		}
		return nil
	})
	return body, ids, pkgs, err
}

// The entries of CentOS Stream's own files are what stands between head and tail, byte by byte,
// and their fields are what ReadPrimary finds.
func TestEntriesOfStream(t *testing.T) {
	for pattern, kind := range map[string]rpm.Kind{"cs9-appstream/repodata/*-primary.xml.gz": rpm.KindPrimary, "cs9-baseos-2022/repodata/*-primary.xml.gz": rpm.KindPrimary,
		"cs9-baseos-2022/repodata/*-filelists.xml.gz": rpm.KindFilelists, "cs9-baseos/repodata/*-filelists.xml.gz": rpm.KindFilelists} {
		files, _ := filepath.Glob("../../../shared/data/" + pattern)
		if len(files) != 1 {
			t.Fatalf("the shared test data is not at ../shared/data beside the project: %v", files)
		}
		packed, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		open := unpack(t, bytes.NewReader(packed))
		want := open[bytes.Index(open, []byte("<package ")) : bytes.LastIndex(open, []byte("</package>"))+len("</package>\n")]
		body, ids, pkgs, err := readEntries(packed, kind)
		if err != nil || !bytes.Equal(body, want) {
			t.Errorf("%s: %d bytes of entries, %d in the file, %v", pattern, len(body), len(want), err)
		}
		if n := bytes.Count(open, []byte("<package ")); n != len(ids) {
			t.Errorf("%s: %d entries of %d", pattern, len(ids), n)
		}
		if kind != rpm.KindPrimary {
			continue
		}
		i := 0
		if err := rpm.ReadPrimary(bytes.NewReader(open), func(p rpm.PrimaryPackage) error {
			if !reflect.DeepEqual(p, pkgs[i]) || ids[i] != p.Sum {
				t.Fatalf("%+v\n%+v", p, pkgs[i])
			}
			i++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// Entries of packages with everything odd, of the file that createrepo_c makes, stand under our
// root as they stood under its own, whatever the file is packed with.
func TestEntriesMakeFiles(t *testing.T) {
	dir, frags := rpmDir(t)
	createrepo(t, dir)
	for k := rpm.KindPrimary; k <= rpm.KindOther; k++ {
		files, err := filepath.Glob(filepath.Join(dir, "repodata", "*-"+k.String()+".xml.gz"))
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		gz, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		open := unpack(t, bytes.NewReader(gz))
		z, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range [][]byte{open, gz, append(z.EncodeAll(open[:1000], nil), z.EncodeAll(open[1000:], nil)...)} {
			body, ids, pkgs, err := readEntries(b, k)
			if err != nil || len(ids) != len(frags) {
				t.Fatalf("%s: %d entries, %v", k, len(ids), err)
			}
			ours := append(append(k.Head(len(ids)), body...), k.Tail()...)
			_, want := entries(t, open)
			_, got := entries(t, ours)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s (-its +ours):\n%s", k, d)
			}
			again, _, _, err := readEntries(ours, k)
			if err != nil || !bytes.Equal(again, body) {
				t.Errorf("%s: entries of entries differ, %v", k, err)
			}
			if k != rpm.KindPrimary {
				continue
			}
			var withDeps []rpm.PrimaryPackage
			if err := rpm.ReadPrimaryDeps(bytes.NewReader(open), func(p rpm.PrimaryPackage) error {
				withDeps = append(withDeps, p)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			n := 0
			if err := rpm.ReadEntries(bytes.NewReader(b), k, func(e rpm.Entry) error {
				p, err := rpm.ReadPrimaryEntry(e.XML)
				if err != nil || !reflect.DeepEqual(p, withDeps[n]) {
					t.Errorf("%+v\n%+v, %v", p, withDeps[n], err)
				}
				n++
				return nil
			}); err != nil || n != len(pkgs) {
				t.Error(n, err)
			}
		}
	}
}

func TestOddEntriesAreRefused(t *testing.T) {
	good := otherHead + goodFilelists + "</otherdata>"
	if _, ids, _, err := readEntries([]byte(good), rpm.KindOther); err != nil || len(ids) != 1 || ids[0] != sum64 {
		t.Fatal(ids, err)
	}
	in := func(old, now string) string {
		if !strings.Contains(good, old) {
			t.Fatal(old)
		}
		return strings.Replace(good, old, now, 1)
	}
	for name, s := range map[string]string{
		"empty":                     "",
		"another root":              strings.ReplaceAll(good, "otherdata", "filelists"),
		"a prefixed root":           strings.ReplaceAll(good, "otherdata", "m:otherdata"),
		"another namespace":         in("metadata/other", "metadata/filelists"),
		"another prefix":            in(` packages=`, ` xmlns:suse="http://novell.com/" packages=`) + " " + strings.ReplaceAll(in("<file>", "<suse:file>"), "</file>", "</suse:file>"),
		"a prefix in a package":     in("<version ", "<suse:x/><version "),
		"rpm means something else":  in(` packages=`, ` xmlns:rpm="http://evil/" packages=`),
		"rpm outside primary":       in("<version ", "<rpm:x/><version "),
		"a namespace in a package":  in("<version ", `<version xmlns="x" `),
		"a prefix in a package 2":   in("<version ", `<version xmlns:rpm="x" `),
		"a prefixed attribute":      in("<version ", `<version x:y="z" `),
		"a base":                    in("<version ", `<version xml:base="http://evil/" `),
		"a base of all":             in(` packages=`, ` xml:base="http://evil/" packages=`),
		"another encoding":          `<?xml version="1.0" encoding="ISO-8859-1"?>` + good,
		"a document type":           `<!DOCTYPE x>` + good,
		"a comment between":         in("<package ", "<!-- --><package "),
		"a comment":                 in("<version ", "<!-- --><version "),
		"an end in a comment":       in("<version ", "<!-- </package> --><version "),
		"CDATA":                     in("/usr<", "<![CDATA[x]]><"),
		"an instruction":            in("<version ", "<?x y?><version "),
		"an instruction between":    in("<package ", "<?x y?><package "),
		"text between":              in("<package ", "x<package "),
		"text behind":               good + "x",
		"two documents":             good + good,
		"an entity":                 in("/usr", "&nbsp;"),
		"a long reference":          in("/usr", "&#"+strings.Repeat("0", 100)+"65;"),
		"no reference":              in("/usr", "& "),
		"a reference to nothing":    in("/usr", "&#0;"),
		"a control character":       in("/usr", "\x01"),
		"no UTF-8":                  in("/usr", "\xff"),
		"no character":              in("/usr", "\uffff"),
		"no character 2":            in("/usr", "&#xfffe;"),
		"the end of CDATA":          in("/usr", "]]>"),
		"< in an attribute":         in(`ver="1"`, `ver="<"`),
		"an entity in an attribute": in(`ver="1"`, `ver="&x;"`),
		"an attribute twice":        in(`ver="1"`, `ver="1" ver="1"`),
		"pkgid twice":               in(`pkgid=`, `pkgid="x" pkgid=`),
		"no pkgid":                  in(`pkgid=`, `id=`),
		"a bad pkgid":               in(sum64, "zz"+sum64[2:]),
		"a short pkgid":             in(sum64, "00"),
		"many attributes":           in(`ver="1"`, strings.Repeat(`a="" `, 1000)),
		"attributes that touch":     in(`epoch="0" ver`, `epoch="0"ver`),
		"no quotes":                 in(`ver="1"`, `ver=1`),
		"no end of a value":         in(`ver="1"`, `ver="1`),
		"crossed":                   in("</file>", "</package></file>"),
		"never closed":              in("</file>", ""),
		"closed twice":              in("</file>", "</file></file>"),
		"an empty package":          in("<package ", "<package/><package "),
		"a package in a package":    in("<file>", "<package><file>"),
		"another element":           in("<package ", "<packages/><package "),
		"deep":                      in("<version ", strings.Repeat("<a>", 100)+"<version "),
		"an end with a space":       strings.Replace(in("</package>", "</package >"), "</otherdata>", goodFilelists+"</otherdata>", 1),
		"cut":                       good[:200],
		"no end":                    strings.TrimSuffix(good, "</otherdata>"),
		"another end":               strings.Replace(good, "</otherdata>", "</other>", 1),
		"an entry too long":         in("/usr", strings.Repeat("/usr/share/x", 6<<20)),
		"many entries without end":  otherHead + strings.Repeat(">", 1<<20),
	} {
		a := allocated(func() {
			if _, _, _, err := readEntries([]byte(s), rpm.KindOther); fault.Code(err) != "repodata" {
				t.Errorf("%s: %v", name, err)
			}
		})
		if a > uint64(8*len(s)+buffers) {
			t.Errorf("%s: took %d bytes to say so", name, a)
		}
	}
	for name, s := range map[string]string{
		"outside":        strings.Replace(goodPackage, "Packages/a", "../a", 1),
		"two locations":  strings.Replace(goodPackage, "<location ", `<location href="b"/><location `, 1),
		"two names":      strings.Replace(goodPackage, "<name>", `<name>b</name><name>`, 1),
		"two checksums":  strings.Replace(goodPackage, "<checksum ", `<checksum type="sha256">`+sum64+`</checksum><checksum `, 1),
		"two versions":   strings.Replace(goodPackage, "<version ", `<version epoch="0" ver="2" rel="1"/><version `, 1),
		"no checksum":    strings.Replace(goodPackage, sum64, "", 1),
		"another prefix": strings.ReplaceAll(goodPackage, "rpm:", "r:"),
		"two packages":   goodPackage + "<x/>",
		"nothing":        "",
		"a base":         strings.Replace(goodPackage, "<location ", `<location xml:base="http://evil/" `, 1),
	} {
		_, _, _, err := readEntries([]byte(primaryHead+s+"</metadata>"), rpm.KindPrimary)
		if c := fault.Code(err); s != "" && c != "repodata" && c != "repodata_location" {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(name, "prefix") || name == "a base" {
			continue // seen when the document is read
		}
		_, err = rpm.ReadPrimaryEntry([]byte(s))
		if c := fault.Code(err); c != "repodata" && c != "repodata_location" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, s := range []string{"<otherdata/>", "<otherdata></otherdata >\n<!-- x -->", otherHead + " \n" + goodFilelists + goodFilelists + "\n</otherdata\n>", in(` packages=`, ` xmlns:suse="http://novell.com/" packages=`)} {
		if _, _, _, err := readEntries([]byte(s), rpm.KindOther); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	stop := errors.New("stop")
	if err := rpm.ReadEntries(strings.NewReader(good), rpm.KindOther, func(rpm.Entry) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
}

// FuzzEntries reads files of packages as text. Whatever is accepted stands well-formed under
// our root and reads again as the same.
func FuzzEntries(f *testing.F) {
	f.Add(uint8(0), []byte(primaryXML(goodPackage)))
	f.Add(uint8(1), []byte(filelistsHead+goodFilelists+"</filelists>"))
	f.Add(uint8(2), []byte(otherHead+strings.ReplaceAll(goodFilelists, "file", "changelog")+goodFilelists+"</otherdata>"))
	for k, pattern := range []string{"*-primary.xml.gz", "*-filelists.xml.gz"} {
		for _, b := range shared(f, pattern, 40<<10) {
			if n := bytes.LastIndex(b, []byte("</package>")) + len("</package>"); n > 100 {
				f.Add(uint8(k), append(b[:n:n], rpm.Kind(k).Tail()...))
			}
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		if packed(b) {
			return
		}
		k := rpm.Kind(kind % 3)
		n := 0
		var err error
		bounded(t, "ReadEntries", len(b), 8, 2*buffers, func() {
			err = rpm.ReadEntries(bytes.NewReader(b), k, func(rpm.Entry) error { n++; return nil })
		})
		code(t, err, "repodata", "repodata_location")
		if err != nil {
			return
		}
		body, ids, pkgs, err := readEntries(b, k)
		if err != nil || len(ids) != n {
			t.Fatalf("%d entries, then %d, %v", n, len(ids), err)
		}
		whole := append(append(k.Head(n), body...), k.Tail()...)
		strict := xml.NewDecoder(bytes.NewReader(whole))
		elements := 0
		for {
			tok, err := strict.Token()
			if errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("no XML: %v: %.2000q", err, whole)
			}
			if s, ok := tok.(xml.StartElement); ok {
				if elements++; s.Name.Space != "http://linux.duke.edu/metadata/rpm" && s.Name.Space != "http://linux.duke.edu/metadata/"+[]string{"common", "filelists", "other"}[k] {
					t.Fatalf("an element of %q", s.Name.Space)
				}
			}
		}
		if elements < n+1 {
			t.Fatalf("%d elements for %d packages", elements, n)
		}
		again, ids2, pkgs2, err := readEntries(whole, k)
		if err != nil || !bytes.Equal(again, body) || !reflect.DeepEqual(ids, ids2) || !reflect.DeepEqual(pkgs, pkgs2) {
			t.Fatalf("what was put together reads otherwise: %v", err)
		}
		if k == rpm.KindPrimary {
			m := 0
			if err := rpm.ReadPrimary(bytes.NewReader(b), func(p rpm.PrimaryPackage) error {
				if !reflect.DeepEqual(p, pkgs[m]) {
					t.Fatalf("%+v\n%+v", p, pkgs[m])
				}
				m++
				return nil
			}); err != nil || m != n {
				t.Fatalf("ReadPrimary finds %d packages of %d, %v", m, n, err)
			}
		}
	})
}
