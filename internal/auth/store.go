package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/base32"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"

	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
)

//go:embed migrations
var migrations embed.FS

// Schema is the tables of people, tokens and tickets.
func Schema() db.Schema { return db.Schema{Name: "auth", FS: migrations} }

// Store keeps people, tokens and tickets.
type Store struct{ db *db.DB }

// NewStore makes a Store on d.
func NewStore(d *db.DB) *Store { return &Store{d} }

var reName = regexp.MustCompile(`^[a-z0-9][a-z0-9._@-]{0,63}$`)

func checkName(name string) error {
	if !reName.MatchString(name) {
		return fault.Invalid("name", "%q is no name", name).Fix("use 1 to 64 of a-z 0-9 . _ @ -, a letter or digit first")
	}
	return nil
}

// NewSecret makes a secret of 160 random bits with a prefix that tells what it is. It is
// stored only as its sha256: there is nothing in it to guess, so no slow hash is needed. It
// is looked up by that digest, so what a stranger could measure is how far the digest of his
// guess agrees with a stored one, and he can steer no digest.
func NewSecret(prefix string) (secret string, hash []byte) {
	b := make([]byte, 20)
	_, _ = rand.Read(b) // never fails, crypto/rand
	secret = prefix + strings.ToLower(base32.StdEncoding.EncodeToString(b))
	h := sha256.Sum256([]byte(secret))
	return secret, h[:]
}

// PersonInfo is a person as listed.
type PersonInfo struct {
	Name  string `json:"name"`
	Role  string `json:"role"`
	Note  string `json:"note,omitempty"`
	Since int64  `json:"since" doc:"event that made this state"`
}

// SetPerson adds a person or changes the role; a note of "" leaves the note. The role ""
// disables the person and ends all the person's tokens: whoever comes back gets new ones.
func (s *Store) SetPerson(ctx context.Context, name, role, note string) error {
	if err := Need(ctx, "auth.person", name); err != nil {
		return err
	}
	if err := checkName(name); err != nil {
		return err
	}
	if role != "" && !slices.Contains(Roles(), role) {
		return fault.Invalid("role", "%q is no role", role).Fix("use one of %s", strings.Join(Roles(), ", "))
	}
	return s.db.Write(ctx, func(tx *db.Tx) error { return setPerson(tx, name, role, note) })
}

func setPerson(tx *db.Tx, name, role, note string) error {
	var had, noted string
	err := tx.QueryRow("SELECT role, note FROM auth_person WHERE name = $1 AND until = 0", name).Scan(&had, &noted)
	if err != nil && !db.NoRow(err) {
		return err
	}
	if note == "" {
		note = noted
	}
	if had == role && note == noted {
		if role == "" {
			return fault.NotFound("person_unknown", "there is no person %q", name).Fix("see `drover auth person list`")
		}
		return nil
	}
	if had == "admin" && role != "admin" {
		if err := stillAdmin(tx, name, 0); err != nil {
			return err
		}
	}
	id, err := event.Append(tx, "auth.person", "person/"+name, map[string]string{"role": role, "was": had, "note": note})
	if err != nil {
		return err
	}
	if _, err := tx.Exec("UPDATE auth_person SET until = $1 WHERE name = $2 AND until = 0", id, name); err != nil {
		return err
	}
	if role == "" {
		_, err = tx.Exec("UPDATE auth_token SET revoked = $1 WHERE owner = $2 AND kind = 'person' AND revoked = 0", id, name)
		return err
	}
	_, err = tx.Exec("INSERT INTO auth_person (name, role, note, since, until) VALUES ($1, $2, $3, $4, 0)", name, role, note, id)
	return err
}

// stillAdmin fails when nobody could act as an admin without a person and a token: nobody
// could ever let anybody in again.
func stillAdmin(tx *db.Tx, person string, token int64) error {
	var others int
	err := tx.QueryRow(`SELECT COUNT(*) FROM auth_token t JOIN auth_person p ON p.name = t.owner AND p.until = 0 AND p.role = 'admin'
		WHERE t.kind = 'person' AND t.revoked = 0 AND t.scopes = '[]' AND (t.expires = 0 OR t.expires > $1) AND t.owner <> $2 AND t.id <> $3`, tx.Now(), person, token).Scan(&others)
	if err == nil && others == 0 {
		err = fault.Conflict("last_admin", "nobody else could act as an admin then").Fix("make another admin with a token first: `drover auth person set`, `drover auth token create`")
	}
	return err
}

