package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"drover/internal/fleet"
	"drover/internal/job"
	"drover/internal/job/wire"
	"drover/internal/teststream"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestGuest brings the agent to a host as a team would: its package is built, signed and published
// by drover, installed by dnf with signatures checked, and let in by a ticket. The short form has a
// root on this machine for a host, the long one a machine of its own in an emulator: there every
// execution module is called over the bus, the tests of the agent's packages run, and the agent is
// upgraded, also to a version that does not work.
func TestGuest(t *testing.T) {
	if os.Getenv("DROVER_LONG") != "" {
		bootedGuest(t)
		return
	}
	g := newGuests(t, "127.0.0.1", upstream(t))
	g.bring("1.0", false)
	g.root()
}

// guests is a site whose hosts are real.
type guests struct {
	*site
	CA      string
	Pin     string
	address string // of the server, as hosts see it
}

// newGuests starts a site with TLS that hosts reach under a name of their own.
func newGuests(t testing.TB, name, upstream string) *guests {
	t.Helper()
	listen, bus := freeAddress(t), freeAddress(t)
	s := newSite(t, memory(t), "", "--tls", "--name", name, "--bus-listen", bus)
	g := &guests{site: s, CA: filepath.Join(s.roleDir(server), "tls", "ca.pem"), address: "https://" + name + listen[strings.LastIndex(listen, ":"):]}
	// Everybody at this site trusts its CA, as soon as it has one.
	bin := filepath.Join(s.Dir, "drover")
	if err := os.WriteFile(bin, fmt.Appendf(nil, "#!/bin/sh\n[ ! -s %[1]s ] || export DROVER_CA=%[1]s\nexec %[2]s \"$@\"\n", g.CA, s.Bin), 0o755); err != nil {
		t.Fatal(err)
	}
	s.Bin, s.URL = bin, "http://"+listen // what --listen is made of
	p := s.startServer()
	s.URL = "https://" + listen
	g.until("the server serves", time.Minute, func() bool {
		_, err := g.read("/api/v1/channels")
		return err == nil
	})
	m := reToken.FindStringSubmatch(s.output(server, p))
	if m == nil {
		t.Fatalf("the server shows no token: %s", s.output(server, p))
	}
	s.Token = m[1]
	g.Pin = strings.TrimSpace(s.must("host", "pin"))

	s.must("sign", "key", "create", "guest", "--tag", "guest*", "--algo", "ed25519")
	s.must("mirror", "set", "stream", upstream)
	s.must("mirror", "sync", "stream")
	s.must(buildTag("g", "gzip", "tar")...)
	s.must("tag", "set", "guest", "--arch", "x86_64", "--key", "guest")
	s.must("target", "set", "guest", "--build-tag", "base", "--dest-tag", "guest")
	s.must("pkg", "create", "drover-agent")
	return g
}

// until waits for something to become so.
func (g *guests) until(what string, most time.Duration, ok func() bool) {
	g.Helper()
	for end := time.Now().Add(most); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			g.Fatalf("it did not come to be within %s: %s", most, what)
		}
	}
}

// read reads something without a token, by the name that hosts use.
func (g *guests) read(path string) (string, error) {
	pem, err := os.ReadFile(g.CA)
	if err != nil {
		return "", err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	req, err := http.NewRequest(http.MethodGet, g.URL+path, nil)
	if err != nil {
		return "", err
	}
	req.Host = strings.TrimPrefix(g.address, "https://")
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, resp.Status)
	}
	return string(b), err
}

// repos is the .repo files of the agent's channel and of the distribution.
func (g *guests) repos() string {
	g.Helper()
	out := ""
	for _, c := range []string{"guest", "stream"} {
		b, err := g.read("/channels/" + c + ".repo")
		if err != nil {
			g.Fatal(err)
		}
		if c == "guest" && (!strings.Contains(b, "repo_gpgcheck=1") || !strings.Contains(b, "\ngpgcheck=1") || !strings.Contains(b, g.address)) {
			g.Fatalf("the channel is not signed: %s", b)
		}
		out += b
	}
	return out
}

