package fetch

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/fault"
)

// Want is a file to fetch.
type Want struct {
	Href string // relative to each origin
	Algo string // sha256, sha512, sha384, sha224, sha1 (or sha)
	Sum  string // in hex; "" for unknown
	Size int64  // in bytes; 0 for unknown, then
	Max  int64  // is the most that is taken
}

// bound is the most bytes that may come.
func (w *Want) bound() int64 {
	if w.Size > 0 {
		return w.Size
	}
	return w.Max
}

// excess is the trouble of more bytes than bound.
func (w *Want) excess() *trouble {
	t := &trouble{kind: wrong, what: fmt.Sprintf("has it with more than %d bytes", w.bound())}
	if w.Size == 0 {
		t.kind = large
	}
	return t
}

// check refuses what can't be wanted, and brings the checksum into one form.
func (w *Want) check() error {
	if w.Href != "" { // of Exactly
		if _, err := checkHref(w.Href); err != nil {
			return err
		}
	}
	if w.Algo == "sha" {
		w.Algo = "sha1"
	}
	h, err := NewHash(w.Algo)
	if err != nil {
		return err
	}
	if w.Sum != "" {
		raw, err := hex.DecodeString(w.Sum)
		if err != nil || len(raw) != h.Size() || w.Algo == "" {
			return fault.Invalid("fetch_algo", "%.200q has a checksum that is none of %.20q", w.Href, w.Algo)
		}
		w.Sum = hex.EncodeToString(raw)
	}
	switch {
	case w.Size < 0 || w.bound() <= 0:
		return fault.Invalid("fetch_size", "%.200q has no bound for its size", w.Href)
	case w.Max > 0 && w.Size > w.Max:
		return fault.TooLarge("fetch_size", "%.200q is said to have %d bytes, over %d", w.Href, w.Size, w.Max)
	}
	return nil
}

// kind is what an attempt came to; it decides what follows for the file and for the origin.
type kind int

const (
	away    kind = iota // no answer, a cut, a stall, 5xx: the origin rests, the file is tried again
	busy                // 429, 503: the same, for as long as it says
	wrong               // other bytes: the origin rests; asked past caches once more, then not for this file
	large               // more than Want.Max: not for this file
	missing             // 404, 410: not for this file
	denied              // 401, 403: not for this file
	refused             // an answer that is not taken, or a 4xx: not for this file
	aborted             // our side: the disk, the context
)

// trouble is a failed attempt. Its text names no address: see failed.
type trouble struct {
	kind  kind
	what  string
	after time.Duration // how long the origin wants to be left alone
	err   error         // of aborted
}

// cut is the trouble of a request that ended in err.
func cut(ctx context.Context, err error) *trouble {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errHeader) && !errors.Is(cause, errStall) {
		return &trouble{kind: aborted, err: cause}
	}
	return &trouble{kind: away, what: err.Error()}
}

// state is what an origin did for one file.
type state struct {
	tries, busy, wrong int
	out                bool
	whole              bool // ranges are of no use with it
	last               *trouble
}

// task is the fetching of one file.
type task struct {
	w    *Want
	by   map[*origin]*state
	part *part // nil for a small file, and when all origins are directories
	// tally gets each byte as it comes; nil for none.
	tally, retries *atomic.Int64
	// Without a checksum the file goes on only where it began, and while this says so.
	from *origin
	mark string
}

func (t *task) at(x *origin) *state {
	if t.by[x] == nil {
		t.by[x] = &state{}
	}
	return t.by[x]
}

// progress is how much an attempt must bring to count as one that got on.
const progress = 1 << 20

