package accounts

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

const (
	passwdFile = "root:x:0:0:root:/root:/bin/bash\nalice:x:12345:12345:Alice,1,2:/home/alice:/bin/bash\nbob:x:12346:100::/home/bob:/bin/sh\n+nis::::::\nbroken line\n"
	groupFile  = "root:x:0:\nusers:x:100:alice\nwheel:x:10:alice,bob\nalice:x:12345:\n"
	shadowFile = "root:*:19000:0:99999:7:::\nalice:$6$a$b:19000:1:90:7:14:20000:\nbob:!$6$c:19001:0:99999:7:::\n"
)

// machine is a root directory with accounts, and a host in it whose programs are told, not run.
func machine(t *testing.T) (*host, *[]string) {
	t.Helper()
	root := t.TempDir()
	for _, d := range []string{"etc", "home/alice", "home/bob", "var/spool/cron", "root"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, s := range map[string]string{"etc/passwd": passwdFile, "etc/group": groupFile, "etc/shadow": shadowFile} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(s), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	// What is below a temporary directory of root's must be reachable for alice.
	for p := root; p != "/tmp" && p != "/"; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil { //nolint:gosec // a test's directory
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(root, "home/alice"), 12345, 12345); err != nil {
		t.Fatal(err)
	}
	var ran []string
	h := &host{root: root, now: func() time.Time { return time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC) }, roll: func(n int) (int, error) { return n / 2, nil },
		run: func(_ context.Context, stdin string, argv ...string) (output, error) {
			ran = append(ran, strings.Join(argv, " ")+stdin)
			return output{}, nil
		},
		scan: func(_ context.Context, address, algorithm string, _ time.Duration) (string, error) {
			if algorithm != "ssh-ed25519" || !strings.HasPrefix(address, "git.example.com:") {
				return "", errors.New("no")
			}
			return keyLine, nil
		}}
	return h, &ran
}

const (
	keyText  = "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
	keyText2 = "AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
	keyLine  = "ssh-ed25519 " + keyText
	keyPrint = "f8:38:98:df:0b:ef:57:a4:ee:24:98:5b:a5:98:ac:17:fc:cb:0c:0d:33:3c:c4:af:1d:d9:2b:e1:4b:c2:3a:a5"
)

func call(t *testing.T, h *host, fun string, args ...any) (any, error) {
	t.Helper()
	return callIn(t, h, false, fun, args...)
}

// callIn calls a function; a mapping as the last argument are keywords.
func callIn(t *testing.T, h *host, test bool, fun string, args ...any) (any, error) {
	t.Helper()
	var named map[string]any
	if n := len(args); n > 0 {
		if m, ok := args[n-1].(map[string]any); ok {
			named, args = m, args[:n-1]
		}
	}
	for _, f := range h.functions() {
		if f.Name == fun {
			c, err := module.Bind(&module.Host{}, f, args, named, test)
			if err != nil {
				t.Fatal(err)
			}
			return f.Run(t.Context(), c)
		}
	}
	t.Fatalf("there is no function %s", fun)
	return nil, nil
}

