package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var builtProgram func() (string, error) //nolint:gochecknoglobals // TestMain sets it

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "drover-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	builtProgram = sync.OnceValues(func() (string, error) {
		bin := filepath.Join(dir, "drover")
		out, err := exec.Command("go", "build", "-o", bin, "drover/cmd/drover").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return bin, err
	})
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// program is the drover binary under test.
func program(t testing.TB) string {
	t.Helper()
	bin, err := builtProgram()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}
