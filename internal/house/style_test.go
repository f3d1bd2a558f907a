package house

import (
	"fmt"
	"go/ast"
	"go/format"
	"go/token"
	"path"
	"slices"
	"strings"
	"testing"
)

// Limits of the design.
const (
	maxPackageLines     = 6000
	maxInterfaceMethods = 5
	interfacesPer10k    = 5
	minInterfaces       = 8 // what a young tree may have
)

var forbiddenNames = strings.Fields("util utils common model models type types helper helpers misc base shared")

func checkNames(code []*goFile) (found []string) {
	for _, f := range code {
		for _, name := range []string{f.ast.Name.Name, path.Base(f.dir())} {
			if slices.Contains(forbiddenNames, name) {
				found = append(found, fmt.Sprintf("%s: %q says nothing: name the package for what it does", f.path, name))
				break
			}
		}
	}
	return found
}

// checkDocs wants one package comment for each package, and a comment on every
// exported identifier of internal packages.
func checkDocs(code []*goFile) (found []string) {
	comments := map[string]int{}
	for _, f := range code {
		if f.test() {
			continue
		}
		pkg := f.ast.Name.Name
		comments[f.dir()] += 0
		if d := f.ast.Doc; d != nil {
			comments[f.dir()]++
			if start := "Package " + pkg + " "; pkg != "main" && !strings.HasPrefix(d.Text(), start) {
				found = append(found, fmt.Sprintf("%s: the package comment must begin with %q", f.path, start))
			}
		}
		if pkg != "main" {
			found = append(found, undocumented(f)...)
		}
	}
	for dir, n := range comments {
		if n != 1 {
			found = append(found, fmt.Sprintf("%s: %d package comments, want one (in doc.go)", dir, n))
		}
	}
	slices.Sort(found)
	return found
}

func undocumented(f *goFile) (found []string) {
	missing := func(n ast.Node, name string) {
		found = append(found, fmt.Sprintf("%s: %s has no comment", f.at(n), name))
	}
	for _, decl := range f.ast.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || ast.IsExported(receiver(d))) {
				missing(d, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.TypeSpec:
					if s.Name.IsExported() && s.Doc == nil && (d.Doc == nil || len(d.Specs) > 1) {
						missing(s, s.Name.Name)
					}
				case *ast.ValueSpec:
					for _, n := range s.Names {
						if n.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
							missing(s, n.Name)
						}
					}
				}
			}
		}
	}
	return found
}

// receiver is the name of the type that a method belongs to.
func receiver(d *ast.FuncDecl) string {
	e := d.Recv.List[0].Type
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.IndexListExpr:
			e = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

// checkSizes finds packages that have grown too large, too many interfaces, and
// interfaces that are too wide.
func checkSizes(code []*goFile) (found []string) {
	lines := map[string]int{}
	total := 0
	var named []string
	for _, f := range code {
		if f.support() {
			continue
		}
		lines[f.dir()] += f.lines()
		total += f.lines()
		ast.Inspect(f.ast, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			i, ok := spec.Type.(*ast.InterfaceType)
			if !ok || isConstraint(i) {
				return true
			}
			where := f.at(spec) + " " + spec.Name.Name
			named = append(named, where)
			if n := i.Methods.NumFields(); n > maxInterfaceMethods {
				found = append(found, fmt.Sprintf("%s: %d methods, at most %d", where, n, maxInterfaceMethods))
			}
			return true
		})
	}
	if budget := max(minInterfaces, total*interfacesPer10k/10000); len(named) > budget {
		found = append(found, fmt.Sprintf("%d named interfaces in %d lines, the budget is %d:\n\t%s", len(named), total, budget, strings.Join(named, "\n\t")))
	}
	for dir, n := range lines {
		if n > maxPackageLines {
			found = append(found, fmt.Sprintf("%s: %d lines, at most %d: split it by role", dir, n, maxPackageLines))
		}
	}
	slices.Sort(found)
	return found
}

// isConstraint says whether i only serves as the bound of a type parameter.
func isConstraint(i *ast.InterfaceType) bool {
	for _, m := range i.Methods.List {
		switch m.Type.(type) {
		case *ast.BinaryExpr, *ast.UnaryExpr:
			return true
		}
	}
	return false
}

// fixedCalls make values that a package may hold: they are not changed by use.
var fixedCalls = map[string]bool{
	"errors.New": true, "fmt.Errorf": true, "regexp.MustCompile": true, "template.Must": true, "strings.NewReplacer": true,
	"strings.Fields": true, "slices.Sorted": true, "sync.OnceValue": true, "sync.OnceValues": true, "crc64.MakeTable": true, "crc32.MakeTable": true,
	"time.Date": true, "time.Unix": true, "time.Duration": true, "netip.MustParsePrefix": true, "netip.MustParseAddr": true, "big.NewInt": true,
}

