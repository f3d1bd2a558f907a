package solve

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"drover/internal/rpm"
)

// distro is the packages of CentOS Stream 9 under change, known to us and to libsolv.
type distro struct {
	*rand.Rand
	t     testing.TB
	pool  *Pool
	o     *oracle
	all   []Package
	ids   []uint32 // by the oracle's number
	num   map[uint32]int
	base  []int
	there map[int]bool
	now   []int
}

func newDistro(t testing.TB, seed uint64, pkgs []Package) *distro {
	d := &distro{Rand: rand.New(rand.NewPCG(seed, 9)), t: t, o: newOracle(t)}
	d.renew(pkgs)
	return d
}

// renew forgets all packages but those of upstream.
func (d *distro) renew(pkgs []Package) {
	d.o.reset()
	d.pool, d.num, d.all, d.ids, d.base = NewPool(), map[uint32]int{}, nil, nil, nil
	for _, b := range blocks(d.t, d.pool, pkgs) {
		for _, id := range b.pkgs {
			if _, ok := d.num[id]; !ok {
				p := pkgs[len(d.base)]
				d.num[id] = d.o.add(&p)
				d.all, d.ids = append(d.all, p), append(d.ids, id)
			}
			d.base = append(d.base, d.num[id])
		}
	}
}

// add makes a package known and gives its number.
func (d *distro) add(p Package) int {
	b := blocks(d.t, d.pool, []Package{p})
	id := b[0].pkgs[0]
	if n, ok := d.num[id]; ok {
		return n
	}
	n := d.o.add(&p)
	d.all, d.ids = append(d.all, p), append(d.ids, id)
	d.num[id] = n
	return n
}

// restart goes back to the packages as they are upstream.
func (d *distro) restart() {
	d.there = map[int]bool{}
	d.now = slices.Clone(d.base)
	for _, n := range d.base {
		d.there[n] = true
	}
}

func (d *distro) universe() *Universe {
	u := d.pool.Universe()
	for n := range d.there {
		u.bits.set(d.ids[n])
	}
	return u
}

func (d *distro) remove(n int) { delete(d.there, n) }

func (d *distro) some() int {
	for {
		if n := d.now[d.IntN(len(d.now))]; d.there[n] {
			return n
		}
	}
}

// thing is something that some package provides, or nobody.
func (d *distro) thing() rpm.Dep {
	p := &d.all[d.some()]
	switch k := d.IntN(10); {
	case k == 0:
		return rpm.Dep{Name: "nobody-has-this"}
	case k < 4 && len(p.Files) > 0:
		return rpm.Dep{Name: p.Files[d.IntN(len(p.Files))]}
	case k < 7 && len(p.Provides) > 0:
		return p.Provides[d.IntN(len(p.Provides))]
	}
	v := rpm.Dep{Name: p.Name}
	if d.IntN(2) == 0 {
		v.Flags = []uint32{rpm.SenseEqual, rpm.SenseLess, rpm.SenseGreater, rpm.SenseLess | rpm.SenseEqual, rpm.SenseGreater | rpm.SenseEqual}[d.IntN(5)]
		v.EVR = p.EVR()
	}
	return v
}

func (d *distro) formula(depth int) string {
	if depth == 0 || d.IntN(3) == 0 {
		return (&expr{dep: d.thing()}).String()
	}
	op := []string{"and", "or", "if", "unless", "or", "with", "without"}[d.IntN(7)]
	if op[0] == 'w' {
		depth = 1
	}
	return "(" + d.formula(depth-1) + " " + op + " " + d.formula(depth-1) + ")"
}

func (d *distro) wish() rpm.Dep {
	if d.IntN(3) == 0 {
		return rpm.Dep{Name: "(" + strings.TrimSuffix(strings.TrimPrefix(d.formula(2), "("), ")") + ")"}
	}
	return d.thing()
}

// bumped is a new release of a package, which now and then is not what it was.
func (d *distro) bumped(p Package, to string) Package {
	old := p.EVR()
	q := p
	q.Release = to
	edit := func(l []rpm.Dep) (out []rpm.Dep) {
		for _, x := range l {
			if x.EVR == old {
				x.EVR = q.EVR()
			}
			out = append(out, x)
		}
		return out
	}
	q.Provides, q.Requires, q.Conflicts, q.Obsoletes = edit(p.Provides), edit(p.Requires), edit(p.Conflicts), edit(p.Obsoletes)
	for d.IntN(3) == 0 {
		switch d.IntN(7) {
		case 0:
			// Never its own name, which rpmbuild always adds.
			if i := d.IntN(len(q.Provides) + 1); i < len(q.Provides) && q.Provides[i].Name != q.Name {
				q.Provides = slices.Delete(q.Provides, i, i+1)
			}
		case 1: // a new soname
			for i, x := range q.Provides {
				if at := strings.Index(x.Name, ".so."); at > 0 {
					q.Provides[i].Name = x.Name[:at+4] + "9" + x.Name[at+4:]
				}
			}
		case 2:
			if c := d.wish(); !selfish(&q, c) {
				q.Conflicts = append(q.Conflicts, c)
			}
		case 3:
			q.Obsoletes = append(q.Obsoletes, rpm.Dep{Name: d.all[d.some()].Name})
		case 4:
			q.Requires = append(q.Requires, d.wish())
		case 5:
			q.Provides = append(q.Provides, d.thing())
		case 6:
			if len(q.Files) > 0 {
				q.Files = q.Files[1:]
			}
		}
	}
	// What is provided now may make a conflict one with itself.
	q.Conflicts = slices.DeleteFunc(q.Conflicts, func(c rpm.Dep) bool { return selfish(&q, c) })
	return q
}

