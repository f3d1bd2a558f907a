package rpm

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/sha256"
	"encoding"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"time"

	"drover/internal/fault"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// parseSig reads one OpenPGP signature packet (RFC 9580) and nothing after it.
func parseSig(b []byte) (*packet.Signature, error) {
	r := packet.NewReader(bytes.NewReader(b))
	pk, err := r.Next()
	if err != nil {
		return nil, fault.Invalid("signature", "no OpenPGP packet that can be read").Wrap(err)
	}
	s, ok := pk.(*packet.Signature)
	if !ok {
		return nil, fault.Invalid("signature", "an OpenPGP packet that is no signature")
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		return nil, fault.Invalid("signature", "something follows the OpenPGP signature")
	}
	return s, nil
}

func (p *Package) parseSig(b []byte) (*packet.Signature, error) {
	if len(p.Header.Text(PayloadSHA)) == 0 {
		return nil, fault.Invalid("rpm_unsignable", "%s has no digest of its payload in its header", p.NEVRA()).Fix("build it again with rpm 4.14 or newer")
	}
	return parseSig(b)
}

func isRSA(a packet.PublicKeyAlgorithm) bool {
	return a == packet.PubKeyAlgoRSA || a == packet.PubKeyAlgoRSASignOnly
}

// Replace gives the package's head (lead and signature header) with another signature, an
// OpenPGP packet over the bytes of Header.Raw.
//
// The signature goes where rpm 4 looks for it: an RSA one into tag 268, any other into 267.
// The other of the two slots and the rpm 3 signatures over header and payload (1002, 1005)
// are dropped: they are of an earlier key, and a reader that checks them would ask for it.
// A package with a list of rpm 6 (278) gets it there too, as rpm 6 looks at the list alone
// where there is one. Everything else stays, byte for byte: digests, IMA and fsverity
// signatures (274 to 277), the others of the list. Where rpmbuild left reserved space (1008,
// 999 in format 6), the new head has the old one's length, so that the file does.
//
// A package whose header holds no digest of its payload (rpm before 4.14) is refused with
// rpm_unsignable: the signature would not cover the content, and rpm says so.
func (p *Package) Replace(sig []byte) ([]byte, error) {
	s, err := p.parseSig(sig)
	if err != nil {
		return nil, err
	}
	es := p.sigEntries(SigRSA, SigDSA, SigPGP, SigGPG)
	tag := SigDSA
	if isRSA(s.PubKeyAlgo) {
		tag = SigRSA
	}
	es = append(es, sigEntry{tag, TypeBin, uint32(len(sig)), sig})
	if p.Sig.Has(SigOpenPGP) {
		es = p.list(es, s, sig)
	}
	return p.newHead(es)
}

// Append gives the package's head with one more signature in the list of rpm 6 (tag 278),
// in place of an earlier one by the same key. All other signatures stay. rpm 4 does not see
// the list.
func (p *Package) Append(sig []byte) ([]byte, error) {
	s, err := p.parseSig(sig)
	if err != nil {
		return nil, err
	}
	return p.newHead(p.list(p.sigEntries(), s, sig))
}

// sigEntries is the entries of the signature header but for the reserve, the region and
// those named.
func (p *Package) sigEntries(drop ...Tag) []sigEntry {
	drop = append(drop, SigReserve, SigReserve6, SigRegion)
	var es []sigEntry
	for i := range p.Sig.Len() {
		if e := p.Sig.entry(i); !slices.Contains(drop, e.tag) {
			es = append(es, sigEntry{e.tag, e.typ, e.count, p.Sig.data(e)})
		}
	}
	return es
}

// list puts a signature into the list of rpm 6.
func (p *Package) list(es []sigEntry, s *packet.Signature, sig []byte) []sigEntry {
	n := sigEntry{tag: SigOpenPGP, typ: TypeArray}
	for _, old := range p.Sig.Texts(SigOpenPGP) {
		b, err := base64.StdEncoding.DecodeString(string(old))
		if err == nil {
			if o, err := parseSig(b); err == nil && o.IssuerKeyId != nil && s.IssuerKeyId != nil && *o.IssuerKeyId == *s.IssuerKeyId {
				continue
			}
		}
		n.data = append(append(n.data, old...), 0)
		n.count++
	}
	n.data = append(base64.StdEncoding.AppendEncode(n.data, sig), 0)
	n.count++
	return append(slices.DeleteFunc(es, func(e sigEntry) bool { return e.tag == SigOpenPGP }), n)
}

