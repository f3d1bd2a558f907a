package routes

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/cli"
	"drover/internal/fault"
	"drover/internal/repo"
	"drover/internal/repo/mirrors"
	"drover/internal/repo/serving"
	"drover/internal/repo/wire"
	"drover/internal/web"
)

//go:embed pages
var pages embed.FS

type none struct{}

// ByName is a route about one named thing.
type ByName struct {
	Name string `path:"name" maxLength:"100"`
}

// ByPackage is a route about a package of a named channel. Its fields are found because it has
// an exported name.
type ByPackage struct {
	ByName
	Package string `path:"package" maxLength:"200"`
}

// Add adds the routes of snapshots, channels and mirrors.
func Add(srv *web.Server, s *repo.Store, m *mirrors.Store) {
	const tag = "repo"
	s.FileRoutes(srv)
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/channels/{name}/follow", ID: "channel-follow", Summary: "Where a channel points, as soon as that is no longer the given snapshot", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			Snapshot string `query:"snapshot" maxLength:"64" doc:"the snapshot that is known"`
			Wait     int    `query:"wait" minimum:"0" maximum:"60" doc:"seconds to wait for another"`
		}) (wire.State, error) {
			return s.Follow(ctx, in.Name, in.Snapshot, time.Duration(in.Wait)*time.Second)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/channels/{name}/census", ID: "channel-census", Summary: "How many hosts follow a channel, by week and by how long they have", Tag: tag},
		func(ctx context.Context, in *ByName) ([]serving.Hosts, error) {
			if _, err := s.Channel(ctx, in.Name, ""); err != nil {
				return nil, err
			}
			return s.Census(ctx, in.Name)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/snapshots", ID: "snapshot-list", Summary: "List snapshots, newest first", Tag: tag},
		func(ctx context.Context, in *struct {
			Source string `query:"source" maxLength:"100" doc:"only of this tag or mirror"`
			Before int64  `query:"before"`
		}) ([]repo.Snapshot, error) {
			return s.Snapshots(ctx, in.Source, in.Before, 100)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/snapshots/{id}", ID: "snapshot-show", Summary: "A snapshot with its packages", Tag: tag},
		func(ctx context.Context, in *struct {
			ID    string `path:"id" maxLength:"120"`
			Trees string `query:"trees" enum:"all,none" default:"all" doc:"none: without its packages"`
		}) (repo.Content, error) {
			if in.Trees == "none" {
				return s.Bare(ctx, in.ID)
			}
			return s.Content(ctx, in.ID)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/snapshots/{id}/files", ID: "snapshot-files", Summary: "Every file of a snapshot with its checksum", Tag: tag},
		func(ctx context.Context, in *struct {
			ID   string `path:"id" maxLength:"120"`
			Tree string `query:"tree" maxLength:"100"`
		}) ([]repo.TreeFile, error) {
			return s.Files(ctx, in.ID, in.Tree)
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/snapshots/sweep", ID: "snapshot-sweep", Summary: "Remove what nothing keeps", Tag: tag},
		func(ctx context.Context, in *struct {
			Body struct {
				Dry bool `json:"dry,omitempty"`
			}
		}) (repo.Swept, error) {
			return s.Sweep(ctx, in.Body.Dry)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/snapshots/{id}/diff/{to}", ID: "snapshot-diff", Summary: "What differs between two snapshots", Tag: tag},
		func(ctx context.Context, in *struct {
			ID string `path:"id" maxLength:"120"`
			To string `path:"to" maxLength:"120"`
		}) (repo.Diff, error) {
			return s.Diff(ctx, in.ID, in.To)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/channels", ID: "channel-list", Summary: "List channels", Tag: tag},
		func(ctx context.Context, _ *none) ([]repo.Channel, error) { return s.Channels(ctx) })
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/channels/{name}", ID: "channel-show", Summary: "A channel, now or at a point in history", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			At string `query:"at" maxLength:"40"`
		}) (repo.Channel, error) {
			return s.Channel(ctx, in.Name, in.At)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/tags/{name}/published", ID: "tag-published", Summary: "Wait up to a minute until the newest change of a tag is published", Tag: tag},
		func(ctx context.Context, in *ByName) (repo.Channel, error) {
			if _, err := s.Release.Tag(ctx, in.Name, ""); err != nil {
				return repo.Channel{}, err
			}
			if err := s.Published(ctx, in.Name); err != nil {
				return repo.Channel{}, err
			}
			return s.Channel(ctx, in.Name, "")
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/channels/{name}/history", ID: "channel-history", Summary: "Where a channel pointed, newest first", Tag: tag},
		func(ctx context.Context, in *ByName) ([]repo.Channel, error) { return s.History(ctx, in.Name) })
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/channels/{name}", ID: "channel-point", Summary: "Move a channel to a snapshot", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			Body struct {
				Snapshot string `json:"snapshot"`
			}
		}) (none, error) {
			return none{}, s.Point(ctx, in.Name, in.Body.Snapshot)
		})
	channelRoutes(srv, s)
	searchRoutes(srv, s)
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/mirrors", ID: "mirror-list", Summary: "List mirrors", Tag: tag},
		func(ctx context.Context, _ *none) ([]mirrors.Mirror, error) { return m.List(ctx) })
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/mirrors/{name}", ID: "mirror-show", Summary: "A mirror: how it is copied, and what came of it", Tag: tag},
		func(ctx context.Context, in *ByName) (mirrors.Mirror, error) { return m.Get(ctx, in.Name) })
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/mirrors/{name}", ID: "mirror-set", Summary: "Add a mirror or change it", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			Body mirrors.Config
		}) (none, error) {
			return none{}, m.Set(ctx, mirrors.Mirror{Name: in.Name, Config: in.Body})
		})
	web.Route(srv, web.Op{Method: "DELETE", Path: "/api/v1/mirrors/{name}", ID: "mirror-drop", Summary: "End a mirror; its channel and snapshots stay", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			Force bool `query:"force" doc:"give up packages that are not fetched yet"`
		}) (none, error) {
			return none{}, m.Drop(ctx, in.Name, in.Force)
		})
	srv.HandleFunc("GET /keys/mirror/{file}", func(w http.ResponseWriter, r *http.Request) error {
		name, ok := strings.CutSuffix(r.PathValue("file"), ".asc")
		keys, err := m.Get(r.Context(), name)
		if !ok || fault.Code(err) == "mirror_unknown" || err == nil && keys.Keys == "" {
			return fault.NotFound("key_unknown", "there are no keys %.100q", r.PathValue("file")).Fix("see `drover mirror list`")
		}
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/pgp-keys")
		w.Header().Set("Cache-Control", "no-cache")
		_, _ = io.WriteString(w, keys.Keys)
		return nil
	})
	mirrorNumbers(srv, m)
	srv.HandleFunc("POST /api/v1/mirrors/{name}/sync", func(w http.ResponseWriter, r *http.Request) error { return syncHTTP(m, w, r) })
	srv.Page("GET /snapshots", pages, "pages/snapshots.html", func(r *http.Request) (web.Page, error) {
		const limit = 100
		var data struct {
			Channels  web.Rows[repo.Channel]   `json:"channels"`
			Mirrors   web.Rows[mirrors.Mirror] `json:"mirrors"`
			Snapshots web.Rows[repo.Snapshot]  `json:"snapshots"`
		}
		ctx, q := r.Context(), r.URL.Query()
		source := q.Get("source")
		before, _ := strconv.ParseInt(q.Get("before"), 10, 64)
		channels, err := s.Channels(ctx)
		if err != nil {
			return web.Page{}, err
		}
		channels = slices.DeleteFunc(channels, func(c repo.Channel) bool {
			return source != "" && c.Name != source && !strings.HasPrefix(c.Name, source+"/")
		})
		data.Channels = web.Cut(r, channels, limit, func(c repo.Channel) string { return c.Name })
		ms, err := m.List(ctx)
		if err != nil {
			return web.Page{}, err
		}
		ms = slices.DeleteFunc(ms, func(m mirrors.Mirror) bool { return source != "" && m.Name != source })
		data.Mirrors = web.Rows[mirrors.Mirror]{Rows: ms, Total: int64(len(ms))}
		total, err := s.Count(ctx, source)
		if err != nil {
			return web.Page{}, err
		}
		ss, err := s.Snapshots(ctx, source, before, limit+1)
		data.Snapshots = web.MakeRows(r, ss, limit, total, "before", func(x repo.Snapshot) any { return x.Since })
		cmd := "drover snapshot list"
		if source != "" {
			cmd += " --source " + cli.Quote(source)
		}
		return web.Page{Title: "Snapshots and channels", Data: data, CLI: cmd}, err
	})
	srv.Page("GET /snapshots/{id}", pages, "pages/snapshot.html", func(r *http.Request) (web.Page, error) {
		var data struct {
			repo.View
			Next string `json:"next,omitempty"` // query of the part that follows
		}
		q := r.URL.Query()
		from, _ := strconv.Atoi(q.Get("after"))
		var err error
		if data.View, err = s.Look(r.Context(), r.PathValue("id"), q.Get("tree"), q.Get("q"), from, 200); err != nil {
			return web.Page{}, err
		}
		if data.More > 0 {
			q.Del("format")
			q.Set("after", strconv.Itoa(data.More))
			data.Next = "?" + q.Encode()
		}
		return web.Page{Title: "Snapshot", Data: data, CLI: "drover snapshot show " + data.ID[:12]}, nil
	})
}