// bring takes a version of the agent's package from the source to the channel. A broken one has a
// program that does nothing but fail.
func (g *guests) bring(version string, broken bool) {
	g.Helper()
	work := filepath.Join(g.Dir, "work", "agent-"+version)
	g.must("pkg", "clone", "drover-agent", work)
	c := exec.Command("../scripts/agent-package", version, work)
	if out, err := c.CombinedOutput(); err != nil {
		g.Fatalf("scripts/agent-package: %v: %s", err, out)
	}
	tarball := filepath.Join(work, "drover-agent-"+version+".tar.gz")
	if broken {
		breakProgram(g, tarball)
	}
	if _, err := g.run(work, g.Bin, "pkg", "new-sources", tarball); err != nil {
		g.Fatal(err)
	}
	for _, args := range [][]string{{"add", "-A"}, {"commit", "-q", "-m", "Version " + version}, {"push", "-q", "origin", "HEAD:main"}} {
		if _, err := g.run(work, "git", args...); err != nil {
			g.Fatal(err)
		}
	}
	if out, err := g.drover("pkg", "build", "drover-agent", "--target", "guest", "--wait"); err != nil {
		g.Fatal(out, err)
	}
	g.until("drover-agent-"+version+" is published", time.Minute, func() bool {
		out, err := g.drover("search", "drover-agent", "--channel", "guest")
		return err == nil && strings.Contains(out, "drover-agent-"+version+"-1.g")
	})
}

