// Package dbtest gives tests a fresh database on each engine. It starts a real
// PostgreSQL cluster of its own, once for a test process, and nothing here may be
// used outside tests.
package dbtest
