package solve

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"drover/internal/fault"
	"drover/internal/rpm"
)

// dep reads "name", "name = evr" or "(rich)".
func dep(s string) rpm.Dep {
	if f := strings.Fields(s); s[0] != '(' && len(f) == 3 {
		d := rpm.Dep{Name: f[0], EVR: f[2]}
		for _, c := range f[1] {
			d.Flags |= map[rune]uint32{'<': rpm.SenseLess, '=': rpm.SenseEqual, '>': rpm.SenseGreater}[c]
		}
		return d
	}
	return rpm.Dep{Name: s}
}

// made is a package "name-version-release.arch" with lines "P: …", "R: …", "C: …", "O: …", "F: …".
func made(t testing.TB, nevra string, lines ...string) Package {
	t.Helper()
	n, err := rpm.ParseNEVRA(nevra)
	if err != nil {
		t.Fatal(err)
	}
	p := Package{NEVRA: n, Source: n.Name, Provides: []rpm.Dep{{Name: n.Name, Flags: rpm.SenseEqual, EVR: n.EVR()}}}
	for _, l := range lines {
		kind, what, _ := strings.Cut(l, ": ")
		switch kind {
		case "P":
			p.Provides = append(p.Provides, dep(what))
		case "R":
			p.Requires = append(p.Requires, dep(what))
		case "C":
			p.Conflicts = append(p.Conflicts, dep(what))
		case "O":
			p.Obsoletes = append(p.Obsoletes, dep(what))
		case "F":
			p.Files = append(p.Files, what)
		default:
			t.Fatalf("what is %q", l)
		}
	}
	return p
}

func lines(l []Finding) string {
	var b strings.Builder
	for _, f := range l {
		b.WriteString(f.Package.String() + ":\n")
		for _, w := range f.Why {
			b.WriteString("\t" + w + "\n")
		}
	}
	return b.String()
}

func TestWhy(t *testing.T) {
	p := NewPool()
	base := []Package{
		made(t, "foo-1-1.x86_64", "R: libbar.so.2()(64bit)"),
		made(t, "user-1-1.noarch", "R: foo", "R: /bin/sh"),
		made(t, "bash-5-1.x86_64", "F: /bin/sh"),
		made(t, "broken-1-1.noarch", "R: nowhere"),
		made(t, "late-1-1.noarch", "R: later >= 2"),
	}
	bar1 := made(t, "bar-1-1.x86_64", "P: libbar.so.2()(64bit)")
	bar2 := made(t, "bar-2-1.x86_64", "P: libbar.so.3()(64bit)")
	common := blocks(t, p, base)
	from := p.Universe(append(blocks(t, p, []Package{bar1}), common...)...)
	to := p.Universe(append(blocks(t, p, []Package{bar2,
		made(t, "new-1-1.noarch", "R: left", "R: right"),
		made(t, "left-1-1.noarch", "C: right < 3"),
		made(t, "right-2-1.noarch"),
		made(t, "later-2-1.noarch"),
	}), common...)...)
	v := Check(from, to)
	want := `foo-1-1.x86_64:
	foo-1-1.x86_64 requires libbar.so.2()(64bit), which nothing provides; bar-1-1.x86_64 did, bar-2-1.x86_64 no longer does
user-1-1.noarch:
	user-1-1.noarch requires foo, which only foo-1-1.x86_64 provides, and that cannot be installed
	foo-1-1.x86_64 requires libbar.so.2()(64bit), which nothing provides; bar-1-1.x86_64 did, bar-2-1.x86_64 no longer does
`
	if got := lines(v.Broken); got != want {
		t.Errorf("broken:\n%s\nwant:\n%s", got, want)
	}
	want = `new-1-1.noarch:
	new-1-1.noarch requires left, provided by left-1-1.noarch
	new-1-1.noarch requires right, provided by right-2-1.noarch
	left-1-1.noarch and right-2-1.noarch exclude each other
`
	if got := lines(v.Added); got != want {
		t.Errorf("added:\n%s\nwant:\n%s", got, want)
	}
	if v.Before != 1 || v.Fixed != 1 || v.OK() {
		t.Errorf("%d broken before, %d fixed", v.Before, v.Fixed)
	}
	if v := Check(from, from); !v.OK() || v.Before != 2 {
		t.Errorf("from itself to itself: %+v", v)
	}
	v = Check(to, from)
	want = `late-1-1.noarch:
	late-1-1.noarch requires later >= 2, which nothing provides; later-2-1.noarch did
`
	if got := lines(v.Broken); got != want || len(v.Added) > 0 || v.Fixed != 2 || v.Before != 1 {
		t.Errorf("back: %+v", v)
	}
}

