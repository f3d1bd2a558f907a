package app

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"drover/internal/fault"
)

// serve runs a server without children until the test ends, and returns it with what it
// greets with.
func serve(t *testing.T, c Config) (*Server, string) {
	t.Helper()
	c.NoBuilder, c.NoSigner = true, true
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	s, err := NewServer(t.Context(), c, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		s.Close()
	})
	var b bytes.Buffer
	s.Greet(&b)
	return s, b.String()
}

func whoami(t *testing.T, base, token, ca string) (who struct {
	Name string `json:"name"`
}, err error) {
	t.Helper()
	c, err := client(base, token, ca)
	if err != nil {
		return who, err
	}
	err = c.Call(t.Context(), "GET", "/api/v1/whoami", nil, &who)
	return who, err
}

func TestFirstStartShowsItsTokenOnce(t *testing.T) {
	dir := t.TempDir()
	var token string
	t.Run("first", func(t *testing.T) {
		s, hello := serve(t, Config{Dir: dir})
		token = s.Token
		if who, err := whoami(t, s.URL, token, ""); err != nil || who.Name != "admin" || strings.Count(hello, token) != 1 {
			t.Errorf("%+v %v %s", who, err, hello)
		}
	})
	t.Run("second", func(t *testing.T) {
		s, hello := serve(t, Config{Dir: dir})
		if s.Token != "" || strings.Contains(hello, "drv_") {
			t.Errorf("the second start shows a token: %s", hello)
		}
		if who, err := whoami(t, s.URL, token, ""); err != nil || who.Name != "admin" {
			t.Error("the first token does not hold:", err)
		}
	})
	err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		if bytes.Contains(b, []byte(token)) {
			t.Errorf("the token stands in clear in %s", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	var first []byte
	for _, name := range []string{"", "drover.example"} {
		t.Run("names "+name, func(t *testing.T) {
			s, _ := serve(t, Config{Dir: dir, TLS: true, Names: []string{name}})
			if !strings.HasPrefix(s.URL, "https://") || s.CA == "" {
				t.Fatal(s.URL, s.CA)
			}
			if _, err := whoami(t, s.URL, "", s.CA); err != nil {
				t.Error("with its CA:", err)
			}
			if _, err := whoami(t, s.URL, "", ""); fault.Code(err) != "server_away" {
				t.Error("without its CA:", err)
			}
			pem, err := os.ReadFile(s.CA)
			if err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = pem
			} else if !bytes.Equal(first, pem) {
				t.Error("the CA changed: every client would have to be told")
			}
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(pem)
			c, err := shown(t, s.listener.Addr(), pool, name)
			if err != nil || name != "" && c.VerifyHostname(name) != nil {
				t.Errorf("the certificate is not for %q: %v", name, err)
			}
		})
	}
	for _, f := range []string{"ca.key", "server.key"} {
		if st, err := os.Stat(filepath.Join(dir, "tls", f)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, st.Mode(), err)
		}
	}
	_, err := NewServer(t.Context(), Config{Dir: t.TempDir(), Cert: "/nonexistent.pem"}, "test", slog.New(slog.DiscardHandler))
	if fault.Code(err) != "tls" {
		t.Error("a certificate without its key:", err)
	}
	_, err = NewServer(t.Context(), Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", Cert: "/nonexistent.pem", Key: "/nonexistent.key"}, "test", slog.New(slog.DiscardHandler))
	if fault.Code(err) != "tls" {
		t.Error("a certificate that is not there:", err)
	}
}

func TestPlainHTTPOnLoopbackOnly(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir(), Listen: "0.0.0.0:0"})
	if !strings.HasPrefix(s.URL, "https://") {
		t.Error(s.URL)
	}
	_, port, err := net.SplitHostPort(s.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := http.Get("http://127.0.0.1:" + port + "/"); err == nil {
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode < 400 {
			t.Errorf("plain HTTP is answered: %s %s", resp.Status, b)
		}
	}
	for base, want := range map[string]string{"http://10.1.2.3:7280": "plain_http", "http://127.0.0.1.evil.example": "plain_http", "http://localhost.evil.example": "plain_http",
		"http://127.0.0.1:7280": "", "http://localhost:7280": "", "http://[::1]:7280": "", "https://10.1.2.3": ""} {
		if _, err := client(base, "drv_x", ""); fault.Code(err) != want {
			t.Errorf("a token for %s: %v", base, err)
		}
	}
}

func TestServerRefuses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cfg  Config
		code string
	}{
		{Config{Listen: "nowhere"}, "listen"},
		{Config{Listen: taken.Addr().String()}, "listen"},
		{Config{Dir: filepath.Join(file, "below")}, "dir"},
		{Config{DB: "postgres://nobody@127.0.0.1:1/none"}, "db_open"},
	} {
		if c.cfg.Dir == "" {
			c.cfg.Dir = t.TempDir()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		s, err := NewServer(ctx, c.cfg, "test", slog.New(slog.DiscardHandler))
		cancel()
		if f := fault.As(err); f == nil || f.Code != c.code || f.Remedy == "" {
			t.Errorf("%+v: %v", c.cfg, err)
		}
		if err == nil {
			s.Close()
		}
	}
}

func TestConfigIsStrict(t *testing.T) {
	file := filepath.Join(t.TempDir(), "drover.yaml")
	for text, want := range map[string]string{"dir: /x\nlisten: 127.0.0.1:1\n": "", "": "", "dirr: /x\n": "config", "dir: [1]\n": "config", "tls: maybe\n": "config"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := serverVerb{Config: file, Dir: "/flag"}.config()
		if fault.Code(err) != want {
			t.Errorf("%q: %v", text, err)
		}
		if err == nil && c.Dir != "/flag" {
			t.Errorf("%q: the flag does not win: %+v", text, c)
		}
	}
}

// shown is the certificate that an address shows for a name.
func shown(t *testing.T, a net.Addr, pool *x509.CertPool, name string) (*x509.Certificate, error) {
	t.Helper()
	if name == "" {
		name = "localhost"
	}
	c, err := tls.Dial("tcp", a.String(), &tls.Config{RootCAs: pool, ServerName: name, MinVersion: tls.VersionTLS12})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], nil
}
