// Package auth knows who acts: people with roles, API tokens with scopes and expiry,
// single-use tickets by which builders and signers join, and the Actor in the context.
//
// Rights are plain words chosen by the domains ("build.submit"); which role has which is
// the table in this package. Domain methods ask [Need]; handlers never do.
package auth
