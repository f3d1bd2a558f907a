package files

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func stats() []module.Function {
	p := module.Need("path", module.Str)
	kind := func(name, what string, bits fs.FileMode, mask fs.FileMode) module.Function {
		return module.Reads(name, "Tells whether a path is "+what+".\n\nsalt '*' "+name+" /dev/x", on("name", func(f string, _ *module.Call) (any, error) {
			i, err := os.Lstat(f)
			return err == nil && i.Mode()&mask == bits, nil
		}), module.Need("name", module.Str))
	}
	return []module.Function{
		module.Reads("file.stats", "Shows owner, mode, size, times and type of a file.\n\nsalt '*' file.stats /etc/passwd", func(ctx context.Context, c *module.Call) (any, error) {
			f, err := argPath(c, "path")
			if err != nil {
				return nil, err
			}
			return statsOf(ctx, f, c.Bool("follow_symlinks"), c.Str("hash_type"))
		}, p, module.May("hash_type", module.Str, nil), module.May("follow_symlinks", module.Bool, true)),
		module.Reads("file.lstat", "Shows what the kernel knows of a file, or of a symbolic link itself.\n\nsalt '*' file.lstat /etc/passwd", on("path", lstat), p),
		module.Reads("file.file_exists", "Tells whether a path is a file.\n\nsalt '*' file.file_exists /etc/passwd", on("path", func(f string, _ *module.Call) (any, error) { return isFile(f), nil }), p),
		module.Reads("file.directory_exists", "Tells whether a path is a directory.\n\nsalt '*' file.directory_exists /etc", on("path", func(f string, _ *module.Call) (any, error) { return isDir(f), nil }), p),
		module.Reads("file.path_exists_glob", "Tells whether there is a path that fits a pattern.\n\nsalt '*' file.path_exists_glob '/etc/pam*/pass*'", on("path", func(f string, _ *module.Call) (any, error) {
			m, err := filepath.Glob(f)
			if err != nil {
				return nil, fault.Invalid("glob_bad", "%q is no pattern of names", f).Wrap(err)
			}
			return len(m) > 0, nil
		}), p),
		module.Reads("file.access", "Tells whether the agent may reach a file: f (it is there), r, w or x.\n\nsalt '*' file.access /etc/passwd r", on("path", access), p, module.Need("mode", module.Str)),
		module.Reads("file.is_link", "Tells whether a path is a symbolic link.\n\nsalt '*' file.is_link /etc/localtime", on("path", func(f string, _ *module.Call) (any, error) {
			i, err := os.Lstat(f)
			return err == nil && i.Mode()&fs.ModeSymlink != 0, nil
		}), p),
		module.Reads("file.is_hardlink", "Tells whether a file has more than one name.\n\nsalt '*' file.is_hardlink /etc/passwd", on("path", func(f string, _ *module.Call) (any, error) {
			var st unix.Stat_t
			return unix.Lstat(f, &st) == nil && st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR, nil
		}), p),
		kind("file.is_chrdev", "a character device", fs.ModeDevice|fs.ModeCharDevice, fs.ModeDevice|fs.ModeCharDevice),
		kind("file.is_blkdev", "a block device", fs.ModeDevice, fs.ModeDevice|fs.ModeCharDevice),
		kind("file.is_fifo", "a named pipe", fs.ModeNamedPipe, fs.ModeNamedPipe),
		module.Reads("file.readlink", "Tells where a symbolic link points.\n\nsalt '*' file.readlink /etc/localtime", on("path", func(f string, c *module.Call) (any, error) {
			t, err := os.Readlink(f)
			if err != nil {
				return nil, fault.NotFound("not_a_link", "A valid link was not specified: %s", f).Wrap(err)
			}
			if !c.Bool("canonicalize") {
				return module.Valid(t), nil
			}
			if t, err = filepath.EvalSymlinks(f); err != nil {
				return nil, failed("followed", f, err)
			}
			return module.Valid(t), nil
		}), p, module.May("canonicalize", module.Bool, false)),
		module.Reads("file.readdir", "Lists the names in a directory.\n\nsalt '*' file.readdir /etc", on("path", readdir), p),
		module.Reads("file.diskusage", "Adds up the sizes of all files below a path, in bytes.\n\nsalt '*' file.diskusage /var/log", diskUsage, p),
		module.Reads("file.statvfs", "Shows what the file system of a path has.\n\nsalt '*' file.statvfs /var", on("path", statvfs), p),
		module.Reads("file.dirname", "Tells the directory of a path.\n\nsalt '*' file.dirname /etc/passwd", pure(func(c *module.Call) any {
			s := c.Str("path")
			i := strings.LastIndexByte(s, '/') + 1
			if t := strings.TrimRight(s[:i], "/"); t != "" {
				return t
			}
			return s[:i]
		}), p),
		module.Reads("file.basename", "Tells the last part of a path.\n\nsalt '*' file.basename /etc/passwd", pure(func(c *module.Call) any {
			s := c.Str("path")
			return s[strings.LastIndexByte(s, '/')+1:]
		}), p),
		module.Reads("file.normpath", "Takes what is superfluous out of a path.\n\nsalt '*' file.normpath /etc/../etc/passwd", pure(func(c *module.Call) any { return filepath.Clean(c.Str("path")) }), p),
		module.Rest(module.Reads("file.join", "Puts parts of a path together.\n\nsalt '*' file.join / usr local bin", pure(func(c *module.Call) any {
			out := ""
			for _, v := range c.Rest {
				switch s := module.Plain(v); {
				case strings.HasPrefix(s, "/") || out == "":
					out = s
				case strings.HasSuffix(out, "/"):
					out += s
				default:
					out += "/" + s
				}
			}
			return out
		}))),
	}
}

