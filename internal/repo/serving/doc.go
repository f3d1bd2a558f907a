// Package serving is what repositories are served with, whatever is in them: answers that are
// counted and leave files to the kernel, and the census of hosts.
package serving
