package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/blob"
	"drover/internal/blob/blobtest"
	"drover/internal/fault"
	"drover/internal/fetch"
)

// childEnv makes the test binary play a part as a child process.
const childEnv = "DROVER_FETCH_CHILD"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(m.Run())
	case "all":
		err = fetchAll(os.Args[1], os.Args[2], os.Args[3])
	case "full":
		err = fillDisk(os.Args[1], os.Args[2])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func child(t *testing.T, part string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), childEnv+"="+part)
	cmd.Stderr = os.Stderr
	return cmd
}

// store opens a blob store.
func store(t testing.TB) *blob.Store {
	t.Helper()
	s, err := blob.Open(filepath.Join(t.TempDir(), "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// keepWhole puts each file as one blob.
func keepWhole(ctx context.Context, _ int, f *os.File, b *blob.Batch) error {
	_, _, err := b.Put(ctx, f, blob.PutOptions{})
	return err
}

// job is one that keeps whole files and notes what it was told.
func job(s *blob.Store, wants []fetch.Want) (fetch.Job, *sync.Map) {
	kept := &sync.Map{}
	return fetch.Job{Wants: wants, Blobs: s, Take: keepWhole, Kept: func(_ context.Context, done []int) error {
		for _, i := range done {
			if _, twice := kept.LoadOrStore(i, true); twice {
				return fmt.Errorf("file %d was kept twice", i)
			}
			if here, err := s.Has(blob.Digest(wants[i].Sum)); !here {
				return errors.Join(err, fmt.Errorf("file %d is told before it is there", i))
			}
		}
		return nil
	}}, kept
}

// files are wants and what a server answers to them.
func files(n, size int) (wants []fetch.Want, content map[string][]byte) {
	content = map[string][]byte{}
	for i := range n {
		href := fmt.Sprintf("Packages/%c/file-%d.rpm", 'a'+i%26, i)
		content[href] = blobtest.Bytes(uint64(i), size-i%7)
		wants = append(wants, want(href, content[href]))
	}
	return wants, content
}

func of(content map[string][]byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		data, ok := content[strings.TrimPrefix(r.URL.Path, "/")]
		if !ok {
			w.WriteHeader(404)
			return
		}
		whole(w, r, data)
	}
}

func allHere(t testing.TB, s *blob.Store, wants []fetch.Want) {
	t.Helper()
	for _, w := range wants {
		if err := s.Verify(t.Context(), blob.Digest(w.Sum)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAll(t *testing.T) {
	wants, content := files(500, 20_000)
	wants = append(wants, wants[7]) // the same bytes once more
	o := origins(t, serve(t, of(content)))
	var dir string
	c := client(t, func(cfg *fetch.Config) { dir = cfg.Dir })
	s := store(t)
	j, kept := job(s, wants)
	var last fetch.Progress
	j.Say = func(p fetch.Progress) { last = p }
	if err := c.All(t.Context(), o, j); err != nil {
		t.Fatal(err)
	}
	allHere(t, s, wants)
	for i := range wants {
		if _, ok := kept.Load(i); !ok {
			t.Errorf("file %d is not told", i)
		}
	}
	st := o.Stats()[0]
	if last.Files != 501 || last.Done != 501 || last.Bytes != st.Bytes || st.Requests < 500 || st.Requests > 501 || last.Retries != 0 {
		t.Fatalf("%+v, %+v", last, st)
	}
	if l := left(t, dir); len(l) != 0 {
		t.Fatalf("left over: %v", l)
	}
	none, _ := job(s, nil)
	if err := c.All(t.Context(), o, none); err != nil {
		t.Fatal(err)
	}
}

// A file that can't be had ends the job, but not what has come: it is kept or stays as a part.
func TestAllFails(t *testing.T) {
	wants, content := files(100, 20_000)
	delete(content, wants[50].Href)
	var requests atomic.Int64
	o := origins(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		of(content)(w, r)
	}))
	c, s := client(t, nil), store(t)
	j, kept := job(s, wants)
	err := c.All(t.Context(), o, j)
	code(t, err, "fetch_missing", wants[50].Href)
	told := 0
	kept.Range(func(any, any) bool { told++; return true })
	if told == 0 {
		t.Fatal("nothing was kept")
	}
	for _, fail := range []string{"take", "kept", "cancel"} {
		boom := errors.New("boom")
		ctx, cancel := context.WithCancel(t.Context())
		j, _ := job(s, wants[:50])
		switch fail {
		case "take":
			j.Take = func(_ context.Context, i int, _ *os.File, _ *blob.Batch) error { return boom }
		case "kept":
			j.Kept = func(context.Context, []int) error { return boom }
		case "cancel":
			boom = context.Canceled
			j.Take = func(_ context.Context, i int, _ *os.File, _ *blob.Batch) error { cancel(); return ctx.Err() }
		}
		if err := c.All(ctx, o, j); !errors.Is(err, boom) {
			t.Fatalf("%s: %v", fail, err)
		}
		cancel()
	}
	// What came and was not kept is not fetched again.
	before := requests.Load()
	j, _ = job(s, wants[:50])
	if err := c.All(t.Context(), o, j); err != nil {
		t.Fatal(err)
	}
	if n := requests.Load() - before; n > 25 {
		t.Fatalf("%d requests for what was here", n)
	}
	allHere(t, s, wants[:50])
}

// A server that bears few requests gets few, and no more than it asks for.
func TestAllSlowsDown(t *testing.T) {
	wants, content := files(150, 2000)
	var now, most, refused atomic.Int64
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		most.Store(max(most.Load(), n))
		if n > 3 {
			refused.Add(1)
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		time.Sleep(2 * time.Millisecond)
		of(content)(w, r)
	})
	o, s := origins(t, u), store(t)
	j, _ := job(s, wants)
	if err := client(t, nil).All(t.Context(), o, j); err != nil {
		t.Fatal(err)
	}
	allHere(t, s, wants)
	if most.Load() > 8 || refused.Load() > 150 {
		t.Fatalf("%d at once, %d refused", most.Load(), refused.Load())
	}
	t.Logf("%d at once, %d refused, %+v", most.Load(), refused.Load(), o.Stats()[0])
}

// One that takes its time and bears much gets much.
func TestAllSpeedsUp(t *testing.T) {
	wants, content := files(400, 2000)
	var now, most atomic.Int64
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		most.Store(max(most.Load(), n))
		time.Sleep(20 * time.Millisecond)
		of(content)(w, r)
	})
	o, s := origins(t, u), store(t)
	j, _ := job(s, wants)
	if err := client(t, nil).All(t.Context(), o, j); err != nil {
		t.Fatal(err)
	}
	if most.Load() <= 5 || most.Load() > 16 {
		t.Fatalf("%d at once, want more than it began with and at most 16", most.Load())
	}
}

