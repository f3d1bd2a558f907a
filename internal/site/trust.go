package site

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/repo/wire"

	"github.com/ProtonMail/go-crypto/openpgp"
)

// trust is the keys that a site takes: a file each, by name. A key that is there stays until
// somebody says otherwise.
type trust struct {
	dir   string
	told  map[string]bool // names that channels may have from now on
	mu    sync.Mutex      // guards rings
	rings map[string]openpgp.EntityList
}

// reKey is the name of a key of drover's, or of the keys that are pinned for a mirror.
var reKey = regexp.MustCompile(`^(mirror/)?[a-zA-Z0-9][a-zA-Z0-9_.-]{0,99}$`)

// openTrust reads the keys, and takes those that it is told.
func openTrust(dir string, told map[string]string) (*trust, error) {
	t := &trust{dir: dir, told: map[string]bool{}, rings: map[string]openpgp.EntityList{}}
	for name, file := range told {
		if name == Unsigned {
			t.told[""] = true
			continue
		}
		if !reKey.MatchString(name) {
			return nil, fault.Invalid("site_key", "%.100q is no name of a key", name).Fix("give NAME=FILE, as `drover sign key list` names it, or mirror/NAME=FILE for the keys of a mirror")
		}
		t.told[name] = true
		if file == "" {
			if err := os.Remove(t.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fault.Invalid("site_key", "the key %s cannot be read", file).Wrap(err).Fix("give the file of an armored public key")
		}
		if err := t.pin(name, text); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *trust) file(name string) string { return filepath.Join(t.dir, url.PathEscape(name)+".asc") }

// pin takes a key for good.
func (t *trust) pin(name string, text []byte) error {
	ring, err := wire.ReadKeys(string(text))
	if err != nil || len(ring) == 0 {
		return fault.Invalid("site_key", "what is given for the key %s is no public key", name).Wrap(err).Fix("give the file of an armored public key, as `drover sign key export` prints it; a mirror's may be several, one behind the other")
	}
	if err := durable.WriteFile(t.file(name), text, 0o644); err != nil {
		return err
	}
	t.mu.Lock()
	t.rings[name] = ring
	t.mu.Unlock()
	return nil
}

// text is a key as hosts are given it.
func (t *trust) text(name string) ([]byte, error) {
	if !reKey.MatchString(name) {
		return nil, fs.ErrNotExist
	}
	return os.ReadFile(t.file(name))
}

// ring is the key of a name that was taken, or nil.
func (t *trust) ring(name string) openpgp.EntityList {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.rings[name]; r != nil {
		return r
	}
	text, err := t.text(name)
	if err != nil {
		return nil
	}
	r, err := wire.ReadKeys(string(text))
	if err != nil {
		return nil
	}
	t.rings[name] = r
	return r
}

// key gives the key of a name, and takes the centre's the first time.
func (s *Site) key(ctx context.Context, name string) (openpgp.EntityList, error) {
	if r := s.trust.ring(name); r != nil {
		return r, nil
	}
	if !reKey.MatchString(name) {
		return nil, fault.Invalid("site_key", "the centre names a key %.100q", name).Fix("the centre is broken or hostile")
	}
	text, err := s.small(ctx, "/keys/"+escaped(name)+".asc", maxKeys)
	if err != nil {
		return nil, err
	}
	if err := s.trust.pin(name, text); err != nil {
		return nil, err
	}
	s.Log.Warn("a key is taken, as it is the first time; compare its fingerprint", "key", name, "fingerprint", fingerprints(s.trust.ring(name)), "file", s.trust.file(name))
	return s.trust.ring(name), nil
}

// verify checks the signature of a repomd.xml.
func verify(channel, tree, name string, ring openpgp.EntityList, repomd, asc []byte) error {
	if _, err := openpgp.CheckArmoredDetachedSignature(ring, bytes.NewReader(repomd), bytes.NewReader(asc), nil); err != nil {
		return fault.Invalid("site_signature", "the signature of %s/%s is not by the key %s that this site took", channel, tree, name).Wrap(err).
			Fix("if the key was changed on purpose, start the site with --trust %s=FILE; otherwise somebody changes what comes from the centre", name)
	}
	return nil
}

// small fetches a small file from the centre.
func (s *Site) small(ctx context.Context, path string, most int64) ([]byte, error) {
	resp, err := s.Centre.Do(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	s.numbers.fetched.Add(int64(len(b)))
	if err != nil {
		return nil, fault.Unavailable("site_cut", "%s did not come whole", path).Wrap(err).Fix("it is tried again")
	}
	if int64(len(b)) > most {
		return nil, fault.TooLarge("site_size", "%s has over %d bytes", path, most)
	}
	return b, nil
}
