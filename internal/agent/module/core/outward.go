package core

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func mine() []module.Function {
	serverOnly := func(name, doc string) module.Function {
		return module.Open(module.Changes("mine."+name, doc+"\n\nsalt '*' mine."+name, func(context.Context, *module.Call) (any, error) {
			return nil, fault.Unavailable("mine_configured", "what a host shares is in its agent's configuration, and mine.%s does not change that", name).Fix("name the function under mine in /etc/drover/agent.yaml")
		}))
	}
	return []module.Function{
		module.Reads("mine.get", "Gives what hosts told of themselves.\n\nsalt '*' mine.get 'web*' network.ip_addrs", func(ctx context.Context, c *module.Call) (any, error) {
			if c.Mine == nil {
				return nil, fault.Unavailable("mine_missing", "this agent has no server to ask for the mine")
			}
			fun := strings.Join(c.Strs("fun"), ",")
			v, err := c.Mine(ctx, c.Str("tgt"), fun, c.Str("tgt_type"))
			if m, ok := v.(map[string]any); ok && c.Bool("exclude_minion") {
				delete(m, c.ID)
			}
			return v, err
		}, module.Need("tgt", module.Str), module.Need("fun", module.List), module.May("tgt_type", module.Str, "glob"), module.May("exclude_minion", module.Bool, false)),
		module.Reads("mine.valid", "Lists the functions that the agent's configuration has for the mine.\n\nsalt '*' mine.valid", pure(func(c *module.Call) any {
			m, ok := settings(c)["mine_functions"].(map[string]any)
			if !ok {
				return map[string]any{}
			}
			return m
		})),
		serverOnly("send", "Tells the mine what a function gives."),
		module.Reads("mine.update", "Tells the server anew what this host shares, and everything else that it tells of itself.\n\nsalt '*' mine.update", func(ctx context.Context, c *module.Call) (any, error) {
			if c.Refresh == nil {
				return nil, fault.Unavailable("mine_missing", "this agent has no server to tell")
			}
			return true, c.Refresh(ctx)
		}),
		serverOnly("delete", "Takes what a function gave out of the mine."), serverOnly("flush", "Takes all of this host out of the mine."),
	}
}

func events() []module.Function {
	send := func(ctx context.Context, c *module.Call, tag string, data any) (any, error) {
		if c.Event == nil {
			return nil, fault.Unavailable("event_missing", "this agent has no server to tell")
		}
		if tag == "" || len(tag) > 1024 || strings.ContainsAny(tag, "\n\x00") {
			return nil, fault.Invalid("bad_tag", "%q cannot be the tag of an event", tag)
		}
		err := c.Event(ctx, tag, data)
		return err == nil, err
	}
	data, tag := module.Need("data", module.Any), module.Need("tag", module.Str)
	fire := func(ctx context.Context, c *module.Call) (any, error) {
		return send(ctx, c, c.Str("tag"), c.Any("data"))
	}
	return []module.Function{
		module.Open(module.Changes("event.send", "Tells the server an event; keywords are its data.\n\nsalt '*' event.send myco/mytag foo=Foo bar=Bar", func(ctx context.Context, c *module.Call) (any, error) {
			out := map[string]any{}
			switch d := c.Any("data").(type) {
			case nil:
			case map[string]any:
				update(out, d, false, false)
			default:
				out["data"] = d
			}
			update(out, c.Extra, false, false)
			if c.Bool("with_grains") {
				g, err := facts(ctx, c)
				if err != nil {
					return nil, err
				}
				out["grains"] = g
			}
			if c.Bool("with_pillar") {
				return nil, noPillar()
			}
			return send(ctx, c, c.Str("tag"), out)
		}, tag, module.May("data", module.Any, nil), module.May("preload", module.Any, nil), module.May("with_env", module.Any, false), module.May("with_grains", module.Bool, false), module.May("with_pillar", module.Bool, false),
			module.May("show_changed", module.Bool, true), module.May("default_tag", module.Any, nil))),
		module.Changes("event.fire_master", "Tells the server an event.\n\nsalt '*' event.fire_master '{data: my event data}' tag", fire, data, tag, module.May("preload", module.Any, nil), module.May("timeout", module.Int, int64(60))),
		module.Changes("event.fire", "Tells an event; the agent has no bus of its own, so it is the server that hears it.\n\nsalt '*' event.fire '{data: my event data}' tag", fire, data, tag, module.May("timeout", module.Int, nil)),
	}
}

