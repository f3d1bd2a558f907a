package accounts

import (
	"context"
	"crypto/md5" //nolint:gosec // an old form of fingerprints, for people to compare
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

const defaultKeys = ".ssh/authorized_keys"

// authKey is a line of an authorized_keys file (sshd(8)).
type authKey struct {
	Enc, Key, Comment string
	Options           []string
}

func (h *host) ssh() []module.Function {
	user := module.Need("user", module.Str)
	key := module.Need("key", module.Str)
	source := module.Need("source", module.Str)
	enc := module.May("enc", module.Str, "ssh-rsa")
	comment := module.May("comment", module.Str, "")
	options := module.May("options", module.Any, nil)
	config := module.May("config", module.Str, defaultKeys)
	env := module.May("saltenv", module.Str, "base")
	cache := module.May("cache_keys", module.Any, nil)
	form := module.May("fingerprint_hash_type", module.Str, nil)
	return []module.Function{
		module.Reads("ssh.auth_keys", "Lists the keys that may log in as a user, or as each of several.\n\nsalt '*' ssh.auth_keys root", h.authKeys, module.May("user", module.List, nil), config, form),
		module.Reads("ssh.check_key", "Tells what ssh.set_auth_key would do with a key: add, update, or exists.\n\nsalt '*' ssh.check_key root 'AAAA...' ssh-ed25519", func(_ context.Context, c *module.Call) (any, error) {
			u, ok, err := h.findUser("", c.Str("user"))
			if err != nil || !ok {
				return "add", err
			}
			k, err := keyArgs(c)
			if err != nil {
				return nil, err
			}
			return h.checkKey(u, k, c.Str("config"))
		}, user, key, enc, comment, options, config, cache, form),
		module.Reads("ssh.check_key_file", "Tells for each key of a file whether it is there.\n\nsalt '*' ssh.check_key_file root salt://ssh/keyfile", func(ctx context.Context, c *module.Call) (any, error) {
			out := map[string]any{}
			u, ok, err := h.findUser("", c.Str("user"))
			if err != nil || !ok {
				return out, err
			}
			keys, err := fetchKeys(ctx, c)
			if err != nil {
				return nil, err
			}
			for _, k := range keys {
				if out[k.Key], err = h.checkKey(u, k, c.Str("config")); err != nil {
					return nil, err
				}
			}
			return out, nil
		}, user, source, config, env, form),
		module.Tests("ssh.set_auth_key", "Lets a key log in as a user: new, replace, no change, or fail.\n\nsalt '*' ssh.set_auth_key root 'AAAA...' enc=ssh-ed25519 comment=me@here", func(_ context.Context, c *module.Call) (any, error) {
			if len(strings.Fields(c.Str("key"))) != 1 {
				return "invalid", nil
			}
			k, err := keyArgs(c)
			if err != nil {
				return nil, err
			}
			return h.setKey(c.Str("user"), k, c.Str("config"), c.Test)
		}, user, key, enc, comment, options, config, cache, form),
		module.Tests("ssh.set_auth_key_from_file", "Lets all keys of a file log in as a user.\n\nsalt '*' ssh.set_auth_key_from_file root salt://ssh/root.pub", func(ctx context.Context, c *module.Call) (any, error) {
			keys, err := fetchKeys(ctx, c)
			if err != nil {
				return nil, err
			}
			if len(keys) == 0 {
				return "fail", nil
			}
			done := map[string]bool{}
			for _, k := range keys {
				s, err := h.setKey(c.Str("user"), k, c.Str("config"), c.Test)
				if err != nil {
					return nil, err
				}
				done[s] = true
			}
			for _, s := range []string{"fail", "invalid", "replace", "new"} {
				if done[s] {
					return strings.Replace(s, "invalid", "fail", 1), nil
				}
			}
			return "no change", nil
		}, user, source, config, env, form),
		module.Tests("ssh.rm_auth_key", "Lets a key no longer log in as a user.\n\nsalt '*' ssh.rm_auth_key root 'AAAA...'", func(_ context.Context, c *module.Call) (any, error) {
			return h.removeKeys(c.Str("user"), c.Str("config"), []string{c.Str("key")}, c.Test)
		}, user, key, config, form),
		module.Tests("ssh.rm_auth_key_from_file", "Lets none of a file's keys log in as a user.\n\nsalt '*' ssh.rm_auth_key_from_file root salt://ssh/old.pub", func(ctx context.Context, c *module.Call) (any, error) {
			keys, err := fetchKeys(ctx, c)
			if err != nil {
				return nil, err
			}
			var list []string
			for _, k := range keys {
				list = append(list, k.Key)
			}
			if len(list) == 0 {
				return "fail", nil
			}
			return h.removeKeys(c.Str("user"), c.Str("config"), list, c.Test)
		}, user, source, config, env, form),
		module.Reads("ssh.user_keys", "Gives the keys of users themselves, the private ones too unless prvfile is false.\n\nsalt '*' ssh.user_keys user=root prvfile=False", h.userKeys,
			module.May("user", module.List, nil), module.May("pubfile", module.Any, nil), module.May("prvfile", module.Any, nil)),
		module.Reads("ssh.host_keys", "Gives the keys of the host, the private ones too unless private is false.\n\nsalt '*' ssh.host_keys private=False", h.hostKeys,
			module.May("keydir", module.Str, nil), module.May("private", module.Bool, true), module.May("certs", module.Bool, true)),
		module.Reads("ssh.key_is_encrypted", "Tells whether a private key in a file wants a passphrase.\n\nsalt '*' ssh.key_is_encrypted /etc/ssh/ssh_host_rsa_key", func(_ context.Context, c *module.Call) (any, error) {
			s, err := module.ReadFile(h.path("", c.Str("key")))
			if err != nil {
				return nil, err
			}
			return keyEncrypted(s)
		}, key),
	}
}

var reEnc = regexp.MustCompile(`^(ssh-|ecdsa-|sk-|x509v3-|webauthn-)[a-zA-Z0-9@.-]+$`)

// encName is a key's type as the files have it.
func encName(s string) (string, error) {
	switch s {
	case "r", "rsa":
		return "ssh-rsa", nil
	case "d", "dsa", "dss":
		return "ssh-dss", nil
	case "e", "ecdsa", "ecdsa-sha2":
		return "ecdsa-sha2-nistp256", nil
	case "ed25519":
		return "ssh-ed25519", nil
	}
	if !reEnc.MatchString(s) {
		return "", fault.Invalid("bad_key", "%q is no type of an ssh key", s).Fix("it begins with ssh-, ecdsa- or sk-, like ssh-ed25519")
	}
	return s, nil
}

// keyBytes are the bytes of a key, whose beginning must name its type.
func keyBytes(enc, key string) ([]byte, bool) {
	b, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(b) < 8 {
		return nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if n > 64 || int(n) > len(b)-4 || enc != "" && string(b[4:4+n]) != enc {
		return nil, false
	}
	return b, true
}

// fingerprint is a key's, in Salt's form: hexadecimal with colons.
func fingerprint(key, form string) (string, error) {
	b, ok := keyBytes("", key)
	if !ok {
		return "", nil
	}
	var sum []byte
	switch form {
	case "", "sha256":
		s := sha256.Sum256(b)
		sum = s[:]
	case "md5":
		s := md5.Sum(b) //nolint:gosec // see above
		sum = s[:]
	default:
		return "", fault.Invalid("bad_fingerprint", "fingerprints are of sha256 or md5, not of %q", form)
	}
	var out []string
	for _, c := range sum {
		out = append(out, hex.EncodeToString([]byte{c}))
	}
	return strings.Join(out, ":"), nil
}

// sameFingerprint compares with one that a person gave, also in OpenSSH's form.
func sameFingerprint(key, form, want string) bool {
	if b, ok := keyBytes("", key); ok && strings.HasPrefix(want, "SHA256:") {
		sum := sha256.Sum256(b)
		return strings.TrimRight(want[7:], "=") == base64.RawStdEncoding.EncodeToString(sum[:])
	}
	got, err := fingerprint(key, form)
	return err == nil && got != "" && strings.EqualFold(got, strings.TrimPrefix(want, "MD5:"))
}

// parseAuthKey reads a line of authorized_keys; false when it is none with a key.
func parseAuthKey(line string) (authKey, bool) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return authKey{}, false
	}
	first, rest := cutQuoted(line, " \t")
	k := authKey{Options: []string{}}
	if !reEnc.MatchString(first) {
		for first != "" {
			var o string
			if o, first = cutQuoted(first, ","); o != "" {
				k.Options = append(k.Options, o)
			}
		}
		first, rest = cutQuoted(strings.TrimLeft(rest, " \t"), " \t")
		if !reEnc.MatchString(first) {
			return authKey{}, false
		}
	}
	f := strings.Fields(rest)
	if len(f) == 0 {
		return authKey{}, false
	}
	k.Enc, k.Key = first, f[0]
	if _, ok := keyBytes("", k.Key); !ok {
		return authKey{}, false
	}
	_, k.Comment, _ = strings.Cut(strings.TrimLeft(rest, " \t"), k.Key)
	k.Comment = strings.TrimSpace(k.Comment)
	return k, true
}

