package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fault"
)

func text() []module.Function {
	p := module.Need("path", module.Str)
	flags, bufsize := module.May("flags", module.Any, 8), module.May("bufsize", module.Any, 1)
	writes := func(name, doc string, f func(old, add string, lines []string) (string, string)) module.Function {
		return module.Rest(module.Tests(name, doc, on("path", func(file string, c *module.Call) (any, error) { return writeLines(file, c, f) }), p, module.May("args", module.Any, nil)))
	}
	return []module.Function{
		module.Reads("file.read", "Shows what is in a file.\n\nsalt '*' file.read /etc/hostname", on("path", func(f string, _ *module.Call) (any, error) {
			b, err := load(f)
			return module.Valid(string(b)), err
		}), p, module.May("binary", module.Bool, false)),
		writes("file.write", "Writes lines into a file, in place of what is in it.\n\nsalt '*' file.write /etc/motd args=\"['a line', 'another']\"", func(_, add string, _ []string) (string, string) {
			return add, "Wrote"
		}),
		writes("file.append", "Adds lines to the end of a file.\n\nsalt '*' file.append /etc/motd 'a line' 'another'", func(old, add string, _ []string) (string, string) {
			if old != "" && !strings.HasSuffix(old, "\n") {
				old += "\n"
			}
			return old + add, "Wrote"
		}),
		writes("file.prepend", "Adds lines to the beginning of a file.\n\nsalt '*' file.prepend /etc/motd 'a line'", func(old, add string, _ []string) (string, string) {
			return add + old, "Prepended"
		}),
		module.Tests("file.truncate", "Cuts a file to a length.\n\nsalt '*' file.truncate /var/log/x 512", on("path", func(f string, c *module.Call) (any, error) {
			if c.Int("length") < 0 {
				return nil, fault.Invalid("length_bad", "a file cannot be %d bytes long", c.Int("length"))
			}
			if c.Test {
				return nil, nil
			}
			return nil, failed("cut", f, os.Truncate(f, c.Int("length")))
		}), p, module.Need("length", module.Int)),
		module.Reads("file.seek_read", "Shows a piece of a file.\n\nsalt '*' file.seek_read /etc/passwd 4096 0", on("path", seekRead), p, module.Need("size", module.Int), module.Need("offset", module.Int)),
		module.Tests("file.seek_write", "Writes over a piece of a file.\n\nsalt '*' file.seek_write /srv/x 'some data' 4096", on("path", seekWrite), p, module.Need("data", module.Str), module.Need("offset", module.Int)),
		module.Reads("file.contains", "Tells whether a text is in a file.\n\nsalt '*' file.contains /etc/crontab mymaintenance.sh", on("path", func(f string, c *module.Call) (any, error) {
			b, err := content(f)
			return err == nil && b != nil && bytes.Contains(b, []byte(strings.TrimSpace(c.Str("text")))), err
		}), p, module.Need("text", module.Str)),
		module.Reads("file.contains_regex", "Tells whether a line of a file fits a regular expression.\n\nsalt '*' file.contains_regex /etc/crontab '^root'", on("path", func(f string, c *module.Call) (any, error) {
			re, err := compile(c.Str("regex"), 0)
			if err != nil {
				return nil, err
			}
			b, err := content(f)
			if err != nil {
				return nil, err
			}
			for _, l := range splitLines(string(b)) {
				if ch := c.Str("lchar"); ch != "" {
					l = strings.TrimLeft(l, ch)
				}
				if re.MatchString(strings.TrimSuffix(l, "\n")) {
					return true, nil
				}
			}
			return false, nil
		}), p, module.Need("regex", module.Str), module.May("lchar", module.Str, "")),
		module.Reads("file.contains_glob", "Tells whether a file as a whole fits a pattern.\n\nsalt '*' file.contains_glob /etc/foobar '*cheese*'", on("path", func(f string, c *module.Call) (any, error) {
			re, err := glob(c.Str("glob_expr"), 0)
			if err != nil {
				return nil, err
			}
			b, err := content(f)
			return err == nil && b != nil && re.Match(b), err
		}), p, module.Need("glob_expr", module.Str)),
		module.Reads("file.search", "Tells whether a regular expression is found in a file.\n\nsalt '*' file.search /etc/crontab 'mymaintenance.sh'", on("path", func(f string, c *module.Call) (any, error) {
			fl, err := flagsOf(c.Any("flags"))
			if err != nil {
				return nil, err
			}
			if c.Bool("multiline") {
				fl |= reMultiline
			}
			re, err := compile(c.Str("pattern"), fl)
			if err != nil {
				return nil, err
			}
			if c.Bool("ignore_if_missing") && !exists(f) {
				return false, nil
			}
			b, err := load(f)
			return re.Match(b), err
		}), p, module.Need("pattern", module.Str), flags, bufsize, module.May("ignore_if_missing", module.Bool, false), module.May("multiline", module.Bool, false)),
		module.Rest(module.Reads("file.grep", "Searches a file with the program grep and shows its outcome.\n\nsalt '*' file.grep /etc/passwd nobody -- -i", grep, p, module.Need("pattern", module.Str))),
	}
}

