package repo

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"

	"drover/internal/db"
	"drover/internal/fault"
	"drover/internal/rpm"
	"drover/internal/solve"
)

// Verdict is what the gate says of a move.
type Verdict struct {
	OK       bool      `json:"ok"`
	Findings []Finding `json:"findings"`
	Broken   int       `json:"broken,omitempty"` // packages that could not be installed before either
	Fixed    int       `json:"fixed,omitempty"`  // that can be now, and could not before
}

// Finding is one thing that a move would make worse.
type Finding struct {
	Kind    string `json:"kind" doc:"missing, unsigned, twice, broken, conflict, downgrade"`
	Package string `json:"package"`
	Tree    string `json:"tree,omitempty"`
	Text    string `json:"text"`
}

// Summary is the verdict in a few words.
func (v Verdict) Summary() string {
	if v.OK {
		return "the gate is open"
	}
	return fmt.Sprintf("%d findings, the first: %s", len(v.Findings), v.Findings[0].Text)
}

// maxFindings bounds what a verdict tells; the rest is as bad.
const maxFindings = 200

// gate compares what a channel has with what it would have: is everything there and signed,
// does what could be installed stay so, do files get in each other's way, does no version go
// down. It looks at what differs.
func (s *Store) gate(ctx context.Context, old, now []*tree) (v Verdict, err error) {
	v.Findings = []Finding{}
	var removed, added map[string]Package
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		removed, added, err = s.differTrees(tx, old, now)
		return err
	})
	if err != nil {
		return v, err
	}
	gone, fresh := map[string]Package{}, map[string]Package{}
	for h, p := range removed {
		if _, stays := added[h]; !stays {
			gone[h] = p
		}
	}
	for h, p := range added {
		if _, was := removed[h]; !was {
			fresh[h] = p
		}
	}
	v.Findings = append(v.Findings, s.gatePresent(now, fresh)...)
	v.Findings = append(v.Findings, downgrades(removed, added)...)
	groups := map[string]bool{}
	for _, t := range now {
		if a := t.arch(); a != "" {
			groups[a] = true
		}
	}
	// Without a state before, everything is new and nothing can get worse.
	for _, arch := range slices.Sorted(maps.Keys(groups)) {
		if len(old) == 0 {
			break
		}
		if err := s.gateArch(ctx, &v, arch, ofArch(old, arch), ofArch(now, arch), gone, fresh); err != nil {
			return v, err
		}
	}
	slices.SortFunc(v.Findings, func(a, b Finding) int {
		return strings.Compare(a.Kind+"\x00"+a.Tree+"\x00"+a.Package+"\x00"+a.Text, b.Kind+"\x00"+b.Tree+"\x00"+b.Package+"\x00"+b.Text)
	})
	v.Findings = slices.Compact(v.Findings)
	v.OK = len(v.Findings) == 0
	v.Findings = v.Findings[:min(len(v.Findings), maxFindings)]
	return v, nil
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

func ofArch(ts []*tree, arch string) []*tree {
	return slices.DeleteFunc(slices.Clone(ts), func(t *tree) bool { return t.arch() != arch })
}

// gatePresent finds packages that are not here yet, not signed, or there twice with different
// content.
func (s *Store) gatePresent(now []*tree, fresh map[string]Package) (out []Finding) {
	signs := slices.ContainsFunc(now, func(t *tree) bool { return t.key != "" })
	content := map[string]string{}
	for h, p := range fresh {
		if p.Core == "" {
			out = append(out, Finding{Kind: "missing", Package: p.NEVRA, Text: fmt.Sprintf("%s is known by its mirror's metadata only; it is not fetched yet", p.NEVRA)})
		} else if signs && p.Key == "" && !s.isSigned(p) {
			out = append(out, Finding{Kind: "unsigned", Package: p.NEVRA, Text: p.NEVRA + " has no signature"})
		}
		if other, twice := content[p.NEVRA]; twice && other != h {
			out = append(out, Finding{Kind: "twice", Package: p.NEVRA, Text: fmt.Sprintf("%s is there twice with different content", p.NEVRA)})
		}
		content[p.NEVRA] = h
	}
	return out
}

// isSigned tells whether a package carries an OpenPGP signature of anybody.
func (s *Store) isSigned(p Package) bool {
	r, size, c, err := s.open(p.Head, p.Core)
	if err != nil {
		return false
	}
	defer c.Close()
	q, err := rpm.Read(r, size)
	return err == nil && len(q.Signatures()) > 0
}

