package sign_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/repo/repotest"
	"drover/internal/rpm"
	"drover/internal/sign"
	"drover/internal/sign/wire"
	"drover/internal/web"

	"github.com/ProtonMail/go-crypto/openpgp"
)

func request(t *testing.T, key, tag string, content []byte) sign.Request {
	t.Helper()
	state, sum, err := rpm.Midstate(content)
	if err != nil {
		t.Fatal(err)
	}
	return sign.Request{Key: key, Tag: tag, Subject: "test", Digest: sum, State: state}
}

func TestKeysAndSignatures(t *testing.T) {
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		h.StartSigner(true)
		alice := auth.With(h.System, auth.Actor{Kind: auth.Person, Name: "alice", Role: "admin"})
		for _, k := range []wire.NewKey{{Name: "r", Algo: "rsa4096", Purpose: "rpm", Tags: []string{"s-*"}}, {Name: "e", Algo: "ed25519", Purpose: "rpm", Tags: []string{"s-*", "x"}}, {Name: "a", Algo: "ed25519", Purpose: "attest", Tags: []string{"*"}}} {
			got, err := h.Sign.Create(alice, k)
			h.OK(err)
			if got.Algo != k.Algo || got.Purpose != k.Purpose || !slices.Equal(got.Tags, k.Tags) || len(got.Fingerprint) < 40 {
				t.Errorf("made %+v", got)
			}
			// Asking again gives the same key, asking for another is told.
			if again, err := h.Sign.Create(alice, k); err != nil || again.Fingerprint != got.Fingerprint {
				t.Errorf("again: %+v %v", again, err)
			}
			other := k
			other.Tags = []string{"other"}
			if _, err := h.Sign.Create(alice, other); fault.Code(err) != "key_exists" {
				t.Errorf("the same name for other tags: %v", err)
			}
			for _, ext := range []string{".key", ".yaml"} {
				fi, err := os.Stat(filepath.Join(h.SignerDir(), k.Name+ext))
				if err != nil || fi.Mode().Perm() != 0o600 {
					t.Errorf("%s%s: %v %v", k.Name, ext, fi.Mode(), err)
				}
			}
			if fi, err := os.Stat(h.SignerDir()); err != nil || fi.Mode().Perm() != 0o700 {
				t.Errorf("the signer's directory: %v %v", fi.Mode(), err)
			}
			resp, err := http.Get(h.URL + "/keys/" + k.Name + ".asc")
			h.OK(err)
			b, err := io.ReadAll(resp.Body)
			h.OK(err)
			_ = resp.Body.Close()
			if string(b) != got.Public || strings.Contains(string(b), "PRIVATE") {
				t.Errorf("served key: %s", b)
			}
		}
		h.OK(d.Read(h.System, func(tx *db.Tx) error {
			es, err := event.List(tx, event.Filter{Kind: "sign.key"})
			if len(es) != 3 || !strings.Contains(string(es[0].Data), `"asked_by":"alice"`) || es[0].Actor != "signer:s1" {
				t.Errorf("events: %+v", es)
			}
			return err
		}))
		for name, n := range map[string]wire.NewKey{"key_algo": {Name: "z", Algo: "dsa", Purpose: "rpm"}, "key_name": {Name: "../z", Algo: "ed25519", Purpose: "rpm"}, "key_tag": {Name: "z", Algo: "ed25519", Purpose: "rpm", Tags: []string{"["}}} {
			if _, err := h.Sign.Create(alice, n); fault.Code(err) != name {
				t.Errorf("%+v: %v", n, err)
			}
		}
		if _, err := h.Sign.Create(alice, wire.NewKey{Name: "z", Algo: "rsa4096", Purpose: "attest"}); fault.Code(err) != "key_algo" {
			t.Errorf("an RSA key for statements: %v", err)
		}

		content := []byte("what is signed")
		for _, k := range []string{"r", "e"} {
			sigs, err := h.Sign.Sign(h.System, []sign.Request{request(t, k, "s-1", content), request(t, k, "s-1", []byte("more"))})
			h.OK(err)
			key, err := h.Sign.Key(h.System, k)
			h.OK(err)
			ring, err := openpgp.ReadArmoredKeyRing(strings.NewReader(key.Public))
			h.OK(err)
			if _, err := openpgp.CheckDetachedSignature(ring, bytes.NewReader(content), bytes.NewReader(sigs[0]), nil); err != nil {
				t.Errorf("%s: %v", k, err)
			}
			if _, err := openpgp.CheckDetachedSignature(ring, bytes.NewReader(content), bytes.NewReader(sigs[1]), nil); err == nil {
				t.Errorf("%s: a signature of something else is taken", k)
			}
			// Signed once: asked again, the same signature comes from the rows.
			before := h.Events("sign.")
			again, err := h.Sign.Sign(h.System, []sign.Request{request(t, k, "s-2", content)})
			if err != nil || !bytes.Equal(again[0], sigs[0]) || h.Events("sign.") != before {
				t.Errorf("%s again: %v, %d events", k, err, h.Events("sign.")-before)
			}
		}
		pae := []byte(wire.StatementPrefix + "2 {}")
		_, sum, err := rpm.Midstate(pae)
		h.OK(err)
		sigs, err := h.Sign.Sign(h.System, []sign.Request{{Key: "a", Tag: "any", Subject: "s", Digest: sum, Payload: pae}})
		h.OK(err)
		key, err := h.Sign.Key(h.System, "a")
		h.OK(err)
		blk, _ := pem.Decode([]byte(key.Public))
		pub, err := x509.ParsePKIXPublicKey(blk.Bytes)
		h.OK(err)
		if !ed25519.Verify(pub.(ed25519.PublicKey), pae, sigs[0]) {
			t.Error("the statement's signature does not hold")
		}

		// The server's own refusals.
		for name, c := range map[string]struct {
			r    sign.Request
			code string
		}{
			"another tag":         {request(t, "r", "t-1", content), "key_tag"},
			"no such key":         {request(t, "none", "s-1", content), "key_unknown"},
			"a statement's key":   {request(t, "a", "s-1", content), "key_purpose"},
			"a package's key":     {sign.Request{Key: "e", Tag: "s-1", Subject: "s", Digest: sum, Payload: pae}, "key_purpose"},
			"refused by signer":   {sign.Request{Key: "e", Tag: "s-1", Subject: "s", Digest: strings.Repeat("0", 64), State: []byte("no state")}, "sign_refused"},
			"no statement at all": {sign.Request{Key: "a", Tag: "s-1", Subject: "s", Digest: "ab", Payload: []byte("x")}, "sign_refused"},
		} {
			if _, err := h.Sign.Sign(h.System, []sign.Request{c.r}); fault.Code(err) != c.code {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := h.Sign.Sign(alice, []sign.Request{request(t, "e", "s-1", content)}); fault.Code(err) != "denied" {
			t.Errorf("an admin asks for a signature: %v", err)
		}

		// The operator narrows a key: the signer takes it up and the server learns of it.
		policy := filepath.Join(h.SignerDir(), "e.yaml")
		h.OK(os.WriteFile(policy, []byte("algo: ed25519\npurpose: rpm\ntags: [x]\n"), 0o600))
		_, err = h.Sign.Sign(h.System, []sign.Request{request(t, "e", "s-1", []byte("after"))})
		if c := fault.Code(err); c != "sign_refused" && c != "key_tag" {
			t.Errorf("after the policy was narrowed: %v", err)
		}
		for k, err := h.Sign.Key(h.System, "e"); !slices.Equal(k.Tags, []string{"x"}); k, err = h.Sign.Key(h.System, "e") {
			h.OK(err)
			time.Sleep(10 * time.Millisecond)
			_, _ = h.Sign.Sign(h.System, []sign.Request{request(t, "r", "s-1", fmt.Append(nil, time.Now()))}) // wakes the signer
		}
	})
}

