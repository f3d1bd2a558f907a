package dbtest

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"drover/internal/db"
)

// Each runs fn as a subtest on a fresh database of each engine, with schemas migrated.
func Each(t *testing.T, schemas []db.Schema, fn func(t *testing.T, d *db.DB)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { fn(t, SQLite(t, schemas...)) })
	t.Run("postgres", func(t *testing.T) { fn(t, Postgres(t, schemas...)) })
}

// SQLite opens a fresh SQLite database that lives as long as the test.
func SQLite(t testing.TB, schemas ...db.Schema) *db.DB {
	t.Helper()
	return open(t, filepath.Join(t.TempDir(), "drover.db"), schemas)
}

// Postgres opens a fresh PostgreSQL database that lives as long as the test.
func Postgres(t testing.TB, schemas ...db.Schema) *db.DB {
	t.Helper()
	return open(t, PostgresURL(t), schemas)
}

func open(t testing.TB, addr string, schemas []db.Schema) *db.DB {
	t.Helper()
	d, err := db.Open(context.Background(), addr, db.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	if err := d.Migrate(context.Background(), schemas...); err != nil {
		t.Fatal(err)
	}
	return d
}

// cluster is the PostgreSQL server that all test processes of a run share.
type cluster struct {
	once sync.Once
	url  string // of the maintenance database, without its name
	err  error
}

var (
	shared cluster      //nolint:gochecknoglobals // one server per test process, by design
	serial atomic.Int64 //nolint:gochecknoglobals // names of databases
)

// PostgresURL makes a fresh database and returns its address. DROVER_TEST_POSTGRES
// may name a server to use ("postgres://user@host:port"); else one is started.
func PostgresURL(t testing.TB) string {
	t.Helper()
	shared.once.Do(func() {
		if shared.url = strings.TrimSuffix(os.Getenv("DROVER_TEST_POSTGRES"), "/"); shared.url == "" {
			shared.url, shared.err = start()
		}
	})
	if shared.err != nil {
		t.Fatalf("no PostgreSQL for the test: %v (scripts/setup test installs it)", shared.err)
	}
	name := fmt.Sprintf("t%d_%d_%d", os.Getpid(), time.Now().UnixNano()%1e9, serial.Add(1))
	admin, err := sql.Open("pgx", address(shared.url, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Exec("CREATE DATABASE " + name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer admin.Close()
		if _, err := admin.Exec("DROP DATABASE IF EXISTS " + name + " WITH (FORCE)"); err != nil {
			t.Logf("drop %s: %v", name, err)
		}
	})
	return address(shared.url, name)
}

func address(base, name string) string {
	if b, q, ok := strings.Cut(base, "?"); ok {
		return b + "/" + name + "?" + q
	}
	return base + "/" + name
}

// start finds or starts the machine's test cluster: a data directory under the
// temporary directory, on a Unix socket only, with fsync off. A file lock makes
// one process start it; all test processes of a run share it, and "make test"
// stops it at the end.
func start() (string, error) {
	initdb, err := findTool("initdb")
	if err != nil {
		return "", err
	}
	postgres, err := findTool("postgres")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(os.TempDir(), "drover-test-postgres-"+strconv.Itoa(os.Getuid()))
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	// The server refuses to run as root; Debian and CentOS both make this user.
	attr := &syscall.SysProcAttr{Setsid: true}
	name := "root"
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			return "", err
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			return "", err
		}
		name = "postgres"
	} else if u, err := user.Current(); err == nil {
		name = u.Username
	}
	base := "postgres://" + name + "@"
	tail := "?host=" + dir + "&port=5499&sslmode=disable"
	url := base + tail
	if ping(url) == nil {
		return url, nil
	}
	data := filepath.Join(dir, "data")
	if _, err := os.Stat(filepath.Join(data, "PG_VERSION")); err != nil {
		_ = os.RemoveAll(data)
		c := exec.Command(initdb, "-D", data, "-A", "trust", "-U", name, "-E", "UTF8", "--locale=C", "--no-sync")
		c.SysProcAttr, c.Dir = attr, dir
		if out, err := c.CombinedOutput(); err != nil {
			return "", fmt.Errorf("initdb: %w: %s", err, out)
		}
	}
	logf, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return "", err
	}
	defer logf.Close()
	_ = os.Remove(filepath.Join(data, "postmaster.pid")) // of a machine that was switched off; ours did not answer
	c := exec.Command(postgres, "-D", data, "-k", dir, "-p", "5499", "-c", "listen_addresses=", "-c", "fsync=off",
		"-c", "synchronous_commit=off", "-c", "full_page_writes=off", "-c", "max_connections=300")
	c.SysProcAttr, c.Dir, c.Stdout, c.Stderr = attr, dir, logf, logf
	if err := c.Start(); err != nil {
		return "", err
	}
	if err := c.Process.Release(); err != nil {
		return "", err
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err = ping(url); err == nil {
			return url, nil
		}
		if time.Now().After(deadline) {
			b, _ := os.ReadFile(logf.Name())
			return "", fmt.Errorf("the test PostgreSQL does not answer: %w: %s", err, b)
		}
	}
}

func ping(url string) error {
	d, err := sql.Open("pgx", address(url, "postgres"))
	if err != nil {
		return err
	}
	defer d.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return d.PingContext(ctx)
}

// findTool looks in PATH and where Debian and CentOS keep PostgreSQL's programs.
func findTool(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, glob := range []string{"/usr/lib/postgresql/*/bin/", "/usr/pgsql-*/bin/"} {
		if m, _ := filepath.Glob(glob + name); len(m) > 0 {
			return m[len(m)-1], nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}
