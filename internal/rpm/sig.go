package rpm

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"io"
	"slices"

	"drover/internal/fault"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Replace gives the package's head (lead and signature header) with another signature.
//
// The signature goes where rpm 4 looks for it: an RSA one into tag 268, any other into 267.
// The other of the two slots and the rpm 3 signatures over header and payload (1002, 1005)
// are dropped: they are of an earlier key, and a reader that checks them would ask for it.
// Everything else stays, byte for byte: digests, IMA and fsverity signatures (274 to 277),
// the list of rpm 6 (278). Where rpmbuild left reserved space, the new head has the old
// one's length, so that the file does.
func (p *Package) Replace(sig []byte) ([]byte, error) {
	pk, err := packet.Read(bytes.NewReader(sig))
	if err != nil {
		return nil, fault.Invalid("signature", "the signature for %s is no OpenPGP packet", p.NEVRA()).Wrap(err)
	}
	s, ok := pk.(*packet.Signature)
	if !ok {
		return nil, fault.Invalid("signature", "the OpenPGP packet for %s is no signature", p.NEVRA())
	}
	tag := SigDSA
	if s.PubKeyAlgo == packet.PubKeyAlgoRSA || s.PubKeyAlgo == packet.PubKeyAlgoRSASignOnly {
		tag = SigRSA
	}
	drop := []Tag{SigRSA, SigDSA, SigPGP, SigGPG, SigReserve, SigRegion}
	var es []sigEntry
	for i := range p.Sig.Len() {
		e := p.Sig.entry(i)
		if slices.Contains(drop, e.tag) {
			continue
		}
		es = append(es, sigEntry{e.tag, e.typ, e.count, p.Sig.data(e)})
	}
	es = append(es, sigEntry{tag, TypeBin, uint32(len(sig)), sig})
	if old, ok := p.Sig.find(SigReserve); ok && old.typ == TypeBin {
		// The size without any reserve tells how much fits beside it.
		room := len(p.Sig.raw) - len(writeHeader(SigRegion, es)) - entrySize
		if room > 0 {
			es = append(es, sigEntry{SigReserve, TypeBin, uint32(room), make([]byte, room)})
		}
	}
	raw := writeHeader(SigRegion, es)
	h, _, err := ParseHeader(raw)
	if err != nil {
		return nil, err
	}
	return head(p.Lead, h), nil
}

// data is the bytes of an entry's values.
func (h Header) data(e entry) []byte {
	if w := width(e.typ); w > 0 {
		return h.store[e.offset : int(e.offset)+int(e.count)*w]
	}
	end := int(e.offset)
	for range e.count {
		end += bytes.IndexByte(h.store[end:], 0) + 1
	}
	return h.store[e.offset:end]
}

type sigEntry struct {
	tag   Tag
	typ   uint32
	count uint32
	data  []byte
}

// writeHeader lays out a header with its region tag first, entries sorted by tag, values
// aligned to their width, and the region's trailer at the end of the store.
func writeHeader(region Tag, es []sigEntry) []byte {
	es = slices.Clone(es)
	slices.SortStableFunc(es, func(a, b sigEntry) int { return cmp.Compare(a.tag, b.tag) })
	var index, store []byte
	line := func(tag Tag, typ, offset, count uint32) {
		for _, v := range []uint32{uint32(tag), typ, offset, count} {
			index = binary.BigEndian.AppendUint32(index, v)
		}
	}
	for _, e := range es {
		if w := width(e.typ); w > 1 {
			store = append(store, make([]byte, -len(store)&(w-1))...)
		}
		line(e.tag, e.typ, uint32(len(store)), e.count)
		store = append(store, e.data...)
	}
	entries := index
	index = nil
	line(region, TypeBin, uint32(len(store)), entrySize)
	index = append(index, entries...)
	for _, v := range []uint32{uint32(region), TypeBin, uint32(-len(index)), entrySize} {
		store = binary.BigEndian.AppendUint32(store, v)
	}
	b := append([]byte{}, magic[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(index)/entrySize))
	b = binary.BigEndian.AppendUint32(b, uint32(len(store)))
	return append(append(b, index...), store...)
}

// Signature is what a package's signature header says of one signature.
type Signature struct {
	Tag   Tag
	KeyID uint64
	Algo  packet.PublicKeyAlgorithm
	Hash  crypto.Hash
	raw   []byte
}

// Signatures lists the signatures over the main header.
func (p *Package) Signatures() []Signature {
	var out []Signature
	for _, tag := range []Tag{SigRSA, SigDSA} {
		b := p.Sig.Bytes(tag)
		if b == nil {
			continue
		}
		pk, err := packet.Read(bytes.NewReader(b))
		s, ok := pk.(*packet.Signature)
		if err != nil || !ok {
			continue
		}
		sig := Signature{Tag: tag, Algo: s.PubKeyAlgo, Hash: s.Hash, raw: b}
		if s.IssuerKeyId != nil {
			sig.KeyID = *s.IssuerKeyId
		}
		out = append(out, sig)
	}
	return out
}

// VerifySignature checks that the package's header is signed by one of the keys. A package
// without a signature fails with rpm_unsigned, one by other keys or for other bytes with
// rpm_signature.
func (p *Package) VerifySignature(keys openpgp.EntityList) error {
	sigs := p.Signatures()
	if len(sigs) == 0 {
		return fault.Invalid("rpm_unsigned", "%s carries no signature of its header", p.NEVRA())
	}
	var last error
	for _, s := range sigs {
		if _, last = openpgp.CheckDetachedSignature(keys, bytes.NewReader(p.Header.Raw()), bytes.NewReader(s.raw), nil); last == nil {
			return nil
		}
	}
	return fault.Invalid("rpm_signature", "no signature of %s is good", p.NEVRA()).Wrap(last)
}

// Midstate is the state of a sha256 that has read b, as crypto/sha256 marshals it, and the
// finished sum in hex: what a signer needs to sign b without seeing it.
func Midstate(b []byte) (state []byte, sum string, err error) {
	h := sha256.New()
	h.Write(b)
	m, ok := h.(encoding.BinaryMarshaler)
	if !ok {
		return nil, "", fault.Internal("sha256_state", "this sha256 does not give out its state")
	}
	state, err = m.MarshalBinary()
	return state, hex.EncodeToString(h.Sum(nil)), err
}

// Armor writes a signature packet as a detached signature file: repomd.xml.asc.
func Armor(sig []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := armor.Encode(&b, openpgp.SignatureType, nil)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(sig); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// Splice reads a package file as its head followed by its core.
func Splice(head []byte, core io.ReaderAt, size int64) io.ReaderAt {
	return &splice{head, core, size}
}

type splice struct {
	head []byte
	core io.ReaderAt
	size int64 // of the core
}

// ReadAt implements io.ReaderAt.
func (s *splice) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fault.Internal("offset", "negative offset")
	}
	if off < int64(len(s.head)) {
		n = copy(p, s.head[off:])
		if n == len(p) {
			return n, nil
		}
		off = int64(len(s.head))
	}
	off -= int64(len(s.head))
	if off >= s.size {
		return n, io.EOF
	}
	m, err := s.core.ReadAt(p[n:], off)
	return n + m, err
}
