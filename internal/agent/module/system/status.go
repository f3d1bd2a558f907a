package system

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
)

func (m *machine) status() []module.Function {
	plain := func(fn, doc string, f func() (map[string]any, error)) module.Function {
		return module.Reads("status."+fn, doc+"\n\nsalt '*' status."+fn, func(context.Context, *module.Call) (any, error) { return f() })
	}
	parts := []struct {
		name, doc string
		f         func() (map[string]any, error)
	}{
		{"uptime", "Tells how long the host has been up.", m.uptime},
		{"loadavg", "Tells the load of the last 1, 5 and 15 minutes.", m.loadavg},
		{"cpustats", "Tells for what the processors were used.", m.cpustats},
		{"meminfo", "Tells how the memory is used.", m.statusMeminfo},
		{"cpuinfo", "Describes the processors.", m.cpuinfo},
		{"diskstats", "Tells what the disks have done.", m.diskstats},
		{"vmstats", "Tells what the kernel's memory management has counted.", m.vmstats},
		{"netstats", "Tells what the network protocols have counted.", m.netstats},
		{"netdev", "Tells what the network's interfaces have counted.", m.netdev},
		{"procs", "Lists the processes with users and command lines.", m.procs},
	}
	var out []module.Function
	for _, p := range parts {
		out = append(out, plain(p.name, p.doc, p.f))
	}
	all := func(_ context.Context, c *module.Call) (any, error) {
		r := map[string]any{}
		for _, p := range parts {
			if p.name == "procs" {
				continue
			}
			v, err := p.f()
			if err != nil {
				return nil, err
			}
			r[p.name] = v
		}
		r["nproc"] = int64(m.cpus())
		return r, nil
	}
	event := func(tag string) func(context.Context, *module.Call) (any, error) {
		return func(ctx context.Context, c *module.Call) (any, error) {
			// That the server was told shows that it is there.
			return c.Event != nil && c.Event(ctx, tag, map[string]any{"id": c.ID}) == nil, nil
		}
	}
	return append(out,
		module.Reads("status.all_status", "Gathers everything that this module knows.\n\nsalt '*' status.all_status", all),
		module.Rest(module.Reads("status.custom", "Gathers chosen parts: names of functions of this module by position.\n\nsalt '*' status.custom uptime loadavg", func(ctx context.Context, c *module.Call) (any, error) {
			r := map[string]any{}
			for _, want := range restTexts(c) {
				for _, p := range parts {
					if p.name == want {
						v, err := p.f()
						if err != nil {
							return nil, err
						}
						r[want] = v
					}
				}
			}
			return r, nil
		})),
		module.Reads("status.nproc", "Counts the processors.\n\nsalt '*' status.nproc", func(context.Context, *module.Call) (any, error) { return int64(m.cpus()), nil }),
		module.Reads("status.version", "Tells the version of the kernel.\n\nsalt '*' status.version", func(context.Context, *module.Call) (any, error) { return m.text("/proc/version"), nil }),
		module.Reads("status.pid", "Lists the processes whose command line has a text, one a line.\n\nsalt '*' status.pid sshd", func(_ context.Context, c *module.Call) (any, error) {
			var s []string
			for _, pid := range m.pidsOf(func(p proc) bool { return strings.Contains(p.Cmdline, c.Str("sig")) }) {
				s = append(s, fmt.Sprint(pid))
			}
			return strings.Join(s, "\n"), nil
		}, module.Need("sig", module.Str)),
		module.Rest(module.Reads("status.diskusage", "Tells the size and the room of file systems, by path or type.\n\nsalt '*' status.diskusage / xfs", m.statusDiskusage)),
		module.Reads("status.w", "Lists the users who are logged in and what they do.\n\nsalt '*' status.w", m.who),
		module.Reads("status.time", "Tells the time by a format.\n\nsalt '*' status.time '%s'", m.timeNow, module.May("format", module.Str, "%A, %d. %B %Y %H:%M:%S")),
		module.Reads("status.time_", "Tells the time by a format.\n\nsalt '*' status.time_ '%s'", m.timeNow, module.May("format", module.Str, "%A, %d. %B %Y %H:%M:%S")),
		module.Reads("status.master", "Tells whether the server can be reached.\n\nsalt '*' status.master", event("status/master"), module.May("master", module.Str, nil), module.May("connected", module.Bool, true)),
		module.Reads("status.ping_master", "Tells whether the server can be reached.\n\nsalt '*' status.ping_master server", event("status/ping"), module.May("master", module.Str, nil)),
	)
}

