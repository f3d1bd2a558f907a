package e2e

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"drover/internal/agent/sim"
	"drover/internal/db/dbtest"
	"drover/internal/job"
	"drover/internal/web"
)

// fleetSite is a server of its own process that can be killed and started again at the same
// addresses, and simulated hosts in this one.
type fleetSite struct {
	*testing.T
	dir, listen, bus, db string
	cmd                  *exec.Cmd
	client               *web.Client
	hosts                *sim.Fleet
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func newFleetSite(t *testing.T, db string, n int) *fleetSite {
	t.Helper()
	s := &fleetSite{T: t, dir: filepath.Join(t.TempDir(), "server"), listen: freePort(t), bus: freePort(t), db: db}
	s.start()
	t.Cleanup(s.kill)
	var tickets map[string][]string
	if err := s.client.Call(t.Context(), "POST", "/api/v1/hosts/tickets", map[string]any{"host": "sim-*", "count": n}, &tickets); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	left := tickets["tickets"]
	hosts, err := sim.Start(t.Context(), sim.Config{N: n, First: 1, URL: s.client.Base, Version: "1.0", Packages: 10, Log: slog.New(slog.DiscardHandler), Ticket: func(string) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		x := left[0]
		left = left[1:]
		return x, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.hosts = hosts
	t.Cleanup(hosts.Close)
	if err := hosts.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *fleetSite) start() {
	s.Helper()
	log, err := os.OpenFile(s.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.Fatal(err)
	}
	defer log.Close()
	args := []string{"server", "--dir", s.dir, "--listen", s.listen, "--bus-listen", s.bus, "--no-builder", "--no-signer"}
	if s.db != "" {
		args = append(args, "--db", s.db)
	}
	s.cmd = exec.Command(program(s), args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		s.Fatal(err)
	}
	for range 600 {
		time.Sleep(50 * time.Millisecond)
		b, err := os.ReadFile(s.dir + ".log")
		if err != nil || !strings.Contains(string(b), "drv_") {
			continue
		}
		if s.client == nil {
			s.client = &web.Client{Base: "http://" + s.listen, Token: "drv_" + strings.Fields(strings.SplitN(string(b), "drv_", 2)[1])[0]}
		}
		if s.client.Call(s.Context(), "GET", "/api/v1/whoami", nil, nil) == nil {
			return
		}
	}
	b, err := os.ReadFile(s.dir + ".log")
	s.Fatalf("the server does not start: %v\n%s", err, b)
}

func (s *fleetSite) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// The server is killed again and again while jobs run in batches: every job ends, with a verdict for
// every host, and no host runs one twice.
func TestFleetCrash(t *testing.T) {
	for _, engine := range []string{"sqlite", "postgres"} {
		t.Run(engine, func(t *testing.T) {
			db := ""
			if engine == "postgres" {
				db = dbtest.PostgresURL(t)
			}
			kills, n := 4, 20
			if os.Getenv("DROVER_LONG") != "" {
				kills, n = 50, 60
			}
			s := newFleetSite(t, db, n)
			var ids []string
			for i := range kills {
				rng := rand.New(rand.NewPCG(uint64(i), 3))
				for range 2 {
					var j job.Job
					if err := s.client.Call(t.Context(), "POST", "/api/v1/jobs", job.Spec{Target: "*", Fun: "sim.work", Args: []any{rng.IntN(120)}, Batch: strconv.Itoa(2 + rng.IntN(n))}, &j); err != nil {
						t.Fatal(err)
					}
					ids = append(ids, j.ID)
				}
				time.Sleep(time.Duration(rng.IntN(700)) * time.Millisecond)
				s.kill()
				s.start()
				if i%10 == 9 { // a host takes no more than 64 commands at once
					s.ended(ids, n)
				}
			}
			if err := s.hosts.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.ended(ids, n)
			for i := range n {
				if ran := s.hosts.Ran(i); ran != int64(len(ids)) {
					t.Errorf("host %d ran %d jobs of %d", i, ran, len(ids))
				}
			}
			if err := s.client.Call(t.Context(), "POST", "/api/v1/audit/verify", map[string]any{}, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// ended waits until jobs are done, and wants an answer of all n hosts for each.
func (s *fleetSite) ended(ids []string, n int) {
	s.Helper()
	for _, id := range ids {
		var j job.Whole
		for range 1200 {
			if err := s.client.Call(s.Context(), "GET", "/api/v1/jobs/"+id, nil, &j); err != nil {
				s.Fatal(err)
			}
			if j.State == job.StateDone {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if j.State == job.StateDone && len(j.Hosts) == n && j.Counts["answered"] == n {
			continue
		}
		s.Errorf("job %s is %s: %v, %d verdicts", id, j.State, j.Counts, len(j.Hosts))
		for _, v := range j.Hosts {
			if v.State != "answered" {
				s.Logf("%+v", v)
			}
		}
	}
}

// Thousands of jobs, one after the other and some at once: the server's memory stays what it was.
func TestFleetSoak(t *testing.T) {
	jobs := 300
	long := os.Getenv("DROVER_LONG") != ""
	if long {
		jobs = 10_000
	}
	s := newFleetSite(t, "", 20)
	rss := func() float64 {
		time.Sleep(35 * time.Second) // what is not needed goes back to the system
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), "VmRSS:")
		n, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := 0.0
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for i := range jobs {
		if long && i == jobs/5 {
			wg.Wait()
			before = rss()
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			fun, args := "test.ping", []any{}
			switch i % 10 {
			case 7:
				fun, args = "sim.work", []any{1}
			case 8:
				fun, args = "test.fill", []any{20_000}
			}
			var j job.Job
			if err := s.client.Call(t.Context(), "POST", "/api/v1/jobs", job.Spec{Target: "*", Fun: fun, Args: args}, &j); err != nil {
				t.Error(err)
				return
			}
			resp, err := s.client.Do(t.Context(), "GET", "/api/v1/jobs/"+j.ID+"/follow", nil, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			b := make([]byte, 0, 8<<10)
			buf := make([]byte, 4<<10)
			for {
				n, err := resp.Body.Read(buf)
				b = append(b, buf[:n]...)
				if err != nil {
					break
				}
			}
			if !strings.Contains(string(b), `"counts":{"answered":20}`) {
				t.Errorf("job %s: %.300s", j.ID, b)
			}
		})
	}
	wg.Wait()
	if !long {
		return
	}
	after := rss()
	t.Logf("%.0f KiB after %d jobs, %.0f KiB after %d: %+.1f %%", before, jobs/5, after, jobs, 100*(after/before-1))
	if after > 1.05*before {
		t.Errorf("the server grew from %.0f to %.0f KiB", before, after)
	}
}

// The pages of the fleet in a browser that has a token: both widths, both schemes, every link, as
// JSON, by their command line; and a job's page that fills while it is looked at.
func TestFleetPages(t *testing.T) {
	s := newFleetSite(t, "", 12)
	call := func(method, path string, in, out any) {
		t.Helper()
		if err := s.client.Call(t.Context(), method, path, in, out); err != nil {
			t.Fatal(err)
		}
	}
	var j, slow job.Job
	call("PUT", "/api/v1/groups/web", map[string]any{"form": "query", "target": `fact.role == "web"`}, nil)
	call("PUT", "/api/v1/hosts/sim-00001/labels", map[string]string{"role": "web"}, nil)
	s.hosts.Set(3, true, 0)
	call("POST", "/api/v1/jobs", job.Spec{Target: "*", Fun: "sim.work", Reason: "a look at the pages"}, &j)
	for range 200 {
		var hs []struct{ Reported time.Time }
		call("GET", "/api/v1/hosts", nil, &hs)
		done := 0
		for _, h := range hs {
			if !h.Reported.IsZero() {
				done++
			}
		}
		if done == 12 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	b := newBrowser(t)
	b.call("Network.enable", nil, nil)
	b.call("Network.setExtraHTTPHeaders", map[string]any{"headers": map[string]string{"Authorization": "Bearer " + s.client.Token}}, nil)
	fails := map[string]string{"/fleet/nothing": "host_unknown", "/jobs/1": "job_unknown", "/fleet?target=fact.role+==": "target_invalid"}
	for _, page := range []string{"/fleet", "/fleet?target=sim-0000*", "/fleet?target=fact.role+==+%22web%22", "/fleet?target=fact.role+==", "/fleet?form=nodegroup&target=web", "/fleet?presence=offline", "/fleet/pending", "/fleet/sim-00001", "/fleet/sim-00001?kind=package&search=open",
		"/fleet/sim-00001?kind=history", "/jobs", "/jobs?fun=sim.&state=done", "/jobs/" + j.ID, "/jobs/" + j.ID + "?host=sim-00004", "/jobs/" + j.ID + "?verdict=failed", "/fleet/nothing", "/jobs/1"} {
		inspect(t, b, s.client.Base, s.client.Token, page, fails[page])
	}
	call("POST", "/api/v1/jobs", job.Spec{Target: "*", Fun: "test.sleep", Args: []any{1.5}, Batch: "6"}, &slow)
	b.look(1280, "light")
	b.open(s.client.Base + "/jobs/" + slow.ID)
	first := b.eval(`document.querySelectorAll("svg.grid a.good").length`)
	b.until("the grid to fill while it is looked at", func() bool { return b.eval(`document.querySelectorAll("svg.grid a.good").length`) == "12" })
	if first == "12" {
		t.Error("the job was over before anybody looked")
	}
}
