package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

const maxScript = 16 << 20

// localeNames are the variables that Salt sets to C, so that what programs print can be read by
// others.
var localeNames = []string{"LC_CTYPE", "LC_NUMERIC", "LC_TIME", "LC_COLLATE", "LC_MONETARY", "LC_MESSAGES", "LC_PAPER", "LC_NAME", "LC_ADDRESS", "LC_TELEPHONE",
	"LC_MEASUREMENT", "LC_IDENTIFICATION", "LC_ALL", "LANGUAGE"}

// spec reads the arguments of a call. The command line is filled in by the caller.
func spec(c *module.Call) (Spec, error) {
	s := Spec{Shell: c.Str("shell"), Dir: c.Str("cwd"), Stdin: c.Str("stdin"), User: c.Str("runas"), Group: c.Str("group"), Clean: c.Bool("clean_env"), Path: c.Str("prepend_path"), Away: c.Bool("bg")}
	if c.Has("template") {
		return s, fault.Unavailable("template_later", "templates in commands are not rendered yet: template=%s", c.Str("template")).Fix("leave template out, or render the text first")
	}
	if c.Bool("encoded_cmd") {
		return s, fault.Invalid("encoded_cmd", "encoded_cmd is for PowerShell")
	}
	if s.Shell != "" && !filepath.IsAbs(s.Shell) {
		p := Which(s.Shell, "")
		if p == "" {
			return s, fault.NotFound("shell_missing", "the shell %s is not on this host", s.Shell)
		}
		s.Shell = p
	}
	if s.Dir == "~" || strings.HasPrefix(s.Dir, "~/") {
		home, err := os.UserHomeDir()
		if err != nil {
			return s, fault.Invalid("cwd_bad", "the home of the agent's user is not known: %q", s.Dir).Wrap(err)
		}
		s.Dir = home + s.Dir[1:]
	}
	switch u := c.Any("umask").(type) {
	case nil:
	case int64:
		s.Umask = fmt.Sprintf("%04d", u) // 022 of a command line is the number 22
	default:
		s.Umask = strings.TrimPrefix(module.Text(u), "0o")
	}
	switch t := c.Num("timeout"); {
	case t < 0 || t > 365*24*3600:
		return s, fault.Invalid("timeout_bad", "a timeout of %g seconds makes no sense", t)
	default:
		s.Timeout = time.Duration(t * float64(time.Second))
	}
	env, err := variables(c.Any("env"))
	if err != nil {
		return s, err
	}
	if c.Bool("reset_system_locale") {
		for _, n := range localeNames {
			s.Env = append(s.Env, n+"=C")
		}
	}
	s.Env = append(s.Env, env...)
	return s, nil
}

// variables reads env: a mapping, a list of mappings or of NAME=VALUE.
func variables(v any) ([]string, error) {
	var out []string
	switch x := v.(type) {
	case nil, bool:
	case string:
		for _, f := range strings.Split(x, ",") {
			if f = strings.TrimSpace(f); f != "" {
				out = append(out, f)
			}
		}
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(x)) {
			val := x[k]
			if off, is := val.(bool); val == nil || is && !off {
				val = "" // as Salt does: what is off is empty
			}
			out = append(out, k+"="+plain(val))
		}
	case []any:
		for _, e := range x {
			more, err := variables(e)
			if err != nil {
				return nil, err
			}
			out = append(out, more...)
		}
	default:
		return nil, fault.Invalid("env_bad", "env must be a mapping, not %s", module.Text(v))
	}
	for _, e := range out {
		if !strings.Contains(e, "=") {
			return nil, fault.Invalid("env_bad", "%q is not a variable and its value", e)
		}
	}
	return out, nil
}

