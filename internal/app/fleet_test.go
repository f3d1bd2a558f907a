package app

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"drover/internal/agent"
	"drover/internal/agent/module"
	"drover/internal/agent/sim"
	"drover/internal/auth"
	"drover/internal/bus"
	"drover/internal/db/dbtest"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/fleet"
	"drover/internal/fleet/selector"
	fleetwire "drover/internal/fleet/wire"
	"drover/internal/job"
	"drover/internal/job/wire"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// onEach runs fn with a server on each engine.
func onEach(t *testing.T, fn func(t *testing.T, s *Server, admin context.Context)) {
	t.Helper()
	for _, engine := range []string{"sqlite", "postgres"} {
		t.Run(engine, func(t *testing.T) {
			c := Config{Dir: t.TempDir(), TLS: true}
			if engine == "postgres" {
				c.DB = dbtest.PostgresURL(t)
			}
			s, _ := serve(t, c)
			fn(t, s, asAdmin(t.Context()))
		})
	}
}

func asAdmin(ctx context.Context) context.Context {
	return auth.With(ctx, auth.Actor{Kind: auth.Person, Name: "admin", Role: "admin"})
}

// simulate has n hosts join a server.
func simulate(t *testing.T, s *Server, n int, change func(*sim.Config)) *sim.Fleet {
	t.Helper()
	tickets, err := s.Fleet.NewTickets(asAdmin(t.Context()), fleet.Ticket{Host: "sim-*", Count: n})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	c, err := client(s.URL, "", s.CA)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(s.CA)
	if err != nil {
		t.Fatal(err)
	}
	cfg := sim.Config{N: n, First: 1, URL: s.URL, CA: string(ca), Version: "1.0", Packages: 20, HTTP: c.HTTP, Log: slog.New(slog.DiscardHandler), Ticket: func(string) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if len(tickets) == 0 {
			return "", nil
		}
		x := tickets[0]
		tickets = tickets[1:]
		return x, nil
	}}
	if change != nil {
		change(&cfg)
	}
	f, err := sim.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := f.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	return f
}

// finish runs a job to its end.
func finish(ctx context.Context, t *testing.T, s *Server, sp job.Spec) (job.Job, map[string]job.Verdict) {
	t.Helper()
	j, err := s.Jobs.Start(ctx, sp)
	if err != nil {
		t.Fatal(err)
	}
	return wait(ctx, t, s, j)
}

func wait(ctx context.Context, t *testing.T, s *Server, j job.Job) (job.Job, map[string]job.Verdict) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	out := map[string]job.Verdict{}
	err := s.Jobs.Follow(ctx, j.ID, func(vs []job.Verdict, end *job.Job) error {
		for _, v := range vs {
			if _, had := out[v.Host]; had && out[v.Host].State == v.State {
				t.Errorf("the verdict of %s is told twice", v.Host)
			}
			out[v.Host] = v
		}
		if end != nil {
			j = *end
		}
		return nil
	})
	if err != nil {
		t.Fatalf("job %s: %v; so far %d verdicts", j.ID, err, len(out))
	}
	return j, out
}

// until waits for something to become so.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1500 {
		if ok() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("it did not come to be: " + what)
}

