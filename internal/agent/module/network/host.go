package network

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
)

const maxWait = time.Hour

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
		return nil, module.NoBus(err)
	}
	return c, nil
}

func (h *host) path(p string) string { return filepath.Join(h.root, p) }

// within is ctx that ends after seconds of an argument, within bounds.
func within(ctx context.Context, seconds float64) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, min(max(time.Duration(seconds*float64(time.Second)), time.Millisecond), maxWait))
}

// alias is the same function under another name.
func alias(f module.Function, name string) module.Function {
	f.Doc = strings.ReplaceAll(f.Doc, "'*' "+f.Name, "'*' "+name)
	f.Name = name
	return f
}
