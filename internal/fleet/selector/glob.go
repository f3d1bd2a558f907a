package selector

import (
	"cmp"
	"slices"
	"strings"
	"unicode/utf8"
)

// globPart is what one letter, or for a star any number of letters, has to be.
type globPart struct {
	kind   globKind
	letter rune
	not    bool
	ranges []span // sorted, apart from each other
}

type span struct{ first, last rune }

type globKind uint8

const (
	globLetter globKind = iota
	globAny
	globStar
	globClass
)

func (p *globPart) fits(r rune) bool {
	switch p.kind {
	case globAny:
		return true
	case globClass:
		_, in := slices.BinarySearchFunc(p.ranges, r, func(s span, r rune) int {
			if s.last < r {
				return -1
			}
			return max(0, cmp.Compare(s.first, r))
		})
		return in != p.not
	}
	return p.letter == r
}

// compileGlob makes a pattern with the rules of Python's fnmatchcase: * ? [seq] [!seq]; a bracket
// that is not closed stands for itself, and nothing is escaped.
func compileGlob(pattern string, fold bool) matcher {
	folded := func(s string) string { return s }
	if fold {
		folded = strings.ToLower
		pattern = folded(pattern)
	}
	if !strings.ContainsAny(pattern, "*?[") {
		return func(s string, _ *trial) bool { return folded(s) == pattern }
	}
	parts := globParts(pattern)
	if len(parts) > heavyGlob {
		return func(s string, t *trial) bool {
			return t.measure(func() (bool, error) { return matchGlob(parts, folded(s)), nil })
		}
	}
	return func(s string, _ *trial) bool { return matchGlob(parts, folded(s)) }
}

func globParts(pattern string) []globPart {
	var parts []globPart
	rs := []rune(pattern)
	lastClose := len(rs) - 1 // no bracket behind it is closed: looked for once, not at each bracket
	for lastClose >= 0 && rs[lastClose] != ']' {
		lastClose--
	}
	for i := 0; i < len(rs); i++ {
		switch rs[i] {
		case '*':
			if n := len(parts); n == 0 || parts[n-1].kind != globStar {
				parts = append(parts, globPart{kind: globStar})
			}
		case '?':
			parts = append(parts, globPart{kind: globAny})
		case '[':
			if class, end, ok := globRanges(rs[:lastClose+1], i); ok {
				parts = append(parts, class)
				i = end
				continue
			}
			fallthrough
		default:
			parts = append(parts, globPart{letter: rs[i]})
		}
	}
	return parts
}

// globRanges reads [seq] that begins at i, and where it ends.
func globRanges(rs []rune, i int) (part globPart, end int, ok bool) {
	part.kind = globClass
	i++
	if i < len(rs) && rs[i] == '!' {
		part.not = true
		i++
	}
	end = i
	if end < len(rs) && rs[end] == ']' {
		end++
	}
	for end < len(rs) && rs[end] != ']' {
		end++
	}
	if end >= len(rs) {
		return part, 0, false
	}
	var all []span
	for seq := rs[i:end]; len(seq) > 0; {
		s, n := span{seq[0], seq[0]}, 1
		if len(seq) > 2 && seq[1] == '-' {
			s, n = span{seq[0], seq[2]}, 3
		}
		if s.first <= s.last { // one that goes down has nothing in it
			all = append(all, s)
		}
		seq = seq[n:]
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	for _, s := range all {
		if n := len(part.ranges); n > 0 && s.first <= part.ranges[n-1].last {
			part.ranges[n-1].last = max(part.ranges[n-1].last, s.last)
			continue
		}
		part.ranges = append(part.ranges, s)
	}
	return part, end, true
}

// matchGlob goes back to the last star only: what an earlier star could take, the last one can take
// as well. So it needs at most pattern times text steps.
func matchGlob(parts []globPart, s string) bool {
	p, star, mark := 0, -1, 0
	for at := 0; at < len(s); {
		r, n := utf8.DecodeRuneInString(s[at:])
		switch {
		case p < len(parts) && parts[p].kind == globStar:
			star, mark = p, at
			p++
		case p < len(parts) && parts[p].fits(r):
			p++
			at += n
		case star >= 0:
			_, n := utf8.DecodeRuneInString(s[mark:])
			mark += n
			p, at = star+1, mark
		default:
			return false
		}
	}
	for p < len(parts) && parts[p].kind == globStar {
		p++
	}
	return p == len(parts)
}
