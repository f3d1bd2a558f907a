package release_test

import (
	"fmt"
	"strings"
	"testing"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/release"
	"drover/internal/repo/repotest"
)

// latest is what a tag holds as of a time: the builds' numbers.
func latest(t *testing.T, h *repotest.House, tag, at string) []int64 {
	t.Helper()
	ts, err := h.Release.Content(h.System, tag, at)
	h.OK(err)
	out := []int64{}
	for _, x := range ts {
		out = append(out, x.Build)
	}
	return out
}

func TestTagsHoldTheLatestAsInKoji(t *testing.T) {
	var srpms []string
	var rpms [][]string
	for _, v := range []string{"1", "2"} {
		s, r := repotest.RPMBuild(t, repotest.Spec("hello", v))
		srpms, rpms = append(srpms, s), append(rpms, r)
	}
	s, r := repotest.RPMBuild(t, repotest.Spec("other", "1"))
	srpms, rpms = append(srpms, s), append(rpms, r)
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		empty := h.Events("tag.")
		h.Tag(release.Tag{Name: "stream"})
		h.Tag(release.Tag{Name: "stream-next"})
		made := h.Events("tag.")
		one, two, other := h.Submit("stream", srpms[0], rpms[0]...), h.Submit("stream", srpms[1], rpms[1]...), h.Submit("stream", srpms[2], rpms[2]...)
		eq := func(what string, got []int64, want ...int64) {
			t.Helper()
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
		eq("after the builds", latest(t, h, "stream", ""), two.ID, other.ID)
		built := h.Events("tag.")
		// The one tagged last is the latest, whatever its version; again changes nothing.
		h.OK(h.Release.TagBuild(h.System, h.Build, "stream", one.NVR))
		if h.Events("tag.") != built {
			t.Error("tagging what is tagged is an event")
		}
		eq("tagged again", latest(t, h, "stream", ""), two.ID, other.ID)
		h.OK(h.Release.UntagBuild(h.System, h.Build, "stream", fmt.Sprint(one.ID)))
		h.OK(h.Release.TagBuild(h.System, h.Build, "stream", one.NVR))
		older := h.Events("tag.")
		eq("older tagged last", latest(t, h, "stream", ""), one.ID, other.ID)
		h.OK(h.Release.UntagBuild(h.System, h.Build, "stream", one.NVR))
		eq("untagged", latest(t, h, "stream", ""), two.ID, other.ID)
		h.OK(h.Release.TagBuild(h.System, h.Build, "stream-next", one.NVR))
		eq("another tag", latest(t, h, "stream-next", ""), one.ID)

		// Any moment of it can be asked for, by event and by time.
		eq("as of the builds", latest(t, h, "stream", fmt.Sprint(built)), two.ID, other.ID)
		eq("as of the older one", latest(t, h, "stream", fmt.Sprint(older)), one.ID, other.ID)
		eq("as of its making", latest(t, h, "stream", fmt.Sprint(made)))
		eq("by time", latest(t, h, "stream", "2099-01-01T00:00:00Z"), two.ID, other.ID)
		for _, at := range []string{fmt.Sprint(empty), "0", "2001-01-01T00:00:00Z"} {
			if _, err := h.Release.Content(h.System, "stream", at); fault.Code(err) != "tag_unknown" {
				t.Errorf("as of %s: %v", at, err)
			}
			if x, err := h.Release.Tag(h.System, "stream", at); fault.Code(err) != "tag_unknown" {
				t.Errorf("as of %s: %+v %v", at, x, err)
			}
		}
		for at, code := range map[string]string{"99999999": "event_unknown", "-1": "event_unknown", "yesterday": "as_of", strings.Repeat("9", 30): "as_of"} {
			if _, err := h.Release.Content(h.System, "stream", at); fault.Code(err) != code {
				t.Errorf("as of %s: %v", at, err)
			}
		}
		was := h.Events("tag.")
		h.Tag(release.Tag{Name: "stream", Macros: map[string]string{"dist": ".el10"}, Arches: []string{"x86_64", "aarch64"}})
		if x, err := h.Release.Tag(h.System, "stream", fmt.Sprint(was)); err != nil || len(x.Arches) != 1 || x.Macros != nil {
			t.Errorf("the configuration as of before: %+v %v", x, err)
		}
		if x, err := h.Release.Tag(h.System, "stream", ""); err != nil || len(x.Arches) != 2 || x.Since <= was {
			t.Errorf("the configuration now: %+v %v", x, err)
		}
		same := h.Events("tag.")
		h.Tag(release.Tag{Name: "stream", Macros: map[string]string{"dist": ".el10"}, Arches: []string{"x86_64", "aarch64"}})
		h.OK(d.Read(h.System, func(tx *db.Tx) error {
			es, err := event.List(tx, event.Filter{After: same, Kind: "tag."})
			if len(es) != 0 {
				t.Errorf("the same state is an event: %+v", es)
			}
			return err
		}))

		// A locked tag: nothing in, nothing out, no build for it; unlocked it goes on.
		locked := release.Tag{Name: "stream-next", Arches: []string{"x86_64"}, Locked: true}
		h.OK(h.Release.SetTag(h.System, locked))
		h.OK(d.Read(h.System, func(tx *db.Tx) error {
			if _, err := h.Release.For(tx, "stream-next"); fault.Code(err) != "tag_locked" {
				t.Errorf("a build for a locked tag: %v", err)
			}
			return nil
		}))
		if err := h.Release.TagBuild(h.System, h.Build, "stream-next", two.NVR); fault.Code(err) != "tag_locked" {
			t.Errorf("into a locked tag: %v", err)
		}
		if err := h.Release.UntagBuild(h.System, h.Build, "stream-next", one.NVR); fault.Code(err) != "tag_locked" {
			t.Errorf("out of a locked tag: %v", err)
		}
		// Locked while a build ran: the build stays, untagged, and the ledger says why.
		h.OK(d.Write(h.System, func(tx *db.Tx) error { return h.Release.Put(tx, "stream-next", two.ID, "hello") }))
		eq("locked", latest(t, h, "stream-next", ""), one.ID)
		h.OK(d.Read(h.System, func(tx *db.Tx) error {
			es, err := event.List(tx, event.Filter{Kind: "tag.skipped"})
			if len(es) != 1 {
				t.Errorf("%d events of what was skipped", len(es))
			}
			return err
		}))
		locked.Locked = false
		h.OK(h.Release.SetTag(h.System, locked))
		h.OK(h.Release.TagBuild(h.System, h.Build, "stream-next", two.NVR))
		eq("unlocked", latest(t, h, "stream-next", ""), two.ID)
	})
}

