package salt

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/fault"
	"drover/internal/fleet"
	"drover/internal/job"
	"drover/internal/web"

	"go.yaml.in/yaml/v3"
)

// API answers what salt-api answers.
type API struct {
	Auth    *auth.Store
	Fleet   *fleet.Store
	Jobs    *job.Store
	Blobs   *blob.Store
	Version string // of drover
}

// Bounds of a request.
const (
	maxBody    = 2 << 20
	maxHook    = 64 << 10
	maxLow     = 100            // lowstates in a request
	maxWait    = 6 * time.Hour  // for the end of a job; then what is there is told
	maxAnswer  = 64 << 20       // bytes of results
	sessionFor = 12 * time.Hour // what is told of a token that does not expire
)

const cookie = "session_id"

// handler gives the value of an answer, and its status.
type handler func(ctx context.Context, r *http.Request) (status int, v any, err error)

// Routes adds the routes. All but login, and run, whose lowstates may carry credentials of their
// own, want a token before they read anything.
func (a *API) Routes(srv *web.Server) {
	raw := func(pattern string, fn func(http.ResponseWriter, *http.Request) error) {
		srv.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) error {
			if err := fn(w, r); err != nil {
				return refuse(w, err)
			}
			return nil
		})
	}
	add := func(pattern string, h handler) {
		raw(pattern, func(w http.ResponseWriter, r *http.Request) error {
			ctx, err := a.session(r)
			if err != nil {
				return err
			}
			status, v, err := h(ctx, r)
			if err != nil {
				return err
			}
			return reply(w, r, status, v)
		})
	}
	raw("POST /salt/login", a.login)
	raw("POST /salt/logout", a.logout)
	add("GET /salt/{$}", func(context.Context, *http.Request) (int, any, error) {
		return http.StatusOK, map[string]any{"return": "Welcome", "clients": clients()}, nil
	})
	add("POST /salt/{$}", a.low)
	add("POST /salt", a.low) // a redirect would turn it into a GET
	raw("POST /salt/run", a.run)
	add("GET /salt/minions", a.minions)
	add("GET /salt/minions/{mid}", a.minions)
	add("POST /salt/minions", a.start)
	add("GET /salt/jobs", func(ctx context.Context, _ *http.Request) (int, any, error) {
		v, err := a.listJobs(ctx, params{})
		return http.StatusOK, returns(v), err
	})
	add("GET /salt/jobs/{jid}", a.job)
	add("GET /salt/keys", func(ctx context.Context, _ *http.Request) (int, any, error) {
		v, err := a.keys(ctx)
		return http.StatusOK, map[string]any{"return": v}, err
	})
	add("GET /salt/keys/{mid}", func(ctx context.Context, r *http.Request) (int, any, error) {
		h, err := a.Fleet.Host(ctx, r.PathValue("mid"))
		return http.StatusOK, map[string]any{"return": map[string]any{section(h.State): map[string]string{h.Name: h.Key}}}, err
	})
	add("POST /salt/keys", func(ctx context.Context, _ *http.Request) (int, any, error) {
		if err := auth.Need(ctx, "host.accept", "*"); err != nil {
			return 0, nil, err
		}
		return 0, nil, fault.Invalid("key_made", "drover makes no keys for hosts: each makes its own, which never leaves it").Fix("make a ticket for the host, by POST /api/v1/hosts/tickets or `drover host ticket`")
	})
	add("GET /salt/stats", a.stats)
	add("POST /salt/hook/{path...}", a.hook)
	raw("GET /salt/events", a.events)
}

func returns(v any) map[string]any { return map[string]any{"return": []any{v}} }

// session finds who asks: by Salt's header, else as everywhere in drover, else by Salt's cookie.
// A page of another site that has a browser send the cookie is refused by the server itself when
// it would change something, and the cookie is for this site only.
func (a *API) session(r *http.Request) (context.Context, error) {
	token := r.Header.Get("X-Auth-Token")
	if token == "" && auth.From(r.Context()).Kind != auth.Nobody {
		return r.Context(), nil
	}
	if c, err := r.Cookie(cookie); err == nil && token == "" {
		token = c.Value
	}
	if token == "" {
		return nil, fault.Unauthorized("token_needed", "please log in: this needs a token").Fix("POST /salt/login with a username and, as password, a token of drover; send what it answers as X-Auth-Token")
	}
	return a.as(r.Context(), "", token)
}

// as is the context of whom a token is of, who must be the named one if any is named.
func (a *API) as(ctx context.Context, name, token string) (context.Context, error) {
	who, err := a.Auth.Authenticate(ctx, token)
	if err != nil {
		return nil, err
	}
	if name != "" && (who.Kind != auth.Person || who.Name != name) {
		return nil, fault.Unauthorized("token_bad", "the token is not one of %.64q", name).Fix("give the name of whom the token is of; `drover auth token list` shows it")
	}
	return auth.With(ctx, who), nil
}

