package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/blob"
	"drover/internal/fetch"
)

// BenchmarkFetch brings 5,000 files of 20 to 300 KB over loopback:
//
//   - drover: checked, cut into head and core as packages are kept, and durable in a blob store;
//   - curl: 16 at once into a directory, then "sha256sum -c", then "sync -f".
//
// The server runs in the same process as drover and takes its part of the machine from both.
func BenchmarkFetch(b *testing.B) {
	const n = 5000
	data := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	content := map[string][]byte{}
	var wants []fetch.Want
	var sums, config strings.Builder
	var total int64
	for i := range n {
		at, size := i*131, 20_000+i*7919%280_000
		href := fmt.Sprintf("Packages/%d.rpm", i)
		part := data[at : at+size]
		content[href] = part
		sum := sha256.Sum256(part)
		wants = append(wants, fetch.Want{Href: href, Algo: "sha256", Sum: hex.EncodeToString(sum[:]), Size: int64(size)})
		fmt.Fprintf(&sums, "%x  %s\n", sum, href)
		total += int64(size)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content[r.URL.Path[1:]]))
	}))
	defer srv.Close()
	for _, w := range wants {
		fmt.Fprintf(&config, "url = %q\noutput = %q\n", srv.URL+"/"+w.Href, w.Href)
	}
	took := map[string]float64{}
	run := func(name string, once func(b *testing.B, dir string)) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(total)
			for b.Loop() {
				b.StopTimer()
				dir := b.TempDir()
				b.StartTimer()
				once(b, dir)
			}
			took[name] = b.Elapsed().Seconds() / float64(b.N)
			b.ReportMetric(n/took[name], "files/s")
		})
	}
	run("drover", func(b *testing.B, dir string) {
		s, err := blob.Open(filepath.Join(dir, "blobs"))
		if err != nil {
			b.Fatal(err)
		}
		c, err := fetch.New(fetch.Config{Dir: filepath.Join(dir, "partial")})
		if err != nil {
			b.Fatal(err)
		}
		o, err := fetch.NewOrigins(fetch.Origin{URL: srv.URL})
		if err != nil {
			b.Fatal(err)
		}
		err = c.All(b.Context(), o, fetch.Job{Wants: wants, Blobs: s, Kept: func(context.Context, []int) error { return nil },
			Take: func(ctx context.Context, _ int, f *os.File, batch *blob.Batch) error {
				head := make([]byte, 6000)
				if _, err := f.Read(head); err != nil {
					return err
				}
				if _, err := batch.PutBytes(head); err != nil {
					return err
				}
				_, _, err := batch.Put(ctx, f, blob.PutOptions{})
				return err
			}})
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	})
	run("curl", func(b *testing.B, dir string) {
		cmd := exec.CommandContext(b.Context(), "sh", "-c", "curl -sS -f -Z --parallel-max 16 --create-dirs -K config && sha256sum -c --quiet sums && sync -f .")
		cmd.Dir, cmd.Stderr = dir, os.Stderr
		for name, text := range map[string]string{"config": config.String(), "sums": sums.String()} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				b.Fatal(err)
			}
		}
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
	})
	b.Logf("drover is %.2f times as fast as curl, sha256sum and sync", took["curl"]/took["drover"])
}
