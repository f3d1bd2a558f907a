package release

import (
	"context"
	"embed"
	"net/http"

	"drover/internal/build"
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
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/tags/{name}", ID: "tag-set", Summary: "Make a tag or change it", Tag: tag},
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
			Tags    []Tag    `json:"tags"`
			Targets []Target `json:"targets"`
		}
		var err error
		if data.Tags, err = s.Tags(r.Context()); err != nil {
			return web.Page{}, err
		}
		data.Targets, err = s.Targets(r.Context())
		return web.Page{Title: "Tags and targets", Data: data, CLI: "drover tag list"}, err
	})
	srv.Page("GET /tags/{name}", pages, "pages/tag.html", func(r *http.Request) (web.Page, error) {
		w, err := s.whole(r.Context(), builds, r.PathValue("name"), r.URL.Query().Get("at"))
		return web.Page{Title: "Tag " + w.Name, Data: w, CLI: "drover tag show " + w.Name}, err
	})
}
