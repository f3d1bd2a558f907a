package worker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"drover/internal/build/wire"
	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/sandbox"
)

// layers is a buildroot as read-only layers, topmost first, with what is installed in it.
type layers struct {
	Dirs []string   `json:"dirs"` // names below layers/
	Pkgs []wire.Pkg `json:"pkgs"`
}

func (w *Worker) paths(l layers) []string {
	out := make([]string, len(l.Dirs))
	for i, d := range l.Dirs {
		out[i] = filepath.Join(w.Dir, "layers", d)
	}
	return out
}

func keyOf(v ...any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and structs of them
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func (w *Worker) lockKey(key string) func() {
	w.mu.Lock()
	m := w.making[key]
	if m == nil {
		m = new(sync.Mutex)
		w.making[key] = m
	}
	w.mu.Unlock()
	m.Lock()
	return m.Unlock
}

// cached finds a buildroot that was made before. The index is written last, so what it names
// is whole.
func (w *Worker) cached(key string) (l layers, ok bool) {
	b, err := os.ReadFile(filepath.Join(w.Dir, "index", key))
	if err != nil || json.Unmarshal(b, &l) != nil || len(l.Dirs) == 0 {
		return l, false
	}
	now := w.Now()
	for _, d := range w.paths(l) {
		if _, err := os.Stat(d); err != nil {
			return l, false
		}
		_ = os.Chtimes(d, now, now) // what was used last is thrown away last
	}
	_ = os.Chtimes(filepath.Join(w.Dir, "index", key), now, now)
	return l, true
}

// baseRoot is the buildroot of a task before BuildRequires. The key is the repositories'
// digests, what is installed, and the arch: dnf's answer to those never changes, so a root
// that was made for them once needs no dnf. The layer itself is named by what dnf resolved.
func (w *Worker) baseRoot(ctx context.Context, j *job) (l layers, warm bool, err error) {
	key := keyOf("base", j.Root, j.Arch)
	defer w.lockKey(key)()
	if l, ok := w.cached(key); ok {
		return l, true, nil
	}
	l, err = w.makeLayer(ctx, j, key, layers{}, j.Root.Install)
	return l, false, err
}

// withRequires is a buildroot with BuildRequires installed, as a layer above its base.
func (w *Worker) withRequires(ctx context.Context, j *job, base layers, reqs []string) (l layers, warm bool, err error) {
	if len(reqs) == 0 {
		return base, true, nil
	}
	key := keyOf("requires", j.Root, j.Arch, base.Dirs, reqs)
	defer w.lockKey(key)()
	if l, ok := w.cached(key); ok {
		return l, true, nil
	}
	l, err = w.makeLayer(ctx, j, key, base, reqs)
	return l, false, err
}

func (w *Worker) makeLayer(ctx context.Context, j *job, key string, below layers, install []string) (l layers, err error) {
	w.evict(below)
	r, err := w.box.NewRoot(ctx, sandbox.RootSpec{Lower: w.paths(below), DiskBytes: 32 << 30, Keep: true})
	if err != nil {
		return l, infra(err)
	}
	defer r.Close() //nolint:errcheck // Commit or Close has told
	if err := w.install(ctx, j, r, install); err != nil {
		return l, err
	}
	if len(below.Dirs) == 0 {
		if err := addUser(r.Path); err != nil {
			return l, infra(err)
		}
	}
	if l.Pkgs, err = w.installed(ctx, r); err != nil {
		return l, err
	}
	if slices.Equal(l.Pkgs, below.Pkgs) {
		l.Dirs = below.Dirs // everything was there already
	} else {
		name := keyOf(below.Dirs, l.Pkgs)
		l.Dirs = append([]string{name}, below.Dirs...)
		if err := r.Commit(ctx, filepath.Join(w.Dir, "layers", name)); err != nil && fault.Code(err) != "layer_exists" {
			return l, infra(err)
		}
	}
	b, err := json.Marshal(l)
	if err != nil {
		return l, err
	}
	return l, infra(durable.WriteFile(filepath.Join(w.Dir, "index", key), b, 0o644))
}

// keepIndexes bounds the buildroots that are kept; layers that none of them names go.
const keepIndexes = 60

// evict throws away the buildroots that were not used for longest. What is in use is never
// touched: a mounted layer's index was used just now.
func (w *Worker) evict(inUse layers) {
	es, err := os.ReadDir(filepath.Join(w.Dir, "index"))
	if err != nil || len(es) < keepIndexes {
		return
	}
	type used struct {
		name string
		at   time.Time
		l    layers
	}
	var us []used
	for _, e := range es {
		u := used{name: e.Name()}
		if st, err := e.Info(); err == nil {
			u.at = st.ModTime()
		}
		if b, err := os.ReadFile(filepath.Join(w.Dir, "index", u.name)); err == nil {
			_ = json.Unmarshal(b, &u.l)
		}
		us = append(us, u)
	}
	slices.SortFunc(us, func(a, b used) int { return b.at.Compare(a.at) })
	keep := map[string]bool{}
	for _, d := range inUse.Dirs {
		keep[d] = true
	}
	for i, u := range us {
		if i < keepIndexes/2 || w.Now().Sub(u.at) < 12*time.Hour {
			for _, d := range u.l.Dirs {
				keep[d] = true
			}
			continue
		}
		_ = os.Remove(filepath.Join(w.Dir, "index", u.name))
	}
	ls, _ := os.ReadDir(filepath.Join(w.Dir, "layers"))
	for _, e := range ls {
		if st, err := e.Info(); err == nil && !keep[e.Name()] && w.Now().Sub(st.ModTime()) > 12*time.Hour {
			_ = os.RemoveAll(filepath.Join(w.Dir, "layers", e.Name()))
		}
	}
}

// Build user: a plain one, the same on every builder.
const (
	buildUID  = 1000
	buildHome = "/builddir"
	topdir    = "/builddir/build"
)

// addUser makes the user that builds run as, in a root that nobody has run anything in yet.
func addUser(root string) error {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, f := range []struct{ name, line string }{{"etc/passwd", "builder:x:1000:1000::/builddir:/bin/bash\n"}, {"etc/group", "builder:x:1000:\n"}} {
		h, err := dir.OpenFile(f.name, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		_, err = io.WriteString(h, f.line)
		if err := errors.Join(err, h.Close()); err != nil {
			return err
		}
	}
	for _, d := range []string{"builddir", "builddir/build", "builddir/build/BUILD", "builddir/build/BUILDROOT", "builddir/build/RPMS", "builddir/build/SOURCES", "builddir/build/SPECS", "builddir/build/SRPMS"} {
		if err := dir.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := dir.Chown(d, buildUID, buildUID); err != nil {
			return err
		}
	}
	return nil
}

var reRepoID = regexp.MustCompile(`^[a-z0-9][a-z0-9_.+-]{0,99}$`)

// dnfConf writes dnf's whole configuration for a task: nothing of the host's counts.
func (w *Worker) dnfConf(j *job) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "[main]\nreposdir=/nonexistent\nvarsdir=/nonexistent\npluginpath=/nonexistent\ncachedir=%s\nkeepcache=1\nmetadata_expire=-1\ninstall_weak_deps=0\ntsflags=nodocs\nbest=1\nassumeyes=1\n"+
		"gpgcheck=0\nlocalpkg_gpgcheck=0\nmodule_platform_id=platform:el9\nskip_if_unavailable=0\nretries=3\ntimeout=30\nmax_parallel_downloads=6\nlogdir=/var/log\nprotected_packages=\n", filepath.Join(w.Dir, "dnf"))
	for i, r := range j.Root.Repos {
		if !reRepoID.MatchString(r.ID) || !strings.HasPrefix(r.URL, "/") || strings.ContainsAny(r.URL, " \n\r$") {
			return "", fault.Invalid("repo_url", "the task names the repository %.100q at %.200q", r.ID, r.URL)
		}
		fmt.Fprintf(&b, "[%s-%.8s]\nname=%s\nbaseurl=%s%s\npriority=%d\n", r.ID, r.Digest, r.ID, w.Client.Base, r.URL, 10+i)
		if w.CA != "" {
			fmt.Fprintf(&b, "sslcacert=%s\n", w.CA)
		}
	}
	f := filepath.Join(w.Dir, "dnf", fmt.Sprintf("task-%d-%d.conf", j.ID, j.Fence))
	return f, os.WriteFile(f, []byte(b.String()), 0o644)
}

