package system

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func (m *machine) disk() []module.Function {
	args := module.May("args", module.Any, nil)
	device := module.Need("device", module.Str)
	return []module.Function{
		module.Reads("disk.usage", "Tells how full the mounted file systems are.\n\nsalt '*' disk.usage", func(ctx context.Context, c *module.Call) (any, error) {
			return m.usage(ctx, c, func(f unix.Statfs_t) (map[string]any, bool) {
				total, used, free := blocks(f)
				return map[string]any{"1K-blocks": total, "used": used, "available": free, "capacity": percent(used, free)}, total != "0"
			})
		}, args),
		module.Reads("disk.inodeusage", "Tells how many inodes of the mounted file systems are used.\n\nsalt '*' disk.inodeusage", func(ctx context.Context, c *module.Call) (any, error) {
			return m.usage(ctx, c, func(f unix.Statfs_t) (map[string]any, bool) {
				total, used, free := module.Text(int64(f.Files)), module.Text(int64(f.Files-f.Ffree)), module.Text(int64(f.Ffree))
				return map[string]any{"inodes": total, "used": used, "free": free, "use": percent(used, free)}, f.Blocks > 0
			})
		}, args),
		module.Reads("disk.percent", "Tells how full the mounted file systems, or one, are in percent.\n\nsalt '*' disk.percent /var", m.diskPercent, args),
		module.Reads("disk.blkid", "Lists the block devices with what is on them.\n\nsalt '*' disk.blkid /dev/sda1", m.blkid, module.May("device", module.Str, nil), module.May("token", module.Str, nil)),
		module.Reads("disk.fstype", "Tells the type of the file system on a device.\n\nsalt '*' disk.fstype /dev/sda1", m.fstype, device),
		module.Reads("disk.iostat", "Measures input and output of disks for a while.\n\nsalt '*' disk.iostat interval=1 count=5 disks=sda", m.iostat,
			module.May("interval", module.Num, 1), module.May("count", module.Int, 5), module.May("disks", module.List, nil)),
		module.Reads("disk.dump", "Shows what the kernel knows of a block device.\n\nsalt '*' disk.dump /dev/sda", m.diskDump, device, module.May("args", module.List, nil)),
		module.Tests("disk.format", "Makes a file system on a device. Everything on it is lost.\n\nsalt '*' disk.format /dev/sdb1 xfs", m.format, formatParams...),
		module.Tests("disk.format_", "Makes a file system on a device. Everything on it is lost.\n\nsalt '*' disk.format_ /dev/sdb1 xfs", m.format, formatParams...),
		module.Tests("disk.resize2fs", "Lets an ext file system fill its device.\n\nsalt '*' disk.resize2fs /dev/sdb1", func(ctx context.Context, c *module.Call) (any, error) {
			if err := module.NoOption("device", c.Str("device")); err != nil || c.Test {
				return true, err
			}
			o, err := m.run(ctx, "resize2fs", c.Str("device"))
			return err == nil && o.Code == 0, err
		}, device),
	}
}

var formatParams = []module.Param{module.Need("device", module.Str), module.May("fs_type", module.Str, "ext4"), module.May("inode_size", module.Int, nil),
	module.May("lazy_itable_init", module.Int, nil), module.May("fat", module.Int, nil), module.May("force", module.Bool, false)}

// blocks are the sizes of a file system in KiB.
func blocks(f unix.Statfs_t) (total, used, free string) {
	k := func(n uint64) string { return fmt.Sprint(n * uint64(f.Frsize) / 1024) }
	return k(f.Blocks), k(f.Blocks - f.Bfree), k(f.Bavail)
}

// percent is df's: what is used of what is used or free, rounded up.
func percent(used, free string) string {
	u, f := number(used), number(free)
	if u+f <= 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", (u*100+u+f-1)/(u+f))
}

// network file systems may leave whoever asks them waiting for ever.
func (e mountEntry) network() bool {
	t := e.Type
	return strings.HasPrefix(t, "nfs") || strings.HasPrefix(t, "cifs") || strings.HasPrefix(t, "smb") || strings.HasPrefix(t, "fuse") ||
		slices.Contains([]string{"afs", "ceph", "glusterfs", "9p", "lustre", "ncpfs", "autofs"}, t) || slices.Contains(e.opts(), "_netdev") //nolint:misspell // lustre is a file system
}

const probeTime = 5 * time.Second

