-- +goose Up
-- What changed since an event is asked at each publishing.
CREATE INDEX release_tagging_since ON release_tagging (tag, since);
CREATE INDEX release_tagging_until ON release_tagging (tag, until);