// login takes a person's token as the password, and gives it back as what Salt calls a token.
func (a *API) login(w http.ResponseWriter, r *http.Request) error {
	b, err := read(w, r, maxHook)
	if err != nil {
		return err
	}
	lows, err := lowstates(r.Header.Get("Content-Type"), b)
	if err != nil {
		return err
	}
	l := lows[0]
	name, token := l.text("username"), l.text("password")
	if token == "" {
		token = l.text("sharedsecret")
	}
	if name == "" || token == "" {
		return fault.Unauthorized("login_needed", "a login needs username and password").Fix("the password is a token of that person, made with `drover auth token create`")
	}
	ctx, err := a.as(r.Context(), name, token)
	if err != nil {
		return err
	}
	start := time.Now()
	end := start.Add(sessionFor)
	ts, err := a.Auth.Tokens(ctx)
	if err != nil {
		return err
	}
	who := auth.From(ctx)
	for _, t := range ts {
		if t.ID == who.Token && !t.Expires.IsZero() {
			end = t.Expires
		}
	}
	perms := []string{}
	for perm, right := range map[string]string{".*": "job.run", "@runner": "host.read", "@jobs": "host.read", "@wheel": "host.accept"} {
		if who.May(right, "*") {
			perms = append(perms, perm)
		}
	}
	slices.Sort(perms)
	http.SetCookie(w, &http.Cookie{Name: cookie, Value: token, Path: "/salt", HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode})
	w.Header().Set("X-Auth-Token", token)
	seconds := func(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }
	return reply(w, r, http.StatusOK, returns(map[string]any{"token": token, "start": seconds(start), "expire": seconds(end), "user": who.Name, "eauth": l.text("eauth"), "perms": perms}))
}

// logout forgets the cookie. The token stays good: it is its owner's, and others may use it.
func (a *API) logout(w http.ResponseWriter, r *http.Request) error {
	http.SetCookie(w, &http.Cookie{Name: cookie, Path: "/salt", HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode, MaxAge: -1})
	return reply(w, r, http.StatusOK, map[string]string{"return": "Your token has been cleared"})
}

// sent are the lowstates of a request.
func sent(r *http.Request) ([]low, error) {
	b, err := read(nil, r, maxBody)
	if err != nil {
		return nil, err
	}
	return lowstates(r.Header.Get("Content-Type"), b)
}

// low runs lowstates for whom the session is of.
func (a *API) low(ctx context.Context, r *http.Request) (int, any, error) {
	lows, err := sent(r)
	if err != nil {
		return 0, nil, err
	}
	v, err := a.all(func(low) (context.Context, error) { return ctx, nil }, lows)
	return http.StatusOK, v, err
}

// run runs lowstates that carry who asks, or that are of the session.
func (a *API) run(w http.ResponseWriter, r *http.Request) error {
	ctx, nobody := a.session(r)
	most := int64(maxBody)
	if nobody != nil {
		most = maxHook // what anybody may send costs little
	}
	b, err := read(w, r, most)
	if err != nil {
		return err
	}
	lows, err := lowstates(r.Header.Get("Content-Type"), b)
	if err != nil {
		return err
	}
	v, err := a.all(func(l low) (context.Context, error) {
		token := l.text("password")
		if token == "" {
			token = l.text("sharedsecret")
		}
		switch {
		case token != "":
			if l.text("username") == "" {
				return nil, fault.Unauthorized("login_needed", "a lowstate with a password needs a username too")
			}
			return a.as(r.Context(), l.text("username"), token)
		case l.text("token") != "":
			return a.as(r.Context(), "", l.text("token"))
		}
		return ctx, nobody
	}, lows)
	if err != nil {
		return err
	}
	return reply(w, r, http.StatusOK, v)
}

// all runs lowstates one after the other. What cannot be understood, or is nobody's, is found
// before the first of them runs.
func (a *API) all(who func(low) (context.Context, error), lows []low) (any, error) {
	ctxs := make([]context.Context, len(lows))
	for i, l := range lows {
		var err error
		if ctxs[i], err = who(l); err != nil {
			return nil, err
		}
		if err := l.check(); err != nil {
			return nil, err
		}
	}
	out := []any{}
	room := &budget{left: maxAnswer}
	for i, l := range lows {
		vs, err := a.one(ctxs[i], l, room)
		if err != nil {
			return nil, err
		}
		out = append(out, vs...)
	}
	return map[string]any{"return": out}, nil
}

// one runs a lowstate. A batch gives a value for each host, everything else gives one.
func (a *API) one(ctx context.Context, l low, room *budget) ([]any, error) {
	switch client := l.text("client"); client {
	case "runner":
		p, err := l.params()
		if err != nil {
			return nil, err
		}
		v, err := runners[l.text("fun")](ctx, a, p, room)
		return []any{v}, err
	case "wheel":
		v, err := a.wheel(ctx, l)
		return []any{v}, err
	default:
		return a.local(ctx, l, client, room)
	}
}

