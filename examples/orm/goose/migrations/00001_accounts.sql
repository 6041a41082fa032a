-- +goose Up
CREATE TABLE account (
	id      INTEGER PRIMARY KEY AUTOINCREMENT,
	owner   TEXT NOT NULL UNIQUE,
	balance INTEGER NOT NULL DEFAULT 0 CHECK (balance >= 0),
	opened  TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
);
INSERT INTO account(owner, balance) VALUES('bank', 1000);

-- +goose Down
DROP TABLE account;
