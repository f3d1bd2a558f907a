package bus

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"strconv"
	"sync"
	"time"

	"drover/internal/fault"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// Bounds of what an agent may do to the server.
const (
	maxPayload = 64 << 10 // of a message; what is larger is a blob
	maxPending = 4 << 20  // that wait for one slow agent
)

// Times. An agent that does not answer two pings is gone; one that cannot prove who it is within
// authWait is cut off: with thousands coming at once that takes long.
const (
	pingEvery = 20 * time.Second
	authWait  = 30 * time.Second
	startWait = 20 * time.Second
	tellWait  = 5 * time.Second
)

// Config is what a bus needs.
type Config struct {
	Dir     string               // its keys
	Listen  string               // HOST:PORT for agents, with port 0 a free one; "" for none
	TLS     *tls.Config          // of the listener; nil for plain TCP
	Leaves  string               // HOST:PORT for leaves at sites; "" for none
	URL     string               // of an existing cluster; "" for an embedded server
	Cluster *tls.Config          // how that is trusted
	Revoked map[string]time.Time // public keys of agents that are not let in, and since when
	Log     *slog.Logger
}

// Bus is an open bus.
type Bus struct {
	Conn *nats.Conn // drover's own connection, in the account of the fleet

	cfg  Config
	keys keys
	srv  *server.Server // nil with a cluster
	sys  *nats.Conn     // in the system's account

	telling sync.Mutex // held while the servers are told
	mu      sync.Mutex // guards revoked
	revoked map[string]time.Time
}

