package build

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/build/wire"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
)

// Request asks for a build: of a commit (Repo and Ref) or of an uploaded source RPM.
type Request struct {
	Target   string      `json:"target"`
	Repo     string      `json:"repo,omitempty" doc:"repository, such as rpms/hello"`
	Ref      string      `json:"ref,omitempty" doc:"branch, tag or commit; the default branch when empty"`
	SRPM     blob.Digest `json:"srpm,omitempty" doc:"sha256 of an uploaded source RPM"`
	Scratch  bool        `json:"scratch,omitempty"`
	Arches   []string    `json:"arches,omitempty" doc:"only these arches; for scratch builds"`
	Priority int64       `json:"priority,omitempty" doc:"lower goes first; 20 when not given"`
	Channel  string      `json:"channel,omitempty" doc:"pool of builders; default when not given"`
}

// Submit queues a build. Everything that decides the result is fixed now: the commit, the
// repositories of the buildroot, the macros.
func (s *Store) Submit(ctx context.Context, r Request) (Build, error) {
	if err := auth.Need(ctx, "build.submit", "target/"+r.Target); err != nil {
		return Build{}, err
	}
	if (r.Repo == "") == (r.SRPM == "") {
		return Build{}, fault.Invalid("build_source", "a build needs either a repository or a source RPM").Fix("give a package name, or the file of a source RPM")
	}
	if len(r.Arches) > 0 && !r.Scratch {
		return Build{}, fault.Invalid("build_arches", "only a scratch build may choose its arches").Fix("add --scratch, or leave the arches out")
	}
	if r.Channel != "" && !reWord.MatchString(r.Channel) {
		return Build{}, fault.Invalid("channel", "%.80q is no channel", r.Channel).Fix("see `drover builder list` for the channels of builders")
	}
	if r.Priority < 0 || r.Priority > 1000 {
		return Build{}, fault.Invalid("priority", "a priority is a number from 0 to 1000, not %d", r.Priority)
	}
	var target Target
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) { target, err = s.Tags.For(tx, r.Target); return err })
	if err != nil {
		return Build{}, err
	}
	b := Build{Target: target.Name, Tag: target.DestTag, Scratch: r.Scratch, Repo: r.Repo, SRPM: r.SRPM.String(), Owner: auth.From(ctx).String(), State: Building}
	if r.Scratch {
		b.Tag = ""
	}
	plan := Plan{BuildTag: target.BuildTag, Arches: target.Arches, Roots: map[string]wire.Root{}, Macros: maps.Clone(target.Macros),
		Limits: s.Limits, Channel: r.Channel, Priority: r.Priority}
	if plan.Channel == "" {
		plan.Channel = "default"
	}
	if plan.Priority == 0 {
		plan.Priority = DefaultPriority
	}
	if len(r.Arches) > 0 {
		plan.Arches = r.Arches
		for _, a := range r.Arches {
			if !slices.Contains(target.Arches, a) {
				return Build{}, fault.Invalid("arch", "the build tag %s has no arch %.40q", target.BuildTag, a).Fix("use one of %s", strings.Join(target.Arches, ", "))
			}
		}
	}
	if r.Repo != "" {
		if err := s.fromCommit(ctx, &b, &plan, r.Ref); err != nil {
			return Build{}, err
		}
	} else if err := s.fromSRPM(&b, &plan, r.SRPM); err != nil {
		return Build{}, err
	}
	for _, a := range plan.Arches {
		repos, err := s.Roots.Repos(ctx, target.BuildTag, a)
		if err != nil {
			return Build{}, err
		}
		plan.Roots[a] = wire.Root{Repos: repos, Install: target.Install}
	}
	return s.start(ctx, b, plan)
}

func (s *Store) fromCommit(ctx context.Context, b *Build, plan *Plan, ref string) (err error) {
	name, ok := strings.CutPrefix(b.Repo, "rpms/")
	if !ok {
		return fault.Invalid("build_repo", "%.100q holds no package", b.Repo).Fix("packages live in rpms/NAME")
	}
	if b.Commit, err = s.Git.Resolve(ctx, b.Repo, ref); err != nil {
		return err
	}
	t, err := s.Git.CommitTime(ctx, b.Repo, b.Commit)
	if err != nil {
		return err
	}
	sources, err := s.Git.Sources(ctx, b.Repo, b.Commit)
	if err != nil {
		return err
	}
	for _, f := range sources {
		plan.Sources = append(plan.Sources, wire.File{Name: f.File, Digest: f.Digest.String(), Size: f.Size})
	}
	b.Package, plan.Epoch = name, t.Unix()
	return nil
}

