// Package module is what an execution module is to the agent: functions with Salt's names,
// arguments and shapes of results, the binding of a command's arguments to them,
// and the few things that all of those packages need: makers of their tables, bounded reading.
//
// The functions themselves live in the packages below, one for each field: files, system,
// software, accounts, network. Nothing of the server, of the bus or of how a command came here
// must ever come in.
//
// Source of names, order of arguments and results: Salt's module reference.
package module
