package solve

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"drover/internal/rpm"
)

// load reads the packages of shared repositories.
func load(t testing.TB, dirs ...string) (out []Package) {
	t.Helper()
	for _, dir := range dirs {
		m, _ := filepath.Glob(filepath.Join("../../../shared/data", dir, "repodata/*-primary.xml.gz"))
		if len(m) != 1 {
			t.Fatalf("the shared test data is not at ../shared/data beside the project: %v", m)
		}
		f, err := os.Open(m[0])
		if err != nil {
			t.Fatal(err)
		}
		err = rpm.ReadPrimaryDeps(f, func(p rpm.PrimaryPackage) error {
			out = append(out, FromPrimary(&p))
			return nil
		})
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// blocks loads packages in blocks of 128.
func blocks(t testing.TB, p *Pool, pkgs []Package) (out []*Block) {
	t.Helper()
	for len(pkgs) > 0 {
		n := min(128, len(pkgs))
		b, err := p.Decode(Encode(pkgs[:n]))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
		pkgs = pkgs[n:]
	}
	return out
}

// oracle is libsolv in a process; see testdata/oracle.c.
type oracle struct {
	t     testing.TB
	in    *bufio.Writer
	out   *bufio.Reader
	n     int
	there map[int]bool
}

func newOracle(t testing.TB) *oracle {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "oracle")
	if out, err := exec.Command("cc", "-O2", "-o", bin, "testdata/oracle.c", "-lsolv", "-lsolvext").CombinedOutput(); err != nil {
		t.Fatalf("cannot compile the oracle (run scripts/setup test): %v\n%s", err, out)
	}
	cmd := exec.Command(bin)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the oracle ended: %v", err)
		}
	})
	return &oracle{t: t, in: bufio.NewWriterSize(in, 1<<16), out: bufio.NewReader(out), there: map[int]bool{}}
}

func (o *oracle) reset() {
	fmt.Fprintln(o.in, "Z")
	o.n, o.there = 0, map[int]bool{}
}

// add teaches the oracle a package and gives its number.
func (o *oracle) add(p *Package) int {
	fmt.Fprintf(o.in, "P %s %s %s\n", p.Name, p.EVR(), p.Arch)
	for i, l := range p.lists() {
		for _, d := range l {
			d = plain(d)
			fmt.Fprintf(o.in, "%c %s", "prco"[i], d.Name)
			if d.Flags != 0 {
				fmt.Fprintf(o.in, "\t%s\t%s", sense(d.Flags), d.EVR)
			}
			fmt.Fprintln(o.in)
		}
	}
	for _, f := range p.Files {
		fmt.Fprintf(o.in, "p %s\n", f)
	}
	o.n++
	return o.n - 1
}

// be tells the oracle which packages there are.
func (o *oracle) be(there map[int]bool) {
	for i := range o.n {
		if there[i] != o.there[i] {
			fmt.Fprintf(o.in, "%c %d\n", map[bool]rune{true: '+', false: '-'}[there[i]], i)
		}
	}
	o.there = map[int]bool{}
	for i, is := range there {
		o.there[i] = is
	}
}

// ask tells which packages can be installed.
func (o *oracle) ask(ids []int) []bool {
	o.t.Helper()
	asked := make(chan struct{})
	defer func() { <-asked }()
	go func() { // the answers may fill the pipe before all is asked
		defer close(asked)
		for _, i := range ids {
			fmt.Fprintf(o.in, "Q %d\n", i)
		}
		fmt.Fprintln(o.in, "E")
		_ = o.in.Flush()
	}()
	var out []bool
	for {
		s, err := o.out.ReadString('\n')
		if err != nil {
			o.t.Fatalf("the oracle does not answer: %v", err)
		}
		if s == ".\n" {
			break
		}
		out = append(out, s == "1\n")
	}
	if len(out) != len(ids) {
		o.t.Fatalf("the oracle gave %d answers to %d questions", len(out), len(ids))
	}
	return out
}

// show writes a package for people.
func show(p *Package) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", p.NEVRA)
	for i, l := range p.lists() {
		for _, d := range l {
			fmt.Fprintf(&b, "\n\t%s: %s", []string{"Provides", "Requires", "Conflicts", "Obsoletes"}[i], (&expr{dep: d}).String())
		}
	}
	return b.String()
}
