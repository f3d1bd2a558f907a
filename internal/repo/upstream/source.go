package upstream

import (
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"drover/internal/fault"
	"drover/internal/fetch"

	"github.com/ProtonMail/go-crypto/openpgp"
)

// Source says where a repository is, by one of URL, Metalink and Mirrorlist, and how it is
// reached.
type Source struct {
	URL        string   `json:"url,omitempty" doc:"directory that holds repodata/, by http, https or file" maxLength:"1000"`
	More       []string `json:"more,omitempty" doc:"further addresses of the same content, used when the first fails; directories (file) are looked into first, also by checksum as Pulp's artifact store has it" maxItems:"50"`
	Metalink   string   `json:"metalink,omitempty" doc:"address of a metalink: mirrors, and checksums of repomd.xml" maxLength:"1000"`
	Mirrorlist string   `json:"mirrorlist,omitempty" doc:"address of a list of mirrors" maxLength:"1000"`
	// Names of files below the server's directory secrets: what they hold is sent to others, so
	// whoever may set a mirror must not choose among all files of the server.
	CA       string `json:"ca,omitempty" doc:"file in secrets/ with authorities for TLS, instead of the system's" maxLength:"100"`
	Cert     string `json:"cert,omitempty" doc:"file in secrets/ with a client certificate" maxLength:"100"`
	CertKey  string `json:"cert_key,omitempty" doc:"file in secrets/ with its key" maxLength:"100"`
	User     string `json:"user,omitempty" doc:"for basic authentication" maxLength:"200"`
	Password string `json:"password,omitempty" doc:"file in secrets/ with the password" maxLength:"100"`
	Proxy    string `json:"proxy,omitempty" doc:"http://HOST:PORT" maxLength:"300"`
	Rate     int64  `json:"rate,omitempty" doc:"bytes a second at most; 0 for no limit" minimum:"0"`
}

var reSecret = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$`)

// Check refuses what is no source, and brings addresses into one form. Directories of the
// server are taken below the given ones only.
func (s *Source) Check(imports []string) error {
	n := 0
	for _, a := range []*string{&s.URL, &s.Metalink, &s.Mirrorlist} {
		if *a == "" {
			continue
		}
		n++
		if err := checkAddress(*a, a != &s.URL, imports); err != nil {
			return err
		}
	}
	if n != 1 {
		return fault.Invalid("mirror_url", "a mirror has one of url, metalink and mirrorlist, and %d are given", n).Fix("give the directory that holds repodata/, or the address of a metalink or a mirror list")
	}
	if len(s.More) > 0 && s.URL == "" {
		return fault.Invalid("mirror_url", "further addresses go with an url, not with a list").Fix("give the first of them as the url")
	}
	s.URL = dir(s.URL)
	for i := range s.More {
		if err := checkAddress(s.More[i], false, imports); err != nil {
			return err
		}
		s.More[i] = dir(s.More[i])
	}
	for _, name := range []string{s.CA, s.Cert, s.CertKey, s.Password} {
		if name != "" && !reSecret.MatchString(name) {
			return fault.Invalid("mirror_secret", "%.100q is no name of a file in the server's directory secrets", name).Fix("put the file there and give its name alone")
		}
	}
	if s.Proxy != "" {
		if u, err := url.Parse(s.Proxy); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || len(s.Proxy) > 300 {
			return fault.Invalid("mirror_proxy", "the proxy's address is none").Fix("give http://HOST:PORT, without a password: everybody may read it")
		}
	}
	if s.Rate < 0 || s.Rate > 0 && s.Rate < 4096 {
		return fault.Invalid("mirror_rate", "%d bytes a second is no limit that anything ends with", s.Rate).Fix("give 4096 or more, or 0 for none")
	}
	return nil
}

func dir(a string) string {
	if a == "" || strings.HasSuffix(a, "/") {
		return a
	}
	return a + "/"
}

func checkAddress(a string, list bool, imports []string) error {
	bad := fault.Invalid("mirror_url", "%.200q is no address of a repository", a).Fix("give the directory that holds repodata/, by http, https or file:///")
	u, err := url.Parse(a)
	if err != nil || len(a) > 1000 || u.Fragment != "" || strings.ContainsAny(a, "\x00\n\r \"'<>") {
		return bad
	}
	if u.User != nil {
		return fault.Invalid("mirror_url", "the address holds a password, and everybody may read it here").Fix("give user and a password file apart from the address")
	}
	if (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && (u.RawQuery == "" || list) {
		return nil
	}
	if u.Scheme != "file" || list || u.Host != "" && u.Host != "localhost" || u.RawQuery != "" || !filepath.IsAbs(u.Path) || filepath.Clean(u.Path) != strings.TrimRight(u.Path, "/") {
		return bad
	}
	for _, d := range imports {
		if below, err := filepath.Rel(d, u.Path); err == nil && filepath.IsLocal(below) {
			return nil
		}
	}
	return fault.Invalid("mirror_import", "%.200q is not below a directory that the server takes repositories from", u.Path).Fix("start the server with --import DIR, a directory above it")
}

// secret is the path of a file of the directory secrets, "" for none.
func secret(dir, name string) string {
	if name == "" {
		return ""
	}
	return filepath.Join(dir, name)
}

// Upstream is a repository that is being read.
type Upstream struct {
	Source
	Keys    openpgp.EntityList // pinned; nil for none
	client  *fetch.Client
	secrets string
	roots   *fetch.Origins
}

// Open gets ready to read a repository. The caller closes it.
func Open(cfg fetch.Config, src Source, secrets string, keys openpgp.EntityList) (*Upstream, error) {
	cfg.CAFile, cfg.Cert, cfg.CertKey, cfg.Proxy = secret(secrets, src.CA), secret(secrets, src.Cert), secret(secrets, src.CertKey), src.Proxy
	if src.Rate > 0 {
		cfg.Limits = append(slices.Clone(cfg.Limits), fetch.Limit(src.Rate))
	}
	c, err := fetch.New(cfg)
	if err != nil {
		return nil, err
	}
	return &Upstream{Source: src, Keys: keys, client: c, secrets: secrets}, nil
}

// Close ends the reading.
func (u *Upstream) Close() { u.client.Close() }

// Stats is what each address did.
func (u *Upstream) Stats() []fetch.OriginStats {
	if u.roots == nil {
		return nil
	}
	return u.roots.Stats()
}

// Local tells whether all files lie in directories of this machine.
func (u *Upstream) Local() bool {
	return isDir(u.URL) && !slices.ContainsFunc(u.More, func(a string) bool { return !isDir(a) })
}

// Near tells whether some files may lie in a directory of this machine.
func (u *Upstream) Near() bool { return isDir(u.URL) || slices.ContainsFunc(u.More, isDir) }

func isDir(address string) bool { return strings.HasPrefix(address, "file:") }

func (u *Upstream) origin(address string, prefer int) fetch.Origin {
	o := fetch.Origin{URL: address, Prefer: prefer}
	// A password is for the address that was given with it, not for whom a list names.
	if u.User != "" && u.Metalink == "" && u.Mirrorlist == "" || address == u.Metalink || address == u.Mirrorlist {
		o.User, o.PasswordFile = u.User, secret(u.secrets, u.Password)
	}
	return o
}