// change makes a change of some packages.
func (d *distro) change(serial int) {
	for range 1 + d.IntN(5) {
		n := d.some()
		p := d.all[n]
		to := fmt.Sprintf("%s.%d", p.Release, serial)
		switch d.IntN(6) {
		case 0:
			d.remove(n)
		case 1, 2, 3:
			// One package anew, instead of the old one or beside it.
			d.put(d.bumped(p, to))
			if d.IntN(4) > 0 {
				d.remove(n)
			}
		default:
			// All packages of a source, as a build does it.
			keep := d.IntN(4) == 0
			for _, m := range slices.Clone(d.now) {
				if q := &d.all[m]; d.there[m] && q.Source == p.Source && q.EVR() == p.EVR() {
					d.put(d.bumped(*q, to))
					if !keep {
						d.remove(m)
					}
				}
			}
		}
	}
}

func (d *distro) put(p Package) {
	n := d.add(p)
	d.there[n] = true
	d.now = append(d.now, n)
}

// Random changes of CentOS Stream 9, each answered step by step; all packages that the change
// touches and some others are asked of libsolv.
func TestRandomChanges(t *testing.T) {
	changes := 25
	if os.Getenv("DROVER_LONG") != "" {
		changes = 5000
	}
	pkgs := load(t, "cs9-appstream", "cs9-baseos-2022")
	for seed := range 2 {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			walk(newDistro(t, uint64(seed), pkgs), pkgs, changes)
		})
	}
}

func walk(d *distro, pkgs []Package, changes int) {
	t := d.t
	asked, yes, broken := 0, 0, 0
	var old *Universe
	for serial := range changes {
		if serial%500 == 499 {
			t.Logf("%d changes, %d answers", serial, asked)
		}
		if serial%100 == 99 {
			d.renew(pkgs)
		}
		if serial%100 == 99 || serial%25 == 0 {
			d.restart()
			old = d.universe()
		}
		d.change(serial)
		to := d.universe()
		v := Check(old, to)
		broken += len(v.Broken)
		ask := d.touched(old, to)
		asked += len(ask)
		d.o.be(d.there)
		for i, want := range d.o.ask(ask) {
			p := &d.all[ask[i]]
			got := to.proof.installable(d.ids[ask[i]])
			if want {
				yes++
			}
			if got != want {
				var why []string
				if !got {
					why = (&asker{d.pool, old, to}).why(d.ids[ask[i]])
				}
				t.Fatalf("change %d: %s\nlibsolv says installable: %v, we: %v: %s", serial, show(p), want, got, strings.Join(why, "\n"))
			}
		}
		if serial%50 == 49 {
			fresh := &Universe{pool: d.pool, bits: to.bits}
			fresh.known(nil)
			for id := range to.bits.all {
				if fresh.proof.installable(id) != to.proof.installable(id) {
					t.Fatalf("change %d: %s: step by step %v, from nothing %v", serial, d.pool.nevra(id), to.proof.installable(id), fresh.proof.installable(id))
				}
			}
		}
		old = to
	}
	t.Logf("%d changes, %d answers of libsolv, %d of them yes; %d packages broken; %d sets, %d refuted at the end", changes, asked, yes, broken, len(old.proof.sets), len(old.proof.refuted))
}

// touched is what to ask: what was added, what became different, what depends on what changed,
// what is refuted, and anything.
func (d *distro) touched(from, to *Universe) []int {
	in := map[int]bool{}
	take := func(ids []uint32, most int) {
		d.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		for _, id := range ids {
			if to.bits.has(id) && most > 0 {
				in[d.num[id]] = true
				most--
			}
		}
	}
	diff := slices.Concat(slices.Collect(to.bits.without(from.bits).all), slices.Collect(from.bits.without(to.bits).all))
	var near []uint32
	for _, id := range diff {
		for _, a := range d.pool.pkgs[id].meets {
			near = append(near, d.pool.atoms[a].holders...)
		}
		near = append(near, d.pool.pkgs[id].foes...)
	}
	now, was := to.proof.cover, from.proof.cover
	take(slices.Concat(slices.Collect(now.without(was).all), slices.Collect(was.without(now).all)), 12)
	take(diff, 15)
	take(near, 8)
	var hard []uint32
	for id := range to.proof.refuted {
		hard = append(hard, id)
	}
	slices.Sort(hard)
	take(hard, 3)
	for range 5 {
		in[d.some()] = true
	}
	out := make([]int, 0, len(in))
	for n := range in {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}
