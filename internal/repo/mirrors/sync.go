package mirrors

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/durable"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/fetch"
	"drover/internal/repo"
	"drover/internal/repo/set"
	"drover/internal/repo/upstream"
	"drover/internal/repo/wire"
	"drover/internal/rpm"
	"drover/internal/rpm/modules"
)

// tries is how often a sync begins when upstream changes meanwhile.
const tries = 4

// A mirror is worked on by one server at a time, which says so again and again.
const (
	lease      = time.Minute
	leaseRenew = 20 * time.Second
)

// Sync copies a mirror's upstream into a snapshot and moves the channel to it. Everything is
// checked before anything counts; what is in the store already is not fetched again, so a
// sync that was cut off goes on.
func (s *Store) Sync(ctx context.Context, name string, say func(Progress)) (id string, err error) {
	return s.sync(ctx, name, false, say)
}

// SyncBack is Sync of an upstream that may have gone back, this time.
func (s *Store) SyncBack(ctx context.Context, name string, say func(Progress)) (id string, err error) {
	return s.sync(ctx, name, true, say)
}

func (s *Store) sync(ctx context.Context, name string, rollback bool, say func(Progress)) (id string, err error) {
	if err := auth.Need(ctx, "repo.mirror", name); err != nil {
		return "", err
	}
	y, end, err := s.begin(ctx, name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, end()) }()
	y.rollback, y.say = rollback, say
	for n := range tries {
		if err = y.pause(n); err != nil {
			break
		}
		err = y.once()
		if c := fault.Code(err); c != "mirror_moved" && c != "swept" {
			break // only an upstream that changed meanwhile is worth another look
		}
	}
	if cause := context.Cause(y.ctx); err != nil && cause != nil && ctx.Err() == nil {
		err = cause
	}
	return y.next.Snapshot, errors.Join(err, y.record(err))
}

// syncing is a sync that is under way.
type syncing struct {
	*Store
	ctx      context.Context
	began    time.Time
	m        Mirror
	mem      memory // as it was
	next     memory // as it will be
	up       *upstream.Upstream
	rollback bool
	fetched  atomic.Int64
	say      func(Progress)
}

// pause waits before try n; the first one waits for nothing.
func (y *syncing) pause(n int) error {
	if n == 0 {
		return nil
	}
	select {
	case <-y.ctx.Done():
		return y.ctx.Err()
	case <-time.After(time.Duration(n*n) * y.Retry):
		return nil
	}
}

func (s *Store) fetchDir() string { return filepath.Join(s.Repo.Dir, "fetch") }

// Node is this server's name for leases: that of its directory, so that after a kill it takes up
// its own work at once. It is made when there is none yet.
func (s *Store) Node() (string, error) {
	name := filepath.Join(s.Repo.Dir, "node")
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		if err := durable.MkdirAll(s.Repo.Dir, 0o700); err != nil {
			return "", err
		}
		b = []byte(rand.Text())
		err = durable.WriteFile(name, b, 0o600)
	}
	return string(b), err
}

