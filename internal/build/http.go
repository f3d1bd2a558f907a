package build

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/build/wire"
	"drover/internal/cli"
	"drover/internal/db"
	"drover/internal/fault"
	"drover/internal/rpm"
	"drover/internal/web"
)

//go:embed pages
var pages embed.FS

type none struct{}

// Routes adds the routes of builds, tasks and builders.
func (s *Store) Routes(srv *web.Server) {
	s.people(srv)
	s.builders(srv)
	s.pages(srv)
}

func (s *Store) people(srv *web.Server) {
	const tag = "build"
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/builds", ID: "build-submit", Summary: "Queue a build of a commit or of an uploaded source RPM", Tag: tag},
		func(ctx context.Context, in *struct{ Body Request }) (Build, error) { return s.Submit(ctx, in.Body) })
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/builds", ID: "build-list", Summary: "List builds, newest first", Tag: tag},
		func(ctx context.Context, in *struct {
			Package string `query:"package"`
			State   State  `query:"state"`
			Target  string `query:"target"`
			Commit  string `query:"commit"`
			Query   string `query:"q" maxLength:"200"`
			Scratch bool   `query:"scratch"`
			Before  int64  `query:"before"`
			Limit   int    `query:"limit"`
		}) ([]Build, error) {
			return s.List(ctx, Filter{Package: in.Package, State: in.State, Target: in.Target, Commit: in.Commit, Query: in.Query, Scratch: in.Scratch, Before: in.Before, Limit: in.Limit})
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/builds/{ref}", ID: "build-show", Summary: "A build by number or NVR, with tasks and packages", Tag: tag},
		func(ctx context.Context, in *struct {
			Ref string `path:"ref" maxLength:"300"`
		}) (Whole, error) {
			return s.Whole(ctx, in.Ref)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/builds/{id}/wait", ID: "build-wait", Summary: "Wait up to 50 s for the tasks of a build to be in another state", Tag: tag},
		func(ctx context.Context, in *struct {
			ID    int64  `path:"id"`
			State string `query:"state" maxLength:"10000" doc:"the fingerprint of the states that are known"`
		}) (none, error) {
			return none{}, s.wait(ctx, in.ID, in.State)
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/builds/{id}/cancel", ID: "build-cancel", Summary: "Cancel a build", Tag: tag},
		func(ctx context.Context, in *struct {
			ID   int64 `path:"id"`
			Body struct {
				Reason string `json:"reason,omitempty" maxLength:"500"`
			}
		}) (none, error) {
			return none{}, s.Cancel(ctx, in.ID, in.Body.Reason)
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/builds/{ref}/verify", ID: "build-verify", Summary: "Build a build again and compare", Tag: tag},
		func(ctx context.Context, in *struct {
			Ref string `path:"ref" maxLength:"300"`
		}) (Build, error) {
			return s.Verify(ctx, in.Ref)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/tasks", ID: "task-list", Summary: "Tasks that are not done", Tag: tag},
		func(ctx context.Context, _ *none) ([]Task, error) { return s.Queue(ctx) })
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/tasks/{id}", ID: "task-show", Summary: "A task with its logs", Tag: tag},
		func(ctx context.Context, in *struct {
			ID int64 `path:"id"`
		}) (Task, error) {
			return s.Task(ctx, in.ID)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/roots/{digest}", ID: "root-show", Summary: "The packages of a buildroot", Tag: tag},
		func(ctx context.Context, in *struct {
			Digest string `path:"digest" maxLength:"64"`
		}) ([]wire.Pkg, error) {
			return s.Root(ctx, in.Digest)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/builders", ID: "builder-list", Summary: "List builders", Tag: tag},
		func(ctx context.Context, _ *none) ([]BuilderInfo, error) { return s.Builders(ctx) })
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/builders/{name}", ID: "builder-set", Summary: "Let a builder have tasks, or not", Tag: tag},
		func(ctx context.Context, in *struct {
			Name string `path:"name"`
			Body struct {
				Enabled bool   `json:"enabled"`
				Note    string `json:"note,omitempty"`
			}
		}) (none, error) {
			return none{}, s.EnableBuilder(ctx, in.Name, in.Body.Enabled, in.Body.Note)
		})
	srv.HandleFunc("POST /api/v1/srpms", func(w http.ResponseWriter, r *http.Request) error {
		d, err := s.TakeSRPM(r.Context(), r.Body)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, "{\"digest\":%q}\n", d)
		return nil
	})
	srv.HandleFunc("GET /api/v1/tasks/{id}/logs/{name}", func(w http.ResponseWriter, r *http.Request) error {
		id, err := number(r, "id")
		if err != nil {
			return err
		}
		offset := int64(0)
		if q := r.URL.Query().Get("offset"); q != "" {
			if offset, err = strconv.ParseInt(q, 10, 64); err != nil {
				return fault.Invalid("number", "%.40q is no number", q)
			}
		}
		follow := r.URL.Query().Get("follow") != ""
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		out := &lazyWriter{w: w}
		rc := http.NewResponseController(w)
		err = s.ReadLog(r.Context(), id, r.PathValue("name"), offset, follow, out, func() { _ = rc.Flush() })
		if err != nil && out.wrote {
			if r.Context().Err() == nil {
				s.Log.Warn("a log was cut", "task", id, "err", err)
			}
			panic(http.ErrAbortHandler)
		}
		return err
	})
	srv.HandleFunc("GET /api/v1/builds/{ref}/rpms/{file}", func(w http.ResponseWriter, r *http.Request) error {
		b, err := s.Find(r.Context(), r.PathValue("ref"))
		if err != nil {
			return err
		}
		rs, err := s.RPMs(r.Context(), b.ID)
		if err != nil {
			return err
		}
		for _, x := range rs {
			if x.File == r.PathValue("file") {
				return s.serveRPM(w, r, x)
			}
		}
		return fault.NotFound("rpm_unknown", "build %d has no package %.200q", b.ID, r.PathValue("file"))
	})
}

// wait returns when the tasks of a build are in other states than the known ones, the build
// is done, or 50 s are over.
func (s *Store) wait(ctx context.Context, id int64, known string) error {
	ctx, cancel := context.WithTimeout(ctx, 50*time.Second)
	defer cancel()
	for {
		changed := s.DB.Changed()
		ts, err := s.Tasks(ctx, id)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if ctx.Err() != nil || len(ts) == 0 || ts[0].State != TaskOpen || fingerprint(ts) != known {
			return nil
		}
		again := time.NewTimer(3 * time.Second)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-again.C:
		}
		again.Stop()
	}
}

// lazyWriter remembers whether an answer has begun.
type lazyWriter struct {
	w     io.Writer
	wrote bool
}

// Write implements io.Writer.
func (l *lazyWriter) Write(p []byte) (int, error) { l.wrote = true; return l.w.Write(p) }

func number(r *http.Request, name string) (int64, error) {
	n, err := strconv.ParseInt(r.PathValue(name), 10, 64)
	if err != nil {
		return 0, fault.Invalid("number", "%.40q is no number", r.PathValue(name))
	}
	return n, nil
}

// serveRPM serves a package as it was built, without a signature.
func (s *Store) serveRPM(w http.ResponseWriter, r *http.Request, x RPM) error {
	head, err := s.Blobs.ReadAll(x.Head, 64<<20)
	if err != nil {
		return err
	}
	core, err := s.Blobs.Get(x.Core)
	if err != nil {
		return err
	}
	defer closeQuietly(core)
	w.Header().Set("Content-Type", "application/x-rpm")
	w.Header().Set("ETag", strconv.Quote(x.Digest.String()))
	file := io.NewSectionReader(rpm.Splice(head, core, core.Size()), 0, int64(len(head))+core.Size())
	http.ServeContent(w, r, "", db.Time(0), file)
	return nil
}

func (s *Store) builders(srv *web.Server) {
	const tag = "builder"
	web.Route(srv, web.Op{Method: "POST", Path: wire.PathPoll, ID: "builder-poll", Summary: "Wait for work", Tag: tag, Guard: auth.Guard("work.build")},
		func(ctx context.Context, in *struct{ Body wire.Poll }) (wire.Orders, error) {
			return s.Poll(ctx, in.Body)
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/builder/tasks/{id}/renew", ID: "builder-renew", Summary: "Keep a lease", Tag: tag, Guard: auth.Guard("work.build")},
		func(ctx context.Context, in *struct {
			ID   int64 `path:"id"`
			Body wire.Renew
		}) (none, error) {
			return none{}, s.Renew(ctx, in.ID, in.Body.Fence)
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/builder/tasks/{id}/finish", ID: "builder-finish", Summary: "End a task", Tag: tag, MaxBody: 32 << 20, Guard: auth.Guard("work.build")},
		func(ctx context.Context, in *struct {
			ID   int64 `path:"id"`
			Body wire.Finish
		}) (none, error) {
			return none{}, s.Finish(ctx, in.ID, in.Body)
		})
	raw := func(pattern string, fn func(w http.ResponseWriter, r *http.Request, id, fence int64) error) {
		srv.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) error {
			id, err := number(r, "id")
			if err != nil {
				return err
			}
			fence, err := strconv.ParseInt(r.URL.Query().Get("fence"), 10, 64)
			if err != nil {
				return fault.Invalid("fence", "the query has no fence")
			}
			return fn(w, r, id, fence)
		})
	}
	raw("POST /api/v1/builder/tasks/{id}/logs/{name}", func(w http.ResponseWriter, r *http.Request, id, fence int64) error {
		offset, err := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
		if err != nil {
			return fault.Invalid("log_offset", "the query has no offset")
		}
		size, err := s.AppendLog(r.Context(), id, fence, r.PathValue("name"), offset, r.Body)
		w.Header().Set("Drover-Log-Size", strconv.FormatInt(size, 10))
		return err
	})
	raw("PUT /api/v1/builder/tasks/{id}/files/{digest}", func(_ http.ResponseWriter, r *http.Request, id, fence int64) error {
		return s.TakeFile(r.Context(), id, fence, r.PathValue("digest"), r.Body)
	})
	raw("GET /api/v1/builder/tasks/{id}/tree.tar", func(w http.ResponseWriter, r *http.Request, id, fence int64) error {
		_, b, err := s.heldBuild(r.Context(), id, fence)
		if err != nil {
			return err
		}
		if b.Repo == "" {
			return fault.NotFound("tree_unknown", "build %d is of no commit", b.ID)
		}
		w.Header().Set("Content-Type", "application/x-tar")
		out := &lazyWriter{w: w}
		if err := s.Git.Archive(r.Context(), b.Repo, b.Commit, out); err != nil {
			if !out.wrote {
				return err
			}
			s.Log.Warn("a commit's files were cut", "task", id, "err", err)
			panic(http.ErrAbortHandler) // a tar that ends early may look whole: the connection must break
		}
		return nil
	})
	raw("GET /api/v1/builder/tasks/{id}/inputs/{digest}", s.serveInput)
}

func (s *Store) heldBuild(ctx context.Context, id, fence int64) (t Task, b Build, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		if t, err = held(tx, id, fence); err != nil {
			return err
		}
		b, err = getBuild(tx, t.Build)
		return err
	})
	return t, b, err
}

