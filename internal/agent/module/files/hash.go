package files

import (
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"io"
	"os"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func hashes() []module.Function {
	in := module.Need("instr", module.Any)
	text := func(f func(s string) (string, error)) module.Run {
		return func(_ context.Context, c *module.Call) (any, error) {
			s, err := f(module.Plain(c.Any("instr")))
			return s, err
		}
	}
	digest := func(form string) module.Run { return text(func(s string) (string, error) { return sum(form, s) }) }
	encode := text(func(s string) (string, error) { return base64.StdEncoding.EncodeToString([]byte(s)), nil })
	decode := text(func(s string) (string, error) {
		b, err := unbase64(s)
		return module.Valid(string(b)), err
	})
	return []module.Function{
		module.Reads("hashutil.digest", "Computes a checksum of a text.\n\nsalt '*' hashutil.digest 'get salted' md5", func(_ context.Context, c *module.Call) (any, error) {
			return sum(c.Str("checksum"), module.Plain(c.Any("instr")))
		}, in, module.May("checksum", module.Str, "md5")),
		module.Reads("hashutil.digest_file", "Computes a checksum of a file.\n\nsalt '*' hashutil.digest_file /etc/passwd", func(ctx context.Context, c *module.Call) (any, error) {
			p, err := argPath(c, "infile")
			if err != nil {
				return nil, err
			}
			return hashFile(ctx, p, c.Str("checksum"))
		}, module.Need("infile", module.Str), module.May("checksum", module.Str, "md5")),
		module.Reads("hashutil.md5_digest", "Computes the MD5 of a text.\n\nsalt '*' hashutil.md5_digest 'get salted'", digest("md5"), in),
		module.Reads("hashutil.sha1_digest", "Computes the SHA-1 of a text.\n\nsalt '*' hashutil.sha1_digest 'get salted'", digest("sha1"), in),
		module.Reads("hashutil.sha256_digest", "Computes the SHA-256 of a text.\n\nsalt '*' hashutil.sha256_digest 'get salted'", digest("sha256"), in),
		module.Reads("hashutil.sha512_digest", "Computes the SHA-512 of a text.\n\nsalt '*' hashutil.sha512_digest 'get salted'", digest("sha512"), in),
		module.Reads("hashutil.base64_b64encode", "Writes a text in base64, on one line.\n\nsalt '*' hashutil.base64_b64encode 'get salted'", encode, in),
		module.Reads("hashutil.base64_b64decode", "Reads a text of base64.\n\nsalt '*' hashutil.base64_b64decode 'Z2V0IHNhbHRlZA=='", decode, in),
		module.Reads("hashutil.base64_encodestring", "Writes a text in base64, in lines.\n\nsalt '*' hashutil.base64_encodestring 'get salted'", text(func(s string) (string, error) { return lines76(base64.StdEncoding.EncodeToString([]byte(s))), nil }), in),
		module.Reads("hashutil.base64_decodestring", "Reads a text of base64 in lines.\n\nsalt '*' hashutil.base64_decodestring 'Z2V0IHNhbHRlZA=='", decode, in),
		module.Reads("hashutil.base64_encodefile", "Writes a file in base64, in lines.\n\nsalt '*' hashutil.base64_encodefile /etc/passwd", on("fname", func(p string, _ *module.Call) (any, error) {
			b, err := load(p)
			return lines76(base64.StdEncoding.EncodeToString(b)), err
		}), module.Need("fname", module.Str)),
		module.Tests("hashutil.base64_decodefile", "Reads base64 into a file.\n\nsalt '*' hashutil.base64_decodefile 'Z2V0IHNhbHRlZA==' /tmp/x", on("outfile", func(p string, c *module.Call) (any, error) {
			b, err := unbase64(c.Str("instr"))
			if err != nil || c.Test {
				return err == nil, err
			}
			return true, replace(p, b, 0o644)
		}), module.Need("instr", module.Str), module.Need("outfile", module.Str)),
		module.Reads("hashutil.hmac_signature", "Checks a signature by HMAC-SHA256, in base64.\n\nsalt '*' hashutil.hmac_signature 'get salted' 'shared secret' 'eBWf9bstXg+NiP5AOwppB5HMvZiYMPzEM9W5YMm/AmQ='", func(_ context.Context, c *module.Call) (any, error) {
			want, err := base64.StdEncoding.DecodeString(c.Str("challenge_hmac"))
			return err == nil && hmac.Equal(want, mac(c)), nil
		}, module.Need("string", module.Str), module.Need("shared_secret", module.Str), module.Need("challenge_hmac", module.Str)),
		module.Reads("hashutil.hmac_compute", "Computes an HMAC-SHA256 of a text, in hexadecimal.\n\nsalt '*' hashutil.hmac_compute 'get salted' 'shared secret'", func(_ context.Context, c *module.Call) (any, error) {
			return hex.EncodeToString(mac(c)), nil
		}, module.Need("string", module.Str), module.Need("shared_secret", module.Str)),
		module.Reads("hashutil.github_signature", "Checks the signature that GitHub sends with a call.\n\nsalt '*' hashutil.github_signature '{\"ref\":0}' 'shared secret' sha1=6e4...", func(_ context.Context, c *module.Call) (any, error) {
			form, sig, _ := strings.Cut(c.Str("challenge_hmac"), "=")
			want, err := hex.DecodeString(sig)
			h := hashOf(form)
			if err != nil || h == nil {
				return false, nil //nolint:nilerr // what is no signature fits nothing
			}
			m := hmac.New(h, []byte(c.Str("shared_secret")))
			_, err = io.WriteString(m, c.Str("string"))
			return err == nil && hmac.Equal(want, m.Sum(nil)), err
		}, module.Need("string", module.Str), module.Need("shared_secret", module.Str), module.Need("challenge_hmac", module.Str)),
		module.Reads("file.get_hash", "Computes the checksum of a file.\n\nsalt '*' file.get_hash /etc/shadow sha256", fileHash, module.Need("path", module.Str), module.May("form", module.Str, "sha256"), module.May("chunk_size", module.Int, 65536)),
		module.Reads("file.get_sum", "Computes the checksum of a file; that there is none is a text.\n\nsalt '*' file.get_sum /etc/passwd sha512", func(ctx context.Context, c *module.Call) (any, error) {
			p, err := argPath(c, "path")
			if err != nil {
				return nil, err
			}
			if !isFile(p) {
				return "File not found", nil
			}
			return hashFile(ctx, p, c.Str("form"))
		}, module.Need("path", module.Str), module.May("form", module.Str, "sha256")),
		module.Reads("file.check_hash", "Tells whether a file has a checksum: TYPE=VALUE, TYPE:VALUE or the value alone.\n\nsalt '*' file.check_hash /etc/fstab md5:...", func(ctx context.Context, c *module.Call) (any, error) {
			p, err := argPath(c, "path")
			if err != nil {
				return nil, err
			}
			return checkHash(ctx, p, c.Str("file_hash"))
		}, module.Need("path", module.Str), module.Need("file_hash", module.Str)),
	}
}

func mac(c *module.Call) []byte {
	m := hmac.New(sha256.New, []byte(c.Str("shared_secret")))
	m.Write([]byte(c.Str("string")))
	return m.Sum(nil)
}

// hashOf is a kind of checksum, nil when it is not known.
func hashOf(form string) func() hash.Hash {
	switch strings.ToLower(strings.ReplaceAll(form, "-", "")) {
	case "md5":
		return md5.New
	case "sha1", "sha":
		return sha1.New
	case "sha224":
		return sha256.New224
	case "sha256":
		return sha256.New
	case "sha384":
		return sha512.New384
	case "sha512":
		return sha512.New
	}
	return nil
}

func unknownHash(form string) error {
	return fault.Invalid("hash_unknown", "Invalid hash type: %s", form).Fix("md5, sha1, sha224, sha256, sha384 and sha512 are known")
}

func sum(form, s string) (string, error) {
	h := hashOf(form)
	if h == nil {
		return "", unknownHash(form)
	}
	d := h()
	if _, err := io.WriteString(d, s); err != nil {
		return "", err
	}
	return hex.EncodeToString(d.Sum(nil)), nil
}

func hashFile(ctx context.Context, p, form string) (string, error) {
	h := hashOf(form)
	if h == nil {
		return "", unknownHash(form)
	}
	i, err := os.Stat(p)
	if err != nil {
		return "", failed("read", p, err)
	}
	if !i.Mode().IsRegular() {
		return "", fault.Invalid("not_a_file", "%s is not an ordinary file", p)
	}
	f, err := os.Open(p)
	if err != nil {
		return "", failed("read", p, err)
	}
	defer f.Close()
	d := h()
	if _, err := io.Copy(d, watched{ctx, f}); err != nil {
		return "", failed("read", p, err)
	}
	return hex.EncodeToString(d.Sum(nil)), nil
}

func fileHash(ctx context.Context, c *module.Call) (any, error) {
	p, err := argPath(c, "path")
	if err != nil {
		return nil, err
	}
	return hashFile(ctx, p, c.Str("form"))
}

func checkHash(ctx context.Context, p, want string) (bool, error) {
	form, value := map[int]string{32: "md5", 40: "sha1", 56: "sha224", 64: "sha256", 96: "sha384", 128: "sha512"}[len(want)], want
	if i := strings.IndexAny(want, ":="); i >= 0 {
		form, value = want[:i], want[i+1:]
	}
	if form == "" || value == "" {
		return false, fault.Invalid("hash_unknown", "Bad hash format: %q", want).Fix("TYPE=VALUE or TYPE:VALUE")
	}
	has, err := hashFile(ctx, p, form)
	return strings.EqualFold(has, value), err
}

// lines76 breaks base64 into lines as MIME does.
func lines76(s string) string {
	var b strings.Builder
	for len(s) > 76 {
		b.WriteString(s[:76] + "\n")
		s = s[76:]
	}
	if s != "" {
		b.WriteString(s + "\n")
	}
	return b.String()
}

func unbase64(s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		return nil, fault.Invalid("base64_bad", "the text is no base64").Wrap(err)
	}
	return b, nil
}
