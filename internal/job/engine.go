package job

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/fleet"
	"drover/internal/fleet/selector"
	fleetwire "drover/internal/fleet/wire"
	"drover/internal/job/wire"
)

// Times of a command.
const (
	beginWithin = 60 * time.Second // an agent refuses to begin later
	askAgain    = 10 * time.Second // without a word from a host that is there
	heardWithin = 45 * time.Second // a host says every 15 s that it is still at it
	maxAsked    = 4                // then it is silent
	stopWithin  = 10 * time.Second
	graceful    = 15 * time.Second // beyond the command's own timeout, which the agent keeps
	tick        = 200 * time.Millisecond
)

// While jobs are at more hosts than many, what these say is gathered for a while, and dealt with in
// one turn: each turn is a transaction, and a word to all who follow.
const (
	many   = 64
	gather = 20 * time.Millisecond
)

// maxJobs is how many jobs may run at once.
const maxJobs = 1000

// Config is what a Store needs.
type Config struct {
	DB    *db.DB
	Fleet *fleet.Store
	Blobs *blob.Store
	Log   *slog.Logger
}

// Store runs jobs and keeps them.
type Store struct {
	db     *db.DB
	fleet  *fleet.Store
	blobs  *blob.Store
	log    *slog.Logger
	Stream *Stream

	mu    sync.Mutex // guards what follows, and everything in a run
	runs  map[string]*run
	inbox []said
	last  string // the newest jid
	wake  chan struct{}
}

// said is a word of a host that the loop has not dealt with.
type said struct {
	from fleet.Member
	data []byte   // a result
	gone bool     // it went
	came []string // it came, and is at these jobs
	here bool
	stop *stopping
}

// stopping is somebody's wish to end a job.
type stopping struct {
	jid string
	who string
	why string
}

// run is a job that runs.
type run struct {
	job    Job
	arg    json.RawMessage
	kwarg  json.RawMessage
	hosts  []int64
	sent   int
	plan   Plan
	flying map[int64]*flight
	ended  map[int64]string // verdicts of those that have one
	done   []Verdict        // in the order in which they were stored
	again  time.Time        // when the plan is to be asked
	stopAt time.Time        // when those that were told to stop are given up
	stored bool             // taken up from the database: done lacks what came before
	moved  bool             // another run has taken its place
	next   chan struct{}    // closed at each change
}

// flight is a host that a job is at.
type flight struct {
	name  string
	heard time.Time
	asked int
	step  string
	began time.Time // of the flight
}

// New opens the jobs.
func New(cfg Config) *Store {
	return &Store{db: cfg.DB, fleet: cfg.Fleet, blobs: cfg.Blobs, log: cfg.Log, Stream: NewStream(), runs: map[string]*run{}, wake: make(chan struct{}, 1)}
}

// newJID makes Salt's id of a job: the time to the microsecond, later than all before.
func (s *Store) newJID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := time.UnixMicro(s.db.Now()).UTC()
	for {
		id := t.Format("20060102150405") + fmt.Sprintf("%06d", t.Nanosecond()/1000)
		if id > s.last {
			s.last = id
			return id
		}
		t, _ = time.Parse("20060102150405", s.last[:14])
		var us int
		_, _ = fmt.Sscanf(s.last[14:], "%06d", &us) // it was made here
		t = t.Add(time.Duration(us+1) * time.Microsecond)
	}
}

// Start resolves the target to an exact set of hosts, asks whether the actor may, and begins.
func (s *Store) Start(ctx context.Context, sp Spec) (Job, error) {
	if err := sp.check(); err != nil {
		return Job{}, err
	}
	if a := auth.From(ctx); a.Kind == auth.Nobody {
		return Job{}, auth.Need(ctx, "job.run", sp.Fun)
	}
	set, err := s.fleet.Select(ctx, selector.Form(sp.Form), sp.Target)
	if err != nil {
		return Job{}, err
	}
	members := s.fleet.Members(set)
	if len(members) == 0 {
		return Job{}, fault.NotFound("target_empty", "no host matches %s %.200q", sp.Form, sp.Target).Fix("see `drover host list` with the same target; a glob matches whole names, and quotes keep the shell from reading it")
	}
	if sp.Subset > 0 && sp.Subset < len(members) {
		rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] }) //nolint:gosec // no secret
		members = members[:sp.Subset]
		slices.SortFunc(members, func(a, b fleet.Member) int { return strings.Compare(a.Name, b.Name) })
	}
	approval, err := s.may(ctx, sp, members)
	if err != nil {
		return Job{}, err
	}
	j := Job{ID: s.newJID(), Author: auth.From(ctx).String(), State: StateRunning, Spec: sp, Total: len(members), Counts: map[string]int{}}
	if approval {
		j.State, j.Why = StateApproval, "a second person has to approve it"
	}
	r, err := s.prepare(j, members)
	if err != nil {
		return Job{}, err
	}
	first, err := s.create(ctx, r)
	if err != nil {
		return Job{}, err
	}
	if !approval {
		s.launch(r, first)
	}
	return s.Get(ctx, j.ID)
}

