package salt

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/compat/salt/words"
	"drover/internal/fault"
	"drover/internal/fleet"
	"drover/internal/fleet/selector"
	fleetwire "drover/internal/fleet/wire"
)

// wheels are the wheel functions that are supported.
func wheels() []string {
	return []string{"key.accept", "key.delete", "key.finger", "key.list", "key.list_all", "key.reject"}
}

// section is what Salt calls the hosts of a state. A key that was cut off is one that is denied.
func section(state string) string {
	switch state {
	case fleetwire.Accepted:
		return "minions"
	case fleetwire.Pending:
		return "minions_pre"
	case fleetwire.Rejected:
		return "minions_rejected"
	}
	return "minions_denied"
}

// sorted puts the names of hosts into Salt's lists of keys. What was deleted is in none.
func sorted(hs []fleet.Host) map[string][]string {
	out := map[string][]string{"minions": {}, "minions_pre": {}, "minions_rejected": {}, "minions_denied": {}}
	for _, h := range hs {
		if h.State == fleetwire.Rejected && h.Name == "deleted-"+h.ID {
			continue
		}
		s := section(h.State)
		if !slices.Contains(out[s], h.Name) {
			out[s] = append(out[s], h.Name)
		}
	}
	return out
}

// keys is Salt's list of all keys. A master has keys of its own; drover's are not named so.
func (a *API) keys(ctx context.Context) (map[string][]string, error) {
	hs, err := a.Fleet.Hosts(ctx, "", selector.Glob, "")
	out := sorted(hs)
	out["local"] = []string{}
	return out, err
}

// wheel runs a wheel function. Its answer is in the shape of the event that Salt's is told by.
func (a *API) wheel(ctx context.Context, l low) (any, error) {
	p, err := l.params()
	if err != nil {
		return nil, err
	}
	fun := l.text("fun")
	v, err := a.key(ctx, fun, p)
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	jid := now.Format("20060102150405") + fmt.Sprintf("%06d", now.Nanosecond()/1000)
	tag := "salt/wheel/" + jid
	return map[string]any{"tag": tag, "data": map[string]any{"jid": jid, "tag": tag, "fun": "wheel." + fun, "user": auth.From(ctx).String(), "return": v, "success": true, "_stamp": now.Format("2006-01-02T15:04:05.000000")}}, nil
}

func (a *API) key(ctx context.Context, fun string, p params) (any, error) {
	if fun == "key.list_all" {
		return a.keys(ctx)
	}
	var patterns []string
	switch m := p.get(0, "match").(type) {
	case []any:
		for _, x := range m {
			patterns = append(patterns, text(x))
		}
	default:
		patterns = strings.Split(text(m), ",")
	}
	patterns = slices.DeleteFunc(patterns, func(s string) bool { return s == "" })
	if len(patterns) == 0 || len(patterns) > 1000 {
		return nil, fault.Invalid("arguments", "%s needs match: a name or a pattern of names", fun).Fix(`send "match": "web*"`)
	}
	if fun == "key.list" {
		all, err := a.keys(ctx)
		if err != nil {
			return nil, err
		}
		state, ok := words.List(patterns[0])
		switch {
		case !ok:
			return nil, fault.Invalid("arguments", "%.40q is no list of keys", patterns[0]).Fix("use all, accepted, pre, rejected or denied")
		case state == "":
			return all, nil
		}
		return map[string][]string{section(state): all[section(state)]}, nil
	}
	hs, err := a.Fleet.Hosts(ctx, "", selector.Glob, "")
	if err != nil {
		return nil, err
	}
	all := slices.Clone(hs)
	hs = slices.DeleteFunc(hs, func(h fleet.Host) bool { return !wanted(fun, h, patterns, p.named) })
	out := map[string]any{}
	if fun == "key.finger" {
		for _, h := range hs {
			m, ok := out[section(h.State)].(map[string]string)
			if !ok {
				m = map[string]string{}
				out[section(h.State)] = m
			}
			m[h.Name] = h.Key
		}
		return out, nil
	}
	done := []string{}
	for _, h := range hs {
		name, err := refer(all, h)
		if err != nil {
			return nil, err
		}
		switch fun {
		case "key.accept":
			err = a.Fleet.Accept(ctx, name)
		case "key.reject":
			err = a.Fleet.Remove(ctx, name, "salt-api: key.reject")
		case "key.delete":
			if h.State == fleetwire.Accepted {
				err = a.Fleet.Remove(ctx, name, "salt-api: key.delete")
			} else {
				err = a.Fleet.Delete(ctx, name)
			}
		}
		if err != nil {
			return nil, err
		}
		done = append(done, h.Name)
	}
	switch {
	case fun == "key.delete":
		return a.keys(ctx)
	case len(done) == 0: // who may nothing learns that even where nothing is to be done
		if err := auth.Need(ctx, map[string]string{"key.accept": "host.accept", "key.reject": "host.revoke"}[fun], patterns[0]); err != nil {
			return nil, err
		}
	case fun == "key.accept":
		out["minions"] = done
	default:
		out["minions_rejected"] = done
	}
	return out, nil
}

// refer is the name by which one machine is meant, and no other that used or uses its name.
func refer(all []fleet.Host, h fleet.Host) (string, error) {
	if slices.ContainsFunc(all, func(x fleet.Host) bool { return x.Name == h.ID }) {
		return "", fault.Conflict("host_ambiguous", "a machine calls itself %s, which is the number of the machine %s", h.ID, h.Name).Fix("reject or delete the one of that name first, on the page /fleet/pending")
	}
	return h.ID, nil
}

// wanted tells whether a function of keys is for a host: by its name and by its state.
func wanted(fun string, h fleet.Host, patterns []string, also map[string]any) bool {
	if h.Name == "deleted-"+h.ID || !slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, h.Name)
		return p == h.Name || ok && err == nil
	}) {
		return false
	}
	set := func(name string) bool { return text(also[name]) == "true" || text(also[name]) == "True" }
	switch fun {
	case "key.accept":
		return h.State == fleetwire.Pending || h.State == fleetwire.Rejected && set("include_rejected")
	case "key.reject":
		return h.State == fleetwire.Pending || h.State == fleetwire.Accepted && set("include_accepted")
	case "key.delete":
		return h.State != fleetwire.Revoked // whose key has to stay known, so that it stays out
	}
	return true
}
