package rpm

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"unicode/utf8"
)

// Entry is what a repository says of one package in one of its three files.
type Entry struct {
	PkgID string // hex digest of the package file, by which the three files name it
	// XML is the <package> element as the repository wrote it and a line end: an entry like
	// those of Primary, Filelists and Other, of which Kind.Head and Kind.Tail make a file. It
	// is valid until the call that got it returns.
	XML []byte
	// Package is what primary.xml says, without dependencies and files (ReadPrimaryEntry has
	// those); of the other kinds there is nothing.
	Package PrimaryPackage
}

// maxAttrs bounds the attributes of an element: real ones have six.
const maxAttrs = 16

// ReadEntries reads one of the three files that list packages, compressed or not, of up to
// 4 GiB, and gives each package's entry verbatim, so that other files can be made of them. It
// holds one entry at a time; an error of fn ends it.
//
// As the entries will be served as drover's own, it takes no word on trust: what XML does not
// allow is refused, and so is everything that would mean something else under another root
// (prefixes but "rpm", namespaces of its own, a base for locations), or that no generator of
// repositories writes (comments, CDATA, processing instructions among the packages). Whoever
// calls falls back to the packages' headers then. A repository may name a package twice.
// Errors have code repodata or repodata_location.
func ReadEntries(r io.Reader, k Kind, fn func(Entry) error) error {
	in, done, err := Open(r)
	if err != nil {
		return err
	}
	defer done()
	x := newScanner(&bounded{r: in, left: maxOpen})
	if err := x.prolog(); err != nil {
		return err
	}
	t, err := x.element()
	if err != nil {
		return err
	}
	if err := k.checkRoot(t); err != nil {
		return err
	}
	if t.empty {
		return x.tail()
	}
	var fields *scanner // of a primary entry
	var b []byte
	for n := 0; ; n++ {
		if n > maxPackage {
			return badMeta("%s.xml names over %d packages", k, maxPackage)
		}
		if b, err = x.entry(b[:0]); err != nil {
			return err
		}
		if rest, ok := bytes.CutPrefix(b, []byte("</"+k.root())); ok && len(bytes.TrimLeft(rest, " \t\r\n")) == 1 {
			x.open = x.open[:0]
			return x.tail()
		}
		e := Entry{XML: append(b, '\n')}
		b = e.XML
		if e.PkgID, err = checkEntry(b[:len(b)-1], k); err != nil {
			return err
		}
		if k == KindPrimary {
			if fields == nil {
				fields = newScanner(nil)
			}
			if e.Package, err = fields.primaryEntry(b, false); err != nil {
				return err
			}
			e.PkgID = e.Package.Sum
		}
		if err := fn(e); err != nil {
			return err
		}
	}
}

// ReadPrimaryEntry reads the entry of a package in primary.xml, as Entry has it, with
// dependencies and files. Errors have code repodata or repodata_location.
func ReadPrimaryEntry(b []byte) (PrimaryPackage, error) {
	if len(b) > maxEntry {
		return PrimaryPackage{}, badMeta("a package with over %d bytes of metadata", maxEntry)
	}
	x := &scanner{r: bufio.NewReaderSize(nil, min(len(b), 64<<10))}
	return x.primaryEntry(b, true)
}

// primaryEntry reads an entry of primary.xml that stands alone.
func (x *scanner) primaryEntry(b []byte, withDeps bool) (p PrimaryPackage, err error) {
	x.r.Reset(bytes.NewReader(b))
	x.open = append(x.open[:0], []byte("metadata")) // as if inside
	t, err := x.element()
	if err != nil {
		return p, err
	}
	if string(t.name) != "package" || t.empty {
		return p, badMeta("a %.40q where a package is", t.name)
	}
	if p, err = primaryPackage(x, withDeps); err != nil {
		return p, err
	}
	x.open = x.open[:0]
	return p, x.tail()
}

