package modules_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"drover/internal/fault"
	"drover/internal/rpm"
	"drover/internal/rpm/modules"
	"drover/internal/rpm/rpmtest"

	"github.com/google/go-cmp/cmp"
)

func streamDoc(name, stream string, version int, summary string, artifacts ...string) string {
	s := fmt.Sprintf("---\ndocument: modulemd\nversion: 2\ndata:\n  name: %s\n  stream: \"%s\"\n  version: %d\n  context: c0ffee42\n  arch: x86_64\n  summary: %s\n  description: >-\n    Text of a\n    module.\n  license:\n    module:\n    - MIT\n  profiles:\n    common:\n      rpms:\n      - odd\n", name, stream, version, summary)
	if len(artifacts) > 0 {
		s += "  artifacts:\n    rpms:\n"
		for _, a := range artifacts {
			s += "    - " + a + "\n"
		}
	}
	return s + "...\n"
}

func defaultsDoc(name string, modified int, stream, profiles string) string {
	s := fmt.Sprintf("---\ndocument: modulemd-defaults\nversion: 1\ndata:\n  module: %s\n", name)
	if modified > 0 {
		s += fmt.Sprintf("  modified: %d\n", modified)
	}
	if stream != "" {
		s += fmt.Sprintf("  stream: \"%s\"\n", stream)
	}
	return s + "  profiles:\n" + profiles + "...\n"
}

func readModules(t testing.TB, s string) modules.Docs {
	t.Helper()
	ms, err := modules.Read(strings.NewReader(s))
	if err != nil {
		t.Fatal(err)
	}
	return ms
}

