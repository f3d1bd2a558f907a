package web

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"drover/internal/fault"
)

//go:embed shell.html static
var files embed.FS

type menuEntry struct{ Name, Path string }

// Menu adds an entry to the head of every page, in the order of the calls.
func (s *Server) Menu(name, path string) { s.menu = append(s.menu, menuEntry{name, path}) }

// Page is what a page handler gives back: data that is shown through a template, or
// as JSON at the same URL.
type Page struct {
	Title string
	Data  any    // the template's dot, and the JSON body
	CLI   string // the command line that shows the same
}

// Page adds a page. The template file defines "main"; fn gives its data.
func (s *Server) Page(pattern string, fsys embed.FS, file string, fn func(*http.Request) (Page, error)) {
	shell := template.Must(template.New("shell.html").Funcs(Funcs()).ParseFS(files, "shell.html"))
	t := template.Must(shell.ParseFS(fsys, file))
	s.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) error {
		p, err := fn(r)
		if err != nil {
			return err
		}
		w.Header().Set("Vary", "Accept")
		if !wantsPage(r) {
			w.Header().Set("Content-Type", "application/json")
			return json.NewEncoder(w).Encode(p.Data)
		}
		return s.render(w, r, http.StatusOK, t, p)
	})
}

func (s *Server) render(w http.ResponseWriter, r *http.Request, status int, t *template.Template, p Page) error {
	var b bytes.Buffer
	err := t.Execute(&b, map[string]any{"Page": p, "Menu": s.menu, "Path": r.URL.Path, "Query": r.URL.Query(), "Version": s.cfg.Version, "Data": p.Data})
	if err != nil {
		return fault.Internal("template", "the page %s cannot be shown", r.URL.Path).Wrap(err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(status)
	_, err = w.Write(b.Bytes())
	_ = err // a reader that went away needs no answer
	return nil
}

func (s *Server) errorPage(w http.ResponseWriter, r *http.Request, p *Problem) {
	t := template.Must(template.New("shell.html").Funcs(Funcs()).ParseFS(files, "shell.html"))
	t = template.Must(t.Parse(`{{define "main"}}<h1>{{.Data.Title}}</h1><p class="bad">{{.Data.Detail}}</p>{{with .Data.Remedy}}<p>{{.}}</p>{{end}}<p class="dim mono">{{.Data.Code}}</p>{{end}}`))
	if err := s.render(w, r, p.Status, t, Page{Title: p.Title, Data: p}); err != nil {
		s.cfg.Log.Error("error page", "err", err)
	}
}

// wantsPage tells whether the caller is a person with a browser. JSON is given for
// "Accept: application/json" and for ?format=json.
func wantsPage(r *http.Request) bool {
	if f := r.URL.Query().Get("format"); f != "" {
		return f != "json"
	}
	a := r.Header.Get("Accept")
	return !strings.Contains(a, "application/json") || strings.Contains(a, "text/html")
}

func static(w http.ResponseWriter, r *http.Request) {
	name := path.Clean(strings.TrimPrefix(r.URL.Path, "/"))
	b, err := files.ReadFile(name)
	if err != nil || !strings.HasPrefix(name, "static/") {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Cache-Control", "public, max-age=300")
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(b))
}

// Funcs are the functions every template has.
func Funcs() template.FuncMap {
	return template.FuncMap{
		"ago":   Ago,
		"exact": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
		"bytes": Bytes,
		"took":  Took,
		"short": func(s string) string { return s[:min(12, len(s))] },
		"join":  strings.Join,
		"pathesc": func(s string) string {
			return (&url.URL{Path: s}).EscapedPath()
		},
		// mark gives a state its shape: told by form and word, not by colour alone.
		"mark": func(state string) template.HTML {
			class, sign := "idle", "○"
			switch strings.ToLower(state) {
			case "closed", "complete", "done", "ok", "ready", "current":
				class, sign = "good", "●"
			case "failed", "broken", "refused":
				class, sign = "bad", "▲"
			case "open", "building", "assigned", "running", "signing", "publishing":
				class, sign = "busy", "◐"
			case "canceled", "cancelled", "revoked":
				class, sign = "dim", "✕"
			}
			return template.HTML(fmt.Sprintf(`<span class="state %s"><b aria-hidden="true">%s</b> %s</span>`, class, sign, template.HTMLEscapeString(strings.ToLower(state)))) //nolint:gosec // escaped
		},
		// seturl changes one key of the URL's query and keeps the others.
		"seturl": func(q url.Values, key string, v any) string {
			out := url.Values{}
			for k, vs := range q {
				out[k] = vs
			}
			out.Set(key, fmt.Sprint(v))
			return "?" + out.Encode()
		},
	}
}

// Ago is how long ago t was, in one unit: "3 min ago".
func Ago(t time.Time) template.HTML {
	if t.IsZero() {
		return "–"
	}
	d := time.Since(t)
	s := "just now"
	switch {
	case d >= 48*time.Hour:
		s = strconv.Itoa(int(d.Hours()/24)) + " d ago"
	case d >= 2*time.Hour:
		s = strconv.Itoa(int(d.Hours())) + " h ago"
	case d >= 2*time.Minute:
		s = strconv.Itoa(int(d.Minutes())) + " min ago"
	case d >= 5*time.Second:
		s = strconv.Itoa(int(d.Seconds())) + " s ago"
	}
	return template.HTML(fmt.Sprintf(`<time datetime="%s" title="%s">%s</time>`, //nolint:gosec // made of digits and fixed words
		t.UTC().Format(time.RFC3339), t.UTC().Format("2006-01-02 15:04:05 UTC"), s))
}

// Bytes is a size with a binary unit: "1.4 MiB".
func Bytes(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	f := float64(n)
	for _, u := range []string{"KiB", "MiB", "GiB"} {
		if f /= 1024; f < 1024 {
			return fmt.Sprintf("%.1f %s", f, u)
		}
	}
	return fmt.Sprintf("%.1f TiB", f/1024)
}

// Took is a duration with three figures: "1.25 s".
func Took(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}
