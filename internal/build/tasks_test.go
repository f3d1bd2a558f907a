package build_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"drover/internal/build"
	"drover/internal/build/wire"
	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/release"
	"drover/internal/web"
)

func pollWith(ctx context.Context, c *web.Client, p wire.Poll) (o wire.Orders, err error) {
	if p.Running == nil {
		p.Running = []wire.Held{}
	}
	err = c.Call(ctx, "POST", wire.PathPoll, p, &o)
	return o, err
}

// states is the task tree in one line: method, arch, state.
func states(w build.Whole) string {
	var out []string
	for _, t := range w.Tasks {
		out = append(out, fmt.Sprintf("%s/%s:%s", t.Method, t.Arch, t.State))
	}
	return strings.Join(out, " ")
}

func TestBuild(t *testing.T) {
	each(t, func(h *house) {
		p := newPkg("hello", "1%{?dist}", "")
		h.push("hello", p.files)
		x, a := h.join("x"), h.join("a", "aarch64")
		began := h.events()
		b := h.submit(build.Request{Target: "two", Repo: "rpms/hello"})
		if w := h.whole(b.ID); states(w) != "build/noarch:OPEN buildSRPMFromSCM/x86_64:FREE" || w.State != build.Building || w.Owner != "pat" || w.Plan.Macros["dist"] != ".t" {
			t.Errorf("%s %+v", states(w), w)
		}
		// What is decided is decided: a change of the tag does not touch a queued build.
		h.ok(h.s.Release.SetTag(h.sys, release.Tag{Name: "two", Arches: []string{"x86_64", "aarch64"}, Macros: map[string]string{"dist": ".u"}}))

		src := x.take()
		if src.Method != wire.MethodSRPM || !src.Tree || src.Macros["dist"] != ".t" || len(src.Root.Repos) != 1 || src.Root.Repos[0].Digest == "" || src.Epoch == 0 || src.Limits.Memory == 0 {
			t.Errorf("the task: %+v", src)
		}
		tree, err := x.tree(src)
		if err != nil || !strings.Contains(string(tree), "data of hello") {
			t.Errorf("the tree: %d bytes, %v", len(tree), err)
		}
		h.ok(x.log(src, "build.log", 0, "making the source RPM\n"))
		h.ok(x.hand(src, p.srpm(t)))
		w := h.whole(b.ID)
		if states(w) != "build/noarch:OPEN buildSRPMFromSCM/x86_64:CLOSED buildArch/x86_64:FREE buildArch/aarch64:FREE" || w.NVR != "hello-1.0-1.t" {
			t.Errorf("%s %s", states(w), w.NVR)
		}
		root, child := w.Tasks[0], w.Tasks[2]
		if root.Parent != 0 || child.Parent != root.ID || child.Label != "x86_64" || child.Channel != "default" || root.Priority != 20 || child.Priority != 19 {
			t.Errorf("%+v\n%+v", root, child)
		}
		if l := w.Tasks[1].Logs; len(l) != 1 || l[0].Name != "build.log" || l[0].Size != 22 {
			t.Errorf("logs: %+v", l)
		}
		bx, ba := x.take(), a.take()
		if bx.Arch != "x86_64" || ba.Arch != "aarch64" || bx.NoArch || len(bx.Inputs) != 1 || bx.Inputs[0].Name != "hello-1.0-1.t.src.rpm" {
			t.Errorf("%+v\n%+v", bx, ba)
		}
		// The source RPM is put together from its parts again.
		in, err := x.input(bx, bx.Inputs[0].Digest)
		if err != nil || sum(in) != bx.Inputs[0].Digest || sum(in) != sum(p.srpm(t).data) {
			t.Errorf("the source RPM: %d bytes, %v", len(in), err)
		}
		good := result(bx, p.built(t, "x86_64")...)
		for _, f := range p.built(t, "x86_64") {
			h.ok(x.upload(bx, sum(f.data), f.data))
		}
		h.ok(x.finish(bx, good))
		if s := states(h.whole(b.ID)); s != "build/noarch:OPEN buildSRPMFromSCM/x86_64:CLOSED buildArch/x86_64:CLOSED buildArch/aarch64:OPEN" {
			t.Error(s)
		}
		// Said again, it is refused and changes nothing.
		n := h.events()
		h.refused(x.finish(bx, good), "lease_lost")
		if h.events() != n {
			t.Error("a repeated finish wrote an event")
		}
		h.ok(a.hand(ba, p.built(t, "aarch64")...))
		w = h.whole(b.ID)
		if states(w) != "build/noarch:CLOSED buildSRPMFromSCM/x86_64:CLOSED buildArch/x86_64:CLOSED buildArch/aarch64:CLOSED" || w.State != build.Complete || w.Finished.IsZero() {
			t.Errorf("%s %s", states(w), w.State)
		}
		var names []string
		for _, r := range w.RPMs {
			names = append(names, r.File)
			body, err := get(t, h.pat, fmt.Sprintf("/api/v1/builds/%d/rpms/%s", b.ID, r.File))
			if err != nil || sum([]byte(body)) != r.Digest.String() {
				t.Errorf("%s: %d bytes, %v", r.File, len(body), err)
			}
		}
		if s := strings.Join(names, " "); s != "hello-1.0-1.t.src.rpm hello-1.0-1.t.aarch64.rpm hello-1.0-1.t.x86_64.rpm hello-sub-1.0-1.t.noarch.rpm" {
			t.Error(s)
		}
		// One buildroot, once, for all tasks.
		if w.Tasks[1].Before == "" || w.Tasks[1].Before != w.Tasks[2].After || w.Tasks[3].Before != w.Tasks[2].Before {
			t.Error("the buildroots differ")
		}
		var pkgs []wire.Pkg
		if err := h.pat.Call(t.Context(), "GET", "/api/v1/roots/"+w.Tasks[2].Before, nil, &pkgs); err != nil || len(pkgs) != 2 || pkgs[0].NEVRA != "bash-5-1.x86_64" {
			t.Errorf("%v %v", pkgs, err)
		}
		if bs, err := h.s.Release.Content(t.Context(), "two", ""); err != nil || len(bs) != 1 || bs[0].Build != b.ID {
			t.Errorf("the tag holds %v, %v", bs, err)
		}
		// As of before, the tag was empty.
		if bs, err := h.s.Release.Content(t.Context(), "two", fmt.Sprint(began)); err != nil || len(bs) != 0 {
			t.Errorf("the tag held %v, %v", bs, err)
		}
		if f, err := h.s.Build.Find(t.Context(), "hello-1.0-1.t"); err != nil || f.ID != b.ID {
			t.Errorf("%v %v", f, err)
		}
		h.until("the leases' files are gone", h.empty)
		h.ok(h.s.DB.Read(t.Context(), func(tx *db.Tx) error {
			es, err := event.List(tx, event.Filter{})
			var kinds []string
			for _, e := range es {
				if strings.HasPrefix(e.Kind, "build.") {
					kinds = append(kinds, e.Kind+"/"+e.Actor)
				}
			}
			want := []string{"build.submit/pat", "build.builder/builder:x", "build.task/builder:x", "build.task/builder:x", "build.task/builder:x", "build.builder/builder:a", "build.task/builder:a",
				"build.task/builder:x", "build.task/builder:a", "build.done/builder:a"}
			slices.Sort(kinds)
			slices.Sort(want)
			if !slices.Equal(kinds, want) {
				t.Errorf("events: %q", kinds)
			}
			return err
		}))

		// The same NVR is not made a second time, but for a scratch build.
		again := x.begin(p, build.Request{Target: "one"})
		if w := h.whole(again.ID); w.State != build.Failed || w.Code != "nvr_exists" || !strings.Contains(w.Message, fmt.Sprint(b.ID)) || w.Remedy == "" || states(w) != "build/noarch:FAILED buildSRPMFromSCM/x86_64:CLOSED" {
			t.Errorf("%s %+v", states(w), w.Build)
		}
		scratch := x.begin(p, build.Request{Scratch: true})
		task := x.take()
		h.ok(x.hand(task, p.built(t, "x86_64")...))
		if w := h.whole(scratch.ID); w.State != build.Complete || w.Tag != "" {
			t.Errorf("%+v", w.Build)
		}
		if bs, err := h.s.Release.Content(t.Context(), "one", ""); err != nil || len(bs) != 0 {
			t.Errorf("a scratch build was tagged: %v, %v", bs, err)
		}
	})
}

