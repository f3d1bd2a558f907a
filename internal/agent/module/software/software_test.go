package software

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

// testManager has an empty root and no programs.
func testManager(t *testing.T) *manager {
	t.Helper()
	return &manager{root: t.TempDir(), arch: "x86_64", run: func(_ context.Context, _ []string, argv ...string) (output, error) {
		return output{}, fault.Unavailable("program_missing", "%v", argv)
	}}
}

func call(t *testing.T, m *manager, test bool, name string, args []any, named map[string]any) (any, error) {
	t.Helper()
	f, ok := module.NewRegistry(m.functions()).Get(name)
	if !ok {
		t.Fatalf("there is no function %s", name)
	}
	host := &module.Host{Dir: t.TempDir(), Fetch: func(_ context.Context, source string) (io.ReadCloser, error) {
		if p, ok := strings.CutPrefix(source, "salt:/"); ok {
			return os.Open(p)
		}
		return nil, errors.New("there is no " + source)
	}}
	c, err := module.Bind(host, f, args, named, test)
	if err != nil {
		t.Fatal(err)
	}
	return f.Run(t.Context(), c)
}

func must(t *testing.T, m *manager, name string, args []any, named map[string]any) any {
	t.Helper()
	v, err := call(t, m, false, name, args, named)
	if err != nil {
		t.Errorf("%s %v %v: %v", name, args, named, err)
	}
	return v
}

