package site_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"drover/internal/db/dbtest"
	"drover/internal/release"
	"drover/internal/repo/repotest"
	"drover/internal/repo/wire"
	"drover/internal/rpm"
	"drover/internal/site"
	"drover/internal/web"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
	}
	os.Exit(m.Run())
}

// gate stands between the centre and sites: it counts, changes and cuts what goes through.
type gate struct {
	t   testing.TB
	URL string
	mu  sync.Mutex // guards what follows
	// change may replace the body of an answer; nil leaves all as it is.
	change func(path string, body []byte) []byte
	down   bool
	delay  time.Duration
	bytes  int64
	paths  []string
	shut   func()
}

func newGate(t testing.TB, centre string) *gate {
	t.Helper()
	u, err := url.Parse(centre)
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{t: t}
	p := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), ModifyResponse: func(r *http.Response) error {
		g.mu.Lock()
		change := g.change
		g.mu.Unlock()
		if strings.HasPrefix(r.Request.URL.Path, "/api/") {
			return nil
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		if change != nil && r.StatusCode < 300 {
			if b = change(r.Request.URL.Path, bytes.Clone(b)); b == nil {
				r.StatusCode, b = http.StatusNotFound, []byte(`{"code":"file_unknown","detail":"gone","status":404}`)
			}
		}
		g.mu.Lock()
		g.bytes += int64(len(b))
		g.mu.Unlock()
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
		r.Header.Set("Content-Length", fmt.Sprint(len(b)))
		return nil
	}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		down, delay := g.down, g.delay
		if !down {
			g.paths = append(g.paths, r.URL.Path)
		}
		g.mu.Unlock()
		if down {
			panic(http.ErrAbortHandler)
		}
		if !strings.HasPrefix(r.URL.Path, "/api/") {
			time.Sleep(delay)
		}
		p.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	g.URL = srv.URL
	g.shut = srv.CloseClientConnections
	return g
}

// set changes how the gate behaves.
func (g *gate) set(fn func(*gate)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	fn(g)
}

// stop cuts the centre off, also for those who wait.
func (g *gate) stop() {
	g.set(func(g *gate) { g.down = true })
	g.shut()
}

// asked counts the requests for paths that contain something.
func (g *gate) asked(part string) (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.paths {
		if strings.Contains(p, part) {
			n++
		}
	}
	return n
}

// config is that of a site in a directory of its own.
func config(t testing.TB, centre string, log io.Writer, channels ...string) site.Config {
	t.Helper()
	return site.Config{Centre: &web.Client{Base: centre, HTTP: &http.Client{Transport: &http.Transport{}}}, Dir: filepath.Join(t.TempDir(), "site"), Listen: "127.0.0.1:0", Channels: channels,
		Log: slog.New(slog.NewTextHandler(log, nil)), Version: "test"}
}

// start runs a site until stop is called or the test ends.
func start(t testing.TB, c site.Config) (s *site.Site, stop func()) {
	t.Helper()
	s, err := site.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("site: %v", err)
		}
		s.Close()
	}
	t.Cleanup(stop)
	return s, stop
}

// wait waits until the site is as it should be.
func wait(t testing.TB, s *site.Site, what string, ok func(site.Status) bool) site.Status {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		st := s.Status()
		if ok(st) {
			return st
		}
		if time.Now().After(end) {
			b, _ := json.MarshalIndent(st, "", " ")
			t.Fatalf("waited for %s: %s", what, b)
		}
	}
}

// at waits until the site serves a snapshot.
func at(t testing.TB, s *site.Site, snapshot string) site.Status {
	t.Helper()
	return wait(t, s, snapshot, func(st site.Status) bool { return st.Channels[0].Snapshot == snapshot })
}

