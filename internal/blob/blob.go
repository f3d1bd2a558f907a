package blob

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/durable"
	"drover/internal/fault"
)

// chunk is the unit of copying. What fits into one chunk is hashed before
// anything is written, so that putting a small blob again costs no write.
const chunk = 64 << 10

// Store is a directory of blobs. All its methods may be called at the same time.
// One process owns a directory.
type Store struct {
	dir     string
	shards  [256]shard
	buffers sync.Pool // of *[]byte, chunk long
}

// shard is one of the 256 directories below sha256.
type shard struct {
	// mu orders the names that appear in and go from the directory: it makes
	// "is it there, then count on it" and "is it old, then remove it" one step.
	mu    sync.Mutex
	named uint64 // changes of names so far
	// syncing guards durable and is held during the flush, so that many puts
	// share one. It is taken without mu.
	syncing sync.Mutex
	durable uint64 // changes known to be flushed; 0: none yet by this process
}

// Info describes a blob without its bytes.
type Info struct {
	Digest Digest
	Size   int64
	// Put is when the blob was last put, new or again.
	Put time.Time
}

// Open opens the store in dir, making what is missing and clearing what puts of a killed
// process left. Uploads stay: their clients may go on.
func Open(dir string) (*Store, error) {
	s := &Store{dir: filepath.Clean(dir)}
	s.buffers.New = func() any { b := make([]byte, chunk); return &b }
	for _, d := range []string{s.staging(), s.uploads(), filepath.Join(s.dir, "sha256")} {
		if err := durable.MkdirAll(d, 0o750); err != nil {
			return nil, fmt.Errorf("open blob store: %w", err)
		}
	}
	for i := range s.shards {
		s.shards[i].named = 1 // what an earlier process left may not be durable yet
		if err := os.Mkdir(s.shardDir(i), 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, durable.Full(s.dir, fmt.Errorf("open blob store: %w", err))
		}
	}
	if err := durable.SyncDir(filepath.Join(s.dir, "sha256")); err != nil {
		return nil, fmt.Errorf("open blob store: %w", err)
	}
	err := s.abandoned(s.staging(), func(path string, _ fs.FileInfo) error { return os.Remove(path) })
	if err != nil {
		return nil, fmt.Errorf("open blob store: %w", err)
	}
	return s, nil
}

func (s *Store) staging() string { return filepath.Join(s.dir, "staging") }
func (s *Store) uploads() string { return filepath.Join(s.dir, "uploads") }

func (s *Store) shardDir(i int) string {
	return filepath.Join(s.dir, "sha256", fmt.Sprintf("%02x", i))
}

// at finds the shard and the path of d, which must be valid.
func (s *Store) at(d Digest) (*shard, string, error) {
	if !d.Valid() {
		_, err := Parse(string(d))
		return nil, "", err
	}
	first, err := hex.DecodeString(string(d[:2]))
	if err != nil {
		return nil, "", err
	}
	return &s.shards[first[0]], filepath.Join(s.dir, "sha256", string(d[:2]), string(d)), nil
}

// PutOptions says what a put must satisfy. The zero value asks for nothing.
type PutOptions struct {
	// Expect is the digest that the bytes must have, or "".
	Expect Digest
	// Max is the largest size taken, in bytes; 0 means no bound.
	Max int64
	// Tee also gets all the bytes, for instance a second hash; nil for none.
	Tee io.Writer
	// Check is asked after the last byte and before the blob can be seen; its
	// error refuses the blob. It is where Tee's hash is compared. nil for none.
	Check func(d Digest, size int64) error
}

// Put stores what r yields and returns its digest and size. When it returns
// without error the blob is durable. Putting what is there already costs no
// write and renews Info.Put. On any error nothing is left behind.
//
//	staging/N: open(O_CREAT|O_EXCL) flock write… fchmod fsync
//	renameat(staging/N, sha256/ab/abcdef…)
//	open(sha256/ab) fsync close         (shared by puts that wait for the same directory)
//
// Faults: digest_mismatch, too_large, disk_full, blob_damaged (what was there
// under the digest is not it; it was removed: send again).
func (s *Store) Put(ctx context.Context, r io.Reader, o PutOptions) (Digest, int64, error) {
	in, err := s.take(ctx, r, o)
	if err != nil {
		return "", 0, err
	}
	return s.publish(in)
}

// PutBytes is Put for bytes in memory.
func (s *Store) PutBytes(data []byte) (Digest, error) {
	in, err := newIntake(PutOptions{})
	if err == nil {
		err = s.takeSmall(in, data)
	}
	if err != nil {
		return "", err
	}
	d, _, err := s.publish(in)
	return d, err
}

