package rpm

import (
	"bytes"
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
	open, cuts := primary(nil, p)
	return fill(b, open, cuts, at.holes())
}

// primary writes the entry with nothing in its holes, and where these are: in the order of
// Place.holes.
func primary(b []byte, p *Package) (_ []byte, cuts []int) {
	h := p.Header
	n := h.NEVRA()
	hole := func(before, after string) {
		b = append(b, before...)
		cuts = append(cuts, len(b))
		b = append(b, after...)
	}
	b = append(b, "<package type=\"rpm\">\n"...)
	b = element(b, 1, "name", []byte(n.Name))
	b = element(b, 1, "arch", []byte(n.Arch))
	b = version(b, n)
	hole(`  <checksum type="sha256" pkgid="YES">`, "</checksum>\n")
	b = element(b, 1, "summary", h.Text(Summary))
	b = element(b, 1, "description", h.Text(Description))
	b = element(b, 1, "packager", h.Text(Packager))
	b = element(b, 1, "url", h.Text(URL))
	hole(`  <time file="`, `"`)
	b = number(b, "build", int64(h.Int(BuildTime)))
	hole("/>\n  <size package=\"", `"`)
	installed := h.Int(Size)
	if h.Has(LongSize) {
		installed = h.Int(LongSize)
	}
	b = number(b, "installed", int64(installed))
	b = number(b, "archive", int64(archiveSize(p)))
	hole("/>\n  <location href=\"", "\"/>\n  <format>\n")
	for _, e := range []struct {
		name string
		tag  Tag
	}{{"license", License}, {"vendor", Vendor}, {"group", Group}, {"buildhost", BuildHost}, {"sourcerpm", SourceRPM}} {
		b = element(b, 2, "rpm:"+e.name, h.Text(e.tag))
	}
	hole(`    <rpm:header-range start="`, `"`)
	hole(` end="`, "\"/>\n")
	b = deps(b, Provides, provides(h))
	requires, recommends := requires(h)
	b = deps(b, Requires, requires)
	b = deps(b, Conflicts, plain(h, Conflicts, nil))
	b = deps(b, Obsoletes, plain(h, Obsoletes, nil))
	oldSug, strongSug := legacy(h, oldSuggests)
	oldEnh, strongEnh := legacy(h, oldEnhances)
	b = deps(b, Suggests, append(plain(h, Suggests, nil), oldSug...))
	b = deps(b, Enhances, append(plain(h, Enhances, nil), oldEnh...))
	b = deps(b, Recommends, append(plain(h, Recommends, recommends), strongSug...))
	b = deps(b, Supplements, append(plain(h, Supplements, nil), strongEnh...))
	// Lists that do not fit each other are refused when a package comes in (CheckPaths).
	for w, err := h.FileWalk(); err == nil && w.Next(); {
		if primaryFile(w.Dir(), w.Base()) {
			b = fileLine(b, "    ", &w)
		}
	}
	return append(b, "  </format>\n</package>\n"...), cuts
}

// Filelists appends the package's entry of filelists.xml.
func Filelists(b []byte, h Header, pkgid string) []byte {
	open, cut := filelists(nil, h)
	return fill(b, open, []int{cut}, []string{pkgid})
}

func filelists(b []byte, h Header) (_ []byte, cut int) {
	b, cut = opening(b, h)
	for w, err := h.FileWalk(); err == nil && w.Next(); { // as in Primary
		b = fileLine(b, "  ", &w)
	}
	return append(b, "</package>\n"...), cut
}

// Other appends the package's entry of other.xml: the newest changelog entries, oldest
// first.
func Other(b []byte, h Header, pkgid string) []byte {
	open, cut := other(nil, h)
	return fill(b, open, []int{cut}, []string{pkgid})
}

func other(b []byte, h Header) (_ []byte, cut int) {
	b, cut = opening(b, h)
	cs := changes(h, changelogLimit)
	// Readers sort by time: entries of one time are told apart by a second each, the newer
	// ones later.
	var last uint64
	for i := range cs {
		t := cs[i].Time
		if i > 0 && t == last {
			for j := i - 1; j >= 0 && cs[j].Time == t; j-- {
				cs[j].Time++
				t++
			}
		}
		last = cs[i].Time
	}
	for _, c := range slices.Backward(cs) {
		b = append(b, "  <changelog"...)
		b = attr(b, "author", []byte(c.Author))
		b = number(b, "date", int64(c.Time))
		b = append(b, '>')
		b = escape(b, []byte(c.Text), false)
		b = append(b, "</changelog>\n"...)
	}
	return append(b, "</package>\n"...), cut
}

// changes is the first n entries of the changelog, authors without spaces at their end.
func changes(h Header, n int) []Change {
	var out []Change
	times, names, texts := h.Ints(ChangeTime), h.walk(ChangeName), h.walk(ChangeText)
	for i := 0; i < min(n, times.Len()) && names.Next() && texts.Next(); i++ {
		who := names.cur
		for len(who) > 1 && who[len(who)-1] == ' ' {
			who = who[:len(who)-1]
		}
		out = append(out, Change{times.At(i), string(who), string(texts.cur)})
	}
	return out
}

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

