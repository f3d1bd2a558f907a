-- +goose Up
-- Lines of channels, one row per state.
CREATE TABLE repo_line (
    name TEXT NOT NULL,
    config TEXT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (name, since)
);
-- What keeps a channel where it is.
CREATE TABLE repo_freeze (
    channel TEXT NOT NULL,
    reason TEXT NOT NULL,
    actor TEXT NOT NULL,
    expires BIGINT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (channel, since)
);
-- What keeps a package of a channel at the version that it has there.
CREATE TABLE repo_hold (
    channel TEXT NOT NULL,
    package TEXT NOT NULL,
    reason TEXT NOT NULL,
    actor TEXT NOT NULL,
    expires BIGINT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (channel, package, since)
);
-- Names of snapshots. One with a name is kept.
CREATE TABLE repo_name (
    name TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    reason TEXT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (name, since)
);
CREATE INDEX repo_name_snapshot ON repo_name (snapshot);
-- The snapshots that a line's snapshot was put together from.
CREATE TABLE repo_snapshot_part (
    snapshot TEXT NOT NULL,
    part TEXT NOT NULL,
    source TEXT NOT NULL,
    PRIMARY KEY (snapshot, part)
);
CREATE INDEX repo_snapshot_part_source ON repo_snapshot_part (source);
