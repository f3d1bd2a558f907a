package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"path"
	"slices"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/fleet/wire"

	"github.com/nats-io/nkeys"
)

// maxPending is how many hosts may wait for approval: strangers can make them.
const maxPending = 2000

// Ticket lets one host in, once. What it names must be what the host says of itself.
type Ticket struct {
	Host   string            `json:"host,omitempty" maxLength:"253" doc:"the host's name, or a pattern; empty for any"`
	MAC    string            `json:"mac,omitempty" maxLength:"17"`
	Serial string            `json:"serial,omitempty" maxLength:"100"`
	Labels map[string]string `json:"labels,omitempty" doc:"that the host gets"`
	TTL    int64             `json:"ttl,omitempty" minimum:"0" maximum:"2592000" doc:"seconds; 0 means one hour"`
	Count  int               `json:"count,omitempty" minimum:"0" maximum:"10000" doc:"how many tickets; 0 means one"`
}

// NewTickets makes tickets.
func (s *Store) NewTickets(ctx context.Context, t Ticket) ([]string, error) {
	if err := auth.Need(ctx, "host.ticket", t.Host); err != nil {
		return nil, err
	}
	t.MAC, t.Host = strings.ToLower(t.MAC), strings.ToLower(t.Host)
	if _, err := path.Match(t.Host, ""); err != nil {
		return nil, fault.Invalid("ticket_host", "%.100q is no pattern of host names", t.Host)
	}
	if err := checkLabels(t.Labels); err != nil {
		return nil, err
	}
	if t.TTL == 0 {
		t.TTL = 3600
	}
	if t.Count == 0 {
		t.Count = 1
	}
	if t.Labels == nil {
		t.Labels = map[string]string{}
	}
	labels, err := json.Marshal(t.Labels)
	if err != nil {
		return nil, err
	}
	var out []string
	err = s.db.Write(ctx, func(tx *db.Tx) error {
		id, err := tx.NextID("fleet_ticket")
		if err != nil {
			return err
		}
		ev := map[string]any{"ticket": id, "host": t.Host, "mac": t.MAC, "serial": t.Serial, "labels": t.Labels, "count": t.Count, "expires": tx.Now() + t.TTL*1e6}
		if _, err := event.Append(tx, "host.ticket", "host/"+t.Host, ev); err != nil {
			return err
		}
		out = nil
		for i := range int64(t.Count) {
			secret, hash := auth.NewSecret("dre_")
			if _, err := tx.Exec("INSERT INTO fleet_ticket (id, hash, host, mac, serial_no, labels, created, expires, used, author) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9)",
				id+i, hash, t.Host, t.MAC, t.Serial, string(labels), tx.Now(), tx.Now()+t.TTL*1e6, tx.Actor()); err != nil {
				return err
			}
			out = append(out, secret)
		}
		return nil
	})
	return out, err
}

// Trust is what an agent pins, sealed by the key that it is about: an agent that has the key's
// pin from elsewhere knows by it that the rest is the server's.
func (s *Store) Trust() ([]byte, error) {
	return wire.Seal(s.key, wire.ForTrust, wire.Trust{Key: base64.StdEncoding.EncodeToString(s.Public()), CA: s.cfg.CA})
}