func opening(b []byte, h Header) (_ []byte, cut int) {
	n := h.NEVRA()
	b = append(b, `<package pkgid="`...)
	cut = len(b)
	b = append(b, '"')
	b = attr(b, "name", []byte(n.Name))
	b = attr(b, "arch", []byte(n.Arch))
	b = append(b, ">\n"...)
	return version(b, n), cut
}

func version(b []byte, n NEVRA) []byte {
	b = append(b, "  <version"...)
	b = number(b, "epoch", int64(n.Epoch))
	b = attr(b, "ver", []byte(n.Version))
	b = attr(b, "rel", []byte(n.Release))
	return append(b, "/>\n"...)
}

// primaryFile tells whether primary.xml names a file too (createrepo_c's cr_is_primary).
func primaryFile(dir, base []byte) bool {
	const etc, bin, sendmail = "/etc/", "bin/", "/usr/lib/sendmail"
	if len(dir) == 0 { // the whole path is in base
		return bytes.HasPrefix(base, []byte(etc)) || bytes.Contains(base, []byte(bin)) || string(base) == sendmail
	}
	return bytes.HasPrefix(dir, []byte(etc)) || bytes.Contains(dir, []byte(bin)) || string(dir) == "/usr/lib/" && string(base) == "sendmail" || bytes.Contains(base, []byte(bin))
}

func fileLine(b []byte, indent string, w *FileWalk) []byte {
	b = append(append(b, indent...), "<file"...)
	switch {
	case w.Mode()&modeType == modeDir:
		b = append(b, ` type="dir"`...)
	case w.Flags()&FileGhost != 0:
		b = append(b, ` type="ghost"`...)
	}
	b = append(b, '>')
	if dir, base := w.Dir(), w.Base(); utf8.Valid(dir) && utf8.Valid(base) {
		b = escape(escape(b, dir, false), base, false)
	} else {
		b = escape(b, append(bytes.Clone(dir), base...), false)
	}
	return append(b, "</file>\n"...)
}

// depLine is one dependency as repository metadata has it.
type depLine struct {
	name            []byte
	flag            string // "EQ", "LT" …; "" when any version does
	epoch, ver, rel []byte
	pre             bool
}

// newLine reads a dependency (createrepo_c's cr_str_to_evr). It differs from rpm's reading:
// the release follows the first dash, and a dependency whose epoch is no number is left out.
func newLine(w *DepWalk) (l depLine, ok bool) {
	l = depLine{name: w.Name(), flag: flagName(w.Flags())}
	evr := w.EVR()
	if len(evr) == 0 {
		return l, true
	}
	l.epoch, l.ver = []byte("0"), evr
	if e, rest, found := bytes.Cut(evr, []byte(":")); found {
		if len(e) > 0 {
			if len(run(string(e), isDigit)) != len(e) {
				return l, false
			}
			l.epoch = e
		}
		l.ver = rest
	}
	if v, r, found := bytes.Cut(l.ver, []byte("-")); found {
		l.ver, l.rel = v, r
	}
	return l, true
}

// plain appends the dependencies of one kind as they are.
func plain(h Header, kind DepKind, out []depLine) []depLine {
	for w := h.Deps(kind); w.Next(); {
		if l, ok := newLine(&w); ok {
			out = append(out, l)
		}
	}
	return out
}

func provides(h Header) []depLine { return plain(h, Provides, nil) }

// legacy is weak dependencies of SUSE and Mandriva before rpm 4.12: the strong ones count as
// recommendations.
func legacy(h Header, kind DepKind) (weak, strong []depLine) {
	for w := h.Deps(kind); w.Next(); {
		if l, ok := newLine(&w); !ok {
			continue
		} else if w.Flags()&SenseStrong != 0 {
			strong = append(strong, l)
		} else {
			weak = append(weak, l)
		}
	}
	return weak, strong
}

