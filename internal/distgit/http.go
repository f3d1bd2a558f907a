package distgit

import (
	"compress/gzip"
	"context"
	"embed"
	"io"
	"net/http"
	"strconv"
	"strings"

	"drover/internal/auth"
	"drover/internal/cli"
	"drover/internal/fault"
	"drover/internal/web"
)

//go:embed pages
var pages embed.FS

type none struct{}

// RepoPath is a route about one repository.
type RepoPath struct {
	NS   string `path:"ns"`
	Name string `path:"name"`
}

func (p RepoPath) repo() string { return p.NS + "/" + p.Name }

// shownCommits is how many commits one page shows.
const shownCommits = 30

// Detail is a repository with what people want to see of it.
type Detail struct {
	Repo
	Branches []string `json:"branches"`
	Rules    []Rule   `json:"rules"`
	Commits  []Commit `json:"commits"`
	Pushes   []Push   `json:"pushes"`
	Builds   any      `json:"builds,omitempty"`
}

// Detail reads a repository with its branches, rules, newest pushes, and newest commits of a
// branch or from a commit on; of the default branch for "".
func (s *Store) Detail(ctx context.Context, name, rev string) (d Detail, err error) {
	if d.Repo, err = s.Repo(ctx, name); err != nil {
		return d, err
	}
	if d.Branches, err = s.Branches(ctx, name); err != nil {
		return d, err
	}
	if d.Rules, err = s.Rules(ctx, name); err != nil {
		return d, err
	}
	if d.Commits, err = s.Commits(ctx, name, rev, shownCommits+1); err != nil {
		return d, err
	}
	d.Pushes, err = s.Pushes(ctx, name, 20)
	return d, err
}

