package build

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"time"

	"drover/internal/auth"
	"drover/internal/build/wire"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
)

// maxAttempts is how often a task is handed out when builders, not the package, are at
// fault.
const maxAttempts = 3

var reWord = regexp.MustCompile(`^[a-z0-9_][a-z0-9_.-]{0,63}$`)

// Poll answers a builder: it hands out free tasks that fit, and names held tasks that the
// builder has to drop. With nothing to say it waits until there is, or p.Wait is over.
func (s *Store) Poll(ctx context.Context, p wire.Poll) (wire.Orders, error) {
	builder := auth.From(ctx).Name
	if err := auth.Need(ctx, "work.build", builder); err != nil {
		return wire.Orders{}, err
	}
	if p.Version != wire.Version {
		return wire.Orders{}, fault.Invalid("builder_version", "this builder speaks version %d, the server %d", p.Version, wire.Version).
			Fix("run the same version of drover on both")
	}
	for _, w := range append(slices.Clone(p.Arches), p.Channels...) {
		if !reWord.MatchString(w) {
			return wire.Orders{}, fault.Invalid("builder_word", "%.80q is no arch or channel", w)
		}
	}
	if len(p.Arches) == 0 || len(p.Arches) > 20 || len(p.Channels) == 0 || len(p.Channels) > 20 || len(p.Running) > 1000 || len(p.Host) > 255 {
		return wire.Orders{}, fault.Invalid("builder_poll", "a builder has 1 to 20 arches, 1 to 20 channels, and a host name")
	}
	enabled, err := s.seen(ctx, builder, p)
	if err != nil {
		return wire.Orders{}, err
	}
	poll := s.newest(builder)
	if err := s.dropped(ctx, builder, p.Running); err != nil {
		return wire.Orders{}, err
	}
	deadline := time.NewTimer(time.Duration(p.Wait) * time.Second)
	defer deadline.Stop()
	for {
		woken := s.woken()
		o := wire.Orders{Tasks: []wire.Task{}}
		if o.Cancel, err = s.lost(ctx, builder, p.Running); err != nil {
			return o, err
		}
		// A task that this builder has just ended leaves its slot free: the next one goes out in
		// the same answer.
		for enabled && len(o.Tasks) < p.Slots+len(o.Cancel) {
			t, err := s.lease(ctx, builder, poll, p)
			if err != nil {
				return o, err
			}
			if t == nil {
				break
			}
			o.Tasks = append(o.Tasks, *t)
		}
		// Requests can overtake each other: a poll that is not the newest asks again.
		if len(o.Tasks) > 0 || len(o.Cancel) > 0 || !s.isNewest(builder, poll) {
			return o, nil
		}
		// Another server on the same database cannot wake us: look again now and then.
		again := time.NewTimer(5 * time.Second)
		select {
		case <-ctx.Done():
			again.Stop()
			return o, ctx.Err()
		case <-deadline.C:
			again.Stop()
			return o, nil
		case <-woken:
			again.Stop()
		case <-again.C:
		}
	}
}

// seen notes that a builder is there. Its first word is an event; later ones are bulk.
func (s *Store) seen(ctx context.Context, name string, p wire.Poll) (enabled bool, err error) {
	arches, channels := mustJSON(p.Arches), mustJSON(p.Channels)
	var was struct {
		host, arches, channels string
		slots, enabled, seen   int64
	}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow("SELECT host, arches, channels, slots, enabled, seen FROM build_builder WHERE name = $1", name).
			Scan(&was.host, &was.arches, &was.channels, &was.slots, &was.enabled, &was.seen)
	})
	fresh := db.NoRow(err)
	if err != nil && !fresh {
		return false, err
	}
	same := was.host == p.Host && was.arches == arches && was.channels == channels
	if !fresh && same && s.DB.Now()-was.seen < (30*time.Second).Microseconds() {
		return was.enabled != 0, nil
	}
	slots := int64(p.Slots + len(p.Running))
	err = s.DB.Write(ctx, func(tx *db.Tx) error {
		if fresh || !same {
			if _, err := event.Append(tx, "build.builder", "builder/"+name, map[string]any{"host": p.Host, "arches": p.Arches, "channels": p.Channels}); err != nil {
				return err
			}
		}
		_, err := tx.Exec(`INSERT INTO build_builder (name, host, arches, channels, slots, enabled, note, seen) VALUES ($1, $2, $3, $4, $5, 1, '', $6)
			ON CONFLICT (name) DO UPDATE SET host = excluded.host, arches = excluded.arches, channels = excluded.channels, slots = excluded.slots, seen = excluded.seen`,
			name, p.Host, arches, channels, slots, tx.Now())
		return err
	})
	return fresh || was.enabled != 0, err
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only strings, numbers and maps of them come here
	}
	return string(b)
}

