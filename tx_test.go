package colmena

import (
	"database/sql"
	"errors"
	"fmt"
	"testing"
)

func readOnlyTx(t *testing.T, db *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	return tx
}

func TestReadOnlyTransactionIsAStableSnapshot(t *testing.T) {
	db := testNode(t).DB()
	mustExec(t, db, "CREATE TABLE t(a); INSERT INTO t VALUES(1)")
	tx := readOnlyTx(t, db)
	count := func(q interface {
		QueryRow(string, ...any) *sql.Row
	}) (n int) {
		t.Helper()
		if err := q.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	mustExec(t, db, "INSERT INTO t VALUES(2)") // before its first query, too
	if n := count(tx); n != 1 {
		t.Errorf("%d rows at first", n)
	}
	mustExec(t, db, "INSERT INTO t VALUES(3)")
	if n := count(tx); n != 1 {
		t.Errorf("%d rows later", n)
	}
	mustExec(t, db, "DROP TABLE t")
	if n := count(tx); n != 1 {
		t.Errorf("%d rows after the table was dropped", n)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRow("SELECT count(*) FROM t").Scan(new(int)); err == nil {
		t.Error("the dropped table is there")
	}
}

func TestWritesInAReadOnlyTransactionAreRefused(t *testing.T) {
	db := testNode(t).DB()
	mustExec(t, db, "CREATE TABLE t(a); INSERT INTO t VALUES(1)")
	tx := readOnlyTx(t, db)
	var refused *RefusedError
	for _, q := range []string{"INSERT INTO t VALUES(2)", "INSERT INTO t VALUES(2) RETURNING a", "WITH x(a) AS (VALUES(1)) DELETE FROM t WHERE a IN x", "PRAGMA user_version=7", "SELECT 1; DELETE FROM t",
		"CREATE TABLE u(a)"} {
		if _, err := tx.Exec(q); !errors.As(err, &refused) {
			t.Errorf("%s: %v", q, err)
		}
		if rows, err := tx.Query(q); !errors.As(err, &refused) {
			if err == nil {
				rows.Close()
			}
			t.Errorf("%s as a query: %v", q, err)
		}
	}
	if _, err := tx.Exec("SELECT a FROM t"); err != nil {
		t.Errorf("the transaction does not go on: %v", err)
	}
}

// TestQueriesOfATransactionNest opens the same query inside its own rows.
func TestQueriesOfATransactionNest(t *testing.T) {
	db := testNode(t).DB()
	mustExec(t, db, "CREATE TABLE tree(id INTEGER PRIMARY KEY, parent INT); INSERT INTO tree VALUES(1,0),(2,1),(3,1),(4,2),(5,2),(6,3)")
	tx := readOnlyTx(t, db)
	var walk func(parent int) []int
	walk = func(parent int) (ids []int) {
		rows, err := tx.Query("SELECT id FROM tree WHERE parent=? ORDER BY id", parent)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var id int
			if err := rows.Scan(&id); err != nil {
				t.Fatal(err)
			}
			ids = append(append(ids, id), walk(id)...)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		return ids
	}
	got := walk(0)
	if want := []int{1, 2, 4, 5, 3, 6}; len(got) != len(want) {
		t.Fatalf("walked %v, want %v", got, want)
	} else {
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("walked %v, want %v", got, want)
			}
		}
	}
}

func TestIsolationLevelsThatCannotBeGivenAreRefused(t *testing.T) {
	db := testNode(t).DB()
	for level := sql.LevelDefault - 1; level <= sql.LevelLinearizable+1; level++ {
		for _, readOnly := range []bool{true, false} {
			tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: level, ReadOnly: readOnly})
			if given := level >= sql.LevelDefault && level <= sql.LevelSerializable; (err == nil) != given {
				t.Errorf("%v: %v", level, err)
			}
			if err == nil {
				if err := tx.Rollback(); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

func TestTransactionsEndWithTheNode(t *testing.T) {
	n := testNode(t)
	db, err := n.OpenDB("")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	mustExec(t, db, "CREATE TABLE t(a)")
	tx := readOnlyTx(t, db)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Query("SELECT 1"); !errors.Is(err, ErrClosed) {
		t.Errorf("a query: %v", err)
	}
	if err := tx.Commit(); !errors.Is(err, ErrClosed) {
		t.Errorf("commit: %v", err)
	}
}

// TestRowsOfATransactionOutliveManyOtherQueries opens more queries inside the rows of
// another than a connection keeps prepared.
func TestRowsOfATransactionOutliveManyOtherQueries(t *testing.T) {
	db := testNode(t).DB()
	mustExec(t, db, "CREATE TABLE t(a INTEGER PRIMARY KEY); INSERT INTO t VALUES(1),(2),(3)")
	tx := readOnlyTx(t, db)
	rows, err := tx.Query("SELECT a FROM t ORDER BY a")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for want := 1; want <= 3; want++ {
		var a int
		if !rows.Next() || rows.Scan(&a) != nil || a != want {
			t.Fatalf("row %d is %d: %v", want, a, rows.Err())
		}
		for i := range 300 {
			var n int
			if err := tx.QueryRow(fmt.Sprintf("SELECT count(*)+%d FROM t", 1000*want+i)).Scan(&n); err != nil || n != 3+1000*want+i {
				t.Fatalf("query %d: %d, %v", i, n, err)
			}
		}
	}
	if rows.Next() || rows.Err() != nil {
		t.Errorf("a fourth row, or %v", rows.Err())
	}
}
