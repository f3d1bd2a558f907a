package event_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"drover/internal/auth"
	"drover/internal/cli"
	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/web"

	"pgregory.net/rapid"
)

// Whatever one bit of whatever column of whatever line is changed: it is found.
func TestVerifyFindsAnyChangedBit(t *testing.T) {
	dbtest.Each(t, []db.Schema{event.Schema()}, func(t *testing.T, d *db.DB) {
		const lines = 6
		for i := range lines {
			add(t, d, "x.made", fmt.Sprintf("thing/%d", i), map[string]any{"n": i, "text": "äöü \u0000 \"quoted\""})
		}
		head, err := event.Verify(t.Context(), d, nil)
		if err != nil {
			t.Fatal(err)
		}
		rapid.Check(t, func(rt *rapid.T) {
			id := rapid.Int64Range(1, lines).Draw(rt, "line")
			col := rapid.SampledFrom([]string{"id", "at", "actor", "kind", "subject", "data", "prev", "hash"}).Draw(rt, "column")
			change := func(tx *db.Tx) error {
				switch col {
				case "id", "at":
					by := rapid.Int64Range(1, 1<<40).Draw(rt, "by")
					if col == "id" {
						by += lines // another line has the numbers up to here
					}
					if _, err := tx.Exec("UPDATE event SET "+col+" = "+col+" + $1 WHERE id = $2", by, id); err != nil {
						return err
					}
				case "prev", "hash":
					var b []byte
					if err := tx.QueryRow("SELECT "+col+" FROM event WHERE id = $1", id).Scan(&b); err != nil {
						return err
					}
					b[rapid.IntRange(0, len(b)-1).Draw(rt, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(rt, "bit")
					if _, err := tx.Exec("UPDATE event SET "+col+" = $1 WHERE id = $2", b, id); err != nil {
						return err
					}
				default:
					var s string
					if err := tx.QueryRow("SELECT "+col+" FROM event WHERE id = $1", id).Scan(&s); err != nil {
						return err
					}
					r := []rune(s)
					i := rapid.IntRange(0, len(r)).Draw(rt, "at")
					switch {
					case i == len(r):
						r = append(r, 'x')
					case rapid.Bool().Draw(rt, "drop"):
						r = append(r[:i], r[i+1:]...)
					default:
						r[i] ^= 1
					}
					if _, err := tx.Exec("UPDATE event SET "+col+" = $1 WHERE id = $2", string(r), id); err != nil {
						return err
					}
				}
				return nil
			}
			// The change is committed, looked for, and taken back by the rows from before.
			type row struct {
				id, at                     int64
				actor, kind, subject, data string
				prev, hash                 []byte
			}
			var was []row
			err := d.Write(t.Context(), func(tx *db.Tx) error {
				if err := tx.Each(func(scan func(...any) error) error {
					var r row
					err := scan(&r.id, &r.at, &r.actor, &r.kind, &r.subject, &r.data, &r.prev, &r.hash)
					was = append(was, r)
					return err
				}, "SELECT id, at, actor, kind, subject, data, prev, hash FROM event ORDER BY id"); err != nil {
					return err
				}
				return change(tx)
			})
			if err != nil {
				rt.Fatal(err)
			}
			_, verr := event.Verify(t.Context(), d, &head)
			if err := d.Write(t.Context(), func(tx *db.Tx) error {
				if _, err := tx.Exec("DELETE FROM event"); err != nil {
					return err
				}
				for _, r := range was {
					if _, err := tx.Exec("INSERT INTO event (id, at, actor, kind, subject, data, prev, hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)", r.id, r.at, r.actor, r.kind, r.subject, r.data, r.prev, r.hash); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				rt.Fatal(err)
			}
			if fault.Code(verr) != "ledger_broken" {
				rt.Fatalf("a change of %s of line %d is not found: %v", col, id, verr)
			}
		})
		if got, err := event.Verify(t.Context(), d, &head); err != nil || got != head {
			t.Errorf("afterwards: %+v %v", got, err)
		}
	})
}

// Many writers, some of whose transactions fail, and readers that join late: each reader sees
// every line once, in order, with no gap.
func TestFollowersOfManyWriters(t *testing.T) {
	dbtest.Each(t, []db.Schema{event.Schema()}, func(t *testing.T, d *db.DB) {
		const writers, each = 8, 30
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		defer cancel()
		var wg sync.WaitGroup
		errs := make(chan error, 100)
		done := errors.New("done")
		for r := range 3 {
			wg.Go(func() {
				after := int64(0)
				f := event.Filter{Limit: 1 + 7*r} // a reader that stops in between goes on from its cursor
				for after < writers*each {
					err := event.Follow(ctx, d, event.Filter{After: after, Limit: f.Limit}, func(es []event.Event) error {
						for _, e := range es {
							if e.ID != after+1 {
								return fmt.Errorf("reader %d: %d after %d", r, e.ID, after)
							}
							after = e.ID
						}
						if after%5 == 0 || after == writers*each {
							return done
						}
						return nil
					})
					if !errors.Is(err, done) {
						errs <- err
						return
					}
				}
			})
		}
		undo := errors.New("undo")
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					if i%3 == 0 { // one that fails leaves no hole
						if err := d.Write(ctx, func(tx *db.Tx) error {
							if _, err := event.Append(tx, "x.never", "s", nil); err != nil {
								return err
							}
							return undo
						}); !errors.Is(err, undo) {
							errs <- err
						}
					}
					if err := d.Write(ctx, func(tx *db.Tx) error {
						_, err := event.Append(tx, "x.made", fmt.Sprintf("w/%d", w), i)
						return err
					}); err != nil {
						errs <- err
					}
				}
			})
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			t.Error(err)
		}
		if head, err := event.Verify(t.Context(), d, nil); err != nil || head.ID != writers*each {
			t.Errorf("%+v %v", head, err)
		}
	})
}

