package files

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fault"
)

func edits() []module.Function {
	p, regex := module.Need("path", module.Str), module.Need("regex", module.Str)
	char, backup, changes := module.May("char", module.Str, "#"), module.May("backup", module.Any, ".bak"), module.May("show_changes", module.Bool, true)
	return []module.Function{
		module.Tests("file.replace", "Replaces what fits a regular expression in a file and shows the difference.\n\nsalt '*' file.replace /etc/httpd/httpd.conf pattern='LogLevel warn' repl='LogLevel info'", on("path", replaceText),
			p, module.Need("pattern", module.Str), module.Need("repl", module.Str), module.May("count", module.Int, 0), module.May("flags", module.Any, 8), module.May("bufsize", module.Any, 1), module.May("append_if_not_found", module.Bool, false),
			module.May("prepend_if_not_found", module.Bool, false), module.May("not_found_content", module.Str, nil), backup, module.May("dry_run", module.Bool, false), module.May("search_only", module.Bool, false), changes,
			module.May("ignore_if_missing", module.Bool, false), module.May("preserve_inode", module.Bool, true), module.May("backslash_literal", module.Bool, false)),
		module.Tests("file.blockreplace", "Replaces what is between two markers in a file and shows the difference.\n\nsalt '*' file.blockreplace /etc/hosts '#-- start --' '#-- end --' '127.0.0.1 foobar'", on("path", blockCall),
			p, module.May("marker_start", module.Str, "#-- start managed zone --"), module.May("marker_end", module.Str, "#-- end managed zone --"), module.May("content", module.Str, ""), module.May("append_if_not_found", module.Bool, false),
			module.May("prepend_if_not_found", module.Bool, false), backup, module.May("dry_run", module.Bool, false), changes, module.May("append_newline", module.Bool, false), module.May("insert_before_match", module.Str, nil), module.May("insert_after_match", module.Str, nil)),
		module.Tests("file.comment", "Comments out the lines that fit a regular expression.\n\nsalt '*' file.comment /etc/modules pcspkr", on("path", func(f string, c *module.Call) (any, error) { return commentCall(f, c, true) }), p, regex, char, backup),
		module.Tests("file.uncomment", "Takes the comment off the lines that fit a regular expression.\n\nsalt '*' file.uncomment /etc/hosts.deny 'ALL: PARANOID'", on("path", func(f string, c *module.Call) (any, error) { return commentCall(f, c, false) }), p, regex, char, backup),
		module.Tests("file.comment_line", "Comments lines out, or with cmnt=False back in.\n\nsalt '*' file.comment_line /etc/modules pcspkr", on("path", func(f string, c *module.Call) (any, error) { return commentCall(f, c, c.Bool("cmnt")) }), p, regex, char, module.May("cmnt", module.Bool, true), backup),
		module.Tests("file.line", "Sees to one line of a file: mode is ensure, replace, delete or insert.\n\nsalt '*' file.line /etc/nsswitch.conf 'networks:\tfiles dns' after='hosts:.*?' mode=ensure", on("path", lineCall),
			p, module.May("content", module.Str, nil), module.May("match", module.Str, nil), module.May("mode", module.Str, nil), module.May("location", module.Str, nil), module.May("before", module.Str, nil), module.May("after", module.Str, nil), changes,
			module.May("backup", module.Any, false), module.May("quiet", module.Bool, false), module.May("indent", module.Bool, true)),
		{Name: "file.sed", Doc: "Edits a file with the program sed and shows its outcome.\n\nsalt '*' file.sed /etc/httpd/httpd.conf 'LogLevel warn' 'LogLevel info'", Run: sed, Params: []module.Param{p, module.Need("before", module.Str), module.Need("after", module.Str), module.May("limit", module.Str, ""),
			backup, module.May("options", module.Str, "-r -e"), module.May("flags", module.Str, "g"), module.May("escape_all", module.Bool, false), module.May("negate_match", module.Bool, false)}},
	}
}

// keepsInode tells whether a file is written over instead of replaced: when the caller says so, or
// when it has other names, which would keep the old content.
func keepsInode(p string, c *module.Call) bool {
	if c.Has("preserve_inode") {
		return c.Bool("preserve_inode")
	}
	i, err := os.Stat(p)
	if err != nil {
		return false
	}
	st, ok := i.Sys().(*syscall.Stat_t)
	return ok && st.Nlink > 1
}

