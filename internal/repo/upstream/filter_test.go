package upstream_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"drover/internal/repo/upstream"
	"drover/internal/rpm"
	"drover/internal/rpm/modules"
)

// Of packages the newest versions, of modules the newest builds of each stream and context, whole:
// also a package that is older than another stream's, and one that two builds share.
func TestNewest(t *testing.T) {
	stream := func(stream, context string, version int, artifacts ...string) string {
		return fmt.Sprintf("---\ndocument: modulemd\nversion: 2\ndata:\n  name: m\n  stream: %q\n  context: %s\n  version: %d\n  arch: x86_64\n  artifacts:\n    rpms:\n    - %s\n...\n", stream, context, version, strings.Join(artifacts, "\n    - "))
	}
	docs, err := modules.Read(strings.NewReader(
		stream("1", "aa", 1, "m-0:1.0-1.aa.x86_64", "m-libs-0:1.0-1.aa.x86_64") +
			stream("1", "aa", 2, "m-0:1.1-1.aa.x86_64", "m-libs-0:1.0-1.aa.x86_64") + // the library is the same
			stream("1", "bb", 2, "m-0:1.1-1.bb.x86_64", "m-libs-0:1.1-1.bb.x86_64") +
			stream("2", "aa", 10, "m-1:2.0-1.aa.x86_64", "m-libs-0:2.0-1.aa.x86_64") +
			stream("2", "aa", 9, "m-1:2.1-1.aa.x86_64", "m-libs-0:1.9-1.aa.x86_64"))) // it went back in version
	if err != nil {
		t.Fatal(err)
	}
	plain := []string{"k-1-1.x86_64", "k-2-1.x86_64", "k-2-1.src", "k-10-1.x86_64", "k-2-1.i686", "m-1:9-1.x86_64"}
	var ps []rpm.PrimaryPackage
	for _, d := range docs {
		plain = append(plain, d.Artifacts...)
	}
	slices.Sort(plain)
	for _, n := range slices.Compact(plain) {
		nevra, err := rpm.ParseNEVRA(n)
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, rpm.PrimaryPackage{NEVRA: nevra})
	}
	for n, want := range map[int]string{
		1: "k-10-1.x86_64 k-2-1.i686 k-2-1.src m-0:1.1-1.aa.x86_64 m-0:1.1-1.bb.x86_64 m-1:2.0-1.aa.x86_64 m-1:9-1.x86_64 m-libs-0:1.0-1.aa.x86_64 m-libs-0:1.1-1.bb.x86_64 m-libs-0:2.0-1.aa.x86_64",
		2: "k-10-1.x86_64 k-2-1.i686 k-2-1.src k-2-1.x86_64 m-0:1.0-1.aa.x86_64 m-0:1.1-1.aa.x86_64 m-0:1.1-1.bb.x86_64 m-1:2.0-1.aa.x86_64 m-1:2.1-1.aa.x86_64 m-1:9-1.x86_64 m-libs-0:1.0-1.aa.x86_64 m-libs-0:1.1-1.bb.x86_64 m-libs-0:1.9-1.aa.x86_64 m-libs-0:2.0-1.aa.x86_64",
	} {
		var wants []rpm.NEVRA
		for _, w := range strings.Fields(want) {
			p, err := rpm.ParseNEVRA(w)
			if err != nil {
				t.Fatal(err)
			}
			wants = append(wants, p)
		}
		var got []rpm.NEVRA
		for _, p := range (upstream.Filter{Newest: n}).Apply(slices.Clone(ps), docs) {
			got = append(got, p.NEVRA)
		}
		if !slices.Equal(got, wants) {
			t.Errorf("the newest %d:\n%v, want\n%v", n, got, wants)
		}
	}
}
