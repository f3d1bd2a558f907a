package event

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"drover/internal/db"
	"drover/internal/fault"
)

//go:embed migrations
var migrations embed.FS

// Schema is the ledger's table.
func Schema() db.Schema { return db.Schema{Name: "event", FS: migrations} }

// Event is one line of the ledger.
type Event struct {
	ID      int64           `json:"id"`
	At      time.Time       `json:"at"`
	Actor   string          `json:"actor"`
	Kind    string          `json:"kind"`    // "build.done": the domain, a dot, what happened
	Subject string          `json:"subject"` // "build/12", "tag/stream-10-fleet"
	Data    json.RawMessage `json:"data"`
	Hash    string          `json:"hash"` // hex sha256 of the line and of the hash before it
}

// maxData bounds one line: the ledger is for facts, not for bulk.
const maxData = 64 << 10

// maxName bounds kind, subject and actor of a line.
const maxName = 1000

// Now is the point in history after every line, for rows that carry since and until: a row
// is in force at a point when since <= point and until is 0 or later.
const Now int64 = math.MaxInt64

// Append writes a line in tx and returns its number. data is stored as JSON.
func Append(tx *db.Tx, kind, subject string, data any) (int64, error) {
	text, err := json.Marshal(data)
	if err != nil {
		return 0, fault.Internal("event_data", "the data of a %s event is not JSON", kind).Wrap(err)
	}
	if len(text) > maxData {
		return 0, fault.Internal("event_data", "the data of a %s event has %d bytes, over %d", kind, len(text), maxData)
	}
	// SQLite would keep what PostgreSQL refuses, and JSON can't say it.
	for _, s := range []string{kind, subject, tx.Actor()} {
		if !utf8.ValidString(s) || strings.ContainsRune(s, 0) || len(s) > maxName {
			return 0, fault.Invalid("event_text", "%.100q cannot stand in a line of the ledger", s)
		}
	}
	var last int64
	prev := make([]byte, sha256.Size)
	if err := tx.QueryRow("SELECT id, hash FROM event ORDER BY id DESC LIMIT 1").Scan(&last, &prev); err != nil && !db.NoRow(err) {
		return 0, err
	}
	id := last + 1
	hash := chain(prev, id, tx.Now(), tx.Actor(), kind, subject, string(text))
	_, err = tx.Exec("INSERT INTO event (id, at, actor, kind, subject, data, prev, hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
		id, tx.Now(), tx.Actor(), kind, subject, string(text), prev, hash)
	return id, err
}

// chain is the hash of a line: every field with its length, after the hash before it.
func chain(prev []byte, id, at int64, texts ...string) []byte {
	b := append(make([]byte, 0, 512), prev...)
	b = binary.BigEndian.AppendUint64(b, uint64(id))
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	for _, s := range texts {
		b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
	}
	h := sha256.Sum256(b)
	return h[:]
}

// Filter chooses lines. Zero fields choose all.
type Filter struct {
	After   int64  // only lines with a higher number
	Before  int64  // only lines with a lower number
	Kind    string // this kind, or with a trailing dot all kinds of a domain: "build."
	Subject string // this subject
	Actor   string // this actor
	Newest  bool   // newest first instead of oldest first
	Limit   int    // at most so many; 0 means 100, the bound is 1000
}

// where is the condition of a filter, with its parameters.
func (f Filter) where() (string, []any) {
	where := []string{"1 = 1"}
	var args []any
	and := func(cond string, v any) {
		args = append(args, v)
		where = append(where, cond+"$"+strconv.Itoa(len(args)))
	}
	if f.After > 0 {
		and("id > ", f.After)
	}
	if f.Before > 0 {
		and("id < ", f.Before)
	}
	if strings.HasSuffix(f.Kind, ".") {
		and("kind LIKE ", db.Like(f.Kind))
		where[len(where)-1] += ` ESCAPE '\'`
	} else if f.Kind != "" {
		and("kind = ", f.Kind)
	}
	if f.Subject != "" {
		and("subject = ", f.Subject)
	}
	if f.Actor != "" {
		and("actor = ", f.Actor)
	}
	return strings.Join(where, " AND "), args
}

// Count counts the lines that a filter lets through, before and after any of them.
func Count(tx *db.Tx, f Filter) (n int64, err error) {
	f.After, f.Before = 0, 0
	if f == (Filter{Newest: f.Newest, Limit: f.Limit}) {
		return Last(tx) // numbers are dense
	}
	where, args := f.where()
	err = tx.QueryRow("SELECT COUNT(*) FROM event WHERE "+where, args...).Scan(&n)
	return n, err
}

