package rpm

import (
	"bytes"
	"crypto/md5"  //nolint:gosec // an old digest of the format, checked where it is present
	"crypto/sha1" //nolint:gosec // likewise
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"io"

	"drover/internal/fault"
)

// LeadSize is the size of the lead, of which only the magic still means something.
const LeadSize = 96

var leadMagic = [4]byte{0xed, 0xab, 0xee, 0xdb}

// maxHeaders bounds what Read takes into memory: librpm's bound of the store, and the
// largest header seen in the field is a fifteenth of it.
const maxHeaders = 256 << 20

// Package is an RPM file: its two headers and where its parts lie.
type Package struct {
	Lead   []byte
	Sig    Header
	Header Header
	// HeaderStart and HeaderEnd are the byte range of the main header in the file, as
	// repository metadata tells it.
	HeaderStart, HeaderEnd int64
	Size                   int64 // of the file
}

// newDigest is a digest by the number that rpm has for it, nil when it is not known or too
// weak to protect content.
func newDigest(algo uint64) hash.Hash {
	switch algo {
	case digestSHA256:
		return sha256.New()
	case digestSHA384:
		return sha512.New384()
	case digestSHA512:
		return sha512.New()
	case digestSHA3:
		return sha3.New256()
	}
	return nil
}

// Read reads both headers of an RPM file of the given size, of format 4 or 6. It takes no
// more memory than the headers have bytes, and those lie in the file. Errors that the bytes
// are to blame for have code rpm_header.
func Read(r io.ReaderAt, size int64) (*Package, error) {
	p := &Package{Size: size}
	at := func(off int64, n int) ([]byte, error) {
		if n < 0 || off > size || off+int64(n) > size {
			return nil, bad("cut at byte %d of %d", off, size)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(io.NewSectionReader(r, off, int64(n)), b); err != nil {
			return nil, err
		}
		return b, nil
	}
	var err error
	if p.Lead, err = at(0, LeadSize); err != nil {
		return nil, err
	}
	if !bytes.Equal(p.Lead[:4], leadMagic[:]) {
		return nil, bad("no RPM file: the magic is %x", p.Lead[:4])
	}
	header := func(off int64) (Header, int, error) {
		intro, err := at(off, introSize)
		if err != nil {
			return Header{}, 0, err
		}
		n, err := headerSize(intro)
		if err != nil {
			return Header{}, 0, err
		}
		if n > maxHeaders {
			return Header{}, 0, bad("a header of %d bytes", n)
		}
		b, err := at(off, n)
		if err != nil {
			return Header{}, 0, err
		}
		return ParseHeader(b)
	}
	var n int
	if p.Sig, n, err = header(LeadSize); err != nil {
		return nil, err
	}
	p.HeaderStart = LeadSize + int64(n+7)/8*8
	if p.Header, n, err = header(p.HeaderStart); err != nil {
		return nil, err
	}
	p.HeaderEnd = p.HeaderStart + int64(n)
	// A signature header without a region is one of rpm 3; a main header without one can't be
	// signed.
	if t := p.Sig.entry(0).tag; t == RegionImmutable {
		return nil, bad("a main header where the signatures should be")
	}
	if t := p.Header.entry(0).tag; t != RegionImmutable {
		return nil, bad("it has no immutable region, as before rpm 4")
	}
	if p.Header.Text(Name) == nil || p.Header.Text(Version) == nil || p.Header.Text(Release) == nil {
		return nil, bad("no name, version or release")
	}
	return p, nil
}

// NEVRA is the name of the package.
func (p *Package) NEVRA() NEVRA { return p.Header.NEVRA() }

// HeaderSHA256 is the hex sha256 of the main header: the package's identity whatever its
// signatures.
func (p *Package) HeaderSHA256() string {
	h := sha256.Sum256(p.Header.Raw())
	return hex.EncodeToString(h[:])
}

// Head is the lead and the padded signature header; the rest of the file from HeaderStart
// is the core, which no signature changes.
func (p *Package) Head() []byte { return head(p.Lead, p.Sig) }

func head(lead []byte, sig Header) []byte {
	b := make([]byte, 0, LeadSize+len(sig.raw)+7)
	b = append(append(b, lead...), sig.raw...)
	return append(b, make([]byte, -len(sig.raw)&7)...)
}

// VerifyDigests reads the whole file and checks every digest and size that the package
// tells of itself. A package without any digest of header and payload is refused.
func (p *Package) VerifyDigests(r io.ReaderAt) error {
	wrong := func(what string) error {
		return fault.Invalid("rpm_digest", "%s: the %s does not match its bytes", p.NEVRA(), what).Fix("the file is damaged or was changed; fetch or build it again")
	}
	core := p.Size - p.HeaderStart
	payload := p.Size - p.HeaderEnd
	raw := p.Header.Raw()
	hdr := 0
	for _, c := range []struct {
		tag  Tag
		sum  func() hash.Hash
		name string
	}{{SigSHA1, sha1.New, "sha1 of the header"}, {SigSHA256, sha256.New, "sha256 of the header"}, {SigSHA3, func() hash.Hash { return sha3.New256() }, "sha3-256 of the header"}} {
		want := p.Sig.Text(c.tag)
		if want == nil {
			continue
		}
		h := c.sum()
		h.Write(raw)
		if hex.EncodeToString(h.Sum(nil)) != string(want) {
			return wrong(c.name)
		}
		hdr++
	}
	if p.Sig.Has(SigSize) && p.Sig.Int(SigSize) != uint64(core) || p.Sig.Has(SigLongSize) && p.Sig.Int(SigLongSize) != uint64(core) {
		return wrong("size")
	}
	var hashes []io.Writer
	var checks []func() error
	add := func(h hash.Hash, withHeader bool, want []byte, name string) {
		if withHeader {
			h.Write(raw)
		}
		hashes = append(hashes, h)
		checks = append(checks, func() error {
			if !bytes.Equal(h.Sum(nil), want) {
				return wrong(name)
			}
			return nil
		})
	}
	if m := p.Sig.Bytes(SigMD5); m != nil {
		add(md5.New(), true, m, "md5 of header and payload") //nolint:gosec // as the format has it
	}
	for _, c := range []struct {
		tag  Tag
		algo uint64
	}{{PayloadSHA, p.Header.Int(PayloadAlgo)}, {Payload512, digestSHA512}, {PayloadSHA3, digestSHA3}} {
		want := p.Header.Text(c.tag)
		if len(want) == 0 {
			continue
		}
		if c.algo == 0 {
			c.algo = digestSHA256 // rpm 6 no longer writes the algorithm: the tag is sha256 by name
		}
		h := newDigest(c.algo)
		b, err := hex.DecodeString(string(want))
		if err != nil || h == nil {
			return bad("%s has a payload digest of unknown algorithm %d", p.NEVRA(), c.algo)
		}
		add(h, false, b, "digest of the payload")
	}
	if hdr == 0 && p.Sig.Bytes(SigMD5) == nil || len(checks) == 0 {
		return fault.Invalid("rpm_digest", "%s carries no digest of its header or payload", p.NEVRA()).Fix("build it with rpm 4 or newer")
	}
	n, err := io.Copy(io.MultiWriter(hashes...), io.NewSectionReader(r, p.HeaderEnd, payload))
	if err != nil {
		return err
	}
	if n != payload {
		return bad("cut in the payload")
	}
	for _, c := range checks {
		if err := c(); err != nil {
			return err
		}
	}
	return nil
}
