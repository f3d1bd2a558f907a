package rpm_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"drover/internal/rpm"

	"github.com/google/go-cmp/cmp"
)

var reMtime = regexp.MustCompile(`<time file="\d+"`)

// rpmDir writes the fixtures that createrepo_c's rpm (4.18) reads, and renders ours.
func rpmDir(t *testing.T) (dir string, frags []rpm.Fragments) {
	t.Helper()
	dir = t.TempDir()
	all := fixtures(t)
	seen := map[string]bool{}
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for n := range all {
			if !yield(n) {
				return
			}
		}
	}) {
		b := all[name]
		p := read(t, b)
		if seen[p.HeaderSHA256()] {
			continue
		}
		seen[p.HeaderSHA256()] = true
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
		at := rpm.Place{PkgID: hexSum(b), Href: name, Size: int64(len(b)), HeaderStart: p.HeaderStart, HeaderEnd: p.HeaderEnd}
		frags = append(frags, rpm.Fragments{Primary: rpm.Primary(nil, p, at), Filelists: rpm.Filelists(nil, p.Header, at.PkgID), Other: rpm.Other(nil, p.Header, at.PkgID)})
	}
	return dir, frags
}

// entries splits a metadata file into the text of its packages by pkgid.
func entries(t *testing.T, b []byte) map[string]string {
	t.Helper()
	out := map[string]string{}
	for e := range strings.SplitSeq(string(b), "<package ") {
		if !strings.Contains(e, "</package>") {
			continue
		}
		e, _, _ = strings.Cut(e, "</package>")
		id := regexp.MustCompile(`[0-9a-f]{64}`).FindString(e)
		out[id] = reMtime.ReplaceAllString(e, `<time file="0"`)
	}
	return out
}

func TestFragmentsEqualCreaterepo(t *testing.T) {
	dir, frags := rpmDir(t)
	if out, err := exec.Command("createrepo_c", "--no-database", "--general-compress-type=gz", dir).CombinedOutput(); err != nil {
		t.Fatalf("createrepo_c: %v: %s", err, out)
	}
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
		want, got := entries(t, unpack(t, f)), entries(t, unpack(t, bytes.NewReader(m.Data)))
		if len(want) < 25 || len(want) != len(got) {
			t.Errorf("%s: %d packages, createrepo_c has %d", m.Type, len(got), len(want))
		}
		for id, w := range want {
			if d := cmp.Diff(strings.Split(w, "\n"), strings.Split(got[id], "\n")); d != "" {
				t.Errorf("%s differs from createrepo_c (-its +ours):\n%s", m.Type, d)
			}
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
