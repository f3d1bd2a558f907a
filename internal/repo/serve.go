package repo

import (
	"cmp"
	"context"
	"database/sql"
	"maps"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/repo/gate"
	"drover/internal/repo/serving"
	"drover/internal/rpm"
	"drover/internal/web"
)

// what is a file of a tree: metadata, or a package.
type what struct {
	tree *tree
	file file
	pkg  *Package
}

// lookup finds a path in a tree of one snapshot.
func (s *Store) lookup(tx *db.Tx, snapshot, name, path string) (w what, err error) {
	if w.tree, err = s.tree(tx, snapshot, name); err != nil || w.tree == nil {
		return w, cmp.Or(err, sql.ErrNoRows)
	}
	if f, ok := w.tree.file(path); ok {
		w.file = f
		return w, nil
	}
	ps, err := candidates(tx, path)
	if err != nil {
		return w, err
	}
	for _, p := range ps {
		if ok, err := s.has(tx, w.tree, p, path); ok || err != nil {
			w.pkg = &p
			return w, err
		}
	}
	return w, sql.ErrNoRows
}

// candidates lists the packages that lie at a path in any tree.
func candidates(tx *db.Tx, href string) (out []Package, err error) {
	if dir, id := path.Split(path.Dir(href)); dir == "Packages/" && len(id) == 12 {
		out, err = packages(tx, `file = $1 AND pkgid LIKE $2 ESCAPE '\'`, path.Base(href), db.Like(id))
	}
	if err == nil && len(out) == 0 {
		out, err = packages(tx, "pkgid IN (SELECT pkgid FROM repo_location WHERE href = $1)", href)
	}
	return out, err
}

func noFile(path string) error {
	return fault.NotFound("file_unknown", "the repository has no %.300q", path)
}

// address is what an address below /channels/ asks for:
//
//	CHANNEL.repo
//	CHANNEL.rpm
//	CHANNEL/TREE/mirrorlist
//	CHANNEL/TREE/metalink
//	CHANNEL/TREE/PATH
//	CHANNEL/at/SNAPSHOT/TREE/PATH
type address struct{ channel, pin, tree, path string }

// channels serves what lies below /channels/. A channel's name has one part, or two when it is
// the stage of a line.
func (s *Store) channels(w *serving.Meter, r *http.Request) error {
	rest := r.PathValue("rest")
	if ext := path.Ext(rest); strings.Count(rest, "/") < 2 && (ext == ".repo" || ext == ".rpm") {
		return s.lead(w, r, strings.TrimSuffix(rest, ext), ext)
	}
	part := strings.Split(rest, "/")
	var a address
	n := 1
	if len(part) > 3 && part[1] != "at" {
		two := part[0] + "/" + part[1]
		known := 0
		if _, ok := s.found.get(found{channel: two}); ok {
			known = 1
		}
		if known == 0 {
			err := s.DB.Read(r.Context(), func(tx *db.Tx) error {
				return tx.QueryRow("SELECT COUNT(*) FROM (SELECT 1 FROM repo_channel WHERE name = $1 LIMIT 1) AS known", two).Scan(&known)
			})
			if err != nil {
				return err
			}
			if known > 0 { // the name of a channel stays one
				s.keepFound(found{channel: two}, what{})
			}
		}
		n += known
	}
	a.channel, part = strings.Join(part[:min(n, len(part))], "/"), part[min(n, len(part)):]
	if len(part) > 2 && part[0] == "at" {
		a.pin, part = part[1], part[2:]
	}
	if len(part) < 2 {
		return noFile(r.URL.Path)
	}
	a.tree, a.path = part[0], strings.Join(part[1:], "/")
	switch {
	case a.path == "mirrorlist" && a.pin == "":
		return s.mirrorList(w, r, a)
	case a.path == "metalink" && a.pin == "":
		return s.metalink(w, r, a)
	}
	return s.channelFile(w, r, a)
}

// snapshotFile serves a file of an immutable snapshot.
func (s *Store) snapshotFile(w *serving.Meter, r *http.Request) error {
	key := found{snapshot: r.PathValue("id"), tree: r.PathValue("tree"), path: r.PathValue("path")}
	if f, ok := s.found.get(key); ok {
		return s.serve(w, r, f, true)
	}
	var f what
	err := s.DB.Read(r.Context(), func(tx *db.Tx) (err error) {
		f, err = s.lookup(tx, key.snapshot, key.tree, key.path)
		return err
	})
	if db.NoRow(err) {
		return noFile(r.URL.Path)
	}
	if err != nil {
		return err
	}
	s.keepFound(key, f)
	return s.serve(w, r, f, true)
}

// found is an address whose answer never changes: of a snapshot, asked for by itself or as what
// a channel has or had.
type found struct{ channel, snapshot, tree, path string }