func TestMatching(t *testing.T) {
	each(t, func(h *house) {
		p := newPkg("hello", "1%{?dist}", "BuildArch: noarch\n")
		h.push("hello", p.files)
		x := h.join("x")
		submit := func(r build.Request) int64 {
			r.Repo, r.Scratch = "rpms/hello", true
			if r.Target == "" {
				r.Target = "one"
			}
			return h.submit(r).ID
		}
		// More than a page of tasks for others does not hide those behind them.
		other := make([]int64, 120)
		for i := range other {
			other[i] = submit(build.Request{Channel: "big", Priority: 1})
		}
		late := submit(build.Request{Priority: 30})
		first := submit(build.Request{})
		urgent := submit(build.Request{Priority: 5})
		x.slots = 10
		o, err := x.poll(1)
		h.ok(err)
		var got []int64
		for _, task := range o.Tasks {
			tt, err := h.s.Build.Task(t.Context(), task.ID)
			h.ok(err)
			got = append(got, tt.Build)
		}
		if !slices.Equal(got, []int64{urgent, first, late}) {
			t.Errorf("handed out builds %v, not %v", got, []int64{urgent, first, late})
		}
		h.ok(x.hand(o.Tasks[0], p.srpm(t)))
		// The noarch task needs an arch of the tag: a builder of another arch does not fit.
		s := h.join("s", "s390x")
		s.idle()
		na := x.take()
		if !na.NoArch || na.Arch != "x86_64" {
			t.Errorf("%+v", na)
		}
		for _, task := range []wire.Task{o.Tasks[1], o.Tasks[2], na} {
			h.ok(x.fail(task, false, "build_failed"))
		}
		x.idle()
		// Slots are how many it runs at once.
		big := h.join("big")
		big.channels, big.slots = []string{"big", "default"}, 2
		if o, err = big.poll(1); err != nil || len(o.Tasks) != 2 {
			t.Errorf("%d tasks, %v", len(o.Tasks), err)
		}
		big.idle()
		// The end of one makes room in the poll that waits.
		res := make(chan wire.Orders, 1)
		go func() {
			o, _ := pollWith(t.Context(), big.c, wire.Poll{Version: wire.Version, Arches: big.arches, Channels: big.channels, Slots: 2, Running: slices.Clone(big.held), Wait: 20})
			res <- o
		}()
		time.Sleep(50 * time.Millisecond)
		h.ok(big.hand(o.Tasks[0], p.srpm(t)))
		select {
		case o = <-res:
			if len(o.Tasks) != 1 || len(o.Cancel) != 0 {
				t.Errorf("%+v", o)
			}
		case <-time.After(5 * time.Second):
			t.Error("the poll was not told of the free slot")
		}
		// A disabled builder has nothing, whatever waits; an admin may do that, a packager not.
		d := h.join("d")
		d.channels = []string{"big"}
		d.slots = 0
		d.idle()
		d.slots = 1
		h.refused(h.pat.Call(t.Context(), "PUT", "/api/v1/builders/d", map[string]any{"enabled": false}, nil), "denied")
		h.ok(h.admin.Call(t.Context(), "PUT", "/api/v1/builders/d", map[string]any{"enabled": false, "note": "broken fan"}, nil))
		d.idle()
		h.ok(h.admin.Call(t.Context(), "PUT", "/api/v1/builders/d", map[string]any{"enabled": true}, nil))
		d.take()
		var infos []build.BuilderInfo
		h.ok(h.pat.Call(t.Context(), "GET", "/api/v1/builders", nil, &infos))
		if len(infos) != 4 || infos[0].Name != "big" || infos[0].Tasks != 2 || infos[0].Slots != 2 {
			t.Errorf("%+v", infos)
		}
	})
}