// prepare makes the run of a job.
func (s *Store) prepare(j Job, members []fleet.Member) (*run, error) {
	size, err := batchSize(j.Spec.Batch, j.Total)
	if err != nil {
		return nil, err
	}
	r := &run{job: j, flying: make(map[int64]*flight, len(members)), ended: make(map[int64]string, len(members)), done: make([]Verdict, 0, len(members)), next: make(chan struct{}),
		plan: Plan{Size: size, Wait: time.Duration(j.Spec.BatchWait * float64(time.Second)), FailHard: j.Spec.FailHard, Total: j.Total}}
	for _, m := range members {
		r.hosts = append(r.hosts, m.ID)
	}
	if len(j.Spec.Args) > 0 {
		if r.arg, err = json.Marshal(j.Spec.Args); err != nil {
			return nil, err
		}
	}
	if len(j.Spec.Kwargs) > 0 {
		r.kwarg, err = json.Marshal(j.Spec.Kwargs)
	}
	return r, err
}

// create stores a job, and that its first hosts have their turn, before anybody is told.
func (s *Store) create(ctx context.Context, r *run) (first int, err error) {
	s.mu.Lock()
	full := len(s.runs) >= maxJobs
	s.mu.Unlock()
	if full {
		return 0, fault.Unavailable("jobs_full", "%d jobs run already", maxJobs).Fix("wait for some, or stop them: `drover job list --state running`")
	}
	if r.job.State == StateRunning {
		first, r.again = r.plan.Admit(time.Now())
	}
	hosts, err := json.Marshal(r.hosts)
	if err != nil {
		return 0, err
	}
	spec, err := json.Marshal(r.job.Spec)
	if err != nil {
		return 0, err
	}
	args, err := json.Marshal(r.job.Spec.Args)
	if err != nil {
		return 0, err
	}
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		if r.job.num, err = tx.NextID("job_job"); err != nil {
			return err
		}
		sp := r.job.Spec
		ev, err := event.Append(tx, "job.run", "job/"+r.job.ID, map[string]any{"fun": sp.Fun, "args": clip(string(args), 2000), "kwargs": sp.Kwargs, "form": sp.Form, "target": clip(sp.Target, 1000), "hosts": r.job.Total, "reason": sp.Reason, "batch": sp.Batch, "state": r.job.State})
		if err != nil {
			return err
		}
		r.job.Event, r.job.Created = ev, db.Time(tx.Now())
		_, err = tx.Exec("INSERT INTO job_job (id, jid, author, reason, form, target, fun, args, spec, state, why, hosts, total, sent, counts, created, ended, event) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, '{}', $15, 0, $16)",
			r.job.num, r.job.ID, r.job.Author, sp.Reason, sp.Form, sp.Target, sp.Fun, string(args), string(spec), r.job.State, r.job.Why, string(hosts), r.job.Total, first, tx.Now(), ev)
		return err
	})
	return first, err
}