// cutQuoted cuts s at the first of the separators that is not between double quotes.
func cutQuoted(s, separators string) (before, after string) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == '"':
			i++
		case s[i] == '"':
			quoted = !quoted
		case !quoted && strings.IndexByte(separators, s[i]) >= 0:
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}

func (k authKey) String() string {
	s := k.Enc + " " + k.Key
	if len(k.Options) > 0 {
		s = strings.Join(k.Options, ",") + " " + s
	}
	if k.Comment != "" {
		s += " " + k.Comment
	}
	return s
}

func parseAuthKeys(text string) []authKey {
	var out []authKey
	for _, l := range module.Lines(text) {
		if k, ok := parseAuthKey(l); ok {
			out = append(out, k)
		}
	}
	return out
}

// keyArgs is the key that a call describes.
func keyArgs(c *module.Call) (authKey, error) {
	enc, err := encName(c.Str("enc"))
	if err != nil {
		return authKey{}, err
	}
	k := authKey{Enc: enc, Key: c.Str("key"), Comment: strings.TrimSpace(c.Str("comment")), Options: []string{}}
	switch o := c.Any("options").(type) {
	case nil:
	case []any:
		for _, v := range o {
			k.Options = append(k.Options, module.Text(v))
		}
	default: // commas between double quotes are part of an option
		for left := module.Text(o); left != ""; {
			var one string
			if one, left = cutQuoted(left, ","); one != "" {
				k.Options = append(k.Options, one)
			}
		}
	}
	if strings.ContainsAny(k.String(), "\r\n\x00") {
		return authKey{}, fault.Invalid("bad_key", "a key, its comment and its options must be on one line")
	}
	return k, nil
}

