package distgit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"drover/internal/auth"
	"drover/internal/blob"
	"drover/internal/db"
	"drover/internal/event"
	"drover/internal/fault"
)

//go:embed migrations
var migrations embed.FS

// Schema is the tables of repositories, rules, pushes and sources.
func Schema() db.Schema { return db.Schema{Name: "distgit", FS: migrations} }

// Config is what a Store needs.
type Config struct {
	DB      *db.DB
	Blobs   *blob.Store
	Dir     string // of the bare repositories
	Log     *slog.Logger
	MaxPush int64 // bytes of one push; 0 means 512 MiB
}

// Store keeps repositories and sources.
type Store struct {
	Config

	mu    sync.Mutex             // guards locks
	locks map[string]*sync.Mutex // one a repository: pushes to it go one by one
}

// New makes a Store and rolls forward what an earlier life left half done.
func New(ctx context.Context, c Config) (*Store, error) {
	if c.MaxPush == 0 {
		c.MaxPush = 512 << 20
	}
	s := &Store{Config: c, locks: map[string]*sync.Mutex{}}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	return s, s.settle(ctx)
}

func (s *Store) lock(repo string) func() {
	s.mu.Lock()
	m := s.locks[repo]
	if m == nil {
		m = new(sync.Mutex)
		s.locks[repo] = m
	}
	s.mu.Unlock()
	m.Lock()
	return m.Unlock
}

// Namespaces are the kinds of repositories.
func Namespaces() []string {
	return []string{"rpms", "fleet", "states", "images", "pipelines", "tests"}
}

var (
	reRepo   = regexp.MustCompile(`^([a-z]+)/([A-Za-z0-9][A-Za-z0-9_.+-]{0,99})$`)
	reBranch = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_./+-]{0,99}$`)
	reObject = regexp.MustCompile(`^[0-9a-f]{40}([0-9a-f]{24})?$`)
)

// CheckName refuses what is no "namespace/name".
func CheckName(repo string) error {
	m := reRepo.FindStringSubmatch(repo)
	if m == nil || !slices.Contains(Namespaces(), m[1]) || strings.HasSuffix(repo, ".git") || strings.Contains(repo, "..") || strings.HasSuffix(repo, ".lock") {
		return fault.Invalid("repo_name", "%.150q is no repository", repo).Fix("use NAMESPACE/NAME with a namespace of %s", strings.Join(Namespaces(), ", "))
	}
	return nil
}

func (s *Store) path(repo string) string { return filepath.Join(s.Dir, repo+".git") }

// Repo is a repository.
type Repo struct {
	Name   string `json:"name"`
	Branch string `json:"branch"` // default branch
	Note   string `json:"note,omitempty"`
	Since  int64  `json:"since"`
}

// Create makes an empty repository. Its default branch is protected from the start.
func (s *Store) Create(ctx context.Context, r Repo) error {
	if err := auth.Need(ctx, "pkg.create", r.Name); err != nil {
		return err
	}
	if err := CheckName(r.Name); err != nil {
		return err
	}
	if r.Branch == "" {
		r.Branch = "main"
	}
	if !goodBranch(r.Branch) || len(r.Note) > 500 {
		return fault.Invalid("branch", "%.100q is no branch, or the note has over 500 letters", r.Branch)
	}
	defer s.lock(r.Name)()
	if _, err := s.Repo(ctx, r.Name); err == nil {
		return fault.Conflict("repo_exists", "%s exists already", r.Name)
	}
	// Files first, the row last: without its row a repository is not there, and what a try
	// that was cut off left (git's lock files too) is nobody's.
	if err := os.RemoveAll(s.path(r.Name)); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.path(r.Name)), 0o700); err != nil {
		return err
	}
	if _, err := s.git(ctx, "", nil, "init", "--quiet", "--bare", "--template=", "--initial-branch="+r.Branch, s.path(r.Name)); err != nil {
		return err
	}
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		ev, err := event.Append(tx, "distgit.create", "repo/"+r.Name, map[string]string{"branch": r.Branch, "note": r.Note})
		if err != nil {
			return err
		}
		if _, err := tx.Exec("INSERT INTO distgit_repo (name, branch, note, since) VALUES ($1, $2, $3, $4)", r.Name, r.Branch, r.Note, ev); err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO distgit_rule (repo, pattern, who, protected, since, until) VALUES ($1, $2, '', 1, $3, 0)", r.Name, r.Branch, ev)
		return err
	})
}

func goodBranch(b string) bool {
	return reBranch.MatchString(b) && !strings.Contains(b, "..") && !strings.Contains(b, "//") && !strings.HasSuffix(b, "/") && !strings.HasSuffix(b, ".lock") && !strings.Contains(b, "/.") && !strings.HasSuffix(b, ".")
}

// Repo reads a repository; fault repo_unknown.
func (s *Store) Repo(ctx context.Context, name string) (r Repo, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow("SELECT name, branch, note, since FROM distgit_repo WHERE name = $1", name).Scan(&r.Name, &r.Branch, &r.Note, &r.Since)
	})
	if db.NoRow(err) {
		return r, fault.NotFound("repo_unknown", "there is no repository %.150q", name).Fix("make it with `drover pkg create`, or see `drover pkg list`")
	}
	return r, err
}

// Count counts the repositories whose name contains part.
func (s *Store) Count(ctx context.Context, part string) (n int64, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(`SELECT COUNT(*) FROM distgit_repo WHERE name LIKE $1 ESCAPE '\'`, "%"+db.Like(part)).Scan(&n)
	})
	return n, err
}

