package accounts

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// place is a file that belongs to a user, most often below its home. It is read and written as
// that user where the directory is the user's own, so that no link or special file in there can
// make the agent touch what the user could not; and never outside of the directory it begins at.
type place struct {
	base string // a directory: the home, or where the file is
	rel  string // the file below it
	user user
}

// placeOf is where a setting like .ssh/authorized_keys or /etc/ssh/keys/%u lies for a user.
func (h *host) placeOf(u user, config string) (place, error) {
	config = strings.NewReplacer("%%", "%", "%u", u.Name, "%h", u.Home).Replace(config)
	if strings.ContainsRune(config, 0) || u.Home == "" && !filepath.IsAbs(config) {
		return place{}, fault.Invalid("bad_path", "%q is no path of a file of %s", config, u.Name)
	}
	if rel, err := filepath.Rel(u.Home, config); filepath.IsAbs(config) && err == nil && filepath.IsLocal(rel) {
		config = rel
	}
	if filepath.IsAbs(config) {
		return place{h.path("", filepath.Dir(config)), filepath.Base(config), u}, nil
	}
	if !filepath.IsLocal(config) {
		return place{}, fault.Invalid("bad_path", "%q leads out of the home of %s", config, u.Name)
	}
	return place{h.path("", u.Home), filepath.Clean(config), u}, nil
}

func (p place) name() string { return filepath.Join(p.base, p.rel) }

// with runs f as whoever the directory belongs to.
func (p place) with(f func(root *os.Root, own bool) error) error {
	root, err := os.OpenRoot(p.base)
	if err != nil {
		return err
	}
	defer root.Close()
	st, err := root.Stat(filepath.Dir(p.rel))
	if errors.Is(err, fs.ErrNotExist) {
		st, err = root.Stat(".")
	}
	if err != nil {
		return err
	}
	uid, _ := owners(st)
	switch {
	case uid == p.user.UID && uid != os.Geteuid():
		return asUser(p.user, func() error { return f(root, true) })
	case uid == p.user.UID, uid == 0:
		return f(root, uid == p.user.UID)
	}
	return fault.Denied("foreign_directory", "the directory of %s belongs to neither %s nor root", p.name(), p.user.Name).Fix("set its owner, then repeat")
}

// asUser runs f with a user's rights on files. They are a thread's own (setfsuid(2)), and the
// thread ends with it.
func asUser(u user, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread must not be used again
		defer func() {
			if p := recover(); p != nil {
				done <- fault.Internal("internal", "a defect while acting as %s: %v", u.Name, p)
			}
		}()
		if _, err := unix.SetfsgidRetGid(u.GID); err != nil {
			done <- err
			return
		}
		if _, err := unix.SetfsuidRetUid(u.UID); err != nil {
			done <- err
			return
		}
		uid, err := unix.SetfsuidRetUid(-1)
		if err == nil && uid != u.UID {
			err = fault.Denied("user_denied", "the agent may not act as the user %s", u.Name).Fix("run it as root")
		}
		if err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// read is the text of the file, "" when there is none.
func (p place) read() (text string, err error) {
	err = p.with(func(root *os.Root, _ bool) error {
		text, err = p.readIn(root)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return text, err
}

func (p place) exists() bool {
	return p.with(func(root *os.Root, _ bool) error {
		_, err := root.Stat(p.rel)
		return err
	}) == nil
}

func (p place) readIn(root *os.Root) (string, error) {
	f, err := root.OpenFile(p.rel, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() {
		return "", fault.Conflict("not_a_file", "%s is no regular file", p.name())
	}
	return module.ReadAll(f, p.name())
}

// edit replaces the file by what change makes of its text, atomically; the same text, or ok
// false, leaves it. A new file gets mode perm.
func (p place) edit(perm fs.FileMode, change func(text string) (string, bool)) error {
	return p.with(func(root *os.Root, own bool) error {
		text, err := p.readIn(root)
		missing := errors.Is(err, fs.ErrNotExist)
		if err != nil && !missing {
			return err
		}
		to, ok := change(text)
		if !ok || to == text && !missing {
			return nil
		}
		if err := root.MkdirAll(filepath.Dir(p.rel), 0o700); err != nil {
			return err
		}
		return p.replaceIn(root, own, perm, to)
	})
}

func (p place) replaceIn(root *os.Root, own bool, perm fs.FileMode, text string) (err error) {
	temp := filepath.Join(filepath.Dir(p.rel), ".drover-"+rand.Text()[:12])
	uid, gid := p.user.UID, p.user.GID
	if !own {
		uid, gid, perm = 0, 0, 0o644 // a place of root's where the user's sshd must read it
	}
	var label []byte
	if old, err := root.OpenFile(p.rel, os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
		st, serr := old.Stat()
		if serr == nil {
			perm = st.Mode().Perm()
			uid, gid = owners(st)
			b := make([]byte, 1024)
			if n, err := unix.Fgetxattr(int(old.Fd()), selinuxLabel, b); err == nil {
				label = b[:n]
			}
		}
		if err := errors.Join(serr, old.Close()); err != nil {
			return err
		}
	}
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(root.Remove(temp)))
		}
	}()
	_, err = io.WriteString(f, text)
	if err == nil && (!own || os.Geteuid() == p.user.UID) { // who acts as the user makes files of the user's
		err = f.Chown(uid, gid)
	}
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil && len(label) > 0 {
		if err = unix.Fsetxattr(int(f.Fd()), selinuxLabel, label, 0); errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", p.name(), err)
	}
	return root.Rename(temp, p.rel)
}

// owners are the user and group of a file; -1 is nobody's.
func owners(st fs.FileInfo) (uid, gid int) {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid), int(s.Gid)
	}
	return -1, -1
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
