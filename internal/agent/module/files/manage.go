package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

func manages() []module.Function {
	p, src, dst := module.Need("path", module.Str), module.Need("src", module.Str), module.Need("dst", module.Str)
	user, group, mode := module.May("user", module.Any, nil), module.May("group", module.Any, nil), module.May("mode", module.Any, nil)
	name := module.Need("name", module.Str)
	node := []module.Param{user, group, module.May("mode", module.Any, "0660")}
	return []module.Function{
		module.Extra(module.Tests("file.remove", "Removes a file, or a directory with all that is in it.\n\nsalt '*' file.remove /tmp/x", on("path", remove), p)),
		module.Tests("file.rmdir", "Removes a directory that is empty, or with recurse the empty ones below it.\n\nsalt '*' file.rmdir /tmp/x", on("path", rmdir), p, module.May("recurse", module.Bool, false), module.May("verbose", module.Bool, false), module.May("older_than", module.Num, nil)),
		module.Tests("file.copy", "Copies a file, or with recurse a directory.\n\nsalt '*' file.copy /etc/passwd /tmp/x", copyCall, src, dst, module.May("recurse", module.Bool, false), module.May("remove_existing", module.Bool, false)),
		module.Tests("file.move", "Moves a file or a directory, to another file system too.\n\nsalt '*' file.move /tmp/a /tmp/b", move, src, dst, module.May("disallow_copy_and_unlink", module.Bool, false)),
		module.Tests("file.rename", "Renames a file or a directory.\n\nsalt '*' file.rename /tmp/a /tmp/b", on("src", func(from string, c *module.Call) (any, error) {
			to, err := argPath(c, "dst")
			if err != nil {
				return nil, err
			}
			if !there(from) {
				return nil, missing(from)
			}
			if c.Test {
				return true, nil
			}
			return true, failed("renamed", from, durable.Rename(from, to))
		}), src, dst),
		module.Tests("file.mkdir", "Makes a directory and those above it.\n\nsalt '*' file.mkdir /opt/a/b", func(ctx context.Context, c *module.Call) (any, error) {
			d, err := argPath(c, "dir_path")
			if err != nil {
				return nil, err
			}
			return true, makeDir(ctx, c, d, c.Any("mode"), false)
		}, module.Need("dir_path", module.Str), user, group, mode),
		module.Tests("file.makedirs", "Makes the directories above a path; the path itself when it ends with a slash.\n\nsalt '*' file.makedirs /opt/a/b/", func(ctx context.Context, c *module.Call) (any, error) {
			d, err := argPath(c, "path")
			if err != nil {
				return nil, err
			}
			if !strings.HasSuffix(c.Str("path"), "/") {
				d = filepath.Dir(d)
			}
			if isDir(d) {
				return fmt.Sprintf("Directory '%s' already exists", d), nil
			}
			if there(d) {
				return fmt.Sprintf("The path '%s' already exists and is not a directory", d), nil
			}
			return nil, makeDir(ctx, c, d, c.Any("mode"), true)
		}, p, user, group, mode),
		module.Tests("file.makedirs_perms", "Makes a directory and those above it, and gives them an owner and a mode.\n\nsalt '*' file.makedirs_perms /opt/a/b root root 0755", func(ctx context.Context, c *module.Call) (any, error) {
			d, err := argPath(c, "name")
			if err != nil {
				return nil, err
			}
			if there(d) && !isDir(d) {
				return nil, fault.Conflict("not_a_directory", "%s is there and is no directory", d)
			}
			if !c.Test && isDir(d) {
				return nil, own(ctx, d, c.Any("user"), c.Any("group"), c.Any("mode"))
			}
			return nil, makeDir(ctx, c, d, c.Any("mode"), true)
		}, name, user, group, module.May("mode", module.Any, "0755")),
		module.Tests("file.mknod", "Makes a device or a named pipe.\n\nsalt '*' file.mknod /dev/x c 180 31", mknod(""), name, module.Need("ntype", module.Str), module.May("major", module.Int, 0), module.May("minor", module.Int, 0), user, group, module.May("mode", module.Any, "0600")),
		module.Tests("file.mknod_chrdev", "Makes a character device.\n\nsalt '*' file.mknod_chrdev /dev/x 180 31", mknod("c"), append([]module.Param{name, module.Need("major", module.Int), module.Need("minor", module.Int)}, node...)...),
		module.Tests("file.mknod_blkdev", "Makes a block device.\n\nsalt '*' file.mknod_blkdev /dev/x 8 999", mknod("b"), append([]module.Param{name, module.Need("major", module.Int), module.Need("minor", module.Int)}, node...)...),
		module.Tests("file.mknod_fifo", "Makes a named pipe.\n\nsalt '*' file.mknod_fifo /run/x", mknod("p"), append([]module.Param{name}, node...)...),
		module.Tests("file.link", "Gives a file another name.\n\nsalt '*' file.link /srv/a /srv/b", on("path", func(to string, c *module.Call) (any, error) {
			from, err := argPath(c, "src")
			if err != nil {
				return nil, err
			}
			if !isFile(from) {
				return nil, missing(from)
			}
			if c.Test {
				return true, nil
			}
			return true, failed("made", to, os.Link(from, to))
		}), src, p),
		module.Tests("file.symlink", "Makes a symbolic link at path that points to src.\n\nsalt '*' file.symlink /srv/a /srv/b", on("path", symlink), src, p, module.May("force", module.Bool, false), module.May("atomic", module.Bool, false), module.May("follow_symlinks", module.Bool, true)),
		module.Tests("file.touch", "Makes a file that is empty, or sets the times of one that is there.\n\nsalt '*' file.touch /var/log/x", on("name", touch), name, module.May("atime", module.Num, nil), module.May("mtime", module.Num, nil)),
	}
}

