package rpmtest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"drover/internal/rpm"
	"drover/internal/rpm/rpmtest"
)

func read(t *testing.T, m rpmtest.Made) *rpm.Package {
	t.Helper()
	r := bytes.NewReader(m.Data)
	p, err := rpm.Read(r, r.Size())
	if err != nil {
		t.Fatalf("%s: %v", m.Href, err)
	}
	if err := p.VerifyDigests(r); err != nil {
		t.Fatal(err)
	}
	if err := p.CheckPaths(); err != nil {
		t.Fatal(err)
	}
	return p
}

// Packages are good ones, say of themselves what AppStream's metadata says of the real ones, and
// come out the same each time.
func TestPackagesOfCorpus(t *testing.T) {
	c := rpmtest.Open(t)
	if c.Len() != 17649 {
		t.Fatalf("%d packages", c.Len())
	}
	files, _ := filepath.Glob("../../../../shared/data/cs9-appstream/repodata/*-primary.xml.gz")
	f, err := os.Open(files[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	i := -1
	if err := rpm.ReadEntries(f, rpm.KindPrimary, func(e rpm.Entry) error {
		if i++; i%97 != 0 {
			return nil
		}
		m, err := c.Make(i)
		if err != nil {
			return err
		}
		p := read(t, m)
		want, err := rpm.ReadPrimaryEntry(e.XML)
		if err != nil {
			return err
		}
		// The entry of the made package is the real one's, with the made file in its holes.
		at := rpm.Place{PkgID: want.Sum, Href: want.Href, Size: want.Size, Mtime: want.FileTime, HeaderStart: want.HeaderStart, HeaderEnd: want.HeaderEnd}
		if got := rpm.Primary(nil, p, at); !bytes.Equal(got, e.XML) {
			t.Errorf("%s:\n%s\nis in AppStream:\n%s", m.Href, got, e.XML)
		}
		if again, err := c.Make(i); err != nil || !bytes.Equal(again.Data, m.Data) {
			t.Errorf("%s differs the second time, %v", m.Href, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestCorpusGrows(t *testing.T) {
	c := rpmtest.Open(t)
	a, err := c.Spec(0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Spec(2 * c.Len())
	if err != nil {
		t.Fatal(err)
	}
	if b.Name != a.Name+"-r2" || !slices.ContainsFunc(b.Provides, func(d rpm.Dep) bool { return d.Name == a.Name+"-r2(x86-64)" }) || b.Requires[0] == (rpm.Dep{}) {
		t.Errorf("%s: %+v", b.NEVRA, b.Provides)
	}
	m, err := c.Make(2 * c.Len())
	if err != nil || m.Href != "Packages/"+b.File() {
		t.Fatal(m.Href, err)
	}
	read(t, m)
}

// rpm finds nothing wrong and reads what was put in.
func TestRPMReadsCorpus(t *testing.T) {
	c := rpmtest.Open(t)
	dir := t.TempDir()
	if err := c.Write(dir, 60); err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob(filepath.Join(dir, "Packages", "*.rpm"))
	if err != nil || len(all) != 60 {
		t.Fatal(len(all), err)
	}
	if out, err := exec.Command("rpmkeys", slices.Concat([]string{"-K", "--nosignature"}, all)...).CombinedOutput(); err != nil || strings.Count(string(out), "digests OK") != 60 {
		t.Errorf("rpmkeys: %v: %s", err, out)
	}
	for _, f := range all[:5] {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		h := read(t, rpmtest.Made{Href: f, Data: b}).Header
		var want []string
		for w, err := h.FileWalk(); err == nil && w.Next(); {
			want = append(want, string(w.Dir())+string(w.Base()))
		}
		out, err := exec.Command("rpm", "-qp", "--nosignature", "--qf", "[%{FILENAMES}\n]", f).Output()
		if err != nil || strings.Join(want, "\n") != strings.TrimSpace(string(out)) {
			t.Errorf("%s: rpm lists other files, %v", f, err)
		}
		out, err = exec.Command("rpm", "-qp", "--nosignature", "--qf", "[%{REQUIRENAME} %{REQUIREFLAGS} %{REQUIREVERSION}\n]%{SUMMARY}\n%{DESCRIPTION}", f).Output()
		if err != nil || !strings.Contains(string(out), "rpmlib(CompressedFileNames) 16777226 3.0.4-1\n") || !strings.Contains(string(out), h.String(rpm.Summary)+"\n"+h.String(rpm.Description)) {
			t.Errorf("%s: %v: %s", f, err, out)
		}
	}
}

// The whole corpus has the size of AppStream's metadata. The times are for information.
func TestSizeOfCorpus(t *testing.T) {
	if os.Getenv("DROVER_LONG") == "" {
		t.Log("the sizes are checked in the long form: DROVER_LONG=1")
		return
	}
	c := rpmtest.Open(t)
	start := time.Now()
	dir := filepath.Join(t.TempDir(), "all")
	if err := c.Write(dir, c.Len()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d packages made in %s", c.Len(), time.Since(start).Round(100*time.Millisecond))
	var files, lists, other, bytesAll int
	id := hex.EncodeToString(make([]byte, sha256.Size))
	all, err := os.ReadDir(filepath.Join(dir, "Packages"))
	if err != nil || len(all) != c.Len() {
		t.Fatal(len(all), err)
	}
	for _, e := range all {
		b, err := os.ReadFile(filepath.Join(dir, "Packages", e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		p := read(t, rpmtest.Made{Href: e.Name(), Data: b})
		bytesAll += len(b)
		files += p.Header.Count(rpm.Basenames)
		lists += len(rpm.Filelists(nil, p.Header, id))
		other += len(rpm.Other(nil, p.Header, id))
	}
	t.Logf("%d files, %d MB of packages, filelists of %d MB, other of %d MB", files, bytesAll/1e6, lists/1e6, other/1e6)
	if files < 1_200_000 || files > 1_800_000 || other < 40e6 || other > 60e6 || lists < 80e6 || lists > 140e6 {
		t.Error("that is not the size of AppStream: 1.49 M files, filelists of some 100 MB, other of 50 MB")
	}
}
