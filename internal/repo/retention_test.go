package repo_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/release"
	"drover/internal/repo"
	"drover/internal/repo/repotest"
)

// age moves what was made since an event into the past.
func age(t *testing.T, h *repotest.House, since int64, by time.Duration) {
	t.Helper()
	h.OK(h.DB.Write(h.System, func(tx *db.Tx) error {
		us := by.Microseconds()
		for _, q := range []string{"UPDATE event SET at = at - $1 WHERE id > $2", "UPDATE repo_snapshot SET created = created - $1 WHERE since > $2"} {
			if _, err := tx.Exec(q, us, since); err != nil {
				return err
			}
		}
		for _, q := range []string{"UPDATE repo_tree SET created = created - $1 WHERE created > $2", "UPDATE repo_package SET created = created - $1 WHERE created > $2"} {
			if _, err := tx.Exec(q, us, tx.Now()-time.Hour.Microseconds()); err != nil {
				return err
			}
		}
		return nil
	}))
	h.OK(filepath.WalkDir(filepath.Join(h.Dir, "blobs"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		in, err := e.Info()
		if err == nil && time.Since(in.ModTime()) < time.Hour {
			old := time.Now().Add(-by)
			err = os.Chtimes(path, old, old)
		}
		return err
	}))
}

// What a person chose stays, of the rest a week and a state a day for a month; what goes takes
// its bytes along, and nothing else's.
func TestSweep(t *testing.T) {
	const builds = 5
	srpms, rpms := make([]string, builds+1), make([][]string, builds+1)
	for i := 1; i <= builds; i++ {
		srpms[i], rpms[i] = repotest.RPMBuild(t, repotest.Spec("hello", fmt.Sprint(i)))
	}
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		h.StartSigner(true)
		h.Key("k", "ed25519", "stream")
		h.Tag(release.Tag{Name: "stream", Key: "k", Arches: []string{"x86_64"}})
		h.OK(h.Repo.SetLine(h.System, repo.Line{Name: "l", Parts: []string{"stream"}, Stages: []string{"dev", "prod"}}))
		h.Published("stream")
		id := make([]string, builds+1)
		since := h.Events("")
		// Of the first two one is named and one promoted; the next two are of one day.
		days := []int{0, 40, 35, 10, 10, 0}
		for i := 1; i <= builds; i++ {
			h.Submit("stream", srpms[i], rpms[i]...)
			id[i] = h.Published("stream").Snapshot
			file := fmt.Sprintf("hello-%d-1.noarch.rpm", i)
			at(t, h, "l/dev", func(x repo.Content) bool { return holds(x, file) })
			switch i {
			case 1:
				h.OK(h.Repo.SetName(h.System, "keeper", id[1], "the first"))
			case 2:
				_, err := h.Repo.Promote(h.System, "l/prod", repo.Move{})
				h.OK(err)
			}
			age(t, h, since, time.Duration(days[i])*24*time.Hour)
			since = h.Events("")
		}
		// A later promotion: prod is not there any more, but a person had chosen it.
		_, err := h.Repo.Promote(h.System, "l/prod", repo.Move{})
		h.OK(err)
		h.Stop() // nothing is published while the test looks
		ctx := context.WithoutCancel(h.System)
		dry, err := h.Repo.Sweep(ctx, true)
		h.OK(err)
		r, err := h.Repo.Sweep(ctx, false)
		h.OK(err)
		if dry.Snapshots == 0 || dry.Snapshots != r.Snapshots || r.Packages == 0 || r.Chunks == 0 || r.Blobs == 0 || r.Bytes == 0 {
			t.Fatalf("%+v, and before: %+v", r, dry)
		}
		for i, kept := range map[int]bool{1: true, 2: true, 3: false, 4: true, 5: true} {
			ref := id[i]
			if i == 2 {
				ref = "l/prod@" + time.Now().Add(-time.Hour).Format(time.RFC3339) // the state before the last
			}
			x, err := h.Repo.Content(ctx, ref)
			if (err == nil) != kept {
				t.Errorf("the state of build %d: %v", i, err)
			}
			if !kept {
				continue
			}
			for name, ps := range x.Trees {
				base := h.URL + "/snapshots/" + x.ID + "/" + name + "/"
				if hrefs := copyTree(t, base, t.TempDir()); len(hrefs) != len(ps) {
					t.Errorf("%s holds %v", base, hrefs)
				}
			}
		}
		// Nothing is left of what is gone.
		h.OK(d.Read(ctx, func(tx *db.Tx) error {
			for what, query := range map[string]string{
				"what the gate knows of chunks": "SELECT COUNT(*) FROM repo_gate WHERE chunk NOT IN (SELECT id FROM repo_chunk)",
				"packed chunks":                 "SELECT COUNT(*) FROM repo_part WHERE chunk NOT IN (SELECT id FROM repo_chunk)",
				"files of trees":                "SELECT COUNT(*) FROM repo_file WHERE tree NOT IN (SELECT id FROM repo_tree)",
				"parts of snapshots":            "SELECT COUNT(*) FROM repo_snapshot_part WHERE snapshot NOT IN (SELECT id FROM repo_snapshot)",
			} {
				var n int
				if err := tx.QueryRow(query).Scan(&n); err != nil {
					return err
				}
				if n > 0 {
					t.Errorf("%s: %d rows", what, n)
				}
			}
			signed, err := db.Column[blob.Digest](tx, "SELECT repomd FROM repo_signature")
			for _, sum := range signed {
				if ok, err := h.Blobs.Has(sum); !ok || err != nil {
					t.Errorf("the signature of a repomd.xml that is gone stays: %s %v", sum, err)
				}
			}
			return err
		}))
		// The bytes of builds are theirs.
		ds, err := h.Blobs.Scrub(ctx, func(p blob.Problem) { t.Errorf("%+v", p) })
		h.OK(err)
		if ds.Blobs == 0 {
			t.Error("no blob is left")
		}
		h.OK(d.Read(ctx, func(tx *db.Tx) error {
			return tx.Each(func(scan func(...any) error) error {
				var head, core blob.Digest
				if err := scan(&head, &core); err != nil {
					return err
				}
				for _, b := range []blob.Digest{head, core} {
					if ok, err := h.Blobs.Has(b); !ok || err != nil {
						t.Errorf("the blob %s of a build is gone", b)
					}
				}
				return nil
			}, "SELECT head, core FROM build_rpm")
		}))
		if again, err := h.Repo.Sweep(ctx, false); err != nil || again.Snapshots+again.Blobs+again.Packages > 0 {
			t.Errorf("again: %+v %v", again, err)
		}
		if s := h.Log.String(); strings.Contains(s, "panic") {
			t.Error(s)
		}
	})
}
