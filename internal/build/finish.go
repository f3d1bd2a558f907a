package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/build/wire"
	"drover/internal/db"
	"drover/internal/durable"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/rpm"
)

// Bounds of what a builder may hand in.
const (
	maxFile  = 8 << 30 // bytes of one package
	maxFiles = 2000    // packages of one task
	// maxUnpacked bounds what a package unpacks to while it is compared with its header, and a
	// source RPM with its commit.
	maxUnpacked = 64 << 30
)

func blobDigest(s string) blob.Digest { return blob.Digest(s) }

// incomingDir holds the files of one lease of a task: those of an older one never mix in.
func (s *Store) incomingDir(t Task) string {
	return filepath.Join(s.Dir, "incoming", leaseName(t))
}

// leaseName names a lease of a task on disk.
func leaseName(t Task) string { return fmt.Sprintf("%d.%d", t.ID, t.fence) }

// cut says why an upload stopped: the disk is full, or whoever sent it did.
func cut(dir string, err error) error {
	if e := durable.Full(dir, err); fault.Code(e) == "disk_full" {
		return e
	}
	return fault.Unavailable("upload_cut", "the upload stopped before its end").Wrap(err).Fix("send it again")
}

// TakeFile stores a file that a builder hands in for a held task. It counts only once
// Finish names it.
func (s *Store) TakeFile(ctx context.Context, id, fence int64, digest string, r io.Reader) error {
	t, _, err := s.heldBuild(ctx, id, fence)
	if err != nil {
		return err
	}
	want, err := blob.Parse(digest)
	if err != nil {
		return err
	}
	dir := s.incomingDir(t)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if es, err := os.ReadDir(dir); err != nil || len(es) >= maxFiles {
		return fault.TooLarge("file_count", "task %d handed in %d files already", id, len(es)).Wrap(err)
	}
	sum := newSum(r, maxFile)
	return durable.Replace(filepath.Join(dir, want.String()), 0o600, func(w io.Writer) error {
		if _, err := io.Copy(w, sum); err != nil {
			return cut(dir, err)
		}
		if sum.left < 0 {
			return fault.TooLarge("file_size", "a file of task %d is over %d bytes", id, int64(maxFile))
		}
		if got := sum.digest(); got != want {
			return fault.Invalid("digest_mismatch", "the file was announced as %s and is %s", want, got).Fix("upload it again")
		}
		return nil
	})
}

// Finish ends a held task with what its builder says of it. What it says is checked first:
// a result that does not hold is the builder's failure.
func (s *Store) Finish(ctx context.Context, id int64, f wire.Finish) error {
	t, b, err := s.heldBuild(ctx, id, f.Fence)
	if err != nil {
		return err
	}
	logs, err := s.closeLogs(ctx, t)
	if err != nil {
		return err
	}
	var res *result
	if f.Failure == nil {
		if res, err = s.check(ctx, t, b, f); err != nil {
			e := fault.As(err)
			if e.Kind == fault.KindInternal || e.Kind == fault.KindUnavailable {
				return err // ours, not the builder's: it may say it again
			}
			f.Failure = &wire.Failure{Infra: true, Code: e.Code, Message: "the result was refused: " + e.Error(), Remedy: "look at the builder " + t.Builder}
		}
	}
	err = s.DB.Write(ctx, func(tx *db.Tx) error {
		t, err := held(tx, id, f.Fence)
		if err != nil {
			return err
		}
		if err := logs.keep(tx, t); err != nil {
			return err
		}
		if f.Started > 0 && f.Started <= tx.Now() && f.Started >= t.Started.UnixMicro() {
			if _, err := tx.Exec("UPDATE build_task SET running = $1 WHERE id = $2", f.Started, id); err != nil {
				return err
			}
		}
		if f.Failure != nil {
			return s.failTask(tx, t, *f.Failure)
		}
		return s.succeed(tx, t, res, f)
	})
	if err == nil {
		s.afterTask(t)
	}
	return err
}