// pure is a function that only computes.
func pure(f func(*module.Call) any) module.Run {
	return func(_ context.Context, c *module.Call) (any, error) { return f(c), nil }
}

func statsOf(ctx context.Context, p string, follow bool, hash string) (map[string]any, error) {
	stat := os.Lstat
	if follow && exists(p) { // a link that leads nowhere still has an owner
		stat = os.Stat
	}
	i, err := stat(p)
	if err != nil {
		return nil, fault.NotFound("file_missing", "Path not found: %s", p).Wrap(err)
	}
	st, ok := i.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fault.Internal("no_stat", "nothing is known of %s", p)
	}
	target, err := filepath.EvalSymlinks(p)
	if err != nil {
		target = p
	}
	m := map[string]any{"inode": int64(st.Ino), "uid": int64(st.Uid), "gid": int64(st.Gid), "user": userName(ctx, int64(st.Uid)), "group": groupName(ctx, int64(st.Gid)),
		"atime": seconds(time.Unix(st.Atim.Unix())), "mtime": seconds(i.ModTime()), "ctime": seconds(time.Unix(st.Ctim.Unix())), "size": i.Size(), "mode": octal(i.Mode()),
		"type": typeOf(i.Mode()), "target": module.Valid(target)}
	if hash != "" && i.Mode().IsRegular() {
		if m["sum"], err = hashFile(ctx, p, hash); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func typeOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "dir"
	case m&fs.ModeSymlink != 0:
		return "link"
	case m&fs.ModeCharDevice != 0:
		return "char"
	case m&fs.ModeDevice != 0:
		return "block"
	case m&fs.ModeNamedPipe != 0:
		return "pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	}
	return "file"
}

func lstat(p string, _ *module.Call) (any, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return map[string]any{}, nil //nolint:nilerr // Salt's answer for a file that is not there
	}
	return map[string]any{"st_atime": seconds(time.Unix(st.Atim.Unix())), "st_ctime": seconds(time.Unix(st.Ctim.Unix())), "st_mtime": seconds(time.Unix(st.Mtim.Unix())),
		"st_gid": int64(st.Gid), "st_uid": int64(st.Uid), "st_mode": int64(st.Mode), "st_nlink": int64(st.Nlink), "st_size": st.Size}, nil
}

func access(p string, c *module.Call) (any, error) {
	modes := map[string]uint32{"f": unix.F_OK, "r": unix.R_OK, "w": unix.W_OK, "x": unix.X_OK}
	m, ok := modes[c.Str("mode")]
	if !ok {
		return nil, fault.Invalid("mode_bad", "Invalid mode specified: %s", c.Str("mode")).Fix("f, r, w or x")
	}
	return unix.Access(p, m) == nil, nil
}

func readdir(p string, _ *module.Call) (any, error) {
	if !isDir(p) {
		return nil, fault.Invalid("not_a_directory", "A valid directory was not specified: %s", p)
	}
	d, err := os.Open(p)
	if err != nil {
		return nil, failed("read", p, err)
	}
	defer d.Close()
	names, err := d.Readdirnames(maxNames)
	if err != nil && len(names) > 0 {
		return nil, failed("read", p, err)
	}
	slices.Sort(names)
	out := []any{".", ".."}
	for _, n := range names {
		out = append(out, module.Valid(n))
	}
	return out, nil
}

func diskUsage(ctx context.Context, c *module.Call) (any, error) {
	p, err := argPath(c, "path")
	if err != nil {
		return nil, err
	}
	i, err := os.Stat(p)
	if err != nil {
		return nil, failed("looked at", p, err)
	}
	if !i.IsDir() {
		return i.Size(), nil
	}
	total, n := int64(0), 0
	seen := map[[2]uint64]bool{} // of files with several names
	err = filepath.WalkDir(p, func(f string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it may be gone or closed to us; the rest still counts
		}
		if n++; n > maxNames*8 {
			return fault.TooLarge("files_many", "there are more than %d files below %s", maxNames*8, p)
		}
		if err := ctx.Err(); err != nil || d.IsDir() {
			return err
		}
		i, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := i.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
			k := [2]uint64{st.Dev, st.Ino}
			if seen[k] {
				return nil
			}
			seen[k] = true
		}
		total += i.Size()
		return nil
	})
	return total, err
}

func statvfs(p string, _ *module.Call) (any, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(p, &s); err != nil {
		return nil, fault.NotFound("file_missing", "Could not statvfs %q", p).Wrap(err)
	}
	return map[string]any{"f_bavail": int64(s.Bavail), "f_bfree": int64(s.Bfree), "f_blocks": int64(s.Blocks), "f_bsize": s.Bsize, "f_favail": int64(s.Ffree), "f_ffree": int64(s.Ffree),
		"f_files": int64(s.Files), "f_flag": s.Flags &^ 0x20, "f_frsize": s.Frsize, "f_namemax": s.Namelen}, nil // 0x20 only says that the flags are valid
}
