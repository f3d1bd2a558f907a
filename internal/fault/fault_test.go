package fault

import (
	"errors"
	"fmt"
	"testing"
)

func TestStatusRoundTrip(t *testing.T) {
	for k := KindInternal; k <= KindUnavailable; k++ {
		e := &Error{Code: "c", Kind: k, Msg: "m"}
		if got := FromStatus(e.Status(), "c", "m", ""); got.Kind != k {
			t.Errorf("kind %d: status %d came back as kind %d", k, e.Status(), got.Kind)
		}
	}
}

func TestAsAndExitCode(t *testing.T) {
	wrapped := fmt.Errorf("while looking: %w", NotFound("tag_unknown", "no tag %q", "x").Fix("see drover tag list"))
	if Code(wrapped) != "tag_unknown" || ExitCode(wrapped) != 4 {
		t.Errorf("got code %q exit %d", Code(wrapped), ExitCode(wrapped))
	}
	if plain := errors.New("boom"); As(plain).Kind != KindInternal || ExitCode(plain) != 1 || !errors.Is(As(plain), plain) {
		t.Error("a plain error must become internal and keep its cause")
	}
	if ExitCode(Denied("d", "no")) != 5 || ExitCode(Unauthorized("d", "no")) != 5 || ExitCode(nil) != 0 {
		t.Error("exit codes of the design do not hold")
	}
	if got, want := Invalid("a", "bad %s", "thing").Wrap(errors.New("why")).Fix("do that").Error(), "bad thing: why (do that)"; got != want {
		t.Errorf("got %q want %q", got, want)
	}
}
