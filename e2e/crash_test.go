package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"drover/internal/blob"
	"drover/internal/build"
	"drover/internal/event"
	"drover/internal/repo"

	"github.com/google/go-cmp/cmp"
)

// TestCrash kills server, builder and signer with SIGKILL at random points of the path from a
// push to an installed package, starts them again, and compares the end with that of a site
// that nobody disturbed. Two people work meanwhile and repeat what was not acknowledged; dnf
// installs from the channel all the time. A third promotes, rolls back, holds and freezes on a line
// that follows the channel, and everything that the line's channels name is read all the time.
//
// DROVER_CRASH_SEED repeats a plan of kills, DROVER_CRASH_KILLS sets their number.
func TestCrash(t *testing.T) {
	kills := 4 // on each engine
	if os.Getenv("DROVER_LONG") != "" {
		kills = 100
	}
	kills = int(number(t, "DROVER_CRASH_KILLS", int64(kills)))
	seed := uint64(number(t, "DROVER_CRASH_SEED", time.Now().UnixNano()))

	calm := newScenario(t, newSite(t, memory(t), ""))
	calm.begin("ed25519")
	calm.round(1)
	began := time.Now()
	calm.round(2)
	length := time.Since(began)
	t.Logf("seed %d; an undisturbed round takes %s", seed, length.Round(time.Millisecond))

	whole := t
	engines(t, func(t *testing.T, db string) {
		c := newChaos(t, newScenario(t, newSite(t, memory(t), db, "--no-builder", "--no-signer")), plan(seed, kills, length))
		c.play(seed)
		calm.TB = t
		defer func() { calm.TB = whole }()
		for r := calm.rounds + 1; r <= c.rounds; r++ {
			calm.round(r)
		}
		c.verify(calm)
	})
}

func number(t *testing.T, name string, otherwise int64) int64 {
	if v := os.Getenv(name); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	return otherwise
}

// scenario is two people who bring packages from a push into the channel, round by round.
// Commits and sources depend on nothing but the round.
type scenario struct {
	*site
	rounds int

	mu        sync.Mutex // guards what follows
	pushed    []string   // commits whose push was acknowledged
	uploaded  []string   // sources whose upload was
	submitted []int64    // builds whose submission was
	heads     []string   // of the ledger, as audit verify printed them
	published map[string]int
	states    map[int][]string // what the channel held after each round
	again     int              // builds that were submitted anew because builders were killed too often
}

func newScenario(t testing.TB, s *site) *scenario {
	s.TB = t
	return &scenario{site: s, published: map[string]int{}, states: map[int][]string{}}
}

// The packages: pair has two parts that need each other in the same release, bulk carries a
// source of the lookaside cache.
func packages() []string { return []string{"pair", "bulk"} }

func specFile(name string, round int) string {
	head := fmt.Sprintf("%%global _binary_payload w1.zstdio\n%%global _source_payload w1.zstdio\nName: %s\nVersion: 1\nRelease: %d%%{?dist}\nSummary: For the crash run\nLicense: MIT\n", name, round)
	if name == "bulk" {
		return head + fmt.Sprintf("Source0: bulk-%d.bin\nBuildArch: noarch\n%%description\nA lump.\n%%install\ninstall -D -m 644 %%{SOURCE0} %%{buildroot}/usr/share/bulk/bulk.bin\n%%files\n/usr/share/bulk/bulk.bin\n", round)
	}
	if name == "needs" {
		return head + "Requires: bulk\nBuildArch: noarch\n%description\nNeeds a lump.\n%files\n"
	}
	return head + "Requires: pair-data = %{version}-%{release}\n%global debug_package %{nil}\n%description\nOne half.\n%package data\nSummary: The other\n%description data\nOther half.\n" +
		"%install\nmkdir -p %{buildroot}/usr/share/pair\necho %{release} > %{buildroot}/usr/share/pair/one\necho %{release} > %{buildroot}/usr/share/pair/two\n" +
		"%files\n/usr/share/pair/one\n%files data\n/usr/share/pair/two\n"
}

