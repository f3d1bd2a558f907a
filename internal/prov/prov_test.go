package prov_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"drover/internal/build"
	"drover/internal/cli"
	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/distgit"
	"drover/internal/fault"
	"drover/internal/prov"
	"drover/internal/release"
	"drover/internal/repo/mirrors"
	"drover/internal/repo/repotest"
	"drover/internal/repo/upstream"
	"drover/internal/sign/wire"
	"drover/internal/web"
)

func schemas() []db.Schema { return append(repotest.Schemas(), prov.Schema()) }

// house is a House that makes statements.
func house(t *testing.T, d *db.DB) (*repotest.House, *prov.Store) {
	t.Helper()
	h := repotest.New(t, d)
	p := prov.New(prov.Config{DB: d, Builds: h.Build, Git: h.Git, Repo: h.Repo, Sign: h.Sign, Log: slog.New(slog.NewTextHandler(h.Log, nil))})
	p.Routes(h.Web)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := p.Run(h.System); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		h.Stop()
		<-done
	})
	return h, p
}

// pushed makes a repository, pushes the sources of a spec file to it with git, and gives the
// commit.
func pushed(t *testing.T, h *repotest.House, name, spec string) string {
	t.Helper()
	h.OK(h.Git.Create(h.System, distgit.Repo{Name: "rpms/" + name}))
	dir := t.TempDir()
	for file, text := range map[string]string{"x.spec": spec, "hello.sh": repotest.Program} {
		h.OK(os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
	}
	remote := strings.Replace(h.URL, "http://", "http://x:"+h.Token("packager")+"@", 1) + "/git/rpms/" + name
	var out []byte
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "-A"}, {"commit", "-q", "-m", "one"}, {"push", "-q", remote, "main"}, {"rev-parse", "HEAD"}} {
		c := exec.Command("git", args...)
		c.Dir = dir
		c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=T", "GIT_AUTHOR_EMAIL=t@example.org", "GIT_COMMITTER_NAME=T", "GIT_COMMITTER_EMAIL=t@example.org", "GIT_TERMINAL_PROMPT=0")
		var err error
		if out, err = c.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	return strings.TrimSpace(string(out))
}

// statement waits for the statement of a build and takes it apart with nothing of drover's: the
// envelope by its specification, the signature by the standard library.
func statement(t *testing.T, h *repotest.House, id int64) map[string]any {
	t.Helper()
	var body []byte
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get(fmt.Sprintf("%s/api/v1/builds/%d/statement", h.URL, id))
		h.OK(err)
		body, err = io.ReadAll(resp.Body)
		h.OK(err)
		_ = resp.Body.Close()
		if resp.StatusCode == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no statement: %s\n%s", body, h.Log)
		}
	}
	var env struct {
		PayloadType string `json:"payloadType"`
		Payload     string `json:"payload"`
		Signatures  []struct {
			KeyID string `json:"keyid"`
			Sig   string `json:"sig"`
		} `json:"signatures"`
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	h.OK(dec.Decode(&env))
	payload, err := base64.StdEncoding.DecodeString(env.Payload)
	h.OK(err)
	sig, err := base64.StdEncoding.DecodeString(env.Signatures[0].Sig)
	h.OK(err)
	resp, err := http.Get(h.URL + "/keys/attest.pem")
	h.OK(err)
	defer resp.Body.Close()
	key, err := io.ReadAll(resp.Body)
	h.OK(err)
	blk, _ := pem.Decode(key)
	pub, err := x509.ParsePKIXPublicKey(blk.Bytes)
	h.OK(err)
	pae := "DSSEv1 " + fmt.Sprint(len(env.PayloadType)) + " " + env.PayloadType + " " + fmt.Sprint(len(payload)) + " " + string(payload)
	if !ed25519.Verify(pub.(ed25519.PublicKey), []byte(pae), sig) {
		t.Error("the signature does not hold")
	}
	id256 := sha256.Sum256(blk.Bytes)
	if env.PayloadType != "application/vnd.in-toto+json" || len(env.Signatures) != 1 || env.Signatures[0].KeyID != hex.EncodeToString(id256[:]) {
		t.Errorf("envelope: %s", body)
	}
	var st map[string]any
	h.OK(json.Unmarshal(payload, &st))
	return st
}

