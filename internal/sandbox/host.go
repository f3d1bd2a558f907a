package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/fault"
)

// HostSpec is one command of the host that works on a root: dnf --installroot,
// chroot ROOT useradd, and the like.
type HostSpec struct {
	Args   []string // Args[0] is looked up in the host's PATH
	Env    []string // all of it; PATH, and HOME=/root, are added when missing
	Dir    string   // default: the root's Path
	Stdin  io.Reader
	Stdout io.Writer // nil: discarded
	Stderr io.Writer // nil: discarded
	Time   time.Duration
}

// HostCommand runs a trusted command of the host as root, with network and with
// the host's files, in mount, pid, ipc and uts namespaces of its own. While it
// runs, the root has a /proc and a /dev with the usual nodes, which leave no trace
// in the root, so that scriptlets in a chroot find /dev/null. What scriptlets
// leave running is killed at the end. It isolates a package manager from the
// host's processes; it is no wall against hostile code: that is what Run is for.
//
// Errors are those of Run. The disk limit holds.
func (r *Root) HostCommand(ctx context.Context, spec HostSpec) (Result, error) {
	if len(spec.Args) == 0 || spec.Time <= 0 {
		return Result{}, fault.Invalid("sandbox_spec", "sandbox: a host command needs arguments and a time limit")
	}
	rep, err := r.s.ready(ctx)
	if err != nil {
		return Result{}, err
	}
	name, err := r.enter()
	if err != nil {
		return Result{}, err
	}
	defer r.runs.Done()
	for _, d := range []string{"proc", "dev"} {
		path := filepath.Join(r.Path, d)
		if err := os.Mkdir(path, 0o755); err != nil && !os.IsExist(err) {
			return Result{}, startFailed(err)
		}
		if st, err := os.Lstat(path); err != nil || !st.IsDir() {
			return Result{}, fault.Invalid("sandbox_spec", "sandbox: /%s of the root is not a directory", d).Wrap(err)
		}
	}
	// The shell stays as process 1 and reaps what daemons leave.
	const script = `set -e
mount --make-rslave /
mount -t proc -o nosuid,nodev,noexec proc /proc
echo drover >/proc/sys/kernel/hostname
mount -t proc -o nosuid,nodev,noexec proc "$1/proc"
mount -t tmpfs -o nosuid,noexec,mode=755,size=64m tmpfs "$1/dev"
mknod -m 666 "$1/dev/null" c 1 3
mknod -m 666 "$1/dev/zero" c 1 5
mknod -m 666 "$1/dev/full" c 1 7
mknod -m 666 "$1/dev/random" c 1 8
mknod -m 666 "$1/dev/urandom" c 1 9
mknod -m 666 "$1/dev/tty" c 5 0
mkdir -m 1777 "$1/dev/shm"
ln -s /proc/self/fd /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 "$1/dev/"
mv "$1/dev/0" "$1/dev/stdin"; mv "$1/dev/1" "$1/dev/stdout"; mv "$1/dev/2" "$1/dev/stderr"
cd "$2"
shift 2
: >"$0"
set +e
"$@"
exit $?`
	dir := spec.Dir
	if dir == "" {
		dir = r.Path
	}
	ready := filepath.Join(r.dir, "host-"+name)
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, ready, r.Path, dir}, spec.Args...)...) //nolint:noctx // ended by its namespace
	cmd.Env = withDefaults(spec.Env, "/root")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = spec.Stdin, piped(spec.Stdout), piped(spec.Stderr)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}

	w := &watch{root: r, g: &group{}, rep: rep}
	start := r.s.cfg.Now()
	ended, err := r.supervise(ctx, cmd, spec.Time, w)
	if err != nil {
		return Result{}, err
	}
	if err := os.Remove(ready); err != nil && ended.Exited() {
		return Result{}, startFailed(fmt.Errorf("preparing the root ended with %d; its output says why", ended.ExitCode()))
	}
	res := Result{ExitCode: ended.ExitCode(), Usage: Usage{Wall: r.s.cfg.Now().Sub(start), CPU: ended.UserTime() + ended.SystemTime()}}
	if ws, ok := ended.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		res.ExitCode = 128 + int(ws.Signal())
	}
	if res.ExitCode > 128 && res.ExitCode < 128+65 {
		res.Signal = syscall.Signal(res.ExitCode - 128)
	}
	res.Reason = w.reason(res.ExitCode, usage{})
	return res, nil
}

// withDefaults adds PATH and home when env has none, so that no runtime makes up
// its own from the root's /etc/passwd.
func withDefaults(env []string, home string) []string {
	var out []string
	for _, def := range []string{"PATH=" + hostPath, "HOME=" + home} {
		name, _, _ := strings.Cut(def, "=")
		if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") }) {
			out = append(out, def)
		}
	}
	return append(out, env...)
}
