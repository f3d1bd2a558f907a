package blob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"drover/internal/blob"
	"drover/internal/blob/blobtest"
	"drover/internal/fault"
)

// What net/http asks of a file before it lets the kernel copy it.
var _ interface {
	fs.File
	io.ReadSeekCloser
	io.ReaderAt
	syscall.Conn
} = (*blob.Blob)(nil)

// path is where the store keeps d: the layout is a promise to backups.
func path(dir string, d blob.Digest) string {
	return filepath.Join(dir, "sha256", string(d[:2]), string(d))
}

func TestLayoutAndMode(t *testing.T) {
	dir := t.TempDir()
	s, err := blob.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{10, 100_000} {
		data := blobtest.Bytes(1, n)
		d, _, err := s.Put(t.Context(), bytes.NewReader(data), blob.PutOptions{})
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path(dir, d))
		if err != nil || info.Mode() != 0o444 {
			t.Fatalf("got %v %v", info, err)
		}
	}
	// A second opening finds what the first left.
	again, err := blob.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Verify(t.Context(), blob.Of(blobtest.Bytes(1, 10))); err != nil {
		t.Fatal(err)
	}
}

// Disks rot and people meddle.
func TestScrubFinds(t *testing.T) {
	dir := t.TempDir()
	s, err := blob.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var digests []blob.Digest
	for i := range 4 {
		d, err := s.PutBytes(blobtest.Bytes(uint64(i), 1000))
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d)
	}
	write := func(path string, data []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flipped := blobtest.Bytes(0, 1000)
	flipped[500] ^= 1
	write(path(dir, digests[0]), flipped)
	write(path(dir, digests[1]), nil)
	if err := os.Remove(path(dir, digests[2])); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", path(dir, digests[2])); err != nil {
		t.Fatal(err)
	}
	elsewhere := "00"
	if digests[3][:2] == "00" {
		elsewhere = "01"
	}
	write(filepath.Join(dir, "sha256", elsewhere, string(digests[3])), blobtest.Bytes(3, 1000))
	write(filepath.Join(dir, "sha256", "ab", "notes.txt"), nil)
	write(filepath.Join(dir, "sha256", "AB", "x"), nil)
	write(filepath.Join(dir, "staging", "put-1"), nil)

	var got []string
	done, err := s.Scrub(t.Context(), func(p blob.Problem) {
		got = append(got, fmt.Sprint(p.Kind, " ", p.Path))
		if (p.Kind == blob.Damaged) != (fault.Code(p.Err) == "blob_damaged" && p.Digest.Valid()) {
			t.Errorf("%+v", p)
		}
	})
	if err != nil || done.Blobs != 3 {
		t.Fatalf("%+v %v", done, err)
	}
	relative := func(d blob.Digest) string { return strings.TrimPrefix(path(dir, d), dir+"/") }
	want := []string{
		"damaged " + relative(digests[0]), "damaged " + relative(digests[1]), "misplaced " + relative(digests[2]),
		"misplaced sha256/" + elsewhere + "/" + string(digests[3]), "misplaced sha256/ab/notes.txt", "misplaced sha256/AB",
		"leftover staging/put-1",
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	// A link is not followed, whatever it points to.
	if _, err := s.Get(digests[2]); err == nil {
		t.Error("followed a symbolic link")
	}
	// A damaged blob of another size is noticed by the next put, and the one
	// after that heals it.
	for _, o := range []blob.PutOptions{{}, {Expect: digests[1]}} {
		write(path(dir, digests[1]), nil)
		_, _, err = s.Put(t.Context(), bytes.NewReader(blobtest.Bytes(1, 1000)), o)
		if fault.Code(err) != "blob_damaged" || fault.As(err).Remedy == "" {
			t.Fatalf("got %v", err)
		}
		if _, _, err := s.Put(t.Context(), bytes.NewReader(blobtest.Bytes(1, 1000)), o); err != nil {
			t.Fatal(err)
		}
		if err := s.Verify(t.Context(), digests[1]); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.SweepStaging(time.Now().Add(time.Hour)); n != 1 || err != nil {
		t.Fatalf("swept %d: %v", n, err)
	}
}

// A kill between the steps of Finish leaves the upload read-only: it must go on.
func TestStageMendsReadOnlyUpload(t *testing.T) {
	dir := t.TempDir()
	s, err := blob.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "uploads", "u"), []byte("half"), 0o444); err != nil {
		t.Fatal(err)
	}
	u, err := s.Stage("u", 0)
	if err != nil || u.Size() != 4 {
		t.Fatal(u, err)
	}
	if d, _, err := u.Finish(t.Context(), blob.PutOptions{Expect: blob.Of([]byte("half"))}); err != nil {
		t.Fatal(d, err)
	}
}

