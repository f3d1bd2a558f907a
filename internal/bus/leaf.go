package bus

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"drover/internal/durable"
	"drover/internal/fault"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// Subjects between the server and leaves, in the account of the fleet. No agent has them.
const (
	leafClaims = "leaf.claims" // the account of the fleet as it is now: who is revoked
	leafGone   = "leaf.gone"   // the connection of an agent to a leaf has ended
)

// LeafKey is what a leaf needs to know and to be. It lets its holder hear what is said to all
// agents, and say what any of them says; it cannot make a command, which only the server signs.
type LeafKey struct {
	Name     string `json:"name"`
	Operator string `json:"operator"` // JWT
	System   string `json:"system"`   // JWT of the account
	Fleet    string `json:"fleet"`    // JWT of the account
	User     string `json:"user"`     // JWT, in the account of the fleet
	Watcher  string `json:"watcher"`  // JWT of the same user in the system's account: hears who has gone, and nothing else
	Seed     string `json:"seed"`
}

// NewLeaf makes the key of a leaf, with the keys of a directory.
func NewLeaf(dir, name string) (LeafKey, error) {
	if !reName.MatchString(name) {
		return LeafKey{}, fault.Invalid("leaf_name", "%.80q is no name of a leaf", name).Fix("use up to 40 of a-z 0-9")
	}
	k, err := openKeys(dir)
	if err != nil {
		return LeafKey{}, err
	}
	pair, err := nkeys.CreateUser()
	if err != nil {
		return LeafKey{}, err
	}
	seed, err := pair.Seed()
	if err != nil {
		return LeafKey{}, err
	}
	c := jwt.NewUserClaims(public(pair))
	c.Name = "leaf " + name
	c.Pub.Allow.Add("from.>", leafGone)
	c.Sub.Allow.Add("to.>", "all.>", leafClaims)
	out := LeafKey{Name: name, Seed: string(seed)}
	if out.User, err = c.Encode(k.fleet); err != nil {
		return LeafKey{}, err
	}
	w := jwt.NewUserClaims(public(pair))
	w.Name = c.Name
	w.Sub.Allow.Add("$SYS.ACCOUNT.*.DISCONNECT")
	w.Pub.Deny.Add(">")
	if out.Watcher, err = w.Encode(k.system); err != nil {
		return LeafKey{}, err
	}
	if out.Operator, _, err = k.operatorJWT(); err != nil {
		return LeafKey{}, err
	}
	if out.System, err = k.systemJWT(); err != nil {
		return LeafKey{}, err
	}
	out.Fleet, err = k.fleetJWT(nil)
	return out, err
}

// LeafConfig is what a leaf needs.
type LeafConfig struct {
	Dir    string
	Key    LeafKey
	Hub    string      // URL of the server's listener for leaves: tls://HOST:PORT
	HubTLS *tls.Config // how that is trusted
	Listen string      // HOST:PORT for agents
	TLS    *tls.Config // of the listener; nil for plain TCP
	Log    *slog.Logger
}

// Leaf is a bus at a site: agents connect to it, and it to the server. One line to the server
// carries what all of them say.
type Leaf struct {
	cfg   LeafConfig
	srv   *server.Server
	conn  *nats.Conn // in the account of the fleet
	sys   *nats.Conn // in the system's
	fleet string     // public key of the account

	mu    sync.Mutex // guards since
	since int64      // when the account that is in force was made
}

