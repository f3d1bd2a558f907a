package rpm

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Place is what repository metadata says of a package file beyond its header. A new
// signature changes these and nothing else.
type Place struct {
	PkgID       string // hex sha256 of the file
	Href        string // location below the repository's root, not escaped
	Size        int64  // of the file
	Mtime       int64  // seconds
	HeaderStart int64
	HeaderEnd   int64
}

// changelogLimit is how many changelog entries repositories carry, createrepo_c's default.
const changelogLimit = 10

// Primary appends the package's entry of primary.xml.
func Primary(b []byte, p *Package, at Place) []byte {
	h := p.Header
	n := h.NEVRA()
	b = append(b, "<package type=\"rpm\">\n"...)
	b = element(b, 1, "name", []byte(n.Name))
	b = element(b, 1, "arch", []byte(n.Arch))
	b = version(b, n)
	b = append(b, `  <checksum type="sha256" pkgid="YES">`...)
	b = append(b, at.PkgID...)
	b = append(b, "</checksum>\n"...)
	b = element(b, 1, "summary", h.Text(Summary))
	b = element(b, 1, "description", h.Text(Description))
	b = element(b, 1, "packager", h.Text(Packager))
	b = element(b, 1, "url", h.Text(URL))
	b = append(b, `  <time`...)
	b = number(b, "file", at.Mtime)
	b = number(b, "build", int64(h.Int(BuildTime)))
	b = append(b, "/>\n  <size"...)
	b = number(b, "package", at.Size)
	installed := h.Int(Size)
	if h.Has(LongSize) {
		installed = h.Int(LongSize)
	}
	b = number(b, "installed", int64(installed))
	b = number(b, "archive", int64(archiveSize(p)))
	b = append(b, "/>\n  <location"...)
	b = attr(b, "href", []byte(at.Href))
	b = append(b, "/>\n  <format>\n"...)
	for _, e := range []struct {
		name string
		tag  Tag
	}{{"license", License}, {"vendor", Vendor}, {"group", Group}, {"buildhost", BuildHost}, {"sourcerpm", SourceRPM}} {
		b = element(b, 2, "rpm:"+e.name, h.Text(e.tag))
	}
	b = append(b, "    <rpm:header-range"...)
	b = number(b, "start", at.HeaderStart)
	b = number(b, "end", at.HeaderEnd)
	b = append(b, "/>\n"...)
	files, _ := h.Files() // lists that do not fit were refused when the package came in
	own := map[string]bool{}
	for _, f := range files {
		if primaryFile(f.Path) {
			own[f.Path] = true
		}
	}
	provided := map[Dep]bool{}
	for _, d := range h.DepList(Provides) {
		provided[senseOnly(d)] = true
	}
	for _, k := range []DepKind{Provides, Requires, Conflicts, Obsoletes, Suggests, Enhances, Recommends, Supplements} {
		b = deps(b, k, h.DepList(k), own, provided)
	}
	for _, f := range files {
		if primaryFile(f.Path) {
			b = fileLine(b, "    ", f)
		}
	}
	return append(b, "  </format>\n</package>\n"...)
}

// Filelists appends the package's entry of filelists.xml.
func Filelists(b []byte, h Header, pkgid string) []byte {
	b = opening(b, h, pkgid)
	files, _ := h.Files() // as in Primary
	for _, f := range files {
		b = fileLine(b, "  ", f)
	}
	return append(b, "</package>\n"...)
}

// Other appends the package's entry of other.xml: the newest changelog entries, oldest
// first.
func Other(b []byte, h Header, pkgid string) []byte {
	b = opening(b, h, pkgid)
	cs := h.Changes()
	cs = cs[:min(len(cs), changelogLimit)]
	slices.Reverse(cs)
	// Entries of one day carry the same time; createrepo_c tells them apart by seconds so
	// that readers keep their order.
	for i := range cs {
		if i > 0 && cs[i].Time <= cs[i-1].Time && day(cs[i]) == day(cs[i-1]) {
			cs[i].Time = cs[i-1].Time + 1
		}
		b = append(b, "  <changelog"...)
		b = attr(b, "author", []byte(cs[i].Author))
		b = number(b, "date", int64(cs[i].Time))
		b = append(b, '>')
		b = escape(b, []byte(cs[i].Text), false)
		b = append(b, "</changelog>\n"...)
	}
	return append(b, "</package>\n"...)
}

func day(c Change) uint64 { return c.Time / 86400 }

// archiveSize is the size of the payload, not compressed. It moved between the headers.
func archiveSize(p *Package) uint64 {
	switch {
	case p.Sig.Has(SigLongArch):
		return p.Sig.Int(SigLongArch)
	case p.Sig.Has(SigPayload):
		return p.Sig.Int(SigPayload)
	}
	return p.Header.Int(ArchiveSize)
}

func opening(b []byte, h Header, pkgid string) []byte {
	n := h.NEVRA()
	b = append(b, "<package"...)
	b = attr(b, "pkgid", []byte(pkgid))
	b = attr(b, "name", []byte(n.Name))
	b = attr(b, "arch", []byte(n.Arch))
	b = append(b, ">\n"...)
	return version(b, n)
}

func version(b []byte, n NEVRA) []byte {
	b = append(b, "  <version"...)
	b = number(b, "epoch", int64(n.Epoch))
	b = attr(b, "ver", []byte(n.Version))
	b = attr(b, "rel", []byte(n.Release))
	return append(b, "/>\n"...)
}

