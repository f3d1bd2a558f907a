package solve

import (
	"strings"

	"drover/internal/rpm"
)

// op joins the two sides of a rich dependency.
type op uint8

const (
	opNone op = iota // a plain dependency
	opAnd
	opOr
	opIf
	opUnless
	opElse
	opWith
	opWithout
)

// expr is a rich dependency. The right side of if and unless may be an else, whose left side
// is the condition.
type expr struct {
	op   op
	a, b *expr
	dep  rpm.Dep
}

// maxDepth bounds how deep rich dependencies nest.
const maxDepth = 200

// parseRich reads a rich dependency, or gives nil: libsolv takes a malformed one for a name.
func parseRich(s string) *expr {
	p := richParser{s: s}
	e := p.expr(opNone, 0)
	if p.s != "" {
		return nil
	}
	return e
}

type richParser struct{ s string }

func (p *richParser) spaces() { p.s = strings.TrimLeft(p.s, " ") }

// word takes a name or version: up to a space, a comma, or a parenthesis that it did not open.
func (p *richParser) word() string {
	depth, i := 0, 0
	for ; i < len(p.s); i++ {
		c := p.s[i]
		if c == ' ' || c == ',' || c == ')' && depth == 0 {
			break
		}
		switch c {
		case '(':
			depth++
		case ')':
			depth--
		}
	}
	w := p.s[:i]
	p.s = p.s[i:]
	return w
}

// expr reads "(a op b …)"; with a chain's operator, what follows that operator.
func (p *richParser) expr(chain op, depth int) *expr {
	if depth > maxDepth {
		return nil
	}
	if chain == opNone {
		if !strings.HasPrefix(p.s, "(") {
			return nil
		}
		p.s = p.s[1:]
	}
	p.spaces()
	var e *expr
	if strings.HasPrefix(p.s, "(") {
		if e = p.expr(opNone, depth+1); e == nil {
			return nil
		}
	} else {
		e = &expr{dep: rpm.Dep{Name: p.word()}}
		if e.dep.Name == "" {
			return nil
		}
		p.spaces()
		var flags uint32
		for ; p.s != ""; p.s = p.s[1:] {
			f := map[byte]uint32{'<': rpm.SenseLess, '=': rpm.SenseEqual, '>': rpm.SenseGreater}[p.s[0]]
			if f == 0 {
				break
			}
			flags |= f
		}
		if flags != 0 {
			p.spaces()
			e.dep.Flags, e.dep.EVR = flags, p.word()
			if e.dep.EVR == "" {
				return nil
			}
		}
	}
	p.spaces()
	if p.s == "" {
		return nil
	}
	if p.s[0] == ')' {
		p.s = p.s[1:]
		return e
	}
	name, rest, _ := strings.Cut(p.s, " ")
	o := map[string]op{"and": opAnd, "or": opOr, "if": opIf, "unless": opUnless, "else": opElse, "with": opWith, "without": opWithout}[name]
	if o == opNone {
		return nil
	}
	p.s = rest
	if (chain == opIf || chain == opUnless) && o == opElse {
		chain = opNone
	}
	if chain != opNone && chain != o {
		return nil
	}
	b := p.expr(o, depth+1)
	if b == nil {
		return nil
	}
	return &expr{op: o, a: e, b: b}
}

// joint tells whether a single package cannot meet e by itself in all cases, so that it is a
// formula over several; all else is an atom.
func (e *expr) joint() bool {
	switch e.op {
	case opAnd, opIf, opUnless:
		return true
	case opOr:
		return e.a.joint() || e.b.joint()
	}
	return false
}

// met tells whether one package meets an atom, given which plain dependencies it meets. Where
// one package cannot be meant, libsolv takes the best case; so it is here.
func (e *expr) met(plain func(rpm.Dep) bool) bool {
	switch e.op {
	case opNone:
		return plain(e.dep)
	case opWith:
		return e.a.met(plain) && e.b.met(plain)
	case opWithout:
		return e.a.met(plain) && !e.b.met(plain)
	case opAnd, opOr:
		return e.a.met(plain) || e.b.met(plain)
	case opIf, opUnless:
		return e.a.met(plain) || e.b.op == opElse && e.b.b.met(plain)
	}
	return false // an else without its if
}

// leaves calls fn with every plain dependency.
func (e *expr) leaves(fn func(rpm.Dep)) {
	if e.op == opNone {
		fn(e.dep)
		return
	}
	e.a.leaves(fn)
	e.b.leaves(fn)
}

// lit is an atom, or the absence of everything that meets it.
type lit struct {
	e   *expr
	not bool
}

// maxClauses bounds the normal form of one dependency.
const maxClauses = 2000

// clauses is e, or its opposite, as a conjunction of disjunctions, and false when that is too
// large.
func (e *expr) clauses(not bool) ([][]lit, bool) {
	both := func(x [][]lit, xok bool, y [][]lit, yok bool) ([][]lit, bool) {
		out := append(append([][]lit{}, x...), y...)
		return out, xok && yok && len(out) <= maxClauses
	}
	either := func(x [][]lit, xok bool, y [][]lit, yok bool) ([][]lit, bool) {
		if !xok || !yok || len(x)*len(y) > maxClauses {
			return nil, false
		}
		var out [][]lit
		for _, c := range x {
			for _, d := range y {
				out = append(out, append(append([]lit{}, c...), d...))
			}
		}
		return out, true
	}
	if !e.joint() {
		return [][]lit{{{e, not}}}, true
	}
	join := both // of what e means when not negated: and
	if not {
		join = either
	}
	other := either // or
	if not {
		other = both
	}
	a, b := e.a, e.b
	ax, aok := a.clauses(not)
	switch e.op {
	case opAnd:
		bx, bok := b.clauses(not)
		return join(ax, aok, bx, bok)
	case opOr:
		bx, bok := b.clauses(not)
		return other(ax, aok, bx, bok)
	}
	cond, alt := b, (*expr)(nil)
	if b.op == opElse {
		cond, alt = b.a, b.b
	}
	no, nok := cond.clauses(!not) // the condition does not hold
	if e.op == opIf {
		x, xok := other(ax, aok, no, nok)
		if alt == nil {
			return x, xok
		}
		cx, cok := cond.clauses(not)
		ex, eok := alt.clauses(not)
		y, yok := other(cx, cok, ex, eok)
		return join(x, xok, y, yok)
	}
	x, xok := join(ax, aok, no, nok)
	if alt == nil {
		return x, xok
	}
	cx, cok := cond.clauses(not)
	ex, eok := alt.clauses(not)
	y, yok := join(cx, cok, ex, eok)
	return other(x, xok, y, yok)
}

// String writes the expression; the same one gives the same text.
func (e *expr) String() string {
	if e.op == opNone {
		if d := plain(e.dep); d.Flags != 0 {
			return d.Name + " " + sense(d.Flags) + " " + d.EVR
		}
		return e.dep.Name
	}
	return "(" + e.a.String() + " " + [...]string{"", "and", "or", "if", "unless", "else", "with", "without"}[e.op] + " " + e.b.String() + ")"
}
