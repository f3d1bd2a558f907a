package fetch_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"drover/internal/blob/blobtest"
	"drover/internal/fault"
	"drover/internal/fetch"
)

// client makes one that is quick to lose patience.
func client(t testing.TB, change func(*fetch.Config)) *fetch.Client {
	t.Helper()
	cfg := fetch.Config{Dir: filepath.Join(t.TempDir(), "partial"), Pause: 5 * time.Millisecond, Header: 20 * time.Second, Stall: 20 * time.Second, Patience: 20 * time.Second}
	if change != nil {
		change(&cfg)
	}
	c, err := fetch.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func serve(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.URL + "/"
}

func origins(t testing.TB, urls ...string) *fetch.Origins {
	t.Helper()
	var list []fetch.Origin
	for i, u := range urls {
		list = append(list, fetch.Origin{URL: u, Prefer: -i})
	}
	o, err := fetch.NewOrigins(list...)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func sha(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }

func want(href string, data []byte) fetch.Want {
	return fetch.Want{Href: href, Algo: "sha256", Sum: sha(data), Size: int64(len(data))}
}

// whole answers with data, ranges and all.
func whole(w http.ResponseWriter, r *http.Request, data []byte) {
	w.Header().Set("ETag", `"`+sha(data)[:8]+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// file fetches w into memory.
func file(t testing.TB, c *fetch.Client, o *fetch.Origins, w fetch.Want) ([]byte, error) {
	t.Helper()
	var got []byte
	err := c.File(t.Context(), o, w, func(f *os.File) (err error) {
		got, err = io.ReadAll(f)
		return err
	})
	return got, err
}

func code(t testing.TB, err error, want string, says ...string) {
	t.Helper()
	if fault.Code(err) != want {
		t.Fatalf("got %q (%v), want %q", fault.Code(err), err, want)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Fatalf("%q does not say %q", err, s)
		}
	}
}

// left is what lies in the client's directory.
func left(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// cutAfter sends the headers of the whole and some bytes, then cuts the connection.
func cutAfter(w http.ResponseWriter, length int, data []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(length))
	_, _ = w.Write(data)
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// Every way to serve a file badly, from an only origin and beside a good one.
func TestMisbehaviour(t *testing.T) {
	data := blobtest.Bytes(1, 300_000)
	other := blobtest.Bytes(2, 300_000)
	type answer = func(n int64, w http.ResponseWriter, r *http.Request)
	always := func(status int) answer {
		return func(_ int64, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
	}
	for name, c := range map[string]struct {
		bad  answer // n counts its requests from 1
		code string // from the only origin; "" when it ends well all the same
		says string
	}{
		"fine":          {func(_ int64, w http.ResponseWriter, r *http.Request) { whole(w, r, data) }, "", ""},
		"missing":       {always(404), "fetch_missing", "answers 404"},
		"gone":          {always(410), "fetch_missing", "answers 410"},
		"denied":        {always(403), "fetch_denied", "answers 403"},
		"broken":        {always(500), "fetch_away", "answers 500"},
		"teapot":        {always(418), "fetch_refused", "answers 418"},
		"not modified":  {always(304), "fetch_refused", "answers 304"},
		"no such range": {always(416), "fetch_refused", "answers 416"},
		"wrong bytes":   {func(_ int64, w http.ResponseWriter, r *http.Request) { whole(w, r, other) }, "fetch_sum", "other bytes"},
		"short":         {func(_ int64, w http.ResponseWriter, r *http.Request) { whole(w, r, data[:1000]) }, "fetch_sum", "1000 bytes"},
		"long": {func(_ int64, w http.ResponseWriter, r *http.Request) {
			whole(w, r, append(data[:len(data):len(data)], 1))
		}, "fetch_sum", "more than 300000"},
		"long, untold": {func(_ int64, w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(data)
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(data)
		}, "fetch_sum", "more than 300000"},
		"short, untold": {func(_ int64, w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(data[:100])
			_ = http.NewResponseController(w).Flush()
		}, "fetch_away", "ended at byte 100 of 300000"},
		"cut":        {func(_ int64, w http.ResponseWriter, _ *http.Request) { cutAfter(w, len(data), data[:100_000]) }, "fetch_away", "was cut at byte 100000"},
		"cut before": {func(int64, http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "fetch_away", "EOF"},
		"unasked range": {func(_ int64, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-299999/300000")
			w.WriteHeader(206)
			_, _ = w.Write(data)
		}, "fetch_refused", "206"},
		"stall": {func(_ int64, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			_, _ = w.Write(data[:5000])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, "fetch_away", "brought nothing for too long"},
		"drip": {func(_ int64, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			for i := 0; r.Context().Err() == nil; i++ {
				_, _ = w.Write(data[i : i+1])
				_ = http.NewResponseController(w).Flush()
				time.Sleep(20 * time.Millisecond)
			}
		}, "fetch_away", "is too slow"},
		"circle": {func(_ int64, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}, "fetch_refused", "in a circle"},
		"long chain": {func(n int64, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, fmt.Sprint("/", n), http.StatusFound)
		}, "fetch_refused", "too often"},
		"to a file": {func(_ int64, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, "fetch_refused", "not by http"},
		"to nowhere":   {func(_ int64, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(302) }, "fetch_refused", "to nowhere"},
		"busy once":    {func(n int64, w http.ResponseWriter, r *http.Request) { sometimes(n == 1, 503, "", w, r, data) }, "", ""},
		"busy, says 1": {func(n int64, w http.ResponseWriter, r *http.Request) { sometimes(n == 1, 429, "1", w, r, data) }, "", ""},
		"busy for long": {func(_ int64, w http.ResponseWriter, r *http.Request) { sometimes(true, 429, "3600", w, r, data) }, "fetch_away",
			"answers 429"},
		"cut each time": {func(_ int64, w http.ResponseWriter, r *http.Request) { // but resumed
			at := 0
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &at); err == nil {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(data)-1, len(data)))
				w.Header().Set("Content-Length", strconv.Itoa(len(data)-at))
				w.WriteHeader(206)
			}
			part := data[at:min(at+100_000, len(data))]
			if at+len(part) == len(data) {
				_, _ = w.Write(part)
				return
			}
			cutAfter(w, len(data)-at, part)
		}, "", ""},
		"ignores ranges": {func(n int64, w http.ResponseWriter, r *http.Request) {
			if n < 3 {
				cutAfter(w, len(data), data[:100_000])
			}
			r.Header.Del("Range")
			whole(w, r, data)
		}, "", ""},
		"another range": {func(n int64, w http.ResponseWriter, r *http.Request) {
			switch {
			case n == 1:
				cutAfter(w, len(data), data[:100_000])
			case r.Header.Get("Range") != "":
				w.Header().Set("Content-Range", "bytes 99999-299999/300000")
				w.WriteHeader(206)
				_, _ = w.Write(data[99_999:])
			default:
				whole(w, r, data)
			}
		}, "", ""},
		"range of another file": {func(n int64, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				cutAfter(w, len(data), other[:100_000]) // the first part belongs to other bytes: nobody is blamed
			}
			whole(w, r, data)
		}, "", ""},
		"416 to a range": {func(n int64, w http.ResponseWriter, r *http.Request) {
			switch {
			case n == 1:
				cutAfter(w, len(data), data[:100_000])
			case r.Header.Get("Range") != "":
				w.WriteHeader(416)
			default:
				whole(w, r, data)
			}
		}, "", ""},
		"a stale cache": {func(_ int64, w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Cache-Control") == "no-cache" {
				whole(w, r, data)
			} else {
				whole(w, r, other)
			}
		}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int64
			bad := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Accept-Encoding") != "identity" || r.Header.Get("User-Agent") != "drover" {
					t.Errorf("asked with %v", r.Header)
				}
				c.bad(n.Add(1), w, r)
			})
			good := serve(t, func(w http.ResponseWriter, r *http.Request) { whole(w, r, data) })
			var dir string
			cl := client(t, func(cfg *fetch.Config) {
				dir = cfg.Dir
				cfg.Tries = 3
				if name == "stall" || name == "drip" {
					cfg.Stall = 300 * time.Millisecond
				}
			})
			o := origins(t, bad)
			got, err := file(t, cl, o, want("a/b.rpm", data))
			if c.code == "" {
				if err != nil || !bytes.Equal(got, data) {
					t.Fatal(err)
				}
			} else {
				code(t, err, c.code, bad, c.says, "a/b.rpm")
				if st := o.Stats()[0]; st.Errors == 0 || st.Requests == 0 {
					t.Fatalf("%+v", st)
				}
			}
			// With another origin behind it all is well, whatever the first does.
			got, err = file(t, cl, origins(t, bad, good), want("a/b.rpm", data))
			if err != nil || !bytes.Equal(got, data) {
				t.Fatal(err)
			}
			if l := left(t, dir); len(l) != 0 {
				t.Fatalf("left over: %v", l)
			}
			// Two that do the same are both named.
			if second := serve(t, func(w http.ResponseWriter, r *http.Request) { c.bad(n.Add(1), w, r) }); c.code != "" && c.says != "brought nothing for too long" {
				_, err = file(t, cl, origins(t, bad, second), want("a/b.rpm", data))
				code(t, err, c.code, bad, second)
			}
		})
	}
}