// begin takes a mirror for this server and this call. end lets go of it.
func (s *Store) begin(ctx context.Context, name string) (y *syncing, end func() error, err error) {
	busy := fault.Conflict("mirror_busy", "the mirror %s is being synced", name).Fix("wait for it to end")
	s.mu.Lock()
	taken := s.syncing[name]
	s.syncing[name] = true
	s.mu.Unlock()
	if taken {
		return nil, nil, busy
	}
	leave := func() {
		s.mu.Lock()
		delete(s.syncing, name)
		s.mu.Unlock()
	}
	y = &syncing{Store: s, began: time.Now()}
	node, err := s.Node()
	take := func(ctx context.Context) error {
		return s.db.Write(ctx, func(tx *db.Tx) error {
			n, err := tx.Exec("UPDATE repo_mirror_state SET owner = $1, lease = $2 WHERE name = $3 AND (owner = $1 OR lease < $4)", node, tx.Now()+lease.Microseconds(), name, tx.Now())
			if err == nil && n == 0 {
				err = busy
			}
			return err
		})
	}
	if err == nil {
		err = s.db.Write(ctx, func(tx *db.Tx) error {
			if y.m, y.mem, err = getMirror(tx, name); err != nil {
				return err
			}
			_, err := tx.Exec("INSERT INTO repo_mirror_state (name, state, due, owner, lease) VALUES ($1, '{}', 0, '', 0) ON CONFLICT (name) DO NOTHING", name)
			return err
		})
	}
	if err == nil {
		err = take(ctx)
	}
	if err != nil {
		leave()
		return nil, nil, err
	}
	kctx, lost := context.WithCancelCause(ctx)
	y.ctx = kctx
	var renewing sync.WaitGroup
	renewing.Go(func() {
		tick := time.NewTicker(leaseRenew)
		defer tick.Stop()
		for last := time.Now(); ; {
			select {
			case <-kctx.Done():
				return
			case <-tick.C:
			}
			if err := take(kctx); err == nil {
				last = time.Now()
			} else if fault.Code(err) == "mirror_busy" || time.Since(last) > lease {
				lost(err) // another server works on it now
				return
			}
		}
	})
	return y, func() error {
		lost(nil)
		renewing.Wait()
		defer leave()
		return s.db.Write(context.WithoutCancel(ctx), func(tx *db.Tx) error {
			_, err := tx.Exec("UPDATE repo_mirror_state SET lease = 0 WHERE name = $1 AND owner = $2", name, node)
			return err
		})
	}, nil
}

// record writes down what came of a sync, unless nothing did. A commit has written its own.
func (y *syncing) record(failed error) error {
	now := y.db.Now()
	st := y.next
	if failed != nil {
		st = y.mem
		st.Failures++
		st.Outcome = clean(failed)
	}
	st.Synced = db.Time(now)
	return y.db.Write(context.WithoutCancel(y.ctx), func(tx *db.Tx) error {
		if failed != nil {
			if _, err := event.Append(tx, "mirror.failed", "mirror/"+y.m.Name, map[string]string{"error": st.Outcome, "code": fault.Code(failed)}); err != nil {
				return err
			}
		}
		return keepState(tx, y.m, st, y.due(now, st.Failures))
	})
}

// clean is an error as a row holds it.
func clean(err error) string {
	s := strings.ToValidUTF8(strings.ReplaceAll(fault.As(err).Error(), "\x00", ""), "?")
	return strings.ToValidUTF8(s[:min(len(s), 2000)], "")
}

func keepState(tx *db.Tx, m Mirror, st memory, due int64) error {
	text, err := json.Marshal(st)
	if err != nil {
		return err
	}
	_, err = tx.Exec("UPDATE repo_mirror_state SET state = $1, due = $2 WHERE name = $3", string(text), due, m.Name)
	return err
}

// once looks at upstream and copies what is new.
func (y *syncing) once() (err error) {
	keys, err := wire.ReadKeys(y.m.Keys)
	if err != nil {
		return err
	}
	if y.up, err = upstream.Open(y.fetching(), y.m.Source, y.Secrets, keys); err != nil {
		return err
	}
	defer y.up.Close()
	had := y.mem.Seen
	if y.mem.From != y.m.Address() {
		had = upstream.Seen{} // another upstream has times of its own
	}
	known, err := y.stands()
	if err != nil {
		return err
	}
	if !known { // the same repomd.xml has to be worked on again
		had.Mark, had.Repomd = fetch.Mark{}, ""
	}
	now := time.UnixMicro(y.db.Now())
	st, err := y.up.Look(y.ctx, had, now, y.rollback)
	if err != nil {
		return err
	}
	y.next = y.mem
	y.next.Outcome, y.next.Failures, y.next.Good, y.next.Warning = "ok", 0, now, ""
	y.next.From, y.next.By, y.next.Seen = y.m.Address(), y.m.Since, st.Seen
	y.next.Repomd, y.next.Signed = st.Seen.Repomd, st.Seen.Signed
	if st.Stamp > 0 {
		y.next.Upstream = time.Unix(st.Stamp, 0)
	}
	if !st.Unchanged {
		if err := y.copy(st); err != nil {
			return err
		}
	}
	last := cmp.Or(y.next.Upstream, y.next.Changed)
	if age := now.Sub(last); y.m.MaxAge > 0 && !last.IsZero() && age > time.Duration(y.m.MaxAge)*time.Second {
		y.next.Warning = strings.TrimPrefix(y.next.Warning+"; ", "; ") + fmt.Sprintf("upstream has not changed for %s: somebody may hide updates", age.Round(time.Hour))
	}
	return nil
}