// breakProgram replaces the program in a source of the agent.
func breakProgram(t testing.TB, tarball string) {
	t.Helper()
	b, err := os.ReadFile(tarball)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	in, w, found := tar.NewReader(z), tar.NewWriter(zw), false
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(h.Name, "/drover-agent") {
			found, data = true, []byte("#!/bin/sh\necho this version does not work >&2\nexit 1\n")
			h.Size = int64(len(data))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), zw.Close()); err != nil || !found {
		t.Fatalf("the program is in %s: %v, %v", tarball, found, err)
	}
	if err := os.WriteFile(tarball, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// ticketFor makes a ticket for a host.
func (g *guests) ticketFor(host string) string {
	g.Helper()
	var ts []string
	g.answer(&ts, "host", "ticket", host, "--label", "kind=guest")
	if len(ts) != 1 {
		g.Fatalf("tickets: %v", ts)
	}
	return ts[0]
}

// member waits until a host is there, with a version of the agent.
func (g *guests) member(name, version string, most time.Duration) fleet.Host {
	g.Helper()
	var hs []fleet.Host
	g.until(name+" is there with "+version, most, func() bool {
		g.answer(&hs, "host", "list", name)
		return len(hs) == 1 && hs[0].Presence == fleet.Online && hs[0].Version == version
	})
	return hs[0]
}

// order runs a function on one host and gives the job. words are those of a command line.
func (g *guests) order(host string, words ...string) job.Whole {
	g.Helper()
	args := []string{"run", "-o", "json", "-t", "15m", host}
	out, err := g.drover(append(args, words...)...)
	var w job.Whole
	if jerr := json.Unmarshal([]byte(out), &w); jerr != nil || len(w.Hosts) != 1 {
		g.Errorf("%q: %v, %v: %s", words, err, jerr, out)
		return job.Whole{Hosts: []job.Verdict{{Host: host}}}
	}
	v := &w.Hosts[0]
	if v.Blob != "" { // the verdict has its beginning only
		out, err := g.drover("job", "output", w.ID, v.Host)
		if err != nil || int64(len(out)) != v.Size {
			g.Errorf("%q: %d bytes, %d came: %v", words, v.Size, len(out), err)
		}
		v.Return = json.RawMessage(out)
	}
	var compact bytes.Buffer // what is printed is for people
	if len(v.Return) > 0 && json.Compact(&compact, v.Return) == nil {
		v.Return = compact.Bytes()
	}
	return w
}

// call runs a function on one host and gives its verdict.
func (g *guests) call(host string, words ...string) job.Verdict {
	g.Helper()
	return g.order(host, words...).Hosts[0]
}

// shell runs a command line on a host; it has to go well.
func (g *guests) shell(host, line string) string {
	g.Helper()
	v := g.call(host, "--", line)
	var r struct{ Stdout, Stderr string }
	if err := json.Unmarshal(v.Return, &r); err != nil || v.State != wire.Answered {
		g.Errorf("%s: %s %s %s: %s", line, v.State, v.Code, v.Error, v.Return)
	}
	return r.Stdout
}

// root is the short form: a root on this machine that the agent's package is installed into, and
// the agent confined to it.
func (g *guests) root() {
	g.Helper()
	const name = "root-01.example.org"
	root := filepath.Join(g.Dir, "hosts", "root", "root")
	if err := teststream.Devices(root); err != nil {
		g.Fatal(err)
	}
	// dnf runs on this machine: it trusts the site's CA by the .repo file.
	repos := strings.ReplaceAll(g.repos(), "metadata_expire=1\n", "metadata_expire=1\nsslcacert="+g.CA+"\n")
	if out, err := g.host("root", repos, "install", "drover-agent", "bash", "coreutils", "system-release"); err != nil {
		g.Fatal(out, err)
	}
	if _, err := g.run(g.Dir, "rpm", "--root="+root, "-V", "drover-agent"); err != nil {
		g.Errorf("what is installed is not what the package says: %v", err)
	}
	if out, err := g.run(g.Dir, "rpm", "--root="+root, "-q", "--qf", "%{sigmd5} %|DSAHEADER?{%{DSAHEADER:pgpsig}}:{%{RSAHEADER:pgpsig}}|", "drover-agent"); err != nil || !strings.Contains(out, "EdDSA") && !strings.Contains(out, "Key ID") {
		g.Errorf("no signature is kept with the package: %s, %v", out, err)
	}
	if err := unix.Mount("proc", filepath.Join(root, "proc"), "proc", 0, ""); err != nil {
		g.Fatal(err)
	}
	confined := func(env []string, args ...string) *exec.Cmd {
		c := exec.Command("/usr/bin/drover-agent", args...)
		c.Dir, c.Env = "/", append([]string{"PATH=/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8", "HOME=/root"}, env...)
		c.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Setpgid: true, Pdeathsig: syscall.SIGKILL}
		return c
	}
	if out, err := confined([]string{"DROVER_TICKET=" + g.ticketFor("root-02*")}, "enrol", g.address, "--pin", g.Pin, "--name", name).CombinedOutput(); err == nil || !strings.Contains(string(out), "(ticket") {
		g.Errorf("the ticket of another host lets this one in: %v: %s", err, out)
	}
	if out, err := confined([]string{"DROVER_TICKET=" + g.ticketFor("root-01*")}, "enrol", g.address, "--pin", g.Pin, "--name", name).CombinedOutput(); err != nil || !strings.Contains(string(out), name) {
		g.Fatalf("enrol: %v: %s", err, out)
	}
	log, err := os.Create(g.logFile("agent"))
	if err != nil {
		g.Fatal(err)
	}
	defer log.Close()
	c := confined(nil, "run")
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		g.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	defer func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				g.Errorf("the agent ends with %v", err)
			}
		case <-time.After(20 * time.Second):
			_ = c.Process.Kill()
			g.Errorf("the agent does not end: %v", <-ended)
		}
		for _, m := range mountsBelow(root) {
			if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
				g.Error(err)
			}
		}
	}()
	h := g.member(name, "1.0", 30*time.Second)
	if h.State != "accepted" || h.Labels["kind"] != "guest" {
		g.Errorf("%+v", h)
	}
	if out := g.must("host", "list"); !regexp.MustCompile(`(?m)^root-01\.example\.org\s.*\b1\.0\b`).MatchString(out) {
		g.Errorf("the list of hosts: %s", out)
	}
	g.calls(name, "testdata/guest/root.txt")
	if out := g.shell("root-01*", "echo $((6*7)) >/srv/answer && cat /srv/answer"); strings.TrimSpace(out) != "42" {
		g.Errorf("a command line printed %q", out)
	}
	if b, err := os.ReadFile(filepath.Join(root, "srv", "answer")); err != nil || string(b) != "42\n" {
		g.Errorf("it did not run in the root: %q, %v", b, err)
	}
	if out, err := g.drover("run", "root-01*", "--", "exit 3"); err == nil {
		g.Errorf("a command line that fails: %s", out)
	}
}