// kept are directories without which a host is none.
var kept = map[string]bool{"/": true, "/bin": true, "/boot": true, "/dev": true, "/etc": true, "/home": true, "/lib": true, "/lib64": true, "/proc": true, "/root": true, "/run": true,
	"/sbin": true, "/sys": true, "/usr": true, "/usr/bin": true, "/usr/lib": true, "/usr/lib64": true, "/usr/sbin": true, "/var": true, "/var/lib": true}

// removable refuses to remove what nobody means to.
func removable(p string) error {
	if kept[p] {
		return fault.Denied("path_kept", "%s is not removed: the host would not live on", p)
	}
	return nil
}

func remove(p string, c *module.Call) (any, error) {
	if err := removable(p); err != nil {
		return nil, err
	}
	if !there(p) {
		return nil, missing(p)
	}
	if c.Test {
		return true, nil
	}
	if err := os.RemoveAll(p); err != nil {
		return nil, failed("removed", p, err)
	}
	return true, nil
}

func rmdir(p string, c *module.Call) (any, error) {
	if err := removable(p); err != nil {
		return nil, err
	}
	i, err := os.Lstat(p)
	if err != nil || !i.IsDir() {
		return nil, fault.Invalid("not_a_directory", "A valid directory was not specified: %s", p)
	}
	deleted, errs := []any{}, []any{}
	young := func(d string) bool {
		if !c.Has("older_than") {
			return false
		}
		i, err := os.Lstat(d)
		return err != nil || time.Since(i.ModTime()) < time.Duration(min(c.Num("older_than"), 1e5)*24*float64(time.Hour))
	}
	drop := func(d string) bool {
		if young(d) {
			return false
		}
		if c.Test {
			deleted = append(deleted, d)
			return true
		}
		if err := os.Remove(d); err != nil {
			errs = append(errs, []any{d, err.Error()})
			return false
		}
		deleted = append(deleted, d)
		return true
	}
	if c.Bool("recurse") {
		if err := emptyDirs(p, drop); err != nil {
			return nil, err
		}
	} else {
		drop(p)
	}
	if c.Bool("verbose") {
		return map[string]any{"deleted": deleted, "errors": errs, "result": len(errs) == 0}, nil
	}
	if len(errs) > 0 {
		if !c.Bool("recurse") {
			return errs[0].([]any)[1], nil // Salt's: the reason as a text
		}
		return false, nil
	}
	return true, nil
}

// emptyDirs goes through directories, the deepest first, and drops those in which nothing is.
func emptyDirs(p string, drop func(string) bool) error {
	entries, err := os.ReadDir(p)
	if err != nil {
		return failed("read", p, err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := emptyDirs(filepath.Join(p, e.Name()), drop); err != nil {
				return err
			}
		}
	}
	left, err := os.ReadDir(p)
	if err == nil && len(left) == 0 {
		drop(p)
	}
	return err
}