// Two equal origins share, and one that lies or loses files does not spoil the rest.
func TestAllFromSeveral(t *testing.T) {
	wants, content := files(300, 20_000)
	stale := map[string][]byte{}
	for i, w := range wants {
		if i%3 != 0 {
			stale[w.Href] = content[w.Href]
		}
	}
	lies := func(w http.ResponseWriter, r *http.Request) {
		if rand.IntN(4) == 0 {
			whole(w, r, make([]byte, 20_000))
			return
		}
		of(content)(w, r)
	}
	good, bad, old := serve(t, of(content)), serve(t, lies), serve(t, of(stale))
	o, err := fetch.NewOrigins(fetch.Origin{URL: bad}, fetch.Origin{URL: old}, fetch.Origin{URL: good}, fetch.Origin{URL: good})
	if err != nil {
		t.Fatal(err)
	}
	s := store(t)
	j, _ := job(s, wants)
	if err := client(t, nil).All(t.Context(), o, j); err != nil {
		t.Fatal(err)
	}
	allHere(t, s, wants)
	st := o.Stats()
	if len(st) != 3 || st[0].Errors == 0 || st[2].Errors != 0 || st[2].Bytes == 0 || st[0].Requests > st[2].Requests {
		t.Fatalf("%+v", st)
	}
}

// paced serves content in small pieces, so slowly that the kernel's buffers stay empty, and
// counts the bytes that it sends.
type paced struct {
	content  map[string][]byte
	sent     atomic.Int64
	requests atomic.Int64
	mu       sync.Mutex
	marks    []int64 // when sent passes one, reached gets it
	reached  chan int64
}

