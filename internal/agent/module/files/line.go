package files

import (
	"regexp"
	"slices"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func lineCall(p string, c *module.Call) (any, error) {
	if !isFile(p) {
		if c.Bool("quiet") {
			return false, nil
		}
		return nil, missing(p)
	}
	b, err := load(p)
	if err != nil {
		return nil, err
	}
	before := string(b)
	after, err := lineEdit(before, lineSpec{content: c.Str("content"), has: c.Has("content"), match: c.Str("match"), mode: c.Str("mode"), location: c.Str("location"),
		before: c.Str("before"), after: c.Str("after"), indent: c.Bool("indent")})
	if err != nil {
		return nil, err
	}
	if after != before && !c.Test {
		if on, ok := c.Any("backup").(bool); ok && on {
			if _, err := keepBackup(c, p); err != nil {
				return nil, err
			}
		}
		if err := save(p, before, after, c.Any("backup"), false); err != nil {
			return nil, err
		}
	}
	return changed(c, before, after), nil
}

type lineSpec struct {
	content, match, mode, location, before, after string
	has, indent                                   bool
}

// lineEdit sees to one line of a text.
func lineEdit(text string, s lineSpec) (string, error) {
	bad := func(format string, a ...any) error { return fault.Invalid("line_bad", format, a...) }
	switch s.mode {
	case "":
		return "", bad("Mode was not defined. How to process the file?")
	case "ensure", "replace", "delete", "insert":
	default:
		return "", bad("Unknown mode: %q", s.mode)
	}
	if !s.has && s.mode != "delete" {
		return "", bad("Content can only be empty if mode is delete")
	}
	if (s.mode == "delete" || s.mode == "replace") && !s.has && s.match == "" {
		return "", bad("the lines to %s are not named: match is missing", s.mode)
	}
	eol := "\n"
	if strings.Contains(text, "\r\n") {
		eol = "\r\n"
	}
	lines := splitLines(text)
	if s.match == "" {
		s.match = s.content
	}
	content := strings.TrimRight(s.content, "\r\n")
	switch s.mode {
	case "delete", "replace":
		if len(lines) == 0 {
			return text, nil
		}
		hits, err := matching(lines, s.match)
		if err != nil {
			return "", err
		}
		var out []string
		for i, l := range lines {
			switch {
			case !slices.Contains(hits, i):
				out = append(out, l)
			case s.mode == "replace":
				out = append(out, indented(l, content, s.indent)+lineEnd(l))
			}
		}
		return strings.Join(out, ""), nil
	case "insert":
		return insertLine(lines, content, eol, s)
	}
	return ensureLine(lines, content, eol, s)
}

func lineEnd(l string) string { return l[len(strings.TrimRight(l, "\r\n")):] }

// indented is a line with the white space that another begins with.
func indented(like, content string, indent bool) string {
	if !indent {
		return content
	}
	body := strings.TrimLeft(like, " \t")
	return like[:len(like)-len(body)] + strings.TrimLeft(content, " \t")
}

// matching are the lines that have a text in them or fit it as a regular expression.
func matching(lines []string, what string) ([]int, error) {
	re, err := compile(what, reDotAll)
	if err != nil {
		if re, err = regexp.Compile(literal(what)); err != nil { // a fragment that is no expression
			return nil, err
		}
	}
	var hits []int
	for i, l := range lines {
		if l := strings.TrimRight(l, "\r\n"); strings.Contains(l, strings.TrimRight(what, "\r\n")) || re.MatchString(l) {
			hits = append(hits, i)
		}
	}
	return hits, nil
}

// single is the only line that fits.
func single(lines []string, what, name string) (int, error) {
	hits, err := matching(lines, what)
	if err != nil {
		return 0, err
	}
	switch len(hits) {
	case 0:
		return 0, fault.NotFound("line_missing", "Unable to find the line %q that %s names", what, name)
	case 1:
		return hits[0], nil
	}
	return 0, fault.Conflict("line_many", "Found more than expected occurrences in %q expression: %d lines fit %q", name, len(hits), what)
}

// bounds are the lines that after and before name.
func bounds(lines []string, s lineSpec) (after, before int, err error) {
	if after, err = single(lines, s.after, "after"); err != nil {
		return 0, 0, err
	}
	before, err = single(lines, s.before, "before")
	return after, before, err
}

// put inserts a line; the one before it gets an end when it had none.
func put(lines []string, i int, content, eol string) string {
	if i > 0 && !strings.HasSuffix(lines[i-1], "\n") {
		lines[i-1] += eol
	}
	return strings.Join(slices.Insert(lines, i, content+eol), "")
}

func sameLine(lines []string, i int, content string) bool {
	return i >= 0 && i < len(lines) && strings.TrimSpace(lines[i]) == strings.TrimSpace(content)
}

func insertLine(lines []string, content, eol string, s lineSpec) (string, error) {
	text := strings.Join(lines, "")
	switch {
	case s.before != "" && s.after != "":
		a, b, err := bounds(lines, s)
		if err != nil {
			return "", err
		}
		for i := a + 1; i < b; i++ {
			if sameLine(lines, i, content) {
				return text, nil
			}
		}
		if b <= a {
			return "", fault.Conflict("line_order", "the line of before stands above that of after")
		}
		return put(lines, b, indented(lines[a], content, s.indent), eol), nil
	case s.before != "" || s.after != "":
		return beside(lines, content, eol, s)
	case s.location == "start":
		if sameLine(lines, 0, content) {
			return text, nil
		}
		like := ""
		if len(lines) > 0 {
			like = lines[0]
		}
		return put(lines, 0, indented(like, content, s.indent), eol), nil
	case s.location == "end":
		if sameLine(lines, len(lines)-1, content) {
			return text, nil
		}
		like := ""
		if len(lines) > 0 {
			like = lines[len(lines)-1]
		}
		return put(lines, len(lines), indented(like, content, s.indent), eol), nil
	}
	return "", fault.Invalid("line_bad", "On insert either \"location\" or \"before/after\" conditions are required.").Fix("location is start or end")
}

// beside puts a line before the one that before names, or after the one that after names, unless
// it stands there.
func beside(lines []string, content, eol string, s lineSpec) (string, error) {
	what, name, by := s.before, "before", 0
	if what == "" {
		what, name, by = s.after, "after", 1
	}
	i, err := single(lines, what, name)
	if err != nil || sameLine(lines, i+2*by-1, content) {
		return strings.Join(lines, ""), err
	}
	return put(lines, i+by, indented(lines[i], content, s.indent), eol), nil
}

func ensureLine(lines []string, content, eol string, s lineSpec) (string, error) {
	switch {
	case s.before != "" && s.after != "":
		a, b, err := bounds(lines, s)
		if err != nil {
			return "", err
		}
		switch b - a {
		case 1:
			return put(lines, b, indented(lines[a], content, s.indent), eol), nil
		case 2:
			if !sameLine(lines, a+1, content) {
				lines[a+1] = indented(lines[a], content, s.indent) + eol
			}
			return strings.Join(lines, ""), nil
		}
		if b < a {
			return "", fault.Conflict("line_order", "the line of before stands above that of after")
		}
		return "", fault.Conflict("line_many", "Found more than one line between boundaries \"before\" and \"after\".")
	case s.before != "" || s.after != "":
		return beside(lines, content, eol, s)
	}
	return "", fault.Invalid("line_bad", "Wrong conditions? Unable to ensure line without knowing where to put it before and/or after.")
}
