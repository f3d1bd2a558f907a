package system

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

const fstabFile = "/etc/fstab"

func (m *machine) mounts() []module.Function {
	name, config := module.Need("name", module.Str), module.May("config", module.Str, fstabFile)
	mounting := func(fn, doc string, device module.Param, run func(context.Context, *module.Call) (any, error), more ...module.Param) module.Function {
		return module.Tests("mount."+fn, doc, run, append([]module.Param{name, device, module.May("mkmnt", module.Bool, false), module.May("fstype", module.Str, ""),
			module.May("opts", module.Any, "defaults"), module.May("user", module.Str, nil)}, more...)...)
	}
	return []module.Function{
		module.Reads("mount.active", "Lists what is mounted, by mount point.\n\nsalt '*' mount.active", m.mountActive, module.May("extended", module.Bool, false)),
		module.Reads("mount.fstab", "Lists what /etc/fstab says, by mount point.\n\nsalt '*' mount.fstab", func(_ context.Context, c *module.Call) (any, error) {
			text, err := module.ReadIfThere(m.path(c.Str("config")))
			return fstab(text), err
		}, config),
		module.Tests("mount.set_fstab", "Writes a line of /etc/fstab, if it is not there as it should.\n\nsalt '*' mount.set_fstab /srv /dev/sdb1 xfs", m.setFstab,
			name, module.Need("device", module.Str), module.Need("fstype", module.Str), module.May("opts", module.Any, "defaults"), module.May("dump", module.Int, 0), module.May("pass_num", module.Int, 0),
			config, module.May("test", module.Bool, false), module.May("match_on", module.Any, "auto"), module.May("not_change", module.Bool, false)),
		module.Tests("mount.rm_fstab", "Takes a line out of /etc/fstab.\n\nsalt '*' mount.rm_fstab /srv /dev/sdb1", m.rmFstab, name, module.May("device", module.Str, nil), config),
		mounting("mount", "Mounts a file system.\n\nsalt '*' mount.mount /srv /dev/sdb1 True", module.May("device", module.Str, nil), m.mount, module.May("util", module.Str, "mount")),
		mounting("remount", "Mounts a file system anew with other options.\n\nsalt '*' mount.remount /srv /dev/sdb1 opts=ro", module.Need("device", module.Str), m.remount),
		module.Tests("mount.umount", "Unmounts a file system.\n\nsalt '*' mount.umount /srv", m.umount, name, module.May("device", module.Str, nil), module.May("user", module.Str, nil),
			module.May("util", module.Str, "mount"), module.May("lazy", module.Bool, false)),
		module.Reads("mount.is_mounted", "Tells whether something is mounted at a directory.\n\nsalt '*' mount.is_mounted /srv", func(_ context.Context, c *module.Call) (any, error) {
			all, err := m.mountTable()
			return slices.ContainsFunc(all, func(x mountEntry) bool { return x.Dir == filepath.Clean(c.Str("name")) }), err
		}, name),
		module.Reads("mount.swaps", "Lists the active swap areas.\n\nsalt '*' mount.swaps", func(context.Context, *module.Call) (any, error) { return m.swaps() }),
		module.Tests("mount.swapon", "Activates a swap area.\n\nsalt '*' mount.swapon /dev/sdb2", m.swapon, name, module.May("priority", module.Any, nil)),
		module.Tests("mount.swapoff", "Deactivates a swap area.\n\nsalt '*' mount.swapoff /dev/sdb2", m.swapoff, name),
	}
}

// mountEntry is a line of /proc/self/mountinfo (proc(5)).
type mountEntry struct {
	ID, Parent, Dev, Root, Dir, Type, Source string
	Opts, Super                              []string
}

// octal undoes the escapes \040 and the like of the kernel and of fstab(5).
func octal(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return module.Valid(b.String())
}

func escape(s string) string {
	s = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(s)
	if rest, ok := strings.CutPrefix(s, "#"); ok { // a line that begins so is a comment
		return `\043` + rest
	}
	return s
}

// columns splits a line as the kernel and fstab(5) do: other white space may be part of a path.
func columns(l string) []string {
	return strings.FieldsFunc(l, func(r rune) bool { return r == ' ' || r == '\t' })
}

func parseMountinfo(text string) []mountEntry {
	var out []mountEntry
	for _, l := range module.Lines(text) {
		f := columns(l)
		sep := slices.Index(f, "-")
		if sep < 6 || len(f) < sep+4 {
			continue
		}
		out = append(out, mountEntry{ID: f[0], Parent: f[1], Dev: f[2], Root: octal(f[3]), Dir: octal(f[4]), Type: f[sep+1], Source: octal(f[sep+2]),
			Opts: strings.Split(f[5], ","), Super: strings.Split(f[sep+3], ",")})
	}
	return out
}

