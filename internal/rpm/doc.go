// Package rpm reads and writes what RPM and its repositories are made of: headers,
// packages, versions, dependencies, signatures, payloads and repository metadata.
//
// It is pure: bytes and readers in, values out; no database, no network, no files of its
// own. Everything it reads may come from an enemy: every offset and count is checked
// before it is used, and nothing is allocated on the word of a length field. In all, a
// parser takes no more than twice its input and a constant from the heap; what gives out
// lists (Files, DepList, Changes, ReadPrimaryDeps, ReadComps, ReadUpdateinfo, ReadTreeinfo)
// takes a multiple of it, since a Go struct is larger than the shortest line that makes one;
// ReadEntries takes a multiple of the longest entry. The exception is packed
// data: xz, lzma and zstd get the dictionary that their input asks for, of at most
// MaxWindow. The fuzz targets hold every parser to these bounds.
//
// Sources: the RPM package format of rpm's documentation (docs/manual/format_*.md), rpm's
// lib/header.c for the limits, createrepo_c for the rules of repository metadata.
package rpm
