package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"drover/internal/agent/module"

	"golang.org/x/sys/unix"
)

// Beacons are what an agent watches, and tells of when it changes: salt/beacon/HOST/KIND/WHAT.
type Beacons struct {
	// Seconds are how long it is between two looks at services, packages, disks and load; 10 when 0.
	Seconds int `yaml:"seconds"`
	// Service are units of systemd: told when their state changes.
	Service []string `yaml:"service"`
	// File are files and directories: told at once when they are written, made, moved or removed.
	File []string `yaml:"file"`
	// Package are packages, or * for all: told when their version changes.
	Package []string `yaml:"package"`
	// Disk are mount points, and how full in percent they are told of.
	Disk map[string]float64 `yaml:"disk"`
	// Load is the load of one minute above which it is told of.
	Load float64 `yaml:"load"`
}

// Watched is how beacons look at a host.
type Watched struct {
	Services func(ctx context.Context) (map[string]string, error)
	Packages func(ctx context.Context) ([]string, error) // NEVRAs
}

// beacons watches until ctx ends.
func (a *Agent) beacons(ctx context.Context) {
	b := a.cfg.Beacons
	if len(b.File) > 0 {
		a.work.Go(func() {
			if err := watchFiles(ctx, b.File, func(name, change string) {
				a.event(ctx, "salt/beacon/"+a.cfg.Name+"/inotify/"+name, map[string]any{"path": name, "change": change})
			}); err != nil {
				a.log.Error("files are not watched", "err", err)
			}
		})
	}
	if len(b.Service) == 0 && len(b.Package) == 0 && len(b.Disk) == 0 && b.Load == 0 {
		return
	}
	every := time.Duration(b.Seconds) * time.Second
	if every <= 0 {
		every = 10 * time.Second
	}
	w := &watcher{a: a, b: b, last: map[string]string{}, said: map[string]bool{}}
	for first := true; ; first = false {
		w.look(ctx, first)
		if module.Sleep(ctx, every) != nil {
			return
		}
	}
}

// watcher remembers what was seen last.
type watcher struct {
	a    *Agent
	b    Beacons
	last map[string]string
	said map[string]bool // complaints
}

func (w *watcher) look(ctx context.Context, first bool) {
	if len(w.b.Service) > 0 && w.a.cfg.Watched.Services != nil {
		all, err := w.a.cfg.Watched.Services(ctx)
		w.complain("service", err)
		for _, s := range w.b.Service {
			state, ok := all[s]
			if !ok {
				state = "absent"
			}
			if err == nil {
				w.change(ctx, first, "service", s, state, map[string]any{"service": s, "running": state == "running"})
			}
		}
	}
	if len(w.b.Package) > 0 && w.a.cfg.Watched.Packages != nil {
		ps, err := w.a.cfg.Watched.Packages(ctx)
		w.complain("package", err)
		if err == nil {
			w.packages(ctx, first, ps)
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(w.b.Disk)) {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		w.complain("disk "+dir, err)
		if err != nil || st.Blocks == 0 {
			continue
		}
		used := 100 * float64(st.Blocks-st.Bfree) / float64(st.Blocks-st.Bfree+st.Bavail)
		w.change(ctx, false, "diskusage", dir, strconv.FormatBool(used >= w.b.Disk[dir]), map[string]any{"mount": dir, "diskusage": float64(int(used*10)) / 10, "limit": w.b.Disk[dir]})
	}
	if w.b.Load > 0 {
		b, err := os.ReadFile("/proc/loadavg")
		w.complain("load", err)
		f := strings.Fields(string(b))
		if err == nil && len(f) > 2 {
			one, perr := strconv.ParseFloat(f[0], 64)
			w.complain("load", perr)
			w.change(ctx, false, "load", "1m", strconv.FormatBool(one >= w.b.Load), map[string]any{"1m": f[0], "5m": f[1], "15m": f[2], "limit": w.b.Load})
		}
	}
}

// packages tells of versions that changed.
func (w *watcher) packages(ctx context.Context, first bool, nevras []string) {
	have := map[string][]string{}
	for _, n := range nevras {
		if r := strings.LastIndexByte(n, '-'); r > 0 {
			if v := strings.LastIndexByte(n[:r], '-'); v > 0 {
				have[n[:v]] = append(have[n[:v]], n[v+1:])
			}
		}
	}
	want := w.b.Package
	if slices.Contains(want, "*") {
		want = slices.Collect(maps.Keys(have))
		for k := range w.last {
			if p, ok := strings.CutPrefix(k, "package\x00"); ok && have[p] == nil {
				want = append(want, p)
			}
		}
	}
	for _, p := range want {
		slices.Sort(have[p])
		w.change(ctx, first, "pkg", p, strings.Join(have[p], " "), map[string]any{"pkg": p, "version": have[p]})
	}
}

// change tells of a state that is another than before. What crosses a limit is told at the first
// look too, when it is beyond it.
func (w *watcher) change(ctx context.Context, first bool, kind, what, state string, data map[string]any) {
	key := kind + "\x00" + what
	had, known := w.last[key]
	w.last[key] = state
	if known && had == state || first || !known && state == "false" {
		return
	}
	if known {
		data["was"] = had
	}
	data["state"] = state
	w.a.event(ctx, "salt/beacon/"+w.a.cfg.Name+"/"+kind+"/"+what, data)
}

func (w *watcher) complain(what string, err error) {
	if err != nil && !w.said[what] {
		w.said[what] = true
		w.a.log.Warn("a beacon sees nothing", "beacon", what, "err", err)
	}
	if err == nil {
		delete(w.said, what)
	}
}

// watchFiles calls fn at each change of files until ctx ends. A file is watched by way of its
// directory too: editors replace files, and the watch would stay with the old one.
func watchFiles(ctx context.Context, names []string, fn func(name, change string)) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "inotify") //nolint:gosec // a descriptor
	var once sync.Once
	stop := func() { once.Do(func() { _ = f.Close() }) }
	defer stop()
	go func() { // ends with ctx, which ends with this function's owner
		<-ctx.Done()
		stop()
	}()
	const mask = unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_ATTRIB | unix.IN_DELETE_SELF
	want := map[string]bool{}
	dirs := map[int32]string{}
	var missing []string
	for _, n := range names {
		n = filepath.Clean(n)
		want[n] = true
		dir := n
		if st, err := os.Stat(n); err != nil || !st.IsDir() {
			dir = filepath.Dir(n)
		}
		wd, err := unix.InotifyAddWatch(fd, dir, mask)
		if err != nil {
			missing = append(missing, n)
			continue
		}
		dirs[int32(wd)] = dir //nolint:gosec // small
	}
	if len(missing) == len(names) {
		return errors.New("none of the files can be watched: " + strings.Join(missing, ", "))
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		last := ""
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd, mask, size := int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:]), int(binary.NativeEndian.Uint32(b[12:])) //nolint:gosec // the kernel's
			if size > len(b)-unix.SizeofInotifyEvent {
				break
			}
			name := filepath.Join(dirs[wd], strings.TrimRight(string(b[unix.SizeofInotifyEvent:][:size]), "\x00"))
			b = b[unix.SizeofInotifyEvent+size:]
			if !want[name] && !want[filepath.Dir(name)] {
				continue
			}
			change := "changed"
			switch {
			case mask&(unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_DELETE_SELF) != 0:
				change = "removed"
			case mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
				change = "made"
			case mask&unix.IN_ATTRIB != 0:
				change = "attributes"
			}
			if key := name + change; key != last {
				last = key
				fn(name, change)
			}
		}
	}
}
