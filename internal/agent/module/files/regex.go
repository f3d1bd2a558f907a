package files

import (
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// Python's numbers of flags.
const (
	reIgnoreCase = 2
	reMultiline  = 8
	reDotAll     = 16
	reVerbose    = 64
)

// flagsOf reads flags as Salt takes them: a number, a name or a list of names.
func flagsOf(v any) (int64, error) {
	switch x := v.(type) {
	case nil:
		return 0, nil
	case int64:
		return x, nil
	case int:
		return int64(x), nil
	case float64:
		return int64(x), nil
	case string:
		if n, err := strconv.ParseInt(x, 10, 64); err == nil {
			return n, nil
		}
		switch strings.ToUpper(strings.TrimSpace(x)) {
		case "IGNORECASE", "I":
			return reIgnoreCase, nil
		case "MULTILINE", "M":
			return reMultiline, nil
		case "DOTALL", "S":
			return reDotAll, nil
		case "VERBOSE", "X":
			return reVerbose, nil
		case "UNICODE", "U", "LOCALE", "L", "ASCII", "A", "":
			return 0, nil
		}
	case []any:
		all := int64(0)
		for _, e := range x {
			n, err := flagsOf(e)
			if err != nil {
				return 0, err
			}
			all |= n
		}
		return all, nil
	}
	return 0, fault.Invalid("flags_bad", "there is no flag %s of regular expressions", module.Text(v)).Fix("IGNORECASE, MULTILINE and DOTALL are known")
}

// compile makes a regular expression of one of Python's.
func compile(pattern string, flags int64) (*regexp.Regexp, error) {
	if len(pattern) > 64<<10 {
		return nil, fault.TooLarge("regex_long", "a regular expression of %d bytes is too long", len(pattern))
	}
	if flags&reVerbose != 0 {
		return nil, fault.Invalid("regex_bad", "VERBOSE regular expressions are not known here").Fix("write it without white space and comments")
	}
	set := ""
	if flags&reIgnoreCase != 0 {
		set += "i"
	}
	if flags&reMultiline != 0 {
		set += "m"
	}
	if flags&reDotAll != 0 {
		set += "s"
	}
	own := translate(pattern)
	if set != "" {
		own = "(?" + set + ":" + own + ")"
	}
	re, err := regexp.Compile(own)
	if err != nil {
		fix := "see https://golang.org/s/re2syntax"
		for _, s := range []string{"(?=", "(?!", "(?<=", "(?<!"} {
			if strings.Contains(pattern, s) {
				fix = "lookaround as " + s + "…) is not known here: match what is around in groups of its own, and put them back by \\1"
			}
		}
		return nil, fault.Invalid("regex_bad", "%q is no regular expression", pattern).Wrap(err).Fix("%s", fix)
	}
	return re, nil
}

// translate writes the few things that Python spells in another way: \Z is the very end, and in
// a class a bracket needs no backslash.
func translate(p string) string {
	var b strings.Builder
	class, start := false, 0
	for i := 0; i < len(p); i++ {
		switch c := p[i]; {
		case c == '\\' && i+1 < len(p):
			i++
			switch {
			case p[i] == 'Z' && !class:
				b.WriteString(`\z`)
			case p[i] >= utf8.RuneSelf || strings.IndexByte(`"'%&,/:;<=>@_ !#~`+"`", p[i]) >= 0:
				b.WriteString(regexp.QuoteMeta(p[i : i+1])) // Python lets everything be quoted
			default:
				b.WriteString(p[i-1 : i+1])
			}
		case class && c == ']' && i > start:
			class = false
			b.WriteByte(c)
		case class && c == '[' && !strings.HasPrefix(p[i:], "[:"):
			b.WriteString(`\[`)
		case !class && c == '[':
			class, start = true, i+1
			if i+1 < len(p) && p[i+1] == '^' {
				start++
			}
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// template makes Go's replacement of Python's: \1 and \g<name> are groups, \n a new line. Dollars
// are dollars.
func template(repl string) string {
	var b strings.Builder
	for i := 0; i < len(repl); i++ {
		c := repl[i]
		if c == '$' {
			b.WriteString("$$")
			continue
		}
		if c != '\\' || i+1 == len(repl) {
			b.WriteByte(c)
			continue
		}
		i++
		switch d := repl[i]; {
		case d >= '1' && d <= '9':
			n := string(d)
			if i+1 < len(repl) && repl[i+1] >= '0' && repl[i+1] <= '9' {
				i++
				n += repl[i : i+1]
			}
			b.WriteString("${" + n + "}")
		case d == 'g' && i+1 < len(repl) && repl[i+1] == '<':
			name, _, ok := strings.Cut(repl[i+2:], ">")
			if !ok {
				b.WriteString(`\g`)
				continue
			}
			b.WriteString("${" + strings.ReplaceAll(name, "$", "") + "}")
			i += 2 + len(name)
		case d == 'n':
			b.WriteByte('\n')
		case d == 't':
			b.WriteByte('\t')
		case d == 'r':
			b.WriteByte('\r')
		case d == '\\':
			b.WriteByte('\\')
		default:
			b.WriteByte('\\')
			i-- // the next turn takes the character as it is
		}
	}
	return b.String()
}

// glob makes a regular expression of a pattern of names as Python's fnmatch takes it: a star
// takes slashes too.
func glob(pattern string, flags int64) (*regexp.Regexp, error) {
	var b strings.Builder
	for i := 0; i < len(pattern); {
		r, n := utf8.DecodeRuneInString(pattern[i:])
		switch r {
		case '*':
			b.WriteString(".*")
		case '?':
			b.WriteString(".")
		case '[':
			j := i + 1
			if j < len(pattern) && pattern[j] == '!' {
				j++
			}
			if j < len(pattern) && pattern[j] == ']' {
				j++
			}
			end := strings.IndexByte(pattern[min(j, len(pattern)):], ']')
			if end < 0 {
				b.WriteString(`\[`)
				break
			}
			set := pattern[i+1 : j+end]
			b.WriteByte('[')
			if strings.HasPrefix(set, "!") {
				b.WriteByte('^')
				set = set[1:]
			} else if strings.HasPrefix(set, "^") {
				b.WriteByte('\\')
			}
			b.WriteString(strings.NewReplacer(`\`, `\\`, `[`, `\[`, `]`, `\]`).Replace(set) + "]")
			n = j + end + 1 - i
		default:
			b.WriteString(regexp.QuoteMeta(pattern[i : i+n]))
		}
		i += n
	}
	set := "(?s"
	if flags&reIgnoreCase != 0 {
		set += "i"
	}
	re, err := regexp.Compile(set + `)\A(?:` + b.String() + `)\z`)
	if err != nil {
		return nil, fault.Invalid("glob_bad", "%q is no pattern of names", pattern).Wrap(err)
	}
	return re, nil
}
