package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"drover/internal/agent"
	"drover/internal/agent/sim"
	"drover/internal/fleet"
	"drover/internal/fleet/selector"
	fleetwire "drover/internal/fleet/wire"
	"drover/internal/job"

	"github.com/google/go-cmp/cmp"
)

// script is a script that was written for salt-api.
type script struct {
	t    *testing.T
	s    *Server
	http *http.Client
	head http.Header
}

func newScript(t *testing.T, s *Server) *script {
	t.Helper()
	c, err := client(s.URL, "", s.CA)
	if err != nil {
		t.Fatal(err)
	}
	return &script{t, s, c.HTTP, http.Header{}}
}

// ask sends a request, and reads its answer into out.
func (x *script) ask(method, path, kind, body string, out any) (int, http.Header) {
	x.t.Helper()
	r, err := http.NewRequestWithContext(x.t.Context(), method, x.s.URL+path, strings.NewReader(body))
	if err != nil {
		x.t.Fatal(err)
	}
	r.Header = x.head.Clone()
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	resp, err := x.http.Do(r)
	if err != nil {
		x.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		x.t.Fatal(err)
	}
	if p, ok := out.(*string); ok {
		*p = string(b)
	} else if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			x.t.Fatalf("%s %s: %d %s", method, path, resp.StatusCode, b)
		}
	}
	return resp.StatusCode, resp.Header
}

type answered struct {
	Return []json.RawMessage
	Status int
	Code   string
}

// low sends lowstates and gives what they return, as JSON with sorted keys.
func (x *script) low(lows string) []string {
	x.t.Helper()
	var a struct{ Return []any }
	if status, _ := x.ask("POST", "/salt/", "application/json", lows, &a); status != http.StatusOK {
		x.t.Fatalf("%s: %d", lows, status)
	}
	out := []string{}
	for _, v := range a.Return {
		b, err := json.Marshal(v)
		if err != nil {
			x.t.Fatal(err)
		}
		out = append(out, string(b))
	}
	return out
}

const (
	asJSON = "application/json"
	asForm = "application/x-www-form-urlencoded"
)

