package network

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fault"
)

type kw = map[string]any

func machine() *host {
	return &host{root: "/", now: time.Now, run: command.Run, bus: func(context.Context) (*godbus.Conn, error) { return nil, fault.Unavailable("dbus_missing", "no bus") }}
}

// call calls a function; a mapping as the last argument are keywords.
func call(t *testing.T, h *host, fun string, args ...any) (any, error) {
	t.Helper()
	var named map[string]any
	if n := len(args); n > 0 {
		if m, ok := args[n-1].(kw); ok {
			named, args = m, args[:n-1]
		}
	}
	for _, f := range h.functions() {
		if f.Name == fun {
			c, err := module.Bind(&module.Host{}, f, args, named, false)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			return f.Run(ctx, c)
		}
	}
	t.Fatalf("there is no function %s", fun)
	return nil, nil
}

func as(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// check calls functions and compares their answers as JSON.
func check(t *testing.T, h *host, table []answer) {
	t.Helper()
	for _, v := range table {
		got, err := call(t, h, v.fun, v.args...)
		if err != nil || as(t, got) != v.want {
			t.Errorf("%s %v = %s, %v\nwant %s", v.fun, v.args, as(t, got), err, v.want)
		}
	}
}

type answer struct {
	fun  string
	args []any
	want string
}

func TestAddresses(t *testing.T) {
	check(t, machine(), []answer{
		{"network.calc_net", []any{"172.17.0.5", "255.255.255.240"}, `"172.17.0.0/28"`},
		{"network.calc_net", []any{"2a02:f6e:a000:80:84d8:8332:7866:4e07/64"}, `"2a02:f6e:a000:80::/64"`},
		{"network.ip_in_subnet", []any{"172.17.0.4", "172.16.0.0/12"}, `true`},
		{"network.ip_in_subnet", []any{"172.17.0.4", "10.0.0.0/255.0.0.0"}, `false`},
		{"network.in_subnet", []any{"127.0.0.0/8"}, `true`},
		{"network.in_subnet", []any{"203.0.113.0/24"}, `false`},
		{"network.is_private", []any{"10.0.0.3"}, `true`}, {"network.is_private", []any{"8.8.8.8"}, `false`}, {"network.is_private", []any{"198.18.0.1"}, `true`},
		{"network.is_loopback", []any{"127.0.0.1"}, `true`}, {"network.is_loopback", []any{"::1"}, `true`},
		{"network.iphexval", []any{"10.0.0.1"}, `"0A000001"`},
		{"network.reverse_ip", []any{"172.17.0.4"}, `"4.0.17.172.in-addr.arpa"`},
		{"network.reverse_ip", []any{"2001:db8::1"}, `"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"`},
		{"network.convert_cidr", []any{"172.31.3.0/16"}, `{"broadcast":"172.31.255.255","netmask":"255.255.0.0","network":"172.31.0.0"}`},
		{"network.convert_cidr", []any{"odd"}, `{"broadcast":null,"netmask":null,"network":null}`},
		{"dig.check_ip", []any{"1.2.3.4"}, `true`}, {"dig.check_ip", []any{"1.2.3.4/33"}, `false`}, {"dnsutil.check_ip", []any{"::1"}, `true`}, {"dnsutil.check_ip", []any{"x"}, `false`},
	})
	for _, s := range []string{"1.2.3", "x", "1.2.3.4/40", ""} {
		if p, err := parsePrefix(s); err == nil {
			t.Errorf("parsePrefix(%q) = %s", s, p)
		}
	}
	if _, err := calcNet("10.0.0.1", "255.0.255.0"); fault.Code(err) != "bad_netmask" {
		t.Error(err)
	}
}

// A mask as an address gives the network again.
func TestMaskProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")
		bits := rapid.IntRange(0, 32).Draw(t, "bits")
		a, _ := netip.AddrFromSlice(b)
		p, err := a.Prefix(bits)
		if err != nil {
			t.Fatal(err)
		}
		again, err := calcNet(a.String(), mask(p))
		if err != nil || again != p {
			t.Fatalf("%s, %v; want %s", again, err, p)
		}
		if l := last(p); !p.Contains(l) || p.Contains(l.Next()) {
			t.Fatalf("%s is not the last of %s", l, p)
		}
	})
}

