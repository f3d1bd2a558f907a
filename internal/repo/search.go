package repo

import (
	"bytes"
	"context"
	"html"
	"maps"
	"path"
	"slices"
	"strings"

	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/repo/gate"
	"drover/internal/rpm"
)

// Hit is a package that a search found, and by what.
type Hit struct {
	Package
	Tree  string   `json:"tree"`
	Match []string `json:"match"` // the first lines that match
}

// Bounds of a search.
const (
	maxHits    = 200
	maxMatches = 5
	minQuery   = 2
)

// SearchKinds is what can be searched in.
func SearchKinds() []string { return []string{"name", "file", "provides", "changelog"} }

// Search looks through what metadata says of the packages of a snapshot (an id, a name, a channel,
// CHANNEL@TIME): in names, paths of files, provided names, or the text of changelogs. In paths and
// names * and ? stand for what they do in a shell. more tells that there are hits beyond the bound.
func (s *Store) Search(ctx context.Context, ref, kind, query string) (hits []Hit, more bool, err error) {
	hits = []Hit{}
	if !slices.Contains(SearchKinds(), kind) {
		return nil, false, fault.Invalid("search_kind", "%.40q cannot be searched in", kind).Fix("search in one of: %s", strings.Join(SearchKinds(), ", "))
	}
	if len(query) < minQuery || len(query) > 200 {
		return nil, false, fault.Invalid("search_query", "a search needs %d to 200 letters", minQuery).Fix("type more of it, or a pattern such as lib*")
	}
	if _, err := path.Match(query, ""); err != nil {
		return nil, false, fault.Invalid("search_query", "%.100q is no pattern", query).Fix("close the bracket")
	}
	var ts []*tree
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		sn, err := s.getSnapshot(tx, ref)
		if err != nil {
			return err
		}
		ts, err = s.treesOfSnapshot(tx, sn.ID)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	match := matcher(kind, query)
	seen := map[string]bool{}
	for _, t := range ts {
		for _, c := range t.chunks {
			if ctx.Err() != nil {
				return nil, false, ctx.Err()
			}
			if seen[c.ID] {
				continue // a tree with the same packages
			}
			seen[c.ID] = true
			ms, err := s.members(ctx, c)
			if err != nil {
				return nil, false, err
			}
			var entries []rpm.Template
			if kind != "name" {
				if entries, err = s.templates(ctx, ms); err != nil {
					return nil, false, err
				}
			}
			for i, m := range ms {
				if seen[m.Header] {
					continue
				}
				var found []string
				if kind == "name" {
					found = match(m.Package, rpm.Template{})
				} else {
					found = match(m.Package, entries[i])
				}
				if len(found) == 0 {
					continue
				}
				seen[m.Header] = true
				if len(hits) == maxHits {
					return hits, true, nil
				}
				hits = append(hits, Hit{Package: m.Package, Tree: t.name, Match: found[:min(len(found), maxMatches)]})
			}
		}
	}
	return hits, false, nil
}

// matcher gives what of a package matches a query.
func matcher(kind, query string) func(Package, rpm.Template) []string {
	pattern := strings.ContainsAny(query, "*?[")
	ok := func(s string) bool {
		if !pattern {
			return strings.Contains(s, query)
		}
		m, _ := path.Match(query, s)
		return m
	}
	// Most packages are passed over by their bytes, before they are taken apart.
	raw := []byte(html.EscapeString(query))
	if pattern || string(raw) != query {
		raw = nil
	}
	switch kind {
	case "name":
		return func(p Package, _ rpm.Template) []string {
			if ok(p.Name()) || ok(p.NEVRA) || ok(p.Source) {
				return []string{p.NEVRA}
			}
			return nil
		}
	case "file":
		return func(_ Package, t rpm.Template) (out []string) {
			b := t.Append(nil, rpm.KindFilelists, rpm.Place{})
			if raw != nil && !bytes.Contains(b, raw) {
				return nil
			}
			rpm.FilesOf(b, func(p, _ string) {
				if len(out) < maxMatches && (ok(p) || pattern && !strings.Contains(query, "/") && ok(path.Base(p))) {
					out = append(out, p)
				}
			})
			return out
		}
	case "provides":
		return func(p Package, t rpm.Template) (out []string) {
			b := t.Append(nil, rpm.KindPrimary, rpm.Place{PkgID: p.PkgID, Href: "x"})
			if raw != nil && !bytes.Contains(b, raw) {
				return nil
			}
			q, err := rpm.ReadPrimaryEntry(b)
			if err != nil {
				return nil
			}
			for _, d := range q.Provides {
				if ok(d.Name) {
					out = append(out, strings.TrimSpace(d.Name+" "+d.EVR))
				}
			}
			return out
		}
	}
	return func(_ Package, t rpm.Template) (out []string) {
		b := t.Append(nil, rpm.KindOther, rpm.Place{})
		if raw != nil && !bytes.Contains(b, raw) {
			return nil
		}
		for _, e := range rpm.ChangelogOf(b) {
			for _, line := range strings.Split(e, "\n") {
				if strings.Contains(line, query) || pattern && ok(line) {
					out = append(out, line)
				}
			}
		}
		return out
	}
}

// Standing is the versions of a package in a channel.
type Standing struct {
	Channel  string   `json:"channel"`
	Snapshot string   `json:"snapshot"`
	NEVRAs   []string `json:"nevras"`
}

