package teststream

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"drover/internal/rpm"
)

func TestParseRelations(t *testing.T) {
	one := func(name, op, ver string) []clause { return []clause{{{name, op, ver}}} }
	for in, want := range map[string][]clause{
		"":                                 nil,
		" , ,":                             nil,
		"a":                                one("a", "", ""),
		"  a  ":                            one("a", "", ""),
		"libstdc++6":                       one("libstdc++6", "", ""),
		"a (>= 1.0)":                       one("a", ">=", "1.0"),
		"a (>=1.0)":                        one("a", ">=", "1.0"),
		"a(>=1.0)":                         one("a", ">=", "1.0"),
		"a ( >=  1.0 )":                    one("a", ">=", "1.0"),
		"a (= 1:2.0-3+b1)":                 one("a", "=", "1:2.0-3+b1"),
		"a (<<2.0~rc1-1~)":                 one("a", "<<", "2.0~rc1-1~"),
		"a (>>1)":                          one("a", ">>", "1"),
		"a (< 1)":                          one("a", "<=", "1"), // as dpkg reads what old packages write
		"a (> 1)":                          one("a", ">=", "1"),
		"a (= 1.2A)":                       one("a", "=", "1.2A"),
		"python3:any":                      one("python3", "", ""),
		"python3:any (>= 3.11~)":           one("python3", ">=", "3.11~"),
		"perl:any(>=5)":                    one("perl", ">=", "5"),
		"a [amd64]":                        one("a", "", ""),
		"a [!arm64 !i386]":                 one("a", "", ""),
		"a (>= 1) [amd64 i386] <!nocheck>": one("a", ">=", "1"),
		"a <!stage1 !nocheck> <cross>":     one("a", "", ""),
		"a<!nocheck>":                      one("a", "", ""),
		"a[linux-any]":                     one("a", "", ""),
		"a | b":                            {{{"a", "", ""}, {"b", "", ""}}},
		"a|b (= 1)|c:any":                  {{{"a", "", ""}, {"b", "=", "1"}, {"c", "", ""}}},
		"a (>= 1),\n b\n | c,":             {{{"a", ">=", "1"}}, {{"b", "", ""}, {"c", "", ""}}},
		"a (>= 1":                          one("a", ">=", "1"),
	} {
		if diff := cmp.Diff(want, parseRelations(in), cmp.AllowUnexported(relation{})); diff != "" {
			t.Errorf("%q: %s", in, diff)
		}
	}
}

func TestSplitVersion(t *testing.T) {
	for in, want := range map[string]string{
		"1.0":                    "1.0-0 0",
		"1.0-1":                  "1.0-1 0",
		"2:1.0-1+b2":             "1.0-1+b2 2",
		"12-20220113-2":          "12^20220113-2 0",
		"0~20171227-0.3+deb12u1": "0~20171227-0.3+deb12u1 0",
		"1:1.2.13.dfsg-1":        "1.2.13.dfsg-1 1",
		"4294967296:1":           "4294967296:1-0 0", // no epoch, and refused by rpm later
	} {
		s := &spec{}
		var has bool
		s.epoch, s.version, s.release, has = splitVersion(in)
		got := s.version + "-" + s.release + " " + string(rune('0'+s.epoch))
		if got != want || has != strings.Contains(in, "-") {
			t.Errorf("%s: %s, want %s; revision %v", in, got, want, has)
		}
	}
}

func TestDepText(t *testing.T) {
	for in, want := range map[string]string{
		"a":                                      "a",
		"a (>= 1:2-3)":                           "a >= 1:2-3",
		"a (>= 1.2)":                             "a >= 1.2",
		"a (= 1.2-3)":                            "a = 1.2-3",
		"a (>> 1.2)":                             "a >= 1.2", // any 1.2-R is newer than 1.2 in Debian and equal in RPM
		"a (>> 1.2-3)":                           "a > 1.2-3",
		"a (<< 1.2)":                             "a < 1.2",
		"a (<< 1.2-3~)":                          "a < 1.2-3~",
		"a (<< 1.2-3+b+~)":                       "",
		"a (<< 1:2.39.5-.)":                      "",
		"a (<< 12-2021-2)":                       "a < 12^2021-2",
		"a | b (>= 1)":                           "(a or b >= 1)",
		"a | dpkg":                               "", // dpkg is not made: the clause counts as met
		"debconf (>= 1) | cdebconf":              "",
		"me | b":                                 "", // met by me
		"a (<< 1-.) | b":                         "",
		"initramfs-tools | linux-initramfs-tool": "",
	} {
		if got := depText(parseRelations(in)[0], "me"); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

// Debian itself says how its versions are ordered; RPM must order what they are mapped to
// in the same way.
func TestVersionsKeepTheirOrder(t *testing.T) {
	versions := strings.Fields(`0.9 1.0~rc1-1 1.0~rc1-1+b1 1.0-0.1 1.0-1~deb12u1 1.0-1~deb12u1+b1 1.0-1 1.0-1+b1 1.0-1+b13 1.0-1+deb12u1 1.0-1+deb12u2 1.0-1.1 1.0-1.1+b1 1.0-1.2
		1.0-2~bpo12+1 1.0-2 1.0-10 1.0+dfsg-1 1.0+dfsg1-1 1.0+git20200101-1 1.0.1-1 1.0a-1 1.0b-1 1.1-1 1.10-1 12-20211113-2 12-20220113-1 12.2.0-14 12.2.0-14+deb12u1
		1:0.5-1 1:0.5-1+b1 2:0.1-1 9.2p1-2+deb12u3 9.2p2-1 590-2 590-2.1~deb12u2 590-2.1`)
	var ask strings.Builder
	for _, a := range versions {
		for _, b := range versions {
			ask.WriteString("dpkg --compare-versions " + a + " lt " + b + "; echo $?\n")
		}
	}
	c := exec.CommandContext(t.Context(), "sh")
	c.Stdin = strings.NewReader(ask.String())
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	said := strings.Fields(string(out))
	for i, a := range versions {
		for j, b := range versions {
			if older := rpm.CompareEVR(evr(a), evr(b)) < 0; older != (said[i*len(versions)+j] == "0") {
				t.Errorf("%s < %s is %v in RPM: %s, %s", a, b, older, evr(a), evr(b))
			}
		}
	}
}
