package salt

import (
	"encoding/json"
	"strings"
	"testing"

	"drover/internal/fault"
	"drover/internal/fleet"
	fleetwire "drover/internal/fleet/wire"

	"github.com/google/go-cmp/cmp"
)

func TestLowstatesInEveryFormOfBody(t *testing.T) {
	want := []low{{"client": "local", "tgt": "*", "fun": "cmd.run", "arg": []any{"a", "b"}}}
	const asJSON, asYAML, asForm = "application/json; charset=utf-8", "application/x-yaml", "application/x-www-form-urlencoded"
	for _, c := range []struct{ kind, body string }{
		{asJSON, `[{"client":"local","tgt":"*","fun":"cmd.run","arg":["a","b"]}]`},
		{asJSON, `{"client":"local","tgt":"*","fun":"cmd.run","arg":["a","b"]}`},
		{asYAML, "- client: local\n  tgt: '*'\n  fun: cmd.run\n  arg: [a, b]\n"},
		{"text/yaml", "client: local\ntgt: '*'\nfun: cmd.run\narg:\n- a\n- b\n"},
		{asForm, "client=local&tgt=*&fun=cmd.run&arg=a&arg=b"},
	} {
		got, err := lowstates(c.kind, []byte(c.body))
		if err != nil || !cmp.Equal(got, want) {
			t.Errorf("%s %s: %v, %v", c.kind, c.body, got, err)
		}
	}
	for _, c := range []struct{ kind, body, code string }{
		{asJSON, "", "lowstate"}, {asJSON, "[]", "lowstate"}, {asJSON, `["x"]`, "lowstate"}, {asJSON, `{"a":`, "body"}, {asJSON, `{} {}`, "body"}, {asJSON, strings.Repeat("[", 100_000), "body"},
		{asJSON, "[" + strings.Repeat("{},", maxLow) + "{}]", "lowstate"}, {asYAML, "a: [", "body"}, {asYAML, "a: .nan", "body"}, {"text/xml", "<a/>", "media_type"}, {"", "a=b", "media_type"}, {";", "a", "media_type"},
		{asForm, "a=%zz", "body"}, {asForm, "a=%ff", "body"}, {asForm, strings.Repeat("a&", maxFields+1), "request_too_large"},
	} {
		if got, err := lowstates(c.kind, []byte(c.body)); fault.Code(err) != c.code {
			t.Errorf("%s %.40s: %v, %v; want %s", c.kind, c.body, got, err, c.code)
		}
	}
}

func TestArgumentsAreReadAsMinionsDo(t *testing.T) {
	for _, c := range []struct {
		low, args, kwargs string
	}{
		{`{"arg":"uptime"}`, `["uptime"]`, `null`},
		{`{"arg":["5","true","x=1","[a, 1]"]}`, `[5,true,["a",1]]`, `{"x":1}`},
		{`{"arg":[5,{"__kwarg__":true,"y":"2"}],"kwarg":{"z":"3"}}`, `[5]`, `{"y":"2","z":"3"}`},
		{`{"arg":["x=1\nz","a==b","1x=2","{'k': 1}"]}`, `["x=1\nz","a==b","1x=2",{"k":1}]`, `null`},
		{`{"arg":[20261128101500123456,{"a":1}]}`, `[20261128101500123456,{"a":1}]`, `null`},
		{`{}`, `null`, `null`},
	} {
		ls, err := lowstates("application/json", []byte(c.low))
		if err != nil {
			t.Fatal(err)
		}
		args, kwargs, err := ls[0].arguments()
		a, aerr := json.Marshal(args)
		k, kerr := json.Marshal(kwargs)
		if err != nil || aerr != nil || kerr != nil || string(a) != c.args || string(k) != c.kwargs {
			t.Errorf("%s: %s %s %v", c.low, a, k, err)
		}
	}
}

func TestWhatCannotBeDoneIsFoundBeforehand(t *testing.T) {
	for _, c := range []struct{ low, code string }{
		{`{"client":"local","tgt":"*","fun":"test.ping"}`, ""}, {`{"client":"local","tgt":["a","b"],"fun":"test.ping"}`, ""}, {`{"client":"local","tgt":"G@a:b","expr_form":"compound","fun":"test.ping"}`, ""},
		{`{"client":"runner","fun":"jobs.active"}`, ""}, {`{"client":"wheel","fun":"key.list_all"}`, ""}, {`{"client":"local_batch","tgt":"*","fun":"test.ping","batch":5}`, ""},
		{`{"client":"ssh","tgt":"*","fun":"test.ping"}`, "client"}, {`{"fun":"test.ping"}`, "client"}, {`{"client":"runner","fun":"state.orch"}`, "function"}, {`{"client":"wheel","fun":"file_roots.write"}`, "function"},
		{`{"client":"local","fun":"test.ping"}`, "target_invalid"}, {`{"client":"local","tgt":"*"}`, "function"}, {`{"client":"local","tgt":"*","fun":["a.b","c.d"]}`, "function"}, {`{"client":"local","tgt":"a","tgt_type":"range","fun":"test.ping"}`, "tgt_type"},
		{`{"client":"local","tgt":"*","fun":"test.ping","kwarg":[1]}`, "arguments"}, {`{"client":"local_batch","tgt":"*","fun":"test.ping","batch_wait":"NaN"}`, "batch_wait"}, {`{"client":"local_subset","tgt":"*","fun":"test.ping","sub":0}`, "subset"},
		{`{"client":"local","tgt":"a\u0000","fun":"test.ping"}`, "target_invalid"},
	} {
		ls, err := lowstates("application/json", []byte(c.low))
		if err != nil {
			t.Fatal(err)
		}
		if err := ls[0].check(); fault.Code(err) != c.code {
			t.Errorf("%s: %v, want %q", c.low, err, c.code)
		}
	}
}

