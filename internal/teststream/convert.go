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
	ghost    map[string]bool // made by the scripts, owned by the package
	provides []string
	requires []string
	prereqs  []string // needed before the scripts run
	wants    []string // Recommends
	hints    []string // Suggests
	conflict []string
	post     string
	postProg string // what runs post; "" means /bin/sh. With an empty post it is run itself
	preun    string
	trigger  bool // run ldconfig when a package brings libraries
}

func newSpec(name, version, arch, summary string) *spec {
	return &spec{name: name, version: version, release: "1" + dist, arch: arch, summary: summary, source: name,
		files: map[string]debFile{}, config: map[string]bool{}, ghost: map[string]bool{}}
}

// text puts text files into the package; below /etc they are configuration.
func (s *spec) text(files map[string]string) {
	for p, body := range files {
		s.files[p] = debFile{path: p, mode: 0o644, body: []byte(body)}
		s.config[p] = strings.HasPrefix(p, "/etc/")
	}
}

func (s *spec) symlinks(links map[string]string) {
	for p, to := range links {
		s.files[p] = debFile{path: p, link: to}
	}
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
	name := c["Package"]
	summary, _, _ := strings.Cut(c["Description"], "\n")
	s := newSpec(name, "", map[string]string{"amd64": "x86_64", "all": "noarch"}[c["Architecture"]], summary)
	s.epoch, s.version, s.release, _ = splitVersion(c["Version"])
	if src, _, _ := strings.Cut(c["Source"], " "); src != "" {
		s.source = src
	}
	self := s.evr()
	s.prereqs = append([]string{"filesystem"}, prereqs(name)...)
	s.requires = append(s.relations(c, "Pre-Depends", "Depends"), requires(name)...)
	s.wants = s.relations(c, "Recommends")
	s.hints = s.relations(c, "Suggests")
	s.conflict = s.relations(c, "Breaks", "Conflicts")
	// An unversioned Provides of Debian satisfies no versioned relation; in RPM it would
	// satisfy them all.
	for _, cl := range parseRelations(c["Provides"]) {
		if cl[0].ver != "" {
			s.provides = append(s.provides, cl[0].name+" = "+evr(cl[0].ver))
		} else if !dropped(cl[0].name) {
			s.provides = append(s.provides, cl[0].name+" = "+self)
		}
	}
	for _, n := range centos(name) {
		s.provides = append(s.provides, n+" = "+self)
	}
	own := dirs()
	for _, f := range d.files {
		s.file(f, d, own)
	}
	for to, from := range copies(name) {
		s.text(map[string]string{to: string(s.files[from].body)})
	}
	s.text(extra(name))
	s.symlinks(links(name))
	for p := range links(name) {
		if old, ok := strings.CutPrefix(p, "/usr"); ok && usr(old) == p {
			s.provides = append(s.provides, old)
		}
	}
	for p, r := range rights(name) {
		f := s.files[p]
		f.path, f.dir = p, f.dir || r.dir
		f.mode, f.user, f.group, f.caps = r.mode, r.user, r.group, r.caps
		s.files[p] = f
	}
	s.post = post(name)
	if name == "libc-bin" { // not by a shell, which comes later
		s.postProg, s.trigger = "/usr/sbin/ldconfig", true
	}
	s.kernel()
	if s.arch == "x86_64" {
		s.provides = append(s.provides, s.name+"(x86-64) = "+self)
	}
	s.scan()
	s.units()
	return s
}

// relations maps the fields that are there.
func (s *spec) relations(control map[string]string, fields ...string) []string {
	var out []string
	for _, f := range fields {
		for _, cl := range parseRelations(control[f]) {
			if t := depText(cl, s.name); t != "" {
				out = append(out, t)
			}
		}
	}
	return out
}

func (s *spec) evr() string {
	v := s.version + "-" + s.release
	if s.epoch != 0 {
		v = fmt.Sprintf("%d:%s", s.epoch, v)
	}
	return v
}

