package job

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/cli"
	"drover/internal/fault"
	"drover/internal/fleet"
	"drover/internal/job/wire"
)

// RunVerb is `drover run`.
type RunVerb struct {
	fleet.Target
	Fun       string        `arg:"" optional:"" help:"MODULE.FUNCTION, or after -- a command line of the shell."`
	Args      []string      `arg:"" optional:"" help:"Arguments; KEY=VALUE is by name."`
	Shell     string        `hidden:"" help:"A command line of the shell: what follows --."`
	Batch     string        `short:"b" help:"At most so many hosts at once: a number, or a part such as 10%."`
	BatchWait float64       `help:"Seconds between the end on one host and the begin on the next."`
	FailHard  bool          `name:"failhard" help:"Begin on no more hosts after the first failure."`
	Subset    int           `help:"Only so many of the hosts, chosen at random."`
	Async     bool          `help:"Print the id of the job and do not wait."`
	ShowJID   bool          `name:"show-jid" help:"Print the id of the job first."`
	Test      bool          `help:"Say what would be done, and do nothing."`
	Wait      span          `short:"t" name:"timeout" help:"Wait at most so long for the end; the job goes on. A plain number is seconds."`
	Kill      time.Duration `name:"kill-after" default:"1h" help:"End it on hosts where it runs longer."`
	Reason    string        `help:"Why, for the ledger."`
	Out       string        `name:"out" help:"How results are printed: nested, json, yaml, txt, table, raw, highstate, no_return or quiet."`
	Static    bool          `help:"Print at the end, in the order of names, not as results come."`
	Summary   bool          `default:"true" negatable:"" help:"Say at the end how many hosts had which verdict."`
}

// span is a time on a command line: with a unit, or in seconds as Salt's options have it.
type span time.Duration

// UnmarshalText reads it.
func (s *span) UnmarshalText(b []byte) error {
	text := string(b)
	if n, err := strconv.ParseFloat(text, 64); err == nil && n >= 0 && n < 1e7 {
		*s = span(n * float64(time.Second))
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return fault.Invalid("timeout", "%.40q is no time", text).Fix("give seconds, or a number with a unit: 30s, 5m")
	}
	*s = span(d)
	return nil
}

// Run runs a function on hosts.
func (c RunVerb) Run(e *cli.Env) error {
	sp := Spec{Form: string(c.Form()), Target: c.Target.Target, Fun: c.Fun, Test: c.Test, Timeout: int64(c.Kill.Seconds()), Batch: c.Batch, BatchWait: c.BatchWait, FailHard: c.FailHard, Subset: c.Subset, Reason: c.Reason}
	sp.Args, sp.Kwargs = wire.Words(c.Args)
	if v, ok := sp.Kwargs["test"].(bool); ok && sp.Fun != "http.query" { // as Salt's command line says it
		sp.Test = sp.Test || v
		delete(sp.Kwargs, "test")
	}
	if c.Shell != "" {
		sp.Fun, sp.Args, sp.Kwargs = "cmd.run_all", []any{c.Shell}, nil
	}
	if sp.Target == "" || sp.Fun == "" {
		return fault.Invalid("usage", "a target and a function are needed").Fix("drover run TARGET MODULE.FUNCTION ARGUMENTS, or drover run TARGET -- COMMAND")
	}
	if c.Out != "" && !slices.Contains(Outputs(), c.Out) {
		return fault.Invalid("output", "%.40q is no way to print results", c.Out).Fix("use one of %s", strings.Join(Outputs(), ", "))
	}
	var j Job
	if err := e.Client.Call(e.Ctx, "POST", "/api/v1/jobs", sp, &j); err != nil {
		return err
	}
	if c.Async {
		return e.Show(j, func(w io.Writer) { fmt.Fprintln(w, j.ID) })
	}
	if c.ShowJID {
		e.Say("jid: %s", j.ID)
	}
	if j.State == StateApproval {
		e.Say("job %s waits for a second person: drover job approve %[1]s", j.ID)
	}
	ctx, cancel := e.Ctx, context.CancelFunc(func() {})
	if c.Wait > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(c.Wait))
	}
	defer cancel()
	return follow(ctx, e, j, c.Out, c.Static || e.Format == "json" || e.Format == "yaml", c.Shell != "", c.Summary)
}

