package solve

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
	"sync"

	"drover/internal/rpm"
)

// Pool interns packages and keeps the index of who provides what to whom, for all universes
// made of it. It never forgets: its owner makes a new one when it has grown far beyond what
// is in use. It is safe for concurrent use.
type Pool struct {
	mu   sync.RWMutex
	ids  map[string]uint32
	text []string
	pkgs []pkg
	// known finds packages by a digest of their content.
	known map[[16]byte]uint32
	// byName is the packages of a name, newest first.
	byName map[uint32][]uint32
	// What is provided, as one chain for each name.
	prov     []provided
	provHead []uint32 // by name; 1 + the index into prov
	atoms    []atom
	atomIDs  map[atomKey]uint32
	wanted   map[uint32][]uint32 // plain atoms by name
	// combos is the atoms that are more than a plain dependency, and usedBy those of which a
	// plain one is part.
	combos map[uint32]*expr
	usedBy map[uint32][]uint32
	// rich is the formulas of the packages that have any, against the packages that mind
	// when an atom comes true, and enemies those that exclude what meets an atom.
	rich    map[uint32][]clause
	against map[uint32][]uint32
	enemies map[uint32][]uint32
}

// Block is a list of packages of a pool, immutable and small.
type Block struct {
	pool *Pool
	pkgs []uint32
}

// Len is the number of packages.
func (b *Block) Len() int { return len(b.pkgs) }

type pkg struct {
	name, evr, arch, source uint32
	rank                    uint32 // among the packages of its name, 0 is the newest
	color                   uint8
	formulas                bool     // has some in rich
	reqs                    []uint32 // atoms of which each must be met
	meets                   []uint32 // atoms that it meets
	foes                    []uint32 // packages that it excludes or that exclude it, but for those of its name
}

// Colors are the word sizes that a package is for.
const (
	color32 = 1
	color64 = 2
)

func colorOf(arch string) uint8 {
	switch {
	case arch == "noarch":
		return color32 | color64
	case arch == "s390x" || strings.Contains(arch, "64"):
		return color64
	}
	return color32
}

type provided struct {
	pkg, evr, next uint32
	flags          uint8
}

// atom is something to be met: a dependency.
type atom struct {
	atomKey
	minded  bool     // has packages in against
	givers  []uint32 // packages that meet it, ascending
	holders []uint32 // packages with a requirement or formula that has it
}

type atomKey struct {
	name, evr uint32
	flags     uint8
	kind      kind
}

type kind uint8

const (
	kindPlain  kind = iota
	kindName        // met by a package's own name and version: what obsoletes go by
	kindCombo       // one package meets a small expression
	kindAlways      // rpm itself provides it
)

// clause is a formula of a package: one of the atoms of no has no giver, or one of yes has.
type clause struct {
	yes, no []uint32
	text    uint32
}

// NewPool makes an empty pool.
func NewPool() *Pool {
	return &Pool{
		ids: map[string]uint32{"": 0}, text: []string{""}, provHead: []uint32{0},
		known: map[[16]byte]uint32{}, byName: map[uint32][]uint32{},
		atomIDs: map[atomKey]uint32{}, wanted: map[uint32][]uint32{},
		combos: map[uint32]*expr{}, usedBy: map[uint32][]uint32{},
		rich: map[uint32][]clause{}, against: map[uint32][]uint32{}, enemies: map[uint32][]uint32{},
	}
}

// Len is the number of distinct packages that the pool has seen.
func (p *Pool) Len() int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return len(p.pkgs)
}

// Decode loads a block that Encode wrote. The fault is solve_block.
func (p *Pool) Decode(b []byte) (*Block, error) {
	text, deps, pkgs, err := decode(b)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	words := make([]uint32, len(text))
	for i, s := range text {
		words[i] = p.word(s)
	}
	for i := range deps {
		deps[i].name, deps[i].evr = words[deps[i].name], words[deps[i].evr]
		if deps[i].flags == 0 {
			deps[i].evr = 0
		}
	}
	block := &Block{pool: p, pkgs: make([]uint32, len(pkgs))}
	for i := range pkgs {
		r := &pkgs[i]
		for _, w := range []*uint32{&r.name, &r.evr, &r.arch, &r.source} {
			*w = words[*w]
		}
		for j, f := range r.files {
			r.files[j] = words[f]
		}
		block.pkgs[i] = p.add(r, deps)
	}
	return block, nil
}

