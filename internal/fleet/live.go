package fleet

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/bus"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/fleet/wire"

	"github.com/nats-io/nats.go"
)

// Times of presence. An agent of which nothing was heard for silence is gone; one whose
// connection ended is gone at once.
const (
	aliveEvery  = 60 * time.Second
	silence     = 150 * time.Second
	grace       = 100 * time.Second // in which hosts may come back after a start of the server
	reportEvery = 600               // seconds
	storeEvery  = 500 * time.Millisecond
	seenEvery   = 5 * time.Minute
	tokenLife   = 24 * time.Hour
	rivalWait   = 2 * time.Second
	remindEvery = 30 * time.Second
)

// maxQueued bounds what agents say and this server has not heard yet, in bytes.
const maxQueued = 256 << 20

// Jitter is over how long agents spread when they all come back at once: 6 s for 3,000.
func Jitter(hosts int) time.Duration {
	return max(2*time.Second, time.Duration(hosts)*2*time.Millisecond)
}

// OpenBus opens the bus of the fleet, without the hosts that are revoked.
func (s *Store) OpenBus(ctx context.Context, cfg bus.Config) (err error) {
	if cfg.Revoked, err = s.revoked(ctx); err != nil {
		return err
	}
	s.bus, err = bus.Open(ctx, cfg)
	return err
}

// CloseBus closes it.
func (s *Store) CloseBus() {
	if s.bus != nil {
		s.bus.Close()
	}
}

// BusAddr is the address that the bus listens on.
func (s *Store) BusAddr() string { return s.bus.Addr() }

// LeafAddr is the address on which the buses of sites connect.
func (s *Store) LeafAddr() string { return s.bus.LeafAddr() }

// Reachable tells agents where the bus is, and which CA the server's certificates are of. It is to
// be called before anybody enrols.
func (s *Store) Reachable(urls []string, ca string) { s.cfg.Bus, s.cfg.CA = urls, ca }

// Handle has fn called with what agents say of a kind: the last word of the subject. It is to be
// called before Run. fn must be quick: everything that agents say goes through one at a time.
func (s *Store) Handle(kind string, fn func(Member, []byte)) { s.handlers[kind] = fn }

// Watch has fn called when a host comes, goes or is let in no more. It is to be called before Run.
func (s *Store) Watch(fn func(Member)) { s.changed = append(s.changed, fn) }

// Say sends a message to a host.
func (s *Store) Say(word, kind string, b []byte) error {
	return s.bus.Conn.Publish("to."+word+"."+kind, b)
}

// view is a member at this moment; the caller holds mu.
func (s *Store) view(m *member) Member {
	v := Member{ID: m.id, Word: word(m.id), Name: m.name, Instance: m.instance, Presence: Offline, Since: m.since, Seen: m.seen, Cap: m.capa}
	switch {
	case m.online && m.instance != "":
		v.Presence = Online
	case m.online:
		v.Presence = Returning
	}
	return v
}

func (s *Store) tell(v Member) {
	for _, fn := range s.changed {
		fn(v)
	}
}

// Run listens to the agents until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	ctx = auth.AsSystem(ctx)
	sub, err := s.bus.Conn.Subscribe("from.*.*", func(m *nats.Msg) { s.hear(ctx, m.Subject, m.Data) })
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }() // the connection is about to end
	if err := sub.SetPendingLimits(-1, maxQueued); err != nil {
		return err
	}
	if err := s.bus.Gone(s.gone); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { defer close(done); s.file(ctx) }()
	defer func() { <-done }()
	tick := time.NewTicker(storeEvery)
	defer tick.Stop()
	seen, reminded := time.Now(), time.Now()
	for {
		select {
		case <-ctx.Done():
			wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			return s.storePresence(wctx, true)
		case <-tick.C:
		}
		s.silent()
		all := time.Since(seen) > seenEvery
		if all {
			seen = time.Now()
		}
		if time.Since(reminded) > remindEvery {
			reminded = time.Now()
			if err := s.bus.Remind(); err != nil {
				s.log.Warn("sites are not told who is revoked; they are told again", "err", err)
			}
		}
		if err := s.storePresence(ctx, all); err != nil && ctx.Err() == nil {
			s.log.Error("presence is not stored", "err", err)
		}
	}
}

