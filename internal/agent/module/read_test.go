package module

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/fault"
)

func TestReadFileIsBounded(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x")
	if s, err := ReadIfThere(name); s != "" || err != nil {
		t.Errorf("a file that is missing: %q, %v", s, err)
	}
	if _, err := ReadFile(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is missing: %v", err)
	}
	if err := os.WriteFile(name, []byte("a\xff\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := ReadFile(name)
	if s != "a\xff\n" || Valid(s) != "a\uFFFD\n" || err != nil {
		t.Errorf("bytes that are no text: %q, %v", s, err)
	}
	if err := os.Truncate(name, MaxFile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(name); fault.Code(err) != "file_too_large" || !strings.Contains(err.Error(), name) {
		t.Errorf("a file that is too large: %v", err)
	}
}

func TestPlainAndOff(t *testing.T) {
	for want, v := range map[string]any{"1": 1.0, "0.5": 0.5, "1e+300": 1e300, "True": true, "x": "x"} {
		if got := Plain(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
	c, err := Bind(&Host{}, Open(Reads("a.b", "", nil, Need("x", Any), May("y", Any, false), May("z", Any, nil))), []any{0}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if c.Off("x") || !c.Off("y") || c.Off("z") {
		t.Error("only False itself is off")
	}
}

func TestSleepEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Sleep(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := Sleep(t.Context(), time.Millisecond); err != nil {
		t.Error(err)
	}
}