// lost names the held tasks that are not this builder's any more.
func (s *Store) lost(ctx context.Context, builder string, held []wire.Held) (ids []int64, err error) {
	if len(held) == 0 {
		return []int64{}, nil
	}
	ids = []int64{}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		for _, h := range held {
			t, err := getTask(tx, h.ID)
			if err != nil && fault.Code(err) != "task_unknown" {
				return err
			}
			if err != nil || t.State != TaskOpen || t.Builder != builder || t.fence != h.Fence {
				ids = append(ids, h.ID)
			}
		}
		return nil
	})
	return ids, err
}

// newest numbers a poll: only the newest of a builder is handed tasks, so that none goes to a
// poll whose builder has hung up.
func (s *Store) newest(builder string) int64 {
	s.handing.Lock()
	defer s.handing.Unlock()
	s.polls[builder]++
	return s.polls[builder]
}

func (s *Store) isNewest(builder string, poll int64) bool {
	s.handing.Lock()
	defer s.handing.Unlock()
	return s.polls[builder] == poll
}

// dropped gives back the tasks that were leased to a builder and that it does not hold: it was
// started anew, or it never heard of them.
func (s *Store) dropped(ctx context.Context, builder string, running []wire.Held) error {
	var ts []Task
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		ts, err = tasksWhere(tx, "builder = $1 AND state = 'OPEN' AND lease > 0", builder)
		return err
	})
	if err != nil {
		return err
	}
	for _, t := range ts {
		if slices.Contains(running, wire.Held{ID: t.ID, Fence: t.fence}) {
			continue
		}
		if err := s.giveBack(ctx, t, wire.Failure{Infra: true, Code: "builder_dropped", Message: fmt.Sprintf("builder %s holds the task no more", builder)}); err != nil {
			return err
		}
	}
	return nil
}

// lease hands the first free task that fits to the builder: nil when there is none.
func (s *Store) lease(ctx context.Context, builder string, poll int64, p wire.Poll) (*wire.Task, error) {
	free := false
	fits := func(t Task, plan Plan) (string, bool) {
		if !slices.Contains(p.Channels, t.Channel) {
			return "", false
		}
		if t.Arch != "noarch" {
			return t.Arch, slices.Contains(p.Arches, t.Arch)
		}
		for _, a := range p.Arches { // any arch that the tag has serves a noarch package
			if _, ok := plan.Roots[a]; ok {
				return a, true
			}
		}
		return "", false
	}
	// A look without the write lock first: idle builders cost nothing.
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		var n int
		err := tx.QueryRow("SELECT COUNT(*) FROM build_task WHERE state = 'FREE'").Scan(&n)
		free = n > 0
		return err
	})
	if err != nil || !free {
		return nil, err
	}
	s.handing.Lock() // what is leased before a newer poll begins is there for it to be looked at
	defer s.handing.Unlock()
	if s.polls[builder] != poll {
		return nil, nil
	}
	var out *wire.Task
	err = s.DB.Write(ctx, func(tx *db.Tx) error {
		ts, err := tasksWhere(tx, "state = 'FREE' ORDER BY priority, id LIMIT 200")
		if err != nil {
			return err
		}
		for _, t := range ts {
			plan, err := getPlan(tx, t.Build)
			if err != nil {
				return err
			}
			arch, ok := fits(t, plan)
			if !ok {
				continue
			}
			t.fence++
			t.Attempt++
			_, err = tx.Exec("UPDATE build_task SET state = 'OPEN', builder = $1, fence = $2, attempt = $3, lease = $4, started = $5 WHERE id = $6",
				builder, t.fence, t.Attempt, tx.Now()+s.Lease.Microseconds(), tx.Now(), t.ID)
			if err != nil {
				return err
			}
			if _, err := event.Append(tx, "build.task", taskSubject(t.ID), map[string]any{"build": t.Build, "state": "OPEN", "builder": builder, "attempt": t.Attempt}); err != nil {
				return err
			}
			out, err = s.order(tx, t, plan, arch)
			return err
		}
		return nil
	})
	return out, err
}

