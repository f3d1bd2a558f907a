package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Adopt is Put of a file that somebody else has, without copying it where the file system can:
// as a clone that shares the blocks (a reflink), which nobody can change from outside; or, when
// hard is set, as a hard link; else, and when neither works, as a copy. f stands where it
// stood after that.
//
// A hard link is the same file under two names: who rewrites the other one in place changes the
// blob (which Scrub finds), and the blob's time becomes the file's. Programs that write a new
// file and rename it do no harm. The bytes are read once more after linking, so that they were
// right when the blob got its name.
func (b *Batch) Adopt(ctx context.Context, f *os.File, o PutOptions, hard bool) (Digest, int64, error) {
	if o.Expect != "" {
		if here, err := b.s.Has(o.Expect); err != nil {
			return "", 0, err
		} else if here {
			return b.Put(ctx, whole(f), o)
		}
	}
	in, err := newIntake(o)
	if err != nil {
		return "", 0, err
	}
	if in.file, err = b.s.create(); err != nil {
		return "", 0, err
	}
	linked := false
	if err := unix.IoctlFileClone(int(in.file.Fd()), int(f.Fd())); err != nil && hard {
		linked, err = b.s.link(in, f)
		if err != nil {
			return "", 0, in.dropOn(err)
		}
	}
	info, err := in.file.Stat()
	if err == nil && info.Size() == 0 { // nothing could be shared
		if err := in.dropOn(errNotShared); !errors.Is(err, errNotShared) {
			return "", 0, err
		}
		return b.Put(ctx, whole(f), o)
	}
	if err == nil {
		err = in.read(ctx)
	}
	if err == nil {
		err = in.check()
	}
	if err := in.dropOn(err); err != nil {
		return "", 0, err
	}
	return b.stage(in, linked)
}

var errNotShared = errors.New("not shared")

// whole reads all of f without moving its position.
func whole(f *os.File) io.Reader { return io.NewSectionReader(f, 0, 1<<62) }

// link puts a hard link to f in the place of the intake's file, which is empty. It is false when
// the kernel refuses.
func (s *Store) link(in *intake, f *os.File) (bool, error) {
	name := in.file.Name()
	path := name + ".link"
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return false, nil //nolint:nilerr // the caller copies then
	}
	other, err := os.Open(path)
	if err != nil {
		return false, errors.Join(err, os.Remove(path))
	}
	// A sweep of staging takes what nobody has locked.
	if err = lock(other, unix.LOCK_SH|unix.LOCK_NB); err == nil {
		err = os.Rename(path, name)
	}
	var fd int
	if err == nil {
		fd, err = unix.FcntlInt(other.Fd(), unix.F_DUPFD_CLOEXEC, 0) // the lock is that of both
	}
	if err := errors.Join(err, other.Close()); err != nil {
		return false, errors.Join(err, os.RemoveAll(path))
	}
	err = in.file.Close()
	in.file = os.NewFile(uintptr(fd), name)
	return true, err
}

// read takes the bytes of the intake's own file.
func (in *intake) read(ctx context.Context) error {
	buf := make([]byte, 4*chunk)
	for off := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := in.file.ReadAt(buf, off)
		off += int64(n)
		if aerr := in.add(buf[:n]); aerr != nil {
			return aerr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
	}
}

// Renew marks the blob d as just put, durably, and describes it: who finds it and is about to
// name it in a row keeps it from DeleteOld by that. Faults: blob_unknown, digest_invalid.
func (s *Store) Renew(d Digest) (Info, error) {
	sh, path, err := s.at(d)
	if err != nil {
		return Info{}, err
	}
	sh.mu.Lock()
	var info fs.FileInfo
	if err = touch(path); err == nil {
		info, err = os.Lstat(path)
	}
	change := sh.named
	sh.mu.Unlock()
	if err != nil {
		return Info{}, unknown(d, err)
	}
	if err := s.settle(d, change); err != nil {
		return Info{}, fmt.Errorf("renew %s: %w", filepath.Base(path), err)
	}
	return Info{Digest: d, Size: info.Size(), Put: info.ModTime()}, nil
}
