package accounts

import (
	"os/exec"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The vectors of the specification.
func TestShaCryptVectors(t *testing.T) {
	for _, v := range []struct {
		password, salt, want string
		long                 bool
	}{
		{"Hello world!", "saltstring", "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1", true},
		{"Hello world!", "rounds=10000$saltstringsaltstring", "$6$rounds=10000$saltstringsaltst$OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vOuZeHBy/YTBmSK6H9qs/y3RnOaw5v.", true},
		{"Hello world!", "saltstring", "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5", false},
		{"Hello world!", "rounds=10000$saltstringsaltstring", "$5$rounds=10000$saltstringsaltst$3xv.VbSHBb41AL9AvLeujZkZRBAwqFMz2.opqey6IcA", false},
		{"the minimum number is still observed", "rounds=10$roundstoolow", "$6$rounds=1000$roundstoolow$kUMsbe306n21p9R.FRkW3IGn.S9NPN0x50YhH1xhLsPuWGsUSklZt58jaTfF4ZEQpyUNGc0dqbpBYYBaHHrsX.", true},
	} {
		got, err := shaCrypt(v.password, v.salt, v.long)
		if err != nil || got != v.want {
			t.Errorf("shaCrypt(%q, %q) = %q, %v\nwant %q", v.password, v.salt, got, err, v.want)
		}
	}
}

// Another implementation says the same.
func TestShaCryptAgainstOpenSSL(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		password := rapid.StringMatching(`[a-zA-Z0-9 äöü!?._]{1,90}`).Draw(t, "password")
		salt := rapid.StringMatching(`[./0-9A-Za-z]{1,16}`).Draw(t, "salt")
		long := rapid.Bool().Draw(t, "long")
		option := "-5"
		if long {
			option = "-6"
		}
		cmd := exec.Command("openssl", "passwd", option, "-salt", salt, "-stdin")
		cmd.Stdin = strings.NewReader(password + "\n")
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		got, err := shaCrypt(password, salt, long)
		if err != nil || got != strings.TrimSpace(string(out)) {
			t.Fatalf("got %q, %v; openssl says %q", got, err, out)
		}
	})
}

func TestShaCryptRefuses(t *testing.T) {
	for _, v := range [][2]string{{"a\x00b", "salt"}, {strings.Repeat("x", 513), "salt"}, {"a", "rounds=x$salt"}, {"a", "rounds=999999999$salt"}, {"a", "s:t"}, {"a", "s\nt"}} {
		if got, err := shaCrypt(v[0], v[1], true); err == nil {
			t.Errorf("shaCrypt(%q, %q) = %q, want an error", v[0], v[1], got)
		}
	}
}
