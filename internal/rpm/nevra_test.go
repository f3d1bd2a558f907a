package rpm_test

import (
	"bufio"
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"drover/internal/rpm"

	"pgregory.net/rapid"
)

// The pairs of rpm's own table (tests/rpmvercmp.at) with their order.
const versionTable = `
1.0 = 1.0; 1.0 < 2.0; 2.0 > 1.0; 2.0.1 = 2.0.1; 2.0 < 2.0.1
2.0.1 > 2.0; 2.0.1a = 2.0.1a; 2.0.1a > 2.0.1; 2.0.1 < 2.0.1a; 5.5p1 = 5.5p1
5.5p1 < 5.5p2; 5.5p2 > 5.5p1; 5.5p10 = 5.5p10; 5.5p1 < 5.5p10; 5.5p10 > 5.5p1
10xyz < 10.1xyz; 10.1xyz > 10xyz; xyz10 = xyz10; xyz10 < xyz10.1; xyz10.1 > xyz10
xyz.4 = xyz.4; xyz.4 < 8; 8 > xyz.4; xyz.4 < 2; 2 > xyz.4
5.5p2 < 5.6p1; 5.6p1 > 5.5p2; 5.6p1 < 6.5p1; 6.5p1 > 5.6p1; 6.0.rc1 > 6.0
6.0 < 6.0.rc1; 10b2 > 10a1; 10a2 < 10b2; 1.0aa = 1.0aa; 1.0a < 1.0aa
1.0aa > 1.0a; 10.0001 = 10.0001; 10.0001 = 10.1; 10.1 = 10.0001; 10.0001 < 10.0039
10.0039 > 10.0001; 4.999.9 < 5.0; 5.0 > 4.999.9; 20101121 = 20101121; 20101121 < 20101122
20101122 > 20101121; 2_0 = 2_0; 2.0 = 2_0; 2_0 = 2.0; a = a
a+ = a+; a+ = a_; a_ = a+; +a = +a; +a = _a
_a = +a; +_ = +_; _+ = +_; _+ = _+; + = _
_ = +; 1.0~rc1 = 1.0~rc1; 1.0~rc1 < 1.0; 1.0 > 1.0~rc1; 1.0~rc1 < 1.0~rc2
1.0~rc2 > 1.0~rc1; 1.0~rc1~git123 = 1.0~rc1~git123; 1.0~rc1~git123 < 1.0~rc1; 1.0~rc1 > 1.0~rc1~git123; 1.0^ = 1.0^
1.0^ > 1.0; 1.0 < 1.0^; 1.0^git1 = 1.0^git1; 1.0^git1 > 1.0; 1.0 < 1.0^git1
1.0^git1 < 1.0^git2; 1.0^git2 > 1.0^git1; 1.0^git1 < 1.01; 1.01 > 1.0^git1; 1.0^20160101 = 1.0^20160101
1.0^20160101 < 1.0.1; 1.0.1 > 1.0^20160101; 1.0^20160101^git1 = 1.0^20160101^git1; 1.0^20160102 > 1.0^20160101^git1; 1.0^20160101^git1 < 1.0^20160102
1.0~rc1^git1 = 1.0~rc1^git1; 1.0~rc1^git1 > 1.0~rc1; 1.0~rc1 < 1.0~rc1^git1; 1.0^git1~pre = 1.0^git1~pre; 1.0^git1 > 1.0^git1~pre
1.0^git1~pre < 1.0^git1
`

var orders = map[string]int{"<": -1, "=": 0, ">": 1}

func TestCompareVersionsAsRPM(t *testing.T) {
	n := 0
	for c := range strings.SplitSeq(strings.ReplaceAll(strings.TrimSpace(versionTable), "\n", ";"), ";") {
		f := strings.Fields(c)
		if got := rpm.CompareVersions(f[0], f[2]); got != orders[f[1]] {
			t.Errorf("%s %s: %d, want %s", f[0], f[2], got, f[1])
		}
		n++
	}
	if n != 91 {
		t.Errorf("%d pairs, want rpm's 91", n)
	}
}

