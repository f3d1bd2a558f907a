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
			files, err := p.Header.Files()
			if err != nil {
				t.Fatal(err)
			}
			sums, err := p.PayloadDigests(bytes.NewReader(b), 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				got, ok := sums[trimSlash(f.Path)]
				if len(f.Digest) == 64 && ok && f.Size > 0 && got != f.Digest && got != emptySHA256 {
					t.Errorf("%s: payload %s, header %s", f.Path, got, f.Digest)
				}
			}
		})
	}
}

const emptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func trimSlash(s string) string {
	if s != "" && s[0] == '/' {
		return s[1:]
	}
	return s
}

func hexSum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