// calls makes each call of a file and compares what the host answers. A line is a call, one of
//
//	== JSON     the result, as JSON
//	=~ REGEXP   of the result as JSON
//	=! REGEXP   of code and message of the error, or of the result where the return code is not 0
//
// and what is wanted. Words stand as in a shell, with single and double quotes; ${SERVER} is the
// server's URL. All failures are collected.
func (g *guests) calls(host, file string) {
	g.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		g.Fatal(err)
	}
	n := 0
	for number, l := range strings.Split(string(b), "\n") {
		if l = strings.TrimSpace(l); l == "" || l[0] == '#' {
			continue
		}
		l = strings.ReplaceAll(l, "${SERVER}", g.address)
		m := regexp.MustCompile(`^(.*?) (==|=~|=!) (.*)$`).FindStringSubmatch(l)
		if m == nil {
			g.Fatalf("%s:%d: no call: %s", file, number+1, l)
		}
		words, err := split(m[1])
		if err != nil {
			g.Fatalf("%s:%d: %v", file, number+1, err)
		}
		v := g.call(host, words...)
		n++
		bad := func(format string, args ...any) {
			g.Errorf("%s:%d: %s: %s\n\tit is %s %s %s, return code %d: %.3000s", file, number+1, m[1], fmt.Sprintf(format, args...), v.State, v.Code, v.Error, v.RC, v.Return)
		}
		switch m[2] {
		case "==":
			var got, want any
			if err := json.Unmarshal([]byte(m[3]), &want); err != nil {
				g.Fatalf("%s:%d: %v", file, number+1, err)
			}
			if len(v.Return) > 0 {
				if err := json.Unmarshal(v.Return, &got); err != nil {
					bad("%v", err)
				}
			}
			a, _ := json.Marshal(got)
			b, _ := json.Marshal(want)
			if v.State != wire.Answered || !bytes.Equal(a, b) {
				bad("want %s", m[3])
			}
		case "=~":
			if v.State != wire.Answered || !regexp.MustCompile(m[3]).Match(v.Return) {
				bad("want %s", m[3])
			}
		default:
			if v.State == wire.Answered || !regexp.MustCompile(m[3]).MatchString(fmt.Sprintf("%s %s %s", v.Code, v.Error, v.Return)) {
				bad("want the failure %s", m[3])
			}
		}
	}
	g.Logf("%d calls of %s", n, file)
}

// split makes words of a line as a shell does, but knows quotes only.
func split(line string) (words []string, err error) {
	var b strings.Builder
	var quote rune
	in := false
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			b.WriteRune(r)
		case r == '\'' || r == '"':
			quote, in = r, true
		case r == ' ':
			if in || b.Len() > 0 {
				words = append(words, b.String())
			}
			b.Reset()
			in = false
		default:
			b.WriteRune(r)
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quote is open: %s", line)
	}
	if in || b.Len() > 0 {
		words = append(words, b.String())
	}
	return words, nil
}

// guest is a machine in an emulator.
const guest = "guest-01.example.org"

// bootedGuest is the long form.
func bootedGuest(t *testing.T) {
	began := time.Now()
	stage := func(what string) { t.Logf("%6.1f s  %s", time.Since(began).Seconds(), what) }
	dir := filepath.Join(t.TempDir(), "stream")
	if _, err := teststream.Make(t.Context(), teststream.Config{Dir: dir, Set: teststream.All}); err != nil {
		t.Fatal(err)
	}
	up := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer up.Close()
	g := newGuests(t, "10.0.2.2", up.URL+"/")
	g.bring("1.0", false)
	stage("the agent is published")
	image, kernel := g.image()
	stage("the image is made")
	m := g.boot(image, kernel)
	stage("the guest is up")
	m.ask("dnf -y install drover-agent", 10*time.Minute)
	if got := m.ask("rpm -q --qf '%{version} %{rsaheader:pgpsig}%{dsaheader:pgpsig}\\n' drover-agent", time.Minute); !strings.Contains(got, "1.0 ") || !strings.Contains(got, "Key ID") {
		t.Errorf("the installed package: %s", got)
	}
	stage("dnf has installed the agent")
	m.ask("DROVER_TICKET="+g.ticketFor(guest)+" drover-agent enrol "+g.address+" --pin "+g.Pin, 2*time.Minute)
	m.ask("systemctl enable --now drover-agent", time.Minute)
	g.member(guest, "1.0", 2*time.Minute)
	stage("the agent is there")
	t.Run("inventory", func(t *testing.T) { g.on(t, m, g.inventory) })
	t.Run("modules", func(t *testing.T) { g.on(t, m, g.modules) })
	stage("the modules were called")
	t.Run("tests", func(t *testing.T) { g.on(t, m, g.tests) })
	stage("the tests of the agent's packages ran")
	t.Run("upgrade", func(t *testing.T) { g.on(t, m, g.upgrade) })
	stage("the agent was upgraded and came back")
	g.call(guest, "cmd.run", "systemd-run --on-active=2 systemctl poweroff")
	m.off()
	g.until("the guest is gone", 2*time.Minute, func() bool {
		var hs []fleet.Host
		g.answer(&hs, "host", "list", guest)
		return len(hs) == 1 && hs[0].Presence == fleet.Offline
	})
	stage("the guest is off")
}

