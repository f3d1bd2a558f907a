package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"drover/internal/fault"
)

// minDisk is the smallest disk a root may have; below, ext4 has no room for
// itself.
const minDisk = 16 << 20

// maxLower bounds the layers of one root (the kernel's own bound is 500).
const maxLower = 64

// RootSpec says what a root is made of.
type RootSpec struct {
	Lower     []string // read-only layers, the topmost first, absolute paths; none: the root starts empty
	DiskBytes int64    // what may be written, at least 16 MiB

	// Keep makes the writable layer a plain directory, so that Commit can keep
	// it. Its disk limit is watched, not enforced by a file system.
	Keep bool
}

// Root is a mounted root directory. Close it.
type Root struct {
	Path string // the merged tree, for the host to read and write between runs

	s      *Sandbox
	id     string
	dir    string
	upper  string
	spec   RootSpec
	image  bool
	lock   *os.File
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu     sync.Mutex // guards closed, serial and adding to runs
	closed bool
	serial int
	runs   sync.WaitGroup
}

// NewRoot makes a root and mounts it.
//
// Errors: sandbox_root_spec (invalid), disk_low (unavailable: the host could not
// hold what is promised), sandbox_mount (unavailable).
func (s *Sandbox) NewRoot(ctx context.Context, spec RootSpec) (*Root, error) {
	rep, err := s.ready(ctx)
	if err != nil {
		return nil, err
	}
	return s.newRoot(ctx, rep, spec)
}

func (s *Sandbox) newRoot(ctx context.Context, rep Report, spec RootSpec) (*Root, error) {
	if spec.DiskBytes < minDisk {
		return nil, fault.Invalid("sandbox_root_spec", "sandbox: a root needs at least %d bytes of disk, not %d", minDisk, spec.DiskBytes)
	}
	if len(spec.Lower) > maxLower {
		return nil, fault.Invalid("sandbox_root_spec", "sandbox: %d layers, at most %d", len(spec.Lower), maxLower)
	}
	for _, l := range spec.Lower {
		if !filepath.IsAbs(l) || strings.ContainsAny(l, ":,\\\n") {
			return nil, fault.Invalid("sandbox_root_spec", "sandbox: layer %q must be an absolute path without : , or \\", l)
		}
		if st, err := os.Lstat(l); err != nil || !st.IsDir() {
			return nil, fault.Invalid("sandbox_root_spec", "sandbox: layer %s is not a directory", l).Wrap(err)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dir, lock, err := s.takeDir()
	if err != nil {
		return nil, fault.Unavailable("sandbox_mount", "sandbox: make a directory for the root").Wrap(err)
	}
	r := &Root{s: s, id: filepath.Base(dir), dir: dir, lock: lock, spec: spec, image: rep.Disk == ByImage && !spec.Keep, Path: filepath.Join(dir, "merged")}
	r.spec.Lower = slices.Clone(spec.Lower)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if err := r.mount(ctx); err != nil {
		r.cancel()
		if derr := destroy(dir); derr != nil {
			err = errors.Join(err, derr)
		}
		_ = lock.Close()
		if fault.Code(err) != "internal" {
			return nil, err
		}
		return nil, fault.Unavailable("sandbox_mount", "sandbox: mount a root").Wrap(err)
	}
	return r, nil
}

// takeDir makes and locks a directory with an unused name. Reap is kept out
// between the two.
func (s *Sandbox) takeDir() (string, *os.File, error) {
	s.launches.Lock()
	defer s.launches.Unlock()
	dir := filepath.Join(s.rootsDir(), strings.ToLower(rand.Text()[:12]))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		_ = os.Remove(dir)
		return "", nil, err
	}
	return dir, lock, nil
}

func (r *Root) mount(ctx context.Context) error {
	fsdir := filepath.Join(r.dir, "fs")
	for _, d := range []string{fsdir, r.Path, filepath.Join(r.dir, "empty")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := r.reserveDisk(); err != nil {
		return err
	}
	if r.image {
		if err := mountImage(ctx, filepath.Join(r.dir, "disk.img"), fsdir); err != nil {
			return err
		}
	}
	r.upper = filepath.Join(fsdir, "upper")
	work := filepath.Join(fsdir, "work")
	for _, d := range []string{r.upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(d, 0o755); err != nil { // whatever the umask
			return err
		}
	}
	lower := r.spec.Lower
	if len(lower) == 0 {
		lower = []string{filepath.Join(r.dir, "empty")}
	}
	// The features that make a layer depend on the others it was made on are off,
	// so that a committed layer is plain files, whiteouts and opaque marks.
	// volatile: a root is scratch until Commit flushes it; package databases sync
	// after every transaction.
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,index=off,metacopy=off,redirect_dir=off,xino=off", strings.Join(lower, ":"), r.upper, work)
	if len(opts) > os.Getpagesize()-16 {
		return fault.Invalid("sandbox_root_spec", "sandbox: the paths of %d layers are too long for one mount", len(lower))
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	err := unix.Mount("overlay", r.Path, "overlay", flags, opts+",volatile")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("overlay", r.Path, "overlay", flags, opts)
	}
	if err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return nil
}

// reserveDisk refuses a root that the host's disk could not hold beside the
// others, and makes the sparse image that stands for the promise.
func (r *Root) reserveDisk() error {
	r.s.reserve.Lock()
	defer r.s.reserve.Unlock()
	free, err := freeBytes(r.dir)
	if err != nil {
		return err
	}
	promised := int64(0)
	images, _ := filepath.Glob(filepath.Join(r.s.rootsDir(), "*", "disk.img"))
	for _, img := range images {
		var st unix.Stat_t
		if unix.Stat(img, &st) == nil {
			promised += max(0, st.Size-st.Blocks*512)
		}
	}
	if free-promised < r.spec.DiskBytes {
		return fault.Unavailable("disk_low", "sandbox: a root may need %d MiB, but %s has %d MiB free, of which %d MiB are promised to other roots",
			r.spec.DiskBytes>>20, r.s.cfg.StateDir, free>>20, promised>>20).Fix("free space, lower the builder's disk limit or its number of slots")
	}
	if !r.image {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(r.dir, "disk.img"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(r.spec.DiskBytes), f.Close())
}

func freeBytes(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// mountImage formats the image and mounts it on dir. The loop device frees
// itself with the unmount.
func mountImage(ctx context.Context, image, dir string) error {
	// No journal and no zeroing: the file system never outlives a crash.
	cmd := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", image)
	cmd.Env = []string{"PATH=" + hostPath}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, strings.TrimSpace(string(out)))
	}
	img, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = img.Close() }()
	dev, err := attachLoop(img)
	if err != nil {
		return fmt.Errorf("loop device: %w", err)
	}
	defer func() { _ = dev.Close() }() // the mount holds it from here on
	if err := unix.Mount(dev.Name(), dir, "ext4", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount %s: %w", dev.Name(), err)
	}
	return os.Remove(filepath.Join(dir, "lost+found"))
}

func attachLoop(img *os.File) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ctl.Close() }()
	for range 64 {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &unix.LoopConfig{Fd: uint32(img.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}})
		if err == nil {
			return dev, nil
		}
		_ = dev.Close()
		if !errors.Is(err, unix.EBUSY) { // EBUSY: another process was faster
			return nil, err
		}
	}
	return nil, errors.New("no free loop device")
}