func (m *machine) timeNow(_ context.Context, c *module.Call) (any, error) {
	return strftime(m.now().In(m.location()), c.Str("format")), nil
}

func (m *machine) uptime() (map[string]any, error) {
	s, err := m.read("/proc/uptime")
	if err != nil {
		return nil, err
	}
	head, _, _ := strings.Cut(s, ".")
	seconds := number(head)
	since := m.now().Add(-time.Duration(seconds) * time.Second)
	users, err := m.sessions()
	return map[string]any{"seconds": seconds, "since_iso": since.UTC().Format("2006-01-02T15:04:05.000000"), "since_t": since.Unix(), "days": seconds / 86400,
		"time": fmt.Sprintf("%d:%d", seconds%86400/3600, seconds%3600/60), "users": int64(len(users))}, err
}

func (m *machine) loadavg() (map[string]any, error) {
	s, err := m.read("/proc/loadavg")
	f := strings.Fields(s)
	out := map[string]any{}
	for i, k := range []string{"1-min", "5-min", "15-min"} {
		var n float64
		if _, err := fmt.Sscanf(field(f, i), "%g", &n); err != nil {
			n = 0
		}
		out[k] = n
	}
	return out, err
}

func (m *machine) cpustats() (map[string]any, error) {
	lines, err := m.lines("/proc/stat")
	out := map[string]any{}
	for _, l := range lines {
		f := strings.Fields(l)
		if len(f) < 2 {
			continue
		}
		switch {
		case strings.HasPrefix(f[0], "cpu"):
			row := map[string]any{}
			for i, k := range strings.Fields("user nice system idle iowait irq softirq steal") {
				row[k] = number(field(f, i+1))
			}
			out[f[0]] = row
		case f[0] == "intr":
			irqs := []any{}
			for _, n := range f[2:] {
				irqs = append(irqs, number(n))
			}
			out[f[0]] = map[string]any{"total": number(f[1]), "irqs": irqs}
		case f[0] == "softirq":
			irqs := []any{}
			for _, n := range f[2:] {
				irqs = append(irqs, number(n))
			}
			out[f[0]] = map[string]any{"total": number(f[1]), "softirqs": irqs}
		default:
			out[f[0]] = number(f[1])
		}
	}
	return out, err
}

func (m *machine) statusMeminfo() (map[string]any, error) {
	lines, err := m.lines("/proc/meminfo")
	out := map[string]any{}
	for _, l := range lines {
		k, v, _ := strings.Cut(l, ":")
		f := strings.Fields(v)
		if len(f) == 0 {
			continue
		}
		row := map[string]any{"value": f[0]}
		if len(f) > 1 {
			row["unit"] = f[1]
		}
		out[k] = row
	}
	return out, err
}

func (m *machine) cpuinfo() (map[string]any, error) {
	lines, err := m.lines("/proc/cpuinfo")
	out := map[string]any{}
	for _, l := range lines {
		k, v, ok := strings.Cut(l, ":")
		if !ok {
			continue
		}
		k, v = strings.TrimSpace(k), strings.TrimSpace(v)
		if k == "flags" || k == "Features" {
			out[k] = strings.Fields(v)
		} else {
			out[k] = v
		}
	}
	return out, err
}

func (m *machine) vmstat() (map[string]int64, error) {
	lines, err := m.lines("/proc/vmstat")
	out := map[string]int64{}
	for _, l := range lines {
		if k, v, ok := strings.Cut(l, " "); ok {
			out[k] = number(v)
		}
	}
	return out, err
}

