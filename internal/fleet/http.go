package fleet

import (
	"cmp"
	"compress/gzip"
	"context"
	"embed"
	"encoding/json"
	"html/template"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/cli"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/fleet/selector"
	"drover/internal/fleet/wire"
	"drover/internal/web"
)

//go:embed pages
var pages embed.FS

type none struct{}

// ByHost is a route about one host.
type ByHost struct {
	Name string `path:"name" maxLength:"253"`
}

// Sealed is a message that the server has signed.
type Sealed struct {
	Sealed []byte `json:"sealed"`
}

// Pin is what a person compares, or gives an agent, to know this server.
type Pin struct {
	Pin string   `json:"pin"`
	Bus []string `json:"bus"`
}

// At reads a point in time that a person names: RFC 3339, or a date.
func At(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04", time.DateOnly} {
		if t, err := time.Parse(form, text); err == nil {
			return t.UnixMicro(), nil
		}
	}
	return 0, fault.Invalid("time", "%.60q is no time", text).Fix("give it as 2026-11-24T03:00:00Z or 2026-11-24")
}

// Routes adds the routes of hosts and groups. jobs gives what a host's page shows of its jobs.
func (s *Store) Routes(srv *web.Server, jobs func(ctx context.Context, host string) (any, error)) {
	s.agentRoutes(srv)
	const tag = "fleet"
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/hosts", ID: "host-list", Summary: "List hosts, all or those that a target means", Tag: tag},
		func(ctx context.Context, in *struct {
			State  string `query:"state" enum:",pending,accepted,rejected,revoked"`
			Target string `query:"target" maxLength:"16384"`
			Form   string `query:"form" maxLength:"20" doc:"how target is written"`
		}) ([]Host, error) {
			return s.Hosts(ctx, in.State, cmp.Or(selector.Form(in.Form), selector.Glob), in.Target)
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/hosts/select", ID: "host-select", Summary: "The names of the hosts that a target means", Tag: tag, MaxBody: 2 << 20},
		func(ctx context.Context, in *struct {
			Body struct {
				Target string `json:"target" maxLength:"1048576"`
				Form   string `json:"form,omitempty" maxLength:"20"`
			}
		}) (map[string][]string, error) {
			names, err := s.SelectNames(ctx, cmp.Or(selector.Form(in.Body.Form), selector.Query), in.Body.Target)
			return map[string][]string{"hosts": names}, err
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/hosts/{name}", ID: "host-show", Summary: "A host", Tag: tag},
		func(ctx context.Context, in *ByHost) (Host, error) { return s.Host(ctx, in.Name) })
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/hosts/{name}/facts", ID: "host-facts", Summary: "What a host tells of itself, now or at a time, or how it changed", Tag: tag},
		func(ctx context.Context, in *struct {
			ByHost
			Kind    string `query:"kind" enum:",fact,package,service,port,mine"`
			Search  string `query:"search" maxLength:"200"`
			At      string `query:"at" maxLength:"40"`
			History bool   `query:"history"`
			Limit   int    `query:"limit" minimum:"0" maximum:"20000"`
		}) ([]Fact, error) {
			at, err := At(in.At)
			if err != nil {
				return nil, err
			}
			return s.Facts(ctx, in.Name, FactFilter{Kind: in.Kind, Search: in.Search, At: at, History: in.History, Limit: in.Limit})
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/hosts/{name}/presence", ID: "host-presence", Summary: "When a host came and went, newest first", Tag: tag},
		func(ctx context.Context, in *ByHost) ([]Change, error) { return s.Presence(ctx, in.Name, 200) })
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/facts/{kind}/{key}", ID: "fact-values", Summary: "The values of a fact, and how many hosts have each", Tag: tag},
		func(ctx context.Context, in *struct {
			Kind string `path:"kind" enum:"fact,package,service,port,mine"`
			Key  string `path:"key" maxLength:"500"`
		}) ([]Count, error) {
			return s.Values(ctx, in.Kind, in.Key, 1000)
		})
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/hosts/{name}/labels", ID: "host-label", Summary: "Set labels of a host; an empty value takes one away", Tag: tag},
		func(ctx context.Context, in *struct {
			ByHost
			Body map[string]string
		}) (none, error) {
			return none{}, s.SetLabels(ctx, in.Name, in.Body)
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/hosts/{name}/accept", ID: "host-accept", Summary: "Let a host in that waits", Tag: tag},
		func(ctx context.Context, in *ByHost) (none, error) { return none{}, s.Accept(ctx, in.Name) })
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/hosts/{name}/revoke", ID: "host-revoke", Summary: "Reject a host that waits, or revoke one that is let in: it is cut off at once", Tag: tag},
		func(ctx context.Context, in *struct {
			ByHost
			Body struct {
				Why string `json:"why,omitempty" maxLength:"500"`
			}
		}) (none, error) {
			return none{}, s.Remove(ctx, in.Name, in.Body.Why)
		})
	web.Route(srv, web.Op{Method: "DELETE", Path: "/api/v1/hosts/{name}", ID: "host-delete", Summary: "Forget a host that was rejected or waits", Tag: tag},
		func(ctx context.Context, in *ByHost) (none, error) { return none{}, s.Delete(ctx, in.Name) })
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/hosts/tickets", ID: "host-ticket", Summary: "Make single-use tickets by which hosts are let in", Tag: tag},
		func(ctx context.Context, in *struct{ Body Ticket }) (map[string][]string, error) {
			ts, err := s.NewTickets(ctx, in.Body)
			return map[string][]string{"tickets": ts}, err
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/hosts/pin", ID: "host-pin", Summary: "The pin by which agents know this server", Tag: tag},
		func(context.Context, *none) (Pin, error) { return Pin{wire.Pin(s.Public()), s.cfg.Bus}, nil })
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/groups", ID: "group-list", Summary: "List groups", Tag: tag},
		func(ctx context.Context, _ *none) ([]Group, error) { return s.Groups(ctx) })
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/groups/{name}", ID: "group-set", Summary: "Make a group or change it; an empty target takes it away", Tag: tag, MaxBody: 2 << 20},
		func(ctx context.Context, in *struct {
			ByHost
			Body struct {
				Form   string `json:"form,omitempty" maxLength:"20"`
				Target string `json:"target" maxLength:"1048576"`
				Note   string `json:"note,omitempty" maxLength:"500"`
			}
		}) (none, error) {
			return none{}, s.SetGroup(ctx, Group{Name: in.Name, Form: cmp.Or(in.Body.Form, string(selector.Compound)), Target: in.Body.Target, Note: in.Body.Note})
		})
	s.pageRoutes(srv, jobs)
}

