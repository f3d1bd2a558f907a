package repo

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/cli"
	"drover/internal/fault"
	"drover/internal/web"
)

//go:embed pages
var pages embed.FS

type none struct{}

// ByName is a route about one named thing.
type ByName struct {
	Name string `path:"name" maxLength:"100"`
}

// Routes adds the routes of snapshots, channels and mirrors.
func (s *Store) Routes(srv *web.Server) {
	const tag = "repo"
	srv.HandleFunc("GET /snapshots/{id}/{tree}/{path...}", s.snapshotFile)
	srv.HandleFunc("GET /channels/{name}/{tree}/mirrorlist", s.mirrorList)
	srv.HandleFunc("GET /channels/{name}/at/{id}/{tree}/{path...}", s.channelFile)
	srv.HandleFunc("GET /channels/{name}/{tree}/{path...}", s.channelFile)
	srv.HandleFunc("GET /channels/{file}", s.repoFile)
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/snapshots", ID: "snapshot-list", Summary: "List snapshots, newest first", Tag: tag},
		func(ctx context.Context, in *struct {
			Source string `query:"source" maxLength:"100" doc:"only of this tag or mirror"`
			Before int64  `query:"before"`
		}) ([]Snapshot, error) {
			return s.Snapshots(ctx, in.Source, in.Before, 100)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/snapshots/{id}", ID: "snapshot-show", Summary: "A snapshot with its packages", Tag: tag},
		func(ctx context.Context, in *struct {
			ID string `path:"id" maxLength:"64"`
		}) (Content, error) {
			return s.Content(ctx, in.ID)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/snapshots/{id}/diff/{to}", ID: "snapshot-diff", Summary: "What differs between two snapshots", Tag: tag},
		func(ctx context.Context, in *struct {
			ID string `path:"id" maxLength:"64"`
			To string `path:"to" maxLength:"64"`
		}) (Diff, error) {
			return s.Diff(ctx, in.ID, in.To)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/channels", ID: "channel-list", Summary: "List channels", Tag: tag},
		func(ctx context.Context, _ *none) ([]Channel, error) { return s.Channels(ctx) })
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/channels/{name}", ID: "channel-show", Summary: "A channel, now or at a point in history", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			At string `query:"at" maxLength:"40"`
		}) (Channel, error) {
			return s.Channel(ctx, in.Name, in.At)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/tags/{name}/published", ID: "tag-published", Summary: "Wait up to a minute until the newest change of a tag is published", Tag: tag},
		func(ctx context.Context, in *ByName) (Channel, error) {
			if _, err := s.Release.Tag(ctx, in.Name, ""); err != nil {
				return Channel{}, err
			}
			if err := s.Published(ctx, in.Name); err != nil {
				return Channel{}, err
			}
			return s.Channel(ctx, in.Name, "")
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/channels/{name}/history", ID: "channel-history", Summary: "Where a channel pointed, newest first", Tag: tag},
		func(ctx context.Context, in *ByName) ([]Channel, error) { return s.History(ctx, in.Name) })
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/channels/{name}", ID: "channel-point", Summary: "Move a channel to a snapshot", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			Body struct {
				Snapshot string `json:"snapshot"`
			}
		}) (none, error) {
			return none{}, s.Point(ctx, in.Name, in.Body.Snapshot)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/mirrors", ID: "mirror-list", Summary: "List mirrors", Tag: tag},
		func(ctx context.Context, _ *none) ([]Mirror, error) { return s.Mirrors(ctx) })
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/mirrors/{name}", ID: "mirror-set", Summary: "Add a mirror or change its address", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			Body struct {
				URL  string `json:"url"`
				Arch string `json:"arch"`
			}
		}) (none, error) {
			return none{}, s.SetMirror(ctx, Mirror{Name: in.Name, URL: in.Body.URL, Arch: in.Body.Arch})
		})
	srv.HandleFunc("POST /api/v1/mirrors/{name}/sync", s.syncHTTP)
	srv.Page("GET /snapshots", pages, "pages/snapshots.html", func(r *http.Request) (web.Page, error) {
		const limit = 100
		var data struct {
			Channels  web.Rows[Channel]  `json:"channels"`
			Mirrors   web.Rows[Mirror]   `json:"mirrors"`
			Snapshots web.Rows[Snapshot] `json:"snapshots"`
		}
		ctx, q := r.Context(), r.URL.Query()
		source := q.Get("source")
		before, _ := strconv.ParseInt(q.Get("before"), 10, 64)
		channels, err := s.Channels(ctx)
		if err != nil {
			return web.Page{}, err
		}
		channels = slices.DeleteFunc(channels, func(c Channel) bool { return source != "" && c.Name != source })
		data.Channels = web.Cut(r, channels, limit, func(c Channel) string { return c.Name })
		mirrors, err := s.Mirrors(ctx)
		if err != nil {
			return web.Page{}, err
		}
		mirrors = slices.DeleteFunc(mirrors, func(m Mirror) bool { return source != "" && m.Name != source })
		data.Mirrors = web.Rows[Mirror]{Rows: mirrors, Total: int64(len(mirrors))}
		total, err := s.Count(ctx, source)
		if err != nil {
			return web.Page{}, err
		}
		ss, err := s.Snapshots(ctx, source, before, limit+1)
		data.Snapshots = web.MakeRows(r, ss, limit, total, "before", func(x Snapshot) any { return x.Since })
		cmd := "drover snapshot list"
		if source != "" {
			cmd += " --source " + cli.Quote(source)
		}
		return web.Page{Title: "Snapshots and channels", Data: data, CLI: cmd}, err
	})
	srv.Page("GET /snapshots/{id}", pages, "pages/snapshot.html", func(r *http.Request) (web.Page, error) {
		var data struct {
			Snapshot
			Trees    []treeSize        `json:"trees"`
			Tree     string            `json:"tree"` // whose packages are shown
			Contents web.Rows[Package] `json:"contents"`
		}
		q := r.URL.Query()
		c, err := s.Content(r.Context(), r.PathValue("id"))
		if err != nil {
			return web.Page{}, err
		}
		data.Snapshot, data.Tree = c.Snapshot, q.Get("tree")
		for _, t := range slices.Sorted(maps.Keys(c.Trees)) {
			data.Trees = append(data.Trees, treeSize{t, len(c.Trees[t])})
			if data.Tree == "" {
				data.Tree = t
			}
		}
		ps := slices.DeleteFunc(c.Trees[data.Tree], func(p Package) bool { return !strings.Contains(p.File, q.Get("q")) })
		data.Contents = web.Cut(r, ps, 200, func(p Package) string { return p.File })
		return web.Page{Title: "Snapshot", Data: data, CLI: "drover snapshot show " + c.ID[:min(12, len(c.ID))]}, nil
	})
}