// Enrol admits a host that shows a ticket, knows again one that was admitted before, and puts any
// other on the list of those that wait for approval.
func (s *Store) Enrol(ctx context.Context, e wire.Enrol) ([]byte, error) {
	if err := checkEnrol(e); err != nil {
		return nil, err
	}
	a := wire.Admission{Nonce: e.Nonce, Name: e.Name, CA: s.cfg.CA}
	var id int64
	var err error
	known := e
	_ = s.db.Read(ctx, func(tx *db.Tx) error { // most come back: that needs no write
		return tx.QueryRow("SELECT id, state, why, name FROM fleet_host WHERE key = $1", e.Key).Scan(&id, &a.State, &a.Why, &known.Name)
	})
	read := a.State != ""
	if read && known.Name != e.Name && a.State == wire.Accepted {
		return nil, fault.Conflict("host_renamed", "this key is that of the host %s", known.Name).Fix("give the agent that name, or let it make a new key: remove its directory and enrol it with a ticket")
	}
	if a.State == wire.Revoked {
		return nil, fault.Denied("host_revoked", "the key of %s was revoked: %s", known.Name, a.Why).Fix("if the machine is yours, let its agent make a new key: remove its directory and enrol it with a ticket")
	}
	if !read || e.Ticket != "" && a.State != wire.Accepted {
		ctx = auth.With(ctx, auth.Actor{Kind: auth.Agent, Name: e.Name})
		var replaced []string
		err = s.db.Write(ctx, func(tx *db.Tx) error {
			replaced = nil
			id, a.State, a.Why, replaced, err = s.admit(tx, e)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, key := range replaced {
			s.cut(ctx, key)
		}
	}
	a.Name = e.Name
	if a.State == wire.Pending {
		a.Again = 10 + int64(s.count(ctx, wire.Pending))/50
	}
	if a.State == wire.Accepted {
		s.take(id, e.Name, e.Key)
		a.ID, a.Bus = word(id), s.cfg.Bus
		if a.JWT, err = s.bus.Agent(a.ID, e.Key); err != nil {
			return nil, err
		}
	}
	return wire.Seal(s.key, wire.ForEnrol, a)
}

func checkEnrol(e wire.Enrol) error {
	if err := checkHost(e.Name); err != nil {
		return err
	}
	pub, err := nkeys.FromPublicKey(e.Key)
	if err != nil || !nkeys.IsValidPublicUserKey(e.Key) || pub.Verify(e.Signed(), e.Sig) != nil {
		return fault.Unauthorized("enrol_key", "the request is not signed by the key %.60q", e.Key).Fix("the agent signs it with the key that it made")
	}
	if e.Cap < wire.Oldest {
		return fault.Invalid("agent_old", "the agent's capability is %d, this server needs %d", e.Cap, wire.Oldest).Fix("install a newer drover-agent")
	}
	if len(e.MACs) > 64 || len(e.Machine) > 100 || len(e.Serial) > 100 || len(e.Version) > 100 || len(e.Nonce) > 64 || len(e.Nonce) < 16 {
		return fault.Invalid("enrol", "the request's fields are too long, or its nonce is too short")
	}
	return nil
}

// admit decides on a key that is not let in yet. replaced are the keys that its ticket ends.
func (s *Store) admit(tx *db.Tx, e wire.Enrol) (id int64, state, why string, replaced []string, err error) {
	var labels map[string]string
	var ticket int64
	state = wire.Pending
	if e.Ticket != "" {
		if ticket, labels, err = s.useTicket(tx, e); err != nil {
			return 0, "", "", nil, err
		}
		state = wire.Accepted
	}
	var holder int64
	var holderKey string
	err = tx.QueryRow("SELECT id, key FROM fleet_host WHERE name = $1 AND state = 'accepted' AND key <> $2", e.Name, e.Key).Scan(&holder, &holderKey)
	if err != nil && !db.NoRow(err) {
		return 0, "", "", nil, err
	}
	if holder != 0 && state == wire.Pending {
		why = "another machine with this name is let in"
	}
	var waiting int
	if state == wire.Pending {
		if err := tx.QueryRow("SELECT COUNT(*) FROM fleet_host WHERE state = 'pending'").Scan(&waiting); err != nil {
			return 0, "", "", nil, err
		}
		if waiting >= maxPending {
			return 0, "", "", nil, fault.Unavailable("enrol_full", "%d hosts wait for approval already", waiting).Fix("approve or reject some with `drover host accept` and `drover host reject`, or enrol with a ticket")
		}
	}
	ev, err := event.Append(tx, "host.enrol", "host/"+e.Name, map[string]any{"key": e.Key, "state": state, "ticket": ticket, "machine": e.Machine, "serial": e.Serial, "macs": e.MACs, "why": why})
	if err != nil {
		return 0, "", "", nil, err
	}
	if holder != 0 && state == wire.Accepted { // installed anew: what was under this name is gone
		if err := setState(tx, holder, wire.Revoked, "replaced by a machine with a ticket", ev); err != nil {
			return 0, "", "", nil, err
		}
		replaced = append(replaced, holderKey)
	}
	macs, err := json.Marshal(append([]string{}, e.MACs...))
	if err != nil {
		return 0, "", "", nil, err
	}
	err = tx.QueryRow("SELECT id FROM fleet_host WHERE key = $1", e.Key).Scan(&id)
	switch {
	case db.NoRow(err):
		if id, err = tx.NextID("fleet_host"); err != nil {
			return 0, "", "", nil, err
		}
		_, err = tx.Exec(`INSERT INTO fleet_host (id, name, key, state, why, machine, serial_no, macs, version, cap, created, changed, event, online, online_since, seen, boot, inventory, reported)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11, $12, 0, $11, $11, '', '', 0)`,
			id, e.Name, e.Key, state, why, e.Machine, e.Serial, string(macs), e.Version, e.Cap, tx.Now(), ev)
	case err == nil:
		_, err = tx.Exec("UPDATE fleet_host SET name = $1, state = $2, why = $3, machine = $4, serial_no = $5, macs = $6, version = $7, cap = $8, changed = $9, event = $10 WHERE id = $11",
			e.Name, state, why, e.Machine, e.Serial, string(macs), e.Version, e.Cap, tx.Now(), ev, id)
	}
	if err == nil && len(labels) > 0 {
		err = setLabels(tx, id, e.Name, labels)
	}
	return id, state, why, replaced, err
}

// useTicket takes a ticket out of the world, if it is for this host.
func (s *Store) useTicket(tx *db.Tx, e wire.Enrol) (id int64, labels map[string]string, err error) {
	h := sha256.Sum256([]byte(e.Ticket))
	var expires, used int64
	var host, mac, serial, text string
	err = tx.QueryRow("SELECT id, host, mac, serial_no, labels, expires, used FROM fleet_ticket WHERE hash = $1", h[:]).Scan(&id, &host, &mac, &serial, &text, &expires, &used)
	why := ""
	switch matched, _ := path.Match(host, e.Name); {
	case db.NoRow(err):
		why = "unknown"
	case err != nil:
		return 0, nil, err
	case used != 0:
		why = "used already"
	case expires <= tx.Now():
		why = "expired"
	case host != "" && !matched:
		why = "for another host"
	case mac != "" && !slices.ContainsFunc(e.MACs, func(m string) bool { return strings.EqualFold(m, mac) }):
		why = "for a machine with another MAC address"
	case serial != "" && serial != e.Serial:
		why = "for a machine with another serial number"
	}
	if why != "" {
		return 0, nil, fault.Unauthorized("ticket_bad", "the ticket is %s", why).Fix("make a new one with `drover host ticket`")
	}
	if _, err := tx.Exec("UPDATE fleet_ticket SET used = $1 WHERE id = $2", tx.Now(), id); err != nil {
		return 0, nil, err
	}
	return id, labels, json.Unmarshal([]byte(text), &labels)
}

func setState(tx *db.Tx, id int64, state, why string, ev int64) error {
	_, err := tx.Exec("UPDATE fleet_host SET state = $1, why = $2, changed = $3, event = $4, online = 0 WHERE id = $5", state, why, tx.Now(), ev, id)
	return err
}

// Accept lets a host in that waits, or that was rejected.
func (s *Store) Accept(ctx context.Context, name string) error {
	if err := auth.Need(ctx, "host.accept", name); err != nil {
		return err
	}
	var h Host
	var id int64
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		var err error
		h, id, err = scanHost(tx.QueryRow("SELECT "+hostColumns+" FROM fleet_host WHERE (name = $1 OR id = $2) AND state IN ('pending', 'rejected') ORDER BY state, id DESC LIMIT 1", name, number(name)).Scan)
		if db.NoRow(err) {
			if _, _, err = find(tx, name); err == nil {
				err = fault.Conflict("host_not_waiting", "the host %s does not wait for approval", name).Fix("see `drover host list`; a revoked host enrols again with a ticket")
			}
		}
		if err != nil {
			return err
		}
		var other int64
		if err := tx.QueryRow("SELECT COUNT(*) FROM fleet_host WHERE name = $1 AND state = 'accepted'", h.Name).Scan(&other); err != nil {
			return err
		}
		if other > 0 {
			return fault.Conflict("host_name_taken", "another machine is let in as %s", h.Name).Fix("revoke that one first, or give this one another name")
		}
		ev, err := event.Append(tx, "host.accept", "host/"+h.Name, map[string]string{"key": h.Key, "was": h.State})
		if err != nil {
			return err
		}
		return setState(tx, id, wire.Accepted, "", ev)
	})
	if err == nil {
		s.take(id, h.Name, h.Key)
	}
	return err
}

