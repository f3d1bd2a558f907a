package fetch_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"drover/internal/blob/blobtest"
	"drover/internal/fault"
	"drover/internal/fetch"
)

func writePEM(t *testing.T, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// clientPair is a certificate that vouches for itself, and its key, as files.
func clientPair(t *testing.T) (cert *x509.Certificate, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true, IsCA: true}
	der, err := x509.CreateCertificate(crand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err = x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, writePEM(t, "CERTIFICATE", der), writePEM(t, "PRIVATE KEY", keyDER)
}

func TestTLS(t *testing.T) {
	data := blobtest.Bytes(1, 100_000)
	wants, content := files(50, 20_000)
	plain := serve(t, func(w http.ResponseWriter, r *http.Request) { whole(w, r, data) })
	var old atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			old.Add(1)
		}
		switch {
		case r.URL.Path == "/down":
			http.Redirect(w, r, plain+"x", http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/Packages"):
			of(content)(w, r)
		default:
			whole(w, r, data)
		}
	}))
	cert, certFile, keyFile := clientPair(t)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	defer srv.Close()
	ca := writePEM(t, "CERTIFICATE", srv.Certificate().Raw)

	ours := client(t, func(cfg *fetch.Config) { cfg.CAFile, cfg.Cert, cfg.CertKey = ca, certFile, keyFile })
	o := origins(t, srv.URL)
	if got, err := file(t, ours, o, want("x", data)); err != nil || !bytes.Equal(got, data) {
		t.Fatal(err)
	}
	s := store(t)
	j, _ := job(s, wants)
	if err := ours.All(t.Context(), o, j); err != nil {
		t.Fatal(err)
	}
	allHere(t, s, wants)
	if old.Load() != 0 {
		t.Errorf("%d requests by HTTP/1", old.Load())
	}
	_, err := file(t, ours, o, want("down", data))
	code(t, err, "fetch_refused", "from https to http")
	up := serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, srv.URL+"/x", http.StatusFound) })
	if got, err := file(t, ours, origins(t, up), want("x", data)); err != nil || !bytes.Equal(got, data) {
		t.Fatal(err)
	}

	few := func(cfg *fetch.Config) { cfg.Tries = 1 }
	_, err = file(t, client(t, few), origins(t, srv.URL), want("x", data))
	code(t, err, "fetch_away", "certificate")
	_, err = file(t, client(t, func(cfg *fetch.Config) { few(cfg); cfg.CAFile = ca }), origins(t, srv.URL), want("x", data))
	code(t, err, "fetch_away") // HTTP/2 does not always say why

	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []fetch.Config{{CAFile: empty}, {CAFile: "/nowhere"}, {Cert: certFile}, {CertKey: keyFile}, {Cert: keyFile, CertKey: certFile}} {
		cfg.Dir = t.TempDir()
		if _, err := fetch.New(cfg); fault.Code(err) != "fetch_tls" {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

func TestProxy(t *testing.T) {
	data := blobtest.Bytes(1, 1000)
	var by string
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		by = r.RequestURI // a proxy is asked for the whole address
		if r.Header.Get("Proxy-Authorization") == "" {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		whole(w, r, data)
	})
	c := client(t, func(cfg *fetch.Config) { cfg.Proxy = strings.Replace(proxy, "http://", "http://u:hunter2@", 1) })
	if got, err := file(t, c, origins(t, "http://upstream.invalid/dir"), want("x", data)); err != nil || !bytes.Equal(got, data) || by != "http://upstream.invalid/dir/x" {
		t.Fatalf("%v, asked for %q", err, by)
	}
	c = client(t, func(cfg *fetch.Config) { cfg.Proxy = proxy })
	_, err := file(t, c, origins(t, "http://upstream.invalid/dir"), want("x", data))
	code(t, err, "fetch_denied", "407")
	c = client(t, func(cfg *fetch.Config) { cfg.Proxy, cfg.Tries = "http://u:hunter2@127.0.0.1:1", 1 })
	_, err = file(t, c, origins(t, "http://upstream.invalid/dir"), want("x", data))
	code(t, err, "fetch_away")
	_, err2 := fetch.New(fetch.Config{Dir: t.TempDir(), Proxy: "socks://u:hunter2@h"})
	code(t, err2, "fetch_proxy")
	if strings.Contains(err.Error()+err2.Error(), "hunter2") {
		t.Fatalf("an error tells the password: %v; %v", err, err2)
	}
}
