package repo_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/fleet"
	"drover/internal/release"
	"drover/internal/repo/repotest"
)

// installed gives hosts packages, as their agents would have told.
func installed(t *testing.T, h *repotest.House, hosts map[string][]string) {
	t.Helper()
	ctx := context.WithoutCancel(h.System)
	h.OK(h.DB.Write(ctx, func(tx *db.Tx) error {
		for _, q := range []string{"DELETE FROM fleet_has", "DELETE FROM fleet_item", "DELETE FROM fleet_host"} {
			if _, err := tx.Exec(q); err != nil {
				return err
			}
		}
		items := map[string]int{}
		for name, ps := range hosts {
			id := len(name) // of their own lengths
			state := "accepted"
			if name == "revoked" {
				state = "revoked"
			}
			if _, err := tx.Exec("INSERT INTO fleet_host (id, name, key, state, why, machine, serial_no, macs, version, cap, created, changed, event, online, online_since, seen, boot, inventory, reported) VALUES ($1, $2, $2, $3, '', '', '', '', '', 1, 0, 0, 0, 0, 0, 0, '', '', 0)", id, name, state); err != nil {
				return err
			}
			for _, p := range ps {
				if items[p] == 0 {
					items[p] = len(items) + 1
					if _, err := tx.Exec("INSERT INTO fleet_item (id, kind, key, value, base) VALUES ($1, 'package', 'hello', $2, 'hello')", items[p], p); err != nil {
						return err
					}
				}
				if _, err := tx.Exec("INSERT INTO fleet_has (host, item, since, until) VALUES ($1, $2, 1, 0)", id, items[p]); err != nil {
					return err
				}
			}
		}
		return nil
	}))
	f, err := fleet.New(ctx, fleet.Config{DB: h.DB, Dir: t.TempDir(), Log: h.Repo.Log})
	h.OK(err)
	h.Repo.Hosts = f
}

// A difference tells which hosts it concerns, and what a host has stays.
func TestHostsHaveWhatIsInstalled(t *testing.T) {
	const builds = 5 // the last two are kept by age
	srpms, rpms := make([]string, builds+1), make([][]string, builds+1)
	for i := 1; i <= builds; i++ {
		srpms[i], rpms[i] = repotest.RPMBuild(t, repotest.Spec("hello", fmt.Sprint(i)))
	}
	dbtest.Each(t, append(repotest.Schemas(), fleet.Schema()), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		h.StartSigner(true)
		h.Key("k", "ed25519", "stream")
		h.Tag(release.Tag{Name: "stream", Key: "k", Arches: []string{"x86_64"}})
		h.Published("stream")
		id := make([]string, builds+1)
		since := h.Events("")
		for i := 1; i <= builds; i++ {
			h.Submit("stream", srpms[i], rpms[i]...)
			id[i] = h.Published("stream").Snapshot
			if i < builds {
				age(t, h, since, time.Duration(50-i)*24*time.Hour)
			}
			since = h.Events("")
		}
		v := func(i int) string { return fmt.Sprintf("%d-1.noarch", i) }
		installed(t, h, map[string][]string{"a": {v(1)}, "bb": {v(2)}, "ccc": {v(1), v(2)}, "none": nil, "other": {"3-1.x86_64"}, "revoked": {v(1)}})
		for _, c := range []struct {
			from, to int
			want     []string
		}{{1, 2, []string{"a"}}, {2, 3, []string{"a", "bb", "ccc"}}, {3, 1, []string{"bb", "ccc"}}, {1, 1, []string{}}} {
			x, err := h.Repo.Diff(h.System, id[c.from], id[c.to])
			h.OK(err)
			if !slices.Equal(x.Hosts, c.want) || x.Hosts == nil {
				t.Errorf("from %d to %d concerns %v, want %v", c.from, c.to, x.Hosts, c.want)
			}
			n := 0
			for _, y := range x.Changes {
				n += y.Hosts
			}
			if n != len(c.want) {
				t.Errorf("from %d to %d: %+v", c.from, c.to, x.Changes)
			}
		}
		if x, err := h.Repo.Diff(context.Background(), id[1], id[2]); err != nil || x.Hosts != nil || x.Changes[0].Hosts != 0 {
			t.Errorf("for somebody who may not read hosts: %v %v", x.Hosts, err)
		}
		count, hosts, err := h.Repo.Hosts.HavingOther(h.System, map[string]string{"hello.noarch": "", "hello.x86_64": "3-1", "nothing.noarch": ""})
		if err != nil || count["hello.noarch"] != 3 || count["hello.x86_64"] != 0 || !slices.Equal(hosts, []string{"a", "bb", "ccc"}) {
			t.Errorf("%v %v %v", count, hosts, err)
		}

		resp, err := h.Client.Do(h.System, "GET", "/snapshots/"+id[2]+"/diff/"+id[3], http.Header{"Accept": {"text/html"}}, nil)
		h.OK(err)
		page, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		h.OK(err)
		for _, want := range []string{"3 hosts have one of them in another version", `<a href="/fleet?target=pkg%28%22hello%22%29%20and%20pkg%28%22hello%22%29%20%21%3d%20%223-1%22">3</a>`} {
			if !strings.Contains(string(page), want) {
				t.Errorf("the page lacks %s:\n%s", want, page)
			}
		}

		h.Stop() // nothing is published while the test looks
		ctx := context.WithoutCancel(h.System)
		left := func() (out []int) {
			_, err := h.Repo.Sweep(ctx, false)
			h.OK(err)
			for i := 1; i <= builds; i++ {
				if _, err := h.Repo.Content(ctx, id[i]); err == nil {
					out = append(out, i)
				}
			}
			return out
		}
		// 1 is on a host that is not let in any more, and 3 on one with another arch: they go.
		installed(t, h, map[string][]string{"revoked": {v(1)}, "bb": {v(2)}, "other": {"3-1.x86_64"}})
		if got := left(); !slices.Equal(got, []int{2, 4, 5}) {
			t.Errorf("%v are left", got)
		}
		installed(t, h, map[string][]string{"bb": {v(5)}})
		if got := left(); !slices.Equal(got, []int{4, 5}) {
			t.Errorf("%v are left when no host has them", got)
		}
	})
}
