-- +goose Up
-- One row per state of a tag; the row in force has until = 0.
CREATE TABLE release_tag (
    name TEXT NOT NULL,
    config TEXT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (name, since)
);
CREATE TABLE release_target (
    name TEXT NOT NULL,
    build_tag TEXT NOT NULL,
    dest_tag TEXT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (name, since)
);
CREATE TABLE release_tagging (
    tag TEXT NOT NULL,
    build BIGINT NOT NULL,
    package TEXT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (tag, build, since)
);
CREATE INDEX release_tagging_package ON release_tagging (tag, package, since);
CREATE INDEX release_tagging_build ON release_tagging (build);