// statfs asks a file system for its sizes. One over the network gets five seconds; while it is
// silent no other question is put to it, so that at most one thread waits for it.
func (m *machine) statfs(ctx context.Context, e mountEntry) (unix.Statfs_t, error) {
	var f unix.Statfs_t
	if !e.network() {
		return f, unix.Statfs(m.path(e.Dir), &f)
	}
	silent := fault.Unavailable("filesystem_silent", "the file system at %s does not answer", e.Dir)
	m.mu.Lock()
	if m.probing[e.Dir] {
		m.mu.Unlock()
		return f, silent
	}
	m.probing[e.Dir] = true
	m.mu.Unlock()
	type answer struct {
		f   unix.Statfs_t
		err error
	}
	done := make(chan answer, 1)
	go func() { // ends with the system call, which nothing can interrupt
		var a answer
		a.err = unix.Statfs(m.path(e.Dir), &a.f)
		m.mu.Lock()
		delete(m.probing, e.Dir)
		m.mu.Unlock()
		done <- a
	}()
	t := time.NewTimer(probeTime)
	defer t.Stop()
	select {
	case a := <-done:
		return a.f, a.err
	case <-t.C:
		return f, silent
	case <-ctx.Done():
		return f, ctx.Err()
	}
}

// usage asks every file system that has a size, or with names as arguments those that hold them.
func (m *machine) usage(ctx context.Context, c *module.Call, row func(unix.Statfs_t) (map[string]any, bool)) (any, error) {
	all, err := m.mountTable()
	if err != nil {
		return nil, err
	}
	var only []string
	switch x := c.Any("args").(type) {
	case nil:
	case []any:
		for _, v := range x {
			only = append(only, module.Text(v))
		}
	case string:
		if strings.HasPrefix(x, "/") {
			only = []string{x}
			break
		}
		only = nil
		// Flags of df, such as "-l", have no meaning here; paths have.
		for _, s := range strings.Fields(module.Text(x)) {
			if !strings.HasPrefix(s, "-") {
				only = append(only, s)
			}
		}
	}
	// Of what is mounted at one directory the last is seen; of what is mounted twice the first.
	seen := map[string]mountEntry{}
	for _, e := range all {
		seen[e.Dir] = e
	}
	devices := map[string]bool{}
	out := map[string]any{}
	for _, e := range all {
		if seen[e.Dir].ID != e.ID || e.Type == "autofs" {
			continue
		}
		if only != nil {
			if !slices.ContainsFunc(only, func(p string) bool { return holder(all, p) == e.Dir }) {
				continue
			}
		} else if devices[e.Dev] {
			continue
		}
		f, err := m.statfs(ctx, e)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			continue // df too says nothing of what it must not see
		}
		if r, sized := row(f); sized || only != nil {
			r["filesystem"] = e.Source
			out[e.Dir], devices[e.Dev] = r, true
		}
	}
	return out, nil
}

// holder is the mount point that a path is under.
func holder(all []mountEntry, p string) string {
	best := ""
	p = filepath.Clean(p)
	for _, e := range all {
		if e.Source == p {
			return e.Dir
		}
		if (e.Dir == "/" || p == e.Dir || strings.HasPrefix(p, e.Dir+"/")) && len(e.Dir) >= len(best) {
			best = e.Dir
		}
	}
	return best
}

func (m *machine) diskPercent(ctx context.Context, c *module.Call) (any, error) {
	v, err := m.usage(ctx, c, func(f unix.Statfs_t) (map[string]any, bool) {
		total, used, free := blocks(f)
		return map[string]any{"capacity": percent(used, free)}, total != "0"
	})
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for dir, r := range v.(map[string]any) {
		out[dir] = r.(map[string]any)["capacity"]
	}
	if name, ok := c.Any("args").(string); ok && out[name] != nil {
		return out[name], nil
	}
	if len(out) == 1 && c.Any("args") != nil {
		for _, p := range out {
			return p, nil
		}
	}
	return out, nil
}

// parseExport reads KEY=VALUE lines of `blkid -o export`, a paragraph for each device.
func parseExport(text string) map[string]any {
	out := map[string]any{}
	for _, part := range strings.Split(text, "\n\n") {
		dev, row := "", map[string]any{}
		for _, l := range module.Lines(strings.Trim(part, "\n")) {
			k, v, ok := strings.Cut(l, "=")
			switch {
			case !ok:
			case k == "DEVNAME":
				dev = v
			default:
				row[k] = unescapeExport(v)
			}
		}
		if dev != "" {
			out[dev] = row
		}
	}
	return out
}