func get(t testing.TB, u string, header ...string) (*http.Response, []byte, error) {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, u, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

func sum256(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// whole fetches a tree as a host could, and checks every byte against its repomd.xml.
func whole(t testing.TB, base string, packages bool) (hrefs []string, size int64) {
	t.Helper()
	must := func(path string) []byte {
		t.Helper()
		resp, b, err := get(t, base+path)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %v %v %s", base+path, resp, err, b)
		}
		size += int64(len(b))
		return b
	}
	ds, err := rpm.ReadRepomd(must("repodata/repomd.xml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range ds {
		b := must(d.Href)
		if sum256(b) != d.Sum {
			t.Fatalf("%s comes with other bytes", d.Href)
		}
		if d.Type != "primary" {
			continue
		}
		if err := rpm.ReadPrimary(bytes.NewReader(b), func(p rpm.PrimaryPackage) error {
			hrefs = append(hrefs, p.Href)
			if packages && sum256(must(p.Href)) != p.Sum {
				t.Errorf("%s comes with other bytes", p.Href)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return hrefs, size
}

// dnf installs packages into a fresh root, by what a .repo file says.
func dnf(t testing.TB, repoFile string, pkgs ...string) (root, out string, err error) {
	t.Helper()
	dir, root := t.TempDir(), t.TempDir()
	for file, text := range map[string]string{"repos/x.repo": repoFile, "home/.rpmmacros": "%_dbpath /var/lib/rpm\n%__gpg /usr/bin/gpg\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	home := filepath.Join(dir, "home")
	c := exec.Command("dnf", append([]string{"-y", "--installroot=" + root, "--releasever=9", "--forcearch=x86_64", "--setopt=reposdir=" + filepath.Join(dir, "repos"), "--setopt=varsdir=/nonexistent",
		"--setopt=cachedir=" + filepath.Join(dir, "cache"), "--setopt=persistdir=" + filepath.Join(dir, "persist"), "--setopt=pluginpath=/nonexistent", "--setopt=install_weak_deps=0", "--setopt=retries=1", "install"}, pkgs...)...)
	c.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "HOME="+home, "GNUPGHOME="+home)
	b, err := c.CombinedOutput()
	return root, string(b), err
}

// centre is a server with a signed tag "stream" that holds hello and more.
func centre(t testing.TB, specs ...string) *repotest.House {
	t.Helper()
	h := repotest.New(t, dbtest.SQLite(t, repotest.Schemas()...))
	h.StartSigner(true)
	h.Key("k", "ed25519", "*")
	h.Tag(release.Tag{Name: "stream", Key: "k"})
	h.Published("stream")
	for _, n := range specs {
		srpm, rpms := repotest.RPMBuild(t, repotest.Spec(n, "1"))
		h.Submit("stream", srpm, rpms...)
	}
	return h
}

// Hosts install through a site, and go on when the centre is away.
func TestSite(t *testing.T) {
	h := centre(t, "hello", "other")
	g := newGate(t, h.URL)
	one := h.Published("stream")
	c := config(t, g.URL, h.Log, "stream")
	s, _ := start(t, c)
	at(t, s, one.Snapshot)
	repoFile := func() string {
		t.Helper()
		resp, b, err := get(t, s.URL+"/channels/stream.repo")
		if err != nil || resp.StatusCode != 200 || !strings.Contains(string(b), "gpgkey="+s.URL+"/keys/k.asc") {
			t.Fatalf(".repo: %v %v %s", resp, err, b)
		}
		return string(b)
	}
	for range 2 {
		root, out, err := dnf(t, repoFile(), "hello")
		if err != nil {
			t.Fatalf("dnf: %v\n%s\n%s", err, out, h.Log)
		}
		if b, err := os.ReadFile(filepath.Join(root, "usr/bin/hello")); err != nil || string(b) != repotest.Program {
			t.Errorf("installed: %q, %v", b, err)
		}
	}
	if n := g.asked("hello-1-1.noarch.rpm"); n != 1 {
		t.Errorf("two hosts cost %d downloads", n)
	}
	st := s.Status()
	if st.Hits != 1 || st.Misses != 1 || st.HitRatio != 0.5 || st.Served == 0 || st.Fetched == 0 || st.Packages != 1 {
		t.Errorf("status: %+v", st)
	}

	// A new state is seen at once.
	srpm, rpms := repotest.RPMBuild(t, repotest.Spec("hello", "2"))
	h.Submit("stream", srpm, rpms...)
	two := h.Published("stream")
	began := time.Now()
	at(t, s, two.Snapshot)
	d := time.Since(began)
	if t.Logf("a new state is served %s after the centre has it", d); d > time.Second {
		t.Error("that is late")
	}
	// Back too: what the centre says, whatever is newer.
	h.OK(h.Repo.Point(h.System, "stream", one.Snapshot))
	at(t, s, one.Snapshot)
	h.OK(h.Repo.Point(h.System, "stream", two.Snapshot))
	at(t, s, two.Snapshot)
	for _, sn := range []string{one.Snapshot, two.Snapshot} {
		for _, base := range []string{"/channels/stream/at/" + sn, "/snapshots/" + sn} {
			if hrefs, _ := whole(t, s.URL+base+"/x86_64/", false); len(hrefs) != 2 {
				t.Errorf("%s holds %v", base, hrefs)
			}
		}
	}
	_, link, _ := get(t, s.URL+"/channels/stream/x86_64/metalink?snapshot=$drover_snapshot&ring=$drover_ring")
	_, theirs, _ := get(t, h.URL+"/channels/stream/x86_64/metalink")
	if m, err := rpm.ReadMetalink(link); err != nil || len(m.Alternates) != 1 || m.Mirrors[0].Root != s.URL+"/channels/stream/at/"+two.Snapshot+"/x86_64/" || !strings.Contains(string(theirs), m.Current.Sums["sha512"]) {
		t.Errorf("metalink: %v\n%s", err, link)
	}
	if _, b, _ := get(t, s.URL+"/channels/stream/x86_64/metalink?snapshot="+one.Snapshot[:12]); !strings.Contains(string(b), "/at/"+one.Snapshot+"/") {
		t.Errorf("pinned: %s", b)
	}
	_, mine, _ := get(t, s.URL+"/channels/stream.rpm")
	_, again, _ := get(t, s.URL+"/channels/stream.rpm")
	if !bytes.Equal(mine, again) || len(mine) == 0 {
		t.Error("the package that leads to the site changes")
	}

	// A site that never had a state fetches it when a host is pinned there.
	late, _ := start(t, config(t, g.URL, h.Log, "stream"))
	at(t, late, two.Snapshot)
	_, link, _ = get(t, late.URL+"/channels/stream/x86_64/metalink?snapshot="+one.Snapshot[:12])
	if m, err := rpm.ReadMetalink(link); err != nil || m.Mirrors[0].Root != late.URL+"/channels/stream/at/"+one.Snapshot+"/x86_64/" {
		t.Errorf("a snapshot that the site never had: %v\n%s", err, link)
	}
	if hrefs, _ := whole(t, late.URL+"/channels/stream/at/"+one.Snapshot+"/x86_64/", true); len(hrefs) != 2 {
		t.Errorf("it holds %v", hrefs)
	}
	// Who is counted here is counted there.
	for range 3 {
		_, _, _ = get(t, s.URL+"/channels/stream/x86_64/metalink?countme=2")
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var cs []struct {
			Age   string
			Hosts int64
		}
		h.OK(h.Client.Call(t.Context(), "GET", "/api/v1/channels/stream/census", nil, &cs))
		if slices.ContainsFunc(cs, func(c struct {
			Age   string
			Hosts int64
		}) bool {
			return c.Age == "first month" && c.Hosts == 3
		}) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("census: %+v", cs)
		}
	}

	// Away.
	g.stop()
	wait(t, s, "the loss of the centre", func(st site.Status) bool { return st.Channels[0].Stale })
	if resp, b, err := get(t, s.URL+"/channels/stream/x86_64/metalink"); err != nil || resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Warning"), "110 ") || resp.Header.Get("Age") == "" {
		t.Errorf("metalink without the centre: %v %v %s", resp, err, b)
	}
	_, out, err := dnf(t, repoFile(), "hello-1-1")
	if err == nil || strings.Contains(out, "Failed") {
		t.Errorf("hello-1-1 is not in the present state: %s", out)
	}
	pinned := strings.ReplaceAll(repoFile(), "snapshot=$drover_snapshot", "snapshot="+one.Snapshot)
	if _, out, err := dnf(t, pinned, "hello"); err != nil {
		t.Errorf("dnf without the centre: %v\n%s", err, out)
	}
	var p web.Problem
	hrefs, _ := whole(t, s.URL+"/channels/stream/x86_64/", false)
	i := slices.IndexFunc(hrefs, func(h string) bool { return strings.Contains(h, "other") })
	if resp, b, err := get(t, s.URL+"/channels/stream/x86_64/"+hrefs[i], "Accept", "application/json"); err != nil || resp.StatusCode != 503 || json.Unmarshal(b, &p) != nil || p.Code != "site_centre_away" {
		t.Errorf("a package that is not here: %v %v %s", resp, err, b)
	}
	g.set(func(g *gate) { g.down = false })
	wait(t, s, "the centre's return", func(st site.Status) bool { return !st.Channels[0].Stale && st.Channels[0].Trouble == "" })
	if _, out, err := dnf(t, repoFile(), "other"); err != nil {
		t.Errorf("dnf with the centre again: %v\n%s", err, out)
	}
}

// A site that fetches ahead has everything before anybody asks, and after a restart without the
// centre too. Another site may stand behind it.
func TestAheadAndBehind(t *testing.T) {
	t.Parallel()
	h := centre(t, "hello", "other")
	g := newGate(t, h.URL)
	one := h.Published("stream")
	c := config(t, g.URL, h.Log, "stream")
	c.Ahead = true
	s, stop := start(t, c)
	at(t, s, one.Snapshot)
	wait(t, s, "all packages", func(st site.Status) bool { return st.Packages == 2 })
	d := config(t, s.URL, h.Log, "stream")
	second, _ := start(t, d)
	at(t, second, one.Snapshot)
	if hrefs, _ := whole(t, second.URL+"/channels/stream/x86_64/", true); len(hrefs) != 2 {
		t.Errorf("the site behind has %v", hrefs)
	}
	stop()
	g.stop()
	s, _ = start(t, c)
	resp, b, err := get(t, s.URL+"/channels/stream.repo")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("after a restart: %v %v", resp, err)
	}
	if _, out, err := dnf(t, string(b), "hello", "other"); err != nil {
		t.Errorf("dnf after a restart without the centre: %v\n%s", err, out)
	}
	if n := g.asked(".src.rpm"); n != 0 {
		t.Errorf("source packages were fetched ahead, %d", n)
	}
}

// Metadata that somebody removed from the disk comes again, with the next state at the latest.
func TestRemovedMetadata(t *testing.T) {
	t.Parallel()
	h := centre(t, "hello")
	c := config(t, h.URL, h.Log, "stream")
	one := h.Published("stream")
	s, _ := start(t, c)
	at(t, s, one.Snapshot)
	h.OK(os.RemoveAll(filepath.Join(c.Dir, "blobs", "sha256")))
	for i := range 256 {
		h.OK(os.MkdirAll(filepath.Join(c.Dir, "blobs", "sha256", fmt.Sprintf("%02x", i)), 0o750))
	}
	srpm, rpms := repotest.RPMBuild(t, repotest.Spec("hello", "2"))
	h.Submit("stream", srpm, rpms...)
	st := at(t, s, h.Published("stream").Snapshot)
	if st.Channels[0].States != 1 {
		t.Errorf("states that are not whole stay: %+v", st)
	}
	for _, tree := range []string{"source", "x86_64", "x86_64-debug"} {
		whole(t, s.URL+"/channels/stream/"+tree+"/", true)
	}
}

// bulk makes a source package with n small packages.
func bulk(t testing.TB, name string, n int) (srpm string, rpms []string) {
	t.Helper()
	var sub, files strings.Builder
	for i := range n {
		fmt.Fprintf(&sub, "%%package p%d\nSummary: x\n%%description p%d\nx\n", i, i)
		fmt.Fprintf(&files, "%%files p%d\n%%dir /usr/share/%s\n/usr/share/%s/f%d\n", i, name, name, i)
	}
	return repotest.RPMBuild(t, fmt.Sprintf(`Name: %s
Version: 1
Release: 1
Summary: A test
License: MIT
BuildArch: noarch
%%description
A test.
%s
%%install
mkdir -p %%{buildroot}/usr/share/%s
for i in $(seq 0 %d); do echo $i > %%{buildroot}/usr/share/%s/f$i; done
%s`, name, sub.String(), name, n-1, name, files.String()))
}

// What a changed package costs: the chunk that it is in, not the metadata.
func TestChunksOnly(t *testing.T) {
	t.Parallel()
	sources, each := 5, 20
	changed := []string{"hello"}
	if os.Getenv("DROVER_LONG") != "" {
		sources, each = 120, 25
		changed = append(changed, "aaa", "bulk2x", "bulk5x", "zzz")
	}
	h := centre(t, changed...)
	for i := range sources {
		srpm, rpms := bulk(t, fmt.Sprintf("bulk%d", i), each)
		h.Submit("stream", srpm, rpms...)
	}
	g := newGate(t, h.URL)
	one := h.Published("stream")
	s, _ := start(t, config(t, g.URL, h.Log, "stream"))
	at(t, s, one.Snapshot)
	full := int64(0) // as a site without chunks has to fetch it
	for _, name := range []string{"source", "x86_64"} {
		_, size := whole(t, s.URL+"/channels/stream/"+name+"/", false)
		full += size
	}
	sum := int64(0)
	for _, name := range changed {
		g.set(func(g *gate) { g.bytes, g.paths = 0, nil })
		srpm, rpms := repotest.RPMBuild(t, repotest.Spec(name, "2"))
		h.Submit("stream", srpm, rpms...)
		at(t, s, h.Published("stream").Snapshot)
		g.mu.Lock()
		delta := g.bytes
		g.mu.Unlock()
		sum += delta
		chunks, files := g.asked("/chunks/"), g.asked("primary")+g.asked("filelists")+g.asked("other")
		t.Logf("%d packages: %d bytes of metadata in all, %d after a change of %s (1/%.1f), %d chunks", sources*each+len(changed), full, delta, name, float64(full)/float64(delta), chunks)
		if files != 0 || chunks == 0 || chunks > 4 {
			t.Errorf("fetched %d whole files and %d chunks", files, chunks)
		}
		if n := g.asked("debug"); n != 0 {
			t.Errorf("%d requests for a tree that did not change", n)
		}
	}
	if mean := sum / int64(len(changed)); os.Getenv("DROVER_LONG") != "" && mean*5 > full {
		t.Errorf("%d bytes are over a fifth of %d", mean, full)
	}
	if hrefs, _ := whole(t, s.URL+"/channels/stream/x86_64/", false); len(hrefs) != sources*each+len(changed) {
		t.Errorf("%d packages", len(hrefs))
	}
}

// flip changes a byte in the middle.
func flip(b []byte) []byte {
	b[len(b)/2] ^= 1
	return b
}

// What somebody changes on the way is never served.
func TestTampered(t *testing.T) {
	t.Parallel()
	h := centre(t, "hello")
	g := newGate(t, h.URL)
	one := h.Published("stream")
	s, _ := start(t, config(t, g.URL, h.Log, "stream"))
	at(t, s, one.Snapshot)
	h.Key("k2", "ed25519", "*")
	h.Tag(release.Tag{Name: "foreign", Key: "k2"})
	h.Published("foreign")
	_, foreign, err := get(t, h.URL+"/channels/foreign/x86_64/repodata/repomd.xml.asc")
	h.OK(err)
	version := 1
	for _, c := range []struct {
		what   string
		change func(string, []byte) []byte
		code   string // of why the state is refused; "" when the site finds another way
	}{
		{"repomd.xml", func(p string, b []byte) []byte {
			if strings.HasSuffix(p, "repomd.xml") {
				return bytes.Replace(b, []byte("<revision>"), []byte("<revision>1"), 1)
			}
			return b
		}, "is not by the key k"},
		{"its signature", func(p string, b []byte) []byte {
			if strings.HasSuffix(p, ".asc") && !strings.HasPrefix(p, "/keys/") {
				return flip(b)
			}
			return b
		}, "is not by the key k"},
		{"no signature", func(p string, b []byte) []byte {
			if strings.HasSuffix(p, "repomd.xml.asc") {
				return nil
			}
			return b
		}, "gone"},
		{"the signature of another", func(p string, b []byte) []byte {
			if strings.HasSuffix(p, "repomd.xml.asc") {
				return foreign
			}
			return b
		}, "is not by the key k"},
		{"chunks", func(p string, b []byte) []byte {
			if strings.HasPrefix(p, "/chunks/") {
				return flip(b)
			}
			return b
		}, ""},
		{"the index of chunks", func(p string, b []byte) []byte {
			if strings.Contains(p, "-chunks") {
				return flip(b)
			}
			return b
		}, "wrong"},
		{"whole files and chunks", func(p string, b []byte) []byte {
			if strings.HasPrefix(p, "/chunks/") || strings.Contains(p, "-primary") {
				return flip(b)
			}
			return b
		}, "wrong"},
	} {
		version++
		was := s.Status().Channels[0].Snapshot
		g.set(func(g *gate) { g.change = c.change })
		srpm, rpms := repotest.RPMBuild(t, repotest.Spec("hello", fmt.Sprint(version)))
		h.Submit("stream", srpm, rpms...)
		now := h.Published("stream")
		if c.code == "" {
			at(t, s, now.Snapshot)
		} else {
			st := wait(t, s, c.what, func(st site.Status) bool { return st.Channels[0].Trouble != "" })
			if st.Channels[0].Snapshot != was || st.Channels[0].Behind <= 0 {
				t.Errorf("%s: %+v, before %s", c.what, st.Channels[0], was)
			}
			t.Logf("%s: %s", c.what, st.Channels[0].Trouble)
			whole(t, s.URL+"/channels/stream/x86_64/", false)
			g.set(func(g *gate) { g.change = nil })
			at(t, s, now.Snapshot)
		}
		g.set(func(g *gate) { g.change = nil })
		whole(t, s.URL+"/channels/stream/x86_64/", true)
	}
}

// A package with wrong bytes is never whole at a client, small or big, and right the next time.
func TestTamperedPackages(t *testing.T) {
	t.Parallel()
	h := centre(t, "hello")
	srpm, rpms := repotest.BigPackage(t, 3<<20)
	h.Submit("stream", srpm, rpms...)
	g := newGate(t, h.URL)
	one := h.Published("stream")
	s, _ := start(t, config(t, g.URL, h.Log, "stream"))
	at(t, s, one.Snapshot)
	hrefs, _ := whole(t, s.URL+"/channels/stream/x86_64/", false)
	for name, change := range map[string]func([]byte) []byte{
		"a byte in the middle": flip,
		"the last byte":        func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"a byte less":          func(b []byte) []byte { return b[:len(b)-1] },
		"half of it":           func(b []byte) []byte { return b[:len(b)/2] },
	} {
		g.set(func(g *gate) {
			g.change = func(p string, b []byte) []byte {
				if strings.HasSuffix(p, ".rpm") {
					return change(b)
				}
				return b
			}
		})
		for _, href := range hrefs {
			for _, part := range []string{"", "bytes=10-20"} {
				resp, b, err := get(t, s.URL+"/channels/stream/x86_64/"+href, "Range", part)
				if err == nil && resp.StatusCode < 500 {
					t.Errorf("%s of %s, range %q: %s with %d bytes", name, href, part, resp.Status, len(b))
				}
			}
		}
	}
	if st := s.Status(); st.Packages != 0 || st.Wrong == 0 {
		t.Errorf("wrong packages were kept: %+v", st)
	}
	g.set(func(g *gate) { g.change = nil; g.paths = nil })
	// Many at once cost one download.
	i := slices.IndexFunc(hrefs, func(h string) bool { return strings.Contains(h, "big") })
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			part := ""
			if n%2 == 1 {
				part = "bytes=100-4000000"
			}
			resp, b, err := get(t, s.URL+"/channels/stream/x86_64/"+hrefs[i], "Range", part)
			if err != nil || part == "" && (resp.StatusCode != 200 || !strings.Contains(hrefs[i], sum256(b)[:12])) || part != "" && resp.StatusCode != 206 {
				t.Errorf("one of many: %v %v, %d bytes", resp, err, len(b))
			}
		})
	}
	all.Wait()
	if n := g.asked("big-1"); n != 1 {
		t.Errorf("8 hosts at once cost %d downloads", n)
	}
	whole(t, s.URL+"/channels/stream/x86_64/", true)
}

