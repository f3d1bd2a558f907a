package site

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/blob"
	"drover/internal/fault"
	"drover/internal/repo/wire"
)

func (s *Site) routes() {
	s.web.HandleFunc("GET /channels/{rest...}", s.channelsHTTP)
	s.web.HandleFunc("GET /snapshots/{id}/{tree}/{path...}", s.snapshotHTTP)
	s.web.HandleFunc("GET /chunks/{sum}", s.chunkHTTP)
	s.web.HandleFunc("GET /keys/{file}", func(w http.ResponseWriter, r *http.Request) error { return s.keyHTTP(w, r.PathValue("file")) })
	s.web.HandleFunc("GET /keys/mirror/{file}", func(w http.ResponseWriter, r *http.Request) error {
		return s.keyHTTP(w, wire.PinnedKeys(r.PathValue("file")))
	})
	s.web.HandleFunc("GET /api/v1/channels/{name}/follow", s.followHTTP)
	s.web.HandleFunc("GET /status", s.statusHTTP)
	s.web.HandleFunc("/api/v1/agent/{rest...}", s.agentHTTP)
	s.metrics()
}

func noFile(path string) error {
	return fault.NotFound("file_unknown", "the site has no %.300q", path)
}

// forever lets caches keep what never changes.
const forever = "public, max-age=31536000, immutable"

// channelsHTTP serves what lies below /channels/, as the centre does.
func (s *Site) channelsHTTP(w http.ResponseWriter, r *http.Request) error {
	rest := r.PathValue("rest")
	if ext := path.Ext(rest); ext == ".repo" || ext == ".rpm" {
		if c := s.channel(strings.TrimSuffix(rest, ext)); c != nil {
			return s.lead(w, r, c, ext)
		}
	}
	part := strings.Split(rest, "/")
	var c *channel
	for n := min(2, len(part)); n > 0 && c == nil; n-- {
		if c = s.channel(strings.Join(part[:n], "/")); c != nil {
			part = part[n:]
		}
	}
	if c == nil || len(part) < 2 {
		return noFile(r.URL.Path)
	}
	pin := ""
	if len(part) > 3 && part[0] == "at" {
		pin, part = part[1], part[2:]
	}
	name, file := part[0], strings.Join(part[1:], "/")
	if pin == "" && (file == "metalink" || file == "mirrorlist") {
		return s.list(w, r, c, name, file)
	}
	if pin != "" {
		sn, err := s.pinned(r, c, name, pin)
		if err != nil {
			return err
		}
		if ok, err := s.tree(w, r, c.Name, sn, name, file, true); ok || err != nil {
			return err
		}
		return noFile(r.URL.Path)
	}
	moving := file == repomdFile || file == repomdFile+".asc"
	// Whoever has read an old repomd.xml finds its files. Packages are looked for where hosts are:
	// those of older states have their addresses by snapshot.
	for i := range c.States {
		if i >= keepLeast && !strings.HasPrefix(file, "repodata/") {
			break
		}
		if ok, err := s.tree(w, r, c.Name, &c.States[i], name, file, !moving); ok || err != nil {
			return err
		}
		if moving {
			break
		}
	}
	return s.absent(r.URL.Path, c)
}

// pinned finds a snapshot of a channel that has a tree, here or at the centre.
func (s *Site) pinned(r *http.Request, c *channel, tree, id string) (*snapshot, error) {
	if sn := c.find(id); sn != nil && sn.tree(tree) != nil {
		return sn, nil
	}
	err := fault.NotFound("file_unknown", "the site has no %.300q", r.URL.Path)
	if len(c.States) == 0 || c.States[0].tree(tree) == nil || s.stale(c) > 0 {
		return nil, err // the centre has it no more than the site, or cannot be asked
	}
	if len(id) != 64 {
		full, err := s.resolve(r.Context(), c.Name, tree, id)
		if err != nil {
			return nil, err
		}
		id = full
	}
	if err := s.pin(r.Context(), c.Name, id, tree); err != nil {
		return nil, err
	}
	if sn := s.channel(c.Name).find(id); sn != nil && sn.tree(tree) != nil {
		return sn, nil
	}
	return nil, err
}

// absent says why there is nothing.
func (s *Site) absent(path string, c *channel) error {
	if len(c.States) > 0 {
		return noFile(path)
	}
	why := c.trouble
	if why == "" {
		why = "it is being fetched"
	}
	return fault.Unavailable("site_empty", "the site does not have the channel %s yet: %s", c.Name, why).Fix("see /status of the site")
}

