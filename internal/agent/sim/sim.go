package sim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"drover/internal/agent"
	"drover/internal/agent/module"
	"drover/internal/fault"
	"drover/internal/fleet/wire"
)

// Config is what a fleet needs.
type Config struct {
	N       int
	First   int    // number of the first host; names are PREFIX-00001 …
	Prefix  string // "sim" when empty
	URL     string
	Bus     []string // of a site; the server's when not given
	CA      string   // PEM
	Pin     string
	Dir     string                            // where the hosts keep their keys; "" in memory
	Ticket  func(name string) (string, error) // a ticket for a host that has none; nil for approval
	Version string
	Log     *slog.Logger
	HTTP    *http.Client
	// Packages is how many packages each host has; 600 when 0.
	Packages int
	// AtOnce is how many hosts are made at once; 64 when 0.
	AtOnce int
}

// Fleet is simulated hosts.
type Fleet struct {
	cfg    Config
	Agents []*agent.Agent
	hosts  []*host
	work   sync.WaitGroup
	cancel context.CancelFunc
}

// host is what is made up of one host.
type host struct {
	name    string
	n       int
	changed atomic.Int64 // how many packages were upgraded
	fails   atomic.Bool
	slow    atomic.Int64 // milliseconds that sim.work takes more
	ran     atomic.Int64
	flying  *atomic.Int64
	most    *atomic.Int64
}

// Start makes the hosts and has them connect.
func Start(ctx context.Context, cfg Config) (*Fleet, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = "sim"
	}
	if cfg.Packages == 0 {
		cfg.Packages = 600
	}
	if cfg.AtOnce == 0 {
		cfg.AtOnce = 64
	}
	f := &Fleet{cfg: cfg, Agents: make([]*agent.Agent, cfg.N), hosts: make([]*host, cfg.N)}
	ctx, f.cancel = context.WithCancel(ctx)
	flying, most := &atomic.Int64{}, &atomic.Int64{}
	gate := make(chan struct{}, cfg.AtOnce)
	for i := range cfg.N {
		h := &host{name: fmt.Sprintf("%s-%05d", cfg.Prefix, cfg.First+i), n: cfg.First + i, flying: flying, most: most}
		f.hosts[i] = h
		c := agent.Config{URL: cfg.URL, Bus: cfg.Bus, CA: cfg.CA, Pin: cfg.Pin, Name: h.name, Version: cfg.Version, Machine: h.machine(), Log: cfg.Log, HTTP: cfg.HTTP, Policy: func() agent.Policy { return agent.Policy{} },
			Registry: registry(h), Host: module.Host{Grains: func(context.Context) (map[string]any, error) { return h.grains(), nil }}, Collect: func(context.Context) (agent.Inventory, error) { return h.inventory(cfg.Packages), nil }}
		if cfg.Dir != "" {
			c.Dir = cfg.Dir + "/" + h.name
		}
		if cfg.Ticket != nil {
			t, err := cfg.Ticket(h.name)
			if err != nil {
				f.Close()
				return nil, err
			}
			c.Ticket = t
		}
		a, err := agent.New(c)
		if err != nil {
			f.Close()
			return nil, err
		}
		f.Agents[i] = a
		f.work.Go(func() {
			select {
			case gate <- struct{}{}:
			case <-ctx.Done():
				return
			}
			up := make(chan struct{})
			f.work.Go(func() { // the next may begin when this one is there
				defer func() { <-gate; close(up) }()
				for n := 0; !a.Connected() && ctx.Err() == nil && n < 3000; n++ {
					time.Sleep(10 * time.Millisecond)
				}
			})
			_ = a.Run(ctx) // it ends with ctx only
			<-up
		})
	}
	return f, nil
}

// Connected is how many hosts the server has welcomed and still holds.
func (f *Fleet) Connected() (n int) {
	for _, a := range f.Agents {
		if a != nil && a.Connected() {
			n++
		}
	}
	return n
}

