package fetch

import (
	"context"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"drover/internal/fault"
)

// Origin is a place that holds the content: the directory that hrefs are relative to.
type Origin struct {
	URL string // http, https or file
	// Prefer orders origins: a lower one is asked only while all higher ones rest or don't have
	// the file; equal ones share the load.
	Prefer         int
	User, Password string // for basic authentication with this host; "" for none
	PasswordFile   string // holds the password, instead of Password
}

// Origins are places of the same content, with what is known of their health. All methods may be
// called at the same time.
type Origins struct {
	mu   sync.Mutex
	all  []*origin     // highest preference first, else as given
	wake chan struct{} // closed and made anew when a slot may have become free
}

// origin is guarded by the mu of its Origins, but for what is set once.
type origin struct {
	Origin
	name string // URL without anything secret
	base *url.URL
	dir  string // of a file origin, else ""
	only bool   // base is the address of the one file

	busy     int
	window   float64   // requests at once that it bears, as far as known
	rest     time.Time // not to be asked before
	troubled time.Time // when it last failed
	failures int       // in a row
	demerits int       // wrong bytes, and files that it lacks and others have
	said     string    // why it rests

	// One epoch is some files at one window: its rate is compared with the last one's.
	epoch      time.Time
	epochBytes int64
	epochFiles int
	full       bool // all slots were in use
	steep      bool // until the first trouble the window grows fast
	rate       float64

	stats OriginStats
}

// OriginStats counts what an origin did.
type OriginStats struct {
	URL      string    `json:"url"`
	Bytes    int64     `json:"bytes"`
	Requests int64     `json:"requests"`
	Errors   int64     `json:"errors"`
	Retries  int64     `json:"retries"` // requests for a file that had failed somewhere before
	Window   int       `json:"window"`  // requests at once, at present
	Rest     time.Time `json:"rest,omitzero"`
}

// firstWindow is the number of requests at once that every server bears.
const firstWindow = 4

// maxOrigins bounds a mirror list.
const maxOrigins = 200

// NewOrigins checks the addresses. Two that are the same count once.
func NewOrigins(origins ...Origin) (*Origins, error) {
	o := &Origins{wake: make(chan struct{})}
	if len(origins) > maxOrigins {
		origins = origins[:maxOrigins]
	}
	seen := map[string]bool{}
	for _, from := range origins {
		x, err := newOrigin(from)
		if err != nil {
			return nil, err
		}
		if x.base.RawQuery != "" {
			return nil, fault.Invalid("fetch_origin", "%s has a query: it is no directory", x.name).Fix("give the directory that holds the files")
		}
		if !strings.HasSuffix(x.base.Path, "/") {
			x.base.Path += "/"
			x.base.RawPath = ""
			x.name += "/"
		}
		if !seen[x.name] {
			seen[x.name] = true
			o.all = append(o.all, x)
		}
	}
	if len(o.all) == 0 {
		return nil, fault.Invalid("fetch_origin", "there is no address to fetch from").Fix("give at least one by http, https or file")
	}
	slices.SortStableFunc(o.all, func(a, b *origin) int { return b.Prefer - a.Prefer })
	return o, nil
}

// Exactly is the origin of one file, such as a mirror list: the address may have a query, and
// the href asked for is "".
func Exactly(from Origin) (*Origins, error) {
	x, err := newOrigin(from)
	if err != nil {
		return nil, err
	}
	if x.dir != "" {
		return nil, fault.Invalid("fetch_origin", "%s is no address by http or https", x.name)
	}
	x.only = true
	return &Origins{all: []*origin{x}, wake: make(chan struct{})}, nil
}

func newOrigin(from Origin) (*origin, error) {
	u, err := url.Parse(from.URL)
	if err != nil || len(from.URL) > 2000 {
		return nil, fault.Invalid("fetch_origin", "an address of %d bytes is none", len(from.URL)) // it may hold a password
	}
	if u.User != nil {
		return nil, fault.Invalid("fetch_origin", "the address of %s holds a password, and addresses are shown", u.Host).Fix("give user and password apart from the address")
	}
	if from.PasswordFile != "" {
		raw, err := os.ReadFile(from.PasswordFile)
		if err != nil {
			return nil, fault.Invalid("fetch_password", "the password for %s can't be read", u.Host).Wrap(err).Fix("give the path of a file that the server may read")
		}
		from.Password = strings.TrimRight(string(raw), "\r\n")
	}
	name := *u
	name.RawQuery, name.Fragment = "", ""
	x := &origin{Origin: from, base: u, name: name.String(), window: firstWindow, steep: true}
	switch {
	case u.Fragment != "":
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		return x, nil
	case u.Scheme == "file" && (u.Host == "" || u.Host == "localhost") && filepath.IsAbs(u.Path):
		x.dir = filepath.Clean(u.Path)
		return x, nil
	}
	return nil, fault.Invalid("fetch_origin", "%.200q is no address to fetch from", x.name).Fix("give a directory by http, https or file:///")
}

// address is where x has href.
func (x *origin) address(href string) (*url.URL, error) {
	if x.only {
		return x.base, nil
	}
	return join(x.base, href)
}