func environ() []module.Function {
	key := module.Need("key", module.Str)
	check := func(k string) error {
		if k == "" || strings.ContainsAny(k, "=\x00\n") {
			return fault.Invalid("bad_variable", "%q cannot be the name of a variable", k)
		}
		return nil
	}
	set := func(k string, v any, falseUnsets bool) (any, error) {
		if err := check(k); err != nil {
			return nil, err
		}
		switch x := v.(type) {
		case bool:
			if !x && falseUnsets {
				return nil, os.Unsetenv(k)
			}
			if !x {
				return "", os.Setenv(k, "")
			}
			return nil, fault.Invalid("argument", "a variable is a text or False, not True")
		case map[string]any, []any:
			return nil, fault.Invalid("argument", "a variable is a text")
		}
		s := ""
		if v != nil {
			s = module.Plain(v)
		}
		return s, os.Setenv(k, s)
	}
	unsets, permanent := module.May("false_unsets", module.Bool, false), module.May("permanent", module.Any, false)
	all := func() map[string]any {
		out := map[string]any{}
		for _, kv := range os.Environ() {
			k, v, _ := strings.Cut(kv, "=")
			out[k] = strings.ToValidUTF8(v, "\uFFFD")
		}
		return out
	}
	return []module.Function{
		module.Reads("environ.get", "Gives a variable of the agent's environment.\n\nsalt '*' environ.get PATH", pure(func(c *module.Call) any {
			if v, ok := os.LookupEnv(c.Str("key")); ok {
				return strings.ToValidUTF8(v, "\uFFFD")
			}
			return c.Any("default")
		}), key, module.May("default", module.Any, "")),
		module.Reads("environ.has_value", "Tells whether a variable is set, or has a value.\n\nsalt '*' environ.has_value PATH", func(_ context.Context, c *module.Call) (any, error) {
			v, ok := os.LookupEnv(c.Str("key"))
			return ok && (!c.Has("value") && v != "" || c.Has("value") && v == c.Str("value")), nil
		}, key, module.May("value", module.Str, nil)),
		module.Reads("environ.items", "Gives the agent's environment.\n\nsalt '*' environ.items", pure(func(*module.Call) any { return all() })),
		module.Reads("environ.item", "Gives some variables of the agent's environment.\n\nsalt '*' environ.item '[PATH, LANG]'", pure(func(c *module.Call) any {
			have, out := all(), map[string]any{}
			for _, k := range c.Strs("keys") {
				if v, ok := have[k]; ok {
					out[k] = v
				} else {
					out[k] = c.Any("default")
				}
			}
			return out
		}), module.Need("keys", module.List), module.May("default", module.Any, "")),
		module.Changes("environ.setval", "Sets a variable of the agent's environment until it ends.\n\nsalt '*' environ.setval foo bar", func(_ context.Context, c *module.Call) (any, error) {
			return set(c.Str("key"), c.Any("val"), c.Bool("false_unsets"))
		}, key, module.Need("val", module.Any), unsets, permanent),
		module.Changes("environ.setenv", "Sets several variables of the agent's environment until it ends.\n\nsalt '*' environ.setenv '{foo: bar, baz: quux}'", func(_ context.Context, c *module.Call) (any, error) {
			vars := c.Map("environ")
			for k := range vars {
				if err := check(k); err != nil {
					return nil, err
				}
			}
			if c.Bool("clear_all") {
				for k := range all() {
					if _, keep := vars[k]; !keep && k != "PATH" {
						if err := os.Unsetenv(k); err != nil {
							return nil, err
						}
					}
				}
			}
			out := map[string]any{}
			for k, v := range vars {
				var err error
				if out[k], err = set(k, v, c.Bool("false_unsets")); err != nil {
					return nil, err
				}
			}
			return out, nil
		}, module.Need("environ", module.Map), unsets, module.May("clear_all", module.Bool, false), module.May("update_minion", module.Bool, false), permanent),
	}
}

func logging() []module.Function {
	say := func(name string, level slog.Level) module.Function {
		return module.Reads("log."+name, "Writes a line into the agent's log.\n\nsalt '*' log."+name+" message", func(ctx context.Context, c *module.Call) (any, error) {
			slog.Log(ctx, level, c.Str("message"), "module", "log")
			return true, nil
		}, module.Need("message", module.Str))
	}
	return []module.Function{say("debug", slog.LevelDebug), say("info", slog.LevelInfo), say("warning", slog.LevelWarn), say("error", slog.LevelError), say("exception", slog.LevelError), say("critical", slog.LevelError)}
}

const (
	lower       = "abcdefghijklmnopqrstuvwxyz"
	digits      = "0123456789"
	punctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
	whitespace  = " \t\n\r\v\f"
)

