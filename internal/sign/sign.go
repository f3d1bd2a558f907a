package sign

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"embed"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/sign/wire"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

//go:embed migrations
var migrations embed.FS

// Schema is the tables of keys and signatures.
func Schema() db.Schema { return db.Schema{Name: "sign", FS: migrations} }

// Store keeps keys and signatures.
type Store struct {
	db  *db.DB
	log *slog.Logger

	mu      sync.Mutex          // guards all below
	nudge   chan struct{}       // closed and replaced when the queue or the keys changed
	wanted  map[string]*want    // keys that a signer is to make, by name
	signers map[string]sighting // by the name of the signer
}

// want is a key that somebody waits for.
type want struct {
	key     wire.NewKey
	by      string    // who asked first
	waiters int       // with the last one it goes
	signer  string    // that was told to make it
	lease   time.Time // when another signer may be told
	refused string    // why the signer does not make it
}

// sighting is when a signer last polled.
type sighting struct {
	at      time.Time
	accepts bool // it makes keys
}

// away is after which time without a poll a signer counts as gone.
const away = time.Minute

// New makes a Store on d.
func New(d *db.DB, log *slog.Logger) *Store {
	return &Store{db: d, log: log, nudge: make(chan struct{}), wanted: map[string]*want{}, signers: map[string]sighting{}}
}

func (s *Store) woken() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nudge
}

func (s *Store) wake() {
	s.mu.Lock()
	close(s.nudge)
	s.nudge = make(chan struct{})
	s.mu.Unlock()
}

// Key is a key as the server knows it.
type Key struct {
	wire.Key
	Fingerprint string `json:"fingerprint"`
	Since       int64  `json:"since"`

	pgp *openpgp.Entity // nil when the key is for statements
}

