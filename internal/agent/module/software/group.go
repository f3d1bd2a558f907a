package software

import (
	"context"
	"regexp"
	"slices"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func (m *manager) groups() []module.Function {
	return []module.Function{
		module.Reads("pkg.group_list", "Lists the groups of packages, installed and available.\n\nsalt '*' pkg.group_list", m.groupList),
		module.Extra(module.Reads("pkg.group_info", "Shows which packages a group has.\n\nsalt '*' pkg.group_info 'Development Tools'", m.groupInfo, module.Need("name", module.Str), module.May("expand", module.Bool, false), module.May("ignore_groups", module.List, nil))),
		module.Extra(module.Reads("pkg.group_diff", "Shows which packages of a group are installed.\n\nsalt '*' pkg.group_diff 'Development Tools'", m.groupDiff, module.Need("name", module.Str))),
		module.Extra(module.Tests("pkg.group_install", "Installs the mandatory and the usual packages of a group.\n\nsalt '*' pkg.group_install 'Development Tools' skip=gdb include=git", m.groupInstall,
			module.Need("name", module.Str), module.May("skip", module.List, nil), module.May("include", module.List, nil))),
		module.Extra(module.Tests("pkg.groupinstall", "Installs the mandatory and the usual packages of a group.\n\nsalt '*' pkg.groupinstall 'Development Tools'", m.groupInstall,
			module.Need("name", module.Str), module.May("skip", module.List, nil), module.May("include", module.List, nil))),
	}
}

var reGroup = regexp.MustCompile(`^\s+(.+?)(?: \(([^()]+)\))?$`)

// parseGroups reads the list of dnf 4: titles, and names below them.
func parseGroups(text string) map[string][]string {
	out := map[string][]string{}
	title := ""
	for _, l := range module.Lines(text) {
		if l == "" {
			continue
		}
		if l[0] != ' ' {
			title = strings.ToLower(strings.TrimSuffix(strings.TrimSpace(l), ":"))
			title = strings.Replace(title, "environment groups", "environments", 1)
			title = strings.TrimSuffix(title, " groups")
			continue
		}
		if f := reGroup.FindStringSubmatch(l); f != nil && title != "" {
			out[title] = append(out[title], f[1])
		}
	}
	return out
}

var reTable = regexp.MustCompile(`^(\S+)\s+(.+?)\s+(yes|no)$`)

// parseTable reads the table of dnf 5: id, name, whether it is installed.
func parseTable(text string) (installed, available []string) {
	for _, l := range module.Lines(text) {
		f := reTable.FindStringSubmatch(strings.TrimSpace(l))
		switch {
		case f == nil:
		case f[3] == "yes":
			installed = append(installed, f[2])
		default:
			available = append(available, f[2])
		}
	}
	return installed, available
}

func (m *manager) groupList(ctx context.Context, _ *module.Call) (any, error) {
	got := map[string][]string{}
	_, five := m.tool()
	if five {
		for _, kind := range []struct{ verb, suffix string }{{"group", ""}, {"environment", " environments"}} {
			o, err := m.dnf(ctx, kind.verb, "list")
			if err != nil {
				return nil, err
			}
			if o.Code != 0 {
				return nil, dnfFailed("list groups", o)
			}
			got["installed"+kind.suffix], got["available"+kind.suffix] = parseTable(o.Out)
		}
	} else {
		o, err := m.dnf(ctx, "group", "list", "--hidden")
		if err != nil {
			return nil, err
		}
		if o.Code != 0 {
			return nil, dnfFailed("list groups", o)
		}
		got = parseGroups(o.Out)
	}
	out := map[string]any{"available languages": map[string]any{}}
	for _, k := range []string{"installed", "available", "installed environments", "available environments"} {
		out[k] = append([]string{}, got[k]...)
	}
	return out, nil
}

// group is what dnf says of one group.
type group struct {
	kind, id, name, about string
	packages              map[string][]string // by mandatory, default, optional, conditional
}

var reColon = regexp.MustCompile(`^\s*([^:]*?)\s*:\s*(.*)$`)

// parseGroup reads `dnf group info` of both versions: titles end with a colon, and names stand
// below them (4) or behind it and behind the colons below (5).
func parseGroup(text string) (group, bool) {
	g := group{kind: "package group", packages: map[string][]string{}}
	part := ""
	seen := false
	for _, l := range module.Lines(text) {
		f := reColon.FindStringSubmatch(l)
		if f == nil {
			if n := strings.TrimSpace(l); n != "" && part != "" && strings.HasPrefix(l, " ") {
				g.packages[part] = append(g.packages[part], n)
			}
			continue
		}
		title, v := strings.ToLower(strings.ReplaceAll(f[1], "-", " ")), strings.TrimSpace(f[2])
		switch {
		case title == "" && part != "":
			if v != "" {
				g.packages[part] = append(g.packages[part], v)
			}
			continue
		case title == "group" || title == "name":
			if seen && title == "group" {
				return g, true // only the first group counts
			}
			g.name, seen = v, true
		case title == "environment group":
			g.kind, g.name, seen = "environment group", v, true
		case title == "group id" || title == "id" || title == "environment id":
			g.id, seen = v, true
		case title == "description":
			g.about = v
		}
		part = ""
		for _, p := range []string{"mandatory", "default", "optional", "conditional"} {
			if strings.HasPrefix(title, p+" packages") || strings.HasPrefix(title, p+" groups") {
				part = p
				if v != "" {
					g.packages[p] = append(g.packages[p], v)
				}
			}
		}
	}
	return g, seen
}

func (m *manager) group(ctx context.Context, name string, kw map[string]any) (group, error) {
	name = strings.TrimPrefix(name, "@")
	if err := module.NoOption("group", name); err != nil {
		return group{}, err
	}
	opts, err := m.repoOptions(kw)
	if err != nil {
		return group{}, err
	}
	o, err := m.dnf(ctx, slices.Concat([]string{"group", "info"}, opts, []string{name})...)
	if err != nil {
		return group{}, err
	}
	g, ok := parseGroup(o.Out)
	if o.Code != 0 || !ok {
		return g, fault.NotFound("group_missing", "no repository has the group %q", name).Fix("see `pkg.group_list`")
	}
	return g, nil
}

func (m *manager) groupInfo(ctx context.Context, c *module.Call) (any, error) {
	g, err := m.group(ctx, c.Str("name"), c.Extra)
	if err != nil {
		return nil, err
	}
	if c.Bool("expand") && g.kind == "environment group" {
		// The groups of an environment are replaced by their packages.
		all := map[string][]string{}
		for _, part := range []string{"mandatory", "default", "optional"} {
			for _, sub := range g.packages[part] {
				if slices.Contains(c.Strs("ignore_groups"), sub) {
					continue
				}
				s, err := m.group(ctx, sub, c.Extra)
				if err != nil {
					return nil, err
				}
				for p, l := range s.packages {
					all[p] = append(all[p], l...)
				}
			}
		}
		g.packages = all
	}
	return g.dict(), nil
}

func (g group) dict() map[string]any {
	out := map[string]any{"type": g.kind, "group": g.name, "id": g.id, "description": g.about}
	for _, p := range []string{"mandatory", "default", "optional", "conditional"} {
		l := slices.Sorted(slices.Values(g.packages[p]))
		out[p] = append([]string{}, slices.Compact(l)...)
	}
	return out
}

func (m *manager) groupDiff(ctx context.Context, c *module.Call) (any, error) {
	g, err := m.group(ctx, c.Str("name"), c.Extra)
	if err != nil {
		return nil, err
	}
	have, err := m.installed(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for _, p := range []string{"mandatory", "default", "optional", "conditional"} {
		in, not := []string{}, []string{}
		for _, n := range g.packages[p] {
			if len(have[n]) > 0 {
				in = append(in, n)
			} else {
				not = append(not, n)
			}
		}
		out[p] = map[string]any{"installed": in, "not installed": not}
	}
	return out, nil
}

func (m *manager) groupInstall(ctx context.Context, c *module.Call) (any, error) {
	have, err := m.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	opts, err := m.repoOptions(c.Extra)
	if err != nil {
		return nil, err
	}
	var want []string
	for _, n := range texts(c.Any("name")) {
		g, err := m.group(ctx, n, c.Extra)
		if err != nil {
			return nil, err
		}
		if g.kind == "environment group" {
			want = append(want, "@"+g.id)
			continue
		}
		want = append(want, g.packages["mandatory"]...)
		want = append(want, g.packages["default"]...)
	}
	want = slices.DeleteFunc(append(want, c.Strs("include")...), func(n string) bool {
		return slices.Contains(c.Strs("skip"), n) || have[n] != nil
	})
	slices.Sort(want)
	want = slices.Compact(want)
	if err := noOptions("package", want); err != nil {
		return nil, err
	}
	if len(want) == 0 {
		return map[string]any{}, nil
	}
	if c.Test {
		out := map[string]any{}
		for _, n := range want {
			out[n] = map[string]any{"old": "", "new": "installed"}
		}
		return out, nil
	}
	return m.transact(ctx, "install the group "+c.Str("name"), nil, slices.Concat([]string{"install"}, opts, want))
}
