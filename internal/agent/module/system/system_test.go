package system

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// testMachine has an empty root, no bus, no programs, and noon of a day.
func testMachine(t *testing.T) *machine {
	m := newMachine()
	m.root = t.TempDir()
	if err := os.Mkdir(m.path("/etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.now = func() time.Time { return time.Date(2026, 3, 28, 12, 0, 0, 0, time.UTC) }
	m.bus = func(context.Context) (*busConn, error) { return nil, module.NoBus(nil) }
	m.run = func(_ context.Context, argv ...string) (output, error) {
		return output{}, fault.NotFound("program_missing", "%v", argv)
	}
	return m
}

func write(t *testing.T, m *machine, name, text string) {
	t.Helper()
	p := m.path(name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func has(t *testing.T, m *machine, name, want string) {
	t.Helper()
	got, err := m.read(name)
	if err != nil {
		t.Error(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", name, d)
	}
}

func equal(t *testing.T, what string, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// Every function has a sentence and an example, and no two have one name.
func TestFunctionsAreDescribed(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range Functions() {
		doc, example, ok := strings.Cut(f.Doc, "\n\n")
		if !ok || !strings.HasSuffix(doc, ".") || !strings.HasPrefix(example, "salt '*' "+f.Name) {
			t.Errorf("%s: %q", f.Name, f.Doc)
		}
		if seen[f.Name] {
			t.Errorf("%s is there twice", f.Name)
		}
		if f.Reads && f.Tests || f.Run == nil {
			t.Errorf("%s: reads %v, tests %v", f.Name, f.Reads, f.Tests)
		}
		seen[f.Name] = true
	}
}

func TestSysctl(t *testing.T) {
	m := testMachine(t)
	write(t, m, "/proc/sys/net/ipv4/ip_forward", "0\n")
	write(t, m, "/proc/sys/net/ipv4/conf/eth0.100/forwarding", "1\n")
	write(t, m, "/proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n")
	write(t, m, sysctlFile, "# ours\nkernel.sysrq = 1\nnet.ipv4.tcp_rmem = 4096 131072 6291456\n")
	equal(t, "get", "0", must(t, m, "sysctl.get", "net.ipv4.ip_forward"))
	equal(t, "get by slashes", "0", must(t, m, "sysctl.get", "net/ipv4/ip_forward"))
	equal(t, "an interface with a dot", "1", must(t, m, "sysctl.get", "net.ipv4.conf.eth0/100.forwarding"))
	equal(t, "the same by slashes", "1", must(t, m, "sysctl.get", "net/ipv4/conf/eth0.100/forwarding"))
	equal(t, "get what is not there", "", must(t, m, "sysctl.get", "net.ipv4.nothing"))
	equal(t, "assign", map[string]any{"net.ipv4.ip_forward": "1"}, must(t, m, "sysctl.assign", "net.ipv4.ip_forward", 1))
	has(t, m, "/proc/sys/net/ipv4/ip_forward", "1\n")
	equal(t, "show", map[string]any{"net.ipv4.ip_forward": "1", "net.ipv4.conf.eth0/100.forwarding": "1", "net.ipv4.tcp_rmem": "4096\t131072\t6291456"}, must(t, m, "sysctl.show"))
	equal(t, "show a file", map[string]any{"kernel.sysrq": "1", "net.ipv4.tcp_rmem": "4096 131072 6291456"}, must(t, m, "sysctl.show", sysctlFile))
	equal(t, "persist the same", "Already set", must(t, m, "sysctl.persist", "net.ipv4.tcp_rmem", "4096 131072 6291456"))
	equal(t, "persist anew", "Updated", must(t, m, "sysctl.persist", "net.ipv4.ip_forward", 1))
	equal(t, "persist once more", "Already set", must(t, m, "sysctl.persist", "net.ipv4.ip_forward", "1"))
	has(t, m, sysctlFile, "# ours\nkernel.sysrq = 1\nnet.ipv4.tcp_rmem = 4096 131072 6291456\nnet.ipv4.ip_forward = 1\n")
	equal(t, "persist another value", "Updated", must(t, m, "sysctl.persist", "net.ipv4.ip_forward", 0))
	has(t, m, "/proc/sys/net/ipv4/ip_forward", "0\n")
	if v, err := callIn(t, m, true, "sysctl.persist", []any{"net.ipv4.ip_forward", 1}, nil); v != "Updated" || err != nil {
		t.Errorf("test mode: %v, %v", v, err)
	}
	has(t, m, "/proc/sys/net/ipv4/ip_forward", "0\n")
	for _, bad := range []string{"", "../../etc/passwd", "net..ipv4", "/etc/passwd", "a b", "net/../../x"} {
		if _, err := call(t, m, "sysctl.assign", []any{bad, 1}, nil); fault.Code(err) != "bad_name" {
			t.Errorf("the name %q: %v", bad, err)
		}
	}
	// What the kernel refuses stays out of the file.
	if _, err := call(t, m, "sysctl.persist", []any{"net.ipv4.nothing", 1}, nil); fault.Code(err) != "sysctl_failed" {
		t.Errorf("an unknown parameter: %v", err)
	}
}

func TestFstab(t *testing.T) {
	m := testMachine(t)
	write(t, m, fstabFile, "# the table\nUUID=1 / xfs defaults 0 0\n/dev/sdb1  /srv\\040x ext4 rw,noatime 1 2 # ours\n/dev/sdc none swap sw\n/dev/sdd none swap sw 0 0\n")
	equal(t, "fstab", map[string]any{
		"/":      map[string]any{"device": "UUID=1", "fstype": "xfs", "opts": []string{"defaults"}, "dump": "0", "pass": "0"},
		"/srv x": map[string]any{"device": "/dev/sdb1", "fstype": "ext4", "opts": []string{"rw", "noatime"}, "dump": "1", "pass": "2"},
		"none":   map[string]any{"device": "/dev/sdc", "fstype": "swap", "opts": []string{"sw"}, "dump": "0", "pass": "0"},
		"none-0": map[string]any{"device": "/dev/sdd", "fstype": "swap", "opts": []string{"sw"}, "dump": "0", "pass": "0"},
	}, must(t, m, "mount.fstab"))
	set := func(args ...any) any { return must(t, m, "mount.set_fstab", args...) }
	equal(t, "present", "present", set("/", "UUID=1", "xfs"))
	equal(t, "change", "change", set("/srv x/", "/dev/sdb1", "ext4", []any{"rw", "noatime", "nodev"}, 1, 2))
	equal(t, "new", "new", set("/data", "server:/data", "nfs", "ro,_netdev"))
	equal(t, "swap by device", "change", set("none", "/dev/sdd", "swap", "sw,pri=5"))
	if v, err := callIn(t, m, true, "mount.set_fstab", []any{"/other", "/dev/x", "xfs"}, nil); v != "new" || err != nil {
		t.Errorf("test mode: %v, %v", v, err)
	}
	has(t, m, fstabFile, "# the table\nUUID=1 / xfs defaults 0 0\n/dev/sdb1\t/srv\\040x/\text4\trw,noatime,nodev\t1\t2\n/dev/sdc none swap sw\n/dev/sdd\tnone\tswap\tsw,pri=5\t0\t0\nserver:/data\t/data\tnfs\tro,_netdev\t0\t0\n")
	equal(t, "remove", true, must(t, m, "mount.rm_fstab", "/data", "server:/data"))
	equal(t, "remove what is not there", true, must(t, m, "mount.rm_fstab", "/data"))
	if v := must(t, m, "mount.fstab").(map[string]any); v["/data"] != nil || len(v) != 4 {
		t.Errorf("after the removal: %v", v)
	}
	if _, err := call(t, m, "mount.set_fstab", []any{"/x", "/dev/y", "xfs\n/dev/z /etc xfs"}, nil); fault.Code(err) != "bad_fstab" {
		t.Errorf("a line break: %v", err)
	}
}

const mountinfo = `22 1 8:1 / / rw,relatime shared:1 - xfs /dev/sda1 rw,seclabel,attr2
23 22 0:21 / /proc rw,nosuid - proc proc rw
24 22 8:2 / /srv\040x rw,noatime - ext4 /dev/sda2 rw
25 22 0:40 / /mnt/nfs rw - nfs4 server:/x rw,vers=4.2
broken line
`

func TestMountTable(t *testing.T) {
	m := testMachine(t)
	write(t, m, "/proc/self/mountinfo", mountinfo)
	v := must(t, m, "mount.active").(map[string]any)
	equal(t, "/srv x", map[string]any{"device": "/dev/sda2", "alt_device": "", "fstype": "ext4", "opts": []string{"rw", "noatime"}}, v["/srv x"])
	equal(t, "/", []string{"rw", "relatime", "seclabel", "attr2"}, v["/"].(map[string]any)["opts"])
	equal(t, "is mounted", true, must(t, m, "mount.is_mounted", "/srv x/"))
	equal(t, "is not mounted", false, must(t, m, "mount.is_mounted", "/srv"))
	if x := must(t, m, "mount.active", true).(map[string]any)["/"].(map[string]any); x["major"] != "8" || x["superopts"] == nil {
		t.Errorf("extended: %v", x)
	}
	equal(t, "holder", "/srv x", holder(parseMountinfo(mountinfo), "/srv x/a/b"))
	equal(t, "holder of the root", "/", holder(parseMountinfo(mountinfo), "/srv x2"))
	write(t, m, "/proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/dm-1   partition\t4194300\t\t10\t\t-2\n")
	equal(t, "swaps", map[string]any{"/dev/dm-1": map[string]any{"type": "partition", "size": "4194300", "used": "10", "priority": "-2"}}, must(t, m, "mount.swaps"))
	equal(t, "umount", "/nothing does not have anything mounted", must(t, m, "mount.umount", "/nothing"))
	for _, bad := range [][]any{{"relative", "/dev/x"}, {"/mnt", "-x"}, {"/mnt", "/dev/x", false, "-t"}} {
		if _, err := call(t, m, "mount.mount", bad, nil); fault.Code(err) != "bad_name" {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestMountOptions(t *testing.T) {
	for _, s := range []struct {
		opts    string
		data    string
		program bool
	}{
		{"defaults", "", false}, {"ro,noatime,size=10m", "size=10m", false}, {"bind,ro", "", false}, {"loop", "", true}, {"x-systemd.automount,nofail", "", false}, {"user", "", true},
		{`context="system_u:object_r:tmp_t:s0"`, "", true}, {"rprivate", "", true},
	} {
		_, data, program := mountOptions(s.opts)
		if data != s.data || program != s.program {
			t.Errorf("%s: %q, %v", s.opts, data, program)
		}
	}
}

func TestKmod(t *testing.T) {
	m := testMachine(t)
	write(t, m, "/proc/sys/kernel/osrelease", "6.12.0-1.el10.x86_64\n")
	write(t, m, "/lib/modules/6.12.0-1.el10.x86_64/modules.dep", "kernel/arch/x86/kvm/kvm-intel.ko.xz: kernel/virt/kvm.ko.xz\nkernel/virt/kvm.ko.xz:\n")
	write(t, m, "/lib/modules/6.12.0-1.el10.x86_64/modules.builtin", "kernel/fs/ext4.ko\n")
	lines := "kvm 1400832 1 kvm_intel, Live 0x0\nkvm_intel 400000 0 - Live 0x0\n"
	write(t, m, "/proc/modules", lines)
	equal(t, "available", []string{"ext4", "kvm", "kvm_intel"}, must(t, m, "kmod.available"))
	equal(t, "check_available", true, must(t, m, "kmod.check_available", "kvm-intel"))
	equal(t, "lsmod", []any{map[string]any{"module": "kvm", "size": "1400832", "depcount": "1", "deps": []any{"kvm_intel"}},
		map[string]any{"module": "kvm_intel", "size": "400000", "depcount": "0", "deps": []any{}}}, must(t, m, "kmod.lsmod"))
	equal(t, "is_loaded", false, must(t, m, "kmod.is_loaded", "vhost"))
	var ran []string
	m.run = func(_ context.Context, argv ...string) (output, error) {
		ran = argv
		if argv[0] == "modprobe" {
			write(t, m, "/proc/modules", lines+"vhost 1 0 - Live 0x0\nvhost_iotlb 1 1 vhost, Live 0x0\n")
		} else {
			write(t, m, "/proc/modules", lines)
		}
		return output{}, nil
	}
	equal(t, "load", []string{"vhost", "vhost_iotlb"}, must(t, m, "kmod.load", "vhost", true))
	equal(t, "argv", []string{"modprobe", "--", "vhost"}, ran)
	has(t, m, modulesFile, "vhost\n")
	equal(t, "persistent", []string{"vhost"}, must(t, m, "kmod.mod_list", true))
	equal(t, "remove", []string{"vhost", "vhost_iotlb"}, must(t, m, "kmod.remove", "vhost", true))
	has(t, m, modulesFile, "#vhost\n")
	must(t, m, "kmod.load", "vhost", true)
	has(t, m, modulesFile, "vhost\n")
	if _, err := call(t, m, "kmod.load", []any{"-r"}, nil); fault.Code(err) != "bad_name" {
		t.Errorf("an option: %v", err)
	}
}

func TestSELinux(t *testing.T) {
	m := testMachine(t)
	equal(t, "without", "Disabled", must(t, m, "selinux.getenforce"))
	if _, err := call(t, m, "selinux.list_sebool", nil, nil); fault.Code(err) != "selinux_disabled" {
		t.Errorf("booleans without SELinux: %v", err)
	}
	write(t, m, "/sys/fs/selinux/enforce", "1")
	write(t, m, "/sys/fs/selinux/booleans/httpd_x", "1 0")
	write(t, m, selinuxConfig, "# conf\nSELINUX=enforcing\nSELINUXTYPE=targeted\n")
	equal(t, "getenforce", "Enforcing", must(t, m, "selinux.getenforce"))
	equal(t, "getconfig", "Enforcing", must(t, m, "selinux.getconfig"))
	equal(t, "path", "/sys/fs/selinux", must(t, m, "selinux.selinux_fs_path"))
	equal(t, "setenforce", "Permissive", must(t, m, "selinux.setenforce", "permissive"))
	has(t, m, selinuxConfig, "# conf\nSELINUX=permissive\nSELINUXTYPE=targeted\n")
	equal(t, "a wrong mode", "Invalid mode maybe", must(t, m, "selinux.setenforce", "maybe"))
	equal(t, "getsebool", map[string]any{"State": "on", "Default": "off", "Description": ""}, must(t, m, "selinux.getsebool", "httpd_x"))
	var ran []string
	m.run = func(_ context.Context, argv ...string) (output, error) {
		ran = argv
		switch strings.Join(argv[:min(2, len(argv))], " ") {
		case "semanage boolean":
			return output{Out: "httpd_x                        (on   ,  off)  Allow httpd to x\n"}, nil
		case "semanage fcontext":
			return output{Out: "/srv(/.*)?                                         all files          system_u:object_r:var_t:s0 \n" +
				"/srv/my dir(/.*)?                                  regular file       system_u:object_r:httpd_sys_content_t:s0 \n"}, nil
		case "semanage port":
			return output{Out: "http_port_t                    tcp      80, 81, 443, 9000-9010\nhttp_port_t udp 80\n"}, nil
		case "semodule -lfull":
			return output{Out: "400 my                pp\n100 zabbix            cil disabled\n"}, nil
		case "restorecon -F":
			return output{Out: "Relabeled /srv/a b from system_u:object_r:default_t:s0 to system_u:object_r:var_t:s0\n"}, nil
		}
		return output{}, nil
	}
	equal(t, "list_sebool", map[string]any{"httpd_x": map[string]any{"State": "on", "Default": "off", "Description": "Allow httpd to x"}}, must(t, m, "selinux.list_sebool"))
	equal(t, "setsebool", true, must(t, m, "selinux.setsebool", "httpd_x", "on", true))
	equal(t, "argv", []string{"setsebool", "-P", "httpd_x=1"}, ran)
	equal(t, "fcontext", map[string]any{"filespec": "/srv/my dir(/.*)?", "filetype": "regular file", "sel_user": "system_u", "sel_role": "object_r", "sel_type": "httpd_sys_content_t", "sel_level": "s0"},
		must(t, m, "selinux.fcontext_get_policy", "/srv/my dir(/.*)?"))
	equal(t, "no fcontext", nil, must(t, m, "selinux.fcontext_get_policy", "/none"))
	must(t, m, "selinux.fcontext_add_policy", "/srv(/.*)?", "a", "httpd_sys_content_t")
	equal(t, "argv", []string{"semanage", "fcontext", "--modify", "--ftype", "a", "--type", "httpd_sys_content_t", "/srv(/.*)?"}, ran)
	equal(t, "port", map[string]any{"sel_type": "http_port_t", "protocol": "tcp", "port": "80, 81, 443, 9000-9010"}, must(t, m, "selinux.port_get_policy", "tcp/443"))
	must(t, m, "selinux.port_add_policy", "tcp/8080", "http_port_t")
	equal(t, "argv", []string{"semanage", "port", "--add", "--type", "http_port_t", "--proto", "tcp", "8080"}, ran)
	equal(t, "modules", map[string]any{"my": map[string]any{"Enabled": true, "Version": nil}, "zabbix": map[string]any{"Enabled": false, "Version": nil}}, must(t, m, "selinux.list_semod"))
	equal(t, "apply", map[string]any{"retcode": int64(0), "changes": map[string]any{"/srv/a b": map[string]any{
		"old": map[string]any{"sel_user": "system_u", "sel_role": "object_r", "sel_type": "default_t", "sel_level": "s0"},
		"new": map[string]any{"sel_user": "system_u", "sel_role": "object_r", "sel_type": "var_t", "sel_level": "s0"}}}}, must(t, m, "selinux.fcontext_apply_policy", "/srv", true))
	for _, bad := range []string{"-a", "x=1"} {
		if _, err := call(t, m, "selinux.setsebool", []any{bad, 1}, nil); fault.Code(err) != "bad_name" {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestTimezone(t *testing.T) {
	m := testMachine(t)
	equal(t, "without", "UTC", must(t, m, "timezone.get_zone"))
	prague, err := os.ReadFile("/usr/share/zoneinfo/Europe/Prague")
	if err != nil {
		t.Fatalf("%v; install tzdata to run this test", err)
	}
	write(t, m, zoneinfo+"/Europe/Prague", string(prague))
	write(t, m, zoneinfo+"/Etc/UTC", "TZif2 utc")
	equal(t, "set_zone", true, must(t, m, "timezone.set_zone", "Europe/Prague"))
	if l, err := os.Readlink(m.path("/etc/localtime")); l != "../usr/share/zoneinfo/Europe/Prague" {
		t.Error(l, err)
	}
	equal(t, "get_zone", "Europe/Prague", must(t, m, "timezone.get_zone"))
	equal(t, "code", "CET", must(t, m, "timezone.get_zonecode"))
	equal(t, "offset", "+0100", must(t, m, "timezone.get_offset"))
	equal(t, "compare", true, must(t, m, "timezone.zone_compare", "Europe/Prague"))
	equal(t, "compare", false, must(t, m, "timezone.zone_compare", "Etc/UTC"))
	equal(t, "time", "Saturday, 28. March 2026 13:00:00", must(t, m, "status.time"))
	equal(t, "system time", "01:00:00 PM", must(t, m, "system.get_system_time"))
	equal(t, "system time elsewhere", "2026-03-28 07:00:00", must(t, m, "system.get_system_date_time", "-0500"))
	for _, bad := range []string{"../../../etc/shadow", "/etc/passwd", "", "Europe/Nowhere"} {
		if _, err := call(t, m, "timezone.set_zone", []any{bad}, nil); err == nil {
			t.Errorf("the zone %q is taken", bad)
		}
	}
	write(t, m, "/etc/adjtime", "0.0 0 0.0\n0\nLOCAL\n")
	equal(t, "hwclock", "localtime", must(t, m, "timezone.get_hwclock"))
	if _, err := call(t, m, "timezone.set_hwclock", []any{"UTC"}, nil); fault.Code(err) != "dbus_missing" {
		t.Errorf("without a bus: %v", err)
	}
}

func TestLocaleAndNames(t *testing.T) {
	m := testMachine(t)
	write(t, m, "/etc/locale.conf", "# mine\nLANG=\"C.UTF-8\"\nLC_TIME=de_DE.UTF-8\n")
	equal(t, "get_locale", "C.UTF-8", must(t, m, "locale.get_locale"))
	equal(t, "set_locale", true, must(t, m, "locale.set_locale", "en_US.UTF-8"))
	has(t, m, "/etc/locale.conf", "# mine\nLANG=en_US.UTF-8\nLC_TIME=de_DE.UTF-8\n")
	m.run = func(context.Context, ...string) (output, error) { return output{Out: "C\nC.utf8\nen_US.utf8\n"}, nil }
	equal(t, "avail", true, must(t, m, "locale.avail", "en_US.UTF-8"))
	equal(t, "avail", false, must(t, m, "locale.avail", "de_DE.UTF-8"))
	equal(t, "list", []string{"C", "C.utf8", "en_US.utf8"}, must(t, m, "locale.list_avail"))
	if _, err := call(t, m, "locale.set_locale", []any{"x; rm"}, nil); fault.Code(err) != "bad_name" {
		t.Errorf("a wrong name: %v", err)
	}
	equal(t, "set name", true, must(t, m, "system.set_computer_name", "web1"))
	has(t, m, "/etc/hostname", "web1\n")
	equal(t, "no description", false, must(t, m, "system.get_computer_desc"))
	must(t, m, "system.set_computer_desc", `the "big" $one`)
	has(t, m, "/etc/machine-info", "PRETTY_HOSTNAME=\"the \\\"big\\\" \\$one\"\n")
	equal(t, "description", `the "big" $one`, must(t, m, "system.get_computer_desc"))
	for _, bad := range []string{"", "-x", "a_b", "a..b", strings.Repeat("x", 65)} {
		if _, err := call(t, m, "system.set_computer_name", []any{bad}, nil); fault.Code(err) != "bad_name" {
			t.Errorf("the name %q: %v", bad, err)
		}
	}
	write(t, m, "/proc/sys/kernel/osrelease", "6.12.0-10.el10.x86_64")
	for _, k := range []string{"6.12.0-10.el10.x86_64", "6.12.0-9.el10.x86_64", "6.12.0-99.el10.x86_64+debug"} {
		write(t, m, "/lib/modules/"+k+"/vmlinuz", "")
	}
	equal(t, "no reboot", false, must(t, m, "system.get_reboot_required"))
	write(t, m, "/lib/modules/6.12.0-11.el10.x86_64/vmlinuz", "")
	equal(t, "a newer kernel", true, must(t, m, "system.get_reboot_required"))
	equal(t, "not noted", false, must(t, m, "system.get_reboot_required_witnessed"))
	if err := os.MkdirAll(m.path("/run"), 0o755); err != nil {
		t.Fatal(err)
	}
	must(t, m, "system.set_reboot_required_witnessed")
	equal(t, "noted", true, must(t, m, "system.get_reboot_required_witnessed"))
}

// What /proc of the machine that runs the test says is read, and agrees with Go's own view.
func TestThisMachine(t *testing.T) {
	m := newMachine()
	if v := must(t, m, "status.loadavg").(map[string]any); len(v) != 3 {
		t.Errorf("loadavg: %v", v)
	}
	if n := must(t, m, "ps.num_cpus").(int64); n < int64(runtime.NumCPU()) {
		t.Errorf("%d processors, Go may use %d", n, runtime.NumCPU())
	}
	if v := must(t, m, "status.uptime").(map[string]any); v["seconds"].(int64) <= 0 {
		t.Errorf("uptime: %v", v)
	}
	if v := must(t, m, "status.meminfo").(map[string]any)["MemTotal"].(map[string]any); v["unit"] != "kB" {
		t.Errorf("meminfo: %v", v)
	}
	me := os.Getpid()
	if l := must(t, m, "ps.get_pid_list").([]int); !slices.Contains(l, me) {
		t.Errorf("%d is not in %v", me, l)
	}
	info := must(t, m, "ps.proc_info", me).(map[string]any)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if info["exe"] != exe || info["ppid"] != os.Getppid() || info["uids"].(map[string]any)["real"] != os.Getuid() {
		t.Errorf("proc_info: %v", info)
	}
	if at := info["create_time"].(float64); at < float64(time.Now().Add(-time.Hour).Unix()) || at > float64(time.Now().Unix()+2) {
		t.Errorf("started at %v", time.Unix(int64(at), 0))
	}
	if _, err := call(t, m, "ps.proc_info", []any{me}, map[string]any{"attrs": []any{"shoe_size"}}); fault.Code(err) != "bad_attribute" {
		t.Errorf("an unknown attribute: %v", err)
	}
	top := must(t, m, "ps.top", 3, 0.1).([]any)
	if len(top) == 0 || top[0].(map[string]any)["cmd"] == "" {
		t.Errorf("top: %v", top)
	}
	if p := must(t, m, "ps.cpu_percent", 0.05).(float64); p < 0 || p > 100 {
		t.Errorf("%v %% of the processors", p)
	}
	vm := must(t, m, "ps.virtual_memory").(map[string]any)
	if vm["total"] != must(t, m, "ps.total_physical_memory") || vm["available"].(int64) <= 0 {
		t.Errorf("memory: %v", vm)
	}
	use := must(t, m, "disk.usage").(map[string]any)
	if len(use) == 0 {
		t.Error("no file system has a size")
	}
	for dir, r := range use {
		row := r.(map[string]any)
		if !strings.HasSuffix(row["capacity"].(string), "%") && row["capacity"] != "-" || number(row["1K-blocks"].(string)) <= 0 {
			t.Errorf("%s: %v", dir, row)
		}
	}
	if v := must(t, m, "disk.usage", "/").(map[string]any); len(v) != 1 || v["/"] == nil {
		t.Errorf("disk.usage /: %v", v)
	}
	if v, ok := must(t, m, "disk.percent", "/").(string); !ok || !strings.HasSuffix(v, "%") {
		t.Errorf("disk.percent /: %v", v)
	}
	for _, fn := range []string{"status.all_status", "status.cpustats", "status.cpuinfo", "status.diskstats", "status.vmstats", "status.netstats", "status.netdev", "status.procs", "status.w",
		"ps.disk_partitions", "ps.network_io_counters", "ps.boot_time", "ps.get_users", "ps.swap_memory", "ps.cpu_times", "disk.inodeusage", "mount.active", "mount.swaps", "kmod.lsmod", "selinux.getenforce",
		"system.get_computer_name", "system.get_system_date_time", "timezone.get_offset", "status.version", "status.nproc", "sysctl.show"} {
		v := must(t, m, fn)
		if s, err := marshal(v); err != nil || s == "null" {
			t.Errorf("%s: %s, %v", fn, s, err)
		}
	}
	equal(t, "hostname", must(t, m, "sysctl.get", "kernel.hostname"), must(t, m, "system.get_computer_name"))
}

func TestProcessesAreFoundAndEnded(t *testing.T) {
	m := newMachine()
	o, err := m.run(t.Context(), "sh", "-c", "sleep 60.125 >/dev/null 2>&1 & echo $!")
	if err != nil {
		t.Fatal(err)
	}
	pid := number(o.Out)
	v, err := call(t, m, "ps.pgrep", []any{"sleep 60.125"}, map[string]any{"full": true})
	if l, ok := v.([]int); err != nil || !ok || !slices.Contains(l, int(pid)) {
		t.Errorf("pgrep: %v, %v", v, err)
	}
	if s := must(t, m, "status.pid", "sleep 60.125").(string); !strings.Contains(s, module.Text(pid)) {
		t.Errorf("status.pid: %q", s)
	}
	if v, err := callIn(t, m, true, "ps.pkill", []any{"sleep 60.125"}, map[string]any{"full": true}); err != nil || v == nil {
		t.Errorf("test mode: %v, %v", v, err)
	}
	equal(t, "still there", true, must(t, m, "ps.kill_pid", pid, 0))
	equal(t, "pkill", map[string]any{"killed": []int{int(pid)}}, func() any {
		v, err := call(t, m, "ps.pkill", []any{"sleep 60.125"}, map[string]any{"full": true, "signal": 9})
		if err != nil {
			t.Error(err)
		}
		return v
	}())
	equal(t, "nothing fits", nil, must(t, m, "ps.pgrep", "no such process, surely"))
	if _, err := call(t, m, "ps.pkill", []any{""}, nil); fault.Code(err) != "bad_pattern" {
		t.Errorf("an empty pattern: %v", err)
	}
	if _, err := call(t, m, "ps.kill_pid", []any{-1}, nil); fault.Code(err) != "bad_pid" {
		t.Errorf("every process: %v", err)
	}
}

func TestProgramsEndWithTheCall(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := program(ctx, "sh", "-c", "sleep 61.5 & sleep 61.5"); err == nil || time.Since(start) > 10*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	if _, err := program(t.Context(), "no-such-program-here"); fault.Code(err) != "program_missing" {
		t.Errorf("a program that is not there: %v", err)
	}
}

func TestStatNamesMayHoldAnything(t *testing.T) {
	line := "42 (a) b) (c) S 1 42 42 34816 -1 4194304 1 0 0 0 250 50 0 0 20 0 3 0 1000 8192 5 18446744073709551615"
	p, ok := parseStat(line)
	if !ok || p.PID != 42 || p.Name != "a) b) (c" || p.State != "sleeping" || p.UserTime != 2.5 || p.Threads != 3 || p.TTY != 34816 {
		t.Errorf("%+v, %v", p, ok)
	}
	equal(t, "terminal", "/dev/pts/0", terminal(34816))
}

func TestStatus(t *testing.T) {
	m := testMachine(t)
	write(t, m, "/proc/net/dev", "Inter-| Receive | Transmit\n face |bytes\n  eth0: 100 2 0 1 0 0 0 0 200 3 0 0 0 0 0 0\n")
	row := must(t, m, "status.netdev").(map[string]any)["eth0"].(map[string]any)
	if row["rx_bytes"] != int64(100) || row["tx_packets"] != int64(3) || row["rx_drop"] != int64(1) || row["iface"] != "eth0" {
		t.Errorf("netdev: %v", row)
	}
	write(t, m, "/proc/net/netstat", "TcpExt: A B\nTcpExt: 1 2\nIpExt: C\nIpExt: 3\n")
	equal(t, "netstats", any(map[string]any{"TcpExt": map[string]any{"A": int64(1), "B": int64(2)}, "IpExt": map[string]any{"C": int64(3)}}), must(t, m, "status.netstats"))
	write(t, m, "/proc/uptime", "200000.52 1.0\n")
	write(t, m, "/run/systemd/sessions/1", "USER=ann\nCLASS=user\nTTY=pts/0\nREMOTE_HOST=10.0.0.1\nLEADER=5\nREALTIME=1700000000000000\n")
	write(t, m, "/run/systemd/sessions/c1", "USER=gdm\nCLASS=greeter\n")
	equal(t, "uptime", any(map[string]any{"seconds": int64(200000), "since_iso": "2026-03-26T04:26:40.000000", "since_t": int64(1774499200), "days": int64(2), "time": "7:33", "users": int64(1)}), must(t, m, "status.uptime"))
	equal(t, "users", any([]any{map[string]any{"name": "ann", "terminal": "pts/0", "started": 1700000000.0, "host": "10.0.0.1", "pid": 5}}), must(t, m, "ps.get_users"))
}

func TestBlkid(t *testing.T) {
	m := testMachine(t)
	var ran []string
	m.run = func(_ context.Context, argv ...string) (output, error) {
		ran = argv
		return output{Out: "DEVNAME=/dev/sda1\nUUID=1-2\nLABEL=my\\ disk\nTYPE=xfs\n\nDEVNAME=/dev/sdb\nTYPE=LVM2_member\n"}, nil
	}
	equal(t, "blkid", any(map[string]any{"/dev/sda1": map[string]any{"UUID": "1-2", "LABEL": "my disk", "TYPE": "xfs"}, "/dev/sdb": map[string]any{"TYPE": "LVM2_member"}}), must(t, m, "disk.blkid"))
	must(t, m, "disk.blkid", "/dev/sda1")
	equal(t, "argv", []string{"blkid", "-o", "export", "/dev/sda1"}, ran)
	if _, err := call(t, m, "disk.blkid", []any{"-g"}, nil); fault.Code(err) != "bad_name" {
		t.Errorf("an option: %v", err)
	}
}

func TestLVM(t *testing.T) {
	m := testMachine(t)
	var ran []string
	m.run = func(_ context.Context, argv ...string) (output, error) {
		ran = append(ran, strings.Join(argv, " "))
		switch argv[1] {
		case "version":
			return output{Out: "  LVM version:     2.03.28(2) (2024-11-04)\n  Driver version:  4.48.0\n"}, nil
		case "pvs":
			if slices.Contains(argv, "/dev/new") {
				return output{Code: 5, Err: "Failed to find physical volume"}, nil
			}
			return output{Out: `{"report":[{"pv":[{"pv_name":"/dev/sdb","vg_name":"data","pv_size":"2097152","pv_allocatable":"allocatable","pv_pe_count":"255","pv_pe_alloc_count":"5","pv_uuid":"u","vg_extent_size":"8192"}]}]}`}, nil
		case "vgs":
			return output{Out: `{"report":[{"vg":[{"vg_name":"data","vg_size":"2088960","vg_extent_size":"8192","vg_extent_count":"255","vg_free_count":"250","vg_uuid":"u"}]}]}`}, nil
		case "lvs":
			return output{Out: `{"report":[{"lv":[{"lv_full_name":"data/srv","lv_path":"/dev/data/srv","vg_name":"data","lv_size":"40960","vg_extent_size":"8192"},{"lv_full_name":"data/pool","lv_path":"","vg_name":"data","lv_size":"8192","vg_extent_size":"8192"}]}]}`}, nil
		}
		return output{}, nil
	}
	equal(t, "version", any("2.03.28(2) (2024-11-04)"), must(t, m, "lvm.version"))
	pv := must(t, m, "lvm.pvdisplay").(map[string]any)["/dev/sdb"].(map[string]any)
	if pv["Physical Volume Size (kB)"] != "1048576" || pv["Free Physical Extents"] != "250" || pv["Volume Group Name"] != "data" {
		t.Errorf("pvdisplay: %v", pv)
	}
	vg := must(t, m, "lvm.vgdisplay", "data").(map[string]any)["data"].(map[string]any)
	if vg["Allocated Physical Extents"] != "5" {
		t.Errorf("vgdisplay: %v", vg)
	}
	lv := must(t, m, "lvm.lvdisplay").(map[string]any)
	if lv["/dev/data/srv"].(map[string]any)["Current Logical Extents Associated"] != "5" || lv["data/pool"] == nil {
		t.Errorf("lvdisplay: %v", lv)
	}
	ran = nil
	equal(t, "pvcreate", any(true), must(t, m, "lvm.pvcreate", "/dev/sdb,/dev/new"))
	equal(t, "only the new one", "lvm pvcreate -y -f /dev/new", ran[len(ran)-1])
	ran = nil
	if v := must(t, m, "lvm.lvcreate", "srv", "data", "10G").(map[string]any); v["/dev/data/srv"] == nil {
		t.Errorf("lvcreate: %v", v)
	}
	equal(t, "argv", "lvm lvcreate -y -L 10G -n srv data", ran[0])
	ran = nil
	if v, err := callIn(t, m, true, "lvm.vgremove", []any{"data"}, nil); err != nil || v == nil || ran != nil {
		t.Errorf("test mode: %v, %v, ran %v", v, err, ran)
	}
	for _, bad := range []struct {
		fn   string
		args []any
	}{{"lvm.vgremove", []any{"-f"}}, {"lvm.pvcreate", []any{"--x"}}, {"lvm.lvcreate", []any{"-n", "data", "1G"}}, {"lvm.lvremove", []any{"x", "-y"}}} {
		if _, err := call(t, m, bad.fn, bad.args, nil); fault.Code(err) != "bad_name" {
			t.Errorf("%s %v: %v", bad.fn, bad.args, err)
		}
	}
}

func dmiTable() []byte {
	b := []byte{1, 0x1b, 0x00, 0x01, 1, 2, 0, 3}
	b = append(b, 0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 6, 0, 0)
	b = append(b, "ACME\x00Rocket\x00To Be Filled By O.E.M.\x00\x00"...)
	p := make([]byte, 0x30)
	p[0], p[1], p[2] = 4, 0x30, 4
	p[4], p[7], p[0x10], p[0x18], p[0x23], p[0x25] = 1, 2, 3, 0x41, 0xff, 8
	p[0x2a], p[0x2b] = 0x2c, 0x01
	b = append(b, p...)
	b = append(b, "CPU0\x00Intel\x00Xeon\x00\x00"...)
	mem := make([]byte, 0x28)
	mem[0], mem[1], mem[2] = 17, 0x28, 5
	mem[12], mem[13] = 0xff, 0x7f
	mem[28], mem[29] = 0x00, 0x80 // 32768 MiB
	b = append(b, mem...)
	b = append(b, 0, 0)
	return append(b, 127, 4, 9, 0, 0, 0)
}

func TestSMBIOS(t *testing.T) {
	m := testMachine(t)
	if _, err := call(t, m, "smbios.records", nil, nil); fault.Code(err) != "dmi_missing" {
		t.Errorf("without tables: %v", err)
	}
	write(t, m, "/sys/firmware/dmi/tables/DMI", string(dmiTable()))
	write(t, m, "/sys/class/dmi/id/product_name", "Rocket\n")
	write(t, m, "/sys/class/dmi/id/product_serial", "To Be Filled By O.E.M.\n")
	equal(t, "get", any("Rocket"), must(t, m, "smbios.get", "system-product-name"))
	equal(t, "get nothing", nil, must(t, m, "smbios.get", "system-serial-number"))
	equal(t, "get a processor", any("Xeon"), must(t, m, "smbios.get", "processor-version"))
	one := must(t, m, "smbios.records", 1).([]any)
	equal(t, "system", any([]any{map[string]any{"handle": "0x0100", "type": int64(1), "description": "System Information", "desc": "System Information",
		"data": map[string]any{"manufacturer": "ACME", "product_name": "Rocket", "uuid": "00112233-4455-6677-8899-aabbccddeeff"}}}), any(one))
	cpu := must(t, m, "smbios.records", 4).([]any)[0].(map[string]any)["data"].(map[string]any)
	if cpu["core_count"] != "300" || cpu["thread_count"] != "8" || cpu["status"] != "Populated" {
		t.Errorf("processor: %v", cpu)
	}
	equal(t, "memory", any("32 GB"), must(t, m, "smbios.records", 17, "size").([]any)[0].(map[string]any)["data"].(map[string]any)["size"])
	if _, err := call(t, m, "smbios.get", []any{"shoe-size"}, nil); fault.Code(err) != "bad_keyword" {
		t.Errorf("an unknown keyword: %v", err)
	}
}
