package software

import (
	"slices"
	"strings"
)

// ini is a file of sections, kept line by line: what is not changed stays as its author left it,
// with comments, order and blank lines.
type ini struct {
	head     []string // what stands before the first section
	sections []*section
}

// section is a [name] with the lines below it.
type section struct {
	name  string
	title string // the line itself
	lines []string
}

const maxSections = 10_000

func parseINI(text string) *ini {
	f := &ini{}
	if text == "" {
		return f
	}
	for _, l := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		t := strings.TrimSpace(l)
		if len(t) > 2 && l[0] == '[' && strings.Contains(t, "]") && len(f.sections) < maxSections {
			f.sections = append(f.sections, &section{name: t[1:strings.LastIndexByte(t, ']')], title: l})
			continue
		}
		if n := len(f.sections); n > 0 {
			f.sections[n-1].lines = append(f.sections[n-1].lines, l)
		} else {
			f.head = append(f.head, l)
		}
	}
	return f
}

func (f *ini) String() string {
	var b strings.Builder
	for _, l := range f.head {
		b.WriteString(l + "\n")
	}
	for _, s := range f.sections {
		b.WriteString(s.title + "\n")
		for _, l := range s.lines {
			b.WriteString(l + "\n")
		}
	}
	return b.String()
}

func (f *ini) section(name string) *section {
	for _, s := range f.sections {
		if s.name == name {
			return s
		}
	}
	return nil
}

// keyOf reads a line "key = value", false for comments, blank lines and lines that go on.
func keyOf(l string) (key, value string, ok bool) {
	if l == "" || strings.ContainsRune("#; \t", rune(l[0])) {
		return "", "", false
	}
	i := strings.IndexAny(l, "=:")
	if i < 0 {
		return "", "", false
	}
	return strings.TrimSpace(l[:i]), strings.TrimSpace(l[i+1:]), true
}

// more tells whether a line goes on with the value above it. Comments may stand between.
func more(l string) bool {
	return l != "" && (l[0] == ' ' || l[0] == '\t') && strings.TrimSpace(l) != "" && !isComment(l)
}

func isComment(l string) bool {
	l = strings.TrimSpace(l)
	return l != "" && (l[0] == '#' || l[0] == ';')
}

// values are the keys of a section; values of several lines have line breaks.
func (s *section) values() map[string]string {
	out := map[string]string{}
	last := ""
	for _, l := range s.lines {
		if k, v, ok := keyOf(l); ok {
			out[k], last = v, k
		} else if last != "" && more(l) {
			out[last] = strings.TrimPrefix(out[last]+"\n"+strings.TrimSpace(l), "\n")
		} else if !isComment(l) {
			last = ""
		}
	}
	return out
}

// comments are the comments of a section without their sign.
func (s *section) comments() []string {
	var out []string
	for _, l := range s.lines {
		if t, ok := strings.CutPrefix(strings.TrimSpace(l), "#"); ok {
			out = append(out, strings.TrimSpace(t))
		}
	}
	return out
}

// place finds the lines [from, to) of a key, at or behind a line.
func (s *section) place(key string, at int) (from, to int) {
	for i := at; i < len(s.lines); i++ {
		if k, _, ok := keyOf(s.lines[i]); ok && k == key {
			to = i + 1
			for j := to; j < len(s.lines) && (more(s.lines[j]) || isComment(s.lines[j])); j++ {
				if more(s.lines[j]) {
					to = j + 1
				}
			}
			return i, to
		}
	}
	return -1, -1
}

// set gives a key a value where it stands, else behind the last key.
func (s *section) set(key, value string) {
	lines := strings.Split(value, "\n")
	lines[0] = key + "=" + lines[0]
	for i := 1; i < len(lines); i++ {
		lines[i] = "    " + strings.TrimSpace(lines[i])
	}
	from, to := s.place(key, 0)
	if from < 0 {
		from = 0
		for i, l := range s.lines {
			if strings.TrimSpace(l) != "" {
				from = i + 1
			}
		}
		to = from
	}
	tail := &section{lines: s.lines[to:]}
	tail.remove(key) // of a key that stands twice the last value would hold
	s.lines = slices.Concat(s.lines[:from], lines, tail.lines)
}

func (s *section) remove(key string) {
	var kept []string
	at := 0
	for from, to := s.place(key, 0); from >= 0; from, to = s.place(key, at) {
		kept = append(kept, s.lines[at:from]...)
		at = to
	}
	s.lines = append(kept, s.lines[at:]...)
}