var reName = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,63}$`)

func getKey(tx *db.Tx, name string) (k Key, err error) {
	var tags string
	k.Name = name
	err = tx.QueryRow("SELECT algo, purpose, public, tags, since FROM sign_key WHERE name = $1 AND until = 0", name).Scan(&k.Algo, &k.Purpose, &k.Public, &tags, &k.Since)
	if db.NoRow(err) {
		return k, fault.NotFound("key_unknown", "there is no key %.80q", name).Fix("make it with `drover sign key create %.80s --tag PATTERN`, or see `drover sign key list`", name)
	}
	if err != nil {
		return k, err
	}
	if err := json.Unmarshal([]byte(tags), &k.Tags); err != nil {
		return k, err
	}
	return k, k.open()
}

// open reads the key's public part.
func (k *Key) open() (err error) {
	if k.Purpose == wire.PurposeAttest {
		blk, _ := pem.Decode([]byte(k.Public))
		if blk == nil {
			return fault.Invalid("key_public", "the public key %s is no PEM", k.Name)
		}
		h := sha256.Sum256(blk.Bytes)
		k.Fingerprint = hex.EncodeToString(h[:])
		return nil
	}
	if k.pgp, err = entity(k.Key); err == nil {
		k.Fingerprint = hex.EncodeToString(k.pgp.PrimaryKey.Fingerprint)
	}
	return err
}

// keyring reads each key once.
type keyring map[string]Key

func (ks keyring) get(tx *db.Tx, name string) (k Key, err error) {
	k, ok := ks[name]
	if !ok {
		k, err = getKey(tx, name)
		ks[name] = k
	}
	return k, err
}

func entity(k wire.Key) (*openpgp.Entity, error) {
	es, err := openpgp.ReadArmoredKeyRing(strings.NewReader(k.Public))
	if err != nil || len(es) != 1 {
		return nil, fault.Invalid("key_public", "the public key %s is no OpenPGP key", k.Name).Wrap(err)
	}
	return es[0], nil
}

// checkKey looks at a key that a signer says it holds: that it is one, of the kind it is
// said to be, and strong enough for the packages of years.
func checkKey(k wire.Key) error {
	if !reName.MatchString(k.Name) {
		return fault.Invalid("key_name", "%.80q is no name of a key", k.Name)
	}
	if err := checkTags(k.Tags); err != nil {
		return err
	}
	if len(k.Public) > 64<<10 || strings.ContainsRune(k.Public, 0) {
		return fault.Invalid("key_public", "the public key %s is no key", k.Name)
	}
	wrong := fault.Invalid("key_type", "the key %s is no %.20q key for %.20q", k.Name, k.Algo, k.Purpose)
	if k.Purpose == wire.PurposeAttest {
		if _, ok := ed25519Key(k.Public); !ok || k.Algo != wire.Ed25519 {
			return wrong
		}
		return nil
	}
	if k.Purpose != wire.PurposeRPM {
		return wrong
	}
	e, err := entity(k)
	if err != nil {
		return err
	}
	if len(e.Subkeys) > 0 || e.PrivateKey != nil {
		return fault.Invalid("key_public", "the public key %s holds more than one public key", k.Name)
	}
	bits, err := e.PrimaryKey.BitLength()
	switch {
	case err != nil:
		return fault.Invalid("key_public", "the public key %s cannot be read", k.Name).Wrap(err)
	case k.Algo == wire.RSA4096 && e.PrimaryKey.PubKeyAlgo == packet.PubKeyAlgoRSA && bits >= 4096:
		return nil
	case k.Algo == wire.Ed25519 && e.PrimaryKey.PubKeyAlgo == packet.PubKeyAlgoEdDSA:
		return nil
	}
	return wrong
}

// checkTags looks at the patterns of tags that a key signs for.
func checkTags(tags []string) error {
	if len(tags) > 100 {
		return fault.Invalid("key_tag", "a key has at most 100 patterns of tags")
	}
	for _, t := range tags {
		if _, err := path.Match(t, "x"); err != nil || t == "" || len(t) > 100 || strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fault.Invalid("key_tag", "%.100q is no pattern of tags", t).Fix("use a name of a tag, with * for any letters")
		}
	}
	return nil
}

// Key reads a key; fault key_unknown.
func (s *Store) Key(ctx context.Context, name string) (k Key, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) error { k, err = getKey(tx, name); return err })
	return k, err
}

// Keys lists the keys.
func (s *Store) Keys(ctx context.Context) ([]Key, error) {
	out := []Key{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		var names []string
		if err := tx.Each(func(scan func(...any) error) error {
			var n string
			err := scan(&n)
			names = append(names, n)
			return err
		}, "SELECT name FROM sign_key WHERE until = 0 ORDER BY name"); err != nil {
			return err
		}
		for _, n := range names {
			k, err := getKey(tx, n)
			if err != nil {
				return err
			}
			out = append(out, k)
		}
		return nil
	})
	return out, err
}

// Create asks a signer for a key and waits until it is there. A key that is there already
// with the same use is given back.
func (s *Store) Create(ctx context.Context, n wire.NewKey) (Key, error) {
	if err := auth.Need(ctx, "sign.admin", n.Name); err != nil {
		return Key{}, err
	}
	if !reName.MatchString(n.Name) {
		return Key{}, fault.Invalid("key_name", "%.80q is no name of a key", n.Name).Fix("use 1 to 64 of a-z 0-9 . _ -, a letter or digit first")
	}
	if err := checkTags(n.Tags); err != nil {
		return Key{}, err
	}
	if n.Purpose != wire.PurposeRPM && n.Purpose != wire.PurposeAttest || n.Algo != wire.RSA4096 && n.Algo != wire.Ed25519 || n.Purpose == wire.PurposeAttest && n.Algo != wire.Ed25519 {
		return Key{}, fault.Invalid("key_algo", "there are no %.20q keys for %.20q", n.Algo, n.Purpose).Fix("use rsa4096 or ed25519 for rpm, ed25519 for attest")
	}
	if n.Tags == nil {
		n.Tags = []string{}
	}
	same := func(k Key) (Key, error) {
		if k.Algo != n.Algo || k.Purpose != n.Purpose || !slices.Equal(k.Tags, n.Tags) {
			return Key{}, fault.Conflict("key_exists", "there is a key %s already: %s for %s, tags %s", k.Name, k.Algo, k.Purpose, strings.Join(k.Tags, ", ")).
				Fix("take another name; the tags of a key are changed in the signer's %s.yaml", k.Name)
		}
		return k, nil
	}
	k, err := s.Key(ctx, n.Name)
	if err == nil {
		return same(k)
	}
	if fault.Code(err) != "key_unknown" {
		return Key{}, err
	}
	w, err := s.want(ctx, n)
	if err != nil {
		return Key{}, err
	}
	defer s.unwant(w)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		woken := s.woken()
		if k, err := s.Key(ctx, n.Name); err == nil {
			return same(k)
		}
		s.mu.Lock()
		refused := w.refused
		s.mu.Unlock()
		if refused != "" {
			return Key{}, fault.Denied("key_refused", "the signer does not make the key %s: %s", n.Name, refused)
		}
		select {
		case <-ctx.Done():
			return Key{}, fault.Unavailable("signer_away", "no signer has made the key %s within a minute", n.Name).
				Fix("start the signer, with --accept-keys, or make the key on its machine: drover signer create %s", n.Name)
		case <-woken:
		}
	}
}

// want puts a key on the list of those that a signer is to make.
func (s *Store) want(ctx context.Context, n wire.NewKey) (*want, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	there, accept := 0, 0
	for _, g := range s.signers {
		if time.Since(g.at) < away {
			there++
			if g.accepts {
				accept++
			}
		}
	}
	if there > 0 && accept == 0 {
		return nil, fault.Denied("key_refused", "the signer makes no keys that it is asked for").Fix("make the key on its machine: drover signer create %s", n.Name)
	}
	w := s.wanted[n.Name]
	if w == nil {
		w = &want{key: n, by: auth.From(ctx).String()}
		s.wanted[n.Name] = w
		close(s.nudge)
		s.nudge = make(chan struct{})
	}
	w.waiters++
	return w, nil
}

func (s *Store) unwant(w *want) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.waiters--; w.waiters == 0 && s.wanted[w.key.Name] == w {
		delete(s.wanted, w.key.Name)
	}
}

// announce takes the keys that a signer holds. A key that is known keeps its public part for
// ever: another one under its name is refused.
func (s *Store) announce(ctx context.Context, ks []wire.Key) error {
	if err := auth.Need(ctx, "work.sign", "keys"); err != nil {
		return err
	}
	if len(ks) > 1000 {
		return fault.TooLarge("keys", "%d keys", len(ks))
	}
	by := map[string]string{}
	s.mu.Lock()
	for n, w := range s.wanted {
		by[n] = w.by
	}
	s.mu.Unlock()
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		for _, k := range ks {
			if k.Tags == nil {
				k.Tags = []string{}
			}
			if err := checkKey(k); err != nil {
				return err
			}
			had, err := getKey(tx, k.Name)
			if err == nil && (had.Public != k.Public || had.Algo != k.Algo || had.Purpose != k.Purpose) {
				return fault.Conflict("key_changed", "the signer holds another key under the name %s", k.Name).Fix("give the new key a new name")
			}
			if err == nil && slices.Equal(had.Tags, k.Tags) {
				continue
			}
			if err != nil && fault.Code(err) != "key_unknown" {
				return err
			}
			tags, err := json.Marshal(k.Tags)
			if err != nil {
				return err
			}
			now := Key{Key: k}
			if err := now.open(); err != nil {
				return err
			}
			ev, err := event.Append(tx, "sign.key", "key/"+k.Name, map[string]any{"algo": k.Algo, "purpose": k.Purpose, "tags": k.Tags, "fingerprint": now.Fingerprint, "asked_by": by[k.Name]})
			if err != nil {
				return err
			}
			if _, err := tx.Exec("UPDATE sign_key SET until = $1 WHERE name = $2 AND until = 0", ev, k.Name); err != nil {
				return err
			}
			if _, err := tx.Exec("INSERT INTO sign_key (name, algo, purpose, public, tags, since, until) VALUES ($1, $2, $3, $4, $5, $6, 0)", k.Name, k.Algo, k.Purpose, k.Public, string(tags), ev); err != nil {
				return err
			}
		}
		return nil
	})
	s.wake()
	return err
}

// Request asks for one signature: of a header or metadata file by the state of a sha256 that
// has read it, or of an attestation by its bytes.
type Request struct {
	Key     string
	Tag     string
	Subject string
	Digest  string // hex sha256 of what is signed
	State   []byte
	Payload []byte
}

// lifetime is how long a request may wait for the signer.
const lifetime = 10 * time.Minute

// Sign gets signatures: those that were made before at once, the others from the signer, for
// which it waits. The signatures are OpenPGP packets, or raw Ed25519 for attestations.
// Repeating a request that was cut off is harmless.
func (s *Store) Sign(ctx context.Context, rs []Request) ([][]byte, error) {
	if a := auth.From(ctx); a.Kind != auth.System {
		return nil, fault.Denied("denied", "%s may not ask for signatures; only drover itself may", a)
	}
	out := make([][]byte, len(rs))
	ids := make([]int64, len(rs))
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		var subjects []string
		keys := keyring{}
		for i, r := range rs {
			k, err := keys.get(tx, r.Key)
			if err != nil {
				return err
			}
			if (k.Purpose == wire.PurposeAttest) != (len(r.Payload) > 0) {
				return fault.Denied("key_purpose", "the key %s is for %s and does not sign %s", r.Key, k.Purpose, r.Subject).Fix("give the tag another key")
			}
			if !slices.ContainsFunc(k.Tags, func(p string) bool { ok, err := path.Match(p, r.Tag); return ok && err == nil }) {
				return fault.Denied("key_tag", "the key %s does not sign for the tag %s", r.Key, r.Tag).Fix("add the tag to %s.yaml on the signer's machine", r.Key)
			}
			err = tx.QueryRow("SELECT id, signature FROM sign_request WHERE key = $1 AND digest = $2 AND done <> 0 AND refused = '' ORDER BY id LIMIT 1", r.Key, r.Digest).Scan(&ids[i], &out[i])
			if err == nil {
				continue
			}
			if !db.NoRow(err) {
				return err
			}
			err = tx.QueryRow("SELECT id FROM sign_request WHERE key = $1 AND digest = $2 AND tag = $3 AND done = 0 AND expires > $4 ORDER BY id LIMIT 1", r.Key, r.Digest, r.Tag, tx.Now()).Scan(&ids[i])
			if err == nil {
				continue
			}
			if !db.NoRow(err) {
				return err
			}
			if ids[i], err = tx.NextID("sign_request"); err != nil {
				return err
			}
			subjects = append(subjects, r.Subject)
			_, err = tx.Exec(`INSERT INTO sign_request (id, key, purpose, tag, subject, digest, state, payload, expires, handed, done, signature, refused)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, 0, $10, '')`,
				ids[i], r.Key, k.Purpose, r.Tag, r.Subject, r.Digest, notNil(r.State), notNil(r.Payload), tx.Now()+lifetime.Microseconds(), []byte{})
			if err != nil {
				return err
			}
		}
		if len(subjects) == 0 {
			return nil
		}
		_, err := event.Append(tx, "sign.request", "key/"+rs[0].Key, map[string]any{"tag": rs[0].Tag, "count": len(subjects), "subjects": subjects[:min(len(subjects), 50)]})
		return err
	})
	if err != nil {
		return nil, err
	}
	s.wake()
	for {
		woken := s.woken()
		missing := 0
		open := map[int64][]int{} // which of rs wait for a request
		var list []string
		for i, id := range ids {
			if out[i] == nil {
				if open[id] == nil {
					list = append(list, strconv.FormatInt(id, 10))
				}
				open[id] = append(open[id], i)
				missing++
			}
		}
		err := s.db.Read(ctx, func(tx *db.Tx) error {
			return tx.Each(func(scan func(...any) error) error {
				var id, done int64
				var sig []byte
				var refused string
				switch err := scan(&id, &done, &sig, &refused); {
				case err != nil:
					return err
				case refused != "":
					return fault.Denied("sign_refused", "the signer refused %s: %s", rs[open[id][0]].Subject, refused)
				case done == 0: // no signer is handed it any more: it would be waited for in vain
					return signerAway(missing)
				}
				for _, i := range open[id] {
					out[i] = sig
					missing--
				}
				return nil
			}, "SELECT id, done, signature, refused FROM sign_request WHERE id IN (SELECT CAST(value->>'v' AS BIGINT) FROM json_each($1)) AND (done <> 0 OR expires <= $2) ORDER BY id", db.List(list), tx.Now())
		})
		if err != nil || missing == 0 {
			return out, err
		}
		again := time.NewTimer(5 * time.Second)
		select {
		case <-ctx.Done():
			again.Stop()
			return nil, signerAway(missing).Wrap(ctx.Err())
		case <-woken:
		case <-again.C:
		}
		again.Stop()
	}
}

func signerAway(n int) *fault.Error {
	return fault.Unavailable("signer_away", "%d signatures have not come", n).Fix("look whether the signer runs: `drover sign status`")
}

func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// poll gives a signer its work.
func (s *Store) poll(ctx context.Context, p wire.Poll) (o wire.Orders, err error) {
	if err := auth.Need(ctx, "work.sign", "queue"); err != nil {
		return o, err
	}
	name := auth.From(ctx).Name
	held := map[string]map[string]string{}
	for i, k := range p.Keys {
		if !reName.MatchString(k) {
			return o, fault.Invalid("key_name", "%.80q is no name of a key", k)
		}
		held[strconv.Itoa(i)] = map[string]string{"k": k}
	}
	keys, err := json.Marshal(held)
	if err != nil {
		return o, err
	}
	end := time.NewTimer(time.Duration(p.Wait) * time.Second)
	defer end.Stop()
	for {
		woken := s.woken()
		o.NewKeys = s.seen(name, p.AcceptKeys)
		o.Requests = []wire.Request{}
		err := s.db.Read(ctx, func(tx *db.Tx) error {
			return tx.Each(func(scan func(...any) error) error {
				var r wire.Request
				err := scan(&r.ID, &r.Key, &r.Purpose, &r.Tag, &r.Subject, &r.Digest, &r.State, &r.Payload, &r.Expires)
				o.Requests = append(o.Requests, r)
				return err
			}, "SELECT id, key, purpose, tag, subject, digest, state, payload, expires FROM sign_request WHERE done = 0 AND expires > $1 AND key IN (SELECT value->>'k' FROM json_each($2)) ORDER BY id LIMIT 200", tx.Now(), string(keys))
		})
		if err != nil || len(o.Requests) > 0 || len(o.NewKeys) > 0 {
			return o, err
		}
		again := time.NewTimer(5 * time.Second)
		select {
		case <-ctx.Done():
			again.Stop()
			return o, ctx.Err()
		case <-end.C:
			again.Stop()
			return o, nil
		case <-woken:
		case <-again.C:
		}
		again.Stop()
	}
}

// seen notes that a signer is there, and gives it the keys that it is to make. Of several
// signers one is told.
func (s *Store) seen(name string, accepts bool) []wire.NewKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.signers[name] = sighting{now, accepts}
	out := []wire.NewKey{}
	if !accepts {
		return out
	}
	for _, w := range s.wanted {
		if w.refused == "" && w.lease.Before(now) {
			w.signer, w.lease = name, now.Add(away/2)
			out = append(out, w.key)
		}
	}
	return out
}

// clean bounds a text that a signer sent.
func clean(s string, most int) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s[:min(len(s), most)], "\x00", ""), "")
}

// answer takes a signer's signatures. Each is verified with the key's public part; one that
// does not hold counts as refused, so that it does not hold up the others.
func (s *Store) answer(ctx context.Context, a wire.Answer) error {
	if err := auth.Need(ctx, "work.sign", "queue"); err != nil {
		return err
	}
	name := auth.From(ctx).Name
	s.mu.Lock()
	for _, n := range a.NoKeys {
		if w := s.wanted[n.Name]; w != nil && w.signer == name {
			w.refused = cmp.Or(clean(n.Why, 500), "it does not say why")
		}
	}
	s.mu.Unlock()
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		good, bad := 0, []string{}
		keys := keyring{}
		for _, d := range a.Done {
			var r wire.Request
			var done int64
			err := tx.QueryRow("SELECT key, subject, digest, state, payload, done FROM sign_request WHERE id = $1", d.ID).Scan(&r.Key, &r.Subject, &r.Digest, &r.State, &r.Payload, &done)
			if db.NoRow(err) {
				return fault.NotFound("request_unknown", "there is no request %d", d.ID)
			}
			if err != nil {
				return err
			}
			if done != 0 {
				continue // answered before; the first answer stays
			}
			if d.Refused == "" {
				k, err := keys.get(tx, r.Key)
				if err != nil {
					return err
				}
				if err := check(k, r, d.Signature); err != nil {
					s.log.WarnContext(ctx, "a signature does not hold", "signer", name, "subject", r.Subject, "err", err)
					d.Refused = err.Error()
				}
			}
			if d.Refused == "" {
				good++
			} else {
				d.Refused, d.Signature = cmp.Or(clean(d.Refused, 500), "it does not say why"), nil
				bad = append(bad, clean(r.Subject, 200)+": "+d.Refused)
			}
			if _, err := tx.Exec("UPDATE sign_request SET done = $1, signature = $2, refused = $3, payload = $4 WHERE id = $5", tx.Now(), notNil(d.Signature), d.Refused, []byte{}, d.ID); err != nil {
				return err
			}
		}
		if good+len(bad) == 0 {
			return nil
		}
		_, err := event.Append(tx, "sign.done", "signer/"+name, map[string]any{"signed": good, "refused": bad[:min(len(bad), 20)]})
		return err
	})
	s.wake()
	return err
}

// check verifies a signature with the key's public part: that it is one OpenPGP packet and
// nothing else, by this key, over what was asked for.
func check(k Key, r wire.Request, sig []byte) error {
	no := func(err error) error {
		return fault.Invalid("signature", "the signature for %s is not of the key %s", r.Subject, k.Name).Wrap(err)
	}
	if len(sig) == 0 || len(sig) > 16<<10 {
		return no(fmt.Errorf("it has %d bytes", len(sig)))
	}
	if k.Purpose == wire.PurposeAttest {
		if !VerifyAttestation(k.Public, r.Payload, sig) {
			return no(nil)
		}
		return nil
	}
	ps, err := onePacket(sig)
	if err != nil {
		return no(err)
	}
	h := sha256.New()
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(r.State); err != nil {
		return no(err)
	}
	if ps.Hash != crypto.SHA256 || ps.SigType != packet.SigTypeBinary || ps.Version != 4 || ps.IssuerKeyId == nil {
		return no(fmt.Errorf("it is of version %d by hash %v, type %d", ps.Version, ps.Hash, ps.SigType))
	}
	if *ps.IssuerKeyId != k.pgp.PrimaryKey.KeyId {
		return no(fmt.Errorf("it is by the key %016x", *ps.IssuerKeyId))
	}
	if err := k.pgp.PrimaryKey.VerifySignature(h, ps); err != nil {
		return no(err)
	}
	return nil
}

// onePacket reads a signature packet with nothing after it: what a signer hands in goes into
// packages as it is.
func onePacket(b []byte) (*packet.Signature, error) {
	r := packet.NewReader(bytes.NewReader(b))
	p, err := r.Next()
	if err != nil {
		return nil, err
	}
	s, ok := p.(*packet.Signature)
	if !ok {
		return nil, errors.New("it is no signature packet")
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the signature")
	}
	return s, nil
}

func ed25519Key(public string) (ed25519.PublicKey, bool) {
	blk, rest := pem.Decode([]byte(public))
	if blk == nil || len(rest) > 0 {
		return nil, false
	}
	pub, err := x509.ParsePKIXPublicKey(blk.Bytes)
	ed, ok := pub.(ed25519.PublicKey)
	return ed, ok && err == nil
}

// VerifyAttestation checks a raw Ed25519 signature with a PEM public key.
func VerifyAttestation(public string, payload, sig []byte) bool {
	k, ok := ed25519Key(public)
	return ok && ed25519.Verify(k, payload, sig)
}

// Status is how signing stands.
type Status struct {
	Seen    time.Time `json:"seen,omitzero"` // when a signer last polled
	Here    bool      `json:"here"`          // one is there now
	Waiting int64     `json:"waiting"`
}

// String says it for people.
func (st Status) String() string {
	seen := "has never been seen"
	if !st.Seen.IsZero() {
		seen = "was last seen " + st.Seen.UTC().Format("2006-01-02 15:04:05 UTC")
	}
	if st.Here {
		return fmt.Sprintf("the signer is there, %d requests wait for it", st.Waiting)
	}
	return fmt.Sprintf("NO SIGNER: it %s, %d requests wait for it; start it with `drover signer run`", seen, st.Waiting)
}

// Status tells whether a signer is there and how much waits for it.
func (s *Store) Status(ctx context.Context) (st Status, err error) {
	s.mu.Lock()
	for _, g := range s.signers {
		if g.at.After(st.Seen) {
			st.Seen = g.at
		}
	}
	s.mu.Unlock()
	st.Here = time.Since(st.Seen) < away
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow("SELECT COUNT(*) FROM sign_request WHERE done = 0 AND expires > $1", tx.Now()).Scan(&st.Waiting)
	})
	return st, err
}
