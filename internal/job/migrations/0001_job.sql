-- +goose Up
-- hosts is the exact set that a job is for, as a list of numbers in the order of their turn; sent
-- is how many of them had their turn. It is stored before any of these is told.
CREATE TABLE job_job (
    id BIGINT PRIMARY KEY,
    jid TEXT NOT NULL UNIQUE,
    author TEXT NOT NULL,
    reason TEXT NOT NULL,
    form TEXT NOT NULL,
    target TEXT NOT NULL,
    fun TEXT NOT NULL,
    args TEXT NOT NULL,
    spec TEXT NOT NULL,
    state TEXT NOT NULL,
    why TEXT NOT NULL,
    hosts TEXT NOT NULL,
    total BIGINT NOT NULL,
    sent BIGINT NOT NULL,
    counts TEXT NOT NULL,
    created BIGINT NOT NULL,
    ended BIGINT NOT NULL,
    event BIGINT NOT NULL
);
CREATE INDEX job_job_state ON job_job (state) WHERE ended = 0;
CREATE INDEX job_job_fun ON job_job (fun, id);
CREATE INDEX job_job_author ON job_job (author, id);
CREATE TABLE job_host (
    job BIGINT NOT NULL,
    host BIGINT NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    rc BIGINT NOT NULL,
    result TEXT NOT NULL,
    code TEXT NOT NULL,
    error TEXT NOT NULL,
    step TEXT NOT NULL,
    began BIGINT NOT NULL,
    took BIGINT NOT NULL,
    output TEXT NOT NULL,
    size BIGINT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (job, host)
);
CREATE INDEX job_host_host ON job_host (host, job);
-- One row per state of a rule; the one in force has until = 0. since and until are events.
CREATE TABLE job_rule (
    id BIGINT NOT NULL,
    who TEXT NOT NULL,
    effect TEXT NOT NULL,
    form TEXT NOT NULL,
    target TEXT NOT NULL,
    fun TEXT NOT NULL,
    args TEXT NOT NULL,
    note TEXT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (id, since)
);
