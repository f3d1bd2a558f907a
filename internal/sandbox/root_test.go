package sandbox

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/fault"
)

func newCancel(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, cancel
}

// TestCommit stacks two layers, the second with removals, and reads through them.
func TestCommit(t *testing.T) {
	s := open(t, "")
	base := busybox(t)
	layers := t.TempDir()
	one, two := filepath.Join(layers, "one"), filepath.Join(layers, "two")

	r := newRoot(t, s, RootSpec{Lower: []string{base}, Keep: true})
	res, _ := run(t, r, sh("mkdir /srv/d /srv/e; echo 1 >/srv/d/old; echo 1 >/srv/gone; echo 1 >/srv/e/kept; ln /srv/e/kept /srv/e/link"))
	must(t, res.Err())
	must(t, r.Commit(t.Context(), one))

	r = newRoot(t, s, RootSpec{Lower: []string{one, base}, Keep: true})
	res, out := run(t, r, sh("rm -r /srv/d; mkdir /srv/d; echo 2 >/srv/d/new; rm /srv/gone; echo 2 >>/srv/e/kept; mv /srv/e /srv/f"))
	if res.Err() != nil {
		t.Fatal(out)
	}
	must(t, r.Commit(t.Context(), two))
	if err := r.Close(); err != nil {
		t.Error(err)
	}

	r = newRoot(t, s, RootSpec{Lower: []string{two, one, base}})
	_, out = run(t, r, sh("cd /srv; find . -type f | sort; cat f/kept"))
	if want := "./d/new\n./f/kept\n./f/link\n1\n2"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
	if err := r.Commit(t.Context(), filepath.Join(layers, "three")); fault.Code(err) != "sandbox_commit" {
		t.Errorf("an image was committed: %v", err)
	}
	// A name that is taken is not written over.
	r = newRoot(t, s, RootSpec{Lower: []string{base}, Keep: true})
	if err := r.Commit(t.Context(), one); fault.Code(err) != "layer_exists" {
		t.Errorf("err %v", err)
	}
	if _, err := os.Stat(filepath.Join(one, "srv/e/kept")); err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	s := open(t, "")
	base := busybox(t)
	secret := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(secret, link))
	for name, spec := range map[string]RootSpec{
		"relative layer":     {Lower: []string{"x"}, DiskBytes: minDisk},
		"option in a layer":  {Lower: []string{base + ",upperdir=/etc"}, DiskBytes: minDisk},
		"two layers in one":  {Lower: []string{base + ":/etc"}, DiskBytes: minDisk},
		"layer is a symlink": {Lower: []string{link}, DiskBytes: minDisk},
		"no disk":            {Lower: []string{base}},
	} {
		if _, err := s.NewRoot(t.Context(), spec); fault.Code(err) != "sandbox_root_spec" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.NewRoot(t.Context(), RootSpec{Lower: []string{base}, DiskBytes: 1 << 50}); fault.Code(err) != "disk_low" {
		t.Errorf("more than the host has: %v", err)
	}

	r := newRoot(t, s, RootSpec{Lower: []string{base}})
	for name, change := range map[string]func(*Spec){
		"no command":       func(s *Spec) { s.Args = nil },
		"no memory limit":  func(s *Spec) { s.Memory = 0 },
		"no process limit": func(s *Spec) { s.Pids = 0 },
		"no time limit":    func(s *Spec) { s.Timeout = 0 },
		"bad environment":  func(s *Spec) { s.Env = []string{"=x"} },
		"bind of nothing":  func(s *Spec) { s.Binds = []Bind{{Host: secret + "/none", Path: "/b"}} },
		"bind by symlink":  func(s *Spec) { s.Binds = []Bind{{Host: link, Path: "/b"}} },
		"bind by dots":     func(s *Spec) { s.Binds = []Bind{{Host: secret + "/../x", Path: "/b"}} },
		"bind on /proc":    func(s *Spec) { s.Binds = []Bind{{Host: secret, Path: "/proc/x"}} },
		"bind on /":        func(s *Spec) { s.Binds = []Bind{{Host: secret, Path: "/"}} },
		"bind out by dots": func(s *Spec) { s.Binds = []Bind{{Host: secret, Path: "/../../etc"}} },
	} {
		spec := sh("true")
		change(&spec)
		if _, err := r.Run(t.Context(), spec); fault.Code(err) != "sandbox_spec" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBindOnSymlink has the root lead a bind's path out of it; it must land
// inside.
func TestBindOnSymlink(t *testing.T) {
	base := busybox(t)
	eachRuntime(t, func(t *testing.T, s *Sandbox) {
		outside, src := t.TempDir(), t.TempDir()
		must(t, os.WriteFile(filepath.Join(src, "file"), []byte("bound"), 0o644))
		must(t, os.Chmod(src, 0o755))
		r := newRoot(t, s, RootSpec{Lower: []string{base}})
		run(t, r, sh("ln -s "+outside+" /srv/abs; ln -s ../../../../../../../.."+outside+" /srv/rel"))
		for _, p := range []string{"/srv/abs/in", "/srv/rel/in"} {
			spec := sh("cat " + p + "/file")
			spec.Binds = []Bind{{Host: src, Path: p}}
			_, err := r.Run(t.Context(), spec) // refused or kept inside: both are safe
			t.Log(p, err)
			if left, _ := os.ReadDir(outside); len(left) != 0 {
				t.Fatalf("%s: the host's directory was changed: %v", p, left)
			}
		}
	})
}

func TestHostCommand(t *testing.T) {
	s := open(t, "")
	r := newRoot(t, s, RootSpec{Lower: []string{busybox(t)}})
	var out tail
	host := func(args ...string) Result {
		t.Helper()
		res, err := r.HostCommand(t.Context(), HostSpec{Args: args, Env: []string{"X=1"}, Stdout: &out, Stderr: &out, Time: time.Minute})
		must(t, err)
		return res
	}
	// A scriptlet in a chroot: it has its devices, its /proc, and leaves a daemon.
	res := host("chroot", r.Path, "/bin/sh", "-c", `id -u; echo gone >/dev/null; head -c 4 /dev/urandom | wc -c; echo $X; test -d /proc/self && echo proc
		(setsid sleep 4321 </dev/null >/dev/null 2>&1 &); echo made >/etc/made; exit 5`)
	if want := "0\n4\n1\nproc"; res.ExitCode != 5 || out.String() != want {
		t.Errorf("%+v: got %q, want %q", res, out.String(), want)
	}
	nobodyIn(t, r)
	for _, d := range []string{"dev", "proc"} {
		if left, err := os.ReadDir(filepath.Join(r.Path, d)); err != nil || len(left) != 0 {
			t.Errorf("/%s has %d entries, %v", d, len(left), err)
		}
	}
	if _, got := run(t, r, sh("cat /etc/made")); got != "made" {
		t.Errorf("the sandbox does not see the host's write: %q", got)
	}
	// The host's network is there: the namespace is ours.
	ours, err := os.Readlink("/proc/self/ns/net")
	must(t, err)
	out.b = nil
	host("readlink", "/proc/self/ns/net")
	if out.String() != ours {
		t.Errorf("network %q, want %q", out.String(), ours)
	}
	// The disk limit holds for scriptlets too.
	if res := host("dd", "if=/dev/zero", "of="+filepath.Join(r.Path, "big"), "bs=1M"); res.Reason != ReasonDisk {
		t.Errorf("%+v", res)
	}
	// A root that leads /dev astray is refused.
	evil := newRoot(t, s, RootSpec{})
	must(t, os.Symlink("/etc", filepath.Join(evil.Path, "dev")))
	if _, err := evil.HostCommand(t.Context(), HostSpec{Args: []string{"true"}, Time: time.Minute}); fault.Code(err) != "sandbox_spec" {
		t.Errorf("err %v", err)
	}
}

func TestTTY(t *testing.T) {
	base := busybox(t)
	eachRuntime(t, func(t *testing.T, s *Sandbox) {
		r := newRoot(t, s, RootSpec{Lower: []string{base}})
		master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
		must(t, err)
		defer func() { _ = master.Close() }()
		must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
		n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
		must(t, err)
		tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
		must(t, err)
		// A busy crun 1.8 ends without what its container says in the last moment.
		spec := sh(`tty; read x; echo "got $x"; sleep 1`)
		spec.TTY = tty
		_, err = io.WriteString(master, "hello\n")
		must(t, err)
		type end struct {
			res Result
			err error
		}
		done := make(chan end, 1)
		go func() {
			res, err := r.Run(t.Context(), spec)
			_ = tty.Close()
			done <- end{res, err}
		}()
		var out strings.Builder
		_, _ = io.Copy(&out, master) // ends with EIO when the last terminal end is closed
		e := <-done
		if e.err != nil || e.res.ExitCode != 0 || !strings.Contains(out.String(), "/dev/pts/0") && !strings.Contains(out.String(), "/dev/console") || !strings.Contains(out.String(), "got hello") {
			t.Errorf("%+v %q", e, out.String())
		}
	})
}

// victim makes a root, starts a run in it that never ends and says so.
func victim(state, layer string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
	}
	s, err := New(Config{StateDir: state, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	fail(err)
	r, err := s.NewRoot(context.Background(), RootSpec{Lower: []string{layer}, DiskBytes: 64 << 20})
	fail(err)
	spec := sh("(setsid sleep 7777 &); echo ready; sleep 7777")
	spec.Stdout = os.Stdout
	_, err = r.Run(context.Background(), spec)
	fail(err)
}

// TestKilled kills the process that owns a root: the kernel ends the run, Reap
// removes the rest, and the roots of the living stay.
func TestKilled(t *testing.T) {
	layer := busybox(t)
	s := open(t, "")
	alive := newRoot(t, s, RootSpec{Lower: []string{layer}})
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe, "victim", s.cfg.StateDir, layer)
	pipe, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(pipe).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("%q %v", line, err)
	}
	before, err := os.ReadDir(s.rootsDir())
	must(t, err)
	if len(before) != 2 {
		t.Fatalf("%d roots", len(before))
	}
	must(t, s.Reap(t.Context()))
	if now, _ := os.ReadDir(s.rootsDir()); len(now) != 2 {
		t.Fatal("Reap took the root of a living process")
	}
	must(t, cmd.Process.Kill())
	_, _ = io.Copy(io.Discard, pipe) // ends when nobody holds the pipe any more
	_ = cmd.Wait()
	must(t, s.Reap(t.Context()))
	now, err := os.ReadDir(s.rootsDir())
	must(t, err)
	if len(now) != 1 || now[0].Name() != alive.id {
		t.Errorf("left: %v", now)
	}
	for _, e := range before {
		if e.Name() != alive.id {
			nobodyIn(t, &Root{id: e.Name(), upper: filepath.Join(s.rootsDir(), e.Name(), "fs/upper"), Path: filepath.Join(s.rootsDir(), e.Name(), "merged")})
			mounts, _ := os.ReadFile("/proc/self/mountinfo")
			if strings.Contains(string(mounts), e.Name()) {
				t.Error("still mounted")
			}
		}
	}
	if _, out := run(t, alive, sh("echo alive")); out != "alive" {
		t.Errorf("%q", out)
	}
}
