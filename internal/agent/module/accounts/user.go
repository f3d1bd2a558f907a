package accounts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func (h *host) users() []module.Function {
	name := module.Need("name", module.Str)
	root := module.May("root", module.Str, nil)
	return []module.Function{
		module.Tests("user.add", "Adds a user.\n\nsalt '*' user.add name uid=1234 gid=100 groups=wheel,docker shell=/bin/bash", h.userAdd,
			name, module.May("uid", module.Int, nil), module.May("gid", module.Any, nil), module.May("groups", module.List, nil), module.May("home", module.Str, nil),
			module.May("shell", module.Str, nil), module.May("unique", module.Bool, true), module.May("system", module.Bool, false), module.May("fullname", module.Str, ""),
			module.May("roomnumber", module.Str, ""), module.May("workphone", module.Str, ""), module.May("homephone", module.Str, ""), module.May("other", module.Str, ""),
			module.May("createhome", module.Bool, true), module.May("loginclass", module.Str, nil), module.May("nologinit", module.Bool, false), root,
			module.May("usergroup", module.Bool, nil), module.May("local", module.Bool, false)),
		module.Tests("user.delete", "Removes a user, and its home with remove=True.\n\nsalt '*' user.delete name remove=True", h.userDelete,
			name, module.May("remove", module.Bool, false), module.May("force", module.Bool, false), root, module.May("local", module.Bool, false)),
		module.Reads("user.info", "Tells about a user; an empty mapping when there is none.\n\nsalt '*' user.info root", h.userInfo, name, root),
		module.Reads("user.getent", "Tells about all users.\n\nsalt '*' user.getent", func(_ context.Context, c *module.Call) (any, error) {
			all, err := h.allUsers(c.Str("root"))
			if err != nil {
				return nil, err
			}
			groups, err := h.allGroups(c.Str("root"))
			out := []any{}
			for _, u := range all {
				out = append(out, describe(u, groups))
			}
			return out, err
		}, module.May("refresh", module.Bool, false), root),
		module.Reads("user.list_users", "Lists the names of all users.\n\nsalt '*' user.list_users", func(_ context.Context, c *module.Call) (any, error) {
			all, err := h.allUsers(c.Str("root"))
			out := []string{}
			for _, u := range all {
				out = append(out, u.Name)
			}
			slices.Sort(out)
			return out, err
		}, root),
		module.Reads("user.list_groups", "Lists the groups that a user is in.\n\nsalt '*' user.list_groups root", func(_ context.Context, c *module.Call) (any, error) {
			u, ok, err := h.findUser("", c.Str("name"))
			if err != nil || !ok {
				return []string{}, err
			}
			groups, err := h.allGroups("")
			return groupsOf(u, groups), err
		}, name),
		module.Reads("user.primary_group", "Tells the primary group of a user.\n\nsalt '*' user.primary_group root", func(_ context.Context, c *module.Call) (any, error) {
			u, ok, err := h.findUser("", c.Str("name"))
			if err != nil {
				return nil, err
			}
			if !ok {
				return nil, noUser(c.Str("name"))
			}
			g, ok, err := h.findGroup("", strconv.Itoa(u.GID))
			if err != nil || !ok {
				return "", err
			}
			return g.Name, nil
		}, name),
		module.Tests("user.chuid", "Changes the number of a user.\n\nsalt '*' user.chuid name 4376", h.modify("uid", "-u", func(c *module.Call, u user) (string, bool) {
			return strconv.FormatInt(c.Int("uid"), 10), int64(u.UID) == c.Int("uid")
		}), name, module.Need("uid", module.Int)),
		module.Tests("user.chgid", "Changes the primary group of a user, by number or name.\n\nsalt '*' user.chgid name 4376", h.userChgid, name, module.Need("gid", module.Any), root),
		module.Tests("user.chshell", "Changes the login shell of a user.\n\nsalt '*' user.chshell name /bin/zsh", h.modify("shell", "-s", func(c *module.Call, u user) (string, bool) {
			return c.Str("shell"), u.Shell == c.Str("shell")
		}), name, module.Need("shell", module.Str), root),
		module.Tests("user.chhome", "Changes the home directory of a user, and moves its content with persist=True.\n\nsalt '*' user.chhome name /srv/name persist=True", h.userChhome,
			name, module.Need("home", module.Str), module.May("persist", module.Bool, false), root),
		module.Tests("user.chgroups", "Sets the further groups of a user, or adds to them with append=True.\n\nsalt '*' user.chgroups name wheel,docker append=True", h.userChgroups,
			name, module.Need("groups", module.List), module.May("append", module.Bool, false), root),
		h.gecosField("user.chfullname", "fullname", 0, "full name"),
		h.gecosField("user.chroomnumber", "roomnumber", 1, "room number"),
		h.gecosField("user.chworkphone", "workphone", 2, "work phone number"),
		h.gecosField("user.chhomephone", "homephone", 3, "home phone number"),
		h.gecosField("user.chother", "other", 4, "other information"),
		module.Tests("user.rename", "Gives a user another name.\n\nsalt '*' user.rename name new_name", h.userRename, name, module.Need("new_name", module.Str), root),
	}
}

