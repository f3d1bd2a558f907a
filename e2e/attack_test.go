package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"drover/internal/app"
	fleetwire "drover/internal/fleet/wire"
	"drover/internal/web"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// entry is an entry point of the server and who may use it. Everybody else is refused with
// 401 or 403, whatever is sent.
type entry struct {
	pattern string
	who     string // the roles that may; "all" means everybody, also without a token
	path    string // after the base URL, a path that is there
	body    string // JSON, unless kind says otherwise
	kind    string // content type of body
}

// entries has a row for every pattern that the server registers: TestEveryEntryHasARow proves it.
func entries() []entry {
	const sum = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	const packs, edits = "admin releaser packager", "admin releaser"
	const reads, runs = "admin operator releaser packager viewer", "admin operator"
	return []entry{
		// What everybody may read.
		{"GET /{$}", "all", "/", "", ""},
		{"GET /static/{file}", "all", "/static/drover.css", "", ""},
		{"GET /api/openapi.json", "all", "/api/openapi.json", "", ""},
		{"GET /api/openapi.yaml", "all", "/api/openapi.yaml", "", ""},
		{"GET /api/openapi-3.0.json", "all", "/api/openapi-3.0.json", "", ""},
		{"GET /api/openapi-3.0.yaml", "all", "/api/openapi-3.0.yaml", "", ""},
		{"GET /packages", "all", "/packages", "", ""},
		{"GET /packages/{ns}/{name}", "all", "/packages/rpms/hello", "", ""},
		{"GET /builds", "all", "/builds", "", ""},
		{"GET /builds/{ref}", "all", "/builds/1", "", ""},
		{"GET /tasks", "all", "/tasks", "", ""},
		{"GET /tags", "all", "/tags", "", ""},
		{"GET /tags/{name}", "all", "/tags/demo", "", ""},
		{"GET /snapshots", "all", "/snapshots", "", ""},
		{"GET /snapshots/{id}", "all", "/snapshots/$SNAPSHOT", "", ""},
		{"GET /events", "all", "/events", "", ""},
		{"GET /api/v1/whoami", "all", "/api/v1/whoami", "", ""},
		{"GET /api/v1/why", "all", "/api/v1/why?nevra=hello-1-1.noarch", "", ""},
		{"GET /api/v1/events", "all", "/api/v1/events", "", ""},
		{"GET /api/v1/events/follow", "all", "/api/v1/events/follow?after=x", "", ""},
		{"GET /api/v1/repos", "all", "/api/v1/repos", "", ""},
		{"GET /api/v1/repos/{ns}/{name}", "all", "/api/v1/repos/rpms/hello", "", ""},
		{"GET /api/v1/builds", "all", "/api/v1/builds", "", ""},
		{"GET /api/v1/builds/{ref}", "all", "/api/v1/builds/1", "", ""},
		{"GET /api/v1/builds/{id}/wait", "all", "/api/v1/builds/1/wait?state=x", "", ""},
		{"GET /api/v1/builds/{id}/statement", "all", "/api/v1/builds/1/statement", "", ""},
		{"GET /api/v1/builds/{ref}/rpms/{file}", "all", "/api/v1/builds/1/rpms/hello.rpm", "", ""},
		{"GET /api/v1/tasks", "all", "/api/v1/tasks", "", ""},
		{"GET /api/v1/tasks/{id}", "all", "/api/v1/tasks/1", "", ""},
		{"GET /api/v1/tasks/{id}/logs/{name}", "all", "/api/v1/tasks/1/logs/build.log", "", ""},
		{"GET /api/v1/roots/{digest}", "all", "/api/v1/roots/" + sum, "", ""},
		{"GET /api/v1/builders", "all", "/api/v1/builders", "", ""},
		{"GET /api/v1/tags", "all", "/api/v1/tags", "", ""},
		{"GET /api/v1/tags/{name}", "all", "/api/v1/tags/demo", "", ""},
		{"GET /api/v1/tags/{name}/published", "all", "/api/v1/tags/demo/published", "", ""},
		{"GET /api/v1/targets", "all", "/api/v1/targets", "", ""},
		{"GET /api/v1/keys", "all", "/api/v1/keys", "", ""},
		{"GET /api/v1/signing", "all", "/api/v1/signing", "", ""},
		{"GET /api/v1/snapshots", "all", "/api/v1/snapshots", "", ""},
		{"GET /api/v1/snapshots/{id}", "all", "/api/v1/snapshots/$SNAPSHOT", "", ""},
		{"GET /api/v1/snapshots/{id}/diff/{to}", "all", "/api/v1/snapshots/$SNAPSHOT/diff/$SNAPSHOT", "", ""},
		{"GET /api/v1/channels", "all", "/api/v1/channels", "", ""},
		{"GET /api/v1/channels/{name}", "all", "/api/v1/channels/demo", "", ""},
		{"GET /api/v1/channels/{name}/history", "all", "/api/v1/channels/demo/history", "", ""},
		{"GET /api/v1/mirrors", "all", "/api/v1/mirrors", "", ""},
		{"GET /api/v1/mirrors/{name}", "all", "/api/v1/mirrors/dead", "", ""},
		{"GET /keys/mirror/{file}", "all", "/keys/mirror/dead.asc", "", ""},
		{"GET /keys/{file}", "all", "/keys/demo.asc", "", ""},
		{"GET /chunks/{sum}", "all", "/chunks/x", "", ""},
		{"GET /metrics", "all", "/metrics", "", ""},
		{"GET /api/v1/channels/{name}/follow", "all", "/api/v1/channels/demo/follow", "", ""},
		{"GET /api/v1/channels/{name}/census", "all", "/api/v1/channels/demo/census", "", ""},
		{"GET /channels/{rest...}", "all", "/channels/demo/source/repodata/repomd.xml", "", ""},
		{"GET /api/v1/lines", "all", "/api/v1/lines", "", ""},
		{"GET /api/v1/channels/{name}/plan", "all", "/api/v1/channels/steps%2Ftest/plan", "", ""},
		{"GET /api/v1/channels/{name}/holds", "all", "/api/v1/channels/steps%2Ftest/holds", "", ""},
		{"GET /api/v1/snapshots/{id}/files", "all", "/api/v1/snapshots/$SNAPSHOT/files", "", ""},
		{"GET /api/v1/search", "all", "/api/v1/search?channel=demo&q=hello", "", ""},
		{"GET /api/v1/rpms/{name}", "all", "/api/v1/rpms/hello", "", ""},
		{"GET /lines", "all", "/lines", "", ""},
		{"GET /lines/{name}", "all", "/lines/steps", "", ""},
		{"GET /snapshots/{id}/diff/{to}", "all", "/snapshots/$SNAPSHOT/diff/$SNAPSHOT", "", ""},
		{"GET /rpms/{name}", "all", "/rpms/hello", "", ""},
		{"GET /search", "all", "/search?q=hello&channel=demo", "", ""},
		{"GET /api/v1/snapshot-names", "all", "/api/v1/snapshot-names", "", ""},
		{"GET /snapshots/{id}/{tree}/{path...}", "all", "/snapshots/$SNAPSHOT/source/repodata/repomd.xml", "", ""},
		{"GET /repo/pkgs/{path...}", "all", "/repo/pkgs/rpms/hello/a/sha512/b/a", "", ""},
		{"GET /git/{ns}/{name}/info/refs", "all", "/git/rpms/hello/info/refs?service=git-upload-pack", "", ""},
		{"POST /git/{ns}/{name}/git-upload-pack", "all", "/git/rpms/hello/git-upload-pack", "0000", "application/x-git-upload-pack-request"},
		{"POST /api/v1/join", "all", "/api/v1/join", `{"ticket":"drt_guess"}`, ""},

		// Hosts and jobs: not for everybody.
		{"GET /fleet", reads, "/fleet", "", ""},
		{"GET /fleet/pending", reads, "/fleet/pending", "", ""},
		{"GET /fleet/{name}", reads, "/fleet/web-01", "", ""},
		{"GET /api/v1/hosts", reads, "/api/v1/hosts", "", ""},
		{"POST /api/v1/hosts/select", reads, "/api/v1/hosts/select", `{"target":"fact.os == 'x'"}`, ""},
		{"GET /api/v1/hosts/{name}", reads, "/api/v1/hosts/web-01", "", ""},
		{"GET /api/v1/hosts/{name}/facts", reads, "/api/v1/hosts/web-01/facts", "", ""},
		{"GET /api/v1/hosts/{name}/presence", reads, "/api/v1/hosts/web-01/presence", "", ""},
		{"GET /api/v1/facts/{kind}/{key}", reads, "/api/v1/facts/fact/os", "", ""},
		{"PUT /api/v1/hosts/{name}/labels", runs, "/api/v1/hosts/web-01/labels", `{"role":"web"}`, ""},
		{"POST /api/v1/hosts/{name}/accept", runs, "/api/v1/hosts/nope/accept", "", ""},
		{"POST /api/v1/hosts/{name}/revoke", runs, "/api/v1/hosts/nope/revoke", `{}`, ""},
		{"DELETE /api/v1/hosts/{name}", runs, "/api/v1/hosts/nope", "", ""},
		{"POST /api/v1/hosts/tickets", runs, "/api/v1/hosts/tickets", `{"host":"evil"}`, ""},
		{"GET /api/v1/hosts/pin", "all", "/api/v1/hosts/pin", "", ""},
		{"GET /api/v1/groups", reads, "/api/v1/groups", "", ""},
		{"PUT /api/v1/groups/{name}", runs, "/api/v1/groups/web", `{"target":"web*"}`, ""},
		{"GET /api/v1/agent/trust", "all", "/api/v1/agent/trust", "", ""},
		{"POST /api/v1/agent/enrol", "all", "/api/v1/agent/enrol", `{"name":"evil","key":"UX","cap":1,"nonce":"aaaaaaaaaaaaaaaaaaaa"}`, ""},
		{"POST /api/v1/agent/mine", "agent", "/api/v1/agent/mine", `{"target":"*","fun":"x"}`, ""},
		{"POST /api/v1/agent/report", "agent", "/api/v1/agent/report", `{"base":"","digest":"x"}`, "application/json"},
		{"PUT /api/v1/agent/results/{id}", "agent", "/api/v1/agent/results/20261128101010000001", `{}`, "application/json"},
		{"GET /jobs", reads, "/jobs", "", ""},
		{"GET /jobs/{id}", reads, "/jobs/20261128101010000001", "", ""},
		{"POST /api/v1/jobs", runs, "/api/v1/jobs", `{"target":"web-01","fun":"cmd.run","args":["id"]}`, ""},
		{"GET /api/v1/jobs", reads, "/api/v1/jobs", "", ""},
		{"GET /api/v1/jobs/{id}", reads, "/api/v1/jobs/20261128101010000001", "", ""},
		{"GET /api/v1/jobs/{id}/follow", reads, "/api/v1/jobs/20261128101010000001/follow", "", ""},
		{"GET /api/v1/jobs/{id}/wait", reads, "/api/v1/jobs/20261128101010000001/wait?seen=x", "", ""},
		{"GET /api/v1/jobs/{id}/output/{host}", reads, "/api/v1/jobs/20261128101010000001/output/web-01", "", ""},
		{"POST /api/v1/jobs/{id}/stop", "", "/api/v1/jobs/20261128101010000001/stop", `{}`, ""},
		{"POST /api/v1/jobs/{id}/approve", "", "/api/v1/jobs/20261128101010000001/approve", "", ""},
		{"POST /api/v1/jobs/{id}/reject", "", "/api/v1/jobs/20261128101010000001/reject", `{}`, ""},
		{"GET /api/v1/job-rules", runs, "/api/v1/job-rules", "", ""},
		{"POST /api/v1/job-rules", "admin", "/api/v1/job-rules", `{"who":"eve","effect":"allow","target":"*","fun":"*"}`, ""},
		{"DELETE /api/v1/job-rules/{id}", "admin", "/api/v1/job-rules/99", "", ""},
		{"GET /api/v1/reactions", reads, "/api/v1/reactions", "", ""},
		{"PUT /api/v1/reactions/{name}", runs, "/api/v1/reactions/evil", `{"tag":"x/*","hook":"http://127.0.0.1:9/"}`, ""},
		{"GET /api/v1/letters", reads, "/api/v1/letters", "", ""},
		{"POST /api/v1/letters/{id}/retry", runs, "/api/v1/letters/99/retry", "", ""},
		{"GET /api/v1/stream", reads, "/api/v1/stream", "", ""},

		// What salt-api's scripts use; the types of its bodies are not only JSON.
		{"POST /salt/login", "all", "/salt/login", `{"username":"admin","password":"drv_guess"}`, "application/json"},
		{"POST /salt/logout", "all", "/salt/logout", "", ""},
		{"GET /salt/{$}", reads + " builder signer agent", "/salt/", "", ""},
		{"POST /salt/{$}", runs, "/salt/", `[{"client":"local","tgt":"web-01","fun":"cmd.run","arg":"id"}]`, "application/json"},
		{"POST /salt", runs, "/salt", `[{"client":"wheel","fun":"key.delete","match":"web-01"}]`, "application/json"},
		{"POST /salt/run", runs, "/salt/run", `[{"client":"local","tgt":"web-01","fun":"cmd.run","arg":"id"}]`, "application/json"},
		{"GET /salt/minions", reads, "/salt/minions", "", ""},
		{"GET /salt/minions/{mid}", reads, "/salt/minions/web-01", "", ""},
		{"POST /salt/minions", runs, "/salt/minions", `[{"tgt":"web-01","fun":"cmd.run","arg":"id"}]`, "application/json"},
		{"GET /salt/jobs", reads, "/salt/jobs", "", ""},
		{"GET /salt/jobs/{jid}", reads, "/salt/jobs/20261128101010000001", "", ""},
		{"GET /salt/keys", reads, "/salt/keys", "", ""},
		{"GET /salt/keys/{mid}", reads, "/salt/keys/web-01", "", ""},
		{"POST /salt/keys", runs, "/salt/keys", "mid=evil", "application/x-www-form-urlencoded"},
		{"GET /salt/stats", reads, "/salt/stats", "", ""},
		{"POST /salt/hook/{path...}", runs, "/salt/hook/evil", `{}`, "application/json"},
		{"GET /salt/events", reads, "/salt/events", "", ""},

		// People, tokens, tickets.
		{"GET /api/v1/people", "admin", "/api/v1/people", "", ""},
		{"PUT /api/v1/people/{name}", "admin", "/api/v1/people/eve", `{"role":"admin"}`, ""},
		{"GET /api/v1/tokens", "admin operator releaser packager viewer", "/api/v1/tokens", "", ""},
		{"POST /api/v1/tokens", "admin", "/api/v1/tokens", `{"owner":"admin"}`, ""},
		{"DELETE /api/v1/tokens/{id}", "admin", "/api/v1/tokens/1", "", ""},
		{"POST /api/v1/tickets", "admin", "/api/v1/tickets", `{"kind":"builder","name":"evil"}`, ""},

		// Packages and sources.
		{"POST /api/v1/repos", packs, "/api/v1/repos", `{"name":"rpms/evil"}`, ""},
		{"PUT /api/v1/repos/{ns}/{name}/rules", edits, "/api/v1/repos/rpms/hello/rules", `{"pattern":"main","who":[],"protected":false}`, ""},
		{"PUT /api/v1/lookaside/{ns}/{name}/{file}", packs, "/api/v1/lookaside/rpms/hello/a.tar?size=1&offset=0&sha512=" + sum + sum, "x", "application/octet-stream"},
		{"POST /repo/pkgs/upload.cgi", packs, "/repo/pkgs/upload.cgi", "--b\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\nhello\r\n--b\r\nContent-Disposition: form-data; name=\"sha512sum\"\r\n\r\n" + sum + sum +
			"\r\n--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.tar\"\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b"},
		{"POST /git/{ns}/{name}/git-receive-pack", packs, "/git/rpms/hello/git-receive-pack", "0000", "application/x-git-receive-pack-request"},

		// Builds.
		{"POST /api/v1/builds", packs, "/api/v1/builds", `{"target":"demo","repo":"rpms/hello"}`, ""},
		{"POST /api/v1/builds/{id}/cancel", edits, "/api/v1/builds/1/cancel", `{}`, ""},
		{"POST /api/v1/builds/{ref}/verify", packs, "/api/v1/builds/1/verify", "", ""},
		{"POST /api/v1/srpms", packs, "/api/v1/srpms", "x", "application/octet-stream"},
		{"PUT /api/v1/builders/{name}", "admin", "/api/v1/builders/b1", `{"enabled":false}`, ""},

		// Tags, channels, mirrors.
		{"PUT /api/v1/tags/{name}", edits, "/api/v1/tags/demo", `{"name":"demo","arches":["x86_64"]}`, ""},
		{"PUT /api/v1/tags/{name}/builds/{ref}", edits, "/api/v1/tags/demo/builds/1", "", ""},
		{"DELETE /api/v1/tags/{name}/builds/{ref}", edits, "/api/v1/tags/demo/builds/1", "", ""},
		{"PUT /api/v1/targets/{name}", edits, "/api/v1/targets/demo", `{"build_tag":"demo","dest_tag":"demo"}`, ""},
		{"PUT /api/v1/channels/{name}", edits, "/api/v1/channels/demo", `{"snapshot":"$SNAPSHOT"}`, ""},
		{"PUT /api/v1/lines/{name}", edits, "/api/v1/lines/evil", `{"parts":["demo"],"stages":["dev"]}`, ""},
		{"POST /api/v1/channels/{name}/promote", edits, "/api/v1/channels/steps%2Ftest/promote", `{}`, ""},
		{"POST /api/v1/channels/{name}/rollback", edits, "/api/v1/channels/steps%2Ftest/rollback", `{"to":"$SNAPSHOT"}`, ""},
		{"PUT /api/v1/channels/{name}/freeze", edits, "/api/v1/channels/demo/freeze", `{"reason":"evil"}`, ""},
		{"DELETE /api/v1/channels/{name}/freeze", edits, "/api/v1/channels/demo/freeze", "", ""},
		{"PUT /api/v1/channels/{name}/holds/{package}", edits, "/api/v1/channels/steps%2Ftest/holds/evil", `{"reason":"evil"}`, ""},
		{"DELETE /api/v1/channels/{name}/holds/{package}", edits, "/api/v1/channels/steps%2Ftest/holds/evil", "", ""},
		{"POST /api/v1/snapshots/sweep", edits, "/api/v1/snapshots/sweep", `{}`, ""},
		{"PUT /api/v1/snapshots/{id}/names/{name}", edits, "/api/v1/snapshots/$SNAPSHOT/names/evil", `{"reason":"evil"}`, ""},
		{"DELETE /api/v1/snapshot-names/{name}", edits, "/api/v1/snapshot-names/evil", "", ""},
		{"DELETE /api/v1/lines/{name}", edits, "/api/v1/lines/steps", "", ""},
		{"PUT /api/v1/mirrors/{name}", edits, "/api/v1/mirrors/evil", `{"url":"http://127.0.0.1:9/","arch":"x86_64"}`, ""},
		{"DELETE /api/v1/mirrors/{name}", edits, "/api/v1/mirrors/evil", "", ""},
		{"POST /api/v1/mirrors/{name}/sync", edits, "/api/v1/mirrors/dead/sync", "", ""},
		{"POST /api/v1/keys", "admin", "/api/v1/keys", `{"name":"evil","algo":"ed25519","purpose":"rpm","tags":["*"]}`, ""},
		{"POST /api/v1/audit/verify", "admin operator releaser packager viewer", "/api/v1/audit/verify", `{}`, ""},
		{"POST /api/v1/blobs/scrub", "admin operator releaser packager viewer", "/api/v1/blobs/scrub", "", ""},

		// What builders and signers say.
		{"POST /api/v1/builder/poll", "builder", "/api/v1/builder/poll", `{}`, ""},
		{"POST /api/v1/builder/tasks/{id}/renew", "builder", "/api/v1/builder/tasks/2/renew", `{"fence":1}`, ""},
		{"POST /api/v1/builder/tasks/{id}/finish", "builder", "/api/v1/builder/tasks/2/finish", `{}`, ""},
		{"POST /api/v1/builder/tasks/{id}/logs/{name}", "builder", "/api/v1/builder/tasks/2/logs/build.log?fence=1&offset=0", "x", "text/plain"},
		{"PUT /api/v1/builder/tasks/{id}/files/{digest}", "builder", "/api/v1/builder/tasks/2/files/" + sum + "?fence=1", "x", "application/octet-stream"},
		{"GET /api/v1/builder/tasks/{id}/inputs/{digest}", "builder", "/api/v1/builder/tasks/2/inputs/" + sum + "?fence=1", "", ""},
		{"GET /api/v1/builder/tasks/{id}/tree.tar", "builder", "/api/v1/builder/tasks/2/tree.tar?fence=1", "", ""},
		{"POST /api/v1/signer/poll", "signer", "/api/v1/signer/poll", `{}`, ""},
		{"POST /api/v1/signer/answer", "signer", "/api/v1/signer/answer", `{}`, ""},
		{"POST /api/v1/signer/keys", "signer", "/api/v1/signer/keys", `[]`, ""},
	}
}

