package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/repo/set"
	"drover/internal/repo/wire"
	"drover/internal/rpm"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

const repomdFile = "repodata/repomd.xml"

// maxMeta is the most bytes of a metadata file.
const maxMeta = 512 << 20

// form is how the metadata of a tree is written.
type form struct {
	Codec    rpm.Codec
	Single   bool // each file as one member, for readers that stop after the first
	OpenSums bool // tell the checksums of what is in the files
	Extra    []extra
}

// extra is a further metadata file, not packed: comps, modules, updateinfo.
type extra struct {
	typ  string
	open []byte
}

// part is the metadata of a chunk in one codec.
type part struct {
	blob blob.Digest
	size [3]int64 // of its member of each kind; they stand one after the other
	open [3]int64 // what each unpacks to
}

// offset is where the member of a kind begins.
func (p part) offset(k rpm.Kind) int64 { return wire.Chunk{Size: p.size}.Offset(k) }

// file is a file of a tree that is no package: a blob, or put together from the parts of the
// tree's chunks.
type file struct {
	Path string `json:"path"`
	Sum  string `json:"sum"`
	Size int64  `json:"size"`
	// Of a file that is put together: what stands before the parts and after them.
	Head []byte    `json:"head,omitempty"`
	Tail []byte    `json:"tail,omitempty"`
	Kind *rpm.Kind `json:"kind,omitempty"`
}

// tree is one repository of a snapshot.
type tree struct {
	name   string
	id     string
	codec  rpm.Codec
	chunks []chunk
	files  []file
	fresh  bool            // not in the database yet
	bases  []chunk         // that were taken apart for this one: what metadata says of most packages stands in them
	parts  map[string]part // by chunk, not in the database yet
	key    string          // that drover signed it with
	signed string          // tag or line for which the signature is new
	of     string          // of what it is a state: the checksums go on from the one before
}

func (t *tree) packages() (n, size int64) {
	for _, c := range t.chunks {
		n += int64(c.N)
		size += c.Bytes
	}
	return n, size
}

// file finds one of a tree's files.
func (t *tree) file(path string) (file, bool) {
	i := slices.IndexFunc(t.files, func(f file) bool { return f.Path == path })
	if i < 0 {
		return file{}, false
	}
	return t.files[i], true
}

// sum is the checksum of one of a tree's files, or "".
func (t *tree) sum(path string) string {
	f, _ := t.file(path)
	return f.Sum
}

// seal gives the tree its id, which stands for every byte of it.
func (t *tree) seal() {
	t.id = wire.TreeID(t.sum(repomdFile), t.sum(repomdFile+".asc"))
	h := sha256.New()
	more, _ := fmt.Fprintf(h, "%s", wire.Pins(t.key))
	slices.SortFunc(t.files, func(a, b file) int { return strings.Compare(a.Path, b.Path) })
	for _, f := range t.files { // repomd.xml names no file of an installation tree, nor pinned keys
		if !strings.HasPrefix(f.Path, "repodata/") {
			n, _ := fmt.Fprintf(h, "\n%s %s", f.Path, f.Sum)
			more += n
		}
	}
	if more > 0 {
		fmt.Fprintf(h, "\n%s", t.id)
		t.id = hex.EncodeToString(h.Sum(nil))
	}
}

// loading reads the members of chunks for edit, and keeps in mind which these were.
func (t *tree) loading(ctx context.Context, s *Store) func(chunk) ([]member, error) {
	return func(c chunk) ([]member, error) {
		ms, err := s.members(ctx, c)
		c.Members = ms
		t.bases = append(t.bases, c)
		return slices.Clone(ms), err
	}
}

