package rpm

import (
	"cmp"
	"math"
	"strconv"
	"strings"

	"drover/internal/fault"
)

// NEVRA names a package: name, epoch, version, release, arch.
type NEVRA struct {
	Name    string
	Epoch   uint32
	Version string
	Release string
	Arch    string
}

// String is "name-[epoch:]version-release.arch"; an epoch of 0 is left out.
func (n NEVRA) String() string {
	e := ""
	if n.Epoch != 0 {
		e = strconv.FormatUint(uint64(n.Epoch), 10) + ":"
	}
	return n.Name + "-" + e + n.Version + "-" + n.Release + "." + n.Arch
}

// NVR is "name-version-release".
func (n NEVRA) NVR() string { return n.Name + "-" + n.Version + "-" + n.Release }

// File is the file name that rpm gives to the package.
func (n NEVRA) File() string { return n.NVR() + "." + n.Arch + ".rpm" }

// EVR is "[epoch:]version-release".
func (n NEVRA) EVR() string {
	if n.Epoch != 0 {
		return strconv.FormatUint(uint64(n.Epoch), 10) + ":" + n.Version + "-" + n.Release
	}
	return n.Version + "-" + n.Release
}

// ParseNEVRA reads "name-[epoch:]version-release.arch", with or without ".rpm" and a
// directory before it.
func ParseNEVRA(s string) (NEVRA, error) {
	no := func() (NEVRA, error) {
		return NEVRA{}, fault.Invalid("nevra", "%.200q is no name-[epoch:]version-release.arch", s)
	}
	t := strings.TrimSuffix(s[strings.LastIndexByte(s, '/')+1:], ".rpm")
	dot := strings.LastIndexByte(t, '.')
	if dot < 0 {
		return no()
	}
	n := NEVRA{Arch: t[dot+1:]}
	t = t[:dot]
	r := strings.LastIndexByte(t, '-')
	if r < 0 {
		return no()
	}
	n.Release, t = t[r+1:], t[:r]
	v := strings.LastIndexByte(t, '-')
	if v < 0 {
		return no()
	}
	n.Version, n.Name = t[v+1:], t[:v]
	if e, ver, ok := strings.Cut(n.Version, ":"); ok {
		u, err := strconv.ParseUint(e, 10, 32)
		if err != nil {
			return no()
		}
		n.Epoch, n.Version = uint32(u), ver
	}
	for _, part := range []string{n.Name, n.Version, n.Release, n.Arch} {
		if part == "" || len(part) > 255 || strings.ContainsFunc(part, func(r rune) bool { return !nevraRune(r) }) {
			return no()
		}
	}
	return n, nil
}

// nevraRune tells whether r may stand in a name, version or release (rpm's
// build/parsePreamble.c allows these).
func nevraRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.+~^", r)
}

// SplitEVR reads "[epoch:]version[-release]" as rpm does (rpmio/rpmver.c): only digits
// before the colon are an epoch, none is 0, and the release follows the last dash. An epoch
// beyond 32 bits counts as the highest.
func SplitEVR(s string) (epoch uint32, version, release string) {
	e, version, release, _ := splitEVR(s)
	if e != "" {
		u, err := strconv.ParseUint(e, 10, 32)
		if err != nil {
			u = math.MaxUint32
		}
		epoch = uint32(u)
	}
	return epoch, version, release
}

// splitEVR tells also whether there is a release: rpm makes a difference between none and an
// empty one.
func splitEVR(s string) (epoch, version, release string, has bool) {
	if d := len(run(s, isDigit)); d < len(s) && s[d] == ':' {
		epoch, s = s[:d], s[d+1:]
	}
	if i := strings.LastIndexByte(s, '-'); i >= 0 {
		return epoch, s[:i], s[i+1:], true
	}
	return epoch, s, "", false
}

// CompareEVR orders two texts "[epoch:]version[-release]": -1, 0 or 1. One without a release
// comes before all with one.
func CompareEVR(a, b string) int {
	ae, av, ar, aHas := splitEVR(a)
	be, bv, br, bHas := splitEVR(b)
	if c := cmp.Or(compareEpochs(ae, be), CompareVersions(av, bv)); c != 0 {
		return c
	}
	switch {
	case aHas && !bHas:
		return 1
	case bHas && !aHas:
		return -1
	}
	return CompareVersions(ar, br)
}

// Compare orders two packages of one name by epoch, version and release: -1, 0 or 1.
func (n NEVRA) Compare(o NEVRA) int {
	return cmp.Or(cmp.Compare(n.Epoch, o.Epoch), CompareVersions(n.Version, o.Version), CompareVersions(n.Release, o.Release))
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
func isAlpha(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

// CompareVersions orders two versions or releases as rpm does (rpmio/rpmvercmp.c): runs of
// digits as numbers, runs of letters as text, a tilde before the end of the string, a caret
// after it but before everything else.
func CompareVersions(a, b string) int {
	if a == b {
		return 0
	}
	sep := func(c byte) bool { return !isDigit(c) && !isAlpha(c) && c != '~' && c != '^' }
	for a != "" || b != "" {
		for a != "" && sep(a[0]) {
			a = a[1:]
		}
		for b != "" && sep(b[0]) {
			b = b[1:]
		}
		at, bt := a != "" && a[0] == '~', b != "" && b[0] == '~'
		if at || bt {
			if !at {
				return 1
			}
			if !bt {
				return -1
			}
			a, b = a[1:], b[1:]
			continue
		}
		ac, bc := a != "" && a[0] == '^', b != "" && b[0] == '^'
		if ac || bc {
			switch {
			case a == "":
				return -1
			case b == "":
				return 1
			case !ac:
				return 1
			case !bc:
				return -1
			}
			a, b = a[1:], b[1:]
			continue
		}
		if a == "" || b == "" {
			break
		}
		class := isAlpha
		if isDigit(a[0]) {
			class = isDigit
		}
		x, y := run(a, class), run(b, class)
		if y == "" {
			// Different kinds: a number is newer than letters.
			if isDigit(a[0]) {
				return 1
			}
			return -1
		}
		a, b = a[len(x):], b[len(y):]
		if isDigit(x[0]) {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if c := cmp.Compare(len(x), len(y)); c != 0 {
				return c
			}
		}
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}

func run(s string, class func(byte) bool) string {
	i := 0
	for i < len(s) && class(s[i]) {
		i++
	}
	return s[:i]
}
