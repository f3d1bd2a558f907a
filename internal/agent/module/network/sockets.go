package network

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

const maxSockets = 100000

// tcpStates are the kernel's numbers in /proc/net/tcp with netstat's words.
var tcpStates = map[string]string{"01": "ESTABLISHED", "02": "SYN_SENT", "03": "SYN_RECV", "04": "FIN_WAIT1", "05": "FIN_WAIT2", "06": "TIME_WAIT",
	"07": "CLOSE", "08": "CLOSE_WAIT", "09": "LAST_ACK", "0A": "LISTEN", "0B": "CLOSING", "0C": "NEW_SYN_RECV"}

// socket is a line of /proc/net/tcp and its siblings (proc(5)).
type socket struct {
	Local, Remote  netip.AddrPort
	State          string
	Sent, Received int64
	UID            int64
	Inode          string
}

func (h *host) sockets() []module.Function {
	return []module.Function{
		module.Reads("network.netstat", "Lists the sockets of the host with the programs that have them.\n\nsalt '*' network.netstat", func(ctx context.Context, _ *module.Call) (any, error) {
			owners := h.socketOwners(ctx)
			users := h.users()
			out := []any{}
			for _, proto := range []string{"tcp", "tcp6", "udp", "udp6"} {
				list, err := h.socketList(proto)
				if err != nil {
					return nil, err
				}
				for _, s := range list {
					m := map[string]any{"proto": proto, "recv-q": strconv.FormatInt(s.Received, 10), "send-q": strconv.FormatInt(s.Sent, 10), "local-address": netstatAddr(s.Local),
						"remote-address": netstatAddr(s.Remote), "user": users[s.UID], "inode": s.Inode, "program": owners[s.Inode]}
					if m["program"] == "" {
						m["program"] = "-"
					}
					if m["user"] == "" {
						m["user"] = strconv.FormatInt(s.UID, 10)
					}
					if strings.HasPrefix(proto, "tcp") {
						m["state"] = s.State
					}
					out = append(out, m)
				}
			}
			return out, ctx.Err()
		}),
		module.Reads("network.active_tcp", "Lists the TCP connections that are open.\n\nsalt '*' network.active_tcp", func(context.Context, *module.Call) (any, error) {
			out := map[string]any{}
			for _, proto := range []string{"tcp", "tcp6"} {
				list, err := h.socketList(proto)
				if err != nil {
					return nil, err
				}
				for _, s := range list {
					if s.State == "ESTABLISHED" {
						out[strconv.Itoa(len(out))] = map[string]any{"local_addr": s.Local.Addr().Unmap().String(), "local_port": strconv.Itoa(int(s.Local.Port())),
							"remote_addr": s.Remote.Addr().Unmap().String(), "remote_port": strconv.Itoa(int(s.Remote.Port()))}
					}
				}
			}
			return out, nil
		}),
		module.Reads("network.arp", "Tells the hardware addresses of hosts nearby.\n\nsalt '*' network.arp", func(context.Context, *module.Call) (any, error) {
			list, err := netlink.NeighList(0, netlink.FAMILY_V4)
			if err != nil {
				return nil, netlinkFailed(err)
			}
			out := map[string]any{}
			for _, n := range list {
				if len(n.HardwareAddr) > 0 && n.State&(netlink.NUD_NOARP|netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) == 0 {
					out[n.HardwareAddr.String()] = n.IP.String()
				}
			}
			return out, nil
		}),
	}
}

func netstatAddr(a netip.AddrPort) string {
	port := "*"
	if a.Port() != 0 {
		port = strconv.Itoa(int(a.Port()))
	}
	return a.Addr().String() + ":" + port
}

func (h *host) socketList(proto string) ([]socket, error) {
	s, err := module.ReadIfThere(h.path("/proc/net/" + proto))
	if err != nil {
		return nil, err
	}
	return parseSockets(s), nil
}

// parseSockets reads /proc/net/tcp, tcp6, udp or udp6.
func parseSockets(text string) []socket {
	var out []socket
	for _, l := range module.Lines(text) {
		f := strings.Fields(l)
		if len(f) < 10 || len(out) >= maxSockets {
			continue
		}
		local, ok1 := parseSocketAddr(f[1])
		remote, ok2 := parseSocketAddr(f[2])
		sent, received, ok3 := strings.Cut(f[4], ":")
		if !ok1 || !ok2 || !ok3 {
			continue
		}
		s := socket{Local: local, Remote: remote, State: tcpStates[f[3]], Inode: module.Valid(f[9])}
		s.Sent, s.Received, s.UID = hexNumber(sent, 16), hexNumber(received, 16), hexNumber(f[7], 10)
		out = append(out, s)
	}
	return out
}

// hexNumber is a counter, 0 when it is none: such a line is still a socket.
func hexNumber(s string, base int) int64 {
	n, err := strconv.ParseInt(s, base, 64)
	if err != nil {
		return 0
	}
	return n
}

