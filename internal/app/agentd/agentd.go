package agentd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"drover/internal/agent"
	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/job/wire"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"
)

// Env is what a verb runs in.
type Env struct {
	Ctx     context.Context
	In      io.Reader
	Out     io.Writer
	Err     io.Writer
	Version string
	Log     *slog.Logger
}

// Config is the agent's configuration file, YAML. Every key has a default that serves.
type Config struct {
	// Server is the URL of the server.
	Server string `yaml:"server"`
	// Pin is the server's key, as `drover host pin` prints it.
	Pin string `yaml:"pin,omitempty"`
	// CA is a file of a CA to trust beside the system's.
	CA string `yaml:"ca,omitempty"`
	// Bus are URLs of the bus of a site, instead of the server's: tls://site.example:7281.
	Bus []string `yaml:"bus,omitempty"`
	// Name is this host's name; its fully qualified name when not given.
	Name string `yaml:"name,omitempty"`
	// Dir is where the agent keeps its key and its state.
	Dir string `yaml:"dir,omitempty"`
	// Facts is a directory of custom facts: YAML and JSON files, and programs that print JSON.
	Facts string `yaml:"facts,omitempty"`
	// Modules is a directory of external modules: programs that speak JSON.
	Modules string `yaml:"modules,omitempty"`
	// Mine are functions whose results this host shares with others: NAME to a list of arguments.
	Mine map[string][]any `yaml:"mine,omitempty"`
	// Policy is what this host does not let be done to it.
	Policy agent.Policy `yaml:"policy,omitempty"`
	// Schedule is what the agent does by itself from time to time.
	Schedule map[string]agent.Scheduled `yaml:"schedule,omitempty"`
	// Beacons are what the agent watches and tells of.
	Beacons agent.Beacons `yaml:"beacons,omitempty"`
}

// Verbs is the command line of the agent.
type Verbs struct {
	Run    runVerb    `cmd:"" help:"Run the agent." example:"drover agent run\ndrover agent run --config ./agent.yaml"`
	Enrol  enrolVerb  `cmd:"" help:"Tell the agent which server it is of, and be let in." example:"DROVER_TICKET=dre_… drover agent enrol https://drover.example:7280 --pin SHA256:…"`
	Call   callVerb   `cmd:"" help:"Call a function on this host, without a server." example:"drover agent call test.ping\ndrover agent call pkg.version bash --out json"`
	Return returnVerb `cmd:"" hidden:"" help:"Put the old agent back, unless the new one was welcomed." example:"drover agent return --dir /var/lib/drover-agent"`
	Facts  factsVerb  `cmd:"" help:"Print the facts of this host." example:"drover agent facts\ndrover agent facts osfinger"`
}

type common struct {
	Config string `default:"/etc/drover/agent.yaml" help:"Configuration file." type:"path"`
}

// read reads the configuration; a file that is not there is an empty one.
func (c common) read() (Config, error) {
	cfg := Config{Dir: "/var/lib/drover-agent", Facts: "/etc/drover/facts.d", Modules: "/etc/drover/modules.d"}
	b, err := os.ReadFile(c.Config)
	if errors.Is(err, fs.ErrNotExist) {
		return cfg, nil
	}
	if err != nil {
		return cfg, fault.Unavailable("agent_config", "the configuration %s cannot be read", c.Config).Wrap(err).Fix("run as root")
	}
	d := yaml.NewDecoder(strings.NewReader(string(b)))
	d.KnownFields(true)
	if err := d.Decode(&cfg); err != nil && !errors.Is(err, io.EOF) {
		return cfg, fault.Invalid("agent_config", "the configuration %s cannot be read", c.Config).Wrap(err).Fix("see the manual for its keys")
	}
	for name, s := range cfg.Schedule {
		if err := s.Check(name); err != nil {
			return cfg, err
		}
	}
	return cfg, nil
}

// policy gives the policy of the file as it is at the moment. A file that cannot be read lets
// nothing be done but what tells that the host is there: what it forbade is not known.
func (c common) policy() func() agent.Policy {
	var mu sync.Mutex // guards what follows
	var was time.Time
	var p agent.Policy
	first := true
	return func() agent.Policy {
		mu.Lock()
		defer mu.Unlock()
		st, err := os.Stat(c.Config)
		if errors.Is(err, fs.ErrNotExist) {
			return agent.Policy{}
		}
		if err == nil && !first && st.ModTime().Equal(was) {
			return p
		}
		cfg, rerr := c.read()
		if err != nil || rerr != nil {
			return agent.Policy{Blackout: true}
		}
		was, p, first = st.ModTime(), cfg.Policy, false
		return p
	}
}

type runVerb struct {
	common
	Debug bool `help:"Log more."`
}

// Run runs the agent.
func (v runVerb) Run(e *Env) error {
	cfg, err := v.read()
	if err != nil {
		return err
	}
	if cfg.Server == "" {
		return fault.Invalid("agent_config", "%s names no server", v.Config).Fix("drover-agent enrol URL --pin PIN, or write server: URL there")
	}
	a, err := assemble(e, cfg, v.common, "")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(e.Ctx)
	defer cancel()
	return a.Run(ctx)
}

