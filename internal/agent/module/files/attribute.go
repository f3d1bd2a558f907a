package files

import (
	"context"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fault"
)

func attributes() []module.Function {
	p := module.Need("path", module.Str)
	return []module.Function{
		module.Reads("file.get_selinux_context", "Tells the SELinux label of a file.\n\nsalt '*' file.get_selinux_context /etc/hosts", on("path", func(f string, _ *module.Call) (any, error) {
			if !there(f) {
				return nil, missing(f)
			}
			l, err := label(f, true)
			if err != nil || l == "" {
				return "No selinux context information is available for " + f, nil //nolint:nilerr // Salt says no more of a file without a label
			}
			return l, nil
		}), p),
		module.Tests("file.set_selinux_context", "Sets parts of the SELinux label of a file.\n\nsalt '*' file.set_selinux_context /srv/www type=httpd_sys_content_t", setContext, p,
			module.May("user", module.Str, nil), module.May("role", module.Str, nil), module.May("type", module.Str, nil), module.May("range", module.Str, nil), module.May("persist", module.Bool, false)),
		{Name: "file.restorecon", Doc: "Sets the SELinux labels of a file to what the policy says.\n\nsalt '*' file.restorecon /srv/www recursive=True", Run: restorecon, Tests: true, Params: []module.Param{p, module.May("recursive", module.Bool, false)}},
		module.Reads("file.lsattr", "Lists the attributes that the file system keeps for a file.\n\nsalt '*' file.lsattr /srv/x", on("path", lsattr), p),
		module.Rest(module.Extra(module.Tests("file.chattr", "Sets, adds or removes attributes that the file system keeps for files.\n\nsalt '*' file.chattr /srv/x operator=add attributes=ai", chattr))),
	}
}

// label is the SELinux label of a file, "" when it has none.
func label(p string, follow bool) (string, error) {
	v, err := xattr(p, "security.selinux", follow)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return "", nil
	}
	if err != nil {
		return "", failed("asked for its label", p, err)
	}
	return strings.TrimRight(string(v), "\x00"), nil
}

// setLabel changes parts of a label: user, role, type, range.
func setLabel(p string, parts [4]string, follow bool) (before, after string, err error) {
	before, err = label(p, follow)
	if err != nil {
		return "", "", err
	}
	now := strings.SplitN(before, ":", 4)
	if len(now) < 3 {
		return "", "", fault.Unavailable("no_selinux", "No selinux context information is available for %s", p).Fix("is SELinux on, and does the file system keep labels?")
	}
	for i, w := range parts {
		if strings.ContainsAny(w, " \x00\n") || (i < 3 && strings.Contains(w, ":")) {
			return "", "", fault.Invalid("label_bad", "%q cannot be in a label", w)
		}
		switch {
		case w == "":
		case i < len(now):
			now[i] = w
		default:
			now = append(now, w)
		}
	}
	after = strings.Join(now, ":")
	if after == before {
		return before, after, nil
	}
	set := unix.Lsetxattr
	if follow {
		set = unix.Setxattr
	}
	return before, after, failed("given the label "+after, p, set(p, "security.selinux", append([]byte(after), 0), 0))
}

func setContext(ctx context.Context, c *module.Call) (any, error) {
	p, err := argPath(c, "path")
	if err != nil {
		return nil, err
	}
	parts := [4]string{c.Str("user"), c.Str("role"), c.Str("type"), c.Str("range")}
	if parts == [4]string{} {
		return false, nil
	}
	if c.Test {
		return label(p, true)
	}
	if c.Bool("persist") {
		argv := []string{"semanage", "fcontext", "-a"}
		for i, o := range []string{"-s", "", "-t", "-r"} {
			if parts[i] != "" && o != "" {
				argv = append(argv, o, parts[i])
			}
		}
		r, err := command.Run(ctx, command.Spec{Argv: append(argv, "--", literal(p)), Dir: "/", Env: []string{"LC_ALL=C"}})
		if err != nil {
			return nil, err
		}
		if r.Code != 0 {
			return nil, fault.Conflict("label_failed", "the policy does not take the label of %s: %s", p, strings.TrimSpace(command.Text(r.Err)))
		}
	}
	_, after, err := setLabel(p, parts, true)
	if err != nil {
		return nil, err
	}
	return after, nil
}

