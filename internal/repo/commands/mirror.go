package commands

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"drover/internal/cli"
	"drover/internal/fault"
	"drover/internal/repo/mirrors"
	"drover/internal/repo/upstream"
	"drover/internal/web"
)

func mirrorPath(name string) string { return "/api/v1/mirrors/" + url.PathEscape(name) }

type mirrorList struct{}

// Run lists mirrors.
func (mirrorList) Run(e *cli.Env) error {
	var ms []mirrors.Mirror
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/mirrors", nil, &ms); err != nil {
		return err
	}
	return e.Show(ms, func(w io.Writer) {
		cli.Table(w, "MIRROR ARCH FROM SYNCED UPSTREAM NEXT ABSENT OUTCOME", func(row func(...any)) {
			for _, m := range ms {
				row(m.Name, m.Arch, m.Address(), date(m.Synced, "never"), date(m.Upstream, "-"), date(m.Due, "-"), m.Absent, cmp.Or(m.Warning, m.Outcome))
			}
		})
	})
}

func date(t time.Time, none string) string {
	if t.IsZero() {
		return none
	}
	return t.Format(time.DateTime)
}

type mirrorShow struct {
	Name string `arg:"" help:"Name of the mirror."`
}

// Run shows a mirror.
func (c mirrorShow) Run(e *cli.Env) error {
	var m mirrors.Mirror
	if err := e.Client.Call(e.Ctx, "GET", mirrorPath(c.Name), nil, &m); err != nil {
		return err
	}
	return e.Show(m, func(w io.Writer) {
		line := func(what, format string, args ...any) {
			fmt.Fprintf(w, "%-10s "+format+"\n", append([]any{what}, args...)...)
		}
		line("mirror", "%s, %s", m.Name, m.Arch)
		line("from", "%s", strings.Join(append([]string{m.Address()}, m.More...), " "))
		line("outcome", "%s, %s", cmp.Or(m.Outcome, "not synced yet"), date(m.Synced, "never"))
		if m.Warning != "" {
			line("warning", "%s", m.Warning)
		}
		line("good", "%s", date(m.Good, "never"))
		line("changed", "%s", date(m.Changed, "never"))
		line("upstream", "%s, repomd.xml %.12s, signed %v", date(m.Upstream, "-"), m.Repomd, m.Signed)
		line("snapshot", "%.12s", m.Snapshot)
		line("fetched", "%s in %.1f s", web.Bytes(m.Fetched), m.Took)
		line("absent", "%d packages", m.Absent)
		line("next", "%s", date(m.Due, "when somebody says so"))
	})
}

type mirrorSet struct {
	Name           string        `arg:"" help:"Name of the mirror, and of its channel."`
	URL            string        `arg:"" optional:"" help:"Directory that holds repodata/, by http, https or file."`
	More           []string      `help:"A further address of the same content, used when the first fails. Repeatable."`
	Metalink       string        `help:"Address of a metalink, instead of URL."`
	Mirrorlist     string        `help:"Address of a list of mirrors, instead of URL."`
	Arch           string        `default:"x86_64" help:"Arch of the tree."`
	Gpgkey         []string      `help:"File with upstream's OpenPGP keys. Signatures have to be by one of them, and hosts check with them. Repeatable." type:"path"`
	VerifyPackages bool          `help:"Refuse packages that are not signed with a key of --gpgkey."`
	Only           []string      `name:"only-arch" help:"Only packages of this arch; noarch has to be named too. Repeatable."`
	Include        []string      `help:"Only packages whose name, name.arch or NEVRA matches. Repeatable."`
	Exclude        []string      `help:"No packages that match. Repeatable."`
	Newest         int           `help:"Only so many versions of each package."`
	NoDebug        bool          `help:"No debuginfo and debugsource packages."`
	NoSource       bool          `help:"No source packages."`
	Regenerate     bool          `help:"Make the metadata anew also without a filter."`
	Key            string        `help:"Key of drover that signs metadata which is made anew."`
	OnDemand       bool          `help:"Metadata at once, packages when they are asked for and slowly by themselves."`
	NoFill         bool          `help:"On demand: packages only when they are asked for."`
	Tree           bool          `help:"With the installation tree: kernel, initrd, install.img, boot loaders."`
	Link           bool          `help:"Of a directory: hard links instead of copies, where clones are not possible."`
	Every          time.Duration `help:"Time from one sync to the next, like 6h."`
	MaxAge         time.Duration `help:"Warn when upstream has not changed for so long, like 168h."`
	Rate           int64         `help:"Bytes a second at most."`
	CA             string        `name:"tls-ca" help:"File in the server's directory secrets: authorities for TLS."`
	Cert           string        `name:"tls-cert" help:"File in secrets: a client certificate."`
	CertKey        string        `name:"tls-key" help:"File in secrets: its key."`
	User           string        `help:"User for basic authentication."`
	PasswordFile   string        `help:"File in secrets: the password."`
	Proxy          string        `help:"http://HOST:PORT"`
}

