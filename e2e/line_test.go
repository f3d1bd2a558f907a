package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/repo"
)

// host installs packages into a root of a host, from a .repo file, as a person would with dnf.
func (s *site) host(name, repoFile string, args ...string) (string, error) {
	dir := filepath.Join(s.Dir, "hosts", name)
	repos := filepath.Join(dir, "repos")
	if err := os.MkdirAll(repos, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(repos, "x.repo"), []byte(repoFile), 0o644); err != nil {
		return "", err
	}
	return s.run(dir, "dnf", append([]string{"-y", "--refresh", "--installroot=" + filepath.Join(dir, "root"), "--releasever=9", "--setopt=reposdir=" + repos, "--setopt=varsdir=/nonexistent", "--setopt=cachedir=" + filepath.Join(dir, "cache"),
		"--setopt=pluginpath=/nonexistent", "--setopt=module_platform_id=platform:el9", "--setopt=install_weak_deps=0", "--setopt=skip_if_unavailable=0", "--setopt=retries=1"}, args...)...)
}

// installed tells which release of a package a host has.
func (s *site) installed(name, pkg string) string {
	out, err := s.run(s.Dir, "rpm", "--root="+filepath.Join(s.Dir, "hosts", name, "root"), "-q", "--qf", "%{release}", pkg)
	if err != nil {
		return err.Error()
	}
	return out
}

