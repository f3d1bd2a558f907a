package files

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/xi2/xz"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

const (
	maxMembers  = 1 << 20
	maxUnpacked = 256 << 30 // what one archive may become on the disk
	maxLinkText = 64 << 10
	maxWindow   = 128 << 20 // of memory that a packed archive may ask for
)

func sorted(lists ...[]string) []string {
	all := slices.Concat(lists...)
	slices.Sort(all)
	return all
}

// unpacker is a reader of what is packed, by the first bytes of it.
func unpacker(r io.Reader) (io.Reader, error) {
	b := bufio.NewReader(r)
	head, err := b.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(b)
	case bytes.HasPrefix(head, []byte("BZh")):
		return bzip2.NewReader(b), nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return xz.NewReader(b, maxWindow)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return d, nil // of one goroutine: nothing is left when it is dropped
	}
	return b, nil
}

// memberName is the name of an entry below the directory it is unpacked into.
func memberName(archive, name string) (string, error) {
	clean := path.Clean(name)
	if name == "" || strings.HasPrefix(name, "/") || strings.ContainsRune(name, 0) || slices.Contains(strings.Split(name, "/"), "..") || !filepath.IsLocal(clean) {
		return "", fault.Denied("archive_escape", "%s has an entry %q, which leaves the directory", archive, name).Fix("unpack it by hand if it is to be trusted")
	}
	return clean, nil
}

// tarEntries reads an archive of tar; each sees the entry and its content.
func tarEntries(ctx context.Context, file string, each func(h *tar.Header, name string, r io.Reader) error) error {
	f, err := os.Open(file)
	if err != nil {
		return failed("read", file, err)
	}
	defer f.Close()
	bad := func(err error) error {
		return fault.Invalid("archive_bad", "%s is no archive that can be read", file).Wrap(err)
	}
	un, err := unpacker(watched{ctx, f})
	if err != nil {
		return bad(err)
	}
	r := tar.NewReader(un)
	left := int64(maxUnpacked)
	for n := 0; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return bad(err)
		}
		if left -= max(h.Size, 0); n >= maxMembers || left < 0 {
			return fault.TooLarge("archive_large", "%s has more than %d entries or %d bytes", file, maxMembers, int64(maxUnpacked))
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		name, err := memberName(file, h.Name)
		if err != nil {
			return err
		}
		if err := each(h, name, r); err != nil {
			return err
		}
	}
}

// untar unpacks an archive into a directory, which nothing in it leaves: not by its name, and not
// through a symbolic link that the archive or somebody else put there.
func untar(ctx context.Context, file, dest string) ([]string, error) {
	if err := durable.MkdirAll(dest, 0o755); err != nil {
		return nil, failed("made", dest, err)
	}
	root, err := os.OpenRoot(dest)
	if err != nil {
		return nil, failed("opened", dest, err)
	}
	defer root.Close()
	owner := ownerFinder()
	var names []string
	type dir struct {
		name string
		mode fs.FileMode
		at   time.Time
	}
	var dirs []dir // get their modes last: one that cannot be written could not be filled
	err = tarEntries(ctx, file, func(h *tar.Header, name string, r io.Reader) error {
		names = append(names, module.Valid(h.Name))
		mode := unixMode(uint32(h.Mode & 0o7777))
		if name == "." {
			return nil
		}
		if h.Typeflag != tar.TypeDir {
			if err := makeRoom(root, name); err != nil {
				return unpackErr(file, name, err)
			}
		}
		var err error
		switch h.Typeflag {
		case tar.TypeDir:
			if err = makeIn(root, name); err == nil {
				dirs = append(dirs, dir{name, mode, h.ModTime})
			}
		case tar.TypeReg:
			err = fillIn(root, name, mode, r)
		case tar.TypeSymlink:
			if len(h.Linkname) > maxLinkText {
				return fault.Denied("archive_escape", "%s has a link %q that is too long", file, name)
			}
			err = root.Symlink(h.Linkname, name)
		case tar.TypeLink:
			var to string
			if to, err = memberName(file, h.Linkname); err == nil {
				return unpackErr(file, name, root.Link(to, name))
			}
		default:
			return fault.Denied("archive_device", "%s has an entry %q that is no file, directory or link", file, name).Fix("make devices and pipes with file.mknod")
		}
		if err == nil && os.Geteuid() == 0 {
			uid, gid := owner(h)
			if err = root.Lchown(name, uid, gid); err == nil && h.Typeflag == tar.TypeReg {
				err = root.Chmod(name, mode) // the owner takes bits with it
			}
		}
		if err == nil && h.Typeflag == tar.TypeReg {
			err = root.Chtimes(name, time.Time{}, h.ModTime)
		}
		return unpackErr(file, name, err)
	})
	for _, d := range slices.Backward(dirs) {
		if err == nil {
			err = unpackErr(file, d.name, errors.Join(root.Chmod(d.name, d.mode), root.Chtimes(d.name, time.Time{}, d.at)))
		}
	}
	return names, err
}

