package solve

import (
	"slices"
	"time"

	"github.com/go-air/gini"
	"github.com/go-air/gini/z"
)

// question is one package asked of a SAT solver. Only what a model turns out to need is
// told to the solver, in rounds: what cannot be done with a part of the constraints can't be
// done with all, and a model that needs nothing untold is one of the whole.
type question struct {
	*prover
	g     *gini.Gini
	vars  map[uint32]z.Lit // by package
	told  map[uint32]bool
	picks []z.Lit // the switch of each requirement told
	needs map[z.Lit]need
}

// patience bounds what one round may take. The hardest seen took milliseconds; dependencies
// that were made to be hard shall not stop the server.
const patience = 10 * time.Second

// solve gives a consistent set of packages with id in it, or requirements that prove that
// there is none: none of them when that could not be found out.
func (v *prover) solve(id uint32) (with []uint32, why []need) {
	q := &question{prover: v, g: gini.New(), vars: map[uint32]z.Lit{}, told: map[uint32]bool{}, needs: map[z.Lit]need{}}
	q.tell(id)
	for {
		q.g.Assume(q.lit(id))
		q.g.Assume(q.picks...)
		switch q.g.Try(patience) {
		case 0:
			return nil, []need{}
		case -1:
			why = []need{}
			for _, m := range q.g.Why(nil) {
				if n, ok := q.needs[m]; ok {
					why = append(why, n)
				}
			}
			slices.SortFunc(why, func(a, b need) int { return slices.Compare([]int{int(a.pkg), a.i}, []int{int(b.pkg), b.i}) })
			return nil, why
		}
		with = q.used(id)
		news := false
		for _, w := range with {
			if q.told[w] {
				continue
			}
			news = true
			// If this one won't do, its other versions are next.
			for _, o := range q.byName[q.pkgs[w].name] {
				if _, ok := q.vars[o]; ok && o != w {
					with = append(with, o)
				}
			}
		}
		q.tell(with...)
		if !news {
			return with, nil
		}
	}
}

func (q *question) lit(id uint32) z.Lit {
	m, ok := q.vars[id]
	if !ok {
		m = q.g.Lit()
		q.vars[id] = m
	}
	return m
}

// tell adds what packages need, and for each need that nobody told of meets the newest that
// does: most of what a model will need is so told at once, and the solver asked a few times
// instead of once for each step of the way.
func (q *question) tell(ids ...uint32) {
	for len(ids) > 0 {
		id := ids[0]
		ids = ids[1:]
		if q.told[id] {
			continue
		}
		q.told[id] = true
		q.add(id)
		for _, a := range q.pkgs[id].reqs {
			best, found := uint32(0), false
			for _, g := range q.atoms[a].givers {
				if q.told[g] {
					found = false
					break
				}
				if q.live.has(g) && (!found || q.pkgs[g].rank < q.pkgs[best].rank) {
					best, found = g, true
				}
			}
			if found {
				ids = append(ids, best)
			}
		}
	}
}

// add adds what a package needs and what it excludes among those told.
func (q *question) add(id uint32) {
	me := q.lit(id).Not()
	p := &q.pkgs[id]
	pick := func(i int) z.Lit {
		m := q.g.Lit()
		q.picks = append(q.picks, m)
		q.needs[m] = need{id, i}
		return m.Not()
	}
	one := func(atoms ...uint32) {
		for _, a := range atoms {
			for _, g := range q.atoms[a].givers {
				if q.live.has(g) {
					q.g.Add(q.lit(g))
				}
			}
		}
		q.g.Add(z.LitNull)
	}
	for i, a := range p.reqs {
		if q.met(a, id) {
			continue
		}
		q.g.Add(pick(i))
		q.g.Add(me)
		one(a)
	}
	for i, c := range q.rich[id] {
		// For each atom that must not be met by all: a variable that says that it is.
		s := pick(len(p.reqs) + i)
		var met []z.Lit
		for _, a := range c.no {
			x := q.g.Lit()
			met = append(met, x)
			for _, g := range q.atoms[a].givers {
				if q.live.has(g) {
					q.g.Add(q.lit(g).Not())
					q.g.Add(x)
					q.g.Add(z.LitNull)
				}
			}
		}
		q.g.Add(s)
		q.g.Add(me)
		for _, x := range met {
			q.g.Add(x.Not())
		}
		one(c.yes...)
	}
	exclude := func(o uint32) {
		if q.told[o] && o != id {
			q.g.Add(me)
			q.g.Add(q.lit(o).Not())
			q.g.Add(z.LitNull)
		}
	}
	for _, o := range p.foes {
		exclude(o)
	}
	for _, o := range q.byName[p.name] {
		if q.pkgs[o].color&p.color != 0 {
			exclude(o)
		}
	}
}

// used is the packages of the model that the package needs, by way of others too.
func (q *question) used(id uint32) []uint32 {
	with := []uint32{id}
	in := map[uint32]bool{id: true}
	is := func(g uint32) bool { m, ok := q.vars[g]; return ok && q.g.Value(m) }
	one := func(a uint32, f func(uint32) bool) bool { return slices.ContainsFunc(q.atoms[a].givers, f) }
	use := func(atoms []uint32) {
		if slices.ContainsFunc(atoms, func(a uint32) bool { return one(a, func(g uint32) bool { return in[g] }) }) {
			return
		}
		for _, a := range atoms {
			for _, g := range q.atoms[a].givers {
				if is(g) {
					in[g] = true
					with = append(with, g)
					return
				}
			}
		}
	}
	for i := 0; i < len(with); i++ {
		if !q.told[with[i]] {
			continue
		}
		for _, a := range q.pkgs[with[i]].reqs {
			use([]uint32{a})
		}
		for _, c := range q.rich[with[i]] {
			if allOf(c.no, func(a uint32) bool { return one(a, is) }) {
				use(c.yes)
			}
		}
	}
	return with
}