// start begins lowstates on hosts and does not wait.
func (a *API) start(ctx context.Context, r *http.Request) (int, any, error) {
	lows, err := sent(r)
	if err != nil {
		return 0, nil, err
	}
	for _, l := range lows {
		l["client"] = "local_async"
	}
	v, err := a.all(func(low) (context.Context, error) { return ctx, nil }, lows)
	if err != nil {
		return 0, nil, err
	}
	links := []any{}
	if m, ok := v.(map[string]any); ok {
		if rs, ok := m["return"].([]any); ok {
			for _, x := range rs {
				if started, ok := x.(map[string]any); ok && started["jid"] != nil {
					links = append(links, map[string]any{"href": "/salt/jobs/" + text(started["jid"])})
				}
			}
		}
		m["_links"] = map[string]any{"jobs": links}
	}
	return http.StatusAccepted, v, nil
}

func (a *API) stats(ctx context.Context, _ *http.Request) (int, any, error) {
	if err := auth.Need(ctx, "host.read", "*"); err != nil {
		return 0, nil, err
	}
	running, err := a.Jobs.List(ctx, job.Filter{State: job.StateRunning, Limit: 1000})
	return http.StatusOK, map[string]any{"drover": map[string]any{"version": a.Version, "hosts": a.Fleet.Counts(), "jobs": map[string]int{"running": len(running)}}}, err
}

// reHook is what a hook can be called: its name becomes a part of a tag.
var reHook = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@:-]*(/[A-Za-z0-9_][A-Za-z0-9_.@:-]*)*$`)

// hook tells of what somebody outside tells.
func (a *API) hook(ctx context.Context, r *http.Request) (int, any, error) {
	name := strings.Trim(r.PathValue("path"), "/")
	if err := auth.Need(ctx, "job.hook", name); err != nil {
		return 0, nil, err
	}
	if len(name) > 200 || !reHook.MatchString(name) {
		return 0, nil, fault.Invalid("hook_name", "%.100q is no name of a hook", name).Fix("use words of letters, digits and _ . @ : - with slashes between them")
	}
	b, err := read(nil, r, maxHook)
	if err != nil {
		return 0, nil, err
	}
	post, _, err := decode(r.Header.Get("Content-Type"), b)
	if err != nil {
		return 0, nil, err
	}
	heads := map[string]string{}
	for k, v := range r.Header {
		switch k { // who may read events gets no tokens by it
		case "Authorization", "Cookie", "X-Auth-Token", "Proxy-Authorization":
			continue
		}
		heads[k] = strings.Join(v, ", ")
	}
	a.Jobs.Stream.Publish("salt/netapi/hook/"+name, map[string]any{"body": strings.ToValidUTF8(string(b), "\uFFFD"), "post": post, "headers": heads, "user": auth.From(ctx).String()})
	return http.StatusOK, map[string]bool{"success": true}, nil
}

// events is the stream of events. Browsers cannot send headers with it, so that the token may be
// in the address.
func (a *API) events(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	for _, k := range []string{"token", "salt_token"} {
		if t := q.Get(k); t != "" && r.Header.Get("X-Auth-Token") == "" {
			r = r.Clone(r.Context())
			r.Header.Set("X-Auth-Token", t)
		}
	}
	ctx, err := a.session(r)
	if err != nil {
		return err
	}
	if err := auth.Need(ctx, "host.read", "*"); err != nil {
		return err
	}
	a.Jobs.ServeStream(w, r, q.Get("tag"))
	return nil
}

// reply writes an answer in JSON, or in YAML for whom asks for that.
func reply(w http.ResponseWriter, r *http.Request, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	kind := "application/json"
	accept := r.Header.Get("Accept")
	if y := strings.Index(accept, "yaml"); y >= 0 && (!strings.Contains(accept, "json") || strings.Index(accept, "json") > y) {
		var plain any // by way of JSON, so that both forms have the same names
		if err := yaml.Unmarshal(b, &plain); err != nil {
			return err
		}
		if b, err = yaml.Marshal(plain); err != nil {
			return err
		}
		kind = "application/x-yaml"
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(bytes.TrimRight(b, "\n")) // a reader that went away needs no answer
	_, _ = w.Write([]byte("\n"))
	return nil
}

// refuse writes an error as a problem that has Salt's status and return, too. What is drover's own
// failure is left to the server, which logs it.
func refuse(w http.ResponseWriter, err error) error {
	f := fault.As(err)
	if f.Kind == fault.KindInternal {
		return err
	}
	detail := f.Msg
	if f.Err != nil {
		detail += ": " + f.Err.Error()
	}
	said := detail
	if f.Remedy != "" {
		said += "; " + f.Remedy
	}
	b, err := json.Marshal(map[string]any{"title": http.StatusText(f.Status()), "status": f.Status(), "code": f.Code, "detail": detail, "remedy": f.Remedy, "return": said})
	if err != nil {
		return err
	}
	h := w.Header()
	if f.Status() == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Session")
	}
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(f.Status())
	_, _ = w.Write(append(b, '\n'))
	return nil
}
