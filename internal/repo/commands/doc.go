// Package commands is the command line of repositories: snapshots, lines, channels, mirrors. It
// speaks to a server; what it says is in repo.
package commands