// Repos lists the repositories whose name contains part, in order, after a name.
func (s *Store) Repos(ctx context.Context, part, after string, limit int) ([]Repo, error) {
	out := []Repo{}
	if limit <= 0 {
		limit = 100
	}
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var r Repo
			err := scan(&r.Name, &r.Branch, &r.Note, &r.Since)
			out = append(out, r)
			return err
		}, `SELECT name, branch, note, since FROM distgit_repo WHERE name > $1 AND name LIKE $2 ESCAPE '\' ORDER BY name LIMIT `+strconv.Itoa(min(limit, 1000)), after, "%"+db.Like(part))
	})
	return out, err
}

// Rule is what holds for the branches of a repository that its pattern matches.
type Rule struct {
	Pattern   string   `json:"pattern" doc:"of branch names, * matches within a part"`
	Who       []string `json:"who" doc:"people who may push; empty: all who may push to the repository"`
	Protected bool     `json:"protected" doc:"no force-push, no removal"`
	Since     int64    `json:"since,omitempty"`
}

// SetRule sets the rule of one pattern. A rule without people and protection removes it.
func (s *Store) SetRule(ctx context.Context, repo string, r Rule) error {
	if err := auth.Need(ctx, "pkg.rule", repo); err != nil {
		return err
	}
	if _, err := path.Match(r.Pattern, "x"); err != nil || r.Pattern == "" || len(r.Pattern) > 100 || len(r.Who) > 100 || strings.ContainsAny(strings.Join(r.Who, ""), " ,\n") {
		return fault.Invalid("rule", "%.100q is no pattern of branches, or the people are no names", r.Pattern)
	}
	if _, err := s.Repo(ctx, repo); err != nil {
		return err
	}
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		ev, err := event.Append(tx, "distgit.rule", "repo/"+repo, r)
		if err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE distgit_rule SET until = $1 WHERE repo = $2 AND pattern = $3 AND until = 0", ev, repo, r.Pattern); err != nil {
			return err
		}
		if len(r.Who) == 0 && !r.Protected {
			return nil
		}
		_, err = tx.Exec("INSERT INTO distgit_rule (repo, pattern, who, protected, since, until) VALUES ($1, $2, $3, $4, $5, 0)", repo, r.Pattern, strings.Join(r.Who, ","), db.Bool(r.Protected), ev)
		return err
	})
}

// Rules lists the rules of a repository.
func (s *Store) Rules(ctx context.Context, repo string) (rs []Rule, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error { rs, err = rules(tx, repo); return err })
	return rs, err
}