func (m *machine) mountTable() ([]mountEntry, error) {
	s, err := m.read("/proc/self/mountinfo")
	return parseMountinfo(s), err
}

// opts are the options of a mount and of its file system, as /proc/mounts joins them.
func (e mountEntry) opts() []string {
	all := slices.Clone(e.Opts)
	for _, o := range e.Super {
		if !slices.Contains(all, o) && o != "rw" && o != "ro" {
			all = append(all, o)
		}
	}
	return all
}

func (m *machine) mountActive(_ context.Context, c *module.Call) (any, error) {
	all, err := m.mountTable()
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for _, e := range all {
		alt := ""
		if p, err := filepath.EvalSymlinks(m.path(e.Source)); err == nil && strings.HasPrefix(e.Source, "/dev/") && p != m.path(e.Source) {
			alt = p
		}
		v := map[string]any{"device": e.Source, "alt_device": alt, "fstype": e.Type, "opts": e.opts()}
		if c.Bool("extended") {
			major, minor, _ := strings.Cut(e.Dev, ":")
			v["mountid"], v["parentid"], v["root"], v["major"], v["minor"] = e.ID, e.Parent, e.Root, major, minor
			v["opts"], v["superopts"] = e.Opts, e.Super
			v["device_uuid"], v["device_label"] = m.diskName("by-uuid", e.Source), m.diskName("by-label", e.Source)
		}
		out[e.Dir] = v
	}
	return out, nil
}

// diskName is the name under which udev links to a device, nil without one.
func (m *machine) diskName(by, device string) any {
	dir := m.path("/dev/disk/" + by)
	links, err := os.ReadDir(dir)
	if err != nil || !strings.HasPrefix(device, "/dev/") {
		return nil
	}
	real, err := filepath.EvalSymlinks(m.path(device))
	if err != nil {
		return nil
	}
	for _, l := range links {
		if p, err := filepath.EvalSymlinks(filepath.Join(dir, l.Name())); err == nil && p == real {
			return l.Name()
		}
	}
	return nil
}

// fstabEntry is a line of fstab(5).
type fstabEntry struct{ Device, Dir, Type, Opts, Dump, Pass string }

func fstabLine(l string) (e fstabEntry, ok bool) {
	f := columns(l)
	if len(f) < 3 || strings.HasPrefix(f[0], "#") {
		return e, false
	}
	e = fstabEntry{octal(f[0]), octal(f[1]), f[2], "defaults", "0", "0"}
	for i, p := range []*string{&e.Opts, &e.Dump, &e.Pass} {
		if v := field(f, i+3); v != "" && !strings.HasPrefix(v, "#") {
			*p = v
		}
	}
	return e, true
}

func (e fstabEntry) String() string {
	return strings.Join([]string{escape(e.Device), escape(e.Dir), e.Type, e.Opts, e.Dump, e.Pass}, "\t")
}

func fstab(text string) map[string]any {
	out, again := map[string]any{}, map[string]int{}
	for _, l := range module.Lines(text) {
		e, ok := fstabLine(l)
		if !ok {
			continue
		}
		// Swap areas all stand at "none": each has its own key, as none must hide another.
		key := e.Dir
		if n, ok := again[e.Dir]; ok {
			key = fmt.Sprintf("%s-%d", e.Dir, n-1)
		}
		again[e.Dir]++
		out[key] = map[string]any{"device": e.Device, "fstype": e.Type, "opts": strings.Split(e.Opts, ","), "dump": e.Dump, "pass": e.Pass}
	}
	return out
}

// optsText is a list of options or a text with commas.
func optsText(v any) string {
	l, ok := v.([]any)
	if !ok {
		if v == nil {
			return "defaults"
		}
		return module.Text(v)
	}
	var s []string
	for _, o := range l {
		s = append(s, module.Text(o))
	}
	return strings.Join(s, ",")
}

