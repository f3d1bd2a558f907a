package sign

import (
	"bytes"
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
	"log/slog"
	"path"
	"regexp"
	"slices"
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

	mu     sync.Mutex    // guards nudge, wanted and seen
	nudge  chan struct{} // closed and replaced when the queue or the keys changed
	wanted []wire.NewKey // keys that the signer is to make
	seen   time.Time     // when a signer last polled
}

// New makes a Store on d.
func New(d *db.DB, log *slog.Logger) *Store {
	return &Store{db: d, log: log, nudge: make(chan struct{})}
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
	k.Fingerprint, err = fingerprint(k.Key)
	return k, err
}

func fingerprint(k wire.Key) (string, error) {
	if k.Purpose == wire.PurposeAttest {
		blk, _ := pem.Decode([]byte(k.Public))
		if blk == nil {
			return "", fault.Invalid("key_public", "the public key %s is no PEM", k.Name)
		}
		h := sha256.Sum256(blk.Bytes)
		return hex.EncodeToString(h[:]), nil
	}
	es, err := openpgp.ReadArmoredKeyRing(bytes.NewReader([]byte(k.Public)))
	if err != nil || len(es) != 1 {
		return "", fault.Invalid("key_public", "the public key %s is no OpenPGP key", k.Name).Wrap(err)
	}
	return hex.EncodeToString(es[0].PrimaryKey.Fingerprint), nil
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

// Create asks the signer for a key and waits until it is there.
func (s *Store) Create(ctx context.Context, n wire.NewKey) (Key, error) {
	if err := auth.Need(ctx, "sign.admin", n.Name); err != nil {
		return Key{}, err
	}
	if !reName.MatchString(n.Name) || len(n.Tags) > 100 {
		return Key{}, fault.Invalid("key_name", "%.80q is no name of a key", n.Name)
	}
	for _, t := range n.Tags {
		if _, err := path.Match(t, "x"); err != nil {
			return Key{}, fault.Invalid("key_tag", "%.100q is no pattern of tags", t)
		}
	}
	if n.Tags == nil {
		n.Tags = []string{}
	}
	if k, err := s.Key(ctx, n.Name); err == nil {
		return k, nil
	}
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		_, err := event.Append(tx, "sign.want", "key/"+n.Name, n)
		return err
	})
	if err != nil {
		return Key{}, err
	}
	s.mu.Lock()
	s.wanted = append(s.wanted, n)
	s.mu.Unlock()
	s.wake()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		woken := s.woken()
		if k, err := s.Key(ctx, n.Name); err == nil {
			return k, nil
		}
		select {
		case <-ctx.Done():
			return Key{}, fault.Unavailable("signer_away", "the signer has not made the key %s within a minute", n.Name).
				Fix("start the signer, with --accept-keys, or make the key on its machine: drover signer create")
		case <-woken:
		}
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
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		for _, k := range ks {
			if !reName.MatchString(k.Name) || len(k.Public) > 64<<10 || k.Purpose != wire.PurposeRPM && k.Purpose != wire.PurposeAttest {
				return fault.Invalid("key_name", "%.80q is no key", k.Name)
			}
			if _, err := fingerprint(k); err != nil {
				return err
			}
			had, err := getKey(tx, k.Name)
			if err == nil && had.Public != k.Public {
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
			fp, err := fingerprint(k)
			if err != nil {
				return err
			}
			ev, err := event.Append(tx, "sign.key", "key/"+k.Name, map[string]any{"algo": k.Algo, "purpose": k.Purpose, "tags": k.Tags, "fingerprint": fp})
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
	s.mu.Lock()
	s.wanted = slices.DeleteFunc(s.wanted, func(n wire.NewKey) bool {
		return slices.ContainsFunc(ks, func(k wire.Key) bool { return k.Name == n.Name })
	})
	s.mu.Unlock()
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
		for i, r := range rs {
			k, err := getKey(tx, r.Key)
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(k.Tags, func(p string) bool { ok, err := path.Match(p, r.Tag); return ok && err == nil }) {
				return fault.Denied("key_tag", "the key %s does not sign for the tag %s", r.Key, r.Tag).Fix("add the tag to the signer's %s.yaml", r.Key)
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
		err := s.db.Read(ctx, func(tx *db.Tx) error {
			for i := range rs {
				if out[i] != nil {
					continue
				}
				var done int64
				var sig []byte
				var refused string
				if err := tx.QueryRow("SELECT done, signature, refused FROM sign_request WHERE id = $1", ids[i]).Scan(&done, &sig, &refused); err != nil {
					return err
				}
				switch {
				case refused != "":
					return fault.Denied("sign_refused", "the signer refused %s: %s", rs[i].Subject, refused)
				case done != 0:
					out[i] = sig
				default:
					missing++
				}
			}
			return nil
		})
		if err != nil || missing == 0 {
			return out, err
		}
		again := time.NewTimer(5 * time.Second)
		select {
		case <-ctx.Done():
			again.Stop()
			return nil, fault.Unavailable("signer_away", "%d signatures have not come", missing).Wrap(ctx.Err()).Fix("look whether the signer runs: `drover sign status`")
		case <-woken:
		case <-again.C:
		}
		again.Stop()
	}
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
	end := time.NewTimer(time.Duration(p.Wait) * time.Second)
	defer end.Stop()
	for {
		woken := s.woken()
		s.mu.Lock()
		s.seen = time.Now()
		o.NewKeys = append([]wire.NewKey{}, s.wanted...)
		s.mu.Unlock()
		o.Requests = []wire.Request{}
		err := s.db.Read(ctx, func(tx *db.Tx) error {
			return tx.Each(func(scan func(...any) error) error {
				var r wire.Request
				err := scan(&r.ID, &r.Key, &r.Purpose, &r.Tag, &r.Subject, &r.Digest, &r.State, &r.Payload, &r.Expires)
				o.Requests = append(o.Requests, r)
				return err
			}, "SELECT id, key, purpose, tag, subject, digest, state, payload, expires FROM sign_request WHERE done = 0 AND expires > $1 ORDER BY id LIMIT 200", tx.Now())
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

// answer takes a signer's signatures. Each is verified with the key's public part.
func (s *Store) answer(ctx context.Context, a wire.Answer) error {
	if err := auth.Need(ctx, "work.sign", "queue"); err != nil {
		return err
	}
	if len(a.Done) > 1000 {
		return fault.TooLarge("answers", "%d answers", len(a.Done))
	}
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		good, bad := 0, []string{}
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
				k, err := getKey(tx, r.Key)
				if err != nil {
					return err
				}
				if err := check(k, r, d.Signature); err != nil {
					return err
				}
				good++
			} else {
				bad = append(bad, r.Subject+": "+d.Refused[:min(len(d.Refused), 500)])
			}
			if _, err := tx.Exec("UPDATE sign_request SET done = $1, signature = $2, refused = $3, payload = $4 WHERE id = $5", tx.Now(), notNil(d.Signature), d.Refused[:min(len(d.Refused), 1000)], []byte{}, d.ID); err != nil {
				return err
			}
		}
		if good+len(bad) == 0 {
			return nil
		}
		_, err := event.Append(tx, "sign.done", "signer/"+auth.From(ctx).Name, map[string]any{"signed": good, "refused": bad[:min(len(bad), 20)]})
		return err
	})
	s.wake()
	return err
}

// check verifies a signature with the key's public part.
func check(k Key, r wire.Request, sig []byte) error {
	no := func(err error) error {
		return fault.Invalid("signature", "the signature for %s is not of the key %s", r.Subject, k.Name).Wrap(err)
	}
	if len(sig) == 0 || len(sig) > 16<<10 {
		return no(errors.New("wrong length"))
	}
	if k.Purpose == wire.PurposeAttest {
		if !VerifyAttestation(k.Public, r.Payload, sig) {
			return no(nil)
		}
		return nil
	}
	es, err := openpgp.ReadArmoredKeyRing(bytes.NewReader([]byte(k.Public)))
	if err != nil {
		return no(err)
	}
	p, err := packet.Read(bytes.NewReader(sig))
	ps, ok := p.(*packet.Signature)
	if err != nil || !ok {
		return no(err)
	}
	h := sha256.New()
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(r.State); err != nil {
		return no(err)
	}
	if ps.Hash != crypto.SHA256 || ps.SigType != packet.SigTypeBinary {
		return no(fmt.Errorf("it is by hash %v, type %d", ps.Hash, ps.SigType))
	}
	if err := es[0].PrimaryKey.VerifySignature(h, ps); err != nil {
		return no(err)
	}
	return nil
}

// VerifyAttestation checks a raw Ed25519 signature with a PEM public key.
func VerifyAttestation(public string, payload, sig []byte) bool {
	blk, _ := pem.Decode([]byte(public))
	if blk == nil {
		return false
	}
	pub, err := x509.ParsePKIXPublicKey(blk.Bytes)
	ed, ok := pub.(ed25519.PublicKey)
	return err == nil && ok && ed25519.Verify(ed, payload, sig)
}

// Status is how signing stands.
type Status struct {
	Seen    time.Time `json:"seen,omitzero"` // when a signer last polled
	Waiting int64     `json:"waiting"`
}

// Status tells whether a signer is there and how much waits for it.
func (s *Store) Status(ctx context.Context) (st Status, err error) {
	s.mu.Lock()
	st.Seen = s.seen
	s.mu.Unlock()
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow("SELECT COUNT(*) FROM sign_request WHERE done = 0 AND expires > $1", tx.Now()).Scan(&st.Waiting)
	})
	return st, err
}