// OpenLeaf starts a leaf. The caller closes it.
func OpenLeaf(cfg LeafConfig) (*Leaf, error) {
	bad := func(err error) error {
		return fault.Invalid("leaf_key", "the key of the leaf cannot be used").Wrap(err).Fix("make a new one on the server: `drover bus leaf NAME`")
	}
	operator, err := jwt.DecodeOperatorClaims(cfg.Key.Operator)
	if err != nil {
		return nil, bad(err)
	}
	system, err := jwt.DecodeAccountClaims(cfg.Key.System)
	if err != nil {
		return nil, bad(err)
	}
	fleet, err := jwt.DecodeAccountClaims(cfg.Key.Fleet)
	if err != nil {
		return nil, bad(err)
	}
	l := &Leaf{cfg: cfg, fleet: fleet.Subject, since: fleet.IssuedAt}
	hub, err := url.Parse(cfg.Hub)
	if err != nil || hub.Host == "" {
		return nil, fault.Invalid("leaf_hub", "%.200q is no URL of a bus", cfg.Hub).Wrap(err).Fix("give tls://HOST:PORT of the server's bus_leaf_listen")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	creds, err := jwt.FormatUserConfig(cfg.Key.User, []byte(cfg.Key.Seed))
	if err != nil {
		return nil, bad(err)
	}
	file := filepath.Join(cfg.Dir, "leaf.creds")
	if err := durable.WriteFile(file, creds, 0o600); err != nil {
		return nil, err
	}
	accounts := &server.MemAccResolver{}
	if err := errors.Join(accounts.Store(system.Subject, cfg.Key.System), accounts.Store(fleet.Subject, cfg.Key.Fleet)); err != nil {
		return nil, err
	}
	o := options("drover-"+cfg.Key.Name, operator, accounts, system.Subject)
	if o.Host, o.Port, err = listenAt(cfg.Listen, "the bus"); err != nil {
		return nil, err
	}
	o.TLSConfig, o.TLS = cfg.TLS, cfg.TLS != nil
	o.LeafNode.ReconnectInterval = time.Second
	o.LeafNode.Remotes = []*server.RemoteLeafOpts{{LocalAccount: fleet.Subject, URLs: []*url.URL{hub}, Credentials: file, TLS: cfg.HubTLS != nil, TLSConfig: cfg.HubTLS, TLSTimeout: authWait.Seconds()}}
	if l.srv, err = start(o, cfg.Log, cfg.Dir, cfg.Listen); err == nil {
		err = l.connect()
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// connect makes the leaf's own connections: to hear who is revoked, and to tell who has gone.
func (l *Leaf) connect() error {
	user, err := nkeys.FromSeed([]byte(l.cfg.Key.Seed))
	if err != nil {
		return err
	}
	join := func(text string) (*nats.Conn, error) {
		return nats.Connect("", nats.InProcessServer(l.srv), nats.MaxReconnects(-1), nats.UserJWT(func() (string, error) { return text, nil }, user.Sign))
	}
	if l.conn, err = join(l.cfg.Key.User); err == nil {
		l.sys, err = join(l.cfg.Key.Watcher)
	}
	if err != nil {
		return fault.Unavailable("bus_connect", "the leaf does not let its own connection in").Wrap(err)
	}
	if _, err := l.conn.Subscribe(leafClaims, func(m *nats.Msg) { l.claims(string(m.Data)) }); err != nil {
		return err
	}
	_, err = l.sys.Subscribe(fmt.Sprintf("$SYS.ACCOUNT.%s.DISCONNECT", l.fleet), func(m *nats.Msg) {
		var e server.DisconnectEventMsg
		b, err := []byte(nil), json.Unmarshal(m.Data, &e)
		if err == nil {
			b, err = json.Marshal([2]string{e.Client.User, fmt.Sprintf("%s/%d", e.Server.ID, e.Client.ID)})
		}
		if err == nil {
			err = l.conn.Publish(leafGone, b)
		}
		if err != nil {
			l.cfg.Log.Warn("the server is not told that an agent has gone", "err", err)
		}
	})
	return err
}

// claims takes the account of the fleet as the operator has signed it, unless it is an older one.
func (l *Leaf) claims(text string) {
	c, err := jwt.DecodeAccountClaims(text)
	if err != nil || c.Subject != l.fleet {
		l.cfg.Log.Warn("an account that is not the fleet's is not taken", "err", err)
		return
	}
	op, err := jwt.DecodeOperatorClaims(l.cfg.Key.Operator)
	if err != nil || c.Issuer != op.Subject {
		l.cfg.Log.Warn("an account that the operator has not signed is not taken", "err", err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.IssuedAt < l.since {
		return
	}
	l.since = c.IssuedAt
	acc, err := l.srv.LookupAccount(l.fleet)
	if err == nil {
		err = l.srv.AccountResolver().Store(l.fleet, text)
	}
	if err != nil {
		l.cfg.Log.Error("who is revoked is not known here", "err", err)
		return
	}
	l.srv.UpdateAccountClaims(acc, c)
}

// Addr is where agents connect to.
func (l *Leaf) Addr() string { return l.srv.Addr().String() }

// Close ends the leaf.
func (l *Leaf) Close() {
	for _, c := range []*nats.Conn{l.conn, l.sys} {
		if c != nil {
			c.Close()
		}
	}
	if l.srv != nil {
		l.srv.Shutdown()
		l.srv.WaitForShutdown()
	}
}