// keptFound is of how many addresses the answer is kept: a fleet asks for the same ones after a
// promotion.
const keptFound = 20_000

// keepFound keeps an answer, but for that of a package that is not fetched yet.
func (s *Store) keepFound(key found, f what) {
	if f.pkg != nil && f.pkg.Core == "" {
		return
	}
	s.found.put(key, f)
}

// channelFile serves a file of a channel. repomd.xml and its signature are the present
// snapshot's; everything else has a name that says what is in it, and stays reachable after
// the channel moved: whoever has read an old repomd.xml gets all that it names. An address
// with at/ID in it is pinned: its repomd.xml stays that of the snapshot.
func (s *Store) channelFile(w *serving.Meter, r *http.Request, a address) error {
	name, tree, path, pin := a.channel, a.tree, a.path, a.pin
	moving := path == repomdFile || path == repomdFile+".asc"
	key := found{name, pin, tree, path}
	if f, ok := s.found.get(key); ok && pin != "" {
		w.Channel = name
		return s.serve(w, r, f, true)
	}
	var f what
	err := s.DB.Read(r.Context(), func(tx *db.Tx) error {
		c, err := channelAt(tx, name, event.Now)
		if err != nil {
			return err
		}
		w.Channel = c.Name
		if pin != "" {
			err := tx.QueryRow("SELECT snapshot FROM repo_channel WHERE name = $1 AND snapshot = $2 LIMIT 1", name, pin).Scan(&c.Snapshot)
			if err != nil {
				return err
			}
		}
		if f, err = s.lookup(tx, c.Snapshot, tree, path); err == nil || !db.NoRow(err) || moving {
			return err
		}
		f, err = s.lookupOld(tx, name, tree, path)
		return err
	})
	if db.NoRow(err) {
		return noFile(r.URL.Path)
	}
	if err != nil {
		return err
	}
	if pin != "" {
		s.keepFound(key, f)
	}
	return s.serve(w, r, f, pin != "" || !moving)
}

// oldStates is how many of its past states a channel is searched for a file that its present
// one does not have: a week of a tag that changes every ten minutes.
const oldStates = 1000

// lookupOld finds a path in the snapshots that a channel pointed at before.
func (s *Store) lookupOld(tx *db.Tx, channel, name, path string) (w what, err error) {
	if strings.HasPrefix(path, "repodata/") {
		var id string
		err := tx.QueryRow(`SELECT f.tree FROM repo_file f JOIN repo_snapshot_tree t ON t.tree = f.tree JOIN repo_channel c ON c.snapshot = t.snapshot
			WHERE f.path = $1 AND t.name = $2 AND c.name = $3 LIMIT 1`, path, name, channel).Scan(&id)
		if err != nil {
			return w, err
		}
		if w.tree, err = s.treeByID(tx, id); err != nil {
			return w, err
		}
		w.file, _ = w.tree.file(path)
		return w, nil
	}
	ps, err := candidates(tx, path)
	if err != nil || len(ps) == 0 {
		return w, cmp.Or(err, sql.ErrNoRows)
	}
	ids, err := pastTrees(tx, channel, name, oldStates)
	if err != nil {
		return w, err
	}
	for _, id := range ids {
		if w.tree, err = s.treeByID(tx, id); err != nil {
			return w, err
		}
		for _, p := range ps {
			if ok, err := s.has(tx, w.tree, p, path); ok || err != nil {
				w.pkg = &p
				return w, err
			}
		}
	}
	return w, sql.ErrNoRows
}

// pastTrees lists the trees of a channel's newest states, newest first; of all names for "".
func pastTrees(tx *db.Tx, channel, name string, states int) ([]string, error) {
	return db.Column[string](tx, `SELECT tree FROM (SELECT t.tree, MAX(c.since) AS newest FROM (SELECT snapshot, since FROM repo_channel WHERE name = $1 ORDER BY since DESC LIMIT `+strconv.Itoa(states)+`) AS c
		JOIN repo_snapshot_tree t ON t.snapshot = c.snapshot WHERE $2 = '' OR t.name = $2 GROUP BY t.tree) AS trees ORDER BY newest DESC`, channel, name)
}

// Holders names the channels that have or had a package, by the sha256 of its header.
func (s *Store) Holders(ctx context.Context, header string) (out []string, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		ps, err := packages(tx, "header = $1", header)
		if err != nil {
			return err
		}
		names, err := db.Column[string](tx, "SELECT DISTINCT name FROM repo_channel ORDER BY name")
		if err != nil {
			return err
		}
		for _, n := range names {
			if ok, err := s.held(tx, n, ps); err != nil {
				return err
			} else if ok {
				out = append(out, n)
			}
		}
		return nil
	})
	return out, err
}

