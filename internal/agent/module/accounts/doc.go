// Package accounts is who may use a host: the functions of user, group, shadow, ssh and cron.
//
// What there is it reads from the files below /etc itself; users and groups it changes through
// shadow-utils, so that their own files, locks and policies keep their meaning. Files in a user's
// home are opened as that user, never through links that lead out of it. Lookups by NSS, logins
// and anything of the server must never come in.
package accounts
