package repo_test

import (
	"strings"
	"testing"
	"time"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/fault"
	"drover/internal/release"
	"drover/internal/repo"
	"drover/internal/repo/repotest"
)

// at waits until a channel points at a snapshot of which ok says that it is the one.
func at(t *testing.T, h *repotest.House, channel string, ok func(repo.Content) bool) repo.Content {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := h.Repo.Channel(h.System, channel, "")
		if err == nil {
			x, err := h.Repo.Content(h.System, c.Snapshot)
			h.OK(err)
			if ok(x) {
				return x
			}
		}
		if time.Now().After(end) {
			t.Fatalf("%s did not get there: %+v %v", channel, c, err)
		}
	}
}

func holds(x repo.Content, file string) bool {
	for _, ps := range x.Trees {
		for _, p := range ps {
			if p.File == file {
				return true
			}
		}
	}
	return false
}

// A change goes from dev by test to prod; what is held or frozen stays; back is one move.
func TestLine(t *testing.T) {
	hello1, hello1s := repotest.RPMBuild(t, repotest.Spec("hello", "1"))
	hello2, hello2s := repotest.RPMBuild(t, repotest.Spec("hello", "2"))
	other1, other1s := repotest.RPMBuild(t, repotest.Spec("other", "1"))
	other2, other2s := repotest.RPMBuild(t, repotest.Spec("other", "2"))
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		h.StartSigner(true)
		h.Key("k", "ed25519", "base")
		h.Key("k2", "ed25519", "own")
		h.Tag(release.Tag{Name: "base", Key: "k", Arches: []string{"x86_64"}})
		h.Tag(release.Tag{Name: "own", Key: "k2", Arches: []string{"x86_64"}})
		refused := func(code string, err error) {
			t.Helper()
			if fault.Code(err) != code {
				t.Errorf("got %v, want %s", err, code)
			}
		}
		line := repo.Line{Name: "s10", Parts: []string{"base", "own"}, Stages: []string{"dev", "test", "prod"}}
		for _, bad := range []repo.Line{
			{Name: "UP", Parts: line.Parts, Stages: line.Stages}, {Name: "s10", Stages: line.Stages}, {Name: "s10", Parts: line.Parts},
			{Name: "s10", Parts: line.Parts, Stages: []string{"a", "a"}}, {Name: "s10", Parts: []string{"base", "base"}, Stages: line.Stages},
			{Name: "s10", Parts: line.Parts, Stages: []string{"at"}}, {Name: "s10", Parts: line.Parts, Stages: []string{"../x"}},
		} {
			refused("line", h.Repo.SetLine(h.System, bad))
		}
		refused("part_unknown", h.Repo.SetLine(h.System, repo.Line{Name: "s10", Parts: []string{"nope"}, Stages: line.Stages}))
		h.Published("base")
		h.Published("own")
		h.OK(h.Repo.SetLine(h.System, line))
		at(t, h, "s10/dev", func(repo.Content) bool { return true })
		before := h.Events("line.")
		h.OK(h.Repo.SetLine(h.System, line))
		if h.Events("line.") != before {
			t.Error("setting a line to what it is is an event")
		}
		h.Submit("base", hello1, hello1s...)
		h.Submit("own", other1, other1s...)
		dev := at(t, h, "s10/dev", func(x repo.Content) bool { return holds(x, "hello-1-1.noarch.rpm") && holds(x, "other-1-1.noarch.rpm") })
		if _, ok := dev.Trees["own.x86_64"]; !ok || len(dev.Trees) != 6 {
			t.Fatalf("the trees of a line: %v", dev.Trees)
		}
		_, err := h.Repo.Promote(h.System, "s10/dev", repo.Move{})
		refused("first_stage", err)
		_, err = h.Repo.Promote(h.System, "base", repo.Move{})
		refused("stage_unknown", err)
		_, err = h.Repo.Promote(h.System, "s10/nope", repo.Move{})
		refused("stage_unknown", err)
		_, err = h.Repo.Promote(h.System, "s10/prod", repo.Move{})
		refused("channel_unknown", err) // test has nothing yet
		for _, stage := range []string{"s10/test", "s10/prod"} {
			p, err := h.Repo.Promote(h.System, stage, repo.Move{Reason: "first"})
			h.OK(err)
			if p.Snapshot != dev.ID || !p.Gate.OK || len(p.Changes) == 0 {
				t.Fatalf("%s: %+v", stage, p)
			}
		}
		// A real dnf follows a stage of a line, signatures checked.
		_, repoFile := get(t, h.URL+"/channels/s10/prod.repo")
		if strings.Count(string(repoFile), "gpgcheck=1") == 0 || !strings.Contains(string(repoFile), "[s10-prod-own]") {
			t.Fatalf("%s", repoFile)
		}
		root := t.TempDir()
		if out, err := dnf(t, string(repoFile), root, "hello", "other"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}

		// The next round: hello is held in prod, other goes.
		h.Submit("base", hello2, hello2s...)
		h.Submit("own", other2, other2s...)
		at(t, h, "s10/dev", func(x repo.Content) bool { return holds(x, "hello-2-1.noarch.rpm") && holds(x, "other-2-1.noarch.rpm") })
		_, err = h.Repo.Promote(h.System, "s10/test", repo.Move{})
		h.OK(err)
		refused("reason", h.Repo.SetHold(h.System, repo.Hold{Channel: "s10/prod", Package: "hello*"}))
		refused("hold", h.Repo.SetHold(h.System, repo.Hold{Channel: "s10/prod", Package: "[", Reason: "x"}))
		refused("stage_unknown", h.Repo.SetHold(h.System, repo.Hold{Channel: "base", Package: "hello", Reason: "x"}))
		h.OK(h.Repo.SetHold(h.System, repo.Hold{Channel: "s10/prod", Package: "hello*", Reason: "crashes", Expires: time.Now().Add(time.Hour)}))
		plan, err := h.Repo.Plan(h.System, "s10/prod")
		h.OK(err)
		if len(plan.Held) != 1 || plan.Held[0].Source != "hello" || len(plan.Changes) != 2 || plan.Changes[0].Kind() != "upgraded" || plan.Changes[0].Name != "other" {
			t.Fatalf("plan: %+v", plan)
		}
		refused("reason", h.Repo.SetFreeze(h.System, repo.Freeze{Channel: "s10/prod"}))
		h.OK(h.Repo.SetFreeze(h.System, repo.Freeze{Channel: "s10/prod", Reason: "holidays"}))
		_, err = h.Repo.Promote(h.System, "s10/prod", repo.Move{})
		refused("channel_frozen", err)
		_, err = h.Repo.Rollback(h.System, "s10/test", "", "")
		h.OK(err)
		_, err = h.Repo.Promote(h.System, "s10/test", repo.Move{})
		h.OK(err)
		h.OK(h.Repo.Thaw(h.System, "s10/prod"))
		h.OK(h.Repo.Thaw(h.System, "s10/prod"))
		p, err := h.Repo.Promote(h.System, "s10/prod", repo.Move{})
		h.OK(err)
		prod := at(t, h, "s10/prod", func(x repo.Content) bool { return x.ID == p.Snapshot })
		if !holds(prod, "hello-1-1.noarch.rpm") || holds(prod, "hello-2-1.noarch.rpm") || !holds(prod, "other-2-1.noarch.rpm") {
			t.Fatalf("prod: %+v", prod.Trees)
		}
		root = t.TempDir()
		if out, err := dnf(t, string(repoFile), root, "hello-1", "other-2"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		// Without the hold everything goes, and is what test has.
		h.OK(h.Repo.DropHold(h.System, "s10/prod", "hello*"))
		refused("hold_unknown", h.Repo.DropHold(h.System, "s10/prod", "hello*"))
		p, err = h.Repo.Promote(h.System, "s10/prod", repo.Move{})
		h.OK(err)
		test, err := h.Repo.Channel(h.System, "s10/test", "")
		h.OK(err)
		if p.Snapshot != test.Snapshot {
			t.Errorf("prod is at %s, test at %s", p.Snapshot, test.Snapshot)
		}
		// Names, dates, and back.
		h.OK(h.Repo.SetName(h.System, "first", "s10/dev@"+time.Now().Add(time.Hour).Format(time.RFC3339), "kept"))
		refused("name", h.Repo.SetName(h.System, "abcdef0123", "s10/prod", "kept"))
		refused("name_taken", h.Repo.SetName(h.System, "base", "s10/prod", "kept"))
		diff, err := h.Repo.Diff(h.System, prod.ID, "first")
		h.OK(err)
		if len(diff.Changes) != 2 || diff.Changes[0].Name != "hello" {
			t.Errorf("diff: %+v", diff)
		}
		c, err := h.Repo.Rollback(h.System, "s10/prod", "", "hello 2 crashes")
		h.OK(err)
		if c.Snapshot != prod.ID {
			t.Errorf("back at %s, want %s", c.Snapshot, prod.ID)
		}
		c, err = h.Repo.Rollback(h.System, "s10/prod", dev.ID[:16], "all of it")
		h.OK(err)
		if c.Snapshot != dev.ID {
			t.Errorf("back at %s, want %s", c.Snapshot, dev.ID)
		}
		_, err = h.Repo.Rollback(h.System, "base", dev.ID, "never there")
		refused("no_earlier_state", err)
		// Nobody without the right moves or keeps anything.
		nobody := auth.With(h.System, auth.Actor{Kind: auth.Person, Name: "nobody"})
		_, err = h.Repo.Promote(nobody, "s10/prod", repo.Move{})
		refused("denied", err)
		_, err = h.Repo.Rollback(nobody, "s10/prod", "", "")
		refused("denied", err)
		for _, err := range []error{h.Repo.SetLine(nobody, line), h.Repo.DropLine(nobody, "s10"), h.Repo.SetFreeze(nobody, repo.Freeze{Channel: "s10/prod", Reason: "x"}), h.Repo.Thaw(nobody, "s10/prod"),
			h.Repo.SetHold(nobody, repo.Hold{Channel: "s10/prod", Package: "x", Reason: "x"}), h.Repo.DropHold(nobody, "s10/prod", "x"), h.Repo.SetName(nobody, "x", dev.ID, "x"), h.Repo.DropName(nobody, "first")} {
			refused("denied", err)
		}
		h.OK(h.Repo.DropName(h.System, "first"))
		h.OK(h.Repo.DropLine(h.System, "s10"))
		_, err = h.Repo.Promote(h.System, "s10/prod", repo.Move{})
		refused("line_unknown", err)
	})
}