// tryImage finds out whether images can be mounted here.
func (s *Sandbox) tryImage(ctx context.Context) error {
	dir, lock, err := s.takeDir()
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	image, point := filepath.Join(dir, "disk.img"), filepath.Join(dir, "fs")
	err = errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, minDisk), os.Mkdir(point, 0o700))
	if err == nil {
		err = mountImage(ctx, image, point)
	}
	return errors.Join(err, destroy(dir))
}

// Upper is the directory that holds what was written to the root.
func (r *Root) Upper() string { return r.upper }

// Commit ends the root and keeps what was written to it as the layer dest, which
// must not exist and must be on the state directory's file system. The layer is
// flushed before its name appears. It holds whiteouts and opaque marks, so it is
// right only on top of the layers that the root was made of. The root must have
// been made with Keep; it is closed also when Commit fails.
//
// Errors: sandbox_commit (invalid: not Keep), layer_exists (conflict),
// sandbox_commit_failed (unavailable).
func (r *Root) Commit(ctx context.Context, dest string) error {
	err := r.commit(ctx, dest)
	return errors.Join(err, r.Close())
}

func (r *Root) commit(ctx context.Context, dest string) error {
	if r.image || !r.spec.Keep {
		return fault.Invalid("sandbox_commit", "sandbox: only a root made with Keep can be committed")
	}
	if err := r.stop(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	failed := fault.Unavailable("sandbox_commit_failed", "sandbox: keep a layer as %s", dest)
	if err := unmount(r.Path); err != nil {
		return failed.Wrap(err)
	}
	if err := syncFS(r.upper); err != nil {
		return failed.Wrap(err)
	}
	err := moveLayer(r.upper, dest)
	if errors.Is(err, fs.ErrExist) {
		return fault.Conflict("layer_exists", "sandbox: the layer %s exists", dest)
	}
	if err != nil {
		return failed.Wrap(err)
	}
	return nil
}

func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return unix.Syncfs(int(f.Fd()))
}

// stop ends all runs and waits for them. It fails when the root is closed.
func (r *Root) stop() error {
	r.mu.Lock()
	closed := r.closed
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.runs.Wait()
	if closed {
		return fault.Conflict("sandbox_closed", "sandbox: the root is closed")
	}
	return nil
}

// Close ends all runs, unmounts the root and deletes it. A second call does
// nothing.
func (r *Root) Close() error {
	_ = r.stop()
	r.mu.Lock()
	lock := r.lock
	r.lock = nil
	r.mu.Unlock()
	if lock == nil {
		return nil
	}
	err := destroy(r.dir)
	_ = lock.Close()
	if err != nil {
		return fault.Unavailable("sandbox_close", "sandbox: remove the root %s", r.dir).Wrap(err).Fix("the next start of the builder tries again")
	}
	return nil
}

// destroy removes everything of a root whose lock is held: processes, control
// groups, mounts, files. Nothing is deleted while something is still mounted.
func destroy(dir string) error {
	h := findHierarchy()
	names, _ := filepath.Glob(filepath.Join(dir, "run", "*"))
	for _, run := range names {
		g := &group{h: h, name: filepath.Base(dir) + "-" + filepath.Base(run)}
		if err := g.remove(); err != nil {
			return err
		}
	}
	for _, d := range []string{"merged", "fs"} {
		if err := unmount(filepath.Join(dir, d)); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// unmount unmounts path as often as something is mounted on it. A mount that is
// busy is detached: who holds it keeps it, the path is free.
func unmount(path string) error {
	for range 16 {
		err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		for i := 0; i < 20 && errors.Is(err, unix.EBUSY); i++ {
			time.Sleep(2 * time.Millisecond)
			err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		}
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil // not a mount point (any more)
		case err != nil:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return fmt.Errorf("unmount %s: there is always another mount", path)
}
