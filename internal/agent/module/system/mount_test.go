package system

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"drover/internal/fault"
)

// The kernel itself is asked to mount, in a mount namespace of the test's own.
func TestMountForReal(t *testing.T) {
	if os.Getenv("DROVER_TEST_MOUNTS") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestMountForReal$", "-test.v")
		cmd.Env = append(os.Environ(), "DROVER_TEST_MOUNTS=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v; this test needs root\n%s", err, out)
		}
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	m := newMachine()
	dir := t.TempDir()
	at, other := filepath.Join(dir, "a b"), filepath.Join(dir, "other")
	equal(t, "no mount point", any("mount: "+at+": mount point does not exist."), must(t, m, "mount.mount", at, "tmpfs", false, "tmpfs"))
	equal(t, "tmpfs", any(true), must(t, m, "mount.mount", at, "tmpfs", true, "tmpfs", "size=1m,nodev"))
	e := must(t, m, "mount.active").(map[string]any)[at].(map[string]any)
	if e["fstype"] != "tmpfs" || e["device"] != "tmpfs" {
		t.Errorf("%v", e)
	}
	if err := os.WriteFile(at+"/f", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	equal(t, "usage", any("1024"), must(t, m, "disk.usage", at).(map[string]any)[at].(map[string]any)["1K-blocks"])
	equal(t, "read-only", any(true), must(t, m, "mount.remount", at, "tmpfs", false, "tmpfs", "size=1m,ro"))
	if err := os.WriteFile(at+"/g", nil, 0o644); err == nil {
		t.Error("it can still be written to")
	}
	equal(t, "bind", any(true), must(t, m, "mount.mount", other, at, true, "none", "bind,ro,noexec"))
	if b, err := os.ReadFile(other + "/f"); string(b) != "x" {
		t.Error(string(b), err)
	}
	var f unix.Statfs_t
	if err := unix.Statfs(other, &f); err != nil || f.Flags&unix.ST_NOEXEC == 0 || f.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("flags of the bind mount: %x, %v", f.Flags, err)
	}
	// What needs helpers goes through mount(8).
	equal(t, "by the program", any(true), must(t, m, "mount.mount", other, "tmpfs", false, "tmpfs", "x-drover=1,size=2m"))
	equal(t, "umount", any(true), must(t, m, "mount.umount", other))
	equal(t, "umount the bind mount", any(true), must(t, m, "mount.umount", other))
	if v, ok := must(t, m, "mount.mount", other, "/nonexistent/device", false, "ext4").(string); !ok || v == "" {
		t.Errorf("a device that is not there: %v", v)
	}
	equal(t, "umount lazily", any(true), func() any {
		v, err := call(t, m, "mount.umount", []any{at}, map[string]any{"lazy": true})
		if err != nil {
			t.Error(err)
		}
		return v
	}())
	equal(t, "gone", any(false), must(t, m, "mount.is_mounted", at))
	if _, err := call(t, m, "mount.mount", []any{at, "tmpfs"}, map[string]any{"util": "guestfs"}); fault.Code(err) != "mount_util" {
		t.Errorf("another util: %v", err)
	}
}
