package files

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fault"
)

// bench calls functions against a directory of its own.
type bench struct {
	t    *testing.T
	dir  string
	host *module.Host
	reg  *module.Registry
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), reg: module.NewRegistry(Functions())}
	b.host = &module.Host{Dir: t.TempDir(), ID: "host1", Registry: b.reg, Fetch: func(_ context.Context, s string) (io.ReadCloser, error) {
		if strings.HasPrefix(s, "salt://there") || strings.HasPrefix(s, "https://there") {
			return io.NopCloser(strings.NewReader("from " + s + "\n")), nil
		}
		return nil, fault.NotFound("source_missing", "%s is not there: %v", s, fs.ErrNotExist)
	}}
	return b
}

func (b *bench) file(name, text string) string {
	b.t.Helper()
	p := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
	return p
}

func (b *bench) has(name, want string) {
	b.t.Helper()
	p := name
	if !filepath.IsAbs(p) {
		p = filepath.Join(b.dir, name)
	}
	got, err := os.ReadFile(p)
	if d := cmp.Diff(want, string(got)); d != "" || err != nil {
		b.t.Errorf("%s: %v %s", name, err, d)
	}
}

func (b *bench) bind(name string, test bool, args []any, named map[string]any) (module.Function, *module.Call) {
	b.t.Helper()
	f, ok := b.reg.Get(name)
	if !ok {
		b.t.Fatalf("there is no %s", name)
	}
	c, err := module.Bind(b.host, f, args, named, test)
	if err != nil {
		b.t.Fatal(err)
	}
	return f, c
}

// try calls a function; a mapping at the end are its arguments by name.
func (b *bench) try(name string, args ...any) (any, error) {
	b.t.Helper()
	named := map[string]any{}
	if n := len(args); n > 0 {
		if m, ok := args[n-1].(map[string]any); ok {
			named, args = m, args[:n-1]
		}
	}
	f, c := b.bind(name, false, args, named)
	return f.Run(b.t.Context(), c)
}

func (b *bench) call(name string, args ...any) any {
	b.t.Helper()
	v, err := b.try(name, args...)
	if err != nil {
		b.t.Fatalf("%s %v: %v", name, args, err)
	}
	return v
}

func (b *bench) want(want any, name string, args ...any) {
	b.t.Helper()
	if d := cmp.Diff(want, b.call(name, args...)); d != "" {
		b.t.Errorf("%s %v: %s", name, args, d)
	}
}

func (b *bench) refuses(code, name string, args ...any) {
	b.t.Helper()
	if v, err := b.try(name, args...); fault.Code(err) != code {
		b.t.Errorf("%s %v: %v, %v; want %s", name, args, v, err, code)
	}
}

func kw(pairs ...any) map[string]any {
	m := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i].(string)] = pairs[i+1]
	}
	return m
}

// Every function says what it does, and none is there twice.
func TestCatalogue(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range Functions() {
		doc, example, ok := strings.Cut(f.Doc, "\n\n")
		if seen[f.Name] || f.Run == nil || !ok || !strings.HasSuffix(doc, ".") && !strings.Contains(doc, ": ") || !strings.HasPrefix(example, "salt '*' "+f.Name) {
			t.Errorf("%s: %q", f.Name, f.Doc)
		}
		seen[f.Name] = true
	}
	for _, n := range strings.Fields("file.find file.replace file.line hosts.add_host archive.unzip cp.get_file hashutil.digest file.lsattr") {
		if !seen[n] {
			t.Error("there is no ", n)
		}
	}
}

func TestReadWrite(t *testing.T) {
	b := newBench(t)
	p := filepath.Join(b.dir, "a")
	b.want(`Wrote 2 lines to "`+p+`"`, "file.write", p, "one", "two")
	b.want("one\ntwo\n", "file.read", p)
	b.want(`Wrote 1 lines to "`+p+`"`, "file.append", p, kw("args", "three"))
	b.want(`Prepended 2 lines to "`+p+`"`, "file.prepend", p, kw("args", []any{"zero", 0.0}))
	b.has("a", "zero\n0\none\ntwo\nthree\n")
	b.file("open", "no end")
	b.call("file.append", filepath.Join(b.dir, "open"), "x")
	b.has("open", "no end\nx\n")
	b.file("bin", "a\xffb")
	b.want("a\uFFFDb", "file.read", filepath.Join(b.dir, "bin"))
	b.want("ero", "file.seek_read", p, 3, 1)
	b.want(int64(2), "file.seek_write", p, "ZZ", 0)
	b.want(nil, "file.truncate", p, 4)
	b.has("a", "ZZro")
	b.refuses("path_relative", "file.read", "etc/passwd")
	b.refuses("file_missing", "file.read", filepath.Join(b.dir, "none"))
	b.refuses("not_a_file", "file.read", b.dir)
	b.refuses("not_a_file", "file.read", "/dev/zero")
}

