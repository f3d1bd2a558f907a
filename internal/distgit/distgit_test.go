package distgit_test

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/distgit"
	"drover/internal/event"
	"drover/internal/web"
)

// house is a server with distgit on it, an admin's token and a packager's.
type house struct {
	s           *distgit.Store
	d           *db.DB
	url         string
	admin, pkgr string
	dir         string
}

func open(t *testing.T, d *db.DB) *house {
	t.Helper()
	h := &house{d: d, dir: t.TempDir()}
	blobs, err := blob.Open(filepath.Join(h.dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	h.s, err = distgit.New(t.Context(), distgit.Config{DB: d, Blobs: blobs, Dir: filepath.Join(h.dir, "git"), Log: log, MaxPush: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	people := auth.NewStore(d)
	if h.admin, err = people.Bootstrap(t.Context(), func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	sys := auth.AsSystem(t.Context())
	if err := people.SetPerson(sys, "pat", "packager", ""); err != nil {
		t.Fatal(err)
	}
	tok, err := people.NewToken(sys, "pat", "", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	h.pkgr = tok.Secret
	srv := web.New(web.Config{Version: "test", Log: log, Authenticate: people.Request})
	h.s.Routes(srv, func(context.Context, string) (any, error) { return nil, nil })
	ts := httptest.NewServer(srv)
	t.Cleanup(ts.Close)
	h.url = ts.URL
	if err := h.s.Create(sys, distgit.Repo{Name: "rpms/hello"}); err != nil {
		t.Fatal(err)
	}
	return h
}

func each(t *testing.T, fn func(t *testing.T, h *house)) {
	dbtest.Each(t, []db.Schema{event.Schema(), auth.Schema(), distgit.Schema()}, func(t *testing.T, d *db.DB) { fn(t, open(t, d)) })
}

// remote is the git URL with a token as its password.
func (h *house) remote(token, repo string) string {
	return strings.Replace(h.url, "http://", "http://x:"+token+"@", 1) + "/git/" + repo
}

// git runs the real git and returns what it says.
func git(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "git", args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0", "GIT_AUTHOR_NAME=Pat", "GIT_AUTHOR_EMAIL=pat@example.org",
		"GIT_COMMITTER_NAME=Pat", "GIT_COMMITTER_EMAIL=pat@example.org")
	out, err := c.CombinedOutput()
	return string(out), err
}

func must(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := git(t, dir, args...)
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(out)
}

func (h *house) clone(t *testing.T, token string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "hello")
	must(t, "", "clone", "-q", h.remote(token, "rpms/hello"), dir)
	must(t, dir, "checkout", "-q", "-B", "main")
	return dir
}

func commit(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	must(t, dir, "add", "-A")
	must(t, dir, "commit", "-q", "--allow-empty", "-m", "change")
}

const spec = "Name: hello\nVersion: 1\nRelease: 1\nSummary: x\nLicense: MIT\n%description\n%files\n"

func TestPushAndRead(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		dir := h.clone(t, h.pkgr)
		commit(t, dir, map[string]string{"hello.spec": spec, "a.patch": "x\n"})
		must(t, dir, "push", "-q", "origin", "main")
		id := must(t, dir, "rev-parse", "HEAD")
		if got, err := h.s.Resolve(t.Context(), "rpms/hello", ""); err != nil || got != id {
			t.Errorf("resolved %s, %v", got, err)
		}
		files, err := h.s.TreeFiles(t.Context(), "rpms/hello", id)
		if err != nil || len(files) != 2 || files[0].Path != "a.patch" || files[0].Digest != blob.Of([]byte("x\n")) {
			t.Errorf("files: %+v, %v", files, err)
		}
		commit(t, dir, map[string]string{"a.patch": "y\n"})
		commit(t, dir, map[string]string{"a.patch": "z\n"})
		must(t, dir, "push", "-q", "origin", "main")
		middle := must(t, dir, "rev-parse", "HEAD^")
		p, err := h.s.Pusher(t.Context(), "rpms/hello", middle)
		if err != nil || p.Actor != "pat" || p.Old != id {
			t.Errorf("pusher: %+v, %v", p, err)
		}
		if out := must(t, "", "clone", "-q", "--depth", "1", h.url+"/git/rpms/hello.git", filepath.Join(t.TempDir(), "anonymous")); out != "" {
			t.Errorf("anonymous clone: %s", out)
		}
		var es []event.Event
		if err := h.d.Read(t.Context(), func(tx *db.Tx) (err error) {
			es, err = event.List(tx, event.Filter{Kind: "distgit.push"})
			return err
		}); err != nil || len(es) != 2 || es[0].Actor != "pat" || !strings.Contains(string(es[0].Data), id) {
			t.Errorf("events: %+v, %v", es, err)
		}
	})
}

func TestPushRefused(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		dir := h.clone(t, h.pkgr)
		commit(t, dir, map[string]string{"hello.spec": spec})
		must(t, dir, "push", "-q", "origin", "main", "main:topic")
		start := must(t, dir, "rev-parse", "HEAD")
		refuse := func(name, want string, args ...string) {
			t.Helper()
			out, err := git(t, dir, args...)
			if err == nil || !strings.Contains(out, want) {
				t.Errorf("%s: %v\n%s", name, err, out)
			}
			must(t, dir, "fetch", "-q", "origin")
			if got := must(t, dir, "rev-parse", "origin/main"); got != start {
				t.Errorf("%s: main moved", name)
			}
			if left, _ := filepath.Glob(filepath.Join(h.dir, "git", "*", "*.git", "incoming-*")); len(left) > 0 {
				t.Errorf("%s: left %v", name, left)
			}
		}
		change := func(files map[string]string) { must(t, dir, "reset", "-q", "--hard", start); commit(t, dir, files) }

		change(map[string]string{"sources": "SHA512 (hello-1.tar.gz) = " + strings.Repeat("ab", 64) + "\n"})
		refuse("a source that is not there", "hello-1.tar.gz, which is not in the lookaside cache", "push", "origin", "main")
		change(map[string]string{"sources": "d41d8cd98f00b204e9800998ecf8427e  hello-1.tar.gz\n"})
		refuse("md5", "is no sha512", "push", "origin", "main")
		change(map[string]string{"sources": "SHA512 (../../etc/passwd) = " + strings.Repeat("ab", 64) + "\n"})
		refuse("a path in sources", "is no name of a source file", "push", "origin", "main")
		change(map[string]string{"hello.spec": strings.Replace(spec, "hello", "goodbye", 1)})
		refuse("another name", "says Name: goodbye, but the repository is of hello", "push", "origin", "main")
		change(map[string]string{"hello.spec": "%global pkg other\n" + strings.Replace(spec, "hello", "%{pkg}", 1)})
		refuse("another name by macro", "Name: other", "push", "origin", "main")
		change(map[string]string{"two.spec": spec})
		refuse("two spec files", "2 spec files", "push", "origin", "main")
		must(t, dir, "reset", "-q", "--hard", start)
		must(t, dir, "commit", "-q", "--amend", "-m", "rewritten")
		refuse("force-push on a protected branch", "a force-push is refused", "push", "--force", "origin", "main")
		refuse("removal of a protected branch", "may not be removed", "push", "origin", ":main")
		refuse("a ref outside", "may not be pushed", "push", "origin", "main:refs/notes/x")
		refuse("a branch named like a commit", "may not be named like a commit", "push", "origin", "main:refs/heads/"+start)
		must(t, dir, "push", "-q", "--force", "origin", "main:topic") // not protected
		must(t, dir, "push", "-q", "origin", ":topic")
		refuse("atomic", "another ref of this push was refused", "push", "--atomic", "--force", "origin", "main", "main:new")
		if out, err := git(t, dir, "push", h.remote("drv_wrong", "rpms/hello"), "main:x"); err == nil {
			t.Errorf("a wrong token pushed: %s", out)
		}
		if out, err := git(t, dir, "push", h.url+"/git/rpms/hello", "main:x"); err == nil {
			t.Errorf("nobody pushed: %s", out)
		}
		if out, err := git(t, dir, "push", h.remote(h.pkgr, "rpms/unknown"), "main:x"); err == nil || !strings.Contains(out, "404") && !strings.Contains(out, "not found") {
			t.Errorf("an unknown repository: %v %s", err, out)
		}
		if err := h.s.SetRule(auth.AsSystem(t.Context()), "rpms/hello", distgit.Rule{Pattern: "main", Who: []string{"admin"}, Protected: true}); err != nil {
			t.Fatal(err)
		}
		change(map[string]string{"b": "b"})
		refuse("a branch of others", "pat may not push to branch main; only admin may", "push", "origin", "main")
	})
}

