package set

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// A source package has n binary packages; some have so many that they are cut themselves.
func membersOf(source string, version, n int) (out []Member) {
	for i := range n {
		name := fmt.Sprintf("%s-%d", source, i)
		p := Package{PkgID: fmt.Sprintf("%064x", fmt.Sprint(name, version)), NEVRA: fmt.Sprintf("%s-%d-1.noarch", name, version), File: fmt.Sprintf("%s-%d-1.noarch.rpm", name, version), Arch: "noarch", Source: source, Size: 10, Built: int64(version)}
		p.PkgID = p.PkgID[len(p.PkgID)-64:]
		out = append(out, Member{p, p.Location()})
	}
	return out
}

// Whatever the way, the same packages give the same chunks; and a change reads and makes only
// those chunks that it touches.
func TestEditIsTheSameAsMakingAnew(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := map[string][]Member{}
		var cs []Chunk
		for step := range rapid.IntRange(1, 12).Draw(t, "steps") {
			changes := map[string][]Member{}
			for range rapid.IntRange(0, 30).Draw(t, "changes") {
				source := fmt.Sprintf("s%03d", rapid.IntRange(0, 400).Draw(t, "source"))
				n := rapid.SampledFrom([]int{0, 0, 1, 1, 2, 5, 20, 90, 200, 300}).Draw(t, "packages")
				changes[source] = membersOf(source, step, n)
			}
			stored := map[string][]Member{}
			for i := range cs {
				stored[cs[i].ID] = cs[i].Members
				cs[i].Members = nil
			}
			read := 0
			next, err := Edit(cs, changes, func(c Chunk) ([]Member, error) { read++; return slices.Clone(stored[c.ID]), nil })
			if err != nil {
				t.Fatal(err)
			}
			for s, ms := range changes {
				now[s] = ms
			}
			var all []Member
			for _, ms := range now {
				all = append(all, ms...)
			}
			anew, err := Edit(nil, BySource(all), nil)
			if err != nil {
				t.Fatal(err)
			}
			if !Same(next, anew) {
				t.Fatalf("step %d: %d chunks, made anew %d", step, len(next), len(anew))
			}
			n := 0
			for i, c := range next {
				n += c.N
				if c.Members == nil {
					next[i].Members = stored[c.ID]
				}
			}
			if n != len(all) {
				t.Fatalf("%d packages, want %d", n, len(all))
			}
			if len(changes) == 0 && read > 0 {
				t.Fatalf("no change read %d chunks", read)
			}
			cs = next
		}
	})
}

// One changed source package among thousands touches few chunks, of about the aimed size.
func TestChunkSizes(t *testing.T) {
	var all []Member
	for i := range 6000 {
		all = append(all, membersOf(fmt.Sprintf("pkg%05d", i*7919%100000), 1, 1+i%9)...)
	}
	cs, err := Edit(nil, BySource(all), nil)
	if err != nil {
		t.Fatal(err)
	}
	if mean := len(all) / len(cs); mean < chunkAim*2/3 || mean > chunkAim*3/2 {
		t.Fatalf("%d packages in %d chunks", len(all), len(cs))
	}
	touched := 0
	for i := range 100 {
		source := fmt.Sprintf("pkg%05d", i*60*7919%100000)
		read := 0
		byID := map[string][]Member{}
		bare := slices.Clone(cs)
		for j := range bare {
			byID[bare[j].ID] = bare[j].Members
			bare[j].Members = nil
		}
		next, err := Edit(bare, map[string][]Member{source: membersOf(source, 2, 3)}, func(c Chunk) ([]Member, error) { read++; return slices.Clone(byID[c.ID]), nil })
		if err != nil || Same(next, cs) {
			t.Fatal("the change is not seen", err)
		}
		touched += read
	}
	if touched > 120 {
		t.Fatalf("100 changes read %d chunks", touched)
	}
}
