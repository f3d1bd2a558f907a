package worker

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/build/wire"
	"drover/internal/fault"
	"drover/internal/rpm"
	"drover/internal/sandbox"
)

// job is a task being run.
type job struct {
	*Worker
	wire.Task
	logs  *logs
	asker string // who asks for what dnf installs, for its errors
	root  *sandbox.Root
	used  layers
	held  []string // layers that must stay while the task runs
	kept  string
	tight bool // the root has less disk than the task may use
}

// clear takes away what the task needed. It comes after the server knows how the task ended:
// nobody waits for it.
func (j *job) clear() {
	if j.root != nil {
		if err := j.root.Close(); err != nil {
			j.Log.Warn("a root stays until the builder starts again", "task", j.ID, "err", err)
		}
	}
	j.letGo()
}

// Bounds of what a builder takes in.
const (
	maxInput = 16 << 30
	maxTree  = 2 << 30
	maxFiles = 50_000
)

// execute runs the task and fills in what it hands in.
func (j *job) execute(ctx context.Context, f *wire.Finish) (err error) {
	begin := j.Now()
	j.asker = "the install list of the build tag"
	base, warm, err := j.baseRoot(ctx)
	if err != nil {
		return err
	}
	f.Warm = warm
	j.logs.say("base root ready in %s, warm: %v", j.Now().Sub(begin).Round(time.Millisecond), warm)
	var src *rpm.Package
	var file *os.File
	j.used = base
	if j.Method == wire.MethodArch {
		if file, src, err = j.fetchSRPM(ctx); err != nil {
			return err
		}
		defer file.Close()
		j.asker = src.NEVRA().NVR()
		if j.used, warm, err = j.withRequires(ctx, base, requirements(src.Header)); err != nil {
			return err
		}
		f.Warm = f.Warm && warm
	}
	j.tight = j.Limits.Disk > j.share
	if j.root, err = j.newRoot(ctx, sandbox.RootSpec{Lower: j.paths(j.used), DiskBytes: min(j.Limits.Disk, j.share)}); err != nil {
		return infra(err)
	}
	f.Before = j.used.Pkgs
	j.logs.say("root ready in %s", j.Now().Sub(begin).Round(time.Millisecond))
	switch j.Method {
	case wire.MethodSRPM:
		err = j.fromTree(ctx, f)
	case wire.MethodRebuild, wire.MethodArch:
		err = j.fromSRPM(ctx, f, src, file)
	default:
		return infra(fault.Invalid("task_method", "this builder knows no %.60q", j.Method))
	}
	if err != nil {
		j.keepRoot(err)
		return err
	}
	// A root's rpm database belongs to uid 0 and a build is not: it is read again only when
	// something in the upper layer touched it.
	f.After = f.Before
	for _, d := range []string{"var/lib/rpm", "usr/lib/sysimage/rpm"} { // EL9's place, and EL10's
		if _, err := os.Stat(filepath.Join(j.root.Upper(), d)); err == nil {
			if f.After, err = j.installed(ctx, j.root); err != nil {
				return err
			}
		}
	}
	return j.collect(ctx, f)
}

// fetchSRPM gets the task's source RPM into an unnamed file.
func (j *job) fetchSRPM(ctx context.Context) (*os.File, *rpm.Package, error) {
	if len(j.Inputs) != 1 {
		return nil, nil, infra(fault.Invalid("task_inputs", "the task has %d inputs, not one source RPM", len(j.Inputs)))
	}
	f, err := os.CreateTemp(filepath.Join(j.Dir, "tmp"), "srpm-")
	if err != nil {
		return nil, nil, infra(err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, nil, infra(err)
	}
	if err := j.fetchInput(ctx, j.Inputs[0], f); err != nil {
		return nil, nil, err
	}
	p, err := rpm.Read(f, j.Inputs[0].Size)
	if err != nil {
		return nil, nil, err
	}
	return f, p, nil
}

// fetchInput gets an input and checks that it is the one.
func (j *job) fetchInput(ctx context.Context, in wire.File, w io.Writer) error {
	if in.Size < 0 || in.Size > maxInput {
		return infra(fault.TooLarge("input_size", "the input %.200q has %d bytes", in.Name, in.Size))
	}
	resp, err := j.Client.Do(ctx, http.MethodGet, fmt.Sprintf(wire.PathSource, j.ID, in.Digest)+"?fence="+strconv.FormatInt(j.Fence, 10), nil, nil)
	if err != nil {
		return infra(err)
	}
	defer resp.Body.Close()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, h), io.LimitReader(resp.Body, in.Size+1))
	if err != nil {
		return infra(fault.Unavailable("input_cut", "the input %.200q was cut", in.Name).Wrap(err))
	}
	if n != in.Size || hex.EncodeToString(h.Sum(nil)) != in.Digest {
		return infra(fault.Invalid("input_digest", "the input %.200q is not what was announced", in.Name))
	}
	return nil
}

