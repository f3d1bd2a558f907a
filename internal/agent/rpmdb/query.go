package rpmdb

import (
	"context"
	"database/sql"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"drover/internal/fault"
	"drover/internal/rpm"
)

// Info is what a package says of itself.
type Info struct {
	Package
	Summary       string
	Description   string
	License       string
	Group         string
	URL           string
	Packager      string
	BuildHost     string
	Relocations   []string
	SignatureTime int64  // seconds since 1970, as the signature claims; 0 when there is none
	SignatureHash string // "SHA-256"
}

const tagPrefixes rpm.Tag = 1098

func infoOf(h rpm.Header) Info {
	i := Info{Package: packageOf(h), Summary: h.String(rpm.Summary), Description: h.String(rpm.Description), License: h.String(rpm.License), Group: h.String(rpm.Group),
		URL: h.String(rpm.URL), Packager: h.String(rpm.Packager), BuildHost: h.String(rpm.BuildHost), Relocations: h.Strings(tagPrefixes)}
	if s := signatures(h); len(s) > 0 {
		i.SignatureTime, i.SignatureHash = s[0].Created.Unix(), s[0].Hash.String()
	}
	return i
}

// About tells of installed packages, by what they were asked for: a name, or anything else that
// `rpm -q` takes. What is not installed is left out. Without any label it tells of all packages, by
// name.
func About(ctx context.Context, root string, labels ...string) (map[string][]Info, error) {
	var out map[string][]Info
	err := read(ctx, root, func(tx *sql.Tx) error {
		out = map[string][]Info{}
		if len(labels) == 0 {
			return scan(ctx, tx, func(_ int64, h rpm.Header) error {
				i := infoOf(h)
				out[i.Name] = append(out[i.Name], i)
				return nil
			}, allHeaders)
		}
		for _, l := range labels {
			var found []Info
			if err := labeled(ctx, tx, l, func(h rpm.Header) error {
				found = append(found, infoOf(h))
				return nil
			}); err != nil {
				return err
			}
			if found != nil {
				out[l] = found
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, l := range out {
		slices.SortFunc(l, func(a, b Info) int { return order(a.Package, b.Package) })
	}
	return out, nil
}

// label is one way to read what somebody calls a package by. Empty parts fit everything.
type label struct{ name, version, release, arch string }

// readings are the ways to read a label, in the order in which rpm tries them: a name, a name with
// a version, a name with version and release, each without and with an arch at its end.
func readings(s string) []label {
	out := []label{{name: s}}
	add := func(s, arch string) {
		if i := strings.LastIndexByte(s, '-'); i > 0 && i < len(s)-1 {
			out = append(out, label{name: s[:i], version: s[i+1:], arch: arch})
			if j := strings.LastIndexByte(s[:i], '-'); j > 0 && j < i-1 {
				out = append(out, label{s[:j], s[j+1 : i], s[i+1:], arch})
			}
		}
	}
	if i := strings.LastIndexByte(s, '.'); i > 0 && i < len(s)-1 {
		out = append(out, label{name: s[:i], arch: s[i+1:]})
		add(s, "")
		add(s[:i], s[i+1:])
	} else {
		add(s, "")
	}
	return out
}

func (l label) fits(p Package) bool {
	v := l.version
	if e, rest, ok := strings.Cut(v, ":"); ok {
		if e != fmt.Sprint(p.Epoch) {
			return false
		}
		v = rest
	}
	return (v == "" || v == p.Version) && (l.release == "" || l.release == p.Release) && (l.arch == "" || l.arch == p.Arch)
}

// labeled gives the header of each package that a label means.
func labeled(ctx context.Context, tx *sql.Tx, s string, fn func(rpm.Header) error) error {
	if len(s) > 1000 {
		return fault.Invalid("package_name", "%.100q… is no name of a package", s)
	}
	for _, l := range readings(s) {
		found := false
		err := scan(ctx, tx, func(_ int64, h rpm.Header) error {
			if !l.fits(packageOf(h)) {
				return nil
			}
			found = true
			return fn(h)
		}, namedHeaders, l.name)
		if err != nil || found {
			return err
		}
	}
	return nil
}

// some is labeled for a package that must be there.
func some(ctx context.Context, tx *sql.Tx, label string, fn func(rpm.Header) error) error {
	found := false
	err := labeled(ctx, tx, label, func(h rpm.Header) error {
		found = true
		return fn(h)
	})
	if err == nil && !found {
		err = fault.NotFound("package_missing", "the package %.200s is not installed", label)
	}
	return err
}

// Headers gives the header of each installed package that a label means, for what Package and Info
// leave out: dependencies, scripts, changes. A header must not be kept. Should the database change
// under it, it starts over. Without such a package the error has code package_missing.
func Headers(ctx context.Context, root, label string, fn func(rpm.Header) error) error {
	return read(ctx, root, func(tx *sql.Tx) error { return some(ctx, tx, label, fn) })
}

// File is a file of an installed package.
type File struct {
	rpm.File
	Algo   string // of the digest: "sha256"
	State  State
	Verify uint32 // what is to be verified, by bit; see Verify
	Caps   string // file capabilities as text; empty when there are none
}

// State is what became of a file when its package was installed.
type State uint8

// The states (rpm's include/rpm/rpmfiles.h).
const (
	Normal       State = 0
	Replaced     State = 1 // by a file of another package
	NotInstalled State = 2 // left out: documentation, another language
	NetShared    State = 3 // on a file system that other hosts share
	WrongColor   State = 4 // the 64-bit one was taken
)

// String is the state as rpm --state names it.
func (s State) String() string {
	switch s {
	case Normal:
		return "normal"
	case Replaced:
		return "replaced"
	case NotInstalled:
		return "not installed"
	case NetShared:
		return "net shared"
	case WrongColor:
		return "wrong color"
	}
	return "no state"
}

// filesOf lists the files of a header.
func filesOf(h rpm.Header) ([]File, error) {
	fs, err := h.Files()
	if err != nil {
		return nil, err
	}
	out := make([]File, len(fs))
	states, verify, algo := h.Ints(tagFileStates), h.Ints(rpm.FileVerify), h.FileDigest()
	for i, f := range fs {
		out[i] = File{File: f, State: State(states.At(i)), Verify: ^uint32(0)}
		if i < verify.Len() {
			out[i].Verify = uint32(verify.At(i))
		}
		if f.Digest != "" {
			out[i].Algo = algo
		}
	}
	for i, c := range h.Texts(rpm.FileCaps) {
		if i == len(out) {
			break
		}
		out[i].Caps = string(c)
	}
	return out, nil
}

// Files lists the files of an installed package with all that rpm knows of them. Of several that
// the label means, such as kernels, it lists the files of all. Without such a package the error has
// code package_missing.
func Files(ctx context.Context, root, label string) ([]File, error) {
	var out []File
	err := read(ctx, root, func(tx *sql.Tx) error {
		out = nil
		return some(ctx, tx, label, func(h rpm.Header) error {
			fs, err := filesOf(h)
			out = append(out, fs...)
			return err
		})
	})
	return out, err
}

// Owner is the packages that a path belongs to, by name. A path may lead through symbolic links to
// directories, as /bin does. Nobody's path has none.
func Owner(ctx context.Context, root, name string) ([]Package, error) {
	name = path.Clean(name)
	if !path.IsAbs(name) || len(name) > unix.PathMax {
		return nil, fault.Invalid("path", "%.200q is no absolute path", name)
	}
	var out []Package
	err := read(ctx, root, func(tx *sql.Tx) error {
		out = nil
		return owners(ctx, tx, newTree(root), name, func(h rpm.Header) { out = append(out, packageOf(h)) })
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(out, order)
	return out, nil
}

// owners gives the headers of the packages that installed a path.
func owners(ctx context.Context, tx *sql.Tx, t *tree, name string, fn func(rpm.Header)) error {
	dir, base := path.Split(name)
	return scan(ctx, tx, func(_ int64, h rpm.Header) error {
		w, err := h.FileWalk()
		if err != nil {
			return err
		}
		states := h.Ints(tagFileStates)
		for i := 0; w.Next(); i++ {
			if string(w.Base()) != base {
				continue
			}
			if s := State(states.At(i)); s != Normal && s != NetShared {
				continue
			}
			if string(w.Dir()) == dir || t.same(string(w.Dir()), dir) {
				fn(h)
				break
			}
		}
		return nil
	}, "SELECT hnum, blob FROM Packages WHERE hnum IN (SELECT hnum FROM Basenames WHERE key = $1) ORDER BY hnum", base)
}