func write(t *testing.T, m *manager, name, text string) {
	t.Helper()
	p := m.path(name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func has(t *testing.T, m *manager, name, want string) {
	t.Helper()
	got, err := module.ReadFile(m.path(name))
	if err != nil {
		t.Error(err)
	}
	equal(t, name, want, got)
}

// equal compares as JSON does: results go to the server as that.
func equal(t *testing.T, what string, want, got any) {
	t.Helper()
	plain := func(v any) (x any) {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &x); err != nil {
			t.Fatal(err)
		}
		return x
	}
	if d := cmp.Diff(plain(want), plain(got)); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestFunctionsAreDescribed(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range Functions() {
		doc, example, ok := strings.Cut(f.Doc, "\n\n")
		if !ok || !strings.HasSuffix(doc, ".") || !strings.HasPrefix(example, "salt '*' "+f.Name) {
			t.Errorf("%s: %q", f.Name, f.Doc)
		}
		if seen[f.Name] || f.Run == nil || f.Reads == f.Tests {
			t.Errorf("%s: there twice %v, reads %v, tests %v", f.Name, seen[f.Name], f.Reads, f.Tests)
		}
		seen[f.Name] = true
	}
}

func TestVersionsAreCompared(t *testing.T) {
	for _, s := range []struct {
		a, b   string
		ignore bool
		want   int
	}{{"1.0-1", "1.0-2", false, -1}, {"1.0", "1.0-2", false, 0}, {"1:1.0-1", "2.0-1", false, 1}, {"1:1.0-1", "2.0-1", true, -1}, {"1.0~rc1-1", "1.0-1", false, -1}, {"2.0-1.el10", "2.0-1.el9", false, 1}} {
		if got := compareVersions(s.a, s.b, s.ignore); got != s.want {
			t.Errorf("%s to %s: %d, want %d", s.a, s.b, got, s.want)
		}
	}
}

func TestRequests(t *testing.T) {
	got, err := requests(nil, []any{"a", map[string]any{"b": "1.0-1", "c": nil}, map[string]any{"d": ">= 2"}})
	if err != nil {
		t.Fatal(err)
	}
	var specs []string
	for _, r := range got {
		specs = append(specs, r.spec(false))
	}
	equal(t, "specs", []string{"a", "b-1.0-1", "c", "d >= 2"}, specs)
	equal(t, "a version without a release", "x-2-*", request{"x", "2"}.spec(false))
	equal(t, "any epoch", "x-*:2-1", request{"x", "2-1"}.spec(true))
	equal(t, "an architecture", "x-2-1.i686", request{"x.i686", "2-1"}.spec(false))
	for _, r := range []struct {
		want, have string
		ok         bool
	}{{"", "1-1", true}, {"1-1", "1-1", true}, {"1", "1-1", true}, {"1.*", "1.2-3", true}, {"1.*", "2.2-3", false}, {">= 1.2", "1.2-3", true}, {">1.2", "1.2-3", false}, {"<2", "1.2-3", true}, {"5-1", "4-1,5-1", true}, {"1-1", "", false}} {
		if got := (request{"x", r.want}).matches(r.have, false); got != r.ok {
			t.Errorf("%q is met by %q: %v", r.want, r.have, got)
		}
	}
	for _, bad := range []any{[]any{"-x"}, []any{map[string]any{"a": "-1"}}, "--installroot=/", []any{"a\nb"}} {
		if _, err := requests(nil, bad); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}

func TestRepositories(t *testing.T) {
	m := testManager(t)
	const file = "/etc/yum.repos.d/centos.repo"
	const text = `# the base
[baseos]
name=CentOS Stream $releasever - BaseOS
# choose a mirror
metalink=https://mirrors.centos.org/metalink?repo=centos-baseos-$stream
gpgkey=file:///etc/pki/a
       file:///etc/pki/b
gpgcheck=1

; the second
[appstream]
name = AppStream
baseurl = https://example.com/app
enabled = 1
`
	write(t, m, file, text)
	equal(t, "get_repo", map[string]any{"name": "CentOS Stream $releasever - BaseOS", "metalink": "https://mirrors.centos.org/metalink?repo=centos-baseos-$stream",
		"gpgkey": "file:///etc/pki/a\nfile:///etc/pki/b", "gpgcheck": "1", "comments": []string{"choose a mirror"}}, must(t, m, "pkg.get_repo", []any{"baseos"}, nil))
	equal(t, "no repo", map[string]any{}, must(t, m, "pkg.get_repo", []any{"x"}, nil))
	all := must(t, m, "pkg.list_repos", nil, nil).(map[string]any)
	if len(all) != 2 || all["appstream"].(map[string]any)["file"] != file {
		t.Errorf("list_repos: %v", all)
	}
	// What is not named stays as it was, to the letter.
	must(t, m, "pkg.mod_repo", []any{"baseos"}, map[string]any{"gpgcheck": true})
	has(t, m, file, text)
	must(t, m, "pkg.mod_repo", []any{"baseos"}, map[string]any{"baseurl": "https://example.com/base", "enabled": false, "gpgkey": ""})
	has(t, m, file, strings.NewReplacer("metalink=https://mirrors.centos.org/metalink?repo=centos-baseos-$stream\ngpgkey=file:///etc/pki/a\n       file:///etc/pki/b\n", "",
		"gpgcheck=1\n\n; the second", "gpgcheck=1\n\n; the second\nbaseurl=https://example.com/base\nenabled=0").Replace(text))
	v := must(t, m, "pkg.mod_repo", []any{"extra"}, map[string]any{"humanname": "Extra", "baseurl": []any{"https://a/x", "https://b/x"}, "gpgcheck": 0, "comments": []any{"ours"}})
	equal(t, "mod_repo", map[string]any{"/etc/yum.repos.d/extra.repo": map[string]any{"extra": map[string]any{"name": "Extra", "baseurl": "https://a/x\nhttps://b/x", "gpgcheck": "0", "comments": []string{"ours"}}}}, v)
	has(t, m, "/etc/yum.repos.d/extra.repo", "[extra]\n# ours\nname=Extra\nbaseurl=https://a/x\n    https://b/x\ngpgcheck=0\n")
	equal(t, "del_repo", "File /etc/yum.repos.d/extra.repo containing repo extra has been removed", must(t, m, "pkg.del_repo", []any{"extra"}, nil))
	if m.exists("/etc/yum.repos.d/extra.repo") {
		t.Error("the file is still there")
	}
	equal(t, "del_repo of two", "Repo appstream has been removed from "+file, must(t, m, "pkg.del_repo", []any{"appstream"}, nil))
	equal(t, "del_repo of none", "Error: the appstream repo does not exist in [/etc/yum.repos.d]", must(t, m, "pkg.del_repo", []any{"appstream"}, nil))
	for _, bad := range []struct {
		repo  string
		named map[string]any
	}{
		{"new", map[string]any{"name": "x"}}, {"new", map[string]any{"baseurl": "https://x"}}, {"new", map[string]any{"name": "x", "baseurl": "https://x", "mirrorlist": "https://y"}},
		{"baseos", map[string]any{"baseurl": ""}}, {"a]b\n[c", map[string]any{"name": "x", "baseurl": "y"}}, {"main", map[string]any{"name": "x", "baseurl": "y"}},
		{"baseos", map[string]any{"a=b\nc": "1"}}, {"baseos", map[string]any{"name": ""}},
	} {
		if v, err := call(t, m, false, "pkg.mod_repo", []any{bad.repo}, bad.named); err == nil {
			t.Errorf("%q %v gives %v", bad.repo, bad.named, v)
		}
	}
}

func TestHolds(t *testing.T) {
	for line, want := range map[string]lock{"bash-0:5.2-1.el10.*": {"bash", "5.2-1.el10", false}, "!kernel-core-6.12.0-1.el10.x86_64": {"kernel-core", "6.12.0-1.el10", true}, "vim-2:9.1-1.el10.*": {"vim", "2:9.1-1.el10", false},
		"python3-dnf": {name: "python3-dnf"}, "a-1-1": {"a", "1-1", false}} {
		if got, ok := parseLock(line); !ok || got != want {
			t.Errorf("%s: %+v, %v", line, got, ok)
		}
	}
	const toml = "version = \"1.0\"\n\n[[packages]]\nname = \"bash\"\ncomment = \"x\"\n\n[[packages.conditions]]\nkey = \"evr\"\ncomparator = \"=\"\nvalue = \"5.2-1\"\n\n" +
		"[[packages]]\nname = \"vim\"\n[[packages.conditions]]\nkey = \"evr\"\ncomparator = \"<\"\nvalue = \"9\"\n"
	parts := parseTOML(toml)
	var text string
	for _, b := range parts {
		text += b.text
	}
	equal(t, "the text", toml, text)
	if len(parts) != 3 || !parts[1].is || parts[1].lock != (lock{"bash", "5.2-1", false}) || parts[2].is {
		t.Errorf("%+v", parts)
	}
	file := filepath.Join(t.TempDir(), "versionlock.toml")
	if err := writeLocks(file, append(parts[:0:0], newLock(lock{name: "gcc", evr: "1:15-1"}, true)), true); err != nil {
		t.Fatal(err)
	}
	got, err := module.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if again := parseTOML(got); len(again) != 2 || again[1].lock != (lock{"gcc", "1:15-1", false}) || !strings.HasPrefix(got, "version = \"1.0\"\n") {
		t.Errorf("%s", got)
	}
}

func TestGroupsAreRead(t *testing.T) {
	equal(t, "of dnf 4", map[string][]string{"available environments": {"Server", "Minimal Install"}, "installed": {"Container Management"}, "available": {"Development Tools", "RPM (x) Tools"}},
		parseGroups("Available Environment Groups:\n   Server\n   Minimal Install (minimal-environment)\nInstalled Groups:\n   Container Management\nAvailable Groups:\n   Development Tools (development)\n   RPM (x) Tools (rpm-tools)\n"))
	in, not := parseTable("ID                   Name                 Installed\ncontainer-management Container Management       yes\ndevelopment          Development Tools           no\n")
	equal(t, "of dnf 5", [][]string{{"Container Management"}, {"Development Tools"}}, [][]string{in, not})
	four, ok := parseGroup("Group: Development Tools\n Description: A basic development environment.\n Mandatory Packages:\n   gcc\n   make\n Optional Packages:\n   cmake\n")
	if !ok {
		t.Error("no group")
	}
	equal(t, "info of dnf 4", map[string]any{"type": "package group", "group": "Development Tools", "id": "", "description": "A basic development environment.", "mandatory": []string{"gcc", "make"},
		"default": []string{}, "optional": []string{"cmake"}, "conditional": []string{}}, four.dict())
	five, ok := parseGroup("Id                   : development\nName                 : Development Tools\nDescription          : Tools.\nInstalled            : no\nOrder                : \nMandatory packages   : gcc\n                     : make\nDefault packages     : gdb\n")
	if !ok {
		t.Error("no group")
	}
	equal(t, "info of dnf 5", map[string]any{"type": "package group", "group": "Development Tools", "id": "development", "description": "Tools.", "mandatory": []string{"gcc", "make"},
		"default": []string{"gdb"}, "optional": []string{}, "conditional": []string{}}, five.dict())
}

func TestStaleServices(t *testing.T) {
	m := testManager(t)
	const lib = "7f00-7f01 r-xp 00000000 08:01 123 /usr/lib64/libssl.so.3;6543 (deleted)\n"
	for pid, s := range map[string][2]string{
		"10":   {lib, "0::/system.slice/sshd.service\n"},
		"11":   {lib, "0::/user.slice/user-0.slice/session-1.scope\n"},
		"12":   {"7f00-7f01 r--p 00000000 08:01 123 /usr/share/data (deleted)\n7f00-7f01 r-xp 0 00:01 9 /memfd:x (deleted)\n7f-8f r-xp 0 08:01 9 /usr/bin/x\n", "0::/system.slice/fine.service\n"},
		"13":   {lib, "12:cpu:/x\n1:name=systemd:/system.slice/system-getty.slice/getty@tty1.service/inner\n"},
		"14":   {lib, "0::/user.slice/user-1.slice/user@1.service/app.slice/x.service\n"},
		"self": {lib, "0::/system.slice/self.service\n"},
	} {
		write(t, m, "/proc/"+pid+"/maps", s[0])
		write(t, m, "/proc/"+pid+"/cgroup", s[1])
	}
	equal(t, "services", []string{"getty@tty1", "sshd"}, must(t, m, "pkg.services_need_restart", nil, nil))
}

// A process whose program is replaced while it runs is found for what it is.
func TestDeletedCodeOfARealProcess(t *testing.T) {
	// What lies below /tmp is never taken for a program of the system's, and the tests may run there.
	dir, err := os.MkdirTemp("/var/lib", "drover-stale-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "sleep")
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	text := func() string {
		s, err := module.ReadFile(fmt.Sprintf("/proc/%d/maps", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for i := 0; !strings.Contains(text(), "/sleep") && i < 100; i++ {
		time.Sleep(10 * time.Millisecond)
	}
	if deletedCode(text()) {
		t.Error("stale before anything was deleted")
	}
	if err := os.Remove(exe); err != nil {
		t.Fatal(err)
	}
	if !deletedCode(text()) {
		t.Errorf("not stale:\n%s", text())
	}
}

func TestAlternativesAreRead(t *testing.T) {
	m := testManager(t)
	write(t, m, "/var/lib/alternatives/mta", "manual\n/usr/sbin/sendmail\nmta-man\n/usr/share/man/sendmail.8.gz\n\n/usr/sbin/sendmail.postfix\n60 postfix\n/usr/share/man/postfix.8.gz\n/usr/sbin/sendmail.exim\n@exim@30\n\n")
	if err := errors.Join(os.MkdirAll(m.path("/etc/alternatives"), 0o755), os.Symlink("/usr/sbin/sendmail.exim", m.path("/etc/alternatives/mta"))); err != nil {
		t.Fatal(err)
	}
	equal(t, "show_link", "/usr/sbin/sendmail", must(t, m, "alternatives.show_link", []any{"mta"}, nil))
	equal(t, "show_current", "/usr/sbin/sendmail.exim", must(t, m, "alternatives.show_current", []any{"mta"}, nil))
	equal(t, "check_exists", true, must(t, m, "alternatives.check_exists", []any{"mta", "/usr/sbin/sendmail.postfix"}, nil))
	equal(t, "check_installed", false, must(t, m, "alternatives.check_installed", []any{"mta", "/usr/sbin/sendmail.postfix"}, nil))
	equal(t, "list", map[string]any{"mta": map[string]any{"link": "/usr/sbin/sendmail", "mode": "manual", "current": "/usr/sbin/sendmail.exim",
		"alternatives": map[string]any{"/usr/sbin/sendmail.postfix": 60, "/usr/sbin/sendmail.exim": 30}}}, must(t, m, "alternatives.list", nil, nil))
	equal(t, "display", "mta - status is manual.\n link currently points to /usr/sbin/sendmail.exim\n/usr/sbin/sendmail.postfix - priority 60\n follower mta-man: /usr/share/man/postfix.8.gz\n"+
		"/usr/sbin/sendmail.exim - family exim priority 30\nCurrent `best' version is /usr/sbin/sendmail.postfix.", must(t, m, "alternatives.display", []any{"mta"}, nil))
	equal(t, "none", false, must(t, m, "alternatives.show_current", []any{"none"}, nil))
	for _, bad := range []string{"../../etc/passwd", "-x", ""} {
		if _, err := call(t, m, false, "alternatives.display", []any{bad}, nil); fault.Code(err) != "bad_name" {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// The system's own program makes changes, which are then read natively.
func TestAlternativesForReal(t *testing.T) {
	m := testManager(t)
	m.run = program
	for _, d := range []string{"/etc/alternatives", alternativeDirs[0], "/bin"} {
		if err := os.MkdirAll(m.path(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	a, b, link := m.path("/bin/a"), m.path("/bin/b"), m.path("/bin/x")
	write(t, m, "/bin/a", "")
	write(t, m, "/bin/b", "")
	current := func(want string) {
		t.Helper()
		equal(t, "show_current", want, must(t, m, "alternatives.show_current", []any{"x"}, nil))
	}
	must(t, m, "alternatives.install", []any{"x", link, a, 10}, nil)
	must(t, m, "alternatives.install", []any{"x", link, b, 20}, nil)
	current(b)
	must(t, m, "alternatives.set", []any{"x", a}, nil)
	current(a)
	equal(t, "show_link", link, must(t, m, "alternatives.show_link", []any{"x"}, nil))
	must(t, m, "alternatives.auto", []any{"x"}, nil)
	current(b)
	must(t, m, "alternatives.remove", []any{"x", b}, nil)
	current(a)
	equal(t, "check_exists", false, must(t, m, "alternatives.check_exists", []any{"x", b}, nil))
	if _, err := call(t, m, false, "alternatives.install", []any{"x", "relative", b, 1}, nil); fault.Code(err) != "bad_name" {
		t.Errorf("a link that is no path: %v", err)
	}
}

// specFile is a package that is quickly built.
const specFile = `Name: %[1]s
Version: %[2]s
Release: 1
Summary: the %[1]s
License: MIT
BuildArch: noarch
%[3]s
%%description
About %[1]s.
%%install
mkdir -p %%{buildroot}/etc %%{buildroot}/usr/share/%[1]s
echo %[2]s > %%{buildroot}/usr/share/%[1]s/version
echo conf > %%{buildroot}/etc/%[1]s.conf
%%files
%%config(noreplace) /etc/%[1]s.conf
/usr/share/%[1]s
`

const compsFile = `<?xml version="1.0" encoding="UTF-8"?>
<comps><group><id>tools</id><name>The Tools</name><description>All tools.</description><default>true</default><uservisible>true</uservisible>
<packagelist><packagereq type="mandatory">alpha</packagereq><packagereq type="default">beta</packagereq><packagereq type="optional">gamma</packagereq></packagelist></group></comps>
`

func sh(t *testing.T, env []string, argv ...string) string {
	t.Helper()
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = append(os.Environ(), env...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}

// realManager has a root of its own, and a repository of packages built by rpmbuild.
func realManager(t *testing.T) (*manager, string) {
	t.Helper()
	dir := t.TempDir()
	home, root, repo := filepath.Join(dir, "home"), filepath.Join(dir, "root"), filepath.Join(dir, "repo")
	for _, d := range []string{home, root + "/etc/yum.repos.d", root + "/etc/dnf/plugins", repo} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"HOME=" + home}
	if err := os.WriteFile(home+"/.rpmmacros", []byte("%_dbpath /var/lib/rpm\n%__gpg /usr/bin/gpg\n%_topdir "+dir+"/build\n%_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm\n%_rpmdir "+repo+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, env, "rpm", "--root="+root, "--initdb")
	for _, p := range [][3]string{{"alpha", "1.0", ""}, {"alpha", "2.0", ""}, {"beta", "1.0", "Requires: alpha\nProvides: webserver"}, {"gamma", "3.0", "Epoch: 1\nRequires: delta"}, {"delta", "1.0", ""}} {
		spec := filepath.Join(dir, p[0]+".spec")
		if err := os.WriteFile(spec, fmt.Appendf(nil, specFile, p[0], p[1], p[2]), 0o644); err != nil {
			t.Fatal(err)
		}
		sh(t, env, "rpmbuild", "-bb", "--quiet", spec)
	}
	if err := os.WriteFile(dir+"/comps.xml", []byte(compsFile), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, env, "createrepo_c", "-q", "-g", dir+"/comps.xml", repo)
	m := &manager{root: root, arch: machineArch(), env: env, run: program, extra: []string{"--installroot=" + root, "--releasever=9", "--setopt=reposdir=" + root + "/etc/yum.repos.d",
		"--setopt=varsdir=/nonexistent", "--setopt=cachedir=" + root + "/var/cache/dnf", "--setopt=module_platform_id=platform:el9", "--setopt=keepcache=1"}}
	write(t, m, "/etc/dnf/plugins/versionlock.conf", "[main]\nenabled=1\nlocklist="+m.path(lockList)+"\n")
	write(t, m, lockList, "")
	// dnf's plugins look for their configuration on the machine, not below the root.
	m.extra = append(m.extra, "--setopt=pluginconfpath="+root+"/etc/dnf/plugins")
	must(t, m, "pkg.mod_repo", []any{"own"}, map[string]any{"name": "Own", "baseurl": "file://" + repo, "gpgcheck": false})
	return m, repo
}

// dnf and rpm themselves, on a root of the test's own.
func TestPackagesForReal(t *testing.T) {
	m, repo := realManager(t)
	install := func(want map[string]any, args []any, named map[string]any) {
		t.Helper()
		equal(t, fmt.Sprint("install ", args, named), want, must(t, m, "pkg.install", args, named))
	}
	change := func(old, new string) map[string]any { return map[string]any{"old": old, "new": new} }
	equal(t, "refresh_db", true, must(t, m, "pkg.refresh_db", nil, nil))
	equal(t, "nothing yet", "2.0-1", must(t, m, "pkg.latest_version", []any{"alpha"}, map[string]any{"refresh": false}))
	would, err := call(t, m, true, "pkg.install", []any{"alpha"}, nil)
	equal(t, "test mode", map[string]any{"alpha": change("", "installed")}, would)
	if err != nil || must(t, m, "pkg.version", []any{"alpha"}, nil) != "" {
		t.Error("test mode has installed something", err)
	}
	install(map[string]any{"alpha": change("", "1.0-1")}, []any{"alpha"}, map[string]any{"version": "1.0-1"})
	install(map[string]any{}, []any{"alpha"}, map[string]any{"version": "1.0"})
	equal(t, "latest", "2.0-1", must(t, m, "pkg.latest_version", []any{"alpha"}, nil))
	equal(t, "latest of some", map[string]any{"alpha": "2.0-1", "gamma": "1:3.0-1", "omega": ""}, must(t, m, "pkg.latest_version", []any{"alpha", "gamma", "omega"}, nil))
	equal(t, "upgrade_available", true, must(t, m, "pkg.upgrade_available", []any{"alpha"}, nil))
	equal(t, "list_upgrades", map[string]any{"alpha": "2.0-1"}, must(t, m, "pkg.list_upgrades", nil, nil))
	install(map[string]any{"beta": change("", "1.0-1"), "gamma": change("", "1:3.0-1"), "delta": change("", "1.0-1")}, nil, map[string]any{"pkgs": []any{"beta", map[string]any{"gamma": "1:3.0"}}})
	equal(t, "list_pkgs", map[string]any{"alpha": "1.0-1", "beta": "1.0-1", "gamma": "1:3.0-1", "delta": "1.0-1"}, must(t, m, "pkg.list_pkgs", nil, nil))
	equal(t, "as lists", []string{"1:3.0-1"}, must(t, m, "pkg.list_pkgs", []any{true}, nil).(map[string]any)["gamma"])
	attr := must(t, m, "pkg.list_pkgs", nil, map[string]any{"attr": "epoch,version,arch,install_date_time_t"}).(map[string]any)["gamma"].([]any)[0].(map[string]any)
	if attr["epoch"] != "1" || attr["version"] != "3.0" || attr["arch"] != "noarch" || attr["install_date_time_t"].(int64) < time.Now().Add(-time.Hour).Unix() {
		t.Errorf("attributes: %v", attr)
	}
	equal(t, "version of some", map[string]any{"alpha": "1.0-1", "omega": ""}, must(t, m, "pkg.version", []any{"alpha", "omega"}, nil))
	equal(t, "version by a pattern", map[string]any{"alpha": "1.0-1", "beta": "1.0-1", "gamma": "1:3.0-1", "delta": "1.0-1"}, must(t, m, "pkg.version", []any{"*a"}, nil))
	equal(t, "list_repo_pkgs", map[string]any{"alpha": []string{"2.0-1", "1.0-1"}}, must(t, m, "pkg.list_repo_pkgs", []any{"alpha"}, nil))
	equal(t, "by repository", map[string]any{"own": map[string]any{"beta": []string{"1.0-1"}}}, must(t, m, "pkg.list_repo_pkgs", []any{"beta"}, map[string]any{"byrepo": true}))
	equal(t, "what_provides", []string{"beta"}, must(t, m, "pkg.what_provides", []any{"webserver"}, nil))

	// A hold keeps a package where it is; dnf itself heeds the file.
	held := must(t, m, "pkg.hold", []any{"alpha"}, nil).(map[string]any)["alpha"].(map[string]any)
	equal(t, "hold", map[string]any{"new": "hold", "old": ""}, held["changes"])
	has(t, m, lockList, "alpha-0:1.0-1.*\n")
	equal(t, "list_holds", []string{"alpha-0:1.0-1.*"}, must(t, m, "pkg.list_holds", nil, nil))
	equal(t, "names", []string{"alpha"}, must(t, m, "pkg.list_holds", nil, map[string]any{"full": false}))
	equal(t, "an upgrade of all", map[string]any{}, must(t, m, "pkg.upgrade", nil, nil))
	install(map[string]any{"alpha": change("1.0-1", "2.0-1")}, []any{"alpha"}, map[string]any{"version": "2.0-1", "update_holds": true})
	has(t, m, lockList, "alpha-0:2.0-1.*\n")
	again := must(t, m, "pkg.hold", []any{"alpha"}, nil).(map[string]any)["alpha"].(map[string]any)
	equal(t, "hold again", map[string]any{}, again["changes"])
	equal(t, "unhold", map[string]any{"new": "", "old": "hold"}, must(t, m, "pkg.unhold", []any{"alpha"}, nil).(map[string]any)["alpha"].(map[string]any)["changes"])
	has(t, m, lockList, "")

	// Back to the older version, in the same way as to a newer one.
	install(map[string]any{"alpha": change("2.0-1", "1.0-1")}, nil, map[string]any{"pkgs": []any{map[string]any{"alpha": "1.0-1"}}})
	would, err = call(t, m, true, "pkg.upgrade", nil, nil)
	equal(t, "upgrade in test mode", map[string]any{"alpha": change("1.0-1", "2.0-1")}, would)
	if err != nil {
		t.Error(err)
	}
	equal(t, "upgrade", map[string]any{"alpha": change("1.0-1", "2.0-1")}, must(t, m, "pkg.upgrade", nil, nil))
	equal(t, "nothing newer", "", must(t, m, "pkg.latest_version", []any{"alpha"}, nil))
	install(map[string]any{"alpha": change("2.0-1", "2.0-1")}, []any{"alpha"}, map[string]any{"reinstall": true})

	filesOf(t, m)

	if _, err := call(t, m, false, "pkg.install", []any{"omega"}, nil); fault.Code(err) != "dnf_failed" || !strings.Contains(err.Error(), "omega") {
		t.Errorf("a package that is not there: %v", err)
	}
	for _, bad := range []map[string]any{{"name": "--setopt=x"}, {"pkgs": []any{"-y"}}, {"name": "alpha", "fromrepo": "-x"}, {"name": "alpha", "version": "-1"}} {
		if _, err := call(t, m, false, "pkg.install", nil, bad); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
	equal(t, "remove", map[string]any{"gamma": change("1:3.0-1", ""), "delta": change("1.0-1", "")}, must(t, m, "pkg.remove", []any{"gamma"}, nil))
	equal(t, "remove what is gone", map[string]any{}, must(t, m, "pkg.purge", []any{"gamma"}, nil))
	would, err = call(t, m, true, "pkg.remove", []any{"beta"}, nil)
	equal(t, "remove in test mode", map[string]any{"beta": change("1.0-1", "")}, would)
	if err != nil {
		t.Error(err)
	}
	install(map[string]any{"delta": change("", "1.0-1")}, nil, map[string]any{"sources": []any{map[string]any{"delta": repo + "/delta-1.0-1.noarch.rpm"}}})
	must(t, m, "pkg.remove", []any{"delta"}, nil)
	install(map[string]any{"delta": change("", "1.0-1")}, nil, map[string]any{"sources": []any{map[string]any{"delta": "salt:/" + repo + "/delta-1.0-1.noarch.rpm"}}})
	got := must(t, m, "pkg.download", []any{"gamma"}, nil).(map[string]any)
	equal(t, "download", map[string]any{"gamma": m.path(downloads + "/gamma-3.0-1.noarch.rpm")}, got)
	if d := must(t, m, "pkg.list_downloaded", nil, nil).(map[string]map[string]any); d["gamma"]["1:3.0-1"] == nil {
		t.Errorf("list_downloaded: %v", d)
	}

	must(t, m, "pkg.remove", nil, map[string]any{"pkgs": []any{"alpha", "beta", "delta"}})
	groups := must(t, m, "pkg.group_list", nil, nil).(map[string]any)
	if !slices.Contains(groups["available"].([]string), "The Tools") {
		t.Errorf("group_list: %v", groups)
	}
	info := must(t, m, "pkg.group_info", []any{"The Tools"}, nil).(map[string]any)
	equal(t, "group_info", []any{[]string{"alpha"}, []string{"beta"}, []string{"gamma"}}, []any{info["mandatory"], info["default"], info["optional"]})
	equal(t, "group_install", map[string]any{"alpha": change("", "2.0-1"), "gamma": change("", "1:3.0-1"), "delta": change("", "1.0-1")},
		must(t, m, "pkg.group_install", []any{"The Tools"}, map[string]any{"skip": "beta", "include": "gamma"}))
	if _, err := call(t, m, false, "pkg.group_info", []any{"No Tools"}, nil); fault.Code(err) != "group_missing" {
		t.Errorf("a group that is not there: %v", err)
	}
}

// filesOf is the part on files, with alpha 2.0 and beta installed.
func filesOf(t *testing.T, m *manager) {
	t.Helper()
	equal(t, "owner", "alpha", must(t, m, "pkg.owner", []any{"/etc/alpha.conf"}, nil))
	equal(t, "owner of nobody's", "", must(t, m, "pkg.owner", []any{"/etc/nobody"}, nil))
	equal(t, "owners", map[string]any{"/etc/alpha.conf": "alpha", "/etc/beta.conf": "beta"}, must(t, m, "lowpkg.owner", []any{"/etc/alpha.conf", "/etc/beta.conf"}, nil))
	list := []string{"/etc/alpha.conf", "/usr/share/alpha", "/usr/share/alpha/version"}
	equal(t, "file_list", map[string]any{"errors": []string{"package omega is not installed"}, "files": list}, must(t, m, "pkg.file_list", []any{"alpha", "omega"}, nil))
	equal(t, "file_dict", map[string]any{"errors": []string{}, "packages": map[string]any{"alpha": list}}, must(t, m, "pkg.file_dict", []any{"alpha"}, nil))
	equal(t, "verify", map[string]any{}, must(t, m, "pkg.verify", []any{"alpha"}, nil))
	write(t, m, "/etc/alpha.conf", "changed by hand\n")
	if err := os.Remove(m.path("/usr/share/beta/version")); err != nil {
		t.Fatal(err)
	}
	v := must(t, m, "pkg.verify", nil, nil).(map[string]any)
	conf := v["/etc/alpha.conf"].(map[string]any)
	if len(v) != 2 || conf["type"] != "config" || !slices.Contains(conf["mismatch"].([]string), "md5sum") || v["/usr/share/beta/version"].(map[string]any)["missing"] != any(true) {
		t.Errorf("verify: %v", v)
	}
	equal(t, "without configuration", map[string]any{"/usr/share/beta/version": map[string]any{"missing": true}}, must(t, m, "pkg.verify", nil, map[string]any{"ignore_types": "config"}))
	equal(t, "modified", []string{"/etc/alpha.conf"}, must(t, m, "pkg.modified", nil, nil))
	equal(t, "modified owners", []string{}, must(t, m, "pkg.modified", []any{"alpha"}, map[string]any{"owner": true}))
	info := must(t, m, "pkg.info_installed", []any{"alpha"}, nil).(map[string]any)["alpha"].(map[string]any)
	if info["version"] != "2.0" || info["summary"] != "the alpha" || info["license"] != "MIT" || info["source"] == nil {
		t.Errorf("info_installed: %v", info)
	}
	if _, err := call(t, m, false, "pkg.info_installed", []any{"omega"}, nil); fault.Code(err) != "package_missing" {
		t.Errorf("info of what is not installed: %v", err)
	}
}

// A transaction that is called off is asked to end, with all that it has started.
func TestProgramsEndWithTheCall(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := program(ctx, nil, "sh", "-c", "sleep 62.5 & sleep 62.5"); err == nil || time.Since(start) > 20*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	if _, err := program(t.Context(), nil, "no-such-program-here"); fault.Code(err) != "program_missing" {
		t.Errorf("a program that is not there: %v", err)
	}
}
