package fleet

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"drover/internal/auth"
	"drover/internal/bus"
	"drover/internal/db"
	"drover/internal/durable"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/fleet/selector"
	"drover/internal/fleet/wire"
)

//go:embed migrations
var migrations embed.FS

// Schema is the tables of hosts and of what is known of them.
func Schema() db.Schema { return db.Schema{Name: "fleet", FS: migrations} }

// Config is what a Store needs.
type Config struct {
	DB  *db.DB
	Dir string // of the key by which agents know this server
	Log *slog.Logger
	CA  string   // PEM of the CA that the server's own certificates are of, "" with those of others
	Bus []string // URLs under which agents reach the bus
	// Version of drover.
	Version string
}

// Store keeps the hosts.
type Store struct {
	cfg    Config
	db     *db.DB
	log    *slog.Logger
	key    ed25519.PrivateKey
	secret []byte // of the tokens for HTTP
	bus    *bus.Bus

	mu      sync.Mutex // guards what follows
	members map[int64]*member
	byKey   map[string]*member
	dirty   map[int64]bool // members whose presence is not stored yet
	began   time.Time      // of this process

	handlers map[string]func(Member, []byte)
	changed  []func(Member) // told when a host comes or goes

	reports chan *filing
	items   map[item]int64 // numbers of what is stored
}

// member is a host that is let in, as this process knows it.
type member struct {
	id       int64
	name     string
	key      string
	online   bool
	since    int64 // when that last changed
	seen     int64
	instance string
	conn     string
	boot     string
	machine  string
	version  string
	capa     int
	skew     time.Duration
	digest   string // of its inventory
	clone    string // why another process with its key is refused
	rival    *wire.Hello
}

// Presence of a host.
const (
	Online    = "online"
	Offline   = "offline"
	Returning = "returning" // was there before this server started, and has not come back yet
)

// Member is a host that is let in, at a moment.
type Member struct {
	ID       int64
	Word     string // the name on the bus
	Name     string
	Instance string // of its agent's process
	Presence string
	Since    int64
	Seen     int64
	Cap      int
}

// word is a host's name on the bus.
func word(id int64) string { return "h" + strconv.FormatInt(id, 10) }

func number(word string) int64 {
	n, err := strconv.ParseInt(strings.TrimPrefix(word, "h"), 10, 64)
	if err != nil || !strings.HasPrefix(word, "h") {
		return 0
	}
	return n
}

// New opens the fleet.
func New(ctx context.Context, cfg Config) (*Store, error) {
	s := &Store{cfg: cfg, db: cfg.DB, log: cfg.Log, members: map[int64]*member{}, byKey: map[string]*member{}, dirty: map[int64]bool{}, began: time.Now(),
		handlers: map[string]func(Member, []byte){}, reports: make(chan *filing, 64), items: map[item]int64{}}
	if err := s.openKey(); err != nil {
		return nil, err
	}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			m := &member{}
			var online int64
			if err := scan(&m.id, &m.name, &m.key, &online, &m.since, &m.seen, &m.boot, &m.machine, &m.version, &m.capa, &m.digest); err != nil {
				return err
			}
			m.online = online != 0
			s.members[m.id], s.byKey[m.key] = m, m
			return nil
		}, "SELECT id, name, key, online, online_since, seen, boot, machine, version, cap, inventory FROM fleet_host WHERE state = 'accepted'")
	})
	return s, err
}

// openKey reads the key by which agents know the server, and makes it the first time.
func (s *Store) openKey() error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	file := filepath.Join(s.cfg.Dir, "server.key")
	seed, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		seed = make([]byte, ed25519.SeedSize)
		_, _ = rand.Read(seed) // never fails, crypto/rand
		err = durable.WriteFile(file, seed, 0o600)
	}
	if err != nil {
		return err
	}
	if len(seed) != ed25519.SeedSize {
		return fault.Internal("server_key", "%s holds no key", file).Fix("restore it from a backup; without it every agent has to enrol again")
	}
	s.key = ed25519.NewKeyFromSeed(seed)
	h := hmac.New(sha256.New, seed)
	h.Write([]byte("drover agent tokens"))
	s.secret = h.Sum(nil)
	return nil
}

