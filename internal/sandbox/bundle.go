package sandbox

import (
	"fmt"
	"runtime"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// bundle is the OCI runtime configuration of a run (runtime-spec 1.0.2, config.md
// and config-linux.md).
func (r *Root) bundle(rep Report, spec Spec, id string) *specs.Spec {
	host, cwd := spec.Hostname, spec.Cwd
	if host == "" {
		host = "drover"
	}
	if cwd == "" {
		cwd = "/"
	}
	shm := min(spec.Memory/2, 1<<30)
	b := &specs.Spec{
		Version:  "1.0.2",
		Hostname: host,
		Root:     &specs.Root{Path: r.Path},
		Process: &specs.Process{
			Terminal:        spec.TTY != nil,
			User:            specs.User{UID: spec.UID, GID: spec.GID, AdditionalGids: spec.Groups},
			Args:            spec.Args,
			Env:             withDefaults(spec.Env, "/"),
			Cwd:             cwd,
			Capabilities:    &specs.LinuxCapabilities{},
			NoNewPrivileges: true,
			Rlimits:         r.rlimits(rep, spec),
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "nodev", "noexec"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "mode=755", "size=64k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "noexec", "mode=1777", fmt.Sprintf("size=%d", shm)}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "nodev", "noexec", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
			},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/kallsyms", "/proc/kmsg", "/proc/latency_stats",
				"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/proc/vmallocinfo",
				"/sys/firmware", "/sys/kernel", "/sys/fs", "/sys/devices/virtual/powercap",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Seccomp:       seccomp(),
		},
	}
	if rep.UserNS {
		// Every id keeps its meaning, so that layers need no shifting; what counts is
		// that nothing inside has a capability in the host's namespace.
		all := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: 1<<32 - 1}}
		b.Linux.Namespaces = append(b.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		b.Linux.UIDMappings, b.Linux.GIDMappings = all, all
	}
	if !isCrun(rep.Runtime) {
		b.Linux.CgroupsPath = "/" + groupParent + "/" + id + "/c"
	}
	for _, bind := range spec.Binds {
		b.Mounts = append(b.Mounts, specs.Mount{Destination: bind.Path, Type: "bind", Source: bind.Host, Options: []string{"rbind", "rprivate", "ro", "nosuid", "nodev"}})
	}
	return b
}

// rlimits never raises a hard limit: that needs a privilege drover may not have.
func (r *Root) rlimits(rep Report, spec Spec) []specs.POSIXRlimit {
	files := uint64(65536)
	var now unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &now) == nil {
		files = min(files, now.Max)
	}
	l := []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Soft: min(1024, files), Hard: files},
		{Type: "RLIMIT_CORE"},
	}
	if !r.image {
		l = append(l, specs.POSIXRlimit{Type: "RLIMIT_FSIZE", Soft: uint64(r.spec.DiskBytes), Hard: uint64(r.spec.DiskBytes)})
	}
	if rep.UserNS && rep.cgroup.pids == "" {
		l = append(l, specs.POSIXRlimit{Type: "RLIMIT_NPROC", Soft: uint64(spec.Pids), Hard: uint64(spec.Pids)})
	}
	return l
}

// seccomp refuses the system calls that no build needs and that most holes of the
// kernel were reached by. It is the second wall: without capabilities most of them
// fail anyway. clone3 hides its flags from the filter, so it does not exist here;
// libc then uses clone.
func seccomp() *specs.LinuxSeccomp {
	eperm, enosys := uint(unix.EPERM), uint(unix.ENOSYS)
	refuse := []string{
		"_sysctl", "acct", "add_key", "adjtimex", "bpf", "chroot", "clock_adjtime", "clock_settime", "create_module", "delete_module",
		"fanotify_init", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "get_kernel_syms", "init_module",
		"ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl",
		"lookup_dcookie", "mount", "mount_setattr", "move_mount", "name_to_handle_at", "nfsservctl", "open_by_handle_at", "open_tree",
		"perf_event_open", "pidfd_getfd", "pivot_root", "process_vm_readv", "process_vm_writev", "ptrace", "query_module", "quotactl", "quotactl_fd",
		"reboot", "request_key", "setdomainname", "sethostname", "setns", "settimeofday", "stime", "swapoff", "swapon", "syslog",
		"umount", "umount2", "unshare", "userfaultfd", "uselib", "vhangup", "vm86", "vm86old",
	}
	const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP
	rules := []specs.LinuxSyscall{
		{Names: refuse, Action: specs.ActErrno, ErrnoRet: &eperm},
		{Names: []string{"clone3", "io_uring_setup", "io_uring_enter", "io_uring_register"}, Action: specs.ActErrno, ErrnoRet: &enosys},
		{Names: []string{"ioctl"}, Action: specs.ActErrno, ErrnoRet: &eperm, Args: []specs.LinuxSeccompArg{{Index: 1, Value: unix.TIOCSTI, Op: specs.OpEqualTo}}},
	}
	for bit := uint64(1); bit <= newNamespaces; bit <<= 1 {
		if bit&newNamespaces != 0 {
			rules = append(rules, specs.LinuxSyscall{Names: []string{"clone"}, Action: specs.ActErrno, ErrnoRet: &eperm,
				Args: []specs.LinuxSeccompArg{{Index: 0, Value: bit, ValueTwo: bit, Op: specs.OpMaskedEqual}}})
		}
	}
	for _, family := range []uint64{unix.AF_ALG, unix.AF_VSOCK, unix.AF_PACKET} {
		rules = append(rules, specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActErrno, ErrnoRet: &eperm,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: family, Op: specs.OpEqualTo}}})
	}
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: rules}
	switch runtime.GOARCH {
	case "amd64":
		s.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	case "arm64":
		s.Architectures = []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	}
	return s
}
