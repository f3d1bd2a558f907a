package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"drover/internal/app/agentd"
	"drover/internal/auth"
	"drover/internal/build"
	"drover/internal/build/worker"
	"drover/internal/cli"
	"drover/internal/compat/salt"
	saltwords "drover/internal/compat/salt/words"
	"drover/internal/distgit"
	"drover/internal/durable"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/fleet"
	"drover/internal/job"
	"drover/internal/prov"
	"drover/internal/release"
	"drover/internal/repo"
	"drover/internal/repo/commands"
	"drover/internal/sign"
	"drover/internal/sign/signer"
	signwire "drover/internal/sign/wire"
	"drover/internal/teststream"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
)

// Version of drover, set by the build.
var Version = "devel" //nolint:gochecknoglobals // -ldflags -X writes it

// line is the whole command line.
type line struct {
	URL    string `name:"url" env:"DROVER_URL" help:"Server. Without it: the one you logged in to, else http://127.0.0.1:7280."`
	CA     string `name:"ca" env:"DROVER_CA" help:"File of a CA to trust beside the system's."`
	Output string `short:"o" default:"table" enum:"table,json,yaml" help:"Output form: table, json or yaml."`

	Server  serverVerb   `cmd:"" help:"Run the server." example:"drover server --dir /srv/drover\ndrover server --listen 0.0.0.0:7280 --name drover.example --db postgres://drover@db/drover"`
	Builder builderVerbs `cmd:"" help:"Run a builder, or look after builders."`
	Signer  signerVerbs  `cmd:"" help:"Run the signer."`
	Site    siteVerb     `cmd:"" help:"Run a site: a cache of channels at another location." example:"drover site --centre https://drover.example:7280 --dir /srv/site --listen 0.0.0.0:8080 --channel stream-10/prod --ahead"`
	Login   loginVerb    `cmd:"" help:"Remember a server and a token." example:"drover login https://drover.example:7280\ndrover login http://127.0.0.1:7280 --token-file token"`
	Logout  logoutVerb   `cmd:"" help:"Forget the server and the token." example:"drover logout --revoke"`
	Doctor  doctorVerb   `cmd:"" help:"Name what this machine lacks." example:"drover doctor --dir /srv/drover"`
	Status  statusVerb   `cmd:"" help:"What runs, what waits." example:"drover status"`

	Run   job.RunVerb      `cmd:"" help:"Run a function, or after -- a command line, on hosts." example:"drover run '*' test.ping\ndrover run -G 'os:CentOS*' pkg.version openssl\ndrover run 'web*' -b 10% --failhard service.restart nginx\ndrover run web-01 -- uptime"`
	Job   job.Verbs        `cmd:"" help:"Jobs: what ran where, and what became of it."`
	Host  fleet.HostVerbs  `cmd:"" help:"Hosts: who is in the fleet, what they have, since when."`
	Group fleet.GroupVerbs `cmd:"" help:"Groups of hosts."`
	Bus   busVerbs         `cmd:"" help:"On the server: the bus of the agents."`
	React job.ReactVerbs   `cmd:"" help:"What follows when something happens: a job or a call."`
	Agent agentd.Verbs     `cmd:"" help:"On a host: the agent."`

	Pkg struct {
		distgit.Verbs `embed:""`
		Build         build.Submit `cmd:"" help:"Build a package; the same as: drover build submit." example:"drover pkg build hello --target stream-10 --follow"`
	} `cmd:"" help:"Packages: repositories and sources."`
	Build struct {
		build.Verbs `embed:""`
		Shell       shellVerb `cmd:"" help:"On a builder: open a shell in the root of a failed task." example:"drover build shell 42"`
	} `cmd:"" help:"Builds."`
	Task     build.TaskVerbs        `cmd:"" help:"Tasks."`
	Tag      release.TagVerbs       `cmd:"" help:"Tags: sets of builds."`
	Target   release.TargetVerbs    `cmd:"" help:"Build targets."`
	Sign     sign.Verbs             `cmd:"" help:"Signing keys."`
	Snapshot commands.SnapshotVerbs `cmd:"" help:"Snapshots: immutable sets of packages."`
	Channel  commands.ChannelVerbs  `cmd:"" help:"Channels: pointers to snapshots that hosts follow."`
	Search   commands.SearchVerb    `cmd:"" help:"Search packages by name, file, provided name or changelog." example:"drover search '*/sshd_config' --channel stream-10/prod --in file"`
	RPM      commands.RPMVerb       `cmd:"" name:"rpm" help:"Which versions of a package the channels have." example:"drover rpm openssl-libs"`
	Line     commands.LineVerbs     `cmd:"" help:"Lines of channels that a change goes through: dev, test, prod."`
	Mirror   commands.MirrorVerbs   `cmd:"" help:"Mirrors of upstream repositories."`
	Why      prov.Verb              `cmd:"" help:"Where a file or package came from: commit, pusher, builder, signer." example:"drover why /usr/bin/hello\ndrover why hello-1.0-1.el10.x86_64"`
	Events   event.Verb             `cmd:"" help:"The ledger." example:"drover events --follow\ndrover events --kind build. --subject build/7"`
	Audit    event.AuditVerbs       `cmd:"" help:"Prove that the ledger was not changed."`
	Blob     blobVerbs              `cmd:"" help:"The stored bytes."`
	Auth     auth.Verbs             `cmd:"" help:"People, tokens and tickets."`
	Dev      struct {
		Teststream teststream.Verb `cmd:"" help:"Make a small RPM distribution from Debian's packages." example:"drover dev teststream /srv/teststream\ndrover dev teststream --set boot /srv/machines"`
		Fleet      fleetVerb       `cmd:"" help:"Simulate hosts, each with a key and a connection of its own." example:"drover dev fleet 100\ndrover dev fleet 3000 --url https://drover.example:7280"`
		Demo       demoVerb        `cmd:"" help:"From a git push to an installed package, on this machine." example:"drover dev demo --once"`
	} `cmd:"" help:"For tests and demonstrations."`
	Version versionVerb `cmd:"" help:"Print the version." example:"drover version"`

	SaltKey salt.KeyVerb `cmd:"" name:"salt-key" hidden:"" help:"What salt-key does; salt, salt-call and salt-run are understood too." example:"drover salt-key --list-all\ndrover salt-key --accept web-01"`
}

