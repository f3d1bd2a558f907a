package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/build"
	"drover/internal/build/wire"
	"drover/internal/compat/salt"
	"drover/internal/db"
	"drover/internal/distgit"
	"drover/internal/durable"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/fleet"
	"drover/internal/job"
	"drover/internal/prov"
	"drover/internal/release"
	"drover/internal/repo"
	"drover/internal/repo/mirrors"
	"drover/internal/repo/routes"
	"drover/internal/sign"
	"drover/internal/web"

	"golang.org/x/sys/unix"
)

// Config is the server's configuration file, YAML. Every key has a default that serves.
type Config struct {
	// Dir holds everything that the server keeps: database, blobs, git repositories, keys of
	// the local signer, layers of the local builder. Defaults to "drover-data".
	Dir string `yaml:"dir"`
	// Listen is the address to serve on. Defaults to 127.0.0.1:7280. Plain HTTP is served on
	// loopback addresses only; any other address serves TLS.
	Listen string `yaml:"listen"`
	// DB is the database: a file, or postgres://user@host/name. Defaults to drover.db in dir.
	DB string `yaml:"db"`
	// TLS serves TLS on loopback too.
	TLS bool `yaml:"tls"`
	// Cert and Key are files of a certificate to serve with. Without them a local CA is made
	// in dir/tls, whose ca.pem clients are given as DROVER_CA.
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	// Names are the host names and addresses that the made certificate is for, beside the
	// host's own name and loopback.
	Names []string `yaml:"names"`
	// Imports are directories below which mirrors may copy from. Without them mirrors copy from
	// other servers only.
	Imports []string `yaml:"imports"`
	// BusListen is the address on which agents keep their connections: the one of listen with the
	// next port when not given.
	BusListen string `yaml:"bus_listen"`
	// BusLeafListen is the address on which the buses of sites connect; none when not given.
	BusLeafListen string `yaml:"bus_leaf_listen"`
	// BusURL is an existing NATS cluster to use instead; `drover bus config` prints what its servers
	// need in their configuration.
	BusURL string `yaml:"bus_url"`
	// BusCA is a file of a CA that the cluster's certificates are of.
	BusCA string `yaml:"bus_ca"`
	// BusPublic are the URLs under which agents reach the bus, when they are others than follow
	// from bus_listen and names: tls://drover.example:7281.
	BusPublic []string `yaml:"bus_public"`
	// NoBuilder keeps the server from starting a builder beside itself.
	NoBuilder bool `yaml:"no_builder"`
	// NoSigner keeps the server from starting a signer beside itself.
	NoSigner bool `yaml:"no_signer"`
}

// Server is the whole server, its parts as fields.
type Server struct {
	Config  Config
	Log     *slog.Logger
	DB      *db.DB
	Blobs   *blob.Store
	Auth    *auth.Store
	Git     *distgit.Store
	Build   *build.Store
	Release *release.Store
	Sign    *sign.Store
	Repo    *repo.Store
	Mirrors *mirrors.Store
	Prov    *prov.Store
	Fleet   *fleet.Store
	Jobs    *job.Store
	Web     *web.Server
	URL     string   // where it is served
	CA      string   // file of the CA that its certificate is of, or ""
	Token   string   // the admin's first token, on the first start only
	Logs    *os.File // where the children write theirs; standard error unless it is set before Run

	lock     *os.File // of the data directory
	listener net.Listener
	cert     *tls.Certificate // nil without TLS
	http     *http.Server
	stop     context.CancelFunc
	loops    sync.WaitGroup
}

// schemas is every owner's tables, leaves first.
func schemas() []db.Schema {
	return []db.Schema{event.Schema(), auth.Schema(), distgit.Schema(), build.Schema(), release.Schema(), sign.Schema(), repo.Schema(), prov.Schema(), fleet.Schema(), job.Schema()}
}

