package bench

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"drover/internal/db/dbtest"
	"drover/internal/release"
	"drover/internal/repo/repotest"
)

// BenchmarkServePackage sends a package of 100 MB over loopback, whole and from the middle on,
// beside net/http's own ServeFile on the same file. The client is curl, so that what it costs is
// not measured.
func BenchmarkServePackage(b *testing.B) {
	h := repotest.New(b, dbtest.SQLite(b, repotest.Schemas()...))
	h.Tag(release.Tag{Name: "stream"})
	srpm, rpms := repotest.BigPackage(b, 100<<20)
	h.Submit("stream", srpm, rpms...)
	h.Published("stream")
	c, err := h.Repo.Content(h.System, h.Published("stream").Snapshot)
	if err != nil {
		b.Fatal(err)
	}
	p := c.Trees["x86_64"][0]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	peer := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, rpms[0]) }), ReadHeaderTimeout: time.Minute}
	go peer.Serve(l) //nolint:errcheck // it ends with Close
	b.Cleanup(func() { _ = peer.Close() })
	st, err := os.Stat(rpms[0])
	if err != nil {
		b.Fatal(err)
	}
	fetch := func(url, part string) time.Duration {
		began := time.Now()
		cmd := exec.Command("curl", "-sSf", "-o", "/dev/null", "-r", part, url)
		cmd.Stderr = io.Discard
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
		return time.Since(began)
	}
	urls := [2]string{h.URL + "/channels/stream/x86_64/Packages/" + p.PkgID[:12] + "/" + p.File, "http://" + l.Addr().String() + "/"}
	for name, part := range map[string]string{"whole": "0-", "half": fmt.Sprintf("%d-", st.Size()/2)} {
		b.Run(name, func(b *testing.B) {
			var took [2]time.Duration
			for b.Loop() {
				for i, u := range urls {
					took[i] += fetch(u, part)
				}
			}
			b.ReportMetric(took[0].Seconds()*1e3/float64(b.N), "drover-ms")
			b.ReportMetric(took[1].Seconds()*1e3/float64(b.N), "servefile-ms")
			b.ReportMetric(took[0].Seconds()/took[1].Seconds(), "ratio")
		})
	}
}