func (s *Store) held(tx *db.Tx, channel string, ps []Package) (bool, error) {
	ids, err := pastTrees(tx, channel, "", oldStates)
	if err != nil {
		return false, err
	}
	for _, id := range ids {
		t, err := s.treeByID(tx, id)
		if err != nil {
			return false, err
		}
		for _, p := range ps {
			if ok, err := s.has(tx, t, p, ""); ok || err != nil {
				return ok, err
			}
		}
	}
	return false, nil
}

func (s *Store) serve(w *serving.Meter, r *http.Request, f what, fixed bool) error {
	h := w.Header()
	h.Set("Cache-Control", forever)
	if !fixed {
		h.Set("Cache-Control", "no-cache")
	}
	if f.pkg != nil {
		p, err := s.present(r.Context(), *f.pkg)
		if err != nil {
			return err
		}
		file, size, c, err := s.open(p.Head, p.Core)
		if err != nil {
			return err
		}
		defer c.Close()
		w.Kind = serving.KindPackage
		h.Set("Content-Type", "application/x-rpm")
		h.Set("ETag", strconv.Quote(f.pkg.PkgID))
		// Whoever copies the repository with its times can go on with its metadata.
		var at time.Time
		if f.pkg.Mtime > 0 {
			at = time.Unix(f.pkg.Mtime, 0)
		}
		http.ServeContent(w, r, "", at, &serving.PackageFile{At: file, Core: c, Head: size - c.Size()})
		return nil
	}
	if f.file.Path == repomdFile || f.file.Path == repomdFile+".asc" {
		w.Kind = serving.KindRepomd
	}
	h.Set("Content-Type", "application/octet-stream")
	if strings.HasSuffix(r.URL.Path, ".xml") {
		h.Set("Content-Type", "text/xml")
	}
	if f.file.Kind != nil {
		h.Set("ETag", strconv.Quote(f.file.Sum))
		in, err := s.whole(r.Context(), f.tree, f.file)
		if err != nil {
			return err
		}
		defer in.Close()
		http.ServeContent(w, r, "", time.Time{}, in)
		return nil
	}
	return s.serveBlob(w, r, blob.Digest(f.file.Sum))
}

// serveBlob serves a blob as it is.
func (s *Store) serveBlob(w *serving.Meter, r *http.Request, d blob.Digest) error {
	b, err := s.Blobs.Get(d)
	if err != nil {
		return err
	}
	defer b.Close()
	w.Header().Set("ETag", strconv.Quote(d.String()))
	http.ServeContent(w, r, "", time.Time{}, b)
	return nil
}

// forever lets caches keep what never changes.
const forever = "public, max-age=31536000, immutable"

// cutTree takes the name of a line's repository apart.
func cutTree(name string) (part, tree string, ok bool) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return "", name, false
	}
	return name[:i], name[i+1:], true
}

// Diff is what differs between two snapshots.
type Diff struct {
	From    string   `json:"from"`
	To      string   `json:"to"`
	Added   []string `json:"added"`   // NEVRAs
	Removed []string `json:"removed"` // NEVRAs
	Changes []Change `json:"changes"` // the same by name
	Hosts   []string `json:"hosts" doc:"hosts that have one of these packages, and not in the newest version of the second snapshot; null for who may not read hosts"`
	Logs    []Log    `json:"logs"`
}

// Log is the changelog entries that a source package has in one snapshot and not in the other.
type Log struct {
	Source  string   `json:"source"`
	Entries []string `json:"entries"`
}

// Diff compares two snapshots by their packages. It reads those chunks only that one of them
// does not have.
func (s *Store) Diff(ctx context.Context, from, to string) (Diff, error) {
	d := Diff{Added: []string{}, Removed: []string{}}
	var differ gate.Difference
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		a, err := s.getSnapshot(tx, from)
		if err != nil {
			return err
		}
		b, err := s.getSnapshot(tx, to)
		if err != nil {
			return err
		}
		d.From, d.To = a.ID, b.ID
		old, err := s.treesOfSnapshot(tx, a.ID)
		if err != nil {
			return err
		}
		now, err := s.treesOfSnapshot(tx, b.ID)
		if err != nil {
			return err
		}
		differ, err = s.differTrees(tx, old, now)
		return err
	})
	if err != nil {
		return d, err
	}
	gone, come := differ.Gone(), differ.Fresh()
	for _, p := range gone {
		d.Removed = append(d.Removed, p.NEVRA)
	}
	for _, p := range come {
		d.Added = append(d.Added, p.NEVRA)
	}
	slices.Sort(d.Added)
	slices.Sort(d.Removed)
	d.Added, d.Removed = slices.Compact(d.Added), slices.Compact(d.Removed)
	d.Changes = changes(differ)
	if d.Hosts, err = s.affected(ctx, d.Changes); err != nil {
		return d, err
	}
	d.Logs, err = s.logs(ctx, gone, come)
	return d, err
}

