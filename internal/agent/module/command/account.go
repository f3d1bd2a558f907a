package command

import (
	"context"
	"errors"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/fault"
)

// Account is a user of the host.
type Account struct {
	Name     string
	UID, GID uint32
	Groups   []uint32
	Home     string
	Shell    string
}

// FindUser finds a user by name or number: in /etc/passwd, else by getent, since users may come
// from SSSD or another service of names.
func FindUser(ctx context.Context, name string) (Account, error) {
	missing := fault.NotFound("user_missing", "there is no user %q on this host", name)
	if name == "" || name[0] == '-' || strings.ContainsAny(name, ":\n\x00") {
		return Account{}, missing
	}
	line, err := getent(ctx, "passwd", name)
	if err != nil {
		return Account{}, missing.Wrap(err)
	}
	a, ok := passwdLine(line)
	if !ok {
		return Account{}, missing
	}
	a.Groups = groupsOf(ctx, a)
	return a, nil
}

// passwdLine reads a line of the form of /etc/passwd.
func passwdLine(line string) (Account, bool) {
	f := strings.Split(line, ":")
	if len(f) < 7 {
		return Account{}, false
	}
	uid, uerr := strconv.ParseUint(f[2], 10, 32)
	gid, gerr := strconv.ParseUint(f[3], 10, 32)
	if uerr != nil || gerr != nil {
		return Account{}, false
	}
	return Account{Name: f[0], UID: uint32(uid), GID: uint32(gid), Home: f[5], Shell: f[6]}, true
}

// getent is one line of a table of names. The C library knows more sources than Go does; where
// getent is missing the file is read.
func getent(ctx context.Context, table, key string) (string, error) {
	r, err := Run(ctx, Spec{Argv: []string{"getent", "--", table, key}, Env: []string{"LC_ALL=C"}, Timeout: 30 * time.Second, Limit: 1 << 20})
	if err == nil && r.Code == 0 {
		line, _, _ := strings.Cut(Text(r.Out), "\n")
		return line, nil
	}
	if err == nil {
		return "", errors.New("getent knows no " + table + " " + key)
	}
	if fault.Code(err) != "program_missing" {
		return "", err
	}
	switch table {
	case "passwd":
		u, err := user.Lookup(key)
		if err != nil {
			if u, err = user.LookupId(key); err != nil {
				return "", err
			}
		}
		return strings.Join([]string{u.Username, "x", u.Uid, u.Gid, u.Name, u.HomeDir, "/bin/sh"}, ":"), nil
	case "group":
		g, err := user.LookupGroup(key)
		if err != nil {
			if g, err = user.LookupGroupId(key); err != nil {
				return "", err
			}
		}
		return g.Name + ":x:" + g.Gid + ":", nil
	}
	return "", errors.New("there is no getent")
}

// groupsOf are all groups of a user, its own first.
func groupsOf(ctx context.Context, a Account) []uint32 {
	groups := []uint32{a.GID}
	r, err := Run(ctx, Spec{Argv: []string{"id", "-G", "--", a.Name}, Env: []string{"LC_ALL=C"}, Timeout: 30 * time.Second, Limit: 1 << 20})
	if err != nil || r.Code != 0 {
		return groups
	}
	for _, f := range strings.Fields(string(r.Out)) {
		if n, err := strconv.ParseUint(f, 10, 32); err == nil && !slices.Contains(groups, uint32(n)) {
			groups = append(groups, uint32(n))
		}
	}
	return groups
}

// FindGroup finds the number and the name of a group by its name or number.
func FindGroup(ctx context.Context, name string) (string, uint32, error) {
	missing := fault.NotFound("group_missing", "there is no group %q on this host", name)
	if name == "" || name[0] == '-' || strings.ContainsAny(name, ":\n\x00") {
		return "", 0, missing
	}
	line, err := getent(ctx, "group", name)
	if err != nil {
		return "", 0, missing.Wrap(err)
	}
	f := strings.Split(line, ":")
	if len(f) < 3 {
		return "", 0, missing
	}
	gid, err := strconv.ParseUint(f[2], 10, 32)
	if err != nil {
		return "", 0, missing.Wrap(err)
	}
	return f[0], uint32(gid), nil
}

// account is as whom the program runs.
func (s Spec) account(ctx context.Context) (Account, error) {
	a := Account{UID: uint32(os.Geteuid())}
	var err error
	if s.User != "" {
		if a, err = FindUser(ctx, s.User); err != nil {
			return a, err
		}
	}
	if s.Group != "" {
		_, gid, err := FindGroup(ctx, s.Group)
		if err != nil {
			return a, err
		}
		a.GID = gid
		if s.User == "" {
			a.Groups = []uint32{gid}
		}
	}
	return a, nil
}