// treeSize is a tree of a snapshot and how many packages it has.
type treeSize struct {
	Name     string `json:"name"`
	Packages int    `json:"packages"`
}

// syncLine is a line of a sync's answer: progress, and at the end the snapshot or the fault.
type syncLine struct {
	Progress
	Snapshot string       `json:"snapshot,omitempty"`
	Problem  *web.Problem `json:"problem,omitempty"`
}

// syncHTTP syncs a mirror and tells how far it is, a line of JSON at a time.
func (s *Store) syncHTTP(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	rc := http.NewResponseController(w)
	lines := make(chan Progress, 1)
	done := make(chan struct{})
	began := false
	go func() {
		defer close(done)
		for p := range lines {
			began = true
			_ = enc.Encode(syncLine{Progress: p})
			_ = rc.Flush()
			time.Sleep(100 * time.Millisecond) // a person reads no faster
		}
	}()
	id, err := s.Sync(r.Context(), r.PathValue("name"), func(p Progress) {
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
	l := syncLine{Snapshot: id}
	if err != nil {
		e := fault.As(err)
		if e.Kind == fault.KindInternal {
			s.Log.Error("mirror", "name", r.PathValue("name"), "err", err)
		}
		l.Problem = &web.Problem{Status: e.Status(), Code: e.Code, Detail: e.Msg, Remedy: e.Remedy}
	}
	_ = enc.Encode(l)
	return nil
}

// SnapshotVerbs is `drover snapshot`.
type SnapshotVerbs struct {
	List snapshotList `cmd:"" help:"List snapshots, newest first." example:"drover snapshot list --source stream-10"`
	Show snapshotShow `cmd:"" help:"A snapshot with its packages." example:"drover snapshot show c837ea6f9858"`
	Diff snapshotDiff `cmd:"" help:"What differs between two snapshots." example:"drover snapshot diff c837ea6f9858 f08ede2d2de4"`
}

// ChannelVerbs is `drover channel`.
type ChannelVerbs struct {
	List    channelList    `cmd:"" help:"List channels." example:"drover channel list"`
	History channelHistory `cmd:"" help:"Where a channel pointed, newest first." example:"drover channel history stream-10"`
	Set     channelSet     `cmd:"" help:"Move a channel to a snapshot: promote, or roll back." example:"drover channel set stream-10 c837ea6f9858"`
}

// MirrorVerbs is `drover mirror`.
type MirrorVerbs struct {
	List mirrorList `cmd:"" help:"List mirrors." example:"drover mirror list"`
	Set  mirrorSet  `cmd:"" help:"Add a mirror or change its address." example:"drover mirror set baseos https://mirror.stream.centos.org/10-stream/BaseOS/x86_64/os/"`
	Sync mirrorSync `cmd:"" help:"Copy upstream into a snapshot and move the channel to it." example:"drover mirror sync baseos"`
}

type snapshotList struct {
	Source string `help:"Only of this tag or mirror."`
}

// Run lists snapshots.
func (c snapshotList) Run(e *cli.Env) error {
	var ss []Snapshot
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/snapshots?source="+url.QueryEscape(c.Source), nil, &ss); err != nil {
		return err
	}
	return e.Show(ss, func(w io.Writer) {
		cli.Table(w, "SNAPSHOT KIND SOURCE PACKAGES CREATED", func(row func(...any)) {
			for _, x := range ss {
				row(x.ID[:12], x.Kind, x.Source, x.Packages, x.Created.Format(time.DateTime))
			}
		})
	})
}

type snapshotShow struct {
	ID string `arg:"" help:"Snapshot, or the first letters of it."`
}

// Run shows a snapshot.
func (c snapshotShow) Run(e *cli.Env) error {
	var x Content
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/snapshots/"+url.PathEscape(c.ID), nil, &x); err != nil {
		return err
	}
	return e.Show(x, func(w io.Writer) {
		fmt.Fprintf(w, "%s\n%s %s, %d packages, %s\n", x.ID, x.Kind, x.Source, x.Packages, x.Created.Format(time.DateTime))
		for t, ps := range x.Trees {
			for _, p := range ps {
				fmt.Fprintf(w, "%-16s %s  %s\n", t, p.File, p.Key)
			}
		}
	})
}

