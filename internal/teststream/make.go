package teststream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"drover/internal/cli"
	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/rpm"

	"golang.org/x/sync/errgroup"
)

//go:embed convert.go deb.go tables.go
var conversion embed.FS

// version names the conversion by its own text: packages that another one made are not used.
func version() (string, error) {
	h := sha256.New()
	for _, n := range []string{"convert.go", "deb.go", "tables.go"} {
		b, err := conversion.ReadFile(n)
		if err != nil {
			return "", err
		}
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// Config says what to make and where.
type Config struct {
	Dir   string // the repository: Packages/ and repodata/
	Cache string // debs and converted packages; "" means ~/.cache/drover/teststream
	Set   Set
	Say   func(format string, args ...any) // progress; may be nil
}

// Result is what was made.
type Result struct {
	Dir      string `json:"dir"`
	Packages int    `json:"packages"`
	Fresh    int    `json:"fresh"` // converted now, not taken from the cache
	Bytes    int64  `json:"bytes"`
}

// DefaultCache is where debs and converted packages are kept.
func DefaultCache() (string, error) {
	d, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(d, "drover", "teststream"), nil
}

// Make makes the repository. The same Debian packages give the same bytes; what is in the
// cache is not made again, and the cache is safe to lose at any time.
func Make(ctx context.Context, c Config) (Result, error) {
	res := Result{Dir: c.Dir}
	if c.Say == nil {
		c.Say = func(string, ...any) {}
	}
	if c.Cache == "" {
		var err error
		if c.Cache, err = DefaultCache(); err != nil {
			return res, err
		}
	}
	c.Say("resolving the %s set with apt", c.Set)
	debs, err := download(ctx, c.Set, filepath.Join(c.Cache, "debs"))
	if err != nil {
		return res, err
	}
	v, err := version()
	if err != nil {
		return res, err
	}
	done := filepath.Join(c.Cache, "rpms-"+v)
	if err := os.MkdirAll(done, 0o755); err != nil {
		return res, err
	}
	files := make([]string, len(debs))
	fresh := make([]bool, len(debs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for i, deb := range debs {
		name, _, _ := strings.Cut(filepath.Base(deb), "_")
		if dropped(name) {
			continue
		}
		g.Go(func() (err error) {
			files[i], fresh[i], err = cached(gctx, deb, done)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return res, err
	}
	files = slices.DeleteFunc(files, func(s string) bool { return s == "" })
	for _, f := range fresh {
		if f {
			res.Fresh++
		}
	}
	c.Say("%d packages, %d of them converted now", len(files), res.Fresh)
	for _, s := range hand() {
		f, err := keep(s, done)
		if err != nil {
			return res, err
		}
		files = append(files, f)
	}
	slices.Sort(files)
	return assemble(c, res, files)
}

// cached gives the RPM of a deb, converting it when it is not there.
func cached(ctx context.Context, deb, dir string) (file string, fresh bool, err error) {
	sum, err := hashFile(deb)
	if err != nil {
		return "", false, err
	}
	link := filepath.Join(dir, sum)
	if name, err := os.Readlink(link); err == nil {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name), false, nil
		}
	}
	d, err := readDeb(ctx, deb)
	if err != nil {
		return "", false, err
	}
	s := convert(d)
	file, err = keep(s, dir)
	if err != nil {
		return "", false, err
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	return file, true, os.Symlink(filepath.Base(file), link)
}

func keep(s *spec, dir string) (string, error) {
	b, err := s.write(nil)
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, fmt.Sprintf("%s-%s-%s.%s.rpm", s.name, s.version, s.release, s.arch))
	return name, durable.WriteFile(name, b, 0o644)
}

func hashFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// assemble makes the repository beside its place and moves it there whole.
func assemble(c Config, res Result, files []string) (Result, error) {
	tmp := c.Dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return res, err
	}
	defer os.RemoveAll(tmp)
	for _, d := range []string{"Packages", "repodata"} {
		if err := os.MkdirAll(filepath.Join(tmp, d), 0o755); err != nil {
			return res, durable.Full(c.Dir, err)
		}
	}
	var frags []rpm.Fragments
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return res, err
		}
		p, err := rpm.Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return res, fmt.Errorf("%s: %w", f, err)
		}
		sum := sha256.Sum256(b)
		at := rpm.Place{PkgID: hex.EncodeToString(sum[:]), Href: "Packages/" + filepath.Base(f), Size: int64(len(b)), Mtime: made().Unix(), HeaderStart: p.HeaderStart, HeaderEnd: p.HeaderEnd}
		frags = append(frags, rpm.Fragments{Primary: rpm.Primary(nil, p, at), Filelists: rpm.Filelists(nil, p.Header, at.PkgID), Other: rpm.Other(nil, p.Header, at.PkgID)})
		to := filepath.Join(tmp, "Packages", filepath.Base(f))
		if err := os.Link(f, to); err != nil { // another file system
			if err := os.WriteFile(to, b, 0o644); err != nil {
				return res, durable.Full(c.Dir, err)
			}
		}
		res.Bytes += int64(len(b))
	}
	res.Packages = len(files)
	metas, err := rpm.Metadata(frags, nil, rpm.Zstd)
	if err != nil {
		return res, err
	}
	for _, m := range append(metas, rpm.MetaFile{Name: "repodata/repomd.xml", Data: rpm.Repomd(metas, made().Unix(), made().Unix())}) {
		if err := os.WriteFile(filepath.Join(tmp, m.Name), m.Data, 0o644); err != nil {
			return res, durable.Full(c.Dir, err)
		}
	}
	if _, err := os.Stat(filepath.Join(c.Dir, "repodata", "repomd.xml")); err != nil {
		if es, rerr := os.ReadDir(c.Dir); rerr == nil && len(es) > 0 {
			return res, fault.Conflict("dir_taken", "%s holds something that is no repository", c.Dir).Fix("give an empty or a new directory")
		}
	}
	if err := os.RemoveAll(c.Dir); err != nil {
		return res, err
	}
	return res, os.Rename(tmp, c.Dir)
}

// Verb is `drover dev teststream`.
type Verb struct {
	Dir string `arg:"" help:"Where the repository goes; what is there is replaced." type:"path"`
	Set Set    `default:"build" enum:"build,boot,all" help:"build: a root in which rpmbuild works; boot: kernel, systemd, sshd, dnf; all: both."`
}

// Run makes the distribution.
func (v Verb) Run(e *cli.Env) error {
	res, err := Make(e.Ctx, Config{Dir: v.Dir, Set: v.Set, Say: e.Say})
	if err != nil {
		return err
	}
	return e.Show(res, func(w io.Writer) { fmt.Fprintf(w, "%s: %d packages, %d MiB\n", res.Dir, res.Packages, res.Bytes>>20) })
}
