package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"drover/internal/agent/sim"
	"drover/internal/web"

	"golang.org/x/sys/unix"
)

// fleetRig is a server of its own process, TLS on, and a fleet of simulated hosts in this one.
type fleetRig struct {
	*testing.B
	dir, bin string
	pid      int
	server   *exec.Cmd
	client   *web.Client
	hosts    *sim.Fleet
}

// newFleet starts a server. The hosts come by join.
func newFleet(b *testing.B) *fleetRig {
	b.Helper()
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		b.Fatal(err)
	}
	lim.Cur = lim.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		b.Fatal(err)
	}
	f := &fleetRig{B: b, dir: b.TempDir()}
	f.bin = filepath.Join(f.dir, "drover")
	if out, err := exec.Command("go", "build", "-o", f.bin, "drover/cmd/drover").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	f.start()
	return f
}

// start starts the server, and waits until it serves.
func (f *fleetRig) start() {
	f.Helper()
	log, err := os.OpenFile(filepath.Join(f.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		f.Fatal(err)
	}
	defer log.Close()
	port := "7980"
	f.server = exec.Command(f.bin, "server", "--dir", filepath.Join(f.dir, "data"), "--listen", "127.0.0.1:"+port, "--tls", "--no-builder", "--no-signer")
	f.server.Stdout, f.server.Stderr = log, log
	if err := f.server.Start(); err != nil {
		f.Fatal(err)
	}
	f.pid = f.server.Process.Pid
	f.Cleanup(func() { _ = f.server.Process.Kill(); _ = f.server.Wait() })
	ca := filepath.Join(f.dir, "data", "tls", "ca.pem")
	for range 200 {
		time.Sleep(50 * time.Millisecond)
		b, err := os.ReadFile(filepath.Join(f.dir, "log"))
		if err != nil || !strings.Contains(string(b), "drv_") {
			continue
		}
		token := "drv_" + strings.Fields(strings.SplitN(string(b), "drv_", 2)[1])[0]
		c, err := httpsClient(ca)
		if err != nil {
			continue
		}
		f.client = &web.Client{Base: "https://127.0.0.1:" + port, Token: token, HTTP: c}
		if f.client.Call(f.Context(), "GET", "/api/v1/whoami", nil, nil) == nil {
			return
		}
	}
	f.Fatal("the server does not start")
}

// join has n hosts enrol by ticket and connect, and tells how long that took.
func (f *fleetRig) join(n, packages int) time.Duration {
	f.Helper()
	var tickets []string
	for len(tickets) < n {
		var out map[string][]string
		if err := f.client.Call(f.Context(), "POST", "/api/v1/hosts/tickets", map[string]any{"host": "sim-*", "count": min(n-len(tickets), 1000)}, &out); err != nil {
			f.Fatal(err)
		}
		tickets = append(tickets, out["tickets"]...)
	}
	var mu sync.Mutex
	began := time.Now()
	hosts, err := sim.Start(f.Context(), sim.Config{N: n, First: 1, URL: f.client.Base, HTTP: f.client.HTTP, Version: "bench", Packages: packages, Log: slog.New(slog.DiscardHandler), Ticket: func(string) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		t := tickets[0]
		tickets = tickets[1:]
		return t, nil
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.hosts = hosts
	f.Cleanup(hosts.Close)
	f.wait(5 * time.Minute)
	return time.Since(began)
}

func (f *fleetRig) wait(most time.Duration) {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.Context(), most)
	defer cancel()
	if err := f.hosts.Wait(ctx); err != nil {
		f.Fatal(err)
	}
}

// reported waits until every host has reported, and tells when the last one had.
func (f *fleetRig) reported(n int) time.Time {
	f.Helper()
	for {
		var hs []struct{ Reported time.Time }
		if err := f.client.Call(f.Context(), "GET", "/api/v1/hosts", nil, &hs); err != nil {
			f.Fatal(err)
		}
		last := time.Time{}
		done := 0
		for _, h := range hs {
			if !h.Reported.IsZero() {
				done++
			}
			if h.Reported.After(last) {
				last = h.Reported
			}
		}
		if done >= n {
			return last
		}
		time.Sleep(300 * time.Millisecond)
	}
}

// cpu is the processor time of the server so far.
func (f *fleetRig) cpu() time.Duration {
	f.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", f.pid))
	if err != nil {
		f.Fatal(err)
	}
	s := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	u, uerr := strconv.ParseInt(s[11], 10, 64)
	k, kerr := strconv.ParseInt(s[12], 10, 64)
	if uerr != nil || kerr != nil {
		f.Fatal(uerr, kerr)
	}
	return time.Duration(u+k) * 10 * time.Millisecond
}

// rss is the server's memory in MiB.
func (f *fleetRig) rss() float64 {
	f.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", f.pid))
	if err != nil {
		f.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(l, "VmRSS:"); ok {
			n, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			if err != nil {
				f.Fatal(err)
			}
			return n / 1024
		}
	}
	return 0
}

// run runs a job to its end and tells how long it took, and how many hosts have no answer.
func (f *fleetRig) run(spec map[string]any) (took time.Duration, hosts, without int) {
	f.Helper()
	began := time.Now()
	var j struct{ ID string }
	if err := f.client.Call(f.Context(), "POST", "/api/v1/jobs", spec, &j); err != nil {
		f.Fatal(err)
	}
	resp, err := f.client.Do(f.Context(), "GET", "/api/v1/jobs/"+j.ID+"/follow", http.Header{}, nil)
	if err != nil {
		f.Fatal(err)
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	verdicts := 0
	for {
		var p struct {
			Hosts []json.RawMessage
			Job   *struct {
				Total  int
				Counts map[string]int
			}
		}
		if err := d.Decode(&p); err != nil {
			f.Fatal(err)
		}
		verdicts += len(p.Hosts)
		if p.Job != nil {
			if verdicts != p.Job.Total {
				f.Errorf("%d verdicts of %d hosts", verdicts, p.Job.Total)
			}
			return time.Since(began), p.Job.Total, p.Job.Total - p.Job.Counts["answered"]
		}
	}
}

func median(ds []time.Duration) time.Duration {
	slices.Sort(ds)
	return ds[len(ds)/2]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// A fleet on two cores, server and hosts together: how fast it enrols, tells of itself, answers and
// is asked about; what the server needs for it; and how it comes back when the server is killed.
func BenchmarkFleet(b *testing.B) {
	for _, n := range []int{3000, 10_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			f := newFleet(b)
			before := f.cpu()
			took := f.join(n, 600)
			first := f.cpu() - before
			b.ReportMetric(float64(n)/took.Minutes(), "enrolled/min")
			began := time.Now()
			last := f.reported(n)
			b.ReportMetric(last.Sub(began.Add(-took)).Seconds(), "s-inventory")
			time.Sleep(5 * time.Second)

			rounds := 100
			var all []time.Duration
			missing := 0
			f.run(map[string]any{"target": "*", "fun": "test.ping"})
			before = f.cpu()
			for range rounds {
				d, _, without := f.run(map[string]any{"target": "*", "fun": "test.ping"})
				all = append(all, d)
				missing += without
				time.Sleep(50 * time.Millisecond)
			}
			used := f.cpu() - before
			b.ReportMetric(ms(median(all)), "ms-ping-median")
			b.ReportMetric(ms(all[len(all)-1]), "ms-ping-worst")
			b.ReportMetric(float64(missing), "unanswered")
			b.ReportMetric(ms(used)/float64(rounds*n), "ms-cpu/return")

			for name, q := range map[string]string{"fact": `fact.osfinger == "CentOS Stream-9" and fact.role == "web"`, "pkg": `pkg("openssl") < "2.3-1" and fact.os == "CentOS Stream"`} {
				var qs []time.Duration
				for range 20 {
					began := time.Now()
					if err := f.client.Call(b.Context(), "POST", "/api/v1/hosts/select", map[string]any{"target": q}, nil); err != nil {
						b.Fatal(err)
					}
					qs = append(qs, time.Since(began))
				}
				b.ReportMetric(ms(median(qs)), "ms-query-"+name)
			}
			time.Sleep(70 * time.Second)
			b.ReportMetric(f.rss(), "MiB-rss-idle")

			// The herd.
			_, _, _ = f.run(map[string]any{"target": "*", "fun": "test.ping"})
			var j struct{ ID string }
			if err := f.client.Call(b.Context(), "POST", "/api/v1/jobs", map[string]any{"target": "*", "fun": "sim.work", "args": []any{2000}}, &j); err != nil {
				b.Fatal(err)
			}
			time.Sleep(500 * time.Millisecond)
			if err := f.server.Process.Signal(syscall.SIGKILL); err != nil {
				b.Fatal(err)
			}
			_ = f.server.Wait()
			began = time.Now()
			token := f.client.Token
			f.start()
			f.client.Token = token
			for f.hosts.Connected() == n { // until they have noticed
				time.Sleep(time.Millisecond)
			}
			f.wait(3 * time.Minute)
			b.ReportMetric(time.Since(began).Seconds(), "s-herd-back")
			b.ReportMetric(f.cpu().Seconds()/first.Seconds(), "herd-cpu/first")
			for {
				var job struct {
					State  string
					Total  int
					Counts map[string]int
				}
				if err := f.client.Call(b.Context(), "GET", "/api/v1/jobs/"+j.ID, nil, &job); err != nil {
					b.Fatal(err)
				}
				if job.State == "done" {
					b.ReportMetric(float64(job.Total-job.Counts["answered"]), "herd-unanswered")
					break
				}
				time.Sleep(200 * time.Millisecond)
			}
			ran := int64(0)
			for i := range n {
				ran += f.hosts.Ran(i)
			}
			if ran != int64(n) {
				b.Errorf("%d hosts ran the job %d times", n, ran)
			}
		})
	}
}

// httpsClient trusts the CA that a server has made.
func httpsClient(ca string) (*http.Client, error) {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 64, MaxConnsPerHost: 128}}, nil
}
