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
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"drover/internal/build/wire"
	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/sandbox"

	"golang.org/x/sys/unix"
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

// hold keeps layers from being thrown away until letGo.
func (j *job) hold(names ...string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, n := range names {
		j.using[n]++
		j.held = append(j.held, n)
	}
}

func (j *job) letGo() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, n := range j.held {
		if j.using[n]--; j.using[n] == 0 {
			delete(j.using, n)
		}
	}
	j.held = nil
}

// newRoot makes a root. When the disk is promised to the roots of other tasks it waits for them
// to end; alone it waits a little, for the root of the task that was in the slot before.
func (w *Worker) newRoot(ctx context.Context, spec sandbox.RootSpec) (*sandbox.Root, error) {
	for n := 0; ; n++ {
		r, err := w.box.NewRoot(ctx, spec)
		w.mu.Lock()
		others := len(w.running) > 1
		w.mu.Unlock()
		if fault.Code(err) != "disk_low" || n >= 50 && !others {
			return r, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// cached finds a buildroot that was made before, and holds its layers. The index is written last,
// so what it names was whole; what was thrown away since is not there.
func (j *job) cached(key string) (l layers, ok bool) {
	b, err := os.ReadFile(filepath.Join(j.Dir, "index", key))
	if err != nil || json.Unmarshal(b, &l) != nil || len(l.Dirs) == 0 {
		return l, false
	}
	j.hold(l.Dirs...)
	now := j.Now()
	for _, d := range j.paths(l) {
		if err := os.Chtimes(d, now, now); err != nil { // what was used last is thrown away last
			return l, false
		}
	}
	_ = os.Chtimes(filepath.Join(j.Dir, "index", key), now, now)
	return l, true
}

// format names how layers are made: a change of it makes them anew.
const format = "1"

// baseRoot is the buildroot of a task before BuildRequires. The key is the repositories'
// digests, what is installed, and the arch: dnf's answer to those never changes, so a root
// that was made for them once needs no dnf. The layer itself is named by what dnf resolved.
func (j *job) baseRoot(ctx context.Context) (l layers, warm bool, err error) {
	key := keyOf("base", format, j.Root, j.Arch)
	defer j.lockKey(key)()
	if l, ok := j.cached(key); ok {
		return l, true, nil
	}
	l, err = j.makeLayer(ctx, key, layers{}, j.Root.Install)
	return l, false, err
}

// withRequires is a buildroot with BuildRequires installed, as a layer above its base.
func (j *job) withRequires(ctx context.Context, base layers, reqs []string) (l layers, warm bool, err error) {
	if len(reqs) == 0 {
		return base, true, nil
	}
	key := keyOf("requires", format, j.Root, j.Arch, base.Dirs, reqs)
	defer j.lockKey(key)()
	if l, ok := j.cached(key); ok {
		return l, true, nil
	}
	l, err = j.makeLayer(ctx, key, base, reqs)
	return l, false, err
}

func (j *job) makeLayer(ctx context.Context, key string, below layers, install []string) (l layers, err error) {
	j.evict()
	r, err := j.newRoot(ctx, sandbox.RootSpec{Lower: j.paths(below), DiskBytes: min(32<<30, j.share), Keep: true})
	if err != nil {
		return l, infra(err)
	}
	defer r.Close() //nolint:errcheck // Commit or Close has told
	// A repository that changed has most often changed nothing in this root: when dnf would do
	// word for word what it did for another root on the same layers, that one serves.
	plan, err := j.plan(ctx, r, install)
	if err != nil {
		return l, err
	}
	planned := keyOf("plan", format, j.Arch, below.Dirs, plan)
	if l, ok := j.cached(planned); ok && plan != "" {
		j.logs.say("the packages are those of a root that is here")
		return l, j.keep(key, l)
	}
	if err := j.install(ctx, r, install); err != nil {
		return l, err
	}
	if len(below.Dirs) == 0 {
		if err := addUser(r.Path); err != nil {
			return l, infra(err)
		}
	}
	if l.Pkgs, err = j.installed(ctx, r); err != nil {
		return l, err
	}
	if slices.Equal(l.Pkgs, below.Pkgs) {
		l.Dirs = below.Dirs // everything was there already
	} else {
		name := keyOf(format, below.Dirs, l.Pkgs)
		l.Dirs = append([]string{name}, below.Dirs...)
		j.hold(name)
		if err := r.Commit(ctx, filepath.Join(j.Dir, "layers", name)); err != nil && fault.Code(err) != "layer_exists" {
			return l, infra(err)
		}
	}
	if plan != "" {
		if err := j.keep(planned, l); err != nil {
			return l, err
		}
	}
	return l, j.keep(key, l)
}

// keep writes down under a key that a root is here, whole.
func (j *job) keep(key string, l layers) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return infra(durable.WriteFile(filepath.Join(j.Dir, "index", key), b, 0o644))
}

// diskUse is how many bytes a tree takes on disk.
func diskUse(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what went away takes nothing
		}
		if st, err := e.Info(); err == nil {
			if sys, ok := st.Sys().(*syscall.Stat_t); ok {
				n += sys.Blocks * 512
			}
		}
		return nil
	})
	return n
}