// Main runs a command line and returns the exit code.
func Main(ctx context.Context, args []string, in io.Reader, out, errw io.Writer) int {
	args, err := salted(args)
	if err != nil {
		fault.Print(errw, "drover", err)
		return 2
	}
	var l line
	exit := -1
	p, err := parser(&l, out, errw, func(c int) { exit = c })
	if err != nil {
		fmt.Fprintln(errw, "drover:", err)
		return 1
	}
	k, err := p.Parse(shellOf(args))
	if exit >= 0 {
		return exit
	}
	if err != nil {
		cmd := "drover"
		var pe *kong.ParseError
		if errors.As(err, &pe) && pe.Context != nil {
			for _, t := range pe.Context.Path {
				if t.Command != nil {
					cmd += " " + t.Command.Name
				}
			}
		}
		fmt.Fprintf(errw, "drover: %v\n  see `%s --help`\n  (usage)\n", err, cmd)
		return 2
	}
	e := &cli.Env{Ctx: ctx, In: in, Out: out, Err: errw, Format: l.Output, Version: Version}
	if f, ok := errw.(*os.File); ok {
		e.Terminal = term.IsTerminal(int(f.Fd()))
	}
	base, token := remembered(l.URL)
	if l.CA == "" && l.URL == "" && k.Command() != "site" { // whose centre need not be the server of the login
		l.CA = readLogin().CA
	}
	l.URL = base
	if e.Client, err = client(base, token, l.CA); err == nil {
		err = k.Run(e, &l, &agentd.Env{Ctx: ctx, In: in, Out: out, Err: errw, Version: Version, Log: logger(errw, false)})
	}
	if err == nil {
		return 0
	}
	switch { // these have said what there is to say
	case errors.Is(err, job.ErrPartly):
		return 3
	case errors.Is(err, job.ErrFailed):
		return 1
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return 1
	}
	fault.Print(errw, "drover", err)
	return fault.ExitCode(err)
}

// salted makes drover's command line of one of Salt's.
func salted(args []string) ([]string, error) {
	name, rest, ok := saltwords.Command(args)
	if !ok {
		return args, nil
	}
	return saltwords.Translate(name, rest)
}

// shellOf makes one word of what follows "--" behind `drover run TARGET`: a command line of the
// shell, which is given as it is when it is one word, and else quoted so that it stays these words.
func shellOf(args []string) []string {
	i := slices.Index(args, "--")
	if i < 0 || !slices.Contains(args[:i], "run") || i == len(args)-1 {
		return args
	}
	line := args[i+1]
	if len(args) > i+2 {
		var words []string
		for _, w := range args[i+1:] {
			words = append(words, cli.Quote(w))
		}
		line = strings.Join(words, " ")
	}
	return append(slices.Clone(args[:i]), "--shell="+line)
}

