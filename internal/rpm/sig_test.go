package rpm_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"drover/internal/fault"
	"drover/internal/rpm"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

func newKey(t testing.TB, algo packet.PublicKeyAlgorithm, curve packet.Curve) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity("Test", "", "test@example.com", &packet.Config{Algorithm: algo, RSABits: 2048, Curve: curve, DefaultHash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func signature(t testing.TB, key *openpgp.Entity, b []byte) []byte {
	t.Helper()
	var sig bytes.Buffer
	if err := openpgp.DetachSign(&sig, key, bytes.NewReader(b), &packet.Config{DefaultHash: crypto.SHA256}); err != nil {
		t.Fatal(err)
	}
	return sig.Bytes()
}

// keyring imports keys into an rpm database of its own and gives its home.
func keyring(t testing.TB, keys ...*openpgp.Entity) (home string) {
	t.Helper()
	home = t.TempDir()
	if out, err := rpmCommand(t, home, "rpmdb", "--initdb").CombinedOutput(); err != nil {
		t.Fatalf("rpmdb: %v: %s", err, out)
	}
	for _, k := range keys {
		var b bytes.Buffer
		w, err := armor.Encode(&b, openpgp.PublicKeyType, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Serialize(w); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(home, "key.asc")
		if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := rpmCommand(t, home, "rpmkeys", "--import", file).CombinedOutput(); err != nil {
			t.Fatalf("rpmkeys --import: %v: %s", err, out)
		}
	}
	return home
}

var (
	sigOK  = regexp.MustCompile(`(?m)^ +Header V4 (RSA|EdDSA|ECDSA)/SHA256 Signature, key ID [0-9a-f]+: OK$`)
	sigBad = regexp.MustCompile(`BAD|NOKEY|NOT OK|NOTTRUSTED|NOTFOUND`)
)

// rpmkeys checks a package with rpm itself and returns how many signatures are good.
func rpmkeys(t testing.TB, home, name string, b []byte) int {
	t.Helper()
	file := filepath.Join(home, name)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := rpmCommand(t, home, "rpmkeys", "-Kv", file).CombinedOutput()
	if err != nil || sigBad.Match(out) {
		t.Errorf("rpmkeys: %v: %s", err, out)
	}
	return len(sigOK.FindAll(out, -1))
}

func whole(t testing.TB, head []byte, p *rpm.Package, b []byte) []byte {
	t.Helper()
	core := p.Core(bytes.NewReader(b))
	size := int64(len(head)) + core.Size()
	out, err := io.ReadAll(io.NewSectionReader(rpm.Splice(head, core, core.Size()), 0, size))
	if err != nil || int64(len(out)) != size {
		t.Fatal(err, len(out))
	}
	return out
}

// Every fixture, whatever signatures it has, takes one by each kind of key: rpm finds it and
// every digest good, we too, and nothing else of the file has changed.
func TestSignedPackagesAreCleanForRPM(t *testing.T) {
	rsaKey, ed := newKey(t, packet.PubKeyAlgoRSA, ""), newKey(t, packet.PubKeyAlgoEdDSA, packet.Curve25519)
	home := keyring(t, rsaKey, ed)
	sameLength := 0 // where there was a reserve
	for name, b := range fixtures(t) {
		p := read(t, b)
		if !p.Header.Has(rpm.PayloadSHA) {
			if _, err := p.Replace(signature(t, rsaKey, p.Header.Raw())); fault.Code(err) != "rpm_unsignable" {
				t.Errorf("%s, with a payload that no signature covers: %v", name, err)
			}
			continue
		}
		for _, key := range []*openpgp.Entity{rsaKey, ed} {
			head, err := p.Replace(signature(t, key, p.Header.Raw()))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			signed := whole(t, head, p, b)
			if n := rpmkeys(t, home, name, signed); n != 1 {
				t.Errorf("%s: rpm sees %d signatures", name, n)
			}
			if !bytes.Equal(signed[len(head):], b[p.HeaderStart:]) {
				t.Errorf("%s: the core has changed", name)
			}
			if p.Sig.Has(rpm.SigReserve) || p.Sig.Has(rpm.SigReserve6) {
				if len(signed) == len(b) {
					sameLength++
				} else if !p.Sig.Has(rpm.SigOpenPGP) {
					t.Errorf("%s: %d bytes became %d in spite of a reserve", name, len(b), len(signed))
				}
			}
			q := read(t, signed)
			got, err := q.VerifySignature(openpgp.EntityList{key})
			if err != nil || got.KeyID != key.PrimaryKey.KeyId {
				t.Errorf("%s: %+v %v", name, got, err)
			}
			if err := q.VerifyDigests(bytes.NewReader(signed)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			kept := 0
			p.Sig.Each(func(tag rpm.Tag, typ uint32, _ int) {
				if slices.Contains([]rpm.Tag{rpm.SigRegion, rpm.SigRSA, rpm.SigDSA, rpm.SigPGP, rpm.SigGPG, rpm.SigReserve, rpm.SigReserve6, rpm.SigOpenPGP}, tag) {
					return
				}
				kept++
				if !slices.Equal(p.Sig.Strings(tag), q.Sig.Strings(tag)) || !bytes.Equal(p.Sig.Bytes(tag), q.Sig.Bytes(tag)) || p.Sig.Int(tag) != q.Sig.Int(tag) {
					t.Errorf("%s: signature tag %d of type %d has changed", name, tag, typ)
				}
			})
			if kept == 0 {
				t.Errorf("%s: nothing kept", name)
			}
		}
	}
	if sameLength < 10 {
		t.Errorf("only %d files kept their length", sameLength)
	}
}

// IMA signatures and the list of rpm 6 outlive a new signature; a list gets ours too.
func TestReplaceKeepsIMAAndLists(t *testing.T) {
	key := newKey(t, packet.PubKeyAlgoEdDSA, packet.Curve25519)
	all := fixtures(t)
	b := all["rpm-basic-with-ima-2.3.4-5.el9.noarch.rpm"]
	p := read(t, b)
	head, err := p.Replace(signature(t, key, p.Header.Raw()))
	if err != nil {
		t.Fatal(err)
	}
	q := read(t, whole(t, head, p, b))
	if ima := q.Sig.Strings(rpm.SigFileSigs); len(ima) == 0 || !slices.Equal(ima, p.Sig.Strings(rpm.SigFileSigs)) || q.Sig.Int(rpm.SigFileLen) != p.Sig.Int(rpm.SigFileLen) {
		t.Errorf("IMA signatures %q became %q", p.Sig.Strings(rpm.SigFileSigs), ima)
	}
	b = all["rpm-basic-multiple-signatures-2.3.4-5.el9.noarch.rpm"]
	p = read(t, b)
	before := p.Sig.Strings(rpm.SigOpenPGP)
	for range 2 { // the second time takes the place of the first
		sig := signature(t, key, p.Header.Raw())
		if head, err = p.Replace(sig); err != nil {
			t.Fatal(err)
		}
		b = whole(t, head, p, b)
		p = read(t, b)
		if got := p.Sig.Strings(rpm.SigOpenPGP); len(before) < 2 || !slices.Equal(got, append(slices.Clone(before), base64.StdEncoding.EncodeToString(sig))) {
			t.Fatalf("a list of %d signatures became one of %d", len(before), len(got))
		}
	}
	if sigs := p.Signatures(); len(sigs) < 3 {
		t.Errorf("%d signatures seen", len(sigs))
	}
	if _, err := p.VerifySignature(openpgp.EntityList{key}); err != nil {
		t.Error(err)
	}
}

// rpmsign itself puts fsverity signatures into packages; ours leaves them, and rpm finds them
// again. Beside them stand IMA signatures as of the fixture that has some.
func TestReplaceKeepsWhatRPMSigned(t *testing.T) {
	old, key := newKey(t, packet.PubKeyAlgoRSA, ""), newKey(t, packet.PubKeyAlgoEdDSA, packet.Curve25519)
	home := keyring(t, key)
	certificate(t, home)
	query := func(file string) string {
		out, err := rpmCommand(t, home, "rpm", "--nosignature", "-qp", "--qf", "[%{FILENAMES} %{FILESIGNATURES} %{VERITYSIGNATURES}\n]%{FILESIGNATURELENGTH} %{VERITYSIGNATUREALGO}\n", file).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	for name, tags := range map[string][]rpm.Tag{
		"one-epoch-0.1-1.x86_64.rpm":                {rpm.SigVerity, rpm.SigVerAlgo},
		"rpm-basic-with-ima-2.3.4-5.el9.noarch.rpm": {rpm.SigFileSigs, rpm.SigFileLen},
		"payload-test-0.1-w6.xzdio.x86_64.rpm":      {rpm.SigVerity, rpm.SigVerAlgo},
		"payload-test-0.1-w3.zstdio.x86_64.rpm":     {rpm.SigVerity, rpm.SigVerAlgo},
	} {
		b := fixtures(t)[name]
		file := filepath.Join(home, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		p := read(t, b)
		if tags[0] == rpm.SigVerity {
			// In gpg's place a script hands out a signature that is ready.
			sig, script := filepath.Join(home, "sig"), filepath.Join(home, "gpg.sh")
			if err := os.WriteFile(sig, signature(t, old, p.Header.Raw()), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(script, []byte("cat >/dev/null; cp '"+sig+"' \"$1\"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := rpmCommand(t, home, "rpmsign", "--define", "_gpg_name any", "--define", "__gpg /bin/sh", "--define", "__gpg_sign_cmd /bin/sh sh "+script+" %{__signature_filename}", "--addsign", "--signverity",
				"--fskpath", filepath.Join(home, "key.pem"), "--certpath", filepath.Join(home, "cert.pem"), file).CombinedOutput(); err != nil {
				t.Fatalf("%s: rpmsign: %v: %s", name, err, out)
			}
			var err error
			if b, err = os.ReadFile(file); err != nil {
				t.Fatal(err)
			}
			p = read(t, b)
			if s, err := p.VerifySignature(openpgp.EntityList{old}); err != nil || s.Tag != rpm.SigRSA {
				t.Errorf("%s: %+v %v", name, s, err)
			}
		}
		before := query(file)
		for _, tag := range tags {
			if !p.Sig.Has(tag) {
				t.Errorf("%s: no tag %d", name, tag)
			}
		}
		head, err := p.Replace(signature(t, key, p.Header.Raw()))
		if err != nil {
			t.Fatal(err)
		}
		b = whole(t, head, p, b)
		if n := rpmkeys(t, home, name, b); n != 1 {
			t.Errorf("%s: rpm sees %d signatures", name, n)
		}
		if after := query(file); after != before || strings.Count(after, "\n") < 2 || len(after) < 200 {
			t.Errorf("%s: file signatures were %s, are %s", name, before, after)
		}
		q := read(t, b)
		for _, tag := range tags {
			if !slices.Equal(q.Sig.Strings(tag), p.Sig.Strings(tag)) || q.Sig.Int(tag) != p.Sig.Int(tag) {
				t.Errorf("%s: tag %d has changed", name, tag)
			}
		}
	}
}

// certificate writes key.pem and cert.pem, of a key that signs files.
func certificate(t testing.TB, dir string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "files"}}, &x509.Certificate{}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{"key.pem": {Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}, "cert.pem": {Type: "CERTIFICATE", Bytes: cert}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Append adds to the list; rpm 4 goes on with its own slot.
func TestAppendAddsToTheList(t *testing.T) {
	rsaKey, ed := newKey(t, packet.PubKeyAlgoRSA, ""), newKey(t, packet.PubKeyAlgoEdDSA, packet.Curve25519)
	home := keyring(t, rsaKey)
	b := fixtures(t)["rpm-basic-2.3.4-5.el9.noarch.rpm"]
	p := read(t, b)
	head, err := p.Replace(signature(t, rsaKey, p.Header.Raw()))
	if err != nil {
		t.Fatal(err)
	}
	b = whole(t, head, p, b)
	p = read(t, b)
	if head, err = p.Append(signature(t, ed, p.Header.Raw())); err != nil {
		t.Fatal(err)
	}
	b = whole(t, head, p, b)
	if n := rpmkeys(t, home, "a.rpm", b); n != 1 {
		t.Errorf("rpm sees %d signatures", n)
	}
	p = read(t, b)
	for _, k := range []*openpgp.Entity{rsaKey, ed} {
		if _, err := p.VerifySignature(openpgp.EntityList{k}); err != nil {
			t.Error(err)
		}
	}
}

// A signer that sees the state alone signs what whoever has the bytes finds good.
func TestMidstateAndArmor(t *testing.T) {
	data := bytes.Repeat([]byte("header"), 1000)
	state, sum, err := rpm.Midstate(data)
	if err != nil || sum != hexSum(data) {
		t.Fatal(sum, err)
	}
	h := sha256.New()
	u, ok := h.(encoding.BinaryUnmarshaler)
	if !ok {
		t.Fatal("no state can be set")
	}
	if err := u.UnmarshalBinary(state); err != nil {
		t.Fatal(err)
	}
	h.Write([]byte("trailer"))
	if got := hex.EncodeToString(h.Sum(nil)); got != hexSum(append(bytes.Clone(data), "trailer"...)) {
		t.Errorf("the state went on to %s", got)
	}
	key := newKey(t, packet.PubKeyAlgoEdDSA, packet.Curve25519)
	text, err := rpm.Armor(signature(t, key, data))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openpgp.CheckArmoredDetachedSignature(openpgp.EntityList{key}, bytes.NewReader(data), bytes.NewReader(text), nil); err != nil {
		t.Errorf("%v: %s", err, text)
	}
}

func TestVerifySignatureRefuses(t *testing.T) {
	key, other := newKey(t, packet.PubKeyAlgoEdDSA, packet.Curve25519), newKey(t, packet.PubKeyAlgoECDSA, packet.CurveNistP256)
	all := fixtures(t)
	b := all["rpm-empty-0-0.x86_64.rpm"]
	p := read(t, b)
	if _, err := p.VerifySignature(openpgp.EntityList{key}); fault.Code(err) != "rpm_unsigned" {
		t.Errorf("unsigned: %v", err)
	}
	head, err := p.Replace(signature(t, key, p.Header.Raw()))
	if err != nil {
		t.Fatal(err)
	}
	signed := whole(t, head, p, b)
	if _, err := read(t, signed).VerifySignature(openpgp.EntityList{other}); fault.Code(err) != "rpm_signature" || !strings.Contains(err.Error(), "none of the given") {
		t.Errorf("another key: %v", err)
	}
	// The signature of one package on another one.
	q := read(t, all["rpm-rich-deps-1.0-1.noarch.rpm"])
	if head, err = q.Replace(signature(t, key, p.Header.Raw())); err != nil {
		t.Fatal(err)
	}
	if _, err := read(t, whole(t, head, q, all["rpm-rich-deps-1.0-1.noarch.rpm"])).VerifySignature(openpgp.EntityList{key}); fault.Code(err) != "rpm_signature" {
		t.Errorf("the signature of another package: %v", err)
	}
	// ECDSA is as good as any.
	if head, err = p.Replace(signature(t, other, p.Header.Raw())); err != nil {
		t.Fatal(err)
	}
	if s, err := read(t, whole(t, head, p, b)).VerifySignature(openpgp.EntityList{key, other}); err != nil || s.Tag != rpm.SigDSA {
		t.Errorf("ECDSA: %+v %v", s, err)
	}
	for name, sig := range map[string][]byte{"none": nil, "text": []byte("hello"), "key": publicKey(t, key), "two": append(signature(t, key, nil), signature(t, key, nil)...)} {
		if _, err := p.Replace(sig); fault.Code(err) != "signature" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func publicKey(t testing.TB, e *openpgp.Entity) []byte {
	var b bytes.Buffer
	if err := e.PrimaryKey.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A file of any format with any changed byte is refused by reading it, by its digests or by
// its payload, unless the byte means nothing.
func TestChangedPackagesAreRefused(t *testing.T) {
	for _, name := range []string{"rpm-basic-2.3.4-5.el9.noarch.rpm", "rpm-hardlinks-1.0-1.noarch.rpm", "payload-test-0.1-w9.gzdio.x86_64.rpm"} {
		b := fixtures(t)[name]
		p := read(t, b)
		step := int64(7)
		if testing.Short() {
			step = 97
		}
		for i := p.HeaderStart; i < p.Size; i += step {
			bad := bytes.Clone(b)
			bad[i] ^= 0x40
			q, err := rpm.Read(bytes.NewReader(bad), int64(len(bad)))
			if err == nil {
				err = q.VerifyDigests(bytes.NewReader(bad))
			}
			if err == nil {
				t.Fatalf("%s: byte %d changed and nobody saw it", name, i)
			}
			if c := fault.Code(err); !strings.HasPrefix(c, "rpm_") {
				t.Fatalf("%s: byte %d: %v", name, i, err)
			}
		}
		for _, n := range []int64{0, 1, 95, 96, 100, p.HeaderStart, p.HeaderStart + 20, p.HeaderEnd - 1, p.HeaderEnd, p.Size - 1} {
			q, err := rpm.Read(bytes.NewReader(b[:n]), n)
			if err == nil {
				err = q.VerifyDigests(bytes.NewReader(b[:n]))
			}
			if err == nil {
				t.Errorf("%s: cut at %d and nobody saw it", name, n)
			}
		}
	}
}

func TestSpliceReadsAsOne(t *testing.T) {
	core := []byte("0123456789")
	r := rpm.Splice([]byte("head"), bytes.NewReader(core), int64(len(core)))
	if err := iotest.TestReader(io.NewSectionReader(r, 0, 14), []byte("head0123456789")); err != nil {
		t.Error(err)
	}
	b := make([]byte, 6)
	if n, err := r.ReadAt(b, 10); n != 4 || err != io.EOF || string(b[:n]) != "6789" {
		t.Errorf("%d %v %q", n, err, b[:n])
	}
}
