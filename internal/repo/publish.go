package repo

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/build"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/release"
	"drover/internal/repo/set"
	"drover/internal/rpm"

	"golang.org/x/sync/errgroup"
)

// Waits before a tag that could not be published is tried again: the first and, each time
// twice as long, the longest; and what a refused signature costs, as only a person can change
// that and every attempt is a line of the ledger.
const (
	firstRetry   = time.Second
	longestRetry = 10 * time.Second
	refusedRetry = 5 * time.Minute
)

// pollTags is how soon a change made through another server is seen.
const pollTags = 5 * time.Second

// pending is a tag whose newest change is not published.
type pending struct {
	tag   string
	cause int64
}

// failure is why a tag could not be published.
type failure struct {
	pending
	err   error
	wait  time.Duration
	again time.Time
}

// Run publishes tags, moves the first stages of lines, and keeps what was counted, until
// ctx ends.
func (s *Store) Run(ctx context.Context) error {
	ctx = auth.AsSystem(ctx)
	var loops sync.WaitGroup
	loops.Go(func() { s.follow(ctx) })
	loops.Go(func() { s.sweeping(ctx) })
	loops.Go(func() { s.counts.Run(ctx) })
	s.publishing(ctx)
	loops.Wait()
	return nil
}

// publishing publishes every tag that changed, as soon as it changes. Tags do not wait for each
// other.
func (s *Store) publishing(ctx context.Context) {
	running, failed := map[string]bool{}, map[string]failure{}
	ended := make(chan failure)
	end := func(f failure) {
		delete(running, f.tag)
		if f.err == nil || ctx.Err() != nil {
			delete(failed, f.tag)
			return
		}
		was := failed[f.tag]
		if was.err == nil || was.err.Error() != f.err.Error() {
			s.Log.Error("a tag was not published; it is tried again", "tag", f.tag, "err", f.err)
		}
		f.wait = min(max(2*was.wait, firstRetry), longestRetry)
		if fault.Code(f.err) == "sign_refused" {
			f.wait = refusedRetry
		}
		f.again = time.Now().Add(f.wait)
		failed[f.tag] = f
	}
	for ctx.Err() == nil {
		changed := s.DB.Changed()
		due, err := s.due(ctx)
		if err != nil && ctx.Err() == nil {
			s.Log.Error("tags to publish", "err", err)
		}
		next := pollTags
		for _, p := range due {
			if f := failed[p.tag]; f.cause == p.cause && time.Until(f.again) > 0 {
				next = min(next, time.Until(f.again))
				continue
			}
			if !running[p.tag] {
				running[p.tag] = true
				go func() { ended <- failure{pending: p, err: s.publish(ctx, p.tag)} }()
			}
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case f := <-ended:
			end(f)
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
	for len(running) > 0 {
		end(<-ended)
	}
}

func (s *Store) due(ctx context.Context) ([]pending, error) {
	tags, err := s.Release.Tags(ctx)
	if err != nil {
		return nil, err
	}
	var out []pending
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		for _, t := range tags {
			cause, err := s.Release.Changed(tx, t.Name)
			if err != nil {
				return err
			}
			have, err := published(tx, t.Name)
			if err != nil {
				return err
			}
			if cause > have {
				out = append(out, pending{t.Name, cause})
			}
		}
		return nil
	})
	return out, err
}

// Published waits until a tag's newest change is published: a build must not see an older
// state than its submitter.
func (s *Store) Published(ctx context.Context, tag string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		changed := s.DB.Changed()
		due, err := s.due(ctx)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(due, func(p pending) bool { return p.tag == tag }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fault.Unavailable("not_published", "the newest state of the tag %s is not published within a minute", tag).
				Fix("look at the server's log and at `drover sign status`: it may wait for a signature")
		case <-changed:
		}
	}
}

