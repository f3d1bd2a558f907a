package accounts

import (
	"slices"
	"strconv"
	"strings"

	"drover/internal/agent/module"
)

// user is a line of passwd(5).
type user struct {
	Name, Passwd string
	UID, GID     int
	Gecos        string
	Home, Shell  string
}

// group is a line of group(5).
type group struct {
	Name, Passwd string
	GID          int
	Members      []string
}

// parsePasswd reads the users of a passwd file; lines that are none are left out.
func parsePasswd(s string) []user {
	var out []user
	for _, l := range module.Lines(s) {
		f := strings.Split(l, ":")
		if len(f) != 7 || f[0] == "" || f[0][0] == '+' || f[0][0] == '-' { // NIS
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 == nil && err2 == nil {
			out = append(out, user{module.Valid(f[0]), module.Valid(f[1]), int(uid), int(gid), module.Valid(f[4]), module.Valid(f[5]), module.Valid(f[6])})
		}
	}
	return out
}

// parseGroup reads the groups of a group file.
func parseGroup(s string) []group {
	var out []group
	for _, l := range module.Lines(s) {
		f := strings.Split(l, ":")
		if len(f) != 4 || f[0] == "" || f[0][0] == '+' || f[0][0] == '-' {
			continue
		}
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			continue
		}
		g := group{module.Valid(f[0]), module.Valid(f[1]), int(gid), []string{}}
		for _, m := range strings.Split(module.Valid(f[3]), ",") {
			if m != "" {
				g.Members = append(g.Members, m)
			}
		}
		out = append(out, g)
	}
	return out
}

func (h *host) allUsers(root string) ([]user, error) {
	s, err := module.ReadFile(h.path(root, "/etc/passwd"))
	return parsePasswd(s), err
}

func (h *host) allGroups(root string) ([]group, error) {
	s, err := module.ReadFile(h.path(root, "/etc/group"))
	return parseGroup(s), err
}

// findUser finds a user by name.
func (h *host) findUser(root, name string) (user, bool, error) {
	all, err := h.allUsers(root)
	for _, u := range all {
		if u.Name == name {
			return u, true, nil
		}
	}
	return user{}, false, err
}

// findGroup finds a group by name or number.
func (h *host) findGroup(root, name string) (group, bool, error) {
	all, err := h.allGroups(root)
	for _, g := range all {
		if g.Name == name {
			return g, true, nil
		}
	}
	if n, nerr := strconv.Atoi(name); nerr == nil {
		for _, g := range all {
			if g.GID == n {
				return g, true, nil
			}
		}
	}
	return group{}, false, err
}

// groupsOf are the names of a user's groups, its primary one among them, sorted.
func groupsOf(u user, all []group) []string {
	out := []string{}
	for _, g := range all {
		if g.GID == u.GID || slices.Contains(g.Members, u.Name) {
			out = append(out, g.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