// checkState finds init functions and package-level variables that look mutable:
// declared without a value, made by a call that is not known to give something
// fixed, or written to anywhere in the package.
func checkState(code []*goFile) (found []string) {
	type variable struct {
		f    *goFile
		spec *ast.ValueSpec
		name *ast.Ident
	}
	byDir := map[string]map[string]variable{}
	for _, f := range code {
		if f.support() {
			continue
		}
		for _, decl := range f.ast.Decls {
			if d, ok := decl.(*ast.FuncDecl); ok && d.Name.Name == "init" && d.Recv == nil {
				found = append(found, fmt.Sprintf("%s: func init: do it where it is wanted", f.at(d)))
			}
			d, ok := decl.(*ast.GenDecl)
			if !ok || d.Tok != token.VAR {
				continue
			}
			for _, spec := range d.Specs {
				s := spec.(*ast.ValueSpec)
				if isEmbed(d.Doc) || isEmbed(s.Doc) {
					continue
				}
				for i, n := range s.Names {
					if n.Name == "_" {
						continue
					}
					var value ast.Expr
					if i < len(s.Values) {
						value = s.Values[i]
					}
					if why := notFixed(value); why != "" {
						found = append(found, fmt.Sprintf("%s: package variable %s %s", f.at(n), n.Name, why))
					}
					if byDir[f.dir()] == nil {
						byDir[f.dir()] = map[string]variable{}
					}
					byDir[f.dir()][n.Name] = variable{f, s, n}
				}
			}
		}
	}
	for _, f := range code {
		if f.support() {
			continue
		}
		vars := byDir[f.dir()]
		for _, id := range written(f.ast) {
			v, ok := vars[id.Name]
			// The parser resolves names within a file; one it could not resolve
			// may come from another file of the package.
			if ok && (id.Obj == nil || id.Obj == v.name.Obj) {
				found = append(found, fmt.Sprintf("%s: package variable %s is written to", f.at(id), id.Name))
			}
		}
	}
	slices.Sort(found)
	return found
}

func isEmbed(doc *ast.CommentGroup) bool {
	if doc == nil {
		return false
	}
	return slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
}

// notFixed says why value may change after it was made, or "".
func notFixed(value ast.Expr) string {
	switch v := value.(type) {
	case nil:
		return "has no value: it can only be meant to change"
	case *ast.CallExpr:
		name := exprName(v.Fun)
		if fixedCalls[name] {
			return ""
		}
		if _, conversion := v.Fun.(*ast.ArrayType); conversion {
			return ""
		}
		// A table that is computed by a function literal on the spot is a table.
		if _, ok := v.Fun.(*ast.FuncLit); ok {
			return ""
		}
		// template.Must(...).Funcs(...) and the like: look at where the chain begins.
		if sel, ok := v.Fun.(*ast.SelectorExpr); ok {
			if inner, ok := sel.X.(*ast.CallExpr); ok {
				return notFixed(inner)
			}
		}
		return "comes from " + name + ", which is not known to give something fixed"
	case *ast.CompositeLit:
		if name := exprName(v.Type); strings.HasPrefix(name, "sync.") || strings.HasPrefix(name, "atomic.") {
			return "is a " + name
		}
	case *ast.UnaryExpr:
		if v.Op == token.AND {
			return notFixed(v.X)
		}
	}
	return ""
}

func exprName(e ast.Expr) string {
	switch x := e.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.SelectorExpr:
		return exprName(x.X) + "." + x.Sel.Name
	case *ast.IndexExpr:
		return exprName(x.X)
	}
	return ""
}

// written gives the variables that the file assigns to, takes the address of,
// increments, or changes the elements of.
func written(file *ast.File) (ids []*ast.Ident) {
	note := func(e ast.Expr) {
		for {
			switch x := e.(type) {
			case *ast.Ident:
				ids = append(ids, x)
				return
			case *ast.IndexExpr:
				e = x.X
			case *ast.StarExpr:
				e = x.X
			case *ast.ParenExpr:
				e = x.X
			case *ast.SelectorExpr:
				e = x.X
			default:
				return
			}
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch s := n.(type) {
		case *ast.AssignStmt:
			if s.Tok != token.DEFINE {
				for _, l := range s.Lhs {
					note(l)
				}
			}
		case *ast.IncDecStmt:
			note(s.X)
		case *ast.RangeStmt:
			if s.Tok == token.ASSIGN {
				note(s.Key)
			}
		case *ast.UnaryExpr:
			if _, literal := s.X.(*ast.CompositeLit); s.Op == token.AND && !literal {
				note(s.X)
			}
		case *ast.CallExpr:
			if name := exprName(s.Fun); (name == "delete" || name == "clear") && len(s.Args) > 0 {
				note(s.Args[0])
			}
		}
		return true
	})
	return ids
}

