// Package fault is the house's one error type: a stable code for programs, a
// sentence for the person who reads it, a remedy, and the wrapped cause.
//
// It is the place where kinds of failure are mapped to HTTP statuses and exit
// codes. It must never learn about a domain: codes are chosen by the caller.
package fault