// write makes the metadata of a tree: of its chunks, what is not packed in this form yet is
// packed; the checksums go over the whole.
func (s *Store) write(ctx context.Context, t *tree, f form) error {
	t.codec, t.fresh = f.Codec, true
	parts, err := s.parts(ctx, t)
	if err != nil {
		return err
	}
	pack, err := s.packer(f.Codec)
	if err != nil {
		return err
	}
	defer s.putPacker(f.Codec, pack)
	n, _ := t.packages()
	var built int64
	for _, c := range t.chunks {
		built = max(built, c.Built)
	}
	var metas []rpm.MetaFile
	files := make([]file, 3)
	for k := range rpm.KindOther + 1 {
		file := file{Kind: &k}
		if file.Head, err = pack.Pack(nil, k.Head(int(n))); err != nil {
			return err
		}
		if file.Tail, err = pack.Pack(nil, k.Tail()); err != nil {
			return err
		}
		files[k] = file
	}
	if err := s.hashFiles(t, files, parts); err != nil {
		return err
	}
	for k := range rpm.KindOther + 1 {
		m := rpm.MetaFile{Type: k.String(), Sum: files[k].Sum, Size: files[k].Size, OpenSize: int64(len(k.Head(int(n))) + len(k.Tail()))}
		for _, p := range parts {
			m.OpenSize += p.open[k]
		}
		switch {
		case f.Single:
			if m, err = s.single(t, k, parts, int(n), pack); err != nil {
				return err
			}
			files[k] = file{Sum: m.Sum, Size: m.Size}
		case f.OpenSums:
			h := sha256.New()
			if err := s.opened(t, k, parts, int(n), h); err != nil {
				return err
			}
			m.OpenSum = hex.EncodeToString(h.Sum(nil))
		}
		m.Name = rpm.MetaName(m.Type, m.Sum, f.Codec)
		files[k].Path = m.Name
		metas = append(metas, m)
	}
	t.files = files
	for _, x := range f.Extra {
		// Readers of groups differ in what they unpack: plain text is read by all.
		p := pack
		if x.typ == "group" {
			p = &rpm.Packer{}
		}
		m, err := rpm.NewMetaFile(x.typ, x.open, p)
		if err != nil {
			return err
		}
		if err := s.addFile(t, m.Name, m.Data); err != nil {
			return err
		}
		metas = append(metas, m)
	}
	if !f.Single && len(parts) > 0 {
		m, err := rpm.NewMetaFile(rpm.ChunkIndex, chunkIndex(t, files, parts), pack)
		if err != nil {
			return err
		}
		if err := s.addFile(t, m.Name, m.Data); err != nil {
			return err
		}
		metas = append(metas, m)
	}
	return s.addFile(t, repomdFile, rpm.Repomd(metas, built, built))
}

// addFile stores a file of a tree.
func (s *Store) addFile(t *tree, name string, data []byte) error {
	d, err := s.Blobs.PutBytes(data)
	t.files = append(t.files, file{Path: name, Sum: d.String(), Size: int64(len(data))})
	return err
}

// chunkIndex is the index of the chunks that a tree's files are put together from.
func chunkIndex(t *tree, files []file, parts []part) []byte {
	var x wire.Index
	for k := range rpm.KindOther + 1 {
		x.Head[k], x.Tail[k] = files[k].Head, files[k].Tail
	}
	for i, p := range parts {
		x.Chunks = append(x.Chunks, wire.Chunk{Digest: p.blob.String(), Size: p.size, Packages: t.chunks[i].N})
	}
	return x.Text()
}

// keptParts is of how many chunks the packed form is kept in mind: 250 bytes each.
const keptParts = 20_000

// packers is how many goroutines pack chunks.
const packers = 2

// parts finds the packed form of each chunk of a tree and makes what is missing; what it made
// waits in the tree for the commit.
func (s *Store) parts(ctx context.Context, t *tree) ([]part, error) {
	have, err := s.havePacked(ctx, t.codec, t.chunks)
	if err != nil {
		return nil, err
	}
	out := make([]part, len(t.chunks))
	for i, c := range t.chunks {
		out[i] = have[c.ID]
	}
	var known map[place][3][]byte
	if slices.ContainsFunc(out, func(p part) bool { return p.blob == "" }) {
		if known, err = s.takeApart(ctx, t); err != nil {
			return nil, err
		}
	}
	todo := make(chan int)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(todo)
		for i, p := range out {
			if p.blob != "" {
				continue
			}
			select {
			case todo <- i:
			case <-gctx.Done():
				return nil
			}
		}
		return nil
	})
	made := make([]bool, len(out))
	for range packers {
		g.Go(func() error {
			var pack *rpm.Packer
			for i := range todo {
				if pack == nil {
					var err error
					if pack, err = s.packer(t.codec); err != nil {
						return err
					}
					defer s.putPacker(t.codec, pack)
				}
				p, err := s.pack(gctx, t.chunks[i], pack, known)
				if err != nil {
					return err
				}
				out[i], made[i] = p, true
			}
			return nil
		})
	}
	err = g.Wait()
	t.parts = map[string]part{}
	for i, ok := range made {
		if ok {
			t.parts[t.chunks[i].ID] = out[i]
		}
	}
	return out, err
}

