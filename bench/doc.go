// Package bench holds the benchmarks, each beside the peer that it is measured against in the
// same run: make bench. Nothing else belongs here, and no test fails on a timing.
package bench
