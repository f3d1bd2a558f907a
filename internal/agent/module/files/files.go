package files

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

const (
	maxText  = 64 << 20 // of a file that is read whole
	maxNames = 1 << 20  // of files that one call looks at
)

// Functions are the functions of file, hosts, archive, cp and hashutil.
func Functions() []module.Function {
	h := hosts{"/etc/hosts"}
	return slices.Concat(text(), edits(), finds(), stats(), owners(), manages(), backups(), attributes(), diffs(), h.functions(), archives(), cps(), hashes())
}

// argPath is an argument that names a file: absolute, or below the home of the agent's user.
func argPath(c *module.Call, name string) (string, error) { return absolute(c.Str(name)) }

func absolute(p string) (string, error) {
	if p == "~" || strings.HasPrefix(p, "~/") {
		home, err := os.UserHomeDir()
		if err != nil {
			home = "/root" // a service has no HOME
		}
		p = home + p[1:]
	}
	if !filepath.IsAbs(p) || strings.ContainsRune(p, 0) {
		return "", fault.Invalid("path_relative", "the path %q is not absolute", p)
	}
	return filepath.Clean(p), nil
}

// on makes a function of one that takes the path that the argument names.
func on(arg string, f func(p string, c *module.Call) (any, error)) module.Run {
	return func(_ context.Context, c *module.Call) (any, error) {
		p, err := argPath(c, arg)
		if err != nil {
			return nil, err
		}
		return f(p, c)
	}
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

func there(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

func isFile(p string) bool {
	i, err := os.Stat(p)
	return err == nil && i.Mode().IsRegular()
}

func isDir(p string) bool {
	i, err := os.Stat(p)
	return err == nil && i.IsDir()
}

func missing(p string) error { return fault.NotFound("file_missing", "File not found: %s", p) }

// failed explains an error of the system with a file; one that explains itself stays.
func failed(what, p string, err error) error {
	var own *fault.Error
	switch {
	case err == nil || errors.As(err, &own):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return fault.NotFound("file_missing", "%s cannot be %s", p, what).Wrap(err)
	}
	return fault.Conflict("file_failed", "%s cannot be %s", p, what).Wrap(err)
}

// load reads a file whole. Devices and pipes are refused: they may have no end.
func load(p string) ([]byte, error) {
	i, err := os.Stat(p)
	if err != nil {
		return nil, failed("read", p, err)
	}
	if !i.Mode().IsRegular() {
		return nil, fault.Invalid("not_a_file", "%s is not an ordinary file", p)
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, failed("read", p, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxText+1))
	if err != nil {
		return nil, failed("read", p, err)
	}
	if len(b) > maxText {
		return nil, fault.TooLarge("file_large", "%s is larger than %d bytes", p, maxText)
	}
	return b, nil
}

// seconds is a time as Salt shows it.
func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// watched is a reader that ends with ctx.
type watched struct {
	ctx context.Context
	r   io.Reader
}

// Read reads unless the call was ended.
func (w watched) Read(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.r.Read(p)
}