// run tries origins until one gives the file. The error names what each did.
func (c *Client) run(ctx context.Context, o *Origins, t *task, try func(context.Context, *origin) (int64, *trouble)) error {
	barred := func(x *origin) bool {
		s := t.by[x]
		return s != nil && (s.out || s.tries >= c.cfg.Tries || s.busy >= 3*c.cfg.Tries)
	}
	for n := 0; ; n++ {
		x, err := o.acquire(ctx, c.cfg.Patience, barred)
		if err != nil {
			return err
		}
		if x == nil {
			return o.failed(t)
		}
		if n > 0 {
			o.retried(x)
			if t.retries != nil {
				t.retries.Add(1)
			}
		}
		began := time.Now()
		got, bad := try(ctx, x)
		o.release(x, c, began, got, bad)
		if bad == nil {
			for y, s := range t.by {
				if s.last != nil && s.last.kind == missing {
					o.lacks(y)
				}
			}
			return nil
		}
		if bad.kind == aborted {
			return bad.err
		}
		s := t.at(x)
		s.last = bad
		switch bad.kind {
		case away:
			if s.tries++; got >= progress {
				s.tries = 0
			}
		case busy:
			s.busy++
		case wrong:
			s.wrong++
			s.out = s.wrong > 1
		default:
			s.out = true
		}
	}
}

// failed tells what each origin did.
func (o *Origins) failed(t *task) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var did []string
	seen := map[kind]int{}
	for _, x := range o.all {
		s := t.by[x]
		switch {
		case s != nil && s.last != nil:
			seen[s.last.kind]++
			did = append(did, x.name+" "+s.last.what)
		case x.rest.After(time.Now()):
			seen[away]++
			did = append(did, fmt.Sprintf("%s is left alone until %s: it %s", x.name, x.rest.UTC().Format(time.RFC3339), x.said))
		}
	}
	name := t.w.Href
	if name == "" {
		name = "the file"
	}
	all := errors.New(strings.Join(did, "; "))
	switch {
	case seen[away]+seen[busy] > 0:
		return fault.Unavailable("fetch_away", "%.200q can't be fetched now", name).Wrap(all).Fix("check addresses and network, then try again: what has come is kept")
	case seen[wrong] > 0:
		return fault.Invalid("fetch_sum", "%.200q is nowhere as it is told to be", name).Wrap(all).Fix("upstream may be in the middle of an update: try again later; else take another")
	case seen[large] > 0:
		return fault.TooLarge("fetch_size", "%.200q has more than the %d bytes that are taken", name, t.w.Max).Wrap(all)
	case seen[refused] > 0:
		return fault.Invalid("fetch_refused", "%.200q is answered in a way that is not taken", name).Wrap(all).Fix("check the address")
	case seen[denied] > 0:
		return fault.Denied("fetch_denied", "%.200q is not given to us", name).Wrap(all).Fix("check user, password and client certificate")
	}
	return fault.NotFound("fetch_missing", "%.200q is not there", name).Wrap(all)
}

// got is a file that is whole and checked.
type got struct {
	f      *os.File
	part   *part       // of a file that came by HTTP
	before fs.FileInfo // of a file that lies in a directory
}

// unchanged says whether a file that lies in a directory is still the one that was checked.
func (g *got) unchanged() error {
	if g.before == nil {
		return nil
	}
	now, err := g.f.Stat()
	if err != nil {
		return err
	}
	a, b := g.before.Sys().(*syscall.Stat_t), now.Sys().(*syscall.Stat_t)
	if a.Size != b.Size || a.Mtim != b.Mtim || a.Ctim != b.Ctim {
		return fault.Unavailable("fetch_changed", "%s changed while it was read", g.f.Name()).Fix("try again when nobody writes there")
	}
	return nil
}

// done lets go of the file; when it has been taken, what was kept for a resumption goes.
func (g *got) done(taken bool) error {
	switch {
	case g.part == nil:
		return g.f.Close()
	case taken:
		return g.part.remove()
	}
	return g.part.close()
}

// File fetches one file and lends it to take, whole, checked, and at its beginning. It may be
// the original in a directory: take must not write to it.
func (c *Client) File(ctx context.Context, o *Origins, w Want, take func(*os.File) error) error {
	if err := w.check(); err != nil {
		return err
	}
	g, err := c.file(ctx, o, &task{w: &w})
	if err != nil {
		return err
	}
	if err = take(g.f); err == nil {
		err = g.unchanged()
	}
	return errors.Join(err, g.done(err == nil))
}

