package repo

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"drover/internal/blob"
	"drover/internal/build"
	"drover/internal/build/wire"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/release"
	"drover/internal/repo/gate"
	"drover/internal/repo/serving"
	"drover/internal/repo/set"
	"drover/internal/rpm"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/singleflight"
)

//go:embed migrations
var migrations embed.FS

// Schema is the tables of packages, snapshots, channels and mirrors.
func Schema() db.Schema { return db.Schema{Name: "repo", FS: migrations} }

// SignRequest asks for a signature of something by the state of its sha256.
type SignRequest struct {
	Key, Tag, Subject, Digest string
	State                     []byte
}

// Signer is what repo needs of sign: OpenPGP signature packets, and the keys that go with them.
type Signer interface {
	Public(ctx context.Context, key string) (string, error)
	Packets(ctx context.Context, rs []SignRequest) ([][]byte, error)
}

// Upstreams is what repo needs of mirrors: packages that are not here yet, and pinned keys by the
// name that wire.PinnedKeys gives them.
type Upstreams interface {
	Fetch(ctx context.Context, pkgid string) error
	Pinned(ctx context.Context, name string) (string, error)
}

// Config is what a Store needs.
type Config struct {
	DB      *db.DB
	Blobs   *blob.Store
	Builds  *build.Store
	Release *release.Store
	Signer  Signer
	Dir     string // for what is being fetched
	Log     *slog.Logger
}

// Store keeps repositories.
type Store struct {
	Config
	Mirrors Upstreams     // set before anything is served; nil without mirrors
	Hosts   Hosts         // as Mirrors; nil without hosts
	packed  *zstd.Encoder // of values of rows
	unpack  *zstd.Decoder
	gate    *gate.Gate
	counts  *serving.Census
	making  singleflight.Group           // files that are put together
	hashed  kept[string, [3]checkpoints] // by what a tree is a state of
	trees   kept[string, tree]           // by id
	lists   kept[string, []place]        // by chunk
	fresh   kept[string, []member]       // by chunk: those that were written last
	packs   kept[string, part]           // by codec and chunk
	found   kept[found, what]            // what was asked for and never changes
	mu      sync.Mutex                   // guards packers
	packers map[rpm.Codec][]*rpm.Packer  // idle ones
	buffers sync.Pool                    // of *[copyBuffer]byte
	unswept atomic.Int64                 // bytes of put together files since their directory was looked at
}

const copyBuffer = 64 << 10

// New makes a Store.
func New(c Config) *Store {
	s := &Store{Config: c, packers: map[rpm.Codec][]*rpm.Packer{}, counts: serving.NewCensus(c.DB, c.Log)}
	s.unswept.Store(sweepWhole) // an earlier process may have left many
	s.hashed.most, s.trees.most, s.lists.most, s.fresh.most, s.packs.most, s.found.most = keptHashes, keptTrees, keptPlaces, keptFresh, keptParts, keptFound
	var err error
	if s.packed, s.unpack, err = newUnpacker(); err != nil {
		panic(err) // its options are constants
	}
	s.gate = gate.New(gate.Config{DB: c.DB, Members: s.members, Places: s.placesOf, Templates: s.templates, Headers: s.headers, Pack: s.squeeze,
		Unpack: func(b []byte) ([]byte, error) { return s.unpack.DecodeAll(b, nil) }})
	return s
}

var reName = regexp.MustCompile(`^[a-z0-9][a-z0-9_.+-]{0,99}$`)

// What trees are made of.
type (
	// Package is a package file as served.
	Package = set.Package
	member  = set.Member
	chunk   = set.Chunk
	place   = set.Place
)

const packageColumns = "pkgid, header, nevra, file, arch, source, key, size, head, core, header_start, header_end, mtime, built, entry"

func scanPackage(scan func(...any) error) (p Package, err error) {
	err = scan(&p.PkgID, &p.Header, &p.NEVRA, &p.File, &p.Arch, &p.Source, &p.Key, &p.Size, &p.Head, &p.Core, &p.Start, &p.End, &p.Mtime, &p.Built, &p.Entry)
	return p, err
}

// packages reads the packages for which a condition holds.
func packages(tx *db.Tx, where string, args ...any) (out []Package, err error) {
	err = tx.Each(func(scan func(...any) error) error {
		p, err := scanPackage(scan)
		out = append(out, p)
		return err
	}, "SELECT "+packageColumns+" FROM repo_package WHERE "+where, args...)
	return out, err
}

