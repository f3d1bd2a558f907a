package module

import (
	"context"
	"testing"

	"drover/internal/fault"

	"github.com/google/go-cmp/cmp"
)

func TestBind(t *testing.T) {
	f := Function{Name: "x.y", Params: []Param{{Name: "name", Type: Str, Required: true}, {Name: "count", Type: Int, Default: int64(3)}, {Name: "force", Type: Bool}, {Name: "pkgs", Type: List}, {Name: "opts", Type: Map}, {Name: "rate", Type: Num}}}
	for _, c := range []struct {
		what  string
		args  []any
		named map[string]any
		want  map[string]any
		code  string
	}{
		{"defaults", []any{"a"}, nil, map[string]any{"name": "a", "count": int64(3), "force": nil, "pkgs": nil, "opts": nil, "rate": nil}, ""},
		{"numbers of JSON", []any{5.0, 7.0, 1.0, []any{1.0}, map[string]any{"a": 1.0}, 2.0}, nil, map[string]any{"name": "5", "count": int64(7), "force": true, "pkgs": []any{1.0}, "opts": map[string]any{"a": 1.0}, "rate": 2.0}, ""},
		{"texts", nil, map[string]any{"name": true, "count": "0x10", "force": "yes", "pkgs": "a, b,,c", "rate": "1.5", "__pub_jid": "x"}, map[string]any{"name": "True", "count": int64(16), "force": true, "pkgs": []any{"a", "b", "c"}, "opts": nil, "rate": 1.5}, ""},
		{"none is given", []any{"a", nil}, nil, map[string]any{"name": "a", "count": nil, "force": nil, "pkgs": nil, "opts": nil, "rate": nil}, ""},
		{"missing", nil, nil, nil, "argument"},
		{"unknown", []any{"a"}, map[string]any{"nom": "b"}, nil, "argument"},
		{"twice", []any{"a"}, map[string]any{"name": "b"}, nil, "argument"},
		{"too many", []any{"a", 1, 1, nil, nil, nil, 9}, nil, nil, "argument"},
		{"no number", []any{"a", "seven"}, nil, nil, "argument"},
		{"a fraction", []any{"a", 1.5}, nil, nil, "argument"},
		{"no truth", []any{"a", 1, "perhaps"}, nil, nil, "argument"},
		{"a list for a text", []any{[]any{"a"}}, nil, nil, "argument"},
		{"a text for a mapping", []any{"a"}, map[string]any{"opts": "x"}, nil, "argument"},
	} {
		got, err := Bind(&Host{}, f, c.args, c.named, false)
		if fault.Code(err) != c.code {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		if err == nil {
			if d := cmp.Diff(c.want, got.args); d != "" {
				t.Errorf("%s: %s", c.what, d)
			}
		}
	}
	f.Rest, f.Extra = true, true
	c, err := Bind(&Host{}, f, []any{"a", 1, 1, nil, nil, nil, "more", "yet"}, map[string]any{"odd": 1}, true)
	if err != nil || len(c.Rest) != 2 || c.Extra["odd"] != 1 || !c.Test || c.Has("pkgs") || !c.Has("name") {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestText(t *testing.T) {
	for want, v := range map[string]any{"None": nil, "True": true, "1": int64(1), "1.0": 1.0, "0.1": 0.1, "x": "x", `{"a":1}`: map[string]any{"a": 1}} {
		if got := Text(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
}

func TestRegistry(t *testing.T) {
	one := func(context.Context, *Call) (any, error) { return 1, nil }
	r := NewRegistry([]Function{{Name: "b.b"}, {Name: "a.a"}}, []Function{{Name: "a.a", Run: one}})
	if f, ok := r.Get("a.a"); !ok || f.Run == nil {
		t.Error("the later of two does not hold")
	}
	if d := cmp.Diff([]string{"a.a", "b.b"}, r.Names()); d != "" {
		t.Error(d)
	}
}
