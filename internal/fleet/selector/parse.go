package selector

import (
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"drover/internal/fault"
)

// Parse reads a target. A fault target_invalid names the column, counted in letters from 1.
func Parse(form Form, text string) (*Node, error) {
	most := maxText
	if form == ListForm || form == Compound {
		most = maxList
	}
	if len(text) > most {
		return nil, fault.TooLarge("target_large", "a target of %d bytes; at most %d", len(text), most).Fix("make a group of it: `drover group set`")
	}
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return nil, bad(0, "the target is no text in UTF-8")
	}
	if strings.TrimSpace(text) == "" {
		return nil, bad(1, "the target is empty")
	}
	switch form {
	case Compound:
		return parseCompound(text)
	case Query:
		return parseQuery(text)
	}
	return simple(form, text, ":", 1)
}

func leaf(l Leaf, col int) (*Node, error) {
	if err := l.compile(col); err != nil {
		return nil, err
	}
	return &Node{Leaf: &l, Col: col}, nil
}

// simple reads a target of one of Salt's matchers.
func simple(form Form, text, delimiter string, col int) (*Node, error) {
	switch form {
	case Glob:
		return leaf(Leaf{Kind: ByName, Cmp: Like, Value: text}, col)
	case PCRE:
		return leaf(Leaf{Kind: ByName, Cmp: Match, Value: text}, col)
	case ListForm:
		l := Leaf{Kind: ByNames, Cmp: In}
		for _, n := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || unicode.IsSpace(r) }) {
			l.Values = append(l.Values, n)
		}
		return leaf(l, col)
	case Grain, GrainPCRE, Pillar, PillarPCRE:
		if delimiter != ":" {
			text = strings.ReplaceAll(text, delimiter, ":")
		}
		key, _, ok := strings.Cut(text, ":")
		if !ok || key == "" {
			return nil, bad(col, "%q has no pattern: FACT:PATTERN is expected", text)
		}
		l := Leaf{Kind: ByFact, Cmp: Like, Key: text, Salt: true, Fold: true}
		if form == Pillar || form == PillarPCRE {
			l.Kind = ByPillar
		}
		if form == GrainPCRE || form == PillarPCRE {
			l.Cmp, l.Fold = Match, false
		}
		n, err := leaf(l, col)
		if err != nil {
			return nil, err
		}
		for _, s := range n.Leaf.Splits() { // an expression that is none is told at once
			if _, err := n.Leaf.Pattern(s.Pattern); err != nil {
				return nil, bad(col, "%q is no regular expression", s.Pattern)
			}
		}
		return n, nil
	case Nodegroup:
		return leaf(Leaf{Kind: ByGroup, Key: text}, col)
	case Subnet:
		p, err := netip.ParsePrefix(text)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(text); err == nil {
				p, err = a.Prefix(a.BitLen())
			}
		}
		if err != nil {
			return nil, bad(col, "%q is no address and no subnet", text)
		}
		return leaf(Leaf{Kind: BySubnet, Prefix: p.Masked()}, col)
	case Range:
		return nil, bad(col, "range targets are not supported: they need a server of their own").(*fault.Error).Fix("make a group of these hosts: `drover group set`") //nolint:forcetypeassert // made here
	case Compound, Query:
	}
	return nil, bad(0, "%q is no form of targets", string(form)).(*fault.Error).Fix("use one of %v", Forms()) //nolint:forcetypeassert // made here
}

// word is a word of a compound target, and where it begins.
type word struct {
	text string
	col  int
}

// words splits at spaces, and takes parentheses at the ends of words for words of their own where
// they cannot be part of one: an expression of E@, G@ or P@ may have its own.
func words(text string) (out []word) {
	col := 1
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		if unicode.IsSpace(r) {
			text, col = text[n:], col+1
			continue
		}
		end := strings.IndexFunc(text, unicode.IsSpace)
		if end < 0 {
			end = len(text)
		}
		w := text[:end]
		text = text[end:]
		start := col
		col += utf8.RuneCountInString(w)
		for len(w) > 1 && w[0] == '(' {
			out = append(out, word{"(", start})
			w, start = w[1:], start+1
		}
		tail := 0
		for len(w) > 1 && w[len(w)-1] == ')' && strings.Count(w, ")") > strings.Count(w, "(") {
			w, tail = w[:len(w)-1], tail+1
		}
		out = append(out, word{w, start})
		for i := range tail {
			out = append(out, word{")", col - tail + i})
		}
	}
	return out
}

