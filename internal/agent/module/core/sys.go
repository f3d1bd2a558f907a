package core

import (
	"context"
	"maps"
	"path"
	"slices"
	"strings"

	"drover/internal/agent/module"
)

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

func names(r *module.Registry) []string {
	if r == nil {
		return []string{}
	}
	return r.Names()
}

func moduleNames(r *module.Registry) []string {
	out := []string{}
	for _, n := range names(r) {
		m, _, _ := strings.Cut(n, ".")
		out = append(out, m)
	}
	return slices.Compact(out) // names are sorted, and so are their beginnings but for odd characters
}

// chosen are the functions that patterns name: a module, a function, or a glob; all without any.
func chosen(c *module.Call) []string {
	var pats []string
	for _, v := range c.Rest {
		if l, ok := v.([]any); ok {
			for _, e := range l {
				pats = append(pats, module.Plain(e))
			}
			continue
		}
		pats = append(pats, module.Plain(v))
	}
	out := []string{}
	for _, n := range names(c.Registry) {
		mod, _, _ := strings.Cut(n, ".")
		if len(pats) == 0 || slices.ContainsFunc(pats, func(p string) bool {
			if !strings.Contains(p, ".") && p == mod || p == n || strings.TrimSuffix(p, ".") == mod && strings.HasSuffix(p, ".") {
				return true
			}
			ok, err := path.Match(p, n)
			if (!ok || err != nil) && !strings.Contains(p, ".") {
				ok, err = path.Match(p, mod)
			}
			return ok && err == nil
		}) {
			out = append(out, n)
		}
	}
	return out
}

func system() []module.Function {
	none := func(name, doc string) module.Function {
		return module.Rest(module.Reads(name, doc+"\n\nsalt '*' "+name, pure(func(*module.Call) any { return []string{} })))
	}
	reload := func(ctx context.Context, c *module.Call) (any, error) { return true, refresh(ctx, c) }
	return []module.Function{
		module.Rest(module.Reads("sys.doc", "Gives the documentation of functions, of a module, or of all.\n\nsalt '*' sys.doc test.ping", pure(func(c *module.Call) any {
			out := map[string]any{}
			for _, n := range chosen(c) {
				f, _ := c.Registry.Get(n)
				out[n] = f.Doc
			}
			return out
		}))),
		module.Rest(module.Reads("sys.list_functions", "Lists the functions of modules, or all.\n\nsalt '*' sys.list_functions test", pure(func(c *module.Call) any { return chosen(c) }))),
		module.Rest(module.Reads("sys.list_modules", "Lists the modules, or those that fit patterns.\n\nsalt '*' sys.list_modules 's*'", pure(func(c *module.Call) any {
			out := []string{}
			for _, n := range moduleNames(c.Registry) {
				if len(c.Rest) == 0 || slices.ContainsFunc(c.Rest, func(v any) bool { ok, err := path.Match(module.Plain(v), n); return ok && err == nil }) {
					out = append(out, n)
				}
			}
			return out
		}))),
		module.Rest(module.Reads("sys.argspec", "Tells what arguments functions take.\n\nsalt '*' sys.argspec pkg.install", pure(func(c *module.Call) any {
			out := map[string]any{}
			for _, n := range chosen(c) {
				f, _ := c.Registry.Get(n)
				out[n] = argspec(f)
			}
			return out
		}))),
		none("sys.list_renderers", "Lists the renderers; they come with states."),
		none("sys.list_returners", "Lists the returners; results go to the server alone."),
		none("sys.list_runners", "Lists the runners of the host; there are none."),
		none("sys.list_state_functions", "Lists the functions of states; they come later."),
		none("sys.list_state_modules", "Lists the modules of states; they come later."),
		module.Changes("sys.reload_modules", "Gathers the grains anew; modules are part of the agent.\n\nsalt '*' sys.reload_modules", reload),
	}
}

// argspec is Salt's shape of a function's arguments: defaults belong to the last of args.
func argspec(f module.Function) map[string]any {
	args, defaults := []string{}, []any{}
	for _, p := range f.Params {
		args = append(args, p.Name)
		if !p.Required {
			defaults = append(defaults, p.Default)
		} else {
			defaults = defaults[:0] // one that is required after one that is not
		}
	}
	m := map[string]any{"args": args, "defaults": nil, "varargs": nil, "kwargs": nil}
	if len(defaults) > 0 {
		m["defaults"] = defaults
	}
	if f.Rest {
		m["varargs"] = true
	}
	if f.Extra {
		m["kwargs"] = true
	}
	return m
}

// refresh gathers the grains anew, if the agent can.
func refresh(ctx context.Context, c *module.Call) error {
	if c.Refresh == nil {
		return nil
	}
	return c.Refresh(ctx)
}