func TestScriptsForSaltAPI(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir(), TLS: true})
	admin := asAdmin(t.Context())
	simulate(t, s, 3, nil)
	last := simulate(t, s, 1, func(c *sim.Config) { c.First = 4 })
	x := newScript(t, s)

	// A login by a form, as curl -k sends it.
	var a struct {
		Return []struct {
			Token, User, Eauth string
			Start, Expire      float64
			Perms              []string
		}
	}
	form := url.Values{"username": {"admin"}, "password": {s.Token}, "eauth": {"pam"}}.Encode()
	status, head := x.ask("POST", "/salt/login", asForm, form, &a)
	if status != http.StatusOK || len(a.Return) != 1 || a.Return[0].Token != head.Get("X-Auth-Token") || a.Return[0].User != "admin" || a.Return[0].Eauth != "pam" || a.Return[0].Expire <= a.Return[0].Start ||
		!slices.Equal(a.Return[0].Perms, []string{".*", "@jobs", "@runner", "@wheel"}) {
		t.Fatalf("login: %d %+v", status, a)
	}
	cookies := (&http.Response{Header: head}).Cookies()
	if len(cookies) != 1 || cookies[0].Name != "session_id" || !cookies[0].HttpOnly || !cookies[0].Secure || cookies[0].SameSite != http.SameSiteStrictMode || cookies[0].Path != "/salt" {
		t.Errorf("cookie: %+v", cookies)
	}
	for what, form := range map[string]url.Values{"a wrong password": {"username": {"admin"}, "password": {"drv_guess"}}, "the name of another": {"username": {"eve"}, "password": {s.Token}}, "no password": {"username": {"admin"}}} {
		var bad answered
		var text struct{ Return string }
		var body string
		status, head := x.ask("POST", "/salt/login", asForm, form.Encode(), &body)
		if err := errors.Join(json.Unmarshal([]byte(body), &struct{ Status *int }{&bad.Status}), json.Unmarshal([]byte(body), &text)); err != nil || status != http.StatusUnauthorized || bad.Status != status || text.Return == "" || head.Get("Set-Cookie") != "" {
			t.Errorf("%s: %d %s", what, status, body)
		}
	}
	if status, _ := x.ask("GET", "/salt/minions", "", "", nil); status != http.StatusUnauthorized {
		t.Errorf("without a token: %d", status)
	}

	// By cookie, but not for a page of another site.
	x.head.Set("Cookie", "session_id="+a.Return[0].Token)
	if status, _ := x.ask("GET", "/salt/keys", "", "", nil); status != http.StatusOK {
		t.Errorf("by the cookie: %d", status)
	}
	x.head.Set("Origin", "https://evil.example")
	if status, _ := x.ask("POST", "/salt/", asJSON, `[{"client":"local","tgt":"*","fun":"test.ping"}]`, nil); status != http.StatusForbidden {
		t.Errorf("by the cookie, from another site: %d", status)
	}
	x.head = http.Header{"X-Auth-Token": {a.Return[0].Token}}

	until(t, "all have reported", func() bool {
		hs, err := s.Fleet.Hosts(admin, fleetwire.Accepted, selector.Glob, "")
		return err == nil && !slices.ContainsFunc(hs, func(h fleet.Host) bool { return h.Reported.IsZero() })
	})
	ping := `{"sim-00001":true,"sim-00002":true,"sim-00003":true,"sim-00004":true}`
	for lows, want := range map[string][]string{
		`[{"client":"local","tgt":"*","fun":"test.ping"}]`:                            {ping},
		`{"client":"local","tgt":["sim-00001","nobody"],"fun":"test.echo","arg":"5"}`: {`{"sim-00001":5}`},
		`[{"client":"local","tgt":"sim-0000[12]","fun":"test.echo","kwarg":{"text":"x=1"}},{"client":"local","tgt":"sim-00001","fun":"test.echo","arg":["text=a b"]}]`: {`{"sim-00001":"x=1","sim-00002":"x=1"}`, `{"sim-00001":"a b"}`},
		`[{"client":"local","tgt":"G@os:CentOS* and L@sim-00003","expr_form":"compound","fun":"test.ping"}]`:                                                           {`{"sim-00003":true}`},
		`[{"client":"local","tgt":"nobody*","fun":"test.ping"}]`:                                                                                                       {`{}`},
		`[{"client":"local_batch","tgt":"nobody*","fun":"test.ping"}]`:                                                                                                 {},
		`[{"client":"local","tgt":"sim-00001","fun":"no.such"}]`:                                                                                                       {`{"sim-00001":"refused: there is no function no.such on this host (see ` + "`drover run HOST sys.list_functions`" + `)"}`},
		`[{"client":"runner","fun":"manage.up"}]`:                                                                                                                      {`["sim-00001","sim-00002","sim-00003","sim-00004"]`},
		`[{"client":"runner","fun":"manage.status"},{"client":"runner","fun":"manage.down"}]`:                                                                          {`{"down":[],"up":["sim-00001","sim-00002","sim-00003","sim-00004"]}`, `[]`},
		`[{"client":"runner","fun":"manage.up","tgt":"sim-00002"},{"client":"runner","fun":"manage.up","arg":["sim-00002,sim-00003","list"]}]`:                         {`["sim-00002"]`, `["sim-00002","sim-00003"]`},
		`[{"client":"runner","fun":"jobs.active"}]`:                                                                                                                    {`{}`},
		`[{"client":"runner","fun":"jobs.lookup_jid","jid":"20200101000000000000"}]`:                                                                                   {`{}`},
		`[{"client":"runner","fun":"mine.get","kwarg":{"tgt":"*","fun":"x"}}]`:                                                                                         {`{}`},
		`[{"client":"runner","fun":"manage.versions"}]`:                                                                                                                {`{"Master":"test","Minion requires update":{"sim-00001":"1.0","sim-00002":"1.0","sim-00003":"1.0","sim-00004":"1.0"}}`},
	} {
		if got := x.low(lows); !slices.Equal(got, want) {
			t.Errorf("%s:\n got %s\nwant %s", lows, got, want)
		}
	}
	if got := x.low(`[{"client":"local_batch","tgt":"*","fun":"test.ping","batch":"2"}]`); len(got) != 4 || !slices.Contains(got, `{"sim-00002":true}`) {
		t.Errorf("a batch: %s", got)
	}
	if got := x.low(`[{"client":"local_subset","tgt":"*","fun":"test.ping","sub":2}]`); strings.Count(got[0], "true") != 2 {
		t.Errorf("a subset: %s", got)
	}
	var large struct{ Return []map[string]string }
	if x.ask("POST", "/salt/", asJSON, `[{"client":"local","tgt":"sim-00003","fun":"test.fill","arg":[1048576]}]`, &large); len(large.Return[0]["sim-00003"]) != 1<<20 {
		t.Errorf("a large result has %d bytes", len(large.Return[0]["sim-00003"]))
	}

	// In a form, and in YAML both ways.
	var text string
	x.head.Set("Accept", "application/x-yaml")
	if _, head := x.ask("POST", "/salt/", asForm, "client=local&tgt=sim-00001&fun=test.echo&arg=hello", &text); text != "return:\n    - sim-00001: hello\n" || head.Get("Content-Type") != "application/x-yaml" {
		t.Errorf("a form, answered in YAML: %q", text)
	}
	x.head.Del("Accept")
	if x.ask("POST", "/salt/", "application/x-yaml", "- client: local\n  tgt: sim-00001\n  fun: test.echo\n  arg: [hello]\n", &text); text != `{"return":[{"sim-00001":"hello"}]}`+"\n" {
		t.Errorf("YAML: %q", text)
	}

	// Run needs no session, but for who may do what.
	x.head.Del("X-Auth-Token")
	run := func(user, token string) int {
		status, _ := x.ask("POST", "/salt/run", asJSON, fmt.Sprintf(`[{"client":"local","tgt":"sim-00001","fun":"test.ping","username":%q,"password":%q,"eauth":"pam"}]`, user, token), &text)
		return status
	}
	if got := run("admin", s.Token); got != http.StatusOK || text != `{"return":[{"sim-00001":true}]}`+"\n" {
		t.Errorf("run: %d %s", got, text)
	}
	if err := s.Auth.SetPerson(admin, "vic", "viewer", ""); err != nil {
		t.Fatal(err)
	}
	vic, err := s.Auth.NewToken(admin, "vic", "", nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if got := run("vic", vic.Secret); got != http.StatusForbidden || !strings.Contains(text, `"job_denied"`) {
		t.Errorf("run by a viewer: %d %s", got, text)
	}
	if got := run("admin", vic.Secret); got != http.StatusUnauthorized {
		t.Errorf("run with the token of another: %d %s", got, text)
	}
	if status, _ := x.ask("POST", "/salt/run", asJSON, `[{"client":"local","tgt":"*","fun":"test.ping"}]`, &text); status != http.StatusUnauthorized {
		t.Errorf("run by nobody: %d %s", status, text)
	}
	x.head.Set("X-Auth-Token", vic.Secret)
	for _, lows := range []string{`[{"client":"wheel","fun":"key.delete","match":"*"}]`, `[{"client":"wheel","fun":"key.accept","match":"*"}]`, `[{"client":"local_async","tgt":"*","fun":"test.ping"}]`} {
		if status, _ := x.ask("POST", "/salt/", asJSON, lows, &text); status != http.StatusForbidden {
			t.Errorf("%s by a viewer: %d %s", lows, status, text)
		}
	}
	x.head.Set("X-Auth-Token", s.Token)
	for lows, code := range map[string]string{
		`[{"client":"ssh","tgt":"*","fun":"test.ping"}]`: "client", `[{"client":"runner","fun":"state.orchestrate"}]`: "function", `[{"client":"local","tgt":"*","fun":"ping"}]`: "function", `[]`: "lowstate", `{"client":`: "body",
		`[{"client":"local","tgt":"( a","tgt_type":"compound","fun":"test.ping"}]`: "target_invalid", `[{"client":"runner","fun":"jobs.list_job","jid":"20200101000000000000"}]`: "job_unknown",
	} {
		var p struct{ Code, Return, Detail string }
		if status, _ := x.ask("POST", "/salt/", asJSON, lows, &p); status < 400 || status >= 500 || p.Code != code || p.Return == "" {
			t.Errorf("%s: %d %+v, want %s", lows, status, p, code)
		}
	}

	// A job that is not waited for, and what is told of it, as pepper asks.
	var started struct {
		Return []struct {
			JID     string
			Minions []string
		}
		Links struct{ Jobs []struct{ Href string } } `json:"_links"`
	}
	if status, _ := x.ask("POST", "/salt/minions", asJSON, `[{"tgt":"*","fun":"test.sleep","arg":["0.3"]}]`, &started); status != http.StatusAccepted || len(started.Return) != 1 || len(started.Return[0].Minions) != 4 || started.Links.Jobs[0].Href != "/salt/jobs/"+started.Return[0].JID {
		t.Fatalf("started: %d %+v", status, started)
	}
	jid := started.Return[0].JID
	if got := x.low(`[{"client":"runner","fun":"jobs.active"}]`); !strings.Contains(got[0], `{"`+jid+`":{"Arguments":[0.3],"Function":"test.sleep","Returned":[],"Running":[{"sim-0`) {
		t.Errorf("active: %s", got)
	}
	until(t, "all have returned", func() bool {
		return len(x.low(`[{"client":"runner","fun":"jobs.lookup_jid","kwarg":{"jid":"` + jid + `"}}]`)[0]) == len(ping)
	})
	var job1 struct {
		Info []struct {
			JID, Function, User, StartTime string
			Target                         string
			Type                           string `json:"Target-type"`
			Minions                        []string
			Result                         map[string]struct {
				Return, Success bool
				Retcode         int
			}
		}
		Return []map[string]bool
	}
	x.ask("GET", "/salt/jobs/"+jid, "", "", &job1)
	if i := job1.Info[0]; i.JID != jid || i.Function != "test.sleep" || i.User != "admin" || i.Target != "*" || i.Type != "glob" || len(i.Minions) != 4 || !i.Result["sim-00004"].Success || !job1.Return[0]["sim-00004"] {
		t.Errorf("a job: %+v", job1)
	}
	if _, err := time.Parse("2006, Jan 02 15:04:05.000000", job1.Info[0].StartTime); err != nil {
		t.Error(err)
	}
	var jobs struct {
		Return []map[string]struct{ Function string }
	}
	if x.ask("GET", "/salt/jobs", "", "", &jobs); jobs.Return[0][jid].Function != "test.sleep" || len(jobs.Return[0]) < 5 {
		t.Errorf("jobs: %+v", jobs)
	}
	if got := x.low(`[{"client":"runner","fun":"jobs.last_run","kwarg":{"function":"test.sleep"}},{"client":"runner","fun":"jobs.exit_success","jid":"` + jid + `"}]`); !strings.HasPrefix(got[0], `{"`+jid+`":`) || got[1] != ping {
		t.Errorf("the last run: %s", got)
	}

	// Grains.
	var grains struct{ Return []map[string]map[string]any }
	x.ask("GET", "/salt/minions", "", "", &grains)
	var one struct{ Return []map[string]map[string]any }
	x.ask("GET", "/salt/minions/sim-00002", "", "", &one)
	if len(grains.Return[0]) != 4 || len(one.Return[0]) != 1 || one.Return[0]["sim-00002"]["os"] != "CentOS Stream" || !cmp.Equal(one.Return[0]["sim-00002"], grains.Return[0]["sim-00002"]) {
		t.Errorf("grains: %d hosts, %+v", len(grains.Return[0]), one)
	}

	// Those that are not there are left out, but for who asks for everything.
	last.Close()
	until(t, "one is offline", func() bool { return s.Fleet.Counts()[fleet.Offline] == 1 })
	if got := x.low(`[{"client":"local","tgt":"*","fun":"test.ping"},{"client":"local","tgt":"sim-0000[34]","fun":"test.ping","full_return":true},{"client":"runner","fun":"manage.down"}]`); got[0] != `{"sim-00001":true,"sim-00002":true,"sim-00003":true}` ||
		!strings.Contains(got[1], `"sim-00003":{"jid":"20`) || !strings.Contains(got[1], `"ret":true,"retcode":0,"success":true}`) || !strings.Contains(got[1], `"out":"no_return","ret":"offline","retcode":1,"success":false}`) || got[2] != `["sim-00004"]` {
		t.Errorf("one is offline: %s", got)
	}
	if x.ask("GET", "/salt/minions", "", "", &grains); len(grains.Return) != 1 {
		t.Errorf("grains: %+v", grains)
	}
	if status, _ := x.ask("GET", "/salt/stats", "", "", &text); status != http.StatusOK || !strings.Contains(text, `"offline":1`) {
		t.Errorf("stats: %d %s", status, text)
	}
	if x.ask("POST", "/salt/logout", "", "", &text); !strings.Contains(text, "cleared") {
		t.Errorf("logout: %s", text)
	}
}

