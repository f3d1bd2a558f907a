package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"drover/internal/repo"

	"github.com/google/rpmpack"
)

// dripping sends files in small pieces, so that little is on its way when the reader dies, and
// counts what it sends.
type dripping struct {
	dir  string
	sent atomic.Int64
}

// ServeHTTP implements http.Handler.
func (d *dripping) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f, err := os.Open(filepath.Join(d.dir, filepath.Clean("/"+r.URL.Path)))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return
	}
	http.ServeContent(w, r, "", info.ModTime(), struct {
		io.Reader
		io.Seeker
	}{io.TeeReader(slow{f}, counter{&d.sent}), f})
}

type slow struct{ f *os.File }

// Read implements io.Reader.
func (s slow) Read(p []byte) (int, error) {
	time.Sleep(100 * time.Microsecond)
	return s.f.Read(p[:min(len(p), 2<<10)])
}

type counter struct{ n *atomic.Int64 }

// Write implements io.Writer.
func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// newDripping makes a repository of packages of 1 MiB, with their checksums by their places and
// the bytes of all of them.
func newDripping(t *testing.T, packages int) (d *dripping, want map[string]string, total int64) {
	t.Helper()
	d = &dripping{dir: t.TempDir()}
	if err := os.Mkdir(filepath.Join(d.dir, "Packages"), 0o755); err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, 2<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(payload)
	want = map[string]string{}
	for i := range packages {
		p, err := rpmpack.NewRPM(rpmpack.RPMMetaData{Name: fmt.Sprintf("mirrored-%d", i), Version: "1", Release: "1", Arch: "noarch", OS: "linux", Summary: "A test", Description: "A test", Licence: "MIT", Compressor: "zstd", Epoch: rpmpack.NoEpoch, BuildTime: time.Unix(1_700_000_000, 0)}) //nolint:misspell // its name there
		if err != nil {
			t.Fatal(err)
		}
		p.AddFile(rpmpack.RPMFile{Name: fmt.Sprintf("/usr/share/mirrored/%d", i), Body: payload[i*997:][:1<<20], Mode: 0o100644, Owner: "root", Group: "root"})
		var b strings.Builder
		if err := p.Write(&b); err != nil {
			t.Fatal(err)
		}
		href := fmt.Sprintf("Packages/mirrored-%d-1-1.noarch.rpm", i)
		sum := sha256.Sum256([]byte(b.String()))
		want[href] = hex.EncodeToString(sum[:])
		total += int64(b.Len())
		if err := os.WriteFile(filepath.Join(d.dir, href), []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("createrepo_c", "-q", "--no-database", d.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	return d, want, total
}

// TestMirrorCrash kills a server again and again while it mirrors. In the end it has what
// upstream has, and less than one part in a hundred came twice.
func TestMirrorCrash(t *testing.T) {
	kills, packages := 6, 60
	long := os.Getenv("DROVER_LONG") != ""
	if long {
		kills, packages = 50, 900
	}
	d, want, total := newDripping(t, packages)
	up := httptest.NewServer(d)
	t.Cleanup(up.Close)

	s := newSite(t, memory(t), "", "--no-builder", "--no-signer")
	s.start(server)
	s.eventually("mirror", "set", "up", up.URL)
	for n := range kills {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = s.drover("mirror", "sync", "up") // it is killed meanwhile
		}()
		aim := total * int64(n+1) / int64(kills+1)
		for deadline := time.Now().Add(time.Minute); d.sent.Load() < aim && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		s.kill(server, false)
		<-ended
		s.start(server)
	}
	s.eventually("mirror", "sync", "up")
	again := float64(d.sent.Load()-total) / float64(total)
	t.Logf("%d kills, %d MB, %.2f %% came twice, metadata included", kills, total>>20, 100*again)
	// What is on the wire at a kill is lost, however much there is in all: the short form has too
	// little for that to be nothing.
	bound := 0.01
	if !long {
		bound += float64(kills*256<<10) / float64(total)
	}
	if again > bound {
		t.Errorf("%.2f %% came twice", 100*again)
	}
	resp, err := http.Get(s.URL + "/api/v1/snapshots/up/files") //nolint:noctx // the server is this test's
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var files []repo.TreeFile
	if err := json.NewDecoder(resp.Body).Decode(&files); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Path, ".rpm") {
			if want[f.Path] != f.SHA256 {
				t.Errorf("%s is %s", f.Path, f.SHA256)
			}
			delete(want, f.Path)
		}
	}
	if len(want) > 0 {
		t.Errorf("%d packages are missing", len(want))
	}
}