// begin starts the processes and sets up key, mirror, tags and target.
func (s *scenario) begin(algo string) {
	s.Helper()
	s.start(server)
	if slices.Contains(s.Flags, "--no-builder") {
		s.start(builder)
		s.start(signer)
	}
	s.setUp(algo)
}

// buildTag is the command line that sets the tag base, from which a small package can be built.
func buildTag(dist string, more ...string) []string {
	args := []string{"tag", "set", "base", "--arch", "x86_64", "--mirror", "stream", "--macro", "dist=." + dist}
	for _, p := range append(strings.Fields("bash coreutils cpio diffutils findutils gawk grep redhat-rpm-config rpm-build sed shadow-utils system-release"), more...) {
		args = append(args, "--install", p)
	}
	return args
}

func (s *scenario) setUp(algo string) {
	s.eventually("sign", "key", "create", "crash", "--tag", "crash", "--algo", algo)
	s.eventually("mirror", "set", "stream", upstream(s))
	s.eventually("mirror", "sync", "stream")
	s.eventually(buildTag("c")...)
	s.eventually("tag", "set", "crash", "--arch", "x86_64", "--key", "crash")
	s.eventually("target", "set", "crash", "--build-tag", "base", "--dest-tag", "crash")
}

// round lets both people do their next package, at the same time.
func (s *scenario) round(r int) {
	var wg sync.WaitGroup
	for _, name := range packages() {
		wg.Go(func() {
			s.bring(name, r)
		})
	}
	wg.Wait()
	if s.Failed() {
		s.FailNow()
	}
	s.rounds = r
	s.insist(func() (err error) { s.states[r], err = s.channel("crash"); return err })
	var head event.Head
	s.insist(func() error {
		out, err := s.drover("audit", "verify", "-o", "json")
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(out), &head)
	})
	s.heads = append(s.heads, fmt.Sprintf("%d:%s", head.ID, head.Hash))
}

// bring takes one package through one round.
func (s *scenario) bring(name string, r int) {
	work := filepath.Join(s.Dir, "work", name)
	if r == 1 {
		s.insist(func() error {
			_, err := s.drover("pkg", "create", name)
			if err != nil && strings.Contains(err.Error(), "(repo_exists)") {
				return nil // the answer to the first try was lost
			}
			return err
		})
		s.insist(func() error {
			_ = os.RemoveAll(work)
			_, err := s.drover("pkg", "clone", name, work)
			return err
		})
	}
	if name == "bulk" {
		file := filepath.Join(work, fmt.Sprintf("bulk-%d.bin", r))
		s.write(file, lump(r))
		s.insist(func() error { _, err := s.run(work, s.Bin, "pkg", "new-sources", file); return err })
		s.note(func() { s.uploaded = append(s.uploaded, filepath.Base(file)) })
	}
	s.write(filepath.Join(work, name+".spec"), []byte(specFile(name, r)))
	for _, args := range [][]string{{"add", "-A"}, {"commit", "-q", "-m", fmt.Sprintf("Round %d", r)}} {
		s.insist(func() error { _, err := s.run(work, "git", args...); return err })
	}
	s.insist(func() error { _, err := s.run(work, "git", "push", "-q", "origin", "HEAD:main"); return err })
	commit := ""
	s.insist(func() (err error) { commit, err = s.run(work, "git", "rev-parse", "HEAD"); return err })
	commit = strings.TrimSpace(commit)
	s.note(func() { s.pushed = append(s.pushed, commit) })

	for !s.built(name, commit) {
		s.note(func() { s.again++ })
	}
	nvr := fmt.Sprintf("%s-1-%d.c", name, r)
	s.insist(func() error {
		for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if files, err := s.channel("crash"); err != nil {
				return err
			} else if slices.ContainsFunc(files, func(f string) bool { return strings.HasPrefix(f, nvr+".") }) {
				return nil
			}
		}
		return fmt.Errorf("%s is not published within 90 s", nvr)
	})
	s.note(func() { s.published[name] = r })
}

func (s *scenario) note(fn func()) { s.mu.Lock(); defer s.mu.Unlock(); fn() }

