package selector

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The cases are those of Python's fnmatch.fnmatchcase.
func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "a\nb", true}, {"?", "", false}, {"?", "ä", true}, {"a*c", "abbc", true}, {"a*c", "abcd", false},
		{"**a**", "bab", true}, {"*a*b*c*", "xaybzc", true}, {"*a*b*c*", "xaybz", false}, {"[abc]", "b", true}, {"[abc]", "d", false}, {"[!abc]", "d", true},
		{"[!abc]", "a", false}, {"[a-c]x", "bx", true}, {"[c-a]", "b", false}, {"[!c-a]", "b", true}, {"[a-c-e]", "-", true}, {"[a-c-e]", "d", false}, {"[a-c-e]", "e", true},
		{"[-a]", "-", true}, {"[a-]", "-", true}, {"[]]", "]", true}, {"[]a]", "a", true}, {"[!]]", "]", false}, {"[!]a]", "b", true}, {"[", "[", true}, {"[a", "[a", true},
		{"[!", "[!", true}, {"[]", "[]", true}, {"[!]", "[!]", true}, {"a[", "a", false}, {"[[]", "[", true}, {"[[a]", "a", true}, {"[a[b]", "[", true}, {"[^a]", "^", true}, {"[^a]", "b", false},
		{`\*`, `\x`, true}, {`\*`, "*", false}, {"[*]", "*", true}, {"[*]", "a", false}, {"[?]", "?", true}, {"a.c", "abc", false}, {"[ä-ö]", "å", true}, {"A", "a", false}, {"[--0]", ".", true},
		{"[x][", "x[", true}, {"[ac-eb-d]", "e", true}, {"[ac-eb-d]", "f", false},
	} {
		if got := compileGlob(c.pattern, false)(c.text, nil); got != c.want {
			t.Errorf("%q on %q: %v", c.pattern, c.text, got)
		}
	}
	if !compileGlob("Ce[N-O]T*", true)("cENtOS", nil) || compileGlob("[!A]", true)("a", nil) {
		t.Error("case counts")
	}
}

// slowGlob is the plain definition, which takes any time.
func slowGlob(parts []globPart, s []rune) bool {
	if len(parts) == 0 {
		return len(s) == 0
	}
	if parts[0].kind == globStar {
		return slowGlob(parts[1:], s) || len(s) > 0 && slowGlob(parts, s[1:])
	}
	return len(s) > 0 && parts[0].fits(s[0]) && slowGlob(parts[1:], s[1:])
}

func TestGlobIsItsDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := globParts(rapid.StringMatching(`[ab*?\[\]!-]{0,12}`).Draw(t, "pattern"))
		s := rapid.StringMatching(`[ab!\[-]{0,10}`).Draw(t, "text")
		if got := matchGlob(parts, s); got != slowGlob(parts, []rune(s)) {
			t.Fatalf("got %v", got)
		}
	})
}

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		fold, want    bool
	}{
		{"web", "web-01", false, true}, {"eb", "web-01", false, false}, {"a|b", "bc", false, true}, {"a|b", "cb", false, false}, {`a\Z`, "a", false, true}, {`a\Z`, "ab", false, false},
		{`(?P<x>a)(?P=x)`, "aa", false, true}, {`(?P<x>a)(?P=x)`, "ab", false, false}, {`(?P<x>a)b`, "ab", false, true}, {`(a)\1`, "aa", false, true}, {`a(?!b)`, "ac", false, true}, {`a(?!b)`, "ab", false, false},
		{`.*(?<=x)y`, "xy", false, true}, {"A", "a", true, true}, {`\S+$`, "ab", true, true}, {`\S+$`, "a b", true, false}, {`(?!b)A`, "a", true, true}, {`(?!b)A`, "a", false, false},
		{`(?i)A`, "a", false, true}, {"^web$", "web", false, true}, {"", "x", false, true}, {`\\Z`, `\Z`, false, true},
	} {
		budget := maxCost
		re, err := compilePattern(c.pattern, c.fold, &budget)
		if err != nil {
			t.Errorf("%q: %v", c.pattern, err)
			continue
		}
		if got := re(c.text, &trial{}); got != c.want {
			t.Errorf("%q on %q: %v", c.pattern, c.text, got)
		}
	}
	for _, pattern := range []string{"(", "a)|(b", "*", "[a", `(?P=x)`, `(?P=x`, `(?<`, `\`, "(?=a", strings.Repeat("(", 2000)} {
		budget := maxCost
		if _, err := compilePattern(pattern, false, &budget); err == nil {
			t.Errorf("%.20q was read", pattern)
		} else if len(err.Error()) > 900 {
			t.Errorf("%.20q: %v", pattern, err)
		}
	}
}

func TestPackageVersions(t *testing.T) {
	for _, c := range []struct {
		have, want string
		order      int
	}{
		{"1:3.2.2-14.el9", "3.2.2-16", -1}, {"1:3.2.2-14.el9", "3.2.2", 0}, {"1:3.2.2-14.el9", "1:3.2.2", 0}, {"1:3.2.2-14.el9", "0:9", 1}, {"3.2.2-14.el9", "1:3.2.2", -1},
		{"3.2.2-14.el9", "0:3.2.2", 0}, {"3.2.2-14.el9", "3.2.2-14.el9", 0}, {"3.2.2-14.el9", "3.2.2-14", 1}, {"3.10-1", "3.9", 1}, {"3.0~rc1-1", "3.0", -1}, {"3.0^git1-1", "3.0", 1},
		{"5.14.0-503.el9", "5.14.0-70.el9", 1}, {"2:1-1", "1:9-9", 1}, {"1.0-1", "1.0.1", -1}, {"1.0-1", "", 1}, {"", "1.0", -1}, {"a:b", "a:b", 0}, {"1:3.2.2-14", "1:3.2.2-14", 0},
	} {
		if got := compareEVR(c.have, c.want); got != c.order {
			t.Errorf("%q and %q: %d, not %d", c.have, c.want, got, c.order)
		}
	}
}

func TestSplits(t *testing.T) {
	n, err := Parse(Compound, "G|@a|b:c|d")
	if err != nil {
		t.Fatal(err)
	}
	got := n.Leaf.Splits()
	if len(got) != 2 || got[0] != (Split{"a:b:c", "d"}) || got[1] != (Split{"a", "b:c|d"}) || n.Leaf.Top() != "a" {
		t.Errorf("got %v, top %q", got, n.Leaf.Top())
	}
}

// What is said to be the top must be at the top of each fact that fits, or hosts would be missed.
func TestTopHoldsAllFacts(t *testing.T) {
	word := rapid.SampledFrom([]string{"a", "b", "*", "0", "1", "a*"})
	rapid.Check(t, func(t *rapid.T) {
		target := strings.Join(rapid.SliceOfN(word, 2, 5).Draw(t, "target"), ":")
		key := strings.Join(rapid.SliceOfN(word, 1, 5).Draw(t, "key"), ":")
		n, err := Parse(Grain, target)
		if err != nil {
			t.Fatal(err)
		}
		w := &walk{leaf: n.Leaf, value: "a"}
		if top := n.Leaf.Top(); w.below(strings.Split(key, ":"), 0) && top != "" && key != top && !strings.HasPrefix(key, top+":") {
			t.Fatalf("%s fits %s, whose top is %q", key, target, top)
		}
	})
}