// Keys: the first is taken, another one when somebody says so.
func TestTrust(t *testing.T) {
	t.Parallel()
	h := centre(t, "hello")
	g := newGate(t, h.URL)
	one := h.Published("stream")
	c := config(t, g.URL, h.Log, "stream")
	s, stop := start(t, c)
	at(t, s, one.Snapshot)
	h.Key("k2", "ed25519", "*")
	h.Tag(release.Tag{Name: "stream", Key: "k2"})
	two := h.Published("stream")
	refused := func(want string) {
		t.Helper()
		st := wait(t, s, want, func(st site.Status) bool { return strings.Contains(st.Channels[0].Trouble, want) })
		if st.Channels[0].Snapshot != one.Snapshot {
			t.Errorf("%+v", st.Channels[0])
		}
	}
	refused("has another key, k2")
	stop()
	// A wrong file for it, then the right one.
	_, k1, _ := get(t, h.URL+"/keys/k.asc")
	_, k2, _ := get(t, h.URL+"/keys/k2.asc")
	file := filepath.Join(t.TempDir(), "key")
	h.OK(os.WriteFile(file, k1, 0o600))
	c.Trust = map[string]string{"k2": file}
	s, stop = start(t, c)
	refused("is not by the key k2")
	stop()
	h.OK(os.WriteFile(file, k2, 0o600))
	s, stop = start(t, c)
	at(t, s, two.Snapshot)
	stop()
	// Not signed any more.
	h.Tag(release.Tag{Name: "stream"})
	three := h.Published("stream")
	one = two
	c.Trust = nil
	s, stop = start(t, c)
	refused("is not signed any more")
	stop()
	c.Trust = map[string]string{site.Unsigned: ""}
	s, stop = start(t, c)
	at(t, s, three.Snapshot)
	stop()
	for name, trust := range map[string]map[string]string{"no key": {"k": os.Args[0]}, "no file": {"k": "/nonexistent"}, "no name": {"../k": file}} {
		c.Trust = trust
		if s, err := site.New(c); err == nil {
			s.Close()
			t.Errorf("%s is taken", name)
		}
	}
	// With the key from a file from the start, the centre's word counts for nothing.
	d := config(t, g.URL, h.Log, "stream")
	h.Tag(release.Tag{Name: "stream", Key: "k2"})
	four := h.Published("stream")
	h.OK(os.WriteFile(file, k1, 0o600))
	d.Trust = map[string]string{"k2": file}
	s, stop = start(t, d)
	wait(t, s, "refusal", func(st site.Status) bool { return strings.Contains(st.Channels[0].Trouble, "is not by the key k2") })
	if resp, _, err := get(t, s.URL+"/channels/stream/x86_64/repodata/repomd.xml"); err != nil || resp.StatusCode != 503 {
		t.Errorf("before there is anything: %v %v", resp, err)
	}
	stop()
	d.Trust = map[string]string{"k2": ""} // the one that the centre has
	s, _ = start(t, d)
	at(t, s, four.Snapshot)
}

