package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drover/internal/build/wire"
	"drover/internal/web"
)

// contrast lists the texts of a page whose contrast with what is behind them is below that of
// WCAG AA, 4.5 to 1.
const contrast = `(() => {
  const rgb = (s) => s.match(/[\d.]+/g).map(Number);
  const lum = ([r, g, b]) => { const f = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const bad = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !e.offsetParent) continue;
    const a = lum(rgb(getComputedStyle(e).color)), b = lum(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(ratio.toFixed(2) + " " + e.outerHTML.slice(0, 80));
  }
  return bad.join("\n");
})()`

// byHand works as a builder does, by its protocol, a step at a time.
type byHand struct {
	t *testing.T
	c *web.Client
	wire.Task
	sent int
}

func (g *target) builder(t *testing.T) *byHand {
	t.Helper()
	b := &byHand{t: t, c: &web.Client{Base: g.url, Token: g.tokens["builder"]}}
	var o wire.Orders
	if err := b.c.Call(t.Context(), "POST", wire.PathPoll, wire.Poll{Version: wire.Version, Arches: []string{"x86_64", "noarch"}, Channels: []string{"default"}, Slots: 1, Running: []wire.Held{}, Host: "b1", Wait: 20}, &o); err != nil || len(o.Tasks) != 1 {
		t.Fatalf("poll: %+v, %v", o, err)
	}
	b.Task = o.Tasks[0]
	return b
}

func (b *byHand) log(text string) {
	b.t.Helper()
	resp, err := b.c.Do(b.t.Context(), "POST", fmt.Sprintf(wire.PathLog+"?fence=%d&offset=%d", b.ID, "build.log", b.Fence, b.sent), nil, strings.NewReader(text))
	if err != nil {
		b.t.Fatal(err)
	}
	resp.Body.Close()
	b.sent += len(text)
}

func (b *byHand) fail() {
	b.t.Helper()
	f := wire.Finish{Fence: b.Fence, Files: []wire.File{}, Before: []wire.Pkg{}, After: []wire.Pkg{}, Failure: &wire.Failure{Code: "build_failed", Message: "rpmbuild of hello failed", Remedy: "read `build.log`", Line: "main.c:3: error: <b>no</b>"}}
	if err := b.c.Call(b.t.Context(), "POST", fmt.Sprintf(wire.PathFinish, b.ID), f, nil); err != nil {
		b.t.Fatal(err)
	}
}

// TestPages looks at every page with a real browser, at both widths and in both colors.
// DROVER_SHOTS names a directory for pictures.
func TestPages(t *testing.T) {
	g := newTarget(t)
	b := newBrowser(t)
	pages := []string{"/", "/packages", "/packages?q=nothing", "/packages/rpms/hello", "/builds", "/builds?state=building&target=demo", "/builds/1", "/tasks", "/tasks?state=free",
		"/tags", "/tags/demo", "/tags/demo?at=1000000", "/snapshots", "/snapshots?source=demo", "/snapshots/$SNAPSHOT", "/snapshots/$SNAPSHOT?tree=nothing", "/snapshots/$SNAPSHOT/diff/steps%2Fdev", "/snapshots/nothing", "/lines", "/lines/steps", "/lines/nothing", "/rpms/nothing", "/search", "/search?q=hello&channel=demo&in=file", "/search?q=h&channel=demo", "/events", "/events?kind=auth.&actor=admin", "/nothing", "/builds/99", "/git/rpms/hello/info/refs"}
	fails := map[string]string{"/nothing": "path_unknown", "/builds/99": "build_unknown", "/snapshots/$SNAPSHOT?tree=nothing": "tree_unknown", "/snapshots/nothing": "snapshot_unknown", "/lines/nothing": "line_unknown", "/rpms/nothing": "package_unknown", "/search?q=h&channel=demo": "search_query", "/git/rpms/hello/info/refs": "git_service", "/tags/demo?at=1000000": "event_unknown"}
	for _, page := range pages {
		inspect(t, b, g.url, g.token, g.vars.Replace(page), fails[page])
	}
}