// diskShare is the part of the free disk that each of n slots may fill.
func diskShare(dir string, n int) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return max(1<<30, int64(st.Bavail)*st.Bsize/10*8/int64(n)), nil
}

// layerSize is how many bytes a layer takes; it is counted once.
func (w *Worker) layerSize(name string) int64 {
	file := filepath.Join(w.Dir, "sizes", name)
	if b, err := os.ReadFile(file); err == nil {
		if n, err := strconv.ParseInt(string(b), 10, 64); err == nil {
			return n
		}
	}
	n := diskUse(filepath.Join(w.Dir, "layers", name))
	_ = os.WriteFile(file, strconv.AppendInt(nil, n, 10), 0o600)
	return n
}

// evict throws away the layers that were not used for longest, until what stays is within
// the bound. Layers of tasks that run and of kept roots stay in any case.
func (w *Worker) evict() {
	es, err := os.ReadDir(filepath.Join(w.Dir, "layers"))
	if err != nil {
		return
	}
	type layer struct {
		name string
		at   time.Time
		size int64
	}
	var ls []layer
	var total int64
	for _, e := range es {
		if st, err := e.Info(); err == nil && !strings.HasSuffix(e.Name(), ".old") {
			l := layer{e.Name(), st.ModTime(), w.layerSize(e.Name())}
			ls = append(ls, l)
			total += l.size
		}
	}
	if total <= w.Cache {
		return
	}
	slices.SortFunc(ls, func(a, b layer) int { return a.at.Compare(b.at) })
	stay := map[string]bool{}
	kept, _ := w.Kept() // nothing can be read: nothing is kept
	for _, k := range kept {
		for _, n := range k.layers {
			stay[n] = true
		}
	}
	for _, l := range ls {
		if total <= w.Cache || stay[l.name] {
			continue
		}
		path := filepath.Join(w.Dir, "layers", l.name)
		w.mu.Lock() // nobody begins to use it before it is out of the way
		used := w.using[l.name] > 0
		if !used {
			err = os.Rename(path, path+".old")
		}
		w.mu.Unlock()
		if used || err != nil {
			continue
		}
		total -= l.size
		w.Log.Info("a layer is thrown away", "layer", l.name, "bytes", l.size)
		if err := os.RemoveAll(path + ".old"); err != nil {
			w.Log.Warn("a layer that was thrown away stays", "layer", l.name, "err", err)
		}
		_ = os.Remove(filepath.Join(w.Dir, "sizes", l.name))
	}
	w.forgetIndex()
}

// forgetIndex removes the index of buildroots whose layers are gone.
func (w *Worker) forgetIndex() {
	es, _ := os.ReadDir(filepath.Join(w.Dir, "index"))
	for _, e := range es {
		file := filepath.Join(w.Dir, "index", e.Name())
		var l layers
		if b, err := os.ReadFile(file); err != nil || json.Unmarshal(b, &l) != nil {
			continue
		}
		for _, d := range w.paths(l) {
			if _, err := os.Stat(d); err != nil {
				_ = os.Remove(file)
				break
			}
		}
	}
}

// keptRepos is of how many repositories dnf's metadata and downloads are kept.
const keptRepos = 20

// forgetRepos removes what dnf keeps of repositories that were not used for longest. The caller
// holds w.dnf.
func (w *Worker) forgetRepos() {
	used := map[string]time.Time{} // by repository: "id-digest", which dnf's names begin with
	es, _ := os.ReadDir(filepath.Join(w.Dir, "dnf"))
	repo := func(name string) string { return reCache.FindString(name) }
	for _, e := range es {
		if st, err := e.Info(); err == nil && repo(e.Name()) != "" && st.ModTime().After(used[repo(e.Name())]) {
			used[repo(e.Name())] = st.ModTime()
		}
	}
	byAge := slices.SortedFunc(maps.Keys(used), func(a, b string) int { return used[b].Compare(used[a]) })
	for _, r := range byAge[min(len(byAge), keptRepos):] {
		for _, e := range es {
			if repo(e.Name()) == r {
				_ = os.RemoveAll(filepath.Join(w.Dir, "dnf", e.Name()))
			}
		}
	}
}

