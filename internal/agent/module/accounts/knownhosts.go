package accounts

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // the form of hashed names in known_hosts
	"encoding/base64"
	"errors"
	"io/fs"
	"net"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

const systemKnownHosts = "/etc/ssh/ssh_known_hosts"

// knownHost is a line of a known_hosts file (sshd(8)).
type knownHost struct {
	Marker, Names, Enc, Key string
}

func (h *host) knownHosts() []module.Function {
	name := module.Need("hostname", module.Str)
	user := module.May("user", module.Str, nil)
	config := module.May("config", module.Str, nil)
	port := module.May("port", module.Int, nil)
	form := module.May("fingerprint_hash_type", module.Str, nil)
	wait := module.May("timeout", module.Int, int64(5))
	return []module.Function{
		module.Reads("ssh.get_known_host_entries", "Gives what a user's known_hosts says of a host.\n\nsalt '*' ssh.get_known_host_entries root server.example.com", func(_ context.Context, c *module.Call) (any, error) {
			found, err := h.knownOf(c)
			if err != nil || len(found) == 0 {
				return nil, err
			}
			return describeKnown(found, c.Str("fingerprint_hash_type"))
		}, user, name, config, port, form),
		module.Reads("ssh.recv_known_host_entries", "Asks a host for its public keys; nothing proves that they are its own.\n\nsalt '*' ssh.recv_known_host_entries server.example.com enc=ed25519", func(ctx context.Context, c *module.Call) (any, error) {
			found, err := h.receive(ctx, c, c.Bool("hash_known_hosts"))
			if err != nil || len(found) == 0 {
				return nil, err
			}
			return describeKnown(found, c.Str("fingerprint_hash_type"))
		}, name, module.May("enc", module.Str, nil), port, module.May("hash_known_hosts", module.Bool, true), wait, form),
		module.Reads("ssh.check_known_host", "Tells what ssh.set_known_host would do: add, update, or exists.\n\nsalt '*' ssh.check_known_host root server.example.com", h.checkKnown,
			user, name, module.May("key", module.Str, nil), module.May("fingerprint", module.Str, nil), config, port, form),
		module.Tests("ssh.set_known_host", "Lets a user know the key of a host, given or asked for and proven by a fingerprint.\n\nsalt '*' ssh.set_known_host root server.example.com fingerprint=xx:xx enc=ed25519", h.setKnown,
			user, name, module.May("fingerprint", module.Str, nil), module.May("key", module.Str, nil), port, module.May("enc", module.Str, nil), config, module.May("hash_known_hosts", module.Bool, true), wait, form),
		module.Tests("ssh.rm_known_host", "Lets a user forget the keys of a host.\n\nsalt '*' ssh.rm_known_host root server.example.com", h.removeKnown, user, name, config, port),
		module.Tests("ssh.hash_known_hosts", "Hides the names in a known_hosts file behind hashes.\n\nsalt '*' ssh.hash_known_hosts root", h.hashKnown, user, config),
	}
}

// parseKnown reads a line of known_hosts.
func parseKnown(line string) (knownHost, bool) {
	f := strings.Fields(line)
	if len(f) == 0 || f[0][0] == '#' {
		return knownHost{}, false
	}
	var k knownHost
	if f[0][0] == '@' {
		k.Marker, f = f[0], f[1:]
	}
	if len(f) < 3 {
		return knownHost{}, false
	}
	k.Names, k.Enc, k.Key = f[0], f[1], f[2]
	if _, ok := keyBytes("", k.Key); !ok {
		return knownHost{}, false
	}
	return k, true
}

// is tells whether a line speaks of a host, whose name may be hidden.
func (k knownHost) is(name string) bool {
	if rest, ok := strings.CutPrefix(k.Names, "|1|"); ok {
		salt, sum, ok := strings.Cut(rest, "|")
		s, err := base64.StdEncoding.DecodeString(salt)
		return ok && err == nil && hideName(name, s) == "|1|"+salt+"|"+sum
	}
	found := false
	for _, p := range strings.Split(k.Names, ",") {
		not := strings.HasPrefix(p, "!")
		// Brackets stand for themselves here, and for sets in path.Match.
		pat := strings.NewReplacer("[", `\[`, "]", `\]`).Replace(strings.TrimPrefix(p, "!"))
		if ok, err := path.Match(pat, name); ok && err == nil {
			if not {
				return false
			}
			found = true
		}
	}
	return found
}

// hideName is a name behind its hash.
func hideName(name string, salt []byte) string {
	m := hmac.New(sha1.New, salt)
	m.Write([]byte(name))
	return "|1|" + base64.StdEncoding.EncodeToString(salt) + "|" + base64.StdEncoding.EncodeToString(m.Sum(nil))
}

