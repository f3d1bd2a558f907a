package repo

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
)

// what is a file of a tree: repodata, or a package by its pkgid.
type what struct {
	digest string
	pkg    *Package
}

// lookup finds a path in a tree of one snapshot.
func lookup(tx *db.Tx, snapshot, tree, path string) (w what, err error) {
	err = tx.QueryRow("SELECT digest FROM repo_snapshot_file WHERE snapshot = $1 AND tree = $2 AND path = $3", snapshot, tree, path).Scan(&w.digest)
	if !db.NoRow(err) {
		return w, err
	}
	p, err := scanPackage(tx.QueryRow("SELECT "+packageColumns+" FROM repo_package WHERE pkgid = (SELECT pkgid FROM repo_snapshot_package WHERE snapshot = $1 AND tree = $2 AND path = $3)", snapshot, tree, path).Scan)
	w.pkg = &p
	return w, err
}

func noFile(path string) error {
	return fault.NotFound("file_unknown", "the repository has no %.300q", path)
}

// snapshotFile serves a file of an immutable snapshot.
func (s *Store) snapshotFile(w http.ResponseWriter, r *http.Request) error {
	var f what
	err := s.DB.Read(r.Context(), func(tx *db.Tx) (err error) {
		f, err = lookup(tx, r.PathValue("id"), r.PathValue("tree"), r.PathValue("path"))
		return err
	})
	if db.NoRow(err) {
		return noFile(r.URL.Path)
	}
	if err != nil {
		return err
	}
	return s.serve(w, r, f, true)
}

// channelFile serves a file of a channel. repomd.xml and its signature are the present
// snapshot's; everything else has a name that says what is in it, and stays reachable after
// the channel moved: whoever has read an old repomd.xml gets all that it names. An address
// with at/ID in it is pinned: its repomd.xml stays that of the snapshot.
func (s *Store) channelFile(w http.ResponseWriter, r *http.Request) error {
	name, tree, path, pin := r.PathValue("name"), r.PathValue("tree"), r.PathValue("path"), r.PathValue("id")
	moving := path == "repodata/repomd.xml" || path == "repodata/repomd.xml.asc"
	var f what
	err := s.DB.Read(r.Context(), func(tx *db.Tx) error {
		c, err := channelAt(tx, name, event.Now)
		if err != nil {
			return err
		}
		if pin != "" {
			err := tx.QueryRow("SELECT snapshot FROM repo_channel WHERE name = $1 AND snapshot = $2 LIMIT 1", name, pin).Scan(&c.Snapshot)
			if err != nil {
				return err
			}
		}
		if f, err = lookup(tx, c.Snapshot, tree, path); err == nil || !db.NoRow(err) || moving {
			return err
		}
		var old string
		err = tx.QueryRow(`SELECT c.snapshot FROM repo_channel c WHERE c.name = $1 AND (
			EXISTS (SELECT 1 FROM repo_snapshot_file f WHERE f.snapshot = c.snapshot AND f.tree = $2 AND f.path = $3) OR
			EXISTS (SELECT 1 FROM repo_snapshot_package p WHERE p.snapshot = c.snapshot AND p.tree = $2 AND p.path = $3)) ORDER BY c.since DESC LIMIT 1`, name, tree, path).Scan(&old)
		if err != nil {
			return err
		}
		f, err = lookup(tx, old, tree, path)
		return err
	})
	if db.NoRow(err) {
		return noFile(r.URL.Path)
	}
	if err != nil {
		return err
	}
	return s.serve(w, r, f, pin != "" || !moving)
}

func (s *Store) serve(w http.ResponseWriter, r *http.Request, f what, fixed bool) error {
	h := w.Header()
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	if !fixed {
		h.Set("Cache-Control", "no-cache")
	}
	if f.pkg != nil {
		file, size, c, err := s.open(f.pkg.Head, f.pkg.Core)
		if err != nil {
			return err
		}
		defer c.Close()
		h.Set("Content-Type", "application/x-rpm")
		h.Set("ETag", strconv.Quote(f.pkg.PkgID))
		// Whoever copies the repository with its times can go on with its metadata.
		var at time.Time
		if f.pkg.Mtime > 0 {
			at = time.Unix(f.pkg.Mtime, 0)
		}
		http.ServeContent(w, r, "", at, io.NewSectionReader(file, 0, size))
		return nil
	}
	b, err := s.Blobs.Get(blob.Digest(f.digest))
	if err != nil {
		return err
	}
	defer b.Close()
	h.Set("ETag", strconv.Quote(f.digest))
	h.Set("Content-Type", "application/octet-stream")
	if strings.HasSuffix(r.URL.Path, ".xml") {
		h.Set("Content-Type", "text/xml")
	}
	http.ServeContent(w, r, "", time.Time{}, b)
	return nil
}