func replaceText(p string, c *module.Call) (any, error) {
	if c.Bool("search_only") && (c.Bool("append_if_not_found") || c.Bool("prepend_if_not_found")) {
		return nil, fault.Invalid("arguments", "search_only cannot be used with append/prepend_if_not_found")
	}
	if c.Bool("append_if_not_found") && c.Bool("prepend_if_not_found") {
		return nil, fault.Invalid("arguments", "Only one of append and prepend_if_not_found is permitted")
	}
	if !exists(p) {
		if c.Bool("ignore_if_missing") {
			if c.Bool("search_only") || !c.Bool("show_changes") {
				return false, nil
			}
			return "", nil
		}
		return nil, missing(p)
	}
	flags, err := flagsOf(c.Any("flags"))
	if err != nil {
		return nil, err
	}
	re, err := compile(c.Str("pattern"), flags)
	if err != nil {
		return nil, err
	}
	b, err := load(p)
	if err != nil {
		return nil, err
	}
	before := string(b)
	if c.Bool("search_only") {
		return re.MatchString(before), nil
	}
	repl := template(c.Str("repl"))
	if c.Bool("backslash_literal") {
		repl = strings.ReplaceAll(c.Str("repl"), "$", "$$")
	}
	after, found, err := substitute(re, before, repl, int(max(c.Int("count"), 0)))
	if err != nil {
		return nil, err
	}
	if !found && (c.Bool("append_if_not_found") || c.Bool("prepend_if_not_found")) {
		add := c.Str("repl")
		if c.Has("not_found_content") {
			add = c.Str("not_found_content")
		}
		there, err := compile(`^`+literal(add)+`\r?$`, reMultiline)
		if err != nil {
			return nil, err
		}
		switch {
		case there.MatchString(before):
		case c.Bool("prepend_if_not_found"):
			after = add + "\n" + before
		default:
			if after != "" && !strings.HasSuffix(after, "\n") {
				after += "\n"
			}
			after += add + "\n"
		}
	}
	if !c.Bool("dry_run") && !c.Test {
		if err := save(p, before, after, c.Any("backup"), keepsInode(p, c)); err != nil {
			return nil, err
		}
	}
	if c.Bool("show_changes") {
		return unified("", "", before, after), nil
	}
	return before != after, nil
}

// substitute replaces the first count matches, all when it is 0. The new text is bounded.
func substitute(re *regexp.Regexp, s, repl string, count int) (string, bool, error) {
	n := -1
	if count > 0 {
		n = count
	}
	matches := re.FindAllStringSubmatchIndex(s, n)
	if len(matches) == 0 {
		return s, false, nil
	}
	var b []byte
	last := 0
	for _, m := range matches {
		b = append(b, s[last:m[0]]...)
		b = re.ExpandString(b, repl, s, m)
		if len(b) > maxText {
			return s, true, fault.TooLarge("file_large", "the new text would be larger than %d bytes", maxText)
		}
		last = m[1]
	}
	return string(append(b, s[last:]...)), true, nil
}

func blockCall(p string, c *module.Call) (any, error) {
	if c.Bool("append_if_not_found") && c.Bool("prepend_if_not_found") {
		return nil, fault.Invalid("arguments", "Only one of append and prepend_if_not_found is permitted")
	}
	b, err := load(p)
	if err != nil {
		return nil, err
	}
	before := string(b)
	after, err := block(before, blockSpec{start: c.Str("marker_start"), end: c.Str("marker_end"), content: c.Str("content"), atEnd: c.Bool("append_if_not_found"), atStart: c.Bool("prepend_if_not_found"),
		newline: c.Bool("append_newline"), beforeMatch: c.Str("insert_before_match"), afterMatch: c.Str("insert_after_match")})
	if err != nil {
		return nil, err
	}
	if !c.Bool("dry_run") && !c.Test {
		if err := save(p, before, after, c.Any("backup"), false); err != nil {
			return nil, err
		}
	}
	return changed(c, before, after), nil
}

type blockSpec struct {
	start, end, content     string
	atEnd, atStart, newline bool
	beforeMatch, afterMatch string
}