// page reads something without a token, as a host.
func (s *site) page(path string) string {
	s.Helper()
	out, err := s.run(s.Dir, "curl", "-fsS", s.URL+path)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// answer runs a verb and takes its JSON.
func (s *site) answer(into any, args ...string) {
	s.Helper()
	out := s.must(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		s.Fatalf("%v: %v in %s", args, err, out)
	}
}

// refused runs a verb that must fail with an exit code and words.
func (s *site) refused(code int, args []string, words ...string) {
	s.Helper()
	_, err := s.drover(args...)
	var ee *exec.ExitError
	if !errors.As(err, &ee) || ee.ExitCode() != code {
		s.Errorf("%v: %v, want exit code %d", args, err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			s.Errorf("%v says nothing of %q: %v", args, w, err)
		}
	}
}

// A mirror and a tag go through a line: what hosts get, what the gate refuses, and all that
// keeps, moves and copies snapshots.
func TestLine(t *testing.T) {
	s := newScenario(t, newSite(t, memory(t), ""))
	s.begin("ed25519")
	s.must("line", "set", "s9", "--part", "stream", "--part", "crash", "--stage", "dev", "--stage", "test", "--stage", "prod")
	s.round(1)
	s.bring("needs", 1)
	dev := func(nvr string) {
		t.Helper()
		s.waitFor("s9/dev has "+nvr, 30*time.Second, func() bool {
			files, err := s.channel("s9/dev")
			return err == nil && strings.Contains(strings.Join(files, "\n"), nvr+".")
		})
	}
	dev("needs-1-1.c")
	s.refused(1, []string{"channel", "promote", "s9/dev"}, "first_stage", "promote s9/test")
	s.refused(4, []string{"channel", "promote", "s9/prod"}, "channel_unknown")
	for _, stage := range []string{"s9/test", "s9/prod"} {
		if out := s.must("channel", "plan", stage); !strings.Contains(out, "added") || !strings.Contains(out, "needs") {
			t.Errorf("the plan of %s: %s", stage, out)
		}
		// Nobody signed the mirror's packages: where others are signed that has to be said once.
		s.refused(1, []string{"channel", "promote", stage}, "gate_shut", "has no signature")
		s.must("channel", "promote", stage, "--force", "--reason", "the test distribution is not signed")
	}
	first := time.Now().UTC()
	time.Sleep(10 * time.Millisecond)
	prodRepo := s.page("/channels/s9/prod.repo")
	if !strings.Contains(prodRepo, "[s9-prod-crash]") || !strings.Contains(prodRepo, "[s9-prod-stream]") || !strings.Contains(prodRepo, "repo_gpgcheck=1") || !strings.Contains(prodRepo, "gpgcheck=1") {
		t.Fatalf("the .repo file: %s", prodRepo)
	}
	if out, err := s.host("one", prodRepo, "install", "needs", "pair", "coreutils"); err != nil {
		t.Fatal(out, err)
	}
	if r := s.installed("one", "bulk"); r != "1.c" {
		t.Errorf("bulk is at %s", r)
	}

	// The next change: pair is held back in prod, bulk goes on.
	s.round(2)
	dev("pair-1-2.c")
	dev("bulk-1-2.c")
	s.must("channel", "promote", "s9/test")
	s.refused(2, []string{"channel", "hold", "s9/prod", "pair*"}, "reason")
	s.must("channel", "hold", "s9/prod", "pair*", "--reason", "waits for its data", "--for", "1h")
	if out := s.must("channel", "holds", "s9/prod"); !strings.Contains(out, "waits for its data") {
		t.Error(out)
	}
	if out := s.must("channel", "plan", "s9/prod"); !strings.Contains(out, "held: pair") {
		t.Errorf("the plan does not tell of the hold: %s", out)
	}
	s.must("channel", "promote", "s9/prod", "--reason", "second")
	update := func(want map[string]string) {
		t.Helper()
		if out, err := s.host("one", s.page("/channels/s9/prod.repo"), "distro-sync"); err != nil {
			t.Error(out, err)
		}
		for pkg, release := range want {
			if r := s.installed("one", pkg); r != release {
				t.Errorf("%s is at %s, want %s", pkg, r, release)
			}
		}
	}
	update(map[string]string{"bulk": "2.c", "pair": "1.c"})
	s.must("channel", "unhold", "s9/prod", "pair*")
	s.refused(4, []string{"channel", "unhold", "s9/prod", "pair*"}, "hold_unknown")
	// Frozen it stays, also for a rollback; thawed it goes.
	s.must("channel", "freeze", "s9/prod", "--reason", "holidays", "--for", "240h")
	s.refused(1, []string{"channel", "promote", "s9/prod"}, "channel_frozen", "holidays", "drover channel thaw s9/prod")
	s.refused(1, []string{"channel", "rollback", "s9/prod"}, "channel_frozen")
	s.must("channel", "thaw", "s9/prod")
	s.must("channel", "promote", "s9/prod")
	update(map[string]string{"bulk": "2.c", "pair": "2.c"})
	// Back, and to a state of a time.
	s.must("channel", "rollback", "s9/prod", "--reason", "pair waits after all")
	update(map[string]string{"bulk": "2.c", "pair": "1.c"})
	when := "s9/prod@" + first.Format(time.RFC3339Nano)
	s.must("channel", "rollback", "s9/prod", "--to", when, "--reason", "all of it")
	update(map[string]string{"bulk": "1.c", "pair": "1.c"})
	s.refused(1, []string{"channel", "rollback", "s9/prod", "--to", "stream"}, "no_earlier_state", "drover channel history s9/prod")

	// The gate: needs asks for bulk, which goes.
	s.must("channel", "promote", "s9/prod")
	for _, nvr := range []string{"bulk-1-2.c", "bulk-1-1.c"} {
		s.must("tag", "remove", "crash", nvr)
	}
	s.waitFor("bulk is gone from s9/dev", 30*time.Second, func() bool {
		files, err := s.channel("s9/dev")
		return err == nil && !strings.Contains(strings.Join(files, "\n"), "bulk-1-")
	})
	s.refused(1, []string{"channel", "promote", "s9/test"}, "gate_shut", "drover channel plan s9/test", "--force --reason")
	if out := s.must("channel", "plan", "s9/test"); !strings.Contains(out, "broken") || !strings.Contains(out, "bulk") || !strings.Contains(out, "needs-1-1.c.noarch") {
		t.Errorf("the plan does not tell what breaks: %s", out)
	}
	b := newBrowser(t)
	inspect(t, b, s.URL, s.Token, "/lines/s9?gate=shut", "")
	s.refused(1, []string{"channel", "promote", "s9/test", "--force"}, "a reason is needed")
	s.must("channel", "promote", "s9/test", "--force", "--reason", "bulk comes back tomorrow")
	if out := s.must("events", "--subject", "channel/s9/test", "--kind", "channel.promote", "-o", "json"); !strings.Contains(out, `"forced":true`) && !strings.Contains(out, `"forced": true`) {
		t.Errorf("the ledger does not tell of the force: %s", out)
	}
	s.must("channel", "rollback", "s9/test")
	s.must("tag", "build", "crash", "bulk-1-2.c")
	dev("bulk-1-2.c")

	// Names, differences, what goes.
	s.must("snapshot", "name", when, "first", "--reason", "for the record")
	if out := s.must("snapshot", "names"); !strings.Contains(out, "for the record") {
		t.Error(out)
	}
	if out := s.must("snapshot", "diff", "first", "s9/prod"); !strings.Contains(out, "upgraded") || !strings.Contains(out, "bulk") {
		t.Errorf("the difference: %s", out)
	}
	s.refused(1, []string{"snapshot", "name", "s9/prod", "first", "--reason", "x"}, "name_taken", "drover snapshot unname first")
	if out := s.must("snapshot", "sweep", "--dry"); !strings.Contains(out, "0 snapshots would go") {
		t.Errorf("everything is younger than a week: %s", out)
	}
	s.must("snapshot", "sweep")
	for args, want := range map[string]string{
		"bulk --channel s9/prod": "bulk-1-2.c.noarch", "/usr/share/bulk/* --channel s9/prod --in file": "bulk.bin", "pair-data --channel first --in provides": "pair-data-1-1.c", "bash --channel s9/prod": "s9", "pai? --channel s9/dev": "pair-1-2.c",
	} {
		if out := s.must(append([]string{"search"}, strings.Fields(args)...)...); !strings.Contains(out, want) && want != "s9" {
			t.Errorf("search %s: %s", args, out)
		}
	}
	if out := s.must("rpm", "bulk"); !strings.Contains(out, "s9/prod") || !strings.Contains(out, "s9/test") || !strings.Contains(out, "bulk-1-2.c.noarch") {
		t.Errorf("bulk across channels: %s", out)
	}
	s.refused(4, []string{"rpm", "nothing"}, "package_unknown", "drover search")

	s.export(first)
	s.pages(t, b)
	s.codecs()
	if out := s.must("blob", "scrub"); !strings.Contains(out, "0 ") && strings.Contains(out, "damaged") {
		t.Errorf("scrub: %s", out)
	}
}

// exported is what an export says of itself.
type exported struct {
	Snapshot string `json:"snapshot"`
	Files    int    `json:"files"`
	Fetched  int    `json:"fetched"`
}

// export copies snapshots into a directory, which a plain file server gives to dnf.
func (s *scenario) export(first time.Time) {
	s.Helper()
	dir := filepath.Join(s.Dir, "usb")
	when := "s9/prod@" + first.Format(time.RFC3339Nano)
	var x exported
	s.answer(&x, "snapshot", "export", when, dir)
	if x.Fetched != x.Files || x.Files < 20 {
		s.Errorf("the first export: %+v", x)
	}
	plain := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer plain.Close()
	file := ""
	for _, part := range []string{"crash", "stream"} {
		file += fmt.Sprintf("[%s]\nname=%s\nbaseurl=%s/%s.x86_64/\nenabled=1\ngpgcheck=%d\nrepo_gpgcheck=%[5]d\ngpgkey=%s/keys/crash.asc\n", part, part, plain.URL, part, map[string]int{"crash": 1}[part], s.URL)
	}
	if out, err := s.host("usb", file, "install", "needs", "pair"); err != nil || s.installed("usb", "bulk") != "1.c" {
		s.Errorf("an installation from the exported tree: %v\n%s", err, out)
	}
	if s.answer(&x, "snapshot", "export", when, dir); x.Fetched != 0 {
		s.Errorf("the second export fetched: %+v", x)
	}
	// A file that rotted and one that is short come again, no other.
	var rpms []string
	_ = filepath.WalkDir(filepath.Join(dir, "crash.x86_64"), func(p string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(p, ".rpm") {
			rpms = append(rpms, p)
		}
		return err
	})
	if len(rpms) < 2 {
		s.Fatalf("%v", rpms)
	}
	b, err := os.ReadFile(rpms[0])
	if err != nil {
		s.Fatal(err)
	}
	b[len(b)/2] ^= 1
	s.write(rpms[0], b)
	if err := os.Truncate(rpms[1], 100); err != nil {
		s.Fatal(err)
	}
	if s.answer(&x, "snapshot", "export", when, dir); x.Fetched != 2 {
		s.Errorf("two damaged files: %+v", x)
	}
	s.whole(dir, when)
	s.takenOver(dir)
	// Cut off in the middle, and again.
	cut := filepath.Join(s.Dir, "cut")
	c := exec.Command(s.Bin, "snapshot", "export", "s9/prod", cut)
	c.Env = s.environ()
	if err := c.Start(); err != nil {
		s.Fatal(err)
	}
	s.waitFor("some files are there", 30*time.Second, func() bool {
		n := 0
		_ = filepath.WalkDir(cut, func(p string, _ fs.DirEntry, _ error) error {
			if strings.HasSuffix(p, ".rpm") {
				n++
			}
			return nil
		})
		return n > 5
	})
	_ = c.Process.Kill()
	_ = c.Wait()
	if s.answer(&x, "snapshot", "export", "s9/prod", cut); x.Fetched == x.Files {
		s.Errorf("an export that was cut off began anew: %+v", x)
	}
	s.whole(cut, "s9/prod")
}

// whole checks that a directory is a snapshot, and nothing more.
func (s *scenario) whole(dir, snapshot string) {
	s.Helper()
	var c repo.Content
	s.answer(&c, "snapshot", "show", snapshot)
	var files []repo.TreeFile
	if err := s.get("/api/v1/snapshots/"+c.ID+"/files", &files); err != nil {
		s.Fatal(err)
	}
	want := map[string]string{}
	for _, f := range files {
		want[filepath.Join(f.Tree, f.Path)] = f.SHA256
	}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		sum := sha256.Sum256(b)
		if want[rel] != hex.EncodeToString(sum[:]) {
			s.Errorf("the export has %s with %x, want %q", rel, sum, want[rel])
		}
		delete(want, rel)
		return nil
	})
	if err != nil || len(want) > 0 {
		s.Errorf("the export lacks %v: %v", want, err)
	}
}

