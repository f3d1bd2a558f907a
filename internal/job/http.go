package job

import (
	"context"
	"embed"
	"encoding/json"
	"html/template"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/cli"
	"drover/internal/fault"
	"drover/internal/fleet"
	"drover/internal/job/wire"
	"drover/internal/web"
)

//go:embed pages
var pages embed.FS

type none struct{}

// ByID is a route about one job.
type ByID struct {
	ID string `path:"id" maxLength:"20"`
}

// Whole is a job with its verdicts.
type Whole struct {
	Job
	Hosts []Verdict `json:"hosts"`
}

// Part is a line of a job that is followed: verdicts, and the job when it has ended.
type Part struct {
	Hosts []Verdict `json:"hosts,omitempty"`
	Job   *Job      `json:"job,omitempty"`
}

// maxOutput is the most of one host's result, in bytes.
const maxOutput = 128 << 20

// Routes adds the routes of jobs.
func (s *Store) Routes(srv *web.Server) {
	const tag = "job"
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/jobs", ID: "job-run", Summary: "Run a function on hosts", Tag: tag, MaxBody: 2 << 20, Guard: signedIn},
		func(ctx context.Context, in *struct{ Body Spec }) (Job, error) { return s.Start(ctx, in.Body) })
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/jobs", ID: "job-list", Summary: "Jobs, the newest first", Tag: tag},
		func(ctx context.Context, in *struct {
			Host   string `query:"host" maxLength:"253"`
			Fun    string `query:"fun" maxLength:"100" doc:"a function, or a module with a trailing dot"`
			Author string `query:"author" maxLength:"100"`
			State  string `query:"state" enum:",approval,running,stopping,done,rejected"`
			Search string `query:"search" maxLength:"200" doc:"a part of the target, the arguments or the reason"`
			Before string `query:"before" maxLength:"20"`
			Limit  int    `query:"limit" minimum:"0" maximum:"1000"`
		}) ([]Job, error) {
			return s.List(ctx, Filter{in.Host, in.Fun, in.Author, in.State, in.Search, in.Before, in.Limit})
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/jobs/{id}", ID: "job-show", Summary: "A job with the verdict of each host", Tag: tag},
		func(ctx context.Context, in *ByID) (Whole, error) {
			j, err := s.Get(ctx, in.ID)
			if err != nil {
				return Whole{}, err
			}
			vs, err := s.Verdicts(ctx, in.ID)
			return Whole{j, vs}, err
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/jobs/{id}/stop", ID: "job-stop", Summary: "End a job: no host begins any more, and those at it are told to end", Tag: tag},
		func(ctx context.Context, in *struct {
			ByID
			Body struct {
				Why    string `json:"why,omitempty" maxLength:"500"`
				Signal int    `json:"signal,omitempty" minimum:"0" maximum:"31"`
			}
		}) (none, error) {
			if in.Body.Signal != 0 {
				return none{}, s.Signal(ctx, in.ID, in.Body.Signal)
			}
			return none{}, s.Stop(ctx, in.ID, in.Body.Why)
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/jobs/{id}/approve", ID: "job-approve", Summary: "Let a job begin that waits for a second person", Tag: tag},
		func(ctx context.Context, in *ByID) (none, error) { return none{}, s.Approve(ctx, in.ID) })
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/jobs/{id}/reject", ID: "job-reject", Summary: "End a job that waits for a second person", Tag: tag},
		func(ctx context.Context, in *struct {
			ByID
			Body struct {
				Why string `json:"why,omitempty" maxLength:"500"`
			}
		}) (none, error) {
			return none{}, s.Reject(ctx, in.ID, in.Body.Why)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/job-rules", ID: "job-rule-list", Summary: "Rules of who may run what where", Tag: tag},
		func(ctx context.Context, _ *none) ([]Rule, error) { return s.Rules(ctx) })
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/job-rules", ID: "job-rule-add", Summary: "Add a rule", Tag: tag, MaxBody: 2 << 20},
		func(ctx context.Context, in *struct{ Body Rule }) (map[string]int64, error) {
			id, err := s.AddRule(ctx, in.Body)
			return map[string]int64{"id": id}, err
		})
	web.Route(srv, web.Op{Method: "DELETE", Path: "/api/v1/job-rules/{id}", ID: "job-rule-remove", Summary: "End a rule", Tag: tag},
		func(ctx context.Context, in *struct {
			ID int64 `path:"id"`
		}) (none, error) {
			return none{}, s.RemoveRule(ctx, in.ID)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/reactions", ID: "reaction-list", Summary: "What follows when something happens", Tag: tag},
		func(ctx context.Context, _ *none) ([]Reaction, error) { return s.Reactions(ctx) })
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/reactions/{name}", ID: "reaction-set", Summary: "Make a reaction or change it; one with neither job nor hook is taken away", Tag: tag, MaxBody: 2 << 20},
		func(ctx context.Context, in *struct {
			Name string `path:"name" maxLength:"63"`
			Body struct {
				Tag  string `json:"tag,omitempty" maxLength:"300"`
				Job  *Spec  `json:"job,omitempty"`
				Hook string `json:"hook,omitempty" maxLength:"2000"`
				Note string `json:"note,omitempty" maxLength:"500"`
			}
		}) (none, error) {
			return none{}, s.SetReaction(ctx, Reaction{Name: in.Name, Tag: in.Body.Tag, Job: in.Body.Job, Hook: in.Body.Hook, Note: in.Body.Note})
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/letters", ID: "letter-list", Summary: "Events on their way to what reacts to them, and those that did not get there", Tag: tag},
		func(ctx context.Context, in *struct {
			State string `query:"state" enum:",waiting,done,dead"`
		}) ([]Letter, error) {
			return s.Letters(ctx, in.State, 200)
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/letters/{id}/retry", ID: "letter-retry", Summary: "Try a dead letter again", Tag: tag},
		func(ctx context.Context, in *struct {
			ID int64 `path:"id"`
		}) (none, error) {
			return none{}, s.Retry(ctx, in.ID)
		})
	srv.HandleFunc("GET /api/v1/jobs/{id}/follow", s.follow)
	srv.HandleFunc("GET /api/v1/jobs/{id}/wait", s.waitFor)
	srv.HandleFunc("GET /api/v1/jobs/{id}/output/{host}", s.output)
	srv.HandleFunc("PUT /api/v1/agent/results/{id}", s.takeOutput)
	srv.HandleFunc("GET /api/v1/stream", s.stream)
	s.pageRoutes(srv)
}

func signedIn(ctx context.Context) error {
	if auth.From(ctx).Kind == auth.Nobody {
		return auth.Need(ctx, "job.run", "*")
	}
	return nil
}

// follow gives the verdicts of a job as lines of JSON, or as server-sent events to whom asks for them.
func (s *Store) follow(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.Get(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	sse := strings.Contains(r.Header.Get("Accept"), "text/event-stream")
	if sse {
		w.Header().Set("Content-Type", "text/event-stream")
	} else {
		w.Header().Set("Content-Type", "application/x-ndjson")
	}
	w.Header().Set("Cache-Control", "no-store")
	rc := http.NewResponseController(w)
	_ = rc.Flush()
	_ = s.Follow(r.Context(), r.PathValue("id"), func(vs []Verdict, j *Job) error {
		b, err := json.Marshal(Part{vs, j})
		if err != nil {
			return err
		}
		if sse {
			b = append([]byte("data: "), append(b, '\n')...)
		}
		if _, err := w.Write(append(b, '\n')); err != nil {
			return err
		}
		return rc.Flush()
	}) // it ends when the reader goes away
	return nil
}

// waitFor answers when more hosts have a verdict than the caller has seen, or after a while.
func (s *Store) waitFor(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.Get(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	seen, err := strconv.Atoi(r.URL.Query().Get("seen"))
	if err != nil {
		return fault.Invalid("seen", "%.40q is no number", r.URL.Query().Get("seen"))
	}
	end := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		run := s.runs[r.PathValue("id")]
		var next chan struct{}
		if run != nil && len(run.ended) <= seen {
			next = run.next
		}
		s.mu.Unlock()
		over := next == nil
		if !over {
			select {
			case <-r.Context().Done():
				return nil
			case <-end:
				over = true
			case <-next:
			}
		}
		if over {
			time.Sleep(300 * time.Millisecond) // a page reads itself again at each answer
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
	}
}

// output gives the whole result of one host.
func (s *Store) output(w http.ResponseWriter, r *http.Request) error {
	vs, err := s.Verdicts(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	i := slices.IndexFunc(vs, func(v Verdict) bool { return v.Host == r.PathValue("host") })
	if i < 0 {
		return fault.NotFound("host_unknown", "the job %s was not for %.100q", r.PathValue("id"), r.PathValue("host"))
	}
	w.Header().Set("Content-Type", "application/json")
	if vs[i].Blob == "" {
		_, err := w.Write(append(slices.Clone(vs[i].Return), '\n'))
		_ = err // a reader that left
		return nil
	}
	b, err := s.blobs.Get(blob.Digest(vs[i].Blob))
	if err != nil {
		return err
	}
	defer b.Close()
	http.ServeContent(w, r, "", time.Time{}, b)
	return nil
}

// takeOutput takes a large result of a host.
func (s *Store) takeOutput(w http.ResponseWriter, r *http.Request) error {
	id, err := fleet.Caller(r.Context())
	if err != nil {
		return err
	}
	jid := r.PathValue("id")
	if !wire.IsJID(jid) || !s.concerns(r.Context(), jid, id) {
		return fault.Denied("job_foreign", "the job %.40q is not this host's", jid)
	}
	d, n, err := s.blobs.Put(r.Context(), r.Body, blob.PutOptions{Max: maxOutput})
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(map[string]any{"blob": d, "size": n})
}

// concerns tells whether a job is for a host, and may still get a result of it.
func (s *Store) concerns(ctx context.Context, jid string, host int64) bool {
	s.mu.Lock()
	r := s.runs[jid]
	if r != nil {
		_, ended := r.ended[host]
		ok := r.flying[host] != nil || ended
		s.mu.Unlock()
		return ok
	}
	s.mu.Unlock()
	return s.stored(ctx, jid, host)
}

// stream gives what happens as server-sent events with Salt's tags, as salt-api's /events does.
func (s *Store) stream(w http.ResponseWriter, r *http.Request) error {
	if err := auth.Need(r.Context(), "host.read", "*"); err != nil {
		return err
	}
	s.ServeStream(w, r, r.URL.Query().Get("tag"))
	return nil
}

// ServeStream writes server-sent events until the reader goes away.
func (s *Store) ServeStream(w http.ResponseWriter, r *http.Request, pattern string) {
	sub := s.Stream.Subscribe(pattern)
	defer sub.Close()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	rc := http.NewResponseController(w)
	_, _ = io.WriteString(w, "retry: 400\n\n")
	_ = rc.Flush()
	beat := time.NewTicker(15 * time.Second)
	defer beat.Stop()
	for {
		var out []byte
		select {
		case <-r.Context().Done():
			return
		case <-beat.C:
			out = []byte(": still here\n\n")
			if n := sub.Lost(); n > 0 {
				b, _ := json.Marshal(map[string]any{"tag": "drover/lost", "data": map[string]int{"events": n}})
				out = []byte("tag: drover/lost\ndata: " + string(b) + "\n\n")
			}
		case t := <-sub.C:
			b, err := json.Marshal(t)
			if err != nil {
				continue
			}
			out = []byte("tag: " + strings.NewReplacer("\n", " ", "\r", " ").Replace(t.Tag) + "\ndata: " + string(b) + "\n\n")
		}
		if _, err := w.Write(out); err != nil {
			return
		}
		if err := rc.Flush(); err != nil {
			return
		}
	}
}

func (s *Store) pageRoutes(srv *web.Server) {
	srv.Page("GET /jobs", pages, "pages/jobs.html", func(r *http.Request) (web.Page, error) {
		const limit = 50
		q := r.URL.Query()
		f := Filter{Host: q.Get("host"), Fun: q.Get("fun"), Author: q.Get("author"), State: q.Get("state"), Search: q.Get("search"), Before: q.Get("before"), Limit: limit + 1}
		js, err := s.List(r.Context(), f)
		if err != nil {
			return web.Page{}, err
		}
		total, err := s.total(r.Context(), f)
		cmd := "drover job list"
		for _, k := range []string{"host", "fun", "author", "state", "search"} {
			if v := q.Get(k); v != "" {
				cmd += " --" + k + " " + cli.Quote(v)
			}
		}
		return web.Page{Title: "Jobs", Data: web.MakeRows(r, js, limit, total, "before", func(j Job) any { return j.ID }), CLI: cmd}, err
	})
	srv.Page("GET /jobs/{id}", pages, "pages/job.html", func(r *http.Request) (web.Page, error) {
		var d struct {
			Job   Job               `json:"job"`
			Args  string            `json:"-"`
			All   []Verdict         `json:"hosts"`
			Hosts web.Rows[Verdict] `json:"-"`
			Live  bool              `json:"-"`
			Seen  int               `json:"-"`
			Grid  template.HTML     `json:"-"`
			One   *Verdict          `json:"-"`
			Text  string            `json:"-"`
		}
		ctx, id := r.Context(), r.PathValue("id")
		var err error
		if d.Job, err = s.Get(ctx, id); err != nil {
			return web.Page{}, err
		}
		if d.All, err = s.Verdicts(ctx, id); err != nil {
			return web.Page{}, err
		}
		slices.SortFunc(d.All, func(a, b Verdict) int { return strings.Compare(a.Host, b.Host) })
		shown := d.All
		if st := r.URL.Query().Get("verdict"); st != "" {
			shown = slices.DeleteFunc(slices.Clone(shown), func(v Verdict) bool { return v.State != st })
		}
		d.Hosts = web.Cut(r, shown, 100, func(v Verdict) string { return v.Host })
		d.Live = d.Job.Ended.IsZero()
		d.Args, d.Grid = d.Job.Spec.Line(), grid(id, d.All)
		for i, v := range d.All {
			if final(v.State) {
				d.Seen++
			}
			if v.Host == r.URL.Query().Get("host") {
				var b strings.Builder
				nested(&b, decoded(v.Return), 0)
				d.One, d.Text = &d.All[i], b.String()
			}
		}
		return web.Page{Title: "Job " + id, Data: d, CLI: "drover job show " + id}, nil
	})
}
