package repotest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/build"
	"drover/internal/build/wire"
	"drover/internal/db"
	"drover/internal/distgit"
	"drover/internal/event"
	"drover/internal/release"
	"drover/internal/repo"
	"drover/internal/repo/mirrors"
	"drover/internal/repo/routes"
	"drover/internal/rpm"
	"drover/internal/sign"
	"drover/internal/sign/signer"
	signwire "drover/internal/sign/wire"
	"drover/internal/web"
)

// Schemas is the tables of everything in a House.
func Schemas() []db.Schema {
	return []db.Schema{event.Schema(), auth.Schema(), distgit.Schema(), build.Schema(), release.Schema(), sign.Schema(), repo.Schema()}
}

// House is the supply side of one server.
type House struct {
	TB      testing.TB
	Dir     string
	DB      *db.DB
	Blobs   *blob.Store
	Auth    *auth.Store
	Git     *distgit.Store
	Build   *build.Store
	Release *release.Store
	Sign    *sign.Store
	Repo    *repo.Store
	Mirrors *mirrors.Store
	Web     *web.Server
	URL     string      // where it is served
	Client  *web.Client // as an admin
	System  context.Context
	Stop    func() // ends the loops that run by System, before the database is closed
	Log     *Log
}

// New puts a House on d and serves it until the test ends. Tags publish themselves.
func New(tb testing.TB, d *db.DB) *House {
	tb.Helper()
	h := &House{TB: tb, Dir: tb.TempDir(), DB: d, Log: &Log{}}
	ctx, stop := context.WithCancel(auth.AsSystem(context.Background()))
	h.System, h.Stop = ctx, stop
	log := slog.New(slog.NewTextHandler(h.Log, nil))
	var err error
	if h.Blobs, err = blob.Open(filepath.Join(h.Dir, "blobs")); err != nil {
		tb.Fatal(err)
	}
	h.Auth = auth.NewStore(d)
	if h.Git, err = distgit.New(ctx, distgit.Config{DB: d, Blobs: h.Blobs, Dir: filepath.Join(h.Dir, "git"), Log: log}); err != nil {
		tb.Fatal(err)
	}
	h.Release = release.New(d)
	h.Build = build.New(build.Config{DB: d, Blobs: h.Blobs, Git: h.Git, Tags: h.Release, Roots: roots{h}, Dir: filepath.Join(h.Dir, "build"), Log: log})
	h.Sign = sign.New(d, log)
	h.Repo = repo.New(repo.Config{DB: d, Blobs: h.Blobs, Builds: h.Build, Release: h.Release, Signer: packets{h.Sign}, Dir: filepath.Join(h.Dir, "incoming"), Log: log})
	h.Mirrors = mirrors.New(mirrors.Setup{Repo: h.Repo, Secrets: filepath.Join(h.Dir, "secrets"), Imports: []string{os.TempDir()}, Retry: 10 * time.Millisecond})
	h.Web = web.New(web.Config{Version: "test", Log: log, Authenticate: h.Auth.Request})
	h.Auth.Routes(h.Web)
	event.Routes(h.Web, d, auth.Need)
	h.Git.Routes(h.Web, func(context.Context, string) (any, error) { return nil, nil })
	h.Build.Routes(h.Web)
	h.Release.Routes(h.Web, h.Build)
	h.Sign.Routes(h.Web)
	routes.Add(h.Web, h.Repo, h.Mirrors)
	ts := httptest.NewServer(h.Web)
	h.URL = ts.URL
	h.Client = &web.Client{Base: h.URL, HTTP: http.DefaultClient}
	if h.Client.Token, err = h.Auth.Bootstrap(ctx, func(string) error { return nil }); err != nil {
		tb.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- h.Repo.Run(ctx) }()
	go func() { done <- h.Mirrors.Run(ctx) }()
	tb.Cleanup(func() {
		stop()
		if err := errors.Join(<-done, <-done); err != nil {
			tb.Errorf("publishing: %v", err)
		}
		ts.CloseClientConnections()
		ts.Close()
	})
	return h
}

// roots gives buildroots no repositories: the packages of these tests need none.
type roots struct{ h *House }

// Repos implements build.Roots.
func (r roots) Repos(ctx context.Context, tag, arch string) ([]wire.Repo, error) {
	if err := r.h.Repo.Published(ctx, tag); err != nil {
		return nil, err
	}
	x, ok, err := r.h.Repo.Repo(ctx, tag, arch)
	if err != nil || !ok {
		return []wire.Repo{}, err
	}
	return []wire.Repo{x}, nil
}

type packets struct{ s *sign.Store }

// Public implements repo.Signer.
func (p packets) Public(ctx context.Context, key string) (string, error) {
	k, err := p.s.Key(ctx, key)
	return k.Public, err
}

