package core

import (
	"context"
	"regexp"
	"strings"

	"drover/internal/agent/module"
)

var reSecret = regexp.MustCompile(`(?i)(password|passwd|secret|token|private|ticket|_key$|^key$)`)

// settings are the agent's configuration without secrets.
func settings(c *module.Call) map[string]any {
	out := map[string]any{}
	m, ok := tidy(clone(c.Config)).(map[string]any)
	if ok {
		for k, v := range m {
			out[k] = withoutSecrets(k, v)
		}
	}
	out["id"] = c.ID
	return out
}

func withoutSecrets(key string, v any) any {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			x[k] = withoutSecrets(k, e)
		}
	case []any:
		for i, e := range x {
			x[i] = withoutSecrets("", e)
		}
	case string:
		if reSecret.MatchString(key) && x != "" {
			return "********"
		}
	}
	return v
}

func config() []module.Function {
	key := module.Need("key", module.Str)
	off := func(name string) module.Param { return module.May(name, module.Bool, false) }
	get := func(ctx context.Context, c *module.Call, name string) (any, error) {
		delimiter := c.Str("delimiter")
		opts, over := settings(c), any(nil)
		v, ok := any(nil), false
		if !c.Bool("omit_opts") {
			v, ok = traverse(opts, name, delimiter)
		}
		if (!ok || c.Has("merge")) && !c.Bool("omit_grains") {
			g, err := facts(ctx, c)
			if err != nil {
				return nil, err
			}
			w, there := traverse(g, name, delimiter)
			if !ok {
				v, ok = w, there
			} else if there {
				over = w
			}
		}
		if a, aok := over.(map[string]any); aok && ok {
			if b, bok := v.(map[string]any); bok {
				return merge(a, b, c.Str("merge"), "yaml", false)
			}
		}
		if !ok {
			return c.Any("default"), nil
		}
		return v, nil
	}
	return []module.Function{
		module.Reads("config.get", "Gives a setting: of the agent's configuration, else of the grains, else a default.\n\nsalt '*' config.get pkg:apache", func(ctx context.Context, c *module.Call) (any, error) {
			return get(ctx, c, c.Str("key"))
		}, key, module.May("default", module.Any, ""), module.May("delimiter", module.Str, ":"), module.May("merge", module.Str, nil), off("omit_opts"), off("omit_pillar"), off("omit_master"), off("omit_grains")),
		module.Reads("config.option", "Gives a setting of the agent's configuration, else of the grains, else a default.\n\nsalt '*' config.option redis.host", func(ctx context.Context, c *module.Call) (any, error) {
			return get(ctx, c, c.Str("value"))
		}, module.Need("value", module.Str), module.May("default", module.Any, ""), off("omit_opts"), off("omit_grains"), off("omit_pillar"), off("omit_master"), off("omit_all"), off("wildcard")),
		module.Reads("config.items", "Gives the agent's configuration, secrets left out.\n\nsalt '*' config.items", pure(func(c *module.Call) any { return settings(c) })),
		module.Reads("config.dot_vals", "Gives the settings whose names begin with a word and a point.\n\nsalt '*' config.dot_vals host", pure(func(c *module.Call) any {
			out := map[string]any{}
			for k, v := range settings(c) {
				if strings.HasPrefix(k, c.Str("value")+".") {
					out[k] = v
				}
			}
			return out
		}), module.Need("value", module.Str)),
		module.Reads("config.valid_fileproto", "Tells whether files can be fetched from an address.\n\nsalt '*' config.valid_fileproto salt://path/to/file", pure(func(c *module.Call) any {
			scheme, _, ok := strings.Cut(c.Str("uri"), "://")
			return ok && (scheme == "salt" || scheme == "http" || scheme == "https" || scheme == "file")
		}), module.Need("uri", module.Str)),
		module.Reads("config.manage_mode", "Gives a file's mode as a text of digits.\n\nsalt '*' config.manage_mode 0644", pure(func(c *module.Call) any {
			if !c.Has("mode") {
				return nil
			}
			s := strings.TrimLeft(strings.TrimPrefix(module.Plain(c.Any("mode")), "0o"), "0")
			if len(s) < 4 {
				s = "0" + s
			}
			return s
		}), module.May("mode", module.Any, nil)),
	}
}
