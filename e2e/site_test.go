package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"drover/internal/db/dbtest"

	"golang.org/x/sys/unix"
)

// upstream is the address of a repository to mirror: teststream's set to build in.
func upstream(t testing.TB) string {
	t.Helper()
	u, err := builtUpstream()
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// engines are the databases that a test runs on, by the address that a site is given.
func engines(t *testing.T, fn func(t *testing.T, db string)) {
	t.Run("sqlite", func(t *testing.T) { fn(t, "") })
	t.Run("postgres", func(t *testing.T) { fn(t, dbtest.PostgresURL(t)) })
}

// The processes of a site.
const (
	server  = "server"
	builder = "builder"
	signer  = "signer"
)

// site is a deployment: a server process, and a builder and a signer of their own when the
// test starts them. It lives in one directory.
type site struct {
	testing.TB
	Dir   string
	Bin   string
	URL   string
	Token string // the first admin's
	DB    string // "" for SQLite in the server's directory
	Flags []string

	mu    sync.Mutex // guards procs and down
	procs map[string]*process
	down  []outage
}

// outage is a time in which the server was not there.
type outage struct{ from, to time.Time }

// newSite prepares a site in a directory. The builder's part goes to memory: its layers are
// large, and a process that is killed loses nothing of what it wrote, on whatever file system.
func newSite(t testing.TB, dir, db string, flags ...string) *site {
	t.Helper()
	s := &site{TB: t, Dir: dir, Bin: program(t), URL: "http://" + freeAddress(t), DB: db, Flags: flags, procs: map[string]*process{}}
	for _, d := range []string{"tmp", "home", "log"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Debian's rpm keeps a root's database elsewhere unless it is told.
	if err := os.WriteFile(filepath.Join(dir, "home", ".rpmmacros"), []byte("%_dbpath /var/lib/rpm\n%__gpg /usr/bin/gpg\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, role := range []string{builder, signer, server} {
			if s.running(role) != nil {
				s.kill(role, true)
			}
		}
		unmountBelow(t, dir)
		if t.Failed() {
			s.tell()
		}
	})
	return s
}

// memory is a directory in memory where there is one, else a plain temporary one.
func memory(t testing.TB) string {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &st); err != nil || int64(st.Bavail)*st.Bsize < 2<<30 {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "drover-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unmountBelow(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// freeAddress is an address that nobody listens on. Its port is below those that the kernel
// gives to clients: one of them must not take it while a killed server is away.
func freeAddress(t testing.TB) string {
	t.Helper()
	for range 100 {
		a := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
		l, err := net.Listen("tcp", a)
		if err != nil {
			continue
		}
		_ = l.Close()
		return a
	}
	t.Fatal("no free port")
	return ""
}

// environ is what every process of the site gets: nothing of the person who runs the test.
func (s *site) environ(more ...string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(s.Dir, "home"), "TMPDIR=" + filepath.Join(s.Dir, "tmp"), "LC_ALL=C.UTF-8", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_TERMINAL_PROMPT=0", "GNUPGHOME=" + filepath.Join(s.Dir, "home"), "DROVER_URL=" + s.URL, "DROVER_TOKEN=" + s.Token}, more...)
}

// process is a running process of a site.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it is gone
	out   *os.File
	from  int64 // where its output begins in the log
}

func (s *site) running(role string) *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.procs[role]
}

func (s *site) logFile(role string) string { return filepath.Join(s.Dir, "log", role+".log") }

// roleDir is where a process keeps what it has.
func (s *site) roleDir(role string) string { return filepath.Join(s.Dir, role) }

