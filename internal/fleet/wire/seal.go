package wire

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"

	"drover/internal/fault"
)

// A sealed message is signed by the server for a purpose. Many messages are signed at once, by one
// signature: of the root of a Merkle tree (RFC 6962, section 2.1) whose leaves they are. Each goes
// out with its own way to the root, so that who gets one needs no other.
//
//	depth     1 byte
//	index     4 bytes, big endian
//	siblings  depth times 32 bytes, from the leaf up; an index without a sibling has none
//	signature 64 bytes, Ed25519, of the purpose, a newline and the root
//	body      JSON
const (
	maxSealed = 24 // depth: 16 million messages
	sealHead  = 5
)

func leafHash(body []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte{0})
	h.Write(body)
	return [sha256.Size]byte(h.Sum(nil))
}

func innerHash(l, r [sha256.Size]byte) [sha256.Size]byte {
	var b [1 + 2*sha256.Size]byte
	b[0] = 1
	copy(b[1:], l[:])
	copy(b[1+sha256.Size:], r[:])
	return sha256.Sum256(b[:])
}

func signed(purpose string, root [sha256.Size]byte) []byte {
	return append([]byte(purpose+"\n"), root[:]...)
}

// Seal signs one message.
func Seal(key ed25519.PrivateKey, purpose string, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return SealAll(key, purpose, [][]byte{body})[0], nil
}

// SealAll signs the bodies of many messages with one signature.
func SealAll(key ed25519.PrivateKey, purpose string, bodies [][]byte) [][]byte {
	level := make([][sha256.Size]byte, len(bodies))
	for i, b := range bodies {
		level[i] = leafHash(b)
	}
	levels := [][][sha256.Size]byte{level}
	for len(level) > 1 {
		up := make([][sha256.Size]byte, 0, (len(level)+1)/2)
		for i := 0; i < len(level); i += 2 {
			if i+1 < len(level) {
				up = append(up, innerHash(level[i], level[i+1]))
			} else {
				up = append(up, level[i]) // it has no sibling, and goes up as it is
			}
		}
		level = up
		levels = append(levels, level)
	}
	sig := ed25519.Sign(key, signed(purpose, level[0]))
	out := make([][]byte, len(bodies))
	for i, body := range bodies {
		b := make([]byte, sealHead, sealHead+len(levels)*sha256.Size+len(sig)+len(body))
		binary.BigEndian.PutUint32(b[1:], uint32(i)) //nolint:gosec // fewer than 16 million
		at := i
		for d, l := range levels[:len(levels)-1] {
			b[0] = byte(d + 1)
			if sib := at ^ 1; sib < len(l) {
				b = append(b, l[sib][:]...)
			} else {
				b = append(b, make([]byte, sha256.Size)...) // the mark of none
			}
			at /= 2
		}
		out[i] = append(append(b, sig...), body...)
	}
	return out
}

// Open checks who signed a message and what for, and reads it.
func Open(key ed25519.PublicKey, purpose string, b []byte, v any) error {
	bad := func() error {
		return fault.Denied("signature_bad", "a message for %s is not signed by this server", purpose).Fix("if the server was made anew, enrol this host again")
	}
	if len(b) < sealHead || len(key) != ed25519.PublicKeySize {
		return bad()
	}
	depth, at := int(b[0]), binary.BigEndian.Uint32(b[1:])
	b = b[sealHead:]
	if depth > maxSealed || len(b) <= depth*sha256.Size+ed25519.SignatureSize || at>>depth != 0 {
		return bad()
	}
	path, sig, body := b[:depth*sha256.Size], b[depth*sha256.Size:][:ed25519.SignatureSize], b[depth*sha256.Size+ed25519.SignatureSize:]
	root := leafHash(body)
	for ; len(path) > 0; path = path[sha256.Size:] {
		switch sib := [sha256.Size]byte(path[:sha256.Size]); {
		case sib == [sha256.Size]byte{}:
		case at&1 == 0:
			root = innerHash(root, sib)
		default:
			root = innerHash(sib, root)
		}
		at >>= 1
	}
	if !ed25519.Verify(key, signed(purpose, root), sig) {
		return bad()
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fault.Invalid("message_bad", "a message for %s cannot be read", purpose).Wrap(err)
	}
	return nil
}

// Peek reads a sealed message without believing it: to learn the key that it says it is sealed by.
func Peek(b []byte, v any) error {
	if len(b) < sealHead || int(b[0]) > maxSealed || len(b) <= sealHead+int(b[0])*sha256.Size+ed25519.SignatureSize {
		return fault.Denied("signature_bad", "the server's answer is not sealed")
	}
	return json.Unmarshal(b[sealHead+int(b[0])*sha256.Size+ed25519.SignatureSize:], v)
}
