package site

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"drover/internal/blob"
	"drover/internal/fault"
	"drover/internal/fetch"
	"drover/internal/repo/wire"
	"drover/internal/rpm"

	"github.com/ProtonMail/go-crypto/openpgp"
)

const repomdFile = "repodata/repomd.xml"

// Bounds of what the centre says.
const (
	maxRepomd = 1 << 20
	maxMeta   = 512 << 20
	maxKeys   = 256 << 10
	maxTrees  = 200
)

func seconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

// Waits after a failure: the first, then each time twice as long.
const (
	firstRetry   = 250 * time.Millisecond
	longestRetry = 5 * time.Second
)

// follow keeps a channel what it is at the centre, until ctx ends.
func (s *Site) follow(ctx context.Context, name string) {
	wait := firstRetry
	for ctx.Err() == nil {
		c, known, patience := s.channel(name), "", maxWait
		if len(c.States) > 0 {
			known = c.States[0].Snapshot
		}
		if c.trouble != "" {
			patience = 0 // that the centre is back is news too
		}
		st, err := s.ask(ctx, name, known, patience)
		if err == nil {
			s.note(name, func(c *channel) { c.contact = time.Now() })
			if st.Snapshot != known {
				s.note(name, func(c *channel) {
					if c.behind.IsZero() {
						c.behind = time.Now()
					}
				})
				err = s.sync(ctx, name, st)
			} else {
				s.note(name, func(c *channel) { c.behind, c.trouble = time.Time{}, "" })
			}
		}
		if err == nil {
			wait = firstRetry
			continue
		}
		if ctx.Err() != nil {
			return
		}
		said := fault.As(err).Error()
		if s.channel(name).trouble != said {
			s.Log.Error("a channel does not follow the centre; it is tried again", "channel", name, "err", err)
		}
		s.note(name, func(c *channel) { c.trouble = said })
		if !nap(ctx, wait) {
			return
		}
		wait = min(2*wait, longestRetry)
	}
}

// checkState refuses a state that is none.
func checkState(name string, st wire.State) error {
	bad := st.Channel != name || !wire.IsDigest(st.Snapshot) || len(st.Trees) > maxTrees
	for i, t := range st.Trees {
		bad = bad || t.Name == "" || len(t.Name) > 200 || t.Name[0] == '.' || strings.ContainsAny(t.Name, "/\\\x00\n\r ") || slices.ContainsFunc(st.Trees[:i], func(o wire.Tree) bool { return o.Name == t.Name })
	}
	if bad {
		return fault.Invalid("site_answer", "the centre's answer for the channel %s is none", name).Fix("check --centre: it must be a drover server of this version, or a site")
	}
	return nil
}

// sync makes what the centre has the site's: everything is fetched and checked first, then the
// channel moves. A state that the site has needs nothing.
func (s *Site) sync(ctx context.Context, name string, st wire.State) error {
	if err := checkState(name, st); err != nil {
		return err
	}
	s.syncing[name].Lock()
	defer s.syncing[name].Unlock()
	c := s.channel(name)
	keys, err := s.allowed(c, st)
	if err != nil {
		return err
	}
	sn := snapshot{State: st, At: time.Now()}
	for _, t := range st.Trees {
		have, err := s.syncTree(ctx, c, st.Snapshot, t)
		if err != nil {
			return err
		}
		sn.Trees = append(sn.Trees, have)
	}
	return s.move(name, keys, sn)
}

