package files

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// hosts is the file of names and addresses.
type hosts struct{ file string }

func (h hosts) functions() []module.Function {
	ip, alias := module.Need("ip", module.Str), module.Need("alias", module.Any)
	with := func(f func(l *hostLines, c *module.Call) (any, error)) module.Run {
		return func(_ context.Context, c *module.Call) (any, error) {
			l, err := h.load()
			if err != nil {
				return nil, err
			}
			return f(l, c)
		}
	}
	return []module.Function{
		module.Reads("hosts.list_hosts", "Lists the names of each address in /etc/hosts.\n\nsalt '*' hosts.list_hosts", with(func(l *hostLines, _ *module.Call) (any, error) { return l.dict(), nil })),
		module.Reads("hosts.get_ip", "Tells the address of a name in /etc/hosts.\n\nsalt '*' hosts.get_ip myhost", with(func(l *hostLines, c *module.Call) (any, error) {
			for _, e := range l.lines {
				if slices.Contains(e.names, c.Str("host")) {
					return e.ip, nil
				}
			}
			return "", nil
		}), module.Need("host", module.Str)),
		module.Reads("hosts.get_alias", "Lists the names of an address in /etc/hosts.\n\nsalt '*' hosts.get_alias 127.0.0.1", with(func(l *hostLines, c *module.Call) (any, error) { return texts(l.of(c.Str("ip"))), nil }), ip),
		module.Reads("hosts.has_pair", "Tells whether an address has a name in /etc/hosts.\n\nsalt '*' hosts.has_pair 127.0.0.1 localhost", with(func(l *hostLines, c *module.Call) (any, error) {
			names := l.of(c.Str("ip"))
			for _, a := range aliases(c) {
				if !slices.Contains(names, a) {
					return false, nil
				}
			}
			return true, nil
		}), ip, alias),
		module.Tests("hosts.set_host", "Gives an address these names in /etc/hosts and no others.\n\nsalt '*' hosts.set_host 10.1.1.1 myhost", with(func(l *hostLines, c *module.Call) (any, error) {
			if err := goodHost(c.Str("ip"), aliases(c)); err != nil {
				return nil, err
			}
			names := aliases(c)
			l.set(c.Str("ip"), names, c.Any("comment"))
			return true, h.save(l, c)
		}), ip, alias, module.May("comment", module.Str, nil)),
		module.Tests("hosts.add_host", "Adds a name to an address in /etc/hosts.\n\nsalt '*' hosts.add_host 10.1.1.1 myhost", with(func(l *hostLines, c *module.Call) (any, error) {
			if err := goodHost(c.Str("ip"), aliases(c)); err != nil {
				return nil, err
			}
			l.add(c.Str("ip"), aliases(c))
			return true, h.save(l, c)
		}), ip, alias),
		module.Tests("hosts.rm_host", "Removes a name from an address in /etc/hosts.\n\nsalt '*' hosts.rm_host 10.1.1.1 myhost", with(func(l *hostLines, c *module.Call) (any, error) {
			l.remove(c.Str("ip"), aliases(c))
			return true, h.save(l, c)
		}), ip, alias),
		module.Tests("hosts.set_comment", "Sets the comment of an address in /etc/hosts.\n\nsalt '*' hosts.set_comment 10.1.1.1 'the printer'", with(func(l *hostLines, c *module.Call) (any, error) {
			if strings.ContainsAny(c.Str("comment"), "\n\r\x00") {
				return nil, fault.Invalid("comment_bad", "a comment is one line")
			}
			if !l.comment(c.Str("ip"), c.Str("comment")) {
				return false, nil
			}
			return true, h.save(l, c)
		}), ip, module.Need("comment", module.Str)),
	}
}

func aliases(c *module.Call) []string {
	var out []string
	switch v := c.Any("alias").(type) {
	case []any:
		for _, a := range v {
			out = append(out, module.Plain(a))
		}
	default:
		out = strings.FieldsFunc(module.Plain(v), func(r rune) bool { return r == ' ' || r == ',' || r == '\t' })
	}
	return out
}

func goodHost(ip string, names []string) error {
	// What separates words, begins a comment or cannot be seen would make another line of it; the
	// zone of an address may be anything.
	odd := func(s string) bool {
		return s == "" || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool {
			return r == '#' || r == utf8.RuneError || !unicode.IsGraphic(r) || unicode.IsSpace(r)
		})
	}
	if _, err := netip.ParseAddr(ip); err != nil || odd(ip) {
		return fault.Invalid("address_bad", "%q is not an address", ip).Wrap(err)
	}
	for _, n := range names {
		if odd(n) {
			return fault.Invalid("name_bad", "%q is not the name of a host", n)
		}
	}
	return nil
}

