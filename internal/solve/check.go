package solve

import (
	"fmt"
	"slices"
	"strings"

	"drover/internal/rpm"
)

// Verdict is what a move from one universe to another does to dependencies.
type Verdict struct {
	// Broken is the packages of both that could be installed and no longer can.
	Broken []Finding
	// Added is the new packages that cannot be installed.
	Added []Finding
	// Before is how many packages of both could not be installed before either, and still
	// cannot. They fail nothing.
	Before int
	// Fixed is how many packages of both can be installed now and could not before.
	Fixed int
}

// OK tells whether the move breaks nothing.
func (v Verdict) OK() bool { return len(v.Broken) == 0 && len(v.Added) == 0 }

// Finding is a package that cannot be installed.
type Finding struct {
	Package rpm.NEVRA
	// Why is a chain of reasons, from the package to the cause.
	Why []string
}

// Check tells what becomes of the packages when the first universe is replaced by the second.
// Both must be of one pool. What it finds out of them is kept with them, so that the next
// question from there costs only what has changed.
func Check(from, to *Universe) Verdict {
	if from.pool != to.pool {
		panic("solve: universes of two pools")
	}
	p := from.pool
	p.mu.RLock()
	defer p.mu.RUnlock()
	to.known(from)
	a := asker{Pool: p, from: from, to: to}
	var v Verdict
	for id := range to.bits.all {
		is := to.proof.installable(id)
		switch was := from.proof.installable(id); {
		case !from.bits.has(id):
			if !is {
				v.Added = append(v.Added, Finding{p.nevra(id), a.why(id)})
			}
		case was && !is:
			v.Broken = append(v.Broken, Finding{p.nevra(id), a.why(id)})
		case !was && !is:
			v.Before++
		case !was:
			v.Fixed++
		}
	}
	for _, l := range [][]Finding{v.Broken, v.Added} {
		slices.SortFunc(l, func(a, b Finding) int { return strings.Compare(a.Package.String(), b.Package.String()) })
	}
	return v
}

// Installable tells for each package of the universe whether it can be installed.
func (u *Universe) Installable(fn func(rpm.NEVRA, bool)) {
	u.pool.mu.RLock()
	defer u.pool.mu.RUnlock()
	k := u.known(nil)
	for id := range u.bits.all {
		fn(u.pool.nevra(id), k.installable(id))
	}
}

// Together tells whether two packages of the universe may be installed beside each other as far
// as the two of them go: that neither conflicts with or obsoletes the other, and that they are
// no two versions of one package. Two that may not cannot have conflicting files either.
func (u *Universe) Together(a, b rpm.NEVRA) bool {
	p := u.pool
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, x := range p.find(a, u) {
		for _, y := range p.find(b, u) {
			if x != y && !p.excludes(x, y) {
				return true
			}
		}
	}
	return false
}

func (p *Pool) excludes(x, y uint32) bool {
	a, b := &p.pkgs[x], &p.pkgs[y]
	return a.name == b.name && a.color&b.color != 0 || slices.Contains(a.foes, y)
}

// find gives the packages of a name, version and architecture.
func (p *Pool) find(n rpm.NEVRA, u *Universe) (out []uint32) {
	for _, id := range p.byName[p.ids[n.Name]] {
		if u.bits.has(id) && p.nevra(id) == n {
			out = append(out, id)
		}
	}
	return out
}

// asker finds reasons.
type asker struct {
	*Pool
	from, to *Universe
}

// maxReasons bounds the length of a chain; maxNamed how many packages one line names.
const (
	maxReasons = 30
	maxNamed   = 4
)

// why follows requirements of which no giver can be installed down to one that nobody claims
// to meet, or to several that exclude each other. A package is given up only after all that
// could help it: the chain has an end.
func (a *asker) why(id uint32) (out []string) {
	for len(out) < maxReasons {
		n := need{id, a.to.proof.dead[id]}
		if why, ok := a.to.proof.refuted[id]; ok {
			if len(why) == 0 {
				return append(out, a.nevra(id).String()+": whether it can be installed could not be found out in time")
			}
			if len(why) != 1 || why[0].pkg != id || slices.ContainsFunc(a.could(why[0]), a.to.proof.live.has) {
				return append(out, a.clash(why)...)
			}
			n = why[0]
		}
		what, atoms := a.need(n)
		line := fmt.Sprintf("%s requires %s, which ", a.nevra(id), what)
		now := a.could(n)
		if len(now) == 0 {
			return append(out, line+"nothing provides"+a.history(atoms))
		}
		out = append(out, line+"only "+a.names(now)+" provides, and that cannot be installed")
		id = now[0]
	}
	return append(out, "and so on")
}

// need is a requirement in words and the atoms that would meet it.
func (a *asker) need(n need) (string, []uint32) {
	atom, c := a.required(n)
	if c == nil {
		return a.describe(atom), []uint32{atom}
	}
	return a.text[c.text], c.yes
}

// could is the packages of the second universe that meet a requirement.
func (a *asker) could(n need) (out []uint32) {
	_, atoms := a.need(n)
	for _, x := range atoms {
		out = append(out, a.givers(x, a.to)...)
	}
	return out
}

// history tells who provided something before, and who is there instead of it.
func (a *asker) history(atoms []uint32) string {
	var before []uint32
	for _, x := range atoms {
		before = append(before, a.givers(x, a.from)...)
	}
	if len(before) == 0 {
		return ""
	}
	b := before[0]
	s := "; " + a.names(before) + " did"
	for _, o := range a.byName[a.pkgs[b].name] {
		if o != b && a.to.bits.has(o) && a.pkgs[o].arch == a.pkgs[b].arch {
			return s + ", " + a.nevra(o).String() + " no longer does"
		}
	}
	return s
}

func (a *asker) givers(x uint32, u *Universe) (out []uint32) {
	for _, g := range a.atoms[x].givers {
		if u.bits.has(g) {
			out = append(out, g)
		}
	}
	return out
}

func (a *asker) names(ids []uint32) string {
	var out []string
	for i, id := range ids {
		if i == maxNamed {
			out = append(out, fmt.Sprintf("%d more", len(ids)-i))
			break
		}
		out = append(out, a.nevra(id).String())
	}
	return strings.Join(out, ", ")
}

// clash tells the requirements that cannot all be met, and what excludes what among the
// packages that would meet them.
func (a *asker) clash(why []need) (out []string) {
	var all []uint32
	for _, n := range why {
		what, _ := a.need(n)
		now := a.could(n)
		all = append(append(all, n.pkg), now...)
		line := fmt.Sprintf("%s requires %s", a.nevra(n.pkg), what)
		if len(now) > 0 {
			line += ", provided by " + a.names(now)
		}
		out = append(out, line)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	in := map[uint32]bool{}
	for _, id := range all {
		in[id] = true
	}
	same := map[uint32][]uint32{}
	for _, x := range all {
		q := &a.pkgs[x]
		same[q.name] = append(same[q.name], x)
		for _, y := range slices.Compact(slices.Sorted(slices.Values(q.foes))) {
			if in[y] && x < y {
				out = append(out, fmt.Sprintf("%s and %s exclude each other", a.nevra(x), a.nevra(y)))
			}
		}
	}
	for _, x := range all {
		if l := same[a.pkgs[x].name]; l[0] == x && len(l) > 1 {
			out = append(out, "only one can be installed of "+a.names(l))
		}
	}
	if len(out) > maxReasons {
		out = append(out[:maxReasons], "and so on")
	}
	return out
}
