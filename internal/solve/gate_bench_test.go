package solve

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"drover/internal/rpm"
)

// renamed is a package of another world: all names that it has or uses get a prefix.
func renamed(p Package, prefix string) Package {
	name := func(s string) string {
		if strings.HasPrefix(s, "rpmlib(") {
			return s
		}
		if s[0] == '/' {
			return "/" + prefix + s
		}
		return prefix + s
	}
	var walk func(e *expr) *expr
	walk = func(e *expr) *expr {
		if e.op == opNone {
			d := e.dep
			d.Name = name(d.Name)
			return &expr{dep: d}
		}
		return &expr{op: e.op, a: walk(e.a), b: walk(e.b)}
	}
	deps := func(l []rpm.Dep) []rpm.Dep {
		out := make([]rpm.Dep, len(l))
		for i, d := range l {
			if e := parseRich(d.Name); e != nil {
				d.Name = walk(e).String()
			} else {
				d.Name = name(d.Name)
			}
			out[i] = d
		}
		return out
	}
	p.Name, p.Source = name(p.Name), name(p.Source)
	p.Provides, p.Requires, p.Conflicts, p.Obsoletes = deps(p.Provides), deps(p.Requires), deps(p.Conflicts), deps(p.Obsoletes)
	p.Files = slices.Clone(p.Files)
	for i, f := range p.Files {
		p.Files[i] = name(f)
	}
	return p
}

// large is 60,000 packages: CentOS Stream 9's, several times over.
func large(b testing.TB) (out []Package) {
	base := load(b, "cs9-appstream", "cs9-baseos-2022")
	for i := 0; ; i++ {
		for _, p := range base {
			if len(out) == 60_000 {
				return out
			}
			if i > 0 {
				p = renamed(p, fmt.Sprintf("w%d-", i))
			}
			out = append(out, p)
		}
	}
}

// rebuilt is a new release of a source's packages, requirements among them following.
func rebuilt(p Package, release string) Package {
	old := p.EVR()
	p.Release = release
	lists := p.lists()
	for k := range lists {
		lists[k] = slices.Clone(lists[k])
		for i := range lists[k] {
			if lists[k][i].EVR == old {
				lists[k][i].EVR = p.EVR()
			}
		}
	}
	p.Provides, p.Requires, p.Conflicts, p.Obsoletes = lists[0], lists[1], lists[2], lists[3]
	return p
}