func at(t *testing.T, v any, path ...any) any {
	t.Helper()
	for _, p := range path {
		switch x := v.(type) {
		case map[string]any:
			v = x[p.(string)]
		case []any:
			i, ok := p.(int)
			if !ok || i >= len(x) {
				return nil
			}
			v = x[i]
		default:
			return nil
		}
	}
	return v
}

func fields(t *testing.T, what string, v any, names ...string) {
	t.Helper()
	m, ok := v.(map[string]any)
	if !ok {
		t.Errorf("%s is no object: %v", what, v)
		return
	}
	for k := range m {
		if !strings.Contains(" "+strings.Join(names, " ")+" ", " "+k+" ") {
			t.Errorf("%s has the field %q, which the specification does not know", what, k)
		}
	}
}

// resources checks a list of resource descriptors (in-toto/attestation spec/v1).
func resources(t *testing.T, what string, v any) map[string]map[string]any {
	t.Helper()
	list, ok := v.([]any)
	if !ok {
		t.Errorf("%s is no list: %v", what, v)
	}
	out := map[string]map[string]any{}
	for _, r := range list {
		fields(t, what, r, "name", "uri", "digest", "content", "downloadLocation", "mediaType", "annotations")
		name, _ := at(t, r, "name").(string)
		if u, ok := at(t, r, "uri").(string); ok {
			if p, err := url.Parse(u); err != nil || !p.IsAbs() {
				t.Errorf("%s: %q is no URI", what, u)
			}
		}
		digest, _ := at(t, r, "digest").(map[string]any)
		if len(digest) == 0 {
			t.Errorf("%s: %s has no digest", what, name)
		}
		for algo, d := range digest {
			if s, ok := d.(string); !ok || !regexp.MustCompile(`^[0-9a-f]{40,128}$`).MatchString(s) {
				t.Errorf("%s: %s of %s is %v", what, algo, name, d)
			}
		}
		out[name] = digest
	}
	return out
}

