package system

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
	"drover/internal/durable"
)

// modulesFile is where Salt persists modules under systemd.
const modulesFile = "/etc/modules-load.d/salt_managed.conf"

func (m *machine) kmod() []module.Function {
	mod, persist := module.Need("mod", module.Str), module.May("persist", module.Bool, false)
	return []module.Function{
		module.Reads("kmod.available", "Lists the kernel modules that could be loaded.\n\nsalt '*' kmod.available", func(context.Context, *module.Call) (any, error) { return m.modules() }),
		module.Reads("kmod.check_available", "Tells whether a kernel module could be loaded.\n\nsalt '*' kmod.check_available kvm", func(_ context.Context, c *module.Call) (any, error) {
			all, err := m.modules()
			return slices.Contains(all, underscore(c.Str("mod"))), err
		}, mod),
		module.Reads("kmod.lsmod", "Lists the loaded kernel modules with their users.\n\nsalt '*' kmod.lsmod", func(context.Context, *module.Call) (any, error) { return m.lsmod() }),
		module.Reads("kmod.mod_list", "Lists the loaded kernel modules, or those loaded at every boot.\n\nsalt '*' kmod.mod_list", func(_ context.Context, c *module.Call) (any, error) {
			if c.Bool("only_persist") {
				return m.persistent()
			}
			return m.loaded()
		}, module.May("only_persist", module.Bool, false)),
		module.Reads("kmod.is_loaded", "Tells whether a kernel module is loaded.\n\nsalt '*' kmod.is_loaded kvm", func(_ context.Context, c *module.Call) (any, error) {
			all, err := m.loaded()
			return slices.Contains(all, underscore(c.Str("mod"))), err
		}, mod),
		module.Tests("kmod.load", "Loads a kernel module and what it needs; lists what is new.\n\nsalt '*' kmod.load kvm persist=True", m.kmodLoad, mod, persist),
		module.Tests("kmod.remove", "Unloads a kernel module; lists what went.\n\nsalt '*' kmod.remove kvm", m.kmodRemove, mod, persist, module.May("comment", module.Bool, true)),
	}
}

func underscore(s string) string { return strings.ReplaceAll(s, "-", "_") }

// release is the running kernel's.
func (m *machine) release() string {
	if s := m.text("/proc/sys/kernel/osrelease"); s != "" {
		return s
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// modules are the names in modules.dep and modules.builtin.
func (m *machine) modules() ([]string, error) {
	out := []string{}
	dir := "/lib/modules/" + m.release()
	for _, f := range []string{"modules.dep", "modules.builtin"} {
		lines, err := m.lines(dir + "/" + f)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, l := range lines {
			p, _, _ := strings.Cut(l, ":")
			if n, _, ok := strings.Cut(filepath.Base(strings.TrimSpace(p)), ".ko"); ok && n != "" {
				out = append(out, underscore(n))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func (m *machine) lsmod() ([]any, error) {
	lines, err := m.lines("/proc/modules")
	if errors.Is(err, fs.ErrNotExist) {
		return []any{}, nil // a kernel without modules
	}
	out := []any{}
	for _, l := range lines {
		f := strings.Fields(l)
		if len(f) < 4 {
			continue
		}
		deps := []any{}
		for _, d := range strings.Split(f[3], ",") {
			if d != "" && d != "-" {
				deps = append(deps, d)
			}
		}
		out = append(out, map[string]any{"module": f[0], "size": f[1], "depcount": f[2], "deps": deps})
	}
	return out, err
}

func (m *machine) loaded() ([]string, error) {
	all, err := m.lsmod()
	out := []string{}
	for _, e := range all {
		out = append(out, e.(map[string]any)["module"].(string))
	}
	slices.Sort(out)
	return out, err
}

func (m *machine) persistent() ([]string, error) {
	text, err := module.ReadIfThere(m.path(modulesFile))
	out := []string{}
	for _, l := range module.Lines(text) {
		if l = strings.TrimSpace(l); l != "" && l[0] != '#' && l[0] != ';' {
			out = append(out, l)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), err
}

// difference is what is in a and not in b.
func difference(a, b []string) []string {
	out := []string{}
	for _, s := range a {
		if !slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

func (m *machine) kmodLoad(ctx context.Context, c *module.Call) (any, error) {
	mod := c.Str("mod")
	if err := module.NoOption("kernel module", mod); err != nil {
		return nil, err
	}
	before, err := m.loaded()
	if err != nil {
		return nil, err
	}
	if c.Test {
		return difference([]string{underscore(mod)}, before), nil
	}
	if _, err := m.must(ctx, "modprobe", "--", mod); err != nil {
		return nil, err
	}
	after, err := m.loaded()
	if err != nil {
		return nil, err
	}
	changed := difference(after, before)
	if c.Bool("persist") {
		listed, err := m.persistent()
		if err != nil {
			return nil, err
		}
		if !slices.Contains(listed, mod) {
			if err := m.editModules(func(lines []string) []string {
				for i, l := range lines { // as kmod.remove leaves it behind
					if strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(l), "#")) == mod {
						lines[i] = mod
						return lines
					}
				}
				return append(lines, mod)
			}); err != nil {
				return nil, err
			}
			if !slices.Contains(changed, mod) {
				changed = append(changed, mod)
			}
		}
	}
	return changed, nil
}

func (m *machine) editModules(edit func([]string) []string) error {
	file := m.path(modulesFile)
	text, err := module.ReadIfThere(file)
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return writeKeep(file, strings.Join(append(edit(module.Lines(text)), ""), "\n"), 0o644)
}

func (m *machine) kmodRemove(ctx context.Context, c *module.Call) (any, error) {
	mod := c.Str("mod")
	if err := module.NoOption("kernel module", mod); err != nil {
		return nil, err
	}
	before, err := m.loaded()
	if err != nil {
		return nil, err
	}
	if c.Test {
		if slices.Contains(before, underscore(mod)) {
			return []string{underscore(mod)}, nil
		}
		return []string{}, nil
	}
	if _, err := m.must(ctx, "rmmod", "--", mod); err != nil {
		return nil, err
	}
	after, err := m.loaded()
	if err != nil {
		return nil, err
	}
	changed := difference(before, after)
	if c.Bool("persist") {
		listed, err := m.persistent()
		if err != nil {
			return nil, err
		}
		if slices.Contains(listed, mod) {
			if err := m.editModules(func(lines []string) []string {
				var out []string
				for _, l := range lines {
					switch {
					case strings.TrimSpace(l) != mod:
						out = append(out, l)
					case c.Bool("comment"):
						out = append(out, "#"+l)
					}
				}
				return out
			}); err != nil {
				return nil, err
			}
			if !slices.Contains(changed, mod) {
				changed = append(changed, mod)
			}
		}
	}
	return changed, nil
}
