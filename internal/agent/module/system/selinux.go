package system

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

const selinuxConfig = "/etc/selinux/config"

func (m *machine) selinux() []module.Function {
	name := module.Need("name", module.Str)
	kind, ctype := module.May("filetype", module.Str, nil), module.May("sel_type", module.Str, nil)
	user, level := module.May("sel_user", module.Str, nil), module.May("sel_level", module.Str, nil)
	proto, port := module.May("protocol", module.Str, nil), module.May("port", module.Str, nil)
	mod := func(fn, doc, flag string) module.Function {
		return module.Tests("selinux."+fn, doc, func(ctx context.Context, c *module.Call) (any, error) {
			return m.semodule(ctx, c, flag, c.Str(firstParam(fn)))
		}, module.Need(firstParam(fn), module.Str))
	}
	return []module.Function{
		module.Reads("selinux.selinux_fs_path", "Tells where the file system of SELinux is mounted.\n\nsalt '*' selinux.selinux_fs_path", func(context.Context, *module.Call) (any, error) {
			if p := m.selinuxfs(); p != "" {
				return p, nil
			}
			return nil, nil
		}),
		module.Reads("selinux.getenforce", "Tells the mode of SELinux.\n\nsalt '*' selinux.getenforce", func(context.Context, *module.Call) (any, error) { return m.getenforce(), nil }),
		module.Reads("selinux.getconfig", "Tells the mode of SELinux at the next boot.\n\nsalt '*' selinux.getconfig", func(context.Context, *module.Call) (any, error) {
			lines, err := m.lines(selinuxConfig)
			for _, l := range lines {
				if v, ok := strings.CutPrefix(strings.TrimSpace(l), "SELINUX="); ok {
					return title(v), nil
				}
			}
			if os.IsNotExist(err) {
				err = nil
			}
			return nil, err
		}),
		module.Tests("selinux.setenforce", "Sets the mode of SELinux, now and for every boot.\n\nsalt '*' selinux.setenforce permissive", m.setenforce, module.Need("mode", module.Any)),
		module.Reads("selinux.list_sebool", "Lists the booleans of the policy.\n\nsalt '*' selinux.list_sebool", func(ctx context.Context, _ *module.Call) (any, error) { return m.sebools(ctx) }),
		module.Reads("selinux.getsebool", "Shows a boolean of the policy.\n\nsalt '*' selinux.getsebool httpd_can_network_connect", func(ctx context.Context, c *module.Call) (any, error) {
			all, err := m.sebools(ctx)
			if v, ok := all[c.Str("boolean")]; ok {
				return v, nil
			}
			return map[string]any{}, err
		}, module.Need("boolean", module.Str)),
		module.Tests("selinux.setsebool", "Sets a boolean of the policy, with persist for every boot.\n\nsalt '*' selinux.setsebool httpd_can_network_connect on", func(ctx context.Context, c *module.Call) (any, error) {
			return m.setsebools(ctx, c, map[string]any{c.Str("boolean"): c.Any("value")})
		}, module.Need("boolean", module.Str), module.Need("value", module.Any), module.May("persist", module.Bool, false)),
		module.Tests("selinux.setsebools", "Sets several booleans of the policy at once.\n\nsalt '*' selinux.setsebools '{httpd_can_network_connect: on}'", func(ctx context.Context, c *module.Call) (any, error) {
			return m.setsebools(ctx, c, c.Map("pairs"))
		}, module.Need("pairs", module.Map), module.May("persist", module.Bool, false)),
		module.Reads("selinux.list_semod", "Lists the modules of the policy.\n\nsalt '*' selinux.list_semod", func(ctx context.Context, _ *module.Call) (any, error) { return m.semodules(ctx) }),
		module.Reads("selinux.getsemod", "Shows a module of the policy.\n\nsalt '*' selinux.getsemod zabbix", func(ctx context.Context, c *module.Call) (any, error) {
			all, err := m.semodules(ctx)
			if v, ok := all[c.Str("module")]; ok {
				return v, nil
			}
			return map[string]any{}, err
		}, module.Need("module", module.Str)),
		module.Tests("selinux.setsemod", "Enables or disables a module of the policy.\n\nsalt '*' selinux.setsemod nagios Enabled", func(ctx context.Context, c *module.Call) (any, error) {
			switch strings.ToLower(c.Str("state")) {
			case "enabled":
				return m.semodule(ctx, c, "-e", c.Str("module"))
			case "disabled":
				return m.semodule(ctx, c, "-d", c.Str("module"))
			}
			return nil, fault.Invalid("bad_state", "a module of the policy is Enabled or Disabled, not %q", c.Str("state"))
		}, module.Need("module", module.Str), module.Need("state", module.Str)),
		mod("install_semod", "Installs a module of the policy from a file.\n\nsalt '*' selinux.install_semod /srv/my.pp", "-i"),
		mod("remove_semod", "Removes a module of the policy.\n\nsalt '*' selinux.remove_semod my", "-r"),
		module.Reads("selinux.fcontext_get_policy", "Shows the rule for the labels of files with a pattern.\n\nsalt '*' selinux.fcontext_get_policy '/srv(/.*)?'", func(ctx context.Context, c *module.Call) (any, error) {
			return m.fcontext(ctx, c)
		}, name, kind, ctype, user, level),
		module.Tests("selinux.fcontext_add_policy", "Adds or changes the rule for the labels of files with a pattern.\n\nsalt '*' selinux.fcontext_add_policy '/srv(/.*)?' sel_type=httpd_sys_content_t",
			func(ctx context.Context, c *module.Call) (any, error) { return m.fcontextChange(ctx, c, "add") }, name, kind, ctype, user, level),
		module.Tests("selinux.fcontext_delete_policy", "Deletes the rule for the labels of files with a pattern.\n\nsalt '*' selinux.fcontext_delete_policy '/srv(/.*)?'",
			func(ctx context.Context, c *module.Call) (any, error) { return m.fcontextChange(ctx, c, "delete") }, name, kind, ctype, user, level),
		module.Reads("selinux.fcontext_policy_is_applied", "Says which labels below a path differ from the policy, or nothing.\n\nsalt '*' selinux.fcontext_policy_is_applied /srv", func(ctx context.Context, c *module.Call) (any, error) {
			o, err := m.restorecon(ctx, c, "-n", "-v")
			return o.Out, err
		}, name, module.May("recursive", module.Bool, false)),
		module.Tests("selinux.fcontext_apply_policy", "Labels files as the policy says.\n\nsalt '*' selinux.fcontext_apply_policy /srv recursive=True", m.fcontextApply, name, module.May("recursive", module.Bool, false)),
		module.Reads("selinux.port_get_policy", "Shows the type of a port.\n\nsalt '*' selinux.port_get_policy tcp/80", func(ctx context.Context, c *module.Call) (any, error) { return m.port(ctx, c) }, name, ctype, proto, port),
		module.Tests("selinux.port_add_policy", "Gives a port a type.\n\nsalt '*' selinux.port_add_policy tcp/8080 http_port_t", func(ctx context.Context, c *module.Call) (any, error) {
			return m.portChange(ctx, c, "add")
		}, name, ctype, proto, port, module.May("sel_range", module.Str, nil)),
		module.Tests("selinux.port_delete_policy", "Takes its type from a port.\n\nsalt '*' selinux.port_delete_policy tcp/8080", func(ctx context.Context, c *module.Call) (any, error) {
			return m.portChange(ctx, c, "delete")
		}, name, proto, port),
	}
}

