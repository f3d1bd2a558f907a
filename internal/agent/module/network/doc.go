// Package network is what a host has to do with other ones: the functions of network, dig,
// dnsutil, http, firewalld, git and x509.
//
// Interfaces and routes come from netlink and /proc, names from the resolver, the firewall from its
// D-Bus interface; only git is a program that is run. Whom the agent itself talks to, and how,
// must never come in.
package network
