package solve

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"pgregory.net/rapid"

	"drover/internal/rpm"
)

// world makes packages that have much to do with each other.
type world struct {
	*rand.Rand
	names []string
}

func (w *world) pick(l []string) string { return l[w.IntN(len(l))] }

func (w *world) dep() rpm.Dep {
	d := rpm.Dep{Name: w.pick(w.names)}
	if w.IntN(3) == 0 {
		d.Flags = []uint32{rpm.SenseEqual, rpm.SenseLess, rpm.SenseGreater, rpm.SenseLess | rpm.SenseEqual, rpm.SenseGreater | rpm.SenseEqual}[w.IntN(5)]
		d.EVR = []string{"1", "2", "3", "1-1", "2-1", "2-2", "1:1-1"}[w.IntN(7)]
	}
	return d
}

// rich writes a rich dependency; rpm has no and, if and unless inside of with.
func (w *world) rich(depth int, one bool) string {
	if depth == 0 || w.IntN(3) == 0 {
		return (&expr{dep: w.dep()}).String()
	}
	a, b := func() string { return w.rich(depth-1, one) }, func() string { return w.rich(depth-1, one) }
	ops := 7
	if one {
		ops = 3
	}
	switch w.IntN(ops) {
	case 0:
		return "(" + a() + " or " + b() + ")"
	case 1:
		return "(" + w.rich(depth-1, true) + " with " + w.rich(depth-1, true) + ")"
	case 2:
		return "(" + w.rich(depth-1, true) + " without " + w.rich(depth-1, true) + ")"
	case 3:
		return "(" + a() + " and " + b() + ")"
	case 4:
		return "(" + a() + " if " + b() + ")"
	case 5:
		return "(" + a() + " unless " + b() + ")"
	}
	return "(" + a() + []string{" if ", " unless "}[w.IntN(2)] + b() + " else " + w.rich(depth-1, false) + ")"
}

func (w *world) wish(richness int) rpm.Dep {
	if w.IntN(richness) == 0 {
		for {
			if s := w.rich(3, false); s[0] == '(' {
				return rpm.Dep{Name: s}
			}
		}
	}
	return w.dep()
}

func (w *world) pkg() Package {
	p := Package{NEVRA: rpm.NEVRA{
		Name: w.pick(w.names), Version: fmt.Sprint(1 + w.IntN(3)), Release: fmt.Sprint(1 + w.IntN(2)), Arch: w.pick([]string{"x86_64", "x86_64", "noarch", "i686"}),
	}}
	if w.IntN(20) == 0 {
		p.Epoch = 1
	}
	p.Provides = []rpm.Dep{{Name: p.Name, Flags: rpm.SenseEqual, EVR: p.EVR()}}
	for range w.IntN(3) {
		p.Provides = append(p.Provides, w.dep())
	}
	for range w.IntN(4) {
		p.Requires = append(p.Requires, w.wish(5))
	}
	if d := w.wish(4); w.IntN(3) == 0 && !selfish(&p, d) {
		p.Conflicts = append(p.Conflicts, d)
	}
	if w.IntN(5) == 0 {
		p.Obsoletes = append(p.Obsoletes, w.dep())
	}
	return p
}

// selfish tells whether a conflict is the one that the package's documentation leaves out:
// a condition, and something that the package itself provides.
func selfish(p *Package, d rpm.Dep) bool {
	e := parseRich(d.Name)
	if e == nil || !conditional(e) {
		return false
	}
	own := false
	e.leaves(func(d rpm.Dep) {
		for _, v := range p.Provides {
			own = own || rpm.Satisfies(v, d)
		}
	})
	return own
}

func conditional(e *expr) bool {
	return e.op == opIf || e.op == opUnless || e.op != opNone && (conditional(e.a) || conditional(e.b))
}

// What is answered step by step is what is answered from nothing.
func TestStepByStep(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{Rand: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 2))}
		for i := range rapid.IntRange(3, 15).Draw(t, "names") {
			w.names = append(w.names, string(rune('a'+i)))
		}
		p := NewPool()
		var all []*Block
		for range rapid.IntRange(5, 40).Draw(t, "packages") {
			b, err := p.Decode(Encode([]Package{w.pkg()}))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, b)
		}
		some := func() *Universe {
			return p.Universe(rapid.Permutation(all).Draw(t, "there")[:rapid.IntRange(0, len(all)).Draw(t, "count")]...)
		}
		from := some()
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			to := some()
			got := Check(from, to)
			a, b := &Universe{pool: p, bits: from.bits}, &Universe{pool: p, bits: to.bits}
			b.known(nil)
			want := Check(a, b)
			if lines, wants := verdict(got), verdict(want); lines != wants {
				t.Fatalf("step by step:\n%s\nfrom nothing:\n%s", lines, wants)
			}
			from = to
		}
	})
}

// verdict is what a verdict says, but for the reasons, of which there may be several.
func verdict(v Verdict) string {
	s := fmt.Sprintf("before %d, fixed %d", v.Before, v.Fixed)
	for _, l := range [][]Finding{v.Broken, v.Added} {
		for _, f := range l {
			if len(f.Why) == 0 {
				s += "\nwithout a reason: "
			}
			s += "\n" + f.Package.String()
		}
		s += "\n--"
	}
	return s
}

// Small worlds, dense with conflicts and rich dependencies, each answered by libsolv in full
// and, after changes, by what is known of the world before as well as from nothing.
func TestSmallWorlds(t *testing.T) {
	worlds := 300
	if os.Getenv("DROVER_LONG") != "" {
		worlds = 5000
	}
	o := newOracle(t)
	yes, no := 0, 0
	for seed := range worlds {
		w := &world{Rand: rand.New(rand.NewPCG(uint64(seed), 1))}
		for i := range 4 + w.IntN(14) {
			w.names = append(w.names, string(rune('a'+i)))
		}
		o.reset()
		p := NewPool()
		var all []Package
		var ids []uint32
		there := map[int]bool{}
		add := func() {
			q := w.pkg()
			b, err := p.Decode(Encode([]Package{q}))
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range ids {
				if id == b.pkgs[0] {
					return // the same once more
				}
			}
			there[o.add(&q)] = true
			all, ids = append(all, q), append(ids, b.pkgs[0])
		}
		for range 5 + w.IntN(30) {
			add()
		}
		var old *Universe
		for range 4 {
			u := p.Universe()
			u.bits = newBits(p.Len())
			var ask []int
			for i, id := range ids {
				if there[i] {
					u.bits.set(id)
					ask = append(ask, i)
				}
			}
			fresh := &Universe{pool: p, bits: u.bits}
			scratch := fresh.known(nil)
			k := u.known(old)
			o.be(there)
			for j, want := range o.ask(ask) {
				i := ask[j]
				if want {
					yes++
				} else {
					no++
				}
				if got := k.installable(ids[i]); got != want || scratch.installable(ids[i]) != want {
					for _, i := range ask {
						t.Log(show(&all[i]), k.installable(ids[i]), k.live.has(ids[i]), k.dead[ids[i]])
					}
					var why []string
					if !got {
						why = (&asker{p, u, u}).why(ids[i])
					}
					t.Fatalf("seed %d: %s: installable: libsolv %v, step by step %v, from nothing %v: %q", seed, all[i].NEVRA, want, got,
						scratch.installable(ids[i]), why)
				}
			}
			old = u
			for i := range ids {
				if w.IntN(8) == 0 {
					there[i] = !there[i]
				}
			}
			for range w.IntN(4) {
				add()
			}
		}
	}
	t.Logf("%d answers were yes, %d no", yes, no)
}
