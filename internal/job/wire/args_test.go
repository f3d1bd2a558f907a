package wire_test

import (
	"encoding/json"
	"testing"

	"drover/internal/job/wire"
)

func TestWords(t *testing.T) {
	for _, c := range []struct{ word, want string }{
		{"1", "1"}, {"-7", "-7"}, {"1.5", "1.5"}, {"0644", `"0644"`}, {"1e3", `"1e3"`}, {"True", "true"}, {"false", "false"}, {"None", "null"}, {"yes", `"yes"`}, {"10:30", `"10:30"`}, {"[a, 1]", `["a",1]`}, {"{x: [1]}", `{"x":[1]}`},
		{`"12"`, `"12"`}, {"", `""`}, {"a b # c", `"a b # c"`}, {"[unclosed", `"[unclosed"`}, {"99999999999999999999", `"99999999999999999999"`}, {"http://x/?a=b", `"http://x/?a=b"`},
	} {
		args, _ := wire.Words([]string{c.word})
		if b, err := json.Marshal(args[0]); err != nil || string(b) != c.want {
			t.Errorf("%q: %s, want %s, %v", c.word, b, c.want, err)
		}
	}
	args, named := wire.Words([]string{"a", "pkgs=[x, y]", "=b", "1x=3", "v=a=b"})
	if b, err := json.Marshal([]any{args, named}); err != nil || string(b) != `[["a","=b","1x=3"],{"pkgs":["x","y"],"v":"a=b"}]` {
		t.Errorf("%s, %v", b, err)
	}
}

func FuzzWords(f *testing.F) {
	f.Add("a=[1, {b: 2}]")
	f.Fuzz(func(t *testing.T, s string) {
		args, named := wire.Words([]string{s})
		if _, err := json.Marshal([]any{args, named}); err != nil {
			t.Fatal(err)
		}
	})
}
