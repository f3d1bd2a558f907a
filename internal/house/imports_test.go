package house

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
)

// leaves know no domain; they may import each other.
var leaves = strings.Fields("fault durable db event blob fetch bus auth web cli rpm solve sandbox jinja yaml11 teststream")

// domains says which domains a domain may import directly. What those import is
// allowed as well. Up-calls go by event or by an interface that the caller declares.
var domains = map[string][]string{
	"distgit":   {},
	"build":     {"distgit"},
	"release":   {"build"},
	"sign":      {},
	"repo":      {"release"},
	"image":     {"build", "repo"},
	"pipeline":  {"build", "release", "image", "job"},
	"advisory":  {"repo"},
	"fleet":     {},
	"provision": {"fleet", "repo", "image"},
	"virt":      {"provision"},
	"job":       {"fleet"},
	"state":     {"fleet"},
	"rollout":   {"fleet", "repo", "job"},
	"prov":      {"advisory", "pipeline", "provision", "virt", "state", "rollout", "sign"},
}

// processes are the packages that run on other machines or as another user.
// They see wire types and leaves, and no part of the server's memory.
var processes = []string{"build/worker", "sign/signer", "agent", "site"}

// serverLeaves are leaves that a process must not contain, not even by way of others.
var serverLeaves = []string{"db", "event", "auth"}

// fences keep a library behind one room.
var fences = map[string][]string{
	"github.com/danielgtaylor/huma": {"web"},
	"modernc.org/sqlite":            {"db", "agent"}, // the agent reads rpm's database
	"github.com/jackc/pgx":          {"db"},
	"github.com/pressly/goose":      {"db"},
	// Only repo writes a package that is no build: the one that leads a host to a channel.
	"github.com/google/rpmpack":           {"repo"},
	"github.com/prometheus/client_golang": {"web"},
}

// below gives every domain that d may import, also by way of others.
func below(d string) map[string]bool {
	seen := map[string]bool{}
	for _, next := range domains[d] {
		seen[next] = true
		maps.Copy(seen, below(next))
	}
	return seen
}

// inHouse cuts "drover/internal/" off, or says that p is not ours.
func inHouse(p string) (string, bool) { return strings.CutPrefix(p, "drover/internal/") }

// isProcess tells whether p is the package of a process, or a part of one whose room it is.
func isProcess(p string) bool {
	return slices.Contains(processes, p) || slices.Contains(processes, room(p))
}

func room(p string) string { return strings.SplitN(p, "/", 2)[0] }

// mayImport says why the package from (below internal) must not import to, or "".
func mayImport(from, to string) string {
	fromRoom, toRoom := room(from), room(to)
	_, fromDomain := domains[fromRoom]
	_, toDomain := domains[toRoom]
	switch {
	case fromRoom == "app":
		return ""
	case toRoom == "app":
		return "only cmd imports app"
	case strings.HasSuffix(path.Base(to), "test"):
		return "test support belongs into tests"
	case isProcess(to) && (!isProcess(from) || fromRoom != toRoom):
		return "only app starts a process"
	case isProcess(from) || path.Base(from) == "wire":
		if toDomain && path.Base(to) != "wire" {
			return "processes and wire types import no server package"
		}
	case slices.Contains(leaves, fromRoom):
		if toDomain {
			return "leaves import no domain"
		}
	case fromRoom == "compat" || fromRoom == toRoom:
	case fromDomain && toDomain:
		if !below(fromRoom)[toRoom] {
			return fromRoom + " stands beside or below " + toRoom + ": use an event, or an interface of the caller's"
		}
	case !fromDomain:
		return "the room " + fromRoom + " is not in the table of internal/house"
	}
	if !toDomain && toRoom != fromRoom && !slices.Contains(leaves, toRoom) && !isProcess(to) {
		return "the room " + toRoom + " is not in the table of internal/house"
	}
	return ""
}

