-- +goose Up
-- What the gate needs to know of a chunk, made when it is first asked for: its packages'
-- dependencies, and hashes of the paths of their files.
CREATE TABLE repo_gate (
    chunk TEXT PRIMARY KEY,
    deps BYTEA NOT NULL,
    paths BYTEA NOT NULL
);
