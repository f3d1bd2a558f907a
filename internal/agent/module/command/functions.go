package command

import (
	"context"

	"drover/internal/agent/module"
)

// params are the arguments of a function that runs something, in Salt's order; without says
// which of them this one has not.
func params(first []module.Param, without ...string) []module.Param {
	skip := map[string]bool{}
	for _, w := range without {
		skip[w] = true
	}
	all := append(first,
		module.May("cwd", module.Str, nil), module.May("stdin", module.Str, nil), module.May("runas", module.Str, nil), module.May("group", module.Str, nil),
		module.May("shell", module.Str, "/bin/sh"), module.May("python_shell", module.Bool, nil), module.May("env", module.Any, nil), module.May("clean_env", module.Bool, false),
		module.May("template", module.Str, nil), module.May("rstrip", module.Bool, true), module.May("umask", module.Any, nil), module.May("output_encoding", module.Str, nil),
		module.May("output_loglevel", module.Any, "debug"), module.May("log_callback", module.Any, nil), module.May("hide_output", module.Bool, false), module.May("timeout", module.Num, nil),
		module.May("reset_system_locale", module.Bool, true), module.May("ignore_retcode", module.Bool, false), module.May("saltenv", module.Str, nil), module.May("use_vt", module.Bool, false),
		module.May("redirect_stderr", module.Bool, false), module.May("bg", module.Bool, false), module.May("password", module.Str, nil), module.May("encoded_cmd", module.Bool, false),
		module.May("raise_err", module.Bool, false), module.May("prepend_path", module.Str, nil), module.May("success_retcodes", module.List, nil), module.May("success_stdout", module.List, nil),
		module.May("success_stderr", module.List, nil))
	out := all[:0:0]
	for _, p := range all {
		if !skip[p.Name] {
			out = append(out, p)
		}
	}
	return out
}

// runs is a function that runs something: in test mode it says what it would run.
func runs(name, doc string, f module.Run, first []module.Param, without ...string) module.Function {
	return module.Function{Name: name, Doc: doc, Params: params(first, without...), Extra: true, Tests: true, Run: f}
}

// Functions are the functions of Salt's cmd module.
func Functions() []module.Function {
	cmd := []module.Param{module.Need("cmd", module.Any)}
	source := []module.Param{module.Need("source", module.Str), module.May("args", module.Any, nil)}
	code := []module.Param{module.Need("lang", module.Str), module.Need("code", module.Any), module.May("cwd", module.Str, nil), module.May("args", module.Any, nil)}
	return []module.Function{
		runs("cmd.run", "Runs a command and shows what it printed, errors among it.\n\nsalt '*' cmd.run 'ls -l /etc' cwd=/", cmdRun, cmd, "redirect_stderr"),
		runs("cmd.shell", "Runs a command by the shell, whatever python_shell says.\n\nsalt '*' cmd.shell 'ls /etc | wc -l'", cmdRun, cmd, "python_shell", "redirect_stderr", "encoded_cmd", "raise_err"),
		runs("cmd.run_stdout", "Runs a command and shows its output without its errors.\n\nsalt '*' cmd.run_stdout 'ls -l /etc'", pick("stdout"), cmd, "redirect_stderr", "bg", "encoded_cmd", "raise_err"),
		runs("cmd.run_stderr", "Runs a command and shows what it wrote as errors.\n\nsalt '*' cmd.run_stderr 'ls /nowhere'", pick("stderr"), cmd, "redirect_stderr", "bg", "encoded_cmd", "raise_err"),
		runs("cmd.run_all", "Runs a command and shows its number, return code, output and errors.\n\nsalt '*' cmd.run_all 'ls -l /etc'", cmdRunAll, cmd, "raise_err"),
		runs("cmd.retcode", "Runs a command and shows its return code.\n\nsalt '*' cmd.retcode 'test -e /etc/passwd'", pick("retcode"), cmd, "rstrip", "hide_output", "redirect_stderr", "bg", "encoded_cmd", "raise_err", "prepend_path"),
		runs("cmd.run_bg", "Starts a command, leaves it to run and shows its number.\n\nsalt '*' cmd.run_bg 'sleep 3600'", cmdRunBg, cmd, "stdin", "rstrip", "hide_output", "redirect_stderr", "use_vt", "bg", "encoded_cmd", "raise_err", "success_retcodes", "success_stdout", "success_stderr"),
		runs("cmd.script", "Fetches a script, runs it and shows its number, return code, output and errors.\n\nsalt '*' cmd.script salt://scripts/run.sh 'one two'", cmdScript, source, "clean_env", "rstrip", "ignore_retcode", "redirect_stderr", "encoded_cmd", "raise_err", "prepend_path"),
		runs("cmd.script_retcode", "Fetches a script, runs it and shows its return code.\n\nsalt '*' cmd.script_retcode salt://scripts/run.sh", cmdScriptRetcode, source, "clean_env", "rstrip", "hide_output", "ignore_retcode", "redirect_stderr", "bg", "encoded_cmd", "raise_err", "prepend_path"),
		{Name: "cmd.exec_code", Doc: "Runs a piece of code by an interpreter and shows what it printed.\n\nsalt '*' cmd.exec_code bash 'echo $0'", Params: code, Extra: true, Tests: true, Run: execCode(false)},
		{Name: "cmd.exec_code_all", Doc: "Runs a piece of code by an interpreter and shows its number, return code, output and errors.\n\nsalt '*' cmd.exec_code_all bash 'echo $0'", Params: code, Extra: true, Tests: true, Run: execCode(true)},
		module.Reads("cmd.has_exec", "Tells whether a program is there.\n\nsalt '*' cmd.has_exec cat", func(_ context.Context, c *module.Call) (any, error) { return Which(c.Str("cmd"), "") != "", nil }, module.Need("cmd", module.Str)),
		module.Reads("cmd.which", "Tells the file of a program.\n\nsalt '*' cmd.which cat", func(_ context.Context, c *module.Call) (any, error) { return orNone(Which(c.Str("cmd"), "")), nil }, module.Need("cmd", module.Str)),
		module.Reads("cmd.which_bin", "Tells the file of the first program of several that is there.\n\nsalt '*' cmd.which_bin '[pip3, pip]'", func(_ context.Context, c *module.Call) (any, error) {
			for _, n := range c.Strs("cmds") {
				if p := Which(n, ""); p != "" {
					return p, nil
				}
			}
			return nil, nil
		}, module.Need("cmds", module.List)),
		module.Reads("cmd.shells", "Lists the shells that users may have.\n\nsalt '*' cmd.shells", func(context.Context, *module.Call) (any, error) { return shells("/etc/shells") }),
	}
}

func orNone(s string) any {
	if s == "" {
		return nil
	}
	return s
}