func (s *scenario) write(file string, data []byte) {
	if err := os.WriteFile(file, data, 0o644); err != nil {
		s.Error(err)
		s.FailNow()
	}
}

// lump is a source that doesn't compress, the same in each run.
func lump(round int) []byte {
	b := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{byte(round), byte(round >> 8)}).Read(b)
	return b
}

// built submits a build of a commit, unless there is one, and waits for its end. It is false
// when builders were killed too often for it: then a person submits it again.
func (s *scenario) built(name, commit string) bool {
	var id int64
	s.insist(func() error {
		var have []build.Build
		if err := s.get("/api/v1/builds?commit="+commit, &have); err != nil {
			return err
		}
		for _, b := range have {
			if b.State == build.Building || b.State == build.Complete {
				id = b.ID
				return nil
			}
		}
		out, err := s.drover("pkg", "build", name, "--target", "crash", "--ref", commit)
		if err == nil {
			id, err = strconv.ParseInt(strings.TrimSpace(out), 10, 64)
			s.note(func() { s.submitted = append(s.submitted, id) })
		}
		return err
	})
	var b build.Whole
	s.insist(func() error {
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(30 * time.Millisecond) {
			if err := s.get(fmt.Sprintf("/api/v1/builds/%d", id), &b); err != nil || b.State != build.Building {
				return err
			}
			if time.Now().After(end) {
				return fmt.Errorf("build %d of %s does not end: %+v", id, name, b)
			}
		}
	})
	if b.State == build.Complete {
		return true
	}
	if b.Code != "builder_dropped" && b.Code != "builder_vanished" {
		log, _ := s.drover("build", "log", strconv.FormatInt(id, 10))
		s.Errorf("build %d of %s: %s: %s\n%s", id, name, b.Code, b.Message, log)
		s.FailNow()
	}
	return false
}

// channel lists the files of a channel's present snapshot.
func (s *scenario) channel(name string) (files []string, err error) {
	var c repo.Channel
	if err := s.get("/api/v1/channels/"+url.PathEscape(name), &c); err != nil {
		return nil, err
	}
	var content repo.Content
	if err := s.get("/api/v1/snapshots/"+c.Snapshot, &content); err != nil {
		return nil, err
	}
	for _, ps := range content.Trees {
		for _, p := range ps {
			files = append(files, p.File+" "+p.Header)
		}
	}
	slices.Sort(files)
	return slices.Compact(files), nil
}

// kill is one point at which a process is killed.
type kill struct {
	victim string
	tree   bool // with all that it has started
	// What has to happen first: a time to pass, an event in the ledger, or a file to appear.
	after time.Duration
	event string
	file  string
	// early kills it while it starts.
	early bool
}

func (k kill) String() string {
	how := k.victim
	if k.tree {
		how += " and all it started"
	}
	switch {
	case k.early:
		return fmt.Sprintf("%s, %s after its start", how, k.after)
	case k.event != "":
		return fmt.Sprintf("%s, %s after the event %s", how, k.after, k.event)
	case k.file != "":
		return fmt.Sprintf("%s, when there is %s", how, k.file)
	}
	return fmt.Sprintf("%s, after %s", how, k.after)
}

