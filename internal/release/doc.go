// Package release knows tags and targets: which builds make up what a fleet gets, who put
// them there and when.
//
// A tag here is flat. How a tag becomes a repository is repo's business; what a build is,
// build's.
package release
