package auth_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/db/dbtest"
	"drover/internal/event"
	"drover/internal/fault"
	"drover/internal/web"
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

func TestAdminsCannotLockEverybodyOut(t *testing.T) {
	each(t, func(t *testing.T, s *auth.Store, admin context.Context) {
		refused := func(what string, err error) {
			t.Helper()
			if fault.Code(err) != "last_admin" {
				t.Errorf("%s: %v", what, err)
			}
		}
		refused("the only token ends", s.Revoke(admin, 1))
		refused("the only admin is disabled", s.SetPerson(admin, "admin", "", ""))
		refused("the only admin steps down", s.SetPerson(admin, "admin", "viewer", ""))
		if err := s.SetPerson(admin, "bob", "admin", ""); err != nil {
			t.Fatal(err)
		}
		refused("the other admin has no token", s.SetPerson(admin, "admin", "viewer", ""))
		if _, err := s.NewToken(admin, "bob", "", []string{"pkg.*"}, 0); err != nil {
			t.Fatal(err)
		}
		refused("the other admin's token is narrow", s.SetPerson(admin, "admin", "viewer", ""))
		short, err := s.NewToken(admin, "bob", "", nil, time.Microsecond)
		if err != nil {
			t.Fatal(err)
		}
		refused("the other admin's token has expired", s.SetPerson(admin, "admin", "viewer", ""))
		if err := s.Revoke(admin, short.ID); err != nil {
			t.Errorf("an expired token cannot be ended: %v", err)
		}
		if _, err := s.NewToken(admin, "bob", "", nil, 0); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Revoke(admin, 1), s.SetPerson(admin, "admin", "", "")); err != nil {
			t.Errorf("with another admin: %v", err)
		}
	})
}

