package rpmdb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"

	"drover/internal/fault"
)

// homes are the directories below root where rpm keeps its database: EL10 and Fedora, EL9 and
// Debian, and hosts that boot images.
var homes = []string{"usr/lib/sysimage/rpm", "var/lib/rpm", "usr/share/rpm"}

// busyTimeout is how long a reader waits for a lock, in milliseconds. Readers of a database in WAL
// mode only wait while another process recovers it.
const busyTimeout = 5000

// clean is a root as other functions want it; none is the host's own.
func clean(root string) string {
	if root == "" {
		return "/"
	}
	return filepath.Clean(root)
}

// find is the path of the database below root, its symbolic links followed as if root were "/".
func find(root string) (string, error) {
	root = clean(root)
	for _, home := range homes {
		p, err := within(root, filepath.Join(home, "rpmdb.sqlite"))
		if err == nil {
			return p, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return "", fault.Unavailable("rpmdb_unreadable", "the package database in %s cannot be reached", filepath.Join(root, home)).Wrap(err)
		}
	}
	for _, home := range homes {
		for _, old := range []string{"Packages", "Packages.db"} {
			if p, err := within(root, filepath.Join(home, old)); err == nil {
				return "", fault.Invalid("rpmdb_format", "the package database %s is not of the format that rpm has since EL9", p).
					Fix("run `rpmdb --rebuilddb` after setting %%_db_backend to sqlite, or update the host")
			}
		}
	}
	return "", fault.NotFound("rpmdb_missing", "there is no package database below %s", root).Fix("this host has no rpm, or never installed a package with it")
}

// within resolves a path below root. The descriptor that it takes is one that only names the file:
// closing any other kind would drop the locks that this process has on it (fcntl(2)).
func within(root, rel string) (string, error) {
	if root == "/" {
		return filepath.EvalSymlinks("/" + rel)
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, rel, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// part is the size and the time of a file of the database, empty when there is none.
func part(path string) string {
	var s unix.Stat_t
	if unix.Stat(path, &s) != nil {
		return ""
	}
	return fmt.Sprintf("%d.%d.%d.%d", s.Ino, s.Size, s.Mtim.Sec, s.Mtim.Nsec)
}

func stamp(path string) string { return part(path) + "/" + part(path+"-wal") }

// Stamp changes when the database below root may have changed, and is cheap to get. It is empty
// when there is no database.
func Stamp(root string) string {
	p, err := find(root)
	if err != nil {
		return ""
	}
	return p + "/" + stamp(p)
}

// attempts is how often a database that changes while it is read without locks is read anew.
const attempts = 5

// read runs fn on the database below root, in one transaction. It may run fn more than once.
func read(ctx context.Context, root string, fn func(*sql.Tx) error) error {
	for range attempts {
		path, err := find(root)
		if err != nil {
			return err
		}
		// Without a log there is no writer, and whoever opens the database as usual would make
		// the log and its index. So it is read as a file that nobody changes, and read anew
		// should somebody have changed it all the same.
		still := part(path+"-wal") == ""
		before := stamp(path)
		err = readFile(ctx, path, still, fn)
		if !still || stamp(path) == before || ctx.Err() != nil {
			return err
		}
	}
	return fault.Unavailable("rpmdb_busy", "the package database below %s changed each time it was read", root).Fix("try again when rpm or dnf has ended")
}

func readFile(ctx context.Context, path string, still bool, fn func(*sql.Tx) error) (err error) {
	q := url.Values{"mode": {"ro"}, "_pragma": {fmt.Sprintf("busy_timeout(%d)", busyTimeout), "query_only(1)", "trusted_schema(0)", "cache_size(-1024)"}}
	if still {
		q.Set("immutable", "1")
	}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+q.Encode())
	if err != nil {
		return broken(path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return broken(path, err)
	}
	return broken(path, errors.Join(fn(tx), tx.Rollback()))
}

// broken says what an error of SQLite means to the person who reads it.
func broken(path string, err error) error {
	var se *sqlite.Error
	if !errors.As(err, &se) {
		return err
	}
	switch se.Code() & 0xff {
	case 5, 6: // SQLITE_BUSY, SQLITE_LOCKED
		return fault.Unavailable("rpmdb_busy", "the package database %s is locked by another process", path).Wrap(err).Fix("try again when rpm or dnf has ended")
	case 11, 26: // SQLITE_CORRUPT, SQLITE_NOTADB
		return fault.Invalid("rpmdb_damaged", "the package database %s is damaged", path).Wrap(err).Fix("run `rpmdb --rebuilddb`")
	case 1: // SQLITE_ERROR: the tables are others than rpm's
		if strings.Contains(se.Error(), "no such table") {
			return fault.Invalid("rpmdb_damaged", "the package database %s has not the tables of rpm", path).Wrap(err).Fix("run `rpmdb --rebuilddb`")
		}
	}
	return fault.Unavailable("rpmdb_unreadable", "the package database %s cannot be read", path).Wrap(err)
}
