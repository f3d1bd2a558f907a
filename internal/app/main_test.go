package app

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

func newParser(t *testing.T) *kong.Kong {
	t.Helper()
	p, err := parser(new(line), io.Discard, io.Discard, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// words splits a command line as a shell does, with single quotes only.
func words(s string) (out []string) {
	var w strings.Builder
	quoted, any := false, false
	for _, r := range s + " " {
		switch {
		case r == '\'':
			quoted, any = !quoted, true
		case r == ' ' && !quoted:
			if any || w.Len() > 0 {
				out = append(out, w.String())
			}
			w.Reset()
			any = false
		default:
			w.WriteRune(r)
		}
	}
	return out
}

// Every verb says what it does, every argument what it is, and every verb has an example that
// the command line itself understands as that verb.
func TestEveryVerbHasHelpAndAnExample(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("hello-1.0.tar.gz", nil, 0o644); err != nil { // what examples upload
		t.Fatal(err)
	}
	verbs := 0
	var walk func(n *kong.Node)
	walk = func(n *kong.Node) {
		for _, c := range n.Children {
			walk(c)
		}
		path := n.FullPath()
		if n.Help == "" {
			t.Errorf("%s has no help", path)
		}
		for _, f := range n.Flags {
			if f.Help == "" {
				t.Errorf("%s --%s has no help", path, f.Name)
			}
		}
		if len(n.Children) > 0 {
			return
		}
		verbs++
		for _, a := range n.Positional {
			if a.Help == "" {
				t.Errorf("%s <%s> has no help", path, a.Name)
			}
		}
		if n.Tag.Get("example") == "" || !strings.Contains(n.Detail, "Example:") {
			t.Errorf("%s has no example", path)
		}
		for ex := range strings.SplitSeq(n.Tag.Get("example"), "\n") {
			args := words(ex)
			for len(args) > 0 && strings.Contains(args[0], "=") { // the environment
				args = args[1:]
			}
			for i, w := range args {
				if w == ">" {
					args = args[:i]
					break
				}
			}
			if len(args) == 0 || args[0] != "drover" {
				t.Errorf("%s: the example %q is no command line of drover", path, ex)
				continue
			}
			k, err := newParser(t).Parse(args[1:])
			if err != nil {
				t.Errorf("%s: the example %q: %v", path, ex, err)
			} else if got := k.Selected().FullPath(); got != path {
				t.Errorf("the example %q is of %s, not of %s", ex, got, path)
			}
		}
	}
	walk(newParser(t).Model.Node)
	if verbs < 50 {
		t.Errorf("only %d verbs were found", verbs)
	}
}
