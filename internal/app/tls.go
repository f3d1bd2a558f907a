package app

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"drover/internal/durable"
	"drover/internal/fault"
)

// certificate loads the given certificate, or one of a local CA made in dir/tls, which is
// made anew when it is about to end or lacks a name. ca is the file that clients trust.
func certificate(c Config, names []string) (cert tls.Certificate, ca string, err error) {
	if c.Cert != "" {
		cert, err = tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			err = fault.Invalid("tls", "the certificate %s cannot be used", c.Cert).Wrap(err).Fix("give a PEM certificate and its key")
		}
		return cert, "", err
	}
	dir := filepath.Join(c.Dir, "tls")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return cert, "", err
	}
	ca = filepath.Join(dir, "ca.pem")
	root, err := pair(dir, "ca", 20*365*24*time.Hour, nil, nil)
	if err != nil {
		return cert, "", err
	}
	cert, err = pair(dir, "server", 395*24*time.Hour, names, &root)
	return cert, ca, err
}

// pair loads a certificate with its key, or makes it: signed by itself without a parent.
func pair(dir, name string, life time.Duration, names []string, parent *tls.Certificate) (tls.Certificate, error) {
	certFile, keyFile := filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	if c, err := tls.LoadX509KeyPair(certFile, keyFile); err == nil && fits(c, names) {
		return c, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	t := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "drover " + name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life), KeyUsage: x509.KeyUsageDigitalSignature}
	signer, signKey := t, any(key)
	if parent == nil {
		t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
	} else {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		signer, signKey = parent.Leaf, parent.PrivateKey
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if n != "" {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, signer, key.Public(), signKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	kb, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	if err := durable.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb}), 0o600); err != nil {
		return tls.Certificate{}, err
	}
	if err := durable.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return tls.Certificate{}, err
	}
	return tls.LoadX509KeyPair(certFile, keyFile)
}

// fits tells whether a certificate lives for a month more and is for all names.
func fits(c tls.Certificate, names []string) bool {
	if c.Leaf == nil || time.Until(c.Leaf.NotAfter) < 30*24*time.Hour {
		return false
	}
	for _, n := range names {
		if n != "" && c.Leaf.VerifyHostname(n) != nil {
			return false
		}
	}
	return true
}
