package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"drover/internal/fault"
	"drover/internal/fleet/wire"
	jobwire "drover/internal/job/wire"

	"github.com/nats-io/nats.go"
)

// Times of the connection.
const (
	connectWait = 30 * time.Second
	welcomeWait = 10 * time.Second
	pingEvery   = 60 * time.Second
	renewAfter  = 8 * time.Hour // the token holds for a day
)

// listen connects to the bus and takes commands until the connection is given up or ctx ends. A
// connection that is lost is made again, after a time that the server has advised.
func (a *Agent) listen(ctx context.Context) error {
	a.mu.Lock()
	ad := a.admit
	a.mu.Unlock()
	if len(a.cfg.Bus) > 0 {
		ad.Bus = a.cfg.Bus
	}
	closed := make(chan error, 1)
	hello := make(chan struct{}, 1)
	opts := []nats.Option{nats.Name(a.cfg.Name), nats.MaxReconnects(-1), nats.Timeout(connectWait), nats.PingInterval(pingEvery), nats.MaxPingsOutstanding(2), nats.ReconnectBufSize(-1), nats.NoEcho(),
		nats.CustomReconnectDelay(func(n int) time.Duration {
			if n <= 1 {
				return 50*time.Millisecond + spread(a.spreadOver())
			}
			return time.Duration(min(n, 5))*time.Second + spread(a.spreadOver())
		}),
		nats.UserJWT(func() (string, error) { return ad.JWT, nil }, a.pair.Sign),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { a.log.Warn("the connection to the server is lost", "err", err) }),
		nats.ReconnectHandler(func(c *nats.Conn) {
			a.log.Info("connected to the server again", "bus", c.ConnectedUrlRedacted())
			poke(hello)
		}),
		nats.ClosedHandler(func(c *nats.Conn) { closed <- c.LastError() }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			a.log.Warn("the bus refuses", "err", err)
		}),
	}
	if slices.ContainsFunc(ad.Bus, func(u string) bool { return strings.HasPrefix(u, "tls://") }) {
		c, err := secure(a.cfg.Now, ad.CA, a.cfg.CA, ad.Bus...)
		if err != nil {
			return err
		}
		opts = append(opts, nats.Secure(c))
	}
	if len(ad.Bus) == 0 {
		return fault.Unavailable("bus_none", "the server has no bus for agents").Fix("give the server bus_listen")
	}
	c, err := nats.Connect(strings.Join(ad.Bus, ","), opts...)
	if err != nil {
		return fault.Unavailable("bus_away", "the bus %s cannot be reached", strings.Join(ad.Bus, ", ")).Wrap(err)
	}
	defer c.Close()
	if _, err := c.Subscribe("to."+ad.ID+".*", a.hear); err != nil {
		return err
	}
	a.mu.Lock()
	a.conn = c
	a.mu.Unlock()
	poke(hello)
	alive := time.NewTimer(time.Hour)
	defer alive.Stop()
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	tries := 0
	for {
		select {
		case <-ctx.Done():
			_ = c.FlushTimeout(time.Second) // results that were just said
			return nil
		case err := <-closed:
			if err == nil {
				err = errors.New("the connection was closed")
			}
			return err
		case <-hello:
			tries = 0
			a.hello(c, ad)
			again.Reset(welcomeWait + spread(a.spreadOver()))
		case <-again.C:
			if tries++; tries > 3 && a.refusedWhy() == "" {
				return fault.Unavailable("no_welcome", "the server does not answer on the bus")
			}
			if c.IsConnected() {
				a.hello(c, ad)
			}
			again.Reset(time.Duration(tries)*welcomeWait + spread(a.spreadOver()))
		case <-a.welcomed:
			if why := a.refusedWhy(); why != "" {
				a.log.Error("the server gives this host no commands: " + why)
				again.Reset(time.Minute + spread(30*time.Second))
				continue
			}
			again.Stop()
			if a.cfg.Welcomed != nil {
				if err := a.cfg.Welcomed(); err != nil {
					a.log.Error("that this agent was welcomed is not written down", "err", err)
				}
			}
			a.resend(true)
			poke(a.report)
			alive.Reset(a.aliveEvery())
		case <-alive.C:
			if a.stale() { // a new hello gets a new token
				poke(hello)
			}
			a.alive()
			a.resend(false)
			alive.Reset(a.aliveEvery())
		}
	}
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// stale tells whether the welcome is so old that its token is about to end.
func (a *Agent) stale() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Since(a.when) > renewAfter
}

func (a *Agent) refusedWhy() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.welcome.Refused
}

func (a *Agent) aliveEvery() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := time.Duration(min(max(a.welcome.Alive, 5), 3600)) * time.Second
	return d - d/8 + spread(d/4)
}

func (a *Agent) hello(c *nats.Conn, ad admission) {
	id, err := c.GetClientID()
	if err != nil {
		return // it is lost again already
	}
	a.mu.Lock()
	a.nonce = random(12)
	h := wire.Hello{Nonce: a.nonce, Instance: a.instance, Version: a.cfg.Version, Cap: wire.Capability, Boot: a.cfg.Machine.Boot, Machine: a.cfg.Machine.ID, Clock: a.cfg.Now().UnixMicro(),
		Inventory: a.journal.inventoryDigest(), Conn: fmt.Sprintf("%s/%d", c.ConnectedServerId(), id)}
	for jid := range a.running {
		h.Running = append(h.Running, jid)
	}
	a.mu.Unlock()
	a.say("hello", h)
}

func (a *Agent) alive() {
	a.say("alive", wire.Alive{Instance: a.instance, Clock: a.cfg.Now().UnixMicro()})
}

// say tells the server something; what is lost is said again by whoever needs it.
func (a *Agent) say(kind string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		a.log.Error("what is to be said cannot be written", "kind", kind, "err", err)
		return
	}
	a.mu.Lock()
	c, id := a.conn, a.admit.ID
	a.mu.Unlock()
	if c == nil {
		return
	}
	if err := c.Publish("from."+id+"."+kind, b); err != nil && !errors.Is(err, nats.ErrConnectionReconnecting) && !errors.Is(err, nats.ErrReconnectBufExceeded) && !errors.Is(err, nats.ErrConnectionClosed) {
		a.log.Warn("the server was not told", "kind", kind, "err", err)
	}
}

// hear takes a message of the bus.
func (a *Agent) hear(m *nats.Msg) {
	_, kind, _ := strings.Cut(strings.TrimPrefix(m.Subject, "to."), ".")
	var err error
	switch kind {
	case "run":
		err = a.command(m.Data)
	case "welcome":
		err = a.welcomeIn(m.Data)
	case "ack":
		var ack jobwire.Ack
		if err = json.Unmarshal(m.Data, &ack); err == nil {
			a.journal.acked(ack.Jobs)
		}
	case "stop":
		err = a.stop(m.Data)
	case "who":
		a.alive()
	}
	if err != nil {
		a.log.Warn("a message is refused", "kind", kind, "code", fault.Code(err), "err", err)
	}
}

func (a *Agent) welcomeIn(b []byte) error {
	var w wire.Welcome
	if err := wire.Open(a.server, wire.ForWelcome, b, &w); err != nil {
		return err
	}
	a.mu.Lock()
	if w.Nonce != a.nonce || w.Instance != a.instance || a.nonce == "" {
		a.mu.Unlock()
		return nil // of an earlier hello, or for another process
	}
	a.nonce = ""
	a.welcome, a.when, a.jitter = w, time.Now(), time.Duration(min(max(w.Jitter, 0), 600_000))*time.Millisecond
	a.mu.Unlock()
	poke(a.welcomed)
	return nil
}
