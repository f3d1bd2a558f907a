package network

import (
	"context"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/agent/module/command"
	"drover/internal/fault"
)

const maxGitOutput = 32 << 20

// rePlainPath are paths that git's shell takes for one word.
var rePlainPath = regexp.MustCompile(`^/[A-Za-z0-9_./@+:-]+$`)

// git is how one call runs git.
type git struct {
	h    *host
	ctx  context.Context
	c    *module.Call
	pre  []string // options before the command
	opts []string // options of the command
}

func (h *host) newGit(ctx context.Context, c *module.Call) (*git, error) {
	g := &git{h: h, ctx: ctx, c: c}
	var err error
	if g.pre, err = words(c.Str("git_opts")); err != nil {
		return nil, err
	}
	if g.opts, err = words(c.Str("opts")); err != nil {
		return nil, err
	}
	if cwd := c.Str("cwd"); cwd != "" && !strings.HasPrefix(cwd, "/") {
		return nil, fault.Invalid("bad_path", "cwd must be an absolute path, not %q", cwd)
	}
	return g, nil
}

// words splits options as a shell does, without its expansions.
func words(s string) ([]string, error) {
	var out []string
	var cur strings.Builder
	in, quote, escaped := false, rune(0), false
	for _, r := range s {
		switch {
		case escaped:
			cur.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, in = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				cur.WriteRune(r)
			}
		case r == '\'' || r == '"':
			quote, in = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if in {
				out = append(out, cur.String())
				cur.Reset()
				in = false
			}
		default:
			cur.WriteRune(r)
			in = true
		}
	}
	if quote != 0 || escaped {
		return nil, fault.Invalid("bad_options", "the options %q end within a quotation", s)
	}
	if in {
		out = append(out, cur.String())
	}
	return out, nil
}

// ref refuses what git would take for an option.
func ref(what, s string) error {
	if s == "" || strings.HasPrefix(s, "-") || strings.ContainsAny(s, "\n\x00") {
		return fault.Invalid("bad_ref", "%q cannot be the %s for git", s, what)
	}
	return nil
}

// try runs git in the directory of the call, as its user and with its identity.
func (g *git) try(args ...string) (command.Result, error) {
	argv := []string{"git", "-c", "protocol.ext.allow=never"}
	argv = append(append(argv, g.pre...), args...)
	ssh := "ssh -o BatchMode=yes"
	ids := g.c.Any("identity")
	list := listOf(ids)
	if ids != nil && list == nil {
		list = []any{ids}
	}
	for _, v := range list {
		id := module.Text(v)
		if !rePlainPath.MatchString(id) {
			return command.Result{}, fault.Invalid("bad_identity", "%q is no absolute path of a private key", id).Fix("letters, digits and ._/@+:- only; copy a key from the server to a file first")
		}
		ssh += " -o IdentitiesOnly=yes -i " + id
	}
	env := []string{"LC_ALL=C", "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=true", "GIT_PAGER=cat",
		// Before any configuration and option: an ext:: address is a command line.
		"GIT_ALLOW_PROTOCOL=file:git:http:https:ssh"}
	if len(list) > 0 || os.Getenv("GIT_SSH_COMMAND") == "" {
		env = append(env, "GIT_SSH_COMMAND="+ssh)
	}
	dir := g.c.Str("cwd")
	if dir == "" {
		dir = "/"
	}
	return g.h.run(g.ctx, command.Spec{Argv: argv, Dir: dir, User: g.c.Str("user"), Env: env, Limit: maxGitOutput})
}

// say runs git, whose failure is the function's, and gives what it said.
func (g *git) say(args ...string) (string, error) {
	r, err := g.try(args...)
	if err != nil {
		return "", err
	}
	out := strings.TrimRight(command.Text(r.Out), "\n")
	if r.Code != 0 && !g.c.Bool("ignore_retcode") {
		said := strings.TrimSpace(command.Text(r.Err) + out)
		return "", fault.Conflict("git_failed", "git %s ended with code %d: %s", args[0], r.Code, redact(module.Valid(said[:min(len(said), 4096)])))
	}
	return out, nil
}

