package teststream

import (
	"strconv"
	"strings"
)

// clause is one alternative list of a relation: "a (>= 1) | b".
type clause []relation

type relation struct {
	name string
	op   string // "", "<<", "<=", "=", ">=", ">>"
	ver  string
}

// parseRelations reads a relation field (deb-control(5), Policy 7.1). Qualifiers (":any"),
// architectures ("[amd64]") and profiles ("<!nocheck>") are left out: a binary package only
// has those that hold for it.
func parseRelations(s string) []clause {
	var out []clause
	for part := range strings.SplitSeq(s, ",") {
		var c clause
		for alt := range strings.SplitSeq(part, "|") {
			if r := parseRelation(strings.TrimSpace(alt)); r.name != "" {
				c = append(c, r)
			}
		}
		if len(c) > 0 {
			out = append(out, c)
		}
	}
	return out
}

func parseRelation(s string) relation {
	var r relation
	end := strings.IndexAny(s, ":([< \t\n")
	if end < 0 {
		return relation{name: s}
	}
	r.name = s[:end]
	_, inside, ok := strings.Cut(s[end:], "(")
	if !ok {
		return r
	}
	inside, _, _ = strings.Cut(inside, ")")
	inside = strings.TrimSpace(inside)
	r.ver = strings.TrimSpace(strings.TrimLeft(inside, "<>="))
	r.op = strings.TrimSpace(inside[:len(inside)-len(strings.TrimLeft(inside, "<>="))])
	switch r.op { // what old packages write
	case "<", ">":
		r.op += "="
	}
	return r
}

// splitVersion maps a Debian version to RPM's epoch, version and release, such that RPM
// orders them as Debian does. A '-' inside the upstream version becomes '^'; a version
// without revision gets the release 0. Nothing is put after the revision: "2+b1" is newer
// than "2", and "2+b1.el9" would be older than "2.el9".
func splitVersion(v string) (epoch uint32, version, release string, hasRelease bool) {
	if e, rest, ok := strings.Cut(v, ":"); ok {
		n, err := strconv.ParseUint(e, 10, 32)
		if err == nil {
			epoch, v = uint32(n), rest
		}
	}
	version, release = v, "0"
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		version, release, hasRelease = v[:i], v[i+1:], true
	}
	return epoch, strings.ReplaceAll(version, "-", "^"), release, hasRelease
}

// evr maps a Debian version in a relation: one without revision stays without release,
// which RPM takes for any.
func evr(v string) string {
	e, ver, rel, has := splitVersion(v)
	s := ver
	if has {
		s += "-" + rel
	}
	if e != 0 {
		s = strconv.FormatUint(uint64(e), 10) + ":" + s
	}
	return s
}

// depText maps one clause of the package self to an RPM dependency. It is "" when it cannot
// be said, is met by self, or names a package that is not made here.
func depText(c clause, self string) string {
	var alts []string
	for _, r := range c {
		text := r.text()
		if text == "" || r.name == self || dropped(r.name) {
			return ""
		}
		alts = append(alts, text)
	}
	if len(alts) == 1 {
		return alts[0]
	}
	return "(" + strings.Join(alts, " or ") + ")"
}

func (r relation) text() string {
	op := map[string]string{"<<": "<", "<=": "<=", "=": "=", ">=": ">=", ">>": ">"}[r.op]
	if op == "" {
		return r.name
	}
	_, _, _, has := splitVersion(r.ver)
	switch {
	case strings.HasSuffix(r.ver, "+~") || strings.HasSuffix(r.ver, "-."):
		// Bounds between a version and its binary rebuilds: RPM skips the separators that
		// make the difference.
		return ""
	case r.op == ">>" && !has:
		op = ">=" // RPM holds a version without release equal to each of its releases
	}
	return r.name + " " + op + " " + evr(r.ver)
}