// hostLine is one line of the file: an address with names, or something else that is kept.
type hostLine struct {
	raw     string // as it was, while nothing changed
	ip      string // "" for a comment or an empty line
	names   []string
	comment string
}

type hostLines struct{ lines []hostLine }

func (h hosts) load() (*hostLines, error) {
	b, err := load(h.file)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return &hostLines{}, nil
		}
		return nil, err
	}
	return parseHosts(module.Valid(string(b))), nil
}

func parseHosts(text string) *hostLines {
	l := &hostLines{}
	for _, raw := range module.Lines(text) {
		e := hostLine{raw: raw}
		body, comment, _ := strings.Cut(raw, "#")
		if f := strings.Fields(body); len(f) > 1 {
			e.ip, e.names, e.comment = f[0], f[1:], strings.TrimSpace(comment)
		}
		l.lines = append(l.lines, e)
	}
	return l
}

func (l *hostLines) String() string {
	var b strings.Builder
	for _, e := range l.lines {
		line := e.raw
		if line == "" && e.ip != "" {
			line = e.ip + "\t\t" + strings.Join(e.names, "\t")
			if e.comment != "" {
				line += "\t# " + e.comment
			}
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// save writes the file when it says something else now.
func (h hosts) save(l *hostLines, c *module.Call) error {
	b, err := load(h.file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	next := l.String()
	if c.Test || next == string(b) {
		return nil
	}
	return replace(h.file, []byte(next), 0o644)
}

func sameIP(a, b string) bool {
	x, xerr := netip.ParseAddr(a)
	y, yerr := netip.ParseAddr(b)
	if xerr != nil || yerr != nil {
		return a == b
	}
	return x == y
}

func (l *hostLines) of(ip string) []string {
	var out []string
	for _, e := range l.lines {
		if e.ip != "" && sameIP(e.ip, ip) {
			out = append(out, e.names...)
		}
	}
	return out
}

func (l *hostLines) dict() map[string]any {
	out := map[string]any{}
	comments := 0
	for _, e := range l.lines {
		if e.ip == "" {
			if t := strings.TrimSpace(e.raw); strings.HasPrefix(t, "#") {
				out["comment-"+module.Plain(int64(comments))] = t
				comments++
			}
			continue
		}
		row, _ := out[e.ip].(map[string]any)
		if row == nil {
			row = map[string]any{"aliases": []any{}}
			out[e.ip] = row
		}
		row["aliases"] = append(row["aliases"].([]any), texts(e.names)...)
		if e.comment != "" {
			row["comment"] = e.comment
		}
	}
	return out
}

// set leaves one line for an address, with these names; without names none.
func (l *hostLines) set(ip string, names []string, comment any) {
	var out []hostLine
	done := len(names) == 0
	for _, e := range l.lines {
		if e.ip == "" || !sameIP(e.ip, ip) {
			out = append(out, e)
			continue
		}
		if done {
			continue
		}
		done = true
		if s, ok := comment.(string); ok {
			if s = oneLine(s); s != e.comment {
				e.comment, e.raw = s, ""
			}
		}
		if !slices.Equal(e.names, names) {
			e.names, e.raw = names, ""
		}
		out = append(out, e)
	}
	if !done {
		s, _ := comment.(string)
		out = append(out, hostLine{ip: ip, names: names, comment: oneLine(s)})
	}
	l.lines = out
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func (l *hostLines) add(ip string, names []string) {
	for i, e := range l.lines {
		if e.ip == "" || !sameIP(e.ip, ip) {
			continue
		}
		have := l.of(ip)
		for _, n := range names {
			if !slices.Contains(have, n) {
				l.lines[i].names, l.lines[i].raw = append(slices.Clone(l.lines[i].names), n), ""
			}
		}
		return
	}
	l.lines = append(l.lines, hostLine{ip: ip, names: names})
}

func (l *hostLines) remove(ip string, names []string) {
	var out []hostLine
	for _, e := range l.lines {
		if e.ip != "" && sameIP(e.ip, ip) {
			left := slices.DeleteFunc(slices.Clone(e.names), func(n string) bool { return slices.Contains(names, n) })
			if len(left) == 0 {
				continue
			}
			if len(left) < len(e.names) {
				e.names, e.raw = left, ""
			}
		}
		out = append(out, e)
	}
	l.lines = out
}

func (l *hostLines) comment(ip, text string) bool {
	found := false
	for i, e := range l.lines {
		if e.ip != "" && sameIP(e.ip, ip) {
			found = true
			if e.comment != text {
				l.lines[i].comment, l.lines[i].raw = text, ""
			}
		}
	}
	return found
}

func texts(s []string) []any {
	out := []any{}
	for _, v := range s {
		out = append(out, v)
	}
	return out
}