func clip(s string, most int) string {
	s = strings.ReplaceAll(s, "\x00", "")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// launch begins what create has stored.
func (s *Store) launch(r *run, first int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runs[r.job.ID] != nil { // taken up from the database in the meantime
		return
	}
	s.runs[r.job.ID] = r
	s.Stream.Publish("salt/job/"+r.job.ID+"/new", map[string]any{"jid": r.job.ID, "fun": r.job.Spec.Fun, "arg": r.job.Spec.Args, "tgt": clip(r.job.Spec.Target, 1000), "tgt_type": r.job.Spec.Form, "user": r.job.Author, "minions": s.namesOf(r.hosts)})
	s.begin(r, first)
	s.nudge()
}

func (s *Store) namesOf(ids []int64) []string {
	out := make([]string, 0, len(ids))
	for _, id := range ids[:min(len(ids), 20_000)] {
		if m, ok := s.fleet.Member(id); ok {
			out = append(out, m.Name)
		}
	}
	return out
}

// begin tells the next n hosts, whose turn is stored. The caller holds mu.
func (s *Store) begin(r *run, n int) {
	now := time.Now()
	tell := make([]fleet.Member, 0, n)
	flights := make([]flight, n)
	for i, id := range r.hosts[r.sent : r.sent+n] {
		m, ok := s.fleet.Member(id)
		flights[i] = flight{name: m.Name, heard: now, began: now}
		r.flying[id] = &flights[i]
		switch {
		case !ok:
			s.inbox = append(s.inbox, said{from: fleet.Member{ID: id}, gone: true})
		case m.Presence == fleet.Offline:
			s.inbox = append(s.inbox, said{from: m, gone: true})
		case m.Presence == fleet.Online:
			tell = append(tell, m)
		}
	}
	r.sent += n
	s.command(r, tell)
}

// command tells hosts what to do. Those that know it already say how far they are.
func (s *Store) command(r *run, to []fleet.Member) {
	if len(to) == 0 {
		return
	}
	now := s.db.Now()
	bodies := make([][]byte, len(to))
	for i, m := range to {
		b, err := json.Marshal(wire.Command{Job: r.job.ID, Host: m.Word, Instance: m.Instance, Fun: r.job.Spec.Fun, Arg: r.arg, Kwarg: r.kwarg, Issued: now, Expires: now + beginWithin.Microseconds(),
			Timeout: r.job.Spec.Timeout, Author: r.job.Author, Test: r.job.Spec.Test})
		if err != nil {
			s.log.Error("a command cannot be written", "job", r.job.ID, "err", err)
			return
		}
		bodies[i] = b
	}
	for i, b := range fleetwire.SealAll(s.fleet.Key(), fleetwire.ForCommand, bodies) {
		if err := s.fleet.Say(to[i].Word, "run", b); err != nil {
			s.log.Warn("a command was not sent; it is sent again", "job", r.job.ID, "host", to[i].Name, "err", err)
		}
	}
}

func (s *Store) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Store) put(w said) {
	s.mu.Lock()
	s.inbox = append(s.inbox, w)
	s.mu.Unlock()
	s.nudge()
}

// Listen has the fleet tell of what its agents say. It is to be called before fleet.Run.
func (s *Store) Listen() {
	s.fleet.Handle("run", func(m fleet.Member, b []byte) { s.put(said{from: m, data: b}) })
	s.fleet.Handle("hello", func(m fleet.Member, b []byte) {
		var at []string
		if err := json.Unmarshal(b, &at); err == nil {
			s.put(said{from: m, came: at, here: true})
		}
	})
	s.fleet.Handle("event", func(m fleet.Member, b []byte) {
		var e fleetwire.Event
		if err := json.Unmarshal(b, &e); err == nil && len(e.Tag) > 0 && len(e.Tag) <= 300 {
			s.Stream.FromHost(m.Name, e)
		}
	})
	s.fleet.Watch(func(m fleet.Member) {
		switch m.Presence {
		case fleet.Offline:
			s.put(said{from: m, gone: true})
			s.Stream.Publish("salt/presence/change", map[string]any{"new": []string{}, "lost": []string{m.Name}})
		case fleet.Online:
			s.Stream.Publish("salt/minion/"+m.Name+"/start", map[string]any{"id": m.Name, "cmd": "_minion_event", "tag": "salt/minion/" + m.Name + "/start"})
			s.Stream.Publish("salt/presence/change", map[string]any{"new": []string{m.Name}, "lost": []string{}})
		}
	})
}

// Run goes on with the jobs that were running, and with those that come, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	ctx = auth.AsSystem(ctx)
	if err := s.resume(ctx); err != nil {
		return err
	}
	t := time.NewTicker(tick)
	defer t.Stop()
	old := time.NewTicker(time.Hour)
	defer old.Stop()
	for {
		ticked := false
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-t.C:
			ticked = true
		case <-old.C:
			if err := s.forget(ctx); err != nil {
				s.log.Error("old jobs stay", "err", err)
			}
		}
		if err := s.turn(ctx, ticked); err != nil && ctx.Err() == nil {
			s.log.Error("jobs do not go on", "err", err)
			time.Sleep(tick)
		}
		if s.atMany() {
			time.Sleep(gather)
		}
	}
}

