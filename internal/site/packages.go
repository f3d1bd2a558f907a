package site

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"drover/internal/blob"
	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/fetch"
	"drover/internal/repo/wire"
)

// kept is a package that is here.
type kept struct {
	size int64
	used time.Time
}

// flight is a package on its way from the centre. Whoever asks for it meanwhile reads along.
type flight struct {
	item
	file *os.File // what came; it has no name
	uses int      // who reads or writes file; guarded by the site's mu

	mu    sync.Mutex // guards what follows
	n     int64      // bytes that came
	ended bool
	err   error
	wake  chan struct{} // closed and made anew when n or ended changes
}

// hold is how many bytes at the end of a package go out only after all of it was checked: a
// client whose package is wrong has a connection that broke, and never a whole file.
const hold = 64 << 10

// came tells how far the flight is, and what to wait for when that is not enough.
func (f *flight) came() (n int64, ended bool, wake <-chan struct{}, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n, f.ended, f.wake, f.err
}

func (f *flight) tell(n int64, ended bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n += n
	f.ended, f.err = ended, err
	close(f.wake)
	f.wake = make(chan struct{})
}

// landed is what the flight came to.
func (f *flight) landed(ctx context.Context) error {
	for {
		_, ended, wake, err := f.came()
		if ended {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		}
	}
}

// fly begins to fetch a package, or joins in. path is where the centre has it. The caller calls
// leave when it does not read any more.
func (s *Site) fly(it item, path string) (*flight, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[it.hex()]; f != nil {
		f.uses++
		return f, nil
	}
	file, err := os.CreateTemp(s.path("partial"), "flight-")
	if err == nil {
		err = os.Remove(file.Name()) // a kill leaves nothing
	}
	if err != nil {
		return nil, durable.Full(s.Dir, err)
	}
	f := &flight{item: it, file: file, uses: 2, wake: make(chan struct{})}
	s.flights[it.hex()] = f
	s.work.Go(func() {
		defer s.leave(f)
		var err error
		select {
		case s.slots <- struct{}{}:
			err = s.bring(s.life, f, path)
			<-s.slots
		case <-s.life.Done():
			err = s.life.Err()
		}
		s.mu.Lock()
		delete(s.flights, it.hex())
		s.mu.Unlock()
		f.tell(0, true, err)
		if err != nil && s.life.Err() == nil {
			s.Log.Error("a package did not come", "path", path, "err", err)
		}
	})
	return f, nil
}

// leave lets go of a flight.
func (s *Site) leave(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.uses--; f.uses == 0 {
		_ = f.file.Close() // it has no name: nothing of it is left
	}
}

// downloads is how many packages are fetched on demand at once; others wait.
const downloads = 32

// attempts of one package, each from where the one before ended.
const attempts = 3

// bring fetches a package, checks it, and keeps it.
func (s *Site) bring(ctx context.Context, f *flight, path string) (err error) {
	h := sha256.New()
	for n := range attempts {
		if n > 0 && !nap(ctx, firstRetry) {
			return ctx.Err()
		}
		if err = s.part(ctx, f, path, h); err == nil || fault.As(err).Kind != fault.KindUnavailable || fault.Code(err) == "disk_full" {
			break
		}
	}
	if err != nil {
		return err
	}
	if hex.EncodeToString(h.Sum(nil)) != f.hex() {
		s.numbers.wrong.Add(1)
		return wrong(path)
	}
	if _, err := f.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if s.Max > 0 && f.size > s.Max {
		return nil // whoever waits reads it from the file
	}
	s.room(f.size)
	_, _, err = s.blobs.Put(ctx, f.file, blob.PutOptions{Expect: blob.Digest(f.hex()), Max: f.size})
	if fault.Code(err) == "disk_full" {
		s.crowded(err)
		return nil // as above
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.packages[f.hex()] = &kept{f.size, time.Now()}
	s.mu.Unlock()
	return nil
}

func wrong(path string) error {
	return fault.Unavailable("site_package_wrong", "%s came from the centre with bytes that the metadata does not name", path).
		Fix("run `drover blob scrub` at the centre; if it is clean, somebody changes what comes from there")
}

// crowded says once in a while that packages are not kept, and lets room be made.
func (s *Site) crowded(err error) {
	select {
	case s.full <- struct{}{}:
		s.Log.Error("packages are passed on and not kept", "err", err)
	default:
	}
}

// from opens a package at the centre from a byte on.
func (s *Site) from(ctx context.Context, path string, it item, off int64) (io.ReadCloser, error) {
	h := http.Header{}
	if off > 0 {
		h.Set("Range", fmt.Sprintf("bytes=%d-", off))
		h.Set("If-Range", strconv.Quote(it.hex()))
	}
	resp, err := s.Centre.Do(ctx, http.MethodGet, path, h, nil)
	if err != nil {
		return nil, err
	}
	if off > 0 && resp.StatusCode != http.StatusPartialContent || off == 0 && resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, fault.Invalid("site_answer", "the centre answers %s for %s", resp.Status, path).Fix("check --centre: it must be a drover server of this version, or a site")
	}
	return resp.Body, nil
}

