package selector

import (
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// token is a word of the query language.
type token struct {
	kind byte // 'w' word, 's' string, 'n' number, 'o' operator or parenthesis, 0 the end
	text string
	col  int
}

func lex(text string) (out []token, err error) {
	col := 1
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case unicode.IsSpace(r):
			text, col = text[n:], col+1
		case r == '"' || r == '\'':
			var b strings.Builder
			start, i := col, n
			closed := false
			for i < len(text) {
				c, m := utf8.DecodeRuneInString(text[i:])
				i += m
				col++
				if c == r {
					closed = true
					break
				}
				if c == '\\' && i < len(text) {
					c, m = utf8.DecodeRuneInString(text[i:])
					if c != r && c != '\\' {
						b.WriteByte('\\')
					}
					i += m
					col++
				}
				b.WriteRune(c)
			}
			if !closed {
				return nil, bad(start, "the text has no end: %c is missing", r)
			}
			out = append(out, token{'s', b.String(), start})
			text, col = text[i:], col+1
		case r == '-' && len(text) > 1 && text[1] >= '0' && text[1] <= '9' || unicode.IsDigit(r):
			end := strings.IndexFunc(text[1:], func(c rune) bool { return !unicode.IsDigit(c) && c != '.' })
			if end < 0 {
				end = len(text) - 1
			}
			w := text[:end+1]
			out = append(out, token{'n', w, col})
			text, col = text[len(w):], col+utf8.RuneCountInString(w)
		case unicode.IsLetter(r) || r == '_':
			end := strings.IndexFunc(text, func(c rune) bool {
				return !unicode.IsLetter(c) && !unicode.IsDigit(c) && c != '_' && c != '-' && c != '.'
			})
			if end < 0 {
				end = len(text)
			}
			w := text[:end]
			out = append(out, token{'w', w, col})
			text, col = text[end:], col+utf8.RuneCountInString(w)
		default:
			op := ""
			for _, o := range []string{"==", "!=", "<=", ">=", "=~", "!~", "&&", "||", "<", ">", "=", "~", "!", "(", ")", "[", "]", ","} {
				if strings.HasPrefix(text, o) {
					op = o
					break
				}
			}
			if op == "" {
				return nil, bad(col, "%q means nothing here", r)
			}
			out = append(out, token{'o', op, col})
			text, col = text[len(op):], col+len(op)
		}
	}
	return append(out, token{0, "the end", col}), nil
}

type query struct {
	toks   []token
	i      int
	leaves int
}

func parseQuery(text string) (*Node, error) {
	toks, err := lex(text)
	if err != nil {
		return nil, err
	}
	p := &query{toks: toks}
	n, err := p.or(0)
	if err != nil {
		return nil, err
	}
	if t := p.peek(); t.kind != 0 {
		return nil, bad(t.col, "expected \"and\", \"or\" or the end, not %q", t.text)
	}
	return n, nil
}

func (p *query) peek() token { return p.toks[p.i] }

func (p *query) is(texts ...string) bool {
	t := p.peek()
	for _, x := range texts {
		if t.text == x && (t.kind == 'o' || t.kind == 'w') {
			return true
		}
	}
	return false
}

func (p *query) take(text string) error {
	if !p.is(text) {
		return bad(p.peek().col, "expected %q, not %q", text, p.peek().text)
	}
	p.i++
	return nil
}

func (p *query) or(depth int) (*Node, error) { return p.chain(depth, Or, p.and, "or", "||") }

func (p *query) and(depth int) (*Node, error) { return p.chain(depth, And, p.not, "and", "&&") }

func (p *query) chain(depth int, op Op, next func(int) (*Node, error), seps ...string) (*Node, error) {
	col := p.peek().col
	first, err := next(depth)
	if err != nil || !p.is(seps...) {
		return first, err
	}
	n := &Node{Op: op, Kids: []*Node{first}, Col: col}
	for p.is(seps...) {
		p.i++
		k, err := next(depth)
		if err != nil {
			return nil, err
		}
		n.Kids = append(n.Kids, k)
	}
	return n, nil
}

func (p *query) not(depth int) (*Node, error) {
	t := p.peek()
	if depth > maxDepth {
		return nil, bad(t.col, "more than %d parentheses and negations within each other", maxDepth)
	}
	switch {
	case p.is("not", "!"):
		p.i++
		k, err := p.not(depth + 1)
		if err != nil {
			return nil, err
		}
		return &Node{Op: Not, Kids: []*Node{k}, Col: t.col}, nil
	case p.is("("):
		p.i++
		n, err := p.or(depth + 1)
		if err != nil {
			return nil, err
		}
		return n, p.take(")")
	}
	if p.leaves++; p.leaves > maxLeaves {
		return nil, bad(t.col, "more than %d terms", maxLeaves)
	}
	return p.term()
}

