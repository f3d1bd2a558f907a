package grains

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/fault"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func text(v any) string { return fmt.Sprint(v) }

func mkfifo(name string) error { return unix.Mkfifo(name, 0o644) }

func write(t *testing.T, dir string, mode os.FileMode, files map[string]string) {
	t.Helper()
	for name, s := range files {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(s), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
	}
}

// site gathers the facts of a directory alone, with the code of each error by the file that it names.
func site(t *testing.T, c Config) (map[string]any, map[string]error) {
	t.Helper()
	c.Root = fixture(t, "stream9")
	plain, errs := Collect(t.Context(), Config{Root: c.Root, ID: c.ID, Version: c.Version})
	if errs != nil {
		t.Fatal(errs)
	}
	got, errs := Collect(t.Context(), c)
	for k, v := range plain {
		if cmp.Equal(got[k], v) {
			delete(got, k)
		}
	}
	byFile := map[string]error{}
	for _, err := range errs {
		found := false
		for _, w := range strings.FieldsFunc(err.Error(), func(r rune) bool { return strings.ContainsRune(" ,:;", r) }) {
			if strings.HasPrefix(w, c.Dir+"/") && !found {
				byFile[filepath.Base(w)], found = err, true
			}
		}
		if !found {
			t.Errorf("no file is named by %v", err)
		}
	}
	return got, byFile
}

func TestSiteFacts(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, 0o644, map[string]string{
		"a.yaml":     "role: web\nenabled: yes\nquoted: 'yes'\nn: 7\nf: 1.5\nnothing: ~\nwhen: 2024-01-02\nnested: {list: [1, off, x]}\n1: one\n",
		"b.json":     `{"role": "db", "count": 3}`,
		"c.yml":      "base: &b {x: 1, y: 2}\nover: {<<: *b, y: 3}\n",
		"d.yaml":     "# only a comment\n",
		"list.yaml":  "- a\n- b\n",
		"bad.yaml":   "a: [\n",
		"bomb.yaml":  "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n",
		"large.yaml": "a: " + strings.Repeat("x", maxFile),
		"id.yaml":    "id: somebody-else\nkept: true\n",
		"forgotten":  "#!/bin/sh\necho '{}'\n",
		"old.yaml~":  "old: true\n", ".hidden.yaml": "hidden: true\n", "x.rpmsave": "y",
	})
	write(t, dir, 0o755, map[string]string{
		"good":  "#!/bin/sh\necho \"{\\\"env\\\": \\\"$LC_ALL\\\", \\\"count\\\": 4, \\\"big\\\": 12345678901, \\\"half\\\": 0.5, \\\"kernel\\\": \\\"Other\\\"}\"\n",
		"exit1": "#!/bin/sh\necho '{}'\necho 'no disk' >&2\nexit 1\n",
		"junk":  "#!/bin/sh\necho hello\n",
		"two":   "#!/bin/sh\necho '{} {}'\n",
		"array": "#!/bin/sh\necho '[1]'\n",
		"none":  "not a program",
		"quiet": "#!/bin/sh\n",
	})
	write(t, dir, 0o777, map[string]string{"unsafe": "#!/bin/sh\necho '{\"unsafe\": true}'\n"})
	if err := mkfifo(filepath.Join(dir, "pipe.yaml")); err != nil {
		t.Fatal(err)
	}
	got, errs := site(t, Config{ID: "web1", Dir: dir, Static: map[string]any{"role": "static", "count": 1, "tags": []string{"a"}}})
	want := map[string]any{"role": "static", "enabled": true, "quoted": "yes", "n": int64(7), "f": 1.5, "nothing": nil, "when": "2024-01-02", "nested": map[string]any{"list": []any{int64(1), false, "x"}}, "1": "one", "count": int64(4),
		"base": map[string]any{"x": int64(1), "y": int64(2)}, "over": map[string]any{"x": int64(1), "y": int64(3)}, "kept": true, "env": "C.UTF-8", "big": int64(12345678901), "half": 0.5, "kernel": "Other", "tags": []any{"a"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for name, code := range map[string]string{"list.yaml": "fact_file", "bad.yaml": "fact_file", "bomb.yaml": "fact_file", "large.yaml": "fact_large", "id.yaml": "fact_reserved", "forgotten": "fact_file", "pipe.yaml": "fact_file", "unsafe": "fact_unsafe",
		"exit1": "fact_program", "junk": "fact_program", "two": "fact_program", "array": "fact_program", "none": "fact_program", "quiet": "fact_program"} {
		if fault.Code(errs[name]) != code {
			t.Errorf("%s: %v", name, errs[name])
		}
		delete(errs, name)
	}
	if len(errs) > 0 {
		t.Errorf("%v", errs)
	}
}

func TestStandardErrorIsTold(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, 0o755, map[string]string{"p": "#!/bin/sh\necho 'the disk is away' >&2\nexit 3\n"})
	_, errs := site(t, Config{Dir: dir})
	if err := errs["p"]; err == nil || !strings.Contains(err.Error(), "the disk is away") {
		t.Errorf("%v", err)
	}
}