func (m *machine) setFstab(_ context.Context, c *module.Call) (any, error) {
	want := fstabEntry{c.Str("device"), c.Str("name"), c.Str("fstype"), optsText(c.Any("opts")), module.Text(c.Int("dump")), module.Text(c.Int("pass_num"))}
	for _, s := range []string{want.Type, want.Opts} {
		if strings.ContainsAny(s, " \t\n") || s == "" {
			return nil, fault.Invalid("bad_fstab", "%q cannot stand in a column of %s", s, c.Str("config"))
		}
	}
	if want.Device == "" || want.Dir == "" || strings.HasPrefix(want.Device, "#") {
		return nil, fault.Invalid("bad_fstab", "a line of %s needs a device and a mount point", c.Str("config"))
	}
	var on []string
	switch x := c.Any("match_on").(type) {
	case []any:
		for _, k := range x {
			on = append(on, module.Text(k))
		}
	default:
		if s := module.Text(x); s != "auto" && s != "None" {
			on = []string{s}
		}
	}
	if on == nil { // several swap areas have one name, so the device tells them apart
		on = []string{"name"}
		if want.Type == "swap" || want.Dir == "none" || want.Dir == "swap" {
			on = []string{"device"}
		}
	}
	var wrong string
	match := func(e fstabEntry) bool {
		for _, k := range on {
			var same bool
			switch k {
			case "name":
				same = trimDir(e.Dir) == trimDir(want.Dir)
			case "device":
				same = e.Device == want.Device
			case "fstype":
				same = e.Type == want.Type
			case "opts":
				same = e.Opts == want.Opts
			case "dump":
				same = e.Dump == want.Dump
			case "pass", "pass_num":
				same = e.Pass == want.Pass
			default:
				wrong = k
			}
			if !same {
				return false
			}
		}
		return true
	}
	file := m.path(c.Str("config"))
	text, err := module.ReadIfThere(file)
	if err != nil {
		return nil, err
	}
	var out []string
	result := "new"
	for _, l := range module.Lines(text) {
		if e, ok := fstabLine(l); ok && match(e) {
			switch {
			case c.Bool("not_change") || e == want:
				result = "present"
			default:
				result, l = "change", want.String()
			}
		}
		out = append(out, l)
	}
	if wrong != "" {
		return nil, fault.Invalid("bad_match", "match_on knows no column %q", wrong)
	}
	if result == "new" {
		out = append(out, want.String())
	}
	if result == "present" || c.Test || c.Bool("test") {
		return result, nil
	}
	return result, writeKeep(file, strings.Join(out, "\n")+"\n", 0o644)
}

func trimDir(s string) string {
	if t := strings.TrimRight(s, "/"); t != "" {
		return t
	}
	return s
}

// writeKeep replaces a file and keeps its permissions and owner.
func writeKeep(file, text string, mode fs.FileMode) error {
	if p, err := filepath.EvalSymlinks(file); err == nil {
		file = p // a link stays a link
	}
	uid, gid := -1, -1
	if i, err := os.Stat(file); err == nil {
		mode = i.Mode().Perm()
		if st, ok := i.Sys().(*syscall.Stat_t); ok {
			uid, gid = int(st.Uid), int(st.Gid)
		}
	}
	if err := durable.WriteFile(file, []byte(text), mode); err != nil {
		return err
	}
	if uid > 0 || gid > 0 {
		return os.Chown(file, uid, gid)
	}
	return nil
}

func (m *machine) rmFstab(_ context.Context, c *module.Call) (any, error) {
	file := m.path(c.Str("config"))
	text, err := module.ReadIfThere(file)
	if err != nil {
		return nil, err
	}
	var out []string
	gone := false
	for _, l := range module.Lines(text) {
		if e, ok := fstabLine(l); ok && trimDir(e.Dir) == trimDir(c.Str("name")) && (c.Str("device") == "" || e.Device == c.Str("device")) {
			gone = true
			continue
		}
		out = append(out, l)
	}
	if !gone || c.Test {
		return true, nil
	}
	return true, writeKeep(file, strings.Join(out, "\n")+"\n", 0o644)
}

// mountFlags are the options that are flags of mount(2); true clears the flag.
var mountFlags = map[string]struct {
	clear bool
	flag  uintptr
}{
	"defaults": {}, "rw": {true, unix.MS_RDONLY}, "ro": {false, unix.MS_RDONLY}, "suid": {true, unix.MS_NOSUID}, "nosuid": {false, unix.MS_NOSUID},
	"dev": {true, unix.MS_NODEV}, "nodev": {false, unix.MS_NODEV}, "exec": {true, unix.MS_NOEXEC}, "noexec": {false, unix.MS_NOEXEC},
	"async": {true, unix.MS_SYNCHRONOUS}, "sync": {false, unix.MS_SYNCHRONOUS}, "dirsync": {false, unix.MS_DIRSYNC}, "remount": {false, unix.MS_REMOUNT},
	"bind": {false, unix.MS_BIND}, "rbind": {false, unix.MS_BIND | unix.MS_REC}, "atime": {true, unix.MS_NOATIME}, "noatime": {false, unix.MS_NOATIME},
	"diratime": {true, unix.MS_NODIRATIME}, "nodiratime": {false, unix.MS_NODIRATIME}, "relatime": {false, unix.MS_RELATIME}, "norelatime": {true, unix.MS_RELATIME},
	"strictatime": {false, unix.MS_STRICTATIME}, "lazytime": {false, unix.MS_LAZYTIME}, "silent": {false, unix.MS_SILENT}, "loud": {true, unix.MS_SILENT},
}

