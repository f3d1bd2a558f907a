package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

const lookupTime = 10 * time.Second

// lookup asks for records of one type; no such name is an empty list.
type lookup func(ctx context.Context, r *net.Resolver, name string) ([]any, error)

// resolver asks one server, or those of the host.
func resolver(server string) *net.Resolver {
	if server == "" {
		return net.DefaultResolver
	}
	address := server
	if _, _, err := net.SplitHostPort(server); err != nil {
		address = net.JoinHostPort(strings.Trim(server, "[]"), "53")
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}}
}

// absolute keeps the search list of resolv.conf out, as dig does.
func absolute(name string) string { return strings.TrimSuffix(name, ".") + "." }

func lookupIP(network string) lookup {
	return func(ctx context.Context, r *net.Resolver, name string) ([]any, error) {
		list, err := r.LookupNetIP(ctx, network, absolute(name))
		var out []any
		for _, a := range list {
			out = append(out, a.Unmap().String())
		}
		return out, err
	}
}

func lookupNS(ctx context.Context, r *net.Resolver, name string) ([]any, error) {
	list, err := r.LookupNS(ctx, absolute(name))
	var out []any
	for _, n := range list {
		out = append(out, module.Valid(n.Host))
	}
	return out, err
}

func lookupMX(ctx context.Context, r *net.Resolver, name string) ([]any, error) {
	list, err := r.LookupMX(ctx, absolute(name))
	var out []any
	for _, m := range list {
		out = append(out, []any{strconv.Itoa(int(m.Pref)), module.Valid(m.Host)})
	}
	return out, err
}

func lookupTXT(ctx context.Context, r *net.Resolver, name string) ([]any, error) {
	list, err := r.LookupTXT(ctx, absolute(name))
	var out []any
	for _, t := range list {
		out = append(out, module.Valid(t))
	}
	return out, err
}

func lookupPTR(ctx context.Context, r *net.Resolver, name string) ([]any, error) {
	list, err := r.LookupAddr(ctx, name)
	var out []any
	for _, n := range list {
		out = append(out, module.Valid(n))
	}
	return out, err
}

func lookupCNAME(ctx context.Context, r *net.Resolver, name string) ([]any, error) {
	c, err := r.LookupCNAME(ctx, absolute(name))
	if err != nil || c == "" || strings.EqualFold(c, absolute(name)) {
		return nil, err
	}
	return []any{module.Valid(c)}, nil
}

// ask runs a lookup with a deadline.
func ask(ctx context.Context, server, name string, f lookup) ([]any, error) {
	if name == "" || len(name) > 255 || strings.ContainsAny(name, " \n\t\x00") {
		return nil, fault.Invalid("bad_name", "%q is not the name of a host", name)
	}
	lctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	out, err := f(lctx, resolver(server), name)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return []any{}, nil
	}
	if err != nil {
		return nil, fault.Unavailable("dns_failed", "the name %s cannot be looked up", name).Wrap(err)
	}
	if out == nil {
		out = []any{}
	}
	return out, nil
}

func (h *host) dig() []module.Function {
	server := module.May("nameserver", module.Str, nil)
	var all []module.Function
	add := func(record, doc string, f module.Run, params ...module.Param) {
		fn := module.Reads("dig."+record, doc+"\n\nsalt '*' dig."+record+" www.example.com", f, params...)
		all = append(all, fn)
		if lower := strings.ToLower(record); lower != record {
			all = append(all, alias(fn, "dig."+lower))
		}
	}
	plain := func(arg string, f lookup) module.Run {
		return func(ctx context.Context, c *module.Call) (any, error) {
			return ask(ctx, c.Str("nameserver"), c.Str(arg), f)
		}
	}
	add("A", "Looks up the IPv4 addresses of a name.", plain("host", lookupIP("ip4")), module.Need("host", module.Str), server)
	add("AAAA", "Looks up the IPv6 addresses of a name.", plain("host", lookupIP("ip6")), module.Need("host", module.Str), server)
	add("CNAME", "Looks up what a name is another name of.", plain("host", lookupCNAME), module.Need("host", module.Str), server)
	add("PTR", "Looks up the names of an address.", plain("host", lookupPTR), module.Need("host", module.Str), server)
	add("TXT", "Looks up the texts of a name.", plain("host", lookupTXT), module.Need("host", module.Str), server)
	add("NS", "Looks up the name servers of a domain, as addresses unless resolve is false.", h.nameServers, module.Need("domain", module.Str), module.May("resolve", module.Bool, true), server)
	add("MX", "Looks up the mail servers of a domain.", h.mailServers, module.Need("domain", module.Str), module.May("resolve", module.Bool, false), server)
	add("SPF", "Looks up which networks may send the mail of a domain.", h.senders, module.Need("domain", module.Str), module.May("record", module.Str, "SPF"), server)
	all = append(all, module.Reads("dig.check_ip", "Tells whether a text is an IP address, with or without a network.\n\nsalt '*' dig.check_ip 127.0.0.1", checkIP, module.Need("addr", module.Str)))
	return all
}

