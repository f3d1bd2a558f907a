package repo

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/repo/gate"
	"drover/internal/repo/set"
	"drover/internal/repo/wire"
	"drover/internal/rpm"
	"drover/internal/rpm/modules"
)

// point moves a channel.
func point(tx *db.Tx, channel, snapshot string, ev int64) error {
	if _, err := tx.Exec("UPDATE repo_channel SET until = $1 WHERE name = $2 AND until = 0", ev, channel); err != nil {
		return err
	}
	_, err := tx.Exec("INSERT INTO repo_channel (name, snapshot, since, until) VALUES ($1, $2, $3, 0)", channel, snapshot, ev)
	return err
}

// Channel is a named pointer to a snapshot.
type Channel struct {
	Name     string `json:"name"`
	Snapshot string `json:"snapshot"`
	Key      string `json:"key,omitempty"` // that the snapshot is signed with
	Since    int64  `json:"since"`
	Until    int64  `json:"until,omitempty"`
}

const channelColumns = "c.name, c.snapshot, s.key, c.since, c.until FROM repo_channel c JOIN repo_snapshot s ON s.id = c.snapshot"

// channelAt reads a channel as of an event, or event.Now.
func channelAt(tx *db.Tx, name string, at int64) (c Channel, err error) {
	err = tx.QueryRow("SELECT "+channelColumns+" WHERE c.name = $1 AND c.since <= $2 AND (c.until = 0 OR c.until > $2) ORDER BY c.since DESC LIMIT 1", name, at).Scan(&c.Name, &c.Snapshot, &c.Key, &c.Since, &c.Until)
	if db.NoRow(err) {
		return c, fault.NotFound("channel_unknown", "there is no channel %.100q", name).Fix("see `drover channel list`")
	}
	return c, err
}

// Channel reads a channel as of an event number or time; "" is now.
func (s *Store) Channel(ctx context.Context, name, asOf string) (c Channel, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		at, err := event.AsOf(tx, asOf)
		if err != nil {
			return err
		}
		c, err = channelAt(tx, name, at)
		return err
	})
	return c, err
}

// Channels lists the channels.
func (s *Store) Channels(ctx context.Context) ([]Channel, error) {
	return s.listChannels(ctx, "c.until = 0 ORDER BY c.name")
}

// History lists the states of a channel, newest first.
func (s *Store) History(ctx context.Context, name string) ([]Channel, error) {
	cs, err := s.listChannels(ctx, "c.name = $1 ORDER BY c.since DESC LIMIT 200", name)
	if err == nil && len(cs) == 0 {
		_, err = s.Channel(ctx, name, "") // says that there is none
	}
	return cs, err
}

func (s *Store) listChannels(ctx context.Context, where string, args ...any) ([]Channel, error) {
	out := []Channel{}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var c Channel
			err := scan(&c.Name, &c.Snapshot, &c.Key, &c.Since, &c.Until)
			out = append(out, c)
			return err
		}, "SELECT "+channelColumns+" WHERE "+where, args...)
	})
	return out, err
}

// Move is what a person says about the move of a channel.
type Move struct {
	Reason string `json:"reason,omitempty" maxLength:"1000"`
	Force  bool   `json:"force,omitempty" doc:"move although the gate says no; needs a reason"`
}

// Point moves a channel to a snapshot that exists, by hand.
func (s *Store) Point(ctx context.Context, channel, snapshot string) error {
	if err := auth.Need(ctx, "repo.channel", channel); err != nil {
		return err
	}
	if name, st, ok := strings.Cut(channel, "/"); !reName.MatchString(name) || ok && !reStage.MatchString(st) {
		return fault.Invalid("channel", "%.100q is no name of a channel", channel).Fix("use a-z 0-9 _ . + -, a letter or digit first; LINE/STAGE for a stage")
	}
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		sn, err := s.getSnapshot(tx, snapshot)
		if err != nil {
			return err
		}
		return s.move(tx, channel, sn, "channel.point", "")
	})
}

