package site

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"drover/internal/blob"
	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/fetch"
	"drover/internal/repo/wire"
	"drover/internal/web"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"
)

// Config says what a site does.
type Config struct {
	Centre   *web.Client       // the server, or another site
	CA       string            // file of the CA that its certificate is of, or ""
	Dir      string            // of everything that is kept
	Listen   string            // HOST:PORT
	Cert     string            // PEM file of a certificate, with
	CertKey  string            // its key; "" serves plain HTTP
	Channels []string          // to follow
	Trust    map[string]string // keys to take by name: the file of a public key, or "" for the one that the centre has now
	Ahead    bool              // fetch packages before they are asked for
	Max      int64             // bytes of packages that are kept; 0 means no bound
	Version  string
	Log      *slog.Logger
}

// Unsigned is the name in Config.Trust that lets a channel be unsigned that was signed before.
const Unsigned = "none"

var reChannel = regexp.MustCompile(`^[a-z0-9][a-z0-9_.+-]{0,99}(/[a-z][a-z0-9-]{0,30})?$`)

// Site is a running site.
type Site struct {
	Config
	URL string // where it serves

	lock    *os.File
	blobs   *blob.Store
	fetch   *fetch.Client
	origins *fetch.Origins
	ahead   *fetch.Client // with fewer requests at once
	web     *web.Server
	listen  net.Listener
	numbers *numbers
	trust   *trust
	work    sync.WaitGroup // downloads of packages
	life    context.Context
	end     context.CancelFunc
	census  chan string // addresses of counts to pass on
	full    chan struct{}

	syncing map[string]*sync.Mutex // by channel: held while what is kept of it is made anew
	// keeping is held from the look at whether all blobs of a state are here until the state
	// counts, and while packages are removed. It is taken before mu.
	keeping  sync.Mutex
	slots    chan struct{} // of downloads of packages
	pinning  singleflight.Group
	indexing singleflight.Group

	mu       sync.Mutex // guards what follows
	channels map[string]*channel
	moved    chan struct{} // closed and made anew when a channel moves
	indexes  map[string]*index
	packages map[string]*kept   // by sha256
	flights  map[string]*flight // by sha256
}

// New opens a site's directory and address. Close ends it.
func New(c Config) (s *Site, err error) {
	s = &Site{Config: c, numbers: &numbers{}, channels: map[string]*channel{}, moved: make(chan struct{}), indexes: map[string]*index{}, packages: map[string]*kept{}, flights: map[string]*flight{},
		census: make(chan string, 1000), full: make(chan struct{}, 1), syncing: map[string]*sync.Mutex{}, slots: make(chan struct{}, downloads)}
	s.life, s.end = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if len(c.Channels) == 0 {
		return s, fault.Invalid("site_channel", "a site follows at least one channel").Fix("name it with --channel; see `drover channel list`")
	}
	for _, n := range c.Channels {
		if !reChannel.MatchString(n) {
			return s, fault.Invalid("site_channel", "%.100q is no name of a channel", n).Fix("see `drover channel list`")
		}
		s.syncing[n] = &sync.Mutex{}
	}
	for _, d := range []string{c.Dir, s.path("channels"), s.path("keys"), s.path("partial")} {
		if err := durable.MkdirAll(d, 0o700); err != nil {
			return s, err
		}
	}
	if err := s.alone(); err != nil {
		return s, err
	}
	old, err := filepath.Glob(s.path("partial", "flight-*"))
	if err != nil {
		return s, err
	}
	for _, f := range old { // a kill at the wrong moment
		if err := os.Remove(f); err != nil {
			return s, err
		}
	}
	if s.blobs, err = blob.Open(s.path("blobs")); err != nil {
		return s, err
	}
	fc := fetch.Config{Dir: s.path("partial"), Workers: 4, PerOrigin: 4, Pause: 100 * time.Millisecond, Patience: 2 * time.Second, CAFile: c.CA}
	if s.fetch, err = fetch.New(fc); err != nil {
		return s, err
	}
	fc.Workers, fc.PerOrigin = 3, 3
	if s.ahead, err = fetch.New(fc); err != nil {
		return s, err
	}
	if s.origins, err = fetch.NewOrigins(fetch.Origin{URL: c.Centre.Base}); err != nil {
		return s, err
	}
	if s.trust, err = openTrust(s.path("keys"), c.Trust); err != nil {
		return s, err
	}
	if err := s.load(); err != nil {
		return s, err
	}
	s.web = web.New(web.Config{Version: c.Version, Log: c.Log, Authenticate: func(r *http.Request) (context.Context, error) { return r.Context(), nil }})
	s.routes()
	return s, s.open()
}

