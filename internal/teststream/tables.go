package teststream

import (
	"regexp"
	"strings"
)

// dropped tells which Debian packages are not made, because RPM or one of the packages made
// by hand does their work. A dependency clause that names one is dropped with it.
func dropped(name string) bool {
	switch name {
	case "base-files", "base-passwd", "debconf", "dpkg", "install-info", "ucf", "adduser", "init-system-helpers", "libdebconfclient0", "usr-is-merged", "usrmerge",
		"lsb-base", "sysvinit-utils", "mawk", "dash", "sensible-utils", "runit-helper", "apt", "debconf-2.0", "cdebconf", "netbase", "media-types", "default-logind", "logind",
		"initramfs-tools", "linux-initramfs-tool", "default-mta", "mail-transport-agent":
		return true
	}
	return false
}

// centos gives the names by which CentOS's specs and install lists ask for Debian's packages.
func centos(name string) []string {
	switch name {
	case "libc6":
		return []string{"glibc", "glibc-common", "glibc-minimal-langpack", "glibc-langpack-en"}
	case "libc6-dev":
		return []string{"glibc-devel", "glibc-headers"}
	case "g++":
		return []string{"gcc-c++"}
	case "xz-utils":
		return []string{"xz"}
	case "passwd":
		return []string{"shadow-utils"}
	case "rpm":
		return []string{"rpm-build"}
	case "pkgconf":
		return []string{"pkgconf-pkg-config", "pkgconfig"}
	case "debianutils":
		return []string{"which"}
	case "zlib1g":
		return []string{"zlib"}
	case "libssl3":
		return []string{"openssl-libs"}
	case "udev":
		return []string{"systemd-udev"}
	case "iproute2":
		return []string{"iproute"}
	case "procps":
		return []string{"procps-ng"}
	case "createrepo-c":
		return []string{"createrepo_c"}
	case "perl":
		return []string{"perl-interpreter"}
	case "libstdc++6":
		return []string{"libstdc++"}
	case "gnupg":
		return []string{"gnupg2"}
	case "kmod":
		return []string{"kmod-libs"}
	}
	return nil
}

// renamed gives the name of CentOS's package where one under Debian's name would not do.
func renamed(name string) string {
	if name == "linux-image-cloud-amd64" {
		return "kernel"
	}
	if regexp.MustCompile(`^linux-image-[0-9].*-cloud-amd64$`).MatchString(name) {
		return "kernel-core"
	}
	return name
}

// requires is what Debian recommends or takes for granted, and CentOS's package of that name
// needs or holds.
func requires(name string) []string {
	switch name {
	case "gcc":
		return []string{"glibc-devel"}
	case "libc6":
		return []string{"libc-bin"} // holds the locale C.UTF-8
	case "dracut":
		return []string{"cpio", "kmod", "gzip"}
	}
	return nil
}

// prereqs is what the scripts of a package run.
func prereqs(name string) []string {
	if name == "ca-certificates" {
		return []string{"openssl", "debianutils", "sed", "findutils", "coreutils"}
	}
	return nil
}

// links is what Debian's update-alternatives makes, as static symlinks of a package.
func links(name string) map[string]string {
	switch name {
	case "gawk":
		return map[string]string{"/usr/bin/awk": "gawk", "/usr/bin/nawk": "gawk"}
	case "bash":
		return map[string]string{"/usr/bin/sh": "bash"}
	case "gcc":
		return map[string]string{"/usr/bin/cc": "gcc"}
	case "g++":
		return map[string]string{"/usr/bin/c++": "g++"}
	case "debianutils":
		return map[string]string{"/usr/bin/which": "which.debianutils"}
	case "tar":
		return map[string]string{"/usr/sbin/rmt": "rmt-tar"}
	case "cpp":
		return map[string]string{"/usr/lib/cpp": "../bin/cpp"}
	case "less":
		return map[string]string{"/usr/bin/pager": "less"}
	case "pinentry-curses":
		return map[string]string{"/usr/bin/pinentry": "pinentry-curses"}
	case "procps":
		return map[string]string{"/usr/bin/w": "w.procps"}
	case "tzdata":
		return map[string]string{"/etc/localtime": "../usr/share/zoneinfo/Etc/UTC"}
	case "vim-tiny":
		return map[string]string{"/usr/bin/vi": "vim.tiny", "/usr/bin/view": "vim.tiny", "/usr/bin/ex": "vim.tiny", "/usr/bin/editor": "vim.tiny"}
	case "xz-utils":
		return map[string]string{"/usr/bin/lzma": "xz", "/usr/bin/unlzma": "unxz", "/usr/bin/lzcat": "xzcat"}
	case "openssh-server":
		return map[string]string{"/usr/lib/systemd/system/sshd.service": "ssh.service"}
	}
	return nil
}

