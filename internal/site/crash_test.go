package site_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"drover/internal/repo/repotest"
	"drover/internal/site"
	"drover/internal/web"

	"golang.org/x/sys/unix"
)

// childEnv makes the test binary run a site: its directory, and the centre.
const childEnv = "DROVER_SITE_CHILD"

// child is a site in a process of its own, to be killed.
func child() {
	var dir, centre, part string
	if n, err := fmt.Sscan(os.Getenv(childEnv), &dir, &centre, &part); n < 2 {
		panic(err)
	}
	if part == "full" {
		panic(fillDisk(dir, centre))
	}
	s, err := site.New(site.Config{Centre: &web.Client{Base: centre, HTTP: &http.Client{}}, Dir: dir, Listen: "127.0.0.1:0", Channels: []string{"stream"}, Ahead: true, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		panic(err)
	}
	panic(s.Run(context.Background()))
}

// fillDisk is a site on a file system of 6 MiB, in mounts of its own.
func fillDisk(dir, centre string) error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("drover-test", dir, "tmpfs", 0, "size=6m"); err != nil {
		return fmt.Errorf("mount a small tmpfs: %w", err)
	}
	s, err := site.New(site.Config{Centre: &web.Client{Base: centre, HTTP: &http.Client{}}, Dir: dir, Listen: "127.0.0.1:0", Channels: []string{"stream"}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	fmt.Println(s.URL)
	return s.Run(context.Background())
}

// With a full disk packages are passed on, right or not at all, and nothing else breaks.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	h := centre(t, "hello")
	srpm, rpms := repotest.BigPackage(t, 8<<20)
	h.Submit("stream", srpm, rpms...)
	h.Published("stream")
	g := newGate(t, h.URL)
	self, err := os.Executable()
	h.OK(err)
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+filepath.Join(t.TempDir(), "small")+" "+g.URL+" full")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	cmd.Stderr = h.Log
	out, err := cmd.StdoutPipe()
	h.OK(err)
	h.OK(cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var base string
	if _, err := fmt.Fscanln(out, &base); err != nil {
		t.Fatalf("it needs root or user namespaces: %v\n%s", err, h.Log)
	}
	base += "/channels/stream/x86_64/"
	for range 500 {
		if resp, _, err := get(t, base+"repodata/repomd.xml"); err == nil && resp.StatusCode == 200 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	hrefs, _ := whole(t, base, false)
	i := slices.IndexFunc(hrefs, func(h string) bool { return strings.Contains(h, "big") })
	for range 2 {
		if resp, b, err := get(t, base+hrefs[i]); err != nil || resp.StatusCode != 200 || !strings.Contains(hrefs[i], sum256(b)[:12]) {
			t.Errorf("a package larger than the disk: %v %v, %d bytes\n%s", resp, err, len(b), h.Log)
		}
	}
	if !strings.Contains(h.Log.String(), "packages are passed on and not kept") {
		t.Error("the log does not say that packages are not kept")
	}
	g.set(func(g *gate) {
		g.change = func(p string, b []byte) []byte {
			if strings.HasSuffix(p, ".rpm") {
				return flip(b)
			}
			return b
		}
	})
	if resp, b, err := get(t, base+hrefs[i]); err == nil && resp.StatusCode < 500 {
		t.Errorf("a wrong package, passed on: %s, %d bytes", resp.Status, len(b))
	}
	g.set(func(g *gate) { g.change = nil })
	whole(t, base, true)
}

// A site that is killed at any moment has, after its restart, one whole state or the next.
func TestKilled(t *testing.T) {
	t.Parallel()
	kills := 6
	if os.Getenv("DROVER_LONG") != "" {
		kills = 60
	}
	h := centre(t, "hello", "other")
	g := newGate(t, h.URL)
	c := config(t, g.URL, h.Log, "stream")
	c.Ahead = true
	self, err := os.Executable()
	h.OK(err)
	states := map[string]bool{"": true, h.Published("stream").Snapshot: true}
	srpms, rpms := [4]string{}, [4][]string{}
	for i := range srpms {
		srpms[i], rpms[i] = repotest.RPMBuild(t, repotest.Spec("hello", fmt.Sprint(i+2)))
	}
	for n := range kills {
		g.set(func(g *gate) { g.delay = time.Duration(rand.IntN(8)) * time.Millisecond })
		cmd := exec.CommandContext(t.Context(), self, "-test.run=^$")
		cmd.Env = append(os.Environ(), childEnv+"="+c.Dir+" "+g.URL)
		h.OK(cmd.Start())
		if n < len(srpms) {
			h.Submit("stream", srpms[n], rpms[n]...)
			states[h.Published("stream").Snapshot] = true
		} else {
			b := h.Published("stream")
			hist, err := h.Repo.History(h.System, "stream")
			h.OK(err)
			for _, x := range hist {
				if x.Snapshot != b.Snapshot && x.Key == "k" {
					h.OK(h.Repo.Point(h.System, "stream", x.Snapshot))
					break
				}
			}
		}
		time.Sleep(time.Duration(rand.IntN(250)) * time.Millisecond)
		h.OK(cmd.Process.Kill())
		_ = cmd.Wait() // it was killed
		// What is there is whole, without the centre.
		g.set(func(g *gate) { g.down = true })
		d := c
		d.Ahead = false
		s, stop := start(t, d)
		if st := s.Status().Channels[0]; !states[st.Snapshot] {
			t.Errorf("after kill %d: %+v", n, st)
		} else if st.Snapshot != "" {
			whole(t, s.URL+"/channels/stream/x86_64/", false)
		}
		stop()
		g.set(func(g *gate) { g.down = false })
	}
	g.set(func(g *gate) { g.delay = 0 })
	s, _ := start(t, c)
	at(t, s, h.Published("stream").Snapshot)
	wait(t, s, "all packages", func(st site.Status) bool { return st.Channels[0].Missing <= 2 }) // the sources
	whole(t, s.URL+"/channels/stream/x86_64/", true)
	whole(t, s.URL+"/channels/stream/source/", true)
}
