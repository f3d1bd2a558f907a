package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"drover/internal/build/wire"
	"drover/internal/fault"
	"drover/internal/sandbox"
	"drover/internal/web"

	"golang.org/x/sys/unix"
)

// Config is what a Worker needs.
type Config struct {
	Client   *web.Client // with a builder's token
	Dir      string      // layers, caches, kept roots
	CA       string      // file of the server's CA for dnf, "" for the system's
	Arches   []string    // default: the host's
	Channels []string    // default: "default"
	Slots    int         // default: number of CPUs
	Cache    int64       // bytes of buildroot layers that are kept; default: 20 GiB
	Log      *slog.Logger
	Now      func() time.Time
}

// Worker runs tasks.
type Worker struct {
	Config
	box *sandbox.Sandbox
	dnf sync.Mutex // held around each dnf: they share a cache and run in pid namespaces of their own, where its lock files mean nothing

	share int64 // bytes of disk that a slot may fill; set by Run

	mu      sync.Mutex // guards running, making and using
	running map[int64]*run
	making  map[string]*sync.Mutex // one a layer: the first task makes it, others wait
	using   map[string]int         // layers by name: how many tasks use it
}

// run is a task that is held.
type run struct {
	wire.Held
	cancel context.CancelCauseFunc
}

// HostArch is the host's arch as rpm names it.
func HostArch() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}

