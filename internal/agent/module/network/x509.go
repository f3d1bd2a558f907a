package network

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // a form of fingerprints that people compare
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"strings"
	"time"

	"drover/internal/agent/module"
	"drover/internal/durable"
	"drover/internal/fault"
)

func (h *host) x509() []module.Function {
	cert := module.Need("certificate", module.Str)
	return []module.Function{
		module.Reads("x509.read_certificate", "Tells what a certificate says, given as a file or as text.\n\nsalt '*' x509.read_certificate /etc/pki/mycert.crt", func(_ context.Context, c *module.Call) (any, error) {
			crt, err := h.certificate(c.Str("certificate"))
			if err != nil {
				return nil, err
			}
			return describeCertificate(crt), nil
		}, cert),
		module.Reads("x509.expires", "Tells whether a certificate expires within some days.\n\nsalt '*' x509.expires /etc/pki/mycert.crt days=30", func(_ context.Context, c *module.Call) (any, error) {
			crt, err := h.certificate(c.Str("certificate"))
			if err != nil {
				return nil, err
			}
			return !h.now().AddDate(0, 0, int(c.Int("days"))).Before(crt.NotAfter), nil
		}, cert, module.May("days", module.Int, int64(0))),
		module.Reads("x509.will_expire", "Tells what certificate expires within some days.\n\nsalt '*' x509.will_expire /etc/pki/mycert.crt days=30", func(_ context.Context, c *module.Call) (any, error) {
			crt, err := h.certificate(c.Str("certificate"))
			if err != nil {
				return nil, err
			}
			soon := !h.now().AddDate(0, 0, int(c.Int("days"))).Before(crt.NotAfter)
			return map[string]any{"check_days": c.Int("days"), "cn": crt.Subject.CommonName, "will_expire": soon}, nil
		}, cert, module.Need("days", module.Int)),
		module.Reads("x509.get_public_key", "Gives the public key of a certificate or a private key, in PEM form.\n\nsalt '*' x509.get_public_key /etc/pki/mycert.crt", func(_ context.Context, c *module.Call) (any, error) {
			pub, err := h.publicKey(c.Str("key"))
			if err != nil {
				return nil, err
			}
			b, err := x509.MarshalPKIXPublicKey(pub)
			if err != nil {
				return nil, fault.Invalid("bad_key", "the public key cannot be written").Wrap(err)
			}
			return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b})), nil
		}, module.Need("key", module.Str), module.May("passphrase", module.Str, nil)),
		module.Reads("x509.get_private_key_size", "Tells how many bits a private key has.\n\nsalt '*' x509.get_private_key_size /etc/pki/mycert.key", func(_ context.Context, c *module.Call) (any, error) {
			key, err := h.privateKey(c.Str("private_key"))
			if err != nil {
				return nil, err
			}
			return keyBits(key.Public()), nil
		}, module.Need("private_key", module.Str), module.May("passphrase", module.Str, nil)),
		module.Reads("x509.verify_private_key", "Tells whether a private key belongs to a certificate.\n\nsalt '*' x509.verify_private_key /etc/pki/mycert.key /etc/pki/mycert.crt", func(_ context.Context, c *module.Call) (any, error) {
			key, err := h.privateKey(c.Str("private_key"))
			if err != nil {
				return nil, err
			}
			pub, err := h.publicKey(c.Str("public_key"))
			if err != nil {
				return nil, err
			}
			own, ok := key.Public().(interface{ Equal(x crypto.PublicKey) bool })
			return ok && own.Equal(pub), nil
		}, module.Need("private_key", module.Str), module.Need("public_key", module.Str), module.May("passphrase", module.Str, nil)),
		module.Changes("x509.create_private_key", "Makes a private key, as text or into a file.\n\nsalt '*' x509.create_private_key path=/etc/pki/mykey.key", h.createKey,
			module.May("path", module.Str, nil), module.May("text", module.Bool, false), module.May("bits", module.Int, nil), module.May("passphrase", module.Str, nil), module.May("cipher", module.Str, nil),
			module.May("verbose", module.Bool, true), module.May("algo", module.Str, "rsa"), module.May("keysize", module.Int, nil), module.May("overwrite", module.Bool, true)),
	}
}