// A signer's token is good for nothing but signing, and what it hands in is checked.
func TestSignersAreNotBelieved(t *testing.T) {
	dbtest.Each(t, repotest.Schemas(), func(t *testing.T, d *db.DB) {
		h := repotest.New(t, d)
		stop := h.StartSigner(true)
		h.Key("k", "ed25519", "*")
		stop()
		bad := &web.Client{Base: h.URL, Token: h.Member(auth.Signer, "mallory"), HTTP: http.DefaultClient}
		other := &web.Client{Base: h.URL, Token: h.Member(auth.Signer, "other"), HTTP: http.DefaultClient}
		sigs := make(chan error, 1)
		go func() {
			_, err := h.Sign.Sign(h.System, []sign.Request{request(t, "k", "t", []byte("x"))})
			sigs <- err
		}()
		var o wire.Orders
		// A signer that does not hold the key is not asked, nor for keys if it makes none.
		h.OK(bad.Call(t.Context(), "POST", wire.PathPoll, wire.Poll{Keys: []string{}}, &o))
		if len(o.Requests) != 0 {
			t.Errorf("asked for a key that it does not have: %+v", o)
		}
		for len(o.Requests) == 0 {
			h.OK(bad.Call(t.Context(), "POST", wire.PathPoll, wire.Poll{Keys: []string{"k"}}, &o))
		}
		r := o.Requests[0]
		if r.Payload != nil || len(r.State) > 200 || r.Digest == "" {
			t.Errorf("a signer is sent more than a digest: %+v", r)
		}
		key, err := h.Sign.Key(t.Context(), "k")
		h.OK(err)
		forged, err := openpgp.NewEntity("drover k", "", "", nil)
		h.OK(err)
		var sig bytes.Buffer
		h.OK(openpgp.DetachSign(&sig, forged, strings.NewReader("x"), nil))
		_ = key
		h.OK(bad.Call(t.Context(), "POST", wire.PathAnswer, wire.Answer{Done: []wire.Done{{ID: r.ID, Signature: sig.Bytes()}}}, nil))
		if err := <-sigs; fault.Code(err) != "sign_refused" || !strings.Contains(err.Error(), "is not of the key k") {
			t.Errorf("a forged signature: %v", err)
		}
		// Its answers to what was answered, and to what never was asked.
		before := h.Events("sign.")
		h.OK(bad.Call(t.Context(), "POST", wire.PathAnswer, wire.Answer{Done: []wire.Done{{ID: r.ID, Signature: sig.Bytes()}, {ID: r.ID, Refused: "no"}}}, nil))
		if err := bad.Call(t.Context(), "POST", wire.PathAnswer, wire.Answer{Done: []wire.Done{{ID: 99, Refused: "x"}}}, nil); fault.Code(err) != "request_unknown" {
			t.Errorf("answer to nothing: %v", err)
		}
		// Another key under a known name; keys of the wrong kind; weak ones.
		evil := func(name string, change func(*wire.Key)) {
			k := key.Key
			change(&k)
			if err := other.Call(t.Context(), "POST", wire.PathKeys, []wire.Key{k}, nil); err == nil || fault.As(err).Kind == fault.KindInternal {
				t.Errorf("%s: %v", name, err)
			}
		}
		var pub bytes.Buffer
		h.OK(forged.Serialize(&pub))
		armored, err := armor(pub.Bytes())
		h.OK(err)
		evil("another key under the name", func(k *wire.Key) { k.Public = armored })
		evil("an RSA key of 2048 bits", func(k *wire.Key) { k.Name, k.Algo, k.Public = "weak", "rsa4096", armored })
		evil("ed25519 said to be rsa", func(k *wire.Key) { k.Name, k.Algo = "n", "rsa4096" })
		evil("a packages' key for statements", func(k *wire.Key) { k.Name, k.Purpose = "n", "attest" })
		evil("no key", func(k *wire.Key) { k.Name, k.Public = "n", "x" })
		evil("a bad name", func(k *wire.Key) { k.Name = "../n" })
		evil("a bad pattern", func(k *wire.Key) { k.Name, k.Tags = "n", []string{"["} })
		evil("a huge one", func(k *wire.Key) { k.Name, k.Public = "n", k.Public+strings.Repeat("x", 70<<10) })
		evil("NUL", func(k *wire.Key) { k.Name, k.Public = "n", "\x00"+k.Public })
		if h.Events("sign.") != before {
			t.Errorf("%d events were written", h.Events("sign.")-before)
		}
		// Everything else is closed to it.
		for _, c := range [][2]string{{"PUT", "/api/v1/tags/x"}, {"PUT", "/api/v1/targets/x"}, {"PUT", "/api/v1/mirrors/x"}, {"PUT", "/api/v1/channels/x"}, {"POST", "/api/v1/mirrors/x/sync"}, {"POST", "/api/v1/keys"},
			{"POST", "/api/v1/tokens"}, {"POST", "/api/v1/tickets"}, {"PUT", "/api/v1/people/x"}, {"POST", "/api/v1/builds"}, {"POST", "/api/v1/srpms"}, {"POST", "/api/v1/builder/poll"}, {"POST", "/api/v1/audit/verify"}, {"GET", "/api/v1/people"}, {"GET", "/api/v1/tokens"}} {
			body := map[string]any{"name": "x", "arches": []string{"x86_64"}, "build_tag": "x", "dest_tag": "x", "url": "http://x/", "arch": "x86_64", "snapshot": strings.Repeat("0", 64), "role": "admin", "kind": "signer",
				"algo": "ed25519", "purpose": "rpm", "tags": []string{"*"}, "target": "x", "version": 1, "channels": []string{"default"}, "slots": 1, "running": []int{}, "host": "h", "wait": 0}
			var in any = body
			if c[0] == "GET" || strings.HasSuffix(c[1], "sync") {
				in = nil
			}
			resp, err := do(t, bad, c[0], c[1], in)
			if err != nil || resp.StatusCode != 403 && resp.StatusCode != 422 {
				t.Errorf("%s %s by a signer: %v %v", c[0], c[1], resp.Status, err)
			}
		}
		if h.Events("sign.") != before {
			t.Errorf("%d events were written", h.Events("sign.")-before)
		}
	})
}

