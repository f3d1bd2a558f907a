package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fault"
)

func owners() []module.Function {
	p, usr, group := module.Need("path", module.Str), module.Need("user", module.Any), module.Need("group", module.Any)
	links := module.May("follow_symlinks", module.Bool, true)
	stat := func(name, doc, key string) module.Function {
		return module.Reads(name, doc, func(ctx context.Context, c *module.Call) (any, error) {
			f, err := argPath(c, "path")
			if err != nil {
				return nil, err
			}
			m, err := statsOf(ctx, f, c.Bool("follow_symlinks"), "")
			if err != nil {
				return nil, err
			}
			return m[key], nil
		}, p, links)
	}
	return []module.Function{
		stat("file.get_user", "Tells the user to whom a file belongs.\n\nsalt '*' file.get_user /etc/passwd", "user"),
		stat("file.get_group", "Tells the group to which a file belongs.\n\nsalt '*' file.get_group /etc/passwd", "group"),
		stat("file.get_uid", "Tells the number of the user to whom a file belongs.\n\nsalt '*' file.get_uid /etc/passwd", "uid"),
		stat("file.get_gid", "Tells the number of the group to which a file belongs.\n\nsalt '*' file.get_gid /etc/passwd", "gid"),
		module.Reads("file.get_mode", "Tells the mode of a file.\n\nsalt '*' file.get_mode /etc/passwd", on("path", func(f string, c *module.Call) (any, error) { return modeOf(f, c.Bool("follow_symlinks")), nil }), p, links),
		module.Tests("file.set_mode", "Sets the mode of a file.\n\nsalt '*' file.set_mode /etc/passwd 0644", on("path", func(f string, c *module.Call) (any, error) {
			m, err := parseMode(c.Any("mode"))
			if err != nil {
				return nil, err
			}
			if c.Test {
				return octal(m), nil
			}
			if err := os.Chmod(f, m); err != nil {
				return nil, failed("given another mode", f, err)
			}
			return modeOf(f, true), nil
		}), p, module.Need("mode", module.Any)),
		module.Tests("file.chown", "Gives a file to a user and a group.\n\nsalt '*' file.chown /srv/x root root", chown(os.Chown, os.Stat), p, usr, group),
		module.Tests("file.lchown", "Gives a file, or a symbolic link itself, to a user and a group.\n\nsalt '*' file.lchown /srv/x root root", chown(os.Lchown, os.Lstat), p, usr, group),
		module.Tests("file.chgrp", "Gives a file to a group.\n\nsalt '*' file.chgrp /srv/x root", chown(os.Chown, os.Stat), p, group),
		module.Reads("file.user_to_uid", "Tells the number of a user.\n\nsalt '*' file.user_to_uid root", func(ctx context.Context, c *module.Call) (any, error) {
			if uid, ok := uidOf(ctx, c.Any("user")); ok {
				return uid, nil
			}
			return "", nil
		}, module.May("user", module.Any, nil)),
		module.Reads("file.group_to_gid", "Tells the number of a group.\n\nsalt '*' file.group_to_gid root", func(ctx context.Context, c *module.Call) (any, error) {
			if gid, ok := gidOf(ctx, c.Any("group")); ok {
				return gid, nil
			}
			return "", nil
		}, module.May("group", module.Any, nil)),
		module.Reads("file.uid_to_user", "Tells the name of a user.\n\nsalt '*' file.uid_to_user 0", func(ctx context.Context, c *module.Call) (any, error) { return userName(ctx, c.Int("uid")), nil }, module.Need("uid", module.Int)),
		module.Reads("file.gid_to_group", "Tells the name of a group.\n\nsalt '*' file.gid_to_group 0", func(ctx context.Context, c *module.Call) (any, error) { return groupName(ctx, c.Int("gid")), nil }, module.Need("gid", module.Int)),
		module.Tests("file.check_perms", "Sees to the owner and the mode of a file and tells what changed.\n\nsalt '*' file.check_perms /etc/sudoers '{}' root root 400", checkPerms,
			module.Need("name", module.Str), module.May("ret", module.Map, nil), module.May("user", module.Any, nil), module.May("group", module.Any, nil), module.May("mode", module.Any, nil), module.May("attrs", module.Any, nil), module.May("follow_symlinks", module.Bool, false),
			module.May("seuser", module.Str, nil), module.May("serole", module.Str, nil), module.May("setype", module.Str, nil), module.May("serange", module.Str, nil)),
	}
}

