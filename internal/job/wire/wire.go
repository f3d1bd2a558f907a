package wire

import (
	"encoding/json"
	"regexp"
)

var reJID = regexp.MustCompile(`^[0-9]{20}$`)

// IsJID tells whether a text has the form of Salt's id of a job: the time to the microsecond.
func IsJID(s string) bool { return reJID.MatchString(s) }

// Command is one call of a function on one host. It is signed for that host, and for the one
// process of its agent that was welcomed.
type Command struct {
	Job      string          `json:"job"`      // Salt's JID; no host takes one twice
	Host     string          `json:"host"`     // the name on the bus
	Instance string          `json:"instance"` // of the agent's process
	Fun      string          `json:"fun"`
	Arg      json.RawMessage `json:"arg,omitempty"`   // a list
	Kwarg    json.RawMessage `json:"kwarg,omitempty"` // a mapping
	Issued   int64           `json:"issued"`          // server's time, microseconds
	Expires  int64           `json:"expires"`         // must have begun by then
	Timeout  int64           `json:"timeout"`         // seconds that it may run
	Author   string          `json:"author"`
	Test     bool            `json:"test,omitempty"`
}

// Stop ends what a host does for a job.
type Stop struct {
	Job     string `json:"job"`
	Host    string `json:"host"`
	Expires int64  `json:"expires"`
	Signal  int    `json:"signal,omitempty"` // 0 ends it
}

// Outcomes of a command on a host, and what is known before there is one.
const (
	Answered = "answered"  // it ran and its return code is 0
	Failed   = "failed"    // it ran, and it failed
	Refused  = "refused"   // the agent did not run it: see Code
	Stopped  = "stopped"   // it was ended on request
	TimedOut = "timed-out" // it was ended since it took too long
	Running  = "running"
	Waiting  = "waiting" // its turn has not come
	Offline  = "offline" // the host was not there, or went away
	Skipped  = "skipped" // the job ended before its turn
	Silent   = "silent"  // the host is there and says nothing
)

// Result is what a host says of a command. One without outcome, that is Running, is no end.
type Result struct {
	Job    string          `json:"job"`
	State  string          `json:"state"`
	RC     int             `json:"rc"`
	Return json.RawMessage `json:"return,omitempty"`
	Code   string          `json:"code,omitempty"` // of the error
	Error  string          `json:"error,omitempty"`
	Step   string          `json:"step,omitempty"`  // what it is at, or was when it ended
	Began  int64           `json:"began,omitempty"` // server's time, microseconds
	Took   int64           `json:"took,omitempty"`  // microseconds
	Blob   string          `json:"blob,omitempty"`  // sha256 of the whole result, where Return has its head only
	Size   int64           `json:"size,omitempty"`  // bytes of that
	Ack    bool            `json:"ack,omitempty"`   // is kept until the server has acknowledged it
	Lossy  bool            `json:"lossy,omitempty"` // it had bytes that are no UTF-8
}

// End tells whether a state is the last one that a host says.
func End(state string) bool {
	switch state {
	case Answered, Failed, Refused, Stopped, TimedOut:
		return true
	}
	return false
}

// Ack tells an agent which results the server has.
type Ack struct {
	Jobs []string `json:"jobs"`
}

// MaxInline is the most of a result that goes over the bus; the whole of a larger one is a blob.
const MaxInline = 16 << 10
