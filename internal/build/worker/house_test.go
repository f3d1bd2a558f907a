package worker_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"drover/internal/app"
	"drover/internal/auth"
	"drover/internal/build"
	"drover/internal/build/wire"
	"drover/internal/build/worker"
	"drover/internal/distgit"
	"drover/internal/release"
	"drover/internal/repo/mirrors"
	"drover/internal/repo/upstream"
	"drover/internal/teststream"
	"drover/internal/web"
)

// TestMain lets the test program be a builder of its own, to be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("WORKER_TEST_DIR"); dir != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		cache, _ := strconv.ParseInt(os.Getenv("WORKER_TEST_CACHE"), 10, 64)
		w, err := worker.New(worker.Config{Client: &web.Client{Base: os.Getenv("WORKER_TEST_URL"), Token: os.Getenv("WORKER_TEST_TOKEN")}, Dir: dir, Slots: 2, Cache: cache,
			Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Now: time.Now})
		if err == nil {
			err = w.Run(ctx)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// yard is a whole server with teststream mirrored into it, and a builder's token and directory.
type yard struct {
	*testing.T
	s     *app.Server
	sys   context.Context
	dir   string // the builder's
	token string
	child *exec.Cmd
}

func newYard(t *testing.T) *yard {
	t.Helper()
	stream, err := teststream.Make(t.Context(), teststream.Config{Dir: filepath.Join(t.TempDir(), "stream"), Set: teststream.Build})
	if err != nil {
		t.Fatal(err)
	}
	up := httptest.NewServer(http.FileServer(http.Dir(stream.Dir)))
	t.Cleanup(up.Close)
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := app.NewServer(t.Context(), app.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", NoBuilder: true, NoSigner: true}, "test", log)
	if err != nil {
		t.Fatal(err)
	}
	s.Build.Lease = 20 * time.Second
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		err := s.Run(ctx)
		s.Close()
		done <- err
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	y := &yard{T: t, s: s, sys: auth.AsSystem(t.Context()), dir: t.TempDir()}
	y.ok(s.Mirrors.Set(y.sys, mirrors.Mirror{Name: "stream", Config: mirrors.Config{Source: upstream.Source{URL: up.URL + "/"}, Arch: "x86_64"}}))
	if _, err := s.Mirrors.Sync(y.sys, "stream", func(mirrors.Progress) {}); err != nil {
		t.Fatal(err)
	}
	y.ok(s.Release.SetTag(y.sys, release.Tag{Name: "t", Arches: []string{"x86_64"}, Mirrors: []string{"stream"}, Macros: map[string]string{"dist": ".t"}}))
	// What is built for t lands elsewhere, so that the buildroots of the next build stay warm.
	y.ok(s.Release.SetTag(y.sys, release.Tag{Name: "out", Arches: []string{"x86_64"}}))
	y.ok(s.Release.SetTarget(y.sys, release.Target{Name: "t", BuildTag: "t", DestTag: "out"}))
	y.ok(s.Release.SetTarget(y.sys, release.Target{Name: "self", BuildTag: "t", DestTag: "t"}))
	ticket, err := s.Auth.NewTicket(y.sys, auth.Builder, "b", time.Minute)
	y.ok(err)
	tok, err := s.Auth.Join(t.Context(), ticket)
	y.ok(err)
	y.token = tok.Secret
	y.start()
	t.Cleanup(func() { y.stop(syscall.SIGTERM) })
	return y
}

// start starts the builder as a process of its own.
func (y *yard) start(env ...string) {
	y.Helper()
	self, err := os.Executable()
	y.ok(err)
	y.child = exec.Command(self)
	y.child.Env = append(os.Environ(), "WORKER_TEST_DIR="+y.dir, "WORKER_TEST_URL="+y.s.URL, "WORKER_TEST_TOKEN="+y.token)
	y.child.Env = append(y.child.Env, env...)
	y.child.Stderr = y.Output()
	y.ok(y.child.Start())
}

// stop ends the builder with a signal and waits for it.
func (y *yard) stop(sig syscall.Signal) {
	if y.child == nil {
		return
	}
	_ = y.child.Process.Signal(sig)
	_ = y.child.Wait()
	y.child = nil
}

func (y *yard) ok(err error) {
	y.Helper()
	if err != nil {
		y.Fatal(err)
	}
}

// push makes the repository of a package and pushes files to it.
func (y *yard) push(name string, files map[string]string) {
	y.Helper()
	y.ok(y.s.Git.Create(y.sys, distgit.Repo{Name: "rpms/" + name}))
	dir := y.TempDir()
	for n, text := range files {
		y.ok(os.WriteFile(filepath.Join(dir, n), []byte(text), 0o644))
	}
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "-A"}, {"commit", "-q", "-m", "First"},
		{"push", "-q", strings.Replace(y.s.URL, "http://", "http://x:"+y.s.Token+"@", 1) + "/git/rpms/" + name, "HEAD:main"}} {
		c := exec.Command("git", args...)
		c.Dir = dir
		c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0", "GIT_AUTHOR_NAME=Pat", "GIT_AUTHOR_EMAIL=pat@example.org",
			"GIT_COMMITTER_NAME=Pat", "GIT_COMMITTER_EMAIL=pat@example.org")
		if out, err := c.CombinedOutput(); err != nil {
			y.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
}

// submit queues a build with limits of its own: change may be nil.
func (y *yard) submit(r build.Request, change func(*wire.Limits)) build.Build {
	y.Helper()
	l := wire.Limits{Memory: 2 << 30, Disk: 4 << 30, Pids: 1000, Time: 300}
	if change != nil {
		change(&l)
	}
	y.s.Build.Limits = l
	if r.Target == "" {
		r.Target = "t"
	}
	b, err := y.s.Build.Submit(y.sys, r)
	y.ok(err)
	return b
}

// until waits for a condition of a build.
func (y *yard) until(id int64, what string, fn func(build.Whole) bool) build.Whole {
	y.Helper()
	end := time.Now().Add(3 * time.Minute)
	for {
		changed := y.s.DB.Changed()
		w, err := y.s.Build.Whole(y.Context(), fmt.Sprint(id))
		y.ok(err)
		if fn(w) {
			return w
		}
		if time.Now().After(end) {
			y.Fatalf("not in time: %s: build %d is %s: %+v", what, id, w.State, w.Tasks)
		}
		select {
		case <-changed:
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// end waits for the end of a build.
func (y *yard) end(b build.Build) build.Whole {
	y.Helper()
	return y.until(b.ID, "its end", func(w build.Whole) bool { return w.State != build.Building })
}

// scratch pushes a package of one spec and builds it.
func (y *yard) scratch(name, spec string, change func(*wire.Limits)) build.Whole {
	y.Helper()
	y.push(name, map[string]string{name + ".spec": spec})
	return y.end(y.submit(build.Request{Repo: "rpms/" + name, Scratch: true}, change))
}

// log reads a log of a build's last task.
func (y *yard) log(w build.Whole, name string) string {
	y.Helper()
	var b strings.Builder
	y.ok(y.s.Build.ReadLog(y.Context(), w.Tasks[len(w.Tasks)-1].ID, name, 0, false, &b, func() {}))
	return b.String()
}

// files are the names of a build's packages.
func files(w build.Whole) string {
	var out []string
	for _, r := range w.RPMs {
		out = append(out, r.File)
	}
	return strings.Join(out, " ")
}

// clean fails the test unless nothing of tasks that are done is left on the builder.
func (y *yard) clean() {
	y.Helper()
	var left []string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		left = nil
		for _, pattern := range []string{"roots/roots/*", "tmp/*", "dnf/task-*", "layers/*.old", "failed/*.new"} {
			names, _ := filepath.Glob(filepath.Join(y.dir, pattern))
			left = append(left, names...)
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		y.ok(err)
		for l := range strings.Lines(string(mounts)) {
			if strings.Contains(l, y.dir) {
				left = append(left, l)
			}
		}
		procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, p := range procs {
			if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), marker) {
				left = append(left, string(b))
			}
		}
		if len(left) == 0 {
			return
		}
	}
	y.Errorf("left over: %q", left)
}

// marker is an argument by which the processes of hostile builds are found.
const marker = "31536123"

// spec is a spec file of a noarch package.
func spec(name, more, build string) string {
	return "Name: " + name + "\nVersion: 1.0\nRelease: 1%{?dist}\nSummary: Test\nLicense: MIT\nBuildArch: noarch\n" + more + "\n%description\nTest.\n%build\n" + build +
		"\n%install\nmkdir -p %{buildroot}/usr/share/%{name}\necho data >%{buildroot}/usr/share/%{name}/data\n[ ! -e made ] || cp made %{buildroot}/usr/share/%{name}/\n%files\n/usr/share/%{name}\n"
}
