package selector

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"drover/internal/fault"
)

func TestFaultsNameTheColumn(t *testing.T) {
	for _, c := range []struct {
		form Form
		text string
		col  int
		says string
	}{
		{Compound, "web* and", 9, "expected a target after \"and\", not the end"},
		{Compound, "web* db*", 6, "expected \"and\" or \"or\" before \"db*\""},
		{Compound, "wéb* AND db*", 6, "small letters"},
		{Compound, "and web*", 1, "expected a target, not \"and\""},
		{Compound, "( web* or", 10, "expected a target"},
		{Compound, "( web* or db*", 14, "for the \"(\" of column 1"},
		{Compound, "web* )", 6, "there is no \"(\""},
		{Compound, "()", 2, "expected a target"},
		{Compound, "web* and X@a", 10, "\"X\" is no matcher"},
		{Compound, "g@a:b", 1, "write G@"},
		{Compound, "a or G@", 8, "expected a pattern"},
		{Compound, "a or G@os", 8, "KEY:PATTERN"},
		{Compound, "G|@os:x", 4, "KEY|PATTERN"},
		{Compound, "G@:x", 3, "expected a key"},
		{Compound, "L|@a", 2, "another delimiter"},
		{Compound, "a and E@(", 9, "no regular expression: missing closing ): `(`"},
		{Compound, "P@os:a:(", 6, "no regular expression"},
		{Compound, "P@os:a)|(b", 6, "no regular expression"},
		{Compound, "S@10.0.0.1/8", 3, "not the first one of its network, 10.0.0.0/8"},
		{Compound, "S@::ffff:10.0.0.1/104", 3, "not the first one"},
		{Compound, "S@::ffff:10.0.0.0/80", 19, "not how many bits"},
		{Compound, "S@10.0.0.0/33", 12, "not how many bits"},
		{Compound, "S@10.0.0.0/255.0.255.0", 12, "no mask"},
		{Compound, "S@host", 3, "no address"},
		{Compound, "S@fe80::1%eth0", 3, "no address"},
		{Compound, "a or R@%x", 6, "not supported"},
		{Compound, "L@,", 3, "expected names"},
		{Glob, "web* db*", 5, "has a space"},
		{Glob, "", 1, "there is none"},
		{Glob, " \t ", 1, "there is none"},
		{Glob, "web\x00", 4, "U+0000"},
		{Grain, "os:a\tb", 5, "U+0009"},
		{Compound, "a or \x1b[1mb", 6, "U+001B"},
		{Compound, "a or \u0085b\u009b", 8, "U+009B"},
		{Glob, "a\xff", 2, "UTF-8"},
		{Range, "%x", 1, "not supported"},
		{Query, `fact.os == `, 12, "expected a value after \"==\", not the end"},
		{Query, `fact.os == and`, 12, "expected a value"},
		{Query, `fact.os "x"`, 9, "expected \"and\" or \"or\""},
		{Query, `fact.os == "x`, 12, "has no end"},
		{Query, "fact.os == \"x\ny\"", 12, "has no end"},
		{Query, `os == "x"`, 1, "is it fact.os or label.os"},
		{Query, `fact("`, 6, "has no end"},
		{Query, `fact()`, 6, "expected a name"},
		{Query, `pkg == "x"`, 5, "expected \"(\" and a name"},
		{Query, `pkg("")`, 1, "expected a name of the pkg"},
		{Query, `fact["a")`, 9, "expected \"]\""},
		{Query, `name.x == "a"`, 5, "no parts"},
		{Query, `name`, 5, "expected a comparison"},
		{Query, `name < "a"`, 6, "no order"},
		{Query, `group("a") == "b"`, 12, "compares with nothing"},
		{Query, `online == 1`, 11, "true and false"},
		{Query, `fact.a in "b"`, 11, "expected \"(\""},
		{Query, `fact.a in ("b" "c")`, 16, "expected \",\" or \")\""},
		{Query, `fact.a in ()`, 12, "expected a value"},
		{Query, `fact.a =~ "("`, 1, "no regular expression"},
		{Query, `port(0)`, 6, "no port"},
		{Query, `port("sctp/1")`, 6, "no port"},
		{Query, `subnet("10.0.0.1/8")`, 8, "not the first one"},
		{Query, `online and salt("X@a")`, 17, "no matcher"},
		{Query, `salt("web*")`, 6, "with a letter and @"},
		{Query, `online and # x`, 12, "'#' means nothing"},
		{Query, `(online`, 8, "for the \"(\" of column 1"},
		{Query, `online)`, 7, "there is no \"(\""},
	} {
		_, err := Parse(c.form, c.text)
		f := fault.As(err)
		if f == nil || f.Code != "target_invalid" || f.Kind != fault.KindInvalid || f.Remedy == "" {
			t.Errorf("%s %q: got %v", c.form, c.text, err)
			continue
		}
		lines := strings.Split(f.Msg, "\n")
		if len(lines) != 3 || !strings.HasPrefix(lines[0], fmt.Sprintf("column %d: ", c.col)) || !strings.Contains(f.Error(), c.says) {
			t.Errorf("%s %q: %d lines: %v", c.form, c.text, len(lines), err)
			continue
		}
		if at := strings.IndexByte(lines[2], '^'); utf8.RuneCountInString(lines[2][:at])-2 != c.col-1 {
			t.Errorf("%s %q: the caret is elsewhere:\n%s", c.form, c.text, f.Msg)
		}
	}
	if _, err := Parse("nothing", "x"); fault.Code(err) != "target_invalid" || !strings.Contains(err.Error(), "glob, pcre") {
		t.Errorf("got %v", err)
	}
}