// firstParam is the name that Salt gives to the argument of these functions.
func firstParam(fn string) string {
	if fn == "install_semod" {
		return "module_path"
	}
	return "module"
}

func title(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func (m *machine) selinuxfs() string {
	for _, p := range []string{"/sys/fs/selinux", "/selinux"} {
		if m.exists(p + "/enforce") {
			return p
		}
	}
	return ""
}

func (m *machine) getenforce() string {
	switch p := m.selinuxfs(); {
	case p == "":
		return "Disabled"
	case m.text(p+"/enforce") == "1":
		return "Enforcing"
	}
	return "Permissive"
}

func (m *machine) setenforce(_ context.Context, c *module.Call) (any, error) {
	var mode string
	switch v := c.Any("mode").(type) {
	case bool:
		mode = map[bool]string{true: "enforcing", false: "permissive"}[v]
	default:
		switch s := strings.ToLower(module.Text(v)); s {
		case "1", "1.0", "enforcing":
			mode = "enforcing"
		case "0", "0.0", "permissive":
			mode = "permissive"
		case "disabled":
			mode = s
		default:
			return "Invalid mode " + module.Text(v), nil // as Salt answers
		}
	}
	if c.Test {
		return title(mode), nil
	}
	if p := m.selinuxfs(); p != "" {
		b := "1"
		if mode != "enforcing" { // a kernel that runs cannot switch it off
			b = "0"
		}
		if err := os.WriteFile(m.path(p+"/enforce"), []byte(b), 0o644); err != nil {
			return nil, fault.Conflict("selinux_refused", "the mode of SELinux cannot be changed").Wrap(err)
		}
	}
	text, err := module.ReadIfThere(m.path(selinuxConfig))
	if err != nil {
		return nil, err
	}
	if text != "" {
		lines := module.Lines(text)
		found := false
		for i, l := range lines {
			if strings.HasPrefix(strings.TrimSpace(l), "SELINUX=") {
				lines[i], found = "SELINUX="+mode, true
			}
		}
		if !found {
			lines = append(lines, "SELINUX="+mode)
		}
		if next := strings.Join(lines, "\n") + "\n"; next != text {
			if err := writeKeep(m.path(selinuxConfig), next, 0o644); err != nil {
				return nil, err
			}
		}
	}
	return m.getenforce(), nil
}

// sebools are the booleans: states from the kernel, defaults and descriptions from semanage when
// it is there.
func (m *machine) sebools(ctx context.Context) (map[string]any, error) {
	out := map[string]any{}
	on := func(s string) string {
		if s == "1" {
			return "on"
		}
		return "off"
	}
	fs := m.selinuxfs()
	if fs == "" {
		return nil, fault.Unavailable("selinux_disabled", "SELinux is disabled on this host")
	}
	list, err := os.ReadDir(m.path(fs + "/booleans"))
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		now, pending, _ := strings.Cut(m.text(fs+"/booleans/"+e.Name()), " ")
		out[e.Name()] = map[string]any{"State": on(now), "Default": on(pending), "Description": ""}
	}
	o, err := m.run(ctx, "semanage", "boolean", "-l", "-n")
	if err != nil && fault.Code(err) != "program_missing" {
		return nil, err
	}
	for _, l := range module.Lines(o.Out) {
		if n, state, def, about, ok := seboolLine(l); ok {
			out[n] = map[string]any{"State": state, "Default": def, "Description": about}
		}
	}
	return out, nil
}

