package repo_test

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // as old repositories have it
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/release"
	"drover/internal/repo/mirrors"
	"drover/internal/repo/repotest"
	"drover/internal/repo/upstream"
)

// origin is a repository on the disk with a server that counts requests and may misbehave.
type origin struct {
	dir string
	url string

	mu     sync.Mutex // guards what follows
	seen   map[string]int
	answer func(w http.ResponseWriter, r *http.Request) bool // true: it answered
}

func newUpstream(t *testing.T, files ...string) *origin {
	t.Helper()
	u := &origin{dir: t.TempDir(), seen: map[string]int{}}
	u.put(t, files...)
	fsrv := http.FileServer(http.Dir(u.dir))
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		u.seen[r.URL.Path]++
		answer := u.answer
		u.mu.Unlock()
		if answer == nil || !answer(w, r) {
			fsrv.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(ts.Close)
	u.url = ts.URL + "/"
	return u
}

// put adds packages and writes the metadata anew.
func (u *origin) put(t *testing.T, files ...string) {
	t.Helper()
	for _, f := range files {
		must(t, nil, "cp", f, u.dir)
	}
	must(t, nil, "createrepo_c", "-q", "--no-database", "--general-compress-type=gz", u.dir)
}

func (u *origin) behave(fn func(w http.ResponseWriter, r *http.Request) bool) {
	u.mu.Lock()
	u.answer = fn
	u.mu.Unlock()
}

// requests tells how often paths with a suffix were asked for since the last call.
func (u *origin) requests(suffix string) (n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for p, k := range u.seen {
		if strings.HasSuffix(p, suffix) {
			n += k
			delete(u.seen, p)
		}
	}
	return n
}

func (u *origin) edit(t *testing.T, file string, fn func([]byte) []byte) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(u.dir, file))
	if err != nil || len(names) != 1 {
		t.Fatal(file, names, err)
	}
	b, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(names[0], fn(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func real(t *testing.T) []string {
	return []string{repotest.Data(t, "rpm-basic-with-ima-2.3.4-5.el9.noarch.rpm"), repotest.Data(t, "rpm-hardlinks-1.0-1.noarch.rpm"), repotest.Data(t, "rpm-file-types-1.0-1.noarch.rpm")}
}

func blobs(t *testing.T, h *repotest.House) (n int) {
	t.Helper()
	m, err := filepath.Glob(filepath.Join(h.Dir, "blobs/sha256/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(m)
}

// leftovers finds what a sync should have taken away; parts of files stay when it failed.
func leftovers(t *testing.T, h *repotest.House, failed bool) {
	t.Helper()
	for _, dir := range []string{"incoming/fetch", "blobs/staging"} {
		if m, err := filepath.Glob(filepath.Join(h.Dir, dir, "*")); err != nil || len(m) > 0 && (!failed || dir != "incoming/fetch") {
			t.Errorf("left over: %v %v", m, err)
		}
	}
}

func TestMirror(t *testing.T) {
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h, u := repotest.New(t, d), newUpstream(t, real(t)...)
		h.OK(h.Mirrors.Set(h.System, mirrorOf("up", u.url, "x86_64")))
		h.OK(h.Mirrors.Set(h.System, mirrorOf("up", u.url, "x86_64")))
		var last mirrors.Progress
		id, err := h.Mirrors.Sync(h.System, "up", func(p mirrors.Progress) { last = p })
		h.OK(err)
		if last.Packages != 3 || last.Done != 3 || last.Bytes == 0 {
			t.Errorf("progress: %+v", last)
		}
		// A full copy: the same bytes at the same places, for curl and for dnf.
		base := h.URL + "/snapshots/" + id + "/x86_64/"
		dir := t.TempDir()
		if hrefs := copyTree(t, base, dir); len(hrefs) != 3 {
			t.Errorf("copied %v", hrefs)
		}
		must(t, nil, "diff", "-r", u.dir, dir)
		_, repoFile := get(t, h.URL+"/channels/up.repo")
		root := t.TempDir()
		if out, err := dnf(t, string(repoFile), root, "rpm-hardlinks"); err != nil {
			t.Errorf("dnf: %v\n%s", err, out)
		}
		leftovers(t, h, false)

		// Unchanged, it costs one request, and nothing here.
		u.requests("")
		before, files := h.Events("mirror."), blobs(t, h)
		again, err := h.Mirrors.Sync(h.System, "up", nil)
		if err != nil || again != id || h.Events("mirror.") != before || blobs(t, h) != files {
			t.Errorf("unchanged: %.12s is now %.12s, %d new events, %v", id, again, h.Events("mirror.")-before, err)
		}
		if n := u.requests(""); n != 1 {
			t.Errorf("unchanged: %d requests", n)
		}

		// One package more: one more is fetched.
		u.put(t, repotest.Data(t, "rpm-empty-0-0.x86_64.rpm"))
		next, err := h.Mirrors.Sync(h.System, "up", nil)
		if err != nil || next == id {
			t.Fatalf("changed: %v %v", next, err)
		}
		if n := u.requests(".rpm"); n != 1 {
			t.Errorf("for one new package %d were fetched", n)
		}
		copyTree(t, base, t.TempDir()) // the old snapshot still stands
		ms, err := h.Mirrors.List(h.System)
		if err != nil || len(ms) != 1 || ms[0].Outcome != "ok" || ms[0].Synced.IsZero() {
			t.Errorf("mirrors: %+v %v", ms, err)
		}
		// Upstream goes back: so does the channel, onto the old snapshot.
		if err := os.Remove(filepath.Join(u.dir, "rpm-empty-0-0.x86_64.rpm")); err != nil {
			t.Fatal(err)
		}
		u.put(t)
		if c, err := h.Repo.Channel(h.System, "up", ""); err != nil || c.Snapshot != next {
			t.Errorf("channel: %+v %v", c, err)
		}

		// Names are one space.
		if err := h.Release.SetTag(h.System, release.Tag{Name: "tag", Arches: []string{"x86_64"}}); err != nil {
			t.Error(err)
		}
		if err := h.Mirrors.Set(h.System, mirrorOf("tag", u.url, "x86_64")); fault.Code(err) != "channel_taken" {
			t.Errorf("a mirror named as a tag: %v", err)
		}
		h.OK(h.Release.SetTag(h.System, release.Tag{Name: "up", Arches: []string{"x86_64"}}))
		for deadline := time.Now().Add(10 * time.Second); !strings.Contains(h.Log.String(), "is that of a mirror"); {
			if time.Now().After(deadline) {
				t.Fatal("a tag named as a mirror was published")
			}
			time.Sleep(20 * time.Millisecond)
		}
		if c, err := h.Repo.Channel(h.System, "up", ""); err != nil || c.Snapshot != next {
			t.Errorf("the mirror's channel was moved: %+v %v", c, err)
		}
		for _, bad := range []mirrors.Mirror{mirrorOf("a", "ftp://x/", "x86_64"), mirrorOf("a", "file:///etc/", "x86_64"), mirrorOf("a", "http://u:p@x/", "x86_64"), mirrorOf("a", "http://x/?q", "x86_64"),
			mirrorOf("../a", u.url, "x86_64"), mirrorOf("a", u.url, "../x"), mirrorOf("a", "http://x/"+strings.Repeat("x", 1000), "x86_64")} {
			if err := h.Mirrors.Set(h.System, bad); fault.As(err) == nil || fault.As(err).Kind != fault.KindInvalid {
				t.Errorf("%+v: %v", bad, err)
			}
		}
		if _, err := h.Mirrors.Sync(h.System, "none", nil); fault.Code(err) != "mirror_unknown" {
			t.Errorf("unknown mirror: %v", err)
		}
	})
}

// Whatever is wrong upstream, no channel appears, and the reason is on record.
func TestMirrorRefuses(t *testing.T) {
	cases := map[string]struct {
		spoil func(t *testing.T, u *origin)
		code  string
	}{
		"a changed package": {func(t *testing.T, u *origin) {
			u.edit(t, "rpm-hardlinks*", func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
		}, "mirror_moved"},
		"a cut package": {func(t *testing.T, u *origin) {
			u.edit(t, "rpm-hardlinks*", func(b []byte) []byte { return b[:len(b)-1] })
		}, "mirror_moved"},
		"a longer package": {func(t *testing.T, u *origin) {
			u.edit(t, "rpm-hardlinks*", func(b []byte) []byte { return append(b, 0) })
		}, "mirror_moved"},
		"a missing package": {func(t *testing.T, u *origin) {
			if err := os.Remove(filepath.Join(u.dir, "rpm-hardlinks-1.0-1.noarch.rpm")); err != nil {
				t.Fatal(err)
			}
		}, "mirror_moved"},
		"a package under another's name": {func(t *testing.T, u *origin) {
			u.repack(t, func(p string) string { return strings.Replace(p, "<name>rpm-hardlinks</name>", "<name>bash</name>", 1) })
		}, "mirror_lie"},
		"an rpm that is none": {func(t *testing.T, u *origin) {
			f := filepath.Join(u.dir, "rpm-hardlinks-1.0-1.noarch.rpm")
			was, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			junk := bytes.Repeat([]byte("junk"), len(was)/4)
			if err := os.WriteFile(f, junk, 0o600); err != nil {
				t.Fatal(err)
			}
			u.repack(t, func(p string) string {
				p = strings.Replace(p, sum256(was), sum256(junk), 1)
				return strings.Replace(p, fmt.Sprintf(`package="%d"`, len(was)), fmt.Sprintf(`package="%d"`, len(junk)), 1)
			})
		}, "rpm_header"},
		"a path that leads out": {func(t *testing.T, u *origin) {
			u.repack(t, func(p string) string { return strings.Replace(p, `href="rpm-hard`, `href="../../etc/rpm-hard`, 1) })
		}, "repodata_location"},
		"an absolute path": {func(t *testing.T, u *origin) {
			u.repack(t, func(p string) string {
				return strings.Replace(p, `href="rpm-hard`, `href="http://127.0.0.1:1/rpm-hard`, 1)
			})
		}, "repodata_location"},
		"metadata that leads out": {func(t *testing.T, u *origin) {
			u.edit(t, "repodata/repomd.xml", func(b []byte) []byte {
				return bytes.Replace(b, []byte(`href="repodata/`), []byte(`href="../repodata/`), 1)
			})
		}, "repodata_location"},
		"changed metadata": {func(t *testing.T, u *origin) {
			u.edit(t, "repodata/*-filelists.xml.gz", func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
		}, "mirror_moved"},
		"metadata that unpacks to something else": {func(t *testing.T, u *origin) {
			u.edit(t, "repodata/repomd.xml", func(b []byte) []byte {
				re := regexp.MustCompile(`<open-checksum type="sha256">[0-9a-f]{64}`)
				return re.ReplaceAll(b, []byte(`<open-checksum type="sha256">`+strings.Repeat("0", 64)))
			})
		}, "mirror_moved"},
		"huge metadata": {func(t *testing.T, u *origin) {
			u.edit(t, "repodata/repomd.xml", func(b []byte) []byte {
				return regexp.MustCompile(`<size>\d+`).ReplaceAll(b, []byte(`<size>99999999999`))
			})
		}, "mirror_size"},
		"a huge package": {func(t *testing.T, u *origin) {
			u.repack(t, func(p string) string {
				return regexp.MustCompile(`package="\d+"`).ReplaceAllString(p, `package="999999999999999"`)
			})
		}, "mirror_size"},
		"the same package twice": {func(t *testing.T, u *origin) {
			u.repack(t, func(p string) string {
				i, j := strings.Index(p, "<package "), strings.Index(p, "</package>")+10
				return p[:j] + p[i:j] + p[j:]
			})
		}, "mirror_twice"},
		"no repomd.xml":   {func(t *testing.T, u *origin) { u.behave(status(404)) }, "fetch_missing"},
		"a broken server": {func(t *testing.T, u *origin) { u.behave(status(500)) }, "fetch_away"},
		"a closed server": {func(t *testing.T, u *origin) { u.behave(status(403)) }, "fetch_denied"},
		"a repomd.xml without end": {func(t *testing.T, u *origin) {
			u.behave(func(w http.ResponseWriter, r *http.Request) bool {
				for range 3 << 10 {
					if _, err := w.Write(bytes.Repeat([]byte("<repomd>"), 128)); err != nil {
						break
					}
				}
				return true
			})
		}, "fetch_size"},
		"a redirect to a file": {func(t *testing.T, u *origin) {
			u.behave(func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
				return true
			})
		}, "fetch_refused"},
		"redirects without end": {func(t *testing.T, u *origin) {
			u.behave(func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, r.URL.Path, http.StatusFound)
				return true
			})
		}, "fetch_refused"},
		"a connection that is cut": {func(t *testing.T, u *origin) {
			u.behave(func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, ".rpm") {
					info, err := os.Stat(filepath.Join(u.dir, r.URL.Path))
					if err != nil {
						t.Error(err)
						return false
					}
					w.Header().Set("Content-Length", strconv.FormatInt(info.Size(), 10))
					_, _ = w.Write([]byte("\xed\xab\xee\xdb"))
					_ = http.NewResponseController(w).Flush()
					panic(http.ErrAbortHandler)
				}
				return false
			})
		}, "fetch_away"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of it is waiting between tries
			d := dbtest.SQLite(t, repotest.Schemas()...)
			h, u := repotest.New(t, d), newUpstream(t, real(t)...)
			c.spoil(t, u)
			h.OK(h.Mirrors.Set(h.System, mirrorOf("up", u.url, "x86_64")))
			if _, err := h.Mirrors.Sync(h.System, "up", nil); fault.Code(err) != c.code {
				t.Errorf("%v, want %s", err, c.code)
			}
			if _, err := h.Repo.Channel(h.System, "up", ""); fault.Code(err) != "channel_unknown" {
				t.Errorf("there is a channel: %v", err)
			}
			h.OK(d.Read(h.System, func(tx *db.Tx) error {
				es, err := event.List(tx, event.Filter{Kind: "mirror.failed", Subject: "mirror/up"})
				if len(es) != 1 {
					t.Errorf("%d events of the failure", len(es))
				}
				return err
			}))
			leftovers(t, h, true)
		})
	}
}