// requirements is what a source RPM needs to be built, sorted, without rpm's own features.
func requirements(h rpm.Header) []string {
	var out []string
	for _, d := range h.DepList(rpm.Requires) {
		if strings.HasPrefix(d.Name, "rpmlib(") {
			continue
		}
		out = append(out, depText(d))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func depText(d rpm.Dep) string {
	op := ""
	if d.Flags&rpm.SenseLess != 0 {
		op = "<"
	}
	if d.Flags&rpm.SenseGreater != 0 {
		op = ">"
	}
	if d.Flags&rpm.SenseEqual != 0 {
		op += "="
	}
	if op == "" || d.EVR == "" {
		return d.Name
	}
	return d.Name + " " + op + " " + d.EVR
}

// dir opens a directory of rpmbuild's in the root. All that the host does there goes through
// os.Root, from the root's own top on: what a build put into its place cannot lead out.
func (j *job) dir(name string) (*os.Root, error) {
	top, err := os.OpenRoot(j.root.Path)
	if err != nil {
		return nil, infra(err)
	}
	defer top.Close()
	d, err := top.OpenRoot(strings.TrimPrefix(topdir, "/") + "/" + name)
	if err != nil {
		return nil, fault.Invalid("build_failed", "the build took away its own directory %s/%s", topdir, name).Wrap(err)
	}
	return d, nil
}

func (j *job) create(dir *os.Root, name string, mode os.FileMode, fill func(io.Writer) error) error {
	f, err := dir.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if errors.Is(err, fs.ErrExist) {
		return fault.Invalid("source_twice", "the file %.200q comes twice, of the commit and of the lookaside cache", name).Fix("take it out of git, or out of sources")
	}
	if err != nil {
		return infra(err)
	}
	err = fill(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	t := time.Unix(j.Epoch, 0)
	return infra(errors.Join(dir.Chown(name, buildUID, buildUID), dir.Chtimes(name, t, t)))
}

// fromTree makes the source RPM of a commit.
func (j *job) fromTree(ctx context.Context, f *wire.Finish) error {
	dir, err := j.dir("SOURCES")
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, in := range j.Inputs {
		if path.Base(in.Name) != in.Name || in.Name == "." || in.Name == ".." {
			return infra(fault.Invalid("input_name", "%.200q is no file name", in.Name))
		}
		if err := j.create(dir, in.Name, 0o644, func(w io.Writer) error { return j.fetchInput(ctx, in, w) }); err != nil {
			return err
		}
	}
	specs, err := j.unpack(ctx, dir)
	if err != nil {
		return err
	}
	if len(specs) != 1 {
		return fault.Invalid("spec_count", "the commit has %d spec files", len(specs)).Fix("a package has one spec file, at the top of its repository")
	}
	return j.rpmbuild(ctx, f, "build.log", "-bs --nodeps "+quote(topdir+"/SOURCES/"+specs[0]))
}

// unpack writes the commit's files into SOURCES and names the spec files.
func (j *job) unpack(ctx context.Context, dir *os.Root) (specs []string, err error) {
	resp, err := j.Client.Do(ctx, http.MethodGet, fmt.Sprintf(wire.PathTree, j.ID)+"?fence="+strconv.FormatInt(j.Fence, 10), nil, nil)
	if err != nil {
		return nil, infra(err)
	}
	defer resp.Body.Close()
	t := tar.NewReader(io.LimitReader(resp.Body, maxTree))
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			// A tar that was cut between two files ends well too: only the end of the answer tells.
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				return nil, infra(fault.Unavailable("tree_cut", "the commit's files were cut").Wrap(err))
			}
			return specs, nil
		}
		if err != nil {
			return nil, infra(fault.Unavailable("tree_cut", "the commit's files were cut").Wrap(err))
		}
		name := path.Clean(h.Name)
		if n > maxFiles {
			return nil, fault.TooLarge("tree_files", "the commit has over %d files", maxFiles)
		}
		if name == "pax_global_header" || h.Typeflag == tar.TypeXGlobalHeader || name == "." {
			continue
		}
		switch h.Typeflag {
		case tar.TypeDir:
			if err := dir.MkdirAll(name, 0o755); err != nil {
				return nil, infra(err)
			}
		case tar.TypeReg:
			if d := path.Dir(name); d != "." {
				if err := dir.MkdirAll(d, 0o755); err != nil {
					return nil, infra(err)
				}
			}
			if err := j.create(dir, name, os.FileMode(h.Mode)&0o755|0o644, func(w io.Writer) error { _, err := io.Copy(w, t); return infra(err) }); err != nil { //nolint:gosec // bounded by maxTree
				return nil, err
			}
			if path.Dir(name) == "." && strings.HasSuffix(name, ".spec") {
				specs = append(specs, name)
			}
		case tar.TypeSymlink:
			// A link among the sources is followed within the root only, by the build.
			if err := dir.Symlink(h.Linkname, name); err != nil {
				return nil, infra(err)
			}
		}
	}
}

