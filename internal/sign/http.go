package sign

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"drover/internal/auth"
	"drover/internal/cli"
	"drover/internal/sign/wire"
	"drover/internal/web"
)

type none struct{}

// Routes adds the routes of keys and of the signer.
func (s *Store) Routes(srv *web.Server) {
	const tag = "sign"
	web.Route(srv, web.Op{Method: "POST", Path: wire.PathPoll, ID: "signer-poll", Summary: "Wait for what is to be signed", Tag: tag, Guard: auth.Guard("work.sign")},
		func(ctx context.Context, in *struct{ Body wire.Poll }) (wire.Orders, error) {
			return s.poll(ctx, in.Body)
		})
	web.Route(srv, web.Op{Method: "POST", Path: wire.PathAnswer, ID: "signer-answer", Summary: "Bring signatures", Tag: tag, MaxBody: 32 << 20, Guard: auth.Guard("work.sign")},
		func(ctx context.Context, in *struct{ Body wire.Answer }) (none, error) {
			return none{}, s.answer(ctx, in.Body)
		})
	web.Route(srv, web.Op{Method: "POST", Path: wire.PathKeys, ID: "signer-keys", Summary: "Tell which keys the signer holds", Tag: tag, Guard: auth.Guard("work.sign")},
		func(ctx context.Context, in *struct{ Body []wire.Key }) (none, error) {
			return none{}, s.announce(ctx, in.Body)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/keys", ID: "key-list", Summary: "List signing keys", Tag: tag},
		func(ctx context.Context, _ *none) ([]Key, error) { return s.Keys(ctx) })
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/keys", ID: "key-create", Summary: "Have the signer make a key", Tag: tag},
		func(ctx context.Context, in *struct{ Body wire.NewKey }) (Key, error) { return s.Create(ctx, in.Body) })
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/signing", ID: "sign-status", Summary: "Whether a signer is there and how much waits", Tag: tag},
		func(ctx context.Context, _ *none) (Status, error) { return s.Status(ctx) })
	srv.HandleFunc("GET /keys/{file}", func(w http.ResponseWriter, r *http.Request) error {
		name := strings.TrimSuffix(strings.TrimSuffix(r.PathValue("file"), ".asc"), ".pem")
		k, err := s.Key(r.Context(), name)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/pgp-keys")
		if k.Purpose == wire.PurposeAttest {
			w.Header().Set("Content-Type", "application/x-pem-file")
		}
		_, _ = io.WriteString(w, k.Public)
		return nil
	})
}

// Verbs is `drover sign`.
type Verbs struct {
	Key struct {
		List   keyList   `cmd:"" help:"List keys." example:"drover sign key list"`
		Create keyCreate `cmd:"" help:"Have the signer make a key." example:"drover sign key create stream-10 --tag 'stream-10*'"`
		Export keyExport `cmd:"" help:"Print a public key." example:"drover sign key export stream-10 > RPM-GPG-KEY-stream-10"`
	} `cmd:"" help:"Signing keys."`
	Status status `cmd:"" help:"Whether a signer is there and how much waits for it." example:"drover sign status"`
}

type keyList struct{}

// Run lists keys.
func (keyList) Run(e *cli.Env) error {
	var ks []Key
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/keys", nil, &ks); err != nil {
		return err
	}
	return e.Show(ks, func(w io.Writer) {
		cli.Table(w, "KEY ALGO PURPOSE TAGS FINGERPRINT", func(row func(...any)) {
			for _, k := range ks {
				row(k.Name, k.Algo, k.Purpose, strings.Join(k.Tags, ","), k.Fingerprint)
			}
		})
	})
}

type keyCreate struct {
	Name    string   `arg:"" help:"Name of the key."`
	Algo    string   `default:"rsa4096" enum:"rsa4096,ed25519" help:"rsa4096 or ed25519."`
	Purpose string   `default:"rpm" enum:"rpm,attest" help:"rpm for packages and repositories, attest for statements."`
	Tag     []string `required:"" help:"Pattern of tags that it signs for. Repeatable."`
}

// Run makes a key.
func (c keyCreate) Run(e *cli.Env) error {
	var k Key
	if err := e.Client.Call(e.Ctx, "POST", "/api/v1/keys", wire.NewKey{Name: c.Name, Algo: c.Algo, Purpose: c.Purpose, Tags: c.Tag}, &k); err != nil {
		return err
	}
	return e.Show(k, func(w io.Writer) { fmt.Fprintf(w, "%s %s %s\n", k.Name, k.Algo, k.Fingerprint) })
}

type keyExport struct {
	Name string `arg:"" help:"Name of the key."`
}

// Run prints a public key.
func (c keyExport) Run(e *cli.Env) error {
	resp, err := e.Client.Do(e.Ctx, "GET", "/keys/"+url.PathEscape(c.Name)+".asc", nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(e.Out, resp.Body)
	return err
}

type status struct{}

// Run shows how signing stands.
func (status) Run(e *cli.Env) error {
	var st Status
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/signing", nil, &st); err != nil {
		return err
	}
	return e.Show(st, func(w io.Writer) { fmt.Fprintln(w, st) })
}
