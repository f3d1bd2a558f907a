package rpm

import (
	"bytes"
	"strconv"
)

// Reuse makes the template of a package from its entries as another repository has them, which
// ReadEntries has checked: with the holes of NewTemplate, so that the package can be served from
// another place and with another signature. It is false when the entries tell the place in
// another way than createrepo_c does; Verbatim serves then where nothing changes.
func Reuse(primary, filelists, other []byte, p PrimaryPackage) (t Template, ok bool) {
	i := func(n int64) string { return strconv.FormatInt(n, 10) }
	holes := []hole{
		{"checksum", "", p.Sum}, {"time", "file", i(p.FileTime)}, {"size", "package", i(p.Size)}, {"location", "href", ""},
		{"rpm:header-range", "start", i(p.HeaderStart)}, {"rpm:header-range", "end", i(p.HeaderEnd)},
	}
	if p.Algo != "sha256" {
		return t, false // the hole is for a sha256
	}
	for k, open := range [][]byte{primary, filelists, other} {
		if Kind(k) != KindPrimary {
			holes = []hole{{"package", "pkgid", p.Sum}}
		}
		if t.open[k], t.cuts[k], ok = punch(open, holes); !ok {
			return Template{}, false
		}
	}
	return t, true
}

// hole is where a value stands: the attribute of an element, or its text; "" for any value.
type hole struct{ element, attr, value string }

// punch takes values out of a text, which has them in this order.
func punch(text []byte, holes []hole) (open []byte, cuts []int, ok bool) {
	rest := text
	for n, h := range holes {
		at := 0
		if n == 0 || holes[n-1].element != h.element { // else the one before ended inside the element
			if at = bytes.Index(rest, []byte("<"+h.element+" ")); at < 0 {
				return nil, nil, false
			}
		}
		end := bytes.IndexByte(rest[at:], '>')
		if end < 0 {
			return nil, nil, false
		}
		from, quote := at+end+1, byte('<')
		if h.attr != "" {
			from = bytes.Index(rest[at:at+end], []byte(" "+h.attr+"="))
			if from += at + len(h.attr) + 3; from < at+len(h.attr)+3 {
				return nil, nil, false
			}
			quote = rest[from-1]
		}
		size := bytes.IndexByte(rest[from:], quote)
		if size < 0 || h.attr != "" && quote != '"' || h.value != "" && string(rest[from:from+size]) != h.value {
			return nil, nil, false
		}
		open = append(open, rest[:from]...)
		cuts = append(cuts, len(open))
		rest = rest[from+size:]
	}
	return append(open, rest...), cuts, true
}

// Revision is what a repomd.xml calls its state: seconds since 1970 as a rule; 0 when it is no
// number or not told. Errors have code repodata.
func Revision(b []byte) (n int64, err error) {
	if len(b) > maxRepomd {
		return 0, badMeta("a repomd.xml of %d bytes", len(b))
	}
	x := newScanner(bytes.NewReader(b))
	root, err := x.element()
	if err != nil {
		return 0, err
	}
	err = x.children(root, func(t tag) error {
		if string(t.name) != "revision" {
			return nil
		}
		s, err := x.word(t)
		if err == nil {
			n, _ = strconv.ParseInt(s, 10, 64)
		}
		return err
	})
	return max(n, 0), err
}