func TestHostsJoinTellOfThemselvesAndAnswer(t *testing.T) {
	onEach(t, func(t *testing.T, s *Server, admin context.Context) {
		f := simulate(t, s, 30, nil)
		j, vs := finish(admin, t, s, job.Spec{Target: "*", Fun: "test.ping"})
		if len(vs) != 30 || j.Counts[wire.Answered] != 30 || j.State != job.StateDone {
			t.Fatalf("%d verdicts, %+v", len(vs), j)
		}
		for _, v := range vs {
			if v.State != wire.Answered || string(v.Return) != "true" || v.RC != 0 {
				t.Errorf("%+v", v)
			}
		}
		until(t, "all have reported", func() bool {
			hs, err := s.Fleet.Hosts(admin, fleetwire.Accepted, selector.Glob, "")
			return err == nil && !slices.ContainsFunc(hs, func(h fleet.Host) bool { return h.Reported.IsZero() })
		})
		// Each question in Salt's words and in drover's gives the same hosts.
		for _, c := range []struct {
			form selector.Form
			text string
			want int
		}{
			{selector.Glob, "sim-0000[1-3]", 3}, {selector.PCRE, "sim-0000[1-3]$", 3}, {selector.ListForm, "sim-00001,sim-00002,nobody", 2},
			{selector.Grain, "osfinger:CentOS Stream-9", 20}, {selector.Grain, "os:centos*", 30}, {selector.Grain, "osrelease_info:10", 10}, {selector.Grain, "ip4_interfaces:eth0:10.0.0.*", 30}, {selector.Grain, "cpu_flags:avx2", 30},
			{selector.GrainPCRE, "osrelease:(9|10)", 30}, {selector.Compound, "G@osrelease:10 and not L@sim-00002", 9}, {selector.Compound, "( G@osrelease:9 or G@osrelease:10 ) and E@sim-0000.", 9},
			{selector.Subnet, "10.0.0.0/24", 30}, {selector.Subnet, "10.0.0.6", 1}, {selector.Query, `fact.osrelease == 10`, 10}, {selector.Query, `pkg("bash") and fact.os == "CentOS Stream" and not name == "sim-00001"`, 29},
			{selector.Query, `service("sshd") == "running" and port(22) and online`, 30}, {selector.Query, `pkg("bash") < "0.1-1"`, 0}, {selector.Query, `agent == "1.0"`, 30},
		} {
			got, err := s.Fleet.SelectNames(admin, c.form, c.text)
			if err != nil || len(got) != c.want {
				t.Errorf("%s %q: %d hosts, want %d, %v", c.form, c.text, len(got), c.want, err)
			}
		}
		if _, err := s.Fleet.SelectNames(admin, selector.Query, `fact.os == `); fault.Code(err) != "target_invalid" || !strings.Contains(err.Error(), "column 12") {
			t.Errorf("a target with an error: %v", err)
		}
		// A change comes as a delta and leaves history.
		before, err := s.Fleet.Facts(admin, "sim-00001", fleet.FactFilter{Kind: "package"})
		if err != nil || len(before) != 20 {
			t.Fatalf("%d packages, %v", len(before), err)
		}
		f.Upgrade(0, 3)
		if err := f.Agents[0].Report(t.Context()); err != nil {
			t.Fatal(err)
		}
		after, err := s.Fleet.Facts(admin, "sim-00001", fleet.FactFilter{Kind: "package"})
		if err != nil || len(after) != 20 {
			t.Fatalf("%d packages after the upgrade, %v", len(after), err)
		}
		hist, err := s.Fleet.Facts(admin, "sim-00001", fleet.FactFilter{History: true, Kind: "package"})
		ended := slices.DeleteFunc(slices.Clone(hist), func(x fleet.Fact) bool { return x.Until.IsZero() })
		if err != nil || len(hist) != 23 || len(ended) != 3 {
			t.Errorf("history: %d lines, %d ended, %v", len(hist), len(ended), err)
		}
		old, err := s.Fleet.Facts(admin, "sim-00001", fleet.FactFilter{Kind: "package", At: after[0].Since.UnixMicro() - 1})
		if err != nil || fmt.Sprint(old) == fmt.Sprint(after) {
			t.Errorf("as of before the upgrade: %d packages, %v", len(old), err)
		}
	})
}

func TestEveryHostHasAVerdict(t *testing.T) {
	onEach(t, func(t *testing.T, s *Server, admin context.Context) {
		f := simulate(t, s, 6, nil)
		f.Set(0, true, 0)
		j, vs := finish(admin, t, s, job.Spec{Target: "*", Fun: "sim.work"})
		if vs["sim-00001"].State != wire.Failed || vs["sim-00001"].RC != 1 || j.Failures() != 1 {
			t.Errorf("one that fails: %+v", vs["sim-00001"])
		}
		_, vs = finish(admin, t, s, job.Spec{Target: "sim-00002", Fun: "no.such"})
		if v := vs["sim-00002"]; v.State != wire.Refused || v.Code != "function_unknown" {
			t.Errorf("an unknown function: %+v", v)
		}
		_, vs = finish(admin, t, s, job.Spec{Target: "sim-00002", Fun: "test.echo"})
		if v := vs["sim-00002"]; v.State != wire.Refused || v.Code != "argument" {
			t.Errorf("a missing argument: %+v", v)
		}
		_, vs = finish(admin, t, s, job.Spec{Target: "sim-00002", Fun: "test.sleep", Args: []any{30}, Timeout: 1})
		if v := vs["sim-00002"]; v.State != wire.TimedOut || v.Step != "test.sleep" {
			t.Errorf("one that takes too long: %+v", v)
		}
		_, vs = finish(admin, t, s, job.Spec{Target: "sim-00002", Fun: "sim.work", Test: true})
		if v := vs["sim-00002"]; v.State != wire.Refused || v.Code != "test_unknown" {
			t.Errorf("test mode of a function that has none: %+v", v)
		}
		_, vs = finish(admin, t, s, job.Spec{Target: "sim-00003", Fun: "test.fill", Args: []any{10 << 20}})
		if v := vs["sim-00003"]; v.State != wire.Answered || v.Blob == "" || v.Size != 10<<20+2 || len(v.Return) > 8<<10 {
			t.Errorf("a large result: state %s blob %s size %d inline %d", v.State, v.Blob, v.Size, len(v.Return))
		}
		if _, err := s.Jobs.Start(admin, job.Spec{Target: "nobody*", Fun: "test.ping"}); fault.Code(err) != "target_empty" {
			t.Errorf("a target that matches nothing: %v", err)
		}
		// Stopped within a second, on hosts that are at it.
		j, err := s.Jobs.Start(admin, job.Spec{Target: "*", Fun: "test.sleep", Args: []any{60}, Batch: "3"})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
		began := time.Now()
		if err := s.Jobs.Stop(admin, j.ID, "enough"); err != nil {
			t.Fatal(err)
		}
		j, _ = wait(admin, t, s, j)
		if took := time.Since(began); j.Counts[wire.Stopped] != 3 || j.Counts[wire.Skipped] != 3 || took > 3*time.Second {
			t.Errorf("after %s: %+v", took, j.Counts)
		}
		// Gone: offline since then.
		f.Close()
		until(t, "all are offline", func() bool { return s.Fleet.Counts()[fleet.Offline] == 6 })
		_, vs = finish(admin, t, s, job.Spec{Target: "*", Fun: "test.ping"})
		for _, v := range vs {
			if v.State != wire.Offline || v.Since.IsZero() {
				t.Errorf("of a host that is not there: %+v", v)
			}
		}
	})
}

