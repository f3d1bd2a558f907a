package bus_test

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"drover/internal/bus"
	"drover/internal/fault"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

type agent struct {
	name, key, jwt string
	pair           nkeys.KeyPair
}

func newAgent(t *testing.T, b *bus.Bus, name string) agent {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	key, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	jwt, err := b.Agent(name, key)
	if err != nil {
		t.Fatal(err)
	}
	return agent{name, key, jwt, pair}
}

func (a agent) connect(b *bus.Bus, opts ...nats.Option) (*nats.Conn, error) {
	return nats.Connect("nats://"+b.Addr(), append([]nats.Option{nats.UserJWT(func() (string, error) { return a.jwt, nil }, a.pair.Sign), nats.Timeout(5 * time.Second)}, opts...)...)
}

func open(t *testing.T, dir string, revoked map[string]time.Time) *bus.Bus {
	t.Helper()
	b, err := bus.Open(t.Context(), bus.Config{Dir: dir, Listen: "127.0.0.1:0", Revoked: revoked, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// refusals counts what the server did not let a connection do.
func refusals(n *atomic.Int64) nats.Option {
	return nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			n.Add(1)
		}
	})
}

// An agent hears and says what is its own, and nothing of others or of the servers.
func TestOwnSubjects(t *testing.T) {
	b := open(t, t.TempDir(), nil)
	one, two := newAgent(t, b, "1"), newAgent(t, b, "2")
	var denied atomic.Int64
	c1, err := one.connect(b, refusals(&denied))
	if err != nil {
		t.Fatal(err)
	}
	defer c1.Close()
	c2, err := two.connect(b)
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	heard := make(chan *nats.Msg, 100)
	for subject, c := range map[string]*nats.Conn{"to.1.>": c1, "to.2.>": c2, "all.>": c2, "from.>": b.Conn} {
		if _, err := c.ChanSubscribe(subject, heard); err != nil {
			t.Fatal(err)
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want ...string) {
		t.Helper()
		var got []string
		for _, c := range []*nats.Conn{b.Conn, c1, c2, b.Conn} {
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		for end := time.After(200 * time.Millisecond); ; {
			select {
			case m := <-heard:
				got = append(got, m.Subject)
				continue
			case <-end:
			}
			break
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("heard %v, want %v", got, want)
		}
	}
	say := func(c *nats.Conn, subjects ...string) {
		t.Helper()
		for _, s := range subjects {
			if err := c.Publish(s, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	}
	say(b.Conn, "to.1.job", "to.2.job", "all.look", "to.3.job")
	expect("all.look", "to.1.job", "to.2.job")
	say(c1, "from.1.result")
	expect("from.1.result")
	say(c1, "from.2.result", "to.2.job", "to.1.job", "all.look", "from.1", "$SYS.REQ.SERVER.PING", "$SYS.REQ.CLAIMS.UPDATE", "_INBOX.x.y", "anything")
	expect()
	if denied.Load() != 9 {
		t.Errorf("%d of 9 were denied", denied.Load())
	}
	for _, s := range []string{">", "*.2.>", "to.2.job", "to.>", "from.>", "$SYS.>", "_INBOX.>"} {
		if _, err := c1.ChanSubscribe(s, heard); err != nil {
			t.Fatal(err)
		}
	}
	say(b.Conn, "to.2.secret", "anything", "_INBOX.a.b")
	say(c2, "from.2.secret")
	expect("from.2.secret", "to.2.secret")
	if denied.Load() != 16 {
		t.Errorf("%d of 16 were denied", denied.Load())
	}
	if err := c1.Publish("from.1.result", make([]byte, 70<<10)); !errors.Is(err, nats.ErrMaxPayload) {
		t.Errorf("a message of 70 KiB: %v", err)
	}
}

// A revoked key is cut off at once and stays out, also of the next server; others notice nothing.
func TestRevoke(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, nil)
	one, two := newAgent(t, b, "1"), newAgent(t, b, "2")
	gone := make(chan time.Time, 1)
	c1, err := one.connect(b, nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { gone <- time.Now() }))
	if err != nil {
		t.Fatal(err)
	}
	defer c1.Close()
	c2, err := two.connect(b, nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	began := time.Now()
	if err := b.Revoke(t.Context(), one.key, began); err != nil {
		t.Fatal(err)
	}
	select {
	case at := <-gone:
		t.Logf("cut off after %v", at.Sub(began))
	case <-time.After(2 * time.Second):
		t.Fatal("a revoked agent stays")
	}
	refused := func(b *bus.Bus, a agent, why string) {
		t.Helper()
		c, err := a.connect(b, nats.NoReconnect())
		if err == nil {
			c.Close()
			t.Errorf("%s is let in", why)
		} else if !errors.Is(err, nats.ErrAuthorization) && !errors.Is(err, nats.ErrAuthRevoked) {
			t.Errorf("%s: %v", why, err)
		}
	}
	refused(b, one, "a revoked agent")
	if err := c2.FlushTimeout(time.Second); err != nil {
		t.Errorf("another agent: %v", err)
	}
	b.Close()
	b = open(t, dir, map[string]time.Time{one.key: began})
	refused(b, one, "a revoked agent at the next server")
	c, err := two.connect(b)
	if err != nil {
		t.Fatalf("an agent of before: %v", err)
	}
	c.Close()
	// Its host joins again, with another key.
	c, err = newAgent(t, b, "1").connect(b)
	if err != nil {
		t.Fatalf("joined again: %v", err)
	}
	c.Close()
	// Nobody, somebody else's, a stolen JWT without its key.
	stolen := one
	stolen.pair, _ = nkeys.CreateUser()
	refused(b, stolen, "a stolen JWT")
	refused(b, newAgent(t, open(t, t.TempDir(), nil), "2"), "an agent of another server")
	if c, err := nats.Connect("nats://"+b.Addr(), nats.NoReconnect()); err == nil {
		c.Close()
		t.Error("nobody is let in")
	}
}

// What is no agent gets no JWT, and keys that are damaged are told.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, nil)
	key := newAgent(t, b, "1").key
	for _, name := range []string{"", "*", ">", "a.b", "all ", "A", "1 2"} {
		if _, err := b.Agent(name, key); fault.Code(err) != "bus_agent" {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, k := range []string{"", "x", key[1:], "A" + key[1:]} {
		if _, err := b.Agent("1", k); fault.Code(err) != "bus_agent" {
			t.Errorf("key %q: %v", k, err)
		}
	}
	b.Close()
	for what, text := range map[string]string{"nothing": "", "nonsense": "SAABC"} {
		if err := os.WriteFile(filepath.Join(dir, "fleet.seed"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := bus.Open(t.Context(), bus.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)}); fault.Code(err) != "bus_key" {
			if err == nil {
				b.Close()
			}
			t.Errorf("%s for a key: %v", what, err)
		}
	}
}

// A cluster that has the configuration that drover writes for it serves as the embedded server
// does, and is told again who is revoked when it was started anew.
func TestCluster(t *testing.T) {
	dir := t.TempDir()
	text, err := bus.ServerConfig(dir)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "server.conf")
	if err := os.WriteFile(file, []byte("listen: 127.0.0.1:-1\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func(port int) *server.Server {
		t.Helper()
		o, err := server.ProcessConfigFile(file)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if port != 0 {
			o.Port = port
		}
		o.NoSigs, o.NoLog = true, true
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		go s.Start()
		if !s.ReadyForConnections(10 * time.Second) {
			t.Fatal("it does not start")
		}
		return s
	}
	srv := start(0)
	b, err := bus.Open(t.Context(), bus.Config{Dir: dir, URL: srv.ClientURL(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	one, two := newAgent(t, b, "1"), newAgent(t, b, "2")
	join := func(a agent) (*nats.Conn, error) {
		return nats.Connect(srv.ClientURL(), nats.UserJWT(func() (string, error) { return a.jwt, nil }, a.pair.Sign), nats.NoReconnect())
	}
	gone := make(chan struct{})
	c, err := join(one)
	if err != nil {
		t.Fatal(err)
	}
	c.SetClosedHandler(func(*nats.Conn) { close(gone) })
	if err := b.Revoke(t.Context(), one.key, time.Now()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-gone:
	case <-time.After(2 * time.Second):
		t.Fatal("a revoked agent stays in the cluster")
	}
	port := srv.Addr().(*net.TCPAddr).Port
	srv.Shutdown()
	srv.WaitForShutdown()
	srv = start(port)
	defer srv.Shutdown()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := join(one); err != nil {
			break
		} else if c.Close(); time.Now().After(deadline) {
			t.Fatal("a cluster that was started anew lets a revoked agent in")
		}
	}
	if c, err := join(two); err != nil {
		t.Errorf("another agent: %v", err)
	} else {
		c.Close()
	}
	if b, err := bus.Open(t.Context(), bus.Config{Dir: t.TempDir(), URL: srv.ClientURL(), Log: slog.New(slog.DiscardHandler)}); fault.Code(err) != "bus_connect" {
		if err == nil {
			b.Close()
		}
		t.Errorf("a cluster of somebody else's: %v", err)
	}
}
