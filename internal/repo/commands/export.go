package commands

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
	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/repo"
	"drover/internal/rpm"
	"drover/internal/web"

	"golang.org/x/sync/errgroup"
)

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
	var x repo.Content
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/snapshots/"+url.PathEscape(c.Snapshot)+"?trees=none", nil, &x); err != nil {
		return err
	}
	var fs []repo.TreeFile
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
	if err := dropCut(c.Dir, fs); err != nil {
		return err
	}
	fetched := 0
	for _, last := range []bool{false, true} {
		g, ctx := errgroup.WithContext(e.Ctx)
		g.SetLimit(exporters)
		for _, f := range fs {
			if strings.HasPrefix(f.Path, "repodata/repomd.xml") != last {
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

// cutPrefix begins the names of files that are being fetched.
const cutPrefix = ".export-"

// dropCut removes what an export that was killed has left halfway in the trees.
func dropCut(dir string, files []repo.TreeFile) error {
	seen := map[string]bool{}
	for _, f := range files {
		in := filepath.Dir(filepath.Join(dir, f.Tree, filepath.FromSlash(f.Path)))
		if seen[in] {
			continue
		}
		seen[in] = true
		there, err := os.ReadDir(in)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		for _, e := range there {
			if strings.HasPrefix(e.Name(), cutPrefix) {
				err = errors.Join(err, os.Remove(filepath.Join(in, e.Name())))
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sameFile tells whether a file is there and has the right content.
func sameFile(path string, f repo.TreeFile) bool {
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

func exportFile(ctx context.Context, c *web.Client, id string, f repo.TreeFile, path string) (err error) {
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
	tmp, err := os.CreateTemp(dir, cutPrefix+"*")
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
	var r repo.Swept
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