func sometimes(refuse bool, status int, after string, w http.ResponseWriter, r *http.Request, data []byte) {
	if !refuse {
		whole(w, r, data)
		return
	}
	if after != "" {
		w.Header().Set("Retry-After", after)
	}
	w.WriteHeader(status)
}

func TestChecksums(t *testing.T) {
	data := blobtest.Bytes(1, 5000)
	o := origins(t, serve(t, func(w http.ResponseWriter, r *http.Request) { whole(w, r, data) }))
	c := client(t, nil)
	sum := sha512.Sum512(data)
	for _, w := range []fetch.Want{
		{Href: "x", Algo: "sha512", Sum: strings.ToUpper(hex.EncodeToString(sum[:])), Size: 5000},
		{Href: "x", Algo: "sha512", Sum: hex.EncodeToString(sum[:]), Max: 5000}, // size unknown
		{Href: "x", Max: 5000}, // nothing known
		{Href: "x", Size: 5000},
	} {
		if got, err := file(t, c, o, w); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%+v: %v", w, err)
		}
	}
	for want, w := range map[string]fetch.Want{
		"fetch_algo": {Href: "x", Algo: "md5", Sum: "00", Size: 5000},
		"fetch_size": {Href: "x", Algo: "sha256", Sum: sha(data)},
		"fetch_href": {Href: "../x", Algo: "sha256", Sum: sha(data), Size: 5000},
		"fetch_sum":  {Href: "x", Algo: "sha512", Sum: strings.Repeat("0", 128), Max: 5000},
	} {
		_, err := file(t, c, o, w)
		code(t, err, want)
	}
	for _, w := range []fetch.Want{{Href: "x", Max: 4999}, {Href: "x", Algo: "sha256", Sum: sha(data), Max: 4999}, {Href: "x", Size: 5000, Max: 4999}} {
		_, err := file(t, c, o, w)
		code(t, err, "fetch_size")
	}
	_, err := file(t, c, o, fetch.Want{Href: "x", Algo: "sha1", Sum: sha(data), Size: 5000})
	code(t, err, "fetch_algo")
}

