package software

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"drover/internal/agent/module"
	"drover/internal/agent/rpmdb"
	"drover/internal/fault"
	"drover/internal/rpm"
)

func (m *manager) queries() []module.Function {
	latest := func(name string) module.Function {
		return module.Open(module.Reads(name, "Tells the newest version that could be installed, nothing when it is.\n\nsalt '*' "+name+" bash", m.latestVersion))
	}
	upgrades := func(name string) module.Function {
		return module.Extra(module.Reads(name, "Lists the packages of which there is a newer version.\n\nsalt '*' "+name, m.listUpgrades, module.May("refresh", module.Bool, true)))
	}
	return []module.Function{
		module.Open(module.Reads("pkg.version", "Tells the installed version of packages, nothing of one that is not.\n\nsalt '*' pkg.version bash", m.version)),
		latest("pkg.latest_version"), latest("pkg.available_version"),
		module.Extra(module.Reads("pkg.list_pkgs", "Lists the installed packages with their versions.\n\nsalt '*' pkg.list_pkgs", m.listPkgs, module.May("versions_as_list", module.Bool, false))),
		upgrades("pkg.list_upgrades"), upgrades("pkg.list_updates"),
		module.Extra(module.Reads("pkg.upgrade_available", "Tells whether there is a newer version of a package.\n\nsalt '*' pkg.upgrade_available bash", func(ctx context.Context, c *module.Call) (any, error) {
			v, err := m.newest(ctx, []string{c.Str("name")}, keywords(c))
			return v[c.Str("name")] != "", err
		}, module.Need("name", module.Str))),
		module.Open(module.Reads("pkg.list_repo_pkgs", "Lists what the repositories have, with every version.\n\nsalt '*' pkg.list_repo_pkgs 'kernel*' byrepo=True", m.listRepoPkgs)),
		module.Reads("pkg.version_cmp", "Compares two versions: -1, 0 or 1.\n\nsalt '*' pkg.version_cmp 1.0-1 1.0-2", func(_ context.Context, c *module.Call) (any, error) {
			return int64(compareVersions(c.Str("pkg1"), c.Str("pkg2"), c.Bool("ignore_epoch"))), nil
		}, module.Need("pkg1", module.Str), module.Need("pkg2", module.Str), module.May("ignore_epoch", module.Bool, false), module.May("kwargs", module.Any, nil)),
		module.Reads("pkg.normalize_name", "Takes the host's own architecture off a package's name.\n\nsalt '*' pkg.normalize_name bash.x86_64", func(_ context.Context, c *module.Call) (any, error) {
			n := c.Str("name")
			if base, arch, ok := cutArch(n); ok && (arch == m.arch || arch == "noarch") {
				return base, nil
			}
			return n, nil
		}, module.Need("name", module.Str)),
		module.Open(module.Reads("pkg.what_provides", "Lists the packages that provide a name or a file.\n\nsalt '*' pkg.what_provides /usr/bin/perl", m.whatProvides)),
		module.Open(module.Reads("pkg.list_provides", "Lists the packages that provide a name or a file.\n\nsalt '*' pkg.list_provides webserver", m.whatProvides)),
		module.Extra(module.Reads("pkg.list_downloaded", "Lists the packages that lie in dnf's cache.\n\nsalt '*' pkg.list_downloaded", m.listDownloaded)),
	}
}

// arches are those that end a name such as glibc.i686.
var arches = strings.Fields("noarch x86_64 x86_64_v2 x86_64_v3 i386 i486 i586 i686 aarch64 armv7hl ppc64le s390x riscv64 src")