// fromSRPM builds a source RPM, or packs it again.
func (j *job) fromSRPM(ctx context.Context, f *wire.Finish, src *rpm.Package, file *os.File) error {
	if src == nil {
		var err error
		if file, src, err = j.fetchSRPM(ctx); err != nil {
			return err
		}
		defer file.Close()
	}
	if err := src.CheckPaths(); err != nil {
		return err
	}
	dir, err := j.dir("SOURCES")
	if err != nil {
		return err
	}
	defer dir.Close()
	// The host unpacks the source RPM itself, into SOURCES and nowhere else.
	var specs []string
	err = src.Payload(file, j.Limits.Disk, func(p rpm.PayloadFile, body io.Reader) error {
		if p.Mode&0o170000 != 0o100000 || path.Base(p.Name) != p.Name {
			return fault.Invalid("srpm_file", "the source RPM holds %.200q, which is no plain file", p.Name)
		}
		if strings.HasSuffix(p.Name, ".spec") {
			specs = append(specs, p.Name)
		}
		return j.create(dir, p.Name, os.FileMode(p.Mode)&0o755|0o644, func(w io.Writer) error { _, err := io.Copy(w, body); return err })
	})
	if err != nil {
		return err
	}
	if len(specs) != 1 {
		return fault.Invalid("spec_count", "the source RPM holds %d spec files", len(specs))
	}
	spec := quote(topdir + "/SOURCES/" + specs[0])
	if j.Method == wire.MethodRebuild {
		return j.rpmbuild(ctx, f, "build.log", "-bs --nodeps "+spec)
	}
	if slices.ContainsFunc(src.Header.DepList(rpm.Requires), func(d rpm.Dep) bool { return d.Name == "rpmlib(DynamicBuildRequires)" }) {
		if err := j.dynamic(ctx, f, spec); err != nil {
			return err
		}
	}
	target := j.Arch
	if j.NoArch {
		target = "noarch"
	}
	return j.rpmbuild(ctx, f, "build.log", "-bb --target "+quote(target)+" "+spec)
}

// dynamic runs %generate_buildrequires until it asks for nothing new: rpmbuild -br ends with
// 11 and leaves a package that requires what is missing.
func (j *job) dynamic(ctx context.Context, f *wire.Finish, spec string) error {
	for range 10 {
		err := j.rpmbuild(ctx, f, "requires.log", "-br "+spec)
		var ex *exitError
		if !errors.As(err, &ex) || ex.code != 11 {
			return err
		}
		p, rerr := j.asked()
		if rerr != nil {
			return rerr
		}
		if p == nil {
			return err
		}
		j.asker = "%generate_buildrequires of " + j.Name
		if err := j.install(ctx, j.root, requirements(p.Header)); err != nil {
			return err
		}
		if f.Before, err = j.installed(ctx, j.root); err != nil {
			return err
		}
	}
	return fault.Invalid("deps_endless", "%%generate_buildrequires of %s asks for more each time", j.Name).Fix("make it ask for the same packages when they are installed")
}

