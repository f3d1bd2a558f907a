package rpmdb_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"drover/internal/agent/rpmdb"
	"drover/internal/fault"
	"drover/internal/rpm"
	"drover/internal/rpm/rpmtest"

	"github.com/google/go-cmp/cmp"
)

// root is a directory with rpm's database in it, made and filled by rpm itself.
type root struct {
	dir, dbpath string
}

const separator = "\x1f"

// newRoot makes a root with an empty database in the given place.
func newRoot(t testing.TB, dbpath string) root {
	t.Helper()
	r := root{t.TempDir(), dbpath}
	if err := os.MkdirAll(filepath.Join(r.dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"passwd": "root:x:0:0::/:/bin/sh\njane:x:501:502::/:/bin/sh\n", "group": "root:x:0:\nbob:x:503:\njane:x:502:\n"} {
		if err := os.WriteFile(filepath.Join(r.dir, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r.rpm(t, "rpmdb", "--initdb")
	return r
}

func (r root) command(args ...string) *exec.Cmd {
	c := exec.Command(args[0], append([]string{"--root", r.dir, "--define", "_dbpath " + r.dbpath, "--define", "_db_backend sqlite"}, args[1:]...)...)
	c.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "LANGUAGE=")
	return c
}

func (r root) rpm(t testing.TB, args ...string) string {
	t.Helper()
	c := r.command(args...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, stderr.Bytes())
	}
	return string(out)
}

func (r root) install(t testing.TB, extra []string, files ...string) {
	t.Helper()
	r.rpm(t, slices.Concat([]string{"rpm", "-i", "--nodeps", "--nosignature", "--noscripts", "--notriggers", "--ignorearch", "--force"}, extra, files)...)
}

// fixtures are the packages of the shared test data that can be installed beside each other.
func fixtures(t testing.TB) (out []string) {
	t.Helper()
	for _, dir := range []string{"rpms-modern", "rpms-payloads"} {
		m, _ := filepath.Glob(filepath.Join("../../../../shared/data", dir, "*.rpm"))
		for _, f := range m {
			name := filepath.Base(f)
			if strings.HasSuffix(name, ".src.rpm") || strings.HasPrefix(name, "rpm-basic-") && !strings.HasPrefix(name, "rpm-basic-with-rsa4096") || strings.HasPrefix(name, "payload-test") && !strings.Contains(name, "w9.gz") {
				continue
			}
			p, err := filepath.Abs(f)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, p)
		}
	}
	if len(out) < 12 {
		t.Fatalf("the shared test data is not at ../shared/data beside the project: %v", out)
	}
	return out
}

// made writes n small packages of the test corpus.
func made(t testing.TB, n int) (out []string) {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		s := rpmtest.Spec{NEVRA: rpm.NEVRA{Name: fmt.Sprintf("made%03d", i), Epoch: uint32(i % 3), Version: "1.0", Release: "1.el10", Arch: "noarch"}, Source: fmt.Sprintf("made%03d-1.0-1.el10.src.rpm", i),
			Vendor: "Somebody", License: "MIT", Summary: "Made", Group: "Unspecified", Files: []rpmtest.File{{Path: fmt.Sprintf("/usr/share/made/%03d", i)}}}
		p := filepath.Join(dir, s.File())
		if err := os.WriteFile(p, s.Build(), 0o600); err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

var places = []string{"/usr/lib/sysimage/rpm", "/var/lib/rpm"}

func TestPackagesAreThoseThatRPMLists(t *testing.T) {
	for _, place := range places {
		t.Run(place, func(t *testing.T) {
			r := newRoot(t, place)
			r.install(t, []string{"--justdb"}, append(fixtures(t), made(t, 20)...)...)
			got, err := rpmdb.List(t.Context(), r.dir)
			if err != nil {
				t.Fatal(err)
			}
			var mine []string
			for _, p := range got {
				mine = append(mine, strings.Join([]string{p.NEVRA(), fmt.Sprint(p.Epoch), p.Vendor, p.SourceRPM, fmt.Sprint(p.InstallTime), fmt.Sprint(p.BuildTime), fmt.Sprint(p.Size)}, separator))
			}
			want := lines(r.rpm(t, "rpm", "-qa", "--qf", strings.Join([]string{"%{NAME}-%|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}.%{ARCH}", "%|EPOCH?{%{EPOCH}}:{0}|", "%|VENDOR?{%{VENDOR}}:{}|", "%{SOURCERPM}",
				"%{INSTALLTIME}", "%{BUILDTIME}", "%{LONGSIZE}"}, separator)+"\n"))
			for i, l := range want {
				want[i] = strings.Replace(l, "-0:", "-", 1) // rpm shows an epoch of 0 when the header has one
			}
			slices.Sort(want)
			slices.Sort(mine)
			if d := cmp.Diff(want, mine); d != "" {
				t.Error(d)
			}
			if len(mine) < 32 {
				t.Errorf("%d packages", len(mine))
			}
		})
	}
}

func lines(s string) []string { return strings.Split(strings.TrimSuffix(s, "\n"), "\n") }

func TestSignaturesTellTheKey(t *testing.T) {
	r := newRoot(t, places[0])
	r.install(t, []string{"--justdb"}, fixtures(t)...)
	about, err := rpmdb.About(t.Context(), r.dir, "rpm-basic", "one-epoch.x86_64", "nothing")
	if err != nil {
		t.Fatal(err)
	}
	if len(about) != 2 || len(about["rpm-basic"]) != 1 || len(about["one-epoch.x86_64"]) != 1 {
		t.Fatalf("%v", about)
	}
	i := about["rpm-basic"][0]
	sig := r.rpm(t, "rpm", "-q", "--qf", "%{RSAHEADER:pgpsig}", "rpm-basic")
	if len(i.Key) != 16 || !strings.HasSuffix(sig, "Key ID "+i.Key) {
		t.Errorf("key %q, rpm says %q", i.Key, sig)
	}
	got := fmt.Sprint(i.Summary, separator, i.Description, separator, i.License, separator, i.Group, separator, i.URL, separator, i.Packager, separator, i.BuildHost)
	want := r.rpm(t, "rpm", "-q", "--qf", strings.Join(strings.Fields("%{SUMMARY} %{DESCRIPTION} %{LICENSE} %{GROUP} %{URL} %|PACKAGER?{%{PACKAGER}}:{}| %{BUILDHOST}"), separator), "rpm-basic")
	if want = strings.ReplaceAll(want, separator, " "+separator+" "); strings.ReplaceAll(got, " "+separator+" ", separator) != strings.ReplaceAll(want, " "+separator+" ", separator) {
		t.Errorf("got\n%q, rpm says\n%q", got, want)
	}
	if i.SignatureTime == 0 || i.SignatureHash == "" {
		t.Errorf("signature of %d, %q", i.SignatureTime, i.SignatureHash)
	}
	all, err := rpmdb.About(t.Context(), r.dir)
	if err != nil || len(all) != len(fixtures(t)) {
		t.Errorf("%d names, %v", len(all), err)
	}
}

func TestLabelsAreReadAsRPMReadsThem(t *testing.T) {
	r := newRoot(t, places[1])
	r.install(t, []string{"--justdb"}, fixtures(t)...)
	for _, label := range []string{"rpm-basic", "rpm-basic.noarch", "rpm-basic.x86_64", "rpm-basic-2.3.4", "rpm-basic-2.3.4-5.el9", "rpm-basic-2.3.4-5.el9.noarch", "rpm-basic-2.3.4-6", "one-epoch-1:0.1-1", "one-epoch-2:0.1-1",
		"one-epoch-0.1-1.x86_64", "empty", "empty-0.1.x86_64", "", "-", ".", "rpm", "rpm-basic-", "payload-test-0.1"} {
		out, err := r.command("rpm", "-q", "--qf", "%{NAME}\n", label).Output()
		got, gotErr := rpmdb.About(t.Context(), r.dir, label)
		if gotErr != nil {
			t.Fatal(gotErr)
		}
		if label != "" && (err == nil) != (len(got) == 1) {
			t.Errorf("%q: we find %v, rpm %q", label, got, out)
		}
	}
	if _, err := rpmdb.Files(t.Context(), r.dir, "nothing"); fault.Code(err) != "package_missing" {
		t.Errorf("%v", err)
	}
}

func TestFilesAreThoseThatRPMLists(t *testing.T) {
	r := newRoot(t, places[0])
	r.install(t, []string{"--justdb"}, fixtures(t)...)
	total := 0
	for _, name := range strings.Fields(r.rpm(t, "rpm", "-qa", "--qf", "%{NAME}\n")) {
		fs, err := rpmdb.Files(t.Context(), r.dir, name)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range fs {
			got = append(got, strings.Join([]string{f.Path, fmt.Sprintf("%o", f.Mode), f.User, f.Group, fmt.Sprint(f.Size), fmt.Sprint(f.Mtime), f.Digest, f.Linkto, fmt.Sprint(f.Flags), fmt.Sprint(f.Verify), f.State.String(), f.Caps}, separator))
		}
		want := strings.TrimSuffix(strings.ReplaceAll(r.rpm(t, "rpm", "-q", "--qf", "["+strings.Join(strings.Fields("%{FILENAMES} %{FILEMODES:octal} %{FILEUSERNAME} %{FILEGROUPNAME} %{LONGFILESIZES} %{FILEMTIMES} %{FILEDIGESTS} %{FILELINKTOS} %{FILEFLAGS} %{FILEVERIFYFLAGS} %{FILESTATES:fstate} %{FILECAPS}"), separator)+"\n]", name),
			"(none)", ""), "\n")
		if d := cmp.Diff(want, strings.Join(got, "\n")); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		total += len(got)
	}
	if total < 50 {
		t.Errorf("%d files", total)
	}
}

func TestOwner(t *testing.T) {
	r := newRoot(t, places[0])
	if err := errors.Join(os.MkdirAll(filepath.Join(r.dir, "usr/bin"), 0o755), os.Symlink("/usr/bin", filepath.Join(r.dir, "bin"))); err != nil {
		t.Fatal(err)
	}
	r.install(t, nil, fixtures(t)...)
	for _, p := range []string{"/usr/bin/rpm-basic", "/bin/rpm-basic", "/opt/rpm-file-attrs", "/opt/rpm-file-attrs/ghost", "/etc/passwd", "/", "/opt/rpm-hardlinks/alpha-1", "/nothing/rpm-basic"} {
		got, err := rpmdb.Owner(t.Context(), r.dir, p)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, o := range got {
			names = append(names, o.Name)
		}
		want, err := r.command("rpm", "-qf", "--qf", "%{NAME}\n", p).Output()
		if err != nil {
			want = nil
		}
		if strings.Join(names, "\n") != strings.TrimSpace(string(want)) {
			t.Errorf("%s: we say %q, rpm %q", p, names, want)
		}
	}
	if _, err := rpmdb.Owner(t.Context(), r.dir, "bin/sh"); fault.Code(err) != "path" {
		t.Errorf("%v", err)
	}
}

func TestWithoutDatabase(t *testing.T) {
	dir := t.TempDir()
	if _, err := rpmdb.List(t.Context(), dir); fault.Code(err) != "rpmdb_missing" {
		t.Errorf("%v", err)
	}
	if s := rpmdb.Stamp(dir); s != "" {
		t.Errorf("stamp %q", s)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "var/lib/rpm"), 0o755), os.WriteFile(filepath.Join(dir, "var/lib/rpm/Packages"), []byte("old"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := rpmdb.List(t.Context(), dir); fault.Code(err) != "rpmdb_format" {
		t.Errorf("%v", err)
	}
	file := filepath.Join(dir, "var/lib/rpm/rpmdb.sqlite")
	for name, content := range map[string][]byte{"empty": nil, "junk": bytes.Repeat([]byte("junk"), 4096)} {
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := rpmdb.List(t.Context(), dir); fault.Code(err) != "rpmdb_damaged" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDatabaseBehindLinks(t *testing.T) {
	r := newRoot(t, "/usr/lib/elsewhere")
	r.install(t, []string{"--justdb"}, made(t, 3)...)
	// An absolute link leads to a place below the root, not on the host.
	if err := errors.Join(os.MkdirAll(filepath.Join(r.dir, "var/lib"), 0o755), os.Symlink("/usr/lib/elsewhere", filepath.Join(r.dir, "var/lib/rpm"))); err != nil {
		t.Fatal(err)
	}
	if got, err := rpmdb.List(t.Context(), r.dir); err != nil || len(got) != 3 {
		t.Errorf("%v, %v", got, err)
	}
}

// listing is what lies beside the database, with sizes and times but for the index of the log, in
// which readers note themselves.
func listing(t *testing.T, dir string) (out []string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		i, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		s := fmt.Sprint(e.Name(), " ", i.Size(), " ", i.Mode())
		if !strings.HasSuffix(e.Name(), "-shm") {
			s += fmt.Sprint(" ", i.ModTime())
		}
		out = append(out, s)
	}
	return out
}

func TestReadingLeavesNoTrace(t *testing.T) {
	r := newRoot(t, places[0])
	r.install(t, []string{"--justdb"}, made(t, 5)...)
	home := filepath.Join(r.dir, r.dbpath)
	check := func(t *testing.T) {
		before := listing(t, home)
		got, err := rpmdb.List(t.Context(), r.dir)
		if err != nil || len(got) != 5 {
			t.Fatalf("%d packages, %v", len(got), err)
		}
		if d := cmp.Diff(before, listing(t, home)); d != "" {
			t.Error(d)
		}
	}
	t.Run("with a log", check)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(home, "rpmdb.sqlite"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"-wal", "-shm"} {
		if err := os.RemoveAll(filepath.Join(home, "rpmdb.sqlite"+s)); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("without one", check)
}

func TestStampChangesWithTheDatabase(t *testing.T) {
	r := newRoot(t, places[0])
	files := made(t, 2)
	r.install(t, []string{"--justdb"}, files[0])
	a := rpmdb.Stamp(r.dir)
	if _, err := rpmdb.List(t.Context(), r.dir); err != nil {
		t.Fatal(err)
	}
	if b := rpmdb.Stamp(r.dir); a == "" || b != a {
		t.Errorf("reading changed the stamp from %q to %q", a, b)
	}
	r.install(t, []string{"--justdb"}, files[1])
	if b := rpmdb.Stamp(r.dir); b == a {
		t.Error("a new package did not change the stamp")
	}
}

// Each answer is of one moment, while rpm installs and removes.
func TestWhileRPMWrites(t *testing.T) {
	r := newRoot(t, places[0])
	files := made(t, 40)
	r.install(t, []string{"--justdb"}, files[:10]...)
	done := make(chan error, 1)
	go func() {
		for i := 10; i < 40; i += 2 {
			args := append([]string{"rpm", "-i", "--justdb", "--nodeps", "--nosignature"}, files[i:i+2]...)
			if out, err := r.command(args...).CombinedOutput(); err != nil {
				done <- fmt.Errorf("%w: %s", err, out)
				return
			}
		}
		done <- nil
	}()
	had, reads, sizes := 10, 0, map[int]bool{}
	for running := true; running; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
		}
		start := time.Now()
		got, err := rpmdb.List(t.Context(), r.dir)
		if err != nil {
			t.Fatalf("after %d packages: %v", had, err)
		}
		if len(got) < had || time.Since(start) > 3*time.Second {
			t.Fatalf("%d packages after %d, in %v", len(got), had, time.Since(start))
		}
		// rpm installs the packages of one transaction in an order of its own, each at one moment.
		names := map[string]bool{}
		for _, p := range got {
			names[p.Name] = true
		}
		for i := range len(got) &^ 1 {
			if want := fmt.Sprintf("made%03d", i); !names[want] {
				t.Fatalf("%d packages without %s", len(got), want)
			}
		}
		had = len(got)
		sizes[had] = true
		reads++
	}
	if had != 40 || reads < 10 || len(sizes) < 4 {
		t.Errorf("%d packages at the end, %d reads of %d sizes", had, reads, len(sizes))
	}
}

// A process that holds the database does not hold the reader for ever.
func TestLockedDatabase(t *testing.T) {
	t.Parallel() // it waits
	r := newRoot(t, places[0])
	r.install(t, []string{"--justdb"}, made(t, 1)...)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(r.dir, r.dbpath, "rpmdb.sqlite")+"?_pragma=locking_mode(exclusive)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(t.Context(), "UPDATE Packages SET hnum = hnum"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	start := time.Now()
	if _, err := rpmdb.List(ctx, r.dir); fault.Code(err) != "rpmdb_busy" {
		t.Errorf("%v", err)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
}

func TestDamagedHeaderIsNotPassedOver(t *testing.T) {
	r := newRoot(t, places[0])
	r.install(t, []string{"--justdb"}, made(t, 3)...)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(r.dir, r.dbpath, "rpmdb.sqlite"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "UPDATE Packages SET blob = x'00ff' WHERE hnum = 2"); err != nil {
		t.Fatal(err)
	}
	got, err := rpmdb.List(t.Context(), r.dir)
	if fault.Code(err) != "rpmdb_damaged" || got != nil {
		t.Errorf("%d packages, %v", len(got), err)
	}
}
