// Package e2e proves drover as a whole: its tests build the real program and run it as people
// do, with real git, dnf, rpm and PostgreSQL. A site is a deployment under test; what kills,
// starves and stops it is here, what a single room promises is tested in that room.
package e2e
