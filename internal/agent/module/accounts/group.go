package accounts

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func (h *host) groups() []module.Function {
	name := module.Need("name", module.Str)
	username := module.Need("username", module.Str)
	root := module.May("root", module.Str, nil)
	return []module.Function{
		module.Tests("group.add", "Adds a group.\n\nsalt '*' group.add name 3456", h.groupAdd, name, module.May("gid", module.Int, nil), module.May("system", module.Bool, false), root,
			module.May("non_unique", module.Bool, false)),
		module.Tests("group.delete", "Removes a group.\n\nsalt '*' group.delete name", func(ctx context.Context, c *module.Call) (any, error) {
			g, err := h.existingGroup(c)
			if err != nil {
				return nil, err
			}
			return h.done(ctx, c, "groupdel", g.Name)
		}, name, root),
		module.Reads("group.info", "Tells about a group; an empty mapping when there is none.\n\nsalt '*' group.info name", func(_ context.Context, c *module.Call) (any, error) {
			all, err := h.allGroups(c.Str("root"))
			for _, g := range all {
				if g.Name == c.Str("name") {
					return describeGroup(g), nil
				}
			}
			return map[string]any{}, err
		}, name, root),
		module.Reads("group.getent", "Tells about all groups.\n\nsalt '*' group.getent", func(_ context.Context, c *module.Call) (any, error) {
			all, err := h.allGroups(c.Str("root"))
			out := []any{}
			for _, g := range all {
				out = append(out, describeGroup(g))
			}
			return out, err
		}, module.May("refresh", module.Bool, false), root),
		module.Tests("group.chgid", "Changes the number of a group.\n\nsalt '*' group.chgid name 4376", func(ctx context.Context, c *module.Call) (any, error) {
			g, err := h.existingGroup(c)
			if err != nil {
				return nil, err
			}
			if int64(g.GID) == c.Int("gid") {
				return true, nil
			}
			argv := []string{"groupmod", "-g", strconv.FormatInt(c.Int("gid"), 10)}
			if c.Bool("non_unique") {
				argv = append(argv, "-o")
			}
			return h.done(ctx, c, append(argv, g.Name)...)
		}, name, module.Need("gid", module.Int), root, module.May("non_unique", module.Bool, false)),
		module.Tests("group.adduser", "Adds a user to a group.\n\nsalt '*' group.adduser name user", h.member("--add", true), name, username, root),
		module.Tests("group.deluser", "Takes a user out of a group.\n\nsalt '*' group.deluser name user", h.member("--delete", false), name, username, root),
		module.Tests("group.members", "Sets who is in a group, replacing all others.\n\nsalt '*' group.members name 'user1,user2'", h.groupMembers,
			name, module.Need("members_list", module.List), root),
	}
}

func noGroup(name string) error {
	return fault.NotFound("group_missing", "there is no group %q in /etc/group", name)
}

func describeGroup(g group) map[string]any {
	return map[string]any{"name": g.Name, "passwd": g.Passwd, "gid": int64(g.GID), "members": g.Members}
}

func (h *host) groupAdd(ctx context.Context, c *module.Call) (any, error) {
	name := c.Str("name")
	if err := checkName("group", name); err != nil {
		return nil, err
	}
	all, err := h.allGroups(c.Str("root"))
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(all, func(g group) bool { return g.Name == name }) {
		return false, fault.Conflict("group_exists", "there is a group %q already", name).Fix("see `group.info %s`", name)
	}
	argv := []string{"groupadd"}
	if c.Has("gid") {
		argv = append(argv, "-g", strconv.FormatInt(c.Int("gid"), 10))
		if c.Bool("non_unique") {
			argv = append(argv, "-o")
		}
	}
	if c.Bool("system") {
		argv = append(argv, "-r")
	}
	return h.done(ctx, c, append(argv, name)...)
}

// existingGroup is the group that a call names.
func (h *host) existingGroup(c *module.Call) (group, error) {
	name := c.Str("name")
	if err := checkName("group", name); err != nil {
		return group{}, err
	}
	all, err := h.allGroups(c.Str("root"))
	if err != nil {
		return group{}, err
	}
	for _, g := range all {
		if g.Name == name {
			return g, nil
		}
	}
	return group{}, noGroup(name)
}

// member makes a function that adds a user to a group or takes it out.
func (h *host) member(option string, in bool) func(context.Context, *module.Call) (any, error) {
	return func(ctx context.Context, c *module.Call) (any, error) {
		g, err := h.existingGroup(c)
		if err != nil {
			return nil, err
		}
		name := c.Str("username")
		if err := checkName("user", name); err != nil {
			return nil, err
		}
		if slices.Contains(g.Members, name) == in {
			return true, nil
		}
		return h.done(ctx, c, "gpasswd", option, name, g.Name)
	}
}

func (h *host) groupMembers(ctx context.Context, c *module.Call) (any, error) {
	g, err := h.existingGroup(c)
	if err != nil {
		return nil, err
	}
	want := c.Strs("members_list")
	for _, m := range want {
		if err := checkName("user", m); err != nil {
			return nil, err
		}
	}
	a, b := slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(g.Members))
	if slices.Equal(a, b) {
		return true, nil
	}
	return h.done(ctx, c, "gpasswd", "--members", strings.Join(want, ","), g.Name)
}
