package selector

import (
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"drover/internal/fault"
)

// comparisons are the signs of the query language, the longer ones first.
var comparisons = []string{"==", "!=", "<=", ">=", "=~", "!~", "<", ">", "~", "="}

func isLetter(r rune) bool { return unicode.IsLetter(r) || r == '_' }

// isPart tells whether a letter may be in a word, beside dots.
func isPart(r rune) bool { return isLetter(r) || unicode.IsDigit(r) || r == '-' }

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// lex splits a query into tokens.
func (p *parser) lex() *fault.Error {
	for off := 0; off < len(p.text); {
		rest := p.text[off:]
		r, n := utf8.DecodeRuneInString(rest)
		switch c := rest[0]; {
		case unicode.IsSpace(r):
		case c == '(':
			p.add(tokOpen, "(", off)
		case c == ')':
			p.add(tokClose, ")", off)
		case strings.HasPrefix(rest, "&&"):
			p.add(tokAnd, "&&", off)
			n = 2
		case strings.HasPrefix(rest, "||"):
			p.add(tokOr, "||", off)
			n = 2
		case isLetter(r):
			n = wordEnd(rest)
			p.add(wordKind(rest[:n]), rest[:n], off)
		case isDigit(c) || c == '-' && len(rest) > 1 && isDigit(rest[1]):
			// A number, or a version or an address: these need no quotes either.
			n = strings.IndexFunc(rest, func(r rune) bool { return !isPart(r) && !strings.ContainsRune(".:/~^+", r) })
			if n < 0 {
				n = len(rest)
			}
			p.add(tokNumber, rest[:n], off)
		case c == '"' || c == '\'':
			text, end, ok := unquote(rest)
			if !ok {
				return p.wrong(off, "the text has no end: %c is missing", c)
			}
			p.add(tokText, text, off)
			n = end
		case strings.ContainsRune("[],", r):
			p.add(tokSign, rest[:1], off)
		default:
			i := slices.IndexFunc(comparisons, func(s string) bool { return strings.HasPrefix(rest, s) })
			switch {
			case i >= 0:
				n = len(comparisons[i])
				p.add(tokSign, rest[:n], off)
			case c == '!':
				p.add(tokNot, "!", off)
			default:
				return p.wrong(off, "%q means nothing here", r).Fix("write texts in quotes; what begins with a letter and @ is a compound (-C)")
			}
		}
		off += n
	}
	return nil
}

// wordEnd is how long the word is that a text begins with. A dot is within words only.
func wordEnd(s string) int {
	end := 0
	for end < len(s) {
		r, n := utf8.DecodeRuneInString(s[end:])
		if r == '.' {
			next, m := utf8.DecodeRuneInString(s[end+1:])
			if !isPart(next) {
				break
			}
			n += m
		} else if !isPart(r) {
			break
		}
		end += n
	}
	return end
}

func wordKind(w string) tokenKind {
	switch w {
	case "and":
		return tokAnd
	case "or":
		return tokOr
	case "not":
		return tokNot
	}
	return tokWord
}

// unquote reads a text in quotes, and how long it is with them.
func unquote(s string) (text string, n int, ok bool) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == s[0]:
			return b.String(), i + 1, true
		case c == '\n', c == '\r', c == '\t', c == '\v', c == '\f':
			return "", 0, false
		case c == '\\' && i+1 < len(s) && (s[i+1] == s[0] || s[i+1] == '\\'):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", 0, false
}

// operands are the words that a test begins with, for those who look for one.
const operands = `fact.NAME, label.NAME, pkg("NAME"), service("NAME"), port(N), group("NAME"), subnet("NET"), name, agent, online or salt("G@…")`

// kinds are the kinds of leaves by the words for them.
var kinds = map[string]Kind{
	"fact": ByFact, "grain": ByFact, "label": ByLabel, "pkg": ByPackage, "package": ByPackage, "service": ByService, "port": ByPort,
	"group": ByGroup, "nodegroup": ByGroup, "name": ByName, "host": ByName, "online": ByOnline, "agent": ByAgent,
}

