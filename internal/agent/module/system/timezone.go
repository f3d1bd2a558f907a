package system

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

const zoneinfo = "/usr/share/zoneinfo"

func (m *machine) timezone() []module.Function {
	zone := module.Need("timezone", module.Str)
	here := func(layout string) func(context.Context, *module.Call) (any, error) {
		return func(context.Context, *module.Call) (any, error) { return m.now().In(m.location()).Format(layout), nil }
	}
	return []module.Function{
		module.Reads("timezone.get_zone", "Tells the time zone of the host.\n\nsalt '*' timezone.get_zone", func(context.Context, *module.Call) (any, error) { return m.zone() }),
		module.Reads("timezone.get_zonecode", "Tells the short name of the host's time zone.\n\nsalt '*' timezone.get_zonecode", here("MST")),
		module.Reads("timezone.get_offset", "Tells how far the host's time is from UTC.\n\nsalt '*' timezone.get_offset", here("-0700")),
		module.Reads("timezone.zone_compare", "Tells whether the host keeps the time of a zone.\n\nsalt '*' timezone.zone_compare Europe/Prague", func(_ context.Context, c *module.Call) (any, error) {
			want, err := m.zoneFile(c.Str("timezone"))
			if err != nil {
				return nil, err
			}
			a, err := module.ReadFile(want)
			if err != nil {
				return nil, err
			}
			b, err := module.ReadIfThere(m.path("/etc/localtime"))
			if b == "" { // without the file the host keeps UTC
				z, zerr := m.zone()
				return z == c.Str("timezone"), zerr
			}
			return a == b, err
		}, zone),
		module.Reads("timezone.list_zones", "Lists the time zones that the host knows.\n\nsalt '*' timezone.list_zones", func(context.Context, *module.Call) (any, error) {
			lines, err := m.lines(zoneinfo + "/tzdata.zi")
			out := []string{}
			for _, l := range lines {
				f := strings.Fields(l)
				switch {
				case len(f) >= 3 && f[0] == "Z":
					out = append(out, f[1])
				case len(f) >= 3 && f[0] == "L":
					out = append(out, f[2])
				}
			}
			return out, err
		}),
		module.Tests("timezone.set_zone", "Sets the time zone of the host.\n\nsalt '*' timezone.set_zone Europe/Prague", m.setZone, zone),
		module.Reads("timezone.get_hwclock", "Tells whether the hardware's clock keeps UTC or local time.\n\nsalt '*' timezone.get_hwclock", func(context.Context, *module.Call) (any, error) {
			text, err := module.ReadIfThere(m.path("/etc/adjtime"))
			if lines := module.Lines(text); len(lines) > 2 && strings.TrimSpace(lines[2]) == "LOCAL" {
				return "localtime", err
			}
			return "UTC", err
		}),
		module.Tests("timezone.set_hwclock", "Lets the hardware's clock keep UTC or local time.\n\nsalt '*' timezone.set_hwclock UTC", m.setHwclock, module.Need("clock", module.Str)),
	}
}

// zoneFile is the file of a time zone, which must be a zone by its content.
func (m *machine) zoneFile(name string) (string, error) {
	if name == "" || !filepath.IsLocal(name) || strings.ContainsAny(name, "\n\x00 ") {
		return "", fault.Invalid("bad_name", "%q is not the name of a time zone", name)
	}
	p := m.path(zoneinfo + "/" + name)
	if s, err := module.ReadFile(p); err != nil || !strings.HasPrefix(s, "TZif") {
		return "", fault.NotFound("zone_missing", "there is no time zone %q on this host", name).Fix("see `timezone.list_zones`; tzdata must be installed")
	}
	return p, nil
}

// zone is the name of the host's time zone: what /etc/localtime links to, else what has its bytes.
func (m *machine) zone() (string, error) {
	local := m.path("/etc/localtime")
	target, err := os.Readlink(local)
	switch {
	case err == nil:
		if _, name, ok := strings.Cut(target, "zoneinfo/"); ok {
			return name, nil
		}
	case os.IsNotExist(err):
		return "UTC", nil
	default: // a copy: Debian names it here, EL has no other place
		if s := m.text("/etc/timezone"); s != "" {
			return s, nil
		}
		have, err := module.ReadFile(local)
		if err != nil {
			return "", err
		}
		lines, err := m.lines(zoneinfo + "/tzdata.zi")
		if err != nil && !os.IsNotExist(err) {
			return "", err
		}
		for _, l := range lines {
			if f := strings.Fields(l); len(f) > 2 && f[0] == "Z" {
				if s, err := m.read(zoneinfo + "/" + f[1]); err == nil && s == have {
					return f[1], nil
				}
			}
		}
	}
	return "", fault.Conflict("zone_unknown", "/etc/localtime is no link to a time zone").Fix("set it with `timezone.set_zone`")
}

// location is the host's time zone as it is now, for an agent that has been up since it changed.
func (m *machine) location() *time.Location {
	b, err := os.ReadFile(m.path("/etc/localtime"))
	if err != nil {
		return time.UTC
	}
	l, err := time.LoadLocationFromTZData("Local", b)
	if err != nil {
		return time.UTC
	}
	return l
}

func (m *machine) setZone(ctx context.Context, c *module.Call) (any, error) {
	name := c.Str("timezone")
	if _, err := m.zoneFile(name); err != nil || c.Test {
		return err == nil, err
	}
	// timedated tells the programs that listen; where it is not there, the link is all there is.
	err := m.call(ctx, "org.freedesktop.timedate1", "/org/freedesktop/timedate1", "org.freedesktop.timedate1.SetTimezone", []any{name, false})
	if err != nil && !absent(err) {
		return nil, err
	}
	if err != nil {
		if err := durable.Symlink("../usr/share/zoneinfo/"+name, m.path("/etc/localtime")); err != nil {
			return nil, err
		}
	}
	if m.exists("/etc/timezone") {
		if err := writeKeep(m.path("/etc/timezone"), name+"\n", 0o644); err != nil {
			return nil, err
		}
	}
	return true, nil
}

func (m *machine) setHwclock(ctx context.Context, c *module.Call) (any, error) {
	local := false
	switch strings.ToLower(c.Str("clock")) {
	case "utc":
	case "localtime", "local":
		local = true
	default:
		return nil, fault.Invalid("bad_clock", "the hardware's clock keeps UTC or localtime, not %q", c.Str("clock"))
	}
	if c.Test {
		return true, nil
	}
	err := m.call(ctx, "org.freedesktop.timedate1", "/org/freedesktop/timedate1", "org.freedesktop.timedate1.SetLocalRTC", []any{local, false, false})
	return err == nil, err
}