// on runs a part as a test of its own.
func (g *guests) on(t *testing.T, m *machine, part func(*machine)) {
	whole := g.TB
	g.TB, m.TB = t, t
	defer func() { g.TB, m.TB = whole, whole }()
	part(m)
}

// image makes the disk of a machine that has what the set to boot has, and the tests of the
// agent's packages. kernel is what it boots.
func (g *guests) image() (image, kernel string) {
	g.Helper()
	root := filepath.Join(g.Dir, "hosts", "boot", "root")
	if err := teststream.Devices(root); err != nil {
		g.Fatal(err)
	}
	repos := strings.ReplaceAll(g.repos(), g.address, g.URL)
	if out, err := g.host("boot", strings.ReplaceAll(repos, "metadata_expire=1\n", "metadata_expire=1\nsslcacert="+g.CA+"\n"), "install", "@boot", "patch", "unzip"); err != nil {
		g.Fatal(out, err)
	}
	kernels, err := filepath.Glob(filepath.Join(root, "usr/lib/modules/*/vmlinuz"))
	if err != nil || len(kernels) != 1 {
		g.Fatalf("kernels: %v, %v", kernels, err)
	}
	g.compile(filepath.Join(root, "opt", "tests"))
	ca, err := os.ReadFile(g.CA)
	if err != nil {
		g.Fatal(err)
	}
	for file, text := range map[string]string{"etc/hostname": guest + "\n", "etc/fstab": "/dev/nvme0n1 / ext4 defaults 0 1\n", "etc/yum.repos.d/drover.repo": g.repos(), "usr/local/share/ca-certificates/drover.crt": string(ca),
		"etc/hosts": "127.0.0.1 localhost\n10.0.2.15 " + guest + " guest-01\n"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, file)), 0o755), os.WriteFile(filepath.Join(root, file), []byte(text), 0o644)); err != nil {
			g.Fatal(err)
		}
	}
	for _, args := range [][]string{{"passwd", "-d", "root"}, {"update-ca-certificates"}, {"systemctl", "set-default", "multi-user.target"}} {
		c := exec.Command(args[0], args[1:]...)
		c.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		c.Dir, c.Env = "/", []string{"PATH=/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8", "HOME=/root"}
		if out, err := c.CombinedOutput(); err != nil {
			g.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	image = filepath.Join(g.Dir, "image")
	if _, err := g.run(g.Dir, "mke2fs", "-q", "-t", "ext4", "-d", root, "-E", "root_owner=0:0", image, "2500M"); err != nil {
		g.Fatal(err)
	}
	kernel = filepath.Join(g.Dir, "vmlinuz")
	b, err := os.ReadFile(kernels[0])
	if err != nil {
		g.Fatal(err)
	}
	g.write(kernel, b)
	if err := os.RemoveAll(root); err != nil {
		g.Fatal(err)
	}
	return image, kernel
}

// write writes a file of the test's.
func (g *guests) write(file string, b []byte) {
	g.Helper()
	if err := os.WriteFile(file, b, 0o644); err != nil {
		g.Fatal(err)
	}
}

// machine is a machine that is on, with its serial console.
type machine struct {
	testing.TB
	keys  io.Writer
	ended chan error

	mu     sync.Mutex // guards what follows
	screen bytes.Buffer
	seen   int      // what was waited for already ends here
	log    *os.File // the screen too, for whoever looks on
}

// Write takes what the machine prints.
func (m *machine) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.screen.Write(b)
	return m.log.Write(b)
}

