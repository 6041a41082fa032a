DROP TRIGGER note_added;
DROP TABLE note_search;