// take takes what r yields as far as it can go without a flush or a name: the bytes are what
// was asked for, and are in the file of the intake, or there is no file because the blob is
// there already. On any error nothing is left behind.
func (s *Store) take(ctx context.Context, r io.Reader, o PutOptions) (*intake, error) {
	in, err := newIntake(o)
	if err != nil {
		return nil, err
	}
	lent := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(lent)
	buf := *lent

	n, err := io.ReadFull(r, buf)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return in, s.takeSmall(in, buf[:n])
	case err != nil:
		return nil, fmt.Errorf("read: %w", err)
	}
	here := false
	if o.Expect != "" {
		if here, err = s.Has(o.Expect); err != nil {
			return nil, err
		}
	}
	if !here {
		if in.file, err = s.create(); err != nil {
			return nil, err
		}
	}
	if err = in.addAll(ctx, r, buf, n); err == nil {
		err = in.check()
	}
	return in, in.dropOn(err)
}

// takeSmall is take for data, which is whole in memory: it writes only when the blob is not
// there yet.
func (s *Store) takeSmall(in *intake, data []byte) error {
	if err := in.add(data); err != nil {
		return err
	}
	if err := in.check(); err != nil {
		return err
	}
	here, err := s.Has(in.digest())
	if err != nil || here {
		return err
	}
	if in.file, err = s.create(); err != nil {
		return err
	}
	if _, err = in.file.Write(data); err != nil {
		err = s.full(err)
	}
	return in.dropOn(err)
}

// create makes a locked file in staging. The lock tells SweepStaging that
// somebody lives behind it; the kernel takes it away with the process.
func (s *Store) create() (*os.File, error) {
	for {
		f, err := os.CreateTemp(s.staging(), "put-*")
		if err != nil {
			return nil, s.full(err)
		}
		// A sweep may hold the lock for a moment, and may have removed the file.
		err = lock(f, unix.LOCK_EX)
		if err == nil {
			var info fs.FileInfo
			if info, err = f.Stat(); err == nil && info.Sys().(*syscall.Stat_t).Nlink == 1 {
				return f, nil
			}
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, errors.Join(err, os.Remove(f.Name()))
		}
	}
}

// publish acknowledges what take took: it gives in.file its name, or renews the blob that is
// there.
func (s *Store) publish(in *intake) (Digest, int64, error) {
	d := in.digest()
	if in.file == nil {
		change, err := s.renew(d, in.size)
		if err == nil {
			err = s.settle(d, change)
		}
		if err != nil {
			return "", 0, err
		}
		return d, in.size, nil
	}
	if err := in.dropOn(s.name(in.file, d)); err != nil {
		return "", 0, err
	}
	return d, in.size, in.file.Close()
}

// name flushes f and moves it to the place of d, durably.
func (s *Store) name(f *os.File, d Digest) error {
	if err := seal(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return s.full(err)
	}
	change, err := s.place(f, d)
	if err != nil {
		return err
	}
	return s.settle(d, change)
}

// seal gives f the mode and the time of a blob.
func seal(f *os.File) error {
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	return touch(f.Name())
}

// place moves f, which is flushed, to the place of d.
func (s *Store) place(f *os.File, d Digest) (change uint64, err error) {
	sh, path, err := s.at(d)
	if err != nil {
		return 0, err
	}
	sh.mu.Lock()
	err = os.Rename(f.Name(), path)
	sh.named++
	change = sh.named
	sh.mu.Unlock()
	return change, s.full(err)
}