// move points a channel at a snapshot and writes it down.
func (s *Store) move(tx *db.Tx, channel string, sn Snapshot, kind, reason string) error {
	had, err := channelAt(tx, channel, event.Now)
	if err != nil && fault.Code(err) != "channel_unknown" {
		return err
	}
	if had.Snapshot == sn.ID {
		return nil
	}
	if had.Key != "" && sn.Key == "" {
		return fault.Conflict("channel_unsigned", "the channel %s is signed with %s and the snapshot %.12s is not signed: hosts would refuse it", channel, had.Key, sn.ID).
			Fix("sign the tag that it comes from, or follow it by another channel")
	}
	if err := checkFreeze(tx, channel); err != nil {
		return err
	}
	if err := s.complete(tx, sn.ID); err != nil {
		return err
	}
	data := map[string]string{"snapshot": sn.ID, "was": had.Snapshot}
	if reason != "" {
		data["reason"] = reason
	}
	ev, err := event.Append(tx, kind, "channel/"+channel, data)
	if err != nil {
		return err
	}
	return point(tx, channel, sn.ID, ev)
}

// Rollback moves a channel back to the state before its present one, or to one that it had: a
// snapshot, or the time or event of which it is asked.
func (s *Store) Rollback(ctx context.Context, channel, to, reason string) (c Channel, err error) {
	if err := auth.Need(ctx, "repo.channel", channel); err != nil {
		return c, err
	}
	err = s.DB.Write(ctx, func(tx *db.Tx) error {
		now, err := channelAt(tx, channel, event.Now)
		if err != nil {
			return err
		}
		var id string
		if to == "" {
			err = tx.QueryRow("SELECT snapshot FROM repo_channel WHERE name = $1 AND snapshot <> $2 AND since < $3 ORDER BY since DESC LIMIT 1", channel, now.Snapshot, now.Since).Scan(&id)
		} else {
			var sn Snapshot
			if sn, err = s.getSnapshot(tx, to); err != nil {
				return err
			}
			err = tx.QueryRow("SELECT snapshot FROM repo_channel WHERE name = $1 AND snapshot = $2 LIMIT 1", channel, sn.ID).Scan(&id)
		}
		if db.NoRow(err) {
			return fault.Conflict("no_earlier_state", "the channel %s has not had that state before", channel).Fix("see `drover channel history %s`", channel)
		}
		if err != nil {
			return err
		}
		sn, err := s.getSnapshot(tx, id)
		if err != nil {
			return err
		}
		if err := s.move(tx, channel, sn, "channel.rollback", reason); err != nil {
			return err
		}
		c, err = channelAt(tx, channel, event.Now)
		return err
	})
	return c, err
}

// Note is why something is kept as it is, and until when.
type Note struct {
	Reason  string    `json:"reason" maxLength:"1000"`
	Expires time.Time `json:"expires,omitzero"`
}

// Freeze is what keeps a channel where it is.
type Freeze struct {
	Channel string    `json:"channel"`
	Reason  string    `json:"reason"`
	Actor   string    `json:"actor"`
	Expires time.Time `json:"expires,omitzero"` // never when it is zero
	Since   int64     `json:"since"`
}

// freezeOf reads the freeze of a channel that is in force, or nil.
func freezeOf(tx *db.Tx, channel string) (*Freeze, error) {
	f := Freeze{Channel: channel}
	var expires int64
	err := tx.QueryRow("SELECT reason, actor, expires, since FROM repo_freeze WHERE channel = $1 AND until = 0 AND (expires = 0 OR expires > $2)", channel, tx.Now()).Scan(&f.Reason, &f.Actor, &expires, &f.Since)
	if db.NoRow(err) {
		return nil, nil
	}
	f.Expires = db.Time(expires)
	return &f, err
}

func checkFreeze(tx *db.Tx, channel string) error {
	f, err := freezeOf(tx, channel)
	if err != nil || f == nil {
		return err
	}
	return f.refuse()
}

// refuse is the error of a move that the freeze keeps from happening.
func (f *Freeze) refuse() error {
	until := "until somebody thaws it"
	if !f.Expires.IsZero() {
		until = "until " + f.Expires.Format(time.DateTime)
	}
	return fault.Conflict("channel_frozen", "the channel %s is frozen by %s %s: %s", f.Channel, f.Actor, until, f.Reason).Fix("wait, or thaw it: `drover channel thaw %s`", f.Channel)
}

