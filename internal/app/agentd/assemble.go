package agentd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"drover/internal/agent"
	"drover/internal/agent/grains"
	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/agent/rpmdb"
	"drover/internal/fault"
	"drover/internal/fleet/wire"
)

// assemble makes the agent of this host.
func assemble(e *Env, cfg Config, c common, ticket string) (*agent.Agent, error) {
	ca := ""
	if cfg.CA != "" {
		b, err := os.ReadFile(cfg.CA)
		if err != nil {
			return nil, fault.Invalid("ca", "the CA file cannot be read").Wrap(err).Fix("check ca in the configuration")
		}
		ca = string(b)
	}
	if cfg.Name == "" {
		cfg.Name = hostName(e.Ctx, e, cfg)
	}
	if ticket == "" {
		ticket = leftTicket(cfg)
	}
	late := &later{}
	h := hostOf(e, cfg, late)
	a, err := agent.New(agent.Config{Dir: cfg.Dir, URL: cfg.Server, Bus: cfg.Bus, CA: ca, Pin: cfg.Pin, Name: cfg.Name, Ticket: ticket, Version: e.Version, Machine: machine(), Registry: h.Registry, Host: h, Policy: c.policy(),
		Collect: inventory(e, cfg, h), Schedule: cfg.Schedule, Beacons: cfg.Beacons, Watched: agent.Watched{Services: grains.Services, Packages: installed()}, Welcomed: func() error { return confirm(cfg.Dir) }, Log: e.Log})
	late.agent = a
	return a, err
}

// later is the agent, for functions that ask it of what runs; nil without one.
type later struct{ agent *agent.Agent }