// block puts a content between two markers.
func block(text string, s blockSpec) (string, error) {
	if s.start == "" || s.end == "" {
		return "", fault.Invalid("marker_bad", "the markers of a block must not be empty")
	}
	eol := "\n"
	if strings.Contains(text, "\r\n") {
		eol = "\r\n"
	}
	// The end marker always has a line of its own: behind the content it would be taken for a part
	// of it the next time.
	body := func(begin, end string) []string {
		out := []string{begin}
		if s.content != "" {
			lines := strings.Split(strings.ReplaceAll(s.content, "\r\n", "\n"), "\n")
			if n := len(lines); lines[n-1] == "" && !s.newline {
				lines = lines[:n-1]
			}
			for _, l := range lines {
				out = append(out, l+eol)
			}
		}
		return append(out, strings.TrimRight(end, "\r\n")+eol)
	}
	var out []string
	in, done := false, false
	begin := ""
	for _, l := range splitLines(text) {
		switch {
		case !in && strings.Contains(l, s.start):
			in, begin = true, l
		case in && strings.Contains(l, s.end):
			in, done = false, true
			out = append(out, body(begin, l)...)
		case !in:
			out = append(out, l)
		}
	}
	if in {
		return "", fault.Conflict("block_open", "Unterminated marked block. End of file reached before marker_end.")
	}
	if done {
		return strings.Join(out, ""), nil
	}
	fresh := body(s.start+eol, s.end)
	switch {
	case s.atStart:
		return strings.Join(append(fresh, out...), ""), nil
	case s.atEnd:
		if n := len(out); n > 0 && !strings.HasSuffix(out[n-1], "\n") {
			out[n-1] += eol
		}
		return strings.Join(append(out, fresh...), ""), nil
	case s.beforeMatch != "" || s.afterMatch != "":
		pattern := s.beforeMatch
		if s.afterMatch != "" {
			pattern = s.afterMatch
		}
		re, err := compile(pattern, 0)
		if err != nil {
			return "", err
		}
		i := slices.IndexFunc(out, func(l string) bool { m := re.FindStringIndex(l); return m != nil && m[0] == 0 })
		if i >= 0 {
			if s.afterMatch != "" {
				if !strings.HasSuffix(out[i], "\n") {
					out[i] += eol
				}
				i++
			}
			return strings.Join(slices.Insert(out, i, fresh...), ""), nil
		}
	}
	return "", fault.NotFound("block_missing", "Cannot edit marked block. Markers were not found in file.")
}

func commentCall(p string, c *module.Call, out bool) (any, error) {
	if !isFile(p) {
		return nil, missing(p)
	}
	b, err := load(p)
	if err != nil {
		return nil, err
	}
	before := string(b)
	after, found, err := comment(before, c.Str("regex"), c.Str("char"), out)
	if err != nil || !found {
		return false, err
	}
	if !c.Test {
		if err := save(p, before, after, c.Any("backup"), false); err != nil {
			return nil, err
		}
	}
	return unified("", "", before, after), nil
}

// comment comments out the lines that begin with what fits, or takes the comment off.
func comment(text, regex, char string, out bool) (string, bool, error) {
	bare := strings.TrimSuffix(strings.TrimPrefix(regex, "^"), "$")
	if bare == "" || char == "" {
		return "", false, fault.Invalid("regex_bad", "%q names no lines", regex)
	}
	end := ""
	if strings.HasSuffix(regex, "$") {
		end = "$"
	}
	pattern := "^(" + bare + ")" + end
	if !out {
		pattern = "^" + literal(char) + `\s*(` + bare + ")" + end
	}
	re, err := compile(pattern, 0)
	if err != nil {
		return "", false, err
	}
	found := false
	lines := splitLines(text)
	for i, l := range lines {
		body := strings.TrimRight(l, "\r\n")
		m := re.FindStringSubmatchIndex(body)
		if m == nil {
			continue
		}
		found = true
		if out {
			lines[i] = char + l
		} else {
			lines[i] = l[m[2]:]
		}
	}
	return strings.Join(lines, ""), found, nil
}

// sed runs the program. What is before and after goes between its slashes, which are quoted.
func sed(ctx context.Context, c *module.Call) (any, error) {
	p, err := argPath(c, "path")
	if err != nil {
		return nil, err
	}
	if !exists(p) {
		return false, nil
	}
	esc := func(s string) string {
		s = strings.ReplaceAll(s, "/", `\/`)
		if c.Bool("escape_all") {
			s = regexp.MustCompile(`[][(){}.*+?^$|]`).ReplaceAllString(s, `\$0`)
		}
		return strings.ReplaceAll(s, "\n", `\n`)
	}
	if strings.Trim(c.Str("flags"), "gpiIM0123456789") != "" {
		return nil, fault.Invalid("flags_bad", "the flags %q are not taken", c.Str("flags")).Fix("g, p, i and numbers are; to write or run something is not")
	}
	limit := c.Str("limit")
	if limit != "" {
		limit = "/" + esc(limit) + "/ "
	}
	if c.Bool("negate_match") {
		limit += "!"
	}
	options, err := command.Words(c.Str("options"))
	if err != nil {
		return nil, err
	}
	inPlace := "-i"
	if s, ok := c.Any("backup").(string); ok && s != "" {
		if strings.Contains(s, "/") {
			return nil, fault.Invalid("backup_bad", "the suffix %q of the backup has a slash", s)
		}
		inPlace += s
	}
	argv := append([]string{"sed", inPlace}, options...)
	r, err := command.Run(ctx, command.Spec{Argv: append(argv, limit+"s/"+esc(c.Str("before"))+"/"+esc(c.Str("after"))+"/"+c.Str("flags"), "--", p), Dir: "/", Env: []string{"LC_ALL=C"}})
	if err != nil {
		return nil, err
	}
	c.RC = r.Code
	return dict(r), nil
}
