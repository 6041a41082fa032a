-- +goose Up
CREATE TABLE transfer (
	id     INTEGER PRIMARY KEY,
	debit  INTEGER NOT NULL REFERENCES account(id),
	credit INTEGER NOT NULL REFERENCES account(id),
	amount INTEGER NOT NULL CHECK (amount > 0)
);
CREATE INDEX transfer_debit ON transfer(debit);
-- +goose StatementBegin
CREATE TRIGGER transfer_moves AFTER INSERT ON transfer
BEGIN
	UPDATE account SET balance = balance - NEW.amount WHERE id = NEW.debit;
	UPDATE account SET balance = balance + NEW.amount WHERE id = NEW.credit;
END;
-- +goose StatementEnd

-- +goose Down
DROP TABLE transfer;