func (s *Store) atMany() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.runs {
		n += len(r.flying)
	}
	return n > many
}

// resume takes up the jobs that are not done. Who had his turn and has no verdict may be at it.
func (s *Store) resume(ctx context.Context) error {
	type stored struct {
		j     Job
		hosts string
		sent  int
	}
	var all []stored
	ended := map[int64]map[int64]string{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		if err := tx.QueryRow("SELECT COALESCE(MAX(jid), '') FROM job_job").Scan(&s.last); err != nil {
			return err
		}
		err := tx.Each(func(scan func(...any) error) error {
			var x stored
			var err error
			x.j, err = scanJob(func(dest ...any) error { return scan(append(dest, &x.hosts, &x.sent)...) })
			all = append(all, x)
			return err
		}, "SELECT "+jobColumns+", hosts, sent FROM job_job WHERE ended = 0 AND state IN ('running', 'stopping') ORDER BY id")
		if err != nil {
			return err
		}
		for _, x := range all {
			m := map[int64]string{}
			ended[x.j.num] = m
			if err := tx.Each(func(scan func(...any) error) error {
				var h int64
				var st string
				err := scan(&h, &st)
				m[h] = st
				return err
			}, "SELECT host, state FROM job_host WHERE job = $1", x.j.num); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	now := time.Now()
	for _, x := range all {
		var ids []int64
		if err := json.Unmarshal([]byte(x.hosts), &ids); err != nil {
			return err
		}
		r, err := s.prepare(x.j, nil)
		if err != nil {
			return err
		}
		r.hosts, r.sent, r.ended = ids, x.sent, ended[x.j.num]
		failed := false
		for _, st := range r.ended {
			failed = failed || bad(st)
		}
		s.mu.Lock()
		for _, id := range ids[:x.sent] {
			if r.ended[id] == "" {
				m, _ := s.fleet.Member(id)
				r.flying[id] = &flight{name: m.Name, heard: now, began: now}
			}
		}
		r.plan.resume(x.sent, len(r.flying), x.j.State == StateStopping || r.plan.FailHard && failed)
		if x.j.State == StateStopping {
			s.inbox = append(s.inbox, said{stop: &stopping{jid: x.j.ID, why: x.j.Why}})
		}
		r.stored = true
		s.runs[r.job.ID] = r
		s.mu.Unlock()
	}
	s.nudge()
	return nil
}

// step is what one turn does to a run.
type step struct {
	r     *run
	rows  []Verdict
	sent  int  // new turns
	skip  bool // no host begins any more
	state string
	why   string
	end   bool
}

// turn deals with what was said and, at a tick, with what time has brought: decide in memory, store,
// then tell. Time is not asked at each word: that would be all hosts for each of them.
func (s *Store) turn(ctx context.Context, ticked bool) error {
	s.mu.Lock()
	inbox := s.inbox
	s.inbox = nil
	now := time.Now()
	steps := map[string]*step{}
	at := func(r *run) *step {
		st := steps[r.job.ID]
		if st == nil {
			st = &step{r: r, rows: make([]Verdict, 0, min(len(inbox), len(r.flying)))}
			steps[r.job.ID] = st
		}
		return st
	}
	acks := map[string][]string{}
	tell := map[*run][]fleet.Member{}
	var late []lateResult
	for _, w := range inbox {
		switch {
		case w.data != nil:
			if l := s.heardResult(w, now, at, acks); l != nil {
				late = append(late, *l)
			}
		case w.gone:
			for _, r := range s.runs {
				if f := r.flying[w.from.ID]; f != nil {
					v := Verdict{host: w.from.ID, Host: f.name, State: wire.Offline, Since: db.Time(w.from.Since), Step: f.step}
					if v.Host == "" {
						v.Host = w.from.Name
					}
					if f.asked > 0 || f.step != "" {
						v.Error = "it went away while it was at it; what it did is told when it comes back"
					}
					s.end(at(r), v, now, false)
				}
			}
		case w.here:
			for _, r := range s.runs {
				if f := r.flying[w.from.ID]; f != nil {
					f.heard = now
					if !slices.Contains(w.came, r.job.ID) {
						tell[r] = append(tell[r], w.from)
					}
				}
			}
		case w.stop != nil:
			if r := s.runs[w.stop.jid]; r != nil {
				s.stopRun(at(r), w.stop, now)
			}
		}
	}
	if ticked {
		s.passTime(now, at, tell)
	}
	for _, r := range s.runs {
		s.admit(r, now, at)
	}
	s.mu.Unlock()
	if err := s.store(ctx, steps, late); err != nil {
		s.mu.Lock() // nothing of it is forgotten: the words are heard again, by runs as they are stored
		s.inbox = append(inbox, s.inbox...)
		for id, r := range s.runs {
			r.moved = true
			close(r.next)
			delete(s.runs, id)
		}
		s.mu.Unlock()
		for rerr := s.resume(ctx); rerr != nil && ctx.Err() == nil; rerr = s.resume(ctx) {
			time.Sleep(time.Second)
		}
		return err
	}
	s.mu.Lock()
	for _, st := range steps {
		s.settle(st)
	}
	for r, ms := range tell {
		s.command(r, ms)
	}
	s.mu.Unlock()
	for word, jobs := range acks {
		b, err := json.Marshal(wire.Ack{Jobs: jobs})
		if err == nil {
			err = s.fleet.Say(word, "ack", b)
		}
		if err != nil {
			s.log.Warn("a result is not acknowledged; it comes again", "host", word, "err", err)
		}
	}
	return nil
}

// lateResult is a result for a job of which the host has a verdict already.
type lateResult struct {
	jid string
	v   Verdict
}

// heardResult takes a host's word on a command.
func (s *Store) heardResult(w said, now time.Time, at func(*run) *step, acks map[string][]string) *lateResult {
	var res wire.Result
	if err := json.Unmarshal(w.data, &res); err != nil || !wire.IsJID(res.Job) {
		s.log.Warn("a result cannot be read", "host", w.from.Name, "err", err)
		return nil
	}
	r := s.runs[res.Job]
	v := Verdict{host: w.from.ID, Host: w.from.Name, State: res.State, RC: res.RC, Return: res.Return, Code: clip(res.Code, 100), Error: clip(res.Error, 4000), Step: clip(res.Step, 200),
		Began: db.Time(res.Began), Took: float64(res.Took) / 1e6, Blob: res.Blob, Size: res.Size}
	if res.Blob != "" {
		d, err := blob.Parse(res.Blob)
		has := false
		if err == nil {
			has, err = s.blobs.Has(d)
		}
		if err != nil || !has {
			v.Blob, v.Error = "", "the host named a result that it did not send"
		}
	}
	if !wire.End(res.State) {
		if r != nil && r.flying[w.from.ID] != nil {
			f := r.flying[w.from.ID]
			f.heard, f.asked, f.step = now, 0, v.Step
			if f.step == "" {
				f.step = "running"
			}
			s.Stream.Publish("salt/job/"+res.Job+"/prog/"+w.from.Name, map[string]any{"id": w.from.Name, "jid": res.Job, "step": f.step})
		}
		return nil
	}
	if res.Ack {
		acks[w.from.Word] = append(acks[w.from.Word], res.Job)
	}
	switch {
	case r == nil:
		return &lateResult{res.Job, v}
	case r.flying[w.from.ID] != nil:
		s.end(at(r), v, now, bad(v.State))
	case r.ended[w.from.ID] == wire.Offline || r.ended[w.from.ID] == wire.Silent || r.ended[w.from.ID] == wire.TimedOut:
		// Better late than never; what was answered stays.
		r.ended[w.from.ID] = v.State
		v.At = db.Time(s.db.Now())
		st := at(r)
		st.rows = append(st.rows, v)
	}
	return nil
}

// end gives a host that was at it its verdict. The caller holds mu.
func (s *Store) end(st *step, v Verdict, now time.Time, failed bool) {
	r := st.r
	delete(r.flying, v.host)
	r.ended[v.host] = v.State
	v.At = db.Time(s.db.Now())
	st.rows = append(st.rows, v)
	if v.State == wire.Offline {
		r.plan.Gone()
	} else if r.plan.Ended(now, failed) {
		s.skip(st, fmt.Sprintf("%s: %s", v.Host, v.State))
	}
}

// skip ends it for those whose turn has not come.
func (s *Store) skip(st *step, why string) {
	r := st.r
	r.plan.Stop()
	st.skip, st.why = true, why
	for _, id := range r.hosts[r.sent:] {
		if r.ended[id] != "" {
			continue
		}
		m, _ := s.fleet.Member(id)
		r.ended[id] = wire.Skipped
		st.rows = append(st.rows, Verdict{host: id, Host: m.Name, State: wire.Skipped, Error: "the job stopped before its turn: " + why, At: db.Time(s.db.Now())})
	}
	st.sent += len(r.hosts) - r.sent
	r.sent = len(r.hosts)
}

// stopRun ends a job on somebody's wish: nobody begins, and who is at it is told to end.
func (s *Store) stopRun(st *step, w *stopping, now time.Time) {
	r := st.r
	why := "stopped by " + w.who
	if w.why != "" {
		why += ": " + w.why
	}
	if w.who == "" { // after a restart
		why = w.why
	}
	s.skip(st, why)
	st.state = StateStopping
	r.stopAt = now.Add(stopWithin)
	s.sayStop(r, 0)
}

func (s *Store) sayStop(r *run, signal int) {
	until := s.db.Now() + beginWithin.Microseconds()
	for id := range r.flying {
		m, ok := s.fleet.Member(id)
		if !ok || m.Presence != fleet.Online {
			continue
		}
		b, err := fleetwire.Seal(s.fleet.Key(), fleetwire.ForStop, wire.Stop{Job: r.job.ID, Host: m.Word, Expires: until, Signal: signal})
		if err == nil {
			err = s.fleet.Say(m.Word, "stop", b)
		}
		if err != nil {
			s.log.Warn("a host is not told to stop; it is told again", "job", r.job.ID, "host", m.Name, "err", err)
		}
	}
}

// passTime looks for hosts that say nothing.
func (s *Store) passTime(now time.Time, at func(*run) *step, tell map[*run][]fleet.Member) {
	for _, r := range s.runs {
		limit := time.Duration(r.job.Spec.Timeout)*time.Second + graceful
		for id, f := range r.flying {
			m, ok := s.fleet.Member(id)
			v := Verdict{host: id, Host: f.name, Step: f.step}
			silent := now.Sub(f.heard)
			switch {
			case !ok:
				v.State, v.Error = wire.Offline, "the host is not let in any more"
			case m.Presence == fleet.Offline:
				v.State, v.Since = wire.Offline, db.Time(m.Since)
			case m.Presence == fleet.Returning:
				continue
			case !r.stopAt.IsZero() && now.After(r.stopAt):
				v.State, v.Error = wire.Silent, "it was told to stop and did not say that it has"
			case now.Sub(f.began) > limit:
				v.State, v.Error = wire.TimedOut, "it did not end in time, and did not say so"
			case f.asked >= maxAsked && silent > askAgain:
				v.State, v.Error = wire.Silent, "the agent is connected and says nothing of this job"
			case f.asked == 0 && f.step == "" && silent > askAgain || f.asked == 0 && silent > heardWithin || f.asked > 0 && silent > askAgain:
				f.asked++
				f.heard = now
				tell[r] = append(tell[r], m)
				continue
			default:
				continue
			}
			s.end(at(r), v, now, bad(v.State))
		}
	}
}

// admit gives the next hosts their turn, and ends a run that has none left.
func (s *Store) admit(r *run, now time.Time, at func(*run) *step) {
	if r.sent < len(r.hosts) && (r.again.IsZero() || !now.Before(r.again)) {
		n, again := r.plan.Admit(now)
		r.again = again
		if n > 0 {
			st := at(r)
			st.sent += n
			return // told once it is stored
		}
	}
	if r.sent == len(r.hosts) && len(r.flying) == 0 {
		at(r).end = true
	}
}

// store writes what a turn decided.
func (s *Store) store(ctx context.Context, steps map[string]*step, late []lateResult) error {
	if len(steps) == 0 && len(late) == 0 {
		return nil
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		var rows []row
		for _, st := range steps {
			for i := range st.rows {
				rows = append(rows, row{st.r.job.num, &st.rows[i]})
			}
			if st.sent > 0 {
				if _, err := tx.Exec("UPDATE job_job SET sent = sent + $1 WHERE id = $2", st.sent, st.r.job.num); err != nil {
					return err
				}
			}
			if st.skip {
				if _, err := tx.Exec("UPDATE job_job SET why = $1 WHERE id = $2 AND ended = 0", st.why, st.r.job.num); err != nil {
					return err
				}
			}
		}
		for _, l := range late {
			j, err := getJob(tx, l.jid)
			if fault.Code(err) == "job_unknown" {
				continue // forgotten; the host need not keep it
			}
			if err != nil {
				return err
			}
			var n int64
			if err := tx.QueryRow("SELECT COUNT(*) FROM job_host WHERE job = $1 AND host = $2 AND state IN ('offline', 'silent', 'timed-out')", j.num, l.v.host).Scan(&n); err != nil {
				return err
			}
			if n > 0 {
				rows = append(rows, row{j.num, &l.v})
			}
		}
		if err := putVerdicts(tx, rows); err != nil {
			return err
		}
		for _, st := range steps {
			if !st.end {
				continue
			}
			counts := count(st.r.ended)
			text, err := json.Marshal(counts)
			if err != nil {
				return err
			}
			if _, err := event.Append(tx, "job.done", "job/"+st.r.job.ID, counts); err != nil {
				return err
			}
			if _, err := tx.Exec("UPDATE job_job SET state = 'done', counts = $1, ended = $2 WHERE id = $3", string(text), tx.Now(), st.r.job.num); err != nil {
				return err
			}
		}
		for _, l := range late { // the sums of jobs that are done
			if s.running(l.jid) {
				continue
			}
			if err := recount(tx, l.jid); err != nil {
				return err
			}
		}
		return nil
	})
}

func recount(tx *db.Tx, jid string) error {
	counts := map[string]int{}
	err := tx.Each(func(scan func(...any) error) error {
		var st string
		var n int
		err := scan(&st, &n)
		counts[st] = n
		return err
	}, "SELECT h.state, COUNT(*) FROM job_host h JOIN job_job j ON j.id = h.job WHERE j.jid = $1 GROUP BY h.state", jid)
	if err != nil {
		return err
	}
	text, err := json.Marshal(counts)
	if err != nil {
		return err
	}
	_, err = tx.Exec("UPDATE job_job SET counts = $1 WHERE jid = $2 AND ended > 0", string(text), jid)
	return err
}

// Busy tells whether a job runs.
func (s *Store) Busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.runs) > 0
}