// start writes the rows of a new build: the build, its root task and the first child.
func (s *Store) start(ctx context.Context, b Build, plan Plan) (Build, error) {
	first := Task{Method: wire.MethodSRPM, Arch: plan.Arches[0], Label: "srpm", Channel: plan.Channel, Priority: plan.Priority - 1, State: TaskFree}
	if b.Repo == "" {
		first.Method = wire.MethodRebuild
	}
	err := s.DB.Write(ctx, func(tx *db.Tx) (err error) {
		if b.ID, err = tx.NextID("build_build"); err != nil {
			return err
		}
		b.Created = db.Time(tx.Now())
		b.Since, err = event.Append(tx, "build.submit", buildSubject(b.ID), map[string]any{"package": b.Package, "target": b.Target, "repo": b.Repo,
			"commit": b.Commit, "srpm": b.SRPM, "scratch": b.Scratch, "verifies": b.Verifies})
		if err != nil {
			return err
		}
		b.Task, err = newTask(tx, Task{Build: b.ID, Method: MethodBuild, Arch: "noarch", Label: fmt.Sprintf("build-%d", b.ID), Channel: plan.Channel, Priority: plan.Priority, State: TaskOpen})
		if err != nil {
			return err
		}
		first.Parent, first.Build = b.Task, b.ID
		if _, err := newTask(tx, first); err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO build_build (id, package, nvr, epoch, state, target, tag, scratch, verifies, repo, revision, srpm, owner, plan, task, created, finished,
			code, message, remedy, line, verdict, since)
			VALUES ($1, $2, '', 0, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 0, '', '', '', '', '', $15)`,
			b.ID, b.Package, string(b.State), b.Target, b.Tag, db.Bool(b.Scratch), b.Verifies, b.Repo, b.Commit, b.SRPM, b.Owner, mustJSON(plan), b.Task, tx.Now(), b.Since)
		return err
	})
	if err == nil {
		s.queue.ring()
	}
	return b, err
}

// Cancel ends a build that is not done. Builders are told at once; canceling again is no
// error.
func (s *Store) Cancel(ctx context.Context, id int64, reason string) error {
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		b, err := getBuild(tx, id)
		if err != nil {
			return err
		}
		if a := auth.From(ctx); a.String() != b.Owner || !a.May("build.submit", "target/"+b.Target) {
			if err := auth.Need(ctx, "build.cancel", "target/"+b.Target); err != nil {
				return err
			}
		}
		if b.State == Canceled {
			return nil
		}
		if b.State != Building {
			return fault.Conflict("build_done", "build %d is %s already", id, strings.ToLower(string(b.State)))
		}
		return s.endBuild(tx, b, Canceled, wire.Failure{Code: "canceled", Message: "canceled by " + tx.Actor() + optional(": ", reason)})
	})
}

func optional(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

// endBuild ends a build that did not work: all its tasks that are not done are canceled,
// the root task takes the state.
func (s *Store) endBuild(tx *db.Tx, b Build, state State, f wire.Failure) error {
	ts, err := tasksWhere(tx, "build = $1 AND state IN ('FREE', 'OPEN') ORDER BY id", b.ID)
	if err != nil {
		return err
	}
	root := TaskFailed
	if state == Canceled {
		root = TaskCanceled
	}
	for _, t := range ts {
		to := TaskCanceled
		if t.ID == b.Task {
			to = root
		} else if t.State == TaskOpen {
			tx.AfterCommit(func() { s.afterTask(t) })
		}
		// The fence moves, so that nothing the builder still says counts.
		if _, err := tx.Exec("UPDATE build_task SET state = $1, fence = fence + 1, lease = 0, finished = $2 WHERE id = $3", string(to), tx.Now(), t.ID); err != nil {
			return err
		}
	}
	tx.AfterCommit(s.queue.ring)
	kind := "build.failed"
	if state == Canceled {
		kind = "build.canceled"
	}
	if _, err := event.Append(tx, kind, buildSubject(b.ID), map[string]any{"package": b.Package, "nvr": b.NVR, "code": f.Code, "message": clip(f.Message)}); err != nil {
		return err
	}
	_, err = tx.Exec("UPDATE build_build SET state = $1, finished = $2, code = $3, message = $4, remedy = $5, line = $6 WHERE id = $7",
		string(state), tx.Now(), clip(f.Code), clip(f.Message), clip(f.Remedy), clip(f.Line), b.ID)
	return err
}

// clip bounds a text that a builder sent.
func clip(s string) string {
	const most = 4000
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "?")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// failTask ends a task that did not work: an infrastructure failure gives it back to the
// queue while attempts are left, everything else fails the build.
func (s *Store) failTask(tx *db.Tx, t Task, f wire.Failure) error {
	if f.Infra && t.Attempt < maxAttempts {
		if _, err := event.Append(tx, "build.task", taskSubject(t.ID), map[string]any{"build": t.Build, "state": "FREE", "code": clip(f.Code), "message": clip(f.Message), "builder": t.Builder}); err != nil {
			return err
		}
		// The logs of an attempt that is repeated carry its number: the plain names are the last one's.
		if _, err := tx.Exec("UPDATE build_log SET name = name || '.' || CAST($1 AS TEXT) WHERE task = $2 AND name LIKE '%.log'", strconv.FormatInt(t.Attempt, 10), t.ID); err != nil {
			return err
		}
		_, err := tx.Exec("UPDATE build_task SET state = 'FREE', fence = fence + 1, lease = 0, builder = '', code = $1, message = $2 WHERE id = $3", clip(f.Code), clip(f.Message), t.ID)
		return err
	}
	if _, err := event.Append(tx, "build.task", taskSubject(t.ID), map[string]any{"build": t.Build, "state": "FAILED", "code": clip(f.Code), "builder": t.Builder}); err != nil {
		return err
	}
	_, err := tx.Exec("UPDATE build_task SET state = 'FAILED', fence = fence + 1, lease = 0, finished = $1, code = $2, message = $3, remedy = $4, line = $5, kept = $6 WHERE id = $7",
		tx.Now(), clip(f.Code), clip(f.Message), clip(f.Remedy), clip(f.Line), clip(f.Root), t.ID)
	if err != nil {
		return err
	}
	b, err := getBuild(tx, t.Build)
	if err != nil {
		return err
	}
	return s.endBuild(tx, b, Failed, f)
}