// People lists the people of now.
func (s *Store) People(ctx context.Context) ([]PersonInfo, error) {
	out := []PersonInfo{}
	if err := Need(ctx, "auth.person", "*"); err != nil {
		return nil, err
	}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var p PersonInfo
			err := scan(&p.Name, &p.Role, &p.Note, &p.Since)
			out = append(out, p)
			return err
		}, "SELECT name, role, note, since FROM auth_person WHERE until = 0 ORDER BY name")
	})
	return out, err
}

// RoleOf is the role that a person has now, for what runs in the person's name.
func (s *Store) RoleOf(ctx context.Context, name string) (role string, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow("SELECT role FROM auth_person WHERE name = $1 AND until = 0", name).Scan(&role)
	})
	if db.NoRow(err) {
		return "", fault.Denied("person_unknown", "there is no person %q any more", name).Fix("make what runs in that name anew")
	}
	return role, err
}

// TokenInfo is a token as listed; the secret is shown once, when it is made.
type TokenInfo struct {
	ID      int64     `json:"id"`
	Owner   string    `json:"owner"`
	Kind    Kind      `json:"kind"`
	Label   string    `json:"label"`
	Scopes  []string  `json:"scopes"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`
	Revoked bool      `json:"revoked"`
	Secret  string    `json:"secret,omitempty"`
}

// NewToken makes a token for a person. A person makes tokens for herself, with no more
// than the scopes she acts with; an admin makes them for others too. ttl 0 means no expiry.
func (s *Store) NewToken(ctx context.Context, owner, label string, scopes []string, ttl time.Duration) (TokenInfo, error) {
	a := From(ctx)
	if a.Kind == Person && owner == "" {
		owner = a.Name
	}
	if a.Kind != Person || a.Name != owner || len(a.Scopes) > 0 {
		if err := Need(ctx, "auth.token", owner); err != nil {
			return TokenInfo{}, err
		}
	}
	if len(label) > 100 || len(scopes) > 50 || ttl < 0 {
		return TokenInfo{}, fault.Invalid("token", "a token has a label of at most 100 letters, at most 50 scopes, and no negative lifetime")
	}
	for _, sc := range scopes {
		if err := checkScope(sc); err != nil {
			return TokenInfo{}, err
		}
	}
	if !mayGive(a.Scopes, scopes) {
		return TokenInfo{}, fault.Denied("denied", "%s may not make a token that may more than its own", a).Fix("give it scopes out of %s", strings.Join(a.Scopes, ", "))
	}
	var t TokenInfo
	err := s.db.Write(ctx, func(tx *db.Tx) (err error) {
		var role string
		err = tx.QueryRow("SELECT role FROM auth_person WHERE name = $1 AND until = 0", owner).Scan(&role)
		if db.NoRow(err) {
			return fault.NotFound("person_unknown", "there is no person %q", owner).Fix("add it with `drover auth person set %s --role packager`", owner)
		}
		if err != nil {
			return err
		}
		t, err = newToken(tx, owner, Person, label, scopes, ttl)
		return err
	})
	return t, err
}

func newToken(tx *db.Tx, owner string, kind Kind, label string, scopes []string, ttl time.Duration) (TokenInfo, error) {
	secret, hash := NewSecret("drv_")
	if scopes == nil {
		scopes = []string{}
	}
	text, err := json.Marshal(scopes)
	if err != nil {
		return TokenInfo{}, err
	}
	id, err := tx.NextID("auth_token")
	if err != nil {
		return TokenInfo{}, err
	}
	var expires int64
	if ttl > 0 {
		expires = tx.Now() + ttl.Microseconds()
	}
	if _, err := event.Append(tx, "auth.token", string(kind)+"/"+owner, map[string]any{"token": id, "label": label, "scopes": scopes, "expires": expires}); err != nil {
		return TokenInfo{}, err
	}
	_, err = tx.Exec("INSERT INTO auth_token (id, owner, kind, label, hash, scopes, created, expires, revoked) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0)",
		id, owner, string(kind), label, hash, string(text), tx.Now(), expires)
	return TokenInfo{ID: id, Owner: owner, Kind: kind, Label: label, Scopes: scopes, Created: db.Time(tx.Now()), Expires: db.Time(expires), Secret: secret}, err
}

