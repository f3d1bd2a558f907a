package files

import (
	"archive/zip"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

func zipCall(ctx context.Context, c *module.Call) (any, error) {
	if err := plainly(c, "runas"); err != nil {
		return nil, err
	}
	if c.Str("zip_mode") != "w" {
		return nil, fault.Invalid("zip_mode", "an archive is only written anew: zip_mode %q is not taken", c.Str("zip_mode"))
	}
	file, err := inDir(c, c.Str("zip_file"))
	if err != nil {
		return nil, err
	}
	cwd := c.Str("cwd")
	var sources []string
	for _, s := range c.Strs("sources") {
		if !filepath.IsAbs(s) && cwd == "" {
			return nil, fault.Invalid("path_relative", "Relative paths require the 'cwd' parameter: %s", s)
		}
		more, err := globbed(cwd, s)
		if err != nil {
			return nil, err
		}
		sources = append(sources, more...)
	}
	names := []string{}
	pack := func(w io.Writer) error {
		z := zip.NewWriter(w)
		for _, s := range sources {
			full := s
			if !filepath.IsAbs(s) {
				full = filepath.Join(cwd, s)
			}
			err := filepath.WalkDir(full, func(p string, d fs.DirEntry, err error) error {
				if err != nil {
					return failed("read", p, err)
				}
				if len(names) >= maxMembers {
					return fault.TooLarge("archive_large", "there are more than %d files to pack", maxMembers)
				}
				// Names in the archive are as they were given, without the first slash.
				rel, err := filepath.Rel(full, p)
				if err != nil || ctx.Err() != nil {
					return errors.Join(err, ctx.Err())
				}
				name := strings.TrimLeft(path.Clean(filepath.Join(s, rel)), "/")
				if !filepath.IsLocal(name) {
					return fault.Invalid("path_relative", "%s leads out of %s", s, cwd)
				}
				if name == "." || p == file {
					return nil
				}
				n, err := zipOne(ctx, z, p, name, d)
				names = append(names, n)
				return err
			})
			if err != nil {
				return err
			}
		}
		return z.Close()
	}
	if c.Test {
		err := pack(io.Discard)
		return texts(names), err
	}
	if err := replaceBy(file, 0o644, pack); err != nil {
		return nil, err
	}
	return texts(names), nil
}

func zipOne(ctx context.Context, z *zip.Writer, p, name string, d fs.DirEntry) (string, error) {
	i, err := d.Info()
	if err != nil {
		return "", failed("read", p, err)
	}
	h, err := zip.FileInfoHeader(i)
	if err != nil {
		return "", err
	}
	h.Name, h.Method = name, zip.Deflate
	if i.IsDir() {
		h.Name, h.Method = name+"/", zip.Store
	}
	w, err := z.CreateHeader(h)
	switch {
	case err != nil || i.IsDir():
	case i.Mode()&fs.ModeSymlink != 0:
		var t string
		if t, err = os.Readlink(p); err == nil {
			_, err = io.WriteString(w, t)
		}
	case i.Mode().IsRegular():
		var f *os.File
		if f, err = os.Open(p); err == nil {
			_, err = io.Copy(w, watched{ctx, f})
			err = errors.Join(err, f.Close())
		}
	default:
		return "", fault.Invalid("not_a_file", "%s is a %s and cannot be packed", p, typeOf(i.Mode()))
	}
	return h.Name, failed("packed", p, err)
}

func unzipCall(ctx context.Context, c *module.Call) (any, error) {
	if err := plainly(c, "runas", "password"); err != nil {
		return nil, err
	}
	file, err := argPath(c, "zip_file")
	if err != nil {
		return nil, err
	}
	dest, err := argPath(c, "dest")
	if err != nil {
		return nil, err
	}
	overwrite := true
	for _, o := range strings.Fields(c.Str("options")) {
		switch o {
		case "-o", "o", "-q", "-qq":
		case "-n", "n":
			overwrite = false
		default:
			return nil, fault.Invalid("options_bad", "the option %q of unzip is not taken", o).Fix("-o and -n are")
		}
	}
	names, err := unzip(ctx, file, dest, unzipSpec{excludes: c.Strs("excludes"), overwrite: overwrite, perms: c.Bool("extract_perms"), test: c.Test})
	if err != nil {
		return nil, err
	}
	switch n := c.Any("trim_output").(type) {
	case bool:
		if n {
			names = names[:min(len(names), 100)]
		}
	case int64:
		names = names[:min(len(names), int(max(n, 0)))]
	}
	return texts(names), nil
}

type unzipSpec struct {
	excludes               []string
	overwrite, perms, test bool
}

// openZip opens an archive that has a bearable number of entries.
func openZip(file string) (*zip.ReadCloser, error) {
	z, err := zip.OpenReader(file)
	if err != nil {
		return nil, fault.Invalid("archive_bad", "%s is no archive that can be read", file).Wrap(err)
	}
	if len(z.File) > maxMembers {
		err := fault.TooLarge("archive_large", "%s has more than %d entries", file, maxMembers)
		return nil, errors.Join(err, z.Close())
	}
	return z, nil
}

func unzip(ctx context.Context, file, dest string, s unzipSpec) ([]string, error) {
	z, err := openZip(file)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	left := int64(maxUnpacked)
	// First all names: an archive that tries to get out is not unpacked in part.
	names := make([]string, len(z.File))
	for i, f := range z.File {
		if names[i], err = memberName(file, f.Name); err != nil {
			return nil, err
		}
		if f.Flags&1 != 0 {
			return nil, fault.Invalid("archive_encrypted", "%q of %s is encrypted", f.Name, file)
		}
		if f.UncompressedSize64 > uint64(left) {
			return nil, fault.TooLarge("archive_large", "%s becomes more than %d bytes", file, int64(maxUnpacked))
		}
		left -= int64(f.UncompressedSize64)
	}
	var root *os.Root
	if !s.test {
		if err := durable.MkdirAll(dest, 0o755); err != nil {
			return nil, failed("made", dest, err)
		}
		if root, err = os.OpenRoot(dest); err != nil {
			return nil, failed("opened", dest, err)
		}
		defer root.Close()
	}
	out := []string{}
	for i, f := range z.File {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		name := names[i]
		if name == "." || slices.Contains(s.excludes, f.Name) {
			continue
		}
		out = append(out, module.Valid(f.Name))
		if s.test {
			continue
		}
		if err := unzipOne(ctx, root, f, name, s); err != nil {
			return nil, unpackErr(file, name, err)
		}
	}
	return out, nil
}

func unzipOne(ctx context.Context, root *os.Root, f *zip.File, name string, s unzipSpec) error {
	mode := f.Mode()
	if mode.IsDir() {
		return makeIn(root, name)
	}
	if _, err := root.Lstat(name); err == nil && !s.overwrite {
		return nil
	}
	if err := makeRoom(root, name); err != nil {
		return err
	}
	r, err := f.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	switch {
	case mode&fs.ModeSymlink != 0:
		b, err := io.ReadAll(io.LimitReader(r, maxLinkText+1))
		if err != nil {
			return err
		}
		if len(b) == 0 || len(b) > maxLinkText {
			return fault.Denied("archive_escape", "the link %q is of no use", name)
		}
		return root.Symlink(string(b), name)
	case !mode.IsRegular():
		return fault.Denied("archive_device", "%q is no file, directory or link", name)
	}
	perm := fs.FileMode(0o644)
	if s.perms && mode.Perm() != 0 {
		perm = mode.Perm()
	}
	// No more than the archive said, whatever comes out of it.
	if err := fillIn(root, name, perm, io.LimitReader(watched{ctx, r}, int64(f.UncompressedSize64))); err != nil {
		return err
	}
	return root.Chtimes(name, time.Time{}, f.Modified)
}

func gzipCall(ctx context.Context, c *module.Call) (any, error) {
	return squeeze(ctx, c, "sourcefile", func(p string) (string, error) { return p + ".gz", nil }, func(w io.Writer, r io.Reader) error {
		z := gzip.NewWriter(w)
		if _, err := io.Copy(z, r); err != nil {
			return err
		}
		return z.Close()
	})
}

func gunzipCall(ctx context.Context, c *module.Call) (any, error) {
	return squeeze(ctx, c, "gzipfile", func(p string) (string, error) {
		for end, to := range map[string]string{".gz": "", ".tgz": ".tar"} {
			if s, ok := strings.CutSuffix(p, end); ok && !strings.HasSuffix(s, "/") {
				return s + to, nil
			}
		}
		return "", fault.Invalid("archive_bad", "%s has no ending .gz", p)
	}, func(w io.Writer, r io.Reader) error {
		z, err := gzip.NewReader(r)
		if err != nil {
			return fault.Invalid("archive_bad", "%s is not packed by gzip", c.Str("gzipfile")).Wrap(err)
		}
		n, err := io.Copy(w, io.LimitReader(z, maxUnpacked+1))
		if err == nil && n > maxUnpacked {
			return fault.TooLarge("archive_large", "%s becomes more than %d bytes", c.Str("gzipfile"), int64(maxUnpacked))
		}
		return err
	})
}

// squeeze puts a file through a filter, as gzip does: the new one has the owner, mode and time of
// the old one, which goes.
func squeeze(ctx context.Context, c *module.Call, arg string, name func(string) (string, error), filter func(io.Writer, io.Reader) error) (any, error) {
	if err := plainly(c, "runas", "options"); err != nil {
		return nil, err
	}
	p, err := argPath(c, arg)
	if err != nil {
		return nil, err
	}
	to, err := name(p)
	if err != nil {
		return nil, err
	}
	i, err := os.Lstat(p)
	if err != nil {
		return nil, failed("read", p, err)
	}
	if !i.Mode().IsRegular() {
		return nil, fault.Invalid("not_a_file", "%s is not an ordinary file", p)
	}
	if there(to) {
		return nil, fault.Conflict("file_there", "%s is there already", to)
	}
	says := []any{p + " -> " + to}
	if c.Test {
		return says, nil
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, failed("read", p, err)
	}
	defer f.Close()
	uid, gid := ownerOf(i)
	err = durable.Replace(to, i.Mode().Perm(), func(w io.Writer) error {
		if o, ok := w.(*os.File); ok {
			if err := o.Chown(uid, gid); err != nil {
				return err
			}
		}
		return filter(w, watched{ctx, f})
	})
	if err != nil {
		return nil, failed("written", to, err)
	}
	return says, failed("removed", p, errors.Join(os.Chtimes(to, time.Time{}, i.ModTime()), os.Remove(p)))
}