func TestFactsBecomeGrains(t *testing.T) {
	var fs []fleet.Fact
	for _, kv := range [][2]string{{"os", "CentOS Stream"}, {"osrelease", "9"}, {"osmajorrelease", "9"}, {"osrelease_info:0", "9"}, {"osrelease_info:1", "1"}, {"selinux:enabled", "True"}, {"ip4_interfaces:eth0:0", "10.0.0.1"}, {"ip4_interfaces:eth0:1", "10.0.0.2"},
		{"odd:0", "a"}, {"odd:2", "b"}, {"x", "1"}, {"x:y", "2"}, {"z:y", "2"}, {"z", "1"}, {"none", "None"}, {strings.Repeat(":", 100), "deep"}} {
		fs = append(fs, fleet.Fact{Key: kv[0], Value: kv[1]})
	}
	want := map[string]any{"os": "CentOS Stream", "osrelease": "9", "osmajorrelease": int64(9), "osrelease_info": []any{int64(9), int64(1)}, "selinux": map[string]any{"enabled": true}, "ip4_interfaces": map[string]any{"eth0": []any{"10.0.0.1", "10.0.0.2"}},
		"odd": map[string]any{"0": "a", "2": "b"}, "x": "1", "x:y": "2", "z": "1", "none": nil}
	if got := nest(fs); !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
}

// A machine that calls itself by another's number must not be accepted in its place.
func TestOneMachineIsMeant(t *testing.T) {
	all := []fleet.Host{{ID: "h12", Name: "web-01", State: fleetwire.Pending}, {ID: "h13", Name: "h12", State: fleetwire.Pending}}
	if _, err := refer(all, all[0]); fault.Code(err) != "host_ambiguous" {
		t.Error(err)
	}
	if ref, err := refer(all, all[1]); ref != "h13" || err != nil {
		t.Error(ref, err)
	}
	for _, c := range []struct {
		fun, state, pattern string
		also                map[string]any
		want                bool
	}{
		{"key.accept", fleetwire.Pending, "web*", nil, true}, {"key.accept", fleetwire.Rejected, "web*", nil, false}, {"key.accept", fleetwire.Rejected, "*", map[string]any{"include_rejected": true}, true}, {"key.accept", fleetwire.Accepted, "*", nil, false},
		{"key.reject", fleetwire.Accepted, "*", nil, false}, {"key.reject", fleetwire.Pending, "web-01", nil, true}, {"key.delete", fleetwire.Accepted, "*", nil, true}, {"key.delete", fleetwire.Revoked, "*", nil, false}, {"key.delete", fleetwire.Pending, "db*", nil, false},
	} {
		if got := wanted(c.fun, fleet.Host{ID: "h1", Name: "web-01", State: c.state}, []string{c.pattern}, c.also); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func FuzzLowstates(f *testing.F) {
	for _, s := range []string{`[{"client":"local","tgt":"*","fun":"cmd.run","arg":["a=1"],"kwarg":{"a":1}}]`, "- client: runner\n  fun: jobs.active\n", "client=local&tgt=*&fun=test.ping&kwarg={a: 1}", `[[]]`} {
		for i := range 3 {
			f.Add(i, []byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, kind int, b []byte) {
		kinds := []string{"application/json", "application/x-yaml", "application/x-www-form-urlencoded"}
		ls, err := lowstates(kinds[(kind%3+3)%3], b)
		if err != nil {
			return
		}
		for _, l := range ls {
			if l.check() == nil && l["tgt"] != nil && l.text("client") == "local" {
				sp, err := l.spec("local")
				if err != nil || sp.Target == "" || sp.Fun == "" {
					t.Errorf("%v is let through and is %+v, %v", l, sp, err)
				}
			}
			if _, err := json.Marshal(map[string]any(l)); err != nil {
				t.Error(err)
			}
		}
	})
}
