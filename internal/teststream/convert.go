package teststream

import (
	"bytes"
	"debug/elf"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/rpmpack"
)

// spec is a package as it will be written.
type spec struct {
	name     string
	epoch    uint32
	version  string
	release  string
	arch     string
	summary  string
	source   string
	files    map[string]debFile
	config   map[string]bool
	provides []string
	requires []string
	prereqs  []string // needed before the scripts run
	conflict []string
	post     string
	postLua  string
	preun    string
	trigger  bool // run ldconfig when a package brings libraries
}

// usr moves a path of the unmerged file system under /usr.
func usr(p string) string {
	for _, d := range []string{"/bin", "/sbin", "/lib", "/lib64", "/lib32", "/libx32"} {
		if p == d || strings.HasPrefix(p, d+"/") {
			return "/usr" + p
		}
	}
	return p
}

// convert maps a Debian package to an RPM.
func convert(d *deb) *spec {
	c := d.control
	s := &spec{name: c["Package"], arch: map[string]string{"amd64": "x86_64", "all": "noarch"}[c["Architecture"]], files: map[string]debFile{}, config: map[string]bool{}}
	s.summary, _, _ = strings.Cut(c["Description"], "\n")
	s.epoch, s.version, s.release, _ = splitVersion(c["Version"])
	s.source, _, _ = strings.Cut(c["Source"], " ")
	if s.source == "" {
		s.source = s.name
	}
	self := evrOf(s)
	s.prereqs = []string{"filesystem"}
	for _, field := range []string{"Pre-Depends", "Depends"} {
		for _, cl := range parseRelations(c[field]) {
			s.requires = appendText(s.requires, depText(cl, s.name))
		}
	}
	for _, field := range []string{"Breaks", "Conflicts"} {
		for _, cl := range parseRelations(c[field]) {
			s.conflict = appendText(s.conflict, depText(cl, s.name))
		}
	}
	switch s.name { // what Debian recommends or holds essential, and CentOS's package needs or is
	case "gcc":
		s.requires = append(s.requires, "glibc-devel")
	case "libc6":
		s.requires = append(s.requires, "libc-bin")
	}
	// An unversioned Provides of Debian satisfies no versioned relation; in RPM it would.
	for _, cl := range parseRelations(c["Provides"]) {
		if cl[0].ver != "" {
			s.provides = append(s.provides, cl[0].name+" = "+evr(cl[0].ver))
		} else if !dropped(cl[0].name) {
			s.provides = append(s.provides, cl[0].name+" = "+self)
		}
	}
	for _, n := range centos(s.name) {
		s.provides = append(s.provides, n+" = "+self)
	}
	if s.arch == "x86_64" {
		s.provides = append(s.provides, s.name+"(x86-64) = "+self)
	}
	s.kernel()
	own := dirs()
	for _, f := range d.files {
		s.file(f, d, own)
	}
	for p, to := range links(s.name) {
		s.files[p] = debFile{path: p, link: to, mode: 0o777}
	}
	for p, body := range extra(s.name) {
		s.files[p] = debFile{path: p, mode: 0o644, body: []byte(body)}
		s.config[p] = strings.HasPrefix(p, "/etc/")
	}
	s.post = post(s.name)
	s.trigger = s.name == "libc-bin"
	if s.name == "bash" {
		s.provides = append(s.provides, "/bin/sh", "/bin/bash")
	}
	s.scan()
	s.units()
	return s
}

func appendText(list []string, text string) []string {
	if text == "" {
		return list
	}
	return append(list, text)
}

func evrOf(s *spec) string {
	v := s.version + "-" + s.release
	if s.epoch != 0 {
		v = fmt.Sprintf("%d:%s", s.epoch, v)
	}
	return v
}

// kernel gives Debian's kernel packages the names and rights of CentOS's.
func (s *spec) kernel() {
	if !strings.HasPrefix(s.name, "linux-image-") {
		return
	}
	was := s.name
	if strings.HasPrefix(s.source, "linux-signed") && regexp.MustCompile(`^linux-image-\d`).MatchString(was) {
		s.name = "kernel-core"
		s.provides = append(s.provides, was+" = "+evrOf(s), "installonlypkg(kernel)", "kernel-modules = "+evrOf(s))
		return
	}
	s.name = "kernel"
	s.provides = append(s.provides, was+" = "+evrOf(s))
}