// mirrorOf is a mirror of an address.
func mirrorOf(name, url, arch string) mirrors.Mirror {
	return mirrors.Mirror{Name: name, Config: mirrors.Config{Source: upstream.Source{URL: url}, Arch: arch}}
}

func status(code int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
}

// repack changes primary.xml and gives repomd.xml the new checksums.
func (u *origin) repack(t *testing.T, fn func(string) string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(u.dir, "repodata/*-primary.xml.gz"))
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	was := must(t, nil, "zcat", names[0])
	now := fn(was)
	if now == was {
		t.Fatal("nothing was changed")
	}
	plain := filepath.Join(t.TempDir(), "primary.xml")
	if err := os.WriteFile(plain, []byte(now), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, nil, "modifyrepo_c", "--mdtype=primary", "--no-compress", plain, filepath.Join(u.dir, "repodata"))
}

// Upstream changes while it is copied: the copy is of one state or the other.
func TestMirrorOfAMovingUpstream(t *testing.T) {
	u := newUpstream(t, real(t)...)
	d := dbtest.SQLite(t, repotest.Schemas()...)
	h := repotest.New(t, d)
	h.OK(h.Mirrors.Set(h.System, mirrorOf("up", u.url, "x86_64")))
	var once sync.Once
	u.behave(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, ".rpm") {
			once.Do(func() {
				if err := os.Remove(filepath.Join(u.dir, "rpm-hardlinks-1.0-1.noarch.rpm")); err != nil {
					t.Error(err)
				}
				u.put(t, repotest.Data(t, "rpm-empty-0-0.x86_64.rpm"))
			})
		}
		return false
	})
	id, err := h.Mirrors.Sync(h.System, "up", nil)
	h.OK(err)
	dir := t.TempDir()
	copyTree(t, h.URL+"/snapshots/"+id+"/x86_64/", dir)
	must(t, nil, "diff", "-r", u.dir, dir)
}