// mountOptions splits options into flags and the file system's own. It tells whether there is one
// that only mount(8) can do.
func mountOptions(opts string) (flags uintptr, data string, program bool) {
	var rest []string
	for _, o := range strings.Split(opts, ",") {
		f, known := mountFlags[o]
		switch {
		case o == "" || o == "_netdev" || o == "nofail" || o == "auto" || o == "noauto" || strings.HasPrefix(o, "x-systemd.") || strings.HasPrefix(o, "comment="):
		case known && f.clear:
			flags &^= f.flag
		case known:
			flags |= f.flag
		case o == "loop" || o == "user" || o == "users" || o == "owner" || o == "group" || strings.HasPrefix(o, "loop=") || strings.HasPrefix(o, "offset=") ||
			strings.HasPrefix(o, "x-") || strings.HasPrefix(o, "X-") || strings.Contains(o, "context=") || strings.Contains(o, "helper="):
			program = true
		case slices.Contains(strings.Fields("private shared slave unbindable rprivate rshared rslave runbindable move"), o):
			program = true
		default:
			rest = append(rest, o)
		}
	}
	return flags, strings.Join(rest, ","), program
}

// resolveDevice finds the device behind UUID= and its kin by udev's links.
func (m *machine) resolveDevice(s string) (string, bool) {
	for _, t := range [][2]string{{"UUID=", "by-uuid"}, {"LABEL=", "by-label"}, {"PARTUUID=", "by-partuuid"}, {"PARTLABEL=", "by-partlabel"}} {
		if v, ok := strings.CutPrefix(s, t[0]); ok {
			v = strings.Trim(v, `"`)
			if v == "" || strings.Contains(v, "/") {
				return s, false
			}
			p, err := filepath.EvalSymlinks(m.path("/dev/disk/" + t[1] + "/" + v))
			return p, err == nil
		}
	}
	return s, true
}

func (m *machine) mount(ctx context.Context, c *module.Call) (any, error) {
	return m.doMount(ctx, c, optsText(c.Any("opts")))
}

func (m *machine) remount(ctx context.Context, c *module.Call) (any, error) {
	opts := optsText(c.Any("opts"))
	all, err := m.mountTable()
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(all, func(e mountEntry) bool { return e.Dir == filepath.Clean(c.Str("name")) }) {
		return m.doMount(ctx, c, opts)
	}
	if !slices.Contains(strings.Split(opts, ","), "remount") {
		opts += ",remount"
	}
	return m.doMount(ctx, c, opts)
}

