// Package modules reads, merges, filters and writes modules.yaml: what a repository says of
// streams of packages, of which a host follows one at a time.
//
// It is pure, as package rpm is. Documents keep the words of their authors; only what several
// repositories say of one thing is written anew. What it takes from the heap is a multiple of
// the longest document: that of the YAML library.
//
// Sources: libmodulemd's documentation of the formats and of how documents are merged.
package modules