// parseSocketAddr reads the kernel's form: words of 32 bits in the machine's order, then the port.
func parseSocketAddr(s string) (netip.AddrPort, bool) {
	addr, port, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(addr)
	p, perr := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || perr != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4]) // drover's machines are little-endian
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, uint16(p)), ok
}

// socketOwners are the programs that have sockets, as "PID/NAME" by inode.
func (h *host) socketOwners(ctx context.Context) map[string]string {
	out := map[string]string{}
	list, err := os.ReadDir(h.path("/proc"))
	if err != nil {
		return out
	}
	for _, e := range list {
		if _, err := strconv.Atoi(e.Name()); err != nil || ctx.Err() != nil {
			continue
		}
		dir := h.path("/proc/" + e.Name())
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue // it has gone, or is not ours to look into
		}
		name := ""
		for _, fd := range fds {
			to, err := os.Readlink(dir + "/fd/" + fd.Name())
			if inode, ok := strings.CutPrefix(to, "socket:["); ok && err == nil {
				if name == "" {
					comm, err := module.ReadIfThere(dir + "/comm")
					if err != nil {
						break
					}
					name = e.Name() + "/" + module.Valid(strings.TrimSpace(comm))
				}
				out[strings.TrimSuffix(inode, "]")] = name
			}
		}
	}
	return out
}

// users are the names of user numbers.
func (h *host) users() map[int64]string {
	out := map[int64]string{}
	s, err := module.ReadIfThere(h.path("/etc/passwd"))
	if err != nil {
		return out
	}
	for _, l := range module.Lines(s) {
		if f := strings.Split(l, ":"); len(f) > 2 {
			if n, err := strconv.ParseInt(f[2], 10, 64); err == nil && out[n] == "" {
				out[n] = module.Valid(f[0])
			}
		}
	}
	return out
}

func (h *host) routes() []module.Function {
	family := module.May("family", module.Str, nil)
	return []module.Function{
		module.Reads("network.routes", "Lists the routes of the host.\n\nsalt '*' network.routes family=inet", func(_ context.Context, c *module.Call) (any, error) { return routeList(c.Str("family"), false) }, family),
		module.Reads("network.default_route", "Lists the routes to everywhere.\n\nsalt '*' network.default_route", func(_ context.Context, c *module.Call) (any, error) { return routeList(c.Str("family"), true) }, family),
		module.Reads("network.get_route", "Tells on which way an address is reached.\n\nsalt '*' network.get_route 10.10.10.10", func(_ context.Context, c *module.Call) (any, error) {
			a, err := parseAddr(c.Str("ip"))
			if err != nil {
				return nil, err
			}
			list, err := netlink.RouteGet(a.AsSlice())
			if err != nil || len(list) == 0 {
				return nil, fault.NotFound("route_missing", "there is no route to %s", a).Wrap(err)
			}
			out := map[string]any{"destination": a.String(), "gateway": nil, "interface": linkName(list[0].LinkIndex), "source": nil}
			if len(list[0].Gw) > 0 {
				out["gateway"] = list[0].Gw.String()
			}
			if len(list[0].Src) > 0 {
				out["source"] = list[0].Src.String()
			}
			return out, nil
		}, module.Need("ip", module.Str)),
	}
}

func linkName(index int) string {
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return ""
	}
	return l.Attrs().Name
}

// routeList are the routes in netstat's words, which is Salt's shape.
func routeList(family string, onlyDefault bool) (any, error) {
	kinds := []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
	switch family {
	case "":
	case "inet":
		kinds = kinds[:1]
	case "inet6":
		kinds = kinds[1:]
	default:
		return nil, fault.Invalid("bad_family", "a family of addresses is inet or inet6, not %q", family)
	}
	out := []any{}
	for _, kind := range kinds {
		list, err := netlink.RouteList(nil, kind)
		if err != nil {
			return nil, netlinkFailed(err)
		}
		for _, r := range list {
			m := routeMap(r, kind == netlink.FAMILY_V6)
			if !onlyDefault || r.Dst == nil || m["destination"] == "0.0.0.0" && m["netmask"] == "0.0.0.0" || m["destination"] == "::/0" {
				out = append(out, m)
			}
		}
	}
	return out, nil
}

func routeMap(r netlink.Route, six bool) map[string]any {
	flags := "U"
	gateway, anywhere := "0.0.0.0", "0.0.0.0/0"
	if six {
		gateway, anywhere = "::", "::/0"
	}
	if len(r.Gw) > 0 {
		flags, gateway = "UG", r.Gw.String()
	}
	p := netip.MustParsePrefix(anywhere)
	if r.Dst != nil {
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			bits, _ := r.Dst.Mask.Size()
			p = netip.PrefixFrom(a.Unmap(), bits)
		}
	}
	if p.Bits() == p.Addr().BitLen() {
		flags += "H"
	}
	m := map[string]any{"addr_family": "inet", "destination": p.Addr().String(), "gateway": gateway, "netmask": mask(p), "flags": flags, "interface": linkName(r.LinkIndex),
		"metric": fmt.Sprint(r.Priority)}
	if six {
		m["addr_family"], m["destination"] = "inet6", p.String()
		delete(m, "netmask")
	}
	return m
}