// checkNote refuses a freeze, hold or name without a reason, or one that has expired already.
func checkNote(reason string, expires time.Time) error {
	if strings.TrimSpace(reason) == "" || len(reason) > 1000 {
		return fault.Invalid("reason", "a reason is needed, of at most 1000 letters").Fix("say in a few words why; whoever meets it at night will read it")
	}
	if !expires.IsZero() && expires.Before(time.Now()) {
		return fault.Invalid("expires", "it would have expired already: %s", expires.Format(time.RFC3339)).Fix("give a time to come, or none")
	}
	return nil
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// SetFreeze keeps a channel where it is, until a time or for good.
func (s *Store) SetFreeze(ctx context.Context, f Freeze) error {
	if err := auth.Need(ctx, "repo.channel", f.Channel); err != nil {
		return err
	}
	if err := checkNote(f.Reason, f.Expires); err != nil {
		return err
	}
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		if _, err := channelAt(tx, f.Channel, event.Now); err != nil {
			return err
		}
		ev, err := event.Append(tx, "channel.freeze", "channel/"+f.Channel, map[string]any{"reason": f.Reason, "expires": f.Expires})
		if err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE repo_freeze SET until = $1 WHERE channel = $2 AND until = 0", ev, f.Channel); err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO repo_freeze (channel, reason, actor, expires, since, until) VALUES ($1, $2, $3, $4, $5, 0)", f.Channel, f.Reason, tx.Actor(), micros(f.Expires), ev)
		return err
	})
}

// Thaw ends the freeze of a channel; without one it changes nothing.
func (s *Store) Thaw(ctx context.Context, channel string) error {
	if err := auth.Need(ctx, "repo.channel", channel); err != nil {
		return err
	}
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		if _, err := channelAt(tx, channel, event.Now); err != nil {
			return err
		}
		if f, err := freezeOf(tx, channel); err != nil || f == nil {
			return err
		}
		ev, err := event.Append(tx, "channel.thaw", "channel/"+channel, map[string]any{})
		if err != nil {
			return err
		}
		_, err = tx.Exec("UPDATE repo_freeze SET until = $1 WHERE channel = $2 AND until = 0", ev, channel)
		return err
	})
}

// Hold keeps a package of a channel at the version that it has there when the channel is
// promoted.
type Hold struct {
	Channel string    `json:"channel"`
	Package string    `json:"package" doc:"name of a source package or of a package, or a pattern such as kernel*"`
	Reason  string    `json:"reason"`
	Actor   string    `json:"actor"`
	Expires time.Time `json:"expires,omitzero"`
	Since   int64     `json:"since"`
}

// SetHold holds a package.
func (s *Store) SetHold(ctx context.Context, h Hold) error {
	if err := auth.Need(ctx, "repo.channel", h.Channel); err != nil {
		return err
	}
	if err := checkNote(h.Reason, h.Expires); err != nil {
		return err
	}
	if _, err := path.Match(h.Package, ""); err != nil || h.Package == "" || len(h.Package) > 200 || strings.ContainsAny(h.Package, "/ \n") {
		return fault.Invalid("hold", "%.100q is no name of a package and no pattern", h.Package).Fix("give a name, or a pattern such as kernel*")
	}
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		if _, _, err := stageOf(tx, h.Channel); err != nil {
			return err
		}
		ev, err := event.Append(tx, "channel.hold", "channel/"+h.Channel, map[string]any{"package": h.Package, "reason": h.Reason, "expires": h.Expires})
		if err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE repo_hold SET until = $1 WHERE channel = $2 AND package = $3 AND until = 0", ev, h.Channel, h.Package); err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO repo_hold (channel, package, reason, actor, expires, since, until) VALUES ($1, $2, $3, $4, $5, $6, 0)", h.Channel, h.Package, h.Reason, tx.Actor(), micros(h.Expires), ev)
		return err
	})
}