// primaryFile tells whether primary.xml names a file too (createrepo_c's
// cr_is_primary).
func primaryFile(path string) bool {
	return strings.HasPrefix(path, "/etc/") || strings.Contains(path, "bin/") || path == "/usr/lib/sendmail"
}

func fileLine(b []byte, indent string, f File) []byte {
	b = append(append(b, indent...), "<file"...)
	switch {
	case f.IsDir():
		b = append(b, ` type="dir"`...)
	case f.Flags&FileGhost != 0:
		b = append(b, ` type="ghost"`...)
	}
	b = append(b, '>')
	b = escape(b, []byte(f.Path), false)
	return append(b, "</file>\n"...)
}

func senseOnly(d Dep) Dep {
	d.Flags &= SenseLess | SenseGreater | SenseEqual
	return d
}

// deps appends one list of dependencies by createrepo_c's rules (parsehdr.c): requirements
// on rpm's own features, on files in the package and on what the package provides itself are
// left out, repeated ones are folded, and of those on libc.so.6 the highest stays.
func deps(b []byte, kind DepKind, list []Dep, own map[string]bool, provided map[Dep]bool) []byte {
	type line struct {
		Dep
		pre bool
	}
	var out []line
	var libc *line
	seen := map[string]line{} // the last line of each name: createrepo_c folds against that one only
	for _, d := range list {
		l := line{Dep: senseOnly(d)}
		if kind == Requires {
			if strings.HasPrefix(d.Name, "rpmlib(") || strings.HasPrefix(d.Name, "/") && own[d.Name] || provided[l.Dep] {
				continue
			}
			l.pre = d.Flags&(SensePreReq|SensePre|SensePost) != 0
			if last, ok := seen[d.Name]; ok && last == l {
				continue
			}
			seen[d.Name] = l
			if strings.HasPrefix(d.Name, "libc.so.6") {
				if libc == nil || libcOrder(libc.Name, d.Name) < 0 {
					libc = &l
				}
				continue
			}
		}
		out = append(out, l)
	}
	if libc != nil {
		out = append(out, *libc)
	}
	if len(out) == 0 {
		return b
	}
	b = append(append(append(b, "    <rpm:"...), kind.String()...), ">\n"...)
	for _, l := range out {
		b = append(b, "      <rpm:entry"...)
		b = attr(b, "name", []byte(l.Name))
		if flag := flagName(l.Flags); flag != "" && l.EVR != "" {
			b = attr(b, "flags", []byte(flag))
			e, v, r := SplitEVR(l.EVR)
			b = number(b, "epoch", int64(e))
			b = attr(b, "ver", []byte(v))
			if r != "" {
				b = attr(b, "rel", []byte(r))
			}
		}
		if l.pre {
			b = append(b, ` pre="1"`...)
		}
		b = append(b, "/>\n"...)
	}
	return append(append(append(b, "    </rpm:"...), kind.String()...), ">\n"...)
}

// libcOrder orders "libc.so.6(GLIBC_2.4)(64bit)" by the version in it.
func libcOrder(a, b string) int {
	ver := func(s string) string {
		_, s, _ = strings.Cut(s, "(")
		s, _, _ = strings.Cut(s, ")")
		return s
	}
	return cmp.Or(CompareVersions(ver(a), ver(b)), strings.Compare(a, b))
}

func flagName(f uint32) string {
	switch f & (SenseLess | SenseGreater | SenseEqual) {
	case SenseLess:
		return "LT"
	case SenseGreater:
		return "GT"
	case SenseEqual:
		return "EQ"
	case SenseLess | SenseEqual:
		return "LE"
	case SenseGreater | SenseEqual:
		return "GE"
	}
	return ""
}

func element(b []byte, depth int, name string, text []byte) []byte {
	for range depth {
		b = append(b, "  "...)
	}
	b = append(append(append(b, '<'), name...), '>')
	b = escape(b, text, false)
	return append(append(append(b, "</"...), name...), ">\n"...)
}

func attr(b []byte, name string, v []byte) []byte {
	b = append(append(append(b, ' '), name...), '=', '"')
	return append(escape(b, v, true), '"')
}

func number(b []byte, name string, v int64) []byte {
	b = append(append(append(b, ' '), name...), '=', '"')
	return append(strconv.AppendInt(b, v, 10), '"')
}

// escape appends s as XML text. What is no UTF-8 is taken for Latin-1, as createrepo_c
// does; control characters that XML cannot hold are left out.
func escape(b, s []byte, inAttr bool) []byte {
	if !utf8.Valid(s) {
		var l bytes.Buffer
		for _, c := range s {
			l.WriteRune(rune(c))
		}
		s = l.Bytes()
	}
	for _, c := range s {
		switch {
		case c == '&':
			b = append(b, "&amp;"...)
		case c == '<':
			b = append(b, "&lt;"...)
		case c == '>':
			b = append(b, "&gt;"...)
		case c == '"' && inAttr:
			b = append(b, "&quot;"...)
		case c == '\r':
			b = append(b, "&#13;"...)
		case inAttr && (c == '\n' || c == '\t'):
			b = append(strconv.AppendInt(append(b, "&#"...), int64(c), 10), ';')
		case c < ' ' && c != '\n' && c != '\t':
		default:
			b = append(b, c)
		}
	}
	return b
}