// Routes adds the routes of repositories and of the lookaside cache. builds gives the rows
// that a package's page shows of its builds.
func (s *Store) Routes(srv *web.Server, builds func(ctx context.Context, repo string) (any, error)) {
	const tag = "distgit"
	web.Route(srv, web.Op{Method: "POST", Path: "/api/v1/repos", ID: "repo-create", Summary: "Make a repository", Tag: tag},
		func(ctx context.Context, in *struct {
			Body struct {
				Name   string `json:"name"`
				Branch string `json:"branch,omitempty"`
				Note   string `json:"note,omitempty"`
			}
		}) (Repo, error) {
			r := Repo{Name: in.Body.Name, Branch: in.Body.Branch, Note: in.Body.Note}
			if err := s.Create(ctx, r); err != nil {
				return r, err
			}
			return s.Repo(ctx, r.Name)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/repos", ID: "repo-list", Summary: "List repositories", Tag: tag},
		func(ctx context.Context, in *struct {
			Query string `query:"q" maxLength:"200"`
			After string `query:"after"`
			Limit int    `query:"limit"`
		}) ([]Repo, error) {
			return s.Repos(ctx, in.Query, in.After, in.Limit)
		})
	web.Route(srv, web.Op{Method: "GET", Path: "/api/v1/repos/{ns}/{name}", ID: "repo-show", Summary: "A repository with branches, rules, commits and pushes", Tag: tag},
		func(ctx context.Context, in *RepoPath) (Detail, error) { return s.Detail(ctx, in.repo(), "") })
	web.Route(srv, web.Op{Method: "PUT", Path: "/api/v1/repos/{ns}/{name}/rules", ID: "repo-rule", Summary: "Set the rule of a pattern of branches", Tag: tag},
		func(ctx context.Context, in *struct {
			RepoPath
			Body Rule
		}) (none, error) {
			return none{}, s.SetRule(ctx, in.repo(), in.Body)
		})
	srv.HandleFunc("PUT /api/v1/lookaside/{ns}/{name}/{file}", func(w http.ResponseWriter, r *http.Request) error {
		q := r.URL.Query()
		size, err := strconv.ParseInt(q.Get("size"), 10, 64)
		if err != nil {
			return fault.Invalid("source_size", "the query has no size")
		}
		offset, err := strconv.ParseInt(q.Get("offset"), 10, 64)
		if err != nil {
			return fault.Invalid("source_offset", "the query has no offset")
		}
		have, err := s.Upload(r.Context(), r.PathValue("ns")+"/"+r.PathValue("name"), r.PathValue("file"), q.Get("sha512"), size, offset, r.Body)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"have":`+strconv.FormatInt(have, 10)+"}\n")
		return nil
	})
	srv.HandleFunc("POST /repo/pkgs/upload.cgi", s.cgi)
	srv.HandleFunc("GET /repo/pkgs/{path...}", s.download)
	srv.HandleFunc("GET /git/{ns}/{name}/info/refs", s.infoRefs)
	srv.HandleFunc("POST /git/{ns}/{name}/git-upload-pack", func(w http.ResponseWriter, r *http.Request) error {
		return s.rpc(w, r, "upload-pack", func(repo string, body io.Reader) error {
			return s.serveGit(w, r, repo, []string{"upload-pack", "--stateless-rpc", "."}, body)
		})
	})
	srv.HandleFunc("POST /git/{ns}/{name}/git-receive-pack", func(w http.ResponseWriter, r *http.Request) error {
		return s.rpc(w, r, "receive-pack", func(repo string, body io.Reader) error { return s.receive(r.Context(), repo, body, w) })
	})
	srv.Page("GET /packages", pages, "pages/packages.html", func(r *http.Request) (web.Page, error) {
		const limit = 100
		q := r.URL.Query()
		total, err := s.Count(r.Context(), q.Get("q"))
		if err != nil {
			return web.Page{}, err
		}
		rs, err := s.Repos(r.Context(), q.Get("q"), q.Get("after"), limit+1)
		cmd := "drover pkg list"
		if part := q.Get("q"); part != "" {
			cmd += " " + cli.Quote(part)
		}
		return web.Page{Title: "Packages", Data: web.MakeRows(r, rs, limit, total, "after", func(r Repo) any { return r.Name }), CLI: cmd}, err
	})
	srv.Page("GET /packages/{ns}/{name}", pages, "pages/package.html", func(r *http.Request) (web.Page, error) {
		name := r.PathValue("ns") + "/" + r.PathValue("name")
		q := r.URL.Query()
		branch, from := q.Get("branch"), q.Get("from")
		if from == "" {
			from = branch
		}
		d, err := s.Detail(r.Context(), name, from)
		if err != nil {
			return web.Page{}, err
		}
		if branch == "" {
			branch = d.Branch
		}
		total, err := s.CountCommits(r.Context(), name, branch)
		if err != nil {
			return web.Page{}, err
		}
		data := struct {
			Detail
			At      string           `json:"at"` // the branch whose commits these are
			Commits web.Rows[Commit] `json:"commits"`
		}{d, branch, web.MakeRows(r, d.Commits, shownCommits, total, "from", func(Commit) any { return "" })}
		if len(d.Commits) > shownCommits {
			q.Set("from", d.Commits[shownCommits].ID)
			data.Commits.Next = "?" + q.Encode()
		}
		data.Detail.Builds, err = builds(r.Context(), name)
		return web.Page{Title: name, Data: data, CLI: "drover pkg show " + name}, err
	})
}

// gitRepo finds the repository of a git URL, with or without ".git".
func (s *Store) gitRepo(r *http.Request) (string, error) {
	repo := r.PathValue("ns") + "/" + strings.TrimSuffix(r.PathValue("name"), ".git")
	if err := CheckName(repo); err != nil {
		return "", err
	}
	_, err := s.Repo(r.Context(), repo)
	return repo, err
}

func noCache(h http.Header) {
	h.Set("Cache-Control", "no-cache, max-age=0, must-revalidate")
	h.Set("Expires", "Fri, 01 Jan 1980 00:00:00 GMT")
	h.Set("Pragma", "no-cache")
}

func (s *Store) infoRefs(w http.ResponseWriter, r *http.Request) error {
	repo, err := s.gitRepo(r)
	if err != nil {
		return err
	}
	noCache(w.Header())
	switch service := r.URL.Query().Get("service"); service {
	case "git-receive-pack":
		if err := auth.Need(r.Context(), "pkg.push", repo); err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/x-git-receive-pack-advertisement")
		return s.advertise(r.Context(), repo, w)
	case "git-upload-pack":
		w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
		pkt(w, "# service=git-upload-pack\n")
		_, _ = io.WriteString(w, "0000")
		return s.serveGit(w, r, repo, []string{"upload-pack", "--stateless-rpc", "--advertise-refs", "."}, nil)
	default:
		return fault.Denied("git_service", "the service %.40q is not offered", service).Fix("use a git that speaks smart HTTP")
	}
}

func (s *Store) rpc(w http.ResponseWriter, r *http.Request, service string, fn func(repo string, body io.Reader) error) error {
	repo, err := s.gitRepo(r)
	if err != nil {
		return err
	}
	if service == "receive-pack" {
		if err := auth.Need(r.Context(), "pkg.push", repo); err != nil {
			return err
		}
	}
	if ct := r.Header.Get("Content-Type"); ct != "application/x-git-"+service+"-request" {
		return fault.Invalid("git_protocol", "a %s request has another content type", service)
	}
	body := io.Reader(r.Body)
	if ce := r.Header.Get("Content-Encoding"); ce != "" && ce != "gzip" && ce != "identity" {
		return fault.Invalid("git_protocol", "the encoding %.20q is not taken", ce)
	}
	if r.Header.Get("Content-Encoding") == "gzip" {
		g, err := gzip.NewReader(r.Body)
		if err != nil {
			return fault.Invalid("git_protocol", "the request is no gzip").Wrap(err)
		}
		defer g.Close()
		body = g // what it grows to is bounded by whoever reads it
	}
	if service == "upload-pack" {
		body = io.LimitReader(body, 64<<20) // wants and haves only
	}
	noCache(w.Header())
	w.Header().Set("Content-Type", "application/x-git-"+service+"-result")
	return fn(repo, body)
}
