package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

const maxPings = 100

func (h *host) reach() []module.Function {
	return []module.Function{
		module.Reads("network.connect", "Tells whether a port of a host can be connected to.\n\nsalt '*' network.connect archlinux.org 80 timeout=3", h.connect,
			module.Need("host", module.Str), module.May("port", module.Int, nil), module.May("proto", module.Str, "tcp"), module.May("timeout", module.Num, 5.0), module.May("family", module.Str, nil)),
		module.Reads("network.ping", "Sends echo requests to a host; with return_boolean only tells whether it answered.\n\nsalt '*' network.ping archlinux.org return_boolean=True", h.ping,
			module.Need("host", module.Str), module.May("timeout", module.Num, nil), module.May("return_boolean", module.Bool, false), module.May("count", module.Int, int64(4))),
	}
}

// connect has Salt's answer: a result and a sentence.
func (h *host) connect(ctx context.Context, c *module.Call) (any, error) {
	name, port := c.Str("host"), c.Int("port")
	answer := func(ok bool, say string) (any, error) { return map[string]any{"result": ok, "comment": say}, nil }
	if name == "" {
		return answer(false, "Required argument, host, is missing.")
	}
	if port < 1 || port > 65535 {
		return answer(false, "Required argument, port, is missing.")
	}
	network := "tcp"
	if strings.HasPrefix(strings.ToLower(c.Str("proto")), "udp") {
		network = "udp"
	}
	switch strings.ToLower(c.Str("family")) {
	case "ipv4", "inet":
		network += "4"
	case "ipv6", "inet6":
		network += "6"
	}
	ctx, cancel := within(ctx, c.Num("timeout"))
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, net.JoinHostPort(name, strconv.FormatInt(port, 10)))
	label := fmt.Sprintf("%s (%d)", name, port)
	if err != nil {
		return answer(false, "Unable to connect to "+label+" on "+network[:3]+" port "+strconv.FormatInt(port, 10)+": "+err.Error())
	}
	remote := conn.RemoteAddr().String()
	if network[:3] == "udp" {
		// A datagram that nobody listens for comes back as an error; silence says nothing.
		_, err = conn.Write([]byte{0})
		if err == nil {
			err = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		}
		if err == nil {
			if _, err = conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				err = nil
			}
		}
	}
	if err := errors.Join(err, conn.Close()); err != nil {
		return answer(false, "Unable to connect to "+label+": "+err.Error())
	}
	return answer(true, "Successfully connected to "+name+" ("+remote+") on "+network[:3]+" port "+strconv.FormatInt(port, 10))
}

// echo is one request and what came of it.
type echo struct {
	Sequence int
	Took     time.Duration
	Err      error
}

func (h *host) ping(ctx context.Context, c *module.Call) (any, error) {
	name := c.Str("host")
	count := int(min(max(c.Int("count"), 1), maxPings))
	wait := 5 * time.Second
	if c.Has("timeout") {
		wait = min(max(time.Duration(c.Num("timeout")*float64(time.Second)), 10*time.Millisecond), time.Minute)
	}
	lctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	addrs, err := net.DefaultResolver.LookupNetIP(lctx, "ip", name)
	cancel()
	if err != nil || len(addrs) == 0 {
		if c.Bool("return_boolean") {
			return false, ctx.Err()
		}
		return "ping: " + name + ": Name or service not known", ctx.Err()
	}
	addr := addrs[0].Unmap()
	all, err := pings(ctx, addr, count, wait, c.Bool("return_boolean"))
	if err != nil {
		return nil, err
	}
	got, low, high, sum := 0, time.Duration(0), time.Duration(0), time.Duration(0)
	var b strings.Builder
	fmt.Fprintf(&b, "PING %s (%s) 56(84) bytes of data.\n", name, addr)
	ms := func(d time.Duration) float64 { return float64(d) / 1e6 }
	for _, e := range all {
		if e.Err != nil {
			continue
		}
		if got == 0 || e.Took < low {
			low = e.Took
		}
		got, high, sum = got+1, max(high, e.Took), sum+e.Took
		fmt.Fprintf(&b, "64 bytes from %s: icmp_seq=%d time=%.3f ms\n", addr, e.Sequence, ms(e.Took))
	}
	if c.Bool("return_boolean") {
		return got > 0, nil
	}
	fmt.Fprintf(&b, "\n--- %s ping statistics ---\n%d packets transmitted, %d received, %d%% packet loss", name, len(all), got, (len(all)-got)*100/len(all))
	if got > 0 {
		fmt.Fprintf(&b, "\nrtt min/avg/max = %.3f/%.3f/%.3f ms", ms(low), ms(sum)/float64(got), ms(high))
	}
	return b.String(), nil
}