func TestTicketsLetOneHostInOnce(t *testing.T) {
	onEach(t, func(t *testing.T, s *Server, admin context.Context) {
		enrol := func(name, ticket string, m agent.Machine) error {
			ca, err := os.ReadFile(s.CA)
			if err != nil {
				t.Fatal(err)
			}
			a, err := agent.New(agent.Config{URL: s.URL, CA: string(ca), Name: name, Ticket: ticket, Machine: m, Version: "1.0", Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			return a.Enrol(ctx)
		}
		ticket := func(x fleet.Ticket) string {
			ts, err := s.Fleet.NewTickets(admin, x)
			if err != nil {
				t.Fatal(err)
			}
			return ts[0]
		}
		mac := agent.Machine{MACs: []string{"52:54:00:AA:BB:CC"}, Serial: "S1"}
		once := ticket(fleet.Ticket{Host: "web-*", Labels: map[string]string{"role": "web"}})
		bound := ticket(fleet.Ticket{Host: "db-01", MAC: "52:54:00:aa:bb:cc", Serial: "S1"})
		for _, c := range []struct {
			what, name, ticket string
			m                  agent.Machine
			want               string
		}{
			{"a host that the ticket is not for", "db-09", once, mac, "ticket_bad"},
			{"the right host", "web-01", once, mac, ""},
			{"the same ticket twice", "web-02", once, mac, "ticket_bad"},
			{"a guess", "web-02", "dre_guess", mac, "ticket_bad"},
			{"another MAC", "db-01", bound, agent.Machine{MACs: []string{"52:54:00:00:00:01"}, Serial: "S1"}, "ticket_bad"},
			{"another serial number", "db-01", bound, agent.Machine{MACs: mac.MACs, Serial: "S2"}, "ticket_bad"},
			{"the machine it is bound to", "db-01", bound, mac, ""},
			{"no ticket: waits", "cache-01", "", mac, "canceled"},
			{"a name that is none", "../etc", "", mac, "host_name"},
			{"installed anew", "web-01", ticket(fleet.Ticket{Host: "web-01"}), mac, ""},
		} {
			if got := fault.Code(enrol(c.name, c.ticket, c.m)); got != c.want && (c.want != "canceled" || !strings.Contains(got, "cancel")) {
				t.Errorf("%s: %q, want %q", c.what, got, c.want)
			}
		}
		h, err := s.Fleet.Host(admin, "web-01")
		if err != nil || h.State != fleetwire.Accepted || h.ID == "h1" {
			t.Errorf("the new machine has not taken the old one's place: %+v, %v", h, err)
		}
		if first, err := s.Fleet.Host(admin, "h1"); err != nil || first.State != fleetwire.Revoked {
			t.Errorf("the old machine: %+v, %v", first, err)
		}
		ps, err := s.Fleet.Hosts(admin, fleetwire.Pending, selector.Glob, "")
		if err != nil || len(ps) != 1 || ps[0].Name != "cache-01" {
			t.Fatalf("waiting: %+v, %v", ps, err)
		}
		if err := s.Fleet.Accept(admin, "cache-01"); err != nil {
			t.Error(err)
		}
		if err := s.Fleet.Accept(admin, "cache-01"); fault.Code(err) != "host_not_waiting" {
			t.Errorf("accepted twice: %v", err)
		}
	})
}

func TestRevokedHostsAreCutOffAtOnce(t *testing.T) {
	onEach(t, func(t *testing.T, s *Server, admin context.Context) {
		f := simulate(t, s, 3, nil)
		began := time.Now()
		if err := s.Fleet.Remove(admin, "sim-00002", "stolen"); err != nil {
			t.Fatal(err)
		}
		until(t, "it is cut off", func() bool { return !f.Agents[1].Connected() })
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("cut off after %s", took)
		}
		time.Sleep(300 * time.Millisecond)
		if f.Agents[1].Connected() {
			t.Error("it came back")
		}
		if _, vs := finish(admin, t, s, job.Spec{Target: "*", Fun: "test.ping"}); len(vs) != 2 {
			t.Errorf("jobs go to %d hosts", len(vs))
		}
		if err := f.Agents[1].Enrol(t.Context()); fault.Code(err) != "host_revoked" {
			t.Errorf("it enrols again: %v", err)
		}
		if err := f.Agents[1].Report(t.Context()); fault.Code(err) != "token_bad" {
			t.Errorf("it reports: %v", err)
		}
	})
}

// Yesterday's command, another host's, another process's, one that is not signed, one that was
// changed: none of them runs.
func TestCommandsThatAreNotForThisHostNowAreRefused(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir(), TLS: true})
	admin := asAdmin(t.Context())
	f := simulate(t, s, 2, nil)
	finish(admin, t, s, job.Spec{Target: "*", Fun: "test.ping"})
	m := s.Fleet.Members(all(admin, t, s))
	now := time.Now().UnixMicro()
	good := wire.Command{Job: "20261128101010000001", Host: m[0].Word, Instance: m[0].Instance, Fun: "sim.work", Issued: now, Expires: now + 60e6, Timeout: 10}
	_, foreign, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	send := func(key ed25519.PrivateKey, purpose string, c wire.Command, change func([]byte) []byte) {
		b, err := fleetwire.Seal(key, purpose, c)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			b = change(b)
		}
		if err := s.Fleet.Say(m[0].Word, "run", b); err != nil {
			t.Fatal(err)
		}
	}
	with := func(fn func(*wire.Command)) wire.Command {
		c := good
		c.Job = fmt.Sprintf("202611281010100%05d", rand.IntN(90000)+2)
		fn(&c)
		return c
	}
	send(foreign, fleetwire.ForCommand, good, nil)
	send(s.Fleet.Key(), fleetwire.ForStop, good, nil)
	send(s.Fleet.Key(), fleetwire.ForCommand, with(func(c *wire.Command) { c.Host = m[1].Word }), nil)
	send(s.Fleet.Key(), fleetwire.ForCommand, with(func(c *wire.Command) { c.Instance = "another" }), nil)
	send(s.Fleet.Key(), fleetwire.ForCommand, with(func(c *wire.Command) { c.Issued, c.Expires = now-86400e6, now-86300e6 }), nil)
	send(s.Fleet.Key(), fleetwire.ForCommand, with(func(c *wire.Command) { c.Issued, c.Expires = now+7200e6, now+7260e6 }), nil)
	send(s.Fleet.Key(), fleetwire.ForCommand, good, func(b []byte) []byte { return bytes.Replace(b, []byte(`"sim.work"`), []byte(`"cmd.runn"`), 1) })
	send(s.Fleet.Key(), fleetwire.ForCommand, good, func(b []byte) []byte { return b[:40] })
	time.Sleep(300 * time.Millisecond)
	if n := f.Ran(0); n != 0 {
		t.Fatalf("%d of them ran", n)
	}
	send(s.Fleet.Key(), fleetwire.ForCommand, good, nil)
	until(t, "the good one ran", func() bool { return f.Ran(0) == 1 })
	for range 3 {
		send(s.Fleet.Key(), fleetwire.ForCommand, good, nil)
	}
	time.Sleep(200 * time.Millisecond)
	if n := f.Ran(0); n != 1 {
		t.Errorf("replayed, it ran %d times", n)
	}
}

