-- +goose Up
CREATE TABLE build_build (
    id BIGINT PRIMARY KEY,
    package TEXT NOT NULL,
    nvr TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    state TEXT NOT NULL,
    target TEXT NOT NULL,
    tag TEXT NOT NULL,
    scratch BIGINT NOT NULL,
    verifies BIGINT NOT NULL,
    repo TEXT NOT NULL,
    revision TEXT NOT NULL,
    srpm TEXT NOT NULL,
    owner TEXT NOT NULL,
    plan TEXT NOT NULL,
    task BIGINT NOT NULL,
    created BIGINT NOT NULL,
    finished BIGINT NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    remedy TEXT NOT NULL,
    line TEXT NOT NULL,
    verdict TEXT NOT NULL,
    since BIGINT NOT NULL
);
-- An NVR exists once; failed and canceled builds free it.
CREATE UNIQUE INDEX build_build_nvr ON build_build (nvr) WHERE scratch = 0 AND nvr <> '' AND state IN ('BUILDING', 'COMPLETE');
CREATE INDEX build_build_package ON build_build (package, id);
CREATE INDEX build_build_revision ON build_build (revision);
CREATE TABLE build_task (
    id BIGINT PRIMARY KEY,
    parent BIGINT NOT NULL,
    build BIGINT NOT NULL,
    method TEXT NOT NULL,
    arch TEXT NOT NULL,
    label TEXT NOT NULL,
    channel TEXT NOT NULL,
    priority BIGINT NOT NULL,
    state TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    builder TEXT NOT NULL,
    fence BIGINT NOT NULL,
    lease BIGINT NOT NULL,
    created BIGINT NOT NULL,
    started BIGINT NOT NULL,
    running BIGINT NOT NULL,
    finished BIGINT NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    remedy TEXT NOT NULL,
    line TEXT NOT NULL,
    kept TEXT NOT NULL,
    root_before TEXT NOT NULL,
    root_after TEXT NOT NULL,
    UNIQUE (parent, label)
);
CREATE INDEX build_task_build ON build_task (build);
CREATE INDEX build_task_queue ON build_task (priority, id) WHERE state = 'FREE';
CREATE INDEX build_task_leased ON build_task (lease) WHERE state = 'OPEN';
CREATE TABLE build_log (
    task BIGINT NOT NULL,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    size BIGINT NOT NULL,
    PRIMARY KEY (task, name)
);
CREATE TABLE build_rpm (
    id BIGINT PRIMARY KEY,
    build BIGINT NOT NULL,
    task BIGINT NOT NULL,
    file TEXT NOT NULL,
    name TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    version TEXT NOT NULL,
    release TEXT NOT NULL,
    arch TEXT NOT NULL,
    header TEXT NOT NULL,
    digest TEXT NOT NULL,
    size BIGINT NOT NULL,
    head TEXT NOT NULL,
    core TEXT NOT NULL,
    UNIQUE (build, file)
);
CREATE INDEX build_rpm_header ON build_rpm (header);
CREATE INDEX build_rpm_file ON build_rpm (file);
CREATE INDEX build_rpm_digest ON build_rpm (digest);
CREATE TABLE build_root (
    digest TEXT PRIMARY KEY,
    packages BIGINT NOT NULL
);
CREATE TABLE build_root_package (
    root TEXT NOT NULL,
    nevra TEXT NOT NULL,
    header TEXT NOT NULL,
    PRIMARY KEY (root, nevra, header)
);
CREATE INDEX build_root_package_header ON build_root_package (header);
CREATE TABLE build_builder (
    name TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    arches TEXT NOT NULL,
    channels TEXT NOT NULL,
    slots BIGINT NOT NULL,
    enabled BIGINT NOT NULL,
    note TEXT NOT NULL,
    seen BIGINT NOT NULL
);
