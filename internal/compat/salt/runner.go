package salt

import (
	"context"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"

	"drover/internal/auth"
	"drover/internal/fault"
	"drover/internal/fleet"
	"drover/internal/fleet/selector"
	fleetwire "drover/internal/fleet/wire"
	"drover/internal/job"
	"drover/internal/job/wire"
)

// runners are the runners that are supported.
//
//nolint:gochecknoglobals // a constant table
var runners = map[string]func(context.Context, *API, params, *budget) (any, error){
	"jobs.list_jobs": func(ctx context.Context, a *API, p params, _ *budget) (any, error) { return a.listJobs(ctx, p) },
	"jobs.active":    func(ctx context.Context, a *API, _ params, _ *budget) (any, error) { return a.active(ctx) },
	"jobs.lookup_jid": func(ctx context.Context, a *API, p params, room *budget) (any, error) {
		out, err := a.lookup(ctx, text(p.get(0, "jid")), room)
		if fault.Code(err) == "job_unknown" {
			return map[string]any{}, nil
		}
		return out, err
	},
	"jobs.list_job": func(ctx context.Context, a *API, p params, room *budget) (any, error) {
		return a.whole(ctx, text(p.get(0, "jid")), room)
	},
	"jobs.print_job": func(ctx context.Context, a *API, p params, room *budget) (any, error) {
		jid := text(p.get(0, "jid"))
		v, err := a.whole(ctx, jid, room)
		return map[string]any{jid: v}, err
	},
	"jobs.exit_success": func(ctx context.Context, a *API, p params, _ *budget) (any, error) {
		vs, err := a.Jobs.Verdicts(ctx, text(p.get(0, "jid")))
		out := map[string]bool{}
		for _, v := range vs {
			out[v.Host] = v.State == wire.Answered
		}
		return out, err
	},
	"jobs.last_run": func(ctx context.Context, a *API, p params, room *budget) (any, error) {
		js, err := a.jobs(ctx, text(p.named["function"]), text(p.named["target"]))
		if err != nil || len(js) == 0 {
			return false, err
		}
		v, err := a.whole(ctx, js[0].ID, room)
		return map[string]any{js[0].ID: v}, err
	},
	"manage.up":          up,
	"manage.present":     up,
	"manage.alived":      up,
	"manage.down":        down,
	"manage.not_present": down,
	"manage.not_alived":  down,
	"manage.status": func(ctx context.Context, a *API, p params, _ *budget) (any, error) {
		there, not, err := a.presence(ctx, p)
		return map[string]any{"up": there, "down": not}, err
	},
	"manage.versions": func(ctx context.Context, a *API, p params, _ *budget) (any, error) { return a.versions(ctx, p) },
	"mine.get": func(ctx context.Context, a *API, p params, _ *budget) (any, error) {
		if err := auth.Need(ctx, "host.read", "*"); err != nil {
			return nil, err
		}
		form, tgt, err := p.target(0, 2)
		if err != nil {
			return nil, err
		}
		fun := text(p.get(1, "fun"))
		if fun == "" {
			fun = text(p.named["mine_function"]) // where fun names the runner
		}
		if fun == "" {
			return nil, fault.Invalid("arguments", "mine.get needs a target and the name of what is shared").Fix(`send "arg": ["*", "network.ip_addrs"]`)
		}
		return a.Fleet.Mine(ctx, form, tgt, fun)
	},
	"cache.grains": func(ctx context.Context, a *API, p params, room *budget) (any, error) {
		form, tgt, err := p.target(0, 1)
		if err != nil {
			return nil, err
		}
		return a.grains(ctx, form, tgt, false, room)
	},
}

func names[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }

// jobs lists jobs, the newest first, of functions and targets that patterns match.
func (a *API) jobs(ctx context.Context, fun, target string) ([]job.Job, error) {
	f := job.Filter{Limit: 1000}
	if !strings.ContainsAny(fun, "*?[") {
		f.Fun, fun = fun, ""
	}
	js, err := a.Jobs.List(ctx, f)
	like := func(pattern, s string) bool {
		ok, err := path.Match(pattern, s)
		return pattern == "" || pattern == s || ok && err == nil
	}
	return slices.DeleteFunc(js, func(j job.Job) bool { return !like(fun, j.Spec.Fun) || !like(target, j.Spec.Target) }), err
}

func (a *API) listJobs(ctx context.Context, p params) (any, error) {
	js, err := a.jobs(ctx, text(p.named["search_function"]), text(p.named["search_target"]))
	out := map[string]any{}
	for _, j := range js {
		out[j.ID] = info(j)
	}
	return out, err
}

