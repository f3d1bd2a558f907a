package build_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"drover/internal/app"
	"drover/internal/auth"
	"drover/internal/build"
	"drover/internal/build/wire"
	"drover/internal/db/dbtest"
	"drover/internal/distgit"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/release"
	"drover/internal/web"
)

// house is a whole server without a builder of its own, and who speaks to it over HTTP.
type house struct {
	*testing.T
	s     *app.Server
	sys   context.Context
	admin *web.Client
	pat   *web.Client // a packager
	dir   string
	stop  func() // ends the server
}

// engines runs fn as a subtest with an address of each database engine.
func engines(t *testing.T, fn func(t *testing.T, database string)) {
	t.Helper()
	t.Parallel() // most of the time is waiting
	t.Run("sqlite", func(t *testing.T) { fn(t, "") })
	t.Run("postgres", func(t *testing.T) { fn(t, dbtest.PostgresURL(t)) })
}

func each(t *testing.T, fn func(h *house)) {
	t.Helper()
	engines(t, func(t *testing.T, database string) {
		h := serve(t, t.TempDir(), database, time.Minute)
		h.admin = h.client(h.s.Token)
		h.setUp()
		fn(h)
	})
}

// serve starts a server in dir, on a database of its own when the address is empty.
func serve(t *testing.T, dir, database string, lease time.Duration) *house {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := app.NewServer(t.Context(), app.Config{Dir: dir, Listen: "127.0.0.1:0", DB: database, NoBuilder: true, NoSigner: true}, "test", log)
	if err != nil {
		t.Fatal(err)
	}
	s.Build.Lease = lease
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		err := s.Run(ctx)
		s.Close()
		done <- err
	}()
	h := &house{T: t, s: s, sys: auth.AsSystem(t.Context()), dir: dir}
	h.stop = sync.OnceFunc(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(h.stop)
	return h
}

// setUp makes what every test needs: a packager, and a target on a tag of two arches.
func (h *house) setUp() {
	h.Helper()
	h.ok(h.s.Auth.SetPerson(h.sys, "pat", "packager", ""))
	tok, err := h.s.Auth.NewToken(h.sys, "pat", "", nil, 0)
	h.ok(err)
	h.pat = h.client(tok.Secret)
	h.ok(h.s.Release.SetTag(h.sys, release.Tag{Name: "two", Arches: []string{"x86_64", "aarch64"}, Macros: map[string]string{"dist": ".t"}}))
	h.ok(h.s.Release.SetTag(h.sys, release.Tag{Name: "one", Arches: []string{"x86_64"}, Macros: map[string]string{"dist": ".t"}}))
	h.ok(h.s.Release.SetTarget(h.sys, release.Target{Name: "two", BuildTag: "two", DestTag: "two"}))
	h.ok(h.s.Release.SetTarget(h.sys, release.Target{Name: "one", BuildTag: "one", DestTag: "one"}))
	for _, tag := range []string{"one", "two"} {
		h.ok(h.s.Repo.Published(h.Context(), tag)) // the server's loops have nothing left to do
	}
}

func (h *house) client(token string) *web.Client { return &web.Client{Base: h.s.URL, Token: token} }

