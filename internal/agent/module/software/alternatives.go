package software

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fault"
)

func (m *manager) alternatives() []module.Function {
	name, path := module.Need("name", module.Str), module.Need("path", module.Str)
	set := func(fn string) module.Function {
		return module.Tests(fn, "Chooses the program behind a name by hand.\n\nsalt '*' "+fn+" editor /usr/bin/vim", func(ctx context.Context, c *module.Call) (any, error) {
			return m.alternative(ctx, c, "--set", c.Str("name"), c.Str("path"))
		}, name, path)
	}
	return []module.Function{
		module.Reads("alternatives.display", "Describes a name and the programs that may stand behind it.\n\nsalt '*' alternatives.display editor", func(_ context.Context, c *module.Call) (any, error) {
			a, err := m.readAlternative(c.Str("name"))
			if err != nil || a == nil {
				return "", err
			}
			return a.describe(m.current(c.Str("name"))), nil
		}, name),
		module.Reads("alternatives.show_link", "Tells the path of a name's link.\n\nsalt '*' alternatives.show_link editor", func(_ context.Context, c *module.Call) (any, error) {
			a, err := m.readAlternative(c.Str("name"))
			if err != nil || a == nil {
				return false, err
			}
			return a.link, nil
		}, name),
		module.Reads("alternatives.show_current", "Tells the program behind a name.\n\nsalt '*' alternatives.show_current editor", func(_ context.Context, c *module.Call) (any, error) {
			if err := goodAlternative(c.Str("name")); err != nil {
				return nil, err
			}
			if p := m.current(c.Str("name")); p != "" {
				return p, nil
			}
			return false, nil
		}, name),
		module.Reads("alternatives.check_exists", "Tells whether a program may stand behind a name.\n\nsalt '*' alternatives.check_exists editor /usr/bin/vim", func(_ context.Context, c *module.Call) (any, error) {
			a, err := m.readAlternative(c.Str("name"))
			if err != nil || a == nil {
				return false, err
			}
			return slices.ContainsFunc(a.choices, func(x choice) bool { return x.path == c.Str("path") }), nil
		}, name, path),
		module.Reads("alternatives.check_installed", "Tells whether a program stands behind a name.\n\nsalt '*' alternatives.check_installed editor /usr/bin/vim", func(_ context.Context, c *module.Call) (any, error) {
			return m.current(c.Str("name")) == c.Str("path"), goodAlternative(c.Str("name"))
		}, name, path),
		module.Reads("alternatives.list", "Lists the names with the programs behind them.\n\nsalt '*' alternatives.list", m.listAlternatives),
		module.Tests("alternatives.install", "Adds a program that may stand behind a name.\n\nsalt '*' alternatives.install editor /usr/bin/editor /usr/bin/vim 50", func(ctx context.Context, c *module.Call) (any, error) {
			return m.alternative(ctx, c, "--install", c.Str("link"), c.Str("name"), c.Str("path"), module.Text(c.Int("priority")))
		}, name, module.Need("link", module.Str), path, module.Need("priority", module.Int)),
		module.Tests("alternatives.remove", "Takes a program away from a name.\n\nsalt '*' alternatives.remove editor /usr/bin/vim", func(ctx context.Context, c *module.Call) (any, error) {
			return m.alternative(ctx, c, "--remove", c.Str("name"), c.Str("path"))
		}, name, path),
		module.Tests("alternatives.auto", "Lets the highest priority decide what stands behind a name.\n\nsalt '*' alternatives.auto editor", func(ctx context.Context, c *module.Call) (any, error) {
			return m.alternative(ctx, c, "--auto", c.Str("name"))
		}, name),
		set("alternatives.set"), set("alternatives.set_"),
	}
}

func goodAlternative(name string) error {
	if err := module.NoOption("alternative", name); err != nil {
		return err
	}
	if strings.Contains(name, "/") || name == "." || name == ".." {
		return fault.Invalid("bad_name", "%q cannot be the name of an alternative", name)
	}
	return nil
}

// alternativeDirs are where chkconfig's alternatives (EL) and dpkg's keep their files.
var alternativeDirs = []string{"/var/lib/alternatives", "/var/lib/dpkg/alternatives"}

// alternative is a name, its link, and what may stand behind it.
type alternative struct {
	name, link string
	auto       bool
	followers  [][2]string // name, link
	choices    []choice
}

type choice struct {
	path      string
	family    string
	priority  int
	followers []string // in the order of the names
}

