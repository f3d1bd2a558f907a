package software

import (
	"context"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"drover/internal/agent/module"
)

func (m *manager) restarts() []module.Function {
	return []module.Function{
		module.Extra(module.Reads("pkg.services_need_restart", "Lists the services that run code which is no longer on the disk.\n\nsalt '*' pkg.services_need_restart", func(context.Context, *module.Call) (any, error) {
			return m.stale()
		})),
	}
}

// deletedCode tells whether a process maps files into its memory as code that have been deleted
// or replaced since. Memory that never was a file of a package looks alike and is left out.
func deletedCode(maps string) bool {
	for l := range strings.Lines(maps) {
		l = strings.TrimSpace(l)
		if !strings.HasSuffix(l, " (deleted)") {
			continue
		}
		f := strings.Fields(l)
		if len(f) < 7 || !strings.Contains(f[1], "x") {
			continue
		}
		p := strings.TrimSuffix(strings.Join(f[5:], " "), " (deleted)")
		odd := false
		for _, prefix := range []string{"/memfd:", "/SYSV", "/dev/", "/tmp/", "/var/tmp/", "/run/", "/[", "/proc/"} {
			odd = odd || strings.HasPrefix(p, prefix)
		}
		if strings.HasPrefix(p, "/") && !odd {
			return true
		}
	}
	return false
}

// unitOf is the service that a process belongs to, by /proc/PID/cgroup. Sessions of users belong
// to none.
func unitOf(cgroup string) string {
	for _, l := range module.Lines(cgroup) {
		f := strings.SplitN(l, ":", 3)
		if len(f) != 3 || f[1] != "" && f[1] != "name=systemd" {
			continue
		}
		parts := strings.Split(path.Clean("/"+f[2]), "/")
		for _, p := range parts {
			if strings.HasSuffix(p, ".service") { // the outermost: what is inside is the service's own affair
				if strings.HasPrefix(p, "user@") {
					break
				}
				return strings.TrimSuffix(p, ".service")
			}
		}
	}
	return ""
}

func (m *manager) stale() ([]string, error) {
	list, err := os.ReadDir(m.path("/proc"))
	if err != nil {
		return nil, err
	}
	out := []string{}
	for _, e := range list {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		dir := m.path("/proc/" + e.Name())
		text, err := module.ReadFile(dir + "/maps")
		if err != nil || !deletedCode(text) {
			continue // gone, or a thread of the kernel
		}
		cg, err := module.ReadFile(dir + "/cgroup")
		if err != nil {
			continue
		}
		if u := unitOf(cg); u != "" && !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	slices.Sort(out)
	return out, nil
}
