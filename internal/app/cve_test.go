package app

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"drover/internal/auth"
	"drover/internal/fault"
	"drover/internal/fleet"
	fleetwire "drover/internal/fleet/wire"
	"drover/internal/job"
	"drover/internal/job/wire"
	"drover/internal/web"

	"github.com/nats-io/nkeys"
)

// enrolment makes the request of a new key.
func enrolment(t *testing.T, name, ticket string, change ...func(*fleetwire.Enrol)) fleetwire.Enrol {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	var n [16]byte
	_, _ = rand.Read(n[:]) // never fails, crypto/rand
	e := fleetwire.Enrol{Name: name, Key: pub, Ticket: ticket, Cap: fleetwire.Capability, Nonce: hex.EncodeToString(n[:])}
	for _, fn := range change {
		fn(&e)
	}
	if e.Sig, err = pair.Sign(e.Signed()); err != nil {
		t.Fatal(err)
	}
	return e
}

// Each class of holes that Salt has had, tried here. Where another test does it, it is named.
//
//	CVE-2020-11651  anybody calls the master's methods: e2e TestAttacks, TestRules
//	CVE-2020-11652  paths that leave their directory: e2e TestAttacks, below
//	CVE-2020-16846  arguments reach a shell of the API's: below
//	CVE-2022-22934  what a minion gets is not signed: TestCommandsThatAreNotForThisHostNowAreRefused
//	CVE-2022-22935  strangers keep others from being let in: below
//	CVE-2022-22936  old jobs are replayed: TestCommandsThatAreNotForThisHostNowAreRefused
//	CVE-2022-22967  a locked person goes on: below
//	CVE-2016-9639   a new minion with an old name reads what was the old one's: below
func TestSaltsHolesAreNotHere(t *testing.T) {
	onEach(t, func(t *testing.T, s *Server, admin context.Context) {
		simulate(t, s, 2, nil)
		t.Run("CVE-2020-11652", func(t *testing.T) {
			for _, name := range []string{"../../etc/passwd", "a/../b", "..", "a\x00b", "-x", "h17", "A", strings.Repeat("a", 300)} {
				if _, err := s.Fleet.Enrol(t.Context(), enrolment(t, name, "")); fault.Code(err) != "host_name" {
					t.Errorf("a host named %.40q: %v", name, err)
				}
			}
			c, err := client(s.URL, s.Token, s.CA)
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{"/api/v1/jobs/..%2f..%2fetc%2fpasswd/output/x", "/api/v1/jobs/20261128101010000001/output/..%2f..%2fetc%2fpasswd", "/api/v1/agent/results/..%2f..%2fx"} {
				method := "GET"
				if strings.Contains(path, "results") {
					method = "PUT"
				}
				if err := c.Call(t.Context(), method, path, nil, nil); err == nil {
					t.Errorf("%s is answered", path)
				}
			}
		})
		t.Run("CVE-2020-16846", func(t *testing.T) {
			// Whatever is in arguments comes to the function as it is; the server runs nothing of it.
			evil := "$(touch /tmp/drover-was-here); `id` | cat ' \" \n\x00"
			_, vs := finish(admin, t, s, job.Spec{Target: "sim-00001", Fun: "test.echo", Args: []any{evil}})
			var got string
			if err := json.Unmarshal(vs["sim-00001"].Return, &got); err != nil || got != evil {
				t.Errorf("%q came back as %q, %v", evil, got, err)
			}
			for _, sp := range []job.Spec{{Target: "$(id)", Fun: "test.ping"}, {Target: "*", Fun: "test.ping; id"}, {Target: "*", Fun: "../x.y"}} {
				if _, err := s.Jobs.Start(admin, sp); err == nil {
					t.Errorf("%+v is started", sp)
				}
			}
		})
		t.Run("CVE-2022-22935", func(t *testing.T) {
			// Strangers fill the list of those that wait; hosts with tickets come in all the same.
			full := 0
			for i := range 2100 {
				_, err := s.Fleet.Enrol(t.Context(), enrolment(t, "stranger-"+strings.Repeat("x", i%7)+"-"+hex.EncodeToString([]byte{byte(i >> 8), byte(i)}), ""))
				switch fault.Code(err) {
				case "":
				case "enrol_full":
					full++
				default:
					t.Fatal(err)
				}
			}
			if full == 0 {
				t.Error("strangers may wait without end")
			}
			ts, err := s.Fleet.NewTickets(admin, fleet.Ticket{Host: "good-01"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Fleet.Enrol(t.Context(), enrolment(t, "good-01", ts[0])); err != nil {
				t.Errorf("a host with a ticket: %v", err)
			}
			// An answer that is not the server's, or is to another request, counts for nothing.
			e := enrolment(t, "good-02", "")
			e.Name = "good-03" // changed on the way
			if _, err := s.Fleet.Enrol(t.Context(), e); fault.Code(err) != "enrol_key" {
				t.Errorf("a request that was changed on the way: %v", err)
			}
		})
		t.Run("CVE-2022-22967", func(t *testing.T) {
			if err := s.Auth.SetPerson(admin, "mallory", "operator", ""); err != nil {
				t.Fatal(err)
			}
			tok, err := s.Auth.NewToken(admin, "mallory", "", nil, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			c, err := client(s.URL, tok.Secret, s.CA)
			if err != nil {
				t.Fatal(err)
			}
			ping := func(c *web.Client) error {
				return c.Call(t.Context(), "POST", "/api/v1/jobs", job.Spec{Target: "*", Fun: "test.ping"}, nil)
			}
			if err := ping(c); err != nil {
				t.Fatal(err)
			}
			mallory := auth.With(t.Context(), auth.Actor{Kind: auth.Person, Name: "mallory", Role: "operator"})
			if err := s.Jobs.SetReaction(mallory, job.Reaction{Name: "late", Tag: "site/late", Job: &job.Spec{Target: "sim-00001", Fun: "sim.work"}}); err != nil {
				t.Fatal(err)
			}
			if err := s.Auth.SetPerson(admin, "mallory", "", ""); err != nil {
				t.Fatal(err)
			}
			if err := ping(c); fault.Code(err) != "token_bad" {
				t.Errorf("a disabled person runs a job: %v", err)
			}
			until(t, "what runs in the name of a disabled person does not", func() bool {
				s.Jobs.Stream.FromHost("sim-00001", fleetwire.Event{Tag: "site/late", Data: json.RawMessage(`{}`)})
				ls, err := s.Jobs.Letters(admin, "dead", 5)
				return err == nil && len(ls) > 0
			})
		})
		t.Run("CVE-2016-9639", func(t *testing.T) {
			until(t, "the old machine has reported", func() bool {
				fs, err := s.Fleet.Facts(admin, "sim-00002", fleet.FactFilter{Kind: "fact"})
				return err == nil && len(fs) > 0
			})
			old, err := s.Fleet.Host(admin, "sim-00002")
			if err != nil {
				t.Fatal(err)
			}
			j, err := s.Jobs.Start(admin, job.Spec{Target: "sim-00002", Fun: "test.sleep", Args: []any{1}})
			if err != nil {
				t.Fatal(err)
			}
			ts, err := s.Fleet.NewTickets(admin, fleet.Ticket{Host: "sim-00002"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Fleet.Enrol(t.Context(), enrolment(t, "sim-00002", ts[0])); err != nil {
				t.Fatal(err)
			}
			fs, err := s.Fleet.Facts(admin, "sim-00002", fleet.FactFilter{})
			if err != nil || len(fs) != 0 {
				t.Errorf("the new machine has %d facts of the old one, %v", len(fs), err)
			}
			js, err := s.Jobs.List(admin, job.Filter{Host: "sim-00002"})
			if err != nil || len(js) != 0 {
				t.Errorf("the new machine has %d jobs of the old one, %v", len(js), err)
			}
			_, vs := wait(admin, t, s, j)
			if v := vs["sim-00002"]; v.State == wire.Answered {
				t.Errorf("the old machine answered after it was replaced: %+v", v)
			}
			if h, err := s.Fleet.Host(admin, old.ID); err != nil || h.State != fleetwire.Revoked {
				t.Errorf("the old machine is %s, %v", h.State, err)
			}
		})
	})
}

// What is not for strangers is refused to them, whatever they send.
func TestStrangersGetNothing(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir()})
	for _, p := range []string{"/fleet", "/jobs", "/api/v1/hosts", "/api/v1/jobs", "/api/v1/stream", "/api/v1/reactions"} {
		resp, err := http.Get(s.URL + p)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %d", p, resp.StatusCode)
		}
	}
}
