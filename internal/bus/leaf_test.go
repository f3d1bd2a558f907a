package bus_test

import (
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"drover/internal/bus"

	"github.com/nats-io/nats.go"
)

// Agents at a site speak with the server by way of the leaf there, each with its own subjects only;
// who is revoked is cut off there too, also when the leaf was away at that time.
func TestLeaf(t *testing.T) {
	dir := t.TempDir()
	b, err := bus.Open(t.Context(), bus.Config{Dir: dir, Listen: "127.0.0.1:0", Leaves: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	key, err := bus.NewLeaf(dir, "fra")
	if err != nil {
		t.Fatal(err)
	}
	cfg := bus.LeafConfig{Dir: t.TempDir(), Key: key, Hub: "nats://" + b.LeafAddr(), Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)}
	leaf, err := bus.OpenLeaf(cfg)
	if err != nil {
		t.Fatal(err)
	}
	one, two := newAgent(t, b, "1"), newAgent(t, b, "2")
	join := func(a agent, opts ...nats.Option) *nats.Conn {
		t.Helper()
		c, err := nats.Connect("nats://"+leaf.Addr(), append([]nats.Option{nats.UserJWT(func() (string, error) { return a.jwt, nil }, a.pair.Sign), nats.MaxReconnects(0)}, opts...)...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	var denied, heard atomic.Int64
	c1, c2 := join(one, refusals(&denied)), join(two)
	for _, sub := range []string{"to.1.>", "to.2.>", "from.>", "leaf.>"} {
		if _, err := c1.Subscribe(sub, func(m *nats.Msg) {
			heard.Add(1)
			if m.Subject != "to.1.run" {
				t.Errorf("it heard %s", m.Subject)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	said := make(chan string, 10)
	if _, err := b.Conn.Subscribe("from.>", func(m *nats.Msg) { said <- m.Subject }); err != nil {
		t.Fatal(err)
	}
	gone := make(chan string, 10)
	if err := b.Gone(func(key, _ string) { gone <- key }); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for heard.Load() == 0 && time.Now().Before(deadline) { // the leaf tells the server step by step what it wants to hear
		if err := b.Conn.Publish("to.1.run", nil); err != nil {
			t.Fatal(err)
		}
		if err := b.Conn.Publish("to.2.run", nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if heard.Load() == 0 {
		t.Fatal("nothing came to the site")
	}
	for _, subj := range []string{"from.2.run", "to.2.run", "from.1.run", "leaf.gone"} {
		if err := c1.Publish(subj, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := c1.Flush(); err != nil {
		t.Fatal(err)
	}
	select {
	case s := <-said:
		if s != "from.1.run" {
			t.Errorf("the server heard %s", s)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came from the site")
	}
	for began := time.Now(); denied.Load() < 6; time.Sleep(5 * time.Millisecond) { // they are told one by one
		if time.Since(began) > 5*time.Second {
			t.Fatalf("%d refusals", denied.Load())
		}
	}
	// Cut off within moments, at the site too.
	if err := b.Revoke(t.Context(), two.key, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); !c2.IsClosed(); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > 5*time.Second {
			t.Fatal("a revoked agent stays at the leaf")
		}
	}
	select {
	case k := <-gone:
		if k != two.key {
			t.Errorf("gone is %s", k)
		}
	case <-time.After(10 * time.Second):
		t.Error("nobody is told that it has gone")
	}
	// A leaf that was away hears who was revoked in the meantime.
	leaf.Close()
	if err := b.Revoke(t.Context(), one.key, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if leaf, err = bus.OpenLeaf(cfg); err != nil {
		t.Fatal(err)
	}
	defer leaf.Close()
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if err := b.Remind(); err != nil {
			t.Fatal(err)
		}
		c, err := nats.Connect("nats://"+leaf.Addr(), nats.UserJWT(func() (string, error) { return one.jwt, nil }, one.pair.Sign), nats.MaxReconnects(0))
		if err != nil {
			break
		}
		c.Close()
		if time.Since(began) > 10*time.Second {
			t.Fatal("who was revoked while the leaf was away comes in")
		}
	}
}