// change is what changed in a tag since its newest snapshot, at one moment.
type change struct {
	release.Tag
	cause int64  // the newest event that changed it
	was   string // the snapshot that it goes on from, or "" to begin anew
	trees []*tree
	rpms  []build.RPM // that sources has now
	// Source packages whose builds in the tag changed; all of them when it begins anew.
	sources map[string]bool
}

// changed reads what of a tag has to be published. Of each source package a tag holds the
// build that was tagged last.
func (s *Store) changed(ctx context.Context, tag string) (c change, err error) {
	c.sources = map[string]bool{}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		if c.Tag, err = s.Release.At(tx, tag, event.Now); err != nil {
			return err
		}
		if c.cause, err = s.Release.Changed(tx, tag); err != nil {
			return err
		}
		var since int64
		err := tx.QueryRow("SELECT id, cause FROM repo_snapshot WHERE source = $1 AND kind = 'tag' ORDER BY cause DESC LIMIT 1", tag).Scan(&c.was, &since)
		if err != nil && !db.NoRow(err) {
			return err
		}
		now := s.Release.Latest
		if c.was != "" && c.Since <= since {
			if c.trees, err = s.treesOfSnapshot(tx, c.was); err != nil {
				return err
			}
			touched, err := s.Release.ChangedSince(tx, tag, since)
			if err != nil {
				return err
			}
			before, err := s.Release.LatestOf(tx, tag, since, touched)
			if err != nil {
				return err
			}
			// A build that is gone may have had another name for its source package.
			for _, t := range before {
				rs, err := build.RPMsOf(tx, t.Build)
				if err != nil {
					return err
				}
				c.add(rs)
			}
			c.rpms = nil
			now = func(tx *db.Tx, tag string, at int64) ([]release.Tagged, error) {
				return s.Release.LatestOf(tx, tag, at, touched)
			}
		} else {
			c.was = ""
		}
		ts, err := now(tx, tag, event.Now)
		if err != nil {
			return err
		}
		for _, t := range ts {
			rs, err := build.RPMsOf(tx, t.Build)
			if err != nil {
				return err
			}
			c.add(rs)
		}
		return nil
	})
	return c, err
}

func (c *change) add(rs []build.RPM) {
	for _, r := range rs {
		if r.Arch == "src" || r.Arch == "nosrc" {
			c.sources[r.Name] = true
		}
	}
	c.rpms = append(c.rpms, rs...)
}

// publish makes the snapshot of a tag's present state and moves the tag's channel to it.
//
// Order: signatures are asked for and kept; bytes go into the store; one transaction writes
// the snapshot and moves the pointer. Killed anywhere before that, the old state stands and
// the next round begins again with what is kept.
func (s *Store) publish(ctx context.Context, tag string) error {
	c, err := s.changed(ctx, tag)
	if err != nil {
		return err
	}
	pkgs, err := s.signed(ctx, c)
	if err != nil {
		return err
	}
	trees, err := s.tagTrees(ctx, c, pkgs)
	if err != nil {
		return err
	}
	sn := Snapshot{Kind: "tag", Source: tag, Key: c.Key, Cause: c.cause}
	sealSnapshot(&sn, trees)
	if err := s.commit(ctx, sn, trees); err != nil {
		return err
	}
	for _, t := range trees {
		if t.fresh {
			s.remember(*t)
		}
	}
	if sn.Packages > 0 && len(c.rpms) > manyRPMs {
		// A whole tag was made; the changes to come need little of the memory that this took.
		debug.FreeOSMemory()
	}
	return nil
}

// manyRPMs is after how many packages at once the memory for them is given back.
const manyRPMs = 1000

