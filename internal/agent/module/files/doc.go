// Package files reads and changes the files of a host: the functions of Salt's file, hosts,
// archive, cp and hashutil modules.
//
// A file that is replaced is replaced whole, with the owner, mode and labels that it had, or not
// at all. What a file means to a service, and where a state wants it, must not come in.
//
// Regular expressions are Go's (RE2): those of Python without lookaround and back references
// inside of a pattern. Replacements take Python's \1 and \g<name>.
package files