func cpu(t testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkGate moves a channel of 60,000 packages to a snapshot with 20 other packages, and
// prints what the first and every further answer takes, decoding, memory, and libsolv beside:
//
//   - builds: new releases of whole sources with 20 packages;
//   - breaking: the same, and some of them provide nothing but their name any more;
//   - core: a new glibc, on which everything stands;
//   - cold: the first question about two snapshots, with all blocks decoded before.
//
// CPU is the time of this process on all cores, which other work on the machine does not change.
// Libsolv has everything loaded too. It is asked for the new packages and those that require
// something of them by name, on one core; for all 60,000 it is what a sample says.
func BenchmarkGate(b *testing.B) {
	pkgs := large(b)
	var encoded [][]byte
	size := 0
	for l := range slices.Chunk(pkgs, 128) {
		encoded = append(encoded, Encode(l))
		size += len(encoded[len(encoded)-1])
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, start := heap(), time.Now()
	used := cpu(b)
	p := NewPool()
	var all []*Block
	for _, e := range encoded {
		x, err := p.Decode(e)
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, x)
	}
	took := time.Since(start)
	used = cpu(b) - used
	b.Logf("%d packages in %d blocks of %.1f MiB: decoded in %v (%v cpu), %v cpu a block, %.0f MiB of memory", len(pkgs), len(all), float64(size)/(1<<20),
		took.Round(time.Millisecond), used.Round(time.Millisecond), (used / time.Duration(len(all))).Round(time.Microsecond), float64(heap()-before)/(1<<20))
	before, start = heap(), time.Now()
	used = cpu(b)
	base := p.Universe(all...)
	base.known(nil)
	took = time.Since(start)
	used = cpu(b) - used
	b.Logf("everything about one snapshot from nothing: %v (%v cpu), %.1f MiB, %d sets, %d cannot be installed (half of BaseOS is not in the data)", took.Round(time.Millisecond), used.Round(time.Millisecond),
		float64(heap()-before)/(1<<20), len(base.proof.sets), base.Len()-base.proof.cover.count())

	o := newOracle(b)
	number := map[int]int{}
	there := map[int]bool{}
	for i := range pkgs {
		number[i] = o.add(&pkgs[i])
		there[number[i]] = true
	}
	o.be(there)
	sample := rand.New(rand.NewPCG(1, 1)).Perm(len(pkgs))[:300]
	o.ask(sample[:1])
	start = time.Now()
	o.ask(sample)
	whole := time.Since(start) / 300 * time.Duration(len(pkgs))

	bySource := map[string]int{}
	for i := range pkgs {
		bySource[pkgs[i].Source+" "+pkgs[i].EVR()]++
	}
	r := rand.New(rand.NewPCG(2, 2))
	serial := 0
	// next is a changed list of packages: whole sources that pick chooses.
	next := func(n int, pick func() int, alter func(*Package)) (*Universe, []Package) {
		serial++
		changed := map[int]Package{}
		var new []Package
		for len(new) < n {
			q := &pkgs[pick()]
			if n > 1 && bySource[q.Source+" "+q.EVR()] > n-len(new) {
				continue // too many, of a kernel or a TeX
			}
			for i := range pkgs {
				if _, done := changed[i]; !done && pkgs[i].Source == q.Source && pkgs[i].EVR() == q.EVR() {
					x := rebuilt(pkgs[i], fmt.Sprintf("%s.%d", pkgs[i].Release, serial))
					if alter != nil {
						alter(&x)
					}
					changed[i] = x
					new = append(new, x)
				}
			}
		}
		blocks := slices.Clone(all)
		for k := range blocks {
			var l []Package
			dirty := false
			for i := k * 128; i < min(len(pkgs), (k+1)*128); i++ {
				x, ok := changed[i]
				if !ok {
					x = pkgs[i]
				}
				dirty = dirty || ok
				l = append(l, x)
			}
			if dirty {
				x, err := p.Decode(Encode(l))
				if err != nil {
					b.Fatal(err)
				}
				blocks[k] = x
			}
		}
		return p.Universe(blocks...), new
	}
	anyone := func() int { return r.IntN(len(pkgs)) }
	glibc := func() int {
		return slices.IndexFunc(pkgs, func(q Package) bool { return q.Name == "glibc" })
	}
	breaking := func(q *Package) {
		if r.IntN(3) == 0 {
			q.Provides = slices.DeleteFunc(slices.Clone(q.Provides), func(d rpm.Dep) bool { return d.Name != q.Name })
		}
	}
	for _, c := range []struct {
		name  string
		n     int
		pick  func() int
		alter func(*Package)
		cold  bool
	}{
		{"builds", 20, anyone, nil, false},
		{"breaking", 20, anyone, breaking, false},
		{"core", 1, glibc, nil, false},
		{"cold", 20, anyone, nil, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			var times, cpus []time.Duration
			broken, changes := 0, 0
			var last []Package
			for b.Loop() {
				b.StopTimer()
				from := base
				if c.cold {
					from = &Universe{pool: p, bits: base.bits}
				}
				to, new := next(c.n, c.pick, c.alter)
				b.StartTimer()
				start, used := time.Now(), cpu(b)
				v := Check(from, to)
				times, cpus = append(times, time.Since(start)), append(cpus, cpu(b)-used)
				broken += len(v.Broken)
				changes += len(new)
				last = new
			}
			slices.Sort(times)
			slices.Sort(cpus)
			b.ReportMetric(float64(cpus[len(cpus)/2].Microseconds())/1000, "p50-cpu-ms")
			b.ReportMetric(float64(cpus[len(cpus)-1].Microseconds())/1000, "max-cpu-ms")
			b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(times[len(times)-1].Microseconds())/1000, "max-ms")
			b.ReportMetric(float64(changes)/float64(len(times)), "packages")
			b.ReportMetric(float64(broken)/float64(len(times)), "broken")
			// The last of them, asked of libsolv.
			now := map[int]bool{}
			for i, is := range there {
				now[i] = is
			}
			var ask []int
			wanted := map[string]bool{}
			for i := range last {
				n := o.add(&last[i])
				now[n] = true
				ask = append(ask, n)
				for _, d := range last[i].Provides {
					wanted[d.Name] = true
				}
			}
			for i := range pkgs {
				if slices.ContainsFunc(pkgs[i].Requires, func(d rpm.Dep) bool { return wanted[d.Name] }) {
					ask = append(ask, number[i])
				}
			}
			ask = ask[:min(len(ask), 300)]
			o.be(now)
			start := time.Now()
			o.ask(ask)
			b.Logf("%s: libsolv took %v for %d packages, and would take %v for all; we %v", c.name, time.Since(start).Round(time.Millisecond), len(ask),
				whole.Round(time.Second), times[len(times)/2].Round(10*time.Microsecond))
		})
	}
}