// test reads an operand and what it is compared with.
func (p *parser) test() (*Node, *fault.Error) {
	t := p.next()
	if t.kind != tokWord {
		return nil, p.wrong(t.off, "expected a fact, a package or another thing to ask about, not %s", t.what()).Fix("begin with %s", operands)
	}
	head, rest, dotted := strings.Cut(t.text, ".")
	switch {
	case head == "subnet" && !dotted:
		at := p.behind()
		net, err := p.argument(t)
		if err != nil {
			return nil, err
		}
		return p.within(at, net, func(in *parser) (*Node, *fault.Error) { return in.subnet(0, net) })
	case head == "salt" && !dotted:
		at := p.behind()
		text, err := p.argument(t)
		if err != nil {
			return nil, err
		}
		return p.within(at, text, func(in *parser) (*Node, *fault.Error) {
			if _, _, _, ok := engine(text); !ok {
				return nil, in.wrong(0, "expected one of Salt's terms with a letter and @, not %s", short(text))
			}
			return in.word(token{kind: tokWord, text: text})
		})
	}
	kind, ok := kinds[head]
	if !ok {
		fix := "begin with " + operands
		if !dotted && !strings.Contains(t.text, "@") {
			fix = "is it fact." + short(head) + " or label." + short(head) + "? " + fix
			fix = strings.ReplaceAll(fix, `"`+head+`"`, head)
		}
		return nil, p.wrong(t.off, "%s is nothing to ask about", t.what()).Fix("%s", fix)
	}
	l := &Leaf{Kind: kind}
	var err *fault.Error
	switch kind {
	case ByFact, ByLabel:
		l.Key = rest
		if kind == ByFact {
			l.Key = strings.ReplaceAll(rest, ".", ":")
		}
		if !dotted {
			l.Key, err = p.argument(t)
		}
		dotted = false
	case ByPackage, ByService, ByGroup:
		l.Key, err = p.argument(t)
	case ByPort:
		at := p.behind()
		if l.Key, err = p.argument(t); err == nil && !isPort(l.Key) {
			err = p.wrong(at.off, "%s is no port: 1 to 65535, or as in tcp/22 and udp/53", short(l.Key))
		}
	}
	if err != nil {
		return nil, err
	}
	if dotted {
		return nil, p.wrong(t.off+len(head), "%q has no parts behind a dot", head)
	}
	negated, err := p.compare(l)
	if err != nil {
		return nil, err
	}
	if l.Cmp == Present && (kind == ByName || kind == ByAgent) {
		return nil, p.wrong(p.peek().off, "expected a comparison after %q", head).Fix(`write as in name == "web-01" or name ~ "web-*"`)
	}
	if l.Kind == ByName && l.Cmp == In {
		l.Kind = ByNames
	}
	n, err := p.leaf(t.off, l)
	if err == nil && negated {
		n = &Node{Op: Not, Kids: []*Node{n}, Col: n.Col}
	}
	return n, err
}

// behind is the token behind the next one.
func (p *parser) behind() token {
	if p.at+1 < len(p.toks) {
		return p.toks[p.at+1]
	}
	return token{kind: tokEnd, off: len(p.text)}
}

// within reads a text of another language, that of a token: its faults show the text itself, and
// its leaves begin where the token does.
func (p *parser) within(t token, text string, read func(*parser) (*Node, *fault.Error)) (*Node, *fault.Error) {
	in := &parser{text: text, leaves: p.leaves, budget: p.budget}
	n, err := read(in)
	if err != nil {
		inner, _, _ := strings.Cut(err.Msg, "\n")
		_, inner, _ = strings.Cut(inner, ": ")
		return nil, p.wrong(t.off, "%s", inner).Fix("%s", err.Remedy)
	}
	p.leaves, p.budget = in.leaves, in.budget
	n.Col = p.column(t.off)
	return n, nil
}

func isPort(s string) bool {
	for _, proto := range []string{"tcp/", "udp/"} {
		if rest, ok := strings.CutPrefix(s, proto); ok {
			s = rest
			break
		}
	}
	n, err := strconv.Atoi(s)
	return isIndex(s) && err == nil && n > 0 && n < 1<<16
}

