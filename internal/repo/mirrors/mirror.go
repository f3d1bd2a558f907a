package mirrors

import (
	"context"
	"encoding/json"
	"regexp"
	"strings"
	"sync"
	"time"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/fetch"
	"drover/internal/repo"
	"drover/internal/repo/upstream"
	"drover/internal/repo/wire"
	"drover/internal/web"

	"golang.org/x/sync/singleflight"
)

// Setup is what a Store needs.
type Setup struct {
	Repo    *repo.Store
	Secrets string        // directory of the passwords and certificates that mirrors name
	Imports []string      // directories below which mirrors may copy from
	Retry   time.Duration // unit of the waits before something is tried again; 0 means 200 ms
}

// Store keeps mirrors.
type Store struct {
	Setup
	db      *db.DB
	making  singleflight.Group // packages that are fetched on demand
	mu      sync.Mutex         // guards what follows
	syncing map[string]bool
}

// New makes a Store, which its repositories use from then on.
func New(c Setup) *Store {
	if c.Retry == 0 {
		c.Retry = 200 * time.Millisecond
	}
	s := &Store{Setup: c, db: c.Repo.DB, syncing: map[string]bool{}}
	c.Repo.Mirrors = s
	return s
}

// Mirror is an upstream repository of one arch that is copied into snapshots; its channel
// has its name.
type Mirror struct {
	Name string `json:"name"`
	Config
	Since int64 `json:"since"`
	State
}

// Config is how a mirror is copied.
type Config struct {
	upstream.Source
	upstream.Filter
	Arch           string `json:"arch" doc:"of the tree, as dnf's $basearch" maxLength:"20"`
	Keys           string `json:"keys,omitempty" doc:"pinned OpenPGP keys in ASCII armor: signatures of repomd.xml have to be by one of them, and hosts check packages with them" maxLength:"200000"`
	VerifyPackages bool   `json:"verify_packages,omitempty" doc:"every package has to be signed with a pinned key"`
	Regenerate     bool   `json:"regenerate,omitempty" doc:"make the metadata anew also without filters"`
	Key            string `json:"key,omitempty" doc:"drover's key that signs metadata which is made anew" maxLength:"100"`
	OnDemand       bool   `json:"on_demand,omitempty" doc:"metadata at once, packages when they are asked for and, slowly, by themselves"`
	NoFill         bool   `json:"no_fill,omitempty" doc:"on demand: packages only when they are asked for"`
	Tree           bool   `json:"tree,omitempty" doc:"with the installation tree that .treeinfo describes"`
	Link           bool   `json:"link,omitempty" doc:"of a directory: hard links to its files, where it shares the file system and clones are not possible"`
	Every          int64  `json:"every,omitempty" doc:"seconds from one sync to the next; 0 for none by itself" minimum:"0"`
	MaxAge         int64  `json:"max_age,omitempty" doc:"seconds after which an upstream that does not change is warned of; 0 for never" minimum:"0"`
}

// regenerated tells whether the metadata is made here instead of being upstream's, bit for bit.
func (c Config) regenerated() bool { return c.Regenerate || c.Filter.Any() }

// keyNames is what a tree of the mirror is signed with: the pinned keys, by the mirror's name,
// and drover's.
func (m Mirror) keyNames() string {
	pins, own := "", ""
	if m.Keys != "" {
		pins = wire.PinnedKeys(m.Name)
	}
	if m.regenerated() {
		own = m.Key
	}
	return wire.JoinKeys(pins, own)
}

// State is what came of a mirror's syncs.
type State struct {
	Synced   time.Time `json:"synced,omitzero"` // the end of the last try
	Outcome  string    `json:"outcome,omitempty" doc:"\"ok\", or the last error"`
	Good     time.Time `json:"good,omitzero" doc:"the last try that went well"`
	Changed  time.Time `json:"changed,omitzero" doc:"when something new last came"`
	Upstream time.Time `json:"upstream,omitzero" doc:"when upstream made what is mirrored, as it says"`
	Repomd   string    `json:"repomd,omitempty" doc:"sha256 of upstream's repomd.xml"`
	Snapshot string    `json:"snapshot,omitempty"`
	Signed   bool      `json:"signed,omitempty" doc:"its repomd.xml is signed by a pinned key"`
	Warning  string    `json:"warning,omitempty"`
	Failures int       `json:"failures,omitempty" doc:"in a row"`
	Fetched  int64     `json:"fetched,omitempty" doc:"bytes that came in the last try that brought something"`
	Took     float64   `json:"took,omitempty" doc:"seconds that it took"`
	Due      time.Time `json:"due,omitzero" doc:"the next sync"`
	Absent   int64     `json:"absent,omitempty" doc:"packages on demand that are not here yet"`
}

