package rpm_test

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drover/internal/fault"
	"drover/internal/rpm"

	"github.com/google/go-cmp/cmp"
)

const sum128 = sum64 + sum64

var metalink = rpm.Metalink{Time: 1_732_000_000, Current: rpm.MetalinkFile{Time: 1_731_000_000, Size: 4057, Sums: map[string]string{"sha256": sum64, "sha512": sum128}},
	Alternates: []rpm.MetalinkFile{{Time: 1_730_000_000, Size: 4056, Sums: map[string]string{"sha256": sum64}}},
	Mirrors:    []rpm.MetalinkMirror{{"https://a.example.com/a&b/", "DE", 100}, {"http://b.example.com/x/", "", 99}}}

func TestMetalink(t *testing.T) {
	got, err := rpm.ReadMetalink(metalink.XML())
	if d := cmp.Diff(metalink, got); d != "" || err != nil {
		t.Fatalf("%v %s\n%s", err, d, metalink.XML())
	}
	// As MirrorManager writes it, with what drover makes no use of.
	const theirs = `<?xml version="1.0" encoding="utf-8"?>
<metalink version="3.0" xmlns="http://www.metalinker.org/" type="dynamic" pubdate="Thu, 21 May 2026 19:54:04 GMT" generator="mirrormanager" xmlns:mm0="http://fedorahosted.org/mirrormanager">
 <files>
  <file name="repomd.xml">
   <mm0:timestamp>1779326542</mm0:timestamp>
   <size>4057</size>
   <verification><hash type="md5">9e3283e1e6227d8bb786709fc3771cef</hash><hash type="sha1">784810870e2095845be5ea17dff0694f3cf79d42</hash><hash type="sha256">` + sum64 + `</hash></verification>
   <mm0:alternates><mm0:alternate><mm0:timestamp>1</mm0:timestamp><size>2</size><verification><hash type="md5">acdc621a282bcc0ec33b30e4bdf25ce5</hash></verification></mm0:alternate></mm0:alternates>
   <resources maxconnections="1">
    <url protocol="rsync" type="rsync" location="DE" preference="100">rsync://a.example.com/repodata/repomd.xml</url>
    <url protocol="ftp" type="ftp" location="DE" preference="100">ftp://a.example.com/repodata/repomd.xml</url>
    <url protocol="http" type="http" location="AT" preference="50" >http://low.example.com/repodata/repomd.xml</url>
    <url protocol="https" type="https" location="DE" preference="98">https://high.example.com/r/repodata/repomd.xml</url>
    <url protocol="https" type="https" location="DE" preference="97">https://high.example.com/r/repodata/repomd.xml</url>
    <url>https://none.example.com/repodata/repomd.xml</url>
    <url preference="99">https://elsewhere.example.com/other.xml</url>
    <url preference="99">https://me:secret@elsewhere.example.com/repodata/repomd.xml</url>
    <url preference="99">javascript:alert(1)/repodata/repomd.xml</url>
    <url preference="99">https:///repodata/repomd.xml</url>
   </resources>
  </file>
 </files>
</metalink>`
	got, err = rpm.ReadMetalink([]byte(theirs))
	want := rpm.Metalink{Time: 1779393244, Current: rpm.MetalinkFile{Time: 1779326542, Size: 4057, Sums: map[string]string{"sha256": sum64}},
		Mirrors: []rpm.MetalinkMirror{{"https://high.example.com/r/", "DE", 98}, {"http://low.example.com/", "AT", 50}, {"https://none.example.com/", "", 0}}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v %s", err, d)
	}
	for name, s := range map[string]string{
		"empty": "", "no XML": "http://a/", "another root": "<a/>", "no file": "<metalink/>", "another file": strings.Replace(theirs, `"repomd.xml"`, `"x"`, 1),
		"only weak sums": strings.Replace(theirs, "sha256", "sha1", 1), "a short sum": strings.Replace(theirs, sum64, sum64[1:], 1), "a sum twice": strings.Replace(theirs, `type="sha1">784810870e2095845be5ea17dff0694f3cf79d42`, `type="sha256">`+sum64, 1),
		"a negative size": strings.Replace(theirs, "4057", "-1", 1), "two files": strings.Replace(theirs, "</files>", theirs[strings.Index(theirs, "<file name"):strings.Index(theirs, "</files>")]+"</files>", 1),
		"entities": `<!DOCTYPE m [<!ENTITY a "b">]>` + theirs, "5 MiB": theirs + strings.Repeat(" ", 5<<20), "cut": theirs[:500],
		"many mirrors": strings.Replace(theirs, "</resources>", urls(5000)+"</resources>", 1),
	} {
		if _, err := rpm.ReadMetalink([]byte(s)); fault.Code(err) != "repodata" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func urls(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "<url>http://h%d.example.com/repodata/repomd.xml</url>", i)
	}
	return b.String()
}

