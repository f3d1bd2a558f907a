// Package blob keeps bytes once, by their sha256. RPMs, lookaside sources, logs,
// images and repository metadata are blobs; a name elsewhere resolves to a
// digest, and a digest never changes meaning.
//
// On disk:
//
//	DIR/sha256/ab/abcdef…64   a blob: mode 0444, never written to again
//	DIR/staging/…             puts that are under way, locked by their process
//	DIR/uploads/ID            resumable uploads, which outlive a process
//
// What holds at any moment, and after a kill or a power cut at any instruction:
// a file below sha256 has the content of its name; a Put that returned is
// durable, and so is what a Batch holds once its Commit returned; whatever is left
// in staging belongs to nobody and SweepStaging takes it.
//
// No domain comes in here, no names, no reference counts: who needs a blob is
// known by the rows that name it. Callers see no path, so that an S3 bucket can
// take the place of the directory.
package blob
