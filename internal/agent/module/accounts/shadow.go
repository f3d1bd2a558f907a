package accounts

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

// The columns of shadow(5).
const (
	colName = iota
	colPasswd
	colChanged
	colMin
	colMax
	colWarn
	colInactive
	colExpire
	shadowCols = 9
)

func (h *host) shadow() []module.Function {
	name := module.Need("name", module.Str)
	root := module.May("root", module.Str, nil)
	days := func(fun, arg, example, doc string, col int) module.Function {
		return module.Tests(fun, doc+"\n\nsalt '*' "+fun+" username "+example, func(ctx context.Context, c *module.Call) (any, error) {
			n, err := dayArg(c.Any(arg))
			if err != nil {
				return nil, err
			}
			return h.setShadow(ctx, c, func(f []string) error {
				f[col] = n
				return nil
			})
		}, name, module.Need(arg, module.Any), root)
	}
	return []module.Function{
		module.Reads("shadow.info", "Tells of the password of a user: its hash and how it ages, in days.\n\nsalt '*' shadow.info root", h.shadowInfo, name, root),
		days("shadow.set_date", "date", "0", "Sets the day on which the password was last changed, as a number since 1970-01-01 or as YYYY-MM-DD.", colChanged),
		days("shadow.set_expire", "expire", "-1", "Sets the day on which the account expires, as a number since 1970-01-01 or as YYYY-MM-DD; -1 is never.", colExpire),
		days("shadow.set_inactdays", "inactdays", "7", "Sets for how many days after its age a password still lets in.", colInactive),
		days("shadow.set_maxdays", "maxdays", "90", "Sets after how many days a password must be changed.", colMax),
		days("shadow.set_mindays", "mindays", "7", "Sets how many days must pass before a password may be changed.", colMin),
		days("shadow.set_warndays", "warndays", "7", "Sets how many days before its age a user is warned.", colWarn),
		module.Tests("shadow.set_password", "Sets the password of a user, given as a hash of crypt(5).\n\nsalt '*' shadow.set_password name '$6$salt$hash'", h.setPassword,
			name, module.Need("password", module.Str), module.May("use_usermod", module.Bool, false), root),
		module.Tests("shadow.del_password", "Takes away the password of a user: it is let in without one.\n\nsalt '*' shadow.del_password username", h.editPassword(func(string) (string, bool) { return "", true }), name, root),
		module.Tests("shadow.lock_password", "Locks the password of a user.\n\nsalt '*' shadow.lock_password username", h.editPassword(func(p string) (string, bool) {
			if strings.HasPrefix(p, "!") {
				return p, true
			}
			return "!" + p, true
		}), name, root),
		module.Tests("shadow.unlock_password", "Unlocks the password of a user; false when there would be none.\n\nsalt '*' shadow.unlock_password username", h.editPassword(func(p string) (string, bool) {
			open := strings.TrimLeft(p, "!")
			return open, open != ""
		}), name, root),
		module.Reads("shadow.list_users", "Lists the users that have a line in /etc/shadow.\n\nsalt '*' shadow.list_users", func(_ context.Context, c *module.Call) (any, error) {
			s, err := module.ReadFile(h.path(c.Str("root"), "/etc/shadow"))
			out := []string{}
			for _, l := range module.Lines(s) {
				if f := strings.Split(l, ":"); len(f) == shadowCols {
					out = append(out, module.Valid(f[colName]))
				}
			}
			return out, err
		}, root),
		module.Reads("shadow.gen_password", "Makes the hash of a password, for shadow.set_password.\n\nsalt '*' shadow.gen_password 'I_am_password' crypt_salt='I_am_salt' algorithm=sha256", h.genPassword,
			module.Need("password", module.Str), module.May("crypt_salt", module.Str, nil), module.May("algorithm", module.Str, "sha512")),
	}
}

// dayArg is a number of days or a date, as the file has it.
func dayArg(v any) (string, error) {
	s := strings.TrimSpace(module.Text(v))
	if f, ok := v.(float64); ok && f == float64(int64(f)) {
		s = strconv.FormatInt(int64(f), 10)
	}
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		return strconv.FormatInt(t.Unix()/86400, 10), nil
	}
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < -1 {
		return "", fault.Invalid("bad_day", "%q is neither a number of days nor a date like 2026-12-31", s)
	}
	if n == -1 {
		return "", nil // chage(1): takes it away
	}
	return strconv.FormatInt(n, 10), nil
}

// findShadow is the columns of a user's line.
func findShadow(text, name string) ([]string, bool) {
	for _, l := range module.Lines(text) {
		if f := strings.Split(l, ":"); f[0] == name && len(f) == shadowCols {
			return f, true
		}
	}
	return nil, false
}

