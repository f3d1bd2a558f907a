package site

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"drover/internal/blob"
	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/repo/wire"
	"drover/internal/rpm"

	"github.com/ProtonMail/go-crypto/openpgp"
)

// meta is a metadata file of a tree; its bytes are a blob.
type meta struct {
	Path string `json:"path"`
	Sum  string `json:"sum"`
	Size int64  `json:"size"`
}

// tree is a repository of a snapshot.
type tree struct {
	Name    string   `json:"name"`
	Key     string   `json:"key,omitempty"` // name of the keys that its metadata is signed by
	ID      string   `json:"id"`            // see wire.TreeID
	Files   []meta   `json:"files"`
	Primary string   `json:"primary"`          // sum of the file that lists the packages
	Chunks  []string `json:"chunks,omitempty"` // blobs that the next state may share
}

func (t *tree) file(path string) (meta, bool) {
	i := slices.IndexFunc(t.Files, func(m meta) bool { return m.Path == path })
	if i < 0 {
		return meta{}, false
	}
	return t.Files[i], true
}

// snapshot is a state of a channel.
type snapshot struct {
	wire.State
	At    time.Time `json:"at"` // when the site had it
	Trees []tree    `json:"have"`
}

func (sn *snapshot) tree(name string) *tree {
	i := slices.IndexFunc(sn.Trees, func(t tree) bool { return t.Name == name })
	if i < 0 {
		return nil
	}
	return &sn.Trees[i]
}

// channel is what is kept of a channel, newest first. It is replaced, never changed.
type channel struct {
	Name   string     `json:"name"`
	Keys   []string   `json:"keys"` // names of what its trees and packages may be signed with; "" for trees that are not
	States []snapshot `json:"states"`
	// Pinned is what hosts ask for by its snapshot and no state has, newest first.
	Pinned []snapshot `json:"pinned,omitempty"`

	contact time.Time // when the centre last answered
	behind  time.Time // since when a newer state is known and not served; zero for not
	trouble string
}

// Old states stay for hosts that began with them: for a week, and the newest of them.
const (
	keepFor    = 7 * 24 * time.Hour
	keepStates = 50
	keepLeast  = 2
)

// keepPinned bounds what hosts can make a site keep.
const keepPinned = 20

// find gives a state by its snapshot, or the first letters of it.
func (c *channel) find(id string) *snapshot {
	if len(id) < 8 {
		return nil
	}
	for _, list := range [][]snapshot{c.States, c.Pinned} {
		for i := range list {
			if strings.HasPrefix(list[i].Snapshot, id) {
				return &list[i]
			}
		}
	}
	return nil
}

// keep gives the states that stay.
func keep(states []snapshot, now time.Time) []snapshot {
	out := states[:0:0]
	for i, sn := range states {
		if i < keepLeast || i < keepStates && now.Sub(states[i-1].At) < keepFor {
			out = append(out, sn)
		}
	}
	return out
}

func (s *Site) channelFile(name string) string {
	return s.path("channels", url.PathEscape(name)+".json")
}

// load reads what an earlier process left, and what of the blobs is a package.
func (s *Site) load() error {
	for _, n := range s.Channels {
		c := &channel{Name: n}
		b, err := os.ReadFile(s.channelFile(n))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil {
			if err := json.Unmarshal(b, c); err != nil || c.Name != n {
				return fault.Internal("site_state", "%s is damaged", s.channelFile(n)).Wrap(err).Fix("remove it: the channel is fetched again, and its keys are taken again")
			}
		}
		s.channels[n] = c
	}
	live := s.live()
	for in, err := range s.blobs.List() {
		if err != nil {
			return err
		}
		if !live[in.Digest.String()] {
			s.packages[in.Digest.String()] = &kept{size: in.Size, used: in.Put}
		}
	}
	return nil
}

// trees is every tree that is kept of a channel.
func (c *channel) trees() iter.Seq[*tree] {
	return func(yield func(*tree) bool) {
		for _, list := range [][]snapshot{c.States, c.Pinned} {
			for i := range list {
				for j := range list[i].Trees {
					if !yield(&list[i].Trees[j]) {
						return
					}
				}
			}
		}
	}
}

// live is every blob of metadata that something needs. Callers hold mu, or are alone.
func (s *Site) live() map[string]bool {
	out := map[string]bool{}
	for _, c := range s.channels {
		for t := range c.trees() {
			for _, f := range t.Files {
				out[f.Sum] = true
			}
			for _, d := range t.Chunks {
				out[d] = true
			}
		}
	}
	return out
}

// move makes a snapshot a channel's present one.
func (s *Site) move(name string, keys []string, sn snapshot) error {
	return s.replace(name, func(c *channel) {
		others := slices.DeleteFunc(slices.Clone(c.States), func(x snapshot) bool { return x.Snapshot == sn.Snapshot })
		c.Keys, c.States = keys, keep(append([]snapshot{sn}, others...), sn.At)
		c.Pinned = slices.DeleteFunc(slices.Clone(c.Pinned), func(x snapshot) bool { return x.Snapshot == sn.Snapshot })
		c.contact, c.behind, c.trouble = time.Now(), time.Time{}, ""
	})
}

