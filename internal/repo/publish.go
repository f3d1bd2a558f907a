package repo

import (
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/build"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/release"
	"drover/internal/rpm"
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

// Run publishes every tag that changed, as soon as it changes, until ctx ends. Tags do not wait
// for each other.
func (s *Store) Run(ctx context.Context) error {
	ctx = auth.AsSystem(ctx)
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
	return nil
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

// state is a tag with its packages, of each source package the build tagged last, at one
// moment.
type state struct {
	release.Tag
	cause    int64 // the newest event that changed it
	revision int64 // the newest event that changed its packages
	rpms     []build.RPM
}

func (s *Store) state(ctx context.Context, tag string) (st state, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		if st.Tag, err = s.Release.At(tx, tag, event.Now); err != nil {
			return err
		}
		if st.cause, err = s.Release.Changed(tx, tag); err != nil {
			return err
		}
		ts, err := s.Release.Latest(tx, tag, event.Now)
		if err != nil {
			return err
		}
		for _, t := range ts {
			rs, err := build.RPMsOf(tx, t.Build)
			if err != nil {
				return err
			}
			st.rpms = append(st.rpms, rs...)
			st.revision = max(st.revision, t.Since)
		}
		return nil
	})
	return st, err
}

// publish makes the snapshot of a tag's present state and moves the tag's channel to it.
//
// Order: signatures are asked for and kept; bytes go into the store; one transaction writes
// the snapshot and moves the pointer. Killed anywhere before that, the old state stands and
// the next round begins again with what is kept.
func (s *Store) publish(ctx context.Context, tag string) error {
	t, err := s.state(ctx, tag)
	if err != nil {
		return err
	}
	pkgs, err := s.signed(ctx, t)
	if err != nil {
		return err
	}
	trees, err := s.trees(ctx, t, pkgs)
	if err != nil {
		return err
	}
	return s.commit(ctx, Snapshot{ID: snapshotID("tag", tag, trees), Kind: "tag", Source: tag, Packages: int64(len(pkgs)), Key: t.Key, Cause: t.cause}, trees)
}

// signed finds the served form of each package, signed with the tag's key. What is missing is
// signed in one batch.
func (s *Store) signed(ctx context.Context, t state) ([]Package, error) {
	rpms := t.rpms
	out := make([]Package, len(rpms))
	var missing []int
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		for i, r := range rpms {
			p, err := scanPackage(tx.QueryRow("SELECT "+packageColumns+" FROM repo_package WHERE header = $1 AND key = $2 ORDER BY created LIMIT 1", r.Header, t.Key).Scan)
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
	if err != nil || len(missing) == 0 {
		return out, err
	}
	heads := make([]blob.Digest, len(missing))
	if t.Key != "" {
		if heads, err = s.sign(ctx, t, missing); err != nil {
			return nil, err
		}
	}
	var fresh []Package
	for n, i := range missing {
		if t.Key == "" {
			heads[n] = rpms[i].Head
		}
		p, _, err := s.describe(heads[n], rpms[i].Core, t.Key)
		if err != nil {
			return nil, err
		}
		out[i] = p
		fresh = append(fresh, p)
	}
	return out, s.DB.Write(ctx, func(tx *db.Tx) error {
		for _, p := range fresh {
			if err := keepPackage(tx, p); err != nil {
				return err
			}
		}
		return nil
	})
}

// sign gets signatures for packages and stores the heads that carry them.
func (s *Store) sign(ctx context.Context, t state, which []int) ([]blob.Digest, error) {
	var rs []SignRequest
	var ps []*rpm.Package
	for _, i := range which {
		r, size, c, err := s.open(t.rpms[i].Head, t.rpms[i].Core)
		if err != nil {
			return nil, err
		}
		p, err := rpm.Read(r, size)
		c.Close() //nolint:errcheck // it was read only
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
	for n := range which {
		head, err := ps[n].Replace(sigs[n])
		if err != nil {
			return nil, err
		}
		if out[n], err = s.Blobs.PutBytes(head); err != nil {
			return nil, err
		}
	}
	return out, nil
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

// trees writes the metadata of a tag's repositories: one for each arch, one for its debug
// packages, one for sources.
func (s *Store) trees(ctx context.Context, t state, pkgs []Package) ([]tree, error) {
	m := map[string]*tree{"source": {name: "source"}}
	for _, a := range t.Arches {
		m[a] = &tree{name: a}
		m[a+"-debug"] = &tree{name: a + "-debug"}
	}
	frags := map[string][]rpm.Fragments{}
	var newest uint64
	slices.SortFunc(pkgs, func(a, b Package) int { return strings.Compare(a.File, b.File) })
	for _, p := range pkgs {
		r, size, c, err := s.open(p.Head, p.Core)
		if err != nil {
			return nil, err
		}
		q, err := rpm.Read(r, size)
		c.Close() //nolint:errcheck // it was read only
		if err != nil {
			return nil, err
		}
		built := q.Header.Int(rpm.BuildTime)
		newest = max(newest, built)
		// The first letters of the id keep two signatures of one file apart.
		at := rpm.Place{PkgID: p.PkgID, Href: path.Join("Packages", p.PkgID[:12], p.File), Size: p.Size, Mtime: p.Mtime, HeaderStart: p.Start, HeaderEnd: p.End}
		f := rpm.Fragments{Primary: rpm.Primary(nil, q, at), Filelists: rpm.Filelists(nil, q.Header, p.PkgID), Other: rpm.Other(nil, q.Header, p.PkgID)}
		for _, name := range treesOf(p, t.Arches) {
			if m[name] == nil {
				continue // of an arch that the tag no longer has
			}
			frags[name] = append(frags[name], f)
			m[name].pkgs = append(m[name].pkgs, entry{path: at.Href, digest: p.PkgID})
		}
	}
	codec := rpm.Zstd
	if t.Codec == "gz" {
		codec = rpm.Gzip
	}
	out := sortedTrees(m)
	repomds := make([][]byte, len(out))
	for i := range out {
		var comps []byte
		if t.Comps != "" {
			comps = []byte(t.Comps)
		}
		files, err := rpm.Metadata(frags[out[i].name], comps, codec)
		if err != nil {
			return nil, err
		}
		repomds[i] = rpm.Repomd(files, t.revision, int64(newest))
		for _, f := range append(files, rpm.MetaFile{Name: repomdFile, Data: repomds[i]}) {
			if err := s.addFile(&out[i], f.Name, f.Data); err != nil {
				return nil, err
			}
		}
	}
	if t.Key == "" {
		return out, nil
	}
	var rs []SignRequest
	for i := range out {
		state, sum, err := rpm.Midstate(repomds[i])
		if err != nil {
			return nil, err
		}
		rs = append(rs, SignRequest{Key: t.Key, Tag: t.Name, Subject: "repomd.xml of " + t.Name + "/" + out[i].name, Digest: sum, State: state})
	}
	sigs, err := s.packets(ctx, rs)
	if err != nil {
		return nil, err
	}
	for i := range out {
		asc, err := rpm.Armor(sigs[i])
		if err != nil {
			return nil, err
		}
		if err := s.addFile(&out[i], repomdFile+".asc", asc); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (s *Store) addFile(t *tree, name string, data []byte) error {
	d, err := s.Blobs.PutBytes(data)
	t.files = append(t.files, entry{path: name, digest: d.String(), size: int64(len(data))})
	return err
}
