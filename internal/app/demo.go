package app

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"embed"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"drover/internal/agent/sim"
	"drover/internal/cli"
	"drover/internal/fault"
	"drover/internal/fleet"
	"drover/internal/teststream"
)

//go:embed demo
var demoFiles embed.FS

type demoVerb struct {
	Dir    string `default:"demo-data" help:"Where everything goes; it is emptied first, but for the builder's cache." type:"path"`
	Listen string `default:"127.0.0.1:7280" help:"Address of the server."`
	Once   bool   `help:"Stop the server at the end."`
}

// demo runs the steps and tells how long each took.
type demo struct {
	e     *cli.Env
	v     demoVerb
	self  string
	url   string
	token string
	begin time.Time
	hosts *sim.Fleet // nil before they are there
}

// Run takes a package from a git push to an installed system.
func (v demoVerb) Run(e *cli.Env) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	d := &demo{e: e, v: v, self: self, begin: time.Now()}
	for _, sub := range []string{"work", "root", "server/blobs", "server/git", "server/build", "server/signer", "server/tls", "server/bus", "server/fleet", "server/drover.db", "server/drover.db-wal", "server/drover.db-shm", "server/builder/token"} {
		if err := os.RemoveAll(filepath.Join(v.Dir, sub)); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(v.Dir, "work"), 0o755); err != nil {
		return err
	}
	var up string
	err = d.step("make teststream, a small RPM distribution", func() (string, error) {
		r, err := teststream.Make(e.Ctx, teststream.Config{Dir: filepath.Join(v.Dir, "teststream"), Set: teststream.Build})
		if err != nil {
			return "", err
		}
		up, err = serveDir(e.Ctx, r.Dir)
		return fmt.Sprintf("%d packages, %d converted now; served at %s", r.Packages, r.Fresh, up), err
	})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(e.Ctx)
	defer stop()
	ended := make(chan error, 1)
	err = d.step("start the server with a builder and a signer", func() (string, error) {
		log, err := os.Create(filepath.Join(v.Dir, "server.log"))
		if err != nil {
			return "", err
		}
		s, err := NewServer(ctx, Config{Dir: filepath.Join(v.Dir, "server"), Listen: v.Listen}, e.Version, logger(log, false))
		if err != nil {
			return "", err
		}
		d.url, d.token, s.Logs = s.URL, s.Token, log
		go func() { defer log.Close(); defer s.Close(); ended <- s.Run(ctx) }()
		return s.URL, nil
	})
	if err == nil {
		err = d.steps(up)
	}
	if err == nil {
		fmt.Fprintf(e.Out, "\ndone in %s\n", time.Since(d.begin).Round(100*time.Millisecond))
		if !v.Once {
			fmt.Fprintf(e.Out, "the server runs on at %s; look at it with a browser, stop it with ^C\nadmin token: %s\n", d.url, d.token)
			select {
			case <-e.Ctx.Done():
			case err = <-ended:
				ended <- nil
			}
		}
	}
	if d.hosts != nil {
		d.hosts.Close()
	}
	stop()
	if serr := <-ended; err == nil {
		err = serr
	}
	return err
}

