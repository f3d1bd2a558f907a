package build

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"drover/internal/blob"
	"drover/internal/cli"
	"drover/internal/fault"
)

// Verbs is `drover build`.
type Verbs struct {
	Submit submit `cmd:"" help:"Build a package from git, or a source RPM file." example:"drover build submit hello --target stream-10 --wait\ndrover build submit hello-1.0-1.src.rpm --target stream-10 --scratch"`
	List   list   `cmd:"" help:"List builds, newest first." example:"drover build list --package hello --state failed"`
	Show   show   `cmd:"" help:"A build with its tasks and packages." example:"drover build show 7\ndrover build show hello-1.0-1.el10"`
	Log    logs   `cmd:"" help:"Print a log of a build's task." example:"drover build log 7 --follow\ndrover build log hello-1.0-1.el10 root.log"`
	Cancel cancel `cmd:"" help:"Cancel a build." example:"drover build cancel 7 --reason 'wrong branch'"`
	Verify verify `cmd:"" help:"Build a build again and say whether the result is the same." example:"drover build verify hello-1.0-1.el10"`
}

// TaskVerbs is `drover task`.
type TaskVerbs struct {
	List taskList `cmd:"" help:"Tasks that are not done." example:"drover task list"`
	Show taskShow `cmd:"" help:"A task with its logs." example:"drover task show 42"`
}

// HostVerbs is the part of `drover builder` that speaks of builders.
type HostVerbs struct {
	List    hostList    `cmd:"" help:"List builders." example:"drover builder list"`
	Enable  hostEnable  `cmd:"" help:"Let a builder have tasks." example:"drover builder enable b1"`
	Disable hostDisable `cmd:"" help:"Give a builder no more tasks; what it holds it finishes." example:"drover builder disable b1 --note 'disk is swapped'"`
}

type waiting struct {
	Wait   bool `short:"w" help:"Wait until the build is done and its tag published; exit 1 when it failed."`
	Follow bool `short:"f" help:"Wait, and print the build log as it grows."`
}

// Submit is also `drover pkg build`.
type submit struct {
	Source   string   `arg:"" help:"Package (hello, rpms/hello), or the file of a source RPM."`
	Target   string   `short:"t" required:"" help:"Build target; see: drover target list."`
	Ref      string   `help:"Branch, tag or commit; the default branch when not given."`
	Scratch  bool     `help:"Build it, keep it out of every tag."`
	Arch     []string `help:"Only this arch; for scratch builds. Repeatable."`
	Priority int64    `help:"Lower goes first; 20 when not given."`
	Channel  string   `help:"Pool of builders."`
	waiting  `embed:""`
}

// Submit is the verb that queues a build.
type Submit = submit

// Run queues a build.
func (c submit) Run(e *cli.Env) error {
	r := Request{Target: c.Target, Ref: c.Ref, Scratch: c.Scratch, Arches: c.Arch, Priority: c.Priority, Channel: c.Channel}
	if strings.HasSuffix(c.Source, ".src.rpm") {
		d, err := upload(e, c.Source)
		if err != nil {
			return err
		}
		r.SRPM = d
	} else if r.Repo = c.Source; !strings.Contains(r.Repo, "/") {
		r.Repo = "rpms/" + r.Repo
	}
	var b Build
	if err := e.Client.Call(e.Ctx, "POST", "/api/v1/builds", r, &b); err != nil {
		return err
	}
	e.Say("build %d: %s/builds/%d", b.ID, e.Client.Base, b.ID)
	if c.Wait || c.Follow {
		return wait(e, b.ID, c.Follow)
	}
	return e.Show(b, func(w io.Writer) { fmt.Fprintln(w, b.ID) })
}

