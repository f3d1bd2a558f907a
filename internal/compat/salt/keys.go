package salt

import (
	"bufio"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"

	"drover/internal/cli"
	"drover/internal/compat/salt/words"
	"drover/internal/fault"
	"drover/internal/fleet"
	fleetwire "drover/internal/fleet/wire"
)

// KeyVerb is salt-key: what it lists and asks is as there.
type KeyVerb struct {
	ListAll   bool   `name:"list-all" xor:"do" help:"List all keys."`
	List      string `name:"list" xor:"do" help:"List keys: all, accepted, pre, rejected or denied."`
	Accept    string `name:"accept" xor:"do" help:"Accept the hosts of this name or pattern that wait."`
	AcceptAll bool   `name:"accept-all" xor:"do" help:"Accept all that wait."`
	Reject    string `name:"reject" xor:"do" help:"Reject the hosts of this name or pattern that wait."`
	RejectAll bool   `name:"reject-all" xor:"do" help:"Reject all that wait."`
	Delete    string `name:"delete" xor:"do" help:"Take the hosts of this name or pattern away; those that are let in are cut off."`
	DeleteAll bool   `name:"delete-all" xor:"do" help:"Take all hosts away."`
	Finger    string `name:"finger" xor:"do" help:"Print the keys of the hosts of this name or pattern."`
	FingerAll bool   `name:"finger-all" xor:"do" help:"Print all keys."`
	Yes       bool   `help:"Ask nothing."`
}

// titles are Salt's titles of its lists, in its order.
func titles() [][2]string {
	return [][2]string{{"minions", "Accepted Keys:"}, {"minions_denied", "Denied Keys:"}, {"minions_pre", "Unaccepted Keys:"}, {"minions_rejected", "Rejected Keys:"}}
}

// Run does what salt-key does.
func (c KeyVerb) Run(e *cli.Env) error {
	var hs []fleet.Host
	if err := e.Client.Call(e.Ctx, "GET", "/api/v1/hosts", nil, &hs); err != nil {
		return err
	}
	all := func(on bool, pattern string) string {
		if on {
			return "*"
		}
		return pattern
	}
	for _, x := range []struct{ fun, pattern, what, done string }{
		{"key.accept", all(c.AcceptAll, c.Accept), "accepted", "Key for minion %s accepted."},
		{"key.reject", all(c.RejectAll, c.Reject), "rejected", "Key for minion %s rejected."},
		{"key.delete", all(c.DeleteAll, c.Delete), "deleted", "Key for minion %s deleted."},
	} {
		if x.pattern != "" {
			return c.change(e, hs, x.fun, x.pattern, x.what, x.done)
		}
	}
	if pattern := all(c.FingerAll, c.Finger); pattern != "" {
		return finger(e, hs, pattern)
	}
	state, ok := words.List(c.List)
	if c.List != "" && !ok {
		return fault.Invalid("usage", "%.40q is no list of keys", c.List).Fix("use all, accepted, pre, rejected or denied")
	}
	lists := sorted(hs)
	for s := range lists {
		if c.List != "" && state != "" && s != section(state) {
			delete(lists, s)
		}
	}
	return e.Show(lists, func(w io.Writer) {
		for _, t := range titles() {
			l, shown := lists[t[0]]
			if !shown {
				continue
			}
			fmt.Fprintln(w, t[1])
			for _, h := range l {
				fmt.Fprintln(w, h)
			}
		}
	})
}

// change accepts, rejects or deletes the hosts that a pattern means, after having asked.
func (c KeyVerb) change(e *cli.Env, all []fleet.Host, fun, pattern, what, done string) error {
	hs := slices.DeleteFunc(slices.Clone(all), func(h fleet.Host) bool { return !wanted(fun, h, strings.Split(pattern, ","), nil) })
	if len(hs) == 0 {
		return fault.NotFound("key_unknown", "the key glob %.100q does not match any key that could be %s", pattern, what).Fix("see `salt-key -L`")
	}
	e.Say("The following keys are going to be %s:", what)
	for _, t := range titles() {
		var names []string
		for _, h := range hs {
			if section(h.State) == t[0] {
				names = append(names, h.Name)
			}
		}
		if len(names) > 0 {
			e.Say("%s\n%s", t[1], strings.Join(names, "\n"))
		}
	}
	if !c.Yes {
		fmt.Fprint(e.Err, "Proceed? [n/Y] ")
		said, err := bufio.NewReader(io.LimitReader(e.In, 1000)).ReadString('\n')
		if a := strings.ToLower(strings.TrimSpace(said)); err != nil || a != "" && a[0] != 'y' {
			return fault.Invalid("not_confirmed", "nothing was %s", what).Fix("answer y, or give -y")
		}
	}
	for _, h := range hs {
		ref, err := refer(all, h)
		if err != nil {
			return err
		}
		at := "/api/v1/hosts/" + url.PathEscape(ref)
		switch {
		case fun == "key.accept":
			err = e.Client.Call(e.Ctx, "POST", at+"/accept", nil, nil)
		case fun == "key.reject" || h.State == fleetwire.Accepted:
			err = e.Client.Call(e.Ctx, "POST", at+"/revoke", map[string]string{"why": "salt-key"}, nil)
		default:
			err = e.Client.Call(e.Ctx, "DELETE", at, nil, nil)
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(e.Out, done+"\n", h.Name)
	}
	return nil
}

// finger prints keys.
func finger(e *cli.Env, hs []fleet.Host, pattern string) error {
	lists := map[string]map[string]string{}
	for _, h := range hs {
		if !wanted("key.finger", h, strings.Split(pattern, ","), nil) {
			continue
		}
		s := section(h.State)
		if lists[s] == nil {
			lists[s] = map[string]string{}
		}
		lists[s][h.Name] = h.Key
	}
	if len(lists) == 0 {
		return fault.NotFound("key_unknown", "the key glob %.100q does not match any key", pattern).Fix("see `salt-key -L`")
	}
	return e.Show(lists, func(w io.Writer) {
		for _, t := range titles() {
			if len(lists[t[0]]) == 0 {
				continue
			}
			fmt.Fprintln(w, t[1])
			for _, n := range names(lists[t[0]]) {
				fmt.Fprintf(w, "%s:  %s\n", n, lists[t[0]][n])
			}
		}
	})
}