// DropHold lets a package go on with the next promotion.
func (s *Store) DropHold(ctx context.Context, channel, pkg string) error {
	if err := auth.Need(ctx, "repo.channel", channel); err != nil {
		return err
	}
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		var n int
		if err := tx.QueryRow("SELECT COUNT(*) FROM repo_hold WHERE channel = $1 AND package = $2 AND until = 0", channel, pkg).Scan(&n); err != nil {
			return err
		}
		if n == 0 {
			return fault.NotFound("hold_unknown", "the channel %.100q does not hold %.100q", channel, pkg).Fix("see `drover channel holds %s`", channel)
		}
		ev, err := event.Append(tx, "channel.unhold", "channel/"+channel, map[string]string{"package": pkg})
		if err != nil {
			return err
		}
		_, err = tx.Exec("UPDATE repo_hold SET until = $1 WHERE channel = $2 AND package = $3 AND until = 0", ev, channel, pkg)
		return err
	})
}

func holdsOf(tx *db.Tx, channel string) (out []Hold, err error) {
	out = []Hold{}
	err = tx.Each(func(scan func(...any) error) error {
		var expires int64
		h := Hold{Channel: channel}
		err := scan(&h.Package, &h.Reason, &h.Actor, &expires, &h.Since)
		h.Expires = db.Time(expires)
		out = append(out, h)
		return err
	}, "SELECT package, reason, actor, expires, since FROM repo_hold WHERE channel = $1 AND until = 0 AND (expires = 0 OR expires > $2) ORDER BY package", channel, tx.Now())
	return out, err
}

// Holds lists what a channel holds.
func (s *Store) Holds(ctx context.Context, channel string) (out []Hold, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error { out, err = holdsOf(tx, channel); return err })
	return out, err
}

// Named is a name of a snapshot.
type Named struct {
	Name     string `json:"name"`
	Snapshot string `json:"snapshot"`
	Reason   string `json:"reason"`
	Since    int64  `json:"since"`
}

// SetName gives a snapshot a name and keeps it: retention never takes it away.
func (s *Store) SetName(ctx context.Context, name, snapshot, reason string) error {
	if err := auth.Need(ctx, "repo.snapshot", name); err != nil {
		return err
	}
	// What looks like an id, or like a channel, would be taken for it.
	if !reName.MatchString(name) || len(name) >= 8 && strings.Trim(name, "0123456789abcdef") == "" {
		return fault.Invalid("name", "%.100q is no name for a snapshot", name).Fix("use a-z 0-9 _ . + -, a letter or digit first, and nothing that could be an id")
	}
	if err := checkNote(reason, time.Time{}); err != nil {
		return err
	}
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		sn, err := s.getSnapshot(tx, snapshot)
		if err != nil {
			return err
		}
		if _, err := channelAt(tx, name, event.Now); err == nil {
			return fault.Conflict("name_taken", "there is a channel %s", name).Fix("give the snapshot another name")
		} else if fault.Code(err) != "channel_unknown" {
			return err
		}
		var had string
		err = tx.QueryRow("SELECT snapshot FROM repo_name WHERE name = $1 AND until = 0", name).Scan(&had)
		switch {
		case err == nil && had == sn.ID:
			return nil
		case err == nil:
			return fault.Conflict("name_taken", "the snapshot %.12s has the name %s", had, name).Fix("take it away first: `drover snapshot unname %s`", name)
		case !db.NoRow(err):
			return err
		}
		ev, err := event.Append(tx, "snapshot.name", "snapshot/"+sn.ID, map[string]string{"name": name, "reason": reason})
		if err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO repo_name (name, snapshot, reason, since, until) VALUES ($1, $2, $3, $4, 0)", name, sn.ID, reason, ev)
		return err
	})
}

// DropName takes a name away.
func (s *Store) DropName(ctx context.Context, name string) error {
	if err := auth.Need(ctx, "repo.snapshot", name); err != nil {
		return err
	}
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		var id string
		err := tx.QueryRow("SELECT snapshot FROM repo_name WHERE name = $1 AND until = 0", name).Scan(&id)
		if db.NoRow(err) {
			return fault.NotFound("name_unknown", "no snapshot has the name %.100q", name).Fix("see `drover snapshot names`")
		}
		if err != nil {
			return err
		}
		ev, err := event.Append(tx, "snapshot.unname", "snapshot/"+id, map[string]string{"name": name})
		if err != nil {
			return err
		}
		_, err = tx.Exec("UPDATE repo_name SET until = $1 WHERE name = $2 AND until = 0", ev, name)
		return err
	})
}