// memory is a mirror's state as it is stored.
type memory struct {
	State
	Seen upstream.Seen `json:"seen,omitzero"`
	By   int64         `json:"by,omitempty"`   // the event of the configuration that it was made by
	From string        `json:"from,omitempty"` // the address
}

// Address is where the mirror is copied from: the directory, metalink or list.
func (c Config) Address() string { return c.URL + c.Metalink + c.Mirrorlist }

var reName = regexp.MustCompile(`^[a-z0-9][a-z0-9_.+-]{0,99}$`)

var reArch = regexp.MustCompile(`^[a-z0-9_]{2,20}$`)

// shortest is the least time from one sync to the next.
const shortest = 60

func (s *Store) checkMirror(m *Mirror) error {
	if !reName.MatchString(m.Name) || !reArch.MatchString(m.Arch) {
		return fault.Invalid("mirror", "%.100q with arch %.40q is no mirror", m.Name, m.Arch)
	}
	if err := m.Source.Check(s.Imports); err != nil {
		return err
	}
	if err := m.Filter.Check(); err != nil {
		return err
	}
	keys, err := wire.ReadKeys(m.Keys)
	bad := func(format string, args ...any) *fault.Error { return fault.Invalid("mirror", format, args...) }
	switch {
	case err != nil:
		return err
	case m.VerifyPackages && len(keys) == 0:
		return bad("packages can't be verified without a key").Fix("give the keys that upstream signs its packages with: --gpgkey FILE")
	case m.Key != "" && !m.regenerated():
		return bad("upstream's own metadata is not signed anew").Fix("leave the key away, or have the metadata made anew: --regenerate")
	case m.Key != "" && !reName.MatchString(m.Key):
		return bad("%.100q is no name of a key", m.Key)
	case m.NoFill && !m.OnDemand:
		return bad("only a mirror on demand is not filled")
	case m.Link && !strings.HasPrefix(m.URL, "file:"):
		return bad("files of another machine can't be linked").Fix("leave --link away")
	case m.Every < 0 || m.Every > 0 && m.Every < shortest || m.Every > 366*86400 || m.MaxAge < 0:
		return bad("a sync every %d seconds", m.Every).Fix("give a time from a minute to a year, or none")
	}
	return nil
}

// Set adds a mirror or changes it.
func (s *Store) Set(ctx context.Context, m Mirror) error {
	if err := auth.Need(ctx, "repo.mirror", m.Name); err != nil {
		return err
	}
	if err := s.checkMirror(&m); err != nil {
		return err
	}
	if m.Key != "" {
		if _, err := s.Repo.Signer.Public(ctx, m.Key); err != nil {
			return err
		}
	}
	config, err := json.Marshal(m.Config)
	if err != nil {
		return err
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		if _, err := s.Repo.Release.At(tx, m.Name, event.Now); err == nil {
			return fault.Conflict("channel_taken", "there is a tag %s: its channel has this name", m.Name).Fix("give the mirror another name")
		} else if fault.Code(err) != "tag_unknown" {
			return err
		}
		had, _, err := getMirror(tx, m.Name)
		if err != nil && fault.Code(err) != "mirror_unknown" {
			return err
		}
		if was, err := json.Marshal(had.Config); err != nil || string(was) == string(config) {
			return err
		}
		ev, err := event.Append(tx, "mirror.set", "mirror/"+m.Name, m.Config)
		if err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO repo_mirror (name, url, arch, since, config) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (name) DO UPDATE SET url = excluded.url, arch = excluded.arch, since = excluded.since, config = excluded.config",
			m.Name, m.Address(), m.Arch, ev, string(config))
		if err != nil {
			return err
		}
		due := int64(0)
		if m.Every > 0 {
			due = tx.Now()
		}
		_, err = tx.Exec("INSERT INTO repo_mirror_state (name, state, due, owner, lease) VALUES ($1, '{}', $2, '', 0) ON CONFLICT (name) DO UPDATE SET due = excluded.due", m.Name, due)
		return err
	})
}

