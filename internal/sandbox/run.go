package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/fault"
)

// hostPath is where the host's own tools are found.
const hostPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Spec is one command in a root.
type Spec struct {
	Args     []string      // Args[0] is looked up in PATH; it runs as process 1: wrap what leaves orphans in a shell, which reaps them
	Env      []string      // all of it; PATH, and HOME=/, are added when missing
	Cwd      string        // default /
	UID, GID uint32        // has no capability in any case; 0 is possible only with a user namespace
	Groups   []uint32      // supplementary
	Hostname string        // default "drover"
	Memory   int64         // bytes, with page cache and /dev/shm; reaching it ends the run; required
	Pids     int           // processes and threads; beyond it fork fails with EAGAIN; required
	Timeout  time.Duration // required
	Binds    []Bind        // directories or files of the host
	Stdin    io.Reader     // nil: empty
	Stdout   io.Writer     // nil: discarded; a pipe stands between, never the file itself
	Stderr   io.Writer     // the same value as Stdout keeps the order of lines; nil: discarded
	TTY      *os.File      // a person's terminal, instead of Stdin, Stdout and Stderr
}

// Bind shows a file or directory of the host in the root, read-only: what a run
// writes is bounded only in the root itself.
type Bind struct {
	Host string // absolute, exists, no symlink in any part of it
	Path string // absolute in the root; symlinks in the root are followed within the root only
}

// Reason says why a run was ended or failed, when it was not the command's own
// doing.
type Reason string

// The reasons.
const (
	ReasonNone    Reason = ""        // the command ended by itself
	ReasonOOM     Reason = "oom"     // it reached the memory limit
	ReasonTimeout Reason = "timeout" // it reached the time limit
	ReasonPids    Reason = "pids"    // it failed, and a fork was refused before
	ReasonDisk    Reason = "disk"    // it failed or was ended with its disk full
)

// Result is how a command ended.
type Result struct {
	ExitCode int            // 128 + signal when killed by a signal
	Signal   syscall.Signal // the signal that ExitCode tells, or 0
	Reason   Reason
	Usage    Usage
}

// Usage is what a run took.
type Usage struct {
	Wall       time.Duration
	CPU        time.Duration
	MemoryPeak int64 // bytes; 0 where the host does not count it
	PidsHit    bool  // a fork was refused
}

// Err is nil when the command succeeded, and else a failure with one of the
// codes memory_limit, time_limit, disk_limit, pids_limit, command_failed.
func (r Result) Err() error {
	switch r.Reason {
	case ReasonOOM:
		return fault.TooLarge("memory_limit", "the command used all the memory it may have and was ended").Fix("raise the memory limit or run fewer jobs at once")
	case ReasonTimeout:
		return fault.TooLarge("time_limit", "the command ran for %s, which is all the time it may have, and was ended", r.Usage.Wall.Round(time.Second)).Fix("raise the time limit")
	case ReasonDisk:
		return fault.TooLarge("disk_limit", "the command filled the disk it may use (exit status %d)", r.ExitCode).Fix("raise the disk limit")
	case ReasonPids:
		return fault.TooLarge("pids_limit", "the command started more processes than it may have (exit status %d)", r.ExitCode).Fix("raise the process limit or run fewer jobs at once")
	}
	if r.ExitCode == 0 {
		return nil
	}
	if r.Signal != 0 {
		return fault.Invalid("command_failed", "the command was killed by %s", unix.SignalName(r.Signal))
	}
	return fault.Invalid("command_failed", "the command failed with exit status %d", r.ExitCode)
}

// Run runs a command in the root, without network and privileges, and waits until
// it and everything it started is gone. The end of ctx kills it. A command that
// fails is no error: look at the Result.
//
// Errors: sandbox_spec, command_not_found (invalid), sandbox_closed (conflict),
// sandbox_start (unavailable), or ctx's.
func (r *Root) Run(ctx context.Context, spec Spec) (Result, error) {
	rep, err := r.s.ready(ctx)
	if err != nil {
		return Result{}, err
	}
	return r.run(ctx, rep, spec)
}

func (r *Root) run(ctx context.Context, rep Report, spec Spec) (Result, error) {
	if err := spec.check(rep); err != nil {
		return Result{}, err
	}
	name, err := r.enter()
	if err != nil {
		return Result{}, err
	}
	defer r.runs.Done()

	dir := filepath.Join(r.dir, "run", name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Result{}, startFailed(err)
	}
	id := r.id + "-" + name
	g := &group{h: rep.cgroup, name: id}
	if rep.cgroup.version != 0 {
		if g, err = rep.cgroup.newGroup(id, spec.Memory, spec.Pids); err != nil {
			return Result{}, startFailed(err)
		}
	}
	res, err := r.contain(ctx, rep, spec, g, dir, id)
	if rerr := g.remove(); rerr != nil && err == nil {
		err = startFailed(rerr)
	}
	if rerr := os.RemoveAll(dir); rerr != nil && err == nil {
		err = startFailed(rerr)
	}
	return res, err
}

