package signer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"drover/internal/fault"
	"drover/internal/sign/wire"
	"drover/internal/web"
)

func open(t *testing.T, dir string, accept bool) *Signer {
	t.Helper()
	s, err := New(Config{Dir: dir, AcceptKeys: accept, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func keys(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range []wire.NewKey{{Name: "k", Algo: "ed25519", Purpose: "rpm", Tags: []string{"s-*"}}, {Name: "a", Algo: "ed25519", Purpose: "attest", Tags: []string{"*"}}} {
		if err := Create(dir, n, time.Now); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func request() wire.Request {
	h := sha256.New()
	h.Write([]byte("header"))
	state, _ := h.(encoding.BinaryMarshaler).MarshalBinary()
	return wire.Request{ID: 1, Key: "k", Purpose: "rpm", Tag: "s-1", Subject: "x", Digest: hex.EncodeToString(h.Sum(nil)), State: state, Expires: time.Now().Add(time.Minute).UnixMicro()}
}

// The signer's own policy holds whatever a server asks.
func TestRequestsThatAreRefused(t *testing.T) {
	dir := keys(t)
	s := open(t, dir, false)
	if _, err := s.sign(request()); err != nil {
		t.Fatal(err)
	}
	payload := []byte(wire.StatementPrefix + "2 {}")
	sum := sha256.Sum256(payload)
	attest := func(r *wire.Request, payload []byte) {
		sum := sha256.Sum256(payload)
		*r = wire.Request{Key: "a", Purpose: "attest", Tag: "s-1", Payload: payload, Digest: hex.EncodeToString(sum[:]), Expires: r.Expires}
	}
	for name, c := range map[string]struct {
		change func(*wire.Request)
		code   string
	}{
		"unknown key":               {func(r *wire.Request) { r.Key = "x" }, "key_unknown"},
		"a path for a key":          {func(r *wire.Request) { r.Key = "../k" }, "key_unknown"},
		"another tag":               {func(r *wire.Request) { r.Tag = "prod" }, "key_tag"},
		"a pattern for a tag":       {func(r *wire.Request) { r.Tag = "*" }, "key_tag"},
		"a tag over a slash":        {func(r *wire.Request) { r.Tag = "s-1/prod" }, "key_tag"},
		"no tag":                    {func(r *wire.Request) { r.Tag = "" }, "key_tag"},
		"another purpose":           {func(r *wire.Request) { r.Purpose = "attest" }, "key_purpose"},
		"over its time":             {func(r *wire.Request) { r.Expires = time.Now().UnixMicro() }, "request_old"},
		"valid for ever":            {func(r *wire.Request) { r.Expires = time.Now().Add(2 * time.Hour).UnixMicro() }, "request_far"},
		"no state":                  {func(r *wire.Request) { r.State = nil }, "request_state"},
		"a state of sha1's form":    {func(r *wire.Request) { r.State[3] = 1 }, "request_state"},
		"another digest":            {func(r *wire.Request) { r.Digest = hex.EncodeToString(sum[:]) }, "request_digest"},
		"another state":             {func(r *wire.Request) { r.State[8] ^= 1 }, "request_digest"},
		"a long subject":            {func(r *wire.Request) { r.Subject = strings.Repeat("x", 2000) }, "request_size"},
		"a header for a statement":  {func(r *wire.Request) { r.Key, r.Purpose = "a", "attest" }, "request_digest"},
		"a payload for a statement": {func(r *wire.Request) { attest(r, []byte("\x8e\xad\xe8 a header")) }, "request_kind"},
		"a huge statement":          {func(r *wire.Request) { attest(r, append(bytes.Clone(payload), make([]byte, 1<<20)...)) }, "request_digest"},
	} {
		r := request()
		c.change(&r)
		if sig, err := s.sign(r); fault.Code(err) != c.code || sig != nil {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
	r := request()
	attest(&r, payload)
	if _, err := s.sign(r); err != nil {
		t.Errorf("a statement: %v", err)
	}
	// Only what was signed stands in the log, and the log is a chain.
	b, err := os.ReadFile(filepath.Join(dir, "signed.log"))
	if err != nil || bytes.Count(b, []byte("\n")) != 2 {
		t.Errorf("log: %s %v", b, err)
	}
	if _, n, err := VerifyLog(filepath.Join(dir, "signed.log")); err != nil || n != int64(len(b)) {
		t.Errorf("%d of %d, %v", n, len(b), err)
	}
	for i := range b {
		if b[i] == '\n' && i == len(b)-1 {
			continue // half a last line is not counted, and is cut off at the next start
		}
		bad := bytes.Clone(b)
		bad[i] ^= 2
		f := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(f, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		// A change of the last line shows against the head that was written down.
		head, _, err := VerifyLog(f)
		if err == nil && head == s.last {
			t.Fatalf("a change of byte %d is not found", i)
		}
	}
}

// What an operator may get wrong, and what a server may want to be made.
func TestKeyFiles(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(dir string) error
		code  string
	}{
		"open to others": {func(d string) error { return os.Chmod(filepath.Join(d, "k.key"), 0o640) }, "signer_key"},
		"of another kind": {func(d string) error {
			return os.WriteFile(filepath.Join(d, "k.yaml"), []byte("algo: rsa4096\npurpose: rpm\ntags: [x]\n"), 0o600)
		}, "signer_key"},
		"another purpose": {func(d string) error {
			return os.WriteFile(filepath.Join(d, "k.yaml"), []byte("algo: ed25519\npurpose: attest\ntags: [x]\n"), 0o600)
		}, "signer_key"},
		"no purpose": {func(d string) error {
			return os.WriteFile(filepath.Join(d, "k.yaml"), []byte("algo: ed25519\ntags: [x]\n"), 0o600)
		}, "signer_policy"},
		"a key of no policy": {func(d string) error {
			return os.WriteFile(filepath.Join(d, "k.yaml"), []byte("algo: ed25519\npurpose: rpm\ntag: [x]\n"), 0o600)
		}, "signer_policy"},
		"a bad pattern": {func(d string) error {
			return os.WriteFile(filepath.Join(d, "k.yaml"), []byte("algo: ed25519\npurpose: rpm\ntags: ['[']\n"), 0o600)
		}, "signer_policy"},
		"junk": {func(d string) error { return os.WriteFile(filepath.Join(d, "k.key"), []byte("junk"), 0o600) }, "signer_key"},
	} {
		dir := keys(t)
		if err := c.spoil(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := New(Config{Dir: dir, Now: time.Now, Log: slog.New(slog.DiscardHandler)}); fault.Code(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := keys(t)
	open(t, dir, false)
	if _, err := New(Config{Dir: dir, Now: time.Now, Log: slog.New(slog.DiscardHandler)}); fault.Code(err) != "signer_busy" {
		t.Errorf("two signers in one directory: %v", err)
	}
	was, err := os.ReadFile(filepath.Join(dir, "k.key"))
	if err != nil {
		t.Fatal(err)
	}
	for code, n := range map[string]wire.NewKey{
		"key_exists": {Name: "k", Algo: "ed25519", Purpose: "rpm"}, "key_name": {Name: "../../x", Algo: "ed25519", Purpose: "rpm"}, "key_algo": {Name: "x", Algo: "none", Purpose: "rpm"},
		"key_tag": {Name: "x", Algo: "ed25519", Purpose: "rpm", Tags: []string{"["}}, "key_limit": {Name: "x", Algo: "ed25519", Purpose: "rpm", Tags: make([]string, 1000)},
	} {
		if err := Create(dir, n, time.Now); fault.Code(err) != code {
			t.Errorf("%+v: %v", n, err)
		}
	}
	if now, err := os.ReadFile(filepath.Join(dir, "k.key")); err != nil || !bytes.Equal(was, now) {
		t.Error("a key was replaced")
	}
}

// A server that is hostile, or replays: the signer answers with refusals, goes on, and makes
// no key that it was not started to make.
func TestHostileServer(t *testing.T) {
	dir := keys(t)
	var mu sync.Mutex
	var answers []wire.Answer
	polls := 0
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	rounds := []string{
		`{"requests": "none"}`, `[[[[`, `{"requests":[{"id":1e400}]}`,
		mustJSON(t, wire.Orders{NewKeys: []wire.NewKey{{Name: "evil", Algo: "ed25519", Purpose: "rpm", Tags: []string{"*"}}, {Name: "../evil", Algo: "ed25519", Purpose: "rpm"}}}),
		mustJSON(t, wire.Orders{Requests: make([]wire.Request, 1001)}),
		mustJSON(t, wire.Orders{Requests: []wire.Request{request(), {ID: 2, Key: "nope"}, {ID: 3}, request()}}),
	}
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		switch r.URL.Path {
		case wire.PathPoll:
			if polls == len(rounds) {
				cancel()
				return
			}
			polls++
			_, _ = w.Write([]byte(rounds[polls-1]))
		case wire.PathAnswer:
			var a wire.Answer
			if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
				t.Error(err)
			}
			answers = append(answers, a)
		}
	}))
	defer ts.Close()
	s, err := New(Config{Client: &web.Client{Base: ts.URL, Token: "t"}, Dir: dir, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if polls != len(rounds) || len(answers) != 2 {
		t.Fatalf("%d polls, %d answers: %+v", polls, len(answers), answers)
	}
	if a := answers[0]; len(a.NoKeys) != 2 || len(a.Done) != 0 {
		t.Errorf("to new keys: %+v", a)
	}
	a := answers[1].Done
	if len(a) != 4 || len(a[0].Signature) == 0 || a[1].Refused == "" || a[2].Refused == "" || len(a[3].Signature) == 0 {
		t.Errorf("to requests: %+v", a)
	}
	if m, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(m) != 5 {
		t.Errorf("files: %v", m)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// A power cut in the middle of a line: it is cut off and the chain goes on.
	f, err := os.OpenFile(filepath.Join(dir, "signed.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"at":"2026`); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	s = open(t, dir, false)
	if _, err := s.sign(request()); err != nil {
		t.Fatal(err)
	}
	if head, _, err := VerifyLog(s.logPath()); err != nil || head != s.last {
		t.Error(err)
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Whatever state and digest a server sends: a signature comes only when they fit.
func FuzzRequest(f *testing.F) {
	dir := f.TempDir()
	if err := Create(dir, wire.NewKey{Name: "k", Algo: "ed25519", Purpose: "rpm", Tags: []string{"s-*"}}, time.Now); err != nil {
		f.Fatal(err)
	}
	k, err := load(dir, "k")
	if err != nil {
		f.Fatal(err)
	}
	s := &Signer{Config: Config{Now: time.Now}}
	r := request()
	f.Add(r.State, r.Digest)
	f.Add([]byte("sha\x03"), "")
	f.Fuzz(func(t *testing.T, state []byte, digest string) {
		sig, err := s.openPGP(k, wire.Request{State: state, Digest: digest})
		if err != nil {
			if sig != nil || fault.As(err).Kind == fault.KindInternal {
				t.Fatal(sig, err)
			}
			return
		}
		h := sha256.New()
		if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil || hex.EncodeToString(h.Sum(nil)) != digest {
			t.Fatalf("signed %x as %s", state, digest)
		}
	})
}