func (s *Store) running(jid string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runs[jid] != nil
}

func count(ended map[int64]string) map[string]int {
	out := map[string]int{}
	for _, st := range ended {
		out[st]++
	}
	return out
}

// settle makes known what is stored. The caller holds mu.
func (s *Store) settle(st *step) {
	r := st.r
	if st.skip {
		r.job.Why = st.why
	}
	if st.state != "" {
		r.job.State = st.state
	}
	for _, v := range st.rows {
		r.done = append(r.done, v)
		if s.Stream.Wanted() {
			s.Stream.Publish("salt/job/"+r.job.ID+"/ret/"+v.Host, map[string]any{"jid": r.job.ID, "id": v.Host, "fun": r.job.Spec.Fun, "fun_args": r.job.Spec.Args, "return": v.Return, "retcode": v.RC,
				"success": v.State == wire.Answered, "cmd": "_return", "verdict": v.State, "error": v.Error})
		}
	}
	if n := st.sent; n > 0 && !st.skip {
		s.begin(r, n)
		s.nudge() // some of them may be offline
	}
	if st.end {
		r.job.State, r.job.Ended, r.job.Counts = StateDone, db.Time(s.db.Now()), count(r.ended)
		delete(s.runs, r.job.ID)
	}
	close(r.next)
	r.next = make(chan struct{})
}

