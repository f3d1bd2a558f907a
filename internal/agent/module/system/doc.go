// Package system is the host itself as execution modules see it: its services, kernel, mounts,
// disks, processes, clock, language and power. Most of it is read from /proc and /sys or asked of
// systemd over D-Bus; programs are run only where the system has no other way in.
//
// Packages, accounts, files and the network have their own rooms; nothing of the server, and no
// decision about when something should be done, must ever come in.
package system
