// Package words turns command lines of salt, salt-call, salt-key and salt-run into drover's.
//
// It is pure: words in, words out, so that the small agent can be called as salt-call too. Nothing
// of the server, and nothing that runs what it made, must ever come in here.
//
// Source of the options: Salt's documentation of its commands.
package words
