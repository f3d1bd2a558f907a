package rpm_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"drover/internal/fault"
	"drover/internal/rpm"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"
)

// oddSpec is a package of everything that the rules of repository metadata are about.
const oddSpec = `%define _build_id_links none
%define __os_install_post %{nil}
%define _use_internal_dependency_generator 0
%define __find_provides %{nil}
%define __find_requires %{nil}
Name: odd
Epoch: 3
Version: 1.0~rc1^2
Release: 1
Summary: A <b>"bold"</b> & odd 'package' of dependencies – with “quotes”
License: MIT
URL: https://example.com/?a=1&b=2
Packager: J\xfcrgen <j@example.com>
Vendor: Ünï
Provides: odd(x) = 3:1-2
Provides: odd(x) = 3:1-2
Provides: /etc/provided
Provides: plain
Provides: with(version) = 2
Provides: a&b<c>"d"
Requires: plain
Requires: with(version)
Requires: with(version) = 2
Requires: with(version) = 3
Requires: twice
Requires: twice
Requires: twice >= 1
Requires: twice
Requires: other >= 2:1.0-3
Requires: other < 5-x
Requires: /etc/odd.conf
Requires: /usr/share/odd/data
Requires: /usr/bin/elsewhere
Requires: libc.so.6(GLIBC_2.4)(64bit)
Requires: libc.so.6()(64bit)
Requires: libc.so.6(GLIBC_2.34)(64bit)
Requires: libc.so.6(GLIBC_2.3.4)(64bit)
Requires: libc.so.6(GLIBC_2.34)(64bit)
Requires: ((a >= 1 with a < 2) or b)
Requires: (c if d else e)
Requires(pre): shadow
Requires(post): /usr/sbin/ldconfig
Requires(post): twice
Requires(preun): gone
Requires(interp): /bin/sh
Conflicts: bad < 1
Conflicts: bad < 1
Obsoletes: old <= 2-2
Recommends: nice > 1
Suggests: maybe
Supplements: (odd and lang-de)
Enhances: some = 7
BuildArch: noarch

%description
Tabs	and lines,
 <angle> & "double" 'single' ]]> – end.
Latin-1: \xe9\x85\xa0.

%package sub
Summary: Empty

%description sub

%install
mkdir -p %{buildroot}/etc/odd.d %{buildroot}/usr/share/odd/sbin/x %{buildroot}/usr/lib %{buildroot}/usr/bin %{buildroot}/opt/cabin
touch %{buildroot}/etc/odd.conf %{buildroot}/usr/share/odd/data %{buildroot}/usr/lib/sendmail %{buildroot}/usr/bin/odd "%{buildroot}/opt/cabin/a & b <c>" %{buildroot}/usr/share/odd/ghost %{buildroot}/usr/share/odd/sbin/x/y
ln -s odd %{buildroot}/usr/bin/link
touch "%{buildroot}/usr/share/odd/größe"

%files
/etc/odd.conf
%dir /etc/odd.d
%dir /usr/share/odd
/usr/share/odd/data
%ghost /usr/share/odd/ghost
/usr/share/odd/größe
/usr/share/odd/sbin
/usr/lib/sendmail
/usr/bin/odd
/usr/bin/link
/opt/cabin

%files sub

%changelog
* Thu Nov 14 2024 Same Day   <same@example.com>   - 3
- third <b>

* Thu Nov 14 2024 Same Day <same@example.com> - 2
- second

* Thu Nov 14 2024 Same Day <same@example.com> - 1
- first

* Wed Nov 13 2024 Before <b@example.com> - 12
- twelve

* Wed Nov 13 2024 Before <b@example.com> - 11
- eleven

* Tue Nov 12 2024 Before <b@example.com> - 10
- ten & more

* Mon Nov 11 2024 Before <b@example.com> - 9
- nine

* Sun Nov 10 2024 Before <b@example.com> - 8
- eight

* Sat Nov 09 2024 Before <b@example.com> - 7
- seven

* Fri Nov 08 2024 Before <b@example.com> - 6
- six

* Thu Nov 07 2024 Before <b@example.com> - 5
- not in the metadata
`

// odd builds the packages of oddSpec.
func odd(t testing.TB) map[string][]byte {
	t.Helper()
	dir := t.TempDir()
	spec := filepath.Join(dir, "odd.spec")
	text := strings.NewReplacer(`\xfc`, "\xfc", `\xe9`, "\xe9", `\x85`, "\x85", `\xa0`, "\xa0").Replace(oddSpec)
	if err := os.WriteFile(spec, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := rpmCommand(t, dir, "rpmbuild", "--define", "_topdir "+dir, "--define", "_invalid_encoding_terminates_build 0", "-ba", spec)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("rpmbuild: %v: %s", err, out)
	}
	out := map[string][]byte{}
	for _, pattern := range []string{"RPMS/*/*.rpm", "SRPMS/*.rpm"} {
		files, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			out[filepath.Base(f)] = b
		}
	}
	if len(out) != 3 {
		t.Fatalf("rpmbuild made %v", slices.Collect(maps.Keys(out)))
	}
	return out
}