// Run adds a mirror.
func (c mirrorSet) Run(e *cli.Env) error {
	m := mirrors.Config{
		Source: upstream.Source{URL: c.URL, More: c.More, Metalink: c.Metalink, Mirrorlist: c.Mirrorlist, CA: c.CA, Cert: c.Cert, CertKey: c.CertKey, User: c.User, Password: c.PasswordFile, Proxy: c.Proxy, Rate: c.Rate},
		Filter: upstream.Filter{Arches: c.Only, Include: c.Include, Exclude: c.Exclude, Newest: c.Newest, NoDebug: c.NoDebug, NoSource: c.NoSource},
		Arch:   c.Arch, VerifyPackages: c.VerifyPackages, Regenerate: c.Regenerate, Key: c.Key, OnDemand: c.OnDemand, NoFill: c.NoFill, Tree: c.Tree, Link: c.Link,
		Every: int64(c.Every / time.Second), MaxAge: int64(c.MaxAge / time.Second),
	}
	for _, f := range c.Gpgkey {
		b, err := os.ReadFile(f)
		if err != nil {
			return fault.Invalid("gpgkey", "the key file %.200s cannot be read", f).Wrap(err).Fix("give the file that upstream's keys are in")
		}
		m.Keys += strings.TrimSpace(string(b)) + "\n"
	}
	return e.Client.Call(e.Ctx, "PUT", mirrorPath(c.Name), m, nil)
}

type mirrorDrop struct {
	Name  string `arg:"" help:"Name of the mirror."`
	Force bool   `help:"Give up packages that are not fetched yet."`
}

// Run ends a mirror.
func (c mirrorDrop) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "DELETE", fmt.Sprintf("%s?force=%v", mirrorPath(c.Name), c.Force), nil, nil)
}

type mirrorSync struct {
	Name           string `arg:"" help:"Name of the mirror."`
	AcceptRollback bool   `help:"Take an upstream that went back, or is not signed any more, this time."`
}

// Run syncs a mirror and shows how far it is.
func (c mirrorSync) Run(e *cli.Env) error {
	resp, err := e.Client.Do(e.Ctx, "POST", fmt.Sprintf("%s/sync?accept_rollback=%v", mirrorPath(c.Name), c.AcceptRollback), nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var l mirrors.SyncLine
		if err := dec.Decode(&l); err != nil {
			return fault.Unavailable("answer_cut", "the server went away during the sync").Wrap(err).Fix("sync again: it goes on where it was")
		}
		if l.Problem != nil {
			return fault.FromStatus(l.Problem.Status, l.Problem.Code, l.Problem.Detail, l.Problem.Remedy)
		}
		if l.Snapshot != "" {
			if e.Terminal {
				fmt.Fprintln(e.Err)
			}
			if l.Warning != "" {
				fmt.Fprintln(e.Err, "warning:", l.Warning)
			}
			return e.Show(map[string]string{"snapshot": l.Snapshot}, func(w io.Writer) { fmt.Fprintln(w, l.Snapshot) })
		}
		if e.Terminal {
			fmt.Fprintf(e.Err, "\r%d of %d packages, %s fetched, %s/s \x1b[K", l.Done, l.Packages, web.Bytes(l.Bytes), web.Bytes(int64(l.Rate)))
		}
	}
}
