package bench

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// readLoop reads a repository again and again by librepo: the mirror list, repomd.xml with its
// checksums, primary, filelists and other. It prints a line for each round: "ok", or what failed.
const readLoop = `
import librepo, sys, tempfile, shutil
while True:
    d = tempfile.mkdtemp()
    h, r = librepo.Handle(), librepo.Result()
    h.mirrorlisturl = sys.argv[1]
    h.repotype = librepo.LR_YUMREPO
    h.destdir = d
    h.checksum = True
    h.gpgcheck = False
    try:
        h.perform(r)
        print("ok", flush=True)
    except librepo.LibrepoException as e:
        print("failed", e, flush=True)
    shutil.rmtree(d)
`

// How it is to read while channels move 50 times a second: dnf and librepo in loops, all checksums
// and signatures on. Each state is another set of packages, signed; 120 changes a second are made,
// and those that come while their tag is being published go with the next one. The aim is no
// failure in 10 minutes (DROVER_LONG=1); the short form runs for 15 seconds. Readers that are on
// other machines elsewhere run here with the processors' idle time: they take what the server
// leaves.
func BenchmarkReadersUnderPublishing(b *testing.B) {
	const size, toggles, tags, rate = 100, 15, 20, 120
	length := 15 * time.Second
	if os.Getenv("DROVER_LONG") != "" {
		length = 10 * time.Minute
	}
	t := newTagged(b, size, toggles, "bench")
	names := make([]string, tags)
	for i := range names {
		names[i] = fmt.Sprintf("bench%d", i)
	}
	call := func(method, path string, in any) {
		b.Helper()
		if err := t.client.Call(b.Context(), method, path, in, nil); err != nil {
			b.Fatalf("%s %s: %v", method, path, err)
		}
	}
	call("PUT", "/api/v1/tags/bench", map[string]any{"name": "bench", "arches": []string{"x86_64"}, "key": "bench"})
	for _, n := range names {
		call("PUT", "/api/v1/tags/"+n, map[string]any{"name": n, "arches": []string{"x86_64"}, "key": "bench"})
		for _, id := range t.base {
			call("PUT", "/api/v1/tags/"+n+"/builds/"+id, nil)
		}
	}
	for _, n := range names {
		for t.client.Call(b.Context(), "GET", "/api/v1/tags/"+n+"/published", nil, nil) != nil {
			time.Sleep(time.Second)
		}
	}
	b.ResetTimer()
	for range b.N {
		ctx, stop := context.WithCancel(b.Context())
		var reads, dnfs, failures atomic.Int64
		var mu sync.Mutex
		var said []string
		fail := func(format string, args ...any) {
			failures.Add(1)
			mu.Lock()
			defer mu.Unlock()
			if len(said) < 5 {
				said = append(said, fmt.Sprintf(format, args...))
			}
		}
		var all sync.WaitGroup
		all.Go(func() {
			c := exec.CommandContext(ctx, "chrt", "--idle", "0", "/usr/bin/python3", "-c", readLoop, t.url+"/channels/"+names[0]+"/x86_64/mirrorlist")
			out, err := c.StdoutPipe()
			if err == nil {
				err = c.Start()
			}
			if err != nil {
				fail("librepo: %v", err)
				return
			}
			buf := make([]byte, 64<<10)
			for {
				n, err := out.Read(buf)
				for _, l := range strings.Split(strings.TrimSpace(string(buf[:n])), "\n") {
					if l == "ok" {
						reads.Add(1)
					} else if l != "" && ctx.Err() == nil {
						fail("librepo: %s", l)
					}
				}
				if err != nil {
					break
				}
			}
			_ = c.Wait()
		})
		all.Go(func() {
			dir := filepath.Join(b.TempDir(), "repos")
			resp, err := http.Get(t.url + "/channels/" + names[0] + ".repo")
			if err == nil {
				err = os.MkdirAll(dir, 0o755)
			}
			if err != nil {
				fail("%v", err)
				return
			}
			defer resp.Body.Close()
			f, err := os.Create(filepath.Join(dir, "x.repo"))
			if err == nil {
				_, err = f.ReadFrom(resp.Body)
			}
			if err != nil {
				fail("%v", err)
				return
			}
			_ = f.Close()
			for n := 0; ctx.Err() == nil; n++ {
				c := exec.CommandContext(ctx, "chrt", "--idle", "0", "dnf", "-y", "-q", "--installroot="+filepath.Join(dir, "root"), "--releasever=9", "--setopt=reposdir="+dir, "--setopt=varsdir=/nonexistent", "--setopt=cachedir="+filepath.Join(dir, fmt.Sprint("cache", n%3)),
					"--setopt=pluginpath=/nonexistent", "--setopt=module_platform_id=platform:el9", "repoquery", "--qf", "%{name}-%{evr}.%{arch}")
				out, err := c.CombinedOutput()
				switch {
				case ctx.Err() != nil:
				case err != nil || strings.Count(string(out), "\n") < size:
					fail("dnf: %v %.500s", err, out)
				default:
					dnfs.Add(1)
				}
			}
		})
		before := t.publishes()
		began := time.Now()
		// Each step of a Gray code moves one build in or out: no state comes twice.
		for i := range tags {
			all.Go(func() {
				tick := time.NewTicker(time.Second * tags / rate)
				defer tick.Stop()
				state := 0
				for step := 1 + 4000*i; ctx.Err() == nil; step++ { // each tag in states of its own
					select {
					case <-ctx.Done():
						return
					case <-tick.C:
					}
					bit := 0
					for step>>bit&1 == 0 {
						bit++
					}
					bit %= toggles
					method := "PUT"
					if state>>bit&1 == 1 {
						method = "DELETE"
					}
					state ^= 1 << bit
					if err := t.client.Call(ctx, method, "/api/v1/tags/"+names[i]+"/builds/"+t.more[bit], nil, nil); err != nil && ctx.Err() == nil {
						fail("%s %s: %v", method, names[i], err)
					}
				}
			})
		}
		time.Sleep(length)
		did, took := t.publishes()-before, time.Since(began)
		stop()
		all.Wait()
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(float64(did)/took.Seconds(), "publishes/s")
		b.ReportMetric(float64(reads.Load()), "librepo-reads")
		b.ReportMetric(float64(dnfs.Load()), "dnf-reads")
		b.ReportMetric(float64(failures.Load()), "failures")
		if reads.Load() == 0 || dnfs.Load() == 0 || failures.Load() > 0 {
			b.Fatalf("%d reads by librepo, %d by dnf, %d failures:\n%s", reads.Load(), dnfs.Load(), failures.Load(), strings.Join(said, "\n"))
		}
	}
}

// publishes counts the snapshots that were published so far.
func (t *tagged) publishes() (n int64) {
	t.b.Helper()
	resp, err := http.Get(t.url + "/snapshots?format=json")
	if err != nil {
		t.b.Fatal(err)
	}
	defer resp.Body.Close()
	var page struct {
		Snapshots struct {
			Total int64 `json:"total"`
		} `json:"snapshots"`
	}
	decode(t.b, resp.Body, &page)
	return page.Snapshots.Total
}
