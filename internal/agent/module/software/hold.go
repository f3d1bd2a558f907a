package software

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

// The files of locks: of dnf's plugin in version 4, and of dnf itself in version 5.
const (
	lockList = "/etc/dnf/plugins/versionlock.list"
	lockTOML = "/etc/dnf/versionlock.toml"
)

func (m *manager) holds() []module.Function {
	hold := func(fn, doc string, off bool) module.Function {
		return module.Extra(module.Tests("pkg."+fn, doc+"\n\nsalt '*' pkg."+fn+" kernel", func(ctx context.Context, c *module.Call) (any, error) {
			wanted, err := requests(c.Any("name"), c.Any("pkgs"))
			if err != nil {
				return nil, err
			}
			for _, s := range sourceNames(c.Any("sources")) {
				wanted = append(wanted, request{name: s})
			}
			if len(wanted) == 0 {
				return nil, fault.Invalid("argument", "pkg.%s: name, pkgs or sources must be given", fn)
			}
			return m.holdNames(ctx, wanted, off, c.Test)
		}, module.May("name", module.Any, nil), module.May("pkgs", module.Any, nil), module.May("sources", module.Any, nil), module.May("normalize", module.Bool, true)))
	}
	list := func(fn string) module.Function {
		return module.Reads("pkg."+fn, "Lists the packages that are held at their version.\n\nsalt '*' pkg."+fn, m.listHolds, module.May("pattern", module.Str, nil), module.May("full", module.Bool, true))
	}
	return []module.Function{
		hold("hold", "Holds packages at their version.", false),
		hold("unhold", "Lets packages that are held go on.", true),
		list("list_holds"), list("get_locked_packages"),
	}
}

func sourceNames(v any) []string {
	var out []string
	l, _ := v.([]any)
	for _, e := range l {
		if mp, ok := e.(map[string]any); ok {
			for n := range mp {
				out = append(out, n)
			}
		}
	}
	return out
}

// lock is one lock of a package at a version.
type lock struct {
	name, evr string
	not       bool // excludes this version instead
}

// full is a lock as the plugin writes it; the epoch is always there.
func (l lock) full() string {
	v := l.evr
	if !strings.Contains(v, ":") {
		v = "0:" + v
	}
	s := l.name + "-" + v + ".*"
	if l.not {
		s = "!" + s
	}
	return s
}

var reLock = regexp.MustCompile(`^(!?)(.+)-(\d+:)?([^-:]+-[^-]+?)(?:\.(\*|[A-Za-z0-9_]+))?$`)

// parseLock reads a line of the plugin's list.
func parseLock(line string) (lock, bool) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return lock{}, false
	}
	f := reLock.FindStringSubmatch(line)
	if f == nil { // a name alone holds every version
		return lock{name: strings.TrimPrefix(line, "!"), not: line[0] == '!'}, !strings.ContainsAny(line, " \t")
	}
	v := f[3] + f[4]
	if f[5] != "" && f[5] != "*" && !slices.Contains(arches, f[5]) {
		v += "." + f[5] // a part of the release, as in 1.el9
	}
	return lock{f[2], strings.TrimPrefix(v, "0:"), f[1] == "!"}, true
}

// block is a part of the text of a file of locks: lines that belong to one lock, or to none.
type block struct {
	text string
	lock lock
	is   bool
}

// parseList splits the plugin's list. The comment that it writes above a lock goes with it.
func parseList(text string) []block {
	var out []block
	comment := ""
	for l := range strings.Lines(text) {
		if k, ok := parseLock(l); ok {
			out = append(out, block{comment + l, k, true})
			comment = ""
			continue
		}
		if comment != "" {
			out = append(out, block{text: comment})
			comment = ""
		}
		if strings.HasPrefix(l, "# Added ") {
			comment = l
			continue
		}
		out = append(out, block{text: l})
	}
	if comment != "" {
		out = append(out, block{text: comment})
	}
	return out
}

// parseTOML splits the file of dnf 5: a header, then a table for each package. Of its conditions
// only a single one on the version, as `dnf versionlock add` writes, counts as a hold.
func parseTOML(text string) []block {
	var out []block
	start, at := 0, 0
	flush := func() {
		if at > start {
			b := block{text: text[start:at]}
			b.lock, b.is = tomlLock(b.text)
			out = append(out, b)
			start = at
		}
	}
	for l := range strings.Lines(text) {
		if strings.TrimSpace(l) == "[[packages]]" {
			flush()
		}
		at += len(l)
	}
	flush()
	return out
}

