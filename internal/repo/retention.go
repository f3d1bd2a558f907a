package repo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/build"
	"drover/internal/db"
	"drover/internal/distgit"
	"drover/internal/event"
	"drover/internal/repo/set"
)

// How long states of a channel are kept that nobody chose: all of them for a week, so that
// whoever has read an old repomd.xml gets what it names; then the last of each day.
const (
	keepAllFor   = 7 * 24 * time.Hour
	keepDailyFor = 30 * 24 * time.Hour
)

// sweepEvery is how often what is not kept is removed.
const sweepEvery = 6 * time.Hour

// bulk is how many rows are deleted in one transaction: others want to write too.
const bulk = 500

// Swept is what a sweep removed.
type Swept struct {
	Snapshots int   `json:"snapshots"`
	Trees     int   `json:"trees"`
	Chunks    int   `json:"chunks"`
	Packages  int   `json:"packages"`
	Blobs     int   `json:"blobs"`
	Bytes     int64 `json:"bytes"`
}

// Sweep removes what nothing keeps. Kept are: the present state of every channel; every state
// that a person gave a channel, by promotion or by hand; every snapshot with a name; of the
// channels that move by themselves all states of a week and the last of each day of a month; and of
// each package that a host has installed the newest snapshot with it.
// Only counted is what would go when dry is set.
func (s *Store) Sweep(ctx context.Context, dry bool) (r Swept, err error) {
	if err := auth.Need(ctx, "repo.sweep", "snapshots"); err != nil {
		return r, err
	}
	now := time.UnixMicro(s.DB.Now())
	gone, err := s.unkept(ctx, now)
	if err != nil || dry {
		r.Snapshots = len(gone)
		return r, err
	}
	for part := range slices.Chunk(gone, bulk) {
		if err := s.dropSnapshots(ctx, part, now); err != nil {
			return r, err
		}
		r.Snapshots += len(part)
	}
	blobs := map[blob.Digest]bool{}
	if err := s.sweepTrees(ctx, &r, blobs, now); err != nil {
		return r, err
	}
	return r, s.sweepBlobs(ctx, &r, blobs, now)
}

// unkept lists the snapshots that nothing keeps.
func (s *Store) unkept(ctx context.Context, now time.Time) (gone []string, err error) {
	keep := map[string]bool{}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		week, err := event.AsOf(tx, now.Add(-keepAllFor).Format(time.RFC3339))
		if err != nil {
			return err
		}
		take := func(query string, args ...any) error {
			ids, err := db.Column[string](tx, query, args...)
			for _, id := range ids {
				keep[id] = true
			}
			return err
		}
		if err := take("SELECT snapshot FROM repo_name WHERE until = 0"); err != nil {
			return err
		}
		if err := take("SELECT snapshot FROM repo_channel WHERE until = 0 OR until > $1", week); err != nil {
			return err
		}
		// What the next publishing goes on from.
		if err := take("SELECT id FROM repo_snapshot s WHERE kind = 'tag' AND cause = (SELECT MAX(cause) FROM repo_snapshot t WHERE t.source = s.source AND t.kind = 'tag')"); err != nil {
			return err
		}
		ls, err := lines(tx)
		if err != nil {
			return err
		}
		first := map[string]bool{}
		for _, l := range ls {
			first[l.channel(0)] = true
		}
		// States of a channel, oldest first, with the times from which they were in force.
		type day struct{ channel, date string }
		last := map[day]string{}
		err = tx.Each(func(scan func(...any) error) error {
			var channel, id, kind, source string
			var at int64
			if err := scan(&channel, &id, &kind, &source, &at); err != nil {
				return err
			}
			if channel != source && !first[channel] {
				keep[id] = true // somebody moved the channel there
			}
			if t := db.Time(at); now.Sub(t) < keepDailyFor {
				last[day{channel, t.Format(time.DateOnly)}] = id
			}
			return nil
		}, "SELECT c.name, s.id, s.kind, s.source, e.at FROM repo_channel c JOIN repo_snapshot s ON s.id = c.snapshot JOIN event e ON e.id = c.since ORDER BY c.since")
		if err != nil {
			return err
		}
		for _, id := range last {
			keep[id] = true
		}
		gone, err = db.Column[string](tx, "SELECT id FROM repo_snapshot WHERE created < $1 ORDER BY since", now.Add(-keepAllFor).UnixMicro())
		gone = slices.DeleteFunc(gone, func(id string) bool { return keep[id] })
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.keepInstalled(ctx, gone)
}