// requires is the requirements by createrepo_c's rules (parsehdr.c): those on rpm's own
// features, on files in the package that primary.xml names, and on what the package provides
// in the same words are left out; repeated ones are folded; of those on libc.so.6 the highest
// stays, at the end. Those that may be missing are recommendations.
func requires(h Header) (out, recommends []depLine) {
	const scripts = SensePreReq | SensePre | SensePost | SensePreTrans | SensePostTrans
	var provided, own map[string]struct{}
	var key []byte
	words := func(w *DepWalk) []byte {
		key = append(append(append(key[:0], w.Name()...), flagName(w.Flags())...), w.EVR()...)
		return key
	}
	provided = map[string]struct{}{}
	for w := h.Deps(Provides); w.Next(); {
		if _, ok := newLine(&w); ok {
			provided[string(words(&w))] = struct{}{}
		}
	}
	type seenAs struct {
		flag, evr string
		pre       bool
	}
	seen := map[string]seenAs{} // the last line of each name: it alone is compared with
	var libc *depLine
	for w := h.Deps(Requires); w.Next(); {
		name := w.Name()
		if bytes.HasPrefix(name, []byte("rpmlib(")) {
			continue
		}
		if len(name) > 0 && name[0] == '/' && primaryFile(nil, name) {
			if own == nil {
				own = primaryFiles(h)
			}
			if _, ok := own[string(name)]; ok {
				continue
			}
		}
		if _, ok := provided[string(words(&w))]; ok {
			continue
		}
		as := seenAs{flagName(w.Flags()), string(w.EVR()), w.Flags()&scripts != 0}
		if last, ok := seen[string(name)]; ok && last == as {
			continue
		}
		l, ok := newLine(&w)
		switch {
		case !ok:
			continue
		case w.Flags()&SenseMissingOK != 0:
			recommends = append(recommends, l)
			continue
		}
		l.pre = as.pre
		if bytes.HasPrefix(name, []byte("libc.so.6")) {
			if libc == nil || libcHigher(string(libc.name), string(name)) {
				libc = &l
			}
			continue
		}
		seen[string(name)] = as
		out = append(out, l)
	}
	if libc != nil {
		out = append(out, *libc)
	}
	return out, recommends
}

// primaryFiles is the paths that primary.xml names.
func primaryFiles(h Header) map[string]struct{} {
	out := map[string]struct{}{}
	for w, err := h.FileWalk(); err == nil && w.Next(); {
		if primaryFile(w.Dir(), w.Base()) {
			out[string(w.Dir())+string(w.Base())] = struct{}{}
		}
	}
	return out
}

// deps appends one list of dependencies.
func deps(b []byte, kind DepKind, list []depLine) []byte {
	if len(list) == 0 {
		return b
	}
	b = append(append(append(b, "    <rpm:"...), kind.String()...), ">\n"...)
	open := len(b)
	for _, l := range list {
		if len(l.name) == 0 {
			continue
		}
		b = append(b, "      <rpm:entry"...)
		b = attr(b, "name", l.name)
		if l.flag != "" {
			b = attr(b, "flags", []byte(l.flag))
			if len(l.epoch) > 0 {
				b = attr(b, "epoch", l.epoch)
			}
			if len(l.ver) > 0 {
				b = attr(b, "ver", l.ver)
			}
			if len(l.rel) > 0 {
				b = attr(b, "rel", l.rel)
			}
		}
		if l.pre {
			b = append(b, ` pre="1"`...)
		}
		b = append(b, "/>\n"...)
	}
	if len(b) == open {
		return append(b[:open-2], "/>\n"...)
	}
	return append(append(append(b, "    </rpm:"...), kind.String()...), ">\n"...)
}

// libcHigher tells whether b stands for a higher version of libc than a: libc.so.6 is below
// libc.so.6()(64bit), below libc.so.6(GLIBC_2.3.4)(64bit), below libc.so.6(GLIBC_2.4).
func libcHigher(a, b string) bool {
	ar, av := libcVersion(a)
	br, bv := libcVersion(b)
	if ar != br {
		return ar < br
	}
	return CompareVersions(av, bv) < 0
}

// libcVersion is the version in the first parentheses of a dependency on libc, and how far
// there is one.
func libcVersion(s string) (rank int, ver string) {
	_, s, ok := strings.Cut(s, "(")
	if !ok {
		return 0, ""
	}
	in, _, ok := strings.Cut(s, ")")
	if !ok {
		return 1, ""
	}
	if in == "" {
		return 2, ""
	}
	i := strings.IndexAny(in, "0123456789")
	if i < 0 {
		return 3, ""
	}
	return 4, in[i:]
}

func flagName(f uint32) string {
	switch f & 0xf {
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

// escape appends s as XML text, as libxml2 writes it. What is no UTF-8 is taken for
// Latin-1 without its upper control characters, as createrepo_c does. Characters that XML
// cannot hold are left out; createrepo_c leaves the package out then.
func escape(b, s []byte, inAttr bool) []byte {
	if !utf8.Valid(s) {
		l := make([]byte, 0, 2*len(s))
		for _, c := range s {
			if c < 0x80 || c >= 0xc0 {
				l = utf8.AppendRune(l, rune(c))
			}
		}
		s = l
	}
	from := 0
	for i := 0; i < len(s); i++ {
		var with string
		switch c := s[i]; {
		case c == '&':
			with = "&amp;"
		case c == '<':
			with = "&lt;"
		case c == '>':
			with = "&gt;"
		case c == '"' && inAttr:
			with = "&quot;"
		case c == '\r':
			with = "&#13;"
		case c == '\n' && inAttr:
			with = "&#10;"
		case c == '\t' && inAttr:
			with = "&#9;"
		case c < ' ' && c != '\n' && c != '\t':
		case c == 0xef && s[i+1] == 0xbf && s[i+2] >= 0xbe: // U+FFFE and U+FFFF
			b = append(b, s[from:i]...)
			i += 2
			from = i + 1
			continue
		default:
			continue
		}
		b = append(append(b, s[from:i]...), with...)
		from = i + 1
	}
	return append(b, s[from:]...)
}