func (p *paced) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.requests.Add(1)
	data := p.content[strings.TrimPrefix(r.URL.Path, "/")]
	at := 0
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &at); err == nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(data)-1, len(data)))
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(data)-at))
	if at > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	for at < len(data) && r.Context().Err() == nil {
		n, err := w.Write(data[at:min(at+4096, len(data))])
		if err != nil || http.NewResponseController(w).Flush() != nil {
			return
		}
		at += n
		p.count(int64(n))
		time.Sleep(500 * time.Microsecond)
	}
}

func (p *paced) count(n int64) {
	sent := p.sent.Add(n)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.marks) > 0 && sent >= p.marks[0] {
		p.reached <- p.marks[0]
		p.marks = p.marks[1:]
	}
}

// fetchAll is the child: it fetches what its store has not, as a mirror does.
func fetchAll(url, dir, list string) error {
	s, err := blob.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		return err
	}
	c, err := fetch.New(fetch.Config{Dir: filepath.Join(filepath.Dir(dir), "partial")})
	if err != nil {
		return err
	}
	defer c.Close()
	o, err := fetch.NewOrigins(fetch.Origin{URL: url})
	if err != nil {
		return err
	}
	text, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	var wants []fetch.Want
	for line := range strings.Lines(string(text)) {
		w := fetch.Want{Algo: "sha256"}
		if _, err := fmt.Sscan(line, &w.Href, &w.Sum, &w.Size); err != nil {
			return err
		}
		if here, err := s.Has(blob.Digest(w.Sum)); err != nil {
			return err
		} else if !here {
			wants = append(wants, w)
		}
	}
	return c.All(context.Background(), o, fetch.Job{Wants: wants, Blobs: s, Take: keepWhole, Kept: func(context.Context, []int) error { return nil }})
}

func listOf(t *testing.T, wants []fetch.Want) string {
	t.Helper()
	var b strings.Builder
	for _, w := range wants {
		fmt.Fprintln(&b, w.Href, w.Sum, w.Size)
	}
	path := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A process is killed again and again while it fetches, and hardly a byte comes twice.
func TestKilledWhileFetching(t *testing.T) {
	kills, n := 8, 8
	if os.Getenv("DROVER_LONG") != "" {
		kills, n = 50, 40
	}
	wants, content := files(n, 8<<20)
	p := &paced{content: content, reached: make(chan int64, kills)}
	var total int64
	for _, w := range wants {
		total += w.Size
	}
	for k := range kills {
		p.marks = append(p.marks, total*int64(k+1)/int64(kills+1)-int64(rand.IntN(100_000)))
	}
	srv := httptest.NewServer(p)
	defer srv.Close()
	dir, list := filepath.Join(t.TempDir(), "one"), listOf(t, wants)
	for range kills {
		cmd := child(t, "all", srv.URL, dir, list)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.reached:
		case <-time.After(time.Minute):
			t.Error("it does not get on")
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("the child ended by itself: %v", err)
		}
		// Let the server notice, so that what it sends to the dead is counted for what it is.
		srv.CloseClientConnections()
	}
	if err := child(t, "all", srv.URL, dir, list).Run(); err != nil {
		t.Fatal(err)
	}
	s, err := blob.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	allHere(t, s, wants)
	again := float64(p.sent.Load()-total) / float64(total)
	t.Logf("%d kills over %d MB: %.3f %% came twice, %d requests for %d files", kills, total>>20, 100*again, p.requests.Load(), n)
	if again > 0.01 {
		t.Fatal("that is too much")
	}
	if l := left(t, filepath.Join(filepath.Dir(dir), "partial")); len(l) != 0 {
		t.Fatalf("left over: %v", l)
	}
}