var reSebool = regexp.MustCompile(`^(\S+)\s+\(\s*(on|off)\s*,\s*(on|off)\s*\)\s*(.*)$`)

func seboolLine(l string) (name, state, def, about string, ok bool) {
	f := reSebool.FindStringSubmatch(l)
	if f == nil {
		return "", "", "", "", false
	}
	return f[1], f[2], f[3], strings.TrimSpace(f[4]), true
}

func (m *machine) setsebools(ctx context.Context, c *module.Call, pairs map[string]any) (any, error) {
	argv := []string{"setsebool"}
	if c.Bool("persist") {
		argv = append(argv, "-P")
	}
	n := len(argv)
	for k, v := range pairs {
		if err := module.NoOption("boolean", k); err != nil || strings.Contains(k, "=") {
			return nil, fault.Invalid("bad_name", "%q is not the name of a boolean", k)
		}
		s := strings.ToLower(module.Text(v))
		switch s {
		case "on", "true", "1", "1.0", "yes":
			s = "1"
		case "off", "false", "0", "0.0", "no":
			s = "0"
		default:
			return nil, fault.Invalid("bad_value", "the boolean %s is on or off, not %q", k, s)
		}
		argv = append(argv, k+"="+s)
	}
	slices.Sort(argv[n:])
	if c.Test || len(argv) == n {
		return true, nil
	}
	o, err := m.run(ctx, argv...)
	return err == nil && o.Code == 0, err
}

func (m *machine) semodules(ctx context.Context) (map[string]any, error) {
	text, err := m.must(ctx, "semodule", "-lfull")
	if err != nil {
		return nil, err
	}
	return parseSemodules(text), nil
}

// parseSemodules reads lines of priority, name, language and perhaps "disabled".
func parseSemodules(text string) map[string]any {
	out := map[string]any{}
	for _, l := range module.Lines(text) {
		if f := strings.Fields(l); len(f) >= 3 {
			out[f[1]] = map[string]any{"Enabled": field(f, 3) != "disabled", "Version": nil}
		}
	}
	return out
}

func (m *machine) semodule(ctx context.Context, c *module.Call, flag, name string) (any, error) {
	if err := module.NoOption("module of the policy", name); err != nil || c.Test {
		return true, err
	}
	o, err := m.run(ctx, "semodule", flag, name)
	return err == nil && o.Code == 0, err
}

// fileTypes are semanage's letters and words for Salt's letters.
var fileTypes = map[string]string{"a": "all files", "f": "regular file", "d": "directory", "c": "character device", "b": "block device", "s": "socket", "l": "symbolic link", "p": "named pipe"}