// plan chooses the kills: half at times that are spread over the length of a round, half
// where something is halfway. There are at least four.
func plan(seed uint64, n int, length time.Duration) []kill {
	rng := rand.New(rand.NewPCG(seed, 1))
	one := func(of ...string) string { return of[rng.IntN(len(of))] }
	out := make([]kill, n)
	// Key and mirror are made once: the first kills are theirs, the more the longer the plan is.
	out[0] = kill{victim: one(server, signer), event: "sign.want", after: time.Duration(rng.Int64N(int64(time.Second)))}
	first := 1
	for ; first < 2+n/20; first++ {
		out[first] = kill{victim: server, tree: rng.IntN(2) == 0, after: time.Duration(rng.Int64N(int64(600 * time.Millisecond)))}
	}
	out[1].event = "mirror.set"
	for i := first; i < n; i++ {
		k := kill{victim: one(server, server, server, builder, builder, signer), tree: rng.IntN(2) == 0}
		moment := time.Duration(rng.Int64N(int64(60 * time.Millisecond)))
		switch what := rng.IntN(10); {
		case what < 5:
			k.after = time.Duration(rng.Int64N(int64(length)))
		case what == 5 && k.victim == server:
			k.early, k.after = true, 3*moment
		case k.victim == server && what < 8:
			k.event, k.after = one("distgit.push", "lookaside.new", "build.submit", "build.task", "build.done", "sign.request", "sign.done", "repo.publish", "prov.statement", "channel.follow", "channel.promote", "channel.rollback", "channel.hold"), moment
		case k.victim == server:
			k.file = one("git/rpms/*/incoming-*", "git/rpms/*.git/refs/heads/*.lock", "git/rpms/*.git/objects/pack/*", "build/incoming/*/*", "build/logs/*/*", "blobs/staging/*", "blobs/uploads/*")
		case k.victim == builder && what < 8:
			k.event, k.after = "build.task", 10*moment
		case k.victim == builder:
			k.file = one("roots/roots/*/merged", "roots/roots/*/run/*", "dnf/task-*.conf", "layers/*", "index/*")
		default:
			k.event, k.after = one("sign.request", "build.done"), moment/4
		}
		out[i] = k
	}
	return out
}

// chaos kills while people work and dnf installs.
type chaos struct {
	*scenario
	plan []kill

	ctx  context.Context // of everything that goes on beside the people
	done chan struct{}   // closed when the plan is done
	late int             // kills whose moment did not come and that were done anyway

	seenMu sync.Mutex // guards seen
	seen   map[int64]event.Event
	news   chan event.Event // to whoever waits for a moment

	installs, excused atomic.Int64

	moves   []move // of the line; guarded by the scenario's mu
	watched int
}

func newChaos(t testing.TB, s *scenario, plan []kill) *chaos {
	s.TB = t
	return &chaos{scenario: s, plan: plan, done: make(chan struct{}), seen: map[int64]event.Event{}, news: make(chan event.Event, 10000)}
}

// play does the plan.
func (c *chaos) play(seed uint64) {
	c.start(server)
	c.start(builder)
	c.start(signer)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	c.ctx = ctx
	wg.Go(func() { c.follow(ctx) })
	wg.Go(func() { defer close(c.done); c.kills() })
	c.setUp("rsa4096")
	wg.Go(func() { c.install(ctx) })
	wg.Go(func() { c.release(ctx, seed) })
	wg.Go(func() { c.watch(ctx) })
	for r, over := 1, false; !over; r++ {
		select {
		case <-c.done:
			over = true // and one round in peace
		default:
		}
		c.round(r)
	}
	cancel()
	wg.Wait()
	if c.Failed() {
		c.FailNow()
	}
	c.Logf("%d kills (%d of them without their moment) in %d rounds; %d builds were submitted again; dnf installed %d times, %d more were cut off by a kill",
		len(c.plan), c.late, c.rounds, c.again, c.installs.Load(), c.excused.Load())
}

// kills kills, and starts again at once as systemd does.
func (c *chaos) kills() {
	for i, k := range c.plan {
		if k.early {
			c.kill(k.victim, k.tree)
			c.startServer()
			time.Sleep(k.after)
		} else if !c.moment(k) {
			c.late++
		}
		if c.Failed() {
			return
		}
		c.Logf("kill %d: %s", i+1, k)
		c.kill(k.victim, k.tree)
		if k.victim == server {
			if err := c.serves(c.startServer(), 30*time.Second); err != nil {
				c.Error(err)
				return
			}
		} else {
			c.start(k.victim)
		}
	}
}

