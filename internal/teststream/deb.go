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
	"os/exec"
	"path"
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
	caps  string // file capabilities, as setcap takes them
	body  []byte
}

// readDeb reads the bytes of a .deb file (deb(5)): an ar archive of two tars. The name is
// for errors.
func readDeb(ctx context.Context, file string, b []byte) (*deb, error) {
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