// A sync that is cut off goes on with what it has.
func TestMirrorGoesOn(t *testing.T) {
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		u := newUpstream(t, real(t)...)
		h := repotest.New(t, d)
		h.OK(h.Mirrors.Set(h.System, mirrorOf("up", u.url, "x86_64")))
		ctx, cancel := context.WithCancel(h.System)
		hold := make(chan struct{})
		u.behave(func(_ http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "rpm-hardlinks-1.0-1.noarch.rpm") {
				<-hold
			}
			return false
		})
		go func() {
			for { // the other two packages are kept, the third one hangs
				var n int
				if err := d.Read(h.System, func(tx *db.Tx) error { return tx.QueryRow("SELECT COUNT(*) FROM repo_package").Scan(&n) }); err != nil || n == 2 {
					cancel()
					close(hold)
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		}()
		if _, err := h.Mirrors.Sync(ctx, "up", nil); err == nil {
			t.Fatal("it was not cut off")
		}
		if _, err := h.Repo.Channel(h.System, "up", ""); fault.Code(err) != "channel_unknown" {
			t.Errorf("half a mirror has a channel: %v", err)
		}
		u.requests("")
		// Two at once: one of them works, the other says so.
		u.behave(func(_ http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, ".rpm") {
				if _, err := h.Mirrors.Sync(h.System, "up", nil); fault.Code(err) != "mirror_busy" {
					t.Errorf("a second sync: %v", err)
				}
			}
			return false
		})
		_, err := h.Mirrors.Sync(h.System, "up", nil)
		h.OK(err)
		if n := u.requests(".rpm"); n != 1 {
			t.Errorf("%d packages were fetched again", n-1)
		}
		if n := u.requests(".gz"); n != 0 {
			t.Errorf("%d metadata files were fetched again", n)
		}
		leftovers(t, h, false)
	})
}

