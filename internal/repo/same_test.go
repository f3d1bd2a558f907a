package repo_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"drover/internal/build"
	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/fault"
	"drover/internal/release"
	"drover/internal/repo"
	"drover/internal/repo/repotest"
	"drover/internal/rpm"

	"github.com/klauspost/compress/zstd"
)

// The same package set gives byte-identical files, however a tag came to it; and the files of
// every form unpack to the same.
func TestSamePackagesSameBytes(t *testing.T) {
	type made struct {
		srpm string
		rpms []string
	}
	var files [][]made // by package and version
	for _, name := range []string{"ant", "bee", "cat"} {
		var vs []made
		for v := range 2 {
			s, r := repotest.RPMBuild(t, repotest.Spec(name, fmt.Sprint(v+1)))
			vs = append(vs, made{s, r})
		}
		files = append(files, vs)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		rng := rand.New(rand.NewPCG(seed, 0))
		h := repotest.New(t, d)
		h.StartSigner(true)
		h.Key("k", "ed25519", "*")
		h.Tag(release.Tag{Name: "all"})
		builds := make([][]build.Build, len(files))
		for i, vs := range files {
			for _, v := range vs {
				builds[i] = append(builds[i], h.Submit("all", v.srpm, v.rpms...))
			}
		}
		forms := []release.Tag{{}, {Codec: "gz"}, {SingleFrame: true}, {Codec: "gz", SingleFrame: true}, {OpenChecksum: true}, {Key: "k"}}
		walks, stages := make([]string, len(forms)), make([]string, len(forms))
		for i, f := range forms {
			walks[i] = fmt.Sprintf("walk%d", i)
			f.Name = walks[i]
			h.Tag(f)
			h.Published(f.Name)
			stages[i] = fmt.Sprintf("line%d/prod", i)
			h.OK(h.Repo.SetLine(h.System, repo.Line{Name: fmt.Sprintf("line%d", i), Parts: []string{f.Name}, Stages: []string{"dev", "prod"}}))
		}
		now := make([]int, len(files)) // version of each package in the tags, -1 for none
		for i := range now {
			now[i] = -1
		}
		change := func(tag string, pkg, version, was int) {
			if version >= 0 {
				h.OK(h.Release.TagBuild(h.System, h.Build, tag, builds[pkg][version].NVR))
			}
			if was >= 0 && was != version {
				h.OK(h.Release.UntagBuild(h.System, h.Build, tag, builds[pkg][was].NVR))
			}
		}
		steps := 8
		for step := range steps {
			pkg, version := rng.IntN(len(files)), rng.IntN(3)-1
			if version == now[pkg] || step == steps-1 && version < 0 {
				version = (now[pkg] + 2) % 2
			}
			move := rng.IntN(3)
			for i, tag := range walks {
				change(tag, pkg, version, now[pkg])
				c := h.Published(tag)
				switch move {
				case 1:
					at(t, h, fmt.Sprintf("line%d/dev", i), func(x repo.Content) bool { return x.Packages == content(t, h, c.Snapshot).Packages })
					_, err := h.Repo.Promote(h.System, stages[i], repo.Move{Force: true, Reason: "a walk"})
					h.OK(err)
				case 2:
					if _, err := h.Repo.Channel(h.System, stages[i], ""); err == nil {
						_, _ = h.Repo.Rollback(h.System, stages[i], "", "a walk") // there may be no earlier state
					}
				}
			}
			now[pkg] = version
		}
		var open [3]string
		for i, f := range forms {
			// Made at one go: another form is published first, and a change of it begins anew.
			f.Name = fmt.Sprintf("fresh%d", i)
			other := f
			other.OpenChecksum, other.SingleFrame, other.Key = !f.OpenChecksum, false, ""
			h.Tag(other)
			for pkg, version := range now {
				change(f.Name, pkg, version, -1)
			}
			h.Tag(f)
			fresh := h.Published(f.Name)
			for _, tree := range []string{"x86_64", "x86_64-debug", "source"} {
				dir := "/" + tree + "/repodata/"
				_, a := get(t, h.URL+"/channels/"+walks[i]+dir+"repomd.xml")
				_, b := get(t, h.URL+"/snapshots/"+fresh.Snapshot+dir+"repomd.xml")
				if !bytes.Equal(a, b) || !bytes.Contains(a, []byte("<repomd")) {
					t.Fatalf("%+v, %s with %v: after a walk\n%s\nmade anew\n%s", forms[i], tree, now, a, b)
				}
				datas, err := rpm.ReadRepomd(a)
				h.OK(err)
				for _, x := range datas {
					_, p := get(t, h.URL+"/channels/"+walks[i]+"/"+tree+"/"+x.Href)
					_, q := get(t, h.URL+"/channels/"+f.Name+"/"+tree+"/"+x.Href)
					if !bytes.Equal(p, q) || int64(len(p)) != x.Size {
						t.Errorf("%+v: %s differs", forms[i], x.Href)
					}
					k := slices.Index([]string{"primary", "filelists", "other"}, x.Type)
					if k < 0 || tree != "x86_64" || f.Key != "" {
						continue // with a signature the checksums are others
					}
					got := unpacked(t, x.Href, p)
					if open[k] == "" {
						open[k] = got
					}
					if open[k] != got {
						t.Errorf("%+v: %s unpacks to something else", forms[i], x.Href)
					}
				}
			}
		}
		if !strings.Contains(open[0], "<package") {
			t.Errorf("nothing was compared: %s", open[0])
		}
	})
}

