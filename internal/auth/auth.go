package auth

import (
	"context"
	"path"
	"regexp"
	"slices"
	"strings"

	"drover/internal/db"
	"drover/internal/fault"
)

// Kind is what sort of being an actor is.
type Kind string

// The kinds of actors.
const (
	Person  Kind = "person"
	Builder Kind = "builder"
	Signer  Kind = "signer"
	Agent   Kind = "agent"  // on a host
	System  Kind = "system" // drover's own loops
	Nobody  Kind = ""       // no credentials were given
)

// Actor is who acts. The zero Actor is nobody and may read what is public.
type Actor struct {
	Kind   Kind
	Name   string
	Role   string
	Scopes []string // of the token; empty means all that the role has
	Token  int64    // number of the token, 0 for none
}

// String is the name that the ledger writes: "alice", "builder:b1".
func (a Actor) String() string {
	switch a.Kind {
	case Person:
		return a.Name
	case Nobody:
		return "nobody"
	case System:
		return "system"
	}
	return string(a.Kind) + ":" + a.Name
}

type key struct{}

// With puts the actor into the context, for [From] and for the ledger.
func With(ctx context.Context, a Actor) context.Context {
	return db.WithActor(context.WithValue(ctx, key{}, a), a.String())
}

// AsSystem makes ctx that of drover's own loops, which may do everything.
func AsSystem(ctx context.Context) context.Context { return With(ctx, Actor{Kind: System}) }

// From is the actor of ctx.
func From(ctx context.Context) Actor {
	a, _ := ctx.Value(key{}).(Actor)
	return a
}

// roleRights is the table of who may what. "x.*" stands for every right of x.
//
//nolint:gochecknoglobals // a constant table
var roleRights = map[string][]string{
	"admin":    {"*"},
	"operator": {"host.*", "job.*", "audit.verify"},
	"releaser": {"pkg.*", "build.*", "tag.*", "repo.*", "host.read", "audit.verify"},
	"packager": {"pkg.create", "pkg.push", "pkg.upload", "build.submit", "host.read", "audit.verify"},
	"viewer":   {"host.read", "audit.verify"},
	"builder":  {"work.build"},
	"signer":   {"work.sign"},
	"agent":    {"work.agent"},
}

// Roles are the roles that a person can have.
func Roles() []string { return []string{"admin", "operator", "releaser", "packager", "viewer"} }

// May tells whether a may do right on subject. A scope is a right, or a right and a
// pattern of subjects: "pkg.push", "pkg.push:rpms/kernel*", "build.*".
func (a Actor) May(right, subject string) bool {
	if a.Kind == System {
		return true
	}
	if strings.HasPrefix(right, "work.") && a.Kind != Builder && a.Kind != Signer && a.Kind != Agent {
		return false // the rights of machines: no person stands in for one
	}
	match := func(pattern string) bool {
		r, subj, narrowed := strings.Cut(pattern, ":")
		if !covers(r, right) || !narrowed {
			return covers(r, right)
		}
		ok, err := path.Match(subj, subject)
		return ok && err == nil
	}
	if !slices.ContainsFunc(roleRights[a.Role], match) {
		return false
	}
	return len(a.Scopes) == 0 || slices.ContainsFunc(a.Scopes, match)
}

// covers tells whether a right, or a pattern of rights, takes in another.
func covers(pattern, right string) bool {
	p, ok := strings.CutSuffix(pattern, "*")
	return pattern == right || ok && strings.HasPrefix(right, p)
}

// mayGive tells whether a token with these scopes may make one with others: never a wider one.
func mayGive(have, give []string) bool {
	if len(have) == 0 {
		return true
	}
	return len(give) > 0 && !slices.ContainsFunc(give, func(g string) bool {
		gr, gs, _ := strings.Cut(g, ":")
		return !slices.ContainsFunc(have, func(h string) bool {
			hr, hs, narrowed := strings.Cut(h, ":")
			return covers(hr, gr) && (!narrowed || hs == gs)
		})
	})
}

var reScope = regexp.MustCompile(`^(\*|[a-z]+\.(\*|[a-z]+))(:[!-~]{1,200})?$`)

func checkScope(s string) error {
	_, subj, _ := strings.Cut(s, ":")
	if _, err := path.Match(subj, ""); err != nil || !reScope.MatchString(s) {
		return fault.Invalid("scope", "%.100q is no scope", s).Fix("give a right such as pkg.push or pkg.*, or a right and subjects: pkg.push:rpms/hello*")
	}
	return nil
}

// Guard is Need for a route: it asks whether the caller may do right at all.
func Guard(right string) func(context.Context) error {
	return func(ctx context.Context) error { return Need(ctx, right, From(ctx).String()) }
}

// Need fails unless the actor of ctx may do right on subject.
func Need(ctx context.Context, right, subject string) error {
	a := From(ctx)
	if a.May(right, subject) {
		return nil
	}
	if a.Kind == Nobody {
		return fault.Unauthorized("token_needed", "%s on %s needs a token", right, subject).
			Fix("log in with `drover login`, or set DROVER_TOKEN")
	}
	return fault.Denied("denied", "%s may not %s on %s", a, right, subject).
		Fix("the role %q or the scopes of the token do not have this right; ask an admin", a.Role)
}
