package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
	fleetwire "drover/internal/fleet/wire"
	"drover/internal/job/wire"
)

const (
	maxTasks  = 64               // commands at once
	stillHere = 15 * time.Second // between two words of one that runs
	firstWord = time.Second
	headBytes = 2 << 10
	maxResult = 128 << 20
)

// task is a command that runs.
type task struct {
	cmd    wire.Command
	began  time.Time
	cancel context.CancelCauseFunc
}

var (
	errStopped = errors.New("stopped on request")
	errTimeout = errors.New("timed out")
)

// command takes a command of the bus: it proves where it is from and whom it is for, and runs it
// unless it came before.
func (a *Agent) command(b []byte) error {
	var c wire.Command
	if err := fleetwire.Open(a.server, fleetwire.ForCommand, b, &c); err != nil {
		return err
	}
	now := a.now()
	a.mu.Lock()
	id := a.admit.ID
	welcomed := !a.when.IsZero() && a.welcome.Refused == ""
	a.mu.Unlock()
	switch {
	case !wire.IsJID(c.Job):
		return fault.Invalid("command_bad", "a command has no id")
	case c.Host != id:
		return fault.Denied("command_foreign", "the command %s is for another host", c.Job)
	case !welcomed:
		return fault.Denied("command_early", "the command %s came before the server's welcome: what time it is is not known", c.Job)
	case c.Instance != a.instance:
		return fault.Denied("command_foreign", "the command %s is for another process of this agent", c.Job)
	case now > c.Expires:
		return fault.Denied("command_expired", "the command %s expired %s ago", c.Job, time.Duration(now-c.Expires)*time.Microsecond)
	case c.Issued > now+int64(time.Minute/time.Microsecond) || c.Expires > now+int64(time.Hour/time.Microsecond):
		return fault.Denied("command_early", "the command %s is from the future", c.Job)
	}
	f, known := a.cfg.Registry.Get(c.Fun)
	before, err := a.journal.begin(c, known && f.Reads)
	switch {
	case err != nil:
		a.answer(refusal(c, err, false))
	case before == nil:
		a.start(c, f, known)
	case before.Result != nil:
		a.say("run", *before.Result)
	case !before.Done:
		a.say("run", wire.Result{Job: c.Job, State: wire.Running})
	}
	return nil
}

func refusal(c wire.Command, err error, ack bool) wire.Result {
	return wire.Result{Job: c.Job, State: wire.Refused, RC: 1, Code: fault.Code(err), Error: err.Error(), Ack: ack}
}

