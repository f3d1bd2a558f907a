// Package worker is the builder process: it waits for tasks, makes buildroots with dnf, runs
// rpmbuild in the sandbox, streams logs and hands in what came out.
//
// It has nothing but a token: no database, no key, no shared disk. It imports no server
// package; what server and builder say to each other is in build/wire.
package worker
