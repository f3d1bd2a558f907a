package db

import (
	"context"
	"database/sql"
	"errors"
	"regexp"
	"strconv"
	"sync"
)

// sessions are the connections to SQLite, each with the statements that it has parsed:
// database/sql forgets those with the transaction, and parsing them again costs more than
// running them. PostgreSQL's driver keeps them itself.
type sessions struct {
	pool  *sql.DB
	begin string
	slots chan struct{} // one for each connection that may be open

	mu     sync.Mutex // guards what follows
	free   []*session // the one used last goes first: its pages are in memory
	closed bool
}

// session is one connection, for one transaction at a time.
type session struct {
	conn  *sql.Conn
	texts map[string]*sql.Stmt // of texts that came before; nil for those that came once
}

// maxTexts bounds how many texts a connection remembers: drover has some hundreds, and some are
// put together.
const maxTexts = 400

func newSessions(pool *sql.DB, most int, begin string) *sessions {
	pool.SetMaxOpenConns(most)
	pool.SetMaxIdleConns(most)
	return &sessions{pool: pool, begin: begin, slots: make(chan struct{}, most)}
}

// take waits for a connection and begins a transaction on it.
func (p *sessions) take(ctx context.Context) (*session, error) {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p.mu.Lock()
	var s *session
	if n := len(p.free); n > 0 {
		s, p.free = p.free[n-1], p.free[:n-1]
	}
	p.mu.Unlock()
	if s == nil {
		c, err := p.pool.Conn(ctx)
		if err != nil {
			<-p.slots
			return nil, err
		}
		s = &session{c, map[string]*sql.Stmt{}}
	}
	if _, err := s.exec(ctx, p.begin); err != nil {
		p.put(s, false)
		return nil, err
	}
	return s, nil
}

// put takes a connection back. Without a commit, what was done is undone first.
func (p *sessions) put(s *session, committed bool) {
	if !committed {
		// SQLite may have ended the transaction by itself, as on a full disk: then this fails.
		_, _ = s.exec(context.Background(), "ROLLBACK")
	}
	p.mu.Lock()
	if p.closed {
		_ = s.close() // of a database that is closed
	} else {
		p.free = append(p.free, s)
	}
	p.mu.Unlock()
	<-p.slots
}

// close closes the connections, those in use when they come back.
func (p *sessions) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var errs []error
	for _, s := range p.free {
		errs = append(errs, s.close())
	}
	p.free = nil
	return errors.Join(append(errs, p.pool.Close())...)
}

// lend gives the connections to somebody who works with database/sql, for as long as fn runs.
func (p *sessions) lend(fn func(*sql.DB) error) error {
	for range cap(p.slots) {
		p.slots <- struct{}{}
	}
	p.mu.Lock()
	var errs []error
	for _, s := range p.free {
		errs = append(errs, s.close())
	}
	p.free = nil
	p.mu.Unlock()
	errs = append(errs, fn(p.pool))
	for range cap(p.slots) {
		<-p.slots
	}
	return errors.Join(errs...)
}

func (s *session) close() error {
	var errs []error
	for _, t := range s.texts {
		if t != nil {
			errs = append(errs, t.Close())
		}
	}
	return errors.Join(append(errs, s.conn.Close())...)
}

// prepared gives the statement of a text that came before. It is nil for a text that is new, and
// for one that can't be prepared: running it tells what is wrong.
func (s *session) prepared(ctx context.Context, query string) *sql.Stmt {
	p, before := s.texts[query]
	if before && p == nil {
		p, _ = s.conn.PrepareContext(ctx, positional(query))
	}
	if before || len(s.texts) < maxTexts {
		s.texts[query] = p
	}
	return p
}

var parameter = regexp.MustCompile(`\$[0-9]+`)

// positional writes the parameters of a statement as SQLite binds them fastest: "$1" is a name to it,
// which the driver looks up for each value. A text that does not name $1 to $n once each, in this
// order, stays.
func positional(query string) string {
	n, ordered := 0, true
	out := parameter.ReplaceAllStringFunc(query, func(name string) string {
		n++
		ordered = ordered && name == "$"+strconv.Itoa(n)
		return "?"
	})
	if !ordered {
		return query
	}
	return out
}

func (s *session) exec(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if p := s.prepared(ctx, query); p != nil { //nolint:sqlclosecheck // it is kept with the connection
		return p.ExecContext(ctx, args...)
	}
	return s.conn.ExecContext(ctx, query, args...)
}

func (s *session) query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if p := s.prepared(ctx, query); p != nil { //nolint:sqlclosecheck // it is kept with the connection
		return p.QueryContext(ctx, args...)
	}
	return s.conn.QueryContext(ctx, query, args...)
}

func (s *session) row(ctx context.Context, query string, args ...any) *sql.Row {
	if p := s.prepared(ctx, query); p != nil { //nolint:sqlclosecheck // it is kept with the connection
		return p.QueryRowContext(ctx, args...)
	}
	return s.conn.QueryRowContext(ctx, query, args...)
}