// Without a checksum a file goes on only while its ETag stays, and only where it began.
func TestTagChangesBetweenParts(t *testing.T) {
	first, second := blobtest.Bytes(1, 300_000), blobtest.Bytes(2, 300_000)
	for _, same := range []bool{true, false} {
		var n atomic.Int64
		var asked sync.Map
		u := serve(t, func(w http.ResponseWriter, r *http.Request) {
			asked.Store(n.Add(1), r.Header.Get("If-Range")+" "+r.Header.Get("Range"))
			if n.Load() == 1 {
				w.Header().Set("ETag", `"`+sha(first)[:8]+`"`)
				cutAfter(w, len(first), first[:100_000])
			}
			if same {
				whole(w, r, first)
			} else {
				whole(w, r, second)
			}
		})
		got, err := file(t, client(t, nil), origins(t, u), fetch.Want{Href: "x", Max: 1 << 20})
		wanted := second
		if same {
			wanted = first
		}
		if err != nil || !bytes.Equal(got, wanted) {
			t.Fatalf("same %v: %d bytes, %v", same, len(got), err)
		}
		if a, _ := asked.Load(int64(2)); a != `"`+sha(first)[:8]+`" bytes=100000-` {
			t.Fatalf("asked with %q", a)
		}
	}
}

func TestSmall(t *testing.T) {
	data := []byte("<repomd/>")
	var n, full atomic.Int64
	h := func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		if r.Header.Get("If-None-Match") == "" {
			full.Add(1)
		}
		whole(w, r, data)
	}
	one, two := serve(t, h), serve(t, h)
	c := client(t, nil)
	o := origins(t, one, two)
	a, err := c.Small(t.Context(), o, "repodata/repomd.xml", 1000, fetch.Mark{}, nil)
	if err != nil || a.Unchanged || !bytes.Equal(a.Data, data) || a.Mark.ETag == "" || a.Mark.Origin != one {
		t.Fatalf("%+v %v", a, err)
	}
	b, err := c.Small(t.Context(), o, "repodata/repomd.xml", 1000, a.Mark, nil)
	if err != nil || !b.Unchanged || b.Data != nil || b.Mark != a.Mark || n.Load() != 2 || full.Load() != 1 {
		t.Fatalf("%+v %v, %d requests", b, err, n.Load())
	}
	// Another origin's tag means nothing.
	if b, err := c.Small(t.Context(), origins(t, two), "repodata/repomd.xml", 1000, a.Mark, nil); err != nil || b.Unchanged {
		t.Fatalf("%+v %v", b, err)
	}
	_, err = c.Small(t.Context(), o, "x", 5, fetch.Mark{}, nil)
	code(t, err, "fetch_size", one, two)
	// The check sends it on to the next origin.
	stale := serve(t, func(w http.ResponseWriter, r *http.Request) { whole(w, r, []byte("old")) })
	check := func(got []byte) error {
		if !bytes.Equal(got, data) {
			return fmt.Errorf("not the one of the metalink")
		}
		return nil
	}
	if a, err := c.Small(t.Context(), origins(t, stale, two), "x", 1000, fetch.Mark{}, check); err != nil || a.Mark.Origin != two {
		t.Fatalf("%+v %v", a, err)
	}
	_, err = c.Small(t.Context(), origins(t, stale), "x", 1000, fetch.Mark{}, check)
	code(t, err, "fetch_sum", "metalink", stale)

	list, err := fetch.Exactly(fetch.Origin{URL: one + "list?repo=x&arch=y"})
	if err != nil {
		t.Fatal(err)
	}
	if a, err := c.Small(t.Context(), list, "", 1000, fetch.Mark{}, nil); err != nil || !bytes.Equal(a.Data, data) || strings.Contains(a.Mark.Origin, "?") {
		t.Fatalf("%+v %v", a, err)
	}
}

