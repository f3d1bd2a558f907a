package fetch

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"drover/internal/fault"
)

// contentRange is what a Content-Range header says; total is -1 when it says "*".
type contentRange struct{ first, last, total int64 }

// parseContentRange reads "bytes FIRST-LAST/TOTAL" (RFC 9110, 14.4).
func parseContentRange(s string) (r contentRange, ok bool) {
	unit, rest, _ := strings.Cut(s, " ")
	span, total, found := strings.Cut(strings.TrimSpace(rest), "/")
	first, last, dash := strings.Cut(span, "-")
	if !strings.EqualFold(unit, "bytes") || !found || !dash {
		return r, false
	}
	r.total = -1
	var ok1, ok2 bool
	r.first, ok1 = parseNumber(first)
	r.last, ok2 = parseNumber(last)
	if !ok1 || !ok2 || r.first > r.last {
		return r, false
	}
	if total != "*" {
		if r.total, ok = parseNumber(total); !ok || r.last >= r.total {
			return r, false
		}
	}
	return r, true
}

// parseNumber reads decimal digits and nothing else.
func parseNumber(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// maxRetryAfter bounds what an origin may ask for; 0 is an absent or senseless wish.
const maxRetryAfter = 24 * time.Hour

// parseRetryAfter reads seconds or a date (RFC 9110, 10.2.3).
func parseRetryAfter(s string, now time.Time) time.Duration {
	s = strings.TrimSpace(s)
	if s != "" && strings.Trim(s, "0123456789") == "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n > int64(maxRetryAfter/time.Second) {
			return maxRetryAfter
		}
		return time.Duration(n) * time.Second
	}
	t, err := http.ParseTime(s)
	if err != nil {
		return 0
	}
	return min(max(t.Sub(now), 0), maxRetryAfter)
}

// validator is what If-Range may be asked with: a strong ETag, or a Last-Modified that is old
// enough to be one (RFC 9110, 8.8.2.2); else "".
func validator(h http.Header) string {
	if tag := h.Get("ETag"); len(tag) >= 2 && tag[0] == '"' {
		return tag
	}
	modified, err := http.ParseTime(h.Get("Last-Modified"))
	if err != nil {
		return ""
	}
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil || date.Sub(modified) < time.Minute {
		return ""
	}
	return h.Get("Last-Modified")
}

// checkHref refuses what could lead out of an origin's directory. Metadata may hold hrefs that
// are escaped already; the unescaped one is given back.
func checkHref(href string) (path string, err error) {
	path = href
	if plain, err := url.PathUnescape(href); err == nil {
		path = plain
	}
	bad := len(href) > 4096 || strings.ContainsAny(path, "\\") || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f })
	for _, p := range []string{href, path} {
		for seg := range strings.SplitSeq(p, "/") {
			bad = bad || seg == "" || seg == "." || seg == ".."
		}
		if scheme, _, ok := strings.Cut(p, "://"); ok && !strings.Contains(scheme, "/") {
			bad = true
		}
	}
	if bad {
		return "", fault.Invalid("fetch_href", "%.200q is no path below an address", href).Fix("the metadata that names it is broken or hostile: take another upstream")
	}
	return path, nil
}

// join is the address of href below base. base ends with a slash.
func join(base *url.URL, href string) (*url.URL, error) {
	path, err := checkHref(href)
	if err != nil {
		return nil, err
	}
	u := *base
	u.Path = base.Path + path
	u.RawPath = ""
	if path != href { // it came escaped: keep it so; an odd escaping is done anew by String
		u.RawPath = base.EscapedPath() + href
	}
	return &u, nil
}