// A file that is replaced keeps owner, mode and attributes, and a link stays a link.
func TestReplaceKeeps(t *testing.T) {
	b := newBench(t)
	p := b.file("real/a", "old\n")
	for _, err := range []error{os.Chown(p, 1234, 2345), os.Chmod(p, 0o640), unix.Setxattr(p, "trusted.note", []byte("kept"), 0), os.Symlink("real/a", filepath.Join(b.dir, "link"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.Stat(p)
	if err != nil {
		t.Fatal(err)
	}
	b.call("file.write", filepath.Join(b.dir, "link"), "new")
	b.has("real/a", "new\n")
	i, err := os.Stat(p)
	if err != nil {
		t.Fatal(err)
	}
	if os.SameFile(before, i) {
		t.Error("the file was written over, not replaced")
	}
	if uid, gid := ownerOf(i); uid != 1234 || gid != 2345 || i.Mode() != 0o640 {
		t.Error(uid, gid, i.Mode())
	}
	if v, err := xattr(p, "trusted.note", true); err != nil || string(v) != "kept" {
		t.Error(string(v), err)
	}
	if to, err := os.Readlink(filepath.Join(b.dir, "link")); err != nil || to != "real/a" {
		t.Error(to, err)
	}
	// A link to nothing gets its file.
	if err := os.Symlink("real/new", filepath.Join(b.dir, "dangling")); err != nil {
		t.Fatal(err)
	}
	b.call("file.write", filepath.Join(b.dir, "dangling"), "x")
	b.has("real/new", "x\n")
	if err := os.Symlink("loop", filepath.Join(b.dir, "loop")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.try("file.write", filepath.Join(b.dir, "loop"), "x"); err == nil {
		t.Error("a loop of links was written")
	}
	left, err := filepath.Glob(filepath.Join(b.dir, "*", ".durable*"))
	if len(left) > 0 || err != nil {
		t.Error(left, err)
	}
}

func TestReplace(t *testing.T) {
	b := newBench(t)
	text := "Listen 80\nLogLevel warn\nlisten 81\nName a.b\n"
	for _, x := range []struct {
		pattern, repl string
		named         map[string]any
		want          string
	}{
		{"LogLevel warn", "LogLevel info", nil, "Listen 80\nLogLevel info\nlisten 81\nName a.b\n"},
		{`^Listen (\d+)$`, `Listen \1\g<1> cost $1`, nil, "Listen 8080 cost $1\nLogLevel warn\nlisten 81\nName a.b\n"},
		{`^listen`, "L", kw("flags", []any{"IGNORECASE", "MULTILINE"}), "L 80\nLogLevel warn\nL 81\nName a.b\n"},
		{`n`, "N", kw("count", 1), "ListeN 80\nLogLevel warn\nlisten 81\nName a.b\n"},
		{`Listen.*b`, "all", kw("flags", "DOTALL"), "all\n"},
		{`(?P<x>Name) (?:a)\.b\Z|a\.b`, `\g<x>q`, nil, "Listen 80\nLogLevel warn\nlisten 81\nName q\n"},
		{`nowhere`, "line", kw("append_if_not_found", true), text + "line\n"},
		{`nowhere`, "line", kw("prepend_if_not_found", true, "not_found_content", "first"), "first\n" + text},
		{`nowhere`, "listen 81", kw("append_if_not_found", true), text},
		{`warn`, `a\1\n`, kw("backslash_literal", true), "Listen 80\nLogLevel a\\1\\n\nlisten 81\nName a.b\n"},
		{`[[\]"]`, "", nil, text},
		{`\Awarn`, "x", nil, text},
	} {
		p := b.file("conf", text)
		named := kw("pattern", x.pattern, "repl", x.repl)
		for k, v := range x.named {
			named[k] = v
		}
		diff := b.call("file.replace", p, named)
		b.has("conf", x.want)
		if (diff == "") != (x.want == text) {
			t.Errorf("%s: %v", x.pattern, diff)
		}
		if x.want != text {
			b.has("conf.bak", text)
			if err := os.Remove(p + ".bak"); err != nil {
				t.Fatal(err)
			}
		}
	}
	p := b.file("conf", text)
	b.want("--- \n+++ \n@@ -1,4 +1,4 @@\n Listen 80\n-LogLevel warn\n+LogLevel info\n listen 81\n Name a.b\n", "file.replace", p, "warn", "info", kw("dry_run", true))
	b.want(true, "file.replace", p, "warn", "info", kw("dry_run", true, "show_changes", false))
	b.has("conf", text)
	b.want(true, "file.search", p, "^LogLevel")
	b.want(false, "file.search", p, "^loglevel")
	b.want(false, "file.search", p+"x", "a", kw("ignore_if_missing", true))
	b.refuses("file_missing", "file.search", p+"x", "a")
	b.refuses("regex_bad", "file.search", p, "(?=a)")
	b.refuses("flags_bad", "file.search", p, "a", kw("flags", "SOMETIMES"))
	b.want(true, "file.contains", p, "LogLevel")
	b.want(false, "file.contains", p+"x", "LogLevel")
	b.want(true, "file.contains_regex", p, "^listen 8.$")
	b.want(true, "file.contains_glob", p, "*LogLevel*")
	b.want(false, "file.contains_glob", p, "LogLevel")
	// A file with two names keeps both.
	if err := os.Link(p, p+"2"); err != nil {
		t.Fatal(err)
	}
	b.call("file.replace", p, "warn", "info")
	b.has("conf2", "Listen 80\nLogLevel info\nlisten 81\nName a.b\n")
	f, c := b.bind("file.replace", true, []any{p, "info", "debug"}, nil)
	if v, err := f.Run(t.Context(), c); err != nil || !strings.Contains(v.(string), "+LogLevel debug") {
		t.Error(v, err)
	}
	b.has("conf2", "Listen 80\nLogLevel info\nlisten 81\nName a.b\n")
}

func TestBlock(t *testing.T) {
	b := newBench(t)
	const s, e = "#-- start managed zone --", "#-- end managed zone --"
	p := b.file("a", "top\n"+s+" of x\nold\n"+e+"\nend\n")
	diff := b.call("file.blockreplace", p, kw("content", "one\ntwo"))
	b.has("a", "top\n"+s+" of x\none\ntwo\n"+e+"\nend\n")
	if !strings.Contains(diff.(string), "-old\n+one\n+two\n") {
		t.Error(diff)
	}
	b.want(false, "file.blockreplace", p, kw("content", "one\ntwo\n"))
	b.call("file.blockreplace", p, kw("content", ""))
	b.has("a", "top\n"+s+" of x\n"+e+"\nend\n")
	p = b.file("b", "x\ny")
	b.refuses("block_missing", "file.blockreplace", p, kw("content", "1"))
	b.call("file.blockreplace", p, kw("content", "1", "append_if_not_found", true))
	b.has("b", "x\ny\n"+s+"\n1\n"+e+"\n")
	p = b.file("c", "x\ny\n")
	b.call("file.blockreplace", p, kw("content", "1", "insert_after_match", "x"))
	b.has("c", "x\n"+s+"\n1\n"+e+"\ny\n")
	p = b.file("d", "x\ny\n")
	b.call("file.blockreplace", p, kw("content", "1", "prepend_if_not_found", true))
	b.has("d", s+"\n1\n"+e+"\nx\ny\n")
	p = b.file("e", s+"\nx\n")
	b.refuses("block_open", "file.blockreplace", p, kw("content", "1"))
}

func TestComment(t *testing.T) {
	b := newBench(t)
	p := b.file("a", "alpha 1\nbeta\nalpha 2\n")
	if v := b.call("file.comment", p, "^alpha"); !strings.Contains(v.(string), "+#alpha 1") {
		t.Error(v)
	}
	b.has("a", "#alpha 1\nbeta\n#alpha 2\n")
	b.has("a.bak", "alpha 1\nbeta\nalpha 2\n")
	b.want(false, "file.comment", p, "^alpha")
	b.file("a", "#  alpha 1\nbeta\n#alpha 2\n")
	b.call("file.uncomment", p, "^alpha 1$")
	b.has("a", "alpha 1\nbeta\n#alpha 2\n")
	b.want(false, "file.uncomment", p, "gamma")
	b.refuses("file_missing", "file.comment", p+"x", "a")
}

func TestLine(t *testing.T) {
	const text = "[a]\n  x = 1\n  y = 2\n[b]\nz = 3"
	for _, x := range []struct {
		s    lineSpec
		want string // "" for an error
	}{
		{lineSpec{mode: "delete", match: "x"}, "[a]\n  y = 2\n[b]\nz = 3"},
		{lineSpec{mode: "delete", content: "z = 3", has: true}, "[a]\n  x = 1\n  y = 2\n[b]\n"},
		{lineSpec{mode: "delete", match: "nothing"}, text},
		{lineSpec{mode: "replace", match: `y\s*=`, content: "y = 5", has: true, indent: true}, "[a]\n  x = 1\n  y = 5\n[b]\nz = 3"},
		{lineSpec{mode: "replace", match: `y =`, content: "y = 5", has: true}, "[a]\n  x = 1\ny = 5\n[b]\nz = 3"},
		{lineSpec{mode: "insert", content: "w", has: true, location: "start"}, "w\n" + text},
		{lineSpec{mode: "insert", content: "w", has: true, location: "end"}, text + "\nw\n"},
		{lineSpec{mode: "insert", content: "w", has: true, after: "x = 1", indent: true}, "[a]\n  x = 1\n  w\n  y = 2\n[b]\nz = 3"},
		{lineSpec{mode: "insert", content: "w", has: true, before: `\[b\]`}, "[a]\n  x = 1\n  y = 2\nw\n[b]\nz = 3"},
		{lineSpec{mode: "insert", content: "  y = 2", has: true, after: "x = 1"}, text},
		{lineSpec{mode: "insert", content: "w", has: true, after: `\[a\]`, before: `\[b\]`}, "[a]\n  x = 1\n  y = 2\nw\n[b]\nz = 3"},
		{lineSpec{mode: "insert", content: "w", has: true}, ""},
		{lineSpec{mode: "insert", content: "w", has: true, after: "="}, ""},
		{lineSpec{mode: "insert", content: "w", has: true, after: "nothing"}, ""},
		{lineSpec{mode: "ensure", content: "x = 7", has: true, after: `\[a\]`, before: "y = 2"}, "[a]\nx = 7\n  y = 2\n[b]\nz = 3"},
		{lineSpec{mode: "ensure", content: "w", has: true, after: `x = 1`, before: "y = 2", indent: true}, "[a]\n  x = 1\n  w\n  y = 2\n[b]\nz = 3"},
		{lineSpec{mode: "ensure", content: "w", has: true, after: `\[a\]`, before: "z"}, ""},
		{lineSpec{mode: "ensure", content: "w", has: true, after: "z = 3"}, text + "\nw\n"},
		{lineSpec{mode: "ensure", content: "z = 3", has: true, after: `\[b\]`}, text},
		{lineSpec{mode: "ensure", content: "w", has: true}, ""},
		{lineSpec{mode: "", content: "w", has: true}, ""},
		{lineSpec{mode: "sometimes", content: "w", has: true}, ""},
	} {
		got, err := lineEdit(text, x.s)
		if (err != nil) != (x.want == "") || (err == nil && got != x.want) {
			t.Errorf("%+v: %v %s", x.s, err, cmp.Diff(x.want, got))
		}
	}
	b := newBench(t)
	p := b.file("a", "x\n")
	b.want("--- \n+++ \n@@ -1 +1,2 @@\n x\n+y\n", "file.line", p, "y", kw("mode", "ensure", "after", "x"))
	b.want(false, "file.line", p, "y", kw("mode", "ensure", "after", "x"))
	b.has("a", "x\ny\n")
}

func TestBackups(t *testing.T) {
	b := newBench(t)
	p := b.file("a", "1\n")
	b.want(map[string]any{}, "file.list_backups", p)
	b.call("file.backup", p)
	b.file("a", "2\n")
	b.call("file.backup", p)
	b.file("a", "3\n")
	all := b.call("file.list_backups", p).(map[string]any)
	if len(all) != 2 || all["0"].(map[string]any)["Size"] != int64(2) {
		t.Fatal(all)
	}
	b.has(all["0"].(map[string]any)["Location"].(string), "2\n")
	if len(b.call("file.list_backups", p, 1).(map[string]any)) != 1 {
		t.Error("the limit does not hold")
	}
	b.call("file.restore_backup", p, 1)
	b.has("a", "1\n")
	if all := b.call("file.list_backups", p).(map[string]any); len(all) != 3 {
		t.Error(all)
	}
	b.call("file.delete_backup", p, 0)
	b.want(kw("result", false, "comment", "backup_id '7' does not exist for "+p), "file.delete_backup", p, 7)
	b.has(b.call("file.list_backups", p).(map[string]any)["1"].(map[string]any)["Location"].(string), "1\n")
}

// What unified writes is what patch(1) reads.
func TestUnified(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		line := rapid.SampledFrom([]string{"a", "b", "c", "d", ""})
		old := strings.Join(rapid.SliceOfN(line, 0, 30).Draw(t, "old"), "\n")
		next := strings.Join(rapid.SliceOfN(line, 0, 30).Draw(t, "new"), "\n")
		d := unified("a", "a", old, next)
		if (d == "") != (old == next) {
			t.Fatalf("%q", d)
		}
		if old == next {
			return
		}
		file := filepath.Join(dir, "a")
		if err := os.WriteFile(file, []byte(old), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := command.Run(context.Background(), command.Spec{Argv: []string{"patch", "--posix", "--quiet", "--force", "-o", file + ".out", file}, Stdin: d, Dir: dir})
		if err != nil || r.Code != 0 {
			t.Fatalf("%v %d %s%s\n%s", err, r.Code, r.Out, r.Err, d)
		}
		got, err := os.ReadFile(file + ".out")
		if errors.Is(err, fs.ErrNotExist) && next == "" {
			return
		}
		if err != nil || string(got) != next {
			t.Fatalf("%v: %q\n%s", err, got, d)
		}
	})
}

func TestDiffAndPatch(t *testing.T) {
	b := newBench(t)
	p, q := b.file("a", "1\n2\n3\n"), b.file("b", "1\nx\n3\n")
	d := b.call("file.get_diff", p, q).(string)
	if d != "--- "+p+"\n+++ "+q+"\n@@ -1,3 +1,3 @@\n 1\n-2\n+x\n 3\n" {
		t.Error(d)
	}
	b.want("", "file.get_diff", p, p)
	if d := b.call("file.get_diff", p, "salt://there/x").(string); !strings.Contains(d, "+from salt://there/x") {
		t.Error(d)
	}
	b.file("p", d)
	r := b.call("file.patch", p, filepath.Join(b.dir, "p")).(map[string]any)
	if r["retcode"] != int64(0) {
		t.Error(r)
	}
	b.has("a", "1\nx\n3\n")
	r = b.call("file.grep", p, "x", "-- -n -i").(map[string]any)
	if r["stdout"] != "2:x" {
		t.Error(r)
	}
	b.call("file.sed", p, "x", "a/b")
	b.has("a", "1\na/b\n3\n")
}

func FuzzRegex(f *testing.F) {
	for _, s := range []string{`a(b)?`, `[]\[a]`, `\Z`, `[^]]`, `(?P<a>x)`, `\g<1>`, `a{2,}`, `\`, `[`} {
		f.Add(s, `x\1$\g<n>\`)
	}
	f.Fuzz(func(t *testing.T, p, repl string) {
		if len(p) > 100 || len(repl) > 100 {
			return
		}
		if re, err := compile(p, reMultiline); err == nil {
			if _, _, err := substitute(re, "ab\nx]y", template(repl), 0); err != nil {
				t.Fatal(err)
			}
		}
		if re, err := glob(p, 0); err == nil {
			re.MatchString(p)
		}
	})
}

// A pattern that is only a text finds itself, and what is put in comes out as it is.
func TestLiterals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringMatching(`[a-z.*+?()\[\]{}^$|\\ -]{1,12}`).Draw(t, "s")
		re, err := compile(literal(s), 0)
		if err != nil || !re.MatchString("<"+s+">") {
			t.Fatal(s, err)
		}
		repl := rapid.StringMatching(`[a-z$ {}]{0,12}`).Draw(t, "repl")
		if got, _, _ := substitute(re, s, template(repl), 1); got != repl {
			t.Fatalf("%q: %q", repl, got)
		}
	})
}

func TestGlob(t *testing.T) {
	for _, x := range []struct {
		pattern, name string
		want          bool
	}{
		{"*.log", "a.log", true}, {"*.log", "a.logx", false}, {"a?c", "abc", true}, {"[a-c]x", "bx", true}, {"[!a-c]x", "bx", false}, {"[!a-c]x", "dx", true},
		{"[]]x", "]x", true}, {"[x", "[x", true}, {"a.c", "abc", false}, {"*", "a\nb", true}, {"[^a]", "^", true}, {`a\b`, `a\b`, true},
	} {
		re, err := glob(x.pattern, 0)
		if err != nil || re.MatchString(x.name) != x.want {
			t.Errorf("%s %s: %v", x.pattern, x.name, err)
		}
	}
}
