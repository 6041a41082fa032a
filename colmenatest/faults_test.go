package colmenatest

import (
	"context"
	"crypto/tls"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"testing"

	"github.com/mentasystems/colmena"
)

func clientOnlyTLS() (*tls.Config, error) { return &tls.Config{}, nil }

// TestFailNextFailsOneCall has every kind of call fail once, without effect, and succeed
// when it is made again.
func TestFailNextFailsOneCall(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 3)
	db := c.DB(1)
	mustExec(t, db, "CREATE TABLE t(a)")
	prepared, err := db.Prepare("INSERT INTO t VALUES(?)")
	if err != nil {
		t.Fatal(err)
	}
	defer prepared.Close()
	tx := func(f func(*sql.Tx) error) error {
		return colmena.InTx(t.Context(), db, nil, f)
	}
	insert := func(tx *sql.Tx) error { _, err := tx.Exec("INSERT INTO t VALUES(1)"); return err }
	rows := int64(0)
	for name, call := range map[string]struct {
		do   func() error
		adds int64
	}{
		"exec":              {func() error { _, err := db.Exec("INSERT INTO t VALUES(1)"); return err }, 1},
		"query":             {func() error { return db.QueryRow("SELECT 1").Scan(new(int)) }, 0},
		"writing query":     {func() error { return db.QueryRow("INSERT INTO t VALUES(1) RETURNING a").Scan(new(int)) }, 1},
		"exec of prepared":  {func() error { _, err := prepared.Exec(1); return err }, 1},
		"query of prepared": {func() error { return noRow(prepared.QueryRow(1).Scan(new(int))) }, 1},
		"begin":             {func() error { return tx(insert) }, 1},
		"begin of a read": {func() error {
			tx, err := db.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: true})
			if err != nil {
				return err
			}
			return tx.Commit()
		}, 0},
		"another handle": {func() error { _, err := c.OpenDB(2, "", colmena.Strong).Exec("INSERT INTO t VALUES(1)"); return err }, 1},
	} {
		failure := errors.New(name)
		c.FailNext(failure)
		if err := call.do(); !errors.Is(err, failure) {
			t.Errorf("%s: %v, told to fail", name, err)
		}
		wantNumber(t, c.DB(0), colmena.Strong, rows, "SELECT count(*) FROM t")
		if err := call.do(); err != nil {
			t.Errorf("%s, again: %v", name, err)
		}
		rows += call.adds
		wantNumber(t, c.DB(0), colmena.Strong, rows, "SELECT count(*) FROM t")
	}
}

func noRow(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}

// TestFailNextInsideATransaction holds that the transaction is what it was, and that errors
// come in the order in which they were given.
func TestFailNextInsideATransaction(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 1)
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	tx, err := c.DB(0).Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.Exec("INSERT INTO t VALUES(1)"); err != nil {
		t.Fatal(err)
	}
	first, second := errors.New("first"), colmena.ErrOutcomeUnknown
	c.FailNext(first)
	c.FailNext(second)
	if _, err := tx.Exec("INSERT INTO t VALUES(2)"); !errors.Is(err, first) {
		t.Errorf("%v, want the first error", err)
	}
	if _, err := tx.Query("SELECT a FROM t"); !errors.Is(err, second) || colmena.SafeToRetry(err) {
		t.Errorf("%v, want the second error, as it is", err)
	}
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
	wantNumber(t, c.DB(0), colmena.Strong, 1, "SELECT count(*) FROM t")
}

// TestRetriesGoThroughInjectedErrors shows what FailNext is for: InTx runs again after an
// aborted transaction, and database/sql after a bad connection.
func TestRetriesGoThroughInjectedErrors(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 1)
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	c.FailNext(&colmena.TxAbortedError{Reason: colmena.TxAbortLeader})
	runs := 0
	err := colmena.InTx(t.Context(), c.DB(0), nil, func(tx *sql.Tx) error {
		runs++
		if runs == 1 {
			c.FailNext(&colmena.TxAbortedError{Reason: colmena.TxAbortRepeat})
		}
		_, err := tx.Exec("INSERT INTO t VALUES(1)")
		return err
	})
	if err != nil || runs != 2 {
		t.Errorf("%d runs, %v", runs, err)
	}
	c.FailNext(driver.ErrBadConn)
	mustExec(t, c.DB(0), "INSERT INTO t VALUES(2)")
	wantNumber(t, c.DB(0), colmena.Strong, 2, "SELECT count(*) FROM t")
}

// optional are the interfaces that database/sql looks for.
var optional = map[string]func(any) bool{
	"driver.ConnBeginTx":         is[driver.ConnBeginTx],
	"driver.ConnPrepareContext":  is[driver.ConnPrepareContext],
	"driver.ExecerContext":       is[driver.ExecerContext],
	"driver.QueryerContext":      is[driver.QueryerContext],
	"driver.Pinger":              is[driver.Pinger],
	"driver.SessionResetter":     is[driver.SessionResetter],
	"driver.Validator":           is[driver.Validator],
	"driver.NamedValueChecker":   is[driver.NamedValueChecker],
	"driver.StmtExecContext":     is[driver.StmtExecContext],
	"driver.StmtQueryContext":    is[driver.StmtQueryContext],
	"driver.DriverContext":       is[driver.DriverContext],
	"io.Closer":                  is[io.Closer],
	"driver.RowsNextResultSet":   is[driver.RowsNextResultSet],
	"driver.RowsColumnTypeScanT": is[driver.RowsColumnTypeScanType],
}

func is[T any](v any) bool { _, ok := v.(T); return ok }

// TestHandlesAreWhatTheNodesAre holds that the cluster's connector, connections,
// statements, rows and transactions offer exactly what the node's own do.
func TestHandlesAreWhatTheNodesAre(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 1)
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	own, err := c.Node(0).Connector("")
	if err != nil {
		t.Fatal(err)
	}
	wrapped := &connector{node: func() *colmena.Node { return c.Node(0) }, faults: &c.faults}
	want, got := parts(t, own), parts(t, wrapped)
	for part := range want {
		for name, has := range optional {
			if has(want[part]) != has(got[part]) {
				t.Errorf("%s: the node's is a %s: %v, the cluster's: %v", part, name, has(want[part]), has(got[part]))
			}
		}
	}
	if c.DB(0).Driver() != own.Driver() {
		t.Error("the handle's driver is another one")
	}
}

// parts makes one of everything that a connector makes.
func parts(t *testing.T, c driver.Connector) map[string]any {
	t.Helper()
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	conn, err := c.Connect(ctx)
	must(err)
	stmt, err := conn.Prepare("SELECT a FROM t")
	must(err)
	rows, err := conn.(driver.QueryerContext).QueryContext(ctx, "SELECT a FROM t", nil)
	must(err)
	must(rows.Close())
	result, err := conn.(driver.ExecerContext).ExecContext(ctx, "DELETE FROM t", nil)
	must(err)
	tx, err := conn.(driver.ConnBeginTx).BeginTx(ctx, driver.TxOptions{ReadOnly: true})
	must(err)
	must(tx.Rollback())
	must(conn.Close())
	return map[string]any{"connector": c, "connection": conn, "statement": stmt, "rows": rows, "result": result, "transaction": tx}
}
