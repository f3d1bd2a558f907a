package selector

import (
	"strconv"
	"strings"

	"drover/internal/fault"
)

// token is a word of an expression.
type token struct {
	kind tokenKind
	text string // as it is written, of a text what it stands for
	off  int    // byte of the text where it begins
}

type tokenKind uint8

const (
	tokEnd    tokenKind = iota
	tokAnd              // and &&
	tokOr               // or ||
	tokNot              // not !
	tokOpen             // (
	tokClose            // )
	tokWord             // a word of a compound; a name with its dots of a query
	tokText             // in quotes
	tokNumber           // what begins with a digit
	tokSign             // everything else: comparisons, brackets, commas
)

// parser reads one target.
type parser struct {
	text   string
	salt   bool // the language is Salt's compound, else the query
	toks   []token
	at     int
	depth  int
	leaves int
	budget int // for regular expressions
}

func (p *parser) add(kind tokenKind, text string, off int) {
	p.toks = append(p.toks, token{kind, text, off})
}

// peek is the next token; there is always one behind the last.
func (p *parser) peek() token {
	if p.at < len(p.toks) {
		return p.toks[p.at]
	}
	return token{kind: tokEnd, off: len(p.text)}
}

func (p *parser) next() token {
	t := p.peek()
	p.at++
	return t
}

// before names the token that was read last, for faults.
func (p *parser) before() string {
	if p.at == 0 || p.at > len(p.toks) {
		return ""
	}
	return " after " + short(p.toks[p.at-1].text)
}

// what names a token, for faults.
func (t token) what() string {
	if t.kind == tokEnd {
		return "the end"
	}
	return short(t.text)
}

// is takes the next token when it is a sign.
func (p *parser) is(sign string) bool {
	if t := p.peek(); t.kind == tokSign && t.text == sign {
		p.at++
		return true
	}
	return false
}

// all reads the whole expression.
func (p *parser) all() (*Node, *fault.Error) {
	n, err := p.or()
	if err != nil {
		return nil, err
	}
	switch t := p.peek(); {
	case t.kind == tokEnd:
		return n, nil
	case t.kind == tokClose:
		return nil, p.wrong(t.off, `there is no "(" for this ")"`)
	case t.kind == tokWord && (strings.EqualFold(t.text, "and") || strings.EqualFold(t.text, "or")):
		return nil, p.wrong(t.off, `expected "and" or "or", not %s`, t.what()).Fix("write %q in small letters", strings.ToLower(t.text))
	default:
		return nil, p.wrong(t.off, `expected "and" or "or" before %s`, t.what())
	}
}

func (p *parser) or() (*Node, *fault.Error) {
	n, err := p.and()
	if err != nil || p.peek().kind != tokOr {
		return n, err
	}
	kids := flat(Or, nil, n)
	for p.peek().kind == tokOr {
		p.at++
		if n, err = p.and(); err != nil {
			return nil, err
		}
		kids = flat(Or, kids, n)
	}
	return &Node{Op: Or, Kids: kids, Col: kids[0].Col}, nil
}

func (p *parser) and() (*Node, *fault.Error) {
	n, err := p.not()
	more := func() bool { return p.peek().kind == tokAnd || p.salt && p.peek().kind == tokNot }
	if err != nil || !more() {
		return n, err
	}
	kids := flat(And, nil, n)
	for more() {
		if p.peek().kind == tokAnd { // in Salt's language "a not b" is "a and not b"
			p.at++
		}
		if n, err = p.not(); err != nil {
			return nil, err
		}
		kids = flat(And, kids, n)
	}
	return &Node{Op: And, Kids: kids, Col: kids[0].Col}, nil
}

// flat takes in the kids of what has the same operation, so that a long row of tests is no deep tree.
func flat(op Op, kids []*Node, n *Node) []*Node {
	if n.Op == op {
		return append(kids, n.Kids...)
	}
	return append(kids, n)
}

func (p *parser) not() (*Node, *fault.Error) {
	t := p.peek()
	if p.depth++; p.depth > maxDepth {
		return nil, p.wrong(t.off, "more than %d parentheses and negations within each other", maxDepth)
	}
	defer func() { p.depth-- }()
	switch t.kind {
	case tokNot:
		p.at++
		n, err := p.not()
		if err != nil {
			return nil, err
		}
		return &Node{Op: Not, Kids: []*Node{n}, Col: p.column(t.off)}, nil
	case tokOpen:
		p.at++
		n, err := p.or()
		if err != nil {
			return nil, err
		}
		if end := p.next(); end.kind != tokClose {
			return nil, p.wrong(end.off, `expected ")" for the "(" of column %d, not %s`, p.column(t.off), end.what())
		}
		return n, nil
	case tokEnd, tokAnd, tokOr, tokClose:
		return nil, p.wrong(t.off, "expected a target%s, not %s", p.before(), t.what())
	}
	if p.salt {
		return p.word(p.next())
	}
	return p.test()
}

// leaf finishes a leaf that begins at a byte of the text.
func (p *parser) leaf(off int, l *Leaf) (*Node, *fault.Error) {
	if p.leaves++; p.leaves > maxLeaves {
		return nil, p.wrong(off, "more than %d terms", maxLeaves).Fix("write many names as one list, or make a group of them")
	}
	switch l.Kind {
	case ByFact, ByLabel, ByPackage, ByService, ByGroup:
		if l.Key == "" {
			return nil, p.wrong(off, "expected a name of the %s", l.Kind)
		}
	}
	if !l.Salt {
		if err := p.prepare(off, l); err != nil {
			return nil, err
		}
	}
	return &Node{Leaf: l, Col: p.column(off)}, nil
}

// prepare makes the leaf ready to compare.
func (p *parser) prepare(off int, l *Leaf) *fault.Error {
	switch l.Cmp {
	case Like:
		if len(l.Value) > maxPattern {
			return p.wrong(off, "the pattern has more than %d bytes", maxPattern)
		}
		l.match = compileGlob(l.Value, l.Fold)
	case Match:
		re, err := compilePattern(l.Value, l.Fold, &p.budget)
		if err != nil {
			return p.wrong(off, "%s is no regular expression: %s", short(l.Value), err)
		}
		l.match = re
	case In:
		l.names = make(map[string]struct{}, len(l.Values))
		for _, v := range l.Values {
			l.names[v] = struct{}{}
		}
	}
	return nil
}

// number reads a number: digits, and perhaps more of them behind a point.
func number(s string) (float64, bool) {
	digits := strings.TrimPrefix(s, "-")
	whole, rest, point := strings.Cut(digits, ".")
	if !isIndex(whole) || point && !isIndex(rest) || len(s) > 100 {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	return f, err == nil
}
