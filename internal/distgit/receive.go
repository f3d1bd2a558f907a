package distgit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"drover/internal/auth"
	"drover/internal/db"
	"drover/internal/durable"
	"drover/internal/event"
	"drover/internal/fault"

	"golang.org/x/sys/unix"
)

// update is one command of a push: a ref that shall move.
type update struct {
	old, new, ref string
	refused       string // why not; "" when it may
}

func zero(id string) bool { return strings.Trim(id, "0") == "" }

const (
	maxUpdates = 1000
	maxSpec    = 4 << 20
	maxDrain   = 2 << 30
)

// What git may take to unpack a push: small packs can hold objects that are huge once they are
// unpacked. Big blobs are streamed, and packs of the repository are looked at in windows.
const (
	indexMemory  = 2 << 30 // bytes of address space
	indexSeconds = 600     // of CPU time
)

// pktRead reads one pkt-line (gitprotocol-common): nil is a flush.
func pktRead(r io.Reader) ([]byte, error) {
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(string(h[:]), 16, 16)
	if err != nil || n > 0 && n < 4 {
		return nil, fault.Invalid("git_protocol", "%q is no pkt-line", h[:])
	}
	if n == 0 {
		return nil, nil
	}
	b := make([]byte, n-4)
	_, err = io.ReadFull(r, b)
	return b, err
}

func pkt(w io.Writer, s string) { fmt.Fprintf(w, "%04x%s", len(s)+4, s) }

// advertise writes the refs of a repository as git-receive-pack does (gitprotocol-pack).
func (s *Store) advertise(ctx context.Context, repo string, w io.Writer) error {
	out, err := s.git(ctx, s.path(repo), nil, "for-each-ref", "--format=%(objectname) %(refname)")
	if err != nil {
		return err
	}
	caps := "\x00report-status delete-refs side-band-64k ofs-delta atomic agent=drover"
	pkt(w, "# service=git-receive-pack\n")
	_, _ = io.WriteString(w, "0000")
	if len(bytes.TrimSpace(out)) == 0 {
		pkt(w, strings.Repeat("0", 40)+" capabilities^{}"+caps+"\n")
	}
	for line := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n") {
		if line != "" {
			pkt(w, line+caps+"\n")
			caps = ""
		}
	}
	_, err = io.WriteString(w, "0000")
	return err
}

// receive takes a push: commands and a pack from r, the report to w.
//
// Order: the pack goes into a quarantine that git reads beside the repository; the rules are
// asked; the pack moves into the repository, where no ref names its objects yet; the
// database takes the event and the rows; git moves the refs; the rows are marked. Killed
// before the database, nothing has happened; killed after it, settle goes on. A push that
// was acknowledged is in the ledger, and what is in the ledger happens.
func (s *Store) receive(ctx context.Context, repo string, r io.Reader, w io.Writer) error {
	if err := auth.Need(ctx, "pkg.push", repo); err != nil {
		return err
	}
	br := bufio.NewReaderSize(io.LimitReader(r, s.MaxPush+1<<20), 64<<10)
	us, caps, err := readUpdates(br)
	if err != nil || len(us) == 0 {
		return err
	}
	band := &sideband{w: w}
	if !strings.Contains(caps, "side-band-64k") {
		band.plain = true
	}
	unpack := s.take(ctx, repo, us, strings.Contains(caps, "atomic"), br)
	if unpack != nil {
		// A client that is still sending hears nothing: let it finish, within reason.
		_, _ = io.CopyN(io.Discard, r, maxDrain)
	}
	var report bytes.Buffer
	if unpack == nil {
		pkt(&report, "unpack ok\n")
	} else {
		msg := oneLine(fault.As(unpack).Error())
		pkt(&report, "unpack "+msg+"\n")
		band.say(2, "drover: "+msg+"\n")
		for i := range us {
			us[i].refused = "push refused"
		}
		if fault.As(unpack).Kind == fault.KindInternal {
			s.Log.Error("push", "repo", repo, "err", unpack)
		}
	}
	for _, u := range us {
		if u.refused == "" {
			pkt(&report, "ok "+u.ref+"\n")
			continue
		}
		pkt(&report, "ng "+u.ref+" "+oneLine(u.refused)+"\n")
		if unpack == nil {
			band.say(2, "drover: "+u.ref+": "+oneLine(u.refused)+"\n")
		}
	}
	_, _ = report.WriteString("0000")
	band.say(1, report.String())
	if !band.plain {
		_, err = io.WriteString(w, "0000")
	}
	return err
}

