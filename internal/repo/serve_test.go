package repo_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/release"
	"drover/internal/repo/repotest"
	"drover/internal/repo/serving"
	"drover/internal/repo/wire"
	"drover/internal/rpm"
	"drover/internal/web"
)

// host is a machine with dnf: its repositories, variables and cache, for several commands.
type host struct {
	t    *testing.T
	dir  string
	root string
}

func newHost(t *testing.T, repoFile string) *host {
	t.Helper()
	h := &host{t, t.TempDir(), t.TempDir()}
	for _, d := range []string{"repos", "home", "vars"} {
		if err := os.Mkdir(filepath.Join(h.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.write("repos/x.repo", repoFile)
	h.write("home/.rpmmacros", "%_dbpath /var/lib/rpm\n%__gpg /usr/bin/gpg\n")
	return h
}

func (h *host) write(file, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, file), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) dnf(args ...string) (string, error) {
	h.t.Helper()
	home := filepath.Join(h.dir, "home")
	return run(h.t, []string{"HOME=" + home, "GNUPGHOME=" + home}, "dnf", append([]string{"-y", "--installroot=" + h.root, "--releasever=9", "--forcearch=x86_64", "--setopt=reposdir=" + filepath.Join(h.dir, "repos"),
		"--setopt=varsdir=" + filepath.Join(h.dir, "vars"), "--setopt=cachedir=" + filepath.Join(h.dir, "cache"), "--setopt=persistdir=" + filepath.Join(h.dir, "persist"), "--setopt=pluginpath=/nonexistent"}, args...)...)
}

// versions are those of hello that the host sees.
func (h *host) versions() string {
	h.t.Helper()
	out, err := h.dnf("-q", "repoquery", "--qf", "%{version}", "hello")
	if err != nil {
		h.t.Fatalf("dnf: %v\n%s", err, out)
	}
	var vs []string
	for l := range strings.Lines(out) {
		if v := strings.TrimSpace(l); len(v) == 1 { // the import of the key is told there too
			vs = append(vs, v)
		}
	}
	return strings.Join(vs, " ")
}

// metric is a line of /metrics, or "".
func metric(t *testing.T, h *repotest.House, name string) string {
	t.Helper()
	_, b := get(t, h.URL+"/metrics")
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, name+" "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// How hosts find a channel: one .repo file, by which real dnf follows it, stays on a snapshot or
// in a ring, asks once to learn that nothing is new, and is counted.
func TestHostsFindAChannel(t *testing.T) {
	srpm1, rpms1 := repotest.RPMBuild(t, repotest.Spec("hello", "1"))
	srpm2, rpms2 := repotest.RPMBuild(t, repotest.Spec("hello", "2"))
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		h.StartSigner(true)
		h.Key("k", "ed25519", "stream*")
		h.Tag(release.Tag{Name: "stream", Key: "k"})
		h.Submit("stream", srpm1, rpms1...)
		one := h.Published("stream")
		h.OK(h.Repo.Point(h.System, "stream-canary", one.Snapshot))
		h.OK(h.Repo.Point(h.System, "other", one.Snapshot))
		if d.Postgres() { // what dnf does is no matter of the database
			h.Submit("stream", srpm2, rpms2...)
			h.Published("stream")
			_, md := get(t, h.URL+"/channels/stream/x86_64/repodata/repomd.xml")
			t.Run("census", func(t *testing.T) { census(t, h) })
			t.Run("chunks", func(t *testing.T) { chunks(t, h, md) })
			return
		}
		_, repoFile := get(t, h.URL+"/channels/stream.repo")
		x := newHost(t, string(repoFile))
		if v := x.versions(); v != "1" {
			t.Fatalf("dnf sees %q", v)
		}
		list := func() string {
			return metric(t, h, `drover_repo_requests_total{channel="stream",kind="list",status="200"}`)
		}
		repomd := func() string {
			return metric(t, h, `drover_repo_requests_total{channel="stream",kind="repomd",status="200"}`)
		}
		lists, mds := list(), repomd()
		time.Sleep(2100 * time.Millisecond) // metadata_expire
		if x.versions(); list() == lists || repomd() != mds {
			t.Errorf("to learn that nothing is new: lists %s to %s, repomd.xml and signature %s to %s", lists, list(), mds, repomd())
		}
		h.Submit("stream", srpm2, rpms2...)
		two := h.Published("stream")
		time.Sleep(2100 * time.Millisecond)
		if v := x.versions(); v != "2" {
			t.Errorf("after a new build dnf sees %q", v)
		}
		_, ml := get(t, h.URL+"/channels/stream/x86_64/metalink")
		_, md1 := get(t, h.URL+"/channels/stream/at/"+one.Snapshot+"/x86_64/repodata/repomd.xml")
		_, md2 := get(t, h.URL+"/channels/stream/at/"+two.Snapshot+"/x86_64/repodata/repomd.xml")
		now, past, _ := strings.Cut(string(ml), "alternates>")
		if !strings.Contains(now, sum256(md2)) || !strings.Contains(past, sum256(md1)) || strings.Count(past, "<mm0:alternate>") != 2 || !strings.Contains(past, ">"+h.URL+"/channels/stream/at/"+two.Snapshot+"/x86_64/repodata/repomd.xml<") {
			t.Errorf("metalink:\n%s", ml)
		}
		// A host that is told to stay where it was, in a ring, and in one that there is none of.
		for _, c := range []struct{ file, value, want string }{{"drover_snapshot", one.Snapshot[:12], "1"}, {"drover_snapshot", "", "2"}, {"drover_ring", "canary", "1"}} {
			x := newHost(t, string(repoFile))
			x.write("vars/"+c.file, c.value+"\n")
			if v := x.versions(); v != c.want {
				t.Errorf("with %s=%q dnf sees %q", c.file, c.value, v)
			}
		}
		for _, c := range [][2]string{{"drover_ring", "none"}, {"drover_snapshot", strings.Repeat("0", 64)}} {
			x := newHost(t, string(repoFile))
			x.write("vars/"+c[0], c[1])
			if out, err := x.dnf("install", "hello"); err == nil || !strings.Contains(out, "404") {
				t.Errorf("with %s=%s dnf installs: %s", c[0], c[1], out)
			}
		}
		// A snapshot that a channel never had is none of its hosts' business.
		if resp, _ := get(t, h.URL+"/channels/other/x86_64/metalink?snapshot="+two.Snapshot); resp.StatusCode != 404 {
			t.Errorf("another channel's snapshot: %s", resp.Status)
		}
		// The host by which a client comes must not write the list.
		r, err := http.NewRequest(http.MethodGet, h.URL+"/channels/stream/x86_64/metalink", nil)
		h.OK(err)
		r.Host = "a&b"
		if resp, err := http.DefaultClient.Do(r); err != nil || resp.StatusCode != 404 {
			t.Errorf("a host that is none: %v %v", resp, err)
		} else {
			_ = resp.Body.Close()
		}
		// Pinned by a mirrorlist too, for clients that read nothing else.
		if _, b := get(t, h.URL+"/channels/stream/x86_64/mirrorlist?snapshot=$drover_snapshot&ring=canary"); string(b) != h.URL+"/channels/stream-canary/at/"+one.Snapshot+"/x86_64/\n" {
			t.Errorf("mirrorlist: %s", b)
		}
		t.Run("a package with key and .repo file", func(t *testing.T) { lead(t, h) })
		t.Run("census", func(t *testing.T) { census(t, h) })
		t.Run("chunks", func(t *testing.T) { chunks(t, h, md2) })
		t.Run("numbers", func(t *testing.T) {
			get(t, h.URL+"/channels/made-up/x86_64/repodata/repomd.xml")
			_, b := get(t, h.URL+"/metrics")
			if bytes.Contains(b, []byte("made-up")) || metric(t, h, `drover_repo_requests_total{channel="",kind="metadata",status="404"}`) == "" {
				t.Error("what a client made up is a label, or was not counted")
			}
			if metric(t, h, `drover_repo_bytes_total{channel="stream",kind="metadata"}`) == "" || metric(t, h, `drover_repo_bytes_total{channel="",kind="chunk"}`) == "" {
				t.Errorf("no bytes:\n%s", b)
			}
		})
	})
}

// lead installs the package that leads to a channel, and hello by what it brought.
func lead(t *testing.T, h *repotest.House) {
	url := h.URL + "/channels/stream.rpm"
	_, a := get(t, url)
	_, b := get(t, url)
	if !bytes.Equal(a, b) || len(a) == 0 {
		t.Error("the same package has other bytes the second time")
	}
	file := filepath.Join(t.TempDir(), "lead.rpm")
	h.OK(os.WriteFile(file, a, 0o600))
	root := t.TempDir()
	must(t, nil, "rpm", "--root", root, "--dbpath", "/var/lib/rpm", "-i", file)
	if out := must(t, nil, "rpm", "--root", root, "--dbpath", "/var/lib/rpm", "-qlp", file); out != "/etc/pki/rpm-gpg/RPM-GPG-KEY-drover-k\n/etc/yum.repos.d/drover-stream.repo\n" {
		t.Errorf("it holds %s", out)
	}
	text, err := os.ReadFile(filepath.Join(root, "etc/yum.repos.d/drover-stream.repo"))
	h.OK(err)
	if !bytes.Contains(text, []byte("gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-drover-k\n")) {
		t.Errorf("its .repo file: %s", text)
	}
	// dnf reads keys of the machine it runs on, which this root only plays.
	x := newHost(t, strings.ReplaceAll(string(text), "file:///", "file://"+root+"/"))
	if out, err := x.dnf("install", "hello"); err != nil {
		t.Errorf("dnf by the package's files: %v\n%s", err, out)
	}
	// By dnf from its address, as the manual has it.
	if out, err := newHost(t, "").dnf("install", url); err != nil || !strings.Contains(out, "drover-release-stream") {
		t.Errorf("dnf install %s: %v\n%s", url, err, out)
	}
	if resp, _ := get(t, h.URL+"/channels/none.rpm"); resp.StatusCode != 404 {
		t.Errorf("of no channel: %s", resp.Status)
	}
}

// census counts hosts that say so, and nobody else.
func census(t *testing.T, h *repotest.House) {
	for _, n := range []string{"1", "1", "4", "5", "0", "", "11", "x"} {
		get(t, h.URL+"/channels/stream/x86_64/metalink?snapshot=$drover_snapshot&ring=$drover_ring&countme="+n)
	}
	get(t, h.URL+"/channels/none/x86_64/metalink?countme=1")
	want := func(want string) {
		t.Helper()
		var got []serving.Hosts
		h.OK(h.Client.Call(t.Context(), "GET", "/api/v1/channels/stream/census", nil, &got))
		s := ""
		for _, c := range got {
			if c.Week.Weekday() != time.Monday || time.Since(c.Week) > 8*24*time.Hour {
				t.Errorf("week of %s", c.Week)
			}
			s += fmt.Sprintf("%s %d,", c.Age, c.Hosts)
		}
		if s != want {
			t.Errorf("census: %s, want %s", s, want)
		}
	}
	// dnf itself counts as one of the first week at some of its requests, by lot.
	var base []serving.Hosts
	h.OK(h.Client.Call(t.Context(), "GET", "/api/v1/channels/stream/census", nil, &base))
	first := base[0].Hosts
	want(fmt.Sprintf("first week %d,older 1,", first))
	if first < 2 {
		t.Errorf("%d hosts", first)
	}
	for range 100 { // and again from the database
		var n int64
		h.OK(h.DB.Read(h.System, func(tx *db.Tx) error {
			return tx.QueryRow("SELECT COALESCE(SUM(hosts), 0) FROM repo_census WHERE channel = 'stream'").Scan(&n)
		}))
		if n == first+1 {
			want(fmt.Sprintf("first week %d,older 1,", first))
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Error("the counts never came into the database")
}

// chunks puts the metadata together from what the index names.
func chunks(t *testing.T, h *repotest.House, md []byte) {
	base := h.URL + "/channels/stream/x86_64/"
	ds, err := rpm.ReadRepomd(md)
	h.OK(err)
	i := slices.IndexFunc(ds, func(d rpm.Data) bool { return d.Type == rpm.ChunkIndex })
	_, packed := get(t, base+ds[i].Href)
	in, done, err := rpm.Open(bytes.NewReader(packed))
	h.OK(err)
	text, err := io.ReadAll(in)
	h.OK(err)
	done()
	x, err := wire.ParseIndex(text)
	h.OK(err)
	if !bytes.Equal(x.Text(), text) || len(x.Chunks) == 0 {
		t.Errorf("the index reads as\n%s", x.Text())
	}
	for k := range rpm.Kind(wire.Kinds) {
		out := slices.Clone(x.Head[k])
		for _, c := range x.Chunks {
			resp, b := get(t, h.URL+"/chunks/"+c.Digest)
			if resp.StatusCode != 200 || sum256(b) != c.Digest || int64(len(b)) != c.Bytes() || !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") {
				t.Fatalf("chunk: %s %v", resp.Status, resp.Header)
			}
			out = append(out, b[c.Offset(k):c.Offset(k)+c.Size[k]]...)
		}
		out = append(out, x.Tail[k]...)
		if sum256(out) != ds[slices.IndexFunc(ds, func(d rpm.Data) bool { return d.Type == k.String() })].Sum {
			t.Errorf("%s comes out wrong", k)
		}
	}
	// No other blob can be had by its digest.
	d, err := h.Blobs.PutBytes([]byte("secret"))
	h.OK(err)
	for _, d := range []string{d.String(), sum256(md), "x", strings.Repeat("0", 64)} {
		if resp, _ := get(t, h.URL+"/chunks/"+d); resp.StatusCode != 404 {
			t.Errorf("blob %s: %s", d, resp.Status)
		}
	}
}

// Follow tells of a new state at once.
func TestFollowAChannel(t *testing.T) {
	d := dbtest.SQLite(t, repotest.Schemas()...)
	h := repotest.New(t, d)
	h.Tag(release.Tag{Name: "stream"})
	one := h.Published("stream")
	follow := func(known string, wait int) (st wire.State) {
		t.Helper()
		h.OK(h.Client.Call(t.Context(), "GET", fmt.Sprintf("%s?snapshot=%s&wait=%d", wire.PathFollow("stream"), known, wait), nil, &st))
		return st
	}
	if st := follow("", 30); st.Snapshot != one.Snapshot || len(st.Trees) != 3 || st.Trees[1].Name != "x86_64" || len(st.Trees[1].ID) != 64 {
		t.Fatalf("first: %+v", st)
	}
	if st := follow(one.Snapshot, 1); st.Snapshot != one.Snapshot {
		t.Fatalf("nothing new: %+v", st)
	}
	moved := make(chan time.Time, 1)
	go func() {
		time.Sleep(200 * time.Millisecond)
		moved <- time.Now()
		h.Tag(release.Tag{Name: "stream", Arches: []string{"x86_64", "aarch64"}})
	}()
	st := follow(one.Snapshot, 30)
	if took := time.Since(<-moved); st.Snapshot == one.Snapshot || took > time.Second {
		t.Errorf("after %s: %+v", took, st)
	}
	var p web.Problem
	if resp, b := get(t, h.URL+wire.PathFollow("none")); resp.StatusCode != 404 || json.Unmarshal(b, &p) != nil || p.Code != "channel_unknown" {
		t.Errorf("of no channel: %s %s", resp.Status, b)
	}
}

// Big packages, served whole and in parts, arrive as they are: the head from memory, the core
// from its file by the kernel.
func TestBigPackage(t *testing.T) {
	d := dbtest.SQLite(t, repotest.Schemas()...)
	h := repotest.New(t, d)
	h.Tag(release.Tag{Name: "stream"})
	srpm, rpms := repotest.BigPackage(t, 5<<20)
	h.Submit("stream", srpm, rpms...)
	c := h.Published("stream")
	p := find(t, content(t, h, c.Snapshot), "x86_64", "big")
	url := h.URL + "/channels/stream/x86_64/" + href(p)
	want, err := os.ReadFile(rpms[0])
	h.OK(err)
	if _, b := get(t, url); !bytes.Equal(b, want) {
		t.Errorf("%d bytes of %d, or others", len(b), len(want))
	}
	n := len(want)
	for _, r := range [][2]int{{0, 10}, {100, 5000}, {50, n - 1}, {1 << 20, 4<<20 + 1}, {n - 5, n - 1}} {
		if _, b := request(t, http.MethodGet, url, "Range", fmt.Sprintf("bytes=%d-%d", r[0], r[1])); !bytes.Equal(b, want[r[0]:r[1]+1]) {
			t.Errorf("%v: %d bytes", r, len(b))
		}
	}
	if got := metric(t, h, `drover_repo_bytes_total{channel="stream",kind="package"}`); got == "" {
		t.Error("its bytes are not counted")
	}
}
