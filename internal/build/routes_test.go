package build_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"drover/internal/build"
	"drover/internal/build/wire"
	"drover/internal/fault"
	"drover/internal/web"
)

// TestAttacks calls every route of builds and builders without a token, with the wrong right and
// with hostile parameters. All are refused with a stable code, and nothing is written.
func TestAttacks(t *testing.T) {
	each(t, func(h *house) {
		p := newPkg("hello", "1%{?dist}", "")
		h.push("hello", p.files)
		x := h.join("x")
		done := x.begin(p, build.Request{Scratch: true})
		h.ok(x.hand(x.take(), p.built(t, "x86_64")...))
		b := h.submit(build.Request{Target: "one", Repo: "rpms/hello"})
		task := x.take()
		h.ok(x.log(task, "build.log", 0, "log\n"))
		h.ok(h.s.Auth.SetPerson(h.sys, "vic", "viewer", ""))
		tok, err := h.s.Auth.NewToken(h.sys, "vic", "", nil, 0)
		h.ok(err)
		narrow, err := h.s.Auth.NewToken(h.sys, "pat", "", []string{"build.submit:target/two"}, 0)
		h.ok(err)
		who := map[string]*web.Client{"nobody": h.client(""), "viewer": h.client(tok.Secret), "packager": h.pat, "scoped": h.client(narrow.Secret),
			"builder": x.c, "other": h.join("other").c, "liar": h.client("drv_liar")}
		submit := func(r string) string { return `{"target":"one","repo":"rpms/hello"` + r + `}` }
		poll := func(s string) string {
			return `{"version":1,"arches":["x86_64"],"channels":["default"],"slots":1,"running":[],"host":"h","wait":0` + s + `}`
		}
		at := func(format string) string { return fmt.Sprintf("/api/v1/builder/tasks/%d/", task.ID) + format }
		fence := fmt.Sprintf("?fence=%d", task.Fence)
		held := fmt.Sprintf(`{"fence":%d}`, task.Fence)
		finish := fmt.Sprintf(`{"fence":%d,"files":[],"before":[],"after":[],"started":0,"warm":false}`, task.Fence)
		digest := sum([]byte("x"))
		before := h.events()
		same := h.whole(b.ID)
		for _, c := range []struct {
			who, method, path, body, code string
		}{
			// Builds: submit, cancel, verify, upload.
			{"nobody", "POST", "/api/v1/builds", submit(""), "token_needed"},
			{"liar", "POST", "/api/v1/builds", submit(""), "token_bad"},
			{"viewer", "POST", "/api/v1/builds", submit(""), "denied"},
			{"builder", "POST", "/api/v1/builds", submit(""), "denied"},
			{"scoped", "POST", "/api/v1/builds", submit(""), "denied"},
			{"packager", "POST", "/api/v1/builds", `{"target":"none","repo":"rpms/hello"}`, "target_unknown"},
			{"packager", "POST", "/api/v1/builds", `{"target":"one"}`, "build_source"},
			{"packager", "POST", "/api/v1/builds", submit(`,"srpm":"` + digest + `"`), "build_source"},
			{"packager", "POST", "/api/v1/builds", `{"target":"one","srpm":"` + digest + `"}`, "blob_unknown"},
			{"packager", "POST", "/api/v1/builds", `{"target":"one","srpm":"../../etc/passwd"}`, "digest_invalid"},
			{"packager", "POST", "/api/v1/builds", `{"target":"one","repo":"rpms/none"}`, "repo_unknown"},
			{"packager", "POST", "/api/v1/builds", `{"target":"one","repo":"fleet/hello"}`, "build_repo"},
			{"packager", "POST", "/api/v1/builds", `{"target":"one","repo":"rpms/../hello"}`, "repo_unknown"},
			{"packager", "POST", "/api/v1/builds", submit(`,"ref":"--upload-pack=x"`), "commit_unknown"},
			{"packager", "POST", "/api/v1/builds", submit(`,"ref":"none"`), "commit_unknown"},
			{"packager", "POST", "/api/v1/builds", submit(`,"arches":["x86_64"]`), "build_arches"},
			{"packager", "POST", "/api/v1/builds", submit(`,"scratch":true,"arches":["vax"]`), "arch"},
			{"packager", "POST", "/api/v1/builds", submit(`,"priority":-1`), "priority"},
			{"packager", "POST", "/api/v1/builds", submit(`,"channel":"a b"`), "channel"},
			{"packager", "POST", "/api/v1/builds", submit(`,"owner":"admin"`), "request_invalid"},
			{"packager", "POST", "/api/v1/builds", `{"target":"one","repo":` + strings.Repeat("[", 100_000), "request_invalid"},
			{"packager", "POST", "/api/v1/builds", submit(`,"ref":"` + strings.Repeat("x", 2<<20) + `"`), "request_too_large"},
			{"nobody", "POST", fmt.Sprintf("/api/v1/builds/%d/cancel", b.ID), "{}", "token_needed"},
			{"viewer", "POST", fmt.Sprintf("/api/v1/builds/%d/cancel", b.ID), "{}", "denied"},
			{"builder", "POST", fmt.Sprintf("/api/v1/builds/%d/cancel", b.ID), "{}", "denied"},
			{"packager", "POST", fmt.Sprintf("/api/v1/builds/%d/cancel", done.ID), "{}", "build_done"},
			{"packager", "POST", "/api/v1/builds/0/cancel", "{}", "build_unknown"},
			{"packager", "POST", "/api/v1/builds/x/cancel", "{}", "request_invalid"},
			{"packager", "POST", fmt.Sprintf("/api/v1/builds/%d/cancel", b.ID), `{"reason":"` + strings.Repeat("x", 501) + `"}`, "request_invalid"},
			{"nobody", "POST", fmt.Sprintf("/api/v1/builds/%d/verify", done.ID), "", "token_needed"},
			{"viewer", "POST", fmt.Sprintf("/api/v1/builds/%d/verify", done.ID), "", "denied"},
			{"packager", "POST", fmt.Sprintf("/api/v1/builds/%d/verify", b.ID), "", "build_state"},
			{"packager", "POST", "/api/v1/builds/none-1-1/verify", "", "build_unknown"},
			{"nobody", "POST", "/api/v1/srpms", string(p.srpm(t).data), "token_needed"},
			{"viewer", "POST", "/api/v1/srpms", string(p.srpm(t).data), "denied"},
			{"builder", "POST", "/api/v1/srpms", string(p.srpm(t).data), "denied"},
			{"packager", "POST", "/api/v1/srpms", "no rpm", "rpm_header"},
			// Reading: everybody may, but only what is there.
			{"nobody", "GET", "/api/v1/builds/9999999999999999999999", "", "build_unknown"},
			{"nobody", "GET", "/api/v1/builds/%27%20OR%201=1--", "", "build_unknown"},
			{"nobody", "GET", "/api/v1/builds?limit=x", "", "request_invalid"},
			{"nobody", "GET", "/api/v1/builds?before=x", "", "request_invalid"},
			{"nobody", "GET", "/api/v1/builds?q=" + strings.Repeat("%25", 201), "", "request_invalid"},
			{"nobody", "GET", "/api/v1/builds/x/wait", "", "request_invalid"},
			{"nobody", "GET", "/api/v1/tasks/4711", "", "task_unknown"},
			{"nobody", "GET", "/api/v1/tasks/-1", "", "task_unknown"},
			{"nobody", "GET", "/api/v1/tasks/x", "", "request_invalid"},
			{"nobody", "GET", "/api/v1/roots/" + digest, "", "root_unknown"},
			{"nobody", "GET", "/api/v1/roots/" + strings.Repeat("0", 65), "", "request_invalid"},
			{"nobody", "GET", "/api/v1/tasks/x/logs/build.log", "", "number"},
			{"nobody", "GET", "/api/v1/tasks/4711/logs/build.log", "", "task_unknown"},
			{"nobody", "GET", fmt.Sprintf("/api/v1/tasks/%d/logs/..%%2f..%%2fdrover.db", task.ID), "", "log_unknown"},
			{"nobody", "GET", fmt.Sprintf("/api/v1/tasks/%d/logs/build.log?offset=-1", task.ID), "", "log_offset"},
			{"nobody", "GET", fmt.Sprintf("/api/v1/tasks/%d/logs/build.log?offset=x", task.ID), "", "number"},
			{"nobody", "GET", fmt.Sprintf("/api/v1/builds/%d/rpms/..%%2f..%%2fdrover.db", done.ID), "", "rpm_unknown"},
			{"nobody", "GET", "/api/v1/builds/4711/rpms/x.rpm", "", "build_unknown"},
			// Builders are set by admins.
			{"nobody", "PUT", "/api/v1/builders/x", `{"enabled":false}`, "token_needed"},
			{"packager", "PUT", "/api/v1/builders/x", `{"enabled":false}`, "denied"},
			{"builder", "PUT", "/api/v1/builders/x", `{"enabled":false}`, "denied"},
			// What builders say.
			{"nobody", "POST", wire.PathPoll, poll(""), "token_needed"},
			{"packager", "POST", wire.PathPoll, poll(""), "denied"},
			{"builder", "POST", wire.PathPoll, strings.Replace(poll(""), `"version":1`, `"version":99`, 1), "builder_version"},
			{"builder", "POST", wire.PathPoll, strings.Replace(poll(""), `"x86_64"`, `"x' OR 1=1"`, 1), "builder_word"},
			{"builder", "POST", wire.PathPoll, strings.Replace(poll(""), `["default"]`, `[]`, 1), "builder_poll"},
			{"builder", "POST", wire.PathPoll, strings.Replace(poll(""), `"slots":1`, `"slots":100000`, 1), "request_invalid"},
			{"builder", "POST", wire.PathPoll, strings.Replace(poll(""), `"wait":0`, `"wait":3600`, 1), "request_invalid"},
			{"builder", "POST", wire.PathPoll, strings.Replace(poll(""), `"running":[]`, `"running":[`+strings.Repeat(`{"id":1,"fence":1},`, 1001)+`{"id":1,"fence":1}]`, 1), "builder_poll"},
			{"nobody", "POST", at("renew"), held, "token_needed"},
			{"packager", "POST", at("renew"), held, "denied"},
			{"other", "POST", at("renew"), held, "lease_lost"},
			{"builder", "POST", at("renew"), `{"fence":0}`, "lease_lost"},
			{"builder", "POST", "/api/v1/builder/tasks/4711/renew", held, "task_unknown"},
			{"builder", "POST", fmt.Sprintf("/api/v1/builder/tasks/%d/renew", same.Tasks[0].ID), `{"fence":0}`, "lease_lost"},
			{"nobody", "POST", at("finish"), finish, "token_needed"},
			{"packager", "POST", at("finish"), finish, "denied"},
			{"other", "POST", at("finish"), finish, "lease_lost"},
			{"builder", "POST", at("finish"), strings.Replace(finish, held[1:len(held)-1], `"fence":9`, 1), "lease_lost"},
			{"builder", "POST", at("finish"), `{`, "request_invalid"},
			{"builder", "POST", fmt.Sprintf("/api/v1/builder/tasks/%d/finish", same.Tasks[0].ID), strings.Replace(finish, held[1:len(held)-1], `"fence":0`, 1), "lease_lost"},
			{"nobody", "POST", at("logs/build.log") + fence + "&offset=0", "x", "token_needed"},
			{"packager", "POST", at("logs/build.log") + fence + "&offset=0", "x", "denied"},
			{"other", "POST", at("logs/build.log") + fence + "&offset=0", "x", "lease_lost"},
			{"builder", "POST", at("logs/build.log") + "?offset=0", "x", "fence"},
			{"builder", "POST", at("logs/build.log") + fence, "x", "log_offset"},
			{"builder", "POST", at("logs/..%2fbuild.log") + fence + "&offset=0", "x", "log_name"},
			{"nobody", "PUT", at("files/"+digest) + fence, "x", "token_needed"},
			{"packager", "PUT", at("files/"+digest) + fence, "x", "denied"},
			{"other", "PUT", at("files/"+digest) + fence, "x", "lease_lost"},
			{"builder", "PUT", at("files/"+digest) + "?fence=999", "x", "lease_lost"},
			{"builder", "PUT", at("files/"+digest) + fence, "y", "digest_mismatch"},
			{"builder", "PUT", at("files/"+strings.ToUpper(digest)) + fence, "x", "digest_invalid"},
			{"nobody", "GET", at("tree.tar") + fence, "", "token_needed"},
			{"packager", "GET", at("tree.tar") + fence, "", "denied"},
			{"other", "GET", at("tree.tar") + fence, "", "lease_lost"},
			{"nobody", "GET", at("inputs/"+digest) + fence, "", "token_needed"},
			{"packager", "GET", at("inputs/"+digest) + fence, "", "denied"},
			{"other", "GET", at("inputs/"+digest) + fence, "", "lease_lost"},
			{"builder", "GET", at("inputs/"+digest) + fence, "", "input_unknown"},
			{"builder", "GET", at("inputs/..%2f..%2fdrover.db") + fence, "", "input_unknown"},
		} {
			head := http.Header{"Content-Type": {"application/json"}}
			resp, err := who[c.who].Do(t.Context(), c.method, c.path, head, bytes.NewReader([]byte(c.body)))
			if err == nil {
				body, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
				_ = resp.Body.Close()
				t.Errorf("%s %s %.100s by %s is answered: %s %s", c.method, c.path, c.body, c.who, resp.Status, body)
				continue
			}
			if code := fault.Code(err); code != c.code {
				t.Errorf("%s %.100s %.100s by %s: %s, not %s: %v", c.method, c.path, c.body, c.who, code, c.code, err)
			}
		}
		now := h.whole(b.ID)
		if now.State != build.Building || states(now) != states(same) || !slices.Equal(now.Tasks[1].Logs, same.Tasks[1].Logs) {
			t.Errorf("%s %+v", states(now), now.Tasks[1])
		}
		// The bad polls of builders that are known wrote no event, and refused people none either.
		if n := h.events(); n != before {
			t.Errorf("%d events were written", n-before)
		}
		if bs, err := h.s.Build.List(t.Context(), build.Filter{Scratch: true}); err != nil || len(bs) != 2 {
			t.Errorf("%d builds, %v", len(bs), err)
		}
		h.ok(x.hand(task, p.srpm(t)))
	})
}