type enrolVerb struct {
	common
	Server string        `arg:"" help:"URL of the server."`
	Pin    string        `help:"The server's key, as drover host pin prints it."`
	CA     string        `name:"ca-file" help:"File of a CA to trust beside the system's." type:"existingfile"`
	Name   string        `help:"Name of this host; its fully qualified name when not given."`
	Ticket string        `env:"DROVER_TICKET" help:"A ticket; better in the environment, since arguments are for all to see."`
	Wait   time.Duration `default:"10m" help:"How long to wait to be let in."`
}

// Run writes the configuration and enrols once.
func (v enrolVerb) Run(e *Env) error {
	cfg, err := v.read()
	if err != nil {
		return err
	}
	cfg.Server = strings.TrimSuffix(v.Server, "/")
	for _, x := range []struct{ from, to *string }{{&v.Pin, &cfg.Pin}, {&v.CA, &cfg.CA}, {&v.Name, &cfg.Name}} {
		if *x.from != "" {
			*x.to = *x.from
		}
	}
	a, err := assemble(e, cfg, v.common, v.Ticket)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(e.Ctx, v.Wait)
	defer cancel()
	if err := a.Enrol(ctx); err != nil {
		return err
	}
	y, err := yaml.Marshal(cfg)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(v.Config), 0o755); err != nil {
		return err
	}
	if err := durable.WriteFile(v.Config, y, 0o600); err != nil {
		return fault.Unavailable("agent_config", "the configuration %s cannot be written", v.Config).Wrap(err)
	}
	fmt.Fprintf(e.Err, "this host is let in as %s; start the agent: systemctl enable --now drover-agent\n", a.Name())
	return nil
}

type callVerb struct {
	common
	Fun     string        `arg:"" help:"MODULE.FUNCTION."`
	Args    []string      `arg:"" optional:"" help:"Arguments; KEY=VALUE is by name."`
	Out     string        `name:"out" default:"yaml" enum:"yaml,json,txt" help:"yaml, json or txt."`
	Test    bool          `help:"Say what would be done, and do nothing."`
	Local   bool          `help:"As Salt's: it is always local."`
	Timeout time.Duration `short:"t" default:"1h" help:"End it when it takes longer."`
}

// Run calls a function.
func (v callVerb) Run(e *Env) error {
	cfg, err := v.read()
	if err != nil {
		return err
	}
	h := hostOf(e, cfg, nil)
	f, ok := h.Registry.Get(v.Fun)
	if !ok {
		return fault.NotFound("function_unknown", "there is no function %s on this host", v.Fun).Fix("see `drover-agent call sys.list_functions`")
	}
	if v.Test && !f.Reads && !f.Tests {
		return fault.Denied("test_unknown", "%s cannot say what it would do", v.Fun).Fix("it knows no test mode; run it without")
	}
	args, named := wire.Words(v.Args)
	c, err := module.Bind(&h, f, args, named, v.Test)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(e.Ctx, v.Timeout)
	defer cancel()
	out, err := f.Run(ctx, c)
	if err != nil {
		return err
	}
	if err := show(e.Out, v.Out, map[string]any{"local": out}, out); err != nil {
		return err
	}
	if c.RC != 0 {
		return fault.Unavailable("function_failed", "%s failed with return code %d", v.Fun, c.RC)
	}
	return nil
}

func show(w io.Writer, form string, v any, bare any) error {
	if s, ok := bare.(string); ok && form == "txt" {
		fmt.Fprintln(w, s)
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if form != "yaml" {
		fmt.Fprintf(w, "%s\n", b)
		return nil
	}
	var plain any
	if err := yaml.Unmarshal(b, &plain); err != nil {
		return err
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	return errors.Join(enc.Encode(plain), enc.Close())
}

type factsVerb struct {
	common
	Names []string `arg:"" optional:"" help:"Only these."`
}

// Run prints facts.
func (v factsVerb) Run(e *Env) error {
	cfg, err := v.read()
	if err != nil {
		return err
	}
	all, errs := collect(e, cfg)(e.Ctx)
	for _, err := range errs {
		fmt.Fprintln(e.Err, "drover-agent:", err)
	}
	if len(v.Names) > 0 {
		for k := range all {
			if !slices.Contains(v.Names, k) {
				delete(all, k)
			}
		}
	}
	return show(e.Out, "yaml", all, nil)
}

// Main runs a command line of drover-agent and returns the exit code.
func Main(ctx context.Context, version string, args []string, in io.Reader, out, errw io.Writer) int {
	var l struct {
		Verbs   `embed:""`
		Version struct{} `cmd:"" help:"Print the version."`
	}
	exit := -1
	p, err := kong.New(&l, kong.Name("drover-agent"), kong.Description("drover on a host."), kong.Writers(out, errw), kong.Exit(func(c int) { exit = c }), kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
	if err != nil {
		fmt.Fprintln(errw, "drover-agent:", err)
		return 1
	}
	k, err := p.Parse(args)
	if exit >= 0 {
		return exit
	}
	if err != nil {
		fmt.Fprintf(errw, "drover-agent: %v\n  see `drover-agent --help`\n  (usage)\n", err)
		return 2
	}
	if k.Command() == "version" {
		fmt.Fprintln(out, "drover-agent", version)
		return 0
	}
	e := &Env{Ctx: ctx, In: in, Out: out, Err: errw, Version: version, Log: slog.New(slog.NewTextHandler(errw, nil))}
	if err := k.Run(e); err != nil && (!errors.Is(err, context.Canceled) || ctx.Err() == nil) {
		fault.Print(errw, "drover-agent", err)
		return fault.ExitCode(err)
	}
	return 0
}
