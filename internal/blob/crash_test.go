package blob_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/blob"
	"drover/internal/blob/blobtest"
	"drover/internal/fault"
)

// childEnv makes the test binary play a part as a child process.
const childEnv = "DROVER_BLOB_CHILD"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(m.Run())
	case "put":
		err = putForever(os.Args[1])
	case "full":
		err = fillDisk(os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// child starts this test binary in the given part, on dir.
func child(t *testing.T, part, dir string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, dir)
	cmd.Env = append(os.Environ(), childEnv+"="+part)
	cmd.Stderr = os.Stderr
	return cmd
}

// putForever puts blobs of all sizes by several goroutines, and says each that
// was acknowledged, until it is killed.
func putForever(dir string) error {
	s, err := blob.Open(dir)
	if err != nil {
		return err
	}
	var out sync.Mutex // keeps lines whole
	say := func(format string, args ...any) {
		out.Lock()
		defer out.Unlock()
		fmt.Printf(format, args...)
	}
	failed := make(chan error)
	for worker := range 3 {
		go func() {
			for {
				data := blobtest.Bytes(rand.Uint64N(2000), 1<<rand.IntN(21))
				d, _, err := s.Put(context.Background(), bytes.NewReader(data), blob.PutOptions{})
				if err != nil {
					failed <- err
					return
				}
				say("blob %s\n", d)
			}
		}()
		go func() {
			id := fmt.Sprint("upload-", worker)
			for {
				if err := uploadSome(s, id, say); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	go func() {
		b := s.Batch()
		for {
			var ds []blob.Digest
			for range 1 + rand.IntN(20) {
				d, _, err := b.Put(context.Background(), bytes.NewReader(blobtest.Bytes(2000+rand.Uint64N(2000), 1<<rand.IntN(19))), blob.PutOptions{})
				if err != nil {
					failed <- err
					return
				}
				ds = append(ds, d)
			}
			if err := b.Commit(); err != nil {
				failed <- err
				return
			}
			for _, d := range ds {
				say("blob %s\n", d)
			}
		}
	}()
	return <-failed
}

// uploadSome goes on with the upload that an earlier process left.
func uploadSome(s *blob.Store, id string, say func(string, ...any)) error {
	u, err := s.Stage(id, 0)
	if err != nil {
		return err
	}
	say("size %s %d\n", id, u.Size())
	part := blobtest.Bytes(uint64(u.Size()), 100_000)
	if err := u.Append(context.Background(), u.Size(), bytes.NewReader(part)); err != nil {
		return err
	}
	say("size %s %d\n", id, u.Size())
	if u.Size() < 500_000 {
		return u.Close()
	}
	d, _, err := u.Finish(context.Background(), blob.PutOptions{})
	if err != nil {
		return err
	}
	say("blob %s\n", d)
	return nil
}

// A process is killed at random points, again and again over one directory.
// After each kill every blob that is there is whole, every one that was
// acknowledged is there, and the rest is swept by the next Open.
func TestKilledWhilePutting(t *testing.T) {
	rounds := 20
	if os.Getenv("DROVER_LONG") != "" {
		rounds = 500
	}
	dir := t.TempDir()
	acknowledged := map[blob.Digest]bool{}
	leftovers := 0
	for range rounds {
		for _, d := range killOnce(t, dir) {
			acknowledged[d] = true
		}
		half, err := os.ReadDir(filepath.Join(dir, "staging"))
		if err != nil {
			t.Fatal(err)
		}
		leftovers += len(half)
		s, err := blob.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		done, err := s.Scrub(t.Context(), func(p blob.Problem) { t.Errorf("%+v", p) })
		if err != nil {
			t.Fatal(err)
		}
		for d := range acknowledged {
			if here, err := s.Has(d); !here {
				t.Errorf("the acknowledged blob %s is lost: %v", d, err)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
		if done.Blobs > 500 { // keep the scrub short; also a collector at work
			for d := range acknowledged {
				if err := s.Delete(d); err != nil {
					t.Fatal(err)
				}
			}
			clear(acknowledged)
		}
	}
	s, err := blob.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.SweepStaging(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Scrub(t.Context(), func(p blob.Problem) { t.Errorf("after the sweep: %+v", p) }); err != nil {
		t.Fatal(err)
	}
	if leftovers == 0 {
		t.Error("no kill ever hit a put: the test does not test")
	}
}

// killOnce kills a child after some acknowledgements and gives them.
func killOnce(t *testing.T, dir string) (acknowledged []blob.Digest) {
	t.Helper()
	cmd := child(t, "put", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	left := 1 + rand.IntN(40)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if hex, ok := strings.CutPrefix(lines.Text(), "blob "); ok {
			if d, err := blob.Parse(hex); err == nil { // the last line may be cut
				acknowledged = append(acknowledged, d)
			}
		}
		if left--; left == 0 {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended by itself: %v", err)
	}
	return acknowledged
}

// A small file system of its own runs full under put and upload. The child has
// it in a mount namespace, so that nothing has to be unmounted.
func TestFullDisk(t *testing.T) {
	cmd := child(t, "full", t.TempDir())
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

func fillDisk(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("drover-test", dir, "tmpfs", 0, "size=4m"); err != nil {
		return fmt.Errorf("mount a small tmpfs: %w", err)
	}
	s, err := blob.Open(dir)
	if err != nil {
		return err
	}
	free := func() uint64 {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			panic(err)
		}
		return st.Bfree
	}
	kept := blobtest.Bytes(1, 1<<20)
	keptDigest, err := s.PutBytes(kept)
	if err != nil {
		return err
	}
	u, err := s.Stage("up", 0)
	if err != nil {
		return err
	}
	if err := u.Append(context.Background(), 0, bytes.NewReader(kept)); err != nil {
		return err
	}
	before := free()
	wantFull := func(what string, err error) error {
		if f := fault.As(err); fault.Code(err) != "disk_full" || f.Kind != fault.KindUnavailable || f.Remedy == "" {
			return fmt.Errorf("%s: got %w, want disk_full with a remedy", what, err)
		}
		if after := free(); after != before {
			return fmt.Errorf("%s left something behind: %d free blocks, %d before", what, after, before)
		}
		return nil
	}
	big := blobtest.Bytes(2, 5<<20)
	if _, _, err := s.Put(context.Background(), bytes.NewReader(big), blob.PutOptions{}); err != nil {
		if err := wantFull("put", err); err != nil {
			return err
		}
	}
	if _, err := s.PutBytes(big); err != nil {
		if err := wantFull("put bytes", err); err != nil {
			return err
		}
	}
	b := s.Batch()
	for n := 3; err == nil; n++ {
		_, err = b.PutBytes(blobtest.Bytes(uint64(n), 1<<20))
	}
	if err := errors.Join(err, b.Discard()); err != nil {
		if err := wantFull("batch", err); err != nil {
			return err
		}
	}
	if err := wantFull("append", u.Append(context.Background(), u.Size(), bytes.NewReader(big))); err != nil {
		return err
	}
	if u.Size() != int64(len(kept)) {
		return fmt.Errorf("the upload has %d bytes, want %d", u.Size(), len(kept))
	}
	if d, _, err := u.Finish(context.Background(), blob.PutOptions{Expect: keptDigest}); err != nil {
		return fmt.Errorf("finish %s: %w", d, err)
	}
	here := 0
	for _, err := range s.List() {
		if err != nil {
			return err
		}
		here++
	}
	if here != 1 {
		return fmt.Errorf("%d blobs, want 1", here)
	}
	_, err = s.Scrub(context.Background(), func(p blob.Problem) { panic(fmt.Sprintf("%+v", p)) })
	return err
}
