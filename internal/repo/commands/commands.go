package commands

import (
	"cmp"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"drover/internal/cli"
	"drover/internal/repo"
	"drover/internal/repo/serving"
)

// SnapshotVerbs is `drover snapshot`.
type SnapshotVerbs struct {
	List snapshotList `cmd:"" help:"List snapshots, newest first." example:"drover snapshot list --source stream-10"`
	Show snapshotShow `cmd:"" help:"A snapshot with its packages." example:"drover snapshot show c837ea6f9858"`
	Diff snapshotDiff `cmd:"" help:"What differs between two snapshots." example:"drover snapshot diff stream-10/prod@2026-11-20T00:00:00Z stream-10/prod"`

	Name   snapshotName   `cmd:"" help:"Give a snapshot a name, and keep it." example:"drover snapshot name stream-10/prod before-9.6 --reason 'the last one before the migration'"`
	Unname snapshotUnname `cmd:"" help:"Take a name away." example:"drover snapshot unname before-9.6"`
	Names  snapshotNames  `cmd:"" help:"List the names of snapshots." example:"drover snapshot names"`
	Export snapshotExport `cmd:"" help:"Copy a snapshot into a directory, for rsync, a disc or another web server." example:"drover snapshot export stream-10/prod /mnt/usb"`
	Sweep  snapshotSweep  `cmd:"" help:"Remove what nothing keeps, now; the server does it every six hours." example:"drover snapshot sweep --dry"`
}

// LineVerbs is `drover line`.
type LineVerbs struct {
	List lineList `cmd:"" help:"List lines of channels." example:"drover line list"`
	Set  lineSet  `cmd:"" help:"Make a line of channels, or change it." example:"drover line set stream-10 --part baseos --part fleet --stage dev --stage test --stage prod"`
	Drop lineDrop `cmd:"" help:"End a line; its channels stay." example:"drover line drop stream-10"`
}

// ChannelVerbs is `drover channel`.
type ChannelVerbs struct {
	List    channelList    `cmd:"" help:"List channels." example:"drover channel list"`
	History channelHistory `cmd:"" help:"Where a channel pointed, newest first." example:"drover channel history stream-10"`
	Census  channelCensus  `cmd:"" help:"How many hosts follow a channel, by week and by how long they have." example:"drover channel census stream-10"`
	Set     channelSet     `cmd:"" help:"Move a channel to a snapshot by hand." example:"drover channel set stream-10 c837ea6f9858"`

	Plan     channelPlan     `cmd:"" help:"What promoting a channel would change, and what the gate says of it." example:"drover channel plan stream-10/prod"`
	Promote  channelPromote  `cmd:"" help:"Move a stage of a line to what the stage before it has." example:"drover channel promote stream-10/prod --reason 'weekly'"`
	Rollback channelRollback `cmd:"" help:"Move a channel back to the state before, or to one that it had." example:"drover channel rollback stream-10/prod --reason 'sshd does not start'"`
	Freeze   channelFreeze   `cmd:"" help:"Keep a channel where it is." example:"drover channel freeze stream-10/prod --reason 'holidays' --for 240h"`
	Thaw     channelThaw     `cmd:"" help:"Let a channel move again." example:"drover channel thaw stream-10/prod"`
	Hold     channelHold     `cmd:"" help:"Keep a package at its version when the channel is promoted." example:"drover channel hold stream-10/prod 'kernel*' --reason 'panics on the R740' --for 336h"`
	Unhold   channelUnhold   `cmd:"" help:"Let a package go on with the next promotion." example:"drover channel unhold stream-10/prod 'kernel*'"`
	Holds    channelHolds    `cmd:"" help:"What a channel holds back." example:"drover channel holds stream-10/prod"`
}

// MirrorVerbs is `drover mirror`.
type MirrorVerbs struct {
	List mirrorList `cmd:"" help:"List mirrors." example:"drover mirror list"`
	Show mirrorShow `cmd:"" help:"How a mirror is copied, and what came of it." example:"drover mirror show baseos"`
	Set  mirrorSet  `cmd:"" help:"Add a mirror, or change it: what is not given is not set." example:"drover mirror set baseos https://mirror.stream.centos.org/10-stream/BaseOS/x86_64/os/ --gpgkey RPM-GPG-KEY-centosofficial-SHA256 --tree --every 6h"`
	Sync mirrorSync `cmd:"" help:"Copy upstream into a snapshot and move the channel to it." example:"drover mirror sync baseos"`
	Drop mirrorDrop `cmd:"" help:"End a mirror; its channel and snapshots stay." example:"drover mirror drop baseos"`
}

type snapshotList struct {
	Source string `help:"Only of this tag or mirror."`
}