// checkFormat finds files that gofmt would change.
func checkFormat(code []*goFile) (found []string) {
	for _, f := range code {
		if out, err := format.Source([]byte(f.src)); err != nil || string(out) != f.src {
			found = append(found, fmt.Sprintf("%s: not in gofmt's form %v", f.path, err))
		}
	}
	return found
}

// checkSkips finds tests that hide: a missing tool is installed by scripts/setup
// or fails loudly. rapid's Skip, which rejects a drawn value, is another thing.
func checkSkips(code []*goFile) (found []string) {
	for _, f := range code {
		if !f.support() {
			continue
		}
		var inFunc func(n ast.Node, testing map[string]bool)
		inFunc = func(n ast.Node, scope map[string]bool) {
			ast.Inspect(n, func(n ast.Node) bool {
				var typ *ast.FuncType
				var body *ast.BlockStmt
				switch x := n.(type) {
				case *ast.FuncDecl:
					typ, body = x.Type, x.Body
				case *ast.FuncLit:
					typ, body = x.Type, x.Body
				case *ast.CallExpr:
					if sel, ok := x.Fun.(*ast.SelectorExpr); ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) && scope[exprName(sel.X)] {
						found = append(found, fmt.Sprintf("%s: a skipped test proves nothing: install or start what it needs, or fail", f.at(x)))
					}
				}
				if typ == nil || body == nil {
					return true
				}
				inner := map[string]bool{}
				for k, v := range scope {
					inner[k] = v
				}
				for _, p := range typ.Params.List {
					t := p.Type
					if star, ok := t.(*ast.StarExpr); ok {
						t = star.X
					}
					for _, name := range p.Names {
						inner[name.Name] = strings.HasPrefix(exprName(t), "testing.")
					}
				}
				inFunc(body, inner)
				return false
			})
		}
		inFunc(f.ast, map[string]bool{})
	}
	return found
}

func TestPackageNames(t *testing.T)   { report(t, checkNames(load(t).code)) }
func TestDocumentation(t *testing.T)  { report(t, checkDocs(load(t).code)) }
func TestSizes(t *testing.T)          { report(t, checkSizes(load(t).code)) }
func TestNoPackageState(t *testing.T) { report(t, checkState(load(t).code)) }
func TestFormat(t *testing.T)         { report(t, checkFormat(load(t).code)) }
func TestNoSkips(t *testing.T)        { report(t, checkSkips(load(t).code)) }

func TestStyleRulesFind(t *testing.T) {
	mustFind(t, checkNames(sample(t, "internal/build/util/a.go", "package things\n")), `"util"`)

	mustFind(t, checkDocs(sample(t,
		"internal/a/a.go", "package a\n\nfunc F() {}\n\ntype T struct{}\n\nfunc (T) M() {}\n\nfunc (t) M() {}\n\n// Some.\nconst (\n\tA = 1\n)\n\nvar B = 1\n",
		"internal/b/b.go", "// About b.\npackage b\n")),
		"a.go:16: B", "a.go:3: F", "a.go:5: T", "a.go:7: M", "internal/a: 0 package comments", `begin with "Package b "`)

	wide := "package a\ntype I interface { A(); B(); C(); D(); E(); F() }\ntype N interface{ ~int | ~string }\n"
	mustFind(t, checkSizes(sample(t, "internal/a/a.go", wide)), "a.go:2 I: 6 methods")
	many := "package a\n" + strings.Repeat("type I interface{ M() }\n", 9) + strings.Repeat("\n", 6000)
	mustFind(t, checkSizes(sample(t, "internal/a/a.go", many)), "9 named interfaces in 6010 lines, the budget is 8", "internal/a: 6010 lines")

	mustFind(t, checkState(sample(t,
		"internal/a/a.go", `package a
import ("embed"; "errors"; "sync")
//go:embed x
var files embed.FS
var ErrX = errors.New("x")
var table = map[string]int{"a": 1}
var raw = []byte("x")
var _ = table
var counter int
var mu = sync.Mutex{}
var cache = make(map[string]int)
var count = 0
var fine = 0
func init() {}
func f() { fine := 1; fine = 2; _ = fine }
`,
		"internal/a/b.go", "package a\nfunc g() { table[\"b\"]++; count = 1 }\n")),
		"a.go:10: package variable mu", "a.go:11: package variable cache", "a.go:14: func init", "a.go:9: package variable counter",
		"b.go:2: package variable count is written", "b.go:2: package variable table is written")

	mustFind(t, checkFormat(sample(t, "internal/a/a.go", "package a\nvar  x = 1\n")), "a.go")

	mustFind(t, checkSkips(sample(t, "internal/a/a_test.go", `package a
func TestX(t *testing.T) {
	t.Run("x", func(t *testing.T) { t.Skipf("no") })
	rapid.Check(t, func(t *rapid.T) { t.Skip() })
	t.SkipNow()
}
`)), "a_test.go:3", "a_test.go:5")
}