// prolog looks at the XML declaration, if there is one: the text must be UTF-8.
func (x *scanner) prolog() error {
	if b, _ := x.r.Peek(6); string(b) != "<?xml " {
		return nil
	}
	b, err := x.until('>', maxText)
	if err != nil {
		return err
	}
	t := tag{name: []byte("xml"), attrs: bytes.TrimSuffix(b[len("<?xml"):], []byte("?"))}
	enc, err := t.attr("encoding")
	if err == nil && enc != "" && !strings.EqualFold(enc, "utf-8") && !strings.EqualFold(enc, "us-ascii") {
		err = badMeta("the encoding %.40q", enc)
	}
	return err
}

// namespace is what names without a prefix belong to in the files of a kind.
func (k Kind) namespace() string {
	return nsBase + [...]string{"common", "filelists", "other"}[k]
}

// checkRoot checks that names mean under a repository's root what they mean under ours.
func (k Kind) checkRoot(t tag) error {
	if string(t.name) != k.root() || t.end {
		return badMeta("%s.xml starts with %.40q", k, t.name)
	}
	for _, a := range []struct{ name, want string }{{"xmlns", k.namespace()}, {"xmlns:rpm", nsBase + "rpm"}} {
		got, err := t.attr(a.name)
		if err != nil {
			return err
		}
		if got != a.want && got != "" { // libsolv and createrepo_c look at no namespace: some have none
			return badMeta("the namespace %.100q", got)
		}
	}
	base, err := t.attr("xml:base")
	if err == nil && base != "" {
		err = badMeta("packages that lie elsewhere, at %.200q", base)
	}
	return err
}

// entry appends the next package to b, or the end of the root. With comments and CDATA
// refused, no "<" but that of a tag can stand in a package, so that its end is where it seems
// to be.
func (x *scanner) entry(b []byte) ([]byte, error) {
	blank, err := x.skip('<')
	if err != nil {
		return b, cut(err)
	}
	if !blank {
		return b, badMeta("text between the packages")
	}
	for b = append(b, '<'); ; {
		part, err := x.r.ReadSlice('>')
		b = append(b, part...)
		switch {
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return b, cut(err)
		case len(b) > maxEntry:
			return b, badMeta("a package with over %d bytes of metadata", maxEntry)
		case err == nil && bytes.HasSuffix(b, []byte("</package>")), b[1] == '/' && err == nil:
			return b, nil
		}
	}
}

// checkEntry checks that b is one package element which may stand under the root of its kind,
// and gives its pkgid where the element itself names it.
func checkEntry(b []byte, k Kind) (pkgid string, err error) {
	if err := xmlChars(b); err != nil {
		return "", err
	}
	var open [maxDepth][]byte
	depth := 1 // the root
	for len(b) > 0 {
		i := bytes.IndexByte(b, '<')
		if i < 0 || depth == 1 && i > 0 || i == len(b)-1 {
			return "", badMeta("text between the packages")
		}
		if err := xmlText(b[:i]); err != nil {
			return "", err
		}
		if b = b[i+1:]; b[0] == '/' {
			end := bytes.IndexByte(b, '>')
			if end < 0 || depth == 1 || !bytes.Equal(bytes.TrimRight(b[1:end], " \t\r\n"), open[depth]) {
				return "", badMeta("the end of %.40q, which is not open", b)
			}
			b = b[end+1:]
			if depth--; depth == 1 && len(b) > 0 {
				return "", badMeta("text between the packages")
			}
			continue
		}
		name := entryName(b, k)
		if name == 0 || depth == 1 && string(b[:name]) != "package" {
			return "", badMeta("an element named %.40q where packages are", b)
		}
		this := b[:name]
		id, empty, rest, err := entryAttrs(this, b[name:])
		if err != nil {
			return "", err
		}
		if b = rest; depth == 1 {
			pkgid = id
		}
		if empty && depth == 1 {
			return "", badMeta("a package without anything")
		}
		if !empty {
			if depth++; depth == maxDepth {
				return "", badMeta("elements nested over %d deep", maxDepth)
			}
			open[depth] = this
		}
	}
	if depth != 1 {
		return "", badMeta("a package that does not end")
	}
	if k != KindPrimary {
		if _, err := hex.DecodeString(pkgid); err != nil || len(pkgid) < sumSizes["sha1"] || len(pkgid) > sumSizes["sha512"] {
			return "", badMeta("a package with the pkgid %.140q", pkgid)
		}
	}
	return pkgid, nil
}

