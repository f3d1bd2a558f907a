package selector

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"drover/internal/fault"
)

// Parse reads a target. A fault target_invalid names the column, counted in letters from 1, and
// shows the place in a second and third line.
func Parse(form Form, text string) (*Node, error) {
	p := &parser{text: text, budget: maxCost}
	if err := p.check(form); err != nil {
		return nil, err
	}
	n, err := p.parse(form)
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (p *parser) parse(form Form) (*Node, *fault.Error) {
	off := len(p.text) - len(strings.TrimLeftFunc(p.text, unicode.IsSpace))
	word := strings.TrimSpace(p.text)
	switch form {
	case Compound:
		p.salt = true
		p.words()
		return p.all()
	case Query:
		if err := p.lex(); err != nil {
			return nil, err
		}
		return p.all()
	case Glob:
		if i := strings.IndexFunc(word, unicode.IsSpace); i >= 0 {
			return nil, p.wrong(off+i, "no name of a host has a space in it").Fix("write several names as a list (-L), and expressions as a compound (-C) or a query (-Q)")
		}
		return p.leaf(off, named(word))
	case PCRE:
		return p.leaf(off, &Leaf{Kind: ByName, Cmp: Match, Value: word})
	case ListForm:
		return p.list(off, word)
	case Grain, GrainPCRE, Pillar, PillarPCRE:
		return p.path(off, form, word, ":")
	case Nodegroup:
		return p.leaf(off, &Leaf{Kind: ByGroup, Key: word})
	case Subnet:
		return p.subnet(off, word)
	case Range:
		return nil, p.noRange(off)
	}
	var forms []string
	for _, f := range Forms() {
		forms = append(forms, string(f))
	}
	return nil, fault.Invalid("target_invalid", "%.40q is no form of targets", string(form)).Fix("use one of %s", strings.Join(forms, ", "))
}

// check refuses what no form can mean.
func (p *parser) check(form Form) error {
	most := maxText
	if form == ListForm {
		most = maxList
	}
	if len(p.text) > most {
		return fault.TooLarge("target_large", "a target of %d bytes; at most %d", len(p.text), most).Fix("make a group of it: `drover group set`")
	}
	words := form == Compound || form == Query || form == ListForm
	end := len(strings.TrimRightFunc(p.text, unicode.IsSpace))
	begun := false
	for i, r := range p.text[:end] {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(p.text[i:]); n == 1 {
				return p.wrong(i, "the target is no text in UTF-8")
			}
		}
		space := unicode.IsSpace(r)
		// Targets are shown in logs and on pages, and no value in them has a control character.
		if unicode.IsControl(r) && (!space || begun && !words) {
			return p.wrong(i, "a target has no control characters such as U+%04X", r)
		}
		begun = begun || !space
	}
	if end == 0 {
		return p.wrong(0, "expected a target, and there is none").Fix(`write "*" for all hosts, in a query: name like "*"`)
	}
	return nil
}

// column is the column of a byte of the text.
func (p *parser) column(off int) int { return utf8.RuneCountInString(p.text[:off]) + 1 }

// around is how many letters of the text are shown before a mistake and from it on: with what is
// put before them and the two signs that something was left out, 80 columns.
const around = 38

// wrong is the fault of what stands at a byte of the text, which it shows.
func (p *parser) wrong(off int, format string, args ...any) *fault.Error {
	col := p.column(off)
	line := []rune(p.text[max(0, off-around*utf8.UTFMax):min(len(p.text), off+around*utf8.UTFMax)])
	at := utf8.RuneCountInString(p.text[max(0, off-around*utf8.UTFMax):off])
	left, right := "", ""
	if drop := at - around; drop > 0 || off > around*utf8.UTFMax {
		drop = max(drop, 0)
		line, at, left = line[drop:], at-drop+1, "…"
	}
	if most := at - len([]rune(left)) + around; len(line) > most {
		line, right = line[:most], "…"
	}
	for i, r := range line {
		if !unicode.IsPrint(r) {
			line[i] = ' '
		}
	}
	return fault.Invalid("target_invalid", "column %d: %s\n  %s%s%s\n  %s^", col, fmt.Sprintf(format, args...), left, string(line), right, strings.Repeat(" ", at)).
		Fix("see the manual on targets; `drover host list` with the same target shows which hosts it means")
}

// short is a text as faults name it.
func short(s string) string {
	if rs := []rune(s); len(rs) > 40 {
		s = string(rs[:40]) + "…"
	}
	return `"` + s + `"`
}