// snapshotHTTP serves a file of a snapshot that some channel has or had.
func (s *Site) snapshotHTTP(w http.ResponseWriter, r *http.Request) error {
	for _, c := range s.all() {
		if sn := c.find(r.PathValue("id")); sn != nil && sn.Snapshot == r.PathValue("id") {
			if ok, err := s.tree(w, r, c.Name, sn, r.PathValue("tree"), r.PathValue("path"), true); ok || err != nil {
				return err
			}
		}
	}
	return noFile(r.URL.Path)
}

// tree serves a file of a tree, when it is one.
func (s *Site) tree(w http.ResponseWriter, r *http.Request, channel string, sn *snapshot, name, file string, fixed bool) (bool, error) {
	t := sn.tree(name)
	if t == nil {
		return false, nil
	}
	if f, ok := t.file(file); ok {
		if strings.HasSuffix(file, ".xml") {
			w.Header().Set("Content-Type", "text/xml")
		}
		if !fixed {
			s.age(w, channel)
		}
		return true, s.blob(w, r, f.Sum, fixed)
	}
	if strings.HasPrefix(file, "repodata/") {
		return false, nil
	}
	x, err := s.index(t.Primary)
	if err != nil {
		return false, err
	}
	it, ok := x.items[file]
	if !ok {
		return false, nil
	}
	return true, s.pkg(w, r, it, wire.Pinned("", channel, sn.Snapshot, name)+escaped(file))
}

// age tells how old what moves may be, when the centre cannot be asked.
func (s *Site) age(w http.ResponseWriter, channel string) {
	c := s.channel(channel)
	if c == nil || len(c.States) == 0 {
		return
	}
	if since := s.stale(c); since > 0 {
		w.Header().Set("Age", seconds(since))
		w.Header().Set("Warning", `110 drover "the centre was last reached `+seconds(since)+` s ago"`)
	}
}

// blob serves a blob of metadata.
func (s *Site) blob(w http.ResponseWriter, r *http.Request, sum string, fixed bool) error {
	b, err := s.blobs.Get(blob.Digest(sum))
	if err != nil {
		return err
	}
	defer b.Close()
	h := w.Header()
	if h.Get("Content-Type") == "" {
		h.Set("Content-Type", "application/octet-stream")
	}
	h.Set("ETag", strconv.Quote(sum))
	h.Set("Cache-Control", "no-cache")
	if fixed {
		h.Set("Cache-Control", forever)
	}
	s.numbers.sends(w, func(w http.ResponseWriter) { http.ServeContent(w, r, "", time.Time{}, b) })
	return nil
}

// pkg serves a package: from the disk, or while it comes from the centre.
func (s *Site) pkg(w http.ResponseWriter, r *http.Request, it item, path string) error {
	sum := it.hex()
	h := w.Header()
	h.Set("Content-Type", "application/x-rpm")
	h.Set("ETag", strconv.Quote(sum))
	h.Set("Cache-Control", forever)
	b, err := s.blobs.Get(blob.Digest(sum))
	switch {
	case err == nil:
		defer b.Close()
		s.touch(sum)
		s.numbers.hits.Add(1)
		s.numbers.sends(w, func(w http.ResponseWriter) { http.ServeContent(w, r, "", time.Time{}, b) })
		return nil
	case fault.Code(err) != "blob_unknown":
		return err
	case r.Method == http.MethodHead:
		h.Set("Content-Length", strconv.FormatInt(it.size, 10))
		h.Set("Accept-Ranges", "bytes")
		return nil
	case r.Header.Get("If-None-Match") == strconv.Quote(sum):
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	s.numbers.misses.Add(1)
	f, err := s.fly(it, path)
	switch {
	case err == nil:
		defer s.leave(f)
	case fault.Code(err) == "disk_full":
		s.crowded(err)
		f = &flight{item: it, ended: true, err: err, wake: make(chan struct{})}
	default:
		return err
	}
	if r.Header.Get("Range") != "" {
		// A part of it is sent when the whole was checked.
		if err = f.landed(r.Context()); err == nil {
			s.numbers.sends(w, func(w http.ResponseWriter) {
				http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(f.file, 0, it.size))
			})
			return nil
		}
	}
	return unreached(s.pass(w, r, f, path))
}

// unreached tells hosts that the site is well and the centre is not.
func unreached(err error) error {
	if fault.Code(err) == "server_away" {
		return fault.Unavailable("site_centre_away", "the package is not here, and the centre cannot be reached").Wrap(err).Fix("ask again when it can; a site with --ahead has the packages before")
	}
	return err
}

// chunkHTTP serves a chunk of metadata, for a site behind this one.
func (s *Site) chunkHTTP(w http.ResponseWriter, r *http.Request) error {
	sum := r.PathValue("sum")
	for _, c := range s.all() {
		for t := range c.trees() {
			if slices.Contains(t.Chunks, sum) {
				return s.blob(w, r, sum, true)
			}
		}
	}
	return fault.NotFound("chunk_unknown", "there is no chunk %.80q", sum).Fix("read repomd.xml again: it names the present ones")
}

