package rpmtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"html"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"drover/internal/rpm"
)

// version changes when the same index gives another package than before: cached ones are made
// anew then.
const version = "2"

// Corpus is the shape of AppStream. Any number of goroutines may use it.
type Corpus struct {
	primary [][]byte // entries of the real primary.xml
	files   [][]byte // entries of the real filelists.xml of BaseOS
	names   map[string]bool
	key     string
}

// Made is a package of the corpus.
type Made struct {
	Href string // "Packages/<name>.rpm"
	Data []byte
	Time time.Time // of the file
}

// Open reads the shapes from the shared test data, which lies at ../shared/data beside the
// project.
func Open(t testing.TB) *Corpus {
	t.Helper()
	c := &Corpus{names: map[string]bool{}}
	for pattern, kind := range map[string]rpm.Kind{"cs9-appstream/repodata/*-primary.xml.gz": rpm.KindPrimary, "cs9-baseos/repodata/*-filelists.xml.gz": rpm.KindFilelists} {
		found, _ := filepath.Glob(filepath.Join(data(t), pattern))
		if len(found) != 1 {
			t.Fatalf("the shared test data is not at ../shared/data beside the project: %s", pattern)
		}
		f, err := os.Open(found[0])
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := rpm.ReadEntries(f, kind, func(e rpm.Entry) error {
			if kind == rpm.KindPrimary {
				c.primary = append(c.primary, bytes.Clone(e.XML))
				c.names[e.Package.Name] = true
			} else {
				c.files = append(c.files, bytes.Clone(e.XML))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %d", version, len(c.primary), len(c.files)))
	c.key = hex.EncodeToString(sum[:8])
	return c
}

// data is the shared test data's directory.
func data(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "..", "shared", "data")
		}
	}
	t.Fatal("the test does not run in the project")
	return ""
}

// Len is the number of packages in the real repository. More can be made: their names differ.
func (c *Corpus) Len() int { return len(c.primary) }

// between is what stands between two marks, unescaped.
func between(b []byte, from, to string) string {
	_, rest, ok := bytes.Cut(b, []byte(from))
	if !ok {
		return ""
	}
	v, _, _ := bytes.Cut(rest, []byte(to))
	return html.UnescapeString(string(v))
}

// paths reads the files of an entry.
func paths(b []byte) (out []File) {
	for line := range bytes.Lines(b) {
		l := bytes.TrimSpace(line)
		if !bytes.HasPrefix(l, []byte("<file")) {
			continue
		}
		f := File{Path: between(l, ">", "</file>")}
		f.Dir, f.Ghost = bytes.HasPrefix(l, []byte(`<file type="dir"`)), bytes.HasPrefix(l, []byte(`<file type="ghost"`))
		out = append(out, f)
	}
	return out
}

// Spec describes package i. Packages from Len on are those from 0 on again, with names and
// dependencies on names of the corpus changed.
func (c *Corpus) Spec(i int) (Spec, error) {
	b := c.primary[i%len(c.primary)]
	p, err := rpm.ReadPrimaryEntry(b)
	if err != nil {
		return Spec{}, err
	}
	round := i / len(c.primary)
	s := Spec{NEVRA: p.NEVRA, Source: p.Source, BuildTime: p.BuildTime, Requires: p.Requires, Provides: p.Provides, Conflicts: p.Conflicts, Obsoletes: p.Obsoletes, Recommends: p.Recommends,
		Suggests: p.Suggests, Supplements: p.Supplements, Enhances: p.Enhances, Files: paths(b)}
	for _, f := range []struct {
		to        *string
		from, end string
	}{{&s.Summary, "<summary>", "</summary>"}, {&s.Description, "<description>", "</description>"}, {&s.Packager, "<packager>", "</packager>"}, {&s.URL, "<url>", "</url>"}, {&s.License, "<rpm:license>", "</rpm:license>"},
		{&s.Vendor, "<rpm:vendor>", "</rpm:vendor>"}, {&s.Group, "<rpm:group>", "</rpm:group>"}, {&s.Host, "<rpm:buildhost>", "</rpm:buildhost>"}} {
		*f.to = between(b, f.from, f.end)
	}
	s.Installed, _ = strconv.ParseInt(between(b, ` installed="`, `"`), 10, 64)
	s.Archive, _ = strconv.ParseInt(between(b, ` archive="`, `"`), 10, 64)
	if round > 0 {
		suffix := "-r" + strconv.Itoa(round)
		c.rename(&s, suffix)
		for i, f := range s.Files {
			if !f.Dir {
				s.Files[i].Path += suffix
			}
		}
	}
	// What rpmbuild adds, and metadata leaves out.
	s.Requires = append(slices.Clip(s.Requires), rpm.Dep{Name: "rpmlib(CompressedFileNames)", Flags: rpm.SenseLess | rpm.SenseEqual | rpm.SenseRPMLib, EVR: "3.0.4-1"},
		rpm.Dep{Name: "rpmlib(PayloadFilesHavePrefix)", Flags: rpm.SenseLess | rpm.SenseEqual | rpm.SenseRPMLib, EVR: "4.0-1"})
	s.Files = append(s.Files, c.more(s.Name)...)
	s.Changes = changes(s)
	return s, nil
}

// rename gives the package and the dependencies on names of the corpus a suffix.
func (c *Corpus) rename(s *Spec, suffix string) {
	s.Name += suffix
	s.Source = strings.TrimSuffix(s.Source, ".src.rpm") + suffix + ".src.rpm"
	for _, list := range []*[]rpm.Dep{&s.Requires, &s.Provides, &s.Conflicts, &s.Obsoletes, &s.Recommends, &s.Suggests, &s.Supplements, &s.Enhances} {
		for i, d := range *list {
			if bare, _, _ := strings.Cut(d.Name, "("); c.names[bare] {
				(*list)[i].Name = bare + suffix + d.Name[len(bare):]
			}
		}
	}
}

// more is the files beyond those that primary.xml names: those of some package of BaseOS, the same
// for all versions of a package.
func (c *Corpus) more(name string) (out []File) {
	e := c.files[random("files of "+name).below(len(c.files))]
	theirs := between(e, ` name="`, `"`)
	for _, f := range paths(e) {
		if len(theirs) > 2 {
			f.Path = strings.ReplaceAll(f.Path, theirs, name)
		}
		if strings.HasPrefix(f.Path, "/etc/") || strings.Contains(f.Path, "bin/") || f.Path == "/usr/lib/sendmail" {
			continue
		}
		// What no two packages share in the real repository, none share here.
		if !f.Dir && !strings.Contains(f.Path, name) {
			f.Path = path.Join(path.Dir(f.Path), name+"-"+path.Base(f.Path))
		}
		out = append(out, f)
	}
	return out
}

const (
	people = "Jan Novak,Maria Garcia,Petr Svoboda,Anna Schmidt,John Smith,Li Wei,Jose Silva,Emma Jones,Tomas Dvorak,Priya Sharma,Olga Ivanova,Jürgen Müller"
	verbs  = "Fix,Update,Rebase to,Backport,Drop,Enable,Disable,Rebuild for,Add support of,Remove,Revert,Correct"
	things = "crash on startup,new upstream version,memory leak in the parser,CVE-2024-%04d,the test suite,gating,build on s390x,documentation of options,handling of <empty> input,TLS 1.3 & older,obsolete patches,systemd unit,python 3.9,SELinux denials"
)

// changes is the changelog: the same entries for all packages of a source, a newer one on top for
// each version.
func changes(s Spec) (out []rpm.Change) {
	src := strings.TrimSuffix(s.Source, ".src.rpm")
	name := src
	for range 2 {
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			name = name[:i]
		}
	}
	pick := func(r *stream, list string) string {
		all := strings.Split(list, ",")
		return all[r.below(len(all))]
	}
	one := func(of string, evr string, t int64) {
		r := random(of)
		who := pick(r, people)
		mail := strings.ToLower(strings.ReplaceAll(who, " ", "."))
		var text []string
		for range 1 + r.below(4) {
			what := pick(r, things)
			if strings.Contains(what, "%") {
				what = fmt.Sprintf(what, r.below(10_000))
			}
			text = append(text, "- "+pick(r, verbs)+" "+what, fmt.Sprintf("  Resolves: RHEL-%d", r.below(90_000)))
		}
		out = append(out, rpm.Change{Time: uint64(t), Author: fmt.Sprintf("%s <%s@redhat.com> - %s", who, mail, evr), Text: strings.Join(text, "\n")})
	}
	day := s.BuildTime / 86400 * 86400
	one(src, s.Version+"-"+s.Release, day+43200)
	r := random("changes of " + name)
	for n := range 9 + r.below(12) {
		day -= 86400 * int64(r.below(60)) // two of a day now and then
		one(name+strconv.Itoa(n), fmt.Sprintf("%d.%d-%d", 3-n/10, 9-n%10, 1+r.below(5)), day+43200)
	}
	return out
}