func (h *house) ok(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

// refused fails the test unless err has the code.
func (h *house) refused(err error, code string) {
	h.Helper()
	if fault.Code(err) != code {
		h.Errorf("the code is %q, not %q: %v", fault.Code(err), code, err)
	}
}

// push makes the repository of a package and pushes files to it with git.
func (h *house) push(name string, files map[string]string) {
	h.Helper()
	if err := h.s.Git.Create(h.sys, distgit.Repo{Name: "rpms/" + name}); err != nil && fault.Code(err) != "repo_exists" {
		h.Fatal(err)
	}
	dir := h.TempDir()
	git := func(args ...string) {
		h.Helper()
		c := exec.CommandContext(h.Context(), "git", args...)
		c.Dir = dir
		c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0", "GIT_AUTHOR_NAME=Pat", "GIT_AUTHOR_EMAIL=pat@example.org",
			"GIT_COMMITTER_NAME=Pat", "GIT_COMMITTER_EMAIL=pat@example.org")
		if out, err := c.CombinedOutput(); err != nil {
			h.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	remote := strings.Replace(h.s.URL, "http://", "http://x:"+h.admin.Token+"@", 1) + "/git/rpms/" + name
	git("init", "-q", "-b", "main")
	if _, err := h.s.Git.Resolve(h.Context(), "rpms/"+name, ""); err == nil {
		git("fetch", "-q", remote, "main")
		git("reset", "-q", "--soft", "FETCH_HEAD")
	}
	for n, text := range files {
		h.ok(os.WriteFile(filepath.Join(dir, n), []byte(text), 0o644))
	}
	git("add", "-A")
	git("commit", "-q", "-m", "Change")
	git("push", "-q", remote, "HEAD:main")
}

// submit queues a build.
func (h *house) submit(r build.Request) build.Build {
	h.Helper()
	var b build.Build
	h.ok(h.pat.Call(h.Context(), "POST", "/api/v1/builds", r, &b))
	return b
}

func (h *house) whole(id int64) build.Whole {
	h.Helper()
	var w build.Whole
	h.ok(h.pat.Call(h.Context(), "GET", fmt.Sprintf("/api/v1/builds/%d", id), nil, &w))
	return w
}

// events is how many events there are.
func (h *house) events() int64 {
	h.Helper()
	head, err := event.Verify(h.Context(), h.s.DB, nil)
	h.ok(err)
	return head.ID
}

// until waits for a condition for a few seconds.
func (h *house) until(what string, fn func() bool) {
	h.Helper()
	for end := time.Now().Add(15 * time.Second); !fn(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			h.Fatalf("not within 15 s: %s", what)
		}
	}
}

// builder is a scripted builder: it speaks the protocol and builds nothing.
type builder struct {
	*house
	c        *web.Client
	name     string
	arches   []string
	channels []string
	slots    int
	held     []wire.Held
}

// join makes a builder with a token of its own, got for a ticket.
func (h *house) join(name string, arches ...string) *builder {
	h.Helper()
	if len(arches) == 0 {
		arches = []string{"x86_64"}
	}
	ticket, err := h.s.Auth.NewTicket(h.sys, auth.Builder, name, time.Minute)
	h.ok(err)
	tok, err := h.s.Auth.Join(h.Context(), ticket)
	h.ok(err)
	return &builder{house: h, c: h.client(tok.Secret), name: name, arches: arches, channels: []string{"default"}, slots: 1}
}

func (b *builder) poll(wait int) (o wire.Orders, err error) {
	held := b.held
	if held == nil {
		held = []wire.Held{}
	}
	err = b.c.Call(b.Context(), "POST", wire.PathPoll, wire.Poll{Version: wire.Version, Arches: b.arches, Channels: b.channels, Slots: b.slots, Running: held, Host: "h", Wait: wait}, &o)
	for _, t := range o.Tasks {
		b.held = append(b.held, wire.Held{ID: t.ID, Fence: t.Fence})
	}
	return o, err
}

// take polls for exactly one task.
func (b *builder) take() wire.Task {
	b.Helper()
	o, err := b.poll(10)
	b.ok(err)
	if len(o.Tasks) != 1 {
		b.Fatalf("%s was handed %d tasks: %+v", b.name, len(o.Tasks), o)
	}
	return o.Tasks[0]
}

// idle makes sure that there is nothing for the builder.
func (b *builder) idle() {
	b.Helper()
	o, err := b.poll(0)
	b.ok(err)
	if len(o.Tasks) != 0 {
		b.Errorf("%s was handed %+v", b.name, o.Tasks)
	}
}

func (b *builder) drop(t wire.Task) {
	for i, h := range b.held {
		if h.ID == t.ID {
			b.held = append(b.held[:i:i], b.held[i+1:]...)
			return
		}
	}
}

func (b *builder) renew(t wire.Task) error {
	return b.c.Call(b.Context(), "POST", fmt.Sprintf(wire.PathRenew, t.ID), wire.Renew{Fence: t.Fence}, nil)
}

// keep renews a lease until the function it returns is called.
func (b *builder) keep(t wire.Task) (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			case <-time.After(200 * time.Millisecond):
			}
			if err := b.renew(t); err != nil {
				b.Error(err)
				return
			}
		}
	}()
	return func() { close(end); <-done }
}

