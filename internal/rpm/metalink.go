package rpm

import (
	"bytes"
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Metalink is what a repository's manager of mirrors says of its repomd.xml: what it must
// be, and where it lies. It gives freshness and integrity to mirrors that nobody vouches for.
type Metalink struct {
	Time       int64 // when it was made, seconds since 1970; 0 when not told
	Current    MetalinkFile
	Alternates []MetalinkFile // former ones, which mirrors may have for a while
	Mirrors    []MetalinkMirror
}

// MetalinkFile is one repomd.xml.
type MetalinkFile struct {
	Time int64 // seconds since 1970
	Size int64
	Sums map[string]string // hex by algorithm: "sha256", "sha512" …; never md5 or sha1 alone
}

// MetalinkMirror is a place of a repository.
type MetalinkMirror struct {
	Root       string // the repository's root, an http or https URL that ends in "/"
	Location   string // a country's two letters
	Preference int    // 1 to 100, higher is better
}

// Bounds of lists of mirrors: Fedora's have 1,000 and 200 KiB.
const (
	maxMirrorText = 4 << 20
	maxMirrors    = 4096
	maxAlternates = 256
)

const repomdPath = "repodata/repomd.xml"

// ReadMetalink reads a metalink 3.0 as Fedora's and CentOS's MirrorManager serve it, of at most
// 4 MiB. Mirrors come in the order in which they are to be tried; those of other protocols than
// http and https are passed over. A metalink without a usable checksum is refused. Errors have
// code repodata.
func ReadMetalink(b []byte) (m Metalink, err error) {
	if len(b) > maxMirrorText {
		return m, badMeta("a metalink of %d bytes", len(b))
	}
	x := newScanner(bytes.NewReader(b))
	root, err := x.element()
	if err != nil {
		return m, err
	}
	if string(root.name) != "metalink" || root.end {
		return m, badMeta("a metalink that starts with %.40q", root.name)
	}
	published, err := root.attr("pubdate")
	if err != nil {
		return m, err
	}
	if t, err := time.Parse(time.RFC1123, published); err == nil { // no date is no harm
		m.Time = t.Unix()
	}
	found := false
	err = x.children(root, func(t tag) error {
		if string(t.name) != "files" {
			return nil
		}
		return x.children(t, func(t tag) error {
			if string(t.name) != "file" {
				return nil
			}
			name, err := t.attr("name")
			if err != nil || name != "repomd.xml" && !strings.HasSuffix(name, "/repomd.xml") {
				return err
			}
			if found {
				return badMeta("a metalink of two repomd.xml")
			}
			found = true
			return m.file(x, t)
		})
	})
	if err == nil {
		err = x.tail()
	}
	if err == nil && (!found || len(m.Current.Sums) == 0) {
		err = badMeta("a metalink without a checksum of repomd.xml")
	}
	slices.SortStableFunc(m.Mirrors, func(a, b MetalinkMirror) int { return cmp.Compare(b.Preference, a.Preference) })
	return m, err
}

// file reads the file element.
func (m *Metalink) file(x *scanner, t tag) error {
	seen := map[string]bool{}
	return x.children(t, func(t tag) error {
		switch string(t.name) {
		case "mm0:alternates":
			return x.children(t, func(t tag) error {
				if string(t.name) != "mm0:alternate" {
					return nil
				}
				var f MetalinkFile
				err := x.children(t, func(t tag) error { return f.field(x, t) })
				if err == nil && len(m.Alternates) == maxAlternates {
					err = badMeta("a metalink with over %d alternates", maxAlternates)
				}
				if len(f.Sums) > 0 {
					m.Alternates = append(m.Alternates, f)
				}
				return err
			})
		case "resources":
			return x.children(t, func(t tag) error {
				if string(t.name) != "url" {
					return nil
				}
				var n MetalinkMirror
				p, err := t.attr("preference")
				if err == nil {
					n.Location, err = t.attr("location")
				}
				if err != nil {
					return err
				}
				n.Preference, _ = strconv.Atoi(p) // none is the lowest
				n.Preference = min(max(n.Preference, 0), 100)
				s, err := x.word(t)
				if err != nil {
					return err
				}
				base, ok := strings.CutSuffix(s, repomdPath)
				if n.Root, ok = mirrorURL(base), ok && mirrorURL(base) != ""; !ok || seen[n.Root] {
					return nil
				}
				if len(m.Mirrors) == maxMirrors {
					return badMeta("over %d mirrors", maxMirrors)
				}
				seen[n.Root] = true
				m.Mirrors = append(m.Mirrors, n)
				return nil
			})
		}
		return m.Current.field(x, t)
	})
}

// field takes one of the elements of a file.
func (f *MetalinkFile) field(x *scanner, t tag) (err error) {
	var to *int64
	switch string(t.name) {
	case "mm0:timestamp":
		to = &f.Time
	case "size":
		to = &f.Size
	case "verification":
		return x.children(t, func(t tag) error {
			if string(t.name) != "hash" {
				return nil
			}
			algo, err := t.attr("type")
			if err != nil {
				return err
			}
			sum, err := x.word(t)
			if err != nil || algo == "md5" || sumSizes[algo] < sumSizes["sha256"] {
				return err
			}
			if !checkSum(algo, sum) || f.Sums[algo] != "" {
				return badMeta("a metalink whose %.20q of repomd.xml is none", algo)
			}
			if f.Sums == nil {
				f.Sums = map[string]string{}
			}
			f.Sums[algo] = sum
			return nil
		})
	default:
		return nil
	}
	s, err := x.word(t)
	if err != nil {
		return err
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return badMeta("a metalink with %.40q for a number", s)
	}
	*to = int64(n)
	return nil
}

// mirrorURL is the root of a repository with a slash at its end, or "" when it is none that
// can be fetched from.
func mirrorURL(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(s) > maxText {
		return ""
	}
	return strings.TrimRight(s, "/") + "/"
}

// XML writes a metalink that dnf reads.
func (m Metalink) XML() []byte {
	b := []byte(`<?xml version="1.0" encoding="utf-8"?>` + "\n" + `<metalink version="3.0" xmlns="http://www.metalinker.org/" type="dynamic"`)
	if m.Time != 0 {
		b = attr(b, "pubdate", []byte(time.Unix(m.Time, 0).UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT")))
	}
	b = append(b, ` generator="drover" xmlns:mm0="http://fedorahosted.org/mirrormanager">`+"\n <files>\n  <file name=\"repomd.xml\">\n"...)
	b = m.Current.xml(b, "   ")
	if len(m.Alternates) > 0 {
		b = append(b, "   <mm0:alternates>\n"...)
		for _, f := range m.Alternates {
			b = append(b, "    <mm0:alternate>\n"...)
			b = f.xml(b, "     ")
			b = append(b, "    </mm0:alternate>\n"...)
		}
		b = append(b, "   </mm0:alternates>\n"...)
	}
	b = append(b, "   <resources maxconnections=\"1\">\n"...)
	for _, n := range m.Mirrors {
		proto, _, _ := strings.Cut(n.Root, ":")
		b = append(b, "    <url"...)
		b = attr(b, "protocol", []byte(proto))
		b = attr(b, "type", []byte(proto))
		if n.Location != "" {
			b = attr(b, "location", []byte(n.Location))
		}
		b = number(b, "preference", int64(n.Preference))
		b = append(escape(append(b, '>'), []byte(n.Root+repomdPath), false), "</url>\n"...)
	}
	return append(b, "   </resources>\n  </file>\n </files>\n</metalink>\n"...)
}

func (f MetalinkFile) xml(b []byte, indent string) []byte {
	b = fmt.Appendf(b, "%[1]s<mm0:timestamp>%[2]d</mm0:timestamp>\n%[1]s<size>%[3]d</size>\n%[1]s<verification>\n", indent, f.Time, f.Size)
	for _, algo := range []string{"sha256", "sha384", "sha512"} {
		if s := f.Sums[algo]; s != "" {
			b = fmt.Appendf(b, "%s <hash type=\"%s\">%s</hash>\n", indent, algo, s)
		}
	}
	return fmt.Appendf(b, "%s</verification>\n", indent)
}

// ReadMirrorlist reads a plain list of URLs of a repository, of at most 4 MiB: each once, with a
// slash at its end, those of other protocols than http and https passed over. A list without
// any is refused. Errors have code repodata.
func ReadMirrorlist(b []byte) (roots []string, err error) {
	if len(b) > maxMirrorText {
		return nil, badMeta("a list of mirrors of %d bytes", len(b))
	}
	seen := map[string]bool{}
	for line := range bytes.Lines(b) {
		line = bytes.TrimSpace(line[:min(len(line), maxText)])
		if len(line) < 4 || !bytes.EqualFold(line[:4], []byte("http")) {
			continue // a comment, or of a kind that is not read; parsing it would cost many times its length
		}
		u := mirrorURL(string(line))
		if u == "" || seen[u] {
			continue
		}
		if len(roots) == maxMirrors {
			return nil, badMeta("over %d mirrors", maxMirrors)
		}
		seen[u] = true
		roots = append(roots, u)
	}
	if len(roots) == 0 {
		return nil, badMeta("a list of mirrors without any")
	}
	return roots, nil
}
