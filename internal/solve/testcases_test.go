package solve

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drover/internal/rpm"
)

// notOurs is the parts of libsolv's testcases whose expected result is not an answer to what
// this package is asked: whether one package can be installed on an empty system. A part is
// FILE#N, counted by nextjob from 1; FILE alone is all of it. The packages of all of them are
// asked of libsolv one by one all the same, but for those said to be of no use.
var notOurs = map[string]string{
	"allowuninstall/conflict.t":                                  "what may be removed to update what is installed",
	"allowuninstall/forcebest.t":                                 "what may be removed to update what is installed",
	"alternative/update.t":                                       "which of several updates of what is installed is taken",
	"alternative/yumobs.t":                                       "which of several updates of what is installed is taken",
	"blacklist/ptf.t":                                            "what only a direct request may install over what is installed",
	"blacklist/retracted.t":                                      "what only a direct request may install over what is installed",
	"choicerules/choice1.t":                                      "which provider is taken, given what is installed",
	"choicerules/choice1b.t":                                     "which provider is taken, given what is installed",
	"choicerules/choice2.t":                                      "which provider is taken, given what is installed",
	"choicerules/choice2b.t":                                     "which provider is taken, given what is installed",
	"choicerules/choice3.t":                                      "which provider is taken, given what is installed",
	"choicerules/choice3b.t":                                     "which provider is taken, given what is installed",
	"choicerules/choice4.t":                                      "which provider is taken, given what is installed",
	"choicerules/choice5.t":                                      "which provider is taken, given what is installed",
	"choicerules/choice6.t":                                      "which provider is taken, given what is installed",
	"choicerules/choice7.t":                                      "which provider is taken, given what is installed",
	"cleandeps/cleandeps_dup.t":                                  "what else goes with what is removed",
	"cleandeps/cleandeps_in.t":                                   "what else goes with what is removed",
	"cleandeps/cleandeps_up.t":                                   "what else goes with what is removed",
	"cleandeps/cleandeps_up3.t":                                  "what else goes with what is removed",
	"cleandeps/mistake.t":                                        "what else goes with what is removed",
	"distupgrade/dup_allowuninstall.t":                           "what becomes of installed packages in an upgrade of the distribution",
	"distupgrade/dup_multiversion1.t":                            "what becomes of installed packages in an upgrade of the distribution",
	"distupgrade/dup_multiversion2.t":                            "what becomes of installed packages in an upgrade of the distribution",
	"distupgrade/dup_multiversion3.t":                            "what becomes of installed packages in an upgrade of the distribution",
	"distupgrade/dup_noarchchange.t":                             "what becomes of installed packages in an upgrade of the distribution",
	"distupgrade/dup_orphan1.t":                                  "what becomes of installed packages in an upgrade of the distribution",
	"distupgrade/dup_orphan2.t":                                  "what becomes of installed packages in an upgrade of the distribution",
	"distupgrade/dup_orphan3.t":                                  "what becomes of installed packages in an upgrade of the distribution",
	"excludefromweak/excludefromweak-obsoletes.t":                "what obsoletes what is installed",
	"focus/best.t":                                               "whether installed packages rather stay or become newer",
	"focus/installed.t":                                          "whether installed packages rather stay or become newer",
	"focus/new1.t":                                               "whether installed packages rather stay or become newer",
	"focus/new2.t":                                               "whether installed packages rather stay or become newer",
	"focus/normal.t":                                             "whether installed packages rather stay or become newer",
	"forcebest/forcebest_dup.t":                                  "whether an update of what is installed must be the best one",
	"forcebest/forcebest_in.t":                                   "whether an update of what is installed must be the best one",
	"forcebest/forcebest_multiarch_implicitobsoleteusescolors.t": "whether an update of what is installed must be the best one",
	"forcebest/forcebest_up.t":                                   "whether an update of what is installed must be the best one",
	"lock/best.t":                                                "installed packages that must not change",
	"lock/dup.t":                                                 "installed packages that must not change",
	"lockstep/infarch_install_best.t":                            "installed packages of two architectures that move together",
	"lockstep/lockstep_update.t":                                 "installed packages of two architectures that move together",
	"multiversion/multiversion.t":                                "several versions beside those installed",
	"multiversion/update.t":                                      "several versions beside those installed",
	"multiversion/update2.t":                                     "several versions beside those installed",
	"namespace/namespaceprovides.t":                              "what the system itself claims, its language",
	"sat/assert.t":                                               "installed packages that are wanted and unwanted at once",
	"sat/mm-test.t":                                              "installed packages that are wanted and unwanted at once",
	"sat/reuse.t":                                                "installed packages that are wanted and unwanted at once",
	"selection/debian.t":                                         "finds packages by what a user types",
	"selection/selection_canon_rpm.t":                            "finds packages by what a user types",
	"selection/selection_filelist.t":                             "finds packages by what a user types",
	"selection/selection_matchdeps.t":                            "finds packages by what a user types",
	"selection/selection_matchsolvable.t":                        "finds packages by what a user types",
	"selection/selection_name.t":                                 "finds packages by what a user types",
	"selection/selection_provides.t":                             "finds packages by what a user types",
	"strongrecommends/break.t":                                   "weak dependencies against what is installed",
	"strongrecommends/disfavored.t":                              "weak dependencies against what is installed",
	"strongrecommends/strongr.t":                                 "weak dependencies against what is installed",
	"suse/susedep.t":                                             "reads dependencies in a notation of SUSE",
	"targeted/targeted_color.t":                                  "which installed package a request for an update means",
	"targeted/targeted_dup.t":                                    "which installed package a request for an update means",
	"targeted/targeted_up.t":                                     "which installed package a request for an update means",
	"testcase/nested.t":                                          "reads dependencies in the notation of testcases",
	"testcase/str2dep.t":                                         "reads dependencies in the notation of testcases",
	"whatprovideswithdisabled/dup.t":                             "updates of what is installed while others are disabled",
	"whatprovideswithdisabled/dup2.t":                            "updates of what is installed while others are disabled",
	"whatprovideswithdisabled/forcebest_in.t":                    "updates of what is installed while others are disabled",
	"whatprovideswithdisabled/forcebest_up.t":                    "updates of what is installed while others are disabled",
	"yumobs/split.t":                                             "which package replaces one that is installed and obsoleted",
	"yumobs/split2.t":                                            "which package replaces one that is installed and obsoleted",
	"strictrepoprio/strictrepoprio.t#1":                          "repositories of different priority: what another one has of a name is as if it were not there",
}