func (h *host) dnsutil() []module.Function {
	server := module.May("nameserver", module.Str, nil)
	plain := func(f lookup) module.Run {
		return func(ctx context.Context, c *module.Call) (any, error) {
			return ask(ctx, c.Str("nameserver"), c.Str("host"), f)
		}
	}
	name := module.Need("host", module.Str)
	domain := module.Need("domain", module.Str)
	file := module.May("hostsfile", module.Str, "/etc/hosts")
	return []module.Function{
		module.Reads("dnsutil.A", "Looks up the IPv4 addresses of a name.\n\nsalt '*' dnsutil.A www.example.com", plain(lookupIP("ip4")), name, server),
		module.Reads("dnsutil.AAAA", "Looks up the IPv6 addresses of a name.\n\nsalt '*' dnsutil.AAAA www.example.com", plain(lookupIP("ip6")), name, server),
		module.Reads("dnsutil.NS", "Looks up the name servers of a domain.\n\nsalt '*' dnsutil.NS example.com", h.nameServers, domain, module.May("resolve", module.Bool, true), server),
		module.Reads("dnsutil.MX", "Looks up the mail servers of a domain.\n\nsalt '*' dnsutil.MX example.com", h.mailServers, domain, module.May("resolve", module.Bool, false), server),
		module.Reads("dnsutil.SPF", "Looks up which networks may send the mail of a domain.\n\nsalt '*' dnsutil.SPF example.com", h.senders, domain, module.May("record", module.Str, "SPF"), server),
		module.Reads("dnsutil.check_ip", "Tells whether a text is an IP address.\n\nsalt '*' dnsutil.check_ip 127.0.0.1", checkIP, module.Need("ip_addr", module.Str)),
		module.Reads("dnsutil.serial", "Gives a serial number for a zone of today: YYYYMMDDnn.\n\nsalt '*' dnsutil.serial example.com", func(_ context.Context, c *module.Call) (any, error) {
			return h.now().UTC().Format("20060102") + "01", nil
		}, module.May("zone", module.Str, ""), module.May("update", module.Bool, false)),
		module.Reads("dnsutil.parse_hosts", "Gives /etc/hosts, or a text like it, as names by address.\n\nsalt '*' dnsutil.parse_hosts", func(_ context.Context, c *module.Call) (any, error) {
			text := c.Str("hosts")
			if !c.Has("hosts") {
				var err error
				if text, err = module.ReadFile(h.path(c.Str("hostsfile"))); err != nil {
					return nil, err
				}
			}
			return parseHosts(text), nil
		}, file, module.May("hosts", module.Str, nil)),
		module.Tests("dnsutil.hosts_append", "Adds names of an address to /etc/hosts.\n\nsalt '*' dnsutil.hosts_append /etc/hosts 127.0.0.1 ad1.yuk.co,ad2.yuk.co", h.hostsAppend, file, module.Need("ip_addr", module.Str), module.Need("entries", module.List)),
		module.Tests("dnsutil.hosts_remove", "Takes names out of /etc/hosts.\n\nsalt '*' dnsutil.hosts_remove /etc/hosts ad1.yuk.co", h.hostsRemove, file, module.Need("entries", module.List)),
	}
}

func checkIP(_ context.Context, c *module.Call) (any, error) {
	s := c.Str("addr") + c.Str("ip_addr")
	if before, after, ok := strings.Cut(s, "/"); ok {
		a, err := netip.ParseAddr(before)
		n, nerr := strconv.Atoi(after)
		return err == nil && nerr == nil && n >= 0 && n <= a.BitLen(), nil
	}
	_, err := netip.ParseAddr(s)
	return err == nil, nil
}

