package repo

import (
	"context"
	"slices"
	"strings"

	"drover/internal/db"
	"drover/internal/fault"
)

// View is what a person sees of a snapshot: where it comes from, who points at it, and a part
// of one of its trees.
type View struct {
	Snapshot
	Names    []Named    `json:"names"`
	Channels []string   `json:"channels"`           // that point at it now
	Parts    []ViewPart `json:"parts,omitempty"`    // of a line's snapshot, what it is made of
	Previous string     `json:"previous,omitempty"` // the snapshot of the same source before it
	Trees    []ViewTree `json:"trees"`
	Tree     string     `json:"tree"` // whose packages are told
	Size     int64      `json:"size"` // packages of the tree
	Contents []Package  `json:"contents"`
	More     int        `json:"more,omitempty"` // where the packages go on; 0 at the end
}

// ViewPart is a part of a line's snapshot.
type ViewPart struct {
	Name     string `json:"name"`
	Snapshot string `json:"snapshot"`
}

// ViewTree is a tree of a snapshot with how many packages it has.
type ViewTree struct {
	Name     string `json:"name"`
	Packages int64  `json:"packages"`
}

// maxLook is how many chunks are read for one part of a filtered list.
const maxLook = 200

// Look reads a snapshot as a person sees it: of the tree (the first for "") at most limit
// packages whose file has the filter in its name, from a place on. Packages stand in the order of the chunks, which
// have those of a source together; no more chunks are read than that takes.
func (s *Store) Look(ctx context.Context, ref, name, filter string, from, limit int) (v View, err error) {
	v.Names, v.Channels, v.Trees, v.Contents = []Named{}, []string{}, []ViewTree{}, []Package{}
	var t *tree
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		if v.Snapshot, err = s.getSnapshot(tx, ref); err != nil {
			return err
		}
		if err := s.surroundings(tx, &v); err != nil {
			return err
		}
		ts, err := s.treesOfSnapshot(tx, v.ID)
		for _, x := range ts {
			n, _ := x.packages()
			v.Trees = append(v.Trees, ViewTree{x.name, n})
			if t == nil && (name == "" || name == x.name) {
				t, v.Tree, v.Size = x, x.name, n
			}
		}
		if err == nil && name != "" && t == nil {
			err = fault.NotFound("tree_unknown", "the snapshot %.12s has no repository %.100q", v.ID, name).Fix("see `drover snapshot show %.12s`", v.ID)
		}
		return err
	})
	if err != nil || t == nil {
		return v, err
	}
	at, looked := 0, 0
	for _, c := range t.chunks {
		if at+c.N <= from {
			at += c.N
			continue
		}
		if looked++; looked > maxLook {
			v.More = at
			return v, nil
		}
		ms, err := s.members(ctx, c)
		if err != nil {
			return v, err
		}
		for _, m := range ms {
			if at++; at <= from || !strings.Contains(m.File, filter) {
				continue
			}
			if len(v.Contents) == limit {
				v.More = at - 1
				return v, nil
			}
			v.Contents = append(v.Contents, m.Package)
		}
	}
	return v, nil
}

// surroundings reads what a snapshot has to do with names, channels and other snapshots.
func (s *Store) surroundings(tx *db.Tx, v *View) error {
	err := tx.Each(func(scan func(...any) error) error {
		n := Named{Snapshot: v.ID}
		err := scan(&n.Name, &n.Reason, &n.Since)
		v.Names = append(v.Names, n)
		return err
	}, "SELECT name, reason, since FROM repo_name WHERE snapshot = $1 AND until = 0 ORDER BY name", v.ID)
	if err != nil {
		return err
	}
	channels, err := db.Column[string](tx, "SELECT name FROM repo_channel WHERE snapshot = $1 AND until = 0 ORDER BY name", v.ID)
	if err != nil {
		return err
	}
	v.Channels = append(v.Channels, channels...)
	parts, err := partsOf(tx, v.ID)
	if err != nil {
		return err
	}
	for p, of := range parts {
		v.Parts = append(v.Parts, ViewPart{p, of})
	}
	slices.SortFunc(v.Parts, func(a, b ViewPart) int { return strings.Compare(a.Name, b.Name) })
	err = tx.QueryRow("SELECT id FROM repo_snapshot WHERE source = $1 AND kind = $2 AND since < $3 ORDER BY since DESC LIMIT 1", v.Source, v.Kind, v.Since).Scan(&v.Previous)
	if db.NoRow(err) {
		err = nil
	}
	return err
}
