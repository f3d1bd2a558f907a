package selector

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"drover/internal/fault"
)

// letters are the forms that a word of a compound may have: LETTER@. The first four may have
// another delimiter: LETTER DELIMITER@.
const letters = "GPIJLSENR"

// words splits a compound at spaces. Salt wants parentheses to be words of their own; here they may
// also stand at the beginning and the end of a word where they cannot belong to it.
func (p *parser) words() {
	open := 0
	for off := 0; off < len(p.text); {
		if r, n := utf8.DecodeRuneInString(p.text[off:]); unicode.IsSpace(r) {
			off += n
			continue
		}
		w := p.text[off:]
		if i := strings.IndexFunc(w, unicode.IsSpace); i >= 0 {
			w = w[:i]
		}
		end := off + len(w)
		for strings.HasPrefix(w, "(") || strings.HasPrefix(w, "not(") {
			if w[0] == 'n' {
				p.add(tokNot, "not", off)
				w, off = w[3:], off+3
			}
			p.add(tokOpen, "(", off)
			w, off = w[1:], off+1
			open++
		}
		closing := min(surplus(w), open)
		if strings.Trim(w, ")") == "" {
			closing = len(w)
		}
		w = w[:len(w)-closing]
		switch w {
		case "":
		case "and":
			p.add(tokAnd, w, off)
		case "or":
			p.add(tokOr, w, off)
		case "not":
			p.add(tokNot, w, off)
		default:
			p.add(tokWord, w, off)
		}
		for i := range closing {
			p.add(tokClose, ")", off+len(w)+i)
		}
		open = max(0, open-closing)
		off = end
	}
}

// surplus counts the parentheses at the end of a word that close nothing in it. What is escaped or
// in brackets, as in a regular expression, does not count.
func surplus(w string) int {
	depth, extra := 0, 0
	lastClose := strings.LastIndexByte(w, ']')
	class := false
	for i := 0; i < len(w); i++ {
		c := w[i]
		switch {
		case c == '\\':
			i++
		case class:
			class = c != ']'
		case c == '[' && i < lastClose:
			class = true
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case c == ')':
			extra++
			continue
		}
		extra = 0
	}
	return extra
}

// word reads a word of a compound.
func (p *parser) word(t token) (*Node, *fault.Error) {
	letter, delim, rest, ok := engine(t.text)
	if !ok {
		return p.leaf(t.off, named(t.text))
	}
	if !strings.ContainsRune(letters, letter) {
		err := p.wrong(t.off, "%q is no matcher: G, P, I, J, L, S, E or N is expected before the @", string(letter))
		if up := unicode.ToUpper(letter); strings.ContainsRune(letters, up) {
			err = err.Fix("write %c@", up)
		}
		return nil, err
	}
	at := t.off + len(t.text) - len(rest)
	if delim != "" && !strings.ContainsRune(letters[:4], letter) {
		return nil, p.wrong(t.off+1, "expected @ after %c: only G, P, I and J take another delimiter", letter)
	}
	if rest == "" {
		return nil, p.wrong(at, "expected a pattern after %s", short(t.text))
	}
	if delim == "" {
		delim = ":"
	}
	switch letter {
	case 'G':
		return p.path(at, Grain, rest, delim)
	case 'P':
		return p.path(at, GrainPCRE, rest, delim)
	case 'I':
		return p.path(at, Pillar, rest, delim)
	case 'J':
		return p.path(at, PillarPCRE, rest, delim)
	case 'L':
		return p.list(at, rest)
	case 'S':
		return p.subnet(at, rest)
	case 'E':
		return p.leaf(at, &Leaf{Kind: ByName, Cmp: Match, Value: rest})
	case 'N':
		return p.leaf(at, &Leaf{Kind: ByGroup, Key: rest})
	}
	return nil, p.noRange(t.off)
}

// engine splits LETTER@REST or LETTER DELIMITER@REST. The delimiter may be any letter, even @.
func engine(w string) (letter rune, delim, rest string, ok bool) {
	if w == "" || (w[0] < 'A' || w[0] > 'Z') && (w[0] < 'a' || w[0] > 'z') {
		return 0, "", "", false
	}
	letter, w = rune(w[0]), w[1:]
	_, n := utf8.DecodeRuneInString(w)
	if rest, ok = strings.CutPrefix(w[n:], "@"); ok && strings.ContainsRune(letters, letter) && (w[0] != '@' || strings.ContainsRune(letters[:4], letter)) {
		return letter, w[:n], rest, true
	}
	rest, ok = strings.CutPrefix(w, "@")
	return letter, "", rest, ok
}

// named is the leaf of a name, which may be a pattern.
func named(w string) *Leaf {
	if !strings.ContainsAny(w, "*?[") {
		return &Leaf{Kind: ByName, Cmp: Equal, Value: w}
	}
	return &Leaf{Kind: ByName, Cmp: Like, Value: w}
}

