package rpm

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strconv"

	"drover/internal/fault"
)

// holes is what Place puts into an entry of primary.xml, in the order of the holes.
func (p Place) holes() []string {
	i := func(n int64) string { return strconv.FormatInt(n, 10) }
	return []string{p.PkgID, i(p.Mtime), i(p.Size), p.Href, i(p.HeaderStart), i(p.HeaderEnd)}
}

// fill appends open with the values put in at the cuts. The values stand in attributes, or
// need no escaping.
func fill(b, open []byte, cuts []int, values []string) []byte {
	from := 0
	for i, c := range cuts {
		b = append(b, open[from:c]...)
		b = escape(b, []byte(values[i]), true)
		from = c
	}
	return append(b, open[from:]...)
}

// Template is what repository metadata says of a package, with holes where a signature makes
// a difference: one for all signatures, at all places. The zero value says nothing.
type Template struct {
	open [3][]byte // entries of primary.xml, filelists.xml, other.xml
	cuts [3][]int
}

// NewTemplate makes the template of a package.
func NewTemplate(p *Package) (t Template) {
	var f, o int
	// All three lie behind each other: a header becomes about half as long again.
	room := make([]byte, 0, len(p.Header.Raw())*3/2)
	t.open[0], t.cuts[0] = primary(room, p)
	t.open[1], f = filelists(behind(t.open[0]), p.Header)
	t.open[2], o = other(behind(t.open[1]), p.Header)
	t.cuts[1], t.cuts[2] = []int{f}, []int{o}
	for k, b := range t.open {
		t.open[k] = slices.Clip(b)
	}
	return t
}

// behind is the room that is left in b's memory, as an empty slice.
func behind(b []byte) []byte { return b[len(b):] }

// Verbatim is a template without holes: the entries as another repository has them.
func Verbatim(primary, filelists, other []byte) Template {
	return Template{open: [3][]byte{primary, filelists, other}}
}

// Kind numbers the three files that list the packages of a repository.
type Kind int

// The kinds, in the order in which repomd.xml names them.
const (
	KindPrimary Kind = iota
	KindFilelists
	KindOther
)

// Append appends the entry of one kind for a package at a place.
func (t Template) Append(b []byte, k Kind, at Place) []byte {
	values := at.holes()
	return fill(b, t.open[k], t.cuts[k], values[:len(t.cuts[k])])
}

// templateVersion is the first byte of an encoded template.
const templateVersion = 1

// Encode is the template as bytes. The same template gives the same bytes.
func (t Template) Encode() []byte {
	b := []byte{templateVersion}
	for k := range t.open {
		b = binary.AppendUvarint(b, uint64(len(t.open[k])))
		b = binary.AppendUvarint(b, uint64(len(t.cuts[k])))
		from := 0
		for _, c := range t.cuts[k] {
			b = binary.AppendUvarint(b, uint64(c-from))
			from = c
		}
	}
	for _, o := range t.open {
		b = append(b, o...)
	}
	return b
}

// DecodeTemplate reads what Encode wrote; the template keeps b. The fault is template_damaged.
func DecodeTemplate(b []byte) (t Template, err error) {
	bad := fault.Internal("template_damaged", "a stored metadata entry is damaged")
	if len(b) == 0 || b[0] != templateVersion {
		return t, bad
	}
	b = b[1:]
	next := func() int {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > maxEntry {
			err = bad
			return 0
		}
		b = b[size:]
		return int(n)
	}
	var lens [3]int
	for k := range t.open {
		lens[k] = next()
		n := next()
		if n > len(Place{}.holes()) {
			return t, bad
		}
		at := 0
		for range n {
			at += next()
			t.cuts[k] = append(t.cuts[k], at)
		}
		if at > lens[k] {
			return t, bad
		}
	}
	if err != nil || lens[0]+lens[1]+lens[2] != len(b) {
		return t, bad
	}
	for k, n := range lens {
		t.open[k], b = b[:n:n], b[n:]
	}
	return t, nil
}

// ChangelogOf lists the changelog entries of a package's entry in other.xml, newest first:
// author and text. What is no such entry has none.
func ChangelogOf(other []byte) (out []string) {
	eachText(other, "changelog", "author", func(author, text string) { out = append(out, "* "+author+"\n"+text) })
	slices.Reverse(out)
	return out
}

// FilesOf calls fn for each file of a package's entry in filelists.xml, with its type: "" for a
// file, "dir" or "ghost". What is no such entry has none.
func FilesOf(filelists []byte, fn func(path, typ string)) {
	eachText(filelists, "file", "type", func(typ, path string) { fn(path, typ) })
}

// eachText calls fn for each element of a name in an entry, with an attribute and its text.
func eachText(entry []byte, name, attr string, fn func(attr, text string)) {
	x := newScanner(bytes.NewReader(entry))
	for {
		t, err := x.element()
		if err != nil {
			return
		}
		if string(t.name) != name || t.end {
			continue
		}
		v, err := t.attr(attr)
		if err != nil {
			return
		}
		text, err := x.text(t)
		if err != nil {
			return
		}
		fn(v, text)
	}
}

// SplitEntries takes entries apart that stand one after the other, as Template.Append writes
// them and as Entry has them.
func SplitEntries(open []byte) (out [][]byte) {
	end := []byte("</package>\n") // no text holds it: < is escaped there
	for len(open) > 0 {
		i := bytes.Index(open, end)
		if i < 0 {
			return nil
		}
		out, open = append(out, open[:i+len(end)]), open[i+len(end):]
	}
	return out
}
