package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"drover/internal/durable"
	"drover/internal/fault"
)

// maxUploadID is the longest id of an upload, in bytes.
const maxUploadID = 128

// Upload is a resumable upload: it grows by Append, outlives the process, and
// becomes a blob by Finish. It is open for one holder at a time, who calls one
// method at a time and ends with Finish, Abort or Close.
type Upload struct {
	s    *Store
	id   string
	f    *os.File // locked
	max  int64
	size int64
}

// Stage opens the upload with the given id, going on with what an earlier
// process or connection left under it. The id is 1 to 128 letters, digits, '_'
// and '-'; who may use which is the caller's matter. The upload holds at most
// max bytes; 0 means no bound. Faults: upload_id_invalid, upload_busy (somebody
// else holds it now), disk_full.
func (s *Store) Stage(id string, max int64) (*Upload, error) {
	if !safeID(id) {
		return nil, fault.Invalid("upload_id_invalid", "%.80q can't be the id of an upload", id).
			Fix("use 1 to %d letters, digits, '_' and '-'", maxUploadID)
	}
	path := filepath.Join(s.uploads(), id)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if errors.Is(err, fs.ErrPermission) {
			// A Finish was killed after it had made the file read-only.
			if err = os.Chmod(path, 0o600); err == nil || errors.Is(err, fs.ErrNotExist) {
				f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
			}
		}
		if err != nil {
			return nil, s.full(err)
		}
		if err := lock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			err = errors.Join(err, f.Close())
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fault.Conflict("upload_busy", "upload %s is being written to", id).
					Fix("wait until the other connection has ended, then ask for the size and go on from there").Wrap(err)
			}
			return nil, err
		}
		// Between open and lock a former holder may have finished or aborted:
		// then the lock is on a file without a name.
		info, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if named, err := os.Lstat(path); err == nil && os.SameFile(info, named) {
			return &Upload{s: s, id: id, f: f, max: max, size: info.Size()}, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

func safeID(id string) bool {
	return id != "" && len(id) <= maxUploadID && strings.Trim(id,
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
}

// Size is the number of bytes that the upload has: where the next Append goes.
func (u *Upload) Size() int64 { return u.size }

// Append adds what r yields at offset, which must be Size: anything else is the
// fault upload_offset. When r fails or ctx ends, the bytes that came stay and
// Size tells how many, so that the client can go on. When the disk is full or
// the bound is passed (too_large), the upload is as it was before. What Append
// acknowledged survives a power cut.
//
//	pwrite… fdatasync        (ftruncate first when taking back)
func (u *Upload) Append(ctx context.Context, offset int64, r io.Reader) error {
	if offset != u.size {
		return fault.Conflict("upload_offset", "upload %s has %d bytes, the next can't go to %d", u.id, u.size, offset).
			Fix("go on from byte %d", u.size)
	}
	lent := u.s.buffers.Get().(*[]byte)
	defer u.s.buffers.Put(lent)
	end, err := u.write(ctx, r, *lent)
	if code := fault.Code(err); code == "disk_full" || code == "too_large" {
		return errors.Join(err, u.f.Truncate(u.size))
	}
	if serr := unix.Fdatasync(int(u.f.Fd())); serr != nil {
		return errors.Join(err, u.s.full(&fs.PathError{Op: "sync", Path: u.f.Name(), Err: serr}), u.f.Truncate(u.size))
	}
	u.size = end
	return err
}

// write appends and gives the new end, also on error.
func (u *Upload) write(ctx context.Context, r io.Reader, buf []byte) (int64, error) {
	end := u.size
	for {
		if err := ctx.Err(); err != nil {
			return end, err
		}
		n, err := r.Read(buf)
		if u.max > 0 && end+int64(n) > u.max {
			return end, tooLarge(u.max)
		}
		if n > 0 {
			if _, err := u.f.WriteAt(buf[:n], end); err != nil {
				return end, durable.Full(u.s.dir, err)
			}
			end += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return end, nil
		}
		if err != nil {
			return end, fmt.Errorf("read: %w", err)
		}
	}
}

// Finish reads the whole upload again, checks it as Put does, and makes it a
// blob. The upload is closed afterwards in every case; it is gone too, unless ctx
// ended or the disk failed: content that is not what was announced can't be
// mended by going on.
func (u *Upload) Finish(ctx context.Context, o PutOptions) (Digest, int64, error) {
	in, err := newIntake(o)
	if err != nil {
		return "", 0, errors.Join(err, u.Close())
	}
	lent := u.s.buffers.Get().(*[]byte)
	defer u.s.buffers.Put(lent)
	err = in.addAll(ctx, io.NewSectionReader(u.f, 0, u.size), *lent, 0)
	if err == nil {
		err = in.check()
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return "", 0, errors.Join(err, u.Close())
	case err != nil:
		return "", 0, errors.Join(err, u.Abort())
	}
	// The blob may be there already: then the rename puts equal bytes over it.
	if err := u.s.name(u.f, in.digest()); err != nil {
		return "", 0, errors.Join(err, u.Close())
	}
	return in.digest(), in.size, u.Close()
}

// Abort removes the upload and closes it.
func (u *Upload) Abort() error {
	return errors.Join(os.Remove(u.f.Name()), u.Close())
}

// Close lets go of the upload and keeps its bytes for a later Stage. Closing
// again does nothing.
func (u *Upload) Close() error {
	if err := u.f.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
