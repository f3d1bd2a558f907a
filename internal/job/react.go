package job

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
)

// Reaction is what follows when something happens: a job, or a call of a web address. It runs with
// the rights that its author has at that time.
type Reaction struct {
	Name   string `json:"name"`
	Author string `json:"author,omitempty"`
	Tag    string `json:"tag" maxLength:"300" doc:"pattern of Salt's event tags: salt/beacon/*/service/*"`
	Job    *Spec  `json:"job,omitempty" doc:"{id} stands for the host that told of it, {tag} for the tag, {data.KEY} for a value"`
	Hook   string `json:"hook,omitempty" maxLength:"2000" doc:"URL that the event is sent to, as JSON"`
	Note   string `json:"note,omitempty" maxLength:"500"`
	Since  int64  `json:"since,omitempty"`
}

// States of a letter.
const (
	letterWaiting = "waiting"
	letterDone    = "done"
	letterDead    = "dead"
)

// Letter is one event on its way to what reacts to it.
type Letter struct {
	ID       int64           `json:"id"`
	Reaction string          `json:"reaction"`
	Tag      string          `json:"tag"`
	Data     json.RawMessage `json:"data"`
	State    string          `json:"state" doc:"waiting, done or dead"`
	Tries    int64           `json:"tries"`
	Error    string          `json:"error,omitempty"`
	Job      string          `json:"job,omitempty"`
	At       time.Time       `json:"at"`
}

// Bounds of reactions.
const (
	maxWaiting  = 5_000            // letters; more become dead ones at once
	maxTries    = 5                // then a letter is dead
	maxLetter   = 64 << 10         // bytes of an event's data
	atOnce      = 8                // letters that are dealt with at the same time
	hookWait    = 10 * time.Second // for a web address to answer
	keepLetters = 14 * 24 * time.Hour
)