func (p *Pool) word(s string) uint32 {
	if id, ok := p.ids[s]; ok {
		return id
	}
	id := uint32(len(p.text))
	s = strings.Clone(s)
	p.ids[s] = id
	p.text = append(p.text, s)
	p.provHead = append(p.provHead, 0)
	return id
}

// digest identifies a package by its content in terms of the pool.
func (r *raw) digest(deps []rawDep) (sum [16]byte) {
	b := make([]byte, 0, 1024)
	number := func(ns ...uint32) {
		for _, n := range ns {
			b = binary.LittleEndian.AppendUint32(b, n)
		}
	}
	number(r.name, r.evr, r.arch, r.source)
	for _, l := range r.deps {
		number(uint32(len(l)))
		for _, i := range l {
			number(deps[i].name, deps[i].evr, uint32(deps[i].flags))
		}
	}
	number(r.files...)
	h := sha256.Sum256(b)
	return [16]byte(h[:16])
}

// add gives the package's number, indexing it when it is new.
func (p *Pool) add(r *raw, deps []rawDep) uint32 {
	sum := r.digest(deps)
	if id, ok := p.known[sum]; ok {
		return id
	}
	id := uint32(len(p.pkgs))
	p.known[sum] = id
	p.pkgs = append(p.pkgs, pkg{name: r.name, evr: r.evr, arch: r.arch, source: r.source, color: colorOf(p.text[r.arch])})
	p.rankIn(id)
	// First what it provides, so that atoms that are made for it find it.
	for _, i := range r.deps[rpmProvides] {
		p.provide(id, deps[i])
	}
	for _, f := range r.files {
		p.provide(id, rawDep{name: f})
	}
	for _, a := range p.wanted[r.name] {
		if k := p.atoms[a].atomKey; k.kind == kindName && p.satisfies(rawDep{evr: r.evr, flags: equal}, k) {
			p.give(a, id)
		}
	}
	for _, a := range slices.Clone(p.pkgs[id].meets) {
		for _, c := range p.usedBy[a] {
			p.decide(c, id)
		}
	}
	for _, i := range r.deps[rpmRequires] {
		p.relate(id, deps[i], false)
	}
	for _, i := range r.deps[rpmConflicts] {
		p.relate(id, deps[i], true)
	}
	for _, i := range r.deps[rpmObsoletes] {
		p.exclude(id, p.atom(atomKey{deps[i].name, deps[i].evr, deps[i].flags, kindName}))
	}
	return id
}

// Places of the kinds in a block.
const (
	rpmProvides = iota
	rpmRequires
	rpmConflicts
	rpmObsoletes
)

const equal = uint8(rpm.SenseEqual >> 1)

// rankIn sorts a new package among those of its name.
func (p *Pool) rankIn(id uint32) {
	q := &p.pkgs[id]
	l := p.byName[q.name]
	at := len(l)
	for at > 0 && rpm.CompareEVR(p.text[q.evr], p.text[p.pkgs[l[at-1]].evr]) > 0 {
		at--
	}
	l = slices.Insert(l, at, id)
	p.byName[q.name] = l
	for i := at; i < len(l); i++ {
		p.pkgs[l[i]].rank = uint32(i)
	}
}

// satisfies tells whether something provided meets an atom of its name.
func (p *Pool) satisfies(d rawDep, k atomKey) bool {
	if d.flags == 0 || k.flags == 0 {
		return true
	}
	return rpm.Satisfies(rpm.Dep{Flags: uint32(d.flags) << 1, EVR: p.text[d.evr]}, rpm.Dep{Flags: uint32(k.flags) << 1, EVR: p.text[k.evr]})
}

