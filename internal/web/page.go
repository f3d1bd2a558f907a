package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/fault"
)

//go:embed shell.html oops.html static
var files embed.FS

var reHex = regexp.MustCompile(`\b[0-9a-f]{40,}\b`)

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

// Rows is a part of a list, what every page that lists things shows: how many there are in
// all, and where the list goes on.
type Rows[T any] struct {
	Rows  []T    `json:"rows"`
	Total int64  `json:"total"`          // that the filter lets through
	Next  string `json:"next,omitempty"` // query of the part that follows
	First string `json:"-"`              // query of the first part, when this is another
}

// MakeRows makes Rows of at most limit items, of which the caller has read one more when
// there are more. key is the query key by which the list goes on, and of gives its value.
func MakeRows[T any](r *http.Request, items []T, limit int, total int64, key string, of func(T) any) Rows[T] {
	out := Rows[T]{Rows: items, Total: total}
	q := r.URL.Query()
	if q.Get(key) != "" {
		out.First = setURL(q, key, nil)
	}
	if len(items) > limit {
		out.Rows = items[:limit]
		out.Next = setURL(q, key, of(items[limit-1]))
	}
	return out
}

// Cut makes Rows of a whole list that is in memory, sorted by what of gives of each item.
func Cut[T any](r *http.Request, items []T, limit int, of func(T) string) Rows[T] {
	total := int64(len(items))
	after := r.URL.Query().Get("after")
	items = slices.DeleteFunc(slices.Clone(items), func(x T) bool { return after != "" && of(x) <= after })
	return MakeRows(r, items[:min(len(items), limit+1)], limit, total, "after", func(x T) any { return of(x) })
}

// parse reads a page's template and the shell around it. Templates are part of the program:
// one that does not parse is a defect.
func parse(fsys embed.FS, file string) *template.Template {
	return template.Must(template.Must(template.New("shell.html").Funcs(Funcs()).ParseFS(files, "shell.html")).ParseFS(fsys, file))
}

// Page adds a page. The template file defines "main"; fn gives its data.
func (s *Server) Page(pattern string, fsys embed.FS, file string, fn func(*http.Request) (Page, error)) {
	t := parse(fsys, file)
	s.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) error {
		p, err := fn(r)
		if err != nil {
			return err
		}
		w.Header().Set("Vary", "Accept")
		if wantsPage(r) {
			return s.render(w, r, http.StatusOK, t, p)
		}
		b, err := json.Marshal(p.Data)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-cache")
		_, _ = w.Write(append(b, '\n')) // a reader that went away needs no answer
		return nil
	})
}

func (s *Server) render(w http.ResponseWriter, r *http.Request, status int, t *template.Template, p Page) error {
	var b bytes.Buffer
	err := t.Execute(&b, map[string]any{"Page": p, "Menu": s.menu, "Path": r.URL.Path, "Query": r.URL.Query(), "Version": s.cfg.Version, "Data": p.Data, "OK": status < 400})
	if err != nil {
		return fault.Internal("template", "the page %s cannot be shown", r.URL.Path).Wrap(err)
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-cache")
	}
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // a reader that went away needs no answer
	return nil
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

// static serves the style sheet, the script and the icon.
func static(w http.ResponseWriter, r *http.Request) error {
	name := "static/" + r.PathValue("file")
	b, err := files.ReadFile(name)
	if err != nil {
		return fault.NotFound("path_unknown", "there is nothing at %.300q", r.URL.Path)
	}
	// No date and no version in the name: the browser asks each time, and is told "the same" by digest.
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(b)))
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(b))
	return nil
}

// Funcs are the functions every template has.
func Funcs() template.FuncMap {
	return template.FuncMap{
		"ago":   Ago,
		"exact": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
		"bytes": Bytes,
		"took":  Took,
		"add":   func(a, b int) int { return a + b },
		"short": func(s string) string { return s[:min(12, len(s))] },
		"join":  strings.Join,
		"split": strings.Fields,
		"base":  path.Base,
		"zeros": func(s string) bool { return strings.Trim(s, "0") == "" },
		"facts": facts,
		// prose shows what stands in backquotes as code.
		"prose": func(s string) template.HTML {
			parts := strings.Split(template.HTMLEscapeString(s), "`")
			for i := 1; i < len(parts)-1; i += 2 {
				parts[i] = "<code>" + parts[i] + "</code>"
			}
			return template.HTML(strings.Join(parts, "")) //nolint:gosec // escaped before
		},
		"pathesc": func(s string) string {
			return (&url.URL{Path: s}).EscapedPath()
		},
		// mark gives a state its shape: told by form and word, not by color alone.
		"mark": func(state string) template.HTML {
			class, sign := "idle", "○"
			switch strings.ToLower(state) {
			case "closed", "complete", "done", "ok", "ready", "enabled", "current", "online", "accepted", "answered":
				class, sign = "good", "●"
			case "failed", "broken", "refused", "timed-out", "silent", "stopped", "rejected":
				class, sign = "bad", "▲"
			case "open", "building", "assigned", "running", "signing", "publishing", "stopping", "returning", "pending", "approval":
				class, sign = "busy", "◐"
			case "canceled", "disabled", "revoked":
				class, sign = "dim", "✕"
			}
			return template.HTML(fmt.Sprintf(`<span class="state %s"><b aria-hidden="true">%s</b> %s</span>`, class, sign, template.HTMLEscapeString(strings.ToLower(state)))) //nolint:gosec // escaped
		},
		// seturl changes one key of the URL's query and keeps the others.
		"seturl": func(q url.Values, key string, v any) string { return setURL(q, key, v) },
		// under tells whether a page belongs to an entry of the menu.
		"under": func(page, entry string) bool {
			return page == entry || entry != "/" && strings.HasPrefix(page, entry+"/")
		},
	}
}

// facts shows the flat JSON object of an event for reading: names and values, long hex
// numbers by their first letters.
func facts(data json.RawMessage) template.HTML {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		return template.HTML(template.HTMLEscapeString(string(data))) //nolint:gosec // escaped
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		var text string
		switch x := m[k].(type) {
		case nil:
			continue
		case string:
			text = x
		case []any:
			if len(x) == 0 {
				continue
			}
			j, _ := json.Marshal(x) // it was JSON a moment ago
			text = string(j)
		case map[string]any:
			j, _ := json.Marshal(x)
			text = string(j)
		default:
			text = fmt.Sprint(x)
		}
		if text == "" {
			continue
		}
		e := template.HTMLEscapeString
		shown := reHex.ReplaceAllStringFunc(text, func(h string) string { return h[:12] + "…" })
		title := ""
		if shown != text {
			title = ` title="` + e(text) + `"`
		}
		fmt.Fprintf(&b, `<span class="fact"><i>%s</i> <span%s>%s</span></span> `, e(k), title, e(shown))
	}
	return template.HTML(b.String()) //nolint:gosec // every part is escaped
}

func setURL(q url.Values, key string, v any) string {
	out := url.Values{}
	for k, vs := range q {
		// Another filter begins its list at the start.
		if k != "before" && k != "after" && k != "format" && strings.Join(vs, "") != "" {
			out[k] = vs
		}
	}
	out.Del(key)
	if v != nil {
		out.Set(key, fmt.Sprint(v))
	}
	return "?" + out.Encode()
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