func (m *machine) doMount(ctx context.Context, c *module.Call, opts string) (any, error) {
	name, device, fstype := c.Str("name"), c.Str("device"), c.Str("fstype")
	if !strings.HasPrefix(name, "/") {
		return nil, fault.Invalid("bad_name", "the mount point %q is not an absolute path", name)
	}
	for what, s := range map[string]string{"device": device, "file system type": fstype, "list of options": opts} {
		if s != "" {
			if err := module.NoOption(what, s); err != nil {
				return nil, err
			}
		}
	}
	if util := c.Str("util"); util != "" && util != "mount" {
		return nil, fault.Invalid("mount_util", "mount.mount knows no util %q", util).Fix("only mount is there; images of guests are virt's")
	}
	if c.Test {
		return true, nil
	}
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
		if !c.Bool("mkmnt") {
			return fmt.Sprintf("mount: %s: mount point does not exist.", name), nil
		}
		if err := os.MkdirAll(name, 0o755); err != nil {
			return nil, err
		}
	}
	flags, data, program := mountOptions(opts)
	source, found := m.resolveDevice(device)
	program = program || !found || device == "" || c.Str("user") != "" || (fstype == "" && flags&(unix.MS_BIND|unix.MS_REMOUNT) == 0) || fstype == "auto"
	for _, dir := range []string{"/sbin", "/usr/sbin"} {
		program = program || fstype != "" && m.exists(dir+"/mount."+fstype)
	}
	if st, err := os.Stat(source); err == nil && st.Mode().IsRegular() && flags&unix.MS_BIND == 0 {
		program = true // an image wants a loop device
	}
	if !program {
		err := unix.Mount(source, name, fstype, flags, data)
		// Binding takes no other flags at first; a second call sets them.
		if more := flags &^ (unix.MS_REC | unix.MS_SILENT); err == nil && flags&unix.MS_BIND != 0 && flags&unix.MS_REMOUNT == 0 && more != unix.MS_BIND {
			err = unix.Mount("", name, "", flags&^unix.MS_REC|unix.MS_REMOUNT, "")
		}
		if err != nil {
			return fmt.Sprintf("mount: %s: mounting %s failed: %s.", name, device, err), nil
		}
		return true, nil
	}
	argv := []string{"mount"}
	if opts != "" {
		argv = append(argv, "-o", opts)
	}
	if fstype != "" {
		argv = append(argv, "-t", fstype)
	}
	argv = append(argv, "--")
	if device != "" {
		argv = append(argv, device)
	}
	o, err := m.run(ctx, append(argv, name)...)
	if err != nil {
		return nil, err
	}
	if o.Code != 0 {
		return said(o), nil // Salt's callers look for a text
	}
	return true, nil
}

func (m *machine) umount(_ context.Context, c *module.Call) (any, error) {
	name := filepath.Clean(c.Str("name"))
	all, err := m.mountTable()
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(all, func(e mountEntry) bool { return e.Dir == name }) {
		return name + " does not have anything mounted", nil
	}
	if c.Test {
		return true, nil
	}
	flags := unix.UMOUNT_NOFOLLOW
	if c.Bool("lazy") {
		flags |= unix.MNT_DETACH
	}
	if err := unix.Unmount(name, flags); err != nil {
		return fmt.Sprintf("umount: %s: %s.", name, err), nil
	}
	return true, nil
}

func (m *machine) swaps() (map[string]any, error) {
	lines, err := m.lines("/proc/swaps")
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]any{}, nil
	}
	out := map[string]any{}
	for _, l := range lines {
		if f := columns(l); len(f) >= 5 && strings.HasPrefix(f[0], "/") {
			out[octal(f[0])] = map[string]any{"type": f[1], "size": f[2], "used": f[3], "priority": f[4]}
		}
	}
	return out, err
}

// swapNames are the names under which a swap area may be listed.
func (m *machine) swapName(all map[string]any, name string) string {
	dev, _ := m.resolveDevice(name)
	if all[dev] != nil {
		return dev
	}
	if p, err := filepath.EvalSymlinks(m.path(dev)); err == nil && all[p] != nil {
		return p
	}
	return ""
}

func (m *machine) swapon(ctx context.Context, c *module.Call) (any, error) {
	name := c.Str("name")
	if err := module.NoOption("swap area", name); err != nil {
		return nil, err
	}
	all, err := m.swaps()
	if err != nil {
		return nil, err
	}
	if n := m.swapName(all, name); n != "" {
		return map[string]any{"stats": all[n], "new": false}, nil
	}
	if c.Test {
		return map[string]any{"stats": map[string]any{}, "new": true}, nil
	}
	argv := []string{"swapon", name}
	if p := c.Any("priority"); p != nil {
		argv = []string{"swapon", "-p", module.Text(p), name}
	}
	if _, err := m.must(ctx, argv...); err != nil {
		return nil, err
	}
	if all, err = m.swaps(); err != nil {
		return nil, err
	}
	n := m.swapName(all, name)
	if n == "" {
		return map[string]any{}, nil
	}
	return map[string]any{"stats": all[n], "new": true}, nil
}

func (m *machine) swapoff(ctx context.Context, c *module.Call) (any, error) {
	name := c.Str("name")
	if err := module.NoOption("swap area", name); err != nil {
		return nil, err
	}
	all, err := m.swaps()
	if err != nil {
		return nil, err
	}
	if m.swapName(all, name) == "" {
		return nil, nil // Salt's None: there is nothing to do
	}
	if c.Test {
		return true, nil
	}
	if _, err := m.must(ctx, "swapoff", name); err != nil {
		return nil, err
	}
	if all, err = m.swaps(); err != nil {
		return nil, err
	}
	return m.swapName(all, name) == "", nil
}