// remote says whether any origin is asked by HTTP.
func (o *Origins) remote() bool {
	return slices.ContainsFunc(o.all, func(x *origin) bool { return x.dir == "" })
}

// Stats is what each origin did so far.
func (o *Origins) Stats() []OriginStats {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make([]OriginStats, len(o.all))
	for i, x := range o.all {
		out[i] = x.stats
		out[i].URL, out[i].Window, out[i].Rest = x.name, int(x.window), x.rest
	}
	return out
}

// acquire waits for an origin that may be asked now and takes one of its slots. It gives nil
// when none is left that is not barred and comes back within the given patience.
func (o *Origins) acquire(ctx context.Context, patience time.Duration, barred func(*origin) bool) (*origin, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		o.mu.Lock()
		x, wait := o.pick(time.Now(), patience, barred)
		if x != nil {
			x.busy++
			x.full = x.full || x.busy >= int(x.window)
			x.stats.Requests++
		}
		wake := o.wake
		o.mu.Unlock()
		if x != nil || wait == 0 {
			return x, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// pick chooses an origin, or says how long to wait; 0 for in vain. Callers hold mu.
func (o *Origins) pick(now time.Time, patience time.Duration, barred func(*origin) bool) (*origin, time.Duration) {
	var best *origin
	awake, level := false, 0
	wait := time.Duration(0)
	for _, x := range o.all {
		rest := x.rest.Sub(now)
		if barred(x) || rest > patience {
			continue
		}
		if rest > 0 {
			if wait == 0 || rest < wait {
				wait = rest
			}
			continue
		}
		if awake && x.Prefer < level {
			break
		}
		awake, level = true, x.Prefer
		if x.busy < max(1, int(x.window)) && (best == nil || x.demerits < best.demerits || x.demerits == best.demerits && x.busy < best.busy) {
			best = x
		}
	}
	if best == nil && awake {
		wait = time.Hour // a slot of an origin that is awake becomes free
	}
	return best, wait
}

// release gives the slot back with what came of it.
func (o *Origins) release(x *origin, c *Client, began time.Time, n int64, t *trouble) {
	o.mu.Lock()
	defer o.mu.Unlock()
	x.busy--
	x.stats.Bytes += n
	now := time.Now()
	x.epochBytes += n
	switch {
	case t == nil:
		x.failures = 0
		x.epochFiles++
		x.adapt(now, c.cfg.PerOrigin)
	case t.kind == aborted:
	default:
		x.stats.Errors++
		x.said = t.what
		if t.kind == wrong {
			x.demerits++
		}
		if t.kind == away || t.kind == busy || t.kind == wrong {
			x.trouble(now, began, c.cfg.Pause, t)
		}
	}
	close(o.wake)
	o.wake = make(chan struct{})
}

// trouble lets x rest, longer each time, and asks less of it. Requests that were under way when
// it last failed tell nothing new.
func (x *origin) trouble(now, began time.Time, pause time.Duration, t *trouble) {
	if began.Before(x.troubled) && t.after == 0 {
		return
	}
	if !began.Before(x.troubled) {
		x.failures++
		x.window = max(1, x.window/2)
	}
	x.troubled = now
	x.steep, x.rate, x.epoch = false, 0, time.Time{}
	rest := min(pause<<min(max(x.failures-1, 0), 10), time.Minute)
	rest = rest/2 + rand.N(rest/2+1) //nolint:gosec // so that many clients don't come back as one
	if until := now.Add(max(rest, t.after)); until.After(x.rest) {
		x.rest = until
	}
}

// adapt moves the window after a file has come: up while more requests bring more bytes, down
// when they bring clearly less.
func (x *origin) adapt(now time.Time, most int) {
	if x.epoch.IsZero() {
		x.epoch, x.epochBytes, x.epochFiles, x.full = now, 0, 0, false
		return
	}
	took := now.Sub(x.epoch)
	if x.epochFiles < 2*int(x.window) || took < 50*time.Millisecond {
		return
	}
	rate := float64(x.epochBytes) / took.Seconds()
	switch {
	case !x.full: // nobody asked for more
	case rate > 1.05*x.rate:
		x.rate = rate
		if x.steep {
			x.window *= 1.5
		} else {
			x.window++
		}
	case rate < 0.7*x.rate:
		x.rate = rate
		x.window *= 0.75
	default:
		x.rate *= 0.98 // so that after a while it is tried again
	}
	x.window = min(max(x.window, 1), float64(most))
	x.epoch, x.epochBytes, x.epochFiles, x.full = now, 0, 0, false
}

// found counts a file that a directory had.
func (o *Origins) found(x *origin, n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	x.stats.Requests++
	x.stats.Bytes += n
}

// lacks is told when a file that x had not was found elsewhere.
func (o *Origins) lacks(x *origin) {
	o.mu.Lock()
	defer o.mu.Unlock()
	x.demerits++
}

// retried counts a request that repeats another.
func (o *Origins) retried(x *origin) {
	o.mu.Lock()
	defer o.mu.Unlock()
	x.stats.Retries++
}