// maxActive is how many running jobs are told with their hosts.
const maxActive = 200

func (a *API) active(ctx context.Context) (any, error) {
	out := map[string]any{}
	for _, state := range []string{job.StateRunning, job.StateStopping} {
		js, err := a.Jobs.List(ctx, job.Filter{State: state, Limit: maxActive})
		if err != nil {
			return nil, err
		}
		for _, j := range js {
			vs, err := a.Jobs.Verdicts(ctx, j.ID)
			if err != nil {
				return nil, err
			}
			running, returned := []map[string]int{}, []string{}
			for _, v := range vs {
				switch v.State {
				case wire.Running:
					running = append(running, map[string]int{v.Host: 0}) // a goroutine has no pid
				case wire.Waiting:
				default:
					returned = append(returned, v.Host)
				}
			}
			m := info(j)
			m["Running"], m["Returned"] = running, returned
			out[j.ID] = m
		}
	}
	return out, nil
}

// lookup is what hosts returned for a job.
func (a *API) lookup(ctx context.Context, jid string, room *budget) (map[string]any, error) {
	vs, err := a.Jobs.Verdicts(ctx, jid)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for _, v := range vs {
		r, ok, err := a.result(v, room)
		if err != nil {
			return nil, err
		}
		if ok {
			out[v.Host] = r
		}
	}
	return out, nil
}

// whole is a job with everything that is known of it.
func (a *API) whole(ctx context.Context, jid string, room *budget) (map[string]any, error) {
	j, err := a.Jobs.Get(ctx, jid)
	if err != nil {
		return nil, err
	}
	vs, err := a.Jobs.Verdicts(ctx, jid)
	if err != nil {
		return nil, err
	}
	hosts, results := []string{}, map[string]any{}
	for _, v := range vs {
		hosts = append(hosts, v.Host)
		r, ok, err := a.result(v, room)
		if err != nil {
			return nil, err
		}
		if ok {
			results[v.Host] = map[string]any{"return": r, "retcode": v.RC, "success": v.State == wire.Answered}
		}
	}
	slices.Sort(hosts)
	m := info(j)
	m["jid"], m["Minions"], m["Result"] = j.ID, hosts, results
	return m, nil
}

// job answers GET /salt/jobs/JID.
func (a *API) job(ctx context.Context, r *http.Request) (int, any, error) {
	room := &budget{left: maxAnswer}
	m, err := a.whole(ctx, r.PathValue("jid"), room)
	if err != nil {
		return 0, nil, err
	}
	bare := map[string]any{}
	if results, ok := m["Result"].(map[string]any); ok {
		for h, x := range results {
			if one, ok := x.(map[string]any); ok {
				bare[h] = one["return"]
			}
		}
	}
	return http.StatusOK, map[string]any{"info": []any{m}, "return": []any{bare}}, nil
}

// hosts are the hosts of a runner's target that are let in.
func (a *API) hosts(ctx context.Context, p params) ([]fleet.Host, error) {
	form, tgt, err := p.target(0, 1)
	if err != nil {
		return nil, err
	}
	if form == selector.Glob && tgt == "*" {
		return a.Fleet.Hosts(ctx, fleetwire.Accepted, form, "")
	}
	return a.Fleet.Hosts(ctx, fleetwire.Accepted, form, tgt)
}

// presence tells who is there and who is not.
func (a *API) presence(ctx context.Context, p params) (there, not []string, err error) {
	hs, err := a.hosts(ctx, p)
	there, not = []string{}, []string{}
	for _, h := range hs {
		if h.Presence == fleet.Online {
			there = append(there, h.Name)
		} else {
			not = append(not, h.Name)
		}
	}
	return there, not, err
}

func up(ctx context.Context, a *API, p params, _ *budget) (any, error) {
	there, _, err := a.presence(ctx, p)
	return there, err
}

func down(ctx context.Context, a *API, p params, _ *budget) (any, error) {
	_, not, err := a.presence(ctx, p)
	return not, err
}

func (a *API) versions(ctx context.Context, p params) (any, error) {
	hs, err := a.hosts(ctx, p)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"Master": a.Version}
	for _, h := range hs {
		class := "Minion requires update"
		if h.Version == a.Version {
			class = "Up to date"
		}
		m, ok := out[class].(map[string]string)
		if !ok {
			m = map[string]string{}
			out[class] = m
		}
		m[h.Name] = h.Version
	}
	return out, nil
}
