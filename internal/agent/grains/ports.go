package grains

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"drover/internal/fault"
)

// Port is a socket that others can reach: a TCP one that listens, a UDP one that is bound and not
// connected.
type Port struct {
	Proto   string // "tcp" or "udp"
	Addr    netip.Addr
	Port    uint16
	Process string // name of the program, empty when it cannot be told
}

// String is "tcp 0.0.0.0:22" or "udp [::1]:323".
func (p Port) String() string { return p.Proto + " " + netip.AddrPortFrom(p.Addr, p.Port).String() }

const (
	maxSockets     = 100_000 // lines of one table
	maxPorts       = 10_000
	maxDescriptors = 200_000
)

// Ports lists the open ports of the host whose /proc lies below root, by protocol, number and
// address. Sockets that share an address are one port.
func Ports(ctx context.Context, root string) ([]Port, error) {
	if root == "" {
		root = "/"
	}
	h := &host{root: path.Clean(root)}
	byInode := map[string][]int{}
	var out []Port
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		f, err := h.open("proc/net/" + table)
		if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(table, "6") {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fault.Unavailable("ports_unknown", "the open ports of %s cannot be read", root).Wrap(err)
		}
		s := bufio.NewScanner(io.LimitReader(f, maxSockets*160))
		for n := 0; n < maxSockets && s.Scan(); n++ {
			p, inode, ok := parseSocket(table[:3], s.Text())
			if !ok || len(out) == maxPorts {
				continue
			}
			byInode[inode] = append(byInode[inode], len(out))
			out = append(out, p)
		}
		if err := errors.Join(s.Err(), f.Close()); err != nil {
			return nil, fault.Unavailable("ports_unknown", "the open ports of %s cannot be read", root).Wrap(err)
		}
	}
	if err := h.owners(ctx, byInode, out); err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b Port) int {
		return cmp.Or(strings.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port), a.Addr.Compare(b.Addr), strings.Compare(b.Process, a.Process))
	})
	return slices.CompactFunc(out, func(a, b Port) bool { return a.Proto == b.Proto && a.Addr == b.Addr && a.Port == b.Port }), nil
}

// parseSocket reads a line of /proc/net/tcp and its like. It is ok when the socket is open to others.
func parseSocket(proto, line string) (p Port, inode string, ok bool) {
	f := strings.Fields(line)
	if len(f) < 10 {
		return p, "", false
	}
	const listening, unconnected = "0A", "07"
	if f[3] != listening && proto == "tcp" || f[3] != unconnected && proto == "udp" {
		return p, "", false
	}
	addr, port, ok := strings.Cut(f[1], ":")
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || n == 0 {
		return p, "", false
	}
	a, ok := parseAddr(addr)
	return Port{Proto: proto, Addr: a, Port: uint16(n)}, f[9], ok
}

// parseAddr reads an address as the kernel prints it: numbers of four bytes in the host's order.
func parseAddr(s string) (netip.Addr, bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.Addr{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	return netip.AddrFromSlice(b)
}

// owners finds the processes that have sockets open, and ends as soon as each has one.
func (h *host) owners(ctx context.Context, byInode map[string][]int, ports []Port) error {
	seen := 0
	for _, pid := range h.names("proc") {
		if len(byInode) == 0 || seen > maxDescriptors {
			return nil
		}
		if _, ok := number(pid); !ok {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, fd := range h.names(path.Join("proc", pid, "fd")) { // nothing when the process has gone, or is somebody else's
			if seen++; seen > maxDescriptors {
				return nil
			}
			inode, ok := strings.CutPrefix(h.link(path.Join("proc", pid, "fd", fd)), "socket:[")
			if !ok {
				continue
			}
			inode = strings.TrimSuffix(inode, "]")
			for _, i := range byInode[inode] {
				ports[i].Process = h.line(path.Join("proc", pid, "comm"))
			}
			delete(byInode, inode)
		}
	}
	return nil
}
