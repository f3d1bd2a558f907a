package repo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"drover/internal/cli"
	"drover/internal/db"
	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/rpm"
	"drover/internal/web"

	"golang.org/x/sync/errgroup"
)

// TreeFile is a file of a snapshot as it lies below its tree.
type TreeFile struct {
	Tree   string `json:"tree"`
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	Mtime  int64  `json:"mtime,omitempty"` // seconds since 1970
}

// Files lists every file of a snapshot, of one tree or of all for "".
func (s *Store) Files(ctx context.Context, ref, name string) ([]TreeFile, error) {
	out := []TreeFile{}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		sn, err := s.getSnapshot(tx, ref)
		if err != nil {
			return err
		}
		ts, err := s.treesOfSnapshot(tx, sn.ID)
		if err != nil {
			return err
		}
		for _, t := range ts {
			if name != "" && name != t.name {
				continue
			}
			for _, c := range t.chunks {
				ms, err := s.membersTx(tx, c.id)
				if err != nil {
					return err
				}
				for _, m := range ms {
					out = append(out, TreeFile{t.name, m.href, m.Size, m.PkgID, m.Mtime})
				}
			}
			for _, f := range t.files {
				out = append(out, TreeFile{t.name, f.Path, f.Size, f.Sum, 0})
			}
		}
		if len(out) == 0 && name != "" {
			return fault.NotFound("tree_unknown", "the snapshot %.12s has no repository %.100q", sn.ID, name).Fix("see `drover snapshot show %.12s`", sn.ID)
		}
		return nil
	})
	return out, err
}

type snapshotExport struct {
	Snapshot string `arg:"" help:"Snapshot: its id, a name, a channel, or CHANNEL@TIME."`
	Dir      string `arg:"" help:"Directory to write to; a directory for each repository is made in it."`
	Tree     string `help:"Only this repository of it."`
}

// exporters is how many files are fetched at once.
const exporters = 6

// Run copies a snapshot into a directory that any web server, rsync or disc can carry. What is
// there already and right stays; repomd.xml comes last, so that a half copied tree is none.
func (c snapshotExport) Run(e *cli.Env) error {
	var x Content
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/snapshots/"+url.PathEscape(c.Snapshot)+"?trees=none", nil, &x); err != nil {
		return err
	}
	var fs []TreeFile
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/snapshots/"+x.ID+"/files?tree="+url.QueryEscape(c.Tree), nil, &fs); err != nil {
		return err
	}
	var total, done atomic.Int64
	for _, f := range fs {
		total.Add(f.Size)
		if err := rpm.CheckHref(f.Path); err != nil {
			return err
		}
		if f.Tree == "" || strings.ContainsAny(f.Tree, "/\x00") || f.Tree == ".." || f.Tree == "." {
			return fault.Invalid("tree_name", "the server names a repository %.50q", f.Tree)
		}
	}
	fetched := 0
	for _, last := range []bool{false, true} {
		g, ctx := errgroup.WithContext(e.Ctx)
		g.SetLimit(exporters)
		for _, f := range fs {
			if strings.HasPrefix(f.Path, repomdFile) != last {
				continue
			}
			path := filepath.Join(c.Dir, f.Tree, filepath.FromSlash(f.Path))
			if sameFile(path, f) {
				done.Add(f.Size)
				continue
			}
			fetched++
			g.Go(func() error {
				err := exportFile(ctx, e.Client, x.ID, f, path)
				if e.Terminal && err == nil {
					fmt.Fprintf(e.Err, "\r%s of %s ", web.Bytes(done.Add(f.Size)), web.Bytes(total.Load()))
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	if e.Terminal {
		fmt.Fprintln(e.Err)
	}
	return e.Show(map[string]any{"snapshot": x.ID, "files": len(fs), "fetched": fetched, "bytes": total.Load()}, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %d files, %s, %d of them new\n", c.Dir, len(fs), web.Bytes(total.Load()), fetched)
	})
}

// sameFile tells whether a file is there and has the right content.
func sameFile(path string, f TreeFile) bool {
	in, err := os.Lstat(path)
	if err != nil || in.Size() != f.Size || !in.Mode().IsRegular() {
		return false
	}
	r, err := os.Open(path)
	if err != nil {
		return false
	}
	defer r.Close()
	h := sha256.New()
	_, err = io.Copy(h, r)
	return err == nil && hex.EncodeToString(h.Sum(nil)) == f.SHA256
}

func exportFile(ctx context.Context, c *web.Client, id string, f TreeFile, path string) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // it is for others to read
		return durable.Full(dir, err)
	}
	parts := strings.Split(f.Path, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	resp, err := c.Do(ctx, "GET", "/snapshots/"+id+"/"+url.PathEscape(f.Tree)+"/"+strings.Join(parts, "/"), nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	tmp, err := os.CreateTemp(dir, ".export-*")
	if err != nil {
		return durable.Full(dir, err)
	}
	defer func() {
		if rerr := os.Remove(tmp.Name()); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}()
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(tmp, h), io.LimitReader(resp.Body, f.Size+1))
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err != nil {
		return durable.Full(dir, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != f.SHA256 {
		return fault.Unavailable("export_sum", "%s/%s came with another checksum", f.Tree, f.Path).Fix("export again; if it stays so, run `drover blob scrub`")
	}
	return os.Rename(tmp.Name(), path)
}

type snapshotSweep struct {
	Dry bool `help:"Only count what would go."`
}

// Run removes what nothing keeps.
func (c snapshotSweep) Run(e *cli.Env) error {
	var r Swept
	if err := e.Client.Call(e.Ctx, "POST", "/api/v1/snapshots/sweep", map[string]bool{"dry": c.Dry}, &r); err != nil {
		return err
	}
	return e.Show(r, func(w io.Writer) {
		if c.Dry {
			fmt.Fprintf(w, "%d snapshots would go\n", r.Snapshots)
			return
		}
		fmt.Fprintf(w, "gone: %d snapshots, %d packages, %d blobs, %s\n", r.Snapshots, r.Packages, r.Blobs, web.Bytes(r.Bytes))
	})
}
