package db

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"drover/internal/fault"

	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // the "pgx" driver of database/sql
	"modernc.org/sqlite"
)

// Options are what a DB needs besides its address.
type Options struct {
	Now func() time.Time // the clock of every transaction; nil means time.Now
	Log *slog.Logger     // nil means discard
}

// DB is an open database. It is safe for concurrent use.
type DB struct {
	pg          *sql.DB   // PostgreSQL; nil with SQLite
	write, read *sessions // of SQLite
	now         func() time.Time
	log         *slog.Logger

	mu      sync.Mutex    // guards changed
	changed chan struct{} // closed and replaced after each committed write
}

// Open opens the database at addr: "postgres://…" for PostgreSQL, else
// "sqlite:PATH" or a plain path of a SQLite file, which is created when missing.
func Open(ctx context.Context, addr string, opt Options) (*DB, error) {
	d := &DB{now: opt.Now, log: opt.Log, changed: make(chan struct{})}
	if d.now == nil {
		d.now = time.Now
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if strings.HasPrefix(addr, "postgres://") || strings.HasPrefix(addr, "postgresql://") {
		err = d.openPostgres(ctx, addr)
	} else {
		err = d.openSQLite(ctx, strings.TrimPrefix(addr, "sqlite:"))
	}
	if err != nil {
		_ = d.Close()
		return nil, fault.Unavailable("db_open", "the database %s cannot be opened", redact(addr)).Wrap(err).
			Fix("check the address, the rights on it and that the server runs")
	}
	return d, nil
}

func (d *DB) openPostgres(ctx context.Context, addr string) (err error) {
	if d.pg, err = sql.Open("pgx", addr); err != nil {
		return err
	}
	// One pool serves both: writes serialize on the advisory lock, and the bound
	// keeps a few connections free for reads while writes queue.
	d.pg.SetMaxOpenConns(12)
	d.pg.SetMaxIdleConns(6)
	return d.pg.PingContext(ctx)
}

func (d *DB) openSQLite(ctx context.Context, path string) error {
	if path == "" {
		return errors.New("empty path")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	// FULL: a commit that was answered is on the disk.
	common := "_pragma=busy_timeout(20000)&_pragma=foreign_keys(1)&_pragma=synchronous(FULL)"
	u := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: abs}).EscapedPath()}).String()
	pool, err := sql.Open("sqlite", u+"?_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=cache_size(-8000)&"+common)
	if err != nil {
		return err
	}
	d.write = newSessions(pool, 1, "BEGIN IMMEDIATE")
	// The first writer connection makes the file and sets WAL before any reader opens it.
	if err := pool.PingContext(ctx); err != nil {
		return err
	}
	if pool, err = sql.Open("sqlite", u+"?_pragma=query_only(1)&_pragma=cache_size(-4000)&"+common); err != nil {
		return err
	}
	d.read = newSessions(pool, 6, "BEGIN")
	return nil
}

// redact hides a password in a database address.
func redact(addr string) string {
	if u, err := url.Parse(addr); err == nil && u.User != nil {
		return u.Redacted()
	}
	return addr
}

// Close closes all connections.
func (d *DB) Close() error {
	var errs []error
	if d.pg != nil {
		errs = append(errs, d.pg.Close())
	}
	for _, p := range []*sessions{d.write, d.read} {
		if p != nil {
			errs = append(errs, p.close())
		}
	}
	return errors.Join(errs...)
}

// Postgres tells whether the engine is PostgreSQL.
func (d *DB) Postgres() bool { return d.pg != nil }

// Now is the database's clock, in microseconds since 1970 UTC.
func (d *DB) Now() int64 { return d.now().UnixMicro() }

// Changed returns a channel that is closed after the next write of this process
// commits. Take it before reading the rows, then wait on it: no change is missed.
func (d *DB) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

func (d *DB) announce() {
	d.mu.Lock()
	close(d.changed)
	d.changed = make(chan struct{})
	d.mu.Unlock()
}

type actorKey struct{}
type insideKey struct{}

