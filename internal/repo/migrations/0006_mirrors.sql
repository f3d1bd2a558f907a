-- +goose Up
-- How a mirror is copied is a document; what it did and when it is due stands beside it, with
-- the server that works on it and until when that may.
ALTER TABLE repo_mirror ADD COLUMN config TEXT NOT NULL DEFAULT '{}';
ALTER TABLE repo_mirror DROP COLUMN synced;
ALTER TABLE repo_mirror DROP COLUMN outcome;
CREATE TABLE repo_mirror_state (
    name TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    due BIGINT NOT NULL,
    owner TEXT NOT NULL,
    lease BIGINT NOT NULL
);
-- Packages that are known by metadata only, and where they are fetched. tried is when that last
-- failed, for the reason told.
CREATE TABLE repo_absent (
    pkgid TEXT NOT NULL,
    mirror TEXT NOT NULL,
    href TEXT NOT NULL,
    tried BIGINT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (pkgid, mirror)
);
CREATE INDEX repo_absent_mirror ON repo_absent (mirror, tried);
