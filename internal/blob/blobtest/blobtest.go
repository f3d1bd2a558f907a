package blobtest

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"drover/internal/blob"
	"drover/internal/fault"
)

// Run checks the store that open makes. Each subtest opens a fresh, empty one.
func Run(t *testing.T, open func(t *testing.T) *blob.Store) {
	for _, c := range []struct {
		name string
		f    func(t *testing.T, s *blob.Store)
	}{
		{"RoundTrip", roundTrip},
		{"PutAgain", putAgain},
		{"Refusals", refusals},
		{"Canceled", canceled},
		{"Unknown", unknown},
		{"HostileDigests", hostileDigests},
		{"ServeContent", serveContent},
		{"List", list},
		{"Delete", deletes},
		{"Concurrent", concurrent},
		{"Upload", upload},
		{"UploadRefusals", uploadRefusals},
		{"UploadBrokenConnection", uploadBroken},
		{"Clean", clean},
		{"Batch", batch},
		{"BatchRefusals", batchRefusals},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(t, open(t)) })
	}
}

// Bytes makes n bytes that depend on seed only and don't compress.
func Bytes(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1], key[2] = byte(seed), byte(seed>>8), byte(seed>>16)
	data := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(data) // documented never to fail
	return data
}

// sizes lie around the borders of the store's buffers.
var sizes = []int{0, 1, 1000, 64<<10 - 1, 64 << 10, 64<<10 + 1, 128 << 10, 300_000, 3 << 20}

func put(t *testing.T, s *blob.Store, data []byte) blob.Digest {
	t.Helper()
	d, n, err := s.Put(t.Context(), bytes.NewReader(data), blob.PutOptions{})
	if err != nil || n != int64(len(data)) || d != blob.Of(data) {
		t.Fatalf("put %d bytes: %s %d %v", len(data), d, n, err)
	}
	return d
}

func want(t *testing.T, s *blob.Store, data []byte) {
	t.Helper()
	got, err := s.ReadAll(blob.Of(data), int64(len(data)))
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read back %d bytes: got %d, %v", len(data), len(got), err)
	}
}

func code(t *testing.T, err error, want string) {
	t.Helper()
	if got := fault.Code(err); got != want {
		t.Fatalf("got %q (%v), want the fault %q", got, err, want)
	}
	if want == "digest_mismatch" || want == "too_large" || want == "disk_full" {
		if fault.As(err).Remedy == "" {
			t.Fatalf("%s comes without a remedy", want)
		}
	}
}

// nothing asserts that the store is empty and that nothing is left over.
func nothing(t *testing.T, s *blob.Store) {
	t.Helper()
	if got := all(t, s); len(got) != 0 {
		t.Fatalf("blobs that should not be there: %v", got)
	}
	noProblems(t, s)
}

func noProblems(t *testing.T, s *blob.Store) {
	t.Helper()
	if _, err := s.Scrub(t.Context(), func(p blob.Problem) { t.Errorf("scrub: %+v", p) }); err != nil {
		t.Fatal(err)
	}
}

func all(t *testing.T, s *blob.Store) []blob.Digest {
	t.Helper()
	var got []blob.Digest
	for info, err := range s.List() {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info.Digest)
	}
	return got
}