// Remove rejects a host that waits, and revokes one that is let in: it is cut off at once.
func (s *Store) Remove(ctx context.Context, name, why string) error {
	if err := auth.Need(ctx, "host.revoke", name); err != nil {
		return err
	}
	if len(why) > 500 {
		return fault.Invalid("reason", "a reason has at most 500 letters")
	}
	var h Host
	err := s.db.Write(ctx, func(tx *db.Tx) error {
		var id int64
		var err error
		if h, id, err = find(tx, name); err != nil {
			return err
		}
		kind, state := "host.revoke", wire.Revoked
		switch h.State {
		case wire.Pending:
			kind, state = "host.reject", wire.Rejected
		case wire.Rejected, wire.Revoked:
			return nil
		}
		ev, err := event.Append(tx, kind, "host/"+h.Name, map[string]string{"key": h.Key, "why": why})
		if err != nil {
			return err
		}
		return setState(tx, id, state, why, ev)
	})
	if err == nil {
		s.cut(ctx, h.Key)
	}
	return err
}

// Delete forgets a host that is not let in.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := auth.Need(ctx, "host.revoke", name); err != nil {
		return err
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		h, id, err := find(tx, name)
		if err != nil {
			return err
		}
		if h.State == wire.Accepted {
			return fault.Conflict("host_accepted", "the host %s is let in", name).Fix("revoke it first: `drover host revoke %s`", name)
		}
		if h.State == wire.Revoked {
			return fault.Conflict("host_revoked", "the key of %s must stay known, so that it stays out", name).Fix("nothing is to be done; revoked hosts are not counted")
		}
		if _, err := event.Append(tx, "host.delete", "host/"+h.Name, map[string]string{"key": h.Key}); err != nil {
			return err
		}
		// Its number is used no more: rows of this table are never deleted.
		_, err = tx.Exec("UPDATE fleet_host SET state = 'rejected', name = $1, key = $1 WHERE id = $2", "deleted-"+word(id), id)
		return err
	})
}

