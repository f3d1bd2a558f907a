package rpmdb_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"drover/internal/agent/rpmdb"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// asRPM writes what Verify found as rpm -V prints it.
func asRPM(found map[string]rpmdb.Mismatch) (out []string) {
	kinds := map[string]string{"config": "c", "doc": "d", "ghost": "g", "license": "l", "readme": "r", "artifact": "a", "": " "}
	for _, p := range slices.Sorted(maps.Keys(found)) {
		m := found[p]
		shown := m.Letters
		if m.Missing {
			shown = "missing  "
		}
		out = append(out, shown+" "+" "+kinds[m.Kind]+" "+p)
	}
	return out
}

func (r root) verify(t *testing.T, name string, ghosts bool) []string {
	t.Helper()
	args := []string{"rpm", "-V", "--nodeps", "--noscripts", name}
	if !ghosts {
		args = append(args, "--noghost")
	}
	out, err := r.command(args...).Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var lines []string
	for l := range strings.Lines(string(out)) {
		// rpm says behind the path why a file is missing.
		lines = append(lines, strings.ReplaceAll(strings.TrimSuffix(strings.TrimSuffix(l, "\n"), " (No such file or directory)"), "missing   ", "missing    "))
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[13:], b[13:]) })
	return lines
}

func TestVerifyFindsWhatRPMFinds(t *testing.T) {
	r := newRoot(t, places[0])
	r.install(t, nil, fixtures(t)...)
	in := func(p string) string { return filepath.Join(r.dir, p) }
	names := strings.Fields(r.rpm(t, "rpm", "-qa", "--qf", "%{NAME}\n"))
	compare := func(t *testing.T) (all []string) {
		t.Helper()
		for _, name := range names {
			for _, ghosts := range []bool{false, true} {
				got, err := rpmdb.Verify(t.Context(), r.dir, name, ghosts)
				if err != nil {
					t.Fatal(err)
				}
				mine := asRPM(got)
				if d := cmp.Diff(r.verify(t, name, ghosts), mine); d != "" {
					t.Errorf("%s, ghosts %v: rpm - ours:\n%s", name, ghosts, d)
				}
				if ghosts {
					all = append(all, mine...)
				}
			}
		}
		return all
	}
	t.Run("as installed", func(t *testing.T) { compare(t) })

	attrs := "/opt/rpm-file-attrs/"
	now := time.Now()
	steps := []error{
		os.WriteFile(in(attrs+"normal"), []byte("changed"), 0o644),               // of the same size
		os.WriteFile(in(attrs+"config"), []byte("another configuration"), 0o644), // of another one
		os.Chmod(in(attrs+"config_noreplace"), 0o600),
		os.Chown(in(attrs+"doc"), 501, 502),
		os.Chown(in(attrs+"license"), 4711, 4712), // whom nobody knows
		os.Remove(in(attrs + "missingok")),
		os.Remove(in(attrs + "readme")),
		os.Remove(in(attrs + "symlink")), os.Symlink("doc", in(attrs+"symlink")),
		os.Remove(in(attrs + "artifact")), os.Symlink("doc", in(attrs+"artifact")), // a link for a file
		os.Remove(in(attrs + "symlink_dir/dir")), os.Mkdir(in(attrs+"symlink_dir/dir"), 0o755), // a directory for a link
		os.WriteFile(in(attrs+"ghost"), nil, 0o640),
		os.Chtimes(in(attrs+"verify_all"), now, now), os.Chtimes(in(attrs+"verify_none"), now, now), os.Chtimes(in(attrs+"verify_not"), now, now), os.Chtimes(in(attrs+"verify_some"), now, now),
		unix.Removexattr(in(attrs+"with_caps"), "security.capability"),
		os.RemoveAll(in("/opt/rpm-file-types")), os.Symlink("/opt/elsewhere", in("/opt/rpm-file-types")), // a link to nowhere
		os.Rename(in("/opt/rpm-hardlinks"), in("/opt/moved")), os.Symlink("/opt/moved", in("/opt/rpm-hardlinks")), // a moved directory
		os.Remove(in("/opt/rpm-scriptlets/data")), unix.Mkfifo(in("/opt/rpm-scriptlets/data"), 0o644),
		os.Remove(in("/opt/rpm-rich-deps/data")), unix.Mknod(in("/opt/rpm-rich-deps/data"), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3))),
		os.WriteFile(in("/usr/bin/rpm-basic"), nil, 0o644),
	}
	for i, err := range steps {
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	if out, err := exec.Command("setcap", "cap_net_raw=ep", in(attrs+"dir/normal")).CombinedOutput(); err != nil {
		t.Fatalf("setcap: %v: %s", err, out)
	}
	var all []string
	t.Run("changed", func(t *testing.T) { all = compare(t) })
	for _, letter := range "SM5DLUGTP" {
		if !slices.ContainsFunc(all, func(l string) bool { return !strings.HasPrefix(l, "m") && strings.ContainsRune(l[:9], letter) }) {
			t.Errorf("nothing showed %c", letter)
		}
	}
	if got, err := rpmdb.Verify(t.Context(), r.dir, "rpm-file-attrs", false); err != nil || !slices.Equal(got[attrs+"config"].Words, []string{"size", "md5sum", "mtime"}) || got[attrs+"config"].Kind != "config" {
		t.Errorf("%v, %v", got[attrs+"config"], err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := rpmdb.Verify(ctx, r.dir, "rpm-file-attrs", false); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
