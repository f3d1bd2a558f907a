// Package blobtest is the conformance suite of blob stores: what every user of
// internal/blob counts on, whatever lies beneath. Only tests import it.
package blobtest