func (b *builder) do(method, path string, t wire.Task, query string, body io.Reader) ([]byte, error) {
	resp, err := b.c.Do(b.Context(), method, path+"?fence="+strconv.FormatInt(t.Fence, 10)+query, nil, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func (b *builder) log(t wire.Task, name string, offset int, text string) error {
	_, err := b.do("POST", fmt.Sprintf(wire.PathLog, t.ID, name), t, "&offset="+strconv.Itoa(offset), strings.NewReader(text))
	return err
}

func (b *builder) upload(t wire.Task, digest string, data []byte) error {
	_, err := b.do("PUT", fmt.Sprintf(wire.PathFile, t.ID, digest), t, "", bytes.NewReader(data))
	return err
}

func (b *builder) input(t wire.Task, digest string) ([]byte, error) {
	return b.do("GET", fmt.Sprintf(wire.PathSource, t.ID, digest), t, "", nil)
}

func (b *builder) tree(t wire.Task) ([]byte, error) {
	return b.do("GET", fmt.Sprintf(wire.PathTree, t.ID), t, "", nil)
}

func sum(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

// root is a buildroot as a builder tells it.
func root(names ...string) []wire.Pkg {
	out := []wire.Pkg{}
	for _, n := range append([]string{"bash-5-1.x86_64", "glibc-2-1.x86_64"}, names...) {
		out = append(out, wire.Pkg{NEVRA: n, Header: sum([]byte(n))})
	}
	return out
}

// result is a good answer for a task: files by name.
func result(t wire.Task, files ...rpmFile) wire.Finish {
	f := wire.Finish{Fence: t.Fence, Files: []wire.File{}, Before: root(), After: root(), Started: time.Now().UnixMicro()}
	for _, x := range files {
		f.Files = append(f.Files, wire.File{Name: x.name, Digest: sum(x.data), Size: int64(len(x.data))})
	}
	return f
}

func (b *builder) finish(t wire.Task, f wire.Finish) error {
	err := b.c.Call(b.Context(), "POST", fmt.Sprintf(wire.PathFinish, t.ID), f, nil)
	if err == nil {
		b.drop(t)
	}
	return err
}

// hand uploads files and finishes the task with them.
func (b *builder) hand(t wire.Task, files ...rpmFile) error {
	b.Helper()
	for _, x := range files {
		b.ok(b.upload(t, sum(x.data), x.data))
	}
	return b.finish(t, result(t, files...))
}

// fail ends a task with a failure.
func (b *builder) fail(t wire.Task, infra bool, code string) error {
	return b.finish(t, wire.Finish{Fence: t.Fence, Files: []wire.File{}, Before: []wire.Pkg{}, After: []wire.Pkg{}, Failure: &wire.Failure{Infra: infra, Code: code, Message: "it " + code, Line: "x.c:1: error: y"}})
}

// rpmFile is an RPM file.
type rpmFile struct {
	name string
	data []byte
}

// specOf is a spec file of a package that needs no compiler: what a builder would make of it, the
// host's rpmbuild makes.
func specOf(name, release, more string) string {
	return "Name: " + name + "\nVersion: 1.0\nRelease: " + release + "\nSummary: Test\nLicense: MIT\nSource0: data.txt\n%global debug_package %{nil}\n" + more + `
%description
Test.
%package sub
Summary: Sub
BuildArch: noarch
%description sub
Sub.
%install
install -Dm644 %{SOURCE0} %{buildroot}/usr/share/%{name}/data.txt
mkdir -p %{buildroot}/usr/share/%{name}-sub
echo "%{?note}same" >%{buildroot}/usr/share/%{name}-sub/text
%files
/usr/share/%{name}
%files sub
/usr/share/%{name}-sub
`
}

// made keeps what rpmbuild made, for the whole test run.
type made struct {
	mu  sync.Mutex
	all map[string][]rpmFile
}

var rpms = made{all: map[string][]rpmFile{}} //nolint:gochecknoglobals // a cache of the tests

// rpmbuild builds a spec with the host's rpmbuild: "-bs", or "-bb --target ARCH".
func rpmbuild(t testing.TB, files map[string]string, spec string, args ...string) []rpmFile {
	t.Helper()
	rpms.mu.Lock()
	defer rpms.mu.Unlock()
	key := fmt.Sprint(files, spec, args)
	if out := rpms.all[key]; out != nil {
		return out
	}
	top, err := os.MkdirTemp("", "rpmbuild-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(top)
	if err := os.Mkdir(filepath.Join(top, "SOURCES"), 0o755); err != nil {
		t.Fatal(err)
	}
	for n, text := range files {
		if err := os.WriteFile(filepath.Join(top, "SOURCES", n), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	all := append([]string{"--define", "_topdir " + top, "--define", "dist .t", "--define", "_buildhost drover", "--define", "_dbpath " + top + "/db", "--nodeps"}, args...)
	c := exec.Command("rpmbuild", append(all, filepath.Join(top, "SOURCES", spec))...)
	c.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000", "HOME="+top)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("rpmbuild %v: %v\n%s", args, err, out)
	}
	var out []rpmFile
	for _, pattern := range []string{"SRPMS/*.rpm", "RPMS/*/*.rpm"} {
		names, _ := filepath.Glob(filepath.Join(top, pattern))
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, rpmFile{filepath.Base(n), b})
		}
	}
	if len(out) == 0 {
		t.Fatal(errors.New("rpmbuild made nothing"))
	}
	rpms.all[key] = out
	return out
}

// pkg is a package in git with what a builder makes of it.
type pkg struct {
	name  string
	files map[string]string
}

// newPkg is a package with a sub-package that is noarch.
func newPkg(name, release, more string) pkg {
	return pkg{name, map[string]string{name + ".spec": specOf(name, release, more), "data.txt": "data of " + name + "\n"}}
}

func (p pkg) srpm(t testing.TB) rpmFile {
	return rpmbuild(t, p.files, p.name+".spec", "-bs")[0]
}

func (p pkg) built(t testing.TB, arch string, args ...string) []rpmFile {
	return rpmbuild(t, p.files, p.name+".spec", append([]string{"-bb", "--target", arch}, args...)...)
}

// begin submits a build of a package and hands in its source RPM; what is left is to build it.
func (b *builder) begin(p pkg, r build.Request) build.Build {
	b.Helper()
	if r.Target == "" {
		r.Target = "one"
	}
	r.Repo = "rpms/" + p.name
	out := b.submit(r)
	t := b.take()
	if t.Method != wire.MethodSRPM {
		b.Fatalf("%+v", t)
	}
	b.ok(b.hand(t, p.srpm(b)))
	return out
}

// empty tells whether nothing is left of leases on the server's disk.
func (h *house) empty() bool {
	for _, d := range []string{"logs", "incoming"} {
		if es, err := os.ReadDir(filepath.Join(h.dir, "build", d)); err == nil && len(es) > 0 {
			return false
		}
	}
	return true
}

func get(t testing.TB, c *web.Client, path string) (string, error) {
	t.Helper()
	resp, err := c.Do(t.Context(), http.MethodGet, path, nil, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}