// allowed tells which keys the channel has from now on: those it had, those that somebody said;
// and all of them the first time.
func (s *Site) allowed(c *channel, st wire.State) (keys []string, err error) {
	keys = slices.Clone(c.Keys)
	for _, t := range st.Trees {
		for _, k := range append(t.Keys(), t.Signer()) {
			switch {
			case slices.Contains(keys, k):
			case c.Keys == nil || s.trust.told[k]:
				keys = append(keys, k)
			case k == "":
				return nil, fault.Invalid("site_unsigned", "%s/%s is not signed any more", c.Name, t.Name).Fix("if that is meant, start the site with --trust %s", Unsigned)
			default:
				return nil, fault.Invalid("site_new_key", "%s/%s has another key, %s", c.Name, t.Name, k).Fix("if that is meant, start the site with --trust %s=FILE, or --trust %[1]s to take the one that the centre has", k)
			}
		}
	}
	if keys == nil {
		keys = []string{}
	}
	return keys, nil
}

// syncTree fetches the metadata of one tree.
func (s *Site) syncTree(ctx context.Context, c *channel, id string, wt wire.Tree) (t tree, err error) {
	signer := wt.Signer()
	var ring openpgp.EntityList   // the signer's, which is one of these
	for _, k := range wt.Keys() { // what its packages are signed by, hosts ask the site for
		r, err := s.key(ctx, k)
		if err != nil {
			return t, err
		}
		if k == signer {
			ring = r
		}
	}
	for had := range c.trees() { // it did not change, or the channel went back
		if wt.ID != "" && had.ID == wt.ID && had.Name == wt.Name && had.Key == signer && s.here(had) {
			return *had, nil
		}
	}
	base := strings.TrimPrefix(wire.Pinned("", c.Name, id, wt.Name), "/")
	t = tree{Name: wt.Name, Key: signer}
	repomd, err := s.small(ctx, "/"+base+repomdFile, maxRepomd)
	if err != nil {
		return t, err
	}
	asc, err := s.small(ctx, "/"+base+repomdFile+".asc", 64<<10)
	if err != nil && (signer != "" || fault.Code(err) != "file_unknown") {
		return t, err
	}
	if signer != "" {
		if err := verify(c.Name, wt.Name, signer, ring, repomd, asc); err != nil {
			return t, err
		}
	}
	b := s.blobs.Batch()
	defer b.Discard() //nolint:errcheck // what stays in staging goes at the next start
	add := func(path string, data []byte) (string, error) {
		d, err := b.PutBytes(data)
		t.Files = append(t.Files, meta{path, d.String(), int64(len(data))})
		return d.String(), err
	}
	sum, err := add(repomdFile, repomd)
	if err != nil {
		return t, err
	}
	signed := ""
	if asc != nil {
		if signed, err = add(repomdFile+".asc", asc); err != nil {
			return t, err
		}
	}
	t.ID = wire.TreeID(sum, signed)
	datas, err := rpm.ReadRepomd(repomd)
	if err != nil {
		return t, err
	}
	var wants []fetch.Want
	var chunked *rpm.Data
	for i, d := range datas {
		// The centre does not have what EL7's yum read either.
		if strings.HasSuffix(d.Type, "_db") {
			continue
		}
		if d.Algo != "sha256" || d.Size <= 0 || d.Size > maxMeta {
			return t, fault.Invalid("site_metadata", "the metadata of %s/%s names %.200q without a size and a sha256", c.Name, t.Name, d.Href).Fix("leave this channel out: its upstream is too old for a site")
		}
		if d.Type == "primary" {
			t.Primary = d.Sum
		}
		if d.Type == rpm.ChunkIndex {
			chunked = &datas[i]
		}
		t.Files = append(t.Files, meta{d.Href, d.Sum, d.Size})
		wants = append(wants, fetch.Want{Href: base + d.Href, Algo: d.Algo, Sum: d.Sum, Size: d.Size})
	}
	if chunked != nil {
		i := slices.IndexFunc(wants, func(w fetch.Want) bool { return w.Sum == chunked.Sum })
		if err := s.get(ctx, wants[i:i+1]); err != nil {
			return t, err
		}
		err := s.assemble(ctx, &t, datas, chunked.Sum)
		if err != nil && (ctx.Err() != nil || fault.Code(err) == "disk_full") {
			return t, err
		}
		if err != nil { // the whole files hold the same
			s.Log.Warn("chunks of metadata are of no use; whole files are fetched", "channel", c.Name, "tree", t.Name, "err", err)
			t.Chunks = nil
		}
	}
	if err := s.get(ctx, wants); err != nil {
		return t, err
	}
	if err := b.Commit(); err != nil {
		return t, err
	}
	_, err = s.index(t.Primary) // refuses what no host could read
	return t, err
}