// channelRoutes adds the routes of lines, and those that move channels or keep them.
func channelRoutes(srv *web.Server, s *repo.Store) {
	const tag = "repo"
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/lines", ID: "line-list", Summary: "List lines of channels", Tag: tag},
		func(ctx context.Context, _ *none) ([]repo.Line, error) { return s.Lines(ctx) })
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/lines/{name}", ID: "line-set", Summary: "Make a line of channels or change it", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			Body repo.Line
		}) (none, error) {
			in.Body.Name = in.Name
			return none{}, s.SetLine(ctx, in.Body)
		})
	web.Route(srv, web.Op{Method: "DELETE", Path: "/api/v1/lines/{name}", ID: "line-drop", Summary: "End a line; its channels stay", Tag: tag},
		func(ctx context.Context, in *ByName) (none, error) { return none{}, s.DropLine(ctx, in.Name) })
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/channels/{name}/plan", ID: "channel-plan", Summary: "What promoting a channel would change, and what the gate says", Tag: tag},
		func(ctx context.Context, in *ByName) (repo.Plan, error) { return s.Plan(ctx, in.Name) })
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/channels/{name}/promote", ID: "channel-promote", Summary: "Move a stage of a line to what the stage before it has", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			Body repo.Move
		}) (repo.Plan, error) {
			return s.Promote(ctx, in.Name, in.Body)
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/channels/{name}/rollback", ID: "channel-rollback", Summary: "Move a channel back to a state that it had", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			Body struct {
				To     string `json:"to,omitempty" maxLength:"120" doc:"snapshot; the state before the present one when empty"`
				Reason string `json:"reason,omitempty" maxLength:"1000"`
			}
		}) (repo.Channel, error) {
			return s.Rollback(ctx, in.Name, in.Body.To, in.Body.Reason)
		})
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/channels/{name}/freeze", ID: "channel-freeze", Summary: "Keep a channel where it is", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			Body repo.Note
		}) (none, error) {
			return none{}, s.SetFreeze(ctx, repo.Freeze{Channel: in.Name, Reason: in.Body.Reason, Expires: in.Body.Expires})
		})
	web.Route(srv, web.Op{Method: "DELETE", Path: "/api/v1/channels/{name}/freeze", ID: "channel-thaw", Summary: "Let a channel move again", Tag: tag},
		func(ctx context.Context, in *ByName) (none, error) { return none{}, s.Thaw(ctx, in.Name) })
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/channels/{name}/holds", ID: "channel-holds", Summary: "What a channel holds back", Tag: tag},
		func(ctx context.Context, in *ByName) ([]repo.Hold, error) { return s.Holds(ctx, in.Name) })
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/channels/{name}/holds/{package}", ID: "channel-hold", Summary: "Hold a package of a channel at its version", Tag: tag},
		func(ctx context.Context, in *struct {
			ByPackage
			Body repo.Note
		}) (none, error) {
			return none{}, s.SetHold(ctx, repo.Hold{Channel: in.Name, Package: in.Package, Reason: in.Body.Reason, Expires: in.Body.Expires})
		})
	web.Route(srv, web.Op{Method: "DELETE", Path: "/api/v1/channels/{name}/holds/{package}", ID: "channel-unhold", Summary: "Let a package go on with the next promotion", Tag: tag},
		func(ctx context.Context, in *ByPackage) (none, error) {
			return none{}, s.DropHold(ctx, in.Name, in.Package)
		})
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/snapshots/{id}/names/{name}", ID: "snapshot-name", Summary: "Give a snapshot a name, and keep it", Tag: tag},
		func(ctx context.Context, in *struct {
			ID string `path:"id" maxLength:"120"`
			ByName
			Body repo.Note
		}) (none, error) {
			return none{}, s.SetName(ctx, in.Name, in.ID, in.Body.Reason)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/snapshot-names", ID: "snapshot-names", Summary: "List the names of snapshots", Tag: tag},
		func(ctx context.Context, _ *none) ([]repo.Named, error) { return s.Names(ctx) })
	web.Route(srv, web.Op{Method: "DELETE", Path: "/api/v1/snapshot-names/{name}", ID: "snapshot-unname", Summary: "Take a name away; the snapshot goes when nothing else keeps it", Tag: tag},
		func(ctx context.Context, in *ByName) (none, error) { return none{}, s.DropName(ctx, in.Name) })
}