// Across tells which versions of a package each channel has now.
func (s *Store) Across(ctx context.Context, name string) ([]Standing, error) {
	out := []Standing{}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		var ps []Package
		err := tx.Each(func(scan func(...any) error) error {
			p, err := scanPackage(scan)
			if p.Name() == name || p.Source == name && (p.Arch == "src" || p.Arch == "nosrc") {
				ps = append(ps, p)
			}
			return err
		}, "SELECT "+packageColumns+` FROM repo_package WHERE file LIKE $1 ESCAPE '\'`, db.Like(name+"-"))
		if err != nil || len(ps) == 0 {
			return err
		}
		var cs []Channel
		err = tx.Each(func(scan func(...any) error) error {
			var c Channel
			err := scan(&c.Name, &c.Snapshot, &c.Key, &c.Since, &c.Until)
			cs = append(cs, c)
			return err
		}, "SELECT "+channelColumns+" WHERE c.until = 0 ORDER BY c.name")
		if err != nil {
			return err
		}
		for _, c := range cs {
			ts, err := s.treesOfSnapshot(tx, c.Snapshot)
			if err != nil {
				return err
			}
			have := map[string]bool{}
			for _, t := range ts {
				for _, p := range ps {
					ok, err := s.has(tx, t, p, "")
					if err != nil {
						return err
					}
					if ok {
						have[p.NEVRA] = true
					}
				}
			}
			if len(have) > 0 {
				out = append(out, Standing{c.Name, c.Snapshot, slices.SortedFunc(maps.Keys(have), newestFirst)})
			}
		}
		return nil
	})
	if err == nil && len(out) == 0 {
		return nil, fault.NotFound("package_unknown", "no channel has a package %.100q", name).Fix("search for it: `drover search %.100s`", name)
	}
	return out, err
}

// newestFirst orders the NEVRAs of one name.
func newestFirst(a, b string) int {
	x, _ := rpm.ParseNEVRA(a)
	y, _ := rpm.ParseNEVRA(b)
	if c := rpm.CompareEVR(y.EVR(), x.EVR()); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}

// Picture is a line as it is drawn: its parts, its stages, and what each move would change.
type Picture struct {
	Line
	From   []PictureBox  `json:"from"`
	Boxes  []PictureBox  `json:"boxes"`
	Arrows []PictureMove `json:"arrows"`
	Width  int           `json:"-"`
	Height int           `json:"-"`
}

// PictureBox is a channel in the picture.
type PictureBox struct {
	Channel  string  `json:"channel"`
	Snapshot string  `json:"snapshot,omitempty"`
	Packages int64   `json:"packages"`
	Since    int64   `json:"since,omitempty"`
	Frozen   *Freeze `json:"frozen,omitempty"`
	Holds    []Hold  `json:"holds,omitempty"`
	X        int     `json:"-"`
	Y        int     `json:"-"`
}

// PictureMove is the move from one stage to the next.
type PictureMove struct {
	To      string         `json:"to"`
	Counts  map[string]int `json:"counts"` // changes by kind
	Changes []Change       `json:"changes"`
	Hosts   []string       `json:"hosts"` // as a Plan's
	Held    []Held         `json:"held,omitempty"`
	Gate    gate.Verdict   `json:"gate"`
	None    string         `json:"none,omitempty"` // why there is no move to make
	X       int            `json:"-"`
	Y       int            `json:"-"`
}

// Sizes of the picture, in its own units.
const (
	boxWidth  = 210
	boxHeight = 64
	boxGap    = 100
	partGap   = 14
)

// Draw makes the picture of a line.
func (s *Store) Draw(ctx context.Context, name string) (p Picture, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		if p.Line, err = lineAt(tx, name, event.Now); err != nil {
			return err
		}
		box := func(channel string) (b PictureBox, err error) {
			b.Channel = channel
			c, err := channelAt(tx, channel, event.Now)
			if fault.Code(err) == "channel_unknown" {
				return b, nil
			}
			if err != nil {
				return b, err
			}
			b.Snapshot, b.Since = c.Snapshot, c.Since
			sn, err := s.getSnapshot(tx, c.Snapshot)
			if err != nil {
				return b, err
			}
			b.Packages = sn.Packages
			if b.Frozen, err = freezeOf(tx, channel); err != nil {
				return b, err
			}
			b.Holds, err = holdsOf(tx, channel)
			return b, err
		}
		p.Height = max(boxHeight, len(p.Parts)*(boxHeight+partGap)-partGap) + 2
		mid := (p.Height - boxHeight) / 2
		for i, part := range p.Parts {
			b, err := box(part)
			if err != nil {
				return err
			}
			b.X, b.Y = 1, 1+i*(boxHeight+partGap)
			if len(p.Parts) == 1 {
				b.Y = mid
			}
			p.From = append(p.From, b)
		}
		for i := range p.Stages {
			b, err := box(p.channel(i))
			if err != nil {
				return err
			}
			b.X, b.Y = 1+(i+1)*(boxWidth+boxGap), mid
			p.Boxes = append(p.Boxes, b)
		}
		p.Width = (len(p.Stages)+1)*(boxWidth+boxGap) - boxGap + 2
		return nil
	})
	if err != nil {
		return p, err
	}
	for i := 1; i < len(p.Boxes); i++ {
		m := PictureMove{To: p.Boxes[i].Channel, Counts: map[string]int{}, X: p.Boxes[i].X, Y: p.Boxes[i].Y + boxHeight/2}
		plan, err := s.Plan(ctx, m.To)
		switch {
		case fault.Code(err) == "channel_unknown":
			m.None = p.Boxes[i-1].Channel + " has nothing yet"
		case err != nil:
			m.None = fault.As(err).Msg
		case plan.Was == plan.Snapshot:
			m.None = "the same"
		default:
			m.Changes, m.Hosts, m.Held, m.Gate = plan.Changes, plan.Hosts, plan.Held, plan.Gate
			for _, c := range plan.Changes {
				m.Counts[c.Kind()]++
			}
		}
		p.Arrows = append(p.Arrows, m)
	}
	return p, nil
}