func tomlLock(text string) (lock, bool) {
	var k lock
	var key, comparator, value string
	inCondition := false
	conditions := 0
	for _, l := range module.Lines(text) {
		l = strings.TrimSpace(l)
		if l == "[[packages.conditions]]" {
			inCondition = true
			conditions++
			continue
		}
		name, v, ok := strings.Cut(l, "=")
		if !ok {
			continue
		}
		v = strings.TrimSpace(v)
		if u, err := strconv.Unquote(v); err == nil {
			v = u
		} else {
			v = strings.Trim(v, `'"`)
		}
		switch name = strings.TrimSpace(name); {
		case !inCondition && name == "name":
			k.name = v
		case inCondition && name == "key":
			key = v
		case inCondition && name == "comparator":
			comparator = v
		case inCondition && name == "value":
			value = v
		}
	}
	k.evr, k.not = strings.TrimPrefix(value, "0:"), comparator == "!="
	return k, k.name != "" && (conditions == 0 || conditions == 1 && (key == "evr" || key == "version") && (comparator == "=" || comparator == "!="))
}

// locks are the parts of the file of locks, and the file.
func (m *manager) locks() (parts []block, file string, five bool, err error) {
	_, five = m.tool()
	file = m.path(lockList)
	if five {
		file = m.path(lockTOML)
	}
	text, err := module.ReadIfThere(file)
	if five {
		return parseTOML(text), file, five, err
	}
	return parseList(text), file, five, err
}

// pluginThere tells whether dnf of version 4 heeds the list.
func (m *manager) pluginThere() bool {
	for _, p := range []string{"/usr/lib/python3*/site-packages/dnf-plugins/versionlock.py", "/usr/lib/python3*/dist-packages/dnf-plugins/versionlock.py", "/etc/dnf/plugins/versionlock.conf"} {
		if found, err := filepath.Glob(m.path(p)); err == nil && len(found) > 0 {
			return true
		}
	}
	return false
}

