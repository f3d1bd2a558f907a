package files

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestStats(t *testing.T) {
	b := newBench(t)
	p := b.file("a", "12345")
	at := time.Unix(1700000000, 500000000)
	for _, err := range []error{os.Chmod(p, unixMode(0o4755)), os.Chtimes(p, at, at), os.Symlink("a", filepath.Join(b.dir, "l")), os.Symlink("none", filepath.Join(b.dir, "d"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s := b.call("file.stats", filepath.Join(b.dir, "l"), "md5").(map[string]any)
	delete(s, "inode")
	delete(s, "ctime")
	want := kw("uid", int64(0), "gid", int64(0), "user", "root", "group", "root", "atime", 1700000000.5, "mtime", 1700000000.5, "size", int64(5), "mode", "4755", "type", "file", "target", p, "sum", "827ccb0eea8a706c4c34a16891f84e7b")
	if d := cmp.Diff(want, s); d != "" {
		t.Error(d)
	}
	if s := b.call("file.stats", filepath.Join(b.dir, "d")).(map[string]any); s["type"] != "link" {
		t.Error(s)
	}
	if s := b.call("file.stats", filepath.Join(b.dir, "l"), kw("follow_symlinks", false)).(map[string]any); s["type"] != "link" {
		t.Error(s)
	}
	b.refuses("file_missing", "file.stats", filepath.Join(b.dir, "none"))
	if s := b.call("file.lstat", p).(map[string]any); s["st_size"] != int64(5) || s["st_mtime"] != 1700000000.5 || s["st_mode"] != int64(0o104755) || s["st_nlink"] != int64(1) {
		t.Error(s)
	}
	b.want(map[string]any{}, "file.lstat", filepath.Join(b.dir, "none"))
	b.want(true, "file.file_exists", p)
	b.want(false, "file.file_exists", b.dir)
	b.want(true, "file.directory_exists", b.dir)
	b.want(true, "file.path_exists_glob", b.dir+"/[ab]")
	b.want(true, "file.access", p, "x")
	b.refuses("mode_bad", "file.access", p, "q")
	b.want(true, "file.is_link", filepath.Join(b.dir, "l"))
	b.want(false, "file.is_link", p)
	b.want("a", "file.readlink", filepath.Join(b.dir, "l"))
	b.want(p, "file.readlink", filepath.Join(b.dir, "l"), true)
	b.want([]any{".", "..", "a", "d", "l"}, "file.readdir", b.dir)
	b.want("/etc", "file.dirname", "/etc/passwd")
	b.want("/", "file.dirname", "/etc")
	b.want("passwd", "file.basename", "/etc/passwd")
	b.want("", "file.basename", "/etc/")
	b.want("/usr/local/bin", "file.join", "x", "/", "usr", "local/", "bin")
	b.want("/etc/passwd", "file.normpath", "/etc/../etc//passwd")
	v := b.call("file.statvfs", b.dir).(map[string]any)
	if v["f_bsize"].(int64) <= 0 || v["f_namemax"].(int64) < 100 || len(v) != 10 {
		t.Error(v)
	}
	if err := os.Link(p, filepath.Join(b.dir, "second")); err != nil {
		t.Fatal(err)
	}
	b.want(true, "file.is_hardlink", p)
	b.want(int64(5+len("a")+len("none")), "file.diskusage", b.dir)
}

func TestOwners(t *testing.T) {
	b := newBench(t)
	p := b.file("a", "")
	b.want("0640", "file.set_mode", p, 640)
	b.want("0640", "file.get_mode", p)
	b.want("2755", "file.set_mode", p, "2755")
	b.want("", "file.get_mode", p+"x")
	b.refuses("mode_bad", "file.set_mode", p, "9")
	b.want(nil, "file.chown", p, "nobody", "daemon")
	b.want("2755", "file.get_mode", p)
	b.want("nobody", "file.get_user", p)
	b.want("daemon", "file.get_group", p)
	b.want(int64(1), "file.get_gid", p)
	b.want(nil, "file.chown", p, 54321, 54322)
	b.want(int64(54321), "file.get_user", p)
	b.want("User does not exist\nGroup does not exist\n", "file.chown", p, "no-such", "no-such")
	b.want("File not found", "file.chgrp", p+"x", "root")
	b.want(nil, "file.chgrp", p, "root")
	b.want("root", "file.get_group", p)
	b.want(int64(0), "file.user_to_uid", "root")
	b.want("", "file.user_to_uid", "no-such")
	b.want("root", "file.uid_to_user", 0)
	b.want("daemon", "file.gid_to_group", 1)
	r := b.call("file.check_perms", p, map[string]any{"name": p}, "root", "root", "0600").([]any)
	if d := cmp.Diff([]any{kw("name", p, "changes", kw("user", "root", "mode", "0600"), "comment", []any{}, "result", true), kw("luser", int64(54321), "lgroup", "root", "lmode", "2755")}, r); d != "" {
		t.Error(d)
	}
	b.want("0600", "file.get_mode", p)
	b.want(int64(0), "file.get_uid", p)
}

func TestManage(t *testing.T) {
	b := newBench(t)
	at := func(n string) string { return filepath.Join(b.dir, n) }
	b.want(true, "file.mkdir", at("d/e/f"), kw("mode", "0700"))
	b.want("0700", "file.get_mode", at("d/e/f"))
	b.want("0755", "file.get_mode", at("d/e"))
	b.want(nil, "file.makedirs", at("m/n/file"))
	b.want(true, "file.directory_exists", at("m/n"))
	b.want(false, "file.directory_exists", at("m/n/file"))
	b.want("Directory '"+at("m/n")+"' already exists", "file.makedirs", at("m/n/file"))
	b.want(nil, "file.makedirs_perms", at("p/q"), "nobody", nil, "0750")
	b.want("0750", "file.get_mode", at("p"))
	b.want("nobody", "file.get_user", at("p/q"))
	p := b.file("d/x", "text")
	if err := os.Symlink("x", at("d/link")); err != nil {
		t.Fatal(err)
	}
	b.refuses("recurse_missing", "file.copy", at("d"), at("copy"))
	b.refuses("copy_into_itself", "file.copy", at("d"), at("d/e/f/g"), kw("recurse", true))
	b.call("file.chown", p, "nobody", "daemon")
	b.want(true, "file.copy", at("d"), at("copy"), kw("recurse", true))
	b.has("copy/x", "text")
	b.want("nobody", "file.get_user", at("copy/x"))
	b.want("x", "file.readlink", at("copy/link"))
	b.want("0700", "file.get_mode", at("copy/e/f"))
	b.want(true, "file.copy", p, at("m"))
	b.has("m/x", "text")
	b.want(kw("result", true, "comment", "'"+at("m/x")+"' moved to '"+at("p/x")+"'"), "file.move", at("m/x"), at("p"))
	b.has("p/x", "text")
	b.want(true, "file.rename", at("p/x"), at("p/y"))
	b.has("p/y", "text")
	b.want(true, "file.remove", at("copy"))
	b.want(false, "file.directory_exists", at("copy"))
	b.refuses("file_missing", "file.remove", at("copy"))
	for _, k := range []string{"/", "/etc", "/usr/../etc/"} {
		b.refuses("path_kept", "file.remove", k)
		b.refuses("path_kept", "file.rmdir", k, kw("recurse", true))
	}
	if v := b.call("file.rmdir", at("m")); v == any(true) {
		t.Error("a directory that is not empty was removed")
	}
	b.want(true, "file.rmdir", at("m"), kw("recurse", true))
	b.want(false, "file.directory_exists", at("m"))
	b.want(true, "file.symlink", "p/y", at("s"))
	b.want(true, "file.symlink", "p/y", at("s"))
	b.refuses("file_there", "file.symlink", "other", at("s"))
	b.want(true, "file.symlink", "other", at("s"), kw("force", true))
	b.want("other", "file.readlink", at("s"))
	b.want(true, "file.link", at("p/y"), at("hard"))
	b.want(true, "file.is_hardlink", at("hard"))
	if r := b.call("file.mknod", at("fifo"), "p").(map[string]any); r["result"] != any(true) {
		t.Error(r)
	}
	b.want(true, "file.is_fifo", at("fifo"))
	b.refuses("file_there", "file.mknod_fifo", at("fifo"))
	b.refuses("node_bad", "file.mknod", at("z"), "z")
	b.want(true, "file.touch", at("new"), kw("mtime", 1600000000))
	if s := b.call("file.lstat", at("new")).(map[string]any); s["st_mtime"] != 1.6e9 {
		t.Error(s)
	}
	// Nothing happens in test mode.
	for _, x := range [][]any{{"file.remove", at("p")}, {"file.mkdir", at("t/u")}, {"file.rename", at("p"), at("q")}, {"file.copy", at("p/y"), at("z")}, {"file.touch", at("z")}, {"file.write", at("z"), "x"}, {"file.symlink", "x", at("z")}} {
		f, c := b.bind(x[0].(string), true, x[1:], nil)
		if _, err := f.Run(t.Context(), c); err != nil {
			t.Error(x, err)
		}
	}
	for n, want := range map[string]bool{"p": true, "t": false, "q": false, "z": false} {
		if there(at(n)) != want {
			t.Error("test mode changed ", n)
		}
	}
}

func TestFind(t *testing.T) {
	b := newBench(t)
	b.file("a.log", strings.Repeat("x", 3000))
	b.file("B.LOG", "needle\n")
	b.file("sub/c.txt", "")
	b.file("sub/deep/d.log", "1")
	old := time.Now().Add(-10 * 24 * time.Hour)
	for _, err := range []error{os.Chtimes(filepath.Join(b.dir, "a.log"), old, old), os.Symlink("a.log", filepath.Join(b.dir, "link")), os.Chown(filepath.Join(b.dir, "B.LOG"), 65534, 1)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct {
		named map[string]any
		want  string
	}{
		{kw("name", "*.log"), "a.log sub/deep/d.log"},
		{kw("iname", "*.log"), "B.LOG a.log sub/deep/d.log"},
		{kw("regex", "[a-c]\\."), "a.log sub/c.txt"},
		{kw("iregex", "b"), "B.LOG"},
		{kw("type", "d"), ". sub sub/deep"},
		{kw("type", "l"), "link"},
		{kw("type", "f", "maxdepth", 1), "B.LOG a.log"},
		{kw("type", "f", "mindepth", 2, "maxdepth", 2), "sub/c.txt"},
		{kw("type", "f", "size", "+2k"), "a.log"},
		{kw("type", "f", "size", "-1b"), "sub/c.txt sub/deep/d.log"},
		{kw("type", "f", "size", "2k"), "a.log"},
		{kw("type", "f", "mtime", "5d"), "a.log"},
		{kw("type", "f", "mtime", "-5"), "B.LOG sub/c.txt sub/deep/d.log"},
		{kw("owner", "nobody"), "B.LOG"},
		{kw("group", "daemon,adm"), "B.LOG"},
		{kw("grep", "^need"), "B.LOG"},
	} {
		var want []any
		for _, w := range strings.Fields(x.want) {
			want = append(want, filepath.Join(b.dir, w))
		}
		if d := cmp.Diff(want, b.call("file.find", b.dir, x.named)); d != "" {
			t.Errorf("%v: %s", x.named, d)
		}
	}
	b.want([]any{}, "file.find", b.dir, kw("name", "none"))
	b.want([]any{[]any{"B.LOG", int64(7), "f", "nobody", "daemon"}}, "file.find", b.dir+"/B*", kw("print", "name,size,type,user,group"))
	for k, v := range map[string]any{"size": "big", "mtime": "soon", "type": "x", "print": "shape", "maxdepth": -1, "wish": 1} {
		b.refuses("find_bad", "file.find", b.dir, kw(k, v))
	}
	b.refuses("find_refused", "file.find", b.dir, "delete")
	b.refuses("find_refused", "file.find", b.dir, kw("exec", "rm {}"))
	b.refuses("user_missing", "file.find", b.dir, kw("owner", "no-such"))
}

func TestAttributes(t *testing.T) {
	// Attributes need a file system of the disk; a directory of the tests may be in memory.
	b := newBench(t)
	p := b.file("a", "")
	b.want("No selinux context information is available for "+p, "file.get_selinux_context", p)
	b.refuses("attribute_unknown", "file.chattr", p, kw("operator", "add", "attributes", "9"))
	b.refuses("arguments", "file.chattr", p, kw("operator", "maybe", "attributes", "a"))
	b.refuses("file_missing", "file.lsattr", p+"x")
	if _, err := attrsOf(p); err == nil {
		b.want(true, "file.chattr", p, kw("operator", "add", "attributes", "d"))
		if got := b.call("file.lsattr", p).(map[string]any)[p].([]any); !slices.Contains(got, any("d")) {
			t.Error(got)
		}
		b.want(true, "file.chattr", p, kw("operator", "remove", "attributes", "d"))
	}
	// Labels are attributes of the file whether SELinux runs or not.
	if err := unix.Setxattr(p, "security.selinux", []byte("system_u:object_r:tmp_t:s0\x00"), 0); err != nil {
		t.Fatal(err)
	}
	b.want("system_u:object_r:tmp_t:s0", "file.get_selinux_context", p)
	b.want("system_u:object_r:etc_t:s0:c1,c2", "file.set_selinux_context", p, kw("type", "etc_t", "range", "s0:c1,c2"))
	b.refuses("label_bad", "file.set_selinux_context", p, kw("type", "a:b"))
	b.call("file.write", p, "x")
	b.want("system_u:object_r:etc_t:s0:c1,c2", "file.get_selinux_context", p)
}

func TestHosts(t *testing.T) {
	b := newBench(t)
	const text = "# names\n127.0.0.1\tlocalhost  # here\n\n10.0.0.1 a b\n::1 localhost\n10.0.0.1 c\n"
	p := b.file("hosts", text)
	b.reg = registryOf(hosts{p})
	b.want(kw("comment-0", "# names", "127.0.0.1", kw("aliases", []any{"localhost"}, "comment", "here"), "10.0.0.1", kw("aliases", []any{"a", "b", "c"}), "::1", kw("aliases", []any{"localhost"})), "hosts.list_hosts")
	b.want("10.0.0.1", "hosts.get_ip", "c")
	b.want("", "hosts.get_ip", "zz")
	b.want([]any{"localhost"}, "hosts.get_alias", "0:0::1")
	b.want(true, "hosts.has_pair", "10.0.0.1", "b c")
	b.want(false, "hosts.has_pair", "10.0.0.1", []any{"b", "d"})
	b.want(true, "hosts.add_host", "10.0.0.1", "a")
	b.has("hosts", text)
	b.want(true, "hosts.add_host", "10.0.0.1", "d")
	b.has("hosts", strings.Replace(text, "10.0.0.1 a b\n", "10.0.0.1\t\ta\tb\td\n", 1))
	b.want(true, "hosts.rm_host", "10.0.0.1", "c")
	b.want(true, "hosts.add_host", "10.0.0.9", "new")
	b.has("hosts", "# names\n127.0.0.1\tlocalhost  # here\n\n10.0.0.1\t\ta\tb\td\n::1 localhost\n10.0.0.9\t\tnew\n")
	b.want(true, "hosts.set_host", "10.0.0.1", "x", kw("comment", "two\nlines"))
	b.want(true, "hosts.set_comment", "::1", "six")
	b.want(false, "hosts.set_comment", "10.9.9.9", "six")
	b.want(true, "hosts.set_host", "10.0.0.9", "")
	b.has("hosts", "# names\n127.0.0.1\tlocalhost  # here\n\n10.0.0.1\t\tx\t# two lines\n::1\t\tlocalhost\t# six\n")
	b.refuses("address_bad", "hosts.add_host", "ten", "x")
	b.refuses("name_bad", "hosts.set_host", "10.0.0.1", []any{"a b"})
	b.refuses("comment_bad", "hosts.set_comment", "10.0.0.1", "a\n1.1.1.1 evil")
}

func FuzzHosts(f *testing.F) {
	f.Add("127.0.0.1 localhost # x\n\n# c\n", "10.0.0.1", "a")
	f.Fuzz(func(t *testing.T, text, ip, name string) {
		if goodHost(ip, []string{name}) != nil {
			return
		}
		l := parseHosts(text)
		l.add(ip, []string{name})
		again := parseHosts(l.String())
		found := false
		for _, n := range again.of(ip) {
			found = found || n == name
		}
		if !found {
			t.Fatalf("%q", l.String())
		}
		again.remove(ip, []string{name})
		for _, n := range parseHosts(again.String()).of(ip) {
			if n == name {
				t.Fatalf("%q", again.String())
			}
		}
	})
}