func rules(tx *db.Tx, repo string) ([]Rule, error) {
	out := []Rule{}
	err := tx.Each(func(scan func(...any) error) error {
		r := Rule{Who: []string{}}
		var who string
		var protected int64
		if err := scan(&r.Pattern, &who, &protected, &r.Since); err != nil {
			return err
		}
		if who != "" {
			r.Who = strings.Split(who, ",")
		}
		r.Protected = protected != 0
		out = append(out, r)
		return nil
	}, "SELECT pattern, who, protected, since FROM distgit_rule WHERE repo = $1 AND until = 0 ORDER BY pattern", repo)
	return out, err
}

// Push is one ref that a push moved.
type Push struct {
	Event int64     `json:"event"`
	Ref   string    `json:"ref"`
	Old   string    `json:"old"`
	New   string    `json:"new"`
	Actor string    `json:"actor"`
	At    time.Time `json:"at"`
}

func pushes(tx *db.Tx, where string, args ...any) ([]Push, error) {
	out := []Push{}
	err := tx.Each(func(scan func(...any) error) error {
		var p Push
		var at int64
		err := scan(&p.Event, &p.Ref, &p.Old, &p.New, &p.Actor, &at)
		p.At = db.Time(at)
		out = append(out, p)
		return err
	}, "SELECT event, ref, old, new, actor, at FROM distgit_push WHERE "+where, args...)
	return out, err
}

// Pushes lists the pushes to a repository, newest first.
func (s *Store) Pushes(ctx context.Context, repo string, limit int) (ps []Push, err error) {
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		ps, err = pushes(tx, "repo = $1 ORDER BY event DESC, ref LIMIT "+strconv.Itoa(min(max(limit, 1), 500)), repo)
		return err
	})
	return ps, err
}

// Pusher finds the push that brought a commit: the first whose new tip has it.
func (s *Store) Pusher(ctx context.Context, repo, commit string) (Push, error) {
	var ps []Push
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		ps, err = pushes(tx, "repo = $1 ORDER BY event, ref", repo)
		return err
	})
	if err != nil {
		return Push{}, err
	}
	if i := slices.IndexFunc(ps, func(p Push) bool { return p.New == commit }); i >= 0 {
		return ps[i], nil // the tip of a push: no need to ask git
	}
	for _, p := range ps {
		if strings.Trim(p.New, "0") == "" {
			continue
		}
		if _, err := s.git(ctx, s.path(repo), nil, "merge-base", "--is-ancestor", commit, p.New); err == nil {
			return p, nil
		}
	}
	return Push{}, fault.NotFound("push_unknown", "no push brought %s to %s", commit, repo)
}

// maxGitOutput bounds what a git command may print.
const maxGitOutput = 64 << 20

// git runs a git command with a clean environment and returns what it prints.
func (s *Store) git(ctx context.Context, dir string, env []string, args ...string) ([]byte, error) {
	c := command(ctx, dir, env, args...)
	var out, errs bounded
	out.left, errs.left = maxGitOutput, 64<<10
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("git %s: %w: %s", args[0], err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.Bytes(), nil
}

type bounded struct {
	bytes.Buffer
	left int
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, errors.New("too much output")
	}
	return b.Buffer.Write(p)
}

func command(ctx context.Context, dir string, env []string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, "git", args...)
	c.Dir = dir
	c.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/nonexistent", "LC_ALL=C.UTF-8", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_CONFIG_COUNT=3", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*", "GIT_CONFIG_KEY_1=gc.auto", "GIT_CONFIG_VALUE_1=0",
		"GIT_CONFIG_KEY_2=core.fsync", "GIT_CONFIG_VALUE_2=committed"}, env...)
	if dir != "" {
		c.Env = append(c.Env, "GIT_DIR="+dir)
	}
	c.WaitDelay = 5 * time.Second
	return c
}

