package house

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// goFile is one parsed Go file of the repository.
type goFile struct {
	path string // from the repository's root, with slashes
	src  string
	fset *token.FileSet
	ast  *ast.File
}

func (f *goFile) dir() string   { return path.Dir(f.path) }
func (f *goFile) test() bool    { return strings.HasSuffix(f.path, "_test.go") }
func (f *goFile) lines() int    { return strings.Count(f.src, "\n") }
func (f *goFile) support() bool { return f.test() || strings.HasSuffix(path.Base(f.dir()), "test") }

func (f *goFile) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", f.path, f.fset.Position(n.Pos()).Line)
}

// imports gives the import paths of f.
func (f *goFile) imports() []string {
	var list []string
	for _, i := range f.ast.Imports {
		if p, err := strconv.Unquote(i.Path.Value); err == nil {
			list = append(list, p)
		}
	}
	return list
}

// root is the repository, seen from this package's directory.
const root = "../.."

// read parses the whole tree once for all tests.
var read = sync.OnceValues(func() (*tree, error) {
	t := &tree{}
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if e.IsDir() {
			if rel == ".git" || rel == "bin" || rel == "demo-data" || e.Name() == "node_modules" {
				return fs.SkipDir
			}
			return nil
		}
		if !e.Type().IsRegular() || rel == ".git" { // a file, in a linked work tree
			return nil
		}
		t.files = append(t.files, rel)
		if filepath.Ext(rel) != ".go" || strings.Contains("/"+rel, "/testdata/") {
			return nil
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f, err := parse(rel, string(src))
		if err != nil {
			return err
		}
		t.code = append(t.code, f)
		return nil
	})
	return t, err
})

// tree is the repository.
type tree struct {
	files []string // all files
	code  []*goFile
}

func load(t *testing.T) *tree {
	t.Helper()
	all, err := read()
	if err != nil {
		t.Fatal(err)
	}
	if len(all.code) < 20 {
		t.Fatalf("only %d Go files found: wrong root", len(all.code))
	}
	return all
}

func parse(name, src string) (*goFile, error) {
	fset := token.NewFileSet()
	a, err := parser.ParseFile(fset, name, src, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	return &goFile{path: name, src: src, fset: fset, ast: a}, nil
}

// sample is a tree of one or more made-up files: name, source, name, source.
func sample(t *testing.T, pairs ...string) []*goFile {
	t.Helper()
	var list []*goFile
	for i := 0; i < len(pairs); i += 2 {
		f, err := parse(pairs[i], pairs[i+1])
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, f)
	}
	return list
}

// report fails the test with what a rule found.
func report(t *testing.T, found []string) {
	t.Helper()
	for _, f := range found {
		t.Error(f)
	}
}

// mustFind asserts that a rule finds each thing in a bad sample, and only those.
func mustFind(t *testing.T, found []string, wanted ...string) {
	t.Helper()
	if len(found) != len(wanted) {
		t.Errorf("found %d things, want %d:\n%s", len(found), len(wanted), strings.Join(found, "\n"))
		return
	}
	for i, w := range wanted {
		if !strings.Contains(found[i], w) {
			t.Errorf("found %q, want %q", found[i], w)
		}
	}
}
