package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/durable"
	"drover/internal/fault"
)

// Config says where a Sandbox keeps its roots and what it may use.
type Config struct {
	Runtime  string           // "crun", "runc" or a path; empty: the first that works
	StateDir string           // absolute; made when missing, mode 0700; layers to be committed must be on its file system
	Log      *slog.Logger     // required
	Now      func() time.Time // required
}

// Sandbox makes roots and runs commands in them. Its methods may be called by
// several goroutines at once.
type Sandbox struct {
	cfg Config

	mu       sync.Mutex // guards report and proved
	report   Report
	proved   bool
	reserve  sync.Mutex // held while a root's disk is checked and reserved
	launches sync.Mutex // held while a name for a new root is taken
}

// A Limit says which mechanism enforces a bound; "" means none does.
type Limit string

// The mechanisms.
const (
	ByCgroup1   Limit = "cgroup v1"
	ByCgroup2   Limit = "cgroup v2"
	ByRlimit    Limit = "rlimit in the user namespace"
	ByWatch     Limit = "watching"
	ByImage     Limit = "file system image"
	ByNamespace Limit = "pid namespace"
)

// A Trial is one attempt at running a container while probing.
type Trial struct {
	Runtime string `json:"runtime"` // path
	UserNS  bool   `json:"user_namespace"`
	Error   string `json:"error,omitempty"` // empty: it works
}

// Report is what Probe found. Problem is empty when builds can run.
type Report struct {
	Runtime string  `json:"runtime"` // path of the runtime in use
	UserNS  bool    `json:"user_namespace"`
	Memory  Limit   `json:"memory"`
	Pids    Limit   `json:"pids"`
	Time    Limit   `json:"time"`
	Disk    Limit   `json:"disk"`
	Trials  []Trial `json:"trials"`
	Problem string  `json:"problem,omitempty"`

	cgroup hierarchy
}

// New checks the configuration and makes the state directory. It runs nothing:
// the first use, or Probe, finds the runtime.
func New(cfg Config) (*Sandbox, error) {
	if cfg.Log == nil || cfg.Now == nil {
		return nil, fault.Internal("sandbox_config", "sandbox: Log and Now are required")
	}
	if !filepath.IsAbs(cfg.StateDir) || strings.ContainsAny(cfg.StateDir, ":,\\\n\"") {
		return nil, fault.Invalid("sandbox_state_dir", "sandbox: the state directory %q must be absolute and without : , \\ or quotes", cfg.StateDir)
	}
	if os.Geteuid() != 0 {
		return nil, fault.Denied("sandbox_root", "sandbox: mounting roots needs root").Fix("run the builder as root")
	}
	if err := os.MkdirAll(filepath.Join(cfg.StateDir, "roots"), 0o700); err != nil {
		return nil, fault.Unavailable("sandbox_state_dir", "sandbox: make the state directory").Wrap(err)
	}
	// Mount points are compared with what the kernel shows, which has no symlinks.
	dir, err := filepath.EvalSymlinks(cfg.StateDir)
	if err != nil {
		return nil, fault.Unavailable("sandbox_state_dir", "sandbox: state directory").Wrap(err)
	}
	cfg.StateDir = dir
	return &Sandbox{cfg: cfg}, nil
}

// Probe finds a runtime by running a container of two instructions with it, and
// which mechanisms bound what it runs. The result is kept; a failure is not.
func (s *Sandbox) Probe(ctx context.Context) Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proved {
		return s.report
	}
	rep := Report{Time: ByNamespace, Disk: ByWatch}
	if err := s.tryImage(ctx); err == nil {
		rep.Disk = ByImage
	} else {
		s.cfg.Log.Warn("sandbox: no loop mounts, the disk limit is watched", "error", err)
	}
	rep.cgroup = findHierarchy()
	if err := rep.cgroup.try(); err != nil {
		s.cfg.Log.Warn("sandbox: no usable control groups, limits are watched", "error", err)
		rep.cgroup = hierarchy{all: rep.cgroup.all} // runc makes groups all the same
	}

	names := []string{"crun", "runc"}
	if s.cfg.Runtime != "" {
		names = []string{s.cfg.Runtime}
	}
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			rep.Trials = append(rep.Trials, Trial{Runtime: name, Error: "not installed"})
			continue
		}
		for _, userns := range []bool{true, false} {
			rep.Runtime, rep.UserNS = path, userns
			err := s.try(ctx, rep)
			t := Trial{Runtime: path, UserNS: userns}
			if err != nil {
				t.Error = err.Error()
			}
			rep.Trials = append(rep.Trials, t)
			if err == nil {
				rep.Memory, rep.Pids = rep.limits()
				s.report, s.proved = rep, true
				return rep
			}
			if ctx.Err() != nil {
				break
			}
		}
	}
	rep.Runtime, rep.UserNS = "", false
	var tried []string
	for _, t := range rep.Trials {
		tried = append(tried, fmt.Sprintf("%s: %s", t.Runtime, t.Error))
	}
	rep.Problem = "no OCI runtime works here: " + strings.Join(tried, "; ")
	return rep
}