// List reads lines.
func List(tx *db.Tx, f Filter) ([]Event, error) {
	where, args := f.where()
	q := "SELECT id, at, actor, kind, subject, data, hash FROM event WHERE " + where + " ORDER BY id"
	if f.Newest {
		q += " DESC"
	}
	if f.Limit <= 0 {
		f.Limit = 100
	}
	q += " LIMIT " + strconv.Itoa(min(f.Limit, 1000))
	var out []Event
	err := tx.Each(func(scan func(...any) error) error {
		var e Event
		var at int64
		var data string
		var hash []byte
		if err := scan(&e.ID, &at, &e.Actor, &e.Kind, &e.Subject, &data, &hash); err != nil {
			return err
		}
		e.At, e.Data, e.Hash = db.Time(at), json.RawMessage(data), hex.EncodeToString(hash)
		out = append(out, e)
		return nil
	}, q, args...)
	return out, err
}

// Last is the number of the newest line, 0 when there is none.
func Last(tx *db.Tx) (int64, error) {
	var id int64
	err := tx.QueryRow("SELECT COALESCE(MAX(id), 0) FROM event").Scan(&id)
	return id, err
}

// AsOf resolves the point in history that a person names: "" is now, a number is that
// event, a time (RFC 3339) is the last event at or before it.
func AsOf(tx *db.Tx, at string) (int64, error) {
	last, err := Last(tx)
	if err != nil || at == "" {
		return last, err
	}
	if n, err := strconv.ParseInt(at, 10, 64); err == nil {
		if n < 0 || n > last {
			return 0, fault.NotFound("event_unknown", "there is no event %d; the newest is %d", n, last).Fix("see `drover events`")
		}
		return n, nil
	}
	ts, err := time.Parse(time.RFC3339, at)
	if err != nil {
		return 0, fault.Invalid("as_of", "%.60q is neither an event number nor a time", at).Fix("give a number, or a time such as 2026-11-24T03:00:00Z")
	}
	var id int64
	err = tx.QueryRow("SELECT COALESCE(MAX(id), 0) FROM event WHERE at <= $1", ts.UnixMicro()).Scan(&id)
	return id, err
}

// pollInterval is how long a follower waits before it looks by itself: another
// server on the same database cannot wake it.
const pollInterval = 2 * time.Second

// Follow calls fn with the lines after number f.After, oldest first, as they come, until
// ctx ends or fn fails. The caller keeps the number of the last line it has dealt with.
func Follow(ctx context.Context, d *db.DB, f Filter, fn func([]Event) error) error {
	f.Newest, f.Before = false, 0
	timer := time.NewTimer(pollInterval)
	defer timer.Stop()
	for {
		changed := d.Changed()
		var es []Event
		err := d.Read(ctx, func(tx *db.Tx) (err error) { es, err = List(tx, f); return err })
		if err != nil {
			return err
		}
		if len(es) > 0 {
			if err := fn(es); err != nil {
				return err
			}
			f.After = es[len(es)-1].ID
			continue
		}
		timer.Reset(pollInterval)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-timer.C:
		}
	}
}

// Head is the state of the ledger that an auditor writes down: who keeps it can later
// prove that nothing up to it was changed or cut off.
type Head struct {
	ID   int64  `json:"id"`
	Hash string `json:"hash"`
}

// Verify walks the whole chain and returns its head. The error names the first line
// that was changed, removed or put in. With a known head it also proves that the
// ledger still holds that line unchanged.
func Verify(ctx context.Context, d *db.DB, known *Head) (Head, error) {
	var head Head
	prev := make([]byte, sha256.Size)
	seen := known == nil
	broken := func(id int64, what string) error {
		return fault.Conflict("ledger_broken", "event %d: %s", id, what).
			Fix("somebody changed the database behind drover; compare with a backup from before event %d", id)
	}
	for {
		n := 0
		err := d.Read(ctx, func(tx *db.Tx) error {
			return tx.Each(func(scan func(...any) error) error {
				var id, at int64
				var actor, kind, subject, data string
				var p, h []byte
				if err := scan(&id, &at, &actor, &kind, &subject, &data, &p, &h); err != nil {
					return err
				}
				n++
				switch {
				case id != head.ID+1:
					return broken(head.ID+1, "is missing")
				case !bytes.Equal(p, prev):
					return broken(id, "does not carry the hash of the line before it")
				case !bytes.Equal(h, chain(prev, id, at, actor, kind, subject, data)):
					return broken(id, "its text does not match its hash")
				}
				prev = h
				head = Head{ID: id, Hash: hex.EncodeToString(h)}
				if known != nil && id == known.ID {
					if head.Hash != known.Hash {
						return broken(id, "its hash is not the one that was written down")
					}
					seen = true
				}
				return nil
			}, "SELECT id, at, actor, kind, subject, data, prev, hash FROM event WHERE id > $1 ORDER BY id LIMIT 5000", head.ID)
		})
		if err != nil {
			return head, err
		}
		if n == 0 {
			break
		}
	}
	if !seen {
		return head, broken(known.ID, "was written down once and is gone")
	}
	return head, nil
}
