package bench

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"drover/internal/db/dbtest"
	"drover/internal/repo/mirrors"
	"drover/internal/repo/repotest"
	"drover/internal/repo/upstream"

	"github.com/google/rpmpack"
)

// mirrored is an upstream of packages with payloads from 20 to 600 KB that do not pack.
type mirrored struct {
	dir   string
	bytes int64
}

func (m *mirrored) add(b *testing.B, from, to int) {
	b.Helper()
	payload := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(payload)
	for i := from; i < to; i++ {
		p, err := rpmpack.NewRPM(rpmpack.RPMMetaData{Name: fmt.Sprintf("mirrored-%05d", i), Version: "1", Release: "1", Arch: "noarch", OS: "linux", Summary: "A test", Description: "A test", Licence: "MIT", Compressor: "zstd", Epoch: rpmpack.NoEpoch, BuildTime: time.Unix(1_700_000_000, 0)}) //nolint:misspell // its name there
		if err != nil {
			b.Fatal(err)
		}
		p.AddFile(rpmpack.RPMFile{Name: fmt.Sprintf("/usr/share/mirrored/%05d", i), Body: payload[i*131%400_000:][:20_000+i*7919%580_000], Mode: 0o100644, Owner: "root", Group: "root"})
		name := filepath.Join(m.dir, fmt.Sprintf("Packages/mirrored-%05d-1-1.noarch.rpm", i))
		f, err := os.Create(name)
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Write(f); err != nil {
			b.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			b.Fatal(err)
		}
		m.bytes += info.Size()
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	}
	if out, err := exec.Command("createrepo_c", "-q", "--no-database", "--update", m.dir).CombinedOutput(); err != nil {
		b.Fatalf("%v %s", err, out)
	}
}

// BenchmarkMirror mirrors 5,000 packages over loopback, then looks again when nothing changed,
// then takes 20 packages more; and does the same with dnf reposync. The server runs in the same
// process as drover and takes its part of the machine from both.
//
// What drover does beyond: every checksum and every digest that the packages have of themselves
// is checked, everything is flushed to the disk, and a snapshot is made that hosts may follow.
func BenchmarkMirror(b *testing.B) {
	const n, delta = 5000, 20
	m := &mirrored{dir: b.TempDir()}
	if err := os.Mkdir(filepath.Join(m.dir, "Packages"), 0o755); err != nil {
		b.Fatal(err)
	}
	m.add(b, 0, n)
	var asked, packages atomic.Int64
	files := http.FileServer(http.Dir(m.dir))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".rpm") {
			packages.Add(1)
		} else {
			asked.Add(1)
		}
		files.ServeHTTP(w, r)
	}))
	defer srv.Close()
	h := repotest.New(b, dbtest.SQLite(b, repotest.Schemas()...))
	h.OK(h.Mirrors.Set(h.System, mirrors.Mirror{Name: "up", Config: mirrors.Config{Source: upstream.Source{URL: srv.URL}, Arch: "x86_64"}}))
	base := b.TempDir()
	config := filepath.Join(base, "x.repo")
	if err := os.WriteFile(config, []byte("[up]\nname=up\nbaseurl="+srv.URL+"\ngpgcheck=0\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	peers := []struct {
		name string
		sync func()
	}{
		{"drover", func() { _, err := h.Mirrors.Sync(h.System, "up", nil); h.OK(err) }},
		{"reposync", func() {
			out, err := exec.Command("dnf", "-q", "--releasever=9", "reposync", "--setopt=reposdir="+base, "--setopt=cachedir="+filepath.Join(base, "cache"), "--setopt=max_parallel_downloads=20", "--setopt=metadata_expire=1", "--repoid=up", "--download-metadata", "-p", filepath.Join(base, "copy")).CombinedOutput()
			if err != nil {
				b.Fatalf("reposync: %v\n%s", err, out)
			}
		}},
	}
	time.Sleep(time.Second) // the times of files have seconds
	for round, what := range []string{"first", "again", "delta"} {
		if what == "delta" {
			m.add(b, n, n+delta)
		}
		for _, p := range peers {
			asked.Store(0)
			packages.Store(0)
			began := time.Now()
			p.sync() // once: the benchmark runs what is quick again and again, and then nothing is new
			took := time.Since(began)
			b.Run(what+"/"+p.name, func(b *testing.B) {
				b.ReportMetric(took.Seconds()*1000, "ms")
				if round == 0 {
					b.ReportMetric(float64(m.bytes)/took.Seconds()/1e6, "MB/s")
				}
				b.ReportMetric(float64(asked.Load()), "requests")
				b.ReportMetric(float64(packages.Load()), "packages")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
