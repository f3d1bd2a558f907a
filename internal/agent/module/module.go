package module

import (
	"context"
	"errors"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"drover/internal/fault"
)

// Type is what an argument is turned into before a function sees it.
type Type uint8

// The types of arguments. Text, numbers and booleans are taken for each other where nothing is
// lost, since command lines and templates write one for the other.
const (
	Any  Type = iota // as it came: JSON's types
	Str              // string
	Int              // int64
	Num              // float64
	Bool             // bool; "true", "yes", "on", 1 and their opposites too
	List             // []any; one value is a list of one, a text with commas is split
	Map              // map[string]any
)

// Param is one argument of a function.
type Param struct {
	Name     string
	Type     Type
	Required bool
	Default  any // when it is not given; nil is Salt's None
}

// Function is one function of an execution module.
type Function struct {
	Name   string  // "file.write"
	Doc    string  // what it does, in a sentence; then an example of a command line
	Params []Param // in the order in which they are taken by position
	Rest   bool    // takes more by position: see Call.Rest
	Extra  bool    // takes keywords that are not in Params: see Call.Extra
	Reads  bool    // changes nothing: may be repeated, and runs in test mode
	Tests  bool    // knows test mode (Call.Test): says what it would do; others are refused there
	Run    func(ctx context.Context, c *Call) (any, error)
}

// Host is what functions know of where they run.
type Host struct {
	Dir      string                                                          // where the agent keeps its state
	Grains   func(ctx context.Context) (map[string]any, error)               // facts with Salt's names
	Refresh  func(ctx context.Context) error                                 // gathers and reports them anew
	Fetch    func(ctx context.Context, source string) (io.ReadCloser, error) // opens salt://, http(s):// or a path
	Event    func(ctx context.Context, tag string, data any) error           // says an event to the server
	Mine     func(ctx context.Context, target, function, form string) (any, error)
	Config   map[string]any // the agent's configuration, for config.get
	Call     func(ctx context.Context, function string, args []any, named map[string]any) (any, error)
	Registry *Registry
	Version  string
	ID       string // the host's name
}

// Call is one call of a function, its arguments bound.
type Call struct {
	*Host
	Test  bool           // say what would be done, and do nothing
	Rest  []any          // arguments by position beyond Params
	Extra map[string]any // keywords beyond Params
	RC    int            // the return code; a function sets it when not zero is no error of its own

	args  map[string]any
	given map[string]bool
}

// Has tells whether an argument was given and is not None.
func (c *Call) Has(name string) bool { return c.given[name] && c.args[name] != nil }

// Str is an argument of type Str, "" for None.
func (c *Call) Str(name string) string { s, _ := c.args[name].(string); return s }

// Int is an argument of type Int, 0 for None.
func (c *Call) Int(name string) int64 { n, _ := c.args[name].(int64); return n }

// Num is an argument of type Num, 0 for None.
func (c *Call) Num(name string) float64 { n, _ := c.args[name].(float64); return n }

// Bool is an argument of type Bool, false for None.
func (c *Call) Bool(name string) bool { b, _ := c.args[name].(bool); return b }

// Off tells whether an argument is False itself, and not just None.
func (c *Call) Off(name string) bool { b, is := c.args[name].(bool); return is && !b }

// List is an argument of type List, nil for None.
func (c *Call) List(name string) []any { l, _ := c.args[name].([]any); return l }

// Strs is an argument of type List as texts.
func (c *Call) Strs(name string) []string {
	var out []string
	for _, v := range c.List(name) {
		out = append(out, Text(v))
	}
	return out
}

// Map is an argument of type Map, nil for None.
func (c *Call) Map(name string) map[string]any { m, _ := c.args[name].(map[string]any); return m }

// Any is an argument as it is.
func (c *Call) Any(name string) any { return c.args[name] }

// Text is a value as a text, as Python's str gives it.
func Text(v any) string {
	switch x := v.(type) {
	case nil:
		return "None"
	case string:
		return x
	case bool:
		if x {
			return "True"
		}
		return "False"
	case int:
		return strconv.Itoa(x)
	case int64:
		return strconv.FormatInt(x, 10)
	case float64:
		if x == math.Trunc(x) && math.Abs(x) < 1e16 {
			return strconv.FormatFloat(x, 'f', 1, 64)
		}
		return strconv.FormatFloat(x, 'g', -1, 64)
	}
	return jsonText(v)
}

// Plain is a value as a text of a file or a command line: whole numbers have no point.
func Plain(v any) string {
	if f, ok := v.(float64); ok && f == math.Trunc(f) && math.Abs(f) < 1<<63 {
		v = int64(f)
	}
	return Text(v)
}