// Drop ends a mirror. Its channel and snapshots stay, and what they need; packages that are
// not here yet are given up with force only.
func (s *Store) Drop(ctx context.Context, name string, force bool) error {
	if err := auth.Need(ctx, "repo.mirror", name); err != nil {
		return err
	}
	return s.db.Write(ctx, func(tx *db.Tx) error {
		if _, _, err := getMirror(tx, name); err != nil {
			return err
		}
		var n int
		if err := tx.QueryRow("SELECT COUNT(*) FROM repo_absent WHERE mirror = $1", name).Scan(&n); err != nil {
			return err
		}
		if n > 0 && !force {
			return fault.Conflict("mirror_absent", "%d packages of the mirror %s are not fetched yet, and nothing else says where they are", n, name).Fix("let it be filled first, or give them up with --force")
		}
		if _, err := event.Append(tx, "mirror.drop", "mirror/"+name, map[string]int{"absent": n}); err != nil {
			return err
		}
		if _, err := tx.Exec("DELETE FROM repo_absent WHERE mirror = $1", name); err != nil {
			return err
		}
		if _, err := tx.Exec("DELETE FROM repo_mirror_state WHERE name = $1", name); err != nil {
			return err
		}
		_, err := tx.Exec("DELETE FROM repo_mirror WHERE name = $1", name)
		return err
	})
}

const mirrorQuery = `SELECT m.name, m.url, m.arch, m.since, m.config, COALESCE(s.state, '{}'), COALESCE(s.due, 0), (SELECT COUNT(*) FROM repo_absent a WHERE a.mirror = m.name)
	FROM repo_mirror m LEFT JOIN repo_mirror_state s ON s.name = m.name `

func scanMirror(scan func(...any) error) (m Mirror, mem memory, err error) {
	var url, arch, config, state string
	var due int64
	if err := scan(&m.Name, &url, &arch, &m.Since, &config, &state, &due, &m.Absent); err != nil {
		return m, mem, err
	}
	if err := json.Unmarshal([]byte(config), &m.Config); err != nil {
		return m, mem, err
	}
	if m.Address() == "" { // it is of the time before there was more to say
		m.URL, m.Arch = url, arch
	}
	if err := json.Unmarshal([]byte(state), &mem); err != nil {
		return m, mem, err
	}
	absent := m.Absent
	m.State = mem.State
	m.Absent, m.Due = absent, db.Time(due)
	return m, mem, nil
}

func getMirror(tx *db.Tx, name string) (Mirror, memory, error) {
	m, mem, err := scanMirror(tx.QueryRow(mirrorQuery+"WHERE m.name = $1", name).Scan)
	if db.NoRow(err) {
		return m, mem, fault.NotFound("mirror_unknown", "there is no mirror %.100q", name).Fix("see `drover mirror list`")
	}
	return m, mem, err
}

// List lists the mirrors.
func (s *Store) List(ctx context.Context) ([]Mirror, error) {
	out := []Mirror{}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			m, _, err := scanMirror(scan)
			out = append(out, m)
			return err
		}, mirrorQuery+"ORDER BY m.name")
	})
	return out, err
}

// Get reads a mirror.
func (s *Store) Get(ctx context.Context, name string) (m Mirror, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) error { m, _, err = getMirror(tx, name); return err })
	return m, err
}

// Pinned implements repo.Upstreams.
func (s *Store) Pinned(ctx context.Context, name string) (string, error) {
	m, err := s.Get(ctx, wire.MirrorOf(name))
	if err == nil && m.Keys == "" {
		err = fault.NotFound("mirror_key", "the mirror %s has no pinned keys any more", m.Name)
	}
	return m.Keys, err
}

// Progress is how far a sync is.
type Progress struct {
	Packages int64   `json:"packages"`
	Done     int64   `json:"done"`
	Bytes    int64   `json:"bytes"` // fetched
	Retries  int64   `json:"retries,omitempty"`
	Rate     float64 `json:"rate,omitempty"` // bytes per second, of late
}

// SyncLine is a line of a sync's answer: progress, and at the end the snapshot or the fault.
type SyncLine struct {
	Progress
	Snapshot string       `json:"snapshot,omitempty"`
	Warning  string       `json:"warning,omitempty"`
	Problem  *web.Problem `json:"problem,omitempty"`
}

// fetching is how files are fetched.
func (s *Store) fetching() fetch.Config {
	return fetch.Config{Dir: s.fetchDir(), Agent: "drover-mirror", Pause: s.Retry}
}
