package selector

import (
	"regexp"
	"strings"
)

// String is the target in the query language; Parse makes the same tree of it, when it is not longer
// than a query may be.
func (n *Node) String() string {
	var b strings.Builder
	n.write(&b)
	return b.String()
}

func (n *Node) write(b *strings.Builder) {
	switch n.Op {
	case IsLeaf:
		n.Leaf.write(b, false)
	case Not:
		k := n.Kids[0]
		if k.Op == IsLeaf && k.Leaf.negatable() {
			k.Leaf.write(b, true)
			return
		}
		b.WriteString("not ")
		k.nested(b, k.Op == And || k.Op == Or)
	case And, Or:
		word := " and "
		if n.Op == Or {
			word = " or "
		}
		for i, k := range n.Kids {
			if i > 0 {
				b.WriteString(word)
			}
			k.nested(b, k.Op == Or)
		}
	}
}

func (n *Node) nested(b *strings.Builder, parentheses bool) {
	if parentheses {
		b.WriteByte('(')
		defer b.WriteByte(')')
	}
	n.write(b)
}

// String is the leaf in the query language.
func (l *Leaf) String() string {
	var b strings.Builder
	l.write(&b, false)
	return b.String()
}

// negatable tells whether the comparison has an opposite of its own.
func (l *Leaf) negatable() bool {
	return !l.Salt && (l.Cmp == Equal || l.Cmp == Like || l.Cmp == Match || l.Cmp == In)
}

func (l *Leaf) write(b *strings.Builder, negated bool) {
	switch {
	case l.Salt:
		letter := "G"
		switch {
		case l.Kind == ByFact && l.Cmp == Match:
			letter = "P"
		case l.Kind == ByPillar && l.Cmp == Like:
			letter = "I"
		case l.Kind == ByPillar:
			letter = "J"
		}
		if l.Delim != ":" || strings.HasPrefix(l.Key, "@") { // G@@ would have an @ for its delimiter
			letter += l.Delim
		}
		b.WriteString("salt(" + quote(letter+"@"+l.Key) + ")")
		return
	case l.Kind == BySubnet:
		s := l.Prefix.String()
		if l.Prefix.IsSingleIP() {
			s = l.Prefix.Addr().String()
		}
		b.WriteString("subnet(" + quote(s) + ")")
		return
	case l.Kind == ByNames:
		b.WriteString(string(ByName))
	case l.Kind == ByFact:
		writeKey(b, l.Kind, l.Key, strings.ReplaceAll(l.Key, ":", "."), !strings.Contains(l.Key, "."))
	case l.Kind == ByLabel:
		writeKey(b, l.Kind, l.Key, l.Key, true)
	case l.Kind == ByPort && isIndex(l.Key):
		b.WriteString("port(" + l.Key + ")")
	case l.Key != "":
		b.WriteString(string(l.Kind) + "(" + quote(l.Key) + ")")
	default:
		b.WriteString(string(l.Kind))
	}
	if l.Cmp == Present {
		return
	}
	sign := string(l.Cmp)
	if negated {
		sign = map[Cmp]string{Equal: "!=", Like: "not like", Match: "!~", In: "not in"}[l.Cmp]
	}
	b.WriteString(" " + sign + " ")
	if l.Cmp != In {
		writeValue(b, l.Value, l.Numeric)
		return
	}
	for i, v := range l.Values {
		b.WriteString(map[bool]string{true: "(", false: ", "}[i == 0])
		writeValue(b, v, l.isNumeric(i))
	}
	b.WriteByte(')')
}

func writeValue(b *strings.Builder, v string, numeric bool) {
	if numeric {
		b.WriteString(v)
		return
	}
	b.WriteString(quote(v))
}

// dotted is what may be written behind dots.
var dotted = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

func writeKey(b *strings.Builder, head Kind, key, withDots string, may bool) {
	if may && dotted.MatchString(withDots) {
		b.WriteString(string(head) + "." + withDots)
		return
	}
	b.WriteString(string(head) + "(" + quote(key) + ")")
}

// quote writes a text so that the query language reads it.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