// unescapeExport undoes the backslashes that blkid puts before what a shell would see.
func unescapeExport(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return module.Valid(b.String())
}

func (m *machine) blkid(ctx context.Context, c *module.Call) (any, error) {
	argv := []string{"blkid", "-o", "export"}
	if t := c.Str("token"); t != "" {
		if !strings.Contains(t, "=") {
			return nil, fault.Invalid("bad_token", "the token %q is not NAME=value", t)
		}
		argv = append(argv, "-t", t)
	}
	if d := c.Str("device"); d != "" {
		if err := module.NoOption("device", d); err != nil {
			return nil, err
		}
		argv = append(argv, d)
	}
	o, err := m.run(ctx, argv...)
	if err != nil {
		return nil, err
	}
	if o.Code != 0 && o.Code != 2 { // 2: nothing was found
		return nil, failed(argv, o)
	}
	return parseExport(o.Out), nil
}

func (m *machine) fstype(ctx context.Context, c *module.Call) (any, error) {
	d := c.Str("device")
	if err := module.NoOption("device", d); err != nil {
		return nil, err
	}
	all, err := m.mountTable()
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if e.Source == d {
			return e.Type, nil
		}
	}
	o, err := m.run(ctx, "blkid", "-p", "-o", "export", d)
	if err != nil {
		return nil, err
	}
	for _, row := range parseExport(o.Out) {
		if t, ok := row.(map[string]any)["TYPE"]; ok {
			return t, nil
		}
	}
	return "", nil
}

// diskColumns are the columns of /proc/diskstats that Salt names (Documentation/admin-guide/iostats).
var diskColumns = strings.Fields("major minor device reads_issued reads_merged sectors_read ms_spent_reading writes_completed writes_merged sectors_written " +
	"ms_spent_writing io_in_progress ms_spent_in_io weighted_ms_spent_in_io")

func (m *machine) diskstats() (map[string]any, error) {
	lines, err := m.lines("/proc/diskstats")
	out := map[string]any{}
	for _, l := range lines {
		f := strings.Fields(l)
		if len(f) < len(diskColumns) {
			continue
		}
		row := map[string]any{}
		for i, k := range diskColumns {
			if k == "device" {
				row[k] = f[i]
			} else {
				row[k] = number(f[i])
			}
		}
		out[f[2]] = row
	}
	return out, err
}

// iostat measures rates between samples, and gives for each disk iostat(1)'s columns of -x.
func (m *machine) iostat(ctx context.Context, c *module.Call) (any, error) {
	interval, count := c.Num("interval"), c.Int("count")
	if interval <= 0 || interval > 60 || count < 1 || count > 1000 {
		return nil, fault.Invalid("bad_interval", "the interval must be within 60 seconds and the count between 1 and 1000")
	}
	before, err := m.diskstats()
	if err != nil {
		return nil, err
	}
	sum := map[string]map[string]float64{}
	last := m.now()
	for range count {
		if err := module.Sleep(ctx, time.Duration(interval*float64(time.Second))); err != nil {
			return nil, err
		}
		after, err := m.diskstats()
		if err != nil {
			return nil, err
		}
		now := m.now()
		for dev, v := range after {
			b, ok := before[dev].(map[string]any)
			if !ok || c.Has("disks") && !slices.Contains(c.Strs("disks"), dev) {
				continue
			}
			if sum[dev] == nil {
				sum[dev] = map[string]float64{}
			}
			for k, n := range rates(b, v.(map[string]any), max(now.Sub(last).Seconds(), 1e-3)) {
				sum[dev][k] += n / float64(count)
			}
		}
		before, last = after, now
	}
	out := map[string]any{}
	for dev, row := range sum {
		r := map[string]any{}
		for k, n := range row {
			r[k] = float64(int64(n*100+0.5)) / 100
		}
		out[dev] = r
	}
	return out, nil
}

