package agent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/url"
	"time"

	"drover/internal/fault"
)

// secure is how the server's certificates are trusted: by the system's CAs and those that are given.
// Those of the server's own CA, which the pinned key vouches for, are trusted whatever this host's
// clock says: a host whose clock is off by hours must be reachable to be mended.
func secure(now func() time.Time, own string, more string, urls ...string) (*tls.Config, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	for _, ca := range []string{own, more} {
		if ca != "" && !pool.AppendCertsFromPEM([]byte(ca)) {
			return nil, fault.Invalid("ca", "the CA of the server is no certificate")
		}
	}
	c := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, Time: now}
	if own == "" {
		return c, nil
	}
	var hosts []string
	for _, u := range urls {
		if p, err := url.Parse(u); err == nil && p.Hostname() != "" {
			hosts = append(hosts, p.Hostname())
		}
	}
	c.InsecureSkipVerify = true //nolint:gosec // VerifyConnection verifies, with another idea of the time
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("the server shows no certificate")
		}
		leaf := cs.PeerCertificates[0]
		at := now()
		if at.Before(leaf.NotBefore) || at.After(leaf.NotAfter) {
			at = leaf.NotBefore.Add(time.Second)
		}
		opts := x509.VerifyOptions{Roots: pool, Intermediates: x509.NewCertPool(), CurrentTime: at}
		for _, p := range cs.PeerCertificates[1:] {
			opts.Intermediates.AddCert(p)
		}
		if _, err := leaf.Verify(opts); err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
		}
		var err error
		for _, h := range hosts {
			if err = leaf.VerifyHostname(h); err == nil {
				return nil
			}
		}
		return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
	}
	return c, nil
}
