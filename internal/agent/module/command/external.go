package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

const (
	describeTime = 10 * time.Second
	maxDescribe  = 1 << 20
	maxAnswer    = 16 << 20
	maxPrograms  = 256
	maxFunctions = 1000
	maxParams    = 100
)

var reName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]{0,63}$`)

// description is what a program says of itself when it is called with --describe.
type description struct {
	Module    string `json:"module"`
	Functions []struct {
		Name   string `json:"name"`
		Doc    string `json:"doc"`
		Params []struct {
			Name     string `json:"name"`
			Type     string `json:"type"`
			Required bool   `json:"required"`
			Default  any    `json:"default"`
		} `json:"params"`
		Rest  bool `json:"rest"`
		Extra bool `json:"extra"`
		Reads bool `json:"reads"`
		Tests bool `json:"tests"`
	} `json:"functions"`
}

// question is what a program gets on its standard input for one call.
type question struct {
	Function string         `json:"function"`
	Args     map[string]any `json:"args"`
	Rest     []any          `json:"rest"`
	Extra    map[string]any `json:"extra"`
	Test     bool           `json:"test"`
	Grains   map[string]any `json:"grains"`
	ID       string         `json:"id"`
}

// answer is what it prints.
type answer struct {
	Result any    `json:"result"`
	RC     int    `json:"rc"`
	Error  string `json:"error"`
}

// External finds the functions of the programs in dir. Every executable file MODULE or
// MODULE.EXT there is asked once with --describe; what cannot be taken is explained, and the
// others stay. A directory that is not there has none.
func External(dir string) ([]module.Function, []error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = trusted(dir)
	}
	if err != nil {
		return nil, []error{fault.Invalid("modules_unreadable", "the modules in %s cannot be taken", dir).Wrap(err)}
	}
	var all []module.Function
	var bad []error
	seen := map[string]string{}
	programs := 0
	for _, e := range entries {
		name, _, _ := strings.Cut(e.Name(), ".")
		file := filepath.Join(dir, e.Name())
		i, err := e.Info()
		switch {
		case err != nil || name == "" || e.IsDir() || (i.Mode().IsRegular() && i.Mode()&0o111 == 0):
			continue // hidden, a directory, or a file that lies beside
		case programs >= maxPrograms:
			return all, append(bad, fault.TooLarge("modules_many", "%s has more than %d programs", dir, maxPrograms))
		}
		programs++
		if seen[name] != "" {
			bad = append(bad, fault.Conflict("module_twice", "%s and %s are both the module %s", seen[name], file, name).Fix("remove one of them"))
			continue
		}
		fs, err := describe(file, name)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		seen[name] = file
		all = append(all, fs...)
	}
	return all, bad
}

// trusted refuses what others than root could have written: it will run as root.
func trusted(path string) error {
	i, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if i.Mode()&fs.ModeSymlink != 0 {
		return fault.Denied("module_untrusted", "%s is a symbolic link", path).Fix("put the file itself there")
	}
	if !i.IsDir() && !i.Mode().IsRegular() {
		return fault.Denied("module_untrusted", "%s is no ordinary file", path)
	}
	st, ok := i.Sys().(*syscall.Stat_t)
	if !ok || st.Uid != 0 {
		return fault.Denied("module_untrusted", "%s does not belong to root", path).Fix("chown root:root %s", path)
	}
	if i.Mode()&0o022 != 0 {
		return fault.Denied("module_untrusted", "%s can be written by its group or by everybody (mode %04o)", path, i.Mode().Perm()).Fix("chmod go-w %s", path)
	}
	return nil
}

func kindOf(s string) (module.Type, bool) {
	switch s {
	case "", "any":
		return module.Any, true
	case "str", "string":
		return module.Str, true
	case "int", "integer":
		return module.Int, true
	case "num", "number", "float":
		return module.Num, true
	case "bool", "boolean":
		return module.Bool, true
	case "list", "array":
		return module.List, true
	case "map", "dict", "object":
		return module.Map, true
	}
	return 0, false
}

// describe asks a program what it can do.
func describe(file, name string) ([]module.Function, error) {
	if err := trusted(file); err != nil {
		return nil, err
	}
	bad := func(format string, a ...any) *fault.Error {
		return fault.Invalid("module_bad", "the module "+file+" "+format, a...)
	}
	if !reName.MatchString(name) {
		return nil, bad("has a name that no module can have").Fix("letters, digits and underscores")
	}
	r, err := Run(context.Background(), Spec{Argv: []string{file, "--describe"}, Dir: "/", Timeout: describeTime, Limit: maxDescribe})
	switch {
	case err != nil:
		return nil, bad("cannot be asked what it does").Wrap(err)
	case r.TimedOut:
		return nil, bad("did not say within %s what it does", describeTime)
	case r.Code != 0:
		return nil, bad("failed with %d when asked by --describe: %s", r.Code, tail(r.Err))
	case r.Cut:
		return nil, bad("describes itself in more than %d bytes", maxDescribe)
	}
	return parseDescription(file, name, r.Out)
}

// parseDescription reads what a program printed for --describe.
func parseDescription(file, name string, b []byte) ([]module.Function, error) {
	bad := func(format string, a ...any) *fault.Error {
		return fault.Invalid("module_bad", "the module "+file+" "+format, a...)
	}
	var d description
	if err := decodeJSON(b, &d); err != nil {
		return nil, bad("does not describe itself in JSON: %s", head(b)).Wrap(err)
	}
	if d.Module != name {
		return nil, bad("calls itself %q", short(d.Module)).Fix("the file and the module must have one name")
	}
	if len(d.Functions) == 0 || len(d.Functions) > maxFunctions {
		return nil, bad("has %d functions", len(d.Functions)).Fix("from 1 to %d", maxFunctions)
	}
	var all []module.Function
	seen := map[string]bool{}
	for _, f := range d.Functions {
		if !reName.MatchString(f.Name) || seen[f.Name] {
			return nil, bad("has a function %q, which is no name or comes twice", short(f.Name))
		}
		seen[f.Name] = true
		if len(f.Params) > maxParams {
			return nil, bad("has a function %s with %d arguments", f.Name, len(f.Params))
		}
		out := module.Function{Name: name + "." + f.Name, Doc: Text([]byte(f.Doc)), Rest: f.Rest, Extra: f.Extra, Reads: f.Reads, Tests: f.Tests}
		if out.Doc == "" {
			out.Doc = "A function of the program " + file + "."
		}
		args := map[string]bool{}
		for _, p := range f.Params {
			t, ok := kindOf(p.Type)
			if !ok || !reName.MatchString(p.Name) || strings.HasPrefix(p.Name, "__") || args[p.Name] {
				return nil, bad("has an argument %q of type %q in %s, which cannot be", short(p.Name), short(p.Type), f.Name)
			}
			args[p.Name] = true
			out.Params = append(out.Params, module.Param{Name: p.Name, Type: t, Required: p.Required, Default: native(p.Default)})
		}
		out.Run = call(file, f.Name, out.Params)
		all = append(all, out)
	}
	return all, nil
}

// call is a function of a program.
func call(file, function string, params []module.Param) module.Run {
	return func(ctx context.Context, c *module.Call) (any, error) {
		if err := trusted(file); err != nil {
			return nil, err // it may have been changed since it was asked
		}
		q := question{Function: function, Args: map[string]any{}, Rest: c.Rest, Extra: c.Extra, Test: c.Test, Grains: map[string]any{}}
		for _, p := range params {
			q.Args[p.Name] = c.Any(p.Name)
		}
		if q.Rest == nil {
			q.Rest = []any{}
		}
		if c.Host != nil {
			q.ID = c.ID
			if c.Grains != nil {
				g, err := c.Grains(ctx)
				if err != nil {
					return nil, err
				}
				q.Grains = g
			}
		}
		in, err := json.Marshal(q)
		if err != nil {
			return nil, fault.Invalid("argument", "the arguments of %s cannot be written as JSON", function).Wrap(err)
		}
		r, err := Run(ctx, Spec{Argv: []string{file}, Dir: "/", Stdin: string(in), Limit: maxAnswer})
		if err != nil {
			return nil, err
		}
		failed := func(format string, a ...any) *fault.Error {
			e := fault.Conflict("module_failed", "the module "+file+" "+format, a...)
			if s := tail(r.Err); s != "" {
				e = e.Wrap(errors.New(s))
			}
			return e
		}
		switch {
		case r.Cut:
			return nil, failed("answered with more than %d bytes", maxAnswer)
		case r.Code != 0:
			return nil, failed("ended with %d in %s", r.Code, function)
		}
		var a answer
		if err := decodeJSON(r.Out, &a); err != nil {
			return nil, failed("did not answer %s in JSON: %s", function, head(r.Out))
		}
		c.RC = a.RC
		if a.Error != "" {
			return native(a.Result), failed("could not do %s: %s", function, short(Text([]byte(a.Error))))
		}
		return native(a.Result), nil
	}
}

// decodeJSON reads exactly one value; numbers stay as they were written.
func decodeJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("there is more after the value")
	}
	return nil
}

// native turns the numbers of decodeJSON into int64 and float64.
func native(v any) any {
	switch x := v.(type) {
	case json.Number:
		if n, err := x.Int64(); err == nil {
			return n
		}
		if f, err := x.Float64(); err == nil {
			return f
		}
		return x.String()
	case []any:
		for i := range x {
			x[i] = native(x[i])
		}
	case map[string]any:
		for k := range x {
			x[k] = native(x[k])
		}
	}
	return v
}

func head(b []byte) string { return short(Text(b[:min(len(b), 300)])) }

// tail is the end of what a program wrote as errors, where the reason is.
func tail(b []byte) string {
	s := strings.TrimSpace(Text(b))
	if len(s) > 2000 {
		s = "…" + strings.ToValidUTF8(s[len(s)-2000:], "")
	}
	return s
}
