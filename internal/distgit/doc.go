// Package distgit keeps what packages are made of: git repositories in namespaces, served
// over smart HTTP with rules for each branch, and the lookaside cache of big sources.
//
// The database is the truth about refs: a push is written there, with its event, before git
// moves a ref, and what a crash left between the two is rolled forward at the next start.
// Building a package is build's business.
package distgit