func noUser(name string) error {
	return fault.NotFound("user_missing", "there is no user %q in /etc/passwd", name)
}

// gecos are the five parts of a user's description; what is more belongs to the last.
func gecos(s string) [5]string {
	var out [5]string
	copy(out[:], strings.SplitN(s, ",", 5))
	return out
}

func joinGecos(g [5]string) string {
	return strings.TrimRight(strings.Join(g[:], ","), ",")
}

// describe is a user in Salt's shape.
func describe(u user, groups []group) map[string]any {
	g := gecos(u.Gecos)
	return map[string]any{"name": u.Name, "passwd": u.Passwd, "uid": int64(u.UID), "gid": int64(u.GID), "home": u.Home, "shell": u.Shell, "groups": groupsOf(u, groups),
		"fullname": g[0], "roomnumber": g[1], "workphone": g[2], "homephone": g[3], "other": g[4]}
}

func (h *host) userInfo(_ context.Context, c *module.Call) (any, error) {
	u, ok, err := h.findUser(c.Str("root"), c.Str("name"))
	if err != nil || !ok {
		return map[string]any{}, err
	}
	groups, err := h.allGroups(c.Str("root"))
	return describe(u, groups), err
}

// checkRoot refuses another root that depends on where the agent runs.
func checkRoot(c *module.Call) error {
	if r := c.Str("root"); r != "" && !strings.HasPrefix(r, "/") {
		return fault.Invalid("bad_path", "root must be an absolute path, not %q", r)
	}
	return nil
}

// rooted is the option of shadow-utils for another root.
func rooted(c *module.Call, argv ...string) ([]string, error) {
	r := c.Str("root")
	if err := checkRoot(c); err != nil || r == "" {
		return argv, err
	}
	return slices.Insert(argv, 1, "--root", r), nil // gpasswd has another meaning for -R
}

// groupArg is a group for the command line, given by number or name.
func groupArg(v any) (string, error) {
	s := module.Text(v)
	return s, checkName("group", s)
}

// done runs a program of shadow-utils. As Salt does, false says that it refused; what it said
// stands in the error.
func (h *host) done(ctx context.Context, c *module.Call, argv ...string) (any, error) {
	argv, err := rooted(c, argv...)
	if err != nil {
		return nil, err
	}
	if c.Test {
		return true, nil
	}
	if err := h.must(ctx, argv...); err != nil {
		return false, err
	}
	return true, nil
}