// pin fetches a tree of a snapshot that the channel had before the site knew it, by any of the
// channel's keys.
func (s *Site) pin(ctx context.Context, name, id, treeName string) error {
	if !wire.IsDigest(id) {
		return fault.NotFound("snapshot_unknown", "there is no snapshot %.80q", id)
	}
	_, err, _ := s.pinning.Do(name+"\x00"+id+"\x00"+treeName, func() (any, error) {
		s.syncing[name].Lock()
		defer s.syncing[name].Unlock()
		c := s.channel(name)
		st := wire.State{Channel: name, Snapshot: id, Trees: []wire.Tree{{Name: treeName}}}
		if err := checkState(name, st); err != nil {
			return nil, err
		}
		if len(c.Keys) == 0 {
			return nil, s.absent("snapshot "+id, c)
		}
		var t tree
		var err error
		for _, k := range c.Keys { // one that signs packages only fails for want of a signature
			st.Trees[0] = wire.Tree{Name: treeName, Key: wire.OwnKey(k), Pins: wire.Pins(k), Signed: k != ""}
			if t, err = s.syncTree(ctx, c, id, st.Trees[0]); fault.Code(err) != "site_signature" && fault.Code(err) != "file_unknown" {
				break
			}
		}
		if err != nil {
			return nil, err
		}
		return nil, s.replace(name, func(c *channel) {
			sn := snapshot{State: st, At: time.Now()}
			c.Pinned = slices.DeleteFunc(slices.Clone(c.Pinned), func(x snapshot) bool {
				if x.Snapshot == id {
					sn = x
				}
				return x.Snapshot == id
			})
			sn.Trees = append(slices.Clone(sn.Trees), t)
			c.Pinned = append([]snapshot{sn}, c.Pinned[:min(len(c.Pinned), keepPinned-1)]...)
		})
	})
	return err
}

// resolve asks the centre which snapshot of a channel begins with some letters.
func (s *Site) resolve(ctx context.Context, channel, treeName, id string) (string, error) {
	if len(id) < 8 || strings.Trim(id, "0123456789abcdef") != "" {
		return "", fault.NotFound("snapshot_unknown", "there is no snapshot %.80q", id)
	}
	b, err := s.small(ctx, "/channels/"+channel+"/"+url.PathEscape(treeName)+"/metalink?snapshot="+id, 1<<20)
	if err != nil {
		return "", err
	}
	m, err := rpm.ReadMetalink(b)
	if err != nil {
		return "", err
	}
	for _, x := range m.Mirrors {
		_, rest, _ := strings.Cut(x.Root, "/at/")
		if full, _, _ := strings.Cut(rest, "/"); wire.IsDigest(full) && strings.HasPrefix(full, id) {
			return full, nil
		}
	}
	return "", fault.Invalid("site_answer", "the centre's answer for the snapshot %.80s of %s is none", id, channel).Fix("check --centre: it must be a drover server of this version, or a site")
}

// here tells whether the files of a tree are on the disk, and keeps them there.
func (s *Site) here(t *tree) bool {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	return s.claim(t)
}

