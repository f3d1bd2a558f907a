package agent

import (
	"path"
	"slices"

	"drover/internal/fault"
)

// Policy is what a host does not let be done to it, whoever asks. It is read from the host's own
// configuration, and no word of the server changes it.
type Policy struct {
	Forbid   []string `yaml:"forbid"`   // functions, as patterns: cmd.*
	Only     []string `yaml:"only"`     // when it is not empty: no others
	Blackout bool     `yaml:"blackout"` // nothing but what allow names
	Allow    []string `yaml:"allow"`    // in a blackout; test.ping when it is empty
}

// always are functions that no policy takes away: they tell that the host is there and end what runs.
func always(fun string) bool {
	return fun == "saltutil.find_job" || fun == "saltutil.kill_job" || fun == "saltutil.term_job" || fun == "saltutil.running"
}

// check says why a function is refused.
func (p Policy) check(fun string) error {
	match := func(patterns []string) bool {
		return slices.ContainsFunc(patterns, func(pat string) bool { ok, err := path.Match(pat, fun); return ok && err == nil })
	}
	allow := p.Allow
	if len(allow) == 0 {
		allow = []string{"test.ping"}
	}
	switch {
	case always(fun):
		return nil
	case match(p.Forbid):
		return fault.Denied("policy_forbidden", "this host does not let %s be run", fun).Fix("its own configuration forbids it: policy.forbid in the agent's configuration")
	case len(p.Only) > 0 && !match(p.Only):
		return fault.Denied("policy_forbidden", "this host lets only some functions be run, and %s is none of them", fun).Fix("see policy.only in the agent's configuration")
	case p.Blackout && !match(allow):
		return fault.Denied("policy_blackout", "this host is in a blackout").Fix("see policy.blackout in the agent's configuration")
	}
	return nil
}