func (h *host) userAdd(ctx context.Context, c *module.Call) (any, error) {
	name := c.Str("name")
	if err := errors.Join(checkRoot(c), checkName("user", name)); err != nil {
		return nil, err
	}
	if _, ok, err := h.findUser(c.Str("root"), name); err != nil || ok {
		if err == nil {
			err = fault.Conflict("user_exists", "there is a user %q already", name).Fix("see `user.info %s`", name)
		}
		return false, err
	}
	argv := []string{"useradd"}
	if c.Bool("local") {
		argv[0] = "luseradd"
	}
	if c.Has("shell") {
		if err := checkField("shell", c.Str("shell")); err != nil {
			return nil, err
		}
		argv = append(argv, "-s", c.Str("shell"))
	}
	if c.Has("uid") {
		argv = append(argv, "-u", strconv.FormatInt(c.Int("uid"), 10))
	}
	switch gid := c.Any("gid"); {
	case gid != nil && gid != "":
		g, err := groupArg(gid)
		if err != nil {
			return nil, err
		}
		argv = append(argv, "-g", g)
	case c.Has("usergroup"):
		if c.Bool("usergroup") {
			argv = append(argv, "-U")
		} else {
			argv = append(argv, "-N")
		}
	default:
		// A group of the user's own name that is there already becomes its primary one.
		if _, ok, err := h.findGroup(c.Str("root"), name); err != nil {
			return nil, err
		} else if ok {
			argv = append(argv, "-g", name)
		}
	}
	if groups := c.Strs("groups"); len(groups) > 0 {
		for _, g := range groups {
			if err := checkName("group", g); err != nil {
				return nil, err
			}
		}
		argv = append(argv, "-G", strings.Join(groups, ","))
	}
	if c.Has("home") {
		if err := checkField("home", c.Str("home")); err != nil {
			return nil, err
		}
		argv = append(argv, "-d", c.Str("home"))
	}
	if !c.Bool("unique") {
		argv = append(argv, "-o")
	}
	if c.Bool("system") {
		argv = append(argv, "-r")
	}
	if c.Bool("nologinit") {
		argv = append(argv, "-l")
	}
	if c.Bool("createhome") {
		argv = append(argv, "-m")
	} else {
		argv = append(argv, "-M")
	}
	g := [5]string{c.Str("fullname"), c.Str("roomnumber"), c.Str("workphone"), c.Str("homephone"), c.Str("other")}
	for _, s := range g {
		if err := checkField("description", s); err != nil {
			return nil, err
		}
	}
	if s := joinGecos(g); s != "" {
		argv = append(argv, "-c", s)
	}
	return h.done(ctx, c, append(argv, name)...)
}

func (h *host) userDelete(ctx context.Context, c *module.Call) (any, error) {
	name := c.Str("name")
	if err := errors.Join(checkRoot(c), checkName("user", name)); err != nil {
		return nil, err
	}
	if _, ok, err := h.findUser(c.Str("root"), name); err != nil || !ok {
		if err == nil {
			err = noUser(name)
		}
		return false, err
	}
	argv := []string{"userdel"}
	if c.Bool("local") {
		argv[0] = "luserdel"
	}
	if c.Bool("remove") {
		argv = append(argv, "-r")
	}
	if c.Bool("force") {
		argv = append(argv, "-f")
	}
	return h.done(ctx, c, append(argv, name)...)
}

// modify makes a function that sets one field of a user by an option of usermod.
func (h *host) modify(field, option string, want func(*module.Call, user) (value string, already bool)) func(context.Context, *module.Call) (any, error) {
	return func(ctx context.Context, c *module.Call) (any, error) {
		u, err := h.existing(c)
		if err != nil {
			return nil, err
		}
		value, already := want(c, u)
		if already {
			return true, nil
		}
		if err := checkField(field, value); err != nil {
			return nil, err
		}
		return h.done(ctx, c, "usermod", option, value, u.Name)
	}
}

