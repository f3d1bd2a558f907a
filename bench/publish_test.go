package bench

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"drover/internal/app"
	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/rpm"
	"drover/internal/rpm/rpmtest"
	"drover/internal/web"
)

// tagged is a server's data with a tag of n packages of AppStream's shape, the newest build of
// each source package, and as many further builds, not in the tag, of source packages in it.
type tagged struct {
	*rig
	client *web.Client
	files  string   // directory with the same packages as files
	base   []string // builds that are in the tag
	more   []string // builds that are not
	has    []int    // how many packages each of more has
}

// source is the packages of one build.
type source struct {
	name  string
	specs []rpmtest.Spec
}

// sources takes the first builds of the corpus, one of each source package, with n packages for
// x86_64.
func sources(b *testing.B, c *rpmtest.Corpus, n int) (out []source) {
	b.Helper()
	// Which packages of the corpus these are is the same in each round of its names.
	var chosen []int
	build, i := map[string]string{}, 0
	err := rpm.ReadPrimary(appStream(b), func(p rpm.PrimaryPackage) error {
		src, err := rpm.ParseNEVRA(p.Source)
		if err != nil {
			return err
		}
		if had, ok := build[src.Name]; (!ok || had == p.Source) && (p.Arch == "x86_64" || p.Arch == "noarch") {
			build[src.Name] = p.Source
			chosen = append(chosen, i)
		}
		i++
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	at := map[string]int{}
	for k := range n {
		s, err := c.Spec(k/len(chosen)*c.Len() + chosen[k%len(chosen)])
		if err != nil {
			b.Fatal(err)
		}
		src, err := rpm.ParseNEVRA(s.Source)
		if err != nil {
			b.Fatal(err)
		}
		j, ok := at[src.Name]
		if !ok {
			j = len(out)
			at[src.Name] = j
			out = append(out, source{name: src.Name})
		}
		out[j].specs = append(out[j].specs, s)
	}
	return out
}

// appStream opens AppStream's own primary.xml.
func appStream(b *testing.B) *os.File {
	b.Helper()
	found, err := filepath.Glob("../../shared/data/cs9-appstream/repodata/*-primary.xml.gz")
	if err != nil || len(found) != 1 {
		b.Fatalf("AppStream's metadata is not there: %v", err)
	}
	f, err := os.Open(found[0])
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	return f
}

// next is the next release of a build.
func (s source) next(n int) source {
	out := source{name: s.name, specs: slices.Clone(s.specs)}
	for i := range out.specs {
		was := out.specs[i].EVR()
		out.specs[i].Release += fmt.Sprintf(".%d", n)
		out.specs[i].BuildTime += int64(n)
		out.specs[i].Source = strings.Replace(out.specs[i].Source, ".src.rpm", fmt.Sprintf(".%d.src.rpm", n), 1)
		out.specs[i].Provides = slices.Clone(out.specs[i].Provides)
		for j, d := range out.specs[i].Provides {
			if d.EVR == was {
				out.specs[i].Provides[j].EVR = out.specs[i].EVR()
			}
		}
	}
	return out
}

func (s source) all() []rpmtest.Spec {
	src := s.specs[0]
	n, _ := rpm.ParseNEVRA(src.Source)
	src.NEVRA = rpm.NEVRA{Name: s.name, Epoch: src.Epoch, Version: n.Version, Release: n.Release, Arch: "src"}
	src.Source, src.Files, src.Provides, src.Modularity = "", nil, nil, ""
	return append([]rpmtest.Spec{src}, s.specs...)
}

// newTagged makes the data and starts a server on it.
func newTagged(b *testing.B, n, more int, key string) *tagged {
	b.Helper()
	t := &tagged{rig: &rig{b: b, dir: b.TempDir()}}
	t.files = filepath.Join(t.dir, "files")
	if err := os.MkdirAll(filepath.Join(t.files, "Packages"), 0o755); err != nil {
		b.Fatal(err)
	}
	t.build()
	ctx := auth.AsSystem(context.Background())
	srv, err := app.NewServer(ctx, app.Config{Dir: filepath.Join(t.dir, "data"), Listen: "127.0.0.1:0", NoBuilder: true, NoSigner: true}, "bench", slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	list := sources(b, rpmtest.Open(b), n)
	ok := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	id, rpmID := int64(0), int64(0)
	put := func(ss []source, files, tag bool) {
		for part := range slices.Chunk(ss, 100) {
			type row struct {
				n          rpm.NEVRA
				header     string
				size       int64
				head, core string
			}
			rows := make([][]row, len(part))
			batch := srv.Blobs.Batch()
			for i, s := range part {
				for _, spec := range s.all() {
					data := spec.Build()
					p, err := rpm.Read(bytes.NewReader(data), int64(len(data)))
					ok(err)
					head, err := batch.PutBytes(p.Head())
					ok(err)
					core, err := batch.PutBytes(data[p.HeaderStart:])
					ok(err)
					rows[i] = append(rows[i], row{p.NEVRA(), p.HeaderSHA256(), int64(len(data)), head.String(), core.String()})
					if files && spec.Arch != "src" {
						ok(os.WriteFile(filepath.Join(t.files, "Packages", p.NEVRA().File()), data, 0o644))
					}
				}
			}
			ok(batch.Commit())
			ok(srv.DB.Write(ctx, func(tx *db.Tx) error {
				ev, err := event.Append(tx, "bench.build", "bench", map[string]int{"builds": len(part)})
				if err != nil {
					return err
				}
				for i, s := range part {
					id++
					src := rows[i][0]
					if _, err := tx.Exec(`INSERT INTO build_build (id, package, nvr, epoch, state, target, tag, scratch, verifies, repo, revision, srpm, owner, plan, task, created, finished, code, message, remedy, line, verdict, since)
						VALUES ($1, $2, $3, 0, 'COMPLETE', 'bench', 'bench', 0, 0, '', '', '', 'bench', '{}', 0, $4, $4, '', '', '', '', '', $5)`, id, s.name, src.n.NVR(), tx.Now(), ev); err != nil {
						return err
					}
					for _, r := range rows[i] {
						rpmID++
						if _, err := tx.Exec("INSERT INTO build_rpm (id, build, task, file, name, epoch, version, release, arch, header, digest, size, head, core) VALUES ($1, $2, 0, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
							rpmID, id, r.n.File(), r.n.Name, r.n.Epoch, r.n.Version, r.n.Release, r.n.Arch, r.header, r.core, r.size, r.head, r.core); err != nil {
							return err
						}
					}
					if tag {
						t.base = append(t.base, strconv.FormatInt(id, 10))
						if _, err := tx.Exec("INSERT INTO release_tagging (tag, build, package, since, until) VALUES ('bench', $1, $2, $3, 0)", id, s.name, ev); err != nil {
							return err
						}
					} else {
						t.more = append(t.more, strconv.FormatInt(id, 10))
						t.has = append(t.has, len(s.specs))
					}
				}
				return nil
			}))
		}
	}
	put(list, true, true)
	r := rand.New(rand.NewPCG(1, 2))
	var again []source
	for i := range more {
		again = append(again, list[r.IntN(len(list))].next(i+1))
	}
	put(again, false, false)
	srv.Close()
	t.serve("--no-builder")
	t.client = &web.Client{Base: t.url, Token: t.token}
	if key != "" {
		t.run("", t.drover, "sign", "key", "create", key, "--tag", "*", "--algo", "ed25519")
	}
	return t
}

// cpu is the processor time of the server and of what it started, so far.
func (t *tagged) cpu(pid int) time.Duration {
	t.b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.b.Fatal(err)
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, _ := strconv.ParseInt(f[11], 10, 64)
	sys, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+sys) * 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go runs on
}

// peak is the largest resident size since it was last reset, in bytes.
func peak(b *testing.B, pid int) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return kb << 10
}

func resetPeak(b *testing.B, pid int) {
	b.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0o600); err != nil {
		b.Fatal(err)
	}
}