// serveInput serves an input of a held task: only what the task was told of.
func (s *Store) serveInput(w http.ResponseWriter, r *http.Request, id, fence int64) error {
	t, b, err := s.heldBuild(r.Context(), id, fence)
	if err != nil {
		return err
	}
	var order *wire.Task
	var src []RPM
	err = s.DB.Read(r.Context(), func(tx *db.Tx) error {
		plan, err := getPlan(tx, b.ID)
		if err != nil {
			return err
		}
		if src, err = rpmsWhere(tx, "build = $1 AND arch = 'src'", b.ID); err != nil {
			return err
		}
		order, err = s.order(tx, t, plan, "")
		return err
	})
	if err != nil {
		return err
	}
	for _, f := range order.Inputs {
		if f.Digest != r.PathValue("digest") {
			continue
		}
		if t.Method == wire.MethodArch {
			return s.serveRPM(w, r, src[0])
		}
		in, err := s.Blobs.Get(blob.Digest(f.Digest))
		if err != nil {
			return err
		}
		defer closeQuietly(in)
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", db.Time(0), in)
		return nil
	}
	return fault.NotFound("input_unknown", "task %d has no input %.80q", id, r.PathValue("digest"))
}

// Whole is a build with all that belongs to it.
type Whole struct {
	Build
	Plan  Plan   `json:"plan"`
	Tasks []Task `json:"tasks"`
	RPMs  []RPM  `json:"rpms"`
}

