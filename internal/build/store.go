package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"drover/internal/blob"
	"drover/internal/build/wire"
	"drover/internal/db"
	"drover/internal/fault"
)

const buildColumns = "id, package, nvr, epoch, state, target, tag, scratch, verifies, repo, revision, srpm, owner, task, created, finished, code, message, remedy, line, verdict, since"

func scanBuild(scan func(...any) error) (Build, error) {
	var b Build
	var scratch, created, finished int64
	var verdict string
	err := scan(&b.ID, &b.Package, &b.NVR, &b.Epoch, &b.State, &b.Target, &b.Tag, &scratch, &b.Verifies, &b.Repo, &b.Commit, &b.SRPM, &b.Owner,
		&b.Task, &created, &finished, &b.Code, &b.Message, &b.Remedy, &b.Line, &verdict, &b.Since)
	if err != nil {
		return b, err
	}
	b.Scratch, b.Created, b.Finished = scratch != 0, db.Time(created), db.Time(finished)
	if verdict != "" {
		b.Verdict = new(Verdict)
		err = json.Unmarshal([]byte(verdict), b.Verdict)
	}
	return b, err
}

// getBuild reads a build by number.
func getBuild(tx *db.Tx, id int64) (Build, error) {
	b, err := scanBuild(tx.QueryRow("SELECT "+buildColumns+" FROM build_build WHERE id = $1", id).Scan)
	if db.NoRow(err) {
		return b, unknown("build", id)
	}
	return b, err
}

func getPlan(tx *db.Tx, build int64) (p Plan, err error) {
	var text string
	if err := tx.QueryRow("SELECT plan FROM build_build WHERE id = $1", build).Scan(&text); err != nil {
		return p, err
	}
	return p, json.Unmarshal([]byte(text), &p)
}

// Filter chooses builds. Zero fields choose all.
type Filter struct {
	Package string
	State   State
	Target  string
	Commit  string
	Query   string // part of the NVR or package
	Scratch bool   // scratch builds too
	Before  int64  // only builds with a lower number
	Limit   int    // 0 means 50, at most 500
}

// where is the condition of a filter, with its parameters.
func (f Filter) where() (string, []any) {
	where := []string{"1 = 1"}
	var args []any
	and := func(cond string, v any) {
		args = append(args, v)
		where = append(where, strings.ReplaceAll(cond, "?", "$"+strconv.Itoa(len(args))))
	}
	if f.Package != "" {
		and("package = ?", f.Package)
	}
	if f.State != "" {
		and("state = ?", string(f.State))
	}
	if f.Target != "" {
		and("target = ?", f.Target)
	}
	if f.Commit != "" {
		and("revision = ?", f.Commit)
	}
	if f.Query != "" {
		and(`(nvr LIKE ? ESCAPE '\' OR package LIKE ? ESCAPE '\')`, "%"+db.Like(f.Query))
	}
	if !f.Scratch {
		where = append(where, "scratch = 0")
	}
	if f.Before > 0 {
		and("id < ?", f.Before)
	}
	return strings.Join(where, " AND "), args
}

// Count counts the builds that a filter lets through, before and after any of them.
func (s *Store) Count(ctx context.Context, f Filter) (n int64, err error) {
	f.Before = 0
	where, args := f.where()
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow("SELECT COUNT(*) FROM build_build WHERE "+where, args...).Scan(&n)
	})
	return n, err
}

// List reads builds, newest first.
func (s *Store) List(ctx context.Context, f Filter) ([]Build, error) {
	where, args := f.where()
	q := "SELECT " + buildColumns + " FROM build_build WHERE " + where
	if f.Limit <= 0 {
		f.Limit = 50
	}
	q += " ORDER BY id DESC LIMIT " + strconv.Itoa(min(f.Limit, 500))
	out := []Build{}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			b, err := scanBuild(scan)
			out = append(out, b)
			return err
		}, q, args...)
	})
	return out, err
}

// Find reads a build by number or by NVR: of several builds of one NVR the complete one,
// else the newest.
func (s *Store) Find(ctx context.Context, ref string) (b Build, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		b, err = find(tx, ref)
		return err
	})
	return b, err
}

func find(tx *db.Tx, ref string) (b Build, err error) {
	if id, perr := strconv.ParseInt(ref, 10, 64); perr == nil {
		return getBuild(tx, id)
	}
	b, err = scanBuild(tx.QueryRow("SELECT "+buildColumns+" FROM build_build WHERE nvr = $1 ORDER BY scratch, CASE state WHEN 'COMPLETE' THEN 0 ELSE 1 END, id DESC LIMIT 1", ref).Scan)
	if db.NoRow(err) {
		return b, unknown("build", strconv.Quote(ref))
	}
	return b, err
}

const taskColumns = "id, parent, build, method, arch, label, channel, priority, state, attempt, builder, fence, lease, created, started, running, finished, code, message, remedy, line, kept, root_before, root_after"

