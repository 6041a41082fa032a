-- +goose NO TRANSACTION
-- +goose Up
ALTER TABLE account RENAME COLUMN owner TO holder;
CREATE VIEW rich AS SELECT holder FROM account WHERE balance > 500;

-- +goose Down
DROP VIEW rich;
ALTER TABLE account RENAME COLUMN holder TO owner;