// dropSnapshots removes snapshots, unless a channel or a name has come to hold one meanwhile.
func (s *Store) dropSnapshots(ctx context.Context, ids []string, now time.Time) error {
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		const those = "IN (SELECT value->>'v' FROM json_each($1)) AND NOT EXISTS (SELECT 1 FROM repo_name n WHERE n.snapshot = "
		const held = " AND n.until = 0) AND NOT EXISTS (SELECT 1 FROM repo_channel c WHERE c.until = 0 AND c.snapshot = "
		list := db.List(ids)
		n, err := tx.Exec("DELETE FROM repo_snapshot WHERE id "+those+"repo_snapshot.id"+held+"repo_snapshot.id)", list)
		if err != nil {
			return err
		}
		for _, q := range []string{
			"DELETE FROM repo_snapshot_tree WHERE snapshot IN (SELECT value->>'v' FROM json_each($1)) AND snapshot NOT IN (SELECT id FROM repo_snapshot)",
			"DELETE FROM repo_snapshot_part WHERE snapshot IN (SELECT value->>'v' FROM json_each($1)) AND snapshot NOT IN (SELECT id FROM repo_snapshot)",
			"DELETE FROM repo_channel WHERE snapshot IN (SELECT value->>'v' FROM json_each($1)) AND snapshot NOT IN (SELECT id FROM repo_snapshot)",
		} {
			if _, err := tx.Exec(q, list); err != nil {
				return err
			}
		}
		_, err = event.Append(tx, "repo.sweep", "snapshots", map[string]any{"snapshots": n, "first": ids[0], "older_than": now.Add(-keepAllFor)})
		return err
	})
}