// agentRoutes are what agents call.
func (s *Store) agentRoutes(srv *web.Server) {
	const tag = "agent"
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/agent/trust", ID: "agent-trust", Summary: "The key of this server, sealed by itself", Tag: tag},
		func(context.Context, *none) (Sealed, error) {
			b, err := s.Trust()
			return Sealed{b}, err
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/agent/enrol", ID: "agent-enrol", Summary: "Ask to be let in, with a ticket or for approval", Tag: tag},
		func(ctx context.Context, in *struct{ Body wire.Enrol }) (Sealed, error) {
			b, err := s.Enrol(ctx, in.Body)
			return Sealed{b}, err
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/agent/mine", ID: "agent-mine", Summary: "What other hosts share", Tag: tag, Guard: auth.Guard("work.agent")},
		func(ctx context.Context, in *struct {
			Body struct {
				Target string `json:"target" maxLength:"16384"`
				Fun    string `json:"fun" maxLength:"200"`
				Form   string `json:"form,omitempty" maxLength:"20"`
			}
		}) (map[string]any, error) {
			if _, err := Caller(ctx); err != nil {
				return nil, err
			}
			return s.Mine(ctx, cmp.Or(selector.Form(in.Body.Form), selector.Glob), in.Body.Target, in.Body.Fun)
		})
	srv.HandleFunc("POST /api/v1/agent/report", func(w http.ResponseWriter, r *http.Request) error {
		if err := auth.Need(r.Context(), "work.agent", auth.From(r.Context()).Name); err != nil {
			return err
		}
		if kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); kind != "application/json" {
			return fault.Invalid("media_type", "a report is JSON, not %.60q", kind).Fix("send Content-Type: application/json")
		}
		var body io.Reader = http.MaxBytesReader(w, r.Body, 4<<20)
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(body)
			if err != nil {
				return fault.Invalid("report", "the report is not packed as it says").Wrap(err)
			}
			body = z
		}
		var rep wire.Report
		if err := json.NewDecoder(io.LimitReader(body, wire.MaxReport)).Decode(&rep); err != nil {
			return fault.Invalid("report", "the report cannot be read").Wrap(err).Fix("at most %d bytes of JSON", wire.MaxReport)
		}
		if err := s.Report(r.Context(), rep); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	})
}