// TestLease takes a task from a builder by time, and refuses all that it says of it later.
func TestLease(t *testing.T) {
	engines(t, func(t *testing.T, database string) {
		h := serve(t, t.TempDir(), database, 1500*time.Millisecond)
		h.admin = h.client(h.s.Token)
		h.setUp()
		p := newPkg("hello", "1%{?dist}", "")
		h.push("hello", p.files)
		x, y := h.join("x"), h.join("y")
		b := h.submit(build.Request{Target: "one", Repo: "rpms/hello"})
		old := x.take()
		h.ok(x.log(old, "build.log", 0, "first attempt\n"))
		h.ok(x.upload(old, sum([]byte("half")), []byte("half")))
		for range 4 { // a lease that is renewed does not end
			time.Sleep(500 * time.Millisecond)
			h.ok(x.renew(old))
		}
		if w := h.whole(b.ID); w.Tasks[1].State != build.TaskOpen || w.Tasks[1].Attempt != 1 {
			t.Fatal(states(w))
		}
		now := y.take() // waits until the lease is over
		if now.ID != old.ID || now.Fence <= old.Fence {
			t.Fatalf("%+v after %+v", now, old)
		}
		stop := y.keep(now)
		h.ok(y.log(now, "build.log", 0, "second\n"))
		n := h.events()
		for name, err := range map[string]error{
			"renew":  x.renew(old),
			"log":    x.log(old, "build.log", 7, "of the old one\n"),
			"upload": x.upload(old, sum([]byte("half")), []byte("half")),
			"finish": x.finish(old, result(old, p.srpm(t))),
			"fail":   x.fail(old, false, "build_failed"),
			"input":  func() error { _, err := x.input(old, sum(nil)); return err }(),
			"tree":   func() error { _, err := x.tree(old); return err }(),
		} {
			if fault.Code(err) != "lease_lost" {
				t.Errorf("%s with an old fence: %v", name, err)
			}
		}
		// Another's task with the right fence is no better.
		h.refused(x.renew(now), "lease_lost")
		h.refused(x.finish(now, result(now, p.srpm(t))), "lease_lost")
		if h.events() != n {
			t.Error("what was refused wrote events")
		}
		if o, err := x.poll(0); err != nil || !slices.Equal(o.Cancel, []int64{old.ID}) {
			t.Errorf("the builder was not told: %+v, %v", o, err)
		}
		x.held = nil
		if got, err := get(t, h.pat, fmt.Sprintf("/api/v1/tasks/%d/logs/build.log", now.ID)); err != nil || got != "second\n" {
			t.Errorf("the live log: %q, %v", got, err)
		}
		if got, err := get(t, h.pat, fmt.Sprintf("/api/v1/tasks/%d/logs/build.log.1", now.ID)); err != nil || got != "first attempt\n" {
			t.Errorf("the log of the first attempt: %q, %v", got, err)
		}
		stop()
		// A failure of the builder's is tried again, at most three times in all.
		h.ok(y.fail(now, true, "disk_low"))
		third := y.take()
		if third.Fence <= now.Fence {
			t.Error("the fence does not grow")
		}
		h.until("the third lease ends", func() bool { return h.whole(b.ID).State == build.Failed })
		w := h.whole(b.ID)
		if w.Code != "builder_vanished" || w.Tasks[1].Attempt != 3 || states(w) != "build/noarch:FAILED buildSRPMFromSCM/x86_64:FAILED" || !strings.Contains(w.Message, "y") {
			t.Errorf("%s %+v", states(w), w.Build)
		}
		if l := w.Tasks[1].Logs; len(l) != 2 || l[0].Name != "build.log.1" || l[1].Name != "build.log.2" {
			t.Errorf("%+v", l)
		}
		h.until("the leases' files are gone", h.empty)
	})
}

