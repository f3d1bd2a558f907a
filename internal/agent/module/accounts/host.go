package accounts

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

const lockPause = 15 * time.Second // what shadow-utils waits for its lock too

// host is where the functions look and act. Tests give it another root, clock and programs.
type host struct {
	root string // "/" on a host
	now  func() time.Time
	run  func(ctx context.Context, stdin string, argv ...string) (output, error)
	scan func(ctx context.Context, address, algorithm string, timeout time.Duration) (string, error)
	roll func(n int) (int, error) // a random number below n
	tabs sync.Mutex               // held from reading a crontab until it is written
}

// Functions are the functions of user, group, shadow, ssh and cron.
func Functions() []module.Function {
	h := &host{root: "/", now: time.Now, run: program, scan: scanKey, roll: roll}
	return h.functions()
}

func (h *host) functions() []module.Function {
	var all []module.Function
	for _, fs := range [][]module.Function{h.users(), h.groups(), h.shadow(), h.ssh(), h.knownHosts(), h.cron()} {
		all = append(all, fs...)
	}
	return all
}

// path is a path of the host, below another root when one is given.
func (h *host) path(root string, elem ...string) string {
	return filepath.Join(append([]string{h.root, root}, elem...)...)
}

// rewrite replaces a file that is there, with the mode, owner and SELinux label that it had.
func rewrite(name, text string) error {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fault.Conflict("not_a_file", "%s is no regular file", name)
	}
	return durable.Replace(name, fs.FileMode(st.Mode&0o7777), func(w io.Writer) error {
		f, ok := w.(*os.File)
		if !ok {
			return fault.Internal("internal", "%s is not written to a file", name)
		}
		if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
		if label := labelOf(name); label != nil {
			if err := unix.Fsetxattr(int(f.Fd()), selinuxLabel, label, 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
				return err
			}
		}
		_, err := io.WriteString(f, text)
		return err
	})
}

const selinuxLabel = "security.selinux"

// labelOf is a file's SELinux label, nil where there is none.
func labelOf(name string) []byte {
	b := make([]byte, 1024)
	n, err := unix.Lgetxattr(name, selinuxLabel, b)
	if err != nil || n == 0 {
		return nil
	}
	return b[:n]
}

// locked runs f under the lock of the password files, which useradd and passwd take too (lckpwdf(3)).
func (h *host) locked(ctx context.Context, root string, f func() error) (err error) {
	name := h.path(root, "/etc/.pwd.lock")
	lock, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	until := time.Now().Add(lockPause)
	// A lock of the open file, not of the process: two calls in this agent exclude each other.
	for {
		err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if err == nil {
			return f()
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return err
		}
		if time.Now().After(until) {
			return fault.Unavailable("passwd_locked", "another program holds the lock of the password files, %s", name).Fix("wait for it; if none runs, see `fuser %s`", name)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// checkName refuses what cannot be the name of a user or group, or would be taken for an option.
func checkName(what, s string) error {
	if s == "" || len(s) > 256 || s[0] == '-' || s == "." || s == ".." || strings.ContainsAny(s, ":,/ \t\r\n\x00\"'`;|&<>(){}*?~!#%=") {
		return fault.Invalid("bad_name", "%q cannot be the name of a %s", s, what)
	}
	return nil
}

// checkField refuses what would break a line of a password file, or be taken for an option.
func checkField(what, s string) error {
	if strings.ContainsAny(s, ":\r\n\x00") || strings.HasPrefix(s, "-") || len(s) > 4096 {
		return fault.Invalid("bad_field", "%q cannot be the %s of an account", s, what)
	}
	return nil
}