// KeepPackage writes a package with what metadata says of it. One that was known by metadata only
// is here from then on.
func (s *Store) KeepPackage(tx *db.Tx, p Package, t rpm.Template) error {
	return keepPacked(tx, p, s.squeeze(t.Encode()))
}

// keepPacked is KeepPackage with the entry packed already.
func keepPacked(tx *db.Tx, p Package, entry []byte) error {
	if _, err := tx.Exec("INSERT INTO repo_entry (id, data) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING", p.Entry, entry); err != nil {
		return err
	}
	n, err := tx.Exec("INSERT INTO repo_package (pkgid, header, nevra, file, arch, source, key, head, core, size, header_start, header_end, mtime, built, entry, created) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) ON CONFLICT (pkgid) DO UPDATE SET header = excluded.header, core = excluded.core, header_start = excluded.header_start, header_end = excluded.header_end WHERE repo_package.core = '' AND excluded.core <> ''",
		p.PkgID, p.Header, p.NEVRA, p.File, p.Arch, p.Source, p.Key, p.Head.String(), p.Core.String(), p.Size, p.Start, p.End, p.Mtime, p.Built, p.Entry, tx.Now())
	if err == nil && n > 0 && p.Core != "" && p.Head == "" { // others never were absent
		_, err = tx.Exec("DELETE FROM repo_absent WHERE pkgid = $1", p.PkgID)
	}
	return err
}

// EntryID names a template: the same for all signatures of a package.
func EntryID(t rpm.Template) string { return entryID(t.Encode()) }

func entryID(entry []byte) string {
	h := sha256.Sum256(entry)
	return hex.EncodeToString(h[:])
}

// open reads a package file: the head before the core, or the file when it is kept whole. The
// caller closes the blob.
func (s *Store) open(head, core blob.Digest) (io.ReaderAt, int64, *blob.Blob, error) {
	if core == "" {
		return nil, 0, nil, fault.Unavailable("package_absent", "the package is known by its mirror's metadata only; it is not fetched yet").Fix("try again in a moment, or sync the mirror")
	}
	if head == "" {
		c, err := s.Blobs.Get(core)
		if err != nil {
			return nil, 0, nil, err
		}
		return c, c.Size(), c, nil
	}
	h, err := s.Blobs.ReadAll(head, 64<<20)
	if err != nil {
		return nil, 0, nil, err
	}
	c, err := s.Blobs.Get(core)
	if err != nil {
		return nil, 0, nil, err
	}
	return rpm.Splice(h, c, c.Size()), int64(len(h)) + c.Size(), c, nil
}

// Open reads a package file. The caller closes the blob.
func (s *Store) Open(p Package) (io.ReaderAt, int64, *blob.Blob, error) {
	return s.open(p.Head, p.Core)
}

// headers reads the headers of a package file.
func (s *Store) headers(p Package) (*rpm.Package, error) {
	r, size, b, err := s.Open(p)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return rpm.Read(r, size)
}

// describe reads the headers of a package and hashes the file. It gives the entry encoded.
func (s *Store) describe(head, core blob.Digest, key string) (Package, []byte, error) {
	r, size, c, err := s.open(head, core)
	if err != nil {
		return Package{}, nil, err
	}
	defer c.Close()
	q, err := rpm.Read(r, size)
	if err != nil {
		return Package{}, nil, err
	}
	h := sha256.New()
	buf, _ := s.buffers.Get().(*[copyBuffer]byte)
	if buf == nil {
		buf = new([copyBuffer]byte)
	}
	_, err = io.CopyBuffer(h, io.NewSectionReader(r, 0, size), buf[:])
	s.buffers.Put(buf)
	if err != nil {
		return Package{}, nil, err
	}
	n, entry := q.NEVRA(), rpm.NewTemplate(q).Encode()
	source := ""
	if !q.Header.IsSource() {
		source = q.Header.String(rpm.SourceRPM)
	}
	built := int64(q.Header.Int(rpm.BuildTime))
	return Package{PkgID: hex.EncodeToString(h.Sum(nil)), Header: q.HeaderSHA256(), NEVRA: n.String(), File: n.File(), Arch: n.Arch, Source: set.SourceOf(n, source), Size: size,
		Start: q.HeaderStart, End: q.HeaderEnd, Built: built, Mtime: built, Entry: entryID(entry), Key: key, Head: head, Core: core}, entry, nil
}

