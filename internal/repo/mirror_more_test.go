package repo_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/fault"
	"drover/internal/repo"
	"drover/internal/repo/mirrors"
	"drover/internal/repo/repotest"
	"drover/internal/repo/upstream"
	"drover/internal/rpm"
)

func (u *origin) mirror(name string) mirrors.Mirror { return mirrorOf(name, u.url, "x86_64") }

// Pinned keys: hosts check with them; what is not signed by them does not come in, and what was
// signed does not become unsigned.
func TestMirrorOfASignedUpstream(t *testing.T) {
	v, other := repotest.NewVendor(t), repotest.NewVendor(t)
	h, u := repotest.New(t, dbtest.SQLite(t, repotest.Schemas()...)), newUpstream(t, real(t)...)
	m := u.mirror("up")
	m.Keys, m.VerifyPackages = other.Public+v.Public, true
	h.OK(h.Mirrors.Set(h.System, m))
	if _, err := h.Mirrors.Sync(h.System, "up", nil); fault.Code(err) != "mirror_package_signature" {
		t.Fatalf("packages of nobody: %v", err)
	}
	v.Publish(t, u.dir)
	_, err := h.Mirrors.Sync(h.System, "up", nil)
	h.OK(err)
	_, file := get(t, h.URL+"/channels/up.repo")
	if !bytes.Contains(file, []byte("\ngpgcheck=1\nrepo_gpgcheck=1\ngpgkey="+h.URL+"/keys/mirror/up.asc\n")) {
		t.Errorf("%s", file)
	}
	if out, err := dnf(t, string(file), t.TempDir(), "rpm-hardlinks"); err != nil {
		t.Errorf("dnf: %v\n%s", err, out)
	}
	// A line of it has the key too.
	h.OK(h.Repo.SetLine(h.System, repo.Line{Name: "l", Parts: []string{"up"}, Stages: []string{"dev"}}))
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if resp, file := get(t, h.URL+"/channels/l/dev.repo"); resp.StatusCode == 200 && bytes.Contains(file, []byte("/keys/mirror/up.asc")) {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%s", file)
		}
	}
	// The same files are here; the right key is another one now.
	m.Keys = other.Public
	h.OK(h.Mirrors.Set(h.System, m))
	if _, err := h.Mirrors.Sync(h.System, "up", nil); fault.Code(err) != "mirror_signature" {
		t.Errorf("repomd.xml by another key: %v", err)
	}
	h.OK(os.Remove(filepath.Join(u.dir, "repodata/repomd.xml.asc")))
	if _, err := h.Mirrors.Sync(h.System, "up", nil); fault.Code(err) != "mirror_unsigned" {
		t.Errorf("a signature that went away: %v", err)
	}
	if _, err := h.Mirrors.SyncBack(h.System, "up", nil); fault.Code(err) != "mirror_package_signature" {
		t.Errorf("packages by another key: %v", err)
	}
}

// Old states of upstream are refused, unless somebody says so.
func TestMirrorRollback(t *testing.T) {
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h, u := repotest.New(t, d), newUpstream(t, real(t)...)
		old := filepath.Join(t.TempDir(), "repodata")
		must(t, nil, "cp", "-r", filepath.Join(u.dir, "repodata"), old)
		u.edit(t, "repodata/repomd.xml", func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte("<timestamp>"), []byte("<timestamp>1"))
		})
		m := u.mirror("up")
		m.MaxAge = 60
		h.OK(h.Mirrors.Set(h.System, m))
		new, err := h.Mirrors.Sync(h.System, "up", nil)
		h.OK(err)
		h.OK(os.RemoveAll(filepath.Join(u.dir, "repodata")))
		must(t, nil, "cp", "-r", old, u.dir)
		if _, err := h.Mirrors.Sync(h.System, "up", nil); fault.Code(err) != "mirror_rollback" {
			t.Fatalf("a replay: %v", err)
		}
		if c, err := h.Repo.Channel(h.System, "up", ""); err != nil || c.Snapshot != new {
			t.Errorf("%+v %v", c, err)
		}
		back, err := h.Mirrors.SyncBack(h.System, "up", nil)
		if err != nil || back == new {
			t.Errorf("accepted: %v %v", back, err)
		}
		_, err = h.Mirrors.Sync(h.System, "up", nil)
		h.OK(err)
		// Frozen, it is warned of.
		u.edit(t, "repodata/repomd.xml", func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte("<timestamp>1"), []byte("<timestamp>"))
		})
		_, err = h.Mirrors.SyncBack(h.System, "up", nil)
		h.OK(err)
		if got, err := h.Mirrors.Get(h.System, "up"); err != nil || !strings.Contains(got.Warning, "has not changed") {
			t.Errorf("%+v %v", got.State, err)
		}
		if _, numbers := get(t, h.URL+"/metrics"); !bytes.Contains(numbers, []byte(`drover_mirror_warning{mirror="up"} 1`)) {
			t.Error("the numbers don't warn")
		}
	})
}

