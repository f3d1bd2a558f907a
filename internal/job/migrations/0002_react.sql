-- +goose Up
-- One row per state of a reaction; the one in force has until = 0. since and until are events.
CREATE TABLE job_reaction (
    name TEXT NOT NULL,
    author TEXT NOT NULL,
    tag TEXT NOT NULL,
    spec TEXT NOT NULL,
    hook TEXT NOT NULL,
    note TEXT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (name, since)
);
-- What is to be done, until it is done; what could not be done stays as a dead letter.
CREATE TABLE job_letter (
    id BIGINT PRIMARY KEY,
    reaction TEXT NOT NULL,
    tag TEXT NOT NULL,
    data TEXT NOT NULL,
    state TEXT NOT NULL,
    tries BIGINT NOT NULL,
    error TEXT NOT NULL,
    job TEXT NOT NULL,
    at BIGINT NOT NULL,
    due BIGINT NOT NULL
);
CREATE INDEX job_letter_due ON job_letter (due) WHERE state = 'waiting';
CREATE INDEX job_letter_state ON job_letter (state, id);
