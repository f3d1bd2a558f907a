package selector

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"drover/internal/fault"
)

// anyLeaf is the text of a test of the query language.
func anyLeaf() *rapid.Generator[string] {
	return rapid.SampledFrom([]string{
		`name == "web-01"`, `name ~ "w[!x]b*"`, `name in ("db-01", "deb-01")`, `name =~ "d(b|eb)"`, `online`, `agent >= "1.9"`, `fact.os == "Debian"`,
		`fact("osrelease_info:0")`, `fact.osrelease < 9.95`, `fact.osrelease in (9, "10")`, `fact("a.b")`, `label.role == "web"`, `label("a b") != ""`, `pkg("openssl") < "3.2.2-16"`,
		`service("sshd")`, `port(22)`, `port("udp/53")`, `group("all")`, `subnet("10.0.0.0/24")`, `subnet("::ffff:10.0.0.1")`, `salt("G@os:Cent*")`,
		`salt("P|@os|^.(e|E)")`, `salt("I@app:*:port")`, `salt("J@app:web:port:\d+")`, `fact.x == "a\\b\"c"`, `fact.x == 'a\b'`,
	})
}

func anyTree() *rapid.Generator[string] {
	deeper := func(g *rapid.Generator[string]) *rapid.Generator[string] {
		return rapid.Custom(func(t *rapid.T) string {
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0:
				return "not (" + g.Draw(t, "kid") + ")"
			case 1:
				return "(" + strings.Join(rapid.SliceOfN(g, 2, 4).Draw(t, "and"), ") and (") + ")"
			case 2:
				return strings.Join(rapid.SliceOfN(g, 2, 4).Draw(t, "or"), " or ")
			}
			return g.Draw(t, "same")
		})
	}
	g := anyLeaf()
	for range 3 {
		g = deeper(g)
	}
	return g
}

func TestEvalIsPerHost(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		text := anyTree().Draw(rt, "target")
		n, err := Parse(Query, text)
		if err != nil {
			rt.Fatal(err)
		}
		var want []string
		for _, h := range small() {
			if h.holds(n) {
				want = append(want, h.name)
			}
		}
		if got := names(t, n); got != strings.Join(want, " ") {
			rt.Fatalf("%s\nmeans %s, each host by itself %v", text, got, want)
		}
	})
}

// sameTree compares trees by what can be seen of them, and not by where it stood in the text.
func sameTree(a, b *Node) string {
	return cmp.Diff(a, b, cmpopts.IgnoreUnexported(Leaf{}), cmpopts.IgnoreFields(Node{}, "Col"), cmpopts.EquateComparable(a.prefix()), cmpopts.EquateEmpty())
}

func (n *Node) prefix() any {
	if n.Leaf != nil {
		return n.Leaf.Prefix
	}
	return n.Kids[0].prefix()
}

func TestTextReadsBack(t *testing.T) {
	check := func(text string, n *Node) error {
		again, err := Parse(Query, n.String())
		if err != nil {
			return fmt.Errorf("%s became %s: %w", text, n, err)
		}
		if again.String() != n.String() {
			return fmt.Errorf("%s became %s, and that %s", text, n, again)
		}
		if diff := sameTree(n, again); diff != "" {
			return fmt.Errorf("%s became %s: %s", text, n, diff)
		}
		return nil
	}
	rapid.Check(t, func(rt *rapid.T) {
		text := anyTree().Draw(rt, "target")
		n, err := Parse(Query, text)
		if err == nil {
			err = check(text, n)
		}
		if err != nil {
			rt.Fatal(err)
		}
	})
	for _, text := range []string{
		"web* not *-02", "G|@a|b:c", `P@a:"\d\\`, "I@a:b", "Jé@aéb", "L@a,b", "S@10.0.0.0/8", "S@::1", "E@a\"b", "N@x", "not (a or b) and (c or not d)", "G@@a@b", "x:y", "G@fact.a:b", "G:@@:b",
	} {
		n, err := Parse(Compound, text)
		if err == nil {
			err = check(text, n)
		}
		if err != nil {
			t.Error(err)
		}
	}
	for text, want := range map[string]string{
		"web* not *-02":          `name ~ "web*" and name not like "*-02"`,
		"not (a or b)":           `not (name == "a" or name == "b")`,
		"G|@os|x":                `salt("G|@os|x")`,
		"S@10.0.0.0/255.0.0.0":   `subnet("10.0.0.0/8")`,
		"a and ( b and ( c ) )":  `name == "a" and name == "b" and name == "c"`,
		"a or b and c or (d )":   `name == "a" or name == "b" and name == "c" or name == "d"`,
		"L@a,b,a and not L@c":    `name in ("a", "b") and name not in ("c")`,
		"E@a and not not G@a:b*": `name =~ "a" and not not salt("G@a:b*")`,
	} {
		n, err := Parse(Compound, text)
		if err != nil {
			t.Error(err)
			continue
		}
		if n.String() != want {
			t.Errorf("%s is %s, not %s", text, n, want)
		}
	}
}

