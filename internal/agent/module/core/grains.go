package core

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

const maxStatic = 4 << 20

// StaticGrains is the file of the grains that people set on this host, below the agent's directory.
func StaticGrains(dir string) string { return filepath.Join(dir, "grains.yaml") }

// readStatic reads the static grains.
func readStatic(dir string) (map[string]any, error) {
	m := map[string]any{}
	if dir == "" {
		return m, nil
	}
	st, err := os.Stat(StaticGrains(dir))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return m, nil
	case err != nil:
		return nil, err
	case st.Size() > maxStatic:
		return nil, fault.TooLarge("grains_too_large", "%s is larger than %d bytes", StaticGrains(dir), maxStatic)
	}
	b, err := os.ReadFile(StaticGrains(dir))
	if err != nil {
		return nil, err
	}
	return parseStatic(b, StaticGrains(dir))
}

func parseStatic(b []byte, name string) (map[string]any, error) {
	m := map[string]any{}
	if err := yaml.Unmarshal(b, &m); err != nil {
		return nil, fault.Conflict("grains_bad", "the static grains in %s cannot be read", name).Wrap(err).Fix("correct the file: it must be a mapping in YAML")
	}
	t, ok := tidy(stringKeys(m)).(map[string]any)
	if !ok {
		return map[string]any{}, nil
	}
	return t, nil
}

// stringKeys turns what YAML makes of keys that are numbers into mappings by texts.
func stringKeys(v any) any {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			x[k] = stringKeys(e)
		}
	case map[any]any:
		m := map[string]any{}
		for k, e := range x {
			m[module.Plain(tidy(k))] = stringKeys(e)
		}
		return m
	case []any:
		for i, e := range x {
			x[i] = stringKeys(e)
		}
	}
	return v
}

// writeStatic replaces the static grains. It is the only place that writes them.
func writeStatic(dir string, m map[string]any) error {
	if dir == "" {
		return fault.Unavailable("grains_no_directory", "this agent has no directory to keep grains in")
	}
	b, err := yaml.Marshal(m)
	if err != nil {
		return fault.Invalid("grains_bad", "these grains cannot be written").Wrap(err)
	}
	if len(b) > maxStatic {
		return fault.TooLarge("grains_too_large", "the static grains would be larger than %d bytes", maxStatic)
	}
	return durable.WriteFile(StaticGrains(dir), b, 0o600)
}

// store changes static grains one after the other.
type store struct{ mu sync.Mutex }

// change lets f change the static grains, and reports them when it did.
func (s *store) change(ctx context.Context, c *module.Call, f func(own map[string]any) (any, bool, error)) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	own, err := readStatic(c.Dir)
	if err != nil {
		return nil, err
	}
	v, changed, err := f(own)
	if err != nil || !changed || c.Test {
		return v, err
	}
	if err := writeStatic(c.Dir, own); err != nil {
		return nil, err
	}
	return v, refresh(ctx, c)
}

// traverse follows a path of keys, and of numbers in lists, as Salt's does: in a list of mappings
// the first that has the key is taken.
func traverse(data any, key, delimiter string) (any, bool) {
	if delimiter == "" {
		delimiter = ":"
	}
	for _, k := range strings.Split(key, delimiter) {
		switch x := data.(type) {
		case map[string]any:
			v, ok := x[k]
			if !ok {
				return nil, false
			}
			data = v
		case []any:
			if i, err := strconv.Atoi(k); err == nil {
				if i < 0 {
					i += len(x)
				}
				if i < 0 || i >= len(x) {
					return nil, false
				}
				data = x[i]
				continue
			}
			found := false
			for _, e := range x {
				if m, ok := e.(map[string]any); ok {
					if v, ok := m[k]; ok {
						data, found = v, true
						break
					}
				}
			}
			if !found {
				return nil, false
			}
		default:
			return nil, false
		}
	}
	return data, true
}

// place makes the mappings on a path and gives the last one with the last key.
func place(own map[string]any, key, delimiter string, force bool) (map[string]any, string, error) {
	if delimiter == "" {
		delimiter = ":"
	}
	parts := strings.Split(key, delimiter)
	m := own
	for _, k := range parts[:len(parts)-1] {
		next, ok := m[k].(map[string]any)
		if !ok {
			if v, there := m[k]; there && v != nil && !force {
				return nil, "", fault.Conflict("grain_no_mapping", "the grain %s has a value on the way to %s", k, key).Fix("use force=True to replace it")
			}
			next = map[string]any{}
			m[k] = next
		}
		m = next
	}
	return m, parts[len(parts)-1], nil
}

