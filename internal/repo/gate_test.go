package repo_test

import (
	"fmt"
	"strings"
	"testing"

	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/fault"
	"drover/internal/release"
	"drover/internal/repo"
	"drover/internal/repo/repotest"
)

// spec is a package with lines of its own and one file.
func spec(name, version, lines, path, text string) string {
	return fmt.Sprintf(`Name: %s
Version: %s
Release: 1
Summary: A test
License: Apache-2.0
BuildArch: noarch
%s
%%description
Test.

%%install
mkdir -p %%{buildroot}$(dirname %s)
echo '%s' > %%{buildroot}%s

%%files
%s
`, name, version, lines, path, text, path, path)
}

// What a move would break keeps it from happening, with a reason that tells what to do.
func TestGate(t *testing.T) {
	type made struct {
		srpm string
		rpms []string
	}
	mk := func(s string) made {
		a, b := repotest.RPMBuild(t, s)
		return made{a, b}
	}
	lib1 := mk(spec("libfoo", "1", "Provides: libfoo.so.1", "/usr/share/libfoo/one", "1"))
	lib2 := mk(spec("libfoo", "2", "Provides: libfoo.so.2", "/usr/share/libfoo/two", "2"))
	app1 := mk(spec("app", "1", "Requires: libfoo.so.1", "/usr/share/app/x", "1"))
	app2 := mk(spec("app", "2", "Requires: (libfoo.so.2 or libbar)\nRequires: app-data", "/usr/share/app/x", "2"))
	data := mk(spec("app-data", "1", "", "/usr/share/data/y", "1"))
	rival := mk(spec("rival", "1", "", "/usr/share/app/x", "other"))
	friend := mk(spec("friend", "1", "", "/usr/share/app/x", "2"))
	modular := mk(spec("stream", "1.module+el9+1+ab", "ModularityLabel: x:1:2:3", "/usr/share/stream/z", "1"))
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		h.Tag(release.Tag{Name: "own", Arches: []string{"x86_64"}})
		h.OK(h.Repo.SetLine(h.System, repo.Line{Name: "l", Parts: []string{"own"}, Stages: []string{"dev", "prod"}}))
		put := func(ms ...made) {
			for _, m := range ms {
				h.Submit("own", m.srpm, m.rpms...)
			}
			want := h.Published("own").Snapshot
			at(t, h, "l/dev", func(x repo.Content) bool {
				dev, err := h.Repo.Diff(h.System, want, x.ID)
				h.OK(err)
				return len(dev.Added)+len(dev.Removed) == 0
			})
		}
		promote := func(mv repo.Move) repo.Plan {
			t.Helper()
			p, err := h.Repo.Promote(h.System, "l/prod", mv)
			h.OK(err)
			return p
		}
		shut := func(kind string, words ...string) {
			t.Helper()
			p, err := h.Repo.Plan(h.System, "l/prod")
			h.OK(err)
			if p.Gate.OK || len(p.Gate.Findings) == 0 {
				t.Fatalf("the gate is open: %+v", p)
			}
			found := false
			for _, f := range p.Gate.Findings {
				if f.Kind != kind {
					t.Errorf("a finding more: %+v", f)
				}
				all := true
				for _, w := range words {
					all = all && strings.Contains(f.Text, w)
				}
				found = found || all
			}
			if !found {
				t.Fatalf("no %s with %q in %+v", kind, words, p.Gate.Findings)
			}
			if _, err := h.Repo.Promote(h.System, "l/prod", repo.Move{}); fault.Code(err) != "gate_shut" {
				t.Fatalf("promoted through a shut gate: %v", err)
			}
		}
		put(lib1, app1)
		promote(repo.Move{})
		// libfoo 2 alone takes app its library.
		put(lib2)
		shut("broken", "app-1-1.noarch", "libfoo.so.1")
		if _, err := h.Repo.Promote(h.System, "l/prod", repo.Move{Force: true}); fault.Code(err) != "reason" {
			t.Errorf("forced without a reason: %v", err)
		}
		// A new package that cannot be installed itself.
		put(app2)
		shut("broken", "app-2-1.noarch", "app-data")
		put(data)
		if p := promote(repo.Move{}); len(p.Changes) != 6 {
			t.Errorf("%+v", p.Changes)
		}
		// The same file twice: the same content may be shared, other content not.
		put(friend)
		promote(repo.Move{})
		put(rival)
		shut("conflict", "rival-1-1.noarch", "/usr/share/app/x")
		p := promote(repo.Move{Force: true, Reason: "rival is never installed beside app"})
		if p.Gate.OK {
			t.Error("by force the gate was open")
		}
		// A package of a module that no modules.yaml names is hidden from hosts.
		put(modular)
		shut("unlisted", "stream-1.module+el9+1+ab-1.noarch")
		h.OK(h.Release.UntagBuild(h.System, h.Build, "own", "stream-1.module+el9+1+ab-1"))
		// What was accepted once is not asked about again, but versions do not go down.
		h.OK(h.Release.UntagBuild(h.System, h.Build, "own", "libfoo-2-1"))
		put()
		shut2, err := h.Repo.Plan(h.System, "l/prod")
		h.OK(err)
		kinds := map[string]bool{}
		for _, f := range shut2.Gate.Findings {
			kinds[f.Kind] = true
		}
		if !kinds["downgrade"] || !kinds["broken"] || kinds["conflict"] {
			t.Errorf("back to libfoo 1: %+v", shut2.Gate.Findings)
		}
	})
}