// What a build costs that goes into a tag of many packages, until its channel has moved: new
// packages signed and read, the chunks that they lie in packed, the files' checksums, repomd.xml
// signed, everything durable. The peer is createrepo_c, cold for the whole and with --update
// --skip-stat for one more package. AppStream's shape; wall clock as an HTTP client sees it.
func BenchmarkRegenerate(b *testing.B) {
	for _, n := range []int{10_000, 17_649, 60_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) { regenerate(b, n) })
	}
}

func regenerate(b *testing.B, n int) {
	const rounds, promoted = 120, 1000
	t := newTagged(b, n, rounds+promoted, "bench")
	// createrepo_c signs nothing: the whole is made without signatures first. With 10,000
	// packages the tag is signed afterwards, with more it stays without: signing that many
	// packages is another matter.
	key := "bench"
	if n > 10_000 {
		key = ""
	}
	call := func(method, path string, in any) {
		b.Helper()
		if err := t.client.Call(b.Context(), method, path, in, nil); err != nil {
			b.Fatalf("%s %s: %v", method, path, err)
		}
	}
	published := func() {
		b.Helper()
		for end := time.Now().Add(20 * time.Minute); ; {
			err := t.client.Call(b.Context(), "GET", "/api/v1/tags/bench/published", nil, nil)
			if err == nil {
				return
			}
			if time.Now().After(end) {
				b.Fatal(err)
			}
		}
	}
	began, used := time.Now(), t.cpu(t.pid)
	call("PUT", "/api/v1/tags/bench", map[string]any{"name": "bench", "arches": []string{"x86_64"}})
	published()
	full, fullCPU := time.Since(began), t.cpu(t.pid)-used
	began = time.Now()
	if key != "" {
		call("PUT", "/api/v1/tags/bench", map[string]any{"name": "bench", "arches": []string{"x86_64"}, "key": key})
		published()
		b.ReportMetric(time.Since(began).Seconds(), "s-sign-all")
	}
	repo := filepath.Join(b.TempDir(), "repo")
	if err := os.Symlink(t.files, repo); err != nil {
		b.Fatal(err)
	}
	createrepo := func(args ...string) (time.Duration, time.Duration) {
		b.Helper()
		c := exec.Command("createrepo_c", append(append([]string{"--quiet", "--no-database", "--workers", "2"}, args...), repo)...)
		at := time.Now()
		if out, err := c.CombinedOutput(); err != nil {
			b.Fatalf("createrepo_c: %v\n%s", err, out)
		}
		return time.Since(at), c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	}
	cold, coldCPU := createrepo()
	// A few rounds until everything is loaded.
	for _, id := range t.more[:20] {
		call("PUT", "/api/v1/tags/bench/builds/"+id, nil)
		published()
	}
	resetPeak(b, t.pid)
	used = t.cpu(t.pid)
	var took []time.Duration
	for _, id := range t.more[20:rounds] {
		at := time.Now()
		call("PUT", "/api/v1/tags/bench/builds/"+id, nil)
		published()
		took = append(took, time.Since(at))
	}
	cpu := (t.cpu(t.pid) - used) / time.Duration(len(took))
	update, updateCPU := createrepo("--update", "--skip-stat")
	high := peak(b, t.pid)
	move := t.moves(call, published, promoted)
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ms(took[len(took)/2]), "ms-p50")
	b.ReportMetric(ms(took[len(took)*99/100]), "ms-p99")
	b.ReportMetric(ms(cpu), "ms-CPU")
	b.ReportMetric(float64(high)/(1<<20), "MiB-RSS")
	b.ReportMetric(ms(update), "ms-createrepo-update")
	b.ReportMetric(ms(updateCPU), "ms-CPU-createrepo-update")
	b.ReportMetric(ms(update)/ms(took[len(took)/2]), "x-createrepo-update")
	b.ReportMetric(full.Seconds(), "s-full")
	b.ReportMetric(fullCPU.Seconds(), "s-CPU-full")
	b.ReportMetric(cold.Seconds(), "s-createrepo-cold")
	b.ReportMetric(coldCPU.Seconds(), "s-CPU-createrepo-cold")
	for _, m := range move {
		b.ReportMetric(ms(m.took), "ms-"+m.what)
	}
}

