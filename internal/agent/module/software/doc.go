// Package software is the packages of a host as execution modules see them: pkg and
// alternatives. What is installed is read from rpm's database; what could be is asked of dnf,
// which also carries out every change, each in one transaction.
//
// Services, accounts and files have their own rooms. Which packages a host should have, and
// anything of the server, must never come in.
package software