func copyCall(ctx context.Context, c *module.Call) (any, error) {
	src, err := argPath(c, "src")
	if err != nil {
		return nil, err
	}
	dst, err := argPath(c, "dst")
	if err != nil {
		return nil, err
	}
	if !there(src) {
		return nil, fault.NotFound("file_missing", "No such file or directory '%s'", src)
	}
	i, err := os.Stat(src)
	if err != nil {
		return nil, failed("read", src, err)
	}
	if i.IsDir() && !c.Bool("recurse") {
		return nil, fault.Invalid("recurse_missing", "Cannot copy directory %s", src).Fix("set recurse=True")
	}
	if !i.IsDir() && isDir(dst) {
		dst = filepath.Join(dst, filepath.Base(src))
	}
	if below(src, dst) && i.IsDir() {
		return nil, fault.Invalid("copy_into_itself", "%s cannot be copied into itself", src)
	}
	if src == dst {
		return nil, fault.Invalid("copy_into_itself", "%s cannot be copied onto itself", src)
	}
	if c.Test {
		return true, nil
	}
	if c.Bool("remove_existing") && there(dst) {
		if err := removable(dst); err != nil {
			return nil, err
		}
		if err := os.RemoveAll(dst); err != nil {
			return nil, failed("removed", dst, err)
		}
	}
	return true, copyTree(ctx, src, dst, true)
}

func below(dir, p string) bool {
	return dir == "/" || p == dir || strings.HasPrefix(p, dir+"/")
}

// copyTree copies what is at src to dst, with owners, modes and times. The first link is followed
// when top is set; the ones inside stay links.
func copyTree(ctx context.Context, src, dst string, top bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	stat := os.Lstat
	if top {
		stat = os.Stat
	}
	i, err := stat(src)
	if err != nil {
		return failed("read", src, err)
	}
	uid, gid := ownerOf(i)
	switch {
	case i.IsDir():
		if err := os.MkdirAll(dst, 0o700); err != nil {
			return failed("made", dst, err)
		}
		entries, err := os.ReadDir(src)
		if err != nil {
			return failed("read", src, err)
		}
		for _, e := range entries {
			if err := copyTree(ctx, filepath.Join(src, e.Name()), filepath.Join(dst, e.Name()), false); err != nil {
				return err
			}
		}
		return failed("copied", dst, errors.Join(os.Lchown(dst, uid, gid), os.Chmod(dst, i.Mode()), os.Chtimes(dst, time.Time{}, i.ModTime())))
	case i.Mode()&fs.ModeSymlink != 0:
		t, err := os.Readlink(src)
		if err != nil {
			return failed("read", src, err)
		}
		if err := durable.Symlink(t, dst); err != nil {
			return failed("made", dst, err)
		}
		return failed("given away", dst, os.Lchown(dst, uid, gid))
	case !i.Mode().IsRegular():
		return fault.Invalid("not_a_file", "%s is a %s and cannot be copied", src, typeOf(i.Mode()))
	}
	return copyFile(ctx, src, dst, i)
}

func copyFile(ctx context.Context, src, dst string, i fs.FileInfo) error {
	f, err := os.Open(src)
	if err != nil {
		return failed("read", src, err)
	}
	defer f.Close()
	to, err := follow(dst)
	if err != nil {
		return err
	}
	uid, gid := ownerOf(i)
	err = durable.Replace(to, i.Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky), func(w io.Writer) error {
		if _, err := io.Copy(w, watched{ctx, f}); err != nil {
			return err
		}
		if o, ok := w.(*os.File); ok {
			return o.Chown(uid, gid)
		}
		return nil
	})
	if err != nil {
		return failed("copied to "+dst, src, err)
	}
	return failed("given its time", to, os.Chtimes(to, time.Time{}, i.ModTime()))
}

func move(ctx context.Context, c *module.Call) (any, error) {
	src, err := argPath(c, "src")
	if err != nil {
		return nil, err
	}
	dst, err := argPath(c, "dst")
	if err != nil {
		return nil, err
	}
	if !there(src) {
		return nil, missing(src)
	}
	if isDir(dst) && !c.Bool("disallow_copy_and_unlink") {
		dst = filepath.Join(dst, filepath.Base(src))
	}
	ret := map[string]any{"result": true, "comment": fmt.Sprintf("'%s' moved to '%s'", src, dst)}
	if c.Test {
		return ret, nil
	}
	err = durable.Rename(src, dst)
	if errors.Is(err, unix.EXDEV) && !c.Bool("disallow_copy_and_unlink") {
		if err = copyTree(ctx, src, dst, false); err == nil {
			err = os.RemoveAll(src)
		}
	}
	if err != nil {
		return nil, failed("moved to "+dst, src, err)
	}
	return ret, nil
}

