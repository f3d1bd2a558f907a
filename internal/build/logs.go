package build

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/fault"
)

// A log grows in a file of its own while its task runs and becomes a blob when it ends.
const (
	maxLog  = 256 << 20 // bytes of one log
	maxLogs = 16        // logs of one task
)

var reLog = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,30}\.log$`)

// logDir holds the logs of one lease of a task: an older one's builder cannot write into them.
func (s *Store) logDir(t Task) string { return filepath.Join(s.Dir, "logs", leaseName(t)) }

// AppendLog adds bytes of a held task's log at offset and returns the log's size. Bytes
// that are there already are passed over, so that a builder may repeat itself; a gap is
// refused with log_gap, and the size tells where to go on.
func (s *Store) AppendLog(ctx context.Context, id, fence int64, name string, offset int64, r io.Reader) (int64, error) {
	t, _, err := s.heldBuild(ctx, id, fence)
	if err != nil {
		return 0, err
	}
	if !reLog.MatchString(name) {
		return 0, fault.Invalid("log_name", "%.80q is no name of a log", name)
	}
	dir := s.logDir(t)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	path := filepath.Join(dir, name)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if es, err := os.ReadDir(dir); err == nil && len(es) >= maxLogs {
			return 0, fault.TooLarge("log_count", "task %d has %d logs already", id, len(es))
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer closeQuietly(f)
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := st.Size()
	if offset < 0 || offset > size {
		return size, fault.Conflict("log_gap", "%s of task %d has %d bytes, not %d", name, id, size, offset)
	}
	if _, err := io.CopyN(io.Discard, r, size-offset); err != nil {
		if errors.Is(err, io.EOF) {
			return size, nil
		}
		return size, err
	}
	n, err := io.Copy(io.NewOffsetWriter(f, size), io.LimitReader(r, maxLog-size))
	size += n
	s.grown.ring()
	if err != nil {
		return size, cut(dir, err)
	}
	if size == maxLog {
		if more, _ := io.CopyN(io.Discard, r, 1); more > 0 {
			return size, fault.TooLarge("log_size", "%s of task %d is over %d bytes", name, id, int64(maxLog))
		}
	}
	return size, nil
}

// keptLogs is the logs of a task attempt that has ended, stored and not yet in the database.
type keptLogs []struct {
	name   string
	digest blob.Digest
	size   int64
}

// closeLogs stores a task's logs as blobs. The files stay until the rows are committed.
func (s *Store) closeLogs(ctx context.Context, t Task) (out keptLogs, err error) {
	es, err := os.ReadDir(s.logDir(t))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		f, err := os.Open(filepath.Join(s.logDir(t), e.Name()))
		if err != nil {
			return nil, err
		}
		d, n, err := s.Blobs.Put(ctx, f, blob.PutOptions{})
		closeQuietly(f)
		if err != nil {
			return nil, err
		}
		out = append(out, struct {
			name   string
			digest blob.Digest
			size   int64
		}{e.Name(), d, n})
	}
	return out, nil
}

// keep writes the rows.
func (ls keptLogs) keep(tx *db.Tx, t Task) error {
	for _, l := range ls {
		if _, err := tx.Exec("INSERT INTO build_log (task, name, digest, size) VALUES ($1, $2, $3, $4)", t.ID, l.name, l.digest.String(), l.size); err != nil {
			return err
		}
	}
	return nil
}

// afterTask clears what a lease of a task left on disk, once its rows are committed, and
// wakes those who wait for it.
func (s *Store) afterTask(t Task) {
	s.queue.ring()
	s.grown.ring()
	for _, dir := range []string{s.logDir(t), s.incomingDir(t)} {
		if err := os.RemoveAll(dir); err != nil {
			s.Log.Warn("a finished task's files stay", "dir", dir, "err", err)
		}
	}
}

// sweep removes what leases that are over left on disk: those of a server that was killed, and
// those that a slow upload made again.
func (s *Store) sweep(ctx context.Context) error {
	for _, kind := range []string{"logs", "incoming"} {
		es, err := os.ReadDir(filepath.Join(s.Dir, kind))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// The leases are read after the directory: a newer one is not in it.
		open := map[string]bool{}
		err = s.DB.Read(ctx, func(tx *db.Tx) error {
			ts, err := tasksWhere(tx, "state = 'OPEN'")
			for _, t := range ts {
				open[leaseName(t)] = true
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, e := range es {
			if !e.IsDir() || open[e.Name()] {
				continue
			}
			if err := os.RemoveAll(filepath.Join(s.Dir, kind, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// liveLogs names the logs of a running task with their sizes.
func (s *Store) liveLogs(t Task) (out []Log) {
	es, err := os.ReadDir(s.logDir(t))
	if err != nil {
		return nil
	}
	for _, e := range es {
		if st, err := e.Info(); err == nil {
			out = append(out, Log{e.Name(), st.Size()})
		}
	}
	return out
}

// ReadLog writes a log from offset to w. With follow it goes on while the task runs; flush
// is called after each piece.
func (s *Store) ReadLog(ctx context.Context, id int64, name string, offset int64, follow bool, w io.Writer, flush func()) error {
	if offset < 0 {
		return fault.Invalid("log_offset", "a log has no byte %d", offset)
	}
	var fence int64
	for sent := false; ; {
		woken := s.grown.next()
		var digest string
		var t Task
		err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
			if t, err = getTask(tx, id); err != nil {
				return err
			}
			err = tx.QueryRow("SELECT digest FROM build_log WHERE task = $1 AND name = $2", id, name).Scan(&digest)
			if db.NoRow(err) {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
		if digest != "" {
			b, err := s.Blobs.Get(blob.Digest(digest))
			if err != nil {
				return err
			}
			defer closeQuietly(b)
			_, err = io.Copy(w, io.NewSectionReader(b, offset, max(0, b.Size()-offset)))
			return err
		}
		running := t.State == TaskOpen || t.State == TaskFree
		if !reLog.MatchString(name) || !running {
			if sent {
				return nil
			}
			return fault.NotFound("log_unknown", "task %d has no log %.80q", id, name).Fix("see `drover task show %d`", id)
		}
		if sent && t.State == TaskOpen && t.fence != fence {
			offset = 0 // the task is tried again, with a log of its own
		}
		fence = t.fence
		n, err := s.copyLive(t, name, offset, w)
		if err != nil {
			return err
		}
		offset += n
		sent = true
		if n > 0 {
			flush()
		}
		if !follow {
			return nil
		}
		again := time.NewTimer(5 * time.Second)
		select {
		case <-ctx.Done():
			again.Stop()
			return nil
		case <-woken:
			again.Stop()
		case <-again.C:
		}
	}
}

func (s *Store) copyLive(t Task, name string, offset int64, w io.Writer) (int64, error) {
	f, err := os.Open(filepath.Join(s.logDir(t), name))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer closeQuietly(f)
	return io.Copy(w, io.NewSectionReader(f, offset, maxLog))
}
