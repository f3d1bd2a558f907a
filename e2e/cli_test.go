package e2e

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"drover/internal/db/dbtest"

	"github.com/rogpeppe/go-internal/testscript"
)

// cliServer is a server process without a builder and a signer.
type cliServer struct {
	url, token string
	cmd        *exec.Cmd
	log        string // its file
}

// startServer runs `drover server` on a data directory and waits until it says where it is.
func startServer(t testing.TB, dir string, args ...string) *cliServer {
	t.Helper()
	s := &cliServer{log: dir + ".log"}
	log, err := os.Create(s.log)
	if err != nil {
		t.Fatal(err)
	}
	s.cmd = exec.Command(program(t), append([]string{"server", "--dir", dir, "--listen", "127.0.0.1:0", "--no-builder", "--no-signer"}, args...)...)
	s.cmd.Stderr = log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.stop(); _ = log.Close() })
	said := make(chan string, 100)
	go func() {
		defer close(said)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			said <- sc.Text()
		}
	}()
	timeout := time.After(30 * time.Second)
	for s.url == "" || s.token == "" {
		select {
		case l, ok := <-said:
			if !ok {
				b, _ := os.ReadFile(s.log)
				t.Fatalf("the server ended: %s", b)
			}
			if m := regexp.MustCompile(`serves (\S+)`).FindStringSubmatch(l); m != nil {
				s.url = m[1]
			}
			if m := regexp.MustCompile(`drv_\S+`).FindString(l); m != "" {
				s.token = m
			}
		case <-timeout:
			t.Fatal("the server does not say where it is")
		}
	}
	return s
}

func (s *cliServer) stop() {
	if s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Signal(os.Interrupt)
		_ = s.cmd.Wait()
	}
}

// TestScripts runs the scenarios of testdata, each against a server of its own, once on each
// database.
func TestScripts(t *testing.T) {
	bin := filepath.Dir(program(t))
	run := func(t *testing.T, database func(t *testing.T) []string) {
		testscript.Run(t, testscript.Params{
			Dir: "testdata",
			Setup: func(e *testscript.Env) error {
				s := startServer(t, filepath.Join(e.WorkDir, ".server"), database(t)...)
				e.Defer(s.stop)
				for k, v := range map[string]string{
					"SERVER": s.url, "ADMIN": s.token, "SERVERLOG": s.log, "PATH": bin + string(os.PathListSeparator) + os.Getenv("PATH"),
					"HOME": e.WorkDir, "XDG_CONFIG_HOME": filepath.Join(e.WorkDir, ".config"), "GIT_CONFIG_GLOBAL": os.DevNull, "GIT_TERMINAL_PROMPT": "0",
					"GIT_AUTHOR_NAME": "Pat", "GIT_AUTHOR_EMAIL": "pat@example.org", "GIT_COMMITTER_NAME": "Pat", "GIT_COMMITTER_EMAIL": "pat@example.org",
				} {
					e.Setenv(k, v)
				}
				return os.WriteFile(filepath.Join(e.WorkDir, "admin.token"), []byte(s.token+"\n"), 0o600)
			},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": code, "until": until, "letenv": letenv},
		})
	}
	t.Run("sqlite", func(t *testing.T) { run(t, func(*testing.T) []string { return nil }) })
	t.Run("postgres", func(t *testing.T) {
		run(t, func(t *testing.T) []string { return []string{"--db", dbtest.PostgresURL(t)} })
	})
}

// code N COMMAND runs a command and checks its exit code.
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N command args")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		got = ee.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("%s exits with %d, not %d", strings.Join(args[1:], " "), got, want)
	}
}

// letenv NAME COMMAND puts the first line of a command's output into a variable.
func letenv(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: letenv NAME command args")
	}
	ts.Check(ts.Exec(args[1], args[2:]...))
	l, _, _ := strings.Cut(ts.ReadFile("stdout"), "\n")
	ts.Setenv(args[0], strings.TrimSpace(l))
}

// until PATTERN COMMAND runs a command that does not end by itself, waits until a line of its
// output matches, interrupts it, and wants it to end well.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until pattern command args")
	}
	re, err := regexp.Compile(args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	path, err := exec.LookPath(filepath.Join(strings.Split(ts.Getenv("PATH"), string(os.PathListSeparator))[0], args[1]))
	ts.Check(err)
	c := exec.CommandContext(ctx, path, args[2:]...)
	for _, k := range []string{"PATH", "HOME", "XDG_CONFIG_HOME", "DROVER_URL", "DROVER_TOKEN"} {
		c.Env = append(c.Env, k+"="+ts.Getenv(k))
	}
	out, err := c.StdoutPipe()
	ts.Check(err)
	ts.Check(c.Start())
	sc := bufio.NewScanner(io.TeeReader(out, ts.Stdout()))
	found := false
	for !found && sc.Scan() {
		found = re.MatchString(sc.Text())
	}
	_ = c.Process.Signal(os.Interrupt)
	_, _ = io.Copy(io.Discard, out)
	if err := c.Wait(); err != nil || !found {
		ts.Fatalf("%s: matched %v, ended with %v", strings.Join(args[1:], " "), found, err)
	}
}