// searchRoutes adds the routes and pages that look across packages, and those of lines and
// differences.
func searchRoutes(srv *web.Server, s *repo.Store) {
	const tag = "repo"
	type found struct {
		Hits []repo.Hit `json:"hits"`
		More bool       `json:"more"`
	}
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/search", ID: "search", Summary: "Search the packages of a snapshot by name, file, provided name or changelog", Tag: tag},
		func(ctx context.Context, in *struct {
			Channel string `query:"channel" required:"true" maxLength:"120" doc:"snapshot: an id, a name, a channel or CHANNEL@TIME"`
			In      string `query:"in" default:"name" maxLength:"20" doc:"name, file, provides or changelog"`
			Query   string `query:"q" required:"true" maxLength:"200"`
		}) (f found, err error) {
			f.Hits, f.More, err = s.Search(ctx, in.Channel, in.In, in.Query)
			return f, err
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/rpms/{name}", ID: "rpm-across", Summary: "Which versions of a package the channels have", Tag: tag},
		func(ctx context.Context, in *struct {
			Name string `path:"name" maxLength:"200"`
		}) ([]repo.Standing, error) {
			return s.Across(ctx, in.Name)
		})
	srv.Page("GET /lines", pages, "pages/lines.html", func(r *http.Request) (web.Page, error) {
		ls, err := s.Lines(r.Context())
		return web.Page{Title: "Lines", Data: web.Rows[repo.Line]{Rows: ls, Total: int64(len(ls))}, CLI: "drover line list"}, err
	})
	srv.Page("GET /lines/{name}", pages, "pages/line.html", func(r *http.Request) (web.Page, error) {
		p, err := s.Draw(r.Context(), r.PathValue("name"))
		if err != nil {
			return web.Page{}, err
		}
		return web.Page{Title: "Line", Data: p, CLI: "drover channel plan " + cli.Quote(p.Name+"/"+p.Stages[len(p.Stages)-1])}, nil
	})
	srv.Page("GET /snapshots/{id}/diff/{to}", pages, "pages/diff.html", func(r *http.Request) (web.Page, error) {
		d, err := s.Diff(r.Context(), r.PathValue("id"), r.PathValue("to"))
		if err != nil {
			return web.Page{}, err
		}
		return web.Page{Title: "Difference", Data: d, CLI: "drover snapshot diff " + d.From[:12] + " " + d.To[:12]}, nil
	})
	srv.Page("GET /rpms/{name}", pages, "pages/rpm.html", func(r *http.Request) (web.Page, error) {
		var data struct {
			Name     string          `json:"name"`
			Channels []repo.Standing `json:"channels"`
		}
		var err error
		data.Name = r.PathValue("name")
		data.Channels, err = s.Across(r.Context(), data.Name)
		return web.Page{Title: "Package", Data: data, CLI: "drover rpm " + cli.Quote(data.Name)}, err
	})
	srv.Page("GET /search", pages, "pages/search.html", func(r *http.Request) (web.Page, error) {
		q := r.URL.Query()
		data := struct {
			found
			Query    string   `json:"query"`
			In       string   `json:"in"`
			Channel  string   `json:"channel"`
			Kinds    []string `json:"kinds"`
			Channels []string `json:"channels"`
		}{found{Hits: []repo.Hit{}}, q.Get("q"), cmp.Or(q.Get("in"), "name"), q.Get("channel"), repo.SearchKinds(), []string{}}
		cs, err := s.Channels(r.Context())
		if err != nil {
			return web.Page{}, err
		}
		for _, c := range cs {
			data.Channels = append(data.Channels, c.Name)
		}
		if data.Channel == "" && len(data.Channels) > 0 {
			data.Channel = data.Channels[0]
		}
		if data.Query != "" {
			data.Hits, data.More, err = s.Search(r.Context(), data.Channel, data.In, data.Query)
		}
		return web.Page{Title: "Search", Data: data, CLI: "drover search " + cli.Quote(cmp.Or(data.Query, "WORD")) + " --channel " + cli.Quote(cmp.Or(data.Channel, "CHANNEL")) + " --in " + data.In}, err
	})
}