// list reads names with commas or spaces between them.
func (p *parser) list(off int, w string) (*Node, *fault.Error) {
	l := &Leaf{Kind: ByNames, Cmp: In}
	seen := map[string]bool{}
	for name := range strings.FieldsFuncSeq(w, func(r rune) bool { return r == ',' || unicode.IsSpace(r) }) {
		if !seen[name] {
			seen[name] = true
			l.Values = append(l.Values, name)
		}
	}
	if len(l.Values) == 0 {
		return nil, p.wrong(off, "expected names with commas between them")
	}
	return p.leaf(off, l)
}

// path reads KEY:PATTERN of facts or pillars. Any of the delimiters in it may be the one between key
// and pattern.
func (p *parser) path(off int, form Form, w, delim string) (*Node, *fault.Error) {
	l := &Leaf{Kind: ByFact, Cmp: Like, Key: w, Salt: true, Delim: delim, Fold: true, parts: strings.Split(w, delim)}
	if form == Pillar || form == PillarPCRE {
		l.Kind = ByPillar
	}
	if form == GrainPCRE || form == PillarPCRE {
		l.Cmp = Match
	}
	switch n := len(l.parts); {
	case n < 2:
		return nil, p.wrong(off, "%s has no pattern: KEY%sPATTERN is expected", short(w), delim).Fix("for any value write KEY%s*", delim)
	case l.parts[0] == "":
		return nil, p.wrong(off, "expected a key before the first %q", delim)
	case n > maxLevels:
		return nil, p.wrong(off, "a key has at most %d levels", maxLevels)
	case len(w) > maxPattern:
		return nil, p.wrong(off, "the pattern has more than %d bytes", maxPattern)
	}
	l.values = make([]matcher, len(l.parts))
	var first error
	good := false
	at := 0
	for i := 1; i < len(l.parts); i++ {
		at += len(l.parts[i-1]) + len(delim)
		if l.Cmp == Like {
			l.values[i], good = compileGlob(w[at:], true), true
			continue
		}
		// A delimiter inside of a regular expression leaves a rest that is none: there the
		// pattern cannot begin.
		if re, err := compilePattern(w[at:], true, &p.budget); err == nil {
			l.values[i], good = re, true
		} else if first == nil {
			first = err
		}
	}
	if !good {
		start := len(l.parts[0]) + len(delim)
		return nil, p.wrong(off+start, "%s is no regular expression: %s", short(w[start:]), first)
	}
	return p.leaf(off, l)
}

// subnet reads an address or a network: ADDRESS, ADDRESS/BITS, ADDRESS/MASK.
func (p *parser) subnet(off int, w string) (*Node, *fault.Error) {
	addr, mask, network := strings.Cut(w, "/")
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Zone() != "" {
		return nil, p.wrong(off, "%s is no address and no subnet such as 192.0.2.0/24", short(w))
	}
	if !network {
		a = a.Unmap()
		return p.leaf(off, &Leaf{Kind: BySubnet, Prefix: netip.PrefixFrom(a, a.BitLen())})
	}
	prefix, ok := netip.PrefixFrom(a, maskBits(mask)), true
	if m, err := netip.ParseAddr(mask); err != nil || !m.Is4() || !a.Is4() {
		prefix, err = netip.ParsePrefix(w)
		ok = err == nil
	}
	if ok && a.Is4In6() { // ::ffff:192.0.2.0/120 is 192.0.2.0/24
		prefix = netip.PrefixFrom(a.Unmap(), prefix.Bits()-96)
	}
	if !ok || !prefix.IsValid() {
		return nil, p.wrong(off+len(addr)+1, "%s is not how many bits the network of %s has, and no mask", short(mask), addr).Fix("write it as in 192.0.2.0/24")
	}
	if prefix != prefix.Masked() {
		return nil, p.wrong(off, "the address %s is not the first one of its network, %s", addr, prefix.Masked()).
			Fix("write %s for the network, or %s for the one host", prefix.Masked(), prefix.Addr())
	}
	return p.leaf(off, &Leaf{Kind: BySubnet, Prefix: prefix})
}

// maskBits is how many bits a mask with dots leaves to the network, -1 when it is none. 0.0.0.255 is
// the same as 255.255.255.0, as Python has it.
func maskBits(s string) int {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return -1
	}
	b := a.As4()
	m := binary.BigEndian.Uint32(b[:])
	for bits := range 33 {
		if ones := ^uint32(uint64(1)<<(32-bits) - 1); m == ones {
			return bits
		}
	}
	for bits := range 33 {
		if m == uint32(uint64(1)<<(32-bits)-1) {
			return bits
		}
	}
	return -1
}

func (p *parser) noRange(off int) *fault.Error {
	return p.wrong(off, "range targets are not supported: they need a server of their own").Fix("make a group of these hosts: `drover group set`")
}