// A password goes to its host and nowhere else, and is in no error.
func TestPassword(t *testing.T) {
	data := []byte("secret content")
	other := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the password went to another host")
		}
		whole(w, r, data)
	})
	own := serve(t, func(w http.ResponseWriter, r *http.Request) {
		user, pw, _ := r.BasicAuth()
		switch {
		case user != "u" || pw != "hunter2":
			w.WriteHeader(401)
		case strings.HasSuffix(r.URL.Path, "away"):
			http.Redirect(w, r, strings.Replace(other, "http://", "http://u:hunter2@", 1)+"x?token=hunter2", http.StatusTemporaryRedirect)
		case strings.HasSuffix(r.URL.Path, "home"):
			http.Redirect(w, r, "x", http.StatusPermanentRedirect)
		case strings.HasSuffix(r.URL.Path, "lost"):
			http.Redirect(w, r, "http://127.0.0.1:1/?token=hunter2", http.StatusFound)
		default:
			whole(w, r, data)
		}
	})
	o, err := fetch.NewOrigins(fetch.Origin{URL: own, User: "u", Password: "hunter2"})
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	byFile, err := fetch.NewOrigins(fetch.Origin{URL: own, User: "u", PasswordFile: secret})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fetch.NewOrigins(fetch.Origin{URL: own, User: "u", PasswordFile: secret + "-none"}); fault.Code(err) != "fetch_password" {
		t.Fatal(err)
	}
	c := client(t, func(cfg *fetch.Config) { cfg.Tries = 1 })
	for _, href := range []string{"x", "away", "home"} {
		for _, o := range []*fetch.Origins{o, byFile} {
			if got, err := file(t, c, o, want(href, data)); err != nil || !bytes.Equal(got, data) {
				t.Fatal(href, err)
			}
		}
	}
	_, err = file(t, c, origins(t, own), want("x", data))
	code(t, err, "fetch_denied")
	_, err = file(t, c, o, want("lost", data))
	code(t, err, "fetch_away", own)
	if strings.Contains(err.Error(), "hunter2") {
		t.Fatalf("the error tells the password: %v", err)
	}
	for _, u := range []string{"http://u:hunter2@h/", "http://u:hunter2@h\x00/", "ftp://u:hunter2@h/", "http://h/?pw=hunter2", "hunter2", "file://hunter2/x"} {
		if _, err := fetch.NewOrigins(fetch.Origin{URL: u}); fault.Code(err) != "fetch_origin" || strings.Contains(err.Error(), ":hunter2@") {
			t.Errorf("%q: %v", u, err)
		}
	}
	if _, err := fetch.NewOrigins(); fault.Code(err) != "fetch_origin" {
		t.Error(err)
	}
}