// result is what a task handed in, checked and stored, not yet in the database.
type result struct {
	rpms   []RPM
	noarch map[string]*rpm.Package // by file, to compare with those of other arches
	source *rpm.Package
}

// check reads every RPM that a task handed in, and stores its bytes.
func (s *Store) check(ctx context.Context, t Task, b Build, f wire.Finish) (*result, error) {
	if len(f.Files) == 0 || len(f.Files) > maxFiles {
		return nil, fault.Invalid("result_files", "the task handed in %d packages", len(f.Files))
	}
	if _, _, err := rootDigest(f.Before); err != nil {
		return nil, err
	}
	if _, _, err := rootDigest(f.After); err != nil {
		return nil, err
	}
	res := &result{noarch: map[string]*rpm.Package{}}
	names := map[string]bool{}
	for _, file := range f.Files {
		if names[file.Name] {
			return nil, fault.Invalid("result_files", "%.100q was handed in twice", file.Name)
		}
		names[file.Name] = true
		if err := s.checkFile(ctx, t, b, file, res); err != nil {
			return nil, err
		}
	}
	if t.Method != wire.MethodArch && (len(res.rpms) != 1 || res.source == nil) {
		return nil, fault.Invalid("result_files", "a source task hands in one source RPM, not %d packages", len(res.rpms))
	}
	return res, nil
}

func (s *Store) checkFile(ctx context.Context, t Task, b Build, file wire.File, res *result) error {
	d, err := blob.Parse(file.Digest)
	if err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(s.incomingDir(t), d.String()))
	if errors.Is(err, fs.ErrNotExist) {
		return fault.Unavailable("file_missing", "the file %s of task %d is not here", d, t.ID).Fix("upload it, then finish again")
	}
	if err != nil {
		return err
	}
	defer closeQuietly(f)
	st, err := f.Stat()
	if err != nil {
		return err
	}
	p, err := rpm.Read(f, st.Size())
	if err != nil {
		return err
	}
	if err := p.VerifyDigests(f); err != nil {
		return err
	}
	if err := p.CheckPaths(); err != nil {
		return err
	}
	if err := p.VerifyPayload(f, maxUnpacked); err != nil {
		return err
	}
	n := p.NEVRA()
	if n.File() != file.Name {
		return fault.Invalid("result_name", "the file %.200q holds the package %s", file.Name, n)
	}
	if _, err := rpm.ParseNEVRA(n.String()); err != nil {
		return err
	}
	if t.Method == wire.MethodArch {
		err = s.checkBinary(t, b, p)
		if n.Arch == "noarch" {
			res.noarch[file.Name] = p
		}
	} else {
		err = s.checkSource(ctx, b, p, f)
		res.source = p
	}
	if err != nil {
		return err
	}
	head, err := s.Blobs.PutBytes(p.Head())
	if err != nil {
		return err
	}
	core, _, err := s.Blobs.Put(ctx, io.NewSectionReader(f, p.HeaderStart, p.Size-p.HeaderStart), blob.PutOptions{})
	if err != nil {
		return err
	}
	res.rpms = append(res.rpms, RPM{Build: b.ID, Task: t.ID, File: file.Name, Name: n.Name, Epoch: int64(n.Epoch), Version: n.Version, Release: n.Release,
		Arch: n.Arch, Header: p.HeaderSHA256(), Digest: d, Size: p.Size, Head: head, Core: core})
	return nil
}

func (s *Store) checkBinary(t Task, b Build, p *rpm.Package) error {
	n := p.NEVRA()
	if n.Arch == "src" || n.Arch != "noarch" && n.Arch != t.Arch {
		return fault.Invalid("result_arch", "%s is not for %s", n, t.Arch)
	}
	if want := b.NVR + ".src.rpm"; p.Header.String(rpm.SourceRPM) != want {
		return fault.Invalid("result_source", "%s says that it was built from %.200q, not from %s", n, p.Header.String(rpm.SourceRPM), want)
	}
	return nil
}

