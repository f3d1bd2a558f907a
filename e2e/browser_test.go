package e2e

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// browser is a headless chromium that is spoken to through two pipes: its remote protocol
// needs no port and no library that way.
type browser struct {
	t       *testing.T
	in      *os.File
	mu      sync.Mutex // guards the fields below
	next    int
	answers map[int]chan reply
	notes   []note
	session string
}

type reply struct {
	Result json.RawMessage
	Error  *struct{ Message string }
}

type note struct {
	Method string
	Params json.RawMessage
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	toR, toW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fromR, fromW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe", "--user-data-dir="+filepath.Join(t.TempDir(), "profile"), "about:blank")
	c.ExtraFiles = []*os.File{toR, fromW} // 3 and 4
	if err := c.Start(); err != nil {
		t.Fatalf("chromium: %v (scripts/setup test installs it)", err)
	}
	_ = toR.Close()
	_ = fromW.Close()
	b := &browser{t: t, in: toW, answers: map[int]chan reply{}}
	read := make(chan struct{})
	go func() { defer close(read); b.read(bufio.NewReaderSize(fromR, 1<<20)) }()
	t.Cleanup(func() {
		_ = toW.Close() // chromium ends when its pipe does
		done := make(chan struct{})
		go func() { _ = c.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			_ = c.Process.Kill()
			<-done
		}
		<-read
		_ = fromR.Close()
	})
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var att struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &att)
	b.session = att.SessionID
	for _, d := range []string{"Page", "Runtime", "Log", "Network"} {
		b.call(d+".enable", nil, nil)
	}
	return b
}

func (b *browser) read(r *bufio.Reader) {
	for {
		line, err := r.ReadBytes(0)
		if err != nil {
			b.mu.Lock()
			for _, c := range b.answers {
				close(c)
			}
			b.answers = nil
			b.mu.Unlock()
			return
		}
		var m struct {
			ID int
			reply
			note
		}
		if json.Unmarshal(line[:len(line)-1], &m) != nil {
			continue
		}
		b.mu.Lock()
		if c := b.answers[m.ID]; m.ID != 0 && c != nil {
			c <- m.reply
			delete(b.answers, m.ID)
		} else if m.Method != "" {
			b.notes = append(b.notes, m.note)
		}
		b.mu.Unlock()
	}
}

// call runs a method of the remote protocol.
func (b *browser) call(method string, params, out any) {
	b.t.Helper()
	for b.try(method, params, out) {
		time.Sleep(20 * time.Millisecond)
	}
}

// try is call, and tells whether the page went away while it was asked: then the next one is.
func (b *browser) try(method string, params, out any) (again bool) {
	b.t.Helper()
	b.mu.Lock()
	b.next++
	m := map[string]any{"id": b.next, "method": method}
	c := make(chan reply, 1)
	if b.answers == nil {
		b.mu.Unlock()
		b.t.Fatalf("%s: chromium is gone", method)
	}
	b.answers[b.next] = c
	if params != nil {
		m["params"] = params
	}
	if b.session != "" {
		m["sessionId"] = b.session
	}
	text, err := json.Marshal(m)
	if err == nil {
		_, err = b.in.Write(append(text, 0))
	}
	b.mu.Unlock()
	if err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	select {
	case r, ok := <-c:
		if ok && r.Error != nil && method == "Runtime.evaluate" && strings.Contains(fmt.Sprintf("%+v", r.Error), "navigated or closed") {
			return true
		}
		if !ok || r.Error != nil {
			b.t.Fatalf("%s: %+v", method, r.Error)
		}
		if out != nil {
			if err := json.Unmarshal(r.Result, out); err != nil {
				b.t.Fatalf("%s: %v", method, err)
			}
		}
	case <-time.After(30 * time.Second):
		b.t.Fatalf("%s: no answer", method)
	}
	return false
}

// open goes to a page and waits until it is loaded.
func (b *browser) open(url string) {
	b.t.Helper()
	b.mu.Lock()
	b.notes = nil
	b.mu.Unlock()
	b.call("Page.navigate", map[string]any{"url": url}, nil)
	b.until("the page "+url+" to load", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, n := range b.notes {
			if n.Method == "Page.loadEventFired" {
				return true
			}
		}
		return false
	})
}

// at tells whether a page is there, all of it: its load event would else be taken for that of the
// page after it.
func (b *browser) at(path string) bool {
	b.t.Helper()
	return b.eval(`document.readyState + " " + location.pathname`) == "complete "+path
}

// until waits for something to become true.
func (b *browser) until(what string, ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// eval runs JavaScript in the page and gives its value as a string.
func (b *browser) eval(js string) string {
	b.t.Helper()
	var out struct {
		Result           struct{ Value any }
		ExceptionDetails json.RawMessage
	}
	b.call("Runtime.evaluate", map[string]any{"expression": js, "returnByValue": true, "awaitPromise": true}, &out)
	if out.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", js, out.ExceptionDetails)
	}
	return fmt.Sprint(out.Result.Value)
}

// errors lists what the browser complained about since the page was opened: exceptions,
// refused scripts and styles, and answers that failed.
func (b *browser) errors() (out []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.notes {
		var p struct {
			Type  string
			Entry struct{ Level, Text, URL string }
			Args  []struct{ Value any }
		}
		_ = json.Unmarshal(n.Params, &p)
		switch {
		case n.Method == "Runtime.exceptionThrown":
			out = append(out, string(n.Params))
		case n.Method == "Runtime.consoleAPICalled" && (p.Type == "error" || p.Type == "warning"):
			out = append(out, fmt.Sprint(p.Args))
		case n.Method == "Log.entryAdded" && (p.Entry.Level == "error" || p.Entry.Level == "warning"):
			out = append(out, p.Entry.Text+" "+p.Entry.URL)
		}
	}
	return out
}

// key presses a key.
func (b *browser) key(k string) {
	b.t.Helper()
	b.call("Input.dispatchKeyEvent", map[string]any{"type": "keyDown", "key": k, "text": strings.Trim(k, "Enter")}, nil)
	b.call("Input.dispatchKeyEvent", map[string]any{"type": "keyUp", "key": k}, nil)
}

// look sets the width of the window and the color scheme.
func (b *browser) look(width int, scheme string) {
	b.t.Helper()
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}, nil)
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
}

// shoot writes a picture of the page.
func (b *browser) shoot(file string) {
	b.t.Helper()
	var out struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{"format": "png"}, &out)
	png, err := base64.StdEncoding.DecodeString(out.Data)
	if err == nil {
		err = os.WriteFile(file, png, 0o644)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}