// both is say with git's words on errors too: checkout and pull tell there what they did.
func (g *git) both(args ...string) (string, error) {
	r, err := g.try(args...)
	if err != nil {
		return "", err
	}
	out := strings.TrimSpace(command.Text(r.Out) + command.Text(r.Err))
	if r.Code != 0 && !g.c.Bool("ignore_retcode") {
		return "", fault.Conflict("git_failed", "git %s ended with code %d: %s", args[0], r.Code, redact(module.Valid(out[:min(len(out), 4096)])))
	}
	return redact(out), nil
}

var reSecret = regexp.MustCompile(`(https?://)[^/@\s]+@`)

// redact hides the name and password in addresses.
func redact(s string) string { return reSecret.ReplaceAllString(s, "${1}<redacted>@") }

// withAuth puts a name and a password into an address of https, as Salt does: git keeps them there.
func withAuth(address, user, pass string) (string, error) {
	if err := ref("address", address); err != nil {
		return "", err
	}
	if user == "" {
		return address, nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" {
		return "", fault.Invalid("bad_url", "a name and a password need an address of https")
	}
	u.User = url.UserPassword(user, pass)
	if pass == "" {
		u.User = url.User(user)
	}
	return u.String(), nil
}

// git are the functions of git.
func (h *host) git() []module.Function {
	cwd := module.Need("cwd", module.Str)
	opts := []module.Param{module.May("opts", module.Str, ""), module.May("git_opts", module.Str, "")}
	who := []module.Param{module.May("user", module.Str, nil), module.May("password", module.Str, nil)}
	identity := module.May("identity", module.Any, nil)
	tail := []module.Param{module.May("ignore_retcode", module.Bool, false), module.May("output_encoding", module.Str, nil)}
	env := module.May("saltenv", module.Str, "base")
	https := []module.Param{module.May("https_user", module.Str, nil), module.May("https_pass", module.Str, nil)}
	do := func(f func(g *git, c *module.Call) (any, error)) module.Run {
		return func(ctx context.Context, c *module.Call) (any, error) {
			g, err := h.newGit(ctx, c)
			if err != nil {
				return nil, err
			}
			return f(g, c)
		}
	}
	fn := func(name, doc, example string, read bool, f func(g *git, c *module.Call) (any, error), params ...[]module.Param) module.Function {
		m := module.Changes("git."+name, doc+"\n\nsalt '*' git."+name+" "+example, do(f), slices.Concat(params...)...)
		// With options of the caller's own it may do what it likes: git log --output=FILE writes one.
		m.Reads = read && !slices.ContainsFunc(m.Params, func(p module.Param) bool { return p.Name == "opts" || p.Name == "git_opts" })
		return m
	}
	p := func(list ...module.Param) []module.Param { return list }
	str := func(s string, err error) (any, error) {
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	return []module.Function{
		module.Reads("git.version", "Tells the version of git.\n\nsalt '*' git.version", do(func(g *git, c *module.Call) (any, error) {
			s, err := g.say("version")
			f := strings.Fields(s)
			if err != nil || len(f) < 3 {
				return nil, err
			}
			if !c.Bool("versioninfo") {
				return f[2], nil
			}
			out := []any{}
			for _, n := range strings.Split(f[2], ".") {
				out = append(out, hexNumber(n, 10))
			}
			return out, nil
		}), module.May("versioninfo", module.Bool, false)),
		fn("revision", "Tells the commit that a name stands for.", "/path/to/repo rev=HEAD short=True", true, func(g *git, c *module.Call) (any, error) {
			if err := ref("revision", c.Str("rev")); err != nil {
				return nil, err
			}
			args := []string{"rev-parse", "--verify"}
			if c.Bool("short") {
				args = append(args, "--short")
			}
			return str(g.say(append(args, c.Str("rev"))...))
		}, p(cwd, module.May("rev", module.Str, "HEAD"), module.May("short", module.Bool, false)), who, tail),
		fn("current_branch", "Tells the branch that is checked out; nothing when none is.", "/path/to/repo", true, func(g *git, _ *module.Call) (any, error) {
			s, err := g.say("rev-parse", "--abbrev-ref", "HEAD")
			if s == "HEAD" {
				s = ""
			}
			return str(s, err)
		}, p(cwd), who, tail),
		fn("branch", "Lists branches, or makes, moves and removes one by options.", "/path/to/repo mybranch", false, func(g *git, c *module.Call) (any, error) {
			args := append([]string{"branch"}, g.opts...)
			if c.Has("name") {
				if err := ref("branch", c.Str("name")); err != nil {
					return nil, err
				}
				args = append(args, c.Str("name"))
			}
			_, err := g.say(args...)
			return err == nil, err
		}, p(cwd, module.May("name", module.Str, nil)), opts, who, tail),
		fn("status", "Tells which files are new, modified, deleted or untracked.", "/path/to/repo", true, func(g *git, _ *module.Call) (any, error) {
			s, err := g.say("status", "-z", "--porcelain")
			if err != nil {
				return nil, err
			}
			return parseStatus(s), nil
		}, p(cwd), who, tail),
		fn("clone", "Clones a repository.", "/path/to/repo_parent_dir git://github.com/saltstack/salt.git", false, func(g *git, c *module.Call) (any, error) {
			address, err := withAuth(c.Str("url"), c.Str("https_user"), c.Str("https_pass"))
			if err != nil {
				return nil, err
			}
			target := c.Str("cwd")
			args := append([]string{"clone"}, g.opts...)
			args = append(args, "--", address)
			if c.Has("name") { // below cwd
				if err := ref("directory", c.Str("name")); err != nil {
					return nil, err
				}
				args = append(args, c.Str("name"))
				_, err = g.say(args...)
				return err == nil, err
			}
			if err := ref("directory", target); err != nil {
				return nil, err
			}
			h := *g
			h.c = outside(c) // the directory may not be there yet
			_, err = h.say(append(args, target)...)
			return err == nil, err
		}, p(cwd, module.Need("url", module.Str), module.May("name", module.Str, nil)), opts, who, p(identity), https, tail, p(env)),
		fn("fetch", "Fetches from a remote, and tells which references changed.", "/path/to/repo upstream", false, func(g *git, c *module.Call) (any, error) {
			before, err := g.refs()
			if err != nil {
				return nil, err
			}
			args := append([]string{"fetch"}, g.opts...)
			if c.Bool("force") {
				args = append(args, "--force")
			}
			if c.Has("remote") {
				if err := ref("remote", c.Str("remote")); err != nil {
					return nil, err
				}
				args = append(args, c.Str("remote"))
			}
			for _, r := range c.Strs("refspecs") {
				if err := ref("refspec", r); err != nil {
					return nil, err
				}
				args = append(args, r)
			}
			if _, err := g.both(args...); err != nil {
				return nil, err
			}
			after, err := g.refs()
			return changedRefs(before, after), err
		}, p(cwd, module.May("remote", module.Str, nil), module.May("force", module.Bool, false), module.May("refspecs", module.List, nil)), opts, who, p(identity), tail, p(env)),
		fn("pull", "Fetches and merges.", "/path/to/repo opts='--rebase origin master'", false, func(g *git, _ *module.Call) (any, error) {
			return str(g.both(append([]string{"pull"}, g.opts...)...))
		}, p(cwd), opts, who, p(identity), tail, p(env)),
		fn("push", "Pushes to a remote.", "/path/to/repo origin master", false, func(g *git, c *module.Call) (any, error) {
			args := append([]string{"push"}, g.opts...)
			for _, a := range []string{"remote", "ref"} {
				if c.Has(a) {
					if err := ref(a, c.Str(a)); err != nil {
						return nil, err
					}
					args = append(args, c.Str(a))
				}
			}
			return str(g.both(args...))
		}, p(cwd, module.May("remote", module.Str, nil), module.May("ref", module.Str, nil)), opts, who, p(identity), tail, p(env)),
		fn("checkout", "Checks a revision out.", "/path/to/repo somebranch", false, func(g *git, c *module.Call) (any, error) {
			args := append([]string{"checkout"}, g.opts...)
			if c.Bool("force") {
				args = append(args, "--force")
			}
			if c.Has("rev") {
				if err := ref("revision", c.Str("rev")); err != nil {
					return nil, err
				}
				args = append(args, c.Str("rev"))
			}
			return str(g.both(args...))
		}, p(cwd, module.May("rev", module.Str, nil), module.May("force", module.Bool, false)), opts, who, tail),
		fn("init", "Makes a repository.", "/path/to/repo bare=True", false, func(g *git, c *module.Call) (any, error) {
			args := append([]string{"init"}, g.opts...)
			if c.Bool("bare") {
				args = append(args, "--bare")
			}
			if c.Has("template") {
				args = append(args, "--template="+c.Str("template"))
			}
			if c.Has("separate_git_dir") {
				args = append(args, "--separate-git-dir="+c.Str("separate_git_dir"))
			}
			if c.Has("shared") {
				args = append(args, "--shared="+module.Plain(c.Any("shared")))
			}
			h := *g
			h.c = outside(c)
			return str(h.say(append(args, "--", c.Str("cwd"))...))
		}, p(cwd, module.May("bare", module.Bool, false), module.May("template", module.Str, nil), module.May("separate_git_dir", module.Str, nil), module.May("shared", module.Any, nil)), opts, who, tail),
		fn("add", "Puts a file into the index.", "/path/to/repo foo/bar.py", false, func(g *git, c *module.Call) (any, error) {
			args := append(append([]string{"add", "--verbose"}, g.opts...), "--")
			return str(g.say(append(args, c.Strs("filename")...)...))
		}, p(cwd, module.Need("filename", module.List)), opts, who, tail),
		fn("commit", "Commits what is in the index.", "/path/to/repo 'The commit message'", false, func(g *git, c *module.Call) (any, error) {
			args := append(append([]string{"commit", "-m", c.Str("message")}, g.opts...), "--")
			return str(g.say(append(args, c.Strs("filename")...)...))
		}, p(cwd, module.Need("message", module.Str)), opts, who, p(module.May("filename", module.List, nil)), tail),
		fn("reset", "Resets the branch, by options.", "/path/to/repo opts='--hard origin/main'", false, func(g *git, _ *module.Call) (any, error) {
			return str(g.say(append([]string{"reset"}, g.opts...)...))
		}, p(cwd), opts, who, tail),
		fn("merge", "Merges a revision.", "/path/to/repo upstream/foo", false, func(g *git, c *module.Call) (any, error) {
			args := append([]string{"merge"}, g.opts...)
			if c.Has("rev") {
				if err := ref("revision", c.Str("rev")); err != nil {
					return nil, err
				}
				args = append(args, c.Str("rev"))
			}
			return str(g.both(args...))
		}, p(cwd, module.May("rev", module.Str, nil)), opts, who, tail),
		fn("tag", "Makes a tag.", "/path/to/repo v1.2", false, func(g *git, c *module.Call) (any, error) {
			if err := ref("tag", c.Str("name")); err != nil {
				return nil, err
			}
			if err := ref("revision", c.Str("ref")); err != nil {
				return nil, err
			}
			args := append([]string{"tag"}, g.opts...)
			if c.Has("message") {
				args = append(args, "-m", c.Str("message"))
			}
			return str(g.say(append(args, c.Str("name"), c.Str("ref"))...))
		}, p(cwd, module.Need("name", module.Str), module.May("ref", module.Str, "HEAD"), module.May("message", module.Str, nil)), opts, who, tail),
		fn("rev_parse", "Runs git rev-parse.", "/path/to/repo HEAD", true, func(g *git, c *module.Call) (any, error) {
			args := append([]string{"rev-parse"}, g.opts...)
			if c.Has("rev") {
				if err := ref("revision", c.Str("rev")); err != nil {
					return nil, err
				}
				args = append(args, c.Str("rev"))
			}
			return str(g.say(args...))
		}, p(cwd, module.May("rev", module.Str, nil)), opts, who, tail),
		fn("describe", "Tells the newest tag before a revision, and how far it is.", "/path/to/repo v1.2", true, func(g *git, c *module.Call) (any, error) {
			if err := ref("revision", c.Str("rev")); err != nil {
				return nil, err
			}
			r, err := g.try("describe", c.Str("rev"))
			if err == nil && r.Code != 0 { // no tag: the short commit
				return str(g.say("describe", "--always", c.Str("rev")))
			}
			return str(strings.TrimSpace(command.Text(r.Out)), err)
		}, p(cwd, module.May("rev", module.Str, "HEAD")), who, tail),
		fn("merge_base", "Tells the best common ancestor of revisions.", "/path/to/repo HEAD,upstream/main", true, func(g *git, c *module.Call) (any, error) {
			args := append([]string{"merge-base"}, g.opts...)
			for _, o := range []string{"octopus", "is_ancestor", "independent"} {
				if c.Bool(o) {
					args = append(args, "--"+strings.ReplaceAll(o, "_", "-"))
				}
			}
			for _, r := range c.Strs("refs") {
				if err := ref("revision", r); err != nil {
					return nil, err
				}
				args = append(args, r)
			}
			r, err := g.try(args...)
			if err != nil {
				return nil, err
			}
			if c.Bool("is_ancestor") && r.Code < 2 {
				return r.Code == 0, nil
			}
			if r.Code != 0 {
				return nil, fault.Conflict("git_failed", "git merge-base ended with code %d: %s", r.Code, module.Valid(strings.TrimSpace(command.Text(r.Err))))
			}
			return module.Lines(command.Text(r.Out)), nil
		}, p(cwd, module.May("refs", module.List, nil), module.May("octopus", module.Bool, false), module.May("is_ancestor", module.Bool, false), module.May("independent", module.Bool, false)), opts, who, tail),
		fn("is_worktree", "Tells whether a directory is a worktree of another repository.", "/path/to/repo", true, func(g *git, _ *module.Call) (any, error) {
			dir, err := g.say("rev-parse", "--git-dir")
			if err != nil {
				return false, nil //nolint:nilerr // a directory without git is none
			}
			common, err := g.say("rev-parse", "--git-common-dir")
			return dir != common && err == nil, err
		}, p(cwd), who, tail),
		fn("list_branches", "Lists the branches, or those of remotes.", "/path/to/repo remote=True", true, func(g *git, c *module.Call) (any, error) {
			space := "refs/heads/"
			if c.Bool("remote") {
				space = "refs/remotes/"
			}
			s, err := g.say("for-each-ref", "--format", "%(refname:short)", space)
			return lines(s), err
		}, p(cwd, module.May("remote", module.Bool, false)), who, tail),
		fn("list_tags", "Lists the tags.", "/path/to/repo", true, func(g *git, _ *module.Call) (any, error) {
			s, err := g.say("for-each-ref", "--format", "%(refname:short)", "refs/tags/")
			return lines(s), err
		}, p(cwd), who, tail),
		fn("log", "Lists commits, newest first, by options.", "/path/to/repo opts='-n 5'", true, func(g *git, _ *module.Call) (any, error) {
			s, err := g.say(append([]string{"log", "--format=%H%x00%an%x00%ae%x00%aI%x00%s"}, g.opts...)...)
			out := []any{}
			for _, l := range module.Lines(s) {
				if f := strings.Split(l, "\x00"); len(f) == 5 {
					out = append(out, map[string]any{"commit": f[0], "author": f[1], "email": f[2], "date": f[3], "subject": f[4]})
				}
			}
			return out, err
		}, p(cwd), opts, who, tail),
		fn("remotes", "Lists the remotes and where they are.", "/path/to/repo", true, func(g *git, c *module.Call) (any, error) {
			return g.remotes(c.Bool("redact_auth"))
		}, p(cwd), who, p(module.May("redact_auth", module.Bool, true)), tail),
		fn("remote_get", "Tells where a remote is.", "/path/to/repo upstream", true, func(g *git, c *module.Call) (any, error) {
			all, err := g.remotes(c.Bool("redact_auth"))
			if err != nil {
				return nil, err
			}
			if r, ok := all[c.Str("remote")]; ok {
				return r, nil
			}
			return nil, fault.NotFound("remote_missing", "there is no remote %q in %s", c.Str("remote"), c.Str("cwd"))
		}, p(cwd, module.May("remote", module.Str, "origin")), who, p(module.May("redact_auth", module.Bool, true)), tail),
		fn("remote_set", "Sets where a remote is.", "/path/to/repo git@github.com:saltstack/salt.git remote=upstream", false, func(g *git, c *module.Call) (any, error) {
			name := c.Str("remote")
			if err := ref("remote", name); err != nil {
				return nil, err
			}
			address, err := withAuth(c.Str("url"), c.Str("https_user"), c.Str("https_pass"))
			if err != nil {
				return nil, err
			}
			all, err := g.remotes(false)
			if err != nil {
				return nil, err
			}
			verb := []string{"remote", "add", name}
			if _, ok := all[name]; ok {
				verb = []string{"remote", "set-url", name}
			}
			if _, err := g.say(append(verb, address)...); err != nil {
				return nil, err
			}
			if c.Has("push_url") {
				push, err := withAuth(c.Str("push_url"), c.Str("push_https_user"), c.Str("push_https_pass"))
				if err != nil {
					return nil, err
				}
				if _, err := g.say("remote", "set-url", "--push", name, push); err != nil {
					return nil, err
				}
			}
			all, err = g.remotes(true)
			return all[name], err
		}, p(cwd, module.Need("url", module.Str), module.May("remote", module.Str, "origin")), who, https,
			p(module.May("push_url", module.Str, nil), module.May("push_https_user", module.Str, nil), module.May("push_https_pass", module.Str, nil)), tail),
		fn("ls_remote", "Lists the references of a remote.", "/path/to/repo origin main", true, func(g *git, c *module.Call) (any, error) {
			address, err := withAuth(c.Str("remote"), c.Str("https_user"), c.Str("https_pass"))
			if err != nil {
				return nil, err
			}
			args := append(append([]string{"ls-remote"}, g.opts...), "--", address)
			if c.Has("ref") {
				args = append(args, c.Str("ref"))
			}
			s, err := g.say(args...)
			return refMap(s, "\t"), err
		}, p(module.May("cwd", module.Str, nil), module.May("remote", module.Str, "origin"), module.May("ref", module.Str, nil)), opts, who, p(identity), https, tail, p(env)),
		fn("config_get", "Tells a setting of git, or nothing.", "user.name cwd=/path/to/repo", true, func(g *git, c *module.Call) (any, error) {
			args, err := configArgs(c)
			if err != nil {
				return nil, err
			}
			verb := "--get"
			if c.Bool("all") {
				verb = "--get-all"
			}
			r, err := g.try(append(args, verb, c.Str("key"))...)
			out := strings.TrimRight(command.Text(r.Out), "\n")
			switch {
			case err != nil:
				return nil, err
			case r.Code == 1 && c.Has("default"):
				return c.Str("default"), nil
			case r.Code == 1:
				return nil, nil
			case r.Code != 0:
				return nil, fault.Conflict("git_failed", "git config ended with code %d: %s", r.Code, strings.TrimSpace(command.Text(r.Err)))
			case c.Bool("all"):
				return lines(out), nil
			}
			return out, nil
		}, p(module.Need("key", module.Str), module.May("cwd", module.Str, nil)), who, tail, p(module.May("global", module.Bool, false), module.May("all", module.Bool, false), module.May("default", module.Str, nil))),
		fn("config_set", "Sets a setting of git.", "user.email me@example.com cwd=/path/to/repo", false, func(g *git, c *module.Call) (any, error) {
			args, err := configArgs(c)
			if err != nil {
				return nil, err
			}
			if (c.Has("value") || c.Bool("add")) == c.Has("multivar") {
				return nil, fault.Invalid("argument", "git.config_set: give either value or multivar")
			}
			values := c.Strs("multivar")
			if c.Has("value") {
				values = []string{module.Plain(c.Any("value"))}
			}
			for i, v := range values {
				verb := "--replace-all"
				if i > 0 || c.Bool("add") {
					verb = "--add"
				}
				if _, err := g.say(append(slices.Clone(args), verb, "--", c.Str("key"), v)...); err != nil {
					return nil, err
				}
			}
			s, err := g.say(append(args, "--get-all", "--", c.Str("key"))...)
			return lines(s), err
		}, p(module.Need("key", module.Str), module.May("value", module.Any, nil), module.May("multivar", module.List, nil), module.May("cwd", module.Str, nil)), who, tail, p(module.May("global", module.Bool, false), module.May("add", module.Bool, false))),
		fn("config_unset", "Takes a setting of git away.", "user.email cwd=/path/to/repo", false, func(g *git, c *module.Call) (any, error) {
			args, err := configArgs(c)
			if err != nil {
				return nil, err
			}
			verb := "--unset"
			if c.Bool("all") {
				verb = "--unset-all"
			}
			args = append(args, verb, "--", c.Str("key"))
			if c.Has("value_regex") {
				args = append(args, c.Str("value_regex"))
			}
			_, err = g.say(args...)
			return err == nil, err
		}, p(module.Need("key", module.Str), module.May("value_regex", module.Str, nil), module.May("cwd", module.Str, nil)), who, tail, p(module.May("global", module.Bool, false), module.May("all", module.Bool, false))),
	}
}

func lines(s string) []string {
	if l := module.Lines(s); l != nil {
		return l
	}
	return []string{}
}

// outside is a call that runs elsewhere than in its directory, which may not be there yet.
func outside(c *module.Call) *module.Call {
	named := map[string]any{}
	var params []module.Param
	for _, n := range []string{"user", "identity", "ignore_retcode"} {
		params = append(params, module.May(n, module.Any, nil))
		if c.Has(n) {
			named[n] = c.Any(n)
		}
	}
	out, err := module.Bind(c.Host, module.Function{Name: "git", Params: params}, nil, named, c.Test)
	if err != nil { // the arguments were bound before
		return c
	}
	return out
}

func configArgs(c *module.Call) ([]string, error) {
	if err := ref("key", c.Str("key")); err != nil {
		return nil, err
	}
	if c.Bool("global") {
		return []string{"config", "--global"}, nil
	}
	if c.Str("cwd") == "" {
		return nil, fault.Invalid("argument", "a setting is of a repository, cwd, or global=True")
	}
	return []string{"config", "--local"}, nil
}

// parseStatus reads what `git status -z --porcelain` tells.
func parseStatus(s string) map[string]any {
	out := map[string]any{}
	add := func(key, name string) {
		l, _ := out[key].([]string)
		out[key] = append(l, module.Valid(name))
	}
	fields := strings.Split(s, "\x00")
	for i := 0; i < len(fields); i++ {
		f := fields[i]
		if len(f) < 4 {
			continue
		}
		state, name := f[:2], f[3:]
		if state[0] == 'R' || state[0] == 'C' {
			i++ // the old name follows
		}
		switch {
		case state == "??":
			add("untracked", name)
		case strings.ContainsRune(state, 'A'), strings.ContainsRune(state, 'R'), strings.ContainsRune(state, 'C'):
			add("new", name)
		case strings.ContainsRune(state, 'D'):
			add("deleted", name)
		default:
			add("modified", name)
		}
	}
	return out
}

// refMap are commits by reference.
func refMap(s, sep string) map[string]any {
	out := map[string]any{}
	for _, l := range module.Lines(s) {
		if sha, name, ok := strings.Cut(l, sep); ok {
			out[name] = sha
		}
	}
	return out
}

func (g *git) refs() (map[string]any, error) {
	s, err := g.say("for-each-ref", "--format", "%(objectname) %(refname)")
	return refMap(s, " "), err
}

// changedRefs is Salt's shape of what a fetch did.
func changedRefs(before, after map[string]any) map[string]any {
	out := map[string]any{}
	put := func(name string, v any) {
		key := "branches"
		switch {
		case strings.HasPrefix(name, "refs/tags/"):
			key = "tags"
		case strings.HasPrefix(name, "refs/remotes/") && strings.HasSuffix(name, "/HEAD"): // only another name
			return
		case !strings.HasPrefix(name, "refs/remotes/") && !strings.HasPrefix(name, "refs/heads/"):
			return
		}
		m, _ := out[key].(map[string]any)
		if m == nil {
			m = map[string]any{}
			out[key] = m
		}
		short := strings.SplitN(name, "/", 3)
		m[short[2]] = v
	}
	for name, sha := range after {
		if old, ok := before[name]; !ok || old != sha {
			put(name, map[string]any{"old": old, "new": sha})
		}
	}
	for name, old := range before {
		if _, ok := after[name]; !ok {
			put(name, map[string]any{"old": old, "new": nil})
		}
	}
	return out
}

func (g *git) remotes(hide bool) (map[string]any, error) {
	s, err := g.say("remote", "--verbose", "show")
	out := map[string]any{}
	for _, l := range module.Lines(s) {
		name, rest, ok := strings.Cut(l, "\t")
		i := strings.LastIndex(rest, " (")
		if !ok || i < 0 {
			continue
		}
		address := rest[:i]
		if hide {
			address = redact(address)
		}
		m, _ := out[name].(map[string]any)
		if m == nil {
			m = map[string]any{}
			out[name] = m
		}
		m[strings.Trim(rest[i:], " ()")] = address
	}
	return out, err
}