// part goes on with a package where it stands.
func (s *Site) part(ctx context.Context, f *flight, path string, h hash.Hash) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stall := time.AfterFunc(patience, cancel)
	defer stall.Stop()
	off, _, _, _ := f.came() //nolint:errcheck // it is under way
	body, err := s.from(ctx, path, f.item, off)
	if err != nil {
		return err
	}
	defer body.Close()
	buf := make([]byte, 128<<10)
	for off < f.size {
		n, err := body.Read(buf[:min(int64(len(buf)), f.size-off)])
		stall.Reset(patience)
		if n > 0 {
			h.Write(buf[:n])
			s.numbers.fetched.Add(int64(n))
			if _, err := f.file.WriteAt(buf[:n], off); err != nil {
				err = durable.Full(s.Dir, err)
				s.crowded(err)
				return err
			}
			off += int64(n)
			f.tell(int64(n), false, nil)
		}
		if err != nil && off < f.size {
			return fault.Unavailable("site_cut", "%s did not come whole", path).Wrap(err).Fix("it is tried again with the next request")
		}
	}
	return nil
}

// patience is how long a package may stand still.
const patience = 30 * time.Second

// pass sends a package to a client while it comes: from the flight, or past the disk when that
// is full. It returns an error only while nothing was sent.
func (s *Site) pass(w http.ResponseWriter, r *http.Request, f *flight, path string) error {
	sent, err := int64(0), error(nil)
	send := func(src io.Reader, n int64) error {
		if sent == 0 {
			w.Header().Set("Content-Length", strconv.FormatInt(f.size, 10))
		}
		m, err := io.CopyN(w, src, n)
		sent += m
		s.numbers.served.Add(m)
		return err
	}
	rc := http.NewResponseController(w)
	for {
		n, ended, wake, ferr := f.came()
		ready := n
		if !ended || ferr != nil {
			ready = min(n, f.size-hold)
		}
		if ferr != nil {
			err = ferr
			break
		}
		if ready > sent {
			if err = send(io.NewSectionReader(f.file, sent, ready-sent), ready-sent); err != nil {
				break
			}
			continue
		}
		if ended {
			return nil
		}
		if sent > 0 {
			_ = rc.Flush()
		}
		select {
		case <-r.Context().Done():
			err = r.Context().Err()
		case <-wake:
		}
		if err != nil {
			break
		}
	}
	if fault.Code(err) == "disk_full" {
		err = s.past(r.Context(), f, path, &sent, send)
	}
	if err != nil && sent > 0 {
		panic(http.ErrAbortHandler) // half a package must not look like a whole one
	}
	return err
}

// past sends the rest of a package that cannot be kept: its last bytes after all were checked.
func (s *Site) past(ctx context.Context, f *flight, path string, sent *int64, send func(io.Reader, int64) error) error {
	h := sha256.New()
	if *sent > 0 {
		if _, err := io.Copy(h, io.NewSectionReader(f.file, 0, *sent)); err != nil {
			return err
		}
	}
	body, err := s.from(ctx, path, f.item, *sent)
	if err != nil {
		return err
	}
	defer body.Close()
	if n := f.size - hold - *sent; n > 0 {
		if err := send(io.TeeReader(body, h), n); err != nil {
			return err
		}
		s.numbers.fetched.Add(n)
	}
	last := make([]byte, f.size-*sent)
	if _, err := io.ReadFull(body, last); err != nil {
		return fault.Unavailable("site_cut", "%s did not come whole", path).Wrap(err).Fix("ask again")
	}
	s.numbers.fetched.Add(int64(len(last)))
	h.Write(last)
	if hex.EncodeToString(h.Sum(nil)) != f.hex() {
		s.numbers.wrong.Add(1)
		return wrong(path)
	}
	return send(bytes.NewReader(last), int64(len(last)))
}

// touch notes that a package was used.
func (s *Site) touch(sum string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.packages[sum]; k != nil {
		k.used = time.Now()
	}
}

// named is every package that the present state of a channel and the one before name.
func (s *Site) named() (map[string]bool, error) {
	out := map[string]bool{}
	for _, c := range s.all() {
		for i := range c.States[:min(len(c.States), keepLeast)] {
			for _, t := range c.States[i].Trees {
				x, err := s.index(t.Primary)
				if err != nil {
					return nil, err
				}
				for _, it := range x.items {
					out[it.hex()] = true
				}
			}
		}
	}
	return out, nil
}

// all gives the channels by name.
func (s *Site) all() []*channel {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*channel
	for _, n := range slices.Sorted(maps.Keys(s.channels)) {
		out = append(out, s.channels[n])
	}
	return out
}

// stored is how many packages are kept and how many bytes they have.
func (s *Site) stored() (n int, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.packages {
		size += k.size
	}
	return len(s.packages), size
}

