package fetch

import (
	"context"
	"crypto/sha1" //nolint:gosec // old repositories name their files by it
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/durable"
	"drover/internal/fault"
)

// NewHash knows the checksums of repository metadata that are still worth something.
func NewHash(algo string) (hash.Hash, error) {
	switch algo {
	case "sha256", "":
		return sha256.New(), nil
	case "sha224":
		return sha256.New224(), nil
	case "sha384":
		return sha512.New384(), nil
	case "sha512":
		return sha512.New(), nil
	case "sha", "sha1":
		return sha1.New(), nil //nolint:gosec // as the repository has it
	}
	return nil, fault.Invalid("fetch_algo", "files are named by the checksum %.20q, which is not known here", algo)
}

// part is a file that is being fetched. With a checksum it has a name in the client's
// directory, where it outlives the process; without one it has none.
//
// Two bytes of it are locked, by open file descriptions, so that goroutines exclude each other
// as processes do. Whoever wants the file holds the lock of byte 0 shared; whoever works on it
// holds byte 1. It is removed under the exclusive lock of both: hence never while somebody
// waits for it, who then finds it whole.
type part struct {
	f    *os.File
	path string
	sum  hash.Hash // of the first size bytes
	size int64
}

const (
	lockInterest = iota
	lockWork
)

// claim takes the lock of one byte; false when somebody else has it.
func claim(f *os.File, at int64, how int16) (bool, error) {
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: how, Whence: io.SeekStart, Start: at, Len: 1})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return true, nil
}

// open opens what is here of w, waiting for others who work on it.
func (c *Client) open(ctx context.Context, w *Want) (*part, error) {
	sum, err := NewHash(w.Algo)
	if err != nil {
		return nil, err
	}
	if w.Sum == "" {
		f, err := os.CreateTemp(c.cfg.Dir, "unnamed-")
		if err != nil {
			return nil, durable.Full(c.cfg.Dir, err)
		}
		return &part{f: f, sum: sum}, os.Remove(f.Name())
	}
	p := &part{path: filepath.Join(c.cfg.Dir, w.Algo+"-"+w.Sum), sum: sum}
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		mine, err := p.tryOpen()
		if err != nil {
			return nil, durable.Full(c.cfg.Dir, err)
		}
		if mine {
			if err := p.recall(ctx, w.bound()); err != nil {
				return nil, errors.Join(err, p.close())
			}
			return p, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), p.close())
		case <-time.After(wait):
		}
	}
}

// tryOpen says whether the file is open and ours alone to work on. When it is not, it may stay
// open to show that somebody waits.
func (p *part) tryOpen() (mine bool, err error) {
	if p.f == nil {
		f, err := os.OpenFile(p.path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return false, err
		}
		ok, err := claim(f, lockInterest, unix.F_RDLCK)
		if ok {
			var info fs.FileInfo
			if info, err = f.Stat(); err == nil && info.Sys().(*syscall.Stat_t).Nlink == 1 {
				p.f = f
			}
		}
		if p.f == nil { // it is being removed, or was
			return false, errors.Join(err, f.Close())
		}
	}
	mine, err = claim(p.f, lockWork, unix.F_WRLCK)
	if err != nil {
		return false, errors.Join(err, p.close())
	}
	return mine, nil
}

// recall rebuilds the checksum of what is there.
func (p *part) recall(ctx context.Context, bound int64) error {
	info, err := p.f.Stat()
	if err != nil {
		return err
	}
	if info.Size() > bound {
		return p.reset()
	}
	p.size, err = io.Copy(p.sum, contextReader{ctx, io.NewSectionReader(p.f, 0, info.Size())})
	return err
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Write appends.
func (p *part) Write(b []byte) (int, error) {
	n, err := p.f.WriteAt(b, p.size)
	if err != nil {
		return n, durable.Full(filepath.Dir(p.f.Name()), err)
	}
	p.sum.Write(b)
	p.size += int64(n)
	return n, nil
}

// reset begins anew.
func (p *part) reset() error {
	p.size = 0
	p.sum.Reset()
	return p.f.Truncate(0)
}

func (p *part) hex() string { return hex.EncodeToString(p.sum.Sum(nil)) }

// close lets go of the file and leaves it where it is.
func (p *part) close() error {
	if p.f == nil {
		return nil
	}
	err := p.f.Close()
	p.f = nil
	return err
}

// remove lets go of the file, and removes it unless somebody waits for it.
func (p *part) remove() error {
	if p.path == "" {
		return p.close()
	}
	alone, err := claim(p.f, lockInterest, unix.F_WRLCK)
	if alone {
		err = os.Remove(p.path)
	}
	return errors.Join(err, p.close())
}

// Sweep removes what nobody works on and was last written to before the given time: files whose
// fetching was given up. It gives their number.
func (c *Client) Sweep(before time.Time) (int, error) {
	entries, err := os.ReadDir(c.cfg.Dir)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range entries {
		info, err := e.Info()
		algo, sum, _ := strings.Cut(e.Name(), "-")
		_, herr := NewHash(algo)
		ours := algo == "unnamed" || herr == nil
		if err != nil || !ours || algo == "" || sum == "" || !info.Mode().IsRegular() || !info.ModTime().Before(before) {
			continue // gone meanwhile, not ours, or young
		}
		p := &part{path: filepath.Join(c.cfg.Dir, e.Name())}
		mine, err := p.tryOpen()
		if err == nil && mine {
			n++
			err = p.remove()
		} else {
			err = errors.Join(err, p.close())
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