// contain writes the bundle, runs it and judges how it ended.
func (r *Root) contain(ctx context.Context, rep Report, spec Spec, g *group, dir, id string) (Result, error) {
	bundle, err := json.Marshal(r.bundle(rep, spec, id))
	if err != nil {
		return Result{}, startFailed(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), bundle, 0o600); err != nil {
		return Result{}, startFailed(err)
	}
	log := filepath.Join(dir, "log")
	// The shell becomes the runtime, as process 1 of a pid namespace of its own.
	// Its /proc must be that namespace's. crun does no groups: it is put into
	// ours. crun also refuses a hybrid set-up, which it gets to see as version 2;
	// runc moves the container below ours.
	script := `set -e
mount --make-rslave /
mount -t proc -o nosuid,nodev,noexec proc /proc
kind=$1; shift
while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs"; shift; done
shift
[ "$kind" = runc ] || mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup 2>/dev/null || :
exec "$@"`
	args := []string{"-c", script, "sandbox"}
	runtimeArgs := []string{rep.Runtime, "--root=" + filepath.Join(dir, "state"), "--log=" + log, "--log-format=json"}
	if isCrun(rep.Runtime) {
		args = append(append(args, "crun"), g.controllers()...)
		runtimeArgs = append(runtimeArgs, "--cgroup-manager=disabled")
	} else {
		args = append(args, "runc")
	}
	args = append(append(args, "--"), runtimeArgs...)
	args = append(args, "run", "--bundle="+dir, id)

	cmd := exec.Command("/bin/sh", args...) //nolint:noctx // ended by its namespace
	cmd.Env = []string{"PATH=" + hostPath, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	if spec.TTY != nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = spec.TTY, spec.TTY, spec.TTY
	} else {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = pipedIn(spec.Stdin), piped(spec.Stdout), piped(spec.Stderr)
	}

	w := &watch{root: r, g: g, rep: rep, memory: spec.Memory, pids: spec.Pids}
	start := r.s.cfg.Now()
	ended, err := r.supervise(ctx, cmd, spec.Timeout, w)
	if err != nil {
		return Result{}, err
	}
	var res Result
	res.ExitCode = ended.ExitCode()
	if ws, ok := ended.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		res.ExitCode = 128 + int(ws.Signal())
	}
	if res.ExitCode > 128 && res.ExitCode < 128+65 {
		res.Signal = syscall.Signal(res.ExitCode - 128)
	}
	u := usage{cpu: ended.UserTime() + ended.SystemTime()}
	if rep.cgroup.version != 0 {
		u = g.usage()
	}
	res.Usage = Usage{Wall: r.s.cfg.Now().Sub(start), CPU: u.cpu, MemoryPeak: u.peak, PidsHit: u.pidsHit}
	res.Reason = w.reason(res.ExitCode, u)
	if res.ExitCode != 0 && res.Reason == ReasonNone {
		if why := runtimeError(log, spec.Args[0]); why != nil {
			return Result{}, why
		}
		if !started(dir) {
			return Result{}, startFailed(fmt.Errorf("%s ended with %d before it made a container; its output says why", rep.Runtime, res.ExitCode))
		}
	}
	return res, nil
}

// supervise starts cmd, whose process is the first of a pid namespace, and waits
// for its end; ctx, the root's end, the timeout and the watch kill it, and with it
// the whole namespace.
func (r *Root) supervise(ctx context.Context, cmd *exec.Cmd, timeout time.Duration, w *watch) (*os.ProcessState, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.WaitDelay = 10 * time.Second
	startErr, done := make(chan error, 1), make(chan error, 1)
	go func() {
		// The death signal comes when the starting thread ends: keep it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		startErr <- err
		if err == nil {
			done <- cmd.Wait()
		}
	}()
	if err := <-startErr; err != nil {
		return nil, startFailed(err)
	}
	var timer <-chan time.Time
	if timeout > 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		timer = t.C
	}
	stopWatch := w.start(cmd.Process.Pid)
	defer stopWatch()

	var ctxErr error
	for {
		select {
		case err := <-done:
			stopWatch()
			if ctxErr != nil {
				return nil, ctxErr
			}
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) && cmd.ProcessState == nil {
				return nil, startFailed(err)
			}
			if err != nil && !errors.As(err, &exit) {
				return nil, fault.Unavailable("sandbox_output", "sandbox: the command's output could not be taken").Wrap(err)
			}
			return cmd.ProcessState, nil
		case <-ctx.Done():
			ctxErr = ctx.Err()
			ctx = context.WithoutCancel(ctx)
		case <-r.ctx.Done():
			if ctxErr == nil {
				ctxErr = fault.Conflict("sandbox_closed", "sandbox: the root was closed while a command ran in it")
			}
			_ = cmd.Process.Kill()
			err := <-done
			_ = err // the root's end is the error
			return nil, ctxErr
		case <-timer:
			timer = nil
			w.say(ReasonTimeout)
		case <-w.kill:
			w.kill = nil
		}
		_ = cmd.Process.Kill()
	}
}