// stands tells whether the channel still is where the last sync put it, by the same
// configuration.
func (y *syncing) stands() (bool, error) {
	c, err := y.Repo.Channel(y.ctx, y.m.Name, "")
	if fault.Code(err) == "channel_unknown" {
		return false, nil
	}
	return c.Snapshot == y.mem.Snapshot && y.mem.By == y.m.Since, err
}

// copy makes a snapshot of what repomd.xml says now.
func (y *syncing) copy(st upstream.State) error {
	datas := st.Files
	if y.m.regenerated() {
		datas = slices.DeleteFunc(slices.Clone(datas), func(d rpm.Data) bool { return !slices.Contains(carried(), d.Type) })
	}
	metas, err := y.up.Metadata(y.ctx, y.Repo.Blobs, datas)
	if err != nil {
		return err
	}
	at := map[string]upstream.File{}
	for i, d := range datas {
		at[d.Type] = metas[i]
	}
	pkgs, docs, err := y.wanted(at)
	if err != nil {
		return err
	}
	ms, err := y.packages(pkgs, at)
	if err != nil {
		return err
	}
	d, err := y.Repo.NewDraft("mirror", y.m.Name, y.m.Arch, y.m.keyNames(), ms)
	if err != nil {
		return err
	}
	if y.m.regenerated() {
		err = y.regenerate(d, ms, docs, at)
	} else {
		err = passThrough(d, st, metas)
	}
	if err != nil {
		return err
	}
	if y.m.Tree {
		files, err := y.up.Tree(y.ctx, y.Repo.Blobs)
		if err != nil {
			return err
		}
		for _, f := range files {
			d.Add(f.Path, f.Digest, f.Size)
		}
	}
	if err := y.up.Still(y.ctx, upstream.RepomdFile, st.Repomd); err != nil {
		return err
	}
	return y.commit(d)
}

// carried are the metadata files that go into metadata which is made anew.
func carried() []string {
	return []string{"primary", "filelists", "other", "group", "modules", "updateinfo"}
}

// commit writes snapshot, channel and what is remembered, in one transaction, if this server
// still has the mirror.
func (y *syncing) commit(d *repo.Draft) error {
	y.next.Snapshot, y.next.Changed = d.Seal(), y.next.Good
	y.next.Fetched, y.next.Took = y.fetched.Load(), time.Since(y.began).Seconds()
	node, err := y.Node()
	if err != nil {
		return err
	}
	return y.db.Write(y.ctx, func(tx *db.Tx) error {
		var owner string
		if err := tx.QueryRow("SELECT owner FROM repo_mirror_state WHERE name = $1", y.m.Name).Scan(&owner); err != nil || owner != node {
			return errors.Join(err, fault.Conflict("mirror_busy", "another server has taken the mirror %s over", y.m.Name).Fix("wait for it to end"))
		}
		if err := d.Keep(tx, map[string]any{"upstream": y.next.Repomd}); err != nil {
			return err
		}
		return keepState(tx, y.m, y.next, y.due(tx.Now(), 0))
	})
}