func taskSubject(id int64) string  { return fmt.Sprintf("task/%d", id) }
func buildSubject(id int64) string { return fmt.Sprintf("build/%d", id) }

// order is the task as a builder gets it.
func (s *Store) order(tx *db.Tx, t Task, plan Plan, arch string) (*wire.Task, error) {
	b, err := getBuild(tx, t.Build)
	if err != nil {
		return nil, err
	}
	w := &wire.Task{ID: t.ID, Fence: t.fence, Lease: int(s.Lease / time.Second), Method: t.Method, Name: b.Package, Arch: arch, NoArch: t.Arch == "noarch" && t.Method == wire.MethodArch,
		Root: plan.Roots[arch], Inputs: []wire.File{}, Macros: plan.Macros, Epoch: plan.Epoch, Limits: plan.Limits}
	switch t.Method {
	case wire.MethodSRPM:
		w.Tree = true
		w.Inputs = append(w.Inputs, plan.Sources...)
	case wire.MethodRebuild:
		info, err := s.Blobs.Stat(blobDigest(b.SRPM))
		if err != nil {
			return nil, err
		}
		w.Inputs = append(w.Inputs, wire.File{Name: b.Package + ".src.rpm", Digest: b.SRPM, Size: info.Size})
	case wire.MethodArch:
		rs, err := rpmsWhere(tx, "build = $1 AND arch = 'src'", t.Build)
		if err != nil {
			return nil, err
		}
		if len(rs) != 1 {
			return nil, fault.Internal("srpm_missing", "build %d has %d source RPMs", t.Build, len(rs))
		}
		w.Inputs = append(w.Inputs, wire.File{Name: rs[0].File, Digest: rs[0].Digest.String(), Size: rs[0].Size})
	}
	return w, nil
}

// held reads a task and makes sure that the caller holds it with this fence.
func held(tx *db.Tx, id, fence int64) (Task, error) {
	builder := auth.From(tx.Ctx()).Name
	if err := auth.Need(tx.Ctx(), "work.build", builder); err != nil {
		return Task{}, err
	}
	t, err := getTask(tx, id)
	if err != nil {
		return t, err
	}
	if t.State != TaskOpen || t.Builder != builder || t.fence != fence || t.Method == MethodBuild {
		return t, fault.Conflict("lease_lost", "task %d is not held by %s with fence %d", id, builder, fence).
			Fix("drop the task; it was canceled, or given to another builder after the lease ran out")
	}
	return t, nil
}

// Renew keeps the lease of a held task.
func (s *Store) Renew(ctx context.Context, id, fence int64) error {
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		if _, err := held(tx, id, fence); err != nil {
			return err
		}
		_, err := tx.Exec("UPDATE build_task SET lease = $1 WHERE id = $2", tx.Now()+s.Lease.Microseconds(), id)
		return err
	})
}