func as(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

type kw = map[string]any

func TestReading(t *testing.T) {
	h, _ := machine(t)
	for _, v := range []struct {
		fun  string
		args []any
		want string
	}{
		{"user.info", []any{"alice"}, `{"fullname":"Alice","gid":12345,"groups":["alice","users","wheel"],"home":"/home/alice","homephone":"","name":"alice","other":"","passwd":"x","roomnumber":"1","shell":"/bin/bash","uid":12345,"workphone":"2"}`},
		{"user.info", []any{"nobody"}, `{}`},
		{"user.list_users", nil, `["alice","bob","root"]`},
		{"user.list_groups", []any{"bob"}, `["users","wheel"]`},
		{"user.primary_group", []any{"bob"}, `"users"`},
		{"group.info", []any{"wheel"}, `{"gid":10,"members":["alice","bob"],"name":"wheel","passwd":"x"}`},
		{"group.info", []any{"nope"}, `{}`},
		{"shadow.info", []any{"alice"}, `{"expire":20000,"inact":14,"lstchg":19000,"max":90,"min":1,"name":"alice","passwd":"$6$a$b","warn":7}`},
		{"shadow.info", []any{"nope"}, `{"expire":"","inact":"","lstchg":"","max":"","min":"","name":"","passwd":"","warn":""}`},
		{"shadow.gen_password", []any{"Hello world!", "saltstring"}, `"$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"`},
	} {
		got, err := call(t, h, v.fun, v.args...)
		if err != nil || as(t, got) != v.want {
			t.Errorf("%s %v = %s, %v\nwant %s", v.fun, v.args, as(t, got), err, v.want)
		}
	}
}

func TestCommandLines(t *testing.T) {
	h, ran := machine(t)
	for _, v := range []struct {
		fun  string
		args []any
		want string // the command line; "" for none
	}{
		{"user.add", []any{"carol", kw{"uid": 5.0, "gid": 100.0, "groups": "wheel,users", "shell": "/bin/zsh", "fullname": "Ca Rol", "system": true}}, "useradd -s /bin/zsh -u 5 -g 100 -G wheel,users -r -m -c Ca Rol carol"},
		{"user.add", []any{"users", kw{"createhome": false, "unique": false}}, "useradd -g users -o -M users"},
		{"user.delete", []any{"bob", kw{"remove": true, "force": true}}, "userdel -r -f bob"},
		{"user.chuid", []any{"bob", 7.0}, "usermod -u 7 bob"},
		{"user.chuid", []any{"bob", 12346.0}, ""},
		{"user.chgid", []any{"bob", "wheel"}, "usermod -g 10 bob"},
		{"user.chshell", []any{"bob", "/bin/bash"}, "usermod -s /bin/bash bob"},
		{"user.chhome", []any{"bob", "/srv/bob", true}, "usermod -d /srv/bob -m bob"},
		{"user.chgroups", []any{"alice", "wheel,users"}, ""},
		{"user.chgroups", []any{"alice", "wheel"}, "usermod -G wheel alice"},
		{"user.chgroups", []any{"alice", "wheel", true}, ""},
		{"user.chgroups", []any{"bob", "users", true}, "usermod -a -G users bob"},
		{"user.chfullname", []any{"alice", "A"}, "usermod -c A,1,2 alice"},
		{"user.chhomephone", []any{"alice", "9"}, "usermod -c Alice,1,2,9 alice"},
		{"user.rename", []any{"bob", "rob"}, "usermod -l rob bob"},
		{"group.add", []any{"new", 77.0, true}, "groupadd -g 77 -r new"},
		{"group.delete", []any{"wheel"}, "groupdel wheel"},
		{"group.chgid", []any{"wheel", 11.0}, "groupmod -g 11 wheel"},
		{"group.adduser", []any{"users", "bob"}, "gpasswd --add bob users"},
		{"group.adduser", []any{"users", "alice"}, ""},
		{"group.deluser", []any{"users", "alice"}, "gpasswd --delete alice users"},
		{"group.members", []any{"wheel", "bob,alice"}, ""},
		{"group.members", []any{"wheel", "bob"}, "gpasswd --members bob wheel"},
	} {
		*ran = nil
		got, err := callIn(t, h, true, v.fun, v.args...)
		if err != nil || as(t, got) != "true" || len(*ran) > 0 {
			t.Errorf("in test mode %s %v = %v, %v, ran %q", v.fun, v.args, got, err, *ran)
		}
		got, err = call(t, h, v.fun, v.args...)
		if err != nil || as(t, got) != "true" || strings.Join(*ran, ";") != v.want {
			t.Errorf("%s %v = %v, %v, ran %q\nwant %q", v.fun, v.args, got, err, *ran, v.want)
		}
	}
}

func TestHostileNames(t *testing.T) {
	h, ran := machine(t)
	for _, v := range []struct {
		fun  string
		args []any
	}{
		{"user.add", []any{"-r"}}, {"user.add", []any{"a b"}}, {"user.add", []any{"a:b"}}, {"user.add", []any{"a\nb"}}, {"user.add", []any{""}}, {"user.add", []any{"../x"}},
		{"user.add", []any{"ok", kw{"fullname": "x:0:0"}}}, {"user.add", []any{"ok", kw{"home": "-x"}}}, {"user.add", []any{"ok", kw{"groups": "--help"}}}, {"user.add", []any{"ok", kw{"gid": "-g"}}},
		{"user.add", []any{"ok", kw{"root": "relative"}}}, {"user.chshell", []any{"bob", "/bin/sh\nroot::0:0"}}, {"user.rename", []any{"bob", "--root"}}, {"user.chfullname", []any{"bob", "a,b"}},
		{"group.add", []any{"-f"}}, {"group.adduser", []any{"wheel", "-d"}}, {"group.members", []any{"wheel", "a,-b"}}, {"user.delete", []any{"--remove"}},
		{"cron.raw_cron", []any{"../../../etc/shadow"}}, {"cron.set_env", []any{"bob", "A B", "x"}}, {"cron.set_env", []any{"bob", "A", "x\n* * * * * evil"}},
		{"cron.set_job", []any{"bob", "*", "*", "*", "*", "*", "a\n* * * * * evil"}}, {"cron.set_job", []any{"bob", "* * *", "*", "*", "*", "*", "a"}},
		{"cron.set_special", []any{"bob", "@daily evil", "a"}}, {"cron.set_job", []any{"bob", "*", "*", "*", "*", "*", "a", kw{"identifier": "x\n* * * * * evil"}}},
		{"shadow.set_password", []any{"alice", "x:0:0"}}, {"shadow.set_password", []any{"alice", "x\nroot::"}}, {"shadow.set_maxdays", []any{"alice", "1:2"}},
		{"ssh.set_auth_key", []any{"alice", keyText, kw{"enc": "ssh-ed25519", "comment": "a\nssh-rsa evil"}}}, {"ssh.set_auth_key", []any{"alice", keyText, kw{"enc": "ssh-ed25519", "config": "../bob/keys"}}},
		{"ssh.set_known_host", []any{kw{"user": "alice", "hostname": "a\nb", "key": keyText}}}, {"ssh.set_known_host", []any{kw{"user": "alice", "hostname": "*", "key": keyText, "enc": "ssh-ed25519"}}},
	} {
		got, err := call(t, h, v.fun, v.args...)
		if err == nil || fault.As(err).Kind != fault.KindInvalid || len(*ran) > 0 {
			t.Errorf("%s %q = %v, %v, ran %q: want a refusal", v.fun, v.args, got, err, *ran)
		}
	}
}

func TestShadow(t *testing.T) {
	h, _ := machine(t)
	file := filepath.Join(h.root, "etc/shadow")
	if err := os.Chown(file, 0, 42); err != nil {
		t.Fatal(err)
	}
	for _, v := range []struct {
		fun  string
		args []any
		want any
		line string
	}{
		{"shadow.set_password", []any{"alice", "$6$new"}, true, "alice:$6$new:20455:1:90:7:14:20000:"},
		{"shadow.set_password", []any{"nope", "x"}, false, ""},
		{"shadow.set_maxdays", []any{"alice", 30.0}, true, "alice:$6$new:20455:1:30:7:14:20000:"},
		{"shadow.set_expire", []any{"alice", "2026-12-31"}, true, "alice:$6$new:20455:1:30:7:14:20818:"},
		{"shadow.set_expire", []any{"alice", -1.0}, true, "alice:$6$new:20455:1:30:7:14::"},
		{"shadow.set_inactdays", []any{"alice", "-1"}, true, "alice:$6$new:20455:1:30:7:::"},
		{"shadow.set_date", []any{"alice", 0.0}, true, "alice:$6$new:0:1:30:7:::"},
		{"shadow.lock_password", []any{"alice"}, true, "alice:!$6$new:0:1:30:7:::"},
		{"shadow.lock_password", []any{"alice"}, true, "alice:!$6$new:0:1:30:7:::"},
		{"shadow.unlock_password", []any{"alice"}, true, "alice:$6$new:0:1:30:7:::"},
		{"shadow.del_password", []any{"alice"}, true, "alice::0:1:30:7:::"},
		{"shadow.unlock_password", []any{"alice"}, false, "alice::0:1:30:7:::"},
		{"shadow.set_mindays", []any{"nope", 1.0}, false, ""},
	} {
		got, err := call(t, h, v.fun, v.args...)
		if err != nil || got != v.want {
			t.Errorf("%s %v = %v, %v", v.fun, v.args, got, err)
		}
		s, err := module.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if v.line != "" && !strings.Contains(s, "\n"+v.line+"\n") {
			t.Errorf("after %s %v:\n%s\nwant %s", v.fun, v.args, s, v.line)
		}
		if !strings.HasPrefix(s, "root:*:19000:0:99999:7:::\n") || !strings.HasSuffix(s, "bob:!$6$c:19001:0:99999:7:::\n") {
			t.Errorf("other lines changed:\n%s", s)
		}
	}
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if uid, gid := owners(st); uid != 0 || gid != 42 || st.Mode().Perm() != 0o640 {
		t.Errorf("the file now belongs to %d:%d with mode %o", uid, gid, st.Mode().Perm())
	}
}

// Two that write at once do not lose one another's change.
func TestShadowLock(t *testing.T) {
	h, _ := machine(t)
	done := make(chan error, 2)
	for _, fun := range []string{"shadow.set_maxdays", "shadow.set_mindays"} {
		go func() {
			var err error
			for i := range 20 {
				_, e := call(t, h, fun, "alice", float64(i))
				err = errors.Join(err, e)
			}
			done <- err
		}()
	}
	if err := errors.Join(<-done, <-done); err != nil {
		t.Fatal(err)
	}
	s, err := module.ReadFile(filepath.Join(h.root, "etc/shadow"))
	if err != nil || !strings.Contains(s, ":19:19:7:") {
		t.Errorf("%v\n%s", err, s)
	}
}

// shadow-utils' own programs on accounts of their own: in a chroot of theirs.
func TestRealPrograms(t *testing.T) {
	h, _ := machine(t)
	root := h.root
	h.root, h.run = "/", program
	for _, v := range []struct {
		fun  string
		args []any
	}{
		{"group.add", []any{"team", 4242.0}}, {"user.add", []any{"carol", kw{"uid": 4243.0, "gid": 4242.0, "createhome": false, "home": "/home/carol", "fullname": "Carol"}}},
		{"user.chshell", []any{"carol", "/bin/false"}}, {"user.chfullname", []any{"carol", "Carol C"}}, {"user.chgroups", []any{"carol", "wheel"}}, {"group.adduser", []any{"team", "bob"}},
		{"user.delete", []any{"bob"}},
	} {
		named := kw{}
		if m, ok := v.args[len(v.args)-1].(kw); ok {
			named, v.args = m, v.args[:len(v.args)-1]
		}
		named["root"] = root
		if got, err := call(t, h, v.fun, append(v.args, named)...); err != nil || as(t, got) != "true" {
			t.Fatalf("%s %v = %v, %v", v.fun, v.args, got, err)
		}
	}
	got, err := call(t, h, "user.info", "carol", root)
	want := `{"fullname":"Carol C","gid":4242,"groups":["team","wheel"],"home":"/home/carol","homephone":"","name":"carol","other":"","passwd":"x","roomnumber":"","shell":"/bin/false","uid":4243,"workphone":""}`
	if err != nil || as(t, got) != want {
		t.Errorf("%s, %v", as(t, got), err)
	}
	if _, there, err := h.findUser(root, "bob"); there || err != nil {
		t.Error("bob is still there", err)
	}
}

func TestAuthKeys(t *testing.T) {
	h, _ := machine(t)
	file := filepath.Join(h.root, "home/alice/.ssh/authorized_keys")
	ed := kw{"enc": "ed25519", "comment": "me@here"}
	for _, v := range []struct {
		fun  string
		args []any
		want string
	}{
		{"ssh.check_key", []any{"alice", keyText, ed}, `"add"`},
		{"ssh.set_auth_key", []any{"alice", keyText, ed}, `"new"`},
		{"ssh.set_auth_key", []any{"alice", keyText, ed}, `"no change"`},
		{"ssh.check_key", []any{"alice", keyText, ed}, `"exists"`},
		{"ssh.set_auth_key", []any{"alice", keyText2, kw{"enc": "ssh-ed25519", "options": []any{`command="a, b"`, "no-pty"}}}, `"new"`},
		{"ssh.set_auth_key", []any{"alice", keyText, kw{"enc": "ed25519", "comment": "other"}}, `"replace"`},
		{"ssh.set_auth_key", []any{"alice", keyText, kw{"enc": "ssh-rsa"}}, `"invalid"`},
		{"ssh.set_auth_key", []any{"alice", "AAAA BBBB", ed}, `"invalid"`},
		{"ssh.set_auth_key", []any{"nope", keyText, ed}, `"fail"`},
		{"ssh.auth_keys", []any{"alice"}, `{"` + keyText2 + `":{"comment":"","enc":"ssh-ed25519","fingerprint":"` + mustPrint(t, keyText2) + `","options":["command=\"a, b\"","no-pty"]},"` + keyText + `":{"comment":"other","enc":"ssh-ed25519","fingerprint":"` + keyPrint + `","options":[]}}`},
		{"ssh.rm_auth_key", []any{"alice", keyText}, `"Key removed"`},
		{"ssh.rm_auth_key", []any{"alice", keyText}, `"Key not present"`},
		{"ssh.auth_keys", []any{"bob"}, `{}`},
	} {
		got, err := call(t, h, v.fun, v.args...)
		if err != nil || as(t, got) != v.want {
			t.Errorf("%s %v = %s, %v\nwant %s", v.fun, v.args, as(t, got), err, v.want)
		}
	}
	s, err := module.ReadFile(file)
	if want := `command="a, b",no-pty ssh-ed25519 ` + keyText2 + "\n"; err != nil || s != want {
		t.Errorf("%v\n%s", err, s)
	}
	for _, p := range []string{file, filepath.Dir(file)} {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if uid, gid := owners(st); uid != 12345 || gid != 12345 || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s belongs to %d:%d with mode %o", p, uid, gid, st.Mode().Perm())
		}
	}
}