func TestEveryEntryHasARow(t *testing.T) {
	s, err := app.NewServer(t.Context(), app.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", NoBuilder: true, NoSigner: true}, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var rows []string
	for _, e := range entries() {
		rows = append(rows, e.pattern)
	}
	have := s.Web.Patterns()
	for _, p := range have {
		if !slices.Contains(rows, p) {
			t.Errorf("the entry point %s has no row in the attack table: say who may use it", p)
		}
	}
	for _, p := range rows {
		if !slices.Contains(have, p) {
			t.Errorf("the attack table has a row for %s, which is not served", p)
		}
	}
}

// target is a running server with a token of each role.
type target struct {
	*cliServer
	dir    string
	tokens map[string]string // by role; "nobody" has none
	vars   *strings.Replacer
}

func newTarget(t *testing.T) *target {
	t.Helper()
	g := &target{dir: filepath.Join(t.TempDir(), "server"), tokens: map[string]string{"nobody": ""}}
	g.cliServer = startServer(t, g.dir)
	c := &web.Client{Base: g.url, Token: g.token}
	call := func(method, path string, in, out any) {
		t.Helper()
		if err := c.Call(t.Context(), method, path, in, out); err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
	}
	type m = map[string]any
	for _, role := range []string{"admin", "operator", "releaser", "packager", "viewer"} {
		var tok struct{ Secret string }
		call("PUT", "/api/v1/people/"+role+"1", m{"role": role}, nil)
		call("POST", "/api/v1/tokens", m{"owner": role + "1"}, &tok)
		g.tokens[role] = tok.Secret
	}
	for _, kind := range []string{"builder", "signer"} {
		var ticket struct{ Ticket string }
		var tok struct{ Secret string }
		call("POST", "/api/v1/tickets", m{"kind": kind, "name": kind + "1"}, &ticket)
		call("POST", "/api/v1/join", m{"ticket": ticket.Ticket}, &tok)
		g.tokens[kind] = tok.Secret
	}
	g.tokens["agent"] = agentToken(t, c, "web-01")
	call("POST", "/api/v1/repos", m{"name": "rpms/hello"}, nil)
	call("PUT", "/api/v1/tags/demo", m{"name": "demo", "arches": []string{"x86_64"}}, nil)
	call("PUT", "/api/v1/targets/demo", m{"build_tag": "demo", "dest_tag": "demo"}, nil)
	call("PUT", "/api/v1/lines/steps", m{"parts": []string{"demo"}, "stages": []string{"dev", "test"}}, nil)
	call("PUT", "/api/v1/mirrors/dead", m{"url": "http://127.0.0.1:9/", "arch": "x86_64"}, nil)
	work := filepath.Join(t.TempDir(), "hello")
	for _, args := range [][]string{{"init", "-q", "-b", "main", work}, {"-C", work, "commit", "-q", "--allow-empty", "-m", "x"},
		{"-C", work, "push", "-q", strings.Replace(g.url, "://", "://x:"+g.token+"@", 1) + "/git/rpms/hello", "main"}} {
		cmd := exec.Command("git", args...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_AUTHOR_NAME=P", "GIT_AUTHOR_EMAIL=p@example.org", "GIT_COMMITTER_NAME=P", "GIT_COMMITTER_EMAIL=p@example.org")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v %s", args, err, out)
		}
	}
	call("POST", "/api/v1/builds", m{"target": "demo", "repo": "rpms/hello"}, nil)
	var snaps []struct{ ID string }
	call("GET", "/api/v1/snapshots", nil, &snaps)
	if len(snaps) == 0 {
		t.Fatal("there is no snapshot to attack")
	}
	g.vars = strings.NewReplacer("$SNAPSHOT", snaps[0].ID)
	return g
}

