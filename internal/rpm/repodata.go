package rpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Codec is how repository metadata is compressed.
type Codec string

// The codecs. Every dnf of EL9 and EL10 reads zstd; gzip is for older clients. Both may come
// as several members (frames) in a row; xz may not: createrepo_c, dnf and libsolv read the
// first one only.
const (
	Zstd  Codec = "zst"
	Gzip  Codec = "gz"
	Plain Codec = ""
)

// Ext is what the codec adds to a file's name: ".zst", or nothing.
func (c Codec) Ext() string {
	if c == Plain {
		return ""
	}
	return "." + string(c)
}

// Packer packs with one codec. Only one goroutine may use it at a time.
type Packer struct {
	codec Codec
	z     *zstd.Encoder
	g     *gzip.Writer
}

// NewPacker makes a packer. The levels never change: others would give other checksums, and
// every client would fetch everything again. A chunk hardly goes beyond the window, which a
// packer holds in memory.
func NewPacker(c Codec) (p *Packer, err error) {
	p = &Packer{codec: c}
	switch c {
	case Zstd:
		p.z, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
	case Gzip:
		p.g, err = gzip.NewWriterLevel(nil, 6)
	}
	return p, err
}

// Pack appends open as one member.
func (p *Packer) Pack(b, open []byte) ([]byte, error) {
	switch p.codec {
	case Zstd:
		return p.z.EncodeAll(open, b), nil
	case Gzip:
		out := bytes.NewBuffer(b)
		p.g.Reset(out)
		if _, err := p.g.Write(open); err != nil {
			return nil, err
		}
		err := p.g.Close()
		return out.Bytes(), err
	}
	return append(b, open...), nil
}

// MetaFile is one file of repository metadata.
type MetaFile struct {
	Type     string // "primary"
	Name     string // "repodata/<sha256>-primary.xml.zst"
	Data     []byte
	Size     int64  // of Data
	Sum      string // hex sha256 of Data
	OpenSum  string // of what is in it; "" when it is not told
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

// String is the kind as repomd.xml names it.
func (k Kind) String() string { return [...]string{"primary", "filelists", "other"}[k] }

func (k Kind) root() string { return [...]string{"metadata", "filelists", "otherdata"}[k] }

// Head is what stands before the entries of one of the three files.
func (k Kind) Head(packages int) []byte {
	ns := `xmlns="` + nsBase + [...]string{"common", "filelists", "other"}[k] + `"`
	if k == KindPrimary {
		ns += ` xmlns:rpm="` + nsBase + `rpm"`
	}
	return fmt.Appendf(nil, "%s<%s %s packages=\"%d\">\n", xmlHead, k.root(), ns, packages)
}

// Tail is what stands after them.
func (k Kind) Tail() []byte { return []byte("</" + k.root() + ">") }

// Metadata writes the metadata files of a small repository whole, each as one member: the
// same packages in the same order give the same bytes. comps may be nil.
func Metadata(pkgs []Fragments, comps []byte, codec Codec) ([]MetaFile, error) {
	parts := [...]func(Fragments) []byte{
		func(f Fragments) []byte { return f.Primary },
		func(f Fragments) []byte { return f.Filelists },
		func(f Fragments) []byte { return f.Other },
	}
	pack, err := NewPacker(codec)
	if err != nil {
		return nil, err
	}
	var out []MetaFile
	for k := KindPrimary; k <= KindOther; k++ {
		b := k.Head(len(pkgs))
		for _, p := range pkgs {
			b = append(b, parts[k](p)...)
		}
		m, err := NewMetaFile(k.String(), append(b, k.Tail()...), pack)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	if comps != nil {
		// Readers of groups differ in what they unpack: plain text is read by all.
		m, err := NewMetaFile("group", comps, &Packer{})
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// NewMetaFile packs a whole metadata file of the given type of repomd.xml.
func NewMetaFile(typ string, open []byte, pack *Packer) (m MetaFile, err error) {
	m = MetaFile{Type: typ, OpenSum: sum(open), OpenSize: int64(len(open))}
	if m.Data, err = pack.Pack(nil, open); err != nil {
		return m, err
	}
	m.Sum, m.Size = sum(m.Data), int64(len(m.Data))
	m.Name = MetaName(typ, m.Sum, pack.codec)
	return m, nil
}

// ChunkIndex is the type of the file that tells of which chunks the others are made. Readers of
// repositories take no notice of types that they do not know.
const ChunkIndex = "drover-chunks"

// MetaName is where a metadata file lies below the repository's root.
func MetaName(typ, sum string, c Codec) string {
	file := typ + ".xml"
	switch typ {
	case "group":
		file = "comps.xml"
	case "modules":
		file = "modules.yaml"
	case ChunkIndex:
		file = "chunks"
	}
	return "repodata/" + sum + "-" + file + c.Ext()
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
		if f.OpenSum != "" && f.OpenSum != f.Sum {
			fmt.Fprintf(&b, "    <open-checksum type=\"sha256\">%s</open-checksum>\n", f.OpenSum)
		}
		fmt.Fprintf(&b, "    <location href=\"%s\"/>\n    <timestamp>%d</timestamp>\n    <size>%d</size>\n", f.Name, time, f.Size)
		if f.OpenSize > 0 && f.OpenSum != f.Sum {
			fmt.Fprintf(&b, "    <open-size>%d</open-size>\n", f.OpenSize)
		}
		b.WriteString("  </data>\n")
	}
	b.WriteString("</repomd>\n")
	return b.Bytes()
}
