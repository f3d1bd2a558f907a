package rpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"drover/internal/fault"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Codec is how repository metadata is compressed.
type Codec string

// The codecs. Every dnf of EL9 and EL10 reads zstd; gzip is for older clients.
const (
	Zstd Codec = "zst"
	Gzip Codec = "gz"
)

// MetaFile is one file of repository metadata.
type MetaFile struct {
	Type     string // "primary"
	Name     string // "repodata/<sha256>-primary.xml.zst"
	Data     []byte
	Sum      string // hex sha256 of Data
	OpenSum  string // of what is in it
	OpenSize int64
}

// Fragments is the three entries of a package, as rendered by Primary, Filelists and Other.
type Fragments struct {
	Primary, Filelists, Other []byte
}

const (
	xmlHead = `<?xml version="1.0" encoding="UTF-8"?>` + "\n"
	nsBase  = "http://linux.duke.edu/metadata/"
)

// Metadata writes the metadata files of a repository: the same packages in the same order
// give the same bytes. comps may be nil.
func Metadata(pkgs []Fragments, comps []byte, codec Codec) ([]MetaFile, error) {
	kinds := []struct {
		name, root, ns string
		part           func(Fragments) []byte
	}{
		{"primary", "metadata", `xmlns="` + nsBase + `common" xmlns:rpm="` + nsBase + `rpm"`, func(f Fragments) []byte { return f.Primary }},
		{"filelists", "filelists", `xmlns="` + nsBase + `filelists"`, func(f Fragments) []byte { return f.Filelists }},
		{"other", "otherdata", `xmlns="` + nsBase + `other"`, func(f Fragments) []byte { return f.Other }},
	}
	var out []MetaFile
	for _, k := range kinds {
		var b bytes.Buffer
		fmt.Fprintf(&b, "%s<%s %s packages=\"%d\">\n", xmlHead, k.root, k.ns, len(pkgs))
		for _, p := range pkgs {
			b.Write(k.part(p))
		}
		fmt.Fprintf(&b, "</%s>", k.root)
		m, err := metaFile(k.name, b.Bytes(), codec)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	if comps != nil {
		// Readers of groups differ in what they unpack: plain text is read by all.
		m, err := metaFile("group", comps, "")
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

func metaFile(typ string, open []byte, codec Codec) (MetaFile, error) {
	m := MetaFile{Type: typ, OpenSum: sum(open), OpenSize: int64(len(open)), Data: open}
	file := typ + ".xml"
	if typ == "group" {
		file = "comps.xml"
	}
	switch codec {
	case Zstd:
		z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return m, err
		}
		m.Data = z.EncodeAll(open, nil)
		file += ".zst"
	case Gzip:
		var b bytes.Buffer
		g, err := gzip.NewWriterLevel(&b, 6)
		if err != nil {
			return m, err
		}
		if _, err := g.Write(open); err != nil {
			return m, err
		}
		if err := g.Close(); err != nil {
			return m, err
		}
		m.Data = b.Bytes()
		file += ".gz"
	}
	m.Sum = sum(m.Data)
	m.Name = "repodata/" + m.Sum + "-" + file
	return m, nil
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// Repomd writes repomd.xml: the root of a repository. revision and time are given by the
// caller, so that the same state gives the same bytes.
func Repomd(files []MetaFile, revision, time int64) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s<repomd xmlns=\"%srepo\" xmlns:rpm=\"%srpm\">\n  <revision>%d</revision>\n", xmlHead, nsBase, nsBase, revision)
	for _, f := range files {
		fmt.Fprintf(&b, "  <data type=\"%s\">\n    <checksum type=\"sha256\">%s</checksum>\n", f.Type, f.Sum)
		if f.OpenSum != f.Sum {
			fmt.Fprintf(&b, "    <open-checksum type=\"sha256\">%s</open-checksum>\n", f.OpenSum)
		}
		fmt.Fprintf(&b, "    <location href=\"%s\"/>\n    <timestamp>%d</timestamp>\n    <size>%d</size>\n", f.Name, time, len(f.Data))
		if f.OpenSum != f.Sum {
			fmt.Fprintf(&b, "    <open-size>%d</open-size>\n", f.OpenSize)
		}
		b.WriteString("  </data>\n")
	}
	b.WriteString("</repomd>\n")
	return b.Bytes()
}

// Data is a metadata file as repomd.xml names it.
type Data struct {
	Type string
	Href string
	Sum  string // hex
	Algo string // "sha256", "sha512", "sha1" …
	Size int64  // 0 when not told
}

// Bounds of what a repository may claim.
const (
	maxRepomd  = 1 << 20
	maxData    = 100
	maxOpen    = 4 << 30
	maxPackage = 2_000_000
)

func badMeta(format string, args ...any) *fault.Error {
	return fault.Invalid("repodata", "bad repository metadata: "+format, args...)
}

// ReadRepomd reads a repomd.xml.
func ReadRepomd(b []byte) ([]Data, error) {
	if len(b) > maxRepomd {
		return nil, badMeta("a repomd.xml of %d bytes", len(b))
	}
	var doc struct {
		XMLName xml.Name `xml:"repomd"`
		Data    []struct {
			Type     string `xml:"type,attr"`
			Checksum struct {
				Type string `xml:"type,attr"`
				Sum  string `xml:",chardata"`
			} `xml:"checksum"`
			Location struct {
				Href string `xml:"href,attr"`
			} `xml:"location"`
			Size int64 `xml:"size"`
		} `xml:"data"`
	}
	if err := xml.Unmarshal(b, &doc); err != nil {
		return nil, badMeta("repomd.xml is no XML of its kind").Wrap(err)
	}
	if len(doc.Data) == 0 || len(doc.Data) > maxData {
		return nil, badMeta("repomd.xml names %d files", len(doc.Data))
	}
	var out []Data
	primary := false
	for _, d := range doc.Data {
		x := Data{Type: d.Type, Href: d.Location.Href, Sum: strings.TrimSpace(d.Checksum.Sum), Algo: d.Checksum.Type, Size: d.Size}
		if err := CheckHref(x.Href); err != nil {
			return nil, err
		}
		if _, err := hex.DecodeString(x.Sum); err != nil || len(x.Sum) < 40 || x.Size < 0 {
			return nil, badMeta("the %q file of repomd.xml has no usable checksum or size", x.Type)
		}
		primary = primary || d.Type == "primary"
		out = append(out, x)
	}
	if !primary {
		return nil, badMeta("repomd.xml names no primary file")
	}
	return out, nil
}

// CheckHref refuses a location that is not below the repository's root.
func CheckHref(href string) error {
	if href == "" || len(href) > 1024 || strings.HasPrefix(href, "/") || strings.Contains(href, "://") || strings.ContainsAny(href, "\x00\n\r\\") || path.Clean(href) != href ||
		href == ".." || strings.HasPrefix(href, "../") {
		return fault.Invalid("repodata_location", "the location %.200q does not lie in the repository", href).Fix("the repository is broken or hostile")
	}
	return nil
}

// PrimaryPackage is a package as primary.xml names it.
type PrimaryPackage struct {
	NEVRA
	Sum  string // hex
	Algo string // "sha256"
	Href string
	Size int64
}

// ReadPrimary reads a primary.xml, compressed or not, package by package. It takes what is
// needed to fetch the packages and checks that the locations stay in the repository.
func ReadPrimary(r io.Reader, fn func(PrimaryPackage) error) error {
	open, closer, err := Open(r)
	if err != nil {
		return err
	}
	defer closer()
	d := xml.NewDecoder(&bounded{r: open, left: maxOpen})
	d.Strict = true
	n := 0
	for {
		tok, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return badMeta("primary.xml cannot be read").Wrap(err)
		}
		se, ok := tok.(xml.StartElement)
		if !ok || se.Name.Local != "package" || se.Name.Space != "" {
			continue
		}
		if n++; n > maxPackage {
			return badMeta("primary.xml names over %d packages", maxPackage)
		}
		p, err := primaryPackage(d)
		if err != nil {
			return err
		}
		if err := fn(p); err != nil {
			return err
		}
	}
}