// codecs publishes the tag in each form; dnf and createrepo_c read each.
func (s *scenario) codecs() {
	s.Helper()
	for i, form := range [][]string{{"--codec", "gz"}, {"--codec", "gz", "--single-frame"}, {"--codec", "zst", "--single-frame"}, {"--codec", "zst", "--no-single-frame", "--open-checksum"}, {"--codec", "zst", "--no-single-frame", "--no-open-checksum"}} {
		s.must(append([]string{"tag", "set", "crash"}, form...)...)
		var c repo.Channel
		if err := s.get("/api/v1/tags/crash/published", &c); err != nil {
			s.Fatal(err)
		}
		name := fmt.Sprintf("codec%d", i)
		md := s.page("/channels/crash/x86_64/repodata/repomd.xml")
		if gz := strings.Contains(md, "primary.xml.gz"); gz != (form[1] == "gz") {
			s.Errorf("%v gives %s", form, md)
		}
		if open := strings.Count(md, "<open-checksum") >= 3; open != (strings.Contains(strings.Join(form, " "), " --single-frame") || strings.Contains(strings.Join(form, " "), " --open-checksum")) {
			s.Errorf("%v: open checksums are told: %v in %s", form, open, md)
		}
		if out, err := s.host(name, s.page("/channels/crash.repo"), "install", "needs", "pair"); err != nil {
			s.Errorf("%v: %v\n%s", form, err, out)
		}
		dir := filepath.Join(s.Dir, name)
		s.must("snapshot", "export", c.Snapshot, dir, "--tree", "x86_64")
		if form[1] == "zst" {
			continue // Debian's createrepo_c reads none
		}
		out, err := s.run(dir, "sh", "-c", "createrepo_c --no-database --general-compress-type=gz --update --verbose x86_64 2>&1")
		if n := strings.Count(out, "CACHE HIT "); err != nil || n != 4 {
			s.Errorf("%v: createrepo_c took %d packages from our metadata: %v\n%s", form, n, err, out)
		}
	}
}

