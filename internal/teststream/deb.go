package teststream

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"

	"drover/internal/fault"

	"github.com/klauspost/compress/zstd"
)

// deb is a Debian package, unpacked in memory.
type deb struct {
	control map[string]string // fields of the control file
	conf    map[string]bool   // conffiles
	files   []debFile
}

type debFile struct {
	path  string // absolute, clean
	mode  uint32 // permission and set-id bits
	dir   bool
	link  string // target of a symlink
	user  string
	group string
	mtime int64
	body  []byte
}

// readDeb reads a .deb file (deb(5)): an ar archive of two tars.
func readDeb(ctx context.Context, file string) (*deb, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	d := &deb{conf: map[string]bool{}}
	if !bytes.HasPrefix(b, []byte("!<arch>\n")) {
		return nil, fault.Invalid("deb", "%s is no Debian package", file)
	}
	for b = b[8:]; len(b) >= 60; {
		name := strings.TrimRight(string(b[:16]), " /")
		size, err := strconv.Atoi(strings.TrimSpace(string(b[48:58])))
		if err != nil || size < 0 || 60+size > len(b) {
			return nil, fault.Invalid("deb", "%s is cut", file)
		}
		body := b[60 : 60+size]
		b = b[60+size:]
		if size%2 == 1 && len(b) > 0 {
			b = b[1:]
		}
		if strings.HasPrefix(name, "control.tar") {
			err = d.readControl(ctx, name, body)
		} else if strings.HasPrefix(name, "data.tar") {
			err = d.readData(ctx, name, body)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	if d.control["Package"] == "" {
		return nil, fault.Invalid("deb", "%s has no control file", file)
	}
	return d, nil
}

func untar(ctx context.Context, name string, body []byte, fn func(*tar.Header, io.Reader) error) error {
	var r io.Reader = bytes.NewReader(body)
	switch path.Ext(name) {
	case ".xz": // the external xz is three times as fast as any Go one
		out, err := pipe(ctx, body, "xz", "-dc")
		if err != nil {
			return err
		}
		r = bytes.NewReader(out)
	case ".gz":
		g, err := gzip.NewReader(r)
		if err != nil {
			return err
		}
		r = g
	case ".zst":
		z, err := zstd.NewReader(r)
		if err != nil {
			return err
		}
		defer z.Close()
		r = z
	}
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := fn(h, t); err != nil {
			return err
		}
	}
}

func pipe(ctx context.Context, in []byte, name string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, name, args...)
	var errs bytes.Buffer
	c.Stdin, c.Stderr = bytes.NewReader(in), &errs
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, errs.Bytes())
	}
	return out, nil
}

func (d *deb) readControl(ctx context.Context, name string, body []byte) error {
	return untar(ctx, name, body, func(h *tar.Header, r io.Reader) error {
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		switch path.Base(h.Name) {
		case "control":
			d.control = parseControl(b)
		case "conffiles":
			for _, l := range strings.Fields(string(b)) {
				d.conf[l] = true
			}
		}
		return nil
	})
}

// parseControl reads the fields of one paragraph (deb-control(5)).
func parseControl(b []byte) map[string]string {
	out := map[string]string{}
	last := ""
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		l := sc.Text()
		if strings.HasPrefix(l, " ") || strings.HasPrefix(l, "\t") {
			out[last] += "\n" + strings.TrimSpace(l)
			continue
		}
		k, v, ok := strings.Cut(l, ":")
		if ok {
			last = k
			out[k] = strings.TrimSpace(v)
		}
	}
	return out
}

func (d *deb) readData(ctx context.Context, name string, body []byte) error {
	bodies := map[string][]byte{} // for hard links, which are made copies
	return untar(ctx, name, body, func(h *tar.Header, r io.Reader) error {
		f := debFile{path: path.Clean("/" + h.Name), mode: uint32(h.Mode) & 0o7777, user: h.Uname, group: h.Gname, mtime: h.ModTime.Unix()}
		switch h.Typeflag {
		case tar.TypeDir:
			f.dir = true
		case tar.TypeSymlink:
			f.link = h.Linkname
		case tar.TypeLink:
			f.body = bodies[path.Clean("/"+h.Linkname)]
		case tar.TypeReg:
			b, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			f.body = b
			bodies[f.path] = b
		default:
			return nil
		}
		d.files = append(d.files, f)
		return nil
	})
}