// Tokens lists tokens: an admin sees all, a person her own.
func (s *Store) Tokens(ctx context.Context) ([]TokenInfo, error) {
	a := From(ctx)
	owner := ""
	if !a.May("auth.token", "*") {
		if a.Kind != Person {
			return nil, Need(ctx, "auth.token", "*")
		}
		owner = a.Name
	}
	out := []TokenInfo{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var t TokenInfo
			var scopes string
			var created, expires, revoked int64
			if err := scan(&t.ID, &t.Owner, &t.Kind, &t.Label, &scopes, &created, &expires, &revoked); err != nil {
				return err
			}
			t.Created, t.Expires, t.Revoked = db.Time(created), db.Time(expires), revoked != 0
			out = append(out, t)
			return json.Unmarshal([]byte(scopes), &out[len(out)-1].Scopes)
		}, "SELECT id, owner, kind, label, scopes, created, expires, revoked FROM auth_token WHERE $1 = '' OR (owner = $1 AND kind = 'person') ORDER BY id", owner)
	})
	return out, err
}

// Revoke ends a token at once. Revoking twice is no error.
func (s *Store) Revoke(ctx context.Context, id int64) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		var owner string
		var kind Kind
		var revoked int64
		err := tx.QueryRow("SELECT owner, kind, revoked FROM auth_token WHERE id = $1", id).Scan(&owner, &kind, &revoked)
		if db.NoRow(err) {
			return fault.NotFound("token_unknown", "there is no token %d", id).Fix("see `drover auth token list`")
		}
		if err != nil {
			return err
		}
		if a := From(ctx); a.Kind != Person || kind != Person || a.Name != owner {
			if err := Need(ctx, "auth.token", owner); err != nil {
				return err
			}
		}
		if revoked != 0 {
			return nil
		}
		// Ending any token but the last that can act as an admin leaves one; ending one that
		// could not act anyway changes nothing.
		if kind == Person {
			if err := keepsAdmin(tx, id); err != nil {
				return err
			}
		}
		ev, err := event.Append(tx, "auth.revoke", string(kind)+"/"+owner, map[string]int64{"token": id})
		if err != nil {
			return err
		}
		_, err = tx.Exec("UPDATE auth_token SET revoked = $1 WHERE id = $2", ev, id)
		return err
	})
}

// keepsAdmin fails when the token is the last by which anybody acts as an admin.
func keepsAdmin(tx *db.Tx, token int64) error {
	if stillAdmin(tx, "", 0) != nil {
		return nil //nolint:nilerr // there is none to lose
	}
	return stillAdmin(tx, "", token)
}

// Authenticate finds the actor of a token.
func (s *Store) Authenticate(ctx context.Context, secret string) (Actor, error) {
	bad := func(why string) error {
		return fault.Unauthorized("token_bad", "the token is %s", why).Fix("log in again with `drover login`, or make a new token")
	}
	if !strings.HasPrefix(secret, "drv_") || len(secret) > 100 {
		return Actor{}, bad("not one of drover's")
	}
	h := sha256.Sum256([]byte(secret))
	var a Actor
	var scopes string
	var expires, revoked, now int64
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		now = tx.Now()
		if err := tx.QueryRow("SELECT id, owner, kind, scopes, expires, revoked FROM auth_token WHERE hash = $1", h[:]).Scan(&a.Token, &a.Name, &a.Kind, &scopes, &expires, &revoked); err != nil {
			return err
		}
		a.Role = string(a.Kind) // a builder's rights come from being a builder
		if a.Kind != Person {
			return nil
		}
		return tx.QueryRow("SELECT role FROM auth_person WHERE name = $1 AND until = 0", a.Name).Scan(&a.Role)
	})
	switch {
	case db.NoRow(err):
		return Actor{}, bad("unknown")
	case err != nil:
		return Actor{}, err
	case revoked != 0:
		return Actor{}, bad("revoked")
	case expires != 0 && expires <= now:
		return Actor{}, bad("expired")
	}
	return a, json.Unmarshal([]byte(scopes), &a.Scopes)
}

