// Package salt lets what was made for Salt go on working: scripts that speak salt-api's HTTP, and
// hands that type salt, salt-key, salt-run and salt-call.
//
//	api.go      routes below /salt, who asks, answers and errors
//	body.go     lowstates: bodies in JSON, YAML and forms
//	local.go    functions on hosts
//	runner.go   jobs, presence, mine and facts
//	wheel.go    keys
//	facts.go    facts as grains
//	words/      Salt's command lines as drover's; pure
//	keys.go     the verb salt-key
//
// What holds: everything here is a way to say what drover's own API and command line say too.
// Who may is asked in the domains; nothing is kept; no rule of a domain must ever come in here.
//
// Source of the shapes: Salt's documentation of rest_cherrypy, of its clients and of its commands.
package salt