func fileType(s string) (letter, words string, err error) {
	if s == "" {
		s = "a"
	}
	words, ok := fileTypes[s]
	if !ok {
		return "", "", fault.Invalid("bad_filetype", "%q is not a type of file", s).Fix("use one of a f d c b s l p")
	}
	return s, words, nil
}

// fcontextLine reads a line of `semanage fcontext -l`: a pattern, a type of file, a context.
func fcontextLine(l string) (spec, kind string, label []string, ok bool) {
	f := strings.Fields(l)
	if len(f) < 3 {
		return "", "", nil, false
	}
	last := f[len(f)-1]
	head := strings.TrimSpace(l[:strings.LastIndex(l, last)])
	label = strings.SplitN(last, ":", 4)
	for _, words := range fileTypes {
		if spec, ok := strings.CutSuffix(head, " "+words); ok && len(label) == 4 && strings.TrimSpace(spec) != "" {
			return strings.TrimSpace(spec), words, label, true
		}
	}
	return "", "", nil, false
}

// fcontext finds the rule that a call is about, nil when there is none.
func (m *machine) fcontext(ctx context.Context, c *module.Call) (any, error) {
	_, words, err := fileType(c.Str("filetype"))
	if err != nil {
		return nil, err
	}
	text, err := m.must(ctx, "semanage", "fcontext", "-l", "-n")
	if err != nil {
		return nil, err
	}
	var found any
	for _, l := range module.Lines(text) {
		spec, kind, label, ok := fcontextLine(l)
		if !ok || spec != c.Str("name") || c.Has("filetype") && kind != words || c.Has("sel_user") && label[0] != c.Str("sel_user") ||
			c.Has("sel_type") && label[2] != c.Str("sel_type") || c.Has("sel_level") && label[3] != c.Str("sel_level") {
			continue
		}
		// The last line is the local one, which holds.
		found = map[string]any{"filespec": spec, "filetype": kind, "sel_user": label[0], "sel_role": label[1], "sel_type": label[2], "sel_level": label[3]}
	}
	return found, nil
}

func (m *machine) fcontextChange(ctx context.Context, c *module.Call, action string) (any, error) {
	letter, _, err := fileType(c.Str("filetype"))
	if err != nil {
		return nil, err
	}
	if err := module.NoOption("pattern", c.Str("name")); err != nil {
		return nil, err
	}
	if action == "add" && c.Str("sel_type") == "" {
		return nil, fault.Invalid("argument", "selinux.fcontext_add_policy needs sel_type")
	}
	argv := []string{"semanage", "fcontext"}
	if action == "add" {
		// semanage refuses to add what is there and to change what is not.
		text, err := m.must(ctx, "semanage", "fcontext", "-l", "-n", "-C")
		if err != nil {
			return nil, err
		}
		flag := "--add"
		for _, l := range module.Lines(text) {
			if spec, kind, _, ok := fcontextLine(l); ok && spec == c.Str("name") && kind == fileTypes[letter] {
				flag = "--modify"
			}
		}
		argv = append(argv, flag)
	} else {
		argv = append(argv, "--delete")
	}
	for _, o := range []struct{ flag, v string }{{"--ftype", letter}, {"--type", c.Str("sel_type")}, {"--seuser", c.Str("sel_user")}, {"--range", c.Str("sel_level")}} {
		if o.v == "" || action == "delete" && o.flag != "--ftype" && o.flag != "--type" {
			continue
		}
		if err := module.NoOption("label", o.v); err != nil {
			return nil, err
		}
		argv = append(argv, o.flag, o.v)
	}
	argv = append(argv, c.Str("name"))
	if c.Test {
		return map[string]any{"pid": int64(0), "retcode": int64(0), "stdout": "", "stderr": ""}, nil
	}
	return m.result(ctx, c, argv...)
}

// result runs a program and gives what Salt's cmd.run_all does.
func (m *machine) result(ctx context.Context, c *module.Call, argv ...string) (any, error) {
	o, err := m.run(ctx, argv...)
	if err != nil {
		return nil, err
	}
	if o.Code != 0 {
		c.RC = o.Code
	}
	return map[string]any{"pid": int64(0), "retcode": int64(o.Code), "stdout": strings.TrimRight(o.Out, "\n"), "stderr": strings.TrimRight(o.Err, "\n")}, nil
}

