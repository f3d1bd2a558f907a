package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// groupParent is the control group, at the top of each hierarchy, below which
// every run gets its own.
const groupParent = "drover"

// hierarchy is where the host's controllers are mounted; the zero value means
// that there are none that can be used. With version 2 all are the same path.
type hierarchy struct {
	version int
	memory  string
	pids    string
	cpu     string   // cpuacct with version 1
	all     []string // every mounted hierarchy
}

// findHierarchy reads the mount table (proc_pid_mountinfo(5)). In a hybrid set-up
// the controllers are version 1.
func findHierarchy() hierarchy {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return hierarchy{}
	}
	defer func() { _ = f.Close() }()
	var one, two hierarchy
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		left, right, ok := strings.Cut(sc.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 {
			continue
		}
		switch path := l[4]; r[0] {
		case "cgroup":
			one.version = 1
			one.all = append(one.all, path)
			for opt := range strings.SplitSeq(r[2], ",") {
				switch opt {
				case "memory":
					one.memory = path
				case "pids":
					one.pids = path
				case "cpuacct":
					one.cpu = path
				}
			}
		case "cgroup2":
			two.version = 2
			two.all = append(two.all, path)
			if has, err := os.ReadFile(filepath.Join(path, "cgroup.controllers")); err == nil {
				names := strings.Fields(string(has))
				two.cpu = path
				if slices.Contains(names, "memory") {
					two.memory = path
				}
				if slices.Contains(names, "pids") {
					two.pids = path
				}
			}
		}
	}
	if one.memory != "" || one.pids != "" {
		one.all = append(one.all, two.all...)
		return one
	}
	return two
}

// group is the control group of one run.
type group struct {
	h    hierarchy
	name string
	oom  *os.File // version 1: eventfd that the kernel counts out-of-memory events in
}

// try makes, fills and removes a group.
func (h hierarchy) try() error {
	if h.memory == "" && h.pids == "" {
		return errors.New("no memory or pids controller is mounted")
	}
	g, err := h.newGroup(fmt.Sprintf("probe-%d", os.Getpid()), 64<<20, 16)
	if err != nil {
		return err
	}
	return g.remove()
}

// newGroup makes the group with its limits.
func (h hierarchy) newGroup(name string, memory int64, pids int) (*group, error) {
	g := &group{h: h, name: name}
	for _, dir := range g.controllers() {
		if h.version == 2 {
			if err := enable(filepath.Dir(filepath.Dir(dir))); err != nil {
				return nil, err
			}
		}
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return nil, err
		}
		if h.version == 2 {
			if err := enable(filepath.Dir(dir)); err != nil {
				return nil, err
			}
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := g.limit(memory, pids); err != nil {
		_ = g.remove()
		return nil, err
	}
	return g, nil
}

// enable hands the controllers in use to the children of dir.
func enable(dir string) error {
	path := filepath.Join(dir, "cgroup.subtree_control")
	for _, c := range []string{"+memory", "+pids"} {
		if err := put(path, c); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return err // EINVAL, ENOENT: the host has no such controller in this hierarchy
		}
	}
	return nil
}

// put writes a control file, which must exist: asking for its creation would turn
// "no such file" into "permission denied".
func put(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func (g *group) limit(memory int64, pids int) error {
	write := func(dir, file string, v int64) error {
		return put(filepath.Join(g.dir(dir), file), strconv.FormatInt(v, 10))
	}
	// Swap accounting is a choice of the kernel's build; without it there is
	// nothing to bound.
	optional := func(err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	var errs []error
	if g.h.pids != "" {
		errs = append(errs, write(g.h.pids, "pids.max", int64(pids)))
	}
	switch {
	case g.h.memory == "":
	case g.h.version == 2:
		errs = append(errs, write(g.h.memory, "memory.max", memory),
			optional(write(g.h.memory, "memory.swap.max", 0)), optional(write(g.h.memory, "memory.oom.group", 1)))
	default:
		errs = append(errs, write(g.h.memory, "memory.limit_in_bytes", memory),
			optional(write(g.h.memory, "memory.memsw.limit_in_bytes", memory)), g.listen())
	}
	return errors.Join(errs...)
}

// listen asks for out-of-memory events of the group and all below it
// (kernel documentation, cgroup-v1/memory.rst, "OOM Control").
func (g *group) listen() error {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return err
	}
	g.oom = os.NewFile(uintptr(fd), "oom")
	dir := g.dir(g.h.memory)
	ctl, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		return err
	}
	defer func() { _ = ctl.Close() }()
	return put(filepath.Join(dir, "cgroup.event_control"), fmt.Sprintf("%d %d", fd, ctl.Fd()))
}