// part is what stands between two nextjobs of a testcase.
type part struct {
	name  string
	repos map[string][]Package // by repository
	flags string               // of pool and solver
	jobs  []string
	off   map[string]bool // disabled packages
	want  []string        // lines of the result
}

// richOf writes a testcase's dependency as rpm does.
func richOf(s string) rpm.Dep {
	if !strings.ContainsAny(s, "&|") && !strings.Contains(s, "<I") && !strings.Contains(s, "<U") && !strings.Contains(s, "<E") {
		return dep(s)
	}
	r := strings.NewReplacer(" & ", " and ", " | ", " or ", "<IF>", "if", "<UNLESS>", "unless", "<ELSE>", "else")
	return rpm.Dep{Name: "(" + r.Replace(s) + ")"}
}

// tags reads packages of the format testtags.
func tags(t testing.TB, lines []string) (out []Package) {
	t.Helper()
	for _, l := range lines {
		tag, what, _ := strings.Cut(strings.TrimPrefix(l, "="), ": ")
		if tag == "Pkg" {
			f := append(strings.Fields(what), "noarch")
			p := Package{NEVRA: rpm.NEVRA{Name: f[0], Release: f[2], Arch: f[3]}, Source: f[0]}
			p.Epoch, p.Version, _ = rpm.SplitEVR(f[1])
			p.Provides = []rpm.Dep{{Name: p.Name, Flags: rpm.SenseEqual, EVR: p.EVR()}}
			out = append(out, p)
			continue
		}
		if len(out) == 0 {
			continue
		}
		p := &out[len(out)-1]
		switch tag {
		case "Prv":
			p.Provides = append(p.Provides, richOf(what))
		case "Req":
			p.Requires = append(p.Requires, richOf(what))
		case "Con":
			p.Conflicts = append(p.Conflicts, richOf(what))
		case "Obs":
			p.Obsoletes = append(p.Obsoletes, richOf(what))
		case "Fls":
			p.Files = append(p.Files, what)
		case "Rec", "Sug", "Sup", "Enh", "Vnd", "Ver": // keep no package out
		default:
			if l != "" && l[0] == '=' {
				t.Fatalf("a package with %q", l)
			}
		}
	}
	return out
}