// checkSource compares a source RPM with what it was made of: the package's name, and for a
// commit every file with the commit's or with the lookaside cache's.
func (s *Store) checkSource(ctx context.Context, b Build, p *rpm.Package, r io.ReaderAt) error {
	n := p.NEVRA()
	if n.Arch != "src" {
		return fault.Invalid("result_arch", "%s is no source RPM", n)
	}
	if n.Name != b.Package {
		return fault.Invalid("result_name", "the source RPM is of %s, not of %s", n.Name, b.Package)
	}
	if !reNVR.MatchString(n.NVR()) {
		return fault.Invalid("result_name", "%.200q is no name-version-release", n.NVR())
	}
	want := map[string]string{}
	if b.Repo != "" {
		tree, err := s.Git.TreeFiles(ctx, b.Repo, b.Commit)
		if err != nil {
			return err
		}
		for _, f := range tree {
			want[f.Path] = f.Digest.String()
		}
		sources, err := s.Git.Sources(ctx, b.Repo, b.Commit)
		if err != nil {
			return err
		}
		for _, f := range sources {
			want[f.File] = f.Digest.String()
		}
	} else {
		up, err := s.Blobs.Get(blob.Digest(b.SRPM))
		if err != nil {
			return err
		}
		defer closeQuietly(up)
		q, err := rpm.Read(up, up.Size())
		if err != nil {
			return err
		}
		if want, err = q.PayloadDigests(up, maxUnpacked); err != nil {
			return err
		}
	}
	got, err := p.PayloadDigests(r, maxUnpacked)
	if err != nil {
		return err
	}
	for name, sum := range got {
		if want[name] != sum {
			return fault.Invalid("result_source", "the file %.200q in the source RPM of %s is not the one it was built from", name, b.Package)
		}
	}
	return nil
}

// succeed closes a task and takes the build's next step.
func (s *Store) succeed(tx *db.Tx, t Task, res *result, f wire.Finish) error {
	b, err := getBuild(tx, t.Build)
	if err != nil {
		return err
	}
	before, err := keepRoot(tx, f.Before)
	if err != nil {
		return err
	}
	after, err := keepRoot(tx, f.After)
	if err != nil {
		return err
	}
	if why, err := s.keepRPMs(tx, b, res); err != nil {
		return err
	} else if why != nil {
		return s.failTask(tx, t, *why)
	}
	if _, err := event.Append(tx, "build.task", taskSubject(t.ID), map[string]any{"build": t.Build, "state": "CLOSED", "builder": t.Builder, "packages": len(res.rpms), "root": before}); err != nil {
		return err
	}
	_, err = tx.Exec("UPDATE build_task SET state = 'CLOSED', lease = 0, finished = $1, root_before = $2, root_after = $3, code = '', message = '' WHERE id = $4", tx.Now(), before, after, t.ID)
	if err != nil {
		return err
	}
	if res.source != nil {
		return s.fanOut(tx, b, t, res.source)
	}
	var open int
	if err := tx.QueryRow("SELECT COUNT(*) FROM build_task WHERE parent = $1 AND state <> 'CLOSED'", b.Task).Scan(&open); err != nil || open > 0 {
		return err
	}
	return s.complete(tx, b)
}