func TestThisHost(t *testing.T) {
	h := machine()
	lo, err := call(t, h, "network.interface", "lo")
	if err != nil || !strings.Contains(as(t, lo), `"address":"127.0.0.1"`) || !strings.Contains(as(t, lo), `"netmask":"255.0.0.0"`) {
		t.Error(as(t, lo), err)
	}
	check(t, h, []answer{
		{"network.interface_ip", []any{"lo"}, `"127.0.0.1"`},
		{"network.ipaddrs", []any{"lo", true}, `["127.0.0.1"]`},
		{"network.ip_addrs", []any{"lo"}, `[]`},
		{"network.ip_addrs", []any{"nope0"}, `[]`},
		{"network.ip_networks", []any{"lo", true}, `["127.0.0.0/8"]`},
		{"network.ifacestartswith", []any{"127.0.0"}, `["lo"]`},
		{"network.ping", []any{"127.0.0.1", kw{"return_boolean": true, "timeout": 2.0}}, `true`},
		{"network.ping", []any{"does.not.exist.invalid", kw{"return_boolean": true}}, `false`},
	})
	if _, err := call(t, h, "network.hwaddr", "nope0"); fault.Code(err) != "interface_missing" {
		t.Error(err)
	}
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if v, err := call(t, h, "network.get_hostname"); err != nil || v != name {
		t.Error(v, err)
	}
	if v, err := call(t, h, "network.ping", "127.0.0.1", kw{"count": 2.0}); err != nil || !strings.Contains(v.(string), "2 packets transmitted, 2 received, 0% packet loss") {
		t.Error(v, err)
	}
	for _, fun := range []string{"network.interfaces", "network.routes", "network.default_route", "network.netstat", "network.active_tcp", "network.arp", "network.subnets", "network.subnets6"} {
		if _, err := call(t, h, fun); err != nil {
			t.Errorf("%s: %v", fun, err)
		}
	}
	if v, err := call(t, h, "network.get_route", "127.0.0.1"); err != nil || !strings.Contains(as(t, v), `"interface":"lo"`) {
		t.Error(as(t, v), err)
	}
}