// parseAlternative reads a file of both programs: mode, link, pairs for followers, an empty line,
// and for each program its path, its priority and the paths of the followers.
func parseAlternative(name, text string) (*alternative, bool) {
	l := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(l) < 2 || l[0] != "auto" && l[0] != "manual" || !strings.HasPrefix(l[1], "/") {
		return nil, false
	}
	a := &alternative{name: name, auto: l[0] == "auto", link: l[1]}
	i := 2
	for ; i+1 < len(l) && l[i] != ""; i += 2 {
		a.followers = append(a.followers, [2]string{l[i], l[i+1]})
	}
	i++ // the empty line
	for i+1 < len(l) && l[i] != "" {
		c := choice{path: l[i]}
		if f, p, ok := strings.Cut(strings.TrimPrefix(l[i], "@"), "@"); ok && l[i][0] == '@' { // chkconfig before 1.15
			c.family, c.path = f, p
		}
		n, rest, _ := strings.Cut(l[i+1], " ")
		if strings.HasPrefix(n, "@") { // chkconfig: @family@priority
			f, p, _ := strings.Cut(strings.TrimPrefix(l[i+1], "@"), "@")
			c.family = f
			n, rest, _ = strings.Cut(p, " ")
		}
		_ = rest // the name of a service of SysV
		p, err := strconv.Atoi(n)
		if err != nil {
			return a, true
		}
		c.priority = p
		i += 2
		for range a.followers {
			if i < len(l) {
				c.followers = append(c.followers, l[i])
				i++
			}
		}
		a.choices = append(a.choices, c)
	}
	return a, true
}

// readAlternative is the file of a name, nil when there is none.
func (m *manager) readAlternative(name string) (*alternative, error) {
	if err := goodAlternative(name); err != nil {
		return nil, err
	}
	for _, d := range alternativeDirs {
		text, err := module.ReadFile(m.path(filepath.Join(d, name)))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		a, ok := parseAlternative(name, text)
		if !ok {
			return nil, fault.Conflict("alternative_unreadable", "the file %s is not one of alternatives", filepath.Join(d, name))
		}
		return a, nil
	}
	return nil, nil
}

// current is the program that /etc/alternatives points to.
func (m *manager) current(name string) string {
	p, err := os.Readlink(m.path("/etc/alternatives/" + name))
	if err != nil {
		return ""
	}
	return module.Valid(p)
}

// describe gives the text that `alternatives --display` prints.
func (a *alternative) describe(current string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s - status is %s.\n link currently points to %s\n", a.name, map[bool]string{true: "auto", false: "manual"}[a.auto], current)
	best := choice{}
	for i, c := range a.choices {
		family := ""
		if c.family != "" {
			family = " family " + c.family
		}
		fmt.Fprintf(&b, "%s -%s priority %d\n", c.path, family, c.priority)
		for j, p := range c.followers {
			if p != "" {
				fmt.Fprintf(&b, " follower %s: %s\n", a.followers[j][0], p)
			}
		}
		if i == 0 || c.priority > best.priority {
			best = c
		}
	}
	fmt.Fprintf(&b, "Current `best' version is %s.", best.path)
	return b.String()
}

func (m *manager) listAlternatives(context.Context, *module.Call) (any, error) {
	out := map[string]any{}
	for _, d := range alternativeDirs {
		list, err := os.ReadDir(m.path(d))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range list {
			a, err := m.readAlternative(e.Name())
			if err != nil || a == nil {
				continue // a file that is being replaced, or none of theirs
			}
			row := map[string]any{"link": a.link, "mode": map[bool]string{true: "auto", false: "manual"}[a.auto], "current": m.current(a.name)}
			paths := map[string]any{}
			for _, c := range a.choices {
				paths[c.path] = c.priority
			}
			row["alternatives"] = paths
			out[a.name] = row
		}
	}
	return out, nil
}

// alternative lets the system's program make a change: it also keeps the followers.
func (m *manager) alternative(ctx context.Context, c *module.Call, args ...string) (any, error) {
	if err := goodAlternative(c.Str("name")); err != nil {
		return nil, err
	}
	for _, k := range []string{"link", "path"} {
		if s := c.Str(k); s != "" && !filepath.IsAbs(s) {
			return nil, fault.Invalid("bad_name", "the %s %q of the alternative %s is not an absolute path", k, s, c.Str("name"))
		}
	}
	if c.Test {
		return "", nil
	}
	tool := "alternatives"
	if command.Which(tool, "") == "" {
		tool = "update-alternatives"
	}
	argv := []string{tool}
	if m.root != "/" {
		argv = append(argv, "--altdir", m.path("/etc/alternatives"), "--admindir", m.path(alternativeDirs[0]))
	}
	o, err := m.run(ctx, m.env, append(argv, args...)...)
	if err != nil {
		return nil, err
	}
	if o.Code != 0 {
		return said(o), nil // Salt's states compare afterwards
	}
	return strings.TrimSpace(o.Out), nil
}