func TestLeavesAreAskedOnlyWhereTheyMatter(t *testing.T) {
	asked := func(text string) (out []string) {
		n, err := Parse(Compound, text)
		if err != nil {
			t.Fatal(err)
		}
		all := Set{}
		all.Add(1)
		_, err = Eval(n, all, func(l *Leaf) (Set, error) {
			out = append(out, l.Value)
			if l.Value == "yes" {
				return all, nil
			}
			return nil, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for text, want := range map[string][]string{"no and other": {"no"}, "yes or other": {"yes"}, "yes and other": {"yes", "other"}, "no or other": {"no", "other"}} {
		if got := asked(text); !slices.Equal(got, want) {
			t.Errorf("%s asked for %v", text, got)
		}
	}
}

func TestFaultsOfLeavesComeOut(t *testing.T) {
	n, err := Parse(Compound, "web* or not N@nobody and *")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Eval(n, Set{2}, func(l *Leaf) (Set, error) {
		if l.Kind == ByGroup {
			return nil, fault.NotFound("group_unknown", "there is no group")
		}
		return nil, nil
	})
	if fault.Code(err) != "group_unknown" {
		t.Errorf("got %v", err)
	}
}

// A pattern that takes too long must not make a target smaller than it says, unseen.
func TestSlowPatternFails(t *testing.T) {
	n, err := Parse(PCRE, `(?=a)(a+)+\1$`)
	if err != nil {
		t.Fatal(err)
	}
	all := Set{2}
	asked := 0
	_, err = Eval(n, all, func(l *Leaf) (out Set, err error) {
		for range 100 { // after the first one the time is up
			asked++
			if l.MatchText(strings.Repeat("a", 60) + "b") {
				out.Add(1)
			}
		}
		return out, nil
	})
	if fault.Code(err) != "target_slow" || asked != 100 {
		t.Errorf("got %v", err)
	}
}

func TestSet(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		ids := rapid.SliceOfDistinct(rapid.Int64Range(0, 300), rapid.ID[int64])
		a, b := ids.Draw(rt, "a"), ids.Draw(rt, "b")
		var x, y Set
		for _, id := range a {
			x.Add(id)
		}
		for _, id := range b {
			y.Add(id)
		}
		or, and, without := x.Clone(), x.Clone(), x.Clone()
		or.Or(y)
		and.And(y)
		without.AndNot(y)
		for id := range int64(301) {
			inA, inB := slices.Contains(a, id), slices.Contains(b, id)
			if x.Has(id) != inA || or.Has(id) != (inA || inB) || and.Has(id) != (inA && inB) || without.Has(id) != (inA && !inB) {
				rt.Fatalf("%d is wrong", id)
			}
		}
		slices.Sort(a)
		if !slices.Equal(x.IDs(), a) || x.Len() != len(a) {
			rt.Fatalf("got %v", x.IDs())
		}
	})
	var s Set
	for _, id := range []int64{-1, 1<<24 + 1, 1 << 40, -1 << 63} {
		s.Add(id)
	}
	if s.Len() != 0 || len(s) != 0 {
		t.Errorf("%d hosts that cannot be are in", s.Len())
	}
	if s.Add(1 << 24); !s.Has(1<<24) || s.Has(1<<40) || s.Has(-1) {
		t.Error("the last host is not in")
	}
}