// start runs a command, if this host lets it.
func (a *Agent) start(c wire.Command, f module.Function, known bool) {
	fail := func(err error) {
		r := refusal(c, err, !known || !f.Reads)
		if err := a.journal.done(r); err != nil {
			a.log.Error("a refusal cannot be written down", "job", c.Job, "err", err)
		}
		a.answer(r)
	}
	if err := a.cfg.Policy().check(c.Fun); err != nil {
		fail(err)
		return
	}
	if !known {
		fail(fault.NotFound("function_unknown", "there is no function %s on this host", c.Fun).Fix("see `drover run HOST sys.list_functions`"))
		return
	}
	if c.Test && !f.Reads && !f.Tests {
		fail(fault.Denied("test_unknown", "%s cannot say what it would do", c.Fun).Fix("it knows no test mode; run it without"))
		return
	}
	var args []any
	var named map[string]any
	if err := errors.Join(decode(c.Arg, &args), decode(c.Kwarg, &named)); err != nil {
		fail(fault.Invalid("arguments", "the arguments cannot be read").Wrap(err))
		return
	}
	host := a.host()
	call, err := module.Bind(&host, f, args, named, c.Test)
	if err != nil {
		fail(err)
		return
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	t := &task{cmd: c, began: time.Now(), cancel: cancel}
	a.mu.Lock()
	if len(a.running) >= maxTasks {
		a.mu.Unlock()
		cancel(nil)
		fail(fault.Unavailable("agent_busy", "this host runs %d commands already", maxTasks).Fix("wait for them, or end some: `drover job list --host`"))
		return
	}
	a.running[c.Job], a.ran = t, true
	a.mu.Unlock()
	a.work.Go(func() {
		defer cancel(nil)
		r := a.run(ctx, t, f, call)
		a.mu.Lock()
		delete(a.running, c.Job)
		a.mu.Unlock()
		a.finish(r)
	})
}

func decode(b json.RawMessage, v any) error {
	if len(b) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	return d.Decode(v)
}

// run calls the function and makes a result of what comes of it.
func (a *Agent) run(ctx context.Context, t *task, f module.Function, call *module.Call) wire.Result {
	c := t.cmd
	began := a.now()
	limit := time.Duration(min(max(c.Timeout, 1), 7*24*3600)) * time.Second
	tctx, cancel := context.WithTimeoutCause(ctx, limit, errTimeout)
	defer cancel()
	over := make(chan struct{})
	word := time.AfterFunc(firstWord, func() { a.stillAt(over, c.Job) }) // most are over before
	defer word.Stop()
	v, err := safely(tctx, f, call)
	close(over)
	r := wire.Result{Job: c.Job, State: wire.Answered, RC: call.RC, Began: began, Took: time.Since(t.began).Microseconds(), Ack: !f.Reads}
	switch cause := context.Cause(tctx); {
	case errors.Is(cause, errTimeout):
		r.State, r.RC, r.Code, r.Error, r.Step = wire.TimedOut, max(r.RC, 1), "timed_out", fmt.Sprintf("it took longer than %s", limit), f.Name
	case errors.Is(cause, errStopped):
		r.State, r.RC, r.Code, r.Error, r.Step = wire.Stopped, max(r.RC, 1), "stopped", "it was stopped on request", f.Name
	case err != nil:
		e := fault.As(err)
		r.State, r.RC, r.Code, r.Error = wire.Failed, max(r.RC, 1), e.Code, err.Error()
		if e.Kind == fault.KindInternal && e.Err != nil {
			r.Error = e.Err.Error() // the host's own words help whoever asked
		}
	case r.RC != 0:
		r.State = wire.Failed
	}
	if v == nil && (err != nil || r.State != wire.Answered) {
		return r
	}
	b, err := json.Marshal(v)
	if err != nil {
		r.State, r.RC, r.Code, r.Error = wire.Failed, max(r.RC, 1), "result_bad", "the result cannot be written as JSON: "+err.Error()
		return r
	}
	r.Return = b
	r.Lossy = bytes.Contains(b, []byte("\uFFFD"))
	return r
}

// safely calls a function; one that panics fails, and the agent goes on.
func safely(ctx context.Context, f module.Function, call *module.Call) (v any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.Internal("function_panic", "%s is at fault: %v", f.Name, p).Fix("report it with the arguments")
		}
	}()
	return f.Run(ctx, call)
}

// stillAt tells the server now and then that a command runs.
func (a *Agent) stillAt(over chan struct{}, job string) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-over:
			return
		case <-t.C:
			a.say("run", wire.Result{Job: job, State: wire.Running})
			t.Reset(stillHere)
		}
	}
}

// finish keeps a result and tells it.
func (a *Agent) finish(r wire.Result) {
	if len(r.Return) > wire.MaxInline {
		whole := r.Return
		r.Size = int64(len(whole))
		r.Return = head(whole)
		if err := a.outsource(&r, whole); err != nil {
			a.log.Error("a large result is cut", "job", r.Job, "err", err)
			r.Error = strings.TrimSpace(r.Error + " the result is cut: " + err.Error())
		}
	}
	if err := a.journal.done(r); err != nil {
		a.log.Error("a result cannot be written down; it is kept in memory", "job", r.Job, "err", err)
	}
	a.answer(r)
}

// head is the beginning of a large result, as a JSON text.
func head(b []byte) json.RawMessage {
	h := b[:min(headBytes, len(b))]
	for len(h) > 0 && !utf8.Valid(h) {
		h = h[:len(h)-1]
	}
	out, err := json.Marshal(string(h) + "…")
	if err != nil {
		return nil
	}
	return out
}

