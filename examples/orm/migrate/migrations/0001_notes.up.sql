CREATE TABLE note (
	id   INTEGER PRIMARY KEY,
	text TEXT NOT NULL,
	at   DATETIME NOT NULL DEFAULT (datetime('now'))
);
INSERT INTO note(text) VALUES('first'), ('second');
