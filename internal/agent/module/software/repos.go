package software

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

func (m *manager) repos() []module.Function {
	repo, base := module.Need("repo", module.Str), module.May("basedir", module.Any, nil)
	return []module.Function{
		module.Extra(module.Reads("pkg.list_repos", "Lists the repositories that the host knows.\n\nsalt '*' pkg.list_repos", m.listRepos, base)),
		module.Extra(module.Reads("pkg.get_repo", "Shows a repository.\n\nsalt '*' pkg.get_repo baseos", m.getRepo, repo, base, module.May("strict_parser", module.Bool, true))),
		module.Extra(module.Tests("pkg.mod_repo", "Adds a repository or changes its values; an empty value removes one.\n\nsalt '*' pkg.mod_repo extra baseurl=https://example.com/extra enabled=1 gpgcheck=1 name=Extra", m.modRepo, repo, base)),
		module.Extra(module.Tests("pkg.del_repo", "Removes a repository, and its file when it was the last in it.\n\nsalt '*' pkg.del_repo extra", m.delRepo, repo, base)),
	}
}

// repoDirs are the directories in which dnf looks for repositories: those of the call, of dnf's
// configuration, or the usual ones that are there.
func (m *manager) repoDirs(basedir any) ([]string, error) {
	dirs := texts(basedir)
	if dirs == nil {
		text, err := module.ReadIfThere(m.path("/etc/dnf/dnf.conf"))
		if err != nil {
			return nil, err
		}
		if s := parseINI(text).section("main"); s != nil && s.values()["reposdir"] != "" {
			dirs = strings.FieldsFunc(s.values()["reposdir"], func(r rune) bool { return strings.ContainsRune(", \n\t", r) })
		}
	}
	if dirs == nil {
		dirs = []string{"/etc/yum.repos.d", "/etc/yum/repos.d", "/etc/distro.repos.d"}
	}
	var out []string
	for _, d := range dirs {
		if !filepath.IsAbs(d) {
			return nil, fault.Invalid("bad_name", "the directory %q of repositories is not an absolute path", d)
		}
		if m.exists(d) {
			out = append(out, d)
		}
	}
	return out, nil
}

// repoFiles reads every file of repositories. Names are the machine's, without the root.
func (m *manager) repoFiles(basedir any) (map[string]*ini, error) {
	dirs, err := m.repoDirs(basedir)
	if err != nil {
		return nil, err
	}
	out := map[string]*ini{}
	for _, d := range dirs {
		list, err := os.ReadDir(m.path(d))
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if filepath.Ext(e.Name()) != ".repo" || e.IsDir() {
				continue
			}
			text, err := module.ReadFile(m.path(filepath.Join(d, e.Name())))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			out[filepath.Join(d, e.Name())] = parseINI(text)
		}
	}
	return out, nil
}

// find is the file and section of a repository; of two files the first by name holds.
func find(files map[string]*ini, repo string) (string, *section) {
	for _, f := range slices.Sorted(maps.Keys(files)) {
		if s := files[f].section(repo); s != nil && repo != "main" {
			return f, s
		}
	}
	return "", nil
}

func (s *section) dict() map[string]any {
	out := map[string]any{}
	for k, v := range s.values() {
		out[k] = v
	}
	if c := s.comments(); c != nil {
		out["comments"] = c
	}
	return out
}

func (m *manager) listRepos(_ context.Context, c *module.Call) (any, error) {
	files, err := m.repoFiles(c.Any("basedir"))
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for _, f := range slices.Sorted(maps.Keys(files)) {
		for _, s := range files[f].sections {
			if out[s.name] != nil || s.name == "main" {
				continue
			}
			row := s.dict()
			row["file"] = f
			out[s.name] = row
		}
	}
	return out, nil
}

func (m *manager) getRepo(_ context.Context, c *module.Call) (any, error) {
	files, err := m.repoFiles(c.Any("basedir"))
	if err != nil {
		return nil, err
	}
	if _, s := find(files, c.Str("repo")); s != nil {
		return s.dict(), nil
	}
	return map[string]any{}, nil
}

func goodRepo(s string) error {
	if s == "" || s == "main" || s[0] == '-' || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:+@") != "" {
		return fault.Invalid("bad_name", "%q cannot be the id of a repository", s)
	}
	return nil
}

// repoValue is a value as dnf reads it: lists are lines, booleans numbers.
func repoValue(v any) string {
	switch x := v.(type) {
	case bool:
		if x {
			return "1"
		}
		return "0"
	case []any:
		var l []string
		for _, e := range x {
			l = append(l, module.Text(e))
		}
		return strings.Join(l, "\n")
	case float64:
		if x == float64(int64(x)) {
			return fmt.Sprint(int64(x))
		}
	}
	return strings.TrimSpace(module.Text(v))
}

// notOptions are keywords of Salt's states that are no options of a repository.
var notOptions = strings.Fields("test saltenv refresh key_url file comments humanname fromrepo clean_file consolidate comps architectures")

