package grains

import (
	"context"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"drover/internal/fault"
)

// Config says where facts come from.
type Config struct {
	Root     string         // of the host whose facts are wanted; "/" when empty
	ID       string         // the host's name as the fleet knows it
	Master   string         // the server, Salt's master
	Version  string         // drover's
	Static   map[string]any // facts of the agent's configuration
	Dir      string         // of the site's facts: *.yaml, *.yml, *.json and programs that print JSON; none when empty
	Files    []string       // more static files, such as /etc/salt/grains; those that are not there have no facts
	Deadline time.Duration  // for each program; 10 s when 0
	Now      func() time.Time

	interfaces func() ([]iface, error) // the kernel's when nil
}

// Versions of what formulas were written for. They ask whether the Salt that runs them is new enough,
// and whether its Python is 3.
const (
	saltVersion      = "3006.0"
	saltMajor        = 3006
	pythonMinorGuess = 9
)

// Collect gathers the facts of a host: strings, booleans, int64, float64, nil, []any and
// map[string]any. What could not be found out is left out, and the errors say why; they are never a
// reason to throw away the facts.
//
// Facts of static files replace those that were found, those of the agent's configuration replace
// these, and those of programs replace all. Only the facts that drover acts upon stay: id, master,
// drover_version.
func Collect(ctx context.Context, c Config) (map[string]any, []error) {
	if c.Root == "" {
		c.Root = "/"
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.interfaces == nil {
		c.interfaces = func() ([]iface, error) { return nil, nil }
		if filepath.Clean(c.Root) == "/" {
			c.interfaces = kernelInterfaces
		}
	}
	h := &host{root: filepath.Clean(c.Root)}
	g := map[string]any{}
	var errs []error
	for _, part := range []func(context.Context, *host, Config, map[string]any) error{system, hardware, network, security, process} {
		if err := part(ctx, h, c, g); err != nil {
			errs = append(errs, err)
		}
	}
	fixed := map[string]any{"id": c.ID, "drover_version": c.Version}
	if c.Master != "" {
		fixed["master"] = c.Master
	}
	merge := func(where string, facts map[string]any) {
		for k := range fixed {
			if _, ok := facts[k]; ok {
				errs = append(errs, fault.Invalid("fact_reserved", "%s: the fact %s is drover's own and stays as it is", where, k).Fix("choose another name"))
			}
		}
		maps.Copy(g, facts)
	}
	static, programs, err := siteFiles(c)
	errs = append(errs, err...)
	for _, f := range static {
		facts, err := readStatic(f)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		merge(f, facts)
	}
	if c.Static != nil {
		facts, _ := plain(c.Static).(map[string]any)
		merge("the agent's configuration", facts)
	}
	for i, r := range runAll(ctx, programs, c.Deadline) {
		if r.err != nil {
			errs = append(errs, r.err)
			continue
		}
		merge(programs[i], r.facts)
	}
	maps.Copy(g, fixed)
	return g, errs
}

// process tells of the agent itself, as Salt tells of its minion.
func process(_ context.Context, h *host, c Config, g map[string]any) error {
	g["saltversion"], g["saltversioninfo"] = saltVersion, []any{int64(saltMajor), int64(0)}
	g["pythonversion"] = []any{int64(3), h.pythonMinor(), int64(0), "final", int64(0)}
	g["server_id"] = int64(crc32.ChecksumIEEE([]byte(c.ID)) & 0x7fffffff)
	g["pid"], g["ps"] = int64(os.Getpid()), "ps -efHww"
	uid, gid := os.Geteuid(), os.Getegid()
	g["uid"], g["gid"] = int64(uid), int64(gid)
	account := h.account("etc/passwd", uid)
	g["username"], g["groupname"] = field(account, 0), field(h.account("etc/group", gid), 0)
	shell := os.Getenv("SHELL")
	if shell == "" {
		shell = field(account, 6)
	}
	if shell == "" {
		shell = "/bin/sh"
	}
	g["shell"] = shell
	path := os.Getenv("PATH")
	g["path"] = path
	dirs := []any{}
	for _, d := range filepath.SplitList(path) {
		dirs = append(dirs, d)
	}
	g["systempath"] = dirs
	cwd, err := os.Getwd()
	if err != nil {
		return fault.Unavailable("fact_cwd", "the agent's directory cannot be told").Wrap(err)
	}
	g["cwd"] = cwd
	return nil
}

// pythonMinor is the version of the host's Python 3, as the link /usr/bin/python3 names it. Drover
// has none of its own.
func (h *host) pythonMinor() int64 {
	if _, v, ok := strings.Cut(filepath.Base(h.link("usr/bin/python3")), "python3."); ok {
		if n, ok := number(v); ok {
			return n
		}
	}
	return pythonMinorGuess
}

// account is the line of a number in /etc/passwd or /etc/group.
func (h *host) account(file string, id int) []string {
	for l := range strings.Lines(h.text(file)) {
		if parts := strings.Split(strings.TrimSpace(l), ":"); len(parts) > 2 {
			if n, ok := number(parts[2]); ok && n == int64(id) {
				return parts
			}
		}
	}
	return nil
}

func field(parts []string, i int) string {
	if i < len(parts) {
		return parts[i]
	}
	return ""
}
