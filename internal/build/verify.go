package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/fault"
	"drover/internal/rpm"
)

// sum hashes what is read through it and counts down to its bound.
type sum struct {
	r    io.Reader
	h    hash.Hash
	left int64
}

func newSum(r io.Reader, most int64) *sum { return &sum{r, sha256.New(), most} }

// Read implements io.Reader.
func (s *sum) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.h.Write(p[:n])
	if s.left -= int64(n); s.left < 0 {
		return n, io.EOF
	}
	return n, err
}

func (s *sum) digest() blob.Digest { return blob.Digest(hex.EncodeToString(s.h.Sum(nil))) }

// Verdict is what a verifying build found.
type Verdict struct {
	Same    bool     `json:"same"`    // every package is byte-identical but for signatures
	Roots   bool     `json:"roots"`   // the buildroots held the same packages
	Differs []string `json:"differs"` // what is not
}

// Verify builds a complete build again, from the same commit in the same repositories, and
// compares the packages; nothing of the new build is kept but the verdict and its packages
// as a scratch build's.
func (s *Store) Verify(ctx context.Context, ref string) (Build, error) {
	old, err := s.Find(ctx, ref)
	if err != nil {
		return Build{}, err
	}
	if err := auth.Need(ctx, "build.submit", "target/"+old.Target); err != nil {
		return Build{}, err
	}
	if old.State != Complete {
		return Build{}, fault.Conflict("build_state", "build %d is %s; only a complete one can be verified", old.ID, strings.ToLower(string(old.State)))
	}
	plan, err := s.Plan(ctx, old.ID)
	if err != nil {
		return Build{}, err
	}
	b := Build{Package: old.Package, State: Building, Target: old.Target, Scratch: true, Verifies: old.ID, Repo: old.Repo, Commit: old.Commit, SRPM: old.SRPM, Owner: auth.From(ctx).String()}
	return s.start(ctx, b, plan)
}

// judge compares a verifying build with the one it rebuilt.
func (s *Store) judge(tx *db.Tx, b Build) (Verdict, error) {
	v := Verdict{Same: true, Roots: true, Differs: []string{}}
	olds, err := RPMsOf(tx, b.Verifies)
	if err != nil {
		return v, err
	}
	news, err := RPMsOf(tx, b.ID)
	if err != nil {
		return v, err
	}
	byFile := map[string]RPM{}
	for _, r := range news {
		byFile[r.File] = r
	}
	for _, o := range olds {
		n, ok := byFile[o.File]
		delete(byFile, o.File)
		switch {
		case !ok:
			v.Differs = append(v.Differs, o.File+" is missing")
		case o.Core != n.Core:
			d, err := s.difference(o, n)
			if err != nil {
				return v, err
			}
			v.Differs = append(v.Differs, d...)
		}
	}
	for f := range byFile {
		v.Differs = append(v.Differs, f+" is new")
	}
	slices.Sort(v.Differs)
	v.Differs = v.Differs[:min(len(v.Differs), 200)]
	v.Same = len(v.Differs) == 0
	var differ int
	err = tx.QueryRow(`SELECT COUNT(*) FROM build_task a JOIN build_task b ON a.label = b.label WHERE a.build = $1 AND b.build = $2 AND a.method <> 'build' AND a.root_before <> b.root_before`,
		b.ID, b.Verifies).Scan(&differ)
	v.Roots = differ == 0
	return v, err
}

func (s *Store) difference(a, b RPM) ([]string, error) {
	p, err := s.openRPM(a)
	if err != nil {
		return nil, err
	}
	q, err := s.openRPM(b)
	if err != nil {
		return nil, err
	}
	ds := compare(p.Header, q.Header, true)
	if len(ds) == 0 {
		ds = []string{"the payload is packed in another way"}
	}
	for i := range ds {
		ds[i] = a.File + ": " + ds[i]
	}
	return ds, nil
}

// compare names what differs between two packages: files by path, dependencies, and with
// all set every tag of the header. Without it, what only tells when and where a package was
// built is passed over, as Koji's comparison of noarch packages does.
func compare(a, b rpm.Header, all bool) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	fa, errA := a.Files()
	fb, errB := b.Files()
	if errA != nil || errB != nil {
		return []string{"the file lists cannot be read"}
	}
	files := map[string]rpm.File{}
	for _, f := range fa {
		files[f.Path] = f
	}
	for _, g := range fb {
		f, ok := files[g.Path]
		delete(files, g.Path)
		switch {
		case !ok:
			add("%s is new", g.Path)
		case f.Mode != g.Mode || f.User != g.User || f.Group != g.Group || f.Flags != g.Flags:
			add("%s has other rights or flags", g.Path)
		case f.Digest != g.Digest || f.Linkto != g.Linkto:
			add("%s has other content", g.Path)
		case all && f.Mtime != g.Mtime:
			add("%s has another time", g.Path)
		}
	}
	for p := range files {
		add("%s is missing", p)
	}
	for _, k := range []rpm.DepKind{rpm.Requires, rpm.Provides, rpm.Conflicts, rpm.Obsoletes, rpm.Recommends, rpm.Suggests, rpm.Supplements, rpm.Enhances} {
		if !slices.Equal(a.DepList(k), b.DepList(k)) {
			add("%s differ", k)
		}
	}
	for _, c := range []struct {
		name string
		tag  rpm.Tag
	}{{"%pre", rpm.PreIn}, {"%post", rpm.PostIn}, {"%preun", rpm.PreUn}, {"%postun", rpm.PostUn}, {"summary", rpm.Summary}, {"description", rpm.Description}, {"license", rpm.License}} {
		if a.String(c.tag) != b.String(c.tag) {
			add("%s differs", c.name)
		}
	}
	if all {
		for _, c := range []struct {
			name string
			tag  rpm.Tag
		}{{"build host", rpm.BuildHost}, {"compiler flags", rpm.OptFlags}} {
			if a.String(c.tag) != b.String(c.tag) {
				add("%s differs: %q, %q", c.name, a.String(c.tag), b.String(c.tag))
			}
		}
		if a.Int(rpm.BuildTime) != b.Int(rpm.BuildTime) {
			add("build time differs: %d, %d", a.Int(rpm.BuildTime), b.Int(rpm.BuildTime))
		}
	}
	slices.Sort(out)
	return out[:min(len(out), 100)]
}