func mustPrint(t *testing.T, key string) string {
	t.Helper()
	s, err := fingerprint(key, "sha256")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A user must not get at anything through what it puts into its home.
func TestHostileHome(t *testing.T) {
	for name, prepare := range map[string]func(home, secret string) error{
		"a link to a file": func(home, secret string) error { return os.Symlink(secret, home+"/.ssh/authorized_keys") },
		"a link out of it": func(home, secret string) error {
			return errors.Join(os.Remove(home+"/.ssh"), os.Symlink(filepath.Dir(secret), home+"/.ssh"))
		},
		"a relative link":       func(home, _ string) error { return os.Symlink("../../../etc/shadow", home+"/.ssh/authorized_keys") },
		"a pipe":                func(home, _ string) error { return syscall.Mkfifo(home+"/.ssh/authorized_keys", 0o666) },
		"a directory":           func(home, _ string) error { return os.Mkdir(home+"/.ssh/authorized_keys", 0o700) },
		"a file of root's":      func(home, _ string) error { return os.WriteFile(home+"/.ssh/authorized_keys", []byte("secret"), 0o600) },
		"a hard link to secret": func(home, secret string) error { return os.Link(secret, home+"/.ssh/authorized_keys") },
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := machine(t)
			home := filepath.Join(h.root, "home/alice")
			secretDir := filepath.Join(h.root, "secret")
			secret := secretDir + "/authorized_keys"
			if err := errors.Join(os.Mkdir(secretDir, 0o700), os.WriteFile(secret, []byte(keyLine+" secret\n"), 0o600), os.Mkdir(home+"/.ssh", 0o700), os.Chown(home+"/.ssh", 12345, 12345)); err != nil {
				t.Fatal(err)
			}
			if err := prepare(home, secret); err != nil {
				t.Fatal(err)
			}
			if got, err := call(t, h, "ssh.set_auth_key", "alice", keyText2, kw{"enc": "ssh-ed25519"}); err == nil {
				t.Errorf("the key was set: %v", got)
			}
			if got, err := call(t, h, "ssh.auth_keys", "alice"); err == nil && as(t, got) != "{}" {
				t.Errorf("the secret was read: %s", as(t, got))
			}
			s, err := module.ReadFile(secret)
			if err != nil || s != keyLine+" secret\n" {
				t.Errorf("the secret is now %q, %v", s, err)
			}
			if s, err := module.ReadFile(filepath.Join(h.root, "etc/shadow")); err != nil || s != shadowFile {
				t.Errorf("shadow is now %q, %v", s, err)
			}
		})
	}
}

