package fleet

import (
	"fmt"
	"io"
	"net/url"
	"sort"
	"strings"
	"time"

	"drover/internal/cli"
	"drover/internal/fleet/selector"
)

// Target is a target on a command line, with Salt's options.
type Target struct {
	Target    string `arg:"" optional:"" help:"Which hosts: a glob of names, or what the options say."`
	PCRE      bool   `short:"E" xor:"form" name:"pcre" help:"The target is a regular expression of names."`
	List      bool   `short:"L" xor:"form" name:"list" help:"The target is a list of names, with commas."`
	Grain     bool   `short:"G" xor:"form" name:"grain" help:"The target is FACT:GLOB."`
	GrainPCRE bool   `short:"P" xor:"form" name:"grain-pcre" help:"The target is FACT:REGEXP."`
	Compound  bool   `short:"C" xor:"form" name:"compound" help:"The target is Salt's compound: G@os:CentOS* and not L@a,b."`
	Nodegroup bool   `short:"N" xor:"form" name:"nodegroup" help:"The target is a group."`
	Subnet    bool   `short:"S" xor:"form" name:"ipcidr" help:"The target is an address or a subnet."`
	Query     bool   `short:"Q" xor:"form" name:"query" help:"The target is a query: fact.os == \"CentOS Stream\" and pkg(\"openssl\") < \"3.2.2-16\"."`
}

// Form is how the target is written.
func (t Target) Form() selector.Form {
	switch {
	case t.PCRE:
		return selector.PCRE
	case t.List:
		return selector.ListForm
	case t.Grain:
		return selector.Grain
	case t.GrainPCRE:
		return selector.GrainPCRE
	case t.Compound:
		return selector.Compound
	case t.Nodegroup:
		return selector.Nodegroup
	case t.Subnet:
		return selector.Subnet
	case t.Query:
		return selector.Query
	}
	return selector.Glob
}

// HostVerbs is `drover host`.
type HostVerbs struct {
	List   hostList   `cmd:"" help:"List hosts." example:"drover host list\ndrover host list 'web*'\ndrover host list -Q 'pkg(\"openssl\") < \"3.2.2-16\"'\ndrover host list --state pending"`
	Show   hostShow   `cmd:"" help:"A host." example:"drover host show web-01.example.org"`
	Facts  hostFacts  `cmd:"" help:"What a host tells of itself, and since when." example:"drover host facts web-01 --kind package --search openssl\ndrover host facts web-01 --history\ndrover host facts web-01 --at 2026-11-24"`
	Seen   hostSeen   `cmd:"" help:"When a host came and went." example:"drover host seen web-01"`
	Label  hostLabel  `cmd:"" help:"Set labels of a host; an empty value takes one away." example:"drover host label web-01 role=web site=fra\ndrover host label web-01 role="`
	Accept hostAccept `cmd:"" help:"Let hosts in that wait for approval." example:"drover host accept web-01"`
	Reject hostReject `cmd:"" help:"Refuse hosts that wait for approval." example:"drover host reject web-01 --why 'unknown machine'"`
	Revoke hostRevoke `cmd:"" help:"Cut hosts off, at once; their keys stay out." example:"drover host revoke web-01 --why stolen"`
	Delete hostDelete `cmd:"" help:"Forget hosts that wait or were rejected." example:"drover host delete web-01"`
	Ticket hostTicket `cmd:"" help:"Make a single-use ticket by which a host is let in." example:"drover host ticket web-01.example.org --label role=web\ndrover host ticket 'web-*' --count 20 --ttl 24h\ndrover host ticket db-01 --mac 52:54:00:12:34:56"`
	Pin    hostPin    `cmd:"" help:"Print the pin by which agents know this server." example:"drover host pin"`
	Values factValues `cmd:"" help:"The values of a fact, and how many hosts have each." example:"drover host values osfinger\ndrover host values openssl-libs --kind package"`
}

// GroupVerbs is `drover group`.
type GroupVerbs struct {
	List   groupList   `cmd:"" help:"List groups." example:"drover group list"`
	Set    groupSet    `cmd:"" help:"Make a group or change it." example:"drover group set web 'G@role:web and not N@canary'\ndrover group set canary -L web-01,web-02"`
	Remove groupRemove `cmd:"" help:"Take a group away." example:"drover group remove web"`
}

type hostList struct {
	Target
	State string `enum:",pending,accepted,rejected,revoked" default:"" help:"Only hosts in this state: pending, accepted, rejected or revoked."`
	Form_ string `name:"form" help:"How the target is written, as a word."`
}

