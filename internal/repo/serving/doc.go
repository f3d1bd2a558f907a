// Package serving is what repositories are served with, whatever is in them: answers that are
// counted and leave files to the kernel, the census of hosts, and the package that leads a host
// to a channel.
package serving
