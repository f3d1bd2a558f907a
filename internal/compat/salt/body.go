package salt

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"drover/internal/fault"
	"drover/internal/fleet/selector"
	"drover/internal/job/wire"

	"go.yaml.in/yaml/v3"
)

// low is a lowstate: what is to be done, as salt-api's clients say it.
type low map[string]any

// clients are the clients that a lowstate can name.
func clients() []string {
	return []string{"local", "local_async", "local_batch", "local_subset", "runner", "wheel"}
}

// text is a value as a text, "" when it is none.
func text(v any) string {
	switch x := v.(type) {
	case string:
		return x
	case json.Number:
		return x.String()
	case bool:
		return strconv.FormatBool(x)
	case int64:
		return strconv.FormatInt(x, 10)
	case float64:
		return strconv.FormatFloat(x, 'f', -1, 64)
	}
	return ""
}

func (l low) text(key string) string { return text(l[key]) }

// read reads a body, not more than most of it.
func read(w http.ResponseWriter, r *http.Request, most int64) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return nil, fault.TooLarge("request_too_large", "the request has more than %d bytes", most)
	}
	if err != nil {
		return nil, fault.Invalid("body", "the request's body cannot be read").Wrap(err)
	}
	return b, nil
}

// maxFields is how many fields a form may have.
const maxFields = 10_000

// decode reads a body in one of the forms that rest_cherrypy takes.
func decode(kind string, b []byte) (v any, form bool, err error) {
	media, _, err := mime.ParseMediaType(kind)
	if err != nil && kind != "" {
		return nil, false, fault.Invalid("media_type", "%.100q is no type of a body", kind).Fix("send application/json, application/x-yaml or a form")
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, media == "application/x-www-form-urlencoded", nil
	}
	switch media {
	case "application/json", "text/plain":
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			return nil, false, fault.Invalid("body", "the body is no JSON").Wrap(err)
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return nil, false, fault.Invalid("body", "the body has more than one value of JSON")
		}
		return v, false, nil
	case "application/x-yaml", "text/yaml", "application/yaml", "text/x-yaml":
		if err := yaml.Unmarshal(b, &v); err != nil {
			return nil, false, fault.Invalid("body", "the body is no YAML").Wrap(err)
		}
		j, err := json.Marshal(v) // numbers that are none, and mappings with other keys than texts
		if err != nil {
			return nil, false, fault.Invalid("body", "the body has no form in JSON").Wrap(err)
		}
		if len(j) > 4*maxBody { // by names that stand for much
			return nil, false, fault.TooLarge("request_too_large", "the request stands for more than %d bytes", 4*maxBody)
		}
		return decode("application/json", j)
	case "application/x-www-form-urlencoded":
		if bytes.Count(b, []byte("&")) > maxFields {
			return nil, true, fault.TooLarge("request_too_large", "the form has more than %d fields", maxFields)
		}
		q, err := url.ParseQuery(string(b))
		if err != nil {
			return nil, true, fault.Invalid("body", "the body is no form").Wrap(err)
		}
		m := map[string]any{}
		for k, vs := range q {
			l := []any{}
			for _, s := range vs {
				if !utf8.ValidString(s) {
					return nil, true, fault.Invalid("body", "the form is no UTF-8")
				}
				l = append(l, s)
			}
			m[k] = l
			if len(l) == 1 {
				m[k] = l[0]
			}
		}
		return m, true, nil
	}
	return nil, false, fault.Invalid("media_type", "%.100q is no type of a body that is taken here", kind).Fix("send application/json, application/x-yaml or application/x-www-form-urlencoded")
}

// lowstates reads the lowstates of a body: a list, or one.
func lowstates(kind string, b []byte) ([]low, error) {
	v, form, err := decode(kind, b)
	if err != nil {
		return nil, err
	}
	bad := fault.Invalid("lowstate", "the body is no lowstate").Fix(`send a list such as [{"client":"local","tgt":"*","fun":"test.ping"}]`)
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	if len(list) == 0 || len(list) > maxLow {
		return nil, bad
	}
	out := make([]low, 0, len(list))
	for _, x := range list {
		m, ok := x.(map[string]any)
		if !ok {
			return nil, bad
		}
		if s, ok := m["kwarg"].(string); ok && form {
			m["kwarg"] = wire.Value(s)
		}
		out = append(out, m)
	}
	return out, nil
}