func (r Report) limits() (memory, pids Limit) {
	memory, pids = ByWatch, ByWatch
	if r.UserNS {
		pids = ByRlimit
	}
	by := ByCgroup2
	if r.cgroup.version == 1 {
		by = ByCgroup1
	}
	if r.cgroup.memory != "" {
		memory = by
	}
	if r.cgroup.pids != "" {
		pids = by
	}
	return memory, pids
}

// ready is Probe as an error.
func (s *Sandbox) ready(ctx context.Context) (Report, error) {
	rep := s.Probe(ctx)
	if rep.Problem != "" {
		if err := ctx.Err(); err != nil {
			return rep, err
		}
		return rep, fault.Unavailable("sandbox_runtime", "sandbox: %s", rep.Problem).
			Fix("install crun or runc (dnf install crun, apt-get install crun) and run the builder as root; drover doctor shows details")
	}
	return rep, nil
}

// try runs the trial program with the runtime of rep.
func (s *Sandbox) try(ctx context.Context, rep Report) error {
	elf, err := trialELF()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	layer, err := os.MkdirTemp(s.cfg.StateDir, "probe")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(layer) }()
	if err := os.Chmod(layer, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(layer, "trial"), elf, 0o755); err != nil {
		return err
	}
	root, err := s.newRoot(ctx, rep, RootSpec{Lower: []string{layer}, DiskBytes: minDisk})
	if err != nil {
		return err
	}
	var out strings.Builder
	res, err := root.run(ctx, rep, Spec{Args: []string{"/trial"}, UID: 1000, GID: 1000, Memory: 64 << 20, Pids: 16, Timeout: 15 * time.Second, Stdout: &out, Stderr: &out})
	if cerr := root.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if res.ExitCode != trialExit {
		return fmt.Errorf("the trial program ended with %d instead of %d: %s", res.ExitCode, trialExit, out.String())
	}
	return nil
}

// Reap ends what processes that are gone left behind in the state directory:
// containers, control groups, mounts, roots. Roots of living processes, this one
// included, are untouched. It goes on after an error and returns all of them.
func (s *Sandbox) Reap(ctx context.Context) error {
	s.launches.Lock()
	defer s.launches.Unlock()
	if err := s.reapProbes(); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.rootsDir())
	if err != nil {
		return fault.Unavailable("sandbox_reap", "sandbox: read the roots").Wrap(err)
	}
	var errs []error
	for _, e := range entries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		dir := filepath.Join(s.rootsDir(), e.Name())
		lock, err := lockDir(dir)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue // its owner lives
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.cfg.Log.Info("sandbox: removing a root whose owner is gone", "root", dir)
		if err := destroy(dir); err != nil {
			errs = append(errs, err)
		}
		_ = lock.Close()
	}
	if err := errors.Join(errs...); err != nil {
		return fault.Unavailable("sandbox_reap", "sandbox: some leftovers could not be removed").Wrap(err)
	}
	return nil
}

// reapProbes deletes the one-file layers of interrupted trials. They are never
// shared and never last longer than a trial.
func (s *Sandbox) reapProbes() error {
	old, _ := filepath.Glob(filepath.Join(s.cfg.StateDir, "probe*"))
	for _, dir := range old {
		if st, err := os.Stat(dir); err != nil || s.cfg.Now().Sub(st.ModTime()) < time.Minute {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return fault.Unavailable("sandbox_reap", "sandbox: remove %s", dir).Wrap(err)
		}
	}
	return nil
}

func (s *Sandbox) rootsDir() string { return filepath.Join(s.cfg.StateDir, "roots") }

// lockDir takes the lock that says that a root has a living owner. The kernel
// drops it with the process. EWOULDBLOCK: somebody has it.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// moveLayer renames from to to, which must not exist, and flushes both parents.
func moveLayer(from, to string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	return errors.Join(durable.SyncDir(filepath.Dir(to)), durable.SyncDir(filepath.Dir(from)))
}