// Resolve finds the commit that a branch, tag or (part of a) commit id names; "" is the
// default branch.
func (s *Store) Resolve(ctx context.Context, repo, rev string) (string, error) {
	r, err := s.Repo(ctx, repo)
	if err != nil {
		return "", err
	}
	if rev == "" {
		rev = r.Branch
	}
	no := fault.NotFound("commit_unknown", "%s has no branch, tag or commit %.100q", repo, rev).Fix("push it first, or see `git ls-remote`")
	if !goodBranch(rev) {
		return "", no
	}
	for _, try := range []string{"refs/heads/" + rev, "refs/tags/" + rev, rev} {
		if try == rev && !regexp.MustCompile(`^[0-9a-f]{7,64}$`).MatchString(rev) {
			break
		}
		if out, err := s.git(ctx, s.path(repo), nil, "rev-parse", "--verify", "--quiet", "--end-of-options", try+"^{commit}"); err == nil {
			return strings.TrimSpace(string(out)), nil
		}
	}
	return "", no
}

// CommitTime is the committer's time of a commit.
func (s *Store) CommitTime(ctx context.Context, repo, commit string) (time.Time, error) {
	out, err := s.git(ctx, s.path(repo), nil, "show", "--no-patch", "--format=%ct", commit)
	if err != nil {
		return time.Time{}, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	return time.Unix(n, 0).UTC(), err
}

// Archive writes a commit's files as a tar, the same bytes each time.
func (s *Store) Archive(ctx context.Context, repo, commit string, w io.Writer) error {
	c := command(ctx, s.path(repo), nil, "archive", "--format=tar", commit)
	var errs bounded
	errs.left = 64 << 10
	c.Stdout, c.Stderr = w, &errs
	if err := c.Run(); err != nil {
		return fmt.Errorf("git archive: %w: %s", err, errs.Bytes())
	}
	return nil
}

// TreeFile is a regular file of a commit.
type TreeFile struct {
	Path   string      `json:"path"`
	Digest blob.Digest `json:"digest"` // sha256 of the content
	Size   int64       `json:"size"`
}

// maxTree bounds the bytes and files of one commit's tree.
const (
	maxTreeFiles = 20_000
	maxTreeBytes = 1 << 30
)

// TreeFiles lists the regular files of a commit with the sha256 of their content.
func (s *Store) TreeFiles(ctx context.Context, repo, commit string) ([]TreeFile, error) {
	objs, err := s.tree(ctx, repo, nil, commit)
	if err != nil {
		return nil, err
	}
	out := make([]TreeFile, 0, len(objs))
	err = s.contents(ctx, repo, nil, objs, func(o object, size int64, r io.Reader) error {
		h := sha256.New()
		_, err := io.Copy(h, r)
		out = append(out, TreeFile{Path: o.path, Digest: blob.Digest(hex.EncodeToString(h.Sum(nil))), Size: size})
		return err
	})
	return out, err
}

type object struct{ path, id string }

// tree lists the regular files of a commit.
func (s *Store) tree(ctx context.Context, repo string, env []string, commit string) ([]object, error) {
	out, err := s.git(ctx, s.path(repo), env, "ls-tree", "-r", "-z", "--full-tree", commit)
	if err != nil {
		return nil, err
	}
	var objs []object
	for line := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		meta, name, ok := strings.Cut(line, "\t")
		f := strings.Fields(meta)
		if !ok || len(f) != 3 || f[1] != "blob" || !strings.HasPrefix(f[0], "100") {
			continue
		}
		if objs = append(objs, object{name, f[2]}); len(objs) > maxTreeFiles {
			return nil, fault.TooLarge("tree_files", "%s of %s has over %d files", commit, repo, maxTreeFiles)
		}
	}
	return objs, nil
}