func TestScriptsForSaltAPIWaitForNoSecondPerson(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir(), TLS: true})
	simulate(t, s, 1, nil)
	if _, err := s.Jobs.AddRule(asAdmin(t.Context()), job.Rule{Who: "*", Effect: job.FourEye, Target: "*", Fun: "test.*"}); err != nil {
		t.Fatal(err)
	}
	x := newScript(t, s)
	x.head.Set("X-Auth-Token", s.Token)
	var p struct{ Code, Return string }
	if status, _ := x.ask("POST", "/salt/", asJSON, `[{"client":"local","tgt":"*","fun":"test.ping"}]`, &p); status != http.StatusConflict || p.Code != "job_waits" || !strings.Contains(p.Return, "drover job approve") {
		t.Errorf("%d %+v", status, p)
	}
}

// waiting has machines of these names ask to be let in.
func waiting(t *testing.T, s *Server, names ...string) {
	t.Helper()
	ca, err := os.ReadFile(s.CA)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		a, err := agent.New(agent.Config{URL: s.URL, CA: string(ca), Name: name, Version: "1.0", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_ = a.Enrol(ctx) // it waits, for longer than this
		cancel()
	}
	hs, err := s.Fleet.Hosts(asAdmin(t.Context()), fleetwire.Pending, selector.Glob, "")
	if err != nil || len(hs) < len(names) {
		t.Fatalf("%d wait, %v", len(hs), err)
	}
}

func TestKeysBySaltAPI(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir(), TLS: true})
	simulate(t, s, 1, nil)
	waiting(t, s, "web-01", "web-02", "db-01", "old-01")
	x := newScript(t, s)
	x.head.Set("X-Auth-Token", s.Token)
	keys := func() string {
		var text string
		x.ask("GET", "/salt/keys", "", "", &text)
		return text
	}
	if got := keys(); got != `{"return":{"local":[],"minions":["sim-00001"],"minions_denied":[],"minions_pre":["db-01","old-01","web-01","web-02"],"minions_rejected":[]}}`+"\n" {
		t.Errorf("keys: %s", got)
	}
	var w struct {
		Return []struct {
			Tag  string
			Data struct {
				Fun, User string
				Success   bool
				Return    map[string]any
			}
		}
	}
	wheel := func(low string) map[string]any {
		t.Helper()
		w.Return = nil
		if status, _ := x.ask("POST", "/salt/", asJSON, `[{"client":"wheel",`+low+`}]`, &w); status != http.StatusOK || len(w.Return) != 1 || !w.Return[0].Data.Success || !strings.HasPrefix(w.Return[0].Tag, "salt/wheel/") {
			t.Fatalf("%s: %d %+v", low, status, w)
		}
		return w.Return[0].Data.Return
	}
	type m = map[string]any
	for _, c := range []struct {
		low  string
		want m
	}{
		{`"fun":"key.accept","match":"web*"`, m{"minions": []any{"web-01", "web-02"}}},
		{`"fun":"key.accept","match":"web*"`, m{}},
		{`"fun":"key.reject","match":["db-01"]`, m{"minions_rejected": []any{"db-01"}}},
		{`"fun":"key.list","match":"acc"`, m{"minions": []any{"sim-00001", "web-01", "web-02"}}},
		{`"fun":"key.delete","arg":["db-01"]`, m{"local": []any{}, "minions": []any{"sim-00001", "web-01", "web-02"}, "minions_denied": []any{}, "minions_pre": []any{"old-01"}, "minions_rejected": []any{}}},
		{`"fun":"key.delete","match":"web-02"`, m{"local": []any{}, "minions": []any{"sim-00001", "web-01"}, "minions_denied": []any{"web-02"}, "minions_pre": []any{"old-01"}, "minions_rejected": []any{}}},
	} {
		if got := wheel(c.low); !cmp.Equal(got, c.want) {
			t.Errorf("%s: %v", c.low, got)
		}
	}
	var finger struct{ Return map[string]map[string]string }
	x.ask("GET", "/salt/keys/web-01", "", "", &finger)
	if key := finger.Return["minions"]["web-01"]; !strings.HasPrefix(key, "U") || !cmp.Equal(wheel(`"fun":"key.finger","match":"web-01"`), m{"minions": m{"web-01": key}}) {
		t.Errorf("finger: %+v %+v", finger, w)
	}
	if w.Return[0].Data.Fun != "wheel.key.finger" || w.Return[0].Data.User != "admin" {
		t.Errorf("%+v", w)
	}
	var p struct{ Code string }
	if status, _ := x.ask("POST", "/salt/keys", asForm, "mid=x", &p); status != http.StatusBadRequest || p.Code != "key_made" {
		t.Errorf("%d %+v", status, p)
	}

	// The same by the command.
	t.Setenv("DROVER_URL", s.URL)
	t.Setenv("DROVER_CA", s.CA)
	t.Setenv("DROVER_TOKEN", s.Token)
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	for _, c := range []struct {
		line, in, out, err string
		code               int
	}{
		{"salt-key", "", "Accepted Keys:\nsim-00001\nweb-01\nDenied Keys:\nweb-02\nUnaccepted Keys:\nold-01\nRejected Keys:\n", "", 0},
		{"salt-key -l pre", "", "Unaccepted Keys:\nold-01\n", "", 0},
		{"salt-key -l acc --out=json", "", "{\n  \"minions\": [\n    \"sim-00001\",\n    \"web-01\"\n  ]\n}\n", "", 0},
		{"salt-key -a old*", "n\n", "", "Proceed? [n/Y]", 1},
		{"salt-key -a old*", "", "", "Proceed? [n/Y]", 1},
		{"salt-key -a old*", "\n", "Key for minion old-01 accepted.\n", "Unaccepted Keys:\nold-01\n", 0},
		{"salt-key -a old* -y", "", "", "does not match any key", 4},
		{"salt-key -d old-01 -y", "", "Key for minion old-01 deleted.\n", "", 0},
		{"salt-key -f web-01", "", "Accepted Keys:\nweb-01:  " + finger.Return["minions"]["web-01"] + "\n", "", 0},
		{"salt-key --gen-keys=x", "", "", "drover host ticket", 2},
		{"salt sim* test.ping --out=json", "", "{\n    \"sim-00001\": true\n}\n", "", 0},
		{"salt sim-00001 test.echo a=1 -b 50%", "", "sim-00001:\n    ✘ refused by the host: test.echo: there is no argument \"a\" (see `sys.argspec test.echo`)\n", "", 1},
		{"salt -G os:Cent* --preview-target", "", "", "", 0},
		{"salt-run manage.up", "", "", "", 0},
		{"salt-run jobs.list_jobs", "", "", "", 0},
		{"salt -R x test.ping", "", "", "no range server", 2},
	} {
		var out, errw bytes.Buffer
		code := Main(t.Context(), strings.Fields(c.line), strings.NewReader(c.in), &out, &errw)
		if code != c.code || c.out != "" && out.String() != c.out || !strings.Contains(errw.String(), c.err) {
			t.Errorf("%s: %d\n%s\n%s", c.line, code, out.String(), errw.String())
		}
	}
}

