package prov

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"drover/internal/cli"
	"drover/internal/fault"
	"drover/internal/rpm"
	"drover/internal/web"
)

// Routes adds the routes of provenance.
func (s *Store) Routes(srv *web.Server) {
	const tag = "prov"
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/why", ID: "why", Summary: "How a package came about", Tag: tag},
		func(ctx context.Context, in *struct {
			Header string `query:"header" maxLength:"64" doc:"sha256 of the package's immutable header"`
			NEVRA  string `query:"nevra" maxLength:"500"`
		}) (Answer, error) {
			return s.Why(ctx, in.Header, in.NEVRA)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/builds/{id}/statement", ID: "build-statement", Summary: "The signed statement of a build: SLSA provenance v1 in a DSSE envelope", Tag: tag},
		func(ctx context.Context, in *struct {
			ID int64 `path:"id"`
		}) (Envelope, error) {
			return s.Statement(ctx, in.ID)
		})
}

// Verb is `drover why`.
type Verb struct {
	What string `arg:"" help:"A file of an installed system (/usr/bin/hello), or a package: name-version-release.arch."`
	Root string `default:"/" help:"The installed root that the file is in." type:"path"`
}

// Run answers.
func (v Verb) Run(e *cli.Env) error {
	q := url.Values{"nevra": {v.What}}
	var o *owned
	if strings.HasPrefix(v.What, "/") {
		var err error
		if o, err = owner(e.Ctx, v.Root, v.What); err != nil {
			return err
		}
		q = url.Values{"header": {o.header}}
		if o.header == "" { // of before rpm 4.14
			q = url.Values{"nevra": {o.nevra}}
		}
	}
	var a Answer
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/why?"+q.Encode(), nil, &a); err != nil {
		if o != nil && (fault.Code(err) == "rpm_unknown" || fault.Code(err) == "package_unknown") {
			return fault.NotFound("package_unknown", "%s is of %s, which was neither built nor mirrored here", v.What, o.nevra).Fix("ask the server that the root was installed from: --url")
		}
		return err
	}
	type file struct {
		Path  string `json:"path"`
		State State  `json:"state"`
	}
	var f *file
	if o != nil {
		f = &file{o.path, o.state}
	}
	return e.Show(struct {
		File *file `json:"file,omitempty"`
		Answer
	}{f, a}, func(w io.Writer) {
		line := func(k, f string, args ...any) { fmt.Fprintf(w, "%-13s %s\n", k, fmt.Sprintf(f, args...)) }
		if o != nil && o.path != v.What {
			line("file", "%s is %s: %s", v.What, o.path, o.state)
		} else if o != nil {
			line("file", "%s: %s", v.What, o.state)
		}
		line("package", "%s", a.Package)
		line("header", "sha256 %s", a.Header)
		if a.Build == 0 {
			line("from", "mirror %s", strings.Join(a.Mirrors, ", "))
			return
		}
		line("build", "%d (%s), submitted by %s", a.Build, a.NVR, a.Owner)
		if a.Commit != "" {
			line("commit", "%s of %s", a.Commit, a.Repo)
			line("pusher", "%s at %s, event %d", a.Pusher, a.Pushed, a.PushEvent)
		} else {
			line("source", "uploaded source RPM, sha256 %s", a.SRPM)
		}
		line("builder", "%s", a.Builder)
		line("buildroot", "%s", a.Root)
		line("signed with", "%s", cmp.Or(strings.Join(a.Signers, ", "), "nothing"))
		line("statement", "%s", a.Statement)
		line("tags", "%s", strings.Join(a.Tags, ", "))
	})
}

// dbPaths is where an rpm keeps its database in a root: EL9 and EL10 by sqlite.
func dbPaths() []string {
	return []string{"var/lib/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/rpmdb.sqlite"}
}

// owned is a file of an installed root with the package that it belongs to.
type owned struct {
	path   string // as the package has it
	state  State
	header string // sha256 of the package's header
	nevra  string
}

