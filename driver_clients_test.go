package colmena

import (
	"database/sql"
	"database/sql/driver"
	"reflect"
	"testing"
	"time"
)

// The tests in this file hold what ORMs and migration tools need of the driver.

func TestValuesScanIntoWhatClientsUse(t *testing.T) {
	db := testNode(t).DB()
	mustExec(t, db, "CREATE TABLE t(d DATE, dt DATETIME, ts TIMESTAMP, bo BOOLEAN, n INT, s TEXT, f REAL)")
	mustExec(t, db, "INSERT INTO t VALUES('2024-05-06', '2024-05-06 07:08:09', '2024-05-06T07:08:09Z', 1, NULL, NULL, NULL)")
	var d, dt time.Time
	var ts sql.NullTime
	var bo sql.NullBool
	var n sql.NullInt64
	var s sql.NullString
	var f sql.Null[float64]
	rows, err := db.Query("SELECT * FROM t")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	types, err := rows.ColumnTypes()
	if err != nil {
		t.Fatal(err)
	}
	for _, ct := range types {
		if ct.ScanType() == nil || reflect.New(ct.ScanType()).IsNil() {
			t.Errorf("column %s has no type to scan into", ct.Name())
		}
	}
	if !rows.Next() {
		t.Fatal(rows.Err())
	}
	if err := rows.Scan(&d, &dt, &ts, &bo, &n, &s, &f); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	if !d.Equal(at.Truncate(24*time.Hour)) || !dt.Equal(at) || !ts.Valid || !ts.Time.Equal(at) || !bo.Valid || !bo.Bool || n.Valid || s.Valid || f.Valid {
		t.Errorf("%v %v %v %v %v %v %v", d, dt, ts, bo, n, s, f)
	}
}

func TestPreparedStatementsSurvive(t *testing.T) {
	db := testNode(t).DB()
	db.SetMaxOpenConns(1)
	mustExec(t, db, "CREATE TABLE t(id INTEGER PRIMARY KEY, a)")
	ins, err := db.Prepare("INSERT INTO t(a) VALUES(?) RETURNING id")
	if err != nil {
		t.Fatal(err)
	}
	defer ins.Close()
	insert := func(st *sql.Stmt, want int64) {
		t.Helper()
		var id int64
		if err := st.QueryRow("x").Scan(&id); err != nil || id != want {
			t.Errorf("row %d, %v, want %d", id, err, want)
		}
	}
	insert(ins, 1)
	for _, commit := range []bool{false, true} {
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		insert(tx.Stmt(ins), 2)
		if _, err := tx.Exec("ALTER TABLE t ADD COLUMN b"); err != nil {
			t.Fatal(err)
		}
		insert(tx.Stmt(ins), 3)
		end := tx.Rollback
		if commit {
			end = tx.Commit
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	}
	insert(ins, 4)
	mustExec(t, db, "DROP TABLE t; CREATE TABLE t(a, id INTEGER PRIMARY KEY)")
	insert(ins, 1)
}

func TestHandlesAreClosedAndReopened(t *testing.T) {
	n := testNode(t)
	for i := range 3 {
		one, err := n.OpenDB("app")
		if err != nil {
			t.Fatal(err)
		}
		other, err := n.OpenDB("app")
		if err != nil {
			t.Fatal(err)
		}
		one.SetMaxOpenConns(1)
		mustExec(t, one, "CREATE TABLE IF NOT EXISTS t(a)")
		mustExec(t, one, "INSERT INTO t VALUES(1)")
		if err := one.Close(); err != nil {
			t.Fatal(err)
		}
		var rows int
		if err := other.QueryRow("SELECT count(*) FROM t").Scan(&rows); err != nil || rows != i+1 {
			t.Errorf("%d rows, %v", rows, err)
		}
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A connection that is given back in the midst of a transaction is a fresh one for whoever
// takes it next.
func TestConnectionsAreResetBetweenUsers(t *testing.T) {
	n := testNode(t)
	c, err := n.Connector("")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := c.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	exec := func(query string) error {
		_, err := raw.(driver.ExecerContext).ExecContext(t.Context(), query, nil)
		return err
	}
	for _, q := range []string{"CREATE TABLE t(a)", "BEGIN", "INSERT INTO t VALUES(1)"} {
		if err := exec(q); err != nil {
			t.Fatal(err)
		}
	}
	if err := raw.(driver.SessionResetter).ResetSession(t.Context()); err != nil || !raw.(driver.Validator).IsValid() {
		t.Fatalf("reset: %v", err)
	}
	if err := exec("COMMIT"); err == nil {
		t.Error("the transaction outlives the reset")
	}
	var rows int
	if err := n.DB().QueryRow("SELECT count(*) FROM t").Scan(&rows); err != nil || rows != 0 {
		t.Errorf("%d rows, %v", rows, err)
	}
	if err := raw.Close(); err != nil {
		t.Fatal(err)
	}
	if raw.(driver.Validator).IsValid() {
		t.Error("a closed connection is valid")
	}
}