// maxLogs bounds of how many source packages a diff tells the changelog.
const maxLogs = 500

// logs lists what the changelogs of packages that came tell beyond those that went, of each
// source package once.
func (s *Store) logs(ctx context.Context, gone, come map[string]Package) ([]Log, error) {
	newest := func(ps map[string]Package) map[string]Package {
		out := map[string]Package{}
		for _, p := range ps {
			if had, ok := out[p.Source]; !ok || had.Built < p.Built || had.Built == p.Built && p.NEVRA < had.NEVRA {
				out[p.Source] = p
			}
		}
		return out
	}
	was, out := newest(gone), []Log{}
	now := newest(come)
	for _, source := range slices.Sorted(maps.Keys(now)) {
		old, ok := was[source]
		if !ok {
			continue // new altogether
		}
		if len(out) == maxLogs {
			break
		}
		ts, err := s.templates(ctx, []member{{Package: old}, {Package: now[source]}})
		if err != nil {
			return nil, err
		}
		known := map[string]bool{}
		for _, e := range rpm.ChangelogOf(ts[0].Append(nil, rpm.KindOther, rpm.Place{})) {
			known[e] = true
		}
		l := Log{Source: source}
		for _, e := range rpm.ChangelogOf(ts[1].Append(nil, rpm.KindOther, rpm.Place{})) {
			if !known[e] {
				l.Entries = append(l.Entries, e)
			}
		}
		if len(l.Entries) > 0 {
			out = append(out, l)
		}
	}
	return out, nil
}

// differTrees gives the packages that only one of two sets of trees has. It reads the lists of those
// chunks only that they do not share.
func (s *Store) differTrees(tx *db.Tx, old, now []*tree) (d gate.Difference, err error) {
	chunks := [2]map[string]chunk{{}, {}}
	for i, ts := range [][]*tree{old, now} {
		for _, t := range ts {
			for _, c := range t.chunks {
				chunks[i][c.ID] = c
			}
		}
	}
	known := map[string]Package{}
	ids := [2]map[string]bool{{}, {}}
	for i := range chunks {
		for id, c := range chunks[i] {
			if _, shared := chunks[1-i][id]; shared {
				continue
			}
			for _, m := range c.Members {
				known[m.PkgID], ids[i][m.PkgID] = m.Package, true
			}
			if c.Members != nil {
				continue
			}
			ps, err := s.places(tx, id)
			if err != nil {
				return d, err
			}
			for _, p := range ps {
				ids[i][p.PkgID] = true
			}
		}
	}
	out := [2]map[string]Package{{}, {}}
	for i := range ids {
		var ask []string
		for id := range ids[i] {
			if ids[1-i][id] {
				continue
			}
			if p, ok := known[id]; ok {
				out[i][p.Header] = p
			} else {
				ask = append(ask, id)
			}
		}
		for part := range slices.Chunk(ask, bulk) {
			if err := PackagesByID(tx, part, func(p Package) { out[i][p.Header] = p }); err != nil {
				return d, err
			}
		}
	}
	return gate.Difference{Old: out[0], Now: out[1]}, nil
}

// others lists the versions of a package, by name and arch, that trees have beside some.
func (s *Store) others(tx *db.Tx, ts []*tree, of Package, beside map[string]Package) (out []string, err error) {
	ps, err := packages(tx, "source = $1", of.Source)
	for _, p := range ps {
		if _, is := beside[p.Header]; is || p.Name() != of.Name() || p.Arch != of.Arch {
			continue
		}
		for _, t := range ts {
			ok, err := s.has(tx, t, p, "")
			if err != nil {
				return nil, err
			}
			if ok {
				out = append(out, p.NEVRA)
				break
			}
		}
	}
	return out, err
}

// FileRoutes adds the routes of the files that hosts and sites fetch.
func (s *Store) FileRoutes(srv *web.Server) {
	n := serving.NewCounters(srv)
	srv.HandleFunc("GET /snapshots/{id}/{tree}/{path...}", n.Metered(serving.KindMetadata, s.snapshotFile))
	srv.HandleFunc("GET /channels/{rest...}", n.Metered(serving.KindMetadata, s.channels))
	srv.HandleFunc("GET /chunks/{sum}", n.Metered(serving.KindChunk, s.chunkFile))
}

// Census tells how many hosts follow a channel.
func (s *Store) Census(ctx context.Context, channel string) ([]serving.Hosts, error) {
	if _, err := s.Channel(ctx, channel, ""); err != nil {
		return nil, err
	}
	return s.counts.Of(ctx, channel)
}