// Packets implements repo.Signer.
func (p packets) Packets(ctx context.Context, rs []repo.SignRequest) ([][]byte, error) {
	out := make([]sign.Request, len(rs))
	for i, r := range rs {
		out[i] = sign.Request{Key: r.Key, Tag: r.Tag, Subject: r.Subject, Digest: r.Digest, State: r.State}
	}
	return p.s.Sign(ctx, out)
}

// OK fails the test at once when err is one.
func (h *House) OK(err error) {
	h.TB.Helper()
	if err != nil {
		h.TB.Fatalf("%v\n%s", err, h.Log)
	}
}

// Token makes a person of a role with a token.
func (h *House) Token(role string, scopes ...string) string {
	h.TB.Helper()
	name := "some-" + role
	if err := h.Auth.SetPerson(h.System, name, role, ""); err != nil {
		h.TB.Fatal(err)
	}
	t, err := h.Auth.NewToken(h.System, name, "test", scopes, 0)
	h.OK(err)
	return t.Secret
}

// Member makes the token of a builder or signer.
func (h *House) Member(kind auth.Kind, name string) string {
	h.TB.Helper()
	ticket, err := h.Auth.NewTicket(h.System, kind, name, time.Minute)
	h.OK(err)
	t, err := h.Auth.Join(h.System, ticket)
	h.OK(err)
	return t.Secret
}

// SignerDir is where the keys of StartSigner's signers are.
func (h *House) SignerDir() string { return filepath.Join(h.Dir, "signer") }

// StartSigner starts a signer that speaks to the server over HTTP, until stop is called or the
// test ends.
func (h *House) StartSigner(accept bool) (stop func()) {
	h.TB.Helper()
	c := &web.Client{Base: h.URL, Token: h.Member(auth.Signer, "s1"), HTTP: &http.Client{Transport: &http.Transport{}}}
	s, err := signer.New(signer.Config{Client: c, Dir: h.SignerDir(), AcceptKeys: accept, Now: time.Now, Log: slog.New(slog.NewTextHandler(h.Log, nil))})
	h.OK(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			h.TB.Errorf("signer: %v", err)
		}
		_ = s.Close()
	}()
	ended := false
	stop = func() {
		if !ended {
			ended = true
			cancel()
			<-done
		}
	}
	h.TB.Cleanup(stop)
	return stop
}

// Key makes a key for packages through the server.
func (h *House) Key(name, algo string, tags ...string) {
	h.TB.Helper()
	_, err := h.Sign.Create(h.System, signwire.NewKey{Name: name, Algo: algo, Purpose: signwire.PurposeRPM, Tags: tags})
	h.OK(err)
}

// Tag makes or changes a tag, with a target of its name.
func (h *House) Tag(t release.Tag) {
	h.TB.Helper()
	if t.Arches == nil {
		t.Arches = []string{"x86_64"}
	}
	h.OK(h.Release.SetTag(h.System, t))
	h.OK(h.Release.SetTarget(h.System, release.Target{Name: t.Name, BuildTag: t.Name, DestTag: t.Name}))
}

// Published waits until a tag's newest state is published and gives its channel.
func (h *House) Published(tag string) repo.Channel {
	h.TB.Helper()
	h.OK(h.Repo.Published(h.System, tag))
	c, err := h.Repo.Channel(h.System, tag, "")
	h.OK(err)
	return c
}

// builder is the context of the builder that hands in packages.
func (h *House) builder() context.Context {
	return auth.With(h.System, auth.Actor{Kind: auth.Builder, Name: "b1", Role: "builder"})
}

// Submit submits a build of a source RPM and hands in its packages: a file named as the source
// RPM goes to the first task, the others to the second.
func (h *House) Submit(target, srpm string, rpms ...string) build.Build {
	h.TB.Helper()
	f, err := os.Open(srpm)
	h.OK(err)
	defer f.Close()
	d, err := h.Build.TakeSRPM(h.System, f)
	h.OK(err)
	b, err := h.Build.Submit(h.System, build.Request{Target: target, SRPM: d})
	h.OK(err)
	return h.Work(b, srpm, rpms...)
}