// enter counts a run in and names it.
func (r *Root) enter() (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return "", fault.Conflict("sandbox_closed", "sandbox: the root is closed")
	}
	r.serial++
	r.runs.Add(1)
	return fmt.Sprint(r.serial), nil
}

func (spec *Spec) check(rep Report) error {
	bad := func(format string, args ...any) error {
		return fault.Invalid("sandbox_spec", "sandbox: "+format, args...)
	}
	switch {
	case len(spec.Args) == 0 || spec.Args[0] == "":
		return bad("no command")
	case spec.Memory < 8<<20:
		return bad("memory limit %d, want at least 8 MiB", spec.Memory)
	case spec.Pids < 2:
		return bad("process limit %d, want at least 2", spec.Pids)
	case spec.Timeout <= 0:
		return bad("no time limit")
	case spec.UID == 0 && !rep.UserNS:
		return bad("user 0 needs user namespaces, which this host does not allow")
	case spec.Cwd != "" && !filepath.IsAbs(spec.Cwd):
		return bad("working directory %q is not absolute", spec.Cwd)
	}
	for _, s := range append(append([]string{spec.Hostname, spec.Cwd}, spec.Args...), spec.Env...) {
		if strings.ContainsRune(s, 0) {
			return bad("%q contains a NUL", s)
		}
	}
	for _, e := range spec.Env {
		if k, _, ok := strings.Cut(e, "="); !ok || k == "" {
			return bad("environment entry %q is not NAME=value", e)
		}
	}
	for _, b := range spec.Binds {
		if !filepath.IsAbs(b.Host) || filepath.Clean(b.Host) != b.Host || !filepath.IsAbs(b.Path) || filepath.Clean(b.Path) != b.Path || b.Path == "/" {
			return bad("bind %q on %q: both must be clean absolute paths", b.Host, b.Path)
		}
		for _, own := range []string{"/proc", "/sys", "/dev"} {
			if b.Path == own || strings.HasPrefix(b.Path, own+"/") {
				return bad("bind on %s, which belongs to the sandbox", b.Path)
			}
		}
		real, err := filepath.EvalSymlinks(b.Host)
		if err != nil {
			return fault.Invalid("sandbox_spec", "sandbox: bind %s", b.Host).Wrap(err)
		}
		if real != b.Host {
			return bad("bind %s leads through a symlink to %s", b.Host, real)
		}
	}
	return nil
}

func startFailed(err error) error {
	return fault.Unavailable("sandbox_start", "sandbox: the command could not be started").Wrap(err)
}

func isCrun(path string) bool { return strings.HasPrefix(filepath.Base(path), "crun") }

// started tells whether the runtime got as far as keeping state of a container.
func started(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "state"))
	return err == nil
}

// runtimeError reads from the runtime's log why a command could not be started;
// nil when it was.
func runtimeError(log, name string) error {
	b, err := os.ReadFile(log)
	if err != nil {
		return nil //nolint:nilerr // a runtime that says nothing has started it
	}
	var last string
	dec := json.NewDecoder(bytes.NewReader(b))
	for {
		var line struct{ Level, Msg string }
		if dec.Decode(&line) != nil {
			break
		}
		if line.Level == "error" || line.Level == "fatal" || line.Level == "" {
			last = line.Msg
		}
	}
	switch {
	case last == "":
		return nil
	case strings.Contains(last, "executable file") && strings.Contains(last, "not found"), strings.Contains(last, "exec") && strings.Contains(last, "no such file"):
		return fault.Invalid("command_not_found", "sandbox: the root has no command %q: %s", name, last)
	}
	return startFailed(errors.New(last))
}

// piped hides what w is: a runtime gives the files it gets to the command's user,
// so it must only ever get pipes. Equal writers stay equal.
func piped(w io.Writer) io.Writer {
	if w == nil {
		w = io.Discard
	}
	return pipe{w}
}

type pipe struct{ io.Writer }

// pipedIn is piped for input; never /dev/null.
func pipedIn(r io.Reader) io.Reader {
	if r == nil {
		r = strings.NewReader("")
	}
	return struct{ io.Reader }{r}
}
