package agent

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"drover/internal/durable"
	"drover/internal/fault"
	"drover/internal/job/wire"
)

// How long a command is known after it came, and how many of those that only read.
const (
	keepKnown  = 24 * time.Hour
	keepRead   = 2 * time.Minute
	maxReads   = 256
	maxJournal = 10_000
)

// journal knows which commands came, so that none runs twice, and keeps results until the server
// has them. Those that may change something are on disk before they run, in DIR/jobs/JID.json;
// those that only read are in memory, and may run again after a restart within their minute.
type journal struct {
	dir string // "" keeps everything in memory

	mu        sync.Mutex // guards what follows
	known     map[string]*entry
	inventory string // digest of the last report
}

// entry is one command.
type entry struct {
	Job     string       `json:"job"`
	Fun     string       `json:"fun"`
	Came    time.Time    `json:"came"`
	Expires int64        `json:"expires"`
	Done    bool         `json:"done"`
	Acked   bool         `json:"acked"`
	Result  *wire.Result `json:"result,omitempty"`
	reads   bool
	said    time.Time
}

func openJournal(dir string) (*journal, error) {
	j := &journal{known: map[string]*entry{}}
	if dir == "" {
		return j, nil
	}
	j.dir = filepath.Join(dir, "jobs")
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return nil, fault.Unavailable("agent_dir", "the directory %s cannot be made", j.dir).Wrap(err).Fix("give another with --dir, or run the agent as root")
	}
	es, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, err
	}
	for _, de := range es {
		id, ok := strings.CutSuffix(de.Name(), ".json")
		if !ok || !wire.IsJID(id) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(j.dir, de.Name()))
		e := &entry{}
		if err == nil {
			err = json.Unmarshal(b, e)
		}
		if err != nil { // it came, and must not run again
			e = &entry{Job: id, Came: time.Now()}
		}
		if !e.Done { // the agent ended while it ran
			e.Done = true
			e.Result = &wire.Result{Job: id, State: wire.Failed, RC: 1, Code: "agent_ended", Error: "the agent, or the host, ended while it ran; what it did until then is done", Ack: true}
		}
		j.known[id] = e
	}
	b, err := os.ReadFile(filepath.Join(dir, "inventory"))
	if err == nil {
		j.inventory = string(b)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return j, nil
}

// begin takes note of a command. It returns the entry of one that came before.
func (j *journal) begin(c wire.Command, reads bool) (before *entry, err error) {
	j.mu.Lock()
	if e := j.known[c.Job]; e != nil {
		before := *e
		j.mu.Unlock()
		return &before, nil
	}
	if len(j.known) >= maxJournal {
		j.mu.Unlock()
		return nil, fault.Unavailable("agent_busy", "this host knows %d commands of the last day", maxJournal).Fix("send fewer")
	}
	e := &entry{Job: c.Job, Fun: c.Fun, Came: time.Now(), Expires: c.Expires, reads: reads}
	j.known[c.Job] = e
	j.mu.Unlock()
	if err := j.write(e); err != nil {
		j.mu.Lock()
		delete(j.known, c.Job)
		j.mu.Unlock()
		return nil, fault.Unavailable("agent_disk", "the command cannot be written down, so it is not run").Wrap(err).Fix("make room on the host's disk")
	}
	return nil, nil
}

func (j *journal) write(e *entry) error {
	if j.dir == "" || e.reads {
		return nil
	}
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(j.dir, e.Job+".json"), b, 0o600)
}

// done keeps a result. A disk that is full must not lose it while the agent lives.
func (j *journal) done(r wire.Result) error {
	j.mu.Lock()
	e := j.known[r.Job]
	if e == nil {
		j.mu.Unlock()
		return nil
	}
	e.Done, e.Result, e.said = true, &r, time.Now()
	c := *e
	j.mu.Unlock()
	return j.write(&c)
}

// acked drops results that the server has. That they came stays known.
func (j *journal) acked(jobs []string) {
	for _, id := range jobs {
		j.mu.Lock()
		e := j.known[id]
		if e == nil || !e.Done || e.Acked {
			j.mu.Unlock()
			continue
		}
		e.Acked, e.Result = true, nil
		c := *e
		j.mu.Unlock()
		_ = j.write(&c) // it would be said once more
	}
}

// unacked are the results that the server has not acknowledged: all, or those that were not said
// for a while.
func (j *journal) unacked(all bool) (out []wire.Result) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.known {
		if e.Done && !e.Acked && e.Result != nil && e.Result.Ack && (all || time.Since(e.said) > 30*time.Second) {
			e.said = time.Now()
			out = append(out, *e.Result)
		}
	}
	return out
}

// sweep forgets commands that nobody can send again.
func (j *journal) sweep(now int64) {
	j.mu.Lock()
	var drop []string
	reads := 0
	for id, e := range j.known {
		old := now > e.Expires+int64(time.Minute/time.Microsecond) && (e.reads && time.Since(e.Came) > keepRead || time.Since(e.Came) > keepKnown)
		if e.reads {
			reads++
			old = old || e.Done && reads > maxReads && now > e.Expires
		}
		if old && e.Done && (e.Acked || e.reads || e.Result == nil || !e.Result.Ack) {
			delete(j.known, id)
			if !e.reads {
				drop = append(drop, id)
			}
		}
	}
	j.mu.Unlock()
	for _, id := range drop {
		if j.dir != "" {
			_ = os.Remove(filepath.Join(j.dir, id+".json"))
			_ = os.Remove(filepath.Join(j.dir, id+".out"))
		}
	}
}

func (j *journal) inventoryDigest() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.inventory
}