// plainPath is the path before the first sign of a pattern, for restorecon.
func plainPath(s string) string {
	if i := strings.IndexAny(s, `(*[+?\`); i >= 0 {
		s = s[:i]
		if j := strings.LastIndexByte(s, '/'); j > 0 && !strings.HasSuffix(s, "/") {
			if _, err := os.Lstat(s); err != nil {
				s = s[:j]
			}
		}
	}
	return s
}

func (m *machine) restorecon(ctx context.Context, c *module.Call, flags ...string) (output, error) {
	p := plainPath(c.Str("name"))
	if !strings.HasPrefix(p, "/") {
		return output{}, fault.Invalid("bad_name", "%q is not an absolute path", c.Str("name"))
	}
	argv := append([]string{"restorecon"}, flags...)
	if c.Bool("recursive") {
		argv = append(argv, "-R")
	}
	argv = append(argv, p)
	o, err := m.run(ctx, argv...)
	if err == nil && o.Code != 0 {
		err = failed(argv, o)
	}
	return o, err
}

var reRelabel = regexp.MustCompile(`^(?:Relabeled|Would relabel) (.+) from (\S+) to (\S+)$`)

func (m *machine) fcontextApply(ctx context.Context, c *module.Call) (any, error) {
	flags := []string{"-F", "-v"}
	if c.Test {
		flags = append(flags, "-n")
	}
	o, err := m.restorecon(ctx, c, flags...)
	if err != nil {
		return nil, err
	}
	changes := map[string]any{}
	for _, l := range module.Lines(o.Out) {
		if f := reRelabel.FindStringSubmatch(l); f != nil {
			changes[f[1]] = map[string]any{"old": label(f[2]), "new": label(f[3])}
		}
	}
	return map[string]any{"retcode": int64(0), "changes": changes}, nil
}

func label(s string) map[string]any {
	f := strings.SplitN(s, ":", 4)
	return map[string]any{"sel_user": field(f, 0), "sel_role": field(f, 1), "sel_type": field(f, 2), "sel_level": field(f, 3)}
}

// portName splits tcp/80 unless protocol and port are given by themselves.
func portName(c *module.Call) (protocol, port string, err error) {
	protocol, port = c.Str("protocol"), c.Str("port")
	if p, n, ok := strings.Cut(c.Str("name"), "/"); ok {
		if protocol == "" {
			protocol = p
		}
		if port == "" {
			port = n
		}
	}
	if !slices.Contains([]string{"tcp", "udp", "dccp", "sctp"}, protocol) || port == "" || strings.Trim(port, "0123456789-") != "" || port[0] == '-' {
		return "", "", fault.Invalid("bad_port", "%q is not a port as tcp/80", c.Str("name"))
	}
	return protocol, port, nil
}

func (m *machine) port(ctx context.Context, c *module.Call) (any, error) {
	protocol, port, err := portName(c)
	if err != nil {
		return nil, err
	}
	text, err := m.must(ctx, "semanage", "port", "-l", "-n")
	if err != nil {
		return nil, err
	}
	return findPort(text, protocol, port, c.Str("sel_type")), nil
}

// findPort looks for a port in lines of type, protocol and ports.
func findPort(text, protocol, port, kind string) any {
	for _, l := range module.Lines(text) {
		f := strings.Fields(l)
		if len(f) < 3 || f[1] != protocol || kind != "" && f[0] != kind {
			continue
		}
		ports := strings.Split(strings.ReplaceAll(strings.Join(f[2:], ""), " ", ""), ",")
		if slices.Contains(ports, port) {
			return map[string]any{"sel_type": f[0], "protocol": f[1], "port": strings.Join(ports, ", ")}
		}
	}
	return nil
}

func (m *machine) portChange(ctx context.Context, c *module.Call, action string) (any, error) {
	protocol, port, err := portName(c)
	if err != nil {
		return nil, err
	}
	argv := []string{"semanage", "port"}
	if action == "add" {
		if err := module.NoOption("type", c.Str("sel_type")); err != nil {
			return nil, err
		}
		text, err := m.must(ctx, "semanage", "port", "-l", "-n")
		if err != nil {
			return nil, err
		}
		flag := "--add"
		if findPort(text, protocol, port, "") != nil {
			flag = "--modify"
		}
		argv = append(argv, flag, "--type", c.Str("sel_type"))
		if r := c.Str("sel_range"); r != "" {
			if err := module.NoOption("range", r); err != nil {
				return nil, err
			}
			argv = append(argv, "--range", r)
		}
	} else {
		argv = append(argv, "--delete")
	}
	argv = append(argv, "--proto", protocol, port)
	if c.Test {
		return map[string]any{"pid": int64(0), "retcode": int64(0), "stdout": "", "stderr": ""}, nil
	}
	return m.result(ctx, c, argv...)
}
