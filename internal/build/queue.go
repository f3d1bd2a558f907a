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
	over := s.newest(builder)
	if err := s.seen(ctx, builder, p); err != nil {
		return wire.Orders{}, err
	}
	if err := s.dropped(ctx, builder, p.Running); err != nil || p.Leaving {
		return wire.Orders{Tasks: []wire.Task{}, Cancel: []int64{}}, err
	}
	deadline := time.NewTimer(time.Duration(p.Wait) * time.Second)
	defer deadline.Stop()
	for {
		woken := s.queue.next()
		o := wire.Orders{Tasks: []wire.Task{}}
		var err error
		if o.Cancel, err = s.lost(ctx, builder, p.Running); err != nil {
			return o, err
		}
		for {
			t, err := s.lease(ctx, builder, over, p)
			if err != nil && len(o.Tasks) == 0 {
				return o, err
			}
			if err != nil || t == nil {
				break // what is leased must reach the builder whatever came after it
			}
			o.Tasks = append(o.Tasks, *t)
		}
		if len(o.Tasks) > 0 || len(o.Cancel) > 0 {
			return o, nil
		}
		// Another server on the same database cannot wake us: look again now and then.
		again := time.NewTimer(5 * time.Second)
		select {
		case <-ctx.Done():
			again.Stop()
			return o, ctx.Err()
		case <-over:
			again.Stop()
			return o, fault.Conflict("poll_overtaken", "another poll of the builder %s has come in", builder).
				Fix("give each builder a token of its own; a token is made with `drover auth ticket`")
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
func (s *Store) seen(ctx context.Context, name string, p wire.Poll) error {
	arches, channels := mustJSON(p.Arches), mustJSON(p.Channels)
	var was struct {
		host, arches, channels string
		slots, seen            int64
	}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow("SELECT host, arches, channels, slots, seen FROM build_builder WHERE name = $1", name).
			Scan(&was.host, &was.arches, &was.channels, &was.slots, &was.seen)
	})
	fresh := db.NoRow(err)
	if err != nil && !fresh {
		return err
	}
	same := was.host == p.Host && was.arches == arches && was.channels == channels && was.slots == int64(p.Slots)
	if !fresh && same && s.DB.Now()-was.seen < (30*time.Second).Microseconds() {
		return nil
	}
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		if fresh || !same {
			if _, err := event.Append(tx, "build.builder", "builder/"+name, map[string]any{"host": p.Host, "arches": p.Arches, "channels": p.Channels, "slots": p.Slots}); err != nil {
				return err
			}
		}
		_, err := tx.Exec(`INSERT INTO build_builder (name, host, arches, channels, slots, enabled, note, seen) VALUES ($1, $2, $3, $4, $5, 1, '', $6)
			ON CONFLICT (name) DO UPDATE SET host = excluded.host, arches = excluded.arches, channels = excluded.channels, slots = excluded.slots, seen = excluded.seen`,
			name, p.Host, arches, channels, p.Slots, tx.Now())
		return err
	})
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only strings, numbers and maps of them come here
	}
	return string(b)
}

// lost names the held tasks that are not this builder's any more. One that it ended itself is
// no news to it.
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
			if err != nil || t.State != TaskOpen && t.State != TaskClosed || t.Builder != builder || t.fence != h.Fence {
				ids = append(ids, h.ID)
			}
		}
		return nil
	})
	return ids, err
}

// newest makes a poll its builder's newest and ends the one before it: only the newest is handed
// tasks, so that none goes to a poll whose builder has hung up. The channel closes when the next
// poll comes.
func (s *Store) newest(builder string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before := s.polls[builder]; before != nil {
		close(before)
	}
	over := make(chan struct{})
	s.polls[builder] = over
	return over
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

// lease hands the first free task that fits to the builder: nil when there is none, or the
// builder runs as many as it can already.
func (s *Store) lease(ctx context.Context, builder string, over <-chan struct{}, p wire.Poll) (*wire.Task, error) {
	for {
		// A look without the write lock first: idle builders cost nothing.
		var found Task
		var arch string
		err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
			found, arch, err = fitting(tx, builder, p)
			return err
		})
		if err != nil || found.ID == 0 {
			return nil, err
		}
		out, again, err := s.hand(ctx, found.ID, builder, arch, over)
		if err != nil || !again {
			return out, err
		}
	}
}