// asked takes the package in which rpmbuild -br says what is missing; nil when there is none.
func (j *job) asked() (*rpm.Package, error) {
	dir, err := j.dir("SRPMS")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := find(dir)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if !strings.HasSuffix(n, ".buildreqs.nosrc.rpm") {
			continue
		}
		f, err := dir.Open(n)
		if err != nil {
			return nil, infra(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return nil, infra(err)
		}
		p, err := rpm.Read(f, st.Size())
		if err != nil {
			return nil, err
		}
		return p, infra(dir.Remove(n))
	}
	return nil, nil
}

// exitError is rpmbuild's end with an exit code.
type exitError struct {
	error
	code int
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

var (
	reMacroName  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	reMacroValue = regexp.MustCompile(`^[A-Za-z0-9_.,:/=+~^ -]*$`)
)

// macros is the --define options of every run: where things are, and what makes the result
// the same on each builder.
func (j *job) macros() (string, error) {
	all := map[string]string{"_topdir": topdir, "_specdir": topdir + "/SOURCES", "_buildhost": "drover", "use_source_date_epoch_as_buildtime": "1", "clamp_mtime_to_source_date_epoch": "1",
		"source_date_epoch_from_changelog": "0", "_smp_build_ncpus": "2"}
	for k, v := range j.Macros {
		if !reMacroName.MatchString(k) || !reMacroValue.MatchString(v) {
			return "", infra(fault.Invalid("macro", "the macro %.60q may not be %.100q", k, v))
		}
		all[k] = v
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(all)) {
		b.WriteString(" --define " + quote(k+" "+all[k]))
	}
	return b.String(), nil
}

// rpmbuild runs rpmbuild in the sandbox as the build user, without network.
func (j *job) rpmbuild(ctx context.Context, f *wire.Finish, log, args string) error {
	defs, err := j.macros()
	if err != nil {
		return err
	}
	w := j.logs.file(log)
	j.logs.last = log
	f.Started = j.Now().UnixMicro()
	j.logs.say("rpmbuild %s", args)
	res, err := j.root.Run(ctx, sandbox.Spec{Args: []string{"/bin/sh", "-c", "rpmbuild" + defs + " " + args + "; exit $?"},
		Env: []string{"HOME=" + buildHome, "USER=builder", "LOGNAME=builder", "SHELL=/bin/bash", "LANG=C.UTF-8", "LC_ALL=C.UTF-8", "TZ=UTC", "PATH=/usr/bin:/usr/sbin", "SOURCE_DATE_EPOCH=" + strconv.FormatInt(j.Epoch, 10)},
		Cwd: topdir, UID: buildUID, GID: buildUID, Hostname: "drover", Memory: j.Limits.Memory, Pids: j.Limits.Pids, Timeout: time.Duration(j.Limits.Time) * time.Second, Stdout: w, Stderr: w})
	if err != nil {
		return infra(err)
	}
	j.logs.say("rpmbuild ended with %d %s after %s", res.ExitCode, res.Reason, res.Usage.Wall.Round(time.Millisecond))
	if res.Reason != sandbox.ReasonNone {
		return res.Err()
	}
	if res.ExitCode == 0 {
		return nil
	}
	tail := j.logs.tail(log, 8<<20)
	e := fault.Invalid("build_failed", "rpmbuild of %s failed", j.Name).Fix("read %s; on the builder, `drover build shell %d` opens the root", log, j.ID)
	if strings.Contains(args, "-bs") || reParse.Match(tail) {
		e = fault.Invalid("spec_parse", "the spec file of %s cannot be parsed", j.Name).Fix("read %s, and try `rpmspec -P` on the spec file", log)
	}
	if m := reSource.FindSubmatch(tail); m != nil {
		e = fault.Invalid("source_missing", "the spec file of %s names the source %.200s, which is not there", j.Name, path.Base(string(m[1]))).Fix("commit it, or upload it with `drover pkg new-sources`")
	}
	return &exitError{e, res.ExitCode}
}

var reSource = regexp.MustCompile(`(?m)^error: Bad (?:file|source): (\S+): No such file`)

var reParse = regexp.MustCompile(`(?m)^error: (?:line \d+: |.*\.spec: line \d+: |Unable to open|query of specfile)`)

// Unwrap gives the fault.
func (e *exitError) Unwrap() error { return e.error }

// collect uploads what was built.
func (j *job) collect(ctx context.Context, f *wire.Finish) error {
	sub := "RPMS"
	if j.Method != wire.MethodArch {
		sub = "SRPMS"
	}
	dir, err := j.dir(sub)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := find(dir)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fault.Invalid("nothing_built", "rpmbuild of %s made no packages", j.Name).Fix("a package needs a %%files section to be made")
	}
	for _, n := range names {
		file, err := j.hand(ctx, dir, n)
		if err != nil {
			return err
		}
		f.Files = append(f.Files, file)
	}
	j.logs.say("handed in %d packages", len(names))
	return nil
}