// Run lists hosts.
func (c hostList) Run(e *cli.Env) error {
	form := string(c.Form())
	if c.Form_ != "" {
		form = c.Form_
	}
	var hs []Host
	q := url.Values{"state": {c.State}, "target": {c.Target.Target}, "form": {form}}
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/hosts?"+q.Encode(), nil, &hs); err != nil {
		return err
	}
	return e.Show(hs, func(w io.Writer) {
		cli.Table(w, "HOST STATE PRESENCE SINCE VERSION LABELS", func(row func(...any)) {
			for _, h := range hs {
				state := h.State
				if h.Clone != "" {
					state += " CLONED"
				}
				row(h.Name, state, h.Presence, since(h.Since), h.Version, labelText(h.Labels))
			}
		})
	})
}

func since(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(time.DateTime)
}

func labelText(l map[string]string) string {
	out := make([]string, 0, len(l))
	for k, v := range l {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}

type oneHost struct {
	Host string `arg:"" help:"Name of the host."`
}

func (h oneHost) path() string { return "/api/v1/hosts/" + url.PathEscape(h.Host) }

type hostShow struct{ oneHost }

// Run shows a host.
func (c hostShow) Run(e *cli.Env) error {
	var h Host
	if err := e.Client.Call(e.Ctx, "GET", c.path(), nil, &h); err != nil {
		return err
	}
	return e.Show(h, func(w io.Writer) {
		fmt.Fprintf(w, "%s  %s  %s since %s\n", h.Name, h.State, h.Presence, since(h.Since))
		for _, x := range [][2]string{{"why", h.Why}, {"clone", h.Clone}, {"clock is off by", h.Skew}, {"agent", h.Version}, {"key", h.Key}, {"bus", h.ID}, {"machine id", h.Machine}, {"serial", h.Serial}, {"MAC", strings.Join(h.MACs, " ")},
			{"groups", strings.Join(h.Groups, " ")}, {"labels", labelText(h.Labels)}, {"reported", since(h.Reported)}, {"seen", since(h.Seen)}} {
			if x[1] != "" {
				fmt.Fprintf(w, "  %-16s %s\n", x[0], x[1])
			}
		}
	})
}

type hostFacts struct {
	oneHost
	Kind    string `enum:",fact,package,service,port,mine" default:"" help:"Only facts, packages, services, ports or mine."`
	Search  string `help:"Only those whose name has this in it."`
	At      string `help:"As they were at a time."`
	History bool   `help:"How they changed, the newest first."`
	Limit   int    `short:"n" help:"How many."`
}

// Run shows facts.
func (c hostFacts) Run(e *cli.Env) error {
	var fs []Fact
	q := url.Values{"kind": {c.Kind}, "search": {c.Search}, "at": {c.At}, "history": {fmt.Sprint(c.History)}, "limit": {fmt.Sprint(c.Limit)}}
	if err := e.Client.Call(e.Ctx, "GET", c.path()+"/facts?"+q.Encode(), nil, &fs); err != nil {
		return err
	}
	return e.Show(fs, func(w io.Writer) {
		cli.Table(w, "KIND NAME VALUE SINCE UNTIL", func(row func(...any)) {
			for _, f := range fs {
				row(f.Kind, f.Key, f.Value, since(f.Since), since(f.Until))
			}
		})
	})
}

type hostSeen struct{ oneHost }

// Run shows presence.
func (c hostSeen) Run(e *cli.Env) error {
	var cs []Change
	if err := e.Client.Call(e.Ctx, "GET", c.path()+"/presence", nil, &cs); err != nil {
		return err
	}
	return e.Show(cs, func(w io.Writer) {
		cli.Table(w, "SINCE PRESENCE", func(row func(...any)) {
			for _, x := range cs {
				p := Offline
				if x.Online {
					p = Online
				}
				row(since(x.At), p)
			}
		})
	})
}

type hostLabel struct {
	oneHost
	Labels map[string]string `arg:"" help:"KEY=VALUE."`
}

// Run sets labels.
func (c hostLabel) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "PUT", c.path()+"/labels", c.Labels, nil)
}

type someHosts struct {
	Hosts []string `arg:"" help:"Names of the hosts."`
}

func (c someHosts) each(e *cli.Env, method, tail string, in any) error {
	for _, h := range c.Hosts {
		if err := e.Client.Call(e.Ctx, method, oneHost{h}.path()+tail, in, nil); err != nil {
			return err
		}
	}
	return nil
}