// follow prints the verdicts of a job as they come.
func follow(ctx context.Context, e *cli.Env, j Job, out string, static, shell, summary bool) error {
	var all []Verdict
	began := time.Now()
	progress := func(end bool) {
		if !e.Terminal || j.Total < 2 {
			return
		}
		fmt.Fprintf(e.Err, "\r\033[K")
		if !end {
			fmt.Fprintf(e.Err, "%d of %d hosts, %.1f s", len(all), j.Total, time.Since(began).Seconds())
		}
	}
	show := func(v Verdict) error {
		if shell && out == "" {
			shellOutput(e.Out, v)
			return nil
		}
		return Print(e.Out, out, v)
	}
	err := FollowJob(ctx, e, j.ID, func(p Part) error {
		for _, v := range p.Hosts {
			all = append(all, v)
			if !static {
				progress(true)
				if err := show(v); err != nil {
					return err
				}
			}
		}
		progress(p.Job != nil)
		if p.Job != nil {
			j = *p.Job
		}
		return nil
	})
	late := err != nil && ctx.Err() != nil
	if err != nil && !late {
		return err
	}
	if late {
		var w Whole
		lctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := e.Client.Call(lctx, "GET", "/api/v1/jobs/"+j.ID, nil, &w); err != nil {
			return err
		}
		j = w.Job
		for _, v := range w.Hosts {
			if !slices.ContainsFunc(all, func(x Verdict) bool { return x.Host == v.Host }) {
				all = append(all, v)
				if !static {
					if err := show(v); err != nil {
						return err
					}
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b Verdict) int { return strings.Compare(a.Host, b.Host) })
	if e.Format == "json" || e.Format == "yaml" {
		if err := e.Show(Whole{j, all}, nil); err != nil {
			return err
		}
	} else if static && (out == "json" || out == "yaml") { // one document
		if err := printAll(e.Out, out, all); err != nil {
			return err
		}
	} else if static {
		for _, v := range all {
			if err := show(v); err != nil {
				return err
			}
		}
	}
	if summary && (j.Total > 1 || late) {
		e.Say("%s", Summary(j, all))
	}
	if late {
		e.Say("job %s goes on: drover job show %[1]s, drover job stop %[1]s", j.ID)
	}
	return verdictError(all)
}

// Errors that say nothing more than what was printed already.
var (
	ErrPartly = errors.New("it went well on some hosts only") // exit code 3
	ErrFailed = errors.New("it went well on no host")         // exit code 1
)

// verdictError is the error of a job that did not go well everywhere.
func verdictError(all []Verdict) error {
	good, open := 0, 0
	for _, v := range all {
		switch {
		case v.State == wire.Answered:
			good++
		case !final(v.State):
			open++
		}
	}
	switch {
	case good == len(all):
		return nil
	case good > 0 || open > 0:
		return ErrPartly
	}
	return ErrFailed
}

// Summary says how many hosts had which verdict.
func Summary(j Job, all []Verdict) string {
	n := map[string]int{}
	for _, v := range all {
		n[v.State]++
	}
	var parts []string
	for _, st := range []string{wire.Answered, wire.Failed, wire.Refused, wire.TimedOut, wire.Stopped, wire.Silent, wire.Offline, wire.Skipped, wire.Running, wire.Waiting} {
		if n[st] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[st], st))
		}
	}
	s := fmt.Sprintf("%d hosts: %s", j.Total, strings.Join(parts, ", "))
	if j.Why != "" {
		s += " (" + j.Why + ")"
	}
	return s
}

// shellOutput prints what a command printed, each line with the host's name.
func shellOutput(w io.Writer, v Verdict) {
	var r struct {
		Stdout, Stderr string
		Retcode        int
	}
	if len(v.Return) == 0 || json.Unmarshal(v.Return, &r) != nil || v.Blob != "" {
		_ = Print(w, "txt", v) // a writer that is gone
		if v.Blob != "" {
			fmt.Fprintf(w, "%s: (%d bytes in all: drover job output %s)\n", v.Host, v.Size, v.Host)
		}
		return
	}
	for _, l := range strings.Split(strings.TrimRight(clean(r.Stdout)+"\n"+clean(r.Stderr), "\n"), "\n") {
		if l != "" || r.Stdout == "" && r.Stderr == "" {
			fmt.Fprintf(w, "%s: %s\n", v.Host, l)
		}
	}
	if v.State != wire.Answered {
		fmt.Fprintf(w, "%s: %s %s\n", v.Host, mark(v.State), explain(v))
	}
}

