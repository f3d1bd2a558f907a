// Package repotest puts the supply side together for tests: every store on one database, a
// web server, a signer that speaks to it over HTTP, and a builder that hands in packages made
// by rpmbuild on the spot or taken from files.
package repotest