func roundTrip(t *testing.T, s *blob.Store) {
	for i, n := range sizes {
		data := Bytes(uint64(i), n)
		// A reader that yields half of what is asked for, and EOF with the data.
		r := iotest.HalfReader(iotest.DataErrReader(bytes.NewReader(data)))
		d, size, err := s.Put(t.Context(), r, blob.PutOptions{Expect: blob.Of(data), Max: int64(n)})
		if err != nil || d != blob.Of(data) || size != int64(n) {
			t.Fatalf("size %d: %s %d %v", n, d, size, err)
		}
		want(t, s, data)
		info, err := s.Stat(d)
		if err != nil || info.Size != int64(n) || info.Digest != d || info.Put.IsZero() {
			t.Fatalf("stat: %+v %v", info, err)
		}
		b, err := s.Get(d)
		if err != nil {
			t.Fatal(err)
		}
		if n <= 1000 { // it is quadratic
			if err := iotest.TestReader(b, data); err != nil {
				t.Errorf("size %d: %v", n, err)
			}
		}
		if n > 10 {
			p := make([]byte, 5)
			if _, err := b.ReadAt(p, int64(n)-5); err != nil || !bytes.Equal(p, data[n-5:]) {
				t.Errorf("ReadAt the end: %v", err)
			}
		}
		if b.Size() != int64(n) || b.Digest() != d {
			t.Errorf("got size %d digest %s", b.Size(), b.Digest())
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Verify(t.Context(), d); err != nil {
			t.Error(err)
		}
	}
	_, err := s.ReadAll(blob.Of(Bytes(2, 1000)), 999)
	code(t, err, "too_large")
}

func putAgain(t *testing.T, s *blob.Store) {
	for i, n := range sizes {
		data := Bytes(uint64(i), n)
		first := put(t, s, data)
		for _, o := range []blob.PutOptions{{}, {Expect: first}} {
			tee := new(bytes.Buffer)
			o.Tee = tee
			d, size, err := s.Put(t.Context(), bytes.NewReader(data), o)
			if err != nil || d != first || size != int64(n) || !bytes.Equal(tee.Bytes(), data) {
				t.Fatalf("again: %s %d %v, tee got %d bytes", d, size, err, tee.Len())
			}
		}
		if d, err := s.PutBytes(data); err != nil || d != first {
			t.Fatalf("PutBytes: %s %v", d, err)
		}
	}
	if got := all(t, s); len(got) != len(sizes) {
		t.Fatalf("got %d blobs, want %d", len(got), len(sizes))
	}
	noProblems(t, s)
}

func refusals(t *testing.T, s *blob.Store) {
	boom := errors.New("boom")
	for _, n := range []int{100, 300_000} {
		data := Bytes(1, n)
		try := func(r io.Reader, o blob.PutOptions) error {
			t.Helper()
			d, _, err := s.Put(t.Context(), r, o)
			if err == nil {
				t.Fatalf("took %s", d)
			}
			nothing(t, s)
			return err
		}
		code(t, try(bytes.NewReader(data), blob.PutOptions{Expect: blob.Of([]byte("other"))}), "digest_mismatch")
		code(t, try(bytes.NewReader(data), blob.PutOptions{Expect: "ABC"}), "digest_invalid")
		code(t, try(bytes.NewReader(data), blob.PutOptions{Max: int64(n) - 1}), "too_large")
		if err := try(io.MultiReader(bytes.NewReader(data), iotest.ErrReader(boom)), blob.PutOptions{}); !errors.Is(err, boom) {
			t.Fatalf("a failing source: got %v", err)
		}
		sum := sha512.New()
		refuse := func(d blob.Digest, size int64) error {
			if wantSum := sha512.Sum512(data); d != blob.Of(data) || size != int64(n) || !bytes.Equal(sum.Sum(nil), wantSum[:]) {
				t.Errorf("check was asked about %s %d %x", d, size, sum.Sum(nil))
			}
			return boom
		}
		if err := try(bytes.NewReader(data), blob.PutOptions{Tee: sum, Check: refuse}); !errors.Is(err, boom) {
			t.Fatalf("check: got %v", err)
		}
	}
	// The same with the blob there already: the refusal stays a refusal, the blob stays.
	data := Bytes(2, 300_000)
	d := put(t, s, data)
	_, _, err := s.Put(t.Context(), bytes.NewReader(data[1:]), blob.PutOptions{Expect: d})
	code(t, err, "digest_mismatch")
	_, _, err = s.Put(t.Context(), bytes.NewReader(data), blob.PutOptions{Expect: d, Max: 1000})
	code(t, err, "too_large")
	want(t, s, data)
	noProblems(t, s)
}

// endless yields bytes until its context is canceled after some of them.
type endless struct {
	left   int
	cancel context.CancelFunc
}

func (e *endless) Read(p []byte) (int, error) {
	if e.left -= len(p); e.left <= 0 {
		e.cancel()
	}
	return len(p), nil
}

func canceled(t *testing.T, s *blob.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	_, _, err := s.Put(ctx, &endless{left: 1 << 20, cancel: cancel}, blob.PutOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	nothing(t, s)
}

func unknown(t *testing.T, s *blob.Store) {
	d := blob.Of([]byte("never put"))
	_, err := s.Get(d)
	code(t, err, "blob_unknown")
	_, err = s.Stat(d)
	code(t, err, "blob_unknown")
	code(t, s.Verify(t.Context(), d), "blob_unknown")
	if here, err := s.Has(d); here || err != nil {
		t.Fatalf("has: %v %v", here, err)
	}
	if err := s.Delete(d); err != nil {
		t.Fatal(err)
	}
}

func hostileDigests(t *testing.T, s *blob.Store) {
	good := string(put(t, s, []byte("x")))
	for _, bad := range []string{"", ".", "..", "../../etc/passwd", good[:63], good + "0", strings.ToUpper(good),
		"/" + good[1:], "../" + good[3:], good[:62] + "/.", good[:63] + "\x00", good[:63] + "g", strings.Repeat("é", 32)} {
		if _, err := blob.Parse(bad); fault.Code(err) != "digest_invalid" {
			t.Errorf("Parse(%q): %v", bad, err)
		}
		d := blob.Digest(bad)
		_, err := s.Get(d)
		code(t, err, "digest_invalid")
		_, err = s.Stat(d)
		code(t, err, "digest_invalid")
		_, err = s.Has(d)
		code(t, err, "digest_invalid")
		code(t, s.Delete(d), "digest_invalid")
		code(t, s.Verify(t.Context(), d), "digest_invalid")
	}
	if d, err := blob.Parse(good); err != nil || d.String() != good {
		t.Errorf("Parse(%q): %v", good, err)
	}
}

// serveContent is what most blobs are for: a client with ranges.
func serveContent(t *testing.T, s *blob.Store) {
	data := Bytes(7, 5<<20)
	d := put(t, s, data)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := s.Get(d)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, b)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	for _, c := range []struct {
		ranges string
		want   []byte
	}{{"", data}, {"bytes=0-9", data[:10]}, {"bytes=-7", data[len(data)-7:]}, {"bytes=1048576-", data[1<<20:]}} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if c.ranges != "" {
			req.Header.Set("Range", c.ranges)
		}
		res, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		if err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("%q: %d bytes, %v; want %d", c.ranges, len(got), err, len(c.want))
		}
		if err := res.Body.Close(); err != nil {
			t.Error(err)
		}
	}
}

