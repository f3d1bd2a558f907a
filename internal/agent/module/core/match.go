package core

import (
	"context"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

const maxPattern = 4096

// fnmatch tells whether s fits a glob of the shell's kind. A slash is a character like any other.
func fnmatch(pattern, s string) bool {
	if !strings.ContainsAny(pattern, "*?[") {
		return pattern == s
	}
	if len(pattern) > maxPattern {
		return false
	}
	re, err := regexp.Compile(globRegexp(pattern))
	return err == nil && re.MatchString(s)
}

func globRegexp(pattern string) string {
	var b strings.Builder
	b.WriteString(`(?s)\A`)
	for i := 0; i < len(pattern); {
		switch c := pattern[i]; c {
		case '*':
			b.WriteString(".*")
			i++
		case '?':
			b.WriteString(".")
			i++
		case '[':
			j := i + 1
			if j < len(pattern) && pattern[j] == '!' {
				j++
			}
			if j < len(pattern) && pattern[j] == ']' {
				j++
			}
			for j < len(pattern) && pattern[j] != ']' {
				j++
			}
			if j >= len(pattern) { // no end: the bracket itself
				b.WriteString(`\[`)
				i++
				continue
			}
			set := strings.NewReplacer(`\`, `\\`, `[`, `\[`, `]`, `\]`, `^`, `\^`, `&`, `\&`, `~`, `\~`).Replace(strings.TrimPrefix(pattern[i+1:j], "!"))
			b.WriteString("[")
			if pattern[i+1] == '!' {
				b.WriteString("^")
			}
			b.WriteString(set + "]")
			i = j + 1
		default:
			j := i
			for j < len(pattern) && !strings.ContainsRune("*?[", rune(pattern[j])) {
				j++
			}
			b.WriteString(regexp.QuoteMeta(pattern[i:j]))
			i = j
		}
	}
	b.WriteString(`\z`)
	return b.String()
}

// target is the host that a target is held against.
type target struct {
	id     string
	grains map[string]any
}

func badPattern(s string, err error) error {
	return fault.Invalid("bad_pattern", "%q is no regular expression here", s).Wrap(err).Fix("look-around and references back do not work on the host; target from the server")
}

func (t target) pcre(s string) (bool, error) {
	if len(s) > maxPattern {
		return false, fault.Invalid("bad_pattern", "a pattern has at most %d bytes", maxPattern)
	}
	re, err := regexp.Compile(`\A(?:` + s + `)`)
	if err != nil {
		return false, badPattern(s, err)
	}
	return re.MatchString(t.id), nil
}

// grain holds "key:sub:glob" against the grains; the key may contain the delimiter itself.
func (t target) grain(expr, delimiter string, isRegexp bool) (bool, error) {
	if delimiter == "" {
		delimiter = ":"
	}
	if len(expr) > maxPattern {
		return false, fault.Invalid("bad_pattern", "a pattern has at most %d bytes", maxPattern)
	}
	parts := strings.Split(expr, delimiter)
	for i := 1; i < len(parts); i++ {
		v, ok := traverse(t.grains, strings.Join(parts[:i], delimiter), delimiter)
		if !ok {
			continue
		}
		want := strings.ToLower(strings.Join(parts[i:], delimiter))
		fits := func(s string) bool { return fnmatch(want, s) }
		if isRegexp {
			re, err := regexp.Compile(`\A(?:` + want + `)`)
			if err != nil {
				return false, badPattern(want, err)
			}
			fits = re.MatchString
		}
		switch x := v.(type) {
		case map[string]any:
			if want == "*" || slices.ContainsFunc(sortedKeys(x), func(k string) bool { return i == len(parts)-1 && fits(strings.ToLower(k)) }) {
				return true, nil
			}
		case []any:
			for _, e := range x {
				if m, ok := e.(map[string]any); ok {
					if slices.ContainsFunc(sortedKeys(m), func(k string) bool { return fits(strings.ToLower(k)) }) {
						return true, nil
					}
					continue
				}
				if fits(strings.ToLower(module.Plain(e))) {
					return true, nil
				}
			}
		default:
			if fits(strings.ToLower(module.Plain(x))) {
				return true, nil
			}
		}
	}
	return false, nil
}

func (t target) ipcidr(s string) (bool, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, aerr := netip.ParseAddr(s)
		if aerr != nil {
			return false, fault.Invalid("bad_network", "%q is no network", s)
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	for _, key := range []string{"ipv4", "ipv6"} {
		l, _ := t.grains[key].([]any)
		for _, v := range l {
			if a, err := netip.ParseAddr(module.Plain(v)); err == nil && p.Contains(a) {
				return true, nil
			}
		}
	}
	return false, nil
}

// compound holds a whole expression against the host.
func (t target) compound(expr string) (bool, error) {
	if len(expr) > 64<<10 {
		return false, fault.TooLarge("bad_target", "a target has at most %d bytes", 64<<10)
	}
	p := &expression{target: t, words: strings.Fields(expr)}
	v, err := p.or(0)
	if err == nil && len(p.words) > 0 {
		err = fault.Invalid("bad_target", "the target ends before %q", p.words[0])
	}
	return v, err
}

// expression is a compound target on its way through the parser: or, and, not, parentheses.
type expression struct {
	target
	words []string
}

func (p *expression) next(w string) bool {
	if len(p.words) > 0 && p.words[0] == w {
		p.words = p.words[1:]
		return true
	}
	return false
}

func (p *expression) or(depth int) (bool, error) {
	v, err := p.and(depth)
	for err == nil && p.next("or") {
		var w bool
		w, err = p.and(depth)
		v = v || w
	}
	return v, err
}

func (p *expression) and(depth int) (bool, error) {
	v, err := p.not(depth)
	for err == nil && p.next("and") {
		var w bool
		w, err = p.not(depth)
		v = v && w
	}
	return v, err
}

func (p *expression) not(depth int) (bool, error) {
	if depth > 100 {
		return false, fault.Invalid("bad_target", "the target is nested too deeply")
	}
	if p.next("not") {
		v, err := p.not(depth + 1)
		return !v, err
	}
	if p.next("(") {
		v, err := p.or(depth + 1)
		if err == nil && !p.next(")") {
			err = fault.Invalid("bad_target", "a parenthesis of the target does not end").Fix("put spaces around parentheses")
		}
		return v, err
	}
	if len(p.words) == 0 || p.words[0] == "and" || p.words[0] == "or" || p.words[0] == ")" {
		return false, fault.Invalid("bad_target", "the target lacks a word")
	}
	w := p.words[0]
	p.words = p.words[1:]
	return p.term(w)
}

var reTerm = regexp.MustCompile(`^([A-Z])(\|(.))?@(.*)$`)

func (t target) term(w string) (bool, error) {
	m := reTerm.FindStringSubmatch(w)
	if m == nil {
		return fnmatch(w, t.id), nil
	}
	switch m[1] {
	case "G":
		return t.grain(m[4], m[3], false)
	case "P":
		return t.grain(m[4], m[3], true)
	case "E":
		return t.pcre(m[4])
	case "L":
		return slices.Contains(strings.Split(m[4], ","), t.id), nil
	case "S":
		return t.ipcidr(m[4])
	}
	return false, fault.Unavailable("match_later", "the host cannot tell whether %s fits it: the server knows", w).Fix("use G@, P@, E@, L@, S@ or a glob")
}

func matching() []module.Function {
	tgt := module.Need("tgt", module.Str)
	other := module.May("minion_id", module.Str, nil)
	delimiter := module.May("delimiter", module.Str, ":")
	here := func(f func(t target, c *module.Call) (any, error)) module.Run {
		return func(ctx context.Context, c *module.Call) (any, error) {
			g, err := facts(ctx, c)
			if err != nil {
				return nil, err
			}
			t := target{c.ID, g}
			if c.Has("minion_id") {
				t.id = c.Str("minion_id")
			}
			return f(t, c)
		}
	}
	byName := func(f func(t target, s string) (bool, error)) module.Run {
		return here(func(t target, c *module.Call) (any, error) { return f(t, c.Str("tgt")) })
	}
	kind := module.May("tgt_type", module.Str, "compound")
	lookup := module.Need("lookup", module.Map)
	return []module.Function{
		module.Reads("match.glob", "Tells whether the host's name fits a glob.\n\nsalt '*' match.glob '*'", byName(func(t target, s string) (bool, error) { return fnmatch(s, t.id), nil }), tgt, other),
		module.Reads("match.pcre", "Tells whether the host's name fits a regular expression.\n\nsalt '*' match.pcre '.*'", byName(target.pcre), tgt, other),
		module.Reads("match.list", "Tells whether the host's name is in a list.\n\nsalt '*' match.list 'server1,server2'", here(func(t target, c *module.Call) (any, error) {
			return slices.Contains(c.Strs("tgt"), t.id), nil
		}), module.Need("tgt", module.List), other),
		module.Reads("match.grain", "Tells whether a grain fits a glob.\n\nsalt '*' match.grain 'os:CentOS*'", here(func(t target, c *module.Call) (any, error) {
			return t.grain(c.Str("tgt"), c.Str("delimiter"), false)
		}), tgt, delimiter, other),
		module.Reads("match.grain_pcre", "Tells whether a grain fits a regular expression.\n\nsalt '*' match.grain_pcre 'os:(Fedora|CentOS.*)'", here(func(t target, c *module.Call) (any, error) {
			return t.grain(c.Str("tgt"), c.Str("delimiter"), true)
		}), tgt, delimiter, other),
		module.Reads("match.ipcidr", "Tells whether the host has an address in a network.\n\nsalt '*' match.ipcidr 192.168.44.0/24", byName(target.ipcidr), tgt),
		module.Reads("match.compound", "Tells whether the host fits a compound target.\n\nsalt '*' match.compound 'L@cheese,foo and *'", byName(target.compound), tgt, other),
		module.Reads("match.filter_by", "Chooses the entry of a mapping whose key is a target that fits the host.\n\nsalt '*' match.filter_by '{\"foo*\": Foo, \"bar*\": Bar}'", here(func(t target, c *module.Call) (any, error) {
			m := c.Map("lookup")
			var found any
			for _, k := range sortedKeys(m) {
				ok, err := t.by(c.Str("tgt_type"), k)
				if err != nil {
					return nil, err
				}
				if ok {
					found = m[k]
					break
				}
			}
			return layered(m, found, c.Any("merge"), c.Any("default"), nil, c.Bool("merge_lists"))
		}), lookup, kind, other, module.May("merge", module.Any, nil), module.May("merge_lists", module.Bool, false), module.May("default", module.Any, "default")),
		module.Reads("match.search_by", "Lists the entries of a mapping whose targets fit the host.\n\nsalt '*' match.search_by '{web: [node1, node2]}'", here(func(t target, c *module.Call) (any, error) {
			m := c.Map("lookup")
			var out []any
			for _, k := range sortedKeys(m) {
				l, ok := m[k].([]any)
				if !ok {
					l = []any{m[k]}
				}
				for _, v := range l {
					ok, err := t.by(c.Str("tgt_type"), module.Plain(v))
					if err != nil {
						return nil, err
					}
					if ok {
						out = append(out, k)
						break
					}
				}
			}
			if len(out) == 0 {
				return nil, nil
			}
			return out, nil
		}), lookup, kind, other),
	}
}

// by holds a target of one kind against the host.
func (t target) by(kind, s string) (bool, error) {
	switch kind {
	case "glob":
		return fnmatch(s, t.id), nil
	case "pcre":
		return t.pcre(s)
	case "list":
		return slices.Contains(strings.Split(s, ","), t.id), nil
	case "grain":
		return t.grain(s, "", false)
	case "grain_pcre":
		return t.grain(s, "", true)
	case "ipcidr":
		return t.ipcidr(s)
	case "compound":
		return t.compound(s)
	}
	return false, fault.Unavailable("match_later", "the host cannot tell whether a target of the kind %q fits it", kind)
}