// TestFailures: the package's failure ends the build at once, an infrastructure's is tried again.
func TestFailures(t *testing.T) {
	each(t, func(h *house) {
		p := newPkg("hello", "1%{?dist}", "")
		h.push("hello", p.files)
		x, a := h.join("x"), h.join("a", "aarch64")
		b := x.begin(p, build.Request{Target: "two"})
		bx, ba := x.take(), a.take()
		h.ok(x.log(bx, "build.log", 0, "x.c:1: error: y\n"))
		f := wire.Finish{Fence: bx.Fence, Files: []wire.File{}, Before: []wire.Pkg{}, After: []wire.Pkg{}, Failure: &wire.Failure{Code: "build_failed", Message: "rpmbuild failed", Remedy: "read it",
			Line: "x.c:1: error: y", Root: "/kept/1"}}
		waits := make(chan wire.Orders, 1)
		go func() {
			o, _ := pollWith(t.Context(), a.c, wire.Poll{Version: wire.Version, Arches: a.arches, Channels: a.channels, Slots: 1, Running: slices.Clone(a.held), Wait: 20})
			waits <- o
		}()
		time.Sleep(50 * time.Millisecond)
		h.ok(x.finish(bx, f))
		w := h.whole(b.ID)
		if states(w) != "build/noarch:FAILED buildSRPMFromSCM/x86_64:CLOSED buildArch/x86_64:FAILED buildArch/aarch64:CANCELED" || w.Code != "build_failed" || w.Line != "x.c:1: error: y" || w.Tasks[2].Kept != "/kept/1" {
			t.Errorf("%s %+v", states(w), w.Build)
		}
		// The builder of the other arch hears of it at once.
		select {
		case o := <-waits:
			if !slices.Equal(o.Cancel, []int64{ba.ID}) {
				t.Errorf("%+v", o)
			}
		case <-time.After(3 * time.Second):
			t.Error("the other builder was not told")
		}
		h.refused(a.renew(ba), "lease_lost")
		if got, err := get(t, h.pat, fmt.Sprintf("/api/v1/tasks/%d/logs/build.log", bx.ID)); err != nil || got != "x.c:1: error: y\n" {
			t.Errorf("the log: %q, %v", got, err)
		}
		// A failed build frees its NVR.
		again := x.begin(p, build.Request{})
		if w := h.whole(again.ID); w.State != build.Building || w.NVR != "hello-1.0-1.t" {
			t.Errorf("%+v", w.Build)
		}
		// Long and odd words of a builder are kept in bounds.
		task := x.take()
		f = wire.Finish{Fence: task.Fence, Files: []wire.File{}, Before: []wire.Pkg{}, After: []wire.Pkg{}, Failure: &wire.Failure{Code: strings.Repeat("c", 10_000), Message: "a\x00b" + strings.Repeat("é", 10_000)}}
		h.ok(x.finish(task, f))
		if w := h.whole(again.ID); w.State != build.Failed || len(w.Message) > 4100 || len(w.Code) > 4100 || strings.Contains(w.Message, "\x00") {
			t.Errorf("%d %d", len(w.Message), len(w.Code))
		}
	})
}