// hear takes what an agent says.
func (s *Store) hear(ctx context.Context, subject string, data []byte) {
	parts := strings.Split(subject, ".")
	if len(parts) != 3 {
		return
	}
	s.mu.Lock()
	m := s.members[number(parts[1])]
	if m == nil {
		s.mu.Unlock()
		return
	}
	m.seen = s.db.Now()
	switch parts[2] {
	case "hello":
		s.mu.Unlock()
		var h wire.Hello
		if err := json.Unmarshal(data, &h); err != nil || len(h.Instance) > 64 || len(h.Instance) < 8 || len(h.Nonce) > 64 || len(h.Version) > 100 || len(h.Conn) > 100 || len(h.Boot) > 100 || len(h.Machine) > 100 || len(h.Inventory) > 100 {
			s.log.Warn("a hello cannot be read", "host", parts[1], "err", err)
			return
		}
		s.hello(ctx, m, h)
	case "alive":
		var a wire.Alive
		err := json.Unmarshal(data, &a)
		if err == nil && a.Instance == m.instance && m.rival != nil { // it is there: the other one is the clone
			rival := *m.rival
			m.rival = nil
			m.clone = fmt.Sprintf("a process %s on the machine %s has the key of this host", rival.Instance, rival.Machine)
			s.mu.Unlock()
			s.cloned(ctx, m, rival)
			return
		}
		if err == nil && a.Instance == m.instance && a.Clock != 0 {
			m.skew = time.Duration(a.Clock-s.db.Now()) * time.Microsecond
		}
		s.mu.Unlock()
	default:
		v := s.view(m)
		s.mu.Unlock()
		if fn := s.handlers[parts[2]]; fn != nil {
			fn(v, data)
		}
	}
}

// hello welcomes an agent, unless another process with its key is there.
func (s *Store) hello(ctx context.Context, m *member, h wire.Hello) {
	s.mu.Lock()
	if m.online && m.instance != "" && m.instance != h.Instance {
		// Two processes with one key: a machine that came back before anybody noticed that it was
		// gone, or a clone. Who is there is asked; both hear it.
		first := m.rival == nil
		m.rival = &h
		s.mu.Unlock()
		if err := s.Say(word(m.id), "who", nil); err != nil {
			s.log.Error("a host is not asked", "host", m.name, "err", err)
		}
		if first {
			time.AfterFunc(rivalWait, func() {
				s.mu.Lock()
				rival := m.rival
				m.rival = nil
				if rival != nil {
					m.instance = ""
				}
				s.mu.Unlock()
				if rival != nil {
					s.hello(ctx, m, *rival)
				}
			})
		}
		return
	}
	now := s.db.Now()
	came := !m.online || m.instance == ""
	if !m.online {
		m.since = now
	}
	if m.clone != "" && m.boot != h.Boot {
		m.clone = ""
	}
	m.online, m.instance, m.conn, m.version, m.capa, m.machine, m.boot = true, h.Instance, h.Conn, h.Version, h.Cap, h.Machine, h.Boot
	m.skew = time.Duration(h.Clock-now) * time.Microsecond
	s.dirty[m.id] = true
	w := wire.Welcome{Nonce: h.Nonce, Instance: h.Instance, Now: now, Jitter: Jitter(len(s.members)).Milliseconds(), Alive: int64(aliveEvery / time.Second), Report: reportEvery,
		Inventory: m.digest, Cap: wire.Capability, Version: s.cfg.Version, Token: s.token(m.id, now)}
	v := s.view(m)
	s.mu.Unlock()
	s.welcome(v, w)
	if came {
		s.tell(v)
	}
	if fn := s.handlers["hello"]; fn != nil {
		b, err := json.Marshal(h.Running)
		if err == nil {
			fn(v, b)
		}
	}
}