func TestMirrorlist(t *testing.T) {
	got, err := rpm.ReadMirrorlist([]byte("# comment\nhttps://a.example.com/x\r\n\nrsync://b/\n http://c.example.com/y/ \nhttps://a.example.com/x/\n<html>\n"))
	if want := []string{"https://a.example.com/x/", "http://c.example.com/y/"}; !slices.Equal(got, want) || err != nil {
		t.Errorf("%q %v", got, err)
	}
	for _, s := range []string{"", "# nothing\n", "<html><body>404</body></html>", strings.Repeat("#\n", 3<<20)} {
		if _, err := rpm.ReadMirrorlist([]byte(s)); fault.Code(err) != "repodata" {
			t.Errorf("%.20q: %v", s, err)
		}
	}
}

// dnf takes our metalink: it goes to the mirrors in their order and believes no other repomd.xml.
func TestDNFReadsOurMetalink(t *testing.T) {
	dir, frags := rpmDir(t)
	files, err := rpm.Metadata(frags, nil, rpm.Gzip)
	if err != nil {
		t.Fatal(err)
	}
	md := writeRepo(t, dir, files)
	var link []byte
	mux := http.NewServeMux()
	mux.Handle("/repo/", http.StripPrefix("/repo/", http.FileServer(http.Dir(dir))))
	mux.HandleFunc("/metalink", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(link) })
	srv := httptest.NewServer(mux)
	defer srv.Close()
	home := t.TempDir()
	conf := filepath.Join(home, "dnf.conf")
	if err := os.WriteFile(conf, []byte("[main]\nreposdir=/dev/null\nplugins=0\n[ours]\nname=ours\ngpgcheck=0\nmetalink="+srv.URL+"/metalink\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	query := func(sum string, size int64) (string, error) {
		link = rpm.Metalink{Time: 1_700_000_001, Current: rpm.MetalinkFile{Time: 1_700_000_000, Size: size, Sums: map[string]string{"sha256": sum}},
			Mirrors: []rpm.MetalinkMirror{{srv.URL + "/gone/", "DE", 100}, {srv.URL + "/repo/", "DE", 99}}}.XML()
		c := exec.Command("dnf", "-q", "-c", conf, "--refresh", "--installroot", filepath.Join(home, "root"), "--releasever=9", "--setopt=cachedir="+filepath.Join(home, "cache-"+sum[:8]), "--setopt=logdir="+home, "--setopt=persistdir="+home, "repoquery", "--qf", "%{name}", "odd")
		c.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "no_proxy=127.0.0.1", "http_proxy=", "https_proxy=")
		out, err := c.CombinedOutput()
		return string(out), err
	}
	if out, err := query(hexSum(md), int64(len(md))); err != nil || !strings.Contains(out, "odd\n") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := query(sum64, int64(len(md))); err == nil {
		t.Errorf("dnf took a repomd.xml that the metalink does not know: %s", out)
	}
}