func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	return s[:min(len(s), 900)]
}

type sideband struct {
	w     io.Writer
	plain bool
}

func (b *sideband) say(band byte, s string) {
	if b.plain {
		if band == 1 {
			_, _ = io.WriteString(b.w, s)
		}
		return
	}
	for len(s) > 0 {
		n := min(len(s), 65000)
		pkt(b.w, string(band)+s[:n])
		s = s[n:]
	}
}

func readUpdates(r io.Reader) (us []update, caps string, err error) {
	for {
		line, err := pktRead(r)
		if err != nil {
			return nil, "", fault.Invalid("git_protocol", "the push was cut in its commands").Wrap(err)
		}
		if line == nil {
			return us, caps, nil
		}
		text, c, ok := strings.Cut(strings.TrimSuffix(string(line), "\n"), "\x00")
		if ok {
			caps = c
		}
		f := strings.SplitN(text, " ", 3)
		if len(f) != 3 || !reObject.MatchString(f[0]) || !reObject.MatchString(f[1]) {
			return nil, "", fault.Invalid("git_protocol", "%.100q is no command of a push", text)
		}
		if us = append(us, update{old: f[0], new: f[1], ref: f[2]}); len(us) > maxUpdates {
			return nil, "", fault.TooLarge("push_refs", "a push moves at most %d refs", maxUpdates)
		}
	}
}

// take does the work of receive. The error it returns is for the whole push; what holds for
// one ref only is in its update.
func (s *Store) take(ctx context.Context, repo string, us []update, atomic bool, r io.Reader) error {
	quarantine, err := os.MkdirTemp(s.path(repo), "incoming-")
	if err != nil {
		return durable.Full(s.path(repo), err)
	}
	defer os.RemoveAll(quarantine)
	env := []string{"GIT_OBJECT_DIRECTORY=" + quarantine, "GIT_ALTERNATE_OBJECT_DIRECTORIES=" + filepath.Join(s.path(repo), "objects")}
	if slices.ContainsFunc(us, func(u update) bool { return !zero(u.new) }) {
		if err := s.index(ctx, repo, quarantine, env, r); err != nil {
			return err
		}
	}
	defer s.lock(repo)()
	var rs []Rule
	if err := s.DB.Read(ctx, func(tx *db.Tx) (err error) { rs, err = rules(tx, repo); return err }); err != nil {
		return err
	}
	refs := map[string]bool{}
	for i := range us {
		if refs[us[i].ref] {
			return fault.Invalid("git_protocol", "%.100q is moved twice in one push", us[i].ref)
		}
		refs[us[i].ref] = true
		if err := s.judge(ctx, repo, env, rs, us[i]); err != nil {
			e := fault.As(err)
			if e.Kind == fault.KindInternal || e.Kind == fault.KindUnavailable {
				return err
			}
			us[i].refused = e.Error()
		}
	}
	good := slices.DeleteFunc(slices.Clone(us), func(u update) bool { return u.refused != "" })
	if atomic && len(good) < len(us) {
		for i := range us {
			if us[i].refused == "" {
				us[i].refused = "another ref of this push was refused"
			}
		}
		return nil
	}
	if len(good) == 0 {
		return nil
	}
	if err := migrate(quarantine, filepath.Join(s.path(repo), "objects")); err != nil {
		return err
	}
	if err := s.record(ctx, repo, good); err != nil {
		return err
	}
	// From here on the push has happened: a client that goes away does not stop it.
	return s.apply(context.WithoutCancel(ctx), repo)
}

