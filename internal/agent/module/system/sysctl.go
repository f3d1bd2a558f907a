package system

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

// sysctlFile is where Salt persists values on systems with systemd; hosts that come from Salt
// have theirs there.
const sysctlFile = "/etc/sysctl.d/99-salt.conf"

func (m *machine) sysctl() []module.Function {
	name := module.Need("name", module.Str)
	return []module.Function{
		module.Reads("sysctl.show", "Shows the kernel parameters, or those that a file sets.\n\nsalt '*' sysctl.show", m.sysctlShow, module.May("config_file", module.Any, false)),
		module.Reads("sysctl.get", "Tells the value of a kernel parameter.\n\nsalt '*' sysctl.get net.ipv4.ip_forward", func(_ context.Context, c *module.Call) (any, error) {
			v, err := m.sysctlGet(c.Str("name"))
			if errors.Is(err, fs.ErrNotExist) {
				return "", nil
			}
			return v, err
		}, name),
		module.Tests("sysctl.assign", "Sets a kernel parameter until the next boot.\n\nsalt '*' sysctl.assign net.ipv4.ip_forward 1", func(_ context.Context, c *module.Call) (any, error) {
			n, v := c.Str("name"), sysctlValue(c.Any("value"))
			if !c.Test {
				if err := m.sysctlSet(n, v); err != nil {
					return nil, err
				}
			}
			return map[string]any{n: v}, nil
		}, name, module.Need("value", module.Any)),
		module.Tests("sysctl.persist", "Sets a kernel parameter now and for every boot.\n\nsalt '*' sysctl.persist net.ipv4.ip_forward 1", m.sysctlPersist,
			name, module.Need("value", module.Any), module.May("config", module.Str, nil)),
		module.Reads("sysctl.default_config", "Names the file in which values are persisted.\n\nsalt '*' sysctl.default_config", func(context.Context, *module.Call) (any, error) {
			return sysctlFile, nil
		}),
	}
}

// sysctlValue is a value as text: booleans of YAML are the kernel's numbers.
func sysctlValue(v any) string {
	if f, ok := v.(float64); ok && f == float64(int64(f)) {
		v = int64(f)
	}
	return module.Text(v)
}

// sysctlPath is the file of a parameter. As in sysctl(8), the first separator decides: names with
// slashes may contain dots, and in names with dots a slash stands for a dot.
func (m *machine) sysctlPath(name string) (string, error) {
	i := strings.IndexAny(name, "./")
	p := name
	if i >= 0 && name[i] == '.' {
		p = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	if name == "" || !filepath.IsLocal(p) || filepath.Clean(p) != p || strings.ContainsAny(p, "\n\x00= ") {
		return "", fault.Invalid("bad_name", "%q is not the name of a kernel parameter", name)
	}
	return m.path("/proc/sys/" + p), nil
}

func (m *machine) sysctlGet(name string) (string, error) {
	p, err := m.sysctlPath(name)
	if err != nil {
		return "", err
	}
	s, err := module.ReadFile(p)
	return module.Valid(strings.TrimRight(s, "\n")), err
}

func (m *machine) sysctlSet(name, value string) error {
	p, err := m.sysctlPath(name)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_TRUNC, 0)
	if err == nil {
		_, err = f.WriteString(value + "\n")
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		return fault.Conflict("sysctl_failed", "the kernel parameter %s cannot be set to %q", name, value).Wrap(err)
	}
	return nil
}

// sysctlLine reads one line of a configuration file.
func sysctlLine(l string) (name, value string, ok bool) {
	l = strings.TrimSpace(l)
	if l == "" || l[0] == '#' || l[0] == ';' {
		return "", "", false
	}
	name, value, ok = strings.Cut(strings.TrimPrefix(l, "-"), "=")
	return strings.TrimSpace(name), strings.TrimSpace(value), ok
}

func (m *machine) sysctlShow(ctx context.Context, c *module.Call) (any, error) {
	out := map[string]any{}
	if f := c.Any("config_file"); f != nil && !c.Off("config_file") && f != "" {
		lines, err := m.lines(module.Text(f))
		if err != nil {
			return nil, fault.NotFound("file_unreadable", "%s cannot be read", module.Text(f)).Wrap(err)
		}
		for _, l := range lines {
			if k, v, ok := sysctlLine(l); ok {
				out[k] = v
			}
		}
		return out, nil
	}
	root := m.path("/proc/sys")
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // parameters come and go with the network's interfaces
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if i, err := d.Info(); err != nil || i.Mode()&0o444 == 0 {
			return nil //nolint:nilerr // gone meanwhile, or only to be written
		}
		s, err := module.ReadFile(p)
		if err != nil {
			return nil //nolint:nilerr // some exist and cannot be read now, as those of links that are down
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		out[strings.NewReplacer("/", ".", ".", "/").Replace(rel)] = module.Valid(strings.TrimRight(s, "\n"))
		return nil
	})
	return out, err
}

// same compares values as the kernel does: white space between numbers is all alike.
func same(a, b string) bool {
	return strings.Join(strings.Fields(a), " ") == strings.Join(strings.Fields(b), " ")
}

func (m *machine) sysctlPersist(_ context.Context, c *module.Call) (any, error) {
	name, value := c.Str("name"), sysctlValue(c.Any("value"))
	if strings.ContainsAny(value, "\n\x00") {
		return nil, fault.Invalid("bad_value", "the value of %s has more than one line", name)
	}
	if _, err := m.sysctlPath(name); err != nil {
		return nil, err
	}
	config := c.Str("config")
	if config == "" {
		config = sysctlFile
	}
	file := m.path(config)
	text, err := module.ReadIfThere(file)
	if err != nil {
		return nil, err
	}
	now, err := m.sysctlGet(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	next, stands := sysctlEdit(text, name, value)
	if stands && same(now, value) {
		return "Already set", nil
	}
	if c.Test {
		return "Updated", nil
	}
	// First the kernel: a value that it refuses must not wait in a file for the next boot.
	if !same(now, value) {
		if err := m.sysctlSet(name, value); err != nil {
			return nil, err
		}
	}
	if !stands {
		if err := durable.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return nil, err
		}
		mode := fs.FileMode(0o644)
		if i, err := os.Stat(file); err == nil {
			mode = i.Mode().Perm()
		}
		if err := durable.WriteFile(file, []byte(next), mode); err != nil {
			return nil, err
		}
	}
	return "Updated", nil
}

// sysctlEdit sets a value in a configuration file and keeps everything else of it. It tells
// whether the file says so already.
func sysctlEdit(text, name, value string) (next string, stands bool) {
	var out []string
	found := false
	for _, l := range module.Lines(text) {
		k, v, ok := sysctlLine(l)
		if !ok || k != name {
			out = append(out, l)
			continue
		}
		if found {
			continue // of several lines the last one would hold
		}
		found, stands = true, same(v, value)
		if !stands {
			l = name + " = " + value
		}
		out = append(out, l)
	}
	if !found {
		out = append(out, name+" = "+value)
	}
	next = strings.Join(out, "\n") + "\n"
	return next, stands && strings.TrimRight(next, "\n") == strings.TrimRight(text, "\n")
}
