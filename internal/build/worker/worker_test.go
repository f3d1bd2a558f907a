package worker_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"drover/internal/build"
	"drover/internal/build/wire"
	"drover/internal/build/worker"
	"drover/internal/fault"

	"golang.org/x/sys/unix"
)

// TestWorker runs a real builder: dnf, rpmbuild, the sandbox.
func TestWorker(t *testing.T) {
	y := newYard(t)
	for _, c := range []struct {
		name string
		fn   func(*yard)
	}{
		{"noarch", noarch}, {"together", together}, {"dynamic", dynamic}, {"mistakes", mistakes}, {"shell", shell}, {"hostile", hostile}, {"verify", verify}, {"stopped", stopped},
		{"C", cPackage}, {"layers", layers}, {"killed", killed},
	} {
		t.Run(c.name, func(t *testing.T) {
			z := *y
			z.T = t
			c.fn(&z)
			y.child = z.child
		})
	}
}

// layerCount is how many layers the builder has.
func (y *yard) layerCount() int {
	es, err := os.ReadDir(filepath.Join(y.dir, "layers"))
	y.ok(err)
	return len(es)
}

// noarch builds a package for its tag, then again as scratch build and from its source RPM.
func noarch(y *yard) {
	y.push("motd", map[string]string{"motd.spec": spec("motd", "Source0: x.txt", ""), "x.txt": "x\n"})
	w := y.end(y.submit(build.Request{Repo: "rpms/motd"}, nil))
	if w.State != build.Complete || files(w) != "motd-1.0-1.t.src.rpm motd-1.0-1.t.noarch.rpm" {
		y.Fatalf("%s %s: %s\n%s", w.State, w.Code, w.Message, y.log(w, "root.log"))
	}
	root, err := y.s.Build.Root(y.Context(), w.Tasks[2].Before)
	y.ok(err)
	if len(root) < 50 || w.Tasks[2].Before != w.Tasks[2].After {
		y.Errorf("a buildroot of %d packages, %s %s", len(root), w.Tasks[2].Before, w.Tasks[2].After)
	}
	if w.Tasks[2].Running.Before(w.Tasks[2].Started) || !strings.Contains(y.log(w, "build.log"), "Wrote: ") || !strings.Contains(y.log(w, "state.log"), "handed in 1 packages") {
		y.Errorf("%+v", w.Tasks[2])
	}
	w = y.end(y.submit(build.Request{Repo: "rpms/motd", Scratch: true}, nil))
	if w.State != build.Complete || w.Tag != "" {
		y.Errorf("%+v", w.Build)
	}
	// The source RPM, uploaded by a person, gives the same package.
	rs, err := y.s.Build.RPMs(y.Context(), w.ID)
	y.ok(err)
	head, err := y.s.Blobs.ReadAll(rs[0].Head, 1<<20)
	y.ok(err)
	core, err := y.s.Blobs.ReadAll(rs[0].Core, 1<<20)
	y.ok(err)
	d, err := y.s.Build.TakeSRPM(y.sys, bytes.NewReader(append(head, core...)))
	y.ok(err)
	u := y.end(y.submit(build.Request{SRPM: d, Scratch: true}, nil))
	if u.State != build.Complete || u.Tasks[1].Method != wire.MethodRebuild || files(u) != files(w) || u.RPMs[1].Header == "" {
		y.Errorf("%s %s %+v", u.State, u.Message, u.Tasks)
	}
	y.clean()
}

// together submits two builds that want the same new layer: it is made once.
func together(y *yard) {
	before := y.layerCount()
	for _, n := range []string{"one", "two"} {
		y.push(n, map[string]string{n + ".spec": spec(n, "BuildRequires: make", "")})
	}
	a := y.submit(build.Request{Repo: "rpms/one", Scratch: true}, nil)
	b := y.submit(build.Request{Repo: "rpms/two", Scratch: true}, nil)
	wa, wb := y.end(a), y.end(b)
	if wa.State != build.Complete || wb.State != build.Complete || wa.Tasks[2].Before != wb.Tasks[2].Before {
		y.Errorf("%+v\n%+v", wa.Build, wb.Build)
	}
	if n := y.layerCount() - before; n != 1 {
		y.Errorf("%d layers were made", n)
	}
	dnf := 0
	for _, w := range []build.Whole{wa, wb} {
		dnf += strings.Count(y.log(w, "state.log"), "dnf installs make")
	}
	if dnf != 1 {
		y.Errorf("dnf ran %d times for one layer", dnf)
	}
	y.clean()
}

