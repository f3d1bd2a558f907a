// Package event is the ledger: numbered, attributed, immutable lines, each written
// in the transaction of the change that it tells of, each carrying the hash of the
// line before it.
//
// It serves history ("as of"), audit, the outbox that consumers follow by number,
// and the timeline that people read. It must not learn what the kinds mean; bulk data
// does not belong here, one line names the batch.
package event
