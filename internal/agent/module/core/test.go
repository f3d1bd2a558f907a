package core

import (
	"context"
	"crypto/md5" //nolint:gosec // on request
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // on request
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"math/big"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// The bounds of functions that only exist to keep an agent busy.
const (
	maxFib     = 1000
	maxCollatz = 100000
	maxText    = 16 << 20
)

func testers() []module.Function {
	always := func(v any) module.Run { return pure(func(*module.Call) any { return v }) }
	num := module.Need("num", module.Int)
	return []module.Function{
		module.Reads("test.ping", "Tells that the agent is there.\n\nsalt '*' test.ping", always(true)),
		module.Reads("test.version", "Tells the version of the agent.\n\nsalt '*' test.version", pure(func(c *module.Call) any { return c.Version })),
		module.Reads("test.versions", "Tells the versions of the agent and of what it is made with.\n\nsalt '*' test.versions", pure(versions)),
		module.Reads("test.versions_report", "Tells the versions of the agent and of what it is made with.\n\nsalt '*' test.versions_report", pure(versions)),
		module.Reads("test.versions_information", "Tells the versions of the agent and of what it is made with, as a mapping.\n\nsalt '*' test.versions_information", pure(func(c *module.Call) any {
			return map[string]any{"Drover Version": map[string]any{"Drover": c.Version}, "Dependency Versions": dependencies(), "System Versions": map[string]any{"go": runtime.Version(), "machine": runtime.GOARCH, "system": runtime.GOOS}}
		})),
		module.Reads("test.echo", "Gives back a text.\n\nsalt '*' test.echo 'foo bar baz'", pure(func(c *module.Call) any { return c.Any("text") }), module.Need("text", module.Any)),
		module.Open(module.Reads("test.arg", "Gives back its arguments.\n\nsalt '*' test.arg 1 'two' 3.1 txt='hello' wow='{a: 1, b: \"hello\"}'", pure(func(c *module.Call) any {
			return map[string]any{"args": positional(c), "kwargs": c.Extra}
		}))),
		module.Open(module.Reads("test.kwarg", "Gives back its keywords.\n\nsalt '*' test.kwarg num=1 txt='two'", pure(func(c *module.Call) any { return c.Extra }))),
		module.Open(module.Reads("test.arg_repr", "Gives back its arguments as Python writes them.\n\nsalt '*' test.arg_repr 1 'two' 3.1 txt='hello'", pure(func(c *module.Call) any {
			return map[string]any{"args": pythonTuple(positional(c)), "kwargs": python(c.Extra)}
		}))),
		module.Open(module.Reads("test.arg_type", "Tells the types of its arguments, as Python names them.\n\nsalt '*' test.arg_type 1 'int'", pure(func(c *module.Call) any {
			args, named := []string{}, map[string]any{}
			for _, v := range positional(c) {
				args = append(args, pythonType(v))
			}
			for k, v := range c.Extra {
				named[k] = pythonType(v)
			}
			return map[string]any{"args": args, "kwargs": named}
		}))),
		module.Open(module.Reads("test.arg_clean", "Gives back its arguments.\n\nsalt '*' test.arg_clean 1 'two'", pure(func(c *module.Call) any {
			return map[string]any{"args": positional(c), "kwargs": c.Extra}
		}))),
		module.Reads("test.fib", "Gives the number of Fibonacci's at a place, and the time it took.\n\nsalt '*' test.fib 3", func(_ context.Context, c *module.Call) (any, error) {
			n := c.Int("num")
			if n < 0 || n > maxFib {
				return nil, fault.Invalid("argument", "test.fib: num must be from 0 to %d, not %d", maxFib, n)
			}
			began := time.Now()
			a, b := big.NewInt(0), big.NewInt(1)
			for range n {
				a.Add(a, b)
				a, b = b, a
			}
			if a.IsInt64() {
				return []any{a.Int64(), time.Since(began).Seconds()}, nil
			}
			return []any{a.String(), time.Since(began).Seconds()}, nil
		}, num),
		module.Reads("test.collatz", "Gives Collatz's numbers from a start on, and the time it took.\n\nsalt '*' test.collatz 3", func(ctx context.Context, c *module.Call) (any, error) {
			began := time.Now()
			n := c.Int("start")
			steps := []any{}
			for n > 1 {
				if len(steps) >= maxCollatz || n > 1<<60 || ctx.Err() != nil {
					return nil, fault.TooLarge("argument", "test.collatz: it does not end in time from %d", c.Int("start"))
				}
				steps = append(steps, n)
				if n%2 == 0 {
					n /= 2
				} else {
					n = 3*n + 1
				}
			}
			return []any{append(steps, n), time.Since(began).Seconds()}, nil
		}, module.Need("start", module.Int)),
		module.Reads("test.outputter", "Gives back data, for looking at outputs.\n\nsalt '*' test.outputter foobar", pure(func(c *module.Call) any { return c.Any("data") }), module.Need("data", module.Any)),
		module.Reads("test.retcode", "Ends with a return code.\n\nsalt '*' test.retcode 42", pure(func(c *module.Call) any { c.RC = int(c.Int("code")); return true }), module.May("code", module.Int, int64(42))),
		module.Reads("test.true", "Always true.\n\nsalt '*' test.true", always(true)), module.Reads("test.true_", "Always true.\n\nsalt '*' test.true_", always(true)),
		module.Reads("test.false", "Always false.\n\nsalt '*' test.false", always(false)), module.Reads("test.false_", "Always false.\n\nsalt '*' test.false_", always(false)),
		module.Reads("test.exception", "Fails with a message.\n\nsalt '*' test.exception 'Oh noes!'", func(_ context.Context, c *module.Call) (any, error) {
			return nil, fault.Conflict("test_exception", "%s", c.Str("message"))
		}, module.May("message", module.Str, "Test Exception")),
		module.Open(module.Reads("test.raise_exception", "Fails with an exception of a name.\n\nsalt '*' test.raise_exception TypeError 'An integer is required'", func(_ context.Context, c *module.Call) (any, error) {
			var args []string
			for _, v := range c.Rest {
				args = append(args, module.Plain(v))
			}
			return nil, fault.Conflict("test_exception", "%s: %s", c.Str("name"), strings.Join(args, ", "))
		}, module.Need("name", module.Str))),
		module.Reads("test.assertion", "Fails unless a value is true.\n\nsalt '*' test.assertion False", func(_ context.Context, c *module.Call) (any, error) {
			if !truth(c.Any("assertion")) {
				return nil, fault.Conflict("test_assertion", "the assertion does not hold")
			}
			return nil, nil
		}, module.Need("assertion", module.Any)),
		module.Reads("test.not_loaded", "Lists the functions that are not there.\n\nsalt '*' test.not_loaded", always([]string{})),
		module.Reads("test.sleep", "Waits some seconds.\n\nsalt '*' test.sleep 20", func(ctx context.Context, c *module.Call) (any, error) { return true, sleep(ctx, c.Num("length")) }, module.Need("length", module.Num)),
		module.Reads("test.rand_sleep", "Waits for a random time, at most some seconds.\n\nsalt '*' test.rand_sleep 60", func(ctx context.Context, c *module.Call) (any, error) {
			n, err := below(max(c.Int("max"), 0) + 1)
			if err != nil {
				return nil, err
			}
			return true, sleep(ctx, float64(n))
		}, module.May("max", module.Int, int64(60))),
		module.Reads("test.rand_str", "Gives the hash of a random number.\n\nsalt '*' test.rand_str", randomHash, module.May("size", module.Int, int64(9999999999)), module.May("hash_type", module.Str, nil)),
		module.Reads("test.random_hash", "Gives the hash of a random number.\n\nsalt '*' test.random_hash hash_type=sha512", randomHash, module.May("size", module.Int, int64(9999999999)), module.May("hash_type", module.Str, nil)),
		module.Reads("test.get_opts", "Gives the configuration of the agent.\n\nsalt '*' test.get_opts", pure(func(c *module.Call) any { return settings(c) })),
		module.Reads("test.conf_test", "Gives the setting test.foo of the agent.\n\nsalt '*' test.conf_test", pure(func(c *module.Call) any { return settings(c)["test.foo"] })),
		module.Open(module.Changes("test.cross_test", "Calls another function.\n\nsalt '*' test.cross_test file.gid_to_group 0", func(ctx context.Context, c *module.Call) (any, error) {
			args := c.Rest
			if c.Has("args") {
				args = append(slices.Clone(c.List("args")), args...)
			}
			return call(ctx, c, c.Str("func"), args, nil)
		}, module.Need("func", module.Str), module.May("args", module.List, nil))),
		module.Open(module.Changes("test.try_", "Calls another function, and gives nothing when it fails.\n\nsalt '*' test.try_ module=test.ping", func(ctx context.Context, c *module.Call) (any, error) {
			v, err := call(ctx, c, c.Str("module"), c.Rest, c.Extra)
			switch {
			case ctx.Err() != nil:
				return nil, ctx.Err()
			case err != nil && c.Bool("return_try_exception"):
				return err.Error(), nil
			case err != nil:
				return nil, nil //nolint:nilerr // what this function is for
			}
			return v, nil
		}, module.Need("module", module.Str), module.May("return_try_exception", module.Bool, false))),
		module.Reads("test.attr_call", "Gives the grains by calling grains.items.\n\nsalt '*' test.attr_call", func(ctx context.Context, c *module.Call) (any, error) {
			return call(ctx, c, "grains.items", nil, nil)
		}),
		module.Reads("test.opts_pkg", "Gives what a job runs with: configuration and grains.\n\nsalt '*' test.opts_pkg", func(ctx context.Context, c *module.Call) (any, error) {
			g, err := facts(ctx, c)
			m := settings(c)
			m["grains"] = g
			return m, err
		}),
		module.Reads("test.provider", "Tells what a module is made by.\n\nsalt '*' test.provider service", func(_ context.Context, c *module.Call) (any, error) {
			if !slices.Contains(moduleNames(c.Registry), c.Str("module")) {
				return nil, nil
			}
			return c.Str("module"), nil
		}, module.Need("module", module.Str)),
		module.Reads("test.providers", "Tells what all modules are made by.\n\nsalt '*' test.providers", pure(func(c *module.Call) any {
			out := map[string]any{}
			for _, n := range moduleNames(c.Registry) {
				out[n] = n
			}
			return out
		})),
		module.Reads("test.module_report", "Lists all functions and modules.\n\nsalt '*' test.module_report", pure(func(c *module.Call) any {
			return map[string]any{"functions": names(c.Registry), "modules": moduleNames(c.Registry), "missing_attrs": map[string]any{}, "missing_subs": []string{}}
		})),
		module.Reads("test.stack", "Gives the stack of the call.\n\nsalt '*' test.stack", pure(func(*module.Call) any { return string(debug.Stack()) })),
	}
}

func versions(c *module.Call) any {
	var b strings.Builder
	b.WriteString("Drover Version:\n  Drover: " + c.Version + "\n\nDependency Versions:\n")
	deps := dependencies()
	for _, k := range sortedKeys(deps) {
		b.WriteString("  " + k + ": " + module.Text(deps[k]) + "\n")
	}
	b.WriteString("\nSystem Versions:\n  go: " + runtime.Version() + "\n  machine: " + runtime.GOARCH + "\n  system: " + runtime.GOOS + "\n")
	return b.String()
}

func dependencies() map[string]any {
	out := map[string]any{}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			out[d.Path] = d.Version
		}
	}
	return out
}