func TestHooksAndEventsBySaltAPI(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir(), TLS: true})
	x := newScript(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", s.URL+"/salt/events?salt_token="+url.QueryEscape(s.Token), nil)
	if err != nil {
		t.Fatal(err)
	}
	c := *x.http
	c.Timeout = 0
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	until(t, "somebody listens", s.Jobs.Stream.Wanted)
	if status, _ := x.ask("GET", "/salt/events?token=drv_guess", "", "", nil); status != http.StatusUnauthorized {
		t.Errorf("events with a wrong token: %d", status)
	}
	if status, _ := x.ask("POST", "/salt/hook/deploy", asJSON, `{"a":1}`, nil); status != http.StatusUnauthorized {
		t.Errorf("a hook without a token: %d", status)
	}
	narrow, err := s.Auth.NewToken(asAdmin(t.Context()), "admin", "", []string{"job.hook:deploy/*"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	x.head.Set("X-Auth-Token", narrow.Secret)
	for path, want := range map[string]int{"deploy/web": http.StatusOK, "other": http.StatusForbidden, "deploy/..%2fx": http.StatusForbidden, "deploy/.x": http.StatusBadRequest, "deploy/%3Cb%3E": http.StatusBadRequest} {
		if status, _ := x.ask("POST", "/salt/hook/"+path, asJSON, `{"rev":"abc"}`, nil); status != want {
			t.Errorf("hook %s: %d, want %d", path, status, want)
		}
	}
	if status, _ := x.ask("POST", "/salt/hook/deploy/web", asJSON, `{"x":"`+strings.Repeat("a", 70<<10)+`"}`, nil); status != http.StatusRequestEntityTooLarge {
		t.Errorf("a large hook: %d", status)
	}
	d := make([]byte, 0, 8192)
	buf := make([]byte, 2048)
	for !bytes.Contains(d, []byte("deploy/web")) || !bytes.HasSuffix(d, []byte("\n\n")) {
		n, err := resp.Body.Read(buf)
		if d = append(d, buf[:n]...); err != nil {
			t.Fatalf("%v after %s", err, d)
		}
	}
	var e struct {
		Tag  string
		Data struct {
			Post    map[string]string
			Body    string
			User    string
			Headers map[string]string
		}
	}
	_, line, _ := strings.Cut(string(d), "tag: salt/netapi/hook/deploy/web\ndata: ")
	if err := json.Unmarshal([]byte(line), &e); err != nil || e.Tag != "salt/netapi/hook/deploy/web" || e.Data.Post["rev"] != "abc" || e.Data.Body != `{"rev":"abc"}` || e.Data.User != "admin" || e.Data.Headers["Content-Type"] != asJSON || strings.Contains(string(d), narrow.Secret) {
		t.Errorf("%v: %s", err, d)
	}
}
