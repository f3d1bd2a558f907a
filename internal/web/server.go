package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"drover/internal/fault"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// Config is what a Server needs.
type Config struct {
	Version string       // of drover, for the API description
	Log     *slog.Logger // one line per failed request
	// Authenticate finds who asks and puts the actor into the context. It fails only
	// for credentials that are wrong, never for none.
	Authenticate func(*http.Request) (context.Context, error)
}

// Server collects the routes of all domains.
type Server struct {
	cfg  Config
	mux  *http.ServeMux
	api  huma.API
	menu []menuEntry
	reqs atomic.Int64
}

// New makes a Server with no routes but the API's description and the style sheet.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, mux: http.NewServeMux()}
	// The library's error constructor is a variable of its package; setting it once to
	// a pure function is the documented way to choose the error body.
	huma.NewError = newProblem
	hc := huma.DefaultConfig("drover", cfg.Version)
	hc.CreateHooks = nil // no $schema links in bodies
	hc.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)
	hc.DocsPath = "" // the stock page loads scripts from elsewhere
	hc.OpenAPIPath = "/api/openapi"
	hc.SchemasPath = ""
	s.api = humago.New(s.mux, hc)
	s.mux.HandleFunc("GET /static/", static)
	return s
}

// schemaName names a type in the API's description by its package too: several domains have
// a Package or a Key.
func schemaName(t reflect.Type, hint string) string {
	name := huma.DefaultSchemaNamer(t, hint)
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	var b strings.Builder
	for part := range strings.SplitSeq(strings.TrimPrefix(t.PkgPath(), "drover/internal/"), "/") {
		if part != "" {
			b.WriteString(strings.ToUpper(part[:1]) + part[1:])
		}
	}
	return b.String() + name
}

// Handle adds a raw handler, for bytes that are no JSON: git, packages, repodata, logs.
// pattern is net/http's: "GET /repos/{path...}".
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// HandleFunc adds a raw handler that may fail; an error becomes problem+json. It must
// not return an error once it has written.
func (s *Server) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request) error) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.Problem(w, r, err)
		}
	})
}

// OpenAPI is the description of the typed routes, OpenAPI 3.1 in YAML.
func (s *Server) OpenAPI() ([]byte, error) { return s.api.OpenAPI().YAML() }

// Op describes one typed route.
type Op struct {
	Method  string // "GET"
	Path    string // "/api/v1/tags/{name}"
	ID      string // "tag-get", unique
	Summary string // one sentence
	Tag     string // the domain
	MaxBody int64  // bytes of the request body; 0 means 1 MiB
}

// Route adds a typed JSON route. In has fields tagged path, query or header, and Body;
// the result is the response's body.
func Route[In, Out any](s *Server, op Op, fn func(context.Context, *In) (Out, error)) {
	type reply struct{ Body Out }
	o := huma.Operation{Method: op.Method, Path: op.Path, OperationID: op.ID, Summary: op.Summary, MaxBodyBytes: op.MaxBody,
		Security: []map[string][]string{{"token": {}}, {}}}
	if op.Tag != "" {
		o.Tags = []string{op.Tag}
	}
	huma.Register(s.api, o, func(ctx context.Context, in *In) (*reply, error) {
		out, err := fn(ctx, in)
		if err != nil {
			return nil, s.problem(ctx, op.Method+" "+op.Path, err)
		}
		return &reply{out}, nil
	})
}

// Problem is the body of every failed answer, RFC 9457 with drover's code and remedy.
type Problem struct {
	Type   string   `json:"type,omitempty"`
	Title  string   `json:"title"`
	Status int      `json:"status"`
	Detail string   `json:"detail,omitempty"`
	Code   string   `json:"code"`
	Remedy string   `json:"remedy,omitempty"`
	Errors []string `json:"errors,omitempty"` // where the request does not fit the schema
}

// Error makes Problem an error for the API library.
func (p *Problem) Error() string { return p.Detail }

// GetStatus is the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is the media type of RFC 9457.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

func newProblem(status int, msg string, errs ...error) huma.StatusError {
	p := &Problem{Title: http.StatusText(status), Status: status, Detail: msg, Code: "request_invalid"}
	if status >= 500 {
		p.Code = "internal"
	}
	for _, e := range errs {
		if e != nil {
			p.Errors = append(p.Errors, e.Error())
		}
	}
	return p
}

func (s *Server) problem(ctx context.Context, where string, err error) *Problem {
	e := fault.As(err)
	p := &Problem{Title: http.StatusText(e.Status()), Status: e.Status(), Code: e.Code, Remedy: e.Remedy, Detail: e.Msg}
	if e.Kind == fault.KindInternal {
		// The cause may hold paths and SQL; it is for the log, not for the caller.
		s.cfg.Log.ErrorContext(ctx, "request failed", "route", where, "err", err)
		return p
	}
	if e.Err != nil {
		p.Detail += ": " + e.Err.Error()
	}
	return p
}

// Problem answers a request with err as problem+json.
func (s *Server) Problem(w http.ResponseWriter, r *http.Request, err error) {
	p := s.problem(r.Context(), r.Method+" "+r.URL.Path, err)
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="drover", charset="UTF-8"`)
	}
	if wantsPage(r) && strings.Contains(r.Header.Get("Accept"), "text/html") {
		s.errorPage(w, r, p)
		return
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Del("Content-Length")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // a reader that went away needs no answer
}

// ServeHTTP authenticates, keeps a panic from taking the process, and routes.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := s.reqs.Add(1)
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			s.cfg.Log.Error("panic in a request", "path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			s.Problem(w, r, fault.Internal("panic", "drover failed on this request (number %d)", id))
		}
	}()
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; form-action 'self'; base-uri 'none'")
	h.Set("Referrer-Policy", "same-origin")
	ctx, err := s.cfg.Authenticate(r)
	if err != nil {
		s.Problem(w, r, err)
		return
	}
	// Browsers send Sec-Fetch-Site; a page of another site may read, never change.
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" && r.Method != http.MethodGet && r.Method != http.MethodHead {
		s.Problem(w, r, fault.Denied("cross_site", "a page of another site may not change anything here"))
		return
	}
	s.mux.ServeHTTP(w, r.WithContext(ctx))
}

// HTTPServer is an http.Server with bounds that keep slow clients from holding it.
// Body and answer are not timed: packages and logs take as long as they take.
func (s *Server) HTTPServer() *http.Server {
	return &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug)}
}
