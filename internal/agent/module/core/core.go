package core

import (
	"context"
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strconv"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// Jobs is what the agent tells of the commands that it runs. Functions that are nil are answered
// with a fault.
type Jobs struct {
	Running func() []map[string]any         // each with jid, fun, arg, and pid where there is one
	Kill    func(jid string, sig int) error // ends a job, or signals it
}

// Functions are the functions of this package.
func Functions(j Jobs) []module.Function {
	return slices.Concat(testers(), system(), staticGrains(), config(), matching(), slsutil(), defaulting(), mine(), events(), environ(), logging(), random(), saltutil(j), later())
}

// pure is a function that cannot fail.
func pure(f func(c *module.Call) any) module.Run {
	return func(_ context.Context, c *module.Call) (any, error) { return f(c), nil }
}

// clone copies mappings and lists all the way down, so that what a caller was given is not changed.
func clone(v any) any {
	switch x := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(x))
		for k, e := range x {
			m[k] = clone(e)
		}
		return m
	case []any:
		l := make([]any, len(x))
		for i, e := range x {
			l[i] = clone(e)
		}
		return l
	}
	return v
}

// tidy turns what came out of JSON or of Go code into the types that functions give: whole
// numbers are int64, lists []any, mappings map[string]any.
func tidy(v any) any {
	switch x := v.(type) {
	case nil, string, bool, int64:
		return v
	case float64:
		if math.IsNaN(x) || math.IsInf(x, 0) { // YAML has them, JSON has not
			return strconv.FormatFloat(x, 'g', -1, 64)
		}
		if x == float64(int64(x)) && x < 1<<53 && x > -1<<53 {
			return int64(x)
		}
		return x
	case int:
		return int64(x)
	case map[string]any:
		for k, e := range x {
			x[k] = tidy(e)
		}
		return x
	case []any:
		for i, e := range x {
			x[i] = tidy(e)
		}
		return x
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	var out any
	if json.Unmarshal(b, &out) != nil {
		return nil
	}
	return tidy(out)
}

// facts are the grains of the host, static ones over them.
func facts(ctx context.Context, c *module.Call) (map[string]any, error) {
	all := map[string]any{}
	if c.Grains != nil {
		g, err := c.Grains(ctx)
		if err != nil {
			return nil, err
		}
		m, ok := tidy(clone(g)).(map[string]any)
		if ok {
			all = m
		}
	}
	own, err := readStatic(c.Dir)
	maps.Copy(all, own)
	return all, err
}

// later are functions of issues to come.
func later() []module.Function {
	var all []module.Function
	for _, name := range []string{"apply", "highstate", "sls", "single", "test", "show_sls", "show_lowstate", "show_highstate", "show_top", "show_low_sls", "show_states",
		"sls_id", "sls_exists", "id_exists", "low", "high", "top", "template", "template_str", "check_request", "request", "run_request", "clear_request", "running", "event", "pkg", "list_disabled", "disable", "enable",
		"soft_kill", "pause", "resume"} {
		all = append(all, module.Open(module.Reads("state."+name, "Will come with states.\n\nsalt '*' state."+name, func(context.Context, *module.Call) (any, error) {
			return nil, fault.Unavailable("state_later", "this agent knows no states yet").Fix("run the execution functions that they would call: see `sys.list_functions`")
		})))
	}
	for _, name := range []string{"get", "items", "item", "ls", "raw", "keys", "ext", "data", "filter_by", "file_exists"} {
		all = append(all, module.Open(module.Reads("pillar."+name, "Will come with states.\n\nsalt '*' pillar."+name, func(context.Context, *module.Call) (any, error) { return nil, noPillar() })))
	}
	return all
}

func noPillar() error {
	return fault.Unavailable("pillar_later", "this agent has no pillar yet: it comes with states").Fix("use grains or arguments until then")
}