// keyHTTP serves a key that the site took.
func (s *Site) keyHTTP(w http.ResponseWriter, file string) error {
	name := strings.TrimSuffix(file, ".asc")
	text, err := s.trust.text(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.NotFound("key_unknown", "the site took no key %.100q", name)
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/pgp-keys")
	_, _ = w.Write(text)
	return nil
}

// list serves the metalink or the mirror list of a tree.
func (s *Site) list(w http.ResponseWriter, r *http.Request, c *channel, name, kind string) error {
	choice := wire.ChoiceOf(r)
	if choice.Ring != "" {
		if c = s.channel(choice.Channel(c.Name)); c == nil {
			return fault.NotFound("channel_unknown", "the site does not follow that ring").Fix("start it with another --channel")
		}
	}
	var now *snapshot
	if choice.Snapshot != "" {
		var err error
		if now, err = s.pinned(r, c, name, choice.Snapshot); err != nil {
			return err
		}
	} else if len(c.States) > 0 {
		now = &c.States[0]
	}
	if now == nil || now.tree(name) == nil || !wire.GoodHost(r.Host) {
		return s.absent(r.URL.Path, c)
	}
	if n := r.URL.Query().Get("countme"); len(n) == 1 && n >= "1" && n <= "4" {
		select {
		case s.census <- "/channels/" + c.Name + "/" + url.PathEscape(name) + "/metalink?countme=" + n:
		default:
		}
	}
	root := wire.Pinned(wire.Base(r), c.Name, now.Snapshot, name)
	s.age(w, c.Name)
	w.Header().Set("Cache-Control", "no-cache")
	if kind == "mirrorlist" {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte(root + "\n"))
		return nil
	}
	mds := [][]byte{}
	states := []snapshot{*now}
	if choice.Snapshot == "" {
		states = c.States
	}
	for i := range states {
		t := states[i].tree(name)
		if t == nil || len(mds) > earlier {
			continue
		}
		f, _ := t.file(repomdFile)
		b, err := s.blobs.ReadAll(blob.Digest(f.Sum), maxRepomd)
		if err != nil {
			return err
		}
		mds = append(mds, b)
	}
	b, err := wire.Metalink(mds, root)
	if err != nil {
		return err
	}
	f, _ := now.tree(name).file(repomdFile)
	w.Header().Set("Content-Type", "application/metalink+xml; charset=utf-8")
	w.Header().Set("ETag", `"`+f.Sum[:32]+now.Snapshot[:32]+`"`)
	s.numbers.sends(w, func(w http.ResponseWriter) { http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b)) })
	return nil
}

// earlier is how many states before the present one a metalink tells of.
const earlier = 5

// lead serves what leads a host to the site: the .repo file, or the package with it.
func (s *Site) lead(w http.ResponseWriter, r *http.Request, c *channel, ext string) error {
	if len(c.States) == 0 {
		return s.absent(r.URL.Path, c)
	}
	if !wire.GoodHost(r.Host) {
		return noFile(r.URL.Path)
	}
	st, base := c.States[0].State, wire.Base(r)
	w.Header().Set("Cache-Control", "no-cache")
	if ext == ".repo" {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		parts := wire.Keyed(wire.Parts(st.Channel, st.Trees), func(key string) string { return base + "/keys/" + key + ".asc" })
		_, _ = w.Write(wire.RepoFile(base, c.Name, parts))
		return nil
	}
	keys := map[string]string{}
	for _, t := range st.Trees {
		for _, k := range t.Keys() {
			text, err := s.trust.text(k)
			if err != nil {
				return err
			}
			keys[k] = string(text)
		}
	}
	b, err := wire.ReleasePackage(base, st, keys)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	w.Header().Set("Content-Type", "application/x-rpm")
	w.Header().Set("ETag", strconv.Quote(hex.EncodeToString(sum[:])))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	return nil
}

// agentHTTP passes on what agents say to the server: they need not reach it themselves. What the
// server answers is sealed, and what agents show it is for it alone.
func (s *Site) agentHTTP(w http.ResponseWriter, r *http.Request) error {
	base, err := url.Parse(s.Centre.Base)
	if err != nil {
		return err
	}
	p := &httputil.ReverseProxy{Transport: s.Centre.HTTP.Transport, Rewrite: func(pr *httputil.ProxyRequest) {
		pr.SetURL(base)
		pr.Out.Host = base.Host
	}, ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
		s.web.Problem(w, r, fault.Unavailable("centre_away", "the server %s does not answer this site", s.Centre.Base).Wrap(err).Fix("try again"))
	}}
	p.ServeHTTP(w, r)
	return nil
}