func (m *manager) modRepo(_ context.Context, c *module.Call) (any, error) {
	repo := c.Str("repo")
	if err := goodRepo(repo); err != nil {
		return nil, err
	}
	set, gone := map[string]string{}, map[string]bool{}
	for k, v := range c.Extra {
		if slices.Contains(notOptions, k) || strings.HasPrefix(k, "_") {
			continue
		}
		if strings.Trim(k, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
			return nil, fault.Invalid("bad_option", "%q cannot be an option of a repository", k)
		}
		s := ""
		if v != nil {
			s = repoValue(v)
		}
		if strings.ContainsAny(s, "\r\x00") {
			return nil, fault.Invalid("bad_option", "the option %s of the repository %s has a character that cannot stand in a file", k, repo)
		}
		if s == "" {
			gone[k] = true
		} else {
			set[k] = s
		}
	}
	if h := c.Extra["humanname"]; h != nil && set["name"] == "" {
		set["name"] = module.Text(h)
	}
	places := []string{"baseurl", "mirrorlist", "metalink"}
	named := 0
	for _, p := range places {
		if set[p] != "" {
			named++
		}
	}
	if named > 1 {
		return nil, fault.Invalid("bad_option", "the repository %s can have one of baseurl, mirrorlist and metalink", repo)
	}
	if named == 1 {
		for _, p := range places { // one replaces the other
			if set[p] == "" {
				gone[p] = true
			}
		}
	}
	files, err := m.repoFiles(c.Any("basedir"))
	if err != nil {
		return nil, err
	}
	file, s := find(files, repo)
	if s == nil {
		if named == 0 {
			return nil, fault.Invalid("bad_option", "the new repository %s needs baseurl, mirrorlist or metalink", repo)
		}
		if set["name"] == "" {
			return nil, fault.Invalid("bad_option", "the new repository %s needs a name", repo)
		}
		dirs, err := m.repoDirs(c.Any("basedir"))
		if err != nil {
			return nil, err
		}
		dir := "/etc/yum.repos.d"
		if len(dirs) > 0 {
			dir = dirs[0]
		} else if d := texts(c.Any("basedir")); d != nil {
			dir = d[0]
		}
		s = &section{name: repo, title: "[" + repo + "]"}
		file = filepath.Join(dir, strings.ReplaceAll(repo, "/", "_")+".repo")
		if files[file] == nil {
			files[file] = &ini{}
		}
		files[file].sections = append(files[file].sections, s)
	}
	before := s.values()
	still := map[string]bool{}
	for _, p := range places {
		if v := before[p]; v != "" && !gone[p] || set[p] != "" {
			still[p] = true
		}
	}
	if len(still) == 0 {
		return nil, fault.Invalid("bad_option", "the repository %s must keep one of baseurl, mirrorlist and metalink", repo)
	}
	if gone["name"] {
		return nil, fault.Invalid("bad_option", "the repository %s must keep its name", repo)
	}
	for k := range gone {
		s.remove(k)
	}
	// The name comes first, the rest in order: two calls with the same values write one text.
	for _, k := range slices.SortedFunc(maps.Keys(set), func(a, b string) int {
		if a == "name" || b == "name" {
			return map[bool]int{true: -1, false: 1}[a == "name"]
		}
		return strings.Compare(a, b)
	}) {
		if before[k] != set[k] {
			s.set(k, set[k])
		}
	}
	if l := texts(c.Extra["comments"]); l != nil {
		s.setComments(l)
	}
	out := map[string]any{}
	for _, x := range files[file].sections {
		out[x.name] = x.dict()
	}
	if c.Test {
		return map[string]any{file: out}, nil
	}
	return map[string]any{file: out}, writeKeep(m.path(file), files[file].String())
}

// setComments replaces the comments of a section, when they differ.
func (s *section) setComments(want []string) {
	if slices.Equal(s.comments(), want) {
		return
	}
	s.lines = slices.DeleteFunc(s.lines, func(l string) bool { return strings.HasPrefix(strings.TrimSpace(l), "#") })
	var lines []string
	for _, c := range want {
		for _, l := range strings.Split(c, "\n") {
			lines = append(lines, "# "+l)
		}
	}
	s.lines = append(lines, s.lines...)
}

func (m *manager) delRepo(_ context.Context, c *module.Call) (any, error) {
	repo := c.Str("repo")
	files, err := m.repoFiles(c.Any("basedir"))
	if err != nil {
		return nil, err
	}
	file, s := find(files, repo)
	if s == nil {
		dirs, err := m.repoDirs(c.Any("basedir"))
		return fmt.Sprintf("Error: the %s repo does not exist in %v", repo, dirs), err
	}
	f := files[file]
	f.sections = slices.DeleteFunc(f.sections, func(x *section) bool { return x == s })
	if len(f.sections) == 0 {
		told := fmt.Sprintf("File %s containing repo %s has been removed", file, repo)
		if c.Test {
			return told, nil
		}
		if err := os.Remove(m.path(file)); err != nil {
			return nil, err
		}
		return told, durable.SyncDir(m.path(filepath.Dir(file)))
	}
	told := fmt.Sprintf("Repo %s has been removed from %s", repo, file)
	if c.Test {
		return told, nil
	}
	return told, writeKeep(m.path(file), f.String())
}