// parts reads a testcase.
func parts(t testing.TB, root, path string) (out []part) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	repos := map[string][]Package{}
	start := func() part {
		return part{name: fmt.Sprintf("%s#%d", path, len(out)+1), repos: repos, off: map[string]bool{}}
	}
	p := start()
	lines := strings.Split(string(b), "\n")
	for i := 0; i < len(lines); i++ {
		f := strings.Fields(lines[i])
		if len(f) == 0 || strings.HasPrefix(lines[i], "#") {
			continue
		}
		var inline []string
		for i+1 < len(lines) && strings.HasPrefix(lines[i+1], "#>") {
			i++
			inline = append(inline, strings.TrimPrefix(lines[i], "#>"))
		}
		switch f[0] {
		case "repo":
			if f[len(f)-1] != "<inline>" && f[3] == "testtags" {
				b, err := os.ReadFile(filepath.Join(root, filepath.Dir(path), f[4]))
				if err != nil {
					t.Fatal(err)
				}
				inline = strings.Split(string(b), "\n")
			}
			repos[f[1]] = append(repos[f[1]], tags(t, inline)...)
		case "solverflags", "poolflags":
			p.flags += " " + strings.Join(f[1:], " ")
		case "job":
			p.jobs = append(p.jobs, strings.Join(f[1:], " "))
		case "disable":
			p.off[f[len(f)-1]] = true
		case "nextjob":
			out = append(out, p)
			off := p.off
			p = start()
			p.off = off
		case "result":
			p.want = append(p.want, inline...)
			if strings.Contains(f[1], "rules") {
				p.want = append(p.want, "rules")
			}
		case "evrcmp":
			p.jobs = append(p.jobs, lines[i])
		}
	}
	return append(out, p)
}

// TestTestcases holds the package against libsolv's own testcases: what they expect where they
// ask what we do, and libsolv's answer for each of their packages everywhere.
func TestTestcases(t *testing.T) {
	const root = "../../../shared/data/libsolv-testcases"
	files, _ := filepath.Glob(root + "/*/*.t")
	if len(files) < 100 {
		t.Fatalf("the shared test data is not at ../shared/data beside the project: %d testcases", len(files))
	}
	o := newOracle(t)
	used := map[string]bool{}
	expected, asked := 0, 0
	for _, f := range files {
		rel, _ := filepath.Rel(root, f)
		for i, p := range parts(t, root, rel) {
			if i == 0 {
				asked += askAll(t, o, p)
			}
			known := ""
			for _, k := range []string{p.name, rel} {
				if notOurs[k] != "" {
					known = k
				}
			}
			why := p.compare(t)
			switch {
			case why == "" && known != "":
				t.Errorf("%s is compared: take it off the table", p.name)
			case why == "":
				expected++
			case known == "":
				t.Errorf("%s is neither compared nor in the table: %s", p.name, why)
			default:
				used[known] = true
			}
		}
	}
	for k := range notOurs {
		if !used[k] {
			t.Errorf("the table names %s, which is no testcase", k)
		}
	}
	t.Logf("%d files, %d parts with their expected result, %d packages asked of libsolv", len(files), expected, asked)
}

