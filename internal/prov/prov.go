package prov

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/build"
	"drover/internal/db"
	"drover/internal/distgit"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/repo"
	"drover/internal/rpm"
	"drover/internal/sign"
	"drover/internal/sign/wire"
)

//go:embed migrations
var migrations embed.FS

// Schema is the table of statements.
func Schema() db.Schema { return db.Schema{Name: "prov", FS: migrations} }

// Key is the name of the key that signs statements.
const Key = "attest"

// Config is what a Store needs.
type Config struct {
	DB     *db.DB
	Builds *build.Store
	Git    *distgit.Store
	Repo   *repo.Store
	Sign   *sign.Store
	Log    *slog.Logger
}

// Store keeps statements.
type Store struct{ Config }

// New makes a Store.
func New(c Config) *Store { return &Store{c} }

// Types of in-toto's statement v1 and SLSA's provenance v1 (slsa.dev/spec/v1.0/provenance).
const (
	statementType = "https://in-toto.io/Statement/v1"
	predicateType = "https://slsa.dev/provenance/v1"
	payloadType   = "application/vnd.in-toto+json"
	buildType     = scheme + "/rpm-build/v1"
	// scheme begins the URIs of what a drover server has; a path of that server follows.
	scheme = "drover:"
)

// Resource is an artifact by name and digest (in-toto ResourceDescriptor).
type Resource struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest"`
}

// Statement says how a build came about. The server composes it from what it handed out and
// what it read itself in what came back; nothing in it is a builder's word but the builder's
// list of what was in the root.
type Statement struct {
	Type          string     `json:"_type"`
	Subject       []Resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     struct {
		BuildDefinition struct {
			BuildType            string         `json:"buildType"`
			ExternalParameters   map[string]any `json:"externalParameters"`
			InternalParameters   map[string]any `json:"internalParameters"`
			ResolvedDependencies []Resource     `json:"resolvedDependencies"`
		} `json:"buildDefinition"`
		RunDetails struct {
			Builder struct {
				ID string `json:"id"`
			} `json:"builder"`
			Metadata struct {
				InvocationID string    `json:"invocationId"`
				StartedOn    time.Time `json:"startedOn"`
				FinishedOn   time.Time `json:"finishedOn"`
			} `json:"metadata"`
			Byproducts []Resource `json:"byproducts"`
		} `json:"runDetails"`
	} `json:"predicate"`
}

// Envelope is a DSSE envelope (secure-systems-lab/dsse, protocol v1).
type Envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"` // base64 in JSON
	Signatures  []Signature `json:"signatures"`
}

// Signature is one signature of an envelope.
type Signature struct {
	KeyID string `json:"keyid"` // sha256 of the public key's DER
	Sig   []byte `json:"sig"`
}

// PAE is DSSE's pre-authentication encoding: what is signed.
func PAE(payloadType string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
}

// Run composes and signs a statement for every build that has none, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	ctx = auth.AsSystem(ctx)
	var seen int64 // event up to which every build was looked at
	for {
		changed := s.DB.Changed()
		last, todo, err := s.missing(ctx, seen)
		if err == nil {
			err = s.attestAll(ctx, todo)
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was stopped
		}
		wait := time.Minute
		switch {
		case err != nil:
			s.Log.Warn("statements wait", "err", err)
			changed, wait = nil, 10*time.Second
		case len(todo) < batch:
			seen = last
		default:
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// batch is how many builds are looked at in one round.
const batch = 100

// missing reads the builds without a statement, unless no build was completed after the event
// seen. last is the event up to which it looked.
func (s *Store) missing(ctx context.Context, seen int64) (last int64, ids []int64, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		if last, err = event.Last(tx); err != nil {
			return err
		}
		done, err := event.List(tx, event.Filter{After: seen, Kind: "build.done", Limit: 1})
		if err != nil || len(done) == 0 {
			return err
		}
		return tx.Each(func(scan func(...any) error) error {
			var id int64
			err := scan(&id)
			ids = append(ids, id)
			return err
		}, "SELECT b.id FROM build_build b WHERE b.state = 'COMPLETE' AND b.scratch = 0 AND NOT EXISTS (SELECT 1 FROM prov_statement p WHERE p.build = b.id) ORDER BY b.id LIMIT $1", batch)
	})
	return last, ids, err
}

// attestAll makes statements. One that can't be made does not hold up the others; when the
// signer is away, all of them wait.
func (s *Store) attestAll(ctx context.Context, ids []int64) error {
	var errs []error
	for _, id := range ids {
		err := s.attest(ctx, id)
		if err == nil {
			continue
		}
		errs = append(errs, fmt.Errorf("build %d: %w", id, err))
		if fault.As(err).Kind == fault.KindUnavailable {
			break
		}
	}
	return errors.Join(errs...)
}

// signWait is how long one statement waits for its signature before it is tried again.
const signWait = time.Minute

