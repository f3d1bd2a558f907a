package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/fleet/wire"

	"github.com/nats-io/nkeys"
)

// admission is what is kept of the server's answer.
type admission struct {
	Server string   `json:"server"` // the server's key, base64
	CA     string   `json:"ca,omitempty"`
	Name   string   `json:"name"`
	ID     string   `json:"id"`
	JWT    string   `json:"jwt"`
	Bus    []string `json:"bus"`
}

// maxAnswer bounds what the server may answer over HTTP.
const maxAnswer = 16 << 20

// openState reads the key and what is known of the server, and makes the key the first time.
func (a *Agent) openState() error {
	if a.cfg.Dir == "" {
		pair, err := nkeys.CreateUser()
		if err == nil {
			a.pair = pair
			a.public, err = pair.PublicKey()
		}
		return err
	}
	if err := os.MkdirAll(a.cfg.Dir, 0o700); err != nil {
		return fault.Unavailable("agent_dir", "the directory %s cannot be made", a.cfg.Dir).Wrap(err).Fix("give another with --dir, or run the agent as root")
	}
	file := filepath.Join(a.cfg.Dir, "agent.key")
	seed, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		pair, err := nkeys.CreateUser()
		if err != nil {
			return err
		}
		if seed, err = pair.Seed(); err != nil {
			return err
		}
		if err := durable.WriteFile(file, seed, 0o600); err != nil {
			return fault.Unavailable("agent_dir", "the key cannot be written to %s", a.cfg.Dir).Wrap(err)
		}
	} else if err != nil {
		return fault.Unavailable("agent_dir", "the key in %s cannot be read", a.cfg.Dir).Wrap(err)
	}
	if a.pair, err = nkeys.FromSeed(bytes.TrimSpace(seed)); err == nil {
		a.public, err = a.pair.PublicKey()
	}
	if err != nil {
		return fault.Invalid("agent_key", "%s holds no key", file).Wrap(err).Fix("remove it and enrol this host again")
	}
	b, err := os.ReadFile(filepath.Join(a.cfg.Dir, "server.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(b, &a.admit)
	}
	if err == nil {
		a.server, err = serverKey(a.admit.Server)
	}
	if err != nil {
		return fault.Invalid("agent_server", "what is known of the server in %s cannot be read", a.cfg.Dir).Wrap(err).Fix("remove server.json there; the agent asks the server again")
	}
	return nil
}

func serverKey(s string) (ed25519.PublicKey, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err == nil && len(b) != ed25519.PublicKeySize {
		err = errors.New("no key")
	}
	return b, err
}

func (a *Agent) keep() error {
	if a.cfg.Dir == "" {
		return nil
	}
	b, err := json.MarshalIndent(a.admit, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(a.cfg.Dir, "server.json"), b, 0o600)
}

// client makes an HTTP client for the server.
func (a *Agent) client(own string) (*http.Client, error) {
	c, err := secure(a.cfg.Now, own, a.cfg.CA, a.cfg.URL)
	if err != nil {
		return nil, err
	}
	return &http.Client{Timeout: 5 * time.Minute, Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: c, ForceAttemptHTTP2: true,
		MaxIdleConns: 2, IdleConnTimeout: 20 * time.Second, TLSHandshakeTimeout: 30 * time.Second, ResponseHeaderTimeout: time.Minute}}, nil
}

// trust learns the server's key the first time, and from then on believes no other.
func (a *Agent) trust(ctx context.Context) error {
	u, err := url.Parse(a.cfg.URL)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return fault.Invalid("server_url", "%q is no URL of a server", a.cfg.URL).Fix("give it as https://drover.example:7280")
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "http" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) && a.cfg.Pin == "" {
		return fault.Denied("plain_http", "the server's key is not taken from %s in clear", a.cfg.URL).Fix("use https, or give the key's pin")
	}
	if a.http == nil {
		if a.http, err = a.client(a.admit.CA); err != nil {
			return err
		}
	}
	if len(a.server) > 0 {
		return nil
	}
	var answer struct{ Sealed []byte }
	err = a.call(ctx, a.http, "GET", "/api/v1/agent/trust", nil, &answer)
	var unknown *tls.CertificateVerificationError
	if errors.As(err, &unknown) && a.cfg.Pin != "" {
		// The pin says more than a certificate could: what is not sealed by that key is not believed.
		open := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // see above
		err = a.call(ctx, open, "GET", "/api/v1/agent/trust", nil, &answer)
	}
	if err != nil {
		if errors.As(err, &unknown) {
			return fault.Denied("server_unknown", "the certificate of %s is of nobody that this host trusts", a.cfg.URL).Wrap(err).Fix("give the server's pin, which `drover host pin` prints, or its CA")
		}
		return err
	}
	var t struct{ Key, CA string }
	if err := wire.Peek(answer.Sealed, &t); err != nil {
		return fault.Denied("signature_bad", "the server's answer cannot be read").Wrap(err)
	}
	key, err := serverKey(t.Key)
	if err != nil {
		return fault.Denied("signature_bad", "the server's answer has no key").Wrap(err)
	}
	if a.cfg.Pin != "" && wire.Pin(key) != a.cfg.Pin {
		return fault.Denied("pin_mismatch", "%s has the key %s, not %s", a.cfg.URL, wire.Pin(key), a.cfg.Pin).Fix("this is another server, or somebody between; compare with `drover host pin` on the server")
	}
	var tr wire.Trust
	if err := wire.Open(key, wire.ForTrust, answer.Sealed, &tr); err != nil {
		return err
	}
	a.mu.Lock()
	a.server, a.admit.Server, a.admit.CA = key, t.Key, tr.CA
	a.mu.Unlock()
	if tr.CA != "" && a.cfg.HTTP == nil {
		if a.http, err = a.client(tr.CA); err != nil {
			return err
		}
	}
	return a.keep()
}