// goodHost tells whether a host may stand in a file that is made.
func goodHost(host string) bool { return !strings.ContainsAny(host, " \n\r\"'<>") }

// base is the address by which the client came.
func base(r *http.Request) string {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}

// mirrorList names one mirror of a channel's tree: itself, pinned to the present snapshot. dnf
// reads repomd.xml and its signature by two requests, and a channel may move between them. It
// asks for the list again before it gets packages: those of older snapshots are there too.
func (s *Store) mirrorList(w http.ResponseWriter, r *http.Request) error {
	tree := r.PathValue("tree")
	var c Channel
	err := s.DB.Read(r.Context(), func(tx *db.Tx) (err error) {
		if c, err = channelAt(tx, r.PathValue("name"), event.Now); err == nil {
			_, err = lookup(tx, c.Snapshot, tree, repomdFile)
		}
		return err
	})
	// What is not a tree must not become a line of the list.
	if db.NoRow(err) || err == nil && !goodHost(r.Host) {
		return noFile(r.URL.Path)
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	_, err = fmt.Fprintf(w, "%s/channels/%s/at/%s/%s/\n", base(r), c.Name, c.Snapshot, tree)
	return err
}

// repoFile writes the .repo file of a channel, for the arch that dnf puts in. A host looks anew
// each time: what is published is there for everybody at once, and nothing new costs one small
// request.
func (s *Store) repoFile(w http.ResponseWriter, r *http.Request) error {
	name, ok := strings.CutSuffix(r.PathValue("file"), ".repo")
	if !ok || !goodHost(r.Host) {
		return noFile(r.URL.Path)
	}
	c, err := s.Channel(r.Context(), name, "")
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	signed := "gpgcheck=0\nrepo_gpgcheck=0\n"
	if c.Key != "" {
		signed = fmt.Sprintf("gpgcheck=1\nrepo_gpgcheck=1\ngpgkey=%s/keys/%s.asc\n", base(r), c.Key)
	}
	for _, v := range []struct{ suffix, tree, title, enabled string }{{"", "$basearch", "", "1"}, {"-debug", "$basearch-debug", " (debug)", "0"}, {"-source", "source", " (source)", "0"}} {
		fmt.Fprintf(w, "[%s%s]\nname=%s%s\nmirrorlist=%s/channels/%s/%s/mirrorlist\nenabled=%s\n%smetadata_expire=1\n\n", c.Name, v.suffix, c.Name, v.title, base(r), c.Name, v.tree, v.enabled, signed)
	}
	return nil
}

// Diff is what differs between two snapshots.
type Diff struct {
	From    string   `json:"from"`
	To      string   `json:"to"`
	Added   []string `json:"added"`
	Removed []string `json:"removed"`
}

// Diff compares two snapshots by their packages.
func (s *Store) Diff(ctx context.Context, from, to string) (Diff, error) {
	d := Diff{Added: []string{}, Removed: []string{}}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		a, err := getSnapshot(tx, from)
		if err != nil {
			return err
		}
		b, err := getSnapshot(tx, to)
		if err != nil {
			return err
		}
		d.From, d.To = a.ID, b.ID
		only := func(x, y string, out *[]string) error {
			return tx.Each(func(scan func(...any) error) error {
				var n string
				err := scan(&n)
				*out = append(*out, n)
				return err
			}, `SELECT DISTINCT p.nevra FROM repo_snapshot_package sp JOIN repo_package p ON p.pkgid = sp.pkgid WHERE sp.snapshot = $1
				AND p.header NOT IN (SELECT q.header FROM repo_snapshot_package sq JOIN repo_package q ON q.pkgid = sq.pkgid WHERE sq.snapshot = $2) ORDER BY p.nevra`, x, y)
		}
		if err := only(b.ID, a.ID, &d.Added); err != nil {
			return err
		}
		return only(a.ID, b.ID, &d.Removed)
	})
	return d, err
}
