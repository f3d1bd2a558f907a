package network

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fault"
)

const (
	maxFile = 8 << 20 // of one file that is read whole
	maxWait = time.Hour
)

// host is where the functions look and act. Tests give it another root, bus and programs.
type host struct {
	root string // "/" on a host
	now  func() time.Time
	bus  func(ctx context.Context) (*godbus.Conn, error)
	run  func(ctx context.Context, s command.Spec) (command.Result, error)
}

// Functions are the functions of network, dig, dnsutil, http, firewalld, git and x509.
func Functions() []module.Function {
	h := &host{root: "/", now: time.Now, bus: systemBus, run: command.Run}
	return h.functions()
}

func (h *host) functions() []module.Function {
	var all []module.Function
	for _, fs := range [][]module.Function{h.interfaces(), h.addresses(), h.hostname(), h.reach(), h.sockets(), h.routes(), h.dig(), h.dnsutil(), h.http(), h.firewalld(), h.git(), h.x509()} {
		all = append(all, fs...)
	}
	return all
}

// systemBus connects to the bus of the running system.
func systemBus(ctx context.Context) (*godbus.Conn, error) {
	c, err := godbus.ConnectSystemBus(godbus.WithContext(ctx))
	if err != nil {
		return nil, fault.Unavailable("dbus_missing", "the system bus of this host does not answer").Wrap(err).
			Fix("start dbus-broker or dbus-daemon; in a container without an init there is none")
	}
	return c, nil
}

func (h *host) path(p string) string { return filepath.Join(h.root, p) }

func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func readFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxFile {
		return "", fault.TooLarge("file_too_large", "%s is larger than %d bytes", name, maxFile)
	}
	return string(b), nil
}

// readIfThere is a file's text; a missing file is empty.
func readIfThere(name string) (string, error) {
	s, err := readFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return s, err
}

// within is ctx that ends after seconds of an argument, within bounds.
func within(ctx context.Context, seconds float64) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, min(max(time.Duration(seconds*float64(time.Second)), time.Millisecond), maxWait))
}

// The makers of entries of the tables; they keep those to a line or two.
type run = func(context.Context, *module.Call) (any, error)

func reads(name, doc string, f run, params ...module.Param) module.Function {
	return module.Function{Name: name, Doc: doc, Params: params, Reads: true, Run: f}
}

func changes(name, doc string, f run, params ...module.Param) module.Function {
	return module.Function{Name: name, Doc: doc, Params: params, Run: f}
}

func tests(name, doc string, f run, params ...module.Param) module.Function {
	return module.Function{Name: name, Doc: doc, Params: params, Tests: true, Run: f}
}

// alias is the same function under another name.
func alias(f module.Function, name string) module.Function {
	f.Doc = strings.ReplaceAll(f.Doc, "'*' "+f.Name, "'*' "+name)
	f.Name = name
	return f
}

func need(name string, t module.Type) module.Param {
	return module.Param{Name: name, Type: t, Required: true}
}

func may(name string, t module.Type, def any) module.Param {
	return module.Param{Name: name, Type: t, Default: def}
}