// packages is a directory with the package of hello, for an upstream.
func packages(t *testing.T) (dir string) {
	t.Helper()
	_, rpms := repotest.RPMBuild(t, repotest.Spec("hello", "1"))
	dir = t.TempDir()
	for _, f := range rpms {
		b, err := os.ReadFile(f)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(f)), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A mirror with pinned keys: the site takes those too, hosts check with them, and other keys
// under their name are refused until somebody says so.
func TestMirrorWithPinnedKeys(t *testing.T) {
	t.Parallel()
	h := centre(t)
	dir := packages(t)
	v, also, other := repotest.NewVendor(t), repotest.NewVendor(t), repotest.NewVendor(t)
	v.Publish(t, dir)
	up := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(up.Close)
	sync := func(keys string) string {
		t.Helper()
		h.OK(h.Client.Call(t.Context(), "PUT", "/api/v1/mirrors/base", map[string]any{"url": up.URL, "arch": "x86_64", "keys": keys}, nil))
		_, err := h.Mirrors.Sync(h.System, "base", nil)
		h.OK(err)
		c, err := h.Repo.Channel(h.System, "base", "")
		h.OK(err)
		return c.Snapshot
	}
	first := sync(also.Public + v.Public)
	c := config(t, h.URL, h.Log, "base")
	s, stop := start(t, c)
	at(t, s, first)
	_, repoFile, _ := get(t, s.URL+"/channels/base.repo")
	if !strings.Contains(string(repoFile), "\ngpgcheck=1\nrepo_gpgcheck=1\ngpgkey="+s.URL+"/keys/mirror/base.asc\n") {
		t.Errorf("%s", repoFile)
	}
	if root, out, err := dnf(t, string(repoFile), "hello"); err != nil {
		t.Errorf("dnf: %v\n%s", err, out)
	} else if _, err := os.Stat(filepath.Join(root, "usr/bin/hello")); err != nil {
		t.Error(err)
	}
	if resp, b, err := get(t, s.URL+"/channels/base.rpm"); err != nil || resp.StatusCode != 200 || !bytes.HasPrefix(b, []byte{0xed, 0xab, 0xee, 0xdb}) {
		t.Errorf("the package that leads here: %v %v", resp, err)
	}
	// The vendor has another key, and the centre says that this is right.
	other.Publish(t, dir)
	second := sync(other.Public)
	stop()
	file := filepath.Join(t.TempDir(), "key")
	h.OK(os.WriteFile(file, []byte(v.Public), 0o600))
	c.Trust = map[string]string{"mirror/base": file}
	s, stop = start(t, c)
	wait(t, s, "refusal", func(st site.Status) bool {
		return strings.Contains(st.Channels[0].Trouble, "is not by the key mirror/base") && st.Channels[0].Snapshot == first
	})
	stop()
	c.Trust = map[string]string{"mirror/base": ""}
	s, _ = start(t, c)
	at(t, s, second)
	// A state before, by its snapshot, of metadata that is signed by the key before.
	if resp, _, err := get(t, s.URL+"/channels/base/at/"+first+"/x86_64/repodata/repomd.xml"); err != nil || resp.StatusCode != 200 {
		t.Errorf("the state before: %v %v", resp, err)
	}
}

// A mirror's channel has no index of chunks and no key of drover's: its files are fetched whole.
func TestMirrored(t *testing.T) {
	t.Parallel()
	h := centre(t)
	dir := packages(t)
	if out, err := exec.Command("createrepo_c", "-q", "--database", dir).CombinedOutput(); err != nil {
		t.Fatalf("createrepo_c: %v\n%s", err, out)
	}
	up := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(up.Close)
	h.OK(h.Client.Call(t.Context(), "PUT", "/api/v1/mirrors/base", map[string]string{"url": up.URL, "arch": "x86_64"}, nil))
	_, err := h.Mirrors.Sync(h.System, "base", nil)
	h.OK(err)
	c, err := h.Repo.Channel(h.System, "base", "")
	h.OK(err)
	s, _ := start(t, config(t, h.URL, h.Log, "base"))
	at(t, s, c.Snapshot)
	_, repoFile, _ := get(t, s.URL+"/channels/base.repo")
	if root, out, err := dnf(t, string(repoFile), "hello"); err != nil {
		t.Errorf("dnf: %v\n%s", err, out)
	} else if _, err := os.Stat(filepath.Join(root, "usr/bin/hello")); err != nil {
		t.Error(err)
	}
}

// A stage of a line has a name of two parts and a repository for each part, with its key.
func TestLine(t *testing.T) {
	t.Parallel()
	h := centre(t, "hello")
	h.Key("k2", "ed25519", "*")
	h.Tag(release.Tag{Name: "extra", Key: "k2"})
	srpm, rpms := repotest.RPMBuild(t, repotest.Spec("other", "1"))
	h.Submit("extra", srpm, rpms...)
	h.Published("stream")
	h.Published("extra")
	h.OK(h.Client.Call(t.Context(), "PUT", "/api/v1/lines/ten", map[string]any{"parts": []string{"stream", "extra"}, "stages": []string{"dev", "prod"}}, nil))
	s, _ := start(t, config(t, h.URL, h.Log, "ten/dev", "stream"))
	wait(t, s, "the line", func(st site.Status) bool { return len(st.Channels) == 2 && st.Channels[1].Packages == 4 })
	_, repoFile, _ := get(t, s.URL+"/channels/ten/dev.repo")
	if !strings.Contains(string(repoFile), "gpgkey="+s.URL+"/keys/k2.asc") || !strings.Contains(string(repoFile), "gpgkey="+s.URL+"/keys/k.asc") {
		t.Errorf(".repo: %s", repoFile)
	}
	if _, out, err := dnf(t, string(repoFile), "hello", "other"); err != nil {
		t.Errorf("dnf: %v\n%s", err, out)
	}
	if resp, b, err := get(t, s.URL+"/channels/ten/dev.rpm"); err != nil || resp.StatusCode != 200 || !bytes.HasPrefix(b, []byte{0xed, 0xab, 0xee, 0xdb}) {
		t.Errorf(".rpm: %v %v", resp, err)
	}
	// A ring is another stage; this site follows one only.
	if resp, _, err := get(t, s.URL+"/channels/ten/dev/stream.x86_64/metalink?ring=prod"); err != nil || resp.StatusCode != 404 {
		t.Errorf("another stage: %v %v", resp, err)
	}
	behind, _ := start(t, config(t, s.URL, h.Log, "ten/dev"))
	wait(t, behind, "the line, behind", func(st site.Status) bool { return st.Channels[0].Packages == 4 })
}

// What does not fit: the oldest goes, what channels name last, and one that is larger than all is
// passed on.
func TestRoom(t *testing.T) {
	t.Parallel()
	h := centre(t, "hello", "other")
	srpm, rpms := repotest.BigPackage(t, 300<<10)
	h.Submit("stream", srpm, rpms...)
	g := newGate(t, h.URL)
	one := h.Published("stream")
	c := config(t, g.URL, h.Log, "stream")
	var small int64
	for range 1 {
		x, err := h.Repo.Content(h.System, one.Snapshot)
		h.OK(err)
		for _, p := range x.Trees["x86_64"] {
			if p.Size < 100<<10 {
				small = max(small, p.Size)
			}
		}
	}
	c.Max = small + 10 // one of them
	s, _ := start(t, c)
	at(t, s, one.Snapshot)
	for range 2 {
		whole(t, s.URL+"/channels/stream/x86_64/", true)
		if st := s.Status(); st.Bytes > c.Max || st.Packages != 1 {
			t.Errorf("over the bound: %+v", st)
		}
	}
	if st := s.Status(); st.Evicted == 0 || st.Misses < 4 {
		t.Errorf("status: %+v", st)
	}
}

// Who asks for what is not, or is no host.
func TestAttacks(t *testing.T) {
	t.Parallel()
	h := centre(t, "hello")
	one := h.Published("stream")
	s, _ := start(t, config(t, h.URL, h.Log, "stream"))
	at(t, s, one.Snapshot)
	zero := strings.Repeat("0", 64)
	for _, p := range []string{
		"/channels/", "/channels/stream", "/channels/none/x86_64/repodata/repomd.xml", "/channels/..%2F..%2Fetc%2Fpasswd", "/channels/stream/..%2Fx/repodata/repomd.xml", "/channels/stream/x86_64/..%2F..%2F..%2Flock",
		"/channels/stream/x86_64/repodata/..%2Frepodata%2Frepomd.xml", "/channels/stream/x86_64/", "/channels/stream/at/" + zero + "/x86_64/repodata/repomd.xml", "/channels/stream/at/x", "/channels/none.repo", "/channels/none.rpm",
		"/channels/stream/none/metalink", "/channels/stream/x86_64/metalink?snapshot=" + zero, "/channels/stream/x86_64/metalink?snapshot=" + one.Snapshot[:3], "/channels/stream/x86_64/metalink?ring=none", "/channels/stream/x86_64/metalink?ring=..%2F",
		"/snapshots/" + zero + "/x86_64/repodata/repomd.xml", "/snapshots/x/y/z", "/chunks/" + zero, "/chunks/..%2Flock", "/keys/none.asc", "/keys/..%2Flock", "/keys/..%2F..%2F..%2Fetc%2Fpasswd", "/api/v1/channels/none/follow", "/api/v1/channels/stream",
		"/channels/stream/x86_64/a%00b", "/channels/stream/x86_64/%FF", "/channels/" + strings.Repeat("a", 5000),
	} {
		resp, b, err := get(t, s.URL+p, "Accept", "application/json")
		if err != nil || resp.StatusCode < 400 || resp.StatusCode >= 500 || !strings.Contains(string(b), `"code"`) {
			t.Errorf("%.100s: %v %v %.200s", p, resp, err, b)
		}
	}
	for _, q := range []string{"wait=-1", "wait=99999", "wait=x"} {
		if resp, _, err := get(t, s.URL+wire.PathFollow("stream")+"?"+q); err != nil || resp.StatusCode != 422 && resp.StatusCode != 400 {
			t.Errorf("%s: %v %v", q, resp, err)
		}
	}
	for _, m := range []string{"POST", "PUT", "DELETE"} {
		r, err := http.NewRequest(m, s.URL+"/channels/stream.repo", strings.NewReader("x"))
		h.OK(err)
		if resp, err := http.DefaultClient.Do(r); err != nil || resp.StatusCode != 405 {
			t.Errorf("%s: %v %v", m, resp, err)
		} else {
			_ = resp.Body.Close()
		}
	}
	if resp, b, err := get(t, s.URL+"/metrics"); err != nil || resp.StatusCode != 200 || !strings.Contains(string(b), "drover_site_contact_age_seconds") {
		t.Errorf("metrics: %v %v", resp, err)
	}
	// A centre that is none.
	for name, answer := range map[string]string{"another channel": `{"channel":"x","snapshot":"` + zero + `","trees":[]}`, "no snapshot": `{"channel":"stream","snapshot":"../x","trees":[]}`,
		"a tree above": `{"channel":"stream","snapshot":"` + zero + `","trees":[{"name":".."}]}`, "a key above": `{"channel":"stream","snapshot":"` + one.Snapshot + `","trees":[{"name":"x86_64","key":"../../x"}]}`, "no JSON": "<html>"} {
		evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/api/") {
				_, _ = io.WriteString(w, answer)
				return
			}
			resp, b, err := get(t, h.URL+r.URL.Path)
			if err == nil {
				w.WriteHeader(resp.StatusCode)
				_, _ = w.Write(b)
			}
		}))
		x, stop := start(t, config(t, evil.URL, h.Log, "stream"))
		st := wait(t, x, name, func(st site.Status) bool { return st.Channels[0].Trouble != "" })
		if st.Channels[0].Snapshot != "" {
			t.Errorf("%s: %+v", name, st.Channels[0])
		}
		stop()
		evil.Close()
	}
}
