package web

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"drover/internal/fault"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"
)

// Config is what a Server needs.
type Config struct {
	Version string       // of drover, for the API description
	Log     *slog.Logger // one line per failed request
	// Authenticate finds who asks and puts the actor into the context. It fails only
	// for credentials that are wrong, never for none.
	Authenticate func(*http.Request) (context.Context, error)
	// Idle is how long a client may neither send the next byte of a body nor take the next
	// byte of an answer; 0 means 2 minutes.
	Idle time.Duration
}

// Server collects the routes of all domains.
type Server struct {
	cfg   Config
	mux   *mux
	api   huma.API
	menu  []menuEntry
	reqs  atomic.Int64
	cross *http.CrossOriginProtection
	oops  *template.Template // the page of a failure

	metrics *prometheus.Registry
}

// mux remembers what was registered, for [Server.Patterns].
type mux struct {
	*http.ServeMux
	patterns []string
}

// HandleFunc implements the API library's idea of a mux.
func (m *mux) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	m.patterns = append(m.patterns, pattern)
	m.ServeMux.HandleFunc(pattern, h)
}

// New makes a Server with no routes but the API's description and the style sheet.
func New(cfg Config) *Server {
	if cfg.Idle == 0 {
		cfg.Idle = 2 * time.Minute
	}
	s := &Server{cfg: cfg, mux: &mux{ServeMux: http.NewServeMux()}, cross: http.NewCrossOriginProtection(), oops: parse(files, "oops.html")}
	// The library's error constructor is a variable of its package; setting it once to
	// a pure function is the documented way to choose the error body.
	// Once: servers that are made later must not write what others read.
	if _, ours := huma.NewError(http.StatusTeapot, "").(*Problem); !ours {
		huma.NewError = newProblem
	}
	hc := huma.DefaultConfig("drover", cfg.Version)
	hc.CreateHooks = nil // no $schema links in bodies
	hc.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)
	hc.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer", Description: "a token of `drover auth token create`; as the password of Basic it works too"}}
	hc.DocsPath = "" // the stock page loads scripts from elsewhere
	hc.OpenAPIPath = "/api/openapi"
	hc.SchemasPath = ""
	s.api = humago.New(s.mux, hc)
	s.HandleFunc("GET /static/{file}", static)
	s.newMetrics()
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
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.HandleFunc(pattern, h.ServeHTTP) }

// Patterns lists every pattern that is served, sorted: what a client, or an attacker, can
// reach at all.
func (s *Server) Patterns() []string { return slices.Sorted(slices.Values(s.mux.patterns)) }

// HandleFunc adds a raw handler that may fail; an error becomes problem+json. It must
// not return an error once it has written.
func (s *Server) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request) error) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.Problem(w, r, err)
		}
	})
}

// OpenAPI is the description of the typed routes, OpenAPI 3.1 in JSON.
func (s *Server) OpenAPI() ([]byte, error) { return s.api.OpenAPI().MarshalJSON() }

// Op describes one typed route.
type Op struct {
	Method  string // "GET"
	Path    string // "/api/v1/tags/{name}"
	ID      string // "tag-get", unique
	Summary string // one sentence
	Tag     string // the domain
	MaxBody int64  // bytes of the request body; 0 means 1 MiB
	// Guard is asked before the body is read: what nobody may send costs no memory. The
	// domain asks again, for the thing itself. nil asks nothing.
	Guard func(context.Context) error
}

// Route adds a typed JSON route. In has fields tagged path, query or header, and Body;
// the result is the response's body.
func Route[In, Out any](s *Server, op Op, fn func(context.Context, *In) (Out, error)) {
	type reply struct{ Body Out }
	o := huma.Operation{Method: op.Method, Path: op.Path, OperationID: op.ID, Summary: op.Summary, MaxBodyBytes: op.MaxBody,
		BodyReadTimeout: -1, // ours is in patient
		Security:        []map[string][]string{{"token": {}}, {}}}
	if op.Guard != nil {
		o.Middlewares = huma.Middlewares{func(c huma.Context, next func(huma.Context)) {
			err := op.Guard(c.Context())
			if err == nil {
				next(c)
				return
			}
			r, w := humago.Unwrap(c)
			s.Problem(w, r, err)
		}}
	}
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

// HTTPServer is an http.Server with bounds that keep slow clients from holding it. A body
// and an answer take as long as they move (see Config.Idle): packages and logs may be long.
func (s *Server) HTTPServer() *http.Server {
	return &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug)}
}