func (h *host) shadowInfo(_ context.Context, c *module.Call) (any, error) {
	s, err := module.ReadFile(h.path(c.Str("root"), "/etc/shadow"))
	if err != nil {
		return nil, err
	}
	f, ok := findShadow(s, c.Str("name"))
	if !ok {
		return map[string]any{"name": "", "passwd": "", "lstchg": "", "min": "", "max": "", "warn": "", "inact": "", "expire": ""}, nil
	}
	n := func(col int) int64 {
		v, err := strconv.ParseInt(f[col], 10, 64)
		if err != nil {
			return -1
		}
		return v
	}
	return map[string]any{"name": module.Valid(f[colName]), "passwd": module.Valid(f[colPasswd]), "lstchg": n(colChanged), "min": n(colMin), "max": n(colMax), "warn": n(colWarn),
		"inact": n(colInactive), "expire": n(colExpire)}, nil
}

var errNoLine = errors.New("the user has no line")

// setShadow changes the columns of a user's line. As in Salt, false says that the user has none.
func (h *host) setShadow(ctx context.Context, c *module.Call, change func(f []string) error) (bool, error) {
	name, root := c.Str("name"), c.Str("root")
	if err := checkName("user", name); err != nil {
		return false, err
	}
	file := h.path(root, "/etc/shadow")
	edit := func() error {
		s, err := module.ReadFile(file)
		if err != nil {
			return err
		}
		lines := module.Lines(s)
		for i, l := range lines {
			f := strings.Split(l, ":")
			if f[0] != name || len(f) != shadowCols {
				continue
			}
			old := slices.Clone(f)
			if err := change(f); err != nil || slices.Equal(f, old) || c.Test {
				return err
			}
			lines[i] = strings.Join(f, ":")
			return rewrite(file, strings.Join(lines, "\n")+"\n")
		}
		return errNoLine
	}
	err := h.locked(ctx, root, edit)
	switch {
	case errors.Is(err, errNoLine), errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, nil
}

func checkHash(p string) error {
	if strings.ContainsAny(p, ":\n\r\x00") || len(p) > 4096 {
		return fault.Invalid("bad_password", "a password's hash must be one text without colons").Fix("make it with `shadow.gen_password`")
	}
	return nil
}

func (h *host) setPassword(ctx context.Context, c *module.Call) (any, error) {
	p := c.Str("password")
	if err := checkHash(p); err != nil {
		return nil, err
	}
	today := strconv.FormatInt(h.now().Unix()/86400, 10)
	ok, err := h.setShadow(ctx, c, func(f []string) error {
		if f[colPasswd] != p {
			f[colPasswd], f[colChanged] = p, today
		}
		return nil
	})
	if err != nil || ok || c.Test {
		return ok, err
	}
	// A user that passwd has and shadow has not gets a line there.
	name, root := c.Str("name"), c.Str("root")
	if _, there, err := h.findUser(root, name); err != nil || !there {
		return false, err
	}
	file := h.path(root, "/etc/shadow")
	err = h.locked(ctx, root, func() error {
		s, err := module.ReadIfThere(file)
		if err != nil {
			return err
		}
		if _, there := findShadow(s, name); there {
			return fault.Conflict("shadow_changed", "another program wrote to %s at the same time", file).Fix("repeat it")
		}
		if s != "" && !strings.HasSuffix(s, "\n") {
			s += "\n"
		}
		s += name + ":" + p + ":" + today + ":0:99999:7:::\n"
		if err := rewrite(file, s); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return durable.WriteFile(file, []byte(s), 0)
	})
	return err == nil, err
}

// editPassword makes a function that changes the hash of a password; ok false leaves it.
func (h *host) editPassword(change func(string) (to string, ok bool)) func(context.Context, *module.Call) (any, error) {
	return func(ctx context.Context, c *module.Call) (any, error) {
		changed := true
		done, err := h.setShadow(ctx, c, func(f []string) error {
			var to string
			if to, changed = change(f[colPasswd]); changed {
				f[colPasswd] = to
			}
			return nil
		})
		if err != nil || !done {
			return done, err
		}
		return changed, nil
	}
}

func (h *host) genPassword(_ context.Context, c *module.Call) (any, error) {
	algorithm := c.Str("algorithm")
	if algorithm != "sha512" && algorithm != "sha256" {
		return nil, fault.Invalid("bad_algorithm", "passwords are hashed with sha512 or sha256, not with %q", algorithm)
	}
	salt := c.Str("crypt_salt")
	if !c.Has("crypt_salt") {
		var err error
		if salt, err = h.newSalt(maxSalt); err != nil {
			return nil, err
		}
	}
	return shaCrypt(c.Str("password"), salt, algorithm == "sha512")
}