// fetchKeys reads the keys of a file that may come from the server.
func fetchKeys(ctx context.Context, c *module.Call) ([]authKey, error) {
	if c.Host == nil || c.Fetch == nil {
		return nil, fault.Unavailable("fetch_missing", "this agent cannot fetch %s", c.Str("source"))
	}
	source := c.Str("source")
	if env := c.Str("saltenv"); env != "base" && strings.HasPrefix(source, "salt://") && !strings.Contains(source, "?") {
		source += "?saltenv=" + env
	}
	r, err := c.Fetch(ctx, source)
	if err != nil {
		return nil, err
	}
	s, err := module.ReadAll(r, source)
	return parseAuthKeys(s), errors.Join(err, r.Close())
}

// namesOf are the users that a call asks for, all of them when it names none.
func (h *host) namesOf(c *module.Call) ([]string, error) {
	names := c.Strs("user")
	if c.Has("user") {
		return names, nil
	}
	all, err := h.allUsers("")
	for _, u := range all {
		names = append(names, u.Name)
	}
	return names, err
}

func (h *host) authKeys(_ context.Context, c *module.Call) (any, error) {
	names, err := h.namesOf(c)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for _, name := range names {
		u, ok, err := h.findUser("", name)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		p, err := h.placeOf(u, c.Str("config"))
		var text string
		if err == nil {
			text, err = p.read()
		}
		if err != nil {
			if len(names) > 1 { // one home that is odd does not hide the others
				continue
			}
			return nil, err
		}
		keys := map[string]any{}
		for _, k := range parseAuthKeys(text) {
			print, err := fingerprint(k.Key, c.Str("fingerprint_hash_type"))
			if err != nil {
				return nil, err
			}
			opts := []string{}
			for _, o := range k.Options {
				opts = append(opts, module.Valid(o))
			}
			keys[k.Key] = map[string]any{"enc": k.Enc, "comment": module.Valid(k.Comment), "options": opts, "fingerprint": print}
		}
		if len(keys) > 0 {
			out[name] = keys
		}
	}
	if len(names) == 1 { // Salt gives the keys alone of a single user
		if keys, ok := out[names[0]]; ok {
			return keys, nil
		}
		return map[string]any{}, nil
	}
	return out, nil
}

// checkKey tells what would become of a key.
func (h *host) checkKey(u user, k authKey, config string) (string, error) {
	p, err := h.placeOf(u, config)
	if err != nil {
		return "", err
	}
	text, err := p.read()
	if err != nil {
		return "", err
	}
	for _, have := range parseAuthKeys(text) {
		if have.Key == k.Key {
			if have.String() == k.String() {
				return "exists", nil
			}
			return "update", nil
		}
	}
	return "add", nil
}

