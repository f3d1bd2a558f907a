-- +goose Up
-- One row per state of a key; the row in force has until = 0.
CREATE TABLE sign_key (
    name TEXT NOT NULL,
    algo TEXT NOT NULL,
    purpose TEXT NOT NULL,
    public TEXT NOT NULL,
    tags TEXT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (name, since)
);
CREATE TABLE sign_request (
    id BIGINT PRIMARY KEY,
    key TEXT NOT NULL,
    purpose TEXT NOT NULL,
    tag TEXT NOT NULL,
    subject TEXT NOT NULL,
    digest TEXT NOT NULL,
    state BYTEA NOT NULL,
    payload BYTEA NOT NULL,
    expires BIGINT NOT NULL,
    handed BIGINT NOT NULL,
    done BIGINT NOT NULL,
    signature BYTEA NOT NULL,
    refused TEXT NOT NULL
);
CREATE INDEX sign_request_open ON sign_request (id) WHERE done = 0;
CREATE INDEX sign_request_made ON sign_request (key, digest) WHERE done <> 0 AND refused = '';
