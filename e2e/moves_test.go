package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"drover/internal/event"
	"drover/internal/repo"
	"drover/internal/rpm"
)

// stages are the channels of the line that the releaser moves while processes are killed.
func stages() []string { return []string{"s9/dev", "s9/test", "s9/prod"} }

// move is an attempt to move or hold something. Each has a reason of its own, by which it is
// found in the ledger.
type move struct {
	kind, reason string
	acked        bool
	moved        bool // the answer said that something changed
}

// release is a person who promotes, rolls back, holds and freezes, and tries again what was
// not acknowledged, until ctx ends.
func (c *chaos) release(ctx context.Context, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 2))
	// A part that has no state yet is left out of a line: the tag's comes first.
	for ch := (repo.Channel{}); c.get("/api/v1/channels/crash", &ch) != nil; time.Sleep(20 * time.Millisecond) {
		if ctx.Err() != nil {
			return
		}
	}
	c.eventually("line", "set", "s9", "--part", "stream", "--part", "crash", "--stage", "dev", "--stage", "test", "--stage", "prod")
	for n := 0; ctx.Err() == nil && !c.Failed(); n++ {
		stage := stages()[1+rng.IntN(2)]
		switch rng.IntN(8) {
		case 0, 1, 2, 3:
			c.attempt(n, "channel.promote", "channel", "promote", stage, "--force")
		case 4, 5:
			c.attempt(n, "channel.rollback", "channel", "rollback", stage)
		case 6:
			c.attempt(n, "channel.hold", "channel", "hold", "s9/prod", "pair*")
			c.attempt(n, "channel.promote", "channel", "promote", "s9/prod", "--force")
			c.attempt(n, "", "channel", "unhold", "s9/prod", "pair*")
		case 7:
			c.attempt(n, "channel.freeze", "channel", "freeze", stage)
			c.attempt(n, "channel.promote", "channel", "promote", stage, "--force")
			c.attempt(n, "", "channel", "thaw", stage)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(rng.Int64N(int64(300 * time.Millisecond)))):
		}
	}
}

// attempt does one thing until it is acknowledged.
func (c *chaos) attempt(n int, kind string, args ...string) {
	try := 0
	c.insist(func() error {
		try++
		m := move{kind: kind, reason: fmt.Sprintf("move %d.%d of %s", n, try, strings.Join(args, " "))}
		with := append(slices.Clone(args), "-o", "json")
		if kind != "" {
			with = append(with, "--reason", m.reason)
		}
		out, err := c.drover(with...)
		if err == nil {
			var plan struct{ Was, Snapshot string }
			_ = json.Unmarshal([]byte(out), &plan)
			m.acked, m.moved = true, kind != "channel.promote" || plan.Was != plan.Snapshot
		} else if slices.ContainsFunc([]string{"(channel_unknown)", "(no_earlier_state)", "(channel_frozen)", "(hold_unknown)", "(stage_unknown)"}, func(code string) bool { return strings.Contains(err.Error(), code) }) {
			err = nil // there is nothing to move, or it may not be
		}
		c.note(func() { c.moves = append(c.moves, m) })
		return err
	})
}

