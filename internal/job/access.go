package job

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/fleet"
	"drover/internal/fleet/selector"
)

// Effects of a rule.
const (
	Allow   = "allow"
	Deny    = "deny"    // whoever it is for, whatever else allows it
	FourEye = "approve" // a second person has to approve it
)

// Rule says who may run what where. With no rule that says so, those with the right job.run may
// (admins and operators), and nobody else. Deny wins over everything, for admins too.
type Rule struct {
	ID     int64  `json:"id,omitempty"`
	Who    string `json:"who" maxLength:"100" doc:"a person, role:NAME, or * for everybody"`
	Effect string `json:"effect" enum:"allow,deny,approve"`
	Form   string `json:"form,omitempty" doc:"how target is written; glob when not given"`
	Target string `json:"target" maxLength:"100000" doc:"on which hosts"`
	Fun    string `json:"fun" maxLength:"200" doc:"function, as a pattern: pkg.*"`
	Args   string `json:"args,omitempty" maxLength:"1000" doc:"regular expression that the arguments match, as JSON: [\"nginx\"] or {\"name\":\"nginx\"}"`
	Note   string `json:"note,omitempty" maxLength:"500"`
	Since  int64  `json:"since,omitempty"`
}

// Rules lists the rules.
func (s *Store) Rules(ctx context.Context) ([]Rule, error) {
	if err := auth.Need(ctx, "job.rule", "*"); err != nil {
		return nil, err
	}
	return s.rules(ctx)
}

func (s *Store) rules(ctx context.Context) ([]Rule, error) {
	out := []Rule{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var r Rule
			err := scan(&r.ID, &r.Who, &r.Effect, &r.Form, &r.Target, &r.Fun, &r.Args, &r.Note, &r.Since)
			out = append(out, r)
			return err
		}, "SELECT id, who, effect, form, target, fun, args, note, since FROM job_rule WHERE until = 0 ORDER BY id")
	})
	return out, err
}

// AddRule adds a rule and returns its number.
func (s *Store) AddRule(ctx context.Context, r Rule) (int64, error) {
	if err := auth.Need(ctx, "auth.rule", r.Who); err != nil {
		return 0, err
	}
	if r.Form == "" {
		r.Form = "glob"
	}
	if r.Effect != Allow && r.Effect != Deny && r.Effect != FourEye {
		return 0, fault.Invalid("rule_effect", "%.40q is no effect of a rule", r.Effect).Fix("use allow, deny or approve")
	}
	if r.Who == "" || r.Fun == "" {
		return 0, fault.Invalid("rule", "a rule needs who and fun").Fix("use * for everybody, or for every function")
	}
	if _, err := selector.Parse(selector.Form(r.Form), r.Target); err != nil {
		return 0, err
	}
	if _, err := regexp.Compile(r.Args); err != nil {
		return 0, fault.Invalid("rule_args", "%.100q is no regular expression", r.Args).Wrap(err)
	}
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		if err := tx.QueryRow("SELECT COALESCE(MAX(id), 0) + 1 FROM job_rule").Scan(&r.ID); err != nil {
			return err
		}
		ev, err := event.Append(tx, "job.rule", fmt.Sprintf("rule/%d", r.ID), r)
		if err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO job_rule (id, who, effect, form, target, fun, args, note, since, until) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0)", r.ID, r.Who, r.Effect, r.Form, r.Target, r.Fun, r.Args, r.Note, ev)
		return err
	})
	return r.ID, err
}

// RemoveRule ends a rule.
func (s *Store) RemoveRule(ctx context.Context, id int64) error {
	if err := auth.Need(ctx, "auth.rule", "*"); err != nil {
		return err
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		ev, err := event.Append(tx, "job.unrule", fmt.Sprintf("rule/%d", id), nil)
		if err != nil {
			return err
		}
		n, err := tx.Exec("UPDATE job_rule SET until = $1 WHERE id = $2 AND until = 0", ev, id)
		if err == nil && n == 0 {
			err = fault.NotFound("rule_unknown", "there is no rule %d", id).Fix("see `drover job rule list`")
		}
		return err
	})
}

