-- +goose Up
-- A machine by its key. Of those that are not revoked or rejected, one has a name.
CREATE TABLE fleet_host (
    id BIGINT PRIMARY KEY,
    name TEXT NOT NULL,
    key TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    why TEXT NOT NULL,
    machine TEXT NOT NULL,
    serial_no TEXT NOT NULL,
    macs TEXT NOT NULL,
    version TEXT NOT NULL,
    cap BIGINT NOT NULL,
    created BIGINT NOT NULL,
    changed BIGINT NOT NULL,
    event BIGINT NOT NULL,
    online BIGINT NOT NULL,
    online_since BIGINT NOT NULL,
    seen BIGINT NOT NULL,
    boot TEXT NOT NULL,
    inventory TEXT NOT NULL,
    reported BIGINT NOT NULL
);
CREATE INDEX fleet_host_name ON fleet_host (name);
CREATE INDEX fleet_host_state ON fleet_host (state, name);
CREATE TABLE fleet_ticket (
    id BIGINT PRIMARY KEY,
    hash BYTEA NOT NULL UNIQUE,
    host TEXT NOT NULL,
    mac TEXT NOT NULL,
    serial_no TEXT NOT NULL,
    labels TEXT NOT NULL,
    created BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    used BIGINT NOT NULL,
    author TEXT NOT NULL
);
-- One row per state; the row in force has until = 0. since and until are events.
CREATE TABLE fleet_label (
    host BIGINT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (host, key, since)
);
CREATE INDEX fleet_label_key ON fleet_label (key, value, host);
CREATE TABLE fleet_group (
    name TEXT NOT NULL,
    form TEXT NOT NULL,
    target TEXT NOT NULL,
    note TEXT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (name, since)
);
-- Each time that a host came or went; since is a time.
CREATE TABLE fleet_presence (
    host BIGINT NOT NULL,
    since BIGINT NOT NULL,
    online BIGINT NOT NULL,
    PRIMARY KEY (host, since)
);
-- What hosts tell of themselves: facts, packages, services, ports. Each distinct thing once.
CREATE TABLE fleet_item (
    id BIGINT PRIMARY KEY,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    base TEXT NOT NULL
);
CREATE UNIQUE INDEX fleet_item_all ON fleet_item (kind, key, value);
-- Elements of lists have their number at the end of the key; base is the key without it.
CREATE INDEX fleet_item_base ON fleet_item (kind, base);
-- Which host has it, from when and until when: times, 0 for still.
CREATE TABLE fleet_has (
    host BIGINT NOT NULL,
    item BIGINT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (host, item, since)
);
CREATE INDEX fleet_has_item ON fleet_has (item, host) WHERE until = 0;
