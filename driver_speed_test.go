package colmena

import "testing"

// BenchmarkPointRead reads a row by its key through *sql.DB, from this node's file.
func BenchmarkPointRead(b *testing.B) {
	n, err := New(Config{DataDir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	db, err := n.OpenDB("", None)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(`CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, n INT);
WITH RECURSIVE x(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM x WHERE i<1000) INSERT INTO t SELECT i, 'text ' || i, i*i FROM x`); err != nil {
		b.Fatal(err)
	}
	var a string
	var square int64
	id := int64(0)
	b.ReportAllocs()
	for b.Loop() {
		id = id%1000 + 1
		if err := db.QueryRow("SELECT a, n FROM t WHERE id=?", id).Scan(&a, &square); err != nil || square != id*id {
			b.Fatal(square, err)
		}
	}
}