// kernel gives Debian's kernel packages the names and rights of CentOS's: several can be
// installed side by side, and the index of modules is made at the installation.
func (s *spec) kernel() {
	was := s.name
	s.name = renamed(was)
	if s.name == was {
		return
	}
	s.provides = append(s.provides, was+" = "+s.evr())
	if s.name != "kernel-core" {
		clear(s.files) // a link below /usr/share/doc that differs between versions
		return
	}
	s.provides = append(s.provides, "installonlypkg(kernel)", "kernel-modules = "+s.evr())
	s.prereqs = append(s.prereqs, "kmod")
	abi := strings.TrimPrefix(was, "linux-image-")
	modules := "/usr/lib/modules/" + abi
	image := s.files["/boot/vmlinuz-"+abi]
	image.path = modules + "/vmlinuz"
	s.files[image.path] = image
	for _, n := range strings.Fields("alias alias.bin builtin.alias.bin builtin.bin dep dep.bin devname softdep symbols symbols.bin") {
		p := modules + "/modules." + n
		s.files[p] = debFile{path: p, mode: 0o644}
		s.ghost[p] = true
	}
	s.post += "depmod " + abi + "\n"
}

func (s *spec) file(f debFile, d *deb, own map[string]uint32) {
	old := f.path
	f.path = usr(f.path)
	if _, ok := own[f.path]; ok || f.path == "/" || skipped(f.path) || roots()[f.path] != "" {
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
	s.files[f.path] = f
}

var (
	rePC     = regexp.MustCompile(`(?m)^Version:[ \t]*([A-Za-z0-9_.+~]+)[ \t]*$`)
	reWants  = regexp.MustCompile(`(?m)^(WantedBy|RequiredBy|Alias|Also)=`)
	rePerl   = regexp.MustCompile(`^/usr/(?:share/perl5|share/perl/[0-9.]+|lib/x86_64-linux-gnu/(?:perl5|perl|perl-base)(?:/[0-9.]+)?)/(.+)\.pm$`)
	rePython = regexp.MustCompile(`^/usr/lib/python(3\.[0-9]+)/os\.py$`)
)

// scan reads the dependencies that are in the files themselves: sonames with their versions,
// pkg-config, Perl and Python modules.
func (s *spec) scan() {
	prov, req := map[string]bool{}, map[string]bool{}
	for p, f := range s.files {
		if m := rePerl.FindStringSubmatch(p); m != nil {
			prov["perl("+strings.ReplaceAll(m[1], "/", "::")+")"] = true
		}
		if m := rePython.FindStringSubmatch(p); m != nil {
			prov["python(abi) = "+m[1]] = true
		}
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

// write writes the RPM.
func (s *spec) write() ([]byte, error) {
	md := rpmpack.RPMMetaData{Name: s.name, Summary: s.summary, Description: s.summary, Version: s.version, Release: s.release, Arch: s.arch, OS: "linux", Vendor: "drover teststream",
		Licence: "various", //nolint:misspell // its name there
		Group:   "Unspecified", BuildHost: "teststream", Compressor: "zstd:3", Epoch: s.epoch, BuildTime: builtAt()}
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
	}{{&md.Provides, s.provides}, {&md.Requires, s.requires}, {&md.Recommends, s.wants}, {&md.Suggests, s.hints}, {&md.Conflicts, s.conflict}} {
		if err := set(l.to, l.list); err != nil {
			return nil, err
		}
	}
	if s.preun != "" || s.post != "" && s.postProg == "" {
		s.prereqs = append(s.prereqs, "/bin/sh")
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
	var caps []string
	for _, p := range slices.Sorted(maps.Keys(s.files)) {
		r.AddFile(s.rpmFile(s.files[p]))
		caps = append(caps, s.files[p].caps)
	}
	if slices.ContainsFunc(caps, func(c string) bool { return c != "" }) {
		r.AddCustomTag(5010, rpmpack.EntryStringSlice(caps))
	}
	r.AddCustomTag(1044, rpmpack.EntryString(fmt.Sprintf("%s-%s-%s.src.rpm", s.source, s.version, s.release)))
	if s.post != "" {
		r.AddPostin(s.post)
	}
	if s.postProg != "" {
		r.AddCustomTag(1086, rpmpack.EntryString(s.postProg))
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
		o.MTime = uint32(builtAt().Unix())
	}
	switch {
	case f.dir:
		o.Mode |= 0o40000
	case f.link != "":
		o.Mode, o.Body = 0o120777, []byte(f.link)
	case s.ghost[f.path]:
		o.Type, o.Body = rpmpack.GhostFile, nil
	case s.config[f.path]:
		o.Type = rpmpack.ConfigFile | rpmpack.NoReplaceFile
	case strings.HasPrefix(f.path, "/usr/share/doc/") || strings.HasPrefix(f.path, "/usr/share/man/") || strings.HasPrefix(f.path, "/usr/share/info/"):
		o.Type = rpmpack.DocFile
	}
	return o
}