// spawn starts a process of the site and gives it back at once.
func (s *site) spawn(role string, env []string, args ...string) *process {
	s.Helper()
	log, err := os.OpenFile(s.logFile(role), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		s.Fatal(err)
	}
	at, _ := log.Seek(0, io.SeekEnd)
	c := exec.Command(s.Bin, args...)
	c.Env, c.Stdout, c.Stderr = env, log, log
	// No process outlives the test, whatever happens to it. A group of its own keeps a ^C for the test.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		s.Fatal(err)
	}
	p := &process{cmd: c, ended: make(chan struct{}), out: log, from: at}
	go func() { _ = c.Wait(); _ = log.Close(); close(p.ended) }()
	s.mu.Lock()
	s.procs[role] = p
	s.mu.Unlock()
	return p
}

// output is what a process has printed so far.
func (s *site) output(role string, p *process) string {
	b, err := os.ReadFile(s.logFile(role))
	if err != nil || int64(len(b)) < p.from {
		return ""
	}
	return string(b[p.from:])
}

var reToken = regexp.MustCompile(`shown this once: (\S+)`)

// start starts the server, or a builder or signer that joins or has joined it.
func (s *site) start(role string) {
	s.Helper()
	switch role {
	case server:
		p := s.startServer()
		if err := s.serves(p, 60*time.Second); err != nil {
			s.Fatal(err)
		}
		if m := reToken.FindStringSubmatch(s.output(server, p)); m != nil && s.Token == "" {
			s.Token = m[1]
		}
	case builder, signer:
		s.spawn(role, s.environ("DROVER_TICKET="+s.ticket(role)), s.memberArgs(role)...)
	}
}

func (s *site) startServer() *process {
	args := append([]string{"server", "--dir", s.roleDir(server), "--listen", strings.TrimPrefix(s.URL, "http://")}, s.Flags...)
	if s.DB != "" {
		args = append(args, "--db", s.DB)
	}
	return s.spawn(server, s.environ(), args...)
}

func (s *site) memberArgs(role string) []string {
	args := []string{role, "run", "--dir", s.roleDir(role)}
	if role == signer {
		args = append(args, "--accept-keys")
	}
	return args
}

// ticket makes a ticket for a builder or signer that has no token yet.
func (s *site) ticket(role string) string {
	s.Helper()
	if _, err := os.Stat(filepath.Join(s.roleDir(role), "token")); err == nil {
		return ""
	}
	out := s.eventually("auth", "ticket", role, "one")
	return strings.TrimSpace(out)
}

// serves waits until the server answers, and notes the end of an outage.
func (s *site) serves(p *process, most time.Duration) error {
	for end := time.Now().Add(most); ; time.Sleep(2 * time.Millisecond) {
		resp, err := http.Get(s.URL + "/api/v1/channels")
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				s.mu.Lock()
				if n := len(s.down); n > 0 && s.down[n-1].to.IsZero() {
					s.down[n-1].to = time.Now()
				}
				s.mu.Unlock()
				return nil
			}
		}
		select {
		case <-p.ended:
			return fmt.Errorf("the server ended: %s", s.output(server, p))
		default:
		}
		if time.Now().After(end) {
			return fmt.Errorf("the server does not serve within %s: %w\n%s", most, err, s.output(server, p))
		}
	}
}

// leaves notes the beginning of an outage.
func (s *site) leaves(role string) {
	if role == server {
		s.mu.Lock()
		s.down = append(s.down, outage{from: time.Now()})
		s.mu.Unlock()
	}
}

// kill ends a process at once (SIGKILL), with all its descendants when tree is set, as
// systemd clears a service's control group.
func (s *site) kill(role string, tree bool) {
	p := s.running(role)
	s.leaves(role)
	pids := []int{p.cmd.Process.Pid}
	if tree {
		pids = append(pids, descendants(p.cmd.Process.Pid)...)
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.ended
	s.mu.Lock()
	delete(s.procs, role)
	s.mu.Unlock()
}

// stop ends a process as systemd does (SIGTERM) and gives its exit code.
func (s *site) stop(role string, most time.Duration) int {
	s.Helper()
	p := s.running(role)
	s.leaves(role)
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(most):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go into the log
		<-p.ended
		s.Errorf("the %s did not stop within %s", role, most)
	}
	s.mu.Lock()
	delete(s.procs, role)
	s.mu.Unlock()
	return p.cmd.ProcessState.ExitCode()
}