const treeinfo = `; a comment
[checksums]
images/efiboot.img = sha256:` + sum64 + `
images/install.img = sha256:` + sum64 + `
images/pxeboot/initrd.img = sha256:` + sum64 + `
images/pxeboot/vmlinuz = sha256:` + sum64 + `
EFI/BOOT/grubx64.efi = sha256:` + sum64 + `
repodata/repomd.xml = sha256:` + sum64 + `

[general]
; WARNING.0 = This section provides compatibility with pre-productmd treeinfos.
arch = x86_64
family = CentOS Stream
name = CentOS Stream 9
packagedir = Packages
platforms = x86_64,xen
repository = .
timestamp = 1737000000
variant = BaseOS
variants = AppStream,BaseOS
version = 9

[header]
type = productmd.treeinfo
version = 1.2

[images-x86_64]
efiboot.img = images/efiboot.img
initrd = images/pxeboot/initrd.img
kernel = images/pxeboot/vmlinuz

[images-xen]
initrd = images/pxeboot/initrd.img
kernel = images/pxeboot/vmlinuz

[release]
name = CentOS Stream
short = CentOS-Stream
version = 9

[stage2]
mainimage = images/install.img

[tree]
arch = x86_64
build_timestamp = 1737000001
platforms = x86_64,xen
variants = AppStream,BaseOS

[variant-AppStream]
id = AppStream
name = AppStream
packages = ../../../AppStream/x86_64/os/Packages
repository = ../../../AppStream/x86_64/os
type = variant
uid = AppStream

[variant-BaseOS]
id = BaseOS
name = BaseOS
packages = Packages
repository = .
type = variant
uid = BaseOS
`