// boot switches a machine on and logs in at its console.
func (g *guests) boot(image, kernel string) *machine {
	g.Helper()
	ctx, stop := context.WithCancel(context.Background())
	c := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg,tb-size=512", "-cpu", "Nehalem", "-m", "1024", "-smp", "2", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", kernel, "-append", "root=/dev/nvme0n1 rw console=ttyS0 systemd.show_status=0 quiet", "-drive", "file="+image+",if=none,id=d,format=raw", "-device", "nvme,drive=d,serial=1",
		"-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n", "-device", "virtio-rng-pci")
	keys, err := c.StdinPipe()
	if err != nil {
		g.Fatal(err)
	}
	log, err := os.Create(g.logFile("console"))
	if err != nil {
		g.Fatal(err)
	}
	m := &machine{TB: g.TB, keys: keys, ended: make(chan error, 1), log: log}
	c.Stdout, c.Stderr = m, m
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		g.Fatal(err)
	}
	go func() { m.ended <- c.Wait() }()
	g.Cleanup(func() {
		stop()
		<-m.ended
		_ = log.Close()
	})
	m.wait("guest-01 login:", 10*time.Minute)
	m.say("root")
	m.wait("# ", 2*time.Minute)
	m.ask("bind 'set enable-bracketed-paste off'; stty cols 500; dmesg -n 1", time.Minute)
	m.ask("systemctl is-system-running --wait", 5*time.Minute)
	return m
}

// wait waits until the machine prints something, and gives what it printed before.
func (m *machine) wait(text string, most time.Duration) string {
	m.Helper()
	for end := time.Now().Add(most); ; time.Sleep(20 * time.Millisecond) {
		m.mu.Lock()
		b := m.screen.Bytes()[m.seen:]
		i := bytes.Index(b, []byte(text))
		if i >= 0 {
			m.seen += i + len(text)
			out := string(b[:i])
			m.mu.Unlock()
			return out
		}
		m.mu.Unlock()
		select {
		case err := <-m.ended:
			m.ended <- err
			m.Fatalf("the machine ended before it said %q: %v\n%s", text, err, b)
		default:
		}
		if time.Now().After(end) {
			m.Fatalf("no %q within %s: %s", text, most, b[max(0, len(b)-4000):])
		}
	}
}

func (m *machine) say(line string) {
	if _, err := io.WriteString(m.keys, line+"\n"); err != nil {
		m.Fatal(err)
	}
}

// ask runs a command at the console, which has to go well, and gives what it printed. What is typed
// may be echoed: the words that are waited for are put together by the shell.
func (m *machine) ask(command string, most time.Duration) string {
	m.Helper()
	m.say(command + "; echo end''-of-$?-")
	out := m.wait("end-of-", most)
	if code := m.wait("-", time.Minute); code != "0" {
		m.Errorf("%s: exit code %s: %s", command, code, out)
	}
	m.wait("# ", time.Minute)
	return strings.ReplaceAll(out, "\r", "")
}

// off waits until a machine that was told so is off.
func (m *machine) off() {
	m.Helper()
	select {
	case err := <-m.ended:
		m.ended <- err
		if err != nil {
			m.Errorf("the machine ends with %v", err)
		}
	case <-time.After(3 * time.Minute):
		m.Errorf("the machine does not switch itself off")
	}
}

// facts are what the server knows of the guest, of a kind.
func (g *guests) facts(kind string) map[string]string {
	g.Helper()
	var fs []fleet.Fact
	g.answer(&fs, "host", "facts", guest, "--kind", kind, "-n", "20000")
	out := map[string]string{}
	for _, f := range fs {
		out[f.Key] = f.Value
	}
	return out
}

