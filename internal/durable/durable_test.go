package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"drover/internal/fault"
)

// names lists what is in dir, to prove that nothing is left over.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	list := []string{}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestWriteFileReplacesAndSetsMode(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for i, perm := range []fs.FileMode{0o600, 0o644, 0o666} {
		want := fmt.Sprint("content ", i)
		if err := WriteFile(path, []byte(want), perm); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != perm || read(t, path) != want {
			t.Fatalf("got %v %v %q, want %v %q", info, err, read(t, path), perm, want)
		}
	}
	if got := names(t, dir); len(got) != 1 {
		t.Fatalf("left over: %v", got)
	}
}

func TestReplaceFailureKeepsTheOldFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	err := Replace(path, 0o644, func(w io.Writer) error {
		if _, err := io.WriteString(w, "half"); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	if read(t, path) != "old" || len(names(t, dir)) != 1 {
		t.Fatalf("file %q, directory %v", read(t, path), names(t, dir))
	}
	// A directory in the way: the rename fails and the temporary file goes.
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "d"), []byte("x"), 0o644); err == nil {
		t.Fatal("replaced a directory by a file")
	}
	if got := names(t, dir); len(got) != 2 {
		t.Fatalf("left over: %v", got)
	}
}

func TestFullNamesTheRemedy(t *testing.T) {
	err := Replace(filepath.Join(t.TempDir(), "f"), 0o644, func(io.Writer) error {
		return &fs.PathError{Op: "write", Path: "f", Err: syscall.ENOSPC}
	})
	if f := fault.As(err); f.Code != "disk_full" || f.Kind != fault.KindUnavailable || f.Remedy == "" || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %+v", f)
	}
	if Full("/", nil) != nil || fault.Code(Full("/", io.EOF)) != "internal" {
		t.Fatal("Full must leave other errors alone")
	}
}

func TestMkdirAll(t *testing.T) {
	dir := t.TempDir()
	deep := filepath.Join(dir, "a", "b", "c")
	for range 2 {
		if err := MkdirAll(deep, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(deep); err != nil || !info.IsDir() {
		t.Fatalf("got %v %v", info, err)
	}
	if err := WriteFile(filepath.Join(dir, "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"f", "f/x"} {
		if err := MkdirAll(filepath.Join(dir, bad), 0o755); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("%s: got %v, want ENOTDIR", bad, err)
		}
	}
}

func TestRenameAndSymlink(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a", "b"} {
		if err := MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	from, to := filepath.Join(dir, "a", "x"), filepath.Join(dir, "b", "y")
	if err := WriteFile(from, []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Rename(from, to); err != nil || read(t, to) != "1" || len(names(t, filepath.Join(dir, "a"))) != 0 {
		t.Fatalf("rename: %v", err)
	}
	link := filepath.Join(dir, "b", "current")
	for _, target := range []string{"y", "z", "y"} {
		if err := Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(link); err != nil || got != target {
			t.Fatalf("got %q %v", got, err)
		}
	}
	if got := names(t, filepath.Join(dir, "b")); len(got) != 2 {
		t.Fatalf("left over: %v", got)
	}
}

// tree makes a directory with two files that both hold content.
func tree(t *testing.T, dir, content string) {
	t.Helper()
	if err := MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "sub/two"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "dangling")); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
}

// Readers hold the directory by a descriptor, as a client that walks it does,
// and must always see both files, of one generation.
func TestSwitchDirIsAtomic(t *testing.T) {
	root := t.TempDir()
	dir, staged := filepath.Join(root, "live"), filepath.Join(root, "staged")
	tree(t, staged, "0")
	if err := SwitchDir(staged, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(staged); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("staged must be gone after the first switch: %v", err)
	}

	stop := make(chan struct{})
	var wg sync.WaitGroup
	failed := make(chan error, 2)
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := sameGeneration(dir); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	for i := 1; i <= 100; i++ {
		tree(t, staged, fmt.Sprint(i))
		if err := SwitchDir(staged, dir); err != nil {
			t.Fatal(err)
		}
		if got := read(t, filepath.Join(staged, "one")); got != fmt.Sprint(i-1) {
			t.Fatalf("the old content must be at staged, got %q", got)
		}
	}
	close(stop)
	wg.Wait()
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
}

// sameGeneration opens dir once and reads both of its files below that handle.
// The writer refills a directory only after it was switched out, so the handle's
// files may be of a newer generation, or empty while being refilled, but the
// name dir must never be missing and its files must never be.
func sameGeneration(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("the live directory vanished: %w", err)
	}
	defer func() { _ = root.Close() }()
	for _, name := range []string{"one", "sub/two"} {
		if _, err := root.ReadFile(name); err != nil {
			return fmt.Errorf("half a directory was seen: %w", err)
		}
	}
	return nil
}

func TestSwitchDirRefusesWhatIsNotThere(t *testing.T) {
	root := t.TempDir()
	if err := SwitchDir(filepath.Join(root, "none"), filepath.Join(root, "live")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("got %v", err)
	}
}