// rpmDir writes all packages into a directory, and renders them.
func rpmDir(t *testing.T) (dir string, frags []rpm.Fragments) {
	t.Helper()
	dir = t.TempDir()
	all := fixtures(t)
	maps.Copy(all, odd(t))
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		b := all[name]
		p := read(t, b)
		if seen[p.HeaderSHA256()] {
			continue
		}
		seen[p.HeaderSHA256()] = true
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		at := rpm.Place{PkgID: hexSum(b), Href: name, Size: int64(len(b)), Mtime: fi.ModTime().Unix(), HeaderStart: p.HeaderStart, HeaderEnd: p.HeaderEnd}
		frags = append(frags, rpm.Fragments{Primary: rpm.Primary(nil, p, at), Filelists: rpm.Filelists(nil, p.Header, at.PkgID), Other: rpm.Other(nil, p.Header, at.PkgID)})
	}
	return dir, frags
}

// element is any XML, for comparing it by what it says.
type element struct {
	XMLName  xml.Name
	Attrs    []xml.Attr `xml:",any,attr"`
	Text     string     `xml:",chardata"`
	Children []element  `xml:",any"`
}

// entries splits a metadata file into its packages by pkgid: as text, and as elements.
func entries(t *testing.T, b []byte) (map[string]string, map[string]element) {
	t.Helper()
	texts := map[string]string{}
	id := func(s string) string { return regexp.MustCompile(`[0-9a-f]{64}`).FindString(s) }
	for e := range strings.SplitSeq(string(b), "<package ") {
		if e, _, ok := strings.Cut(e, "</package>"); ok {
			texts[id(e)] = e
		}
	}
	var doc element
	if err := xml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	els := map[string]element{}
	for _, e := range doc.Children {
		k := ""
		for _, a := range e.Attrs {
			if a.Name.Local == "pkgid" {
				k = a.Value
			}
		}
		for _, c := range e.Children {
			if c.XMLName.Local == "checksum" {
				k = c.Text
			}
		}
		els[k] = e
	}
	return texts, els
}

func createrepo(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("createrepo_c", append([]string{"--no-database", "--general-compress-type=gz"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("createrepo_c: %v: %s", err, out)
	}
	return string(out)
}

// Every fixture, and a package of every odd thing, has the entries that createrepo_c gives
// it: element by element, and byte by byte.
func TestFragmentsEqualCreaterepo(t *testing.T) {
	dir, frags := rpmDir(t)
	createrepo(t, dir)
	ours, err := rpm.Metadata(frags, nil, rpm.Gzip)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ours {
		theirs, err := filepath.Glob(filepath.Join(dir, "repodata", "*-"+m.Type+".xml.gz"))
		if err != nil || len(theirs) != 1 {
			t.Fatalf("%s: %v %v", m.Type, theirs, err)
		}
		f, err := os.Open(theirs[0])
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		want, wantEl := entries(t, unpack(t, f))
		got, gotEl := entries(t, unpack(t, bytes.NewReader(m.Data)))
		if len(want) < 28 || len(want) != len(got) || len(wantEl) != len(want) {
			t.Errorf("%s: %d packages, createrepo_c has %d", m.Type, len(got), len(want))
		}
		for id, w := range want {
			if d := cmp.Diff(wantEl[id], gotEl[id]); d != "" {
				t.Errorf("%s differs from createrepo_c (-its +ours):\n%s", m.Type, d)
			}
			if d := cmp.Diff(strings.Split(w, "\n"), strings.Split(got[id], "\n")); d != "" {
				t.Errorf("%s differs from createrepo_c (-its +ours):\n%s", m.Type, d)
			}
		}
	}
}

// writeRepo writes a repository's metadata below dir.
func writeRepo(t *testing.T, dir string, files []rpm.MetaFile) []byte {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "repodata"), 0o700); err != nil {
		t.Fatal(err)
	}
	md := rpm.Repomd(files, 7, 1_700_000_000)
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f.Name), f.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "repodata/repomd.xml"), md, 0o600); err != nil {
		t.Fatal(err)
	}
	return md
}

// Any text is what it was once the metadata is read, but for what XML cannot hold.
func TestTextsSurviveMetadata(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.StringMatching(`[ -~\t\n\r&<>"']{0,20}`), rapid.String(), rapid.Just("a\ufffeb\uffffc\ufffd\x01\x1f\x7f"), rapid.StringOf(rapid.RuneFrom([]rune("]>&\r\n\t\u0085\u2028\ufffe")))).Draw(t, "text")
		text = strings.ReplaceAll(text, "\x00", "")
		h, _, err := rpm.ParseHeader(header(text+"\x00"+text+"\x00", [4]uint32{uint32(rpm.Name), rpm.TypeString, 0, 1}, [4]uint32{uint32(rpm.Summary), rpm.TypeString, uint32(len(text) + 1), 1}))
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Map(func(r rune) rune {
			if r < ' ' && r != '\n' && r != '\t' && r != '\r' || r == 0xfffe || r == 0xffff {
				return -1
			}
			return r
		}, text)
		var primary struct {
			Summary string `xml:"summary"`
		}
		if err := xml.Unmarshal(rpm.Primary(nil, &rpm.Package{Sig: h, Header: h}, rpm.Place{}), &primary); err != nil || primary.Summary != want {
			t.Fatalf("%q became %q, %v", want, primary.Summary, err)
		}
		var other struct {
			Name string `xml:"name,attr"`
		}
		if err := xml.Unmarshal(rpm.Other(nil, h, ""), &other); err != nil || other.Name != want {
			t.Fatalf("%q became %q in an attribute, %v", want, other.Name, err)
		}
	})
}

