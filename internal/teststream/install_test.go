package teststream

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"drover/internal/rpm"
)

// host runs dnf or rpm as on any host: with a private HOME that tells rpm where a root's
// database is.
func host(t *testing.T, args ...string) string {
	t.Helper()
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, ".rpmmacros"), []byte("%_dbpath /var/lib/rpm\n%__gpg /usr/bin/gpg\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), args[0], args[1:]...)
	c.Env = append(os.Environ(), "HOME="+home, "LC_ALL=C.UTF-8")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// newRoot is an empty root with the devices that scripts need.
func newRoot(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	if err := Devices(root); err != nil {
		t.Fatal(err)
	}
	return root
}

// install puts packages into root with dnf and reports all that it or a script complains of.
func install(t *testing.T, dir, root string, args ...string) string {
	t.Helper()
	out := host(t, slices.Concat([]string{"dnf", "-y", "--installroot=" + root, "--releasever=9", "--setopt=reposdir=/nonexistent", "--setopt=varsdir=/nonexistent", "--setopt=cachedir=" + t.TempDir(),
		"--setopt=module_platform_id=platform:el9", "--setopt=install_weak_deps=0", "--setopt=pluginpath=/nonexistent", "--nogpgcheck", "--repofrompath=stream,file://" + dir}, args)...)
	for l := range strings.Lines(out) {
		// The group shadow is not known yet while setup itself is unpacked; it puts that right.
		if regexp.MustCompile(`(?i)warning|error|fail|setlocale|cannot|no such`).MatchString(l) && !strings.Contains(l, "group shadow does not exist") && !strings.Contains(l, "libgpg-error0") {
			t.Errorf("dnf: %s", l)
		}
	}
	return out
}

// in runs a command in a root.
func in(t *testing.T, root string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), args[0], args[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	c.Dir, c.Env = "/", []string{"PATH=/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8", "HOME=/root"}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Errorf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestEverything(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "stream")
	res := mustMake(t, Config{Dir: dir, Set: All})
	if res.Packages < 250 {
		t.Fatalf("%d packages", res.Packages)
	}
	rpms, err := filepath.Glob(filepath.Join(dir, "Packages", "*.rpm"))
	if err != nil || len(rpms) != res.Packages {
		t.Fatalf("%d packages in the directory, %d made, %v", len(rpms), res.Packages, err)
	}

	t.Run("rpmkeys", func(t *testing.T) {
		clean := 0
		for l := range strings.Lines(host(t, append([]string{"rpmkeys", "-K"}, rpms...)...)) {
			if strings.HasSuffix(l, ": digests OK\n") {
				clean++
			}
		}
		if clean != len(rpms) {
			t.Errorf("%d of %d are clean", clean, len(rpms))
		}
	})

	// dnf itself finds every dependency of every package met, and rpm no two packages that
	// hold the same file.
	t.Run("closure", func(t *testing.T) {
		out := install(t, dir, newRoot(t), "--setopt=tsflags=test", "install", "*")
		if want := fmt.Sprintf("Install  %d Packages", len(rpms)); !strings.Contains(out, want) || !strings.Contains(out, "Transaction test succeeded") {
			t.Errorf("no %q in: %s", want, out)
		}
	})

	t.Run("relations", func(t *testing.T) { relations(t, rpms) })

	t.Run("build root", func(t *testing.T) {
		root := newRoot(t)
		// What Koji's build group asks for, by CentOS's names.
		install(t, dir, root, append([]string{"install"}, strings.Fields(`bash bzip2 coreutils cpio diffutils findutils gawk glibc-minimal-langpack grep gzip info make patch
			redhat-rpm-config rpm-build sed shadow-utils system-release tar unzip util-linux which xz gcc gcc-c++`)...)...)
		if v := host(t, "rpm", "--root="+root, "-Va"); v != "" {
			t.Errorf("rpm -Va: %s", v)
		}
		build(t, dir, root)
		if out := install(t, dir, root, "group", "install", "build"); !strings.Contains(out, "Build root") {
			t.Errorf("no group: %s", out)
		}
	})

	t.Run("machine", func(t *testing.T) {
		root := newRoot(t)
		install(t, dir, root, "install", "@boot")
		if v := host(t, "rpm", "--root="+root, "-Va"); v != "" {
			t.Errorf("rpm -Va: %s", v)
		}
		machine(t, root)
		if os.Getenv("DROVER_LONG") != "" {
			boot(t, root)
		}
	})
}

// relations holds what dpkg says of every versioned relation within the set against what the
// RPMs say.
func relations(t *testing.T, rpms []string) {
	provided := map[string][]rpm.Dep{}
	for _, file := range rpms {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		p, err := rpm.Read(f, info.Size())
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range p.Header.DepList(rpm.Provides) {
			provided[d.Name] = append(provided[d.Name], d)
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	k, err := openCache(t.Context(), filepath.Join(cache, "drover", "teststream"), &voice{say: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	debs, err := k.apt.plan(t.Context(), All)
	if err != nil {
		t.Fatal(err)
	}
	version := map[string]string{}
	var asked []relation
	var ask strings.Builder
	out, err := k.apt.run(t.Context(), "apt-cache", "dumpavail")
	if err != nil {
		t.Fatal(err)
	}
	wanted := map[string]bool{}
	for _, d := range debs {
		wanted[d.sum] = true
	}
	var here []map[string]string
	for p := range strings.SplitSeq(out, "\n\n") {
		if c := parseControl([]byte(p)); wanted[c["SHA256"]] {
			version[c["Package"]] = c["Version"]
			here = append(here, c)
		}
	}
	if len(here) != len(debs) {
		t.Fatalf("apt describes %d of %d packages", len(here), len(debs))
	}
	for _, c := range here {
		for _, field := range []string{"Pre-Depends", "Depends", "Breaks", "Conflicts", "Recommends", "Suggests"} {
			for _, cl := range parseRelations(c[field]) {
				for _, r := range cl {
					if r.ver == "" || r.text() == "" || dropped(r.name) || version[r.name] == "" || slices.Contains(asked, r) {
						continue
					}
					asked = append(asked, r)
					op := map[string]string{"<<": "lt", "<=": "le", "=": "eq", ">=": "ge", ">>": "gt"}[r.op]
					fmt.Fprintf(&ask, "dpkg --compare-versions %s %s %s; echo $?\n", version[r.name], op, r.ver)
				}
			}
		}
	}
	c := exec.CommandContext(t.Context(), "sh")
	c.Stdin = strings.NewReader(ask.String())
	answer, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	said := strings.Fields(string(answer))
	if len(asked) < 300 || len(said) != len(asked) {
		t.Fatalf("%d relations, %d answers", len(asked), len(said))
	}
	for i, r := range asked {
		_, rest, _ := strings.Cut(r.text(), " ")
		op, ver, _ := strings.Cut(rest, " ")
		want := rpm.Dep{Name: r.name, EVR: ver, Flags: map[string]uint32{"<": rpm.SenseLess, "<=": rpm.SenseLess | rpm.SenseEqual, "=": rpm.SenseEqual, ">=": rpm.SenseGreater | rpm.SenseEqual, ">": rpm.SenseGreater}[op]}
		met := slices.ContainsFunc(provided[r.name], func(p rpm.Dep) bool { return rpm.Satisfies(p, want) })
		if met != (said[i] == "0") {
			t.Errorf("%s (%s %s) with %s: %v, as RPM %q with %v", r.name, r.op, r.ver, version[r.name], said[i] == "0", r.text(), provided[r.name])
		}
	}
}

const hello = `Name: hello
Version: 1
Release: 1%{?dist}
Summary: A library and its user
License: MIT
BuildRequires: gcc, make
%description
It says hello.
%package libs
Summary: The library
%description libs
It says hello.
%prep
%setup -cT
%build
cat >h.c <<'E'
#include <stdio.h>
void hello(void) { puts("hello from /usr/lib64"); }
E
echo 'void hello(void); int main(void) { hello(); return 0; }' >m.c
gcc %{optflags} -shared -fPIC -Wl,-soname,libhello.so.1 %{?build_ldflags} -o libhello.so.1 h.c
gcc %{optflags} %{?build_ldflags} -o hello m.c libhello.so.1
%install
install -D hello %{buildroot}%{_bindir}/hello
install -D libhello.so.1 %{buildroot}%{_libdir}/libhello.so.1
%files
%{_bindir}/hello
%files libs
%{_libdir}/libhello.so.1
%changelog
* Mon Nov 02 2026 A Packager <packager@example.org> - 1-1
- First
`

// build builds a package as a user without rights in the root and installs it there with dnf.
func build(t *testing.T, dir, root string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(root, "tmp", "hello.spec"), []byte(hello), 0o644); err != nil {
		t.Fatal(err)
	}
	out := in(t, root, "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "bash", "-c", "export HOME=/tmp/home; mkdir -p $HOME; rpmbuild -ba /tmp/hello.spec 2>&1")
	if strings.Contains(out, "setlocale") || strings.Contains(out, "warning:") {
		t.Errorf("rpmbuild: %s", out)
	}
	built, err := filepath.Glob(filepath.Join(root, "tmp/home/rpmbuild/RPMS/x86_64/*.rpm"))
	if err != nil || len(built) != 5 {
		t.Fatalf("built %v, %v: %s", built, err, out)
	}
	for _, want := range []string{" libhello.so.1()(64bit)\nRequires(rpmlib)", "Requires: libc.so.6()(64bit)", "Wrote: /tmp/home/rpmbuild/RPMS/x86_64/hello-debuginfo-1-1.el9.x86_64.rpm", "hello-debugsource"} {
		if !strings.Contains(out, want) {
			t.Errorf("rpmbuild does not say %q: %s", want, out)
		}
	}
	install(t, dir, root, append([]string{"install"}, built...)...)
	if got := in(t, root, "/usr/bin/hello"); got != "hello from /usr/lib64\n" {
		t.Errorf("hello: %q", got)
	}
	if v := host(t, "rpm", "--root="+root, "-Va"); v != "" {
		t.Errorf("rpm -Va: %s", v)
	}
}

// machine looks for what Debian's maintainer scripts would have done.
func machine(t *testing.T, root string) {
	t.Helper()
	for path, want := range map[string]string{
		"/usr/bin/ssh-agent":                          "2755 root _ssh",
		"/usr/lib/dbus-1.0/dbus-daemon-launch-helper": "4754 root messagebus",
		"/usr/bin/sudo":                               "4755 root root",
		"/etc/sudoers":                                "440 root root",
		"/etc/shadow":                                 "640 root shadow",
		"/etc/gshadow":                                "640 root shadow",
		"/usr/sbin/unix_chkpwd":                       "2755 root shadow",
		"/etc/chrony/chrony.keys":                     "640 root _chrony",
		"/var/lib/chrony":                             "750 _chrony _chrony",
		"/tmp":                                        "1777 root root",
		"/root":                                       "550 root root",
	} {
		if got := strings.TrimSpace(in(t, root, "stat", "-c", "%a %U %G", path)); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if got := in(t, root, "getcap", "/usr/bin/ping"); got != "/usr/bin/ping cap_net_raw=ep\n" {
		t.Errorf("getcap: %q", got)
	}
	for _, unit := range []string{"ssh", "sshd", "sshd-keygen", "chrony", "systemd-networkd", "getty@tty1"} {
		if got := strings.TrimSpace(in(t, root, "systemctl", "is-enabled", unit)); got != "enabled" && got != "alias" {
			t.Errorf("%s is %s", unit, got)
		}
	}
	for path, want := range map[string]string{"/etc/machine-id": "uninitialized\n", "/etc/localtime": "TZif", "/etc/ssl/certs/ca-certificates.crt": "-----BEGIN CERTIFICATE-----", "/etc/chrony/chrony.conf": "#",
		"/etc/pam.d/common-auth": "auth ", "/usr/bin/awk": "\x7fELF", "/bin/sh": "\x7fELF", "/usr/bin/vi": "\x7fELF"} {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil || !strings.HasPrefix(string(b), want) {
			t.Errorf("%s: %.40q, %v", path, b, err)
		}
	}
	if deps, err := filepath.Glob(filepath.Join(root, "usr/lib/modules/*/modules.dep.bin")); err != nil || len(deps) != 1 {
		t.Errorf("no index of modules: %v, %v", deps, err)
	}
}

// boot boots the root in qemu without a hypervisor, straight from its kernel, and asks it
// how it is.
func boot(t *testing.T, root string) {
	kernels, err := filepath.Glob(filepath.Join(root, "usr/lib/modules/*/vmlinuz"))
	if err != nil || len(kernels) != 1 {
		t.Fatalf("kernels: %v, %v", kernels, err)
	}
	in(t, root, "passwd", "-d", "root")
	for file, text := range map[string]string{"etc/hostname": "machine\n", "etc/fstab": "/dev/nvme0n1 / ext4 defaults 0 1\n"} {
		if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/usr/lib/systemd/system/multi-user.target", filepath.Join(root, "etc/systemd/system/default.target")); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "image")
	if out, err := exec.CommandContext(t.Context(), "mke2fs", "-q", "-t", "ext4", "-d", root, "-E", "root_owner=0:0", image, "1200M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	ctx, stop := context.WithTimeout(t.Context(), 15*time.Minute)
	defer stop()
	c := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg,tb-size=512", "-cpu", "Nehalem", "-m", "1024", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", kernels[0], "-append", "root=/dev/nvme0n1 rw console=ttyS0 systemd.show_status=0 quiet", "-drive", "file="+image+",if=none,id=d,format=raw", "-device", "nvme,drive=d,serial=1",
		"-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n")
	keys, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	screen, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stop(); _ = c.Wait() }()
	r := bufio.NewReader(screen)
	var log strings.Builder
	wait := func(text string) string {
		t.Helper()
		from := log.Len()
		for !strings.Contains(log.String()[from:], text) {
			b, err := r.ReadByte()
			if err != nil {
				t.Fatalf("no %q: %v\n%s", text, err, log.String())
			}
			log.WriteByte(b)
		}
		return log.String()[from:]
	}
	say := func(line string) {
		if _, err := io.WriteString(keys, line+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	wait("machine login:")
	t.Logf("login prompt after %s", time.Since(begin).Round(time.Second))
	say("root")
	wait("# ")
	// What is typed is echoed: the words that are waited for are put together by the shell.
	ask := func(command string) string {
		t.Helper()
		say(command + "; echo end''-of-$?")
		got := wait("end-of-0")
		_, got, _ = strings.Cut(got, "\n") // the echo
		wait("# ")
		return got
	}
	if got := ask("systemctl is-system-running --wait"); !strings.Contains(got, "running") {
		t.Errorf("systemctl is-system-running: %s\n%s", got, ask("systemctl --failed --no-pager --plain; journalctl -b -p err --no-pager"))
	}
	ask("test -z \"$(systemctl --failed --no-legend --plain --no-pager)\"")
	ask("systemctl is-active ssh chrony dbus systemd-networkd && ss -ltn | grep -q :22 && networkctl --no-pager | grep -q routable && ping -c1 10.0.2.2")
	ask("test -z \"$(rpm -Va | grep -v -e /etc/shadow -e /etc/fstab)\"")
	ask("dnf --version")
	say("poweroff")
	if rest, err := io.ReadAll(r); err != nil || c.Wait() != nil {
		t.Errorf("poweroff: %v: %s", err, rest)
	}
	t.Logf("up and down in %s", time.Since(begin).Round(time.Second))
}
