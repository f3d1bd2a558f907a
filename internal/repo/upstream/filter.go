package upstream

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"drover/internal/fault"
	"drover/internal/rpm"
	"drover/internal/rpm/modules"
)

// Filter is what of a repository's packages is wanted. The zero value wants all.
type Filter struct {
	Arches   []string `json:"arches,omitempty" doc:"of packages; noarch has to be named too" maxItems:"20"`
	Include  []string `json:"include,omitempty" doc:"globs over names, name.arch and NEVRAs; nothing else is taken" maxItems:"500"`
	Exclude  []string `json:"exclude,omitempty" doc:"globs; these are not taken" maxItems:"500"`
	Newest   int      `json:"newest,omitempty" doc:"only so many versions of each name and arch" minimum:"0" maximum:"1000"`
	NoDebug  bool     `json:"no_debug,omitempty" doc:"without debuginfo and debugsource packages"`
	NoSource bool     `json:"no_source,omitempty" doc:"without source packages"`
}

// Any tells whether something is filtered.
func (f Filter) Any() bool {
	return len(f.Arches)+len(f.Include)+len(f.Exclude)+f.Newest > 0 || f.NoDebug || f.NoSource
}

// Check refuses globs that are none.
func (f Filter) Check() error {
	for _, g := range slices.Concat(f.Arches, f.Include, f.Exclude) {
		if _, err := path.Match(g, "x"); err != nil || g == "" || len(g) > 200 {
			return fault.Invalid("mirror_filter", "%.100q is no pattern for packages", g).Fix("give a name, or a pattern with * ? and [], like 'kernel*'")
		}
	}
	if f.Newest < 0 || f.Newest > 1000 {
		return fault.Invalid("mirror_filter", "%d versions", f.Newest).Fix("give a number up to 1000, or 0 for all")
	}
	return nil
}

func matches(globs []string, p rpm.PrimaryPackage) bool {
	for _, g := range globs {
		for _, s := range []string{p.Name, p.Name + "." + p.Arch, p.NEVRA.String(), p.NVR() + "." + p.Arch} {
			if ok, _ := path.Match(g, s); ok {
				return true
			}
		}
	}
	return false
}

// Apply gives the packages that are wanted, in their order. Of modules the newest builds of each
// stream and context are kept whole: another stream is another thing, not an older version, and
// a build without some of its packages is none.
func (f Filter) Apply(ps []rpm.PrimaryPackage, docs modules.Docs) []rpm.PrimaryPackage {
	var out []rpm.PrimaryPackage
	for _, p := range ps {
		source := p.Arch == "src" || p.Arch == "nosrc"
		debug := strings.HasSuffix(p.Name, "-debuginfo") || strings.HasSuffix(p.Name, "-debugsource") || strings.Contains(p.Name, "-debuginfo-common")
		switch {
		case f.NoSource && source, f.NoDebug && debug:
		case len(f.Arches) > 0 && !slices.Contains(f.Arches, p.Arch) && (!source || f.NoSource):
		case len(f.Include) > 0 && !matches(f.Include, p), matches(f.Exclude, p):
		default:
			out = append(out, p)
		}
	}
	if f.Newest == 0 {
		return out
	}
	modular := newestBuilds(docs, f.Newest)
	keep := make([]bool, len(out))
	groups := map[string][]int{}
	for i, p := range out {
		var of bool
		if keep[i], of = modular[p.NEVRA]; !of {
			k := p.Name + "." + p.Arch
			groups[k] = append(groups[k], i)
		}
	}
	for _, is := range groups {
		slices.SortStableFunc(is, func(a, b int) int { return out[b].Compare(out[a].NEVRA) })
		versions := 0
		for n, i := range is {
			if n == 0 || out[i].Compare(out[is[n-1]].NEVRA) != 0 {
				versions++
			}
			keep[i] = versions <= f.Newest
		}
	}
	kept := out[:0]
	for i, p := range out {
		if keep[i] {
			kept = append(kept, p)
		}
	}
	return kept
}

// newestBuilds tells of every package of a module whether one of the n newest builds of a stream
// and context has it.
func newestBuilds(docs modules.Docs, n int) map[rpm.NEVRA]bool {
	builds := slices.DeleteFunc(slices.Clone(docs), func(d modules.Doc) bool { return d.Kind != modules.KindStream })
	slices.SortStableFunc(builds, func(a, b modules.Doc) int { return cmp.Compare(b.Version, a.Version) })
	seen := map[[4]string]int{}
	out := map[rpm.NEVRA]bool{}
	for _, d := range builds {
		of := [4]string{d.Name, d.Stream, d.Context, d.Arch}
		seen[of]++
		for _, a := range d.Artifacts {
			if p, err := rpm.ParseNEVRA(a); err == nil {
				out[p] = out[p] || seen[of] <= n
			}
		}
	}
	return out
}