// Key is what signs everything that agents obey.
func (s *Store) Key() ed25519.PrivateKey { return s.key }

// Public is the key by which agents know the server.
func (s *Store) Public() ed25519.PublicKey { return s.key.Public().(ed25519.PublicKey) } //nolint:forcetypeassert // of the standard library

// Host is a host as shown.
type Host struct {
	ID       string            `json:"id" doc:"the name on the bus"`
	Name     string            `json:"name"`
	State    string            `json:"state" doc:"pending, accepted, rejected or revoked"`
	Why      string            `json:"why,omitempty"`
	Presence string            `json:"presence,omitempty" doc:"online, offline, or returning after a start of the server"`
	Since    time.Time         `json:"since,omitzero" doc:"of the presence"`
	Seen     time.Time         `json:"seen,omitzero"`
	Key      string            `json:"key"`
	Machine  string            `json:"machine,omitempty"`
	Serial   string            `json:"serial,omitempty"`
	MACs     []string          `json:"macs,omitempty"`
	Version  string            `json:"version,omitempty"`
	Cap      int               `json:"cap,omitempty"`
	Boot     string            `json:"boot,omitempty"`
	Created  time.Time         `json:"created"`
	Reported time.Time         `json:"reported,omitzero"`
	Event    int64             `json:"event" doc:"that made this state"`
	Labels   map[string]string `json:"labels,omitempty"`
	Groups   []string          `json:"groups,omitempty"`
	Skew     string            `json:"skew,omitempty" doc:"how far its clock is off, when that is more than 5 seconds"`
	Clone    string            `json:"clone,omitempty" doc:"another machine that has its key"`
}