func upload(e *cli.Env, file string) (blob.Digest, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", fault.Invalid("file", "the source RPM cannot be read").Wrap(err)
	}
	defer closeQuietly(f)
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	e.Say("uploading %s (%d bytes)", file, st.Size())
	resp, err := e.Client.Do(e.Ctx, "POST", "/api/v1/srpms", map[string][]string{"Content-Length": {strconv.FormatInt(st.Size(), 10)}}, f)
	if err != nil {
		return "", err
	}
	defer closeQuietly(resp.Body)
	var up struct {
		Digest string `json:"digest"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1024)).Decode(&up); err != nil {
		return "", err
	}
	return blob.Parse(up.Digest)
}

func get(e *cli.Env, ref string) (w Whole, err error) {
	err = e.Client.Call(e.Ctx, "GET", "/api/v1/builds/"+url.PathEscape(ref), nil, &w)
	return w, err
}

// wait waits for the end of a build: the server says when to look.
func wait(e *cli.Env, id int64, follow bool) error {
	said := map[int64]TaskState{}
	logged := map[int64]bool{}
	for {
		w, err := get(e, strconv.FormatInt(id, 10))
		if err != nil {
			return err
		}
		var running *Task
		for i, t := range w.Tasks {
			if said[t.ID] != t.State && t.Parent != 0 {
				said[t.ID] = t.State
				e.Say("task %d %s %s: %s%s", t.ID, t.Method, t.Arch, strings.ToLower(string(t.State)), optional(" on ", t.Builder))
			}
			if t.State == TaskOpen && t.Parent != 0 && !logged[t.ID] {
				running = &w.Tasks[i]
			}
		}
		if w.State != Building {
			if err := verdict(e, w); err != nil || w.Tag == "" {
				return err
			}
			return published(e, w.Tag)
		}
		if follow && running != nil {
			logged[running.ID] = true
			if err := copyLog(e, running.ID, "build.log", true); err != nil && fault.Code(err) != "log_unknown" {
				return err
			}
			continue
		}
		if err := e.Client.Call(e.Ctx, "GET", fmt.Sprintf("/api/v1/builds/%d/wait?state=%s", id, url.QueryEscape(fingerprint(w.Tasks))), nil, nil); err != nil {
			return err
		}
	}
}

// fingerprint is the states of a build's tasks in one word.
func fingerprint(ts []Task) string {
	var b strings.Builder
	for _, t := range ts {
		fmt.Fprintf(&b, "%d%.2s%d.", t.ID, t.State, t.Attempt)
	}
	return b.String()
}

// published waits until hosts can install what has just been tagged.
func published(e *cli.Env, tag string) error {
	var c struct {
		Snapshot string `json:"snapshot"`
	}
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/tags/"+url.PathEscape(tag)+"/published", nil, &c); err != nil {
		return err
	}
	e.Say("published: channel %s is at snapshot %.12s", tag, c.Snapshot)
	return nil
}

func verdict(e *cli.Env, w Whole) error {
	err := e.Show(w, func(out io.Writer) {
		name := w.NVR
		if name == "" {
			name = w.Package
		}
		fmt.Fprintf(out, "%s %s in %s\n", name, strings.ToLower(string(w.State)), w.Finished.Sub(w.Created).Round(10*time.Millisecond))
		if v := w.Verdict; v != nil {
			if v.Same {
				fmt.Fprintf(out, "build %d is reproduced: every package is the same, byte for byte, but for signatures\n", w.Verifies)
			}
			for _, d := range v.Differs {
				fmt.Fprintln(out, "differs:", d)
			}
		}
	})
	if err != nil {
		return err
	}
	if w.State != Complete {
		f := fault.Conflict(w.Code, "%s", w.Message)
		if w.Line != "" {
			f.Msg += "\n  " + w.Line
		}
		f.Remedy = w.Remedy
		return f
	}
	if v := w.Verdict; v != nil && !v.Same {
		return fault.Conflict("not_reproduced", "build %d is not reproduced", w.Verifies)
	}
	return nil
}

func copyLog(e *cli.Env, task int64, name string, follow bool) error {
	q := ""
	if follow {
		q = "?follow=1"
	}
	resp, err := e.Client.Do(e.Ctx, "GET", fmt.Sprintf("/api/v1/tasks/%d/logs/%s%s", task, url.PathEscape(name), q), nil, nil)
	if err != nil {
		return err
	}
	defer closeQuietly(resp.Body)
	_, err = io.Copy(e.Out, resp.Body)
	return err
}

type list struct {
	Package string `help:"Only of this package."`
	State   string `help:"Only in this state: building, complete, failed, canceled."`
	Target  string `help:"Only for this target."`
	Query   string `short:"q" help:"Part of the NVR."`
	Scratch bool   `help:"Scratch builds too."`
	Limit   int    `short:"n" default:"30" help:"How many."`
}

// Run lists builds.
func (c list) Run(e *cli.Env) error {
	q := url.Values{"package": {c.Package}, "state": {strings.ToUpper(c.State)}, "target": {c.Target}, "q": {c.Query}, "limit": {strconv.Itoa(c.Limit)}}
	if c.Scratch {
		q.Set("scratch", "true")
	}
	var bs []Build
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/builds?"+q.Encode(), nil, &bs); err != nil {
		return err
	}
	return e.Show(bs, func(w io.Writer) {
		cli.Table(w, "BUILD NVR STATE TARGET BY CREATED", func(row func(...any)) {
			for _, b := range bs {
				name := b.NVR
				if name == "" {
					name = b.Package
				}
				row(b.ID, name, b.State, b.Target, b.Owner, b.Created.Format(time.DateTime))
			}
		})
	})
}

type show struct {
	Build string `arg:"" help:"Number or NVR."`
}

// Run shows a build.
func (c show) Run(e *cli.Env) error {
	b, err := get(e, c.Build)
	if err != nil {
		return err
	}
	return e.Show(b, func(w io.Writer) {
		fmt.Fprintf(w, "build %d  %s  %s\n", b.ID, b.NVR, b.State)
		fmt.Fprintf(w, "package %s  target %s  tag %s  by %s\n", b.Package, b.Target, b.Tag, b.Owner)
		if b.Commit != "" {
			fmt.Fprintf(w, "commit %s of %s\n", b.Commit, b.Repo)
		}
		if b.Message != "" {
			fmt.Fprintf(w, "%s: %s\n%s\n%s\n", b.Code, b.Message, b.Line, b.Remedy)
		}
		fmt.Fprintln(w)
		cli.Table(w, "TASK METHOD ARCH STATE BUILDER ATTEMPT ROOT LOGS", func(row func(...any)) {
			for _, t := range b.Tasks {
				var ls []string
				for _, l := range t.Logs {
					ls = append(ls, l.Name)
				}
				row(t.ID, t.Method, t.Arch, t.State, t.Builder, t.Attempt, t.Before[:min(12, len(t.Before))], strings.Join(ls, " "))
			}
		})
		fmt.Fprintln(w)
		for _, r := range b.RPMs {
			fmt.Fprintf(w, "%s  %d bytes  header %.12s\n", r.File, r.Size, r.Header)
		}
	})
}

type logs struct {
	Build  string `arg:"" help:"Number or NVR."`
	Name   string `arg:"" optional:"" default:"build.log" help:"Name of the log."`
	Task   int64  `help:"Of this task; the last one that has the log when not given."`
	Follow bool   `short:"f" help:"Go on while the task runs."`
}

// Run prints a log.
func (c logs) Run(e *cli.Env) error {
	if c.Task != 0 {
		return copyLog(e, c.Task, c.Name, c.Follow)
	}
	b, err := get(e, c.Build)
	if err != nil {
		return err
	}
	for i := len(b.Tasks) - 1; i >= 0; i-- {
		for _, l := range b.Tasks[i].Logs {
			if l.Name == c.Name {
				return copyLog(e, b.Tasks[i].ID, c.Name, c.Follow)
			}
		}
	}
	return fault.NotFound("log_unknown", "build %s has no %s", c.Build, c.Name).Fix("see `drover build show %s`", c.Build)
}

type cancel struct {
	Build  string `arg:"" help:"Number or NVR."`
	Reason string `help:"Why; goes into the ledger."`
}

// Run cancels a build.
func (c cancel) Run(e *cli.Env) error {
	b, err := get(e, c.Build)
	if err != nil {
		return err
	}
	return e.Client.Call(e.Ctx, "POST", fmt.Sprintf("/api/v1/builds/%d/cancel", b.ID), map[string]string{"reason": c.Reason}, nil)
}

type verify struct {
	Build  string `arg:"" help:"Number or NVR of a complete build."`
	Follow bool   `short:"f" help:"Print the build log as it grows."`
}

// Run rebuilds and compares.
func (c verify) Run(e *cli.Env) error {
	var b Build
	if err := e.Client.Call(e.Ctx, "POST", "/api/v1/builds/"+url.PathEscape(c.Build)+"/verify", nil, &b); err != nil {
		return err
	}
	e.Say("rebuilding as build %d: %s/builds/%d", b.ID, e.Client.Base, b.ID)
	return wait(e, b.ID, c.Follow)
}

type taskList struct{}

// Run lists tasks.
func (taskList) Run(e *cli.Env) error {
	var ts []Task
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/tasks", nil, &ts); err != nil {
		return err
	}
	return e.Show(ts, func(w io.Writer) {
		cli.Table(w, "TASK BUILD METHOD ARCH CHANNEL PRIORITY STATE BUILDER", func(row func(...any)) {
			for _, t := range ts {
				row(t.ID, t.Build, t.Method, t.Arch, t.Channel, t.Priority, t.State, t.Builder)
			}
		})
	})
}

type taskShow struct {
	Task int64 `arg:"" help:"Number of the task."`
}

// Run shows a task.
func (c taskShow) Run(e *cli.Env) error {
	var t Task
	if err := e.Client.Call(e.Ctx, "GET", fmt.Sprintf("/api/v1/tasks/%d", c.Task), nil, &t); err != nil {
		return err
	}
	return e.Show(t, func(w io.Writer) {
		fmt.Fprintf(w, "task %d  %s %s  %s  build %d  builder %s  attempt %d\n", t.ID, t.Method, t.Arch, t.State, t.Build, t.Builder, t.Attempt)
		if t.Message != "" {
			fmt.Fprintf(w, "%s: %s\n%s\n%s\n", t.Code, t.Message, t.Line, t.Remedy)
		}
		if t.Kept != "" {
			fmt.Fprintf(w, "the failed root is kept on %s: drover build shell %d\n", t.Builder, t.ID)
		}
		for _, l := range t.Logs {
			fmt.Fprintf(w, "%s  %d bytes\n", l.Name, l.Size)
		}
	})
}

type hostList struct{}

// Run lists builders.
func (hostList) Run(e *cli.Env) error {
	var bs []BuilderInfo
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/builders", nil, &bs); err != nil {
		return err
	}
	return e.Show(bs, func(w io.Writer) {
		cli.Table(w, "BUILDER ENABLED HOST ARCHES CHANNELS SLOTS TASKS SEEN", func(row func(...any)) {
			for _, b := range bs {
				row(b.Name, b.Enabled, b.Host, strings.Join(b.Arches, ","), strings.Join(b.Channels, ","), b.Slots, b.Tasks, b.Seen.Format(time.DateTime))
			}
		})
	})
}

type hostEnable struct {
	Name string `arg:"" help:"Name of the builder."`
}

// Run enables a builder.
func (c hostEnable) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/builders/"+url.PathEscape(c.Name), map[string]any{"enabled": true}, nil)
}

type hostDisable struct {
	Name string `arg:"" help:"Name of the builder."`
	Note string `help:"Why."`
}

// Run disables a builder.
func (c hostDisable) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/builders/"+url.PathEscape(c.Name), map[string]any{"enabled": false, "note": c.Note}, nil)
}