// descendants lists the processes that a process has started, and those that they have.
func descendants(pid int) (out []int) {
	kids := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range stats {
		b, err := os.ReadFile(f)
		i := bytes.LastIndexByte(b, ')')
		if err != nil || i < 0 {
			continue
		}
		w := strings.Fields(string(b[i+1:]))
		self, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if parent, err := strconv.Atoi(w[1]); err == nil {
			kids[parent] = append(kids[parent], self)
		}
	}
	for todo := []int{pid}; len(todo) > 0; todo = todo[1:] {
		out = append(out, kids[todo[0]]...)
		todo = append(todo, kids[todo[0]]...)
	}
	return out
}

// run runs a command of a person in a directory.
func (s *site) run(dir, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	c.Env = s.environ("GIT_AUTHOR_NAME=Eve", "GIT_AUTHOR_EMAIL=eve@example.org", "GIT_COMMITTER_NAME=Eve", "GIT_COMMITTER_EMAIL=eve@example.org",
		"GIT_AUTHOR_DATE=2026-11-02T12:00:00Z", "GIT_COMMITTER_DATE=2026-11-02T12:00:00Z")
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s%s", name, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

// drover runs a verb.
func (s *site) drover(args ...string) (string, error) { return s.run(s.Dir, s.Bin, args...) }

// must runs a verb that has to work.
func (s *site) must(args ...string) string {
	s.Helper()
	out, err := s.drover(args...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// eventually runs a verb again, as a person does, while the server is away.
func (s *site) eventually(args ...string) string {
	s.Helper()
	var out string
	s.insist(func() (err error) { out, err = s.drover(args...); return err })
	return out
}

// insist repeats what fails because the server is away; any other failure is the test's.
func (s *site) insist(fn func() error) {
	s.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := fn()
		if err == nil {
			return
		}
		if !away(err) || time.Now().After(end) {
			// Also on a person's own goroutine: it ends that one, and who waits for it sees the failure.
			s.Error(err)
			s.FailNow()
		}
	}
}

// away tells whether an error is that of a server that was killed meanwhile.
func away(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) ||
		slices.ContainsFunc([]string{"(server_away)", "(answer_cut)", "Connection refused", "Connection reset", "Couldn't connect", "Failed to connect", "Empty reply from server",
			"the remote end hung up unexpectedly", "Recv failure", "transfer closed", "RPC failed"}, func(w string) bool { return strings.Contains(err.Error(), w) })
}

// get reads an API document.
func (s *site) get(path string, out any) error {
	req, err := http.NewRequest(http.MethodGet, s.URL+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+s.Token)
	req.Header.Set("Accept", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, b)
	}
	return json.Unmarshal(b, out)
}

// wasDown tells whether the server was away for some of a time.
func (s *site) wasDown(from, to time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.down, func(o outage) bool { return o.from.Before(to) && (o.to.IsZero() || o.to.After(from)) })
}

// tell puts the end of each log into the test's.
func (s *site) tell() {
	logs, _ := filepath.Glob(filepath.Join(s.Dir, "log", "*.log"))
	for _, f := range logs {
		b, _ := os.ReadFile(f)
		s.Logf("%s ends:\n%s", filepath.Base(f), b[max(0, len(b)-4000):])
	}
}

// mountsBelow lists what is mounted below a directory, the last first.
func mountsBelow(dir string) (out []string) {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			out = append(out, f[4])
		}
	}
	slices.Reverse(out)
	return out
}

func unmountBelow(t testing.TB, dir string) {
	for _, m := range mountsBelow(dir) {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Logf("unmount %s: %v", m, err)
		}
	}
}
