-- +goose Up
-- A package file as served: a head (lead and signature header) before a core.
CREATE TABLE repo_package (
    pkgid TEXT PRIMARY KEY,
    header TEXT NOT NULL,
    nevra TEXT NOT NULL,
    file TEXT NOT NULL,
    arch TEXT NOT NULL,
    key TEXT NOT NULL,
    head TEXT NOT NULL,
    core TEXT NOT NULL,
    size BIGINT NOT NULL,
    header_start BIGINT NOT NULL,
    header_end BIGINT NOT NULL,
    mtime BIGINT NOT NULL,
    created BIGINT NOT NULL
);
CREATE INDEX repo_package_header ON repo_package (header, key);
CREATE INDEX repo_package_file ON repo_package (file);
CREATE TABLE repo_snapshot (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    source TEXT NOT NULL,
    packages BIGINT NOT NULL,
    key TEXT NOT NULL,
    cause BIGINT NOT NULL,
    created BIGINT NOT NULL,
    since BIGINT NOT NULL
);
CREATE INDEX repo_snapshot_source ON repo_snapshot (source, cause);
-- The files of a snapshot's trees that are no packages: repodata.
CREATE TABLE repo_snapshot_file (
    snapshot TEXT NOT NULL,
    tree TEXT NOT NULL,
    path TEXT NOT NULL,
    digest TEXT NOT NULL,
    size BIGINT NOT NULL,
    PRIMARY KEY (snapshot, tree, path)
);
CREATE TABLE repo_snapshot_package (
    snapshot TEXT NOT NULL,
    tree TEXT NOT NULL,
    path TEXT NOT NULL,
    pkgid TEXT NOT NULL,
    PRIMARY KEY (snapshot, tree, path)
);
CREATE INDEX repo_snapshot_package_pkgid ON repo_snapshot_package (pkgid);
-- One row per state of a channel; the row in force has until = 0.
CREATE TABLE repo_channel (
    name TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (name, since)
);
CREATE INDEX repo_channel_snapshot ON repo_channel (snapshot);
CREATE TABLE repo_mirror (
    name TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    arch TEXT NOT NULL,
    since BIGINT NOT NULL,
    synced BIGINT NOT NULL,
    outcome TEXT NOT NULL
);