// Any sequence of operations behaves as a map from digest to bytes.
func TestModel(t *testing.T) {
	s, err := blob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		for info, err := range s.List() {
			if err := errors.Join(err, s.Delete(info.Digest)); err != nil {
				rt.Fatal(err)
			}
		}
		if _, err := s.SweepStaging(time.Now().Add(time.Hour)); err != nil {
			rt.Fatal(err)
		}
		model := map[blob.Digest][]byte{}
		uploads := map[string][]byte{}
		content := rapid.Custom(func(g *rapid.T) []byte {
			return blobtest.Bytes(rapid.Uint64Range(0, 5).Draw(g, "seed"), rapid.SampledFrom([]int{0, 1, 1 << 16, 1<<16 + 1, 200_000}).Draw(g, "size"))
		})
		id := rapid.SampledFrom([]string{"a", "b"})
		rt.Repeat(map[string]func(*rapid.T){
			"": func(g *rapid.T) {
				n := 0
				for info, err := range s.List() {
					if err != nil || int64(len(model[info.Digest])) != info.Size {
						g.Fatalf("%+v %v", info, err)
					}
					if _, ok := model[info.Digest]; !ok {
						g.Fatalf("%s came from nowhere", info.Digest)
					}
					n++
				}
				if n != len(model) {
					g.Fatalf("%d blobs, want %d", n, len(model))
				}
			},
			"put": func(g *rapid.T) {
				data := content.Draw(g, "content")
				o := blob.PutOptions{Expect: rapid.SampledFrom([]blob.Digest{"", blob.Of(data), blob.Of([]byte("other"))}).Draw(g, "expect")}
				d, _, err := s.Put(context.Background(), bytes.NewReader(data), o)
				if bad := o.Expect == blob.Of([]byte("other")); bad != (fault.Code(err) == "digest_mismatch") || !bad && err != nil {
					g.Fatal(err)
				}
				if err == nil {
					model[d] = data
				}
			},
			"batch": func(g *rapid.T) {
				b := s.Batch()
				put := map[blob.Digest][]byte{}
				for _, data := range rapid.SliceOfN(content, 0, 5).Draw(g, "contents") {
					d, _, err := b.Put(context.Background(), bytes.NewReader(data), blob.PutOptions{})
					if err != nil {
						g.Fatal(err)
					}
					put[d] = data
				}
				if !rapid.Bool().Draw(g, "commit") {
					if err := b.Discard(); err != nil {
						g.Fatal(err)
					}
				} else if err := b.Commit(); err != nil {
					g.Fatal(err)
				} else {
					maps.Copy(model, put)
				}
			},
			"delete": func(g *rapid.T) {
				d := blob.Of(content.Draw(g, "content"))
				if err := s.Delete(d); err != nil {
					g.Fatal(err)
				}
				delete(model, d)
			},
			"get": func(g *rapid.T) {
				data := content.Draw(g, "content")
				got, err := s.ReadAll(blob.Of(data), 1<<20)
				if _, ok := model[blob.Of(data)]; ok != (err == nil) || err == nil && !bytes.Equal(got, data) {
					g.Fatalf("in model %v, got %d bytes, %v", ok, len(got), err)
				}
			},
			"append": func(g *rapid.T) {
				id, data := id.Draw(g, "id"), content.Draw(g, "content")
				u, err := s.Stage(id, 0)
				if err != nil || u.Size() != int64(len(uploads[id])) {
					g.Fatal(err, u)
				}
				if err := u.Append(context.Background(), u.Size(), bytes.NewReader(data)); err != nil {
					g.Fatal(err)
				}
				uploads[id] = append(uploads[id], data...)
				if err := u.Close(); err != nil {
					g.Fatal(err)
				}
			},
			"finish": func(g *rapid.T) {
				id := id.Draw(g, "id")
				u, err := s.Stage(id, 0)
				if err != nil {
					g.Fatal(err)
				}
				d, _, err := u.Finish(context.Background(), blob.PutOptions{Expect: blob.Of(uploads[id])})
				if err != nil {
					g.Fatal(err)
				}
				model[d] = uploads[id]
				delete(uploads, id)
			},
		})
		if _, err := s.Scrub(context.Background(), func(p blob.Problem) { rt.Errorf("%+v", p) }); err != nil {
			rt.Fatal(err)
		}
	})
}

// FuzzParse: whatever passes stays inside the store.
func FuzzParse(f *testing.F) {
	f.Add(string(blob.Of(nil)))
	f.Add("../../../../etc/passwd")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := blob.Parse(text)
		if (err == nil) != (len(text) == 64 && strings.Trim(text, "0123456789abcdef") == "") {
			t.Fatalf("%q: %v", text, err)
		}
		if err == nil && d.String() != text {
			t.Fatalf("%q became %q", text, d)
		}
	})
}

func BenchmarkPut(b *testing.B) {
	for _, c := range []struct {
		name    string
		size    int
		workers int
		again   bool
	}{{"1KiB", 1 << 10, 1, false}, {"1KiB/16workers", 1 << 10, 16, false}, {"1KiB/again", 1 << 10, 1, true}, {"1MiB", 1 << 20, 1, false}, {"1MiB/again", 1 << 20, 1, true}} {
		b.Run(c.name, func(b *testing.B) {
			s, err := blob.Open(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			data := blobtest.Bytes(1, c.size)
			b.SetBytes(int64(c.size))
			work := make(chan int)
			done := make(chan error, c.workers)
			for range c.workers {
				go func() {
					own := bytes.Clone(data)
					var err error
					for i := range work {
						if !c.again {
							copy(own, fmt.Sprintf("%020d", i))
						}
						if _, _, perr := s.Put(context.Background(), bytes.NewReader(own), blob.PutOptions{}); perr != nil {
							err = perr
						}
					}
					done <- err
				}()
			}
			b.ResetTimer()
			for i := range b.N {
				work <- i
			}
			close(work)
			for range c.workers {
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkBatch is BenchmarkPut for packages: files/s with one flush a file, and by batches.
func BenchmarkBatch(b *testing.B) {
	for _, batch := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprint(batch), func(b *testing.B) {
			s, err := blob.Open(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			data := blobtest.Bytes(1, 160<<10)
			b.SetBytes(int64(len(data)))
			staged := s.Batch()
			for i := range b.N {
				copy(data, fmt.Sprintf("%020d", i))
				if batch == 1 {
					_, _, err = s.Put(b.Context(), bytes.NewReader(data), blob.PutOptions{})
				} else {
					_, _, err = staged.Put(b.Context(), bytes.NewReader(data), blob.PutOptions{})
				}
				if err == nil && (staged.Len() == batch || i == b.N-1) {
					err = staged.Commit()
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "files/s")
		})
	}
}
