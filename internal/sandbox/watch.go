package sandbox

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// How often a run is looked at, and how much of its disk is as good as nothing.
const (
	watchEvery = 200 * time.Millisecond
	fullBelow  = 1 << 20   // or a thousandth of it: ext4 refuses writes a little before zero
	hostSpare  = 256 << 20 // what a watched root must leave free on the host
)

// watch looks after the bounds of one run that nothing else enforces, and finds
// out which bound a run ran into.
type watch struct {
	root   *Root
	g      *group
	rep    Report
	memory int64 // 0: not bounded
	pids   int

	kill chan struct{} // closed when the run must end

	mu       sync.Mutex // guards first and diskFull
	first    Reason     // why the run was killed
	diskFull bool
}

// start begins watching the run below process pid; the function it returns ends
// that and waits. It may be called twice.
func (w *watch) start(pid int) (stop func()) {
	kill := make(chan struct{})
	w.kill = kill
	var once sync.Once
	end := func(why Reason) {
		w.say(why)
		once.Do(func() { close(kill) })
	}
	quit := make(chan struct{})
	var wg sync.WaitGroup
	if w.g.oom != nil {
		wg.Go(func() {
			if w.g.waitOOM() {
				end(ReasonOOM)
			}
		})
	}
	wg.Go(func() {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		var nextWalk time.Time
		for {
			select {
			case <-quit:
				return
			case now := <-tick.C:
				if why := w.look(pid, now, &nextWalk); why != ReasonNone {
					end(why)
				}
			}
		}
	})
	var stopped sync.Once
	return func() {
		stopped.Do(func() {
			close(quit)
			if w.g.oom != nil {
				_ = w.g.oom.SetReadDeadline(time.Unix(1, 0)) // ends the wait, keeps the descriptor
			}
			wg.Wait()
		})
	}
}

// look checks every watched bound once.
func (w *watch) look(pid int, now time.Time, nextWalk *time.Time) Reason {
	if w.root.image {
		if full(filepath.Join(w.root.dir, "fs")) {
			w.mu.Lock()
			w.diskFull = true // writes fail by themselves: no need to kill
			w.mu.Unlock()
		}
	} else {
		if free, err := freeBytes(w.root.dir); err == nil && free < hostSpare {
			return ReasonDisk
		}
		if !now.Before(*nextWalk) {
			if diskUse(w.root.upper) > w.root.spec.DiskBytes {
				return ReasonDisk
			}
			// A big tree takes long to walk: spend at most a tenth of the time.
			*nextWalk = now.Add(max(watchEvery, 10*time.Since(now)))
		}
	}
	if w.memory > 0 && (w.rep.Memory == ByWatch || w.rep.Pids == ByWatch) {
		rss, procs := descendants(pid)
		if w.rep.Memory == ByWatch && rss > w.memory {
			return ReasonOOM
		}
		if w.rep.Pids == ByWatch && procs > w.pids {
			return ReasonPids
		}
	}
	return ReasonNone
}

// say records why a run is killed; the first reason stays.
func (w *watch) say(why Reason) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.first == ReasonNone {
		w.first = why
	}
}

// reason judges a run that ended.
func (w *watch) reason(exit int, u usage) Reason {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case exit == 0:
		return ReasonNone
	case w.first != ReasonNone:
		return w.first
	case u.oom:
		return ReasonOOM
	case w.diskFull || w.root.image && full(filepath.Join(w.root.dir, "fs")):
		return ReasonDisk
	case u.pidsHit:
		return ReasonPids
	}
	return ReasonNone
}

// full says whether the file system at path has no room for another file.
func full(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && (int64(st.Bavail)*st.Bsize < max(fullBelow, int64(st.Blocks)*st.Bsize/1000) || st.Ffree == 0)
}

// diskUse is what the files below dir occupy. Files that vanish meanwhile count
// nothing.
func diskUse(dir string) int64 {
	var sum int64
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil {
			sum += st.Blocks * 512 / int64(max(1, hardLinks(d, st)))
		}
		return nil
	})
	return sum
}

// hardLinks is how many names share the blocks of a file.
func hardLinks(d fs.DirEntry, st unix.Stat_t) uint64 {
	if d.IsDir() {
		return 1
	}
	return uint64(st.Nlink) //nolint:unconvert // 32 bits on arm64
}

// descendants adds up the resident memory and the threads of all processes that
// descend from pid. Orphans of a pid namespace stay descendants of its first
// process.
func descendants(pid int) (rss int64, threads int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, 0
	}
	type proc struct {
		parent, threads int
		rss             int64
	}
	all := map[int]proc{}
	for _, e := range entries {
		p, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat")) // proc_pid_stat(5)
		if err != nil {
			continue
		}
		_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
		f := strings.Fields(rest)
		if !ok || len(f) < 22 {
			continue
		}
		parent, _ := strconv.Atoi(f[1])
		n, _ := strconv.Atoi(f[17])
		pages, _ := strconv.ParseInt(f[21], 10, 64)
		all[p] = proc{parent, n, pages * int64(os.Getpagesize())}
	}
	below := func(p int) bool {
		for range len(all) {
			if p == pid {
				return true
			}
			next, ok := all[p]
			if !ok {
				return false
			}
			p = next.parent
		}
		return false
	}
	for p, v := range all {
		if p != pid && below(p) {
			rss += v.rss
			threads += v.threads
		}
	}
	return rss, threads
}