// pages looks at the pages of lines, snapshots and packages with something on them.
func (s *scenario) pages(t *testing.T, b *browser) {
	t.Helper()
	s.must("channel", "freeze", "s9/test", "--reason", "until the pages are looked at", "--for", "24h")
	s.must("channel", "hold", "s9/prod", "pair*", "--reason", "waits for its data", "--for", "1h")
	var dev repo.Channel
	if err := s.get("/api/v1/channels/s9%2Fdev", &dev); err != nil {
		t.Fatal(err)
	}
	for page, fails := range map[string]string{
		"/lines": "", "/lines/s9": "", "/snapshots": "", "/snapshots?source=s9": "", "/snapshots/" + dev.Snapshot: "", "/snapshots/s9%2Fprod?tree=stream.x86_64&q=lib": "", "/snapshots/first/diff/s9%2Fprod": "",
		"/rpms/bulk": "", "/rpms/pair-data": "", "/search?q=bulk&channel=s9/prod&in=name": "", "/search?q=/usr/share/bulk&channel=s9/prod&in=file": "", "/search?q=libc.so*&channel=s9/dev&in=provides": "", "/search?q=Round&channel=s9/dev&in=changelog": "",
		"/search?q=[&channel=s9/dev": "search_query",
	} {
		inspect(t, b, s.URL, s.Token, page, fails)
	}
	s.must("channel", "thaw", "s9/test")
	s.must("channel", "unhold", "s9/prod", "pair*")
}