// Snapshot is an immutable set of packages with its metadata.
type Snapshot struct {
	ID       string    `json:"id"` // sha256 over the trees, their repomd.xml and its signature
	Kind     string    `json:"kind"`
	Source   string    `json:"source"`
	Packages int64     `json:"packages"`
	Key      string    `json:"key,omitempty"` // that drover signed it with; of a line's the keys of its parts
	Cause    int64     `json:"cause"`         // the event whose state it holds
	Created  time.Time `json:"created"`
	Since    int64     `json:"since"`
}

// snapshotID is the identity of a set of trees from one source, which are sealed. The signatures
// belong to it: the same content signed with another key is another snapshot.
func snapshotID(kind, source string, ts []*tree) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %s\n", kind, source)
	for _, t := range ts {
		fmt.Fprintf(h, "%s %s\n", t.name, t.id)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// commit writes a snapshot and moves its channel to it, in one transaction: the bytes are
// stored already, and a reader sees the old state or the new one. A state of a tag that is no
// newer than what is published stays away: another server was faster.
func (s *Store) commit(ctx context.Context, sn Snapshot, ts []*tree) error {
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		if sn.Kind == "tag" {
			have, err := published(tx, sn.Source)
			if err != nil || have >= sn.Cause {
				return err
			}
			if mirror, err := isMirror(tx, sn.Source); err != nil {
				return err
			} else if mirror {
				return fault.Conflict("channel_taken", "the channel %s is that of a mirror; the tag of this name is not published", sn.Source).Fix("give the tag another name")
			}
		}
		ev, err := event.Append(tx, "repo.publish", "channel/"+sn.Source, map[string]any{"snapshot": sn.ID, "kind": sn.Kind, "packages": sn.Packages, "cause": sn.Cause})
		if err != nil {
			return err
		}
		if err := s.keepSnapshot(tx, sn, ts, nil, ev); err != nil {
			return err
		}
		return point(tx, sn.Source, sn.ID, ev)
	})
}

// keepSnapshot writes the rows of a snapshot. When the same content came about before, it now
// stands for the later cause too.
func (s *Store) keepSnapshot(tx *db.Tx, sn Snapshot, ts []*tree, parts map[string]string, ev int64) error {
	n, err := tx.Exec("UPDATE repo_snapshot SET cause = CASE WHEN cause < $1 THEN $1 ELSE cause END WHERE id = $2", sn.Cause, sn.ID)
	if err != nil || n > 0 {
		return err
	}
	if _, err := tx.Exec("INSERT INTO repo_snapshot (id, kind, source, packages, key, cause, created, since) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
		sn.ID, sn.Kind, sn.Source, sn.Packages, sn.Key, sn.Cause, tx.Now(), ev); err != nil {
		return err
	}
	for _, t := range ts {
		if err := s.keepTree(tx, t); err != nil {
			return err
		}
		if _, err := tx.Exec("INSERT INTO repo_snapshot_tree (snapshot, name, tree) VALUES ($1, $2, $3)", sn.ID, t.name, t.id); err != nil {
			return err
		}
	}
	for p, of := range parts {
		if _, err := tx.Exec("INSERT INTO repo_snapshot_part (snapshot, part, source) VALUES ($1, $2, $3)", sn.ID, p, of); err != nil {
			return err
		}
	}
	return nil
}

// published is the newest cause of a tag's snapshots.
func published(tx *db.Tx, tag string) (cause int64, err error) {
	err = tx.QueryRow("SELECT COALESCE(MAX(cause), 0) FROM repo_snapshot WHERE source = $1 AND kind = 'tag'", tag).Scan(&cause)
	return cause, err
}

// getSnapshot finds a snapshot by its id or the first letters of it; by a name that it was
// given; as the state of a channel; or as CHANNEL@WHEN, the state at an event or time.
func (s *Store) getSnapshot(tx *db.Tx, ref string) (sn Snapshot, err error) {
	no := fault.NotFound("snapshot_unknown", "there is no snapshot %.80q", ref).Fix("give its id, a name, a channel or CHANNEL@TIME; see `drover snapshot list`")
	if channel, when, dated := strings.Cut(ref, "@"); dated {
		at, err := event.AsOf(tx, when)
		if err != nil {
			return sn, err
		}
		c, err := channelAt(tx, channel, at)
		if err != nil {
			return sn, err
		}
		ref = c.Snapshot
	}
	var id string
	err = tx.QueryRow("SELECT snapshot FROM repo_name WHERE name = $1 AND until = 0", ref).Scan(&id)
	if db.NoRow(err) {
		err = tx.QueryRow("SELECT snapshot FROM repo_channel WHERE name = $1 AND until = 0", ref).Scan(&id)
	}
	switch {
	case err == nil:
		ref = id
	case !db.NoRow(err):
		return sn, err
	}
	if len(ref) < 8 || len(ref) > 64 || strings.Trim(ref, "0123456789abcdef") != "" {
		return sn, no
	}
	var found []Snapshot
	err = tx.Each(func(scan func(...any) error) error {
		sn, err := scanSnapshot(scan)
		found = append(found, sn)
		return err
	}, "SELECT "+snapshotColumns+` FROM repo_snapshot WHERE id LIKE $1 ESCAPE '\' ORDER BY id LIMIT 2`, db.Like(ref))
	switch {
	case err != nil:
		return sn, err
	case len(found) == 0:
		return sn, no
	case len(found) > 1:
		return sn, fault.Invalid("snapshot_ambiguous", "several snapshots begin with %s", ref).Fix("give more of it")
	}
	return found[0], nil
}