// Work hands in the packages of a build that was submitted.
func (h *House) Work(b build.Build, srpm string, rpms ...string) build.Build {
	h.TB.Helper()
	for range 2 {
		o, err := h.Build.Poll(h.builder(), wire.Poll{Version: wire.Version, Arches: []string{"x86_64"}, Channels: []string{"default"}, Slots: 1, Host: "test", Wait: 5})
		h.OK(err)
		if len(o.Tasks) != 1 {
			h.TB.Fatalf("no task to work on: %+v", o)
		}
		t := o.Tasks[0]
		files := rpms
		if t.Method != wire.MethodArch {
			files = []string{srpm}
		}
		root := []wire.Pkg{{NEVRA: "bash-5.1.8-9.el9.x86_64", Header: strings.Repeat("ab", 32)}}
		fin := wire.Finish{Fence: t.Fence, Before: root, After: root}
		for _, file := range files {
			f, err := os.Open(file)
			h.OK(err)
			st, err := f.Stat()
			h.OK(err)
			p, err := rpm.Read(f, st.Size())
			h.OK(err)
			sum := sha256.New()
			_, err = io.Copy(sum, io.NewSectionReader(f, 0, st.Size()))
			h.OK(err)
			d := hex.EncodeToString(sum.Sum(nil))
			h.OK(h.Build.TakeFile(h.builder(), t.ID, t.Fence, d, io.NewSectionReader(f, 0, st.Size())))
			_ = f.Close()
			fin.Files = append(fin.Files, wire.File{Name: p.NEVRA().File(), Digest: d, Size: st.Size()})
		}
		h.OK(h.Build.Finish(h.builder(), t.ID, fin))
	}
	b, err := h.Build.Get(h.System, b.ID)
	h.OK(err)
	if b.State != build.Complete {
		h.TB.Fatalf("build %d is %s: %s", b.ID, b.State, b.Message)
	}
	return b
}

// Events is the number of the newest event, of a domain ("tag.") when there is one: the loops of
// the house write events of their own, at times of their own.
func (h *House) Events(domain string) (last int64) {
	h.TB.Helper()
	h.OK(h.DB.Read(h.System, func(tx *db.Tx) error {
		es, err := event.List(tx, event.Filter{Kind: domain, Newest: true, Limit: 1})
		for _, e := range es {
			last = e.ID
		}
		return err
	}))
	return last
}

// Data is a file of the real packages beside the repository.
func Data(tb testing.TB, name string) string {
	tb.Helper()
	p, err := filepath.Abs("../../../shared/data/rpms-modern/" + name)
	if err == nil {
		_, err = os.Stat(p)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// Spec writes the spec file of a noarch package with one program and one configuration file.
func Spec(name, version string) string {
	return fmt.Sprintf(`Name: %s
Version: %s
Release: 1
Summary: A test
License: MIT
BuildArch: noarch
Source0: hello.sh
%%description
A test.
%%install
install -D -m 755 %%{SOURCE0} %%{buildroot}/usr/bin/%s
mkdir -p %%{buildroot}/etc
echo "version=%s" > %%{buildroot}/etc/%s.conf
ln -s %s %%{buildroot}/usr/bin/%s-link
%%files
/usr/bin/%s
/usr/bin/%s-link
%%config(noreplace) /etc/%s.conf
`, name, version, name, version, name, name, name, name, name, name)
}

// Program is the source that Spec names.
const Program = "#!/bin/sh\necho hello\n"

// RPMBuild builds the packages of a spec file: its source RPM and the others.
func RPMBuild(tb testing.TB, spec string) (srpm string, rpms []string) {
	tb.Helper()
	top := tb.TempDir()
	for file, text := range map[string]string{"SOURCES/hello.sh": Program, "SPECS/x.spec": spec} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(top, file)), 0o755); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(top, file), []byte(text), 0o644); err != nil {
			tb.Fatal(err)
		}
	}
	// The requirement of the shell is left out: these go into empty roots.
	c := exec.Command("rpmbuild", "-ba", "--nodeps", "--define", "_topdir "+top, "--define", "__requires_exclude ^/", "--define", "_build_id_links none", filepath.Join(top, "SPECS/x.spec"))
	c.Env = append(os.Environ(), "HOME="+top, "SOURCE_DATE_EPOCH=1700000000")
	if out, err := c.CombinedOutput(); err != nil {
		tb.Fatalf("rpmbuild: %v\n%s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(top, "*RPMS/*"))
	if err != nil {
		tb.Fatal(err)
	}
	more, err := filepath.Glob(filepath.Join(top, "RPMS/*/*.rpm"))
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range append(files, more...) {
		if strings.HasSuffix(f, ".src.rpm") {
			srpm = f
		} else if strings.HasSuffix(f, ".rpm") {
			rpms = append(rpms, f)
		}
	}
	return srpm, rpms
}

// BigPackage builds a noarch package big with a file of so many bytes that do not pack.
func BigPackage(tb testing.TB, size int) (srpm string, rpms []string) {
	tb.Helper()
	return RPMBuild(tb, fmt.Sprintf(`Name: big
Version: 1
Release: 1
Summary: A test
License: MIT
BuildArch: noarch
%%define _binary_payload w.ufdio
%%description
A test.
%%install
mkdir -p %%{buildroot}/usr/share/big
head -c %d /dev/urandom > %%{buildroot}/usr/share/big/data
%%files
/usr/share/big/data
`, size))
}
