package job

import (
	"testing"
	"time"

	"drover/internal/fault"

	"pgregory.net/rapid"
)

// Whatever ends when: never more at it than allowed, counting those whose wait is not over; all
// have their turn unless it was stopped; after a stop nobody begins.
func TestPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Plan{Size: rapid.IntRange(0, 8).Draw(t, "size"), Wait: time.Duration(rapid.IntRange(0, 3).Draw(t, "wait")) * time.Second, FailHard: rapid.Bool().Draw(t, "failhard"), Total: rapid.IntRange(0, 40).Draw(t, "total")}
		size := p.Size
		now := time.Unix(0, 0)
		began, flying := 0, 0
		var cooling []time.Time
		stopped := false
		for step := 0; step < 400 && (began < p.Total || flying > 0); step++ {
			n, again := p.Admit(now)
			if stopped && n > 0 {
				t.Fatal("it goes on after a stop")
			}
			began, flying = began+n, flying+n
			busy := flying
			for _, c := range cooling {
				if c.After(now) {
					busy++
				}
			}
			if size > 0 && busy > size {
				t.Fatalf("%d at it or waiting, %d allowed", busy, size)
			}
			if began > p.Total {
				t.Fatal("more than there are")
			}
			switch {
			case flying > 0 && rapid.Bool().Draw(t, "ends"):
				failed := rapid.IntRange(0, 9).Draw(t, "fails") == 0
				if rapid.IntRange(0, 9).Draw(t, "gone") == 0 {
					p.Gone()
				} else {
					if p.Ended(now, failed) != (failed && p.FailHard && !stopped) {
						t.Fatal("the first failure stops, and no other")
					}
					stopped = stopped || failed && p.FailHard
					cooling = append(cooling, now.Add(p.Wait))
				}
				flying--
			case !again.IsZero():
				if !again.After(now) {
					t.Fatal("it is to be asked again in the past")
				}
				now = again
			case flying == 0 && n == 0 && !stopped:
				t.Fatalf("%d of %d began and nobody is at it", began, p.Total)
			case stopped && flying == 0:
				return
			default:
				now = now.Add(300 * time.Millisecond)
			}
		}
	})
}

func TestBatchSize(t *testing.T) {
	for _, c := range []struct {
		text  string
		total int
		want  int
		code  string
	}{{"", 10, 0, ""}, {"3", 10, 3, ""}, {"10%", 3000, 300, ""}, {"1%", 10, 1, ""}, {"100%", 7, 7, ""}, {"0", 10, 0, "batch"}, {"-1", 10, 0, "batch"}, {"101%", 10, 0, "batch"}, {"x", 10, 0, "batch"}, {"1.5", 10, 0, "batch"}, {"nan", 10, 0, "batch"}} {
		got, err := batchSize(c.text, c.total)
		if got != c.want || fault.Code(err) != c.code {
			t.Errorf("%q of %d: %d, %v", c.text, c.total, got, err)
		}
	}
}

func TestMatchTag(t *testing.T) {
	for _, c := range []struct {
		pattern, tag string
		want         bool
	}{{"", "a", true}, {"salt/job/*", "salt/job/1/ret/h", true}, {"salt/job/*/ret/*", "salt/job/1/new", false}, {"salt/minion/*/start", "salt/minion/web.example/start", true}, {"[", "a", false}, {"salt", "salt/x", false}} {
		if got := MatchTag(c.pattern, c.tag); got != c.want {
			t.Errorf("%q %q: %v", c.pattern, c.tag, got)
		}
	}
}
