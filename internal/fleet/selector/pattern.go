package selector

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dlclark/regexp2"
)

// matcher decides on a value.
type matcher func(value string, t *trial) bool

// Bounds of patterns that can take long: regular expressions that look around or back, and large ones.
const (
	maxMatch  = 250 * time.Millisecond // of one value, for the engine that has no bound of its own
	maxTrial  = 2 * time.Second        // of all values of an evaluation
	maxCost   = 50_000                 // steps of all regular expressions of a target, written out
	heavyCost = 1_000                  // from here on the time is measured
	heavyGlob = 256                    // as are globs of more parts
)

// trial is the time that such patterns have taken. When it is up nothing matches any more, and the
// evaluation fails: a target that meant fewer hosts than it says would be worse than none.
type trial struct {
	spent  atomic.Int64
	failed atomic.Bool
}

// measure asks for a match, unless the time is up.
func (t *trial) measure(match func() (bool, error)) bool {
	if t == nil { // outside of an evaluation: one value only
		ok, err := match()
		return ok && err == nil
	}
	if t.failed.Load() {
		return false
	}
	began := time.Now()
	ok, err := match()
	if spent := t.spent.Add(int64(time.Since(began))); err != nil || spent > int64(maxTrial) {
		t.failed.Store(true)
		return false
	}
	return ok
}

// compilePattern makes a regular expression with Python's syntax that has to match from the start,
// as re.match does. Go's engine takes linear time and is tried first; another one does what it
// cannot: look-around and references back. With fold, case does not count. It takes of budget what the
// expression costs.
func compilePattern(pattern string, fold bool, budget *int) (matcher, error) {
	if len(pattern) > maxPattern {
		return nil, fmt.Errorf("it has more than %d bytes", maxPattern)
	}
	flags := ""
	if fold {
		flags = "(?i)"
	}
	p := fromPython(pattern)
	// The pattern is read by itself, too: "a)|(b" is none, and would be one within parentheses.
	parsed, first := syntax.Parse(p, syntax.Perl)
	if first == nil {
		c := cost(parsed)
		if *budget -= c; *budget < 0 {
			return nil, errors.New("its repetitions are too large")
		}
		re, err := regexp.Compile(flags + `\A(?:` + p + `)`)
		if err != nil {
			return nil, reason(err)
		}
		if c > heavyCost {
			return func(s string, t *trial) bool {
				return t.measure(func() (bool, error) { return re.MatchString(s), nil })
			}, nil
		}
		return func(s string, _ *trial) bool { return re.MatchString(s) }, nil
	}
	if _, err := regexp2.Compile(p, regexp2.None); err != nil {
		return nil, reason(first)
	}
	re, err := regexp2.Compile(flags+`\A(?:`+p+`)`, regexp2.None)
	if err != nil {
		return nil, reason(err)
	}
	re.MatchTimeout = maxMatch
	return func(s string, t *trial) bool {
		return t.measure(func() (bool, error) { return re.MatchString(s) })
	}, nil
}

// cost is about how many instructions Go's engine makes of an expression, at most maxCost and one
// more: it writes repetitions out.
func cost(re *syntax.Regexp) int {
	n := 1
	if re.Op == syntax.OpLiteral {
		n = len(re.Rune)
	}
	for _, sub := range re.Sub {
		n += cost(sub)
	}
	if re.Op == syntax.OpRepeat {
		n *= max(re.Min, re.Max, 1)
	}
	return min(n, maxCost+1)
}

// reason shortens what the engines say.
func reason(err error) error {
	s, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "error parsing regexp: "), "\n")
	if rs := []rune(s); len(rs) > 200 {
		s = string(rs[:200]) + "…"
	}
	return errors.New(s)
}

// fromPython writes what only Python writes so as the two engines do: (?P=x) for a reference, (?P<x>
// for a group, \Z for the end.
func fromPython(p string) string {
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		switch rest := p[i:]; {
		case strings.HasPrefix(rest, `\Z`):
			b.WriteString(`\z`)
			i++
		case rest[0] == '\\' && len(rest) > 1:
			b.WriteString(rest[:2])
			i++
		case strings.HasPrefix(rest, "(?P<"):
			b.WriteString("(?<")
			i += 3
		case strings.HasPrefix(rest, "(?P="):
			name, _, ok := strings.Cut(rest[4:], ")")
			if !ok {
				b.WriteByte(p[i])
				continue
			}
			b.WriteString(`\k<` + name + ">")
			i += 4 + len(name)
		default:
			b.WriteByte(p[i])
		}
	}
	return b.String()
}
