package wire

import (
	"slices"
	"strings"

	"drover/internal/fault"

	"github.com/ProtonMail/go-crypto/openpgp"
)

// pinned comes before the name of a mirror in the name of its pinned keys.
const pinned = "mirror/"

// PinnedKeys is the name of the keys that are pinned for a mirror.
func PinnedKeys(mirror string) string { return pinned + mirror }

// Pinning tells whether a name of keys begins with that of a mirror's.
func Pinning(name string) bool { return strings.HasPrefix(name, pinned) }

// MirrorOf is the mirror of a name of pinned keys.
func MirrorOf(name string) string { return strings.TrimPrefix(name, pinned) }

// JoinKeys is the keys of a tree in one text: those that are pinned for its mirror, and drover's.
func JoinKeys(pins, own string) string { return strings.TrimSpace(pins + " " + own) }

// Pins is the pinned ones of the keys of a tree.
func Pins(keys string) string {
	return strings.Join(slices.DeleteFunc(strings.Fields(keys), func(k string) bool { return !Pinning(k) }), " ")
}

// OwnKey is drover's one of the keys of a tree.
func OwnKey(keys string) string {
	return strings.Join(slices.DeleteFunc(strings.Fields(keys), Pinning), " ")
}

// ReadKeys reads public keys in ASCII armor: one block or several, as vendors publish theirs.
func ReadKeys(text string) (openpgp.EntityList, error) {
	var out openpgp.EntityList
	const end = "-----END PGP PUBLIC KEY BLOCK-----"
	for strings.TrimSpace(text) != "" {
		i := strings.Index(text, end)
		if i < 0 || strings.Contains(text[:i], "PRIVATE KEY") {
			return nil, fault.Invalid("mirror_key", "the text holds something that is no public key in ASCII armor").Fix("give what `gpg --armor --export` writes, or the vendor's RPM-GPG-KEY file")
		}
		es, err := openpgp.ReadArmoredKeyRing(strings.NewReader(text[:i+len(end)]))
		if err != nil {
			return nil, fault.Invalid("mirror_key", "a key can't be read").Wrap(err).Fix("give what `gpg --armor --export` writes, or the vendor's RPM-GPG-KEY file")
		}
		out, text = append(out, es...), text[i+len(end):]
		if len(out) > 50 {
			return nil, fault.TooLarge("mirror_key", "over 50 keys")
		}
	}
	return out, nil
}
