package job

import (
	"encoding/json"
	"regexp"
	"time"

	"drover/internal/fault"
	"drover/internal/job/wire"
)

// Spec is what somebody wants to have done.
type Spec struct {
	Form      string         `json:"form,omitempty" doc:"how target is written: glob (the default), list, pcre, grain, grain_pcre, compound, nodegroup, ipcidr, query"`
	Target    string         `json:"target" maxLength:"1048576"`
	Fun       string         `json:"fun" maxLength:"100" doc:"MODULE.FUNCTION"`
	Args      []any          `json:"args,omitempty"`
	Kwargs    map[string]any `json:"kwargs,omitempty"`
	Test      bool           `json:"test,omitempty" doc:"say what would be done, and do nothing"`
	Timeout   int64          `json:"timeout,omitempty" minimum:"0" maximum:"604800" doc:"seconds that it may run on a host; 0 means one hour"`
	Batch     string         `json:"batch,omitempty" maxLength:"20" doc:"how many hosts at once: a number, or a part such as 10%"`
	BatchWait float64        `json:"batch_wait,omitempty" minimum:"0" maximum:"86400" doc:"seconds between the end on one host and the begin on the next"`
	FailHard  bool           `json:"failhard,omitempty" doc:"begin on no more hosts after the first failure"`
	Subset    int            `json:"subset,omitempty" minimum:"0" doc:"only so many of the hosts, chosen at random"`
	Reason    string         `json:"reason,omitempty" maxLength:"500"`
}

// States of a job.
const (
	StateApproval = "approval" // waits for a second person
	StateRunning  = "running"
	StateStopping = "stopping" // no host begins any more
	StateDone     = "done"
	StateRejected = "rejected" // a second person said no
)

// Job is a job as shown.
type Job struct {
	ID      string         `json:"id" doc:"Salt's JID"`
	Author  string         `json:"author"`
	State   string         `json:"state"`
	Why     string         `json:"why,omitempty"`
	Spec    Spec           `json:"spec"`
	Total   int            `json:"total" doc:"hosts"`
	Counts  map[string]int `json:"counts" doc:"hosts by verdict"`
	Created time.Time      `json:"created"`
	Ended   time.Time      `json:"ended,omitzero"`
	Event   int64          `json:"event"`

	num int64
}

// Failures are the hosts on which it did not go well.
func (j Job) Failures() int { return j.Total - j.Counts[wire.Answered] - j.pending() }

func (j Job) pending() int {
	return j.Counts[wire.Running] + j.Counts[wire.Waiting]
}

// Verdict is what became of a job on one host.
type Verdict struct {
	Host   string          `json:"host"`
	State  string          `json:"state" doc:"answered, failed, refused, stopped, timed-out, offline, silent, skipped; running or waiting before that"`
	RC     int             `json:"rc"`
	Return json.RawMessage `json:"return,omitempty"`
	Code   string          `json:"code,omitempty"`
	Error  string          `json:"error,omitempty"`
	Step   string          `json:"step,omitempty"`
	Since  time.Time       `json:"since,omitzero" doc:"offline: since when"`
	Began  time.Time       `json:"began,omitzero"`
	Took   float64         `json:"took,omitempty" doc:"seconds"`
	Blob   string          `json:"blob,omitempty" doc:"sha256 of the whole result, when return is its head only"`
	Size   int64           `json:"size,omitempty"`
	At     time.Time       `json:"at,omitzero"`

	host int64
}

// final tells whether a verdict is one that a job can end with.
func final(state string) bool { return state != wire.Running && state != wire.Waiting }

// bad tells whether a verdict is a failure to failhard. A host that is not there is none: it
// blocks nothing and tells nothing of the change.
func bad(state string) bool {
	return state == wire.Failed || state == wire.TimedOut || state == wire.Refused || state == wire.Silent
}

var reFun = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,40}\.[a-z_][A-Za-z0-9_]{0,50}$`)

// maxArgs bounds the arguments of a job, as JSON: each host gets them in one message.
const maxArgs = 40 << 10

func (s *Spec) check() error {
	if s.Form == "" {
		s.Form = "glob"
	}
	if !reFun.MatchString(s.Fun) {
		return fault.Invalid("function", "%.100q is no function", s.Fun).Fix("give MODULE.FUNCTION, such as test.ping; `drover run HOST sys.list_functions` lists them")
	}
	if s.Timeout == 0 {
		s.Timeout = 3600
	}
	b, err := json.Marshal([]any{s.Args, s.Kwargs})
	if err != nil {
		return fault.Invalid("arguments", "the arguments are no JSON").Wrap(err)
	}
	if len(b) > maxArgs {
		return fault.TooLarge("arguments_large", "the arguments have %d bytes; at most %d", len(b), maxArgs).Fix("put what is large into a file that the hosts fetch")
	}
	if _, err := batchSize(s.Batch, 1); err != nil {
		return err
	}
	return nil
}
