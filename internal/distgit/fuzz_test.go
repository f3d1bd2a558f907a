package distgit

import (
	"bytes"
	"strings"
	"testing"
)

func FuzzReadUpdates(f *testing.F) {
	id := strings.Repeat("a", 40)
	f.Add([]byte("0000"))
	f.Add([]byte("0067" + id + " " + id + " refs/heads/main\x00report-status\n0000"))
	f.Add([]byte("0003"))
	f.Add([]byte("ffff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		us, _, err := readUpdates(r)
		if err != nil {
			return
		}
		for _, u := range us {
			if !reObject.MatchString(u.old) || !reObject.MatchString(u.new) {
				t.Errorf("took %+v", u)
			}
		}
		// What was read is written and read again the same.
		var again bytes.Buffer
		for _, u := range us {
			pkt(&again, u.old+" "+u.new+" "+u.ref+"\n")
		}
		again.WriteString("0000")
		got, _, err := readUpdates(&again)
		if err != nil || len(got) != len(us) {
			t.Errorf("%v: %d of %d updates came back", err, len(got), len(us))
		}
	})
}

func FuzzPktRead(f *testing.F) {
	f.Add([]byte("0008abcd"))
	f.Add([]byte("0004"))
	f.Add([]byte("+008abcd"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := pktRead(bytes.NewReader(b))
		if err == nil && (len(p) > 65531 || p != nil && len(p)+4 > len(b)) {
			t.Errorf("%d bytes out of %d", len(p), len(b))
		}
	})
}
