// Package wire is what a drover server and its signer say to each other over HTTPS: JSON
// types and paths. Both sides import it and neither imports the other.
package wire

// Paths of the signer's routes. Every one needs a signer's token (right "work.sign").
const (
	PathPoll   = "/api/v1/signer/poll"   // POST Poll -> Orders, a long poll
	PathAnswer = "/api/v1/signer/answer" // POST Answer
	PathKeys   = "/api/v1/signer/keys"   // POST []Key: the keys that this signer holds
)

// What a key may sign.
const (
	PurposeRPM    = "rpm"    // headers of packages, and the repomd.xml of their repositories
	PurposeAttest = "attest" // statements, in DSSE envelopes
)

// Algorithms of keys.
const (
	RSA4096 = "rsa4096"
	Ed25519 = "ed25519"
)

// StatementPrefix is how the pre-authentication encoding (DSSE) of an in-toto statement
// begins. A key for attestations signs nothing else: what it signed can't be taken for
// anything but a statement.
const StatementPrefix = "DSSEv1 28 application/vnd.in-toto+json "

// MaxWait is the longest time, in seconds, that a request may be valid: a signer refuses one
// that is to be valid for longer.
const MaxWait = 3600

// Key is a key that a signer holds.
type Key struct {
	Name    string   `json:"name"`
	Algo    string   `json:"algo"`
	Purpose string   `json:"purpose"`
	Public  string   `json:"public"` // armored OpenPGP, or PEM (PKIX) for attestations
	Tags    []string `json:"tags"`   // patterns of tags that the signer signs for with this key
}

// Poll asks for work.
type Poll struct {
	Wait       int      `json:"wait" minimum:"0" maximum:"55"` // seconds
	Keys       []string `json:"keys" maxItems:"1000"`          // that the signer holds: it is asked for no other's signatures
	AcceptKeys bool     `json:"accept_keys"`                   // it makes keys that it is asked for
}

// Orders is what is to be signed, and keys that are to be made.
type Orders struct {
	Requests []Request `json:"requests"`
	NewKeys  []NewKey  `json:"new_keys"`
}

// NewKey asks for a key. A signer makes it only when it was started to accept that.
type NewKey struct {
	Name    string   `json:"name"`
	Algo    string   `json:"algo"`
	Purpose string   `json:"purpose"`
	Tags    []string `json:"tags"`
}

// Request asks for one signature. A header is never sent: State is the state of a sha256
// that has read it, Digest the finished sum.
type Request struct {
	ID      int64  `json:"id"`
	Key     string `json:"key"`
	Purpose string `json:"purpose"`
	Tag     string `json:"tag"`
	Subject string `json:"subject"` // for the signer's log
	Digest  string `json:"digest"`  // hex sha256 of what is signed
	State   []byte `json:"state,omitempty"`
	Payload []byte `json:"payload,omitempty"` // PurposeAttest: the bytes themselves
	Expires int64  `json:"expires"`           // microseconds since 1970
}

// Answer brings signatures, or says why there is none.
type Answer struct {
	Done   []Done  `json:"done" maxItems:"1000"`
	NoKeys []NoKey `json:"no_keys,omitempty" maxItems:"100"`
}

// Done is the answer to one request.
type Done struct {
	ID        int64  `json:"id"`
	Signature []byte `json:"signature,omitempty"` // OpenPGP packet, or raw Ed25519
	Refused   string `json:"refused,omitempty"`
}

// NoKey says why a key that was asked for was not made.
type NoKey struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}
