package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/fault"
)

// TestMain lets the test program be its own victim.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "victim" {
		victim(os.Args[2], os.Args[3])
	}
	os.Exit(m.Run())
}

// hostileLayer is busybox with the attacker of testdata and a setuid root program.
func hostileLayer(t *testing.T) string {
	dir := busybox(t)
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "bin/attacker"), "./testdata/attacker")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // static: the root has no libraries
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the attacker: %v\n%s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "bin/busybox"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "bin/suid"), b, 0o755))
	must(t, os.Chmod(filepath.Join(dir, "bin/suid"), 0o755|os.ModeSetuid))
	return dir
}

func TestAttacks(t *testing.T) {
	layer := hostileLayer(t)
	eachRuntime(t, func(t *testing.T, s *Sandbox) {
		for _, uid := range []uint32{1000, 0} {
			bound := t.TempDir()
			must(t, os.WriteFile(filepath.Join(bound, "file"), []byte("host"), 0o666))
			must(t, os.Chmod(filepath.Join(bound, "file"), 0o666))
			must(t, os.Chmod(bound, 0o777))
			r := newRoot(t, s, RootSpec{Lower: []string{layer}})
			spec := sh("/bin/attacker attack")
			spec.UID, spec.GID = uid, uid
			spec.Binds = []Bind{{Host: bound, Path: "/bound"}}
			res, out := run(t, r, spec)
			if res.ExitCode != 0 {
				t.Fatalf("the attacker could not run: %+v\n%s", res, out)
			}
			// User 0 inside owns its root's files, like any user its own; all else it
			// may do no more than others.
			own := []string{"become root", "join root's group", "chown a file", "write /etc", "a setuid program that gives root", "write a new device node dir"}
			seen := 0
			for line := range strings.Lines(out) {
				name, result, _ := strings.Cut(strings.TrimSpace(line), "\t")
				seen++
				if result == "<nil>" && (uid != 0 || !slices.Contains(own, name)) {
					t.Errorf("user %d: %s: succeeded", uid, name)
				}
			}
			if !strings.HasSuffix(out, fmt.Sprintf("tried\t%d", seen-1)) || seen < 50 {
				t.Errorf("user %d: %d attacks reported:\n%s", uid, seen, out)
			}
			if b, err := os.ReadFile(filepath.Join(bound, "file")); err != nil || string(b) != "host" {
				t.Errorf("the bound file changed: %q %v", b, err)
			}
			if left, _ := os.ReadDir(bound); len(left) != 1 {
				t.Errorf("the bound directory has %d entries", len(left))
			}
		}
	})
}

func TestLimits(t *testing.T) {
	layer := hostileLayer(t)
	eachRuntime(t, func(t *testing.T, s *Sandbox) {
		limits(t, s, layer)
	})
}

// TestLimitsWithoutCgroups is the same on a host that gives no control groups and
// no loop devices.
func TestLimitsWithoutCgroups(t *testing.T) {
	layer := hostileLayer(t)
	eachRuntime(t, func(t *testing.T, s *Sandbox) {
		s.mu.Lock()
		s.report.cgroup = hierarchy{all: s.report.cgroup.all}
		s.report.Memory, s.report.Pids = s.report.limits()
		s.report.Disk = ByWatch
		s.mu.Unlock()
		limits(t, s, layer)
	})
}

