package web_test

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"drover/internal/fault"
	"drover/internal/web"
)

//go:embed testdata
var pages embed.FS

type in struct {
	Name string `path:"name"`
	Body struct {
		N int `json:"n" minimum:"1"`
	}
}

func server(t *testing.T) (*web.Client, *httptest.Server) {
	s := web.New(web.Config{Version: "test", Log: slog.New(slog.DiscardHandler), Authenticate: func(r *http.Request) (context.Context, error) {
		if r.Header.Get("Authorization") == "Bearer wrong" {
			return nil, fault.Unauthorized("token_bad", "the token is wrong")
		}
		return r.Context(), nil
	}})
	web.Route(s, web.Op{Method: "POST", Path: "/api/v1/things/{name}", ID: "thing"}, func(_ context.Context, i *in) (map[string]int, error) {
		switch i.Name {
		case "gone":
			return nil, fault.NotFound("thing_unknown", "there is no thing %q", i.Name).Fix("make it").Wrap(errors.New("cause"))
		case "secret":
			return nil, errors.New("password is hunter2")
		case "panic":
			panic("boom")
		}
		return map[string]int{"n": i.Body.N}, nil
	})
	s.Menu("Things", "/things")
	s.Page("GET /things/{name}", pages, "testdata/thing.html", func(r *http.Request) (web.Page, error) {
		if r.PathValue("name") == "gone" {
			return web.Page{}, fault.NotFound("thing_unknown", "there is no thing %q", "<b>")
		}
		return web.Page{Title: "A <thing>", Data: map[string]string{"name": r.PathValue("name")}, CLI: "drover thing show"}, nil
	})
	ts := httptest.NewServer(s)
	t.Cleanup(ts.Close)
	return &web.Client{Base: ts.URL}, ts
}

