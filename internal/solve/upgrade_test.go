package solve

import (
	"fmt"
	"strings"
	"testing"
)

func TestUpgrades(t *testing.T) {
	p := NewPool()
	from := p.Universe(blocks(t, p, []Package{
		made(t, "up-1-1.x86_64"), made(t, "down-1:1-1.x86_64"), made(t, "down-1-1.x86_64"), made(t, "gone-1-1.noarch"),
		made(t, "renamed-1-1.noarch"), made(t, "kept-1-1.noarch"), made(t, "twin-2-1.x86_64"), made(t, "twin-2-1.i686"),
		made(t, "wider-1-1.x86_64"), made(t, "many-1-1.noarch"), made(t, "many-2-1.noarch"), made(t, "old-3-1.noarch"), made(t, "rebuilt-1-1.noarch"),
	})...)
	to := p.Universe(blocks(t, p, []Package{
		made(t, "up-1-2.x86_64"), made(t, "down-2-1.x86_64"), made(t, "new-1-1.noarch", "O: renamed < 2", "O: old < 3"), made(t, "kept-1-1.noarch"),
		made(t, "twin-2-1.x86_64"), made(t, "wider-1-1.noarch"), made(t, "many-2-1.noarch"), made(t, "rebuilt-1-1.noarch", "P: more"),
	})...)
	var got []string
	for _, s := range Upgrades(from, to) {
		got = append(got, fmt.Sprint(s.From, " > ", s.To))
	}
	want := []string{
		"down-1:1-1.x86_64 > down-2-1.x86_64", "gone-1-1.noarch > --.", "old-3-1.noarch > --.", "twin-2-1.i686 > --.",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := Upgrades(from, from); got != nil {
		t.Errorf("from itself to itself: %v", got)
	}
}