// unpacked is what a file unpacks to, by a reader that goes on after the first member.
func unpacked(t *testing.T, name string, b []byte) string {
	t.Helper()
	var r io.Reader
	var err error
	if strings.HasSuffix(name, ".gz") {
		r, err = gzip.NewReader(bytes.NewReader(b))
	} else {
		r, err = zstd.NewReader(bytes.NewReader(b))
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// What the page of a snapshot shows comes a part at a time, and all of it once.
func TestLook(t *testing.T) {
	type made struct {
		srpm string
		rpms []string
	}
	var all []made
	for _, name := range []string{"ant", "bee", "cat"} {
		s, r := repotest.RPMBuild(t, repotest.Spec(name, "1"))
		all = append(all, made{s, r})
	}
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		h.Tag(release.Tag{Name: "zoo"})
		first := h.Published("zoo")
		for _, m := range all {
			h.Submit("zoo", m.srpm, m.rpms...)
		}
		now := h.Published("zoo")
		h.OK(h.Repo.SetName(h.System, "noah", "zoo", "two of each"))
		want := map[string]bool{}
		for _, p := range content(t, h, now.Snapshot).Trees["x86_64"] {
			want[p.File] = true
		}
		n := 0
		for from, more := 0, true; more; n++ {
			v, err := h.Repo.Look(h.System, "noah", "x86_64", "", from, 2)
			h.OK(err)
			if len(v.Contents) > 2 || len(v.Contents) == 0 || v.Size != 3 || v.Tree != "x86_64" || len(v.Trees) != 3 {
				t.Fatalf("from %d: %+v", from, v)
			}
			for _, p := range v.Contents {
				if !want[p.File] {
					t.Errorf("%s comes twice", p.File)
				}
				delete(want, p.File)
			}
			if len(v.Names) != 1 || v.Names[0].Name != "noah" || !slices.Equal(v.Channels, []string{"zoo"}) || v.Previous == "" {
				t.Errorf("around it: %+v", v)
			}
			from, more = v.More, v.More > 0
		}
		if len(want) > 0 || n != 2 {
			t.Errorf("%d parts, and %v did not come", n, want)
		}
		v, err := h.Repo.Look(h.System, "zoo", "x86_64", "bee", 0, 2)
		h.OK(err)
		if len(v.Contents) != 1 || v.Contents[0].File != "bee-1-1.noarch.rpm" || v.More != 0 {
			t.Errorf("bees: %+v", v)
		}
		if v, err = h.Repo.Look(h.System, first.Snapshot, "", "", 0, 2); err != nil || len(v.Contents) > 0 || v.Previous != "" || len(v.Channels) > 0 {
			t.Errorf("the first state: %+v %v", v, err)
		}
		if _, err = h.Repo.Look(h.System, "zoo", "nope", "", 0, 2); fault.Code(err) != "tree_unknown" {
			t.Errorf("a tree that is not there: %v", err)
		}
		if _, err = h.Repo.Look(h.System, "zoo", "x86_64", "", -5, 2); err != nil {
			t.Errorf("from before the start: %v", err)
		}
	})
}
