// Package site is a read-through cache of a drover server's channels at another location: hosts
// there install from it, also while the server cannot be reached. It is a process of its own and
// holds nothing that is not at the centre too.
//
//	site.go      what a site is made of, and its loops
//	trust.go     which keys it takes
//	state.go     what it has: channels, their snapshots, the packages that those name
//	sync.go      how a channel follows the centre: by chunks of metadata, checked, then switched to
//	packages.go  packages: on demand, ahead of time, and which go when the disk is to be freed
//	serve.go     what hosts ask for
//	status.go    numbers
//
// What holds: nothing is served as whole that is not what signed metadata names; a channel's
// pointer is moved after everything it needs is durable; a key is taken the first time it is
// seen, and another one when somebody says so.
package site
