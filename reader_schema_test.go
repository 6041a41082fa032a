package colmena_test

import (
	"fmt"
	"testing"

	"github.com/mentasystems/colmena/internal/testcluster"
)

// What SQLite answers from the schema in memory must not be that of before, on the
// connections that only read.
func TestReadsSeeTheNewestSchema(t *testing.T) {
	c := testcluster.New(t, 1)
	db := c.Node(0).DB()
	columns := func(query string) string {
		t.Helper()
		rows, err := db.QueryContext(limit(t), query)
		if err != nil {
			return err.Error()
		}
		defer rows.Close()
		names, err := rows.Columns()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for rows.Next() {
			n++
		}
		return fmt.Sprint(names, n, rows.Err())
	}
	const insert, explain = "WITH x AS (SELECT 1) INSERT INTO v SELECT * FROM x", "EXPLAIN QUERY PLAN SELECT * FROM v"
	for _, s := range []struct{ change, query, want string }{
		{"CREATE TABLE t(a); INSERT INTO t VALUES(1); CREATE VIEW v AS SELECT 1", "SELECT * FROM t", "[a] 1 <nil>"},
		{"ALTER TABLE t RENAME COLUMN a TO b", "SELECT * FROM t", "[b] 1 <nil>"},
		{"ALTER TABLE t ADD COLUMN c REFERENCES t(b)", "SELECT * FROM t", "[b c] 1 <nil>"},
		{"ALTER TABLE t ADD COLUMN d", "PRAGMA table_info(t)", "[cid name type notnull dflt_value pk] 3 <nil>"},
		{"ALTER TABLE t ADD COLUMN e REFERENCES t(b)", "PRAGMA foreign_key_list(t)", "[id seq table from to on_update on_delete match] 2 <nil>"},
		{"ALTER TABLE t DROP COLUMN e", "SELECT name FROM pragma_table_info('t')", "[name] 3 <nil>"},
		{"CREATE INDEX i ON t(b)", explain, "[id parent notused detail] 3 <nil>"},
		{"DROP VIEW v", explain, "SQL logic error: no such table: v (1)"},
		{"CREATE VIEW v AS SELECT 1", insert, "SQL logic error: cannot modify v because it is a view (1)"},
		{"DROP VIEW v", insert, "SQL logic error: no such table: v (1)"},
	} {
		exec(t, c.Node(0), s.change)
		if got := columns(s.query); got != s.want {
			t.Errorf("after %s, %s gives %s, want %s", s.change, s.query, got, s.want)
		}
	}
}

func TestIntegrityCheckOfAnIndexThatOthersWrote(t *testing.T) {
	c := testcluster.New(t, 1)
	n := c.Node(0)
	exec(t, n, "CREATE VIRTUAL TABLE f USING fts5(a)")
	for i := range 5 {
		exec(t, n, "INSERT INTO f VALUES(?), ('blue fish'), ('10')", fmt.Sprint("word", i))
		var answer string
		if err := n.DB().QueryRowContext(limit(t), "PRAGMA integrity_check").Scan(&answer); err != nil || answer != "ok" {
			t.Errorf("after %d inserts: %s, %v", i+1, answer, err)
		}
	}
}