// A lower origin waits for the higher ones to fail.
func TestPreference(t *testing.T) {
	data := blobtest.Bytes(1, 1000)
	var fine atomic.Bool
	fine.Store(true)
	a := serve(t, func(w http.ResponseWriter, r *http.Request) { sometimes(!fine.Load(), 500, "", w, r, data) })
	b := serve(t, func(w http.ResponseWriter, r *http.Request) { whole(w, r, data) })
	o := origins(t, a, b)
	c := client(t, func(cfg *fetch.Config) { cfg.Pause = time.Minute })
	for range 20 {
		if _, err := file(t, c, o, want("x", data)); err != nil {
			t.Fatal(err)
		}
	}
	if st := o.Stats(); st[0].Requests != 20 || st[1].Requests != 0 || st[0].Bytes != 20_000 {
		t.Fatalf("%+v", st)
	}
	fine.Store(false)
	for range 20 {
		if _, err := file(t, c, o, want("x", data)); err != nil {
			t.Fatal(err)
		}
	}
	if st := o.Stats(); st[0].Requests != 21 || st[0].Errors != 1 || st[1].Requests != 20 || st[1].Retries != 1 || st[0].Rest.IsZero() {
		t.Fatalf("%+v", st)
	}
}

func TestDirectory(t *testing.T) {
	data := blobtest.Bytes(1, 100_000)
	dir := filepath.Join(t.TempDir(), "up stream")
	for _, name := range []string{"Packages/a.rpm", "Packages/b+c.rpm", "../secret"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"inner": "Packages/a.rpm", "outer": "../secret", "far": "/etc/passwd"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	o := origins(t, "file://"+strings.ReplaceAll(dir, " ", "%20"))
	c := client(t, nil)
	for _, href := range []string{"Packages/a.rpm", "Packages/b+c.rpm", "Packages/b%2Bc.rpm", "inner"} {
		err := c.File(t.Context(), o, want(href, data), func(f *os.File) error {
			got, err := io.ReadAll(f)
			info, serr := f.Stat()
			orig, oerr := os.Stat(filepath.Join(dir, "Packages/a.rpm"))
			if err != nil || serr != nil || oerr != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: %v %v %v", href, err, serr, oerr)
			}
			if href == "inner" && !os.SameFile(info, orig) {
				t.Error("it is a copy")
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", href, err)
		}
	}
	for href, wanted := range map[string]string{"outer": "fetch_refused", "far": "fetch_refused", "../secret": "fetch_href", "none": "fetch_missing", "Packages": "fetch_refused"} {
		_, err := file(t, c, o, want(href, data))
		code(t, err, wanted)
	}
	_, err := file(t, c, o, want("inner", data[1:]))
	code(t, err, "fetch_sum")
	_, err = file(t, c, o, fetch.Want{Href: "inner", Max: 1000})
	code(t, err, "fetch_size")
	if a, err := c.Small(t.Context(), o, "inner", 1<<20, fetch.Mark{}, nil); err != nil || !bytes.Equal(a.Data, data) {
		t.Fatal(err)
	}
	// It changes while it is taken.
	err = c.File(t.Context(), o, want("inner", data), func(*os.File) error {
		return os.WriteFile(filepath.Join(dir, "inner"), blobtest.Bytes(2, 100_000), 0o600)
	})
	code(t, err, "fetch_changed")
	// A directory is looked into before an HTTP origin is asked, also by the checksum; what is
	// wrong there, or not whole, comes by HTTP.
	var asked atomic.Int64
	web := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = w.Write(data)
	})
	both := origins(t, web, "file://"+strings.ReplaceAll(dir, " ", "%20"))
	artifact := filepath.Join(dir, sha(data)[:2], sha(data)[2:])
	if err := os.MkdirAll(filepath.Dir(artifact), 0o755); err != nil {
		t.Fatal(err)
	}
	for what, n := range map[string]int64{"Packages/b+c.rpm": 0, "elsewhere/c.rpm": 0} {
		if err := os.WriteFile(artifact, data, 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := file(t, c, both, want(what, data)); err != nil || !bytes.Equal(got, data) || asked.Load() != n {
			t.Fatalf("%s: %v, %d requests", what, err, asked.Load())
		}
	}
	if err := os.WriteFile(artifact, data[:len(data)-1], 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := file(t, c, both, want("elsewhere/c.rpm", data)); err != nil || !bytes.Equal(got, data) || asked.Load() != 1 {
		t.Fatalf("a damaged one: %v, %d requests", err, asked.Load())
	}
}

func TestCanceled(t *testing.T) {
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write(make([]byte, 10))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	c := client(t, func(cfg *fetch.Config) { cfg.Stall = time.Minute })
	err := c.File(ctx, origins(t, u), fetch.Want{Href: "x", Max: 1000}, func(*os.File) error { t.Error("taken"); return nil })
	code(t, err, "canceled")
}

func TestBandwidth(t *testing.T) {
	data := blobtest.Bytes(1, 1<<20)
	o := origins(t, serve(t, of(map[string][]byte{sha(data[:1<<19]): data[:1<<19], sha(data[1<<19:]): data[1<<19:]})))
	c := client(t, func(cfg *fetch.Config) {
		cfg.Limits = append(cfg.Limits, fetch.Limit(1<<30), fetch.Limit(2<<20))
	})
	began := time.Now()
	for _, part := range [][]byte{data[:1<<19], data[1<<19:]} { // in two files
		if _, err := file(t, c, o, want(sha(part), part)); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < 350*time.Millisecond { // one eighth comes at once
		t.Fatalf("1 MiB at 2 MiB/s took %v", took)
	}
}