func TestBigPushIsRefused(t *testing.T) {
	h := open(t, dbtest.SQLite(t, event.Schema(), auth.Schema(), distgit.Schema()))
	dir := h.clone(t, h.pkgr)
	size, most := 80<<20, "8 MiB"
	if os.Getenv("DROVER_LONG") != "" {
		size, most = 1<<30, "512 MiB"
		h.s.MaxPush = 512 << 20
	}
	must(t, dir, "config", "core.compression", "0")
	big := make([]byte, size)
	x := uint32(1)
	for i := range big { // noise: a pack does not compress it
		x = x*1664525 + 1013904223
		big[i] = byte(x >> 24)
	}
	commit(t, dir, map[string]string{"big": string(big)})
	out, err := git(t, dir, "push", "origin", "main")
	if err == nil || !strings.Contains(out, "over "+most) {
		t.Errorf("%v: %s", err, out)
	}
	if left, _ := filepath.Glob(filepath.Join(h.dir, "git", "*", "*.git", "incoming-*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestKilledBetweenLedgerAndGit(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		dir := h.clone(t, h.pkgr)
		commit(t, dir, map[string]string{"hello.spec": spec})
		must(t, dir, "push", "-q", "origin", "main:other")
		id := must(t, dir, "rev-parse", "HEAD")
		// What the database holds when the server dies right after its commit.
		err := h.d.Write(db.WithActor(t.Context(), "pat"), func(tx *db.Tx) error {
			ev, err := event.Append(tx, "distgit.push", "repo/rpms/hello", nil)
			if err != nil {
				return err
			}
			_, err = tx.Exec("INSERT INTO distgit_push (event, repo, ref, old, new, actor, at, applied) VALUES ($1, 'rpms/hello', 'refs/heads/main', $2, $3, 'pat', 1, 0)", ev, strings.Repeat("0", 40), id)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		left := filepath.Join(h.dir, "git", "rpms", "hello.git", "incoming-123")
		if err := os.Mkdir(left, 0o700); err != nil {
			t.Fatal(err)
		}
		// And what git leaves when it dies with the server while it moves the ref.
		if err := os.WriteFile(filepath.Join(h.dir, "git", "rpms", "hello.git", "refs", "heads", "main.lock"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := distgit.New(t.Context(), distgit.Config{DB: h.d, Dir: filepath.Join(h.dir, "git"), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Resolve(t.Context(), "rpms/hello", "main"); err != nil || got != id {
			t.Errorf("after the restart main is %s, %v", got, err)
		}
		if _, err := os.Stat(left); err == nil {
			t.Error("a quarantine stayed")
		}
	})
}

func TestTwoPushesAtOnce(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		first := h.clone(t, h.pkgr)
		commit(t, first, map[string]string{"hello.spec": spec})
		must(t, first, "push", "-q", "origin", "main")
		a, b := h.clone(t, h.pkgr), h.clone(t, h.pkgr)
		must(t, a, "reset", "-q", "--hard", "origin/main")
		must(t, b, "reset", "-q", "--hard", "origin/main")
		commit(t, a, map[string]string{"a": "a"})
		commit(t, b, map[string]string{"b": "b"})
		type end struct {
			out string
			err error
		}
		ends := make(chan end, 2)
		for _, d := range []string{a, b} {
			go func() { out, err := git(t, d, "push", "origin", "main"); ends <- end{out, err} }()
		}
		e1, e2 := <-ends, <-ends
		if e1.err == nil {
			e1, e2 = e2, e1
		}
		// The loser hears it from the server, or its own git sees it before it sends.
		if e1.err == nil || e2.err != nil || !strings.Contains(e1.out, "it has moved meanwhile") && !strings.Contains(e1.out, "fetch first") {
			t.Errorf("of two pushes to one branch one must win, and the other must be told:\n%v %s\n%v %s", e1.err, e1.out, e2.err, e2.out)
		}
	})
}

func curl(t *testing.T, args ...string) (status, body string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "curl", append([]string{"-sS", "-w", "\n%{http_code}"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("curl %v: %v %s", args, err, out)
	}
	i := strings.LastIndexByte(string(out), '\n')
	return string(out[i+1:]), strings.TrimSpace(string(out[:i]))
}

func TestLookasideAsDistGitsClientsDo(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		text := "the source\n"
		sum512 := sha512.Sum512([]byte(text))
		sum := hex.EncodeToString(sum512[:])
		file := filepath.Join(t.TempDir(), "hello-1.tar.gz")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		cgi := h.url + "/repo/pkgs/upload.cgi"
		as := func(token string, fields ...string) []string {
			args := []string{cgi, "-u", "x:" + token}
			for _, f := range fields {
				args = append(args, "-F", f)
			}
			return args
		}
		for _, c := range []struct {
			name         string
			args         []string
			status, body string
		}{
			{"check before", as(h.pkgr, "name=hello", "sha512sum="+sum, "filename=hello-1.tar.gz"), "200", "Missing"},
			{"md5", as(h.pkgr, "name=hello", "md5sum=d41d8cd98f00b204e9800998ecf8427e", "filename=hello-1.tar.gz"), "406", "md5"},
			{"no name", as(h.pkgr, "sha512sum="+sum, "filename=hello-1.tar.gz"), "400", "name is not present"},
			{"a field twice", as(h.pkgr, "name=hello", "name=other", "sha512sum="+sum, "filename=x"), "400", "twice"},
			{"unknown package", as(h.pkgr, "name=nothing", "sha512sum="+sum, "filename=hello-1.tar.gz"), "404", "repo_unknown"},
			{"nobody", []string{cgi, "-F", "name=hello", "-F", "sha512sum=" + sum, "-F", "file=@" + file}, "401", "token_needed"},
			{"wrong sum", as(h.pkgr, "name=hello", "sha512sum="+strings.Repeat("0", 128), "file=@"+file), "400", "source_sum"},
			{"a path as name", as(h.pkgr, "name=hello", "sha512sum="+sum, "file=@"+file+";filename=..sources"), "400", "source_name"},
			{"upload", as(h.pkgr, "name=rpms/hello", "sha512sum="+sum, "mtime=1700000000.5", "file=@"+file), "200", "stored OK"},
			{"upload again", as(h.pkgr, "name=hello", "sha512sum="+sum, "file=@"+file), "200", "stored OK"},
			{"check after", as(h.pkgr, "name=hello", "sha512sum="+sum, "filename=hello-1.tar.gz"), "200", "Available"},
			{"download, new shape", []string{h.url + "/repo/pkgs/rpms/hello/hello-1.tar.gz/sha512/" + sum + "/hello-1.tar.gz"}, "200", strings.TrimSpace(text)},
			{"download, old shape", []string{h.url + "/repo/pkgs/hello/hello-1.tar.gz/" + sum + "/hello-1.tar.gz"}, "200", strings.TrimSpace(text)},
			{"range", []string{"-r", "4-9", h.url + "/repo/pkgs/hello/hello-1.tar.gz/" + sum + "/hello-1.tar.gz"}, "206", "source"},
			{"head", []string{"-I", h.url + "/repo/pkgs/hello/hello-1.tar.gz/" + sum + "/hello-1.tar.gz"}, "200", "Last-Modified: Tue, 14 Nov 2023"},
			{"another file name", []string{h.url + "/repo/pkgs/hello/hello-1.tar.gz/" + sum + "/passwd"}, "404", "source_unknown"},
			{"a path", []string{"--path-as-is", h.url + "/repo/pkgs/../../../etc/passwd"}, "30", ""},
		} {
			status, body := curl(t, c.args...)
			if !strings.HasPrefix(status, c.status) || !strings.Contains(body, c.body) {
				t.Errorf("%s: %s %s", c.name, status, body)
			}
		}
		dir := h.clone(t, h.pkgr)
		commit(t, dir, map[string]string{"hello.spec": spec, "sources": fmt.Sprintf("SHA512 (hello-1.tar.gz) = %s\n", sum)})
		must(t, dir, "push", "-q", "origin", "main")
		src, err := h.s.Sources(t.Context(), "rpms/hello", must(t, dir, "rev-parse", "HEAD"))
		if err != nil || len(src) != 1 || src[0].Digest != blob.Of([]byte(text)) || src[0].Size != int64(len(text)) {
			t.Errorf("sources: %+v, %v", src, err)
		}
	})
}

func TestUploadGoesOn(t *testing.T) {
	h := open(t, dbtest.SQLite(t, event.Schema(), auth.Schema(), distgit.Schema()))
	text := strings.Repeat("0123456789", 100)
	sum512 := sha512.Sum512([]byte(text))
	sum := hex.EncodeToString(sum512[:])
	ctx := auth.AsSystem(t.Context())
	up := func(offset int, s string) int64 {
		n, err := h.s.Upload(ctx, "rpms/hello", "big.tar", sum, int64(len(text)), int64(offset), strings.NewReader(s))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := up(0, text[:300]); n != 300 {
		t.Fatalf("took %d", n)
	}
	if n := up(0, text); n != 300 {
		t.Fatalf("a wrong offset must tell where to go on, not %d", n)
	}
	if n := up(300, text[300:]); n != 1000 {
		t.Fatalf("took %d", n)
	}
	if n := up(0, ""); n != 1000 {
		t.Fatalf("again: %d", n)
	}
}

// A server that is killed when the last piece is there and not checked yet has the whole
// upload: a client that starts anew must not be told that all is well before it is.
func TestUploadCutBeforeItsEnd(t *testing.T) {
	h := open(t, dbtest.SQLite(t, event.Schema(), auth.Schema(), distgit.Schema()))
	text := strings.Repeat("0123456789", 100)
	sum512 := sha512.Sum512([]byte(text))
	sum := hex.EncodeToString(sum512[:])
	blobs, err := blob.Open(filepath.Join(h.dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	up, err := blobs.Stage("source-"+sum[:64], 1000)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(up.Append(t.Context(), 0, strings.NewReader(text)), up.Close()); err != nil {
		t.Fatal(err)
	}
	n, err := h.s.Upload(auth.AsSystem(t.Context()), "rpms/hello", "big.tar", sum, 1000, 0, strings.NewReader(text))
	if n != 1000 || err != nil {
		t.Fatal(n, err)
	}
	if status, body := curl(t, h.url+"/repo/pkgs/rpms/hello/big.tar/sha512/"+sum+"/big.tar"); status != "200" || body != text {
		t.Errorf("the source is not there: %s %s", status, body)
	}
}

func TestNames(t *testing.T) {
	for _, bad := range []string{"", "hello", "rpms/", "rpms/../x", "rpms/.git", "rpms/a/b", "other/x", "rpms/x.git", "rpms/x.lock", "rpms/a b", "rpms/-x", "rpms/x\n", "../rpms/x", "rpms/x..y"} {
		if distgit.CheckName(bad) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	for _, good := range []string{"rpms/hello", "rpms/gcc-c++", "states/base", "rpms/Xaw3d"} {
		if err := distgit.CheckName(good); err != nil {
			t.Error(err)
		}
	}
}

func FuzzParseSources(f *testing.F) {
	f.Add([]byte("SHA512 (a.tar) = " + strings.Repeat("ab", 64) + "\n"))
	f.Add([]byte(strings.Repeat("ab", 64) + "  a.tar\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		lines, err := distgit.ParseSources(b)
		if err != nil {
			return
		}
		again, err := distgit.ParseSources(distgit.FormatSources(lines))
		if err != nil || len(again) != len(lines) {
			t.Errorf("what was parsed cannot be written: %v", err)
		}
	})
}

func FuzzSpecName(f *testing.F) {
	f.Add([]byte("%global a b\nName: %{a}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if strings.ContainsAny(distgit.SpecName(b), "%{}\n ") {
			t.Error("not expanded")
		}
	})
}