// havePacked gives, by id, the packed forms of chunks that were made before. What is known from the
// tree before is not asked for.
func (s *Store) havePacked(ctx context.Context, codec rpm.Codec, cs []chunk) (map[string]part, error) {
	out := map[string]part{}
	var ask []chunk
	for _, c := range cs {
		if p, ok := s.packs.get(string(codec) + c.ID); ok {
			out[c.ID] = p
		} else {
			ask = append(ask, c)
		}
	}
	if len(ask) == 0 {
		return out, nil
	}
	return out, s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var id string
			var p part
			err := scan(&id, &p.blob, &p.size[0], &p.size[1], &p.size[2], &p.open[0], &p.open[1], &p.open[2])
			out[id] = p
			s.packs.put(string(codec)+id, p)
			return err
		}, "SELECT chunk, digest, primary_size, filelists_size, other_size, primary_open, filelists_open, other_open FROM repo_part WHERE codec = $1 AND chunk IN (SELECT value->>'v' FROM json_each($2))", string(codec), db.List(set.IDs(ask)))
	})
}

// packer lends a packer. A new one costs some milliseconds and megabytes.
func (s *Store) packer(c rpm.Codec) (*rpm.Packer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if idle := s.packers[c]; len(idle) > 0 {
		s.packers[c] = idle[:len(idle)-1]
		return idle[len(idle)-1], nil
	}
	return rpm.NewPacker(c)
}

func (s *Store) putPacker(c rpm.Codec, p *rpm.Packer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.packers[c]) < packers {
		s.packers[c] = append(s.packers[c], p)
	}
}

// takeApart reads from the metadata of the chunks that a tree comes from what it says of their
// packages: that is cheaper than to fetch it for each of them from the database.
func (s *Store) takeApart(ctx context.Context, t *tree) (map[place][3][]byte, error) {
	if len(t.bases) == 0 || len(t.bases) > 64 {
		return nil, nil
	}
	parts, err := s.havePacked(ctx, t.codec, t.bases)
	if err != nil {
		return nil, err
	}
	known := map[place][3][]byte{}
	for _, c := range t.bases {
		p, ok := parts[c.ID]
		if !ok {
			continue
		}
		data, err := s.Blobs.ReadAll(p.blob, maxMeta)
		if err != nil {
			return nil, err
		}
		var lists [3][][]byte
		for k := range rpm.KindOther + 1 {
			open, err := s.openMember(t.codec, data, p, k)
			if err != nil {
				return nil, err
			}
			lists[k] = rpm.SplitEntries(open)
			ok = ok && len(lists[k]) == len(c.Members)
		}
		if !ok {
			continue // it is fetched for each package then
		}
		for i, m := range c.Members {
			known[place{PkgID: m.PkgID, Href: m.Href}] = [3][]byte{lists[0][i], lists[1][i], lists[2][i]}
		}
	}
	return known, nil
}