// all is the packages of all repositories, in the order of their names, and their universe.
func (p part) all(t testing.TB, pool *Pool) (all []Package, ids []uint32, u *Universe) {
	var names []string
	for n := range p.repos {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		for _, q := range p.repos[n] {
			if !p.off[q.NEVRA.String()+"@"+n] {
				all = append(all, q)
			}
		}
	}
	bs := blocks(t, pool, all)
	for _, b := range bs {
		ids = append(ids, b.pkgs...)
	}
	return all, ids, pool.Universe(bs...)
}

// askAll compares each package of a testcase with libsolv.
func askAll(t *testing.T, o *oracle, p part) int {
	pool := NewPool()
	all, ids, u := p.all(t, pool)
	k := u.known(nil)
	o.reset()
	there := map[int]bool{}
	var ask []int
	for i := range all {
		o.add(&all[i])
		there[i] = true
		// A repository is of one architecture; which others a host takes is not ours.
		if slices.Contains([]string{"noarch", "x86_64", "i686", "i586", "i386"}, all[i].Arch) {
			ask = append(ask, i)
		}
	}
	o.be(there)
	for j, want := range o.ask(ask) {
		i := ask[j]
		if got := k.installable(ids[i]); got != want {
			t.Errorf("%s: %s: libsolv says installable: %v, we: %v", p.name, show(&all[i]), want, got)
		}
	}
	return len(ask)
}

// compare holds the expected result against ours, or says why it cannot.
func (p part) compare(t *testing.T) string {
	pool := NewPool()
	all, ids, u := p.all(t, pool)
	byName := map[string]uint32{}
	for i := range all {
		byName[all[i].NEVRA.String()] = ids[i]
	}
	if slices.Contains(p.want, "rules") && len(p.repos["system"]) == 0 {
		return p.compareRules(t, u, byName)
	}
	if strings.Contains(p.flags, "strictrepopriority") && strings.HasPrefix(p.jobs[0], "install name") {
		return "repositories have priorities"
	}
	if strings.HasPrefix(p.name, "evrcmp/caret") {
		for _, l := range p.want { // job noop provides A < B
			f := strings.Fields(l)
			if c := rpm.CompareEVR(f[3], f[5]); "<=>"[c+1:c+2] != f[4] {
				t.Errorf("%s: libsolv expects %s, we say %d", p.name, l, c)
			}
		}
		return ""
	}
	if strings.HasPrefix(p.name, "evrcmp/testevr") {
		return p.compareErased(t, u, byName)
	}
	k := u.known(nil)
	problem := slices.ContainsFunc(p.want, func(l string) bool {
		return strings.HasPrefix(l, "problem") || strings.HasPrefix(l, "proof")
	})
	for n, l := range p.repos {
		if !strings.HasSuffix(strings.ToLower(n), "system") || len(l) == 0 {
			continue
		}
		// What is put on a system together with what is there can be put on an empty one.
		for _, l := range p.want {
			w := strings.Fields(l)
			if w[0] != "install" && w[0] != "upgrade" || problem || strings.Contains(strings.Join(p.jobs, " "), "multiversion") {
				continue
			}
			if id, ok := byName[strings.Split(w[len(w)-1], "@")[0]]; !ok || !k.installable(id) {
				t.Errorf("%s: libsolv expects %q, which we say cannot be", p.name, l)
			}
		}
		return "something is installed"
	}
	jobs := slices.DeleteFunc(slices.Clone(p.jobs), func(j string) bool {
		return strings.HasPrefix(j, "favor ") || strings.HasPrefix(j, "disfavor ") || strings.HasPrefix(j, "excludefromweak ") // among what is possible
	})
	if len(jobs) == 0 {
		return "nothing is asked"
	}
	var candidates []uint32
	question := made(t, "question-1-1.noarch")
	for _, j := range jobs {
		f := strings.Fields(j)
		if f[0] != "install" {
			return "job: " + j
		}
		if at := slices.IndexFunc(f, func(w string) bool { return w[0] == '[' }); at > 0 {
			f = f[:at]
		}
		switch f[1] {
		case "name", "provides":
			d := dep(strings.Join(f[2:], " "))
			question.Requires = append(question.Requires, d)
		case "pkg", "oneof":
			for _, w := range f[2:] {
				if id, ok := byName[strings.Split(w, "@")[0]]; ok {
					candidates = append(candidates, id)
				}
			}
		}
	}
	if len(question.Requires) > 0 {
		// To install what has a name is to install what requires it.
		bs := blocks(t, pool, append(all, question))
		u = pool.Universe(bs...)
		last := bs[len(bs)-1].pkgs
		candidates = append(candidates, last[len(last)-1])
		k = u.known(nil)
	}
	can := slices.ContainsFunc(candidates, k.installable)
	if len(candidates) > 0 && can == problem {
		t.Errorf("%s: libsolv expects a problem: %v, we can install it: %v", p.name, problem, can)
	}
	for _, l := range p.want {
		if w := strings.Fields(l); w[0] == "install" && !problem {
			if id, ok := byName[strings.Split(w[1], "@")[0]]; !ok || !k.installable(id) {
				t.Errorf("%s: libsolv expects %q, which we say cannot be", p.name, l)
			}
		}
	}
	return ""
}

