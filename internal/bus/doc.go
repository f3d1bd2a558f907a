// Package bus is the nerves between the server and its agents: NATS, embedded or an existing
// cluster, where every agent is a user of its own and may say and hear what is its own only.
//
//	keys.go   the operator, its accounts and users: who signs whom
//	bus.go    the server that is embedded, or the cluster that is connected to
//	leaf.go   the same at a site: agents connect to it, and it to the server
//
// What holds: nothing here is memory. A lost message costs a wait, never a fact: what must not be
// lost is a row in the database before anybody is told of it. Streams, key-value buckets and
// anything else that keeps messages must never come in here.
//
// # Subjects
//
// An agent has a name, which is a token of a subject. It hears to.NAME.> and all.>, and says
// from.NAME.>; nothing else. The server says to.> and all.>, and hears from.>.
package bus