// takenOver lets another server take an exported tree over from its directory: the same
// metadata and signature, and dnf installs from there.
func (s *scenario) takenOver(dir string) {
	s.Helper()
	other := newSite(s.TB, memory(s.TB), "", "--no-builder", "--no-signer", "--import", dir)
	other.start(server)
	key := filepath.Join(s.Dir, "crash.asc")
	s.write(key, []byte(s.page("/keys/crash.asc")))
	other.must("mirror", "set", "back", "file://"+filepath.Join(dir, "crash.x86_64")+"/", "--gpgkey", key, "--verify-packages")
	other.must("mirror", "sync", "back")
	theirs, err := os.ReadFile(filepath.Join(dir, "crash.x86_64/repodata/repomd.xml"))
	if ours := other.page("/channels/back/x86_64/repodata/repomd.xml"); err != nil || ours != string(theirs) {
		s.Errorf("a tree that was taken over has other metadata: %v\n%s", err, ours)
	}
	if out, err := other.host("back", other.page("/channels/back.repo"), "install", "pair", "needs"); err != nil || other.installed("back", "bulk") != "1.c" {
		s.Errorf("an installation from a tree that was taken over: %v\n%s", err, out)
	}
	other.refused(1, []string{"mirror", "set", "etc", "file:///etc/"}, "--import")
}
