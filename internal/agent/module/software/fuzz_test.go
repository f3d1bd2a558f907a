package software

import (
	"strings"
	"testing"
)

// FuzzFiles feeds every parser of files that people write and of what programs print.
func FuzzFiles(f *testing.F) {
	for _, s := range []string{"[a]\nname=x\nbaseurl=1\n  2\n# c\n\n[b]\n", "[a]\nname=1\nname=2\n 3\n", "# Added lock\nbash-0:5.2-1.el10.*\n!x-1-1\n", "version = \"1.0\"\n\n[[packages]]\nname = \"a\"\n[[packages.conditions]]\nkey = \"evr\"\ncomparator = \"=\"\nvalue = \"1-1\"\n",
		"manual\n/usr/bin/x\nf\n/usr/f\n\n/usr/bin/a\n@fam@60 svc\n/usr/fa\n\n", "Group: A\n Description: b\n Mandatory Packages:\n   c\n", "a|0|1|2|noarch|r\n", "Available Groups:\n   x (y)\n",
		"7f00-7f01 r-xp 00000000 08:01 123 /usr/lib64/libssl.so.3 (deleted)\n", "0::/system.slice/a.service\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		// A file that is only read is written as it was, but for a last line without an end.
		ini := parseINI(s)
		if got := ini.String(); strings.TrimSuffix(got, "\n") != strings.TrimSuffix(s, "\n") {
			t.Errorf("%q is written as %q", s, got)
		}
		for _, sec := range ini.sections {
			sec.dict()
			sec.set("name", "one\ntwo")
			if v := sec.values()["name"]; v != "one\ntwo" {
				t.Errorf("%q: the name is %q in %q", s, v, sec.lines)
			}
			sec.remove("name")
			if _, ok := sec.values()["name"]; ok {
				t.Errorf("%q: the name is still there in %q", s, sec.lines)
			}
		}
		for _, parse := range []func(string) []block{parseList, parseTOML} {
			var b strings.Builder
			for _, p := range parse(s) {
				b.WriteString(p.text)
			}
			if b.String() != s {
				t.Errorf("%q is put together as %q", s, b.String())
			}
		}
		if k, ok := parseLock(s); ok && k.evr != "" && !strings.Contains(s, "\n") {
			if again, ok := parseLock(k.full()); !ok || again != k {
				t.Errorf("%q: %+v is read as %+v from %q", s, k, again, k.full())
			}
		}
		if a, ok := parseAlternative("x", s); ok {
			a.describe("")
		}
		if g, ok := parseGroup(s); ok {
			g.dict()
		}
		parseGroups(s)
		parseTable(s)
		parseQuery(s)
		deletedCode(s)
		unitOf(s)
		if r, err := requests(s, nil); err == nil {
			for _, x := range r {
				if strings.HasPrefix(x.spec(false), "-") {
					t.Errorf("%q would be an option", x.spec(false))
				}
				x.matches(s, true)
			}
		}
		compareVersions(s, "1-1", true)
	})
}