// agentToken has a host enrol and say hello, and returns the token that it is welcomed with.
func agentToken(t *testing.T, c *web.Client, name string) string {
	t.Helper()
	var tickets struct{ Tickets []string }
	if err := c.Call(t.Context(), "POST", "/api/v1/hosts/tickets", map[string]any{"host": name}, &tickets); err != nil {
		t.Fatal(err)
	}
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	e := fleetwire.Enrol{Name: name, Key: pub, Ticket: tickets.Tickets[0], Cap: fleetwire.Capability, Nonce: strings.Repeat("n", 20)}
	if e.Sig, err = pair.Sign(e.Signed()); err != nil {
		t.Fatal(err)
	}
	var sealed struct{ Sealed []byte }
	var ad fleetwire.Admission
	if err := c.Call(t.Context(), "POST", "/api/v1/agent/enrol", e, &sealed); err != nil {
		t.Fatal(err)
	}
	if err := fleetwire.Peek(sealed.Sealed, &ad); err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(ad.Bus[0], nats.UserJWT(func() (string, error) { return ad.JWT, nil }, pair.Sign))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	sub, err := nc.SubscribeSync("to." + ad.ID + ".welcome")
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(fleetwire.Hello{Nonce: "nonce-1", Instance: "instance-1", Cap: fleetwire.Capability, Conn: "x/1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Publish("from."+ad.ID+".hello", b); err != nil {
		t.Fatal(err)
	}
	m, err := sub.NextMsg(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var w fleetwire.Welcome
	if err := fleetwire.Peek(m.Data, &w); err != nil || w.Token == "" {
		t.Fatalf("%+v, %v", w, err)
	}
	return w.Token
}

// answer is what came back.
type answer struct {
	status int
	head   http.Header
	body   string
	cut    bool // it did not end within the time
}

func (g *target) send(t *testing.T, role, method, path, kind string, body []byte, head ...string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, g.url+path, bytes.NewReader(body))
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	if g.tokens[role] != "" {
		r.Header.Set("Authorization", "Bearer "+g.tokens[role])
	}
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	for i := 0; i < len(head); i += 2 {
		if r.Header.Set(head[i], head[i+1]); head[i] == "Host" {
			r.Host = head[i+1]
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if ctx.Err() != nil {
		return answer{cut: true}
	}
	if err != nil {
		t.Fatalf("%s %s as %s: %v", method, path, role, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	return answer{resp.StatusCode, resp.Header, string(b), err != nil}
}

// state is what no refused request may change: the ledger's head and the names of all files.
func (g *target) state(t *testing.T) string {
	t.Helper()
	a := g.send(t, "admin", "POST", "/api/v1/audit/verify", "application/json", []byte("{}"))
	if a.status != 200 {
		t.Fatalf("the ledger: %d %s", a.status, a.body)
	}
	var b strings.Builder
	b.WriteString(a.body)
	err := filepath.WalkDir(g.dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && !strings.HasPrefix(e.Name(), "drover.db") {
			fmt.Fprintln(&b, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// plain fails when an answer tells more than it should, or is no problem.
func (g *target) plain(t *testing.T, what string, a answer) {
	t.Helper()
	for _, leak := range []string{g.dir, "goroutine ", "root:x:0", "SELECT ", "panic"} {
		if strings.Contains(a.body, leak) {
			t.Errorf("%s: the answer tells %q: %.300s", what, leak, a.body)
		}
	}
	if a.head.Get("X-Evil") != "" {
		t.Errorf("%s: a header was put in", what)
	}
	if a.status < 400 || a.cut {
		return
	}
	var p web.Problem
	if a.head.Get("Content-Type") != "application/problem+json" || json.Unmarshal([]byte(a.body), &p) != nil || p.Code == "" || p.Status != a.status {
		if a.status != http.StatusNotAcceptable { // md5: DistGit's clients read text
			t.Errorf("%s: %d is no problem: %s %.200s", what, a.status, a.head.Get("Content-Type"), a.body)
		}
	}
}

var rePart = regexp.MustCompile(`\{[^}$]+\}`)

func TestAttacks(t *testing.T) {
	g := newTarget(t)
	begin := g.state(t)
	roles := []string{"nobody", "viewer", "packager", "releaser", "operator", "admin", "builder", "signer", "agent"}
	hostile := []string{"..%2f..%2f..%2f..%2fetc%2fpasswd", "%2e%2e", "%00", "x%0d%0aX-Evil:%201", strings.Repeat("a", 5000), "%ff%fe", "'%20OR%201=1--", "%3Cscript%3E", "-1", "%25s%25n"}
	for _, e := range entries() {
		method, pattern, _ := strings.Cut(e.pattern, " ")
		path, body, kind := g.vars.Replace(e.path), []byte(g.vars.Replace(e.body)), e.kind
		isJSON := kind == "" && len(body) > 0
		if isJSON {
			kind = "application/json"
		}
		allowed, strongest := strings.Fields(e.who), "admin"
		if e.who == "builder" || e.who == "signer" || e.who == "agent" {
			strongest = e.who
		}
		writes := method != "GET"

		// Who may not, is told so and by the right code.
		for _, role := range roles {
			if e.who == "all" || slices.Contains(allowed, role) {
				continue
			}
			want := http.StatusForbidden
			if e.who == "" && role != "nobody" { // about a thing that is not there
				continue
			}
			if role == "nobody" {
				want = http.StatusUnauthorized
			}
			a := g.send(t, role, method, path, kind, body)
			if a.status != want {
				t.Errorf("%s as %s: %d %.200s", e.pattern, role, a.status, a.body)
			}
			g.plain(t, e.pattern+" as "+role, a)
		}
		// A wrong token is worse than none, also where everybody may.
		if a := g.send(t, "nobody", method, path, kind, body, "Authorization", "Bearer drv_"+strings.Repeat("a", 32)); a.status != http.StatusUnauthorized {
			t.Errorf("%s with a wrong token: %d", e.pattern, a.status)
		}
		// A page of another site, with the browser's memory of the strongest token.
		if writes {
			for _, from := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example"}} {
				if a := g.send(t, strongest, method, path, kind, body, from...); a.status != http.StatusForbidden || !strings.Contains(a.body, "cross_site") {
					t.Errorf("%s from another site by %v: %d %.200s", e.pattern, from, a.status, a.body)
				}
			}
		}
		// Each part of the path, as the one who may do most; for writes as one who may nothing,
		// too: hostile words must be refused by themselves.
		for part := range len(rePart.FindAllString(pattern, -1)) {
			for _, evil := range hostile {
				n := -1
				at := rePart.ReplaceAllStringFunc(pattern, func(string) string {
					if n++; n == part {
						return evil
					}
					return "rpms"
				})
				query := ""
				if _, q, ok := strings.Cut(path, "?"); ok {
					query = "?" + q
				}
				a := g.send(t, strongest, method, at+query, kind, body)
				if a.status >= 500 || !a.cut && (a.status == 0 || writes && a.status < 300) {
					t.Errorf("%s at %.100s: %d %.200s", e.pattern, at, a.status, a.body)
				}
				g.plain(t, e.pattern+" at "+at[:min(100, len(at))], a)
			}
		}
		// Hostile queries.
		if !writes {
			for _, evil := range hostile {
				q := "?"
				for _, k := range []string{"q", "after", "before", "kind", "subject", "actor", "at", "limit", "offset", "state", "package", "target", "scratch", "source", "tree", "from", "branch", "service", "fence", "nevra", "file", "header", "builder", "newest"} {
					q += "&" + k + "=" + evil[:min(len(evil), 300)]
				}
				at, _, _ := strings.Cut(path, "?")
				a := g.send(t, strongest, method, at+q, "", nil)
				if a.status >= 500 || a.cut && e.pattern != "GET /api/v1/stream" && e.pattern != "GET /salt/events" {
					t.Errorf("%s with %.50s: %d %v %.200s", e.pattern, evil, a.status, a.cut, a.body)
				}
				g.plain(t, e.pattern+" with "+evil[:min(50, len(evil))], a)
			}
		}
		// Bodies that are none.
		if isJSON {
			big := 2 << 20
			if strings.HasSuffix(pattern, "/finish") || strings.HasSuffix(pattern, "/answer") {
				big = 33 << 20
			}
			if e.pattern == "PUT /api/v1/tags/{name}" { // it takes groups
				big = 9 << 20
			}
			for _, c := range []struct {
				what, kind string
				body       []byte
				status     []int
			}{
				{"too large", "application/json", append(append([]byte(`{"x":"`), bytes.Repeat([]byte("a"), big)...), `"}`...), []int{413}},
				{"of another type", "text/xml", []byte("<a/>"), []int{415}},
				{"of a form", "application/x-www-form-urlencoded", []byte("a=b"), []int{415}},
				{"that is cut", "application/json", []byte(`{"x":`), []int{400}},
				{"that is deep", "application/json", bytes.Repeat([]byte("["), 100_000), []int{400}},
				{"with what nobody knows", "application/json", []byte(`{"nobody_knows":1}`), []int{422}},
				{"of another shape", "application/json", []byte(`"x"`), []int{422}},
			} {
				a := g.send(t, strongest, method, path, c.kind, c.body)
				if !slices.Contains(c.status, a.status) {
					t.Errorf("%s with a body %s: %d %.200s", e.pattern, c.what, a.status, a.body)
				}
				g.plain(t, e.pattern+" with a body "+c.what, a)
			}
		}
		// Another host's name comes back only where the answer is made of it, and no cache keeps it.
		if e.who == "all" && method == "GET" && !strings.Contains(path, "/wait") {
			a := g.send(t, "nobody", method, path, "", nil, "Host", "evil.example")
			if strings.Contains(a.body, "evil.example") && !strings.Contains(a.head.Get("Cache-Control"), "no-") {
				t.Errorf("%s keeps a strange host's name: %v", e.pattern, a.head)
			}
		}
		// Methods that nobody has offered.
		for _, m := range []string{"PATCH", "TRACE", "BREW"} {
			if a := g.send(t, strongest, m, path, "", nil); a.status != http.StatusMethodNotAllowed {
				t.Errorf("%s by %s: %d", e.pattern, m, a.status)
			}
		}
	}
	was := strings.Split(begin, "\n")
	for _, l := range strings.Split(g.state(t), "\n") {
		if !slices.Contains(was, l) {
			t.Errorf("the attacks left %s", l)
		}
	}
	log, err := os.ReadFile(g.log)
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(log)) {
		if strings.Contains(l, `"ERROR"`) {
			t.Errorf("the server's log: %s", l)
		}
	}
}
