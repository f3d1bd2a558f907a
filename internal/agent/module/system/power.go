package system

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/rpm"
)

// witness says, until the next boot, that a reboot is wanted.
const witness = "/run/drover-reboot-required"

// grace lets the answer reach the server before the host goes down.
const grace = 3 * time.Second

func (m *machine) power() []module.Function {
	at, utc := module.May("at_time", module.Any, nil), module.May("utc_offset", module.Str, nil)
	down := func(fn, doc, kind string, params ...module.Param) module.Function {
		return module.Tests("system."+fn, doc+"\n\nsalt '*' system."+fn, func(ctx context.Context, c *module.Call) (any, error) { return m.down(ctx, c, kind) }, params...)
	}
	clock := func(fn, doc, layout string) module.Function {
		return module.Reads("system."+fn, doc+"\n\nsalt '*' system."+fn, func(_ context.Context, c *module.Call) (any, error) {
			l, err := m.offset(c.Str("utc_offset"))
			if err != nil {
				return nil, err
			}
			return m.now().In(l).Format(layout), nil
		}, utc)
	}
	part := func(n string) module.Param { return module.May(n, module.Int, nil) }
	return []module.Function{
		down("reboot", "Boots the host anew, now, in some minutes or at a time.", "reboot", at),
		down("shutdown", "Shuts the host down, now, in some minutes or at a time.", "poweroff", at),
		down("poweroff", "Shuts the host down and switches it off.", "poweroff"),
		down("halt", "Shuts the host down and leaves it on.", "halt"),
		module.Tests("system.cancel", "Calls a shutdown or reboot off that was planned.\n\nsalt '*' system.cancel", func(ctx context.Context, c *module.Call) (any, error) {
			if c.Test {
				return true, nil
			}
			var was bool
			err := m.call(ctx, login1, login1Path, login1+".Manager.CancelScheduledShutdown", nil, &was)
			return was, err
		}),
		module.Tests("system.init", "Changes the runlevel.\n\nsalt '*' system.init 3", m.runlevel, module.Need("runlevel", module.Str)),
		clock("get_system_time", "Tells the time of day.", "03:04:05 PM"),
		clock("get_system_date", "Tells the date.", "Mon 01/02/2006"),
		clock("get_system_date_time", "Tells the date and the time of day.", "2006-01-02 15:04:05"),
		module.Tests("system.set_system_time", "Sets the time of day.\n\nsalt '*' system.set_system_time '11:31:15'", func(ctx context.Context, c *module.Call) (any, error) {
			t, ok := parseTime(c.Str("newtime"), "15:04:05", "15:04", "03:04:05 PM", "3:04:05 PM", "03:04 PM", "3:04 PM", "03:04:05PM", "03:04PM")
			if !ok {
				return false, nil
			}
			return m.setClock(ctx, c, func(now time.Time) time.Time {
				return time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), 0, now.Location())
			})
		}, module.Need("newtime", module.Str), utc),
		module.Tests("system.set_system_date", "Sets the date.\n\nsalt '*' system.set_system_date '2026-03-28'", func(ctx context.Context, c *module.Call) (any, error) {
			t, ok := parseTime(c.Str("newdate"), "2006-01-02", "2006/01/02", "01-02-2006", "01/02/2006", "01-02-06", "01/02/06")
			if !ok {
				return false, nil
			}
			return m.setClock(ctx, c, func(now time.Time) time.Time {
				return time.Date(t.Year(), t.Month(), t.Day(), now.Hour(), now.Minute(), now.Second(), now.Nanosecond(), now.Location())
			})
		}, module.Need("newdate", module.Str), utc),
		module.Tests("system.set_system_date_time", "Sets parts of the date and the time of day.\n\nsalt '*' system.set_system_date_time years=2026 hours=11", func(ctx context.Context, c *module.Call) (any, error) {
			return m.setClock(ctx, c, func(now time.Time) time.Time {
				or := func(n string, v int) int {
					if c.Has(n) {
						return int(c.Int(n))
					}
					return v
				}
				return time.Date(or("years", now.Year()), time.Month(or("months", int(now.Month()))), or("days", now.Day()), or("hours", now.Hour()), or("minutes", now.Minute()),
					or("seconds", now.Second()), 0, now.Location())
			})
		}, part("years"), part("months"), part("days"), part("hours"), part("minutes"), part("seconds"), utc),
		module.Reads("system.has_settable_hwclock", "Tells whether the hardware's clock can be set.\n\nsalt '*' system.has_settable_hwclock", func(context.Context, *module.Call) (any, error) {
			return m.exists("/dev/rtc0") || m.exists("/dev/rtc"), nil
		}),
		module.Reads("system.get_computer_name", "Tells the name of the host.\n\nsalt '*' system.get_computer_name", func(context.Context, *module.Call) (any, error) {
			if s := m.text("/proc/sys/kernel/hostname"); s != "" {
				return s, nil
			}
			return os.Hostname()
		}),
		module.Tests("system.set_computer_name", "Sets the name of the host.\n\nsalt '*' system.set_computer_name web1", m.setComputerName, module.Need("hostname", module.Str)),
		module.Reads("system.get_computer_desc", "Tells the description of the host.\n\nsalt '*' system.get_computer_desc", func(context.Context, *module.Call) (any, error) {
			v, err := m.machineInfo("PRETTY_HOSTNAME")
			if v == "" {
				return false, err
			}
			return v, err
		}),
		module.Tests("system.set_computer_desc", "Sets the description of the host.\n\nsalt '*' system.set_computer_desc 'the web server'", m.setComputerDesc, module.Need("desc", module.Str)),
		module.Reads("system.get_reboot_required", "Tells whether a reboot is wanted: a newer kernel is installed, or it was noted.\n\nsalt '*' system.get_reboot_required", func(context.Context, *module.Call) (any, error) {
			if m.exists(witness) || m.exists("/run/reboot-required") {
				return true, nil
			}
			return m.newerKernel()
		}),
		module.Reads("system.get_reboot_required_witnessed", "Tells whether it was noted that a reboot is wanted.\n\nsalt '*' system.get_reboot_required_witnessed", func(context.Context, *module.Call) (any, error) {
			return m.exists(witness), nil
		}),
		module.Tests("system.set_reboot_required_witnessed", "Notes, until the next boot, that a reboot is wanted.\n\nsalt '*' system.set_reboot_required_witnessed", func(_ context.Context, c *module.Call) (any, error) {
			if c.Test {
				return true, nil
			}
			return true, durable.WriteFile(m.path(witness), nil, 0o644)
		}),
	}
}