// A statement field by field against slsa.dev/spec/v1.0/provenance and in-toto's Statement v1.
func TestStatements(t *testing.T) {
	spec := repotest.Spec("hello", "1")
	srpm, rpms := repotest.RPMBuild(t, spec)
	osrpm, orpms := repotest.RPMBuild(t, repotest.Spec("other", "1"))
	dbtest.Each(t, schemas(), func(t *testing.T, d *db.DB) {
		h, p := house(t, d)
		h.Tag(release.Tag{Name: "stream", Macros: map[string]string{"dist": ".x"}})
		commit := pushed(t, h, "hello", spec)
		b, err := h.Build.Submit(h.System, build.Request{Target: "stream", Repo: "rpms/hello", Ref: "main"})
		h.OK(err)
		b = h.Work(b, srpm, rpms...)
		other := h.Submit("stream", osrpm, orpms...)
		if _, err := p.Statement(h.System, b.ID); fault.Code(err) != "statement_unknown" {
			t.Errorf("without a signer: %v", err)
		}
		h.StartSigner(true) // the statements have waited for it

		st := statement(t, h, b.ID)
		fields(t, "the statement", st, "_type", "subject", "predicateType", "predicate")
		if st["_type"] != "https://in-toto.io/Statement/v1" || st["predicateType"] != "https://slsa.dev/provenance/v1" {
			t.Errorf("types: %v %v", st["_type"], st["predicateType"])
		}
		rs, err := h.Build.RPMs(h.System, b.ID)
		h.OK(err)
		subject := resources(t, "subject", st["subject"])
		for _, r := range rs {
			if s := subject[r.File]; s["sha256"] != r.Digest.String() || s["rpmHeaderSha256"] != r.Header {
				t.Errorf("subject %s: %v", r.File, s)
			}
		}
		if len(subject) != 2 {
			t.Errorf("subjects: %v", subject)
		}
		fields(t, "predicate", st["predicate"], "buildDefinition", "runDetails")
		def, run := at(t, st, "predicate", "buildDefinition"), at(t, st, "predicate", "runDetails")
		fields(t, "buildDefinition", def, "buildType", "externalParameters", "internalParameters", "resolvedDependencies")
		fields(t, "runDetails", run, "builder", "metadata", "byproducts")
		for what, u := range map[string]any{"buildType": at(t, def, "buildType"), "builder.id": at(t, run, "builder", "id")} {
			if p, err := url.Parse(fmt.Sprint(u)); err != nil || !p.IsAbs() {
				t.Errorf("%s %v is no URI", what, u)
			}
		}
		if !strings.HasSuffix(fmt.Sprint(at(t, run, "builder", "id")), "/b1") {
			t.Errorf("builder: %v", at(t, run, "builder"))
		}
		fields(t, "builder", at(t, run, "builder"), "id", "builderDependencies", "version")
		fields(t, "metadata", at(t, run, "metadata"), "invocationId", "startedOn", "finishedOn")
		begin, err1 := time.Parse(time.RFC3339, fmt.Sprint(at(t, run, "metadata", "startedOn")))
		end, err2 := time.Parse(time.RFC3339, fmt.Sprint(at(t, run, "metadata", "finishedOn")))
		if err1 != nil || err2 != nil || end.Before(begin) || begin.IsZero() || at(t, run, "metadata", "invocationId") != fmt.Sprintf("build/%d", b.ID) {
			t.Errorf("metadata: %v", at(t, run, "metadata"))
		}
		ext := at(t, def, "externalParameters").(map[string]any)
		if len(ext) != 3 || ext["target"] != "stream" || ext["repository"] != "rpms/hello" || ext["commit"] != commit {
			t.Errorf("externalParameters: %v", ext)
		}
		if in := at(t, def, "internalParameters"); at(t, in, "macros", "dist") != ".x" || at(t, in, "arches", 0) != "x86_64" || at(t, in, "buildTag") != "stream" {
			t.Errorf("internalParameters: %v", in)
		}
		deps := resources(t, "resolvedDependencies", at(t, def, "resolvedDependencies"))
		ts, err := h.Build.Tasks(h.System, b.ID)
		h.OK(err)
		if deps["rpms/hello"]["gitCommit"] != commit || deps["buildroot of srpm"]["sha256"] != ts[1].Before || deps["stream/x86_64"] == nil || ts[1].Before == "" {
			t.Errorf("resolvedDependencies: %v", deps)
		}
		if by := resources(t, "byproducts", at(t, run, "byproducts")); len(by) == 0 {
			t.Error("no byproducts")
		}

		// Of a build from a source RPM.
		st = statement(t, h, other.ID)
		ext = at(t, st, "predicate", "buildDefinition", "externalParameters").(map[string]any)
		deps = resources(t, "resolvedDependencies", at(t, st, "predicate", "buildDefinition", "resolvedDependencies"))
		raw, err := os.ReadFile(osrpm)
		h.OK(err)
		sum := sha256.Sum256(raw)
		if len(ext) != 2 || ext["srpm"] != hex.EncodeToString(sum[:]) || deps["source RPM"]["sha256"] != ext["srpm"] {
			t.Errorf("of a source RPM: %v %v", ext, deps)
		}

		// One a build, however often it is looked for; none for a scratch build.
		h.OK(d.Read(h.System, func(tx *db.Tx) error {
			var n, k int
			err := tx.QueryRow("SELECT COUNT(*), COUNT(DISTINCT build) FROM prov_statement").Scan(&n, &k)
			if n != 2 || k != 2 {
				t.Errorf("%d statements of %d builds", n, k)
			}
			return err
		}))
		if _, err := p.Statement(h.System, 99); fault.Code(err) != "statement_unknown" {
			t.Errorf("of no build: %v", err)
		}
		// A statement that was changed in the database is told.
		a, err := p.Why(h.System, "", "hello-1-1.noarch")
		if err != nil || a.Statement != "signed with attest, verified" || a.Pusher != "some-packager" || a.Commit != commit || a.Builder != "b1" || a.Root == "" || a.Owner != "system" {
			t.Errorf("why: %+v %v", a, err)
		}
		h.OK(d.Write(h.System, func(tx *db.Tx) error {
			var text string
			if err := tx.QueryRow("SELECT envelope FROM prov_statement WHERE build = $1", b.ID).Scan(&text); err != nil {
				return err
			}
			var env prov.Envelope
			if err := json.Unmarshal([]byte(text), &env); err != nil {
				return err
			}
			env.Payload = bytes.Replace(env.Payload, []byte("some"), []byte("none"), 1)
			env.Payload[len(env.Payload)/2] ^= 1
			out, err := json.Marshal(env)
			if err != nil {
				return err
			}
			_, err = tx.Exec("UPDATE prov_statement SET envelope = $1 WHERE build = $2", string(out), b.ID)
			return err
		}))
		if a, err := p.Why(h.System, "", "hello-1-1.noarch"); err != nil || a.Statement != "its signature does not hold" {
			t.Errorf("changed: %+v %v", a, err)
		}
	})
}

