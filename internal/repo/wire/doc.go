// Package wire is what the server and its sites say to each other about repositories: the
// state of a channel, the index of a tree's chunks, and the files that clients are given to
// find a repository. Both write the latter, so that a client sees no difference.
package wire