// Weak dependencies as SUSE and Mandriva had them count by their strength.
func TestLegacyWeakDependencies(t *testing.T) {
	const array, i32 = rpm.TypeArray, rpm.TypeInt32
	h, _, err := rpm.ParseHeader(header("\x08\x00\x00\x00\x00\x00\x00\x08strong\x00weak\x00\x001-2\x00", [4]uint32{uint32(rpm.OldSugFlags), i32, 0, 2}, [4]uint32{uint32(rpm.OldSugName), array, 8, 2}, [4]uint32{uint32(rpm.OldSugVer), array, 20, 2}))
	if err != nil {
		t.Fatal(err)
	}
	got := string(rpm.Primary(nil, &rpm.Package{Sig: h, Header: h}, rpm.Place{}))
	for _, want := range []string{"<rpm:suggests>\n      <rpm:entry name=\"weak\" flags=\"EQ\" epoch=\"0\" ver=\"1\" rel=\"2\"/>\n    </rpm:suggests>", "<rpm:recommends>\n      <rpm:entry name=\"strong\"/>\n    </rpm:recommends>"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
}

// reread lets createrepo_c --update take every package from the metadata that is there, and
// gives the entries that it writes by type and pkgid.
func reread(t *testing.T, dir string, packages int) map[string]map[string]string {
	t.Helper()
	// A package counts as taken when name, size and time fit.
	out := createrepo(t, "--update", "--verbose", dir)
	if hits := strings.Count(out, "CACHE HIT "); hits != packages {
		t.Errorf("%d of %d packages taken from the metadata:\n%s", hits, packages, out)
	}
	all := map[string]map[string]string{}
	for _, typ := range []string{"primary", "filelists", "other"} {
		files, err := filepath.Glob(filepath.Join(dir, "repodata", "*-"+typ+".xml.gz"))
		if err != nil || len(files) != 1 {
			t.Fatal(typ, files, err)
		}
		b, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		all[typ], _ = entries(t, unpack(t, bytes.NewReader(b)))
	}
	return all
}

// What createrepo_c --update makes of our metadata is what it makes of its own, and is our
// metadata but for one fault of its reader: it takes the "&amp;" of an attribute for "&#38;",
// in metadata of its own making too.
func TestCreaterepoUpdatesFromOurMetadata(t *testing.T) {
	dir, frags := rpmDir(t)
	createrepo(t, dir)
	own := reread(t, dir, len(frags))
	if err := os.RemoveAll(filepath.Join(dir, "repodata")); err != nil {
		t.Fatal(err)
	}
	files, err := rpm.Metadata(frags, nil, rpm.Gzip)
	if err != nil {
		t.Fatal(err)
	}
	writeRepo(t, dir, files)
	got := reread(t, dir, len(frags))
	if d := cmp.Diff(own, got); d != "" {
		t.Errorf("made of its own metadata and of ours (-its +ours):\n%s", d)
	}
	faults := 0
	for _, m := range files {
		ours, _ := entries(t, unpack(t, bytes.NewReader(m.Data)))
		for id, e := range got[m.Type] {
			if !strings.Contains(ours[id], "&amp;#38;") {
				faults += strings.Count(e, "&amp;#38;")
				e = strings.ReplaceAll(e, "&amp;#38;", "&amp;")
			}
			if d := cmp.Diff(strings.Split(ours[id], "\n"), strings.Split(e, "\n")); d != "" {
				t.Errorf("%s (-ours +its):\n%s", m.Type, d)
			}
		}
	}
	if faults > 1 {
		t.Errorf("%d attributes with an ampersand, of the one that the packages have", faults)
	}
}

func TestMetadataIsDeterministicAndReadBack(t *testing.T) {
	_, frags := rpmDir(t)
	comps := rpm.Comps{Groups: []rpm.CompsGroup{{ID: "g", Name: "G", Packages: []rpm.CompsPackage{{Name: "odd", Type: "default"}}}}}.XML()
	for _, codec := range []rpm.Codec{rpm.Zstd, rpm.Gzip} {
		a, err := rpm.Metadata(frags, comps, codec)
		if err != nil {
			t.Fatal(err)
		}
		b, err := rpm.Metadata(frags, comps, codec)
		if err != nil || !reflect.DeepEqual(a, b) {
			t.Errorf("%s: the same packages gave other bytes, %v", codec, err)
		}
		md := rpm.Repomd(a, 7, 1_700_000_000)
		datas, err := rpm.ReadRepomd(md)
		if err != nil {
			t.Fatal(err)
		}
		for i, d := range datas {
			open := unpack(t, bytes.NewReader(a[i].Data))
			if d.Type != a[i].Type || d.Href != a[i].Name || d.Sum != hexSum(a[i].Data) || d.Size != int64(len(a[i].Data)) || d.Time != 1_700_000_000 {
				t.Errorf("%+v", d)
			}
			if d.Type != "group" && (d.OpenSum != hexSum(open) || d.OpenSize != int64(len(open))) {
				t.Errorf("%+v", d)
			}
		}
		if len(datas) != 4 || !bytes.Contains(md, []byte("<revision>7</revision>")) {
			t.Errorf("%d files, %s", len(datas), md)
		}
		n := 0
		if err := rpm.ReadPrimaryDeps(bytes.NewReader(a[0].Data), func(p rpm.PrimaryPackage) error {
			n++
			if p.Name == "odd" && p.Arch == "noarch" {
				if p.Epoch != 3 || p.Version != "1.0~rc1^2" || p.Source != "odd-1.0~rc1^2-1.src.rpm" || !slices.Contains(p.Requires, rpm.Dep{Name: "other", Flags: rpm.SenseGreater | rpm.SenseEqual, EVR: "2:1.0-3"}) ||
					!slices.Contains(p.Requires, rpm.Dep{Name: "shadow", Flags: rpm.SensePreReq}) || !slices.Contains(p.Provides, rpm.Dep{Name: `a&b<c>"d"`}) {
					t.Errorf("%+v", p)
				}
				for kind, want := range map[rpm.DepKind]rpm.Dep{rpm.Conflicts: {Name: "bad", Flags: rpm.SenseLess, EVR: "1"}, rpm.Obsoletes: {Name: "old", Flags: rpm.SenseLess | rpm.SenseEqual, EVR: "2-2"},
					rpm.Recommends: {Name: "nice", Flags: rpm.SenseGreater, EVR: "1"}, rpm.Suggests: {Name: "maybe"}, rpm.Supplements: {Name: "(odd and lang-de)"}, rpm.Enhances: {Name: "some", Flags: rpm.SenseEqual, EVR: "7"}} {
					if !slices.Contains(p.Deps(kind), want) {
						t.Errorf("%s: %+v", kind, p.Deps(kind))
					}
				}
				if want := []string{"/etc/odd.conf", "/etc/odd.d", "/opt/cabin/a & b <c>", "/usr/bin/link", "/usr/bin/odd", "/usr/lib/sendmail", "/usr/share/odd/sbin/x", "/usr/share/odd/sbin/x/y"}; !slices.Equal(slices.Sorted(slices.Values(p.Files)), want) {
					t.Errorf("%q", p.Files)
				}
				if p.FileTime == 0 || p.BuildTime == 0 || p.HeaderStart == 0 || p.HeaderEnd <= p.HeaderStart {
					t.Errorf("%+v", p)
				}
			}
			return nil
		}); err != nil || n != len(frags) {
			t.Errorf("%d of %d packages read, %v", n, len(frags), err)
		}
	}
}

// strictPrimary reads the same with encoding/xml: the judge of the scanner.
func strictPrimary(r io.Reader) (out []rpm.PrimaryPackage, err error) {
	type dep struct {
		Name  string `xml:"name,attr"`
		Flags string `xml:"flags,attr"`
		Epoch string `xml:"epoch,attr"`
		Ver   string `xml:"ver,attr"`
		Rel   string `xml:"rel,attr"`
		Pre   string `xml:"pre,attr"`
	}
	var doc struct {
		Packages []struct {
			Name    string `xml:"name"`
			Arch    string `xml:"arch"`
			Version struct {
				Epoch uint32 `xml:"epoch,attr"`
				Ver   string `xml:"ver,attr"`
				Rel   string `xml:"rel,attr"`
			} `xml:"version"`
			Checksum struct {
				Type string `xml:"type,attr"`
				Sum  string `xml:",chardata"`
			} `xml:"checksum"`
			Size struct {
				Package int64 `xml:"package,attr"`
			} `xml:"size"`
			Time struct {
				File  int64 `xml:"file,attr"`
				Build int64 `xml:"build,attr"`
			} `xml:"time"`
			Location struct {
				Href string `xml:"href,attr"`
			} `xml:"location"`
			Format struct {
				Source string `xml:"sourcerpm"`
				Range  struct {
					Start int64 `xml:"start,attr"`
					End   int64 `xml:"end,attr"`
				} `xml:"header-range"`
				Provides    []dep    `xml:"provides>entry"`
				Requires    []dep    `xml:"requires>entry"`
				Conflicts   []dep    `xml:"conflicts>entry"`
				Obsoletes   []dep    `xml:"obsoletes>entry"`
				Recommends  []dep    `xml:"recommends>entry"`
				Suggests    []dep    `xml:"suggests>entry"`
				Supplements []dep    `xml:"supplements>entry"`
				Enhances    []dep    `xml:"enhances>entry"`
				Files       []string `xml:"file"`
			} `xml:"format"`
		} `xml:"package"`
	}
	if err := xml.NewDecoder(r).Decode(&doc); err != nil {
		return nil, err
	}
	deps := func(in []dep) (out []rpm.Dep) {
		for _, d := range in {
			x := rpm.Dep{Name: d.Name, Flags: map[string]uint32{"LT": rpm.SenseLess, "GT": rpm.SenseGreater, "EQ": rpm.SenseEqual, "LE": rpm.SenseLess | rpm.SenseEqual, "GE": rpm.SenseGreater | rpm.SenseEqual}[d.Flags]}
			if x.Flags != 0 {
				if x.EVR = d.Ver; d.Rel != "" {
					x.EVR += "-" + d.Rel
				}
				if d.Epoch != "" && d.Epoch != "0" {
					x.EVR = d.Epoch + ":" + x.EVR
				}
			}
			if d.Pre == "1" {
				x.Flags |= rpm.SensePreReq
			}
			out = append(out, x)
		}
		return out
	}
	for _, p := range doc.Packages {
		out = append(out, rpm.PrimaryPackage{NEVRA: rpm.NEVRA{Name: p.Name, Epoch: p.Version.Epoch, Version: p.Version.Ver, Release: p.Version.Rel, Arch: p.Arch}, Sum: p.Checksum.Sum, Algo: p.Checksum.Type,
			Href: p.Location.Href, Size: p.Size.Package, Source: p.Format.Source, FileTime: p.Time.File, BuildTime: p.Time.Build, HeaderStart: p.Format.Range.Start, HeaderEnd: p.Format.Range.End,
			Provides: deps(p.Format.Provides), Requires: deps(p.Format.Requires), Conflicts: deps(p.Format.Conflicts), Obsoletes: deps(p.Format.Obsoletes), Recommends: deps(p.Format.Recommends),
			Suggests: deps(p.Format.Suggests), Supplements: deps(p.Format.Supplements), Enhances: deps(p.Format.Enhances), Files: p.Format.Files})
	}
	return out, nil
}

// The scanner finds in CentOS Stream's own metadata what encoding/xml finds.
func TestReadPrimaryOfStream(t *testing.T) {
	for dir, want := range map[string]int{"cs9-baseos-2022": 1125, "cs9-appstream": 17649} {
		if dir == "cs9-appstream" && os.Getenv("DROVER_LONG") == "" && testing.Short() {
			continue
		}
		files, _ := filepath.Glob("../../../shared/data/" + dir + "/repodata/*-primary.xml.gz")
		if len(files) != 1 {
			t.Fatalf("the shared test data is not at ../shared/data beside the project: %v", files)
		}
		packed, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		open := unpack(t, bytes.NewReader(packed))
		var got []rpm.PrimaryPackage
		if err := rpm.ReadPrimaryDeps(bytes.NewReader(packed), func(p rpm.PrimaryPackage) error {
			got = append(got, p)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		strict, err := strictPrimary(bytes.NewReader(open))
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != want || len(strict) != want {
			t.Fatalf("%s: %d packages, encoding/xml finds %d, want %d", dir, len(got), len(strict), want)
		}
		for i := range got {
			if !reflect.DeepEqual(got[i], strict[i]) {
				t.Fatalf("%s: %+v\nencoding/xml: %+v", dir, got[i], strict[i])
			}
		}
	}
}

func TestReadRepomdOfStream(t *testing.T) {
	for _, dir := range []string{"cs9-appstream", "cs9-baseos", "cs9-baseos-2022"} {
		b, err := os.ReadFile("../../../shared/data/" + dir + "/repodata/repomd.xml")
		if err != nil {
			t.Fatal(err)
		}
		ds, err := rpm.ReadRepomd(b)
		if err != nil || len(ds) < 3 {
			t.Fatalf("%s: %v %v", dir, ds, err)
		}
		for _, d := range ds {
			f, err := os.ReadFile(filepath.Join("../../../shared/data", dir, d.Href))
			if err == nil && (hexSum(f) != d.Sum || int64(len(f)) != d.Size) {
				t.Errorf("%s: %+v", dir, d)
			}
		}
	}
}

const sum64 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func primaryXML(pkg string) string {
	return `<?xml version="1.0" encoding="UTF-8"?>
<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm" packages="1">
` + pkg + `</metadata>
`
}

const goodPackage = `<package type="rpm"><name>a</name><arch>noarch</arch><version epoch="0" ver="1" rel="1"/>
<checksum type="sha256" pkgid="YES">` + sum64 + `</checksum><summary>s</summary><description>d</description><packager/><url/><time file="1" build="1"/>
<size package="10" installed="1" archive="1"/><location href="Packages/a.rpm"/><format><rpm:sourcerpm>a.src.rpm</rpm:sourcerpm><rpm:provides><rpm:entry name="a"/></rpm:provides></format></package>
`

func TestHostilePrimaryIsRefused(t *testing.T) {
	swap := func(old, now string) string {
		if !strings.Contains(goodPackage, old) {
			t.Fatal(old)
		}
		return primaryXML(strings.Replace(goodPackage, old, now, 1))
	}
	var bomb bytes.Buffer
	z, err := zstd.NewWriter(&bomb, zstd.WithWindowSize(256<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(bytes.Repeat([]byte(" "), 300<<20)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]string{
		"empty":                  "",
		"no XML":                 "hello",
		"another root":           strings.ReplaceAll(primaryXML(goodPackage), "metadata", "filelists"),
		"document type":          strings.Replace(primaryXML(goodPackage), "<metadata", `<!DOCTYPE m [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><metadata`, 1),
		"entity":                 swap("<name>a<", "<name>&b;<"),
		"outside":                swap("Packages/a.rpm", "../../etc/passwd"),
		"outside later":          swap("Packages/a.rpm", "Packages/../../x"),
		"outside by reference":   swap("Packages/a.rpm", "&#46;./x"),
		"absolute":               swap("Packages/a.rpm", "/etc/passwd"),
		"another host":           swap("Packages/a.rpm", "http://evil/x"),
		"no location":            swap(`href="Packages/a.rpm"`, ""),
		"NUL in a location":      swap("Packages/a.rpm", "a&#0;b"),
		"line in a location":     swap("Packages/a.rpm", "a&#10;b"),
		"no checksum":            swap(sum64, ""),
		"no checksum at all":     swap(`<checksum type="sha256" pkgid="YES">`+sum64+`</checksum>`, ""),
		"nothing of no kind":     swap(`type="sha256" pkgid="YES">`+sum64, `type="">`),
		"nothing of some kind":   swap(`type="sha256" pkgid="YES">`+sum64, `type="crc32">`),
		"short checksum":         swap(sum64, sum64[2:]),
		"checksum of no hex":     swap(sum64, "zz"+sum64[2:]),
		"md5":                    swap(`type="sha256"`, `type="md5"`),
		"no name":                swap("<name>a</name>", ""),
		"element in a name":      swap("<name>a</name>", "<name>a<b/></name>"),
		"name of 1 MB":           swap("<name>a<", "<name>"+strings.Repeat("a", 1<<20)+"<"),
		"tag of 1 MB":            swap(`epoch="0"`, `epoch="`+strings.Repeat("0", 1<<20)+`"`),
		"negative size":          swap(`package="10"`, `package="-10"`),
		"huge size":              swap(`package="10"`, `package="99999999999999999999"`),
		"header range":           swap("<rpm:sourcerpm>", `<rpm:header-range start="-1" end="2"/><rpm:sourcerpm>`),
		"time of no number":      swap(`build="1"`, `build="x"`),
		"no size":                swap(`package="10"`, ""),
		"huge epoch":             swap(`epoch="0"`, `epoch="99999999999"`),
		"attribute twice":        swap(`ver="1"`, `ver="1" ver="2"`),
		"attribute without end":  swap(`ver="1"`, `ver="1`),
		"attribute not quoted":   swap(`ver="1"`, `ver=1`),
		"open tag":               swap("</name>", ""),
		"crossed tags":           swap("</name><arch>noarch</arch>", "<arch></name></arch>"),
		"marks in a value":       swap(`epoch="0"`, `epoch="`+strings.Repeat(">", 60<<10)+`"`),
		"marks in many values":   primaryXML(strings.Repeat(`<x a="`+strings.Repeat(">", 60<<10)+`"/>`, 20)),
		"marks in a comment":     primaryXML("<!--" + strings.Repeat(">-", 1<<20)),
		"marks in CDATA":         swap("<description>d", "<description><![CDATA["+strings.Repeat("]>", 1<<20)),
		"instructions":           strings.Repeat("<?>", 1<<20),
		"cut":                    primaryXML(goodPackage)[:600],
		"nested":                 primaryXML(strings.Repeat("<package>", 100)),
		"nested in a package":    swap("<description>d", strings.Repeat("<a>", 100)),
		"text behind":            primaryXML(goodPackage) + "x",
		"second root":            primaryXML(goodPackage) + primaryXML(goodPackage)[40:],
		"no UTF-8":               swap("<name>a<", "<name>\xff<"),
		"control character":      swap("<name>a<", "<name>\x01<"),
		"zstd window of 256 MiB": bomb.String(),
		"broken gzip":            "\x1f\x8b\x08garbage",
		"broken xz":              "\xfd7zXZ\x00garbage",
	} {
		var a uint64
		err := error(nil)
		a = allocated(func() { err = rpm.ReadPrimary(strings.NewReader(s), func(rpm.PrimaryPackage) error { return nil }) })
		if c := fault.Code(err); c != "repodata" && c != "repodata_location" {
			t.Errorf("%s: %v", name, err)
		}
		if a > 16<<20 {
			t.Errorf("%s: took %d bytes to say so", name, a)
		}
	}
	n := 0
	for _, s := range []string{primaryXML(goodPackage), primaryXML(strings.Replace(goodPackage, "<description>d", "<!-- <name>x</name> --><description><![CDATA[ <name> ]]>", 1)),
		primaryXML(strings.Replace(goodPackage, `name="a"`, `name='(a > "b")'`, 1)), "<metadata></metadata>", "<metadata/>"} {
		if err := rpm.ReadPrimary(strings.NewReader(s), func(p rpm.PrimaryPackage) error {
			n++
			if p.Name != "a" || p.Href != "Packages/a.rpm" || p.Size != 10 || p.Source != "a.src.rpm" {
				t.Errorf("%+v", p)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	if n != 3 {
		t.Errorf("%d packages", n)
	}
	want := fault.Conflict("stop", "stop")
	if err := rpm.ReadPrimary(strings.NewReader(primaryXML(goodPackage)), func(rpm.PrimaryPackage) error { return want }); !errors.Is(err, want) {
		t.Errorf("the caller's error became %v", err)
	}
}

func TestHostileRepomdIsRefused(t *testing.T) {
	const good = `<repomd><revision>1</revision><data type="primary"><checksum type="sha256">` + sum64 + `</checksum><location href="repodata/p.xml.gz"/><size>10</size></data></repomd>`
	if _, err := rpm.ReadRepomd([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]string{
		"empty":         "",
		"no primary":    strings.Replace(good, `"primary"`, `"other"`, 1),
		"two primaries": strings.Replace(good, "</repomd>", good[strings.Index(good, "<data"):], 1),
		"outside":       strings.Replace(good, "repodata/", "../", 1),
		"no checksum":   strings.Replace(good, sum64, "", 1),
		"none at all":   strings.Replace(good, `<checksum type="sha256">`+sum64+`</checksum>`, "", 1),
		"of no kind":    strings.Replace(good, `type="sha256">`+sum64, `type="crc32">`, 1),
		"md5":           strings.Replace(good, "sha256", "md5", 1),
		"negative size": strings.Replace(good, "<size>10", "<size>-10", 1),
		"entities":      `<!DOCTYPE r [<!ENTITY a "a">]>` + strings.Replace(good, "<size>10", "<size>&a;", 1),
		"1000 files":    strings.Replace(good, "</repomd>", strings.Repeat(`<data type="x"/>`, 1000)+"</repomd>", 1),
		"2 MiB":         good + strings.Repeat(" ", 2<<20),
		"deep":          strings.Repeat("<a>", 100_000),
	} {
		_, err := rpm.ReadRepomd([]byte(s))
		if c := fault.Code(err); c != "repodata" && c != "repodata_location" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCompsReadAndWritten(t *testing.T) {
	for _, f := range []string{"cs9-appstream/repodata/db284c8c2444a36ecf2240107e338f559e4262792492818e4ebf8ccb7a424e8a-comps-AppStream.x86_64.xml",
		"cs9-baseos-2022/repodata/2ac4e27794f840034a13bb60800aba194e89fcd2175c87f57cfbd649139feff3-comps-BaseOS.x86_64.xml.gz"} {
		b, err := os.ReadFile("../../../shared/data/" + f)
		if err != nil {
			t.Fatal(err)
		}
		c, err := rpm.ReadComps(bytes.NewReader(b))
		if err != nil || len(c.Groups) == 0 || len(c.Groups[0].Packages) == 0 {
			t.Fatalf("%s: %d groups, %v", f, len(c.Groups), err)
		}
		once := c.XML()
		again, err := rpm.ReadComps(bytes.NewReader(once))
		if err != nil || !bytes.Equal(once, again.XML()) {
			t.Errorf("%s: what was written reads otherwise, %v", f, err)
		}
		if want := bytes.Count(unpack(t, bytes.NewReader(b)), []byte("<packagereq")); bytes.Count(once, []byte("<packagereq")) != want {
			t.Errorf("%s: %d package lines of %d", f, bytes.Count(once, []byte("<packagereq")), want)
		}
	}
	c := rpm.Comps{Groups: []rpm.CompsGroup{{ID: "b", Name: "B & <b>"}, {ID: "a", Default: true, Visible: true, BiArchOnly: true, Order: 3,
		Packages: []rpm.CompsPackage{{"z", "mandatory", ""}, {"y", "conditional", `q"`}}}},
		Categories:   []rpm.CompsCategory{{ID: "c", Order: 2, Groups: []string{"a"}}},
		Environments: []rpm.CompsEnvironment{{ID: "e", Groups: []string{"a"}, Options: []string{"b"}}}}
	got, err := rpm.ReadComps(bytes.NewReader(c.XML()))
	slices.Reverse(c.Groups)
	slices.Reverse(c.Groups[0].Packages)
	if d := cmp.Diff(c, got); d != "" || err != nil {
		t.Errorf("%v %s", err, d)
	}
	// Translations are told apart wherever they stand, and the first plain text counts.
	got, err = rpm.ReadComps(strings.NewReader("<!-- c --><!DOCTYPE comps PUBLIC '-//x' 'a>b'>\n<comps><group><id> a </id><name xml:lang='de'>Gruppe &amp; mehr</name><name>Group &amp; more</name><name>Other</name>" +
		"<unknown><id>b</id></unknown><packagelist><packagereq>x</packagereq></packagelist></group></comps>"))
	if d := cmp.Diff(rpm.Comps{Groups: []rpm.CompsGroup{{ID: "a", Name: "Group & more", CompsTexts: rpm.CompsTexts{Names: map[string]string{"de": "Gruppe & mehr"}}, Visible: true, Packages: []rpm.CompsPackage{{Name: "x", Type: "mandatory"}}}}}, got); d != "" || err != nil {
		t.Errorf("%v %s", err, d)
	}
	for _, s := range []string{"", "x", "<a/>", "<comps/>x", "<comps/><comps/>", "<comps><group><id>a<b/></id></group></comps>", "<comps><group><id>a</id><packagelist><packagereq/></packagelist></group></comps>", "<comps>" + strings.Repeat("<group><id>a</id></group>", 70_000) + "</comps>",
		"<comps>" + strings.Repeat(" ", 17<<20) + "</comps>", "<comps><group/></comps>", "<comps><group><id>&x;</id></group></comps>", "<comps>", `<!DOCTYPE c [<!ENTITY x "y">]><comps><group><id>&x;</id></group></comps>`} {
		if _, err := rpm.ReadComps(strings.NewReader(s)); fault.Code(err) != "repodata" {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// dnf runs dnf on one repository, with no state of its own outside home.
func dnf(t *testing.T, home, repo string, args ...string) string {
	t.Helper()
	c := exec.Command("dnf", append([]string{"-q", "--installroot", filepath.Join(home, "root"), "--releasever=9", "--noplugins", "--setopt=reposdir=/dev/null", "--setopt=cachedir=" + filepath.Join(home, "cache"),
		"--setopt=logdir=" + home, "--setopt=persistdir=" + home, "--setopt=gpgcheck=0", "--repofrompath=ours,file://" + repo, "--repo=ours"}, args...)...)
	c.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("dnf %v: %v: %s%s", args, err, out, stderr.String())
	}
	return string(out)
}

var groups = rpm.Comps{Groups: []rpm.CompsGroup{
	{ID: "tools", Name: "R&D", Description: "What one needs", Default: true, Visible: true, Packages: []rpm.CompsPackage{{Name: "odd", Type: "mandatory"}, {Name: "odd-sub", Type: "default"}, {Name: "simple", Type: "optional"}, {Name: "rpm-i18n", Type: "conditional", Requires: "simple"}}},
	{ID: "inner", Name: "Inner", Description: "Not shown", Packages: []rpm.CompsPackage{{Name: "rpm-empty", Type: "mandatory"}}},
},
	Categories:   []rpm.CompsCategory{{ID: "all", Name: "All", Description: "Everything", Order: 7, Groups: []string{"tools"}}},
	Environments: []rpm.CompsEnvironment{{ID: "station", Name: "Workstation", Description: "A kind of machine", Order: 3, Groups: []string{"tools"}, Options: []string{"inner"}}}}

// dnf finds in our metadata, of either codec, every package and every group that we put there.
func TestDNFReadsOurMetadata(t *testing.T) {
	dir, frags := rpmDir(t)
	for _, codec := range []rpm.Codec{rpm.Zstd, rpm.Gzip} {
		files, err := rpm.Metadata(frags, groups.XML(), codec)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(dir, "repodata")); err != nil {
			t.Fatal(err)
		}
		writeRepo(t, dir, files)
		home := t.TempDir()
		out := dnf(t, home, dir, "repoquery", "--qf", "%{name}-%{epoch}:%{version}-%{release}.%{arch}", "--arch=noarch,x86_64,i386,src")
		var want []string
		for _, f := range frags {
			if err := rpm.ReadPrimary(strings.NewReader(primaryXML(string(f.Primary))), func(p rpm.PrimaryPackage) error {
				want = append(want, p.String())
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		got := strings.Fields(strings.ReplaceAll(out, "-0:", "-"))
		slices.Sort(want)
		slices.Sort(got)
		if d := cmp.Diff(slices.Compact(want), slices.Compact(got)); d != "" {
			t.Errorf("%s: packages (-ours +dnf's):\n%s", codec, d)
		}
		list := dnf(t, home, dir, "group", "list", "--hidden")
		for _, want := range []string{"R&D", "Inner", "Workstation"} {
			if !strings.Contains(list, want) {
				t.Errorf("%s: no %q in the groups:\n%s", codec, want, list)
			}
		}
		if codec == rpm.Gzip {
			continue // the same text
		}
		if out := dnf(t, home, dir, "repoquery", "--qf", "%{name}", "--whatrequires", "shadow"); out != "odd\n" {
			t.Errorf("%s: shadow is required by %q", codec, out)
		}
		if out := dnf(t, home, dir, "repoquery", "--qf", "%{name}", "--file", "/usr/share/odd/größe"); out != "odd\n" { // filelists
			t.Errorf("%s: a file belongs to %q", codec, out)
		}
		if out := dnf(t, home, dir, "repoquery", "--changelogs", "odd.noarch"); !strings.Contains(out, "- ten & more") { // other
			t.Errorf("%s: changelog %q", codec, out)
		}
		info := dnf(t, home, dir, "group", "info", "tools", "station")
		words := strings.Join(strings.Fields(info), " ")
		for _, want := range []string{"Description: What one needs", "Mandatory Packages: odd", "Default Packages: odd-sub", "Optional Packages: simple", "Conditional Packages: rpm-i18n", "Optional Groups: Inner"} {
			if !strings.Contains(words, want) {
				t.Errorf("%s: no %q in:\n%s", codec, want, info)
			}
		}
	}
}

// createrepo_c takes our groups into a repository and finds them good.
func TestCreaterepoTakesOurGroups(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "comps.xml")
	if err := os.WriteFile(file, groups.XML(), 0o600); err != nil {
		t.Fatal(err)
	}
	createrepo(t, "-g", "comps.xml", dir)
	md, err := os.ReadFile(filepath.Join(dir, "repodata", "repomd.xml"))
	if err != nil {
		t.Fatal(err)
	}
	datas, err := rpm.ReadRepomd(md)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, d := range datas {
		if !strings.HasPrefix(d.Type, "group") {
			continue
		}
		seen++
		f, err := os.Open(filepath.Join(dir, d.Href))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := rpm.ReadComps(f)
		if err != nil || !bytes.Equal(got.XML(), groups.XML()) {
			t.Errorf("%s: %v\n%s", d.Type, err, got.XML())
		}
	}
	if seen != 2 { // plain and packed
		t.Errorf("%d files of groups in %+v", seen, datas)
	}
}

// Files put together of many gzip members or zstd frames read as one.
func TestMultiMemberFilesAreRead(t *testing.T) {
	doc := primaryXML(strings.Repeat(goodPackage, 3))
	var gz, zs bytes.Buffer
	for part := range slices.Chunk([]byte(doc), 200) {
		g := gzip.NewWriter(&gz)
		z, err := zstd.NewWriter(&zs)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range []io.WriteCloser{g, z} {
			if _, err := w.Write(part); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, b := range []*bytes.Buffer{&gz, &zs} {
		n := 0
		if err := rpm.ReadPrimary(b, func(rpm.PrimaryPackage) error { n++; return nil }); err != nil || n != 3 {
			t.Errorf("%d packages, %v", n, err)
		}
	}
}

func unpack(t *testing.T, r io.Reader) []byte {
	t.Helper()
	o, done, err := rpm.Open(r)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	b, err := io.ReadAll(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