var (
	reHost  = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?$`)
	reLabel = regexp.MustCompile(`^[a-z][a-z0-9_.-]{0,62}$`)
	reGroup = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)
)

func checkHost(name string) error {
	if !reHost.MatchString(name) || number(name) != 0 { // which would be another host's name on the bus
		return fault.Invalid("host_name", "%.100q is no name of a host", name).Fix("use up to 253 of a-z 0-9 . - _, a letter or digit first and last, such as web-01.example.org")
	}
	return nil
}

const hostColumns = "id, name, key, state, why, machine, serial_no, macs, version, cap, created, event, online, online_since, seen, boot, reported"

func scanHost(scan func(...any) error) (h Host, id int64, err error) {
	var macs string
	var created, online, since, seen, reported int64
	if err = scan(&id, &h.Name, &h.Key, &h.State, &h.Why, &h.Machine, &h.Serial, &macs, &h.Version, &h.Cap, &created, &h.Event, &online, &since, &seen, &h.Boot, &reported); err != nil {
		return h, id, err
	}
	h.ID, h.Created, h.Since, h.Seen, h.Reported = word(id), db.Time(created), db.Time(since), db.Time(seen), db.Time(reported)
	if h.Presence = Offline; online != 0 {
		h.Presence = Online
	}
	return h, id, json.Unmarshal([]byte(macs), &h.MACs)
}

// complete adds what only this process knows.
func (s *Store) complete(h *Host, id int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.members[id]
	if m == nil {
		h.Presence, h.Since = "", time.Time{}
		return
	}
	v := s.view(m)
	h.Presence, h.Since, h.Seen, h.Version, h.Cap, h.Clone = v.Presence, db.Time(v.Since), db.Time(v.Seen), m.version, m.capa, m.clone
	if m.skew.Abs() > 5*time.Second {
		h.Skew = m.skew.Round(time.Second).String()
	}
}

// Hosts lists hosts of a state by name, "" for all; with a target only those that it means.
func (s *Store) Hosts(ctx context.Context, state string, form selector.Form, target string) ([]Host, error) {
	if err := auth.Need(ctx, "host.read", "*"); err != nil {
		return nil, err
	}
	var set selector.Set
	if target != "" {
		var err error
		if set, err = s.Select(ctx, form, target); err != nil {
			return nil, err
		}
		state = wire.Accepted
	}
	out := []Host{}
	var ids []int64
	labels := map[int64]map[string]string{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		err := tx.Each(func(scan func(...any) error) error {
			h, id, err := scanHost(scan)
			if err == nil && (target == "" || set.Has(id)) {
				out, ids = append(out, h), append(ids, id)
			}
			return err
		}, "SELECT "+hostColumns+" FROM fleet_host WHERE $1 = '' OR state = $1 ORDER BY name, id", state)
		if err != nil {
			return err
		}
		return tx.Each(func(scan func(...any) error) error {
			var id int64
			var k, v string
			if err := scan(&id, &k, &v); err != nil {
				return err
			}
			if labels[id] == nil {
				labels[id] = map[string]string{}
			}
			labels[id][k] = v
			return nil
		}, "SELECT host, key, value FROM fleet_label WHERE until = 0")
	})
	for i := range out {
		s.complete(&out[i], ids[i])
		out[i].Labels = labels[ids[i]]
	}
	return out, err
}

// Host finds a host by its name, or by its id when it has no name any more.
func (s *Store) Host(ctx context.Context, name string) (Host, error) {
	if err := auth.Need(ctx, "host.read", name); err != nil {
		return Host{}, err
	}
	var h Host
	var id int64
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		if h, id, err = find(tx, name); err != nil {
			return err
		}
		h.Labels, err = labelsOf(tx, id)
		return err
	})
	if err != nil {
		return h, err
	}
	s.complete(&h, id)
	h.Groups, err = s.groupsOf(ctx, id)
	return h, err
}

// find finds the host of a name: the one that is let in, else the newest.
func find(tx *db.Tx, name string) (Host, int64, error) {
	h, id, err := scanHost(tx.QueryRow("SELECT "+hostColumns+" FROM fleet_host WHERE name = $1 OR id = $2 ORDER BY CASE state WHEN 'accepted' THEN 0 WHEN 'pending' THEN 1 ELSE 2 END, id DESC LIMIT 1", name, number(name)).Scan)
	if db.NoRow(err) {
		return h, 0, fault.NotFound("host_unknown", "there is no host %.100q", name).Fix("see `drover host list`")
	}
	return h, id, err
}

func labelsOf(tx *db.Tx, id int64) (map[string]string, error) {
	out := map[string]string{}
	err := tx.Each(func(scan func(...any) error) error {
		var k, v string
		err := scan(&k, &v)
		out[k] = v
		return err
	}, "SELECT key, value FROM fleet_label WHERE host = $1 AND until = 0", id)
	return out, err
}

// SetLabels sets labels of a host; an empty value takes a label away.
func (s *Store) SetLabels(ctx context.Context, name string, labels map[string]string) error {
	if err := auth.Need(ctx, "host.label", name); err != nil {
		return err
	}
	if err := checkLabels(labels); err != nil {
		return err
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		h, id, err := find(tx, name)
		if err != nil {
			return err
		}
		return setLabels(tx, id, h.Name, labels)
	})
}

func checkLabels(labels map[string]string) error {
	if len(labels) > 64 {
		return fault.TooLarge("label_count", "a host has at most 64 labels")
	}
	for k, v := range labels {
		if !reLabel.MatchString(k) || len(v) > 200 || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fault.Invalid("label", "%.80q=%.80q is no label", k, v).Fix("a label is a word of a-z 0-9 _ . - and a value of at most 200 letters: role=web")
		}
	}
	return nil
}

func setLabels(tx *db.Tx, id int64, name string, labels map[string]string) error {
	had, err := labelsOf(tx, id)
	if err != nil {
		return err
	}
	for k, v := range labels {
		if had[k] == v {
			delete(labels, k)
		}
	}
	if len(labels) == 0 {
		return nil
	}
	ev, err := event.Append(tx, "host.label", "host/"+name, labels)
	if err != nil {
		return err
	}
	for k, v := range labels {
		if _, err := tx.Exec("UPDATE fleet_label SET until = $1 WHERE host = $2 AND key = $3 AND until = 0", ev, id, k); err != nil {
			return err
		}
		if v == "" {
			continue
		}
		if _, err := tx.Exec("INSERT INTO fleet_label (host, key, value, since, until) VALUES ($1, $2, $3, $4, 0)", id, k, v, ev); err != nil {
			return err
		}
	}
	return nil
}

// Group is a named selector, Salt's nodegroup.
type Group struct {
	Name   string `json:"name"`
	Form   string `json:"form" doc:"how target is written: list for a fixed set of hosts, compound as Salt's nodegroups, query, glob …"`
	Target string `json:"target" maxLength:"1048576"`
	Note   string `json:"note,omitempty" maxLength:"500"`
	Since  int64  `json:"since,omitempty" doc:"event that made this state"`
}

// Groups lists the groups.
func (s *Store) Groups(ctx context.Context) ([]Group, error) {
	if err := auth.Need(ctx, "host.read", "*"); err != nil {
		return nil, err
	}
	return s.groups(ctx)
}

func (s *Store) groups(ctx context.Context) ([]Group, error) {
	out := []Group{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var g Group
			err := scan(&g.Name, &g.Form, &g.Target, &g.Note, &g.Since)
			out = append(out, g)
			return err
		}, "SELECT name, form, target, note, since FROM fleet_group WHERE until = 0 ORDER BY name")
	})
	return out, err
}

// SetGroup makes or changes a group; an empty target takes it away.
func (s *Store) SetGroup(ctx context.Context, g Group) error {
	if err := auth.Need(ctx, "host.group", g.Name); err != nil {
		return err
	}
	if !reGroup.MatchString(g.Name) {
		return fault.Invalid("group_name", "%.100q is no name of a group", g.Name).Fix("use up to 63 letters, digits, _ . -")
	}
	if g.Target != "" {
		n, err := selector.Parse(selector.Form(g.Form), g.Target)
		if err != nil {
			return err
		}
		if err := s.checkGroups(ctx, n, []string{g.Name}); err != nil {
			return err
		}
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		var had Group
		err := tx.QueryRow("SELECT form, target, note FROM fleet_group WHERE name = $1 AND until = 0", g.Name).Scan(&had.Form, &had.Target, &had.Note)
		none := db.NoRow(err)
		if err != nil && !none {
			return err
		}
		if none && g.Target == "" {
			return fault.NotFound("group_unknown", "there is no group %q", g.Name).Fix("see `drover group list`")
		}
		if !none && had.Form == g.Form && had.Target == g.Target && had.Note == g.Note {
			return nil
		}
		ev, err := event.Append(tx, "group.set", "group/"+g.Name, map[string]string{"form": g.Form, "target": fmt.Sprintf("%.1000s", g.Target), "was": fmt.Sprintf("%.1000s", had.Target)})
		if err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE fleet_group SET until = $1 WHERE name = $2 AND until = 0", ev, g.Name); err != nil || g.Target == "" {
			return err
		}
		_, err = tx.Exec("INSERT INTO fleet_group (name, form, target, note, since, until) VALUES ($1, $2, $3, $4, $5, 0)", g.Name, g.Form, g.Target, g.Note, ev)
		return err
	})
}

// groupsOf are the groups that a host is in.
func (s *Store) groupsOf(ctx context.Context, id int64) ([]string, error) {
	gs, err := s.groups(ctx)
	if err != nil {
		return nil, err
	}
	out := []string{}
	for _, g := range gs {
		set, err := s.Select(ctx, selector.Form(g.Form), g.Target)
		if err == nil && set.Has(id) {
			out = append(out, g.Name)
		}
	}
	return out, nil
}

// Members are hosts that are let in, of a set, by name.
func (s *Store) Members(set selector.Set) []Member {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Member
	for _, id := range set.IDs() {
		if m := s.members[id]; m != nil {
			out = append(out, s.view(m))
		}
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Member is a host at this moment.
func (s *Store) Member(id int64) (Member, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.members[id]
	if m == nil {
		return Member{}, false
	}
	return s.view(m), true
}