func limits(t *testing.T, s *Sandbox, layer string) {
	watched := s.Probe(t.Context()).Memory == ByWatch
	t.Run("memory", func(t *testing.T) {
		r := newRoot(t, s, RootSpec{Lower: []string{layer}})
		// The kernel ends the process, and the rest is ended after it: with version 1 of the control
		// groups by us, a moment later.
		spec := sh("attacker hog 400; sleep 10; echo survived")
		spec.Memory = 64 << 20
		res, out := run(t, r, spec)
		if res.Reason != ReasonOOM || fault.Code(res.Err()) != "memory_limit" || strings.Contains(out, "survived") {
			t.Errorf("%+v %q", res, out)
		}
		if !watched && (res.Usage.MemoryPeak < 32<<20 || res.Usage.MemoryPeak > 65<<20) {
			t.Errorf("peak %d", res.Usage.MemoryPeak)
		}
	})
	t.Run("shm counts as memory", func(t *testing.T) {
		r := newRoot(t, s, RootSpec{Lower: []string{layer}})
		spec := sh("dd if=/dev/zero of=/dev/shm/x bs=1M count=512")
		spec.Memory = 64 << 20
		if res, out := run(t, r, spec); res.ExitCode == 0 {
			t.Errorf("%+v %q", res, out)
		}
	})
	t.Run("fork bomb", func(t *testing.T) {
		r := newRoot(t, s, RootSpec{Lower: []string{layer}})
		spec := sh(`bomb() { bomb | bomb & }; bomb; for i in $(seq 200); do sleep 100 & done; sleep 100`)
		spec.Timeout, spec.Pids = 2*time.Second, 40
		res, out := run(t, r, spec)
		// It may give up by itself at the limit, or go on until the time is over.
		if res.Err() == nil || res.Reason == ReasonOOM || !strings.Contains(out, "fork") {
			t.Errorf("%+v %q", res, out)
		}
		if !watched && !res.Usage.PidsHit {
			t.Errorf("the refused fork was not seen: %+v", res)
		}
		nobodyIn(t, r)
	})
	t.Run("daemon", func(t *testing.T) {
		r := newRoot(t, s, RootSpec{Lower: []string{layer}})
		res, out := run(t, r, sh(`(setsid sh -c '(setsid sleep 1234 </dev/null >/dev/null 2>&1 &)' &); echo done`))
		if res.Err() != nil || out != "done" {
			t.Errorf("%+v %q", res, out)
		}
		nobodyIn(t, r)
	})
	t.Run("time", func(t *testing.T) {
		r := newRoot(t, s, RootSpec{Lower: []string{layer}})
		spec := sh(`trap "" TERM INT HUP; (trap "" TERM; sleep 1000) & while :; do :; done`)
		spec.Timeout = 300 * time.Millisecond
		res, _ := run(t, r, spec)
		if res.Reason != ReasonTimeout || fault.Code(res.Err()) != "time_limit" {
			t.Errorf("%+v", res)
		}
		nobodyIn(t, r)
	})
	t.Run("disk", func(t *testing.T) {
		r := newRoot(t, s, RootSpec{Lower: []string{layer}, DiskBytes: 32 << 20})
		res, out := run(t, r, sh(`i=0; while dd if=/dev/zero of=/srv/$i bs=1M count=4 2>/dev/null; do i=$((i+1)); done; echo full; exit 3`))
		if res.Reason != ReasonDisk || fault.Code(res.Err()) != "disk_limit" {
			t.Errorf("%+v %q", res, out)
		}
		if r.image {
			var st unix.Stat_t
			must(t, unix.Stat(filepath.Join(r.dir, "disk.img"), &st))
			if st.Blocks*512 > 33<<20 {
				t.Errorf("the host holds %d bytes for it", st.Blocks*512)
			}
		}
	})
	t.Run("small files", func(t *testing.T) {
		r := newRoot(t, s, RootSpec{Lower: []string{layer}, DiskBytes: 16 << 20})
		res, out := run(t, r, sh(`cd /srv; i=0; while echo >$i; do i=$((i+1)); done 2>/dev/null; exit 3`))
		if res.Reason != ReasonDisk {
			t.Errorf("%+v %q", res, out)
		}
	})
	t.Run("cancel", func(t *testing.T) {
		r := newRoot(t, s, RootSpec{Lower: []string{layer}})
		ctx, cancel := newCancel(t)
		spec := sh(`echo ready; sleep 1000 & sleep 1000`)
		spec.Stdout = onWrite(func() { cancel() })
		if _, err := r.Run(ctx, spec); fault.Code(err) != "canceled" {
			t.Errorf("err %v", err)
		}
		nobodyIn(t, r)
		// The root is good for another run.
		if res, out := run(t, r, sh("echo again")); res.Err() != nil || out != "again" {
			t.Errorf("%+v %q", res, out)
		}
	})
	t.Run("close ends a run", func(t *testing.T) {
		r := newRoot(t, s, RootSpec{Lower: []string{layer}})
		ready := make(chan bool)
		var once sync.Once
		spec := sh(`echo ready; sleep 1000`)
		spec.Stdout = onWrite(func() { once.Do(func() { close(ready) }) })
		done := make(chan error)
		go func() { _, err := r.Run(t.Context(), spec); done <- err }()
		<-ready
		must(t, r.Close())
		if err := <-done; fault.Code(err) != "sandbox_closed" {
			t.Errorf("err %v", err)
		}
	})
}

// nobodyIn asserts that no process uses the root.
func nobodyIn(t *testing.T, r *Root) {
	t.Helper()
	pids, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range pids {
		for _, f := range []string{"mountinfo", "cmdline"} {
			b, err := os.ReadFile(filepath.Join(p, f))
			if err != nil {
				continue
			}
			if f == "mountinfo" {
				// Containers show the overlay as their "/".
				if i := strings.Index(string(b), " / / "); i < 0 || !strings.Contains(string(b), "upperdir="+r.upper) || strings.Contains(string(b), r.Path+" ") {
					continue
				}
			} else if !strings.Contains(string(b), r.id) {
				continue
			}
			t.Errorf("%s still runs in the root", p)
		}
	}
	for _, m := range findHierarchy().all {
		if left, _ := filepath.Glob(filepath.Join(m, groupParent, r.id+"*")); len(left) > 0 {
			t.Errorf("control groups left: %v", left)
		}
	}
	runtime.KeepAlive(r)
}

type onWrite func()

func (f onWrite) Write(p []byte) (int, error) { f(); return len(p), nil }
