package distgit

import (
	"bufio"
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"drover/internal/cli"
	"drover/internal/durable"
	"drover/internal/fault"
)

// Verbs is `drover pkg`, but for `build`.
type Verbs struct {
	Create     create     `cmd:"" help:"Make a repository." example:"drover pkg create hello --note 'greets people'"`
	List       list       `cmd:"" help:"List repositories." example:"drover pkg list kernel"`
	Show       show       `cmd:"" help:"A repository with its branches, rules and pushes." example:"drover pkg show hello"`
	Rule       rule       `cmd:"" help:"Set the rule of a pattern of branches." example:"drover pkg rule hello 'stream-*' --only alice --only bob"`
	Clone      clone      `cmd:"" help:"Clone a repository; git uses your drover token." example:"drover pkg clone hello"`
	NewSources newSources `cmd:"" help:"Upload source files and write the sources file." example:"drover pkg new-sources hello-1.0.tar.gz"`
	Sources    sources    `cmd:"" help:"Download the files that the sources file names." example:"drover pkg sources"`
	SRPM       srpm       `cmd:"" name:"srpm" help:"Make a source RPM of the checkout." example:"drover pkg srpm --define dist=.el10"`
	Credential credential `cmd:"" hidden:"" help:"Git's credential helper." example:"drover pkg credential get"`
}

func full(name string) string {
	if !strings.Contains(name, "/") {
		return "rpms/" + name
	}
	return name
}

type create struct {
	Name   string `arg:"" help:"Repository: rpms/hello, or hello."`
	Branch string `default:"main" help:"Default branch; it is protected."`
	Note   string `help:"A remark."`
}

// Run makes a repository.
func (c create) Run(e *cli.Env) error {
	var r Repo
	if err := e.Client.Call(e.Ctx, "POST", "/api/v1/repos", map[string]string{"name": full(c.Name), "branch": c.Branch, "note": c.Note}, &r); err != nil {
		return err
	}
	return e.Show(r, func(w io.Writer) { fmt.Fprintf(w, "%s/git/%s\n", e.Client.Base, r.Name) })
}

type list struct {
	Query string `arg:"" optional:"" help:"Part of the name."`
}

// Run lists repositories.
func (c list) Run(e *cli.Env) error {
	var rs []Repo
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/repos?limit=1000&q="+url.QueryEscape(c.Query), nil, &rs); err != nil {
		return err
	}
	return e.Show(rs, func(w io.Writer) {
		cli.Table(w, "REPOSITORY BRANCH NOTE", func(row func(...any)) {
			for _, r := range rs {
				row(r.Name, r.Branch, r.Note)
			}
		})
	})
}

type show struct {
	Name string `arg:"" help:"Repository."`
}

// Run shows a repository.
func (c show) Run(e *cli.Env) error {
	var d Detail
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/repos/"+full(c.Name), nil, &d); err != nil {
		return err
	}
	return e.Show(d, func(w io.Writer) {
		fmt.Fprintf(w, "%s  default branch %s  branches %s\n", d.Name, d.Branch, strings.Join(d.Branches, " "))
		for _, r := range d.Rules {
			fmt.Fprintf(w, "rule %s  protected %v  only %s\n", r.Pattern, r.Protected, strings.Join(r.Who, ","))
		}
		for _, p := range d.Pushes {
			fmt.Fprintf(w, "event %d  %s  %s  %.12s..%.12s\n", p.Event, p.Actor, p.Ref, p.Old, p.New)
		}
	})
}

type rule struct {
	Name      string   `arg:"" help:"Repository."`
	Pattern   string   `arg:"" help:"Pattern of branches: main, stream-*."`
	Only      []string `help:"A person who may push; without any, all packagers may. Repeatable."`
	Protected bool     `default:"true" negatable:"" help:"Refuse force-pushes and removal."`
}

// Run sets a rule.
func (c rule) Run(e *cli.Env) error {
	if c.Only == nil {
		c.Only = []string{}
	}
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/repos/"+full(c.Name)+"/rules", Rule{Pattern: c.Pattern, Who: c.Only, Protected: c.Protected}, nil)
}

type clone struct {
	Name string `arg:"" help:"Repository: hello, rpms/hello."`
	Dir  string `arg:"" optional:"" help:"Where; a directory of the package's name when not given."`
}