func (s *Store) attest(ctx context.Context, id int64) error {
	ctx, cancel := context.WithTimeout(ctx, signWait)
	defer cancel()
	key, err := s.Sign.Key(ctx, Key)
	if fault.Code(err) == "key_unknown" {
		key, err = s.Sign.Create(ctx, wire.NewKey{Name: Key, Algo: wire.Ed25519, Purpose: wire.PurposeAttest, Tags: []string{"*"}})
	}
	if err != nil {
		return err
	}
	st, b, err := s.compose(ctx, id)
	if err != nil {
		return err
	}
	payload, err := json.Marshal(st)
	if err != nil {
		return err
	}
	pae := PAE(payloadType, payload)
	sum := sha256.Sum256(pae)
	tag := b.Tag
	if tag == "" {
		tag = b.Target
	}
	sigs, err := s.Sign.Sign(ctx, []sign.Request{{Key: Key, Tag: tag, Subject: "statement of " + b.NVR, Digest: hex.EncodeToString(sum[:]), Payload: pae}})
	if err != nil {
		return err
	}
	env, err := json.Marshal(Envelope{PayloadType: payloadType, Payload: payload, Signatures: []Signature{{KeyID: key.Fingerprint, Sig: sigs[0]}}})
	if err != nil {
		return err
	}
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		var n int
		if err := tx.QueryRow("SELECT COUNT(*) FROM prov_statement WHERE build = $1", id).Scan(&n); err != nil || n > 0 {
			return err // another server was faster
		}
		ev, err := event.Append(tx, "prov.statement", fmt.Sprintf("build/%d", id), map[string]string{"nvr": b.NVR, "key": Key, "digest": hex.EncodeToString(sum[:])})
		if err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO prov_statement (build, key, envelope, since) VALUES ($1, $2, $3, $4)", id, Key, string(env), ev)
		return err
	})
}

func (s *Store) compose(ctx context.Context, id int64) (st Statement, b build.Build, err error) {
	if b, err = s.Builds.Get(ctx, id); err != nil {
		return st, b, err
	}
	plan, err := s.Builds.Plan(ctx, id)
	if err != nil {
		return st, b, err
	}
	tasks, err := s.Builds.Tasks(ctx, id)
	if err != nil {
		return st, b, err
	}
	rpms, err := s.Builds.RPMs(ctx, id)
	if err != nil {
		return st, b, err
	}
	st.Type, st.PredicateType = statementType, predicateType
	for _, r := range rpms {
		// A signature changes the file, never its header: the header is the subject.
		st.Subject = append(st.Subject, Resource{Name: r.File, Digest: map[string]string{"rpmHeaderSha256": r.Header, "sha256": r.Digest.String()}})
	}
	d := &st.Predicate.BuildDefinition
	d.BuildType = buildType
	d.ExternalParameters = map[string]any{"target": b.Target}
	d.InternalParameters = map[string]any{"arches": plan.Arches, "sourceDateEpoch": plan.Epoch, "buildTag": plan.BuildTag}
	if len(plan.Macros) > 0 {
		d.InternalParameters["macros"] = plan.Macros
	}
	if b.Repo != "" {
		d.ExternalParameters["repository"], d.ExternalParameters["commit"] = b.Repo, b.Commit
		d.ResolvedDependencies = append(d.ResolvedDependencies, Resource{Name: b.Repo, URI: scheme + "/git/" + b.Repo, Digest: map[string]string{"gitCommit": b.Commit}})
		src, err := s.Git.Sources(ctx, b.Repo, b.Commit)
		if err != nil {
			return st, b, err
		}
		for _, x := range src {
			d.ResolvedDependencies = append(d.ResolvedDependencies, Resource{Name: x.File, Digest: map[string]string{"sha512": x.SHA512, "sha256": x.Digest.String()}})
		}
	} else {
		d.ExternalParameters["srpm"] = b.SRPM
		d.ResolvedDependencies = append(d.ResolvedDependencies, Resource{Name: "source RPM", Digest: map[string]string{"sha256": b.SRPM}})
	}
	// In a fixed order: the same build gives the same statement.
	for _, arch := range slices.Sorted(maps.Keys(plan.Roots)) {
		for _, r := range plan.Roots[arch].Repos {
			d.ResolvedDependencies = append(d.ResolvedDependencies, Resource{Name: r.ID + "/" + arch, URI: scheme + r.URL, Digest: map[string]string{"sha256": r.Digest}})
		}
	}
	run := &st.Predicate.RunDetails
	run.Byproducts = []Resource{}
	var who []string
	for _, t := range tasks {
		if t.Before == "" {
			continue
		}
		d.ResolvedDependencies = append(d.ResolvedDependencies, Resource{Name: "buildroot of " + t.Label, URI: scheme + "/api/v1/roots/" + t.Before, Digest: map[string]string{"sha256": t.Before}})
		run.Byproducts = append(run.Byproducts, Resource{Name: "buildroot after " + t.Label, URI: scheme + "/api/v1/roots/" + t.After, Digest: map[string]string{"sha256": t.After}})
		if !slices.Contains(who, t.Builder) {
			who = append(who, t.Builder)
		}
	}
	run.Builder.ID = scheme + "/builders/" + strings.Join(who, ",")
	run.Metadata.InvocationID = fmt.Sprintf("build/%d", id)
	run.Metadata.StartedOn, run.Metadata.FinishedOn = b.Created, b.Finished
	return st, b, nil
}