func isText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// ServeHTTP authenticates, keeps a panic from taking the process, and routes.
func (s *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	id := s.reqs.Add(1)
	w := &patient{ResponseWriter: rw, rc: http.NewResponseController(rw), idle: s.cfg.Idle}
	if r.Body != nil && r.Body != http.NoBody {
		w.body = &slowBody{ReadCloser: r.Body, rc: w.rc, idle: s.cfg.Idle, began: time.Now()}
		// On a copy: net/http looks at its own request's body to see whether the connection can
		// carry another request.
		r = r.WithContext(r.Context())
		r.Body = w.body
		defer w.body.forsake()
	}
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			s.cfg.Log.Error("panic in a request", "number", id, "path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			if w.began {
				panic(http.ErrAbortHandler) // half an answer must not look like a whole one
			}
			s.Problem(w, r, fault.Internal("panic", "drover failed on this request (number %d)", id).Fix("the server's log has it under this number; report it"))
		}
	}()
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'self'; img-src 'self' data:; object-src 'none'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "same-origin")
	// The databases differ in what they make of such text, and no name here has it.
	if q, err := url.QueryUnescape(r.URL.RawQuery); err != nil || !isText(q) || !isText(r.URL.Path) {
		s.Problem(w, r, fault.Invalid("text", "the address is no text").Fix("send UTF-8 without NUL"))
		return
	}
	ctx, err := s.cfg.Authenticate(r)
	if err != nil {
		s.Problem(w, r, err)
		return
	}
	r = r.WithContext(ctx)
	// There are no cookies, but a browser may remember Basic credentials: a page of another
	// origin may read, never change.
	if s.cross.Check(r) != nil {
		s.Problem(w, r, fault.Denied("cross_site", "a page of another site may not change anything here").Fix("use the command line, or a page of this server"))
		return
	}
	if h, pattern := s.mux.Handler(r); pattern == "" && r.RequestURI != "*" {
		s.unrouted(w, r, h)
		return
	}
	s.mux.ServeHTTP(w, r)
}

// unrouted answers what no pattern fits: the mux knows whether it is the path or the method,
// and says it in plain text.
func (s *Server) unrouted(w http.ResponseWriter, r *http.Request, h http.Handler) {
	var heard answer
	heard.head = http.Header{}
	h.ServeHTTP(&heard, r)
	switch heard.status {
	case http.StatusNotFound:
		s.Problem(w, r, fault.NotFound("path_unknown", "there is nothing at %.300q", r.URL.Path).Fix("start at /, or see /api/openapi.json for the API"))
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", heard.head.Get("Allow"))
		p := s.problem(r.Context(), "", fault.Invalid("method", "%.20q is not possible at %.300q", r.Method, r.URL.Path).Fix("use %s", heard.head.Get("Allow")))
		p.Status, p.Title = heard.status, http.StatusText(heard.status)
		s.answer(w, r, p)
	default: // a redirect to the clean path
		h.ServeHTTP(w, r)
	}
}

// answer takes the head of an answer and drops the rest.
type answer struct {
	head   http.Header
	status int
}

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.head }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) { a.status = status }

// Write implements http.ResponseWriter.
func (a *answer) Write(b []byte) (int, error) { return len(b), nil }

// patient is a ResponseWriter whose every write must move within idle.
type patient struct {
	http.ResponseWriter
	rc    *http.ResponseController
	idle  time.Duration
	body  *slowBody // nil when there is none
	began bool
}

// WriteHeader implements http.ResponseWriter.
func (p *patient) WriteHeader(status int) {
	p.start(status)
	p.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (p *patient) Write(b []byte) (int, error) {
	p.start(http.StatusOK)
	_ = p.rc.SetWriteDeadline(time.Now().Add(p.idle)) // a connection that cannot has no such trouble
	return p.ResponseWriter.Write(b)
}

// step is how many bytes must move within idle when the kernel copies them.
const step = 1 << 20

// ReadFrom implements io.ReaderFrom: it lets the connection have the kernel send a file.
func (p *patient) ReadFrom(src io.Reader) (n int64, err error) {
	p.start(http.StatusOK)
	limit := int64(math.MaxInt64)
	l, limited := src.(*io.LimitedReader)
	if limited { // the connection looks through one of these, not through two
		src, limit = l.R, l.N
	}
	for n < limit && err == nil {
		_ = p.rc.SetWriteDeadline(time.Now().Add(p.idle)) // a connection that cannot has no such trouble
		part := min(limit-n, step)
		var m int64
		m, err = io.Copy(p.ResponseWriter, &io.LimitedReader{R: src, N: part})
		n += m
		if m < part {
			break
		}
	}
	if limited {
		l.N -= n
	}
	return n, err
}

func (p *patient) start(status int) {
	if p.began || status < 200 {
		return
	}
	p.began = true
	if p.body != nil {
		p.body.forsake()
	}
}

// Unwrap is for http.ResponseController.
func (p *patient) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// slowBody is a request's body of which each read must move within idle, and which comes with
// at least 1 KiB/s in the long run: a client that drips holds nothing.
type slowBody struct {
	io.ReadCloser
	rc    *http.ResponseController
	idle  time.Duration
	began time.Time
	n     int64
	ended bool // the deadline may go
}

// forsake bounds the time in which the server reads what a handler left of the body, which it
// does before it sends the answer: that one needs the other half of its time.
func (b *slowBody) forsake() {
	if !b.ended {
		_ = b.rc.SetReadDeadline(time.Now().Add(b.idle / 2))
	}
}

// Read implements io.Reader.
func (b *slowBody) Read(p []byte) (int, error) {
	now := time.Now()
	end := b.began.Add(2*b.idle + time.Duration(b.n>>10)*time.Second)
	if idle := now.Add(b.idle); idle.Before(end) {
		end = idle
	}
	_ = b.rc.SetReadDeadline(end)
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	if errors.Is(err, os.ErrDeadlineExceeded) { // and the deadline stays: nothing more is read
		return n, fault.Invalid("body_slow", "the request's body came too slowly").Wrap(err).Fix("send it again")
	}
	b.ended = b.ended || err != nil
	// The deadline must not outlive the body: the server watches the connection by it, and
	// would take the end of a long poll for the end of the client.
	_ = b.rc.SetReadDeadline(time.Time{})
	return n, err
}