// Names lists the names of snapshots.
func (s *Store) Names(ctx context.Context) ([]Named, error) {
	out := []Named{}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var n Named
			err := scan(&n.Name, &n.Snapshot, &n.Reason, &n.Since)
			out = append(out, n)
			return err
		}, "SELECT name, snapshot, reason, since FROM repo_name WHERE until = 0 ORDER BY name")
	})
	return out, err
}

// Plan is what a promotion would do.
type Plan struct {
	Channel  string       `json:"channel"`
	From     string       `json:"from,omitempty"` // the channel before it in the line
	Was      string       `json:"was,omitempty"`  // the snapshot that it points at
	Snapshot string       `json:"snapshot,omitempty" doc:"the one that it would point at; empty when a hold makes one that is not there yet"`
	Held     []Held       `json:"held"` // what stays because of a hold
	Frozen   *Freeze      `json:"frozen,omitempty"`
	Changes  []Change     `json:"changes"`
	Hosts    []string     `json:"hosts" doc:"hosts that have one of these packages, and not in the newest version that there would be; null for who may not read hosts"`
	Gate     gate.Verdict `json:"gate"`

	snapshot Snapshot
	trees    []*tree
	parts    map[string]string
	made     map[*tree]*tree // of trees: those that a hold makes, not written yet, and what they are like
}

// Held is a source package that a promotion leaves as it is.
type Held struct {
	Source string `json:"source"`
	Hold   Hold   `json:"hold"`
}

// Plan tells what promoting a channel would change, and what the gate says of it.
func (s *Store) Plan(ctx context.Context, channel string) (p Plan, err error) {
	// The gate reads beside what the plan has read: what both channels have left meanwhile may be
	// swept away. Then there is something newer to look at.
	for range 5 {
		if p, err = s.plan(ctx, channel); fault.Code(err) != "chunk_gone" {
			break
		}
	}
	return p, err
}

func (s *Store) plan(ctx context.Context, channel string) (p Plan, err error) {
	p.Channel, p.Held = channel, []Held{}
	var l Line
	var old, now []*tree
	var d gate.Difference
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		var stage int
		if l, stage, err = stageOf(tx, channel); err != nil {
			return err
		}
		if stage == 0 {
			return fault.Conflict("first_stage", "%s is the first stage of its line: it follows %s by itself", channel, strings.Join(l.Parts, ", ")).Fix("promote %s", l.channel(min(1, len(l.Stages)-1)))
		}
		p.From = l.channel(stage - 1)
		from, err := channelAt(tx, p.From, event.Now)
		if err != nil {
			return err
		}
		if p.snapshot, err = s.getSnapshot(tx, from.Snapshot); err != nil {
			return err
		}
		if p.Frozen, err = freezeOf(tx, channel); err != nil {
			return err
		}
		if now, err = s.treesOfSnapshot(tx, from.Snapshot); err != nil {
			return err
		}
		if p.parts, err = partsOf(tx, from.Snapshot); err != nil {
			return err
		}
		had, err := channelAt(tx, channel, event.Now)
		if err != nil && fault.Code(err) != "channel_unknown" {
			return err
		}
		var holds []Hold
		if err == nil {
			p.Was = had.Snapshot
			if old, err = s.treesOfSnapshot(tx, had.Snapshot); err != nil {
				return err
			}
			if holds, err = holdsOf(tx, channel); err != nil {
				return err
			}
		}
		d, err = s.differTrees(tx, old, now)
		p.Held = heldSources(d, holds)
		return err
	})
	if err != nil {
		return p, err
	}
	p.trees = now
	if len(p.Held) > 0 {
		if p.trees, p.made, err = s.holdBack(ctx, l, old, now, p.Held); err != nil {
			return p, err
		}
		err = s.DB.Read(ctx, func(tx *db.Tx) error { d, err = s.differTrees(tx, old, p.trees); return err })
		if err != nil {
			return p, err
		}
	}
	if len(p.made) == 0 {
		sealSnapshot(&p.snapshot, p.trees)
		p.Snapshot = p.snapshot.ID
	}
	p.Changes = changes(d)
	if p.Hosts, err = s.affected(ctx, p.Changes); err != nil {
		return p, err
	}
	p.Gate, err = s.judge(ctx, old, p.trees, d)
	return p, err
}