func cPackage(y *yard) {
	w := func() build.Whole {
		y.push("greet", map[string]string{"greet.spec": `Name: greet
Version: 1.0
Release: 1%{?dist}
Summary: Greets
License: MIT
Source0: greet.c
Source1: main.c
BuildRequires: gcc
%description
Greets.
%package libs
Summary: Library
%description libs
Library.
%package devel
Summary: For programs
%description devel
For programs.
%prep
%setup -q -c -T
cp %{SOURCE0} %{SOURCE1} .
%build
gcc %{optflags} -fPIC -shared -Wl,-soname,libgreet.so.1 -o libgreet.so.1 greet.c
ln -s libgreet.so.1 libgreet.so
gcc %{optflags} -o greet main.c -L. -lgreet
%install
install -D greet %{buildroot}%{_bindir}/greet
install -D libgreet.so.1 %{buildroot}%{_libdir}/libgreet.so.1
ln -s libgreet.so.1 %{buildroot}%{_libdir}/libgreet.so
%files
%{_bindir}/greet
%files libs
%{_libdir}/libgreet.so.1
%files devel
%{_libdir}/libgreet.so
`, "greet.c": "int greet(void) { return 42; }\n", "main.c": "int greet(void);\nint main(void) { return greet() != 42; }\n"})
		return y.end(y.submit(build.Request{Repo: "rpms/greet", Target: "self"}, nil))
	}()
	if w.State != build.Complete {
		y.Fatalf("%s %s: %s %s", w.State, w.Code, w.Message, w.Line)
	}
	for _, sub := range []string{"", "-libs", "-devel", "-debuginfo", "-libs-debuginfo", "-debugsource"} {
		if !strings.Contains(files(w), "greet"+sub+"-1.0-1.t.x86_64.rpm") {
			y.Errorf("greet%s is not there: %s", sub, files(w))
		}
	}
	// What it made is a package that the next build can require, from the tag's own repository.
	u := y.scratch("user", spec("user", "BuildRequires: greet-libs, libgreet.so.1()(64bit)", "ls /usr/lib64/libgreet.so.1"), nil)
	if u.State != build.Complete {
		y.Errorf("%s %s: %s %s", u.State, u.Code, u.Message, u.Line)
	}
	y.clean()
}

func dynamic(y *yard) {
	w := y.scratch("asks", spec("asks", "%generate_buildrequires\necho diffutils\necho make", "make --version >made"), nil)
	if w.State != build.Complete || !strings.Contains(y.log(w, "root.log"), "make") {
		y.Errorf("%s %s: %s %s", w.State, w.Code, w.Message, w.Line)
	}
	root, err := y.s.Build.Root(y.Context(), w.Tasks[2].Before)
	y.ok(err)
	found := false
	for _, p := range root {
		found = found || strings.HasPrefix(p.NEVRA, "make-")
	}
	if !found || w.Tasks[2].After != w.Tasks[2].Before {
		y.Errorf("the buildroot does not tell of what was asked for: %+v", w.Tasks[2])
	}
	w = y.scratch("asks-nonsense", spec("asks-nonsense", "%generate_buildrequires\necho 'nonsense(at-all) >= 3'", ""), nil)
	if w.State != build.Failed || w.Code != "deps_unresolved" || !strings.Contains(w.Message, "nonsense(at-all) >= 3") || !strings.Contains(w.Message, "%generate_buildrequires of asks-nonsense") {
		y.Errorf("%s %s: %s", w.State, w.Code, w.Message)
	}
	y.clean()
}