// FollowJob reads a job that is followed. A connection that ends is taken up again.
func FollowJob(ctx context.Context, e *cli.Env, id string, fn func(Part) error) error {
	told := map[string]string{}
	for tries := 0; ; tries++ {
		resp, err := e.Client.Do(ctx, "GET", "/api/v1/jobs/"+url.PathEscape(id)+"/follow", map[string][]string{"Accept": {"application/x-ndjson"}}, nil)
		if err == nil {
			d := json.NewDecoder(resp.Body)
			for {
				var p Part
				if err = d.Decode(&p); err != nil {
					break
				}
				tries = 0
				p.Hosts = slices.DeleteFunc(p.Hosts, func(v Verdict) bool { return told[v.Host] == v.State })
				for _, v := range p.Hosts {
					told[v.Host] = v.State
				}
				if err := fn(p); err != nil || p.Job != nil {
					_ = resp.Body.Close()
					return err
				}
			}
			_ = resp.Body.Close()
		} else if k := fault.As(err).Kind; k != fault.KindUnavailable && k != fault.KindInternal {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if tries > 60 {
			return err
		}
		select { // the server may just be starting again
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// Verbs is `drover job`.
type Verbs struct {
	List    jobList    `cmd:"" help:"Jobs, the newest first." example:"drover job list\ndrover job list --host web-01 --fun pkg.\ndrover job list --state running"`
	Show    jobShow    `cmd:"" help:"A job with the verdict of each host." example:"drover job show 20261128101500123456\ndrover job show 20261128101500123456 --failed --out txt"`
	Follow  jobFollow  `cmd:"" help:"Print the verdicts of a job as they come." example:"drover job follow 20261128101500123456"`
	Output  jobOutput  `cmd:"" help:"The whole result of one host, as JSON." example:"drover job output 20261128101500123456 web-01"`
	Stop    jobStop    `cmd:"" help:"End a job: no host begins any more, and those at it end." example:"drover job stop 20261128101500123456 --why 'wrong package'"`
	Approve jobApprove `cmd:"" help:"Let a job begin that waits for a second person." example:"drover job approve 20261128101500123456"`
	Reject  jobReject  `cmd:"" help:"End a job that waits for a second person." example:"drover job reject 20261128101500123456 --why 'not on a Friday'"`
	Rule    struct {
		List   ruleList   `cmd:"" help:"List the rules." example:"drover job rule list"`
		Add    ruleAdd    `cmd:"" help:"Add a rule." example:"drover job rule add alice allow 'web*' 'service.*'\ndrover job rule add '*' deny '*' 'system.*' --note 'reboots go through a rollout'\ndrover job rule add '*' approve -N prod 'cmd.*'"`
		Remove ruleRemove `cmd:"" help:"End a rule." example:"drover job rule remove 3"`
	} `cmd:"" help:"Who may run what where."`
	Events jobEvents `cmd:"" help:"What happens, with Salt's event tags, as it happens." example:"drover job events\ndrover job events --tag 'salt/job/*'"`
}

type jobList struct {
	Host   string `help:"That were for this host."`
	Fun    string `help:"Of this function, or with a trailing dot of this module."`
	Author string `help:"Of this person."`
	State  string `enum:",approval,running,stopping,done,rejected" default:"" help:"In this state: approval, running, stopping, done or rejected."`
	Search string `help:"With this in the target, the arguments or the reason."`
	Limit  int    `short:"n" default:"30" help:"How many."`
}

// Run lists jobs.
func (c jobList) Run(e *cli.Env) error {
	var js []Job
	q := url.Values{"host": {c.Host}, "fun": {c.Fun}, "author": {c.Author}, "state": {c.State}, "search": {c.Search}, "limit": {fmt.Sprint(c.Limit)}}
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/jobs?"+q.Encode(), nil, &js); err != nil {
		return err
	}
	return e.Show(js, func(w io.Writer) {
		cli.Table(w, "JOB STATE AUTHOR HOSTS GOOD BAD FUNCTION TARGET", func(row func(...any)) {
			for _, j := range js {
				row(j.ID, j.State, j.Author, j.Total, j.Counts[wire.Answered], j.Failures(), j.Spec.Fun, fmt.Sprintf("%.60s", j.Spec.Target))
			}
		})
	})
}

type jobShow struct {
	ID     string `arg:"" help:"Id of the job."`
	Failed bool   `help:"Only hosts on which it did not go well."`
	Out    string `name:"out" default:"nested" help:"How results are printed."`
}

// Run shows a job.
func (c jobShow) Run(e *cli.Env) error {
	var j Whole
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/jobs/"+url.PathEscape(c.ID), nil, &j); err != nil {
		return err
	}
	if c.Failed {
		j.Hosts = slices.DeleteFunc(j.Hosts, func(v Verdict) bool { return v.State == wire.Answered })
	}
	var err error
	serr := e.Show(j, func(w io.Writer) {
		fmt.Fprintf(w, "%s  %s  by %s at %s\n%s\n", j.ID, j.State, j.Author, j.Created.Local().Format(time.DateTime), j.Spec.Line())
		if j.Spec.Reason != "" {
			fmt.Fprintf(w, "reason: %s\n", clean(j.Spec.Reason))
		}
		fmt.Fprintf(w, "%s\n\n", Summary(j.Job, j.Hosts))
		for _, v := range j.Hosts {
			if perr := Print(w, c.Out, v); perr != nil {
				err = perr
			}
		}
	})
	return errors.Join(serr, err)
}

type jobFollow struct {
	ID  string `arg:"" help:"Id of the job."`
	Out string `name:"out" help:"How results are printed."`
}

// Run follows a job.
func (c jobFollow) Run(e *cli.Env) error {
	var j Job
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/jobs/"+url.PathEscape(c.ID), nil, &j); err != nil {
		return err
	}
	return follow(e.Ctx, e, j, c.Out, false, false, true)
}

type jobOutput struct {
	ID   string `arg:"" help:"Id of the job."`
	Host string `arg:"" help:"Name of the host."`
}

// Run prints the whole result of one host.
func (c jobOutput) Run(e *cli.Env) error {
	resp, err := e.Client.Do(e.Ctx, "GET", "/api/v1/jobs/"+url.PathEscape(c.ID)+"/output/"+url.PathEscape(c.Host), nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(e.Out, resp.Body)
	return err
}

type jobStop struct {
	ID     string `arg:"" help:"Id of the job."`
	Why    string `help:"A reason, for the ledger."`
	Signal int    `help:"Send only this signal to what runs: 15 or 9."`
}

// Run ends a job.
func (c jobStop) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "POST", "/api/v1/jobs/"+url.PathEscape(c.ID)+"/stop", map[string]any{"why": c.Why, "signal": c.Signal}, nil)
}