func partsOf(tx *db.Tx, snapshot string) (map[string]string, error) {
	out := map[string]string{}
	err := tx.Each(func(scan func(...any) error) error {
		var p, of string
		err := scan(&p, &of)
		out[p] = of
		return err
	}, "SELECT part, source FROM repo_snapshot_part WHERE snapshot = $1", snapshot)
	return out, err
}

// heldSources finds the source packages that holds keep back: those that differ between the
// trees and match by their name or by that of a package of theirs.
func heldSources(d gate.Difference, holds []Hold) []Held {
	held := map[string]Held{}
	for _, set := range []map[string]Package{d.Old, d.Now} {
		for _, p := range set {
			for _, h := range holds {
				a, _ := path.Match(h.Package, p.Source)
				b, _ := path.Match(h.Package, p.Name())
				if a || b {
					held[p.Source] = Held{p.Source, h}
				}
			}
		}
	}
	out := []Held{}
	for _, k := range slices.Sorted(maps.Keys(held)) {
		out = append(out, held[k])
	}
	return out
}

// holdBack makes the trees of now with the held source packages as old has them. Those in made
// are only planned: anybody may ask for a plan.
func (s *Store) holdBack(ctx context.Context, l Line, old, now []*tree, held []Held) (out []*tree, made map[*tree]*tree, err error) {
	out, made = slices.Clone(now), map[*tree]*tree{}
	for i, t := range now {
		j := slices.IndexFunc(old, func(o *tree) bool { return o.name == t.name })
		changes := map[string][]member{}
		for _, h := range held {
			changes[h.Source] = nil
			if j < 0 {
				continue
			}
			for _, c := range old[j].chunks {
				if c.First > h.Source || c.Last < h.Source {
					continue
				}
				ms, err := s.members(ctx, c)
				if err != nil {
					return nil, nil, err
				}
				for _, m := range ms {
					if m.Source == h.Source {
						changes[h.Source] = append(changes[h.Source], m)
					}
				}
			}
		}
		// Hosts know the part's key and no other.
		own := &tree{name: t.name, key: t.key, of: l.Name + "/" + t.name}
		if own.chunks, err = set.Edit(t.chunks, changes, own.loading(ctx, s)); err != nil {
			return nil, nil, err
		}
		switch {
		case set.Same(own.chunks, t.chunks):
		case j >= 0 && set.Same(own.chunks, old[j].chunks):
			out[i] = old[j]
		default:
			out[i], made[own] = own, t
		}
	}
	return out, made, nil
}

// makeHeld writes and signs what a plan has made, and gives its snapshot the id.
func (s *Store) makeHeld(ctx context.Context, p *Plan) error {
	for t, like := range p.made {
		f, err := s.formOf(like)
		if err != nil {
			return err
		}
		if err := s.write(ctx, t, f); err != nil {
			return err
		}
		part, _, _ := cutTree(t.name)
		own := wire.OwnKey(t.key)
		if own == "" && like.sum(repomdFile+".asc") != "" {
			return fault.Conflict("hold_unsigned", "a hold makes metadata of %s anew, which is signed by upstream and would not be signed then: hosts would refuse it", t.name).Fix("set its mirror with --regenerate and a --key of drover's, or hold the package back at the hosts")
		}
		if err := s.signTrees(auth.AsSystem(ctx), own, part, []*tree{t}); err != nil {
			return err
		}
		t.seal()
	}
	sealSnapshot(&p.snapshot, p.trees)
	p.Snapshot = p.snapshot.ID
	return nil
}

