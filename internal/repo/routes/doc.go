// Package routes is what a repository's server answers to people and programs: typed routes and
// pages. What they do is in repo; the files that hosts fetch are served there.
package routes