// Run lists snapshots.
func (c snapshotList) Run(e *cli.Env) error {
	var ss []repo.Snapshot
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/snapshots?source="+url.QueryEscape(c.Source), nil, &ss); err != nil {
		return err
	}
	return e.Show(ss, func(w io.Writer) {
		cli.Table(w, "SNAPSHOT KIND SOURCE PACKAGES CREATED", func(row func(...any)) {
			for _, x := range ss {
				row(x.ID[:12], x.Kind, x.Source, x.Packages, x.Created.Format(time.DateTime))
			}
		})
	})
}

type snapshotShow struct {
	ID string `arg:"" help:"Snapshot, or the first letters of it."`
}

// Run shows a snapshot.
func (c snapshotShow) Run(e *cli.Env) error {
	var x repo.Content
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/snapshots/"+url.PathEscape(c.ID), nil, &x); err != nil {
		return err
	}
	return e.Show(x, func(w io.Writer) {
		fmt.Fprintf(w, "%s\n%s %s, %d packages, %s\n", x.ID, x.Kind, x.Source, x.Packages, x.Created.Format(time.DateTime))
		for t, ps := range x.Trees {
			for _, p := range ps {
				fmt.Fprintf(w, "%-16s %s  %s\n", t, p.File, p.Key)
			}
		}
	})
}

type snapshotDiff struct {
	From string `arg:"" help:"Snapshot."`
	To   string `arg:"" help:"Snapshot."`
}

// Run compares snapshots.
func (c snapshotDiff) Run(e *cli.Env) error {
	var d repo.Diff
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/snapshots/"+url.PathEscape(c.From)+"/diff/"+url.PathEscape(c.To), nil, &d); err != nil {
		return err
	}
	return e.Show(d, func(w io.Writer) {
		showChanges(w, d.Changes, d.Hosts)
		for _, l := range d.Logs {
			fmt.Fprintf(w, "\n%s\n", l.Source)
			for _, x := range l.Entries {
				fmt.Fprintln(w, "  "+strings.ReplaceAll(x, "\n", "\n  "))
			}
		}
	})
}

// showChanges lists changes, and how many hosts they concern when that is told.
func showChanges(w io.Writer, cs []repo.Change, hosts []string) {
	if len(cs) == 0 {
		fmt.Fprintln(w, "no package changes")
		return
	}
	cli.Table(w, "CHANGE PACKAGE ARCH WAS NOW HOSTS", func(row func(...any)) {
		for _, c := range cs {
			row(c.Kind(), c.Name, c.Arch, cmp.Or(strings.Join(c.Was, ","), "-"), cmp.Or(strings.Join(c.Now, ","), "-"), count(hosts, c.Hosts))
		}
	})
	switch {
	case hosts == nil:
	case len(hosts) == 1:
		fmt.Fprintf(w, "1 host has one of these in another version: %s\n", hosts[0])
	default:
		fmt.Fprintf(w, "%d hosts have one of these in another version\n", len(hosts))
	}
}

// count is a number of hosts, for who may know it.
func count(hosts []string, n int) string {
	if hosts == nil {
		return "-"
	}
	return strconv.Itoa(n)
}

type snapshotName struct {
	Snapshot string `arg:"" help:"Snapshot: its id, a channel, or CHANNEL@TIME."`
	Name     string `arg:"" help:"The name."`
	Reason   string `required:"" help:"Why it is kept."`
}

// Run names a snapshot.
func (c snapshotName) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/snapshots/"+url.PathEscape(c.Snapshot)+"/names/"+url.PathEscape(c.Name), repo.Note{Reason: c.Reason}, nil)
}

type snapshotUnname struct {
	Name string `arg:"" help:"The name."`
}

// Run takes a name away.
func (c snapshotUnname) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "DELETE", "/api/v1/snapshot-names/"+url.PathEscape(c.Name), nil, nil)
}

type snapshotNames struct{}

// Run lists names.
func (snapshotNames) Run(e *cli.Env) error {
	var ns []repo.Named
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/snapshot-names", nil, &ns); err != nil {
		return err
	}
	return e.Show(ns, func(w io.Writer) {
		cli.Table(w, "NAME SNAPSHOT REASON", func(row func(...any)) {
			for _, n := range ns {
				row(n.Name, n.Snapshot[:12], n.Reason)
			}
		})
	})
}

type lineList struct{}

// Run lists lines.
func (lineList) Run(e *cli.Env) error {
	var ls []repo.Line
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/lines", nil, &ls); err != nil {
		return err
	}
	return e.Show(ls, func(w io.Writer) {
		cli.Table(w, "LINE PARTS STAGES", func(row func(...any)) {
			for _, l := range ls {
				row(l.Name, strings.Join(l.Parts, ","), strings.Join(l.Stages, " → "))
			}
		})
	})
}