func (s *Store) pageRoutes(srv *web.Server, jobs func(ctx context.Context, host string) (any, error)) {
	srv.Page("GET /fleet", pages, "pages/fleet.html", func(r *http.Request) (web.Page, error) {
		ctx, q := r.Context(), r.URL.Query()
		var d struct {
			Hosts    web.Rows[Host] `json:"hosts"`
			Presence map[string]int `json:"presence"`
			Pending  int            `json:"pending"`
			Versions []Count        `json:"versions"`
			Systems  []Count        `json:"systems"`
			Kernels  []Count        `json:"kernels"`
			Groups   []Group        `json:"groups"`

			PresenceBar, SystemsBar, VersionsBar, KernelsBar template.HTML `json:"-"`
		}
		target, form := q.Get("target"), cmp.Or(selector.Form(q.Get("form")), selector.Glob)
		if target != "" && q.Get("form") == "" && strings.ContainsAny(target, " =(<>\"") {
			form = selector.Query
		}
		hosts, err := s.Hosts(ctx, wire.Accepted, form, target)
		if err != nil {
			return web.Page{}, err
		}
		if p := q.Get("presence"); p != "" {
			hosts = slices.DeleteFunc(hosts, func(h Host) bool { return h.Presence != p })
		}
		d.Hosts = web.Cut(r, hosts, 100, func(h Host) string { return h.Name })
		d.Presence, d.Pending = s.Counts(), s.count(ctx, wire.Pending)
		d.Versions = versions(hosts)
		for _, x := range []struct {
			key string
			to  *[]Count
		}{{"osfinger", &d.Systems}, {"kernelrelease", &d.Kernels}} {
			if *x.to, err = s.Values(ctx, wire.KindFact, x.key, 12); err != nil {
				return web.Page{}, err
			}
		}
		if d.Groups, err = s.Groups(ctx); err != nil {
			return web.Page{}, err
		}
		d.PresenceBar = bar("Presence", []Count{{Online, int64(d.Presence[Online])}, {Offline, int64(d.Presence[Offline])}, {Returning, int64(d.Presence[Returning])}})
		d.SystemsBar, d.VersionsBar, d.KernelsBar = bar("Systems", d.Systems), bar("Agents", d.Versions), bar("Kernels", d.Kernels)
		cmd := "drover host list"
		if target != "" {
			cmd += " " + cli.Quote(target)
			if form != selector.Glob {
				cmd += " --form " + string(form)
			}
		}
		return web.Page{Title: "Fleet", Data: d, CLI: cmd}, nil
	})
	srv.Page("GET /fleet/pending", pages, "pages/pending.html", func(r *http.Request) (web.Page, error) {
		hosts, err := s.Hosts(r.Context(), "", selector.Glob, "")
		hosts = slices.DeleteFunc(hosts, func(h Host) bool { return h.State == wire.Accepted })
		slices.SortStableFunc(hosts, func(a, b Host) int { return strings.Compare(a.State, b.State) })
		return web.Page{Title: "Enrolment", Data: web.Cut(r, hosts, 100, func(h Host) string { return h.State + " " + h.Name + " " + h.ID }), CLI: "drover host list --state pending"}, err
	})
	srv.Page("GET /fleet/{name}", pages, "pages/host.html", func(r *http.Request) (web.Page, error) {
		ctx, q, name := r.Context(), r.URL.Query(), r.PathValue("name")
		var d struct {
			Host     Host           `json:"host"`
			Facts    web.Rows[Fact] `json:"facts"`
			Kinds    map[string]int `json:"kinds"`
			Kind     string         `json:"kind"`
			Presence []Change       `json:"presence"`
			Jobs     any            `json:"jobs"`
			Events   []event.Event  `json:"events"`
		}
		var err error
		if d.Host, err = s.Host(ctx, name); err != nil {
			return web.Page{}, err
		}
		if d.Kind = q.Get("kind"); d.Kind == "" {
			d.Kind = wire.KindFact
		}
		f := FactFilter{Kind: d.Kind, Search: q.Get("search"), History: d.Kind == "history"}
		if f.History {
			f.Kind, f.Limit = "", 300
		}
		facts, err := s.Facts(ctx, name, f)
		if err != nil {
			return web.Page{}, err
		}
		if f.History {
			d.Facts = web.Rows[Fact]{Rows: facts, Total: int64(len(facts))}
		} else {
			d.Facts = web.Cut(r, fold(facts), 200, func(x Fact) string { return x.Key + " " + x.Value })
		}
		if d.Kinds, err = s.kinds(ctx, name); err != nil {
			return web.Page{}, err
		}
		if d.Presence, err = s.Presence(ctx, name, 20); err != nil {
			return web.Page{}, err
		}
		if d.Jobs, err = jobs(ctx, name); err != nil {
			return web.Page{}, err
		}
		err = s.db.Read(ctx, func(tx *db.Tx) error {
			d.Events, err = event.List(tx, event.Filter{Subject: "host/" + d.Host.Name, Newest: true, Limit: 10})
			return err
		})
		return web.Page{Title: d.Host.Name, Data: d, CLI: "drover host show " + cli.Quote(name)}, err
	})
}