// A filtered mirror has metadata of its own, from which dnf installs; groups and errata come along.
func TestMirrorFiltered(t *testing.T) {
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		u := newUpstream(t, append(real(t), repotest.Data(t, "rpm-hardlinks-1.0-1.src.rpm"), repotest.Data(t, "rpm-empty-0-0.x86_64.rpm"), repotest.Data(t, "rpm-i18n-1.0-1.noarch.rpm"))...)
		comps := filepath.Join(t.TempDir(), "comps.xml")
		h.OK(os.WriteFile(comps, []byte(`<?xml version="1.0"?><comps><group><id>g</id><name>G</name><packagelist><packagereq type="mandatory">rpm-hardlinks</packagereq></packagelist></group></comps>`), 0o600))
		must(t, nil, "modifyrepo_c", "--mdtype=group", comps, filepath.Join(u.dir, "repodata"))
		updates := filepath.Join(t.TempDir(), "updateinfo.xml")
		pkg := func(name, arch string) string {
			return fmt.Sprintf(`<package name="%[1]s" version="1.0" release="1" epoch="0" arch="%[2]s" src="%[1]s-1.0-1.src.rpm"><filename>%[1]s-1.0-1.%[2]s.rpm</filename></package>`, name, arch)
		}
		h.OK(os.WriteFile(updates, []byte(`<?xml version="1.0"?><updates><update from="x" status="final" type="security" version="1"><id>A-1</id><title>t</title><issued date="2020-01-01 00:00:00"/><pkglist><collection>`+pkg("rpm-hardlinks", "noarch")+pkg("rpm-i18n", "noarch")+`</collection></pkglist></update><update from="x" status="final" type="security" version="1"><id>A-2</id><title>t</title><issued date="2020-01-01 00:00:00"/><pkglist><collection>`+pkg("rpm-i18n", "noarch")+`</collection></pkglist></update></updates>`), 0o600))
		must(t, nil, "modifyrepo_c", "--mdtype=updateinfo", updates, filepath.Join(u.dir, "repodata"))
		h.StartSigner(true)
		h.Key("k", "rsa4096", "few")
		m := u.mirror("few")
		m.Filter = upstream.Filter{Exclude: []string{"rpm-i18n*"}, Arches: []string{"noarch"}, NoSource: true}
		m.Key = "k"
		h.OK(h.Mirrors.Set(h.System, m))
		id, err := h.Mirrors.Sync(h.System, "few", nil)
		h.OK(err)
		dir := t.TempDir()
		if hrefs := copyTree(t, h.URL+"/snapshots/"+id+"/x86_64/", dir); len(hrefs) != 3 {
			t.Errorf("%v", hrefs)
		}
		all, _ := filepath.Glob(filepath.Join(dir, "repodata/*updateinfo*"))
		if len(all) != 1 {
			t.Fatalf("errata: %v", all)
		}
		text := must(t, nil, "zstd", "-dcq", all[0])
		if !strings.Contains(text, "A-1") || strings.Contains(text, "A-2") || strings.Contains(text, "rpm-i18n") {
			t.Errorf("errata: %s", text)
		}
		_, file := get(t, h.URL+"/channels/few.repo")
		root := t.TempDir()
		// The packages are signed by nobody here: only the metadata is checked.
		if out, err := dnf(t, strings.ReplaceAll(string(file), "\ngpgcheck=1", "\ngpgcheck=0"), root, "rpm-hardlinks"); err != nil {
			t.Errorf("dnf: %v\n%s", err, out)
		}
		u.requests("")
		again, err := h.Mirrors.Sync(h.System, "few", nil)
		if n := u.requests(""); err != nil || again != id || n != 1 {
			t.Errorf("unchanged: %v, %d requests", err, n)
		}
		// Pass-through and filtered share the packages.
		h.OK(h.Mirrors.Set(h.System, u.mirror("all")))
		_, err = h.Mirrors.Sync(h.System, "all", nil)
		h.OK(err)
		if n := u.requests("rpm-hardlinks-1.0-1.noarch.rpm"); n != 0 {
			t.Errorf("fetched again %d times", n)
		}
	})
}