// rpm itself judges our table, and many pairs that nobody would write.
func TestCompareEVRAsRPMDoes(t *testing.T) {
	home := t.TempDir()
	var pairs [][2]string
	for c := range strings.SplitSeq(strings.ReplaceAll(strings.TrimSpace(versionTable), "\n", ";"), ";") {
		f := strings.Fields(c)
		pairs = append(pairs, [2]string{f[0], f[2]})
	}
	r := rand.New(rand.NewPCG(1, 2))
	word := func() string {
		b := make([]byte, 1+r.IntN(7))
		for i := range b {
			b[i] = "00112aab.~^_+--:"[r.IntN(16)]
		}
		return string(b)
	}
	for range 20_000 {
		pairs = append(pairs, [2]string{word(), word()})
	}
	var text strings.Builder
	for _, p := range pairs {
		fmt.Fprintf(&text, "%s %s\n", p[0], p[1])
	}
	file := filepath.Join(home, "pairs")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := rpmCommand(t, home, "rpm", "--eval", `%{lua:for l in io.lines("`+file+`") do local a, b = l:match("(%S+) (%S+)"); print(rpm.vercmp(a, b).."\n") end}`).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(string(out))
	if len(want) != len(pairs) {
		t.Fatalf("rpm judged %d of %d pairs", len(want), len(pairs))
	}
	for i, p := range pairs {
		if got := rpm.CompareEVR(p[0], p[1]); strconv.Itoa(got) != want[i] {
			t.Errorf("%s %s: %d, rpm has %s", p[0], p[1], got, want[i])
		}
	}
}

// libsolv states the order of two versions as a line of a testcase's result.
func TestCompareVersionsAsLibsolv(t *testing.T) {
	f, err := os.Open("../../../shared/data/libsolv-testcases/evrcmp/caret.t")
	if err != nil {
		t.Fatalf("the shared test data is not at ../shared/data beside the project: %v", err)
	}
	defer f.Close()
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		l, ok := strings.CutPrefix(s.Text(), "#>job noop provides ")
		if f := strings.Fields(l); ok && len(f) == 3 {
			if got := rpm.CompareEVR(f[0], f[2]); got != orders[f[1]] {
				t.Errorf("%s: %d", l, got)
			}
			n++
		}
	}
	if n < 25 {
		t.Errorf("%d cases found", n)
	}
}

// libsolv's testevr tries every kind of range against every other: installing a package
// that conflicts with a range of B erases those that provide something of it.
func TestSatisfiesAsLibsolv(t *testing.T) {
	const dir = "../../../shared/data/libsolv-testcases/evrcmp/"
	deps := func(file, kind string) map[string]rpm.Dep {
		b, err := os.ReadFile(dir + file)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]rpm.Dep{}
		name := ""
		for l := range strings.Lines(string(b)) {
			f := strings.Fields(l)
			switch {
			case len(f) > 1 && f[0] == "=Pkg:":
				name = f[1]
			case len(f) == 4 && f[0] == kind:
				d := rpm.Dep{Name: f[1], EVR: f[3]}
				for _, c := range f[2] {
					d.Flags |= map[rune]uint32{'<': rpm.SenseLess, '>': rpm.SenseGreater, '=': rpm.SenseEqual}[c]
				}
				out[name] = d
			}
		}
		return out
	}
	provides, conflicts := deps("system.repo", "=Prv:"), deps("conflicts.repo", "=Con:")
	b, err := os.ReadFile(dir + "testevr.t")
	if err != nil {
		t.Fatal(err)
	}
	cases := 0
	for block := range strings.SplitSeq(string(b), "nextjob") {
		var erased map[string]bool
		var job string
		for l := range strings.Lines(block) {
			f := strings.Fields(l)
			switch {
			case len(f) == 4 && f[0] == "job" && f[1] == "install":
				job, erased = f[3], map[string]bool{}
			case len(f) == 2 && f[0] == "#>erase":
				erased[strings.SplitN(f[1], "-", 2)[0]] = true
			}
		}
		want, ok := conflicts[job]
		if !ok {
			continue
		}
		for name, p := range provides {
			cases++
			if got := rpm.Satisfies(p, want); got != erased[name] {
				t.Errorf("%s: provides %v, conflicts with %v: %v", job, p, want, got)
			}
		}
	}
	if cases < 10*12*5 {
		t.Errorf("%d cases found", cases)
	}
}