// hand leases a task to a poll that is not over. When somebody else has the task by now, the
// caller looks again. A poll that comes after this one waits for the commit, so that it sees what
// this one was handed.
func (s *Store) hand(ctx context.Context, id int64, builder, arch string, over <-chan struct{}) (out *wire.Task, again bool, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	select {
	case <-over:
		return nil, false, nil
	default:
	}
	err = s.DB.Write(ctx, func(tx *db.Tx) error {
		t, err := getTask(tx, id)
		if err != nil {
			return err
		}
		if again = t.State != TaskFree; again {
			return nil
		}
		out, again, err = s.open(tx, t, builder, arch)
		return err
	})
	return out, again, err
}

// open leases a free task to a builder. A task whose inputs are gone fails its build: it must not
// stand in the way of those behind it.
func (s *Store) open(tx *db.Tx, t Task, builder, arch string) (out *wire.Task, failed bool, err error) {
	t.fence++
	t.Attempt++
	t.Builder, t.State = builder, TaskOpen
	plan, err := getPlan(tx, t.Build)
	if err != nil {
		return nil, false, err
	}
	out, err = s.order(tx, t, plan, arch)
	if err != nil {
		e := fault.As(err)
		return nil, true, s.failTask(tx, t, wire.Failure{Code: e.Code, Message: e.Msg, Remedy: e.Remedy})
	}
	_, err = tx.Exec("UPDATE build_task SET state = 'OPEN', builder = $1, fence = $2, attempt = $3, lease = $4, started = $5, running = 0 WHERE id = $6",
		builder, t.fence, t.Attempt, tx.Now()+s.Lease.Microseconds(), tx.Now(), t.ID)
	if err != nil {
		return nil, false, err
	}
	_, err = event.Append(tx, "build.task", taskSubject(t.ID), map[string]any{"build": t.Build, "state": "OPEN", "builder": builder, "attempt": t.Attempt})
	return out, false, err
}

// fitting finds the first free task for a builder, and the arch of the root to run it in.
func fitting(tx *db.Tx, builder string, p wire.Poll) (Task, string, error) {
	var enabled, open int64
	err := tx.QueryRow("SELECT enabled, (SELECT COUNT(*) FROM build_task WHERE state = 'OPEN' AND builder = $1) FROM build_builder WHERE name = $1", builder).Scan(&enabled, &open)
	if err != nil || enabled == 0 || open >= int64(p.Slots) {
		return Task{}, "", err
	}
	arches, channels := keys(append(slices.Clone(p.Arches), "noarch")), keys(p.Channels)
	for offset := 0; ; {
		ts, err := tasksWhere(tx, `state = 'FREE' AND arch IN (SELECT key FROM json_each($1)) AND channel IN (SELECT key FROM json_each($2))
			ORDER BY priority, id LIMIT 100 OFFSET $3`, arches, channels, offset)
		if err != nil || len(ts) == 0 {
			return Task{}, "", err
		}
		for _, t := range ts {
			if t.Arch != "noarch" {
				return t, t.Arch, nil
			}
			plan, err := getPlan(tx, t.Build)
			if err != nil {
				return Task{}, "", err
			}
			for _, a := range p.Arches { // any arch that the tag has serves a noarch package
				if _, ok := plan.Roots[a]; ok {
					return t, a, nil
				}
			}
		}
		offset += len(ts)
	}
}

// keys is a set of words as a JSON parameter: both engines name an object's keys alike.
func keys(words []string) string {
	m := map[string]int{}
	for _, w := range words {
		m[w] = 1
	}
	return mustJSON(m)
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
	var swept time.Time
	for {
		if time.Since(swept) > time.Hour {
			if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
				s.Log.Warn("what ended leases left on disk stays", "err", err)
			}
			swept = time.Now()
		}
		woken := s.queue.next()
		next, err := s.expire(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // it was stopped
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
	logs, err := s.closeLogs(ctx, was)
	if err != nil {
		return err
	}
	given := false
	err = s.DB.Write(ctx, func(tx *db.Tx) error {
		t, err := getTask(tx, was.ID)
		if err != nil || t.State != TaskOpen || t.fence != was.fence || t.lease != was.lease {
			return err
		}
		given = true
		if err := logs.keep(tx, t); err != nil {
			return err
		}
		return s.failTask(tx, t, why)
	})
	if err == nil && given {
		s.afterTask(was)
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
		s.queue.ring()
	}
	return err
}
