package repo_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/fault"
	"drover/internal/repo"
	"drover/internal/repo/repotest"
	"drover/internal/rpm"
	"drover/internal/rpm/rpmtest"
)

// odd writes packages that no tool makes on purpose and that are out there all the same: a header
// of 16 MB, a changelog in Latin-1, one NEVRA twice with different content.
func odd(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	spec := func(name string) rpmtest.Spec {
		return rpmtest.Spec{NEVRA: rpm.NEVRA{Name: name, Version: "1", Release: "1", Arch: "noarch"}, Source: name + "-1-1.src.rpm", Summary: "odd", Description: "odd", License: "MIT", BuildTime: 1_700_000_000,
			Provides: []rpm.Dep{{Name: name, Flags: rpm.SenseEqual, EVR: "1-1"}}}
	}
	large := spec("large")
	for i := range 170_000 {
		large.Files = append(large.Files, rpmtest.File{Path: fmt.Sprintf("/usr/share/large/directory/%030d", i)})
	}
	latin := spec("latin")
	latin.Changes = []rpm.Change{{Time: 1_700_000_000, Author: "J\xfcrgen <j@example.org> - 1-1", Text: "- Stra\xdfe & <more>"}}
	one, two := spec("twice"), spec("twice")
	two.Summary = "another"
	var out []string
	for i, s := range []rpmtest.Spec{large, latin, one, two} {
		data := s.Build()
		if s.Name == "large" && len(data) < 16<<20 {
			t.Fatalf("the large header has %d bytes", len(data))
		}
		f := filepath.Join(dir, fmt.Sprintf("%s-%d-1.noarch.rpm", s.Name, i))
		if err := os.WriteFile(f, data, 0o600); err != nil {
			t.Fatal(err)
		}
		out = append(out, f)
	}
	return out
}

// What is odd is mirrored as it is, and made anew it is read by everybody; that one NEVRA is
// there twice keeps it from going on.
func TestMirrorOfOddPackages(t *testing.T) {
	files := odd(t)
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		u := newUpstream(t, files...)
		for _, again := range []bool{false, true} {
			name := fmt.Sprintf("odd-%v", again)
			m := u.mirror(name)
			m.Regenerate = again
			h.OK(h.Mirrors.Set(h.System, m))
			id, err := h.Mirrors.Sync(h.System, name, nil)
			h.OK(err)
			dir := t.TempDir()
			if hrefs := copyTree(t, h.URL+"/snapshots/"+id+"/x86_64/", dir); len(hrefs) != len(files) {
				t.Errorf("%s holds %v", name, hrefs)
			}
			_, file := get(t, h.URL+"/channels/"+name+".repo")
			repos := t.TempDir()
			h.OK(os.WriteFile(filepath.Join(repos, "x.repo"), file, 0o600))
			root := t.TempDir()
			ask := []string{"-q", "-y", "--installroot=" + root, "--releasever=9", "--setopt=reposdir=" + repos, "--setopt=varsdir=/nonexistent", "--setopt=cachedir=" + root + ".dnf", "--setopt=pluginpath=/nonexistent", "--setopt=module_platform_id=platform:el9", "repoquery"}
			if out := must(t, nil, "dnf", append(ask, "--changelogs", "latin")...); !strings.Contains(out, "Jürgen") || !utf8.ValidString(out) {
				t.Errorf("%s: the changelog: %q", name, out)
			}
			if out := must(t, nil, "dnf", append(ask, "-l", "large")...); strings.Count(out, "/usr/share/large/") != 170_000 {
				t.Errorf("%s: the large package has %d files", name, strings.Count(out, "\n"))
			}
		}
		h.OK(h.Repo.SetLine(h.System, repo.Line{Name: "l", Parts: []string{"odd-false"}, Stages: []string{"dev", "prod"}}))
		at(t, h, "l/dev", func(repo.Content) bool { return true })
		_, err := h.Repo.Promote(h.System, "l/prod", repo.Move{})
		if fault.Code(err) != "gate_shut" || !strings.Contains(err.Error(), "twice-1-1.noarch is there twice") {
			t.Errorf("promoted: %v", err)
		}
	})
}