// renew marks the blob d as just put: Has found it, but it may have been deleted since, or
// have been damaged on disk. One of another size is no use to anybody and goes, so that the
// next put heals it.
func (s *Store) renew(d Digest, size int64) (change uint64, err error) {
	sh, path, err := s.at(d)
	if err != nil {
		return 0, err
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	info, err := os.Lstat(path)
	if err == nil && info.Size() == size {
		return sh.named, touch(path)
	}
	if err == nil {
		sh.named++
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	return 0, fault.Unavailable("blob_damaged", "the stored copy of %s was damaged and is gone", d).
		Fix("send the content again")
}

// settle returns when the given change of names in the directory of d is durable. Puts that
// wait at the same time share one flush.
func (s *Store) settle(d Digest, change uint64) error {
	sh, path, err := s.at(d)
	if err != nil {
		return err
	}
	sh.syncing.Lock()
	defer sh.syncing.Unlock()
	if sh.durable >= change {
		return nil
	}
	sh.mu.Lock()
	now := sh.named
	sh.mu.Unlock()
	if err := durable.SyncDir(filepath.Dir(path)); err != nil {
		return err
	}
	sh.durable = now
	return nil
}

// Blob is an open blob. Reading is cheap to start anywhere. Besides the methods
// of io.ReadSeekCloser and io.ReaderAt it has those by which net/http hands the
// file to the kernel (sendfile).
type Blob struct {
	f      *os.File
	digest Digest
	size   int64
}

// Get opens the blob d. The caller closes it. A blob that is deleted while open
// stays readable. Faults: blob_unknown, digest_invalid.
func (s *Store) Get(d Digest) (*Blob, error) {
	_, path, err := s.at(d)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, unknown(d, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fault.Internal("blob_damaged", "blob %s is not a file", d)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Blob{f: f, digest: d, size: info.Size()}, nil
}

// Digest is the blob's name.
func (b *Blob) Digest() Digest { return b.digest }

// Size is the blob's length in bytes.
func (b *Blob) Size() int64 { return b.size }

// Read reads on from the present position.
func (b *Blob) Read(p []byte) (int, error) { return b.f.Read(p) }

// ReadAt reads at off without moving the position.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) { return b.f.ReadAt(p, off) }

// Seek moves the position.
func (b *Blob) Seek(offset int64, whence int) (int64, error) { return b.f.Seek(offset, whence) }

// Close ends the reading.
func (b *Blob) Close() error { return b.f.Close() }

// Stat and SyscallConn let net/http use sendfile.
func (b *Blob) Stat() (fs.FileInfo, error) { return b.f.Stat() }

// SyscallConn is the file as the kernel knows it.
func (b *Blob) SyscallConn() (syscall.RawConn, error) { return b.f.SyscallConn() }

// ReadAll is the whole blob d in memory. One that is larger than limit bytes is
// the fault too_large.
func (s *Store) ReadAll(d Digest, limit int64) (data []byte, err error) {
	b, err := s.Get(d)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if b.size > limit {
		return nil, fault.TooLarge("too_large", "blob %s has %d bytes, at most %d are read here", d, b.size, limit).
			Fix("fetch it as a stream")
	}
	data = make([]byte, b.size)
	if _, err := io.ReadFull(b, data); err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	return data, nil
}

// Stat describes the blob d. Faults: blob_unknown, digest_invalid.
func (s *Store) Stat(d Digest) (Info, error) {
	_, path, err := s.at(d)
	if err != nil {
		return Info{}, err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return Info{}, unknown(d, err)
	}
	return Info{Digest: d, Size: info.Size(), Put: info.ModTime()}, nil
}

// Has says whether the blob d is there. It does not read it.
func (s *Store) Has(d Digest) (bool, error) {
	_, err := s.Stat(d)
	if fault.Code(err) == "blob_unknown" {
		return false, nil
	}
	return err == nil, err
}

// Delete removes the blob d; one that is not there is fine. The caller knows
// that nobody needs it and that nobody is putting it: a collector that can't
// know the latter uses DeleteOld. After a power cut the blob may be back.
func (s *Store) Delete(d Digest) error {
	_, err := s.remove(d, func(fs.FileInfo) bool { return true })
	return err
}

// DeleteOld removes the blob d if it was last put before the given time, and
// says whether it did. With a margin that is longer than any caller takes from
// its Put to the commit of the row that names the blob, a put of the same bytes
// at the same time is safe.
func (s *Store) DeleteOld(d Digest, before time.Time) (bool, error) {
	return s.remove(d, func(info fs.FileInfo) bool { return info.ModTime().Before(before) })
}

func (s *Store) remove(d Digest, wanted func(fs.FileInfo) bool) (bool, error) {
	sh, path, err := s.at(d)
	if err != nil {
		return false, err
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || !wanted(info) {
		return false, err
	}
	sh.named++
	if err := os.Remove(path); err != nil {
		return false, err
	}
	return true, nil
}

func unknown(d Digest, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.NotFound("blob_unknown", "no blob %s", d)
	}
	return err
}

func (s *Store) full(err error) error { return durable.Full(s.dir, err) }

// touch sets the time of path to now, by the kernel's clock.
func touch(path string) error {
	now := unix.Timespec{Nsec: unix.UTIME_NOW}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{now, now}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "touch", Path: path, Err: err}
	}
	return nil
}

// lock takes the advisory lock of this opening of f; see flock(2) for how.
func lock(f *os.File, how int) error {
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		return &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return nil
}