// sweepTrees removes trees that no snapshot has, chunks that no tree has and packages that no
// chunk has, and notes the blobs that they had.
func (s *Store) sweepTrees(ctx context.Context, r *Swept, blobs map[blob.Digest]bool, now time.Time) error {
	before := now.Add(-keepAllFor).UnixMicro()
	remove := func(ids []string, count *int, queries ...string) error {
		*count += len(ids)
		for part := range slices.Chunk(ids, bulk) {
			err := s.DB.Write(ctx, func(tx *db.Tx) error {
				for _, q := range queries {
					if _, err := tx.Exec(q, db.List(part)); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	}
	var trees, signatures, chunks, pkgs, entries []string
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		trees, err = db.Column[string](tx, "SELECT id FROM repo_tree WHERE created < $1 AND id NOT IN (SELECT tree FROM repo_snapshot_tree)", before)
		return err
	})
	if err != nil {
		return err
	}
	for _, id := range trees {
		err := s.DB.Read(ctx, func(tx *db.Tx) error {
			t, err := s.treeByID(tx, id)
			if err != nil {
				return err
			}
			for _, f := range t.files {
				if f.Kind == nil {
					blobs[blob.Digest(f.Sum)] = true
				}
			}
			signatures = append(signatures, t.sum(repomdFile+".asc"))
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := remove(trees, &r.Trees, "DELETE FROM repo_tree WHERE id IN (SELECT value->>'v' FROM json_each($1)) AND id NOT IN (SELECT tree FROM repo_snapshot_tree)",
		"DELETE FROM repo_file WHERE tree IN (SELECT value->>'v' FROM json_each($1)) AND tree NOT IN (SELECT id FROM repo_tree)"); err != nil {
		return err
	}
	var n int
	if err := remove(signatures, &n, "DELETE FROM repo_signature WHERE digest IN (SELECT value->>'v' FROM json_each($1))"); err != nil {
		return err
	}
	s.trees.drop()
	s.lists.drop()
	s.fresh.drop()
	s.packs.drop()
	s.found.drop()
	used := map[string]bool{}   // chunks
	needed := map[string]bool{} // packages
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		err := tx.Each(func(scan func(...any) error) error {
			var raw []byte
			err := scan(&raw)
			for id := range slices.Chunk(raw, sha256.Size) {
				used[hex.EncodeToString(id)] = true
			}
			return err
		}, "SELECT chunks FROM repo_tree")
		if err != nil {
			return err
		}
		err = tx.Each(func(scan func(...any) error) error {
			var id string
			var data []byte
			if err := scan(&id, &data); err != nil {
				return err
			}
			if !used[id] {
				chunks = append(chunks, id)
				return nil
			}
			open, err := s.unpack.DecodeAll(data, nil)
			if err != nil {
				return err
			}
			ps, err := set.DecodePlaces(open)
			for _, p := range ps {
				needed[p.PkgID] = true
			}
			return err
		}, "SELECT id, places FROM repo_chunk")
		if err != nil {
			return err
		}
		err = tx.Each(func(scan func(...any) error) error {
			p, err := scanPackage(scan)
			if !needed[p.PkgID] {
				pkgs = append(pkgs, p.PkgID)
				for _, d := range []blob.Digest{p.Head, p.Core} {
					if d != "" {
						blobs[d] = true
					}
				}
			}
			return err
		}, "SELECT "+packageColumns+" FROM repo_package WHERE created < $1", before)
		if err != nil {
			return err
		}
		return tx.Each(func(scan func(...any) error) error {
			var id, d string
			err := scan(&id, &d)
			if !used[id] {
				blobs[blob.Digest(d)] = true
			}
			return err
		}, "SELECT chunk, digest FROM repo_part")
	})
	if err != nil {
		return err
	}
	if err := remove(chunks, &r.Chunks, "DELETE FROM repo_part WHERE chunk IN (SELECT value->>'v' FROM json_each($1))", "DELETE FROM repo_gate WHERE chunk IN (SELECT value->>'v' FROM json_each($1))", "DELETE FROM repo_chunk WHERE id IN (SELECT value->>'v' FROM json_each($1))"); err != nil {
		return err
	}
	if err := remove(pkgs, &r.Packages, "DELETE FROM repo_location WHERE pkgid IN (SELECT value->>'v' FROM json_each($1))", "DELETE FROM repo_absent WHERE pkgid IN (SELECT value->>'v' FROM json_each($1))", "DELETE FROM repo_package WHERE pkgid IN (SELECT value->>'v' FROM json_each($1))"); err != nil {
		return err
	}
	err = s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		entries, err = db.Column[string](tx, "SELECT id FROM repo_entry WHERE id NOT IN (SELECT entry FROM repo_package)")
		return err
	})
	if err != nil {
		return err
	}
	return remove(entries, &n, "DELETE FROM repo_entry WHERE id IN (SELECT value->>'v' FROM json_each($1)) AND id NOT IN (SELECT entry FROM repo_package)")
}

// sweepBlobs removes blobs that no row names any more. One that was put within the last day
// stays: the row that names it may be on its way.
func (s *Store) sweepBlobs(ctx context.Context, r *Swept, blobs map[blob.Digest]bool, now time.Time) error {
	used := map[blob.Digest]bool{}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var text string
			var fs []file
			if err := scan(&text); err != nil {
				return err
			}
			err := json.Unmarshal([]byte(text), &fs)
			for _, f := range fs {
				if f.Kind == nil {
					used[blob.Digest(f.Sum)] = true
				}
			}
			return err
		}, "SELECT files FROM repo_tree")
	})
	if err != nil {
		return err
	}
	for part := range slices.Chunk(slices.Sorted(maps.Keys(blobs)), bulk) {
		err := s.DB.Read(ctx, func(tx *db.Tx) error {
			take := func(some []blob.Digest, err error) error {
				for _, d := range some {
					used[d] = true
				}
				return err
			}
			for _, q := range []string{
				"SELECT head FROM repo_package WHERE head IN (SELECT value->>'v' FROM json_each($1))",
				"SELECT core FROM repo_package WHERE core IN (SELECT value->>'v' FROM json_each($1))",
				"SELECT digest FROM repo_part WHERE digest IN (SELECT value->>'v' FROM json_each($1))",
				"SELECT digest FROM repo_signature WHERE digest IN (SELECT value->>'v' FROM json_each($1))",
			} {
				if err := take(db.Column[blob.Digest](tx, q, db.List(part))); err != nil {
					return err
				}
			}
			if err := take(build.UsedBlobs(tx, part)); err != nil {
				return err
			}
			return take(distgit.UsedBlobs(tx, part))
		})
		if err != nil {
			return err
		}
		for _, d := range part {
			if used[d] {
				continue
			}
			in, err := s.Blobs.Stat(d)
			if err != nil {
				continue // gone already
			}
			removed, err := s.Blobs.DeleteOld(d, now.Add(-24*time.Hour))
			if err != nil {
				return err
			}
			if removed {
				r.Blobs++
				r.Bytes += in.Size
			}
		}
	}
	return nil
}

// sweeping removes what is not kept, from time to time, until ctx ends.
func (s *Store) sweeping(ctx context.Context) {
	every := time.NewTicker(sweepEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		r, err := s.Sweep(ctx, false)
		if err != nil && ctx.Err() == nil {
			s.Log.Error("old snapshots stay", "err", err)
		} else if r.Snapshots > 0 || r.Blobs > 0 {
			s.Log.Info("old snapshots are gone", "snapshots", r.Snapshots, "packages", r.Packages, "blobs", r.Blobs, "bytes", r.Bytes)
		}
	}
}