// get fetches what is not here.
func (s *Site) get(ctx context.Context, wants []fetch.Want) error {
	var missing []fetch.Want
	for _, w := range wants {
		s.mu.Lock()
		delete(s.packages, w.Sum) // what an earlier process left is not to be removed as one
		here, err := s.blobs.Has(blob.Digest(w.Sum))
		s.mu.Unlock()
		if err != nil {
			return err
		}
		if !here {
			missing = append(missing, w)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	last := int64(0)
	return s.fetch.All(ctx, s.origins, fetch.Job{Wants: missing, Blobs: s.blobs,
		Take: func(ctx context.Context, i int, f *os.File, b *blob.Batch) error {
			_, _, err := b.Put(ctx, f, blob.PutOptions{Expect: blob.Digest(missing[i].Sum), Max: missing[i].Size})
			return err
		},
		Kept: func(context.Context, []int) error { return nil },
		Say: func(p fetch.Progress) {
			s.numbers.fetched.Add(p.Bytes - last)
			last = p.Bytes
		}})
}

// assemble puts the files together that are made of chunks, and fetches those chunks only that
// are not here.
func (s *Site) assemble(ctx context.Context, t *tree, datas []rpm.Data, sum string) error {
	x, err := s.chunkIndex(sum)
	if err != nil {
		return err
	}
	var wants []fetch.Want
	for _, c := range x.Chunks {
		if c.Bytes() > 0 && !slices.ContainsFunc(wants, func(w fetch.Want) bool { return w.Sum == c.Digest }) {
			wants = append(wants, fetch.Want{Href: "chunks/" + c.Digest, Algo: "sha256", Sum: c.Digest, Size: c.Bytes()})
		}
		t.Chunks = append(t.Chunks, c.Digest)
	}
	if err := s.get(ctx, wants); err != nil {
		return err
	}
	b := s.blobs.Batch()
	defer b.Discard() //nolint:errcheck // what stays in staging goes at the next start
	for k := range rpm.Kind(wire.Kinds) {
		i := slices.IndexFunc(datas, func(d rpm.Data) bool { return d.Type == k.String() })
		if i < 0 {
			continue
		}
		if here, err := s.blobs.Has(blob.Digest(datas[i].Sum)); err != nil || here {
			if err != nil {
				return err
			}
			continue
		}
		r := &assembly{s: s, x: x, kind: k, rest: bytes.NewReader(x.Head[k])}
		_, _, err := b.Put(ctx, r, blob.PutOptions{Expect: blob.Digest(datas[i].Sum), Max: datas[i].Size})
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return b.Commit()
}

func (s *Site) chunkIndex(sum string) (x wire.Index, err error) {
	in, err := s.blobs.Get(blob.Digest(sum))
	if err != nil {
		return x, err
	}
	defer in.Close()
	open, done, err := rpm.Open(in)
	if err != nil {
		return x, err
	}
	defer done()
	text, err := io.ReadAll(io.LimitReader(open, wire.MaxIndex+1))
	if err != nil {
		return x, err
	}
	return wire.ParseIndex(text)
}

// assembly reads a file that is put together: head, a member of each chunk, tail.
type assembly struct {
	s    *Site
	x    wire.Index
	kind rpm.Kind
	next int // chunk; one more for the tail
	rest io.Reader
	blob *blob.Blob
}

// Read implements io.Reader.
func (a *assembly) Read(p []byte) (int, error) {
	for {
		n, err := a.rest.Read(p)
		if n > 0 || !errors.Is(err, io.EOF) {
			return n, err
		}
		if err := a.Close(); err != nil {
			return 0, err
		}
		switch {
		case a.next < len(a.x.Chunks):
			c := a.x.Chunks[a.next]
			if a.blob, err = a.s.blobs.Get(blob.Digest(c.Digest)); err != nil {
				return 0, err
			}
			a.rest = io.NewSectionReader(a.blob, c.Offset(a.kind), c.Size[a.kind])
		case a.next == len(a.x.Chunks):
			a.rest = bytes.NewReader(a.x.Tail[a.kind])
		default:
			return 0, io.EOF
		}
		a.next++
	}
}

// Close lets go of the chunk that is being read.
func (a *assembly) Close() error {
	b := a.blob
	a.blob = nil
	if b == nil {
		return nil
	}
	return b.Close()
}

// escaped is a path below the centre's address.
func escaped(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}
