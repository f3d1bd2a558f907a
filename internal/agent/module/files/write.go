package files

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"drover/internal/durable"
	"drover/internal/fault"
)

const maxLinks = 40 // that are followed to a file, as the kernel does

// follow is the file that a path leads to, be it there or not.
func follow(p string) (string, error) {
	for range maxLinks {
		t, err := os.Readlink(p)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrNotExist) {
			return p, nil
		}
		if err != nil {
			return "", failed("followed", p, err)
		}
		if !filepath.IsAbs(t) {
			// The directory itself may be a link: ".." is that of where it leads.
			dir, err := filepath.EvalSymlinks(filepath.Dir(p))
			if err != nil {
				return "", failed("followed", p, err)
			}
			t = filepath.Join(dir, t)
		}
		p = t
	}
	return "", fault.Conflict("links_many", "%s leads through more than %d symbolic links", p, maxLinks)
}

// replace puts data in the place of a file. A file that is there keeps its owner, mode and
// extended attributes; a symbolic link stays and its file is replaced. mode is for a new file.
func replace(p string, data []byte, mode fs.FileMode) error {
	return replaceBy(p, mode, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// replaceBy is replace for what fill writes.
func replaceBy(p string, mode fs.FileMode, fill func(io.Writer) error) error {
	p, err := follow(p)
	if err != nil {
		return err
	}
	old, err := os.Lstat(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return failed("written", p, durable.Replace(p, mode, fill))
	case err != nil:
		return failed("written", p, err)
	case !old.Mode().IsRegular():
		return fault.Invalid("not_a_file", "%s is not an ordinary file", p)
	}
	keep := old.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	err = durable.Replace(p, keep, func(w io.Writer) error {
		f, ok := w.(*os.File)
		if !ok {
			return fault.Internal("not_a_file", "the new content of %s does not go into a file", p)
		}
		if err := fill(f); err != nil {
			return err
		}
		st, ok := old.Sys().(*syscall.Stat_t)
		if !ok {
			return fault.Internal("no_owner", "the owner of %s is not known", p)
		}
		if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
		return copyXattrs(p, f)
	})
	if errors.Is(err, unix.EBUSY) {
		// Mounted itself, as /etc/hosts is in a container: nothing can take its place.
		return overwriteBy(p, fill)
	}
	return failed("written", p, err)
}

// overwrite puts data into the file itself: for files whose inode must stay.
func overwrite(p string, data []byte) error {
	return overwriteBy(p, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func overwriteBy(p string, fill func(io.Writer) error) error {
	var b bytes.Buffer // a fill that fails must not leave half a file
	if err := fill(&b); err != nil {
		return err
	}
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return failed("written", p, err)
	}
	_, err = f.Write(b.Bytes())
	if err == nil {
		err = f.Sync()
	}
	return failed("written", p, errors.Join(err, f.Close()))
}

// copyXattrs gives a new file the extended attributes of the old one. Capabilities and
// signatures belong to the old content and do not move.
func copyXattrs(from string, to *os.File) error {
	names, err := xattrNames(from)
	if err != nil {
		return err
	}
	for _, n := range names {
		if n == "security.capability" || n == "security.ima" || n == "security.evm" {
			continue
		}
		v, err := xattr(from, n, true)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err == nil {
			err = unix.Fsetxattr(int(to.Fd()), n, v, 0)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return &fs.PathError{Op: "setxattr " + n, Path: from, Err: err}
		}
	}
	return nil
}

func xattrNames(p string) ([]string, error) {
	buf := make([]byte, 64<<10) // the kernel's limit of a list
	n, err := unix.Listxattr(p, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "listxattr", Path: p, Err: err}
	}
	var names []string
	for _, s := range strings.Split(string(buf[:n]), "\x00") {
		if s != "" {
			names = append(names, s)
		}
	}
	return names, nil
}

// xattr is one extended attribute, of the file that a link leads to or of the link itself.
func xattr(p, name string, follow bool) ([]byte, error) {
	buf := make([]byte, 64<<10)
	get := unix.Lgetxattr
	if follow {
		get = unix.Getxattr
	}
	n, err := get(p, name, buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}