// Whole reads a build by number or NVR with its plan, tasks and packages.
func (s *Store) Whole(ctx context.Context, ref string) (w Whole, err error) {
	if w.Build, err = s.Find(ctx, ref); err != nil {
		return w, err
	}
	if w.Plan, err = s.Plan(ctx, w.ID); err != nil {
		return w, err
	}
	if w.Tasks, err = s.Tasks(ctx, w.ID); err != nil {
		return w, err
	}
	for i, t := range w.Tasks {
		if t.State == TaskOpen {
			w.Tasks[i].Logs = append(w.Tasks[i].Logs, s.liveLogs(t)...)
		}
	}
	w.RPMs, err = s.RPMs(ctx, w.ID)
	return w, err
}

// flags writes the options of a command line that choose what a query chooses.
func flags(q url.Values, names ...string) string {
	out := ""
	for _, n := range names {
		if v := q.Get(n); v != "" {
			out += " --" + n + " " + cli.Quote(v)
		}
	}
	return out
}

// Shown is a build as its page shows it: with the ends of its logs.
type Shown struct {
	Whole
	Tails []Tail `json:"-"`
	Wait  string `json:"-"` // address that answers when the tasks have changed; "" when all is done
}

// Tail is the end of a log.
type Tail struct {
	Task Task
	Name string
	Text string
	Size int64 // of the log up to the end of Text
	Live bool
}

