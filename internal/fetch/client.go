package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"drover/internal/durable"
	"drover/internal/fault"
)

// Config says how a Client fetches. What is zero has the default told beside it.
type Config struct {
	// Dir holds files that are not whole yet; clients may share it. It should lie on the file
	// system of the blob store, but need not.
	Dir       string
	Agent     string        // User-Agent; "drover"
	Workers   int           // files at once in All; 32
	PerOrigin int           // requests at once to one origin; 16
	Tries     int           // of one file at one origin, without progress; 4
	Pause     time.Duration // after the first failure of an origin, then doubled; 500 ms
	Patience  time.Duration // longest wait for an origin that rests, as by Retry-After; 2 min
	Header    time.Duration // until an answer begins; 30 s
	Stall     time.Duration // without a byte; 30 s
	MinRate   int64         // bytes per second over Stall, below which it is a stall; 1024
	// Limits are the bandwidth that all of this must keep to, for instance one of the whole
	// process and one of this client; see Limit.
	Limits  []*rate.Limiter
	CAFile  string // PEM, instead of the system's authorities
	Cert    string // PEM file of a client certificate, with
	CertKey string // its key
	Proxy   string // http://host:port; "": as the environment says
}

// Client fetches. It is made once and used by many goroutines.
type Client struct {
	cfg     Config
	http    *http.Client
	buffers sync.Pool // of *[]byte, chunk long
}

const (
	chunk     = 64 << 10
	redirects = 5
)

// Limit is a limit of bytes per second for Config.Limits.
func Limit(bytesPerSecond int64) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(bytesPerSecond), int(max(min(bytesPerSecond/8, 4<<20), 4096)))
}

// New makes a client and its directory.
func New(cfg Config) (*Client, error) {
	or := func(p *time.Duration, d time.Duration) {
		if *p == 0 {
			*p = d
		}
	}
	or(&cfg.Pause, 500*time.Millisecond)
	or(&cfg.Patience, 2*time.Minute)
	or(&cfg.Header, 30*time.Second)
	or(&cfg.Stall, 30*time.Second)
	if cfg.Agent == "" {
		cfg.Agent = "drover"
	}
	if cfg.Workers == 0 {
		cfg.Workers = 32
	}
	if cfg.PerOrigin == 0 {
		cfg.PerOrigin = 16
	}
	if cfg.Tries == 0 {
		cfg.Tries = 4
	}
	if cfg.MinRate == 0 {
		cfg.MinRate = 1024
	}
	t, err := cfg.transport()
	if err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg}
	// Redirects are followed by get, which has more to say about them.
	c.http = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	c.buffers.New = func() any { b := make([]byte, chunk); return &b }
	return c, nil
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (cfg *Config) transport() (*http.Transport, error) {
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           4 * cfg.PerOrigin,
		MaxIdleConnsPerHost:    cfg.PerOrigin,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         chunk,
		DisableCompression:     true,
	}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fault.Invalid("fetch_tls", "the CA file can't be read").Wrap(err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fault.Invalid("fetch_tls", "the CA file %s holds no certificate in PEM", cfg.CAFile)
		}
	}
	if cfg.Cert != "" || cfg.CertKey != "" {
		pair, err := tls.LoadX509KeyPair(cfg.Cert, cfg.CertKey)
		if err != nil {
			return nil, fault.Invalid("fetch_tls", "the client certificate can't be used").Wrap(err).Fix("give a certificate and its key, both as PEM files")
		}
		t.TLSClientConfig.Certificates = []tls.Certificate{pair}
	}
	if cfg.Proxy != "" {
		u, err := url.Parse(cfg.Proxy)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fault.Invalid("fetch_proxy", "the proxy's address is none").Fix("give http://HOST:PORT") // it may hold a password
		}
		t.Proxy = http.ProxyURL(u)
	}
	return t, nil
}

// The reasons for which a request is cut off.
var (
	errStall  = errors.New("brought nothing for too long")
	errSlow   = errors.New("is too slow to ever end")
	errHeader = errors.New("did not answer in time")
)

