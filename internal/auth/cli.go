package auth

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"drover/internal/cli"
	"drover/internal/fault"
)

// Verbs is `drover auth`.
type Verbs struct {
	Whoami whoami `cmd:"" help:"Who the token is." example:"drover auth whoami"`
	Person struct {
		List    personList    `cmd:"" help:"List people." example:"drover auth person list"`
		Set     personSet     `cmd:"" help:"Add a person or change the role." example:"drover auth person set alice --role packager --note 'Alice Doe'"`
		Disable personDisable `cmd:"" help:"Disable a person and all the person's tokens." example:"drover auth person disable alice"`
	} `cmd:"" help:"People and their roles."`
	Token struct {
		List   tokenList   `cmd:"" help:"List tokens." example:"drover auth token list"`
		Create tokenCreate `cmd:"" help:"Make a token; the secret is printed once." example:"drover auth token create --label laptop --ttl 720h\ndrover auth token create --owner ci --scope pkg.push:rpms/hello --scope build.submit"`
		Revoke tokenRevoke `cmd:"" help:"End a token at once." example:"drover auth token revoke 7"`
	} `cmd:"" help:"API tokens."`
	Ticket ticketCreate `cmd:"" help:"Make a single-use ticket by which a builder or signer joins." example:"drover auth ticket builder b1 --ttl 15m"`
}

type whoami struct{}

// Run prints the actor.
func (whoami) Run(e *cli.Env) error {
	var out map[string]any
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/whoami", nil, &out); err != nil {
		return err
	}
	return e.Show(out, func(w io.Writer) { fmt.Fprintf(w, "%v (%v, role %v)\n", out["name"], out["kind"], out["role"]) })
}

type personList struct{}

// Run lists people.
func (personList) Run(e *cli.Env) error {
	var out []PersonInfo
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/people", nil, &out); err != nil {
		return err
	}
	return e.Show(out, func(w io.Writer) {
		cli.Table(w, "NAME ROLE NOTE", func(row func(...any)) {
			for _, p := range out {
				row(p.Name, p.Role, p.Note)
			}
		})
	})
}

type personSet struct {
	Name string `arg:"" help:"Name of the person."`
	Role string `required:"" enum:"admin,operator,releaser,packager,viewer" help:"One of admin, operator, releaser, packager, viewer."`
	Note string `help:"A remark, such as the full name."`
}

// Run sets a person's role.
func (c personSet) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/people/"+url.PathEscape(c.Name), map[string]string{"role": c.Role, "note": c.Note}, nil)
}

type personDisable struct {
	Name string `arg:"" help:"Name of the person."`
}

// Run disables a person.
func (c personDisable) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/people/"+url.PathEscape(c.Name), map[string]string{"role": ""}, nil)
}

type tokenList struct{}

// Run lists tokens.
func (tokenList) Run(e *cli.Env) error {
	var out []TokenInfo
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/tokens", nil, &out); err != nil {
		return err
	}
	return e.Show(out, func(w io.Writer) {
		cli.Table(w, "ID OWNER KIND LABEL SCOPES EXPIRES STATE", func(row func(...any)) {
			for _, t := range out {
				state, expires := "valid", "never"
				if !t.Expires.IsZero() {
					expires = t.Expires.Format(time.RFC3339)
				}
				if t.Revoked {
					state = "revoked"
				}
				row(t.ID, t.Owner, t.Kind, t.Label, strings.Join(t.Scopes, ","), expires, state)
			}
		})
	})
}

type tokenCreate struct {
	Owner string        `help:"For whom; yourself when not given."`
	Label string        `help:"What it is for."`
	Scope []string      `help:"Narrow it to a right, or a right and subjects: pkg.push:rpms/hello. Repeatable."`
	TTL   time.Duration `name:"ttl" help:"Lifetime, such as 720h; without it the token does not expire."`
}

// Run makes a token.
func (c tokenCreate) Run(e *cli.Env) error {
	if c.TTL != 0 && c.TTL < time.Second {
		return fault.Invalid("token", "a token does not live for %s", c.TTL).Fix("give a second or more, or no --ttl for one that does not expire")
	}
	var out TokenInfo
	in := map[string]any{"owner": c.Owner, "label": c.Label, "scopes": c.Scope, "ttl": int64(c.TTL.Seconds())}
	if c.Scope == nil {
		delete(in, "scopes")
	}
	if err := e.Client.Call(e.Ctx, "POST", "/api/v1/tokens", in, &out); err != nil {
		return err
	}
	return e.Show(out, func(w io.Writer) { fmt.Fprintln(w, out.Secret) })
}

type tokenRevoke struct {
	ID int64 `arg:"" help:"Number of the token."`
}

// Run ends a token.
func (c tokenRevoke) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "DELETE", fmt.Sprintf("/api/v1/tokens/%d", c.ID), nil, nil)
}

type ticketCreate struct {
	Kind string        `arg:"" enum:"builder,signer" help:"builder or signer."`
	Name string        `arg:"" help:"Name that the builder or signer gets."`
	TTL  time.Duration `name:"ttl" default:"1h" help:"How long the ticket can be used."`
}

// Run makes a ticket.
func (c ticketCreate) Run(e *cli.Env) error {
	var out map[string]string
	if err := e.Client.Call(e.Ctx, "POST", "/api/v1/tickets", map[string]any{"kind": c.Kind, "name": c.Name, "ttl": int64(c.TTL.Seconds())}, &out); err != nil {
		return err
	}
	return e.Show(out, func(w io.Writer) { fmt.Fprintln(w, out["ticket"]) })
}