const (
	login1     = "org.freedesktop.login1"
	login1Path = "/org/freedesktop/login1"
)

// shutdownTime reads what shutdown(8) takes as a time.
func shutdownTime(v any, now time.Time) (time.Time, error) {
	bad := fault.Invalid("bad_time", "%q is not a time to shut down", module.Text(v)).Fix("use now, minutes, +minutes or hh:mm")
	s := strings.TrimSpace(sysctlValue(v))
	if v == nil || s == "" || s == "now" {
		return now.Add(grace), nil
	}
	if h, min, ok := strings.Cut(s, ":"); ok {
		hh, err1 := strconv.Atoi(h)
		mm, err2 := strconv.Atoi(min)
		if err1 != nil || err2 != nil || hh < 0 || hh > 23 || mm < 0 || mm > 59 {
			return now, bad
		}
		t := time.Date(now.Year(), now.Month(), now.Day(), hh, mm, 0, 0, now.Location())
		if !t.After(now) {
			t = t.AddDate(0, 0, 1)
		}
		return t, nil
	}
	n, err := strconv.Atoi(strings.TrimPrefix(s, "+"))
	if err != nil || n < 0 || n > 366*24*60 {
		return now, bad
	}
	return now.Add(max(time.Duration(n)*time.Minute, grace)), nil
}

// down plans that the host goes down. logind does it at the time, and tells who is logged in.
func (m *machine) down(ctx context.Context, c *module.Call, kind string) (any, error) {
	t, err := shutdownTime(c.Any("at_time"), m.now().In(m.location()))
	if err != nil {
		return nil, err
	}
	told := fmt.Sprintf("%s planned for %s", kind, t.Format("2006-01-02 15:04:05 MST"))
	if c.Test {
		return told, nil
	}
	err = m.call(ctx, login1, login1Path, login1+".Manager.ScheduleShutdown", []any{kind, uint64(t.UnixMicro())})
	if !absent(err) || fault.Code(err) == "dbus_missing" || t.Sub(m.now()) > time.Minute {
		return told, err
	}
	// A host without logind still has systemd; what is planned for later needs logind.
	var job any
	return told, m.call(ctx, systemd1, "/org/freedesktop/systemd1", systemd1+".Manager.StartUnit", []any{kind + ".target", "replace-irreversibly"}, &job)
}

func (m *machine) runlevel(ctx context.Context, c *module.Call) (any, error) {
	target, ok := map[string]string{"0": "poweroff.target", "1": "rescue.target", "2": "multi-user.target", "3": "multi-user.target", "4": "multi-user.target",
		"5": "graphical.target", "6": "reboot.target", "s": "rescue.target", "S": "rescue.target"}[c.Str("runlevel")]
	if !ok {
		return nil, fault.Invalid("bad_runlevel", "there is no runlevel %q", c.Str("runlevel"))
	}
	if c.Test {
		return target, nil
	}
	var job any
	return target, m.call(ctx, systemd1, "/org/freedesktop/systemd1", systemd1+".Manager.StartUnit", []any{target, "isolate"}, &job)
}