func checkImports(code []*goFile) (found []string) {
	direct := map[string]map[string]bool{} // package below internal to packages below internal
	for _, f := range code {
		if f.support() {
			continue
		}
		from, internal := inHouse("drover/" + f.dir())
		if internal && from != "house" && room(from) != "app" && domains[room(from)] == nil && !isProcess(from) &&
			!slices.Contains(leaves, room(from)) && room(from) != "compat" {
			found = append(found, fmt.Sprintf("%s: the room %s is not in the table of internal/house", f.path, room(from)))
		}
		for _, p := range f.imports() {
			for module, rooms := range fences {
				if strings.HasPrefix(p, module) && (!internal || !slices.Contains(rooms, room(from)) && room(from) != "teststream") {
					found = append(found, fmt.Sprintf("%s: imports %s, which stays behind %v", f.path, p, rooms))
				}
			}
			to, ours := inHouse(p)
			switch {
			case !ours:
			case strings.HasPrefix(f.dir(), "cmd/"):
				if room(to) != "app" {
					found = append(found, fmt.Sprintf("%s: imports %s: cmd imports only app", f.path, to))
				}
			case internal:
				if why := mayImport(from, to); why != "" {
					found = append(found, fmt.Sprintf("%s: imports %s: %s", f.path, to, why))
				}
				if direct[from] == nil {
					direct[from] = map[string]bool{}
				}
				direct[from][to] = true
			}
		}
	}
	for _, p := range processes {
		for q := range reach(direct, p) {
			if slices.Contains(serverLeaves, room(q)) {
				found = append(found, fmt.Sprintf("internal/%s: contains %s by way of what it imports: it must run without the server's database", p, q))
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func reach(direct map[string]map[string]bool, from string) map[string]bool {
	seen := map[string]bool{}
	for next := []string{from}; len(next) > 0; {
		p := next[0]
		next = next[1:]
		for q := range direct[p] {
			if !seen[q] {
				seen[q] = true
				next = append(next, q)
			}
		}
	}
	return seen
}

func TestImportTable(t *testing.T) {
	report(t, checkImports(load(t).code))
}

func TestImportTableFinds(t *testing.T) {
	file := func(pkg string, imports ...string) string {
		return "package " + path.Base(pkg) + "\nimport (\n\"" + strings.Join(imports, "\"\n\"") + "\"\n)\n"
	}
	ok := checkImports(sample(t,
		"cmd/drover/main.go", file("main", "drover/internal/app", "os"),
		"internal/app/a.go", file("app", "drover/internal/build/worker", "drover/internal/prov"),
		"internal/repo/a.go", file("repo", "drover/internal/distgit", "drover/internal/rpm", "drover/internal/build/wire"),
		"internal/prov/a.go", file("prov", "drover/internal/build", "drover/internal/sign"),
		"internal/build/a_test.go", file("build", "drover/internal/db/dbtest", "drover/internal/repo"),
		"internal/build/worker/a.go", file("worker", "drover/internal/build/wire", "drover/internal/sandbox"),
		"internal/build/wire/a.go", file("wire", "drover/internal/fault")))
	mustFind(t, ok)
	bad := checkImports(sample(t,
		"cmd/drover/main.go", file("main", "drover/internal/fault"),
		"internal/auth/a.go", file("auth", "drover/internal/db"),
		"internal/blob/a.go", file("blob", "drover/internal/build"),
		"internal/build/a.go", file("build", "drover/internal/repo", "drover/internal/build/worker", "drover/internal/db/dbtest"),
		"internal/build/wire/a.go", file("wire", "drover/internal/build"),
		"internal/build/worker/a.go", file("worker", "drover/internal/web", "drover/internal/distgit"),
		"internal/extra/a.go", file("extra", "os"),
		"internal/release/a.go", file("release", "drover/internal/app", "github.com/jackc/pgx/v5"),
		"internal/sign/a.go", file("sign", "drover/internal/distgit"),
		"internal/web/a.go", file("web", "drover/internal/auth")))
	mustFind(t, bad,
		"cmd/drover/main.go: imports fault",
		"internal/blob/a.go: imports build: leaves",
		"internal/build/a.go: imports build/worker: only app",
		"internal/build/a.go: imports db/dbtest: test support",
		"internal/build/a.go: imports repo: build stands",
		"internal/build/wire/a.go: imports build: processes",
		"internal/build/worker/a.go: imports distgit: processes",
		"internal/build/worker: contains auth",
		"internal/build/worker: contains db",
		"internal/extra/a.go: the room extra",
		"internal/release/a.go: imports app",
		"internal/release/a.go: imports github.com/jackc/pgx/v5",
		"internal/sign/a.go: imports distgit: sign stands")
}