func freshHide(name string) string {
	salt := make([]byte, sha1.Size)
	rand.Read(salt) // never fails
	return hideName(name, salt)
}

// nameArg is the host of a call as the file has it.
func nameArg(c *module.Call) (string, error) {
	name := strings.ToLower(c.Str("hostname"))
	if name == "" || name[0] == '-' || name[0] == '|' || name[0] == '@' || name[0] == '#' || len(name) > 255 || strings.ContainsAny(name, " \t\r\n\x00,*?!\\/[]") {
		return "", fault.Invalid("bad_name", "%q is not the name of a host", name)
	}
	if port := c.Int("port"); port != 0 && port != 22 {
		if port < 0 || port > 65535 {
			return "", fault.Invalid("bad_port", "there is no port %d", port)
		}
		name = "[" + name + "]:" + strconv.FormatInt(port, 10)
	}
	return name, nil
}

// knownPlace is the file of a call: the user's, or the system's.
func (h *host) knownPlace(c *module.Call) (place, error) {
	config, name := c.Str("config"), c.Str("user")
	if name == "" {
		if config == "" {
			config = systemKnownHosts
		}
		if !strings.HasPrefix(config, "/") {
			return place{}, fault.Invalid("bad_path", "without a user, config must be an absolute path, not %q", config)
		}
		return h.placeOf(user{Name: "root"}, config)
	}
	u, ok, err := h.findUser("", name)
	if err != nil {
		return place{}, err
	}
	if !ok {
		return place{}, noUser(name)
	}
	if config == "" {
		config = ".ssh/known_hosts"
	}
	return h.placeOf(u, config)
}

// knownOf are the lines that speak of the host of a call.
func (h *host) knownOf(c *module.Call) ([]knownHost, error) {
	name, err := nameArg(c)
	if err != nil {
		return nil, err
	}
	p, err := h.knownPlace(c)
	if err != nil {
		return nil, err
	}
	text, err := p.read()
	if err != nil {
		return nil, err
	}
	var found []knownHost
	for _, l := range module.Lines(text) {
		if k, ok := parseKnown(l); ok && k.Marker == "" && k.is(name) {
			found = append(found, k)
		}
	}
	return found, nil
}

func describeKnown(all []knownHost, form string) ([]any, error) {
	out := []any{}
	for _, k := range all {
		print, err := fingerprint(k.Key, form)
		if err != nil {
			return nil, err
		}
		out = append(out, map[string]any{"hostname": module.Valid(k.Names), "enc": k.Enc, "key": k.Key, "fingerprint": print})
	}
	return out, nil
}

func (h *host) checkKnown(_ context.Context, c *module.Call) (any, error) {
	found, err := h.knownOf(c)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return "add", nil
	}
	for _, k := range found {
		switch {
		case c.Has("key") && k.Key == c.Str("key"), c.Has("fingerprint") && sameFingerprint(k.Key, c.Str("fingerprint_hash_type"), c.Str("fingerprint")):
			return "exists", nil
		}
	}
	if !c.Has("key") && !c.Has("fingerprint") {
		return "exists", nil
	}
	return "update", nil
}

// receive asks a host for its keys, one connection for each type.
func (h *host) receive(ctx context.Context, c *module.Call, hide bool) ([]knownHost, error) {
	name, err := nameArg(c)
	if err != nil {
		return nil, err
	}
	kinds := []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoRSA}
	if c.Has("enc") {
		enc, err := encName(c.Str("enc"))
		if err != nil {
			return nil, err
		}
		kinds = []string{enc}
	}
	port := c.Int("port")
	if port == 0 {
		port = 22
	}
	address := net.JoinHostPort(c.Str("hostname"), strconv.FormatInt(port, 10))
	wait := time.Duration(min(max(c.Int("timeout"), 1), 600)) * time.Second
	var found []knownHost
	var last error
	for _, kind := range kinds {
		line, err := h.scan(ctx, address, kind, wait)
		if err != nil {
			last = err
			continue
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		k := knownHost{Names: name, Enc: f[0], Key: f[1]}
		if hide {
			k.Names = freshHide(name)
		}
		found = append(found, k)
	}
	if len(found) == 0 && last != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return found, nil
}

// errSeen ends a handshake as soon as the host has shown its key.
var errSeen = errors.New("the key was seen")