// room makes room for so many more bytes of packages: those that no channel names go first, of
// them and then of the others those that were not used for the longest time. What nobody names
// and nobody used for a week goes in any case.
func (s *Site) room(more int64) {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	_, size := s.stored()
	over := int64(0)
	if s.Max > 0 {
		over = size + more - s.Max
	}
	if over <= 0 && more > 0 {
		return
	}
	named, err := s.named()
	if err != nil {
		s.Log.Error("packages to remove", "err", err)
		return
	}
	type old struct {
		sum   string
		named bool
		kept
	}
	var olds []old
	s.mu.Lock()
	for sum, k := range s.packages {
		olds = append(olds, old{sum, named[sum], *k})
	}
	s.mu.Unlock()
	slices.SortFunc(olds, func(a, b old) int {
		if a.named != b.named {
			if b.named {
				return -1
			}
			return 1
		}
		return a.used.Compare(b.used)
	})
	for _, o := range olds {
		if over <= 0 && (o.named || time.Since(o.used) < keepFor) {
			continue
		}
		s.mu.Lock()
		if s.packages[o.sum] != nil { // else a sync counts on it by now
			delete(s.packages, o.sum)
			err = s.blobs.Delete(blob.Digest(o.sum))
		}
		s.mu.Unlock()
		if err != nil {
			s.Log.Error("a package to remove", "err", err)
			return
		}
		s.numbers.evicted.Add(1)
		over -= o.size
	}
}

// tidy removes old packages now and then, and lets it be said again that the disk is full.
func (s *Site) tidy(ctx context.Context) {
	for {
		s.room(0)
		if _, err := s.fetch.Sweep(time.Now().Add(-keepFor)); err != nil {
			s.Log.Error("downloads that nobody goes on with", "err", err)
		}
		for range 60 {
			if !nap(ctx, time.Minute) {
				return
			}
			select {
			case <-s.full:
			default:
			}
		}
	}
}

// aheadOf tells whether a tree's packages are fetched ahead: those that hosts have enabled.
func aheadOf(t tree) bool {
	name := t.Name
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		name = name[i+1:]
	}
	return name != "source" && !strings.HasSuffix(name, "-debug")
}

// fill fetches the packages of the present states before anybody asks, until ctx ends.
func (s *Site) fill(ctx context.Context) {
	for ctx.Err() == nil {
		s.mu.Lock()
		moved := s.moved
		s.mu.Unlock()
		wait := time.Hour
		if err := s.fillOnce(ctx, moved); err != nil && ctx.Err() == nil {
			s.Log.Error("packages ahead of time", "err", err)
			wait = 30 * time.Second
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-moved:
		case <-t.C:
		}
		t.Stop()
	}
}

// fillOnce fetches what is missing now; a channel that moves ends it, to begin again with what is
// named then.
func (s *Site) fillOnce(ctx context.Context, moved <-chan struct{}) error {
	var wants []fetch.Want
	seen := map[string]bool{}
	_, size := s.stored()
	for _, c := range s.all() {
		if len(c.States) == 0 {
			continue
		}
		sn := &c.States[0]
		for _, t := range sn.Trees {
			if !aheadOf(t) {
				continue
			}
			x, err := s.index(t.Primary)
			if err != nil {
				return err
			}
			for _, href := range slices.Sorted(maps.Keys(x.items)) {
				it := x.items[href]
				here, err := s.blobs.Has(blob.Digest(it.hex()))
				if err != nil {
					return err
				}
				if here || seen[it.hex()] || s.Max > 0 && size+it.size > s.Max {
					continue
				}
				seen[it.hex()] = true
				size += it.size
				wants = append(wants, fetch.Want{Href: strings.TrimPrefix(wire.Pinned("", c.Name, sn.Snapshot, t.Name), "/") + href, Algo: "sha256", Sum: it.hex(), Size: it.size})
			}
		}
	}
	if len(wants) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer func() { cancel(nil); <-stop }()
	go func() {
		defer close(stop)
		select {
		case <-moved:
			cancel(errMoved)
		case <-ctx.Done():
		}
	}()
	last := int64(0)
	err := s.ahead.All(ctx, s.origins, fetch.Job{Wants: wants, Blobs: s.blobs,
		Take: func(ctx context.Context, i int, f *os.File, b *blob.Batch) error {
			_, _, err := b.Put(ctx, f, blob.PutOptions{Expect: blob.Digest(wants[i].Sum), Max: wants[i].Size})
			return err
		},
		Kept: func(_ context.Context, done []int) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, i := range done {
				s.packages[wants[i].Sum] = &kept{wants[i].Size, time.Now()}
			}
			return nil
		},
		Say: func(p fetch.Progress) {
			s.numbers.fetched.Add(p.Bytes - last)
			last = p.Bytes
		}})
	if errors.Is(context.Cause(ctx), errMoved) {
		return nil
	}
	return err
}

// errMoved ends what is about an old state.
var errMoved = errors.New("the channel moved")