// watch reads what the channels of the line name, all of it, again and again, until ctx ends.
func (c *chaos) watch(ctx context.Context) {
	known := map[string]bool{}
	for n := 0; ctx.Err() == nil && !c.Failed(); n++ {
		for _, name := range stages() {
			began := time.Now()
			var ch repo.Channel
			err := c.get("/api/v1/channels/"+url.PathEscape(name), &ch)
			if err == nil && (!known[ch.Snapshot] || n%20 == 0) {
				if err = c.complete(ch.Snapshot, n%20 == 0); err == nil {
					known[ch.Snapshot] = true
				}
			}
			if err != nil && !strings.Contains(err.Error(), "channel_unknown") && !c.wasDown(began, time.Now()) {
				c.Errorf("%s names %.12s, and that is not all there: %v", name, ch.Snapshot, err)
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	c.note(func() { c.watched = len(known) })
}

// complete fetches everything that a snapshot names and compares it with its checksums; of the
// mirror's packages when all is set.
func (c *chaos) complete(id string, all bool) error {
	fetch := func(path string) ([]byte, error) {
		resp, err := http.Get(c.URL + path)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s %.200s", path, resp.Status, b)
		}
		return b, err
	}
	right := func(path, sum string) ([]byte, error) {
		b, err := fetch(path)
		if got := sha256.Sum256(b); err == nil && hex.EncodeToString(got[:]) != sum {
			err = fmt.Errorf("%s has the checksum %x, not %s", path, got, sum)
		}
		return b, err
	}
	for _, tree := range []string{"stream.x86_64", "crash.x86_64", "crash.source"} {
		base := "/snapshots/" + id + "/" + tree + "/"
		md, err := fetch(base + "repodata/repomd.xml")
		if err != nil {
			return err
		}
		datas, err := rpm.ReadRepomd(md)
		if err != nil {
			return err
		}
		if len(datas) < 3 {
			return errors.New(base + "repodata/repomd.xml names too little")
		}
		for _, d := range datas {
			b, err := right(base+d.Href, d.Sum)
			if err != nil {
				return err
			}
			if d.Type != "primary" || tree == "stream.x86_64" && !all {
				continue
			}
			err = rpm.ReadPrimary(bytes.NewReader(b), func(p rpm.PrimaryPackage) error {
				_, err := right(base+p.Href, p.Sum)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// settled checks the line when nobody kills any more: what was acknowledged is in the ledger
// once, every state that a channel had is whole, and the last promotions bring all of it on.
func (c *chaos) settled(all []event.Event) {
	c.Helper()
	times := map[string]int{}
	for _, e := range all {
		var data struct{ Reason string }
		if json.Unmarshal(e.Data, &data) == nil && strings.HasPrefix(data.Reason, "move ") {
			times[e.Kind+" "+data.Reason]++
		}
	}
	acked := 0
	for _, m := range c.moves {
		n := times[m.kind+" "+m.reason]
		if n > 1 || m.acked && m.moved && m.kind != "" && n != 1 || m.acked && !m.moved && n != 0 {
			c.Errorf("%+v is %d times in the ledger", m, n)
		}
		if m.acked && m.moved {
			acked++
		}
	}
	for _, stage := range stages() {
		var states []repo.Channel
		if err := c.get("/api/v1/channels/"+url.PathEscape(stage)+"/history", &states); err != nil {
			c.Fatal(err)
		}
		seen := map[string]bool{}
		for _, st := range states {
			if seen[st.Snapshot] {
				continue
			}
			seen[st.Snapshot] = true
			if err := c.complete(st.Snapshot, false); err != nil {
				c.Errorf("a state of %s: %v", stage, err)
			}
		}
	}
	c.Logf("%d attempts to move, %d of them acknowledged and not in vain; %d states of channels were read whole meanwhile", len(c.moves), acked, c.watched)
	want, err := c.channel("crash")
	if err != nil {
		c.Fatal(err)
	}
	c.waitFor("s9/dev has all", 30*time.Second, func() bool {
		have, err := c.channel("s9/dev")
		return err == nil && !slices.ContainsFunc(want, func(f string) bool { return !slices.Contains(have, f) })
	})
	var dev, prod repo.Channel
	for _, stage := range stages()[1:] {
		c.must("channel", "thaw", stage)
		c.must("channel", "promote", stage, "--force", "--reason", "the end")
	}
	if err := errors.Join(c.get("/api/v1/channels/s9%2Fdev", &dev), c.get("/api/v1/channels/s9%2Fprod", &prod)); err != nil || dev.Snapshot != prod.Snapshot {
		c.Errorf("at the end s9/dev is at %s and s9/prod at %s: %v", dev.Snapshot, prod.Snapshot, err)
	}
}
