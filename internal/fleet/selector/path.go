package selector

import (
	"slices"
	"strings"
)

// Split is one way to read Salt's KEY:PATTERN.
type Split struct{ Key, Pattern string }

// Splits are the ways to read Salt's text: a key may have colons, and so may a value. The longest
// key comes first.
func (l *Leaf) Splits() []Split {
	var out []Split
	for i := len(l.parts) - 1; i > 0; i-- {
		out = append(out, Split{strings.Join(l.parts[:i], ":"), strings.Join(l.parts[i:], l.Delim)})
	}
	return out
}

// matchValue tells whether a value is what parts[i:] ask for.
func (l *Leaf) matchValue(i int, value string) bool {
	return i < len(l.values) && l.values[i] != nil && l.values[i](value, l.trial)
}

// descend goes from a row's key down by the levels of a key and gives those that remain. Where a
// level is the number of an element it may be left out, so that there may be several ways; there are
// never many, as each has used another number of levels.
func descend(row, key []string) (rests [][]string) {
	rests = [][]string{row}
	for i, k := range key {
		var next [][]string
		for _, r := range rests {
			if len(r) > 0 && r[0] == k {
				next = append(next, r[1:])
			}
			if i > 0 && len(r) > 1 && isIndex(r[0]) && r[1] == k && !isIndex(k) {
				next = append(next, r[2:])
			}
		}
		rests = next
	}
	return rests
}

// isElement tells whether what remains of a key is nothing, or the number of an element of a list.
func isElement(rest []string) bool { return len(rest) == 0 || len(rest) == 1 && isIndex(rest[0]) }

func isIndex(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
}

// walk holds one row against an expression. Both are looked at from some level on: row is what is
// left of the row's key, and i is the first of the expression's parts that is not used up.
type walk struct {
	leaf  *Leaf
	value string
	seen  map[[2]int]bool // rests that were looked at in vain: stars may lead there in many ways
}

// below tries each delimiter as the one between key and pattern, the last one first.
func (w *walk) below(row []string, i int) bool {
	parts := w.leaf.parts
	for k := len(parts) - 1; k > i; k-- {
		if k == i+1 && parts[i] == "*" { // all that is here, instead of a key
			if w.mapping(row, i) {
				return true
			}
			continue
		}
		for _, rest := range descend(row, levels(parts[i:k])) {
			if isElement(rest) && w.leaf.matchValue(k, w.value) {
				return true
			}
			if len(rest) > 1 && isIndex(rest[0]) && w.mapping(rest[1:], k) {
				return true
			}
			if len(rest) > 0 && w.mapping(rest, k) {
				return true
			}
		}
	}
	return false
}

// mapping holds what is left of an expression against a mapping: it names a key, leads further down,
// or begins with a star for any key.
func (w *walk) mapping(row []string, i int) bool {
	mark := [2]int{len(row), i}
	if w.seen[mark] {
		return false
	}
	if w.seen == nil {
		w.seen = map[[2]int]bool{}
	}
	w.seen[mark] = true
	parts := w.leaf.parts
	star := parts[i] == "*" && i+1 < len(parts)
	if star {
		i++
	}
	if parts[i] == "*" && i == len(parts)-1 {
		return true
	}
	key := levels(parts[i:])
	if len(row) >= len(key) && slices.Equal(row[:len(key)], key) {
		return true
	}
	if w.below(row, i) {
		return true
	}
	if !star {
		return false
	}
	return isElement(row[min(1, len(row)):]) && len(row) > 0 && w.leaf.matchValue(i, w.value) || len(row) > 1 && w.mapping(row[1:], i)
}

// levels are the levels of a key whose parts may have a ":" in them, with another delimiter.
func levels(parts []string) []string {
	if slices.ContainsFunc(parts, func(s string) bool { return strings.Contains(s, ":") }) {
		return strings.Split(strings.Join(parts, ":"), ":")
	}
	return parts
}