type jobApprove struct {
	ID string `arg:"" help:"Id of the job."`
}

// Run approves a job.
func (c jobApprove) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "POST", "/api/v1/jobs/"+url.PathEscape(c.ID)+"/approve", nil, nil)
}

type jobReject struct {
	ID  string `arg:"" help:"Id of the job."`
	Why string `help:"A reason."`
}

// Run rejects a job.
func (c jobReject) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "POST", "/api/v1/jobs/"+url.PathEscape(c.ID)+"/reject", map[string]string{"why": c.Why}, nil)
}

type ruleList struct{}

// Run lists rules.
func (ruleList) Run(e *cli.Env) error {
	var rs []Rule
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/job-rules", nil, &rs); err != nil {
		return err
	}
	return e.Show(rs, func(w io.Writer) {
		cli.Table(w, "RULE WHO EFFECT TARGET FUNCTION ARGUMENTS NOTE", func(row func(...any)) {
			for _, r := range rs {
				row(r.ID, r.Who, r.Effect, r.Form+" "+fmt.Sprintf("%.60s", r.Target), r.Fun, r.Args, r.Note)
			}
		})
	})
}

type ruleAdd struct {
	Who    string `arg:"" help:"A person, role:NAME, or * for everybody."`
	Effect string `arg:"" enum:"allow,deny,approve" help:"allow, deny, or approve: a second person has to."`
	fleet.Target
	Fun  string `arg:"" optional:"" help:"Function, as a pattern; all when not given."`
	Args string `help:"Regular expression that the arguments match, as JSON."`
	Note string `help:"A remark, which whoever is refused is shown."`
}

// Run adds a rule.
func (c ruleAdd) Run(e *cli.Env) error {
	var out map[string]int64
	r := Rule{Who: c.Who, Effect: c.Effect, Form: string(c.Form()), Target: c.Target.Target, Fun: cmp.Or(c.Fun, "*"), Args: c.Args, Note: c.Note}
	if err := e.Client.Call(e.Ctx, "POST", "/api/v1/job-rules", r, &out); err != nil {
		return err
	}
	return e.Show(out, func(w io.Writer) { fmt.Fprintln(w, out["id"]) })
}

type ruleRemove struct {
	ID int64 `arg:"" help:"Number of the rule."`
}