// line fills in what runs: a list is an argv, a text is for the shell unless it is not wanted.
func (s *Spec) line(c *module.Call, cmd any) error {
	if l, ok := cmd.([]any); ok {
		for _, w := range l {
			s.Argv = append(s.Argv, plain(w))
		}
		if len(s.Argv) == 0 {
			return fault.Invalid("command_empty", "there is no command to run")
		}
		return nil
	}
	text := plain(cmd)
	if c.Off("python_shell") {
		words, err := Words(text)
		if err != nil {
			return err
		}
		if len(words) == 0 {
			return fault.Invalid("command_empty", "there is no command to run")
		}
		if strings.HasPrefix(words[0], "~/") {
			if home, err := os.UserHomeDir(); err == nil {
				words[0] = home + words[0][1:]
			}
		}
		s.Argv = words
		return nil
	}
	s.Line = text
	return nil
}

// plain is a value as a word of a command line: numbers without a fraction have none.
func plain(v any) string {
	if f, ok := v.(float64); ok {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return module.Text(v)
}

// outcome is what run_all shows.
type outcome struct {
	pid, code   int
	out, errout string
	timedOut    bool
}

func (o outcome) dict() map[string]any {
	return map[string]any{"pid": int64(o.pid), "retcode": int64(o.code), "stdout": o.out, "stderr": o.errout}
}

// execute runs s and reads the result as the arguments of the call want it.
func execute(ctx context.Context, c *module.Call, s Spec) (outcome, error) {
	decode, err := decoder(c.Str("output_encoding"))
	if err != nil {
		return outcome{}, err
	}
	r, err := Run(ctx, s)
	if err != nil {
		return outcome{}, err
	}
	o := outcome{pid: r.PID, code: r.Code, out: decode(r.Out), errout: decode(r.Err), timedOut: r.TimedOut}
	if !c.Off("rstrip") {
		o.out, o.errout = strings.TrimRight(o.out, " \t\r\n\v\f"), strings.TrimRight(o.errout, " \t\r\n\v\f")
	}
	if r.TimedOut {
		name := s.Line
		if len(s.Argv) > 0 {
			name = strings.Join(s.Argv, " ")
		}
		o.code = 1
		o.out = strings.TrimLeft(o.out+fmt.Sprintf("\n'%s' : Timed out after %g seconds", Text([]byte(short(name))), s.Timeout.Seconds()), "\n")
	} else if o.code != 0 && succeeded(c, o) {
		o.code = 0
	}
	if c.Bool("hide_output") {
		o.out, o.errout = "", ""
	}
	if !c.Bool("ignore_retcode") {
		c.RC = o.code
	}
	return o, nil
}

// succeeded tells whether a return code that is not zero is a success nevertheless.
func succeeded(c *module.Call, o outcome) bool {
	if slices.ContainsFunc(c.List("success_retcodes"), func(v any) bool { return plain(v) == strconv.Itoa(o.code) }) {
		return true
	}
	return slices.ContainsFunc(c.Strs("success_stdout"), func(t string) bool { return t != "" && strings.Contains(o.out, t) }) ||
		slices.ContainsFunc(c.Strs("success_stderr"), func(t string) bool { return t != "" && strings.Contains(o.errout, t) })
}

// decoder turns the bytes of an encoding into a text.
func decoder(encoding string) (func([]byte) string, error) {
	switch strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(encoding)) {
	case "", "utf8", "ascii", "usascii":
		return Text, nil
	case "latin1", "iso88591", "l1":
		return func(b []byte) string {
			r := make([]rune, len(b))
			for i, c := range b {
				r[i] = rune(c)
			}
			return string(r)
		}, nil
	}
	return nil, fault.Invalid("encoding_unknown", "the encoding %q is not known", encoding).Fix("utf-8 and latin-1 are")
}

// started makes a call's specification, runs it and gives the outcome; in test mode it gives
// only what would be run.
func started(ctx context.Context, c *module.Call, change func(*Spec)) (outcome, string, error) {
	s, err := spec(c)
	if err == nil {
		err = s.line(c, c.Any("cmd"))
	}
	if err != nil {
		return outcome{}, "", err
	}
	if change != nil {
		change(&s)
	}
	if c.Test {
		return outcome{}, "would run: " + would(s), nil
	}
	o, err := execute(ctx, c, s)
	return o, "", err
}