// parser makes the parser of the command line.
func parser(l *line, out, errw io.Writer, exit func(int)) (*kong.Kong, error) {
	p, err := kong.New(l, kong.Name("drover"), kong.Description("Builds, ships and runs fleets of CentOS Stream machines.\n\nExamples:\n  drover server --dir /srv/drover\n  drover pkg clone hello\n  drover pkg build hello --target stream-10 --follow\n  drover why /usr/bin/hello"),
		kong.Writers(out, errw), kong.Exit(exit), kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
	if err == nil {
		examples(p.Model.Node)
	}
	return p, err
}

// examples shows the tag "example" of each verb, a command line a line, in its help.
func examples(n *kong.Node) {
	for _, c := range n.Children {
		examples(c)
		if ex := c.Tag.Get("example"); ex != "" {
			c.Detail = "Example:\n\n  " + strings.ReplaceAll(ex, "\n", "\n  ")
		}
	}
}

// login is what `drover login` remembers.
type login struct {
	URL   string `yaml:"url"`
	Token string `yaml:"token"`
	CA    string `yaml:"ca,omitempty"`
}

func loginFile() string {
	d, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	return filepath.Join(d, "drover", "login.yaml")
}

func readLogin() (l login) {
	b, err := os.ReadFile(loginFile())
	if err == nil {
		_ = yaml.Unmarshal(b, &l) // a file that cannot be read is as none
	}
	return l
}

// remembered is the server and token to use: of the environment, else of the login. A token
// goes only to the server it is of.
func remembered(base string) (string, string) {
	l := readLogin()
	if base == "" {
		base = l.URL
	}
	if base == "" {
		base = "http://127.0.0.1:7280"
	}
	if t := os.Getenv("DROVER_TOKEN"); t != "" {
		return base, t
	}
	if strings.TrimSuffix(l.URL, "/") == strings.TrimSuffix(base, "/") {
		return base, l.Token
	}
	return base, ""
}

type loginVerb struct {
	Server    string `arg:"" help:"URL of the server."`
	TokenFile string `default:"-" help:"File of the token; - asks for it." type:"path"`
}

// Run checks a token and remembers it.
func (v loginVerb) Run(e *cli.Env, l *line) error {
	if u, err := url.Parse(v.Server); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fault.Invalid("url", "%q is no URL of a server", v.Server)
	}
	var b []byte
	var err error
	f, isFile := e.In.(*os.File)
	switch {
	case filepath.Base(v.TokenFile) != "-":
		b, err = os.ReadFile(v.TokenFile)
	case isFile && term.IsTerminal(int(f.Fd())):
		fmt.Fprint(e.Err, "token: ")
		b, err = term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(e.Err)
	default:
		b, err = io.ReadAll(io.LimitReader(e.In, 1000))
	}
	if err != nil {
		return fault.Invalid("token", "the token cannot be read").Wrap(err)
	}
	lg := login{URL: strings.TrimSuffix(v.Server, "/"), Token: strings.TrimSpace(string(b)), CA: l.CA}
	c, err := client(lg.URL, lg.Token, l.CA)
	if err != nil {
		return err
	}
	var who map[string]any
	if err := c.Call(e.Ctx, "GET", "/api/v1/whoami", nil, &who); err != nil {
		return err
	}
	y, err := yaml.Marshal(lg)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(loginFile()), 0o700); err != nil {
		return err
	}
	if err := durable.WriteFile(loginFile(), y, 0o600); err != nil {
		return err
	}
	e.Say("logged in to %s as %v", lg.URL, who["name"])
	return nil
}

type logoutVerb struct {
	Revoke bool `help:"End the token on the server too, for every machine that uses it."`
}

