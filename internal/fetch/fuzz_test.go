package fetch

import (
	"net/url"
	"path"
	"strings"
	"testing"
	"time"
)

func TestParseContentRange(t *testing.T) {
	for s, want := range map[string]contentRange{
		"bytes 0-9/10": {0, 9, 10}, "bytes 5-9/*": {5, 9, -1}, "Bytes 5-5/6": {5, 5, 6}, "bytes  5-5/6": {5, 5, 6},
	} {
		if got, ok := parseContentRange(s); !ok || got != want {
			t.Errorf("%q: %v %v", s, got, ok)
		}
	}
	for _, s := range []string{"", "bytes", "bytes 0-9", "bytes 9-0/10", "bytes 0-10/10", "bytes */10", "lines 0-9/10", "bytes -1-9/10", "bytes 0-9/1x",
		"bytes +0-9/10", "bytes 0-9/99999999999999999999", "bytes 0-9/10, 20-30/10"} {
		if got, ok := parseContentRange(s); ok {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "-7": 0, "soon": 0, "99999999999999999999": maxRetryAfter, "86401": maxRetryAfter,
		"Thu, 01 Jan 2026 00:01:00 GMT": time.Minute, "Wed, 31 Dec 2025 00:01:00 GMT": 0, "Fri, 01 Jan 2027 00:01:00 GMT": maxRetryAfter,
	} {
		if got := parseRetryAfter(s, now); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

func TestJoin(t *testing.T) {
	base, err := url.Parse("http://h/a%20b/")
	if err != nil {
		t.Fatal(err)
	}
	for href, want := range map[string]string{
		"x/y.rpm":              "http://h/a%20b/x/y.rpm",
		"libstdc++-1~2^3.rpm":  "http://h/a%20b/libstdc++-1~2%5E3.rpm",
		"libstdc%2B%2B-1.rpm":  "http://h/a%20b/libstdc%2B%2B-1.rpm",
		"a?b#c.rpm":            "http://h/a%20b/a%3Fb%23c.rpm",
		"100%.rpm":             "http://h/a%20b/100%25.rpm",
		"http:x":               "http://h/a%20b/http:x",
		"repodata/1-a.xml.zst": "http://h/a%20b/repodata/1-a.xml.zst",
	} {
		if u, err := join(base, href); err != nil || u.String() != want {
			t.Errorf("%q: %v %v, want %s", href, u, err, want)
		}
	}
	for _, href := range []string{"", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "%2e%2e/x", "a/%2e%2E/x", "..%2fx", "%2fetc", "a//b", "./a", "http://evil/x", "HTTP%3a//evil/x",
		"a\\..\\b", "a\nb", "a%0ab", "a%00b", strings.Repeat("a", 5000)} {
		if u, err := join(base, href); err == nil {
			t.Errorf("%.50q became %s", href, u)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("bytes 0-9/10", "120", "Packages/a.rpm")
	f.Add("bytes 0-/*", "Thu, 01 Jan 2026 00:01:00 GMT", "%2e%2e/%2fx")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	base := &url.URL{Scheme: "http", Host: "h", Path: "/base/"}
	f.Fuzz(func(t *testing.T, ranges, after, href string) {
		if r, ok := parseContentRange(ranges); ok && (r.first < 0 || r.last < r.first || r.total != -1 && r.last >= r.total) {
			t.Fatalf("%q: %+v", ranges, r)
		}
		if d := parseRetryAfter(after, now); d < 0 || d > maxRetryAfter {
			t.Fatalf("%q: %v", after, d)
		}
		u, err := join(base, href)
		if err != nil {
			return
		}
		// What a server makes of it lies below the base.
		back, err := url.Parse(u.String())
		if err != nil || back.Host != "h" || back.RawQuery != "" || back.Fragment != "" || !strings.HasPrefix(path.Clean(back.Path), "/base/") {
			t.Fatalf("%q became %s: %v", href, u, err)
		}
	})
}
