package distgit_test

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"crypto/sha1"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"drover/internal/auth"
	"drover/internal/db/dbtest"
	"drover/internal/distgit"
	"drover/internal/event"
)

// files counts what lies in a directory, below names that contain part.
func files(t *testing.T, dir, part string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && strings.Contains(path, part) {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func gzipped(t *testing.T, parts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	for _, p := range parts {
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func line(s string) string { return fmt.Sprintf("%04x%s", len(s)+4, s) }

var none, some = strings.Repeat("0", 40), strings.Repeat("a", 40)

func command(ref string) string { return line(none + " " + some + " " + ref + "\x00report-status\n") }

// object is the head of an object in a pack, and its body deflated.
func object(t *testing.T, typ byte, size int, base, body []byte) []byte {
	t.Helper()
	head := []byte{typ<<4 | byte(size&15)}
	for size >>= 4; size > 0; size >>= 7 {
		head[len(head)-1] |= 0x80
		head = append(head, byte(size&0x7f))
	}
	var b bytes.Buffer
	b.Write(append(head, base...))
	w := zlib.NewWriter(&b)
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// deltaBomb is a pack of a few kilobytes with an object of size MiB: a delta that copies the
// same MiB again and again.
func deltaBomb(t *testing.T, mib int) []byte {
	t.Helper()
	pack := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte("PACK"), 2), 2)
	base := object(t, 3, 1<<20, nil, make([]byte, 1<<20))
	delta := binary.AppendUvarint(binary.AppendUvarint(nil, 1<<20), uint64(mib)<<20)
	for range mib {
		delta = append(delta, 0x80|0x40, 0x10) // from 0, 0x100000 bytes
	}
	back := len(base)
	ofs := []byte{byte(back & 0x7f)}
	for back >>= 7; back > 0; back >>= 7 {
		back--
		ofs = append([]byte{0x80 | byte(back&0x7f)}, ofs...)
	}
	pack = append(append(pack, base...), object(t, 6, len(delta), ofs, delta)...)
	sum := sha1.Sum(pack)
	return append(pack, sum[:]...)
}

func TestGitAttacks(t *testing.T) {
	h := open(t, dbtest.SQLite(t, event.Schema(), auth.Schema(), distgit.Schema())) // what is attacked is no SQL
	if err := h.s.SetRule(auth.AsSystem(t.Context()), "rpms/hello", distgit.Rule{Pattern: "main", Protected: true}); err != nil {
		t.Fatal(err)
	}
	const push, fetch = "/git/rpms/hello/git-receive-pack", "/git/rpms/hello/git-upload-pack"
	many := strings.Repeat(command("refs/heads/x"), 1001)
	for _, c := range []struct {
		name, path, encoding string
		body                 []byte
		status               int
		want                 string
	}{
		{"nothing", push, "", nil, 400, "git_protocol"},
		{"no pkt-line", push, "", []byte("hello"), 400, "is no pkt-line"},
		{"a length with a sign", push, "", []byte("+010" + strings.Repeat("a", 20)), 400, "is no pkt-line"},
		{"a length of 1", push, "", []byte("0001"), 400, "is no pkt-line"},
		{"a line that is cut", push, "", []byte("ffff" + none), 400, "was cut"},
		{"no command", push, "", []byte(line("hello\n") + "0000"), 400, "is no command"},
		{"no object", push, "", []byte(line("../../etc/passwd "+some+" refs/heads/x\n") + "0000"), 400, "is no command"},
		{"too many refs", push, "", []byte(many + "0000"), 413, "push_refs"},
		{"no pack", push, "", []byte(command("refs/heads/x") + "0000"), 200, "unpack the pack was refused"},
		{"no pack but noise", push, "", []byte(command("refs/heads/x") + "0000" + strings.Repeat("noise", 1000)), 200, "unpack the pack was refused"},
		{"a pack that says it has 4 billion objects", push, "", []byte(command("refs/heads/x") + "0000PACK\x00\x00\x00\x02\xff\xff\xff\xff"), 200, "unpack"},
		{"one ref twice", push, "", append([]byte(command("refs/heads/x")+command("refs/heads/x")+"0000"), deltaBomb(t, 2)...), 200, "is moved twice"},
		{"an object that did not come", push, "", append([]byte(command("refs/heads/x")+"0000"), deltaBomb(t, 2)...), 200, "did not come with the push"},
		{"an object of 4 GiB in a pack of 10 KiB", push, "", append([]byte(command("refs/heads/x")+"0000"), deltaBomb(t, 4096)...), 200, "too large to unpack"},
		{"a ref outside", push, "", append([]byte(command("refs/../config")+"0000"), deltaBomb(t, 2)...), 200, "may not be pushed"},
		{"HEAD", push, "", append([]byte(command("HEAD")+"0000"), deltaBomb(t, 2)...), 200, "may not be pushed"},
		{"no gzip", push, "gzip", []byte("hello"), 400, "is no gzip"},
		{"gzip that is cut", push, "gzip", gzipped(t, []byte(command("refs/heads/x")+"0000"))[:20], 400, "was cut"},
		{"a gzip bomb", push, "gzip", gzipped(t, []byte(command("refs/heads/x")+"0000PACK\x00\x00\x00\x02\x00\x00\x00\x01"), make([]byte, 64<<20)), 200, "unpack"},
		{"an unknown encoding", push, "br", []byte("x"), 400, "is not taken"},
		{"a gzip bomb to fetch by", fetch, "gzip", gzipped(t, make([]byte, 64<<20)), 200, ""},
		{"a want that is not there", fetch, "", []byte(line("want "+some+"\n") + "0000" + line("done\n")), 200, "not our ref"},
		{"path traversal", "/git/rpms/..%2f..%2fetc/git-receive-pack", "", nil, 400, "repo_name"},
		{"another namespace", "/git/etc/passwd/git-receive-pack", "", nil, 400, "repo_name"},
		{"no repository", "/git/rpms/nothing/git-receive-pack", "", nil, 404, "repo_unknown"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), "POST", h.url+c.path, bytes.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth("x", h.pkgr)
		r.Header.Set("Content-Type", "application/x-git-"+strings.TrimPrefix(c.path[strings.LastIndex(c.path, "/")+1:], "git-")+"-request")
		if c.encoding != "" {
			r.Header.Set("Content-Encoding", c.encoding)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.status || !strings.Contains(string(b), c.want) {
			t.Errorf("%s: %s %.300q", c.name, resp.Status, b)
		}
		if n := files(t, filepath.Join(h.dir, "git"), "incoming-"); n > 0 {
			t.Errorf("%s: left %d files", c.name, n)
		}
	}
	// Nothing of all this is in the repository.
	if n := files(t, filepath.Join(h.dir, "git", "rpms", "hello.git", "objects"), ""); n > 0 {
		t.Errorf("%d files in objects", n)
	}
	if out := must(t, "", "ls-remote", h.url+"/git/rpms/hello"); out != "" {
		t.Errorf("refs: %s", out)
	}
	for _, c := range []struct{ name, method, url, token, contentType, want string }{
		{"the dumb protocol", "GET", "/git/rpms/hello/info/refs", h.pkgr, "", "git_service"},
		{"another service", "GET", "/git/rpms/hello/info/refs?service=git-upload-archive", h.pkgr, "", "git_service"},
		{"a file of the repository", "GET", "/git/rpms/hello/config", h.pkgr, "", "path_unknown"},
		{"another content type", "POST", push, h.pkgr, "text/plain", "content type"},
		{"nobody asks to push", "GET", "/git/rpms/hello/info/refs?service=git-receive-pack", "", "", "token_needed"},
		{"nobody pushes", "POST", push, "", "application/x-git-receive-pack-request", "token_needed"},
	} {
		r, _ := http.NewRequestWithContext(t.Context(), c.method, h.url+c.url, nil)
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+c.token)
		}
		r.Header.Set("Content-Type", c.contentType)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode < 400 || !strings.Contains(string(b), c.want) {
			t.Errorf("%s: %s %s", c.name, resp.Status, b)
		}
	}
}

func TestBigSpecIsRefused(t *testing.T) {
	h := open(t, dbtest.SQLite(t, event.Schema(), auth.Schema(), distgit.Schema()))
	dir := h.clone(t, h.pkgr)
	commit(t, dir, map[string]string{"hello.spec": spec + strings.Repeat(" ", 5<<20)})
	if out, err := git(t, dir, "push", "origin", "main"); err == nil || !strings.Contains(out, "a spec file has at most") {
		t.Errorf("%v: %s", err, out)
	}
}

// zeros is a stream of n bytes.
type zeros struct{ n int64 }

// Read implements io.Reader.
func (z *zeros) Read(p []byte) (int, error) {
	if z.n <= 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.n)
	clear(p[:n])
	z.n -= n
	return int(n), nil
}

// A push of 1 GiB costs no memory, whoever sends it.
func TestBigPushTakesNoMemory(t *testing.T) {
	h := open(t, dbtest.SQLite(t, event.Schema(), auth.Schema(), distgit.Schema()))
	runtime.GC()
	var base runtime.MemStats
	runtime.ReadMemStats(&base)
	peak := make(chan uint64)
	stop := make(chan struct{})
	go func() {
		var most uint64
		for tick := time.NewTicker(10 * time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				peak <- most
				return
			case <-tick.C:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
		}
	}()
	r, err := http.NewRequestWithContext(t.Context(), "POST", h.url+"/git/rpms/hello/git-receive-pack",
		io.MultiReader(strings.NewReader(command("refs/heads/x")+"0000PACK\x00\x00\x00\x02\x00\x00\x00\x01\xbf\xff\xff\xff\x07"), &zeros{1 << 30}))
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("x", h.pkgr)
	r.Header.Set("Content-Type", "application/x-git-receive-pack-request")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	close(stop)
	if !strings.Contains(string(b), "unpack ") || strings.Contains(string(b), "unpack ok") {
		t.Errorf("%s %.200q", resp.Status, b)
	}
	if most := <-peak; most > base.HeapAlloc+128<<20 {
		t.Errorf("the heap grew to %d MiB", most>>20)
	}
	if n := files(t, filepath.Join(h.dir, "git"), "incoming-"); n > 0 {
		t.Errorf("left %d files", n)
	}
}

func TestLookasideAttacks(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		people, sys := auth.NewStore(h.d), auth.AsSystem(t.Context())
		if err := people.SetPerson(sys, "vic", "viewer", ""); err != nil {
			t.Fatal(err)
		}
		vic, err := people.NewToken(sys, "vic", "", nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		narrow, err := people.NewToken(sys, "pat", "", []string{"pkg.upload:rpms/other"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		before := files(t, filepath.Join(h.dir, "blobs"), "")
		sum512 := sha512.Sum512([]byte("right"))
		sum := hex.EncodeToString(sum512[:])
		file := filepath.Join(t.TempDir(), "a.tar")
		if err := os.WriteFile(file, []byte("wrong"), 0o644); err != nil {
			t.Fatal(err)
		}
		cgi, api := h.url+"/repo/pkgs/upload.cgi", h.url+"/api/v1/lookaside/rpms/hello/"
		for _, c := range []struct {
			name         string
			status, want string
			args         []string
		}{
			{"a viewer", "403", "denied", []string{cgi, "-u", "x:" + vic.Secret, "-F", "name=hello", "-F", "sha512sum=" + sum, "-F", "file=@" + file}},
			{"a token for another package", "403", "denied", []string{cgi, "-u", "x:" + narrow.Secret, "-F", "name=hello", "-F", "sha512sum=" + sum, "-F", "file=@" + file}},
			{"the file before the name", "400", "not present before the field file", []string{cgi, "-u", "x:" + h.pkgr, "-F", "file=@" + file, "-F", "name=hello", "-F", "sha512sum=" + sum}},
			{"another content", "400", "source_sum", []string{cgi, "-u", "x:" + h.pkgr, "-F", "name=hello", "-F", "sha512sum=" + sum, "-F", "file=@" + file}},
			{"md5", "406", "md5", []string{cgi, "-u", "x:" + h.pkgr, "-F", "name=hello", "-F", "md5sum=" + strings.Repeat("a", 32), "-F", "file=@" + file}},
			{"two files", "400", "", []string{cgi, "-u", "x:" + h.pkgr, "-F", "name=hello", "-F", "sha512sum=" + sum, "-F", "file=@" + file, "-F", "file=@" + file}},
			{"a path for a name", "400", "repo_name", []string{cgi, "-u", "x:" + h.pkgr, "-F", "name=../../etc", "-F", "sha512sum=" + sum, "-F", "file=@" + file}},
			{"a dot file", "400", "source_name", []string{cgi, "-u", "x:" + h.pkgr, "-F", "name=hello", "-F", "sha512sum=" + sum, "-F", "file=@" + file + ";filename=.bashrc"}},
			{"the sources file itself", "400", "source_name", []string{cgi, "-u", "x:" + h.pkgr, "-F", "name=hello", "-F", "sha512sum=" + sum, "-F", "file=@" + file + ";filename=sources"}},
			{"no form", "400", "form", []string{cgi, "-u", "x:" + h.pkgr, "-d", "name=hello"}},
			{"by piece: nobody", "401", "token_needed", []string{"-T", file, api + "a.tar?size=5&offset=0&sha512=" + sum}},
			{"by piece: a viewer", "403", "denied", []string{"-u", "x:" + vic.Secret, "-T", file, api + "a.tar?size=5&offset=0&sha512=" + sum}},
			{"by piece: another content", "400", "source_sum", []string{"-u", "x:" + h.pkgr, "-T", file, api + "a.tar?size=5&offset=0&sha512=" + sum}},
			{"by piece: more than announced", "413", "", []string{"-u", "x:" + h.pkgr, "-T", file, api + "a.tar?size=3&offset=0&sha512=" + sum}},
			{"by piece: no size", "400", "source_size", []string{"-u", "x:" + h.pkgr, "-T", file, api + "a.tar?offset=0&sha512=" + sum}},
			{"by piece: an absurd size", "413", "source_size", []string{"-u", "x:" + h.pkgr, "-T", file, api + "a.tar?size=99999999999999&offset=0&sha512=" + sum}},
			{"by piece: a path", "400", "source_name", []string{"-u", "x:" + h.pkgr, "-T", file, "--path-as-is", api + "..%2f..%2fa?size=5&offset=0&sha512=" + sum}},
			{"by piece: no sum", "400", "source_sum", []string{"-u", "x:" + h.pkgr, "-T", file, api + "a.tar?size=5&offset=0&sha512=xyz"}},
		} {
			status, body := curl(t, c.args...)
			if status != c.status || !strings.Contains(body, c.want) {
				t.Errorf("%s: %s %s", c.name, status, body)
			}
		}
		// An upload that was begun with a wrong size stays its own.
		for _, q := range []string{"size=9&offset=0", "size=5&offset=0"} {
			if err := os.WriteFile(file, []byte("right"), 0o644); err != nil {
				t.Fatal(err)
			}
			if status, body := curl(t, "-u", "x:"+h.pkgr, "-T", file, api+"a.tar?"+q+"&sha512="+sum); status != "200" || !strings.Contains(body, `"have":5`) {
				t.Errorf("%s: %s %s", q, status, body)
			}
		}
		// The same bytes for another package and under another name are stored once.
		if err := h.s.Create(sys, distgit.Repo{Name: "rpms/other"}); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{
			{cgi, "-u", "x:" + narrow.Secret, "-F", "name=other", "-F", "sha512sum=" + sum, "-F", "file=@" + file},
			{cgi, "-u", "x:" + h.pkgr, "-F", "name=hello", "-F", "sha512sum=" + sum, "-F", "file=@" + file + ";filename=b.tar"},
		} {
			if status, body := curl(t, args...); status != "200" {
				t.Errorf("%s %s", status, body)
			}
		}
		if n := files(t, filepath.Join(h.dir, "blobs", "sha256"), "") - before; n != 1 {
			t.Errorf("%d blobs are kept of one content", n)
		}
		// A client goes on where it was cut, and checks what it has by its digest.
		url := h.url + "/repo/pkgs/rpms/other/a.tar/sha512/" + sum + "/a.tar"
		_, head := curl(t, "-I", url)
		etag := ""
		for l := range strings.Lines(head) {
			if v, ok := strings.CutPrefix(l, "Etag: "); ok {
				etag = strings.TrimSpace(v)
			}
		}
		for _, c := range []struct{ status, body, header string }{
			{"206", "ght", "If-Range: " + etag}, {"200", "right", `If-Range: "other"`}, {"304", "", "If-None-Match: " + etag},
		} {
			if status, body := curl(t, "-H", c.header, "-r", "2-", url); status != c.status || body != c.body {
				t.Errorf("%s: %s %s", c.header, status, body)
			}
		}
		if status, _ := curl(t, "-r", "100-", url); status != "416" {
			t.Errorf("a range past the end: %s", status)
		}
	})
}