func positional(c *module.Call) []any {
	if c.Rest == nil {
		return []any{}
	}
	return c.Rest
}

// call calls a function of this host.
func call(ctx context.Context, c *module.Call, fun string, args []any, named map[string]any) (any, error) {
	if c.Call == nil {
		return nil, fault.Unavailable("call_missing", "functions cannot call each other here")
	}
	return c.Call(ctx, fun, args, named)
}

func sleep(ctx context.Context, seconds float64) error {
	return module.Sleep(ctx, min(max(time.Duration(seconds*float64(time.Second)), 0), 7*24*time.Hour))
}

// below is a random number from 0 to n-1.
func below(n int64) (int64, error) {
	if n < 1 {
		return 0, fault.Invalid("argument", "there is no random number below %d", n)
	}
	i, err := rand.Int(rand.Reader, big.NewInt(n))
	if err != nil {
		return 0, err
	}
	return i.Int64(), nil
}

// hashOf makes a hash by its name.
func hashOf(name string) (hash.Hash, error) {
	switch strings.ToLower(name) {
	case "md5":
		return md5.New(), nil //nolint:gosec // on request
	case "sha1":
		return sha1.New(), nil //nolint:gosec // on request
	case "sha224":
		return sha256.New224(), nil
	case "", "sha256":
		return sha256.New(), nil
	case "sha384":
		return sha512.New384(), nil
	case "sha512":
		return sha512.New(), nil
	}
	return nil, fault.Invalid("bad_algorithm", "there is no hash %q here", name).Fix("md5, sha1, sha224, sha256, sha384 or sha512")
}

