package files

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fault"
)

func archives() []module.Function {
	template, runas, cwd := module.May("template", module.Str, nil), module.May("runas", module.Str, nil), module.May("cwd", module.Str, nil)
	zipParams := []module.Param{module.Need("zip_file", module.Str), module.Need("sources", module.List), template, cwd, runas, module.May("zip_mode", module.Str, "w")}
	unzipParams := []module.Param{module.Need("zip_file", module.Str), module.Need("dest", module.Str), module.May("excludes", module.List, nil), module.May("options", module.Str, nil), template, runas,
		module.May("trim_output", module.Any, false), module.May("password", module.Str, nil), module.May("extract_perms", module.Bool, true)}
	return []module.Function{
		{Name: "archive.tar", Doc: "Packs or unpacks an archive of tar; lists what tar said or what came out.\n\nsalt '*' archive.tar xzf foo.tar.gz dest=/target/directory", Run: tarCall, Params: []module.Param{module.Need("options", module.Str), module.Need("tarfile", module.Str),
			module.May("sources", module.List, nil), module.May("dest", module.Str, nil), cwd, template, runas}},
		module.Extra(module.Reads("archive.list", "Lists what is in an archive of tar or zip.\n\nsalt '*' archive.list /path/to/myfile.tar.gz verbose=True", listCall, module.Need("name", module.Str), module.May("archive_format", module.Str, nil), module.May("options", module.Str, nil), module.May("strip_components", module.Int, nil),
			module.May("clean", module.Bool, false), module.May("verbose", module.Bool, false), module.May("saltenv", module.Str, "base"), module.May("source_hash", module.Str, nil))),
		{Name: "archive.zip", Doc: "Packs files into an archive of zip and lists them.\n\nsalt '*' archive.zip /tmp/zipfile.zip /tmp/sourcefile1,/tmp/sourcefile2", Run: zipCall, Tests: true, Params: zipParams},
		{Name: "archive.cmd_zip", Doc: "Packs files into an archive of zip and lists them.\n\nsalt '*' archive.cmd_zip /tmp/zipfile.zip /tmp/sourcefile1", Run: zipCall, Tests: true, Params: zipParams},
		{Name: "archive.unzip", Doc: "Unpacks an archive of zip and lists what came out.\n\nsalt '*' archive.unzip /tmp/zipfile.zip /home/strongbad/ excludes=file_1", Run: unzipCall, Tests: true, Params: unzipParams},
		{Name: "archive.cmd_unzip", Doc: "Unpacks an archive of zip and lists what came out.\n\nsalt '*' archive.cmd_unzip /tmp/zipfile.zip /home/strongbad/", Run: unzipCall, Tests: true, Params: unzipParams},
		module.Tests("archive.gzip", "Packs a file by gzip, in its place.\n\nsalt '*' archive.gzip /tmp/sourcefile.txt", gzipCall, module.Need("sourcefile", module.Str), template, runas, module.May("options", module.Str, nil)),
		module.Tests("archive.gunzip", "Unpacks a file of gzip, in its place.\n\nsalt '*' archive.gunzip /tmp/sourcefile.txt.gz", gunzipCall, module.Need("gzipfile", module.Str), template, runas, module.May("options", module.Str, nil)),
	}
}

// plainly refuses what was not taken over from Salt.
func plainly(c *module.Call, names ...string) error {
	if c.Has("template") {
		return fault.Unavailable("template_later", "templates in names of archives are not rendered yet").Fix("leave template out")
	}
	for _, n := range names {
		if c.Has(n) && c.Str(n) != "" {
			return fault.Unavailable("argument_refused", "the argument %s is not taken here", n).Fix("use the program itself with cmd.run")
		}
	}
	return nil
}

// inDir is a path, below cwd unless it is absolute.
func inDir(c *module.Call, p string) (string, error) {
	if !filepath.IsAbs(p) && c.Str("cwd") != "" && !strings.HasPrefix(p, "~") {
		p = filepath.Join(c.Str("cwd"), p)
	}
	return absolute(p)
}