// pemOf is the first block of a text in PEM form, or of the file that it names.
func (h *host) pemOf(s string) (*pem.Block, error) {
	if !strings.Contains(s, "-----BEGIN ") {
		text, err := module.ReadFile(h.path(s))
		if err != nil {
			return nil, err
		}
		s = text
	}
	for rest := []byte(s); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return nil, fault.Invalid("bad_pem", "there is nothing in PEM form here")
		}
		if !strings.HasSuffix(b.Type, "PARAMETERS") {
			return b, nil
		}
	}
}

func (h *host) certificate(s string) (*x509.Certificate, error) {
	b, err := h.pemOf(s)
	if err != nil {
		return nil, err
	}
	crt, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		return nil, fault.Invalid("bad_certificate", "this is no certificate").Wrap(err)
	}
	return crt, nil
}

func (h *host) privateKey(s string) (crypto.Signer, error) {
	b, err := h.pemOf(s)
	if err != nil {
		return nil, err
	}
	if b.Type == "ENCRYPTED PRIVATE KEY" || b.Headers["DEK-Info"] != "" {
		return nil, fault.Invalid("key_encrypted", "the private key wants a passphrase").Fix("take it off first: openssl pkey")
	}
	if k, err := x509.ParsePKCS8PrivateKey(b.Bytes); err == nil {
		if s, ok := k.(crypto.Signer); ok {
			return s, nil
		}
	}
	if k, err := x509.ParsePKCS1PrivateKey(b.Bytes); err == nil {
		return k, nil
	}
	k, err := x509.ParseECPrivateKey(b.Bytes)
	if err != nil {
		return nil, fault.Invalid("bad_key", "this is no private key that is known").Wrap(err)
	}
	return k, nil
}

// publicKey is the one of a certificate, a request, a private key, or itself.
func (h *host) publicKey(s string) (crypto.PublicKey, error) {
	b, err := h.pemOf(s)
	if err != nil {
		return nil, err
	}
	var pub crypto.PublicKey
	switch b.Type {
	case "CERTIFICATE":
		var crt *x509.Certificate
		if crt, err = x509.ParseCertificate(b.Bytes); err == nil {
			pub = crt.PublicKey
		}
	case "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST":
		var req *x509.CertificateRequest
		if req, err = x509.ParseCertificateRequest(b.Bytes); err == nil {
			pub = req.PublicKey
		}
	case "PUBLIC KEY":
		pub, err = x509.ParsePKIXPublicKey(b.Bytes)
	case "RSA PUBLIC KEY":
		pub, err = x509.ParsePKCS1PublicKey(b.Bytes)
	default:
		key, err := h.privateKey(s)
		if err != nil {
			return nil, err
		}
		return key.Public(), nil
	}
	if err != nil {
		return nil, fault.Invalid("bad_key", "there is no public key in this").Wrap(err)
	}
	return pub, nil
}

func keyBits(pub crypto.PublicKey) int64 {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return int64(k.N.BitLen())
	case *ecdsa.PublicKey:
		return int64(k.Curve.Params().BitSize)
	case ed25519.PublicKey:
		return 256
	}
	return 0
}

// colons is bytes in hexadecimal with colons.
func colons(b []byte) string {
	var out []string
	for _, c := range b {
		out = append(out, strings.ToUpper(hex.EncodeToString([]byte{c})))
	}
	return strings.Join(out, ":")
}

