package gate

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"sync"

	"drover/internal/db"
	"drover/internal/fault"
	"drover/internal/repo/set"
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
	Kind    string `json:"kind" doc:"missing, unsigned, twice, broken, conflict, downgrade, unlisted"`
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

// Tree is a repository of a snapshot as a gate sees it.
type Tree struct {
	Arch   string // of whose hosts it is; "" for sources and debug packages
	Signed bool   // its packages must have a signature
	Chunks []set.Chunk
}

// Config is where a Gate reads from.
type Config struct {
	DB        *db.DB
	Members   func(ctx context.Context, c set.Chunk) ([]set.Member, error)
	Places    func(ctx context.Context, c set.Chunk) ([]set.Place, error)
	Templates func(ctx context.Context, ms []set.Member) ([]rpm.Template, error)
	Headers   func(p set.Package) (*rpm.Package, error)
	Pack      func([]byte) []byte // a value of a row
	Unpack    func([]byte) ([]byte, error)
}

// Gate judges moves. What it knows of chunks is kept, in memory and in the database.
type Gate struct {
	Config
	mu    sync.Mutex // guards what follows, but for verdicts
	pool  *solve.Pool
	gates map[string]data // by chunk, of pool
	// What was found out of a universe stays with it: the next question from there is cheap.
	universes map[string]*solve.Universe // by the chunks, of pool
	judged    sync.Mutex                 // guards verdicts
	verdicts  map[string]Verdict         // by move: whoever promotes has asked for the plan before
}

// keptVerdicts is how many verdicts are kept, of at most maxFindings each.
const keptVerdicts = 64

// New makes a gate.
func New(c Config) *Gate { return &Gate{Config: c} }

// Difference is the packages, by header, of which one of two sets of trees has a file that the
// other does not have. What is in both was signed anew.
type Difference struct {
	Old, Now map[string]set.Package
	// Others lists the versions of a package, by name and arch, that the new trees have beside
	// some: NEVRAs.
	Others func(of set.Package, beside map[string]set.Package) ([]string, error)
}

// Gone is what only the old trees have.
func (d Difference) Gone() map[string]set.Package { return less(d.Old, d.Now) }

// Fresh is what only the new trees have.
func (d Difference) Fresh() map[string]set.Package { return less(d.Now, d.Old) }

func less(a, b map[string]set.Package) map[string]set.Package {
	out := map[string]set.Package{}
	for h, p := range a {
		if _, ok := b[h]; !ok {
			out[h] = p
		}
	}
	return out
}

// Judge compares what a channel has with what it would have: is everything there and signed,
// does what could be installed stay so, do files get in each other's way, does no version go
// down. It looks at what differs.
func (s *Gate) Judge(ctx context.Context, old, now []Tree, d Difference) (v Verdict, err error) {
	// The same packages always get the same verdict, once all of them are here.
	id, here := move(old, now), true
	s.judged.Lock()
	v, ok := s.verdicts[id]
	s.judged.Unlock()
	if ok {
		v.Findings = slices.Clone(v.Findings)
		return v, nil
	}
	defer func() {
		if err == nil && here {
			s.judged.Lock()
			defer s.judged.Unlock()
			if s.verdicts == nil || len(s.verdicts) >= keptVerdicts {
				s.verdicts = map[string]Verdict{}
			}
			kept := v
			kept.Findings = slices.Clone(v.Findings)
			s.verdicts[id] = kept
		}
	}()
	v.Findings = []Finding{}
	gone, fresh := d.Gone(), d.Fresh()
	v.Findings = append(v.Findings, s.present(now, fresh)...)
	down, err := downgrades(gone, fresh, d.Others)
	if err != nil {
		return v, err
	}
	v.Findings = append(v.Findings, down...)
	arches := map[string]bool{}
	for _, t := range now {
		if t.Arch != "" {
			arches[t.Arch] = true
		}
	}
	// Without a state before, everything is new and nothing can get worse.
	for _, arch := range slices.Sorted(maps.Keys(arches)) {
		if len(old) == 0 {
			break
		}
		all, err := s.judgeArch(ctx, &v, arch, ofArch(old, arch), ofArch(now, arch), gone, fresh)
		if err != nil {
			return v, err
		}
		here = here && all
	}
	here = here && !slices.ContainsFunc(v.Findings, func(f Finding) bool { return f.Kind == "missing" || f.Kind == "unsigned" })
	slices.SortFunc(v.Findings, func(a, b Finding) int {
		return strings.Compare(a.Kind+"\x00"+a.Tree+"\x00"+a.Package+"\x00"+a.Text, b.Kind+"\x00"+b.Tree+"\x00"+b.Package+"\x00"+b.Text)
	})
	v.Findings = slices.Compact(v.Findings)
	v.OK = len(v.Findings) == 0
	v.Findings = v.Findings[:min(len(v.Findings), maxFindings)]
	return v, nil
}

