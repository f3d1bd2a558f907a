package command

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func host(t *testing.T) *module.Host {
	t.Helper()
	return &module.Host{Dir: t.TempDir(), ID: "host1",
		Grains: func(context.Context) (map[string]any, error) { return map[string]any{"os": "Test"}, nil },
		Fetch: func(_ context.Context, s string) (io.ReadCloser, error) {
			if s == "salt://hello.sh" {
				return io.NopCloser(strings.NewReader("#!/bin/sh\necho \"hello $*\"; exit 3\n")), nil
			}
			return nil, fs.ErrNotExist
		}}
}

func ask(t *testing.T, all []module.Function, name string, args []any, named map[string]any, test bool) (any, *module.Call, error) {
	t.Helper()
	f, ok := module.NewRegistry(all).Get(name)
	if !ok {
		t.Fatalf("no function %s", name)
	}
	c, err := module.Bind(host(t), f, args, named, test)
	if err != nil {
		t.Fatal(err)
	}
	v, err := f.Run(t.Context(), c)
	return v, c, err
}

// kw makes named arguments of pairs.
func kw(pairs ...any) map[string]any {
	m := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i].(string)] = pairs[i+1]
	}
	return m
}

func TestFunctions(t *testing.T) {
	nobody, err := FindUser(t.Context(), "nobody")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, x := range []struct {
		fun   string
		args  []any
		named map[string]any
		want  any
		rc    int
	}{
		{"cmd.run", []any{"echo out; echo err >&2; exit 4"}, nil, "out\nerr", 4},
		{"cmd.run", []any{"echo out; exit 4"}, kw("ignore_retcode", true), "out", 0},
		{"cmd.run", []any{"exit 4"}, kw("success_retcodes", "4,5"), "", 0},
		{"cmd.run", []any{"echo all fine; exit 4"}, kw("success_stdout", []any{"fine"}), "all fine", 0},
		{"cmd.run", []any{"echo '$HOME  a' $B"}, kw("python_shell", false), "$HOME  a $B", 0},
		{"cmd.run", []any{[]any{"echo", "$A", 3.0}}, nil, "$A 3", 0},
		{"cmd.run", []any{"echo $A$B"}, kw("env", []any{map[string]any{"A": 1.0}, map[string]any{"B": "x y"}}), "1x y", 0},
		{"cmd.run", []any{"/usr/bin/env | grep -v -e PWD -e SHLVL -e '^_='"}, kw("clean_env", true, "env", kw("A", "1"), "reset_system_locale", false), "A=1\nPATH=" + defaultPath, 0},
		{"cmd.run", []any{"echo $LC_ALL"}, nil, "C", 0},
		{"cmd.run", []any{"pwd"}, kw("cwd", dir), dir, 0},
		{"cmd.run", []any{"cat"}, kw("stdin", "from here"), "from here", 0},
		{"cmd.run", []any{"cat"}, nil, "", 0},
		{"cmd.run", []any{"umask"}, kw("umask", "027"), "0027", 0},
		{"cmd.run", []any{"echo a; echo"}, kw("rstrip", false), "a\n\n", 0},
		{"cmd.run", []any{"echo secret; exit 2"}, kw("hide_output", true), "", 2},
		{"cmd.run", []any{`printf 'a\377b'`}, nil, "a\uFFFDb", 0},
		{"cmd.run", []any{`printf 'a\344b'`}, kw("output_encoding", "latin-1"), "aäb", 0},
		{"cmd.run", []any{"echo $0"}, kw("shell", "/bin/bash"), "/bin/bash", 0},
		{"cmd.run", []any{"id -u; id -g; id -G; echo $HOME $USER $LOGNAME; pwd"}, kw("runas", "nobody"),
			fmt.Sprintf("%d\n%d\n%d\n%s nobody nobody\n/", nobody.UID, nobody.GID, nobody.GID, nobody.Home), 0},
		{"cmd.run", []any{"id -g"}, kw("runas", "nobody", "group", "daemon"), "1", 0},
		{"cmd.shell", []any{"echo a | tr a b"}, nil, "b", 0},
		{"cmd.run_stdout", []any{"echo out; echo err >&2"}, nil, "out", 0},
		{"cmd.run_stderr", []any{"echo out; echo err >&2"}, nil, "err", 0},
		{"cmd.retcode", []any{"exit 7"}, nil, int64(7), 7},
		{"cmd.retcode", []any{"kill -9 $$"}, nil, int64(137), 137},
		{"cmd.exec_code", []any{"sh", []any{"echo a $1", "echo b"}}, kw("args", []any{"x"}), "a x\nb", 0},
		{"cmd.exec_code", []any{"sh -e", "false; echo no"}, nil, "", 1},
		{"cmd.exec_code", []any{"sh", "id -un"}, kw("runas", "nobody"), "nobody", 0},
		{"cmd.has_exec", []any{"sh"}, nil, true, 0},
		{"cmd.has_exec", []any{"no-such-program"}, nil, false, 0},
		{"cmd.which", []any{"no-such-program"}, nil, nil, 0},
		{"cmd.which", []any{"/bin/sh"}, nil, "/bin/sh", 0},
		{"cmd.script_retcode", []any{"salt://hello.sh"}, nil, int64(3), 3},
		{"cmd.script", []any{"salt://missing.sh"}, nil, kw("pid", int64(0), "retcode", int64(1), "stdout", "", "stderr", "", "cache_error", true), 1},
	} {
		got, c, err := ask(t, Functions(), x.fun, x.args, x.named, false)
		if err != nil {
			t.Errorf("%s %v %v: %v", x.fun, x.args, x.named, err)
			continue
		}
		if d := cmp.Diff(x.want, got); d != "" || c.RC != x.rc {
			t.Errorf("%s %v %v: RC %d, want %d; %s", x.fun, x.args, x.named, c.RC, x.rc, d)
		}
	}
}

