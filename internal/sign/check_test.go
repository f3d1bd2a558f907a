package sign

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding"
	"slices"
	"strings"
	"testing"

	"drover/internal/fault"
	"drover/internal/sign/wire"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// signed makes a key, a request and its good signature.
func signed(tb testing.TB, change func(*packet.Signature)) (k Key, r wire.Request, sig []byte) {
	tb.Helper()
	e, err := openpgp.NewEntity("k", "", "", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Curve: packet.Curve25519, DefaultHash: crypto.SHA256})
	if err != nil {
		tb.Fatal(err)
	}
	e.Subkeys = nil
	var pub, b bytes.Buffer
	w, err := armor.Encode(&pub, openpgp.PublicKeyType, nil)
	if err != nil {
		tb.Fatal(err)
	}
	if err := e.Serialize(w); err != nil {
		tb.Fatal(err)
	}
	_ = w.Close()
	h := sha256.New()
	h.Write([]byte("header"))
	state, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		tb.Fatal(err)
	}
	s := &packet.Signature{Version: 4, SigType: packet.SigTypeBinary, PubKeyAlgo: e.PrimaryKey.PubKeyAlgo, Hash: crypto.SHA256, IssuerKeyId: &e.PrimaryKey.KeyId}
	if change != nil {
		change(s)
	}
	if err := s.Sign(h, e.PrivateKey, nil); err != nil {
		tb.Fatal(err)
	}
	if err := s.Serialize(&b); err != nil {
		tb.Fatal(err)
	}
	k.Key = wire.Key{Name: "k", Algo: wire.Ed25519, Purpose: wire.PurposeRPM, Public: pub.String(), Tags: []string{"*"}}
	if err := k.open(); err != nil {
		tb.Fatal(err)
	}
	return k, wire.Request{Subject: "x", State: state}, b.Bytes()
}

func TestCheckTakesOneGoodPacket(t *testing.T) {
	k, r, sig := signed(t, nil)
	if err := check(k, r, sig); err != nil {
		t.Fatal(err)
	}
	if err := checkKey(k.Key); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{"nothing": nil, "two": slices.Concat(sig, sig), "junk after it": append(slices.Clone(sig), 0), "cut": sig[:len(sig)-1], "padded": append(slices.Clone(sig), make([]byte, 20<<10)...)} {
		if err := check(k, r, bad); fault.Code(err) != "signature" {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := r
	h := sha256.New()
	h.Write([]byte("another header"))
	other.State, _ = h.(encoding.BinaryMarshaler).MarshalBinary()
	if err := check(k, other, sig); fault.Code(err) != "signature" {
		t.Errorf("of something else: %v", err)
	}
	if _, r, sig := signed(t, nil); check(k, r, sig) == nil {
		t.Error("of another key")
	}
	if k, r, sig := signed(t, func(s *packet.Signature) { s.SigType = packet.SigTypeText }); check(k, r, sig) == nil {
		t.Error("of another type")
	}
}

// What a signer hands in never breaks the server, and is taken only when it verifies: a
// changed byte of the packet's signed part never does.
func FuzzSignature(f *testing.F) {
	k, r, sig := signed(f, nil)
	f.Add(sig)
	f.Add(append(slices.Clone(sig), sig...))
	f.Add([]byte{0xc2, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if check(k, r, b) != nil {
			return
		}
		p, err := onePacket(b)
		if err != nil || p.Hash != crypto.SHA256 || len(b) > 16<<10 {
			t.Fatalf("taken: %x, %v", b, err)
		}
	})
}

func FuzzPublicKey(f *testing.F) {
	k, _, _ := signed(f, nil)
	f.Add(k.Public, k.Algo, k.Purpose)
	f.Add("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n", "ed25519", "attest")
	f.Fuzz(func(t *testing.T, public, algo, purpose string) {
		k := Key{Key: wire.Key{Name: "k", Algo: algo, Purpose: purpose, Public: public}}
		err := checkKey(k.Key)
		if err != nil && fault.As(err).Kind == fault.KindInternal {
			t.Fatal(err)
		}
		if err != nil {
			return
		}
		if err := k.open(); err != nil || len(k.Fingerprint) < 40 || strings.Contains(public, "PRIVATE") {
			t.Fatalf("%q %v", k.Fingerprint, err)
		}
	})
}
