package blob

import (
	"crypto/sha256"
	"encoding/hex"

	"drover/internal/fault"
)

// Digest is a sha256 as 64 lower-case hexadecimal digits.
type Digest string

// Parse checks s, which may come from outside: anything but 64 lower-case
// hexadecimal digits is the fault digest_invalid.
func Parse(s string) (Digest, error) {
	if d := Digest(s); d.Valid() {
		return d, nil
	}
	shown := s
	if len(shown) > 80 {
		shown = shown[:80] + "…"
	}
	return "", fault.Invalid("digest_invalid", "%q is not a sha256 digest", shown).
		Fix("give 64 lower-case hexadecimal digits")
}

// Of is the digest of data.
func Of(data []byte) Digest {
	sum := sha256.Sum256(data)
	return Digest(hex.EncodeToString(sum[:]))
}

// Valid says whether d has the form of a digest.
func (d Digest) Valid() bool {
	if len(d) != 2*sha256.Size {
		return false
	}
	for i := range len(d) {
		if c := d[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// String is the digest as text.
func (d Digest) String() string { return string(d) }
