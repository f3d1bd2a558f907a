package app

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"drover/internal/fault"
)

// The verb: over TLS from centre to site to host, by HTTP/2, parts included.
func TestSiteVerb(t *testing.T) {
	s, _ := serve(t, Config{Dir: t.TempDir(), TLS: true})
	c, err := client(s.URL, s.Token, s.CA)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Call(t.Context(), "PUT", "/api/v1/tags/t", map[string]any{"name": "t", "arches": []string{"x86_64"}}, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Call(t.Context(), "GET", "/api/v1/tags/t/published", nil, nil); err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(s.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true}}
	t.Cleanup(hc.CloseIdleConnections)
	part := func(base string) (string, error) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/channels/t/x86_64/repodata/repomd.xml", nil)
		if err != nil {
			return "", err
		}
		r.Header.Set("Range", "bytes=0-4")
		resp, err := hc.Do(r)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return fmt.Sprintf("%d %s %s", resp.StatusCode, resp.Proto, b), err
	}
	const want = "206 HTTP/2.0 <?xml"
	if got, err := part(s.URL); err != nil || got != want {
		t.Errorf("the centre: %s %v", got, err)
	}

	ctx, stop := context.WithCancel(t.Context())
	out, in := io.Pipe()
	ended := make(chan int, 1)
	var said bytes.Buffer
	args := []string{"site", "--ca", s.CA, "--centre", s.URL, "--dir", filepath.Join(t.TempDir(), "site"), "--listen", "127.0.0.1:0", "--channel", "t", "--ahead", "--max", "2G",
		"--cert", filepath.Join(s.Config.Dir, "tls", "server.pem"), "--key", filepath.Join(s.Config.Dir, "tls", "server.key")}
	go func() { ended <- Main(ctx, args, nil, in, &said); _ = in.Close() }()
	var base string
	if _, err := fmt.Fscanf(out, "site of "+s.URL+" serves %s", &base); err != nil {
		t.Fatalf("greeting: %v", err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	got := ""
	for end := time.Now().Add(10 * time.Second); got != want && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		got, err = part(base)
	}
	if err != nil || got != want {
		t.Errorf("the site: %s %v", got, err)
	}
	stop()
	if code := <-ended; code != 0 {
		t.Errorf("it ends with %d: %s", code, said.String())
	}
	for _, bad := range [][]string{{"--channel", "../x"}, {"--channel", "t", "--max", "many"}, {"--channel", "t", "--trust", "../k=x"}, {"--channel", "t", "--cert", s.CA}} {
		if code := Main(t.Context(), append([]string{"site", "--centre", s.URL, "--dir", t.TempDir(), "--listen", "127.0.0.1:0"}, bad...), nil, io.Discard, io.Discard); code == 0 {
			t.Errorf("%v is taken", bad)
		}
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"": 0, "5": 5, "2K": 2 << 10, "3m": 3 << 20, "200G": 200 << 30, "200GB": 200 << 30, "1T": 1 << 40} {
		if n, err := parseSize(s); err != nil || n != want {
			t.Errorf("%q: %d %v", s, n, err)
		}
	}
	for _, s := range []string{"0", "-1", "x", "1.5G", "G", "99999999999T", "1KG"} {
		if n, err := parseSize(s); fault.Code(err) != "size" {
			t.Errorf("%q: %d %v", s, n, err)
		}
	}
}