// argument reads ("text"), or as some write it ["text"].
func (p *parser) argument(t token) (string, *fault.Error) {
	bracket := p.is("[")
	if !bracket {
		if o := p.peek(); o.kind != tokOpen {
			return "", p.wrong(o.off, `expected "(" and a name after %s, not %s`, t.what(), o.what())
		}
		p.at++
	}
	a := p.next()
	if a.kind != tokText && a.kind != tokNumber && a.kind != tokWord {
		return "", p.wrong(a.off, "expected a name, not %s", a.what())
	}
	if c := p.peek(); bracket && !p.is("]") {
		return "", p.wrong(c.off, `expected "]", not %s`, c.what())
	} else if !bracket {
		if p.at++; c.kind != tokClose {
			return "", p.wrong(c.off, `expected ")", not %s`, c.what())
		}
	}
	return a.text, nil
}

// compare reads a comparison, if there is one. It tells whether the opposite is meant.
func (p *parser) compare(l *Leaf) (negated bool, err *fault.Error) {
	t := p.peek()
	op := t.text
	switch w := p.behind(); {
	case t.kind == tokNot && op == "not" && w.kind == tokWord && (w.text == "in" || w.text == "like"):
		negated = true
		p.at++
		op = w.text
	case t.kind == tokSign && slices.Contains(comparisons, op), t.kind == tokWord && (op == "in" || op == "like"):
	default:
		return false, nil
	}
	p.at++
	switch op {
	case "in":
		l.Cmp = In
	case "like", "~":
		l.Cmp = Like
	case "=~":
		l.Cmp = Match
	case "!~":
		l.Cmp, negated = Match, true
	case "=", "==":
		l.Cmp = Equal
	case "!=":
		l.Cmp, negated = Equal, true
	default:
		l.Cmp = Cmp(op)
	}
	switch {
	case l.Kind == ByGroup || l.Kind == ByPort:
		return false, p.wrong(t.off, "%q compares with nothing: it is so or not", string(l.Kind)).Fix("write %s alone, or not %[1]s", (&Leaf{Kind: l.Kind, Key: l.Key}).String())
	case l.Kind == ByName && slices.Contains([]Cmp{Less, AtMost, More, AtLeast}, l.Cmp):
		return false, p.wrong(t.off, "names have no order").Fix(`use ==, !=, ~, =~, !~ or in`)
	case l.Kind == ByOnline && l.Cmp != Equal:
		return false, p.wrong(t.off, `"online" compares with true and false only`).Fix("write online, or not online")
	case l.Cmp == In:
		return negated, p.options(l)
	}
	v := p.next()
	if !isValue(v) {
		return false, p.wrong(v.off, "expected a value after %s, not %s", short(op), v.what())
	}
	if l.Kind == ByOnline {
		if v.kind != tokWord || v.text != "true" && v.text != "false" {
			return false, p.wrong(v.off, `"online" compares with true and false only`).Fix("write online, or not online")
		}
		l.Cmp = Present
		return negated != (v.text == "false"), nil
	}
	l.Value = value(v)
	l.Numeric = isNumeric(l, v) && l.Cmp != Like && l.Cmp != Match
	return negated, nil
}

// isNumeric tells whether a value is compared as a number: it is one, and is not in quotes.
func isNumeric(l *Leaf, v token) bool {
	_, ok := number(v.text)
	return ok && v.kind == tokNumber && l.Kind != ByPackage && l.Kind != ByAgent && l.Kind != ByName
}

// options reads ("a", "b"): one value or more.
func (p *parser) options(l *Leaf) *fault.Error {
	if o := p.next(); o.kind != tokOpen {
		return p.wrong(o.off, `expected "(" after "in", not %s`, o.what()).Fix(`write in ("a", "b")`)
	}
	for {
		v := p.next()
		if !isValue(v) {
			return p.wrong(v.off, "expected a value, not %s", v.what())
		}
		l.Values = append(l.Values, value(v))
		l.numeric = append(l.numeric, isNumeric(l, v))
		if p.is(",") {
			continue
		}
		if c := p.next(); c.kind != tokClose {
			return p.wrong(c.off, `expected "," or ")" after %s, not %s`, v.what(), c.what())
		}
		return nil
	}
}

func isValue(t token) bool {
	return t.kind == tokText || t.kind == tokNumber || t.kind == tokWord && t.text != "in" && t.text != "like"
}

// value is a value as facts have it: truths as Python writes them.
func value(t token) string {
	if t.kind == tokWord {
		switch t.text {
		case "true":
			return "True"
		case "false":
			return "False"
		}
	}
	return t.text
}