// file fetches one file, whose Want is checked; the caller calls done.
func (c *Client) file(ctx context.Context, o *Origins, t *task) (*got, error) {
	t.by = map[*origin]*state{}
	if t.w.Sum != "" { // what lies here need not come
		for _, x := range o.all {
			if x.dir == "" {
				continue
			}
			if g, n, bad := c.local(ctx, x, t.w); bad == nil {
				o.found(x, n)
				return g, nil
			}
		}
	}
	if o.remote() {
		var err error
		if t.part, err = c.open(ctx, t.w); err != nil {
			return nil, err
		}
		// It may have come before the process was killed, or for somebody else just now.
		if t.w.Sum != "" && t.part.size > 0 && (t.w.Size == 0 || t.part.size == t.w.Size) {
			if t.part.hex() == t.w.Sum {
				return t.part.got()
			}
			if t.w.Size > 0 {
				if err := t.part.reset(); err != nil {
					return nil, errors.Join(err, t.part.close())
				}
			}
		}
	}
	var g *got
	err := c.run(ctx, o, t, func(ctx context.Context, x *origin) (n int64, bad *trouble) {
		if x.dir != "" {
			g, n, bad = c.local(ctx, x, t.w)
			return n, bad
		}
		return c.attempt(ctx, x, t)
	})
	switch {
	case err != nil && t.part != nil && fault.Code(err) == "disk_full":
		return nil, errors.Join(err, t.part.remove()) // others need the space more
	case err != nil && t.part != nil:
		return nil, errors.Join(err, t.part.close())
	case err != nil:
		return nil, err
	case g == nil:
		return t.part.got()
	case t.part != nil: // a directory had it
		if err := t.part.remove(); err != nil {
			return nil, errors.Join(err, g.done(false))
		}
	}
	return g, nil
}

func (p *part) got() (*got, error) {
	if _, err := p.f.Seek(0, io.SeekStart); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return &got{f: p.f, part: p}, nil
}

// attempt asks one origin for what is missing of the file.
func (c *Client) attempt(ctx context.Context, x *origin, t *task) (n int64, bad *trouble) {
	p, s := t.part, t.at(x)
	abort := func(err error) (int64, *trouble) { return n, &trouble{kind: aborted, err: err} }
	u, err := x.address(t.w.Href)
	if err != nil {
		return abort(err)
	}
	if p.size > 0 && (s.whole || t.w.Sum == "" && (t.from != x || t.mark == "")) {
		if err := p.reset(); err != nil {
			return abort(err)
		}
	}
	h := http.Header{}
	if s.wrong > 0 {
		h.Set("Cache-Control", "no-cache") // a cache on the way may be what is wrong
	}
	resumed := p.size > 0
	if resumed {
		h.Set("Range", fmt.Sprintf("bytes=%d-", p.size))
		if t.w.Sum == "" {
			h.Set("If-Range", t.mark)
		}
	}
	resp, bad := c.get(ctx, x, u, h)
	if bad != nil {
		return 0, bad
	}
	defer func() { _ = resp.Body.Close() }()
	if bad := answer(resp, resumed); bad != nil {
		s.whole = s.whole || resp.StatusCode == http.StatusRequestedRangeNotSatisfiable
		return 0, bad
	}
	if resp.StatusCode == http.StatusPartialContent {
		r, ok := parseContentRange(resp.Header.Get("Content-Range"))
		if !ok || r.first != p.size || r.last >= t.w.bound() || t.w.Size > 0 && r.total >= 0 && r.total != t.w.Size {
			s.whole = true
			return 0, &trouble{kind: away, what: fmt.Sprintf("answers with the range %.100q instead of that from byte %d", resp.Header.Get("Content-Range"), p.size)}
		}
	} else {
		if resumed {
			resumed = false
			if err := p.reset(); err != nil {
				return abort(err)
			}
		}
		if l := resp.ContentLength; l > t.w.bound() {
			return 0, t.w.excess()
		} else if t.w.Size > 0 && l >= 0 && l != t.w.Size {
			return 0, &trouble{kind: wrong, what: fmt.Sprintf("has it with %d bytes, not the %d expected", l, t.w.Size)}
		}
	}
	t.from, t.mark = x, validator(resp.Header)
	n, bad = c.receive(resp.Body.(*body), t)
	if bad != nil && bad.kind != wrong && bad.kind != large {
		return n, bad
	}
	if bad == nil && t.w.Sum != "" && p.hex() != t.w.Sum {
		bad = &trouble{kind: wrong, what: "has other bytes: the checksum is not the one expected"}
		if resumed { // the part that was there before may be another's fault
			bad.kind = away
		}
	}
	if bad != nil {
		if err := p.reset(); err != nil {
			return abort(err)
		}
	}
	return n, bad
}

