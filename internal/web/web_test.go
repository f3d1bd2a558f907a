package web_test

import (
	"context"
	"embed"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

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
	r, _ := http.NewRequestWithContext(t.Context(), "POST", ts.URL+"/api/v1/things/a", strings.NewReader(`{"n":1}`))
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("got %s", resp.Status)
	}
}
