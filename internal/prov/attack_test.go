package prov_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/release"
	"drover/internal/web"
)

// route is one row of the attack table: what a right call looks like, and what of it is bad.
type route struct {
	pattern string
	path    string   // a right path
	body    string   // a right body; "" for none
	closed  bool     // it needs a right
	paths   []string // paths that are refused
	bodies  []string // bodies that are refused
}

// bad gives hostile forms of a path's parameter, which stands as {} in it.
func bad(path string) (out []string) {
	for _, v := range []string{"..%2F..%2F..%2Fetc%2Fpasswd", "%2e%2e%2fx", "a%00b", "%FF%FE", strings.Repeat("a", 3000), "%27%3B%20DROP%20TABLE%20event%3B--", "-1", "99999999999999999999999999", "%0d%0aX-Evil:1", "%25%25", "*"} {
		out = append(out, strings.Replace(path, "{}", v, 1))
	}
	return out
}

// badBodies are refused by every route that takes a body.
func badBodies() []string {
	return []string{"", "{", "[]", `"x"`, `{"unknown": 1}`, strings.Repeat("[", 5000), `{"a": 1e999}`, strings.Repeat("x", 2<<20), "\xff\xfe"}
}

func table(id string) []route {
	zero := strings.Repeat("0", 64)
	long := strings.Repeat("a", 2000)
	return []route{
		{pattern: "GET /api/v1/events", path: "/api/v1/events", paths: []string{"/api/v1/events?after=x", "/api/v1/events?before=99999999999999999999", "/api/v1/events?limit=x", "/api/v1/events?kind=a%00", "/api/v1/events?subject=%FF", "/api/v1/events?subject=" + long, "/api/v1/events?newest=maybe"}},
		{pattern: "GET /api/v1/events/follow", path: "", paths: []string{"/api/v1/events/follow", "/api/v1/events/follow?after=x", "/api/v1/events/follow?after=99999999999999999999", "/api/v1/events/follow?after=0&kind=a%00b", "/api/v1/events/follow?after=0&kind=" + long, "/api/v1/events/follow?after=0&kind=a'b"}},
		{pattern: "POST /api/v1/audit/verify", path: "/api/v1/audit/verify", body: "{}", closed: true, bodies: append(badBodies(), `{"known":{"id":-1,"hash":"x"}}`, `{"known":{"id":99999,"hash":"x"}}`, `{"known":{"id":"x"}}`)},
		{pattern: "GET /events", path: "/events", paths: []string{"/events?kind=%00", "/events?%zz"}},
		{pattern: "GET /api/v1/tags", path: "/api/v1/tags"},
		{pattern: "GET /api/v1/tags/{name}", path: "/api/v1/tags/t", paths: append(bad("/api/v1/tags/{}"), "/api/v1/tags/t?at=x", "/api/v1/tags/t?at=-1", "/api/v1/tags/t?at=99999", "/api/v1/tags/t?at="+long)},
		{pattern: "PUT /api/v1/tags/{name}", path: "/api/v1/tags/new", body: `{"name":"","arches":["x86_64"]}`, closed: true, paths: bad("/api/v1/tags/{}")[:7], bodies: append(badBodies(), `{"name":"","arches":["../x"]}`, `{"name":"","arches":[]}`, `{"name":"","arches":["x86_64"],"key":"a\u0000b"}`, `{"name":"","arches":["x86_64"],"macros":{"dist":"%(id)"}}`, `{"name":"","arches":["x86_64"],"comps":"\u0000"}`)},
		{pattern: "PUT /api/v1/tags/{name}/builds/{ref}", path: "/api/v1/tags/t/builds/1", closed: true, paths: append(bad("/api/v1/tags/t/builds/{}"), bad("/api/v1/tags/{}/builds/1")...)},
		{pattern: "DELETE /api/v1/tags/{name}/builds/{ref}", path: "/api/v1/tags/t/builds/1", closed: true, paths: append(bad("/api/v1/tags/t/builds/{}"), bad("/api/v1/tags/{}/builds/1")...)},
		{pattern: "GET /api/v1/tags/{name}/published", path: "/api/v1/tags/t/published", paths: bad("/api/v1/tags/{}/published")},
		{pattern: "GET /api/v1/targets", path: "/api/v1/targets"},
		{pattern: "PUT /api/v1/targets/{name}", path: "/api/v1/targets/new", body: `{"build_tag":"t","dest_tag":"t"}`, closed: true, paths: bad("/api/v1/targets/{}")[:7], bodies: append(badBodies(), `{"build_tag":"no","dest_tag":"t"}`, `{"build_tag":"t","dest_tag":"a\u0000b"}`)},
		{pattern: "GET /tags", path: "/tags"},
		{pattern: "GET /tags/{name}", path: "/tags/t", paths: append(bad("/tags/{}"), "/tags/t?at=x")},
		{pattern: "POST /api/v1/signer/poll", path: "/api/v1/signer/poll", body: `{"wait":0,"keys":[],"accept_keys":false}`, closed: true, bodies: append(badBodies(), `{"wait":99999999999,"keys":[],"accept_keys":false}`, `{"wait":-1,"keys":[],"accept_keys":false}`, `{"wait":0,"keys":["../x"],"accept_keys":true}`)},
		{pattern: "POST /api/v1/signer/answer", path: "/api/v1/signer/answer", body: `{"done":[]}`, closed: true, bodies: append(badBodies()[:7], `{"done":[{"id":99999,"signature":"AAAA"}]}`, `{"done":[{"id":-1,"refused":"x"}]}`, `{"done":[{"id":1,"signature":"no base64!"}]}`)},
		{pattern: "POST /api/v1/signer/keys", path: "/api/v1/signer/keys", body: `[]`, closed: true, bodies: []string{"", "{", "{}", `[{"name":"../x","algo":"ed25519","purpose":"rpm","public":"x","tags":[]}]`, `[{"name":"a","algo":"ed25519","purpose":"rpm","public":"x","tags":[]}]`, `[{"name":"a"}]`}},
		{pattern: "GET /api/v1/keys", path: "/api/v1/keys"},
		{pattern: "POST /api/v1/keys", path: "/api/v1/keys", body: `{"name":"n","algo":"ed25519","purpose":"rpm","tags":["x"]}`, closed: true, bodies: append(badBodies(), `{"name":"../n","algo":"ed25519","purpose":"rpm","tags":[]}`, `{"name":"n","algo":"none","purpose":"rpm","tags":[]}`, `{"name":"n","algo":"ed25519","purpose":"all","tags":[]}`, `{"name":"n","algo":"ed25519","purpose":"rpm","tags":["["]}`, `{"name":"n","algo":"ed25519","purpose":"rpm","tags":["a\u0000"]}`)},
		{pattern: "GET /api/v1/signing", path: "/api/v1/signing"},
		{pattern: "GET /keys/mirror/{file}", path: "", paths: append(bad("/keys/mirror/{}"), bad("/keys/mirror/{}.asc")...)},
		{pattern: "GET /keys/{file}", path: "", paths: append(bad("/keys/{}"), bad("/keys/{}.asc")...)},
		{pattern: "GET /snapshots/{id}/{tree}/{path...}", path: "/snapshots/" + id + "/x86_64/repodata/repomd.xml", paths: slices.Concat(bad("/snapshots/{}/x86_64/repodata/repomd.xml"), bad("/snapshots/"+id+"/{}/repodata/repomd.xml"), bad("/snapshots/"+id+"/x86_64/{}"), []string{"/snapshots/" + id + "/x86_64/", "/snapshots/" + id[:12] + "/x86_64/repodata/repomd.xml", "/snapshots/" + id + "/x86_64/repodata/..%2Frepodata%2Frepomd.xml"})},
		{pattern: "GET /chunks/{sum}", path: "", paths: append(bad("/chunks/{}"), "/chunks/"+zero)},
		{pattern: "GET /metrics", path: "/metrics"},
		{pattern: "GET /api/v1/channels/{name}/follow", path: "/api/v1/channels/t/follow", paths: append(bad("/api/v1/channels/{}/follow"), "/api/v1/channels/t/follow?wait=99999999", "/api/v1/channels/t/follow?wait=-1", "/api/v1/channels/t/follow?snapshot="+long)},
		{pattern: "GET /api/v1/channels/{name}/census", path: "/api/v1/channels/t/census", paths: bad("/api/v1/channels/{}/census")},
		{pattern: "GET /channels/{rest...}", path: "/channels/t/x86_64/repodata/repomd.xml", paths: slices.Concat(bad("/channels/{}/x86_64/repodata/repomd.xml"), bad("/channels/t/{}/repodata/repomd.xml"), bad("/channels/t/x86_64/{}"),
			bad("/channels/{}/at/"+id+"/x86_64/repodata/repomd.xml"), bad("/channels/t/at/{}/x86_64/repodata/repomd.xml"), bad("/channels/t/at/"+id+"/x86_64/{}"), []string{"/channels/t/at/" + zero + "/x86_64/repodata/repomd.xml"},
			bad("/channels/{}/x86_64/metalink"), bad("/channels/t/{}/metalink"), bad("/channels/t/x86_64/metalink?snapshot={}"), bad("/channels/t/x86_64/metalink?ring={}"), bad("/channels/{}.rpm"),
			bad("/channels/{}/x86_64/mirrorlist"), bad("/channels/t/{}/mirrorlist"), bad("/channels/{}"), bad("/channels/{}.repo"), bad("/channels/{}/x.repo"), []string{"/channels/t/t.repo", "/channels/t", "/channels/t/", "/channels/t/at", "/channels/t/at/x"})},
		{pattern: "GET /api/v1/lines", path: "/api/v1/lines"},
		{pattern: "PUT /api/v1/lines/{name}", path: "/api/v1/lines/new", body: `{"parts":["t"],"stages":["dev","test"]}`, closed: true, paths: slices.DeleteFunc(bad("/api/v1/lines/{}"), func(s string) bool { return strings.HasSuffix(s, "999") }), bodies: append(badBodies(), `{"parts":["nope"],"stages":["dev"]}`, `{"parts":["t","t"],"stages":["dev"]}`, `{"parts":["t"],"stages":["at"]}`, `{"parts":["t"],"stages":["../x"]}`, `{"parts":[],"stages":[]}`)},
		{pattern: "DELETE /api/v1/lines/{name}", path: "/api/v1/lines/nope", closed: true, paths: bad("/api/v1/lines/{}")},
		{pattern: "GET /api/v1/channels/{name}/plan", path: "", paths: bad("/api/v1/channels/{}/plan")},
		{pattern: "POST /api/v1/channels/{name}/promote", path: "/api/v1/channels/t/promote", body: `{}`, closed: true, paths: bad("/api/v1/channels/{}/promote"), bodies: badBodies()},
		{pattern: "POST /api/v1/channels/{name}/rollback", path: "/api/v1/channels/t/rollback", body: `{"to":"` + id + `"}`, closed: true, paths: bad("/api/v1/channels/{}/rollback"), bodies: append(badBodies(), `{"to":"`+zero+`"}`, `{"to":"t@x"}`, `{"to":"t@999999999"}`, `{"to":"a\u0000b"}`)},
		{pattern: "PUT /api/v1/channels/{name}/freeze", path: "/api/v1/channels/t/freeze", body: `{"reason":"why"}`, closed: true, paths: bad("/api/v1/channels/{}/freeze"), bodies: append(badBodies(), `{"reason":" "}`, `{"reason":"x","expires":"2001-01-01T00:00:00Z"}`, `{"reason":"x","expires":"soon"}`)},
		{pattern: "DELETE /api/v1/channels/{name}/freeze", path: "/api/v1/channels/t/freeze", closed: true, paths: bad("/api/v1/channels/{}/freeze")},
		{pattern: "GET /api/v1/channels/{name}/holds", path: "/api/v1/channels/t/holds"},
		{pattern: "PUT /api/v1/channels/{name}/holds/{package}", path: "/api/v1/channels/t/holds/x", body: `{"reason":"why"}`, closed: true, paths: append(bad("/api/v1/channels/{}/holds/x"), bad("/api/v1/channels/t/holds/{}")...), bodies: badBodies()},
		{pattern: "DELETE /api/v1/channels/{name}/holds/{package}", path: "/api/v1/channels/t/holds/x", closed: true, paths: append(bad("/api/v1/channels/{}/holds/x"), bad("/api/v1/channels/t/holds/{}")...)},
		{pattern: "GET /api/v1/snapshots/{id}/files", path: "/api/v1/snapshots/" + id + "/files", paths: append(bad("/api/v1/snapshots/{}/files"), "/api/v1/snapshots/"+id+"/files?tree=nope", "/api/v1/snapshots/"+id+"/files?tree="+long)},
		{pattern: "POST /api/v1/snapshots/sweep", path: "/api/v1/snapshots/sweep", body: `{"dry":true}`, closed: true, bodies: badBodies()},
		{pattern: "GET /api/v1/search", path: "/api/v1/search?channel=t&q=hello", paths: []string{"/api/v1/search", "/api/v1/search?channel=t", "/api/v1/search?channel=t&q=x", "/api/v1/search?channel=nope&q=hello", "/api/v1/search?channel=t&q=hello&in=nope", "/api/v1/search?channel=t&q=" + long, "/api/v1/search?channel=t&q=%5Bab"}},
		{pattern: "GET /api/v1/rpms/{name}", path: "", paths: bad("/api/v1/rpms/{}")},
		{pattern: "GET /lines", path: "/lines"},
		{pattern: "GET /lines/{name}", path: "", paths: bad("/lines/{}")},
		{pattern: "GET /snapshots/{id}/diff/{to}", path: "/snapshots/" + id + "/diff/" + id, paths: append(bad("/snapshots/{}/diff/"+id), bad("/snapshots/"+id+"/diff/{}")...)},
		{pattern: "GET /rpms/{name}", path: "", paths: bad("/rpms/{}")},
		{pattern: "GET /search", path: "/search?q=hello&channel=t", paths: []string{"/search?q=x&channel=t", "/search?q=hello&channel=nope", "/search?q=hello&in=nope&channel=t", "/search?channel=t&q=%5Bab"}},
		{pattern: "GET /api/v1/snapshot-names", path: "/api/v1/snapshot-names"},
		{pattern: "PUT /api/v1/snapshots/{id}/names/{name}", path: "/api/v1/snapshots/" + id + "/names/good", body: `{"reason":"why"}`, closed: true, paths: append(bad("/api/v1/snapshots/{}/names/good"), slices.DeleteFunc(bad("/api/v1/snapshots/"+id+"/names/{}"), func(s string) bool { return strings.HasSuffix(s, "999") })...), bodies: append(badBodies(), `{"reason":""}`)},
		{pattern: "DELETE /api/v1/snapshot-names/{name}", path: "/api/v1/snapshot-names/nope", closed: true, paths: bad("/api/v1/snapshot-names/{}")},
		{pattern: "GET /api/v1/snapshots", path: "/api/v1/snapshots", paths: []string{"/api/v1/snapshots?before=x", "/api/v1/snapshots?before=99999999999999999999"}},
		{pattern: "GET /api/v1/snapshots/{id}", path: "/api/v1/snapshots/" + id, paths: append(bad("/api/v1/snapshots/{}"), "/api/v1/snapshots/"+zero, "/api/v1/snapshots/"+id[:4], "/api/v1/snapshots/%25%25%25%25%25%25%25%25")},
		{pattern: "GET /api/v1/snapshots/{id}/diff/{to}", path: "/api/v1/snapshots/" + id + "/diff/" + id, paths: append(bad("/api/v1/snapshots/{}/diff/"+id), bad("/api/v1/snapshots/"+id+"/diff/{}")...)},
		{pattern: "GET /api/v1/channels", path: "/api/v1/channels"},
		{pattern: "GET /api/v1/channels/{name}", path: "/api/v1/channels/t", paths: append(bad("/api/v1/channels/{}"), "/api/v1/channels/t?at=x", "/api/v1/channels/t?at=0", "/api/v1/channels/t?at="+long)},
		{pattern: "GET /api/v1/channels/{name}/history", path: "/api/v1/channels/t/history", paths: bad("/api/v1/channels/{}/history")},
		{pattern: "PUT /api/v1/channels/{name}", path: "/api/v1/channels/new", body: `{"snapshot":"` + id + `"}`, closed: true, paths: slices.DeleteFunc(bad("/api/v1/channels/{}"), func(s string) bool { return strings.HasSuffix(s, "999") }), bodies: append(badBodies(), `{"snapshot":"`+zero+`"}`, `{"snapshot":"%%%%%%%%%%"}`, `{"snapshot":"a\u0000aaaaaaaa"}`)},
		{pattern: "GET /api/v1/mirrors", path: "/api/v1/mirrors"},
		{pattern: "GET /api/v1/mirrors/{name}", path: "", paths: bad("/api/v1/mirrors/{}")},
		{pattern: "DELETE /api/v1/mirrors/{name}", path: "/api/v1/mirrors/nope", closed: true, paths: bad("/api/v1/mirrors/{}")},
		{pattern: "PUT /api/v1/mirrors/{name}", path: "/api/v1/mirrors/new", body: `{"url":"http://127.0.0.1:1/","arch":"x86_64"}`, closed: true, paths: slices.DeleteFunc(bad("/api/v1/mirrors/{}"), func(s string) bool { return strings.HasSuffix(s, "999") }), bodies: append(badBodies(), `{"url":"file:///etc/","arch":"x86_64"}`, `{"url":"http://a:b@x/","arch":"x86_64"}`, `{"url":"http://x/","arch":"../x"}`, `{"url":"http://x\u0000/","arch":"x86_64"}`, `{"url":"http://x/","metalink":"http://x/","arch":"x86_64"}`, `{"mirrorlist":"file:///etc/passwd","arch":"x86_64"}`, `{"url":"http://x/","arch":"x86_64","password":"../../etc/passwd","user":"u"}`, `{"url":"http://x/","arch":"x86_64","keys":"-----BEGIN PGP PUBLIC KEY BLOCK-----"}`, `{"url":"http://x/","arch":"x86_64","include":["["]}`, `{"url":"http://x/","arch":"x86_64","every":1}`, `{"url":"http://x/","arch":"x86_64","verify_packages":true}`)},
		{pattern: "POST /api/v1/mirrors/{name}/sync", path: "/api/v1/mirrors/t/sync", closed: true, paths: bad("/api/v1/mirrors/{}/sync")},
		{pattern: "GET /snapshots", path: "/snapshots"},
		{pattern: "GET /snapshots/{id}", path: "/snapshots/" + id, paths: bad("/snapshots/{}")},
		{pattern: "GET /api/v1/why", path: "", paths: []string{"/api/v1/why", "/api/v1/why?header=" + zero, "/api/v1/why?header=" + long, "/api/v1/why?header=%00", "/api/v1/why?nevra=%FF", "/api/v1/why?nevra=..%2F..%2Fx", "/api/v1/why?nevra=" + long, "/api/v1/why?nevra=a-1-1.noarch"}},
		{pattern: "GET /api/v1/builds/{id}/statement", path: "", paths: append(bad("/api/v1/builds/{}/statement"), "/api/v1/builds/1/statement")},
	}
}