// mistakes are a packager's: each has its code, says where, and is not tried again.
func mistakes(y *yard) {
	for _, c := range []struct {
		name, more, build string
		code, message     string
		line              string
	}{
		{"broken", "%if 1", "", "spec_parse", "broken", "%if"},
		{"nosource", "Source0: gone.tar.gz", "", "source_missing", "gone.tar.gz", "gone.tar.gz"},
		{"needs", "BuildRequires: nonsense-devel >= 2", "", "deps_unresolved", "nonsense-devel >= 2", ""},
		{"needs-file", "BuildRequires: /usr/bin/nonsense", "", "deps_unresolved", "/usr/bin/nonsense", ""},
		{"needs-rich", "BuildRequires: (make or nonsense)", "", "", "", ""},
		{"needs-extra", "BuildRequires: python3dist(nonsense[extra])", "", "deps_unresolved", "python3dist(nonsense[extra])", ""},
		{"needs-url", "BuildRequires: http://127.0.0.1/x.rpm", "", "requirement", "http://127.0.0.1/x.rpm", ""},
		{"needs-file-outside", "BuildRequires: /tmp/x.rpm", "", "requirement", "/tmp/x.rpm", ""},
		{"fails", "", "echo one\necho \"x.c:3:1: error: expected ';'\" >&2\nexit 3", "build_failed", "fails", "x.c:3:1: error: expected ';'"},
		{"unpackaged", "", "echo >made\nmkdir -p %{buildroot}", "", "", ""},
	} {
		w := y.scratch(c.name, spec(c.name, c.more, c.build), nil)
		last := w.Tasks[len(w.Tasks)-1]
		if c.code == "" {
			if w.State != build.Complete {
				y.Errorf("%s: %s: %s", c.name, w.Code, w.Message)
			}
			continue
		}
		if w.State != build.Failed || w.Code != c.code || !strings.Contains(w.Message, c.message) || !strings.Contains(w.Line, c.line) || w.Remedy == "" || last.Attempt != 1 {
			y.Errorf("%s: %s %s (attempt %d): %s\nline: %s\nremedy: %s", c.name, w.State, w.Code, last.Attempt, w.Message, w.Line, w.Remedy)
		}
	}
	y.clean()
}

// shell opens a shell in the root of a failed build, as `drover build shell` does.
func shell(y *yard) {
	w := y.scratch("dies", spec("dies", "", "echo so far >left.txt\nfalse"), nil)
	task := w.Tasks[len(w.Tasks)-1]
	if w.State != build.Failed || task.Kept == "" || !strings.Contains(w.Remedy, fmt.Sprintf("drover build shell %d", task.ID)) || !strings.Contains(y.log(w, "build.log"), "Bad exit status") {
		y.Fatalf("%s %+v", w.State, task)
	}
	b, err := worker.New(worker.Config{Dir: y.dir, Log: slog.New(slog.NewTextHandler(y.Output(), nil)), Now: time.Now})
	y.ok(err)
	kept, err := b.Kept()
	y.ok(err)
	if len(kept) == 0 || kept[0].Task != task.ID || kept[0].Bytes == 0 || len(kept) > 5 {
		y.Errorf("%+v", kept)
	}
	tty, term := pty(y)
	out := make(chan string, 1)
	go func() {
		var all []byte
		buf := make([]byte, 4096)
		for {
			n, err := term.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil {
				out <- string(all)
				return
			}
		}
	}()
	_, err = term.WriteString("cat /builddir/build/BUILD/left.txt; id -u; touch /etc/x; exit\n")
	y.ok(err)
	y.ok(b.Shell(y.Context(), task.ID, tty))
	y.ok(tty.Close())
	said := <-out
	if !strings.Contains(said, "so far") || !strings.Contains(said, "1000") || !strings.Contains(said, "Permission denied") {
		y.Errorf("the shell said: %s", said)
	}
	y.ok(b.Forget(task.ID))
	if err := b.Forget(task.ID); fault.Code(err) != "root_unknown" {
		y.Error(err)
	}
	if err := b.Shell(y.Context(), task.ID, tty); fault.Code(err) != "root_unknown" {
		y.Error(err)
	}
	y.clean()
}

