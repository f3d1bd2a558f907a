package repo_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/fault"
	"drover/internal/release"
	"drover/internal/repo"
	"drover/internal/repo/repotest"
	"drover/internal/rpm"
)

func run(t *testing.T, env []string, name string, args ...string) (string, error) {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Env = append(append(os.Environ(), "LC_ALL=C.UTF-8"), env...)
	out, err := c.CombinedOutput()
	return string(out), err
}

func must(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	out, err := run(t, env, name, args...)
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return out
}

func get(t *testing.T, url string, header ...string) (*http.Response, []byte) {
	t.Helper()
	return request(t, http.MethodGet, url, header...)
}

func request(t *testing.T, method, url string, header ...string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, b
}

// fetch downloads a file with curl, as a client with its time, and gives its path.
func fetch(t *testing.T, url, dir string) string {
	t.Helper()
	must(t, nil, "curl", "-sSf", "-R", "--create-dirs", "-o", filepath.Join(dir, filepath.Base(url)), url)
	return filepath.Join(dir, filepath.Base(url))
}

// copyTree downloads a whole repository: what repomd.xml names and every package.
func copyTree(t *testing.T, base, dir string) (hrefs []string) {
	t.Helper()
	md, err := os.ReadFile(fetch(t, base+"repodata/repomd.xml", filepath.Join(dir, "repodata")))
	if err != nil {
		t.Fatal(err)
	}
	if resp, asc := get(t, base+"repodata/repomd.xml.asc"); resp.StatusCode == http.StatusOK {
		if err := os.WriteFile(filepath.Join(dir, "repodata/repomd.xml.asc"), asc, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	datas, err := rpm.ReadRepomd(md)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range datas {
		file := fetch(t, base+d.Href, filepath.Join(dir, "repodata"))
		if d.Type != "primary" {
			continue
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := rpm.ReadPrimary(f, func(p rpm.PrimaryPackage) error {
			fetch(t, base+p.Href, filepath.Join(dir, filepath.Dir(p.Href)))
			hrefs = append(hrefs, p.Href)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return hrefs
}

// dnf installs packages into a fresh root from a .repo file.
func dnf(t *testing.T, repoFile, root string, pkgs ...string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"repos", "home"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for file, text := range map[string]string{"repos/x.repo": repoFile, "home/.rpmmacros": "%_dbpath /var/lib/rpm\n%__gpg /usr/bin/gpg\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	home := filepath.Join(dir, "home")
	args := []string{"-y", "--installroot=" + root, "--releasever=9", "--forcearch=x86_64", "--setopt=reposdir=" + filepath.Join(dir, "repos"), "--setopt=varsdir=/nonexistent",
		"--setopt=cachedir=" + filepath.Join(dir, "cache"), "--setopt=pluginpath=/nonexistent", "--setopt=install_weak_deps=0", "install"}
	return run(t, []string{"HOME=" + home, "GNUPGHOME=" + home}, "dnf", append(args, pkgs...)...)
}

// keyring makes a database of rpm with the given key.
func keyring(t *testing.T, h *repotest.House, keys ...string) []string {
	t.Helper()
	dir := t.TempDir()
	args := []string{"--dbpath", filepath.Join(dir, "db")}
	for _, k := range keys {
		file := fetch(t, h.URL+"/keys/"+k+".asc", dir)
		must(t, []string{"HOME=" + dir}, "rpmkeys", append(slices.Clone(args), "--import", file)...)
	}
	return args
}

// verified asks rpmkeys whether a file's signature and digests are good with the keys.
func verified(t *testing.T, keys []string, file string) (string, error) {
	t.Helper()
	out, err := run(t, nil, "rpmkeys", append(slices.Clone(keys), "-Kv", file)...)
	if err == nil && (!strings.Contains(out, "Signature") || strings.Contains(out, "NOKEY") || strings.Contains(out, "BAD") || strings.Contains(out, "NOTTRUSTED")) {
		err = fmt.Errorf("not clean")
	}
	return out, err
}

func content(t *testing.T, h *repotest.House, id string) repo.Content {
	t.Helper()
	c, err := h.Repo.Content(h.System, id)
	h.OK(err)
	return c
}

func find(t *testing.T, c repo.Content, tree, name string) repo.Package {
	t.Helper()
	for _, p := range c.Trees[tree] {
		if strings.HasPrefix(p.File, name) {
			return p
		}
	}
	t.Fatalf("no %s in %s of %v", name, tree, c.Trees)
	return repo.Package{}
}

func href(p repo.Package) string { return "Packages/" + p.PkgID[:12] + "/" + p.File }

// From two builds to installed packages with both kinds of keys, by the clients that people
// have.
func TestSignedRepository(t *testing.T) {
	srpm, rpms := repotest.RPMBuild(t, repotest.Spec("hello", "1"))
	ima := repotest.Data(t, "rpm-basic-with-ima-2.3.4-5.el9.noarch.rpm")
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		h.StartSigner(true)
		for _, k := range []string{"rsa4096", "ed25519"} {
			h.Key(k, k, "stream-*")
		}
		h.Tag(release.Tag{Name: "stream-a", Key: "rsa4096"})
		h.Tag(release.Tag{Name: "stream-b", Key: "ed25519", Codec: "gz"})
		hello := h.Submit("stream-a", srpm, rpms...)
		basic := h.Submit("stream-a", repotest.Data(t, "rpm-basic-2.3.4-5.el9.src.rpm"), ima)
		first := h.Published("stream-a")
		for _, b := range []int64{hello.ID, basic.ID} {
			h.OK(h.Release.TagBuild(h.System, h.Build, "stream-b", fmt.Sprint(b)))
		}
		h.Published("stream-b")

		for tag, key := range map[string]string{"stream-a": "rsa4096", "stream-b": "ed25519"} {
			ring, dir := keyring(t, h, key), t.TempDir()
			base := h.URL + "/channels/" + tag + "/x86_64/"
			hrefs := copyTree(t, base, dir)
			if len(hrefs) != 2 {
				t.Fatalf("%s holds %v", tag, hrefs)
			}
			for _, href := range hrefs {
				if out, err := verified(t, ring, filepath.Join(dir, href)); err != nil {
					t.Errorf("rpmkeys: %v\n%s", err, out)
				}
				if !strings.Contains(href, "rpm-basic") {
					continue
				}
				sigs := []string{"-qp", "--qf", "[%{FILESIGNATURES}\n]", filepath.Join(dir, href)}
				got, want := must(t, nil, "rpm", sigs...), must(t, nil, "rpm", append(sigs[:3:3], ima)...)
				if i := strings.Index(want, "0302"); i < 0 || !strings.HasSuffix(got, want[i:]) {
					t.Errorf("IMA signatures after signing: %q, want %q", got, want)
				}
			}
			// Its signature, by gpg alone.
			home := t.TempDir()
			must(t, nil, "gpg", "--batch", "--homedir", home, "--import", fetch(t, h.URL+"/keys/"+key+".asc", home))
			must(t, nil, "gpg", "--batch", "--homedir", home, "--verify", filepath.Join(dir, "repodata/repomd.xml.asc"), filepath.Join(dir, "repodata/repomd.xml"))
			// Its metadata, by the tool that writes everybody's. Debian's reads no zstd.
			if tag == "stream-b" {
				out := must(t, nil, "createrepo_c", "--no-database", "--general-compress-type=gz", "--update", "--verbose", dir)
				if strings.Count(out, "CACHE HIT ") != len(hrefs) {
					t.Errorf("createrepo_c did not take all from our metadata:\n%s", out)
				}
			}
			suffix := map[string]string{"stream-a": ".xml.zst", "stream-b": ".xml.gz"}[tag]
			if _, md := get(t, base+"repodata/repomd.xml"); bytes.Count(md, []byte(suffix)) != 3 {
				t.Errorf("%s is not compressed as its tag says:\n%s", tag, md)
			}
			// And dnf, from the one URL that people are given.
			_, repoFile := get(t, h.URL+"/channels/"+tag+".repo")
			if !strings.Contains(string(repoFile), "gpgcheck=1\nrepo_gpgcheck=1\ngpgkey="+h.URL+"/keys/"+key+".asc\n") {
				t.Errorf(".repo: %s", repoFile)
			}
			root := t.TempDir()
			if out, err := dnf(t, string(repoFile), root, "hello"); err != nil {
				t.Fatalf("dnf: %v\n%s\n%s", err, out, h.Log)
			}
			if b, err := os.ReadFile(filepath.Join(root, "usr/bin/hello")); err != nil || string(b) != repotest.Program {
				t.Errorf("installed: %q, %v", b, err)
			}
		}

		t.Run("a payload is stored once, signatures are versions", func(t *testing.T) {
			var rows, cores, heads, keys int
			h.OK(d.Read(h.System, func(tx *db.Tx) error {
				return tx.QueryRow("SELECT COUNT(*), COUNT(DISTINCT core), COUNT(DISTINCT head), COUNT(DISTINCT key) FROM repo_package").Scan(&rows, &cores, &heads, &keys)
			}))
			if rows != 8 || cores != 4 || heads != 8 || keys != 2 { // hello, basic and their sources, twice
				t.Errorf("%d rows, %d payloads, %d heads, %d keys", rows, cores, heads, keys)
			}
			// The same tag with another key: a new version, and the old one stays.
			old := find(t, content(t, h, first.Snapshot), "x86_64", "hello")
			h.Tag(release.Tag{Name: "stream-a", Key: "ed25519"})
			second := h.Published("stream-a")
			now := find(t, content(t, h, second.Snapshot), "x86_64", "hello")
			if second.Snapshot == first.Snapshot || second.Key != "ed25519" || now.PkgID == old.PkgID || now.Header != old.Header {
				t.Errorf("after another key: %+v %+v, before %+v", second, now, old)
			}
			for _, c := range []struct {
				snapshot, key string
				p             repo.Package
			}{{first.Snapshot, "rsa4096", old}, {second.Snapshot, "ed25519", now}} {
				file := fetch(t, h.URL+"/snapshots/"+c.snapshot+"/x86_64/"+href(c.p), t.TempDir())
				if out, err := verified(t, keyring(t, h, c.key), file); err != nil {
					t.Errorf("%s: %v\n%s", c.key, err, out)
				}
				if _, err := verified(t, keyring(t, h, map[string]string{"rsa4096": "ed25519", "ed25519": "rsa4096"}[c.key]), file); err == nil {
					t.Errorf("%s: the other key is taken too", c.key)
				}
			}
			hist, err := h.Repo.History(h.System, "stream-a")
			h.OK(err)
			if hist[0].Snapshot != second.Snapshot || hist[0].Key != "ed25519" || !slices.ContainsFunc(hist, func(c repo.Channel) bool { return c.Snapshot == first.Snapshot && c.Key == "rsa4096" && c.Until != 0 }) {
				t.Errorf("history: %+v", hist)
			}
		})
		t.Run("parts, heads and tags of files", func(t *testing.T) { parts(t, h, first.Snapshot) })
		if d.Postgres() {
			return // what follows works on a copy of the files
		}
		t.Run("what is not signed right is refused", func(t *testing.T) { refused(t, h, "stream-b", "ed25519", "rsa4096", rpms[0]) })
	})
}

func parts(t *testing.T, h *repotest.House, snapshot string) {
	p := find(t, content(t, h, snapshot), "x86_64", "hello")
	for _, url := range []string{h.URL + "/snapshots/" + snapshot + "/x86_64/" + href(p), h.URL + "/snapshots/" + snapshot + "/x86_64/repodata/repomd.xml"} {
		resp, whole := get(t, url)
		tag := resp.Header.Get("ETag")
		if resp.StatusCode != 200 || len(whole) == 0 || resp.ContentLength != int64(len(whole)) || len(tag) != 66 || !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") {
			t.Fatalf("%s: %s %v", url, resp.Status, resp.Header)
		}
		// With curl: a range over the seam of head and core, HEAD, and a copy that is up to date.
		out := must(t, nil, "curl", "-sSf", "-r", "90-5999", url)
		if want := whole[90:min(6000, len(whole))]; out != string(want) {
			t.Errorf("range of %s: %d bytes, want %d", url, len(out), len(want))
		}
		if out := must(t, nil, "curl", "-sSfI", url); !strings.Contains(strings.ToLower(out), fmt.Sprintf("content-length: %d", len(whole))) {
			t.Errorf("HEAD: %s", out)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "etag"), []byte(tag), 0o600); err != nil {
			t.Fatal(err)
		}
		if out := must(t, nil, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--etag-compare", filepath.Join(dir, "etag"), url); out != "304" {
			t.Errorf("with its ETag: %s", out)
		}
		if resp, _ := request(t, http.MethodGet, url, "Range", fmt.Sprintf("bytes=%d-", len(whole)+10)); resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
			t.Errorf("range after the end: %s", resp.Status)
		}
		if resp, b := request(t, http.MethodGet, url, "Range", "bytes=0-0,-1"); resp.StatusCode != http.StatusPartialContent || !bytes.Contains(b, whole[:1]) {
			t.Errorf("two ranges: %s", resp.Status)
		}
	}
}

// refused copies a repository and spoils the copy; dnf and rpmkeys must not take it.
func refused(t *testing.T, h *repotest.House, tag, key, other, unsigned string) {
	keys := t.TempDir()
	for _, k := range []string{key, other} {
		fetch(t, h.URL+"/keys/"+k+".asc", keys)
	}
	repoFile := func(dir, key string, gpg, repogpg int) string {
		return fmt.Sprintf("[x]\nname=x\nbaseurl=file://%s/\nenabled=1\ngpgcheck=%d\nrepo_gpgcheck=%d\ngpgkey=file://%s/%s.asc\n", dir, gpg, repogpg, keys, key)
	}
	for name, c := range map[string]struct {
		spoil        func(dir string, hrefs []string)
		key          string
		gpg, repogpg int
		want         string
	}{
		"a changed repomd.xml": {func(dir string, _ []string) {
			f := filepath.Join(dir, "repodata/repomd.xml")
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(f, bytes.Replace(b, []byte("<timestamp>1"), []byte("<timestamp>2"), 1), 0o600); err != nil {
				t.Fatal(err)
			}
		}, key, 1, 1, "Bad GPG signature"},
		"another key": {func(string, []string) {}, other, 1, 1, "GPG"},
		"no signature": {func(dir string, _ []string) {
			if err := os.Remove(filepath.Join(dir, "repodata/repomd.xml.asc")); err != nil {
				t.Fatal(err)
			}
		}, key, 1, 1, "repomd.xml.asc"},
		"a package that is not signed": {func(dir string, hrefs []string) {
			i := slices.IndexFunc(hrefs, func(s string) bool { return strings.Contains(s, "hello") })
			must(t, nil, "cp", unsigned, filepath.Join(dir, hrefs[i]))
			must(t, nil, "createrepo_c", "-q", "--no-database", "--general-compress-type=gz", dir)
			if out, err := verified(t, keyring(t, h, key), filepath.Join(dir, hrefs[i])); err == nil {
				t.Errorf("rpmkeys takes it: %s", out)
			}
		}, key, 1, 0, "not signed"},
	} {
		dir, root := t.TempDir(), t.TempDir()
		hrefs := copyTree(t, h.URL+"/channels/"+tag+"/x86_64/", dir)
		c.spoil(dir, hrefs)
		out, err := dnf(t, repoFile(dir, c.key, c.gpg, c.repogpg), root, "hello")
		if err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v, want %q in\n%s", name, err, c.want, out)
		}
		if _, err := os.Stat(filepath.Join(root, "usr/bin/hello")); err == nil {
			t.Errorf("%s: the package was installed", name)
		}
	}
}

// New states of a tag: old snapshots stay, whoever read an old repomd.xml gets all it names,
// an empty tag is a repository too, and a channel can go back.
func TestSnapshotsAndChannels(t *testing.T) {
	srpm1, rpms1 := repotest.RPMBuild(t, repotest.Spec("hello", "1"))
	srpm2, rpms2 := repotest.RPMBuild(t, repotest.Spec("hello", "2"))
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		h.StartSigner(true)
		h.Key("k", "ed25519", "stream")
		h.Key("k2", "ed25519", "stream")
		h.Tag(release.Tag{Name: "stream", Comps: "<comps/>", Arches: []string{"x86_64", "aarch64"}})
		empty := h.Published("stream")
		// Signing an empty tag is another snapshot: its repomd.xml is the same, its signature is not.
		h.Tag(release.Tag{Name: "stream", Key: "k", Comps: "<comps/>", Arches: []string{"x86_64", "aarch64"}})
		signed := h.Published("stream")
		h.Tag(release.Tag{Name: "stream", Key: "k2", Comps: "<comps/>", Arches: []string{"x86_64", "aarch64"}})
		resigned := h.Published("stream")
		if empty.Snapshot == signed.Snapshot || signed.Snapshot == resigned.Snapshot || signed.Key != "k" || resigned.Key != "k2" || empty.Key != "" {
			t.Fatalf("empty %+v, signed %+v, signed again %+v", empty, signed, resigned)
		}
		for _, tree := range []string{"x86_64", "x86_64-debug", "aarch64", "source"} {
			dir := t.TempDir()
			if hrefs := copyTree(t, h.URL+"/snapshots/"+signed.Snapshot+"/"+tree+"/", dir); len(hrefs) != 0 {
				t.Errorf("the empty tag holds %v", hrefs)
			}
			if _, err := os.Stat(filepath.Join(dir, "repodata/repomd.xml.asc")); err != nil {
				t.Error(err)
			}
		}
		_, repoFile := get(t, h.URL+"/channels/stream.repo")
		if out, err := dnf(t, string(repoFile), t.TempDir(), "hello"); err == nil || !strings.Contains(out, "No match for argument") || strings.Contains(out, "Failed to") {
			t.Errorf("dnf with an empty repository: %v\n%s", err, out)
		}

		h.Submit("stream", srpm1, rpms1...)
		one := h.Published("stream")
		_, md1 := get(t, h.URL+"/channels/stream/x86_64/repodata/repomd.xml")
		h.Submit("stream", srpm2, rpms2...)
		two := h.Published("stream")
		if one.Snapshot == two.Snapshot {
			t.Fatal("a new build made no snapshot")
		}
		// The channel shows the new state, every file of the old one is still there.
		for _, c := range []struct{ base, version string }{
			{h.URL + "/snapshots/" + one.Snapshot + "/x86_64/", "hello-1-1"}, {h.URL + "/snapshots/" + two.Snapshot + "/x86_64/", "hello-2-1"}, {h.URL + "/channels/stream/x86_64/", "hello-2-1"},
			{h.URL + "/channels/stream/aarch64/", "hello-2-1"}, {h.URL + "/channels/stream/source/", "hello-2-1"},
		} {
			if hrefs := copyTree(t, c.base, t.TempDir()); len(hrefs) != 1 || !strings.Contains(hrefs[0], c.version) {
				t.Errorf("%s holds %v", c.base, hrefs)
			}
		}
		datas, err := rpm.ReadRepomd(md1)
		h.OK(err)
		for _, x := range datas {
			if resp, _ := get(t, h.URL+"/channels/stream/x86_64/"+x.Href); resp.StatusCode != 200 {
				t.Errorf("%s of the channel's old state: %s", x.Href, resp.Status)
			}
		}
		old := find(t, content(t, h, one.Snapshot), "x86_64", "hello")
		if resp, _ := get(t, h.URL+"/channels/stream/x86_64/"+href(old)); resp.StatusCode != 200 {
			t.Errorf("the old package of the channel: %s", resp.Status)
		}
		for _, bad := range []string{"/channels/stream/x86_64/Packages/none.rpm", "/channels/nope/x86_64/repodata/repomd.xml", "/snapshots/" + strings.Repeat("0", 64) + "/x86_64/repodata/repomd.xml", "/channels/nope.repo", "/channels/stream"} {
			if resp, b := get(t, h.URL+bad, "Accept", "application/json"); resp.StatusCode != 404 || !strings.Contains(string(b), `"code"`) {
				t.Errorf("%s: %s %s", bad, resp.Status, b)
			}
		}

		diff, err := h.Repo.Diff(h.System, one.Snapshot[:12], two.Snapshot)
		h.OK(err)
		if !slices.Equal(diff.Added, []string{"hello-0:2-1.noarch", "hello-0:2-1.src"}) && !slices.Equal(diff.Added, []string{"hello-2-1.noarch", "hello-2-1.src"}) || len(diff.Removed) != 2 {
			t.Errorf("diff: %+v", diff)
		}
		// Back, as of any time, and not onto what hosts would refuse.
		before := h.Events("")
		h.OK(h.Repo.Point(h.System, "stream", one.Snapshot[:10]))
		h.OK(h.Repo.Point(h.System, "stream", one.Snapshot))
		if h.Events("channel.") != before+1 {
			t.Error("pointing a channel where it points is an event")
		}
		if c, err := h.Repo.Channel(h.System, "stream", ""); err != nil || c.Snapshot != one.Snapshot || c.Key != "k2" {
			t.Errorf("after going back: %+v %v", c, err)
		}
		if c, err := h.Repo.Channel(h.System, "stream", fmt.Sprint(before)); err != nil || c.Snapshot != two.Snapshot {
			t.Errorf("as of before: %+v %v", c, err)
		}
		for _, at := range []string{"0", "2001-01-01T00:00:00Z"} {
			if c, err := h.Repo.Channel(h.System, "stream", at); fault.Code(err) != "channel_unknown" {
				t.Errorf("as of %s: %+v %v", at, c, err)
			}
		}
		if err := h.Repo.Point(h.System, "stream", empty.Snapshot); fault.Code(err) != "channel_unsigned" {
			t.Errorf("onto an unsigned snapshot: %v", err)
		}
		h.OK(h.Repo.Point(h.System, "prod", two.Snapshot))
		if c, err := h.Repo.Channel(h.System, "prod", ""); err != nil || c.Key != "k2" {
			t.Errorf("a new channel: %+v %v", c, err)
		}
		if b, err := os.ReadFile(filepath.Join(h.Dir, "x")); err == nil {
			t.Error(b)
		}
	})
}

