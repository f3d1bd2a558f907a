package rpm_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"drover/internal/rpm"
)

// fixtures reads every RPM of the shared test data.
func fixtures(t testing.TB) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, dir := range []string{"rpms-modern", "rpms-payloads"} {
		m, _ := filepath.Glob(filepath.Join("../../../shared/data", dir, "*.rpm"))
		for _, f := range m {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			out[filepath.Base(f)] = b
		}
	}
	if len(out) < 30 {
		t.Fatalf("the shared test data is not at ../shared/data beside the project: %d packages found", len(out))
	}
	return out
}

func read(t testing.TB, b []byte) *rpm.Package {
	t.Helper()
	p, err := rpm.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestFixtures(t *testing.T) {
	for name, b := range fixtures(t) {
		t.Run(name, func(t *testing.T) {
			p, err := rpm.Read(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if err := p.VerifyDigests(bytes.NewReader(b)); err != nil {
				t.Error(err)
			}
			if err := p.CheckPaths(); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(p.Head(), b[:p.HeaderStart]) {
				t.Error("the head written back is not the head read")
			}
			if err := p.VerifyPayload(bytes.NewReader(b), 1<<30); err != nil {
				t.Error(err)
			}
		})
	}
}

func hexSum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