// fold puts the elements of lists into one line each.
func fold(facts []Fact) []Fact {
	var out []Fact
	at := map[string]int{}
	for _, f := range facts {
		b := base(f.Key)
		if b == f.Key || f.Kind == kindPackage {
			out = append(out, f)
			continue
		}
		i, ok := at[b]
		if !ok {
			i = len(out)
			at[b] = i
			out = append(out, Fact{Kind: f.Kind, Key: b, Since: f.Since})
		}
		out[i].Value = strings.TrimSpace(out[i].Value + " " + f.Value)
		if f.Since.After(out[i].Since) {
			out[i].Since = f.Since
		}
	}
	return out
}

// versions counts agents by version.
func versions(hosts []Host) []Count {
	n := map[string]int64{}
	for _, h := range hosts {
		n[h.Version]++
	}
	out := make([]Count, 0, len(n))
	for v, c := range n {
		out = append(out, Count{v, c})
	}
	slices.SortFunc(out, func(a, b Count) int { return int(b.Hosts - a.Hosts) })
	return out[:min(len(out), 12)]
}

// kinds counts what a host has of each kind.
func (s *Store) kinds(ctx context.Context, name string) (map[string]int, error) {
	out := map[string]int{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		_, id, err := find(tx, name)
		if err != nil {
			return err
		}
		return tx.Each(func(scan func(...any) error) error {
			var k string
			var n int
			err := scan(&k, &n)
			out[k] = n
			return err
		}, "SELECT i.kind, COUNT(*) FROM fleet_has h JOIN fleet_item i ON i.id = h.item WHERE h.host = $1 AND h.until = 0 GROUP BY i.kind", id)
	})
	return out, err
}

// Gauges adds the fleet to /metrics.
func (s *Store) Gauges(srv *web.Server) {
	srv.Gauges("drover_hosts", "Hosts that are let in, by presence.", "presence", func() map[string]float64 {
		out := map[string]float64{}
		for k, n := range s.Counts() {
			out[k] = float64(n)
		}
		return out
	})
}

// Number finds the number of a host in a transaction of somebody else's.
func (s *Store) Number(tx *db.Tx, name string) (int64, error) {
	_, id, err := find(tx, name)
	return id, err
}