// owner finds the package that a file of an installed root belongs to, by the root's rpm
// database. A path that goes over symlinks is the one that it leads to: /bin/sh where /bin is
// usr/bin, in the question as well as in the package.
func owner(ctx context.Context, root, file string) (*owned, error) {
	db := ""
	for _, p := range dbPaths() {
		if _, err := os.Stat(filepath.Join(root, p)); err == nil {
			db = filepath.Join(root, p)
		}
	}
	if db == "" {
		return nil, fault.NotFound("rpmdb", "%s holds no rpm database", root).Fix("give the installed root with --root")
	}
	at := where{root: root, dirs: map[string]string{}}
	file = path.Clean(file)
	want := at.parent(file)
	// A link that no package has, such as one of alternatives: what it leads to.
	leads := at.follow(file)
	var found, second *owned
	err := packages(ctx, db, func(h rpm.Header) error {
		w, err := h.FileWalk()
		if err != nil {
			return err
		}
		match := false
		for w.Next() {
			b := string(w.Base())
			match = match || b == path.Base(want) || b == path.Base(leads) || len(w.Dir()) == 0
		}
		if !match {
			return nil
		}
		files, err := h.Files()
		if err != nil {
			return err
		}
		for _, f := range files {
			if b := path.Base(f.Path); b != path.Base(want) && b != path.Base(leads) {
				continue
			}
			real := at.parent(f.Path)
			o := &owned{path: f.Path, header: h.String(rpm.SigSHA256), nevra: h.NEVRA().String()}
			switch {
			case found == nil && (f.Path == file || real == want):
				o.state, found = intact(root, real, f, h.FileDigest()), o
			case second == nil && real == leads:
				o.state, second = intact(root, real, f, h.FileDigest()), o
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if found = cmp.Or(found, second); found != nil {
		return found, nil
	}
	if _, err := os.Lstat(filepath.Join(root, want)); err != nil {
		return nil, fault.NotFound("file_unknown", "%s has no %s, and no package there either", root, file)
	}
	return nil, fault.NotFound("file_unowned", "no package in %s has %s", root, file).Fix("it was not installed by a package: somebody or some program made it")
}

// packages calls fn with the header of each package of an rpm database.
func packages(ctx context.Context, file string, fn func(rpm.Header) error) error {
	read := func(query string) (n int, err error) {
		d, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: file}).EscapedPath(), RawQuery: query}).String())
		if err != nil {
			return 0, err
		}
		defer d.Close()
		rows, err := d.QueryContext(ctx, "SELECT blob FROM Packages ORDER BY hnum")
		if err != nil {
			return 0, err
		}
		defer rows.Close()
		for rows.Next() {
			var b []byte
			if err := rows.Scan(&b); err != nil {
				return n, err
			}
			n++
			h, err := rpm.ParseInstalled(b)
			if err != nil {
				return n, err
			}
			if err := fn(h); err != nil {
				return n, err
			}
		}
		return n, rows.Err()
	}
	n, err := read("mode=ro")
	if err != nil && n == 0 {
		// Without the right to make the files of a write-ahead log, SQLite reads a database
		// only as one that nobody writes.
		_, err = read("mode=ro&immutable=1")
	}
	if err != nil && fault.As(err).Kind == fault.KindInternal {
		return fault.Unavailable("rpmdb", "the rpm database %s cannot be read", file).Wrap(err).Fix("run it as root")
	}
	return err
}

// where resolves paths of an installed root: absolute symlinks lead to places in the root.
type where struct {
	root string
	dirs map[string]string // resolved before
}

// parent is a path whose directory is resolved and whose last part is as it is.
func (w where) parent(p string) string {
	dir := path.Dir(p)
	real, ok := w.dirs[dir]
	if !ok {
		real = w.follow(dir)
		w.dirs[dir] = real
	}
	return path.Join(real, path.Base(p))
}

// follow resolves every symlink of a path. What is not there stays as it is.
func (w where) follow(p string) string {
	rest := strings.Split(strings.TrimPrefix(path.Clean(p), "/"), "/")
	done := "/"
	for links := 0; len(rest) > 0; {
		next := path.Join(done, rest[0])
		target, err := os.Readlink(filepath.Join(w.root, next))
		if err != nil || links == 40 {
			done, rest = next, rest[1:]
			continue
		}
		links++
		if path.IsAbs(target) {
			done = "/"
		}
		rest = append(strings.Split(strings.Trim(path.Clean(target), "/"), "/"), rest[1:]...)
	}
	return done
}

// State is what became of a packaged file.
type State string

// The states of packaged files.
const (
	Intact     State = "packaged, intact"
	Modified   State = "packaged, MODIFIED since"
	Missing    State = "packaged, MISSING"
	Unreadable State = "packaged, unreadable"
	Packaged   State = "packaged" // it has no content to compare, or none that is known
)

// intact compares a file with what its package says of it.
func intact(root, real string, f rpm.File, algo string) State {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return Unreadable
	}
	defer dir.Close()
	name := strings.TrimPrefix(real, "/")
	if name == "" {
		return Packaged
	}
	fi, err := dir.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Missing
	case err != nil:
		return Unreadable
	case f.Flags&rpm.FileGhost != 0:
		return Packaged
	case f.Linkto != "":
		if target, err := dir.Readlink(name); err != nil || target != f.Linkto {
			return Modified
		}
		return Intact
	case f.IsDir() != fi.IsDir(), f.IsRegular() != fi.Mode().IsRegular():
		return Modified
	case !f.IsRegular():
		return Packaged
	}
	h := map[string]func() hash.Hash{"sha256": sha256.New, "sha384": sha512.New384, "sha512": sha512.New}[algo]
	if h == nil {
		return Packaged
	}
	g, err := dir.Open(name)
	if err != nil {
		return Unreadable
	}
	defer g.Close()
	sum := h()
	if _, err := io.Copy(sum, g); err != nil {
		return Unreadable
	}
	if hex.EncodeToString(sum.Sum(nil)) != f.Digest {
		return Modified
	}
	return Intact
}