func TestCancel(t *testing.T) {
	each(t, func(h *house) {
		p := newPkg("hello", "1%{?dist}", "")
		h.push("hello", p.files)
		x := h.join("x")
		b := h.submit(build.Request{Target: "one", Repo: "rpms/hello"})
		task := x.take()
		h.ok(x.log(task, "build.log", 0, "on the way\n"))
		told := make(chan time.Time, 1)
		go func() {
			o, err := pollWith(t.Context(), x.c, wire.Poll{Version: wire.Version, Arches: x.arches, Channels: x.channels, Slots: 1, Running: slices.Clone(x.held), Wait: 20})
			if err != nil || !slices.Equal(o.Cancel, []int64{task.ID}) {
				t.Errorf("%+v, %v", o, err)
			}
			told <- time.Now()
		}()
		time.Sleep(100 * time.Millisecond)
		cancel := func(reason string) error {
			return h.pat.Call(t.Context(), "POST", fmt.Sprintf("/api/v1/builds/%d/cancel", b.ID), map[string]string{"reason": reason}, nil)
		}
		began := time.Now()
		h.ok(cancel("not today"))
		if d := (<-told).Sub(began); d > 2*time.Second {
			t.Errorf("the builder was told after %s", d)
		}
		n := h.events()
		h.ok(cancel("again")) // no error, no event
		if h.events() != n {
			t.Error("canceling again wrote an event")
		}
		w := h.whole(b.ID)
		if w.State != build.Canceled || w.Code != "canceled" || !strings.Contains(w.Message, "pat: not today") || states(w) != "build/noarch:CANCELED buildSRPMFromSCM/x86_64:CANCELED" {
			t.Errorf("%s %+v", states(w), w.Build)
		}
		h.refused(x.finish(task, result(task, p.srpm(t))), "lease_lost")
		h.until("the lease's files are gone", h.empty)
		x.held = nil
		x.idle()
		// Who is neither owner nor has the right may not.
		mine := h.submit(build.Request{Target: "one", Repo: "rpms/hello"})
		h.ok(h.s.Auth.SetPerson(h.sys, "eve", "packager", ""))
		tok, err := h.s.Auth.NewToken(h.sys, "eve", "", nil, 0)
		h.ok(err)
		h.refused(h.client(tok.Secret).Call(t.Context(), "POST", fmt.Sprintf("/api/v1/builds/%d/cancel", mine.ID), map[string]string{}, nil), "denied")
		h.ok(h.admin.Call(t.Context(), "POST", fmt.Sprintf("/api/v1/builds/%d/cancel", mine.ID), map[string]string{}, nil))
		// What is done cannot be canceled.
		done := x.begin(p, build.Request{Scratch: true})
		h.ok(x.hand(x.take(), p.built(t, "x86_64")...))
		h.refused(h.admin.Call(t.Context(), "POST", fmt.Sprintf("/api/v1/builds/%d/cancel", done.ID), map[string]string{}, nil), "build_done")
	})
}