// openMember unpacks a member of a chunk's blob.
func (s *Store) openMember(codec rpm.Codec, data []byte, p part, k rpm.Kind) ([]byte, error) {
	packed, size := data[p.offset(k):p.offset(k+1)], p.open[k]
	if codec == rpm.Zstd {
		return s.unpack.DecodeAll(packed, make([]byte, 0, size))
	}
	in, done, err := rpm.Open(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	defer done()
	open := bytes.NewBuffer(make([]byte, 0, size+bytes.MinRead))
	_, err = open.ReadFrom(in)
	return open.Bytes(), err
}

// pack makes the metadata of a chunk and stores it. What known does not tell of its packages is
// read from the database.
func (s *Store) pack(ctx context.Context, c chunk, pack *rpm.Packer, known map[place][3][]byte) (p part, err error) {
	ms, err := s.members(ctx, c)
	if err != nil {
		return p, err
	}
	var missing []member
	for _, m := range ms {
		if _, ok := known[place{PkgID: m.PkgID, Href: m.Href}]; !ok {
			missing = append(missing, m)
		}
	}
	ts, err := s.templates(ctx, missing)
	if err != nil {
		return p, err
	}
	var out, open []byte
	for k := range rpm.KindOther + 1 {
		open = open[:0]
		n := 0
		for _, m := range ms {
			if e, ok := known[place{PkgID: m.PkgID, Href: m.Href}]; ok {
				open = append(open, e[k]...)
				continue
			}
			open = ts[n].Append(open, k, rpm.Place{PkgID: m.PkgID, Href: m.Href, Size: m.Size, Mtime: m.Mtime, HeaderStart: m.Start, HeaderEnd: m.End})
			n++
		}
		before := len(out)
		if out, err = pack.Pack(out, open); err != nil {
			return p, err
		}
		p.size[k], p.open[k] = int64(len(out)-before), int64(len(open))
	}
	p.blob, err = s.Blobs.PutBytes(out)
	return p, err
}

// templates reads what metadata says of each of some packages.
func (s *Store) templates(ctx context.Context, ms []member) ([]rpm.Template, error) {
	if len(ms) == 0 {
		return nil, nil
	}
	at := map[string][]int{}
	ids := make([]string, len(ms))
	for i, m := range ms {
		ids[i] = m.Entry
		at[m.Entry] = append(at[m.Entry], i)
	}
	out := make([]rpm.Template, len(ms))
	found := 0
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var id string
			var data []byte
			if err := scan(&id, &data); err != nil {
				return err
			}
			open, err := s.unpack.DecodeAll(data, nil)
			if err != nil {
				return err
			}
			t, err := rpm.DecodeTemplate(open)
			for _, i := range at[id] {
				out[i] = t
				found++
			}
			return err
		}, "SELECT id, data FROM repo_entry WHERE id IN (SELECT value->>'v' FROM json_each($1))", db.List(slices.Compact(slices.Sorted(slices.Values(ids)))))
	})
	if err == nil && found < len(ms) {
		err = fault.Internal("entry_missing", "the database lacks the metadata of %d packages", len(ms)-found)
	}
	return out, err
}

// members gives the packages of a chunk, which are read unless it has them.
func (s *Store) members(ctx context.Context, c chunk) (out []member, err error) {
	if c.Members != nil {
		return c.Members, nil
	}
	err = s.DB.Read(ctx, func(tx *db.Tx) error { out, err = s.membersTx(tx, c); return err })
	return out, err
}

func (s *Store) membersTx(tx *db.Tx, c chunk) ([]member, error) {
	if c.Members != nil {
		return c.Members, nil
	}
	if ms, ok := s.fresh.get(c.ID); ok {
		return ms, nil
	}
	places, err := s.places(tx, c.ID)
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(places))
	at := make(map[string]int, len(places))
	for i, p := range places {
		ids[i] = p.PkgID
		at[p.PkgID] = i
	}
	out := make([]member, len(places))
	err = PackagesByID(tx, ids, func(p Package) { out[at[p.PkgID]].Package = p })
	for i, p := range places {
		if out[i].PkgID == "" && err == nil {
			out[i].Package = out[at[p.PkgID]].Package // one package at two places
		}
		if out[i].PkgID == "" && err == nil {
			err = fault.Internal("package_missing", "the database lacks the package %s of a chunk", p.PkgID)
		}
		out[i].Href = p.Href
	}
	return out, err
}

// placesOf gives the list of a chunk's packages.
func (s *Store) placesOf(ctx context.Context, c chunk) (out []place, err error) {
	if c.Members != nil {
		return placesIn(c), nil
	}
	err = s.DB.Read(ctx, func(tx *db.Tx) error { out, err = s.places(tx, c.ID); return err })
	return out, err
}

// placesIn is the list of a chunk that has its packages: one of a plan may not be written yet.
func placesIn(c chunk) (out []place) {
	for _, m := range c.Members {
		out = append(out, place{PkgID: m.PkgID, Href: m.Href})
	}
	return out
}

