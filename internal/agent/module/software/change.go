package software

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/fault"
	"drover/internal/rpm"
)

func (m *manager) transactions() []module.Function {
	name, pkgs := module.May("name", module.Any, nil), module.May("pkgs", module.Any, nil)
	up := func(fn string) module.Function {
		return module.Extra(module.Tests("pkg."+fn, "Brings packages, or all of them, to the newest version.\n\nsalt '*' pkg."+fn+" name=openssl", m.upgrade, name, pkgs, module.May("refresh", module.Bool, true),
			module.May("skip_verify", module.Bool, false), module.May("normalize", module.Bool, true), module.May("minimal", module.Bool, false), module.May("obsoletes", module.Bool, fn == "upgrade"), module.May("diff_attr", module.Any, nil)))
	}
	rm := func(fn string) module.Function {
		return module.Extra(module.Tests("pkg."+fn, "Removes packages.\n\nsalt '*' pkg."+fn+" httpd", m.remove, name, pkgs))
	}
	refresh := func(fn string) module.Function {
		return module.Extra(module.Tests("pkg."+fn, "Fetches the metadata of the repositories anew.\n\nsalt '*' pkg."+fn, m.refreshDB))
	}
	return []module.Function{
		module.Extra(module.Tests("pkg.install", "Installs packages, in one transaction; tells what has changed.\n\nsalt '*' pkg.install httpd version=2.4.62-1.el10", m.install, name, module.May("refresh", module.Bool, false),
			module.May("skip_verify", module.Bool, false), pkgs, module.May("sources", module.Any, nil), module.May("downloadonly", module.Bool, false), module.May("reinstall", module.Bool, false), module.May("normalize", module.Bool, true),
			module.May("update_holds", module.Bool, false), module.May("saltenv", module.Str, "base"), module.May("ignore_epoch", module.Bool, false))),
		up("upgrade"), up("update"), rm("remove"), rm("purge"),
		module.Extra(module.Tests("pkg.autoremove", "Removes packages that came only for others which are gone.\n\nsalt '*' pkg.autoremove", m.autoremove)),
		refresh("refresh_db"), refresh("clean_metadata"),
		module.Open(module.Tests("pkg.download", "Fetches packages and does not install them.\n\nsalt '*' pkg.download httpd", m.download)),
	}
}

// request is a package that a caller wants, perhaps in a certain version.
type request struct{ name, version string }

