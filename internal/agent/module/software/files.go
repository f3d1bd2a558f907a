package software

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"drover/internal/agent/module"
	"drover/internal/agent/rpmdb"
	"drover/internal/fault"
	"drover/internal/rpm"
)

func (m *manager) files() []module.Function {
	var out []module.Function
	for _, prefix := range []string{"pkg.", "lowpkg."} {
		out = append(out,
			module.Open(module.Reads(prefix+"owner", "Tells which package a file belongs to, nothing of one that is nobody's.\n\nsalt '*' "+prefix+"owner /usr/bin/bash", m.owner)),
			module.Open(module.Reads(prefix+"file_list", "Lists the files of packages.\n\nsalt '*' "+prefix+"file_list httpd", func(ctx context.Context, c *module.Call) (any, error) {
				packages, errs, err := m.packageFiles(ctx, rest(c))
				all := []string{}
				for _, k := range slices.Sorted(maps.Keys(packages)) {
					all = append(all, packages[k]...)
				}
				return map[string]any{"errors": errs, "files": all}, err
			})),
			module.Open(module.Reads(prefix+"file_dict", "Lists the files of packages, by package.\n\nsalt '*' "+prefix+"file_dict httpd", func(ctx context.Context, c *module.Call) (any, error) {
				packages, errs, err := m.packageFiles(ctx, rest(c))
				return map[string]any{"errors": errs, "packages": packages}, err
			})),
			module.Open(module.Reads(prefix+"verify", "Lists the files of packages that are not as they were installed.\n\nsalt '*' "+prefix+"verify httpd", m.verify)),
			module.Open(module.Reads(prefix+"modified", "Lists the paths of files that are not as they were installed, by what differs if wanted.\n\nsalt '*' "+prefix+"modified httpd checksum=True", m.modified)),
		)
	}
	return append(out,
		module.Open(module.Reads("pkg.info_installed", "Describes installed packages.\n\nsalt '*' pkg.info_installed bash", m.info)),
		module.Open(module.Reads("lowpkg.info", "Describes installed packages.\n\nsalt '*' lowpkg.info bash", m.info)),
	)
}

func (m *manager) owner(ctx context.Context, c *module.Call) (any, error) {
	paths := rest(c)
	if len(paths) == 0 {
		return "", nil
	}
	out := map[string]any{}
	for _, p := range paths {
		if !filepath.IsAbs(p) {
			return nil, fault.Invalid("bad_name", "%q is not an absolute path", p)
		}
		l, err := rpmdb.Owner(ctx, m.root, p)
		if err != nil {
			return nil, err
		}
		names := []string{}
		for _, x := range l {
			if !slices.Contains(names, x.Name) {
				names = append(names, x.Name)
			}
		}
		out[p] = strings.Join(names, ",")
	}
	if len(paths) == 1 {
		return out[paths[0]], nil
	}
	return out, nil
}

// named are the packages of a call; without any, all of them.
func (m *manager) named(ctx context.Context, names []string) ([]string, error) {
	if len(names) > 0 {
		return names, nil
	}
	all, err := m.installed(ctx)
	return slices.Sorted(maps.Keys(all)), err
}