// receive appends what comes to the part, up to the bound.
func (c *Client) receive(b *body, t *task) (n int64, bad *trouble) {
	p, bound := t.part, t.w.bound()
	lent := c.buffers.Get().(*[]byte)
	defer c.buffers.Put(lent)
	for {
		m, err := b.Read(*lent)
		n += int64(m)
		if t.tally != nil {
			t.tally.Add(int64(m))
		}
		if p.size+int64(m) > bound {
			return n, t.w.excess()
		}
		if m > 0 {
			if _, err := p.Write((*lent)[:m]); err != nil {
				return n, &trouble{kind: aborted, err: err}
			}
		}
		whole := t.w.Size > 0 && p.size == t.w.Size
		switch {
		case err == nil:
		case whole || errors.Is(err, io.EOF) && t.w.Size == 0:
			return n, nil // what a server does after the last byte is its own matter
		case errors.Is(err, io.EOF):
			return n, &trouble{kind: away, what: fmt.Sprintf("ended at byte %d of %d", p.size, t.w.Size)}
		default:
			bad := cut(b.ctx, err)
			if bad.kind == away {
				bad.what = fmt.Sprintf("was cut at byte %d: %s", p.size, bad.what)
			}
			return n, bad
		}
	}
}

// answer says what is wrong with a status, or nil. What comes with a wrong one is read, so that
// the connection can be kept.
func answer(resp *http.Response, ranged bool) *trouble {
	t := &trouble{kind: refused, what: "answers " + resp.Status}
	switch code := resp.StatusCode; {
	case code == http.StatusOK || code == http.StatusPartialContent && ranged:
		return nil
	case code == http.StatusNotFound || code == http.StatusGone:
		t.kind = missing
	case code == http.StatusUnauthorized || code == http.StatusForbidden || code == http.StatusProxyAuthRequired:
		t.kind = denied
	case code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable:
		t.kind, t.after = busy, parseRetryAfter(resp.Header.Get("Retry-After"), time.Now())
	case code >= 500 || code == http.StatusRequestTimeout || code == http.StatusRequestedRangeNotSatisfiable && ranged:
		t.kind = away
	}
	_, _ = io.CopyN(io.Discard, resp.Body, 4096)
	return t
}

// local opens a file of a directory, not following links out of it, and checks it. A directory
// may have it by its checksum too, in the layout of Pulp 3's artifact store (pulpcore,
// get_artifact_path).
func (c *Client) local(ctx context.Context, x *origin, w *Want) (g *got, n int64, bad *trouble) {
	f, err := x.open(w.Href)
	if errors.Is(err, fs.ErrNotExist) && w.Algo == "sha256" && w.Sum != "" {
		f, err = x.open(w.Sum[:2] + "/" + w.Sum[2:])
	}
	if err != nil {
		return nil, 0, fileTrouble(err)
	}
	g = &got{f: f}
	g.before, err = f.Stat()
	switch {
	case err != nil:
	case g.before.Size() > w.bound():
		bad = w.excess()
	case w.Size > 0 && g.before.Size() != w.Size:
		bad = &trouble{kind: wrong, what: fmt.Sprintf("has it with %d bytes, not the %d expected", g.before.Size(), w.Size)}
	default:
		h, _ := NewHash(w.Algo) // Want.check knows it
		n, err = io.Copy(h, contextReader{ctx, io.LimitReader(f, w.bound()+1)})
		if err == nil && (w.Sum != "" && hex.EncodeToString(h.Sum(nil)) != w.Sum || n != g.before.Size()) {
			bad = &trouble{kind: wrong, what: "has other bytes: the checksum is not the one expected"}
		}
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil && bad == nil {
		bad = cut(ctx, err)
	}
	if bad != nil {
		_ = f.Close() // it was read only
		return nil, n, bad
	}
	return g, n, nil
}

func (x *origin) open(href string) (*os.File, error) {
	path, err := checkHref(href)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(x.dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	// A pipe would wait for a writer.
	f, err := root.OpenFile(href, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) && path != href {
		f, err = root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, fault.Invalid("fetch_href", "%.200q is no file", href), f.Close())
	}
	return f, nil
}

func fileTrouble(err error) *trouble {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &trouble{kind: missing, what: "has it not"}
	case errors.Is(err, fs.ErrPermission):
		return &trouble{kind: denied, what: "does not let us read it"}
	case fault.Code(err) == "fetch_href":
		return &trouble{kind: refused, what: "has it not as a file"}
	}
	return &trouble{kind: refused, what: "does not give it: " + err.Error()}
}