func list(t *testing.T, s *blob.Store) {
	var wanted []blob.Digest
	for i := range 50 {
		wanted = append(wanted, put(t, s, fmt.Append(nil, "blob ", i)))
	}
	slices.Sort(wanted)
	if got := all(t, s); !slices.Equal(got, wanted) {
		t.Fatalf("got %v, want %v", got, wanted)
	}
	n := 0
	for range s.List() { // stopping early is fine
		if n++; n == 3 {
			break
		}
	}
	done, err := s.Scrub(t.Context(), func(p blob.Problem) { t.Errorf("scrub: %+v", p) })
	if err != nil || done.Blobs != 50 {
		t.Fatalf("scrub: %+v %v", done, err)
	}
}

func deletes(t *testing.T, s *blob.Store) {
	data := Bytes(1, 70_000)
	d := put(t, s, data)
	b, err := s.Get(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(d); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("an open blob must stay readable: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	nothing(t, s)

	put(t, s, data)
	info, err := s.Stat(d)
	if err != nil {
		t.Fatal(err)
	}
	if gone, err := s.DeleteOld(d, info.Put); gone || err != nil {
		t.Fatalf("deleted a fresh blob: %v %v", gone, err)
	}
	if gone, err := s.DeleteOld(d, info.Put.Add(time.Hour)); !gone || err != nil {
		t.Fatalf("did not delete an old blob: %v %v", gone, err)
	}
	nothing(t, s)
}

func concurrent(t *testing.T, s *blob.Store) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 40 {
				data := Bytes(uint64(i), 1000*i)
				d, _, err := s.Put(t.Context(), bytes.NewReader(data), blob.PutOptions{})
				if err == nil {
					err = s.Verify(t.Context(), d)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := all(t, s); len(got) != 40 {
		t.Fatalf("got %d blobs, want 40", len(got))
	}
	noProblems(t, s)
}

func stage(t *testing.T, s *blob.Store, id string, bound int64) *blob.Upload {
	t.Helper()
	u, err := s.Stage(id, bound)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func upload(t *testing.T, s *blob.Store) {
	data := Bytes(9, 500_000)
	for at := 0; at < len(data); {
		// Each part is another connection.
		u := stage(t, s, "job_7-a", int64(len(data)))
		if u.Size() != int64(at) {
			t.Fatalf("resumed at %d, want %d", u.Size(), at)
		}
		_, err := s.Stage("job_7-a", 0)
		code(t, err, "upload_busy")
		part := data[at:min(at+123_456, len(data))]
		if err := u.Append(t.Context(), int64(at), bytes.NewReader(part)); err != nil {
			t.Fatal(err)
		}
		at += len(part)
		if err := u.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []blob.Digest{blob.Of(data), ""} {
		u := stage(t, s, "job_7-a", 0)
		if d == "" { // the same content once more, under the id that is free again
			if err := u.Append(t.Context(), 0, bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
		}
		sum := sha512.New()
		got, size, err := u.Finish(t.Context(), blob.PutOptions{Expect: d, Tee: sum})
		if err != nil || got != blob.Of(data) || size != int64(len(data)) {
			t.Fatalf("finish: %s %d %v", got, size, err)
		}
		if w := sha512.Sum512(data); hex.EncodeToString(sum.Sum(nil)) != hex.EncodeToString(w[:]) {
			t.Fatal("tee did not get all bytes")
		}
		want(t, s, data)
	}
	u := stage(t, s, "job_7-a", 0)
	if u.Size() != 0 {
		t.Fatalf("the id is not free: %d bytes", u.Size())
	}
	if d, n, err := u.Finish(t.Context(), blob.PutOptions{}); err != nil || n != 0 || d != blob.Of(nil) {
		t.Fatalf("an empty upload: %s %d %v", d, n, err)
	}
	noProblems(t, s)
}

func uploadRefusals(t *testing.T, s *blob.Store) {
	for _, id := range []string{"", ".", "..", "a/b", "../a", "a\x00", "ä", "a b", strings.Repeat("a", 129), "a.b"} {
		_, err := s.Stage(id, 0)
		code(t, err, "upload_id_invalid")
	}
	u := stage(t, s, strings.Repeat("a", 128), 1000)
	code(t, u.Append(t.Context(), 1, strings.NewReader("x")), "upload_offset")
	code(t, u.Append(t.Context(), -1, strings.NewReader("x")), "upload_offset")
	if err := u.Append(t.Context(), 0, strings.NewReader("four")); err != nil {
		t.Fatal(err)
	}
	code(t, u.Append(t.Context(), 0, strings.NewReader("x")), "upload_offset")
	code(t, u.Append(t.Context(), 4, bytes.NewReader(Bytes(1, 997))), "too_large")
	if u.Size() != 4 {
		t.Fatalf("a refused part stayed: %d bytes", u.Size())
	}
	_, _, err := u.Finish(t.Context(), blob.PutOptions{Expect: blob.Of([]byte("five"))})
	code(t, err, "digest_mismatch")
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	u = stage(t, s, strings.Repeat("a", 128), 1000)
	if u.Size() != 0 {
		t.Fatal("an upload with a wrong digest must be gone")
	}
	if err := u.Append(t.Context(), 0, strings.NewReader("four")); err != nil {
		t.Fatal(err)
	}
	if err := u.Abort(); err != nil {
		t.Fatal(err)
	}
	u = stage(t, s, strings.Repeat("a", 128), 1000)
	if u.Size() != 0 {
		t.Fatal("an aborted upload must be gone")
	}
	if err := u.Abort(); err != nil {
		t.Fatal(err)
	}
	nothing(t, s)
}

func uploadBroken(t *testing.T, s *blob.Store) {
	data := Bytes(3, 200_000)
	boom := errors.New("connection reset")
	u := stage(t, s, "x", 0)
	err := u.Append(t.Context(), 0, io.MultiReader(bytes.NewReader(data[:150_000]), iotest.ErrReader(boom)))
	if !errors.Is(err, boom) || u.Size() != 150_000 {
		t.Fatalf("got %v and %d bytes", err, u.Size())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := u.Finish(ctx, blob.PutOptions{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("finish: %v", err)
	}
	u = stage(t, s, "x", 0)
	if u.Size() != 150_000 {
		t.Fatalf("a canceled finish must keep the bytes: %d", u.Size())
	}
	if err := u.Append(t.Context(), u.Size(), bytes.NewReader(data[u.Size():])); err != nil {
		t.Fatal(err)
	}
	if _, _, err := u.Finish(t.Context(), blob.PutOptions{Expect: blob.Of(data)}); err != nil {
		t.Fatal(err)
	}
	want(t, s, data)
}

func clean(t *testing.T, s *blob.Store) {
	u := stage(t, s, "given-up", 0)
	if err := u.Append(t.Context(), 0, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	future := time.Now().Add(time.Hour)
	if n, err := s.SweepStaging(future); n != 0 || err != nil {
		t.Fatalf("swept %d held uploads: %v", n, err)
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := s.SweepStaging(time.Now().Add(-time.Hour)); n != 0 || err != nil {
		t.Fatalf("swept %d young uploads: %v", n, err)
	}
	if n, err := s.SweepStaging(future); n != 1 || err != nil {
		t.Fatalf("swept %d, want 1: %v", n, err)
	}
	nothing(t, s)
}

// batch: nothing counts before Commit, all of it after.
func batch(t *testing.T, s *blob.Store) {
	had := put(t, s, Bytes(0, 5000))
	b := s.Batch()
	wanted := map[blob.Digest][]byte{had: Bytes(0, 5000)}
	for range 2 { // a batch can be used again
		var wg sync.WaitGroup
		var mu sync.Mutex
		base := len(wanted)
		for w := range 4 {
			wg.Go(func() {
				for i, n := range sizes {
					data := Bytes(uint64(base+w/2*100+i), n) // two put the same
					d, size, err := b.Put(t.Context(), bytes.NewReader(data), blob.PutOptions{Max: int64(n)})
					if err != nil || size != int64(n) || d != blob.Of(data) {
						t.Errorf("put %d bytes: %s %d %v", n, d, size, err)
					}
					mu.Lock()
					wanted[d] = data
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if d, err := b.PutBytes(Bytes(0, 5000)); d != had || err != nil { // it is there already
			t.Fatal(d, err)
		}
		if got := all(t, s); len(got) != base {
			t.Fatalf("%d blobs before the commit, want %d", len(got), base)
		}
		if b.Len() < 2*len(sizes) {
			t.Fatalf("the batch has %d", b.Len())
		}
		if err := b.Commit(); err != nil || b.Len() != 0 {
			t.Fatal(err)
		}
		if got := all(t, s); len(got) != len(wanted) {
			t.Fatalf("%d blobs after the commit, want %d", len(got), len(wanted))
		}
		for _, data := range wanted {
			want(t, s, data)
		}
		noProblems(t, s)
	}
	if err := errors.Join(b.Commit(), b.Discard()); err != nil { // empty
		t.Fatal(err)
	}
}

func batchRefusals(t *testing.T, s *blob.Store) {
	b := s.Batch()
	good := Bytes(1, 300_000)
	if _, _, err := b.Put(t.Context(), bytes.NewReader(good), blob.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{100, 300_000} {
		data := Bytes(2, n)
		_, _, err := b.Put(t.Context(), bytes.NewReader(data), blob.PutOptions{Expect: blob.Of(good)})
		code(t, err, "digest_mismatch")
		_, _, err = b.Put(t.Context(), bytes.NewReader(data), blob.PutOptions{Max: int64(n) - 1})
		code(t, err, "too_large")
		boom := errors.New("boom")
		if _, _, err = b.Put(t.Context(), io.MultiReader(bytes.NewReader(data), iotest.ErrReader(boom)), blob.PutOptions{}); !errors.Is(err, boom) {
			t.Fatal(err)
		}
	}
	if b.Len() != 1 {
		t.Fatalf("the batch has %d", b.Len())
	}
	// What is staged belongs to somebody.
	if n, err := s.SweepStaging(time.Now().Add(time.Hour)); n != 0 || err != nil {
		t.Fatalf("swept %d: %v", n, err)
	}
	if err := errors.Join(b.Discard(), b.Commit()); err != nil {
		t.Fatal(err)
	}
	nothing(t, s)
	// One that was deleted is stored again.
	d := put(t, s, good)
	if err := s.Delete(d); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Put(t.Context(), bytes.NewReader(good), blob.PutOptions{Expect: d}); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	want(t, s, good)
}
