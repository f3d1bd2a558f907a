package grains

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"drover/internal/fault"
)

// iface is a network interface.
type iface struct {
	name     string
	hardware string // address, empty when there is none
	addrs    []netip.Addr
}

// maxInterfaces bounds how many interfaces are told of: hosts of containers may have many thousands.
const maxInterfaces = 512

// kernelInterfaces asks the kernel, over netlink. The addresses of all interfaces come at once: to ask
// for each one's would give all of them each time.
func kernelInterfaces() ([]iface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fault.Unavailable("fact_network", "the kernel does not tell its network interfaces").Wrap(err)
	}
	table, err := syscall.NetlinkRIB(unix.RTM_GETADDR, unix.AF_UNSPEC)
	if err != nil {
		return nil, fault.Unavailable("fact_network", "the kernel does not tell its network addresses").Wrap(err)
	}
	byIndex, err := parseAddrs(table)
	var out []iface
	for i, n := range all {
		if i == maxInterfaces {
			err = errors.Join(err, fault.TooLarge("fact_network", "the host has %d network interfaces; facts tell of the first %d", len(all), maxInterfaces))
			break
		}
		f := iface{name: n.Name, hardware: n.HardwareAddr.String(), addrs: byIndex[n.Index]}
		if n.Flags&net.FlagLoopback != 0 {
			f.hardware = "00:00:00:00:00:00"
		}
		out = append(out, f)
	}
	return out, err
}

// parseAddrs reads what netlink says of addresses (rtnetlink(7)), by the number of the interface.
func parseAddrs(table []byte) (map[int][]netip.Addr, error) {
	msgs, err := syscall.ParseNetlinkMessage(table)
	if err != nil {
		return nil, fault.Unavailable("fact_network", "the kernel's addresses cannot be read").Wrap(err)
	}
	out := map[int][]netip.Addr{}
	for _, m := range msgs {
		if m.Header.Type != unix.RTM_NEWADDR || len(m.Data) < unix.SizeofIfAddrmsg {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return out, fault.Unavailable("fact_network", "the kernel's addresses cannot be read").Wrap(err)
		}
		var local, address netip.Addr
		for _, a := range attrs {
			switch ip, _ := netip.AddrFromSlice(a.Value); a.Attr.Type {
			case unix.IFA_LOCAL: // of two ends of a line, this one
				local = ip
			case unix.IFA_ADDRESS:
				address = ip
			}
		}
		if !local.IsValid() {
			local = address
		}
		if index := int(binary.NativeEndian.Uint32(m.Data[4:])); local.IsValid() {
			out[index] = append(out[index], local)
		}
	}
	return out, nil
}

func network(_ context.Context, h *host, c Config, g map[string]any) error {
	all, err := c.interfaces()
	by4, by6, both, hardware := map[string]any{}, map[string]any{}, map[string]any{}, map[string]any{}
	var v4, v6 []netip.Addr
	for _, f := range all {
		var l4, l6 []string
		for _, a := range f.addrs {
			if a.Is4() {
				l4, v4 = append(l4, a.String()), append(v4, a)
			} else {
				l6, v6 = append(l6, a.String()), append(v6, a)
			}
		}
		by4[f.name], by6[f.name], both[f.name] = texts(l4), texts(l6), texts(slices.Concat(l4, l6))
		if f.hardware != "" {
			hardware[f.name] = f.hardware
		}
	}
	g["ip4_interfaces"], g["ip6_interfaces"], g["ip_interfaces"], g["hwaddr_interfaces"] = by4, by6, both, hardware
	g["ipv4"], g["ipv6"] = addrTexts(v4), addrTexts(v6)
	gw4, dev4 := h.gateway4()
	gw6, dev6 := h.gateway6()
	g["ip4_gw"], g["ip6_gw"], g["ip_gw"] = gw4, gw6, gw4 != any(false) || gw6 != any(false)

	dns := h.resolver()
	g["dns"] = dns
	node := h.line("proc/sys/kernel/hostname")
	if node == "" || node == "(none)" {
		node = h.line("etc/hostname")
	}
	names := h.inHosts(node)
	fqdn := node
	if !strings.Contains(fqdn, ".") {
		for _, n := range names.names {
			if strings.HasPrefix(n, node+".") {
				fqdn = n
				break
			}
		}
	}
	domain, _ := dns["domain"].(string)
	if search, _ := dns["search"].([]any); domain == "" && len(search) > 0 {
		domain, _ = search[0].(string)
	}
	if !strings.Contains(fqdn, ".") && fqdn != "" && fqdn != "localhost" && domain != "" && domain != "." {
		fqdn += "." + strings.Trim(domain, ".")
	}
	short, rest, _ := strings.Cut(fqdn, ".")
	g["nodename"], g["localhost"], g["host"], g["fqdn"], g["domain"] = node, node, short, fqdn, rest

	// The addresses of the name, as far as this is known without asking anybody: what hosts(5) says,
	// or else the addresses of the interface that leads outside.
	own := func(is4 bool, dev string) []netip.Addr {
		var out []netip.Addr
		for _, a := range names.addrs {
			if a.Is4() == is4 {
				out = append(out, a)
			}
		}
		for _, f := range all {
			for _, a := range f.addrs {
				if out == nil && f.name == dev && a.Is4() == is4 && a.IsGlobalUnicast() {
					return []netip.Addr{a}
				}
			}
		}
		return out
	}
	g["fqdn_ip4"], g["fqdn_ip6"] = addrTexts(own(true, dev4)), addrTexts(own(false, dev6))
	return err
}