func hashText(name, s string) (string, error) {
	h, err := hashOf(name)
	if err != nil {
		return "", err
	}
	h.Write([]byte(s)) // never fails
	return hex.EncodeToString(h.Sum(nil)), nil
}

func randomHash(_ context.Context, c *module.Call) (any, error) {
	n, err := below(max(c.Int("size"), 1))
	if err != nil {
		return nil, err
	}
	return hashText(c.Str("hash_type"), strconv.FormatInt(n, 10))
}

// truth is what Python takes for true.
func truth(v any) bool {
	switch x := v.(type) {
	case nil:
		return false
	case bool:
		return x
	case string:
		return x != ""
	case int64:
		return x != 0
	case float64:
		return x != 0
	case []any:
		return len(x) > 0
	case map[string]any:
		return len(x) > 0
	}
	return true
}

// pythonType names a type as Python's type does.
func pythonType(v any) string {
	name := "str"
	switch x := tidy(v).(type) {
	case nil:
		name = "NoneType"
	case bool:
		name = "bool"
	case int64:
		name = "int"
	case float64:
		name = "float"
	case []any:
		name = "list"
	case map[string]any:
		name = "dict"
	case string:
		_ = x
	}
	return "<class '" + name + "'>"
}

// python writes a value as Python's repr does.
func python(v any) string {
	switch x := v.(type) {
	case string:
		q := strconv.Quote(x)
		body := strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
		if strings.Contains(x, "'") && !strings.Contains(x, `"`) {
			return `"` + body + `"`
		}
		return "'" + strings.ReplaceAll(body, "'", `\'`) + "'"
	case float64:
		return module.Plain(x)
	case []any:
		var parts []string
		for _, e := range x {
			parts = append(parts, python(e))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case map[string]any:
		var parts []string
		for _, k := range sortedKeys(x) {
			parts = append(parts, python(k)+": "+python(x[k]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	return module.Text(v)
}

func pythonTuple(l []any) string {
	s := strings.TrimSuffix(strings.TrimPrefix(python(l), "["), "]")
	if len(l) == 1 {
		s += ","
	}
	return "(" + s + ")"
}
