package core

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"go.yaml.in/yaml/v3"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func slsutil() []module.Function {
	a, b := module.Need("obj_a", module.Map), module.Need("obj_b", module.Map)
	how := []module.Param{module.May("strategy", module.Str, "smart"), module.May("renderer", module.Str, "yaml"), module.May("merge_lists", module.Bool, false)}
	there := func(name, doc string, dir bool) module.Function {
		return module.Reads("slsutil."+name, doc+"\n\nsalt '*' slsutil."+name+" nginx/map.jinja", func(ctx context.Context, c *module.Call) (any, error) {
			return onServer(ctx, c, dir)
		}, module.Need("path", module.Str), module.May("saltenv", module.Str, "base"))
	}
	return []module.Function{
		module.Reads("slsutil.merge", "Merges two mappings by a strategy.\n\nsalt '*' slsutil.merge '{foo: Foo}' '{bar: Bar}'", func(_ context.Context, c *module.Call) (any, error) {
			return merge(c.Map("obj_a"), c.Map("obj_b"), c.Str("strategy"), c.Str("renderer"), c.Bool("merge_lists"))
		}, append([]module.Param{a, b}, how...)...),
		module.Reads("slsutil.merge_all", "Merges several mappings, one after the other.\n\nsalt '*' slsutil.merge_all '[{foo: Foo}, {foo: Bar}]'", func(_ context.Context, c *module.Call) (any, error) {
			out := map[string]any{}
			for _, v := range c.List("lst") {
				m, ok := v.(map[string]any)
				if !ok {
					return nil, fault.Invalid("argument", "slsutil.merge_all: all of lst must be mappings")
				}
				var err error
				if out, err = merge(out, m, c.Str("strategy"), c.Str("renderer"), c.Bool("merge_lists")); err != nil {
					return nil, err
				}
			}
			return out, nil
		}, append([]module.Param{module.Need("lst", module.List)}, how...)...),
		module.Reads("slsutil.update", "Puts one mapping over another.\n\nsalt '*' slsutil.update '{foo: Foo}' '{bar: Bar}'", pure(func(c *module.Call) any {
			dest, _ := clone(c.Map("dest")).(map[string]any)
			upd, _ := clone(c.Map("upd")).(map[string]any)
			return update(dest, upd, c.Bool("recursive_update"), c.Bool("merge_lists"))
		}), module.Need("dest", module.Map), module.Need("upd", module.Map), module.May("recursive_update", module.Bool, true), module.May("merge_lists", module.Bool, false)),
		module.Open(module.Reads("slsutil.serialize", "Writes data as text: json or yaml.\n\nsalt '*' slsutil.serialize json obj='{foo: Foo!}'", func(_ context.Context, c *module.Call) (any, error) {
			return serialize(c.Str("serializer"), c.Any("obj"), c.Extra)
		}, module.Need("serializer", module.Str), module.Need("obj", module.Any))),
		module.Open(module.Reads("slsutil.deserialize", "Reads data from text: json or yaml.\n\nsalt '*' slsutil.deserialize json '{\"foo\": \"Foo!\"}'", func(_ context.Context, c *module.Call) (any, error) {
			return deserialize(c.Str("serializer"), c.Str("stream_or_string"))
		}, module.Need("serializer", module.Str), module.Need("stream_or_string", module.Str))),
		module.Reads("slsutil.boolstr", "Gives one of two texts for true and false.\n\nsalt '*' slsutil.boolstr True true=yes false=no", pure(func(c *module.Call) any {
			if truth(c.Any("value")) {
				return c.Any("true")
			}
			return c.Any("false")
		}), module.Need("value", module.Any), module.May("true", module.Any, "true"), module.May("false", module.Any, "false")),
		there("file_exists", "Tells whether the server has a file.", false),
		there("dir_exists", "Tells whether the server has a directory.", true),
		module.Reads("slsutil.path_exists", "Tells whether the server has a file or a directory.\n\nsalt '*' slsutil.path_exists nginx/map.jinja", func(ctx context.Context, c *module.Call) (any, error) {
			v, err := onServer(ctx, c, false)
			if err != nil || v {
				return v, err
			}
			return onServer(ctx, c, true)
		}, module.Need("path", module.Str), module.May("saltenv", module.Str, "base")),
	}
}

