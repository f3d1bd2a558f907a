package auth_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/event"
	"drover/internal/fault"
)

func each(t *testing.T, fn func(t *testing.T, s *auth.Store, admin context.Context)) {
	dbtest.Each(t, []db.Schema{event.Schema(), auth.Schema()}, func(t *testing.T, d *db.DB) {
		s := auth.NewStore(d)
		kept := ""
		keep := func(secret string) error { kept = secret; return nil }
		if _, err := s.Bootstrap(t.Context(), func(string) error { return errors.New("no place") }); err == nil {
			t.Error("a token that could not be kept is valid")
		}
		secret, err := s.Bootstrap(t.Context(), keep)
		if err != nil || secret == "" {
			t.Fatalf("bootstrap: %q, %v", secret, err)
		}
		if again, err := s.Bootstrap(t.Context(), keep); kept != secret || again != "" || err != nil {
			t.Fatalf("a second bootstrap gave %q, %v", again, err)
		}
		a, err := s.Authenticate(t.Context(), secret)
		if err != nil {
			t.Fatal(err)
		}
		fn(t, s, auth.With(t.Context(), a))
	})
}

func TestMay(t *testing.T) {
	for _, c := range []struct {
		a       auth.Actor
		right   string
		subject string
		want    bool
	}{
		{auth.Actor{}, "build.submit", "x", false},
		{auth.Actor{Kind: auth.Person, Role: "viewer"}, "build.submit", "x", false},
		{auth.Actor{Kind: auth.Person, Role: "packager"}, "build.submit", "x", true},
		{auth.Actor{Kind: auth.Person, Role: "packager"}, "buildx.submit", "x", false},
		{auth.Actor{Kind: auth.Person, Role: "packager"}, "auth.person", "x", false},
		{auth.Actor{Kind: auth.Person, Role: "packager"}, "work.build", "x", false},
		{auth.Actor{Kind: auth.Builder, Role: "builder"}, "work.build", "x", true},
		{auth.Actor{Kind: auth.Builder, Role: "builder"}, "pkg.push", "x", false},
		{auth.Actor{Kind: auth.Person, Role: "admin", Scopes: []string{"pkg.push:rpms/hello"}}, "pkg.push", "rpms/hello", true},
		{auth.Actor{Kind: auth.Person, Role: "admin", Scopes: []string{"pkg.push:rpms/hello"}}, "pkg.push", "rpms/hello2", false},
		{auth.Actor{Kind: auth.Person, Role: "admin", Scopes: []string{"pkg.push:rpms/hello"}}, "auth.person", "x", false},
		{auth.Actor{Kind: auth.Person, Role: "packager", Scopes: []string{"*"}}, "auth.person", "x", false},
		{auth.Actor{Kind: auth.Person, Role: "made-up"}, "pkg.push", "x", false},
	} {
		if got := c.a.May(c.right, c.subject); got != c.want {
			t.Errorf("%+v may %s on %s: %v", c.a, c.right, c.subject, got)
		}
	}
}

