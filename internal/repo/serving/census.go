package serving

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"drover/internal/db"
)

// Census counts hosts.
type Census struct {
	db  *db.DB
	log *slog.Logger
	mu  sync.Mutex      // guards new
	new map[count]int64 // not in the database yet
}

// NewCensus counts into d.
func NewCensus(d *db.DB, log *slog.Logger) *Census {
	return &Census{db: d, log: log, new: map[count]int64{}}
}

// Hosts is how many hosts said in a week that they follow a channel. A host says so once a
// week, to be counted and for nothing else; it tells no name.
type Hosts struct {
	Week  time.Time `json:"week"` // its Monday
	Age   string    `json:"age"`  // how long the host has followed the channel
	Hosts int64     `json:"hosts"`
}

// ages are what dnf means by countme=1 to 4.
var ages = []string{"", "first week", "first month", "first half-year", "older"} //nolint:gochecknoglobals // a table

// count is what was counted and is not in the database yet.
type count struct {
	channel string
	week    int64 // when it began, microseconds since 1970
	age     int
}

// monday is when the week of a time began, in UTC, as dnf has it.
func monday(t time.Time) time.Time {
	t = t.UTC().Truncate(24 * time.Hour)
	return t.AddDate(0, 0, -(int(t.Weekday())+6)%7)
}

// maxCounts bounds what waits for the database.
const maxCounts = 10_000

// Seen counts a host that says so: countme is what it says.
func (s *Census) Seen(channel, countme string) {
	if len(countme) != 1 || countme[0] < '1' || countme[0] > '4' {
		return
	}
	c := count{channel, monday(time.UnixMicro(s.db.Now())).UnixMicro(), int(countme[0] - '0')}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.new[c]; ok || len(s.new) < maxCounts {
		s.new[c]++
	}
}

// censusEvery is how often counts go into the database: what a host tells costs no
// transaction of its own, and a killed server forgets as much.
const censusEvery = 5 * time.Second

// Run writes what was counted until ctx ends, and once more then.
func (s *Census) Run(ctx context.Context) {
	tick := time.NewTicker(censusEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		if err := s.keepCounts(context.WithoutCancel(ctx)); err != nil {
			s.log.Error("hosts that were counted", "err", err)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

func (s *Census) keepCounts(ctx context.Context) error {
	s.mu.Lock()
	counts := s.new
	s.new = map[count]int64{}
	s.mu.Unlock()
	if len(counts) == 0 {
		return nil
	}
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		for c, n := range counts {
			if _, err := tx.Exec("INSERT INTO repo_census (channel, week, age, hosts) VALUES ($1, $2, $3, $4) ON CONFLICT (channel, week, age) DO UPDATE SET hosts = repo_census.hosts + excluded.hosts",
				c.channel, c.week, c.age, n); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil { // they are counted the next time
		s.mu.Lock()
		for c, n := range counts {
			s.new[c] += n
		}
		s.mu.Unlock()
	}
	return err
}

// Of tells how many hosts follow a channel, the newest week first; of the last year.
func (s *Census) Of(ctx context.Context, channel string) ([]Hosts, error) {
	found := map[count]int64{}
	year := monday(time.UnixMicro(s.db.Now())).AddDate(-1, 0, 0).UnixMicro()
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			c, n := count{channel: channel}, int64(0)
			err := scan(&c.week, &c.age, &n)
			found[c] += n
			return err
		}, "SELECT week, age, hosts FROM repo_census WHERE channel = $1 AND week >= $2", channel, year)
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	for c, n := range s.new {
		if c.channel == channel {
			found[c] += n
		}
	}
	s.mu.Unlock()
	out := []Hosts{}
	for _, c := range slices.SortedFunc(maps.Keys(found), func(a, b count) int { return cmp.Or(cmp.Compare(b.week, a.week), cmp.Compare(a.age, b.age)) }) {
		out = append(out, Hosts{db.Time(c.week), ages[c.age], found[c]})
	}
	return out, nil
}