// term reads one comparison.
func (p *query) term() (*Node, error) {
	t := p.peek()
	if t.kind != 'w' {
		return nil, bad(t.col, "expected a fact, a package or another thing to ask about, not %q", t.text)
	}
	p.i++
	l := Leaf{}
	head, rest, dotted := strings.Cut(t.text, ".")
	kinds := map[string]Kind{"fact": ByFact, "grain": ByFact, "label": ByLabel, "pkg": ByPackage, "package": ByPackage, "service": ByService, "port": ByPort, "group": ByGroup, "nodegroup": ByGroup, "subnet": BySubnet, "name": ByName, "host": ByName, "online": ByOnline, "agent": ByAgent}
	kind, ok := kinds[head]
	if !ok {
		return nil, bad(t.col, "%q is nothing to ask about: fact.NAME, label.NAME, pkg(\"NAME\"), service(\"NAME\"), port(N), group(\"NAME\"), subnet(\"NET\"), name, agent or online is expected", t.text)
	}
	l.Kind = kind
	switch kind {
	case ByFact, ByLabel, ByPackage, ByService, ByPort, ByGroup, BySubnet:
		if dotted && (kind == ByFact || kind == ByLabel) && rest != "" {
			l.Key = strings.ReplaceAll(rest, ".", ":")
			if kind == ByLabel {
				l.Key = rest
			}
			break
		}
		if dotted {
			return nil, bad(t.col, "%q: a name in parentheses is expected", t.text)
		}
		end := ")"
		if p.is("[") {
			end = "]"
		} else if !p.is("(") {
			return nil, bad(p.peek().col, "expected \"(\" and a name after %q, not %q", t.text, p.peek().text)
		}
		p.i++
		v := p.peek()
		if v.kind != 's' && v.kind != 'n' && v.kind != 'w' {
			return nil, bad(v.col, "expected a name, not %q", v.text)
		}
		p.i++
		l.Key = v.text
		if err := p.take(end); err != nil {
			return nil, err
		}
	case ByName, ByOnline, ByAgent, ByNames, ByPillar:
		if dotted {
			return nil, bad(t.col, "%q has no parts", head)
		}
	}
	if kind == BySubnet {
		if _, err := netip.ParsePrefix(l.Key); err != nil {
			if _, err := netip.ParseAddr(l.Key); err != nil {
				return nil, bad(t.col, "%q is no address and no subnet", l.Key)
			}
		}
		return simple(Subnet, l.Key, ":", t.col)
	}
	if err := p.comparison(&l); err != nil {
		return nil, err
	}
	switch {
	case l.Cmp == Present && (kind == ByName || kind == ByAgent):
		return nil, bad(p.peek().col, "expected a comparison after %q", t.text)
	case l.Cmp != Present && (kind == ByOnline || kind == ByGroup || kind == ByPort):
		return nil, bad(t.col, "%q compares with nothing: it is so or not", t.text)
	}
	return leaf(l, t.col)
}

func (p *query) comparison(l *Leaf) error {
	t := p.peek()
	ops := map[string]Cmp{"==": Equal, "=": Equal, "!=": Unequal, "<": Less, "<=": AtMost, ">": More, ">=": AtLeast, "~": Like, "like": Like, "!~": NoLike, "=~": Match, "in": In}
	cmp, ok := ops[t.text]
	if !ok || t.kind != 'o' && t.kind != 'w' {
		return nil
	}
	p.i++
	l.Cmp = cmp
	if cmp != In {
		v := p.peek()
		if v.kind != 's' && v.kind != 'n' && (v.kind != 'w' || p.is("and", "or", "not", "in", "like")) {
			return bad(v.col, "expected a value after %q, not %q", t.text, v.text)
		}
		p.i++
		l.Value = value(v)
		return nil
	}
	if err := p.take("("); err != nil {
		return err
	}
	for {
		v := p.peek()
		if v.kind != 's' && v.kind != 'n' && v.kind != 'w' {
			return bad(v.col, "expected a value, not %q", v.text)
		}
		p.i++
		l.Values = append(l.Values, value(v))
		if p.is(",") {
			p.i++
			continue
		}
		return p.take(")")
	}
}

// value is a value as facts have it: truths as Python writes them.
func value(t token) string {
	if t.kind == 'w' {
		switch t.text {
		case "true":
			return "True"
		case "false":
			return "False"
		}
	}
	return t.text
}