func TestTogether(t *testing.T) {
	p := NewPool()
	u := p.Universe(blocks(t, p, []Package{
		made(t, "a-1-1.x86_64", "C: b < 2"), made(t, "a-2-1.x86_64"), made(t, "a-1-1.i686"), made(t, "b-1-1.noarch"), made(t, "c-1-1.noarch", "O: a < 2"),
	})...)
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"a-1-1.x86_64", "a-2-1.x86_64", false}, {"a-1-1.x86_64", "a-1-1.i686", true}, {"a-1-1.x86_64", "b-1-1.noarch", false},
		{"b-1-1.noarch", "a-1-1.x86_64", false}, {"a-2-1.x86_64", "b-1-1.noarch", true}, {"c-1-1.noarch", "a-1-1.i686", false},
		{"c-1-1.noarch", "a-2-1.x86_64", true}, {"c-1-1.noarch", "nobody-1-1.noarch", false},
	} {
		if got := u.Together(made(t, c.a).NEVRA, made(t, c.b).NEVRA); got != c.want {
			t.Errorf("%s beside %s: %v", c.a, c.b, got)
		}
	}
}

func TestBlocks(t *testing.T) {
	pkgs := load(t, "cs9-baseos-2022")
	b := Encode(pkgs)
	if !bytes.Equal(b, Encode(pkgs)) {
		t.Error("the same packages give other bytes")
	}
	p := NewPool()
	x, err := p.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	y := blocks(t, p, pkgs)
	if x.Len() != len(pkgs) || p.Len() != len(pkgs) || p.Universe(y...).Len() != len(pkgs) {
		t.Errorf("%d packages became %d, and %d in the pool", len(pkgs), x.Len(), p.Len())
	}
	for i, id := range x.pkgs {
		if got := p.nevra(id); got != pkgs[i].NEVRA {
			t.Errorf("%v became %v", pkgs[i].NEVRA, got)
		}
	}
	for i := 0; i < len(b); i += 1 + len(b)/99 {
		if _, err := NewPool().Decode(b[:i]); fault.Code(err) != "solve_block" {
			t.Fatalf("the first %d bytes of a block: %v", i, err)
		}
	}
}

func TestTooManyOfOneName(t *testing.T) {
	var l []string
	for i := range maxSame + 1 {
		l = append(l, fmt.Sprintf("P: x = %d", i))
	}
	if _, err := NewPool().Decode(Encode([]Package{made(t, "a-1-1.noarch", l[:maxSame]...)})); err != nil {
		t.Error(err)
	}
	if _, err := NewPool().Decode(Encode([]Package{made(t, "a-1-1.noarch", l...)})); fault.Code(err) != "solve_block" {
		t.Errorf("%d dependencies of one name: %v", len(l), err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode(nil))
	f.Add(Encode([]Package{made(f, "a-1-1.noarch", "R: b", "R: (b or (c if d >= 2))", "P: c = 2", "C: e < 1", "O: f", "F: /x")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := NewPool()
		x, err := p.Decode(b)
		if err != nil {
			if fault.Code(err) != "solve_block" {
				t.Fatal(err)
			}
			return
		}
		u := p.Universe(x)
		if v := Check(u, u); !v.OK() {
			t.Fatal("a universe is worse than itself")
		}
	})
}

func FuzzRich(f *testing.F) {
	for _, s := range []string{"(a or b)", "(a if b else c)", "((a with b >= 1) unless (c and d))", "(a(x)(64bit) without b = 1:2-3)"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e := parseRich(s)
		if e == nil {
			return
		}
		odd := false // a word that leaves a parenthesis open cannot be told from what follows
		e.leaves(func(d rpm.Dep) {
			odd = odd || strings.Count(d.Name, "(") != strings.Count(d.Name, ")") || strings.Count(d.EVR, "(") != strings.Count(d.EVR, ")")
		})
		again := parseRich(e.String())
		if odd {
			return
		}
		if e.op != opNone && (again == nil || again.String() != e.String()) {
			t.Fatalf("%q is read as %q, and that as %v", s, e, again)
		}
	})
}