const snapshotColumns = "id, kind, source, packages, key, cause, created, since"

func scanSnapshot(scan func(...any) error) (sn Snapshot, err error) {
	var created int64
	err = scan(&sn.ID, &sn.Kind, &sn.Source, &sn.Packages, &sn.Key, &sn.Cause, &created, &sn.Since)
	sn.Created = db.Time(created)
	return sn, err
}

// Snapshots lists snapshots, newest first, before an event number.
func (s *Store) Snapshots(ctx context.Context, source string, before int64, limit int) ([]Snapshot, error) {
	out := []Snapshot{}
	if before == 0 {
		before = 1 << 62
	}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			sn, err := scanSnapshot(scan)
			out = append(out, sn)
			return err
		}, "SELECT "+snapshotColumns+" FROM repo_snapshot WHERE since < $1 AND ($2 = '' OR source = $2) ORDER BY since DESC LIMIT "+strconv.Itoa(limit), before, source)
	})
	return out, err
}

// Count counts the snapshots of a tag or mirror; of all for "".
func (s *Store) Count(ctx context.Context, source string) (n int64, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow("SELECT COUNT(*) FROM repo_snapshot WHERE $1 = '' OR source = $1", source).Scan(&n)
	})
	return n, err
}

// Content is a snapshot with its packages by tree.
type Content struct {
	Snapshot
	Trees map[string][]Package `json:"trees"`
}

// Bare reads a snapshot without its packages.
func (s *Store) Bare(ctx context.Context, ref string) (c Content, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error { c.Snapshot, err = s.getSnapshot(tx, ref); return err })
	return c, err
}

// Content reads a snapshot with its packages.
func (s *Store) Content(ctx context.Context, id string) (c Content, err error) {
	c.Trees = map[string][]Package{}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		if c.Snapshot, err = s.getSnapshot(tx, id); err != nil {
			return err
		}
		ts, err := s.treesOfSnapshot(tx, c.ID)
		for _, t := range ts {
			ps := make([]Package, 0, len(t.chunks))
			for _, ch := range t.chunks {
				ms, err := s.membersTx(tx, ch)
				if err != nil {
					return err
				}
				for _, m := range ms {
					ps = append(ps, m.Package)
				}
			}
			slices.SortFunc(ps, func(a, b Package) int { return strings.Compare(a.File, b.File) })
			c.Trees[t.name] = ps
		}
		return err
	})
	return c, err
}

// ByHeader finds the newest served form of a package by the sha256 of its header.
func (s *Store) ByHeader(ctx context.Context, header string) (p Package, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		p, err = scanPackage(tx.QueryRow("SELECT "+packageColumns+" FROM repo_package WHERE header = $1 ORDER BY created DESC LIMIT 1", header).Scan)
		return err
	})
	if db.NoRow(err) {
		err = fault.NotFound("package_unknown", "no package with header %.80q is served here", header)
	}
	return p, err
}

// Repo is the repository of a channel's present snapshot for an arch, as a buildroot uses it.
// Without that tree there is none.
func (s *Store) Repo(ctx context.Context, channel, arch string) (r wire.Repo, ok bool, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		c, err := channelAt(tx, channel, event.Now)
		if err != nil {
			return err
		}
		r.ID = channel
		r.URL = "/snapshots/" + c.Snapshot + "/" + arch + "/"
		t, err := s.tree(tx, c.Snapshot, arch)
		if t != nil {
			r.Digest, ok = t.sum(repomdFile), true
		}
		return err
	})
	return r, ok, err
}