func staticGrains() []module.Function {
	s := &store{}
	key := module.Need("key", module.Str)
	delimiter := module.May("delimiter", module.Str, ":")
	force := module.May("force", module.Bool, false)
	destructive := module.May("destructive", module.Bool, false)
	sanitize := module.May("sanitize", module.Bool, false)
	lookup := func(ctx context.Context, c *module.Call) (any, bool, error) {
		g, err := facts(ctx, c)
		if err != nil {
			return nil, false, err
		}
		v, ok := traverse(g, c.Str("key"), c.Str("delimiter"))
		return v, ok, nil
	}
	return []module.Function{
		module.Reads("grains.get", "Gives a grain, or what lies below it by a path with colons.\n\nsalt '*' grains.get pkg:apache", func(ctx context.Context, c *module.Call) (any, error) {
			v, ok, err := lookup(ctx, c)
			if err == nil && !ok {
				v = c.Any("default")
			}
			return v, err
		}, key, module.May("default", module.Any, ""), delimiter, module.May("ordered", module.Bool, true)),
		module.Open(module.Reads("grains.item", "Gives some grains by name.\n\nsalt '*' grains.item os osrelease", func(ctx context.Context, c *module.Call) (any, error) {
			g, err := facts(ctx, c)
			out := map[string]any{}
			for _, k := range c.Rest {
				v, ok := traverse(g, module.Plain(k), ":")
				if !ok {
					if v = c.Extra["default"]; v == nil {
						v = ""
					}
				}
				out[module.Plain(k)] = hidden(module.Plain(k), v, truth(c.Extra["sanitize"]))
			}
			return out, err
		})),
		module.Reads("grains.items", "Gives all grains.\n\nsalt '*' grains.items", func(ctx context.Context, c *module.Call) (any, error) {
			g, err := facts(ctx, c)
			for k, v := range g {
				g[k] = hidden(k, v, c.Bool("sanitize"))
			}
			return g, err
		}, sanitize),
		module.Reads("grains.ls", "Lists the names of all grains.\n\nsalt '*' grains.ls", func(ctx context.Context, c *module.Call) (any, error) {
			g, err := facts(ctx, c)
			return sortedKeys(g), err
		}),
		module.Reads("grains.has_value", "Tells whether a grain is there and not empty.\n\nsalt '*' grains.has_value pkg:apache", func(ctx context.Context, c *module.Call) (any, error) {
			v, _, err := lookup(ctx, c)
			return truth(v), err
		}, key),
		module.Reads("grains.equals", "Tells whether a grain has a value.\n\nsalt '*' grains.equals fqdn server.example.com", func(ctx context.Context, c *module.Call) (any, error) {
			v, ok, err := lookup(ctx, c)
			return ok && module.Plain(v) == module.Plain(c.Any("value")), err
		}, key, module.Need("value", module.Any)),
		module.Reads("grains.fetch", "Gives a grain, or a default.\n\nsalt '*' grains.fetch nodename", func(ctx context.Context, c *module.Call) (any, error) {
			v, ok, err := lookup(ctx, c)
			if err == nil && !ok {
				v = c.Any("default")
			}
			return v, err
		}, key, module.May("default", module.Any, ""), delimiter, module.May("ordered", module.Bool, true)),
		module.Tests("grains.setval", "Sets a grain of this host.\n\nsalt '*' grains.setval key val", func(ctx context.Context, c *module.Call) (any, error) {
			val := c.Any("val")
			return s.change(ctx, c, func(own map[string]any) (any, bool, error) {
				return setvals(own, map[string]any{c.Str("key"): val}, c.Bool("destructive"))
			})
		}, key, module.Need("val", module.Any), destructive, module.May("refresh_pillar", module.Bool, true)),
		module.Tests("grains.setvals", "Sets several grains of this host.\n\nsalt '*' grains.setvals '{key1: val1, key2: val2}'", func(ctx context.Context, c *module.Call) (any, error) {
			return s.change(ctx, c, func(own map[string]any) (any, bool, error) {
				return setvals(own, c.Map("grains"), c.Bool("destructive"))
			})
		}, module.Need("grains", module.Map), destructive, module.May("refresh_pillar", module.Bool, true)),
		module.Tests("grains.delval", "Empties a grain of this host, or removes it with destructive=True.\n\nsalt '*' grains.delval key", func(ctx context.Context, c *module.Call) (any, error) {
			return s.change(ctx, c, func(own map[string]any) (any, bool, error) {
				return remove(own, c.Str("key"), ":", c.Bool("destructive"))
			})
		}, key, destructive),
		module.Tests("grains.delkey", "Removes a grain of this host.\n\nsalt '*' grains.delkey key", func(ctx context.Context, c *module.Call) (any, error) {
			return s.change(ctx, c, func(own map[string]any) (any, bool, error) { return remove(own, c.Str("key"), ":", true) })
		}, key, force),
		module.Tests("grains.set", "Sets a grain of this host by a path; a mapping or list is only replaced with force=True.\n\nsalt '*' grains.set 'apps:myApp:port' 2209", func(ctx context.Context, c *module.Call) (any, error) {
			return s.change(ctx, c, func(own map[string]any) (any, bool, error) { return setGrain(own, c) })
		}, key, module.May("val", module.Any, ""), force, destructive, delimiter),
		module.Tests("grains.append", "Adds a value to a grain that is a list.\n\nsalt '*' grains.append key val", func(ctx context.Context, c *module.Call) (any, error) {
			return s.change(ctx, c, func(own map[string]any) (any, bool, error) { return appendGrain(own, c) })
		}, key, module.Need("val", module.Any), module.May("convert", module.Bool, false), delimiter),
		module.Tests("grains.remove", "Takes a value out of a grain that is a list.\n\nsalt '*' grains.remove key val", func(ctx context.Context, c *module.Call) (any, error) {
			return s.change(ctx, c, func(own map[string]any) (any, bool, error) { return removeGrain(own, c) })
		}, key, module.Need("val", module.Any), delimiter),
		module.Reads("grains.filter_by", "Chooses an entry of a mapping by a grain: its key is matched as a glob; base lies below it, merge over it.\n\nsalt '*' grains.filter_by '{Debian: {pkg: apache2}, RedHat: {pkg: httpd}, default: {}}'", func(ctx context.Context, c *module.Call) (any, error) {
			g, err := facts(ctx, c)
			if err != nil {
				return nil, err
			}
			v, ok := traverse(g, c.Str("grain"), ":")
			if !ok {
				v = []any{}
			}
			return filterBy(c.Map("lookup_dict"), v, c.Any("merge"), c.Any("default"), c.Any("base"), false)
		}, module.Need("lookup_dict", module.Map), module.May("grain", module.Str, "os_family"), module.May("merge", module.Any, nil), module.May("default", module.Any, "default"), module.May("base", module.Any, nil)),
	}
}