// pty is a terminal: the side of programs and the side of the person.
func pty(y *yard) (tty, term *os.File) {
	term, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	y.ok(err)
	y.Cleanup(func() { _ = term.Close() })
	y.ok(unix.IoctlSetPointerInt(int(term.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(term.Fd()), unix.TIOCGPTN)
	y.ok(err)
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR, 0)
	y.ok(err)
	return tty, term
}

// hostile builds end with their own failure, touch nothing outside and leave nothing.
func hostile(y *yard) {
	outside := filepath.Join(y.TempDir(), "outside")
	y.ok(os.WriteFile(outside, []byte("host"), 0o666))
	y.ok(os.WriteFile(filepath.Join(filepath.Dir(outside), "stolen-1-1.noarch.rpm"), []byte("host"), 0o644))
	for _, c := range []struct {
		name, build, code string
		limits            func(*wire.Limits)
	}{
		{"forks", "f() { sleep " + marker + " & f & f; }; f; wait", "time_limit", func(l *wire.Limits) { l.Pids = 60; l.Time = 4 }}, // a shell tries to fork for long
		{"crowds", "printf 'j = $(shell seq 100)\\nall: $(j)\\n$(j):\\n\\tsleep 1\\n' >Makefile\nmake -j100", "pids_limit", func(l *wire.Limits) { l.Pids = 40 }},
		{"fills", "cat /dev/zero >zero || :\ncp zero zero2", "disk_limit", func(l *wire.Limits) { l.Disk = 64 << 20 }},
		{"eats", "x=$(head -c 1000000000 /dev/zero | tr '\\0' x); echo ${#x}", "memory_limit", func(l *wire.Limits) { l.Memory = 128 << 20 }},
		{"sleeps", "sleep " + marker, "time_limit", func(l *wire.Limits) { l.Time = 3 }},
		{"hides", "(setsid sleep " + marker + " &)\n(trap '' TERM HUP; exec sleep " + marker + ") &\ndisown -a", "", nil},
		{"calls", "exec 3<>/dev/tcp/" + strings.Replace(strings.TrimPrefix(y.s.URL, "http://"), ":", "/", 1), "build_failed", nil},
		{"escapes", "[ ! -e " + outside + " ] || exit 9\nfor f in /etc/passwd /usr/bin/rpm /var/lib/rpm/rpmdb.sqlite /proc/sys/kernel/hostname /sys/kernel/mm; do\n  ! (echo x >>$f) 2>/dev/null || { echo wrote $f; exit 9; }\ndone\n" +
			"! mount -t tmpfs x /mnt 2>/dev/null\n! chroot / true 2>/dev/null\n! mknod dev b 8 0 2>/dev/null", "", nil},
		{"tampers", "rm -rf /var/lib/rpm/* 2>/dev/null || :\nrpm -e --justdb --nodeps bash 2>/dev/null && exit 9 || :", "", nil},
		// The host takes packages from where rpmbuild writes them: a link there must lead nowhere.
		{"links", "cd /builddir/build\nmv RPMS RPMS.old\nln -s " + filepath.Dir(outside) + " RPMS\nexit 0", "build_failed", nil},
		{"moves", "mv /builddir/build /builddir/away\nmkdir -p /builddir/build/RPMS\nmkfifo /builddir/build/RPMS/x.rpm\ncd /builddir/away", "build_failed", nil},
	} {
		more := ""
		if c.name == "crowds" {
			more = "BuildRequires: make"
		}
		w := y.scratch(c.name, spec(c.name, more, c.build), c.limits)
		last := w.Tasks[len(w.Tasks)-1]
		if c.code == "" {
			if w.State != build.Complete || last.Before != last.After {
				y.Errorf("%s: %s %s: %s %s", c.name, w.State, w.Code, w.Message, w.Line)
			}
		} else if w.State != build.Failed || w.Code != c.code || last.Attempt != 1 || w.Message == "" {
			y.Errorf("%s: %s %s (attempt %d): %s %s", c.name, w.State, w.Code, last.Attempt, w.Message, w.Line)
		}
		y.clean()
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "host" {
		y.Errorf("the file outside: %q, %v", b, err)
	}
}

// verify rebuilds: a package is the same, and one with the time in it is not.
func verify(y *yard) {
	for name, c := range map[string]struct{ build, differs string }{
		"steady": {"echo steady >made", ""},
		"dated":  {"date +%%s%%N >made", "dated-1.0-1.t.noarch.rpm: /usr/share/dated/made has other content"},
	} {
		y.push(name, map[string]string{name + ".spec": spec(name, "", c.build)})
		w := y.end(y.submit(build.Request{Repo: "rpms/" + name}, nil))
		if w.State != build.Complete {
			y.Fatalf("%s %s: %s", w.State, w.Code, w.Message)
		}
		b, err := y.s.Build.Verify(y.sys, w.NVR)
		y.ok(err)
		v := y.end(b)
		if v.State != build.Complete || v.Verdict == nil || v.Verdict.Same != (c.differs == "") || !v.Verdict.Roots {
			y.Fatalf("%s: %s %+v", name, v.State, v.Verdict)
		}
		if c.differs != "" && !strings.Contains(strings.Join(v.Verdict.Differs, "\n"), c.differs) {
			y.Errorf("%q", v.Verdict.Differs)
		}
		if c.differs == "" && (v.RPMs[0].Digest != w.RPMs[0].Digest || v.RPMs[1].Digest != w.RPMs[1].Digest) {
			y.Error("the packages are the same but their files are not")
		}
	}
	y.clean()
}

// layers: a tag that changed gives the same layer when dnf resolves the same set; and what is kept
// is bounded.
func layers(y *yard) {
	n := y.layerCount()
	w := y.end(y.submit(build.Request{Repo: "rpms/motd", Scratch: true}, nil))
	if w.State != build.Complete || y.layerCount() != n {
		y.Errorf("%s, %d layers after %d", w.State, y.layerCount(), n)
	}
	// It is found by what dnf would do, without doing it; what was made for it is not.
	reused := func(w build.Whole) bool {
		w.Tasks = w.Tasks[:2] // the source RPM's task is the first that needs the root
		return strings.Contains(y.log(w, "state.log"), "the packages are those of a root that is here") && !strings.Contains(y.log(w, "state.log"), "dnf installs bash")
	}
	y.push("aside", map[string]string{"aside.spec": spec("aside", "", "")})
	y.end(y.submit(build.Request{Repo: "rpms/aside", Target: "self"}, nil))
	if w = y.end(y.submit(build.Request{Repo: "rpms/motd", Scratch: true}, nil)); !reused(w) {
		y.Errorf("a package that the root does not hold made it anew:\n%s", y.log(w, "state.log"))
	}
	y.push("which", map[string]string{"which.spec": spec("which", "Epoch: 9", "")})
	y.end(y.submit(build.Request{Repo: "rpms/which", Target: "self"}, nil))
	w = y.end(y.submit(build.Request{Repo: "rpms/motd", Scratch: true}, nil))
	root, err := y.s.Build.Root(y.Context(), w.Tasks[2].Before)
	y.ok(err)
	if reused(w) || !slices.ContainsFunc(root, func(p wire.Pkg) bool { return p.NEVRA == "which-9:1.0-1.t.noarch" }) {
		y.Errorf("a package that belongs in the root is not in it: %v\n%s", root, y.log(w, "state.log"))
	}
	y.stop(syscall.SIGTERM)
	b, err := worker.New(worker.Config{Dir: y.dir, Log: slog.New(slog.NewTextHandler(y.Output(), nil)), Now: time.Now})
	y.ok(err)
	kept, err := b.Kept()
	y.ok(err)
	for _, k := range kept {
		y.ok(b.Forget(k.Task))
	}
	y.start("WORKER_TEST_CACHE=1") // one byte: nothing but what is in use
	w = y.end(y.submit(build.Request{Repo: "rpms/motd", Scratch: true}, nil))
	if w.State != build.Complete {
		y.Errorf("%s %s: %s", w.State, w.Code, w.Message)
	}
	if n := y.layerCount(); n != 1 {
		y.Errorf("%d layers stay", n)
	}
	y.clean()
}

// stopped gives its task back at once.
func stopped(y *yard) {
	y.push("long", map[string]string{"long.spec": spec("long", "", "sleep $(cat /proc/sys/kernel/random/uuid | wc -c)")})
	b := y.submit(build.Request{Repo: "rpms/long", Scratch: true}, nil)
	y.until(b.ID, "it builds", func(w build.Whole) bool { return len(w.Tasks) == 3 && w.Tasks[2].State == build.TaskOpen })
	began := time.Now()
	y.stop(syscall.SIGTERM)
	w := y.until(b.ID, "the task is given back", func(w build.Whole) bool { return w.Tasks[2].State == build.TaskFree })
	// The builder may be stopped before the task that it was handed has come to it.
	if c := w.Tasks[2].Code; c != "builder_stopping" && c != "builder_dropped" || time.Since(began) > 10*time.Second {
		y.Errorf("after %s: %+v", time.Since(began), w.Tasks[2])
	}
	y.clean()
	y.start()
	y.until(b.ID, "it is taken again", func(w build.Whole) bool { return w.Tasks[2].State == build.TaskOpen })
	y.ok(y.s.Build.Cancel(y.sys, b.ID, ""))
	y.clean()
}

// killed at any moment, the builder leaves nothing that its next life does not clear away, and no
// half-made layer is ever used.
func killed(y *yard) {
	y.push("slow", map[string]string{"slow.spec": spec("slow", "BuildRequires: patch, sed", "sleep "+marker)})
	b := y.submit(build.Request{Repo: "rpms/slow", Scratch: true}, nil)
	y.until(b.ID, "rpmbuild runs", func(w build.Whole) bool {
		return len(w.Tasks) == 3 && w.Tasks[2].State == build.TaskOpen && len(glob(filepath.Join(y.dir, "roots/roots/*/run/*"))) > 0 && sleeping()
	})
	y.stop(syscall.SIGKILL)
	y.start()
	y.until(b.ID, "it is taken again", func(w build.Whole) bool { return w.Tasks[2].Attempt == 2 && w.Tasks[2].State == build.TaskOpen })
	y.ok(y.s.Build.Cancel(y.sys, b.ID, ""))
	y.clean()

	// While dnf makes a layer. The index is gone, so that it has to be made anew.
	for _, name := range glob(filepath.Join(y.dir, "index/*")) {
		y.ok(os.Remove(name))
	}
	for _, name := range glob(filepath.Join(y.dir, "layers/*")) {
		y.ok(os.RemoveAll(name))
	}
	b = y.submit(build.Request{Repo: "rpms/motd", Scratch: true}, nil)
	y.until(b.ID, "dnf writes", func(build.Whole) bool {
		return len(glob(filepath.Join(y.dir, "roots/roots/*/fs/upper/usr/bin/*"))) > 20
	})
	y.stop(syscall.SIGKILL)
	if n := len(glob(filepath.Join(y.dir, "index/*"))); n != 0 || y.layerCount() != 0 {
		y.Errorf("%d indexes, %d layers of what was half made", n, y.layerCount())
	}
	y.start()
	if w := y.end(b); w.State != build.Complete || w.Tasks[1].Attempt != 2 {
		y.Errorf("%s %s: %s", w.State, w.Code, w.Message)
	}
	y.clean()
}

func glob(pattern string) []string {
	names, _ := filepath.Glob(pattern) // the patterns are well formed
	return names
}

func sleeping() bool {
	for _, p := range glob("/proc/[0-9]*/cmdline") {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), "sleep\x00"+marker) {
			return true
		}
	}
	return false
}