// addrTexts sorts addresses as Salt does, by their text.
func addrTexts(l []netip.Addr) []any {
	var out []string
	for _, a := range l {
		out = append(out, a.String())
	}
	slices.Sort(out)
	return texts(slices.Compact(out))
}

// known is what hosts(5) has under a name.
type known struct {
	names []string
	addrs []netip.Addr
}

// inHosts finds a host name in /etc/hosts: the names beside it and its addresses but for the loopback
// ones that localhost has too.
func (h *host) inHosts(node string) (k known) {
	if node == "" {
		return k
	}
	for l := range strings.Lines(h.text("etc/hosts")) {
		l, _, _ = strings.Cut(l, "#")
		f := strings.Fields(l)
		if len(f) < 2 || !slices.ContainsFunc(f[1:], func(n string) bool { return n == node || strings.HasPrefix(n, node+".") }) {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		if err != nil {
			continue
		}
		k.names = append(k.names, f[1:]...)
		if a != netip.AddrFrom4([4]byte{127, 0, 0, 1}) && (!a.Is6() || !a.IsLoopback()) {
			k.addrs = append(k.addrs, a.WithZone(""))
		}
	}
	return k
}

// resolver is what resolv.conf(5) says.
func (h *host) resolver() map[string]any {
	var all, v4, v6, search, options, sortlist []string
	domain := ""
	for l := range strings.Lines(h.text("etc/resolv.conf")) {
		f := strings.Fields(l)
		if len(f) < 2 || f[0][0] == '#' || f[0][0] == ';' {
			continue
		}
		switch f[0] {
		case "nameserver":
			a, err := netip.ParseAddr(f[1])
			if err != nil {
				continue
			}
			all = append(all, f[1])
			if a.Is4() {
				v4 = append(v4, f[1])
			} else {
				v6 = append(v6, f[1])
			}
		case "domain":
			domain = f[1]
		case "search":
			search = f[1:]
		case "options":
			options = append(options, f[1:]...)
		case "sortlist":
			sortlist = append(sortlist, f[1:]...)
		}
	}
	return map[string]any{"nameservers": texts(all), "ip4_nameservers": texts(v4), "ip6_nameservers": texts(v6), "domain": domain, "search": texts(search), "options": texts(options), "sortlist": texts(sortlist)}
}

// maxRoutes bounds how many routes are looked at; the default ones stand first.
const maxRoutes = 100_000

// routes gives each line of a table of routes in /proc until it is told to stop.
func (h *host) routes(name string, fn func(fields []string) (stop bool)) {
	f, err := h.open(name)
	if err != nil {
		return // without IPv6, for one
	}
	defer f.Close()
	s := bufio.NewScanner(io.LimitReader(f, maxRoutes*200))
	for n := 0; n < maxRoutes && s.Scan(); n++ {
		if fn(strings.Fields(s.Text())) {
			return
		}
	}
}

// gateway4 is the gateway of IPv4's default route: its address, true when there is a route without a
// gateway, false when there is none; and the route's interface.
func (h *host) gateway4() (gw any, dev string) {
	gw = false
	h.routes("proc/net/route", func(f []string) bool {
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			return false
		}
		b, err := hex.DecodeString(f[2])
		if err != nil || len(b) != 4 {
			return false
		}
		gw, dev = true, f[0]
		if n := binary.LittleEndian.Uint32(b); n != 0 {
			var a [4]byte
			binary.BigEndian.PutUint32(a[:], n)
			gw = netip.AddrFrom4(a).String()
		}
		return true
	})
	return gw, dev
}

// gateway6 is gateway4 for IPv6.
func (h *host) gateway6() (gw any, dev string) {
	gw = false
	h.routes("proc/net/ipv6_route", func(f []string) bool {
		// Destination, its length, source, its length, next hop, metric, uses, references, flags, interface.
		const reject = 0x0200
		if len(f) < 10 || f[1] != "00" || strings.Trim(f[0], "0") != "" || f[9] == "lo" {
			return false
		}
		flags, err := hex.DecodeString(f[8])
		if err != nil || len(flags) != 4 || binary.BigEndian.Uint32(flags)&reject != 0 {
			return false
		}
		b, err := hex.DecodeString(f[4])
		if err != nil || len(b) != 16 {
			return false
		}
		gw, dev = true, f[9]
		if a := netip.AddrFrom16([16]byte(b)); !a.IsUnspecified() {
			gw = a.String()
		}
		return true
	})
	return gw, dev
}