func (h *host) setKey(name string, k authKey, config string, test bool) (string, error) {
	u, ok, err := h.findUser("", name)
	if err != nil || !ok {
		return "fail", err
	}
	if _, ok := keyBytes(k.Enc, k.Key); !ok {
		return "invalid", nil
	}
	p, err := h.placeOf(u, config)
	if err != nil {
		return "", err
	}
	if !isDir(p.base) {
		return "fail", fault.NotFound("home_missing", "there is no directory %s", p.base).Fix("make the home of %s first", name)
	}
	did := "new"
	err = p.edit(0o600, func(text string) (string, bool) {
		lines := module.Lines(text)
		for i, l := range lines {
			if have, ok := parseAuthKey(l); ok && have.Key == k.Key {
				if did = "replace"; have.String() == k.String() {
					did = "no change"
				}
				lines[i] = k.String()
				return strings.Join(lines, "\n") + "\n", !test && did == "replace"
			}
		}
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		return text + k.String() + "\n", !test
	})
	return did, err
}

func isDir(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.IsDir()
}

func (h *host) removeKeys(name, config string, keys []string, test bool) (any, error) {
	u, ok, err := h.findUser("", name)
	if err != nil || !ok {
		return "User does not exist", err
	}
	p, err := h.placeOf(u, config)
	if err != nil {
		return nil, err
	}
	if !p.exists() {
		return "Authorized keys file " + p.name() + " not present", nil
	}
	did := "Key not present"
	err = p.edit(0o600, func(text string) (string, bool) {
		var keep []string
		for _, l := range module.Lines(text) {
			if k, ok := parseAuthKey(l); ok && slices.Contains(keys, k.Key) {
				did = "Key removed"
				continue
			}
			keep = append(keep, l)
		}
		to := strings.Join(keep, "\n")
		if to != "" {
			to += "\n"
		}
		return to, did == "Key removed" && !test
	})
	return did, err
}

// fileArg are the files that an argument names: none when it is false, the usual ones for None.
func fileArg(v any, usual []string) []string {
	switch x := v.(type) {
	case nil:
		return usual
	case bool:
		if x {
			return usual
		}
		return nil
	}
	return []string{module.Text(v)}
}

func (h *host) userKeys(_ context.Context, c *module.Call) (any, error) {
	names, err := h.namesOf(c)
	if err != nil {
		return nil, err
	}
	var private, public []string
	for _, t := range []string{"rsa", "dsa", "ecdsa", "ed25519", "ecdsa_sk", "ed25519_sk"} {
		private, public = append(private, "~/.ssh/id_"+t), append(public, "~/.ssh/id_"+t+".pub")
	}
	files := append(fileArg(c.Any("prvfile"), private), fileArg(c.Any("pubfile"), public)...)
	out := map[string]any{}
	for _, name := range names {
		u, ok, err := h.findUser("", name)
		if err != nil {
			return nil, err
		}
		if !ok || u.Home == "" {
			continue
		}
		keys := map[string]any{}
		for _, f := range files {
			p, err := h.placeOf(u, strings.TrimPrefix(f, "~/"))
			if err != nil {
				return nil, err
			}
			if text, err := p.read(); err == nil && text != "" {
				keys[filepath.Base(f)] = module.Valid(text)
			}
		}
		if len(keys) > 0 {
			out[name] = keys
		}
	}
	return out, nil
}

var reHostKey = regexp.MustCompile(`^ssh_host_([a-zA-Z0-9_-]+)_key((-cert)?\.pub)?$`)

func (h *host) hostKeys(_ context.Context, c *module.Call) (any, error) {
	dir := c.Str("keydir")
	if dir == "" {
		dir = "/etc/ssh"
	}
	list, err := os.ReadDir(h.path("", dir))
	out := map[string]any{}
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	for _, e := range list {
		m := reHostKey.FindStringSubmatch(e.Name())
		if m == nil || m[2] == "" && !c.Bool("private") || m[3] != "" && !c.Bool("certs") {
			continue
		}
		s, err := module.ReadFile(h.path("", dir, e.Name()))
		if err != nil {
			return nil, err
		}
		out[m[1]+m[2]] = module.Valid(strings.TrimSpace(s))
	}
	return out, err
}

// keyEncrypted tells whether a private key in PEM or OpenSSH's form wants a passphrase.
func keyEncrypted(text string) (bool, error) {
	b, _ := pem.Decode([]byte(text))
	if b == nil {
		return false, fault.Invalid("bad_key", "this is no private key in PEM form")
	}
	switch b.Type {
	case "OPENSSH PRIVATE KEY":
		const magic = "openssh-key-v1\x00"
		d, ok := strings.CutPrefix(string(b.Bytes), magic)
		if !ok || len(d) < 4 {
			return false, fault.Invalid("bad_key", "this private key is not whole")
		}
		n := binary.BigEndian.Uint32([]byte(d))
		if uint64(n) > uint64(len(d)-4) {
			return false, fault.Invalid("bad_key", "this private key is not whole")
		}
		return d[4:4+n] != "none", nil
	case "ENCRYPTED PRIVATE KEY":
		return true, nil
	}
	return strings.Contains(b.Headers["Proc-Type"], "ENCRYPTED"), nil
}