// Run ends a rule.
func (c ruleRemove) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "DELETE", fmt.Sprintf("/api/v1/job-rules/%d", c.ID), nil, nil)
}

type jobEvents struct {
	Tag string `help:"Only tags that this pattern matches: salt/job/*."`
}

// Run prints the stream of events.
func (c jobEvents) Run(e *cli.Env) error {
	resp, err := e.Client.Do(e.Ctx, "GET", "/api/v1/stream?tag="+url.QueryEscape(c.Tag), map[string][]string{"Accept": {"text/event-stream"}}, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(e.Out, resp.Body)
	if e.Ctx.Err() != nil {
		return nil //nolint:nilerr // whoever watched has seen enough
	}
	return err
}

// ReactVerbs is `drover react`.
type ReactVerbs struct {
	List    reactList    `cmd:"" help:"What follows when something happens." example:"drover react list"`
	Set     reactSet     `cmd:"" help:"Make a reaction or change it." example:"drover react set restart-sshd 'salt/beacon/*/service/sshd' --target '{id}' --fun service.restart --arg sshd\ndrover react set chat 'salt/presence/change' --hook https://chat.example/hook"`
	Remove  reactRemove  `cmd:"" help:"Take a reaction away." example:"drover react remove restart-sshd"`
	Letters reactLetters `cmd:"" help:"Events on their way to what reacts to them; dead ones did not get there." example:"drover react letters --state dead"`
	Retry   reactRetry   `cmd:"" help:"Try a dead letter again." example:"drover react retry 17"`
}

type reactList struct{}

// Run lists reactions.
func (reactList) Run(e *cli.Env) error {
	var rs []Reaction
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/reactions", nil, &rs); err != nil {
		return err
	}
	return e.Show(rs, func(w io.Writer) {
		cli.Table(w, "REACTION TAG DOES AUTHOR NOTE", func(row func(...any)) {
			for _, r := range rs {
				does := r.Hook
				if r.Job != nil {
					does = strings.TrimPrefix(r.Job.Line(), "drover run ")
				}
				row(r.Name, r.Tag, does, r.Author, r.Note)
			}
		})
	})
}

type reactSet struct {
	Name   string   `arg:"" help:"Name of the reaction."`
	Tag    string   `arg:"" help:"Pattern of event tags: salt/beacon/*/service/*."`
	Target string   `help:"Run a job on these hosts; {id} is the host that told of it."`
	Form   string   `default:"glob" help:"How the target is written."`
	Fun    string   `help:"The function to run."`
	Arg    []string `help:"An argument of it; KEY=VALUE is by name, {data.KEY} is a value of the event. Repeatable."`
	Hook   string   `help:"Send the event to this URL."`
	Note   string   `help:"A remark."`
}

// Run makes or changes a reaction.
func (c reactSet) Run(e *cli.Env) error {
	in := map[string]any{"tag": c.Tag, "note": c.Note}
	if c.Hook != "" {
		in["hook"] = c.Hook
	}
	if c.Fun != "" {
		sp := Spec{Form: c.Form, Target: c.Target, Fun: c.Fun}
		sp.Args, sp.Kwargs = wire.Words(c.Arg)
		in["job"] = sp
	}
	if c.Hook == "" && c.Fun == "" {
		return fault.Invalid("usage", "a reaction needs a function to run or a URL").Fix("give --target and --fun, or --hook")
	}
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/reactions/"+url.PathEscape(c.Name), in, nil)
}

type reactRemove struct {
	Name string `arg:"" help:"Name of the reaction."`
}

// Run takes a reaction away.
func (c reactRemove) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/reactions/"+url.PathEscape(c.Name), map[string]any{}, nil)
}

type reactLetters struct {
	State string `enum:",waiting,done,dead" default:"" help:"In this state: waiting, done or dead."`
}

// Run lists letters.
func (c reactLetters) Run(e *cli.Env) error {
	var ls []Letter
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/letters?state="+c.State, nil, &ls); err != nil {
		return err
	}
	return e.Show(ls, func(w io.Writer) {
		cli.Table(w, "LETTER REACTION STATE TRIES TAG JOB ERROR", func(row func(...any)) {
			for _, l := range ls {
				row(l.ID, l.Reaction, l.State, l.Tries, l.Tag, l.Job, l.Error)
			}
		})
	})
}

type reactRetry struct {
	ID int64 `arg:"" help:"Number of the letter."`
}

// Run tries a dead letter again.
func (c reactRetry) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "POST", fmt.Sprintf("/api/v1/letters/%d/retry", c.ID), nil, nil)
}