func restorecon(ctx context.Context, c *module.Call) (any, error) {
	p, err := argPath(c, "path")
	if err != nil {
		return nil, err
	}
	if !there(p) {
		return nil, missing(p)
	}
	argv := []string{"restorecon", "-F"}
	if c.Bool("recursive") {
		argv = append(argv, "-R")
	}
	if c.Test {
		argv = append(argv, "-n", "-v")
	}
	r, err := command.Run(ctx, command.Spec{Argv: append(argv, "--", p), Dir: "/", Env: []string{"LC_ALL=C"}})
	if err != nil {
		return nil, err
	}
	if c.Test {
		return strings.TrimSpace(command.Text(r.Out)), nil
	}
	c.RC = r.Code
	return r.Code == 0, nil
}

// attrBits are the attributes that chattr(1) knows, by their letters.
var attrBits = map[byte]uint32{'s': 0x1, 'u': 0x2, 'c': 0x4, 'S': 0x8, 'i': 0x10, 'a': 0x20, 'd': 0x40, 'A': 0x80, 'j': 0x4000, 't': 0x8000, 'D': 0x10000, 'T': 0x20000, 'C': 0x800000, 'P': 0x20000000,
	'e': 0x80000, 'I': 0x1000, 'E': 0x800, 'V': 0x100000, 'N': 0x10000000, 'F': 0x40000000, 'x': 0x2000000}

const attrOrder = "suSiadAcEjIteDTCxFNPV"

func attrsOf(p string) (uint32, error) {
	f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe must not hold us up
	if err != nil {
		return 0, failed("read", p, err)
	}
	defer f.Close()
	n, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.ENOTSUP) {
		return 0, fault.Unavailable("no_attributes", "the file system of %s keeps no attributes", p).Wrap(err)
	}
	return n, failed("asked for its attributes", p, err)
}

func lsattr(p string, _ *module.Call) (any, error) {
	if !exists(p) {
		return nil, missing(p)
	}
	n, err := attrsOf(p)
	if err != nil {
		return nil, err
	}
	out := []any{}
	for _, c := range []byte(attrOrder) {
		if n&attrBits[c] != 0 {
			out = append(out, string(c))
		}
	}
	return map[string]any{p: out}, nil
}

func chattr(_ context.Context, c *module.Call) (any, error) {
	op, attrs := keyword(c, "operator"), keyword(c, "attributes")
	if len(c.Rest) == 0 {
		return nil, fault.Invalid("arguments", "Need at least one file")
	}
	bits := uint32(0)
	for _, a := range []byte(attrs) {
		b, ok := attrBits[a]
		if !ok {
			return nil, fault.Invalid("attribute_unknown", "Invalid attribute: %q", a).Fix("as in chattr(1): %s", attrOrder)
		}
		bits |= b
	}
	if bits == 0 {
		return nil, fault.Invalid("arguments", "Need at least one attribute")
	}
	for _, v := range c.Rest {
		p, err := absolute(module.Plain(v))
		if err != nil {
			return nil, err
		}
		now, err := attrsOf(p)
		if err != nil {
			return nil, err
		}
		switch op {
		case "add", "+":
			now |= bits
		case "remove", "-":
			now &^= bits
		default:
			return nil, fault.Invalid("arguments", "Need an operator: 'add' or 'remove' to modify attributes.")
		}
		if c.Test {
			continue
		}
		if err := setAttrs(p, now); err != nil {
			return nil, err
		}
	}
	return true, nil
}

func setAttrs(p string, n uint32) error {
	f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return failed("read", p, err)
	}
	defer f.Close()
	return failed("given attributes", p, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(n)))
}

// keyword is a keyword that the function does not name, "" when it is not given.
func keyword(c *module.Call, name string) string {
	if v := c.Extra[name]; v != nil {
		return module.Plain(v)
	}
	return ""
}