// NewServer opens everything and serves; version and log come from the command line.
func NewServer(ctx context.Context, cfg Config, version string, log *slog.Logger) (s *Server, err error) {
	s = &Server{Config: cfg, Log: log, Logs: os.Stderr}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := s.defaults(); err != nil {
		return s, err
	}
	if s.DB, err = db.Open(ctx, s.Config.DB, db.Options{Log: log}); err != nil {
		return s, err
	}
	if err := s.DB.Migrate(ctx, schemas()...); err != nil {
		return s, err
	}
	if s.Blobs, err = blob.Open(filepath.Join(s.Config.Dir, "blobs")); err != nil {
		return s, err
	}
	s.Auth = auth.NewStore(s.DB)
	if s.Git, err = distgit.New(auth.AsSystem(ctx), distgit.Config{DB: s.DB, Blobs: s.Blobs, Dir: filepath.Join(s.Config.Dir, "git"), Log: log}); err != nil {
		return s, err
	}
	s.Release = release.New(s.DB)
	s.Build = build.New(build.Config{DB: s.DB, Blobs: s.Blobs, Git: s.Git, Tags: s.Release, Roots: roots{s}, Dir: filepath.Join(s.Config.Dir, "build"), Log: log})
	s.Sign = sign.New(s.DB, log)
	s.Repo = repo.New(repo.Config{DB: s.DB, Blobs: s.Blobs, Builds: s.Build, Release: s.Release, Signer: packets{s.Sign}, Dir: filepath.Join(s.Config.Dir, "incoming"), Log: log})
	s.Mirrors = mirrors.New(mirrors.Setup{Repo: s.Repo, Secrets: filepath.Join(s.Config.Dir, "secrets"), Imports: s.Config.Imports})
	if _, err := s.Mirrors.Node(); err != nil {
		return s, err
	}
	s.Prov = prov.New(prov.Config{DB: s.DB, Builds: s.Build, Git: s.Git, Repo: s.Repo, Sign: s.Sign, Log: log})
	if s.Fleet, err = fleet.New(ctx, fleet.Config{DB: s.DB, Dir: filepath.Join(s.Config.Dir, "fleet"), Log: log, Version: version}); err != nil {
		return s, err
	}
	s.Repo.Hosts = s.Fleet
	s.Jobs = job.New(job.Config{DB: s.DB, Fleet: s.Fleet, Blobs: s.Blobs, Log: log})
	s.Jobs.Listen()
	s.Web = web.New(web.Config{Version: version, Log: log, Authenticate: s.Fleet.Authenticate(s.Auth.Request)})
	s.routes()
	(&salt.API{Auth: s.Auth, Fleet: s.Fleet, Jobs: s.Jobs, Blobs: s.Blobs, Version: version}).Routes(s.Web)
	if err := s.firstToken(ctx); err != nil {
		return s, err
	}
	if err := s.listen(ctx); err != nil {
		return s, err
	}
	return s, s.openBus(ctx)
}

// alone makes sure that no other server works in the directory. The kernel lets go of the
// lock with the process, however it ends.
func (s *Server) alone() error {
	f, err := os.OpenFile(filepath.Join(s.Config.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fault.Unavailable("dir", "the data directory cannot be used").Wrap(err).Fix("give another with --dir, or the right to write there")
	}
	s.lock = f
	// A command that the one before has just started holds the lock too, until it runs: a moment.
	for n := 0; n < 20; n++ {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		pid, _ := io.ReadAll(io.LimitReader(f, 20))
		return fault.Conflict("dir_busy", "another server runs on %s: process %s", s.Config.Dir, strings.TrimSpace(string(pid))).Fix("stop it, or give this one a directory of its own with --dir")
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, os.Getpid())
	return durable.Full(s.Config.Dir, err)
}

// firstToken makes the first admin's token. It lies in a file until somebody was shown it.
func (s *Server) firstToken(ctx context.Context) error {
	token, err := s.Auth.Bootstrap(ctx, func(secret string) error { return durable.WriteFile(s.tokenFile(), []byte(secret), 0o600) })
	if err != nil || token != "" {
		s.Token = token
		return err
	}
	b, err := os.ReadFile(s.tokenFile()) // an earlier start was killed before it could show it
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	s.Token = string(b)
	return err
}

func (s *Server) tokenFile() string { return filepath.Join(s.Config.Dir, "first-token") }

func (s *Server) defaults() error {
	c := &s.Config
	if c.Dir == "" {
		c.Dir = "drover-data"
	}
	var err error
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fault.Unavailable("dir", "the data directory cannot be made").Wrap(err).Fix("give another with --dir, or the right to write there")
	}
	if err := s.alone(); err != nil {
		return err
	}
	if c.Listen == "" {
		c.Listen = "127.0.0.1:7280"
	}
	if c.DB == "" {
		c.DB = filepath.Join(c.Dir, "drover.db")
	}
	if (c.Cert == "") != (c.Key == "") {
		return fault.Invalid("tls", "cert and key go together")
	}
	return nil
}

