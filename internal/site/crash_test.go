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
	"testing"
	"time"

	"drover/internal/repo/repotest"
	"drover/internal/site"
	"drover/internal/web"
)

// childEnv makes the test binary run a site: its directory, and the centre.
const childEnv = "DROVER_SITE_CHILD"

// child is a site in a process of its own, to be killed.
func child() {
	var dir, centre string
	if _, err := fmt.Sscan(os.Getenv(childEnv), &dir, &centre); err != nil {
		panic(err)
	}
	s, err := site.New(site.Config{Centre: &web.Client{Base: centre, HTTP: &http.Client{}}, Dir: dir, Listen: "127.0.0.1:0", Channels: []string{"stream"}, Ahead: true, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		panic(err)
	}
	panic(s.Run(context.Background()))
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
