-- +goose Up
CREATE TABLE distgit_repo (
    name TEXT PRIMARY KEY,
    branch TEXT NOT NULL,
    note TEXT NOT NULL,
    since BIGINT NOT NULL
);
-- One row per state of a rule; the row in force has until = 0.
CREATE TABLE distgit_rule (
    repo TEXT NOT NULL,
    pattern TEXT NOT NULL,
    who TEXT NOT NULL,
    protected BIGINT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (repo, pattern, since)
);
-- One row per ref that a push moved. applied = 0: git has yet to move it.
CREATE TABLE distgit_push (
    event BIGINT NOT NULL,
    repo TEXT NOT NULL,
    ref TEXT NOT NULL,
    old TEXT NOT NULL,
    new TEXT NOT NULL,
    actor TEXT NOT NULL,
    at BIGINT NOT NULL,
    applied BIGINT NOT NULL,
    PRIMARY KEY (event, ref)
);
CREATE INDEX distgit_push_repo ON distgit_push (repo, event);
CREATE INDEX distgit_push_new ON distgit_push (repo, new);
CREATE INDEX distgit_push_pending ON distgit_push (event) WHERE applied = 0;
CREATE TABLE distgit_source (
    repo TEXT NOT NULL,
    file TEXT NOT NULL,
    sha512 TEXT NOT NULL,
    digest TEXT NOT NULL,
    size BIGINT NOT NULL,
    mtime BIGINT NOT NULL,
    actor TEXT NOT NULL,
    since BIGINT NOT NULL,
    PRIMARY KEY (repo, file, sha512)
);