func (m *manager) listHolds(_ context.Context, c *module.Call) (any, error) {
	parts, _, _, err := m.locks()
	if err != nil {
		return nil, err
	}
	var re *regexp.Regexp
	if p := c.Str("pattern"); p != "" {
		if re, err = regexp.Compile(p); err != nil {
			return nil, fault.Invalid("bad_pattern", "%q is not a regular expression", p).Wrap(err)
		}
	}
	out := []string{}
	for _, b := range parts {
		if !b.is || b.lock.not {
			continue
		}
		s := b.lock.full()
		if b.lock.evr == "" {
			s = b.lock.name
		}
		if re != nil && !re.MatchString(s) {
			continue
		}
		if !c.Bool("full") {
			s = b.lock.name
		}
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out, nil
}

// heldNames are the names that have a lock.
func heldNames(parts []block) map[string]bool {
	out := map[string]bool{}
	for _, b := range parts {
		if b.is && !b.lock.not {
			out[b.lock.name] = true
		}
	}
	return out
}

// holdNames sets or lifts locks, and tells for each package what Salt's states look at.
func (m *manager) holdNames(ctx context.Context, wanted []request, off, test bool) (map[string]any, error) {
	parts, file, five, err := m.locks()
	if err != nil {
		return nil, err
	}
	if !five && !m.pluginThere() {
		return nil, fault.Unavailable("versionlock_missing", "dnf on this host holds no versions").Fix("install python3-dnf-plugin-versionlock")
	}
	have, err := m.installed(ctx)
	if err != nil {
		return nil, err
	}
	held := heldNames(parts)
	out := map[string]any{}
	changed := false
	for _, r := range wanted {
		name, _, _ := cutArch(r.name)
		row := map[string]any{"name": r.name, "changes": map[string]any{}, "result": true, "comment": ""}
		out[r.name] = row
		was, is := "", "hold"
		if off {
			was, is = "hold", ""
		}
		switch {
		case !off && held[name]:
			row["comment"] = fmt.Sprintf("Package %s is already set to be held.", r.name)
			continue
		case off && !held[name]:
			row["comment"] = fmt.Sprintf("Package %s is not being held.", r.name)
			continue
		case !off && len(have[r.name]) == 0 && r.version == "":
			row["result"], row["comment"] = false, fmt.Sprintf("Package %s was unable to be held: it is not installed.", r.name)
			continue
		}
		row["changes"] = map[string]any{"new": is, "old": was}
		row["comment"] = fmt.Sprintf("Package %s is now being held.", r.name)
		if off {
			row["comment"] = fmt.Sprintf("Package %s is no longer held.", r.name)
		}
		if test {
			row["result"] = nil
			row["comment"] = fmt.Sprintf("Package %s is set to be %s.", r.name, map[bool]string{false: "held", true: "unheld"}[off])
			continue
		}
		changed = true
		if off {
			parts = slices.DeleteFunc(parts, func(b block) bool { return b.is && !b.lock.not && b.lock.name == name })
			continue
		}
		versions := versionsOf(have[r.name])
		if len(versions) == 0 {
			versions = []string{r.version}
		}
		for _, v := range versions {
			parts = append(parts, newLock(lock{name: name, evr: v}, five))
		}
	}
	if !changed {
		return out, nil
	}
	return out, writeLocks(file, parts, five)
}

func newLock(k lock, five bool) block {
	if !five {
		return block{k.full() + "\n", k, true}
	}
	return block{fmt.Sprintf("[[packages]]\nname = %q\n\n[[packages.conditions]]\nkey = \"evr\"\ncomparator = \"=\"\nvalue = %q\n\n", k.name, k.evr), k, true}
}

func writeLocks(file string, parts []block, five bool) error {
	var b strings.Builder
	for _, p := range parts {
		if b.Len() > 0 && !strings.HasSuffix(b.String(), "\n") {
			b.WriteByte('\n') // the last line of a file that a person wrote
		}
		b.WriteString(p.text)
	}
	text := b.String()
	if five && !strings.Contains(text, "version =") {
		text = "version = \"1.0\"\n\n" + text
	}
	return writeKeep(file, text)
}

// writeKeep replaces a file and keeps its permissions, its owner, and the link that it may be.
func writeKeep(file, text string) error {
	if p, err := filepath.EvalSymlinks(file); err == nil {
		file = p
	}
	mode, uid, gid := os.FileMode(0o644), -1, -1
	if i, err := os.Stat(file); err == nil {
		mode = i.Mode().Perm()
		if st, ok := i.Sys().(*syscall.Stat_t); ok {
			uid, gid = int(st.Uid), int(st.Gid)
		}
	}
	if err := durable.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := durable.WriteFile(file, []byte(text), mode); err != nil {
		return err
	}
	if uid > 0 || gid > 0 {
		return os.Chown(file, uid, gid)
	}
	return nil
}

// lift takes the locks of some packages away, and gives them back for lockAgain.
func (m *manager) lift(wanted []request) ([]lock, error) {
	parts, file, five, err := m.locks()
	if err != nil {
		return nil, err
	}
	var lifted []lock
	kept := slices.DeleteFunc(slices.Clone(parts), func(b block) bool {
		gone := b.is && !b.lock.not && slices.ContainsFunc(wanted, func(r request) bool {
			base, _, _ := cutArch(r.name)
			return base == b.lock.name
		})
		if gone {
			lifted = append(lifted, b.lock)
		}
		return gone
	})
	if lifted == nil {
		return nil, nil
	}
	return lifted, writeLocks(file, kept, five)
}

// lockAgain locks what was lifted at the versions that are installed now.
func (m *manager) lockAgain(ctx context.Context, lifted []lock) error {
	have, err := m.installed(ctx)
	if err != nil {
		return err
	}
	parts, file, five, err := m.locks()
	if err != nil {
		return err
	}
	done := map[string]bool{}
	for _, k := range lifted {
		versions := versionsOf(have[k.name])
		if len(versions) == 0 {
			versions = []string{k.evr}
		} else if done[k.name] {
			continue
		}
		done[k.name] = true
		for _, v := range versions {
			parts = append(parts, newLock(lock{name: k.name, evr: v}, five))
		}
	}
	return writeLocks(file, parts, five)
}
