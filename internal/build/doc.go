// Package build turns commits and source RPMs into builds: it keeps the queue of tasks,
// hands them to builders by lease, reads their logs, checks every RPM that comes back, and
// records the buildroot.
//
// A builder's word counts for nothing here until the server has read the bytes itself.
// Which tag a build lands in is release's business, how a repository looks repo's; both
// are reached through interfaces declared here. What builders run lives in build/worker,
// what is said to them in build/wire.
package build