// uidOf is the number of a user, who may be a number already. An empty value is the agent's own.
func uidOf(ctx context.Context, v any) (int64, bool) {
	switch x := v.(type) {
	case nil:
		return int64(os.Geteuid()), true
	case int64:
		return x, true
	}
	s := module.Plain(v)
	if s == "" {
		return int64(os.Geteuid()), true
	}
	if s == "root" {
		return 0, true
	}
	if u, err := user.Lookup(s); err == nil { // a file, before a program is asked
		s = u.Uid
	} else if a, err := command.FindUser(ctx, s); err == nil {
		return int64(a.UID), true
	}
	n, err := strconv.ParseInt(s, 10, 32)
	return n, err == nil && n >= 0
}

func gidOf(ctx context.Context, v any) (int64, bool) {
	switch x := v.(type) {
	case nil:
		return int64(os.Getegid()), true
	case int64:
		return x, true
	}
	s := module.Plain(v)
	if s == "" {
		return int64(os.Getegid()), true
	}
	if s == "root" {
		return 0, true
	}
	if g, err := user.LookupGroup(s); err == nil {
		s = g.Gid
	} else if _, gid, err := command.FindGroup(ctx, s); err == nil {
		return int64(gid), true
	}
	n, err := strconv.ParseInt(s, 10, 32)
	return n, err == nil && n >= 0
}

// userName is the name of a user, or the number when it has none.
func userName(ctx context.Context, uid int64) any {
	if uid == 0 {
		return "root"
	}
	if u, err := user.LookupId(strconv.FormatInt(uid, 10)); err == nil {
		return u.Username
	}
	if a, err := command.FindUser(ctx, strconv.FormatInt(uid, 10)); err == nil {
		return a.Name
	}
	return uid
}

func groupName(ctx context.Context, gid int64) any {
	if gid == 0 {
		return "root"
	}
	if g, err := user.LookupGroupId(strconv.FormatInt(gid, 10)); err == nil {
		return g.Name
	}
	if n, _, err := command.FindGroup(ctx, strconv.FormatInt(gid, 10)); err == nil {
		return n
	}
	return gid
}

// parseMode reads a mode written in octal; numbers are taken digit by digit, as in 644.
func parseMode(v any) (fs.FileMode, error) {
	s := strings.TrimPrefix(module.Plain(v), "0o")
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o7777 {
		return 0, fault.Invalid("mode_bad", "Invalid Mode %s", s).Fix("a mode is octal, as 0644")
	}
	return unixMode(uint32(n)), nil
}

// unixMode makes Go's mode of the kernel's bits.
func unixMode(n uint32) fs.FileMode {
	m := fs.FileMode(n & 0o777)
	if n&0o4000 != 0 {
		m |= fs.ModeSetuid
	}
	if n&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	if n&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// octal is a mode as Salt shows it.
func octal(m fs.FileMode) string {
	n := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		n |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		n |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		n |= 0o1000
	}
	return fmt.Sprintf("%04o", n)
}

// modeOf is the mode of a file, "" when there is none.
func modeOf(p string, follow bool) string {
	stat := os.Lstat
	if follow {
		stat = os.Stat
	}
	i, err := stat(p)
	if err != nil {
		return ""
	}
	return octal(i.Mode())
}

// numberOf is the number of a user or a group, -1 where none is given.
func numberOf(ctx context.Context, find func(context.Context, any) (int64, bool), who any) (int64, bool) {
	if who == nil || who == "" {
		return -1, true
	}
	return find(ctx, who)
}

// chown gives a file away. As in Salt, what is wrong with the names is a text, and all is well
// when there is none.
func chown(set func(string, int, int) error, stat func(string) (fs.FileInfo, error)) module.Run {
	return func(ctx context.Context, c *module.Call) (any, error) {
		p, err := argPath(c, "path")
		if err != nil {
			return nil, err
		}
		says := ""
		uid, ok := numberOf(ctx, uidOf, c.Any("user"))
		if !ok {
			says += "User does not exist\n"
		}
		gid, ok := numberOf(ctx, gidOf, c.Any("group"))
		if !ok {
			says += "Group does not exist\n"
		}
		i, err := stat(p)
		if errors.Is(err, fs.ErrNotExist) {
			says += "File not found"
		}
		if says != "" {
			c.RC = 1
			return says, nil
		}
		if err != nil || c.Test {
			return nil, failed("looked at", p, err)
		}
		mode := i.Mode()
		if err := set(p, int(uid), int(gid)); err != nil {
			return nil, failed("given away", p, err)
		}
		if mode.IsRegular() && mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			return nil, failed("given its mode back", p, os.Chmod(p, mode)) // the kernel takes these bits with the owner
		}
		return nil, nil
	}
}

