package app

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"drover/internal/auth"
	"drover/internal/fault"
	fleetwire "drover/internal/fleet/wire"
	"drover/internal/job"
)

func TestReactions(t *testing.T) {
	onEach(t, func(t *testing.T, s *Server, admin context.Context) {
		f := simulate(t, s, 2, nil)
		var calls, refuse atomic.Int64
		hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var got struct{ Tag string }
			if json.NewDecoder(r.Body).Decode(&got) != nil || got.Tag == "" || refuse.Load() > 0 {
				w.WriteHeader(http.StatusTeapot)
				return
			}
			calls.Add(1)
		}))
		defer hook.Close()
		for what, r := range map[string]job.Reaction{
			"reaction_tag":  {Name: "loop", Tag: "salt/job/*/ret/*", Job: &job.Spec{Target: "*", Fun: "test.ping"}},
			"reaction_hook": {Name: "x", Tag: "a/b", Hook: "ftp://x/"},
			"function":      {Name: "x", Tag: "a/b", Job: &job.Spec{Target: "*", Fun: "nonsense"}},
			"reaction_name": {Name: "../x", Tag: "a/b", Hook: "http://x/"},
		} {
			if err := s.Jobs.SetReaction(admin, r); fault.Code(err) != what {
				t.Errorf("%s: %v", what, err)
			}
		}
		viewer := auth.With(t.Context(), auth.Actor{Kind: auth.Person, Name: "eve", Role: "viewer"})
		if err := s.Jobs.SetReaction(viewer, job.Reaction{Name: "x", Tag: "a/b", Hook: "http://x/"}); fault.Code(err) != "denied" {
			t.Errorf("a viewer: %v", err)
		}
		for _, r := range []job.Reaction{
			{Name: "work", Tag: "salt/beacon/*/service/*", Job: &job.Spec{Target: "{id}", Fun: "sim.work", Args: []any{1}}},
			{Name: "nobody", Tag: "salt/beacon/*/service/*", Job: &job.Spec{Target: "{data.service}", Fun: "sim.work"}},
			{Name: "call", Tag: "site/*", Hook: hook.URL},
		} {
			if err := s.Jobs.SetReaction(admin, r); err != nil {
				t.Fatal(err)
			}
		}
		tell := func(host, tag string) {
			s.Jobs.Stream.FromHost(host, fleetwire.Event{Tag: tag, Data: json.RawMessage(`{"service":"no-such-host"}`)})
		}
		until(t, "the reactions are taken up", func() bool { tell("sim-00001", "site/ready"); return calls.Load() > 0 })
		tell("sim-00001", "salt/beacon/sim-00001/service/sshd")
		tell("sim-00001", "salt/beacon/sim-00002/service/sshd") // of another host: it does not speak for it
		until(t, "the host of the event got the job", func() bool { return f.Ran(0) == 1 })
		until(t, "what has no host is a dead letter", func() bool {
			ls, err := s.Jobs.Letters(admin, "dead", 10)
			return err == nil && len(ls) == 1 && ls[0].Reaction == "nobody" && ls[0].Error != ""
		})
		if f.Ran(1) != 0 {
			t.Error("a host spoke for another")
		}
		// A hook that fails is tried again.
		refuse.Store(1)
		before := calls.Load()
		tell("sim-00002", "site/again")
		until(t, "it was tried", func() bool {
			ls, err := s.Jobs.Letters(admin, "waiting", 10)
			return err == nil && len(ls) > 0 && ls[0].Tries > 0
		})
		refuse.Store(0)
		until(t, "it got there", func() bool { return calls.Load() > before })
		if err := s.Jobs.Retry(admin, 999); fault.Code(err) != "letter_unknown" {
			t.Error(err)
		}
		if err := s.Jobs.SetReaction(admin, job.Reaction{Name: "call"}); err != nil {
			t.Error(err)
		}
	})
}
