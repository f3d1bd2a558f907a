package selector

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"drover/internal/fault"
	"drover/internal/rpm"
)

// Form is how a target is written: Salt's names of its matchers, and query.
type Form string

// The forms.
const (
	Glob       Form = "glob"
	PCRE       Form = "pcre"
	ListForm   Form = "list"
	Grain      Form = "grain"
	GrainPCRE  Form = "grain_pcre"
	Pillar     Form = "pillar"
	PillarPCRE Form = "pillar_pcre"
	Compound   Form = "compound"
	Nodegroup  Form = "nodegroup"
	Subnet     Form = "ipcidr"
	Range      Form = "range" // not supported
	Query      Form = "query"
)

// Forms are all forms that can be used.
func Forms() []Form {
	return []Form{Glob, PCRE, ListForm, Grain, GrainPCRE, Pillar, PillarPCRE, Compound, Nodegroup, Subnet, Query}
}

// Bounds of a target.
const (
	maxText   = 16 << 10
	maxList   = 1 << 20
	maxDepth  = 100
	maxLeaves = 1000
)

// Op is what a node does.
type Op uint8

// The operations.
const (
	IsLeaf Op = iota
	And
	Or
	Not
)

// Node is a part of a target.
type Node struct {
	Op   Op
	Kids []*Node
	Leaf *Leaf
	Col  int // where it begins, counted from 1
}

// Kind is what a leaf asks about.
type Kind string

// The kinds of leaves.
const (
	ByName    Kind = "name"
	ByNames   Kind = "names" // one of Values
	ByFact    Kind = "fact"
	ByPillar  Kind = "pillar"
	ByGroup   Kind = "group"
	BySubnet  Kind = "subnet"
	ByPackage Kind = "pkg"
	ByService Kind = "service"
	ByPort    Kind = "port"
	ByLabel   Kind = "label"
	ByOnline  Kind = "online"
	ByAgent   Kind = "agent"
)

// Cmp is how a leaf compares.
type Cmp string

// The comparisons. Present asks only whether there is something.
const (
	Present Cmp = ""
	Equal   Cmp = "=="
	Unequal Cmp = "!="
	Less    Cmp = "<"
	AtMost  Cmp = "<="
	More    Cmp = ">"
	AtLeast Cmp = ">="
	Like    Cmp = "~"  // a glob
	NoLike  Cmp = "!~" // not a glob
	Match   Cmp = "=~" // a regular expression, from the beginning
	In      Cmp = "in"
)

// Leaf is one question about a host.
type Leaf struct {
	Kind   Kind
	Key    string // of a fact, label, package, service, port, group
	Cmp    Cmp
	Value  string
	Values []string     // of In, and of ByNames
	Prefix netip.Prefix // of BySubnet
	Salt   bool         // Key and Value are Salt's one text: see Splits
	Fold   bool         // upper and lower case are the same
	re     *regexp.Regexp
}

// Split is one way to read Salt's KEY:PATTERN.
type Split struct{ Key, Pattern string }

// Splits are the ways to read Salt's text: a key may have colons, and so may a value. The longest
// key comes first.
func (l *Leaf) Splits() []Split {
	parts := strings.Split(l.Key, ":")
	var out []Split
	for i := len(parts) - 1; i > 0; i-- {
		out = append(out, Split{strings.Join(parts[:i], ":"), strings.Join(parts[i:], ":")})
	}
	return out
}

// Pattern is the leaf as it asks for one of its Splits.
func (l *Leaf) Pattern(p string) (*Leaf, error) {
	c := &Leaf{Kind: l.Kind, Cmp: l.Cmp, Value: p, Fold: l.Fold}
	return c, c.compile(0)
}

// MatchText tells whether a value is what the leaf asks for.
func (l *Leaf) MatchText(v string) bool {
	switch l.Cmp {
	case Present:
		return true
	case Like:
		return l.fits(v)
	case NoLike:
		return !l.fits(v)
	case Match:
		return l.re != nil && l.re.MatchString(v)
	case In:
		return slices.Contains(l.Values, v)
	case Equal:
		return v == l.Value || l.compare(v) == 0
	case Unequal:
		return v != l.Value && l.compare(v) != 0
	case Less:
		return l.compare(v) < 0
	case AtMost:
		return l.compare(v) <= 0
	case More:
		return l.compare(v) > 0
	case AtLeast:
		return l.compare(v) >= 0
	}
	return false
}

