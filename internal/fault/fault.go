package fault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// Kind is a class of failure. It decides the HTTP status and the exit code.
type Kind uint8

// The kinds of failure.
const (
	KindInternal     Kind = iota // a defect or an unforeseen condition: 500
	KindInvalid                  // the request itself is wrong: 400
	KindUnauthorized             // nobody we know: 401
	KindDenied                   // somebody we know, without the right: 403
	KindNotFound                 // no such thing: 404
	KindConflict                 // the state does not allow it: 409
	KindTooLarge                 // over a bound: 413
	KindUnavailable              // a needed part is missing or full, try later: 503
)

// Error is a failure that a person can act on.
type Error struct {
	Code   string // stable, snake_case, for programs and tests
	Kind   Kind
	Msg    string // names the thing and the place
	Remedy string // what to do about it; may be empty
	Err    error  // the cause; may be nil
}

// Error gives the message, the cause and the remedy in one line.
func (e *Error) Error() string {
	s := e.Msg
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Remedy != "" {
		s += " (" + e.Remedy + ")"
	}
	return s
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Fix sets the remedy and returns e.
func (e *Error) Fix(format string, args ...any) *Error {
	e.Remedy = fmt.Sprintf(format, args...)
	return e
}

// Wrap sets the cause and returns e.
func (e *Error) Wrap(err error) *Error {
	e.Err = err
	return e
}

// Status is the HTTP status of the error's kind (RFC 9110).
func (e *Error) Status() int {
	switch e.Kind {
	case KindInvalid:
		return http.StatusBadRequest
	case KindUnauthorized:
		return http.StatusUnauthorized
	case KindDenied:
		return http.StatusForbidden
	case KindNotFound:
		return http.StatusNotFound
	case KindConflict:
		return http.StatusConflict
	case KindTooLarge:
		return http.StatusRequestEntityTooLarge
	case KindUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// FromStatus builds the error that a server described by status, code, message
// and remedy; it is the reverse of Status for clients.
func FromStatus(status int, code, msg, remedy string) *Error {
	k := KindInternal
	switch status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusNotAcceptable, http.StatusMethodNotAllowed,
		http.StatusUnsupportedMediaType, http.StatusRequestTimeout, http.StatusRequestURITooLong, http.StatusRequestHeaderFieldsTooLarge:
		k = KindInvalid
	case http.StatusUnauthorized:
		k = KindUnauthorized
	case http.StatusForbidden:
		k = KindDenied
	case http.StatusNotFound:
		k = KindNotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		k = KindConflict
	case http.StatusRequestEntityTooLarge:
		k = KindTooLarge
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusTooManyRequests:
		k = KindUnavailable
	}
	return &Error{Code: code, Kind: k, Msg: msg, Remedy: remedy}
}

// Print writes err as a command line tells of it: what failed, the remedy, the code.
func Print(w io.Writer, program string, err error) {
	f := As(err)
	fmt.Fprintf(w, "%s: %s", program, f.Msg)
	if f.Err != nil {
		fmt.Fprintf(w, ": %v", f.Err)
	}
	fmt.Fprintln(w)
	if f.Remedy != "" {
		fmt.Fprintf(w, "  %s\n", f.Remedy)
	}
	fmt.Fprintf(w, "  (%s)\n", f.Code)
}

// ExitCode is the process's exit code for err: 0 ok, 1 failed, 4 not found,
// 5 denied. (2 is usage, found by the command line; 3 is partly failed, said by
// the verb itself.)
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	switch As(err).Kind {
	case KindNotFound:
		return 4
	case KindDenied, KindUnauthorized:
		return 5
	}
	return 1
}

// As finds the Error in err's chain. An error of any other kind comes back
// wrapped as internal; nil stays nil.
func As(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &Error{Code: "canceled", Kind: KindUnavailable, Msg: "stopped before it was done", Err: err}
	}
	return &Error{Code: "internal", Kind: KindInternal, Msg: "internal error", Err: err}
}

// Code is the stable code of err, or "" for nil.
func Code(err error) string {
	if err == nil {
		return ""
	}
	return As(err).Code
}

func newError(k Kind, code, format string, args []any) *Error {
	return &Error{Code: code, Kind: k, Msg: fmt.Sprintf(format, args...)}
}

// Invalid says that the request itself is wrong.
func Invalid(code, format string, args ...any) *Error {
	return newError(KindInvalid, code, format, args)
}

// Unauthorized says that the caller is nobody we know.
func Unauthorized(code, format string, args ...any) *Error {
	return newError(KindUnauthorized, code, format, args)
}

// Denied says that the caller lacks the right.
func Denied(code, format string, args ...any) *Error { return newError(KindDenied, code, format, args) }

// NotFound says that there is no such thing.
func NotFound(code, format string, args ...any) *Error {
	return newError(KindNotFound, code, format, args)
}

// Conflict says that the present state does not allow it.
func Conflict(code, format string, args ...any) *Error {
	return newError(KindConflict, code, format, args)
}

// TooLarge says that a bound was passed.
func TooLarge(code, format string, args ...any) *Error {
	return newError(KindTooLarge, code, format, args)
}

// Unavailable says that a needed part is missing, full or away; a retry may help.
func Unavailable(code, format string, args ...any) *Error {
	return newError(KindUnavailable, code, format, args)
}

// Internal says that drover itself is at fault.
func Internal(code, format string, args ...any) *Error {
	return newError(KindInternal, code, format, args)
}