type snapshotDiff struct {
	From string `arg:"" help:"Snapshot."`
	To   string `arg:"" help:"Snapshot."`
}

// Run compares snapshots.
func (c snapshotDiff) Run(e *cli.Env) error {
	var d Diff
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/snapshots/"+url.PathEscape(c.From)+"/diff/"+url.PathEscape(c.To), nil, &d); err != nil {
		return err
	}
	return e.Show(d, func(w io.Writer) {
		for _, n := range d.Removed {
			fmt.Fprintln(w, "-", n)
		}
		for _, n := range d.Added {
			fmt.Fprintln(w, "+", n)
		}
	})
}

func showChannels(e *cli.Env, path string) error {
	var cs []Channel
	if err := e.Client.Call(e.Ctx, "GET", path, nil, &cs); err != nil {
		return err
	}
	return e.Show(cs, func(w io.Writer) {
		cli.Table(w, "CHANNEL SNAPSHOT KEY SINCE UNTIL", func(row func(...any)) {
			for _, c := range cs {
				until := "now"
				if c.Until != 0 {
					until = strconv.FormatInt(c.Until, 10)
				}
				row(c.Name, c.Snapshot[:12], c.Key, c.Since, until)
			}
		})
	})
}

type channelList struct{}

// Run lists channels.
func (channelList) Run(e *cli.Env) error { return showChannels(e, "/api/v1/channels") }

type channelHistory struct {
	Channel string `arg:"" help:"Name of the channel."`
}

// Run shows where a channel pointed.
func (c channelHistory) Run(e *cli.Env) error {
	return showChannels(e, "/api/v1/channels/"+url.PathEscape(c.Channel)+"/history")
}

type channelSet struct {
	Channel  string `arg:"" help:"Name of the channel."`
	Snapshot string `arg:"" help:"Snapshot, or the first letters of it."`
}

// Run moves a channel.
func (c channelSet) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/channels/"+url.PathEscape(c.Channel), map[string]string{"snapshot": c.Snapshot}, nil)
}

type mirrorList struct{}

// Run lists mirrors.
func (mirrorList) Run(e *cli.Env) error {
	var ms []Mirror
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/mirrors", nil, &ms); err != nil {
		return err
	}
	return e.Show(ms, func(w io.Writer) {
		cli.Table(w, "MIRROR ARCH URL SYNCED OUTCOME", func(row func(...any)) {
			for _, m := range ms {
				at := "never"
				if !m.Synced.IsZero() {
					at = m.Synced.Format(time.DateTime)
				}
				row(m.Name, m.Arch, m.URL, at, m.Outcome)
			}
		})
	})
}

type mirrorSet struct {
	Name string `arg:"" help:"Name of the mirror, and of its channel."`
	URL  string `arg:"" help:"Directory that holds repodata/."`
	Arch string `default:"x86_64" help:"Arch of its packages."`
}

// Run adds a mirror.
func (c mirrorSet) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/mirrors/"+url.PathEscape(c.Name), map[string]string{"url": c.URL, "arch": c.Arch}, nil)
}

type mirrorSync struct {
	Name string `arg:"" help:"Name of the mirror."`
}

// Run syncs a mirror and shows how far it is.
func (c mirrorSync) Run(e *cli.Env) error {
	resp, err := e.Client.Do(e.Ctx, "POST", "/api/v1/mirrors/"+url.PathEscape(c.Name)+"/sync", nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var l syncLine
		if err := dec.Decode(&l); err != nil {
			return fault.Unavailable("answer_cut", "the server went away during the sync").Wrap(err).Fix("sync again: it goes on where it was")
		}
		if l.Problem != nil {
			return fault.FromStatus(l.Problem.Status, l.Problem.Code, l.Problem.Detail, l.Problem.Remedy)
		}
		if l.Snapshot != "" {
			if e.Terminal {
				fmt.Fprintln(e.Err)
			}
			return e.Show(map[string]string{"snapshot": l.Snapshot}, func(w io.Writer) { fmt.Fprintln(w, l.Snapshot) })
		}
		if e.Terminal {
			fmt.Fprintf(e.Err, "\r%d of %d packages, %s fetched ", l.Done, l.Packages, web.Bytes(l.Bytes))
		}
	}
}
