package network

import (
	"context"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

func (h *host) hostname() []module.Function {
	return []module.Function{
		module.Reads("network.get_hostname", "Tells the name of the host.\n\nsalt '*' network.get_hostname", func(context.Context, *module.Call) (any, error) { return os.Hostname() }),
		module.Reads("network.get_fqdn", "Tells the full name of the host as the resolver knows it.\n\nsalt '*' network.get_fqdn", func(ctx context.Context, _ *module.Call) (any, error) { return fqdn(ctx) }),
		module.Tests("network.mod_hostname", "Changes the name of the host, in /etc/hosts too where the old one stands.\n\nsalt '*' network.mod_hostname server.example.com", h.modHostname, module.Need("hostname", module.Str)),
		module.Tests("network.set_hostname", "Changes the name of the host.\n\nsalt '*' network.set_hostname server.example.com", h.modHostname, module.Need("hostname", module.Str)),
	}
}

// fqdn asks the resolver for the host's full name; a resolver that hangs must not hang the answer.
func fqdn(ctx context.Context) (string, error) {
	name, err := os.Hostname()
	if err != nil || strings.Contains(name, ".") {
		return name, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupHost(ctx, name)
	if err != nil {
		return name, nil //nolint:nilerr // without a resolver the short name is all there is
	}
	for _, a := range addrs {
		names, err := net.DefaultResolver.LookupAddr(ctx, a)
		for _, n := range names {
			if n = strings.TrimSuffix(n, "."); err == nil && strings.HasPrefix(n, name+".") {
				return n, nil
			}
		}
	}
	return name, nil
}

var reHostname = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$`)

func (h *host) modHostname(ctx context.Context, c *module.Call) (any, error) {
	name := c.Str("hostname")
	if len(name) > 64 || !reHostname.MatchString(name) {
		return nil, fault.Invalid("bad_hostname", "%q cannot be the name of a host", name).Fix("letters, digits, hyphens and dots, at most 64")
	}
	if c.Test {
		return true, nil
	}
	old, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	// hostnamed writes the file, tells the kernel and whoever listens. Where it is not there, the
	// file and the kernel are all there is.
	if err := h.hostnamed(ctx, name); err != nil {
		if h.root == "/" {
			if err := unix.Sethostname([]byte(name)); err != nil {
				return nil, fault.Denied("hostname_denied", "the kernel does not let the agent change the host's name").Wrap(err)
			}
		}
		if err := durable.WriteFile(h.path("/etc/hostname"), []byte(name+"\n"), 0o644); err != nil {
			return nil, err
		}
	}
	hosts, err := module.ReadIfThere(h.path("/etc/hosts"))
	if err != nil {
		return nil, err
	}
	if to := renameInHosts(hosts, old, name); to != hosts {
		st, err := os.Stat(h.path("/etc/hosts"))
		if err != nil {
			return nil, err
		}
		if err := durable.WriteFile(h.path("/etc/hosts"), []byte(to), st.Mode().Perm()); err != nil {
			return nil, err
		}
	}
	return true, nil
}

func (h *host) hostnamed(ctx context.Context, name string) error {
	b, err := h.bus(ctx)
	if err != nil {
		return err
	}
	defer b.Close()
	const dest = "org.freedesktop.hostname1"
	return b.Object(dest, "/org/freedesktop/hostname1").CallWithContext(ctx, dest+".SetStaticHostname", 0, name, false).Err
}

// renameInHosts puts a new name where /etc/hosts has the old one, full or short.
func renameInHosts(text, old, name string) string {
	if old == "" || old == "localhost" || strings.HasPrefix(old, "localhost.") {
		return text
	}
	short := func(s string) string { s, _, _ = strings.Cut(s, "."); return s }
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		body, comment, commented := strings.Cut(l, "#")
		f := strings.Fields(body)
		if len(f) < 2 || !slices.Contains(f[1:], old) && !slices.Contains(f[1:], short(old)) {
			continue
		}
		for j := 1; j < len(f); j++ {
			switch f[j] {
			case old:
				f[j] = name
			case short(old):
				f[j] = short(name)
			}
		}
		lines[i] = f[0] + "\t" + strings.Join(slices.Compact(f[1:]), " ")
		if commented {
			lines[i] += " #" + comment
		}
	}
	return strings.Join(lines, "\n")
}