// pings sends echo requests one after the other; with first it stops at the first answer.
func pings(ctx context.Context, addr netip.Addr, count int, wait time.Duration, first bool) ([]echo, error) {
	conn, raw, err := icmpSocket(addr.Is6())
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	defer conn.Close()
	id := uint16(os.Getpid())
	var out []echo
	for i := 1; i <= count; i++ {
		e := echo{Sequence: i}
		e.Took, e.Err = pingOnce(ctx, conn, raw, addr, id, uint16(i), wait)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		out = append(out, e)
		if e.Err == nil && first {
			break
		}
		if i < count && !first {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(max(0, 200*time.Millisecond-e.Took)):
			}
		}
	}
	return out, nil
}

// icmpSocket opens a socket for echo requests: without privileges where the kernel lets the
// agent's group, else a raw one.
func icmpSocket(six bool) (conn net.PacketConn, raw bool, err error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if six {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		raw = true
		fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	}
	if err != nil {
		return nil, false, fault.Denied("ping_denied", "the kernel lets the agent open no socket for echo requests").Wrap(err).Fix("allow its group in net.ipv4.ping_group_range, or let it have CAP_NET_RAW")
	}
	f := os.NewFile(uintptr(fd), "icmp")
	conn, err = net.FilePacketConn(f)
	return conn, raw, errors.Join(err, f.Close())
}

// echoRequest is a message of RFC 792 or 4443 with 56 bytes of data.
func echoRequest(six bool, id, seq uint16) []byte {
	b := make([]byte, 64)
	b[0] = 8
	if six {
		b[0] = 128
	}
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	for i := 8; i < len(b); i++ {
		b[i] = byte(i)
	}
	if !six { // the kernel adds the other one, which covers addresses
		var sum uint32
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		sum = sum>>16 + sum&0xffff
		sum += sum >> 16
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	}
	return b
}

// isReply tells whether a message answers a request. The id of a socket without privileges is the
// kernel's, which gives it only its own answers.
func isReply(b []byte, six, raw bool, id, seq uint16) bool {
	if raw && !six { // with the header of IP
		n := 0
		if len(b) > 0 {
			n = int(b[0]&15) * 4
		}
		if n < 20 || len(b) < n {
			return false
		}
		b = b[n:]
	}
	want := byte(0)
	if six {
		want = 129
	}
	return len(b) >= 8 && b[0] == want && binary.BigEndian.Uint16(b[6:]) == seq && (!raw || binary.BigEndian.Uint16(b[4:]) == id)
}

func pingOnce(ctx context.Context, conn net.PacketConn, raw bool, addr netip.Addr, id, seq uint16, wait time.Duration) (time.Duration, error) {
	began := time.Now()
	if err := conn.SetDeadline(began.Add(wait)); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	var to net.Addr = &net.UDPAddr{IP: addr.AsSlice(), Zone: addr.Zone()}
	if raw {
		to = &net.IPAddr{IP: addr.AsSlice(), Zone: addr.Zone()}
	}
	if _, err := conn.WriteTo(echoRequest(addr.Is6(), id, seq), to); err != nil {
		return 0, err
	}
	b := make([]byte, 1500)
	for {
		n, _, err := conn.ReadFrom(b)
		if err != nil {
			return 0, err
		}
		// net takes the header off what a raw socket gives for IPv4.
		if isReply(b[:n], addr.Is6(), raw, id, seq) || raw && isReply(b[:n], addr.Is6(), false, id, seq) && binary.BigEndian.Uint16(b[4:]) == id {
			return time.Since(began), nil
		}
	}
}
