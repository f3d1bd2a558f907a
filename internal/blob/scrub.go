package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/fault"
)

// List yields every blob in the order of digests. Blobs that come or go
// meanwhile may or may not be among them. Files that are no blobs are passed over;
// Scrub reports them. An error ends the sequence.
func (s *Store) List() iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		for i := range s.shards {
			entries, err := os.ReadDir(s.shardDir(i))
			if err != nil {
				yield(Info{}, fmt.Errorf("list blobs: %w", err))
				return
			}
			for _, e := range entries {
				if !s.belongs(i, e) {
					continue
				}
				info, err := e.Info()
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil {
					yield(Info{}, fmt.Errorf("list blobs: %w", err))
					return
				}
				if !yield(Info{Digest: Digest(e.Name()), Size: info.Size(), Put: info.ModTime()}, nil) {
					return
				}
			}
		}
	}
}

// belongs says whether e has the form of a blob of shard i.
func (s *Store) belongs(i int, e fs.DirEntry) bool {
	return e.Type().IsRegular() && Digest(e.Name()).Valid() && e.Name()[:2] == filepath.Base(s.shardDir(i))
}

// Verify reads the blob d and compares. Faults: blob_damaged, blob_unknown.
func (s *Store) Verify(ctx context.Context, d Digest) (err error) {
	b, err := s.Get(d)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	lent := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(lent)
	sum := sha256.New()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := b.Read(*lent)
		sum.Write((*lent)[:n])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fault.Internal("blob_damaged", "blob %s can't be read", d).Wrap(err).
				Fix("look at the disk; bring the blob back from a backup or build it again")
		}
	}
	if got := Digest(hex.EncodeToString(sum.Sum(nil))); got != d {
		return fault.Internal("blob_damaged", "blob %s has the content of %s", d, got).
			Fix("look at the disk; delete the blob, then bring it back from a backup or put it again")
	}
	return nil
}

// ProblemKind says what Scrub found.
type ProblemKind string

// What Scrub finds.
const (
	Damaged   ProblemKind = "damaged"   // the content is not the name's, or can't be read
	Misplaced ProblemKind = "misplaced" // something that is no blob, or a blob in another's directory
	Leftover  ProblemKind = "leftover"  // a put that a killed process left in staging
)

// Problem is one finding of Scrub.
type Problem struct {
	Kind   ProblemKind
	Path   string // relative to the store's directory
	Digest Digest // of a damaged blob
	Err    error  // why, for a damaged blob
}

// Scrubbed counts what Scrub read.
type Scrubbed struct {
	Blobs int64
	Bytes int64
}

// Scrub reads everything and tells report each problem, one at a time. It
// changes nothing. The error is one of the scrub itself, such as ctx's.
func (s *Store) Scrub(ctx context.Context, report func(Problem)) (Scrubbed, error) {
	var done Scrubbed
	for i := range s.shards {
		entries, err := os.ReadDir(s.shardDir(i))
		if err != nil {
			return done, fmt.Errorf("scrub: %w", err)
		}
		for _, e := range entries {
			path := filepath.Join("sha256", filepath.Base(s.shardDir(i)), e.Name())
			if !s.belongs(i, e) {
				report(Problem{Kind: Misplaced, Path: path})
				continue
			}
			d := Digest(e.Name())
			info, err := s.Stat(d)
			if err == nil {
				err = s.Verify(ctx, d)
			}
			switch {
			case ctx.Err() != nil:
				return done, ctx.Err()
			case fault.Code(err) == "blob_unknown": // deleted meanwhile
				continue
			case err != nil:
				report(Problem{Kind: Damaged, Path: path, Digest: d, Err: err})
			}
			done.Blobs++
			done.Bytes += info.Size
		}
	}
	if err := s.scrubAround(report); err != nil {
		return done, fmt.Errorf("scrub: %w", err)
	}
	return done, nil
}

// scrubAround looks for what should not be beside the blobs.
func (s *Store) scrubAround(report func(Problem)) error {
	shards, err := os.ReadDir(filepath.Join(s.dir, "sha256"))
	if err != nil {
		return err
	}
	for _, e := range shards {
		if b, err := hex.DecodeString(e.Name()); err != nil || len(b) != 1 || hex.EncodeToString(b) != e.Name() || !e.IsDir() {
			report(Problem{Kind: Misplaced, Path: filepath.Join("sha256", e.Name())})
		}
	}
	return s.abandoned(s.staging(), func(path string, _ fs.FileInfo) error {
		report(Problem{Kind: Leftover, Path: filepath.Join("staging", filepath.Base(path))})
		return nil
	})
}

// SweepStaging removes what nobody holds and was last written to before the
// given time: puts that a killed process left, and uploads that were given up.
// It gives their number.
func (s *Store) SweepStaging(before time.Time) (int, error) {
	n := 0
	sweep := func(path string, info fs.FileInfo) error {
		if !info.ModTime().Before(before) {
			return nil
		}
		n++
		return os.Remove(path)
	}
	err := s.abandoned(s.staging(), sweep)
	if err == nil {
		err = s.abandoned(s.uploads(), sweep)
	}
	if err != nil {
		return n, fmt.Errorf("sweep staging: %w", err)
	}
	return n, nil
}

// abandoned calls f for each file in dir that no process has locked, while
// holding its lock.
func (s *Store) abandoned(dir string, f func(path string, info fs.FileInfo) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ifAbandoned(filepath.Join(dir, e.Name()), f); err != nil {
			return err
		}
	}
	return nil
}

func ifAbandoned(path string, f func(path string, info fs.FileInfo) error) (err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	switch err := lock(file, unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil
	case err != nil:
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	// It may have been published between the listing and the lock.
	if named, err := os.Lstat(path); err != nil || !os.SameFile(info, named) {
		return nil
	}
	return f(path, info)
}