func would(s Spec) string {
	if len(s.Argv) == 0 {
		return s.Line
	}
	var words []string
	for _, w := range s.Argv {
		words = append(words, Quote(w))
	}
	return strings.Join(words, " ")
}

func cmdRun(ctx context.Context, c *module.Call) (any, error) {
	o, would, err := started(ctx, c, func(s *Spec) { s.Join = true })
	if err != nil || would != "" {
		return would, err
	}
	if c.Bool("raise_err") && o.code != 0 {
		return nil, fault.Conflict("command_failed", "the command failed with %d: %s", o.code, short(o.out))
	}
	return o.out, nil
}

func cmdRunAll(ctx context.Context, c *module.Call) (any, error) {
	o, would, err := started(ctx, c, func(s *Spec) { s.Join = c.Bool("redirect_stderr") })
	if err != nil {
		return nil, err
	}
	if would != "" {
		return map[string]any{"pid": nil, "retcode": int64(0), "stdout": would, "stderr": ""}, nil
	}
	if c.Bool("bg") {
		return map[string]any{"pid": int64(o.pid)}, nil
	}
	return o.dict(), nil
}

func cmdRunBg(ctx context.Context, c *module.Call) (any, error) {
	o, would, err := started(ctx, c, func(s *Spec) { s.Away = true })
	if err != nil || would != "" {
		return would, err
	}
	return map[string]any{"pid": int64(o.pid)}, nil
}

// pick runs a command and gives one part of the outcome.
func pick(key string) module.Run {
	return func(ctx context.Context, c *module.Call) (any, error) {
		o, would, err := started(ctx, c, nil)
		if err != nil || would != "" {
			return would, err
		}
		return o.dict()[key], nil
	}
}

// stage puts a program that is to run once into a directory of its own, where the user whom it
// runs as can read it. The caller removes the directory.
func stage(ctx context.Context, name, user string, code []byte) (file string, remove func() error, err error) {
	owner := -1
	if user != "" {
		a, err := FindUser(ctx, user)
		if err != nil {
			return "", nil, err
		}
		owner = int(a.UID)
	}
	dir, err := os.MkdirTemp("", "drover-")
	if err != nil {
		return "", nil, err
	}
	file = filepath.Join(dir, name)
	if err := errors.Join(os.Chmod(dir, 0o711), write(file, code), os.Chown(file, owner, -1)); err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return file, func() error { return os.RemoveAll(dir) }, nil
}

// write writes an executable file. No process may be forked meanwhile: it would hold the file
// open for a moment, and what is open for writing cannot be executed.
func write(file string, code []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(file, code, 0o500)
}

// script fetches and runs a script.
func script(ctx context.Context, c *module.Call) (o outcome, text string, missing bool, err error) {
	s, err := spec(c)
	if err != nil {
		return o, "", false, err
	}
	source := c.Str("source")
	args := ""
	switch a := c.Any("args").(type) {
	case nil:
	case []any:
		var words []string
		for _, w := range a {
			words = append(words, Quote(plain(w)))
		}
		args = strings.Join(words, " ")
	default:
		args = plain(a)
	}
	if c.Test {
		return o, strings.TrimSpace("would run: " + source + " " + args), false, nil
	}
	if c.Host == nil || c.Fetch == nil {
		return o, "", false, fault.Unavailable("fetch_missing", "this agent cannot fetch %s", source)
	}
	in, err := c.Fetch(ctx, source)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || fault.As(err).Kind == fault.KindNotFound {
			return o, "", true, nil
		}
		return o, "", false, err
	}
	defer in.Close()
	code, err := io.ReadAll(io.LimitReader(in, maxScript+1))
	if err != nil {
		return o, "", false, err
	}
	if len(code) > maxScript {
		return o, "", false, fault.TooLarge("script_large", "the script %s is larger than %d bytes", source, maxScript)
	}
	file, remove, err := stage(ctx, scriptName(source), s.User, code)
	if err != nil {
		return o, "", false, err
	}
	if s.Away {
		remove = nil // it may be read at any time; what cleans the directory of temporary files takes it
	}
	if remove != nil {
		defer func() { err = errors.Join(err, remove()) }()
	}
	if err := s.line(c, strings.TrimSpace(Quote(file)+" "+args)); err != nil {
		return o, "", false, err
	}
	o, err = execute(ctx, c, s)
	return o, "", false, err
}

