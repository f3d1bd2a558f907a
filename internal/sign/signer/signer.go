// Package signer is the signer process: it holds private keys and its own policy, sees
// digests of headers and never a payload, and writes down everything that it signs before
// the signature leaves it.
//
// It imports no server package and believes nothing the server says about what a key may
// be used for: that stands in its own files.
package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"log/slog"
	"maps"
	mrand "math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/sign/wire"
	"drover/internal/web"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// Config is what a Signer needs.
type Config struct {
	Client *web.Client // with a signer's token
	Dir    string      // keys, policy and log; only this process reads it
	// AcceptKeys lets the server ask for new keys, with the tags they are for. Without it
	// keys are made by hand on the signer's machine.
	AcceptKeys bool
	Now        func() time.Time
	Log        *slog.Logger
}

// Policy is one key's file NAME.yaml: what it may be used for. The signer's operator edits it.
type Policy struct {
	Algo    string   `yaml:"algo"`
	Purpose string   `yaml:"purpose"`
	Tags    []string `yaml:"tags"` // patterns; an empty list signs nothing
}

type key struct {
	wire.Key
	entity *openpgp.Entity
	ed     ed25519.PrivateKey
}

// Signer holds keys.
type Signer struct {
	Config
	keys  map[string]*key
	stamp string // of the key files when they were read
	log   *os.File
	size  int64  // of what is whole in the log
	last  string // hex sha256 of the newest line of the log
}

// maxKeys bounds how many keys a server may ask for.
const maxKeys = 100

