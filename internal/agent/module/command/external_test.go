package command

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

const mirror = `#!/bin/sh
if [ "$1" = --describe ]; then
	cat <<'X'
{"module": "mirror", "functions": [
 {"name": "show", "doc": "Shows the question.", "reads": true, "tests": true, "rest": true, "extra": true,
  "params": [{"name": "name", "type": "str", "required": true}, {"name": "n", "type": "int", "default": 9007199254740993}]},
 {"name": "fail", "params": []}, {"name": "die"}, {"name": "babble"}, {"name": "hang"}]}
X
	exit
fi
q=$(cat)
case $q in
*'"function":"show"'*) echo "{\"result\": $q, \"rc\": 5}" ;;
*'"function":"fail"'*) echo '{"result": [1, 2.5], "error": "no luck", "rc": 2}' ;;
*'"function":"die"'*) echo "the reason" >&2; exit 9 ;;
*'"function":"hang"'*) sleep 300 ;;
*) echo this is no JSON ;;
esac
`

// programs makes a directory as a host has it: of root, and nobody else's.
func programs(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "modules")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for n, s := range files {
		if err := os.WriteFile(filepath.Join(dir, n), []byte(s), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestExternal(t *testing.T) {
	dir := programs(t, map[string]string{"mirror.sh": mirror})
	if err := os.WriteFile(filepath.Join(dir, "README"), []byte("no program"), 0o644); err != nil {
		t.Fatal(err)
	}
	all, bad := External(dir)
	if len(bad) > 0 || len(all) != 5 {
		t.Fatal(len(all), bad)
	}
	v, c, err := ask(t, all, "mirror.show", []any{"a", 7.0, "more"}, kw("else", true), true)
	if err != nil || c.RC != 5 {
		t.Fatal(err)
	}
	want := kw("function", "show", "args", kw("name", "a", "n", int64(7)), "rest", []any{"more"}, "extra", kw("else", true), "test", true, "grains", kw("os", "Test"), "id", "host1")
	if d := cmp.Diff(want, v); d != "" {
		t.Fatal(d)
	}
	v, _, err = ask(t, all, "mirror.show", []any{"a"}, nil, false)
	if err != nil || v.(map[string]any)["args"].(map[string]any)["n"] != int64(9007199254740993) {
		t.Fatal(v, err)
	}
	for fun, want := range map[string]string{"mirror.fail": "no luck", "mirror.die": "the reason", "mirror.babble": "in JSON: this is no JSON"} {
		_, _, err := ask(t, all, fun, nil, nil, false)
		if fault.Code(err) != "module_failed" || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), filepath.Join(dir, "mirror.sh")) {
			t.Errorf("%s: %v", fun, err)
		}
	}
	f, _ := module.NewRegistry(all).Get("mirror.hang")
	call, err := module.Bind(host(t), f, nil, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := f.Run(ctx, call); fault.Code(err) != "command_stopped" {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "mirror.sh"), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ask(t, all, "mirror.show", []any{"a"}, nil, false); fault.Code(err) != "module_untrusted" {
		t.Fatal(err)
	}
}

func TestExternalRefuses(t *testing.T) {
	say := func(s string) string { return "#!/bin/sh\ncat <<'X'\n" + s + "\nX\n" }
	ok := say(`{"module":"good","functions":[{"name":"f"}]}`)
	dir := programs(t, map[string]string{
		"good":    ok,
		"other":   ok,
		"no-name": ok,
		"nojson":  say("hello"),
		"more":    say(`{"module":"more","functions":[{"name":"f"}]} {}`),
		"none":    say(`{"module":"none","functions":[]}`),
		"twice":   say(`{"module":"twice","functions":[{"name":"f"},{"name":"f"}]}`),
		"kind":    say(`{"module":"kind","functions":[{"name":"f","params":[{"name":"a","type":"blob"}]}]}`),
		"fails":   "#!/bin/sh\necho why >&2\nexit 3\n",
		"wide":    ok, "foreign": ok, "good.py": ok,
	})
	for _, err := range []error{os.Chmod(filepath.Join(dir, "wide"), 0o775), os.Chown(filepath.Join(dir, "foreign"), 65534, 0), os.Symlink("good", filepath.Join(dir, "link"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	all, bad := External(dir)
	if len(all) != 1 || all[0].Name != "good.f" {
		t.Fatal(all)
	}
	text := ""
	for _, e := range bad {
		text += e.Error() + "\n"
	}
	if len(bad) != 12 {
		t.Fatalf("%d: %s", len(bad), text)
	}
	for _, want := range []string{"other calls itself", "no-name has a name", "nojson does not describe", "more does not describe", "none has 0 functions", `twice has a function "f"`,
		`kind has an argument "a" of type "blob"`, "fails failed with 3 when asked by --describe: why", "wide can be written", "foreign does not belong to root", "good.py are both", "link is a symbolic link"} {
		if !strings.Contains(text, want) {
			t.Errorf("nothing says %q in\n%s", want, text)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if all, bad := External(dir); len(all) > 0 || len(bad) != 1 {
		t.Fatal(all, bad)
	}
	if all, bad := External(filepath.Join(dir, "missing")); all != nil || bad != nil {
		t.Fatal(all, bad)
	}
}

func FuzzDescription(f *testing.F) {
	f.Add([]byte(`{"module":"m","functions":[{"name":"f","doc":"d","params":[{"name":"a","type":"int","required":true,"default":1}],"reads":true}]}`))
	f.Add([]byte(`{"module":"m","functions":[{"name":""}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseDescription("/x/m", "m", b)
		if (err == nil) != (len(all) > 0) {
			t.Fatal(all, err)
		}
		for _, fn := range all {
			if fn.Run == nil || !strings.HasPrefix(fn.Name, "m.") {
				t.Fatal(fn)
			}
		}
	})
}
