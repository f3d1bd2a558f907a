package house

import (
	"fmt"
	"go/ast"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	sqlWord   = regexp.MustCompile(`\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH|WHERE|VALUES|json_each)\b`)
	statement = regexp.MustCompile(`^\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH)\b`)
	parameter = regexp.MustCompile(`\$([0-9]+)`)
	// oneEngine is SQL that only one of the engines knows, or that they read differently.
	oneEngine = regexp.MustCompile(`\b(ILIKE|SERIAL|BIGSERIAL|AUTOINCREMENT|NOW\(|CURRENT_TIMESTAMP|strftime\(|datetime\(|ARRAY\[|ANY\(|LISTEN|NOTIFY|jsonb\w*|INSERT OR|GLOB|rowid)|[a-z0-9)']::[a-z]+`)
)

// sqlTexts gives the SQL in a file: each string, or sum of strings, that looks
// like it. Parts of a sum that are not literals are left out and make it partial.
func sqlTexts(f *goFile, each func(at ast.Node, text string, partial bool)) {
	ast.Inspect(f.ast, func(n ast.Node) bool {
		e, ok := n.(ast.Expr)
		if !ok {
			return true
		}
		text, partial, isText := flatten(e)
		if !isText {
			return true
		}
		if sqlWord.MatchString(text) {
			each(n, text, partial)
		}
		return false
	})
}

func flatten(e ast.Expr) (text string, partial, isText bool) {
	switch x := e.(type) {
	case *ast.BasicLit:
		if x.Kind != token.STRING {
			return "", false, false
		}
		s, err := strconv.Unquote(x.Value)
		return s, false, err == nil
	case *ast.ParenExpr:
		return flatten(x.X)
	case *ast.BinaryExpr:
		if x.Op != token.ADD {
			return "", false, false
		}
		l, lp, lok := flatten(x.X)
		r, rp, rok := flatten(x.Y)
		return l + " " + r, lp || rp || !lok || !rok, lok || rok
	}
	return "", false, false
}

// checkSQL holds SQL to the common subset: SQLite numbers $n by first
// appearance, so the first uses must come in the order 1, 2, 3.
func checkSQL(code []*goFile) (found []string) {
	for _, f := range code {
		if room, ok := inHouse("drover/" + f.dir()); !ok || room == "house" || strings.HasPrefix(room, "db") {
			continue
		}
		sqlTexts(f, func(at ast.Node, text string, partial bool) {
			highest := 0
			for _, m := range parameter.FindAllStringSubmatch(text, -1) {
				n, err := strconv.Atoi(m[1])
				if err != nil {
					found = append(found, fmt.Sprintf("%s: parameter %s", f.at(at), m[0]))
					return
				}
				if n <= highest {
					continue
				}
				if dense := !partial && statement.MatchString(text); highest > 0 && n != highest+1 || dense && highest == 0 && n != 1 {
					found = append(found, fmt.Sprintf("%s: $%d is first used after $%d: parameters are numbered in the order of first use", f.at(at), n, highest))
					return
				}
				highest = n
			}
			if m := oneEngine.FindString(text); m != "" {
				found = append(found, fmt.Sprintf("%s: %q is not understood by both engines", f.at(at), m))
			}
		})
	}
	return found
}

var (
	sqlComment  = regexp.MustCompile(`(?m)--.*$`)
	migration   = regexp.MustCompile(`^([0-9]{4})_[a-z0-9_]+\.sql$`)
	tableOf     = regexp.MustCompile(`(?is)\b(?:CREATE TABLE|ALTER TABLE|DROP TABLE|INSERT INTO|UPDATE|DELETE FROM)\s+(?:IF (?:NOT )?EXISTS\s+)?([a-z_0-9]+)`)
	indexOf     = regexp.MustCompile(`(?is)\bCREATE (?:UNIQUE )?INDEX\s+(?:IF NOT EXISTS\s+)?([a-z_0-9]+)\s+ON\s+([a-z_0-9]+)`)
	references  = regexp.MustCompile(`(?is)\bREFERENCES\s+([a-z_0-9]+)`)
	createTable = regexp.MustCompile(`(?ms)^CREATE TABLE ([a-z_0-9]+) \((.*?)^\);`)
	creates     = regexp.MustCompile(`(?i)\bCREATE TABLE\b`)
	column      = regexp.MustCompile(`^([a-z_0-9]+)\s+(\S+)`)
	wordsOfPG   = regexp.MustCompile(`(?i)\b(SERIAL|BOOLEAN|TIMESTAMPTZ?|JSONB?|UUID|VARCHAR|NUMERIC|INTEGER|INT|BLOB|STRICT|AUTOINCREMENT|GENERATED|NOW|CURRENT_TIMESTAMP|TRIGGER|DEFERRABLE)\b`)
)

