package teststream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/rpm"
)

// Config says what to make and where.
type Config struct {
	Dir   string // the repository: Packages/ and repodata/
	Cache string // downloads and made packages; "" means ~/.cache/drover/teststream
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

// marker is the file that tells a repository made here from anything else.
const marker = "TESTSTREAM"

const markerText = "A stand-in for CentOS Stream, made by drover dev teststream from Debian's packages.\nThe next run replaces this directory as a whole.\n"

// Make makes the repository. The same Debian packages give the same bytes. The cache may be
// lost or damaged at any time; whoever uses one at the same time waits.
func Make(ctx context.Context, c Config) (Result, error) {
	res := Result{Dir: c.Dir}
	say := &voice{say: c.Say}
	if _, err := c.Set.seeds(); err != nil {
		return res, err
	}
	if err := mayReplace(c.Dir); err != nil {
		return res, err
	}
	dir := c.Cache
	if dir == "" {
		d, err := os.UserCacheDir()
		if err != nil {
			return res, fault.Invalid("cache", "no place for the cache").Wrap(err).Fix("set HOME or XDG_CACHE_HOME")
		}
		dir = filepath.Join(d, "drover", "teststream")
	}
	k, err := openCache(ctx, dir, say)
	if err != nil {
		return res, err
	}
	defer k.close()
	say.sayf("resolving the %s set", c.Set)
	debs, err := k.fill(ctx, c.Set)
	if err != nil {
		return res, err
	}
	stage := filepath.Join(filepath.Dir(c.Dir), "."+filepath.Base(c.Dir)+".teststream")
	if err := os.RemoveAll(stage); err != nil {
		return res, err
	}
	defer os.RemoveAll(stage)
	for _, d := range []string{"Packages", "repodata"} {
		if err := os.MkdirAll(filepath.Join(stage, d), 0o755); err != nil {
			return res, durable.Full(c.Dir, err)
		}
	}
	pkgs := make([]made, len(debs))
	done := 0
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for i, d := range debs {
		g.Go(func() (err error) {
			if pkgs[i], err = k.place(gctx, d, stage); err != nil {
				return err
			}
			say.mu.Lock()
			defer say.mu.Unlock()
			if pkgs[i].fresh {
				if done++; done%50 == 0 {
					say.locked("%d packages converted", done)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return res, durable.Full(c.Dir, err)
	}
	for _, b := range k.hand {
		p, err := entry(b, hexSum(b))
		if err == nil {
			err = os.WriteFile(filepath.Join(stage, p.href), b, 0o644)
		}
		if err != nil {
			return res, durable.Full(c.Dir, err)
		}
		pkgs = append(pkgs, p)
	}
	slices.SortFunc(pkgs, func(a, b made) int { return strings.Compare(a.href, b.href) })
	if err := metadata(stage, pkgs); err != nil {
		return res, durable.Full(c.Dir, err)
	}
	for _, p := range pkgs {
		res.Packages++
		res.Bytes += p.size
		if p.fresh {
			res.Fresh++
		}
	}
	say.sayf("%d packages, %d of them converted now", res.Packages, res.Fresh)
	return res, durable.SwitchDir(stage, c.Dir)
}

// voice lets workers talk one at a time.
type voice struct {
	mu  sync.Mutex
	say func(format string, args ...any) // may be nil
}

func (v *voice) sayf(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.locked(format, args...)
}

func (v *voice) locked(format string, args ...any) {
	if v.say != nil {
		v.say(format, args...)
	}
}

// mayReplace refuses a directory that holds anything but a repository made here.
func mayReplace(dir string) error {
	es, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && len(es) == 0:
		return nil
	case errors.Is(err, unix.ENOTDIR):
		return fault.Conflict("dir_taken", "%s is no directory", dir).Fix("give an empty or a new directory")
	case err != nil:
		return err
	}
	if b, err := os.ReadFile(filepath.Join(dir, marker)); err != nil || string(b) != markerText {
		return fault.Conflict("dir_taken", "%s holds something that was not made by teststream", dir).Fix("give an empty or a new directory")
	}
	return nil
}

// made is a package of the repository.
type made struct {
	name  string // of the package
	href  string
	size  int64
	frags rpm.Fragments
	fresh bool
}

// entry reads from an RPM with the given sum what the metadata needs.
func entry(b []byte, sum string) (made, error) {
	p, err := rpm.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return made{}, err
	}
	m := made{name: p.NEVRA().Name, href: "Packages/" + p.NEVRA().File(), size: int64(len(b))}
	at := rpm.Place{PkgID: sum, Href: m.href, Size: m.size, Mtime: builtAt().Unix(), HeaderStart: p.HeaderStart, HeaderEnd: p.HeaderEnd}
	m.frags = rpm.Fragments{Primary: rpm.Primary(nil, p, at), Filelists: rpm.Filelists(nil, p.Header, sum), Other: rpm.Other(nil, p.Header, sum)}
	return m, nil
}

// metadata writes what a repository has beside its packages.
func metadata(dir string, pkgs []made) error {
	here := map[string]bool{}
	var frags []rpm.Fragments
	for _, p := range pkgs {
		here[p.name] = true
		frags = append(frags, p.frags)
	}
	comps, err := comps(here)
	if err != nil {
		return err
	}
	files, err := rpm.Metadata(frags, comps.XML(), rpm.Zstd)
	if err != nil {
		return err
	}
	files = append(files, rpm.MetaFile{Name: "repodata/repomd.xml", Data: rpm.Repomd(files, builtAt().Unix(), builtAt().Unix())}, rpm.MetaFile{Name: marker, Data: []byte(markerText)})
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f.Name), f.Data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// comps has a group for each set of which all packages are here.
func comps(here map[string]bool) (rpm.Comps, error) {
	var c rpm.Comps
	for _, s := range []struct {
		set   Set
		key   string // is only in this set
		title string
	}{{Build, "gcc", "Build root"}, {Boot, "kernel", "Machine"}} {
		if !here[s.key] {
			continue
		}
		names, err := s.set.names(here)
		if err != nil {
			return c, err
		}
		g := rpm.CompsGroup{ID: string(s.set), Name: s.title, Description: "What the set " + string(s.set) + " asks for by name.", Visible: true}
		for _, n := range names {
			g.Packages = append(g.Packages, rpm.CompsPackage{Name: n, Type: "mandatory"})
		}
		c.Groups = append(c.Groups, g)
	}
	return c, nil
}

// builtAt is when everything here was built: one time, so that the same input gives the
// same bytes.
func builtAt() time.Time { return time.Unix(1700000000, 0).UTC() }

func hexSum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

//go:embed convert.go deb.go relation.go hand.go tables.go
var conversion embed.FS

// cache keeps what was downloaded and converted:
//
//	lock                     held by the one process that uses the cache
//	apt/                     Debian's lists
//	debs/FILE                as downloaded; believed only while the sum is right
//	rpms-VERSION/DEB-RPM.rpm what a conversion made, by the sums of input and output
type cache struct {
	dir  string
	say  *voice
	lock *os.File
	apt  apt
	hand [][]byte          // packages made by hand
	rpms string            // the directory of this version's
	have map[string]string // deb's sum to a file in rpms
	mu   sync.Mutex        // for a download by a worker
}

func openCache(ctx context.Context, dir string, say *voice) (*cache, error) {
	k := &cache{dir: dir, say: say, have: map[string]string{}}
	if err := os.MkdirAll(filepath.Join(dir, "debs"), 0o755); err != nil {
		return nil, durable.Full(dir, err)
	}
	if err := k.acquire(ctx); err != nil {
		return nil, err
	}
	if err := k.open(); err != nil {
		k.close()
		return nil, durable.Full(dir, err)
	}
	return k, nil
}

func (k *cache) close() { _ = k.lock.Close() }

// acquire takes the lock. The kernel gives it back when the process ends in any way.
func (k *cache) acquire(ctx context.Context) (err error) {
	if k.lock, err = os.OpenFile(filepath.Join(k.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644); err != nil {
		return durable.Full(k.dir, err)
	}
	for said := false; ; said = true {
		err := unix.Flock(int(k.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			k.close()
			return &os.PathError{Op: "flock", Path: k.lock.Name(), Err: err}
		}
		if !said {
			k.say.sayf("waiting for another process that uses %s", k.dir)
		}
		select {
		case <-ctx.Done():
			k.close()
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// open finds out what this version has. A version is the text of the conversion and what it
// and its libraries make of the packages made by hand.
func (k *cache) open() error {
	h := sha256.New()
	for _, n := range []string{"convert.go", "deb.go", "relation.go", "hand.go", "tables.go"} {
		b, err := conversion.ReadFile(n)
		if err != nil {
			return err
		}
		h.Write(b)
	}
	for _, s := range hand() {
		b, err := s.write()
		if err != nil {
			return err
		}
		k.hand = append(k.hand, b)
		h.Write(b)
	}
	k.rpms = filepath.Join(k.dir, "rpms-"+hex.EncodeToString(h.Sum(nil))[:16])
	if err := os.MkdirAll(k.rpms, 0o755); err != nil {
		return err
	}
	now := time.Now()
	if err := errors.Join(os.Chtimes(k.rpms, now, now), dropVersions(k.dir)); err != nil {
		return err
	}
	es, err := os.ReadDir(k.rpms)
	if err != nil {
		return err
	}
	for _, e := range es {
		if deb, _, ok := strings.Cut(e.Name(), "-"); ok && strings.HasSuffix(e.Name(), ".rpm") {
			k.have[deb] = e.Name()
		} else if err := os.Remove(filepath.Join(k.rpms, e.Name())); err != nil { // of a killed process
			return err
		}
	}
	k.apt = apt{dir: filepath.Join(k.dir, "apt"), lock: k.lock}
	return nil
}

// fill resolves the set and downloads what was not converted yet.
func (k *cache) fill(ctx context.Context, set Set) ([]source, error) {
	for age := listAge; ; age = 0 {
		if err := k.apt.prepare(ctx, age, k.say.sayf); err != nil {
			return nil, err
		}
		debs, err := k.apt.plan(ctx, set)
		if err != nil {
			return nil, err
		}
		debs = slices.DeleteFunc(debs, func(d source) bool { return dropped(d.name()) })
		var missing []source
		var size int64
		for _, d := range debs {
			if k.have[d.sum] == "" {
				if _, err := k.deb(d); err != nil {
					missing = append(missing, d)
					size += d.size
				}
			}
		}
		if len(missing) == 0 {
			return debs, nil
		}
		k.say.sayf("downloading %d packages, %d MiB", len(missing), size>>20)
		if err := room(k.dir, 3*size); err != nil { // an RPM is up to twice as large as its deb
			return nil, err
		}
		err = k.apt.download(ctx, missing, filepath.Join(k.dir, "debs"))
		if err == nil {
			return debs, k.prune(ctx, debs)
		}
		if age == 0 || ctx.Err() != nil || fault.Code(err) != "apt" {
			return nil, err
		}
		// The lists may name what the mirror has dropped since.
	}
}

// deb gives a downloaded package, or an error when it is not there, whole and right.
func (k *cache) deb(d source) ([]byte, error) {
	file := filepath.Join(k.dir, "debs", d.file)
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if hexSum(b) != d.sum {
		return nil, errors.Join(fmt.Errorf("%s is damaged", file), os.Remove(file))
	}
	return b, nil
}

// place puts the RPM of a deb into a repository.
func (k *cache) place(ctx context.Context, d source, stage string) (made, error) {
	var b []byte
	var sum string
	name, fresh := k.have[d.sum], false
	if name != "" {
		var err error
		if b, err = os.ReadFile(filepath.Join(k.rpms, name)); err != nil {
			return made{}, err
		}
		sum = hexSum(b)
	}
	if name == "" || name != d.sum+"-"+sum+".rpm" { // new, or damaged
		var err error
		if b, err = k.convert(ctx, d); err != nil {
			return made{}, err
		}
		sum, fresh = hexSum(b), true
		kept := d.sum + "-" + sum + ".rpm"
		if name != "" && name != kept {
			err = os.Remove(filepath.Join(k.rpms, name))
		}
		if name = kept; err == nil {
			err = durable.WriteFile(filepath.Join(k.rpms, name), b, 0o644)
		}
		if err != nil {
			return made{}, err
		}
	}
	m, err := entry(b, sum)
	if err != nil {
		return m, fmt.Errorf("%s: %w", d.file, err)
	}
	m.fresh = fresh
	to := filepath.Join(stage, m.href)
	if err := os.Link(filepath.Join(k.rpms, name), to); err != nil { // another file system
		return m, os.WriteFile(to, b, 0o644)
	}
	return m, nil
}

// convert makes the RPM of a deb.
func (k *cache) convert(ctx context.Context, d source) ([]byte, error) {
	in, err := k.deb(d)
	if err != nil { // its RPM was there a moment ago, and damaged
		k.mu.Lock()
		err = k.apt.download(ctx, []source{d}, filepath.Join(k.dir, "debs"))
		k.mu.Unlock()
		if err == nil {
			in, err = k.deb(d)
		}
		if err != nil {
			return nil, err
		}
	}
	deb, err := readDeb(ctx, d.file, in)
	if err != nil {
		return nil, err
	}
	b, err := convert(deb).write()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.file, err)
	}
	return b, nil
}

// versions is how many versions of the conversion keep their packages: trees of different
// age may take turns on one machine.
const versions = 3

// dropVersions keeps the packages of the versions that were used last.
func dropVersions(dir string) error {
	dirs, err := filepath.Glob(filepath.Join(dir, "rpms-*"))
	if err != nil {
		return err
	}
	used := map[string]time.Time{}
	for _, d := range dirs {
		info, err := os.Stat(d)
		if err != nil {
			return err
		}
		used[d] = info.ModTime()
	}
	slices.SortFunc(dirs, func(a, b string) int { return used[b].Compare(used[a]) })
	for _, d := range dirs[min(versions, len(dirs)):] {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	return nil
}

// prune bounds the cache when something new has come: what no set asks for any more goes,
// and what killed processes left behind.
func (k *cache) prune(ctx context.Context, used []source) error {
	all, err := k.apt.plan(ctx, All)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, d := range append(all, used...) {
		keep[d.file], keep[d.sum] = true, true
	}
	return errors.Join(removeBut(filepath.Join(k.dir, "debs"), keep), removeBut(k.rpms, keep))
}

// removeBut empties a directory but for files whose name, or its part before a '-', is in
// keep.
func removeBut(dir string, keep map[string]bool) error {
	es, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range es {
		if sum, _, _ := strings.Cut(e.Name(), "-"); !keep[e.Name()] && !keep[sum] {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