// provide notes that a new package provides something.
func (p *Pool) provide(id uint32, d rawDep) {
	if i := p.provHead[d.name]; i != 0 && p.prov[i-1].pkg == id && p.prov[i-1].evr == d.evr && p.prov[i-1].flags == d.flags {
		return // once more the same
	}
	p.prov = append(p.prov, provided{id, d.evr, p.provHead[d.name], d.flags})
	p.provHead[d.name] = uint32(len(p.prov))
	for _, a := range p.wanted[d.name] {
		if k := p.atoms[a].atomKey; k.kind == kindPlain && p.satisfies(d, k) {
			p.give(a, id)
		}
	}
}

// give notes that a package meets an atom, with all that follows.
func (p *Pool) give(a, id uint32) {
	x := &p.atoms[a]
	if n := len(x.givers); n > 0 && x.givers[n-1] == id {
		return
	}
	x.givers = append(x.givers, id)
	q := &p.pkgs[id]
	q.meets = append(q.meets, a)
	for _, e := range p.enemies[a] {
		p.foe(e, id)
	}
}

// decide finds out whether a package meets a combination.
func (p *Pool) decide(a, id uint32) {
	meets := p.pkgs[id].meets
	if !slices.Contains(meets, a) && p.combos[a].met(func(d rpm.Dep) bool { return slices.Contains(meets, p.plain(d)) }) {
		p.give(a, id)
	}
}

// atom gives the number of an atom that is no combination, making it when it is new.
func (p *Pool) atom(k atomKey) uint32 {
	if k.flags == 0 {
		k.evr = 0
	}
	if k.kind == kindPlain && k.flags != 0 && strings.HasPrefix(p.text[k.name], "rpmlib(") {
		k.kind = kindAlways
	}
	if a, ok := p.atomIDs[k]; ok {
		return a
	}
	a := p.newAtom(k)
	var givers []uint32
	switch k.kind {
	case kindPlain:
		for i := p.provHead[k.name]; i != 0; i = p.prov[i-1].next {
			if v := &p.prov[i-1]; p.satisfies(rawDep{evr: v.evr, flags: v.flags}, k) {
				givers = append(givers, v.pkg)
			}
		}
		p.wanted[k.name] = append(p.wanted[k.name], a)
	case kindName:
		for _, id := range p.byName[k.name] {
			if p.satisfies(rawDep{evr: p.pkgs[id].evr, flags: equal}, k) {
				givers = append(givers, id)
			}
		}
		p.wanted[k.name] = append(p.wanted[k.name], a)
	}
	p.giveAll(a, givers)
	return a
}

func (p *Pool) newAtom(k atomKey) uint32 {
	a := uint32(len(p.atoms))
	p.atoms = append(p.atoms, atom{atomKey: k})
	p.atomIDs[k] = a
	return a
}

func (p *Pool) giveAll(a uint32, givers []uint32) {
	slices.Sort(givers)
	for _, id := range slices.Compact(givers) {
		p.give(a, id)
	}
}

// plain is the atom of a plain dependency.
func (p *Pool) plain(d rpm.Dep) uint32 {
	d = plain(d)
	return p.atom(atomKey{p.word(d.Name), p.word(d.EVR), uint8(d.Flags >> 1), kindPlain})
}

// of is the atom of an expression that one package can meet.
func (p *Pool) of(e *expr) uint32 {
	if e.op == opNone {
		return p.plain(e.dep)
	}
	k := atomKey{name: p.word(e.String()), kind: kindCombo}
	if a, ok := p.atomIDs[k]; ok {
		return a
	}
	a := p.newAtom(k)
	p.combos[a] = e
	var givers []uint32
	e.leaves(func(d rpm.Dep) {
		leaf := p.plain(d)
		p.usedBy[leaf] = append(p.usedBy[leaf], a)
		for _, id := range p.atoms[leaf].givers {
			if e.met(func(d rpm.Dep) bool { return p.met(p.plain(d), id) }) {
				givers = append(givers, id)
			}
		}
	})
	p.giveAll(a, givers)
	return a
}

// met tells whether a package meets an atom.
func (p *Pool) met(a, id uint32) bool {
	_, ok := slices.BinarySearch(p.atoms[a].givers, id)
	return ok
}

// parse gives the expression of a rich dependency, nil of another.
func (p *Pool) parse(d rawDep) *expr {
	if s := p.text[d.name]; strings.HasPrefix(s, "(") && d.flags == 0 {
		return parseRich(s)
	}
	return nil
}

