package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/fault"
)

const (
	// MaxOutput is how much of an output is kept unless Spec.Limit says otherwise.
	MaxOutput = 64 << 20

	// waitDelay is how long an output may stay open after the program itself has ended: a daemon
	// that it left behind often keeps it.
	waitDelay = 2 * time.Second

	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Spec is what is to run and how. Either Argv or Line is set.
type Spec struct {
	Argv    []string      // a program and its arguments, no shell between
	Line    string        // a line for the shell
	Shell   string        // the shell of Line; /bin/sh when empty
	Dir     string        // where it runs; the home of whom it runs as when empty
	Stdin   string        // what it reads
	User    string        // as whom it runs; the agent's user when empty
	Group   string        // its group; the user's when empty
	Env     []string      // NAME=VALUE, over what the agent has
	Clean   bool          // only Env, nothing of the agent's
	Path    string        // directories to look into before those of PATH
	Umask   string        // octal; the agent's when empty
	Timeout time.Duration // then it is killed with its process group; none when zero
	Limit   int64         // of each output; MaxOutput when zero
	Join    bool          // errors go where the output goes
	Away    bool          // it is left to run in a session of its own; only its PID is known then
}

// Result is what a program left behind; Text makes texts of its outputs.
type Result struct {
	PID      int
	Code     int // of its exit; 128 plus the number of the signal that ended it
	Out, Err []byte
	TimedOut bool // it was killed after Spec.Timeout
	Cut      bool // it said more than Spec.Limit
}

// Text makes a text out of what a program printed.
func Text(b []byte) string { return strings.ToValidUTF8(string(b), "\uFFFD") }

// limited keeps the beginning of what is written to it.
type limited struct {
	buf   bytes.Buffer
	limit int64
	cut   bool
}

// Write never fails, so that a program that says too much can still end in peace.
func (l *limited) Write(p []byte) (int, error) {
	room := l.limit - int64(l.buf.Len())
	if int64(len(p)) > room {
		l.cut = true
		l.buf.Write(p[:max(room, 0)])
		return len(p), nil
	}
	return l.buf.Write(p)
}

func (l *limited) bytes() []byte {
	if l.cut {
		fmt.Fprintf(&l.buf, "\n[cut: more than %d bytes]\n", l.limit)
	}
	return l.buf.Bytes()
}

// Run runs a program to its end. That it fails, or is killed for its Timeout, is no error of
// Run's; that it cannot be started, or that ctx ended, is.
func Run(ctx context.Context, s Spec) (Result, error) {
	cmd, name, err := s.prepare(ctx)
	if err != nil {
		return Result{}, err
	}
	tctx := ctx
	if s.Timeout > 0 {
		var cancel context.CancelFunc
		tctx, cancel = context.WithTimeout(ctx, s.Timeout)
		defer cancel()
	}
	limit := s.Limit
	if limit <= 0 {
		limit = MaxOutput
	}
	out, errs := &limited{limit: limit}, &limited{limit: limit}
	run := exec.CommandContext(tctx, cmd.Path)
	run.Args, run.Env, run.Dir, run.SysProcAttr = cmd.Args, cmd.Env, cmd.Dir, cmd.SysProcAttr
	run.Stdin, run.Stdout, run.Stderr = strings.NewReader(s.Stdin), out, errs
	if s.Stdin == "" {
		run.Stdin = nil // reads the end at once
	}
	if s.Join {
		run.Stderr = out
	}
	run.WaitDelay = waitDelay
	run.Cancel = func() error {
		err := unix.Kill(-run.Process.Pid, unix.SIGKILL)
		if errors.Is(err, unix.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	if err := run.Start(); err != nil {
		return Result{}, fault.NotFound("command_not_started", "%s cannot be run in %s", name, cmd.Dir).Wrap(err).Fix("is it there, executable, and does its interpreter exist?")
	}
	r := Result{PID: run.Process.Pid}
	werr := run.Wait()
	if err := ctx.Err(); err != nil {
		return r, fault.Unavailable("command_stopped", "%s was stopped before it was done", name).Wrap(context.Cause(ctx))
	}
	r.Out, r.Err, r.Cut = out.bytes(), errs.bytes(), out.cut || errs.cut
	var exit *exec.ExitError
	switch {
	case tctx.Err() != nil && exitCode(run.ProcessState) == 128+int(unix.SIGKILL):
		r.TimedOut, r.Code = true, 124
		return r, nil
	case werr == nil || errors.As(werr, &exit) || errors.Is(werr, exec.ErrWaitDelay) || tctx.Err() != nil:
	default:
		return r, fault.Internal("command_lost", "what %s did is not known", name).Wrap(werr)
	}
	r.Code = exitCode(run.ProcessState)
	if s.Away {
		if _, err := fmt.Sscan(string(r.Out), &r.PID); err != nil {
			return r, fault.Unavailable("command_not_started", "%s was not left to run: %s", name, Text(r.Err)).Wrap(err)
		}
		r.Out = nil
	}
	return r, nil
}

func exitCode(p *os.ProcessState) int {
	if p == nil {
		return 1
	}
	if ws, ok := p.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return p.ExitCode()
}

// away starts a program in the background, says its number and leaves it to init.
const away = `"$@" </dev/null >/dev/null 2>&1 & echo $!`

// prepare makes the command that runs, and its name for messages.
func (s Spec) prepare(ctx context.Context) (*exec.Cmd, string, error) {
	argv := s.Argv
	if len(argv) == 0 {
		shell := s.Shell
		if shell == "" {
			shell = "/bin/sh"
		}
		if strings.TrimSpace(s.Line) == "" {
			return nil, "", fault.Invalid("command_empty", "there is no command to run")
		}
		argv = []string{shell, "-c", s.Line}
	}
	name := argv[0]
	if s.Line != "" && len(s.Argv) == 0 {
		name = s.Line
	}
	name = fmt.Sprintf("%q", short(name))
	for _, a := range argv {
		if strings.ContainsRune(a, 0) {
			return nil, "", fault.Invalid("command_nul", "an argument of %s has a byte of zero", name)
		}
	}
	cmd := &exec.Cmd{Dir: s.Dir, SysProcAttr: &syscall.SysProcAttr{Setpgid: true}}
	if s.Away {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	env, err := s.environment()
	if err != nil {
		return nil, "", err
	}
	home, err := os.UserHomeDir()
	if err != nil {
		if home = "/"; os.Geteuid() == 0 {
			home = "/root" // a service has no HOME
		}
	}
	if s.User != "" || s.Group != "" {
		a, err := s.account(ctx)
		if err != nil {
			return nil, "", err
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.UID, Gid: a.GID, Groups: a.Groups, NoSetGroups: os.Geteuid() != 0}
		if s.User != "" {
			home = a.Home
			env = under(env, map[string]string{"HOME": a.Home, "USER": a.Name, "LOGNAME": a.Name, "SHELL": a.Shell}, s.Env)
		}
	}
	if cmd.Dir == "" {
		cmd.Dir = workDir(home, cmd.SysProcAttr.Credential)
	} else if i, err := os.Stat(cmd.Dir); err != nil || !i.IsDir() || !filepath.IsAbs(cmd.Dir) {
		return nil, "", fault.NotFound("cwd_bad", "the working directory %q is not absolute or does not exist", cmd.Dir)
	}
	cmd.Env = env
	path := lookup(env, "PATH")
	if argv[0], err = find(argv[0], path, cmd.Dir); err != nil {
		return nil, "", err
	}
	if s.Umask != "" {
		if strings.Trim(s.Umask, "01234567") != "" || len(s.Umask) > 4 {
			return nil, "", fault.Invalid("umask_bad", "the umask %q is not an octal number", s.Umask)
		}
		// The mask belongs to the whole process; only a child can have one of its own.
		argv = append([]string{"/bin/sh", "-c", `umask "$0" && exec "$@"`, s.Umask}, argv...)
	}
	if s.Away {
		argv = append([]string{"/bin/sh", "-c", away, "sh"}, argv...)
	}
	cmd.Path, cmd.Args = argv[0], argv
	return cmd, name, nil
}

// workDir is where a command runs that names no directory: the user's home, or the root.
func workDir(home string, as *syscall.Credential) string {
	if home == "" || !filepath.IsAbs(home) {
		return "/"
	}
	var st unix.Stat_t
	if unix.Stat(home, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return "/"
	}
	if as != nil && as.Uid != 0 && st.Uid != as.Uid && st.Mode&0o001 == 0 {
		return "/"
	}
	return home
}

func short(s string) string {
	if len(s) > 200 {
		return strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

// environment is what the program sees.
func (s Spec) environment() ([]string, error) {
	var env []string
	if !s.Clean {
		env = append(env, os.Environ()...)
	}
	for _, e := range s.Env {
		if k, _, ok := strings.Cut(e, "="); !ok || k == "" || strings.ContainsRune(e, 0) {
			return nil, fault.Invalid("env_bad", "%q is not a variable and its value", e)
		}
	}
	env = append(env, s.Env...)
	path := lookup(env, "PATH")
	if path == "" {
		path = defaultPath
		env = append(env, "PATH="+path)
	}
	if s.Path != "" {
		env = append(env, "PATH="+s.Path+":"+path)
	}
	return env, nil
}

// lookup finds a variable; the last one holds, as in os/exec.
func lookup(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if k, v, _ := strings.Cut(env[i], "="); k == name {
			return v
		}
	}
	return ""
}

// under sets variables that the caller did not set itself.
func under(env []string, set map[string]string, callers []string) []string {
	for k, v := range set {
		if lookup(callers, k) == "" {
			env = append(env, k+"="+v)
		}
	}
	return env
}

// find is the file of a program, looked up in the PATH that the program itself will have.
func find(name, path, dir string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, nil
	}
	if p := Which(name, path); p != "" {
		return p, nil
	}
	return "", fault.NotFound("program_missing", "there is no program %q on this host", short(name)).Fix("install it, or name its file; it was looked for in %s", path)
}

// Which finds the file of a program in path, or "". An empty path is the agent's own.
func Which(name, path string) string {
	if path == "" {
		if path = os.Getenv("PATH"); path == "" {
			path = defaultPath
		}
	}
	dirs := filepath.SplitList(path)
	if strings.Contains(name, "/") {
		dirs = []string{""}
	}
	if name == "" {
		return ""
	}
	for _, d := range dirs {
		p := filepath.Join(d, name)
		if !filepath.IsAbs(p) {
			continue
		}
		if i, err := os.Stat(p); err == nil && i.Mode().IsRegular() && i.Mode()&0o111 != 0 {
			return p
		}
	}
	return ""
}