func TestFaultsOfLongTexts(t *testing.T) {
	for _, before := range []int{0, 1, 37, 38, 39, 40, 100, 1000} {
		for _, behind := range []int{0, 1, 36, 37, 38, 39, 1000} {
			text := strings.Repeat("ä", before) + " # " + strings.Repeat("ö", behind)
			_, err := Parse(Query, text)
			lines := strings.Split(fault.As(err).Msg, "\n")
			if len(lines) != 3 {
				t.Fatalf("%d before: %v", before, err)
			}
			caret := utf8.RuneCountInString(lines[2]) - 1
			if shown := []rune(lines[1]); len(shown) > 80 || caret >= len(shown) {
				t.Errorf("%d before, %d behind: %d columns, caret at %d", before, behind, len(shown), caret)
			}
			if shown := []rune(lines[1]); shown[caret] != '#' {
				t.Errorf("%d before, %d behind: the caret is at %q:\n%s", before, behind, shown[caret], fault.As(err).Msg)
			}
		}
	}
}

func TestBounds(t *testing.T) {
	for _, c := range []struct {
		form Form
		text string
		code string
	}{
		{Compound, strings.Repeat("a", 16<<10+1), "target_large"},
		{Query, strings.Repeat(" ", 16<<10+1), "target_large"},
		{ListForm, strings.Repeat("a,", 1<<19) + "a", "target_large"},
		{ListForm, strings.Repeat("a,", 1<<19), ""},
		{Compound, strings.Repeat("( ", 101) + "a" + strings.Repeat(" )", 101), "target_invalid"},
		{Compound, strings.Repeat("( ", 99) + "a" + strings.Repeat(" )", 99), ""},
		{Query, strings.Repeat("not ", 101) + "online", "target_invalid"},
		{Compound, strings.Repeat("a or ", 1000) + "a", "target_invalid"},
		{Compound, strings.Repeat("a or ", 999) + "a", ""},
		{Query, strings.Repeat(`salt("N@a")or `, 1000) + "online", "target_invalid"},
		{PCRE, strings.Repeat("a", 4<<10+1), "target_invalid"},
		{Glob, strings.Repeat("a", 4<<10+1) + "*", "target_invalid"},
		{Grain, "a:" + strings.Repeat("a", 4<<10), "target_invalid"},
		{Grain, strings.Repeat("a:", 32), "target_invalid"},
		{PCRE, strings.Repeat("a{1000}", 60), "target_invalid"},
		{Compound, strings.Repeat("E@a{1000} or ", 60) + "b", "target_invalid"},
	} {
		if _, err := Parse(c.form, c.text); fault.Code(err) != c.code {
			t.Errorf("%s of %d bytes: got %.200v, want %q", c.form, len(c.text), err, c.code)
		}
	}
}

func TestHostilePatternsAreQuick(t *testing.T) {
	long := strings.Repeat("a", 4<<10)
	for _, pattern := range []string{
		strings.Repeat("[", 4<<10), "[" + long[:4000] + "*", strings.Repeat("*a", 2<<10), strings.Repeat("[!", 2<<10), strings.Repeat("[a", 2<<10) + "]", "*[" + long[:4000] + "]b",
	} {
		n, err := Parse(Grain, "x:"+pattern[:min(len(pattern), 4<<10-2)])
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		n.Leaf.MatchFact("x", long)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%.20q took %v", pattern, took)
		}
	}
}

// FuzzParse holds that no text breaks the parser, that faults are short and show one place, and that
// what was read can be written and read again.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"web* and ( G@os:Cent* or not E@(a|b) )", "P|@a|b:(c", "S@10.0.0.0/8", "L@a,b", "I@a:*:b", "(not(a))", "G@@a@b",
		`fact.os == "CentOS Stream" and pkg("openssl") < "3.2.2-16"`, `name not in ("a", 'b\'') || !online`, `salt("P@a:(?=b)\1")`, `fact.a >= -1.5`, `port(tcp/22)`,
	} {
		for i := range Forms() {
			f.Add(s, uint8(i))
		}
	}
	f.Fuzz(func(t *testing.T, text string, form uint8) {
		fm := Forms()[int(form)%len(Forms())]
		began := time.Now()
		n, err := Parse(fm, text)
		if took := time.Since(began); took > 2*time.Second {
			t.Fatalf("it took %v", took)
		}
		if err != nil {
			fa := fault.As(err)
			if fa.Code != "target_invalid" && fa.Code != "target_large" || len(fa.Error()) > 4000 {
				t.Fatalf("%v", err)
			}
			for _, l := range strings.Split(fa.Msg, "\n")[1:] {
				if utf8.RuneCountInString(l) > 80 {
					t.Fatalf("more than 80 columns: %q", l)
				}
			}
			return
		}
		began = time.Now()
		if _, err = eval(n); err != nil && fault.Code(err) != "target_slow" || time.Since(began) > 5*time.Second {
			t.Fatalf("after %v: %v", time.Since(began), err)
		}
		again := n.String()
		if len(again) > maxText {
			return
		}
		m, err := Parse(Query, again)
		if err != nil {
			t.Fatalf("%s %q became %q: %v", fm, text, again, err)
		}
		if m.String() != again {
			t.Fatalf("%s %q became %q, and that %q", fm, text, again, m)
		}
	})
}