// formOf is how a tree is written: its codec, and what it has beside its packages.
func (s *Store) formOf(t *tree) (form, error) {
	f := form{Codec: rpm.Zstd}
	if t.codec == rpm.Gzip {
		f.Codec = rpm.Gzip
	}
	repomd, err := s.Blobs.ReadAll(blob.Digest(t.sum(repomdFile)), 1<<20)
	if err != nil {
		return f, err
	}
	datas, err := rpm.ReadRepomd(repomd)
	if err != nil {
		return f, err
	}
	ours := t.codec != "" // else it is as upstream wrote it, and how it is packed says nothing
	for _, d := range datas {
		if d.Type == rpm.KindPrimary.String() && ours {
			i := slices.IndexFunc(t.files, func(f file) bool { return f.Path == d.Href })
			f.Single = i >= 0 && t.files[i].Kind == nil
			f.OpenSums = !f.Single && d.OpenSum != ""
		}
		if d.Type != "group" && d.Type != "modules" && d.Type != "updateinfo" {
			continue
		}
		open, err := s.openFile(t, d.Href)
		if err != nil {
			return f, err
		}
		f.Extra = append(f.Extra, extra{d.Type, open})
	}
	return f, nil
}

// Promote moves a stage of a line to what the stage before it has, but for what is held. It
// moves when the gate lets it, or by force with a reason.
func (s *Store) Promote(ctx context.Context, channel string, mv Move) (p Plan, err error) {
	if err := auth.Need(ctx, "repo.channel", channel); err != nil {
		return p, err
	}
	if mv.Force && strings.TrimSpace(mv.Reason) == "" {
		return p, checkNote("", time.Time{})
	}
	if p, err = s.Plan(ctx, channel); err != nil {
		return p, err
	}
	if p.Was == p.Snapshot {
		return p, nil
	}
	if !p.Gate.OK && !mv.Force {
		return p, fault.Conflict("gate_shut", "%s stays where it is: %s", channel, p.Gate.Summary()).Fix("see `drover channel plan %s`; promote with --force --reason WHY to move it all the same", channel)
	}
	if p.Frozen != nil {
		return p, p.Frozen.refuse()
	}
	if err := s.makeHeld(ctx, &p); err != nil {
		return p, err
	}
	return p, s.DB.Write(ctx, func(tx *db.Tx) error {
		had, err := channelAt(tx, channel, event.Now)
		if err != nil && fault.Code(err) != "channel_unknown" {
			return err
		}
		if had.Snapshot != p.Was {
			return fault.Conflict("channel_moved", "%s was moved by somebody else meanwhile", channel).Fix("look at the plan again: `drover channel plan %s`", channel)
		}
		if err := checkFreeze(tx, channel); err != nil {
			return err
		}
		if err := s.completeTrees(tx, p.trees); err != nil { // a force does not bring what is not here
			return err
		}
		data := map[string]any{"snapshot": p.Snapshot, "was": p.Was, "from": p.From, "gate": p.Gate.Summary()}
		if mv.Reason != "" {
			data["reason"] = mv.Reason
		}
		if !p.Gate.OK {
			data["forced"] = true
		}
		ev, err := event.Append(tx, "channel.promote", "channel/"+channel, data)
		if err != nil {
			return err
		}
		if err := s.keepSnapshot(tx, p.snapshot, p.trees, p.parts, ev); err != nil {
			return err
		}
		return point(tx, channel, p.Snapshot, ev)
	})
}

// Change is a package that is not the same in two snapshots.
type Change struct {
	Name  string   `json:"name"`
	Arch  string   `json:"arch"`
	Trees []string `json:"trees,omitempty"`
	Was   []string `json:"was,omitempty"` // versions
	Now   []string `json:"now,omitempty"`
	Hosts int      `json:"hosts,omitempty"` // that have it, and not in the newest version of now
}

// Kind is "added", "removed", "upgraded", "downgraded" or "changed".
func (c Change) Kind() string {
	switch {
	case len(c.Was) == 0:
		return "added"
	case len(c.Now) == 0:
		return "removed"
	}
	switch n := rpm.CompareEVR(newest(c.Was), newest(c.Now)); {
	case n < 0:
		return "upgraded"
	case n > 0:
		return "downgraded"
	}
	return "changed"
}

