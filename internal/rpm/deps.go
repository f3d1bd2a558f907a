package rpm

import (
	"cmp"
	"strings"
)

// Dep is one dependency.
type Dep struct {
	Name  string // of a rich one, the whole expression: "(a if b else c)"
	Flags uint32 // Sense…
	EVR   string // "[epoch:]version[-release]", empty when any version does
}

// DepKind is one of the kinds of dependencies.
type DepKind int

// The kinds of dependencies.
const (
	Requires DepKind = iota
	Provides
	Conflicts
	Obsoletes
	Recommends
	Suggests
	Supplements
	Enhances
	oldSuggests
	oldEnhances
)

// depTags is the tags of names, flags and versions by kind.
var depTags = [...][3]Tag{
	Requires:    {RequireName, RequireFlags, RequireVer},
	Provides:    {ProvideName, ProvideFlags, ProvideVer},
	Conflicts:   {ConflName, ConflFlags, ConflVer},
	Obsoletes:   {ObsName, ObsFlags, ObsVer},
	Recommends:  {RecName, RecFlags, RecVer},
	Suggests:    {SugName, SugFlags, SugVer},
	Supplements: {SupName, SupFlags, SupVer},
	Enhances:    {EnhName, EnhFlags, EnhVer},
	oldSuggests: {OldSugName, OldSugFlags, OldSugVer},
	oldEnhances: {OldEnhName, OldEnhFlags, OldEnhVer},
}

// String is the kind's name as in repository metadata.
func (k DepKind) String() string {
	return [...]string{"requires", "provides", "conflicts", "obsoletes", "recommends", "suggests", "supplements", "enhances", "suggests", "enhances"}[k]
}

// DepWalk goes over dependencies without copying: Next, then Name, Flags and EVR.
type DepWalk struct {
	names, vers walk
	flags       Ints
	i           int
}

// Deps starts a walk over the dependencies of one kind.
func (h Header) Deps(kind DepKind) DepWalk {
	t := depTags[kind]
	w := DepWalk{names: h.walk(t[0]), i: -1}
	if w.names.left > 0 {
		w.flags, w.vers = h.Ints(t[1]), h.walk(t[2])
	}
	return w
}

// Next goes to the next dependency, the first one at first, and tells whether there is one.
func (d *DepWalk) Next() bool {
	d.i++
	d.vers.Next()
	return d.names.Next()
}

// Name is the current dependency's name as bytes of the header.
func (d *DepWalk) Name() []byte { return d.names.cur }

// Flags is the current dependency's flags.
func (d *DepWalk) Flags() uint32 { return uint32(d.flags.At(d.i)) }

// EVR is the current dependency's version as bytes of the header.
func (d *DepWalk) EVR() []byte { return d.vers.cur }

// DepList is all dependencies of one kind, copied.
func (h Header) DepList(kind DepKind) []Dep {
	var out []Dep
	for w := h.Deps(kind); w.Next(); {
		out = append(out, Dep{string(w.Name()), w.Flags(), string(w.EVR())})
	}
	return out
}

const senseMask = SenseLess | SenseGreater | SenseEqual

// Satisfies tells whether something provided as (flags, evr) meets a dependency on
// (flags, evr) of the same name: whether the two ranges overlap (rpm's lib/rpmds.c,
// rpmdsCompare, and rpmio/rpmver.c, rpmverOverlap).
func Satisfies(provided, wanted Dep) bool {
	if provided.Name != wanted.Name {
		return false
	}
	pf, wf := provided.Flags&senseMask, wanted.Flags&senseMask
	if pf == 0 || wf == 0 || provided.EVR == "" || wanted.EVR == "" {
		return true
	}
	pe, pv, pr, pHas := splitEVR(provided.EVR)
	we, wv, wr, wHas := splitEVR(wanted.EVR)
	c := cmp.Or(compareEpochs(pe, we), CompareVersions(pv, wv))
	if c == 0 {
		if pHas && wHas {
			c = CompareVersions(pr, wr)
		} else if pHas && wf&SenseEqual != 0 || wHas && pf&SenseEqual != 0 {
			return true // the side without a release means every release of that version
		}
	}
	switch {
	case c < 0:
		return pf&SenseGreater != 0 || wf&SenseLess != 0
	case c > 0:
		return pf&SenseLess != 0 || wf&SenseGreater != 0
	}
	return pf&wf != 0
}

// compareEpochs orders two epochs as written; none is 0.
func compareEpochs(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}