// fresh puts into a job what only this process knows.
func (s *Store) fresh(j *Job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.runs[j.ID]; r != nil {
		j.Counts = count(r.ended)
		j.Counts[wire.Running] = len(r.flying)
		if left := len(r.hosts) - r.sent; left > 0 {
			j.Counts[wire.Waiting] = left
		}
		j.State, j.Why = r.job.State, r.job.Why
	}
}

// underway are the hosts of a job that have no verdict yet.
func (s *Store) underway(id string, hosts []int64, have map[int64]bool) []Verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.runs[id]
	var out []Verdict
	for _, h := range hosts {
		if have[h] {
			continue
		}
		m, _ := s.fleet.Member(h)
		v := Verdict{host: h, Host: m.Name, State: wire.Waiting}
		if r != nil && r.flying[h] != nil {
			v.State, v.Step = wire.Running, r.flying[h].step
		}
		out = append(out, v)
	}
	return out
}

// Follow calls fn with the verdicts of a job as they come, and with the job at its end. It begins
// with those that are there.
func (s *Store) Follow(ctx context.Context, id string, fn func([]Verdict, *Job) error) error {
	if err := auth.Need(ctx, "host.read", id); err != nil {
		return err
	}
	told := map[int64]string{} // only with a run that lacks what came before
	for {
		s.mu.Lock()
		r := s.runs[id]
		given := 0
		if r != nil && (r.stored || len(told) > 0) {
			given = len(r.done)
		}
		s.mu.Unlock()
		if r == nil || r.stored {
			done, err := s.followStored(ctx, id, told, fn)
			if err != nil || done {
				return err
			}
			if r == nil { // it waits for approval, or is about to be taken up
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(tick):
				}
				continue
			}
		}
		if moved, err := s.followRun(ctx, r, given, told, fn); err != nil || !moved {
			return err
		}
	}
}

