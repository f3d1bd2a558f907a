package bench

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"drover/internal/db/dbtest"
	"drover/internal/release"
	"drover/internal/repo/repotest"
	"drover/internal/site"
	"drover/internal/web"
)

// BenchmarkSitePackage sends a package of 100 MB that a site has over loopback, beside net/http's
// own ServeFile on the same bytes, and one that it has not, beside the centre itself.
func BenchmarkSitePackage(b *testing.B) {
	h := repotest.New(b, dbtest.SQLite(b, repotest.Schemas()...))
	h.Tag(release.Tag{Name: "stream"})
	srpm, rpms := repotest.BigPackage(b, 100<<20)
	h.Submit("stream", srpm, rpms...)
	c, err := h.Repo.Content(h.System, h.Published("stream").Snapshot)
	if err != nil {
		b.Fatal(err)
	}
	path := "/channels/stream/x86_64/Packages/" + c.Trees["x86_64"][0].PkgID[:12] + "/" + c.Trees["x86_64"][0].File
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	peer := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, rpms[0]) }), ReadHeaderTimeout: time.Minute}
	go peer.Serve(l) //nolint:errcheck // it ends with Close
	b.Cleanup(func() { _ = peer.Close() })
	begin := func(dir string, most int64) string {
		s, err := site.New(site.Config{Centre: &web.Client{Base: h.URL, HTTP: &http.Client{}}, Dir: dir, Listen: "127.0.0.1:0", Channels: []string{"stream"}, Max: most, Log: slog.New(slog.NewTextHandler(h.Log, nil))})
		if err != nil {
			b.Fatal(err)
		}
		ctx, done := b.Context(), make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		b.Cleanup(func() {
			if err := <-done; err != nil {
				b.Error(err)
			}
			s.Close()
		})
		for s.Status().Channels[0].Snapshot == "" {
			time.Sleep(10 * time.Millisecond)
		}
		return s.URL
	}
	fetch := func(url string) time.Duration {
		began := time.Now()
		cmd := exec.Command("curl", "-sSf", "-o", "/dev/null", url)
		cmd.Stderr = io.Discard
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
		return time.Since(began)
	}
	compare := func(name, ours, theirs string) {
		b.Run(name, func(b *testing.B) {
			var took [2]time.Duration
			for b.Loop() {
				took[0] += fetch(ours)
				took[1] += fetch(theirs)
			}
			b.ReportMetric(took[0].Seconds()*1e3/float64(b.N), "site-ms")
			b.ReportMetric(took[1].Seconds()*1e3/float64(b.N), "peer-ms")
			b.ReportMetric(took[0].Seconds()/took[1].Seconds(), "ratio")
		})
	}
	has := begin(filepath.Join(b.TempDir(), "has"), 0)
	fetch(has + path)
	compare("has", has+path, "http://"+l.Addr().String()+"/")
	// With room for nothing each request passes through.
	compare("has-not", begin(filepath.Join(b.TempDir(), "not"), 1)+path, h.URL+path)
}