func (s *Store) welcome(v Member, w wire.Welcome) {
	b, err := wire.Seal(s.key, wire.ForWelcome, w)
	if err == nil {
		err = s.Say(v.Word, "welcome", b)
	}
	if err != nil {
		s.log.Error("a host is not welcomed", "host", v.Name, "err", err)
	}
}

// cloned refuses a second process with a host's key.
func (s *Store) cloned(ctx context.Context, m *member, h wire.Hello) {
	s.log.Warn("a second machine has a host's key", "host", m.name, "machine", h.Machine)
	s.mu.Lock()
	v := s.view(m)
	s.mu.Unlock()
	s.welcome(v, wire.Welcome{Nonce: h.Nonce, Instance: h.Instance, Now: s.db.Now(), Alive: 60, Report: reportEvery, Jitter: 60_000, Cap: wire.Capability,
		Refused: "another machine with the key of this host is connected; if this one was copied from it, remove the agent's directory here and enrol it with a ticket"})
	if err := s.db.Write(ctx, func(tx *db.Tx) error {
		_, err := event.Append(tx, "host.clone", "host/"+m.name, map[string]string{"machine": h.Machine, "instance": h.Instance, "boot": h.Boot})
		return err
	}); err != nil {
		s.log.Error("a clone is not in the ledger", "host", m.name, "err", err)
	}
}

// gone takes note that a connection has ended.
func (s *Store) gone(key, conn string) {
	s.mu.Lock()
	m := s.byKey[key]
	if m == nil || !m.online || m.conn != conn || m.instance == "" {
		s.mu.Unlock()
		return
	}
	m.online, m.since, m.instance = false, s.db.Now(), ""
	s.dirty[m.id] = true
	v := s.view(m)
	s.mu.Unlock()
	s.tell(v)
}

// silent finds the hosts of which nothing was heard for too long.
func (s *Store) silent() {
	now := s.db.Now()
	s.mu.Lock()
	late := time.Since(s.began) > grace+Jitter(len(s.members))
	var v []Member
	for _, m := range s.members {
		if !m.online || now-m.seen < silence.Microseconds() && m.instance != "" || m.instance == "" && !late {
			continue
		}
		m.online, m.since, m.instance = false, m.seen, ""
		s.dirty[m.id] = true
		v = append(v, s.view(m))
	}
	s.mu.Unlock()
	for _, x := range v {
		s.tell(x)
	}
}

// storePresence stores who came and went; with all also when each was seen last.
func (s *Store) storePresence(ctx context.Context, all bool) error {
	type row struct {
		ID      int64  `json:"i"`
		Online  int64  `json:"o"`
		Since   int64  `json:"s"`
		Seen    int64  `json:"t"`
		Boot    string `json:"b"`
		Version string `json:"v"`
		Cap     int    `json:"c"`
		Machine string `json:"m"`
	}
	rows := map[string]row{}
	s.mu.Lock()
	dirty := s.dirty
	s.dirty = map[int64]bool{}
	for id, m := range s.members {
		if dirty[id] || all && m.online && m.instance != "" {
			rows[strconv.Itoa(len(rows))] = row{id, db.Bool(m.online), m.since, m.seen, m.boot, m.version, m.capa, m.machine}
		}
	}
	s.mu.Unlock()
	if len(rows) == 0 {
		return nil
	}
	text, err := json.Marshal(rows)
	if err != nil {
		return err
	}
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		if _, err := tx.Exec(`INSERT INTO fleet_presence (host, since, online) SELECT h.id, CAST(j.value->>'s' AS BIGINT), CAST(j.value->>'o' AS BIGINT) FROM json_each($1) j JOIN fleet_host h ON h.id = CAST(j.value->>'i' AS BIGINT)
			WHERE h.online <> CAST(j.value->>'o' AS BIGINT) ON CONFLICT (host, since) DO UPDATE SET online = excluded.online`, string(text)); err != nil {
			return err
		}
		_, err := tx.Exec(`UPDATE fleet_host SET online = CAST(j.value->>'o' AS BIGINT), online_since = CAST(j.value->>'s' AS BIGINT), seen = CAST(j.value->>'t' AS BIGINT), boot = j.value->>'b', version = j.value->>'v',
			cap = CAST(j.value->>'c' AS BIGINT), machine = j.value->>'m' FROM json_each($1) j WHERE fleet_host.id = CAST(j.value->>'i' AS BIGINT)`, string(text))
		return err
	})
	if err != nil {
		s.mu.Lock()
		maps.Copy(s.dirty, dirty)
		s.mu.Unlock()
	}
	return err
}