// move names a move by all that its verdict depends on.
func move(old, now []Tree) string {
	h := sha256.New()
	for _, ts := range [][]Tree{old, now} {
		fmt.Fprintf(h, "%d trees\n", len(ts))
		for _, t := range ts {
			fmt.Fprintf(h, "%q %t %d\n", t.Arch, t.Signed, len(t.Chunks))
			for _, c := range t.Chunks {
				h.Write([]byte(c.ID))
			}
		}
	}
	return string(h.Sum(nil))
}

func ofArch(ts []Tree, arch string) []Tree {
	return slices.DeleteFunc(slices.Clone(ts), func(t Tree) bool { return t.Arch != arch })
}

// present finds packages that are not here yet, not signed, or there twice with different
// content.
func (s *Gate) present(now []Tree, fresh map[string]set.Package) (out []Finding) {
	signs := slices.ContainsFunc(now, func(t Tree) bool { return t.Signed })
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
func (s *Gate) isSigned(p set.Package) bool {
	q, err := s.Headers(p)
	return err == nil && len(q.Signatures()) > 0
}

// judgeArch looks at what a host of an arch would see. all tells whether every package that had
// to be opened was here.
func (s *Gate) judgeArch(ctx context.Context, v *Verdict, arch string, old, now []Tree, gone, fresh map[string]set.Package) (all bool, err error) {
	was, is, paths, err := s.load(ctx, old, now)
	if err != nil {
		return false, err
	}
	d := solve.Check(was, is)
	v.Broken += d.Before
	v.Fixed += d.Fixed
	for _, fs := range [][]solve.Finding{d.Broken, d.Added} {
		for _, f := range fs {
			v.Findings = append(v.Findings, Finding{Kind: "broken", Package: f.Package.String(), Tree: arch, Text: strings.Join(f.Why, "; ")})
		}
	}
	fs, all, err := s.fileConflicts(ctx, arch, now, is, paths, gone, fresh)
	v.Findings = append(v.Findings, fs...)
	return all, err
}

// data is what the gate needs to know of a chunk, in memory.
type data struct {
	deps  *solve.Block
	paths []byte
}

// Warm makes what a judgment of trees will need of their chunks, so that it need not be made
// while a person waits.
func (s *Gate) Warm(ctx context.Context, ts []Tree) error {
	for _, t := range ts {
		if t.Arch == "" {
			continue
		}
		// Some at a time: others ask meanwhile.
		for part := range slices.Chunk(t.Chunks, 16) {
			s.mu.Lock()
			err := s.loadGates(ctx, part)
			s.mu.Unlock()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// keptUniverses is how many sets of packages are kept: 1 MiB each for 60,000 packages.
const keptUniverses = 32

// poolMost is how many packages the solver's pool may have seen before a new one is begun.
const poolMost = 400_000

// load gets what is asked for of the chunks of two sets of trees.
func (s *Gate) load(ctx context.Context, old, now []Tree) (was, is *solve.Universe, paths map[string][]byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pool == nil || s.pool.Len() > poolMost {
		s.renew()
	}
	paths = map[string][]byte{}
	var us [2]*solve.Universe
	for i, ts := range [][]Tree{old, now} {
		var blocks []*solve.Block
		key := sha256.New()
		for _, t := range ts {
			if err := s.loadGates(ctx, t.Chunks); err != nil {
				return nil, nil, nil, err
			}
			for _, c := range t.Chunks {
				g := s.gates[c.ID]
				key.Write([]byte(c.ID))
				blocks = append(blocks, g.deps)
				if i == 1 {
					paths[c.ID] = g.paths
				}
			}
		}
		id := hex.EncodeToString(key.Sum(nil))
		if us[i] = s.universes[id]; us[i] == nil {
			if len(s.universes) >= keptUniverses {
				clear(s.universes)
			}
			us[i] = s.pool.Universe(blocks...)
			s.universes[id] = us[i]
		}
	}
	return us[0], us[1], paths, nil
}

// renew begins with an empty pool. mu is held.
func (s *Gate) renew() {
	s.pool, s.gates, s.universes = solve.NewPool(), map[string]data{}, map[string]*solve.Universe{}
}

// loadGates gets what the gate needs of chunks from the database, or makes it. mu is held.
func (s *Gate) loadGates(ctx context.Context, cs []set.Chunk) error {
	if s.pool == nil {
		s.renew()
	}
	var missing []set.Chunk
	for _, c := range cs {
		if _, ok := s.gates[c.ID]; !ok {
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
			open, err := s.Unpack(deps)
			if err != nil {
				return err
			}
			b, err := s.pool.Decode(open)
			s.gates[id] = data{b, paths}
			return err
		}, "SELECT chunk, deps, paths FROM repo_gate WHERE chunk IN (SELECT value->>'v' FROM json_each($1))", db.List(set.IDs(missing)))
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
		if _, ok := s.gates[c.ID]; ok {
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
		s.gates[c.ID] = data{b, paths}
		rows = append(rows, row{c.ID, s.Pack(deps), paths})
		if len(rows) == 32 {
			if err := keep(); err != nil {
				return err
			}
		}
	}
	return keep()
}

// makeGate takes from what metadata says of a chunk's packages what the gate needs.
func (s *Gate) makeGate(ctx context.Context, c set.Chunk) (deps, paths []byte, err error) {
	ms, err := s.Members(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	ts, err := s.Templates(ctx, ms)
	if err != nil {
		return nil, nil, err
	}
	open := rpm.KindPrimary.Head(len(ms))
	paths = []byte{}
	var hashes []byte
	for i, t := range ts {
		open = t.Append(open, rpm.KindPrimary, rpm.Place{PkgID: ms[i].PkgID, Href: ms[i].Href, Size: ms[i].Size, Mtime: ms[i].Mtime, HeaderStart: ms[i].Start, HeaderEnd: ms[i].End})
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

// downgrades finds names of which the newest version would go down.
func downgrades(gone, fresh map[string]set.Package, others func(set.Package, map[string]set.Package) ([]string, error)) (out []Finding, err error) {
	type version struct {
		set.Package
		evr string
	}
	newest := func(ps map[string]set.Package) map[string]version {
		m := map[string]version{}
		for _, p := range ps {
			n, err := rpm.ParseNEVRA(p.NEVRA)
			if err != nil || n.Arch == "src" || n.Arch == "nosrc" {
				continue
			}
			k := n.Name + "." + n.Arch
			if had, ok := m[k]; !ok || rpm.CompareEVR(had.evr, n.EVR()) < 0 {
				m[k] = version{p, n.EVR()}
			}
		}
		return m
	}
	is := newest(fresh)
	for k, was := range newest(gone) {
		now, ok := is[k]
		if ok && rpm.CompareEVR(was.evr, now.evr) <= 0 {
			continue
		}
		rest, err := others(was.Package, fresh)
		if err != nil {
			return nil, err
		}
		for _, r := range rest {
			if n, err := rpm.ParseNEVRA(r); err == nil && (!ok || rpm.CompareEVR(now.evr, n.EVR()) < 0) {
				now, ok = version{was.Package, n.EVR()}, true
			}
		}
		// What is gone altogether is no step down: hosts that have it keep it.
		if ok && rpm.CompareEVR(was.evr, now.evr) > 0 {
			out = append(out, Finding{Kind: "downgrade", Package: was.NEVRA, Text: fmt.Sprintf("%s goes down from %s to %s: hosts that have the former keep it", k, was.evr, now.evr)})
		}
	}
	return out, nil
}

// owner is a package of a chunk that has a path with some hash.
type owner struct {
	hash          uint32
	chunk, member int32
}

// fileConflicts finds files that a new package and another one both have and that are not the
// same: rpm would refuse to install both. all tells whether every package that had to be opened
// was here.
func (s *Gate) fileConflicts(ctx context.Context, arch string, now []Tree, is *solve.Universe, paths map[string][]byte, gone, fresh map[string]set.Package) (out []Finding, all bool, err error) {
	byPkg := map[string]bool{}
	var changed []string
	for _, p := range fresh {
		byPkg[p.PkgID] = true
		changed = append(changed, p.Source)
	}
	slices.Sort(changed)
	var chunks []set.Chunk
	seen := map[string]bool{}
	for _, t := range now {
		for _, c := range t.Chunks {
			if !seen[c.ID] {
				seen[c.ID] = true
				chunks = append(chunks, c)
			}
		}
	}
	// Bits of the hashes of new packages' paths, to pass over nearly all of the others quickly: 1
	// MiB, where the processor has it at hand.
	few := make([]uint64, 1<<17)
	isFresh := map[[2]int32]bool{}
	for n, c := range chunks {
		if !touches(c, changed) {
			continue
		}
		ps, err := s.Places(ctx, c)
		if err != nil {
			return nil, false, err
		}
		for i, p := range ps {
			if byPkg[p.PkgID] {
				isFresh[[2]int32{int32(n), int32(i)}] = true //nolint:gosec // a tree has fewer chunks, and a chunk fewer packages
			}
		}
		member, fits := -1, false
		err = eachPath(paths[c.ID], func(i int, h uint32) {
			if i != member {
				member, fits = i, isFresh[[2]int32{int32(n), int32(i)}] //nolint:gosec // as above
			}
			if fits {
				few[h>>6&(1<<17-1)] |= 1 << (h & 63)
			}
		})
		if err != nil {
			return nil, false, err
		}
	}
	if len(isFresh) == 0 {
		return nil, true, nil
	}
	// Who has what: sorted, those with the same hash stand together.
	var owners []owner
	for n, c := range chunks {
		err := eachPath(paths[c.ID], func(i int, h uint32) {
			if few[h>>6&(1<<17-1)]&(1<<(h&63)) != 0 {
				owners = append(owners, owner{h, int32(n), int32(i)}) //nolint:gosec // as above
			}
		})
		if err != nil {
			return nil, false, err
		}
	}
	slices.SortFunc(owners, func(a, b owner) int { return cmp.Compare(a.hash, b.hash) })
	pairs := map[[2]string][2]set.Package{}
	read := make([][]set.Member, len(chunks))
	at := func(o owner) (set.Package, error) {
		if read[o.chunk] == nil {
			if read[o.chunk], err = s.Members(ctx, chunks[o.chunk]); err != nil {
				return set.Package{}, err
			}
		}
		if int(o.member) >= len(read[o.chunk]) {
			return set.Package{}, fault.Internal("gate_damaged", "the gate's data of a chunk do not fit it")
		}
		return read[o.chunk][o.member].Package, nil
	}
	done := map[[2]owner]bool{} // pairs of packages, whatever the path
	for i := 0; i < len(owners); {
		j := i + 1
		for j < len(owners) && owners[j].hash == owners[i].hash {
			j++
		}
		same := owners[i:j]
		i = j
		for k, a := range same {
			for _, b := range same[k+1:] {
				if !isFresh[[2]int32{a.chunk, a.member}] && !isFresh[[2]int32{b.chunk, b.member}] {
					continue
				}
				pair := [2]owner{{chunk: a.chunk, member: a.member}, {chunk: b.chunk, member: b.member}}
				if done[pair] {
					continue
				}
				done[pair] = true
				x, err := at(a)
				if err != nil {
					return nil, false, err
				}
				y, err := at(b)
				if err != nil {
					return nil, false, err
				}
				// Versions of one package are never installed beside each other.
				if x.Name() == y.Name() && (x.Arch == y.Arch || x.Arch == "noarch" || y.Arch == "noarch") || x.Header == y.Header {
					continue
				}
				if x.Header > y.Header {
					x, y = y, x
				}
				pairs[[2]string{x.Header, y.Header}] = [2]set.Package{x, y}
			}
		}
	}
	was := map[string][]set.Package{} // the versions that go, by name and arch
	for _, p := range gone {
		was[p.Name()+"."+p.Arch] = append(was[p.Name()+"."+p.Arch], p)
	}
	opened := contents{gate: s, of: map[string]content{}}
	all = true
	for _, pair := range pairs {
		if len(out) == maxFindings {
			break
		}
		all = all && pair[0].Core != "" && pair[1].Core != ""
		path, err := opened.collide(pair[0], pair[1])
		if err != nil {
			return nil, false, err
		}
		if path == "" || opened.collidedBefore(pair, path, was, fresh) || !meet(is, pair) {
			continue
		}
		out = append(out, Finding{Kind: "conflict", Package: pair[0].NEVRA, Tree: arch, Text: fmt.Sprintf("%s and %s both have %s, and not the same", pair[0].NEVRA, pair[1].NEVRA, path)})
	}
	return out, all, nil
}

// touches tells whether a chunk may have a package of one of some source packages, which are
// sorted.
func touches(c set.Chunk, sources []string) bool {
	i, _ := slices.BinarySearch(sources, c.First)
	return i < len(sources) && sources[i] <= c.Last
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

// content is what a package has, as its header tells.
type content map[string]rpm.File

// contents is packages that were read for one judgment.
type contents struct {
	gate *Gate
	of   map[string]content // by header
}

// keptContents bounds how many packages are held in memory at a time.
const keptContents = 512

func (c *contents) read(p set.Package) (content, error) {
	if had, ok := c.of[p.Header]; ok {
		return had, nil
	}
	q, err := c.gate.Headers(p)
	if err != nil {
		return nil, err
	}
	list, err := q.Header.Files()
	if err != nil {
		return nil, err
	}
	out := make(content, len(list))
	for _, f := range list {
		out[f.Path] = f
	}
	if len(c.of) >= keptContents {
		clear(c.of)
	}
	c.of[p.Header] = out
	return out, nil
}

// collide finds a path that two packages both have and of which rpm would say that it conflicts,
// or "" (rpm's lib/transaction.c, handleInstInstalledFile and handleOverlappedFiles): what is the
// same may be shared, and of two binaries of different word sizes one is taken.
func (c *contents) collide(a, b set.Package) (string, error) {
	if a.Core == "" || b.Core == "" {
		return "", nil // its own finding
	}
	x, err := c.read(a)
	if err != nil {
		return "", err
	}
	y, err := c.read(b)
	if err != nil {
		return "", err
	}
	first := ""
	for path, f := range x {
		g, both := y[path]
		switch {
		case !both, f.IsDir() && g.IsDir(), (f.Flags|g.Flags)&rpm.FileGhost != 0:
		case f.Mode == g.Mode && f.Digest == g.Digest && f.Linkto == g.Linkto:
		case f.Color != 0 && g.Color != 0 && f.Color != g.Color:
		case first == "" || path < first:
			first = path
		}
	}
	return first, nil
}

// meet tells whether two packages can be installed together.
func meet(u *solve.Universe, pair [2]set.Package) bool {
	a, aerr := rpm.ParseNEVRA(pair[0].NEVRA)
	b, berr := rpm.ParseNEVRA(pair[1].NEVRA)
	return aerr != nil || berr != nil || u.Together(a, b)
}

// collidedBefore tells whether the versions of before had the same conflict: a move is not to
// blame for it.
func (c *contents) collidedBefore(pair [2]set.Package, path string, gone map[string][]set.Package, fresh map[string]set.Package) bool {
	before := func(p set.Package) []set.Package {
		if _, isNew := fresh[p.Header]; !isNew {
			return []set.Package{p}
		}
		return gone[p.Name()+"."+p.Arch]
	}
	for _, a := range before(pair[0]) {
		for _, b := range before(pair[1]) {
			if p, err := c.collide(a, b); err == nil && p == path {
				return true
			}
		}
	}
	return false
}