// On demand: dnf installs what is fetched meanwhile; nothing incomplete is promoted; it fills up.
func TestMirrorOnDemand(t *testing.T) {
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h, u := repotest.New(t, d), newUpstream(t, real(t)...)
		m := u.mirror("lazy")
		m.OnDemand, m.NoFill = true, true
		h.OK(h.Mirrors.Set(h.System, m))
		id, err := h.Mirrors.Sync(h.System, "lazy", nil)
		h.OK(err)
		if n := u.requests(".rpm"); n != 0 {
			t.Errorf("%d packages came at once", n)
		}
		if err := h.Repo.Point(h.System, "other", id); fault.Code(err) != "snapshot_incomplete" {
			t.Errorf("pointing at half a mirror: %v", err)
		}
		h.OK(h.Repo.SetLine(h.System, repo.Line{Name: "l", Parts: []string{"lazy"}, Stages: []string{"dev", "prod"}}))
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if _, err := h.Repo.Channel(h.System, "l/dev", ""); err == nil {
				break
			} else if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		for _, force := range []bool{false, true} {
			if _, err := h.Repo.Promote(h.System, "l/prod", repo.Move{Force: force, Reason: "now"}); err == nil || force && fault.Code(err) != "snapshot_incomplete" {
				t.Errorf("promoting half a mirror: %v", err)
			}
		}
		_, file := get(t, h.URL+"/channels/lazy.repo")
		if out, err := dnf(t, string(file), t.TempDir(), "rpm-hardlinks"); err != nil {
			t.Errorf("dnf: %v\n%s", err, out)
		}
		if n := u.requests(".rpm"); n != 1 {
			t.Errorf("%d packages came for one", n)
		}
		if m, err := h.Mirrors.Get(h.System, "lazy"); err != nil || m.Absent != 2 {
			t.Errorf("%d are absent, %v", m.Absent, err)
		}
		// Gone and changed ones are not served, and it is told why.
		u.edit(t, "rpm-file-types*", func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
		if resp, body := get(t, h.URL+"/channels/lazy/x86_64/rpm-file-types-1.0-1.noarch.rpm"); resp.StatusCode < 400 {
			t.Errorf("a changed package is served: %s %d", resp.Status, len(body))
		}
		u.edit(t, "rpm-file-types*", func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
		// Filled, it is as if it had been copied.
		h.OK(d.Write(h.System, func(tx *db.Tx) error { _, err := tx.Exec("UPDATE repo_absent SET tried = 0"); return err }))
		m.NoFill = false
		h.OK(h.Mirrors.Set(h.System, m))
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if m, err := h.Mirrors.Get(h.System, "lazy"); err == nil && m.Absent == 0 {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("%+v %v\n%s", m, err, h.Log)
			}
		}
		dir := t.TempDir()
		copyTree(t, h.URL+"/snapshots/"+id+"/x86_64/", dir)
		must(t, nil, "diff", "-r", u.dir, dir)
		_, err = h.Repo.Promote(h.System, "l/prod", repo.Move{Reason: "whole"})
		h.OK(err)
	})
}

