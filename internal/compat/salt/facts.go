package salt

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"drover/internal/fault"
	"drover/internal/fleet"
	"drover/internal/fleet/selector"
	fleetwire "drover/internal/fleet/wire"
)

// maxFacts is of how many hosts the facts are told at once.
const maxFacts = 5000

// minions answers GET /salt/minions and /salt/minions/ID: the grains of the hosts that are there.
// They are what the hosts have reported; nobody is asked.
func (a *API) minions(ctx context.Context, r *http.Request) (int, any, error) {
	tgt := r.PathValue("mid")
	if tgt == "" {
		tgt = "*"
	}
	out, err := a.grains(ctx, selector.Glob, tgt, true, &budget{left: maxAnswer})
	return http.StatusOK, returns(out), err
}

// grains are the facts of hosts.
func (a *API) grains(ctx context.Context, form selector.Form, tgt string, online bool, room *budget) (map[string]any, error) {
	hs, err := a.Fleet.Hosts(ctx, fleetwire.Accepted, form, tgt)
	if err != nil {
		return nil, err
	}
	hs = slices.DeleteFunc(hs, func(h fleet.Host) bool { return online && h.Presence != fleet.Online })
	if len(hs) > maxFacts {
		return nil, fault.TooLarge("hosts_many", "these are %d hosts; at most %d are told at once", len(hs), maxFacts).Fix("ask for fewer: GET /salt/minions/ID, or the runner cache.grains with a target")
	}
	out := map[string]any{}
	for _, h := range hs {
		fs, err := a.Fleet.Facts(ctx, h.Name, fleet.FactFilter{Kind: fleetwire.KindFact})
		if err != nil {
			return nil, err
		}
		b, err := json.Marshal(nest(fs))
		if err != nil {
			return nil, err
		}
		if !room.take(int64(len(b))) {
			return nil, tooMuch()
		}
		out[h.Name] = json.RawMessage(b)
	}
	return out, nil
}

// maxDepth is how deep grains may be.
const maxDepth = 30

// nest makes grains of facts, which are kept as lines: names on the way joined by colons, places
// in lists as numbers, and values as Python prints them.
func nest(fs []fleet.Fact) map[string]any {
	root := map[string]any{}
	for _, f := range fs {
		parts := strings.Split(f.Key, ":")
		if len(parts) > maxDepth {
			continue
		}
		at, ok := root, true
		for _, p := range parts[:len(parts)-1] {
			if at[p] == nil {
				at[p] = map[string]any{}
			}
			if at, ok = at[p].(map[string]any); !ok {
				break
			}
		}
		last := parts[len(parts)-1]
		if ok {
			_, ok = at[last].(map[string]any)
			ok = !ok
		}
		if !ok { // a value stands where a mapping should be
			root[f.Key] = f.Value
			continue
		}
		if had := at[last]; had != nil { // hosts of another kind keep a list as one name with many values
			l, isList := had.([]any)
			if !isList {
				l = []any{had}
			}
			at[last] = append(l, value(parts, f.Value))
			continue
		}
		at[last] = value(parts, f.Value)
	}
	for k, v := range root {
		root[k] = lists(v)
	}
	return root
}

// value is what Python printed as s. Numbers only where Salt's grains have them: a release such as
// "9" is a text.
func value(parts []string, s string) any {
	switch s {
	case "True":
		return true
	case "False":
		return false
	case "None":
		return nil
	}
	switch parts[0] {
	case "mem_total", "swap_total", "num_cpus", "num_gpus", "osmajorrelease", "osrelease_info", "saltversioninfo", "pid", "uid", "gid":
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			return n
		}
	}
	return s
}

// lists makes lists of the mappings whose keys are the numbers from 0.
func lists(v any) any {
	m, ok := v.(map[string]any)
	if !ok {
		return v
	}
	l := make([]any, len(m))
	isList := len(m) > 0
	for k, x := range m {
		m[k] = lists(x)
		n, err := strconv.Atoi(k)
		if err != nil || n < 0 || n >= len(l) || strconv.Itoa(n) != k {
			isList = false
			continue
		}
		l[n] = m[k]
	}
	if isList {
		return l
	}
	return m
}