func all(ctx context.Context, t *testing.T, s *Server) selector.Set {
	t.Helper()
	set, err := s.Fleet.Select(ctx, selector.Glob, "*")
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// A host's user on the bus can say and hear what is its own, and nothing else.
func TestAgentsKeepToTheirSubjects(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir(), TLS: true})
	admin := asAdmin(t.Context())
	simulate(t, s, 1, nil)
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	ts, err := s.Fleet.NewTickets(admin, fleet.Ticket{})
	if err != nil {
		t.Fatal(err)
	}
	e := fleetwire.Enrol{Name: "evil", Key: pub, Ticket: ts[0], Cap: 1, Nonce: strings.Repeat("n", 16)}
	if e.Sig, err = pair.Sign(e.Signed()); err != nil {
		t.Fatal(err)
	}
	b, err := s.Fleet.Enrol(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	var ad fleetwire.Admission
	if err := fleetwire.Open(s.Fleet.Public(), fleetwire.ForEnrol, b, &ad); err != nil {
		t.Fatal(err)
	}
	denied := make(chan string, 20)
	c, err := nats.Connect(ad.Bus[0], nats.RootCAs(s.CA), nats.UserJWT(func() (string, error) { return ad.JWT, nil }, pair.Sign), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { denied <- err.Error() }))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	victim := s.Fleet.Members(all(admin, t, s))
	other := victim[slices.IndexFunc(victim, func(m fleet.Member) bool { return m.Name != "evil" })]
	heard := make(chan string, 10)
	for _, sub := range []string{"to." + other.Word + ".>", "from.>", ">", "$SYS.>", "_INBOX.>"} {
		if _, err := c.Subscribe(sub, func(m *nats.Msg) { heard <- m.Subject }); err != nil {
			t.Fatal(err)
		}
	}
	j, err := s.Jobs.Start(admin, job.Spec{Target: other.Name, Fun: "test.sleep", Args: []any{0.3}})
	if err != nil {
		t.Fatal(err)
	}
	forged, err := json.Marshal(wire.Result{Job: j.ID, State: wire.Answered, Return: json.RawMessage(`"forged"`)})
	if err != nil {
		t.Fatal(err)
	}
	for _, subj := range []string{"from." + other.Word + ".run", "to." + other.Word + ".run", "to." + other.Word + ".welcome", "$SYS.REQ.SERVER.PING"} {
		if err := c.Publish(subj, forged); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Publish("from."+ad.ID+".run", forged); err != nil { // its own subject, somebody else's job
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	_, vs := wait(admin, t, s, j)
	if v := vs[other.Name]; string(v.Return) != "true" || len(vs) != 1 {
		t.Errorf("the job has the verdicts %+v", vs)
	}
	if len(heard) > 0 {
		t.Errorf("it heard %s", <-heard)
	}
	if len(denied) < 8 {
		t.Errorf("only %d refusals", len(denied))
	}
}

// Two machines with one key: the first stays, the second gets nothing to do, and it is told.
func TestAClonedMachineIsRefused(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir(), TLS: true})
	admin := asAdmin(t.Context())
	dir := t.TempDir()
	simulate(t, s, 1, func(c *sim.Config) { c.Dir = dir })
	clone := t.TempDir()
	if err := os.CopyFS(filepath.Join(clone, "sim-00001"), os.DirFS(filepath.Join(dir, "sim-00001"))); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(s.CA)
	if err != nil {
		t.Fatal(err)
	}
	second, err := sim.Start(t.Context(), sim.Config{N: 1, First: 1, Dir: clone, URL: s.URL, CA: string(ca), Version: "1.0", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	until(t, "the clone is noticed", func() bool {
		h, err := s.Fleet.Host(admin, "sim-00001")
		return err == nil && h.Clone != ""
	})
	for range 5 {
		if _, vs := finish(admin, t, s, job.Spec{Target: "*", Fun: "sim.work"}); vs["sim-00001"].State != wire.Answered {
			t.Errorf("%+v", vs)
		}
	}
	if n := second.Ran(0); n != 0 {
		t.Errorf("the clone ran %d commands", n)
	}
	if second.Connected() != 0 {
		t.Error("the clone was welcomed")
	}
}

// What hosts do while the server is away reaches it, once, and jobs end.
func TestJobsSurviveARestartOfTheServer(t *testing.T) {
	onEach(t, func(t *testing.T, _ *Server, _ context.Context) {
		c := Config{Dir: t.TempDir(), TLS: true, NoBuilder: true, NoSigner: true, Listen: "127.0.0.1:0"}
		if strings.HasSuffix(t.Name(), "postgres") {
			c.DB = dbtest.PostgresURL(t)
		}
		start := func() (*Server, func()) {
			s, err := NewServer(t.Context(), c, "test", slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- s.Run(ctx) }()
			return s, func() {
				stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				s.Close()
			}
		}
		s, stop := start()
		c.Listen, c.BusListen = s.listener.Addr().String(), s.Fleet.BusAddr()
		f := simulate(t, s, 12, nil)
		admin := asAdmin(t.Context())
		j, err := s.Jobs.Start(admin, job.Spec{Target: "*", Fun: "sim.work", Args: []any{300}, Batch: "4"})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(350 * time.Millisecond)
		stop()
		f.Most()
		time.Sleep(500 * time.Millisecond)
		s, stop = start()
		defer stop()
		j, vs := wait(admin, t, s, j)
		if len(vs) != 12 || j.Counts[wire.Answered] != 12 {
			t.Errorf("%d verdicts, %+v", len(vs), j.Counts)
		}
		for i := range f.Agents {
			if n := f.Ran(i); n != 1 {
				t.Errorf("host %d ran it %d times", i, n)
			}
		}
		if n := f.Most(); n > 4 {
			t.Errorf("%d hosts were at it at once, 4 are allowed", n)
		}
	})
}

func TestRules(t *testing.T) {
	onEach(t, func(t *testing.T, s *Server, admin context.Context) {
		simulate(t, s, 4, nil)
		alice := auth.With(t.Context(), auth.Actor{Kind: auth.Person, Name: "alice", Role: "viewer"})
		bob := auth.With(t.Context(), auth.Actor{Kind: auth.Person, Name: "bob", Role: "operator"})
		run := func(ctx context.Context, target, fun string, args ...any) string {
			_, err := s.Jobs.Start(ctx, job.Spec{Target: target, Fun: fun, Args: args})
			return fault.Code(err)
		}
		want := func(what, got, code string) {
			t.Helper()
			if got != code {
				t.Errorf("%s: %q, want %q", what, got, code)
			}
		}
		want("nobody", run(t.Context(), "*", "test.ping"), "token_needed")
		want("a viewer", run(alice, "*", "test.ping"), "job_denied")
		if _, err := s.Jobs.AddRule(admin, job.Rule{Who: "alice", Effect: job.Allow, Target: "sim-0000[12]", Fun: "test.*"}); err != nil {
			t.Fatal(err)
		}
		want("within the rule", run(alice, "sim-00001", "test.ping"), "")
		want("half of it", run(alice, "sim-0000[123]", "test.ping"), "job_denied")
		want("another function", run(alice, "sim-00001", "cmd.run", "id"), "job_denied")
		if _, err := s.Jobs.AddRule(admin, job.Rule{Who: "*", Effect: job.Deny, Target: "sim-00004", Fun: "cmd.*", Args: `rm -rf`}); err != nil {
			t.Fatal(err)
		}
		want("denied by its argument, for admins too", run(admin, "*", "cmd.run", "rm -rf /"), "job_denied")
		want("on other hosts", run(admin, "sim-00001", "cmd.run", "rm -rf /"), "")
		want("with other arguments", run(admin, "*", "cmd.run", "uptime"), "")
		if _, err := s.Jobs.AddRule(admin, job.Rule{Who: "*", Effect: job.FourEye, Target: "*", Fun: "test.sleep"}); err != nil {
			t.Fatal(err)
		}
		j, err := s.Jobs.Start(bob, job.Spec{Target: "*", Fun: "test.sleep", Args: []any{0.01}})
		if err != nil || j.State != job.StateApproval {
			t.Fatalf("%+v, %v", j, err)
		}
		want("its author approves", fault.Code(s.Jobs.Approve(bob, j.ID)), "job_own")
		want("a viewer approves", fault.Code(s.Jobs.Approve(alice, j.ID)), "denied")
		want("an admin approves", fault.Code(s.Jobs.Approve(admin, j.ID)), "")
		want("twice", fault.Code(s.Jobs.Approve(admin, j.ID)), "job_decided")
		if j, _ = wait(admin, t, s, j); j.Counts[wire.Answered] != 4 {
			t.Errorf("after the approval: %+v", j)
		}
		if _, err := event.Verify(admin, s.DB, nil); err != nil {
			t.Error(err)
		}
	})
}

// Agents whose host says no are not overruled.
func TestPolicyOfTheHost(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir(), TLS: true})
	admin := asAdmin(t.Context())
	ts, err := s.Fleet.NewTickets(admin, fleet.Ticket{})
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(s.CA)
	if err != nil {
		t.Fatal(err)
	}
	policy := agent.Policy{Forbid: []string{"cmd.*"}}
	ran := 0
	reg := module.NewRegistry([]module.Function{
		{Name: "test.ping", Reads: true, Run: func(context.Context, *module.Call) (any, error) { return true, nil }},
		{Name: "cmd.run", Run: func(context.Context, *module.Call) (any, error) { ran++; return nil, nil }, Extra: true, Rest: true},
		{Name: "file.touch", Run: func(context.Context, *module.Call) (any, error) { return true, nil }},
		{Name: "bad.panic", Run: func(context.Context, *module.Call) (any, error) { panic("oh") }},
	})
	var mu sync.Mutex
	a, err := agent.New(agent.Config{URL: s.URL, CA: string(ca), Name: "strict", Ticket: ts[0], Version: "1.0", Log: slog.New(slog.DiscardHandler), Registry: reg, Policy: func() agent.Policy { mu.Lock(); defer mu.Unlock(); return policy }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = a.Run(ctx) })
	defer wg.Wait()
	defer stop()
	until(t, "it is connected", a.Connected)
	code := func(fun string) string {
		_, vs := finish(admin, t, s, job.Spec{Target: "strict", Fun: fun})
		return vs["strict"].State + " " + vs["strict"].Code
	}
	for fun, want := range map[string]string{"cmd.run": "refused policy_forbidden", "test.ping": "answered ", "bad.panic": "failed function_panic"} {
		if got := code(fun); got != want {
			t.Errorf("%s: %s, want %s", fun, got, want)
		}
	}
	mu.Lock()
	policy = agent.Policy{Blackout: true}
	mu.Unlock()
	for fun, want := range map[string]string{"file.touch": "refused policy_blackout", "test.ping": "answered "} {
		if got := code(fun); got != want {
			t.Errorf("in the blackout, %s: %s, want %s", fun, got, want)
		}
	}
	if ran != 0 {
		t.Error("a forbidden function ran")
	}
}

