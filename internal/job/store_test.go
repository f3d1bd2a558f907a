package job

import (
	"fmt"
	"log/slog"
	"testing"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/event"
	"drover/internal/fleet"
	"drover/internal/job/wire"
)

// Verdicts are written some in a statement, and none is lost at its edges; a host that says a late
// result twice in one turn has the second.
func TestVerdictsAreStored(t *testing.T) {
	dbtest.Each(t, []db.Schema{event.Schema(), auth.Schema(), fleet.Schema(), Schema()}, func(t *testing.T, d *db.DB) {
		ctx := auth.AsSystem(t.Context())
		f, err := fleet.New(ctx, fleet.Config{DB: d, Dir: t.TempDir(), Log: slog.Default()})
		if err != nil {
			t.Fatal(err)
		}
		s := New(Config{DB: d, Fleet: f, Log: slog.Default()})
		const n = 95
		r, err := s.prepare(Job{ID: s.newJID(), State: StateRunning, Total: n, Spec: Spec{Target: "*", Fun: "test.ping"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		st := &step{r: r, end: true}
		for i := range int64(n) {
			r.hosts = append(r.hosts, i+1)
			v := Verdict{host: i + 1, Host: fmt.Sprintf("h%03d", i+1), State: wire.Answered, Return: []byte("true"), Took: 0.25}
			if i < 40 {
				v.State, v.Return, v.Since = wire.Offline, nil, db.Time(d.Now())
			}
			r.ended[v.host] = v.State
			st.rows = append(st.rows, v)
		}
		if _, err := s.create(ctx, r); err != nil {
			t.Fatal(err)
		}
		if err := s.store(ctx, map[string]*step{r.job.ID: st}, nil); err != nil {
			t.Fatal(err)
		}
		late := func(host int64, result string) lateResult {
			return lateResult{r.job.ID, Verdict{host: host, Host: fmt.Sprintf("h%03d", host), State: wire.Answered, Return: []byte(result)}}
		}
		said := []lateResult{late(4, "1"), late(41, "4")} // the latter has answered: what it says now changes nothing
		for i := range int64(40) {
			said = append(said, late(i+1, "2"))
		}
		if err := s.store(ctx, nil, append(said, late(5, "3"))); err != nil {
			t.Fatal(err)
		}
		vs, err := s.Verdicts(ctx, r.job.ID)
		if err != nil || len(vs) != n {
			t.Fatalf("%d verdicts: %v", len(vs), err)
		}
		for i, v := range vs {
			want := "true"
			switch {
			case i == 4:
				want = "3"
			case i < 40:
				want = "2"
			}
			if v.Host != fmt.Sprintf("h%03d", i+1) || v.State != wire.Answered || string(v.Return) != want {
				t.Errorf("%d: %+v", i, v)
			}
		}
		j, err := s.Get(ctx, r.job.ID)
		if err != nil || j.State != StateDone || j.Counts[wire.Answered] != n {
			t.Errorf("%+v %v", j, err)
		}
	})
}
