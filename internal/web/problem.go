package web

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"drover/internal/fault"

	"github.com/danielgtaylor/huma/v2"
)

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
	switch {
	case status >= 500:
		p.Code = "internal"
	case status == http.StatusRequestEntityTooLarge:
		p.Code = "request_too_large"
	case status == http.StatusUnsupportedMediaType:
		p.Code, p.Remedy = "media_type", "send Content-Type: application/json"
	case status == http.StatusRequestTimeout:
		p.Code = "body_slow"
	}
	for _, e := range errs[:min(len(errs), 20)] {
		if e != nil {
			p.Errors = append(p.Errors, fmt.Sprintf("%.300s", e.Error())) // it quotes the request, which may be long
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
	s.answer(w, r, p)
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, p *Problem) {
	h := w.Header()
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Basic realm="drover", charset="UTF-8"`)
	}
	// What a handler said of the answer that it could not give holds no longer.
	for _, k := range []string{"Content-Length", "Content-Encoding", "ETag", "Last-Modified"} {
		h.Del(k)
	}
	h.Set("Cache-Control", "no-store")
	if wantsPage(r) && strings.Contains(r.Header.Get("Accept"), "text/html") {
		err := s.render(w, r, p.Status, s.oops, Page{Title: p.Title, Data: p})
		if err == nil {
			return
		}
		s.cfg.Log.Error("error page", "err", err)
	}
	h.Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // a reader that went away needs no answer
}
