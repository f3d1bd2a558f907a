// Package command runs programs on a host: the functions of Salt's cmd module, the runner that
// other modules use, and modules that are programs of their own.
//
// Whatever runs here has a process group that ends with its caller, a bound on what it may
// print, and an argv or one explicit shell. Nothing that builds a shell line out of parts may
// come in.
package command
