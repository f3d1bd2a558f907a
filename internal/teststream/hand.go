package teststream

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// dist is the release suffix of the packages made by hand and of those that are built on
// this distribution.
const dist = ".el9"

// hand is the packages made by hand: what CentOS has and Debian solves in another way.
func hand() []*spec {
	out := []*spec{release(), setup(), filesystem(), rpmConfig()}
	for _, s := range out {
		s.provides = append(s.provides, s.name+" = "+s.evr())
	}
	return out
}

// release is the root of the order of installation: it needs nothing, setup needs it,
// filesystem needs setup, and everything else needs filesystem.
func release() *spec {
	s := newSpec("centos-stream-release", "9", "noarch", "Release files of the stand-in")
	s.provides = []string{"system-release", "system-release(releasever) = 9", "centos-release = 9", "base-module(platform:el9)"}
	s.text(map[string]string{"/usr/lib/os-release": osRelease, "/etc/centos-release": "drover teststream release 9\n",
		"/usr/lib/systemd/system-preset/89-default.preset":         presets,
		"/usr/lib/systemd/system-preset/99-default-disable.preset": "disable *\n"})
	s.symlinks(map[string]string{"/etc/os-release": "../usr/lib/os-release"})
	return s
}

func setup() *spec {
	s := newSpec("setup", "2.13", "noarch", "Users, groups and base configuration")
	s.requires = []string{"system-release"}
	s.text(map[string]string{"/etc/passwd": users, "/etc/group": groups, "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
		"/etc/nsswitch.conf": "passwd: files systemd\ngroup: files systemd\nshadow: files systemd\ngshadow: files systemd\nhosts: files myhostname dns\n",
		"/etc/profile":       "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin\nexport PATH\nfor f in /etc/profile.d/*.sh; do [ -r \"$f\" ] && . \"$f\"; done\nunset f\n",
		"/etc/shells":        "/bin/sh\n/bin/bash\n/usr/bin/sh\n/usr/bin/bash\n", "/etc/fstab": "", "/etc/securetty": "", "/etc/host.conf": "multi on\n", "/etc/motd": "", "/etc/modules": "",
		"/etc/default/locale": "", // pam_env logs an error at every login without it
		"/etc/protocols":      "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\n",
		"/etc/services":       "ssh 22/tcp\ndomain 53/tcp\ndomain 53/udp\nhttp 80/tcp\nntp 123/udp\nhttps 443/tcp\n"})
	var shadow, gshadow strings.Builder
	for l := range strings.Lines(users) {
		n, _, _ := strings.Cut(l, ":")
		fmt.Fprintf(&shadow, "%s:*:19675:0:99999:7:::\n", n)
	}
	for l := range strings.Lines(groups) {
		n, _, _ := strings.Cut(l, ":")
		fmt.Fprintf(&gshadow, "%s:*::\n", n)
	}
	for p, body := range map[string]string{"/etc/shadow": shadow.String(), "/etc/gshadow": gshadow.String()} {
		s.files[p] = debFile{path: p, mode: 0o640, group: "shadow", body: []byte(body)}
		s.config[p] = true
	}
	// The group shadow is not known yet while /etc/group itself is unpacked.
	s.postProg = "<lua>"
	s.post = `posix.chown("/etc/shadow", "root", 42); posix.chown("/etc/gshadow", "root", 42)`
	return s
}

func filesystem() *spec {
	s := newSpec("filesystem", "3.16", "x86_64", "The directories of the system")
	s.prereqs = []string{"setup"}
	for p, mode := range dirs() {
		s.files[p] = debFile{path: p, mode: mode, dir: true}
	}
	s.symlinks(roots())
	return s
}

func rpmConfig() *spec {
	s := newSpec("redhat-rpm-config", "208", "noarch", "Macros of the stand-in")
	s.prereqs = []string{"filesystem"}
	s.requires = []string{"rpm-build", "binutils", "debugedit", "elfutils", "file", "patch", "zstd"} // what its macros call
	s.text(map[string]string{"/usr/lib/rpm/debian/macros": macros, "/usr/lib/rpm/debian/rpmrc": rpmrc})
	return s
}

// names is the packages of a set's group: those asked for by name, where they are here.
func (s Set) names(here map[string]bool) ([]string, error) {
	seeds, err := s.seeds()
	if err != nil {
		return nil, err
	}
	if s == Build {
		seeds = append(seeds, "redhat-rpm-config")
	}
	out := map[string]bool{"centos-stream-release": true}
	for _, n := range seeds {
		if n = renamed(n); here[n] {
			out[n] = true
		}
	}
	return slices.Sorted(maps.Keys(out)), nil
}

const presets = `enable ssh.service
enable sshd-keygen.service
enable chrony.service
enable systemd-networkd.service
enable getty@.service
enable dbus.service
enable dbus.socket
enable remote-fs.target
enable fstrim.timer
`