// A channel is moved after everything that it names can be had, however many change at once.
func TestNobodySeesHalf(t *testing.T) {
	const versions = 6
	var srpms []string
	var rpms [][]string
	for i := range versions {
		s, r := repotest.RPMBuild(t, repotest.Spec("hello", fmt.Sprint(i)))
		srpms, rpms = append(srpms, s), append(rpms, r)
	}
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		h.StartSigner(true)
		h.Key("k", "ed25519", "*")
		tags := []string{"t1", "t2", "t3"}
		for _, n := range tags {
			h.Tag(release.Tag{Name: n, Key: "k"})
			h.Published(n)
		}
		stop, done := make(chan struct{}), make(chan error, 1)
		go func() {
			client := &http.Client{}
			fetch := func(url string) ([]byte, error) {
				resp, err := client.Get(url)
				if err != nil {
					return nil, err
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if err == nil && resp.StatusCode != 200 {
					err = fmt.Errorf("%s: %s", url, resp.Status)
				}
				return b, err
			}
			done <- func() error {
				for n := 0; ; n++ {
					select {
					case <-stop:
						if n == 0 {
							return fmt.Errorf("never looked")
						}
						return nil
					default:
					}
					base := h.URL + "/channels/" + tags[n%len(tags)] + "/x86_64/"
					md, err := fetch(base + "repodata/repomd.xml")
					if err != nil {
						return err
					}
					ds, err := rpm.ReadRepomd(md)
					if err != nil {
						return err
					}
					for _, x := range ds {
						b, err := fetch(base + x.Href)
						if err != nil {
							return err
						}
						if x.Type != "primary" {
							continue
						}
						if err := rpm.ReadPrimary(bytes.NewReader(b), func(p rpm.PrimaryPackage) error {
							b, err := fetch(base + p.Href)
							if err == nil && int64(len(b)) != p.Size {
								err = fmt.Errorf("%s has %d bytes, not %d", p.Href, len(b), p.Size)
							}
							return err
						}); err != nil {
							return err
						}
					}
				}
			}()
		}()
		for i := range versions {
			b := h.Submit(tags[i%len(tags)], srpms[i], rpms[i]...)
			for _, n := range tags {
				h.OK(h.Release.TagBuild(h.System, h.Build, n, fmt.Sprint(b.ID)))
			}
		}
		for _, n := range tags {
			c := h.Published(n)
			if p := find(t, content(t, h, c.Snapshot), "x86_64", "hello"); p.File != fmt.Sprintf("hello-%d-1.noarch.rpm", versions-1) {
				t.Errorf("%s ends with %s", n, p.File)
			}
		}
		close(stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// What cannot be published does not hold up the rest: an unknown key, a key that does not sign
// for the tag, a signer that is away.
func TestTagsDoNotWaitForEachOther(t *testing.T) {
	srpm, rpms := repotest.RPMBuild(t, repotest.Spec("hello", "1"))
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		stop := h.StartSigner(true)
		h.Key("k", "ed25519", "good*")
		h.Tag(release.Tag{Name: "good", Key: "k"})
		h.Published("good")
		stop()
		h.Tag(release.Tag{Name: "bad-key", Key: "nokey"})
		h.Tag(release.Tag{Name: "not-allowed", Key: "k"})
		h.Tag(release.Tag{Name: "plain"})
		h.Published("plain")
		began := time.Now()
		b := h.Submit("plain", srpm, rpms...) // waits for plain's root, not for good's signer
		h.OK(h.Release.TagBuild(h.System, h.Build, "good", b.NVR))
		h.Published("plain")
		if d := time.Since(began); d > 20*time.Second {
			t.Errorf("an unsigned tag took %s", d)
		}
		was, err := h.Repo.Channel(h.System, "good", "")
		h.OK(err)
		time.Sleep(300 * time.Millisecond)
		if st, err := h.Sign.Status(h.System); err != nil || st.Waiting != 2 { // the package and its source
			t.Errorf("with the signer away: %+v %v", st, err)
		}
		if now, err := h.Repo.Channel(h.System, "good", ""); err != nil || now.Snapshot != was.Snapshot {
			t.Errorf("the channel moved without signatures: %+v %v", now, err)
		}
		h.StartSigner(true)
		if c := h.Published("good"); c.Snapshot == was.Snapshot {
			t.Error("the signer is back and nothing came of it")
		}
		for _, want := range []string{"there is no key", "does not sign for the tag not-allowed"} {
			if !strings.Contains(h.Log.String(), want) {
				t.Errorf("the log does not say %q:\n%s", want, h.Log)
			}
		}
	})
}

// Only what a build recorded is signed.
func TestChangedBytesAreNotSigned(t *testing.T) {
	srpm, rpms := repotest.RPMBuild(t, repotest.Spec("hello", "1"))
	d := dbtest.SQLite(t, repotest.Schemas()...)
	h := repotest.New(t, d)
	h.StartSigner(true)
	h.Key("k", "ed25519", "*")
	h.Tag(release.Tag{Name: "plain"})
	b := h.Submit("plain", srpm, rpms...)
	h.Published("plain")
	rs, err := h.Build.RPMs(h.System, b.ID)
	h.OK(err)
	core := filepath.Join(h.Dir, "blobs/sha256", rs[1].Core.String()[:2], rs[1].Core.String())
	raw, err := os.ReadFile(core)
	h.OK(err)
	raw = bytes.Replace(raw, []byte("A test"), []byte("A tesT"), 1)
	h.OK(os.Remove(core))
	h.OK(os.WriteFile(core, raw, 0o444))
	h.Tag(release.Tag{Name: "signed", Key: "k"})
	h.OK(h.Release.TagBuild(h.System, h.Build, "signed", b.NVR))
	for range 100 {
		if strings.Contains(h.Log.String(), "is not what build") {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	st, _ := json.Marshal(slices.Collect(maps.Keys(content(t, h, h.Published("signed").Snapshot).Trees)))
	t.Errorf("changed bytes were signed: %s\n%s", st, h.Log)
}

func sum256(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
