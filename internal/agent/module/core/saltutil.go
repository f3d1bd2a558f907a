package core

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func saltutil(j Jobs) []module.Function {
	jid := module.Need("jid", module.Str)
	running := func() ([]map[string]any, error) {
		if j.Running == nil {
			return nil, fault.Unavailable("jobs_missing", "what runs on this host is not known here")
		}
		return j.Running(), nil
	}
	find := func(id string) (map[string]any, error) {
		all, err := running()
		for _, m := range all {
			if m["jid"] == id {
				return m, nil
			}
		}
		return nil, err
	}
	signal := func(id string, sig int) (any, error) {
		m, err := find(id)
		if err != nil || m == nil {
			return "", err // as Salt answers of a job that is not there
		}
		if j.Kill == nil {
			return nil, fault.Unavailable("jobs_missing", "jobs cannot be ended here")
		}
		if err := j.Kill(id, sig); err != nil {
			return nil, err
		}
		say := fmt.Sprintf("Signal %d sent to job %s", sig, id)
		if pid, ok := m["pid"]; ok {
			say += " at pid " + module.Plain(tidy(pid))
		}
		return say, nil
	}
	one := func(name, doc string, sig int) module.Function {
		return module.Changes("saltutil."+name, doc+"\n\nsalt '*' saltutil."+name+" 20260101000000000000", func(_ context.Context, c *module.Call) (any, error) {
			return signal(c.Str("jid"), sig)
		}, jid)
	}
	each := func(name, doc string, sig int) module.Function {
		return module.Changes("saltutil."+name, doc+"\n\nsalt '*' saltutil."+name, func(_ context.Context, c *module.Call) (any, error) {
			all, err := running()
			if err != nil {
				return nil, err
			}
			out := []any{}
			for _, m := range all {
				// The job that this call is in does not end itself.
				if strings.HasPrefix(module.Plain(m["fun"]), "saltutil.") {
					continue
				}
				v, err := signal(module.Plain(m["jid"]), sig)
				if err != nil {
					return nil, err
				}
				out = append(out, v)
			}
			return out, nil
		})
	}
	refuse := func(name, doc string, err error) module.Function {
		return module.Open(module.Changes("saltutil."+name, doc+"\n\nsalt '*' saltutil."+name, func(context.Context, *module.Call) (any, error) { return nil, err }))
	}
	all := []module.Function{
		module.Reads("saltutil.running", "Lists what runs on the host.\n\nsalt '*' saltutil.running", func(context.Context, *module.Call) (any, error) {
			all, err := running()
			out := []any{}
			for _, m := range all {
				out = append(out, m)
			}
			return out, err
		}),
		module.Reads("saltutil.find_job", "Tells about a job that runs; an empty mapping when it does not.\n\nsalt '*' saltutil.find_job 20260101000000000000", func(_ context.Context, c *module.Call) (any, error) {
			m, err := find(c.Str("jid"))
			if m == nil {
				m = map[string]any{}
			}
			return m, err
		}, jid),
		module.Reads("saltutil.is_running", "Lists the jobs whose functions fit a glob.\n\nsalt '*' saltutil.is_running 'state.*'", func(_ context.Context, c *module.Call) (any, error) {
			all, err := running()
			out := []any{}
			for _, m := range all {
				if fnmatch(c.Str("fun"), module.Plain(m["fun"])) {
					out = append(out, m)
				}
			}
			return out, err
		}, module.Need("fun", module.Str)),
		one("kill_job", "Ends a job at once.", int(unix.SIGKILL)), one("term_job", "Asks a job to end.", int(unix.SIGTERM)),
		module.Changes("saltutil.signal_job", "Sends a signal to a job.\n\nsalt '*' saltutil.signal_job 20260101000000000000 15", func(_ context.Context, c *module.Call) (any, error) {
			sig := c.Int("sig")
			if sig < 0 || sig > 64 {
				return nil, fault.Invalid("argument", "there is no signal %d", sig)
			}
			return signal(c.Str("jid"), int(sig))
		}, jid, module.Need("sig", module.Int)),
		each("kill_all_jobs", "Ends all jobs at once.", int(unix.SIGKILL)), each("term_all_jobs", "Asks all jobs to end.", int(unix.SIGTERM)),
		refuse("refresh_pillar", "Will fetch the pillar anew.", noPillar()), refuse("sync_pillar", "Will fetch the pillar's modules.", noPillar()),
		refuse("revoke_auth", "Would let the server forget this host.", fault.Denied("revoke_server", "a host is cut off by the server, not by itself").Fix("use `drover host revoke NAME`")),
		refuse("regen_keys", "Would make a new key of the agent.", fault.Denied("regen_refused", "a new key would cut this host off from the server").Fix("give it a new ticket")),
		module.Open(module.Changes("saltutil.clear_job_cache", "Forgets old results; the agent forgets them by itself.\n\nsalt '*' saltutil.clear_job_cache", pure(func(*module.Call) any { return true }))),
		module.Open(module.Changes("saltutil.clear_cache", "Forgets fetched files; the agent keeps none that are not wanted.\n\nsalt '*' saltutil.clear_cache", pure(func(*module.Call) any { return true }))),
	}
	for _, name := range []string{"refresh_grains", "refresh_modules"} {
		all = append(all, module.Open(module.Changes("saltutil."+name, "Gathers the grains anew.\n\nsalt '*' saltutil."+name, func(ctx context.Context, c *module.Call) (any, error) {
			err := refresh(ctx, c)
			return err == nil, err
		})))
	}
	for _, name := range []string{"sync_all", "sync_grains", "sync_modules", "sync_states", "sync_renderers", "sync_returners", "sync_outputters", "sync_utils", "sync_beacons", "sync_matchers"} {
		all = append(all, module.Open(module.Changes("saltutil."+name, "Fetches modules from the server, of which there are none: gathers the grains anew.\n\nsalt '*' saltutil."+name, func(ctx context.Context, c *module.Call) (any, error) {
			return syncResult(name), refresh(ctx, c)
		})))
	}
	return all
}

// syncResult is Salt's shape of what came new: nothing.
func syncResult(name string) any {
	if name != "sync_all" {
		return []any{}
	}
	out := map[string]any{}
	for _, k := range []string{"beacons", "clouds", "engines", "executors", "grains", "log_handlers", "matchers", "modules", "output", "proxymodules", "renderers", "returners", "sdb", "serializers", "states", "thorium", "utils", "wrapper"} {
		out[k] = []any{}
	}
	return out
}