// compareErased takes the packages that the job's package pushes out for those it excludes.
func (p part) compareErased(t *testing.T, u *Universe, byName map[string]uint32) string {
	var want, got []string
	for _, l := range p.want {
		if w := strings.Fields(l); w[0] == "erase" {
			want = append(want, strings.Split(w[1], "@")[0])
		}
	}
	id := byName[strings.Fields(p.jobs[0])[2]+"-1-1.noarch"]
	for _, o := range u.pool.pkgs[id].foes {
		got = append(got, u.pool.nevra(o).String())
	}
	slices.Sort(got)
	slices.Sort(want)
	if got = slices.Compact(got); !slices.Equal(got, want) {
		t.Errorf("%s: %s excludes\n%v\nlibsolv expects\n%v", p.name, p.jobs[0], got, want)
	}
	return ""
}

// compareRules tries each set of packages: it must be consistent for us where the expected
// rules, which are those of the job's package, allow it.
func (p part) compareRules(t *testing.T, u *Universe, byName map[string]uint32) string {
	type literal struct {
		id  uint32
		not bool
	}
	rules := map[string][]literal{}
	for _, l := range p.want {
		w := strings.Fields(l)
		if w[0] != "rule" || w[1] != "pkg" {
			continue
		}
		name, not := strings.CutPrefix(w[3], "-")
		id, ok := byName[strings.Split(name, "@")[0]]
		if !ok {
			t.Fatalf("%s: a rule about %s", p.name, name)
		}
		rules[w[2]] = append(rules[w[2]], literal{id, not})
	}
	job := byName[strings.Fields(p.jobs[0])[2]+"-1-1.x86_64"]
	n := u.pool.Len()
	v := &prover{Pool: u.pool, in: u.bits, proof: &proof{live: u.bits}}
	for set := range uint64(1) << n {
		if set&(1<<job) == 0 {
			continue
		}
		b := v.builder(bitset{set})
		allowed := true
		for _, r := range rules {
			allowed = allowed && slices.ContainsFunc(r, func(l literal) bool { return b.set.has(l.id) != l.not })
		}
		// Only the job's package has dependencies in these, so that it alone is asked.
		b.set.clear(job)
		ok := !b.excluded(job)
		b.set.set(job)
		for _, a := range u.pool.pkgs[job].reqs {
			ok = ok && b.some(a, b.set)
		}
		for _, c := range u.pool.rich[job] {
			ok = ok && b.holds(&c)
		}
		if ok != allowed {
			t.Errorf("%s: of %b the rules say %v, we %v", p.name, set, allowed, ok)
		}
	}
	return ""
}
