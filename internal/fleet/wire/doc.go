// Package wire is what server and agents say to each other of who they are: trust, enrolment,
// hello and welcome, inventory. Commands are in job/wire.
//
// Types and their signatures only: no state, no I/O, no rules of the server's.
//
// # Over the bus
//
//	from.NAME.hello    Hello            when the agent has connected
//	to.NAME.welcome    sealed Welcome   the answer, to that hello only
//	from.NAME.alive    Alive            now and then
//	from.NAME.event    Event            what a function, a beacon or a schedule tells
package wire