// outsource sends the whole of a large result, or keeps it on disk until it can.
func (a *Agent) outsource(r *wire.Result, whole []byte) error {
	if len(whole) > maxResult {
		return fault.TooLarge("result_large", "%d bytes; at most %d", len(whole), maxResult)
	}
	sum, err := a.upload(r.Job, bytes.NewReader(whole))
	if err == nil {
		r.Blob = sum
		return nil
	}
	if a.journal.dir == "" {
		return err
	}
	return durable.WriteFile(filepath.Join(a.journal.dir, r.Job+".out"), whole, 0o600)
}

func (a *Agent) upload(job string, body *bytes.Reader) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	resp, err := a.do(ctx, a.http, "PUT", "/api/v1/agent/results/"+job, map[string][]string{"Content-Type": {"application/json"}}, body)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var out struct{ Blob string }
	return out.Blob, json.NewDecoder(resp.Body).Decode(&out)
}

// answer tells a result.
func (a *Agent) answer(r wire.Result) { a.say("run", r) }

// resend tells results again that the server has not acknowledged.
func (a *Agent) resend(all bool) {
	for _, r := range a.journal.unacked(all) {
		if r.Size > 0 && r.Blob == "" && a.journal.dir != "" {
			file := filepath.Join(a.journal.dir, r.Job+".out")
			if b, err := os.ReadFile(file); err == nil {
				sum, err := a.upload(r.Job, bytes.NewReader(b))
				if err != nil {
					continue // another time
				}
				r.Blob = sum
				if err := a.journal.done(r); err == nil {
					_ = os.Remove(file) // else the sweep does it
				}
			}
		}
		a.answer(r)
	}
}

// stop ends a command, or sends its processes a signal.
func (a *Agent) stop(b []byte) error {
	var s wire.Stop
	if err := fleetwire.Open(a.server, fleetwire.ForStop, b, &s); err != nil {
		return err
	}
	now := a.now()
	a.mu.Lock()
	id := a.admit.ID
	t := a.running[s.Job]
	a.mu.Unlock()
	if s.Host != id || now > s.Expires {
		return fault.Denied("command_foreign", "a stop is for another host, or too old")
	}
	if t != nil {
		return a.end(t, s.Signal)
	}
	return nil
}

func (a *Agent) end(t *task, signal int) error {
	if signal == 0 || signal == int(syscall.SIGTERM) || signal == int(syscall.SIGKILL) {
		t.cancel(errStopped)
		return nil
	}
	return fault.Invalid("signal", "only 15 and 9 end a command").Fix("send one of those")
}

// Running are the commands that run, as Salt's saltutil.running gives them.
func (a *Agent) Running() []map[string]any {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := []map[string]any{}
	for id, t := range a.running {
		var args []any
		_ = decode(t.cmd.Arg, &args) // it was read before
		out = append(out, map[string]any{"jid": id, "fun": t.cmd.Fun, "arg": args, "user": t.cmd.Author, "tgt": a.cfg.Name, "tgt_type": "list", "ret": "", "pid": os.Getpid()})
	}
	slices.SortFunc(out, func(x, y map[string]any) int { return strings.Compare(fmt.Sprint(x["jid"]), fmt.Sprint(y["jid"])) })
	return out
}

// Kill ends a command by its id.
func (a *Agent) Kill(jid string, signal int) error {
	a.mu.Lock()
	t := a.running[jid]
	a.mu.Unlock()
	if t == nil {
		return fault.NotFound("job_unknown", "no command %.40q runs here", jid)
	}
	return a.end(t, signal)
}

// sweep forgets old commands now and then.
func (a *Agent) sweep(ctx context.Context) {
	for module.Sleep(ctx, time.Minute+spread(10*time.Second)) == nil {
		a.journal.sweep(a.now())
		a.mu.Lock()
		idle := a.ran && len(a.running) == 0
		a.ran = a.ran && !idle
		a.mu.Unlock()
		if idle && a.cfg.Dir != "" {
			trim()
		}
	}
}
