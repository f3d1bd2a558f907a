package repotest

import (
	"bytes"
	"crypto"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"drover/internal/rpm"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Vendor is somebody who signs what he publishes.
type Vendor struct {
	key    *openpgp.Entity
	Public string // in ASCII armor
}

// NewVendor makes a vendor with a key of its own.
func NewVendor(tb testing.TB) Vendor {
	tb.Helper()
	e, err := openpgp.NewEntity("vendor", "", "", &packet.Config{RSABits: 2048, Algorithm: packet.PubKeyAlgoRSA, DefaultHash: crypto.SHA256})
	var b bytes.Buffer
	if err == nil {
		w, werr := armor.Encode(&b, openpgp.PublicKeyType, nil)
		if err = werr; err == nil {
			err = e.Serialize(w)
		}
		if err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		tb.Fatal(err)
	}
	return Vendor{e, b.String() + "\n"}
}

// Publish signs the packages of a directory, makes its metadata and signs that.
func (v Vendor) Publish(tb testing.TB, dir string) {
	tb.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.rpm"))
	if err != nil || len(names) == 0 {
		tb.Fatalf("%s holds no packages: %v", dir, err)
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			tb.Fatal(err)
		}
		p, err := rpm.Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			tb.Fatal(err)
		}
		var sig bytes.Buffer
		if err := openpgp.DetachSign(&sig, v.key, bytes.NewReader(p.Header.Raw()), &packet.Config{DefaultHash: crypto.SHA256}); err != nil {
			tb.Fatal(err)
		}
		head, err := p.Replace(sig.Bytes())
		if err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(n, append(head, b[p.HeaderStart:]...), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	if out, err := exec.Command("createrepo_c", "-q", "--no-database", "--general-compress-type=gz", dir).CombinedOutput(); err != nil {
		tb.Fatalf("createrepo_c: %v\n%s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "repodata/repomd.xml"))
	if err != nil {
		tb.Fatal(err)
	}
	var asc bytes.Buffer
	if err := openpgp.ArmoredDetachSign(&asc, v.key, bytes.NewReader(b), &packet.Config{DefaultHash: crypto.SHA256}); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "repodata/repomd.xml.asc"), asc.Bytes(), 0o600); err != nil {
		tb.Fatal(err)
	}
}