func describeCertificate(c *x509.Certificate) map[string]any {
	one, two := sha1.Sum(c.Raw), sha256.Sum256(c.Raw) //nolint:gosec // see above
	name := func(n []string, key string, m map[string]any) {
		if len(n) > 0 {
			m[key] = module.Valid(n[0])
		}
	}
	subject, issuer := map[string]any{"CN": module.Valid(c.Subject.CommonName)}, map[string]any{"CN": module.Valid(c.Issuer.CommonName)}
	name(c.Subject.Organization, "O", subject)
	name(c.Subject.OrganizationalUnit, "OU", subject)
	name(c.Subject.Country, "C", subject)
	name(c.Subject.Province, "ST", subject)
	name(c.Subject.Locality, "L", subject)
	name(c.Issuer.Organization, "O", issuer)
	name(c.Issuer.OrganizationalUnit, "OU", issuer)
	name(c.Issuer.Country, "C", issuer)
	name(c.Issuer.Province, "ST", issuer)
	name(c.Issuer.Locality, "L", issuer)
	names := []string{}
	for _, n := range c.DNSNames {
		names = append(names, "DNS:"+module.Valid(n))
	}
	for _, ip := range c.IPAddresses {
		names = append(names, "IP Address:"+ip.String())
	}
	for _, m := range c.EmailAddresses {
		names = append(names, "email:"+module.Valid(m))
	}
	extensions := map[string]any{"basicConstraints": map[bool]string{true: "CA:TRUE", false: "CA:FALSE"}[c.IsCA]}
	if len(names) > 0 {
		extensions["subjectAltName"] = strings.Join(names, ", ")
	}
	if len(c.SubjectKeyId) > 0 {
		extensions["subjectKeyIdentifier"] = colons(c.SubjectKeyId)
	}
	if len(c.AuthorityKeyId) > 0 {
		extensions["authorityKeyIdentifier"] = colons(c.AuthorityKeyId)
	}
	out := map[string]any{"Version": int64(c.Version), "Key Size": keyBits(c.PublicKey), "Serial Number": colons(c.SerialNumber.Bytes()),
		"SHA-256 Finger Print": colons(two[:]), "SHA1 Finger Print": colons(one[:]), "Subject": subject, "Issuer": issuer,
		"Not Before": c.NotBefore.UTC().Format(time.DateTime), "Not After": c.NotAfter.UTC().Format(time.DateTime), "X509v3 Extensions": extensions,
		"Signature Algorithm": c.SignatureAlgorithm.String()}
	if b, err := x509.MarshalPKIXPublicKey(c.PublicKey); err == nil {
		out["Public Key"] = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b}))
	}
	return out
}

func (h *host) createKey(_ context.Context, c *module.Call) (any, error) {
	if c.Has("passphrase") {
		return nil, fault.Invalid("key_encrypted", "private keys with a passphrase are not made here").Fix("leave passphrase out, and protect the file by its mode")
	}
	bits := c.Int("keysize")
	if bits == 0 {
		bits = c.Int("bits")
	}
	var key any
	var err error
	switch c.Str("algo") {
	case "rsa":
		if bits == 0 {
			bits = 2048
		}
		if bits < 2048 || bits > 8192 {
			return nil, fault.Invalid("bad_key_size", "an RSA key has 2048 to 8192 bits, not %d", bits)
		}
		key, err = rsa.GenerateKey(rand.Reader, int(bits))
	case "ec":
		curve := map[int64]elliptic.Curve{0: elliptic.P256(), 256: elliptic.P256(), 384: elliptic.P384(), 521: elliptic.P521()}[bits]
		if curve == nil {
			return nil, fault.Invalid("bad_key_size", "an EC key has 256, 384 or 521 bits, not %d", bits)
		}
		key, err = ecdsa.GenerateKey(curve, rand.Reader)
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		return nil, fault.Invalid("bad_algorithm", "a key is rsa, ec or ed25519, not %q", c.Str("algo"))
	}
	if err != nil {
		return nil, err
	}
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})
	if !c.Has("path") {
		return string(text), nil
	}
	path := h.path(c.Str("path"))
	if !c.Bool("overwrite") {
		if _, err := os.Lstat(path); err == nil {
			return nil, fault.Conflict("file_exists", "there is a file %s already", c.Str("path"))
		}
	}
	if err := durable.WriteFile(path, text, 0o600); err != nil {
		return nil, err
	}
	return "Private key written to " + c.Str("path"), nil
}
