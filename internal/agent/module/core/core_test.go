package core

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// machine is a host with some grains, on which functions can call each other.
func machine(t *testing.T, grains string) *module.Host {
	t.Helper()
	var g map[string]any
	if err := json.Unmarshal([]byte(grains), &g); err != nil {
		t.Fatal(err)
	}
	h := &module.Host{Dir: t.TempDir(), ID: "web1.example.com", Version: "1.2.3", Config: map[string]any{"server": "https://drover", "ticket": "s3cret", "mine_functions": map[string]any{"network.ip_addrs": []any{}}}}
	h.Registry = module.NewRegistry(Functions(Jobs{}))
	h.Grains = func(context.Context) (map[string]any, error) { return g, nil }
	h.Call = func(ctx context.Context, fun string, args []any, named map[string]any) (any, error) {
		f, ok := h.Registry.Get(fun)
		if !ok {
			return nil, fault.NotFound("function_unknown", "there is no function %s", fun)
		}
		c, err := module.Bind(h, f, args, named, false)
		if err != nil {
			return nil, err
		}
		return f.Run(ctx, c)
	}
	return h
}

const centos = `{"os": "CentOS Stream", "os_family": "RedHat", "osfinger": "CentOS Stream-9", "osmajorrelease": 9, "id": "web1.example.com", "roles": ["web", "db"],
	"ipv4": ["10.1.2.3", "127.0.0.1"], "pkg": {"apache": "httpd"}, "systemd": {"version": "252"}}`

// run calls a function with arguments as JSON has them.
func runFun(t *testing.T, h *module.Host, fun, args, named string) (any, error) {
	t.Helper()
	var a []any
	var n map[string]any
	for v, s := range map[any]string{&a: args, &n: named} {
		if s == "" {
			continue
		}
		if err := json.Unmarshal([]byte(s), v); err != nil {
			t.Fatal(err)
		}
	}
	return h.Call(t.Context(), fun, a, n)
}