// index unpacks the pack into the quarantine and makes sure that nothing is missing.
func (s *Store) index(ctx context.Context, repo, quarantine string, env []string, r io.Reader) error {
	lim := &io.LimitedReader{R: r, N: s.MaxPush + 1}
	c := command(ctx, s.path(repo), env, "-c", "core.bigFileThreshold=32m", "-c", "core.packedGitWindowSize=32m", "-c", "core.packedGitLimit=256m", "-c", "pack.threads=2", "index-pack", "--stdin", "--fix-thin", "--strict", "--max-input-size="+strconv.FormatInt(s.MaxPush, 10))
	var errs bounded
	errs.left = 64 << 10
	c.Stderr = &errs
	in, err := c.StdinPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	// git has read nothing yet, so it has nothing to take memory for.
	for limit, most := range map[int]uint64{unix.RLIMIT_AS: indexMemory, unix.RLIMIT_CPU: indexSeconds} {
		if err := unix.Prlimit(c.Process.Pid, limit, &unix.Rlimit{Cur: most, Max: most}, nil); err != nil {
			_ = c.Process.Kill()
			_ = c.Wait()
			return fmt.Errorf("limit git: %w", err)
		}
	}
	_, cerr := io.Copy(in, lim)
	_ = in.Close()
	if err = c.Wait(); err == nil && cerr != nil {
		err = cerr
	}
	if lim.N <= 0 || err != nil && strings.Contains(errs.String(), "exceeds maximum allowed size") {
		return fault.TooLarge("push_size", "the push has over %d MiB", s.MaxPush>>20).Fix("put big files into the lookaside cache with `drover pkg new-sources`")
	}
	if err != nil {
		if full := durable.Full(quarantine, err); fault.Code(full) == "disk_full" || strings.Contains(errs.String(), "No space left") {
			return fault.Unavailable("disk_full", "the server's disk is full").Fix("free space on the server, then push again; nothing was changed")
		}
		if errs := errs.String(); strings.Contains(errs, "Out of memory") || strings.Contains(errs, "mmap failed") {
			return fault.TooLarge("push_object_size", "an object of the push is too large to unpack").Fix("put big files into the lookaside cache with `drover pkg new-sources`")
		}
		if fault.Code(cerr) == "body_slow" {
			return cerr
		}
		return fault.Invalid("push_pack", "the pack was refused: %s", oneLine(lastLine(errs.String()))).Fix("run `git fsck` in your clone")
	}
	return nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// judge asks every rule about one ref.
func (s *Store) judge(ctx context.Context, repo string, env []string, rs []Rule, u update) error {
	actor := auth.From(ctx)
	branch, isBranch := strings.CutPrefix(u.ref, "refs/heads/")
	tag, isTag := strings.CutPrefix(u.ref, "refs/tags/")
	if !isBranch && !isTag || !goodBranch(branch) && isBranch || isTag && !goodBranch(tag) {
		return fault.Invalid("ref_name", "%.120q may not be pushed", u.ref).Fix("push to a branch or a tag with a plain name")
	}
	if isBranch && reObject.MatchString(branch) {
		return fault.Invalid("ref_name", "a branch may not be named like a commit")
	}
	have := strings.Repeat("0", len(u.old))
	if out, err := s.git(ctx, s.path(repo), nil, "rev-parse", "--verify", "--quiet", u.ref); err == nil {
		have = strings.TrimSpace(string(out))
	}
	if have != u.old {
		return fault.Conflict("ref_moved", "it has moved meanwhile").Fix("fetch, rebase and push again")
	}
	protected := isTag // a tag is a promise
	for _, r := range rs {
		if ok, _ := path.Match(r.Pattern, branch); !ok || !isBranch {
			continue
		}
		protected = protected || r.Protected
		if len(r.Who) > 0 && !slices.Contains(r.Who, actor.String()) && actor.Role != "admin" {
			return fault.Denied("branch_denied", "%s may not push to branch %s; only %s may", actor, branch, strings.Join(r.Who, ", ")).Fix("ask one of them, or an admin for `drover pkg rule`")
		}
	}
	if zero(u.new) {
		if protected {
			return fault.Denied("branch_protected", "it is protected and may not be removed").Fix("an admin can change the rule with `drover pkg rule`")
		}
		return nil
	}
	typ, err := s.git(ctx, s.path(repo), env, "cat-file", "-t", u.new)
	if err != nil {
		return fault.Invalid("push_object", "the object %s did not come with the push", u.new)
	}
	if isBranch && strings.TrimSpace(string(typ)) != "commit" {
		return fault.Invalid("push_object", "a branch must be a commit, not a %s", strings.TrimSpace(string(typ)))
	}
	if _, err := s.git(ctx, s.path(repo), env, "rev-list", "--objects", "--quiet", u.new, "--not", "--all"); err != nil {
		return fault.Invalid("push_object", "objects of %s are missing", u.new).Fix("run `git fsck` in your clone")
	}
	if protected && !zero(u.old) {
		if _, err := s.git(ctx, s.path(repo), env, "merge-base", "--is-ancestor", u.old, u.new); err != nil {
			return fault.Denied("branch_protected", "it is protected: a force-push is refused").Fix("fetch, rebase and push again")
		}
	}
	if isBranch && strings.HasPrefix(repo, "rpms/") {
		return s.checkPackage(ctx, repo, env, u.new)
	}
	return nil
}

// checkPackage refuses a commit that cannot be built from what the server has.
func (s *Store) checkPackage(ctx context.Context, repo string, env []string, commit string) error {
	if _, err := s.sources(ctx, repo, env, commit); err != nil {
		return err
	}
	objs, err := s.tree(ctx, repo, env, commit)
	if err != nil {
		return err
	}
	objs = slices.DeleteFunc(objs, func(o object) bool { return strings.Contains(o.path, "/") || !strings.HasSuffix(o.path, ".spec") })
	if len(objs) == 0 {
		return nil // a new package may begin without one
	}
	if len(objs) > 1 {
		return fault.Invalid("spec_count", "the commit holds %d spec files", len(objs)).Fix("a package has one spec file, named like the package")
	}
	want := strings.TrimPrefix(repo, "rpms/")
	var name string
	err = s.contents(ctx, repo, env, objs, func(o object, size int64, r io.Reader) error {
		if size > maxSpec {
			return fault.TooLarge("spec_size", "%s has %d bytes; a spec file has at most %d", o.path, size, maxSpec).Fix("put data into files of its own")
		}
		b, err := io.ReadAll(r)
		name = SpecName(b)
		return err
	})
	if err != nil {
		return err
	}
	if name != "" && name != want {
		return fault.Invalid("spec_name", "%s says Name: %s, but the repository is of %s", objs[0].path, name, want).Fix("push to rpms/%s, or correct the spec file", name)
	}
	return nil
}

// migrate moves the packs of a quarantine into a repository. Each pack goes before its
// index: git looks at packs by their index.
func migrate(from, to string) error {
	src := filepath.Join(from, "pack")
	es, err := os.ReadDir(src)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dst := filepath.Join(to, "pack")
	if err := os.MkdirAll(dst, 0o700); err != nil {
		return err
	}
	slices.SortFunc(es, func(a, b os.DirEntry) int { return strings.Compare(rank(a.Name()), rank(b.Name())) })
	for _, e := range es {
		if strings.HasSuffix(e.Name(), ".keep") {
			continue
		}
		if err := os.Rename(filepath.Join(src, e.Name()), filepath.Join(dst, e.Name())); err != nil {
			return err
		}
	}
	return durable.SyncDir(dst)
}

func rank(name string) string {
	if strings.HasSuffix(name, ".idx") {
		return "1" + name
	}
	return "0" + name
}

// record writes the push into the ledger and its refs into the database.
func (s *Store) record(ctx context.Context, repo string, us []update) error {
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		type moved struct {
			Ref string `json:"ref"`
			Old string `json:"old"`
			New string `json:"new"`
		}
		var refs []moved
		for _, u := range us {
			refs = append(refs, moved{u.ref, u.old, u.new})
		}
		ev, err := event.Append(tx, "distgit.push", "repo/"+repo, map[string]any{"refs": refs})
		if err != nil {
			return err
		}
		for _, u := range us {
			if _, err := tx.Exec("INSERT INTO distgit_push (event, repo, ref, old, new, actor, at, applied) VALUES ($1, $2, $3, $4, $5, $6, $7, 0)",
				ev, repo, u.ref, u.old, u.new, tx.Actor(), tx.Now()); err != nil {
				return err
			}
		}
		return nil
	})
}

