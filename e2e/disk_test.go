package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/blob"
	"drover/internal/build"

	"golang.org/x/sys/unix"
)

// TestFullDisk fills the disk of the server before a push, an upload, a submission, the end of
// a build, a publish and a promotion. Each says disk_full and changes nothing, or waits and goes on; what was
// published stays served; once there is space everything works again.
func TestFullDisk(t *testing.T) {
	engines(t, func(t *testing.T, db string) {
		if db != "" && os.Getenv("DROVER_LONG") == "" {
			return // SQLite's files share the disk with the rest: that is the harder case
		}
		s := newScenario(t, newSite(t, memory(t), db, "--no-builder", "--no-signer"))
		disk := fill{t, s.roleDir(server)}
		if err := os.Mkdir(disk.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("drover-e2e", disk.dir, "tmpfs", 0, "size=400m"); err != nil {
			t.Fatal(err)
		}
		s.begin("ed25519")
		s.round(1)
		s.must("line", "set", "s9", "--part", "crash", "--stage", "dev", "--stage", "test")
		s.waitFor("s9/dev follows", 30*time.Second, func() bool { _, err := s.drover("channel", "promote", "s9/test"); return err == nil })
		served, err := s.channel("crash")
		if err != nil {
			t.Fatal(err)
		}
		work := filepath.Join(s.Dir, "work", "pair")
		s.write(filepath.Join(work, "pair.spec"), []byte(specFile("pair", 2)))
		if _, err := s.run(work, "git", "commit", "-q", "-a", "-m", "Round 2"); err != nil {
			t.Fatal(err)
		}
		source := filepath.Join(s.Dir, "work", "bulk", "bulk-2.bin")
		s.write(source, lump(2))

		refused := func(what string, fn func() (string, error)) {
			t.Helper()
			before := s.must("audit", "verify", "-o", "json")
			disk.full()
			out, err := fn()
			disk.empty()
			if err == nil {
				t.Errorf("%s works on a full disk: %s", what, out)
			} else if !strings.Contains(err.Error(), "disk_full") && !strings.Contains(err.Error(), "disk is full") && !strings.Contains(err.Error(), "is full") {
				t.Errorf("%s on a full disk: %v", what, err)
			}
			if after := s.must("audit", "verify", "-o", "json"); after != before {
				t.Errorf("%s changed the ledger: %s, then %s", what, before, after)
			}
		}
		refused("a push", func() (string, error) { return s.run(work, "git", "push", "origin", "HEAD:main") })
		refused("an upload", func() (string, error) {
			return s.run(filepath.Dir(source), s.Bin, "pkg", "new-sources", source)
		})
		if db == "" { // else the database is on another disk
			// It goes on for as long as its files have room, then says so.
			disk.full()
			before, code := "", ""
			for n := 0; n < 200 && code == ""; n++ {
				before = s.must("audit", "verify", "-o", "json")
				comps := filepath.Join(s.Dir, "comps.xml")
				var groups strings.Builder
				for g := range 15 {
					fmt.Fprintf(&groups, "<group><id>x%d-%d</id><name>x</name><description>%s</description><default>true</default><uservisible>true</uservisible><packagelist></packagelist></group>", n, g, strings.Repeat("x", 3800))
				}
				s.write(comps, []byte("<comps>"+groups.String()+"</comps>"))
				if _, err := s.drover("tag", "set", "other", "--arch", "x86_64", "--comps", comps); err != nil {
					if code = err.Error(); !strings.Contains(code, "(disk_full)") || !strings.Contains(code, "free space") {
						t.Errorf("a change of a database without room: %v", err)
					}
				}
			}
			if after := s.must("audit", "verify", "-o", "json"); code == "" || after != before {
				t.Errorf("12 MB went into a full disk (%q), or half of a change did: %s, then %s", code, before, after)
			}
			disk.empty()
			s.must("tag", "set", "other", "--arch", "x86_64", "--codec", "gz")
		}

		// A reader notices nothing.
		disk.full()
		if now, err := s.channel("crash"); err != nil || strings.Join(now, " ") != strings.Join(served, " ") {
			t.Errorf("what is served on a full disk: %v, %v", now, err)
		}
		if _, err := s.run(s.Dir, "curl", "-fsS", "-o", "/dev/null", s.URL+"/channels/crash/x86_64/repodata/repomd.xml"); err != nil {
			t.Error(err)
		}
		disk.empty()

		// A build whose results find no room waits for it, or fails with the reason and works when it is tried again.
		if _, err := s.run(work, "git", "push", "-q", "origin", "HEAD:main"); err != nil {
			t.Fatal(err)
		}
		s.must("pkg", "build", "pair", "--target", "crash")
		var w build.Whole
		last := func() build.Whole {
			w = build.Whole{}
			var bs []build.Build
			if err := s.get("/api/v1/builds?limit=1", &bs); err != nil {
				t.Fatal(err)
			}
			if err := s.get(fmt.Sprintf("/api/v1/builds/%d", bs[0].ID), &w); err != nil {
				t.Fatal(err)
			}
			return w
		}
		s.waitFor("the build has begun", 30*time.Second, func() bool { return last().Tasks[len(w.Tasks)-1].State == build.TaskOpen })
		disk.full()
		time.Sleep(4 * time.Second)
		disk.empty()
		s.waitFor("the build ends", 60*time.Second, func() bool { return last().State != build.Building })
		if w.State != build.Complete {
			if w.Code != "disk_full" || w.Remedy == "" {
				t.Errorf("the build on a full disk: %+v", w.Build)
			}
			s.must("pkg", "build", "pair", "--target", "crash", "--wait")
		}
		published := func(part string) func() bool {
			return func() bool {
				files, err := s.channel("crash")
				return err == nil && strings.Contains(strings.Join(files, "\n"), part)
			}
		}
		s.waitFor("round 2 is published", 30*time.Second, published("pair-1-2.c."))

		// A publish whose metadata finds no room is done once there is room. The build is taken out of the tag
		// while there is space for a row and none for files.
		disk.full()
		disk.grant(64 << 10)
		_, err = s.drover("tag", "remove", "crash", "pair-1-2.c")
		time.Sleep(time.Second)
		disk.empty()
		if err != nil {
			t.Logf("untagging on a full disk: %v", err)
			s.must("tag", "remove", "crash", "pair-1-2.c")
		}
		s.waitFor("round 1 is published again", 30*time.Second, published("pair-1-1.c."))

		// A server that is started on a full disk serves, or says why not; with space it serves again.
		s.kill(server, true)
		disk.full()
		p := s.startServer()
		if err := s.serves(p, 10*time.Second); err != nil {
			if !strings.Contains(err.Error(), "disk_full") {
				t.Errorf("a start on a full disk: %v", err)
			}
			disk.empty()
			s.start(server)
		}
		disk.empty()
		s.must("audit", "verify")
		s.round(3)

		// A promotion that makes metadata of its own finds no room, and does once there is some.
		// In another form, so that what it makes is not what was there for a moment while round 3 came in.
		s.must("tag", "set", "crash", "--arch", "x86_64", "--key", "crash", "--codec", "gz")
		s.waitFor("s9/dev is in gzip", 30*time.Second, func() bool {
			out, err := s.run(s.Dir, "curl", "-fsS", s.URL+"/channels/s9/dev/crash.x86_64/repodata/repomd.xml")
			return err == nil && strings.Contains(out, "primary.xml.gz")
		})
		s.must("channel", "hold", "s9/test", "pair", "--reason", "so that there is something to make")
		s.waitFor("round 3 is in s9/dev", 30*time.Second, func() bool {
			files, err := s.channel("s9/dev")
			return err == nil && strings.Contains(strings.Join(files, "\n"), "bulk-1-3.c.") && strings.Contains(strings.Join(files, "\n"), "pair-1-3.c.")
		})
		before, err := s.channel("s9/test")
		if err != nil {
			t.Fatal(err)
		}
		refused("a promotion", func() (string, error) { return s.drover("channel", "promote", "s9/test") })
		if now, err := s.channel("s9/test"); err != nil || strings.Join(now, " ") != strings.Join(before, " ") {
			t.Errorf("s9/test after a promotion on a full disk: %v, %v", now, err)
		}
		s.must("channel", "promote", "s9/test")
		if now, err := s.channel("s9/test"); err != nil || !strings.Contains(strings.Join(now, "\n"), "bulk-1-3.c.") || strings.Contains(strings.Join(now, "\n"), "pair-1-3.c.") {
			t.Errorf("s9/test after the promotion: %v, %v", now, err)
		}

		// A disk that fills while a mirror syncs: what has come stays, and the rest comes once there is room.
		d, want, total := newDripping(t, 16)
		up := httptest.NewServer(d)
		t.Cleanup(up.Close)
		s.must("mirror", "set", "up", up.URL)
		disk.full()
		disk.grant(6 << 20)
		if out, err := s.drover("mirror", "sync", "up"); err == nil || !strings.Contains(err.Error(), "disk_full") {
			t.Errorf("a sync of 16 MB with room for 6: %v %s", err, out)
		}
		if _, err := s.run(s.Dir, "curl", "-fsS", "-o", "/dev/null", s.URL+"/channels/up/x86_64/repodata/repomd.xml"); err == nil {
			t.Error("a mirror that is not whole is served")
		}
		disk.empty()
		s.must("mirror", "sync", "up")
		if d.sent.Load() > total*3/2 {
			t.Errorf("%d bytes were sent for %d", d.sent.Load(), total)
		}
		if files, err := s.channel("up"); err != nil || len(files) != len(want) {
			t.Errorf("the mirror has %d of %d packages: %v", len(files), len(want), err)
		}
		for _, role := range []string{builder, signer, server} {
			if code := s.stop(role, 20*time.Second); code != 0 {
				t.Errorf("the %s ended with %d", role, code)
			}
		}
		s.tidy()
		blobs, err := blob.Open(filepath.Join(disk.dir, "blobs"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := blobs.Scrub(context.Background(), func(p blob.Problem) { t.Errorf("blob store: %s %s %v", p.Kind, p.Path, p.Err) }); err != nil {
			t.Error(err)
		}
	})
}

// fill is a small disk that can be made full.
type fill struct {
	testing.TB
	dir string
}

func (f fill) file() string { return filepath.Join(f.dir, "filler") }

// full leaves no byte.
func (f fill) full() {
	f.Helper()
	h, err := os.OpenFile(f.file(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		f.Fatal(err)
	}
	defer h.Close()
	for _, size := range []int{4 << 20, 4 << 10, 1} {
		b := make([]byte, size)
		for {
			if _, err := h.Write(b); errors.Is(err, unix.ENOSPC) {
				break
			} else if err != nil {
				f.Fatal(err)
			}
		}
	}
}

// grant gives some bytes back.
func (f fill) grant(n int64) {
	f.Helper()
	st, err := os.Stat(f.file())
	if err == nil {
		err = os.Truncate(f.file(), max(0, st.Size()-n))
	}
	if err != nil {
		f.Fatal(err)
	}
}

func (f fill) empty() {
	f.Helper()
	if err := os.Truncate(f.file(), 0); err != nil {
		f.Fatal(err)
	}
}
