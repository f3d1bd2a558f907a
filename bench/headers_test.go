package bench

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"drover/internal/rpm"

	cavalier "github.com/cavaliergopher/rpm"
)

// BenchmarkRPMHeaders reads the headers of every RPM of the shared test data from memory, on
// one core, and prints headers per second of that core's time, so that what else the machine
// does counts for nobody:
//
//   - parse: the main headers alone, checked;
//   - index: the same, and all of name, version, dependencies and files gone through, as a
//     repository's index needs it;
//   - packages: both headers of whole files, as the peers read them. cavaliergopher/rpm
//     decodes every tag; it is not asked for files, as that panics for 21 of the packages.
//     "rpm -qp" reads the files from disk, digests not checked.
//
// The last line is how many times as fast drover is as each peer in this run.
func BenchmarkRPMHeaders(b *testing.B) {
	files, err := filepath.Glob("../../shared/data/rpms-*/*.rpm")
	if err != nil || len(files) < 30 {
		b.Fatalf("the shared test data is not at ../shared/data beside the project: %v", err)
	}
	var heads, packages [][]byte
	total := 0
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			b.Fatal(err)
		}
		p, err := rpm.Read(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			b.Fatal(err)
		}
		heads, packages = append(heads, p.Header.Raw()), append(packages, raw)
		total += len(p.Header.Raw())
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	b.Logf("%d main headers of %d bytes on average", len(heads), total/len(heads))
	rates := map[string]float64{}
	// run times pass, which reads the given number of headers.
	run := func(name string, headers int, pass func(b *testing.B)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			start := cpu(b)
			for b.Loop() {
				pass(b)
			}
			rates[name] = float64(headers*b.N) / (cpu(b) - start).Seconds()
			b.ReportMetric(rates[name], "headers/s")
		})
	}
	run("parse", len(heads), func(b *testing.B) {
		for _, raw := range heads {
			if _, _, err := rpm.ParseHeader(raw); err != nil {
				b.Fatal(err)
			}
		}
	})
	sum := 0
	run("index", len(heads), func(b *testing.B) {
		for _, raw := range heads {
			h, _, err := rpm.ParseHeader(raw)
			if err != nil {
				b.Fatal(err)
			}
			sum += index(h)
		}
	})
	run("packages/drover", 2*len(heads), func(b *testing.B) {
		for _, raw := range packages {
			p, err := rpm.Read(bytes.NewReader(raw), int64(len(raw)))
			if err != nil {
				b.Fatal(err)
			}
			sum += index(p.Header)
		}
	})
	run("packages/cavaliergopher", 2*len(heads), func(b *testing.B) {
		for _, raw := range packages {
			p, err := cavalier.Read(bytes.NewReader(raw))
			if err != nil {
				b.Fatal(err)
			}
			sum += len(p.Name()) + len(p.Version()) + len(p.Release()) + len(p.Architecture()) + len(p.Requires()) + len(p.Provides())
		}
	})
	args := []string{"-qp", "--nosignature", "--nodigest", "--qf", "%{NEVRA} [%{REQUIRENAME}%{REQUIREVERSION}%{REQUIREFLAGS} ][%{PROVIDENAME}%{PROVIDEVERSION}%{PROVIDEFLAGS} ][%{FILENAMES}%{FILEMODES}%{FILEFLAGS} ]"}
	for range 20 { // so that its start counts little
		args = append(args, files...)
	}
	run("packages/rpm", 2*20*len(files), func(b *testing.B) {
		if out, err := exec.Command("rpm", args...).Output(); err != nil || len(out) == 0 {
			b.Fatal(err)
		}
	})
	if sum == 0 {
		b.Error("nothing read")
	}
	for _, peer := range []string{"cavaliergopher", "rpm"} {
		if r := rates["packages/"+peer]; r > 0 {
			b.Logf("%.1f times as fast as %s", rates["packages/drover"]/r, peer)
		}
	}
}

// cpu is the processor time of this process and those that it started and waited for.
func cpu(b *testing.B) (d time.Duration) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		d += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return d
}

// index goes through what a repository's index needs of a header, and returns something of
// all of it.
func index(h rpm.Header) int {
	n := len(h.Text(rpm.Name)) + len(h.Text(rpm.Version)) + len(h.Text(rpm.Release)) + len(h.Text(rpm.Arch)) + int(h.Int(rpm.Epoch))
	for k := rpm.Requires; k <= rpm.Enhances; k++ {
		for d := h.Deps(k); d.Next(); {
			n += len(d.Name()) + len(d.EVR()) + int(d.Flags()&1)
		}
	}
	for f, err := h.FileWalk(); err == nil && f.Next(); {
		n += len(f.Dir()) + len(f.Base()) + int(f.Mode()&1) + int(f.Flags()&1)
	}
	return n
}
