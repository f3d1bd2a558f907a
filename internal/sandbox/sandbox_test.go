package sandbox

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/fault"
)

// busybox is a layer with a static busybox: enough of a system to attack from.
func busybox(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("busybox"); err != nil {
		if out, err := exec.Command("apt-get", "install", "-y", "-q", "busybox-static").CombinedOutput(); err != nil {
			t.Fatalf("these tests need a static busybox (apt-get install busybox-static): %v\n%s", err, out)
		}
	}
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, d := range []string{"bin", "etc", "tmp", "srv"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	must(t, os.Chmod(filepath.Join(dir, "tmp"), 0o1777))
	must(t, os.Chmod(filepath.Join(dir, "srv"), 0o777))
	must(t, os.Chmod(dir, 0o755))
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755))
	out, err := exec.Command(path, "--list").Output()
	must(t, err)
	for name := range strings.FieldsSeq(string(out)) {
		if name != "busybox" {
			must(t, os.Symlink("busybox", filepath.Join(dir, "bin", name)))
		}
	}
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, runtime string) *Sandbox {
	t.Helper()
	s, err := New(Config{Runtime: runtime, StateDir: filepath.Join(t.TempDir(), "state"), Log: slog.New(slog.DiscardHandler), Now: time.Now})
	must(t, err)
	rep := s.Probe(t.Context())
	if rep.Problem != "" {
		t.Fatalf("apt-get install crun runc: %s", rep.Problem)
	}
	return s
}

func newRoot(t testing.TB, s *Sandbox, spec RootSpec) *Root {
	t.Helper()
	if spec.DiskBytes == 0 {
		spec.DiskBytes = 64 << 20
	}
	r, err := s.NewRoot(t.Context(), spec)
	must(t, err)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(r.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the root's directory is still there: %v", err)
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		if strings.Contains(string(mounts), r.dir) {
			t.Errorf("still mounted: %s", r.dir)
		}
	})
	return r
}

// sh is a shell script with ordinary limits.
func sh(script string) Spec {
	return Spec{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}, UID: 1000, GID: 1000, Memory: 256 << 20, Pids: 64, Timeout: 60 * time.Second}
}

// run runs spec and returns everything it printed.
func run(t testing.TB, r *Root, spec Spec) (Result, string) {
	t.Helper()
	var out tail
	spec.Stdout, spec.Stderr = &out, &out
	res, err := r.Run(t.Context(), spec)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	return res, out.String()
}

// eachRuntime runs f with every runtime that the builder may meet.
func eachRuntime(t *testing.T, f func(t *testing.T, s *Sandbox)) {
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(name); err != nil {
				t.Fatalf("apt-get install %s: %v", name, err)
			}
			f(t, open(t, name))
		})
	}
}

func TestRun(t *testing.T) {
	layer := busybox(t)
	eachRuntime(t, func(t *testing.T, s *Sandbox) {
		t.Logf("%+v", s.Probe(t.Context()))
		r := newRoot(t, s, RootSpec{Lower: []string{layer}})
		res, out := run(t, r, sh(`id -u; hostname; pwd; env | sort; echo out >/dev/stdout; echo $$; ls /sys/fs/cgroup 2>&1; cat /proc/self/cgroup | cut -d: -f3 | sort -u; exit 7`))
		if res.ExitCode != 7 || res.Reason != ReasonNone || fault.Code(res.Err()) != "command_failed" {
			t.Errorf("%+v", res)
		}
		if want := "1000\ndrover\n/\nHOME=/\nPATH=/bin\nPWD=/\nSHLVL=1\nout\n1\nls: /sys/fs/cgroup: No such file or directory\n/"; out != want {
			t.Errorf("got %q\nwant %q", out, want)
		}
		if res.Usage.Wall <= 0 || res.Usage.MemoryPeak <= 0 && s.Probe(t.Context()).Memory != ByWatch {
			t.Errorf("usage %+v", res.Usage)
		}
		// The next run sees what the one before wrote.
		run(t, r, sh("echo kept >/srv/file"))
		res, out = run(t, r, sh("cat /srv/file"))
		if res.ExitCode != 0 || out != "kept" || res.Err() != nil {
			t.Errorf("%+v %q", res, out)
		}
		_, err := r.Run(t.Context(), Spec{Args: []string{"nothing-here"}, UID: 1000, GID: 1000, Memory: 64 << 20, Pids: 8, Timeout: time.Minute})
		if fault.Code(err) != "command_not_found" {
			t.Errorf("unknown command: %v", err)
		}
		// Runtimes give the command's user the files they get: not the host's null.
		var null unix.Stat_t
		if err := unix.Stat("/dev/null", &null); err != nil || null.Uid != 0 {
			t.Errorf("/dev/null belongs to %d, %v", null.Uid, err)
		}
	})
}

func BenchmarkRun(b *testing.B) {
	layer := busybox(b)
	for _, name := range []string{"crun", "runc"} {
		b.Run(name, func(b *testing.B) {
			s := open(b, name)
			r := newRoot(b, s, RootSpec{Lower: []string{layer}})
			for b.Loop() {
				if _, err := r.Run(context.Background(), sh("exit 0")); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkHostCommand(b *testing.B) {
	r := newRoot(b, open(b, ""), RootSpec{Lower: []string{busybox(b)}})
	for b.Loop() {
		if _, err := r.HostCommand(context.Background(), HostSpec{Args: []string{"true"}, Time: time.Minute}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNewRoot(b *testing.B) {
	layer := busybox(b)
	s := open(b, "")
	for _, keep := range []bool{false, true} {
		name := "image"
		if keep {
			name = "directory"
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				r, err := s.NewRoot(context.Background(), RootSpec{Lower: []string{layer}, DiskBytes: 10 << 30, Keep: keep})
				must(b, err)
				must(b, r.Close())
			}
		})
	}
}

// tail keeps the end of what a process said.
type tail struct {
	mu sync.Mutex // guards b
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if extra := len(t.b) - (1 << 20); extra > 0 {
		t.b = append(t.b[:0], t.b[extra:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}