func (s *spec) file(f debFile, d *deb, own map[string]uint32) {
	old := f.path
	f.path = usr(f.path)
	if _, ok := own[f.path]; ok || f.path == "/" || skipped(f.path) || roots()[f.path] != "" || s.name == "kernel" {
		return
	}
	if f.link != "" {
		// A relative link is resolved where it stood and said again from where it stands.
		to := f.link
		if !strings.HasPrefix(to, "/") {
			to = path.Join(path.Dir(old), to)
		}
		to = usr(path.Clean(to))
		rel, err := filepath.Rel(path.Dir(f.path), to)
		if err == nil {
			f.link = rel
		}
		f.mode = 0o777
	}
	if old != f.path && !f.dir && (strings.HasPrefix(old, "/bin/") || strings.HasPrefix(old, "/sbin/")) {
		s.provides = append(s.provides, old) // a dependency on a file is met by its exact name only
	}
	s.config[f.path] = d.conf[old]
	switch f.path {
	case "/usr/bin/ssh-agent":
		f.mode, f.group = 0o2755, "_ssh"
	case "/usr/lib/dbus-1.0/dbus-daemon-launch-helper":
		f.mode, f.group = 0o4754, "messagebus"
	}
	s.files[f.path] = f
	if k, ok := strings.CutPrefix(f.path, "/boot/vmlinuz-"); ok {
		f.path = "/usr/lib/modules/" + k + "/vmlinuz"
		s.files[f.path] = f
	}
}

var (
	rePC    = regexp.MustCompile(`(?m)^Version:[ \t]*([A-Za-z0-9_.+~]+)[ \t]*$`)
	reWants = regexp.MustCompile(`(?m)^(WantedBy|RequiredBy|Alias|Also)=`)
)

// scan reads the dependencies that are in the files themselves: sonames with their versions,
// pkg-config modules.
func (s *spec) scan() {
	prov, req := map[string]bool{}, map[string]bool{}
	for p, f := range s.files {
		if strings.HasSuffix(p, ".pc") && strings.Contains(p, "/pkgconfig/") {
			v := ""
			if m := rePC.FindSubmatch(f.body); m != nil {
				v = " = " + string(m[1])
			}
			prov["pkgconfig("+strings.TrimSuffix(path.Base(p), ".pc")+")"+v] = true
		}
		if len(f.body) < 64 || !bytes.HasPrefix(f.body, []byte(elf.ELFMAG)) || strings.HasPrefix(p, "/usr/lib/debug/") || strings.HasSuffix(p, ".o") || strings.HasSuffix(p, ".ko") {
			continue
		}
		e, err := elf.NewFile(bytes.NewReader(f.body))
		if err != nil || e.Class != elf.ELFCLASS64 || e.Type != elf.ET_DYN && e.Type != elf.ET_EXEC {
			continue
		}
		if names, _ := e.DynString(elf.DT_SONAME); len(names) > 0 {
			prov[names[0]+"()(64bit)"] = true
			vs, _ := e.DynamicVersions()
			for _, v := range vs {
				if v.Flags&elf.VER_FLG_BASE == 0 {
					prov[names[0]+"("+v.Name+")(64bit)"] = true
				}
			}
		}
		if strings.HasPrefix(path.Base(p), "ld-linux") {
			prov["rtld(GNU_HASH)"] = true
		}
		libs, _ := e.DynString(elf.DT_NEEDED)
		for _, l := range libs {
			if l != "libatm.so.1" { // an optional plugin of iproute2
				req[l+"()(64bit)"] = true
			}
		}
		needs, _ := e.DynamicVersionNeeds()
		for _, n := range needs {
			for _, v := range n.Needs {
				if n.Name != "libatm.so.1" {
					req[n.Name+"("+v.Dep+")(64bit)"] = true
				}
			}
		}
	}
	s.provides = append(s.provides, slices.Sorted(maps.Keys(prov))...)
	for _, r := range slices.Sorted(maps.Keys(req)) {
		if !prov[r] {
			s.requires = append(s.requires, r)
		}
	}
}

// units enables the units of a package as its preset says.
func (s *spec) units() {
	var us []string
	for p, f := range s.files {
		if path.Dir(p) == "/usr/lib/systemd/system" && reWants.Match(f.body) && !strings.Contains(p, "@") {
			us = append(us, path.Base(p))
		}
	}
	if len(us) == 0 || s.name == "systemd" {
		return
	}
	slices.Sort(us)
	s.post += "if [ -x /usr/bin/systemctl ]; then systemctl --no-reload preset " + strings.Join(us, " ") + " >/dev/null 2>&1 || :; fi\n"
	s.preun = "if [ $1 = 0 ] && [ -x /usr/bin/systemctl ]; then systemctl --no-reload disable --now " + strings.Join(us, " ") + " >/dev/null 2>&1 || :; fi\n"
}

// made is when everything here was built: one time, so that the same input gives the same
// bytes.
func made() time.Time { return time.Unix(1700000000, 0).UTC() }

