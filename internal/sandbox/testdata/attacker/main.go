// Program attacker runs inside a root and tries what a hostile build may try.
// "attacker attack" prints one line for each try, "attacker hog N" uses N MiB.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "attack":
		for _, a := range attacks {
			fmt.Printf("%s\t%v\n", a.name, a.try())
		}
		fmt.Printf("tried\t%d\n", len(attacks))
	case len(os.Args) == 3 && os.Args[1] == "hog":
		n, _ := strconv.Atoi(os.Args[2])
		for b := make([]byte, n<<20); ; {
			for i := 0; i < len(b); i += 4096 {
				b[i]++
			}
		}
	}
}

func sys(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	r, _, e := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if e != 0 {
		return e
	}
	if nr == unix.SYS_CLONE && r == 0 {
		unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
	}
	return nil
}

func openFor(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	n, err := f.Read(b[:])
	_ = f.Close()
	if flags == os.O_RDONLY && (err != nil || n == 0) {
		return errors.New("empty")
	}
	return nil
}

// attacks is what a hostile build may try; every try must fail.
var attacks = []struct {
	name string
	try  func() error
}{
	{"connect", func() error { _, err := net.DialTimeout("tcp", "198.51.100.1:80", time.Second); return err }},
	{"find a route", func() error { _, err := net.Dial("udp", "8.8.8.8:53"); return err }},
	{"raw packets", func() error { _, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); return err }},
	{"raw ip", func() error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW); return err }},
	{"vsock", func() error { _, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0); return err }},
	{"kernel crypto sockets", func() error { _, err := unix.Socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0); return err }},
	{"mknod of a disk", func() error { return unix.Mknod("/tmp/disk", unix.S_IFBLK|0o666, 254<<8) }},
	{"mknod of memory", func() error { return unix.Mknod("/tmp/mem", unix.S_IFCHR|0o666, 1<<8|1) }},
	{"mount a tmpfs", func() error { return unix.Mount("t", "/tmp", "tmpfs", 0, "") }},
	{"mount by the new calls", func() error { _, err := unix.Fsopen("tmpfs", 0); return err }},
	{"unmount /proc", func() error { return unix.Unmount("/proc", unix.MNT_DETACH) }},
	{"remount / writable suid", func() error { return unix.Mount("", "/", "", unix.MS_REMOUNT, "") }},
	{"pivot_root", func() error { return unix.PivotRoot("/", "/tmp") }},
	{"chroot", func() error { return unix.Chroot("/tmp") }},
	{"unshare a user namespace", func() error { return sys(unix.SYS_UNSHARE, unix.CLONE_NEWUSER) }},
	{"clone a user namespace", func() error { return sys(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD)) }},
	{"clone a network namespace", func() error { return sys(unix.SYS_CLONE, unix.CLONE_NEWNET|uintptr(unix.SIGCHLD)) }},
	{"clone3", func() error {
		if err := sys(unix.SYS_CLONE3, 0, 0); err != unix.ENOSYS {
			return nil
		}
		return unix.ENOSYS
	}},
	{"join a namespace", func() error {
		fd, err := unix.Open("/proc/1/ns/mnt", unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		return unix.Setns(fd, 0)
	}},
	{"ptrace the parent", func() error { return sys(unix.SYS_PTRACE, unix.PTRACE_ATTACH, uintptr(os.Getppid())) }},
	{"ptrace by traceme", func() error { return sys(unix.SYS_PTRACE, unix.PTRACE_TRACEME) }},
	{"read another's memory", func() error { return sys(unix.SYS_PROCESS_VM_READV, 1) }},
	{"bpf", func() error { return sys(unix.SYS_BPF, 0) }},
	{"perf", func() error { return sys(unix.SYS_PERF_EVENT_OPEN) }},
	{"io_uring", func() error { return sys(unix.SYS_IO_URING_SETUP, 8) }},
	{"userfaultfd", func() error { return sys(unix.SYS_USERFAULTFD, 0) }},
	{"keyring", func() error { return sys(unix.SYS_KEYCTL, 0) }},
	{"kernel log", func() error { return sys(unix.SYS_SYSLOG, 10) }},
	{"load a module", func() error { return sys(unix.SYS_INIT_MODULE, 0, 0, 0) }},
	{"reboot", func() error { return sys(unix.SYS_REBOOT) }},
	{"open by handle", func() error { return sys(unix.SYS_OPEN_BY_HANDLE_AT) }},
	{"set the hostname", func() error { return unix.Sethostname([]byte("x")) }},
	{"set the clock", func() error { return unix.Settimeofday(&unix.Timeval{}) }},
	{"become root", func() error { return unix.Setresuid(0, 0, 0) }},
	{"join root's group", func() error { return unix.Setgroups([]int{0}) }},
	{"raise priority", func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -5) }},
	{"chown a file", func() error {
		return errors.Join(os.WriteFile("/tmp/mine", nil, 0o600), os.Chown("/tmp/mine", 0, 0))
	}},
	{"file capabilities", func() error {
		return unix.Setxattr("/tmp/mine", "security.capability", make([]byte, 20), 0)
	}},
	{"overlay xattrs", func() error { return unix.Setxattr("/tmp/mine", "trusted.overlay.opaque", []byte("y"), 0) }},
	{"read /proc/kcore", func() error { return openFor("/proc/kcore", os.O_RDONLY) }},
	{"read /proc/keys", func() error { return openFor("/proc/keys", os.O_RDONLY) }},
	{"read /proc/kallsyms", func() error { return openFor("/proc/kallsyms", os.O_RDONLY) }},
	{"write sysrq", func() error { return openFor("/proc/sysrq-trigger", os.O_WRONLY) }},
	{"write core_pattern", func() error { return openFor("/proc/sys/kernel/core_pattern", os.O_WRONLY) }},
	{"write to /sys", func() error { return os.Mkdir("/sys/fs/x", 0o700) }},
	{"write uid_map", func() error { return os.WriteFile("/proc/self/uid_map", []byte("0 0 1"), 0) }},
	{"write /etc", func() error { return os.WriteFile("/etc/passwd", []byte("x"), 0o644) }},
	{"write a new device node dir", func() error { return os.WriteFile("/dev/x", nil, 0o644) }},
	{"write a read-only bind", func() error { return os.WriteFile("/bound/x", nil, 0o644) }},
	{"change a read-only bind's file", func() error { return openFor("/bound/file", os.O_WRONLY) }},
	{"reach the host's disk", func() error { return openFor("/dev/vda", os.O_RDONLY) }},
	{"reach memory", func() error { return openFor("/dev/mem", os.O_RDONLY) }},
	{"reach the loop control", func() error { return openFor("/dev/loop-control", os.O_RDWR) }},
	{"see the host through /proc/1/root", func() error {
		_, err := os.Stat("/proc/1/root/proc/1/root/work")
		return err
	}},
	{"a setuid program that gives root", func() error {
		cmd := exec.Command("/bin/suid", "-u")
		cmd.Args[0] = "id" // busybox goes by its name
		out, err := cmd.CombinedOutput()
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(out)) == "0" {
			return nil
		}
		return errors.New("it ran as the caller")
	}},
	{"kill every process", func() error {
		// All it can reach is its own namespace: nobody but itself and process 1.
		n := 0
		entries, _ := os.ReadDir("/proc")
		for _, e := range entries {
			if _, err := strconv.Atoi(e.Name()); err == nil {
				n++
			}
		}
		if n > 2 {
			return nil
		}
		return errors.New("sees only itself")
	}},
}