// check finds what cannot be done before anything is.
func (l low) check() error {
	client, fun := l.text("client"), l.text("fun")
	if !slices.Contains(clients(), client) {
		return fault.Invalid("client", "%.40q is no client that is supported", client).Fix("use one of %s", strings.Join(clients(), ", "))
	}
	if fun == "" {
		return fault.Invalid("function", "a lowstate needs fun, the name of one function").Fix("send a lowstate for each function")
	}
	switch client {
	case "runner":
		if runners[fun] == nil {
			return fault.Invalid("function", "the runner %.100q is not supported", fun).Fix("use one of %s", strings.Join(names(runners), ", "))
		}
		_, err := l.params()
		return err
	case "wheel":
		if !slices.Contains(wheels(), fun) {
			return fault.Invalid("function", "the wheel function %.100q is not supported", fun).Fix("use one of %s", strings.Join(wheels(), ", "))
		}
		_, err := l.params()
		return err
	}
	_, err := l.spec(client)
	return err
}

// target reads how and which hosts.
func target(tgt, form any) (selector.Form, string, error) {
	f := selector.Form(text(form))
	switch f {
	case "":
		f = selector.Glob
		if _, ok := tgt.([]any); ok {
			f = selector.ListForm
		}
	case "pillar_exact":
		f = selector.Pillar
	}
	if !slices.Contains(selector.Forms(), f) {
		return "", "", fault.Invalid("tgt_type", "%.40q is no supported way to write a target", text(form)).Fix("use one of %s", forms())
	}
	s := text(tgt)
	if l, ok := tgt.([]any); ok {
		words := make([]string, 0, len(l))
		for _, x := range l {
			words = append(words, text(x))
		}
		sep := ","
		if f == selector.Compound {
			sep = " "
		}
		s = strings.Join(words, sep)
	}
	if s == "" || strings.ContainsRune(s, 0) {
		return "", "", fault.Invalid("target_invalid", "a lowstate needs tgt: which hosts").Fix("give '*' for all")
	}
	return f, s, nil
}

func forms() string {
	var out []string
	for _, f := range selector.Forms() {
		out = append(out, string(f))
	}
	return strings.Join(out, ", ")
}

// reNamed is KEY=VALUE in Salt's words: what has two signs of equality, or lines, is a text.
var reNamed = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=(?:[^=\n][^\n]*)?$`)

// arguments reads arg and kwarg as Salt's minions do: a text in arg is a word of a command line.
func (l low) arguments() (args []any, kwargs map[string]any, err error) {
	list, ok := l["arg"].([]any)
	if !ok && l["arg"] != nil {
		list = []any{l["arg"]}
	}
	put := func(k string, v any) {
		if kwargs == nil {
			kwargs = map[string]any{}
		}
		kwargs[k] = v
	}
	for _, x := range list {
		switch x := x.(type) {
		case string:
			switch {
			case strings.ContainsRune(x, '\n'):
				args = append(args, x)
			case reNamed.MatchString(x):
				_, named := wire.Words([]string{x})
				for k, v := range named {
					put(k, v)
				}
			default:
				args = append(args, wire.Value(x))
			}
		case map[string]any:
			if is, _ := x["__kwarg__"].(bool); !is {
				args = append(args, x)
				continue
			}
			for k, v := range x {
				if k != "__kwarg__" {
					put(k, v)
				}
			}
		default:
			args = append(args, x)
		}
	}
	switch named := l["kwarg"].(type) {
	case nil:
	case map[string]any:
		for k, v := range named {
			put(k, v)
		}
	default:
		return nil, nil, fault.Invalid("arguments", "kwarg is no mapping").Fix(`send "kwarg": {"name": "value"}`)
	}
	return args, kwargs, nil
}

// params are the arguments of a runner or of a wheel function, by place and by name.
type params struct {
	pos   []any
	named map[string]any
}

// params reads them: runners take their arguments beside the names of the lowstate, too.
func (l low) params() (params, error) {
	pos, named, err := l.arguments()
	if err != nil {
		return params{}, err
	}
	if named == nil {
		named = map[string]any{}
	}
	for k, v := range l {
		switch k {
		case "client", "fun", "arg", "kwarg", "username", "password", "eauth", "token", "sharedsecret", "full_return", "timeout":
			continue
		}
		if _, had := named[k]; !had {
			named[k] = v
		}
	}
	return params{pos, named}, nil
}

// get is the argument of a place or a name.
func (p params) get(i int, name string) any {
	if v, ok := p.named[name]; ok {
		return v
	}
	if i < len(p.pos) {
		return p.pos[i]
	}
	return nil
}

// target is the target that a runner is given, "*" when it is given none.
func (p params) target(tgt, form int) (selector.Form, string, error) {
	t := p.get(tgt, "tgt")
	if t == nil {
		t = "*"
	}
	f := p.get(form, "tgt_type")
	if f == nil {
		f = p.named["expr_form"]
	}
	return target(t, f)
}