// A signer that makes no keys says so at once, and a lost signer is told of.
func TestSignersThatAreNotThere(t *testing.T) {
	h := repotest.New(t, dbtest.SQLite(t, repotest.Schemas()...))
	st, err := h.Sign.Status(h.System)
	if err != nil || st.Here || !strings.Contains(st.String(), "NO SIGNER: it has never been seen") {
		t.Errorf("nobody: %v %v", st, err)
	}
	stop := h.StartSigner(false)
	for st, err = h.Sign.Status(h.System); !st.Here; st, err = h.Sign.Status(h.System) {
		h.OK(err)
		time.Sleep(5 * time.Millisecond)
	}
	if !strings.Contains(st.String(), "is there") {
		t.Error(st)
	}
	began := time.Now()
	if _, err := h.Sign.Create(h.System, wire.NewKey{Name: "k", Algo: "ed25519", Purpose: "rpm", Tags: []string{"*"}}); fault.Code(err) != "key_refused" || time.Since(began) > 5*time.Second {
		t.Errorf("a key from a signer that makes none: %v after %s", err, time.Since(began))
	}
	stop()
	// One who makes keys comes: the same question is answered.
	stop = h.StartSigner(true)
	for {
		if _, err = h.Sign.Create(h.System, wire.NewKey{Name: "k", Algo: "ed25519", Purpose: "rpm", Tags: []string{"*"}}); fault.Code(err) != "key_refused" {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	h.OK(err)
	stop()
	ctx, cancel := context.WithTimeout(h.System, 300*time.Millisecond)
	defer cancel()
	if _, err := h.Sign.Sign(ctx, []sign.Request{request(t, "k", "t", []byte("x"))}); fault.Code(err) != "signer_away" {
		t.Errorf("with no signer: %v", err)
	}
	if st, err := h.Sign.Status(h.System); err != nil || st.Waiting != 1 {
		t.Errorf("%+v %v", st, err)
	}
	// The request outlives its time: it is not waited for for ever, and a new one is made.
	h.OK(h.DB.Write(h.System, func(tx *db.Tx) error {
		_, err := tx.Exec("UPDATE sign_request SET expires = $1", tx.Now()+200_000)
		return err
	}))
	if _, err := h.Sign.Sign(h.System, []sign.Request{request(t, "k", "t", []byte("x"))}); fault.Code(err) != "signer_away" {
		t.Errorf("a request that nobody takes any more: %v", err)
	}
	h.StartSigner(true)
	if _, err := h.Sign.Sign(h.System, []sign.Request{request(t, "k", "t", []byte("x"))}); err != nil {
		t.Errorf("with the signer back: %v", err)
	}
}

func armor(b []byte) (string, error) {
	a, err := rpm.Armor(b)
	return strings.ReplaceAll(string(a), "PGP SIGNATURE", "PGP PUBLIC KEY BLOCK"), err
}

func do(t *testing.T, c *web.Client, method, path string, in any) (*http.Response, error) {
	t.Helper()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, c.Base+path, body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+c.Token)
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err == nil {
		_ = resp.Body.Close()
	}
	return resp, err
}