func (s *Store) count(ctx context.Context, state string) (n int) {
	_ = s.db.Read(ctx, func(tx *db.Tx) error { // a number for advice only
		return tx.QueryRow("SELECT COUNT(*) FROM fleet_host WHERE state = $1", state).Scan(&n)
	})
	return n
}

// take makes a host known to this process as let in.
func (s *Store) take(id int64, name, key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.members[id] == nil {
		m := &member{id: id, name: name, key: key, since: s.db.Now(), seen: s.db.Now()}
		s.members[id], s.byKey[key] = m, m
	}
}

// cut takes a key off the bus and out of this process.
func (s *Store) cut(ctx context.Context, key string) {
	s.mu.Lock()
	m := s.byKey[key]
	if m != nil {
		delete(s.byKey, key)
		delete(s.members, m.id)
	}
	s.mu.Unlock()
	if m == nil {
		return
	}
	// JWTs of this second too; the key is not admitted again, so no later one is meant to work.
	if err := s.bus.Revoke(ctx, key, time.Now().Add(time.Hour)); err != nil {
		s.log.Error("a revoked host is cut off at the next start of the bus", "host", m.name, "err", err)
	}
	m.online = false
	s.tell(s.view(m))
}

// revoked are the keys that the bus must not let in.
func (s *Store) revoked(ctx context.Context) (map[string]time.Time, error) {
	out := map[string]time.Time{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var key string
			var at int64
			err := scan(&key, &at)
			if nkeys.IsValidPublicUserKey(key) {
				out[key] = db.Time(at).Add(time.Hour)
			}
			return err
		}, "SELECT key, changed FROM fleet_host WHERE state = 'revoked'")
	})
	return out, err
}