var reCache = regexp.MustCompile(`^[a-z0-9][a-z0-9_.+-]*-[0-9a-f]{8}\b`)

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
func (j *job) dnfConf() (string, error) {
	var b strings.Builder
	b.WriteString("[main]\nreposdir=/nonexistent\nvarsdir=/nonexistent\npluginpath=/nonexistent\nkeepcache=1\nmetadata_expire=-1\ninstall_weak_deps=0\ntsflags=nodocs\nbest=1\nassumeyes=1\n" +
		"gpgcheck=0\nlocalpkg_gpgcheck=0\nmodule_platform_id=platform:el9\nskip_if_unavailable=0\nretries=3\ntimeout=30\nmax_parallel_downloads=6\nlogdir=/var/log\nprotected_packages=\n")
	for i, r := range j.Root.Repos {
		if !reRepoID.MatchString(r.ID) || !strings.HasPrefix(r.URL, "/") || strings.ContainsAny(r.URL, " \n\r$") {
			return "", fault.Invalid("repo_url", "the task names the repository %.100q at %.200q", r.ID, r.URL)
		}
		fmt.Fprintf(&b, "[%s-%.16s]\nname=%s\nbaseurl=%s%s\npriority=%d\n", r.ID, r.Digest, r.ID, j.Client.Base, r.URL, 10+i)
		if j.CA != "" {
			fmt.Fprintf(&b, "sslcacert=%s\n", j.CA)
		}
	}
	f := filepath.Join(j.Dir, "dnf", fmt.Sprintf("task-%d-%d.conf", j.ID, j.Fence))
	return f, os.WriteFile(f, []byte(b.String()), 0o644)
}

// checkRepos makes sure that each repository is the one that the task names: the packages
// hang on the checksums in its repomd.xml.
func (j *job) checkRepos(ctx context.Context) error {
	for _, r := range j.Root.Repos {
		resp, err := j.Client.Do(ctx, http.MethodGet, r.URL+"repodata/repomd.xml", nil, nil)
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

// asArgs writes requirements as arguments of dnf, which also takes options, files, URLs, groups
// and patterns there: none of those is a requirement.
func asArgs(what []string) ([]string, error) {
	out := make([]string, len(what))
	for i, p := range what {
		if p == "" || strings.ContainsAny(p[:1], "-@") || strings.ContainsAny(p, "\x00\n") || strings.Contains(p, "://") || strings.HasSuffix(p, ".rpm") {
			return nil, fault.Invalid("requirement", "%.200q is no requirement", p).Fix("require packages, files or other provides by name")
		}
		out[i] = strings.NewReplacer("[", "[[]", "*", "[*]", "?", "[?]").Replace(p)
	}
	return out, nil
}

// install runs dnf on the host to install into a root.
func (j *job) install(ctx context.Context, r *sandbox.Root, what []string) error {
	j.logs.say("dnf installs %s", strings.Join(what, " "))
	var out bytes.Buffer
	res, err := j.runDNF(ctx, r, io.MultiWriter(j.logs.file("root.log"), &out), what)
	if err != nil || res.ExitCode == 0 {
		return err
	}
	if res.Reason != sandbox.ReasonNone {
		return infra(res.Err())
	}
	return unresolved(out.String(), j.asker)
}

// plan is what dnf would do to install into a root: the table of name, arch, version and
// repository that it shows before it asks. A repository's name there has its digest in it, so
// that equal tables are equal packages. It is "" when dnf shows none; installing tells why.
func (j *job) plan(ctx context.Context, r *sandbox.Root, what []string) (string, error) {
	var out bytes.Buffer
	if _, err := j.runDNF(ctx, r, &out, what, "--assumeno"); err != nil {
		return "", err
	}
	_, table, shown := strings.Cut(out.String(), "\nDependencies resolved.\n")
	table, _, whole := strings.Cut(table, "\nTransaction Summary\n")
	if !shown || !whole {
		return "", nil
	}
	return table, nil
}

// runDNF runs the host's dnf to install into a root.
func (j *job) runDNF(ctx context.Context, r *sandbox.Root, log io.Writer, what []string, flags ...string) (res sandbox.Result, err error) {
	if err := j.checkRepos(ctx); err != nil {
		return res, err
	}
	conf, err := j.dnfConf()
	if err != nil {
		return res, err
	}
	defer os.Remove(conf)
	what, err = asArgs(what)
	if err != nil {
		return res, err
	}
	j.dnf.Lock()
	defer j.dnf.Unlock()
	defer j.forgetRepos()
	// dnf puts the cachedir of a file below the root that it installs into: the packages would lie
	// in the layer, or in the small /dev that the root has meanwhile. Said here it is taken as it is.
	args := slices.Concat([]string{"dnf", "--config=" + conf, "--setopt=cachedir=" + filepath.Join(j.Dir, "dnf"), "--installroot=" + r.Path, "--releasever=9", "--noplugins", "install"}, flags, what)
	res, err = r.HostCommand(ctx, sandbox.HostSpec{Args: args, Env: []string{"HOME=" + filepath.Join(j.Dir, "home"), "LC_ALL=C.UTF-8"}, Dir: "/", Stdout: log, Stderr: log, Time: 30 * time.Minute})
	return res, infra(err)
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
	if len(ps) == 0 {
		return nil, infra(fault.Internal("rpm_query", "the buildroot holds no packages that rpm knows of").Fix("look where the rpm of the builder and the rpm of the root keep their database: rpm --eval '%%{_dbpath}'"))
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
