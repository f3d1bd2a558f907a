package site

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"drover/internal/fault"
	"drover/internal/repo/wire"
)

// numbers count since the start.
type numbers struct {
	hits, misses    atomic.Int64 // requests for packages
	served, fetched atomic.Int64 // bytes to hosts, bytes from the centre
	wrong, evicted  atomic.Int64
}

// sends counts what goes to a host.
func (n *numbers) sends(w http.ResponseWriter, send func(http.ResponseWriter)) {
	c := &counted{ResponseWriter: w, n: &n.served}
	send(c)
}

// counted counts bytes and leaves files to the kernel.
type counted struct {
	http.ResponseWriter
	n *atomic.Int64
}

// Write implements io.Writer.
func (c *counted) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// ReadFrom implements io.ReaderFrom.
func (c *counted) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.ResponseWriter, r)
	c.n.Add(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// ChannelStatus is how a site does with a channel.
type ChannelStatus struct {
	Channel  string    `json:"channel"`
	Snapshot string    `json:"snapshot,omitempty"`
	Since    int64     `json:"since,omitempty"`    // the centre's event that moved it there
	Synced   time.Time `json:"synced,omitzero"`    // when the site had it
	Contact  time.Time `json:"contact,omitzero"`   // when the centre last answered
	Behind   float64   `json:"behind_seconds"`     // since when a newer state is known and not served
	Trouble  string    `json:"trouble,omitempty"`  // why
	Stale    bool      `json:"stale"`              // the centre does not answer
	States   int       `json:"states"`             // that are kept
	Keys     []string  `json:"keys"`               // that it may be signed with
	Packages int       `json:"packages,omitempty"` // of the present state
	Missing  int       `json:"missing"`            // of them not here
}

// Status is how a site does.
type Status struct {
	Centre   string          `json:"centre"`
	Version  string          `json:"version"`
	Channels []ChannelStatus `json:"channels"`
	Packages int             `json:"packages"` // that are kept
	Bytes    int64           `json:"bytes"`    // of them
	Max      int64           `json:"max,omitempty"`
	Hits     int64           `json:"hits"`   // requests for packages that were here
	Misses   int64           `json:"misses"` // and that were not
	HitRatio float64         `json:"hit_ratio"`
	Served   int64           `json:"served_bytes"`  // to hosts, since the start
	Fetched  int64           `json:"fetched_bytes"` // from the centre
	Saved    int64           `json:"saved_bytes"`   // that hosts did not fetch from there
	Wrong    int64           `json:"wrong"`         // packages that came with wrong bytes
	Evicted  int64           `json:"evicted"`
}

// stale is for how long the centre has not answered, when it should have.
func (s *Site) stale(c *channel) time.Duration {
	since := time.Since(c.contact)
	if c.contact.IsZero() {
		since = time.Since(c.States[0].At)
	}
	if c.trouble == "" && since < maxWait+5*time.Second {
		return 0
	}
	return max(since, time.Second)
}

// Status tells how the site does.
func (s *Site) Status() Status {
	n := s.numbers
	out := Status{Centre: s.Centre.Base, Version: s.Version, Channels: []ChannelStatus{}, Max: s.Max, Hits: n.hits.Load(), Misses: n.misses.Load(), Served: n.served.Load(), Fetched: n.fetched.Load(), Wrong: n.wrong.Load(), Evicted: n.evicted.Load()}
	out.Packages, out.Bytes = s.stored()
	if all := out.Hits + out.Misses; all > 0 {
		out.HitRatio = float64(out.Hits) / float64(all)
	}
	out.Saved = max(0, out.Served-out.Fetched)
	for _, c := range s.all() {
		x := ChannelStatus{Channel: c.Name, Contact: c.contact, Trouble: c.trouble, States: len(c.States), Keys: c.Keys}
		if !c.behind.IsZero() {
			x.Behind = time.Since(c.behind).Seconds()
		}
		if len(c.States) > 0 {
			sn := &c.States[0]
			x.Snapshot, x.Since, x.Synced, x.Stale = sn.Snapshot, sn.Since, sn.At, s.stale(c) > 0
			for _, t := range sn.Trees {
				if ix, err := s.index(t.Primary); err == nil {
					x.Packages += len(ix.items)
					x.Missing += s.missing(ix)
				}
			}
		}
		out.Channels = append(out.Channels, x)
	}
	return out
}

func (s *Site) missing(x *index) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range x.items {
		if s.packages[it.hex()] == nil {
			n++
		}
	}
	return n
}

func (s *Site) statusHTTP(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(s.Status()) // the client is away
	return nil
}

// metrics adds the numbers to /metrics.
func (s *Site) metrics() {
	count := func(name, help string, v *atomic.Int64) {
		s.web.Gauge(name, help, func() float64 { return float64(v.Load()) })
	}
	n := s.numbers
	count("drover_site_hits", "Requests for packages that were here, since the start.", &n.hits)
	count("drover_site_misses", "Requests for packages that were not here, since the start.", &n.misses)
	count("drover_site_served_bytes", "Bytes that hosts got, since the start.", &n.served)
	count("drover_site_fetched_bytes", "Bytes that came from the centre, since the start.", &n.fetched)
	count("drover_site_wrong", "Packages that came with wrong bytes, since the start.", &n.wrong)
	count("drover_site_evicted", "Packages that were removed, since the start.", &n.evicted)
	s.web.Gauge("drover_site_packages_bytes", "Bytes of packages that are kept.", func() float64 { _, size := s.stored(); return float64(size) })
	worst := func(of func(*channel) float64) func() float64 {
		return func() (most float64) {
			for _, c := range s.all() {
				most = max(most, of(c))
			}
			return most
		}
	}
	s.web.Gauge("drover_site_contact_age_seconds", "Since the centre last answered for the channel that waits longest.", worst(func(c *channel) float64 {
		if c.contact.IsZero() {
			return 0
		}
		return time.Since(c.contact).Seconds()
	}))
	s.web.Gauge("drover_site_behind_seconds", "Since when a newer state is known and not served, of the channel that waits longest.", worst(func(c *channel) float64 {
		if c.behind.IsZero() {
			return 0
		}
		return time.Since(c.behind).Seconds()
	}))
}

// followHTTP tells a site behind this one where a channel points, as the centre does.
func (s *Site) followHTTP(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	wait, err := strconv.Atoi(q.Get("wait"))
	if q.Get("wait") != "" && (err != nil || wait < 0 || wait > wire.MaxFollow) {
		return fault.Invalid("wait", "%.40q is no number of seconds", q.Get("wait")).Fix("give 0 to %d", wire.MaxFollow)
	}
	timer := time.NewTimer(time.Duration(wait) * time.Second)
	defer timer.Stop()
	for {
		s.mu.Lock()
		c, moved := s.channels[r.PathValue("name")], s.moved
		s.mu.Unlock()
		if c == nil {
			return fault.NotFound("channel_unknown", "the site does not follow the channel %.100q", r.PathValue("name"))
		}
		if len(c.States) > 0 && c.States[0].Snapshot != q.Get("snapshot") {
			return answer(w, c.States[0].State)
		}
		select {
		case <-r.Context().Done():
			return r.Context().Err()
		case <-timer.C:
			if len(c.States) == 0 {
				return s.absent(r.URL.Path, c)
			}
			return answer(w, c.States[0].State)
		case <-moved:
		}
	}
}

func answer(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is away
	return nil
}