// Open opens the bus: it starts a server, or connects to the cluster. The caller closes it; ctx
// is for as long as it is open.
func Open(ctx context.Context, cfg Config) (*Bus, error) {
	b := &Bus{cfg: cfg, revoked: map[string]time.Time{}}
	maps.Copy(b.revoked, cfg.Revoked)
	var err error
	if b.keys, err = openKeys(cfg.Dir); err != nil {
		return nil, err
	}
	if cfg.URL == "" {
		err = b.embed()
	}
	if err == nil {
		err = b.connect(ctx)
	}
	if err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// embed starts a server in this process.
func (b *Bus) embed() error {
	_, operator, err := b.keys.operatorJWT()
	if err != nil {
		return err
	}
	system, err := b.keys.systemJWT()
	if err != nil {
		return err
	}
	fleet, err := b.keys.fleetJWT(b.revoked)
	if err != nil {
		return err
	}
	accounts := &server.MemAccResolver{}
	if err := errors.Join(accounts.Store(public(b.keys.system), system), accounts.Store(public(b.keys.fleet), fleet)); err != nil {
		return err
	}
	o := options("drover", operator, accounts, public(b.keys.system))
	o.DontListen = b.cfg.Listen == ""
	if b.cfg.Listen != "" {
		if o.Host, o.Port, err = listenAt(b.cfg.Listen, "the bus"); err != nil {
			return err
		}
		o.TLSConfig, o.TLS = b.cfg.TLS, b.cfg.TLS != nil
	}
	if b.cfg.Leaves != "" {
		if o.LeafNode.Host, o.LeafNode.Port, err = listenAt(b.cfg.Leaves, "leaves of the bus"); err != nil {
			return err
		}
		o.LeafNode.AuthTimeout, o.LeafNode.TLSTimeout, o.LeafNode.TLSConfig = authWait.Seconds(), authWait.Seconds(), b.cfg.TLS
	}
	b.srv, err = start(o, b.cfg.Log, b.cfg.Dir, b.cfg.Listen)
	return err
}

// options are what the server's bus and a leaf have in common.
func options(name string, operator *jwt.OperatorClaims, accounts server.AccountResolver, system string) *server.Options {
	return &server.Options{
		ServerName: name, NoSigs: true, NoLog: true,
		TrustedOperators: []*jwt.OperatorClaims{operator}, AccountResolver: accounts, SystemAccount: system,
		MaxPayload: maxPayload, MaxPending: maxPending, AuthTimeout: authWait.Seconds(), TLSTimeout: authWait.Seconds(), PingInterval: pingEvery, MaxPingsOut: 2,
		MaxControlLine: 1024, DisableShortFirstPing: true,
	}
}

// listenAt takes HOST:PORT apart; port 0 is a free one.
func listenAt(addr, what string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(addr)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil {
		return "", 0, fault.Invalid("bus_listen", "%q is no address for %s", addr, what).Wrap(err).Fix("give HOST:PORT")
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	return host, port, nil
}

// start starts a server and waits until it listens. It is returned to be shut down after an error,
// too, if there is one.
func start(o *server.Options, log *slog.Logger, dir, addr string) (*server.Server, error) {
	srv, err := server.NewServer(o)
	if err != nil {
		return nil, fault.Invalid("bus_start", "the bus does not start").Wrap(err).Fix("check its address, its certificate and the keys in %s", dir)
	}
	srv.SetLoggerV2(logger{log}, false, false, false)
	go srv.Start()
	if !srv.ReadyForConnections(startWait) {
		return srv, fault.Unavailable("bus_start", "the bus does not start on %s", addr).Fix("another program may use that port")
	}
	return srv, nil
}

// connect makes drover's own two connections. A cluster is told which agents are revoked, each
// time that it is reached: it may have been started anew.
func (b *Bus) connect(ctx context.Context) (err error) {
	if b.Conn, err = b.user(b.keys.fleet); err == nil {
		b.sys, err = b.user(b.keys.system, nats.ReconnectHandler(func(*nats.Conn) {
			if err := b.tell(ctx); err != nil {
				b.cfg.Log.Error("the bus was not told which agents are revoked", "err", err)
			}
		}))
	}
	if err != nil {
		return fault.Unavailable("bus_connect", "the bus cannot be reached").Wrap(err).Fix("check the address of the cluster, and that its servers have the configuration that drover writes for them")
	}
	if b.srv != nil {
		return nil
	}
	return b.tell(ctx)
}

func (b *Bus) user(account nkeys.KeyPair, more ...nats.Option) (*nats.Conn, error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return nil, err
	}
	claims, err := b.keys.serverJWT(account, public(pair))
	if err != nil {
		return nil, err
	}
	opts := append([]nats.Option{nats.Name("drover"), nats.MaxReconnects(-1), nats.ReconnectWait(100 * time.Millisecond),
		nats.UserJWT(func() (string, error) { return claims, nil }, pair.Sign)}, more...)
	if b.srv != nil {
		opts = append(opts, nats.InProcessServer(b.srv))
	} else if b.cfg.Cluster != nil {
		opts = append(opts, nats.Secure(b.cfg.Cluster))
	}
	return nats.Connect(b.cfg.URL, opts...)
}

// Addr is where agents connect to, "" when there is no listener.
func (b *Bus) Addr() string {
	if b.srv == nil || b.cfg.Listen == "" {
		return ""
	}
	return b.srv.Addr().String()
}

// Agent mints what lets an agent in by its key. It does not expire: see Revoke.
func (b *Bus) Agent(name, key string) (string, error) { return b.keys.agentJWT(name, key) }

// Revoke cuts off who has a key, and does not let it in again. It is not kept here: the next Open
// is told.
func (b *Bus) Revoke(ctx context.Context, key string, at time.Time) error {
	b.mu.Lock()
	b.revoked[key] = at
	b.mu.Unlock()
	return b.tell(ctx)
}

// fleet is the account of the fleet as it is now.
func (b *Bus) fleet() (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.keys.fleetJWT(b.revoked)
}

// tell gives the servers the account of the fleet as it is now; those that are embedded hear it
// as those of a cluster do.
func (b *Bus) tell(ctx context.Context) error {
	b.telling.Lock() // an older state must not come after a newer one
	defer b.telling.Unlock()
	text, err := b.fleet()
	if err != nil {
		return err
	}
	account := public(b.keys.fleet)
	if err := b.Conn.Publish(leafClaims, []byte(text)); err != nil {
		return err
	}
	if b.srv != nil { // where it is looked up again
		if err := b.srv.AccountResolver().Store(account, text); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, tellWait)
	defer cancel()
	answer, err := b.sys.RequestWithContext(ctx, fmt.Sprintf("$SYS.REQ.ACCOUNT.%s.CLAIMS.UPDATE", account), []byte(text))
	if err != nil {
		return fault.Unavailable("bus_account", "the bus did not take which agents are revoked").Wrap(err).Fix("try again")
	}
	var said struct {
		Error *struct{ Description string } `json:"error"`
	}
	if err := json.Unmarshal(answer.Data, &said); err != nil || said.Error != nil {
		return fault.Unavailable("bus_account", "the bus did not take which agents are revoked: %.500s", answer.Data).Wrap(err).Fix("the servers of the cluster must have the configuration that drover writes for them")
	}
	return nil
}

// LeafAddr is where leaves connect to, "" when there is no listener.
func (b *Bus) LeafAddr() string {
	if b.srv == nil || b.cfg.Leaves == "" {
		return ""
	}
	z, err := b.srv.Varz(nil)
	if err != nil {
		return ""
	}
	return net.JoinHostPort(z.LeafNode.Host, strconv.Itoa(z.LeafNode.Port))
}

// Remind tells leaves who is revoked: one that was away has missed it.
func (b *Bus) Remind() error {
	text, err := b.fleet()
	if err != nil {
		return err
	}
	return b.Conn.Publish(leafClaims, []byte(text))
}

// Gone has fn called when the connection of an agent has ended, with its public key and the name
// of the connection: SERVER/NUMBER, as the agent's own client library knows it.
func (b *Bus) Gone(fn func(key, conn string)) error {
	_, err := b.sys.Subscribe(fmt.Sprintf("$SYS.ACCOUNT.%s.DISCONNECT", public(b.keys.fleet)), func(m *nats.Msg) {
		var e server.DisconnectEventMsg
		if err := json.Unmarshal(m.Data, &e); err != nil {
			b.cfg.Log.Error("the bus tells of the end of a connection in a way that is not known", "err", err)
			return
		}
		fn(e.Client.User, fmt.Sprintf("%s/%d", e.Server.ID, e.Client.ID))
	})
	if err != nil {
		return err
	}
	_, err = b.Conn.Subscribe(leafGone, func(m *nats.Msg) {
		var g [2]string
		if err := json.Unmarshal(m.Data, &g); err == nil {
			fn(g[0], g[1])
		}
	})
	return err
}

// Close ends the connections, and the server that is embedded.
func (b *Bus) Close() {
	for _, c := range []*nats.Conn{b.Conn, b.sys} {
		if c != nil {
			c.Close()
		}
	}
	if b.srv != nil {
		b.srv.Shutdown()
		b.srv.WaitForShutdown()
	}
}