func TestWhoComesBackGetsNewTokens(t *testing.T) {
	each(t, func(t *testing.T, s *auth.Store, admin context.Context) {
		if err := s.SetPerson(admin, "eve", "packager", "first"); err != nil {
			t.Fatal(err)
		}
		tok, err := s.NewToken(admin, "eve", "", nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.SetPerson(admin, "eve", "releaser", ""), s.SetPerson(admin, "eve", "", ""), s.SetPerson(admin, "eve", "packager", "")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Authenticate(t.Context(), tok.Secret); fault.Code(err) != "token_bad" {
			t.Errorf("the token of before the leave: %v", err)
		}
		if err := s.SetPerson(admin, "eve", "packager", "another note"); err != nil {
			t.Fatal(err)
		}
		ps, err := s.People(admin)
		if err != nil || len(ps) != 2 || ps[1].Note != "another note" {
			t.Errorf("people: %+v, %v", ps, err)
		}
	})
}

func TestNoTokenMakesAWiderOne(t *testing.T) {
	each(t, func(t *testing.T, s *auth.Store, admin context.Context) {
		a := auth.From(admin)
		a.Scopes = []string{"auth.token", "pkg.*", "build.submit:rpms/hello"}
		narrow := auth.With(t.Context(), a)
		for _, c := range []struct {
			scopes []string
			want   string
		}{
			{nil, "denied"},
			{[]string{"*"}, "denied"},
			{[]string{"auth.*"}, "denied"},
			{[]string{"auth.person"}, "denied"},
			{[]string{"pkg.push", "tag.set"}, "denied"},
			{[]string{"build.submit"}, "denied"},
			{[]string{"build.submit:*"}, "denied"},
			{[]string{"build.submit:rpms/hello"}, ""},
			{[]string{"pkg.push:rpms/*"}, ""},
			{[]string{"pkg.*", "auth.token"}, ""},
			{[]string{""}, "scope"},
			{[]string{"pkg.push:["}, "scope"},
			{[]string{"pkg push"}, "scope"},
			{[]string{strings.Repeat("a", 1000)}, "scope"},
		} {
			if _, err := s.NewToken(narrow, "admin", "", c.scopes, 0); fault.Code(err) != c.want {
				t.Errorf("%q: %v", c.scopes, err)
			}
		}
	})
}

func TestTicketsExpireAndNameWhoJoins(t *testing.T) {
	dbtest.Each(t, []db.Schema{event.Schema(), auth.Schema()}, func(t *testing.T, d *db.DB) {
		s, sys := auth.NewStore(d), auth.AsSystem(t.Context())
		late, err := s.NewTicket(sys, auth.Signer, "s1", time.Microsecond)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Join(t.Context(), late); fault.Code(err) != "ticket_bad" || !strings.Contains(err.Error(), "expired") {
			t.Errorf("an expired ticket: %v", err)
		}
		ticket, err := s.NewTicket(sys, auth.Signer, "s1", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		// Of many at once one gets in.
		errs := make(chan error, 8)
		for range cap(errs) {
			go func() { _, err := s.Join(t.Context(), ticket); errs <- err }()
		}
		in := 0
		for range cap(errs) {
			if err := <-errs; err == nil {
				in++
			} else if fault.Code(err) != "ticket_bad" {
				t.Error(err)
			}
		}
		if in != 1 {
			t.Errorf("%d joined by one ticket", in)
		}
		if err := d.Read(t.Context(), func(tx *db.Tx) error {
			es, err := event.List(tx, event.Filter{Kind: "auth.join"})
			if len(es) != 1 || es[0].Actor != "signer:s1" {
				t.Errorf("events: %+v", es)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
}

func TestOverHTTP(t *testing.T) {
	dbtest.Each(t, []db.Schema{event.Schema(), auth.Schema()}, func(t *testing.T, d *db.DB) {
		s, sys := auth.NewStore(d), auth.AsSystem(t.Context())
		srv := web.New(web.Config{Version: "test", Log: slog.New(slog.DiscardHandler), Authenticate: s.Request})
		s.Routes(srv)
		ts := httptest.NewServer(srv)
		defer ts.Close()
		if err := errors.Join(s.SetPerson(sys, "root", "admin", ""), s.SetPerson(sys, "vic", "viewer", "")); err != nil {
			t.Fatal(err)
		}
		token := func(owner string, ttl time.Duration, scopes ...string) auth.TokenInfo {
			tok, err := s.NewToken(sys, owner, "", scopes, ttl)
			if err != nil {
				t.Fatal(err)
			}
			return tok
		}
		admin, narrow, viewer, expired, revoked := token("root", 0), token("root", 0, "pkg.*"), token("vic", 0), token("root", time.Microsecond), token("root", 0)
		if err := s.Revoke(sys, revoked.ID); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name, token, code string
			status            int
		}{
			{"an admin", admin.Secret, "", 0},
			{"nobody", "", "token_needed", 401},
			{"a viewer", viewer.Secret, "denied", 403},
			{"a narrow token", narrow.Secret, "denied", 403},
			{"an expired token", expired.Secret, "token_bad", 401},
			{"a revoked token", revoked.Secret, "token_bad", 401},
			{"a made-up token", "drv_" + strings.Repeat("a", 32), "token_bad", 401},
		} {
			err := (&web.Client{Base: ts.URL, Token: c.token}).Call(t.Context(), "GET", "/api/v1/people", nil, nil)
			if fault.Code(err) != c.code || err != nil && (fault.As(err).Status() != c.status || fault.As(err).Remedy == "") {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		// What the database holds shows no secret.
		for _, table := range []string{"auth_token", "auth_person", "event"} {
			if err := d.Read(t.Context(), func(tx *db.Tx) error {
				var n int
				q := "SELECT COUNT(*) FROM " + table + " x WHERE "
				switch table {
				case "auth_token":
					q += "CAST(hash AS TEXT) LIKE $1 OR label LIKE $1 OR scopes LIKE $1"
				case "auth_person":
					q += "note LIKE $1 OR name LIKE $1"
				default:
					q += "data LIKE $1 OR subject LIKE $1"
				}
				err := tx.QueryRow(q, "%"+admin.Secret+"%").Scan(&n)
				if n > 0 {
					t.Errorf("%s holds a secret", table)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
	})
}
