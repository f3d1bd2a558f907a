// Package house holds the rules of the repository as tests: who may import
// whom, what is documented, how SQL is written, how large things may grow.
//
// There is nothing here but tests. A rule that can be checked by a machine
// belongs here rather than in a review; a rule about one room belongs in that
// room's own tests.
package house