// body is an answer's body under watch: it is cut off when it stalls or drips, and read no
// faster than the limits allow.
type body struct {
	c      *Client
	ctx    context.Context
	cancel context.CancelCauseFunc
	r      io.ReadCloser
	stall  *time.Timer
	waited time.Duration // for the server, since the last look at the rate
	came   int64         // meanwhile
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	for _, l := range b.c.cfg.Limits {
		p = p[:min(len(p), l.Burst())]
	}
	b.stall.Reset(b.c.cfg.Stall)
	began := time.Now()
	n, err := b.r.Read(p)
	b.stall.Stop()
	b.waited += time.Since(began)
	b.came += int64(n)
	for _, l := range b.c.cfg.Limits {
		if lerr := l.WaitN(b.ctx, n); lerr != nil {
			return n, lerr
		}
	}
	if err != nil {
		if cause := context.Cause(b.ctx); cause != nil && !errors.Is(err, io.EOF) {
			err = cause
		}
		return n, err
	}
	if b.waited >= b.c.cfg.Stall {
		if float64(b.came) < float64(b.c.cfg.MinRate)*b.waited.Seconds() {
			return n, errSlow
		}
		b.waited, b.came = 0, 0
	}
	return n, nil
}

// Close ends the request; the connection is kept when the body was read to its end.
func (b *body) Close() error {
	b.stall.Stop()
	err := b.r.Close()
	b.cancel(nil)
	return err
}

// get asks an origin, following redirects, and gives the answer with a watched body, which the
// caller closes.
func (c *Client) get(ctx context.Context, x *origin, u *url.URL, h http.Header) (*http.Response, *trouble) {
	ctx, cancel := context.WithCancelCause(ctx)
	header := time.AfterFunc(c.cfg.Header, func() { cancel(errHeader) })
	resp, t := c.follow(ctx, x, u, h)
	if !header.Stop() && t == nil { // it came in the last moment
		_ = resp.Body.Close()
		t = &trouble{kind: away, what: errHeader.Error()}
	}
	if t != nil {
		cancel(nil)
		return nil, t
	}
	b := &body{c: c, ctx: ctx, cancel: cancel, r: resp.Body}
	b.stall = time.AfterFunc(c.cfg.Stall, func() { cancel(errStall) })
	resp.Body = b
	return resp, nil
}

func (c *Client) follow(ctx context.Context, x *origin, u *url.URL, h http.Header) (*http.Response, *trouble) {
	been := map[string]bool{}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
		if err != nil {
			return nil, &trouble{kind: refused, what: "has an address that can't be asked for"}
		}
		req.Header = h.Clone()
		req.Header.Set("User-Agent", c.cfg.Agent)
		req.Header.Set("Accept-Encoding", "identity") // the checksum is of the file as it lies there
		if x.User != "" && u.Scheme == x.base.Scheme && u.Host == x.base.Host {
			req.SetBasicAuth(x.User, x.Password)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			var ue *url.Error
			if errors.As(err, &ue) {
				err = ue.Err // its address may hold what a redirect put into the query
			}
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return nil, cut(ctx, err)
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, nil
		}
		_, _ = io.CopyN(io.Discard, resp.Body, 4096) // so that the connection can be kept
		_ = resp.Body.Close()
		been[u.String()] = true
		next, err := u.Parse(resp.Header.Get("Location"))
		if err != nil || resp.Header.Get("Location") == "" {
			return nil, &trouble{kind: refused, what: "redirects to nowhere"}
		}
		next.User, next.Fragment = nil, ""
		switch {
		case next.Scheme != "http" && next.Scheme != "https" || next.Host == "":
			return nil, &trouble{kind: refused, what: "redirects to an address that is not by http or https"}
		case u.Scheme == "https" && next.Scheme == "http":
			return nil, &trouble{kind: refused, what: "redirects from https to http, at " + next.Host}
		case been[next.String()]:
			return nil, &trouble{kind: refused, what: "redirects in a circle"}
		case len(been) > redirects:
			return nil, &trouble{kind: refused, what: "redirects too often"}
		}
		u = next
	}
}
