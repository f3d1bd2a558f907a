package system

import (
	"context"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// unitTypes are the kinds of units that count as services.
var unitTypes = strings.Fields("service socket device mount automount swap target path timer slice scope")

const systemd1 = "org.freedesktop.systemd1"

func (m *machine) service() []module.Function {
	name := module.Need("name", module.Str)
	noBlock, root := module.May("no_block", module.Bool, false), module.May("root", module.Str, nil)
	unmask, unmaskRuntime := module.May("unmask", module.Bool, false), module.May("unmask_runtime", module.Bool, false)
	runtime := module.May("runtime", module.Bool, false)
	job := func(fn, doc, verb string, params ...module.Param) module.Function {
		return module.Tests("service."+fn, doc+"\n\nsalt '*' service."+fn+" sshd", func(ctx context.Context, c *module.Call) (any, error) {
			return m.job(ctx, c, verb)
		}, append([]module.Param{name}, params...)...)
	}
	files := func(fn, doc string, params ...module.Param) module.Function {
		return module.Tests("service."+fn, doc+"\n\nsalt '*' service."+fn+" sshd", func(ctx context.Context, c *module.Call) (any, error) {
			return m.unitFiles(ctx, c, strings.TrimSuffix(fn, "_"))
		}, append([]module.Param{name}, params...)...)
	}
	list := func(fn, doc string, keep func(string) bool) module.Function {
		return module.Reads("service."+fn, doc+"\n\nsalt '*' service."+fn, func(ctx context.Context, c *module.Call) (any, error) {
			return m.listUnitFiles(ctx, c.Str("root"), keep)
		}, root)
	}
	state := func(fn, doc string, want func(string) bool) module.Function {
		return module.Extra(module.Reads("service."+fn, doc+"\n\nsalt '*' service."+fn+" sshd", func(ctx context.Context, c *module.Call) (any, error) {
			s, err := m.unitFileState(ctx, c.Str("name"), c.Str("root"))
			return want(s), err
		}, name, root))
	}
	is := func(states ...string) func(string) bool {
		return func(s string) bool { return slices.Contains(states, s) }
	}
	enabled := is("enabled", "enabled-runtime", "static", "indirect", "alias", "generated")
	return []module.Function{
		job("start", "Starts a unit and waits until it is up.", "start", noBlock, unmask, unmaskRuntime),
		job("stop", "Stops a unit and waits until it is down.", "stop", noBlock),
		job("restart", "Restarts a unit, or starts it when it is down.", "restart", noBlock, unmask, unmaskRuntime),
		job("reload", "Asks a unit to read its configuration anew.", "reload", noBlock, unmask, unmaskRuntime),
		job("force_reload", "Reloads a unit if it can, else restarts it.", "reload-or-restart", module.May("no_block", module.Bool, true), unmask, unmaskRuntime),
		job("try_restart", "Restarts a unit if it is up.", "try-restart", noBlock),
		module.Extra(module.Reads("service.status", "Tells whether a unit is active; for a pattern, each unit that fits.\n\nsalt '*' service.status sshd", m.serviceStatus,
			name, module.May("sig", module.Str, nil), module.May("wait", module.Num, 3))),
		module.Extra(files("enable", "Lets a unit start at boot.", noBlock, unmask, unmaskRuntime, root)),
		module.Extra(files("disable", "Lets a unit no longer start at boot.", noBlock, root)),
		files("mask", "Makes a unit impossible to start.", runtime, root),
		files("unmask", "Takes a mask off a unit.", runtime, root),
		files("unmask_", "Takes a mask off a unit.", runtime, root),
		files("mask_runtime", "Makes a unit impossible to start until the next boot.", root),
		state("enabled", "Tells whether a unit starts at boot.", enabled),
		state("disabled", "Tells whether a unit does not start at boot.", func(s string) bool { return !enabled(s) }),
		module.Reads("service.masked", "Tells whether a unit is masked, for good or (runtime) until the next boot.\n\nsalt '*' service.masked sshd", func(ctx context.Context, c *module.Call) (any, error) {
			s, err := m.unitFileState(ctx, c.Str("name"), c.Str("root"))
			return s == "masked" && !c.Bool("runtime") || s == "masked-runtime" && c.Bool("runtime"), err
		}, name, runtime, root),
		module.Reads("service.available", "Tells whether systemd knows a unit.\n\nsalt '*' service.available sshd", m.available, name),
		module.Reads("service.missing", "Tells whether systemd does not know a unit.\n\nsalt '*' service.missing sshd", func(ctx context.Context, c *module.Call) (any, error) {
			v, err := m.available(ctx, c)
			there, _ := v.(bool)
			return !there, err
		}, name),
		list("get_all", "Lists every unit that is installed.", func(string) bool { return true }),
		list("get_enabled", "Lists the units that start at boot.", is("enabled", "enabled-runtime")),
		list("get_disabled", "Lists the units that could start at boot and do not.", is("disabled", "indirect")),
		list("get_static", "Lists the units that only others start.", is("static")),
		module.Reads("service.get_running", "Lists the units that are running.\n\nsalt '*' service.get_running", func(ctx context.Context, c *module.Call) (any, error) {
			return m.listUnits(ctx, func(u dbus.UnitStatus) bool { return u.SubState == "running" })
		}),
		module.Reads("service.get_failed", "Lists the units that have failed.\n\nsalt '*' service.get_failed", func(ctx context.Context, c *module.Call) (any, error) {
			return m.listUnits(ctx, func(u dbus.UnitStatus) bool { return u.ActiveState == "failed" })
		}),
		module.Reads("service.show", "Shows the properties of a unit.\n\nsalt '*' service.show sshd", m.serviceShow, name, root),
		module.Reads("service.execs", "Shows what every service runs when it starts.\n\nsalt '*' service.execs", m.serviceExecs, root),
		module.Tests("service.systemctl_reload", "Lets systemd read its unit files anew.\n\nsalt '*' service.systemctl_reload", func(ctx context.Context, c *module.Call) (any, error) {
			if c.Test {
				return true, nil
			}
			conn, err := m.systemd(ctx)
			if err != nil {
				return nil, err
			}
			defer conn.Close()
			return true, dbusFault(systemd1, conn.ReloadContext(ctx))
		}),
		module.Tests("service.reset_failed", "Forgets that a unit has failed.\n\nsalt '*' service.reset_failed sshd", func(ctx context.Context, c *module.Call) (any, error) {
			unit, err := unitName(c.Str("name"))
			if err != nil || c.Test {
				return true, err
			}
			conn, err := m.systemd(ctx)
			if err != nil {
				return nil, err
			}
			defer conn.Close()
			return true, dbusFault(systemd1, conn.ResetFailedUnitContext(ctx, unit))
		}, name),
	}
}

// unitName is a service's name as a unit's.
func unitName(s string) (string, error) {
	if err := module.NoOption("unit", s); err != nil {
		return "", err
	}
	if strings.HasPrefix(s, "/dev/") || strings.Contains(s, "/") {
		return "", fault.Invalid("bad_name", "%q is not the name of a unit", s)
	}
	if i := strings.LastIndexByte(s, '.'); i > 0 && slices.Contains(unitTypes, s[i+1:]) {
		return s, nil
	}
	return s + ".service", nil
}

// shortName is a unit as Salt names it: services without their type.
func shortName(unit string) (string, bool) {
	i := strings.LastIndexByte(unit, '.')
	if i <= 0 || !slices.Contains(unitTypes, unit[i+1:]) {
		return "", false
	}
	if unit[i+1:] == "service" {
		return unit[:i], true
	}
	return unit, true
}

// jobVerbs are the calls of go-systemd by systemctl's words.
var jobVerbs = map[string]func(*dbus.Conn, context.Context, string, string, chan<- string) (int, error){
	"start": (*dbus.Conn).StartUnitContext, "stop": (*dbus.Conn).StopUnitContext, "restart": (*dbus.Conn).RestartUnitContext,
	"reload": (*dbus.Conn).ReloadUnitContext, "reload-or-restart": (*dbus.Conn).ReloadOrRestartUnitContext, "try-restart": (*dbus.Conn).TryRestartUnitContext,
}

func (m *machine) job(ctx context.Context, c *module.Call, verb string) (any, error) {
	unit, err := unitName(c.Str("name"))
	if err != nil || c.Test {
		return true, err
	}
	conn, err := m.systemd(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if verb != "stop" {
		// Unit files that changed on the disk are read first, as nobody asks for the old ones.
		if p, err := conn.GetUnitPropertyContext(ctx, unit, "NeedDaemonReload"); err == nil {
			if stale, _ := p.Value.Value().(bool); stale {
				if err := conn.ReloadContext(ctx); err != nil {
					return nil, dbusFault(systemd1, err)
				}
			}
		}
	}
	if c.Bool("unmask") || c.Bool("unmask_runtime") {
		if err := unmask(ctx, conn, unit, c.Bool("unmask"), c.Bool("unmask_runtime")); err != nil {
			return nil, err
		}
	}
	if c.Bool("no_block") {
		if _, err := jobVerbs[verb](conn, ctx, unit, "replace", nil); err != nil {
			return nil, dbusFault(systemd1, err)
		}
		return true, nil
	}
	if err := conn.Subscribe(); err != nil { // else the end of the job would not be heard
		return nil, dbusFault(systemd1, err)
	}
	done := make(chan string, 1)
	if _, err := jobVerbs[verb](conn, ctx, unit, "replace", done); err != nil {
		return nil, dbusFault(systemd1, err)
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case result := <-done:
		if result == "done" || result == "skipped" {
			return true, nil
		}
		return nil, fault.Conflict("service_failed", "%s of %s ended with %q%s", verb, unit, result, m.lastWords(ctx, unit)).
			Fix("see `journalctl -u %s`", unit)
	}
}

// lastWords are the last lines that a unit left in the journal.
func (m *machine) lastWords(ctx context.Context, unit string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	o, err := m.run(ctx, "journalctl", "--no-pager", "-q", "-o", "cat", "-n", "10", "-u", unit)
	if err != nil || o.Code != 0 || strings.TrimSpace(o.Out) == "" {
		return "" // the failure itself is said without them
	}
	out := strings.TrimSpace(o.Out)
	return ":\n" + module.Valid(out[max(0, len(out)-4000):])
}

func unmask(ctx context.Context, conn *dbus.Conn, unit string, forGood, runtime bool) error {
	changed := false
	for _, r := range []struct{ do, runtime bool }{{forGood, false}, {runtime, true}} {
		if !r.do {
			continue
		}
		done, err := conn.UnmaskUnitFilesContext(ctx, []string{unit}, r.runtime)
		if err != nil {
			return dbusFault(systemd1, err)
		}
		changed = changed || len(done) > 0
	}
	if !changed {
		return nil
	}
	return dbusFault(systemd1, conn.ReloadContext(ctx))
}

func (m *machine) serviceStatus(ctx context.Context, c *module.Call) (any, error) {
	if sig := c.Str("sig"); sig != "" {
		return len(m.pidsOf(func(p proc) bool { return strings.Contains(p.Cmdline, sig) })) > 0, nil
	}
	unit, err := unitName(c.Str("name"))
	if err != nil {
		return nil, err
	}
	conn, err := m.systemd(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	up := func(state string) bool { return state == "active" || state == "reloading" || state == "refreshing" }
	if strings.ContainsAny(unit, "*?[") {
		if _, err := path.Match(unit, ""); err != nil {
			return nil, fault.Invalid("bad_pattern", "%q is not a pattern", c.Str("name"))
		}
		units, err := conn.ListUnitsContext(ctx)
		if err != nil {
			return nil, dbusFault(systemd1, err)
		}
		out := map[string]any{}
		for _, u := range units {
			if ok, _ := path.Match(unit, u.Name); ok {
				if short, ok := shortName(u.Name); ok && u.LoadState != "not-found" {
					out[short] = up(u.ActiveState)
				}
			}
		}
		files, err := conn.ListUnitFilesContext(ctx)
		if err != nil {
			return nil, dbusFault(systemd1, err)
		}
		for _, f := range files {
			n := path.Base(f.Path)
			if ok, _ := path.Match(unit, n); !ok || strings.Contains(n, "@.") {
				continue
			}
			if short, ok := shortName(n); ok && out[short] == nil {
				out[short] = false
			}
		}
		return out, nil
	}
	// A unit on its way somewhere gets a moment to arrive.
	const pause = 100 * time.Millisecond
	for left := time.Duration(min(c.Num("wait"), 3600) * float64(time.Second)); ; left -= pause {
		p, err := conn.GetUnitPropertyContext(ctx, unit, "ActiveState")
		if err != nil {
			if err := dbusFault(systemd1, err); fault.Code(err) != "unit_missing" {
				return nil, err
			}
			return false, nil
		}
		state, _ := p.Value.Value().(string)
		if state != "activating" && state != "deactivating" || left <= 0 {
			return up(state), nil
		}
		if err := module.Sleep(ctx, pause); err != nil {
			return nil, err
		}
	}
}

// systemctl runs systemctl on a directory that is another system's root.
func (m *machine) systemctl(ctx context.Context, root string, args ...string) (output, error) {
	if !strings.HasPrefix(root, "/") {
		return output{}, fault.Invalid("bad_root", "the root %q is not an absolute path", root)
	}
	return m.run(ctx, append([]string{"systemctl", "--no-pager", "--root=" + root}, args...)...)
}

// unitFiles enables, disables, masks or unmasks.
func (m *machine) unitFiles(ctx context.Context, c *module.Call, verb string) (any, error) {
	unit, err := unitName(c.Str("name"))
	if err != nil || c.Test {
		return true, err
	}
	runtime := c.Bool("runtime")
	if verb == "mask_runtime" {
		verb, runtime = "mask", true
	}
	if root := c.Str("root"); root != "" {
		args := []string{verb, "--", unit}
		if runtime {
			args = append([]string{"--runtime"}, args...)
		}
		o, err := m.systemctl(ctx, root, args...)
		if err == nil && o.Code != 0 {
			err = failed(append([]string{"systemctl"}, args...), o)
		}
		return err == nil, err
	}
	conn, err := m.systemd(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	names := []string{unit}
	switch verb {
	case "enable":
		if c.Bool("unmask") || c.Bool("unmask_runtime") {
			if err := unmask(ctx, conn, unit, c.Bool("unmask"), c.Bool("unmask_runtime")); err != nil {
				return nil, err
			}
		}
		_, _, err = conn.EnableUnitFilesContext(ctx, names, false, true)
	case "disable":
		_, err = conn.DisableUnitFilesContext(ctx, names, false)
	case "mask":
		_, err = conn.MaskUnitFilesContext(ctx, names, runtime, true)
	case "unmask":
		return true, unmask(ctx, conn, unit, !runtime, runtime)
	}
	if err == nil {
		err = conn.ReloadContext(ctx)
	}
	return err == nil, dbusFault(systemd1, err)
}

// unitFileState is what `systemctl is-enabled` prints, "" for a unit that is not there.
func (m *machine) unitFileState(ctx context.Context, name, root string) (string, error) {
	unit, err := unitName(name)
	if err != nil {
		return "", err
	}
	if root != "" {
		o, err := m.systemctl(ctx, root, "is-enabled", "--", unit)
		return strings.TrimSpace(o.Out), err
	}
	var s string
	err = m.call(ctx, systemd1, "/org/freedesktop/systemd1", systemd1+".Manager.GetUnitFileState", []any{unit}, &s)
	switch fault.Code(err) {
	case "unit_missing":
		return "", nil
	}
	return s, err
}

func (m *machine) available(ctx context.Context, c *module.Call) (any, error) {
	unit, err := unitName(c.Str("name"))
	if err != nil {
		return nil, err
	}
	conn, err := m.systemd(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if strings.Contains(unit, "@.") { // a template is no unit: only its file is there
		files, err := conn.ListUnitFilesContext(ctx)
		return slices.ContainsFunc(files, func(f dbus.UnitFile) bool { return path.Base(f.Path) == unit }), dbusFault(systemd1, err)
	}
	p, err := conn.GetUnitPropertyContext(ctx, unit, "LoadState")
	if err != nil {
		if err := dbusFault(systemd1, err); fault.Code(err) != "unit_missing" {
			return nil, err
		}
		return false, nil
	}
	s, _ := p.Value.Value().(string)
	return s != "not-found" && s != "", nil
}

func (m *machine) listUnitFiles(ctx context.Context, root string, keep func(state string) bool) (any, error) {
	found := map[string]string{} // unit to state
	if root != "" {
		o, err := m.systemctl(ctx, root, "--full", "--no-legend", "list-unit-files")
		if err != nil {
			return nil, err
		}
		for _, l := range module.Lines(o.Out) {
			if f := strings.Fields(l); len(f) >= 2 {
				found[f[0]] = f[1]
			}
		}
	} else {
		conn, err := m.systemd(ctx)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		files, err := conn.ListUnitFilesContext(ctx)
		if err != nil {
			return nil, dbusFault(systemd1, err)
		}
		for _, f := range files {
			found[path.Base(f.Path)] = f.Type
		}
	}
	out := []string{}
	for unit, state := range found {
		if short, ok := shortName(unit); ok && keep(state) {
			out = append(out, short)
		}
	}
	slices.Sort(out)
	return out, nil
}

func (m *machine) listUnits(ctx context.Context, keep func(dbus.UnitStatus) bool) (any, error) {
	conn, err := m.systemd(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	units, err := conn.ListUnitsContext(ctx)
	if err != nil {
		return nil, dbusFault(systemd1, err)
	}
	out := []string{}
	for _, u := range units {
		if short, ok := shortName(u.Name); ok && keep(u) {
			out = append(out, short)
		}
	}
	slices.Sort(out)
	return out, nil
}

func (m *machine) serviceShow(ctx context.Context, c *module.Call) (any, error) {
	unit, err := unitName(c.Str("name"))
	if err != nil {
		return nil, err
	}
	if root := c.Str("root"); root != "" {
		o, err := m.systemctl(ctx, root, "show", "--", unit)
		if err != nil {
			return nil, err
		}
		out := map[string]any{}
		for _, l := range module.Lines(o.Out) {
			if k, v, ok := strings.Cut(l, "="); ok {
				out[k] = v
			}
		}
		return out, nil
	}
	conn, err := m.systemd(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return properties(ctx, conn, unit)
}

func properties(ctx context.Context, conn *dbus.Conn, unit string) (map[string]any, error) {
	all, err := conn.GetAllPropertiesContext(ctx, unit)
	if err != nil {
		return nil, dbusFault(systemd1, err)
	}
	out := map[string]any{}
	for k, v := range all {
		if strings.HasPrefix(k, "Exec") {
			if e, ok := execProperty(v); ok {
				out[k] = e
				continue
			}
		}
		out[k] = property(v)
	}
	return out, nil
}

// property is a value as `systemctl show` prints it; lists stay lists.
func property(v any) any {
	switch x := v.(type) {
	case nil:
		return ""
	case string:
		return module.Valid(x)
	case bool:
		if x {
			return "yes"
		}
		return "no"
	case uint64:
		if x == math.MaxUint64 {
			return "infinity"
		}
		return fmt.Sprint(x)
	case []string:
		out := make([]any, len(x))
		for i, s := range x {
			out[i] = module.Valid(s)
		}
		return out
	}
	return module.Valid(strings.Trim(fmt.Sprint(v), "[]"))
}

// execProperty reads a(sasbttttuii), what a unit runs; of several commands the first one.
func execProperty(v any) (map[string]any, bool) {
	rows, ok := v.([][]any)
	if !ok || len(rows) == 0 || len(rows[0]) < 10 {
		return nil, false
	}
	r := rows[0]
	argv, ok := r[1].([]string)
	if !ok {
		return nil, false
	}
	return map[string]any{"path": property(r[0]), "argv[]": module.Valid(strings.Join(argv, " ")), "ignore_errors": property(r[2]), "start_time": property(r[3]),
		"stop_time": property(r[5]), "pid": property(r[7]), "code": property(r[8]), "status": property(r[9])}, true
}

func (m *machine) serviceExecs(ctx context.Context, c *module.Call) (any, error) {
	names, err := m.listUnitFiles(ctx, c.Str("root"), func(string) bool { return true })
	if err != nil {
		return nil, err
	}
	conn, err := m.systemd(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	out := map[string]any{}
	for _, n := range names.([]string) {
		unit, err := unitName(n)
		if err != nil || !strings.HasSuffix(unit, ".service") || strings.Contains(unit, "@.") {
			continue
		}
		all, err := conn.GetAllPropertiesContext(ctx, unit)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			continue // went away between the list and the question
		}
		if e, ok := execProperty(all["ExecStart"]); ok {
			out[n] = e
		}
	}
	return out, nil
}