// relate notes what a package requires, or with not what it excludes.
func (p *Pool) relate(id uint32, d rawDep, not bool) {
	add := p.need
	if not {
		add = p.exclude
	}
	switch e := p.parse(d); {
	case e == nil:
		add(id, p.atom(atomKey{d.name, d.evr, d.flags, kindPlain}))
	case !e.joint():
		add(id, p.of(e))
	default:
		p.formula(id, e, not, d.name)
	}
}

// need notes that a package requires an atom.
func (p *Pool) need(id, a uint32) {
	q := &p.pkgs[id]
	if p.atoms[a].kind == kindAlways {
		return
	}
	q.reqs = append(q.reqs, a)
	p.hold(id, a)
}

func (p *Pool) hold(id, a uint32) {
	if x := &p.atoms[a]; len(x.holders) == 0 || x.holders[len(x.holders)-1] != id {
		x.holders = append(x.holders, id)
	}
}

// exclude notes that a package excludes whatever meets an atom, but for itself.
func (p *Pool) exclude(id, a uint32) {
	l := p.enemies[a]
	if len(l) > 0 && l[len(l)-1] == id {
		return
	}
	p.enemies[a] = append(l, id)
	for _, g := range p.atoms[a].givers {
		p.foe(id, g)
	}
}

func (p *Pool) foe(a, b uint32) {
	x, y := &p.pkgs[a], &p.pkgs[b]
	if a == b || len(x.foes) > 0 && x.foes[len(x.foes)-1] == b {
		return
	}
	x.foes = append(x.foes, b)
	y.foes = append(y.foes, a)
}

// formula notes a rich requirement, or a rich conflict, of a package.
func (p *Pool) formula(id uint32, e *expr, conflict bool, text uint32) {
	all, ok := e.clauses(conflict)
	if !ok {
		// Nobody can tell; then nobody should install it.
		p.rich[id] = append(p.rich[id], clause{text: text})
		p.pkgs[id].formulas = true
		return
	}
next:
	for _, lits := range all {
		c := clause{text: text}
		own := true // all of no is met by the package itself
		for _, l := range lits {
			a := p.of(l.e)
			always := p.atoms[a].kind == kindAlways
			switch {
			case always && l.not:
			case always:
				continue next
			case l.not:
				c.no = append(c.no, a)
				own = own && p.met(a, id)
			default:
				c.yes = append(c.yes, a)
			}
		}
		switch {
		case conflict && len(c.yes) == 0 && len(c.no) > 0 && own:
			// A package does not conflict with itself; with each other one that
			// would do instead of it, it does.
			for _, a := range c.no {
				p.exclude(id, a)
			}
			continue
		case len(c.yes) == 1 && len(c.no) == 0:
			p.need(id, c.yes[0])
			continue
		}
		p.rich[id] = append(p.rich[id], c)
		p.pkgs[id].formulas = true
		for _, a := range c.yes {
			p.hold(id, a)
		}
		for _, a := range c.no {
			p.atoms[a].minded = true
			if l := p.against[a]; len(l) == 0 || l[len(l)-1] != id {
				p.against[a] = append(l, id)
			}
		}
	}
}

// nevra is the name of a package.
func (p *Pool) nevra(id uint32) rpm.NEVRA {
	q := &p.pkgs[id]
	n := rpm.NEVRA{Name: p.text[q.name], Arch: p.text[q.arch]}
	n.Epoch, n.Version, n.Release = rpm.SplitEVR(p.text[q.evr])
	return n
}

// describe is an atom as people write it.
func (p *Pool) describe(a uint32) string {
	k := p.atoms[a].atomKey
	s := p.text[k.name]
	if k.flags != 0 {
		s += " " + sense(uint32(k.flags)<<1) + " " + p.text[k.evr]
	}
	return s
}

func sense(flags uint32) (s string) {
	if flags&rpm.SenseLess != 0 {
		s = "<"
	}
	if flags&rpm.SenseGreater != 0 {
		s += ">"
	}
	if flags&rpm.SenseEqual != 0 {
		s += "="
	}
	return s
}
