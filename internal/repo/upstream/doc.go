// Package upstream reads repositories that others publish, on top of fetch: what repomd.xml says
// now and whether that may be believed, metadata files, what of the packages is wanted, the words
// that metadata has for them, and the files of installation trees. It knows no database; what it
// has checked it hands over.
//
//	source.go   where a repository is and how it is reached
//	state.go    repomd.xml: unchanged, believed, not older than what is known
//	files.go    metadata and installation trees into the blob store; checks of packages
//	filter.go   what of the packages is wanted
//	words.go    what metadata says of packages, kept aside on the disk
package upstream
