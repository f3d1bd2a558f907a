package salt

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/fault"
	"drover/internal/job"
	"drover/internal/job/wire"
)

// budget is how many bytes of results an answer may still have.
type budget struct{ left int64 }

// take takes n bytes out of it, if they are there.
func (b *budget) take(n int64) bool {
	if n > b.left {
		return false
	}
	b.left -= n
	return true
}

// spec is the job of a lowstate. What Salt calls timeout, how long to wait before it asks whether a
// host is still at it, has no meaning here: that is known.
func (l low) spec(client string) (sp job.Spec, err error) {
	form := l["tgt_type"]
	if form == nil {
		form = l["expr_form"]
	}
	f, tgt, err := target(l["tgt"], form)
	if err != nil {
		return sp, err
	}
	sp = job.Spec{Form: string(f), Target: tgt, Fun: l.text("fun")}
	if sp.Args, sp.Kwargs, err = l.arguments(); err != nil {
		return sp, err
	}
	if v, ok := sp.Kwargs["test"]; ok && sp.Fun != "http.query" { // which has an argument of this name
		is, _ := v.(bool)
		sp.Test = is || text(v) == "1"
		delete(sp.Kwargs, "test")
	}
	switch client {
	case "local_batch":
		if sp.Batch = l.text("batch"); sp.Batch == "" {
			sp.Batch = "10%"
		}
		sp.FailHard = l.text("failhard") == "true" || l.text("failhard") == "True"
		if w := l.text("batch_wait"); w != "" {
			if sp.BatchWait, err = strconv.ParseFloat(w, 64); err != nil || !(sp.BatchWait >= 0 && sp.BatchWait <= 86400) {
				return sp, fault.Invalid("batch_wait", "%.40q is no number of seconds", w).Fix("give 0 to 86400")
			}
		}
	case "local_subset":
		n := l.text("sub")
		if n == "" {
			n = l.text("subset")
		}
		if n == "" {
			n = "3"
		}
		if sp.Subset, err = strconv.Atoi(n); err != nil || sp.Subset < 1 {
			return sp, fault.Invalid("subset", "%.40q is no number of hosts", n)
		}
	}
	return sp, nil
}

// local runs a function on hosts.
func (a *API) local(ctx context.Context, l low, client string, room *budget) ([]any, error) {
	if err := auth.Need(ctx, "host.read", "*"); err != nil { // its results are asked for below
		return nil, err
	}
	sp, err := l.spec(client)
	if err != nil {
		return nil, err
	}
	j, err := a.Jobs.Start(ctx, sp)
	if fault.Code(err) == "target_empty" { // nobody is asked, and nobody answers: no failure to Salt
		if client == "local_batch" {
			return nil, nil
		}
		return []any{map[string]any{}}, nil
	}
	if err != nil {
		return nil, err
	}
	if client == "local_async" {
		hosts := []string{}
		vs, err := a.Jobs.Verdicts(ctx, j.ID)
		for _, v := range vs {
			hosts = append(hosts, v.Host)
		}
		return []any{map[string]any{"jid": j.ID, "minions": hosts}}, err
	}
	if j.State == job.StateApproval {
		return nil, fault.Conflict("job_waits", "the job %s waits for a second person", j.ID).Fix("somebody else has to approve it: `drover job approve %s`; see GET /salt/jobs/%[1]s afterwards", j.ID)
	}
	full := l.text("full_return") == "true" || l.text("full_return") == "True"
	out, each := map[string]any{}, []any{}
	wctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	err = a.Jobs.Follow(wctx, j.ID, func(vs []job.Verdict, _ *job.Job) error {
		for _, v := range vs {
			r, ok, err := a.result(v, room)
			if err != nil {
				return err
			}
			var x any = r
			switch {
			case full:
				m := map[string]any{"jid": j.ID, "ret": r, "retcode": v.RC, "success": v.State == wire.Answered}
				if !ok {
					m["ret"], m["retcode"], m["out"] = said(v), max(v.RC, 1), "no_return"
				}
				x = m
			case !ok:
				continue
			}
			out[v.Host] = x
			each = append(each, map[string]any{v.Host: x})
		}
		return nil
	})
	if err != nil && (ctx.Err() != nil || wctx.Err() == nil) {
		return nil, err
	}
	if client == "local_batch" {
		return each, nil
	}
	return []any{out}, nil
}

// said is what became of it on a host, in words.
func said(v job.Verdict) string {
	if v.Error != "" {
		return v.State + ": " + v.Error
	}
	return v.State
}

// result is what Salt would give for a host: what it returned, or a text for what failed there. Of
// a host that did not return there is none.
func (a *API) result(v job.Verdict, room *budget) (json.RawMessage, bool, error) {
	words := func(s string) (json.RawMessage, bool, error) {
		b, err := json.Marshal(s)
		return b, err == nil, err
	}
	switch v.State {
	case wire.Answered, wire.Failed:
	case wire.Refused: // Salt's minions answer these with a text
		if v.Code == "function_unknown" || v.Code == "argument" || v.Code == "test_unknown" {
			return words(said(v))
		}
		return nil, false, nil
	default:
		return nil, false, nil
	}
	if v.Blob == "" && len(v.Return) > 0 {
		if !room.take(int64(len(v.Return))) {
			return nil, false, tooMuch()
		}
		return v.Return, true, nil
	}
	if v.Blob == "" {
		if v.State == wire.Failed {
			return words(said(v))
		}
		return json.RawMessage("null"), true, nil
	}
	if !room.take(v.Size) {
		return nil, false, tooMuch()
	}
	b, err := a.Blobs.Get(blob.Digest(v.Blob))
	if err != nil {
		return nil, false, err
	}
	whole, err := io.ReadAll(io.LimitReader(b, v.Size))
	if err == nil && !json.Valid(whole) {
		err = fault.Unavailable("result_damaged", "the result of %s is no JSON", v.Host)
	}
	if cerr := b.Close(); err == nil {
		err = cerr
	}
	return whole, true, err
}

func tooMuch() error {
	return fault.TooLarge("results_large", "the results have more than %d MiB", maxAnswer>>20).Fix("ask for fewer hosts, or for one: GET /api/v1/jobs/JID/output/HOST")
}

// started is a time as Salt tells when a job began.
func started(j job.Job) string { return j.Created.UTC().Format("2006, Jan 02 15:04:05.000000") }

// info is a job as Salt's runner tells it.
func info(j job.Job) map[string]any {
	args := append([]any{}, j.Spec.Args...)
	if len(j.Spec.Kwargs) > 0 || j.Spec.Test {
		kw := map[string]any{"__kwarg__": true}
		for k, v := range j.Spec.Kwargs {
			kw[k] = v
		}
		if j.Spec.Test {
			kw["test"] = true
		}
		args = append(args, kw)
	}
	return map[string]any{"Function": j.Spec.Fun, "Arguments": args, "Target": fmt.Sprintf("%.1000s", j.Spec.Target), "Target-type": j.Spec.Form, "User": j.Author, "StartTime": started(j)}
}