// moment waits until a kill is due; false when what it waits for does not come.
func (c *chaos) moment(k kill) bool {
	for len(c.news) > 0 {
		<-c.news
	}
	over := time.After(5 * time.Second)
	switch {
	case k.event != "":
		for {
			select {
			case e := <-c.news:
				if e.Kind == k.event {
					time.Sleep(k.after)
					return true
				}
			case <-over:
				return false
			case <-c.ctx.Done():
				return false
			}
		}
	case k.file != "":
		glob := filepath.Join(c.roleDir(k.victim), k.file)
		before, _ := filepath.Glob(glob)
		for {
			now, _ := filepath.Glob(glob)
			if slices.ContainsFunc(now, func(f string) bool { return !slices.Contains(before, f) }) {
				return true
			}
			before = now
			select {
			case <-over:
				return false
			case <-c.ctx.Done():
				return false
			case <-time.After(300 * time.Microsecond):
			}
		}
	}
	time.Sleep(k.after)
	return true
}

// follow reads the ledger as it grows, and keeps what it has seen.
func (c *chaos) follow(ctx context.Context) {
	var last int64
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/api/v1/events/follow?after=%d", c.URL, last), nil)
		if err != nil {
			c.Error(err)
			return
		}
		req.Header.Set("Authorization", "Bearer "+c.Token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		sc := bufio.NewScanner(resp.Body)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			var e event.Event
			if json.Unmarshal(sc.Bytes(), &e) != nil {
				break // the last line of a server that was killed
			}
			if e.ID != last+1 {
				c.Errorf("event %d came after event %d", e.ID, last)
			}
			last = e.ID
			c.seenMu.Lock()
			c.seen[e.ID] = e
			c.seenMu.Unlock()
			select {
			case c.news <- e:
			default:
			}
		}
		_ = resp.Body.Close()
	}
}