// leftTicket is a ticket that provisioning left for the first start.
func leftTicket(cfg Config) string {
	b, err := os.ReadFile(filepath.Join(filepath.Dir(cfg.Dir), "drover-agent.ticket"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// hostName is the fully qualified name of this host, or the name that it has.
func hostName(ctx context.Context, e *Env, cfg Config) string {
	all, _ := collect(e, cfg)(ctx) // the name is among what needs no custom fact
	for _, k := range []string{"fqdn", "nodename", "host"} {
		if s, ok := all[k].(string); ok && s != "" && s != "localhost" && s != "localhost.localdomain" {
			return strings.ToLower(s)
		}
	}
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return strings.ToLower(name)
}

// collect gathers the facts of this host.
func collect(e *Env, cfg Config) func(context.Context) (map[string]any, []error) {
	return func(ctx context.Context) (map[string]any, []error) {
		return grains.Collect(ctx, grains.Config{ID: cfg.Name, Master: cfg.Server, Version: e.Version, Dir: cfg.Facts, Files: []string{filepath.Join(cfg.Dir, "grains.yaml"), "/etc/salt/grains"}, Now: time.Now})
	}
}

// hostOf is what functions get to know of this host.
func hostOf(e *Env, cfg Config, late *later) module.Host {
	h := module.Host{Dir: cfg.Dir, ID: cfg.Name, Version: e.Version, Config: map[string]any{"id": cfg.Name, "master": cfg.Server, "server": cfg.Server, "facts": cfg.Facts, "modules": cfg.Modules}, Fetch: fetch}
	h.Grains = func(ctx context.Context) (map[string]any, error) {
		all, errs := collect(e, cfg)(ctx)
		for _, err := range errs {
			e.Log.Warn("a fact is missing", "err", err)
		}
		return all, nil
	}
	h.Event = func(context.Context, string, any) error {
		return fault.Unavailable("server_away", "there is no server to tell an event to")
	}
	h.Mine = func(context.Context, string, string, string) (any, error) {
		return nil, fault.Unavailable("server_away", "there is no server to ask what other hosts share")
	}
	h.Refresh = func(context.Context) error { return nil }
	h.Registry = registry(e, cfg, late)
	h.Call = func(ctx context.Context, fun string, args []any, named map[string]any) (any, error) {
		f, ok := h.Registry.Get(fun)
		if !ok {
			return nil, fault.NotFound("function_unknown", "there is no function %.100s on this host", fun)
		}
		call, err := module.Bind(&h, f, args, named, false)
		if err != nil {
			return nil, err
		}
		return f.Run(ctx, call)
	}
	return h
}

// registry is every function of this host: drover's, and the site's own, which win.
func registry(e *Env, cfg Config, late *later) *module.Registry {
	external, errs := command.External(cfg.Modules)
	for _, err := range errs {
		e.Log.Warn("an external module is not used", "err", err)
	}
	return module.NewRegistry(append(functions(late), external)...)
}

// inventory gathers what is told of this host. What cannot be had is left out, and said once.
func inventory(e *Env, cfg Config, h module.Host) func(context.Context) (agent.Inventory, error) {
	var mu sync.Mutex // guards what follows
	said := map[string]bool{}
	packages := installed()
	say := func(what string, err error) {
		if err != nil && !said[what+fault.Code(err)] {
			said[what+fault.Code(err)] = true
			e.Log.Warn("something is left out of the inventory", "what", what, "err", err)
		}
	}
	return func(ctx context.Context) (agent.Inventory, error) {
		mu.Lock()
		defer mu.Unlock()
		all, errs := collect(e, cfg)(ctx)
		for _, err := range errs {
			say("fact", err)
		}
		delete(all, "pid") // it changes with each start and tells nothing
		v := agent.Inventory{Items: map[string]map[string]string{wire.KindFact: grains.Flatten(all)}}
		services, err := grains.Services(ctx)
		say("services", err)
		v.Items[wire.KindService] = services
		ports, err := grains.Ports(ctx, "/")
		say("ports", err)
		v.Items[wire.KindPort] = map[string]string{}
		for _, p := range ports {
			key := fmt.Sprintf("%s/%d", strings.TrimSuffix(p.Proto, "6"), p.Port)
			if had := v.Items[wire.KindPort][key]; had == "" || p.Process != "" && !strings.Contains(had, p.Process) {
				v.Items[wire.KindPort][key] = strings.TrimSpace(had + " " + p.Process)
			}
		}
		v.Items[wire.KindMine] = mine(ctx, cfg, h, say)
		v.Packages, err = packages(ctx)
		say("packages", err)
		return v, nil
	}
}

// installed gives the packages of this host, and reads their database only when it has changed.
func installed() func(context.Context) ([]string, error) {
	var mu sync.Mutex // guards what follows
	stamp := ""
	var have []string
	return func(ctx context.Context) ([]string, error) {
		mu.Lock()
		defer mu.Unlock()
		now := rpmdb.Stamp("/")
		if now == stamp && stamp != "" {
			return append([]string(nil), have...), nil
		}
		ps, err := rpmdb.List(ctx, "/")
		if err != nil {
			return nil, err
		}
		have, stamp = have[:0], now
		for _, p := range ps {
			if !p.IsKey() {
				have = append(have, p.NEVRA())
			}
		}
		return append([]string(nil), have...), nil
	}
}

// fetch opens a file for a function: of this host, or over HTTP.
func fetch(ctx context.Context, source string) (io.ReadCloser, error) {
	u, err := url.Parse(source)
	if err != nil {
		return nil, fault.Invalid("source", "%.200q is no source of a file", source).Wrap(err)
	}
	switch u.Scheme {
	case "", "file":
		return os.Open(u.Path)
	case "salt":
		return nil, fault.Unavailable("salt_files_later", "salt:// is not served yet").Fix("give a path, or a URL with http or https")
	case "http", "https":
	default:
		return nil, fault.Invalid("source", "%.200q is of a kind that is not fetched", source).Fix("give a path, or a URL with http or https")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, source, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fault.Unavailable("fetch", "%.200s cannot be fetched", source).Wrap(err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fault.Unavailable("fetch", "%.200s cannot be fetched: %s", source, resp.Status), resp.Body.Close())
	}
	return resp.Body, nil
}

// machine is how this host is told from others.
func machine() agent.Machine {
	read := func(file string) string {
		b, err := os.ReadFile(file)
		if err != nil || len(b) > 100 {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	m := agent.Machine{ID: read("/etc/machine-id"), Serial: read("/sys/class/dmi/id/product_serial"), Boot: read("/proc/sys/kernel/random/boot_id")}
	ifs, err := net.Interfaces()
	if err != nil {
		return m
	}
	for _, i := range ifs {
		if i.Flags&net.FlagLoopback == 0 && len(i.HardwareAddr) == 6 && len(m.MACs) < 64 {
			m.MACs = append(m.MACs, i.HardwareAddr.String())
		}
	}
	return m
}
