package db

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"regexp"
	"testing/fstest"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// Schema is one owner's migrations: files "migrations/NNNN_what.sql" in goose's
// form, written in PostgreSQL's types. Each owner counts its own versions.
type Schema struct {
	Name string // the owner: "event", "build"
	FS   fs.FS
}

var (
	reBigint = regexp.MustCompile(`\bBIGINT\b`)
	reBytea  = regexp.MustCompile(`\bBYTEA\b`)
	reTable  = regexp.MustCompile(`(?m)^\);`)
)

// sqliteDDL rewrites PostgreSQL's DDL for SQLite: its type names, and STRICT
// tables, so that a wrong type is refused there too.
func sqliteDDL(b []byte) []byte {
	b = reBigint.ReplaceAll(b, []byte("INTEGER"))
	b = reBytea.ReplaceAll(b, []byte("BLOB"))
	return reTable.ReplaceAll(b, []byte(") STRICT;"))
}

// Migrate brings each schema to its newest version, in the order given.
func (d *DB) Migrate(ctx context.Context, schemas ...Schema) error {
	for _, s := range schemas {
		if err := d.migrate(ctx, s); err != nil {
			return fmt.Errorf("schema %s: %w", s.Name, d.explain(err))
		}
	}
	return nil
}

func (d *DB) migrate(ctx context.Context, s Schema) error {
	sub, err := fs.Sub(s.FS, "migrations")
	if err != nil {
		return err
	}
	opts := []goose.ProviderOption{goose.WithTableName(s.Name + "_schema"), goose.WithDisableGlobalRegistry(true)}
	dialect := goose.DialectPostgres
	if d.pg != nil {
		l, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 120))
		if err != nil {
			return err
		}
		opts = append(opts, goose.WithSessionLocker(l))
	} else {
		dialect = goose.DialectSQLite3
		files := fstest.MapFS{}
		names, err := fs.Glob(sub, "*.sql")
		if err != nil {
			return err
		}
		for _, n := range names {
			b, err := fs.ReadFile(sub, n)
			if err != nil {
				return err
			}
			files[n] = &fstest.MapFile{Data: sqliteDDL(b)}
		}
		sub = files
	}
	up := func(pool *sql.DB) error {
		p, err := goose.NewProvider(dialect, pool, sub, opts...)
		if err != nil {
			return err
		}
		// The provider borrows our pool; closing it would close the database.
		_, err = p.Up(ctx)
		return err
	}
	if d.pg != nil {
		return up(d.pg)
	}
	return d.write.lend(up)
}
