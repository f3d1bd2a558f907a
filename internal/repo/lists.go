package repo

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"time"

	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/repo/serving"
	"drover/internal/repo/wire"
)

// earlier is how many states before the present one a metalink tells of.
const earlier = 5

// lookBack is how many states are looked at for those: some differ in other trees only.
const lookBack = 50

// chosen finds the channel and the tree that a list is about: those of the host's variables.
func (s *Store) chosen(m *serving.Meter, r *http.Request, a address) (c Channel, now *tree, before []*tree, err error) {
	choice := wire.ChoiceOf(r)
	m.Kind = serving.KindList
	err = s.DB.Read(r.Context(), func(tx *db.Tx) error {
		if c, err = channelAt(tx, choice.Channel(a.channel), event.Now); err != nil {
			return err
		}
		m.Channel = c.Name
		if choice.Snapshot != "" {
			sn, err := s.getSnapshot(tx, choice.Snapshot)
			if err != nil {
				return err
			}
			// Of this channel, and of no other: its hosts trust no more than that.
			if err := tx.QueryRow("SELECT snapshot FROM repo_channel WHERE name = $1 AND snapshot = $2 LIMIT 1", c.Name, sn.ID).Scan(&c.Snapshot); err != nil {
				return err
			}
		}
		if now, err = s.tree(tx, c.Snapshot, a.tree); err != nil || now == nil || choice.Snapshot != "" {
			return err
		}
		ids, err := pastTrees(tx, c.Name, a.tree, lookBack)
		if err != nil {
			return err
		}
		for _, id := range slices.DeleteFunc(ids, func(id string) bool { return id == now.id })[:min(earlier, len(ids)-1)] {
			t, err := s.treeByID(tx, id)
			if err != nil {
				return err
			}
			before = append(before, t)
		}
		return nil
	})
	// What is not a tree must not become a line of a list.
	if db.NoRow(err) || err == nil && (now == nil || !wire.GoodHost(r.Host)) {
		err = noFile(r.URL.Path)
	}
	if err == nil {
		s.counts.Seen(c.Name, r.URL.Query().Get("countme"))
	}
	return c, now, before, err
}

// mirrorList names one mirror of a channel's tree: itself, pinned to the present snapshot. dnf
// reads repomd.xml and its signature by two requests, and a channel may move between them. It
// asks for the list again before it gets packages: those of older snapshots are there too.
func (s *Store) mirrorList(w *serving.Meter, r *http.Request, a address) error {
	c, t, _, err := s.chosen(w, r, a)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	_, _ = fmt.Fprintln(w, wire.Pinned(wire.Base(r), c.Name, c.Snapshot, t.name))
	return nil
}

