package build

import (
	"context"
	"embed"
	"io"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"drover/internal/blob"
	"drover/internal/build/wire"
	"drover/internal/db"
	"drover/internal/distgit"
	"drover/internal/fault"
)

//go:embed migrations
var migrations embed.FS

// Schema is the tables of builds, tasks, RPMs and buildroots.
func Schema() db.Schema { return db.Schema{Name: "build", FS: migrations} }

// State of a build, as in Koji.
type State string

// The states of a build.
const (
	Building State = "BUILDING"
	Complete State = "COMPLETE"
	Failed   State = "FAILED"
	Canceled State = "CANCELED"
)

// TaskState is the state of a task, as in Koji. ASSIGNED does not occur: work is handed
// over and opened in one step.
type TaskState string

// The states of a task.
const (
	TaskFree     TaskState = "FREE"
	TaskOpen     TaskState = "OPEN"
	TaskClosed   TaskState = "CLOSED"
	TaskFailed   TaskState = "FAILED"
	TaskCanceled TaskState = "CANCELED"
)

// MethodBuild is the root of a build's task tree; the server itself runs it.
const MethodBuild = "build"

// Priorities as in Koji: lower goes first, a child goes before its parent's rank.
const (
	DefaultPriority = 20
	childPriority   = DefaultPriority - 1
)

// Build is one NVR built from one commit or one source RPM.
type Build struct {
	ID       int64     `json:"id"`
	Package  string    `json:"package"`
	NVR      string    `json:"nvr,omitempty"` // empty until the source RPM is there
	Epoch    int64     `json:"epoch"`
	State    State     `json:"state"`
	Target   string    `json:"target"`
	Tag      string    `json:"tag,omitempty"` // destination; empty for a scratch build
	Scratch  bool      `json:"scratch"`
	Verifies int64     `json:"verifies,omitempty"` // the build that this one rebuilds to compare
	Repo     string    `json:"repo,omitempty"`
	Commit   string    `json:"commit,omitempty"`
	SRPM     string    `json:"srpm,omitempty"` // sha256 of an uploaded source RPM
	Owner    string    `json:"owner"`
	Task     int64     `json:"task"`
	Created  time.Time `json:"created"`
	Finished time.Time `json:"finished,omitzero"`
	Code     string    `json:"code,omitempty"`
	Message  string    `json:"message,omitempty"`
	Remedy   string    `json:"remedy,omitempty"`
	Line     string    `json:"line,omitempty"` // first line of the log that is an error
	Verdict  *Verdict  `json:"verdict,omitempty"`
	Since    int64     `json:"since"` // the event that made it
}

// Plan is what a build was told to do, fixed when it was submitted so that it can be
// done again.
type Plan struct {
	BuildTag string               `json:"build_tag"`
	Arches   []string             `json:"arches"`
	Roots    map[string]wire.Root `json:"roots"`             // by arch
	Sources  []wire.File          `json:"sources,omitempty"` // the commit's files in the lookaside cache
	Macros   map[string]string    `json:"macros"`
	Epoch    int64                `json:"epoch"` // SOURCE_DATE_EPOCH, seconds
	Limits   wire.Limits          `json:"limits"`
	Channel  string               `json:"channel"`
	Priority int64                `json:"priority"`
}

// Task is a unit of queued work.
type Task struct {
	ID       int64     `json:"id"`
	Parent   int64     `json:"parent,omitempty"`
	Build    int64     `json:"build"`
	Method   string    `json:"method"`
	Arch     string    `json:"arch"`
	Label    string    `json:"label"`
	Channel  string    `json:"channel"`
	Priority int64     `json:"priority"`
	State    TaskState `json:"state"`
	Attempt  int64     `json:"attempt"`
	Builder  string    `json:"builder,omitempty"`
	Created  time.Time `json:"created"`
	Started  time.Time `json:"started,omitzero"`
	Running  time.Time `json:"running,omitzero"` // when rpmbuild began, by the builder's word
	Finished time.Time `json:"finished,omitzero"`
	Code     string    `json:"code,omitempty"`
	Message  string    `json:"message,omitempty"`
	Remedy   string    `json:"remedy,omitempty"`
	Line     string    `json:"line,omitempty"`
	Kept     string    `json:"kept,omitempty"` // where the builder keeps the failed root
	Before   string    `json:"root_before,omitempty"`
	After    string    `json:"root_after,omitempty"`
	Logs     []Log     `json:"logs,omitempty"`

	fence int64
	lease int64
}