// inventory compares what the server knows of the guest with what the guest says itself.
func (g *guests) inventory(m *machine) {
	g.until("the guest has told of itself", 2*time.Minute, func() bool { return len(g.facts("package")) > 0 })
	kernel := strings.TrimSpace(g.shell(guest, "uname -r"))
	fs := g.facts("fact")
	for k, want := range map[string]string{"id": guest, "fqdn": guest, "host": "guest-01", "domain": "example.org", "kernel": "Linux", "kernelrelease": kernel, "osmajorrelease": "9", "osarch": "x86_64", "cpuarch": "x86_64",
		"num_cpus": "2", "init": "systemd", "os_family": "RedHat", "master": g.address} {
		if got := fs[k]; got != want {
			g.Errorf("the fact %s is %q, want %q", k, got, want)
		}
	}
	for k, want := range map[string]string{"os": `^(CentOS|drover)`, "osfinger": `-9$`, "virtual": `^(kvm|qemu)$`, "systemd:version": `^25`, "mem_total": `^9[0-9][0-9]$`, "machine_id": `^[0-9a-f]{32}$`} {
		if !regexp.MustCompile(want).MatchString(fs[k]) {
			g.Errorf("the fact %s is %q, want %s", k, fs[k], want)
		}
	}
	addresses := ""
	for k, v := range fs {
		if strings.HasPrefix(k, "ipv4") {
			addresses += " " + v
		}
	}
	if !strings.Contains(addresses, "10.0.2.15") {
		g.Errorf("no address: %q", addresses)
	}
	var have []string
	for name, v := range g.facts("package") {
		have = append(have, name+" "+v)
	}
	rpms := strings.Split(strings.TrimSpace(g.shell(guest, "rpm -qa --qf '%{name} %{evr}.%{arch}\\n' | grep -v ^gpg-pubkey")), "\n")
	slices.Sort(have)
	slices.Sort(rpms)
	if d := cmp.Diff(rpms, have); d != "" {
		g.Errorf("packages differ (- rpm, + drover): %s", d)
	}
	services := g.facts("service")
	for _, s := range []string{"chrony", "ssh", "drover-agent", "dbus", "systemd-networkd"} {
		if v := services[s]; !strings.Contains(v, "running") {
			g.Errorf("the service %s is %q", s, v)
		}
	}
	if v := g.facts("port")["tcp/22"]; !strings.Contains(v, "ssh") {
		g.Errorf("port 22 is of %q: %v", v, g.facts("port"))
	}
}

// modules calls functions of every execution module.
func (g *guests) modules(*machine) { g.calls(guest, "testdata/guest/guest.txt") }

// packagesOfAgent are the packages of the agent's that have tests.
func (g *guests) packagesOfAgent() (names, dirs []string) {
	out, err := exec.Command("go", "list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}", "drover/internal/agent/...").Output()
	if err != nil {
		g.Fatal(err)
	}
	for l := range strings.Lines(string(out)) {
		f := strings.Fields(l)
		if len(f) == 2 {
			names, dirs = append(names, f[0]), append(dirs, f[1])
		}
	}
	return names, dirs
}

// compile puts the tests of the agent's packages, with their data, below a directory.
func (g *guests) compile(dir string) {
	g.Helper()
	names, dirs := g.packagesOfAgent()
	for i, name := range names {
		to := filepath.Join(dir, testName(name))
		if err := os.MkdirAll(to, 0o755); err != nil {
			g.Fatal(err)
		}
		c := exec.Command("go", "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(to, "run.test"), name)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			g.Errorf("%s: %v: %s", name, err, out)
			continue
		}
		if _, err := os.Stat(filepath.Join(dirs[i], "testdata")); err == nil {
			if err := os.CopyFS(filepath.Join(to, "testdata"), os.DirFS(filepath.Join(dirs[i], "testdata"))); err != nil {
				g.Fatal(err)
			}
		}
	}
}

func testName(pkg string) string {
	return strings.ReplaceAll(strings.TrimPrefix(pkg, "drover/internal/"), "/", "-")
}

// unfit are the tests that a guest cannot run, by package: a pattern of their names, or "".
func unfit(pkg string) string {
	switch strings.TrimPrefix(pkg, "drover/internal/agent/") {
	case "grains":
		return "^TestHostilePrograms$" // an emulator may take longer than the two seconds that programs have there
	case "rpmdb": // these make databases of real packages, which lie beside the project; `inventory` compares the guest's own
		return "^(TestPackagesAreThoseThatRPMLists|TestSignaturesTellTheKey|TestLabelsAreReadAsRPMReadsThem|TestFilesAreThoseThatRPMLists|TestOwner|TestVerifyFindsWhatRPMFinds)$"
	case "module/network":
		return "^TestGit$" // the distribution has no git
	case "module/software":
		return "^TestAlternativesForReal$|^TestPackagesForReal$" // it has neither alternatives nor createrepo_c
	}
	return ""
}

