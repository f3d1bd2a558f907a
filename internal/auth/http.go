package auth

import (
	"context"
	"net/http"
	"strings"
	"time"

	"drover/internal/fault"
	"drover/internal/web"
)

// Request finds who sends r: a bearer token, or the password of Basic (git and dnf
// send that). No credentials are nobody; wrong ones fail.
func (s *Store) Request(r *http.Request) (context.Context, error) {
	secret := ""
	if h := r.Header.Get("Authorization"); h != "" {
		if b, ok := strings.CutPrefix(h, "Bearer "); ok {
			secret = b
		} else if _, p, ok := r.BasicAuth(); ok {
			secret = p
		} else {
			return nil, fault.Unauthorized("auth_scheme", "the Authorization header is neither Bearer nor Basic")
		}
	}
	if secret == "" {
		return With(r.Context(), Actor{}), nil
	}
	a, err := s.Authenticate(r.Context(), secret)
	if err != nil {
		return nil, err
	}
	return With(r.Context(), a), nil
}

type none struct{}

// Routes adds the routes of people, tokens and tickets.
func (s *Store) Routes(srv *web.Server) {
	const tag = "auth"
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/whoami", ID: "whoami", Summary: "Who the token is", Tag: tag},
		func(ctx context.Context, _ *none) (map[string]any, error) {
			a := From(ctx)
			return map[string]any{"name": a.String(), "kind": a.Kind, "role": a.Role, "scopes": a.Scopes, "token": a.Token}, nil
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/people", ID: "person-list", Summary: "List people", Tag: tag},
		func(ctx context.Context, _ *none) ([]PersonInfo, error) { return s.People(ctx) })
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/people/{name}", ID: "person-set", Summary: "Add a person or change the role; an empty role disables", Tag: tag},
		func(ctx context.Context, in *struct {
			Name string `path:"name"`
			Body struct {
				Role string `json:"role"`
				Note string `json:"note,omitempty" maxLength:"200"`
			}
		}) (none, error) {
			return none{}, s.SetPerson(ctx, in.Name, in.Body.Role, in.Body.Note)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/tokens", ID: "token-list", Summary: "List tokens", Tag: tag},
		func(ctx context.Context, _ *none) ([]TokenInfo, error) { return s.Tokens(ctx) })
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/tokens", ID: "token-create", Summary: "Make a token; its secret is in this answer only", Tag: tag},
		func(ctx context.Context, in *struct {
			Body struct {
				Owner  string   `json:"owner,omitempty"`
				Label  string   `json:"label,omitempty"`
				Scopes []string `json:"scopes,omitempty"`
				TTL    int64    `json:"ttl,omitempty" minimum:"0" maximum:"3153600000" doc:"seconds; 0 means no expiry"`
			}
		}) (TokenInfo, error) {
			return s.NewToken(ctx, in.Body.Owner, in.Body.Label, in.Body.Scopes, time.Duration(in.Body.TTL)*time.Second)
		})
	web.Route(srv, web.Op{Method: "DELETE", Path: "/api/v1/tokens/{id}", ID: "token-revoke", Summary: "End a token", Tag: tag},
		func(ctx context.Context, in *struct {
			ID int64 `path:"id"`
		}) (none, error) {
			return none{}, s.Revoke(ctx, in.ID)
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/tickets", ID: "ticket-create", Summary: "Make a single-use ticket for a builder or signer", Tag: tag},
		func(ctx context.Context, in *struct {
			Body struct {
				Kind Kind   `json:"kind" enum:"builder,signer"`
				Name string `json:"name"`
				TTL  int64  `json:"ttl,omitempty" minimum:"0" maximum:"2592000" doc:"seconds; 0 means one hour"`
			}
		}) (map[string]string, error) {
			ttl := time.Duration(in.Body.TTL) * time.Second
			if ttl == 0 {
				ttl = time.Hour
			}
			t, err := s.NewTicket(ctx, in.Body.Kind, in.Body.Name, ttl)
			return map[string]string{"ticket": t}, err
		})
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/join", ID: "join", Summary: "Trade a ticket for a token", Tag: tag},
		func(ctx context.Context, in *struct {
			Body struct {
				Ticket string `json:"ticket" maxLength:"100"`
			}
		}) (TokenInfo, error) {
			return s.Join(ctx, in.Body.Ticket)
		})
}
