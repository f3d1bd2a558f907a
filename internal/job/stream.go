package job

import (
	"encoding/json"
	"path"
	"sync"
	"time"

	fleetwire "drover/internal/fleet/wire"
)

// maxBehind is how many events a reader of the stream may be behind.
const maxBehind = 10_000

// Tagged is something that happened, with a tag in Salt's form: "salt/job/JID/ret/HOST".
type Tagged struct {
	Tag  string `json:"tag"`
	Data any    `json:"data"`
}

// Stream tells those who listen what happens. It keeps nothing: the ledger and the jobs do.
type Stream struct {
	mu   sync.Mutex
	subs map[*Reader]bool
}

// Reader is somebody who listens.
type Reader struct {
	C       chan Tagged
	pattern string
	lost    int
	stream  *Stream
}

// NewStream makes a Stream.
func NewStream() *Stream { return &Stream{subs: map[*Reader]bool{}} }

// Wanted tells whether anybody listens.
func (s *Stream) Wanted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.subs) > 0
}

// Subscribe listens to the tags that a pattern matches, "" for all: "salt/job/*". A star matches
// slashes too, as in Salt. The caller closes the reader.
func (s *Stream) Subscribe(pattern string) *Reader {
	r := &Reader{C: make(chan Tagged, maxBehind), pattern: pattern, stream: s}
	s.mu.Lock()
	s.subs[r] = true
	s.mu.Unlock()
	return r
}

// Close ends it.
func (r *Reader) Close() {
	r.stream.mu.Lock()
	defer r.stream.mu.Unlock()
	delete(r.stream.subs, r)
}

// Lost is how many events the reader missed since it was asked last, because it was too slow.
func (r *Reader) Lost() int {
	r.stream.mu.Lock()
	defer r.stream.mu.Unlock()
	n := r.lost
	r.lost = 0
	return n
}

// Publish tells of something. Nobody is waited for.
func (s *Stream) Publish(tag string, data map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.subs) == 0 {
		return
	}
	data["_stamp"] = time.Now().UTC().Format("2006-01-02T15:04:05.000000")
	for r := range s.subs {
		if !MatchTag(r.pattern, tag) {
			continue
		}
		select {
		case r.C <- Tagged{tag, data}:
		default:
			r.lost++
		}
	}
}

// FromHost tells of what a host tells. Tags that are the server's own are put below the host's, so
// that no host speaks for another.
func (s *Stream) FromHost(host string, e fleetwire.Event) {
	var data any
	if err := json.Unmarshal(e.Data, &data); err != nil {
		data = nil
	}
	tag := e.Tag
	if len(tag) >= 5 && tag[:5] == "salt/" && !MatchTag("salt/beacon/"+host+"/*", tag) {
		tag = "salt/minion/" + host + "/" + tag[5:]
	}
	s.Publish(tag, map[string]any{"id": host, "tag": tag, "data": data, "cmd": "_minion_event"})
}

// MatchTag tells whether a pattern of the shell's kind matches a tag; its star matches slashes too.
func MatchTag(pattern, tag string) bool {
	if pattern == "" || pattern == "*" {
		return true
	}
	flat := func(s string) string {
		b := []byte(s)
		for i, c := range b {
			if c == '/' {
				b[i] = 1
			}
		}
		return string(b)
	}
	ok, err := path.Match(flat(pattern), flat(tag))
	return ok && err == nil
}