func scanTask(scan func(...any) error) (Task, error) {
	var t Task
	var created, started, running, finished int64
	err := scan(&t.ID, &t.Parent, &t.Build, &t.Method, &t.Arch, &t.Label, &t.Channel, &t.Priority, &t.State, &t.Attempt, &t.Builder, &t.fence, &t.lease,
		&created, &started, &running, &finished, &t.Code, &t.Message, &t.Remedy, &t.Line, &t.Kept, &t.Before, &t.After)
	t.Created, t.Started, t.Running, t.Finished = db.Time(created), db.Time(started), db.Time(running), db.Time(finished)
	return t, err
}

func tasksWhere(tx *db.Tx, where string, args ...any) ([]Task, error) {
	out := []Task{}
	err := tx.Each(func(scan func(...any) error) error {
		t, err := scanTask(scan)
		out = append(out, t)
		return err
	}, "SELECT "+taskColumns+" FROM build_task WHERE "+where, args...)
	return out, err
}

func getTask(tx *db.Tx, id int64) (Task, error) {
	t, err := scanTask(tx.QueryRow("SELECT "+taskColumns+" FROM build_task WHERE id = $1", id).Scan)
	if db.NoRow(err) {
		return t, unknown("task", id)
	}
	return t, err
}

// Task reads a task with its logs.
func (s *Store) Task(ctx context.Context, id int64) (t Task, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		if t, err = getTask(tx, id); err != nil {
			return err
		}
		t.Logs, err = logsOf(tx, id)
		return err
	})
	return t, err
}

// Tasks reads the task tree of a build, parents before children, each with its logs.
func (s *Store) Tasks(ctx context.Context, build int64) (ts []Task, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		if ts, err = tasksWhere(tx, "build = $1 ORDER BY id", build); err != nil {
			return err
		}
		for i := range ts {
			if ts[i].Logs, err = logsOf(tx, ts[i].ID); err != nil {
				return err
			}
		}
		return nil
	})
	return ts, err
}

// Queue reads the tasks that are not done, in the order in which they are handed out.
func (s *Store) Queue(ctx context.Context) (ts []Task, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		ts, err = tasksWhere(tx, "state IN ('FREE', 'OPEN') ORDER BY state DESC, priority, id LIMIT 500")
		return err
	})
	return ts, err
}

func logsOf(tx *db.Tx, task int64) (ls []Log, err error) {
	err = tx.Each(func(scan func(...any) error) error {
		var l Log
		err := scan(&l.Name, &l.Size)
		ls = append(ls, l)
		return err
	}, "SELECT name, size FROM build_log WHERE task = $1 ORDER BY name", task)
	return ls, err
}

func newTask(tx *db.Tx, t Task) (int64, error) {
	id, err := tx.NextID("build_task")
	if err != nil {
		return 0, err
	}
	started := int64(0)
	if t.State == TaskOpen {
		started = tx.Now()
	}
	_, err = tx.Exec(`INSERT INTO build_task (id, parent, build, method, arch, label, channel, priority, state, attempt, builder, fence, lease, created, started, running,
		finished, code, message, remedy, line, kept, root_before, root_after)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, '', 0, 0, $10, $11, 0, 0, '', '', '', '', '', '', '')`,
		id, t.Parent, t.Build, t.Method, t.Arch, t.Label, t.Channel, t.Priority, string(t.State), tx.Now(), started)
	return id, err
}

const rpmColumns = "id, build, task, file, name, epoch, version, release, arch, header, digest, size, head, core"

func rpmsWhere(tx *db.Tx, where string, args ...any) ([]RPM, error) {
	out := []RPM{}
	err := tx.Each(func(scan func(...any) error) error {
		var r RPM
		err := scan(&r.ID, &r.Build, &r.Task, &r.File, &r.Name, &r.Epoch, &r.Version, &r.Release, &r.Arch, &r.Header, &r.Digest, &r.Size, &r.Head, &r.Core)
		out = append(out, r)
		return err
	}, "SELECT "+rpmColumns+" FROM build_rpm WHERE "+where, args...)
	return out, err
}

// RPMs reads the packages of a build, the source RPM first.
func (s *Store) RPMs(ctx context.Context, build int64) (rs []RPM, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error { rs, err = RPMsOf(tx, build); return err })
	return rs, err
}

// RPMsOf reads the packages of a build in a transaction.
func RPMsOf(tx *db.Tx, build int64) ([]RPM, error) {
	return rpmsWhere(tx, "build = $1 ORDER BY CASE arch WHEN 'src' THEN 0 ELSE 1 END, file", build)
}

