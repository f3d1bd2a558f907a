// Package fetch downloads files whose checksums are known, many at once, from several places
// that hold the same, into the blob store. It is what stands under mirrors: it knows HTTP and
// disks, and nothing of repositories.
//
//	client.go   how: TLS, proxy, redirects, stalls, bandwidth
//	origins.go  from where: health, preference, and how many requests at once each one bears
//	file.go     one file: tries, ranges, what answer means what
//	part.go     what of a file is here already
//	many.go     many files: workers, batches, progress
//	parse.go    what comes as text from outside
//
// What holds: nothing is handed out before its size and checksum are right; not one byte more
// than announced is kept; a file that was cut off goes on from its last byte, also in another
// process after a kill, and also from another origin, because the checksum guards the whole;
// an origin that lies or fails is put back and the next one is asked; two who want the same
// file fetch it once; no password is in any error.
//
// A file without a checksum is bound to the origin and the ETag that it began with, and does
// not outlive the process.
package fetch