func rates(a, b map[string]any, seconds float64) map[string]float64 {
	d := func(k string) float64 {
		x, _ := a[k].(int64)
		y, _ := b[k].(int64)
		return float64(max(y-x, 0))
	}
	per := func(x, n float64) float64 {
		if n == 0 {
			return 0
		}
		return x / n
	}
	r, w := d("reads_issued"), d("writes_completed")
	return map[string]float64{"r/s": r / seconds, "w/s": w / seconds, "rrqm/s": d("reads_merged") / seconds, "wrqm/s": d("writes_merged") / seconds,
		"rkB/s": d("sectors_read") / 2 / seconds, "wkB/s": d("sectors_written") / 2 / seconds, "r_await": per(d("ms_spent_reading"), r), "w_await": per(d("ms_spent_writing"), w),
		"await": per(d("ms_spent_reading")+d("ms_spent_writing"), r+w), "avgqu-sz": d("weighted_ms_spent_in_io") / 1000 / seconds, "%util": min(d("ms_spent_in_io")/10/seconds, 100)}
}

// diskDump gives what `blockdev` reports, from sysfs.
func (m *machine) diskDump(_ context.Context, c *module.Call) (any, error) {
	p, err := filepath.EvalSymlinks(m.path(c.Str("device")))
	if err != nil {
		return nil, fault.NotFound("device_missing", "there is no device %q", c.Str("device"))
	}
	sys := "/sys/class/block/" + filepath.Base(p)
	if !m.exists(sys) {
		return nil, fault.Invalid("not_a_block_device", "%q is not a block device", c.Str("device"))
	}
	queue := sys + "/queue/"
	if !m.exists(queue) { // a partition has its disk's
		if real, err := filepath.EvalSymlinks(m.path(sys)); err == nil {
			queue = strings.TrimPrefix(filepath.Dir(real), strings.TrimSuffix(m.root, "/")) + "/queue/"
		}
	}
	sectors := number(m.text(sys + "/size"))
	all := map[string]any{"getro": m.text(sys + "/ro"), "getsz": module.Text(sectors), "getsize": module.Text(sectors), "getsize64": module.Text(sectors * 512),
		"getss": m.text(queue + "logical_block_size"), "getpbsz": m.text(queue + "physical_block_size"), "getiomin": m.text(queue + "minimum_io_size"),
		"getioopt": m.text(queue + "optimal_io_size"), "getalignoff": m.text(sys + "/alignment_offset"), "getmaxsect": module.Text(number(m.text(queue+"max_sectors_kb")) * 2),
		"getra": module.Text(number(m.text(queue+"read_ahead_kb")) * 2), "getfra": module.Text(number(m.text(queue+"read_ahead_kb")) * 2),
		"getdiscardzeroes": m.text(queue + "discard_zeroes_data"), "getbsz": m.text(queue + "logical_block_size")}
	if c.Has("args") {
		out := map[string]any{}
		for _, k := range c.Strs("args") {
			out[k] = all[k]
		}
		return out, nil
	}
	return all, nil
}

func (m *machine) format(ctx context.Context, c *module.Call) (any, error) {
	device, kind := c.Str("device"), c.Str("fs_type")
	if err := module.NoOption("device", device); err != nil {
		return nil, err
	}
	if strings.Trim(kind, "abcdefghijklmnopqrstuvwxyz0123456789") != "" || kind == "" {
		return nil, fault.Invalid("bad_name", "%q is not a type of file system", kind)
	}
	if c.Test {
		return true, nil
	}
	if m.real() {
		if st, err := os.Stat(device); err != nil || st.Mode()&os.ModeDevice == 0 {
			return nil, fault.NotFound("device_missing", "%q is not a device", device)
		}
	}
	argv := []string{"mkfs", "-t", kind}
	if n := c.Int("inode_size"); n != 0 {
		if strings.HasPrefix(kind, "ext") {
			argv = append(argv, "-I", fmt.Sprint(n))
		} else if kind == "xfs" {
			argv = append(argv, "-i", fmt.Sprintf("size=%d", n))
		}
	}
	if c.Has("lazy_itable_init") && kind == "ext4" {
		argv = append(argv, "-E", fmt.Sprintf("lazy_itable_init=%d", c.Int("lazy_itable_init")))
	}
	if n := c.Int("fat"); n == 12 || n == 16 || n == 32 {
		argv = append(argv, "-F", fmt.Sprint(n))
	}
	if c.Bool("force") {
		if strings.HasPrefix(kind, "ext") {
			argv = append(argv, "-F")
		} else if kind == "xfs" {
			argv = append(argv, "-f")
		}
	}
	o, err := m.run(ctx, append(argv, device)...)
	return err == nil && o.Code == 0, err
}