func (s *Server) routes() {
	s.Web.Menu("Overview", "/")
	s.Web.Menu("Packages", "/packages")
	s.Web.Menu("Builds", "/builds")
	s.Web.Menu("Tasks", "/tasks")
	s.Web.Menu("Tags", "/tags")
	s.Web.Menu("Snapshots", "/snapshots")
	s.Web.Menu("Lines", "/lines")
	s.Web.Menu("Search", "/search")
	s.Web.Menu("Fleet", "/fleet")
	s.Web.Menu("Jobs", "/jobs")
	s.Web.Menu("Events", "/events")
	s.Auth.Routes(s.Web)
	event.Routes(s.Web, s.DB, auth.Need)
	s.Git.Routes(s.Web, func(ctx context.Context, name string) (any, error) {
		return s.Build.List(ctx, build.Filter{Package: strings.TrimPrefix(name, "rpms/"), Limit: 20})
	})
	s.Build.Routes(s.Web)
	s.Release.Routes(s.Web, s.Build)
	s.Sign.Routes(s.Web)
	routes.Add(s.Web, s.Repo, s.Mirrors)
	s.Prov.Routes(s.Web)
	s.Fleet.Routes(s.Web, func(ctx context.Context, host string) (any, error) {
		return s.Jobs.List(ctx, job.Filter{Host: host, Limit: 12})
	})
	s.Fleet.Gauges(s.Web)
	s.Jobs.Routes(s.Web)
	s.auditBlobs()
	s.overview()
}

// listen opens the address and decides on TLS.
func (s *Server) listen(ctx context.Context) error {
	host, _, err := net.SplitHostPort(s.Config.Listen)
	if err != nil {
		return fault.Invalid("listen", "%q is no address to listen on", s.Config.Listen).Fix("use HOST:PORT")
	}
	ip := net.ParseIP(host)
	loopback := host == "localhost" || ip != nil && ip.IsLoopback()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", s.Config.Listen)
	if err != nil {
		return fault.Unavailable("listen", "%s cannot be listened on", s.Config.Listen).Wrap(err).Fix("another server may run already; give another address with --listen")
	}
	s.listener = l
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return err
	}
	if loopback && !s.Config.TLS && s.Config.Cert == "" {
		s.URL = "http://" + net.JoinHostPort(host, port)
		return nil
	}
	name, _ := os.Hostname()
	cert, ca, err := certificate(s.Config, append([]string{"localhost", "127.0.0.1", "::1", name}, s.Config.Names...))
	if err != nil {
		return err
	}
	s.CA = ca
	if host == "" || ip != nil && ip.IsUnspecified() {
		host = name
	}
	s.URL = "https://" + net.JoinHostPort(host, port)
	s.cert = &cert
	s.listener = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}})
	return nil
}