// claim takes every blob that a tree needs out of those that may be removed, and tells whether
// all of its files are here. Callers hold keeping.
func (s *Site) claim(t *tree) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range t.Chunks { // without one the next state costs more, and that is all
		delete(s.packages, d)
	}
	all := true
	for _, f := range t.Files {
		delete(s.packages, f.Sum)
		here, err := s.blobs.Has(blob.Digest(f.Sum))
		all = all && here && err == nil
	}
	return all
}

// claimAll claims the trees of a channel. Old states of which something is gone go: the new one
// must be whole.
func (s *Site) claimAll(c *channel) error {
	broken := func(sn snapshot) bool {
		return slices.ContainsFunc(sn.Trees, func(t tree) bool { return !s.claim(&t) })
	}
	if len(c.States) > 0 && broken(c.States[0]) {
		return fault.Unavailable("site_gone", "metadata of the channel %s is gone from the disk", c.Name).Fix("it is fetched again")
	}
	c.States = append(slices.Clone(c.States[:min(1, len(c.States))]), slices.DeleteFunc(slices.Clone(c.States[min(1, len(c.States)):]), broken)...)
	c.Pinned = slices.DeleteFunc(slices.Clone(c.Pinned), broken)
	return nil
}

// replace changes what is kept of a channel: first on the disk, then for hosts. Callers hold
// the channel's syncing. What nobody needs any more may be removed like a package.
func (s *Site) replace(name string, fn func(*channel)) error {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	next := *s.channel(name)
	fn(&next)
	if err := s.claimAll(&next); err != nil {
		return err
	}
	b, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(s.channelFile(name), b, 0o600); err != nil {
		return err
	}
	s.mu.Lock()
	before := s.live()
	now := *s.channels[name]
	now.Keys, now.States, now.Pinned = next.Keys, next.States, next.Pinned
	if next.contact.After(now.contact) {
		now.contact, now.behind, now.trouble = next.contact, next.behind, next.trouble
	}
	s.channels[name] = &now
	live := s.live()
	for sum := range before {
		if live[sum] {
			continue
		}
		if in, err := s.blobs.Stat(blob.Digest(sum)); err == nil {
			s.packages[sum] = &kept{in.Size, in.Put}
		}
	}
	used := map[string]bool{}
	for _, c := range s.channels {
		for _, sn := range c.States[:min(len(c.States), keepLeast)] {
			for _, t := range sn.Trees {
				used[t.Primary] = true
			}
		}
	}
	for p := range s.indexes {
		if !used[p] { // it is read again when somebody asks
			delete(s.indexes, p)
		}
	}
	close(s.moved)
	s.moved = make(chan struct{})
	s.mu.Unlock()
	return nil
}

// channel gives what is kept of a channel, or nil.
func (s *Site) channel(name string) *channel {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.channels[name]
}

// note changes what is said of a channel.
func (s *Site) note(name string, fn func(*channel)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.channels[name]
	fn(&next)
	s.channels[name] = &next
}

// item is a package that metadata names.
type item struct {
	sum  [32]byte
	size int64
}

func (i item) hex() string { return hex.EncodeToString(i.sum[:]) }

// index is the packages of a tree by their places.
type index struct{ items map[string]item }

// maxPackages bounds a tree.
const maxPackages = 200_000

// maxIndexed is how many packages are kept in memory: 150 bytes each.
const maxIndexed = 1_000_000

// index gives the packages that a primary file lists. Those asked for last are kept.
func (s *Site) index(primary string) (*index, error) {
	s.mu.Lock()
	x := s.indexes[primary]
	s.mu.Unlock()
	if x != nil {
		return x, nil
	}
	v, err, _ := s.indexing.Do(primary, func() (any, error) { return s.readIndex(primary) })
	if err != nil {
		return nil, err
	}
	x = v.(*index) //nolint:forcetypeassert // of the line above
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(x.items)
	for _, o := range s.indexes {
		n += len(o.items)
	}
	if n > maxIndexed {
		clear(s.indexes)
	}
	s.indexes[primary] = x
	return x, nil
}

func (s *Site) readIndex(primary string) (*index, error) {
	b, err := s.blobs.Get(blob.Digest(primary))
	if err != nil {
		return nil, err
	}
	defer b.Close()
	x := &index{items: map[string]item{}}
	err = rpm.ReadPrimary(b, func(p rpm.PrimaryPackage) error {
		if len(x.items) >= maxPackages {
			return fault.TooLarge("site_size", "a repository of the centre has over %d packages", maxPackages)
		}
		if err := rpm.CheckHref(p.Href); err != nil {
			return err
		}
		raw, err := hex.DecodeString(p.Sum)
		if p.Algo != "sha256" || err != nil || len(raw) != 32 || p.Size <= 0 || strings.HasPrefix(p.Href, "repodata/") {
			return fault.Invalid("site_package", "the metadata names %.200q without a size and a sha256", p.Href).Fix("leave this channel out: its upstream is too old for a site")
		}
		x.items[p.Href] = item{[32]byte(raw), p.Size}
		return nil
	})
	return x, err
}

// fingerprints are those of keys, with spaces between.
func fingerprints(r openpgp.EntityList) string {
	var out []string
	for _, k := range r {
		out = append(out, strings.ToUpper(hex.EncodeToString(k.PrimaryKey.Fingerprint)))
	}
	return strings.Join(out, " ")
}
