package teststream

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Devices makes the devices below root that scripts of packages need. It needs root.
func Devices(root string) error {
	if err := os.MkdirAll(filepath.Join(root, "dev"), 0o755); err != nil {
		return err
	}
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		p := filepath.Join(root, "dev", name)
		if err := errors.Join(unix.Mknod(p, unix.S_IFCHR, int(unix.Mkdev(1, minor))), os.Chmod(p, 0o666)); err != nil {
			return fmt.Errorf("%s: %w; devices are made by root only", p, err)
		}
	}
	return nil
}