// A metalink binds repomd.xml, lagging mirrors are passed over, and one request is enough when
// nothing is new; likewise with a list.
func TestMirrorLists(t *testing.T) {
	h := repotest.New(t, dbtest.SQLite(t, repotest.Schemas()...))
	u, stale := newUpstream(t, real(t)...), newUpstream(t, real(t)[:1]...)
	metalink := func() []byte {
		b, err := os.ReadFile(filepath.Join(u.dir, "repodata/repomd.xml"))
		h.OK(err)
		return rpm.Metalink{Current: rpm.MetalinkFile{Size: int64(len(b)), Sums: map[string]string{"sha256": sum256(b)}},
			Mirrors: []rpm.MetalinkMirror{{Root: stale.url, Preference: 100}, {Root: u.url, Preference: 90}}}.XML()
	}
	asked := 0
	lists := http.NewServeMux()
	lists.HandleFunc("/metalink", func(w http.ResponseWriter, _ *http.Request) { asked++; _, _ = w.Write(metalink()) })
	lists.HandleFunc("/list", func(w http.ResponseWriter, _ *http.Request) { asked++; fmt.Fprintln(w, u.url) })
	ts := httptest.NewServer(lists)
	t.Cleanup(ts.Close)
	base := ts.URL + "/"
	for name, src := range map[string]upstream.Source{"link": {Metalink: base + "metalink?repo=x"}, "list": {Mirrorlist: base + "list"}} {
		h.OK(h.Mirrors.Set(h.System, mirrors.Mirror{Name: name, Config: mirrors.Config{Source: src, Arch: "x86_64"}}))
		id, err := h.Mirrors.Sync(h.System, name, nil)
		h.OK(err)
		dir := t.TempDir()
		copyTree(t, h.URL+"/snapshots/"+id+"/x86_64/", dir)
		must(t, nil, "diff", "-r", u.dir, dir)
		u.requests("")
		stale.requests("")
		asked = 0
		_, err = h.Mirrors.Sync(h.System, name, nil)
		if n := asked + u.requests("") + stale.requests(""); err != nil || n != 1 {
			t.Errorf("%s unchanged: %d requests, %v", name, n, err)
		}
	}
}

// A directory is taken over, with hard links when that is wanted, and with its installation tree.
func TestMirrorOfADirectory(t *testing.T) {
	h, u := repotest.New(t, dbtest.SQLite(t, repotest.Schemas()...)), newUpstream(t, real(t)...)
	h.OK(os.MkdirAll(filepath.Join(u.dir, "images/pxeboot"), 0o755))
	h.OK(os.MkdirAll(filepath.Join(u.dir, "EFI/BOOT"), 0o755))
	h.OK(os.WriteFile(filepath.Join(u.dir, "images/pxeboot/vmlinuz"), []byte("kernel"), 0o600))
	h.OK(os.WriteFile(filepath.Join(u.dir, "EFI/BOOT/grubx64.efi"), []byte("grub"), 0o600))
	h.OK(os.WriteFile(filepath.Join(u.dir, ".treeinfo"), []byte("[general]\narch = x86_64\nfamily = Test\nversion = 9\n[images-x86_64]\nkernel = images/pxeboot/vmlinuz\n[checksums]\nimages/pxeboot/vmlinuz = sha256:"+sum256([]byte("kernel"))+"\n"), 0o600))
	m := mirrorOf("dir", "file://"+u.dir, "x86_64")
	m.Link, m.Tree = true, true
	h.OK(h.Mirrors.Set(h.System, m))
	id, err := h.Mirrors.Sync(h.System, "dir", nil)
	h.OK(err)
	for path, want := range map[string]string{"images/pxeboot/vmlinuz": "kernel", "EFI/BOOT/grubx64.efi": "grub"} {
		if resp, b := get(t, h.URL+"/channels/dir/x86_64/"+path); resp.StatusCode != 200 || string(b) != want {
			t.Errorf("%s: %s %q", path, resp.Status, b)
		}
	}
	out := must(t, nil, "find", u.dir, "-name", "*.rpm", "-links", "1")
	if out != "" {
		t.Errorf("not linked: %s", out)
	}
	copyTree(t, h.URL+"/snapshots/"+id+"/x86_64/", t.TempDir())
	u.edit(t, ".treeinfo", func(b []byte) []byte {
		return bytes.ReplaceAll(b, []byte(sum256([]byte("kernel"))), []byte(sum256([]byte("other"))))
	})
	u.put(t, repotest.Data(t, "rpm-empty-0-0.x86_64.rpm"))
	if _, err := h.Mirrors.Sync(h.System, "dir", nil); fault.Code(err) != "mirror_moved" {
		t.Errorf("a kernel that is another: %v", err)
	}
}