type lineSet struct {
	Name  string   `arg:"" help:"Name of the line."`
	Part  []string `required:"" help:"Channel of a tag or mirror; may be repeated."`
	Stage []string `required:"" help:"Stage, in the order in which a change goes through them; may be repeated."`
}

// Run makes a line.
func (c lineSet) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/lines/"+url.PathEscape(c.Name), repo.Line{Name: c.Name, Parts: c.Part, Stages: c.Stage}, nil)
}

type lineDrop struct {
	Name string `arg:"" help:"Name of the line."`
}

// Run ends a line.
func (c lineDrop) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "DELETE", "/api/v1/lines/"+url.PathEscape(c.Name), nil, nil)
}

func channelPath(name string, rest ...string) string {
	p := "/api/v1/channels/" + url.PathEscape(name)
	for _, r := range rest {
		p += "/" + url.PathEscape(r)
	}
	return p
}

type channelPlan struct {
	Channel string `arg:"" help:"Stage of a line: LINE/STAGE."`
}

// Run shows what a promotion would do.
func (c channelPlan) Run(e *cli.Env) error {
	var p repo.Plan
	if err := e.Client.Call(e.Ctx, "GET", channelPath(c.Channel, "plan"), nil, &p); err != nil {
		return err
	}
	return e.Show(p, func(w io.Writer) { showPlan(w, p) })
}

func showPlan(w io.Writer, p repo.Plan) {
	to := "a snapshot of its own" // that is made when it is promoted
	if p.Snapshot != "" {
		to = p.Snapshot[:12]
	}
	fmt.Fprintf(w, "%s ← %s: %.12s → %s\n", p.Channel, p.From, cmp.Or(p.Was, "nothing"), to)
	if p.Frozen != nil {
		fmt.Fprintf(w, "frozen by %s: %s\n", p.Frozen.Actor, p.Frozen.Reason)
	}
	for _, h := range p.Held {
		fmt.Fprintf(w, "held: %s (%s): %s\n", h.Source, h.Hold.Package, h.Hold.Reason)
	}
	showChanges(w, p.Changes, p.Hosts)
	fmt.Fprintln(w, p.Gate.Summary())
	for _, f := range p.Gate.Findings {
		fmt.Fprintf(w, "  %s: %s\n", f.Kind, f.Text)
	}
}

type channelPromote struct {
	Channel string `arg:"" help:"Stage of a line: LINE/STAGE."`
	Reason  string `help:"Why, for the ledger."`
	Force   bool   `help:"Promote although the gate says no; needs a reason."`
}

// Run promotes a channel.
func (c channelPromote) Run(e *cli.Env) error {
	var p repo.Plan
	if err := e.Client.Call(e.Ctx, "POST", channelPath(c.Channel, "promote"), repo.Move{Reason: c.Reason, Force: c.Force}, &p); err != nil {
		return err
	}
	return e.Show(p, func(w io.Writer) { showPlan(w, p) })
}

type channelRollback struct {
	Channel string `arg:"" help:"Name of the channel."`
	To      string `help:"Snapshot that it had, or CHANNEL@TIME; the state before the present one by default."`
	Reason  string `help:"Why, for the ledger."`
}

// Run moves a channel back.
func (c channelRollback) Run(e *cli.Env) error {
	var x repo.Channel
	if err := e.Client.Call(e.Ctx, "POST", channelPath(c.Channel, "rollback"), map[string]string{"to": c.To, "reason": c.Reason}, &x); err != nil {
		return err
	}
	return e.Show(x, func(w io.Writer) { fmt.Fprintf(w, "%s is at %s\n", x.Name, x.Snapshot[:12]) })
}

// keeping is how something is kept as it is.
type keepFlags struct {
	Reason string        `required:"" help:"Why; whoever meets it at night will read it."`
	For    time.Duration `help:"How long, such as 72h; until it is taken back when not given."`
}

func (k keepFlags) note() repo.Note {
	n := repo.Note{Reason: k.Reason}
	if k.For > 0 {
		n.Expires = time.Now().Add(k.For)
	}
	return n
}

type channelFreeze struct {
	Channel string `arg:"" help:"Name of the channel."`
	keepFlags
}

// Run freezes a channel.
func (c channelFreeze) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "PUT", channelPath(c.Channel, "freeze"), c.note(), nil)
}

type channelThaw struct {
	Channel string `arg:"" help:"Name of the channel."`
}

// Run thaws a channel.
func (c channelThaw) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "DELETE", channelPath(c.Channel, "freeze"), nil, nil)
}

type channelHold struct {
	Channel string `arg:"" help:"Stage of a line: LINE/STAGE."`
	Package string `arg:"" help:"Name of a source package or a package, or a pattern."`
	keepFlags
}

// Run holds a package.
func (c channelHold) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "PUT", channelPath(c.Channel, "holds", c.Package), c.note(), nil)
}

