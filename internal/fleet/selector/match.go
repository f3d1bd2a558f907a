package selector

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"drover/internal/rpm"
)

// MatchText tells whether a value is what the leaf asks for. Of facts and pillars, see MatchFact. Of
// subnets the value is an address.
func (l *Leaf) MatchText(v string) bool {
	if l.Kind == BySubnet {
		a, err := netip.ParseAddr(v)
		return err == nil && l.Prefix.Contains(a.Unmap().WithZone(""))
	}
	switch l.Cmp {
	case Present:
		return true
	case Like, Match:
		if l.match == nil {
			return false
		}
		if l.match(v, l.trial) {
			return true
		}
		_, rest, ok := strings.Cut(v, ":") // a pattern of versions need not say the epoch
		return l.Kind == ByPackage && ok && l.match(rest, l.trial)
	case In:
		if _, ok := l.names[v]; ok {
			return true
		}
		if l.Kind == ByName || l.Kind == ByNames {
			return false
		}
		for i, want := range l.Values {
			if l.equal(v, want, l.isNumeric(i)) {
				return true
			}
		}
		return false
	case Equal:
		return l.equal(v, l.Value, l.Numeric)
	}
	c, ok := l.order(v)
	if !ok {
		return false
	}
	switch l.Cmp {
	case Less:
		return c < 0
	case AtMost:
		return c <= 0
	case More:
		return c > 0
	case AtLeast:
		return c >= 0
	}
	return false
}

func (l *Leaf) isNumeric(i int) bool { return i < len(l.numeric) && l.numeric[i] }

func (l *Leaf) equal(v, want string, numeric bool) bool {
	switch {
	case v == want:
		return true
	case l.Kind == ByPackage:
		return compareEVR(v, want) == 0
	case l.Kind == ByAgent:
		return rpm.CompareVersions(v, want) == 0
	case numeric:
		a, ok := number(v)
		b, ok2 := number(want)
		return ok && ok2 && a == b
	}
	return false
}

// order orders versions of packages as RPM does, numbers as numbers when one was asked for, and all
// else as versions. What does not begin as a number is not before or behind one.
func (l *Leaf) order(v string) (c int, ok bool) {
	if l.Kind == ByPackage {
		return compareEVR(v, l.Value), true
	}
	if l.Numeric {
		a, isNumber := number(v)
		b, _ := number(l.Value)
		if isNumber {
			return cmp.Compare(a, b), true
		}
		if v == "" || v[0] < '0' || v[0] > '9' {
			return 0, false
		}
	}
	return rpm.CompareVersions(v, l.Value), true
}

// compareEVR compares an installed version with one that was asked for, by the parts that were asked
// for: people leave out epochs, and would be told that nothing is older than 3.2.2.
func compareEVR(have, want string) int {
	he, h, _ := cutEpoch(have)
	we, w, given := cutEpoch(want)
	hv, hr, _ := strings.Cut(h, "-")
	wv, wr, release := strings.Cut(w, "-")
	c := 0
	if given {
		c = cmp.Compare(he, we)
	}
	if c = cmp.Or(c, rpm.CompareVersions(hv, wv)); c == 0 && release {
		c = rpm.CompareVersions(hr, wr)
	}
	return c
}

func cutEpoch(evr string) (epoch uint64, rest string, given bool) {
	if e, rest, ok := strings.Cut(evr, ":"); ok {
		if n, err := strconv.ParseUint(e, 10, 32); err == nil {
			return n, rest, true
		}
	}
	return 0, evr, false
}

// Top is the first level of all keys of facts that the leaf can mean, "" when that may be any: facts
// that are looked at have this key, or one that begins with it and ":".
func (l *Leaf) Top() string {
	key := l.Key
	if l.Salt {
		if key = l.parts[0]; key == "*" {
			return ""
		}
	}
	top, _, _ := strings.Cut(key, ":")
	return top
}

// MatchFact tells whether a host is meant because it has a fact, or a pillar, with this key and
// value. Keys are flat: levels are joined with ":", and the elements of a list have their number as
// a level. A host is meant when one of its facts is enough.
//
// A list is meant by its key, and a level that is a list of mappings may be left out, as in Salt: an
// element "disks:0:name" is found under "disks:name". Of Salt's KEY:PATTERN, a mapping is meant
// by * and by the name of one of its keys in place of a pattern, too.
func (l *Leaf) MatchFact(key, value string) bool {
	if top := l.Top(); top != "" && (!strings.HasPrefix(key, top) || len(key) > len(top) && key[len(top)] != ':') {
		return false
	}
	row := strings.Split(key, ":")
	if l.Salt {
		w := &walk{leaf: l, value: value}
		return w.below(row, 0)
	}
	return slices.ContainsFunc(descend(row, strings.Split(l.Key, ":")), func(rest []string) bool {
		if l.Cmp == Present {
			return true
		}
		return isElement(rest) && l.MatchText(value)
	})
}