// compare orders versions of packages as RPM does, numbers as numbers, and other texts as versions.
func (l *Leaf) compare(v string) int {
	if l.Kind == ByPackage {
		want := l.Value
		if !strings.Contains(want, "-") { // a version without a release says nothing of the release
			_, have, _ := rpm.SplitEVR(v)
			if i := strings.IndexByte(want, ':'); i < 0 {
				return rpm.CompareVersions(have, want)
			}
		}
		if !strings.Contains(want, ":") { // without an epoch it is of any
			if i := strings.IndexByte(v, ':'); i >= 0 {
				v = v[i+1:]
			}
		}
		return rpm.CompareEVR(v, want)
	}
	a, aerr := strconv.ParseFloat(v, 64)
	b, berr := strconv.ParseFloat(l.Value, 64)
	switch {
	case aerr == nil && berr == nil && a < b:
		return -1
	case aerr == nil && berr == nil && a > b:
		return 1
	case aerr == nil && berr == nil:
		return 0
	case l.Cmp == Equal || l.Cmp == Unequal:
		return strings.Compare(v, l.Value)
	}
	return rpm.CompareVersions(v, l.Value)
}

func (l *Leaf) fits(v string) bool {
	if l.Fold {
		v = strings.ToLower(v)
	}
	return fnmatch(l.Value, v)
}

// compile checks a leaf and makes it ready.
func (l *Leaf) compile(col int) error {
	if l.Fold && l.Cmp == Like {
		l.Value = strings.ToLower(l.Value)
	}
	if l.Cmp != Match || l.Salt {
		return nil
	}
	if len(l.Value) > 1000 {
		return bad(col, "the regular expression is longer than 1000 letters")
	}
	re, err := regexp.Compile("^(?:" + l.Value + ")") // Python's match is bound to the beginning only
	if err != nil {
		return bad(col, "%q is no regular expression: %v", l.Value, err)
	}
	l.re = re
	return nil
}

func bad(col int, format string, args ...any) error {
	f := fault.Invalid("target_invalid", format, args...)
	if col > 0 {
		f.Msg = "column " + strconv.Itoa(col) + ": " + f.Msg
	}
	return f.Fix("see the manual on targets; `drover host list` with the same target shows which hosts it means")
}

// fnmatch is Python's fnmatchcase: * ? [seq] [!seq]. It takes time in proportion to both texts.
func fnmatch(pattern, s string) bool {
	p, t := []rune(pattern), []rune(s)
	pi, ti, star, mark := 0, 0, -1, 0
	for ti < len(t) {
		if pi < len(p) && p[pi] == '*' {
			star, mark = pi, ti
			pi++
			continue
		}
		if n, ok := one(p[min(pi, len(p)):], t[ti]); ok {
			pi += n
			ti++
			continue
		}
		if star < 0 {
			return false
		}
		mark++
		pi, ti = star+1, mark
	}
	for pi < len(p) && p[pi] == '*' {
		pi++
	}
	return pi == len(p)
}

// one matches the first part of a pattern with one letter, and says how long the part is.
func one(p []rune, c rune) (n int, ok bool) {
	if len(p) == 0 {
		return 0, false
	}
	switch p[0] {
	case '?':
		return 1, true
	case '[':
		i := 1
		no := i < len(p) && p[i] == '!'
		if no {
			i++
		}
		end := i
		for end < len(p) && (p[end] != ']' || end == i) {
			end++
		}
		if end == len(p) { // no class: a bracket
			return 1, c == '['
		}
		in := false
		for set := p[i:end]; len(set) > 0; {
			if len(set) > 2 && set[1] == '-' {
				in = in || set[0] <= c && c <= set[2]
				set = set[3:]
				continue
			}
			in = in || set[0] == c
			set = set[1:]
		}
		return end + 1, in != no
	}
	return 1, p[0] == c
}

// String is the target in the query language, for people to read.
func (n *Node) String() string {
	var parts []string
	switch n.Op {
	case Not:
		return "not (" + n.Kids[0].String() + ")"
	case And, Or:
		for _, k := range n.Kids {
			s := k.String()
			if k.Op == Or && n.Op == And {
				s = "(" + s + ")"
			}
			parts = append(parts, s)
		}
		if n.Op == And {
			return strings.Join(parts, " and ")
		}
		return strings.Join(parts, " or ")
	case IsLeaf:
	}
	l := n.Leaf
	head := string(l.Kind)
	switch l.Kind {
	case ByFact, ByLabel, ByPackage, ByService, ByGroup, ByPort, ByPillar:
		head += "(" + strconv.Quote(l.Key) + ")"
	case BySubnet:
		return "subnet(" + strconv.Quote(l.Prefix.String()) + ")"
	case ByNames:
		head = "name"
	}
	switch l.Cmp {
	case Present:
		return head
	case In:
		for _, v := range l.Values[:min(len(l.Values), 20)] {
			parts = append(parts, strconv.Quote(v))
		}
		return head + " in (" + strings.Join(parts, ", ") + ")"
	}
	return head + " " + string(l.Cmp) + " " + strconv.Quote(l.Value)
}