var reName = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,63}$`)

// New opens the signer's directory and reads its keys. One process holds a directory.
func New(c Config) (*Signer, error) {
	s := &Signer{Config: c}
	if err := s.open(); err != nil {
		if s.log != nil {
			_ = s.log.Close()
		}
		return nil, err
	}
	return s, nil
}

func (s *Signer) open() (err error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	if s.log, err = os.OpenFile(s.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return err
	}
	if err := unix.Flock(int(s.log.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fault.Unavailable("signer_busy", "another signer holds the directory %s", s.Dir).Wrap(err).Fix("stop it first")
	}
	if _, err := s.refresh(); err != nil {
		return err
	}
	if s.last, s.size, err = VerifyLog(s.logPath()); err != nil {
		return err
	}
	// A line that a power cut left half written was never answered for.
	return s.log.Truncate(s.size)
}

// Close closes the log.
func (s *Signer) Close() error { return s.log.Close() }

func (s *Signer) logPath() string { return filepath.Join(s.Dir, "signed.log") }

// refresh reads the keys anew when their operator changed a file. When one cannot be read,
// those that were read before stay.
func (s *Signer) refresh() (changed bool, err error) {
	stamp, names := "", []string{}
	es, err := os.ReadDir(s.Dir)
	if err != nil {
		return false, err
	}
	for _, e := range es {
		ext := filepath.Ext(e.Name())
		if ext != ".yaml" && ext != ".key" {
			continue
		}
		fi, err := e.Info()
		if err != nil {
			return false, err
		}
		stamp += fmt.Sprintf("%s %d %d %o\n", e.Name(), fi.Size(), fi.ModTime().UnixNano(), fi.Mode())
		if ext == ".yaml" {
			names = append(names, strings.TrimSuffix(e.Name(), ext))
		}
	}
	if stamp == s.stamp {
		return false, nil
	}
	keys := map[string]*key{}
	for _, n := range names {
		if keys[n], err = load(s.Dir, n); err != nil {
			return false, err
		}
	}
	s.keys, s.stamp = keys, stamp
	return true, nil
}

// load reads a key and its policy.
func load(dir, name string) (*key, error) {
	if !reName.MatchString(name) {
		return nil, fault.Invalid("key_name", "%.80q is no name of a key", name).Fix("rename its files")
	}
	b, err := os.ReadFile(filepath.Join(dir, name+".yaml"))
	if err != nil {
		return nil, err
	}
	var p Policy
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&p); err != nil {
		return nil, fault.Invalid("signer_policy", "the policy %s.yaml cannot be read", name).Wrap(err).Fix("it has the keys algo, purpose and tags")
	}
	for _, t := range p.Tags {
		if _, err := path.Match(t, "x"); err != nil {
			return nil, fault.Invalid("signer_policy", "%.100q in %s.yaml is no pattern of tags", t, name)
		}
	}
	file := filepath.Join(dir, name+".key")
	fi, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, fault.Denied("signer_key", "the private key %s is open to others", file).Fix("chmod 600 %s", file)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	k := &key{Key: wire.Key{Name: name, Algo: p.Algo, Purpose: p.Purpose, Tags: p.Tags}}
	switch p.Purpose {
	case wire.PurposeAttest:
		return k, k.readEd25519(raw)
	case wire.PurposeRPM:
		return k, k.readOpenPGP(raw)
	}
	return nil, fault.Invalid("signer_policy", "%s.yaml is for %.40q", name, p.Purpose).Fix("purpose is rpm or attest")
}

// wrong says that a key file does not hold what its policy says.
func (k *key) wrong(err error) error {
	return fault.Invalid("signer_key", "%s.key holds no %.40q key for %s", k.Name, k.Algo, k.Purpose).Wrap(err).Fix("its policy in %s.yaml tells what it should be", k.Name)
}

func (k *key) readEd25519(raw []byte) error {
	blk, _ := pem.Decode(raw)
	if blk == nil || k.Algo != wire.Ed25519 {
		return k.wrong(nil)
	}
	priv, err := x509.ParsePKCS8PrivateKey(blk.Bytes)
	ed, ok := priv.(ed25519.PrivateKey)
	if err != nil || !ok {
		return k.wrong(err)
	}
	k.ed = ed
	pub, err := x509.MarshalPKIXPublicKey(ed.Public())
	k.Public = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}))
	return err
}

func (k *key) readOpenPGP(raw []byte) error {
	es, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(raw))
	if err != nil || len(es) != 1 || es[0].PrivateKey == nil || es[0].PrivateKey.Encrypted {
		return k.wrong(err)
	}
	k.entity = es[0]
	algo := map[packet.PublicKeyAlgorithm]string{packet.PubKeyAlgoRSA: wire.RSA4096, packet.PubKeyAlgoEdDSA: wire.Ed25519}[k.entity.PrimaryKey.PubKeyAlgo]
	bits, err := k.entity.PrimaryKey.BitLength()
	if err != nil || algo != k.Algo || algo == wire.RSA4096 && bits < 4096 {
		return k.wrong(err)
	}
	k.entity.Subkeys = nil // rpm signs with the primary key
	var b bytes.Buffer
	w, err := armor.Encode(&b, openpgp.PublicKeyType, nil)
	if err == nil {
		err = errors.Join(k.entity.Serialize(w), w.Close())
	}
	k.Public = b.String() + "\n"
	return err
}

// Create makes a key with its policy in a signer's directory. An existing one stays as it is.
// A signer that runs takes it up at its next look.
func Create(dir string, n wire.NewKey, now func() time.Time) error {
	if !reName.MatchString(n.Name) {
		return fault.Invalid("key_name", "%.80q is no name of a key", n.Name)
	}
	for _, t := range n.Tags {
		if _, err := path.Match(t, "x"); err != nil || len(t) > 100 {
			return fault.Invalid("key_tag", "%.100q is no pattern of tags", t)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	es, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return err
	}
	if len(es) >= maxKeys || len(n.Tags) > maxKeys {
		return fault.TooLarge("key_limit", "a signer holds at most %d keys, each for at most %d patterns of tags", maxKeys, maxKeys)
	}
	if slices.Contains(es, filepath.Join(dir, n.Name+".yaml")) {
		return fault.Conflict("key_exists", "there is a key %s already", n.Name)
	}
	var b []byte
	switch {
	case n.Purpose == wire.PurposeAttest && n.Algo == wire.Ed25519:
		b, err = newEd25519()
	case n.Purpose == wire.PurposeRPM && (n.Algo == wire.RSA4096 || n.Algo == wire.Ed25519):
		b, err = newOpenPGP(n, now)
	default:
		return fault.Invalid("key_algo", "there are no %.20q keys for %.20q", n.Algo, n.Purpose).Fix("use rsa4096 or ed25519 for rpm, ed25519 for attest")
	}
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(dir, n.Name+".key"), b, 0o600); err != nil {
		return err
	}
	p, err := yaml.Marshal(Policy{Algo: n.Algo, Purpose: n.Purpose, Tags: n.Tags})
	if err != nil {
		return err
	}
	// The policy makes the key count: it comes last.
	return durable.WriteFile(filepath.Join(dir, n.Name+".yaml"), p, 0o600)
}

func newEd25519() ([]byte, error) {
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

func newOpenPGP(n wire.NewKey, now func() time.Time) ([]byte, error) {
	cfg := &packet.Config{DefaultHash: crypto.SHA256, Time: now, Algorithm: packet.PubKeyAlgoRSA, RSABits: 4096}
	if n.Algo == wire.Ed25519 {
		cfg.Algorithm, cfg.Curve = packet.PubKeyAlgoEdDSA, packet.Curve25519
	}
	e, err := openpgp.NewEntity("drover "+n.Name, "", "", cfg)
	if err != nil {
		return nil, err
	}
	e.Subkeys = nil // rpm signs with the primary key; an encryption subkey has no use here
	var b bytes.Buffer
	w, err := armor.Encode(&b, openpgp.PrivateKeyType, nil)
	if err != nil {
		return nil, err
	}
	err = errors.Join(e.SerializePrivate(w, cfg), w.Close())
	return b.Bytes(), err
}

// Run serves the server's requests until ctx ends.
func (s *Signer) Run(ctx context.Context) error {
	wait := time.Second
	announced := false
	for ctx.Err() == nil {
		err := s.round(ctx, &announced)
		if err == nil {
			wait = time.Second
			continue
		}
		if ctx.Err() != nil {
			break
		}
		if k := fault.As(err).Kind; k == fault.KindUnauthorized || k == fault.KindDenied {
			return err // nothing gets better by asking again
		}
		s.Log.Warn("the server does not answer", "err", err, "again", wait)
		announced = false
		t := time.NewTimer(wait/2 + mrand.N(wait)) //nolint:gosec // jitter
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
		wait = min(2*wait, 10*time.Second)
	}
	return nil //nolint:nilerr // it was stopped
}

func (s *Signer) announce(ctx context.Context) error {
	ks := []wire.Key{}
	for _, k := range s.keys {
		ks = append(ks, k.Key)
	}
	slices.SortFunc(ks, func(a, b wire.Key) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	return s.Client.Call(ctx, "POST", wire.PathKeys, ks, nil)
}

// look takes up what the operator changed in the files.
func (s *Signer) look() (changed bool) {
	changed, err := s.refresh()
	if err != nil {
		s.Log.Error("the keys cannot be read anew; those from before stay", "err", err)
	}
	return changed
}

func (s *Signer) round(ctx context.Context, announced *bool) error {
	if s.look() || !*announced {
		if err := s.announce(ctx); err != nil {
			return err
		}
		*announced = true
	}
	pctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var o wire.Orders
	if err := s.Client.Call(pctx, "POST", wire.PathPoll, wire.Poll{Wait: 50, Keys: slices.Sorted(maps.Keys(s.keys)), AcceptKeys: s.AcceptKeys}, &o); err != nil {
		return err
	}
	if len(o.Requests) > 1000 || len(o.NewKeys) > maxKeys {
		return fault.TooLarge("orders", "the server asks for %d signatures and %d keys at once", len(o.Requests), len(o.NewKeys))
	}
	*announced = !s.look() // the poll took a while; the policy of now counts
	a := wire.Answer{Done: []wire.Done{}}
	for _, n := range o.NewKeys {
		err := error(fault.Denied("keys_by_hand", "this signer makes no keys that it is asked for"))
		if s.AcceptKeys {
			err = Create(s.Dir, n, s.Now)
		}
		if err != nil {
			s.Log.Warn("a key was not made", "key", n.Name, "err", err)
			a.NoKeys = append(a.NoKeys, wire.NoKey{Name: n.Name, Why: err.Error()})
			continue
		}
		*announced = !s.look() && *announced
	}
	if !*announced {
		if err := s.announce(ctx); err != nil {
			return err
		}
		*announced = true
	}
	if len(o.Requests)+len(a.NoKeys) == 0 {
		return nil
	}
	for _, r := range o.Requests {
		d := wire.Done{ID: r.ID}
		sig, err := s.sign(r)
		if err != nil {
			d.Refused = fault.As(err).Error()
			s.Log.Warn("refused", "subject", r.Subject, "err", err)
		} else {
			d.Signature = sig
		}
		a.Done = append(a.Done, d)
	}
	if err := s.log.Sync(); err != nil {
		return err
	}
	return s.Client.Call(ctx, "POST", wire.PathAnswer, a, nil)
}

// sign checks a request against the signer's own policy, signs, and writes the line of the
// log.
func (s *Signer) sign(r wire.Request) ([]byte, error) {
	k, ok := s.keys[r.Key]
	if !ok {
		return nil, fault.NotFound("key_unknown", "this signer has no key %.80q", r.Key)
	}
	if r.Purpose != k.Purpose {
		return nil, fault.Denied("key_purpose", "the key %s is for %s, not for %.20q", k.Name, k.Purpose, r.Purpose)
	}
	if !slices.ContainsFunc(k.Tags, func(p string) bool { ok, err := path.Match(p, r.Tag); return ok && err == nil }) {
		return nil, fault.Denied("key_tag", "the key %s does not sign for the tag %.100q", k.Name, r.Tag).Fix("the signer's operator can add it to %s.yaml", k.Name)
	}
	now := s.Now()
	if r.Expires <= now.UnixMicro() {
		return nil, fault.Denied("request_old", "the request is over its time")
	}
	if r.Expires > now.Add(wire.MaxWait*time.Second).UnixMicro() {
		return nil, fault.Denied("request_far", "the request is valid for longer than %d s", wire.MaxWait).Fix("set the clocks of server and signer")
	}
	if len(r.Subject) > 1000 || len(r.Tag) > 200 {
		return nil, fault.Invalid("request_size", "the subject or tag of the request is too long")
	}
	var sig []byte
	var err error
	if k.ed != nil {
		sum := sha256.Sum256(r.Payload)
		if hex.EncodeToString(sum[:]) != r.Digest || len(r.Payload) > 1<<20 {
			return nil, fault.Invalid("request_digest", "the payload is not what the digest says")
		}
		if !bytes.HasPrefix(r.Payload, []byte(wire.StatementPrefix)) {
			return nil, fault.Denied("request_kind", "the payload is no statement")
		}
		sig = ed25519.Sign(k.ed, r.Payload)
	} else if sig, err = s.openPGP(k, r); err != nil {
		return nil, err
	}
	return sig, s.write(r)
}

func (s *Signer) openPGP(k *key, r wire.Request) ([]byte, error) {
	h := sha256.New()
	u, ok := h.(encoding.BinaryUnmarshaler)
	if !ok {
		return nil, fault.Internal("sha256_state", "this sha256 does not take a state")
	}
	if err := u.UnmarshalBinary(r.State); err != nil {
		return nil, fault.Invalid("request_state", "the state of the hash cannot be read").Wrap(err)
	}
	// Sum does not change the state: what is signed is what the digest names.
	if hex.EncodeToString(h.Sum(nil)) != r.Digest {
		return nil, fault.Invalid("request_digest", "the state of the hash is not of %.64q", r.Digest)
	}
	return packetOf(k.entity, h, s.Now)
}

func packetOf(e *openpgp.Entity, h hash.Hash, now func() time.Time) ([]byte, error) {
	cfg := &packet.Config{DefaultHash: crypto.SHA256, Time: now}
	sig := &packet.Signature{Version: 4, SigType: packet.SigTypeBinary, PubKeyAlgo: e.PrimaryKey.PubKeyAlgo, Hash: crypto.SHA256, CreationTime: now(),
		IssuerKeyId: &e.PrimaryKey.KeyId, IssuerFingerprint: e.PrimaryKey.Fingerprint}
	if err := sig.Sign(h, e.PrivateKey, cfg); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err := sig.Serialize(&b)
	return b.Bytes(), err
}

// Line is a line of the signer's log.
type Line struct {
	At      time.Time `json:"at"`
	Key     string    `json:"key"`
	Purpose string    `json:"purpose"`
	Tag     string    `json:"tag"`
	Subject string    `json:"subject"`
	Digest  string    `json:"digest"`
	Prev    string    `json:"prev"` // hex sha256 of the line before
}

func (s *Signer) write(r wire.Request) error {
	b, err := json.Marshal(Line{s.Now().UTC(), r.Key, r.Purpose, r.Tag, r.Subject, r.Digest, s.last})
	if err != nil {
		return err
	}
	h := sha256.Sum256(b)
	b = append(b, '\n')
	if _, err := s.log.Write(b); err != nil {
		// What was written of the line would break the chain of the next one.
		err = errors.Join(err, s.log.Truncate(s.size))
		return fault.Unavailable("signer_log", "the signer's log cannot be written; nothing is signed").Wrap(err)
	}
	s.last, s.size = hex.EncodeToString(h[:]), s.size+int64(len(b))
	return nil
}

// VerifyLog checks the chain of a signer's log. It returns the head and the length of what is
// whole; half a last line is not counted.
func VerifyLog(file string) (head string, size int64, err error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	for n := 1; ; n++ {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			return head, size, nil
		}
		var l Line
		if err := json.Unmarshal(b[:i], &l); err != nil || l.Prev != head {
			return head, size, fault.Conflict("signer_log", "line %d of %s does not follow the line before it", n, file).Fix("somebody changed the log; compare it with the server's ledger")
		}
		h := sha256.Sum256(b[:i])
		head = hex.EncodeToString(h[:])
		size += int64(i) + 1
		b = b[i+1:]
	}
}
