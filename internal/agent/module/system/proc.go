package system

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"drover/internal/agent/module"
)

// clockTicks is USER_HZ, which has been 100 on every Linux port that this program runs on.
const clockTicks = 100

// proc is a process as /proc/PID tells (proc(5)).
type proc struct {
	PID, PPID, Threads int
	Name, State, User  string
	UID, GID           [3]int // real, effective, saved
	Cmdline            string // arguments with spaces between
	Argv               []string
	UserTime, SysTime  float64 // seconds
	Nice               int
	Start              float64 // seconds since the epoch
	RSS, VMS, Shared   int64   // bytes
	TTY                int
}

// states are psutil's words for the letters of /proc/PID/stat.
var states = map[string]string{"R": "running", "S": "sleeping", "D": "disk-sleep", "T": "stopped", "t": "tracing-stop", "Z": "zombie", "X": "dead", "x": "dead",
	"K": "wake-kill", "W": "waking", "I": "idle", "P": "parked"}

// pids are the numbers of all processes.
func (m *machine) pids() ([]int, error) {
	list, err := os.ReadDir(m.path("/proc"))
	if err != nil {
		return nil, err
	}
	out := []int{}
	for _, e := range list {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, n)
		}
	}
	return out, nil
}

// parseStat reads /proc/PID/stat. The name stands in parentheses and may contain any of them.
func parseStat(s string) (p proc, ok bool) {
	open, shut := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if open < 1 || shut < open {
		return p, false
	}
	f := strings.Fields(s[shut+1:])
	if len(f) < 22 {
		return p, false
	}
	p.PID, p.Name, p.State = int(number(s[:open])), s[open+1:shut], states[f[0]]
	p.PPID, p.TTY = int(number(f[1])), int(number(f[4]))
	p.UserTime, p.SysTime = float64(number(f[11]))/clockTicks, float64(number(f[12]))/clockTicks
	p.Nice, p.Threads = int(number(f[16])), int(number(f[17]))
	p.Start = float64(number(f[19])) / clockTicks
	p.VMS = number(f[20])
	p.RSS = number(f[21]) * int64(os.Getpagesize())
	return p, true
}

// process reads one process; false when it has gone.
func (m *machine) process(pid int, users map[int]string) (proc, bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	s, err := m.read(dir + "/stat")
	if err != nil {
		return proc{}, false
	}
	p, ok := parseStat(s)
	if !ok {
		return p, false
	}
	p.Start += m.bootTime()
	if f := strings.Fields(m.text(dir + "/statm")); len(f) > 2 {
		p.Shared = number(f[2]) * int64(os.Getpagesize())
	}
	for _, l := range module.Lines(m.text(dir + "/status")) {
		k, v, _ := strings.Cut(l, ":")
		f := strings.Fields(v)
		for i := range 3 {
			switch n := int(number(field(f, i))); k {
			case "Uid":
				p.UID[i] = n
			case "Gid":
				p.GID[i] = n
			}
		}
	}
	p.User = users[p.UID[0]]
	if p.User == "" {
		p.User = strconv.Itoa(p.UID[0])
	}
	if raw, err := m.read(dir + "/cmdline"); err == nil {
		if raw = strings.TrimRight(raw, "\x00"); raw != "" {
			p.Argv = strings.Split(raw, "\x00")
			p.Cmdline = strings.Join(p.Argv, " ")
		}
	}
	return p, true
}

// users are the names of user numbers, from /etc/passwd.
func (m *machine) users() map[int]string {
	out := map[int]string{}
	for _, l := range module.Lines(m.text("/etc/passwd")) {
		if f := strings.Split(l, ":"); len(f) > 2 {
			if n, err := strconv.Atoi(f[2]); err == nil && out[n] == "" {
				out[n] = f[0]
			}
		}
	}
	return out
}

// processes are all processes that are there, in order of their numbers.
func (m *machine) processes() ([]proc, error) {
	all, err := m.pids()
	if err != nil {
		return nil, err
	}
	users := m.users()
	var out []proc
	for _, pid := range all {
		if p, ok := m.process(pid, users); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

// pidsOf are the processes that fit, without this one.
func (m *machine) pidsOf(fits func(proc) bool) []int {
	all, err := m.processes()
	if err != nil {
		return nil
	}
	var out []int
	for _, p := range all {
		if fits(p) && p.PID != os.Getpid() {
			out = append(out, p.PID)
		}
	}
	return out
}

// statValue is a line of /proc/stat.
func (m *machine) statValue(key string) int64 {
	for _, l := range module.Lines(m.text("/proc/stat")) {
		if v, ok := strings.CutPrefix(l, key+" "); ok {
			return number(v)
		}
	}
	return 0
}

func (m *machine) bootTime() float64 { return float64(m.statValue("btime")) }

// session is a user process of utmp(5).
type session struct {
	User, TTY, Host string
	PID             int
	Started         time.Time
}

const utmpSize = 384 // of one record on 64-bit Linux

// parseUtmp reads the records of users who are logged in.
func parseUtmp(b []byte) []session {
	var out []session
	str := func(b []byte) string {
		s, _, _ := strings.Cut(string(b), "\x00")
		return module.Valid(s)
	}
	for ; len(b) >= utmpSize; b = b[utmpSize:] {
		if binary.NativeEndian.Uint16(b) != 7 { // USER_PROCESS
			continue
		}
		out = append(out, session{PID: int(int32(binary.NativeEndian.Uint32(b[4:]))), TTY: str(b[8:40]), User: str(b[44:76]), Host: str(b[76:332]),
			Started: time.Unix(int64(binary.NativeEndian.Uint32(b[340:])), 0)})
	}
	return out
}

// sessions are the users who are logged in: from utmp, or where there is none from logind's files.
func (m *machine) sessions() ([]session, error) {
	b, err := os.ReadFile(m.path("/run/utmp"))
	if err == nil && len(b) <= module.MaxFile {
		if all := parseUtmp(b); len(all) > 0 {
			return all, nil
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	list, err := os.ReadDir(m.path("/run/systemd/sessions"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []session
	for _, e := range list {
		if strings.HasSuffix(e.Name(), ".ref") {
			continue
		}
		kv := map[string]string{}
		for _, l := range module.Lines(m.text("/run/systemd/sessions/" + e.Name())) {
			k, v, _ := strings.Cut(l, "=")
			kv[k] = v
		}
		if kv["CLASS"] != "user" || kv["USER"] == "" {
			continue
		}
		tty := kv["TTY"]
		if tty == "" {
			tty = kv["SERVICE"]
		}
		out = append(out, session{kv["USER"], tty, kv["REMOTE_HOST"], int(number(kv["LEADER"])), time.UnixMicro(number(kv["REALTIME"]))})
	}
	return out, err
}

// kill sends a signal. The first process and this one are not for pattern matches to end.
func kill(pid int, sig int64) error { return syscall.Kill(pid, syscall.Signal(sig)) }
