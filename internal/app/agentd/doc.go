// Package agentd is the command line of the agent: drover-agent, a program of its own that is small,
// and `drover agent`, the same in the one program.
//
// It puts the agent together with what a real host has: its configuration, its facts, its functions.
// What the server is made of must never come in here: it would make the small program large.
package agentd
