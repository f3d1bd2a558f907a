package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/build"
)

// slowSpec is a package whose %build takes its time.
const slowSpec = "Name: slow\nVersion: 1\nRelease: 1%{?dist}\nSummary: Slow\nLicense: MIT\nBuildArch: noarch\n%description\nSlow.\n%build\nsleep 600\n%files\n"

// push makes a package of one spec file and pushes it.
func (s *site) push(name, spec string) {
	s.Helper()
	work := filepath.Join(s.Dir, "work", name)
	s.must("pkg", "create", name)
	s.must("pkg", "clone", name, work)
	if err := os.WriteFile(filepath.Join(work, name+".spec"), []byte(spec), 0o644); err != nil {
		s.Fatal(err)
	}
	for _, args := range [][]string{{"add", "-A"}, {"commit", "-q", "-m", "First"}, {"push", "-q", "origin", "HEAD:main"}} {
		if out, err := s.run(work, "git", args...); err != nil {
			s.Fatal(out, err)
		}
	}
}

// waitFor polls until something holds.
func (s *site) waitFor(what string, most time.Duration, holds func() bool) {
	s.Helper()
	for end := time.Now().Add(most); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			s.Fatalf("after %s still not: %s", most, what)
		}
	}
}

// inside tells whether a build runs in a root of the site's builder right now.
func (s *site) inside() bool {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range lines {
		if b, _ := os.ReadFile(f); string(b) == "sleep\x00600\x00" {
			root, _ := os.Readlink(filepath.Join(filepath.Dir(f), "root"))
			mounts, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "mountinfo"))
			if root != "/" || strings.Contains(string(mounts), s.Dir) {
				return true
			}
		}
	}
	return false
}

// TestStop stops each process in the middle of its work as systemd does: it ends with 0, gives
// back what it holds and leaves nothing.
func TestStop(t *testing.T) {
	s := newScenario(t, newSite(t, memory(t), "", "--no-builder", "--no-signer"))
	s.begin("ed25519")
	s.push("slow", slowSpec)
	s.must("pkg", "build", "slow", "--target", "crash")
	task := func() build.Task {
		var w build.Whole
		if err := s.get("/api/v1/builds/1", &w); err != nil {
			t.Fatal(err)
		}
		return w.Tasks[len(w.Tasks)-1]
	}
	running := func() bool { k := task(); return k.Method == "buildArch" && k.State == build.TaskOpen && s.inside() }

	s.waitFor("%build runs", 90*time.Second, running)
	if inLayers, _ := exec.Command("find", filepath.Join(s.roleDir(builder), "layers"), "-name", "*.rpm").Output(); len(inLayers) > 0 {
		t.Errorf("the buildroot holds the packages that it was made of: %.300s", inLayers)
	}
	if code := s.stop(builder, 15*time.Second); code != 0 {
		t.Errorf("the builder ended with %d", code)
	}
	if k := task(); k.State != build.TaskFree {
		t.Errorf("the stopped builder did not give back its task: %+v", k)
	}
	if s.inside() {
		t.Error("the build runs on after its builder stopped")
	}
	s.tidy()

	s.start(builder)
	s.waitFor("%build runs again", 60*time.Second, running)
	if code := s.stop(signer, 15*time.Second); code != 0 {
		t.Errorf("the signer ended with %d", code)
	}
	// The server goes away under a build that runs: the builder holds on to it.
	if code := s.stop(server, 20*time.Second); code != 0 {
		t.Errorf("the server ended with %d", code)
	}
	s.start(server)
	s.waitFor("the builder is back", 30*time.Second, func() bool { return running() && task().Attempt == 2 })
	s.must("build", "cancel", "1")
	s.waitFor("the canceled %build ends", 30*time.Second, func() bool { return !s.inside() })
	if code := s.stop(builder, 15*time.Second); code != 0 {
		t.Errorf("the builder ended with %d", code)
	}
	if code := s.stop(server, 20*time.Second); code != 0 {
		t.Errorf("the server ended with %d", code)
	}
	s.tidy()
}