// WithActor names who acts in ctx; the ledger writes the name down.
func WithActor(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, actorKey{}, name)
}

// Tx is one transaction with its time and its actor.
type Tx struct {
	ctx   context.Context
	tx    *sql.Tx  // with PostgreSQL
	s     *session // with SQLite
	of    *sessions
	d     *DB
	now   int64
	actor string
	after []func()
}

// Ctx is the transaction's context. A Write or Read with it fails at once rather
// than waiting for itself.
func (t *Tx) Ctx() context.Context { return t.ctx }

// Now is the transaction's time, in microseconds since 1970 UTC.
func (t *Tx) Now() int64 { return t.now }

// Actor is the name of who acts, or "system".
func (t *Tx) Actor() string { return t.actor }

// AfterCommit runs fn once the transaction has committed, on the goroutine of Write.
func (t *Tx) AfterCommit(fn func()) { t.after = append(t.after, fn) }

// Exec runs a statement and returns how many rows it changed.
func (t *Tx) Exec(query string, args ...any) (int64, error) {
	var r sql.Result
	var err error
	if t.s != nil {
		r, err = t.s.exec(t.ctx, query, args...)
	} else {
		r, err = t.tx.ExecContext(t.ctx, query, args...)
	}
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// QueryRow runs a query for at most one row. It is to be scanned before anything else is asked.
func (t *Tx) QueryRow(query string, args ...any) *sql.Row {
	if t.s != nil {
		return t.s.row(t.ctx, query, args...)
	}
	return t.tx.QueryRowContext(t.ctx, query, args...)
}

// Each runs a query and calls fn with the scan function of each row. fn must not ask the
// transaction for anything: one connection has one answer at a time.
func (t *Tx) Each(fn func(scan func(dest ...any) error) error, query string, args ...any) error {
	var rows *sql.Rows
	var err error
	if t.s != nil {
		rows, err = t.s.query(t.ctx, query, args...)
	} else {
		rows, err = t.tx.QueryContext(t.ctx, query, args...)
	}
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := fn(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// NextID is the next free number of a table whose rows are never deleted. It is
// safe because write transactions run alone.
func (t *Tx) NextID(table string) (int64, error) {
	if strings.ContainsFunc(table, func(r rune) bool { return (r < 'a' || r > 'z') && r != '_' }) {
		return 0, fault.Internal("db_table", "bad table name %q", table)
	}
	var id int64
	err := t.QueryRow("SELECT COALESCE(MAX(id), 0) + 1 FROM " + table).Scan(&id)
	return id, err
}

// Write runs fn in a write transaction. When fn returns an error, nothing of it
// stays. fn must not wait for anything but the database.
func (d *DB) Write(ctx context.Context, fn func(*Tx) error) error {
	tx, err := d.begin(ctx, d.write, nil)
	if err != nil {
		return err
	}
	defer tx.end()
	if d.pg != nil {
		if _, err := tx.Exec("SELECT pg_advisory_xact_lock(7261)"); err != nil {
			return d.explain(err)
		}
	}
	tx.now = d.Now()
	if err := fn(tx); err != nil {
		return d.explain(err)
	}
	if err := tx.commit(ctx); err != nil {
		return d.explain(err)
	}
	for _, f := range tx.after {
		f()
	}
	d.announce()
	return nil
}

// Read runs fn in a read transaction that sees one state of the database.
func (d *DB) Read(ctx context.Context, fn func(*Tx) error) error {
	tx, err := d.begin(ctx, d.read, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return err
	}
	defer tx.end()
	tx.now = d.Now()
	return d.explain(fn(tx))
}

// begin begins a transaction: on a connection of p, or in PostgreSQL with the options.
func (d *DB) begin(ctx context.Context, p *sessions, opt *sql.TxOptions) (*Tx, error) {
	if ctx.Value(insideKey{}) == d {
		return nil, fault.Internal("db_nested", "a transaction was begun inside another")
	}
	t := &Tx{ctx: context.WithValue(ctx, insideKey{}, d), d: d, of: p}
	t.actor, _ = ctx.Value(actorKey{}).(string)
	if t.actor == "" {
		t.actor = "system"
	}
	var err error
	if p != nil {
		t.s, err = p.take(ctx)
	} else {
		t.tx, err = d.pg.BeginTx(ctx, opt)
	}
	if err != nil {
		return nil, d.explain(err)
	}
	return t, nil
}

// commit makes what was done durable. A transaction whose context has ended is not committed.
func (t *Tx) commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if t.tx != nil {
		return t.tx.Commit()
	}
	// Without the context: it must be known whether it was done.
	_, err := t.s.exec(context.WithoutCancel(ctx), "COMMIT")
	if err == nil {
		t.release(true)
	}
	return err
}

// release gives the connection to SQLite back.
func (t *Tx) release(committed bool) {
	t.of.put(t.s, committed)
	t.s, t.of = nil, nil
}

// end gives up what was not committed.
func (t *Tx) end() {
	switch {
	case t.tx != nil:
		_ = t.tx.Rollback() // after a commit it reports ErrTxDone, else the first error counts
	case t.s != nil:
		t.release(false)
	}
}

// SQLite's result codes, https://www.sqlite.org/rescode.html
const (
	sqliteFull       = 13
	sqliteBusy       = 5
	sqliteUnique     = 2067
	sqlitePrimaryKey = 1555
)

// explain turns the errors that a person can act on into faults and leaves the rest.
func (d *DB) explain(err error) error {
	if err == nil {
		return nil
	}
	var se *sqlite.Error
	var pe *pgconn.PgError
	switch {
	case errors.As(err, &se) && se.Code()&0xff == sqliteFull, errors.As(err, &pe) && pe.Code == "53100":
		return fault.Unavailable("disk_full", "the database's disk is full").Wrap(err).Fix("free space; nothing was changed")
	case errors.As(err, &pe) && (pe.Code == "22021" || pe.Code == "22P05"):
		return fault.Invalid("text", "a text holds a byte that no text has").Wrap(err).Fix("send UTF-8 without NUL")
	case errors.As(err, &se) && se.Code()&0xff == sqliteBusy:
		return fault.Unavailable("db_busy", "the database is held by another process").Wrap(err).Fix("stop the other process, then retry")
	}
	return err
}

// IsUnique tells whether err says that a unique key exists already.
func IsUnique(err error) bool {
	var se *sqlite.Error
	if errors.As(err, &se) {
		return se.Code() == sqliteUnique || se.Code() == sqlitePrimaryKey
	}
	var pe *pgconn.PgError
	return errors.As(err, &pe) && pe.Code == "23505"
}

// NoRow tells whether err says that a QueryRow found nothing.
func NoRow(err error) bool { return errors.Is(err, sql.ErrNoRows) }

// Bool is b as the BIGINT that both engines store.
func Bool(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// Time is a stored time as a time.Time in UTC; zero stays zero.
func Time(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// Like makes a LIKE pattern with ESCAPE '\' that matches text starting with prefix.
func Like(prefix string) string {
	return strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(prefix) + "%"
}

// String names the engine.
func (d *DB) String() string {
	if d.pg != nil {
		return "PostgreSQL"
	}
	return "SQLite"
}

var _ fmt.Stringer = (*DB)(nil)

// List is texts as the one parameter of a query: FROM json_each($1), value->>'v'.
func List[T ~string](vs []T) string {
	m := make(map[string]map[string]T, len(vs))
	for i, v := range vs {
		m[strconv.Itoa(i)] = map[string]T{"v": v}
	}
	b, _ := json.Marshal(m) // texts always are JSON
	return string(b)
}

// Column runs a query of one column.
func Column[T any](tx *Tx, query string, args ...any) (out []T, err error) {
	err = tx.Each(func(scan func(...any) error) error {
		var v T
		err := scan(&v)
		out = append(out, v)
		return err
	}, query, args...)
	return out, err
}
