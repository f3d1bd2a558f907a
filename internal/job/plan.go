package job

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/fault"
)

// Plan says how many hosts may begin. It knows no hosts and no clock: only numbers.
type Plan struct {
	Size     int           // at it at once; 0 for all
	Wait     time.Duration // before a place that became free is given again
	FailHard bool          // nobody begins after the first failure
	Total    int

	began   int
	flying  int
	free    []time.Time // when places that became free may be given again, sorted
	stopped bool
}

// Admit is how many may begin now, and counts them as begun. again is when to ask next, zero when
// something has to end first.
func (p *Plan) Admit(now time.Time) (n int, again time.Time) {
	if p.stopped {
		return 0, time.Time{}
	}
	left := p.Total - p.began
	if p.Size <= 0 {
		p.began, p.flying = p.Total, p.flying+left
		return left, time.Time{}
	}
	// A place is taken by who is at it, and by who was until its wait is over.
	p.free = slices.DeleteFunc(p.free, func(t time.Time) bool { return !t.After(now) })
	n = max(0, min(left, p.Size-p.flying-len(p.free)))
	p.began, p.flying = p.began+n, p.flying+n
	if n < left && len(p.free) > 0 {
		again = p.free[0]
	}
	return n, again
}

// Ended counts one that had begun as ended. It tells whether that stops the rest.
func (p *Plan) Ended(now time.Time, failed bool) (stop bool) {
	p.flying--
	if p.Wait > 0 {
		p.free = append(p.free, now.Add(p.Wait))
		slices.SortFunc(p.free, time.Time.Compare)
	}
	if failed && p.FailHard && !p.stopped {
		p.stopped = true
		return true
	}
	return false
}

// Gone counts one that had begun as never having been at it: its place is free at once.
func (p *Plan) Gone() { p.flying-- }

// Stop lets nobody begin any more.
func (p *Plan) Stop() { p.stopped = true }

// resume puts a plan where it was before a restart.
func (p *Plan) resume(began, flying int, stopped bool) {
	p.began, p.flying, p.stopped = began, flying, stopped
}

// batchSize reads "10" or "10%" of total.
func batchSize(batch string, total int) (int, error) {
	bad := fault.Invalid("batch", "%.40q is no size of a batch", batch).Fix("give a number of hosts, or a part of them such as 10%%")
	if batch == "" {
		return 0, nil
	}
	text, percent := strings.CutSuffix(batch, "%")
	n, err := strconv.ParseFloat(text, 64)
	switch {
	case err != nil || n <= 0 || n > 1e6 || percent && n > 100:
		return 0, bad
	case percent:
		return max(1, int(n*float64(total)/100)), nil
	case n != float64(int(n)):
		return 0, bad
	}
	return int(n), nil
}