// requests reads Salt's ways to name packages: a text with commas, a list of names, and of
// mappings from names to versions.
func requests(name, pkgs any) ([]request, error) {
	var out []request
	add := func(n string, v any) error {
		ver := ""
		if v != nil {
			ver = strings.TrimSpace(module.Text(v))
		}
		if n = strings.TrimSpace(n); n == "" {
			return nil
		}
		if err := module.NoOption("package", n); err != nil {
			return err
		}
		if strings.HasPrefix(ver, "-") || strings.ContainsAny(ver, "\n\x00") {
			return fault.Invalid("bad_version", "%q cannot be a version of %s", ver, n)
		}
		out = append(out, request{n, ver})
		return nil
	}
	if pkgs == nil {
		for _, n := range texts(name) {
			if err := add(n, nil); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	list, ok := pkgs.([]any)
	if !ok {
		if mp, isMap := pkgs.(map[string]any); isMap {
			list = []any{mp}
		} else {
			for _, s := range texts(pkgs) {
				list = append(list, s)
			}
		}
	}
	for _, e := range list {
		mp, ok := e.(map[string]any)
		if !ok {
			mp = map[string]any{module.Text(e): nil}
		}
		for _, n := range slices.Sorted(maps.Keys(mp)) {
			if err := add(n, mp[n]); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// spec is a request as dnf understands it, quoted by nobody since no shell reads it.
func (r request) spec(ignoreEpoch bool) string {
	v := r.version
	if v == "" || v == "latest" {
		return r.name
	}
	for _, op := range []string{"<=", ">=", "==", "<", ">", "="} {
		if w, ok := strings.CutPrefix(v, op); ok {
			if op == "==" {
				op = "="
			}
			return r.name + " " + op + " " + strings.TrimSpace(w)
		}
	}
	base, arch, hasArch := cutArch(r.name)
	if ignoreEpoch && !strings.Contains(v, ":") {
		v = "*:" + v
	}
	if !strings.Contains(v, "-") && !strings.HasSuffix(v, "*") {
		v += "-*" // a version without a release is any release of it
	}
	if hasArch {
		return base + "-" + v + "." + arch
	}
	return r.name + "-" + v
}

// matches tells whether an installed version is what a request asks for.
func (r request) matches(installed string, ignoreEpoch bool) bool {
	v := r.version
	if v == "" {
		return installed != ""
	}
	for _, have := range strings.Split(installed, ",") {
		if have == "" {
			continue
		}
		if strings.ContainsAny(v, "*?[") {
			if ok, err := filepath.Match(v, have); err == nil && ok {
				return true
			}
			continue
		}
		op := strings.TrimRight(v, strings.TrimLeft(v, "<>="))
		c := compareVersions(have, strings.TrimSpace(v[len(op):]), ignoreEpoch)
		if c == 0 && (op == "" || strings.Contains(op, "=")) || c < 0 && strings.HasPrefix(op, "<") || c > 0 && strings.HasPrefix(op, ">") {
			return true
		}
	}
	return false
}

// diff is what has changed between two lists, as Salt tells it.
func diff(before, after map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range after {
		if b, ok := before[k]; !ok {
			out[k] = map[string]any{"old": "", "new": v}
		} else if !same(b, v) {
			out[k] = map[string]any{"old": b, "new": v}
		}
	}
	for k, v := range before {
		if _, ok := after[k]; !ok {
			out[k] = map[string]any{"old": v, "new": ""}
		}
	}
	return out
}

func same(a, b any) bool { return module.Text(a) == module.Text(b) }

// measured is the list of packages, which a transaction is measured by too: with attributes if
// the caller wants those.
func (m *manager) measured(ctx context.Context, attr any) (map[string]any, error) {
	attrs := texts(attr)
	if attrs == nil {
		return m.snapshot(ctx)
	}
	all, err := m.installed(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for k, l := range all {
		rows := []any{}
		for _, p := range l {
			row, err := attributes(p, attrs)
			if err != nil {
				return nil, err
			}
			rows = append(rows, row)
		}
		out[k] = rows
	}
	return out, nil
}

// transact runs dnf, and tells what the database of rpm says has changed. It tells that too when
// dnf fails: what was changed up to then is.
func (m *manager) transact(ctx context.Context, what string, attr any, commands ...[]string) (map[string]any, error) {
	before, err := m.measured(ctx, attr)
	if err != nil {
		return nil, err
	}
	var failure *fault.Error
	for _, args := range commands {
		o, err := m.dnf(ctx, args...)
		if err != nil {
			return nil, err
		}
		if o.Code != 0 {
			failure = dnfFailed(what, o)
			break
		}
	}
	after, err := m.measured(ctx, attr)
	if err != nil {
		return nil, err
	}
	changes := diff(before, after)
	if failure != nil {
		if len(changes) > 0 {
			failure.Msg += fmt.Sprintf("; changed before it failed: %s", strings.Join(slices.Sorted(maps.Keys(changes)), ", "))
		}
		return changes, failure
	}
	return changes, nil
}

func (m *manager) install(ctx context.Context, c *module.Call) (any, error) {
	kw := keywords(c, "refresh", "skip_verify")
	opts, err := m.repoOptions(kw)
	if err != nil {
		return nil, err
	}
	if c.Bool("refresh") {
		opts = append(opts, "--refresh")
	}
	if c.Bool("downloadonly") {
		opts = append(opts, "--downloadonly")
	}
	if truth(kw["downgrade"], false) {
		opts = append(opts, "--allowerasing")
	}
	var specs, again []string
	var wanted []request
	have, err := m.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	ignore := c.Bool("ignore_epoch")
	if c.Any("sources") != nil {
		files, names, clean, err := m.sources(ctx, c)
		defer clean()
		if err != nil {
			return nil, err
		}
		for i, f := range files {
			// The file itself says what it is; the name in the call is only for the reader.
			name, ver, _, _, ok := header(f)
			if ok {
				wanted = append(wanted, request{name, ver})
			}
			if ok && c.Bool("reinstall") && have[name] != nil && (request{name, ver}).matches(module.Text(have[name]), false) {
				again = append(again, f)
				continue
			}
			_ = names[i]
			specs = append(specs, f)
		}
	} else {
		if wanted, err = requests(c.Any("name"), c.Any("pkgs")); err != nil {
			return nil, err
		}
		if v := c.Extra["version"]; v != nil && c.Any("pkgs") == nil && len(wanted) == 1 {
			if wanted[0].version = strings.TrimSpace(module.Text(v)); strings.HasPrefix(wanted[0].version, "-") {
				return nil, fault.Invalid("bad_version", "%q cannot be a version of %s", wanted[0].version, wanted[0].name)
			}
		}
		for _, r := range wanted {
			if base, arch, ok := cutArch(r.name); ok && m.key(base, arch) == base {
				r.name = base
			}
			installed := module.Text(orEmpty(have[r.name]))
			switch {
			case r.version != "" && r.version != "latest" && r.matches(installed, ignore):
				if c.Bool("reinstall") {
					again = append(again, r.spec(ignore))
				}
			case r.version == "" && installed != "" && c.Bool("reinstall"):
				again = append(again, r.name)
			default:
				specs = append(specs, r.spec(ignore))
			}
		}
	}
	if len(wanted) == 0 && len(specs) == 0 {
		return map[string]any{}, nil
	}
	if c.Test {
		out := map[string]any{}
		for _, r := range wanted {
			old := module.Text(orEmpty(have[r.name]))
			if r.version == "" && old != "" || r.version != "" && r.matches(old, ignore) {
				continue
			}
			v := r.version
			if v == "" {
				v = "installed"
			}
			out[r.name] = map[string]any{"old": old, "new": v}
		}
		return out, nil
	}
	var held []lock
	if c.Bool("update_holds") {
		// The locks of what is asked for are lifted for this transaction and set anew after it.
		if held, err = m.lift(wanted); err != nil {
			return nil, err
		}
	}
	var commands [][]string
	if len(specs) > 0 {
		commands = append(commands, slices.Concat([]string{"install"}, opts, specs))
	}
	if len(again) > 0 {
		commands = append(commands, slices.Concat([]string{"reinstall"}, opts, again))
	}
	changes, err := m.transact(ctx, "install "+strings.Join(append(specs, again...), ", "), c.Extra["diff_attr"], commands...)
	if held != nil {
		err = errors.Join(err, m.lockAgain(context.WithoutCancel(ctx), held))
	}
	if err == nil && c.Bool("reinstall") {
		for _, r := range wanted {
			if v, ok := have[r.name]; ok && changes[r.name] == nil && r.matches(module.Text(v), ignore) {
				changes[r.name] = map[string]any{"old": v, "new": v}
			}
		}
	}
	if err != nil {
		return changes, err
	}
	if truth(c.Extra["hold"], false) {
		if _, err := m.holdNames(ctx, wanted, false, false); err != nil {
			return changes, err
		}
	}
	return changes, nil
}

func orEmpty(v any) any {
	if v == nil {
		return ""
	}
	return v
}

// maxPackage is the size of the largest package that is fetched from the server.
const maxPackage = 8 << 30

// sources brings the files of packages that are named by their place. Those of other places than
// the disk are fetched into a directory that clean removes.
func (m *manager) sources(ctx context.Context, c *module.Call) (files, names []string, clean func(), err error) {
	clean = func() {}
	list, ok := c.Any("sources").([]any)
	if !ok {
		return nil, nil, clean, fault.Invalid("argument", "pkg.install: sources must be a list of mappings from names to places")
	}
	dir := ""
	for _, e := range list {
		mp, ok := e.(map[string]any)
		if !ok {
			return nil, nil, clean, fault.Invalid("argument", "pkg.install: sources must be a list of mappings from names to places")
		}
		for _, name := range slices.Sorted(maps.Keys(mp)) {
			place := module.Text(mp[name])
			names = append(names, name)
			if filepath.IsAbs(place) {
				files = append(files, place)
				continue
			}
			if !strings.Contains(place, "://") || c.Host == nil || c.Fetch == nil {
				return nil, nil, clean, fault.Invalid("bad_source", "the source %q of %s is neither a path nor an address", place, name)
			}
			if dir == "" {
				if dir, err = os.MkdirTemp(c.Dir, "packages-"); err != nil {
					return nil, nil, clean, err
				}
				gone := dir
				clean = func() { _ = os.RemoveAll(gone) } // what is left is under the agent's own directory
			}
			file := filepath.Join(dir, fmt.Sprintf("%d.rpm", len(files)))
			if err := fetch(ctx, c, place, file); err != nil {
				return nil, nil, clean, err
			}
			files = append(files, file)
		}
	}
	return files, names, clean, nil
}

func fetch(ctx context.Context, c *module.Call, place, file string) error {
	in, err := c.Fetch(ctx, place)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(in, maxPackage+1))
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err == nil && n > maxPackage {
		err = fault.TooLarge("package_too_large", "%s is larger than %d bytes", place, int64(maxPackage))
	}
	return err
}

func (m *manager) upgrade(ctx context.Context, c *module.Call) (any, error) {
	kw := keywords(c, "refresh", "skip_verify")
	opts, err := m.repoOptions(kw)
	if err != nil {
		return nil, err
	}
	wanted, err := requests(c.Any("name"), c.Any("pkgs"))
	if err != nil {
		return nil, err
	}
	if c.Bool("refresh") {
		opts = append(opts, "--refresh")
	}
	if truth(kw["downloadonly"], false) {
		opts = append(opts, "--downloadonly")
	}
	if !c.Bool("obsoletes") {
		opts = append(opts, "--setopt=obsoletes=0")
	}
	verb := "upgrade"
	if c.Bool("minimal") {
		verb = "upgrade-minimal"
	}
	var specs []string
	for _, r := range wanted {
		specs = append(specs, r.spec(false))
	}
	if c.Test {
		return m.wouldUpgrade(ctx, kw, wanted)
	}
	return m.transact(ctx, strings.TrimSpace("upgrade "+strings.Join(specs, ", ")), c.Any("diff_attr"), slices.Concat([]string{verb}, opts, specs))
}

func (m *manager) wouldUpgrade(ctx context.Context, kw map[string]any, wanted []request) (any, error) {
	found, err := m.repoquery(ctx, kw, "--upgrades", "--latest-limit=1")
	if err != nil {
		return nil, err
	}
	have, err := m.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for _, p := range found {
		k := m.key(p.Name, p.Arch)
		if len(wanted) == 0 || slices.ContainsFunc(wanted, func(r request) bool { return r.name == k }) {
			out[k] = map[string]any{"old": orEmpty(have[k]), "new": p.EVR}
		}
	}
	return out, nil
}

func (m *manager) remove(ctx context.Context, c *module.Call) (any, error) {
	wanted, err := requests(c.Any("name"), c.Any("pkgs"))
	if err != nil {
		return nil, err
	}
	have, err := m.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	var specs []string
	would := map[string]any{}
	for _, r := range wanted {
		k := r.name
		if base, arch, ok := cutArch(k); ok && have[k] == nil && m.key(base, arch) == base {
			k = base
		}
		v, ok := have[k]
		if !ok {
			continue // it is gone already
		}
		versions := strings.Split(module.Text(v), ",")
		if r.version != "" && len(versions) > 1 {
			for _, one := range versions { // of several kernels only the named one
				if r.matches(one, false) {
					specs = append(specs, r.name+"-"+one)
					would[k] = map[string]any{"old": one, "new": ""}
				}
			}
			continue
		}
		if r.version != "" && !r.matches(module.Text(v), false) {
			continue
		}
		specs = append(specs, r.name)
		would[k] = map[string]any{"old": v, "new": ""}
	}
	if len(specs) == 0 || c.Test {
		return would, nil
	}
	return m.transact(ctx, "remove "+strings.Join(specs, ", "), nil, append([]string{"remove"}, specs...))
}

func (m *manager) autoremove(ctx context.Context, c *module.Call) (any, error) {
	if !c.Test {
		return m.transact(ctx, "remove what nothing needs", nil, []string{"autoremove"})
	}
	found, err := m.repoquery(ctx, nil, "--unneeded")
	out := map[string]any{}
	for _, p := range found {
		out[m.key(p.Name, p.Arch)] = map[string]any{"old": p.EVR, "new": ""}
	}
	return out, err
}

func (m *manager) refreshDB(ctx context.Context, c *module.Call) (any, error) {
	opts, err := m.repoOptions(c.Extra)
	if err != nil || c.Test {
		return true, err
	}
	o, err := m.dnf(ctx, append([]string{"makecache", "--refresh"}, opts...)...)
	if err != nil {
		return nil, err
	}
	if o.Code != 0 {
		return nil, dnfFailed("fetch the metadata", o)
	}
	return true, nil
}

// downloads is where Salt puts packages that are only fetched.
const downloads = "/var/cache/yum/packages"

func (m *manager) download(ctx context.Context, c *module.Call) (any, error) {
	names := rest(c)
	if len(names) == 0 {
		return nil, fault.Invalid("argument", "pkg.download: no package is named")
	}
	if err := noOptions("package", names); err != nil {
		return nil, err
	}
	opts, err := m.repoOptions(c.Extra)
	if err != nil {
		return nil, err
	}
	dir := m.path(downloads)
	if d, ok := c.Extra["destdir"].(string); ok && d != "" {
		if !filepath.IsAbs(d) {
			return nil, fault.Invalid("bad_name", "the directory %q is not an absolute path", d)
		}
		dir = d
	}
	out := map[string]any{}
	if c.Test {
		for _, n := range names {
			out[n] = dir
		}
		return out, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	o, err := m.dnf(ctx, slices.Concat([]string{"download", "--destdir=" + work}, opts, names)...)
	if err != nil {
		return nil, err
	}
	if o.Code != 0 {
		f := dnfFailed("download "+strings.Join(names, ", "), o)
		if strings.Contains(o.Err, "No such command") {
			f = f.Fix("install dnf-plugins-core")
		}
		return nil, f
	}
	list, err := os.ReadDir(work)
	if err != nil {
		return nil, err
	}
	newest := map[string]string{}
	for _, e := range list {
		from, to := filepath.Join(work, e.Name()), filepath.Join(dir, e.Name())
		name, ver, _, _, ok := header(from)
		if !ok {
			continue
		}
		if err := os.Rename(from, to); err != nil {
			return nil, err
		}
		if newest[name] == "" || rpm.CompareEVR(ver, newest[name]) > 0 {
			newest[name], out[name] = ver, to
		}
	}
	if len(out) == 0 {
		return nil, fault.NotFound("package_missing", "no repository has %s", strings.Join(names, ", "))
	}
	return out, nil
}