// NewTicket makes a single-use ticket by which a builder or signer of that name joins.
func (s *Store) NewTicket(ctx context.Context, kind Kind, name string, ttl time.Duration) (string, error) {
	if err := Need(ctx, "auth.ticket", string(kind)+":"+name); err != nil {
		return "", err
	}
	if kind != Builder && kind != Signer {
		return "", fault.Invalid("ticket_kind", "a ticket is for a builder or a signer, not for a %q", kind)
	}
	if err := checkName(name); err != nil {
		return "", err
	}
	if ttl <= 0 || ttl > 30*24*time.Hour {
		return "", fault.Invalid("ticket_ttl", "a ticket lives up to 30 days, not %s", ttl)
	}
	secret, hash := NewSecret("drt_")
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		id, err := tx.NextID("auth_ticket")
		if err != nil {
			return err
		}
		if _, err := event.Append(tx, "auth.ticket", string(kind)+"/"+name, map[string]any{"ticket": id, "expires": tx.Now() + ttl.Microseconds()}); err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO auth_ticket (id, kind, name, hash, created, expires, used) VALUES ($1, $2, $3, $4, $5, $6, 0)",
			id, string(kind), name, hash, tx.Now(), tx.Now()+ttl.Microseconds())
		return err
	})
	return secret, err
}

// Join trades a ticket for the token of a builder or signer. Earlier tokens of the same
// builder or signer end: one machine, one identity.
func (s *Store) Join(ctx context.Context, ticket string) (TokenInfo, error) {
	h := sha256.Sum256([]byte(ticket))
	var id, expires, used int64
	var kind Kind
	var name string
	read := func(tx *db.Tx) error {
		return tx.QueryRow("SELECT id, kind, name, expires, used FROM auth_ticket WHERE hash = $1", h[:]).Scan(&id, &kind, &name, &expires, &used)
	}
	if err := s.db.Read(ctx, read); err == nil {
		ctx = With(ctx, Actor{Kind: kind, Name: name}) // who has the ticket is who it is of
	}
	var t TokenInfo
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		err := read(tx)
		why := ""
		switch {
		case db.NoRow(err):
			why = "unknown"
		case err != nil:
			return err
		case used != 0:
			why = "used already"
		case expires <= tx.Now():
			why = "expired"
		}
		if why != "" {
			return fault.Unauthorized("ticket_bad", "the ticket is %s", why).Fix("make a new one with `drover auth ticket builder NAME`")
		}
		ev, err := event.Append(tx, "auth.join", string(kind)+"/"+name, map[string]int64{"ticket": id})
		if err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE auth_ticket SET used = $1 WHERE id = $2", ev, id); err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE auth_token SET revoked = $1 WHERE owner = $2 AND kind = $3 AND revoked = 0", ev, name, string(kind)); err != nil {
			return err
		}
		t, err = newToken(tx, name, kind, "joined by ticket", nil, 0)
		return err
	})
	return t, err
}

// Bootstrap makes the person "admin" and a token on a server that has nobody yet. It
// returns "" when there is somebody. keep puts the token where it outlives the process,
// before it is valid: a server that is killed before it has shown the token would have no way in.
func (s *Store) Bootstrap(ctx context.Context, keep func(secret string) error) (string, error) {
	var t TokenInfo
	err := s.db.Write(AsSystem(ctx), func(tx *db.Tx) error {
		var n int
		if err := tx.QueryRow("SELECT COUNT(*) FROM auth_person").Scan(&n); err != nil || n > 0 {
			return err
		}
		if err := setPerson(tx, "admin", "admin", "made by the first start"); err != nil {
			return err
		}
		var err error
		if t, err = newToken(tx, "admin", Person, "made by the first start", nil, 0); err != nil {
			return err
		}
		return keep(t.Secret)
	})
	return t.Secret, err
}
