// Package grains finds the facts of a host, under the names and with the values that Salt's grains
// have on hosts of the EL family, and what else an inventory tells: services and open ports.
//
//	grains.go     gathering, and which source of facts wins
//	source.go     reading files below a root
//	system.go     operating system, kernel, systemd, locale, security, reboots
//	hardware.go   processors, memory, firmware, disks, virtualization
//	network.go    interfaces, addresses, gateways, names
//	custom.go     static files and programs of the site
//	flatten.go    facts as the lines that the server keeps
//	services.go   systemd's services, over D-Bus
//	ports.go      listening sockets
//
// What holds: no program is run but the site's own, each with a deadline; nothing asks the network,
// so that no resolver can hold the agent up; a source that fails costs its own facts and no others;
// everything but interfaces and the process itself is read below one root. How facts travel and who
// asks for them must never come in here.
package grains
