// Package mirrors copies upstream repositories into snapshots: what is configured, the sync, the
// packages that are fetched on demand, and the schedule. What it reads from others comes by
// package upstream, checked; what it makes are drafts of package repo.
//
//	mirror.go   configuration and state
//	sync.go     one sync: look, copy, commit
//	absent.go   packages that are known by metadata only
//	schedule.go when
//
// What holds: a snapshot and all that is remembered of its upstream appear in one transaction,
// after everything that it names is durable and checked; one server works on a mirror at a time;
// a package that came is not fetched again, however the sync ended.
package mirrors
