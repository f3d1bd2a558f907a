// Package web is the HTTP side of the house: typed JSON routes with their OpenAPI
// description, problem+json, the page shell, and the client that speaks to all of it.
//
// Routes and templates of a domain live in that domain; nothing here knows one. The
// API library stays behind this package.
package web