// content is what is in a file; nil when there is none, as the functions that only ask want it.
func content(f string) ([]byte, error) {
	if !isFile(f) {
		return nil, nil
	}
	return load(f)
}

// linesOf are the lines that a call names, by position or as args.
func linesOf(c *module.Call) []string {
	var out []string
	add := func(v any) {
		switch x := v.(type) {
		case nil:
		case []any:
			for _, e := range x {
				out = append(out, module.Plain(e))
			}
		default:
			out = append(out, module.Plain(x))
		}
	}
	add(c.Any("args")) // the first by position, too
	for _, v := range c.Rest {
		add(v)
	}
	return out
}

func writeLines(p string, c *module.Call, f func(old, add string, lines []string) (string, string)) (any, error) {
	lines := linesOf(c)
	add := ""
	for _, l := range lines {
		add += strings.TrimSuffix(l, "\n") + "\n"
	}
	var old []byte
	if exists(p) {
		b, err := load(p)
		if err != nil {
			return nil, err
		}
		old = b
	}
	next, did := f(string(old), add, lines)
	if !c.Test {
		if err := replace(p, []byte(next), 0o644); err != nil {
			return nil, err
		}
	}
	return fmt.Sprintf("%s %d lines to \"%s\"", did, len(lines), p), nil
}

func seekRead(p string, c *module.Call) (any, error) {
	size, offset := c.Int("size"), c.Int("offset")
	if size < 0 || size > maxText || offset < 0 {
		return nil, fault.Invalid("range_bad", "%d bytes at %d cannot be read", size, offset)
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, failed("read", p, err)
	}
	defer f.Close()
	b := make([]byte, size)
	n, err := f.ReadAt(b, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, failed("read", p, err)
	}
	return module.Valid(string(b[:n])), nil
}

func seekWrite(p string, c *module.Call) (any, error) {
	if c.Int("offset") < 0 {
		return nil, fault.Invalid("range_bad", "nothing can be written at %d", c.Int("offset"))
	}
	if c.Test {
		return int64(len(c.Str("data"))), nil
	}
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	if err != nil {
		return nil, failed("written", p, err)
	}
	n, err := f.WriteAt([]byte(c.Str("data")), c.Int("offset"))
	return int64(n), failed("written", p, errors.Join(err, f.Close()))
}

// dict is the outcome of a program as cmd.run_all shows it.
func dict(r command.Result) map[string]any {
	return map[string]any{"pid": int64(r.PID), "retcode": int64(r.Code), "stdout": strings.TrimRight(command.Text(r.Out), "\n"), "stderr": strings.TrimRight(command.Text(r.Err), "\n")}
}

func grep(ctx context.Context, c *module.Call) (any, error) {
	p, err := argPath(c, "path")
	if err != nil {
		return nil, err
	}
	argv := []string{"grep"}
	for _, v := range c.Rest {
		words, err := command.Words(module.Plain(v))
		if err != nil {
			return nil, err
		}
		for _, w := range words {
			if w == "--" {
				continue
			}
			argv = append(argv, w)
		}
	}
	r, err := command.Run(ctx, command.Spec{Argv: append(argv, "-e", c.Str("pattern"), "--", p), Dir: "/", Env: []string{"LC_ALL=C"}})
	if err != nil {
		return nil, err
	}
	c.RC = r.Code
	return dict(r), nil
}

// changed is what a function that edits shows: the difference, or whether there is one.
func changed(c *module.Call, before, after string) any {
	if c.Bool("show_changes") && before != after {
		return unified("", "", before, after)
	}
	return before != after
}

// save writes an edited file, after a copy of the old one beside it.
func save(p, before, after string, backup any, inode bool) error {
	if before == after {
		return nil
	}
	if suffix, ok := backup.(string); ok && suffix != "" {
		if strings.Contains(suffix, "/") {
			return fault.Invalid("backup_bad", "the suffix %q of the backup has a slash", suffix)
		}
		if err := copyOver(p, p+suffix, []byte(before)); err != nil {
			return err
		}
	}
	if inode {
		return overwrite(p, []byte(after))
	}
	return replace(p, []byte(after), 0o644)
}

// copyOver writes a copy of a file with the owner and mode of it.
func copyOver(p, to string, data []byte) error {
	i, err := os.Stat(p)
	if err != nil {
		return failed("read", p, err)
	}
	if err := replace(to, data, i.Mode().Perm()); err != nil {
		return err
	}
	uid, gid := ownerOf(i)
	return failed("given its owner", to, errors.Join(os.Chown(to, uid, gid), os.Chmod(to, i.Mode().Perm())))
}

// literal makes a regular expression of a text.
func literal(s string) string { return regexp.QuoteMeta(s) }