func TestTagsAndTargetsThatAreRefused(t *testing.T) {
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		h.Tag(release.Tag{Name: "t"})
		h.Published("t")
		before := h.Events("")
		x := []string{"x86_64"}
		for name, bad := range map[string]release.Tag{
			"no name": {Arches: x}, "a path": {Name: "../x", Arches: x}, "NUL": {Name: "a\x00b", Arches: x}, "long": {Name: strings.Repeat("a", 101), Arches: x}, "no arch": {Name: "a"},
			"noarch": {Name: "a", Arches: []string{"noarch"}}, "a bad arch": {Name: "a", Arches: []string{"x/y"}}, "a bad key": {Name: "a", Arches: x, Key: "../k"}, "a bad codec": {Name: "a", Arches: x, Codec: "rar"},
			"a macro of code": {Name: "a", Arches: x, Macros: map[string]string{"dist": "%(id)"}}, "a bad macro": {Name: "a", Arches: x, Macros: map[string]string{"a b": "x"}}, "a package of options": {Name: "a", Arches: x, Install: []string{"--installroot=/"}},
			"a bad mirror": {Name: "a", Arches: x, Mirrors: []string{"http://x/"}}, "many packages": {Name: "a", Arches: x, Install: slicesOf("p", 501)}, "broken comps": {Name: "a", Arches: x, Comps: "<comps><group>"}, "large comps": {Name: "a", Arches: x, Comps: strings.Repeat("x", 1<<20+1)},
		} {
			if err := h.Release.SetTag(h.System, bad); fault.Code(err) != "tag" {
				t.Errorf("%s: %v", name, err)
			}
		}
		for name, c := range map[string]struct {
			t    release.Target
			code string
		}{
			"a bad name": {release.Target{Name: "a b", BuildTag: "t", DestTag: "t"}, "target"}, "unknown tag": {release.Target{Name: "a", BuildTag: "t", DestTag: "no"}, "tag_unknown"}, "unknown build tag": {release.Target{Name: "a", BuildTag: "no", DestTag: "t"}, "tag_unknown"},
		} {
			if err := h.Release.SetTarget(h.System, c.t); fault.Code(err) != c.code {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := h.Release.TagBuild(h.System, h.Build, "t", "hello-1-1"); fault.Code(err) != "build_unknown" {
			t.Errorf("unknown build: %v", err)
		}
		for _, who := range []auth.Actor{{}, {Kind: auth.Person, Name: "p", Role: "packager"}, {Kind: auth.Person, Name: "r", Role: "releaser", Scopes: []string{"tag.*:other"}}, {Kind: auth.Builder, Name: "b", Role: "builder"}} {
			ctx := auth.With(t.Context(), who)
			for what, err := range map[string]error{"tag": h.Release.SetTag(ctx, release.Tag{Name: "t", Arches: x}), "target": h.Release.SetTarget(ctx, release.Target{Name: "t", BuildTag: "t", DestTag: "t"}),
				"build": h.Release.TagBuild(ctx, h.Build, "t", "1"), "untag": h.Release.UntagBuild(ctx, h.Build, "t", "1")} {
				if k := fault.As(err); k == nil || k.Kind != fault.KindDenied && k.Kind != fault.KindUnauthorized {
					t.Errorf("%s by %s: %v", what, who, err)
				}
			}
		}
		if h.Events("") != before {
			t.Errorf("%d events were written", h.Events("")-before)
		}
		// A releaser may, within the scopes of the token.
		ctx := auth.With(t.Context(), auth.Actor{Kind: auth.Person, Name: "r", Role: "releaser", Scopes: []string{"tag.edit:t*"}})
		h.OK(h.Release.SetTag(ctx, release.Tag{Name: "t2", Arches: x}))
	})
}

func slicesOf(s string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = s
	}
	return out
}

// CentOS Stream's own groups have hundreds of KiB, more than a line of the ledger.
func TestTagTakesGroupsOfTheRealSize(t *testing.T) {
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		var b strings.Builder
		b.WriteString("<comps>")
		for i := range 400 {
			fmt.Fprintf(&b, "<group><id>g%d</id><name>Group %d</name><description>%s</description><packagelist><packagereq type=\"default\">bash</packagereq></packagelist></group>", i, i, strings.Repeat("d", 1000))
		}
		b.WriteString("</comps>")
		h.OK(h.Release.SetTag(h.System, release.Tag{Name: "stream", Arches: []string{"x86_64"}, Comps: b.String()}))
		if got, err := h.Release.Tag(h.System, "stream", ""); err != nil || got.Comps != b.String() {
			t.Errorf("%d bytes came back: %v", len(got.Comps), err)
		}
	})
}