// An old repository names its files by sha1.
func TestMirrorBySHA1(t *testing.T) {
	u := newUpstream(t, real(t)...)
	must(t, nil, "createrepo_c", "-q", "--no-database", "--general-compress-type=gz", "-s", "sha1", u.dir)
	h := repotest.New(t, dbtest.SQLite(t, repotest.Schemas()...))
	h.OK(h.Mirrors.Set(h.System, mirrorOf("old", strings.TrimSuffix(u.url, "/"), "x86_64")))
	id, err := h.Mirrors.Sync(h.System, "old", nil)
	h.OK(err)
	b, err := os.ReadFile(filepath.Join(u.dir, "rpm-hardlinks-1.0-1.noarch.rpm"))
	h.OK(err)
	sum := sha1.Sum(b) //nolint:gosec // see above
	_, md := get(t, h.URL+"/snapshots/"+id+"/x86_64/repodata/repomd.xml")
	if !bytes.Contains(md, []byte(`checksum type="sha`)) || bytes.Contains(md, []byte(hex.EncodeToString(sum[:]))) {
		t.Errorf("repomd.xml: %s", md)
	}
	copyTree(t, h.URL+"/snapshots/"+id+"/x86_64/", t.TempDir())
}

// Only who may, may; a builder or signer may not.
func TestRightsOfRepo(t *testing.T) {
	h := repotest.New(t, dbtest.SQLite(t, repotest.Schemas()...))
	for _, a := range []auth.Actor{{}, {Kind: auth.Person, Name: "p", Role: "packager"}, {Kind: auth.Builder, Name: "b", Role: "builder"}, {Kind: auth.Signer, Name: "s", Role: "signer"}} {
		ctx := auth.With(t.Context(), a)
		_, serr := h.Mirrors.Sync(ctx, "x", nil)
		for what, err := range map[string]error{"mirror": h.Mirrors.Set(ctx, mirrorOf("x", "http://x/", "x86_64")), "sync": serr, "channel": h.Repo.Point(ctx, "x", "01234567")} {
			if k := fault.As(err); k == nil || k.Kind != fault.KindDenied && k.Kind != fault.KindUnauthorized {
				t.Errorf("%s by %s: %v", what, a, err)
			}
		}
	}
}