// copies is the configuration that Debian's ucf copies from a package's own examples.
func copies(name string) map[string]string {
	switch name {
	case "chrony":
		return map[string]string{"/etc/chrony/chrony.conf": "/usr/share/chrony/chrony.conf", "/etc/chrony/chrony.keys": "/usr/share/chrony/chrony.keys"}
	case "readline-common":
		return map[string]string{"/etc/inputrc": "/usr/share/readline/inputrc"}
	}
	return nil
}

// right is the owner and mode of a file where the Debian package does not hold them.
type right struct {
	mode        uint32
	user, group string
	caps        string
	dir         bool
}

// rights is what Debian's scripts do with dpkg-statoverride and setcap.
func rights(name string) map[string]right {
	switch name {
	case "openssh-client":
		return map[string]right{"/usr/bin/ssh-agent": {mode: 0o2755, group: "_ssh"}}
	case "dbus":
		return map[string]right{"/usr/lib/dbus-1.0/dbus-daemon-launch-helper": {mode: 0o4754, group: "messagebus"}}
	case "iputils-ping":
		return map[string]right{"/usr/bin/ping": {mode: 0o755, caps: "cap_net_raw=ep"}}
	case "sudo":
		return map[string]right{"/etc/sudoers": {mode: 0o440}}
	case "chrony":
		return map[string]right{"/etc/chrony/chrony.keys": {mode: 0o640, group: "_chrony"},
			"/var/lib/chrony": {mode: 0o750, user: "_chrony", group: "_chrony", dir: true}, "/var/log/chrony": {mode: 0o750, user: "_chrony", group: "_chrony", dir: true}}
	}
	return nil
}

// extra is files that Debian's maintainer scripts make, or that the loader and rpm need here.
func extra(name string) map[string]string {
	switch name {
	case "libc-bin":
		return map[string]string{"/etc/ld.so.conf.d/00-lib64.conf": "/usr/lib64\n"}
	case "rpm-common":
		return map[string]string{"/usr/lib/rpm/macros.d/macros.teststream": "%_dbpath /var/lib/rpm\n%__gpg /usr/bin/gpg\n"}
	case "libpam-runtime":
		return map[string]string{
			"/etc/pam.d/common-auth":                   "auth [success=1 default=ignore] pam_unix.so nullok\nauth requisite pam_deny.so\nauth required pam_permit.so\n",
			"/etc/pam.d/common-account":                "account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\naccount requisite pam_deny.so\naccount required pam_permit.so\n",
			"/etc/pam.d/common-password":               "password [success=1 default=ignore] pam_unix.so obscure yescrypt\npassword requisite pam_deny.so\npassword required pam_permit.so\n",
			"/etc/pam.d/common-session":                "session [default=1] pam_permit.so\nsession requisite pam_deny.so\nsession required pam_permit.so\nsession required pam_unix.so\nsession optional pam_systemd.so\n",
			"/etc/pam.d/common-session-noninteractive": "session [default=1] pam_permit.so\nsession requisite pam_deny.so\nsession required pam_permit.so\nsession required pam_unix.so\n",
		}
	case "systemd":
		return map[string]string{"/usr/lib/systemd/network/89-dhcp.network": "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n"}
	case "login":
		return map[string]string{"/etc/subuid": "", "/etc/subgid": ""}
	case "openssh-server":
		return map[string]string{
			"/etc/ssh/sshd_config":                        "UsePAM yes\nKbdInteractiveAuthentication no\nSubsystem sftp /usr/lib/openssh/sftp-server\nHostKey /etc/ssh/ssh_host_ed25519_key\n",
			"/usr/lib/tmpfiles.d/sshd.conf":               "d /run/sshd 0755\n",
			"/usr/lib/systemd/system/sshd-keygen.service": "[Unit]\nDescription=host key\nBefore=ssh.service\nConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n[Service]\nType=oneshot\nExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key\n[Install]\nWantedBy=multi-user.target\n",
		}
	}
	return nil
}