// Every route of the ledger, tags, keys, repositories and provenance, called by nobody, by
// somebody without the right, and by an admin with hostile parameters: refused with a problem
// and a stable code, and nothing is written.
func TestEveryRouteUnderAttack(t *testing.T) {
	dbtest.Each(t, schemas(), func(t *testing.T, d *db.DB) {
		h, _ := house(t, d)
		h.Tag(release.Tag{Name: "t"})
		id := h.Published("t").Snapshot
		rows := table(id)
		// Of every pattern that is served here, one row.
		mine := func(p string) bool {
			_, p, _ = strings.Cut(p, " ")
			for _, other := range []string{"/static/", "/api/openapi", "/api/v1/whoami", "/api/v1/people", "/api/v1/tokens", "/api/v1/tickets", "/api/v1/join", "/api/v1/repos", "/api/v1/lookaside", "/repo/", "/git/", "/packages", "/api/v1/builds", "/api/v1/srpms", "/api/v1/tasks", "/api/v1/roots", "/api/v1/builder", "/builds", "/tasks"} {
				if strings.HasPrefix(p, other) && !strings.HasSuffix(p, "/statement") {
					return false
				}
			}
			return true
		}
		for _, p := range h.Web.Patterns() {
			if mine(p) && !slices.ContainsFunc(rows, func(r route) bool { return r.pattern == p }) {
				t.Errorf("%s has no row in the table of attacks", p)
			}
		}
		weak := []string{"", h.Token("packager", "pkg.push"), h.Member(auth.Builder, "weak"), h.Member(auth.Signer, "weak")}
		strong := h.Token("admin")
		signer := h.Member(auth.Signer, "strong")
		before := h.Events("")
		call := func(method, path, token, body string) (int, web.Problem) {
			t.Helper()
			u, err := url.Parse(h.URL + path)
			if err != nil { // what Go's client does not send, others do
				u = &url.URL{Scheme: "http", Host: strings.TrimPrefix(h.URL, "http://"), Opaque: path}
			}
			var in io.Reader
			if body != "" {
				in = strings.NewReader(body)
			}
			r := (&http.Request{Method: method, URL: u, Header: http.Header{"Accept": {"application/json"}, "Content-Type": {"application/json"}}}).WithContext(t.Context())
			if in != nil {
				r.Body, r.ContentLength = io.NopCloser(in), int64(len(body))
			}
			if token != "" {
				r.Header.Set("Authorization", "Bearer "+token)
			}
			resp, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				t.Fatalf("%s %.100s: %v", method, path, err)
			}
			defer resp.Body.Close()
			var p web.Problem
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode >= 400 {
				if resp.Header.Get("Content-Type") != "application/problem+json" || json.Unmarshal(b, &p) != nil || p.Code == "" || p.Detail == "" || p.Status != resp.StatusCode {
					t.Errorf("%s %.100s: %d is no problem: %.300s", method, path, resp.StatusCode, b)
				}
			}
			return resp.StatusCode, p
		}
		refused := func(what, method, path, token, body string) {
			t.Helper()
			if code, p := call(method, path, token, body); code < 400 || code >= 500 || p.Code == "internal" {
				t.Errorf("%s %.150s %s: %d %+v", method, path, what, code, p)
			}
		}
		for _, r := range rows {
			method, _, _ := strings.Cut(r.pattern, " ")
			right := strong
			if strings.Contains(r.pattern, "/signer/") {
				right = signer
			}
			if r.closed {
				for i, token := range weak {
					if i == 3 && right == signer {
						token = strong[:len(strong)-1] + "x"
					}
					code, p := call(method, r.path, token, r.body)
					if code != 401 && code != 403 || p.Remedy == "" && code == 401 {
						t.Errorf("%s by %d: %d %+v", r.pattern, i, code, p)
					}
				}
			} else if r.path != "" {
				if code, p := call(method, r.path, "", ""); code != 200 {
					t.Errorf("%s: %d %+v", r.pattern, code, p)
				}
				refused("with a wrong token", method, r.path, "drv_wrong", "")
			}
			for _, p := range r.paths {
				refused("as admin", method, p, right, r.body)
			}
			for i, b := range r.bodies {
				refused(fmt.Sprintf("with body %d %.60q", i, b), method, r.path, right, b)
			}
		}
		if n := h.Events("") - before; n != 0 {
			t.Errorf("%d events were written", n)
		}
		if s := h.Log.String(); strings.Contains(s, "panic") || strings.Contains(s, "request failed") {
			t.Errorf("the log: %s", s)
		}
	})
}