// newHead lays the entries out, with as much reserve as keeps the head's length.
func (p *Package) newHead(es []sigEntry) ([]byte, error) {
	for _, tag := range []Tag{SigReserve6, SigReserve} {
		if !p.Sig.Has(tag) {
			continue
		}
		// The size without any reserve tells how much fits beside it.
		if room := len(p.Sig.raw) - len(writeHeader(SigRegion, es)) - entrySize; room > 0 {
			es = append(es, sigEntry{tag, TypeBin, uint32(room), make([]byte, room)})
		}
	}
	h, _, err := ParseHeader(writeHeader(SigRegion, es))
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

// Signature is what a package says of one signature over its main header.
type Signature struct {
	Tag     Tag // SigRSA, SigDSA or SigOpenPGP
	KeyID   uint64
	Algo    packet.PublicKeyAlgorithm
	Hash    crypto.Hash
	Created time.Time // as the signature claims
	Packet  []byte    // the OpenPGP packet
}

// maxSignatures bounds how many signatures of a package are looked at.
const maxSignatures = 64

// Signatures lists the signatures over the main header: those in the slots of rpm 4 and in
// the list of rpm 6. Those that cannot be read are left out.
func (p *Package) Signatures() []Signature {
	var out []Signature
	add := func(tag Tag, b []byte) {
		s, err := parseSig(b)
		if err != nil || len(out) == maxSignatures {
			return
		}
		sig := Signature{Tag: tag, Algo: s.PubKeyAlgo, Hash: s.Hash, Created: s.CreationTime, Packet: b}
		if s.IssuerKeyId != nil {
			sig.KeyID = *s.IssuerKeyId
		}
		out = append(out, sig)
	}
	for _, tag := range []Tag{SigRSA, SigDSA} {
		if b := p.Sig.Bytes(tag); b != nil {
			add(tag, b)
		}
	}
	for i, s := range p.Sig.Texts(SigOpenPGP) {
		if i == maxSignatures {
			break
		}
		if b, err := base64.StdEncoding.DecodeString(string(s)); err == nil {
			add(SigOpenPGP, b)
		}
	}
	return out
}

// VerifySignature checks that one of the keys signed the package's main header, and returns
// the signature that is good. Signatures by other keys don't matter; one by a key of these
// that does not fit the bytes fails. A key must have been valid when it signed, as rpm has
// it. A package without a signature that can be read fails with rpm_unsigned, one by other
// keys or for other bytes with rpm_signature. The header holds the payload's digest:
// VerifyDigests completes the check.
func (p *Package) VerifySignature(keys openpgp.EntityList) (Signature, error) {
	sigs := p.Signatures()
	if len(sigs) == 0 {
		return Signature{}, fault.Invalid("rpm_unsigned", "%s carries no signature of its header", p.NEVRA()).Fix("sign it, or take it from where it is signed")
	}
	var good *Signature
	var unknown error
	for i, s := range sigs {
		_, err := openpgp.CheckDetachedSignature(keys, bytes.NewReader(p.Header.Raw()), bytes.NewReader(s.Packet), &packet.Config{Time: func() time.Time { return s.Created }})
		switch {
		case err == nil:
			if good == nil {
				good = &sigs[i]
			}
		case errors.Is(err, pgperrors.ErrUnknownIssuer):
			unknown = err
		default:
			return Signature{}, fault.Invalid("rpm_signature", "the signature of %s by key %016x is bad", p.NEVRA(), s.KeyID).Wrap(err).Fix("the file was changed or is signed badly; fetch it again")
		}
	}
	if good == nil {
		return Signature{}, fault.Invalid("rpm_signature", "%s is signed by key %016x, which is none of the given ones", p.NEVRA(), sigs[0].KeyID).Wrap(unknown).Fix("add the key if you trust it")
	}
	return *good, nil
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

// Core is the part of the package file that no signature changes: main header and payload.
// The head before it is Head.
func (p *Package) Core(r io.ReaderAt) *io.SectionReader {
	return io.NewSectionReader(r, p.HeaderStart, p.Size-p.HeaderStart)
}

// Splice reads a package file as its head followed by its core of the given size.
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
	want := p[n:]
	if int64(len(want)) > s.size-off {
		want = want[:s.size-off]
	}
	m, err := s.core.ReadAt(want, off)
	if n+m < len(p) && err == nil {
		err = io.EOF
	}
	return n + m, err
}