// gateArch looks at what a host of an arch would see.
func (s *Store) gateArch(ctx context.Context, v *Verdict, arch string, old, now []*tree, gone, fresh map[string]Package) error {
	was, is, paths, err := s.universes(ctx, old, now)
	if err != nil {
		return err
	}
	d := solve.Check(was, is)
	v.Broken += d.Before
	v.Fixed += d.Fixed
	for _, fs := range [][]solve.Finding{d.Broken, d.Added} {
		for _, f := range fs {
			v.Findings = append(v.Findings, Finding{Kind: "broken", Package: f.Package.String(), Tree: arch, Text: strings.Join(f.Why, "; ")})
		}
	}
	fs, err := s.fileConflicts(ctx, arch, now, paths, gone, fresh)
	v.Findings = append(v.Findings, fs...)
	return err
}

// gateData is what the gate needs to know of a chunk, in memory.
type gateData struct {
	deps  *solve.Block
	paths []byte
}

// poolMost is how many packages the solver's pool may have seen before a new one is begun.
const poolMost = 400_000

// universes loads what is asked for of the chunks of two sets of trees.
func (s *Store) universes(ctx context.Context, old, now []*tree) (was, is *solve.Universe, paths map[string][]byte, err error) {
	s.gateMu.Lock()
	defer s.gateMu.Unlock()
	if s.pool == nil || s.pool.Len() > poolMost {
		s.pool, s.gates = solve.NewPool(), map[string]gateData{}
	}
	paths = map[string][]byte{}
	var us [2]*solve.Universe
	for i, ts := range [][]*tree{old, now} {
		var blocks []*solve.Block
		for _, t := range ts {
			if err := s.loadGates(ctx, t.chunks); err != nil {
				return nil, nil, nil, err
			}
			for _, c := range t.chunks {
				g := s.gates[c.id]
				blocks = append(blocks, g.deps)
				if i == 1 {
					paths[c.id] = g.paths
				}
			}
		}
		us[i] = s.pool.Universe(blocks...)
	}
	return us[0], us[1], paths, nil
}

// loadGates gets what the gate needs of chunks from the database, or makes it. gateMu is held.
func (s *Store) loadGates(ctx context.Context, cs []chunk) error {
	var missing []chunk
	for _, c := range cs {
		if _, ok := s.gates[c.id]; !ok {
			missing = append(missing, c)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var id string
			var deps, paths []byte
			if err := scan(&id, &deps, &paths); err != nil {
				return err
			}
			open, err := s.unpack.DecodeAll(deps, nil)
			if err != nil {
				return err
			}
			b, err := s.pool.Decode(open)
			s.gates[id] = gateData{b, paths}
			return err
		}, "SELECT chunk, deps, paths FROM repo_gate WHERE chunk IN (SELECT value->>'v' FROM json_each($1))", chunkIDs(missing))
	})
	if err != nil {
		return err
	}
	type row struct {
		id          string
		deps, paths []byte
	}
	var rows []row
	keep := func() error {
		err := s.DB.Write(ctx, func(tx *db.Tx) error {
			for _, r := range rows {
				if _, err := tx.Exec("INSERT INTO repo_gate (chunk, deps, paths) VALUES ($1, $2, $3) ON CONFLICT (chunk) DO NOTHING", r.id, r.deps, r.paths); err != nil {
					return err
				}
			}
			return nil
		})
		rows = nil
		return err
	}
	for _, c := range missing {
		if _, ok := s.gates[c.id]; ok {
			continue
		}
		deps, paths, err := s.makeGate(ctx, c)
		if err != nil {
			return err
		}
		b, err := s.pool.Decode(deps)
		if err != nil {
			return err
		}
		s.gates[c.id] = gateData{b, paths}
		rows = append(rows, row{c.id, s.squeeze(deps), paths})
		if len(rows) == 32 {
			if err := keep(); err != nil {
				return err
			}
		}
	}
	return keep()
}

// makeGate takes from what metadata says of a chunk's packages what the gate needs.
func (s *Store) makeGate(ctx context.Context, c chunk) (deps, paths []byte, err error) {
	ms := c.members
	if ms == nil {
		if ms, err = s.members(ctx, c); err != nil {
			return nil, nil, err
		}
	}
	ts, err := s.templates(ctx, ms)
	if err != nil {
		return nil, nil, err
	}
	open := rpm.KindPrimary.Head(len(ms))
	paths = []byte{}
	var hashes []byte
	for i, t := range ts {
		open = t.Append(open, rpm.KindPrimary, rpm.Place{PkgID: ms[i].PkgID, Href: ms[i].href, Size: ms[i].Size, Mtime: ms[i].Mtime, HeaderStart: ms[i].Start, HeaderEnd: ms[i].End})
		hashes = hashes[:0]
		rpm.FilesOf(t.Append(nil, rpm.KindFilelists, rpm.Place{}), func(path, typ string) {
			if typ == "" {
				hashes = binary.LittleEndian.AppendUint32(hashes, hashPath(path))
			}
		})
		paths = binary.AppendUvarint(paths, uint64(len(hashes)/4))
		paths = append(paths, hashes...)
	}
	var pkgs []solve.Package
	err = rpm.ReadPrimaryDeps(bytes.NewReader(append(open, rpm.KindPrimary.Tail()...)), func(p rpm.PrimaryPackage) error {
		pkgs = append(pkgs, solve.FromPrimary(&p))
		return nil
	})
	return solve.Encode(pkgs), paths, err
}