// entryName is the length of the element's name that b starts with, 0 if no element of the kind
// has such a name.
func entryName(b []byte, k Kind) int {
	from := 0
	if k == KindPrimary && bytes.HasPrefix(b, []byte("rpm:")) {
		from = len("rpm:")
	}
	if n := plainName(b[from:]); n > 0 {
		return from + n
	}
	return 0
}

// plainName is the length of the name without a prefix that b starts with, 0 if there is none.
func plainName(b []byte) int {
	for i, c := range b {
		if !isAlpha(c) && c != '_' && (i == 0 || !isDigit(c) && c != '-' && c != '.') {
			if c == ':' {
				return 0
			}
			return i
		}
	}
	return len(b)
}

// entryAttrs reads the attributes of an element up to its end.
func entryAttrs(element, b []byte) (pkgid string, empty bool, rest []byte, err error) {
	var seen [maxAttrs][]byte
	for n := 0; ; n++ {
		trimmed := bytes.TrimLeft(b, " \t\r\n")
		switch {
		case bytes.HasPrefix(trimmed, []byte(">")):
			return pkgid, false, trimmed[1:], nil
		case bytes.HasPrefix(trimmed, []byte("/>")):
			return pkgid, true, trimmed[2:], nil
		case len(trimmed) == len(b):
			return "", false, nil, badMeta("attributes of %.40q that run together", element)
		case n == maxAttrs:
			return "", false, nil, badMeta("a %.40q with over %d attributes", element, maxAttrs)
		}
		b = trimmed
		size := plainName(b)
		for _, known := range []string{"xml:lang", "xml:space"} {
			if size == 0 && bytes.HasPrefix(b, []byte(known)) {
				size = len(known)
			}
		}
		name := b[:size]
		b = b[size:]
		if size == 0 || len(b) < 3 || b[0] != '=' || b[1] != '"' && b[1] != '\'' || bytes.HasPrefix(name, []byte("xmlns")) {
			return "", false, nil, badMeta("an attribute of %.40q that is none of a repository", element)
		}
		end := bytes.IndexByte(b[2:], b[1])
		if end < 0 {
			return "", false, nil, badMeta("an attribute of %.40q that does not end", element)
		}
		value := b[2 : 2+end]
		if err := xmlText(value); err != nil {
			return "", false, nil, err
		}
		if bytes.IndexByte(value, '<') >= 0 {
			return "", false, nil, badMeta("a \"<\" in an attribute of %.40q", element)
		}
		for _, s := range seen[:n] {
			if bytes.Equal(s, name) {
				return "", false, nil, badMeta("the attribute %q comes twice", name)
			}
		}
		seen[n] = name
		if string(name) == "pkgid" {
			pkgid = string(value)
		}
		b = b[2+end+1:]
	}
}

// xmlChars checks that b is UTF-8 of characters that XML may hold.
func xmlChars(b []byte) error {
	if !utf8.Valid(b) {
		return badMeta("bytes that are no UTF-8")
	}
	for _, c := range b {
		if c < ' ' && c != '\n' && c != '\t' && c != '\r' {
			return badMeta("a control character")
		}
	}
	if bytes.Contains(b, []byte("\uffff")) || bytes.Contains(b, []byte("\ufffe")) {
		return badMeta("a character that XML has not")
	}
	return nil
}

// xmlText checks the references of a text or a value.
func xmlText(b []byte) error {
	if bytes.Contains(b, []byte("]]>")) {
		return badMeta("the end of a CDATA section in a text")
	}
	for {
		i := bytes.IndexByte(b, '&')
		if i < 0 {
			return nil
		}
		b = b[i+1:]
		n := bytes.IndexByte(b[:min(len(b), maxRef)], ';')
		if n < 0 {
			return badMeta("a %q in a text", '&')
		}
		if _, ok := reference(string(b[:n])); !ok {
			return badMeta("the entity %.40q", b[:n])
		}
		b = b[n+1:]
	}
}