// as is a value as JSON text, which is how it travels.
func as(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAnswers(t *testing.T) {
	h := machine(t, centos)
	for _, v := range []struct{ fun, args, named, want string }{
		{"test.ping", "", "", `true`},
		{"test.version", "", "", `"1.2.3"`},
		{"test.echo", `["hi"]`, "", `"hi"`},
		{"test.arg", `[1,"two"]`, `{"txt":"x"}`, `{"args":[1,"two"],"kwargs":{"txt":"x"}}`},
		{"test.arg_repr", `[1,"two"]`, `{"txt":"it's"}`, `{"args":"(1, 'two')","kwargs":"{'txt': \"it's\"}"}`},
		{"test.arg_type", `[1,"x",1.5,true,null]`, `{"d":{}}`, `{"args":["\u003cclass 'int'\u003e","\u003cclass 'str'\u003e","\u003cclass 'float'\u003e","\u003cclass 'bool'\u003e","\u003cclass 'NoneType'\u003e"],"kwargs":{"d":"\u003cclass 'dict'\u003e"}}`},
		{"test.cross_test", `["test.echo", "x"]`, "", `"x"`},
		{"test.try_", "", `{"module":"test.exception"}`, `null`},
		{"test.try_", "", `{"module":"test.exception","return_try_exception":true}`, `"Test Exception"`},
		{"test.provider", `["test"]`, "", `"test"`},
		{"sys.list_functions", `["mine"]`, "", `["mine.delete","mine.flush","mine.get","mine.send","mine.update","mine.valid"]`},
		{"sys.list_modules", `["s*"]`, "", `["saltutil","slsutil","state","sys"]`},
		{"sys.argspec", `["grains.filter_by"]`, "", `{"grains.filter_by":{"args":["lookup_dict","grain","merge","default","base"],"defaults":["os_family",null,"default",null],"kwargs":null,"varargs":null}}`},
		{"grains.get", `["pkg:apache"]`, "", `"httpd"`},
		{"grains.get", `["pkg:nginx"]`, `{"default":"none"}`, `"none"`},
		{"grains.get", `["roles:1"]`, "", `"db"`},
		{"grains.get", `["missing"]`, "", `""`},
		{"grains.item", `["os","missing"]`, "", `{"missing":"","os":"CentOS Stream"}`},
		{"grains.item", `["id"]`, `{"sanitize":true}`, `{"id":"MINION"}`},
		{"grains.has_value", `["pkg:apache"]`, "", `true`},
		{"grains.has_value", `["nope"]`, "", `false`},
		{"grains.equals", `["osmajorrelease", 9]`, "", `true`},
		{"config.get", `["server"]`, "", `"https://drover"`},
		{"config.get", `["os_family"]`, "", `"RedHat"`},
		{"config.get", `["ticket"]`, "", `"********"`},
		{"config.get", `["nope", "def"]`, "", `"def"`},
		{"config.manage_mode", `[644]`, "", `"0644"`},
		{"match.glob", `["web*"]`, "", `true`},
		{"match.glob", `["web[!1]*"]`, "", `false`},
		{"match.glob", `["db*"]`, `{"minion_id":"db7"}`, `true`},
		{"match.pcre", `["web\\d"]`, "", `true`},
		{"match.list", `["a,web1.example.com"]`, "", `true`},
		{"match.grain", `["os_family:red*"]`, "", `true`},
		{"match.grain", `["roles:db"]`, "", `true`},
		{"match.grain", `["pkg:apache:httpd"]`, "", `true`},
		{"match.grain", `["osmajorrelease:8"]`, "", `false`},
		{"match.grain_pcre", `["os:(fedora|centos.*)"]`, "", `true`},
		{"match.ipcidr", `["10.1.0.0/16"]`, "", `true`},
		{"match.ipcidr", `["192.168.0.1"]`, "", `false`},
		{"match.compound", `["G@os_family:RedHat and not db* and ( E@x or S@10.0.0.0/8 )"]`, "", `true`},
		{"match.compound", `["not G@os_family:RedHat or L@a,b"]`, "", `false`},
		{"match.compound", `["P|@os@cent.*"]`, "", `false`},
		{"match.filter_by", `[{"db*":1,"G@os_family:RedHat":2}]`, "", `2`},
		{"match.filter_by", `[{"db*":1,"default":3}]`, "", `3`},
		{"match.search_by", `[{"web":["web*"],"all":["*"],"db":["db*"]}]`, "", `["all","web"]`},
		{"match.search_by", `[{"db":["db*"]}]`, "", `null`},
		{"slsutil.merge", `[{"a":{"x":1,"l":[1]},"b":1},{"a":{"y":2,"l":[2]}}]`, "", `{"a":{"l":[2],"x":1,"y":2},"b":1}`},
		{"slsutil.merge", `[{"a":{"x":1,"l":[1]}},{"a":{"l":[1,2]}}]`, `{"merge_lists":true}`, `{"a":{"l":[1,2],"x":1}}`},
		{"slsutil.merge", `[{"a":{"x":1}},{"a":{"y":2}}]`, `{"strategy":"overwrite"}`, `{"a":{"y":2}}`},
		{"slsutil.merge", `[{"a":1,"b":2},{"a":3,"c":4}]`, `{"strategy":"list"}`, `{"a":[1,3],"b":2}`},
		{"slsutil.merge_all", `[[{"a":1},{"b":2},{"a":3}]]`, "", `{"a":3,"b":2}`},
		{"slsutil.update", `[{"a":{"x":1}},{"a":{"y":2}}]`, `{"recursive_update":false}`, `{"a":{"y":2}}`},
		{"slsutil.serialize", `["json",{"a":1}]`, "", `"{\"a\":1}"`},
		{"slsutil.serialize", `["yaml",{"a":1}]`, "", `"a: 1\n"`},
		{"slsutil.deserialize", `["yaml","a: [1, x]\n2: y"]`, "", `{"2":"y","a":[1,"x"]}`},
		{"slsutil.boolstr", `[false]`, `{"true":"yes","false":"no"}`, `"no"`},
		{"defaults.merge", `[{"a":{"x":1}},{"a":{"y":2}}]`, "", `{"a":{"x":1,"y":2}}`},
		{"defaults.update", `[{"n1":{"port":1},"n2":null},{"port":80,"l":[1]}]`, "", `{"n1":{"l":[1],"port":1},"n2":{"l":[1],"port":80}}`},
		{"mine.valid", "", "", `{"network.ip_addrs":[]}`},
		{"random.hash", `["x","md5"]`, "", `"9dd4e461268c8034f5c8564e155c67a6"`},
		{"random.str_encode", `["x"]`, "", `"eA==\n"`},
		{"saltutil.sync_grains", "", "", `[]`},
	} {
		got, err := runFun(t, h, v.fun, v.args, v.named)
		if err != nil {
			t.Errorf("%s %s %s: %v", v.fun, v.args, v.named, err)
			continue
		}
		if s := as(t, got); s != v.want {
			t.Errorf("%s %s %s = %s\nwant %s", v.fun, v.args, v.named, s, v.want)
		}
	}
}

func TestFaults(t *testing.T) {
	h := machine(t, centos)
	for _, v := range []struct{ fun, args, code string }{
		{"pillar.get", `["x"]`, "pillar_later"}, {"pillar.items", "", "pillar_later"}, {"state.apply", `["x"]`, "state_later"}, {"state.highstate", "", "state_later"},
		{"state.running", "", "state_later"}, {"saltutil.regen_keys", "", "regen_refused"}, {"saltutil.revoke_auth", "", "revoke_server"}, {"saltutil.running", "", "jobs_missing"},
		{"mine.send", `["x"]`, "mine_configured"}, {"mine.get", `["*","x"]`, "mine_missing"}, {"match.compound", `["I@a:b"]`, "match_later"}, {"match.compound", `["( web*"]`, "bad_target"},
		{"match.compound", `["web* and"]`, "bad_target"}, {"match.pcre", `["("]`, "bad_pattern"}, {"test.exception", "", "test_exception"}, {"test.assertion", `[false]`, "test_assertion"},
		{"event.send", `["t"]`, "event_missing"}, {"slsutil.serialize", `["msgpack",1]`, "bad_serializer"}, {"slsutil.merge", `[{},{},"odd"]`, "bad_strategy"}, {"test.fib", `[100000]`, "argument"},
		{"grains.filter_by", `[{"RedHat": 1, "b": {}}, "os_family", null, "default", "b"]`, "argument"},
	} {
		if got, err := runFun(t, h, v.fun, v.args, ""); fault.Code(err) != v.code {
			t.Errorf("%s %s = %v, %v; want the code %s", v.fun, v.args, got, err, v.code)
		}
	}
}

// The pivot of formulas.
func TestFilterBy(t *testing.T) {
	h := machine(t, centos)
	for _, v := range []struct{ args, named, want string }{
		{`[{"Debian":{"p":"apache2"},"RedHat":{"p":"httpd"}}]`, "", `{"p":"httpd"}`},
		{`[{"Debian":1,"default":2}]`, "", `2`},
		{`[{"Debian":1}]`, "", `null`},
		{`[{"Debian":1,"other":2}]`, `{"default":"other"}`, `2`},
		{`[{"CentOS*":1}]`, `{"grain":"os"}`, `1`},
		{`[{"CentOS*":1,"CentOS Stream-9":2}]`, `{"grain":"osfinger"}`, `2`},
		{`[{"9":"nine"}]`, `{"grain":"osmajorrelease"}`, `"nine"`},
		{`[{"db":"d","x":"y"}]`, `{"grain":"roles"}`, `"d"`},
		{`[{"base":{"a":{"x":1,"y":2},"l":[1]},"RedHat":{"a":{"x":9},"l":[2]}}]`, `{"base":"base"}`, `{"a":{"x":9,"y":2},"l":[2]}`},
		{`[{"base":{"a":1},"Debian":{}}]`, `{"base":"base"}`, `{"a":1}`},
		{`[{"base":{"a":1},"default":{"b":2}}]`, `{"base":"base"}`, `{"a":1,"b":2}`},
		{`[{"RedHat":{"a":{"x":1,"l":[1,2]}}}]`, `{"merge":{"a":{"y":2,"l":[3]}}}`, `{"a":{"l":[3],"x":1,"y":2}}`},
		{`[{"Debian":{}}]`, `{"merge":{"a":1}}`, `{"a":1}`},
		{`[{"RedHat":{"a":1}}]`, `{"merge":{}}`, `{"a":1}`},
		{`[{"nine":1}]`, `{"grain":"missing"}`, `null`},
	} {
		got, err := runFun(t, h, "grains.filter_by", v.args, v.named)
		if err != nil {
			t.Errorf("%s %s: %v", v.args, v.named, err)
			continue
		}
		if s := as(t, got); s != v.want {
			t.Errorf("filter_by %s %s = %s, want %s", v.args, v.named, s, v.want)
		}
	}
	if _, err := runFun(t, h, "grains.filter_by", `[{"RedHat":{}}]`, `{"merge":"x"}`); err == nil {
		t.Error("a merge that is no mapping is taken")
	}
}

func TestStaticGrains(t *testing.T) {
	h := machine(t, centos)
	refreshed := 0
	h.Refresh = func(context.Context) error { refreshed++; return nil }
	for _, v := range []struct{ fun, args, named, want string }{
		{"grains.setval", `["deploy","prod"]`, "", `{"deploy":"prod"}`},
		{"grains.get", `["deploy"]`, "", `"prod"`},
		{"grains.set", `["apps:web:port",8080]`, "", `{"changes":{"apps:web:port":8080},"comment":"","result":true}`},
		{"grains.set", `["apps:web:port",8080]`, "", `{"changes":{},"comment":"Grain is already set","result":true}`},
		{"grains.get", `["apps:web:port"]`, "", `8080`},
		{"grains.set", `["apps","x"]`, "", `{"changes":{},"comment":"The key 'apps' exists but is a dict or a list. Use 'force=True' to overwrite.","result":false}`},
		{"grains.set", `["apps:web:port",[1]]`, "", `{"changes":{},"comment":"The key 'apps:web:port' exists and the given value is a dict or a list. Use 'force=True' to overwrite.","result":false}`},
		{"grains.append", `["tags","a"]`, "", `{"tags":["a"]}`},
		{"grains.append", `["tags","a"]`, "", `"The val a was already in the list tags"`},
		{"grains.append", `["tags",["b","c"]]`, "", `{"tags":["a","b","c"]}`},
		{"grains.append", `["deploy","a"]`, "", `"The key deploy is not a valid list"`},
		{"grains.remove", `["tags","b"]`, "", `{"tags":["a","c"]}`},
		{"grains.remove", `["tags","z"]`, "", `"The val z was not in the list tags"`},
		{"grains.setvals", `[{"a":1,"b":[true]}]`, "", `{"a":1,"b":[true]}`},
		{"grains.delval", `["a"]`, "", `{"changes":{"a":null},"comment":"","result":true}`},
		{"grains.delkey", `["b"]`, "", `{"changes":{"b":null},"comment":"","result":true}`},
		{"grains.setval", `["os","fake"]`, "", `{"os":"fake"}`},
		{"grains.get", `["os"]`, "", `"fake"`},
	} {
		got, err := runFun(t, h, v.fun, v.args, v.named)
		if err != nil {
			t.Fatalf("%s %s: %v", v.fun, v.args, err)
		}
		if s := as(t, got); s != v.want {
			t.Errorf("%s %s = %s\nwant %s", v.fun, v.args, s, v.want)
		}
	}
	b, err := os.ReadFile(StaticGrains(h.Dir))
	if err != nil {
		t.Fatal(err)
	}
	want := "a: null\napps:\n    web:\n        port: 8080\ndeploy: prod\nos: fake\ntags:\n    - a\n    - c\n"
	if diff := cmp.Diff(want, string(b)); diff != "" {
		t.Error(diff)
	}
	if refreshed != 9 {
		t.Errorf("the grains were reported %d times, want 9: once for each change", refreshed)
	}
}

func TestStaticGrainsInTestMode(t *testing.T) {
	h := machine(t, centos)
	f, _ := h.Registry.Get("grains.setval")
	c, err := module.Bind(h, f, []any{"a", "b"}, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(StaticGrains(h.Dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("test mode wrote a file: %v", err)
	}
}

func TestGrainsAreNotChangedByReading(t *testing.T) {
	h := machine(t, centos)
	before := as(t, mustGrains(t, h))
	for _, args := range []string{`[{"RedHat":{"a":1}}]`} {
		if _, err := runFun(t, h, "grains.filter_by", args, `{"merge":{"b":2}}`); err != nil {
			t.Fatal(err)
		}
	}
	v, err := runFun(t, h, "grains.items", "", `{"sanitize":true}`)
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := v.(map[string]any); !ok || m["id"] != "MINION" {
		t.Errorf("the id is not hidden: %v", v)
	}
	if after := as(t, mustGrains(t, h)); after != before {
		t.Errorf("reading changed the grains:\n%s\n%s", before, after)
	}
}

func mustGrains(t *testing.T, h *module.Host) map[string]any {
	t.Helper()
	g, err := h.Grains(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestEventsAndMine(t *testing.T) {
	h := machine(t, centos)
	var tag string
	var data any
	h.Event = func(_ context.Context, a string, b any) error { tag, data = a, b; return nil }
	h.Mine = func(_ context.Context, target, fun, form string) (any, error) {
		return map[string]any{h.ID: target, "db1": fun + form}, nil
	}
	if v, err := runFun(t, h, "event.send", `["my/tag",{"a":1}]`, `{"b":2}`); err != nil || as(t, v) != "true" {
		t.Fatal(v, err)
	}
	if tag != "my/tag" || as(t, data) != `{"a":1,"b":2}` {
		t.Errorf("sent %s %v", tag, data)
	}
	if v, err := runFun(t, h, "event.fire_master", `["d","t"]`, ""); err != nil || as(t, v) != "true" || tag != "t" || data != "d" {
		t.Error(v, err, tag, data)
	}
	v, err := runFun(t, h, "mine.get", `["*","x"]`, `{"exclude_minion":true}`)
	if err != nil || as(t, v) != `{"db1":"xglob"}` {
		t.Error(v, err)
	}
}

func TestFilesOfTheServer(t *testing.T) {
	h := machine(t, centos)
	h.Fetch = func(_ context.Context, source string) (io.ReadCloser, error) {
		if source == "salt://a/b" {
			return io.NopCloser(strings.NewReader("x")), nil
		}
		return nil, fault.NotFound("file_missing", "no")
	}
	for path, want := range map[string]bool{"a/b": true, "salt://a/b": true, "c": false} {
		if v, err := runFun(t, h, "slsutil.file_exists", `["`+path+`"]`, ""); err != nil || v != want {
			t.Errorf("%s: %v, %v", path, v, err)
		}
	}
}

func TestJobs(t *testing.T) {
	h := machine(t, centos)
	var killed []any
	h.Registry = module.NewRegistry(Functions(Jobs{
		Running: func() []map[string]any {
			return []map[string]any{{"jid": "1", "fun": "test.sleep", "pid": 77}, {"jid": "2", "fun": "saltutil.kill_all_jobs"}}
		},
		Kill: func(jid string, sig int) error { killed = append(killed, jid, sig); return nil },
	}))
	for _, v := range []struct{ fun, args, want string }{
		{"saltutil.find_job", `["1"]`, `{"fun":"test.sleep","jid":"1","pid":77}`}, {"saltutil.find_job", `["9"]`, `{}`}, {"saltutil.is_running", `["test.*"]`, `[{"fun":"test.sleep","jid":"1","pid":77}]`},
		{"saltutil.term_job", `["1"]`, `"Signal 15 sent to job 1 at pid 77"`}, {"saltutil.kill_job", `["9"]`, `""`}, {"saltutil.kill_all_jobs", "", `["Signal 9 sent to job 1 at pid 77"]`},
	} {
		got, err := runFun(t, h, v.fun, v.args, "")
		if err != nil || as(t, got) != v.want {
			t.Errorf("%s = %v, %v; want %s", v.fun, got, err, v.want)
		}
	}
	if diff := cmp.Diff([]any{"1", 15, "1", 9}, killed); diff != "" {
		t.Error(diff)
	}
}

func TestSleepEndsWithItsContext(t *testing.T) {
	h := machine(t, centos)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Call(ctx, "test.sleep", []any{100}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestRandom(t *testing.T) {
	h := machine(t, centos)
	v, err := runFun(t, h, "random.get_str", `[40]`, `{"punctuation":false,"uppercase":false}`)
	s, _ := v.(string)
	if err != nil || len(s) != 40 || strings.Trim(s, lower+digits) != "" {
		t.Error(v, err)
	}
	a, err1 := runFun(t, h, "random.rand_int", `[5,9,"x"]`, "")
	b, err2 := runFun(t, h, "random.rand_int", `[5,9,"x"]`, "")
	n, ok := a.(int64)
	if err1 != nil || err2 != nil || a != b || !ok || n < 5 || n > 9 {
		t.Error(a, b, err1, err2)
	}
}

// Every function says what it does and shows a line that calls it.
func TestDocs(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range Functions(Jobs{}) {
		if seen[f.Name] {
			t.Errorf("%s is there twice", f.Name)
		}
		seen[f.Name] = true
		if !strings.Contains(f.Doc, "\n\nsalt '*' "+f.Name) || f.Run == nil {
			t.Errorf("%s: %q", f.Name, f.Doc)
		}
	}
}

// Python's answers: fnmatch.fnmatchcase.
func TestFnmatch(t *testing.T) {
	for _, v := range []struct {
		pattern, s string
		want       bool
	}{
		{"a*", "a/b", true}, {"?", "ä", true}, {"[ab]x", "bx", true}, {"[!ab]x", "bx", false}, {"[!ab]x", "cx", true}, {"[]]", "]", true}, {"[!]]", "a", true}, {"[a", "[a", true},
		{"[a-c]", "b", true}, {"*", "", true}, {"a.b", "axb", false}, {"a**b", "ab", true}, {"[^a]", "^", true}, {"", "", true}, {"*\n", "x\n", true}, {`[\]`, `\`, true},
	} {
		if got := fnmatch(v.pattern, v.s); got != v.want {
			t.Errorf("fnmatch(%q, %q) = %v (%s)", v.pattern, v.s, got, globRegexp(v.pattern))
		}
	}
}

// A pattern of plain characters and stars fits what it was made from.
func TestFnmatchProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.StringMatching(`[a-z.+(){}/\\^$|]{0,5}`), 1, 5).Draw(t, "parts")
		fill := rapid.StringMatching(`[a-z/]{0,3}`).Draw(t, "fill")
		if !fnmatch(strings.Join(parts, "*"), strings.Join(parts, fill)) {
			t.Fatal("does not fit")
		}
	})
}

// Merging is idempotent, has b's leaves, and changes neither of its inputs.
func TestMergeProperty(t *testing.T) {
	leaf := rapid.OneOf(rapid.Map(rapid.Int64Range(0, 9), func(n int64) any { return n }), rapid.Map(rapid.SliceOfN(rapid.Int64Range(0, 3), 0, 3), func(l []int64) any {
		out := []any{}
		for _, n := range l {
			out = append(out, n)
		}
		return out
	}))
	flat := rapid.MapOfN(rapid.StringMatching(`[a-c]`), leaf, 0, 3)
	tree := rapid.MapOfN(rapid.StringMatching(`[a-c]`), rapid.OneOf(leaf, rapid.Map(flat, func(m map[string]any) any { return m })), 0, 3)
	rapid.Check(t, func(t *rapid.T) {
		a, b := tree.Draw(t, "a"), tree.Draw(t, "b")
		a0, b0 := clone(a), clone(b)
		once, err := merge(a, b, "smart", "yaml", false)
		if err != nil {
			t.Fatal(err)
		}
		twice, err := merge(once, b, "recurse", "yaml", false)
		if err != nil || !cmp.Equal(once, twice) {
			t.Fatalf("merging again changes it: %v %v %v", once, twice, err)
		}
		if !cmp.Equal(a, a0) || !cmp.Equal(b, b0) {
			t.Fatal("an input was changed")
		}
		for k, v := range b {
			if _, isMap := v.(map[string]any); !isMap && !cmp.Equal(once[k], v) {
				t.Fatalf("%s is %v, want %v", k, once[k], v)
			}
		}
	})
}

func FuzzCompound(f *testing.F) {
	for _, s := range []string{"web*", "G@os:x and ( not E@a or L@b )", "S@::/0", "((", "not not not", "G|:@a:b"} {
		f.Add(s)
	}
	t := target{"web1", map[string]any{"os": "x", "roles": []any{"a"}}}
	f.Fuzz(func(_ *testing.T, s string) {
		if _, err := t.compound(s); err != nil && fault.Code(err) == "internal" {
			panic(err)
		}
	})
}

func FuzzStaticGrains(f *testing.F) {
	f.Add([]byte("a: [1, {b: c}]\n3: x\n"))
	f.Add([]byte("a: .inf\nb: 2026-01-01\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseStatic(b, "grains.yaml")
		if err != nil {
			return
		}
		if _, err := json.Marshal(m); err != nil {
			t.Fatal(err)
		}
	})
}
