package blob_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"drover/internal/blob"
	"drover/internal/fault"
)

// A file is adopted by each way that there is, and what the file's owner does afterwards does no
// harm but for a hard link.
func TestAdopt(t *testing.T) {
	for _, hard := range []bool{false, true} {
		dir := t.TempDir()
		s, err := blob.Open(filepath.Join(dir, "blobs"))
		if err != nil {
			t.Fatal(err)
		}
		data := bytes.Repeat([]byte("drover"), 100_000)
		sum := sha256.Sum256(data)
		d := blob.Digest(hex.EncodeToString(sum[:]))
		name := filepath.Join(dir, "theirs")
		if err := os.WriteFile(name, data, 0o640); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b := s.Batch()
		if _, _, err := b.Adopt(t.Context(), f, blob.PutOptions{Expect: blob.Digest(hex.EncodeToString(make([]byte, 32)))}, hard); fault.Code(err) != "digest_mismatch" {
			t.Errorf("another digest: %v", err)
		}
		for range 2 { // the second time it is there
			got, size, err := b.Adopt(t.Context(), f, blob.PutOptions{Expect: d}, hard)
			if err != nil || got != d || size != int64(len(data)) {
				t.Fatalf("%v %d %v", got, size, err)
			}
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		if back, err := s.ReadAll(d, 1<<20); err != nil || !bytes.Equal(back, data) {
			t.Errorf("read back: %v", err)
		}
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if links := info.Sys().(*syscall.Stat_t).Nlink; links > 1 && !hard || info.Mode() != 0o640 {
			t.Errorf("hard %v: %d links, mode %v", hard, links, info.Mode())
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "blobs/staging/*")); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
		// A new file in its place is another file.
		if err := os.WriteFile(name+".new", []byte("other"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
		if back, err := s.ReadAll(d, 1<<20); err != nil || !bytes.Equal(back, data) {
			t.Errorf("after the owner's update: %v", err)
		}
	}
}

// What is renewed stays.
func TestRenew(t *testing.T) {
	s, err := blob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.PutBytes([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	in, err := s.Renew(d)
	if err != nil || in.Size != 1 || in.Put.Before(before.Add(-time.Second)) {
		t.Fatal(in, err)
	}
	if gone, err := s.DeleteOld(d, before.Add(-time.Second)); gone || err != nil {
		t.Error(gone, err)
	}
	if _, err := s.Renew(blob.Digest(hex.EncodeToString(make([]byte, 32)))); fault.Code(err) != "blob_unknown" {
		t.Error(err)
	}
}
