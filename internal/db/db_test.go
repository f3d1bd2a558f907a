package db_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/fault"
)

func schema() []db.Schema {
	return []db.Schema{{Name: "thing", FS: fstest.MapFS{"migrations/0001_thing.sql": {Data: []byte(`-- +goose Up
CREATE TABLE thing (
    id BIGINT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    body BYTEA
);
`)}}}}
}

func add(ctx context.Context, d *db.DB, name string) error {
	return d.Write(ctx, func(tx *db.Tx) error {
		id, err := tx.NextID("thing")
		if err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO thing (id, name) VALUES ($1, $2)", id, name)
		return err
	})
}

func count(t *testing.T, d *db.DB) (n int) {
	t.Helper()
	if err := d.Read(t.Context(), func(tx *db.Tx) error { return tx.QueryRow("SELECT COUNT(*) FROM thing").Scan(&n) }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestWritesRunAloneAndIDsAreDense(t *testing.T) {
	dbtest.Each(t, schema(), func(t *testing.T, d *db.DB) {
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				if err := add(t.Context(), d, string(rune('A'+i))); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		var max int
		if err := d.Read(t.Context(), func(tx *db.Tx) error { return tx.QueryRow("SELECT MAX(id) FROM thing").Scan(&max) }); err != nil {
			t.Fatal(err)
		}
		if max != 40 || count(t, d) != 40 {
			t.Errorf("max id %d of %d rows, want 40", max, count(t, d))
		}
	})
}

func TestErrorLeavesNothing(t *testing.T) {
	dbtest.Each(t, schema(), func(t *testing.T, d *db.DB) {
		boom := errors.New("boom")
		changed := d.Changed()
		err := d.Write(t.Context(), func(tx *db.Tx) error {
			tx.AfterCommit(func() { t.Error("AfterCommit ran without a commit") })
			if _, err := tx.Exec("INSERT INTO thing (id, name) VALUES ($1, $2)", 1, "x"); err != nil {
				return err
			}
			return boom
		})
		if !errors.Is(err, boom) || count(t, d) != 0 {
			t.Errorf("err %v, %d rows", err, count(t, d))
		}
		select {
		case <-changed:
			t.Error("a failed write announced a change")
		default:
		}
		if err := add(t.Context(), d, "x"); err != nil {
			t.Fatal(err)
		}
		select {
		case <-changed:
		default:
			t.Error("a committed write announced nothing")
		}
	})
}

func TestUniqueNestedAndTypes(t *testing.T) {
	dbtest.Each(t, schema(), func(t *testing.T, d *db.DB) {
		if err := add(t.Context(), d, "x"); err != nil {
			t.Fatal(err)
		}
		if err := add(t.Context(), d, "x"); !db.IsUnique(err) {
			t.Errorf("a repeated key gave %v", err)
		}
		err := d.Write(t.Context(), func(tx *db.Tx) error { return add(tx.Ctx(), d, "y") })
		if fault.Code(err) != "db_nested" {
			t.Errorf("a nested write gave %v", err)
		}
		err = d.Write(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec("INSERT INTO thing (id, name) VALUES ($1, $2)", "not a number", "z")
			return err
		})
		if err == nil {
			t.Error("text went into a BIGINT column")
		}
		if err := d.Read(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec("INSERT INTO thing (id, name) VALUES ($1, $2)", 9, "z")
			return err
		}); err == nil {
			t.Error("a read transaction wrote")
		}
		var n int
		err = d.Read(t.Context(), func(tx *db.Tx) error {
			return tx.QueryRow("SELECT CAST(value->>'n' AS BIGINT) FROM json_each($1)", `{"0":{"n":7}}`).Scan(&n)
		})
		if err != nil || n != 7 {
			t.Errorf("bulk rows as JSON: %d, %v", n, err)
		}
	})
}

