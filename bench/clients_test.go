package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"drover/internal/rpm"

	"golang.org/x/sys/unix"
)

func decode(b *testing.B, r io.Reader, v any) {
	b.Helper()
	if err := json.NewDecoder(r).Decode(v); err != nil {
		b.Fatal(err)
	}
}

// A fleet after a promotion: 3,000 clients, each with a connection of its own, ask for the mirror
// list, repomd.xml and its signature, fetch primary when it is new, and 20 packages. All of them
// within 30 s, as they would not come more at once with a minute's jitter. 10,000 packages of
// AppStream's shape; with and without a site between.
func BenchmarkClients(b *testing.B) {
	const clients, each, window = 3000, 20, 30 * time.Second
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		b.Fatal(err)
	}
	lim.Cur = lim.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil || lim.Cur < 2*clients {
		b.Fatalf("%d files may be open, %d are needed: %v", lim.Cur, 2*clients, err)
	}
	t := newTagged(b, 10_000, 100, "bench")
	call := func(method, path string, in any) {
		b.Helper()
		if err := t.client.Call(b.Context(), method, path, in, nil); err != nil {
			b.Fatalf("%s %s: %v", method, path, err)
		}
	}
	call("PUT", "/api/v1/tags/bench", map[string]any{"name": "bench", "arches": []string{"x86_64"}, "key": "bench"})
	for t.client.Call(b.Context(), "GET", "/api/v1/tags/bench/published", nil, nil) != nil {
		time.Sleep(time.Second)
	}
	next := 0
	for _, where := range []string{"centre", "site"} {
		base := t.url
		if where == "site" {
			base = t.site("bench")
		}
		b.Run(where, func(b *testing.B) {
			for range b.N {
				for _, id := range t.more[next : next+20] {
					call("PUT", "/api/v1/tags/bench/builds/"+id, nil)
				}
				next += 20
				for t.client.Call(b.Context(), "GET", "/api/v1/tags/bench/published", nil, nil) != nil {
					time.Sleep(time.Second)
				}
				t.fleet(b, base, clients, each, window)
			}
		})
	}
}

// fleet runs the clients and reports.
func (t *tagged) fleet(b *testing.B, base string, clients, each int, window time.Duration) {
	var bytes, requests, failures atomic.Int64
	var mu sync.Mutex
	var took []time.Duration
	var first error
	var hrefs []string
	get := func(c *http.Client, url string) ([]byte, error) {
		requests.Add(1)
		resp, err := c.Get(url)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		bytes.Add(int64(len(data)))
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", url, resp.Status)
		}
		return data, err
	}
	// What is in the repository, to choose from.
	one := &http.Client{}
	list, err := get(one, base+"/channels/bench/x86_64/mirrorlist")
	if err != nil {
		b.Fatal(err)
	}
	root := strings.TrimSpace(string(list))
	repomd, err := get(one, root+"repodata/repomd.xml")
	if err != nil {
		b.Fatal(err)
	}
	datas, err := rpm.ReadRepomd(repomd)
	if err != nil {
		b.Fatal(err)
	}
	primary, err := get(one, root+datas[0].Href)
	if err != nil {
		b.Fatal(err)
	}
	if err := rpm.ReadPrimary(strings.NewReader(string(primary)), func(p rpm.PrimaryPackage) error { hrefs = append(hrefs, p.Href); return nil }); err != nil {
		b.Fatal(err)
	}
	bytes.Store(0)
	requests.Store(0)
	client := func(n int) error {
		c := &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{DialContext: (&net.Dialer{Timeout: 30 * time.Second}).DialContext, MaxIdleConnsPerHost: 1}}
		defer c.CloseIdleConnections()
		list, err := get(c, base+"/channels/bench/x86_64/mirrorlist")
		if err != nil {
			return err
		}
		root := strings.TrimSpace(string(list))
		repomd, err := get(c, root+"repodata/repomd.xml")
		if err != nil {
			return err
		}
		if _, err := get(c, root+"repodata/repomd.xml.asc"); err != nil {
			return err
		}
		ds, err := rpm.ReadRepomd(repomd)
		if err != nil {
			return err
		}
		if _, err := get(c, root+ds[slices.IndexFunc(ds, func(d rpm.Data) bool { return d.Type == "primary" })].Href); err != nil {
			return err
		}
		r := rand.New(rand.NewPCG(7, 7)) // all fetch the same, as after a promotion
		for range each {
			if _, err := get(c, root+hrefs[r.IntN(len(hrefs))]); err != nil {
				return err
			}
		}
		return nil
	}
	began, cpu := time.Now(), t.cpu(t.pid)
	var all sync.WaitGroup
	for n := range clients {
		all.Go(func() {
			time.Sleep(time.Duration(rand.Int64N(int64(window))))
			at := time.Now()
			err := client(n)
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(at))
			if err != nil {
				failures.Add(1)
				if first == nil {
					first = err
				}
			}
		})
	}
	all.Wait()
	slices.Sort(took)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(took[len(took)/2].Milliseconds()), "ms-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Milliseconds()), "ms-p99")
	b.ReportMetric(float64(bytes.Load())/(1<<20), "MiB")
	b.ReportMetric(float64(requests.Load()), "requests")
	b.ReportMetric(time.Since(began).Seconds(), "s")
	b.ReportMetric((t.cpu(t.pid) - cpu).Seconds(), "s-CPU-centre")
	b.ReportMetric(float64(failures.Load()), "failures")
	if failures.Load() > 0 {
		b.Fatalf("%d of %d clients failed, the first: %v", failures.Load(), clients, first)
	}
}

// site starts a site that follows a channel and gives its address.
func (t *tagged) site(channel string) string {
	t.b.Helper()
	c := exec.Command(t.drover, "site", "--centre", t.url, "--dir", filepath.Join(t.dir, "site"), "--listen", "127.0.0.1:0", "--channel", channel, "--trust", "bench")
	c.Env = append(os.Environ(), "HOME="+t.dir)
	out, err := c.StdoutPipe()
	if err != nil {
		t.b.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.b.Fatal(err)
	}
	t.b.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		_ = c.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.b.Fatal("the site did not start: ", err)
	}
	_, url, _ := strings.Cut(line, " serves ")
	url = strings.Fields(url)[0]
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		resp, err := http.Get(url + "/channels/" + channel + "/x86_64/mirrorlist")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return url
			}
		}
		if time.Now().After(end) {
			t.b.Fatal("the site does not serve: ", err)
		}
	}
}
