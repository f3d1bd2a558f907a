package agent

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"drover/internal/agent/module"
	"drover/internal/fault"
	"drover/internal/job/wire"
)

func TestCron(t *testing.T) {
	at := func(s string) time.Time {
		x, err := time.ParseInLocation("2006-01-02 15:04", s, time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	for _, c := range []struct{ cron, after, want string }{
		{"* * * * *", "2026-11-28 10:00", "2026-11-28 10:01"}, {"30 3 * * *", "2026-11-28 10:00", "2026-11-29 03:30"}, {"0 0 1 * *", "2026-11-28 10:00", "2026-12-01 00:00"},
		{"*/15 * * * *", "2026-11-28 10:46", "2026-11-28 11:00"}, {"0 9-17/4 * * 1-5", "2026-11-28 10:00", "2026-11-30 09:00"}, {"0 0 29 2 *", "2026-11-28 10:00", "2028-02-29 00:00"},
		{"0 0 * * 7", "2026-11-28 10:00", "2026-11-29 00:00"}, {"0 0 13 * 5", "2026-11-28 10:00", "2026-12-04 00:00"}, {"5,10 0 31 12 *", "2026-11-28 10:00", "2026-12-31 00:05"},
	} {
		p, err := parseCron(c.cron)
		if err != nil {
			t.Errorf("%q: %v", c.cron, err)
			continue
		}
		if got := p.next(at(c.after)); !got.Equal(at(c.want)) {
			t.Errorf("%q after %s: %s, want %s", c.cron, c.after, got, c.want)
		}
	}
	for _, bad := range []string{"", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "*/0 * * * *", "5-1 * * * *", "x * * * *", "1,,2 * * * *"} {
		if _, err := parseCron(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if p, err := parseCron("0 0 31 2 *"); err != nil || !p.next(at("2026-01-01 00:00")).IsZero() {
		t.Error("a day that never comes")
	}
}

func TestScheduledCheck(t *testing.T) {
	for want, s := range map[string]Scheduled{"": {Function: "test.ping", Minutes: 5}, "schedule": {Function: "test.ping"}} {
		if got := fault.Code(s.Check("x")); got != want {
			t.Errorf("%+v: %q", s, got)
		}
	}
	if (Scheduled{Minutes: 1}).Check("x") == nil || (Scheduled{Function: "a.b", Seconds: -1}).Check("x") == nil || (Scheduled{Function: "a.b", Cron: "x"}).Check("x") == nil {
		t.Error("a bad schedule is taken")
	}
}

// What is scheduled is not cut when the agent is stopped, and the agent waits for it.
func TestScheduledOutlivesTheStop(t *testing.T) {
	began, goOn := make(chan struct{}), make(chan struct{})
	var cut error
	reg := module.NewRegistry([]module.Function{{Name: "t.slow", Doc: "Waits.", Run: func(ctx context.Context, _ *module.Call) (any, error) {
		close(began)
		<-goOn
		cut = ctx.Err()
		return true, nil
	}}})
	a, err := New(Config{URL: "https://127.0.0.1:1", Name: "h", Registry: reg, Log: slog.New(slog.DiscardHandler), Policy: func() Policy { return Policy{} },
		Collect:  func(context.Context) (Inventory, error) { return Inventory{}, nil },
		Schedule: map[string]Scheduled{"x": {Function: "t.slow", Start: true, Days: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- a.Run(ctx) }()
	<-began
	stop()
	select {
	case <-over:
		t.Error("the agent did not wait")
	case <-time.After(100 * time.Millisecond):
	}
	close(goOn)
	if err := <-over; err != nil || cut != nil {
		t.Errorf("%v %v", err, cut)
	}
}

func TestWatchFiles(t *testing.T) {
	dir := t.TempDir()
	watched, other, sub := filepath.Join(dir, "watched"), filepath.Join(dir, "other"), filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	seen := map[string]string{}
	ended := make(chan error, 1)
	go func() {
		ended <- watchFiles(ctx, []string{watched, sub}, func(name, change string) { mu.Lock(); seen[name] += change + " "; mu.Unlock() })
	}()
	wait := func(name, want string) {
		t.Helper()
		for range 200 {
			mu.Lock()
			got := seen[name]
			mu.Unlock()
			if got == want {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("%s: %q, want %q", filepath.Base(name), seen[name], want)
	}
	time.Sleep(50 * time.Millisecond)
	for _, f := range []string{watched, other, filepath.Join(sub, "x")} {
		if err := os.WriteFile(f, []byte("1"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	wait(watched, "made changed ")
	wait(filepath.Join(sub, "x"), "made changed ")
	if err := os.Rename(other, watched); err != nil { // as editors do
		t.Fatal(err)
	}
	wait(watched, "made changed made ")
	if err := os.Remove(watched); err != nil {
		t.Fatal(err)
	}
	wait(watched, "made changed made removed ")
	if seen[other] != "" {
		t.Errorf("a file that nobody asked about: %q", seen[other])
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := watchFiles(t.Context(), []string{"/no/such/dir/x"}, nil); err == nil {
		t.Error("nothing can be watched, and nobody says so")
	}
}

// A command that was begun and has no result when the agent starts again did not end well; results
// that nobody acknowledged are still there; nothing runs twice.
func TestJournalOutlivesTheAgent(t *testing.T) {
	dir := t.TempDir()
	j, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Minute).UnixMicro()
	for _, id := range []string{"20261128000000000001", "20261128000000000002", "20261128000000000003"} {
		if before, err := j.begin(wire.Command{Job: id, Fun: "a.b", Expires: later}, false); before != nil || err != nil {
			t.Fatal(before, err)
		}
	}
	if _, err := j.begin(wire.Command{Job: "20261128000000000004", Fun: "a.read", Expires: later}, true); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"20261128000000000002", "20261128000000000003"} {
		if err := j.done(wire.Result{Job: id, State: wire.Answered, Ack: true}); err != nil {
			t.Fatal(err)
		}
	}
	j.acked([]string{"20261128000000000003", "nonsense"})
	if err := os.WriteFile(filepath.Join(dir, "jobs", "20261128000000000005.json"), []byte("{cut"), 0o600); err != nil {
		t.Fatal(err)
	}
	if j, err = openJournal(dir); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, r := range j.unacked(true) {
		got[r.Job[16:]] = r.State + r.Code
	}
	if len(got) != 3 || got["0001"] != "failedagent_ended" || got["0002"] != "answered" || got["0005"] != "failedagent_ended" {
		t.Errorf("%v", got)
	}
	for _, id := range []string{"20261128000000000001", "20261128000000000002", "20261128000000000003", "20261128000000000005"} {
		if before, err := j.begin(wire.Command{Job: id, Expires: later}, false); before == nil || err != nil {
			t.Errorf("%s runs again: %v", id, err)
		}
	}
	j.sweep(time.Now().UnixMicro())
	if len(j.known) != 4 {
		t.Errorf("%d are known after a sweep", len(j.known))
	}
	for _, e := range j.known {
		e.Came = time.Now().Add(-2 * keepKnown)
	}
	j.sweep(time.Now().Add(time.Hour).UnixMicro())
	if len(j.known) != 3 { // those that the server has not acknowledged stay
		t.Errorf("%d are known after a day: %v", len(j.known), j.known)
	}
}

func TestPolicy(t *testing.T) {
	for _, c := range []struct {
		p    Policy
		fun  string
		want string
	}{
		{Policy{}, "cmd.run", ""}, {Policy{Forbid: []string{"cmd.*"}}, "cmd.run", "policy_forbidden"}, {Policy{Only: []string{"test.*"}}, "pkg.install", "policy_forbidden"}, {Policy{Only: []string{"test.*"}}, "test.ping", ""},
		{Policy{Blackout: true}, "pkg.install", "policy_blackout"}, {Policy{Blackout: true}, "test.ping", ""}, {Policy{Blackout: true, Allow: []string{"service.*"}}, "service.status", ""}, {Policy{Blackout: true, Forbid: []string{"*"}}, "saltutil.kill_job", ""},
	} {
		if got := fault.Code(c.p.check(c.fun)); got != c.want {
			t.Errorf("%+v %s: %q", c.p, c.fun, got)
		}
	}
}

func TestInventoryDeltas(t *testing.T) {
	old := Inventory{Items: map[string]map[string]string{"fact": {"a": "1", "b": "2"}, "port": {"tcp/22": "sshd"}}, Packages: []string{"x-1-1.noarch", "y-1-1.noarch"}}
	now := Inventory{Items: map[string]map[string]string{"fact": {"a": "1", "b": "3", "c": "4"}, "port": {}}, Packages: []string{"x-2-1.noarch", "y-1-1.noarch"}}
	r := now.since(old)
	if len(r.Set) != 1 || len(r.Set["fact"]) != 2 || r.Set["fact"]["b"] != "3" || len(r.Gone["port"]) != 1 || len(r.Add) != 1 || r.Add[0] != "x-2-1.noarch" || len(r.Remove) != 1 || r.Base != old.digest() || r.Digest != now.digest() || r.Base == r.Digest {
		t.Errorf("%+v", r)
	}
}