// followRun follows a run from its given-th verdict until its end, or until another takes its place.
func (s *Store) followRun(ctx context.Context, r *run, given int, told map[int64]string, fn func([]Verdict, *Job) error) (moved bool, err error) {
	for {
		s.mu.Lock()
		fresh := slices.Clone(r.done[given:])
		given = len(r.done)
		next, stored, moved := r.next, r.stored, r.moved
		var end *Job
		if r.job.State == StateDone {
			j := r.job
			end = &j
		}
		s.mu.Unlock()
		if stored {
			fresh = slices.DeleteFunc(fresh, func(v Verdict) bool { return told[v.host] == v.State })
		}
		for _, v := range fresh {
			told[v.host] = v.State
		}
		if len(fresh) > 0 || end != nil {
			if err := fn(fresh, end); err != nil || end != nil {
				return false, err
			}
		}
		if moved {
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-next:
		}
	}
}

// followStored gives what is stored of a job, but for what was told before.
func (s *Store) followStored(ctx context.Context, id string, told map[int64]string, fn func([]Verdict, *Job) error) (done bool, err error) {
	j, err := s.Get(ctx, id)
	if err != nil {
		return false, err
	}
	vs, err := s.Verdicts(ctx, id)
	if err != nil {
		return false, err
	}
	vs = slices.DeleteFunc(vs, func(v Verdict) bool { return !final(v.State) || told[v.host] == v.State })
	for _, v := range vs {
		told[v.host] = v.State
	}
	if j.State == StateDone || j.State == StateRejected || j.State == StateApproval {
		return true, fn(vs, &j)
	}
	if len(vs) == 0 {
		return false, nil
	}
	return false, fn(vs, nil)
}

