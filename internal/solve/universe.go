package solve

import (
	"cmp"
	"slices"
	"sync"
)

// Universe is the packages that may be installed together or apart: of one repository, or of
// several that a host sees at once. It is safe for concurrent use.
type Universe struct {
	pool  *Pool
	bits  bitset
	mu    sync.Mutex
	proof *proof // made when first asked for
}

// Universe is the packages of all the blocks, which must be of this pool.
func (p *Pool) Universe(blocks ...*Block) *Universe {
	p.mu.RLock()
	defer p.mu.RUnlock()
	u := &Universe{pool: p, bits: newBits(len(p.pkgs))}
	for _, b := range blocks {
		if b.pool != p {
			panic("solve: a block of another pool")
		}
		for _, id := range b.pkgs {
			u.bits.set(id)
		}
	}
	return u
}

// Len is the number of distinct packages.
func (u *Universe) Len() int { return u.bits.count() }

// proof is what is known of the packages of a universe: each is dead, refuted, or covered by a
// set. It does not change once it is made.
type proof struct {
	// could is the packages of which every requirement has a giver among them, so that nothing
	// but exclusions is in their way; dead says of the others which one has none: the index of
	// a requirement or, behind those, of a formula.
	could bitset
	dead  map[uint32]int
	// refuted is those of could that cannot be installed, each with the requirements that
	// prove it: they cannot all be met with what is live. live is the rest of could.
	refuted map[uint32][]need
	live    bitset
	// sets are consistent: each meets all requirements of its members and has no two that
	// exclude each other.
	sets  []bitset
	cover bitset // all members of the sets
}

// need is a requirement of a package, numbered as in proof.dead.
type need struct {
	pkg uint32
	i   int
}