func TestConnect(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := float64(l.Addr().(*net.TCPAddr).Port)
	open, err := call(t, machine(), "network.connect", "127.0.0.1", port)
	if err != nil || !strings.Contains(as(t, open), `"result":true`) {
		t.Error(open, err)
	}
	all, err := call(t, machine(), "network.netstat")
	if err != nil || !strings.Contains(as(t, all), fmt.Sprintf(`"local-address":"127.0.0.1:%.0f","program":"%d/`, port, os.Getpid())) {
		t.Errorf("this process is not in netstat: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	shut, err := call(t, machine(), "network.connect", "127.0.0.1", port)
	if err != nil || !strings.Contains(as(t, shut), `"result":false`) {
		t.Error(shut, err)
	}
}

func TestSockets(t *testing.T) {
	const text = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000001:00000002 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0
   1: broken
   2: B80D0120000000000000000001000000:0016 B80D0120000000000000000002000000:C350 01 00000000:00000000 00:00000000 00000000     0        0 9 1
`
	got := parseSockets(text)
	want := []socket{
		{Local: netip.MustParseAddrPort("127.0.0.1:8080"), Remote: netip.MustParseAddrPort("0.0.0.0:0"), State: "LISTEN", Sent: 1, Received: 2, UID: 1000, Inode: "4711"},
		{Local: netip.MustParseAddrPort("[2001:db8::1]:22"), Remote: netip.MustParseAddrPort("[2001:db8::2]:50000"), State: "ESTABLISHED", Inode: "9"},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestHosts(t *testing.T) {
	h := machine()
	h.root = t.TempDir()
	if err := os.Mkdir(h.path("/etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := h.path("/etc/hosts")
	if err := os.WriteFile(file, []byte("127.0.0.1 localhost # own\n10.0.0.1\told.example.com old\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	check(t, h, []answer{
		{"dnsutil.parse_hosts", nil, `{"10.0.0.1":["old.example.com","old"],"127.0.0.1":["localhost"]}`},
		{"dnsutil.hosts_append", []any{"/etc/hosts", "10.0.0.2", "a,b"}, `"The following line was added to /etc/hosts:10.0.0.2 a b"`},
		{"dnsutil.hosts_append", []any{"/etc/hosts", "10.0.0.2", "b"}, `"No additional hosts were added to /etc/hosts"`},
		{"dnsutil.hosts_remove", []any{"/etc/hosts", "a,old"}, `null`},
	})
	s, err := module.ReadFile(file)
	if want := "127.0.0.1 localhost # own\n10.0.0.1 old.example.com\n10.0.0.2 b\n"; err != nil || s != want {
		t.Errorf("%v\n%s", err, s)
	}
	if _, err := call(t, h, "dnsutil.hosts_append", "/etc/hosts", "10.0.0.2", []any{"a\n1.2.3.4 evil"}); fault.Code(err) != "bad_hostname" {
		t.Error(err)
	}
	if got := renameInHosts("127.0.0.1 localhost\n10.0.0.1 old.example.com old # x\n10.0.0.2 older\n", "old.example.com", "new.example.com"); got != "127.0.0.1 localhost\n10.0.0.1\tnew.example.com new # x\n10.0.0.2 older\n" {
		t.Errorf("%q", got)
	}
	old, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"-x", "a b", "a..b", "", strings.Repeat("a", 65), "a/../b"} {
		if _, err := call(t, h, "network.mod_hostname", bad); fault.Code(err) != "bad_hostname" {
			t.Errorf("%q: %v", bad, err)
		}
	}
	// Below another root only the file is written.
	if v, err := call(t, h, "network.mod_hostname", "new.example.com"); err != nil || as(t, v) != "true" {
		t.Error(v, err)
	}
	if s, err := module.ReadFile(h.path("/etc/hostname")); err != nil || s != "new.example.com\n" {
		t.Error(s, err)
	}
	if now, err := os.Hostname(); err != nil || now != old {
		t.Errorf("the host is now called %s, %v", now, err)
	}
}

// dnsServer answers questions out of a table by "name type", with records as they travel.
func dnsServer(t *testing.T, zone map[string][][]byte) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = conn.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			q := b[12:n]
			var labels []string
			i := 0
			for q[i] != 0 {
				labels = append(labels, string(q[i+1:i+1+int(q[i])]))
				i += 1 + int(q[i])
			}
			kind := binary.BigEndian.Uint16(q[i+1:])
			records := zone[fmt.Sprintf("%s %d", strings.Join(labels, "."), kind)]
			out := append([]byte{b[0], b[1], 0x85, 0x80, 0, 1, 0, byte(len(records)), 0, 0, 0, 0}, q[:i+5]...)
			if records == nil {
				out[3] |= 3 // no such name
			}
			for _, r := range records {
				out = append(out, 0xc0, 12, byte(kind>>8), byte(kind), 0, 1, 0, 0, 0, 60, byte(len(r)>>8), byte(len(r)))
				out = append(out, r...)
			}
			if _, err := conn.WriteTo(out, from); err != nil {
				return
			}
		}
	}()
	return conn.LocalAddr().String()
}

func dnsName(s string) []byte {
	var b []byte
	for _, l := range strings.Split(s, ".") {
		b = append(append(b, byte(len(l))), l...)
	}
	return append(b, 0)
}

func dnsText(s string) []byte { return append([]byte{byte(len(s))}, s...) }

func TestDNS(t *testing.T) {
	server := dnsServer(t, map[string][][]byte{
		"www.example.com 1": {{10, 0, 0, 1}, {10, 0, 0, 2}}, "www.example.com 28": {netip.MustParseAddr("2001:db8::1").AsSlice()},
		"example.com 15": {append([]byte{0, 10}, dnsName("mx.example.com")...)}, "mx.example.com 1": {{10, 0, 0, 9}},
		"example.com 2": {dnsName("ns.example.com")}, "ns.example.com 1": {{10, 0, 0, 53}},
		"example.com 16": {dnsText("v=spf1 ip4:10.0.0.0/8 include:other.example.com -all"), dnsText("odd")}, "other.example.com 16": {dnsText("v=spf1 ip6:2001:db8::/32 include:example.com ~all")},
		"1.0.0.10.in-addr.arpa 12": {dnsName("www.example.com")},
	})
	check(t, machine(), []answer{
		{"dig.A", []any{"www.example.com", server}, `["10.0.0.1","10.0.0.2"]`},
		{"dig.a", []any{"none.example.com", server}, `[]`},
		{"dig.AAAA", []any{"www.example.com", server}, `["2001:db8::1"]`},
		{"dig.MX", []any{"example.com", false, server}, `[["10","mx.example.com."]]`},
		{"dig.mx", []any{"example.com", true, server}, `[["10","10.0.0.9"]]`},
		{"dig.NS", []any{"example.com", true, server}, `["10.0.0.53"]`},
		{"dnsutil.NS", []any{"example.com", false, server}, `["ns.example.com."]`},
		{"dig.TXT", []any{"other.example.com", server}, `["v=spf1 ip6:2001:db8::/32 include:example.com ~all"]`},
		{"dig.SPF", []any{"example.com", kw{"nameserver": server}}, `["10.0.0.0/8","2001:db8::/32"]`},
		{"dig.PTR", []any{"10.0.0.1", server}, `["www.example.com."]`},
		{"dnsutil.A", []any{"www.example.com", server}, `["10.0.0.1","10.0.0.2"]`},
	})
	if _, err := call(t, machine(), "dig.A", "a b", server); fault.Code(err) != "bad_name" {
		t.Error(err)
	}
}

func TestHTTP(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/json":
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"a": [1]}`))
		case "/big":
			b := make([]byte, 1<<20)
			for range 17 {
				_, _ = w.Write(b)
			}
		case "/slow":
			<-r.Context().Done()
		case "/missing":
			http.Error(w, "no", http.StatusNotFound)
		default:
			_ = r.ParseForm()
			user, pass, _ := r.BasicAuth()
			fmt.Fprintf(w, "%s %s %s %s %s:%s", r.Method, r.URL.RawQuery, r.PostForm.Encode(), r.Header.Get("X-A"), user, pass)
		}
	}))
	defer srv.Close()
	h := machine()
	off := func(more kw) kw {
		more["verify_ssl"] = false
		return more
	}
	check(t, h, []answer{
		{"http.query", []any{srv.URL + "/x?p=1", off(kw{"method": "POST", "params": kw{"q": 2.0}, "data": kw{"d": 3.0}, "header_dict": kw{"X-A": "y"}, "username": "u", "password": "p", "status": true})}, `{"body":"POST p=1\u0026q=2 d=3 y u:p","status":200}`},
		{"http.query", []any{srv.URL + "/json", off(kw{"decode": true, "text": true})}, `{"dict":{"a":[1]},"text":"{\"a\": [1]}"}`},
		{"http.query", []any{srv.URL + "/missing", off(kw{})}, `{"body":"no\n","error":"HTTP 404 Not Found","status":404}`},
	})
	if v, err := call(t, h, "http.query", srv.URL, kw{}); err != nil || !strings.Contains(as(t, v), "certificate") {
		t.Errorf("a certificate that nobody signed is taken: %s, %v", as(t, v), err)
	}
	if v, err := call(t, h, "http.query", srv.URL+"/slow", off(kw{"timeout": 0.2})); err != nil || !strings.Contains(as(t, v), "error") {
		t.Error(as(t, v), err)
	}
	if _, err := call(t, h, "http.query", srv.URL+"/big", off(kw{})); fault.Code(err) != "body_too_large" {
		t.Error(err)
	}
	if _, err := call(t, h, "http.query", "file:///etc/passwd"); fault.Code(err) != "bad_url" {
		t.Error(err)
	}
}

