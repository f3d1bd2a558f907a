// Package agent is drover on a host: it has a key that nobody else has, keeps a connection to the
// server, runs what the server signed for this host and this process, and tells what it finds.
//
//	agent.go      the agent and its life
//	enrol.go      who the server is, and being let in
//	connect.go    the bus: hello, welcome, messages
//	command.go    commands and what becomes of them
//	journal.go    which commands came, and results that nobody has acknowledged
//	policy.go     what this host does not let be done to it
//	inventory.go  facts, packages, services, ports: what changed since the last report
//
// What holds: nothing runs that is not signed by the pinned server for this host, this process and
// this minute; no command runs twice; a result is kept until the server has it. Time is the
// server's: the host's clock may be wrong. The agent has no package of the server's in it, and
// nothing here may need the bus or the server to be there: offline it goes on.
package agent
