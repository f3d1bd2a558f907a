package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"drover/internal/fault"
)

// tempPattern names the files that a killed process may leave behind. They
// start with a dot so that no reader takes them for content.
const tempPattern = ".durable-*"

// WriteFile replaces the file at path by data, atomically and durably. On any
// error the old file is untouched and nothing is left over. The mode is exactly
// perm, whatever the umask.
//
//	openat(dir/.durable-N, O_CREAT|O_EXCL) write fchmod fsync close
//	renameat(dir/.durable-N, path)
//	open(dir) fsync close
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return Replace(path, perm, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// Replace is WriteFile for content that fill streams. An error of fill comes
// back wrapped and the old file stays.
func Replace(path string, perm fs.FileMode, fill func(io.Writer) error) error {
	dir := filepath.Dir(path)
	temp, err := writeTemp(dir, perm, fill)
	if err != nil {
		return Full(dir, fmt.Errorf("write %s: %w", path, err))
	}
	if err := os.Rename(temp, path); err != nil {
		return Full(dir, errors.Join(err, os.Remove(temp)))
	}
	return SyncDir(dir)
}

// writeTemp leaves a flushed temporary file in dir, or nothing.
func writeTemp(dir string, perm fs.FileMode, fill func(io.Writer) error) (string, error) {
	f, err := os.CreateTemp(dir, tempPattern)
	if err != nil {
		return "", err
	}
	err = fill(f)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// Rename moves the already flushed file or directory at from to to, replacing a
// file that is there, and makes both directories durable. Both paths must lie in
// one file system.
//
//	renameat(from, to)
//	open(dir of to) fsync close
//	open(dir of from) fsync close     (when it is another directory)
//
// The target goes first: after a power cut the thing may have two names, never none.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return Full(filepath.Dir(to), err)
	}
	if err := SyncDir(filepath.Dir(to)); err != nil {
		return err
	}
	if filepath.Dir(from) == filepath.Dir(to) {
		return nil
	}
	return SyncDir(filepath.Dir(from))
}

// Symlink lets the symbolic link at path point to target, atomically replacing
// a link (or file) that is there.
//
//	symlinkat(target, dir/.durable-N)
//	renameat(dir/.durable-N, path)
//	open(dir) fsync close
func Symlink(target, path string) error {
	dir := filepath.Dir(path)
	temp, err := writeTemp(dir, 0o600, func(io.Writer) error { return nil }) // reserves a free name
	if err != nil {
		return Full(dir, err)
	}
	link := temp + ".link"
	err = os.Symlink(target, link)
	if err == nil {
		if err = os.Rename(link, path); err != nil {
			err = errors.Join(err, os.Remove(link))
		}
	}
	if err := errors.Join(err, os.Remove(temp)); err != nil {
		return Full(dir, err)
	}
	return SyncDir(dir)
}

// SwitchDir puts the directory staged in the place of dir in one step: whoever
// opens a path below dir finds either all of the old content or all of the new.
// When dir exists, its old content is at staged afterwards and is the caller's
// to remove; otherwise staged is gone. The whole tree below staged is flushed first.
// Both must lie in one file system that knows RENAME_EXCHANGE (ext4, xfs, btrfs, tmpfs).
//
//	fsync of every file and directory below staged, children first
//	renameat2(staged, dir, RENAME_EXCHANGE)   (renameat when dir is absent)
//	open(parent of dir) fsync close
//	open(parent of staged) fsync close        (when it is another directory)
func SwitchDir(staged, dir string) error {
	if err := SyncTree(staged); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, staged, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) {
		return Rename(staged, dir)
	}
	if err != nil {
		return Full(filepath.Dir(dir), &os.LinkError{Op: "exchange", Old: staged, New: dir, Err: err})
	}
	if err := SyncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if filepath.Dir(staged) == filepath.Dir(dir) {
		return nil
	}
	return SyncDir(filepath.Dir(staged))
}

// MkdirAll makes dir and its missing parents and makes every new name durable.
// A dir that exists costs one stat.
//
//	mkdirat(first missing) ... mkdirat(dir)
//	open(parent) fsync close                  (for each directory made, deepest first)
func MkdirAll(dir string, perm fs.FileMode) error {
	dir = filepath.Clean(dir)
	var missing []string // deepest first
	for d := dir; ; d = filepath.Dir(d) {
		info, err := os.Stat(d)
		if err == nil && !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: d, Err: unix.ENOTDIR}
		}
		if err == nil || d == filepath.Dir(d) {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		missing = append(missing, d)
	}
	if len(missing) == 0 {
		return nil
	}
	if err := os.MkdirAll(dir, perm); err != nil {
		return Full(filepath.Dir(missing[len(missing)-1]), err)
	}
	for _, d := range missing {
		if err := SyncDir(filepath.Dir(d)); err != nil {
			return err
		}
	}
	return nil
}

// SyncDir makes the names in dir durable.
//
//	open(dir) fsync close
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return Full(dir, err)
}

// SyncTree makes everything below root durable, root's own content included,
// children before the directory that names them. Symbolic links are not
// followed. The name of root itself is the caller's matter.
func SyncTree(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(root, e.Name())
		switch {
		case e.IsDir():
			err = SyncTree(path)
		case e.Type().IsRegular():
			err = SyncDir(path) // the same three calls work on a file
		}
		if err != nil {
			return err
		}
	}
	return SyncDir(root)
}

// Full turns an error that says "no space", "no quota" into the fault
// disk_full, which names dir's file system and what to do. Any other error, and
// nil, comes back as it is.
func Full(dir string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.Unavailable("disk_full", "the file system of %s is full", dir).
			Fix("free space or inodes there, then try again: nothing was left half written").Wrap(err)
	}
	return err
}
