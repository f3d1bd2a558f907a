package upstream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"net/http"
	"strings"
	"time"

	"drover/internal/fault"
	"drover/internal/fetch"
	"drover/internal/rpm"

	"github.com/ProtonMail/go-crypto/openpgp"
)

// RepomdFile is the root of a repository.
const RepomdFile = "repodata/repomd.xml"

// Seen is what is remembered of an upstream from one sync to the next.
type Seen struct {
	Repomd   string     `json:"repomd,omitempty"` // sha256
	Revision int64      `json:"revision,omitempty"`
	Stamp    int64      `json:"stamp,omitempty"` // time of the newest metadata file, seconds since 1970
	Signed   bool       `json:"signed,omitempty"`
	Mark     fetch.Mark `json:"mark,omitzero"`
	Roots    []string   `json:"roots,omitempty"` // from the list of mirrors
	Listed   int64      `json:"listed,omitempty"`
}

// State is what repomd.xml says now.
type State struct {
	Seen
	Unchanged bool // then there is nothing else
	Repomd    []byte
	Asc       []byte // its signature, nil for none
	Files     []rpm.Data
}

// listFor is how long a list of mirrors is good: without it, looking whether anything is new
// would take two requests.
const listFor = 6 * time.Hour

// young is how old a file has to be before its time is trusted to tell it from the next one.
const young = time.Minute

// near is how many mirrors of a list share the load; the others stand by.
const near = 5

// Look reads what the repository is now. What is older than what was seen is refused, unless
// rollback is set. Faults: mirror_rollback, mirror_signature, and those of fetch and rpm.
func (u *Upstream) Look(ctx context.Context, had Seen, now time.Time, rollback bool) (st State, err error) {
	var m rpm.Metalink
	switch {
	case u.Metalink != "":
		var unchanged bool
		if m, unchanged, err = u.metalink(ctx, had); err != nil || unchanged {
			return State{Seen: had, Unchanged: unchanged}, err
		}
		if m.Current.Time > 0 && m.Current.Time < had.Stamp && !rollback {
			return st, older(u.Metalink, m.Current.Time, had.Stamp)
		}
	case u.Mirrorlist != "":
		err = u.mirrorlist(ctx, &had, now)
	default:
		err = u.addresses()
	}
	if err != nil {
		return st, err
	}
	allowed := []rpm.MetalinkFile{m.Current}
	for _, a := range m.Alternates {
		if a.Time >= had.Stamp {
			allowed = append(allowed, a)
		}
	}
	check := func(b []byte) error {
		if u.Metalink == "" {
			return nil
		}
		for _, f := range allowed {
			if fits(f, b) {
				return nil
			}
		}
		return fault.Invalid("mirror_stale", "its repomd.xml is none that the metalink tells of").Fix("it lags or is hostile: sync again later, or take it off the list")
	}
	a, err := u.client.Small(ctx, u.roots, RepomdFile, 1<<20, had.Mark, check)
	if err != nil {
		return st, err
	}
	// A time has seconds: what is as young as this may change within the same one.
	if at, err := http.ParseTime(a.Mark.Modified); a.Mark.ETag == "" && !a.Unchanged && (err != nil || now.Sub(at) < young) {
		a.Mark = fetch.Mark{}
	}
	sum := sha256.Sum256(a.Data)
	st = State{Seen: had, Repomd: a.Data}
	if st.Mark = a.Mark; a.Unchanged || hex.EncodeToString(sum[:]) == had.Repomd {
		st.Unchanged = true
		return st, nil
	}
	if st.Files, err = rpm.ReadRepomd(a.Data); err != nil {
		return st, err
	}
	if st.Revision, err = rpm.Revision(a.Data); err != nil {
		return st, err
	}
	st.Seen.Repomd, st.Stamp, st.Signed = hex.EncodeToString(sum[:]), 0, false
	for _, d := range st.Files {
		st.Stamp = max(st.Stamp, d.Time)
	}
	if !rollback && (st.Stamp < had.Stamp || st.Stamp == had.Stamp && st.Revision < had.Revision) {
		return st, older(a.Mark.Origin+RepomdFile, st.Stamp, had.Stamp)
	}
	if err := u.signature(ctx, &st); err != nil {
		return st, err
	}
	if had.Signed && len(u.Keys) > 0 && !st.Signed && !rollback {
		return st, fault.Denied("mirror_unsigned", "repomd.xml was signed by a pinned key and is not signed any more").Fix("ask upstream; if it signs no more, sync once with --accept-rollback")
	}
	return st, nil
}

// Reach gets ready to fetch files without looking at repomd.xml.
func (u *Upstream) Reach(ctx context.Context, had Seen, now time.Time) (err error) {
	switch {
	case u.Metalink != "":
		_, _, err = u.metalink(ctx, Seen{})
	case u.Mirrorlist != "":
		err = u.mirrorlist(ctx, &had, now)
	default:
		err = u.addresses()
	}
	return err
}