// Mark is what to show the next time, to hear that nothing changed.
type Mark struct {
	Origin   string `json:"origin,omitempty"` // which said it: two don't share ETags
	ETag     string `json:"etag,omitempty"`
	Modified string `json:"modified,omitempty"`
}

// Answer is a small file.
type Answer struct {
	Data      []byte // nil when Unchanged
	Mark      Mark
	Unchanged bool
}

// Small fetches a file of at most most bytes into memory. With the Mark of an earlier Answer it
// may come back as Unchanged after one request without a body; a directory's file never does.
// check, if not nil, says whether
// an origin's bytes are what is wanted, as by a checksum from elsewhere: an error blames the
// origin, and the next one is asked.
func (c *Client) Small(ctx context.Context, o *Origins, href string, most int64, had Mark, check func([]byte) error) (Answer, error) {
	var a Answer
	t := &task{w: &Want{Href: href, Max: most}, by: map[*origin]*state{}}
	if err := t.w.check(); err != nil {
		return a, err
	}
	err := c.run(ctx, o, t, func(ctx context.Context, x *origin) (int64, *trouble) {
		a = Answer{Mark: Mark{Origin: x.name}}
		bad := c.small(ctx, x, t, had, &a)
		if bad == nil && check != nil && !a.Unchanged {
			if err := check(a.Data); err != nil {
				bad = &trouble{kind: wrong, what: "has other bytes: " + err.Error()}
			}
		}
		return int64(len(a.Data)), bad
	})
	if err != nil {
		return Answer{}, err
	}
	return a, nil
}

func (c *Client) small(ctx context.Context, x *origin, t *task, had Mark, a *Answer) *trouble {
	r, bad := c.openSmall(ctx, x, t, had, a)
	if bad != nil || a.Unchanged {
		return bad
	}
	defer func() { _ = r.Close() }() // what was read is there
	var b bytes.Buffer
	if _, err := b.ReadFrom(io.LimitReader(r, t.w.Max+1)); err != nil {
		return cut(ctx, err)
	}
	if int64(b.Len()) > t.w.Max {
		return t.w.excess()
	}
	a.Data = b.Bytes()
	return nil
}

// openSmall gives the bytes, unless nothing changed.
func (c *Client) openSmall(ctx context.Context, x *origin, t *task, had Mark, a *Answer) (io.ReadCloser, *trouble) {
	if x.dir != "" {
		f, err := x.open(t.w.Href)
		if err != nil {
			return nil, fileTrouble(err)
		}
		return f, nil
	}
	u, err := x.address(t.w.Href)
	if err != nil {
		return nil, &trouble{kind: aborted, err: err}
	}
	h := http.Header{}
	if had.Origin == x.name && had.ETag != "" {
		h.Set("If-None-Match", had.ETag)
	} else if had.Origin == x.name && had.Modified != "" {
		h.Set("If-Modified-Since", had.Modified)
	}
	if t.at(x).wrong > 0 {
		h.Set("Cache-Control", "no-cache")
	}
	resp, bad := c.get(ctx, x, u, h)
	if bad != nil {
		return nil, bad
	}
	a.Mark.ETag, a.Mark.Modified = resp.Header.Get("ETag"), resp.Header.Get("Last-Modified")
	if resp.StatusCode == http.StatusNotModified && (h.Get("If-None-Match") != "" || h.Get("If-Modified-Since") != "") {
		a.Mark, a.Unchanged = had, true
	} else {
		bad = answer(resp, false)
	}
	if bad != nil || a.Unchanged {
		_ = resp.Body.Close() // it has nothing for us
		return nil, bad
	}
	return resp.Body, nil
}