// clause is one alternative list of a relation: "a (>= 1) | b".
type clause []relation

type relation struct {
	name string
	op   string // "", "<<", "<=", "=", ">=", ">>"
	ver  string
}

// parseRelations reads a relation field (deb-control(5), Policy 7.1).
func parseRelations(s string) []clause {
	var out []clause
	for part := range strings.SplitSeq(s, ",") {
		var c clause
		for alt := range strings.SplitSeq(part, "|") {
			alt = strings.TrimSpace(alt)
			if i := strings.IndexAny(alt, "[<"); i > 0 && alt[i] == '[' {
				alt = strings.TrimSpace(alt[:i])
			}
			name, ver, has := strings.Cut(alt, "(")
			name, _, _ = strings.Cut(strings.TrimSpace(name), ":")
			if name == "" {
				continue
			}
			r := relation{name: name}
			if has {
				v := strings.Fields(strings.TrimSuffix(strings.TrimSpace(ver), ")"))
				switch len(v) {
				case 2:
					r.op, r.ver = v[0], v[1]
				case 1:
					r.op = strings.TrimRight(v[0], "0123456789abcdefghijklmnopqrstuvwxyz.:~+-")
					r.ver = strings.TrimLeft(v[0], "<>=")
				}
			}
			c = append(c, r)
		}
		if len(c) > 0 {
			out = append(out, c)
		}
	}
	return out
}

// splitVersion maps a Debian version to RPM's epoch, version and release. A '-' inside the
// upstream version becomes '^', which sorts as Debian's does; a version without revision
// gets the release 0.
func splitVersion(v string) (epoch uint32, version, release string, hasRelease bool) {
	if e, rest, ok := strings.Cut(v, ":"); ok {
		n, err := strconv.ParseUint(e, 10, 32)
		if err == nil {
			epoch, v = uint32(n), rest
		}
	}
	version, release = v, "0"
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		version, release, hasRelease = v[:i], v[i+1:], true
	}
	return epoch, strings.ReplaceAll(version, "-", "^"), release + dist, hasRelease
}

// dist is the release suffix of everything here.
const dist = ".el9"

func evr(v string) string {
	e, ver, rel, has := splitVersion(v)
	s := ver
	if has {
		s += "-" + rel
	}
	if e != 0 {
		s = strconv.FormatUint(uint64(e), 10) + ":" + s
	}
	return s
}

// depText maps one clause to an RPM dependency, or "" when it cannot be said or is to be
// dropped.
func depText(c clause, self string) string {
	var alts []string
	for _, r := range c {
		if dropped(r.name) {
			return ""
		}
		if r.name == self {
			continue
		}
		alts = append(alts, r.text())
	}
	switch {
	case len(alts) == 0 || slices.Contains(alts, ""):
		return ""
	case len(alts) == 1:
		return alts[0]
	}
	return "(" + strings.Join(alts, " or ") + ")"
}

func (r relation) text() string {
	op := map[string]string{"<<": "<", "<=": "<=", "=": "=", ">=": ">=", ">>": ">"}[r.op]
	if op == "" {
		return r.name
	}
	// An upper bound that ends before every binary rebuild cannot be said once a dist suffix
	// follows: the clause is dropped.
	if strings.HasSuffix(r.ver, "~") || strings.HasSuffix(r.ver, "-.") {
		if r.op == "<<" || r.op == "<=" {
			return ""
		}
	}
	if r.op == ">>" {
		if _, _, _, has := splitVersion(r.ver); !has {
			op = ">=" // rpm calls a version without release equal to all its releases
		}
	}
	return r.name + " " + op + " " + evr(r.ver)
}