// A host that dies while it is at it is offline since then; when it comes back it tells what became
// of the command, and does not run it again.
func TestAHostThatDiesMidJob(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir(), TLS: true})
	admin := asAdmin(t.Context())
	dir := t.TempDir()
	f := simulate(t, s, 1, func(c *sim.Config) { c.Dir = dir })
	j, err := s.Jobs.Start(admin, job.Spec{Target: "*", Fun: "test.sleep", Args: []any{0.7}})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	entries, err := filepath.Glob(filepath.Join(dir, "sim-00001", "jobs", "*.json"))
	if err != nil || len(entries) != 1 {
		t.Fatalf("the command is not written down: %v, %v", entries, err)
	}
	began, err := os.ReadFile(entries[0]) // as it is when power fails now
	if err != nil {
		t.Fatal(err)
	}
	_ = f // the process goes on; what a dead one would have left is put back below
	f.Close()
	if err := os.WriteFile(entries[0], began, 0o600); err != nil {
		t.Fatal(err)
	}
	_, vs := wait(admin, t, s, j)
	if v := vs["sim-00001"]; v.State != wire.Offline && v.State != wire.Answered {
		t.Errorf("%+v", v)
	}
	again := simulate(t, s, 1, func(c *sim.Config) { c.Dir = dir; c.Ticket = nil })
	if vs["sim-00001"].State == wire.Offline {
		until(t, "it tells what became of it", func() bool {
			vs, err := s.Jobs.Verdicts(admin, j.ID)
			return err == nil && len(vs) == 1 && vs[0].Code == "agent_ended"
		})
	}
	if again.Ran(0) != 0 {
		t.Error("it ran again")
	}
}

