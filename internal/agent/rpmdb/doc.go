// Package rpmdb reads the packages that are installed on a host from rpm's own database, by
// library: the host's table of headers is an SQLite file, and internal/rpm reads the headers.
//
//	open.go    where the database lies, and opening it without leaving a trace
//	rpmdb.go   the packages, one row at a time
//	query.go   who owns a path, what a package has and says of itself
//	verify.go  whether the files on disk are those that were installed
//	caps.go    file capabilities, as text and as the kernel keeps them
//
// What holds: nothing is written, no file is made beside the database, nothing is kept between
// calls, and no more than one header is in memory at a time. Every answer is of one moment, also
// while rpm writes. To install, remove or lock is rpm's own business and must never come in here.
package rpmdb