// scanKey is the key of a host, as "type base64". It logs in nowhere.
func scanKey(ctx context.Context, address, algorithm string, timeout time.Duration) (string, error) {
	d := net.Dialer{Timeout: timeout}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	want := []string{algorithm}
	if algorithm == ssh.KeyAlgoRSA {
		want = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	var seen string
	_, _, _, err = ssh.NewClientConn(conn, address, &ssh.ClientConfig{
		User: "drover", HostKeyAlgorithms: want, Timeout: timeout,
		HostKeyCallback: func(_ string, _ net.Addr, k ssh.PublicKey) error {
			seen = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
			return errSeen
		},
	})
	if seen != "" {
		return seen, nil
	}
	if err == nil {
		err = errors.New("the host shows no key")
	}
	return "", err
}

func (h *host) setKnown(ctx context.Context, c *module.Call) (any, error) {
	wrong := func(s string) (any, error) { return map[string]any{"status": "error", "error": s}, nil }
	name, err := nameArg(c)
	if err != nil {
		return nil, err
	}
	p, err := h.knownPlace(c)
	if err != nil {
		return nil, err
	}
	var fresh []knownHost
	form, print := c.Str("fingerprint_hash_type"), c.Str("fingerprint")
	if c.Has("key") {
		enc := c.Str("enc")
		if !c.Has("enc") {
			enc = "ssh-rsa"
		}
		if enc, err = encName(enc); err != nil {
			return nil, err
		}
		if _, ok := keyBytes(enc, c.Str("key")); !ok {
			return wrong("the key is no key of type " + enc)
		}
		fresh = []knownHost{{Names: name, Enc: enc, Key: c.Str("key")}}
	} else {
		if fresh, err = h.receive(ctx, c, false); err != nil {
			return nil, err
		}
		if len(fresh) == 0 {
			return wrong("Unable to receive remote host keys")
		}
	}
	if print != "" {
		var proven []knownHost
		for _, k := range fresh {
			if sameFingerprint(k.Key, form, print) {
				proven = append(proven, k)
			}
		}
		if len(proven) == 0 {
			return wrong("Remote host public keys found but none of their fingerprints match the one you have provided")
		}
		fresh = proven // only what the fingerprint stands for is to be trusted
	}
	old, err := h.knownOf(c)
	if err != nil {
		return nil, err
	}
	missing := false
	for _, f := range fresh {
		there := false
		for _, k := range old {
			there = there || k.Enc == f.Enc && k.Key == f.Key
		}
		missing = missing || !there
	}
	before, err := describeKnown(old, form)
	if err != nil {
		return nil, err
	}
	if !missing {
		return map[string]any{"status": "exists", "key": before}, nil
	}
	after, err := describeKnown(fresh, form)
	if err != nil {
		return nil, err
	}
	perm := fs.FileMode(0o600)
	if !c.Has("user") {
		perm = 0o644 // everybody's
	}
	err = p.edit(perm, func(text string) (string, bool) {
		out := withoutHost(text, name)
		for _, k := range fresh {
			if c.Bool("hash_known_hosts") {
				k.Names = freshHide(name)
			}
			out += k.Names + " " + k.Enc + " " + k.Key + "\n"
		}
		return out, !c.Test
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"status": "updated", "old": before, "new": after}, nil
}

// withoutHost is the text of a known_hosts file without the lines of one host.
func withoutHost(text, name string) string {
	var b strings.Builder
	for _, l := range module.Lines(text) {
		if k, ok := parseKnown(l); ok && k.Marker == "" && k.is(name) {
			continue
		}
		b.WriteString(l + "\n")
	}
	return b.String()
}

func (h *host) removeKnown(_ context.Context, c *module.Call) (any, error) {
	name, err := nameArg(c)
	if err != nil {
		return nil, err
	}
	p, err := h.knownPlace(c)
	if err != nil {
		return nil, err
	}
	if !p.exists() {
		return map[string]any{"status": "error", "error": "Known hosts file " + p.name() + " does not exist"}, nil
	}
	err = p.edit(0o600, func(text string) (string, bool) { return withoutHost(text, name), !c.Test })
	return map[string]any{"status": "removed", "comment": p.name() + " no longer knows " + name}, err
}

func (h *host) hashKnown(_ context.Context, c *module.Call) (any, error) {
	p, err := h.knownPlace(c)
	if err != nil {
		return nil, err
	}
	if !p.exists() {
		return map[string]any{"status": "error", "error": "Known hosts file " + p.name() + " does not exist"}, nil
	}
	err = p.edit(0o600, func(text string) (string, bool) {
		var b strings.Builder
		for _, l := range module.Lines(text) {
			k, ok := parseKnown(l)
			if !ok || k.Marker != "" || strings.HasPrefix(k.Names, "|") || strings.ContainsAny(k.Names, "*?!") {
				b.WriteString(l + "\n") // patterns cannot be hashed
				continue
			}
			for _, n := range strings.Split(k.Names, ",") {
				b.WriteString(freshHide(n) + " " + k.Enc + " " + k.Key + "\n")
			}
		}
		return b.String(), !c.Test
	})
	return map[string]any{"status": "updated", "comment": "the names in " + p.name() + " are hashed"}, err
}
