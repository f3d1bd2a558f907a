package network

import (
	"context"
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func (h *host) addresses() []module.Function {
	ip := module.Need("ip_addr", module.Str)
	cidr := module.Need("cidr", module.Str)
	inSubnet := func(_ context.Context, c *module.Call) (any, error) {
		p, err := parsePrefix(c.Str("cidr"))
		if err != nil {
			return nil, err
		}
		all, err := hostAddresses()
		for _, a := range all {
			if p.Contains(a.Prefix.Addr()) {
				return true, nil
			}
		}
		return false, err
	}
	return []module.Function{
		module.Reads("network.calc_net", "Tells the network that an address with a mask is in.\n\nsalt '*' network.calc_net 172.17.0.5 255.255.255.240", func(_ context.Context, c *module.Call) (any, error) {
			p, err := calcNet(c.Str("ip_addr"), c.Str("netmask"))
			if err != nil {
				return nil, err
			}
			return p.String(), nil
		}, ip, module.May("netmask", module.Str, nil)),
		module.Reads("network.ip_in_subnet", "Tells whether an address is in a network.\n\nsalt '*' network.ip_in_subnet 172.17.0.4 172.16.0.0/12", func(_ context.Context, c *module.Call) (any, error) {
			a, err := parseAddr(c.Str("ip_addr"))
			if err != nil {
				return nil, err
			}
			p, err := parsePrefix(c.Str("cidr"))
			return err == nil && p.Contains(a), err
		}, ip, cidr),
		module.Reads("network.in_subnet", "Tells whether the host has an address in a network.\n\nsalt '*' network.in_subnet 10.0.0.0/16", inSubnet, cidr),
		module.Reads("network.is_private", "Tells whether an address is for private networks.\n\nsalt '*' network.is_private 10.0.0.3", func(_ context.Context, c *module.Call) (any, error) {
			a, err := parseAddr(c.Str("ip_addr"))
			return err == nil && private(a), err
		}, ip),
		module.Reads("network.is_loopback", "Tells whether an address is the host's own.\n\nsalt '*' network.is_loopback 127.0.0.1", func(_ context.Context, c *module.Call) (any, error) {
			a, err := parseAddr(c.Str("ip_addr"))
			return err == nil && a.IsLoopback(), err
		}, ip),
		module.Reads("network.iphexval", "Gives an IPv4 address in hexadecimal.\n\nsalt '*' network.iphexval 10.0.0.1", func(_ context.Context, c *module.Call) (any, error) {
			a, err := parseAddr(c.Str("ip"))
			if err != nil {
				return nil, err
			}
			return strings.ToUpper(hex.EncodeToString(a.AsSlice())), nil
		}, module.Need("ip", module.Str)),
		module.Reads("network.reverse_ip", "Gives the name of an address in the reverse zones of DNS.\n\nsalt '*' network.reverse_ip 172.17.0.4", func(_ context.Context, c *module.Call) (any, error) {
			a, err := parseAddr(c.Str("ip_addr"))
			if err != nil {
				return nil, err
			}
			return reverseName(a), nil
		}, ip),
		module.Reads("network.convert_cidr", "Tells the address and the mask of a network.\n\nsalt '*' network.convert_cidr 172.31.0.0/16", func(_ context.Context, c *module.Call) (any, error) {
			out := map[string]any{"network": nil, "netmask": nil, "broadcast": nil}
			p, err := parsePrefix(c.Str("cidr"))
			if err != nil {
				return out, nil //nolint:nilerr // Salt answers with nothing in it
			}
			out["network"], out["netmask"], out["broadcast"] = p.Masked().Addr().String(), mask(p), last(p).String()
			return out, nil
		}, cidr),
	}
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil {
		return a, fault.Invalid("bad_address", "%q is no IP address", s)
	}
	return a.Unmap(), nil
}

// parsePrefix reads a network, or an address as a network of one.
func parsePrefix(s string) (netip.Prefix, error) {
	s = strings.TrimSpace(s)
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	if before, after, ok := strings.Cut(s, "/"); ok && strings.Contains(after, ".") {
		return calcNet(before, after)
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fault.Invalid("bad_network", "%q is no network", s).Fix("write it like 10.0.0.0/8")
	}
	return p.Masked(), nil
}

// calcNet is the network of an address and a mask, which is 255.255.0.0, a number of bits, or a
// part of the address already.
func calcNet(addr, netmask string) (netip.Prefix, error) {
	if netmask == "" {
		return parsePrefix(addr)
	}
	a, err := parseAddr(addr)
	if err != nil {
		return netip.Prefix{}, err
	}
	bits, err := strconv.Atoi(netmask)
	if err != nil {
		m, merr := netip.ParseAddr(netmask)
		if merr != nil || m.Is4() != a.Is4() {
			return netip.Prefix{}, fault.Invalid("bad_netmask", "%q is no mask of a network", netmask)
		}
		bits = 0
		ones := true
		for _, b := range m.AsSlice() {
			for i := 7; i >= 0; i-- {
				one := b>>i&1 == 1
				if one && !ones {
					return netip.Prefix{}, fault.Invalid("bad_netmask", "%q is no mask of a network", netmask)
				}
				if ones = one; ones {
					bits++
				}
			}
		}
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return p, fault.Invalid("bad_netmask", "%q is no mask of a network", netmask)
	}
	return p, nil
}

// mask is a network's mask as an address.
func mask(p netip.Prefix) string {
	b := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return ""
	}
	return a.String()
}

// last is the last address of a network: where broadcasts go to.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// notPublic are networks that Python's ipaddress, and so Salt, calls private besides those of
// RFC 1918 and 4193.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("192.0.0.0/29"), netip.MustParsePrefix("192.0.0.170/31"), netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2001:2::/48"), netip.MustParsePrefix("100::/64"),
}

func private(a netip.Addr) bool {
	if a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() {
		return true
	}
	for _, p := range notPublic {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// reverseName is an address in in-addr.arpa or ip6.arpa.
func reverseName(a netip.Addr) string {
	var b strings.Builder
	s := a.AsSlice()
	for i := len(s) - 1; i >= 0; i-- {
		if a.Is4() {
			b.WriteString(strconv.Itoa(int(s[i])) + ".")
			continue
		}
		b.WriteString(strconv.FormatInt(int64(s[i]&15), 16) + "." + strconv.FormatInt(int64(s[i]>>4), 16) + ".")
	}
	if a.Is4() {
		return b.String() + "in-addr.arpa"
	}
	return b.String() + "ip6.arpa"
}