func TestTreeinfo(t *testing.T) {
	got, err := rpm.ReadTreeinfo([]byte(treeinfo))
	if err != nil {
		t.Fatal(err)
	}
	file := func(p string) rpm.TreeFile { return rpm.TreeFile{p, "sha256", sum64} }
	want := rpm.Treeinfo{Family: "CentOS Stream", Version: "9", Arch: "x86_64", Variant: "BaseOS", Time: 1737000001, Main: "images/install.img",
		Variants: []rpm.TreeVariant{{"AppStream", "AppStream", "variant", "../../../AppStream/x86_64/os/Packages", "../../../AppStream/x86_64/os"}, {"BaseOS", "BaseOS", "variant", "Packages", "."}},
		Images: map[string]map[string]string{"x86_64": {"efiboot.img": "images/efiboot.img", "initrd": "images/pxeboot/initrd.img", "kernel": "images/pxeboot/vmlinuz"},
			"xen": {"initrd": "images/pxeboot/initrd.img", "kernel": "images/pxeboot/vmlinuz"}},
		Files: []rpm.TreeFile{file("EFI/BOOT/grubx64.efi"), file("images/efiboot.img"), file("images/install.img"), file("images/pxeboot/initrd.img"), file("images/pxeboot/vmlinuz")}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	// The form of EL6 and EL7, with a file that has no checksum.
	got, err = rpm.ReadTreeinfo([]byte("[general]\nfamily = CentOS\ntimestamp = 1446234455.12\nvariant =\nversion = 7\narch = x86_64\n[stage2]\nmainimage = LiveOS/squashfs.img\n[images-x86_64]\nkernel: images/pxeboot/vmlinuz\n[checksums]\nLiveOS/squashfs.img = md5:00\n"))
	if err != nil || got.Time != 1446234455 || got.Family != "CentOS" || !slices.Equal(got.Files, []rpm.TreeFile{{Path: "LiveOS/squashfs.img"}, {Path: "images/pxeboot/vmlinuz"}}) {
		t.Errorf("%+v %v", got, err)
	}
	swap := func(old, now string) string {
		if !strings.Contains(treeinfo, old) {
			t.Fatal(old)
		}
		return strings.Replace(treeinfo, old, now, 1)
	}
	for name, s := range map[string]string{
		"empty": "", "HTML": "<html>404</html>", "no arch": "[tree]\n", "outside": swap("images/efiboot.img = sha", "../x = sha"), "an image outside": swap("kernel = images", "kernel = ../images"), "absolute": swap("mainimage = images", "mainimage = /images"),
		"a URL": swap("mainimage = images", "mainimage = http://evil/images"), "a short sum": swap(sum64, sum64[2:]), "no such sum": swap("sha256", "crc32"), "no section": "a = b\n" + treeinfo, "no value": swap("version = 9", "version"),
		"a key twice": swap("version = 9", "version = 9\nversion = 8"), "a time": swap("1737000001", "now"), "no text": swap("version = 9", "version = \x00"), "2 MiB": treeinfo + strings.Repeat("#", 2<<20), "many lines": treeinfo + strings.Repeat("\n", 20_000),
	} {
		if _, err := rpm.ReadTreeinfo([]byte(s)); fault.Code(err) != "repodata" && fault.Code(err) != "repodata_location" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// errata is two of them, with everything that one can have.
var errata = []rpm.Update{
	{From: "security@example.com", Status: "final", Type: "security", Version: "2", ID: "EX-2024:0001", Title: "odd <security> update", Issued: "2024-11-14 00:00:00", Updated: "2024-11-15 00:00:00", Rights: "© Example",
		Release: "9", Pushcount: "1", Severity: "Important", Summary: "A summary", Description: "Lines\nof text & more", Solution: "Update.", RebootAdvised: true,
		References: []rpm.UpdateReference{{"https://bugs.example.com/1", "1", "bugzilla", "a bug"}, {"https://cve.example.com/CVE-2024-1", "CVE-2024-1", "cve", `"CVE"`}},
		Collections: []rpm.UpdateCollection{{Short: "S", Name: "Example 9", Packages: []rpm.UpdatePackage{
			{NEVRA: rpm.NEVRA{"odd", 3, "1.0~rc1^2", "1", "noarch"}, Src: "odd-1.0~rc1^2-1.src.rpm", Filename: "odd-1.0~rc1^2-1.noarch.rpm", Algo: "sha256", Sum: sum64, Reboot: true, Restart: true, Relogin: true},
			{NEVRA: rpm.NEVRA{"odd-sub", 3, "1.0~rc1^2", "1", "noarch"}, Src: "odd-1.0~rc1^2-1.src.rpm", Filename: "odd-sub-1.0~rc1^2-1.noarch.rpm"}}},
			{Short: "M", Name: "Module", Module: &rpm.UpdateModule{Name: "perl", Stream: "5.32", Version: 920240126110506, Context: "rhel9", Arch: "x86_64"}, Packages: []rpm.UpdatePackage{{NEVRA: rpm.NEVRA{"perl", 4, "5.32", "1", "x86_64"}, Filename: "p.rpm"}}}}},
	{Type: "bugfix", ID: "EX-2024:0002", Title: "simple", Issued: "2024-11-16", Collections: []rpm.UpdateCollection{{Packages: []rpm.UpdatePackage{{NEVRA: rpm.NEVRA{"simple", 0, "2.0", "1", "i386"}, Filename: "simple.rpm"}}}}},
}

func readUpdates(b []byte) (out []rpm.Update, err error) {
	err = rpm.ReadUpdateinfo(bytes.NewReader(b), func(u rpm.Update) error { out = append(out, u); return nil })
	return out, err
}

func TestUpdateinfoReadAndWritten(t *testing.T) {
	once := rpm.UpdateinfoXML(errata)
	got, err := readUpdates(once)
	want := slices.Clone(errata)
	want[0].Collections = []rpm.UpdateCollection{want[0].Collections[1], want[0].Collections[0]} // by short name
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Fatalf("%v %s\n%s", err, d, once)
	}
	slices.Reverse(got)
	if !bytes.Equal(rpm.UpdateinfoXML(got), once) {
		t.Error("another order gave other bytes")
	}
	const good = `<updates><update><id>a</id><pkglist><collection><package name="a" version="1" release="1" arch="noarch" epoch="0"><filename>f</filename></package></collection></pkglist></update></updates>`
	if us, err := readUpdates([]byte(good)); err != nil || len(us) != 1 || us[0].Collections[0].Packages[0].String() != "a-1-1.noarch" {
		t.Fatal(us, err)
	}
	for name, s := range map[string]string{
		"empty": "", "another root": "<a/>", "no id": strings.Replace(good, "<id>a</id>", "", 1), "no name": strings.Replace(good, `name="a"`, "", 1), "a bad epoch": strings.Replace(good, `epoch="0"`, `epoch="x"`, 1),
		"an entity": strings.Replace(good, "<id>a", "<id>&x;", 1), "a huge text": strings.Replace(good, "<id>a", "<id>"+strings.Repeat("a", 2<<20), 1), "a bad module": strings.Replace(good, "<package ", `<module name="a" version="x"/><package `, 1), "cut": good[:60], "behind": good + "x",
	} {
		if _, err := readUpdates([]byte(s)); fault.Code(err) != "repodata" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUpdatesMergedAndFiltered(t *testing.T) {
	pkg := func(name string) rpm.UpdatePackage {
		return rpm.UpdatePackage{NEVRA: rpm.NEVRA{Name: name, Version: "1", Release: "1", Arch: "noarch"}}
	}
	up := func(id, version, updated, title string, pkgs ...rpm.UpdatePackage) rpm.Update {
		return rpm.Update{ID: id, Version: version, Updated: updated, Title: title, Collections: []rpm.UpdateCollection{{Name: "c", Packages: pkgs}}}
	}
	got := rpm.MergeUpdates(
		[]rpm.Update{up("b", "9", "", "old", pkg("x")), up("c", "1", "2024-02", "new", pkg("x")), up("d", "1", "2024", "first", pkg("x"))},
		[]rpm.Update{up("a", "1", "", "only", pkg("x")), up("b", "10", "", "new", pkg("y")), up("c", "1", "2024-01", "old", pkg("y")), up("d", "1", "2024", "second", pkg("x"), pkg("y"))})
	want := []rpm.Update{up("a", "1", "", "only", pkg("x")), up("b", "10", "", "new", pkg("y")), up("c", "1", "2024-02", "new", pkg("x")), up("d", "1", "2024", "first", pkg("x"), pkg("y"))}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	u, ok := want[3].Filter(func(n rpm.NEVRA) bool { return n.Name == "y" })
	if d := cmp.Diff(up("d", "1", "2024", "first", pkg("y")), u); d != "" || !ok {
		t.Error(d)
	}
	if _, ok := want[3].Filter(func(rpm.NEVRA) bool { return false }); ok {
		t.Error("an erratum without packages is kept")
	}
}

// Many entries on one thing take no longer than as many on many: with the square of them, this
// test would not end.
func TestManyEntriesOnOneThing(t *testing.T) {
	var updates, comps strings.Builder
	updates.WriteString("<updates>")
	comps.WriteString("<comps>")
	const n = 30_000
	for i := range n {
		fmt.Fprintf(&updates, `<update><id>a</id><pkglist><collection short="c%d"><package name="p%d" version="1" release="1" arch="noarch"/></collection></pkglist></update>`, i, i)
		fmt.Fprintf(&comps, `<group><id>g</id><packagelist><packagereq>p%d</packagereq></packagelist></group>`, i)
	}
	updates.WriteString("</updates>")
	comps.WriteString("<environment><id>e</id><optionlist>")
	for i := range n {
		fmt.Fprintf(&comps, `<groupid default="true">o%d</groupid>`, i)
	}
	comps.WriteString("</optionlist></environment><langpacks>")
	for i := range n {
		fmt.Fprintf(&comps, `<match name="l%d" install="x"/>`, i)
	}
	comps.WriteString("</langpacks></comps>")
	us, err := readUpdates([]byte(updates.String()))
	if err != nil || len(us) != n {
		t.Fatal(len(us), err)
	}
	if us = rpm.MergeUpdates(us); len(us) != 1 || len(us[0].Collections) != n {
		t.Errorf("%d errata", len(us))
	}
	c, err := rpm.ReadComps(strings.NewReader(comps.String()))
	if err != nil {
		t.Fatal(err)
	}
	c = rpm.MergeComps(c)
	if len(c.Groups) != 1 || len(c.Groups[0].Packages) != n || len(c.LangPacks) != n || len(c.Environments[0].Chosen) != n {
		t.Errorf("%d groups", len(c.Groups))
	}
	if b := c.XML(); bytes.Count(b, []byte(`default="true"`)) != n {
		t.Errorf("%d bytes", len(b))
	}
}

// withMeta writes a repository of all packages and one more file of metadata.
func withMeta(t *testing.T, typ string, b []byte) string {
	t.Helper()
	dir, frags := rpmDir(t)
	files, err := rpm.Metadata(frags, nil, rpm.Zstd)
	if err != nil {
		t.Fatal(err)
	}
	pack, err := rpm.NewPacker(rpm.Zstd)
	if err != nil {
		t.Fatal(err)
	}
	f, err := rpm.NewMetaFile(typ, b, pack)
	if err != nil {
		t.Fatal(err)
	}
	writeRepo(t, dir, append(files, f))
	return dir
}

func TestDNFReadsOurErrata(t *testing.T) {
	dir := withMeta(t, "updateinfo", rpm.UpdateinfoXML(errata))
	home := t.TempDir()
	list := strings.Join(strings.Fields(dnf(t, home, dir, "updateinfo", "list", "--all")), " ")
	if list != "" { // nothing is installed in the root: dnf lists what concerns it
		t.Log(list)
	}
	info := strings.Join(strings.Fields(dnf(t, home, dir, "repoquery", "--advisory=EX-2024:0001", "--qf", "%{name}-%{epoch}:%{version}-%{release}.%{arch}")), " ")
	if info != "odd-3:1.0~rc1^2-1.noarch odd-sub-3:1.0~rc1^2-1.noarch" {
		t.Errorf("packages of an erratum: %q", info)
	}
	if out := strings.TrimSpace(dnf(t, home, dir, "repoquery", "--cve=CVE-2024-1", "--qf", "%{name}")); out != "odd\nodd-sub" {
		t.Errorf("packages of a CVE: %q", out)
	}
	if out := strings.TrimSpace(dnf(t, home, dir, "repoquery", "--sec-severity=Important", "--qf", "%{name}")); out != "odd\nodd-sub" {
		t.Errorf("packages of a severity: %q", out)
	}
}

func TestCompsMerged(t *testing.T) {
	a, err := rpm.ReadComps(strings.NewReader(`<comps><group><id>g</id><name>First</name><name xml:lang="de">Erste</name><default>true</default><packagelist><packagereq type="default">a</packagereq></packagelist></group>
<environment><id>e</id><name/><grouplist><groupid>g</groupid></grouplist><optionlist><groupid default="true">o</groupid></optionlist></environment>
<category><id>c</id><grouplist><groupid>g</groupid></grouplist></category>
<langpacks><match install="libreoffice-langpack-%s" name="libreoffice-core"/></langpacks><blacklist><package name="b" arch="i386"/></blacklist><whitelist><ignoredep package="p" requires="r"/></whitelist></comps>`))
	if err != nil {
		t.Fatal(err)
	}
	b := rpm.Comps{Groups: []rpm.CompsGroup{{ID: "h", Name: "Other"}, {ID: "g", Name: "Second", Description: "text", CompsTexts: rpm.CompsTexts{Names: map[string]string{"de": "Zweite", "cs": "Druhá"}, Descriptions: map[string]string{"de": "Text"}}, Order: 4, Packages: []rpm.CompsPackage{{Name: "a", Type: "mandatory"}, {Name: "b", Type: "optional"}, {Name: "c", Type: "conditional", Requires: "a"}}}},
		Environments: []rpm.CompsEnvironment{{ID: "e", Name: "E", Groups: []string{"h", "o"}, Options: []string{"g", "p", "q"}, Chosen: []string{"p"}}},
		Categories:   []rpm.CompsCategory{{ID: "c", Groups: []string{"g", "h"}}, {ID: "d"}},
		LangPacks:    []rpm.CompsLangPack{{"libreoffice-core", "other-%s"}, {"man-pages", "man-pages-%s"}}, Blacklist: []rpm.CompsBlack{{"b", "i386"}, {"c", ""}}, Whitelist: []rpm.CompsWhite{{"p", "r"}}}
	want := rpm.Comps{Groups: []rpm.CompsGroup{{ID: "g", Name: "First", Description: "text", CompsTexts: rpm.CompsTexts{Names: map[string]string{"de": "Erste", "cs": "Druhá"}, Descriptions: map[string]string{"de": "Text"}}, Default: true, Visible: true, Order: 4, Packages: []rpm.CompsPackage{{"a", "default", ""}, {"b", "optional", ""}, {"c", "conditional", "a"}}}, {ID: "h", Name: "Other"}},
		Environments: []rpm.CompsEnvironment{{ID: "e", Name: "E", Groups: []string{"g", "h"}, Options: []string{"o", "p", "q"}, Chosen: []string{"o", "p"}}},
		Categories:   []rpm.CompsCategory{{ID: "c", Groups: []string{"g", "h"}}, {ID: "d"}},
		LangPacks:    []rpm.CompsLangPack{{"libreoffice-core", "libreoffice-langpack-%s"}, {"man-pages", "man-pages-%s"}}, Blacklist: []rpm.CompsBlack{{"b", "i386"}, {"c", ""}}, Whitelist: []rpm.CompsWhite{{"p", "r"}}}
	got := rpm.MergeComps(a, b)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	again, err := rpm.ReadComps(bytes.NewReader(got.XML()))
	if err != nil || !bytes.Equal(again.XML(), got.XML()) {
		t.Errorf("%v\n%s", err, got.XML())
	}
	// The real ones, one after the other.
	var all []rpm.Comps
	for _, dir := range []string{"cs9-appstream", "cs9-baseos", "cs9-baseos-2022"} {
		files, _ := filepath.Glob("../../../shared/data/" + dir + "/repodata/*-comps-*")
		f, err := os.Open(files[0])
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		c, err := rpm.ReadComps(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	merged := rpm.MergeComps(all...)
	if n := len(merged.Groups); n < len(all[0].Groups) || n >= len(all[0].Groups)+len(all[1].Groups)+len(all[2].Groups) {
		t.Errorf("%d groups", n)
	}
	if !bytes.Equal(rpm.MergeComps(merged, merged, all[0]).XML(), merged.XML()) {
		t.Error("merged again it differs")
	}
}

// FuzzUpdateinfo reads updateinfo.xml as text.
func FuzzUpdateinfo(f *testing.F) {
	f.Add(rpm.UpdateinfoXML(errata))
	f.Add([]byte(`<updates><update><id>a</id><pkglist><collection short="s"><name/><module name="a" stream="1" version="2"/><package name="a" version="1" release="1" arch="x" epoch="1"><sum type="md5">x</sum></package></collection></pkglist></update></updates>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if packed(b) {
			return
		}
		var us []rpm.Update
		var err error
		bounded(t, "ReadUpdateinfo", len(b), 2*lists, 2*buffers, func() { us, err = readUpdates(b) })
		code(t, err, "repodata")
		if err != nil {
			return
		}
		once := rpm.UpdateinfoXML(us)
		var v struct{}
		if err := xml.Unmarshal(once, &v); err != nil {
			t.Fatalf("no XML: %v\n%s", err, once)
		}
		again, err := readUpdates(once)
		if err != nil || !bytes.Equal(rpm.UpdateinfoXML(again), once) {
			t.Fatalf("what was written reads otherwise: %v\n%s\n%s", err, once, rpm.UpdateinfoXML(again))
		}
		if m := rpm.MergeUpdates(us, us); len(us) > 0 && len(m) == 0 {
			t.Fatal("nothing left")
		}
	})
}

// FuzzMetalink reads metalinks and lists of mirrors.
func FuzzMetalink(f *testing.F) {
	f.Add(metalink.XML())
	f.Add([]byte("http://a/b\n#x\nhttps://c/"))
	f.Add([]byte(strings.Repeat("\n", 200)))
	f.Fuzz(func(t *testing.T, b []byte) {
		good := func(u string) {
			if !strings.HasPrefix(u, "http://") && !strings.HasPrefix(u, "https://") && !strings.HasPrefix(strings.ToLower(u), "http") || !strings.HasSuffix(u, "/") {
				t.Fatalf("a mirror at %q", u)
			}
		}
		var m rpm.Metalink
		var err error
		bounded(t, "ReadMetalink", len(b), lists, 2*buffers, func() { m, err = rpm.ReadMetalink(b) })
		code(t, err, "repodata")
		if err == nil {
			for _, n := range m.Mirrors {
				good(n.Root)
			}
			again, err := rpm.ReadMetalink(m.XML())
			if d := cmp.Diff(m, again); err != nil || d != "" {
				t.Fatalf("what was written reads otherwise: %v\n%s", err, d)
			}
		}
		var roots []string
		bounded(t, "ReadMirrorlist", len(b), 2*lists, small, func() { roots, err = rpm.ReadMirrorlist(b) })
		code(t, err, "repodata")
		for _, u := range roots {
			good(u)
		}
	})
}

// FuzzTreeinfo reads .treeinfo files.
func FuzzTreeinfo(f *testing.F) {
	f.Add([]byte(treeinfo))
	f.Fuzz(func(t *testing.T, b []byte) {
		var ti rpm.Treeinfo
		var err error
		bounded(t, "ReadTreeinfo", len(b), 8*lists, small, func() { ti, err = rpm.ReadTreeinfo(b) })
		code(t, err, "repodata", "repodata_location")
		for _, file := range ti.Files {
			if rpm.CheckHref(file.Path) != nil || file.Sum != "" && len(file.Sum) < 40 {
				t.Fatalf("%+v", file)
			}
		}
	})
}