// offset is the zone of an offset such as +0200, or the host's.
func (m *machine) offset(s string) (*time.Location, error) {
	if s == "" {
		return m.location(), nil
	}
	t, err := time.Parse("-0700", strings.ReplaceAll(s, ":", ""))
	if err != nil {
		return nil, fault.Invalid("bad_offset", "%q is not an offset from UTC as +0200", s)
	}
	_, n := t.Zone()
	return time.FixedZone(s, n), nil
}

func parseTime(s string, layouts ...string) (time.Time, bool) {
	for _, l := range layouts {
		if t, err := time.Parse(l, strings.TrimSpace(s)); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// setClock sets the system's clock, through timedated where it is there and lets us.
func (m *machine) setClock(ctx context.Context, c *module.Call, change func(time.Time) time.Time) (any, error) {
	l, err := m.offset(c.Str("utc_offset"))
	if err != nil {
		return nil, err
	}
	t := change(m.now().In(l))
	if c.Test {
		return true, nil
	}
	err = m.call(ctx, "org.freedesktop.timedate1", "/org/freedesktop/timedate1", "org.freedesktop.timedate1.SetTime", []any{t.UnixMicro(), false, false})
	if err == nil || !absent(err) {
		return err == nil, err
	}
	tv := unix.NsecToTimeval(t.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return nil, fault.Denied("clock_refused", "the clock cannot be set").Wrap(err)
	}
	return true, nil
}

// goodHostname holds a name to RFC 1123, as hostname(7) does.
func goodHostname(s string) bool {
	if len(s) > 64 || s == "" {
		return false
	}
	for _, l := range strings.Split(s, ".") {
		if l == "" || l[0] == '-' || l[len(l)-1] == '-' || strings.Trim(strings.ToLower(l), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}

func (m *machine) setComputerName(ctx context.Context, c *module.Call) (any, error) {
	name := c.Str("hostname")
	if !goodHostname(name) {
		return nil, fault.Invalid("bad_name", "%q cannot be the name of a host", name)
	}
	if c.Test {
		return true, nil
	}
	err := m.call(ctx, "org.freedesktop.hostname1", "/org/freedesktop/hostname1", "org.freedesktop.hostname1.SetStaticHostname", []any{name, false})
	if err == nil || !absent(err) {
		return err == nil, err
	}
	if err := writeKeep(m.path("/etc/hostname"), name+"\n", 0o644); err != nil || !m.real() {
		return err == nil, err
	}
	return true, unix.Sethostname([]byte(name))
}

// machineInfo is a value of machine-info(5).
func (m *machine) machineInfo(key string) (string, error) {
	text, err := module.ReadIfThere(m.path("/etc/machine-info"))
	for _, l := range module.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(l), key+"="); ok {
			if len(v) > 1 && (v[0] == '"' || v[0] == '\'') && v[len(v)-1] == v[0] {
				v = strings.NewReplacer(`\"`, `"`, `\\`, `\`, `\$`, `$`, "\\`", "`").Replace(v[1 : len(v)-1])
			}
			return v, err
		}
	}
	return "", err
}

func (m *machine) setComputerDesc(ctx context.Context, c *module.Call) (any, error) {
	desc := strings.NewReplacer("\n", " ", "\x00", "").Replace(c.Str("desc"))
	if c.Test {
		return true, nil
	}
	err := m.call(ctx, "org.freedesktop.hostname1", "/org/freedesktop/hostname1", "org.freedesktop.hostname1.SetPrettyHostname", []any{desc, false})
	if err == nil || !absent(err) {
		return err == nil, err
	}
	text, err := module.ReadIfThere(m.path("/etc/machine-info"))
	if err != nil {
		return nil, err
	}
	line := `PRETTY_HOSTNAME="` + strings.NewReplacer(`"`, `\"`, `\`, `\\`, `$`, `\$`, "`", "\\`").Replace(desc) + `"`
	lines := module.Lines(text)
	if i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(strings.TrimSpace(l), "PRETTY_HOSTNAME=") }); i >= 0 {
		lines[i] = line
	} else {
		lines = append(lines, line)
	}
	return true, writeKeep(m.path("/etc/machine-info"), strings.Join(lines, "\n")+"\n", 0o644)
}

// newerKernel tells whether a kernel is installed that is newer than the one that runs: one of the
// same flavor (the part after "+", such as rt or debug) with its image beside its modules.
func (m *machine) newerKernel() (bool, error) {
	list, err := os.ReadDir(m.path("/lib/modules"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	running := m.release()
	evr, flavor, _ := strings.Cut(running, "+")
	for _, e := range list {
		v, f, _ := strings.Cut(e.Name(), "+")
		if f == flavor && m.exists("/lib/modules/"+e.Name()+"/vmlinuz") && rpm.CompareEVR(v, evr) > 0 {
			return true, nil
		}
	}
	return false, err
}