func primaryPackage(d *xml.Decoder) (p PrimaryPackage, err error) {
	get := func(se xml.StartElement, name string) string {
		for _, a := range se.Attr {
			if a.Name.Local == name {
				return a.Value
			}
		}
		return ""
	}
	var text *string
	depth := 1
	for depth > 0 {
		tok, err := d.RawToken()
		if err != nil {
			return p, badMeta("primary.xml ends in a package").Wrap(err)
		}
		switch t := tok.(type) {
		case xml.StartElement:
			depth++
			text = nil
			if depth != 2 || t.Name.Space != "" {
				continue
			}
			switch t.Name.Local {
			case "name":
				text = &p.Name
			case "arch":
				text = &p.Arch
			case "checksum":
				p.Algo, text = get(t, "type"), &p.Sum
			case "version":
				p.Version, p.Release = get(t, "ver"), get(t, "rel")
				if _, err := fmt.Sscan(get(t, "epoch"), &p.Epoch); err != nil && get(t, "epoch") != "" {
					return p, badMeta("a package with epoch %.40q", get(t, "epoch"))
				}
			case "size":
				if _, err := fmt.Sscan(get(t, "package"), &p.Size); err != nil || p.Size < 0 {
					return p, badMeta("a package of size %.40q", get(t, "package"))
				}
			case "location":
				p.Href = get(t, "href")
			}
		case xml.EndElement:
			depth--
			text = nil
		case xml.CharData:
			if text != nil && len(*text)+len(t) < 1024 {
				*text += string(t)
			}
		}
	}
	if err := CheckHref(p.Href); err != nil {
		return p, err
	}
	if _, err := hex.DecodeString(p.Sum); err != nil || len(p.Sum) < 40 || p.Name == "" || p.Arch == "" || p.Version == "" {
		return p, badMeta("the package at %q has no name, version or checksum", p.Href)
	}
	return p, nil
}

// Open unpacks a metadata file by its first bytes: zstd, gzip, xz, or none.
func Open(r io.Reader) (io.Reader, func(), error) {
	var m [6]byte
	n, err := io.ReadFull(r, m[:])
	if err != nil && n == 0 {
		return nil, nil, badMeta("an empty file")
	}
	all := io.MultiReader(bytes.NewReader(m[:n]), r)
	switch {
	case bytes.HasPrefix(m[:], []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(all, zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return nil, nil, badMeta("broken zstd").Wrap(err)
		}
		return z, z.Close, nil
	case bytes.HasPrefix(m[:], []byte{0x1f, 0x8b}):
		g, err := gzip.NewReader(all)
		if err != nil {
			return nil, nil, badMeta("broken gzip").Wrap(err)
		}
		return g, func() { _ = g.Close() }, nil
	case bytes.HasPrefix(m[:], []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		x, err := xz.ReaderConfig{DictCap: 128 << 20}.NewReader(all)
		if err != nil {
			return nil, nil, badMeta("broken xz").Wrap(err)
		}
		return x, func() {}, nil
	}
	return all, func() {}, nil
}
