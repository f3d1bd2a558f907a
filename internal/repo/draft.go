package repo

import (
	"context"

	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/repo/set"
	"drover/internal/repo/wire"
	"drover/internal/rpm"
)

// Draft is a snapshot of one repository that is being made of packages whose rows are there.
type Draft struct {
	s        *Store
	kind     string
	source   string
	packages int
	tree     *tree
}

// NewDraft begins a snapshot. keys are the names of the keys that it is signed with, as in
// wire.Tree.
func (s *Store) NewDraft(kind, source, name, keys string, ms []set.Member) (*Draft, error) {
	t := &tree{name: name, fresh: true, key: keys, of: source + "/" + name}
	var err error
	t.chunks, err = set.Edit(nil, set.BySource(ms), nil)
	return &Draft{s, kind, source, len(ms), t}, err
}

// Add gives the repository a file that is in the store.
func (d *Draft) Add(path string, sum blob.Digest, size int64) {
	d.tree.files = append(d.tree.files, file{Path: path, Sum: sum.String(), Size: size})
}

// AddBytes gives the repository a file.
func (d *Draft) AddBytes(path string, data []byte) error { return d.s.addFile(d.tree, path, data) }

// Write makes the metadata, with further files by their type, and signs it with a key of drover's
// if there is one.
func (d *Draft) Write(ctx context.Context, key string, types []string, more map[string][]byte) error {
	f := form{Codec: rpm.Zstd}
	for _, t := range types {
		if data := more[t]; data != nil {
			f.Extra = append(f.Extra, extra{t, data})
		}
	}
	if err := d.s.write(ctx, d.tree, f); err != nil {
		return err
	}
	return d.s.signTrees(ctx, key, d.source, []*tree{d.tree})
}

// Seal gives the snapshot its id, after which nothing is added.
func (d *Draft) Seal() string {
	d.tree.seal()
	return snapshotID(d.kind, d.source, []*tree{d.tree})
}

// Keep writes the snapshot and points its channel there, unless it is there. The event also holds
// the given data.
func (d *Draft) Keep(tx *db.Tx, data map[string]any) error {
	sn := Snapshot{ID: snapshotID(d.kind, d.source, []*tree{d.tree}), Kind: d.kind, Source: d.source, Packages: int64(d.packages), Key: wire.OwnKey(d.tree.key)}
	had, err := channelAt(tx, d.source, event.Now)
	if err != nil && fault.Code(err) != "channel_unknown" || had.Snapshot == sn.ID {
		return err
	}
	data["snapshot"], data["kind"], data["packages"], data["cause"] = sn.ID, sn.Kind, sn.Packages, 0
	ev, err := event.Append(tx, "repo.publish", "channel/"+d.source, data)
	if err != nil {
		return err
	}
	if err := d.s.keepSnapshot(tx, sn, []*tree{d.tree}, nil, ev); err != nil {
		return err
	}
	return point(tx, d.source, sn.ID, ev)
}

// PackagesByID reads the packages of these ids that have a row.
func PackagesByID(tx *db.Tx, ids []string, fn func(Package)) error {
	ps, err := packages(tx, "pkgid IN (SELECT value->>'v' FROM json_each($1))", db.List(ids))
	for _, p := range ps {
		fn(p)
	}
	return err
}

// PlacesOf gives the ids of the packages of a snapshot's tree by where they lie.
func (s *Store) PlacesOf(ctx context.Context, snapshot, name string) (map[string]string, error) {
	out := map[string]string{}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		t, err := s.tree(tx, snapshot, name)
		if t == nil || err != nil {
			return err
		}
		for _, c := range t.chunks {
			ps, err := s.places(tx, c.ID)
			if err != nil {
				return err
			}
			for _, p := range ps {
				out[p.Href] = p.PkgID
			}
		}
		return nil
	})
	return out, err
}

// publicKeys are the keys by the name that a tree has for them: of drover, or pinned for a mirror.
func (s *Store) publicKeys(ctx context.Context, name string) (string, error) {
	if !wire.Pinning(name) || s.Mirrors == nil {
		return s.Signer.Public(ctx, name)
	}
	return s.Mirrors.Pinned(ctx, name)
}

// isMirror tells whether a channel is that of a mirror.
func isMirror(tx *db.Tx, name string) (bool, error) {
	var n int
	err := tx.QueryRow("SELECT COUNT(*) FROM repo_mirror WHERE name = $1", name).Scan(&n)
	return n > 0, err
}

// present gives a package that is asked for with its content: one on demand is fetched now, and
// is whole and checked before anybody gets a byte.
func (s *Store) present(ctx context.Context, p Package) (Package, error) {
	if p.Core != "" || s.Mirrors == nil {
		return p, nil
	}
	if err := s.Mirrors.Fetch(ctx, p.PkgID); err != nil {
		return p, err
	}
	err := s.DB.Read(ctx, func(tx *db.Tx) error { return PackagesByID(tx, []string{p.PkgID}, func(q Package) { p = q }) })
	return p, err
}

// complete makes sure that every package of a snapshot is here: a channel that hosts are sent to
// must not depend on what upstream still has.
func (s *Store) complete(tx *db.Tx, snapshot string) error {
	ts, err := s.treesOfSnapshot(tx, snapshot)
	if err != nil {
		return err
	}
	return s.completeTrees(tx, ts)
}

func (s *Store) completeTrees(tx *db.Tx, ts []*tree) error {
	var some int
	if err := tx.QueryRow("SELECT COUNT(*) FROM (SELECT 1 FROM repo_absent LIMIT 1) AS found").Scan(&some); err != nil || some == 0 {
		return err
	}
	n, first := 0, ""
	for _, t := range ts {
		for _, c := range t.chunks {
			ms, err := s.membersTx(tx, c)
			if err != nil {
				return err
			}
			for _, m := range ms {
				if m.Core == "" {
					n, first = n+1, m.NEVRA
				}
			}
		}
	}
	if n > 0 {
		return fault.Conflict("snapshot_incomplete", "%d packages of the snapshot are not here yet, among them %s", n, first).Fix("wait until its mirror is filled (`drover mirror list` tells), or set the mirror without --on-demand and sync it")
	}
	return nil
}
