// Package gate tells what a move of a channel would make worse: what could be installed and no
// longer could, files that get in each other's way, versions that go down, packages that are
// missing or not signed. It costs what differs, not what is there.
package gate
