// Package sim is a fleet of simulated hosts in one process: each with a key, a connection and a
// journal of its own, and the agent's own code between them and the server. Only what is below is
// made up: facts, packages, and functions that would do something.
//
// It serves tests, benchmarks and the demo; nothing of a real host must ever come in here.
package sim