// own sets owner and mode of what was just made; empty values leave it as it is.
func own(ctx context.Context, p string, who, group, mode any) error {
	uid, ok := numberOf(ctx, uidOf, who)
	if !ok {
		return fault.NotFound("user_missing", "there is no user %s on this host", module.Plain(who))
	}
	gid, ok := numberOf(ctx, gidOf, group)
	if !ok {
		return fault.NotFound("group_missing", "there is no group %s on this host", module.Plain(group))
	}
	if uid >= 0 || gid >= 0 {
		if err := os.Lchown(p, int(uid), int(gid)); err != nil {
			return failed("given away", p, err)
		}
	}
	if mode == nil || mode == "" {
		return nil
	}
	m, err := parseMode(mode)
	if err != nil {
		return err
	}
	return failed("given its mode", p, os.Chmod(p, m))
}

// ownerOf is who owns a file.
func ownerOf(i fs.FileInfo) (uid, gid int) {
	if st, ok := i.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return -1, -1
}

// checkPerms gives a pair, as Salt does: the state's result, and what the file had before.
func checkPerms(ctx context.Context, c *module.Call) (any, error) {
	p, err := argPath(c, "name")
	if err != nil {
		return nil, err
	}
	ret := map[string]any{}
	for k, v := range c.Map("ret") {
		ret[k] = v
	}
	for k, v := range map[string]any{"name": p, "changes": map[string]any{}, "comment": []any{}, "result": true} {
		if _, ok := ret[k]; !ok {
			ret[k] = v
		}
	}
	changes, ok := ret["changes"].(map[string]any)
	if !ok {
		changes = map[string]any{}
		ret["changes"] = changes
	}
	stat := os.Lstat
	if c.Bool("follow_symlinks") {
		stat = os.Stat
	}
	i, err := stat(p)
	if err != nil {
		return nil, failed("looked at", p, err)
	}
	uid, gid := ownerOf(i)
	had := map[string]any{"luser": userName(ctx, int64(uid)), "lgroup": groupName(ctx, int64(gid)), "lmode": octal(i.Mode())}
	link := i.Mode()&fs.ModeSymlink != 0
	want := [2]int64{-1, -1}
	if u := c.Any("user"); u != nil && u != "" {
		n, ok := uidOf(ctx, u)
		if !ok {
			return nil, fault.NotFound("user_missing", "there is no user %s on this host", module.Plain(u))
		}
		if n != int64(uid) {
			want[0], changes["user"] = n, u
		}
	}
	if g := c.Any("group"); g != nil && g != "" {
		n, ok := gidOf(ctx, g)
		if !ok {
			return nil, fault.NotFound("group_missing", "there is no group %s on this host", module.Plain(g))
		}
		if n != int64(gid) {
			want[1], changes["group"] = n, g
		}
	}
	mode := i.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	if m := c.Any("mode"); m != nil && m != "" && !link {
		w, err := parseMode(m)
		if err != nil {
			return nil, err
		}
		if w != mode {
			mode, changes["mode"] = w, octal(w)
		}
	}
	if c.Test {
		if len(changes) > 0 {
			ret["result"] = nil
		}
		return []any{ret, had}, nil
	}
	if want[0] >= 0 || want[1] >= 0 {
		set := os.Lchown
		if c.Bool("follow_symlinks") {
			set = os.Chown
		}
		if err := set(p, int(want[0]), int(want[1])); err != nil {
			return nil, failed("given away", p, err)
		}
	}
	if len(changes) > 0 && !link {
		if err := os.Chmod(p, mode); err != nil { // also after chown, which takes bits away
			return nil, failed("given its mode", p, err)
		}
	}
	if se := [4]string{c.Str("seuser"), c.Str("serole"), c.Str("setype"), c.Str("serange")}; se != [4]string{} {
		old, label, err := setLabel(p, se, c.Bool("follow_symlinks"))
		if err != nil {
			return nil, err
		}
		if old != label {
			changes["selinux"] = map[string]any{"Old": old, "New": label}
		}
	}
	return []any{ret, had}, nil
}

// parents makes the directories above a path.
func parents(p string) error {
	return failed("made", filepath.Dir(p), os.MkdirAll(filepath.Dir(p), 0o755))
}