// makeDir makes a directory and what is missing above it; with all, those get owner and mode too.
func makeDir(ctx context.Context, c *module.Call, d string, mode any, all bool) error {
	var made []string
	for p := d; !exists(p); p = filepath.Dir(p) {
		made = append(made, p)
	}
	if len(made) == 0 && !isDir(d) {
		return fault.Conflict("not_a_directory", "%s is there and is no directory", d)
	}
	if mode != nil && mode != "" {
		if _, err := parseMode(mode); err != nil {
			return err
		}
	}
	if c.Test || len(made) == 0 {
		return nil
	}
	if err := durable.MkdirAll(d, 0o755); err != nil {
		return failed("made", d, err)
	}
	if !all {
		made = made[:1]
	}
	for _, p := range made {
		if err := own(ctx, p, c.Any("user"), c.Any("group"), mode); err != nil {
			return err
		}
	}
	return nil
}

func mknod(kind string) module.Run {
	return func(ctx context.Context, c *module.Call) (any, error) {
		p, err := argPath(c, "name")
		if err != nil {
			return nil, err
		}
		k := kind
		if k == "" {
			k = c.Str("ntype")
		}
		bits := map[string]uint32{"c": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}[k]
		word := map[string]string{"c": "Character device", "b": "Block device", "p": "Fifo pipe"}[k]
		if bits == 0 {
			return nil, fault.Invalid("node_bad", "Node type unavailable: '%s'", k).Fix("c is a character device, b a block device, p a pipe")
		}
		if m := c.Int("major"); m < 0 || m > math.MaxInt16 || c.Int("minor") < 0 || c.Int("minor") > math.MaxInt32 {
			return nil, fault.Invalid("node_bad", "the numbers of the device %s cannot be", p)
		}
		if there(p) {
			return nil, fault.Conflict("file_there", "File exists and cannot be overwritten: %s", p)
		}
		ret := map[string]any{"name": p, "changes": map[string]any{"new": word + " " + p + " created."}, "comment": "", "result": true}
		if c.Test {
			ret["changes"], ret["result"] = map[string]any{"new": word + " " + p + " created."}, nil
			return ret, nil
		}
		if err := unix.Mknod(p, bits|0o600, int(unix.Mkdev(uint32(c.Int("major")), uint32(c.Int("minor"))))); err != nil {
			return nil, failed("made", p, err)
		}
		return ret, own(ctx, p, c.Any("user"), c.Any("group"), c.Any("mode"))
	}
}

func symlink(p string, c *module.Call) (any, error) {
	target := c.Str("src")
	if target == "" || strings.ContainsRune(target, 0) {
		return nil, fault.Invalid("link_bad", "a link to %q cannot be", target)
	}
	if now, err := os.Readlink(p); err == nil {
		if now == target {
			return true, nil // it is there already
		}
		if !c.Bool("force") && !c.Bool("atomic") {
			return nil, fault.Conflict("file_there", "Found existing symlink: %s", p).Fix("set force=True to replace it")
		}
	} else if there(p) {
		if !c.Bool("force") {
			return nil, fault.Conflict("file_there", "Existing path is not a symlink: %s", p).Fix("set force=True to replace it")
		}
		if isDir(p) {
			return nil, fault.Conflict("file_there", "%s is a directory, which no link replaces", p).Fix("remove it first")
		}
	}
	if c.Test {
		return true, nil
	}
	if err := durable.Symlink(target, p); err != nil {
		return nil, failed("made", p, err)
	}
	return true, nil
}

func touch(p string, c *module.Call) (any, error) {
	if c.Test {
		return true, nil
	}
	if !exists(p) {
		f, err := os.OpenFile(p, os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, failed("made", p, err)
		}
		if err := f.Close(); err != nil {
			return nil, failed("made", p, err)
		}
	}
	now := time.Now()
	at := func(n string) time.Time {
		if !c.Has(n) {
			return now
		}
		return time.Unix(0, int64(c.Num(n)*1e9))
	}
	atime, mtime := at("atime"), at("mtime")
	switch {
	case c.Has("atime") && !c.Has("mtime"):
		mtime = time.Time{} // stays as it is
	case c.Has("mtime") && !c.Has("atime"):
		atime = time.Time{}
	}
	return true, failed("touched", p, os.Chtimes(p, atime, mtime))
}