// New makes a Worker.
func New(c Config) (*Worker, error) {
	if len(c.Arches) == 0 {
		c.Arches = []string{HostArch()}
	}
	if len(c.Channels) == 0 {
		c.Channels = []string{"default"}
	}
	if c.Slots <= 0 {
		c.Slots = runtime.NumCPU()
	}
	if c.Cache <= 0 {
		c.Cache = 20 << 30
	}
	for _, d := range []string{"layers", "sizes", "index", "failed", "dnf", "home", "tmp"} {
		if err := os.MkdirAll(filepath.Join(c.Dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	// Debian's rpm keeps a root's database where no other rpm looks for it: below the home. The
	// others know the place that the roots of their release have it in.
	macros := ""
	eval := exec.CommandContext(context.Background(), "rpm", "--eval", "%{_dbpath}")
	eval.Env = append(os.Environ(), "HOME=/nonexistent") // as rpm came, not as somebody has set it up
	if at, err := eval.Output(); err != nil || strings.Contains(string(at), ".rpmdb") {
		macros = "%_dbpath /var/lib/rpm\n%__gpg /usr/bin/gpg\n"
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "home", ".rpmmacros"), []byte(macros), 0o644); err != nil {
		return nil, err
	}
	box, err := sandbox.New(sandbox.Config{StateDir: filepath.Join(c.Dir, "roots"), Log: c.Log, Now: c.Now})
	if err != nil {
		return nil, err
	}
	return &Worker{Config: c, box: box, running: map[int64]*run{}, making: map[string]*sync.Mutex{}, using: map[string]int{}}, nil
}

// Why a task's context ends early.
func errLost() error { return fault.Conflict("lease_lost", "the task is not ours any more") }
func errStopping() error {
	return fault.Unavailable("builder_stopping", "the builder is being stopped")
}

// alone makes sure that no other builder works in the directory, and clears away what one that
// was killed has left there.
func (w *Worker) alone(ctx context.Context) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(w.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fault.Conflict("builder_running", "another builder works in %s", w.Dir).Wrap(err).Fix("give this one a directory of its own with --dir")
	}
	err = w.box.Reap(ctx)
	for _, pattern := range []string{"tmp/*", "dnf/task-*.conf", "failed/*.new", "layers/*.old"} {
		names, _ := filepath.Glob(filepath.Join(w.Dir, pattern)) // the pattern is well formed
		for _, n := range names {
			err = errors.Join(err, os.RemoveAll(n))
		}
	}
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	return lock, nil
}

// Run takes and runs tasks until ctx ends; then it gives back what it holds and returns.
func (w *Worker) Run(ctx context.Context) error {
	lock, err := w.alone(ctx)
	if err != nil && ctx.Err() != nil {
		return nil // it was stopped before it had begun
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	w.evict()
	if w.share, err = diskShare(w.Dir, w.Slots); err != nil {
		return err
	}
	if p := w.box.Probe(ctx).Problem; p != "" && ctx.Err() == nil {
		return fault.Unavailable("sandbox", "this machine cannot run builds: %s", p).Fix("run `drover doctor`")
	}
	host, _ := os.Hostname()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	wait := 500 * time.Millisecond
	for ctx.Err() == nil {
		// A poll is never given up for a task that ends: the server knows of the free slot as soon
		// as it knows of the end, and a task that it hands to a poll given up would be lost to us.
		var o wire.Orders
		if err := w.Client.Call(ctx, "POST", wire.PathPoll, w.poll(host), &o); err != nil {
			if ctx.Err() != nil {
				continue
			}
			if k := fault.As(err).Kind; k == fault.KindUnauthorized || k == fault.KindDenied || k == fault.KindInvalid {
				return err
			}
			w.Log.Warn("the server hands out no work", "err", err, "again", wait)
			select {
			case <-ctx.Done():
			case <-time.After(wait/2 + rand.N(wait)): //nolint:gosec // jitter
			}
			wait = min(2*wait, 10*time.Second)
			continue
		}
		wait = 500 * time.Millisecond
		w.mu.Lock()
		for _, id := range o.Cancel {
			if r := w.running[id]; r != nil {
				r.cancel(errLost())
				delete(w.running, id)
			}
		}
		for _, t := range o.Tasks {
			tctx, stop := context.WithCancelCause(context.WithoutCancel(ctx))
			r := &run{Held: wire.Held{ID: t.ID, Fence: t.Fence}, cancel: stop}
			w.running[t.ID] = r
			tasks.Go(func() {
				end := context.AfterFunc(ctx, func() { stop(errStopping()) })
				defer end()
				w.do(tctx, t)
				stop(nil)
				w.mu.Lock()
				if w.running[t.ID] == r { // else the same task was handed to us again
					delete(w.running, t.ID)
				}
				w.mu.Unlock()
			})
		}
		w.mu.Unlock()
	}
	// The poll that was just given up may have been handed a task: say that we have not got it, or
	// it would wait for its lease to run out.
	p := w.poll(host)
	p.Leaving = true
	lctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := w.Client.Call(lctx, "POST", wire.PathPoll, p, nil); err != nil {
		w.Log.Warn("the server was not told that we leave", "err", err)
	}
	return nil
}

// poll is what the builder says of itself now.
func (w *Worker) poll(host string) wire.Poll {
	p := wire.Poll{Version: wire.Version, Arches: w.Arches, Channels: w.Channels, Slots: w.Slots, Running: []wire.Held{}, Host: host, Wait: 50}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.running {
		p.Running = append(p.Running, r.Held)
	}
	return p
}

// do runs a task to its end and tells the server.
func (w *Worker) do(ctx context.Context, t wire.Task) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	renewed := make(chan struct{})
	go func() { defer close(renewed); w.renew(ctx, cancel, t) }()
	w.Log.Info("task", "id", t.ID, "method", t.Method, "name", t.Name, "arch", t.Arch)
	var f wire.Finish
	var j *job
	logs, err := newLogs(w, t)
	for tries := 0; ; tries++ {
		f = wire.Finish{Fence: t.Fence, Files: []wire.File{}, Before: []wire.Pkg{}, After: []wire.Pkg{}}
		j = &job{Worker: w, Task: t, logs: logs}
		if err == nil {
			err = j.execute(ctx, &f)
		}
		// A server that is started anew is nobody's failure: the task goes on when it is back.
		if tries == 4 || !cutOff(err) || !w.back(ctx, t) {
			break
		}
		logs.say("begins again, the server was away: %v", err)
		j.clear()
		err = nil
	}
	defer j.clear()
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	j.logs.close()
	if err != nil {
		f.Failure = j.failure(err)
		f.Files, f.Before, f.After = []wire.File{}, []wire.Pkg{}, []wire.Pkg{}
		w.Log.Warn("task failed", "id", t.ID, "code", f.Failure.Code, "message", f.Failure.Message)
	}
	w.finish(ctx, t, f, err)
	cancel(nil)
	<-renewed
}

// cutOff tells whether a task came to an end because the server was not there.
func cutOff(err error) bool {
	return slices.Contains([]string{"server_away", "canceled", "answer_cut", "input_cut", "tree_cut", "repo_away"}, fault.Code(err))
}

// back waits until the server answers, for as long as a start of it may take. It is false when
// the task is not ours any more.
func (w *Worker) back(ctx context.Context, t wire.Task) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		err := w.Client.Call(ctx, "POST", fmt.Sprintf(wire.PathRenew, t.ID), wire.Renew{Fence: t.Fence}, nil)
		if err == nil {
			return true
		}
		if !cutOff(err) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// finish tells the server how a task ended, until it has heard it or the lease is gone.
func (w *Worker) finish(ctx context.Context, t wire.Task, f wire.Finish, err error) {
	if fault.Code(err) == "lease_lost" {
		return // the server knows more than we do
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	if fault.Code(err) == "builder_stopping" {
		ctx, cancel = context.WithTimeout(ctx, 5*time.Second)
	}
	defer cancel()
	for n := range 20 {
		err := w.Client.Call(ctx, "POST", fmt.Sprintf(wire.PathFinish, t.ID), f, nil)
		if err == nil {
			return
		}
		if k := fault.As(err).Kind; k != fault.KindUnavailable && k != fault.KindInternal || ctx.Err() != nil {
			w.Log.Warn("the end of a task was not taken", "id", t.ID, "err", err)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(n+1) * 300 * time.Millisecond):
		}
	}
}

// renew keeps the lease; when the server refuses, the task ends at once.
func (w *Worker) renew(ctx context.Context, cancel context.CancelCauseFunc, t wire.Task) {
	tick := time.NewTicker(time.Duration(max(t.Lease, 3)) * time.Second / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := w.Client.Call(ctx, "POST", fmt.Sprintf(wire.PathRenew, t.ID), wire.Renew{Fence: t.Fence}, nil)
		switch k := fault.As(err); {
		case err == nil:
		case k.Kind == fault.KindConflict, k.Kind == fault.KindNotFound, k.Kind == fault.KindDenied, k.Kind == fault.KindUnauthorized:
			cancel(errLost())
			return
		}
	}
}
