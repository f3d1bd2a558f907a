package rpm_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"drover/internal/rpm"
)

// The entries of createrepo_c with the same values put in again are the same, and with others
// differ in these only.
func TestReuse(t *testing.T) {
	dir := t.TempDir()
	files, err := filepath.Glob("../../../shared/data/rpms-modern/*.rpm")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("createrepo_c", "-q", "--no-database", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	entries := map[string]*[3][]byte{}
	pkgs := map[string]rpm.PrimaryPackage{}
	for k := range rpm.KindOther + 1 {
		names, _ := filepath.Glob(filepath.Join(dir, "repodata/*-"+k.String()+".xml.*"))
		f, err := os.Open(names[0])
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		err = rpm.ReadEntries(f, k, func(e rpm.Entry) error {
			if entries[e.PkgID] == nil {
				entries[e.PkgID] = &[3][]byte{}
			}
			entries[e.PkgID][k] = bytes.Clone(e.XML)
			if k == rpm.KindPrimary {
				pkgs[e.PkgID] = e.Package
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(pkgs) < 5 {
		t.Fatalf("%d packages", len(pkgs))
	}
	for id, p := range pkgs {
		e := entries[id]
		tmpl, ok := rpm.Reuse(e[0], e[1], e[2], p)
		if !ok {
			t.Errorf("%s can't be reused: %s", p.NEVRA, e[0])
			continue
		}
		at := rpm.Place{PkgID: p.Sum, Mtime: p.FileTime, Size: p.Size, Href: p.Href, HeaderStart: p.HeaderStart, HeaderEnd: p.HeaderEnd}
		moved := at
		moved.Href = "Packages/a&b.rpm"
		for k := range rpm.KindOther + 1 {
			if got := tmpl.Append(nil, k, at); !bytes.Equal(got, e[k]) {
				t.Errorf("%s %s:\n%s\nis now\n%s", p.NEVRA, k, e[k], got)
			}
			want := bytes.Replace(e[k], []byte(`href="`+p.Href+`"`), []byte(`href="Packages/a&amp;b.rpm"`), 1)
			if got := tmpl.Append(nil, k, moved); !bytes.Equal(got, want) {
				t.Errorf("%s %s moved:\n%s", p.NEVRA, k, got)
			}
		}
		p.Size++
		if _, ok := rpm.Reuse(e[0], e[1], e[2], p); ok {
			t.Errorf("%s: reused with another size", p.NEVRA)
		}
	}
}

func TestRevision(t *testing.T) {
	for text, want := range map[string]int64{
		`<repomd><revision>1700000000</revision></repomd>`: 1700000000, `<repomd><revision>el8</revision></repomd>`: 0, `<repomd></repomd>`: 0,
	} {
		if n, err := rpm.Revision([]byte(text)); n != want || err != nil {
			t.Errorf("%s: %d %v", text, n, err)
		}
	}
	if _, err := rpm.Revision([]byte("<repomd><revision>")); err == nil {
		t.Error("half a file is taken")
	}
}