// Run serves until ctx ends, then lets requests finish and stops the loops and the children.
func (s *Server) Run(ctx context.Context) error {
	lctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	defer stop()
	// Whoever runs the server has the token by now.
	if err := os.Remove(s.tokenFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	failed := make(chan error, 4)
	loop := func(name string, fn func(context.Context) error) {
		s.loops.Go(func() {
			if err := fn(lctx); err != nil && lctx.Err() == nil {
				failed <- fmt.Errorf("%s: %w", name, err)
			}
		})
	}
	s.http = s.Web.HTTPServer()
	// What waits for something (polls, followed logs) ends when the server does.
	s.http.BaseContext = func(net.Listener) context.Context { return lctx }
	s.loops.Go(func() {
		if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
	})
	loop("leases", s.Build.Run)
	loop("publishing", s.Repo.Run)
	loop("mirrors", s.Mirrors.Run)
	loop("attestations", s.Prov.Run)
	loop("uploads", s.sweepUploads)
	loop("memory", s.giveBack)
	loop("jobs", s.Jobs.Run)
	loop("hosts", s.Fleet.Run)
	loop("reactions", func(ctx context.Context) error { return s.Jobs.React(ctx, s.Auth.RoleOf) })
	children, err := s.children(lctx)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		s.Log.Info("the server ends, as it was told to")
	case err = <-failed:
		s.Log.Error("the server ends", "err", err)
	}
	children() // builders give back what they hold while the server still hears them
	stop()
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if serr := s.http.Shutdown(sctx); serr != nil {
		_ = s.http.Close()
	}
	s.loops.Wait()
	return err
}

// sweepUploads removes uploads that nobody has gone on with for a week.
func (s *Server) sweepUploads(ctx context.Context) error {
	hour := time.NewTicker(time.Hour)
	defer hour.Stop()
	for {
		if _, err := s.Blobs.SweepStaging(time.Now().Add(-7 * 24 * time.Hour)); err != nil {
			s.Log.Error("old uploads stay", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-hour.C:
		}
	}
}

// giveBack gives memory back to the system when nothing runs: a herd of hosts or a large job leaves
// twice what it needed, and stacks of thousands of connections as deep as their handshakes.
func (s *Server) giveBack(ctx context.Context) error {
	t := time.NewTicker(30 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if !s.Jobs.Busy() {
				debug.FreeOSMemory()
			}
		}
	}
}

// Close closes what NewServer opened.
func (s *Server) Close() {
	if s.listener != nil {
		_ = s.listener.Close()
	}
	if s.Fleet != nil {
		s.Fleet.CloseBus()
	}
	if s.DB != nil {
		if err := s.DB.Close(); err != nil {
			s.Log.Error("close", "err", err)
		}
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

// roots tells the build system which repositories a buildroot installs from: the tag's own,
// then the mirrors it names.
type roots struct{ s *Server }

// Repos implements build.Roots.
func (r roots) Repos(ctx context.Context, tag, arch string) ([]wire.Repo, error) {
	if err := r.s.Repo.Published(ctx, tag); err != nil {
		return nil, err
	}
	t, err := r.s.Release.Tag(ctx, tag, "")
	if err != nil {
		return nil, err
	}
	var out []wire.Repo
	for _, name := range append([]string{tag}, t.Mirrors...) {
		x, ok, err := r.s.Repo.Repo(ctx, name, arch)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, x)
		}
	}
	return out, nil
}

// packets is the signer as repo sees it.
type packets struct{ s *sign.Store }

// Public implements repo.Signer.
func (p packets) Public(ctx context.Context, key string) (string, error) {
	k, err := p.s.Key(ctx, key)
	return k.Public, err
}

// Packets implements repo.Signer.
func (p packets) Packets(ctx context.Context, rs []repo.SignRequest) ([][]byte, error) {
	out := make([]sign.Request, len(rs))
	for i, r := range rs {
		out[i] = sign.Request{Key: r.Key, Tag: r.Tag, Subject: r.Subject, Digest: r.Digest, State: r.State}
	}
	return p.s.Sign(ctx, out)
}

// Greet prints where the server is, and the first token once.
func (s *Server) Greet(w io.Writer) {
	fmt.Fprintf(w, "drover serves %s (%s, data in %s)\n", s.URL, s.DB, s.Config.Dir)
	if s.CA != "" {
		fmt.Fprintf(w, "clients trust it by: export DROVER_CA=%s\n", s.CA)
	}
	if s.Token != "" {
		fmt.Fprintf(w, "the first admin's token, shown this once: %s\nlog in with: drover login %s --token-file -\n", s.Token, s.URL)
	}
}
