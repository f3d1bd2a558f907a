package wire

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"drover/internal/fault"
)

func sample() Index {
	d := strings.Repeat("ab", 32)
	return Index{Head: [Kinds][]byte{{1}, {2, 3}, {}}, Tail: [Kinds][]byte{{4}, {}, {5}}, Chunks: []Chunk{{d, [Kinds]int64{10, 20, 30}, 7}, {strings.Repeat("0", 64), [Kinds]int64{0, 1, 2}, 0}}}
}

func TestIndex(t *testing.T) {
	x := sample()
	got, err := ParseIndex(x.Text())
	if err != nil || !reflect.DeepEqual(got, x) {
		t.Errorf("%+v, %v", got, err)
	}
	if c := x.Chunks[0]; c.Offset(0) != 0 || c.Offset(2) != 30 || c.Bytes() != 60 {
		t.Errorf("offsets of %+v", c)
	}
	good := string(x.Text())
	for name, bad := range map[string]string{
		"nothing": "", "another version": strings.Replace(good, "chunks 1", "chunks 2", 1), "cut off": good[:len(good)-1], "heads missing": strings.Join(strings.SplitAfter(good, "\n")[:3], ""),
		"kinds in another order": strings.Replace(good, "primary", "other", 1), "no hex": strings.Replace(good, "01 04", "zz 04", 1), "a digest in capitals": strings.Replace(good, "ab", "AB", 1),
		"a negative size": strings.Replace(good, " 10 ", " -1 ", 1), "a sign": strings.Replace(good, " 10 ", " +10 ", 1), "a size over the bound": strings.Replace(good, " 10 ", " 999999999999 ", 1),
		"a word more": strings.Replace(good, " 7\n", " 7 7\n", 1), "a path for a digest": strings.Replace(good, strings.Repeat("ab", 32), "../../"+strings.Repeat("a", 58), 1),
	} {
		if _, err := ParseIndex([]byte(bad)); fault.Code(err) != "chunk_index" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is read is what would be written.
func FuzzIndex(f *testing.F) {
	f.Add(sample().Text())
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := ParseIndex(b)
		if err != nil {
			return
		}
		if y, err := ParseIndex(x.Text()); err != nil || !bytes.Equal(y.Text(), x.Text()) {
			t.Errorf("%v", err)
		}
	})
}