func (s *Site) path(names ...string) string {
	return filepath.Join(append([]string{s.Dir}, names...)...)
}

// alone makes sure that no other site works in the directory.
func (s *Site) alone() (err error) {
	if s.lock, err = os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	if unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return fault.Conflict("dir_busy", "another site runs on %s", s.Dir).Fix("stop it, or give this one a directory of its own with --dir")
	}
	return nil
}

func (s *Site) open() error {
	l, err := new(net.ListenConfig).Listen(s.life, "tcp", s.Listen)
	if err != nil {
		return fault.Unavailable("listen", "%s cannot be listened on", s.Listen).Wrap(err).Fix("give another address with --listen")
	}
	s.listen, s.URL = l, "http://"+l.Addr().String()
	if s.Cert == "" {
		return nil
	}
	cert, err := tls.LoadX509KeyPair(s.Cert, s.CertKey)
	if err != nil {
		return fault.Invalid("tls", "the certificate %s cannot be used", s.Cert).Wrap(err).Fix("give a PEM certificate and its key")
	}
	s.URL = "https://" + l.Addr().String()
	s.listen = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}})
	return nil
}

// Run serves and follows until ctx ends.
func (s *Site) Run(ctx context.Context) error {
	srv := s.web.HTTPServer()
	srv.BaseContext = func(net.Listener) context.Context { return s.life }
	failed := make(chan error, 1)
	var loops sync.WaitGroup
	loops.Go(func() {
		if err := srv.Serve(s.listen); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
	})
	for _, n := range slices.Compact(slices.Sorted(slices.Values(s.Channels))) {
		loops.Go(func() { s.follow(s.life, n) })
	}
	loops.Go(func() { s.tidy(s.life) })
	loops.Go(func() { s.passOn(s.life) })
	if s.Ahead {
		loops.Go(func() { s.fill(s.life) })
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	s.end()
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if srv.Shutdown(sctx) != nil {
		_ = srv.Close()
	}
	loops.Wait()
	s.work.Wait()
	return err
}

// Close lets go of what New opened.
func (s *Site) Close() {
	s.end()
	if s.listen != nil {
		_ = s.listen.Close()
	}
	for _, c := range []*fetch.Client{s.fetch, s.ahead} {
		if c != nil {
			c.Close()
		}
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

// nap waits, or tells that ctx ended.
func nap(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// passOn tells the centre which hosts said that they are there.
func (s *Site) passOn(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case path := <-s.census:
			cctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			if resp, err := s.Centre.Do(cctx, http.MethodGet, path, nil, nil); err == nil {
				_ = resp.Body.Close()
			} // it is an estimate: one host less
			cancel()
		}
	}
}

// maxWait is how long one question for a channel's state may take in all.
const maxWait = 20 * time.Second

// ask asks the centre for a channel's state, for a while until it is another than the known one.
func (s *Site) ask(ctx context.Context, channel, known string, wait time.Duration) (st wire.State, err error) {
	ctx, cancel := context.WithTimeout(ctx, wait+15*time.Second)
	defer cancel()
	err = s.Centre.Call(ctx, http.MethodGet, wire.PathFollow(channel)+"?snapshot="+known+"&wait="+seconds(wait), nil, &st)
	return st, err
}