func random() []module.Function {
	on, off := func(n string) module.Param { return module.May(n, module.Bool, true) }, func(n string) module.Param { return module.May(n, module.Bool, false) }
	return []module.Function{
		module.Reads("random.get_str", "Gives a random text.\n\nsalt '*' random.get_str 128", func(_ context.Context, c *module.Call) (any, error) {
			set := c.Str("chars")
			if !c.Has("chars") {
				for _, p := range []struct{ name, set string }{{"lowercase", lower}, {"uppercase", strings.ToUpper(lower)}, {"digits", digits}, {"punctuation", punctuation}, {"whitespace", whitespace}} {
					if c.Bool(p.name) || c.Bool("printable") {
						set += p.set
					}
				}
			}
			chars := []rune(set)
			n := c.Int("length")
			if len(chars) == 0 || n < 1 || n > maxText {
				return nil, fault.Invalid("argument", "random.get_str: a text of %d out of %d characters cannot be made", n, len(chars))
			}
			out := make([]rune, n)
			for i := range out {
				j, err := below(int64(len(chars)))
				if err != nil {
					return nil, err
				}
				out[i] = chars[j]
			}
			return string(out), nil
		}, module.May("length", module.Int, int64(20)), module.May("chars", module.Str, nil), on("lowercase"), on("uppercase"), on("digits"), on("punctuation"), off("whitespace"), off("printable")),
		module.Reads("random.hash", "Gives the hash of a text.\n\nsalt '*' random.hash 'I am a string' md5", func(_ context.Context, c *module.Call) (any, error) {
			return hashText(c.Str("algorithm"), c.Str("value"))
		}, module.Need("value", module.Str), module.May("algorithm", module.Str, "sha512")),
		module.Reads("random.str_encode", "Encodes a text: base64 or hex.\n\nsalt '*' random.str_encode 'I am a new string'", func(_ context.Context, c *module.Call) (any, error) {
			switch c.Str("encoder") {
			case "base64":
				return base64.StdEncoding.EncodeToString([]byte(c.Str("value"))) + "\n", nil
			case "hex":
				return hex.EncodeToString([]byte(c.Str("value"))), nil
			}
			return nil, fault.Invalid("bad_encoder", "there is no encoder %q here", c.Str("encoder")).Fix("base64 or hex")
		}, module.Need("value", module.Str), module.May("encoder", module.Str, "base64")),
		module.Reads("random.seed", "Gives a number below a bound that is always the same on this host.\n\nsalt '*' random.seed 10", func(_ context.Context, c *module.Call) (any, error) {
			s := c.ID
			if c.Has("hash") {
				s = c.Str("hash")
			}
			if c.Int("range") < 1 {
				return nil, fault.Invalid("argument", "random.seed: range must be at least 1")
			}
			h := fnv.New64a()
			h.Write([]byte(s)) // never fails
			return int64(h.Sum64() % uint64(c.Int("range"))), nil
		}, module.May("range", module.Int, int64(10)), module.May("hash", module.Str, nil)),
		module.Reads("random.rand_int", "Gives a random number of a range, always the same with a seed.\n\nsalt '*' random.rand_int 1 10", func(_ context.Context, c *module.Call) (any, error) {
			low, high := c.Int("start"), c.Int("end")
			if high < low || high-low < 0 || high-low+1 < 1 {
				return nil, fault.Invalid("argument", "random.rand_int: there is no number from %d to %d", low, high)
			}
			if c.Has("seed") {
				h := fnv.New64a()
				h.Write([]byte(module.Plain(c.Any("seed"))))                             // never fails
				return low + rand.New(rand.NewPCG(h.Sum64(), 0)).Int64N(high-low+1), nil //nolint:gosec // repeatable on request
			}
			n, err := below(high - low + 1)
			return low + n, err
		}, module.May("start", module.Int, int64(1)), module.May("end", module.Int, int64(10)), module.May("seed", module.Any, nil)),
		module.Reads("random.shadow_hash", "Makes the hash of a password.\n\nsalt '*' random.shadow_hash My5alT MyP@asswd", func(ctx context.Context, c *module.Call) (any, error) {
			named := map[string]any{"password": c.Any("password"), "algorithm": c.Any("algorithm")}
			if c.Has("crypt_salt") {
				named["crypt_salt"] = c.Any("crypt_salt")
			}
			if !c.Has("password") {
				n, err := below(1 << 62)
				if err != nil {
					return nil, err
				}
				if named["password"], err = hashText("sha256", module.Plain(n)); err != nil {
					return nil, err
				}
			}
			return call(ctx, c, "shadow.gen_password", nil, named)
		}, module.May("crypt_salt", module.Str, nil), module.May("password", module.Str, nil), module.May("algorithm", module.Str, "sha512")),
	}
}
