// Package repo keeps what hosts install: packages with their signature headers, immutable
// snapshots of sets of packages with their metadata, channels that point at one, and mirrors
// of upstream repositories.
//
// A payload is stored once; each signature of it is another head in front of the same core.
// What is in a tag is release's business; how metadata is written, rpm's.
package repo