// onServer looks for a path among the server's files.
func onServer(ctx context.Context, c *module.Call, dir bool) (bool, error) {
	path := strings.Trim(strings.TrimPrefix(c.Str("path"), "salt://"), "/")
	if dir {
		v, err := call(ctx, c, "cp.list_master_dirs", []any{c.Str("saltenv")}, nil)
		if err != nil {
			return false, err
		}
		switch l := v.(type) {
		case []string:
			for _, d := range l {
				if strings.Trim(d, "/") == path {
					return true, nil
				}
			}
		case []any:
			for _, d := range l {
				if strings.Trim(module.Plain(d), "/") == path {
					return true, nil
				}
			}
		}
		return false, nil
	}
	if c.Fetch == nil {
		return false, fault.Unavailable("fetch_missing", "this agent cannot fetch files of the server")
	}
	source := "salt://" + path
	if env := c.Str("saltenv"); env != "" && env != "base" {
		source += "?saltenv=" + env
	}
	r, err := c.Fetch(ctx, source)
	var f *fault.Error
	if errors.As(err, &f) && f.Kind == fault.KindNotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, r.Close()
}

func serialize(kind string, v any, options map[string]any) (any, error) {
	var b []byte
	var err error
	switch kind {
	case "json":
		if n, ok := tidy(options["indent"]).(int64); ok && n > 0 && n <= 16 {
			b, err = json.MarshalIndent(v, "", strings.Repeat(" ", int(n)))
		} else {
			b, err = json.Marshal(v)
		}
	case "yaml":
		b, err = yaml.Marshal(tidy(clone(v)))
	default:
		return nil, noSerializer(kind)
	}
	if err != nil {
		return nil, fault.Invalid("argument", "this cannot be written as %s", kind).Wrap(err)
	}
	return string(b), nil
}

func deserialize(kind, s string) (any, error) {
	var v any
	var err error
	switch kind {
	case "json":
		err = json.Unmarshal([]byte(s), &v)
	case "yaml":
		err = yaml.Unmarshal([]byte(s), &v)
	default:
		return nil, noSerializer(kind)
	}
	if err != nil {
		return nil, fault.Invalid("argument", "this is no %s", kind).Wrap(err)
	}
	return tidy(stringKeys(v)), nil
}

func noSerializer(kind string) error {
	return fault.Invalid("bad_serializer", "there is no serializer %q here", kind).Fix("json or yaml")
}

func defaulting() []module.Function {
	inPlace, none := module.May("in_place", module.Bool, true), module.May("convert_none", module.Bool, true)
	return []module.Function{
		module.Reads("defaults.merge", "Puts a mapping over another, and gives the result.\n\nsalt '*' defaults.merge '{a: b}' '{d: e}'", pure(func(c *module.Call) any {
			return over(c.Map("dest"), c.Map("src"), c.Bool("merge_lists"))
		}), module.Need("dest", module.Map), module.Need("src", module.Map), module.May("merge_lists", module.Bool, false), inPlace, none),
		module.Reads("defaults.deepcopy", "Gives a copy of data.\n\nsalt '*' defaults.deepcopy '{a: b}'", pure(func(c *module.Call) any { return clone(c.Any("source")) }), module.Need("source", module.Any)),
		module.Reads("defaults.update", "Puts defaults below each entry of a mapping.\n\nsalt '*' defaults.update '{node1: {}}' '{port: 80}'", func(_ context.Context, c *module.Call) (any, error) {
			out := map[string]any{}
			for k, v := range c.Map("dest") {
				m, ok := v.(map[string]any)
				if !ok && v != nil {
					return nil, fault.Invalid("argument", "defaults.update: %s is no mapping", k)
				}
				out[k] = over(c.Map("defaults"), m, c.Bool("merge_lists"))
			}
			return out, nil
		}, module.Need("dest", module.Map), module.Need("defaults", module.Map), module.May("merge_lists", module.Bool, true), inPlace, none),
	}
}

// over is upper over lower; None is an empty mapping.
func over(lower, upper map[string]any, lists bool) map[string]any {
	a, _ := clone(lower).(map[string]any)
	b, _ := clone(upper).(map[string]any)
	if a == nil {
		a = map[string]any{}
	}
	return update(a, b, true, lists)
}
