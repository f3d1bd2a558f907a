package software

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fault"
)

const maxOutput = 64 << 20 // of one program: a list of all packages of some repositories is long

// manager is where packages are looked at and changed. Tests give it another root, and dnf the
// arguments that go with it.
type manager struct {
	root  string   // "/" on a host
	extra []string // arguments for dnf
	env   []string
	arch  string
	run   func(ctx context.Context, env []string, argv ...string) (output, error)
}

// output is what a program left behind.
type output struct {
	Out, Err string
	Code     int
}

// Functions are the functions of pkg and alternatives.
func Functions() []module.Function {
	m := &manager{root: "/", arch: machineArch(), run: program}
	return m.functions()
}

func (m *manager) functions() []module.Function {
	return slices.Concat(m.queries(), m.files(), m.transactions(), m.holds(), m.repos(), m.groups(), m.restarts(), m.alternatives())
}

func machineArch() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Machine[:])
}

func (m *manager) path(p string) string { return filepath.Join(m.root, p) }

func (m *manager) exists(p string) bool {
	_, err := os.Stat(m.path(p))
	return err == nil
}

// program runs a program with its process group, which ends with ctx. It is not command.Run, as
// that kills at once.
func program(ctx context.Context, env []string, argv ...string) (output, error) {
	file := command.Which(argv[0], "")
	if file == "" {
		return output{}, fault.NotFound("program_missing", "there is no program %q on this host", argv[0]).Fix("install the package that has it")
	}
	var out, errs limited
	cmd := exec.CommandContext(ctx, file, argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), env...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A transaction that is cut off leaves the database of rpm with two versions of a package:
	// dnf is asked to stop, and is killed only when it does not within five minutes.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Minute
	err := cmd.Run()
	if ctx.Err() != nil && cmd.Process != nil {
		// The group may outlive its leader.
		if kerr := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); kerr != nil && !errors.Is(kerr, syscall.ESRCH) {
			return output{}, kerr
		}
	}
	o := output{module.Valid(out.String()), module.Valid(errs.String()), 0}
	var exit *exec.ExitError
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return o, ctx.Err()
	case errors.As(err, &exit):
		o.Code = exit.ExitCode()
	case errors.Is(err, exec.ErrWaitDelay): // a child that it left behind keeps the pipes
	default:
		return o, fault.Unavailable("program_failed", "%s cannot be run", argv[0]).Wrap(err)
	}
	return o, nil
}

// limited keeps the beginning of what is written to it.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := maxOutput - l.Len(); room < len(p) {
		l.Buffer.Write(p[:max(room, 0)])
		return len(p), nil
	}
	return l.Buffer.Write(p)
}

// said is what a program said about its failure.
func said(o output) string {
	s := strings.TrimSpace(o.Err)
	if s == "" {
		s = strings.TrimSpace(o.Out)
	}
	if len(s) > 4096 {
		s = module.Valid(s[len(s)-4096:])
	}
	return s
}

func noOptions(what string, all []string) error {
	for _, s := range all {
		if err := module.NoOption(what, s); err != nil {
			return err
		}
	}
	return nil
}

// tool finds dnf: version 5 is the program dnf5, to which dnf is a link on some systems.
func (m *manager) tool() (name string, five bool) {
	if p := command.Which("dnf", ""); p != "" {
		real, err := filepath.EvalSymlinks(p)
		return "dnf", err == nil && strings.HasPrefix(filepath.Base(real), "dnf5")
	}
	if command.Which("dnf5", "") != "" {
		return "dnf5", true
	}
	return "dnf", false
}

// dnf runs dnf, quietly and with yes for every question.
func (m *manager) dnf(ctx context.Context, args ...string) (output, error) {
	tool, _ := m.tool()
	argv := slices.Concat([]string{tool, "-q", "-y", "--setopt=color=never"}, m.extra, args)
	return m.run(ctx, m.env, argv...)
}

// dnfFailed is dnf's failure in its own words.
func dnfFailed(what string, o output) *fault.Error {
	return fault.Conflict("dnf_failed", "dnf cannot %s: %s", what, said(o))
}

// truth is a keyword as a boolean.
func truth(v any, def bool) bool {
	switch x := v.(type) {
	case bool:
		return x
	case int64:
		return x != 0
	case float64:
		return x != 0
	case string:
		switch strings.ToLower(x) {
		case "true", "yes", "on", "1":
			return true
		case "false", "no", "off", "0", "", "none":
			return false
		}
	}
	return def
}

// texts is a keyword as a list: a text with commas, or a list.
func texts(v any) []string {
	var out []string
	switch x := v.(type) {
	case nil:
	case []any:
		for _, e := range x {
			out = append(out, module.Text(e))
		}
	case []string:
		out = slices.Clone(x)
	case bool:
	default:
		for _, s := range strings.Split(module.Text(x), ",") {
			if s = strings.TrimSpace(s); s != "" {
				out = append(out, s)
			}
		}
	}
	return out
}

// repoOptions are dnf's options for Salt's keywords on repositories.
func (m *manager) repoOptions(kw map[string]any) ([]string, error) {
	var args []string
	add := func(flag string, vs []string) error {
		for _, v := range vs {
			if err := module.NoOption("repository", v); err != nil {
				return err
			}
			args = append(args, flag+v)
		}
		return nil
	}
	from, on, off := texts(kw["fromrepo"]), texts(kw["enablerepo"]), texts(kw["disablerepo"])
	if on == nil {
		on = texts(kw["repo"]) // the older word
	}
	if from != nil {
		args = append(args, "--disablerepo=*")
		if err := add("--enablerepo=", from); err != nil {
			return nil, err
		}
	} else {
		if err := errors.Join(add("--disablerepo=", off), add("--enablerepo=", on)); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(add("--setopt=disable_excludes=", texts(kw["disableexcludes"])), add("--exclude=", texts(kw["exclude"])), add("--setopt=", texts(kw["setopt"]))); err != nil {
		return nil, err
	}
	if truth(kw["cacheonly"], false) {
		args = append(args, "-C")
	}
	if truth(kw["skip_verify"], false) {
		if _, five := m.tool(); five {
			args = append(args, "--no-gpgchecks")
		} else {
			args = append(args, "--nogpgcheck")
		}
	}
	if truth(kw["security"], false) {
		args = append(args, "--security")
	}
	return args, nil
}

// keywords are a call's named arguments and its other keywords together, as Salt's functions
// pass them on.
func keywords(c *module.Call, named ...string) map[string]any {
	kw := map[string]any{}
	for k, v := range c.Extra {
		kw[k] = v
	}
	for _, n := range named {
		if c.Any(n) != nil {
			kw[n] = c.Any(n)
		}
	}
	return kw
}

// rest are the arguments by position as texts; a list counts as its elements.
func rest(c *module.Call) []string {
	var out []string
	for _, v := range c.Rest {
		out = append(out, texts(v)...)
	}
	return out
}
