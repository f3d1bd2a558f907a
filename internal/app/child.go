package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"drover/internal/auth"
	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/web"
)

// children starts the local builder and signer as processes of their own and starts them
// again when they die. The function it returns stops them and waits.
func (s *Server) children(ctx context.Context) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	start := func(kind auth.Kind, args ...string) {
		wg.Go(func() { s.child(cctx, self, kind, args) })
	}
	if !s.Config.NoSigner {
		start(auth.Signer, "--accept-keys")
	}
	if !s.Config.NoBuilder {
		start(auth.Builder)
	}
	return func() { cancel(); wg.Wait() }, nil
}

func (s *Server) child(ctx context.Context, self string, kind auth.Kind, args []string) {
	dir := filepath.Join(s.Config.Dir, string(kind))
	wait := 200 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		err := s.childOnce(ctx, self, kind, dir, args)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			wait = 200 * time.Millisecond
		}
		s.Log.Warn("a child process ended; it is started again", "kind", kind, "err", err, "in", wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, 10*time.Second)
	}
}

func (s *Server) childOnce(ctx context.Context, self string, kind auth.Kind, dir string, args []string) error {
	env := append(os.Environ(), "DROVER_URL="+s.URL, "DROVER_CA="+s.CA, "DROVER_TOKEN=")
	if _, err := os.Stat(filepath.Join(dir, "token")); errors.Is(err, fs.ErrNotExist) {
		ticket, err := s.Auth.NewTicket(auth.AsSystem(ctx), kind, "local", 5*time.Minute)
		if err != nil {
			return err
		}
		env = append(env, "DROVER_TICKET="+ticket) // not an argument: those are for all to see
	}
	c := exec.CommandContext(ctx, self, append([]string{string(kind), "run", "--dir", dir}, args...)...)
	c.Env, c.Stdout, c.Stderr = env, s.Logs, s.Logs
	// A server that is killed takes its children along; the builder's sandboxes follow.
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 20 * time.Second
	return c.Run()
}

// client makes the client of a server; caFile names a CA to trust beside the system's.
func client(base, token, caFile string) (*web.Client, error) {
	tr := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // the standard library's own
	tr.MaxIdleConnsPerHost = 16
	if caFile != "" {
		pool, err := trusted(caFile)
		if err != nil {
			return nil, err
		}
		tr.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	if strings.HasPrefix(base, "http://") && token != "" && !loopbackURL(base) {
		return nil, fault.Denied("plain_http", "a token is not sent to %s in clear", base).Fix("use https")
	}
	return &web.Client{Base: strings.TrimSuffix(base, "/"), Token: token, HTTP: &http.Client{Transport: tr}}, nil
}

// trusted are the system's CAs, and the one of a file when it is given.
func trusted(caFile string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if caFile == "" {
		return pool, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fault.Invalid("ca", "the CA file cannot be read").Wrap(err).Fix("check DROVER_CA")
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fault.Invalid("ca", "%s holds no certificate", caFile)
	}
	return pool, nil
}

// loopbackURL tells whether a URL leads to this machine. The name is compared whole:
// "localhost.example.org" begins in the same way.
func loopbackURL(u string) bool {
	p, err := url.Parse(u)
	if err != nil {
		return false
	}
	ip := net.ParseIP(p.Hostname())
	return p.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// member makes the client of a builder or signer: with the token in its directory, or with
// one that it gets for its ticket.
func member(ctx context.Context, base, ca, dir, ticket string) (*web.Client, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "token")
	if b, err := os.ReadFile(file); err == nil && ticket == "" {
		return client(base, strings.TrimSpace(string(b)), ca)
	}
	if ticket == "" {
		return nil, fault.Unauthorized("ticket_needed", "%s has no token yet", dir).Fix("make a ticket with `drover auth ticket`, and start with DROVER_TICKET set to it")
	}
	c, err := client(base, "", ca)
	if err != nil {
		return nil, err
	}
	var t auth.TokenInfo
	for {
		err = c.Call(ctx, "POST", "/api/v1/join", map[string]string{"ticket": ticket}, &t)
		if fault.As(err) == nil || fault.As(err).Kind != fault.KindUnavailable {
			break
		}
		select { // the server may just be starting
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(file, []byte(t.Secret+"\n"), 0o600); err != nil {
		return nil, err
	}
	return client(base, t.Secret, ca)
}