// install installs from the channel, again and again, as a host would: signatures checked,
// metadata never taken as fresh.
func (c *chaos) install(ctx context.Context) {
	dir := filepath.Join(c.Dir, "host")
	repos := filepath.Join(dir, "repos")
	if err := os.MkdirAll(repos, 0o755); err != nil {
		c.Error(err)
		return
	}
	var file string
	for n := 0; ctx.Err() == nil; n++ {
		floor := map[string]int{}
		c.note(func() {
			for _, p := range packages() {
				floor[p] = c.published[p]
			}
		})
		if floor["pair"] == 0 || floor["bulk"] == 0 {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if file == "" {
			c.insist(func() (err error) { file, err = c.run(c.Dir, "curl", "-fsS", c.URL+"/channels/crash.repo"); return err })
			if !strings.Contains(file, "\ngpgcheck=1\nrepo_gpgcheck=1\n") {
				c.Errorf("the channel's .repo file does not have signatures checked:\n%s", file)
			}
			c.write(filepath.Join(repos, "crash.repo"), []byte(file))
		}
		root := filepath.Join(dir, "root")
		if n%5 == 0 {
			_ = os.RemoveAll(filepath.Join(dir, "cache"))
		}
		_ = os.RemoveAll(root)
		began := time.Now()
		// --refresh: what dnf read less than a second ago it takes as fresh whatever metadata_expire says.
		cmd := exec.Command("dnf", "-y", "--refresh", "--installroot="+root, "--releasever=9", "--setopt=reposdir="+repos, "--setopt=varsdir=/nonexistent", "--setopt=cachedir="+filepath.Join(dir, "cache"), "--setopt=pluginpath=/nonexistent",
			"--setopt=module_platform_id=platform:el9", "--setopt=crash.metadata_expire=0", "--setopt=crash.skip_if_unavailable=0", "--setopt=retries=1", "install", "pair", "bulk")
		cmd.Env = c.environ()
		out, err := cmd.CombinedOutput()
		if err != nil {
			if c.wasDown(began, time.Now()) && onlyCut(string(out)) {
				c.excused.Add(1)
				continue
			}
			c.Errorf("dnf saw something broken (the server was down meanwhile: %v): %v\n%s", c.wasDown(began, time.Now()), err, out)
			return
		}
		c.installs.Add(1)
		q, err := c.run(dir, "rpm", "--root="+root, "-q", "--qf", "%{name} %{release}\n", "pair", "pair-data", "bulk")
		have := map[string]int{}
		for l := range strings.Lines(q) {
			var name string
			var release int
			if _, err := fmt.Sscanf(l, "%s %d.c", &name, &release); err == nil {
				have[name] = release
			}
		}
		if err != nil || have["pair"] != have["pair-data"] || have["pair"] < floor["pair"] || have["bulk"] < floor["bulk"] {
			c.Errorf("dnf installed %v although %v was published before: %v", have, floor, err)
		}
	}
}

// onlyCut tells whether dnf complains of nothing but a server that was not there: curl's
// errors for a connection that was refused, reset or closed.
func onlyCut(out string) bool {
	curl := 0
	for l := range strings.Lines(out) {
		switch {
		case strings.Contains(l, "Curl error (7)"), strings.Contains(l, "Curl error (52)"), strings.Contains(l, "Curl error (55)"), strings.Contains(l, "Curl error (56)"), strings.Contains(l, "Curl error (18)"):
			curl++
		case strings.Contains(l, "Curl error"), strings.Contains(l, "Status code"), strings.Contains(l, "signature"), strings.Contains(l, "GPG check"), strings.Contains(l, "not signed"), strings.Contains(l, "hecksum"):
			return false
		}
	}
	return curl > 0
}

// verify compares the end with the one of a site that was not disturbed.
func (c *chaos) verify(calm *scenario) {
	c.Helper()
	for _, name := range packages() {
		for r := 1; r <= c.rounds; r++ {
			nvr := fmt.Sprintf("%s-1-%d.c", name, r)
			if diff := cmp.Diff(calm.result(nvr), c.result(nvr)); diff != "" {
				c.Errorf("%s differs from the undisturbed one (-calm +crash):\n%s", nvr, diff)
			}
		}
	}
	for r := 1; r <= c.rounds; r++ {
		if diff := cmp.Diff(calm.states[r], c.states[r]); diff != "" {
			c.Errorf("the channel differs after round %d from the undisturbed one (-calm +crash):\n%s", r, diff)
		}
	}
	c.ledger()
	for _, h := range c.heads {
		c.must("audit", "verify", "--head", h)
	}
	c.leftovers()
}

// result is what a build has given: its packages by file, with digests without signatures.
func (s *scenario) result(nvr string) map[string]string {
	s.Helper()
	var b build.Whole
	if err := s.get("/api/v1/builds/"+nvr, &b); err != nil {
		s.Fatal(err)
	}
	out := map[string]string{"state": string(b.State)}
	for _, p := range b.RPMs {
		out[p.File] = p.Header + " " + p.Digest.String()
	}
	var st any
	if err := s.get(fmt.Sprintf("/api/v1/builds/%d/statement", b.ID), &st); err != nil {
		s.Errorf("%s has no statement: %v", nvr, err)
	}
	return out
}

// ledger checks that everything that was seen or acknowledged is in the ledger, and that
// nothing happened twice.
func (c *chaos) ledger() {
	c.Helper()
	var all []event.Event
	for {
		var es []event.Event
		after := int64(len(all))
		if err := c.get(fmt.Sprintf("/api/v1/events?limit=500&after=%d", after), &es); err != nil {
			c.Fatal(err)
		}
		if len(es) == 0 {
			break
		}
		all = append(all, es...)
	}
	c.seenMu.Lock()
	defer c.seenMu.Unlock()
	for id, e := range c.seen {
		if int(id) > len(all) || all[id-1].Hash != e.Hash {
			c.Errorf("event %d was seen and is not in the ledger: %+v", id, e)
		}
	}
	text := func(e event.Event) string { return string(e.Data) }
	count := func(kind string, holds func(e event.Event) bool) (n int) {
		for _, e := range all {
			if e.Kind == kind && holds(e) {
				n++
			}
		}
		return n
	}
	for _, commit := range c.pushed {
		if n := count("distgit.push", func(e event.Event) bool { return strings.Contains(text(e), `"new":"`+commit) }); n != 1 {
			c.Errorf("the acknowledged push of %s is %d times in the ledger", commit, n)
		}
	}
	for _, file := range c.uploaded {
		if n := count("lookaside.new", func(e event.Event) bool { return strings.Contains(text(e), `"`+file+`"`) }); n != 1 {
			c.Errorf("the acknowledged upload of %s is %d times in the ledger", file, n)
		}
	}
	for _, id := range c.submitted {
		if n := count("build.submit", func(e event.Event) bool { return e.Subject == fmt.Sprintf("build/%d", id) }); n != 1 {
			c.Errorf("the acknowledged build %d is %d times in the ledger", id, n)
		}
	}
	if n := count("build.done", func(event.Event) bool { return true }); n != 2*c.rounds {
		c.Errorf("%d builds are done, not %d", n, 2*c.rounds)
	}
	closed := map[string]int{}
	for _, e := range all {
		if e.Kind == "build.task" && strings.Contains(text(e), `"state":"CLOSED"`) {
			if closed[e.Subject]++; closed[e.Subject] > 1 {
				c.Errorf("%s has two results", e.Subject)
			}
		}
	}
	c.settled(all)
}

// leftovers stops the site in peace, starts it again, stops it, and looks at what is left.
func (c *chaos) leftovers() {
	c.Helper()
	for _, role := range []string{builder, signer, server} {
		if code := c.stop(role, 30*time.Second); code != 0 {
			c.Errorf("the %s ended with %d", role, code)
		}
	}
	for _, role := range []string{server, builder, signer} {
		c.start(role)
	}
	time.Sleep(500 * time.Millisecond) // the builder has reaped and polls
	for _, role := range []string{builder, signer, server} {
		if code := c.stop(role, 30*time.Second); code != 0 {
			c.Errorf("the %s ended with %d", role, code)
		}
	}
	c.tidy()
	for _, name := range packages() {
		if out, err := c.run(c.Dir, "git", "-C", filepath.Join(c.roleDir(server), "git", "rpms", name+".git"), "fsck", "--strict", "--no-dangling"); err != nil || strings.Contains(out, "error") {
			c.Errorf("git fsck %s: %v %s", name, err, out)
		}
	}
	if _, err := c.drover("signer", "verify", "--dir", c.roleDir(signer)); err != nil {
		c.Error(err)
	}
	blobs, err := blob.Open(filepath.Join(c.roleDir(server), "blobs"))
	if err != nil {
		c.Fatal(err)
	}
	done, err := blobs.Scrub(context.Background(), func(p blob.Problem) { c.Errorf("blob store: %s %s %v", p.Kind, p.Path, p.Err) })
	if err != nil || done.Blobs == 0 {
		c.Errorf("scrub: %+v %v", done, err)
	}
}

// tidy looks for what a stopped site must not have: mounts, loop devices, processes, files of
// work that was under way.
func (s *site) tidy() {
	s.Helper()
	for _, role := range []string{server, builder, signer} {
		for _, m := range mountsBelow(s.roleDir(role)) {
			s.Errorf("left over: mount %s", m)
		}
	}
	devices, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, d := range devices {
		if b, err := os.ReadFile(d); err == nil && strings.HasPrefix(string(b), s.Dir+"/") {
			s.Errorf("left over: loop device on %s", b)
		}
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range lines {
		b, _ := os.ReadFile(f)
		for _, role := range []string{server, builder, signer} {
			if strings.Contains(string(b), s.roleDir(role)+"/") {
				s.Errorf("left over: process %s", strings.ReplaceAll(string(b), "\x00", " "))
			}
		}
	}
	for _, glob := range []string{"tmp/*", "server/git/*/*.git/incoming-*", "server/git/*/*.git/*.lock", "server/git/*/*.git/refs/heads/*.lock", "server/git/*/*.git/objects/pack/tmp_*", "server/git/*/*.git/objects/pack/.tmp*",
		"server/git/*/*.git/objects/*/tmp_obj*", "server/build/incoming/*", "server/build/logs/*", "server/blobs/staging/*", "*/.durable-*", "*/*/.durable-*", "*/*/*/.durable-*", "builder/roots/roots/*", "builder/dnf/task-*"} {
		names, _ := filepath.Glob(filepath.Join(s.Dir, glob))
		for _, n := range names {
			s.Errorf("left over: %s", strings.TrimPrefix(n, s.Dir+"/"))
		}
	}
}
