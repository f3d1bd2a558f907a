package house

import (
	"bytes"
	"fmt"
	"go/ast"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// fuzzTargets gives "./dir FuzzName" for each fuzz function in the tree.
func fuzzTargets(code []*goFile) (list []string) {
	for _, f := range code {
		for _, decl := range f.ast.Decls {
			if d, ok := decl.(*ast.FuncDecl); ok && f.test() && d.Recv == nil && strings.HasPrefix(d.Name.Name, "Fuzz") {
				list = append(list, "./"+f.dir()+" "+d.Name.Name)
			}
		}
	}
	slices.Sort(list)
	return list
}

// The long run fuzzes every target: scripts/fuzz finds them by itself, and this
// proves that it overlooks none.
func TestFuzzTargetsAreRun(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "scripts/fuzz", "--list")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("scripts/fuzz --list: %v", err)
	}
	listed := strings.Split(strings.TrimSpace(string(out)), "\n")
	if want := fuzzTargets(load(t).code); !slices.Equal(listed, want) {
		t.Errorf("scripts/fuzz --list gives\n%s\nwant\n%s", strings.Join(listed, "\n"), strings.Join(want, "\n"))
	}
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^long:[^\n]*\n(\t[^\n]*\n)*\t[^\n]*scripts/fuzz`).Match(makefile) {
		t.Error("make long does not call scripts/fuzz")
	}
}

func TestGoMod(t *testing.T) {
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for pattern, want := range map[string]bool{
		`(?m)^module drover$`: true, `(?m)^go 1\.26(\.\d+)?$`: true, `(?m)^\s*(replace|exclude|toolchain)\b`: false,
	} {
		if regexp.MustCompile(pattern).Match(mod) != want {
			t.Errorf("go.mod: %s must match: %v", pattern, want)
		}
	}
}

// privatePath is an absolute path of the machine that somebody worked on. The
// pattern is put together so that it doesn't find itself.
var privatePath = regexp.MustCompile(`(^|[^\w.$}*/-])/(wo` + `rk|ro` + `ot|home/[a-z]+)/[\w.]`)

func checkPaths(name string, data []byte) (found []string) {
	if bytes.IndexByte(data[:min(len(data), 8000)], 0) >= 0 {
		return nil // not text
	}
	for i, line := range bytes.Split(data, []byte("\n")) {
		if m := privatePath.Find(line); m != nil {
			found = append(found, fmt.Sprintf("%s:%d: %q is a path of one machine", name, i+1, m))
		}
	}
	return found
}

func TestNoPrivatePaths(t *testing.T) {
	for _, name := range load(t).files {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		report(t, checkPaths(name, data))
	}
	mustFind(t, checkPaths("x", []byte("a\nopen(\"/wo"+"rk/main\")\nx=$HOME/wo"+"rk/a\n/ro"+"ot/.bashrc\nroot:x:0:0::/ro"+"ot:/bin/sh\n")), "x:2", "x:4")
}
