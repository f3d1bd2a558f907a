package network

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// address is an address of an interface.
type address struct {
	Interface, Label string
	Prefix           netip.Prefix // the address itself with its bits
	Broadcast        string
	Peer             string
	Scope            string
}

func (h *host) interfaces() []module.Function {
	iface := module.Need("iface", module.Str)
	filters := []module.Param{module.May("interface", module.Str, nil), module.May("include_loopback", module.Bool, false), module.May("cidr", module.Str, nil)}
	type4 := module.May("type", module.Str, nil)
	addrs := func(six bool) module.Run {
		return func(_ context.Context, c *module.Call) (any, error) {
			return addressList(six, c.Str("interface"), c.Bool("include_loopback"), c.Str("cidr"), c.Str("type"))
		}
	}
	a4 := module.Reads("network.ip_addrs", "Lists the IPv4 addresses of the host, or of one interface.\n\nsalt '*' network.ip_addrs", addrs(false), append(slices.Clone(filters), type4)...)
	a6 := module.Reads("network.ip_addrs6", "Lists the IPv6 addresses of the host, or of one interface.\n\nsalt '*' network.ip_addrs6", addrs(true), filters...)
	hw := module.Reads("network.hw_addr", "Tells the hardware address of an interface.\n\nsalt '*' network.hw_addr eth0", func(_ context.Context, c *module.Call) (any, error) {
		l, err := link(c.Str("iface"))
		if err != nil {
			return nil, err
		}
		return l.Attrs().HardwareAddr.String(), nil
	}, iface)
	subnets := func(six bool) module.Run {
		return func(_ context.Context, c *module.Call) (any, error) {
			all, err := hostAddresses()
			out := []string{}
			for _, a := range all {
				if only := c.Strs("interfaces"); len(only) > 0 && !slices.Contains(only, a.Interface) {
					continue
				}
				if a.Prefix.Addr().Is6() == six && !a.Prefix.Addr().IsLoopback() && !a.Prefix.Addr().IsLinkLocalUnicast() {
					out = append(out, a.Prefix.Masked().String())
				}
			}
			slices.Sort(out)
			return slices.Compact(out), err
		}
	}
	return []module.Function{
		module.Reads("network.interfaces", "Tells about all interfaces of the host.\n\nsalt '*' network.interfaces", func(context.Context, *module.Call) (any, error) { return interfaceMap() }),
		module.Reads("network.interface", "Tells the IPv4 addresses of an interface.\n\nsalt '*' network.interface eth0", func(_ context.Context, c *module.Call) (any, error) {
			m, err := oneInterface(c.Str("iface"))
			if err != nil {
				return nil, err
			}
			if v, ok := m["inet"]; ok {
				return v, nil
			}
			return []any{}, nil
		}, iface),
		module.Reads("network.interface_ip", "Tells the first IPv4 address of an interface.\n\nsalt '*' network.interface_ip eth0", func(_ context.Context, c *module.Call) (any, error) {
			if _, err := link(c.Str("iface")); err != nil {
				return nil, err
			}
			all, err := hostAddresses()
			for _, a := range all {
				if a.Interface == c.Str("iface") && a.Prefix.Addr().Is4() {
					return a.Prefix.Addr().String(), nil
				}
			}
			return "", err
		}, iface),
		a4, alias(a4, "network.ipaddrs"), a6, alias(a6, "network.ipaddrs6"), hw, alias(hw, "network.hwaddr"),
		module.Reads("network.subnets", "Lists the IPv4 networks that the host is in.\n\nsalt '*' network.subnets", subnets(false), module.May("interfaces", module.List, nil)),
		module.Reads("network.subnets6", "Lists the IPv6 networks that the host is in.\n\nsalt '*' network.subnets6", subnets(true)),
		module.Reads("network.ip_networks", "Lists the IPv4 networks of the host, with what is known of them if verbose.\n\nsalt '*' network.ip_networks", ipNetworks(false),
			module.May("interface", module.Str, nil), module.May("include_loopback", module.Bool, false), module.May("verbose", module.Bool, false)),
		module.Reads("network.ip_networks6", "Lists the IPv6 networks of the host.\n\nsalt '*' network.ip_networks6", ipNetworks(true),
			module.May("interface", module.Str, nil), module.May("include_loopback", module.Bool, false), module.May("verbose", module.Bool, false)),
		module.Reads("network.ifacestartswith", "Lists the interfaces whose addresses begin with a text.\n\nsalt '*' network.ifacestartswith 10.0", func(_ context.Context, c *module.Call) (any, error) {
			all, err := hostAddresses()
			out := []string{}
			for _, a := range all {
				if a.Prefix.Addr().Is4() && strings.HasPrefix(a.Prefix.Addr().String(), c.Str("cidr")) {
					out = append(out, a.Interface)
				}
			}
			return slices.Compact(out), err
		}, module.Need("cidr", module.Str)),
	}
}

func netlinkFailed(err error) error {
	return fault.Unavailable("netlink_failed", "the kernel does not tell about the network").Wrap(err)
}

func link(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fault.NotFound("interface_missing", "there is no interface %q", name).Wrap(err).Fix("see `network.interfaces`")
	}
	return l, nil
}

