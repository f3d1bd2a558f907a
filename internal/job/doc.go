// Package job runs functions on hosts: who may, on which, how many at a time, and what became of
// it on each.
//
//	job.go      jobs and verdicts: types and rules
//	plan.go     how many hosts may be at it: batches and failhard; pure
//	engine.go   the jobs that run: commands out, results in
//	store.go    what is kept
//	access.go   rules on (target, function, arguments)
//	stream.go   what happens, with Salt's event tags
//	output.go   results as Salt's outputters print them
//	http.go, cli.go, pages/
//
// What holds: a job is for an exact set of hosts, which is stored before the first of them is
// told. Every host of it ends in a verdict; silence is none. A command that was told once is told
// again only under the same id, which no host takes twice. What the bus loses is asked for again.
//
// What a function does is the agent's; states and rollouts use jobs, and must not come in here.
package job
