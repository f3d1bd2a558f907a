package agent

import (
	"context"
	"crypto/ed25519"
	crand "crypto/rand"
	"encoding/hex"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"drover/internal/agent/module"
	"drover/internal/fleet/wire"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// Config is what an agent needs.
type Config struct {
	Dir      string   // of its key and its state; "" keeps everything in memory, for simulated hosts
	URL      string   // of the server, or of a site
	Bus      []string // URLs of the bus, instead of those that the server tells: the bus of a site
	CA       string   // PEM of a CA to trust beside the system's
	Pin      string   // of the server's key: SHA256:…; "" trusts what a verified TLS connection gives
	Name     string   // of this host
	Ticket   string   // by which it is let in; not needed any more once it was
	Version  string
	Machine  Machine
	Registry *module.Registry
	Host     module.Host // what functions get; the agent adds what it knows itself
	Policy   func() Policy
	// Collect gathers what is told of the host: by kind, key and value, and the packages' NEVRAs.
	Collect  func(ctx context.Context) (Inventory, error)
	Schedule map[string]Scheduled
	Beacons  Beacons
	Watched  Watched
	Welcomed func() error // called when the server has welcomed this process; nil for nothing
	Log      *slog.Logger
	HTTP     *http.Client     // nil makes one
	Now      func() time.Time // the host's clock, which may be wrong; nil is the machine's
}

// Machine is how the host is told from others.
type Machine struct {
	ID     string
	Serial string
	Boot   string
	MACs   []string
}

// Agent is one agent.
type Agent struct {
	cfg      Config
	log      *slog.Logger
	pair     nkeys.KeyPair
	public   string
	instance string
	http     *http.Client
	journal  *journal

	mu      sync.Mutex // guards what follows
	server  ed25519.PublicKey
	admit   admission
	conn    *nats.Conn
	nonce   string // of the hello that waits for its welcome
	welcome wire.Welcome
	when    time.Time // of the welcome, by the monotonic clock
	running map[string]*task
	ran     bool // a command ran since memory was given back
	jitter  time.Duration

	welcomed chan struct{} // gets one at each welcome
	report   chan struct{} // gets one when a report is wanted
	work     sync.WaitGroup
}

// New makes an agent. It does not need the server yet.
func New(cfg Config) (*Agent, error) {
	a := &Agent{cfg: cfg, log: cfg.Log, instance: random(12), running: map[string]*task{}, welcomed: make(chan struct{}, 1), report: make(chan struct{}, 1), http: cfg.HTTP}
	if a.cfg.Now == nil {
		a.cfg.Now = time.Now
	}
	var err error
	if a.journal, err = openJournal(cfg.Dir); err != nil {
		return nil, err
	}
	if err := a.openState(); err != nil {
		return nil, err
	}
	return a, nil
}

func random(n int) string {
	b := make([]byte, n)
	_, _ = crand.Read(b) // never fails, crypto/rand
	return hex.EncodeToString(b)
}

// Run works until ctx ends. It goes on whatever happens to the server.
func (a *Agent) Run(ctx context.Context) error {
	defer a.work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.work.Go(func() { a.inventory(ctx) })
	a.work.Go(func() { a.sweep(ctx) })
	a.work.Go(func() { a.beacons(ctx) })
	a.schedule(ctx)
	wait := time.Second
	for ctx.Err() == nil {
		began := time.Now()
		err := a.session(ctx)
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > time.Minute {
			wait = time.Second
		}
		a.log.Warn("no connection to the server", "server", a.cfg.URL, "err", err, "again", wait)
		if err := module.Sleep(ctx, wait+spread(a.spreadOver())); err != nil {
			break
		}
		wait = min(2*wait, 30*time.Second)
	}
	return nil
}

// session is from enrolment to the end of a connection.
func (a *Agent) session(ctx context.Context) error {
	if err := a.enrol(ctx); err != nil {
		return err
	}
	return a.listen(ctx)
}

// Enrol is let in by the server, and does nothing else.
func (a *Agent) Enrol(ctx context.Context) error { return a.enrol(ctx) }

// Name is the host's name.
func (a *Agent) Name() string { return a.cfg.Name }

// now is the server's time, in microseconds: what it said last, and how long that is ago. Before
// the first word of the server it is the host's own.
func (a *Agent) now() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.when.IsZero() {
		return a.cfg.Now().UnixMicro()
	}
	return a.welcome.Now + time.Since(a.when).Microseconds()
}

func (a *Agent) spreadOver() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.jitter
}

// Connected tells whether the server has welcomed this process and is still connected.
func (a *Agent) Connected() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.conn != nil && a.conn.IsConnected() && !a.when.IsZero() && a.welcome.Refused == ""
}

// spread is a random part of a time, so that many hosts do not do the same at once.
func spread(over time.Duration) time.Duration {
	if over <= 0 {
		return 0
	}
	return rand.N(over) //nolint:gosec // no secret
}
