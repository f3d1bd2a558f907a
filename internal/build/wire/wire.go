// Package wire is what a drover server and its builders say to each other over HTTPS:
// JSON types and paths, nothing that runs. Both sides import it and neither imports the
// other. A builder's every word is a claim until the server has checked it.
package wire

// Version is the capability version of the protocol; each step has a dated line.
//
//	1  2026-11-24  poll, renew, log, upload, finish
const Version = 1

// Paths of the builder's routes. Every one needs a builder's token (right "work.build").
const (
	PathPoll   = "/api/v1/builder/poll"               // POST Poll -> Orders, a long poll of up to 55 s
	PathRenew  = "/api/v1/builder/tasks/%d/renew"     // POST Renew
	PathLog    = "/api/v1/builder/tasks/%d/logs/%s"   // POST raw bytes, ?fence=F&offset=N; repeating bytes is harmless
	PathFile   = "/api/v1/builder/tasks/%d/files/%s"  // PUT raw bytes by sha256, ?fence=F
	PathFinish = "/api/v1/builder/tasks/%d/finish"    // POST Finish
	PathTree   = "/api/v1/builder/tasks/%d/tree.tar"  // GET the commit's files as tar, ?fence=F
	PathSource = "/api/v1/builder/tasks/%d/inputs/%s" // GET an input by sha256, ?fence=F
)

// Methods of tasks that builders run, named as in Koji.
const (
	MethodSRPM    = "buildSRPMFromSCM"
	MethodRebuild = "rebuildSRPM"
	MethodArch    = "buildArch"
)

// Poll is what a builder says of itself while it waits for work.
type Poll struct {
	Version  int      `json:"version"`
	Arches   []string `json:"arches"`                          // what it builds: "x86_64", "noarch"
	Channels []string `json:"channels"`                        // "default"
	Slots    int      `json:"slots" minimum:"0" maximum:"256"` // how many tasks it runs at once, those that it holds counted
	Running  []Held   `json:"running"`                         // what it holds; the server cancels what it should not hold
	Host     string   `json:"host"`                            // host name, for people
	Wait     int      `json:"wait" minimum:"0" maximum:"55"`   // seconds to wait when there is nothing
	Leaving  bool     `json:"leaving,omitempty"`               // it takes no more: give back what it was handed and does not hold
}

// Held is a task that a builder holds under a lease.
type Held struct {
	ID    int64 `json:"id"`
	Fence int64 `json:"fence"`
}

// Orders answers a poll.
type Orders struct {
	Tasks  []Task  `json:"tasks"`
	Cancel []int64 `json:"cancel"` // held tasks that are canceled, or not this builder's any more
}

// Task is one unit of work, complete: a builder needs nothing else but the URLs in it.
type Task struct {
	ID     int64             `json:"id"`
	Fence  int64             `json:"fence"` // grows with every lease of the task; an older one is refused
	Lease  int               `json:"lease"` // seconds until the lease ends unless it is renewed
	Method string            `json:"method"`
	Name   string            `json:"name"`   // of the package, for people
	Arch   string            `json:"arch"`   // the root's arch and rpmbuild --target: "x86_64"
	NoArch bool              `json:"noarch"` // build with --target noarch in a root of Arch
	Root   Root              `json:"root"`
	Tree   bool              `json:"tree"`   // MethodSRPM: fetch PathTree; the inputs go beside its files
	Inputs []File            `json:"inputs"` // lookaside files, or the SRPM for MethodRebuild and MethodArch
	Macros map[string]string `json:"macros"` // for rpmbuild: "dist": ".el10"
	Epoch  int64             `json:"epoch"`  // SOURCE_DATE_EPOCH in seconds: the commit's time
	Limits Limits            `json:"limits"`
}

// Root tells how the buildroot is made: by dnf from immutable repositories. Equal Roots give
// equal roots, so that a builder may cache by their digest.
type Root struct {
	Repos   []Repo   `json:"repos"`   // in order of priority, first wins
	Install []string `json:"install"` // what is installed before BuildRequires
}

// Repo is one immutable repository.
type Repo struct {
	ID     string `json:"id"`     // a short name for dnf: "stream-10-fleet"
	URL    string `json:"url"`    // path on the server, relative to its base: "/snapshots/<digest>/x86_64/"
	Digest string `json:"digest"` // sha256 of its repomd.xml: the identity of the content
}

// File is bytes by digest.
type File struct {
	Name   string `json:"name"`
	Digest string `json:"digest"` // sha256, 64 hex digits
	Size   int64  `json:"size"`
}

// Limits bound a task.
type Limits struct {
	Memory int64 `json:"memory"` // bytes
	Disk   int64 `json:"disk"`   // bytes
	Pids   int   `json:"pids"`
	Time   int   `json:"time"` // seconds
}

// Renew keeps a lease.
type Renew struct {
	Fence int64 `json:"fence"`
}

// Finish ends a task: Failure is nil when it worked.
type Finish struct {
	Fence   int64    `json:"fence"`
	Failure *Failure `json:"failure,omitempty"`
	Files   []File   `json:"files"` // RPMs and SRPM, uploaded before by PathFile
	Before  []Pkg    `json:"before" doc:"packages in the root before rpmbuild ran"`
	After   []Pkg    `json:"after" doc:"packages in the root after; equal unless the build tampered with the rpm database"`
	Started int64    `json:"started" doc:"when rpmbuild began, microseconds since 1970"`
	Warm    bool     `json:"warm" doc:"the root came whole from the cache"`
}

// Pkg is a package in a buildroot.
type Pkg struct {
	NEVRA  string `json:"n"`
	Header string `json:"h"` // sha256 of the immutable header (RPMTAG_SHA256HEADER)
}

// Failure says why a task did not work.
type Failure struct {
	Infra   bool   `json:"infra"` // not the package's fault: the server tries it again elsewhere
	Code    string `json:"code"`  // stable: "build_failed", "deps_unresolved", "spec_parse", "disk_limit", "timeout", "oom", "canceled"
	Message string `json:"message"`
	Remedy  string `json:"remedy"`
	Line    string `json:"line"` // the first line of the log that is an error
	Root    string `json:"root"` // where the builder keeps the failed root, for `drover build shell`
}