// maxHanded bounds what is looked at where a build leaves its packages.
const maxHanded = 10_000

// find names the RPMs in a directory that a build could write in, and one level below. Only plain
// files are taken: nothing of the build runs any more that could change one.
func find(dir *os.Root) (names []string, err error) {
	seen := 0
	list := func(sub string) ([]os.DirEntry, error) {
		d, err := dir.Open(sub)
		if err != nil {
			return nil, infra(err)
		}
		defer d.Close()
		es, err := d.ReadDir(maxHanded)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, infra(err)
		}
		if seen += len(es); seen >= maxHanded {
			return nil, fault.TooLarge("too_many_packages", "the build left over %d files where its packages should be", maxHanded)
		}
		return es, nil
	}
	top, err := list(".")
	if err != nil {
		return nil, err
	}
	for _, e := range top {
		if e.Type().IsRegular() && strings.HasSuffix(e.Name(), ".rpm") {
			names = append(names, e.Name())
		}
		if !e.IsDir() {
			continue
		}
		below, err := list(e.Name())
		if err != nil {
			return nil, err
		}
		for _, f := range below {
			if f.Type().IsRegular() && strings.HasSuffix(f.Name(), ".rpm") {
				names = append(names, e.Name()+"/"+f.Name())
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

func (j *job) hand(ctx context.Context, dir *os.Root, name string) (wire.File, error) {
	f, err := dir.Open(name)
	if err != nil {
		return wire.File{}, infra(err)
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return wire.File{}, infra(err)
	}
	out := wire.File{Name: path.Base(name), Digest: hex.EncodeToString(h.Sum(nil)), Size: size}
	for n := range 5 {
		var resp *http.Response
		resp, err = j.Client.Do(ctx, http.MethodPut, fmt.Sprintf(wire.PathFile, j.ID, out.Digest)+"?fence="+strconv.FormatInt(j.Fence, 10),
			http.Header{"Content-Length": {strconv.FormatInt(size, 10)}}, io.NewSectionReader(f, 0, size))
		if err == nil {
			_ = resp.Body.Close()
			return out, nil
		}
		if fault.As(err).Kind != fault.KindUnavailable {
			break
		}
		select {
		case <-ctx.Done():
			return out, ctx.Err()
		case <-time.After(time.Duration(n+1) * 500 * time.Millisecond):
		}
	}
	return out, infra(err)
}

// failure says to the server why a task did not work.
func (j *job) failure(err error) *wire.Failure {
	e := fault.As(err)
	f := &wire.Failure{Code: e.Code, Message: e.Msg, Remedy: e.Remedy, Root: j.kept}
	if e.Err != nil {
		f.Message += ": " + e.Err.Error()
	}
	var in *infraError
	f.Infra = errors.As(err, &in) || e.Kind == fault.KindInternal || e.Code == "builder_stopping"
	var ex *exitError
	if errors.As(err, &ex) || e.Code == "disk_limit" || e.Code == "memory_limit" || e.Code == "pids_limit" || e.Code == "time_limit" {
		f.Infra = e.Code == "disk_limit" && j.tight // another builder may have more
		f.Line = firstError(j.logs.lastLog)
	}
	return f
}

// Failed roots stay on a builder for `drover build shell`: so many, and none above so many bytes.
const (
	keptRoots = 5
	keptBytes = 4 << 30
)

// keepRoot copies the upper layer of a failed build, for `drover build shell`.
func (j *job) keepRoot(err error) {
	j.logs.lastLog = j.logs.tail(j.logs.last, 8<<20)
	var ex *exitError
	if !errors.As(err, &ex) || j.Method != wire.MethodArch || diskUse(j.root.Upper()) > keptBytes {
		return
	}
	dir := filepath.Join(j.Dir, "failed", strconv.FormatInt(j.ID, 10))
	tmp := dir + ".new"
	_ = os.RemoveAll(tmp)
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return
	}
	out, err := exec.Command("cp", "-a", "--reflink=auto", j.root.Upper(), filepath.Join(tmp, "upper")).CombinedOutput() //nolint:gosec,noctx // our own paths; it is done also when the task is being stopped
	if err == nil {
		err = os.WriteFile(filepath.Join(tmp, "layers"), []byte(strings.Join(j.used.Dirs, "\n")), 0o600)
	}
	_ = os.RemoveAll(dir)
	if err != nil || os.Rename(tmp, dir) != nil {
		j.Log.Warn("the failed root is not kept", "task", j.ID, "err", err, "out", string(out))
		_ = os.RemoveAll(tmp)
		return
	}
	j.kept = dir
	kept, _ := j.Kept()
	for _, k := range kept[min(len(kept), keptRoots):] {
		_ = j.Forget(k.Task)
	}
}

// KeptRoot is the root of a failed task that stays on the builder.
type KeptRoot struct {
	Task  int64     `json:"task"`
	Since time.Time `json:"since"`
	Bytes int64     `json:"bytes"`

	layers []string
}

// Kept lists the kept roots, the newest first.
func (w *Worker) Kept() (ks []KeptRoot, err error) {
	es, err := os.ReadDir(filepath.Join(w.Dir, "failed"))
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		dir := filepath.Join(w.Dir, "failed", e.Name())
		id, err := strconv.ParseInt(e.Name(), 10, 64)
		if err != nil {
			continue // one that is being copied
		}
		b, err := os.ReadFile(filepath.Join(dir, "layers"))
		if err != nil {
			continue
		}
		k := KeptRoot{Task: id, Bytes: diskUse(filepath.Join(dir, "upper")), layers: strings.Split(string(b), "\n")}
		if st, err := e.Info(); err == nil {
			k.Since = st.ModTime().UTC()
		}
		ks = append(ks, k)
	}
	slices.SortFunc(ks, func(a, b KeptRoot) int { return b.Since.Compare(a.Since) })
	return ks, nil
}

// keptRoot finds one kept root and its directory.
func (w *Worker) keptRoot(task int64) (k KeptRoot, dir string, err error) {
	ks, err := w.Kept()
	for _, k := range ks {
		if k.Task == task {
			return k, filepath.Join(w.Dir, "failed", strconv.FormatInt(task, 10)), nil
		}
	}
	if err == nil {
		err = fault.NotFound("root_unknown", "this builder keeps no root of task %d", task).Fix("`drover build shell` without a number lists them; the last %d stay", keptRoots)
	}
	return k, "", err
}

// Forget removes a kept root.
func (w *Worker) Forget(task int64) error {
	_, dir, err := w.keptRoot(task)
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// Shell opens a shell in the kept root of a failed task: the same layers, user and limits of
// the sandbox, no network. What it writes is gone when it ends.
func (w *Worker) Shell(ctx context.Context, task int64, tty *os.File) error {
	k, dir, err := w.keptRoot(task)
	if err != nil {
		return err
	}
	r, err := w.box.NewRoot(ctx, sandbox.RootSpec{Lower: append([]string{filepath.Join(dir, "upper")}, w.paths(layers{Dirs: k.layers})...), DiskBytes: 8 << 30})
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // nothing of it is wanted any more
	_, err = r.Run(ctx, sandbox.Spec{Args: []string{"/bin/bash", "-l"}, Env: []string{"HOME=" + buildHome, "TERM=" + os.Getenv("TERM"), "LANG=C.UTF-8", "PATH=/usr/bin:/usr/sbin"}, Cwd: topdir,
		UID: buildUID, GID: buildUID, Hostname: "drover", Memory: 8 << 30, Pids: 4096, Timeout: 12 * time.Hour, TTY: tty})
	return err
}