func (u *Upstream) addresses() (err error) {
	origins := []fetch.Origin{u.origin(u.URL, 1)}
	for _, a := range u.More {
		origins = append(origins, u.origin(a, 0))
	}
	u.roots, err = fetch.NewOrigins(origins...)
	return err
}

// older is the fault of an upstream that goes back: a mirror that lags, or somebody who hides
// updates.
func older(what string, is, was int64) error {
	day := func(s int64) string { return time.Unix(s, 0).UTC().Format(time.DateTime) }
	return fault.Conflict("mirror_rollback", "%.300s went back: it is of %s, and what is mirrored of %s", what, day(is), day(was)).
		Fix("if upstream really took something back, sync once with --accept-rollback; else its mirror lags or is hostile")
}

// fits tells whether b is the file that a metalink tells of.
func fits(f rpm.MetalinkFile, b []byte) bool {
	if f.Size > 0 && f.Size != int64(len(b)) {
		return false
	}
	a, c, d := sha256.Sum256(b), sha512.Sum384(b), sha512.Sum512(b)
	n := 0
	for algo, sum := range map[string][]byte{"sha256": a[:], "sha384": c[:], "sha512": d[:]} {
		if want, ok := f.Sums[algo]; ok {
			if n++; !strings.EqualFold(want, hex.EncodeToString(sum)) {
				return false
			}
		}
	}
	return n > 0
}

// metalink reads the metalink. It tells whether repomd.xml is the one that was seen: then one
// request was enough.
func (u *Upstream) metalink(ctx context.Context, had Seen) (m rpm.Metalink, unchanged bool, err error) {
	at, err := fetch.Exactly(u.origin(u.Metalink, 0))
	if err != nil {
		return m, false, err
	}
	a, err := u.client.Small(ctx, at, "", 4<<20, fetch.Mark{}, nil)
	if err != nil {
		return m, false, err
	}
	if m, err = rpm.ReadMetalink(a.Data); err != nil {
		return m, false, err
	}
	if had.Repomd != "" && strings.EqualFold(m.Current.Sums["sha256"], had.Repomd) {
		return m, true, nil
	}
	var roots []string
	for _, r := range m.Mirrors {
		roots = append(roots, r.Root)
	}
	return m, false, u.mirrors(roots)
}

// mirrorlist takes the mirrors of the list, anew when it is old.
func (u *Upstream) mirrorlist(ctx context.Context, had *Seen, now time.Time) error {
	if age := now.Unix() - had.Listed; had.Repomd != "" && len(had.Roots) > 0 && age >= 0 && age < int64(listFor/time.Second) {
		return u.mirrors(had.Roots)
	}
	at, err := fetch.Exactly(u.origin(u.Mirrorlist, 0))
	if err != nil {
		return err
	}
	a, err := u.client.Small(ctx, at, "", 4<<20, fetch.Mark{}, nil)
	if err != nil {
		return err
	}
	roots, err := rpm.ReadMirrorlist(a.Data)
	if err != nil {
		return err
	}
	had.Roots, had.Listed = roots[:min(len(roots), 20)], now.Unix()
	return u.mirrors(had.Roots)
}

func (u *Upstream) mirrors(roots []string) (err error) {
	origins := make([]fetch.Origin, len(roots))
	for i, r := range roots {
		origins[i] = u.origin(r, 0)
		if i < near {
			origins[i].Prefer = 1
		}
	}
	u.roots, err = fetch.NewOrigins(origins...)
	return err
}

// signature gets the signature of repomd.xml. With pinned keys it must be by one of them; an
// upstream without signatures is one thing, one that cannot be reached another.
func (u *Upstream) signature(ctx context.Context, st *State) error {
	var bad error
	a, err := u.client.Small(ctx, u.roots, RepomdFile+".asc", 64<<10, fetch.Mark{}, func(asc []byte) error {
		if len(u.Keys) == 0 {
			return nil
		}
		_, bad = openpgp.CheckArmoredDetachedSignature(u.Keys, bytes.NewReader(st.Repomd), bytes.NewReader(asc), nil)
		return bad
	})
	switch c := fault.Code(err); {
	case err == nil:
		st.Asc, st.Signed = a.Data, len(u.Keys) > 0
		return nil
	case c == "fetch_sum" && bad != nil:
		return fault.Denied("mirror_signature", "the signature of repomd.xml is not good by a pinned key").Wrap(err).Fix("it may be in the middle of an update; else compare the keys with upstream's, and don't use it before you know")
	case c == "fetch_missing" || c == "fetch_denied":
		return nil
	}
	return err
}