// Run forgets the login.
func (v logoutVerb) Run(e *cli.Env) error {
	if v.Revoke {
		var who struct{ Token int64 }
		if err := e.Client.Call(e.Ctx, "GET", "/api/v1/whoami", nil, &who); err != nil {
			return err
		}
		if who.Token == 0 {
			return fault.Unauthorized("token_needed", "you are not logged in to %s", e.Client.Base)
		}
		if err := e.Client.Call(e.Ctx, "DELETE", fmt.Sprintf("/api/v1/tokens/%d", who.Token), nil, nil); err != nil {
			return err
		}
	}
	if err := os.Remove(loginFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	e.Say("logged out")
	return nil
}

type serverVerb struct {
	Config        string   `help:"Configuration file." type:"existingfile"`
	Dir           string   `help:"Data directory." type:"path"`
	Listen        string   `help:"Address to serve on; plain HTTP on loopback only."`
	DB            string   `name:"db" help:"Database: a file, or postgres://…"`
	TLS           bool     `name:"tls" help:"Serve TLS on loopback too."`
	Cert          string   `help:"Certificate file." type:"existingfile"`
	Key           string   `help:"Key file of the certificate." type:"existingfile"`
	Name          []string `help:"A name or address that the made certificate is for. Repeatable."`
	Import        []string `help:"Directory below which mirrors may copy from. Repeatable." type:"path"`
	BusListen     string   `help:"Address on which agents keep their connections."`
	BusLeafListen string   `help:"Address on which the buses of sites connect; none when not given."`
	NoBuilder     bool     `help:"Start no local builder."`
	NoSigner      bool     `help:"Start no local signer."`
	Debug         bool     `help:"Log more."`
}

func (v serverVerb) config() (c Config, err error) {
	if v.Config != "" {
		b, err := os.ReadFile(v.Config)
		if err != nil {
			return c, err
		}
		d := yaml.NewDecoder(strings.NewReader(string(b)))
		d.KnownFields(true)
		if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
			return c, fault.Invalid("config", "the configuration %s cannot be read", v.Config).Wrap(err).Fix("see the manual for its keys")
		}
	}
	for _, f := range []struct{ from, to *string }{{&v.Dir, &c.Dir}, {&v.Listen, &c.Listen}, {&v.DB, &c.DB}, {&v.Cert, &c.Cert}, {&v.Key, &c.Key}, {&v.BusListen, &c.BusListen}, {&v.BusLeafListen, &c.BusLeafListen}} {
		if *f.from != "" {
			*f.to = *f.from
		}
	}
	c.TLS = c.TLS || v.TLS
	c.NoBuilder = c.NoBuilder || v.NoBuilder
	c.NoSigner = c.NoSigner || v.NoSigner
	c.Names = append(c.Names, v.Name...)
	c.Imports = append(c.Imports, v.Import...)
	return c, nil
}

// Run runs the server until it is told to stop.
func (v serverVerb) Run(e *cli.Env) error {
	c, err := v.config()
	if err != nil {
		return err
	}
	log := logger(e.Err, v.Debug)
	limits(log)
	s, err := NewServer(e.Ctx, c, e.Version, log)
	if err != nil {
		return err
	}
	defer s.Close()
	s.Greet(e.Out)
	return s.Run(e.Ctx)
}

func logger(w io.Writer, debug bool) *slog.Logger {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
}

type builderVerbs struct {
	Run             builderRun `cmd:"" help:"Run a builder." example:"DROVER_TICKET=drt_… drover builder run --url https://drover.example:7280 --dir /srv/builder"`
	build.HostVerbs `embed:""`
}

type builderRun struct {
	Dir     string   `default:"drover-builder" help:"Directory of layers and caches." type:"path"`
	Arch    []string `help:"An arch to build for; the host's when not given. Repeatable."`
	Channel []string `help:"A channel to take tasks from; default when not given. Repeatable."`
	Slots   int      `help:"Tasks at once; the number of CPUs when not given."`
	Cache   int64    `default:"20" help:"GiB of buildroot layers that are kept."`
	Debug   bool     `help:"Log more."`
}

// Run runs a builder. It joins with the ticket in DROVER_TICKET, once.
func (v builderRun) Run(e *cli.Env, l *line) error {
	c, err := member(e.Ctx, l.URL, l.CA, v.Dir, os.Getenv("DROVER_TICKET"))
	if err != nil && e.Ctx.Err() != nil {
		return nil //nolint:nilerr // it was stopped while it waited for the server
	}
	if err != nil {
		return err
	}
	w, err := worker.New(worker.Config{Client: c, Dir: v.Dir, CA: l.CA, Arches: v.Arch, Channels: v.Channel, Slots: v.Slots, Cache: v.Cache << 30, Log: logger(e.Err, v.Debug), Now: time.Now})
	if err != nil {
		return err
	}
	return w.Run(e.Ctx)
}

type shellVerb struct {
	Task   int64  `arg:"" optional:"" help:"Number of the failed task; without one the kept roots are listed."`
	Dir    string `default:"drover-data/builder" help:"Directory of the builder." type:"path"`
	Remove bool   `help:"Remove the kept root."`
}

