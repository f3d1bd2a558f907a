package system

import (
	"cmp"
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func (m *machine) ps() []module.Function {
	pid := module.Need("pid", module.Int)
	pattern, user, full := module.Need("pattern", module.Str), module.May("user", module.Str, nil), module.May("full", module.Bool, false)
	perCPU := module.May("per_cpu", module.Bool, false)
	all := module.May("all", module.Bool, false)
	return []module.Function{
		module.Reads("ps.top", "Lists the processes that use the processors most, over an interval.\n\nsalt '*' ps.top 5 interval=3", m.top, module.May("num_processes", module.Int, 5), module.May("interval", module.Num, 3)),
		module.Reads("ps.get_pid_list", "Lists the numbers of all processes.\n\nsalt '*' ps.get_pid_list", func(context.Context, *module.Call) (any, error) { return m.pids() }),
		module.Reads("ps.proc_info", "Shows a process.\n\nsalt '*' ps.proc_info 1 attrs='[name, status]'", m.procInfo, pid, module.May("attrs", module.List, nil)),
		module.Tests("ps.kill_pid", "Sends a signal to a process.\n\nsalt '*' ps.kill_pid 2340 signal=9", func(_ context.Context, c *module.Call) (any, error) {
			n := int(c.Int("pid"))
			if n <= 0 || c.Int("signal") < 0 || c.Int("signal") > 64 {
				return nil, fault.Invalid("bad_pid", "the signal %d cannot go to the process %d", c.Int("signal"), n)
			}
			if c.Test {
				return kill(n, 0) == nil, nil
			}
			return kill(n, c.Int("signal")) == nil, nil
		}, pid, module.May("signal", module.Int, 15)),
		module.Tests("ps.pkill", "Sends a signal to the processes that fit a pattern; lists them.\n\nsalt '*' ps.pkill httpd signal=1", m.pkill, pattern, user, module.May("signal", module.Int, 15), full),
		module.Reads("ps.pgrep", "Lists the processes that fit a pattern.\n\nsalt '*' ps.pgrep httpd", func(_ context.Context, c *module.Call) (any, error) {
			found, err := m.pgrep(c, c.Bool("pattern_is_regex"))
			if len(found) == 0 || err != nil {
				return nil, err // Salt's None
			}
			return found, nil
		}, pattern, user, full, module.May("pattern_is_regex", module.Bool, false)),
		module.Reads("ps.psaux", "Lists the processes whose command line has a text, as `ps aux` does.\n\nsalt '*' ps.psaux sshd", m.psaux, module.Need("name", module.Str)),
		module.Reads("ps.status", "Lists the processes of a state.\n\nsalt '*' ps.status zombie", func(_ context.Context, c *module.Call) (any, error) {
			list, err := m.processes()
			out := []any{}
			for _, p := range list {
				if p.State == c.Str("status") {
					out = append(out, map[string]any{"pid": p.PID, "name": p.Name})
				}
			}
			return out, err
		}, module.Need("status", module.Str)),
		module.Reads("ps.num_cpus", "Counts the processors.\n\nsalt '*' ps.num_cpus", func(context.Context, *module.Call) (any, error) { return int64(m.cpus()), nil }),
		module.Reads("ps.cpu_percent", "Measures how busy the processors are.\n\nsalt '*' ps.cpu_percent", m.cpuPercent, module.May("interval", module.Num, 0.1), perCPU),
		module.Reads("ps.cpu_times", "Tells for what the processors were used since the boot.\n\nsalt '*' ps.cpu_times", func(_ context.Context, c *module.Call) (any, error) {
			total, each, err := m.cpuTimes()
			if c.Bool("per_cpu") {
				out := []any{}
				for _, t := range each {
					out = append(out, t.dict())
				}
				return out, err
			}
			return total.dict(), err
		}, perCPU),
		module.Reads("ps.virtual_memory", "Tells how the memory is used.\n\nsalt '*' ps.virtual_memory", func(context.Context, *module.Call) (any, error) { return m.virtualMemory() }),
		module.Reads("ps.swap_memory", "Tells how the swap areas are used.\n\nsalt '*' ps.swap_memory", func(context.Context, *module.Call) (any, error) { return m.swapMemory() }),
		module.Reads("ps.total_physical_memory", "Tells the size of the memory.\n\nsalt '*' ps.total_physical_memory", func(context.Context, *module.Call) (any, error) {
			i, err := m.meminfo()
			return i["MemTotal"] * 1024, err
		}),
		module.Reads("ps.disk_partitions", "Lists the mounted file systems.\n\nsalt '*' ps.disk_partitions", func(_ context.Context, c *module.Call) (any, error) { return m.partitions(c.Bool("all")) }, all),
		module.Reads("ps.disk_usage", "Tells how full the file system of a path is.\n\nsalt '*' ps.disk_usage /home", func(ctx context.Context, c *module.Call) (any, error) {
			return m.diskUsage(ctx, c.Str("path"))
		}, module.Need("path", module.Str)),
		module.Reads("ps.disk_partition_usage", "Lists the mounted file systems and how full they are.\n\nsalt '*' ps.disk_partition_usage", func(ctx context.Context, c *module.Call) (any, error) {
			list, err := m.partitions(c.Bool("all"))
			for _, p := range list {
				row := p.(map[string]any)
				u, err := m.diskUsage(ctx, row["mountpoint"].(string))
				if err != nil {
					continue // silent or gone: the list still says that it is mounted
				}
				for k, v := range u {
					row[k] = v
				}
			}
			return list, err
		}, all),
		module.Reads("ps.disk_io_counters", "Tells what disks have read and written since the boot.\n\nsalt '*' ps.disk_io_counters sda", m.diskCounters, module.May("device", module.Str, nil)),
		module.Reads("ps.network_io_counters", "Tells what the network's interfaces have sent and received since the boot.\n\nsalt '*' ps.network_io_counters eth0", m.netCounters, module.May("interface", module.Str, nil)),
		module.Reads("ps.boot_time", "Tells when the host was booted, in seconds or by a format.\n\nsalt '*' ps.boot_time '%F %T'", func(_ context.Context, c *module.Call) (any, error) {
			b := int64(m.bootTime())
			if f := c.Str("time_format"); f != "" {
				return strftime(time.Unix(b, 0).In(m.location()), f), nil
			}
			return b, nil
		}, module.May("time_format", module.Str, nil)),
		module.Reads("ps.get_users", "Lists the users who are logged in.\n\nsalt '*' ps.get_users", func(context.Context, *module.Call) (any, error) {
			all, err := m.sessions()
			out := []any{}
			for _, s := range all {
				out = append(out, map[string]any{"name": s.User, "terminal": s.TTY, "started": float64(s.Started.Unix()), "host": s.Host, "pid": s.PID})
			}
			return out, err
		}),
	}
}

func (m *machine) top(ctx context.Context, c *module.Call) (any, error) {
	interval := c.Num("interval")
	if interval < 0 || interval > 60 {
		return nil, fault.Invalid("bad_interval", "the interval must be within 60 seconds")
	}
	before := map[int]float64{}
	list, err := m.processes()
	if err != nil {
		return nil, err
	}
	for _, p := range list {
		before[p.PID] = p.UserTime + p.SysTime
	}
	if err := module.Sleep(ctx, time.Duration(interval*float64(time.Second))); err != nil {
		return nil, err
	}
	if list, err = m.processes(); err != nil {
		return nil, err
	}
	used := func(p proc) float64 {
		b, ok := before[p.PID]
		if !ok {
			return 0
		}
		return p.UserTime + p.SysTime - b
	}
	slices.SortStableFunc(list, func(a, b proc) int { return cmp.Compare(used(b), used(a)) })
	out := []any{}
	for _, p := range list[:min(len(list), int(max(c.Int("num_processes"), 0)))] {
		cmd := p.Cmdline
		if cmd == "" {
			cmd = p.Name
		}
		out = append(out, map[string]any{"cmd": cmd, "user": p.User, "status": p.State, "pid": p.PID, "create_time": p.Start,
			"cpu": map[string]any{"user": p.UserTime, "system": p.SysTime}, "mem": map[string]any{"rss": p.RSS, "vms": p.VMS}})
	}
	return out, nil
}

// infoAttrs are the attributes of a process that are asked for when none are named.
var infoAttrs = strings.Fields("pid name username cpu_times memory_info create_time status cmdline ppid num_threads nice terminal uids gids exe cwd")

func (m *machine) procInfo(_ context.Context, c *module.Call) (any, error) {
	pid := int(c.Int("pid"))
	p, ok := m.process(pid, m.users())
	if !ok {
		return nil, fault.NotFound("process_missing", "there is no process %d", pid)
	}
	dir := m.path("/proc/" + module.Text(int64(pid)))
	link := func(n string) any {
		s, err := os.Readlink(dir + "/" + n)
		if err != nil {
			return nil // kernel threads have none
		}
		return module.Valid(s)
	}
	ids := func(v [3]int) map[string]any { return map[string]any{"real": v[0], "effective": v[1], "saved": v[2]} }
	full := map[string]any{"pid": p.PID, "name": p.Name, "username": p.User, "create_time": p.Start, "status": p.State, "ppid": p.PPID, "num_threads": p.Threads, "nice": p.Nice,
		"cpu_times": map[string]any{"user": p.UserTime, "system": p.SysTime}, "memory_info": map[string]any{"rss": p.RSS, "vms": p.VMS, "shared": p.Shared},
		"uids": ids(p.UID), "gids": ids(p.GID), "exe": link("exe"), "cwd": link("cwd"), "terminal": nil, "cmdline": p.Argv}
	if p.TTY != 0 {
		full["terminal"] = terminal(p.TTY)
	}
	want := infoAttrs
	if c.Has("attrs") {
		want = c.Strs("attrs")
	}
	out := map[string]any{}
	for _, a := range want {
		v, ok := full[a]
		if !ok {
			return nil, fault.Invalid("bad_attribute", "a process has no attribute %q", a).Fix("use some of %s", strings.Join(infoAttrs, " "))
		}
		out[a] = v
	}
	return out, nil
}

// terminal names a terminal by its device number.
func terminal(n int) string {
	major, minor := n>>8&0xfff, n&0xff|n>>12&0xfff00
	switch {
	case major >= 136 && major < 144:
		return "/dev/pts/" + module.Text(int64((major-136)<<8+minor))
	case major == 4 && minor < 64:
		return "/dev/tty" + module.Text(int64(minor))
	case major == 4:
		return "/dev/ttyS" + module.Text(int64(minor-64))
	}
	return "/dev/" + module.Text(int64(major)) + ":" + module.Text(int64(minor))
}

// pgrep finds processes by a part of their name, by their whole line, or by an expression.
func (m *machine) pgrep(c *module.Call, regex bool) ([]int, error) {
	fits := func(s string) bool { return strings.Contains(s, c.Str("pattern")) }
	if regex {
		re, err := regexp.Compile(c.Str("pattern"))
		if err != nil {
			return nil, fault.Invalid("bad_pattern", "%q is not a regular expression", c.Str("pattern")).Wrap(err)
		}
		fits = re.MatchString
	} else if c.Str("pattern") == "" {
		return nil, fault.Invalid("bad_pattern", "an empty pattern would fit every process")
	}
	return m.pidsOf(func(p proc) bool {
		s := p.Name
		if c.Bool("full") {
			s = p.Cmdline
		}
		return fits(s) && (c.Str("user") == "" || p.User == c.Str("user"))
	}), nil
}

func (m *machine) pkill(_ context.Context, c *module.Call) (any, error) {
	if s := c.Int("signal"); s < 0 || s > 64 {
		return nil, fault.Invalid("bad_signal", "there is no signal %d", s)
	}
	found, err := m.pgrep(c, false)
	if err != nil {
		return nil, err
	}
	var killed []int
	for _, pid := range found {
		if pid == 1 {
			continue // the machine itself is not meant by a part of a name
		}
		if c.Test || kill(pid, c.Int("signal")) == nil {
			killed = append(killed, pid)
		}
	}
	if killed == nil {
		return nil, nil
	}
	return map[string]any{"killed": killed}, nil
}

func (m *machine) psaux(_ context.Context, c *module.Call) (any, error) {
	list, err := m.processes()
	if err != nil {
		return nil, err
	}
	rows := []string{}
	for _, p := range list {
		if strings.Contains(p.Cmdline, c.Str("name")) && p.PID != os.Getpid() {
			rows = append(rows, strings.Join([]string{p.User, module.Text(int64(p.PID)), module.Text(p.RSS / 1024), p.State, p.Cmdline}, " "))
		}
	}
	return []any{c.Str("name"), rows, module.Text(int64(len(rows))) + " occurrence(s)."}, nil
}

// cpuTimes are the columns of a line "cpu" of /proc/stat in seconds.
type cpuTimes struct {
	user, nice, system, idle, iowait, irq, softirq, steal, guest, guestNice float64
}

func (t cpuTimes) dict() map[string]any {
	return map[string]any{"user": t.user, "nice": t.nice, "system": t.system, "idle": t.idle, "iowait": t.iowait, "irq": t.irq, "softirq": t.softirq,
		"steal": t.steal, "guest": t.guest, "guest_nice": t.guestNice}
}

// busy and all are seconds; time of guests is in user and nice already.
func (t cpuTimes) all() float64 {
	return t.user + t.nice + t.system + t.idle + t.iowait + t.irq + t.softirq + t.steal
}
func (t cpuTimes) busy() float64 { return t.all() - t.idle - t.iowait }

func (m *machine) cpuTimes() (total cpuTimes, each []cpuTimes, err error) {
	lines, err := m.lines("/proc/stat")
	for _, l := range lines {
		f := strings.Fields(l)
		if len(f) < 5 || !strings.HasPrefix(f[0], "cpu") {
			continue
		}
		var t cpuTimes
		for i, p := range []*float64{&t.user, &t.nice, &t.system, &t.idle, &t.iowait, &t.irq, &t.softirq, &t.steal, &t.guest, &t.guestNice} {
			*p = float64(number(field(f, i+1))) / clockTicks
		}
		if f[0] == "cpu" {
			total = t
		} else {
			each = append(each, t)
		}
	}
	return total, each, err
}

func (m *machine) cpus() int {
	_, each, err := m.cpuTimes()
	if err != nil {
		return 0
	}
	return len(each)
}

func (m *machine) cpuPercent(ctx context.Context, c *module.Call) (any, error) {
	interval := c.Num("interval")
	if interval <= 0 || interval > 60 {
		return nil, fault.Invalid("bad_interval", "the interval must be within 60 seconds")
	}
	total, each, err := m.cpuTimes()
	if err != nil {
		return nil, err
	}
	if err := module.Sleep(ctx, time.Duration(interval*float64(time.Second))); err != nil {
		return nil, err
	}
	total2, each2, err := m.cpuTimes()
	if err != nil {
		return nil, err
	}
	share := func(a, b cpuTimes) float64 {
		if b.all() <= a.all() {
			return 0
		}
		return float64(int64((b.busy()-a.busy())/(b.all()-a.all())*1000+0.5)) / 10
	}
	if !c.Bool("per_cpu") {
		return share(total, total2), nil
	}
	out := []any{}
	for i := range min(len(each), len(each2)) {
		out = append(out, share(each[i], each2[i]))
	}
	return out, nil
}

// meminfo is /proc/meminfo in its own units, KiB.
func (m *machine) meminfo() (map[string]int64, error) {
	lines, err := m.lines("/proc/meminfo")
	out := map[string]int64{}
	for _, l := range lines {
		k, v, _ := strings.Cut(l, ":")
		if f := strings.Fields(v); len(f) > 0 {
			out[k] = number(f[0])
		}
	}
	return out, err
}

func share(used, total int64) float64 {
	if total <= 0 {
		return 0
	}
	return float64(int64(float64(used)/float64(total)*1000+0.5)) / 10
}

func (m *machine) virtualMemory() (any, error) {
	i, err := m.meminfo()
	k := func(s string) int64 { return i[s] * 1024 }
	cached := k("Cached") + k("SReclaimable")
	used := k("MemTotal") - k("MemFree") - cached - k("Buffers")
	if used < 0 {
		used = k("MemTotal") - k("MemFree")
	}
	return map[string]any{"total": k("MemTotal"), "available": k("MemAvailable"), "percent": share(k("MemTotal")-k("MemAvailable"), k("MemTotal")), "used": used, "free": k("MemFree"),
		"active": k("Active"), "inactive": k("Inactive"), "buffers": k("Buffers"), "cached": cached, "shared": k("Shmem"), "slab": k("Slab")}, err
}

func (m *machine) swapMemory() (any, error) {
	i, err := m.meminfo()
	v, verr := m.vmstat()
	if err == nil {
		err = verr
	}
	total, free := i["SwapTotal"]*1024, i["SwapFree"]*1024
	return map[string]any{"total": total, "used": total - free, "free": free, "percent": share(total-free, total), "sin": v["pswpin"] * 4096, "sout": v["pswpout"] * 4096}, err
}

func (m *machine) partitions(all bool) ([]any, error) {
	types := map[string]bool{}
	for _, l := range module.Lines(m.text("/proc/filesystems")) {
		if t, ok := strings.CutPrefix(l, "nodev\t"); !ok {
			types[strings.TrimSpace(l)] = true
		} else if t == "zfs" {
			types[t] = true
		}
	}
	list, err := m.mountTable()
	out := []any{}
	for _, e := range list {
		if all || types[e.Type] && e.Source != "none" && e.Source != "" {
			out = append(out, map[string]any{"device": e.Source, "mountpoint": e.Dir, "fstype": e.Type, "opts": strings.Join(e.opts(), ",")})
		}
	}
	return out, err
}

func (m *machine) diskUsage(ctx context.Context, p string) (map[string]any, error) {
	all, err := m.mountTable()
	if err != nil {
		return nil, err
	}
	e := mountEntry{Dir: p}
	for _, x := range all {
		if x.Dir == holder(all, p) {
			e.Type, e.Opts = x.Type, x.Opts
		}
	}
	f, err := m.statfs(ctx, e)
	if err != nil {
		return nil, fault.NotFound("path_missing", "the file system of %q cannot be asked", p).Wrap(err)
	}
	unit := int64(f.Frsize) //nolint:unconvert // its type differs by machine
	used, free := int64(f.Blocks-f.Bfree)*unit, int64(f.Bavail)*unit
	return map[string]any{"total": int64(f.Blocks) * unit, "used": used, "free": free, "percent": share(used, used+free)}, nil
}

func (m *machine) diskCounters(_ context.Context, c *module.Call) (any, error) {
	all, err := m.diskstats()
	if err != nil {
		return nil, err
	}
	sum := map[string]int64{}
	found := false
	for dev, v := range all {
		row := v.(map[string]any)
		if d := c.Str("device"); d != "" && d != dev || d == "" && !m.exists("/sys/block/"+dev) {
			continue // without a name whole disks count, partitions would count twice
		}
		found = true
		for k, from := range map[string]string{"read_count": "reads_issued", "write_count": "writes_completed", "read_time": "ms_spent_reading", "write_time": "ms_spent_writing"} {
			sum[k] += row[from].(int64)
		}
		sum["read_bytes"] += row["sectors_read"].(int64) * 512
		sum["write_bytes"] += row["sectors_written"].(int64) * 512
	}
	if !found {
		return false, nil
	}
	return sum, nil
}

func (m *machine) netCounters(_ context.Context, c *module.Call) (any, error) {
	all, err := m.netdev()
	if err != nil {
		return nil, err
	}
	sum := map[string]int64{}
	found := false
	for dev, v := range all {
		if i := c.Str("interface"); i != "" && i != dev {
			continue
		}
		found = true
		row := v.(map[string]any)
		for k, from := range map[string]string{"bytes_recv": "rx_bytes", "bytes_sent": "tx_bytes", "packets_recv": "rx_packets", "packets_sent": "tx_packets",
			"errin": "rx_errs", "errout": "tx_errs", "dropin": "rx_drop", "dropout": "tx_drop"} {
			sum[k] += row[from].(int64)
		}
	}
	if !found {
		return false, nil
	}
	return sum, nil
}