func cutArch(s string) (name, arch string, ok bool) {
	i := strings.LastIndexByte(s, '.')
	if i <= 0 || !slices.Contains(arches, s[i+1:]) {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// key is the name under which Salt lists a package: foreign architectures stand behind it.
func (m *manager) key(name, arch string) string {
	if arch == "" || arch == "noarch" || arch == m.arch || arch == "(none)" || strings.HasPrefix(arch, m.arch) {
		return name
	}
	return name + "." + arch
}

func joinEVR(epoch, version, release string) string {
	s := version
	if release != "" {
		s += "-" + release
	}
	if epoch != "" && epoch != "0" && epoch != "(none)" {
		s = epoch + ":" + s
	}
	return s
}

// installed are the packages of the database by Salt's names, the oldest version first. Keys that
// came with rpm --import are no packages.
func (m *manager) installed(ctx context.Context) (map[string][]rpmdb.Package, error) {
	all, err := rpmdb.List(ctx, m.root)
	if err != nil {
		return nil, err
	}
	out := map[string][]rpmdb.Package{}
	for _, p := range all {
		if p.IsKey() {
			continue
		}
		k := m.key(p.Name, p.Arch)
		out[k] = append(out[k], p)
	}
	for _, l := range out {
		slices.SortFunc(l, order)
	}
	return out, nil
}

func versionsOf(l []rpmdb.Package) []string {
	var out []string
	for _, p := range l {
		out = append(out, p.EVR())
	}
	return out
}

func (m *manager) version(ctx context.Context, c *module.Call) (any, error) {
	names := rest(c)
	all, err := m.installed(ctx)
	if err != nil {
		return nil, err
	}
	list := truth(c.Extra["versions_as_list"], false)
	out := map[string]any{}
	for _, n := range names {
		found := map[string][]rpmdb.Package{}
		if strings.ContainsAny(n, "*?[") {
			for k, l := range all {
				if ok, err := filepath.Match(n, k); err == nil && ok {
					found[k] = l
				}
			}
		} else {
			k := n
			if base, arch, ok := cutArch(n); ok && all[n] == nil && m.key(base, arch) == base {
				k = base
			}
			found[n] = all[k]
		}
		for k, l := range found {
			if list {
				out[k] = append([]string{}, versionsOf(l)...)
			} else {
				out[k] = strings.Join(versionsOf(l), ",")
			}
		}
	}
	if len(names) == 1 && len(out) == 1 {
		for _, v := range out {
			return v, nil
		}
	}
	return out, nil
}

// snapshot is list_pkgs without choices: what transactions are measured by.
func (m *manager) snapshot(ctx context.Context) (map[string]any, error) {
	all, err := m.installed(ctx)
	out := map[string]any{}
	for k, l := range all {
		out[k] = strings.Join(versionsOf(l), ",")
	}
	return out, err
}

// allAttrs are the attributes that list_pkgs knows.
var allAttrs = strings.Fields("epoch version release arch install_date install_date_time_t")

// attributes are the chosen attributes of a package, in the order of installation.
func attributes(p rpmdb.Package, attrs []string) (map[string]any, error) {
	if slices.Contains(attrs, "all") {
		attrs = allAttrs
	}
	row := map[string]any{}
	for _, a := range attrs {
		switch a {
		case "epoch":
			row[a] = nil
			if p.Epoch != 0 {
				row[a] = fmt.Sprint(p.Epoch)
			}
		case "version":
			row[a] = p.Version
		case "release":
			row[a] = p.Release
		case "arch":
			row[a] = p.Arch
		case "install_date":
			row[a] = time.Unix(p.InstallTime, 0).UTC().Format("2006-01-02T15:04:05Z")
		case "install_date_time_t":
			row[a] = p.InstallTime
		default:
			return nil, fault.Invalid("bad_attribute", "a package has no attribute %q", a).Fix("use all, or some of %s", strings.Join(allAttrs, " "))
		}
	}
	return row, nil
}

func (m *manager) listPkgs(ctx context.Context, c *module.Call) (any, error) {
	for _, k := range []string{"removed", "purge_desired"} { // words of other systems
		if truth(c.Extra[k], false) {
			return map[string]any{}, nil
		}
	}
	if attr := c.Extra["attr"]; texts(attr) != nil || !c.Bool("versions_as_list") {
		return m.measured(ctx, attr)
	}
	all, err := m.installed(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for k, l := range all {
		out[k] = versionsOf(l)
	}
	return out, nil
}

// compareVersions orders two versions. Of two that differ only in that one has no release, none
// is newer.
func compareVersions(a, b string, ignoreEpoch bool) int {
	if ignoreEpoch {
		cut := func(s string) string {
			if e, v, ok := strings.Cut(s, ":"); ok && strings.Trim(e, "0123456789") == "" {
				return v
			}
			return s
		}
		a, b = cut(a), cut(b)
	}
	if strings.Contains(a, "-") != strings.Contains(b, "-") {
		a, _, _ = strings.Cut(a, "-")
		b, _, _ = strings.Cut(b, "-")
	}
	return rpm.CompareEVR(a, b)
}

// available is a package that a repository has.
type available struct{ Name, EVR, Arch, Repo string }

// The separator stands in no field of a package.
const queryFormat = "%{name}|%{epoch}|%{version}|%{release}|%{arch}|%{repoid}\n"

func parseQuery(text string) []available {
	var out []available
	for _, l := range module.Lines(text) {
		f := strings.Split(l, "|")
		if len(f) != 6 || f[0] == "" {
			continue // dnf of version 4 ends lines itself, so that empty ones stand between
		}
		out = append(out, available{f[0], joinEVR(f[1], f[2], f[3]), f[4], f[5]})
	}
	return out
}

// repoquery asks dnf for packages of the repositories.
func (m *manager) repoquery(ctx context.Context, kw map[string]any, args ...string) ([]available, error) {
	opts, err := m.repoOptions(kw)
	if err != nil {
		return nil, err
	}
	if truth(kw["refresh"], false) {
		opts = append(opts, "--refresh")
	}
	o, err := m.dnf(ctx, slices.Concat([]string{"repoquery"}, opts, []string{"--queryformat=" + queryFormat}, args)...)
	if err != nil {
		return nil, err
	}
	if o.Code != 0 {
		return nil, dnfFailed("list packages", o)
	}
	return parseQuery(o.Out), nil
}

// newest finds for each name the version that an installation would bring, "" when that is
// installed or there is none.
func (m *manager) newest(ctx context.Context, names []string, kw map[string]any) (map[string]string, error) {
	if err := noOptions("package", names); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, n := range names {
		out[n] = ""
	}
	if len(names) == 0 {
		return out, nil
	}
	kw = maps.Clone(kw)
	if _, ok := kw["refresh"]; !ok {
		kw["refresh"] = true
	}
	found, err := m.repoquery(ctx, kw, slices.Concat([]string{"--available", "--latest-limit=1"}, names)...)
	if err != nil {
		return nil, err
	}
	have, err := m.installed(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		base, arch, hasArch := cutArch(n)
		for _, p := range found {
			k := m.key(p.Name, p.Arch)
			if k != n && (!hasArch || p.Name != base || p.Arch != arch) {
				continue
			}
			if out[n] == "" || rpm.CompareEVR(p.EVR, out[n]) > 0 {
				out[n] = p.EVR
			}
			if l := have[k]; len(l) > 0 && rpm.CompareEVR(l[len(l)-1].EVR(), out[n]) >= 0 {
				out[n] = ""
				break
			}
		}
	}
	return out, nil
}

func (m *manager) latestVersion(ctx context.Context, c *module.Call) (any, error) {
	names := rest(c)
	v, err := m.newest(ctx, names, c.Extra)
	if err != nil {
		return nil, err
	}
	if len(names) == 1 {
		return v[names[0]], nil
	}
	return v, nil
}

func (m *manager) listUpgrades(ctx context.Context, c *module.Call) (any, error) {
	found, err := m.repoquery(ctx, keywords(c, "refresh"), "--upgrades", "--latest-limit=1")
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, p := range found {
		k := m.key(p.Name, p.Arch)
		if out[k] == "" || rpm.CompareEVR(p.EVR, out[k]) > 0 {
			out[k] = p.EVR
		}
	}
	return out, nil
}

func (m *manager) listRepoPkgs(ctx context.Context, c *module.Call) (any, error) {
	names := rest(c)
	if err := noOptions("package", names); err != nil {
		return nil, err
	}
	found, err := m.repoquery(ctx, c.Extra, append([]string{"--available"}, names...)...)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(found, func(a, b available) int { return cmp.Or(strings.Compare(a.Name, b.Name), rpm.CompareEVR(b.EVR, a.EVR)) })
	byRepo := map[string]map[string][]string{}
	for _, p := range found {
		repo := ""
		if truth(c.Extra["byrepo"], false) {
			repo = p.Repo
		}
		if byRepo[repo] == nil {
			byRepo[repo] = map[string][]string{}
		}
		k := m.key(p.Name, p.Arch)
		if !slices.Contains(byRepo[repo][k], p.EVR) {
			byRepo[repo][k] = append(byRepo[repo][k], p.EVR)
		}
	}
	if truth(c.Extra["byrepo"], false) {
		return byRepo, nil
	}
	if byRepo[""] == nil {
		return map[string]any{}, nil
	}
	return byRepo[""], nil
}

func (m *manager) whatProvides(ctx context.Context, c *module.Call) (any, error) {
	out := map[string]any{}
	names := rest(c)
	for _, n := range names {
		if err := module.NoOption("capability", n); err != nil {
			return nil, err
		}
		found, err := m.repoquery(ctx, c.Extra, "--whatprovides="+n)
		if err != nil {
			return nil, err
		}
		l := []string{}
		for _, p := range found {
			if s := m.key(p.Name, p.Arch); !slices.Contains(l, s) {
				l = append(l, s)
			}
		}
		slices.Sort(l)
		out[n] = l
	}
	if len(names) == 1 {
		return out[names[0]], nil
	}
	return out, nil
}

// listDownloaded reads the packages that dnf keeps.
func (m *manager) listDownloaded(ctx context.Context, _ *module.Call) (any, error) {
	out := map[string]map[string]any{}
	for _, dir := range []string{"/var/cache/dnf", "/var/cache/libdnf5", "/var/cache/yum"} {
		err := filepath.WalkDir(m.path(dir), func(p string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(p) != ".rpm" {
				return nil //nolint:nilerr // no such cache, or one that is being cleaned
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			name, ver, size, at, ok := header(p)
			if !ok {
				return nil
			}
			if out[name] == nil {
				out[name] = map[string]any{}
			}
			out[name][ver] = map[string]any{"path": p, "size": size, "creation_date_time_t": at.Unix(), "creation_date_time": at.UTC().Format("2006-01-02T15:04:05")}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// header reads what the file of a package says it is.
func header(p string) (name, version string, size int64, at time.Time, ok bool) {
	f, err := os.Open(p)
	if err != nil {
		return "", "", 0, at, false
	}
	defer f.Close()
	i, err := f.Stat()
	if err != nil {
		return "", "", 0, at, false
	}
	r, err := rpm.Read(f, i.Size())
	if err != nil {
		return "", "", 0, at, false
	}
	n := r.NEVRA()
	return n.Name, joinEVR(fmt.Sprint(n.Epoch), n.Version, n.Release), i.Size(), i.ModTime(), true
}
