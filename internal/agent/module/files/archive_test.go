package files

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fault"
)

func registryOf(h hosts) *module.Registry { return module.NewRegistry(Functions(), h.functions()) }

func TestTar(t *testing.T) {
	b := newBench(t)
	b.file("src/a", "alpha")
	b.file("src/d/b", "beta")
	for _, err := range []error{os.Chmod(filepath.Join(b.dir, "src/a"), unixMode(0o4750)), os.Chown(filepath.Join(b.dir, "src/a"), 65534, 1), os.Chmod(filepath.Join(b.dir, "src/a"), unixMode(0o4750)),
		os.Symlink("a", filepath.Join(b.dir, "src/l")), os.Link(filepath.Join(b.dir, "src/d/b"), filepath.Join(b.dir, "src/h")), os.Chmod(filepath.Join(b.dir, "src/d"), 0o500)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, form := range []string{"", "z", "j", "J"} {
		file := filepath.Join(b.dir, "a.tar"+form)
		names := b.call("archive.tar", "cv"+form+"f", file, kw("sources", "src", "cwd", b.dir))
		if len(names.([]any)) != 6 {
			t.Fatal(form, names)
		}
		dest := filepath.Join(b.dir, "out"+form)
		got := b.call("archive.tar", "x"+form+"f", file, kw("dest", dest))
		if len(got.([]any)) != 6 {
			t.Error(got)
		}
		b.has(dest+"/src/a", "alpha")
		b.has(dest+"/src/h", "beta")
		b.want("4750", "file.get_mode", dest+"/src/a")
		b.want("nobody", "file.get_user", dest+"/src/a")
		b.want("0500", "file.get_mode", dest+"/src/d")
		b.want("a", "file.readlink", dest+"/src/l")
		b.want(true, "file.is_hardlink", dest+"/src/h")
		// Once more over what is there.
		b.call("archive.tar", "xf", file, kw("dest", dest))
		b.has(dest+"/src/a", "alpha")
	}
	v := b.call("archive.list", filepath.Join(b.dir, "a.tarz"), kw("verbose", true))
	want := kw("dirs", []any{"src/", "src/d/"}, "files", []any{"src/a", "src/d/b", "src/h"}, "links", []any{"src/l"}, "top_level_dirs", []any{"src/"}, "top_level_files", []any{}, "top_level_links", []any{})
	if d := cmp.Diff(want, v); d != "" {
		t.Error(d)
	}
	b.want([]any{"a", "d/", "d/b", "h", "l"}, "archive.list", filepath.Join(b.dir, "a.tar"), kw("strip_components", 1))
	whole, err := os.ReadFile(filepath.Join(b.dir, "a.tar"))
	if err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	b.call("archive.tar", "xf", b.file("a.zst", string(z.EncodeAll(whole, nil))), kw("dest", filepath.Join(b.dir, "outzst")))
	b.has("outzst/src/a", "alpha")
	b.refuses("archive_absolute", "archive.tar", "xPf", filepath.Join(b.dir, "a.tar"), kw("dest", b.dir))
	b.refuses("template_later", "archive.tar", "xf", "x", kw("template", "jinja"))
}

// made is an archive of tar of these entries.
func made(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		data := "evil"
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(data))
		}
		h.Mode = 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(data)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestTarAttacks(t *testing.T) {
	b := newBench(t)
	outside := b.file("outside/victim", "safe")
	dest := filepath.Join(b.dir, "dest")
	for name, x := range map[string]struct {
		code    string
		entries []tar.Header
	}{
		"up":             {"archive_escape", []tar.Header{{Name: "../outside/victim"}}},
		"up inside":      {"archive_escape", []tar.Header{{Name: "a/../../outside/victim"}}},
		"absolute":       {"archive_escape", []tar.Header{{Name: outside}}},
		"through link":   {"archive_escape", []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../outside"}, {Name: "l/victim"}}},
		"absolute link":  {"archive_escape", []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: filepath.Dir(outside)}, {Name: "l/victim"}}},
		"hard link":      {"archive_escape", []tar.Header{{Name: "h", Typeflag: tar.TypeLink, Linkname: "../outside/victim"}, {Name: "h"}}},
		"hard through":   {"archive_escape", []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../outside"}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/victim"}}},
		"dir over link":  {"archive_escape", []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../outside"}, {Name: "l/new", Typeflag: tar.TypeDir}}},
		"device":         {"archive_device", []tar.Header{{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}},
		"pipe":           {"archive_device", []tar.Header{{Name: "p", Typeflag: tar.TypeFifo}}},
		"file over link": {"", []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l"}}},
	} {
		if err := os.RemoveAll(dest); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(b.dir, "evil.tar")
		if err := os.WriteFile(file, made(t, x.entries...), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := untar(t.Context(), file, dest)
		if fault.Code(err) != x.code {
			t.Errorf("%s: %v", name, err)
		}
		b.has("outside/victim", "safe")
		if all, err := os.ReadDir(filepath.Dir(outside)); err != nil || len(all) != 1 {
			t.Errorf("%s: %v %v", name, all, err)
		}
	}
	b.file("junk", "this is no archive")
	b.refuses("archive_bad", "archive.tar", "xf", filepath.Join(b.dir, "junk"), kw("dest", dest))
}

func TestZip(t *testing.T) {
	b := newBench(t)
	b.file("src/a", "alpha")
	b.file("src/d/b", "beta")
	if err := os.Symlink("a", filepath.Join(b.dir, "src/l")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(b.dir, "src/a"), 0o750); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(b.dir, "a.zip")
	b.want([]any{"src/", "src/a", "src/d/", "src/d/b", "src/l"}, "archive.zip", file, "sr*", kw("cwd", b.dir))
	r, err := command.Run(t.Context(), command.Spec{Argv: []string{"unzip", "-tq", file}})
	if err != nil || r.Code != 0 {
		t.Error(err, string(r.Out), string(r.Err))
	}
	dest := filepath.Join(b.dir, "out")
	b.want([]any{"src/", "src/a", "src/d/", "src/l"}, "archive.unzip", file, dest, "src/d/b")
	b.has("out/src/a", "alpha")
	b.want("0750", "file.get_mode", dest+"/src/a")
	b.want("a", "file.readlink", dest+"/src/l")
	b.file("out/src/a", "mine")
	b.call("archive.unzip", file, dest, kw("options", "-n"))
	b.has("out/src/a", "mine")
	b.want([]any{"src/", "src/a", "src/d/", "src/d/b", "src/l"}, "archive.list", file)
	b.refuses("path_relative", "archive.zip", file, "src")
	b.refuses("argument_refused", "archive.unzip", file, dest, kw("password", "x"))

	for _, name := range []string{"../evil", "/evil", "a/../../evil"} {
		var buf bytes.Buffer
		z := zip.NewWriter(&buf)
		for _, n := range []string{"good", name} {
			if _, err := z.Create(n); err != nil {
				t.Fatal(err)
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		b.file("evil.zip", buf.String())
		b.refuses("archive_escape", "archive.unzip", filepath.Join(b.dir, "evil.zip"), filepath.Join(b.dir, "evil"))
		if there(filepath.Join(b.dir, "evil", "good")) {
			t.Error("an archive that leaves its directory was unpacked in part")
		}
	}
	var buf bytes.Buffer
	z := zip.NewWriter(&buf)
	h := &zip.FileHeader{Name: "l"}
	h.SetMode(os.ModeSymlink | 0o777)
	w, err := z.CreateHeader(h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("..")); err != nil {
		t.Fatal(err)
	}
	if _, err := z.Create("l/evil"); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	b.file("evil.zip", buf.String())
	b.refuses("archive_escape", "archive.unzip", filepath.Join(b.dir, "evil.zip"), filepath.Join(b.dir, "evil2"))
}

func TestGzip(t *testing.T) {
	b := newBench(t)
	p := b.file("a", strings.Repeat("text ", 1000))
	b.call("file.chown", p, "nobody", "daemon")
	b.want([]any{p + " -> " + p + ".gz"}, "archive.gzip", p)
	if there(p) {
		t.Error("the file is still there")
	}
	r, err := command.Run(t.Context(), command.Spec{Argv: []string{"gzip", "-t", p + ".gz"}})
	if err != nil || r.Code != 0 {
		t.Error(err, string(r.Err))
	}
	b.want([]any{p + ".gz -> " + p}, "archive.gunzip", p+".gz")
	b.has("a", strings.Repeat("text ", 1000))
	b.want("nobody", "file.get_user", p)
	b.refuses("archive_bad", "archive.gunzip", p)
	b.file("b.gz", "no gzip")
	b.refuses("archive_bad", "archive.gunzip", filepath.Join(b.dir, "b.gz"))
	if there(filepath.Join(b.dir, "b")) {
		t.Error("something was left of a file that cannot be unpacked")
	}
}

func TestCp(t *testing.T) {
	b := newBench(t)
	at := func(n string) string { return filepath.Join(b.dir, n) }
	b.want(at("x"), "cp.get_file", "salt://there/x", at("x"))
	b.has("x", "from salt://there/x\n")
	b.want(at("there"), "cp.get_file", "salt://there", b.dir)
	b.refuses("directory_missing", "cp.get_file", "salt://there/x", at("no/x"))
	b.want(at("no/x"), "cp.get_file", "salt://there/x", at("no/x"), kw("makedirs", true))
	b.want("", "cp.get_file", "salt://none", at("none"))
	b.want("from salt://there/x\n", "cp.get_file_str", "salt://there/x")
	b.want(false, "cp.get_file_str", "salt://none")
	b.refuses("template_later", "cp.get_template", "salt://there/x", at("y"))
	b.want(at("y"), "cp.get_template", "salt://there/x", at("y"), kw("template", nil))
	b.refuses("salt_files_later", "cp.list_master")
	b.refuses("salt_files_later", "cp.list_states")
	b.refuses("push_later", "cp.push", at("x"))
	b.want(false, "cp.push", at("none"))
	b.want("", "cp.is_cached", "salt://there/x")
	cache := filepath.Join(b.host.Dir, "cache")
	b.want(cache+"/files/base/there/x", "cp.cache_file", "salt://there/x")
	b.want(cache+"/files/base/there/x", "cp.is_cached", "salt://there/x")
	b.has(cache+"/files/base/there/x", "from salt://there/x\n")
	b.want(cache+"/extrn_files/base/there.example_8443/p/q", "cp.cache_file", "https://there.example:8443/a/../p/q")
	b.want([]any{cache + "/files/base/there/1", cache + "/files/base/there/2"}, "cp.cache_files", []any{"salt://there/1", "salt://there/2"})
	b.want(false, "cp.cache_file", "salt://none")
	b.refuses("source_bad", "cp.cache_file", "salt://../../etc/passwd")
	b.refuses("source_bad", "cp.cache_file", "salt://there?saltenv=../x")
	b.want(cache+"/localfiles"+at("x"), "cp.cache_local_file", at("x"))
	b.want([]any{"there/1", "there/2", "there/x", strings.TrimPrefix(at("x"), "/"), "base/there.example_8443/p/q"}, "cp.list_minion")
	b.refuses("hash_differs", "cp.get_url", "https://there/x", at("u"), kw("source_hash", "md5=00000000000000000000000000000000"))
	if there(at("u")) {
		t.Error("a file with another checksum was kept")
	}
	b.want(at("u"), "cp.get_url", "https://there/x", at("u"))
	b.want("from https://there/x\n", "cp.get_url", "https://there/x", nil)
	h, err := sum("sha256", "from salt://there/x\n")
	if err != nil {
		t.Fatal(err)
	}
	b.want(kw("hsum", h, "hash_type", "sha256"), "cp.hash_file", "salt://there/x")
}

func TestHashes(t *testing.T) {
	b := newBench(t)
	const s = "get salted"
	b.want(b.call("hashutil.md5_digest", s), "hashutil.digest", s)
	b.want("900150983cd24fb0d6963f7d28e17f72", "hashutil.md5_digest", "abc")
	b.want("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "hashutil.digest", "abc", "sha256")
	b.want("ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f", "hashutil.sha512_digest", "abc")
	b.want("Z2V0IHNhbHRlZA==", "hashutil.base64_b64encode", s)
	b.want(s, "hashutil.base64_b64decode", "Z2V0IHNhbHRlZA==")
	b.want("Z2V0IHNhbHRlZA==\n", "hashutil.base64_encodestring", s)
	b.want(s, "hashutil.base64_decodestring", "Z2V0\nIHNhbHRlZA==\n")
	b.want(true, "hashutil.base64_decodefile", "YWJj", filepath.Join(b.dir, "d"))
	b.has("d", "abc")
	b.want("YWJj\n", "hashutil.base64_encodefile", filepath.Join(b.dir, "d"))
	b.refuses("base64_bad", "hashutil.base64_b64decode", "***")
	b.refuses("hash_unknown", "hashutil.digest", "abc", "crc")
	b.want(true, "hashutil.hmac_signature", s, "shared secret", "eBWf9bstXg+NiP5AOwppB5HMvZiYMPzEM9W5YMm/AmQ=")
	b.want(false, "hashutil.hmac_signature", s, "other secret", "eBWf9bstXg+NiP5AOwppB5HMvZiYMPzEM9W5YMm/AmQ=")
	b.want("78159ff5bb2d5e0f8d88fe403b0a690791ccbd989830fcc433d5b960c9bf0264", "hashutil.hmac_compute", s, "shared secret")
	p := filepath.Join(b.dir, "d")
	b.want("900150983cd24fb0d6963f7d28e17f72", "file.get_hash", p, "md5")
	b.want("File not found", "file.get_sum", p+"x")
	b.want(true, "file.check_hash", p, "md5:900150983cd24fb0d6963f7d28e17f72")
	b.want(true, "file.check_hash", p, "900150983CD24FB0d6963f7d28e17f72")
	b.want(false, "file.check_hash", p, "md5=00")
	b.refuses("hash_unknown", "file.check_hash", p, "abc")
}

func FuzzUntar(f *testing.F) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if err := z.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("PK\x05\x06"))
	f.Add(made(f, tar.Header{Name: "a/b"}, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, tar.Header{Name: "l/x"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		file := filepath.Join(dir, "x")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := listMembers(context.Background(), file, ""); err != nil && fault.Code(err) == "internal" {
			t.Fatal(err)
		}
		if _, err := untar(context.Background(), file, filepath.Join(dir, "out")); err != nil && fault.Code(err) == "internal" {
			t.Fatal(err)
		}
		all, err := os.ReadDir(dir)
		if err != nil || len(all) > 2 {
			t.Fatal(all, err)
		}
	})
}