// Programs that misbehave cost their own facts and their deadline, and leave nothing running.
func TestHostilePrograms(t *testing.T) {
	dir, marks := t.TempDir(), t.TempDir()
	write(t, dir, 0o755, map[string]string{
		"a-good":  "#!/bin/sh\necho '{\"good\": 1}'\n",
		"hang":    "#!/bin/sh\necho $$ > " + marks + "/hang\nsleep 600\n",
		"deaf":    "#!/bin/sh\ntrap '' TERM INT HUP\necho $$ > " + marks + "/deaf\nwhile :; do sleep 600; done\n",
		"forks":   "#!/bin/sh\nsleep 600 &\necho $! > " + marks + "/forks\necho '{\"forks\": 1}'\n",
		"silent":  "#!/bin/sh\nsleep 600 >/dev/null 2>&1 &\necho $! > " + marks + "/silent\necho '{\"silent\": 1}'\n",
		"large":   "#!/bin/sh\necho $$ > " + marks + "/large\nhead -c 2097152 /dev/zero\nsleep 600\n",
		"endless": "#!/bin/sh\nyes\n",
		"noisy":   "#!/bin/sh\nhead -c 2097152 /dev/zero >&2\necho '{\"noisy\": 1}'\n",
		"stdin":   "#!/bin/sh\nread x\necho '{\"stdin\": 1}'\n",
		"z-good":  "#!/bin/sh\necho '{\"last\": 1}'\n",
	})
	start := time.Now()
	got, errs := site(t, Config{Dir: dir, Deadline: 2 * time.Second})
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("it took %v", d)
	}
	want := map[string]any{"good": int64(1), "forks": int64(1), "silent": int64(1), "noisy": int64(1), "stdin": int64(1), "last": int64(1)}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for name, code := range map[string]string{"hang": "fact_slow", "deaf": "fact_slow", "large": "fact_large", "endless": "fact_large"} {
		if fault.Code(errs[name]) != code {
			t.Errorf("%s: %v", name, errs[name])
		}
		delete(errs, name)
	}
	if len(errs) > 0 {
		t.Errorf("%v", errs)
	}
	for _, name := range []string{"hang", "deaf", "forks", "silent", "large"} {
		b, err := os.ReadFile(filepath.Join(marks, name))
		if err != nil {
			t.Fatal(err)
		}
		var pid int
		if err := json.Unmarshal(b, &pid); err != nil || pid < 2 {
			t.Fatal(err)
		}
		if !gone(pid) {
			t.Errorf("%s still runs", name)
		}
	}
}

// gone waits for the end of a process that has been killed; the one that adopts it may leave it as a
// zombie for a while.
func gone(pid int) bool {
	for range 50 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return true
		}
		if _, state, ok := strings.Cut(string(b), ") "); ok && (state[0] == 'Z' || state[0] == 'X') {
			return true
		}
		time.Sleep(20 * time.Millisecond)
	}
	return false
}

func TestCancelledGathering(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, 0o755, map[string]string{"hang": "#!/bin/sh\nsleep 600\n"})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	got, errs := Collect(ctx, Config{Root: fixture(t, "stream9"), Dir: dir, Deadline: time.Minute})
	if time.Since(start) > 5*time.Second || len(errs) != 1 || got["os"] != "CentOS Stream" {
		t.Errorf("%v after %v", errs, time.Since(start))
	}
}