// hostAddresses are all addresses of the host in the kernel's order.
func hostAddresses() ([]address, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, netlinkFailed(err)
	}
	var out []address
	for _, l := range links {
		list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, netlinkFailed(err)
		}
		for _, a := range list {
			if a.IPNet == nil {
				continue
			}
			ip, ok := netip.AddrFromSlice(a.IP)
			bits, _ := a.Mask.Size()
			if !ok {
				continue
			}
			one := address{Interface: l.Attrs().Name, Label: a.Label, Prefix: netip.PrefixFrom(ip.Unmap(), bits), Scope: netlink.Scope(a.Scope).String()}
			if one.Label == "" {
				one.Label = one.Interface
			}
			if len(a.Broadcast) > 0 {
				one.Broadcast = a.Broadcast.String()
			}
			if a.Peer != nil && !a.Peer.IP.Equal(a.IP) {
				one.Peer = a.Peer.IP.String()
			}
			if one.Scope == "universe" {
				one.Scope = "global" // ip(8)'s word
			}
			out = append(out, one)
		}
	}
	return out, nil
}

// interfaceMap is Salt's shape: name to up, hwaddr, parent, inet, inet6 and secondary.
func interfaceMap() (map[string]any, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, netlinkFailed(err)
	}
	all, err := hostAddresses()
	if err != nil {
		return nil, err
	}
	byIndex := map[int]string{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs().Name
	}
	out := map[string]any{}
	for _, l := range links {
		a := l.Attrs()
		m := map[string]any{"up": a.RawFlags&unix.IFF_UP != 0}
		if len(a.HardwareAddr) > 0 {
			m["hwaddr"] = a.HardwareAddr.String()
		}
		if p := byIndex[a.ParentIndex]; p != "" && a.ParentIndex != a.Index {
			m["parent"] = p
		}
		for _, x := range all {
			if x.Interface != a.Name {
				continue
			}
			if x.Prefix.Addr().Is6() {
				six := map[string]any{"address": x.Prefix.Addr().String(), "prefixlen": int64(x.Prefix.Bits()), "scope": x.Scope}
				m["inet6"] = append(listOf(m["inet6"]), six)
				continue
			}
			four := map[string]any{"address": x.Prefix.Addr().String(), "netmask": mask(x.Prefix), "broadcast": nil, "label": x.Label}
			if x.Broadcast != "" {
				four["broadcast"] = x.Broadcast
			}
			if x.Peer != "" {
				four["peer"] = x.Peer
			}
			m["inet"] = append(listOf(m["inet"]), four)
		}
		out[a.Name] = m
	}
	return out, nil
}

func listOf(v any) []any { l, _ := v.([]any); return l }

func oneInterface(name string) (map[string]any, error) {
	all, err := interfaceMap()
	if err != nil {
		return nil, err
	}
	m, ok := all[name].(map[string]any)
	if !ok {
		return nil, fault.NotFound("interface_missing", "there is no interface %q", name).Fix("see `network.interfaces`")
	}
	return m, nil
}

// addressList are the addresses of a family that pass the filters.
func addressList(six bool, iface string, loopback bool, cidr, kind string) (any, error) {
	var p netip.Prefix
	if cidr != "" {
		var err error
		if p, err = parsePrefix(cidr); err != nil {
			return nil, err
		}
	}
	if iface != "" {
		if _, err := link(iface); err != nil {
			return []string{}, nil //nolint:nilerr // Salt gives no addresses of an interface that is not there
		}
	}
	all, err := hostAddresses()
	out := []netip.Addr{}
	for _, a := range all {
		ip := a.Prefix.Addr()
		switch {
		case ip.Is6() != six, iface != "" && a.Interface != iface && a.Label != iface:
		case ip.IsLoopback() && !loopback:
		case cidr != "" && !p.Contains(ip):
		case kind == "public" && private(ip), kind == "private" && !private(ip):
		default:
			out = append(out, ip)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	texts := []string{}
	for _, a := range slices.Compact(out) {
		texts = append(texts, a.String())
	}
	return texts, err
}

func ipNetworks(six bool) module.Run {
	return func(_ context.Context, c *module.Call) (any, error) {
		all, err := hostAddresses()
		list := []string{}
		verbose := map[string]any{}
		for _, a := range all {
			ip := a.Prefix.Addr()
			if ip.Is6() != six || c.Has("interface") && a.Interface != c.Str("interface") || ip.IsLoopback() && !c.Bool("include_loopback") {
				continue
			}
			p := a.Prefix.Masked()
			list = append(list, p.String())
			verbose[p.String()] = map[string]any{"prefixlen": int64(p.Bits()), "netmask": mask(p), "network_address": p.Addr().String(), "broadcast_address": last(p).String(),
				"version": int64(map[bool]int{false: 4, true: 6}[six]), "is_private": private(p.Addr()), "is_loopback": p.Addr().IsLoopback(), "is_link_local": p.Addr().IsLinkLocalUnicast(),
				"is_multicast": p.Addr().IsMulticast(), "is_unspecified": p.Addr().IsUnspecified()}
		}
		if c.Bool("verbose") {
			return verbose, err
		}
		slices.Sort(list)
		return slices.Compact(list), err
	}
}
