-- +goose Up
-- Snapshots are lists of chunks from here on, and packages know what metadata says of them.
-- What the first tables held is made again: tags are published anew from their builds, mirrors
-- with their next sync.
DROP TABLE repo_snapshot_package;
DROP TABLE repo_snapshot_file;
DROP TABLE repo_snapshot;
DROP TABLE repo_channel;
DROP TABLE repo_package;
-- A package file as served: a head (lead and signature header) before a core. Without a head it
-- is known by metadata and not fetched yet.
CREATE TABLE repo_package (
    pkgid TEXT PRIMARY KEY,
    header TEXT NOT NULL,
    nevra TEXT NOT NULL,
    file TEXT NOT NULL,
    arch TEXT NOT NULL,
    source TEXT NOT NULL,
    key TEXT NOT NULL,
    head TEXT NOT NULL,
    core TEXT NOT NULL,
    size BIGINT NOT NULL,
    header_start BIGINT NOT NULL,
    header_end BIGINT NOT NULL,
    mtime BIGINT NOT NULL,
    built BIGINT NOT NULL,
    entry TEXT NOT NULL,
    created BIGINT NOT NULL
);
CREATE INDEX repo_package_header ON repo_package (header, key);
CREATE INDEX repo_package_file ON repo_package (file);
CREATE INDEX repo_package_source ON repo_package (source);
-- What metadata says of a package, packed: a template for all its signatures.
CREATE TABLE repo_entry (
    id TEXT PRIMARY KEY,
    data BYTEA NOT NULL
);
-- Where a mirror's package lies, when that does not follow from the package.
CREATE TABLE repo_location (
    href TEXT NOT NULL,
    pkgid TEXT NOT NULL,
    PRIMARY KEY (href, pkgid)
);
-- A run of packages of a tree. places is its packages with their locations, packed.
CREATE TABLE repo_chunk (
    id TEXT PRIMARY KEY,
    packages BIGINT NOT NULL,
    first TEXT NOT NULL,
    last TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    built BIGINT NOT NULL,
    places BYTEA NOT NULL
);
-- The metadata of a chunk in one codec: a blob with a member of each file, one after the other.
CREATE TABLE repo_part (
    chunk TEXT NOT NULL,
    codec TEXT NOT NULL,
    digest TEXT NOT NULL,
    primary_size BIGINT NOT NULL,
    filelists_size BIGINT NOT NULL,
    other_size BIGINT NOT NULL,
    primary_open BIGINT NOT NULL,
    filelists_open BIGINT NOT NULL,
    other_open BIGINT NOT NULL,
    PRIMARY KEY (chunk, codec)
);
-- A repository: its chunks and its metadata files. Snapshots that have the same one share it.
CREATE TABLE repo_tree (
    id TEXT PRIMARY KEY,
    packages BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    codec TEXT NOT NULL,
    key TEXT NOT NULL,
    chunks BYTEA NOT NULL,
    files TEXT NOT NULL,
    created BIGINT NOT NULL
);
-- The metadata files of trees by name: whoever has read an old repomd.xml finds them.
CREATE TABLE repo_file (
    path TEXT NOT NULL,
    tree TEXT NOT NULL,
    PRIMARY KEY (path, tree)
);
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
CREATE INDEX repo_snapshot_since ON repo_snapshot (since);
CREATE TABLE repo_snapshot_tree (
    snapshot TEXT NOT NULL,
    name TEXT NOT NULL,
    tree TEXT NOT NULL,
    PRIMARY KEY (snapshot, name)
);
CREATE INDEX repo_snapshot_tree_tree ON repo_snapshot_tree (tree);
-- The signature of a repomd.xml by a key for a tag: the same content is signed once.
CREATE TABLE repo_signature (
    repomd TEXT NOT NULL,
    key TEXT NOT NULL,
    tag TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (repomd, key, tag)
);
-- One row per state of a channel; the row in force has until = 0.
CREATE TABLE repo_channel (
    name TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (name, since)
);
CREATE INDEX repo_channel_snapshot ON repo_channel (snapshot);
CREATE INDEX repo_channel_until ON repo_channel (until);