// existing is the user that a call names.
func (h *host) existing(c *module.Call) (user, error) {
	name := c.Str("name")
	if err := errors.Join(checkRoot(c), checkName("user", name)); err != nil {
		return user{}, err
	}
	u, ok, err := h.findUser(c.Str("root"), name)
	if err == nil && !ok {
		err = noUser(name)
	}
	return u, err
}

func (h *host) userChgid(ctx context.Context, c *module.Call) (any, error) {
	u, err := h.existing(c)
	if err != nil {
		return nil, err
	}
	g, ok, err := h.findGroup(c.Str("root"), module.Text(c.Any("gid")))
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, noGroup(module.Text(c.Any("gid")))
	case g.GID == u.GID:
		return true, nil
	}
	return h.done(ctx, c, "usermod", "-g", strconv.Itoa(g.GID), u.Name)
}

func (h *host) userChhome(ctx context.Context, c *module.Call) (any, error) {
	u, err := h.existing(c)
	if err != nil {
		return nil, err
	}
	home := c.Str("home")
	if u.Home == home {
		return true, nil
	}
	if err := checkField("home", home); err != nil {
		return nil, err
	}
	argv := []string{"usermod", "-d", home}
	if c.Bool("persist") {
		argv = append(argv, "-m")
	}
	return h.done(ctx, c, append(argv, u.Name)...)
}

func (h *host) userChgroups(ctx context.Context, c *module.Call) (any, error) {
	u, err := h.existing(c)
	if err != nil {
		return nil, err
	}
	want := c.Strs("groups")
	for _, g := range want {
		if err := checkName("group", g); err != nil {
			return nil, err
		}
	}
	all, err := h.allGroups(c.Str("root"))
	if err != nil {
		return nil, err
	}
	// As usermod counts: only groups that name the user, not its primary one.
	var have []string
	for _, g := range all {
		if slices.Contains(g.Members, u.Name) {
			have = append(have, g.Name)
		}
	}
	missing := slices.ContainsFunc(want, func(g string) bool { return !slices.Contains(have, g) })
	surplus := slices.ContainsFunc(have, func(g string) bool { return !slices.Contains(want, g) })
	if !missing && (c.Bool("append") || !surplus) {
		return true, nil
	}
	argv := []string{"usermod"}
	if c.Bool("append") {
		argv = append(argv, "-a")
	}
	return h.done(ctx, c, append(argv, "-G", strings.Join(want, ","), u.Name)...)
}

// gecosField makes a function that sets one part of a user's description.
func (h *host) gecosField(fun, field string, i int, what string) module.Function {
	doc := fmt.Sprintf("Changes the %s of a user.\n\nsalt '*' %s name 'value'", what, fun)
	return module.Tests(fun, doc, func(ctx context.Context, c *module.Call) (any, error) {
		u, err := h.existing(c)
		if err != nil {
			return nil, err
		}
		value := c.Str(field)
		if err := checkField(what, value); err != nil {
			return nil, err
		}
		if i < 4 && strings.Contains(value, ",") {
			return nil, fault.Invalid("bad_field", "%q cannot be the %s of an account: a comma ends it", value, what)
		}
		g := gecos(u.Gecos)
		if g[i] == value {
			return true, nil
		}
		g[i] = value
		return h.done(ctx, c, "usermod", "-c", joinGecos(g), u.Name)
	}, module.Need("name", module.Str), module.Need(field, module.Str), module.May("root", module.Str, nil))
}

func (h *host) userRename(ctx context.Context, c *module.Call) (any, error) {
	u, err := h.existing(c)
	if err != nil {
		return nil, err
	}
	to := c.Str("new_name")
	if err := checkName("user", to); err != nil {
		return nil, err
	}
	if _, ok, err := h.findUser(c.Str("root"), to); err != nil || ok {
		if err == nil {
			err = fault.Conflict("user_exists", "there is a user %q already", to)
		}
		return nil, err
	}
	return h.done(ctx, c, "usermod", "-l", to, u.Name)
}
