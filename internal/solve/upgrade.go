package solve

import (
	"slices"
	"strings"

	"drover/internal/rpm"
)

// StepBack is a package that hosts would lose or get older.
type StepBack struct {
	From rpm.NEVRA // the newest of its name and architecture before
	To   rpm.NEVRA // the newest after; without a name when it vanishes and nothing obsoletes it
}

// Upgrades tells where the way up is broken: names whose newest package of an architecture
// becomes older, or is gone without one that obsoletes it. A package may change between noarch
// and an architecture. The cost grows with what was taken away.
func Upgrades(from, to *Universe) (out []StepBack) {
	if from.pool != to.pool {
		panic("solve: universes of two pools")
	}
	p := from.pool
	p.mu.RLock()
	defer p.mu.RUnlock()
	for id := range from.bits.without(to.bits).all {
		q := &p.pkgs[id]
		// Of each name and architecture, the newest that there was.
		newest, ok := p.newest(q.name, from, func(o *pkg) bool { return o.arch == q.arch })
		if !ok || newest != id {
			continue
		}
		now, ok := p.newest(q.name, to, func(o *pkg) bool { return o.arch == q.arch })
		if !ok {
			now, ok = p.newest(q.name, to, func(o *pkg) bool { return o.color&q.color != 0 })
		}
		switch {
		case ok && rpm.CompareEVR(p.text[p.pkgs[now].evr], p.text[q.evr]) < 0:
			out = append(out, StepBack{p.nevra(id), p.nevra(now)})
		case !ok && !p.obsoleted(id, to):
			out = append(out, StepBack{From: p.nevra(id)})
		}
	}
	slices.SortFunc(out, func(a, b StepBack) int { return strings.Compare(a.From.String(), b.From.String()) })
	return out
}

// newest is the newest package of a name in a universe.
func (p *Pool) newest(name uint32, u *Universe, of func(*pkg) bool) (uint32, bool) {
	for _, id := range p.byName[name] {
		if u.bits.has(id) && of(&p.pkgs[id]) {
			return id, true
		}
	}
	return 0, false
}

// obsoleted tells whether a package of another name in the universe obsoletes this one.
func (p *Pool) obsoleted(id uint32, u *Universe) bool {
	for _, a := range p.pkgs[id].meets {
		if p.atoms[a].kind == kindName && slices.ContainsFunc(p.enemies[a], func(o uint32) bool {
			return u.bits.has(o) && p.pkgs[o].name != p.pkgs[id].name
		}) {
			return true
		}
	}
	return false
}