// checkRepos makes sure that each repository is the one that the task names: the packages
// hang on the checksums in its repomd.xml.
func (w *Worker) checkRepos(ctx context.Context, j *job) error {
	for _, r := range j.Root.Repos {
		resp, err := w.Client.Do(ctx, http.MethodGet, r.URL+"repodata/repomd.xml", nil, nil)
		if err != nil {
			return infra(err)
		}
		h := sha256.New()
		_, err = io.Copy(h, io.LimitReader(resp.Body, 4<<20))
		_ = resp.Body.Close()
		if err != nil {
			return infra(err)
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != r.Digest {
			return infra(fault.Invalid("repo_digest", "the repository %s is %s, not %s", r.ID, got, r.Digest))
		}
	}
	return nil
}

// install runs dnf on the host to install into a root.
func (w *Worker) install(ctx context.Context, j *job, r *sandbox.Root, what []string) error {
	if err := w.checkRepos(ctx, j); err != nil {
		return err
	}
	conf, err := w.dnfConf(j)
	if err != nil {
		return err
	}
	defer os.Remove(conf)
	for _, p := range what {
		if strings.HasPrefix(p, "-") || strings.ContainsAny(p, "\x00\n") {
			return fault.Invalid("requirement", "%.200q is no requirement", p)
		}
	}
	w.dnf.Lock()
	defer w.dnf.Unlock()
	j.logs.say("dnf installs %s", strings.Join(what, " "))
	var out bytes.Buffer
	log := io.MultiWriter(j.logs.file("root.log"), &out)
	args := append([]string{"dnf", "--config=" + conf, "--installroot=" + r.Path, "--releasever=9", "--noplugins", "install", "--"}, what...)
	args = slices.DeleteFunc(args, func(a string) bool { return a == "--" })
	res, err := r.HostCommand(ctx, sandbox.HostSpec{Args: args, Env: []string{"HOME=" + filepath.Join(w.Dir, "home"), "LC_ALL=C.UTF-8"}, Dir: "/", Stdout: log, Stderr: log, Time: 30 * time.Minute})
	if err != nil {
		return infra(err)
	}
	if res.ExitCode == 0 {
		return nil
	}
	if res.Reason != sandbox.ReasonNone {
		return infra(res.Err())
	}
	return unresolved(out.String(), j.asker)
}

// installed lists what is in a root by its rpm database: name and sha256 of each header.
func (w *Worker) installed(ctx context.Context, r *sandbox.Root) ([]wire.Pkg, error) {
	var out, errs bytes.Buffer
	res, err := r.HostCommand(ctx, sandbox.HostSpec{Args: []string{"rpm", "--root=" + r.Path, "-qa", "--qf", "%{nevra} %{sha256header}\n"},
		Env: []string{"HOME=" + filepath.Join(w.Dir, "home"), "LC_ALL=C.UTF-8"}, Dir: "/", Stdout: &out, Stderr: &errs, Time: time.Minute})
	if err != nil {
		return nil, infra(err)
	}
	if res.ExitCode != 0 {
		return nil, infra(fault.Internal("rpm_query", "the packages of the buildroot cannot be listed: %.500s", errs.String()))
	}
	var ps []wire.Pkg
	for l := range strings.Lines(out.String()) {
		n, h, ok := strings.Cut(strings.TrimSpace(l), " ")
		if !ok || strings.HasPrefix(n, "gpg-pubkey-") {
			continue
		}
		ps = append(ps, wire.Pkg{NEVRA: n, Header: h})
	}
	slices.SortFunc(ps, func(a, b wire.Pkg) int { return strings.Compare(a.NEVRA, b.NEVRA) })
	return ps, nil
}

// infra marks an error as not the package's fault.
func infra(err error) error {
	if err == nil {
		return nil
	}
	return &infraError{err}
}

type infraError struct{ err error }

// Error implements error.
func (e *infraError) Error() string { return e.err.Error() }

// Unwrap gives the cause.
func (e *infraError) Unwrap() error { return e.err }
