package bench

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/rpm"
)

// sized is how many bytes lie below a directory, on the disk, and in how many files.
func sized(b *testing.B, dir string) (n int64) {
	b.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		in, err := e.Info()
		if err == nil {
			n += in.Size()
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		b.Fatal(err)
	}
	return n
}

// What 30 daily snapshots and three signatures cost, above one copy. Packages of AppStream's
// shape, the newest of each name; the packages of the corpus have no payload, so that one copy is
// counted with the sizes that AppStream's own metadata tells, and all that drover adds for the
// days (packages, metadata, database) is measured, the payloads of new packages being counted
// with their real sizes too.
func BenchmarkStorage(b *testing.B) {
	const n, days, daily = 17_649, 30, 20 // packages
	sizes := realSizes(b)
	for range b.N {
		t := newTagged(b, n, days*daily/2, "bench")
		call := func(method, path string, in any) {
			b.Helper()
			if err := t.client.Call(b.Context(), method, path, in, nil); err != nil {
				b.Fatalf("%s %s: %v", method, path, err)
			}
		}
		published := func() {
			b.Helper()
			for end := time.Now().Add(10 * time.Minute); t.client.Call(b.Context(), "GET", "/api/v1/tags/bench/published", nil, nil) != nil; {
				if time.Now().After(end) {
					b.Fatal("the tag is not published")
				}
			}
		}
		r := rand.New(rand.NewPCG(3, 4))
		payload := func(packages int) (sum float64) {
			for range packages {
				sum += float64(sizes[r.IntN(len(sizes))])
			}
			return sum
		}
		data := filepath.Join(t.dir, "data")
		call("PUT", "/api/v1/tags/bench", map[string]any{"name": "bench", "arches": []string{"x86_64"}, "key": "bench"})
		published()
		one := float64(sized(b, data)) + payload(n)
		before := sized(b, data)
		// Each day some builds that have 20 packages or a few more.
		next, moved := 0, 0
		for range days {
			for today := 0; today < daily; next++ {
				call("PUT", "/api/v1/tags/bench/builds/"+t.more[next], nil)
				today += t.has[next]
				moved += t.has[next]
			}
			published()
		}
		added := float64(sized(b, data) - before)
		grown := added / one * 100
		// The payloads of new packages are new bytes, whoever keeps them.
		payloads := payload(moved) / one * 100
		before = sized(b, data)
		for _, key := range []string{"second", "third"} {
			t.run("", t.drover, "sign", "key", "create", key, "--tag", "*", "--algo", "ed25519")
			call("PUT", "/api/v1/tags/bench", map[string]any{"name": "bench", "arches": []string{"x86_64"}, "key": key})
			published()
		}
		keys := float64(sized(b, data)-before) / one * 100
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(one/(1<<30), "GiB-one-copy")
		b.ReportMetric(added/(1<<20), "MiB-days")
		b.ReportMetric(float64(moved), "packages-in-30-days")
		b.ReportMetric(grown, "%-days")
		b.ReportMetric(payloads, "%-new-payloads")
		b.ReportMetric(keys, "%-two-more-keys")
	}
}

// realSizes is the sizes of AppStream's packages as its primary.xml tells them.
func realSizes(b *testing.B) (out []int64) {
	b.Helper()
	err := rpm.ReadPrimary(appStream(b), func(p rpm.PrimaryPackage) error {
		if !strings.HasSuffix(p.Arch, "src") {
			out = append(out, p.Size)
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return out
}