// packageFiles are the paths of packages, and what to say of packages that are not installed.
func (m *manager) packageFiles(ctx context.Context, names []string) (packages map[string][]string, errs []string, err error) {
	packages, errs = map[string][]string{}, []string{}
	if names, err = m.named(ctx, names); err != nil {
		return nil, nil, err
	}
	for _, n := range names {
		l, err := rpmdb.Files(ctx, m.root, n)
		if fault.Code(err) == "package_missing" {
			errs = append(errs, fmt.Sprintf("package %s is not installed", n))
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		paths := []string{}
		for _, f := range l {
			paths = append(paths, module.Valid(f.Path))
		}
		slices.Sort(paths)
		packages[n] = slices.Compact(paths)
	}
	return packages, errs, nil
}

// mismatches are the files of packages that differ.
func (m *manager) mismatches(ctx context.Context, names []string) (map[string]rpmdb.Mismatch, error) {
	names, err := m.named(ctx, names)
	if err != nil {
		return nil, err
	}
	out := map[string]rpmdb.Mismatch{}
	for _, n := range names {
		l, err := rpmdb.Verify(ctx, m.root, n, false)
		if err != nil {
			return nil, err
		}
		maps.Copy(out, l)
	}
	return out, nil
}

// verifyOptions are rpm's options that leave something out, and the words for it.
var verifyOptions = map[string]string{"nosize": "size", "nomode": "mode", "nofiledigest": "md5sum", "nodigest": "md5sum", "nomd5": "md5sum", "nordev": "device major/minor number",
	"nolinkto": "readlink path", "nouser": "user", "nogroup": "group", "nomtime": "mtime", "nocaps": "capabilities"}

func (m *manager) verify(ctx context.Context, c *module.Call) (any, error) {
	all, err := m.mismatches(ctx, rest(c))
	if err != nil {
		return nil, err
	}
	ignored := texts(c.Extra["ignore_types"])
	skip := map[string]bool{}
	for _, o := range texts(c.Extra["verify_options"]) {
		skip[verifyOptions[strings.TrimLeft(o, "-")]] = true
	}
	out := map[string]any{}
	for p, x := range all {
		if slices.Contains(ignored, x.Kind) {
			continue
		}
		row := map[string]any{}
		if x.Kind != "" {
			row["type"] = x.Kind
		}
		if x.Missing {
			row["missing"] = true
		} else {
			words := slices.DeleteFunc(slices.Clone(x.Words), func(w string) bool { return skip[w] })
			if len(words) == 0 {
				continue
			}
			row["mismatch"] = words
		}
		out[module.Valid(p)] = row
	}
	return out, nil
}

// changeFlags are Salt's keywords for lowpkg.modified by the place of the letter that rpm prints.
var changeFlags = strings.Fields("size mode checksum device symlink owner group time capabilities")

func (m *manager) modified(ctx context.Context, c *module.Call) (any, error) {
	all, err := m.mismatches(ctx, rest(c))
	if err != nil {
		return nil, err
	}
	out := []string{}
	for p, x := range all {
		if x.Missing {
			continue
		}
		fits := true
		for i, f := range changeFlags {
			if want, ok := c.Extra[f]; ok && i < len(x.Letters) && truth(want, true) != (x.Letters[i] != '.') {
				fits = false
			}
		}
		if fits {
			out = append(out, module.Valid(p))
		}
	}
	slices.Sort(out)
	return out, nil
}

func (m *manager) info(ctx context.Context, c *module.Call) (any, error) {
	names := rest(c)
	all, err := rpmdb.About(ctx, m.root, names...)
	if err != nil {
		return nil, err
	}
	attrs := texts(c.Extra["attr"])
	out := map[string]any{}
	for n, l := range all {
		rows := []any{}
		for _, i := range l {
			if i.IsKey() {
				continue
			}
			row := infoRow(i)
			if attrs != nil {
				maps.DeleteFunc(row, func(k string, _ any) bool { return k != "name" && !slices.Contains(attrs, k) })
			}
			rows = append(rows, row)
		}
		switch {
		case len(rows) == 0:
		case truth(c.Extra["all_versions"], false):
			out[n] = rows
		default:
			out[n] = rows[len(rows)-1] // the newest
		}
	}
	for _, n := range names {
		if out[n] == nil && truth(c.Extra["failhard"], true) && c.Extra["errors"] != "ignore" {
			return nil, fault.NotFound("package_missing", "the package %.200s is not installed", n)
		}
	}
	return out, nil
}

func infoRow(i rpmdb.Info) map[string]any {
	date := func(t int64) string { return time.Unix(t, 0).UTC().Format("2006-01-02T15:04:05Z") }
	signature := "(none)"
	if i.Key != "" {
		signature = fmt.Sprintf("RSA/%s, %s, Key ID %s", strings.ReplaceAll(i.SignatureHash, "-", ""), time.Unix(i.SignatureTime, 0).UTC().Format("Mon Jan _2 15:04:05 2006"), i.Key)
	}
	row := map[string]any{"name": i.Name, "version": i.Version, "release": i.Release, "arch": i.Arch, "epoch": fmt.Sprint(i.Epoch), "summary": i.Summary, "description": i.Description, "license": i.License,
		"group": i.Group, "url": i.URL, "vendor": i.Vendor, "packager": i.Packager, "build_host": i.BuildHost, "source": i.SourceRPM, "size": fmt.Sprint(i.Size), "signature": signature,
		"build_date": date(i.BuildTime), "build_date_time_t": i.BuildTime, "install_date": date(i.InstallTime), "install_date_time_t": i.InstallTime, "relocations": "(not relocatable)"}
	if len(i.Relocations) > 0 {
		row["relocations"] = strings.Join(i.Relocations, " ")
	}
	for k, v := range row {
		if s, ok := v.(string); ok {
			if s == "" {
				delete(row, k) // what a package does not say is left out, as rpm's "(none)" is
				continue
			}
			row[k] = module.Valid(s)
		}
	}
	return row
}

// order puts the oldest version first.
func order(a, b rpmdb.Package) int { return rpm.CompareEVR(a.EVR(), b.EVR()) }