type channelUnhold struct {
	Channel string `arg:"" help:"Stage of a line: LINE/STAGE."`
	Package string `arg:"" help:"As it was held."`
}

// Run lets a package go on.
func (c channelUnhold) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "DELETE", channelPath(c.Channel, "holds", c.Package), nil, nil)
}

type channelHolds struct {
	Channel string `arg:"" help:"Stage of a line: LINE/STAGE."`
}

// Run lists holds.
func (c channelHolds) Run(e *cli.Env) error {
	var hs []repo.Hold
	if err := e.Client.Call(e.Ctx, "GET", channelPath(c.Channel, "holds"), nil, &hs); err != nil {
		return err
	}
	return e.Show(hs, func(w io.Writer) {
		cli.Table(w, "PACKAGE UNTIL BY REASON", func(row func(...any)) {
			for _, h := range hs {
				until := "-"
				if !h.Expires.IsZero() {
					until = h.Expires.Format(time.DateTime)
				}
				row(h.Package, until, h.Actor, h.Reason)
			}
		})
	})
}

func showChannels(e *cli.Env, path string) error {
	var cs []repo.Channel
	if err := e.Client.Call(e.Ctx, "GET", path, nil, &cs); err != nil {
		return err
	}
	return e.Show(cs, func(w io.Writer) {
		cli.Table(w, "CHANNEL SNAPSHOT KEY SINCE UNTIL", func(row func(...any)) {
			for _, c := range cs {
				until := "now"
				if c.Until != 0 {
					until = strconv.FormatInt(c.Until, 10)
				}
				row(c.Name, c.Snapshot[:12], c.Key, c.Since, until)
			}
		})
	})
}

type channelList struct{}

// Run lists channels.
func (channelList) Run(e *cli.Env) error { return showChannels(e, "/api/v1/channels") }

type channelHistory struct {
	Channel string `arg:"" help:"Name of the channel."`
}

// Run shows where a channel pointed.
func (c channelHistory) Run(e *cli.Env) error {
	return showChannels(e, "/api/v1/channels/"+url.PathEscape(c.Channel)+"/history")
}

type channelCensus struct {
	Channel string `arg:"" help:"Name of the channel."`
}

// Run shows the census of a channel.
func (c channelCensus) Run(e *cli.Env) error {
	var cs []serving.Hosts
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/channels/"+url.PathEscape(c.Channel)+"/census", nil, &cs); err != nil {
		return err
	}
	return e.Show(cs, func(w io.Writer) {
		cli.Table(w, "WEEK AGE HOSTS", func(row func(...any)) {
			for _, x := range cs {
				row(x.Week.Format(time.DateOnly), x.Age, x.Hosts)
			}
		})
	})
}

type channelSet struct {
	Channel  string `arg:"" help:"Name of the channel."`
	Snapshot string `arg:"" help:"Snapshot, or the first letters of it."`
}

// Run moves a channel.
func (c channelSet) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/channels/"+url.PathEscape(c.Channel), map[string]string{"snapshot": c.Snapshot}, nil)
}

// SearchVerb is `drover search`.
type SearchVerb struct {
	Query   string `arg:"" help:"Part of it, or a pattern with * and ?."`
	Channel string `required:"" help:"Channel, or a snapshot: its id, a name, CHANNEL@TIME."`
	In      string `default:"name" enum:"name,file,provides,changelog" help:"What to search in: ${enum}."`
}

// Run searches packages.
func (c SearchVerb) Run(e *cli.Env) error {
	var f struct {
		Hits []repo.Hit `json:"hits"`
		More bool       `json:"more"`
	}
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/search?channel="+url.QueryEscape(c.Channel)+"&in="+c.In+"&q="+url.QueryEscape(c.Query), nil, &f); err != nil {
		return err
	}
	if f.More {
		e.Say("there is more: say it more exactly")
	}
	return e.Show(f, func(w io.Writer) {
		cli.Table(w, "PACKAGE TREE MATCH", func(row func(...any)) {
			for _, h := range f.Hits {
				for _, m := range h.Match {
					row(h.NEVRA, h.Tree, m)
				}
			}
		})
	})
}

// RPMVerb is `drover rpm`.
type RPMVerb struct {
	Name string `arg:"" help:"Name of a package."`
}

// Run shows which versions the channels have.
func (c RPMVerb) Run(e *cli.Env) error {
	var ss []repo.Standing
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/rpms/"+url.PathEscape(c.Name), nil, &ss); err != nil {
		return err
	}
	return e.Show(ss, func(w io.Writer) {
		cli.Table(w, "CHANNEL SNAPSHOT PACKAGE", func(row func(...any)) {
			for _, x := range ss {
				for _, n := range x.NEVRAs {
					row(x.Channel, x.Snapshot[:12], n)
				}
			}
		})
	})
}
