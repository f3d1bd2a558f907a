// Package app puts the house together: it is the only package that imports every domain. A
// struct for each process (server, builder, signer) with Start and Close in order, and the
// command line.
package app