// CentOS Stream's own modules are read whole, written with the words of their authors, and
// filtered by what packages are there.
func TestModulesOfStream(t *testing.T) {
	files, _ := filepath.Glob("../../../../shared/data/cs9-appstream/repodata/*-modules.yaml.xz")
	if len(files) != 1 {
		t.Fatalf("the shared test data is not at ../shared/data beside the project: %v", files)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	ms, err := modules.Read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, m := range ms {
		kinds[m.Kind]++
		if m.Kind == modules.KindStream && (len(m.Artifacts) == 0 || m.Version == 0 || m.Context == "" || m.Arch == "") {
			t.Errorf("%s: %d artifacts", m, len(m.Artifacts))
		}
	}
	if kinds[modules.KindStream] != 31 || kinds[modules.KindDefaults] != 8 {
		t.Errorf("%v", kinds)
	}
	once := ms.YAML()
	again := readModules(t, string(once))
	if d := cmp.Diff(once, again.YAML()); d != "" || len(again) != len(ms) {
		t.Errorf("what was written reads otherwise: %s", d)
	}
	o, done, err := rpm.Open(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	open, err := io.ReadAll(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		if !bytes.Contains(open, m.Text) {
			t.Errorf("the text of %s is not its author's", m)
		}
	}
	merged, conflicts, err := modules.Merge(ms, again)
	if err != nil || len(conflicts) > 0 || !bytes.Equal(merged.YAML(), once) {
		t.Errorf("merged with itself: %v %v", conflicts, err)
	}
	// Of the packages in the repository, a module names those that come of one.
	primary, _ := filepath.Glob("../../../../shared/data/cs9-appstream/repodata/*-primary.xml.gz")
	f, err := os.Open(primary[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var modular, plain []rpm.NEVRA
	if err := rpm.ReadPrimary(f, func(p rpm.PrimaryPackage) error {
		if strings.Contains(p.Release, ".module_el9") || strings.Contains(p.Release, ".module+el9") || strings.HasPrefix(p.Name, "v8-") { // of Node.js, with a release of its own
			modular = append(modular, p.NEVRA)
		} else {
			plain = append(plain, p.NEVRA)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if out := ms.Uncovered(modular); len(modular) < 500 || len(out) > 0 {
		t.Errorf("%d of %d modular packages are in no module: %v", len(out), len(modular), out[:min(len(out), 5)])
	}
	if out := ms.Uncovered(plain); len(out) != len(plain) {
		t.Errorf("%d plain packages are in a module", len(plain)-len(out))
	}
	left := ms.Filter(func(n rpm.NEVRA) bool { return n.Name == "mariadb-server" })
	for _, m := range left {
		if m.Name != "mariadb" {
			t.Errorf("%s is left", m)
		}
	}
	if len(left) < 3 || left[0].Kind != modules.KindDefaults || len(ms.Filter(func(rpm.NEVRA) bool { return false })) > 0 {
		t.Errorf("%d documents left: %v", len(left), left)
	}
}

func TestModulesMerged(t *testing.T) {
	a := readModules(t, streamDoc("one", "1.0", 5, "one", "odd-3:1.0~rc1^2-1.noarch", "x-0:1-1.x86_64")+streamDoc("two", "1.10", 1, "the first", "y-0:1-1.x86_64")+streamDoc("three", "s", 1, "three")+
		defaultsDoc("one", 0, "1.0", "    \"1.0\": [common]\n    \"2.0\": [a, b]\n")+defaultsDoc("two", 20240101, "1.10", "    \"1.10\": [common]\n")+defaultsDoc("three", 7, "s", "    s: [common]\n"))
	b := readModules(t, streamDoc("one", "1.0", 5, "one", "x-0:1-1.x86_64", "a-0:1-1.x86_64")+streamDoc("two", "1.10", 1, "the second", "z-0:1-1.x86_64")+streamDoc("one", "1.0", 6, "newer", "x-0:2-1.x86_64")+
		defaultsDoc("one", 0, "2.0", "    \"2.0\": [b, a]\n    \"3.0\": [c]\n")+defaultsDoc("two", 20240102, "2", "    \"2\": [common]\n")+defaultsDoc("three", 7, "s", "    s: [other]\n"))
	got, conflicts, err := modules.Merge(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"modulemd-defaults of one", "modulemd-defaults of three", "two:1.10:1:c0ffee42:x86_64"}; !slices.Equal(conflicts, want) {
		t.Errorf("conflicts %q", conflicts)
	}
	var names []string
	for _, m := range got {
		names = append(names, m.String())
		switch m.String() {
		case "one:1.0:5:c0ffee42:x86_64":
			if want := []string{"a-0:1-1.x86_64", "odd-3:1.0~rc1^2-1.noarch", "x-0:1-1.x86_64"}; !slices.Equal(m.Artifacts, want) || !bytes.Contains(m.Text, []byte("summary: one")) {
				t.Errorf("%s: %q\n%s", m, m.Artifacts, m.Text)
			}
		case "two:1.10:1:c0ffee42:x86_64":
			if !bytes.Contains(m.Text, []byte("the first")) {
				t.Errorf("%s: %s", m, m.Text)
			}
		case "modulemd-defaults of one":
			if text := string(m.Text); strings.Contains(text, "stream:") || !strings.Contains(text, `"3.0"`) || !strings.Contains(text, "- a\n") {
				t.Errorf("%s: %s", m, text)
			}
		case "modulemd-defaults of two":
			if m.Modified != 20240102 || !bytes.Contains(m.Text, []byte(`stream: "2"`)) {
				t.Errorf("%s: %s", m, m.Text)
			}
		case "modulemd-defaults of three":
			if !bytes.Contains(m.Text, []byte("s: []")) {
				t.Errorf("%s: %s", m, m.Text)
			}
		}
	}
	if len(names) != 7 {
		t.Errorf("%q", names)
	}
	// What was made is read as what it is, and once more merged says the same.
	again := readModules(t, string(got.YAML()))
	if twice, _, err := modules.Merge(again, again, again); err != nil || !bytes.Equal(twice.YAML(), got.YAML()) {
		t.Errorf("%v\n%s", err, cmp.Diff(string(got.YAML()), string(twice.YAML())))
	}
	// A third one does not settle what two are at odds about.
	third := readModules(t, defaultsDoc("one", 0, "1.0", "    \"1.0\": [common]\n")+defaultsDoc("three", 7, "s", "    s: [common]\n"))
	if thrice, _, err := modules.Merge(a, b, third); err != nil || !bytes.Equal(thrice.YAML(), got.YAML()) {
		t.Errorf("%v\n%s", err, cmp.Diff(string(got.YAML()), string(thrice.YAML())))
	}
	other, _, err := modules.Merge(b, a)
	if err != nil || len(other) != len(got) {
		t.Error(len(other), err)
	}
	// dnf, with libmodulemd in it, takes all of it.
	list := dnfModules(t, got.YAML())
	for _, want := range []string{"one ", "two ", "three ", "1.10 "} {
		if !strings.Contains(list, want) {
			t.Errorf("no %q in dnf's modules:\n%s", want, list)
		}
	}
	if strings.Contains(list, "1.0 [d]") || !strings.Contains(list, "s [d]") {
		t.Errorf("defaults by dnf:\n%s", list)
	}
}

// A package with the label of a module is found out when no document names it.
func TestLabelledPackagesAreCovered(t *testing.T) {
	ms := readModules(t, streamDoc("one", "1.0", 5, "one", "covered-1:1-1.x86_64"))
	var labeled []rpm.NEVRA
	for _, s := range []rpmtest.Spec{{NEVRA: rpm.NEVRA{Name: "covered", Epoch: 1, Version: "1", Release: "1", Arch: "x86_64"}, Source: "s-1-1.src.rpm", Modularity: "one:1.0:5:c0ffee42"},
		{NEVRA: rpm.NEVRA{Name: "covered", Version: "1", Release: "1", Arch: "x86_64"}, Source: "s-1-1.src.rpm", Modularity: "one:1.0:5:c0ffee42"}, {NEVRA: rpm.NEVRA{Name: "plain", Version: "1", Release: "1", Arch: "x86_64"}, Source: "s-1-1.src.rpm"}} {
		b := s.Build()
		p, err := rpm.Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if p.Header.Has(rpm.Modularity) {
			labeled = append(labeled, p.NEVRA())
		}
	}
	if out := ms.Uncovered(labeled); len(labeled) != 2 || len(out) != 1 || out[0].Epoch != 0 {
		t.Errorf("%v of %v", out, labeled)
	}
}

// dnfModules is what dnf lists of a repository of modules.
func dnfModules(t *testing.T, doc []byte) string {
	t.Helper()
	pack, err := rpm.NewPacker(rpm.Zstd)
	if err != nil {
		t.Fatal(err)
	}
	files, err := rpm.Metadata(nil, nil, rpm.Zstd)
	if err != nil {
		t.Fatal(err)
	}
	m, err := rpm.NewMetaFile("modules", doc, pack)
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, m)
	repo, home := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(repo, "repodata"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range append(files, rpm.MetaFile{Name: "repodata/repomd.xml", Data: rpm.Repomd(files, 1, 1)}) {
		if err := os.WriteFile(filepath.Join(repo, f.Name), f.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := exec.Command("dnf", "-q", "--installroot", filepath.Join(home, "root"), "--releasever=9", "--noplugins", "--setopt=reposdir=/dev/null", "--setopt=cachedir="+filepath.Join(home, "cache"),
		"--setopt=logdir="+home, "--setopt=persistdir="+home, "--repofrompath=ours,file://"+repo, "--repo=ours", "module", "list")
	c.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("dnf: %v: %s", err, out)
	}
	return string(out)
}

// Many documents on one thing take no longer than as many on many: with the square of them, this
// test would not end.
func TestManyDocumentsOnOneThing(t *testing.T) {
	var b strings.Builder
	for i := range 2000 {
		b.WriteString(streamDoc("one", "1.0", 5, "one", fmt.Sprintf("p%d-0:1-1.x86_64", i), fmt.Sprintf("q%d-0:1-1.x86_64", i)))
		b.WriteString(defaultsDoc("one", 1, "1.0", fmt.Sprintf("    s%d: [a]\n", i)))
	}
	got, conflicts, err := modules.Merge(readModules(t, b.String()))
	if err != nil || len(conflicts) > 0 || len(got) != 2 || len(got[0].Artifacts) != 4000 || bytes.Count(got[1].Text, []byte("\n")) < 4000 {
		t.Errorf("%d documents, %v %v", len(got), conflicts, err)
	}
}

func TestOddModules(t *testing.T) {
	ms := readModules(t, "document: modulemd-obsoletes\nversion: 1\ndata:\n  modified: 2020-05-09T01:02Z\n  module: a\n  stream: \"1\"\n  message: gone\n--- # next\ndocument: modulemd-translations\nversion: 1\ndata:\n  module: a\n  stream: b\n  modified: 20180713\n--- {document: modulemd, version: 2, data: {name: a, stream: 1.10, version: 1}}\n---\n\n...\n---\ndocument: unknown\n")
	if len(ms) != 3 || ms[0].Modified != 202005090102 || ms[2].Stream != "1.10" {
		t.Errorf("%+v", ms)
	}
	for name, s := range map[string]string{
		"empty": "", "no kind": "a: b\n", "no YAML": "document: {", "a list": "- document\n", "aliases": "document: modulemd\nversion: 2\ndata: &a\n  name: x\n  stream: y\n  z: *a\n", "no name": "document: modulemd\ndata:\n  stream: a\n", "no stream": "document: modulemd\ndata:\n  name: a\n",
		"version": "document: modulemd\ndata:\n  name: a\n  stream: b\n  version: x\n", "no text": "document: modulemd\x00", "a huge document": "document: modulemd\ndata:\n  name: a\n" + strings.Repeat("# long\n", 500_000), "artifacts": "document: modulemd\ndata:\n  name: a\n  stream: b\n  artifacts: 7\n",
		"many": strings.Repeat("---\ndocument: modulemd\ndata: {name: a, stream: b}\n", 21_000),
	} {
		if _, err := modules.Read(strings.NewReader(s)); fault.Code(err) != "repodata" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzModules reads modules.yaml as text.
func FuzzModules(f *testing.F) {
	f.Add([]byte(streamDoc("one", "1.0", 5, "one", "a-0:1-1.x86_64") + defaultsDoc("one", 1, "1.0", "    s: [a]\n")))
	f.Add([]byte(defaultsDoc("one", 1, "1.0", "    s: [a]\n") + defaultsDoc("one", 1, "1.1", "    s: [b]\n    t: []\n")))
	for _, nl := range []string{"\r", "\u0085", "\u2028", "\u2029", "\r\n"} {
		f.Add([]byte(strings.ReplaceAll("\n---\ndocument: modulemd-defaults\nversion: 1\ndata:\n  module: o\n...\n", "\n", nl)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, magic := range []string{"\x1f\x8b", "BZh", "\xfd7zXZ", "\x28\xb5\x2f\xfd", "\x5d\x00\x00"} {
			if bytes.HasPrefix(b, []byte(magic)) {
				return // package rpm's own targets unpack
			}
		}
		docs := bytes.Count(b, []byte("document"))
		var ms modules.Docs
		var err error
		// The YAML reader has buffers of its own for each document, and large nodes.
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		ms, err = modules.Read(bytes.NewReader(b))
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > uint64(1024*len(b)+(2+docs)*192<<10) {
			t.Fatalf("%d bytes for an input of %d", n, len(b))
		}
		if err != nil && fault.Code(err) != "repodata" {
			t.Fatal(err)
		}
		if err != nil {
			return
		}
		merged, _, err := modules.Merge(ms, ms)
		if err != nil && fault.Code(err) != "repodata" {
			t.Fatal(err)
		}
		if err != nil {
			return
		}
		once := merged.YAML()
		if len(merged) == 0 {
			return
		}
		again, err := modules.Read(bytes.NewReader(once))
		if err != nil || !bytes.Equal(again.YAML(), once) {
			t.Fatalf("what was written reads otherwise: %v\n%s", err, once)
		}
		all := merged.Filter(func(rpm.NEVRA) bool { return true })
		if len(all) > len(merged) {
			t.Fatal("more than there was")
		}
	})
}
