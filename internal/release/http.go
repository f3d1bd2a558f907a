package release

import (
	"context"
	"embed"
	"net/http"
	"slices"
	"strings"

	"drover/internal/build"
	"drover/internal/cli"
	"drover/internal/web"
)

//go:embed pages
var pages embed.FS

type none struct{}

// ByName is a route about one named thing.
type ByName struct {
	Name string `path:"name" maxLength:"100"`
}

// Whole is a tag with what it holds.
type Whole struct {
	Tag
	Builds []build.Build `json:"builds"`
}

func (s *Store) whole(ctx context.Context, builds *build.Store, name, at string) (w Whole, err error) {
	if w.Tag, err = s.Tag(ctx, name, at); err != nil {
		return w, err
	}
	w.Builds = []build.Build{}
	ts, err := s.Content(ctx, name, at)
	if err != nil {
		return w, err
	}
	for _, t := range ts {
		b, err := builds.Get(ctx, t.Build)
		if err != nil {
			return w, err
		}
		w.Builds = append(w.Builds, b)
	}
	return w, nil
}

// Routes adds the routes of tags and targets.
func (s *Store) Routes(srv *web.Server, builds *build.Store) {
	const tag = "release"
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/tags", ID: "tag-list", Summary: "List tags", Tag: tag},
		func(ctx context.Context, _ *none) ([]Tag, error) { return s.Tags(ctx) })
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/tags/{name}", ID: "tag-show", Summary: "A tag with the latest build of each package, now or at a point in history", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			At string `query:"at" maxLength:"40" doc:"event number or time"`
		}) (Whole, error) {
			return s.whole(ctx, builds, in.Name, in.At)
		})
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/tags/{name}", ID: "tag-set", Summary: "Make a tag or change it", Tag: tag, MaxBody: 8 << 20},
		func(ctx context.Context, in *struct {
			ByName
			Body Tag
		}) (none, error) {
			in.Body.Name = in.Name
			return none{}, s.SetTag(ctx, in.Body)
		})
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/tags/{name}/builds/{ref}", ID: "tag-build", Summary: "Put a build into a tag", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			Ref string `path:"ref" maxLength:"300"`
		}) (none, error) {
			return none{}, s.TagBuild(ctx, builds, in.Name, in.Ref)
		})
	web.Route(srv, web.Op{Method: "DELETE", Path: "/api/v1/tags/{name}/builds/{ref}", ID: "tag-untag", Summary: "Take a build out of a tag", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			Ref string `path:"ref" maxLength:"300"`
		}) (none, error) {
			return none{}, s.UntagBuild(ctx, builds, in.Name, in.Ref)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/targets", ID: "target-list", Summary: "List targets", Tag: tag},
		func(ctx context.Context, _ *none) ([]Target, error) { return s.Targets(ctx) })
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/targets/{name}", ID: "target-set", Summary: "Make a target or change it", Tag: tag},
		func(ctx context.Context, in *struct {
			ByName
			Body struct {
				BuildTag string `json:"build_tag"`
				DestTag  string `json:"dest_tag"`
			}
		}) (none, error) {
			return none{}, s.SetTarget(ctx, Target{Name: in.Name, BuildTag: in.Body.BuildTag, DestTag: in.Body.DestTag})
		})
	srv.Page("GET /tags", pages, "pages/tags.html", func(r *http.Request) (web.Page, error) {
		var data struct {
			Tags    web.Rows[Tag] `json:"tags"`
			Targets []Target      `json:"targets"`
		}
		q := r.URL.Query().Get("q")
		tags, err := s.Tags(r.Context())
		if err != nil {
			return web.Page{}, err
		}
		tags = slices.DeleteFunc(tags, func(t Tag) bool { return !strings.Contains(t.Name, q) })
		data.Tags = web.Cut(r, tags, 100, func(t Tag) string { return t.Name })
		data.Targets, err = s.Targets(r.Context())
		data.Targets = slices.DeleteFunc(data.Targets, func(t Target) bool { return !strings.Contains(t.Name+" "+t.BuildTag+" "+t.DestTag, q) })
		return web.Page{Title: "Tags and targets", Data: data, CLI: "drover tag list"}, err
	})
	srv.Page("GET /tags/{name}", pages, "pages/tag.html", func(r *http.Request) (web.Page, error) {
		var data struct {
			Tag
			At     string                `json:"at,omitempty"`
			Builds web.Rows[build.Build] `json:"builds"`
		}
		name, q := r.PathValue("name"), r.URL.Query()
		data.At = q.Get("at")
		var err error
		if data.Tag, err = s.Tag(r.Context(), name, data.At); err != nil {
			return web.Page{}, err
		}
		held, err := s.Content(r.Context(), name, data.At)
		if err != nil {
			return web.Page{}, err
		}
		held = slices.DeleteFunc(held, func(t Tagged) bool { return !strings.Contains(t.Package, q.Get("q")) })
		slices.SortFunc(held, func(a, b Tagged) int { return strings.Compare(a.Package, b.Package) })
		part := web.Cut(r, held, 100, func(t Tagged) string { return t.Package })
		data.Builds = web.Rows[build.Build]{Rows: []build.Build{}, Total: part.Total, Next: part.Next, First: part.First}
		for _, t := range part.Rows {
			b, err := builds.Get(r.Context(), t.Build)
			if err != nil {
				return web.Page{}, err
			}
			data.Builds.Rows = append(data.Builds.Rows, b)
		}
		cmd := "drover tag show " + cli.Quote(name)
		if data.At != "" {
			cmd += " --at " + cli.Quote(data.At)
		}
		return web.Page{Title: "Tag " + name, Data: data, CLI: cmd}, nil
	})
}
