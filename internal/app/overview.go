package app

import (
	"embed"
	"net/http"
	"slices"

	"drover/internal/build"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/repo"
	"drover/internal/sign"
	"drover/internal/web"
)

//go:embed pages
var pages embed.FS

// overview adds the first page: what runs, what waits, what was done last.
func (s *Server) overview() {
	s.Web.Page("GET /{$}", pages, "pages/overview.html", func(r *http.Request) (web.Page, error) {
		var d struct {
			Builds   []build.Build       `json:"builds"`
			Queue    []build.Task        `json:"queue"`
			Builders []build.BuilderInfo `json:"builders"`
			Channels []repo.Channel      `json:"channels"`
			Signing  sign.Status         `json:"signing"`
			Events   []event.Event       `json:"events"`
		}
		ctx := r.Context()
		var err error
		if d.Builds, err = s.Build.List(ctx, build.Filter{Limit: 12}); err != nil {
			return web.Page{}, err
		}
		if d.Queue, err = s.Build.Queue(ctx); err != nil {
			return web.Page{}, err
		}
		d.Queue = slices.DeleteFunc(d.Queue, func(t build.Task) bool { return t.Parent == 0 })
		if d.Builders, err = s.Build.Builders(ctx); err != nil {
			return web.Page{}, err
		}
		if d.Channels, err = s.Repo.Channels(ctx); err != nil {
			return web.Page{}, err
		}
		if d.Signing, err = s.Sign.Status(ctx); err != nil {
			return web.Page{}, err
		}
		err = s.DB.Read(ctx, func(tx *db.Tx) error {
			d.Events, err = event.List(tx, event.Filter{Newest: true, Limit: 12})
			return err
		})
		return web.Page{Title: "Overview", Data: d, CLI: "drover status"}, err
	})
}