func TestPeopleAndTokens(t *testing.T) {
	each(t, func(t *testing.T, s *auth.Store, admin context.Context) {
		if err := s.SetPerson(admin, "alice", "packager", "Alice"); err != nil {
			t.Fatal(err)
		}
		tok, err := s.NewToken(admin, "alice", "laptop", []string{"pkg.*"}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		a, err := s.Authenticate(t.Context(), tok.Secret)
		if err != nil || a.String() != "alice" || a.Role != "packager" || len(a.Scopes) != 1 {
			t.Fatalf("alice is %+v, %v", a, err)
		}
		alice := auth.With(t.Context(), a)
		for name, err := range map[string]error{
			"a narrowed token makes a wider one": second(s.NewToken(alice, "alice", "", nil, 0)),
			"alice makes an admin":               s.SetPerson(alice, "alice", "admin", ""),
			"alice makes a token for the admin":  second(s.NewToken(alice, "admin", "", nil, 0)),
			"alice revokes the admin's token":    s.Revoke(alice, 1),
			"alice makes a ticket":               second(s.NewTicket(alice, auth.Builder, "b1", time.Hour)),
			"alice lists people":                 second(s.People(alice)),
		} {
			if fault.Code(err) != "denied" {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := s.SetPerson(context.Background(), "eve", "admin", ""); fault.Code(err) != "token_needed" {
			t.Errorf("nobody makes an admin: %v", err)
		}
		if l, err := s.Tokens(alice); err != nil || len(l) != 1 || l[0].Secret != "" {
			t.Errorf("alice's list: %+v, %v", l, err)
		}
		if err := s.SetPerson(admin, "admin", "", ""); fault.Code(err) != "last_admin" {
			t.Errorf("the last admin was disabled: %v", err)
		}
		if err := s.SetPerson(admin, "../x", "admin", ""); fault.Code(err) != "name" {
			t.Errorf("a bad name: %v", err)
		}
		if err := s.SetPerson(admin, "alice", "", ""); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Authenticate(t.Context(), tok.Secret); fault.Code(err) != "token_bad" {
			t.Errorf("a disabled person's token: %v", err)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestTokensEnd(t *testing.T) {
	each(t, func(t *testing.T, s *auth.Store, admin context.Context) {
		short, err := s.NewToken(admin, "admin", "", nil, time.Microsecond)
		if err != nil {
			t.Fatal(err)
		}
		long, err := s.NewToken(admin, "admin", "", nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Revoke(admin, long.ID), s.Revoke(admin, long.ID)); err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{short.Secret, long.Secret, "drv_", "", "x' OR 1=1 --", strings.Repeat("drv_", 10_000)} {
			if _, err := s.Authenticate(t.Context(), secret); fault.Code(err) != "token_bad" {
				t.Errorf("%.20q: %v", secret, err)
			}
		}
	})
}

func TestTicketsAreSingleUse(t *testing.T) {
	each(t, func(t *testing.T, s *auth.Store, admin context.Context) {
		ticket, err := s.NewTicket(admin, auth.Builder, "b1", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		first, err := s.Join(t.Context(), ticket)
		if err != nil {
			t.Fatal(err)
		}
		a, err := s.Authenticate(t.Context(), first.Secret)
		if err != nil || a.String() != "builder:b1" || !a.May("work.build", "x") || a.May("work.sign", "x") {
			t.Errorf("builder is %+v, %v", a, err)
		}
		if _, err := s.Join(t.Context(), ticket); fault.Code(err) != "ticket_bad" {
			t.Errorf("used twice: %v", err)
		}
		if _, err := s.Join(t.Context(), "drt_guess"); fault.Code(err) != "ticket_bad" {
			t.Errorf("guessed: %v", err)
		}
		ticket, err = s.NewTicket(admin, auth.Builder, "b1", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Join(t.Context(), ticket); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Authenticate(t.Context(), first.Secret); fault.Code(err) != "token_bad" {
			t.Errorf("the builder that was replaced still gets in: %v", err)
		}
		if _, err := s.NewTicket(admin, auth.Person, "x", time.Hour); fault.Code(err) != "ticket_kind" {
			t.Errorf("a ticket for a person: %v", err)
		}
	})
}

func TestRequest(t *testing.T) {
	each(t, func(t *testing.T, s *auth.Store, admin context.Context) {
		tok, err := s.NewToken(admin, "admin", "", nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for header, want := range map[string]string{
			"":                       "nobody",
			"Bearer " + tok.Secret:   "admin",
			"Bearer wrong":           "token_bad",
			"Digest username=\"x\"":  "auth_scheme",
			"basic with a password":  "admin",
			"basic without password": "nobody",
		} {
			r := httptest.NewRequest("GET", "/", nil)
			switch header {
			case "basic with a password":
				r.SetBasicAuth("anybody", tok.Secret)
			case "basic without password":
				r.SetBasicAuth("anybody", "")
			case "":
			default:
				r.Header.Set("Authorization", header)
			}
			ctx, err := s.Request(r)
			got := fault.Code(err)
			if err == nil {
				got = auth.From(ctx).String()
			}
			if got != want {
				t.Errorf("%q: got %s want %s", header, got, want)
			}
		}
	})
}