// maxTail is how much of a log a page shows; the whole log has its own address.
const maxTail = 64 << 10

// shown reads a build for its page: of tasks that run the logs so far, of a failed build the
// end of the log that tells why.
func (s *Store) shown(ctx context.Context, ref string) (v Shown, err error) {
	if v.Whole, err = s.Whole(ctx, ref); err != nil {
		return v, err
	}
	if v.State == Building {
		v.Wait = fmt.Sprintf("/api/v1/builds/%d/wait?state=%s", v.ID, url.QueryEscape(fingerprint(v.Tasks)))
	}
	for _, t := range v.Tasks {
		live := t.State == TaskOpen && t.Parent != 0
		logs := t.Logs
		if live && !slices.ContainsFunc(logs, func(l Log) bool { return l.Name == "build.log" }) {
			logs = append(logs, Log{Name: "build.log"}) // it begins when the root is ready
		}
		if t.State == TaskFailed {
			logs = telling(logs)
		}
		for _, l := range logs {
			if !live && t.State != TaskFailed || live && l.Name == "state.log" {
				continue
			}
			from := max(0, l.Size-maxTail)
			var b bytes.Buffer
			if err := s.ReadLog(ctx, t.ID, l.Name, from, false, &b, func() {}); err != nil && fault.Code(err) != "log_unknown" {
				return v, err
			}
			v.Tails = append(v.Tails, Tail{Task: t, Name: l.Name, Text: strings.ToValidUTF8(b.String(), "�"), Size: from + int64(b.Len()), Live: live})
		}
	}
	return v, nil
}

// telling picks the log that tells why a task failed: the one of the last attempt's last stage.
func telling(logs []Log) []Log {
	for _, stage := range []string{"build.log", "requires.log", "root.log"} {
		best, attempt := -1, -1
		for i, l := range logs {
			rest, ok := strings.CutPrefix(l.Name, stage)
			n, err := strconv.Atoi(strings.TrimPrefix(rest, "."))
			if rest == "" { // the plain name is the last attempt's
				n, err = math.MaxInt, nil
			}
			if ok && err == nil && n > attempt {
				best, attempt = i, n
			}
		}
		if best >= 0 {
			return logs[best : best+1]
		}
	}
	return nil
}

func (s *Store) pages(srv *web.Server) {
	srv.Page("GET /builds", pages, "pages/builds.html", func(r *http.Request) (web.Page, error) {
		const limit = 50
		q := r.URL.Query()
		f := Filter{Package: q.Get("package"), State: State(strings.ToUpper(q.Get("state"))), Target: q.Get("target"), Query: q.Get("q"), Scratch: q.Get("scratch") != "", Limit: limit + 1}
		f.Before, _ = strconv.ParseInt(q.Get("before"), 10, 64)
		total, err := s.Count(r.Context(), f)
		if err != nil {
			return web.Page{}, err
		}
		bs, err := s.List(r.Context(), f)
		cmd := "drover build list" + flags(q, "package", "state", "target")
		if f.Query != "" {
			cmd += " -q " + cli.Quote(f.Query)
		}
		if f.Scratch {
			cmd += " --scratch"
		}
		return web.Page{Title: "Builds", Data: web.MakeRows(r, bs, limit, total, "before", func(b Build) any { return b.ID }), CLI: cmd}, err
	})
	srv.Page("GET /builds/{ref}", pages, "pages/build.html", func(r *http.Request) (web.Page, error) {
		w, err := s.shown(r.Context(), r.PathValue("ref"))
		title := w.NVR
		if title == "" {
			title = fmt.Sprintf("%s, build %d", w.Package, w.ID)
		}
		return web.Page{Title: title, Data: w, CLI: fmt.Sprintf("drover build show %d", w.ID)}, err
	})
	srv.Page("GET /tasks", pages, "pages/tasks.html", func(r *http.Request) (web.Page, error) {
		var data struct {
			Tasks    web.Rows[Task] `json:"tasks"`
			Builders []BuilderInfo  `json:"builders"`
		}
		ts, err := s.Queue(r.Context())
		if err != nil {
			return web.Page{}, err
		}
		q := r.URL.Query()
		ts = slices.DeleteFunc(ts, func(t Task) bool {
			return q.Get("state") != "" && !strings.EqualFold(string(t.State), q.Get("state")) || q.Get("builder") != "" && t.Builder != q.Get("builder")
		})
		data.Tasks = web.Rows[Task]{Rows: ts[:min(len(ts), 200)], Total: int64(len(ts))}
		data.Builders, err = s.Builders(r.Context())
		return web.Page{Title: "Tasks and builders", Data: data, CLI: "drover task list"}, err
	})
}