// may decides whether the actor may run a job on hosts, and whether a second person has to approve.
func (s *Store) may(ctx context.Context, sp Spec, members []fleet.Member) (approval bool, err error) {
	rules, err := s.rules(ctx)
	if err != nil {
		return false, err
	}
	a := auth.From(ctx)
	args, err := json.Marshal(sp.Args)
	if err != nil {
		return false, err
	}
	kwargs, err := json.Marshal(sp.Kwargs)
	if err != nil {
		return false, err
	}
	allowed := selector.Set{}
	everywhere := a.May("job.run", sp.Fun)
	for _, r := range rules {
		if !concerns(r, a) || !MatchTag(r.Fun, sp.Fun) {
			continue
		}
		if r.Args != "" {
			re, err := regexp.Compile(r.Args)
			if err != nil {
				return false, err
			}
			if !re.Match(args) && !re.Match(kwargs) {
				continue
			}
		}
		set, err := s.fleet.Select(ctx, selector.Form(r.Form), r.Target)
		if err != nil {
			return false, err
		}
		switch r.Effect {
		case Allow:
			allowed.Or(set)
		case Deny:
			if names := within(set, members, true); len(names) > 0 {
				return false, fault.Denied("job_denied", "rule %d forbids %s to run %s on %s", r.ID, a, sp.Fun, few(names)).Fix("%s", cmp.Or(r.Note, "leave these hosts out, or ask an admin about the rule"))
			}
		case FourEye:
			approval = approval || len(within(set, members, true)) > 0
		}
	}
	if everywhere {
		return approval, nil
	}
	if names := within(allowed, members, false); len(names) > 0 {
		return false, fault.Denied("job_denied", "%s may not run %s on %s", a, sp.Fun, few(names)).Fix("leave these hosts out, or ask an admin for a rule that allows it")
	}
	return approval, nil
}

// concerns tells whether a rule is for somebody.
func concerns(r Rule, a auth.Actor) bool {
	role, isRole := strings.CutPrefix(r.Who, "role:")
	return r.Who == "*" || r.Who == a.String() || isRole && role == a.Role
}

// within are the members that are in a set, or those that are not.
func within(set selector.Set, members []fleet.Member, in bool) (names []string) {
	for _, m := range members {
		if set.Has(m.ID) == in {
			names = append(names, m.Name)
		}
	}
	return names
}

func few(names []string) string {
	if len(names) > 5 {
		return fmt.Sprintf("%d hosts: %s …", len(names), strings.Join(names[:5], ", "))
	}
	return strings.Join(names, ", ")
}

// Approve lets a job begin that waits for a second person, which its author is not.
func (s *Store) Approve(ctx context.Context, id string) error { return s.decide(ctx, id, true, "") }

// Reject ends it.
func (s *Store) Reject(ctx context.Context, id, why string) error {
	return s.decide(ctx, id, false, why)
}

// waitApproval is how long a job may wait for a second person.
const waitApproval = 7 * 24 * time.Hour

func (s *Store) decide(ctx context.Context, id string, yes bool, why string) error {
	a := auth.From(ctx)
	j, err := s.Get(ctx, id)
	if err != nil {
		return err
	}
	own := a.String() == j.Author
	if yes || !own {
		if err := auth.Need(ctx, "job.approve", id); err != nil {
			return err
		}
	}
	if yes && own {
		return fault.Denied("job_own", "the job %s is your own", id).Fix("somebody else has to approve it")
	}
	if j.State != StateApproval {
		return fault.Conflict("job_decided", "the job %s does not wait for approval: it is %s", id, j.State)
	}
	if yes && time.Since(j.Created) > waitApproval {
		return fault.Conflict("job_stale", "the job %s is older than a week", id).Fix("start it again")
	}
	var ids []int64
	if err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		ids, err = hostsOf(tx, j)
		return err
	}); err != nil {
		return err
	}
	r, err := s.prepare(j, nil)
	if err != nil {
		return err
	}
	r.hosts = ids
	kind, state, first := "job.reject", StateRejected, 0
	ended := s.db.Now()
	if yes {
		kind, state, ended = "job.approve", StateRunning, 0
		first, r.again = r.plan.Admit(time.Now())
	}
	why = clip(why, 500)
	if yes {
		why = "approved by " + a.String()
	}
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		if _, err := event.Append(tx, kind, "job/"+id, map[string]string{"why": why}); err != nil {
			return err
		}
		n, err := tx.Exec("UPDATE job_job SET state = $1, why = $2, sent = $3, ended = $4 WHERE id = $5 AND state = 'approval'", state, why, first, ended, j.num)
		if err == nil && n == 0 {
			err = fault.Conflict("job_decided", "somebody has decided on the job %s already", id)
		}
		return err
	})
	if err != nil || !yes {
		return err
	}
	r.job.State, r.job.Why = StateRunning, why
	s.launch(r, first)
	return nil
}