// TestWake: a submitted task reaches a builder that waits without any tick.
func TestWake(t *testing.T) {
	each(t, func(h *house) {
		p := newPkg("hello", "1%{?dist}", "")
		h.push("hello", p.files)
		x := h.join("x")
		x.idle()
		best := time.Hour
		for range 5 {
			got := make(chan wire.Orders, 1)
			go func() {
				o, _ := pollWith(t.Context(), x.c, wire.Poll{Version: wire.Version, Arches: x.arches, Channels: x.channels, Slots: 1, Running: []wire.Held{}, Wait: 20})
				got <- o
			}()
			time.Sleep(150 * time.Millisecond) // the poll is there and waits
			began := time.Now()
			h.submit(build.Request{Target: "one", Repo: "rpms/hello", Scratch: true})
			o := <-got
			best = min(best, time.Since(began))
			if len(o.Tasks) != 1 {
				t.Fatalf("%+v", o)
			}
			h.ok(x.fail(o.Tasks[0], false, "build_failed"))
		}
		// Polls of other makes come every 5 s: the bound proves that nothing waits for a tick, and
		// leaves room for a busy machine.
		if best > 200*time.Millisecond {
			t.Errorf("submit to hand-over took %s at best", best)
		}
	})
}

// TestPolls: a builder's newest poll is its only one, and what a poll took along into nothing
// comes back.
func TestPolls(t *testing.T) {
	each(t, func(h *house) {
		p := newPkg("hello", "1%{?dist}", "")
		h.push("hello", p.files)
		x := h.join("x")
		over := make(chan error, 1)
		go func() {
			_, err := pollWith(t.Context(), x.c, wire.Poll{Version: wire.Version, Arches: x.arches, Channels: x.channels, Slots: 1, Running: []wire.Held{}, Wait: 50})
			over <- err
		}()
		time.Sleep(100 * time.Millisecond)
		began := time.Now()
		x.idle()
		if err := <-over; fault.Code(err) != "poll_overtaken" || time.Since(began) > 2*time.Second {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		b := h.submit(build.Request{Target: "one", Repo: "rpms/hello"})
		old := x.take()
		x.held = nil // it was started anew, or the answer never reached it
		next := x.take()
		if next.ID != old.ID || next.Fence == old.Fence {
			t.Errorf("%+v after %+v", next, old)
		}
		if w := h.whole(b.ID); w.Tasks[1].Attempt != 2 || w.Tasks[1].Code != "builder_dropped" {
			t.Errorf("%+v", w.Tasks[1])
		}
		h.refused(x.renew(old), "lease_lost")
		h.ok(x.renew(next))
		// A fence that it makes up is no hold.
		x.held = []wire.Held{{ID: next.ID, Fence: next.Fence + 1}}
		o, err := x.poll(0)
		if err != nil || !slices.Equal(o.Cancel, []int64{next.ID}) || len(o.Tasks) != 1 {
			t.Errorf("%+v %v", o, err)
		}
		// Other builders' tasks are not touched by a poll that claims them.
		y := h.join("y")
		y.held = []wire.Held{{ID: o.Tasks[0].ID, Fence: o.Tasks[0].Fence}, {ID: 4711, Fence: 1}}
		if oy, err := y.poll(0); err != nil || !slices.Equal(oy.Cancel, []int64{o.Tasks[0].ID, 4711}) {
			t.Errorf("%+v %v", oy, err)
		}
		h.ok(x.renew(o.Tasks[0]))
		// A builder leaves, and never heard of what it was handed: another may have that at once.
		z := h.join("z")
		b = h.submit(build.Request{Target: "one", Repo: "rpms/hello", Scratch: true})
		if id := z.take().ID; id != h.whole(b.ID).Tasks[1].ID {
			t.Errorf("it took task %d", id)
		}
		o, err = pollWith(t.Context(), z.c, wire.Poll{Version: wire.Version, Arches: z.arches, Channels: z.channels, Slots: 1, Running: []wire.Held{}, Leaving: true})
		if w := h.whole(b.ID); err != nil || len(o.Tasks) != 0 || w.Tasks[1].State != build.TaskFree {
			t.Errorf("%+v %v %+v", o, err, w.Tasks[1])
		}
	})
}

// TestCrowd: however many builders poll, overtake themselves and die, each task is handed to one
// lease at a time and every build ends.
func TestCrowd(t *testing.T) {
	each(t, func(h *house) {
		p := newPkg("hello", "1%{?dist}", "BuildArch: noarch\n")
		h.push("hello", p.files)
		src, bin := p.srpm(t), p.built(t, "noarch")
		const builds, builders = 12, 6
		ids := make([]int64, builds)
		for i := range ids {
			ids[i] = h.submit(build.Request{Target: "one", Repo: "rpms/hello", Scratch: true}).ID
		}
		done := func() bool {
			bs, err := h.s.Build.List(t.Context(), build.Filter{State: build.Building, Scratch: true})
			return err != nil || len(bs) == 0
		}
		var seen sync.Map // "task.fence": handed out before
		var wg sync.WaitGroup
		for i := range builders {
			x := h.join(fmt.Sprintf("b%d", i))
			x.slots = 1 + i%3
			wg.Go(func() {
				for n := 0; !done(); n++ {
					patience := 20 * time.Second
					if n%4 == 3 { // it dies, whatever it was handed
						patience = 20 * time.Millisecond
					}
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					o, err := pollWith(ctx, x.c, wire.Poll{Version: wire.Version, Arches: x.arches, Channels: x.channels, Slots: x.slots, Running: x.held, Wait: 1})
					cancel()
					// A poll that was given up may come in after the next one.
					if err != nil && fault.Code(err) != "canceled" && fault.Code(err) != "poll_overtaken" {
						t.Error(err)
						return
					}
					for _, task := range o.Tasks {
						if _, twice := seen.LoadOrStore(fmt.Sprint(task.ID, ".", task.Fence), true); twice {
							t.Errorf("task %d was handed out twice with fence %d", task.ID, task.Fence)
						}
						files := bin
						if task.Method == wire.MethodSRPM {
							files = []rpmFile{src}
						}
						if err := x.hand(task, files...); err != nil {
							t.Error(err)
							return
						}
					}
				}
			})
		}
		wg.Wait()
		for _, id := range ids {
			w := h.whole(id)
			dropped := slices.ContainsFunc(w.Tasks, func(t build.Task) bool { return t.Attempt == 3 && t.Code == "builder_dropped" })
			if w.State != build.Complete && !dropped {
				t.Errorf("build %d is %s: %s %s", id, w.State, w.Code, w.Message)
			}
		}
	})
}

// TestTwoServers: two servers on one database share one queue.
func TestTwoServers(t *testing.T) {
	database := dbtest.PostgresURL(t)
	h := serve(t, t.TempDir(), database, 2*time.Second)
	h.admin = h.client(h.s.Token)
	h.setUp()
	p := newPkg("hello", "1%{?dist}", "")
	h.push("hello", p.files)
	other := serve(t, t.TempDir(), database, 2*time.Second)
	x, y := h.join("x"), other.join("y")
	b := h.submit(build.Request{Target: "one", Repo: "rpms/hello"})
	got := make(chan wire.Orders, 2)
	for _, z := range []*builder{x, y} {
		go func() {
			o, err := pollWith(t.Context(), z.c, wire.Poll{Version: wire.Version, Arches: z.arches, Channels: z.channels, Slots: 1, Running: []wire.Held{}, Wait: 1})
			if err != nil {
				t.Error(err)
			}
			got <- o
		}()
	}
	one, two := <-got, <-got
	if len(one.Tasks)+len(two.Tasks) != 1 {
		t.Fatalf("%+v %+v", one, two)
	}
	// Whoever has it vanishes: either server finds out, and the other builder gets the task.
	task := append(one.Tasks, two.Tasks...)[0]
	w := h.whole(b.ID)
	taker := y
	if w.Tasks[1].Builder == "y" {
		taker = x
	}
	next := taker.take()
	if next.ID != task.ID || next.Fence <= task.Fence {
		t.Errorf("%+v after %+v", next, task)
	}
	h.refused(x.finish(task, result(task, p.srpm(t))), "lease_lost")
	h.refused(y.finish(task, result(task, p.srpm(t))), "lease_lost")
	// A cancel at one server reaches a builder at the other, if only at its next look.
	h.ok(h.admin.Call(t.Context(), "POST", fmt.Sprintf("/api/v1/builds/%d/cancel", b.ID), map[string]string{}, nil))
	if o, err := taker.poll(8); err != nil || !slices.Equal(o.Cancel, []int64{next.ID}) {
		t.Errorf("%+v, %v", o, err)
	}
}

// TestRestart: a server that stops and starts goes on from its rows, and clears away what ended
// leases left.
func TestRestart(t *testing.T) {
	engines(t, func(t *testing.T, database string) {
		dir := t.TempDir()
		h := serve(t, dir, database, time.Minute)
		h.admin = h.client(h.s.Token)
		h.setUp()
		p := newPkg("hello", "1%{?dist}", "")
		h.push("hello", p.files)
		x := h.join("x")
		b := x.begin(p, build.Request{})
		task := x.take()
		h.ok(x.log(task, "build.log", 0, "before "))
		h.stop()
		for _, left := range []string{"logs/7.1", "incoming/7.1"} {
			h.ok(os.MkdirAll(filepath.Join(dir, "build", left), 0o700))
		}
		h2 := serve(t, dir, database, time.Minute)
		h2.admin, h2.pat = h2.client(h.admin.Token), h2.client(h.pat.Token)
		x.house, x.c = h2, h2.client(x.c.Token)
		if o, err := x.poll(0); err != nil || len(o.Cancel) != 0 {
			t.Errorf("%+v %v", o, err)
		}
		h2.ok(x.renew(task))
		h2.ok(x.log(task, "build.log", 7, "and after\n"))
		h2.ok(x.hand(task, p.built(t, "x86_64")...))
		if w := h2.whole(b.ID); w.State != build.Complete || w.Tasks[2].Attempt != 1 {
			t.Errorf("%s %+v", states(w), w.Build)
		}
		if got, err := get(t, h2.pat, fmt.Sprintf("/api/v1/tasks/%d/logs/build.log", task.ID)); err != nil || got != "before and after\n" {
			t.Errorf("%q %v", got, err)
		}
		h2.until("what was left is gone", h2.empty)
	})
}

// TestFollow: a log that is followed while its task is lost and tried again shows both attempts
// and ends with the task.
func TestFollow(t *testing.T) {
	each(t, func(h *house) {
		p := newPkg("hello", "1%{?dist}", "")
		h.push("hello", p.files)
		x := h.join("x")
		h.submit(build.Request{Target: "one", Repo: "rpms/hello"})
		task := x.take()
		got := make(chan string, 1)
		go func() {
			s, err := get(t, h.pat, fmt.Sprintf("/api/v1/tasks/%d/logs/build.log?follow=1", task.ID))
			if err != nil {
				t.Error(err)
			}
			got <- s
		}()
		h.ok(x.log(task, "build.log", 0, "first attempt\n"))
		time.Sleep(100 * time.Millisecond)
		h.ok(x.fail(task, true, "disk_low"))
		task = x.take()
		h.ok(x.log(task, "build.log", 0, "second\n"))
		time.Sleep(100 * time.Millisecond)
		h.ok(x.log(task, "build.log", 7, "end\n"))
		h.ok(x.fail(task, false, "build_failed"))
		select {
		case s := <-got:
			if s != "first attempt\nsecond\nend\n" {
				t.Errorf("%q", s)
			}
		case <-time.After(5 * time.Second):
			t.Error("the log goes on after its task")
		}
	})
}
