CREATE VIRTUAL TABLE note_search USING fts5(text, content='note', content_rowid='id');
INSERT INTO note_search(note_search) VALUES('rebuild');
CREATE TRIGGER note_added AFTER INSERT ON note BEGIN
	INSERT INTO note_search(rowid, text) VALUES (NEW.id, NEW.text);
END;
