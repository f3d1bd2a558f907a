// Package teststream makes a small, real RPM distribution on the spot from Debian's
// packages, offline but for Debian's mirror: what tests and the demo install and build from
// where a team has a mirror of CentOS Stream.
//
// It is a stand-in: Debian's programs under RPM's rules and CentOS's names. Nothing outside
// tests and `drover dev` may come to need it, and no product code may know its quirks.
package teststream