// compound reads Salt's compound targets. "not" binds before "and", and that before "or"; two
// terms without a word between them are none.
type compound struct {
	words  []word
	i      int
	leaves int
	end    int
}

func parseCompound(text string) (*Node, error) {
	p := &compound{words: words(text), end: utf8.RuneCountInString(text) + 1}
	n, err := p.or(0)
	if err != nil {
		return nil, err
	}
	if p.i < len(p.words) {
		return nil, bad(p.words[p.i].col, "expected \"and\" or \"or\", not %q", p.words[p.i].text)
	}
	return n, nil
}

func (p *compound) peek() string {
	if p.i < len(p.words) {
		return p.words[p.i].text
	}
	return ""
}

func (p *compound) col() int {
	if p.i < len(p.words) {
		return p.words[p.i].col
	}
	return p.end
}

func (p *compound) or(depth int) (*Node, error) { return p.chain(depth, "or", Or, p.and) }

func (p *compound) and(depth int) (*Node, error) { return p.chain(depth, "and", And, p.not) }

func (p *compound) chain(depth int, sep string, op Op, next func(int) (*Node, error)) (*Node, error) {
	col := p.col()
	first, err := next(depth)
	if err != nil || p.peek() != sep {
		return first, err
	}
	n := &Node{Op: op, Kids: []*Node{first}, Col: col}
	for p.peek() == sep {
		p.i++
		k, err := next(depth)
		if err != nil {
			return nil, err
		}
		n.Kids = append(n.Kids, k)
	}
	return n, nil
}

func (p *compound) not(depth int) (*Node, error) {
	col := p.col()
	if depth > maxDepth {
		return nil, bad(col, "more than %d parentheses and negations within each other", maxDepth)
	}
	switch w := p.peek(); w {
	case "not":
		p.i++
		k, err := p.not(depth + 1)
		if err != nil {
			return nil, err
		}
		return &Node{Op: Not, Kids: []*Node{k}, Col: col}, nil
	case "(":
		p.i++
		n, err := p.or(depth + 1)
		if err != nil {
			return nil, err
		}
		if p.peek() != ")" {
			return nil, bad(p.col(), "expected a closing parenthesis for the one in column %d", col)
		}
		p.i++
		return n, nil
	case "", ")", "and", "or":
		if w == "" {
			w = "the end"
		}
		return nil, bad(col, "expected a target, not %s", w)
	default:
		p.i++
		if p.leaves++; p.leaves > maxLeaves {
			return nil, bad(col, "more than %d terms", maxLeaves)
		}
		return term(w, col)
	}
}

// term reads a word such as G@os:CentOS*, G|@os@CentOS*, L@a,b or web*.
func term(w string, col int) (*Node, error) {
	if len(w) > 1 && (w[1] == '@' || len(w) > 3 && w[1] == '|' && w[3] == '@') {
		delimiter, rest := ":", w[2:]
		if w[1] == '|' {
			delimiter, rest = w[2:3], w[4:]
		} else if len(w) > 2 && w[1] == '@' {
			rest = w[2:]
		}
		forms := map[byte]Form{'G': Grain, 'P': GrainPCRE, 'I': Pillar, 'J': PillarPCRE, 'L': ListForm, 'S': Subnet, 'E': PCRE, 'N': Nodegroup, 'R': Range}
		form, ok := forms[w[0]]
		if !ok {
			return nil, bad(col, "%q is no matcher: G, P, I, J, L, S, E or N is expected before the @", w[:1])
		}
		if rest == "" {
			return nil, bad(col+2, "expected a pattern after %q", w)
		}
		return simple(form, rest, delimiter, col)
	}
	if len(w) > 2 && w[1] == '|' && strings.HasSuffix(w[:3], "@") { // G|@: the delimiter itself is @
		return nil, bad(col, "%q has no delimiter", w)
	}
	return simple(Glob, w, ":", col)
}