// Run clones a repository with git.
func (c clone) Run(e *cli.Env) error {
	if err := CheckName(full(c.Name)); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if c.Dir == "" {
		c.Dir = filepath.Base(c.Name)
	}
	key := "credential." + e.Client.Base + ".helper"
	// The helper asks drover for the token when git needs it: it stands in no file of the clone.
	args := []string{"clone", "-c", key + "=", "-c", key + "=!" + cli.Quote(self) + " pkg credential", "-c", "http." + e.Client.Base + ".proactiveAuth=basic", "--", e.Client.Base + "/git/" + full(c.Name), c.Dir}
	if ca := os.Getenv("DROVER_CA"); ca != "" {
		args = slices.Insert(args, 1, "-c", "http."+e.Client.Base+".sslCAInfo="+ca)
	}
	return run(e, "", "git", args...)
}

func run(e *cli.Env, dir, name string, args ...string) error {
	c := exec.CommandContext(e.Ctx, name, args...)
	c.Dir, c.Stdin, c.Stdout, c.Stderr = dir, e.In, e.Out, e.Err
	if err := c.Run(); err != nil {
		return fault.Invalid("command", "%s failed", name).Wrap(err)
	}
	return nil
}

type credential struct {
	Op string `arg:"" help:"get, store or erase."`
}

// Run answers git's question for a password (gitcredentials). It answers for the server that
// the token is of, and for no other.
func (c credential) Run(e *cli.Env) error {
	if c.Op != "get" {
		return nil
	}
	in := map[string]string{}
	sc := bufio.NewScanner(io.LimitReader(e.In, 64<<10))
	for sc.Scan() && sc.Text() != "" {
		k, v, _ := strings.Cut(sc.Text(), "=")
		in[k] = v
	}
	u, err := url.Parse(e.Client.Base)
	if err != nil || in["protocol"] != u.Scheme || in["host"] != u.Host || e.Client.Token == "" {
		return nil //nolint:nilerr // another server: no answer is the answer
	}
	fmt.Fprintf(e.Out, "username=drover\npassword=%s\n", e.Client.Token)
	return nil
}

// here finds the repository that the working directory is a checkout of.
func here(e *cli.Env) (repo, dir string, err error) {
	out, err := exec.CommandContext(e.Ctx, "git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return "", "", fault.Invalid("checkout", "this is no git checkout").Fix("run it in a clone made by `drover pkg clone`")
	}
	dir = strings.TrimSpace(string(out))
	out, err = exec.CommandContext(e.Ctx, "git", "-C", dir, "remote", "get-url", "origin").Output()
	if err != nil {
		return "", "", fault.Invalid("checkout", "%s has no remote named origin", dir)
	}
	_, repo, ok := strings.Cut(strings.TrimSpace(string(out)), "/git/")
	repo = strings.TrimSuffix(repo, ".git")
	if !ok || CheckName(repo) != nil {
		return "", "", fault.Invalid("checkout", "%s is no clone of a drover repository", dir).Fix("make one with `drover pkg clone`")
	}
	return repo, dir, nil
}

type newSources struct {
	Files []string `arg:"" type:"existingfile" help:"Files to upload; they become the sources of the package."`
	Keep  bool     `help:"Keep the other lines of the sources file."`
}