// TestStopWithChildren stops a server that has started its builder and signer itself.
func TestStopWithChildren(t *testing.T) {
	s := newSite(t, memory(t), "")
	s.start(server)
	s.must("sign", "key", "create", "x", "--tag", "x", "--algo", "ed25519")
	s.waitFor("the builder is there", 20*time.Second, func() bool { return strings.Contains(s.must("builder", "list"), "local") })
	// Killed alone or with its children, it starts and they work again: those of before are gone
	// or go, and hold up nothing.
	for i, tree := range []bool{false, true} {
		s.kill(server, tree)
		s.start(server)
		s.must("sign", "key", "create", fmt.Sprintf("y%d", i), "--tag", "x", "--algo", "ed25519")
	}
	p := s.running(server)
	s.waitFor("the server has two children", 20*time.Second, func() bool { return len(descendants(p.cmd.Process.Pid)) == 2 })
	if code := s.stop(server, 20*time.Second); code != 0 {
		t.Errorf("the server ended with %d: %s", code, s.output(server, p))
	}
	s.tidy()
}

// TestTwoServers starts a second server on the directory, then on the address, of the first.
func TestTwoServers(t *testing.T) {
	s := newSite(t, t.TempDir(), "", "--no-builder", "--no-signer")
	s.start(server)
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"directory", []string{"--dir", s.roleDir(server), "--listen", "127.0.0.1:0"}, []string{"(dir_busy)", s.roleDir(server), fmt.Sprint(s.running(server).cmd.Process.Pid), "--dir"}},
		{"address", []string{"--dir", t.TempDir(), "--listen", strings.TrimPrefix(s.URL, "http://")}, []string{"(listen)", s.URL[len("http://"):], "--listen"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.run(s.Dir, "timeout", append([]string{"10", s.Bin, "server", "--no-builder", "--no-signer"}, c.args...)...)
			if err == nil || !strings.Contains(err.Error(), "exit status 1:") {
				t.Fatalf("the second server: %v", err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error does not say %q: %v", w, err)
				}
			}
		})
	}
	s.must("audit", "verify")
}

// TestKilledOnFirstStart kills servers on their very first start. Whenever it was, the next
// start serves, and somebody was shown a token that works.
func TestKilledOnFirstStart(t *testing.T) {
	engines(t, func(t *testing.T, db string) {
		kills := 6
		if os.Getenv("DROVER_LONG") != "" {
			kills = 60
		}
		for i := range kills {
			if db != "" && i > 0 {
				break // one database is one first start
			}
			s := newSite(t, t.TempDir(), db, "--no-builder", "--no-signer")
			first := s.startServer()
			after := time.Duration(rand.Int64N(int64(150 * time.Millisecond)))
			time.Sleep(after)
			s.kill(server, true)
			second := s.startServer()
			if err := s.serves(second, 30*time.Second); err != nil {
				t.Fatalf("killed after %s: %v", after, err)
			}
			works := false
			for _, p := range []*process{first, second} {
				for _, m := range reToken.FindAllStringSubmatch(s.output(server, p), -1) {
					s.Token = m[1]
					_, err := s.drover("auth", "person", "list")
					works = works || err == nil
				}
			}
			if !works {
				t.Errorf("killed after %s, the server has no admin whom it told a token: %s", after, s.output(server, first))
			}
			s.kill(server, true)
		}
	})
}

// BenchmarkStart measures how long a server takes from an empty directory to its first answer.
func BenchmarkStart(b *testing.B) {
	var most time.Duration
	for b.Loop() {
		b.StopTimer()
		s := newSite(b, b.TempDir(), "")
		b.StartTimer()
		began := time.Now()
		if err := s.serves(s.startServer(), time.Minute); err != nil {
			b.Fatal(err)
		}
		most = max(most, time.Since(began))
		b.StopTimer()
		s.stop(server, 20*time.Second)
		b.StartTimer()
	}
	b.ReportMetric(float64(most.Milliseconds()), "ms-max")
}
