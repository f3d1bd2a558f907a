// Package selector reads target expressions, Salt's and drover's own query language, into one tree,
// and puts sets of hosts together as the tree says.
//
// It is pure: what a leaf means is answered by whoever evaluates. No database, no host and no I/O
// must ever come in here.
//
// Source of the forms: Salt's documentation of targeting.
package selector
