package house

import (
	"flag"
	"fmt"
	"go/ast"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"drover/internal/fault"
)

var update = flag.Bool("update", false, "write docs/failures.md anew")

// failure is one code with what the source says about it.
type failure struct {
	code     string
	kinds    map[string]bool
	says     []string
	remedies []string
}

// makers are the constructors of package fault.
var makers = map[string]fault.Kind{"Invalid": fault.KindInvalid, "Unauthorized": fault.KindUnauthorized, "Denied": fault.KindDenied, "NotFound": fault.KindNotFound,
	"Conflict": fault.KindConflict, "TooLarge": fault.KindTooLarge, "Unavailable": fault.KindUnavailable, "Internal": fault.KindInternal}

// reCode is the form of every code.
var reCode = regexp.MustCompile(`^[a-z][a-z0-9_]+$`)

var reVerb = regexp.MustCompile(`%[-+# 0-9.]*[a-zA-Z]`)

// prose is a format string as a sentence for the manual.
func prose(format string) string {
	s := reVerb.ReplaceAllString(strings.ReplaceAll(format, "%%", "\x00"), "…")
	s = strings.ReplaceAll(s, "\x00", "%")
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;").Replace(strings.TrimSpace(s))
}

func text(e ast.Expr) (string, bool) {
	if b, ok := e.(*ast.BinaryExpr); ok { // "a" + x + "b"
		x, _ := text(b.X)
		y, _ := text(b.Y)
		return x + y, true
	}
	if c, ok := e.(*ast.CallExpr); ok && exprName(c.Fun) == "fmt.Sprintf" && len(c.Args) > 0 {
		return text(c.Args[0])
	}
	l, ok := e.(*ast.BasicLit)
	if !ok {
		return "…", false
	}
	s, err := strconv.Unquote(l.Value)
	return s, err == nil
}

// failures finds every code that the source can answer with.
func failures(code []*goFile) []failure {
	all := map[string]*failure{}
	for _, f := range code {
		if f.support() || !strings.HasPrefix(f.path, "internal/") {
			continue
		}
		fixed := map[*ast.CallExpr]string{} // by the call that makes the fault
		add := func(id, kind, says, remedy string) {
			x := all[id]
			if x == nil {
				x = &failure{code: id, kinds: map[string]bool{}}
				all[id] = x
			}
			if kind != "" {
				x.kinds[kind] = true
			}
			if p := prose(says); p != "" {
				x.says = append(x.says, p)
			}
			if p := prose(remedy); p != "" {
				x.remedies = append(x.remedies, p)
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if lit, ok := n.(*ast.CompositeLit); ok { // wire.Failure{Code: "…", Message: …}
				f := map[string]string{}
				for _, e := range lit.Elts {
					if kv, ok := e.(*ast.KeyValueExpr); ok {
						f[exprName(kv.Key)], _ = text(kv.Value)
					}
				}
				if reCode.MatchString(f["Code"]) {
					add(f["Code"], "", f["Message"]+f["Msg"]+f["Detail"], f["Remedy"])
				}
				return true
			}
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if sel.Sel.Name == "Fix" && len(call.Args) > 0 {
				for x := sel.X; ; {
					c, ok := x.(*ast.CallExpr)
					if !ok {
						break
					}
					s, ok := c.Fun.(*ast.SelectorExpr)
					if !ok {
						break
					}
					if exprName(s.X) == "fault" {
						fixed[c], _ = text(call.Args[0])
					}
					x = s.X
				}
				return true
			}
			if exprName(sel.X) != "fault" || len(call.Args) < 2 {
				return true
			}
			if _, ok := makers[sel.Sel.Name]; !ok {
				return true
			}
			id, ok := text(call.Args[0])
			if !ok {
				return true
			}
			msg, _ := text(call.Args[1])
			add(id, sel.Sel.Name, msg, fixed[call])
			return true
		})
	}
	var list []failure
	for _, id := range slices.Sorted(maps.Keys(all)) {
		x := all[id]
		slices.Sort(x.says)
		slices.Sort(x.remedies)
		x.says, x.remedies = slices.Compact(x.says), slices.Compact(x.remedies)
		list = append(list, *x)
	}
	return list
}

// usual is what to do about a failure whose message says it all.
func usual(x failure) string {
	switch {
	case x.kinds["Internal"], x.code == "internal":
		return "drover itself is at fault: look into the server's log, repeat, and report it"
	case x.kinds["Unavailable"]:
		return "a needed part is away or full: put that right and repeat; nothing was changed"
	case x.kinds["TooLarge"]:
		return "stay below the bound that the message names"
	case x.kinds["NotFound"]:
		return "check the name that the message gives"
	case x.kinds["Denied"], x.kinds["Unauthorized"]:
		return "ask an admin for the right"
	}
	return "correct what the message names and repeat"
}

func manual(list []failure) string {
	var b strings.Builder
	b.WriteString(`# Failures

Every code with which drover answers, made from the source by ` + "`go test ./internal/house -run Failures -update`" + `.
The code stands in the last line of what the command line prints, as ` + "`code`" + ` in problem+json, and in the rows of failed
builds and tasks. The status is the answer's HTTP status; the exit code of the command line is 4 for 404, 5 for 401 and
403, else 1. An … stands for what the message names. Codes never change their meaning.

| code | status | what it says | what to do |
|---|---|---|---|
`)
	for _, x := range list {
		var status []string
		for _, k := range slices.Sorted(maps.Keys(x.kinds)) {
			status = append(status, strconv.Itoa((&fault.Error{Kind: makers[k]}).Status()))
		}
		remedy := strings.Join(x.remedies, "; or: ")
		if remedy == "" {
			remedy = usual(x)
		}
		if len(status) == 0 {
			status = []string{"–"} // the row of a build or task
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", x.code, strings.Join(status, ", "), strings.Join(x.says, "; or: "), remedy)
	}
	return b.String()
}

// The manual's list of failures is what the source can answer with, no more and no less.
func TestFailuresAreInTheManual(t *testing.T) {
	want := manual(failures(load(t).code))
	file := filepath.Join(root, "docs", "failures.md")
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want {
		t.Error("docs/failures.md is not what the source says: run go test ./internal/house -run Failures -update")
	}
}

func TestFailuresAreFound(t *testing.T) {
	got := manual(failures(sample(t, "internal/a/a.go", `package a
import "drover/internal/fault"
func f() error { return fault.NotFound("x_unknown", "there is no %q", 1).Wrap(nil).Fix("see `+"`drover x list`"+`") }
func h() any { return wire.Failure{Code: "x_away", Message: fmt.Sprintf("%s is away", 1), Remedy: "wait"} }
func g() error { return fault.Invalid("bad", "bad "+"%d%%", 1) }
`)))
	for _, row := range []string{"| `x_away` | – | … is away | wait |", "| `bad` | 400 | bad …% | correct what the message names and repeat |", "| `x_unknown` | 404 | there is no … | see `drover x list` |"} {
		if !strings.Contains(got, row+"\n") {
			t.Errorf("no row %q in\n%s", row, got)
		}
	}
}