// Counts are how many hosts are in each presence.
func (s *Store) Counts() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]int{Online: 0, Offline: 0, Returning: 0}
	for _, m := range s.members {
		out[s.view(m).Presence]++
	}
	return out
}

// token is what an agent shows over HTTP: its number, until when it holds, and a seal that only
// this server can make.
func (s *Store) token(id, now int64) string {
	text := strconv.FormatInt(id, 36) + "." + strconv.FormatInt(now/1e6+int64(tokenLife/time.Second), 36)
	return "dra_" + text + "." + s.mac(text)
}

func (s *Store) mac(text string) string {
	h := hmac.New(sha256.New, s.secret)
	h.Write([]byte(text))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:20])
}

// Authenticate finds the host that sends a request, if it is one: anybody else is left to next.
func (s *Store) Authenticate(next func(*http.Request) (context.Context, error)) func(*http.Request) (context.Context, error) {
	return func(r *http.Request) (context.Context, error) {
		secret, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer dra_")
		if !ok {
			return next(r)
		}
		bad := fault.Unauthorized("token_bad", "the agent's token is not valid any more").Fix("the agent gets a new one when it connects")
		parts := strings.Split(secret, ".")
		if len(parts) != 3 || !hmac.Equal([]byte(s.mac(parts[0]+"."+parts[1])), []byte(parts[2])) {
			return nil, bad
		}
		id, err := strconv.ParseInt(parts[0], 36, 64)
		if err != nil {
			return nil, bad
		}
		until, err := strconv.ParseInt(parts[1], 36, 64)
		if err != nil || until*1e6 < s.db.Now() {
			return nil, bad
		}
		m, ok := s.Member(id)
		if !ok {
			return nil, bad
		}
		return auth.With(r.Context(), auth.Actor{Kind: auth.Agent, Name: m.Name, Role: string(auth.Agent), Token: m.ID}), nil
	}
}

// Caller is the host that a request is of.
func Caller(ctx context.Context) (id int64, err error) {
	a := auth.From(ctx)
	if err := auth.Need(ctx, "work.agent", a.Name); err != nil {
		return 0, err
	}
	return a.Token, nil
}

// Change is one coming or going of a host.
type Change struct {
	At     time.Time `json:"at"`
	Online bool      `json:"online"`
}

// Presence is when a host came and went, newest first.
func (s *Store) Presence(ctx context.Context, name string, limit int) ([]Change, error) {
	if err := auth.Need(ctx, "host.read", name); err != nil {
		return nil, err
	}
	out := []Change{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		_, id, err := find(tx, name)
		if err != nil {
			return err
		}
		return tx.Each(func(scan func(...any) error) error {
			var at, on int64
			err := scan(&at, &on)
			out = append(out, Change{db.Time(at), on != 0})
			return err
		}, "SELECT since, online FROM fleet_presence WHERE host = $1 ORDER BY since DESC LIMIT $2", id, limit)
	})
	return out, err
}
