// Package db opens the one database of a drover server, SQLite or PostgreSQL,
// and runs transactions on it with one SQL text for both engines.
//
// A write transaction runs alone on both engines: SQLite has one writer
// connection, on PostgreSQL every write takes the same advisory lock first. Domain
// code may therefore read, decide and write in one transaction without thinking
// about isolation levels, and ids and ledger numbers are dense and in commit order.
//
// SQL text lives beside the domain function that runs it; none of it comes in here.
//
// # Rules of the common SQL
//
//   - parameters are $1..$n in the order of their first use
//   - times are BIGINT microseconds since 1970 UTC, booleans BIGINT 0 or 1, JSON is TEXT
//   - bulk rows go in as one JSON object parameter: FROM json_each($1), with the
//     columns key and value, fields by value->>'name'
//   - no arrays, no LISTEN, no identity columns; ids come from [Tx.NextID]
//   - schema files are written in PostgreSQL's types; a line ");" ends a table
package db