func TestStreamHasSaltsTags(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir(), TLS: true})
	admin := asAdmin(t.Context())
	sub := s.Jobs.Stream.Subscribe("salt/*")
	defer sub.Close()
	simulate(t, s, 2, nil)
	j, _ := finish(admin, t, s, job.Spec{Target: "*", Fun: "test.ping"})
	want := map[string]bool{"salt/minion/sim-00001/start": false, "salt/minion/sim-00002/start": false, "salt/job/" + j.ID + "/new": false, "salt/job/" + j.ID + "/ret/sim-00001": false, "salt/job/" + j.ID + "/ret/sim-00002": false}
	until(t, "all tags are there", func() bool {
		for {
			select {
			case e := <-sub.C:
				if _, ok := want[e.Tag]; ok {
					want[e.Tag] = true
				}
				continue
			default:
			}
			break
		}
		for _, seen := range want {
			if !seen {
				return false
			}
		}
		return true
	})
}

// Batches: never more at it than allowed, whatever fails, is slow or goes; failhard and stop end it.
func TestBatchesUnderFaults(t *testing.T) {
	rounds := 25
	if os.Getenv("DROVER_LONG") != "" {
		rounds = 1000
	}
	s, _ := serve(t, Config{Dir: t.TempDir(), TLS: true})
	admin := asAdmin(t.Context())
	const n = 80 // more than are dealt with one by one
	f := simulate(t, s, n, nil)
	for round := range rounds {
		rng := rand.New(rand.NewPCG(uint64(round), 7))
		fails := 0
		for i := range n {
			bad := rng.IntN(12) == 0
			if bad {
				fails++
			}
			f.Set(i, bad, time.Duration(rng.IntN(3)*rng.IntN(8))*time.Millisecond)
		}
		f.Most()
		size := 1 + rng.IntN(n+2)
		sp := job.Spec{Target: "*", Fun: "sim.work", Args: []any{rng.IntN(6)}, Batch: fmt.Sprint(size), FailHard: rng.IntN(2) == 0, BatchWait: float64(rng.IntN(2)*rng.IntN(20)) / 1000}
		if rng.IntN(4) == 0 {
			percent := 1 + rng.IntN(100)
			sp.Batch, size = fmt.Sprintf("%d%%", percent), max(1, percent*n/100)
		}
		j, err := s.Jobs.Start(admin, sp)
		if err != nil {
			t.Fatal(err)
		}
		stopped := time.Time{}
		if rng.IntN(4) == 0 {
			time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
			stopped = time.Now()
			if err := s.Jobs.Stop(admin, j.ID, "round"); err != nil {
				t.Fatal(err)
			}
		}
		j, vs := wait(admin, t, s, j)
		if !stopped.IsZero() && time.Since(stopped) > time.Second {
			t.Errorf("round %d: it went on for %s after the stop", round, time.Since(stopped))
		}
		if most := f.Most(); most > int64(size) {
			t.Errorf("round %d: %d at it at once, %d are allowed", round, most, size)
		}
		if len(vs) != n {
			t.Errorf("round %d: %d verdicts", round, len(vs))
		}
		sum := 0
		for _, c := range j.Counts {
			sum += c
		}
		if sum != n {
			t.Errorf("round %d: %+v", round, j.Counts)
		}
		switch {
		case sp.FailHard && fails > 0 && size == 1 && stopped.IsZero() && j.Counts[wire.Failed] != 1:
			t.Errorf("round %d: failhard, one at a time, and %d failed: %+v", round, j.Counts[wire.Failed], j.Counts)
		case !sp.FailHard && stopped.IsZero() && (j.Counts[wire.Failed] != fails || j.Counts[wire.Answered] != n-fails):
			t.Errorf("round %d: %d should fail: %+v", round, fails, j.Counts)
		}
	}
}

