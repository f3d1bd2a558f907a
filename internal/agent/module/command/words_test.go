package command

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestWords(t *testing.T) {
	for in, want := range map[string][]string{
		"":                       nil,
		"  a  b\tc\n":            {"a", "b", "c"},
		`a "b  c" 'd "e"'`:       {"a", "b  c", `d "e"`},
		`a\ b \"c "\$x \" \\"`:   {"a b", `"c`, `\$x " \`},
		`'' ""`:                  {"", ""},
		`--x='a b'c`:             {"--x=a bc"},
		`$HOME ; rm | x > y # z`: {"$HOME", ";", "rm", "|", "x", ">", "y", "#", "z"},
	} {
		got, err := Words(in)
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("%q: %v %s", in, err, d)
		}
	}
	for _, in := range []string{`'a`, `"a`, `a\`} {
		if w, err := Words(in); err == nil {
			t.Errorf("%q: %q", in, w)
		}
	}
}

// What Quote writes is read back by Words, and by a real shell.
func TestQuote(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(rapid.StringMatching(`[a-z '"\\$&;*\n~#-]{0,12}`), 1, 5).Draw(t, "words")
		var quoted []string
		for _, w := range words {
			quoted = append(quoted, Quote(w))
		}
		got, err := Words(strings.Join(quoted, " "))
		if d := cmp.Diff(words, got); d != "" || err != nil {
			t.Fatal(err, d)
		}
	})
	hard := []string{"a'b", `"`, "$(id)", "`id`", "", "-n", "a\nb", "*", "~", `\`}
	var quoted []string
	for _, w := range hard {
		quoted = append(quoted, Quote(w))
	}
	r, err := Run(t.Context(), Spec{Line: `printf '%s|' ` + strings.Join(quoted, " ")})
	if err != nil || string(r.Out) != strings.Join(hard, "|")+"|" {
		t.Fatalf("%v %q", err, r.Out)
	}
}

func FuzzWords(f *testing.F) {
	f.Add(`a "b c" 'd' e\ f`)
	f.Fuzz(func(t *testing.T, s string) {
		words, err := Words(s)
		if err != nil {
			return
		}
		n := 0
		for _, w := range words {
			n += len([]rune(w))
		}
		if n > len([]rune(s)) {
			t.Fatalf("%q became longer: %q", s, words)
		}
	})
}
