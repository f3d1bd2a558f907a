package grains

import (
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fixture unpacks the files of a host into a directory.
func fixture(t testing.TB, name string) string {
	t.Helper()
	a, err := txtar.ParseFile(filepath.Join("testdata", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	place := func(name string) string {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for l := range strings.Lines(string(a.Comment)) {
		if from, to, ok := strings.Cut(strings.TrimSpace(l), " -> "); ok {
			if err := os.Symlink(to, place(from)); err != nil {
				t.Fatal(err)
			}
		}
	}
	raw := strings.NewReplacer(`\0`, "\x00", `\1`, "\x01", `\6`, "\x06")
	for _, f := range a.Files {
		data := raw.Replace(string(f.Data))
		if strings.Contains(f.Name, "efivars") {
			data = strings.TrimSpace(data)
		}
		if err := os.WriteFile(place(f.Name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// cet is a file of a time zone without summer time.
const cet = "TZif\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x01" + "\x00\x00\x00\x04" +
	"\x00\x00\x0e\x10" + "\x00" + "\x00" + "CET\x00"

func addrs(l ...string) (out []netip.Addr) {
	for _, s := range l {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

var links = map[string][]iface{
	"stream9": {{"lo", "00:00:00:00:00:00", addrs("127.0.0.1", "::1")}, {"enp1s0", "52:54:00:12:34:56", addrs("192.0.2.10", "2001:db8::10", "fe80::5054:ff:fe12:3456")}, {"enp2s0", "52:54:00:12:34:57", nil}},
	"stream10": {{"lo", "00:00:00:00:00:00", addrs("127.0.0.1", "::1")}, {"eno1", "b0:7b:25:00:00:01", nil}, {"eno2", "b0:7b:25:00:00:01", nil}, {"bond0", "b0:7b:25:00:00:01", addrs("192.0.2.70", "192.0.2.71")},
		{"wg0", "", addrs("10.9.0.1")}},
}

// own are the facts of the process that runs the test.
var own = strings.Fields("pid uid gid username groupname shell path systempath cwd")

func TestFactsOfStream(t *testing.T) {
	for name := range links {
		t.Run(name, func(t *testing.T) {
			root := fixture(t, name)
			if name == "stream10" {
				if err := os.WriteFile(filepath.Join(root, "etc/localtime"), []byte(cet), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, errs := Collect(t.Context(), Config{Root: root, ID: name + ".example.org", Master: "drover.example.org", Version: "1.2.3", Now: func() time.Time { return time.Unix(1_750_000_000, 0) },
				interfaces: func() ([]iface, error) { return links[name], nil }})
			if errs != nil {
				t.Fatal(errs)
			}
			for _, k := range own {
				if _, ok := got[k]; !ok {
					t.Errorf("there is no fact %s", k)
				}
				delete(got, k)
			}
			b, err := json.MarshalIndent(got, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			b = append(b, '\n')
			golden := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(golden, b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(b)); d != "" {
				t.Errorf("run the test with -update if this is meant:\n%s", d)
			}
		})
	}
}

// What formulas ask first, written out: the goldens could be wrong.
func TestFactsThatFormulasAskFor(t *testing.T) {
	got, errs := Collect(t.Context(), Config{Root: fixture(t, "stream9"), ID: "web1", interfaces: func() ([]iface, error) { return links["stream9"], nil }})
	if errs != nil {
		t.Fatal(errs)
	}
	flat := Flatten(got)
	for k, want := range map[string]string{
		"os": "CentOS Stream", "os_family": "RedHat", "osfullname": "CentOS Stream", "osrelease": "9", "osrelease_info:0": "9", "osmajorrelease": "9", "osfinger": "CentOS Stream-9", "oscodename": "CentOS Stream 9",
		"osarch": "x86_64", "cpuarch": "x86_64", "kernel": "Linux", "init": "systemd", "systemd:version": "252", "id": "web1", "host": "web1", "fqdn": "web1.example.org", "domain": "example.org", "nodename": "web1.example.org",
		"virtual": "kvm", "selinux:enabled": "True", "selinux:enforced": "Enforcing", "mem_total": "3789", "num_cpus": "2", "ip4_interfaces:enp1s0:0": "192.0.2.10", "ip4_gw": "192.0.2.1", "ip6_gw": "fe80::1", "ip_gw": "True",
		"hwaddr_interfaces:enp1s0": "52:54:00:12:34:56", "ipv4:0": "127.0.0.1", "saltversion": "3006.0", "saltversioninfo:0": "3006", "pythonversion:0": "3", "pythonversion:1": "9", "dns:search:0": "example.org",
		"uuid": "d0c1b2a3-4455-6677-8899-aabbccddeeff", "reboot_needed": "True", "locale_info:defaultlanguage": "en_US", "kernelparams:5:1": "file a.c +p", "kernelparams:2:1": "None",
	} {
		if flat[k] != want {
			t.Errorf("%s is %q, not %q", k, flat[k], want)
		}
	}
}

func TestFactsOfThisMachine(t *testing.T) {
	best := time.Hour
	var got map[string]any
	for range 3 {
		start := time.Now()
		var errs []error
		got, errs = Collect(t.Context(), Config{ID: "here", Version: "1"})
		best = min(best, time.Since(start))
		if errs != nil {
			t.Fatal(errs)
		}
	}
	if best > 300*time.Millisecond {
		t.Errorf("it took %v", best)
	}
	flat := Flatten(got)
	for _, k := range strings.Fields("os os_family osrelease kernelrelease cpuarch osarch num_cpus mem_total nodename host cpu_model ip4_interfaces:lo:0 boot_time path") {
		if v := flat[k]; v == "" || v == "0" || v == "None" {
			t.Errorf("%s is %q", k, v)
		}
	}
	if !slices.Contains(got["ipv4"].([]any), any("127.0.0.1")) {
		t.Errorf("addresses: %v", got["ipv4"])
	}
	if _, err := json.Marshal(got); err != nil {
		t.Error(err)
	}
	checkTypes(t, "", got)
}

// checkTypes finds values of types that others do not expect.
func checkTypes(t *testing.T, at string, v any) {
	t.Helper()
	switch x := v.(type) {
	case nil, string, bool, int64, float64:
	case []any:
		for _, e := range x {
			checkTypes(t, at+":", e)
		}
	case map[string]any:
		for k, e := range x {
			checkTypes(t, at+":"+k, e)
		}
	default:
		t.Errorf("%s is a %T", at, v)
	}
}

func TestDistributions(t *testing.T) {
	for release, want := range map[string]string{
		"ID=rhel\nNAME=\"Red Hat Enterprise Linux\"\nVERSION_ID=\"9.4\"\nPRETTY_NAME=\"Red Hat Enterprise Linux 9.4 (Plow)\"": "RedHat/RedHat/Red Hat Enterprise Linux/9.4/[9 4]/Red Hat Enterprise Linux-9/x86_64",
		"ID=rocky\nID_LIKE=\"rhel centos fedora\"\nNAME='Rocky Linux'\nVERSION_ID=10.0":                                       "Rocky/RedHat/Rocky Linux/10.0/[10 0]/Rocky Linux-10/x86_64",
		"ID=almalinux\nNAME=AlmaLinux\nVERSION_ID=9.5":                                                                        "AlmaLinux/RedHat/AlmaLinux/9.5/[9 5]/AlmaLinux-9/x86_64",
		"ID=debian\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=12\nVERSION_CODENAME=bookworm":                                      "Debian/Debian/Debian GNU/Linux/12/[12]/Debian-12/amd64",
		"ID=ubuntu\nNAME=Ubuntu\nVERSION_ID=\"24.04\"\nVERSION_CODENAME=noble":                                                "Ubuntu/Debian/Ubuntu/24.04/[24 4]/Ubuntu-24.04/amd64",
		"ID=ours\nID_LIKE=\"something rhel\"\nNAME=\"Our Linux\"\nVERSION_ID=3":                                               "Our Linux/RedHat/Our Linux/3/[3]/Our Linux-3/x86_64",
		"ID=new\nNAME=New": "New/New/New//[]/<nil>/x86_64",
		"ID=fedora\nNAME=\"Fedora Linux\"\nVERSION_ID=42\nVERSION_CODENAME=\"\"\nPRETTY_NAME=\"Fedora Linux 42 (Server Edition)\"": "Fedora/RedHat/Fedora Linux/42/[42]/Fedora Linux-42/x86_64",
	} {
		g := map[string]any{}
		distribution(settings(release), "", "x86_64", g)
		var got []string
		for _, k := range strings.Fields("os os_family osfullname osrelease osrelease_info osfinger osarch") {
			got = append(got, text(g[k]))
		}
		if s := strings.Join(got, "/"); s != want {
			t.Errorf("%q: %s, want %s", release, s, want)
		}
	}
}

// What runs the host is told by its firmware and its processor.
func TestVirtual(t *testing.T) {
	for want, files := range map[string]map[string]string{
		"physical": {"sys/class/dmi/id/sys_vendor": "Supermicro\n"},
		"kvm":      {"sys/class/dmi/id/sys_vendor": "QEMU\n"}, "qemu": {"sys/class/dmi/id/sys_vendor": "QEMU\n", "proc/cpuinfo": "model name : QEMU TCG CPU version 2.5+\n"},
		"VMware":                   {"sys/class/dmi/id/sys_vendor": "VMware, Inc.\n", "sys/class/dmi/id/product_name": "VMware7,1\n"},
		"VirtualBox":               {"sys/class/dmi/id/product_name": "VirtualBox\n"},
		"HyperV":                   {"sys/class/dmi/id/sys_vendor": "Microsoft Corporation\n", "sys/class/dmi/id/product_name": "Virtual Machine\n"},
		"kvm Amazon EC2":           {"sys/class/dmi/id/sys_vendor": "Amazon EC2\n", "sys/class/dmi/id/product_name": "m5.large\n"},
		"physical Amazon EC2":      {"sys/class/dmi/id/sys_vendor": "Amazon EC2\n", "sys/class/dmi/id/product_name": "m5.metal\n"},
		"gce":                      {"sys/class/dmi/id/sys_vendor": "Google\n", "sys/class/dmi/id/product_name": "Google Compute Engine\n"},
		"kvm OpenStack":            {"sys/class/dmi/id/sys_vendor": "OpenStack Foundation\n"},
		"xen Xen HVM DomU":         {"sys/hypervisor/type": "xen\n", "sys/class/dmi/id/product_name": "HVM domU\n"},
		"xen Xen Dom0":             {"sys/hypervisor/type": "xen\n", "proc/xen/capabilities": "control_d\n"},
		"kvm s390x":                {"proc/cpuinfo": "vendor_id : IBM/S390\n", "proc/sysinfo": "VM00 Control Program: KVM/Linux\n"},
		"container podman":         {"run/.containerenv": "", "run/systemd/container": "podman\n"},
		"container Docker":         {"proc/1/cgroup": "0::/system.slice/docker-0123.scope\n"},
		"container LXC":            {"proc/1/environ": "TERM=linux\x00container=lxc\x00"},
		"container systemd-nspawn": {"run/systemd/container": "systemd-nspawn\n"},
	} {
		h := &host{root: t.TempDir()}
		for name, s := range files {
			p := filepath.Join(h.root, name)
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, []byte(s), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		g := map[string]any{}
		if err := hardware(t.Context(), h, Config{}, g); err != nil {
			t.Fatal(err)
		}
		got := text(g["virtual"])
		if s, ok := g["virtual_subtype"]; ok {
			got += " " + text(s)
		}
		if got != want {
			t.Errorf("%v: %s, want %s", files, got, want)
		}
	}
}

// Links lead to places below the root, and pipes do not hold the reader.
func TestFilesStayBelowTheRoot(t *testing.T) {
	root := t.TempDir()
	h := &host{root: root}
	outside := filepath.Join(t.TempDir(), "secret")
	for _, err := range []error{os.WriteFile(outside, []byte("x"), 0o644), os.Symlink(outside, filepath.Join(root, "a")), os.Symlink("../../../../../../../../"+outside, filepath.Join(root, "b")), mkfifo(filepath.Join(root, "pipe"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"a", "b", "pipe", ".", "nothing"} {
		if s := h.text(n); s != "" {
			t.Errorf("%s has %q", n, s)
		}
	}
	if h.exists("a") || !h.exists("pipe") {
		t.Error("what there is, is not found as it should be")
	}
}

func TestFlatten(t *testing.T) {
	got := Flatten(map[string]any{"a": map[string]any{"b": []any{int64(1), true, nil, "x", 1.5, map[string]any{"c": false}}}, "e": []any{}, "m": map[string]any{}, "s": "", "bad\xff": "\xfe", "long": strings.Repeat("é", maxValue)})
	want := map[string]string{"a:b:0": "1", "a:b:1": "True", "a:b:2": "None", "a:b:3": "x", "a:b:4": "1.5", "a:b:5:c": "False", "s": "", "bad\uFFFD": "\uFFFD", "long": strings.Repeat("é", maxValue/2)}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	big := map[string]any{}
	list := make([]any, 10_000)
	for i := range list {
		list[i] = "x"
	}
	big["list"], big["after"] = list, "kept"
	if got := Flatten(big); len(got) != maxFlat || got["after"] != "kept" || got["list:0"] != "x" {
		t.Errorf("%d lines", len(got))
	}
	deep := map[string]any{}
	at := deep
	for range 10_000 {
		next := map[string]any{}
		at["k"] = next
		at = next
	}
	at["end"] = "x"
	if got := Flatten(deep); len(got) != 0 {
		t.Errorf("a name of over %d bytes was kept", maxKey)
	}
}

func TestPorts(t *testing.T) {
	got, err := Ports(t.Context(), fixture(t, "stream9"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, p := range got {
		lines = append(lines, p.String()+" "+p.Process)
	}
	want := []string{"tcp 0.0.0.0:22 sshd", "tcp [::]:22 sshd", "tcp 127.0.0.1:25 ", "udp 127.0.0.1:323 chronyd", "udp [::1]:323 chronyd"}
	if d := cmp.Diff(want, lines); d != "" {
		t.Error(d)
	}
	if _, err := Ports(t.Context(), t.TempDir()); err == nil {
		t.Error("a root without /proc has ports")
	}
}

func FuzzSettings(f *testing.F) {
	f.Add("A=\"b\\\"c\"\n# x\nB='d'\nC=e=f\n", "x=1 \"a b\" y", "0-3,8")
	f.Fuzz(func(t *testing.T, text, line, list string) {
		for k, v := range settings(text) {
			if len(k)+len(v) >= len(text) {
				t.Errorf("%q: %q from %q", k, v, text)
			}
		}
		n := 0
		for _, w := range words(line) {
			n += len(w)
		}
		if n > len(line) {
			t.Errorf("%d bytes of words from %d", n, len(line))
		}
		if cpuList(list) < 0 {
			t.Errorf("%q", list)
		}
	})
}

func FuzzSockets(f *testing.F) {
	f.Add("   0: 0100007F:0019 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21002 1 0 100 0 0 10 0", []byte{})
	f.Fuzz(func(t *testing.T, line string, table []byte) {
		if p, inode, ok := parseSocket("tcp", line); ok && (!p.Addr.IsValid() || p.Port == 0 || inode == "") {
			t.Errorf("%q: %v", line, p)
		}
		if m, err := parseAddrs(table); err == nil && len(m) > len(table) {
			t.Errorf("%d interfaces", len(m))
		}
	})
}

func FuzzFactFile(f *testing.F) {
	f.Add([]byte("a: yes\nb: [1, 2.5, ~, 'no', 2024-01-02]\nc: &x {d: e, n: .nan, i: -.inf}\nf: {<<: *x}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		facts, err := parseYAML(b)
		if err != nil {
			return
		}
		checkTypes(t, "", facts)
		Flatten(facts)
		if _, err := json.Marshal(facts); err != nil {
			t.Error(err)
		}
	})
}
