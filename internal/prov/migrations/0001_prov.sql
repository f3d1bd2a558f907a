-- +goose Up
CREATE TABLE prov_statement (
    build BIGINT PRIMARY KEY,
    key TEXT NOT NULL,
    envelope TEXT NOT NULL,
    since BIGINT NOT NULL
);