// Two processes that want the same files share the work, as do two clients in one process.
func TestTwoAtOnce(t *testing.T) {
	wants, content := files(3, 2<<20)
	p := &paced{content: content}
	srv := httptest.NewServer(p)
	defer srv.Close()
	base, list := t.TempDir(), listOf(t, wants)
	var all sync.WaitGroup
	for _, name := range []string{"one", "two"} {
		all.Go(func() {
			if err := child(t, "all", srv.URL, filepath.Join(base, name), list).Run(); err != nil {
				t.Error(err)
			}
		})
	}
	for range 2 {
		all.Go(func() {
			c := client(t, func(cfg *fetch.Config) { cfg.Dir = filepath.Join(base, "partial") })
			s := store(t)
			j, _ := job(s, wants)
			if err := c.All(t.Context(), origins(t, srv.URL), j); err != nil {
				t.Error(err)
			}
			for _, w := range wants {
				if here, err := s.Has(blob.Digest(w.Sum)); !here {
					t.Errorf("%s is not there: %v", w.Href, err)
				}
			}
		})
	}
	all.Wait()
	if p.requests.Load() != 3 {
		t.Fatalf("%d requests for 3 files", p.requests.Load())
	}
	if l := left(t, filepath.Join(base, "partial")); len(l) != 0 {
		t.Fatalf("left over: %v", l)
	}
}

func TestSweep(t *testing.T) {
	data := blobtest.Bytes(1, 1<<20)
	release := make(chan bool)
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "held") {
			_, _ = w.Write(data[:1000])
			_ = http.NewResponseController(w).Flush()
			<-release
			_, _ = w.Write(data[1000:])
			return
		}
		cutAfter(w, len(data)-1, data[:5000])
	})
	var dir string
	c := client(t, func(cfg *fetch.Config) { dir = cfg.Dir; cfg.Stall = time.Minute })
	_, err := file(t, c, origins(t, u), want("cut", data[1:]))
	code(t, err, "fetch_away")
	if err := os.WriteFile(filepath.Join(dir, "unnamed-1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := file(t, c, origins(t, u), want("held", data))
		ended <- err
	}()
	held := "sha256-" + sha(data)
	for len(left(t, dir)) < 4 {
		time.Sleep(time.Millisecond)
	}
	if n, err := c.Sweep(time.Now().Add(-time.Hour)); n != 0 || err != nil {
		t.Fatalf("swept %d young ones: %v", n, err)
	}
	if n, err := c.Sweep(time.Now().Add(time.Hour)); n != 2 || err != nil {
		t.Fatalf("swept %d: %v", n, err)
	}
	if l := left(t, dir); !slices.Equal(l, []string{"notes.txt", held}) {
		t.Fatalf("left: %v", l)
	}
	close(release)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// The disk runs full in a child that has a small one of its own.
func TestFullDisk(t *testing.T) {
	big, small := blobtest.Bytes(1, 8<<20), blobtest.Bytes(2, 1<<20)
	u := serve(t, of(map[string][]byte{"big": big, "small": small}))
	cmd := child(t, "full", u, t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		t.Fatalf("it needs root or user namespaces: %v", err)
	}
}

func fillDisk(url, dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("drover-test", dir, "tmpfs", 0, "size=4m"); err != nil {
		return fmt.Errorf("mount a small tmpfs: %w", err)
	}
	c, err := fetch.New(fetch.Config{Dir: filepath.Join(dir, "partial")})
	if err != nil {
		return err
	}
	o, err := fetch.NewOrigins(fetch.Origin{URL: url})
	if err != nil {
		return err
	}
	big, small := blobtest.Bytes(1, 8<<20), blobtest.Bytes(2, 1<<20)
	for _, w := range []fetch.Want{want("big", big), {Href: "big", Max: 8 << 20}} {
		err = c.File(context.Background(), o, w, func(*os.File) error { return nil })
		if f := fault.As(err); fault.Code(err) != "disk_full" || f.Remedy == "" {
			return fmt.Errorf("got %w, want disk_full with a remedy", err)
		}
		if left, err := os.ReadDir(filepath.Join(dir, "partial")); err != nil || len(left) != 0 {
			return fmt.Errorf("left over: %v %w", left, err)
		}
	}
	err = c.File(context.Background(), o, want("small", small), func(f *os.File) error {
		got := make([]byte, len(small))
		if _, err := f.Read(got); err != nil || !bytes.Equal(got, small) {
			return fmt.Errorf("other bytes: %w", err)
		}
		return nil
	})
	if st := o.Stats()[0]; err == nil && st.Errors != 0 {
		return fmt.Errorf("the server is blamed: %+v", st)
	}
	return err
}