type hostAccept struct{ someHosts }

// Run lets hosts in.
func (c hostAccept) Run(e *cli.Env) error { return c.each(e, "POST", "/accept", nil) }

type hostReject struct {
	someHosts
	Why string `help:"A reason, for the ledger."`
}

// Run rejects hosts.
func (c hostReject) Run(e *cli.Env) error {
	return c.each(e, "POST", "/revoke", map[string]string{"why": c.Why})
}

type hostRevoke struct {
	someHosts
	Why string `help:"A reason, for the ledger."`
}

// Run revokes hosts.
func (c hostRevoke) Run(e *cli.Env) error {
	return c.each(e, "POST", "/revoke", map[string]string{"why": c.Why})
}

type hostDelete struct{ someHosts }

// Run forgets hosts.
func (c hostDelete) Run(e *cli.Env) error { return c.each(e, "DELETE", "", nil) }

type hostTicket struct {
	Host   string            `arg:"" optional:"" help:"Name of the host, or a pattern of names; any host when not given."`
	MAC    string            `name:"mac" help:"Only for a machine with this MAC address."`
	Serial string            `help:"Only for a machine with this serial number."`
	Label  map[string]string `help:"A label that the host gets: role=web. Repeatable."`
	TTL    time.Duration     `name:"ttl" default:"1h" help:"How long it can be used."`
	Count  int               `default:"1" help:"How many tickets."`
}

// Run makes tickets.
func (c hostTicket) Run(e *cli.Env) error {
	var out map[string][]string
	in := Ticket{Host: c.Host, MAC: c.MAC, Serial: c.Serial, Labels: c.Label, TTL: int64(c.TTL.Seconds()), Count: c.Count}
	if err := e.Client.Call(e.Ctx, "POST", "/api/v1/hosts/tickets", in, &out); err != nil {
		return err
	}
	var p Pin
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/hosts/pin", nil, &p); err != nil {
		return err
	}
	return e.Show(out["tickets"], func(w io.Writer) {
		for _, t := range out["tickets"] {
			fmt.Fprintln(w, t)
		}
		e.Say("on the host: DROVER_TICKET=TICKET drover-agent enrol %s --pin %s", e.Client.Base, p.Pin)
	})
}

type hostPin struct{}

// Run prints the pin.
func (hostPin) Run(e *cli.Env) error {
	var p Pin
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/hosts/pin", nil, &p); err != nil {
		return err
	}
	return e.Show(p, func(w io.Writer) { fmt.Fprintln(w, p.Pin) })
}

type factValues struct {
	Key  string `arg:"" help:"The fact, or the name of a package."`
	Kind string `enum:"fact,package,service,port,mine" default:"fact" help:"fact, package, service, port or mine."`
}

// Run counts values.
func (c factValues) Run(e *cli.Env) error {
	var cs []Count
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/facts/"+c.Kind+"/"+url.PathEscape(c.Key), nil, &cs); err != nil {
		return err
	}
	return e.Show(cs, func(w io.Writer) {
		cli.Table(w, "HOSTS VALUE", func(row func(...any)) {
			for _, x := range cs {
				row(x.Hosts, x.Value)
			}
		})
	})
}

type groupList struct{}

// Run lists groups.
func (groupList) Run(e *cli.Env) error {
	var gs []Group
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/groups", nil, &gs); err != nil {
		return err
	}
	return e.Show(gs, func(w io.Writer) {
		cli.Table(w, "GROUP FORM TARGET SINCE NOTE", func(row func(...any)) {
			for _, g := range gs {
				row(g.Name, g.Form, fmt.Sprintf("%.100s", g.Target), g.Since, g.Note)
			}
		})
	})
}

type groupSet struct {
	Group string `arg:"" help:"Name of the group."`
	Target
	Note string `help:"A remark."`
}

// Run makes or changes a group.
func (c groupSet) Run(e *cli.Env) error {
	form := c.Form()
	if form == selector.Glob && strings.ContainsAny(c.Target.Target, " @") {
		form = selector.Compound
	}
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/groups/"+url.PathEscape(c.Group), map[string]string{"form": string(form), "target": c.Target.Target, "note": c.Note}, nil)
}

type groupRemove struct {
	Group string `arg:"" help:"Name of the group."`
}

// Run takes a group away.
func (c groupRemove) Run(e *cli.Env) error {
	return e.Client.Call(e.Ctx, "PUT", "/api/v1/groups/"+url.PathEscape(c.Group), map[string]string{"target": ""}, nil)
}