func (d *demo) steps(up string) error {
	root := filepath.Join(d.v.Dir, "root")
	for _, s := range []struct {
		what string
		fn   func() (string, error)
	}{
		{"make a signing key (RSA-4096)", func() (string, error) { return d.drover("sign", "key", "create", "demo", "--tag", "demo*") }},
		{"mirror teststream into a snapshot", func() (string, error) {
			if out, err := d.drover("mirror", "set", "stream", up); err != nil {
				return out, err
			}
			return d.drover("mirror", "sync", "stream")
		}},
		{"make a tag and a target", func() (string, error) {
			if out, err := d.drover("tag", "set", "demo", "--arch", "x86_64", "--key", "demo", "--mirror", "stream", "--macro", "dist=.demo"); err != nil {
				return out, err
			}
			return d.drover("target", "set", "demo", "--build-tag", "demo")
		}},
		{"push hello, a C program with a library", func() (string, error) { return d.push("hello", true) }},
		{"push hello-motd, a noarch package", func() (string, error) { return d.push("hello-motd", false) }},
		{"build hello", func() (string, error) { return d.drover("pkg", "build", "hello", "--target", "demo", "--wait") }},
		{"build hello-motd", func() (string, error) { return d.drover("pkg", "build", "hello-motd", "--target", "demo", "--wait") }},
		{"install hello-motd with dnf, signatures checked", func() (string, error) { return d.install(root) }},
		{"run the program in the installed root", func() (string, error) {
			out, err := exec.CommandContext(d.e.Ctx, "chroot", root, "/usr/bin/hello").CombinedOutput()
			return string(out), err
		}},
		{"ask why /usr/bin/hello is there", func() (string, error) { return d.drover("why", "--root", root, "/usr/bin/hello") }},
		{"have 50 simulated hosts enrol by ticket", d.fleet},
		{"run a function on all of them", func() (string, error) {
			return d.drover("run", "*", "test.ping", "--out", "quiet")
		}},
		{"find the hosts with an old package", func() (string, error) {
			for { // until they have told of themselves
				out, err := d.drover("host", "list", "-Q", `pkg("openssl") < "2.3-1" and fact.os == "CentOS Stream"`)
				if err != nil || strings.Count(out, "\n") > 1 || d.e.Ctx.Err() != nil {
					return out, err
				}
			}
		}},
		{"verify the ledger", func() (string, error) { return d.drover("audit", "verify") }},
	} {
		if err := d.step(s.what, s.fn); err != nil {
			return err
		}
	}
	return nil
}

// fleet simulates hosts until the demo ends.
func (d *demo) fleet() (string, error) {
	c, err := client(d.url, d.token, "")
	if err != nil {
		return "", err
	}
	var out map[string][]string
	const n = 50
	if err := c.Call(d.e.Ctx, "POST", "/api/v1/hosts/tickets", fleet.Ticket{Host: "demo-*", Count: n}, &out); err != nil {
		return "", err
	}
	next := 0
	f, err := sim.Start(d.e.Ctx, sim.Config{N: n, First: 1, Prefix: "demo", URL: d.url, Version: d.e.Version, Log: slog.New(slog.DiscardHandler), Ticket: func(string) (string, error) {
		next++
		return out["tickets"][next-1], nil
	}})
	if err != nil {
		return "", err
	}
	d.hosts = f
	return "", f.Wait(d.e.Ctx)
}

func (d *demo) step(what string, fn func() (string, error)) error {
	begin := time.Now()
	fmt.Fprintf(d.e.Out, "%6.1f s  %s\n", begin.Sub(d.begin).Seconds(), what)
	out, err := fn()
	for l := range strings.Lines(strings.TrimSpace(out)) {
		fmt.Fprintf(d.e.Out, "          %s\n", strings.TrimRight(l, "\n"))
	}
	if err != nil {
		return fault.Unavailable("demo", "the step %q failed", what).Wrap(err).Fix("look at %s", filepath.Join(d.v.Dir, "server.log"))
	}
	fmt.Fprintf(d.e.Out, "          %s\n", time.Since(begin).Round(10*time.Millisecond))
	return nil
}

// drover runs a verb of the command line, as a person would.
func (d *demo) drover(args ...string) (string, error) { return d.run("", d.self, args...) }

func (d *demo) run(dir, name string, args ...string) (string, error) {
	c := exec.CommandContext(d.e.Ctx, name, args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "DROVER_URL="+d.url, "DROVER_TOKEN="+d.token, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=Demo", "GIT_AUTHOR_EMAIL=demo@example.org",
		"GIT_COMMITTER_NAME=Demo", "GIT_COMMITTER_EMAIL=demo@example.org", "GIT_AUTHOR_DATE=2026-11-02T12:00:00Z", "GIT_COMMITTER_DATE=2026-11-02T12:00:00Z", "GIT_TERMINAL_PROMPT=0")
	out, err := c.CombinedOutput()
	return string(out), err
}