// ByHeader finds the RPM whose immutable header has this sha256, of a build that is no
// scratch build; fault rpm_unknown.
func (s *Store) ByHeader(ctx context.Context, header string) (r RPM, b Build, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		rs, err := rpmsWhere(tx, "header = $1 AND build IN (SELECT id FROM build_build WHERE scratch = 0 AND state = 'COMPLETE') ORDER BY id", header)
		if err != nil {
			return err
		}
		if len(rs) == 0 {
			return fault.NotFound("rpm_unknown", "no package with header %s was built here", header)
		}
		r = rs[0]
		b, err = getBuild(tx, r.Build)
		return err
	})
	return r, b, err
}

// ByFile finds the packages with this file name, newest first.
func (s *Store) ByFile(ctx context.Context, file string) (rs []RPM, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		rs, err = rpmsWhere(tx, "file = $1 AND build IN (SELECT id FROM build_build WHERE scratch = 0 AND state = 'COMPLETE') ORDER BY id DESC", file)
		return err
	})
	return rs, err
}

// Plan reads what a build was told to do.
func (s *Store) Plan(ctx context.Context, build int64) (p Plan, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error { p, err = getPlan(tx, build); return err })
	return p, err
}

// Root reads the packages of a buildroot by its digest, sorted.
func (s *Store) Root(ctx context.Context, digest string) ([]wire.Pkg, error) {
	var out []wire.Pkg
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var p wire.Pkg
			err := scan(&p.NEVRA, &p.Header)
			out = append(out, p)
			return err
		}, "SELECT nevra, header FROM build_root_package WHERE root = $1 ORDER BY nevra, header", digest)
	})
	if err == nil && len(out) == 0 {
		return nil, fault.NotFound("root_unknown", "there is no buildroot %s", digest)
	}
	return out, err
}

// maxRoot bounds the packages of one buildroot.
const maxRoot = 20_000

// rootDigest is the identity of a buildroot: the sha256 of its sorted lines "NEVRA header".
func rootDigest(pkgs []wire.Pkg) (string, []wire.Pkg, error) {
	if len(pkgs) == 0 || len(pkgs) > maxRoot {
		return "", nil, fault.Invalid("root_size", "a buildroot of %d packages was reported", len(pkgs))
	}
	pkgs = slices.Clone(pkgs)
	slices.SortFunc(pkgs, func(a, b wire.Pkg) int {
		if c := strings.Compare(a.NEVRA, b.NEVRA); c != 0 {
			return c
		}
		return strings.Compare(a.Header, b.Header)
	})
	pkgs = slices.Compact(pkgs)
	h := sha256.New()
	for _, p := range pkgs {
		if len(p.NEVRA) > 512 || strings.ContainsAny(p.NEVRA, " \n") || !blob.Digest(p.Header).Valid() {
			return "", nil, fault.Invalid("root_package", "%.100q is no package of a buildroot", p.NEVRA+" "+p.Header)
		}
		fmt.Fprintf(h, "%s %s\n", p.NEVRA, p.Header)
	}
	return hex.EncodeToString(h.Sum(nil)), pkgs, nil
}

// keepRoot stores a buildroot once per distinct set.
func keepRoot(tx *db.Tx, pkgs []wire.Pkg) (string, error) {
	digest, pkgs, err := rootDigest(pkgs)
	if err != nil {
		return "", err
	}
	n, err := tx.Exec("INSERT INTO build_root (digest, packages) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING", digest, len(pkgs))
	if err != nil || n == 0 {
		return digest, err
	}
	rows := make(map[string]wire.Pkg, len(pkgs))
	for i, p := range pkgs {
		rows[strconv.Itoa(i)] = p
	}
	text, err := json.Marshal(rows)
	if err != nil {
		return "", err
	}
	_, err = tx.Exec("INSERT INTO build_root_package (nevra, header, root) SELECT value->>'n', value->>'h', CAST($1 AS TEXT) FROM json_each($2)", digest, string(text))
	return digest, err
}

// Get reads a build by number.
func (s *Store) Get(ctx context.Context, id int64) (b Build, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error { b, err = getBuild(tx, id); return err })
	return b, err
}

// UsedBlobs tells which of some blobs the rows of builds name: packages, source packages and
// logs.
func UsedBlobs(tx *db.Tx, ds []blob.Digest) (out []blob.Digest, err error) {
	for _, q := range []string{
		"SELECT digest FROM build_rpm WHERE digest IN (SELECT value->>'v' FROM json_each($1))",
		"SELECT head FROM build_rpm WHERE head IN (SELECT value->>'v' FROM json_each($1))",
		"SELECT core FROM build_rpm WHERE core IN (SELECT value->>'v' FROM json_each($1))",
		"SELECT digest FROM build_log WHERE digest IN (SELECT value->>'v' FROM json_each($1))",
		"SELECT srpm FROM build_build WHERE srpm IN (SELECT value->>'v' FROM json_each($1))",
	} {
		some, err := db.Column[blob.Digest](tx, q, db.List(ds))
		if err != nil {
			return nil, err
		}
		out = append(out, some...)
	}
	return out, nil
}