func (h *host) nameServers(ctx context.Context, c *module.Call) (any, error) {
	names, err := ask(ctx, c.Str("nameserver"), c.Str("domain"), lookupNS)
	if err != nil || !c.Bool("resolve") {
		return names, err
	}
	out := []any{}
	for _, n := range names {
		list, err := ask(ctx, c.Str("nameserver"), module.Text(n), lookupIP("ip4"))
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

func (h *host) mailServers(ctx context.Context, c *module.Call) (any, error) {
	list, err := ask(ctx, c.Str("nameserver"), c.Str("domain"), lookupMX)
	if err != nil || !c.Bool("resolve") {
		return list, err
	}
	for _, m := range list {
		pair := listOf(m)
		addrs, err := ask(ctx, c.Str("nameserver"), module.Text(pair[1]), lookupIP("ip4"))
		if err != nil {
			return nil, err
		}
		if len(addrs) > 0 {
			pair[1] = addrs[0]
		}
	}
	return list, nil
}

// senders follows the includes and redirects of RFC 7208, which allows ten lookups.
func (h *host) senders(ctx context.Context, c *module.Call) (any, error) {
	out := []any{}
	todo := []string{c.Str("domain")}
	seen := map[string]bool{}
	for len(todo) > 0 && len(seen) < 10 {
		name := todo[0]
		todo = todo[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		texts, err := ask(ctx, c.Str("nameserver"), name, lookupTXT)
		if err != nil {
			return nil, err
		}
		for _, t := range texts {
			f := strings.Fields(module.Text(t))
			if len(f) == 0 || !strings.EqualFold(f[0], "v=spf1") {
				continue
			}
			for _, word := range f[1:] {
				word = strings.TrimLeft(word, "+?~-")
				if key, v, ok := strings.Cut(word, ":"); ok && (key == "ip4" || key == "ip6") {
					out = append(out, v)
				} else if ok && key == "include" {
					todo = append(todo, v)
				}
				if v, ok := strings.CutPrefix(word, "redirect="); ok {
					todo = append(todo, v)
				}
			}
		}
	}
	return out, nil
}

// parseHosts are the names of a hosts(5) file by address.
func parseHosts(text string) map[string]any {
	out := map[string]any{}
	for _, l := range module.Lines(text) {
		l, _, _ = strings.Cut(l, "#")
		f := strings.Fields(module.Valid(l))
		if len(f) < 2 {
			continue
		}
		list, _ := out[f[0]].([]string)
		out[f[0]] = append(list, f[1:]...)
	}
	return out
}

// editHosts replaces a hosts file by what change makes of it.
func (h *host) editHosts(c *module.Call, change func(text string) (to, say string)) (any, error) {
	file := h.path(c.Str("hostsfile"))
	text, err := module.ReadFile(file)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	to, say := change(text)
	if to == text || c.Test {
		return say, nil
	}
	return say, durable.Replace(file, st.Mode().Perm(), func(w io.Writer) error {
		_, err := io.WriteString(w, to)
		return err
	})
}

func (h *host) hostsAppend(_ context.Context, c *module.Call) (any, error) {
	a, err := parseAddr(c.Str("ip_addr"))
	if err != nil {
		return nil, err
	}
	for _, n := range c.Strs("entries") {
		if !reHostname.MatchString(n) {
			return nil, fault.Invalid("bad_hostname", "%q cannot be the name of a host", n)
		}
	}
	return h.editHosts(c, func(text string) (string, string) {
		have, _ := parseHosts(text)[a.String()].([]string)
		var add []string
		for _, n := range c.Strs("entries") {
			if !slices.Contains(have, n) {
				add = append(add, n)
			}
		}
		if len(add) == 0 {
			return text, fmt.Sprintf("No additional hosts were added to %s", c.Str("hostsfile"))
		}
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		line := a.String() + " " + strings.Join(add, " ")
		return text + line + "\n", "The following line was added to " + c.Str("hostsfile") + ":" + line
	})
}

func (h *host) hostsRemove(_ context.Context, c *module.Call) (any, error) {
	gone := c.Strs("entries")
	_, err := h.editHosts(c, func(text string) (string, string) {
		lines := strings.Split(text, "\n")
		keep := lines[:0]
		for _, l := range lines {
			body, comment, commented := strings.Cut(l, "#")
			f := strings.Fields(body)
			if len(f) < 2 || !slices.ContainsFunc(f[1:], func(n string) bool { return slices.Contains(gone, n) }) {
				keep = append(keep, l)
				continue
			}
			names := slices.DeleteFunc(slices.Clone(f[1:]), func(n string) bool { return slices.Contains(gone, n) })
			if len(names) > 0 {
				l = f[0] + " " + strings.Join(names, " ")
				if commented {
					l += " #" + comment
				}
				keep = append(keep, l)
			}
		}
		return strings.Join(keep, "\n"), ""
	})
	return nil, err
}