// post is the %post script of a package.
func post(name string) string {
	switch name {
	case "systemd":
		return "test -e /etc/machine-id || echo uninitialized > /etc/machine-id\nsystemd-sysusers\nsystemctl preset-all 2>/dev/null\njournalctl --update-catalog\n"
	case "udev":
		return "systemd-hwdb --usr update\n"
	case "ca-certificates":
		return "test -e /etc/ca-certificates.conf || (cd /usr/share/ca-certificates && find . -name '*.crt' | sed 's|^./||' | LC_ALL=C sort) >/etc/ca-certificates.conf\n" +
			"update-ca-certificates >/dev/null\n"
	}
	return ""
}

// skipped tells which files of Debian packages have no place here.
func skipped(path string) bool {
	for _, p := range []string{"/usr/share/lintian", "/usr/share/bug", "/usr/share/doc-base", "/usr/share/menu", "/etc/init.d", "/usr/share/locale", "/usr/share/info/dir"} {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

// dirs is what the package "filesystem" owns, with the modes that are not 0755.
func dirs() map[string]uint32 {
	out := map[string]uint32{}
	for d := range strings.FieldsSeq(`/boot /dev /etc /etc/alternatives /etc/default /etc/ld.so.conf.d /etc/opt /etc/pam.d /etc/pki /etc/pki/rpm-gpg /etc/profile.d /etc/security /etc/skel /etc/ssl
		/etc/systemd /etc/systemd/system /etc/xdg /etc/yum.repos.d /home /media /mnt /opt /run /srv /usr /usr/bin /usr/games /usr/include /usr/lib /usr/lib/debug /usr/lib/modules
		/usr/lib/sysctl.d /usr/lib/systemd /usr/lib/systemd/system /usr/lib/sysusers.d /usr/lib/tmpfiles.d /usr/lib/udev /usr/lib/udev/rules.d /usr/lib/x86_64-linux-gnu
		/usr/lib/x86_64-linux-gnu/pkgconfig /usr/lib64 /usr/lib64/pkgconfig /usr/lib32 /usr/libexec /usr/local /usr/local/bin /usr/local/lib /usr/local/sbin /usr/local/share /usr/sbin /usr/share
		/usr/share/applications /usr/share/bash-completion /usr/share/bash-completion/completions /usr/share/doc /usr/share/fish /usr/share/fish/vendor_completions.d /usr/share/gcc /usr/share/info
		/usr/share/keyrings /usr/share/man /usr/share/man/man1 /usr/share/man/man2 /usr/share/man/man3 /usr/share/man/man4 /usr/share/man/man5 /usr/share/man/man6 /usr/share/man/man7
		/usr/share/man/man8 /usr/share/misc /usr/share/pam-configs /usr/share/perl5 /usr/share/pkgconfig /usr/share/zsh /usr/share/zsh/vendor-completions /usr/src /usr/src/debug /var /var/cache
		/var/empty /var/lib /var/lib/misc /var/lib/rpm /var/local /var/log /var/opt /var/spool /var/spool/mail`) {
		out[d] = 0o755
	}
	for d, m := range map[string]uint32{"/proc": 0o555, "/sys": 0o555, "/root": 0o550, "/tmp": 0o1777, "/var/tmp": 0o1777} {
		out[d] = m
	}
	return out
}

// roots is the symlinks of a merged /usr and the like.
func roots() map[string]string {
	return map[string]string{"/bin": "usr/bin", "/sbin": "usr/sbin", "/lib": "usr/lib", "/lib64": "usr/lib64", "/lib32": "usr/lib32", "/var/run": "../run", "/var/lock": "../run/lock", "/var/mail": "spool/mail"}
}

// Users and groups that packages would make, declared from the start so that `rpm -V` finds
// nothing changed.
const (
	users = `root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
sys:x:3:3:sys:/dev:/usr/sbin/nologin
sync:x:4:65534:sync:/bin:/bin/sync
games:x:5:60:games:/usr/games:/usr/sbin/nologin
man:x:6:12:man:/var/cache/man:/usr/sbin/nologin
lp:x:7:7:lp:/var/spool/lpd:/usr/sbin/nologin
mail:x:8:8:mail:/var/mail:/usr/sbin/nologin
news:x:9:9:news:/var/spool/news:/usr/sbin/nologin
uucp:x:10:10:uucp:/var/spool/uucp:/usr/sbin/nologin
proxy:x:13:13:proxy:/bin:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
backup:x:34:34:backup:/var/backups:/usr/sbin/nologin
list:x:38:38:list:/var/list:/usr/sbin/nologin
irc:x:39:39:irc:/run/ircd:/usr/sbin/nologin
_apt:x:42:65534::/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
systemd-network:x:998:998:systemd Network Management:/:/usr/sbin/nologin
systemd-timesync:x:997:997:systemd Time Synchronization:/:/usr/sbin/nologin
messagebus:x:100:107::/nonexistent:/usr/sbin/nologin
sshd:x:101:65534::/run/sshd:/usr/sbin/nologin
_chrony:x:102:108:Chrony daemon,,,:/var/lib/chrony:/usr/sbin/nologin
`
	groups = `root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
lp:x:7:
mail:x:8:
news:x:9:
uucp:x:10:
man:x:12:
proxy:x:13:
kmem:x:15:
dialout:x:20:
fax:x:21:
voice:x:22:
cdrom:x:24:
floppy:x:25:
tape:x:26:
sudo:x:27:
audio:x:29:
dip:x:30:
www-data:x:33:
backup:x:34:
operator:x:37:
list:x:38:
irc:x:39:
src:x:40:
shadow:x:42:
utmp:x:43:
video:x:44:
sasl:x:45:
plugdev:x:46:
staff:x:50:
games:x:60:
users:x:100:
input:x:101:
sgx:x:102:
kvm:x:103:
render:x:104:
crontab:x:105:
netdev:x:106:
messagebus:x:107:
_chrony:x:108:
_ssh:x:109:
systemd-journal:x:999:
systemd-network:x:998:
systemd-timesync:x:997:
nogroup:x:65534:
`
)

// macros is what redhat-rpm-config gives on CentOS. Debian's rpm was configured with the
// vendor "debian": it reads /usr/lib/rpm/debian after the platform's macros, where no Debian
// package puts anything.
const macros = `%dist .el9
%_vendor redhat
%_host x86_64-redhat-linux-gnu
%_build x86_64-redhat-linux-gnu
%_libdir /usr/lib64
%_lib lib64
%_libexecdir /usr/libexec
%_sharedstatedir /var/lib
%_localstatedir /var
%_sysconfdir /etc
%_rundir /run
%_unitdir /usr/lib/systemd/system
%_dbpath /var/lib/rpm
%_source_payload w19.zstdio
%_binary_payload w19.zstdio
%_buildhost drover
%_build_id_links compat
%_enable_debug_packages 1
%_debugsource_packages 1
%_debuginfo_subpackages 1
%_unique_build_ids 1
%_unique_debug_names 1
%_unique_debug_srcs 1
%use_source_date_epoch_as_buildtime 1
%clamp_mtime_to_source_date_epoch 1
%source_date_epoch_from_changelog 0
%__global_compiler_flags -O2 -g -grecord-gcc-switches -pipe -Wall -Werror=format-security -Wp,-D_FORTIFY_SOURCE=2 -fstack-protector-strong
%build_cflags %{optflags}
%build_cxxflags %{optflags}
%build_ldflags -Wl,-z,relro -Wl,-z,now -Wl,--build-id=sha1
%set_build_flags CFLAGS="${CFLAGS:-%{build_cflags}}"; export CFLAGS; CXXFLAGS="${CXXFLAGS:-%{build_cxxflags}}"; export CXXFLAGS; LDFLAGS="${LDFLAGS:-%{build_ldflags}}"; export LDFLAGS
%__elf_exclude_path ^/usr/lib/debug/.*$
%install %{?_enable_debug_packages:%{debug_package}}\
%%install\
%{nil}
%systemd_post() :
%systemd_preun() :
%systemd_postun() :
%systemd_postun_with_restart() :
%ldconfig_scriptlets() %{nil}
`

const rpmrc = "optflags: x86_64 %{__global_compiler_flags} -m64\noptflags: noarch %{__global_compiler_flags}\n"

const osRelease = `NAME="drover teststream"
ID="centos"
ID_LIKE="rhel fedora"
VERSION="9"
VERSION_ID="9"
PLATFORM_ID="platform:el9"
PRETTY_NAME="drover teststream 9 (a stand-in for CentOS Stream, made from Debian 12)"
ANSI_COLOR="0;31"
`