// mirrorNumbers adds what is known of mirrors to /metrics.
func mirrorNumbers(srv *web.Server, s *mirrors.Store) {
	since := func(t time.Time) float64 {
		if t.IsZero() {
			return math.Inf(1)
		}
		return time.Since(t).Seconds()
	}
	for _, n := range []struct {
		name, help string
		of         func(mirrors.Mirror) float64
	}{
		{"lag_seconds", "Since a sync of the mirror last went well.", func(m mirrors.Mirror) float64 { return since(m.Good) }},
		{"age_seconds", "Since upstream made what is mirrored, as it says.", func(m mirrors.Mirror) float64 { return since(m.Upstream) }},
		{"failures", "Syncs in a row that failed.", func(m mirrors.Mirror) float64 { return float64(m.Failures) }},
		{"warning", "1 when there is something to look at.", func(m mirrors.Mirror) float64 { return float64(min(len(m.Warning), 1)) }},
		{"absent_packages", "Packages on demand that are not here yet.", func(m mirrors.Mirror) float64 { return float64(m.Absent) }},
		{"fetched_bytes", "Fetched by the last sync that brought something.", func(m mirrors.Mirror) float64 { return float64(m.Fetched) }},
		{"duration_seconds", "Of the last sync that brought something.", func(m mirrors.Mirror) float64 { return m.Took }},
	} {
		srv.Gauges("drover_mirror_"+n.name, n.help, "mirror", func() map[string]float64 {
			out := map[string]float64{}
			ms, err := s.List(context.Background())
			if err != nil {
				s.Repo.Log.Error("numbers of mirrors", "err", err)
			}
			for _, m := range ms {
				out[m.Name] = n.of(m)
			}
			return out
		})
	}
}

