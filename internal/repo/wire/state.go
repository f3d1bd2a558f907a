package wire

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"strings"
)

// State is where a channel points, as a site follows it.
type State struct {
	Channel  string `json:"channel"`
	Snapshot string `json:"snapshot"`
	Since    int64  `json:"since"`   // the event that moved it here
	Release  int64  `json:"release"` // the last event that changed which keys it has
	Trees    []Tree `json:"trees"`
}

// Tree is a repository of a channel.
type Tree struct {
	Name string `json:"name"`
	Key  string `json:"key,omitempty"` // name of drover's key that it is signed with
	// Pins is the name of the keys that are pinned for a mirror, by which its packages are signed.
	Pins   string `json:"pins,omitempty"`
	Signed bool   `json:"signed,omitempty"` // repomd.xml is, by one of these
	ID     string `json:"id,omitempty"`     // stands for its metadata, see TreeID
}

// Signer is the name of the keys by which a tree's metadata must be signed, "" for none.
func (t Tree) Signer() string {
	if t.Key == "" && t.Signed {
		return t.Pins
	}
	return t.Key
}

// Keys are the names of all keys that hosts need for a tree.
func (t Tree) Keys() []string { return strings.Fields(JoinKeys(t.Pins, t.Key)) }

// TreeID is the identity of a tree with a repomd.xml and a signature of it, by their sha256; ""
// for no signature.
func TreeID(repomd, asc string) string {
	h := sha256.Sum256([]byte(repomd + " " + asc + "\n"))
	return hex.EncodeToString(h[:])
}

// PathFollow is the route of a channel's state; it takes snapshot, the one that is known, and
// wait, the seconds to wait for another.
func PathFollow(channel string) string {
	return "/api/v1/channels/" + url.PathEscape(channel) + "/follow"
}

// MaxFollow is the most seconds that one call waits.
const MaxFollow = 60
