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
