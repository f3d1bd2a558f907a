package selector

import "net/netip"

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
	maxText    = 16 << 10 // bytes
	maxList    = 1 << 20  // bytes of a list of names
	maxDepth   = 100      // of parentheses and negations
	maxLeaves  = 1000     // the names of a list are one leaf
	maxLevels  = 32       // of the key of a fact
	maxPattern = 4 << 10  // bytes
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

// Node is a part of a target. It does not change once it is made.
type Node struct {
	Op   Op
	Kids []*Node // of And and Or two or more, of Not one
	Leaf *Leaf
	Col  int // where it begins, counted in letters from 1
}

// Kind is what a leaf asks about.
type Kind string

// The kinds of leaves.
const (
	ByName    Kind = "name"
	ByNames   Kind = "names" // one of Values
	ByFact    Kind = "fact"  // see MatchFact
	ByPillar  Kind = "pillar"
	ByGroup   Kind = "group"
	BySubnet  Kind = "subnet" // Prefix has one of the addresses
	ByPackage Kind = "pkg"    // values are [EPOCH:]VERSION-RELEASE
	ByService Kind = "service"
	ByPort    Kind = "port" // Key is NUMBER, tcp/NUMBER or udp/NUMBER
	ByLabel   Kind = "label"
	ByOnline  Kind = "online"
	ByAgent   Kind = "agent"
)

// Cmp is how a leaf compares. There are no negative comparisons: the tree has Not.
type Cmp string

// The comparisons. Present asks only whether there is something.
const (
	Present Cmp = ""
	Equal   Cmp = "=="
	Less    Cmp = "<"
	AtMost  Cmp = "<="
	More    Cmp = ">"
	AtLeast Cmp = ">="
	Like    Cmp = "~"  // a glob
	Match   Cmp = "=~" // a regular expression, from the beginning
	In      Cmp = "in"
)

// Leaf is one question about a host.
type Leaf struct {
	Kind    Kind
	Key     string // of a fact, label, package, service, port, group
	Cmp     Cmp
	Value   string
	Values  []string     // of In
	Prefix  netip.Prefix // of BySubnet; a single address has all bits
	Salt    bool         // Key is Salt's one text of key and pattern: see MatchFact
	Delim   string       // between the levels in Key, of Salt's
	Fold    bool         // upper and lower case are the same
	Numeric bool         // Value was written as a number, without quotes

	match   matcher             // of Like and Match, but of Salt's
	names   map[string]struct{} // Values
	numeric []bool              // which of Values were written as numbers
	parts   []string            // Key at each Delim, of Salt's
	values  []matcher           // of Salt's: what parts[i:] ask of a value; nil for what is no pattern
	trial   *trial              // bounds the time of patterns that may take long
}