// What cannot be said alike on both engines is not written.
func TestAppendRefusesBadText(t *testing.T) {
	dbtest.Each(t, []db.Schema{event.Schema()}, func(t *testing.T, d *db.DB) {
		for _, bad := range []string{"a\x00b", "\xff", strings.Repeat("x", 2000)} {
			err := d.Write(t.Context(), func(tx *db.Tx) error { _, err := event.Append(tx, "x.y", bad, nil); return err })
			if fault.Code(err) != "event_text" {
				t.Errorf("%.10q: %v", bad, err)
			}
		}
	})
}

// `drover audit verify` by its exit codes, and `drover events`.
func TestVerbs(t *testing.T) {
	d := dbtest.SQLite(t, event.Schema(), auth.Schema())
	log := slog.New(slog.DiscardHandler)
	people := auth.NewStore(d)
	srv := web.New(web.Config{Version: "test", Log: log, Authenticate: people.Request})
	event.Routes(srv, d, auth.Need)
	ts := httptest.NewServer(srv)
	defer ts.Close()
	token, err := people.Bootstrap(t.Context(), func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	call := func(token, head string) (string, int) {
		var out bytes.Buffer
		var v event.AuditVerbs
		v.Verify.Head = head
		err := v.Verify.Run(&cli.Env{Ctx: t.Context(), Out: &out, Err: &out, Client: &web.Client{Base: ts.URL, Token: token, HTTP: http.DefaultClient}})
		if err != nil {
			fmt.Fprint(&out, fault.Code(err))
		}
		return out.String(), fault.ExitCode(err)
	}
	out, code := call(token, "")
	if code != 0 || !strings.Contains(out, "clean: 2 events, head 2:") {
		t.Fatalf("clean: %s %d", out, code)
	}
	head := strings.TrimSpace(out[strings.LastIndex(out, " "):])
	for name, c := range map[string]struct {
		token, head, want string
		code              int
	}{
		"with its head":       {token, head, "clean", 0},
		"nobody":              {"", "", "token_needed", 5},
		"a wrong token":       {"drv_x", "", "token_bad", 5},
		"no head":             {token, "x", "head", 1},
		"another head":        {token, "2:" + strings.Repeat("0", 64), "ledger_broken", 1},
		"a head that is gone": {token, "9:" + strings.Repeat("0", 64), "ledger_broken", 1},
		"a negative head":     {token, "-1:" + strings.Repeat("0", 64), "ledger_broken", 1},
	} {
		if out, code := call(c.token, c.head); code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%s: %s %d", name, out, code)
		}
	}
	if err := d.Write(t.Context(), func(tx *db.Tx) error { _, err := tx.Exec("UPDATE event SET actor = 'eve' WHERE id = 1"); return err }); err != nil {
		t.Fatal(err)
	}
	if out, code := call(token, ""); code != 1 || !strings.Contains(out, "ledger_broken") {
		t.Errorf("changed: %s %d", out, code)
	}
	var buf bytes.Buffer
	v := event.Verb{Limit: 10, Kind: "auth."}
	if err := v.Run(&cli.Env{Ctx: t.Context(), Out: &buf, Err: &buf, Format: "json", Client: &web.Client{Base: ts.URL, HTTP: http.DefaultClient}}); err != nil {
		t.Fatal(err)
	}
	var es []event.Event
	if err := json.Unmarshal(buf.Bytes(), &es); err != nil || len(es) != 2 || es[0].ID != 1 {
		t.Errorf("events: %s %v", buf.String(), err)
	}
}