func tarCall(ctx context.Context, c *module.Call) (any, error) {
	if err := plainly(c); err != nil {
		return nil, err
	}
	options := strings.Fields(c.Str("options"))
	if len(options) == 0 {
		return nil, fault.Invalid("arguments", "Tar options can not be empty")
	}
	letters := strings.TrimPrefix(options[0], "-")
	simple := len(options) == 1 && strings.Contains(letters, "x") && strings.Contains(letters, "f") && strings.Trim(letters, "xvfpzjJa") == ""
	if simple && !c.Has("sources") && !c.Has("runas") {
		file, err := inDir(c, c.Str("tarfile"))
		if err != nil {
			return nil, err
		}
		dest := c.Str("dest")
		if dest == "" {
			dest = c.Str("cwd")
		}
		if dest, err = absolute(dest); err != nil {
			return nil, fault.Invalid("dest_missing", "where to unpack %s is not said", file).Fix("set dest or cwd").Wrap(err)
		}
		names, err := untar(ctx, file, dest)
		return texts(names), err
	}
	for _, o := range options {
		if o == "-P" || strings.HasPrefix(o, "--absolute-n") || (o == options[0] && !strings.HasPrefix(o, "--") && strings.Contains(o, "P")) {
			return nil, fault.Denied("archive_absolute", "absolute names in archives are not taken: %s", o)
		}
	}
	argv := append([]string{"tar"}, options...)
	argv = append(argv, c.Str("tarfile"))
	if d := c.Str("dest"); d != "" {
		argv = append(argv, "-C", d)
	}
	for _, s := range c.Strs("sources") {
		more, err := globbed(c.Str("cwd"), s)
		if err != nil {
			return nil, err
		}
		argv = append(argv, more...)
	}
	r, err := command.Run(ctx, command.Spec{Argv: argv, Dir: c.Str("cwd"), User: c.Str("runas"), Env: []string{"LC_ALL=C"}, Join: true})
	if err != nil {
		return nil, err
	}
	c.RC = r.Code
	return texts(module.Lines(command.Text(r.Out))), nil
}

// globbed are the names that fit a pattern, as they are seen from dir; a name that fits nothing
// stays, so that the program can say what it misses.
func globbed(dir, pattern string) ([]string, error) {
	if !strings.ContainsAny(pattern, "*?[") {
		return []string{pattern}, nil
	}
	full := pattern
	if !filepath.IsAbs(pattern) && dir != "" {
		full = filepath.Join(dir, pattern)
	}
	names, err := filepath.Glob(full)
	if err != nil {
		return nil, fault.Invalid("glob_bad", "%q is no pattern of names", pattern).Wrap(err)
	}
	if len(names) == 0 {
		return []string{pattern}, nil
	}
	if full != pattern {
		for i, n := range names {
			if names[i], err = filepath.Rel(dir, n); err != nil {
				return nil, err
			}
		}
	}
	return names, nil
}

// member is one entry of an archive, for lists.
type member struct {
	name string // without a slash at its end
	kind byte   // 'd', 'l' or 'f'
}

func listCall(ctx context.Context, c *module.Call) (any, error) {
	name := c.Str("name")
	if !filepath.IsAbs(name) {
		p, err := cacheFile(ctx, c, name, c.Str("source_hash"))
		if err != nil {
			return nil, err
		}
		s, ok := p.(string)
		if !ok {
			return nil, fault.NotFound("file_missing", "%s is not there", name)
		}
		name = s
		if c.Bool("clean") {
			all, err := listMembers(ctx, name, c.Str("archive_format"))
			if err := errors.Join(err, os.Remove(name)); err != nil {
				return nil, err
			}
			return listed(c, all), nil
		}
	}
	all, err := listMembers(ctx, name, c.Str("archive_format"))
	if err != nil {
		return nil, err
	}
	return listed(c, all), nil
}

// listed is a list of members as the call wants it.
func listed(c *module.Call, all []member) any {
	strip := int(c.Int("strip_components"))
	dirs, files, links := []string{}, []string{}, []string{}
	for _, m := range all {
		parts := strings.Split(m.name, "/")
		if strip > 0 && len(parts) <= strip {
			continue
		}
		n := strings.Join(parts[max(strip, 0):], "/")
		switch m.kind {
		case 'd':
			dirs = append(dirs, n+"/")
		case 'l':
			links = append(links, n)
		default:
			files = append(files, n)
		}
	}
	if !c.Bool("verbose") {
		return texts(sorted(dirs, files, links))
	}
	top := func(l []string) []any {
		seen, out := map[string]bool{}, []string{}
		for _, n := range l {
			if t := strings.TrimSuffix(n, "/"); !strings.Contains(t, "/") && !seen[t] {
				seen[t] = true
				out = append(out, n)
			}
		}
		return texts(sorted(out))
	}
	// A directory of which the archive only says what is in it is one all the same.
	tops := append([]string{}, dirs...)
	for _, n := range sorted(files, links, dirs) {
		if i := strings.IndexByte(n, '/'); i > 0 {
			tops = append(tops, n[:i+1])
		}
	}
	return map[string]any{"dirs": texts(sorted(dirs)), "files": texts(sorted(files)), "links": texts(sorted(links)), "top_level_dirs": top(tops), "top_level_files": top(files), "top_level_links": top(links)}
}