// Run frees the tasks of builders that vanished, until ctx ends. It sleeps until the next
// lease runs out.
func (s *Store) Run(ctx context.Context) error {
	ctx = auth.AsSystem(ctx)
	for {
		woken := s.woken()
		next, err := s.expire(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			s.Log.Error("leases", "err", err)
			next = time.Second
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-woken:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// expire gives back the tasks whose lease is over and tells how long until the next may be.
func (s *Store) expire(ctx context.Context) (time.Duration, error) {
	var due []Task
	next := s.Lease
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		ts, err := tasksWhere(tx, "state = 'OPEN' AND lease > 0 ORDER BY lease LIMIT 1000")
		for _, t := range ts {
			if d := time.Duration(t.lease-tx.Now()) * time.Microsecond; d <= 0 {
				due = append(due, t)
			} else {
				next = min(next, d+time.Millisecond)
			}
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	for _, t := range due {
		if err := s.giveBack(ctx, t, wire.Failure{Infra: true, Code: "builder_vanished", Message: fmt.Sprintf("builder %s has not been heard of for %s", t.Builder, s.Lease)}); err != nil {
			return 0, err
		}
	}
	return next, nil
}

// giveBack takes a task from a builder that lost it, unless it was renewed or ended meanwhile.
func (s *Store) giveBack(ctx context.Context, was Task, why wire.Failure) error {
	logs, err := s.closeLogs(ctx, was.ID)
	if err != nil {
		return err
	}
	err = s.DB.Write(ctx, func(tx *db.Tx) error {
		t, err := getTask(tx, was.ID)
		if err != nil || t.State != TaskOpen || t.fence != was.fence || t.lease != was.lease {
			return err
		}
		if err := logs.keep(tx, t); err != nil {
			return err
		}
		return s.failTask(tx, t, why)
	})
	if err == nil {
		s.afterTask(was.ID)
	}
	return err
}

// BuilderInfo is a builder as listed.
type BuilderInfo struct {
	Name     string    `json:"name"`
	Host     string    `json:"host"`
	Arches   []string  `json:"arches"`
	Channels []string  `json:"channels"`
	Slots    int64     `json:"slots"`
	Enabled  bool      `json:"enabled"`
	Note     string    `json:"note,omitempty"`
	Seen     time.Time `json:"seen"`
	Tasks    int64     `json:"tasks"`
}

// Builders lists the builders.
func (s *Store) Builders(ctx context.Context) ([]BuilderInfo, error) {
	out := []BuilderInfo{}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var b BuilderInfo
			var arches, channels string
			var enabled, seen int64
			if err := scan(&b.Name, &b.Host, &arches, &channels, &b.Slots, &enabled, &b.Note, &seen, &b.Tasks); err != nil {
				return err
			}
			b.Enabled, b.Seen = enabled != 0, db.Time(seen)
			if err := json.Unmarshal([]byte(arches), &b.Arches); err != nil {
				return err
			}
			if err := json.Unmarshal([]byte(channels), &b.Channels); err != nil {
				return err
			}
			out = append(out, b)
			return nil
		}, `SELECT name, host, arches, channels, slots, enabled, note, seen,
			(SELECT COUNT(*) FROM build_task t WHERE t.state = 'OPEN' AND t.builder = build_builder.name) FROM build_builder ORDER BY name`)
	})
	return out, err
}

// EnableBuilder lets a builder have tasks, or not; what it holds it finishes.
func (s *Store) EnableBuilder(ctx context.Context, name string, on bool, note string) error {
	if err := auth.Need(ctx, "builder.enable", name); err != nil {
		return err
	}
	if len(note) > 500 {
		return fault.Invalid("note", "a note has at most 500 letters")
	}
	err := s.DB.Write(ctx, func(tx *db.Tx) error {
		n, err := tx.Exec("UPDATE build_builder SET enabled = $1, note = $2 WHERE name = $3", db.Bool(on), note, name)
		if err != nil {
			return err
		}
		if n == 0 {
			return unknown("builder", name)
		}
		_, err = event.Append(tx, "build.builder", "builder/"+name, map[string]any{"enabled": on, "note": note})
		return err
	})
	if err == nil {
		s.wake()
	}
	return err
}