func unpackErr(file, name string, err error) error {
	var own *fault.Error
	if err == nil || errors.As(err, &own) {
		return err
	}
	if strings.Contains(err.Error(), "path escapes from parent") {
		return fault.Denied("archive_escape", "%s has an entry %q, which leaves the directory through a link", file, name).Wrap(err)
	}
	return fault.Conflict("archive_failed", "%q of %s cannot be unpacked", name, file).Wrap(err)
}

// makeRoom makes room for an entry: what is there under its name goes, unless it is a directory.
func makeRoom(root *os.Root, name string) error {
	if d := path.Dir(name); d != "." {
		if err := makeIn(root, d); err != nil {
			return err
		}
	}
	i, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || i.IsDir() {
		return err
	}
	return root.Remove(name)
}

func makeIn(root *os.Root, name string) error {
	err := root.MkdirAll(name, 0o755)
	if errors.Is(err, fs.ErrExist) {
		if i, serr := root.Stat(name); serr == nil && i.IsDir() {
			return nil // a link to a directory inside
		}
	}
	return err
}

// fillIn writes a file that is not there; one that is not whole goes again.
func fillIn(root *os.Root, name string, mode fs.FileMode, r io.Reader) error {
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, root.Remove(name))
	}
	return nil
}

// ownerFinder tells to whom an entry belongs here: by its names where the host has them.
func ownerFinder() func(h *tar.Header) (uid, gid int) {
	users, groups := map[string]int{}, map[string]int{}
	find := func(known map[string]int, name string, number int, look func(string) (string, error)) int {
		if name == "" {
			return number
		}
		if n, ok := known[name]; ok {
			return n
		}
		n := number
		if s, err := look(name); err == nil {
			if id, err := strconv.Atoi(s); err == nil {
				n = id
			}
		}
		if len(known) < 10000 {
			known[name] = n
		}
		return n
	}
	return func(h *tar.Header) (int, int) {
		return find(users, h.Uname, h.Uid, func(s string) (string, error) {
				u, err := user.Lookup(s)
				if err != nil {
					return "", err
				}
				return u.Uid, nil
			}), find(groups, h.Gname, h.Gid, func(s string) (string, error) {
				g, err := user.LookupGroup(s)
				if err != nil {
					return "", err
				}
				return g.Gid, nil
			})
	}
}

// listMembers lists an archive of tar or zip.
func listMembers(ctx context.Context, file, format string) ([]member, error) {
	var out []member
	isZip := format == "zip"
	if format == "" {
		b := make([]byte, 4)
		f, err := os.Open(file)
		if err != nil {
			return nil, failed("read", file, err)
		}
		n, err := io.ReadFull(f, b)
		if cerr := f.Close(); cerr != nil {
			return nil, cerr
		}
		isZip = err == nil && n == 4 && (bytes.Equal(b, []byte("PK\x03\x04")) || bytes.Equal(b, []byte("PK\x05\x06")))
	}
	if isZip {
		z, err := openZip(file)
		if err != nil {
			return nil, err
		}
		defer z.Close()
		for _, f := range z.File {
			kind := byte('f')
			if f.Mode().IsDir() {
				kind = 'd'
			} else if f.Mode()&fs.ModeSymlink != 0 {
				kind = 'l'
			}
			out = append(out, member{module.Valid(strings.TrimSuffix(f.Name, "/")), kind})
		}
		return out, nil
	}
	err := tarEntries(ctx, file, func(h *tar.Header, name string, _ io.Reader) error {
		if name == "." {
			return nil
		}
		kind := byte('f')
		switch h.Typeflag {
		case tar.TypeDir:
			kind = 'd'
		case tar.TypeSymlink:
			kind = 'l'
		}
		out = append(out, member{module.Valid(strings.TrimSuffix(name, "/")), kind})
		return nil
	})
	return out, err
}