func TestRunAllAndScript(t *testing.T) {
	v, c, err := ask(t, Functions(), "cmd.run_all", []any{"echo out; echo err >&2; exit 2"}, nil, false)
	m, _ := v.(map[string]any)
	if err != nil || m["pid"].(int64) < 2 || m["retcode"] != int64(2) || m["stdout"] != "out" || m["stderr"] != "err" || c.RC != 2 {
		t.Fatal(v, err)
	}
	for _, as := range []any{nil, "nobody"} {
		v, _, err = ask(t, Functions(), "cmd.script", []any{"salt://hello.sh", "a 'b  c'"}, kw("runas", as), false)
		if m, _ := v.(map[string]any); err != nil || m["stdout"] != "hello a b  c" || m["retcode"] != int64(3) {
			t.Fatal(v, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "drover-*", "hello.sh"))
	if err != nil || len(left) > 0 {
		t.Fatal("scripts are left over: ", left, err)
	}
}

func TestErrors(t *testing.T) {
	for _, x := range []struct {
		args  any
		named map[string]any
		code  string
	}{
		{"no-such-program x", kw("python_shell", false), "program_missing"},
		{"/etc/passwd x", kw("python_shell", false), "command_not_started"},
		{"echo 'a", kw("python_shell", false), "words_bad"},
		{"  ", nil, "command_empty"},
		{"pwd", kw("cwd", "/no/such"), "cwd_bad"},
		{"pwd", kw("cwd", "tmp"), "cwd_bad"},
		{"id", kw("runas", "no-such-user"), "user_missing"},
		{"id", kw("group", "no-such-group"), "group_missing"},
		{"id", kw("umask", "9"), "umask_bad"},
		{"id", kw("env", "A"), "env_bad"},
		{"id", kw("template", "jinja"), "template_later"},
		{"id", kw("output_encoding", "klingon"), "encoding_unknown"},
		{"echo broken; exit 3", kw("raise_err", true), "command_failed"},
		{"a\x00b", nil, "command_nul"},
	} {
		_, _, err := ask(t, Functions(), "cmd.run", []any{x.args}, x.named, false)
		if fault.Code(err) != x.code {
			t.Errorf("%v %v: %v, want %s", x.args, x.named, err, x.code)
		}
	}
}

func TestTestMode(t *testing.T) {
	file := filepath.Join(t.TempDir(), "made")
	v, _, err := ask(t, Functions(), "cmd.run", []any{"touch " + file}, nil, true)
	if err != nil || v != "would run: touch "+file {
		t.Fatal(v, err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Fatal("test mode ran the command")
	}
}

// gone waits until a process is no more, or only a zombie that nobody reaped.
func gone(t *testing.T, pid string) {
	t.Helper()
	for range 100 {
		b, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(b), ") Z ") {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("process %s still runs", pid)
}

func TestTimeoutKillsTheGroup(t *testing.T) {
	began := time.Now()
	v, c, err := ask(t, Functions(), "cmd.run", []any{"sleep 300 & echo $!; wait"}, kw("timeout", 0.3), false)
	if err != nil || c.RC != 1 || time.Since(began) > 10*time.Second {
		t.Fatal(v, err, c.RC)
	}
	pid, message, _ := strings.Cut(v.(string), "\n")
	if !strings.Contains(message, "Timed out after 0.3 seconds") {
		t.Fatal(v)
	}
	gone(t, pid)
}

func TestEndOfContextKillsTheGroup(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	file := filepath.Join(t.TempDir(), "pid")
	time.AfterFunc(300*time.Millisecond, cancel)
	_, err := Run(ctx, Spec{Line: "sleep 300 & echo $! >" + file + "; wait"})
	if fault.Code(err) != "command_stopped" {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	gone(t, strings.TrimSpace(string(b)))
}

func TestDaemonThatKeepsTheOutput(t *testing.T) {
	began := time.Now()
	v, _, err := ask(t, Functions(), "cmd.run", []any{"sleep 300 & echo $!"}, nil, false)
	if err != nil || time.Since(began) > 10*time.Second {
		t.Fatal(v, err, time.Since(began))
	}
	var pid int
	if _, err := fmt.Sscan(v.(string), &pid); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal("the daemon was ended with the call: ", err)
	}
}

func TestBackground(t *testing.T) {
	began := time.Now()
	v, _, err := ask(t, Functions(), "cmd.run_bg", []any{"exec sleep 300"}, nil, false)
	if err != nil || time.Since(began) > 5*time.Second {
		t.Fatal(v, err)
	}
	pid := int(v.(map[string]any)["pid"].(int64))
	if sid, err := unix.Getsid(pid); err != nil || sid == unix.Getpid() {
		t.Fatal(sid, err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_, _, err = ask(t, Functions(), "cmd.run", []any{"true"}, kw("bg", true), false)
	if err != nil {
		t.Fatal(err)
	}
}

func TestOutputIsBounded(t *testing.T) {
	r, err := Run(t.Context(), Spec{Argv: []string{"head", "-c", "1000000", "/dev/zero"}, Limit: 1000})
	if err != nil || r.Code != 0 || !r.Cut {
		t.Fatal(r.Code, r.Cut, err)
	}
	if len(r.Out) > 1100 || !strings.HasSuffix(string(r.Out), "\n[cut: more than 1000 bytes]\n") {
		t.Fatalf("%d bytes, %q", len(r.Out), r.Out[len(r.Out)-40:])
	}
}

func TestUserByNumberAndShells(t *testing.T) {
	a, err := FindUser(t.Context(), "0")
	if err != nil || a.Name != "root" || a.Home != "/root" {
		t.Fatal(a, err)
	}
	for _, bad := range []string{"", "-h", "a:b", "no-such-user"} {
		if _, err := FindUser(t.Context(), bad); fault.Code(err) != "user_missing" {
			t.Error(bad, err)
		}
	}
	file := filepath.Join(t.TempDir(), "shells")
	if err := os.WriteFile(file, []byte("# shells\n/bin/sh\n\n /bin/bash\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := shells(file)
	if d := cmp.Diff([]any{"/bin/sh", "/bin/bash"}, got); d != "" || err != nil {
		t.Fatal(d, err)
	}
}