// signed finds the served form of each package, signed with the tag's key. What is missing is
// made, and kept, some packages at a time: what was signed before a failure need not be again.
func (s *Store) signed(ctx context.Context, t change) ([]Package, error) {
	out := make([]Package, len(t.rpms))
	var missing []int
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		for i, r := range t.rpms {
			p, err := scanPackage(tx.QueryRow("SELECT "+packageColumns+" FROM repo_package WHERE header = $1 AND key = $2 AND mtime > 0 AND head <> '' ORDER BY created LIMIT 1", r.Header, t.Key).Scan)
			if db.NoRow(err) {
				missing = append(missing, i)
				continue
			}
			if err != nil {
				return err
			}
			out[i] = p
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// While one group is being written the next is made.
	var writing errgroup.Group
	for which := range slices.Chunk(missing, signedAtOnce) {
		made, err := s.makeSigned(ctx, t, which, out)
		if err = errors.Join(writing.Wait(), err); err != nil {
			return nil, err
		}
		writing.Go(func() error {
			return s.DB.Write(ctx, func(tx *db.Tx) error {
				for n, i := range which {
					if err := keepPacked(tx, out[i], made[n]); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	return out, writing.Wait()
}

// signedAtOnce is how many packages are signed and read before they are kept. Their heads are in
// memory meanwhile.
const signedAtOnce = 500

// makeSigned makes the served form of some packages, and what metadata says of them, packed.
func (s *Store) makeSigned(ctx context.Context, t change, which []int, out []Package) (entries [][]byte, err error) {
	heads := make([]blob.Digest, len(which))
	for n, i := range which {
		heads[n] = t.rpms[i].Head
	}
	if t.Key != "" {
		if heads, err = s.sign(ctx, t, which); err != nil {
			return nil, err
		}
	}
	entries = make([][]byte, len(which))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(packers)
	for n, i := range which {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			p, entry, err := s.describe(heads[n], t.rpms[i].Core, t.Key)
			out[i], entries[n] = p, s.squeeze(entry)
			return err
		})
	}
	return entries, g.Wait()
}

// sign gets signatures for packages and stores the heads that carry them.
func (s *Store) sign(ctx context.Context, t change, which []int) ([]blob.Digest, error) {
	var rs []SignRequest
	var ps []*rpm.Package
	for _, i := range which {
		p, err := s.headers(Package{Head: t.rpms[i].Head, Core: t.rpms[i].Core})
		if err != nil {
			return nil, err
		}
		state, sum, err := rpm.Midstate(p.Header.Raw())
		if err != nil {
			return nil, err
		}
		// What is signed is what the build recorded, whatever lies on the disk now.
		if sum != t.rpms[i].Header {
			return nil, fault.Unavailable("package_damaged", "%s is not what build %d recorded; it is not signed", t.rpms[i].File, t.rpms[i].Build).Fix("restore the blob %s from a backup", t.rpms[i].Core)
		}
		rs = append(rs, SignRequest{Key: t.Key, Tag: t.Name, Subject: p.NEVRA().String(), Digest: sum, State: state})
		ps = append(ps, p)
	}
	sigs, err := s.packets(ctx, rs)
	if err != nil {
		return nil, err
	}
	out := make([]blob.Digest, len(which))
	batch := s.Blobs.Batch()
	defer batch.Discard() //nolint:errcheck // after a Commit there is nothing to discard
	for n := range which {
		head, err := ps[n].Replace(sigs[n])
		if err != nil {
			return nil, err
		}
		if out[n], err = batch.PutBytes(head); err != nil {
			return nil, err
		}
	}
	return out, batch.Commit()
}

// signWait is how long publishing waits for the signer before it gives other tags a turn.
const signWait = time.Minute

func (s *Store) packets(ctx context.Context, rs []SignRequest) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, signWait)
	defer cancel()
	return s.Signer.Packets(ctx, rs)
}

// treesOf tells in which trees of a tag a package belongs.
func treesOf(p Package, arches []string) []string {
	if p.Arch == "src" || p.Arch == "nosrc" {
		return []string{"source"}
	}
	name, _ := rpm.ParseNEVRA(p.NEVRA)
	debug := ""
	if strings.HasSuffix(name.Name, "-debuginfo") || strings.HasSuffix(name.Name, "-debugsource") {
		debug = "-debug"
	}
	if p.Arch != "noarch" {
		return []string{p.Arch + debug}
	}
	var out []string
	for _, a := range arches {
		out = append(out, a+debug)
	}
	return out
}

// tagTrees makes a tag's repositories: one for each arch, one for its debug packages, one for
// sources. Those that the change does not touch stay what they are.
func (s *Store) tagTrees(ctx context.Context, c change, pkgs []Package) ([]*tree, error) {
	names := []string{"source"}
	for _, a := range c.Arches {
		names = append(names, a, a+"-debug")
	}
	slices.Sort(names)
	now := map[string][]member{}
	for _, p := range pkgs {
		for _, name := range treesOf(p, c.Arches) {
			now[name] = append(now[name], member{Package: p, Href: p.Location()})
		}
	}
	f := form{Codec: rpm.Zstd, Single: c.SingleFrame, OpenSums: c.OpenChecksum}
	if c.Codec == "gz" {
		f.Codec = rpm.Gzip
	}
	if c.Comps != "" {
		f.Extra = append(f.Extra, extra{"group", []byte(c.Comps)})
	}
	var out, fresh []*tree
	for _, name := range names {
		t := &tree{name: name, key: c.Key, of: c.Name + "/" + name}
		changes := map[string][]member{}
		before := slices.IndexFunc(c.trees, func(t *tree) bool { return t.name == name })
		if before >= 0 {
			t.chunks = c.trees[before].chunks
			for source := range c.sources {
				changes[source] = nil
			}
		}
		for _, m := range now[name] {
			changes[m.Source] = append(changes[m.Source], m)
		}
		was := t.chunks
		var err error
		if t.chunks, err = set.Edit(was, changes, t.loading(ctx, s)); err != nil {
			return nil, err
		}
		if before >= 0 && set.Same(was, t.chunks) {
			out = append(out, c.trees[before])
			continue
		}
		if err := s.write(ctx, t, f); err != nil {
			return nil, err
		}
		out = append(out, t)
		fresh = append(fresh, t)
	}
	if err := s.signTrees(ctx, c.Key, c.Name, fresh); err != nil {
		return nil, err
	}
	for _, t := range fresh {
		t.seal()
	}
	return out, nil
}

// signTrees signs the repomd.xml of trees. The same content is signed once by a key for a tag: the same
// packages are the same snapshot again, also when they come about a second time.
func (s *Store) signTrees(ctx context.Context, key, tag string, ts []*tree) error {
	if key == "" || len(ts) == 0 {
		return nil
	}
	var rs []SignRequest
	var to []*tree
	for _, t := range ts {
		d := t.sum(repomdFile)
		var had blob.Digest
		err := s.DB.Read(ctx, func(tx *db.Tx) error {
			return tx.QueryRow("SELECT digest FROM repo_signature WHERE repomd = $1 AND key = $2 AND tag = $3", d, key, tag).Scan(&had)
		})
		if err == nil {
			in, err := s.Blobs.Stat(had)
			if err != nil {
				return err
			}
			t.files = append(t.files, file{Path: repomdFile + ".asc", Sum: had.String(), Size: in.Size})
			continue
		}
		if !db.NoRow(err) {
			return err
		}
		repomd, err := s.Blobs.ReadAll(blob.Digest(d), 1<<20)
		if err != nil {
			return err
		}
		state, sum, err := rpm.Midstate(repomd)
		if err != nil {
			return err
		}
		rs = append(rs, SignRequest{Key: key, Tag: tag, Subject: "repomd.xml of " + tag + "/" + t.name, Digest: sum, State: state})
		to = append(to, t)
	}
	if len(rs) == 0 {
		return nil
	}
	sigs, err := s.packets(ctx, rs)
	if err != nil {
		return err
	}
	for i, t := range to {
		asc, err := rpm.Armor(sigs[i])
		if err != nil {
			return err
		}
		if err := s.addFile(t, repomdFile+".asc", asc); err != nil {
			return err
		}
		t.signed = tag
	}
	return nil
}