// checkMigration holds one schema file to the subset that is translated for
// SQLite. It is written in PostgreSQL's types; owner is the room it lies in.
func checkMigration(owner, file, text string) (found []string) {
	bad := func(format string, args ...any) {
		found = append(found, file+": "+fmt.Sprintf(format, args...))
	}
	if !strings.HasPrefix(text, "-- +goose Up\n") {
		bad("must begin with the line \"-- +goose Up\"")
	}
	text = sqlComment.ReplaceAllString(text, "")
	own := func(name string) bool { return name == owner || strings.HasPrefix(name, owner+"_") }
	for _, m := range tableOf.FindAllStringSubmatch(text, -1) {
		if !own(m[1]) {
			bad("table %s must be %s or begin with %s_", m[1], owner, owner)
		}
	}
	for _, m := range indexOf.FindAllStringSubmatch(text, -1) {
		if !own(m[1]) || !own(m[2]) {
			bad("index %s on %s must begin with %s_", m[1], m[2], owner)
		}
	}
	for _, m := range references.FindAllStringSubmatch(text, -1) {
		if !own(m[1]) {
			bad("a foreign key into %s crosses domains", m[1])
		}
	}
	if m := wordsOfPG.FindString(text); m != "" {
		bad("%s is outside the common subset: BIGINT, TEXT and BYTEA only", m)
	}
	tables := createTable.FindAllStringSubmatch(text, -1)
	if n := len(creates.FindAllString(text, -1)); n != len(tables) {
		bad("%d tables, but %d in the form \"CREATE TABLE name (\" … line \");\"", n, len(tables))
	}
	for _, t := range tables {
		for line := range strings.Lines(t[2]) {
			m := column.FindStringSubmatch(strings.TrimSpace(line))
			if m != nil && !slices.Contains([]string{"BIGINT", "TEXT", "BYTEA"}, strings.TrimRight(m[2], ",")) {
				bad("column %s of %s is %s: BIGINT, TEXT and BYTEA only", m[1], t[1], m[2])
			}
		}
	}
	return found
}

func TestSQL(t *testing.T) {
	report(t, checkSQL(load(t).code))
}

func TestMigrations(t *testing.T) {
	last := map[string]int{}
	n := 0
	for _, file := range load(t).files {
		dir := path.Dir(file)
		if path.Base(dir) != "migrations" {
			continue
		}
		n++
		m := migration.FindStringSubmatch(path.Base(file))
		if m == nil {
			t.Errorf("%s: name it NNNN_what.sql", file)
			continue
		}
		number, err := strconv.Atoi(m[1])
		if err != nil || number != last[dir]+1 {
			t.Errorf("%s: the number after %04d must be %04d: %v", file, last[dir], last[dir]+1, err)
		}
		last[dir] = number
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		report(t, checkMigration(path.Base(path.Dir(dir)), file, string(text)))
	}
	if n == 0 {
		t.Error("no migrations found")
	}
}

func TestSQLRulesFind(t *testing.T) {
	mustFind(t, checkSQL(sample(t, "internal/a/a.go", `package a
const (
	ok      = "SELECT a FROM t WHERE a = $1 OR b = $2 OR c = $1"
	okPart  = " WHERE x = $3 AND y = $4"
	script  = "echo $2 $1"
	swapped = "UPDATE t SET a = $2 WHERE b = $1"
	gap     = "INSERT INTO t (a, b) VALUES ($1, $3)"
	sum     = "SELECT a FROM t WHERE a = $1" +
		" AND b = $3"
	mixed   = "SELECT " + columns + " FROM t WHERE a = $2 AND b = $4"
	engine  = "SELECT a::text FROM t"
	ago     = "SELECT a FROM t WHERE at < NOW()"
)
`)), "a.go:6: $2", "a.go:7: $3", "a.go:8: $3", "a.go:10: $4", `a.go:11: "a::text"`, `a.go:12: "NOW("`)

	good := "-- +goose Up\nCREATE TABLE a_x (\n    id BIGINT PRIMARY KEY,\n    t TEXT NOT NULL, -- JSON\n    PRIMARY KEY (id)\n);\nCREATE INDEX a_x_t ON a_x (t);\n"
	mustFind(t, checkMigration("a", "0001_a.sql", good))
	mustFind(t, checkMigration("a", "0001_a.sql", "CREATE TABLE b (\n    id BIGINT REFERENCES c(id),\n    ok BOOLEAN\n);\nCREATE TABLE a_y (x TEXT);\nCREATE INDEX i ON a_y (x);\n"),
		"must begin with", "table b must be a", "index i on a_y", "a foreign key into c", "BOOLEAN is outside", "2 tables, but 1", "column ok of b is BOOLEAN")
}
