package event

import (
	"context"
	"embed"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"drover/internal/cli"
	"drover/internal/db"
	"drover/internal/fault"
	"drover/internal/web"
)

//go:embed pages
var pages embed.FS

// Routes adds the routes of the ledger. need asks whether the caller may do something.
func Routes(srv *web.Server, d *db.DB, need func(ctx context.Context, right, subject string) error) {
	list := func(ctx context.Context, f Filter) ([]Event, error) {
		es := []Event{}
		err := d.Read(ctx, func(tx *db.Tx) error {
			got, err := List(tx, f)
			es = append(es, got...)
			return err
		})
		return es, err
	}
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/events", ID: "event-list", Summary: "Read the ledger", Tag: "event"},
		func(ctx context.Context, in *struct {
			After   int64  `query:"after"`
			Before  int64  `query:"before"`
			Kind    string `query:"kind" maxLength:"100"`
			Subject string `query:"subject" maxLength:"300"`
			Actor   string `query:"actor" maxLength:"100"`
			Newest  bool   `query:"newest"`
			Limit   int    `query:"limit"`
		}) ([]Event, error) {
			return list(ctx, Filter{After: in.After, Before: in.Before, Kind: in.Kind, Subject: in.Subject, Actor: in.Actor, Newest: in.Newest, Limit: in.Limit})
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/audit/verify", ID: "audit-verify", Summary: "Check the hash chain of the whole ledger", Tag: "event"},
		func(ctx context.Context, in *struct {
			Body struct {
				Known *Head `json:"known,omitempty" doc:"a head that was written down before"`
			}
		}) (Head, error) {
			if err := need(ctx, "audit.verify", "ledger"); err != nil {
				return Head{}, err
			}
			return Verify(ctx, d, in.Body.Known)
		})
	srv.HandleFunc("GET /api/v1/events/follow", func(w http.ResponseWriter, r *http.Request) error {
		q := r.URL.Query()
		after, err := strconv.ParseInt(q.Get("after"), 10, 64)
		if err != nil {
			return fault.Invalid("after", "the query has no event number after which to follow").Fix("add ?after=0 to follow from the beginning")
		}
		kind := q.Get("kind")
		if len(kind) > 100 || strings.Trim(kind, "abcdefghijklmnopqrstuvwxyz_.") != "" {
			return fault.Invalid("kind", "%.100q is no kind of event", kind)
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		rc := http.NewResponseController(w)
		enc := json.NewEncoder(w)
		_ = rc.Flush()
		_ = Follow(r.Context(), d, Filter{After: after, Kind: kind, Subject: q.Get("subject"), Actor: q.Get("actor")}, func(es []Event) error {
			for _, e := range es {
				if err := enc.Encode(e); err != nil {
					return err
				}
			}
			return rc.Flush()
		}) // it ends when the reader goes away
		return nil
	})
	srv.Page("GET /events", pages, "pages/events.html", func(r *http.Request) (web.Page, error) {
		const limit = 100
		q := r.URL.Query()
		f := Filter{Kind: q.Get("kind"), Subject: q.Get("subject"), Actor: q.Get("actor"), Newest: true, Limit: limit + 1}
		f.Before, _ = strconv.ParseInt(q.Get("before"), 10, 64)
		var es []Event
		var total int64
		err := d.Read(r.Context(), func(tx *db.Tx) (err error) {
			if total, err = Count(tx, f); err != nil {
				return err
			}
			es, err = List(tx, f)
			return err
		})
		cmd := "drover events"
		for _, k := range []string{"kind", "subject", "actor"} {
			if v := q.Get(k); v != "" {
				cmd += " --" + k + " " + cli.Quote(v)
			}
		}
		return web.Page{Title: "Events", Data: web.MakeRows(r, es, limit, total, "before", func(e Event) any { return e.ID }), CLI: cmd}, err
	})
}