var reReaction = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,62}$`)

// SetReaction makes or changes a reaction; one with neither job nor hook is taken away.
func (s *Store) SetReaction(ctx context.Context, r Reaction) error {
	if err := auth.Need(ctx, "job.react", r.Name); err != nil {
		return err
	}
	a := auth.From(ctx)
	if a.Kind != auth.Person {
		return fault.Denied("denied", "only a person can make a reaction: it runs with the rights of its author")
	}
	if !reReaction.MatchString(r.Name) {
		return fault.Invalid("reaction_name", "%.100q is no name of a reaction", r.Name).Fix("use up to 63 of a-z 0-9 _ . -")
	}
	gone := r.Job == nil && r.Hook == ""
	spec := ""
	if !gone {
		const own = "salt/job/20260101000000000000/"
		if r.Tag == "" || r.Job != nil && (MatchTag(r.Tag, own+"new") || MatchTag(r.Tag, own+"ret/h") || MatchTag(r.Tag, own+"prog/h")) {
			return fault.Invalid("reaction_tag", "a reaction to %q would react to itself", r.Tag).Fix("name the events more exactly")
		}
		if r.Hook != "" {
			if u, err := url.Parse(r.Hook); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
				return fault.Invalid("reaction_hook", "%.200q is no URL", r.Hook)
			}
		}
		if r.Job != nil {
			if err := r.Job.check(); err != nil {
				return err
			}
			b, err := json.Marshal(r.Job)
			if err != nil {
				return err
			}
			spec = string(b)
		}
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		var n int
		if err := tx.QueryRow("SELECT COUNT(*) FROM job_reaction WHERE name = $1 AND until = 0", r.Name).Scan(&n); err != nil {
			return err
		}
		if n == 0 && gone {
			return fault.NotFound("reaction_unknown", "there is no reaction %q", r.Name).Fix("see `drover react list`")
		}
		ev, err := event.Append(tx, "job.react", "reaction/"+r.Name, map[string]any{"tag": r.Tag, "job": r.Job, "hook": r.Hook})
		if err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE job_reaction SET until = $1 WHERE name = $2 AND until = 0", ev, r.Name); err != nil || gone {
			return err
		}
		_, err = tx.Exec("INSERT INTO job_reaction (name, author, tag, spec, hook, note, since, until) VALUES ($1, $2, $3, $4, $5, $6, $7, 0)", r.Name, a.Name, r.Tag, spec, r.Hook, r.Note, ev)
		return err
	})
}

// Reactions lists the reactions.
func (s *Store) Reactions(ctx context.Context) ([]Reaction, error) {
	if err := auth.Need(ctx, "host.read", "*"); err != nil {
		return nil, err
	}
	out := []Reaction{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var r Reaction
			var spec string
			if err := scan(&r.Name, &r.Author, &r.Tag, &spec, &r.Hook, &r.Note, &r.Since); err != nil {
				return err
			}
			if spec != "" {
				r.Job = &Spec{}
				if err := json.Unmarshal([]byte(spec), r.Job); err != nil {
					return err
				}
			}
			out = append(out, r)
			return nil
		}, "SELECT name, author, tag, spec, hook, note, since FROM job_reaction WHERE until = 0 ORDER BY name")
	})
	return out, err
}

// Letters lists letters of a state, the newest first.
func (s *Store) Letters(ctx context.Context, state string, limit int) ([]Letter, error) {
	if err := auth.Need(ctx, "host.read", "*"); err != nil {
		return nil, err
	}
	out := []Letter{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var l Letter
			var data string
			var at int64
			err := scan(&l.ID, &l.Reaction, &l.Tag, &data, &l.State, &l.Tries, &l.Error, &l.Job, &at)
			l.Data, l.At = json.RawMessage(data), db.Time(at)
			out = append(out, l)
			return err
		}, "SELECT id, reaction, tag, data, state, tries, error, job, at FROM job_letter WHERE $1 = '' OR state = $1 ORDER BY id DESC LIMIT $2", state, limit)
	})
	return out, err
}

// Retry has a dead letter tried again.
func (s *Store) Retry(ctx context.Context, id int64) error {
	if err := auth.Need(ctx, "job.react", fmt.Sprint(id)); err != nil {
		return err
	}
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		n, err := tx.Exec("UPDATE job_letter SET state = 'waiting', tries = 0, due = $1 WHERE id = $2 AND state = 'dead'", tx.Now(), id)
		if err == nil && n == 0 {
			err = fault.NotFound("letter_unknown", "there is no dead letter %d", id).Fix("see `drover react letters --state dead`")
		}
		return err
	})
	return err
}

// React writes a letter for each event that a reaction is for, and deals with letters, until ctx
// ends. role gives the role that a person has now.
func (s *Store) React(ctx context.Context, role func(ctx context.Context, name string) (string, error)) error {
	ctx = auth.AsSystem(ctx)
	var rules []Reaction
	var sub *Reader // while there are reactions: an event that nobody listens to costs nothing
	var events chan Tagged
	read := func() (err error) {
		if rules, err = s.Reactions(ctx); err != nil {
			return err
		}
		switch {
		case len(rules) > 0 && sub == nil:
			sub = s.Stream.Subscribe("")
			events = sub.C
		case len(rules) == 0 && sub != nil:
			sub.Close()
			sub, events = nil, nil
		}
		return nil
	}
	if err := read(); err != nil {
		return err
	}
	defer func() {
		if sub != nil {
			sub.Close()
		}
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	old := time.NewTicker(time.Hour)
	defer old.Stop()
	changed := s.db.Changed()
	for {
		select {
		case <-ctx.Done():
			return nil
		case t := <-events:
			posted, err := s.post(ctx, rules, sub, t)
			if err != nil && ctx.Err() == nil {
				s.log.Error("events are not reacted to", "err", err)
			}
			if !posted {
				continue
			}
		case <-old.C:
			if err := s.db.Write(ctx, func(tx *db.Tx) error {
				_, err := tx.Exec("DELETE FROM job_letter WHERE state <> 'waiting' AND at < $1 AND id < (SELECT MAX(id) FROM job_letter)", tx.Now()-keepLetters.Microseconds())
				return err
			}); err != nil {
				s.log.Error("old letters stay", "err", err)
			}
			continue
		case <-tick.C:
			select {
			case <-changed: // perhaps a reaction
				changed = s.db.Changed()
				if err := read(); err != nil {
					s.log.Error("reactions are not read", "err", err)
				}
			default:
			}
			if sub != nil {
				if n := sub.Lost(); n > 0 {
					s.log.Error("events came faster than they could be reacted to", "lost", n)
				}
			}
		}
		if err := s.deliver(ctx, role); err != nil && ctx.Err() == nil {
			s.log.Error("letters wait", "err", err)
		}
	}
}

// post writes letters for an event and those that wait behind it, and tells whether there are any.
func (s *Store) post(ctx context.Context, rules []Reaction, sub *Reader, t Tagged) (bool, error) {
	type letter struct{ reaction, tag, data string }
	var all []letter
	for n := 0; ; n++ {
		for _, r := range rules {
			if !MatchTag(r.Tag, t.Tag) {
				continue
			}
			b, err := json.Marshal(t.Data)
			if err != nil || len(b) > maxLetter {
				b = []byte("null")
			}
			all = append(all, letter{r.Name, clip(t.Tag, 300), string(b)})
		}
		more := false
		if n < 1000 {
			select {
			case t = <-sub.C:
				more = true
			default:
			}
		}
		if !more {
			break
		}
	}
	if len(all) == 0 {
		return false, nil
	}
	return true, s.db.Write(ctx, func(tx *db.Tx) error {
		var waiting int
		if err := tx.QueryRow("SELECT COUNT(*) FROM job_letter WHERE state = 'waiting'").Scan(&waiting); err != nil {
			return err
		}
		id, err := tx.NextID("job_letter")
		if err != nil {
			return err
		}
		for _, l := range all {
			state, why := letterWaiting, ""
			if waiting++; waiting > maxWaiting {
				state, why = letterDead, "too many letters were waiting"
			}
			if _, err := tx.Exec("INSERT INTO job_letter (id, reaction, tag, data, state, tries, error, job, at, due) VALUES ($1, $2, $3, $4, $5, 0, $6, '', $7, $7)", id, l.reaction, l.tag, l.data, state, why, tx.Now()); err != nil {
				return err
			}
			id++
		}
		return nil
	})
}

// deliver deals with the letters that are due, some at a time.
func (s *Store) deliver(ctx context.Context, role func(context.Context, string) (string, error)) error {
	for ctx.Err() == nil {
		var due []Letter
		err := s.db.Read(ctx, func(tx *db.Tx) error {
			due = nil
			return tx.Each(func(scan func(...any) error) error {
				var l Letter
				var data string
				err := scan(&l.ID, &l.Reaction, &l.Tag, &data, &l.Tries)
				l.Data = json.RawMessage(data)
				due = append(due, l)
				return err
			}, "SELECT id, reaction, tag, data, tries FROM job_letter WHERE state = 'waiting' AND due <= $1 ORDER BY due, id LIMIT $2", tx.Now(), atOnce)
		})
		if err != nil || len(due) == 0 {
			return err
		}
		rules, err := s.Reactions(ctx)
		if err != nil {
			return err
		}
		ends := make(chan Letter, len(due))
		for _, l := range due {
			go func() { ends <- s.one(ctx, rules, role, l) }()
		}
		var done []Letter
		for range due {
			done = append(done, <-ends)
		}
		if err := s.db.Write(context.WithoutCancel(ctx), func(tx *db.Tx) error {
			for _, l := range done {
				wait := int64(1<<min(l.Tries, 10)) * 1_000_000
				if _, err := tx.Exec("UPDATE job_letter SET state = $1, tries = $2, error = $3, job = $4, due = $5 WHERE id = $6", l.State, l.Tries, clip(l.Error, 1000), l.Job, tx.Now()+wait, l.ID); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// one deals with a letter.
func (s *Store) one(ctx context.Context, rules []Reaction, role func(context.Context, string) (string, error), l Letter) Letter {
	l.Tries++
	l.State, l.Error = letterDone, ""
	for _, r := range rules {
		if r.Name != l.Reaction {
			continue
		}
		var err error
		if r.Hook != "" {
			err = s.callHook(ctx, r.Hook, l)
		}
		if err == nil && r.Job != nil {
			l.Job, err = s.reactJob(ctx, r, role, l)
		}
		if err != nil {
			l.State, l.Error = letterWaiting, err.Error()
			if k := fault.As(err).Kind; l.Tries >= maxTries || k == fault.KindInvalid || k == fault.KindDenied || k == fault.KindNotFound {
				l.State = letterDead // trying again changes nothing
			}
		}
		return l
	}
	l.Error = "the reaction was taken away"
	return l
}

func (s *Store) callHook(ctx context.Context, to string, l Letter) error {
	ctx, cancel := context.WithTimeout(ctx, hookWait)
	defer cancel()
	b, err := json.Marshal(map[string]any{"id": l.ID, "reaction": l.Reaction, "tag": l.Tag, "data": l.Data})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(b))
	if err != nil {
		return fault.Invalid("reaction_hook", "%.200q is no URL", to).Wrap(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fault.Unavailable("hook_away", "%.200s does not answer", to).Wrap(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return fault.Unavailable("hook_failed", "%.200s answers %s", to, resp.Status)
	}
	return nil
}

// reactJob starts the job of a reaction, as its author.
func (s *Store) reactJob(ctx context.Context, r Reaction, role func(context.Context, string) (string, error), l Letter) (string, error) {
	has, err := role(ctx, r.Author)
	if err != nil {
		return "", err
	}
	fill, err := filler(l)
	if err != nil {
		return "", err
	}
	sp := *r.Job
	sp.Target, sp.Reason = fill(sp.Target), clip("reaction "+r.Name+" to "+l.Tag, 500)
	sp.Args = nil
	for _, a := range r.Job.Args {
		sp.Args = append(sp.Args, fillValue(a, fill))
	}
	sp.Kwargs = map[string]any{}
	for k, v := range r.Job.Kwargs {
		sp.Kwargs[k] = fillValue(v, fill)
	}
	j, err := s.Start(auth.With(ctx, auth.Actor{Kind: auth.Person, Name: r.Author, Role: has}), sp)
	return j.ID, err
}

func fillValue(v any, fill func(string) string) any {
	if s, ok := v.(string); ok {
		return fill(s)
	}
	return v
}

var rePlace = regexp.MustCompile(`\{(id|tag|data(?:\.[A-Za-z0-9_-]+)+)\}`)

// filler puts what an event says into the places of a text. It is a value among others there:
// arguments are no command lines, and a target that it is in is checked as every other.
func filler(l Letter) (func(string) string, error) {
	var data map[string]any
	if err := json.Unmarshal(l.Data, &data); err != nil {
		return nil, fault.Invalid("letter_data", "the event's data cannot be read").Wrap(err)
	}
	return func(text string) string {
		return rePlace.ReplaceAllStringFunc(text, func(p string) string {
			switch p = p[1 : len(p)-1]; p {
			case "id":
				s, _ := data["id"].(string)
				return s
			case "tag":
				return l.Tag
			}
			var v any = data
			if inner, ok := data["data"]; ok { // what the host told is within what the server adds
				v = inner
			}
			for _, k := range strings.Split(p, ".")[1:] {
				m, ok := v.(map[string]any)
				if !ok {
					return ""
				}
				v = m[k]
			}
			if s, ok := v.(string); ok {
				return s
			}
			if v == nil {
				return ""
			}
			b, err := json.Marshal(v)
			if err != nil {
				return ""
			}
			return string(b)
		})
	}, nil
}