// Stop ends a job: no host begins any more, and those that are at it are told to end.
func (s *Store) Stop(ctx context.Context, id, why string) error {
	j, err := s.Get(ctx, id)
	if err != nil {
		return err
	}
	if a := auth.From(ctx); a.Kind == auth.Nobody || a.String() != j.Author {
		if err := auth.Need(ctx, "job.stop", id); err != nil {
			return err
		}
	}
	if j.State == StateApproval {
		return s.decide(ctx, id, false, why)
	}
	if j.State == StateDone || j.State == StateRejected {
		return nil
	}
	if err := s.db.Write(ctx, func(tx *db.Tx) error {
		if _, err := event.Append(tx, "job.stop", "job/"+id, map[string]string{"why": clip(why, 500)}); err != nil {
			return err
		}
		_, err := tx.Exec("UPDATE job_job SET state = 'stopping' WHERE jid = $1 AND ended = 0", id)
		return err
	}); err != nil {
		return err
	}
	s.put(said{stop: &stopping{id, auth.From(ctx).String(), clip(why, 500)}})
	return nil
}

// Signal sends a signal to what a job runs on its hosts.
func (s *Store) Signal(ctx context.Context, id string, signal int) error {
	if err := auth.Need(ctx, "job.stop", id); err != nil {
		return err
	}
	if signal < 1 || signal > 31 {
		return fault.Invalid("signal", "%d is no signal", signal).Fix("give a number from 1 to 31, such as 15 or 9")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.runs[id]
	if r == nil {
		return fault.Conflict("job_over", "the job %s does not run", id)
	}
	s.sayStop(r, signal)
	return nil
}
