// Package set is what the trees of snapshots are made of: packages, their order, and the chunks
// that it is cut into. It is pure: no database, no bytes of packages.
package set