// contents reads objects by one git process. fn need not read all, and what it reads is never
// in memory as a whole.
func (s *Store) contents(ctx context.Context, repo string, env []string, objs []object, fn func(object, int64, io.Reader) error) error {
	if len(objs) == 0 {
		return nil
	}
	var in bytes.Buffer
	for _, o := range objs {
		fmt.Fprintln(&in, o.id)
	}
	c := command(ctx, s.path(repo), env, "cat-file", "--batch", "--buffer")
	c.Stdin = &in
	pipe, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	read := func() error {
		left := int64(maxTreeBytes)
		br := bufio.NewReaderSize(pipe, 64<<10)
		for _, o := range objs {
			head, err := br.ReadString('\n')
			if err != nil {
				return fmt.Errorf("git cat-file: %w", err)
			}
			var id, typ string
			var size int64
			if _, err := fmt.Sscanf(head, "%s %s %d", &id, &typ, &size); err != nil {
				return fmt.Errorf("git cat-file: %w: %.100q", err, head)
			}
			if left -= size; left < 0 {
				return fault.TooLarge("tree_bytes", "the files of a commit of %s are over %d bytes", repo, int64(maxTreeBytes))
			}
			in := io.LimitReader(br, size)
			if err := fn(o, size, in); err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, in); err != nil {
				return err
			}
			if _, err := br.Discard(1); err != nil { // a line feed
				return err
			}
		}
		return nil
	}
	err = read()
	if err != nil {
		_ = c.Process.Kill()
		_ = c.Wait()
		return err
	}
	return c.Wait()
}

// Source is a file of the lookaside cache that a commit's "sources" names.
type Source struct {
	File   string      `json:"file"`
	SHA512 string      `json:"sha512"`
	Digest blob.Digest `json:"digest"` // sha256
	Size   int64       `json:"size"`
}

// Sources reads the "sources" file of a commit and finds its files in the lookaside cache.
func (s *Store) Sources(ctx context.Context, repo, commit string) ([]Source, error) {
	return s.sources(ctx, repo, nil, commit)
}

func (s *Store) sources(ctx context.Context, repo string, env []string, commit string) ([]Source, error) {
	out := []Source{}
	text, err := s.git(ctx, s.path(repo), env, "cat-file", "blob", commit+":sources")
	if err != nil {
		return out, nil //nolint:nilerr // a package without "sources" has none
	}
	lines, err := ParseSources(text)
	if err != nil {
		return nil, err
	}
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		for _, l := range lines {
			x := Source{File: l.File, SHA512: l.Sum}
			err := tx.QueryRow("SELECT digest, size FROM distgit_source WHERE repo = $1 AND file = $2 AND sha512 = $3", repo, l.File, l.Sum).Scan(&x.Digest, &x.Size)
			if db.NoRow(err) {
				return fault.Invalid("source_missing", "sources names %s, which is not in the lookaside cache of %s", l.File, repo).
					Fix("upload it with `drover pkg new-sources %s`, then push again", l.File)
			}
			if err != nil {
				return err
			}
			out = append(out, x)
		}
		return nil
	})
	return out, err
}

// Commit is a commit for people.
type Commit struct {
	ID      string    `json:"id"`
	Author  string    `json:"author"`
	At      time.Time `json:"at"`
	Subject string    `json:"subject"`
}

// Commits lists the newest commits of a branch; an empty repository has none.
func (s *Store) Commits(ctx context.Context, repo, rev string, limit int) ([]Commit, error) {
	out := []Commit{}
	id, err := s.Resolve(ctx, repo, rev)
	if fault.Code(err) == "commit_unknown" {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	text, err := s.git(ctx, s.path(repo), nil, "log", "-z", "--format=%H%x1f%an%x1f%ct%x1f%s", "-n", strconv.Itoa(min(max(limit, 1), 500)), id)
	if err != nil {
		return nil, err
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(text), "\x00"), "\x00") {
		f := strings.SplitN(line, "\x1f", 4)
		if len(f) != 4 {
			continue
		}
		n, _ := strconv.ParseInt(f[2], 10, 64)
		out = append(out, Commit{f[0], f[1], time.Unix(n, 0).UTC(), f[3]})
	}
	return out, nil
}

// CountCommits counts the commits of a branch; an empty repository has none.
func (s *Store) CountCommits(ctx context.Context, repo, rev string) (int64, error) {
	id, err := s.Resolve(ctx, repo, rev)
	if fault.Code(err) == "commit_unknown" {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	out, err := s.git(ctx, s.path(repo), nil, "rev-list", "--count", id)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
}

// Branches lists the branches of a repository.
func (s *Store) Branches(ctx context.Context, repo string) ([]string, error) {
	out, err := s.git(ctx, s.path(repo), nil, "for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads")
	return strings.Fields(string(out)), err
}