func TestMigrateTwiceAndActor(t *testing.T) {
	dbtest.Each(t, schema(), func(t *testing.T, d *db.DB) {
		if err := d.Migrate(t.Context(), schema()...); err != nil {
			t.Errorf("a repeated migration: %v", err)
		}
		err := d.Write(db.WithActor(t.Context(), "alice"), func(tx *db.Tx) error {
			if tx.Actor() != "alice" || tx.Now() == 0 {
				t.Errorf("actor %q now %d", tx.Actor(), tx.Now())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// A context that ends takes the whole transaction with it, also one whose function does not look;
// the connection is as good as before.
func TestCanceled(t *testing.T) {
	dbtest.Each(t, schema(), func(t *testing.T, d *db.DB) {
		for range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			err := d.Write(ctx, func(tx *db.Tx) error {
				if _, err := tx.Exec("INSERT INTO thing (id, name) VALUES ($1, $2)", 1, "x"); err != nil {
					return err
				}
				cancel()
				_, _ = tx.Exec("INSERT INTO thing (id, name) VALUES ($1, $2)", 2, "y")
				return nil
			})
			if !errors.Is(err, context.Canceled) || count(t, d) != 0 {
				t.Fatalf("%v, %d rows", err, count(t, d))
			}
		}
		if err := add(t.Context(), d, "x"); err != nil || count(t, d) != 1 {
			t.Fatal(err)
		}
	})
}

// Statements are kept from one transaction to the next: the same text with other parameters, more
// texts than are kept, and texts that are wrong.
func TestStatements(t *testing.T) {
	dbtest.Each(t, schema(), func(t *testing.T, d *db.DB) {
		for _, n := range []string{"a", "b", "c"} {
			if err := add(t.Context(), d, n); err != nil {
				t.Fatal(err)
			}
		}
		const all = "SELECT name FROM thing WHERE name >= $1 ORDER BY name"
		for _, from := range []string{"a", "b", "c", "a"} {
			if err := d.Read(t.Context(), func(tx *db.Tx) error {
				for range 2 {
					got, err := db.Column[string](tx, all, from)
					if want := strings.Split("abc"[from[0]-'a':], ""); err != nil || !slices.Equal(got, want) {
						t.Errorf("from %s: %v %v", from, got, err)
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		// Parameters go where they are named, in statements that are kept too.
		for text, want := range map[string]string{
			"SELECT name FROM thing WHERE name = $1 AND name <> $2":               "a",
			"SELECT name FROM thing WHERE name = $2 AND name <> $1":               "b",
			"SELECT name FROM thing WHERE name = $1 AND (name = $1 OR name = $2)": "a",
		} {
			for range 3 {
				if err := d.Read(t.Context(), func(tx *db.Tx) error {
					got, err := db.Column[string](tx, text, "a", "b")
					if err != nil || !slices.Equal(got, []string{want}) {
						t.Errorf("%s: %v %v", text, got, err)
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
		}
		for i := range 1000 { // more than a connection remembers
			var n int
			if err := d.Read(t.Context(), func(tx *db.Tx) error { return tx.QueryRow(fmt.Sprintf("SELECT %d", i)).Scan(&n) }); err != nil || n != i {
				t.Fatalf("%d: %d %v", i, n, err)
			}
		}
		for range 3 {
			if err := d.Read(t.Context(), func(tx *db.Tx) error { return tx.QueryRow("SELEKT 1").Scan(new(int)) }); err == nil {
				t.Fatal("nonsense is taken")
			}
		}
		// Rows that are not read to their end do not stay in the way.
		for range 3 {
			stop := errors.New("stop")
			if err := d.Write(t.Context(), func(tx *db.Tx) error {
				return tx.Each(func(func(...any) error) error { return stop }, all, "a")
			}); !errors.Is(err, stop) {
				t.Fatal(err)
			}
		}
		if count(t, d) != 3 {
			t.Error(count(t, d))
		}
	})
}
