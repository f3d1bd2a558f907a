package blob

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Batch stores many blobs for the price of few flushes: what Put takes is acknowledged by
// the Commit after it, all together. Writing begins at each Put, so that Commit waits for
// the disk once and not for each file.
//
//	Put:    staging/N: open(O_CREAT|O_EXCL) flock write… fchmod sync_file_range(WRITE)
//	Commit: fsync of each staging/N, several at once
//	        renameat(staging/N, sha256/ab/abcdef…) for each
//	        open(sha256/ab) fsync close for each directory that got a name
//
// What holds at any moment: no name leads to bytes that are not durable; until Commit has
// returned without error nothing of the batch is promised, and before it began nothing of it
// can be seen, but for what was there before. It is fsync for each file and not syncfs, which
// would wait for what everybody else writes on the file system.
//
// Put may be called by many at the same time. A file stays open for each blob, and the
// margin of DeleteOld runs: commit within seconds and after a few hundred. An empty Batch
// can be used again.
type Batch struct {
	s      *Store
	mu     sync.Mutex
	staged []*intake
	await  map[string]awaited // by shard: changes of names that must be durable
}

// flushes is how many a Commit has under way.
const flushes = 16

type awaited struct {
	d      Digest // any of the shard
	change uint64
}

// Batch makes an empty batch.
func (s *Store) Batch() *Batch { return &Batch{s: s, await: map[string]awaited{}} }

// Put takes what r yields, as Store.Put does and with the same faults, but is acknowledged
// by Commit only. An error leaves the rest of the batch as it was.
func (b *Batch) Put(ctx context.Context, r io.Reader, o PutOptions) (Digest, int64, error) {
	in, err := b.s.take(ctx, r, o)
	if err != nil {
		return "", 0, err
	}
	return b.add(in)
}

// PutBytes is Put for bytes in memory.
func (b *Batch) PutBytes(data []byte) (Digest, error) {
	in, err := newIntake(PutOptions{})
	if err == nil {
		err = b.s.takeSmall(in, data)
	}
	if err != nil {
		return "", err
	}
	d, _, err := b.add(in)
	return d, err
}

func (b *Batch) add(in *intake) (Digest, int64, error) {
	d := in.digest()
	if in.file == nil {
		change, err := b.s.renew(d, in.size)
		if err != nil {
			return "", 0, err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.expect(d, change)
		return d, in.size, nil
	}
	return b.stage(in, false)
}

// stage keeps an intake with a file for Commit. A file that is linked keeps its mode: it is
// somebody else's too.
func (b *Batch) stage(in *intake, linked bool) (Digest, int64, error) {
	d := in.digest()
	err := touch(in.file.Name())
	if !linked && err == nil {
		err = seal(in.file)
	}
	if err == nil {
		// A hint: Commit asks for the outcome. File systems that can't do it write at fsync.
		_ = unix.SyncFileRange(int(in.file.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	if err := in.dropOn(err); err != nil {
		return "", 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.staged = append(b.staged, in)
	return d, in.size, nil
}

// expect notes a change of names that Commit has to make durable. Callers hold mu.
func (b *Batch) expect(d Digest, change uint64) {
	shard := string(d[:2])
	b.await[shard] = awaited{d, max(change, b.await[shard].change)}
}

// Len is the number of blobs that the next Commit has to write.
func (b *Batch) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.staged)
}

// Commit makes everything that was put durable and gives it its names. When it fails nothing
// of the batch is acknowledged, what of it has no name yet is gone, and the batch is empty.
// No Put of the same batch may be under way.
func (b *Batch) Commit() (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer func() { err = errors.Join(err, b.discard()) }()
	// Flushes that wait at the same time are one for the disk.
	var g errgroup.Group
	g.SetLimit(flushes)
	for _, in := range b.staged {
		g.Go(in.file.Sync)
	}
	if err := g.Wait(); err != nil {
		return b.s.full(err)
	}
	for _, in := range b.staged {
		change, err := b.s.place(in.file, in.digest())
		if err != nil {
			return err
		}
		b.expect(in.digest(), change)
		if err := in.file.Close(); err != nil {
			return err
		}
		in.file = nil // its name in staging is another's from now on
	}
	for _, w := range b.await {
		g.Go(func() error { return b.s.settle(w.d, w.change) })
	}
	return g.Wait()
}

// Discard forgets what was put since the last Commit; after a Commit it does nothing.
func (b *Batch) Discard() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.discard()
}

// discard removes what still lies in staging. Callers hold mu.
func (b *Batch) discard() (err error) {
	for _, in := range b.staged {
		if in.file != nil {
			err = errors.Join(err, os.Remove(in.file.Name()), in.file.Close())
		}
	}
	b.staged, b.await = nil, map[string]awaited{}
	return err
}