// Run uploads sources.
func (c newSources) Run(e *cli.Env) error {
	repo, dir, err := here(e)
	if err != nil {
		return err
	}
	var lines []SourceLine
	if c.Keep {
		if lines, err = readSources(dir); err != nil {
			return err
		}
	}
	var ignore bytes.Buffer
	for _, f := range c.Files {
		l, err := uploadSource(e, repo, f)
		if err != nil {
			return err
		}
		lines = slices.DeleteFunc(lines, func(x SourceLine) bool { return x.File == l.File })
		lines = append(lines, l)
	}
	have, err := os.ReadFile(filepath.Join(dir, ".gitignore"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ignore.Write(have)
	for _, l := range lines {
		if !slices.Contains(strings.Split(string(have), "\n"), "/"+l.File) {
			fmt.Fprintf(&ignore, "/%s\n", l.File)
		}
	}
	if err := durable.WriteFile(filepath.Join(dir, ".gitignore"), ignore.Bytes(), 0o644); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(dir, "sources"), FormatSources(lines), 0o644); err != nil {
		return err
	}
	return run(e, dir, "git", "add", "sources", ".gitignore")
}

func readSources(dir string) ([]SourceLine, error) {
	b, err := os.ReadFile(filepath.Join(dir, "sources"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return ParseSources(b)
}

// piece is how much of a source one request carries: what is lost when it is cut.
const piece = 64 << 20

func uploadSource(e *cli.Env, repo, file string) (l SourceLine, err error) {
	f, err := os.Open(file)
	if err != nil {
		return l, fault.Invalid("file", "the source cannot be read").Wrap(err)
	}
	defer f.Close()
	h := sha512.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return l, err
	}
	l = SourceLine{filepath.Base(file), hex.EncodeToString(h.Sum(nil))}
	if err := checkFile(l.File); err != nil {
		return l, err
	}
	for have := int64(0); ; {
		n := min(piece, size-have)
		q := url.Values{"sha512": {l.Sum}, "size": {strconv.FormatInt(size, 10)}, "offset": {strconv.FormatInt(have, 10)}}
		resp, err := e.Client.Do(e.Ctx, "PUT", "/api/v1/lookaside/"+repo+"/"+url.PathEscape(l.File)+"?"+q.Encode(), nil, io.NewSectionReader(f, have, n))
		if err != nil {
			return l, err
		}
		var out struct{ Have int64 }
		err = json.NewDecoder(resp.Body).Decode(&out)
		_ = resp.Body.Close()
		if err != nil || out.Have > size {
			return l, fault.Unavailable("answer_cut", "the server's answer is not whole").Wrap(err)
		}
		if have = out.Have; have == size {
			e.Say("%s: %d bytes in the lookaside cache of %s", l.File, size, repo)
			return l, nil
		}
		e.Say("%s: %d of %d bytes", l.File, have, size)
	}
}

type sources struct{}

// Run downloads sources.
func (sources) Run(e *cli.Env) error {
	repo, dir, err := here(e)
	if err != nil {
		return err
	}
	lines, err := readSources(dir)
	if err != nil {
		return err
	}
	for _, l := range lines {
		if err := fetchSource(e, repo, dir, l); err != nil {
			return err
		}
	}
	return nil
}

func fetchSource(e *cli.Env, repo, dir string, l SourceLine) error {
	path := filepath.Join(dir, l.File)
	if f, err := os.Open(path); err == nil {
		h := sha512.New()
		_, err := io.Copy(h, f)
		_ = f.Close()
		if err == nil && hex.EncodeToString(h.Sum(nil)) == l.Sum {
			return nil
		}
	}
	resp, err := e.Client.Do(e.Ctx, "GET", "/repo/pkgs/"+repo+"/"+url.PathEscape(l.File)+"/sha512/"+l.Sum+"/"+url.PathEscape(l.File), nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	e.Say("%s", l.File)
	return durable.Replace(path, 0o644, func(w io.Writer) error {
		h := sha512.New()
		if _, err := io.Copy(io.MultiWriter(w, h), resp.Body); err != nil {
			return fault.Unavailable("answer_cut", "the download of %s was cut", l.File).Wrap(err).Fix("repeat the command")
		}
		if hex.EncodeToString(h.Sum(nil)) != l.Sum {
			return fault.Invalid("source_sum", "%s arrived with another sha512 than sources names", l.File).Fix("repeat the command; if it stays, the sources file is wrong")
		}
		return nil
	})
}

type srpm struct {
	Define map[string]string `help:"An rpm macro: dist=.el10. Repeatable."`
}

// Run makes a source RPM with the system's rpmbuild.
func (c srpm) Run(e *cli.Env) error {
	if err := (sources{}).Run(e); err != nil {
		return err
	}
	_, dir, err := here(e)
	if err != nil {
		return err
	}
	specs, err := filepath.Glob(filepath.Join(dir, "*.spec"))
	if err != nil || len(specs) != 1 {
		return fault.Invalid("spec_count", "%s holds %d spec files", dir, len(specs)).Fix("a package has one spec file")
	}
	args := []string{"-bs"}
	for _, d := range []string{"_sourcedir", "_specdir", "_builddir", "_srcrpmdir", "_rpmdir"} {
		args = append(args, "--define", d+" "+dir)
	}
	for k, v := range c.Define {
		args = append(args, "--define", k+" "+v)
	}
	return run(e, dir, "rpmbuild", append(args, specs[0])...)
}