// metalink is the same with the checksums of repomd.xml: a host that has it sees so without
// another request.
func (s *Store) metalink(w *serving.Meter, r *http.Request, a address) error {
	c, t, before, err := s.chosen(w, r, a)
	if err != nil {
		return err
	}
	mds := make([][]byte, 0, earlier+1)
	for _, t := range append([]*tree{t}, before...) {
		b, err := s.Blobs.ReadAll(blob.Digest(t.sum(repomdFile)), 1<<20)
		if err != nil {
			return err
		}
		mds = append(mds, b)
	}
	b, err := wire.Metalink(mds, wire.Pinned(wire.Base(r), c.Name, c.Snapshot, t.name))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/metalink+xml; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	// The second half is where it points: the same repomd.xml may be of another snapshot.
	w.Header().Set("ETag", `"`+t.sum(repomdFile)[:32]+c.Snapshot[:32]+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	return nil
}

// lead serves what leads a host to a channel: its .repo file, or a package with that file and
// the keys.
func (s *Store) lead(w *serving.Meter, r *http.Request, name, ext string) error {
	w.Kind = serving.KindList
	if !wire.GoodHost(r.Host) {
		return noFile(r.URL.Path)
	}
	st, err := s.State(r.Context(), name)
	if err != nil {
		return err
	}
	w.Channel = st.Channel
	base := wire.Base(r)
	w.Header().Set("Cache-Control", "no-cache")
	if ext == ".repo" {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		parts := wire.Keyed(wire.Parts(st.Channel, st.Trees), func(key string) string { return base + "/keys/" + key + ".asc" })
		_, _ = w.Write(wire.RepoFile(base, st.Channel, parts))
		return nil
	}
	keys := map[string]string{}
	for _, t := range st.Trees {
		for _, k := range t.Keys() {
			if keys[k] != "" {
				continue
			}
			if keys[k], err = s.publicKeys(r.Context(), k); err != nil {
				return err
			}
		}
	}
	b, err := wire.ReleasePackage(base, st, keys)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-rpm")
	h := sha512.Sum512_256(b)
	w.Header().Set("ETag", `"`+hex.EncodeToString(h[:])+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	return nil
}

// chunkFile serves a chunk: a blob, and none that is not a part of some tree.
func (s *Store) chunkFile(w *serving.Meter, r *http.Request) error {
	sum := r.PathValue("sum")
	err := s.DB.Read(r.Context(), func(tx *db.Tx) error {
		return tx.QueryRow("SELECT digest FROM repo_part WHERE digest = $1 LIMIT 1", sum).Scan(&sum)
	})
	if db.NoRow(err) {
		return fault.NotFound("chunk_unknown", "there is no chunk %.80q", sum).Fix("read repomd.xml again: it names the present ones")
	}
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", forever)
	w.Header().Set("Content-Type", "application/octet-stream")
	return s.serveBlob(w, r, blob.Digest(sum))
}

// State is where a channel points, with the trees of it.
func (s *Store) State(ctx context.Context, name string) (st wire.State, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		c, err := channelAt(tx, name, event.Now)
		if err != nil {
			return err
		}
		ts, err := s.treesOfSnapshot(tx, c.Snapshot)
		st = wire.State{Channel: c.Name, Snapshot: c.Snapshot, Since: c.Since, Trees: []wire.Tree{}}
		for _, t := range ts {
			st.Trees = append(st.Trees, wire.Tree{Name: t.name, Key: wire.OwnKey(t.key), Pins: wire.Pins(t.key), Signed: t.sum(repomdFile+".asc") != "", ID: wire.TreeID(t.sum(repomdFile), t.sum(repomdFile+".asc"))})
		}
		if err != nil {
			return err
		}
		// The last state with a tree that went or was signed otherwise: parts come and go with their line.
		return tx.QueryRow(`SELECT COALESCE(MAX(c.until), 0) FROM repo_channel c JOIN repo_snapshot_tree st ON st.snapshot = c.snapshot JOIN repo_tree t ON t.id = st.tree
			WHERE c.name = $1 AND c.until > 0 AND NOT EXISTS (SELECT 1 FROM repo_snapshot_tree nst JOIN repo_tree nt ON nt.id = nst.tree WHERE nst.snapshot = $2 AND nst.name = st.name AND nt.key = t.key)`, c.Name, c.Snapshot).Scan(&st.Release)
	})
	return st, err
}

// Follow gives a channel's state as soon as it is no longer the known snapshot, and when the
// time is over.
func (s *Store) Follow(ctx context.Context, name, known string, wait time.Duration) (wire.State, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		changed := s.DB.Changed()
		c, err := s.Channel(ctx, name, "")
		if err != nil {
			return wire.State{}, err
		}
		if c.Snapshot != known {
			return s.State(ctx, name)
		}
		poll := time.NewTimer(time.Second) // another server of the same database may have moved it
		select {
		case <-ctx.Done():
			poll.Stop()
			return wire.State{}, ctx.Err()
		case <-timer.C:
			poll.Stop()
			return s.State(ctx, name)
		case <-changed:
		case <-poll.C:
		}
		poll.Stop()
	}
}
