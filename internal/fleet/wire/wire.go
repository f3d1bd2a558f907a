package wire

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
)

// Capability is what this program can do, as a number. Server and agent tell each other theirs,
// and each speaks as the older one of the two does.
//
//	1  2026-11-28  enrolment, hello, commands, inventory
const Capability = 1

// Oldest is the least capability of an agent that the server still understands.
const Oldest = 1

// Purposes of sealed messages: what is signed for one is nothing for another.
const (
	ForTrust   = "drover-trust-1"
	ForEnrol   = "drover-enrol-1"
	ForWelcome = "drover-welcome-1"
	ForCommand = "drover-command-1"
	ForStop    = "drover-stop-1"
)

// MaxMessage is the most that a message over the bus has, in bytes.
const MaxMessage = 64 << 10

// Pin is a public key as people compare it: "SHA256:" and the digest, as ssh shows keys.
func Pin(key ed25519.PublicKey) string {
	d := sha256.Sum256(key)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(d[:])
}

// Trust is what an agent has to know of a server before it enrols, sealed.
type Trust struct {
	Key string `json:"key"`          // Ed25519 key by which everything is sealed, base64
	CA  string `json:"ca,omitempty"` // PEM of the CA that the server's certificates are of
}

// Enrol asks to be let in. Sig is the nkey's signature of the rest, see Signed.
type Enrol struct {
	Name    string   `json:"name" maxLength:"253" doc:"the host's name, Salt's minion id"`
	Key     string   `json:"key" maxLength:"80" doc:"public nkey of the host"`
	Ticket  string   `json:"ticket,omitempty" maxLength:"100"`
	Machine string   `json:"machine,omitempty" maxLength:"100" doc:"machine id"`
	Serial  string   `json:"serial,omitempty" maxLength:"100"`
	MACs    []string `json:"macs,omitempty" maxItems:"64"`
	Version string   `json:"version,omitempty" maxLength:"100"`
	Cap     int      `json:"cap"`
	Nonce   string   `json:"nonce" maxLength:"64"`
	Sig     []byte   `json:"sig,omitempty"`
}

// Signed is what the key of an Enrol signs.
func (e Enrol) Signed() []byte {
	e.Sig = nil
	b, err := json.Marshal(e)
	if err != nil {
		return nil
	}
	return append([]byte("drover-enrol-1\n"), b...)
}

// States of a host.
const (
	Pending  = "pending"  // waits for somebody's approval
	Accepted = "accepted" // is let in
	Rejected = "rejected" // was refused by somebody
	Revoked  = "revoked"  // was let in, and is not any more
)

// Admission is the answer to an Enrol, sealed.
type Admission struct {
	Nonce string   `json:"nonce"` // of the Enrol
	State string   `json:"state"`
	Why   string   `json:"why,omitempty"`
	Again int64    `json:"again,omitempty"` // pending: ask again in so many seconds
	Name  string   `json:"name"`
	ID    string   `json:"id,omitempty"`  // the name on the bus
	JWT   string   `json:"jwt,omitempty"` // lets the key in there
	Bus   []string `json:"bus,omitempty"` // URLs: tls://HOST:PORT
	CA    string   `json:"ca,omitempty"`  // PEM
}

// Hello is said by an agent when it has connected.
type Hello struct {
	Nonce     string   `json:"nonce"`
	Instance  string   `json:"instance"` // of this process
	Version   string   `json:"version"`
	Cap       int      `json:"cap"`
	Boot      string   `json:"boot"`      // id of the boot
	Machine   string   `json:"machine"`   // machine id
	Clock     int64    `json:"clock"`     // the host's time, microseconds
	Inventory string   `json:"inventory"` // digest of what was reported last, "" for nothing
	Conn      string   `json:"conn"`      // of the connection: SERVER/NUMBER
	Running   []string `json:"running,omitempty"`
}

// Welcome is the answer to a Hello.
type Welcome struct {
	Nonce     string `json:"nonce"`
	Instance  string `json:"instance"`
	Refused   string `json:"refused,omitempty"` // why this process gets no commands
	Now       int64  `json:"now"`               // the server's time, microseconds
	Token     string `json:"token"`             // for HTTP
	Jitter    int64  `json:"jitter"`            // milliseconds over which agents spread when they come back
	Alive     int64  `json:"alive"`             // seconds between two Alive
	Report    int64  `json:"report"`            // seconds between two reports
	Inventory string `json:"inventory"`         // digest of what the server knows
	Cap       int    `json:"cap"`
	Version   string `json:"version"`
}

// Alive tells that an agent is there.
type Alive struct {
	Instance string `json:"i"`
	Clock    int64  `json:"c"`
}

// Event is something that a host tells.
type Event struct {
	Tag  string          `json:"tag"`
	Data json.RawMessage `json:"data"`
}

// Kinds of what is known of a host, beside its packages.
const (
	KindFact    = "fact"
	KindService = "service"
	KindPort    = "port"
	KindMine    = "mine"
)

// Report is what has changed of a host since the report of which Base is the digest; with an
// empty Base it is everything.
type Report struct {
	Base   string                       `json:"base"`
	Digest string                       `json:"digest"` // after it
	Set    map[string]map[string]string `json:"set,omitempty"`
	Gone   map[string][]string          `json:"gone,omitempty"`
	Add    []string                     `json:"add,omitempty"`    // NEVRAs
	Remove []string                     `json:"remove,omitempty"` // NEVRAs
}

// Bounds of a report.
const (
	MaxFacts    = 20_000
	MaxPackages = 30_000
	MaxReport   = 16 << 20 // bytes of JSON
)