func TestRouteAndProblems(t *testing.T) {
	c, _ := server(t)
	var out map[string]int
	if err := c.Call(t.Context(), "POST", "/api/v1/things/a", map[string]int{"n": 3}, &out); err != nil || out["n"] != 3 {
		t.Fatalf("%v, %v", out, err)
	}
	for name, want := range map[string]string{
		"gone":   `there is no thing "gone": cause (make it)`,
		"secret": "internal error",
		"panic":  "drover failed on this request",
	} {
		err := c.Call(t.Context(), "POST", "/api/v1/things/"+name, map[string]int{"n": 3}, nil)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, body := range map[string]any{"below the minimum": map[string]int{"n": 0}, "unknown field": map[string]int{"n": 1, "m": 2}, "no body": nil, "a string": "x"} {
		if err := c.Call(t.Context(), "POST", "/api/v1/things/a", body, nil); fault.Code(err) != "request_invalid" {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.Token = "wrong"
	if err := c.Call(t.Context(), "POST", "/api/v1/things/a", nil, nil); fault.Code(err) != "token_bad" {
		t.Errorf("wrong token: %v", err)
	}
}

func TestPageIsHTMLAndJSON(t *testing.T) {
	_, ts := server(t)
	get := func(path, accept string, want int) string {
		r, _ := http.NewRequestWithContext(t.Context(), "GET", ts.URL+path, nil)
		r.Header.Set("Accept", accept)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != want {
			t.Errorf("%s: %s", path, resp.Status)
		}
		return string(b)
	}
	page := get("/things/%3Cscript%3E", "text/html", 200)
	if !strings.Contains(page, "&lt;script&gt;") || strings.Contains(page, "<script>") || !strings.Contains(page, "A &lt;thing&gt;") {
		t.Errorf("not escaped: %s", page)
	}
	if b := get("/things/x", "application/json", 200); strings.TrimSpace(b) != `{"name":"x"}` {
		t.Errorf("as JSON: %s", b)
	}
	if b := get("/things/x?format=json", "text/html", 200); strings.TrimSpace(b) != `{"name":"x"}` {
		t.Errorf("as JSON by query: %s", b)
	}
	if b := get("/things/gone", "text/html", 404); !strings.Contains(b, "&lt;b&gt;") || !strings.Contains(b, "thing_unknown") {
		t.Errorf("error page: %s", b)
	}
	if b := get("/things/gone", "*/*", 404); !strings.Contains(b, `"code":"thing_unknown"`) {
		t.Errorf("error for curl: %s", b)
	}
	if b := get("/static/drover.css", "*/*", 200); !strings.Contains(b, "--accent") {
		t.Error("no style sheet")
	}
	for _, p := range []string{"/static/../shell.html", "/static/%2e%2e/shell.html", "/static/nothing"} {
		get(p, "*/*", 404)
	}
}

func TestCrossSiteWritesAreRefused(t *testing.T) {
	_, ts := server(t)
	for _, c := range []struct {
		name, header, value string
		status              int
	}{
		{"another site", "Sec-Fetch-Site", "cross-site", 403},
		{"a sister site", "Sec-Fetch-Site", "same-site", 403},
		{"this site", "Sec-Fetch-Site", "same-origin", 200},
		{"an old browser on another site", "Origin", "https://evil.example", 403},
		{"a page without an origin", "Origin", "null", 403},
		{"an old browser here", "Origin", ts.URL, 200},
		{"no browser", "X-Nothing", "x", 200},
	} {
		r, _ := http.NewRequestWithContext(t.Context(), "POST", ts.URL+"/api/v1/things/a", strings.NewReader(`{"n":1}`))
		r.Header.Set(c.header, c.value)
		r.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%s: %s", c.name, resp.Status)
		}
	}
}

// hostile is a server with handlers that go wrong, behind the http.Server that is used.
func hostile(t *testing.T, idle time.Duration) string {
	t.Helper()
	s := web.New(web.Config{Version: "test", Log: slog.New(slog.DiscardHandler), Idle: idle, Authenticate: func(r *http.Request) (context.Context, error) { return r.Context(), nil }})
	s.HandleFunc("GET /half", func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic("boom")
	})
	s.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) error { panic("boom") })
	s.HandleFunc("PUT /bytes", func(w http.ResponseWriter, r *http.Request) error {
		n, err := io.Copy(io.Discard, r.Body)
		if err == nil {
			_, _ = fmt.Fprint(w, n)
		}
		return err
	})
	s.HandleFunc("POST /poll", func(w http.ResponseWriter, r *http.Request) error {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return err
		}
		select {
		case <-r.Context().Done():
			return fault.Internal("cut", "the poll was cut")
		case <-time.After(4 * idle):
		}
		_, _ = io.WriteString(w, "news")
		return nil
	})
	done := make(chan error, 1)
	s.HandleFunc("GET /endless", func(w http.ResponseWriter, _ *http.Request) error {
		b := make([]byte, 1<<20)
		for {
			if _, err := w.Write(b); err != nil {
				done <- err
				return nil //nolint:nilerr // it is in done
			}
		}
	})
	s.HandleFunc("GET /ended", func(w http.ResponseWriter, _ *http.Request) error {
		_, _ = fmt.Fprint(w, (<-done).Error())
		return nil
	})
	web.Route(s, web.Op{Method: "POST", Path: "/json", ID: "json"}, func(_ context.Context, i *struct {
		Body struct {
			S string `json:"s"`
		}
	}) (int, error) {
		return len(i.Body.S), nil
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hs := s.HTTPServer()
	go func() { _ = hs.Serve(l) }()
	t.Cleanup(func() { _ = hs.Close() })
	return l.Addr().String()
}

// raw sends bytes and reads what comes back until the end, or 10 s.
func raw(t *testing.T, addr, send string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, send)
	b, _ := io.ReadAll(c)
	return string(b)
}