// Run opens a shell in a kept root, or lists or removes what is kept.
func (v shellVerb) Run(e *cli.Env) error {
	w, err := worker.New(worker.Config{Dir: v.Dir, Log: logger(e.Err, false), Now: time.Now})
	if err != nil {
		return err
	}
	if v.Remove {
		return w.Forget(v.Task)
	}
	if v.Task != 0 {
		return w.Shell(e.Ctx, v.Task, os.Stdin)
	}
	kept, err := w.Kept()
	if err != nil {
		return err
	}
	return e.Show(kept, func(out io.Writer) {
		cli.Table(out, "TASK BYTES SINCE", func(row func(...any)) {
			for _, k := range kept {
				row(k.Task, k.Bytes, k.Since.Format(time.DateTime))
			}
		})
	})
}

type signerVerbs struct {
	Run    signerRun    `cmd:"" help:"Run the signer." example:"DROVER_TICKET=drt_… drover signer run --url https://drover.example:7280 --dir /srv/signer"`
	Create signerCreate `cmd:"" help:"On the signer's machine: make a key. A signer that runs takes it up at once." example:"drover signer create stream-10 --dir /srv/signer --tag 'stream-10*'"`
	Verify signerVerify `cmd:"" help:"Check that no line of the signer's log was changed." example:"drover signer verify --dir /srv/signer"`
}

type signerRun struct {
	Dir        string `default:"drover-signer" help:"Directory of keys, policy and log." type:"path"`
	AcceptKeys bool   `help:"Make keys that the server's admins ask for."`
	Debug      bool   `help:"Log more."`
}

// Run runs the signer. It joins with the ticket in DROVER_TICKET, once.
func (v signerRun) Run(e *cli.Env, l *line) error {
	c, err := member(e.Ctx, l.URL, l.CA, v.Dir, os.Getenv("DROVER_TICKET"))
	if err != nil && e.Ctx.Err() != nil {
		return nil // it was stopped while it waited for the server
	}
	if err != nil {
		return err
	}
	s, err := signer.New(signer.Config{Client: c, Dir: v.Dir, AcceptKeys: v.AcceptKeys, Now: time.Now, Log: logger(e.Err, v.Debug)})
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // every line was synced before it counted
	return s.Run(e.Ctx)
}

type signerCreate struct {
	Name    string   `arg:"" help:"Name of the key."`
	Dir     string   `default:"drover-signer" help:"Directory of the signer." type:"path"`
	Algo    string   `default:"rsa4096" enum:"rsa4096,ed25519" help:"rsa4096 or ed25519."`
	Purpose string   `default:"rpm" enum:"rpm,attest" help:"rpm for packages and repositories, attest for statements."`
	Tag     []string `required:"" help:"Pattern of tags that it signs for. Repeatable."`
}

// Run makes a key in the signer's directory; a signer that runs takes it up.
func (v signerCreate) Run(e *cli.Env) error {
	err := signer.Create(v.Dir, signwire.NewKey{Name: v.Name, Algo: v.Algo, Purpose: v.Purpose, Tags: v.Tag}, time.Now)
	if err == nil {
		e.Say("made %s; its policy is in %s", v.Name, filepath.Join(v.Dir, v.Name+".yaml"))
	}
	return err
}

type signerVerify struct {
	Dir string `default:"drover-signer" help:"Directory of the signer." type:"path"`
}

// Run verifies the signer's log.
func (v signerVerify) Run(e *cli.Env) error {
	head, n, err := signer.VerifyLog(filepath.Join(v.Dir, "signed.log"))
	if err != nil {
		return err
	}
	return e.Show(map[string]any{"head": head, "bytes": n}, func(w io.Writer) { fmt.Fprintf(w, "clean: %d bytes, head %s\n", n, head) })
}

type versionVerb struct{}

// Run prints the version.
func (versionVerb) Run(e *cli.Env) error {
	_, err := fmt.Fprintln(e.Out, "drover", e.Version)
	return err
}

type statusVerb struct{}

// Run prints the overview.
func (statusVerb) Run(e *cli.Env) error {
	var d struct {
		Builds   []build.Build
		Queue    []build.Task
		Builders []build.BuilderInfo
		Channels []repo.Channel
		Signing  sign.Status
	}
	if err := e.Client.Call(e.Ctx, "GET", "/", nil, &d); err != nil {
		return err
	}
	return e.Show(d, func(w io.Writer) {
		fmt.Fprintf(w, "%d tasks wait or run, %d builders, %d channels\n%s\n\n", len(d.Queue), len(d.Builders), len(d.Channels), d.Signing)
		cli.Table(w, "BUILD NVR STATE TARGET BY", func(row func(...any)) {
			for _, b := range d.Builds {
				n := b.NVR
				if n == "" {
					n = b.Package
				}
				row(b.ID, n, b.State, b.Target, b.Owner)
			}
		})
	})
}