// The artifacts of a Pulp server lie in a directory by their checksums: what is there does not
// come over the network.
func TestMirrorBesideArtifacts(t *testing.T) {
	h, u := repotest.New(t, dbtest.SQLite(t, repotest.Schemas()...)), newUpstream(t, real(t)...)
	store := t.TempDir()
	names, err := filepath.Glob(filepath.Join(u.dir, "*.rpm"))
	h.OK(err)
	for _, n := range names[1:] {
		b, err := os.ReadFile(n)
		h.OK(err)
		sum := sum256(b)
		h.OK(os.MkdirAll(filepath.Join(store, sum[:2]), 0o755))
		h.OK(os.WriteFile(filepath.Join(store, sum[:2], sum[2:]), b, 0o600))
	}
	m := u.mirror("up")
	m.More = []string{"file://" + store}
	h.OK(h.Mirrors.Set(h.System, m))
	u.requests("")
	id, err := h.Mirrors.Sync(h.System, "up", nil)
	h.OK(err)
	if n := u.requests(".rpm"); n != 1 {
		t.Errorf("%d packages came over the network, and all but one are here", n)
	}
	copyTree(t, h.URL+"/snapshots/"+id+"/x86_64/", t.TempDir())
}

// A mirror with a schedule syncs itself; another server's lease is respected, and taken when it
// is over.
func TestMirrorSchedule(t *testing.T) {
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h, u := repotest.New(t, d), newUpstream(t, real(t)...)
		m := u.mirror("up")
		m.Every = 3600
		h.OK(h.Mirrors.Set(h.System, m))
		var got mirrors.Mirror
		for deadline := time.Now().Add(20 * time.Second); got.Outcome != "ok"; time.Sleep(20 * time.Millisecond) {
			var err error
			if got, err = h.Mirrors.Get(h.System, "up"); err != nil || time.Now().After(deadline) {
				t.Fatalf("%+v %v\n%s", got, err, h.Log)
			}
		}
		if wait := time.Until(got.Due); wait < 29*time.Minute || wait > 94*time.Minute {
			t.Errorf("the next one is in %s", wait)
		}
		lease := func(until time.Duration) {
			h.OK(d.Write(h.System, func(tx *db.Tx) error {
				_, err := tx.Exec("UPDATE repo_mirror_state SET owner = 'another', lease = $1 WHERE name = 'up'", tx.Now()+until.Microseconds())
				return err
			}))
		}
		lease(time.Minute)
		if _, err := h.Mirrors.Sync(h.System, "up", nil); fault.Code(err) != "mirror_busy" {
			t.Errorf("another server works on it: %v", err)
		}
		lease(-time.Second)
		_, err := h.Mirrors.Sync(h.System, "up", nil)
		h.OK(err)
		// It fails, and is tried again soon.
		u.behave(status(404))
		if _, err := h.Mirrors.Sync(h.System, "up", nil); fault.Code(err) != "fetch_missing" {
			t.Error(err)
		}
		got, err = h.Mirrors.Get(h.System, "up")
		if wait := time.Until(got.Due); err != nil || got.Failures != 1 || wait > time.Minute {
			t.Errorf("%+v, again in %s", got.State, wait)
		}
		b, err := json.Marshal(got)
		if err != nil || !bytes.Contains(b, []byte(`"failures":1`)) {
			t.Errorf("%s", b)
		}
		h.OK(h.Mirrors.Drop(h.System, "up", false))
		if _, err := h.Repo.Channel(h.System, "up", ""); err != nil {
			t.Errorf("the channel went too: %v", err)
		}
	})
}