// moved is what a move of a channel took.
type moved struct {
	what string
	took time.Duration
}

// moves promotes the tag's channel in a line: first all of it, then a change of one build, of 20
// and of many, and goes back again. The gate is asked each time.
func (t *tagged) moves(call func(method, path string, in any), published func(), many int) (out []moved) {
	t.b.Helper()
	took := func(what string, fn func()) {
		at := time.Now()
		fn()
		out = append(out, moved{what, time.Since(at)})
	}
	promote := func() {
		call("POST", "/api/v1/channels/l%2Fprod/promote", map[string]any{"force": true, "reason": "a benchmark"})
	}
	// The first stage follows by itself.
	followed := func() {
		t.b.Helper()
		published()
		for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			var tag, dev struct{ Since int64 }
			if err := t.client.Call(t.b.Context(), "GET", "/api/v1/channels/bench", nil, &tag); err != nil {
				t.b.Fatal(err)
			}
			if err := t.client.Call(t.b.Context(), "GET", "/api/v1/channels/l%2Fdev", nil, &dev); err == nil && dev.Since > tag.Since {
				return
			} else if time.Now().After(end) {
				t.b.Fatal("the line does not follow: ", err)
			}
		}
	}
	call("PUT", "/api/v1/lines/l", map[string]any{"parts": []string{"bench"}, "stages": []string{"dev", "prod"}})
	followed()
	took("promote-first", promote)
	rest := t.more[len(t.more)-many:]
	for _, step := range []struct {
		what   string
		builds int
	}{{"promote-1-cold", 1}, {"promote-1", 1}, {"promote-5", 5}, {"promote-many", len(rest) - 7}} {
		for _, id := range rest[:step.builds] {
			call("PUT", "/api/v1/tags/bench/builds/"+id, nil)
		}
		rest = rest[step.builds:]
		followed()
		// Whoever promotes has looked at the plan before.
		took("plan-"+strings.TrimPrefix(step.what, "promote-"), func() { call("GET", "/api/v1/channels/l%2Fprod/plan", nil) })
		took(step.what, promote)
	}
	took("rollback", func() { call("POST", "/api/v1/channels/l%2Fprod/rollback", map[string]any{}) })
	return out
}
