// Package fleet knows the hosts: who they are, whether they are there, what they have, and which
// of them a selector means.
//
//	fleet.go    hosts, labels, groups: types and rules
//	enrol.go    tickets, enrolment, approval, revocation
//	live.go     who is there: hello, welcome, presence
//	report.go   what hosts tell of themselves
//	target.go   selectors answered from the database
//	http.go, cli.go, pages/
//
// What holds: a host is its key. Nothing is believed of a host by its name alone; what comes over
// the bus is of the host whose subject it is on, which the bus has checked against the key. Facts
// are claims of the host about itself. Commands and their results are job's; what a host should
// be is state's; neither must come in here.
package fleet