func TestFollowOverHTTP(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir(), TLS: true})
	simulate(t, s, 5, nil)
	c, err := client(s.URL, s.Token, s.CA)
	if err != nil {
		t.Fatal(err)
	}
	var j job.Job
	if err := c.Call(t.Context(), "POST", "/api/v1/jobs", job.Spec{Target: "*", Fun: "sim.work"}, &j); err != nil {
		t.Fatal(err)
	}
	for _, accept := range []string{"application/x-ndjson", "text/event-stream"} {
		resp, err := c.Do(t.Context(), "GET", "/api/v1/jobs/"+j.ID+"/follow", http.Header{"Accept": {accept}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		_, err = b.ReadFrom(resp.Body)
		resp.Body.Close()
		if err != nil || strings.Count(b.String(), `"host":"sim-`) != 5 || !strings.Contains(b.String(), `"state":"done"`) || resp.Header.Get("Content-Type") != accept {
			t.Errorf("%s: %s, %v", accept, b.String(), err)
		}
	}
}

// Agents at a site reach the server by way of the site's bus alone.
func TestAgentsAtASite(t *testing.T) {
	dir := t.TempDir()
	s, _ := serve(t, Config{Dir: dir, TLS: true, BusLeafListen: "127.0.0.1:0"})
	admin := asAdmin(t.Context())
	key, err := bus.NewLeaf(filepath.Join(dir, "bus"), "fra")
	if err != nil {
		t.Fatal(err)
	}
	pool, err := trusted(s.CA)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := bus.OpenLeaf(bus.LeafConfig{Dir: t.TempDir(), Key: key, Hub: "tls://" + s.Fleet.LeafAddr(), HubTLS: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer leaf.Close()
	f := simulate(t, s, 4, func(c *sim.Config) { c.Bus = []string{"nats://" + leaf.Addr()} })
	if j, _ := finish(admin, t, s, job.Spec{Target: "*", Fun: "sim.work"}); j.Counts[wire.Answered] != 4 {
		t.Errorf("%+v", j)
	}
	if err := s.Fleet.Remove(admin, "sim-00001", "stolen"); err != nil {
		t.Fatal(err)
	}
	until(t, "it is cut off at the site", func() bool { return !f.Agents[0].Connected() })
	leaf.Close()
	until(t, "the others are gone with the site", func() bool { return f.Connected() == 0 })
}

// A host whose clock is off by hours works, in both directions, and its page says so.
func TestAClockThatIsOffByHours(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir(), TLS: true})
	admin := asAdmin(t.Context())
	for name, off := range map[string]time.Duration{"slow": -7 * time.Hour, "fast": 9 * time.Hour, "ancient": -30 * 365 * 24 * time.Hour} {
		ts, err := s.Fleet.NewTickets(admin, fleet.Ticket{Host: name})
		if err != nil {
			t.Fatal(err)
		}
		a, err := agent.New(agent.Config{URL: s.URL, Pin: fleetwire.Pin(s.Fleet.Public()), Name: name, Ticket: ts[0], Version: "1.0", Log: slog.New(slog.DiscardHandler), Policy: func() agent.Policy { return agent.Policy{} },
			Registry: module.NewRegistry([]module.Function{{Name: "test.ping", Run: func(context.Context, *module.Call) (any, error) { return true, nil }}}), Now: func() time.Time { return time.Now().Add(off) }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = a.Run(ctx) })
		until(t, name+" is connected", a.Connected)
		if _, vs := finish(admin, t, s, job.Spec{Target: name, Fun: "test.ping"}); vs[name].State != wire.Answered {
			t.Errorf("%+v", vs)
		}
		if h, err := s.Fleet.Host(admin, name); err != nil || h.Skew == "" || strings.HasPrefix(h.Skew, "-") != (off < 0) {
			t.Errorf("%s: its clock is said to be off by %q, %v", name, h.Skew, err)
		}
		stop()
		wg.Wait()
	}
}

// What an agent pins is what it gets: another server with the same address is not believed.
func TestAnotherServerIsNotBelieved(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir(), TLS: true})
	ca, err := os.ReadFile(s.CA)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]agent.Config{
		"pin_mismatch":   {Pin: "SHA256:another"},
		"server_unknown": {},
		"host_name":      {CA: string(ca), Name: "BAD NAME"},
	} {
		c.URL, c.Version, c.Log = s.URL, "1.0", slog.New(slog.DiscardHandler)
		if c.Name == "" {
			c.Name = "web-01"
		}
		a, err := agent.New(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Enrol(t.Context()); fault.Code(err) != what {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Agents that are older than the server can be talked to, down to a limit; newer ones speak as it does.
	for capability, want := range map[int]string{0: "agent_old", fleetwire.Oldest: "", 99: ""} {
		_, err := s.Fleet.Enrol(t.Context(), enrolment(t, fmt.Sprintf("cap-%d", capability), "", func(e *fleetwire.Enrol) { e.Cap = capability }))
		if fault.Code(err) != want {
			t.Errorf("capability %d: %v", capability, err)
		}
	}
}
