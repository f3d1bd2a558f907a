-- +goose Up
-- How many hosts said, once a week, that they follow a channel, by how long they have done so:
-- dnf's countme. week is when it began.
CREATE TABLE repo_census (
    channel TEXT NOT NULL,
    week BIGINT NOT NULL,
    age BIGINT NOT NULL,
    hosts BIGINT NOT NULL,
    PRIMARY KEY (channel, week, age)
);
-- Chunks are fetched by the digest of their blob.
CREATE INDEX repo_part_digest ON repo_part (digest);
