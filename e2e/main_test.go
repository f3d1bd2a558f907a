package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"drover/internal/teststream"
)

// What all tests of the process share, made when it is first wanted.
var (
	builtProgram  func() (string, error) //nolint:gochecknoglobals // TestMain sets it
	builtUpstream func() (string, error) //nolint:gochecknoglobals // TestMain sets it
)

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
	builtUpstream = sync.OnceValues(func() (string, error) {
		r, err := teststream.Make(context.Background(), teststream.Config{Dir: filepath.Join(dir, "stream"), Set: teststream.Build})
		if err != nil {
			return "", err
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		srv := &http.Server{Handler: http.FileServer(http.Dir(r.Dir)), ReadHeaderTimeout: 10 * time.Second}
		go func() { _ = srv.Serve(l) }() // until the process ends
		return "http://" + l.Addr().String() + "/", nil
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