// apply moves the refs of a repository that the database has and git has not.
func (s *Store) apply(ctx context.Context, repo string) error {
	var ps []Push
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		ps, err = pushes(tx, "repo = $1 AND applied = 0 ORDER BY event, ref", repo)
		return err
	})
	if err != nil || len(ps) == 0 {
		return err
	}
	for _, p := range ps {
		args := []string{"update-ref", "--no-deref", p.Ref, p.New}
		if zero(p.New) {
			args = []string{"update-ref", "--no-deref", "-d", p.Ref}
		}
		if _, err := s.git(ctx, s.path(repo), nil, args...); err != nil {
			return err
		}
	}
	return s.DB.Write(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec("UPDATE distgit_push SET applied = 1 WHERE repo = $1 AND applied = 0 AND event <= $2", repo, ps[len(ps)-1].Event)
		return err
	})
}

// settle rolls forward every push that a crash left between database and git, and clears
// quarantines.
func (s *Store) settle(ctx context.Context) error {
	var repos []string
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		return tx.Each(func(scan func(...any) error) error {
			var r string
			err := scan(&r)
			repos = append(repos, r)
			return err
		}, "SELECT DISTINCT repo FROM distgit_push WHERE applied = 0")
	})
	if err != nil {
		return err
	}
	for _, r := range repos {
		if err := unlock(s.path(r)); err != nil {
			return err
		}
		if err := s.apply(ctx, r); err != nil {
			return err
		}
	}
	left, err := filepath.Glob(filepath.Join(s.Dir, "*", "*.git", "incoming-*"))
	if err != nil {
		return err
	}
	for _, d := range left {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	return nil
}

// unlock removes the lock files that git leaves when it is killed while it moves a ref: no
// other git would ever move it again.
func unlock(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && path != dir && filepath.Base(path) == "objects":
			return filepath.SkipDir
		case e.Type().IsRegular() && strings.HasSuffix(path, ".lock"):
			return os.Remove(path)
		}
		return nil
	})
}

// serveGit runs a git service for one request of the smart HTTP protocol.
func (s *Store) serveGit(w http.ResponseWriter, r *http.Request, repo string, args []string, body io.Reader) error {
	c := command(r.Context(), s.path(repo), nil, args...)
	if p := r.Header.Get("Git-Protocol"); len(p) < 100 && !strings.ContainsAny(p, "\x00\n") {
		c.Env = append(c.Env, "GIT_PROTOCOL="+p)
	}
	c.Stdin, c.Stdout = body, w
	var errs bounded
	errs.left = 64 << 10
	c.Stderr = &errs
	err := c.Run()
	var ee *exec.ExitError
	if err != nil && (errors.As(err, &ee) || r.Context().Err() != nil) {
		s.Log.Debug("git service", "repo", repo, "err", err, "stderr", errs.String())
		return nil //nolint:nilerr // git has told its client
	}
	return err
}