// waitOOM blocks until a version 1 group ran out of memory (true) or the group is
// removed (false).
func (g *group) waitOOM() bool {
	var b [8]byte
	if g.oom == nil {
		return false
	}
	_, err := g.oom.Read(b[:])
	return err == nil && g.alive()
}

// alive tells an out-of-memory event from the one that comes with the removal.
func (g *group) alive() bool {
	_, err := os.Stat(g.dir(g.h.memory))
	return err == nil
}

func (g *group) dir(mount string) string { return filepath.Join(mount, groupParent, g.name) }

// controllers are the directories of the group that carry limits, each once.
func (g *group) controllers() []string {
	var dirs []string
	for _, m := range []string{g.h.memory, g.h.pids, g.h.cpu} {
		if m != "" && !slices.Contains(dirs, g.dir(m)) {
			dirs = append(dirs, g.dir(m))
		}
	}
	return dirs
}

// usage is what the run took, as far as the host counts it.
type usage struct {
	cpu     time.Duration
	peak    int64
	oom     bool // version 2 only
	pidsHit bool
}

func (g *group) usage() usage {
	var u usage
	if g.h.version == 2 {
		d := g.dir(g.h.cpu)
		u.cpu = time.Duration(readKey(d, "cpu.stat", "usage_usec")) * time.Microsecond
		u.peak = readKey(d, "memory.peak", "")
		u.oom = readKey(d, "memory.events", "oom_kill") > 0
		u.pidsHit = readKey(d, "pids.events", "max") > 0
		return u
	}
	if g.h.cpu != "" {
		u.cpu = time.Duration(readKey(g.dir(g.h.cpu), "cpuacct.usage", ""))
	}
	if g.h.memory != "" {
		u.peak = readKey(g.dir(g.h.memory), "memory.max_usage_in_bytes", "")
	}
	if g.h.pids != "" {
		d := g.dir(g.h.pids)
		// With version 1 the event is counted in the group that forks, which the
		// runtime may have removed; the peak stays in its parent.
		u.pidsHit = readKey(d, "pids.events", "max") > 0 || readKey(d, "pids.peak", "") >= max(1, readKey(d, "pids.max", ""))
	}
	return u
}

// readKey reads "value" or the "key value" line of a control file; 0 when absent.
func readKey(dir, file, key string) int64 {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if key == "" && len(f) == 1 || len(f) == 2 && f[0] == key {
			n, _ := strconv.ParseInt(f[len(f)-1], 10, 64)
			return n
		}
	}
	return 0
}

// remove kills what is left in the group and removes it from every hierarchy.
func (g *group) remove() error {
	var err error
	for range 200 {
		err = nil
		for _, m := range g.h.all {
			err = errors.Join(err, removeGroup(g.dir(m)))
		}
		if err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond) // the kernel lets go of dead processes in its own time
	}
	if g.oom != nil {
		_ = g.oom.Close()
	}
	for _, m := range g.h.all {
		_ = os.Remove(filepath.Join(m, groupParent)) // stays while others use it
	}
	return err
}

func removeGroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeGroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	err = unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if put(filepath.Join(dir, "cgroup.kill"), "1") != nil { // version 2, Linux 5.14
		b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for f := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
	return fmt.Errorf("remove control group %s: %w", dir, err)
}