// keepRPMs writes the rows of a task's packages. A noarch package that another arch handed
// in already must be the same; what is wrong with the package itself comes back as a failure.
func (s *Store) keepRPMs(tx *db.Tx, b Build, res *result) (*wire.Failure, error) {
	for _, r := range res.rpms {
		have, err := rpmsWhere(tx, "build = $1 AND file = $2", b.ID, r.File)
		if err != nil {
			return nil, err
		}
		if len(have) > 0 {
			if have[0].Core == r.Core {
				continue
			}
			diff, err := s.noarchDiff(have[0], res.noarch[r.File])
			if err != nil {
				return nil, err
			}
			if len(diff) > 0 {
				return &wire.Failure{Code: "noarch_differs", Message: fmt.Sprintf("%s differs between arches: %s", r.File, strings.Join(diff, "; ")),
					Remedy: "make the package's content the same on every arch, or drop noarch"}, nil
			}
			continue
		}
		if !b.Scratch && r.Arch != "src" { // a source RPM that exists is an NVR that exists: fanOut says so
			other, err := rpmsWhere(tx, "file = $1 AND build IN (SELECT id FROM build_build WHERE scratch = 0 AND state IN ('BUILDING', 'COMPLETE') AND id <> $2)", r.File, b.ID)
			if err != nil {
				return nil, err
			}
			if len(other) > 0 {
				return &wire.Failure{Code: "rpm_exists", Message: fmt.Sprintf("%s is made by build %d already", r.File, other[0].Build), Remedy: "raise the release"}, nil
			}
		}
		id, err := tx.NextID("build_rpm")
		if err != nil {
			return nil, err
		}
		_, err = tx.Exec("INSERT INTO build_rpm (id, build, task, file, name, epoch, version, release, arch, header, digest, size, head, core) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
			id, b.ID, r.Task, r.File, r.Name, r.Epoch, r.Version, r.Release, r.Arch, r.Header, r.Digest.String(), r.Size, r.Head.String(), r.Core.String())
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// noarchDiff compares a noarch package with the one that another arch built.
func (s *Store) noarchDiff(have RPM, p *rpm.Package) ([]string, error) {
	if p == nil {
		return []string{"it is not noarch everywhere"}, nil
	}
	q, err := s.openRPM(have)
	if err != nil {
		return nil, err
	}
	return compare(q.Header, p.Header, false), nil
}

// openRPM reads the headers of a stored package.
func (s *Store) openRPM(r RPM) (*rpm.Package, error) {
	head, err := s.Blobs.ReadAll(r.Head, 64<<20)
	if err != nil {
		return nil, err
	}
	core, err := s.Blobs.Get(r.Core)
	if err != nil {
		return nil, err
	}
	defer closeQuietly(core)
	return rpm.Read(rpm.Splice(head, core, core.Size()), int64(len(head))+core.Size())
}

// fanOut gives the build its NVR, from the source RPM, and queues a task for each arch.
func (s *Store) fanOut(tx *db.Tx, b Build, t Task, src *rpm.Package) error {
	plan, err := getPlan(tx, b.ID)
	if err != nil {
		return err
	}
	n := src.NEVRA()
	if !b.Scratch {
		var other int64
		err := tx.QueryRow("SELECT id FROM build_build WHERE nvr = $1 AND scratch = 0 AND state IN ('BUILDING', 'COMPLETE') AND id <> $2", n.NVR(), b.ID).Scan(&other)
		if err == nil {
			return s.endBuild(tx, b, Failed, wire.Failure{Code: "nvr_exists", Message: fmt.Sprintf("%s exists already: build %d", n.NVR(), other), Remedy: "raise the release, or the version, and push again"})
		}
		if !db.NoRow(err) {
			return err
		}
	}
	if _, err := tx.Exec("UPDATE build_build SET nvr = $1, epoch = $2 WHERE id = $3", n.NVR(), n.Epoch, b.ID); err != nil {
		return err
	}
	arches := taskArches(src.Header, plan.Arches)
	if len(arches) == 0 {
		return s.endBuild(tx, b, Failed, wire.Failure{Code: "no_arch", Message: fmt.Sprintf("%s builds on none of %s", n.NVR(), strings.Join(plan.Arches, ", ")),
			Remedy: "look at ExclusiveArch and ExcludeArch in the spec file"})
	}
	for _, a := range arches {
		if _, err := newTask(tx, Task{Parent: b.Task, Build: b.ID, Method: wire.MethodArch, Arch: a, Label: a, Channel: t.Channel, Priority: plan.Priority - 1, State: TaskFree}); err != nil {
			return err
		}
	}
	return nil
}

// taskArches is which arches a source RPM is built on, by its BuildArch, ExclusiveArch and
// ExcludeArch.
func taskArches(h rpm.Header, tag []string) []string {
	if b := h.Strings(rpm.BuildArchs); slices.Contains(b, "noarch") {
		excl := h.Strings(rpm.ExclArch)
		if len(excl) == 0 || slices.Contains(excl, "noarch") || slices.ContainsFunc(tag, func(a string) bool { return slices.Contains(excl, a) }) {
			return []string{"noarch"}
		}
		return nil
	}
	excl, not := h.Strings(rpm.ExclArch), h.Strings(rpm.ExcludeArch)
	var out []string
	for _, a := range tag {
		if (len(excl) == 0 || slices.Contains(excl, a)) && !slices.Contains(not, a) {
			out = append(out, a)
		}
	}
	return out
}

// complete ends a build that worked, and hands it to its tag in the same transaction.
func (s *Store) complete(tx *db.Tx, b Build) error {
	b, err := getBuild(tx, b.ID)
	if err != nil {
		return err
	}
	verdict := ""
	if b.Verifies != 0 {
		v, err := s.judge(tx, b)
		if err != nil {
			return err
		}
		verdict = mustJSON(v)
	}
	if _, err := event.Append(tx, "build.done", buildSubject(b.ID), map[string]any{"package": b.Package, "nvr": b.NVR, "tag": b.Tag, "scratch": b.Scratch}); err != nil {
		return err
	}
	if _, err := tx.Exec("UPDATE build_task SET state = 'CLOSED', finished = $1 WHERE id = $2", tx.Now(), b.Task); err != nil {
		return err
	}
	if _, err := tx.Exec("UPDATE build_build SET state = 'COMPLETE', finished = $1, verdict = $2 WHERE id = $3", tx.Now(), verdict, b.ID); err != nil {
		return err
	}
	if b.Tag == "" {
		return nil
	}
	return s.Tags.Put(tx, b.Tag, b.ID, b.Package)
}

// TakeSRPM stores a source RPM that a person uploads, to be built by its digest. It is checked
// before it is stored.
func (s *Store) TakeSRPM(ctx context.Context, r io.Reader) (blob.Digest, error) {
	if err := auth.Need(ctx, "build.submit", "srpm"); err != nil {
		return "", err
	}
	dir := filepath.Join(s.Dir, "incoming")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(dir, "srpm-")
	if err != nil {
		return "", durable.Full(dir, err)
	}
	defer closeQuietly(f)
	if err := os.Remove(f.Name()); err != nil {
		return "", err
	}
	size, err := io.Copy(f, io.LimitReader(r, maxFile+1))
	if err != nil {
		return "", cut(dir, err)
	}
	if size > maxFile {
		return "", fault.TooLarge("file_size", "a source RPM has at most %d bytes", int64(maxFile))
	}
	if _, err := readSRPM(f, size); err != nil {
		return "", err
	}
	d, _, err := s.Blobs.Put(ctx, io.NewSectionReader(f, 0, size), blob.PutOptions{})
	return d, err
}

// readSRPM reads a source RPM from outside and refuses what no builder should see.
func readSRPM(r io.ReaderAt, size int64) (*rpm.Package, error) {
	p, err := rpm.Read(r, size)
	if err != nil {
		return nil, err
	}
	n := p.NEVRA()
	if !p.Header.IsSource() {
		return nil, fault.Invalid("srpm", "%s is no source RPM", n).Fix("give the .src.rpm file")
	}
	if _, err := rpm.ParseNEVRA(n.String()); err != nil || !reNVR.MatchString(n.NVR()) {
		return nil, fault.Invalid("srpm", "%.200q is no name-version-release", n.NVR())
	}
	if err := p.VerifyDigests(r); err != nil {
		return nil, err
	}
	if err := p.CheckPaths(); err != nil {
		return nil, err
	}
	return p, p.VerifyPayload(r, maxUnpacked)
}

func (s *Store) fromSRPM(b *Build, plan *Plan, d blob.Digest) error {
	if _, err := blob.Parse(d.String()); err != nil {
		return err
	}
	f, err := s.Blobs.Get(d)
	if err != nil {
		return err
	}
	defer closeQuietly(f)
	p, err := readSRPM(f, f.Size()) // its digest may be of anything that was ever uploaded
	if err != nil {
		return err
	}
	b.Package, plan.Epoch = p.NEVRA().Name, int64(p.Header.Int(rpm.BuildTime))
	return nil
}
