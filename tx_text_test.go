package colmena

import (
	"context"
	"sync"
	"testing"
)

// Rows that are still being read when a read-only transaction is ended by text go on, and
// what they are read from is nobody else's until they are closed.
func TestRowsOutliveATransactionThatEndsAsText(t *testing.T) {
	n := testNode(t)
	mustExec(t, n.DB(), "CREATE TABLE t(a); INSERT INTO t WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 3000) SELECT i FROM s")
	db, err := n.OpenDB("", ReadOnly())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 { // they take what was given back
		wg.Go(func() {
			for ctx.Err() == nil {
				var k int
				if err := db.QueryRow("SELECT count(*) FROM t WHERE a > ?", 0).Scan(&k); err != nil || k < 3000 {
					t.Errorf("%d rows, %v", k, err)
					return
				}
			}
		})
	}
	for range 20 {
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		rows, err := conn.QueryContext(t.Context(), "BEGIN; SELECT a FROM t; COMMIT")
		if err != nil {
			t.Fatal(err)
		}
		k := 0
		for rows.Next() {
			k++
		}
		if err := rows.Err(); err != nil || k != 3000 {
			t.Errorf("%d rows, %v", k, err)
		}
		if err := rows.Close(); err != nil {
			t.Error(err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	cancel()
	wg.Wait()
}