// Log is a log of a task.
type Log struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// RPM is one package of a build.
type RPM struct {
	ID      int64       `json:"id"`
	Build   int64       `json:"build"`
	Task    int64       `json:"task"`
	File    string      `json:"file"`
	Name    string      `json:"name"`
	Epoch   int64       `json:"epoch"`
	Version string      `json:"version"`
	Release string      `json:"release"`
	Arch    string      `json:"arch"`   // "src" for the source RPM
	Header  string      `json:"header"` // sha256 of the immutable header
	Digest  blob.Digest `json:"digest"` // sha256 of the unsigned file
	Size    int64       `json:"size"`   // of the unsigned file
	Head    blob.Digest `json:"-"`      // lead and unsigned signature header
	Core    blob.Digest `json:"-"`      // immutable header and payload
}

// Target is where a build goes, as release knows it.
type Target struct {
	Name     string
	BuildTag string
	DestTag  string
	Arches   []string
	Install  []string          // packages in the root before BuildRequires
	Macros   map[string]string // "dist"
}

// Tags is what build needs of release.
type Tags interface {
	// For finds a target; fault target_unknown.
	For(tx *db.Tx, name string) (Target, error)
	// Put puts a build that has just become complete into its destination tag, in
	// the same transaction.
	Put(tx *db.Tx, tag string, build int64, pkg string) error
}

// Roots is what build needs of repo.
type Roots interface {
	// Repos are the immutable repositories that a build tag installs from, newest state.
	Repos(ctx context.Context, tag, arch string) ([]wire.Repo, error)
}

// Config is what a Store needs.
type Config struct {
	DB    *db.DB
	Blobs *blob.Store
	Git   *distgit.Store
	Tags  Tags
	Roots Roots
	Dir   string // logs of running tasks, and files that builders hand in
	Log   *slog.Logger
	Lease time.Duration // how long a silent builder keeps a task; 0 means one minute

	Limits wire.Limits // of a task; the zero value means DefaultLimits
}

// Store is the build system of a server.
type Store struct {
	Config

	queue bell // rings when tasks came free or ended
	grown bell // rings when a log grew or ended

	mu    sync.RWMutex             // guards polls; read-held while a task is handed to one
	polls map[string]chan struct{} // each builder's newest poll; closed when the next one comes
}

// New makes a Store.
func New(c Config) *Store {
	if c.Lease == 0 {
		c.Lease = time.Minute
	}
	if c.Limits == (wire.Limits{}) {
		c.Limits = DefaultLimits()
	}
	return &Store{Config: c, polls: map[string]chan struct{}{}}
}

// bell wakes all who wait for the next ring.
type bell struct {
	mu sync.Mutex // guards c
	c  chan struct{}
}

// next is a channel that closes at the next ring.
func (b *bell) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c == nil {
		b.c = make(chan struct{})
	}
	return b.c
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c != nil {
		close(b.c)
		b.c = nil
	}
}

// DefaultInstall is what a buildroot holds before BuildRequires: CentOS Stream's own
// "build" group, by name.
func DefaultInstall() []string {
	return []string{"bash", "bzip2", "coreutils", "cpio", "diffutils", "findutils", "gawk", "glibc-minimal-langpack", "grep", "gzip",
		"info", "patch", "redhat-rpm-config", "rpm-build", "sed", "shadow-utils", "system-release", "tar", "unzip", "util-linux", "which", "xz"}
}

// DefaultLimits bound a task.
func DefaultLimits() wire.Limits {
	return wire.Limits{Memory: 8 << 30, Disk: 40 << 30, Pids: 4096, Time: 8 * 3600}
}

var reNVR = regexp.MustCompile(`^[A-Za-z0-9_.+-]+-[A-Za-z0-9_.+~^]+-[A-Za-z0-9_.+~^]+$`)

func unknown(what string, id any) error {
	return fault.NotFound(what+"_unknown", "there is no %s %v", what, id).Fix("see `drover %s list`", what)
}

// closeQuietly is for closers whose error changes nothing: what they guard was read only.
func closeQuietly(c io.Closer) { _ = c.Close() }
