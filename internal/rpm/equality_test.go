package rpm_test

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"drover/internal/rpm"
	"drover/internal/rpm/rpmtest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
)

// rendered is our entries of a package: of primary.xml, filelists.xml and other.xml.
type rendered [3][]byte

// render makes the entries of all packages below dir, by pkgid.
func render(t *testing.T, dir string) map[string]rendered {
	t.Helper()
	var files []string
	if err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if strings.HasSuffix(p, ".rpm") {
			files = append(files, p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ids, out := make([]string, len(files)), make([]rendered, len(files))
	var g errgroup.Group
	g.SetLimit(runtime.NumCPU())
	for i, f := range files {
		g.Go(func() error {
			b, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			fi, err := os.Stat(f)
			if err != nil {
				return err
			}
			p, err := rpm.Read(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				return fmt.Errorf("%s: %w", f, err)
			}
			href, err := filepath.Rel(dir, f)
			ids[i] = hexSum(b)
			at := rpm.Place{PkgID: ids[i], Href: href, Size: p.Size, Mtime: fi.ModTime().Unix(), HeaderStart: p.HeaderStart, HeaderEnd: p.HeaderEnd}
			out[i] = rendered{rpm.Primary(nil, p, at), rpm.Filelists(nil, p.Header, ids[i]), rpm.Other(nil, p.Header, ids[i])}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	byID := map[string]rendered{}
	for i, id := range ids {
		byID[id] = out[i]
	}
	return byID
}

// assemble makes a repository's metadata of the entries, in the given order, as publishing does: of
// many members, with 128 packages at most in one.
func assemble(t *testing.T, entries map[string]rendered, order []string, codec rpm.Codec) (files []rpm.MetaFile, members int) {
	t.Helper()
	pack, err := rpm.NewPacker(codec)
	if err != nil {
		t.Fatal(err)
	}
	for k := rpm.KindPrimary; k <= rpm.KindOther; k++ {
		var data, open []byte
		members = 0
		add := func(part []byte) {
			members++
			open = append(open, part...)
			if data, err = pack.Pack(data, part); err != nil {
				t.Fatal(err)
			}
		}
		add(k.Head(len(order)))
		for ids := range slices.Chunk(order, min(128, len(order)/4+1)) {
			var part []byte
			for _, id := range ids {
				part = append(part, entries[id][k]...)
			}
			add(part)
		}
		add(k.Tail())
		sum := hexSum(data)
		files = append(files, rpm.MetaFile{Type: k.String(), Name: rpm.MetaName(k.String(), sum, codec), Data: data, Size: int64(len(data)), Sum: sum, OpenSum: hexSum(open), OpenSize: int64(len(open))})
	}
	return files, members
}

// metadata is the file of a kind in a repository that createrepo_c made.
func metadata(t *testing.T, repo string, k rpm.Kind) []byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(repo, "repodata", "*-"+k.String()+".xml.gz"))
	if err != nil || len(files) != 1 {
		t.Fatal(k, files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// equality holds our metadata of the packages below dir against createrepo_c's, by what every
// reader of it finds in it.
func equality(t *testing.T, dir string) {
	lap := time.Now()
	took := func(what string) {
		t.Logf("%s: %s", what, time.Since(lap).Round(10*time.Millisecond))
		lap = time.Now()
	}
	theirs := t.TempDir()
	createrepo(t, "-o", theirs, dir)
	took("createrepo_c")
	ours := render(t, dir)
	took("our entries")
	var order, names []string // of all packages, and of the first ones
	otherBytes := 0
	reference := regexp.MustCompile(`&#x([89A-F][0-9A-F]|[0-9A-F]{3,});`)
	for k := rpm.KindPrimary; k <= rpm.KindOther; k++ {
		n := 0
		if err := rpm.ReadEntries(bytes.NewReader(metadata(t, theirs, k)), k, func(e rpm.Entry) error {
			if k == rpm.KindPrimary {
				order = append(order, e.PkgID)
				if len(names) < 40 && !slices.Contains(names, e.Package.Name) {
					names = append(names, e.Package.Name)
				}
			}
			n++
			got := ours[e.PkgID][k]
			if bytes.Equal(got, e.XML) {
				return nil // byte by byte, so element by element too
			}
			otherBytes++
			var a, b element
			if err := xml.Unmarshal(e.XML, &a); err != nil {
				return err
			}
			if err := xml.Unmarshal(got, &b); err != nil {
				return err
			}
			// libxml2 writes what is not ASCII as references, in attributes only.
			same := reference.ReplaceAllFunc(e.XML, func(ref []byte) []byte {
				n, _ := strconv.ParseUint(string(ref[3:len(ref)-1]), 16, 32)
				return utf8.AppendRune(nil, rune(n))
			})
			if d := cmp.Diff(a, b); d != "" || !bytes.Equal(same, got) {
				t.Errorf("%s differs from createrepo_c (-its +ours):\n%s\n%s", k, d, cmp.Diff(strings.Split(string(same), "\n"), strings.Split(string(got), "\n")))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if n != len(ours) {
			t.Errorf("%s: %d packages, createrepo_c has %d", k, len(ours), n)
		}
	}
	took("comparing the entries")
	if t.Failed() {
		return
	}
	repos := map[rpm.Codec]string{}
	for _, codec := range []rpm.Codec{rpm.Zstd, rpm.Gzip} {
		files, members := assemble(t, ours, order, codec)
		if members < 3 {
			t.Errorf("%d members", members)
		}
		repos[codec] = t.TempDir()
		writeRepo(t, repos[codec], files)
	}
	took("our files")
	t.Run("dnf", func(t *testing.T) { sameToDNF(t, theirs, repos) })
	took("dnf")
	t.Run("libsolv", func(t *testing.T) { sameToLibsolv(t, theirs, repos, names) })
	took("libsolv")
	t.Run("createrepo_c", func(t *testing.T) { // of this version, which reads no zstd
		out := createrepo(t, "--update", "--verbose", "-o", repos[rpm.Gzip], dir)
		if hits := strings.Count(out, "CACHE HIT "); hits != len(order) {
			t.Errorf("createrepo_c --update takes %d of %d packages from our metadata", hits, len(order))
		}
	})
	took("createrepo_c --update")
	t.Logf("%d packages; %d of %d entries have the same elements in other bytes", len(order), otherBytes, 3*len(order))
}

// firstDifference shows where two outputs part.
func firstDifference(a, b string) string {
	if a == b {
		return ""
	}
	as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(as), len(bs)) {
		if as[i] != bs[i] {
			return fmt.Sprintf("line %d of %d and %d: %.300q and ours %.300q", i+1, len(as), len(bs), as[i], bs[i])
		}
	}
	return fmt.Sprintf("%d lines and ours %d", len(as), len(bs))
}

// Everything that dnf can tell of a package.
const allFields = `=== %{name} %{arch} %{epoch} %{version} %{release} %{evr} %{debug_name} %{source_name} %{source_debug_name}
%{buildtime} %{size} %{downloadsize} %{installsize} %{sourcerpm} %{location} %{chksum} %{hdr_end} %{packager} %{vendor} %{group} %{license} %{url}
S %{summary} D %{description}
P %{provides}
R %{requires} PRE %{requires_pre} REG %{regular_requires}
C %{conflicts} O %{obsoletes} REC %{recommends} SUG %{suggests} SUP %{supplements} ENH %{enhances}
F %{files}`

// sameToDNF asks dnf for everything, of each repository.
func sameToDNF(t *testing.T, theirs string, ours map[rpm.Codec]string) {
	archs := "--arch=noarch,x86_64,i386,i686,src"
	queries := [][]string{{"--qf", allFields}, {"--changelogs"}, {"-l"}}
	for _, kind := range []string{"requires", "provides", "recommends", "conflicts", "obsoletes", "suggests", "supplements", "enhances"} {
		if os.Getenv("DROVER_LONG") != "" { // the fields have them too
			queries = append(queries, []string{"--" + kind})
		}
	}
	want := make([]string, len(queries))
	home := t.TempDir()
	for i, q := range queries {
		want[i] = dnf(t, home, theirs, slices.Concat([]string{"repoquery", archs}, q)...)
		if len(want[i]) == 0 && i < 5 { // few packages have the weaker kinds
			t.Errorf("dnf %v: nothing", q)
		}
	}
	for codec, repo := range ours {
		home := t.TempDir()
		for i, q := range queries {
			if codec == rpm.Gzip && i > 0 {
				break // the fields have all of it, and the text is the same
			}
			if d := firstDifference(want[i], dnf(t, home, repo, slices.Concat([]string{"repoquery", archs}, q)...)); d != "" {
				t.Errorf("%s: dnf %v: %s", codec, q, d)
			}
		}
	}
}

// sameToLibsolv lets libsolv read each repository, tell what it has read, and install from it.
func sameToLibsolv(t *testing.T, theirs string, ours map[rpm.Codec]string, names []string) {
	dir := t.TempDir()
	convert := func(name, repo string) string {
		solv := filepath.Join(dir, name+".solv")
		if out, err := exec.Command("repo2solv", "-F", "-o", solv, repo).CombinedOutput(); err != nil {
			t.Fatalf("repo2solv: %v: %s (scripts/setup test installs it)", err, out)
		}
		return solv
	}
	want := convert("theirs", theirs)
	transaction := solve(t, want, names)
	if !strings.Contains(transaction, "install ") {
		t.Errorf("libsolv installs nothing: %s", transaction)
	}
	for codec, repo := range ours {
		got := convert("ours-"+string(codec), repo)
		if lines := sameDump(t, want, got); lines < 100 {
			t.Errorf("%s: libsolv tells %d lines", codec, lines)
		}
		if d := firstDifference(transaction, solve(t, got, names)); d != "" {
			t.Errorf("%s: libsolv solves otherwise: %s", codec, d)
		}
	}
}

// sameDump compares what two solv files hold, but for what stands in repomd.xml.
func sameDump(t *testing.T, a, b string) (lines int) {
	t.Helper()
	open := func(file string) (func() (string, bool), func()) {
		c := exec.Command("dumpsolv", file)
		out, err := c.StdoutPipe()
		if err == nil {
			err = c.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		s := bufio.NewScanner(out)
		s.Buffer(nil, 1<<24)
		began := false
		next := func() (string, bool) {
			for s.Scan() {
				l := s.Text()
				began = began || strings.HasPrefix(l, "solvable ")
				if began && !strings.HasPrefix(l, "repository:") && !strings.HasPrefix(strings.TrimSpace(l), "repository:") {
					return l, true
				}
				if began && strings.HasPrefix(l, "repository:repomd") {
					break
				}
			}
			return "", false
		}
		return next, func() {
			_, _ = io.Copy(io.Discard, out)
			if err := c.Wait(); err != nil {
				t.Errorf("dumpsolv: %v", err)
			}
		}
	}
	nextA, doneA := open(a)
	defer doneA()
	nextB, doneB := open(b)
	defer doneB()
	for {
		x, okA := nextA()
		y, okB := nextB()
		if x != y || okA != okB {
			t.Errorf("line %d of what libsolv read: %q, of ours %q", lines+1, x, y)
			return lines
		}
		if !okA {
			return lines
		}
		lines++
	}
}

// solve installs those packages that can be, in a root without any.
func solve(t *testing.T, solv string, names []string) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "repo system 0 empty\nrepo available 0 solv %s\nsystem x86_64 rpm system\nsolverflags brokenok ignorerecommended\n", filepath.Base(solv))
	for _, n := range names {
		fmt.Fprintf(&b, "job install name %s [weak]\n", n)
	}
	b.WriteString("result transaction,problems <inline>\n#>nothing\n")
	file := strings.TrimSuffix(solv, ".solv") + ".t"
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("testsolv", "-r", file).CombinedOutput()
	if len(out) == 0 {
		t.Fatalf("testsolv: %v", err)
	}
	return string(out)
}

// Every package that there is, those among them that differ in signatures only, and packages of
// everything odd.
func TestEqualToCreaterepo(t *testing.T) {
	dir := t.TempDir()
	all := fixtures(t)
	maps.Copy(all, odd(t))
	for name, b := range all {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	equality(t, dir)
}

// Packages of AppStream's shape: 600 of them, all in the long form.
func TestEqualToCreaterepoAtSize(t *testing.T) {
	c := rpmtest.Open(t)
	if os.Getenv("DROVER_LONG") != "" {
		equality(t, c.Dir(t, c.Len()))
		return
	}
	dir := t.TempDir()
	if err := c.Write(dir, 600); err != nil {
		t.Fatal(err)
	}
	equality(t, dir)
}
