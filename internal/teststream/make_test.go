package teststream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"drover/internal/fault"
)

// TestMain lets the test binary be the process that is killed: with TESTSTREAM_DIR set it
// makes a set there.
func TestMain(m *testing.M) {
	if dir := os.Getenv("TESTSTREAM_DIR"); dir != "" {
		if _, err := Make(context.Background(), Config{Dir: dir, Cache: os.Getenv("TESTSTREAM_CACHE"), Set: Set(os.Getenv("TESTSTREAM_SET"))}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// sums is the content of a tree: the sha256 of each file by its path.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		_, err = io.Copy(h, f)
		out[strings.TrimPrefix(p, dir+"/")] = hex.EncodeToString(h.Sum(nil))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func mustMake(t *testing.T, c Config) Result {
	t.Helper()
	c.Say = t.Logf
	res, err := Make(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// seeded is a new cache with the lists and downloads of the given one, and nothing that was
// converted.
func seeded(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	for _, sub := range []string{"apt", "debs"} {
		if out, err := exec.CommandContext(t.Context(), "cp", "-a", "--reflink=auto", filepath.Join(from, sub), to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	return to
}

func TestSameBytes(t *testing.T) {
	set := Base
	if os.Getenv("DROVER_LONG") != "" {
		set = All
	}
	a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	cache := t.TempDir()
	if res := mustMake(t, Config{Dir: a, Cache: cache, Set: set}); res.Fresh == 0 || res.Fresh != res.Packages-len(hand()) {
		t.Errorf("%d of %d packages are fresh in a new cache", res.Fresh, res.Packages)
	}
	want := sums(t, a)

	// Another cache, another number of processors, and two who want it at once.
	second := seeded(t, cache)
	t.Run("two at once", func(t *testing.T) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		dirs := []string{b, filepath.Join(t.TempDir(), "c")}
		var wg sync.WaitGroup
		fresh := make([]int, 2)
		for i, dir := range dirs {
			wg.Go(func() {
				res, err := Make(t.Context(), Config{Dir: dir, Cache: second, Set: set})
				if err != nil {
					t.Error(err)
				}
				fresh[i] = res.Fresh
			})
		}
		wg.Wait()
		if min(fresh[0], fresh[1]) != 0 || max(fresh[0], fresh[1]) == 0 {
			t.Errorf("one does the work and the other waits: %v", fresh)
		}
		for _, dir := range dirs {
			if diff := cmp.Diff(want, sums(t, dir)); diff != "" {
				t.Error(diff)
			}
		}
	})

	t.Run("from the cache", func(t *testing.T) {
		if res := mustMake(t, Config{Dir: b, Cache: cache, Set: set}); res.Fresh != 0 {
			t.Errorf("%d packages converted again", res.Fresh)
		}
		if diff := cmp.Diff(want, sums(t, b)); diff != "" {
			t.Error(diff)
		}
	})

	t.Run("a damaged cache", func(t *testing.T) {
		rpms, err := filepath.Glob(filepath.Join(cache, "rpms-*", "*.rpm"))
		if err != nil || len(rpms) < 60 {
			t.Fatalf("%d packages in the cache, %v", len(rpms), err)
		}
		debs, err := filepath.Glob(filepath.Join(cache, "debs", "*.deb"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range append(debs, rpms[0]) { // truncated, as a full disk leaves them
			if err := os.Truncate(f, 4000); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(rpms[1], bytes.Repeat([]byte("x"), 1<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(rpms[2]); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(filepath.Dir(rpms[0]), ".durable-123"), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if res := mustMake(t, Config{Dir: b, Cache: cache, Set: set}); res.Fresh != 3 {
			t.Errorf("%d packages converted again, want 3", res.Fresh)
		}
		if diff := cmp.Diff(want, sums(t, b)); diff != "" {
			t.Error(diff)
		}
		if left, _ := filepath.Glob(filepath.Join(cache, "rpms-*", ".durable-*")); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
	})

	t.Run("bounded", func(t *testing.T) {
		for i := range 5 {
			d := filepath.Join(cache, fmt.Sprintf("rpms-%016d", i))
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
			at := time.Now().Add(-time.Duration(i+1) * time.Hour)
			if err := os.Chtimes(d, at, at); err != nil {
				t.Fatal(err)
			}
		}
		ours, err := filepath.Glob(filepath.Join(cache, "rpms-*", "*.rpm"))
		if err != nil {
			t.Fatal(err)
		}
		old := []string{filepath.Join(cache, "debs", "bash_0.1-1_amd64.deb"), filepath.Join(filepath.Dir(ours[0]), strings.Repeat("0", 64)+"-"+strings.Repeat("1", 64)+".rpm")}
		for _, f := range old {
			if err := os.WriteFile(f, []byte("old"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Remove(ours[10]); err != nil { // something to download: its deb is damaged since
			t.Fatal(err)
		}
		mustMake(t, Config{Dir: b, Cache: cache, Set: set})
		var left []string
		for _, f := range old {
			if _, err := os.Stat(f); err == nil {
				left = append(left, f)
			}
		}
		dirs, err := filepath.Glob(filepath.Join(cache, "rpms-*"))
		if err != nil || len(dirs) != versions || len(left) > 0 || !slices.Contains(dirs, filepath.Dir(ours[0])) {
			t.Errorf("kept %v, %v; %v", dirs, left, err)
		}
	})

	t.Run("killed", func(t *testing.T) {
		dir := t.TempDir()
		out := filepath.Join(dir, "out")
		mustMake(t, Config{Dir: out, Cache: second, Set: set})
		rounds := 3
		if os.Getenv("DROVER_LONG") != "" {
			rounds = 30
		}
		for range rounds {
			// A third of it must be made again each time.
			rpms, err := filepath.Glob(filepath.Join(second, "rpms-*", "*.rpm"))
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(rpms); i += 3 {
				if err := os.Remove(rpms[i]); err != nil {
					t.Fatal(err)
				}
			}
			c := exec.Command(os.Args[0])
			c.Env = append(os.Environ(), "TESTSTREAM_DIR="+out, "TESTSTREAM_SET="+string(set), "TESTSTREAM_CACHE="+second)
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(rand.IntN(1500)) * time.Millisecond)
			_ = c.Process.Kill()
			_ = c.Wait()
			// Whoever reads the repository finds all of it.
			if diff := cmp.Diff(want, sums(t, out)); diff != "" {
				t.Fatal(diff)
			}
		}
		mustMake(t, Config{Dir: out, Cache: second, Set: set})
		if diff := cmp.Diff(want, sums(t, out)); diff != "" {
			t.Error(diff)
		}
		if es, err := os.ReadDir(dir); err != nil || len(es) != 1 {
			t.Errorf("beside the repository: %v, %v", es, err)
		}
	})
}

func TestRefusals(t *testing.T) {
	refused := func(t *testing.T, c Config, code, text string) {
		t.Helper()
		if c.Cache == "" {
			c.Cache = t.TempDir()
		}
		_, err := Make(t.Context(), c)
		if fault.Code(err) != code || !strings.Contains(fmt.Sprint(err), text) || fault.As(err).Remedy == "" {
			t.Errorf("%s: %v; want %s with %q and a remedy", fault.Code(err), err, code, text)
		}
	}
	t.Run("no such set", func(t *testing.T) { refused(t, Config{Dir: t.TempDir(), Set: "huge"}, "set", `"huge"`) })
	t.Run("a directory with something else", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "repodata"), 0o755); err != nil {
			t.Fatal(err)
		}
		precious := filepath.Join(dir, "repodata", "repomd.xml")
		if err := os.WriteFile(precious, []byte("<repomd/>"), 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, Config{Dir: dir, Set: Base}, "dir_taken", dir)
		refused(t, Config{Dir: precious, Set: Base}, "dir_taken", "no directory")
		if b, err := os.ReadFile(precious); err != nil || string(b) != "<repomd/>" {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("no apt", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		refused(t, Config{Dir: filepath.Join(t.TempDir(), "a"), Set: Base}, "apt_missing", "apt-get")
	})
	t.Run("no network", func(t *testing.T) {
		t.Setenv("http_proxy", "http://127.0.0.1:1")
		t.Setenv("https_proxy", "http://127.0.0.1:1")
		refused(t, Config{Dir: filepath.Join(t.TempDir(), "a"), Set: Base}, "apt", "127.0.0.1")
	})
	t.Run("a full disk", func(t *testing.T) {
		small := t.TempDir()
		if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		defer func() {
			if out, err := exec.Command("umount", small).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		}()
		refused(t, Config{Dir: filepath.Join(t.TempDir(), "a"), Cache: filepath.Join(small, "cache"), Set: Base}, "disk_full", small)
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		refused(t, Config{Dir: filepath.Join(small, "a"), Cache: filepath.Join(cache, "drover", "teststream"), Set: Base}, "disk_full", small)
		if es, err := os.ReadDir(small); err != nil || len(es) != 1 {
			t.Errorf("left on the full disk: %v, %v", es, err)
		}
	})
	t.Run("stopped while it waits", func(t *testing.T) {
		cache := t.TempDir()
		k, err := openCache(t.Context(), cache, &voice{})
		if err != nil {
			t.Fatal(err)
		}
		defer k.close()
		ctx, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer stop()
		if _, err := Make(ctx, Config{Dir: filepath.Join(t.TempDir(), "a"), Cache: cache, Set: Base}); fault.Code(err) != "canceled" {
			t.Error(err)
		}
	})
}

func TestSourcesList(t *testing.T) {
	own := "deb [arch=amd64 target=Packages signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
	for in, want := range map[string]string{
		"": own + "http://deb.debian.org/debian/ bookworm main\n" + own + "http://deb.debian.org/debian/ bookworm-updates main\n" + own + "http://deb.debian.org/debian-security/ bookworm-security main\n",
		"https://example.org/third bookworm contrib\nhttp://mirror/debian/ bookworm main\nhttp://mirror/debian/ bookworm contrib\nhttps://node nodistro main\nhttp://mirror/debian/ bookworm-backports main\nhttp://mirror/sec/ bookworm-security main\n": own + "http://mirror/debian/ bookworm main\n" + own + "http://mirror/sec/ bookworm-security main\n",
	} {
		if diff := cmp.Diff(want, sourcesList(in)); diff != "" {
			t.Errorf("%q: %s", in, diff)
		}
	}
}

func TestParsePlan(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	plan, err := parsePlan("Reading package lists...\nNeed to get 3 kB.\n'http://m/b_2%3a1_all.deb' b_2%3a1_all.deb 20 SHA256:" + sum + "\n'http://m/a_1_amd64.deb' a_1_amd64.deb 10 SHA256:" + sum + "\n")
	want := []source{{"http://m/a_1_amd64.deb", "a_1_amd64.deb", 10, sum}, {"http://m/b_2%3a1_all.deb", "b_2%3a1_all.deb", 20, sum}}
	if diff := cmp.Diff(want, plan, cmp.AllowUnexported(source{})); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	for _, bad := range []string{"", "E: nothing\n", "'http://m/a.deb' a.deb ten SHA256:" + sum + "\n", "'http://m/a.deb' a.deb 10 MD5Sum:abcd\n", "'http://m/a.deb' ../a.deb 10 SHA256:" + sum + "\n"} {
		if plan, err := parsePlan(bad); err == nil {
			t.Errorf("%q: %v", bad, plan)
		}
	}
}
