// Package prov answers "why is this here": it composes a signed statement of how each build
// came about, and follows the line from a file on a host back to the commit.
//
// It is the read side over every other domain, and nothing may depend on it.
package prov
