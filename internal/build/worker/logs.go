package worker

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"drover/internal/build/wire"
	"drover/internal/fault"
)

const (
	logPause = 100 * time.Millisecond // how long bytes gather before they go out
	logPiece = 256 << 10
	maxLog   = 200 << 20
)

// logs streams the logs of a task: written to files, sent from there, so that a server that
// is away holds up nothing.
type logs struct {
	w    *Worker
	t    wire.Task
	dir  string
	mu   sync.Mutex // guards all and closed
	all  map[string]*logFile
	wg   sync.WaitGroup
	done chan struct{}

	last    string // name of the log that rpmbuild wrote last
	lastLog []byte // the end of it, when the build failed
}

type logFile struct {
	l    *logs
	name string
	f    *os.File
	mu   sync.Mutex // guards size, tail
	size int64
	more chan struct{} // has a token when there is something to send
}

func newLogs(w *Worker, t wire.Task) (*logs, error) {
	dir, err := os.MkdirTemp(filepath.Join(w.Dir, "tmp"), "logs-")
	return &logs{w: w, t: t, dir: dir, all: map[string]*logFile{}, done: make(chan struct{})}, infra(err)
}

// file is a log by name; writing to it never fails for the writer.
func (l *logs) file(name string) *logFile {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.all[name]; f != nil {
		return f
	}
	f, err := os.OpenFile(filepath.Join(l.dir, name), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		l.w.Log.Error("log", "name", name, "err", err)
	}
	lf := &logFile{l: l, name: name, f: f, more: make(chan struct{}, 1)}
	l.all[name] = lf
	l.wg.Go(lf.send)
	return lf
}

// say adds a line to state.log.
func (l *logs) say(format string, args ...any) {
	fmt.Fprintf(l.file("state.log"), "%s %s\n", l.w.Now().UTC().Format("15:04:05.000"), fmt.Sprintf(format, args...))
}

// Write implements io.Writer. Beyond the bound bytes are dropped: a log is for reading.
func (f *logFile) Write(p []byte) (int, error) {
	f.mu.Lock()
	if f.f != nil && f.size < maxLog {
		q := p
		if f.size+int64(len(q)) > maxLog {
			q = append(bytes.Clone(q[:maxLog-f.size]), "\n[the log goes on beyond its bound]\n"...)
		}
		n, _ := f.f.WriteAt(q, f.size)
		f.size += int64(n)
	}
	f.mu.Unlock()
	select {
	case f.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

// send sends what is new until the log is closed and all of it is there.
func (f *logFile) send() {
	var sent int64
	buf := make([]byte, logPiece)
	for closing := false; ; {
		if !closing {
			select {
			case <-f.more:
				select { // let a burst gather
				case <-time.After(logPause):
				case <-f.l.done:
					closing = true
				}
			case <-f.l.done:
				closing = true
			}
		}
		for fails := 0; ; {
			f.mu.Lock()
			size := f.size
			f.mu.Unlock()
			if sent >= size {
				break
			}
			n, _ := f.f.ReadAt(buf[:min(int64(len(buf)), size-sent)], sent)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			q := url.Values{"fence": {strconv.FormatInt(f.l.t.Fence, 10)}, "offset": {strconv.FormatInt(sent, 10)}}
			resp, err := f.l.w.Client.Do(ctx, "POST", fmt.Sprintf(wire.PathLog, f.l.t.ID, f.name)+"?"+q.Encode(), nil, bytes.NewReader(buf[:n]))
			cancel()
			if err == nil {
				_ = resp.Body.Close()
				sent += int64(n)
				fails = 0
				continue
			}
			e := fault.As(err)
			if e.Code == "log_gap" { // the server lost some, or another one answers: what it has it passes over
				sent = 0
			}
			if fails++; e.Code != "log_gap" && e.Kind != fault.KindUnavailable && e.Kind != fault.KindInternal || fails > 30 {
				return // the task is not ours any more, or nobody listens
			}
			time.Sleep(time.Duration(fails) * 200 * time.Millisecond)
		}
		if closing {
			return
		}
	}
}

// close sends what is left and removes the files.
func (l *logs) close() {
	close(l.done)
	l.wg.Wait()
	for _, f := range l.all {
		if f.f != nil {
			_ = f.f.Close()
		}
	}
	if l.dir != "" {
		_ = os.RemoveAll(l.dir)
	}
}

// tail is the last bytes of a log, to look for the error in.
func (l *logs) tail(name string, n int64) []byte {
	l.mu.Lock()
	f := l.all[name]
	l.mu.Unlock()
	if f == nil || f.f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	from := max(0, f.size-n)
	b := make([]byte, f.size-from)
	m, _ := f.f.ReadAt(b, from)
	return b[:m]
}
