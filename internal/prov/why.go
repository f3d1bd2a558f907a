package prov

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
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
	state := ""
	if strings.HasPrefix(v.What, "/") {
		header, verdict, err := owner(e.Ctx, v.Root, v.What)
		if err != nil {
			return err
		}
		q, state = url.Values{"header": {header}}, verdict
	}
	var a Answer
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/why?"+q.Encode(), nil, &a); err != nil {
		return err
	}
	return e.Show(struct {
		File string `json:"file,omitempty"`
		Answer
	}{state, a}, func(w io.Writer) {
		line := func(k, f string, args ...any) { fmt.Fprintf(w, "%-13s %s\n", k, fmt.Sprintf(f, args...)) }
		if state != "" {
			line("file", "%s: %s", v.What, state)
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
		signer := a.Signer
		if signer == "" {
			signer = "nobody"
		}
		line("signed with", "%s", signer)
		line("statement", "%s", a.Statement)
		line("tags", "%s", strings.Join(a.Tags, ", "))
	})
}

// dbPaths is where an rpm keeps its database in a root: EL9 and EL10 by sqlite.
func dbPaths() []string {
	return []string{"var/lib/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/rpmdb.sqlite"}
}

// owner finds the package that a file of an installed root belongs to, by the root's rpm
// database, and whether the file is still as packaged. It returns the sha256 of the header.
func owner(ctx context.Context, root, file string) (header, verdict string, err error) {
	var path string
	for _, p := range dbPaths() {
		if _, err := os.Stat(filepath.Join(root, p)); err == nil {
			path = filepath.Join(root, p)
		}
	}
	if path == "" {
		return "", "", fault.NotFound("rpmdb", "%s holds no rpm database", root).Fix("give the installed root with --root")
	}
	d, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: "mode=ro"}).String())
	if err != nil {
		return "", "", err
	}
	defer d.Close()
	rows, err := d.QueryContext(ctx, "SELECT blob FROM Packages")
	if err != nil {
		return "", "", fault.Unavailable("rpmdb", "the rpm database of %s cannot be read", root).Wrap(err)
	}
	defer rows.Close()
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			return "", "", err
		}
		h, err := rpm.ParseInstalled(b)
		if err != nil {
			return "", "", err
		}
		files, err := h.Files()
		if err != nil {
			return "", "", err
		}
		for _, f := range files {
			if f.Path == file {
				return h.String(rpm.SigSHA256), intact(root, f), nil
			}
		}
	}
	if err := rows.Err(); err != nil {
		return "", "", err
	}
	return "", "", fault.NotFound("file_unowned", "no package in %s has %s", root, file).Fix("it is not managed by packages, or the path goes over a symlink: give the real one")
}

// intact compares a file with what its package says of it.
func intact(root string, f rpm.File) string {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return "unreadable"
	}
	defer dir.Close()
	g, err := dir.Open(strings.TrimPrefix(f.Path, "/"))
	if errors.Is(err, fs.ErrNotExist) {
		return "missing"
	}
	if err != nil || len(f.Digest) != 64 {
		return "packaged"
	}
	defer g.Close()
	h := sha256.New()
	if _, err := io.Copy(h, g); err != nil {
		return "unreadable"
	}
	if hex.EncodeToString(h.Sum(nil)) != f.Digest {
		return "packaged, MODIFIED since"
	}
	return "packaged, intact"
}