// places reads the list of a chunk's packages.
func (s *Store) places(tx *db.Tx, id string) ([]place, error) {
	var data []byte
	if err := tx.QueryRow("SELECT places FROM repo_chunk WHERE id = $1", id).Scan(&data); db.NoRow(err) {
		return nil, fault.Unavailable("chunk_gone", "the packages of a snapshot were swept away while they were being read").Fix("try again: the channel has moved on since")
	} else if err != nil {
		return nil, err
	}
	open, err := s.unpack.DecodeAll(data, nil)
	if err != nil {
		return nil, err
	}
	return set.DecodePlaces(open)
}

// state of a hash after each part of a file, to go on from when the next tree begins alike.
type checkpoints struct {
	head   string
	chunks []string
	states [][]byte
}

// hashFiles gives the three files their checksums and sizes. What begins like the file of the
// tree's last form is not read again.
func (s *Store) hashFiles(t *tree, files []file, parts []part) error {
	var hs [3]hash.Hash
	var next [3]checkpoints
	from := [3]int{}
	was, _ := s.hashed.get(t.of)
	for k := range hs {
		hs[k] = sha256.New()
		n := 0
		if was[k].head == string(files[k].Head) {
			for n < len(parts) && n < len(was[k].chunks) && was[k].chunks[n] == t.chunks[n].ID {
				n++
			}
		}
		next[k] = checkpoints{head: string(files[k].Head), chunks: slices.Clone(was[k].chunks[:n]), states: slices.Clone(was[k].states[:n])}
		from[k] = n
		if n == 0 {
			hs[k].Write(files[k].Head)
		} else if err := hs[k].(encoding.BinaryUnmarshaler).UnmarshalBinary(was[k].states[n-1]); err != nil {
			return err
		}
		files[k].Size = int64(len(files[k].Head) + len(files[k].Tail))
	}
	buf := make([]byte, 256<<10)
	for i, p := range parts {
		for k := range files {
			files[k].Size += p.size[k]
		}
		if i < min(from[0], from[1], from[2]) {
			continue
		}
		b, err := s.Blobs.Get(p.blob)
		if err != nil {
			return err
		}
		for k := range hs {
			if i >= from[k] {
				if _, err = io.CopyBuffer(hs[k], onlyReader{io.NewSectionReader(b, p.offset(rpm.Kind(k)), p.size[k])}, buf); err != nil {
					break
				}
				var st []byte
				if st, err = hs[k].(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
					break
				}
				next[k].chunks = append(next[k].chunks, t.chunks[i].ID)
				next[k].states = append(next[k].states, st)
			}
		}
		if err := errors.Join(err, b.Close()); err != nil {
			return err
		}
	}
	for k := range hs {
		hs[k].Write(files[k].Tail)
		files[k].Sum = hex.EncodeToString(hs[k].Sum(nil))
	}
	s.hashed.put(t.of, next)
	return nil
}

// keptHashes is of how many trees the states of the hashes are kept: 350 bytes a chunk.
const keptHashes = 64

// onlyReader hides the other methods of a reader, so that a copy uses the given buffer.
type onlyReader struct{ io.Reader }

// opened reads what a file of a tree unpacks to.
func (s *Store) opened(t *tree, k rpm.Kind, parts []part, n int, w io.Writer) error {
	if _, err := w.Write(k.Head(n)); err != nil {
		return err
	}
	for _, p := range parts {
		data, err := s.Blobs.ReadAll(p.blob, maxMeta)
		if err != nil {
			return err
		}
		open, err := s.openMember(t.codec, data, p, k)
		if err != nil {
			return err
		}
		if _, err := w.Write(open); err != nil {
			return err
		}
	}
	_, err := w.Write(k.Tail())
	return err
}

// single makes a file of a tree as one member.
func (s *Store) single(t *tree, k rpm.Kind, parts []part, n int, pack *rpm.Packer) (rpm.MetaFile, error) {
	var open bytes.Buffer
	if err := s.opened(t, k, parts, n, &open); err != nil {
		return rpm.MetaFile{}, err
	}
	m, err := rpm.NewMetaFile(k.String(), open.Bytes(), pack)
	if err != nil {
		return m, err
	}
	_, err = s.Blobs.PutBytes(m.Data)
	m.Data = nil
	return m, err
}