// Target is the question for the hosts that have it, and not in the newest version of now.
func (c Change) Target() string {
	if len(c.Now) == 0 {
		return fmt.Sprintf("pkg(%q)", c.Name)
	}
	return fmt.Sprintf("pkg(%q) and pkg(%q) != %q", c.Name, c.Name, newest(c.Now))
}

// newest is the newest of some versions, "" of none.
func newest(vs []string) string {
	if len(vs) == 0 {
		return ""
	}
	return slices.MaxFunc(vs, rpm.CompareEVR)
}

// changes lists what differs, by name and arch.
func changes(d gate.Difference) []Change {
	byName := map[string]*Change{}
	put := func(p Package, now bool) {
		n, err := rpm.ParseNEVRA(p.NEVRA)
		if err != nil {
			return
		}
		k := n.Name + "." + n.Arch
		if byName[k] == nil {
			byName[k] = &Change{Name: n.Name, Arch: n.Arch}
		}
		if now {
			byName[k].Now = append(byName[k].Now, n.EVR())
		} else {
			byName[k].Was = append(byName[k].Was, n.EVR())
		}
	}
	for _, p := range d.Gone() {
		put(p, false)
	}
	for _, p := range d.Fresh() {
		put(p, true)
	}
	out := make([]Change, 0, len(byName))
	for _, k := range slices.Sorted(maps.Keys(byName)) {
		c := *byName[k]
		slices.SortFunc(c.Was, rpm.CompareEVR)
		slices.SortFunc(c.Now, rpm.CompareEVR)
		out = append(out, c)
	}
	return out
}

// gateTrees is trees as the gate sees them.
func gateTrees(ts []*tree) (out []gate.Tree) {
	for _, t := range ts {
		out = append(out, gate.Tree{Arch: t.arch(), Signed: t.key != "", Chunks: t.chunks})
	}
	return out
}

// judge asks the gate about a move.
func (s *Store) judge(ctx context.Context, old, now []*tree, d gate.Difference) (gate.Verdict, error) {
	d.Others = func(of Package, beside map[string]Package) (out []string, err error) {
		err = s.DB.Read(ctx, func(tx *db.Tx) error { out, err = s.others(tx, now, of, beside); return err })
		return out, err
	}
	v, err := s.gate.Judge(ctx, gateTrees(old), gateTrees(now), d)
	if err != nil {
		return v, err
	}
	unlisted, err := s.unlisted(now, d.Fresh())
	if len(unlisted) > 0 {
		v.OK, v.Findings = false, append(v.Findings, unlisted...)
	}
	return v, err
}

// unlisted finds new packages that belong to a stream of a module while no modules.yaml of their
// repositories names them: dnf hides them, or takes them for what they are not.
func (s *Store) unlisted(now []*tree, fresh map[string]Package) (out []gate.Finding, err error) {
	var labeled []rpm.NEVRA
	for _, p := range fresh {
		// A look at the release spares opening every package: builds of modules have it there.
		if !strings.Contains(p.NEVRA, "module") || p.Core == "" {
			continue
		}
		q, err := s.headers(p)
		if err != nil {
			return nil, err
		}
		if q.Header.Has(rpm.Modularity) {
			labeled = append(labeled, q.NEVRA())
		}
	}
	if len(labeled) == 0 {
		return nil, nil
	}
	var all []modules.Docs
	for _, t := range now {
		f, err := s.formOf(t)
		if err != nil {
			return nil, err
		}
		for _, x := range f.Extra {
			if x.typ != "modules" {
				continue
			}
			docs, err := modules.Read(bytes.NewReader(x.open))
			if err != nil {
				return nil, err
			}
			all = append(all, docs)
		}
	}
	docs, _, err := modules.Merge(all...)
	if err != nil {
		return nil, err
	}
	for _, n := range docs.Uncovered(labeled) {
		out = append(out, gate.Finding{Kind: "unlisted", Package: n.String(), Text: n.String() + " belongs to a module, and no modules.yaml names it: dnf would hide it"})
	}
	return out, nil
}

// arch is the arch of whose hosts a tree is one of the repositories; "" for sources and debug
// packages.
func (t *tree) arch() string {
	_, name, _ := cutTree(t.name)
	if name == "source" || strings.HasSuffix(name, "-debug") {
		return ""
	}
	return name
}