func TestGit(t *testing.T) {
	h := machine()
	t.Setenv("HOME", t.TempDir())
	for k, v := range map[string]string{"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b", "GIT_CONFIG_NOSYSTEM": "1"} {
		t.Setenv(k, v)
	}
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	do := func(fun string, args ...any) any {
		t.Helper()
		v, err := call(t, h, fun, args...)
		if err != nil {
			t.Fatalf("%s %v: %v", fun, args, err)
		}
		return v
	}
	write := func(file, s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	do("git.init", src, kw{"opts": "-b main"})
	write(src+"/-a b", "1")
	do("git.add", src, []any{"-a b"})
	do("git.commit", src, "first -m 'x'")
	one := do("git.revision", src).(string)
	do("git.tag", src, "v1")
	do("git.branch", src, "side")
	do("git.clone", dst, src)
	write(src+"/two", "2")
	do("git.add", src, "two")
	do("git.commit", src, "second")
	two := do("git.revision", src).(string)
	write(dst+"/new", "x")
	if err := os.Remove(dst + "/-a b"); err != nil {
		t.Fatal(err)
	}
	check(t, h, []answer{
		{"git.current_branch", []any{src}, `"main"`},
		{"git.list_branches", []any{src}, `["main","side"]`},
		{"git.list_tags", []any{src}, `["v1"]`},
		{"git.describe", []any{src, "HEAD"}, as(t, two[:7])},
		{"git.merge_base", []any{src, "HEAD,side"}, as(t, []string{one})},
		{"git.merge_base", []any{src, "side,HEAD", kw{"is_ancestor": true}}, `true`},
		{"git.status", []any{dst}, `{"deleted":["-a b"],"untracked":["new"]}`},
		{"git.is_worktree", []any{dst}, `false`},
		{"git.remotes", []any{dst}, as(t, kw{"origin": kw{"fetch": src, "push": src}})},
		{"git.remote_get", []any{dst}, as(t, kw{"fetch": src, "push": src})},
		{"git.ls_remote", []any{dst, "origin", "refs/heads/main"}, as(t, kw{"refs/heads/main": two})},
		{"git.fetch", []any{dst}, as(t, kw{"branches": kw{"origin/main": kw{"old": one, "new": two}}})},
		{"git.fetch", []any{dst}, `{}`},
		{"git.rev_parse", []any{dst, "origin/main"}, as(t, two)},
		{"git.reset", []any{dst, "--hard origin/main"}, as(t, "HEAD is now at "+two[:7]+" second")},
		{"git.config_set", []any{"user.email", "me@x", kw{"cwd": dst}}, `["me@x"]`},
		{"git.config_set", []any{"a.b", kw{"cwd": dst, "multivar": []any{"1", "2"}}}, `["1","2"]`},
		{"git.config_get", []any{"a.b", kw{"cwd": dst, "all": true}}, `["1","2"]`},
		{"git.config_get", []any{"a.none", kw{"cwd": dst}}, `null`},
		{"git.config_unset", []any{"user.email", kw{"cwd": dst}}, `true`},
		{"git.remote_set", []any{dst, "https://example.com/x.git", kw{"remote": "up", "https_user": "u", "https_pass": "s3cret"}}, `{"fetch":"https://\u003credacted\u003e@example.com/x.git","push":"https://\u003credacted\u003e@example.com/x.git"}`},
	})
	if v := do("git.checkout", dst, "side"); !strings.Contains(v.(string), "side") {
		t.Error(v)
	}
	log, err := call(t, h, "git.log", src, "-n 1")
	if err != nil || !strings.Contains(as(t, log), `"subject":"second"`) {
		t.Error(as(t, log), err)
	}
	mark := filepath.Join(dir, "pwned")
	for _, v := range []answer{
		{"git.clone", []any{filepath.Join(dir, "x"), "ext::touch " + mark}, "git_failed"},
		{"git.clone", []any{filepath.Join(dir, "x"), "--upload-pack=touch " + mark}, "bad_ref"},
		{"git.ls_remote", []any{dst, "--upload-pack=touch " + mark}, "bad_ref"},
		{"git.checkout", []any{dst, "--detach"}, "bad_ref"},
		{"git.fetch", []any{dst, "--upload-pack=touch " + mark}, "bad_ref"},
		{"git.fetch", []any{dst, "origin", kw{"identity": "/k -o ProxyCommand=x"}}, "bad_identity"},
		{"git.status", []any{"relative"}, "bad_path"},
		{"git.status", []any{dir}, "git_failed"},
		{"git.rev_parse", []any{dst, "HEAD", "'open"}, "bad_options"},
	} {
		if got, err := call(t, h, v.fun, v.args...); fault.Code(err) != v.want {
			t.Errorf("%s %v = %v, %v; want %s", v.fun, v.args, got, err, v.want)
		}
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("a command of an address was run")
	}
}

func TestWords(t *testing.T) {
	for s, want := range map[string][]string{`a 'b c' "d \"e" f\ g ''`: {"a", "b c", `d "e`, "f g", ""}, "": nil, "  x\t$(y) ": {"x", "$(y)"}} {
		if got, err := words(s); err != nil || !cmp.Equal(got, want) {
			t.Errorf("words(%q) = %q, %v", s, got, err)
		}
	}
}

func TestX509(t *testing.T) {
	h := machine()
	dir := t.TempDir()
	key, crt := dir+"/k", dir+"/c"
	if v, err := call(t, h, "x509.create_private_key", kw{"path": key, "algo": "ec"}); err != nil || v != "Private key written to "+key {
		t.Fatal(v, err)
	}
	if st, err := os.Stat(key); err != nil || st.Mode().Perm() != 0o600 {
		t.Error(st, err)
	}
	if b, err := exec.Command("openssl", "req", "-x509", "-new", "-key", key, "-out", crt, "-days", "10", "-subj", "/C=CZ/O=Org/CN=host.example.com", "-addext", "subjectAltName=DNS:host.example.com,IP:10.0.0.1").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	got, err := call(t, h, "x509.read_certificate", crt)
	if err != nil {
		t.Fatal(err)
	}
	m := got.(map[string]any)
	if as(t, m["Subject"]) != `{"C":"CZ","CN":"host.example.com","O":"Org"}` || m["Key Size"] != int64(256) || !strings.Contains(as(t, m["X509v3 Extensions"]), "DNS:host.example.com, IP Address:10.0.0.1") {
		t.Error(as(t, m))
	}
	print, err := exec.Command("openssl", "x509", "-in", crt, "-noout", "-fingerprint", "-sha256").Output()
	if err != nil || !strings.Contains(string(print), m["SHA-256 Finger Print"].(string)) {
		t.Errorf("openssl says %s, %v; not %v", print, err, m["SHA-256 Finger Print"])
	}
	public, err := exec.Command("openssl", "pkey", "-in", key, "-pubout").Output()
	if err != nil {
		t.Fatal(err)
	}
	check(t, h, []answer{
		{"x509.get_public_key", []any{crt}, as(t, string(public))}, {"x509.get_public_key", []any{key}, as(t, string(public))},
		{"x509.get_private_key_size", []any{key}, `256`}, {"x509.verify_private_key", []any{key, crt}, `true`},
		{"x509.expires", []any{crt}, `false`}, {"x509.expires", []any{crt, 11.0}, `true`}, {"x509.expires", []any{crt, 9.0}, `false`},
		{"x509.will_expire", []any{crt, 30.0}, `{"check_days":30,"cn":"host.example.com","will_expire":true}`},
	})
	other, err := call(t, h, "x509.create_private_key", kw{"algo": "ed25519"})
	if err != nil {
		t.Fatal(err)
	}
	check(t, h, []answer{{"x509.verify_private_key", []any{other, crt}, `false`}})
	if _, err := call(t, h, "x509.read_certificate", key); fault.Code(err) != "bad_certificate" {
		t.Error(err)
	}
}

func TestDocs(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range Functions() {
		if seen[f.Name] || f.Run == nil || !strings.Contains(f.Doc, "\n\nsalt '*' "+f.Name) {
			t.Errorf("%s: %q", f.Name, f.Doc)
		}
		seen[f.Name] = true
	}
}

func FuzzText(f *testing.F) {
	f.Add("0: 0100007F:1F90 00000000:0000 0A 0:0 0 0 0 0 1\n10.0.0.1 a b # c\nR  a\x00b\x00?? c\x00")
	f.Fuzz(func(t *testing.T, s string) {
		parseSockets(s)
		parseHosts(s)
		parseStatus(s)
		refMap(s, " ")
		renameInHosts(s, "a", "b")
		if p, err := parsePrefix(s); err == nil && p.IsValid() {
			last(p)
			reverseName(p.Addr())
		}
		isReply([]byte(s), false, true, 0, 0)
		isReply([]byte(s), true, false, 0, 0)
		if w, err := words(s); err == nil {
			for _, x := range w {
				_ = ref("x", x)
			}
		}
	})
}
