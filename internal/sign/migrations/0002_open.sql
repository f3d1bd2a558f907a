-- +goose Up
-- Whether something is asked for already is looked up for each of thousands.
CREATE INDEX sign_request_asked ON sign_request (key, digest) WHERE done = 0;
