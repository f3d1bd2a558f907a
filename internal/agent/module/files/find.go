package files

import (
	"context"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func finds() []module.Function {
	return []module.Function{
		module.Rest(module.Extra(module.Reads("file.find", "Lists the files below a path that fit what is asked: name, iname, regex, iregex, type, owner, group, size, mtime, grep, mindepth, maxdepth, print.\n\nsalt '*' file.find /var/log name='*.log' mtime=+30d size=+10m print=path,size", find, module.Need("path", module.Str)))),
	}
}

// finder is what file.find is asked for.
type finder struct {
	tests    []func(p string, i fs.FileInfo) (bool, error)
	content  *regexp.Regexp
	print    []string
	min, max int
}

func find(ctx context.Context, c *module.Call) (any, error) {
	opts := map[string]any{}
	for _, v := range c.Rest {
		opts[module.Plain(v)] = true // "delete", as it is given to find(1)
	}
	for k, v := range c.Extra {
		opts[k] = v
	}
	f, err := newFinder(ctx, opts, time.Now())
	if err != nil {
		return nil, err
	}
	p, err := argPath(c, "path")
	if err != nil {
		return nil, err
	}
	roots := []string{p}
	if strings.ContainsAny(p, "*?[") && !there(p) {
		if roots, err = filepath.Glob(p); err != nil {
			return nil, fault.Invalid("glob_bad", "%q is no pattern of names", p).Wrap(err)
		}
	}
	var rows []row
	looked := 0
	for _, r := range roots {
		err := filepath.WalkDir(r, func(p string, d fs.DirEntry, err error) error {
			if looked++; looked > 8*maxNames || len(rows) > maxNames {
				return fault.TooLarge("files_many", "there are too many files below %s", r).Fix("ask for fewer: at most %d are shown", maxNames)
			}
			if cerr := ctx.Err(); cerr != nil {
				return cerr
			}
			if err != nil {
				return nil //nolint:nilerr // gone meanwhile, or closed to us: find(1) goes on too
			}
			depth := 0
			if p != r {
				depth = strings.Count(strings.TrimPrefix(p[len(r):], "/"), "/") + 1
			}
			if depth >= f.min && depth <= f.max {
				if i, err := d.Info(); err == nil {
					ok, err := f.fits(p, i)
					if err != nil {
						return err
					}
					if ok {
						v, err := f.show(ctx, p, i)
						if err != nil {
							return err
						}
						rows = append(rows, row{p, v})
					}
				}
			}
			if d.IsDir() && depth >= f.max {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int { return strings.Compare(a.path, b.path) })
	out := []any{}
	for _, r := range rows {
		out = append(out, r.shown)
	}
	return out, nil
}

// row is a file that was found.
type row struct {
	path  string
	shown any
}

func newFinder(ctx context.Context, opts map[string]any, now time.Time) (*finder, error) {
	f := &finder{max: math.MaxInt, print: []string{"path"}}
	bad := func(k string, v any) error {
		return fault.Invalid("find_bad", "file.find cannot take %s=%s", k, module.Plain(v))
	}
	for k, v := range opts {
		s := module.Plain(v)
		switch k {
		case "name", "iname", "regex", "iregex":
			flags := int64(0)
			if k[0] == 'i' {
				flags = reIgnoreCase
			}
			var re *regexp.Regexp
			var err error
			if strings.HasSuffix(k, "name") {
				re, err = glob(s, flags)
			} else {
				re, err = compile(`\A(?:`+s+`)`, flags)
			}
			if err != nil {
				return nil, err
			}
			f.tests = append(f.tests, func(p string, _ fs.FileInfo) (bool, error) { return re.MatchString(filepath.Base(p)), nil })
		case "type":
			for _, t := range s {
				if !strings.ContainsRune("bcdplfsD", t) {
					return nil, bad(k, v)
				}
			}
			f.tests = append(f.tests, func(_ string, i fs.FileInfo) (bool, error) { return strings.Contains(s, letter(i.Mode())), nil })
		case "owner", "user", "group":
			want, err := ids(ctx, s, k == "group")
			if err != nil {
				return nil, err
			}
			f.tests = append(f.tests, func(_ string, i fs.FileInfo) (bool, error) {
				uid, gid := ownerOf(i)
				if k == "group" {
					uid = gid
				}
				return slices.Contains(want, int64(uid)), nil
			})
		case "size":
			low, high, err := sizes(s)
			if err != nil {
				return nil, err
			}
			f.tests = append(f.tests, func(_ string, i fs.FileInfo) (bool, error) { return i.Size() >= low && i.Size() <= high, nil })
		case "mtime":
			at, newer, err := age(s, now)
			if err != nil {
				return nil, err
			}
			f.tests = append(f.tests, func(_ string, i fs.FileInfo) (bool, error) {
				if newer {
					return !i.ModTime().Before(at), nil
				}
				return !i.ModTime().After(at), nil
			})
		case "mindepth", "maxdepth":
			n, err := strconv.Atoi(s)
			if err != nil || n < 0 {
				return nil, bad(k, v)
			}
			if k == "mindepth" {
				f.min = n
			} else {
				f.max = n
			}
		case "grep":
			re, err := compile(s, 0)
			if err != nil {
				return nil, err
			}
			f.content = re
		case "print":
			if yes, _ := v.(bool); yes || s == "" {
				break
			}
			f.print = nil
			for _, w := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == '[' || r == ']' }) {
				if !slices.Contains([]string{"group", "md5", "mode", "mtime", "name", "path", "size", "type", "user"}, w) {
					return nil, bad(k, v)
				}
				f.print = append(f.print, w)
			}
			if len(f.print) == 0 {
				return nil, bad(k, v)
			}
		case "delete", "exec":
			return nil, fault.Denied("find_refused", "file.find does not %s what it finds", map[string]string{"delete": "delete", "exec": "run"}[k]).Fix("take its list to file.remove or cmd.run")
		default:
			return nil, fault.Invalid("find_bad", "file.find knows no option %q", k)
		}
	}
	return f, nil
}

func (f *finder) fits(p string, i fs.FileInfo) (bool, error) {
	for _, t := range f.tests {
		if ok, err := t(p, i); !ok || err != nil {
			return false, err
		}
	}
	if f.content == nil {
		return true, nil
	}
	if !i.Mode().IsRegular() || i.Size() > maxText {
		return false, nil
	}
	b, err := load(p)
	if err != nil {
		return false, nil //nolint:nilerr // it cannot be read: it does not fit
	}
	for _, l := range splitLines(string(b)) {
		if f.content.MatchString(strings.TrimRight(l, "\r\n")) {
			return true, nil
		}
	}
	return false, nil
}

// show is one file as print asks for it: a value, or a list of several.
func (f *finder) show(ctx context.Context, p string, i fs.FileInfo) (any, error) {
	uid, gid := ownerOf(i)
	var out []any
	for _, w := range f.print {
		var v any
		switch w {
		case "path":
			v = module.Valid(p)
		case "name":
			v = module.Valid(filepath.Base(p))
		case "size":
			v = i.Size()
		case "mtime":
			v = seconds(i.ModTime())
		case "mode":
			if st, ok := i.Sys().(*syscall.Stat_t); ok {
				v = int64(st.Mode)
			}
		case "type":
			v = letter(i.Mode())
		case "user":
			v = userName(ctx, int64(uid))
		case "group":
			v = groupName(ctx, int64(gid))
		case "md5":
			v = ""
			if i.Mode().IsRegular() {
				h, err := hashFile(ctx, p, "md5")
				if err != nil && !os.IsNotExist(err) {
					return nil, err
				}
				v = h
			}
		}
		out = append(out, v)
	}
	if len(out) == 1 {
		return out[0], nil
	}
	return out, nil
}

// letter is a type of file as find(1) writes it.
func letter(m fs.FileMode) string {
	return map[string]string{"dir": "d", "link": "l", "char": "c", "block": "b", "pipe": "p", "socket": "s", "file": "f"}[typeOf(m)]
}

func ids(ctx context.Context, names string, group bool) ([]int64, error) {
	var out []int64
	for _, n := range strings.FieldsFunc(names, func(r rune) bool { return r == ',' || r == ' ' || r == '[' || r == ']' }) {
		of, what := uidOf, "user"
		if group {
			of, what = gidOf, "group"
		}
		id, ok := of(ctx, n)
		if !ok {
			return nil, fault.NotFound(what+"_missing", "there is no %s %q on this host", what, n)
		}
		out = append(out, id)
	}
	return out, nil
}

// sizes reads a size: +n for at least, -n for at most, n for the size in the unit it is written
// in.
func sizes(s string) (low, high int64, err error) {
	bad := fault.Invalid("find_bad", "%q is no size", s).Fix("as in +10m, -4k or 512: b, k, m, g and t are units")
	t := strings.ToLower(strings.TrimSpace(s))
	sign := byte(0)
	if t != "" && (t[0] == '+' || t[0] == '-') {
		sign, t = t[0], strings.TrimSpace(t[1:])
	}
	unit := int64(1)
	if t != "" {
		for i, u := range "bkmgt" {
			if t[len(t)-1] == byte(u) {
				unit, t = 1<<(10*i), strings.TrimSpace(t[:len(t)-1])
				break
			}
		}
	}
	n, perr := strconv.ParseFloat(t, 64)
	if perr != nil || !(n >= 0) || n*float64(unit) >= math.MaxInt64/2 {
		return 0, 0, bad
	}
	low = int64(n * float64(unit))
	switch sign {
	case '+':
		return low, math.MaxInt64, nil
	case '-':
		return 0, low, nil
	}
	return low, low + unit - 1, nil
}

var reAge = regexp.MustCompile(`^([+-]?)(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?$`)

// age reads how long ago: 30d, 1w2d; with a minus what is younger, else what is older fits.
func age(s string, now time.Time) (at time.Time, newer bool, err error) {
	t := strings.ToLower(strings.ReplaceAll(s, " ", ""))
	if n := strings.TrimLeft(t, "+-"); n != "" && strings.Trim(n, "0123456789") == "" {
		t += "d" // a bare number counts days
	}
	m := reAge.FindStringSubmatch(t)
	if m == nil || len(t) == len(m[1]) {
		return at, false, fault.Invalid("find_bad", "%q is no age", s).Fix("as in +30d, -12h or 1w: w, d, h, m and s are units")
	}
	var secs, step int64 = 0, 1
	for i, u := range []int64{7 * 86400, 86400, 3600, 60, 1} {
		if m[i+2] == "" {
			continue
		}
		n, err := strconv.ParseInt(m[i+2], 10, 32)
		if err != nil {
			return at, false, fault.Invalid("find_bad", "%q is no age", s).Wrap(err)
		}
		secs, step = secs+n*u, u // the last unit is how exactly it is meant
	}
	return now.Add(-time.Duration(secs/step*step) * time.Second), m[1] == "-", nil
}