// write writes the RPM, signed by sign when it is not nil.
func (s *spec) write(sign func([]byte) ([]byte, error)) ([]byte, error) {
	md := rpmpack.RPMMetaData{Name: s.name, Summary: s.summary, Description: s.summary, Version: s.version, Release: s.release, Arch: s.arch, OS: "linux", Vendor: "drover teststream",
		Licence: "various", Group: "Unspecified", BuildHost: "teststream", Compressor: "zstd:3", Epoch: s.epoch, BuildTime: made()}
	if s.epoch == 0 {
		md.Epoch = rpmpack.NoEpoch
	}
	set := func(to *rpmpack.Relations, list []string) error {
		slices.Sort(list)
		for _, t := range slices.Compact(list) {
			if strings.HasPrefix(t, "(") || strings.HasPrefix(t, "/") {
				*to = append(*to, &rpmpack.Relation{Name: t})
				continue
			}
			name, rest, ok := strings.Cut(t, " ")
			r, err := rpmpack.NewRelation("x " + rest)
			if !ok {
				r, err = &rpmpack.Relation{}, nil
			}
			if err != nil {
				return fmt.Errorf("%s: %q: %w", s.name, t, err)
			}
			r.Name = name
			*to = append(*to, r)
		}
		return nil
	}
	for _, l := range []struct {
		to   *rpmpack.Relations
		list []string
	}{{&md.Provides, s.provides}, {&md.Requires, s.requires}, {&md.Conflicts, s.conflict}} {
		if err := set(l.to, l.list); err != nil {
			return nil, err
		}
	}
	var pre rpmpack.Relations
	if err := set(&pre, s.prereqs); err != nil {
		return nil, err
	}
	for _, r := range pre {
		r.Sense |= 1<<6 | 1<<9 | 1<<10 // RPMSENSE_PREREQ, _SCRIPT_PRE, _SCRIPT_POST
	}
	md.Requires = append(md.Requires, pre...)
	r, err := rpmpack.NewRPM(md)
	if err != nil {
		return nil, err
	}
	for _, p := range r.Provides { // rpmpack leaves the epoch out of a package's own name
		if p.Name == s.name && s.epoch != 0 && !strings.Contains(p.Version, ":") {
			p.Version = fmt.Sprintf("%d:%s", s.epoch, p.Version)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(s.files)) {
		r.AddFile(s.rpmFile(s.files[p]))
	}
	r.AddCustomTag(1044, rpmpack.EntryString(fmt.Sprintf("%s-%s-%s.src.rpm", s.source, s.version, s.release)))
	switch {
	case s.postLua != "":
		r.AddPostin(s.postLua)
		r.AddCustomTag(1086, rpmpack.EntryString("<lua>"))
	case s.post != "":
		r.AddPostin(s.post)
	}
	if s.preun != "" {
		r.AddPreun(s.preun)
	}
	if s.trigger { // a file trigger: %transfiletriggerin -- /usr/lib /usr/lib64
		r.AddCustomTag(5076, rpmpack.EntryStringSlice([]string{"/usr/sbin/ldconfig"}))
		r.AddCustomTag(5077, rpmpack.EntryStringSlice([]string{"/bin/sh"}))
		r.AddCustomTag(5078, rpmpack.EntryUint32([]uint32{0}))
		r.AddCustomTag(5079, rpmpack.EntryStringSlice([]string{"/usr/lib", "/usr/lib64"}))
		r.AddCustomTag(5080, rpmpack.EntryUint32([]uint32{0, 0}))
		r.AddCustomTag(5081, rpmpack.EntryStringSlice([]string{"", ""}))
		r.AddCustomTag(5082, rpmpack.EntryUint32([]uint32{1 << 16, 1 << 16}))
		r.AddCustomTag(5085, rpmpack.EntryUint32([]uint32{1000000}))
	}
	if sign != nil {
		r.SetPGPSigner(sign)
	}
	var b bytes.Buffer
	err = r.Write(&b)
	return b.Bytes(), err
}

func (s *spec) rpmFile(f debFile) rpmpack.RPMFile {
	o := rpmpack.RPMFile{Name: f.path, Body: f.body, Mode: uint(f.mode), Owner: "root", Group: "root", MTime: uint32(f.mtime)}
	if f.group != "" {
		o.Group = f.group
	}
	if f.user != "" {
		o.Owner = f.user
	}
	if f.mtime == 0 {
		o.MTime = uint32(made().Unix())
	}
	switch {
	case f.dir:
		o.Mode |= 0o40000
	case f.link != "":
		o.Mode, o.Body = 0o120777, []byte(f.link)
	case s.config[f.path]:
		o.Type = rpmpack.ConfigFile | rpmpack.NoReplaceFile
	case strings.HasPrefix(f.path, "/usr/share/doc/") || strings.HasPrefix(f.path, "/usr/share/man/") || strings.HasPrefix(f.path, "/usr/share/info/"):
		o.Type = rpmpack.DocFile
	}
	return o
}

// hand is the packages made by hand: what CentOS has and Debian solves in another way.
func hand() []*spec {
	text := func(m map[string]string) map[string]debFile {
		out := map[string]debFile{}
		for p, b := range m {
			out[p] = debFile{path: p, mode: 0o644, body: []byte(b)}
		}
		return out
	}
	release := &spec{name: "centos-stream-release", version: "9", release: "1" + dist, arch: "noarch", summary: "Release files of the stand-in", source: "centos-stream-release",
		provides: []string{"system-release", "system-release(releasever) = 9", "centos-release = 9", "base-module(platform:el9)"},
		files: text(map[string]string{"/usr/lib/os-release": osRelease, "/etc/centos-release": "drover teststream release 9\n",
			"/usr/lib/systemd/system-preset/89-default.preset":         "enable ssh.service\nenable sshd-keygen.service\nenable chrony.service\nenable systemd-networkd.service\nenable getty@.service\nenable dbus.service\n",
			"/usr/lib/systemd/system-preset/99-default-disable.preset": "disable *\n"})}
	release.files["/etc/os-release"] = debFile{path: "/etc/os-release", link: "../usr/lib/os-release"}
	setup := &spec{name: "setup", version: "2.13", release: "1" + dist, arch: "noarch", summary: "Users, groups and base configuration", source: "setup", requires: []string{"system-release"},
		files: text(map[string]string{"/etc/passwd": users, "/etc/group": groups, "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n", "/etc/nsswitch.conf": "passwd: files systemd\ngroup: files systemd\nshadow: files\nhosts: files dns\n",
			"/etc/profile": "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin\nexport PATH\n", "/etc/shells": "/bin/sh\n/bin/bash\n", "/etc/fstab": "", "/etc/securetty": "", "/etc/host.conf": "multi on\n",
			"/etc/protocols": "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\n", "/etc/services": "ssh 22/tcp\ndomain 53/tcp\ndomain 53/udp\nhttp 80/tcp\nntp 123/udp\nhttps 443/tcp\n", "/etc/default/locale": "", "/etc/motd": ""})}
	var shadow, gshadow strings.Builder
	for l := range strings.Lines(users) {
		n, _, _ := strings.Cut(l, ":")
		fmt.Fprintf(&shadow, "%s:*:19675:0:99999:7:::\n", n)
	}
	for l := range strings.Lines(groups) {
		n, _, _ := strings.Cut(l, ":")
		fmt.Fprintf(&gshadow, "%s:*::\n", n)
	}
	setup.files["/etc/shadow"] = debFile{path: "/etc/shadow", mode: 0o640, group: "shadow", body: []byte(shadow.String())}
	setup.files["/etc/gshadow"] = debFile{path: "/etc/gshadow", mode: 0o640, group: "shadow", body: []byte(gshadow.String())}
	setup.config = map[string]bool{}
	for p := range setup.files {
		setup.config[p] = true
	}
	// The group shadow is not known yet while /etc/group itself is unpacked.
	setup.postLua = `posix.chown("/etc/shadow", "root", 42); posix.chown("/etc/gshadow", "root", 42)`
	fs := &spec{name: "filesystem", version: "3.16", release: "1" + dist, arch: "x86_64", summary: "The directories of the system", source: "filesystem", prereqs: []string{"setup"}, files: map[string]debFile{}}
	for d, m := range dirs() {
		fs.files[d] = debFile{path: d, mode: m, dir: true}
	}
	for p, to := range roots() {
		fs.files[p] = debFile{path: p, link: to}
	}
	rrc := &spec{name: "redhat-rpm-config", version: "208", release: "1" + dist, arch: "noarch", summary: "Macros of the stand-in", source: "redhat-rpm-config", prereqs: []string{"filesystem"},
		requires: []string{"debugedit", "rpm-build"}, files: text(map[string]string{"/usr/lib/rpm/debian/macros": macros, "/usr/lib/rpm/debian/rpmrc": rpmrc})}
	tz := &spec{name: "teststream-localtime", version: "1", release: "1" + dist, arch: "noarch", summary: "UTC", source: "teststream-localtime", prereqs: []string{"filesystem"}, files: map[string]debFile{}}
	tz.files["/etc/localtime"] = debFile{path: "/etc/localtime", link: "../usr/share/zoneinfo/Etc/UTC"}
	out := []*spec{release, setup, fs, rrc, tz}
	for _, s := range out {
		if s.config == nil {
			s.config = map[string]bool{}
		}
		s.provides = append(s.provides, s.name+" = "+evrOf(s))
	}
	return out
}