// passThrough gives the repository upstream's own files.
func passThrough(d *repo.Draft, st upstream.State, metas []upstream.File) error {
	if err := d.AddBytes(upstream.RepomdFile, st.Repomd); err != nil {
		return err
	}
	if st.Asc != nil {
		if err := d.AddBytes(upstream.RepomdFile+".asc", st.Asc); err != nil {
			return err
		}
	}
	for _, f := range metas {
		d.Add(f.Path, f.Digest, f.Size)
	}
	return nil
}

// regenerate makes metadata of what was kept: groups as they are, modules and errata of which a
// package is left.
func (y *syncing) regenerate(d *repo.Draft, ms []set.Member, docs modules.Docs, at map[string]upstream.File) error {
	have := map[rpm.NEVRA]bool{}
	for _, m := range ms {
		if n, err := rpm.ParseNEVRA(m.NEVRA); err == nil {
			have[n] = true
		}
	}
	has := func(n rpm.NEVRA) bool { return have[n] }
	more := map[string][]byte{}
	if g, ok := at["group"]; ok {
		var open bytes.Buffer
		if err := y.unpacked(g, func(r io.Reader) error { _, err := io.Copy(&open, io.LimitReader(r, 16<<20)); return err }); err != nil {
			return err
		}
		if _, err := rpm.ReadComps(bytes.NewReader(open.Bytes())); err != nil {
			return err
		}
		more["group"] = open.Bytes()
	}
	if left := docs.Filter(has); len(left) > 0 {
		more["modules"] = left.YAML()
	}
	if u, ok := at["updateinfo"]; ok {
		var list []rpm.Update
		err := y.blob(u.Digest, func(r io.Reader) error {
			return rpm.ReadUpdateinfo(r, func(u rpm.Update) error {
				if left, some := u.Filter(has); some {
					list = append(list, left)
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
		more["updateinfo"] = rpm.UpdateinfoXML(list)
	}
	return d.Write(y.ctx, y.m.Key, carried(), more)
}

func (y *syncing) blob(d blob.Digest, fn func(io.Reader) error) error {
	b, err := y.Repo.Blobs.Get(d)
	if err != nil {
		return err
	}
	defer b.Close()
	return fn(b)
}

func (y *syncing) unpacked(f upstream.File, fn func(io.Reader) error) error {
	return y.blob(f.Digest, func(r io.Reader) error {
		in, done, err := rpm.Open(r)
		if err != nil {
			return err
		}
		defer done()
		return fn(in)
	})
}

// wanted reads which packages there are, and gives those that the filter takes.
func (y *syncing) wanted(at map[string]upstream.File) (pkgs []rpm.PrimaryPackage, docs modules.Docs, err error) {
	err = y.blob(at["primary"].Digest, func(r io.Reader) error { pkgs, err = upstream.Packages(r); return err })
	if err != nil {
		return nil, nil, err
	}
	if f, ok := at["modules"]; ok && y.m.regenerated() {
		if err = y.blob(f.Digest, func(r io.Reader) error { docs, err = modules.Read(r); return err }); err != nil {
			return nil, nil, err
		}
	}
	pkgs = y.m.Filter.Apply(pkgs, docs)
	if twice := upstream.Twice(pkgs); len(twice) > 0 {
		y.next.Warning = fmt.Sprintf("%d packages are there twice with different content, the first: %s", len(twice), twice[0])
	}
	return pkgs, docs, nil
}

// packages gives the packages with their places, after those that are not here have been
// fetched, or noted when they are fetched on demand.
func (y *syncing) packages(pkgs []rpm.PrimaryPackage, at map[string]upstream.File) ([]set.Member, error) {
	ms := make([]set.Member, len(pkgs))
	for i, p := range pkgs {
		ms[i].Href = p.Href
	}
	todo, err := y.here(pkgs, ms)
	if err != nil {
		return nil, err
	}
	var words *upstream.Words
	if y.m.regenerated() || y.m.OnDemand {
		want := map[string]bool{}
		for _, i := range todo {
			want[pkgs[i].Sum] = true
		}
		if len(want) > 0 {
			if err := durable.MkdirAll(y.fetchDir(), 0o700); err != nil {
				return nil, err
			}
			words, err = upstream.ReadWords(y.fetchDir(), want, func(k rpm.Kind) (io.ReadCloser, error) { return y.Repo.Blobs.Get(at[k.String()].Digest) })
			if err == nil {
				defer words.Close()
			} else if words = nil; y.m.OnDemand || fault.Code(err) != "repodata" {
				return nil, err // else the packages' own headers do
			}
		}
	}
	if y.m.OnDemand {
		return ms, y.note(pkgs, ms, todo, words)
	}
	return ms, y.fetch(pkgs, ms, todo, words)
}

// here fills in the packages that are here, and gives the numbers of the others. Packages whose
// signature nobody has checked for this mirror are checked.
func (y *syncing) here(pkgs []rpm.PrimaryPackage, ms []set.Member) (todo []int, err error) {
	before, err := y.Repo.PlacesOf(y.ctx, y.mem.Snapshot, y.m.Arch)
	if err != nil {
		return nil, err
	}
	byID := map[string][]int{}
	var ids []string
	for i, p := range pkgs {
		id := p.Sum
		if p.Algo != "sha256" {
			if id, err = y.same(p, before); err != nil {
				return nil, err
			}
		}
		if id != "" {
			byID[id] = append(byID[id], i)
			ids = append(ids, id)
		}
	}
	for part := range slices.Chunk(ids, 2000) {
		err := y.db.Read(y.ctx, func(tx *db.Tx) error {
			return repo.PackagesByID(tx, part, func(p repo.Package) {
				for _, i := range byID[p.PkgID] {
					ms[i].Package = p
				}
			})
		})
		if err != nil {
			return nil, err
		}
	}
	checked := y.m.VerifyPackages && y.mem.By == y.m.Since
	for i, p := range pkgs {
		m := &ms[i]
		present := m.PkgID != "" && m.Core != ""
		if present {
			if present, err = y.Repo.Blobs.Has(m.Core); err == nil && present && m.Head != "" {
				present, err = y.Repo.Blobs.Has(m.Head)
			}
			if err != nil {
				return nil, err
			}
		}
		if present && y.m.VerifyPackages && (!checked || before[p.Href] != m.PkgID) {
			if err := y.verify(p, m.Package); err != nil {
				return nil, err
			}
		}
		if !present && (m.PkgID == "" || !y.m.OnDemand) {
			todo = append(todo, i)
		}
	}
	return todo, nil
}

// verify checks the signature of a package that is here.
func (y *syncing) verify(w rpm.PrimaryPackage, p repo.Package) error {
	r, size, c, err := y.Repo.Open(p)
	if err != nil {
		return err
	}
	defer c.Close()
	q, err := rpm.Read(r, size)
	if err != nil {
		return err
	}
	return upstream.CheckSignature(q, w, y.up.Keys)
}

// same finds a package that an old repository names by another checksum than sha256: the one
// that lay there before, if it still is it.
func (y *syncing) same(p rpm.PrimaryPackage, before map[string]string) (string, error) {
	had, ok := before[p.Href]
	if !ok {
		return "", nil
	}
	d, err := y.Repo.Blobs.Get(blob.Digest(had))
	if fault.Code(err) == "blob_unknown" {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer d.Close()
	if d.Size() != p.Size {
		return "", nil
	}
	sum, err := upstream.Sum(p.Algo, d)
	if err != nil || sum != p.Sum {
		return "", err
	}
	return had, nil
}

// mirrored is a package as a mirror's metadata has it, kept whole.
func mirrored(w rpm.PrimaryPackage, pkgid string, t rpm.Template) repo.Package {
	return repo.Package{PkgID: pkgid, Header: pkgid, NEVRA: w.NEVRA.String(), File: w.NEVRA.File(), Arch: w.Arch, Source: set.SourceOf(w.NEVRA, w.Source), Size: w.Size,
		Start: w.HeaderStart, End: w.HeaderEnd, Mtime: cmp.Or(w.FileTime, w.BuildTime), Built: w.BuildTime, Entry: repo.EntryID(t)}
}

// arrived is a package that has come and is right.
type arrived struct {
	repo.Package
	entry rpm.Template
}

// takePackage checks a package file that has come and puts it into the batch.
func (y *syncing) takePackage(ctx context.Context, w rpm.PrimaryPackage, f *os.File, b *blob.Batch, words bool) (a arrived, err error) {
	info, err := f.Stat()
	if err != nil {
		return a, err
	}
	keys := y.up.Keys
	if !y.m.VerifyPackages {
		keys = nil
	}
	q, err := upstream.CheckPackage(f, info.Size(), w, keys)
	if err != nil {
		return a, err
	}
	var o blob.PutOptions
	if w.Algo == "sha256" {
		o.Expect = blob.Digest(w.Sum)
	}
	var d blob.Digest
	if y.up.Near() {
		d, _, err = b.Adopt(ctx, f, o, y.m.Link && y.up.Local() && w.Algo == "sha256")
	} else {
		d, _, err = b.Put(ctx, io.NewSectionReader(f, 0, info.Size()), o)
	}
	if err != nil {
		return a, err
	}
	if !words {
		a.entry = rpm.NewTemplate(q)
	}
	w.Size, w.HeaderStart, w.HeaderEnd, w.BuildTime = info.Size(), q.HeaderStart, q.HeaderEnd, int64(q.Header.Int(rpm.BuildTime))
	if w.Source == "" && !q.Header.IsSource() {
		w.Source = q.Header.String(rpm.SourceRPM)
	}
	a.Package = mirrored(w, d.String(), a.entry)
	a.Header, a.Core = q.HeaderSHA256(), d
	return a, nil
}

// fetch fetches packages and writes their rows as they become durable, so that nothing is fetched
// twice.
func (y *syncing) fetch(pkgs []rpm.PrimaryPackage, ms []set.Member, todo []int, words *upstream.Words) error {
	already := int64(len(pkgs) - len(todo))
	report := func(p fetch.Progress) {
		y.fetched.Store(p.Bytes)
		if y.say != nil {
			y.say(Progress{int64(len(pkgs)), already + p.Done, p.Bytes, p.Retries, p.Rate})
		}
	}
	if len(todo) == 0 {
		report(fetch.Progress{})
		return nil
	}
	got := make([]arrived, len(todo))
	j := fetch.Job{Blobs: y.Repo.Blobs, Say: report}
	for _, i := range todo {
		p := pkgs[i]
		j.Wants = append(j.Wants, fetch.Want{Href: p.Href, Algo: p.Algo, Sum: p.Sum, Size: p.Size, Max: upstream.MaxPackage})
	}
	j.Take = func(ctx context.Context, n int, f *os.File, b *blob.Batch) (err error) {
		got[n], err = y.takePackage(ctx, pkgs[todo[n]], f, b, words != nil)
		return err
	}
	// Without a sha256 the bytes are not compared again.
	j.Adopts = y.up.Local() && !slices.ContainsFunc(todo, func(i int) bool { return pkgs[i].Algo != "sha256" })
	j.Kept = func(ctx context.Context, done []int) error {
		for _, n := range done {
			if words != nil {
				var err error
				if got[n].entry, err = words.Of(pkgs[todo[n]]); err != nil {
					return err
				}
				got[n].Entry = repo.EntryID(got[n].entry)
			}
			ms[todo[n]].Package = got[n].Package
		}
		return y.db.Write(ctx, func(tx *db.Tx) error {
			for _, n := range done {
				if err := y.Repo.KeepPackage(tx, got[n].Package, got[n].entry); err != nil {
					return err
				}
			}
			for _, n := range done {
				got[n].entry = rpm.Template{} // its memory is needed no more
			}
			return nil
		})
	}
	return y.up.Fetch(y.ctx, j)
}