// why runs `drover why`.
func why(h *repotest.House, root, what, format string) (string, error) {
	var out bytes.Buffer
	err := prov.Verb{What: what, Root: root}.Run(&cli.Env{Ctx: h.System, Out: &out, Err: io.Discard, Format: format, Client: &web.Client{Base: h.URL, HTTP: http.DefaultClient}})
	return out.String(), err
}

// install puts packages into a root by rpm alone.
func install(t *testing.T, root string, files ...string) {
	t.Helper()
	c := exec.Command("rpm", append([]string{"--root", root, "--dbpath", "/var/lib/rpm", "-i", "--nodeps", "--nosignature"}, files...)...)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("rpm: %v\n%s", err, out)
	}
}

func TestWhy(t *testing.T) {
	srpm, rpms := repotest.RPMBuild(t, repotest.Spec("hello", "1"))
	_, strange := repotest.RPMBuild(t, repotest.Spec("strange", "1"))
	mirrored := repotest.Data(t, "rpm-hardlinks-1.0-1.noarch.rpm")
	up := t.TempDir()
	for _, args := range [][]string{{"cp", mirrored, up}, {"createrepo_c", "-q", "--no-database", "--general-compress-type=gz", up}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	ts := httpDir(t, up)
	dbtest.Each(t, schemas(), func(t *testing.T, d *db.DB) {
		h, p := house(t, d)
		h.StartSigner(true)
		for _, k := range []string{"first", "second"} {
			_, err := h.Sign.Create(h.System, wire.NewKey{Name: k, Algo: "ed25519", Purpose: "rpm", Tags: []string{"*"}})
			h.OK(err)
		}
		h.Tag(release.Tag{Name: "stream", Key: "first"})
		b := h.Submit("stream", srpm, rpms...)
		c := h.Published("stream")
		h.OK(h.Mirrors.Set(h.System, mirrors.Mirror{Name: "up", Config: mirrors.Config{Source: upstream.Source{URL: ts}, Arch: "x86_64"}}))
		_, err := h.Mirrors.Sync(h.System, "up", nil)
		h.OK(err)
		statement(t, h, b.ID)

		// What hosts get is the signed form; its header is the same.
		content, err := h.Repo.Content(h.System, c.Snapshot)
		h.OK(err)
		x := content.Trees["x86_64"][0]
		resp, err := http.Get(h.URL + "/snapshots/" + c.Snapshot + "/x86_64/Packages/" + x.PkgID[:12] + "/" + x.File)
		h.OK(err)
		raw, err := io.ReadAll(resp.Body)
		h.OK(err)
		_ = resp.Body.Close()
		signed := filepath.Join(t.TempDir(), x.File)
		h.OK(os.WriteFile(signed, raw, 0o600))

		root := t.TempDir()
		for _, dir := range []string{"usr/bin", "var/lib/rpm", "etc/alternatives"} {
			h.OK(os.MkdirAll(filepath.Join(root, dir), 0o755))
		}
		for link, to := range map[string]string{"bin": "usr/bin", "sbin": "/usr/bin", "etc/alternatives/hi": "/usr/bin/hello", "usr/bin/hi": "/etc/alternatives/hi", "loop": "loop"} {
			h.OK(os.Symlink(to, filepath.Join(root, link)))
		}
		install(t, root, signed, mirrored, strange[0])
		h.OK(os.WriteFile(filepath.Join(root, "usr/bin/mine"), []byte("x"), 0o600))

		for path, real := range map[string]string{"/usr/bin/hello": "/usr/bin/hello", "/bin/hello": "/usr/bin/hello", "/sbin/hello": "/usr/bin/hello", "/usr/bin/hi": "/usr/bin/hello", "/usr/../bin/./hello": "/usr/bin/hello", "/etc/hello.conf": "/etc/hello.conf", "/usr/bin/hello-link": "/usr/bin/hello-link"} {
			out, err := why(h, root, path, "table")
			for _, want := range []string{real + ": packaged, intact\n", "hello-1-1.noarch", fmt.Sprintf("%d (hello-1-1)", b.ID), "signed with   first\n", "signed with attest, verified", "builder       b1", "uploaded source RPM", "tags          stream"} {
				if err != nil || !strings.Contains(out, want) && !strings.Contains(strings.ReplaceAll(out, "0:", ""), want) {
					t.Errorf("%s: %v, no %q in\n%s", path, err, want, out)
				}
			}
		}
		out, err := why(h, root, "/bin/hello", "json")
		var got struct {
			File struct{ Path, State string }
			prov.Answer
		}
		if err != nil || json.Unmarshal([]byte(out), &got) != nil || got.File.Path != "/usr/bin/hello" || got.File.State != "packaged, intact" || got.Build != b.ID || len(got.Signers) != 1 {
			t.Errorf("json: %v %s", err, out)
		}
		// Changed, gone, replaced by something else, made by nobody.
		h.OK(os.WriteFile(filepath.Join(root, "usr/bin/hello"), []byte("evil"), 0o755))
		h.OK(os.Remove(filepath.Join(root, "etc/hello.conf")))
		h.OK(os.Remove(filepath.Join(root, "usr/bin/hello-link")))
		h.OK(os.Symlink("/etc/passwd", filepath.Join(root, "usr/bin/hello-link")))
		h.OK(os.Remove(filepath.Join(root, "etc/strange.conf")))
		for path, want := range map[string]string{"/bin/hello": "packaged, MODIFIED since", "/etc/hello.conf": "packaged, MISSING", "/bin/hello-link": "packaged, MODIFIED since"} {
			if out, err := why(h, root, path, "table"); err != nil || !strings.Contains(out, want) {
				t.Errorf("%s: %v, no %q in\n%s", path, err, want, out)
			}
		}
		fifo := filepath.Join(root, "etc/hello.conf")
		if out, err := exec.Command("mkfifo", fifo).CombinedOutput(); err != nil {
			t.Fatal(string(out))
		}
		if out, err := why(h, root, "/etc/hello.conf", "table"); err != nil || !strings.Contains(out, "MODIFIED") { // and it does not wait for a writer
			t.Errorf("a pipe: %v %s", err, out)
		}
		for what, code := range map[string]string{"/bin/mine": "file_unowned", "/no/such": "file_unknown", "/loop/x": "file_unknown", "/usr/bin/strange": "package_unknown", "nothing-1-1.noarch": "package_unknown", "not a package": "", "": ""} {
			_, err := why(h, root, what, "table")
			if err == nil || code != "" && fault.Code(err) != code || fault.As(err).Kind == fault.KindInternal {
				t.Errorf("%q: %v", what, err)
			}
			if code != "" && fault.ExitCode(err) != 4 {
				t.Errorf("%q exits with %d", what, fault.ExitCode(err))
			}
		}
		if _, err := why(h, t.TempDir(), "/bin/hello", "table"); fault.Code(err) != "rpmdb" {
			t.Errorf("no root: %v", err)
		}

		// By name, of a mirror, and after another signature.
		if out, err := why(h, root, "rpm-hardlinks-1.0-1.noarch", "table"); err != nil || !strings.Contains(out, "from          mirror up") {
			t.Errorf("of a mirror: %v %s", err, out)
		}
		h.Tag(release.Tag{Name: "stream", Key: "second"})
		h.Published("stream")
		for _, n := range []string{"hello-1-1.noarch", "hello-0:1-1.noarch", "hello-1-1.src"} {
			a, err := p.Why(h.System, "", n)
			if err != nil || fmt.Sprint(a.Signers) != "[first second]" {
				t.Errorf("%s: %+v %v", n, a, err)
			}
		}
	})
}

func httpDir(t *testing.T, dir string) string {
	t.Helper()
	ts := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(ts.Close)
	return ts.URL + "/"
}