// scriptName is a name for the file of a script, with its ending.
func scriptName(source string) string {
	source, _, _ = strings.Cut(source, "?")
	n := filepath.Base(source)
	if n == "" || n == "." || n == "/" || len(n) > 100 || strings.Trim(n, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != "" {
		return "script"
	}
	return n
}

func cmdScript(ctx context.Context, c *module.Call) (any, error) {
	o, would, missing, err := script(ctx, c)
	switch {
	case err != nil:
		return nil, err
	case missing:
		c.RC = 1
		return map[string]any{"pid": int64(0), "retcode": int64(1), "stdout": "", "stderr": "", "cache_error": true}, nil
	case would != "":
		return map[string]any{"pid": nil, "retcode": int64(0), "stdout": would, "stderr": ""}, nil
	case c.Bool("bg"):
		return map[string]any{"pid": int64(o.pid)}, nil
	}
	return o.dict(), nil
}

func cmdScriptRetcode(ctx context.Context, c *module.Call) (any, error) {
	o, would, missing, err := script(ctx, c)
	switch {
	case err != nil || would != "":
		return would, err
	case missing:
		c.RC = 1
		return int64(1), nil
	}
	return int64(o.code), nil
}

// execCode runs a piece of code, given as a text or as a list of lines.
func execCode(all bool) module.Run {
	return func(ctx context.Context, c *module.Call) (any, error) {
		code := plain(c.Any("code"))
		if l, ok := c.Any("code").([]any); ok {
			var lines []string
			for _, v := range l {
				lines = append(lines, plain(v))
			}
			code = strings.Join(lines, "\n")
		}
		words, err := Words(c.Str("lang"))
		if err != nil || len(words) == 0 {
			return nil, fault.Invalid("lang_bad", "%q is no interpreter", c.Str("lang")).Wrap(err)
		}
		if c.Test {
			return "would run " + c.Str("lang") + " with a code of " + strconv.Itoa(len(code)) + " bytes", nil
		}
		s := Spec{Dir: c.Str("cwd"), User: extra(c, "runas"), Join: !all}
		file, remove, err := stage(ctx, "code", s.User, []byte(code+"\n"))
		if err != nil {
			return nil, err
		}
		s.Argv = append(words, file)
		switch a := c.Any("args").(type) {
		case nil:
		case []any:
			for _, v := range a {
				s.Argv = append(s.Argv, plain(v))
			}
		default:
			s.Argv = append(s.Argv, plain(a))
		}
		o, err := execute(ctx, c, s)
		if err := errors.Join(err, remove()); err != nil {
			return nil, err
		}
		if all {
			return o.dict(), nil
		}
		return o.out, nil
	}
}

// extra is a keyword that the function does not name.
func extra(c *module.Call, name string) string {
	s, _ := c.Extra[name].(string)
	return s
}

// shells reads a file of the form of /etc/shells.
func shells(file string) (any, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return []any{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, err
	}
	out := []any{}
	for _, l := range module.Lines(Text(b)) {
		if l = strings.TrimSpace(l); l != "" && l[0] != '#' {
			out = append(out, l)
		}
	}
	return out, nil
}
