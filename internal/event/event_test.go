package event_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/event"
	"drover/internal/fault"
)

func add(t *testing.T, d *db.DB, kind, subject string, data any) int64 {
	t.Helper()
	var id int64
	err := d.Write(db.WithActor(t.Context(), "alice"), func(tx *db.Tx) (err error) {
		id, err = event.Append(tx, kind, subject, data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestAppendListAndAsOf(t *testing.T) {
	dbtest.Each(t, []db.Schema{event.Schema()}, func(t *testing.T, d *db.DB) {
		for i, k := range []string{"tag.made", "build.done", "build.failed", "build_x.done"} {
			if id := add(t, d, k, "build/1", map[string]int{"n": i}); id != int64(i+1) {
				t.Fatalf("event %d got number %d", i+1, id)
			}
		}
		_ = d.Read(t.Context(), func(tx *db.Tx) error {
			es, err := event.List(tx, event.Filter{Kind: "build.", Newest: true})
			if err != nil || len(es) != 2 || es[0].ID != 3 || es[0].Actor != "alice" || string(es[0].Data) != `{"n":2}` {
				t.Errorf("list by domain: %+v, %v", es, err)
			}
			es, err = event.List(tx, event.Filter{After: 1, Before: 4, Subject: "build/1", Actor: "alice", Limit: 1})
			if err != nil || len(es) != 1 || es[0].ID != 2 {
				t.Errorf("list by range: %+v, %v", es, err)
			}
			if id, err := event.AsOf(tx, "2"); id != 2 || err != nil {
				t.Errorf("as of 2: %d, %v", id, err)
			}
			if id, err := event.AsOf(tx, time.Now().Add(time.Hour).Format(time.RFC3339)); id != 4 || err != nil {
				t.Errorf("as of later: %d, %v", id, err)
			}
			if id, err := event.AsOf(tx, "2001-01-01T00:00:00Z"); id != 0 || err != nil {
				t.Errorf("as of long ago: %d, %v", id, err)
			}
			if _, err := event.AsOf(tx, "9"); fault.Code(err) != "event_unknown" {
				t.Errorf("as of 9: %v", err)
			}
			if _, err := event.AsOf(tx, "yesterday"); fault.Code(err) != "as_of" {
				t.Errorf("as of yesterday: %v", err)
			}
			return nil
		})
		err := d.Write(t.Context(), func(tx *db.Tx) error {
			_, err := event.Append(tx, "x.y", "z", strings.Repeat("a", 70_000))
			return err
		})
		if fault.Code(err) != "event_data" {
			t.Errorf("bulk data gave %v", err)
		}
	})
}

func TestVerifyFindsEveryChange(t *testing.T) {
	attacks := map[string]string{
		"a changed text":     "UPDATE event SET data = '{\"n\":99}' WHERE id = 3",
		"a changed actor":    "UPDATE event SET actor = 'mallory' WHERE id = 3",
		"a changed time":     "UPDATE event SET at = at + 1 WHERE id = 3",
		"a removed line":     "DELETE FROM event WHERE id = 3",
		"a removed tail":     "DELETE FROM event WHERE id >= 4",
		"two fields shifted": "UPDATE event SET kind = 'x.ys', subject = 'ubj' WHERE id = 3",
	}
	for name, attack := range attacks {
		t.Run(name, func(t *testing.T) {
			dbtest.Each(t, []db.Schema{event.Schema()}, func(t *testing.T, d *db.DB) {
				for i := range 5 {
					add(t, d, "x.y", "subj", map[string]int{"n": i})
				}
				head, err := event.Verify(t.Context(), d, nil)
				if err != nil || head.ID != 5 || len(head.Hash) != 64 {
					t.Fatalf("clean ledger: %+v, %v", head, err)
				}
				if _, err := event.Verify(t.Context(), d, &head); err != nil {
					t.Fatalf("clean ledger with its head: %v", err)
				}
				if err := d.Write(t.Context(), func(tx *db.Tx) error { _, err := tx.Exec(attack); return err }); err != nil {
					t.Fatal(err)
				}
				if _, err := event.Verify(t.Context(), d, &head); fault.Code(err) != "ledger_broken" {
					t.Errorf("not found: %v", err)
				}
			})
		})
	}
}

func TestFollowMissesNothing(t *testing.T) {
	dbtest.Each(t, []db.Schema{event.Schema()}, func(t *testing.T, d *db.DB) {
		const n = 250
		done := errors.New("done")
		got := make(chan error, 1)
		go func() {
			next := int64(1)
			got <- event.Follow(context.WithoutCancel(t.Context()), d, event.Filter{}, func(es []event.Event) error {
				for _, e := range es {
					if e.ID != next {
						return errors.New("out of order")
					}
					if next++; next > n {
						return done
					}
				}
				return nil
			})
		}()
		for range n {
			add(t, d, "x.y", "z", nil)
		}
		if err := <-got; !errors.Is(err, done) {
			t.Error(err)
		}
	})
}