// tests runs the tests of the agent's packages in the guest, by the agent itself.
func (g *guests) tests(*machine) {
	names, _ := g.packagesOfAgent()
	for _, pkg := range names {
		line := "cd /opt/tests/" + testName(pkg) + " && ./run.test -test.short -test.v -test.timeout=10m"
		if skip := unfit(pkg); skip != "" {
			line += " -test.skip='" + skip + "'"
		}
		v := g.call(guest, "--", line+" >/tmp/log 2>&1 || { code=$?; grep -v -e '^=== ' -e '^--- PASS' /tmp/log | tail -c 12000; exit $code; }; grep -c '^--- PASS' /tmp/log")
		var r struct{ Stdout, Stderr string }
		if err := json.Unmarshal(v.Return, &r); err != nil {
			r.Stderr = err.Error()
		}
		if v.State != wire.Answered {
			g.Errorf("the tests of %s in the guest: %s %s %s\n%s%s", pkg, v.State, v.Code, v.Error, r.Stdout, r.Stderr)
			continue
		}
		g.Logf("%s: %s tests passed in %.1f s", pkg, strings.TrimSpace(r.Stdout), v.Took)
	}
}

// upgrade has the agent upgrade itself by its schedule, by a job, and to a version that does not work.
func (g *guests) upgrade(m *machine) {
	g.bring("1.0.1", false)
	m.ask(`printf 'schedule:\n  new-agent: {function: agent.upgrade, seconds: 90}\n' >> /etc/drover/agent.yaml && systemctl restart drover-agent`, 2*time.Minute)
	g.member(guest, "1.0.1", 10*time.Minute)
	// dnf came to its end although the agent that ran it was stopped meanwhile: one version is left.
	if got := m.ask(`sed -i '/^schedule:/,$d' /etc/drover/agent.yaml; systemctl restart drover-agent; rpm -q --qf 'package %{version}\n' drover-agent; dnf history info last | grep Return-Code`, 3*time.Minute); strings.Count(got, "\npackage ") != 1 || !strings.Contains(got, "package 1.0.1\n") || !strings.Contains(got, "Success") {
		g.Errorf("after the upgrade by schedule: %s", got)
	}
	g.bring("1.1", false)
	j := g.order(guest, "agent.upgrade")
	g.member(guest, "1.1", 5*time.Minute)
	if got := m.ask("rpm -q --qf 'package %{version}\\n' drover-agent; drover-agent version", time.Minute); !strings.Contains(got, "package 1.1\n") || !strings.Contains(got, "drover-agent 1.1\n") {
		g.Errorf("after the upgrade: %s", got)
	}
	// The agent went away in the middle of it, and told what became of it when it was back.
	g.until("the upgrade is told of", 2*time.Minute, func() bool {
		var w job.Whole
		g.answer(&w, "job", "show", j.ID)
		return len(w.Hosts) == 1 && w.Hosts[0].State == wire.Answered && regexp.MustCompile(`"to": *"drover-agent-1\.1-`).Match(w.Hosts[0].Return)
	})

	g.bring("1.2", true)
	began := time.Now()
	v := g.call(guest, "agent.upgrade", "wait=60")
	g.Logf("the upgrade to what does not work: %s %s %s %s", v.State, v.Code, v.Error, v.Return)
	g.until("the guest has what does not work, and is away", 3*time.Minute, func() bool {
		var hs []fleet.Host
		g.answer(&hs, "host", "list", guest)
		return len(hs) == 1 && hs[0].Presence == fleet.Offline
	})
	g.member(guest, "1.1", 6*time.Minute)
	g.Logf("it was back %s after the command", time.Since(began).Round(time.Second))
	got := m.ask("drover-agent version; systemctl is-active drover-agent; rpm -q drover-agent; rpm -V drover-agent; journalctl -u drover-agent-return --no-pager -o cat; cat /var/lib/drover-agent/upgrade.json", time.Minute)
	g.Logf("after the way back: %s", got)
	if !strings.Contains(got, "drover-agent 1.1\n") || !strings.Contains(got, "\nactive\n") || !strings.Contains(got, "the old one comes back") {
		g.Errorf("after the way back: %s", got)
	}
	if v := g.call(guest, "test.ping"); string(v.Return) != "true" {
		g.Errorf("after the way back: %+v", v)
	}
}