// known gives what is known of u, derived from a similar universe if there is one.
// The pool is locked for reading by the caller.
func (u *Universe) known(like *Universe) *proof {
	if like != nil && like != u {
		like.known(nil)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.proof == nil {
		old := &proof{}
		if like != nil && like != u {
			old = like.proof
		}
		u.proof = prove(u.pool, u.bits, old)
	}
	return u.proof
}

func (k *proof) installable(id uint32) bool { return k.cover.has(id) }

// required gives the atom or the formula behind a need.
func (p *Pool) required(n need) (a uint32, c *clause) {
	q := &p.pkgs[n.pkg]
	if n.i < len(q.reqs) {
		return q.reqs[n.i], nil
	}
	return 0, &p.rich[n.pkg][n.i-len(q.reqs)]
}

// prover makes a proof.
type prover struct {
	*Pool
	in bitset // the universe
	*proof
	givers []int32 // how many live packages meet each atom
	todo   bitset  // live and not covered so far
}

func prove(p *Pool, in bitset, old *proof) *proof {
	v := &prover{Pool: p, in: in, proof: &proof{dead: map[uint32]int{}, refuted: map[uint32][]need{}, cover: newBits(len(p.pkgs))}}
	v.findCould()
	v.carry(old)
	// Sets that lost members are repaired, the others stay.
	gone := old.live.without(v.live)
	v.todo = v.live
	for _, s := range old.sets {
		if s.meets(gone) {
			s = v.repair(s, gone)
		}
		v.take(s)
	}
	v.todo = v.live.without(v.cover)
	v.coverRest()
	v.prune()
	return v.proof
}

// findCould finds the packages whose requirements all have a giver, by taking away those that
// have none until nothing changes.
func (v *prover) findCould() {
	v.live = v.in.sized(len(v.pkgs))
	v.givers = make([]int32, len(v.atoms))
	for id := range v.live.all {
		for _, a := range v.pkgs[id].meets {
			v.givers[a]++
		}
	}
	dead := func(id uint32, i int) { v.dead[id] = i }
	for id := range v.in.all {
		if v.live.has(id) {
			v.check(id, dead)
		}
	}
	v.could = v.live.sized(len(v.pkgs))
}

// check takes a package away if a requirement of it has no giver, and then what needs it.
func (v *prover) check(id uint32, note func(id uint32, i int)) {
	work := []uint32{}
	for {
		if i := v.lacks(id); i >= 0 {
			v.live.clear(id)
			note(id, i)
			work = v.leave(id, work)
		}
		for {
			if len(work) == 0 {
				return
			}
			id, work = work[len(work)-1], work[:len(work)-1]
			if v.live.has(id) {
				break
			}
		}
	}
}

// leave counts out what a package met, and adds to work who may miss it.
func (v *prover) leave(id uint32, work []uint32) []uint32 {
	for _, a := range v.pkgs[id].meets {
		if v.givers[a]--; v.givers[a] == 0 {
			work = append(work, v.atoms[a].holders...)
		}
	}
	return work
}

// lacks gives the number of the first requirement that has no giver, or -1.
func (v *prover) lacks(id uint32) int {
	q := &v.pkgs[id]
	for i, a := range q.reqs {
		if v.givers[a] == 0 {
			return i
		}
	}
	if !q.formulas {
		return -1
	}
	for i, c := range v.rich[id] {
		has := func(a uint32) bool { return v.givers[a] > 0 }
		avoidable := func(a uint32) bool { return !v.met(a, id) }
		if !slices.ContainsFunc(c.yes, has) && !slices.ContainsFunc(c.no, avoidable) {
			return len(q.reqs) + i
		}
	}
	return -1
}

// refute takes a package away for good, and then those for which no giver is left.
func (v *prover) refute(id uint32, why []need) {
	v.live.clear(id)
	v.refuted[id] = why
	for _, h := range v.leave(id, nil) {
		if v.live.has(h) {
			v.check(h, func(id uint32, i int) { v.refuted[id] = []need{{id, i}} })
		}
	}
}

// carry takes over what was refuted, unless something that could not be installed before
// meets a requirement of the refutation: with less to choose from nothing becomes possible.
func (v *prover) carry(old *proof) {
	fresh := v.could.without(old.could)
	left := map[uint32][]need{}
	for id, why := range old.refuted {
		switch {
		case !v.could.has(id):
		case len(why) == 0:
			fresh.set(id) // nobody knows
		default:
			left[id] = why
		}
	}
	for again := true; again; {
		again = false
		for id, why := range left {
			if v.helps(fresh, why) {
				delete(left, id)
				fresh.set(id)
				again = true
			}
		}
	}
	for id, why := range left {
		if v.live.has(id) {
			v.refute(id, why)
		}
	}
	for id, why := range left {
		v.refuted[id] = why // rather than that another one was taken away before it
	}
}

// helps tells whether one of the packages meets one of the requirements.
func (v *prover) helps(fresh bitset, why []need) bool {
	given := func(a uint32) bool { return v.some(a, fresh) }
	for _, n := range why {
		a, c := v.required(n)
		if c == nil && given(a) || c != nil && slices.ContainsFunc(c.yes, given) {
			return true
		}
	}
	return false
}

// some tells whether a package of the set meets the atom.
func (p *Pool) some(a uint32, set bitset) bool {
	for _, g := range p.atoms[a].givers {
		if set.has(g) {
			return true
		}
	}
	return false
}

// take adds a set to the proof.
func (v *prover) take(s bitset) {
	v.sets = append(v.sets, s)
	for i, w := range s {
		v.cover[i] |= w
	}
}

// prune drops the sets that prove nothing that others don't.
func (v *prover) prune() {
	seen := newBits(len(v.pkgs))
	slices.SortStableFunc(v.sets, func(a, b bitset) int { return cmp.Compare(b.count(), a.count()) })
	v.sets = slices.DeleteFunc(v.sets, func(s bitset) bool {
		adds := false
		for i, w := range s {
			adds = adds || w&^seen[i] != 0
			seen[i] |= w
		}
		return !adds
	})
}

// builder grows a consistent set.
type builder struct {
	*prover
	set   bitset
	trail []uint32
	left  int // how many packages it may still try
}

func (v *prover) builder(set bitset) *builder {
	return &builder{prover: v, set: set.sized(len(v.pkgs))}
}

// Bounds of trying before a solver is asked.
const (
	tries     = 1000
	fewToGain = 8
	fewSets   = 8
)

// try adds a package with what it needs, or nothing.
func (b *builder) try(id uint32, left int) bool {
	b.left, b.trail = left, b.trail[:0]
	return b.add(id)
}

func (b *builder) add(id uint32) bool {
	if b.set.has(id) {
		return true
	}
	// What must come in any case comes first, so that it is known before anything is chosen.
	mark := len(b.trail)
	ok := b.force(id)
	for _, t := range slices.Clone(b.trail[mark:]) {
		ok = ok && b.fulfill(t)
	}
	if !ok {
		for _, t := range b.trail[mark:] {
			b.set.clear(t)
		}
		b.trail = b.trail[:mark]
	}
	return ok
}

// force adds a package and those that alone meet a requirement of it, and so on; when it fails
// it leaves some of them.
func (b *builder) force(id uint32) bool {
	if b.left--; b.left < 0 || !b.live.has(id) || b.excluded(id) {
		return false
	}
	b.set.set(id)
	b.trail = append(b.trail, id)
	for _, a := range b.pkgs[id].reqs {
		if b.givers[a] == 1 && !b.some(a, b.set) {
			for _, g := range b.atoms[a].givers {
				if b.live.has(g) && !b.force(g) {
					return false
				}
			}
		}
	}
	return true
}

// excluded tells whether a member and the package exclude each other.
func (b *builder) excluded(id uint32) bool {
	q := &b.pkgs[id]
	for _, f := range q.foes {
		if b.set.has(f) {
			return true
		}
	}
	for _, o := range b.byName[q.name] {
		if o != id && b.set.has(o) && b.pkgs[o].color&q.color != 0 {
			return true
		}
	}
	return false
}

// fulfill adds what a new member needs, and what others need because of it.
func (b *builder) fulfill(id uint32) bool {
	for _, a := range b.pkgs[id].reqs {
		if !b.some(a, b.set) && !b.addOne(a) {
			return false
		}
	}
	if b.pkgs[id].formulas {
		for _, c := range b.rich[id] {
			if !b.holds(&c) && !b.make(&c) {
				return false
			}
		}
	}
	for _, a := range b.pkgs[id].meets {
		if !b.atoms[a].minded {
			continue
		}
		for _, h := range b.against[a] {
			if !b.set.has(h) {
				continue
			}
			for _, c := range b.rich[h] {
				if !b.holds(&c) && !b.make(&c) {
					return false
				}
			}
		}
	}
	return true
}

// holds tells whether a formula is true of the set.
func (b *builder) holds(c *clause) bool {
	in := func(a uint32) bool { return b.some(a, b.set) }
	return slices.ContainsFunc(c.yes, in) || !allOf(c.no, in)
}

func allOf(s []uint32, f func(uint32) bool) bool {
	return !slices.ContainsFunc(s, func(a uint32) bool { return !f(a) })
}

func (b *builder) make(c *clause) bool { return slices.ContainsFunc(c.yes, b.addOne) }

// addOne adds a package that meets the atom: rather one that still lacks a proof, rather a
// newer one.
func (b *builder) addOne(a uint32) bool {
	givers := b.atoms[a].givers
	if len(givers) == 1 {
		return b.add(givers[0])
	}
	var buf [16]uint32
	choice := buf[:0]
	for _, g := range givers {
		if b.live.has(g) {
			choice = append(choice, g)
		}
	}
	if len(choice) > 1 {
		slices.SortStableFunc(choice, func(x, y uint32) int {
			xd, yd := 0, 0
			if !b.todo.has(x) {
				xd = 1 << 20
			}
			if !b.todo.has(y) {
				yd = 1 << 20
			}
			return cmp.Compare(xd+int(b.pkgs[x].rank), yd+int(b.pkgs[y].rank))
		})
	}
	return slices.ContainsFunc(choice, b.add)
}

// repair makes a set consistent again after some of its members are gone: with the newest
// package of the same name instead, with something else that meets what they met, or without
// those who needed them.
func (v *prover) repair(s, gone bitset) bitset {
	b := v.builder(s)
	var lost []uint32
	for i := range b.set {
		b.set[i] &^= gone.word(i)
	}
	for id := range gone.all {
		if !s.has(id) {
			continue
		}
		lost = append(lost, v.pkgs[id].meets...)
		for _, o := range v.byName[v.pkgs[id].name] {
			if v.pkgs[o].arch == v.pkgs[id].arch && v.live.has(o) && b.try(o, tries) {
				break
			}
		}
	}
	drop := func(id uint32) {
		b.set.clear(id)
		lost = append(lost, v.pkgs[id].meets...)
	}
	for len(lost) > 0 {
		a := lost[len(lost)-1]
		lost = lost[:len(lost)-1]
		if b.some(a, b.set) {
			continue
		}
		tried, made := false, false
		for _, h := range v.atoms[a].holders {
			if !b.set.has(h) {
				continue
			}
			if slices.Contains(v.pkgs[h].reqs, a) {
				if !tried {
					b.left, b.trail = tries, b.trail[:0]
					tried, made = true, b.addOne(a)
				}
				if made {
					break
				}
				drop(h)
				continue
			}
			for _, c := range v.rich[h] {
				b.left, b.trail = tries, b.trail[:0]
				if !b.holds(&c) && !b.make(&c) {
					drop(h)
					break
				}
			}
		}
	}
	return b.set
}

// coverRest finds a set for all that is to do, or a refutation.
func (v *prover) coverRest() {
	rest := slices.Collect(v.todo.all)
	slices.SortStableFunc(rest, func(a, b uint32) int { return cmp.Compare(v.pkgs[a].rank, v.pkgs[b].rank) })
	grow := func(b *builder) (gained int) {
		for _, id := range rest {
			if v.todo.has(id) {
				b.try(id, tries)
			}
		}
		left := v.todo.without(b.set)
		gained = v.todo.count() - left.count()
		v.todo = left
		rest = slices.DeleteFunc(rest, func(id uint32) bool { return !left.has(id) })
		return gained
	}
	for i := 0; i < len(v.sets) && i < fewSets && len(rest) > 0; i++ {
		if b := v.builder(v.sets[i]); grow(b) > 0 {
			v.sets[i] = b.set
			for j, w := range b.set {
				v.cover[j] |= w
			}
		}
	}
	for len(rest) > 0 {
		b := v.builder(nil)
		gained := grow(b)
		if gained > 0 {
			v.take(b.set)
		}
		if gained < fewToGain {
			break
		}
	}
	for len(rest) > 0 {
		id := rest[0]
		with, why := v.solve(id)
		if why != nil {
			v.refute(id, why)
			for i, w := range v.todo {
				v.todo[i] = w & v.live[i]
			}
			rest = slices.DeleteFunc(rest, func(id uint32) bool { return !v.live.has(id) })
			continue
		}
		b := v.builder(nil)
		for _, id := range with {
			b.set.set(id)
		}
		grow(b)
		v.take(b.set)
	}
}