// Statement reads the signed statement of a build.
func (s *Store) Statement(ctx context.Context, id int64) (env Envelope, err error) {
	var text string
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow("SELECT envelope FROM prov_statement WHERE build = $1", id).Scan(&text)
	})
	if db.NoRow(err) {
		return env, fault.NotFound("statement_unknown", "build %d has no statement", id).Fix("only complete builds that are no scratch builds have one; it waits for the signer")
	}
	if err != nil {
		return env, err
	}
	return env, json.Unmarshal([]byte(text), &env)
}

// Answer is why a package is there.
type Answer struct {
	Package   string   `json:"package"` // NEVRA
	Header    string   `json:"header"`
	Build     int64    `json:"build,omitempty"`
	NVR       string   `json:"nvr,omitempty"`
	Repo      string   `json:"repo,omitempty"`
	Commit    string   `json:"commit,omitempty"`
	SRPM      string   `json:"srpm,omitempty"`
	Pusher    string   `json:"pusher,omitempty"`
	Pushed    string   `json:"pushed,omitempty"`
	PushEvent int64    `json:"push_event,omitempty"`
	Owner     string   `json:"submitted_by,omitempty"`
	Builder   string   `json:"builder,omitempty"`
	Root      string   `json:"buildroot,omitempty"`
	Signers   []string `json:"signed_with,omitempty"` // keys, the first one first
	Statement string   `json:"statement,omitempty"`   // "signed with attest", or why not
	Tags      []string `json:"tags,omitempty"`
	Mirrors   []string `json:"mirrors,omitempty"` // for a package of a mirror: where it came from
}

// Why finds how a package came about: by the sha256 of its header, or by NEVRA or file name.
func (s *Store) Why(ctx context.Context, header, nevra string) (a Answer, err error) {
	if header == "" && nevra == "" {
		return a, fault.Invalid("why", "the question names no package").Fix("give name-version-release.arch, or the sha256 of a header")
	}
	if header == "" {
		if header, err = s.headerOf(ctx, nevra); err != nil {
			return a, err
		}
	}
	a.Header = header
	p, perr := s.Repo.ByHeader(ctx, header)
	r, b, err := s.Builds.ByHeader(ctx, header)
	if fault.Code(err) == "rpm_unknown" && perr == nil {
		a.Package = p.NEVRA
		a.Mirrors, err = s.Repo.Holders(ctx, header)
		return a, err
	}
	if err != nil {
		return a, err
	}
	a.Package = rpm.NEVRA{Name: r.Name, Epoch: uint32(r.Epoch), Version: r.Version, Release: r.Release, Arch: r.Arch}.String()
	a.Build, a.NVR, a.Repo, a.Commit, a.SRPM, a.Owner = b.ID, b.NVR, b.Repo, b.Commit, b.SRPM, b.Owner
	if a.Signers, err = s.signers(ctx, header); err != nil {
		return a, err
	}
	t, err := s.Builds.Task(ctx, r.Task)
	if err != nil {
		return a, err
	}
	a.Builder, a.Root = t.Builder, t.Before
	if b.Repo != "" {
		push, err := s.Git.Pusher(ctx, b.Repo, b.Commit)
		if err != nil {
			return a, err
		}
		a.Pusher, a.Pushed, a.PushEvent = push.Actor, push.At.Format(time.RFC3339), push.Event
	}
	a.Statement = "none"
	if env, err := s.Statement(ctx, b.ID); err == nil {
		key, err := s.Sign.Key(ctx, Key)
		if err == nil && len(env.Signatures) > 0 && sign.VerifyAttestation(key.Public, PAE(env.PayloadType, env.Payload), env.Signatures[0].Sig) {
			a.Statement = "signed with " + Key + ", verified"
		} else {
			a.Statement = "its signature does not hold"
		}
	}
	a.Tags, err = s.Repo.Holders(ctx, header)
	return a, err
}

// signers names the keys that a package was signed with.
func (s *Store) signers(ctx context.Context, header string) (out []string, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var k string
			err := scan(&k)
			if !slices.Contains(out, k) {
				out = append(out, k)
			}
			return err
		}, "SELECT key FROM repo_package WHERE header = $1 AND key <> '' ORDER BY created, key", header)
	})
	return out, err
}

func (s *Store) headerOf(ctx context.Context, nevra string) (string, error) {
	n, err := rpm.ParseNEVRA(nevra)
	if err != nil {
		return "", err
	}
	rs, err := s.Builds.ByFile(ctx, n.File())
	if err != nil {
		return "", err
	}
	if len(rs) > 0 {
		return rs[0].Header, nil
	}
	var header string
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow("SELECT header FROM repo_package WHERE file = $1 ORDER BY created DESC LIMIT 1", n.File()).Scan(&header)
	})
	if db.NoRow(err) {
		return "", fault.NotFound("package_unknown", "no package %s is known here", nevra).Fix("give name-version-release.arch, or a file of an installed root")
	}
	return header, err
}