// Make makes package i.
func (c *Corpus) Make(i int) (Made, error) {
	s, err := c.Spec(i)
	if err != nil {
		return Made{}, err
	}
	return Made{Href: "Packages/" + s.File(), Data: s.Build(), Time: time.Unix(s.BuildTime+3600, 0)}, nil
}

// Dir is a directory with the first n packages, below Packages. It is made once and kept in the
// user's cache: nobody may change anything in it.
func (c *Corpus) Dir(t testing.TB, n int) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cache = filepath.Join(cache, "drover", "rpmtest")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, c.key+"-"+strconv.Itoa(n))
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	// Those of other versions, and what was left half made, are of no use to anybody.
	old, _ := filepath.Glob(filepath.Join(cache, "*-*"))
	for _, d := range old {
		if !strings.HasPrefix(filepath.Base(d), c.key) || strings.HasSuffix(d, ".part") {
			_ = os.RemoveAll(d)
		}
	}
	part := dir + ".part"
	if err := c.Write(part, n); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(part, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Write writes the first n packages into Packages below dir.
func (c *Corpus) Write(dir string, n int) error {
	if err := os.MkdirAll(filepath.Join(dir, "Packages"), 0o755); err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(runtime.NumCPU())
	for i := range n {
		g.Go(func() error {
			m, err := c.Make(i)
			if err != nil {
				return err
			}
			file := filepath.Join(dir, path.Clean(m.Href))
			if err := os.WriteFile(file, m.Data, 0o444); err != nil {
				return err
			}
			return os.Chtimes(file, m.Time, m.Time)
		})
	}
	return g.Wait()
}