// inspect looks at a page at both widths and in both colors, reads it as JSON and runs its
// command line. A page that fails has to say so with a code and a remedy.
func inspect(t *testing.T, b *browser, base, token, page, fails string) {
	t.Helper()
	for _, look := range []struct {
		width  int
		scheme string
	}{{1280, "light"}, {1280, "dark"}, {390, "light"}, {390, "dark"}} {
		at := fmt.Sprintf("%s at %d px, %s", page, look.width, look.scheme)
		b.look(look.width, look.scheme)
		if look.scheme == "light" { // the other colors come without another load
			b.open(base + page)
		}
		complaints := slices.DeleteFunc(b.errors(), func(s string) bool {
			return fails != "" && strings.HasPrefix(s, "Failed to load resource")
		})
		if len(complaints) > 0 {
			t.Errorf("%s: %s", at, complaints)
		}
		if s := b.eval("document.documentElement.scrollWidth - innerWidth"); s != "0" {
			t.Errorf("%s: the page is %s px too wide", at, s)
		}
		if s := b.eval(contrast); s != "" {
			t.Errorf("%s: too little contrast:\n%s", at, s)
		}
		if s := b.eval("document.title + '|' + document.querySelector('h1')?.innerText"); !strings.HasSuffix(strings.Split(s, "|")[0], " · drover") || strings.HasSuffix(s, "|") {
			t.Errorf("%s: title and head are %q", at, s)
		}
		if dir := os.Getenv("DROVER_SHOTS"); dir != "" {
			b.shoot(filepath.Join(dir, strings.NewReplacer("/", "_", "?", "_", "&", "_", "=", "_", "%", "_").Replace(at)+".png"))
		}
	}
	if fails != "" {
		if s := b.eval("document.body.innerText"); !strings.Contains(s, fails) || !strings.Contains(s, "What to do") {
			t.Errorf("%s: no code and remedy: %s", page, s)
		}
		return
	}
	// Every link of the page leads somewhere.
	if s := b.eval(`Promise.all([...new Set([...document.querySelectorAll("main a[href]")].map((a) => a.getAttribute("href")))].slice(0, 60).map((u) => fetch(u).then((r) => r.ok ? "" : r.status + " " + u))).then((l) => l.filter((s) => s).join("\n"))`); s != "" {
		t.Errorf("%s: links that lead nowhere:\n%s", page, s)
	}
	_ = b.errors()
	// The same as JSON, by the link on the page and by the header.
	for _, js := range []string{`fetch([...document.querySelectorAll("footer a")].find((a) => a.innerText === "JSON").href).then((r) => r.text())`,
		`fetch(location.href, {headers: {Accept: "application/json"}}).then((r) => r.text())`} {
		var v map[string]any
		if err := json.Unmarshal([]byte(b.eval(js)), &v); err != nil || len(v) == 0 {
			t.Errorf("%s as JSON: %v, %v", page, v, err)
		}
	}
	// The page's command line works.
	line := b.eval(`document.querySelector("footer .cli code").innerText`)
	c := exec.CommandContext(t.Context(), "sh", "-c", line)
	c.Env = append(os.Environ(), "PATH="+filepath.Dir(program(t))+":"+os.Getenv("PATH"), "DROVER_URL="+base, "DROVER_TOKEN="+token)
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%s: %s: %v %s", page, line, err, out)
	}
	if s := b.eval(`[...document.querySelectorAll("time")].filter((t) => !/^\d{4}-.* UTC$/.test(t.title)).length`); s != "0" {
		t.Errorf("%s: %s times without the exact one", page, s)
	}
}

func TestKeys(t *testing.T) {
	g := newTarget(t)
	b := newBrowser(t)
	b.look(1280, "light")
	b.open(g.url + "/packages")
	b.key("/")
	if s := b.eval("document.activeElement.name"); s != "q" {
		t.Errorf("/ goes to %q", s)
	}
	b.key("j") // types a letter there
	if s := b.eval("document.activeElement.value"); s != "j" {
		t.Errorf("the field has %q", s)
	}
	b.eval("document.activeElement.blur()")
	b.key("j")
	if s := b.eval(`document.querySelector("tr.at a").innerText`); s != "rpms/hello" {
		t.Errorf("j goes to %q", s)
	}
	b.eval(`setTimeout(() => document.activeElement.click(), 0)`) // the answer comes before the page goes
	b.until("the package's page", func() bool { return b.at("/packages/rpms/hello") })
	// A line's page by the keyboard alone.
	b.open(g.url + "/lines")
	b.key("j")
	b.eval(`setTimeout(() => document.activeElement.click(), 0)`) // the answer comes before the page goes
	b.until("the line's page", func() bool { return b.at("/lines/steps") })
	b.open(g.url + "/search")
	b.key("/")
	if s := b.eval("document.activeElement.name"); s != "q" {
		t.Errorf("/ on the page of searches goes to %q", s)
	}
}

func TestLiveLog(t *testing.T) {
	g := newTarget(t)
	w := g.builder(t)
	w.log("first line\n")
	b := newBrowser(t)
	b.look(1280, "light")
	b.open(g.url + "/builds/1")
	log := fmt.Sprintf(`document.querySelector('pre[aria-label="build.log of task %d"]')?.innerText`, w.ID)
	shows := func(text string) {
		t.Helper()
		b.until("the log to show "+text, func() bool { return strings.Contains(b.eval(log), text) })
	}
	shows("first line")
	b.eval("window.same = true") // gone if the page were loaded again
	w.log("second line: <script>alert(1)</script> \xff\n")
	shows("second line: <script>alert(1)</script>")
	w.log("third line\n")
	shows("third line")
	if n := strings.Count(b.eval(log), "first line"); n != 1 {
		t.Errorf("the first line is there %d times", n)
	}
	w.fail()
	b.until("the end of the build", func() bool {
		return strings.Contains(b.eval("document.querySelector('h1').innerText"), "failed")
	})
	for _, text := range []string{"rpmbuild of hello failed", "main.c:3: error: <b>no</b>", "build_failed", "read build.log"} {
		if s := b.eval("document.body.innerText"); !strings.Contains(s, text) {
			t.Errorf("the failed build does not show %q: %s", text, s)
		}
	}
	if b.eval("window.same") != "true" {
		t.Error("the page was loaded again")
	}
	if e := b.errors(); len(e) > 0 {
		t.Error(e)
	}
	// All of it can be read without JavaScript.
	b.call("Emulation.setScriptExecutionDisabled", map[string]any{"value": true}, nil)
	b.open(g.url + "/builds/1")
	b.call("Emulation.setScriptExecutionDisabled", map[string]any{"value": false}, nil)
	shows("third line")
}
