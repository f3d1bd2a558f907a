// Package cli is what every verb of the command line shares: where it reads and
// writes, the client of the server, and the output forms.
//
// Verbs themselves live in their domain's cli.go.
package cli