func TestVersionsAreTotallyOrdered(t *testing.T) {
	version := rapid.StringMatching(`[0-9a-c.~^_+]{0,6}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := version.Draw(t, "a"), version.Draw(t, "b"), version.Draw(t, "c")
		ab, ba, bc, ac := rpm.CompareVersions(a, b), rpm.CompareVersions(b, a), rpm.CompareVersions(b, c), rpm.CompareVersions(a, c)
		if ab != -ba || rpm.CompareVersions(a, a) != 0 {
			t.Fatalf("%q %q: %d and %d", a, b, ab, ba)
		}
		if ab <= 0 && bc <= 0 && ac > 0 || ab == 0 && ac != bc {
			t.Fatalf("%q %q %q: %d %d %d", a, b, c, ab, bc, ac)
		}
	})
}

// Packages in their order, oldest first.
func TestPackagesAreOrdered(t *testing.T) {
	var all []rpm.NEVRA
	for _, s := range []string{"a-1.0~rc1-1.x", "a-1.0-1~2.x", "a-1.0-1.x", "a-1.0-1^2.x", "a-1.0-10.x", "a-1.0^1-1.x", "a-1.1-1.x", "a-1:0-1.x", "a-4294967295:0-1.x"} {
		n, err := rpm.ParseNEVRA(s)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, n)
	}
	for i, a := range all {
		for j, b := range all {
			if got := a.Compare(b); got != cmp.Compare(i, j) {
				t.Errorf("%s and %s: %d", a, b, got)
			}
			if got := rpm.CompareEVR(a.EVR(), b.EVR()); got != cmp.Compare(i, j) {
				t.Errorf("%s and %s: %d", a.EVR(), b.EVR(), got)
			}
		}
	}
}

func TestNEVRAReadsWhatItWrites(t *testing.T) {
	word := rapid.StringMatching(`[a-zA-Z0-9_.+~^]{1,12}`)
	rapid.Check(t, func(t *rapid.T) {
		n := rpm.NEVRA{Name: rapid.StringMatching(`[a-zA-Z0-9_.+-]{1,20}`).Draw(t, "name"), Epoch: rapid.Uint32().Draw(t, "epoch"), Version: word.Draw(t, "version"),
			Release: word.Draw(t, "release"), Arch: rapid.StringMatching(`[a-z0-9_]{1,8}`).Draw(t, "arch")}
		got, err := rpm.ParseNEVRA(n.String())
		if err != nil || got != n {
			t.Fatalf("%+v read as %+v, %v", n, got, err)
		}
		if f, err := rpm.ParseNEVRA("Packages/x/" + n.File()); err != nil || f.NVR() != n.NVR() || f.Arch != n.Arch {
			t.Fatalf("%s read as %+v, %v", n.File(), f, err)
		}
		e, v, r := rpm.SplitEVR(n.EVR())
		if e != n.Epoch || v != n.Version || r != n.Release {
			t.Fatalf("%s split into %d %s %s", n.EVR(), e, v, r)
		}
	})
}

func TestParseNEVRARefuses(t *testing.T) {
	for _, s := range []string{"", "a", "a-1", "a-1-1", "-1-1.x", "a--1.x", "a-1-.x", "a-1-1.", "a-x:1-1.noarch", "a-99999999999:1-1.noarch", "a b-1-1.x", "a-1-1.x\x00", "ä-1-1.x",
		strings.Repeat("a", 300) + "-1-1.x"} {
		if n, err := rpm.ParseNEVRA(s); err == nil {
			t.Errorf("%q read as %+v", s, n)
		}
	}
}
