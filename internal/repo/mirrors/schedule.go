package mirrors

import (
	"context"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"time"

	"drover/internal/auth"
	"drover/internal/fault"
	"drover/internal/fetch"
)

// due is when a mirror is synced next: at its own place in each period, so that many mirrors do
// not begin together, and a little later, so that many servers do not; after failures sooner.
func (y *syncing) due(now int64, failures int) int64 {
	if y.m.Every == 0 {
		return 0
	}
	every := y.m.Every * 1_000_000
	if failures > 0 {
		wait := min(every, int64(time.Hour/time.Microsecond), int64(time.Minute/time.Microsecond)<<min(failures-1, 10))
		return now + wait/2 + rand.Int64N(wait/2+1) //nolint:gosec // jitter
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(y.m.Name)) // it can't fail
	phase := int64(h.Sum64() % uint64(every))
	next := (now-phase)/every*every + every + phase
	if next < now+every/2 {
		next += every
	}
	return next + rand.Int64N(every/20+1) //nolint:gosec // jitter
}

// Times of the loop: how soon what another server did is seen, and when parts of files that nobody
// goes on with are removed.
const (
	poll       = 5 * time.Second
	sweepParts = 6 * time.Hour
	keepParts  = 7 * 24 * time.Hour
)

// atOnce is how many mirrors are synced by themselves at the same time.
const atOnce = 3

// Run syncs the mirrors that are due and fills those on demand, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	ctx = auth.AsSystem(ctx)
	var working sync.WaitGroup
	defer working.Wait()
	var mu sync.Mutex // guards what follows
	running, again := map[string]bool{}, map[string]time.Time{}
	start := func(name string, work func() (wait time.Duration, err error)) {
		mu.Lock()
		defer mu.Unlock()
		if running[name] || len(running) >= atOnce || time.Now().Before(again[name]) {
			return
		}
		running[name] = true
		working.Go(func() {
			wait, err := work()
			if err != nil && ctx.Err() == nil {
				s.Repo.Log.Error("a mirror is not as it should be", "mirror", name, "err", err)
			}
			mu.Lock()
			defer mu.Unlock()
			delete(running, name)
			again[name] = time.Now().Add(wait)
		})
	}
	swept := time.Time{}
	for ctx.Err() == nil {
		changed := s.db.Changed()
		ms, err := s.List(ctx)
		if err != nil && ctx.Err() == nil {
			s.Repo.Log.Error("mirrors to sync", "err", err)
		}
		now := time.UnixMicro(s.db.Now())
		for _, m := range ms {
			switch {
			case !m.Due.IsZero() && !m.Due.After(now):
				start(m.Name, func() (time.Duration, error) {
					_, err := s.Sync(ctx, m.Name, nil)
					if fault.Code(err) == "mirror_busy" {
						return poll, nil // somebody else does it
					}
					return poll, err
				})
			case m.OnDemand && !m.NoFill && m.Absent > 0:
				start(m.Name, func() (time.Duration, error) {
					more, err := s.fill(ctx, m.Name)
					if err == nil && more {
						return 0, nil
					}
					return time.Minute, err
				})
			}
		}
		if now.Sub(swept) > sweepParts {
			swept = now
			s.sweepFetched(now)
		}
		timer := time.NewTimer(poll)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// sweepFetched removes parts of files that nobody has gone on with for a week.
func (s *Store) sweepFetched(now time.Time) {
	c, err := fetch.New(s.fetching())
	if err == nil {
		_, err = c.Sweep(now.Add(-keepParts))
		c.Close()
	}
	if err != nil {
		s.Repo.Log.Error("parts of files stay", "err", err)
	}
}
