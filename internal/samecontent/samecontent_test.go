package samecontent

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite"
)

func open(t *testing.T, file, script string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	db.SetMaxOpenConns(4)
	if _, err := db.Exec(script); err != nil {
		t.Fatal(err)
	}
	return db
}

// TestDifferencesAreFound changes one thing at a time.
func TestDifferencesAreFound(t *testing.T) {
	const base = `CREATE TABLE t(a, b DATE); INSERT INTO t VALUES(1, '2026-01-02'), (2, NULL);
CREATE TABLE w(k TEXT PRIMARY KEY, v) WITHOUT ROWID; INSERT INTO w VALUES('x', x'00ff');
CREATE TABLE hidden(rowid, _rowid_, oid); INSERT INTO hidden VALUES(1, 2, 3), (1, 2, 3);
CREATE TABLE "odd "" name"("a "" b", g AS ("a "" b" || '!')); INSERT INTO "odd "" name" VALUES('it''s');
CREATE TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO auto VALUES(7);
CREATE VIRTUAL TABLE words USING fts5(body); INSERT INTO words VALUES('some words');
`
	dir := t.TempDir()
	a := open(t, filepath.Join(dir, "a"), base)
	for name, c := range map[string]struct{ change, want string }{
		"nothing":             {"", ""},
		"vacuum":              {"VACUUM", ""},
		"row":                 {"INSERT INTO t VALUES(3, 4)", "table t: row 3 is missing in the one and (3, 3, 4) in the other"},
		"row less":            {"DELETE FROM t WHERE a = 2", "table t: row 2 is (2, 2, NULL) in the one and missing in the other"},
		"value":               {"UPDATE t SET a = 9 WHERE a = 1", "table t: row 1"},
		"type":                {"UPDATE t SET a = '1' WHERE a = 1", "table t: row 1"},
		"real for integer":    {"UPDATE t SET a = 1.0 WHERE a = 1", "table t: row 1"},
		"another text of day": {"UPDATE t SET b = '2026-01-02 00:00:00' WHERE a = 1", "table t: row 1"},
		"blob for text":       {"UPDATE t SET b = CAST(b AS BLOB) WHERE a = 1", "table t: row 1"},
		"rowid":               {"UPDATE t SET rowid = 5 WHERE a = 2", "table t: row 2"},
		"without rowid":       {"UPDATE w SET v = x'00fe'", "table w: row 1"},
		"hidden rowid":        {"INSERT INTO hidden VALUES(1, 2, 3)", "table hidden: row 3"},
		"odd name":            {`UPDATE "odd "" name" SET "a "" b" = ''`, `table odd " name: row 1`},
		"counter":             {"UPDATE sqlite_sequence SET seq = 8", "table sqlite_sequence: row 1"},
		"full text":           {"INSERT INTO words VALUES('more words')", "table words_"},
		"index":               {"CREATE INDEX i ON t(a)", "row 1 is ("},
		"user_version":        {"PRAGMA user_version = 3", `("user_version", 0)`},
		"application_id":      {"PRAGMA application_id = 3", `("application_id", 0)`},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, filepath.Join(t.TempDir(), "b"), base+c.change)
			got, err := Diff(t.Context(), a, b)
			if err != nil || (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
			if err := Check(t.Context(), b); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDamageIsFound overwrites a page of the file.
func TestDamageIsFound(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a")
	db := open(t, file, "CREATE TABLE t(a); CREATE INDEX i ON t(a); INSERT INTO t VALUES('one'), ('two')")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.LastIndex(string(b), "two")
	b[at] = 'T'
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Check(context.Background(), open(t, file, "")); err == nil || !strings.Contains(err.Error(), "integrity_check: ") {
		t.Errorf("the index differs from its table, and that is not found: %v", err)
	}
}