func (m *machine) vmstats() (map[string]any, error) {
	v, err := m.vmstat()
	out := map[string]any{}
	for k, n := range v {
		out[k] = n
	}
	return out, err
}

// netstats reads pairs of lines: names, then values.
func (m *machine) netstats() (map[string]any, error) {
	lines, err := m.lines("/proc/net/netstat")
	out := map[string]any{}
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		if len(names) == 0 || len(values) == 0 || names[0] != values[0] {
			continue
		}
		row := map[string]any{}
		for j := 1; j < min(len(names), len(values)); j++ {
			row[names[j]] = number(values[j])
		}
		out[strings.TrimSuffix(names[0], ":")] = row
	}
	return out, err
}

// netColumns are the columns of /proc/net/dev.
var netColumns = strings.Fields("rx_bytes rx_packets rx_errs rx_drop rx_fifo rx_frame rx_compressed rx_multicast " +
	"tx_bytes tx_packets tx_errs tx_drop tx_fifo tx_colls tx_carrier tx_compressed")

func (m *machine) netdev() (map[string]any, error) {
	lines, err := m.lines("/proc/net/dev")
	out := map[string]any{}
	for _, l := range lines {
		name, v, ok := strings.Cut(l, ":")
		f := strings.Fields(v)
		if !ok || len(f) < len(netColumns) {
			continue
		}
		name = strings.TrimSpace(name)
		row := map[string]any{"iface": name}
		for i, k := range netColumns {
			row[k] = number(f[i])
		}
		out[name] = row
	}
	return out, err
}

func (m *machine) procs() (map[string]any, error) {
	all, err := m.processes()
	out := map[string]any{}
	for _, p := range all {
		cmd := p.Cmdline
		if cmd == "" {
			cmd = "[" + p.Name + "]"
		}
		out[fmt.Sprint(p.PID)] = map[string]any{"user": p.User, "cmd": cmd}
	}
	return out, err
}

func (m *machine) statusDiskusage(ctx context.Context, c *module.Call) (any, error) {
	all, err := m.mountTable()
	if err != nil {
		return nil, err
	}
	args := restTexts(c)
	want := map[string]bool{}
	for _, a := range args {
		if strings.HasPrefix(a, "/") {
			want[a] = true
		}
	}
	for _, e := range all {
		fits := len(args) == 0 && e.Type != "autofs"
		for _, a := range args {
			if ok, err := path.Match(a, e.Type); err == nil && ok {
				fits = true
			}
		}
		if fits {
			want[e.Dir] = true
		}
	}
	out := map[string]any{}
	for p := range want {
		u, err := m.diskUsage(ctx, p)
		if err != nil {
			continue
		}
		out[p] = map[string]any{"available": u["free"], "total": u["total"]}
	}
	return out, nil
}

func (m *machine) who(context.Context, *module.Call) (any, error) {
	all, err := m.sessions()
	if err != nil {
		return nil, err
	}
	procs, err := m.processes()
	out := []any{}
	for _, s := range all {
		row := map[string]any{"user": s.User, "tty": s.TTY, "from": s.Host, "login": s.Started.In(m.location()).Format("15:04"), "idle": "", "jcpu": "", "pcpu": "", "what": ""}
		var st unix.Stat_t
		if unix.Stat(m.path("/dev/"+s.TTY), &st) == nil {
			row["idle"] = fmt.Sprintf("%.0fs", m.now().Sub(time.Unix(st.Atim.Sec, 0)).Seconds())
			var jobs float64
			for _, p := range procs {
				if p.TTY == int(st.Rdev) && p.TTY != 0 {
					jobs += p.UserTime + p.SysTime
					row["pcpu"], row["what"] = fmt.Sprintf("%.2fs", p.UserTime+p.SysTime), p.Cmdline // the newest
				}
			}
			row["jcpu"] = fmt.Sprintf("%.2fs", jobs)
		}
		out = append(out, row)
	}
	return out, err
}