// assemble writes a file that is put together from the parts of chunks.
func (s *Store) assemble(ctx context.Context, t *tree, f file, w io.Writer) error {
	parts, err := s.parts(ctx, t)
	if err != nil {
		return err
	}
	if _, err := w.Write(f.Head); err != nil {
		return err
	}
	for _, p := range parts {
		b, err := s.Blobs.Get(p.blob)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, io.NewSectionReader(b, p.offset(*f.Kind), p.size[*f.Kind]))
		if err := errors.Join(err, b.Close()); err != nil {
			return err
		}
	}
	_, err = w.Write(f.Tail)
	return err
}

// openFile reads what a file of a tree that is a blob unpacks to.
func (s *Store) openFile(t *tree, path string) ([]byte, error) {
	b, err := s.Blobs.Get(blob.Digest(t.sum(path)))
	if err != nil {
		return nil, err
	}
	defer b.Close()
	in, done, err := rpm.Open(b)
	if err != nil {
		return nil, err
	}
	defer done()
	open, err := io.ReadAll(io.LimitReader(in, maxRow+1))
	if err == nil && len(open) > maxRow {
		err = fault.TooLarge("metadata_size", "%s unpacks to over %d bytes", path, maxRow)
	}
	return open, err
}

// maxWhole is how many bytes of put together files are kept. They can be made again at any
// time. All of them are looked at after so many new bytes, as that takes the longer the more they
// are.
const (
	maxWhole   = 2 << 30
	sweepWhole = maxWhole / 16
)