// Wait waits until all hosts are connected.
func (f *Fleet) Wait(ctx context.Context) error {
	for f.Connected() < len(f.Agents) {
		select {
		case <-ctx.Done():
			return fault.Unavailable("fleet_slow", "%d of %d simulated hosts are connected", f.Connected(), len(f.Agents)).Wrap(ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// Close ends all hosts.
func (f *Fleet) Close() {
	f.cancel()
	f.work.Wait()
}

// Most is how many hosts were at sim.work at once since it was asked last.
func (f *Fleet) Most() int64 {
	if len(f.hosts) == 0 {
		return 0
	}
	return f.hosts[0].most.Swap(0)
}

// Set makes sim.work fail on a host, and take longer.
func (f *Fleet) Set(i int, fails bool, slow time.Duration) {
	f.hosts[i].fails.Store(fails)
	f.hosts[i].slow.Store(slow.Milliseconds())
}

// Ran is how often sim.work ran on a host.
func (f *Fleet) Ran(i int) int64 { return f.hosts[i].ran.Load() }

// Upgrade changes n packages of a host.
func (f *Fleet) Upgrade(i int, n int64) { f.hosts[i].changed.Add(n) }

func (h *host) sum(what string) string {
	d := sha256.Sum256([]byte(h.name + what))
	return hex.EncodeToString(d[:])
}

func (h *host) machine() agent.Machine {
	m := h.sum("mac")
	return agent.Machine{ID: h.sum("machine")[:32], Serial: strings.ToUpper(h.sum("serial")[:10]), Boot: h.sum("boot")[:32], MACs: []string{"52:54:00:" + m[0:2] + ":" + m[2:4] + ":" + m[4:6]}}
}

// release is 9 for two thirds of the hosts and 10 for the rest.
func (h *host) release() string {
	if h.n%3 == 2 {
		return "10"
	}
	return "9"
}

func pick(n int, of ...string) string { return of[n%len(of)] }

// facts are the facts of a host, flat.
func (h *host) facts() map[string]string {
	rel := h.release()
	m := h.machine()
	kernel := map[string]string{"9": "5.14.0-%d.el9.x86_64", "10": "6.12.0-%d.el10.x86_64"}[rel]
	kernel = fmt.Sprintf(kernel, 500+h.n%7*5)
	ip := fmt.Sprintf("10.%d.%d.%d", h.n/62500%200, h.n/250%250, h.n%250+1)
	f := map[string]string{
		"id": h.name, "host": h.name, "fqdn": h.name + ".sim.example", "domain": "sim.example", "nodename": h.name, "localhost": h.name,
		"os": "CentOS Stream", "os_family": "RedHat", "osfullname": "CentOS Stream", "osrelease": rel, "osmajorrelease": rel, "osrelease_info:0": rel, "osfinger": "CentOS Stream-" + rel, "oscodename": "CentOS Stream " + rel,
		"kernel": "Linux", "kernelrelease": kernel, "cpuarch": "x86_64", "osarch": "x86_64", "num_cpus": pick(h.n, "4", "8", "16", "32"), "mem_total": pick(h.n, "7802", "15741", "31813", "64110"), "swap_total": "4095",
		"cpu_model": pick(h.n, "Intel Xeon Processor (Icelake)", "AMD EPYC 7763 64-Core Processor"), "virtual": pick(h.n, "kvm", "kvm", "physical"), "manufacturer": pick(h.n, "QEMU", "QEMU", "Dell Inc."), "productname": pick(h.n, "Standard PC (Q35 + ICH9, 2009)", "Standard PC (Q35 + ICH9, 2009)", "PowerEdge R650"),
		"serialnumber": m.Serial, "machine_id": m.ID, "uuid": m.ID[:8] + "-" + m.ID[8:12] + "-" + m.ID[12:16] + "-" + m.ID[16:20] + "-" + m.ID[20:32], "init": "systemd", "systemd:version": pick(h.n%3, "252", "252", "257"),
		"selinux:enabled": "True", "selinux:enforced": pick(h.n%50, append([]string{"Permissive"}, repeat("Enforcing", 49)...)...), "saltversion": "3006.0", "saltversioninfo:0": "3006", "saltversioninfo:1": "0", "shell": "/bin/sh",
		"ipv4:0": "127.0.0.1", "ipv4:1": ip, "ip4_interfaces:eth0:0": ip, "ip4_interfaces:lo:0": "127.0.0.1", "ip_interfaces:eth0:0": ip, "hwaddr_interfaces:eth0": m.MACs[0], "ip4_gw": "10.0.0.1", "timezone": "Europe/Berlin",
		"role": pick(h.n, "web", "app", "db", "cache", "build"), "site": pick(h.n/7, "fra", "ams", "iad"), "boot_time": fmt.Sprint(1_790_000_000 + h.n), "reboot_needed": pick(h.n%20, append([]string{"True"}, repeat("False", 19)...)...),
	}
	for i, flag := range strings.Fields("fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ss ht syscall nx pdpe1gb rdtscp lm constant_tsc rep_good nopl xtopology cpuid pni pclmulqdq ssse3 fma cx16 sse4_1 sse4_2 x2apic movbe popcnt aes xsave avx f16c rdrand hypervisor avx2") {
		f[fmt.Sprintf("cpu_flags:%d", i)] = flag
	}
	return f
}

func repeat(s string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = s
	}
	return out
}

func (h *host) grains() map[string]any {
	out := map[string]any{}
	for k, v := range h.facts() {
		if !strings.Contains(k, ":") {
			out[k] = v
		}
	}
	return out
}

// inventory is everything that a host tells.
func (h *host) inventory(packages int) agent.Inventory {
	v := agent.Inventory{Items: map[string]map[string]string{
		wire.KindFact:    h.facts(),
		wire.KindService: {"sshd": "running", "chronyd": "running", "crond": "running", "firewalld": "running", "NetworkManager": "running", "rsyslog": "running", "auditd": "running", "dbus-broker": "running", "systemd-journald": "running", "systemd-udevd": "running"},
		wire.KindPort:    {"tcp/22": "sshd", "udp/323": "chronyd"},
	}}
	up := int(h.changed.Load())
	rel := "el" + h.release()
	for i := range packages {
		// Hosts differ a little: one in ten has another version of a package.
		minor := 1 + i%17
		if (h.n*31+i*17)%10 == 0 {
			minor++
		}
		if i < up {
			minor += 10 + up
		}
		v.Packages = append(v.Packages, fmt.Sprintf("%s-%d.%d-%d.%s.%s", packageName(i), 1+i%5, minor, 1+i%9, rel, pick(i, "x86_64", "x86_64", "noarch")))
	}
	return v
}

// packageName names the i-th package: some that people ask for, then made-up ones.
func packageName(i int) string {
	known := strings.Fields("openssl-libs openssl bash glibc systemd kernel-core dnf rpm openssh-server curl zlib sudo python3 coreutils")
	if i < len(known) {
		return known[i]
	}
	return fmt.Sprintf("package-%04d", i)
}

// registry is what simulated hosts can do.
func registry(h *host) *module.Registry {
	param := func(name string, t module.Type, def any) module.Param {
		return module.Param{Name: name, Type: t, Default: def}
	}
	return module.NewRegistry([]module.Function{
		{Name: "test.ping", Doc: "Answers.", Reads: true, Run: func(context.Context, *module.Call) (any, error) { return true, nil }},
		{Name: "test.echo", Doc: "Gives back a text.", Params: []module.Param{{Name: "text", Required: true}}, Reads: true, Run: func(_ context.Context, c *module.Call) (any, error) { return c.Any("text"), nil }},
		{Name: "test.sleep", Doc: "Waits.", Params: []module.Param{param("length", module.Num, 1.0)}, Run: func(ctx context.Context, c *module.Call) (any, error) {
			select {
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-time.After(time.Duration(c.Num("length") * float64(time.Second))):
				return true, nil
			}
		}},
		{Name: "test.fill", Doc: "Gives a text of a length.", Params: []module.Param{param("length", module.Int, int64(10))}, Reads: true, Run: func(_ context.Context, c *module.Call) (any, error) {
			return strings.Repeat("x", int(min(max(c.Int("length"), 0), 64<<20))), nil
		}},
		{Name: "grains.items", Doc: "The facts.", Reads: true, Run: func(context.Context, *module.Call) (any, error) { return h.grains(), nil }},
		{Name: "grains.get", Doc: "A fact.", Params: []module.Param{{Name: "key", Type: module.Str, Required: true}, {Name: "default"}}, Reads: true, Run: func(_ context.Context, c *module.Call) (any, error) {
			if v, ok := h.facts()[c.Str("key")]; ok {
				return v, nil
			}
			return c.Any("default"), nil
		}},
		{Name: "sim.work", Doc: "Pretends to work for some milliseconds, and fails where it is told to.", Params: []module.Param{param("ms", module.Int, int64(5))}, Run: func(ctx context.Context, c *module.Call) (any, error) {
			n := h.flying.Add(1)
			defer h.flying.Add(-1)
			for most := h.most.Load(); n > most && !h.most.CompareAndSwap(most, n); most = h.most.Load() {
				continue
			}
			h.ran.Add(1)
			d := time.Duration(rand.Int64N(c.Int("ms")+1)+h.slow.Load()) * time.Millisecond //nolint:gosec // no secret
			select {
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-time.After(d):
			}
			if h.fails.Load() {
				c.RC = 1
			}
			return h.name, nil
		}},
		{Name: "cmd.run", Doc: "Pretends to run a command line: prints it.", Params: []module.Param{{Name: "cmd", Type: module.Str, Required: true}}, Extra: true, Run: func(_ context.Context, c *module.Call) (any, error) { return c.Str("cmd"), nil }},
		{Name: "cmd.run_all", Doc: "Pretends to run a command line.", Params: []module.Param{{Name: "cmd", Type: module.Str, Required: true}}, Extra: true, Run: func(_ context.Context, c *module.Call) (any, error) {
			return map[string]any{"pid": int64(1), "retcode": int64(0), "stdout": c.Str("cmd"), "stderr": ""}, nil
		}},
	})
}