// enrol is let in by the server: by a ticket, because it was before, or after somebody's approval.
func (a *Agent) enrol(ctx context.Context) error {
	for told := false; ; {
		if err := a.trust(ctx); err != nil {
			return err
		}
		e := wire.Enrol{Name: a.cfg.Name, Key: a.public, Ticket: a.cfg.Ticket, Machine: a.cfg.Machine.ID, Serial: a.cfg.Machine.Serial, MACs: a.cfg.Machine.MACs, Version: a.cfg.Version, Cap: wire.Capability, Nonce: random(16)}
		if a.admit.JWT != "" {
			e.Ticket = "" // it is let in already
		}
		sig, err := a.pair.Sign(e.Signed())
		if err != nil {
			return err
		}
		e.Sig = sig
		var answer struct{ Sealed []byte }
		err = a.call(ctx, a.http, "POST", "/api/v1/agent/enrol", e, &answer)
		if f := fault.As(err); err != nil {
			if a.admit.JWT != "" && (f.Kind == fault.KindInternal || f.Kind == fault.KindUnavailable) {
				return nil // the bus may be there nevertheless
			}
			return err
		}
		var ad wire.Admission
		if err := wire.Open(a.server, wire.ForEnrol, answer.Sealed, &ad); err != nil {
			return err
		}
		if ad.Nonce != e.Nonce {
			return fault.Denied("signature_bad", "the server's answer is to another request")
		}
		switch ad.State {
		case wire.Accepted:
			a.mu.Lock()
			a.admit.Name, a.admit.ID, a.admit.JWT, a.admit.Bus = ad.Name, ad.ID, ad.JWT, ad.Bus
			if ad.CA != "" {
				a.admit.CA = ad.CA
			}
			a.mu.Unlock()
			return a.keep()
		case wire.Pending:
			if !told {
				a.log.Info("this host waits for approval: drover host accept "+a.cfg.Name, "key", a.public, "why", ad.Why)
				told = true
			}
			if err := module.Sleep(ctx, time.Duration(max(2, ad.Again))*time.Second+spread(2*time.Second)); err != nil {
				return err
			}
		default:
			return fault.Denied("host_"+ad.State, "the server does not let this host in: it is %s %s", ad.State, ad.Why).Fix("ask an admin; `drover host list` on the server shows it")
		}
	}
}

// call sends JSON and reads JSON; a failed answer comes back as the server's own fault.
func (a *Agent) call(ctx context.Context, c *http.Client, method, path string, in, out any) error {
	var body io.Reader
	h := http.Header{"Accept": {"application/json"}}
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
		h.Set("Content-Type", "application/json")
	}
	resp, err := a.do(ctx, c, method, path, h, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		return err
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return fault.Unavailable("answer_cut", "the answer of %s %s is not whole", method, path).Wrap(err)
	}
	return nil
}

func (a *Agent) do(ctx context.Context, c *http.Client, method, path string, h http.Header, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(a.cfg.URL, "/")+path, body)
	if err != nil {
		return nil, fault.Invalid("server_url", "%q is no URL of a server", a.cfg.URL).Wrap(err)
	}
	req.Header = h
	a.mu.Lock()
	if t := a.welcome.Token; t != "" && path != "/api/v1/agent/enrol" { // whoever asks to be let in has none that counts
		req.Header.Set("Authorization", "Bearer "+t)
	}
	a.mu.Unlock()
	resp, err := c.Do(req)
	if err != nil {
		return nil, fault.Unavailable("server_away", "the server %s does not answer", a.cfg.URL).Wrap(err).Fix("check that it runs and that this host reaches it")
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	var p struct{ Code, Detail, Remedy string }
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil || json.Unmarshal(b, &p) != nil || p.Code == "" {
		p.Code, p.Detail = "http", resp.Status
	}
	return nil, fault.FromStatus(resp.StatusCode, p.Code, p.Detail, p.Remedy)
}