// Registry finds functions by name.
type Registry struct{ byName map[string]Function }

// NewRegistry makes a registry; of two functions with one name the later holds.
func NewRegistry(all ...[]Function) *Registry {
	r := &Registry{map[string]Function{}}
	for _, fs := range all {
		for _, f := range fs {
			r.byName[f.Name] = f
		}
	}
	return r
}

// Get finds a function.
func (r *Registry) Get(name string) (Function, bool) { f, ok := r.byName[name]; return f, ok }

// Names are all functions, sorted.
func (r *Registry) Names() []string { return slices.Sorted(maps.Keys(r.byName)) }

// Bind makes the call of f with arguments by position and by name, or says which one does not
// fit. Keywords that begin with "__" are the caller's own and are left out.
func Bind(h *Host, f Function, args []any, named map[string]any, test bool) (*Call, error) {
	c := &Call{Host: h, Test: test, Extra: map[string]any{}, args: map[string]any{}, given: map[string]bool{}}
	bad := func(format string, a ...any) error {
		return fault.Invalid("argument", f.Name+": "+format, a...).Fix("see `sys.argspec %s`", f.Name)
	}
	for i, v := range args {
		if i >= len(f.Params) {
			if !f.Rest {
				return nil, bad("takes %d arguments by position, not %d", len(f.Params), len(args))
			}
			c.Rest = args[i:]
			break
		}
		c.args[f.Params[i].Name], c.given[f.Params[i].Name] = v, true
	}
	for k, v := range named {
		if strings.HasPrefix(k, "__") {
			continue
		}
		i := slices.IndexFunc(f.Params, func(p Param) bool { return p.Name == k })
		switch {
		case i < 0 && !f.Extra:
			return nil, bad("there is no argument %q", k)
		case i < 0:
			c.Extra[k] = v
		case c.given[k]:
			return nil, bad("the argument %q is given twice", k)
		default:
			c.args[k], c.given[k] = v, true
		}
	}
	for _, p := range f.Params {
		v, ok := c.args[p.Name]
		if !ok || v == nil {
			if p.Required && !ok {
				return nil, bad("the argument %q is missing", p.Name)
			}
			if !ok {
				v = p.Default
			}
		}
		v, err := convert(v, p.Type)
		if err != nil {
			return nil, bad("the argument %q %s", p.Name, err)
		}
		c.args[p.Name] = v
	}
	return c, nil
}

// convert turns a value of JSON, or of Go's, into what a parameter is.
func convert(v any, t Type) (any, error) {
	switch x := v.(type) {
	case nil:
		return nil, nil
	case int:
		v = int64(x)
	case float64:
		if t != Num && x == math.Trunc(x) && math.Abs(x) < 1<<53 {
			v = int64(x) // JSON has one kind of number
		}
	case []string:
		l := make([]any, len(x))
		for i, s := range x {
			l[i] = s
		}
		v = l
	}
	switch t {
	case Str:
		switch v.(type) {
		case []any, map[string]any:
			return nil, errors.New("must be a text")
		}
		return Text(v), nil
	case Int:
		switch x := v.(type) {
		case int64:
			return x, nil
		case string:
			if n, err := strconv.ParseInt(strings.TrimSpace(x), 0, 64); err == nil {
				return n, nil
			}
		}
		return nil, errors.New("must be a whole number")
	case Num:
		switch x := v.(type) {
		case int64:
			return float64(x), nil
		case float64:
			return x, nil
		case string:
			if n, err := strconv.ParseFloat(strings.TrimSpace(x), 64); err == nil {
				return n, nil
			}
		}
		return nil, errors.New("must be a number")
	case Bool:
		switch x := v.(type) {
		case bool:
			return x, nil
		case int64:
			return x != 0, nil
		case string:
			switch strings.ToLower(strings.TrimSpace(x)) {
			case "true", "yes", "on", "1":
				return true, nil
			case "false", "no", "off", "0", "", "none":
				return false, nil
			}
		}
		return nil, errors.New("must be true or false")
	case List:
		switch x := v.(type) {
		case []any:
			return x, nil
		case string:
			l := []any{}
			for _, s := range strings.Split(x, ",") {
				if s = strings.TrimSpace(s); s != "" {
					l = append(l, s)
				}
			}
			return l, nil
		case map[string]any:
			return nil, errors.New("must be a list")
		}
		return []any{v}, nil
	case Map:
		if m, ok := v.(map[string]any); ok {
			return m, nil
		}
		return nil, errors.New("must be a mapping")
	case Any:
	}
	return v, nil
}