// push makes a repository and pushes the package's files with git.
func (d *demo) push(name string, tarball bool) (string, error) {
	work := filepath.Join(d.v.Dir, "work", name)
	if out, err := d.drover("pkg", "create", name); err != nil {
		return out, err
	}
	if out, err := d.drover("pkg", "clone", name, work); err != nil {
		return out, err
	}
	es, err := demoFiles.ReadDir("demo/" + name)
	if err != nil {
		return "", err
	}
	var src bytes.Buffer
	gz := gzip.NewWriter(&src)
	tw := tar.NewWriter(gz)
	for _, e := range es {
		b, err := demoFiles.ReadFile("demo/" + name + "/" + e.Name())
		if err != nil {
			return "", err
		}
		file := strings.TrimSuffix(e.Name(), ".txt")
		if !tarball || strings.HasSuffix(file, ".spec") {
			if err := os.WriteFile(filepath.Join(work, file), b, 0o644); err != nil {
				return "", err
			}
			continue
		}
		if err := tw.WriteHeader(&tar.Header{Name: name + "-1.0/" + file, Mode: 0o644, Size: int64(len(b)), ModTime: time.Unix(1700000000, 0)}); err != nil {
			return "", err
		}
		if _, err := tw.Write(b); err != nil {
			return "", err
		}
	}
	if err := tw.Close(); err != nil {
		return "", err
	}
	if err := gz.Close(); err != nil {
		return "", err
	}
	if tarball {
		file := filepath.Join(work, name+"-1.0.tar.gz")
		if err := os.WriteFile(file, src.Bytes(), 0o644); err != nil {
			return "", err
		}
		if out, err := d.run(work, d.self, "pkg", "new-sources", file); err != nil {
			return out, err
		}
	}
	for _, args := range [][]string{{"add", "-A"}, {"commit", "-q", "-m", "First version"}} {
		if out, err := d.run(work, "git", args...); err != nil {
			return out, err
		}
	}
	return d.run(work, "git", "push", "-q", "origin", "HEAD:main")
}

// install installs into a fresh root from what the server publishes: the tag's repository with
// signatures checked, and the mirror beside it.
func (d *demo) install(root string) (string, error) {
	repos := filepath.Join(d.v.Dir, "work", "repos")
	home := filepath.Join(d.v.Dir, "work", "home")
	for _, dir := range []string{repos, home, root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	for _, name := range []string{"demo", "stream"} {
		c, err := client(d.url, "", "")
		if err != nil {
			return "", err
		}
		resp, err := c.Do(d.e.Ctx, http.MethodGet, "/channels/"+name+".repo", nil, nil)
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(repos, name+".repo"), b, 0o644); err != nil {
			return "", err
		}
	}
	// Debian's rpm keeps its database elsewhere unless it is told.
	if err := os.WriteFile(filepath.Join(home, ".rpmmacros"), []byte("%_dbpath /var/lib/rpm\n%__gpg /usr/bin/gpg\n"), 0o644); err != nil {
		return "", err
	}
	c := exec.CommandContext(d.e.Ctx, "dnf", "-y", "-q", "--installroot="+root, "--releasever=9", "--setopt=reposdir="+repos, "--setopt=varsdir=/nonexistent", "--setopt=cachedir="+filepath.Join(d.v.Dir, "work", "dnf"),
		"--setopt=pluginpath=/nonexistent", "--setopt=install_weak_deps=0", "--setopt=module_platform_id=platform:el9", "--setopt=tsflags=nodocs", "install", "hello-motd", "bash", "system-release")
	c.Env = append(os.Environ(), "HOME="+home, "LC_ALL=C.UTF-8", "GNUPGHOME="+home)
	out, err := c.CombinedOutput()
	// dnf leaves a gpg-agent behind for each repository whose signature it checked.
	agents, _ := filepath.Glob(filepath.Join(d.v.Dir, "work", "dnf", "*", "pubring"))
	for _, a := range agents {
		_ = exec.CommandContext(d.e.Ctx, "gpgconf", "--homedir", a, "--kill", "all").Run() // it may be gone
	}
	if err != nil {
		return string(out), err
	}
	q := exec.CommandContext(d.e.Ctx, "rpm", "--root="+root, "-q", "--qf", "%{nevra}  %{rsaheader:pgpsig}\n", "hello", "hello-libs", "hello-motd")
	q.Env = c.Env
	out, err = q.CombinedOutput()
	return string(out), err
}

// serveDir serves a directory on a free port of loopback until ctx ends.
func serveDir(ctx context.Context, dir string) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: http.FileServer(http.Dir(dir)), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = srv.Serve(l) }()
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	return "http://" + l.Addr().String() + "/", nil
}
