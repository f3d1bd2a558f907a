// Package wire is what server and agents say to each other of commands.
//
// Types, and how command lines write arguments: no state, no I/O, no rules of the server's.
//
//	to.NAME.run     sealed Command
//	to.NAME.stop    sealed Stop
//	to.NAME.ack     Ack
//	from.NAME.run   Result
package wire