// whole opens a file of a tree that is put together from parts: as one file, which the kernel
// can send. It is made when it is first asked for: most states of a busy tag nobody reads.
func (s *Store) whole(ctx context.Context, t *tree, f file) (*os.File, error) {
	name := filepath.Join(s.Dir, "whole", f.Sum)
	if in, err := os.Open(name); err == nil {
		return in, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	_, err, _ := s.making.Do(f.Sum, func() (any, error) { return nil, s.makeWhole(context.WithoutCancel(ctx), t, f, name) })
	if err != nil {
		return nil, err
	}
	return os.Open(name)
}

func (s *Store) makeWhole(ctx context.Context, t *tree, f file, name string) error {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if s.unswept.Add(f.Size) > sweepWhole {
		s.unswept.Store(0)
		if err := dropOldest(dir, maxWhole-sweepWhole); err != nil {
			return err
		}
	}
	tmp, err := os.CreateTemp(dir, "making-")
	if err != nil {
		return durable.Full(dir, err)
	}
	defer os.Remove(tmp.Name())
	h := sha256.New()
	err = s.assemble(ctx, t, f, io.MultiWriter(tmp, h))
	if err := errors.Join(err, tmp.Close()); err != nil {
		return durable.Full(dir, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != f.Sum {
		return fault.Internal("tree_damaged", "%s of the tree %.12s comes out as %s", f.Path, t.id, got).Fix("run `drover blob scrub`: a blob of it is damaged")
	}
	return os.Rename(tmp.Name(), name)
}

// dropOldest removes the oldest files until the others have at most so many bytes.
func dropOldest(dir string, most int64) error {
	es, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var infos []fs.FileInfo
	for _, e := range es {
		if in, err := e.Info(); err == nil {
			infos = append(infos, in)
			most -= in.Size()
		}
	}
	slices.SortFunc(infos, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, in := range infos {
		if most >= 0 {
			break
		}
		if err := os.Remove(filepath.Join(dir, in.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		most += in.Size()
	}
	return nil
}

// keepTree writes the rows of a tree that is new, with those of its chunks.
func (s *Store) keepTree(tx *db.Tx, t *tree) error {
	if !t.fresh {
		return nil
	}
	for _, c := range t.chunks {
		if c.Members == nil {
			continue // it came from the database
		}
		if err := s.keepChunk(tx, c); err != nil {
			return err
		}
	}
	if len(t.bases) == 0 { // else it comes from a tree that is kept
		if err := t.stillThere(tx); err != nil {
			return err
		}
	}
	for id, p := range t.parts {
		if _, err := tx.Exec("INSERT INTO repo_part (chunk, codec, digest, primary_size, filelists_size, other_size, primary_open, filelists_open, other_open) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (chunk, codec) DO NOTHING",
			id, string(t.codec), p.blob.String(), p.size[0], p.size[1], p.size[2], p.open[0], p.open[1], p.open[2]); err != nil {
			return err
		}
	}
	var chunks []byte
	for _, c := range t.chunks {
		id, err := hex.DecodeString(c.ID)
		if err != nil {
			return err
		}
		chunks = append(chunks, id...)
	}
	if chunks == nil {
		chunks = []byte{}
	}
	files, err := json.Marshal(t.files)
	if err != nil {
		return err
	}
	n, size := t.packages()
	added, err := tx.Exec("INSERT INTO repo_tree (id, packages, bytes, codec, key, chunks, files, created) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING", t.id, n, size, string(t.codec), t.key, chunks, string(files), tx.Now())
	if err != nil || added == 0 {
		return err
	}
	if t.signed != "" {
		if _, err := tx.Exec("INSERT INTO repo_signature (repomd, key, tag, digest) VALUES ($1, $2, $3, $4) ON CONFLICT (repomd, key, tag) DO NOTHING", t.sum(repomdFile), t.key, t.signed, t.sum(repomdFile+".asc")); err != nil {
			return err
		}
	}
	for _, f := range t.files {
		if _, err := tx.Exec("INSERT INTO repo_file (path, tree) VALUES ($1, $2) ON CONFLICT (path, tree) DO NOTHING", f.Path, t.id); err != nil {
			return err
		}
	}
	return nil
}

// stillThere makes sure that what the tree builds upon was not swept away since it was read.
func (t *tree) stillThere(tx *db.Tx) error {
	gone := fault.Unavailable("swept", "what the snapshot builds upon was swept away meanwhile").Fix("nothing is lost: it is made again at the next try")
	ids := map[string]bool{}
	for _, c := range t.chunks {
		ids[c.ID] = true
	}
	var n int
	if err := tx.QueryRow("SELECT COUNT(*) FROM repo_chunk WHERE id IN (SELECT value->>'v' FROM json_each($1))", db.List(set.IDs(t.chunks))).Scan(&n); err != nil {
		return err
	}
	if n < len(ids) {
		return gone
	}
	for _, c := range t.chunks {
		if c.Members == nil {
			continue
		}
		pkgs := map[string]bool{}
		for _, m := range c.Members {
			pkgs[m.PkgID] = true
		}
		if err := tx.QueryRow("SELECT COUNT(*) FROM repo_package WHERE pkgid IN (SELECT value->>'v' FROM json_each($1))", db.List(slices.Collect(maps.Keys(pkgs)))).Scan(&n); err != nil {
			return err
		}
		if n < len(pkgs) {
			return gone
		}
	}
	if !slices.ContainsFunc(t.files, func(f file) bool { return f.Kind != nil }) {
		return nil
	}
	if err := tx.QueryRow("SELECT COUNT(*) FROM repo_part WHERE codec = $1 AND chunk IN (SELECT value->>'v' FROM json_each($2))", string(t.codec), db.List(set.IDs(t.chunks))).Scan(&n); err != nil {
		return err
	}
	for id := range t.parts {
		delete(ids, id)
	}
	if n < len(ids) {
		return gone
	}
	return nil
}

func (s *Store) keepChunk(tx *db.Tx, c chunk) error {
	_, err := tx.Exec("INSERT INTO repo_chunk (id, packages, first, last, bytes, built, places) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING",
		c.ID, c.N, c.First, c.Last, c.Bytes, c.Built, s.squeeze(set.EncodePlaces(c.Members)))
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(c.Members, func(m member) bool { return m.Core == "" }) { // what is to be fetched changes
		s.fresh.put(c.ID, slices.Clone(c.Members))
	}
	for _, m := range c.Members {
		if m.Href == m.Location() {
			continue
		}
		if _, err := tx.Exec("INSERT INTO repo_location (href, pkgid) VALUES ($1, $2) ON CONFLICT (href, pkgid) DO NOTHING", m.Href, m.PkgID); err != nil {
			return err
		}
	}
	return nil
}

// squeeze packs a value of a row.
func (s *Store) squeeze(b []byte) []byte { return s.packed.EncodeAll(b, nil) }

// tree reads a tree of a snapshot, with its chunks; without one by the name it is nil.
func (s *Store) tree(tx *db.Tx, snapshot, name string) (*tree, error) {
	var id string
	err := tx.QueryRow("SELECT tree FROM repo_snapshot_tree WHERE snapshot = $1 AND name = $2", snapshot, name).Scan(&id)
	if db.NoRow(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t, err := s.treeByID(tx, id)
	if err != nil {
		return nil, err
	}
	t.name = name
	return t, nil
}

// keptFresh is of how many chunks the packages are kept: 80 KiB each. What was changed is changed
// again soon.
const keptFresh = 16

// keptTrees is how many trees are kept in memory: 250 bytes a chunk.
const keptTrees = 64

// treeByID reads a tree. Trees never change, so those read last are kept.
func (s *Store) treeByID(tx *db.Tx, id string) (*tree, error) {
	if t, ok := s.trees.get(id); ok {
		return &t, nil
	}
	t := tree{id: id}
	var raw []byte
	var files string
	if err := tx.QueryRow("SELECT codec, key, chunks, files FROM repo_tree WHERE id = $1", id).Scan(&t.codec, &t.key, &raw, &files); err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(files), &t.files); err != nil {
		return nil, err
	}
	at := map[string]int{}
	for i := range len(raw) / sha256.Size {
		c := chunk{ID: hex.EncodeToString(raw[i*sha256.Size : (i+1)*sha256.Size])}
		at[c.ID] = i
		t.chunks = append(t.chunks, c)
	}
	err := tx.Each(func(scan func(...any) error) error {
		var c chunk
		err := scan(&c.ID, &c.N, &c.First, &c.Last, &c.Bytes, &c.Built)
		if i, ok := at[c.ID]; ok {
			t.chunks[i] = c
		}
		return err
	}, "SELECT id, packages, first, last, bytes, built FROM repo_chunk WHERE id IN (SELECT value->>'v' FROM json_each($1))", db.List(set.IDs(t.chunks)))
	if err != nil {
		return nil, err
	}
	for _, c := range t.chunks {
		if c.N == 0 {
			return nil, fault.Internal("chunk_missing", "the database lacks a chunk of the tree %.12s", id)
		}
	}
	s.remember(t)
	return &t, nil
}

// remember keeps a tree that is in the database in memory.
func (s *Store) remember(t tree) {
	t.name, t.fresh, t.bases, t.parts, t.of = "", false, nil, nil, ""
	t.chunks = slices.Clone(t.chunks)
	for i := range t.chunks {
		t.chunks[i].Members = nil
	}
	s.trees.put(t.id, t)
}

// treesOfSnapshot reads all trees of a snapshot, in the order of their names.
func (s *Store) treesOfSnapshot(tx *db.Tx, snapshot string) ([]*tree, error) {
	names, err := db.Column[string](tx, "SELECT name FROM repo_snapshot_tree WHERE snapshot = $1 ORDER BY name", snapshot)
	var out []*tree
	for _, n := range names {
		t, err := s.tree(tx, snapshot, n)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, err
}

// keptPlaces is of how many chunks the lists of packages are kept: 20 KiB each.
const keptPlaces = 512

// has finds a package in a tree by its place; anywhere for "".
func (s *Store) has(tx *db.Tx, t *tree, p Package, href string) (bool, error) {
	for _, c := range t.chunks {
		if c.First > p.Source {
			break
		}
		if c.Last < p.Source {
			continue
		}
		ps, ok := placesIn(c), c.Members != nil
		if !ok {
			ps, ok = s.lists.get(c.ID)
		}
		if !ok {
			var err error
			if ps, err = s.places(tx, c.ID); err != nil {
				return false, err
			}
			s.lists.put(c.ID, ps)
		}
		if slices.ContainsFunc(ps, func(x place) bool { return x.PkgID == p.PkgID && (href == "" || x.Href == href) }) {
			return true, nil
		}
	}
	return false, nil
}

// newUnpacker makes what reads the packed values of rows.
func newUnpacker() (*zstd.Encoder, *zstd.Decoder, error) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, nil, err
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(maxRow))
	return e, d, err
}

// maxRow is the most bytes that a packed value of a row unpacks to.
const maxRow = 256 << 20