func TestKnownHosts(t *testing.T) {
	h, _ := machine(t)
	entry := `{"enc":"ssh-ed25519","fingerprint":"` + keyPrint + `","hostname":"HOST","key":"` + keyText + `"}`
	at := func(host string) string { return strings.Replace(entry, "HOST", host, 1) }
	for _, v := range []struct {
		fun  string
		args []any
		want string
	}{
		{"ssh.check_known_host", []any{"alice", "git.example.com"}, `"add"`},
		{"ssh.set_known_host", []any{"alice", "git.example.com", kw{"fingerprint": "aa:bb"}}, `{"error":"Remote host public keys found but none of their fingerprints match the one you have provided","status":"error"}`},
		{"ssh.set_known_host", []any{"alice", "git.example.com", kw{"fingerprint": keyPrint, "hash_known_hosts": false}}, `{"new":[` + at("git.example.com") + `],"old":[],"status":"updated"}`},
		{"ssh.set_known_host", []any{"alice", "git.example.com", kw{"key": keyText, "enc": "ed25519"}}, `{"key":[` + at("git.example.com") + `],"status":"exists"}`},
		{"ssh.set_known_host", []any{"alice", "git.example.com", kw{"port": 2222.0, "hash_known_hosts": false}}, `{"new":[` + at("[git.example.com]:2222") + `],"old":[],"status":"updated"}`},
		{"ssh.get_known_host_entries", []any{"alice", "git.example.com", kw{"port": 2222.0}}, `[` + at("[git.example.com]:2222") + `]`},
		{"ssh.check_known_host", []any{"alice", "git.example.com", kw{"key": keyText2}}, `"update"`},
		{"ssh.set_known_host", []any{"alice", "other.example.com"}, `{"error":"Unable to receive remote host keys","status":"error"}`},
		{"ssh.recv_known_host_entries", []any{"git.example.com", kw{"hash_known_hosts": false}}, `[` + at("git.example.com") + `]`},
	} {
		got, err := call(t, h, v.fun, v.args...)
		if err != nil || as(t, got) != v.want {
			t.Errorf("%s %v = %s, %v\nwant %s", v.fun, v.args, as(t, got), err, v.want)
		}
	}
	if _, err := call(t, h, "ssh.hash_known_hosts", "alice"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(h.root, "home/alice/.ssh/known_hosts")
	s, err := module.ReadFile(file)
	if err != nil || strings.Contains(s, "git.example.com") || strings.Count(s, "|1|") != 2 {
		t.Errorf("%v\n%s", err, s)
	}
	// OpenSSH finds the hidden names too.
	o, err := program(t.Context(), "", "ssh-keygen", "-F", "[git.example.com]:2222", "-f", file)
	if err != nil || !strings.Contains(o.Out, keyText) {
		t.Errorf("ssh-keygen says %q %q, %v", o.Out, o.Err, err)
	}
	if got, err := call(t, h, "ssh.rm_known_host", "alice", "git.example.com"); err != nil || !strings.Contains(as(t, got), `"removed"`) {
		t.Error(got, err)
	}
	if s, err := module.ReadFile(file); err != nil || strings.Count(s, "|1|") != 1 {
		t.Errorf("%v\n%s", err, s)
	}
}

func TestKeyEncrypted(t *testing.T) {
	dir := t.TempDir()
	for i, v := range []struct {
		args []string
		want bool
	}{{[]string{"-t", "ed25519", "-N", ""}, false}, {[]string{"-t", "ed25519", "-N", "secret"}, true}, {[]string{"-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "secret"}, true}, {[]string{"-t", "rsa", "-b", "2048", "-m", "PEM", "-N", ""}, false}} {
		file := filepath.Join(dir, string(rune('a'+i)))
		if o, err := program(t.Context(), "", append([]string{"ssh-keygen", "-q", "-f", file}, v.args...)...); err != nil || o.Code != 0 {
			t.Fatal(o, err)
		}
		s, err := module.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := keyEncrypted(s); err != nil || got != v.want {
			t.Errorf("%v: %v, %v", v.args, got, err)
		}
	}
}

func TestCron(t *testing.T) {
	h, _ := machine(t)
	file := filepath.Join(h.root, "var/spool/cron/alice")
	before := "# my own\nMAILTO=me\n5 4 * * * mine\n" + cronTag + "\nPATH=/bin\n# say hello SALT_CRON_IDENTIFIER:hello\n*/5 * * * * echo hello\n# SALT_CRON_IDENTIFIER:off\n#DISABLED#0 1 * * 1-5 echo 50% off\n@daily backup\n"
	if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	list := `{"crons":[{"cmd":"echo hello","comment":"say hello","commented":false,"daymonth":"*","dayweek":"*","hour":"*","identifier":"hello","minute":"*/5","month":"*"},{"cmd":"echo 50% off","comment":null,"commented":true,"daymonth":"*","dayweek":"1-5","hour":"1","identifier":"off","minute":"0","month":"*"}],"env":[{"name":"PATH","value":"/bin"}],"pre":["# my own","MAILTO=me","5 4 * * * mine"],"special":[{"cmd":"backup","comment":null,"commented":false,"identifier":null,"spec":"@daily"}]}`
	star := []any{"alice", "*", "*", "*", "*", "*"}
	job := func(cmd string, named kw) []any { return append(append([]any{}, star...), cmd, named) }
	for _, v := range []struct {
		fun  string
		args []any
		want string
	}{
		{"cron.list_tab", []any{"alice"}, list},
		{"cron.raw_cron", []any{"alice"}, as(t, before)},
		{"cron.raw_cron", []any{"bob"}, `""`},
		{"cron.get_entry", []any{"alice", kw{"identifier": "off"}}, `{"cmd":"echo 50% off","comment":null,"commented":true,"daymonth":"*","dayweek":"1-5","hour":"1","identifier":"off","minute":"0","month":"*"}`},
		{"cron.set_job", []any{"alice", "*/5", "*", "*", "*", "*", "echo hello", kw{"identifier": "hello"}}, `"present"`},
		{"cron.set_job", []any{"alice", "*/5", "*", "*", "*", "*", "echo other", kw{"identifier": "hello"}}, `"updated"`},
		{"cron.set_job", job("new", kw{"identifier": "n", "comment": "two\nlines"}), `"new"`},
		{"cron.set_job", job("new", kw{"identifier": "n", "comment": "two\nlines"}), `"present"`},
		{"cron.set_job", []any{"alice", "random", "*", "*", "*", "*", "at random"}, `"new"`},
		{"cron.set_job", []any{"alice", "random", "*", "*", "*", "*", "at random"}, `"present"`},
		{"cron.set_special", []any{"alice", "@weekly", "backup"}, `"updated"`},
		{"cron.set_special", []any{"alice", "@reboot", "start", kw{"commented": true}}, `"new"`},
		{"cron.set_env", []any{"alice", "PATH", "/bin"}, `"present"`},
		{"cron.set_env", []any{"alice", "EMPTY", ""}, `"new"`},
		{"cron.rm_env", []any{"alice", "PATH"}, `"removed"`},
		{"cron.rm_env", []any{"alice", "PATH"}, `"absent"`},
		{"cron.rm_job", []any{"alice", "backup"}, `"absent"`},
		{"cron.rm_special", []any{"alice", "backup"}, `"removed"`},
		{"cron.rm_job", []any{"alice", "x", kw{"identifier": "off"}}, `"removed"`},
		{"cron.rm", []any{"alice", "mine"}, `"absent"`},
	} {
		got, err := call(t, h, v.fun, v.args...)
		if err != nil || as(t, got) != v.want {
			t.Errorf("%s %v = %s, %v\nwant %s", v.fun, v.args, as(t, got), err, v.want)
		}
	}
	want := "# my own\nMAILTO=me\n5 4 * * * mine\n" + cronTag + "\nEMPTY=\"\"\n# say hello SALT_CRON_IDENTIFIER:hello\n*/5 * * * * echo other\n# two\n# lines SALT_CRON_IDENTIFIER:n\n* * * * * new\n30 * * * * at random\n#DISABLED#@reboot start\n"
	s, err := module.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Error(diff)
	}
	if _, err := call(t, h, "cron.set_job", append([]any{"bob"}, job("x", kw{})[1:]...)...); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(h.root, "var/spool/cron/bob"))
	if err != nil {
		t.Fatal(err)
	}
	if uid, _ := owners(st); uid != 12346 || st.Mode().Perm() != 0o600 {
		t.Errorf("bob's table belongs to %d with mode %o", uid, st.Mode().Perm())
	}
}

func TestDocs(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range Functions() {
		if seen[f.Name] || f.Run == nil || !strings.Contains(f.Doc, "\n\nsalt '*' "+f.Name) {
			t.Errorf("%s: %q", f.Name, f.Doc)
		}
		seen[f.Name] = true
	}
}

// What is written is read back the same, and nothing that was not managed is lost.
func FuzzCrontab(f *testing.F) {
	f.Add("# own\n* * * * * a\n" + cronTag + "\nA=b\n# c SALT_CRON_IDENTIFIER:x\n* * * * * b\n@daily c\nodd\n#DISABLED#x\n")
	f.Add(cronTag + "\n# c SALT_CRON_IDENTIFIER:x\n#\n@daily c\n")
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ContainsAny(s, "\r\x00") {
			return
		}
		once := parseTab(s).String()
		if twice := parseTab(once).String(); twice != once {
			t.Fatalf("%q\n%q", once, twice)
		}
	})
}

func FuzzAccounts(f *testing.F) {
	f.Add(passwdFile)
	f.Add(groupFile)
	f.Add("@revoked |1|a|b ssh-ed25519 " + keyText + "\n")
	f.Add(`command="a\"b",no-pty ` + keyLine + " comment\n")
	f.Fuzz(func(t *testing.T, s string) {
		groups := parseGroup(s)
		for _, u := range parsePasswd(s) {
			describe(u, groups)
		}
		for _, l := range module.Lines(s) {
			if k, ok := parseKnown(l); ok {
				k.is("host")
			}
			k, ok := parseAuthKey(l)
			if !ok {
				continue
			}
			if again, ok := parseAuthKey(k.String()); !ok || !cmp.Equal(again, k) {
				t.Fatalf("%q becomes %+v, then %+v", l, k, again)
			}
		}
		if _, err := keyEncrypted(s); err != nil && fault.Code(err) != "bad_key" {
			t.Fatal(err)
		}
	})
}