func hashPath(path string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(path))
	return h.Sum32()
}

// downgrades finds names of which the newest version would go down. It is given all packages
// of the chunks that differ: all versions of a package lie in one.
func downgrades(old, now map[string]Package) (out []Finding) {
	newest := func(ps map[string]Package) map[string]rpm.NEVRA {
		m := map[string]rpm.NEVRA{}
		for _, p := range ps {
			n, err := rpm.ParseNEVRA(p.NEVRA)
			if err != nil || n.Arch == "src" || n.Arch == "nosrc" {
				continue
			}
			k := n.Name + "." + n.Arch
			if had, ok := m[k]; !ok || rpm.CompareEVR(had.EVR(), n.EVR()) < 0 {
				m[k] = n
			}
		}
		return m
	}
	is := newest(now)
	for k, w := range newest(old) {
		if n, ok := is[k]; ok && rpm.CompareEVR(w.EVR(), n.EVR()) > 0 {
			out = append(out, Finding{Kind: "downgrade", Package: n.String(), Text: fmt.Sprintf("%s goes down from %s to %s: hosts that have the former keep it", k, w.EVR(), n.EVR())})
		}
	}
	return out
}

// owner is a package of a chunk that has a path.
type owner struct {
	chunk  string
	member int
}

// fileConflicts finds files that a new package and another one both have and that are not the
// same: rpm would refuse to install both.
func (s *Store) fileConflicts(ctx context.Context, arch string, now []*tree, paths map[string][]byte, gone, fresh map[string]Package) (out []Finding, err error) {
	// The paths of new packages, and who of all has one with the same hash.
	wanted := map[uint32]bool{}
	var few [1 << 13]uint64 // bits of the hashes, to pass over nearly all of the others quickly
	byPkg := map[string]Package{}
	for _, p := range fresh {
		byPkg[p.PkgID] = p
	}
	chunks := map[string]chunk{}
	for _, t := range now {
		for _, c := range t.chunks {
			chunks[c.id] = c
		}
	}
	isFresh := map[owner]bool{}
	for id, c := range chunks {
		if !touches(c, fresh) {
			continue
		}
		ms, err := s.membersOf(ctx, c)
		if err != nil {
			return nil, err
		}
		for i, m := range ms {
			if _, ok := fresh[m.Header]; ok {
				isFresh[owner{id, i}] = true
			}
		}
		err = eachPath(paths[id], func(i int, h uint32) {
			if isFresh[owner{id, i}] {
				wanted[h] = true
				few[h>>6&(1<<13-1)] |= 1 << (h & 63)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	if len(wanted) == 0 {
		return nil, nil
	}
	owners := map[uint32][]owner{}
	for id := range chunks {
		err := eachPath(paths[id], func(i int, h uint32) {
			if few[h>>6&(1<<13-1)]&(1<<(h&63)) != 0 && wanted[h] {
				owners[h] = append(owners[h], owner{id, i})
			}
		})
		if err != nil {
			return nil, err
		}
	}
	pairs := map[[2]string][2]Package{}
	for _, os := range owners {
		for i, a := range os {
			for _, b := range os[i+1:] {
				if !isFresh[a] && !isFresh[b] {
					continue
				}
				x, err := s.memberAt(ctx, chunks[a.chunk], a.member)
				if err != nil {
					return nil, err
				}
				y, err := s.memberAt(ctx, chunks[b.chunk], b.member)
				if err != nil {
					return nil, err
				}
				// Versions of one package are never installed beside each other.
				if x.name() == y.name() && (x.Arch == y.Arch || x.Arch == "noarch" || y.Arch == "noarch") || x.Header == y.Header {
					continue
				}
				if x.Header > y.Header {
					x, y = y, x
				}
				pairs[[2]string{x.Header, y.Header}] = [2]Package{x, y}
			}
		}
	}
	for _, pair := range pairs {
		path, err := s.collide(pair[0], pair[1])
		if err != nil {
			return nil, err
		}
		if path == "" || s.collidedBefore(pair, path, gone, fresh) {
			continue
		}
		out = append(out, Finding{Kind: "conflict", Package: pair[0].NEVRA, Tree: arch, Text: fmt.Sprintf("%s and %s both have %s, and not the same", pair[0].NEVRA, pair[1].NEVRA, path)})
	}
	return out, nil
}

// touches tells whether a chunk may have one of some packages.
func touches(c chunk, ps map[string]Package) bool {
	for _, p := range ps {
		if c.first <= p.Source && p.Source <= c.last {
			return true
		}
	}
	return false
}

func (s *Store) membersOf(ctx context.Context, c chunk) ([]member, error) {
	if c.members != nil {
		return c.members, nil
	}
	return s.members(ctx, c)
}

func (s *Store) memberAt(ctx context.Context, c chunk, i int) (Package, error) {
	ms, err := s.membersOf(ctx, c)
	if err != nil {
		return Package{}, err
	}
	if i >= len(ms) {
		return Package{}, fault.Internal("gate_damaged", "the gate's data of a chunk do not fit it")
	}
	return ms[i].Package, nil
}

// eachPath goes through the hashes of a chunk's paths.
func eachPath(b []byte, fn func(member int, hash uint32)) error {
	for i := 0; len(b) > 0; i++ {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size)/4 {
			return fault.Internal("gate_damaged", "the gate's data of a chunk are damaged")
		}
		b = b[size:]
		for ; n > 0; n-- {
			fn(i, binary.LittleEndian.Uint32(b))
			b = b[4:]
		}
	}
	return nil
}

// collide finds a path that two packages both have and of which rpm would say that it conflicts,
// or "" (rpm's lib/transaction.c, handleInstInstalledFile and handleOverlappedFiles): what is the
// same may be shared, of two binaries of different word sizes one is taken, and packages that
// exclude each other never meet.
func (s *Store) collide(a, b Package) (string, error) {
	var fs [2]map[string]rpm.File
	var qs [2]*rpm.Package
	for i, p := range []Package{a, b} {
		if p.Core == "" {
			return "", nil // its own finding
		}
		r, size, c, err := s.open(p.Head, p.Core)
		if err != nil {
			return "", err
		}
		q, err := rpm.Read(r, size)
		if cerr := c.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return "", err
		}
		list, err := q.Header.Files()
		if err != nil {
			return "", err
		}
		qs[i], fs[i] = q, map[string]rpm.File{}
		for _, f := range list {
			fs[i][f.Path] = f
		}
	}
	if excludes(qs[0].Header, qs[1].Header) || excludes(qs[1].Header, qs[0].Header) {
		return "", nil
	}
	for _, path := range slices.Sorted(maps.Keys(fs[0])) {
		x := fs[0][path]
		y, both := fs[1][path]
		switch {
		case !both, x.IsDir() && y.IsDir(), (x.Flags|y.Flags)&rpm.FileGhost != 0:
		case x.Mode == y.Mode && x.Digest == y.Digest && x.Linkto == y.Linkto:
		case x.Color != 0 && y.Color != 0 && x.Color != y.Color:
		default:
			return path, nil
		}
	}
	return "", nil
}

// excludes tells whether a conflicts with something that b provides, or obsoletes it.
func excludes(a, b rpm.Header) bool {
	n := b.NEVRA()
	self := rpm.Dep{Name: n.Name, Flags: rpm.SenseEqual, EVR: n.EVR()}
	provided := append(b.DepList(rpm.Provides), self)
	for _, c := range a.DepList(rpm.Conflicts) {
		if slices.ContainsFunc(provided, func(p rpm.Dep) bool { return rpm.Satisfies(p, c) }) {
			return true
		}
	}
	return slices.ContainsFunc(a.DepList(rpm.Obsoletes), func(o rpm.Dep) bool { return rpm.Satisfies(self, o) })
}

// collidedBefore tells whether the versions of before had the same conflict: a move is not to
// blame for it.
func (s *Store) collidedBefore(pair [2]Package, path string, gone, fresh map[string]Package) bool {
	before := func(p Package) []Package {
		if _, isNew := fresh[p.Header]; !isNew {
			return []Package{p}
		}
		var out []Package
		for _, g := range gone {
			if g.name() == p.name() && g.Arch == p.Arch {
				out = append(out, g)
			}
		}
		return out
	}
	for _, a := range before(pair[0]) {
		for _, b := range before(pair[1]) {
			if p, err := s.collide(a, b); err == nil && p == path {
				return true
			}
		}
	}
	return false
}