// syncHTTP syncs a mirror and tells how far it is, a line of JSON at a time.
func syncHTTP(s *mirrors.Store, w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	rc := http.NewResponseController(w)
	lines := make(chan mirrors.Progress, 1)
	done := make(chan struct{})
	began := false
	go func() {
		defer close(done)
		for p := range lines {
			began = true
			_ = enc.Encode(mirrors.SyncLine{Progress: p})
			_ = rc.Flush()
			time.Sleep(100 * time.Millisecond) // a person reads no faster
		}
	}()
	sync := s.Sync
	if r.URL.Query().Get("accept_rollback") == "true" {
		sync = s.SyncBack
	}
	id, err := sync(r.Context(), r.PathValue("name"), func(p mirrors.Progress) {
		select {
		case lines <- p:
		default:
		}
	})
	close(lines)
	<-done
	if err != nil && !began {
		return err
	}
	l := mirrors.SyncLine{Snapshot: id}
	if m, err := s.Get(r.Context(), r.PathValue("name")); err == nil {
		l.Warning = m.Warning
	}
	if err != nil {
		e := fault.As(err)
		if e.Kind == fault.KindInternal {
			s.Repo.Log.Error("mirror", "name", r.PathValue("name"), "err", err)
		}
		l.Problem = &web.Problem{Status: e.Status(), Code: e.Code, Detail: e.Msg, Remedy: e.Remedy}
	}
	_ = enc.Encode(l)
	return nil
}