func TestWhatGoesWrongIsAProblem(t *testing.T) {
	addr := hostile(t, time.Second)
	head := " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
	for _, c := range []struct{ name, send, status, body string }{
		{"no such path", "GET /nothing" + head + "\r\n", "404", `"code":"path_unknown"`},
		{"no such path, for a person", "GET /nothing" + head + "Accept: text/html\r\n\r\n", "404", `<dd class="mono">path_unknown</dd>`},
		{"markup in the path", "GET /%3Cscript%3E" + head + "Accept: text/html\r\n\r\n", "404", `&lt;script&gt;`},
		{"no such method", "DELETE /half" + head + "\r\n", "405", `"code":"method"`},
		{"what may be", "DELETE /half" + head + "\r\n", "405", "Allow: GET, HEAD\r\n"},
		{"a path to be cleaned", "GET /x/../panic" + head + "\r\n", "307", "Location: /panic"},
		{"a panic", "GET /panic" + head + "\r\n", "500", `"code":"panic"`},
		{"a panic, for a person", "GET /panic" + head + "Accept: text/html\r\n\r\n", "500", "What to do"},
		{"too much JSON", "POST /json" + head + "Content-Type: application/json\r\nContent-Length: 2000000\r\n\r\n" + strings.Repeat("a", 2000000), "413", `"code":"request_too_large"`},
		{"no JSON", "POST /json" + head + "Content-Type: text/xml\r\nContent-Length: 4\r\n\r\n<a/>", "415", `"code":"media_type"`},
		{"broken JSON", "POST /json" + head + "Content-Type: application/json\r\nContent-Length: 4\r\n\r\n{\"s\"", "400", `"code":"request_invalid"`},
		{"a body that stops", "PUT /bytes" + head + "Content-Length: 10\r\n\r\nabc", "400", `"code":"body_slow"`},
		{"JSON that stops", "POST /json" + head + "Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{\"s", "40", `body_slow`},
		{"a body that is cut in a chunk", "PUT /bytes" + head + "Transfer-Encoding: chunked\r\n\r\n5\r\nab", "400", "body_slow"},
		{"a head without an end", "GET /nothing HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 80<<10), "431", ""},
		{"two hosts", "GET /nothing HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "400", ""},
		{"a host with a line in it", "GET /nothing HTTP/1.1\r\nHost: x\x00y\r\nConnection: close\r\n\r\n", "400", ""},
		{"two lengths", "PUT /bytes HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab", "400", ""},
	} {
		got := raw(t, addr, c.send)
		if !strings.HasPrefix(got, "HTTP/1.1 "+c.status) || !strings.Contains(got, c.body) {
			t.Errorf("%s: %.600s", c.name, got)
		}
	}
	got := raw(t, addr, "GET /half"+head+"\r\n")
	if strings.Contains(got, "panic") || !strings.HasSuffix(got, "half") {
		t.Errorf("half an answer goes on: %s", got)
	}
}

func TestHeadersOfEveryAnswer(t *testing.T) {
	addr := hostile(t, time.Second)
	for _, path := range []string{"/nothing", "/static/drover.css", "/api/openapi.json", "/panic"} {
		resp, err := http.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		csp := resp.Header.Get("Content-Security-Policy")
		if resp.Header.Get("X-Content-Type-Options") != "nosniff" || resp.Header.Get("Referrer-Policy") == "" ||
			!strings.Contains(csp, "default-src 'self'") || !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: %v", path, resp.Header)
		}
	}
}

// A long poll outlives the time in which its body must come; a slow client does not.
func TestSlowness(t *testing.T) {
	addr := hostile(t, 200*time.Millisecond)
	resp, err := http.Post("http://"+addr+"/poll", "text/plain", strings.NewReader("what is new?"))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(b) != "news" {
		t.Errorf("a poll was cut: %s", b)
	}
	// A body that drips: every byte in time, the whole never.
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "PUT /bytes HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
	began := time.Now()
	for time.Since(began) < 10*time.Second {
		if _, err = io.WriteString(c, "a"); err != nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err == nil {
		t.Error("a dripping body was read for 10 s")
	}
	// The same to somebody who does not even read it.
	d, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	_, _ = io.WriteString(d, "PUT /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
	_ = d.SetReadDeadline(time.Now().Add(10 * time.Second))
	if b, err := io.ReadAll(d); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 404") {
		t.Errorf("a body that nobody wants: %v %.100s", err, b)
	}
	// A reader that takes nothing.
	e, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	_, _ = io.WriteString(e, "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
	if got := raw(t, addr, "GET /ended HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); !strings.Contains(got, "timeout") {
		t.Errorf("a reader that takes nothing: %s", got)
	}
}

func TestRows(t *testing.T) {
	items := []string{"a", "b", "c", "d", "e"}
	r := httptest.NewRequest("GET", "/x?q=1&after=b&format=json", nil)
	got := web.Cut(r, items, 2, func(s string) string { return s })
	if strings.Join(got.Rows, "") != "cd" || got.Total != 5 || got.Next != "?after=d&q=1" || got.First != "?q=1" {
		t.Errorf("%+v", got)
	}
	got = web.Cut(httptest.NewRequest("GET", "/x?after=d", nil), items, 2, func(s string) string { return s })
	if strings.Join(got.Rows, "") != "e" || got.Next != "" {
		t.Errorf("%+v", got)
	}
}

// What is left of a body that was too large is no request of its own.
func TestTheRestOfABodyIsNoRequest(t *testing.T) {
	addr := hostile(t, 5*time.Second)
	rest := strings.Repeat("a", 1500000) + "\r\n\r\nGET /panic HTTP/1.1\r\nHost: x\r\n\r\n"
	got := raw(t, addr, fmt.Sprintf("POST /json HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", 2000000, rest))
	if n := strings.Count(got, "HTTP/1.1 "); n != 1 || !strings.Contains(got, "413") || !strings.Contains(got, "Connection: close") {
		t.Errorf("%d answers: %.900s", n, got)
	}
}
