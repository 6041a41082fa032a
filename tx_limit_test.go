package colmena

import (
	"testing"
)

// A transaction of many small statements succeeds in either mode, in time that grows with
// their number.
func TestTransactionsOfManyStatements(t *testing.T) {
	db := testNode(t).DB()
	mustExec(t, db, "CREATE TABLE t(a)")
	const many = 100_000
	for _, mode := range []TxMode{TxBuffered, TxInteractive} {
		tx, err := db.BeginTx(WithTxMode(t.Context(), mode), nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range many {
			if _, err := tx.Exec("INSERT INTO t VALUES(?)", i); err != nil {
				t.Fatalf("mode %d, statement %d: %v", mode, i, err)
			}
		}
		if err := tx.Commit(); err != nil {
			t.Fatalf("mode %d: %v", mode, err)
		}
	}
	var n int
	if err := db.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != 2*many {
		t.Errorf("%d rows, %v", n, err)
	}
}
