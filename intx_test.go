package colmena

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"
)

// InTx runs again what was aborted through no fault of the function, as often as it says, and
// nothing else: what was wrong with the transaction would be again.
func TestInTxRunsAgainWhatWasAborted(t *testing.T) {
	n, err := New(Config{DataDir: t.TempDir(), MaxStatementTime: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	db := n.DB()
	mustExec(t, db, "CREATE TABLE t(a UNIQUE); INSERT INTO t VALUES(1)")
	const endless = "INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c"
	exec := func(query string) func(*sql.Tx) error {
		return func(tx *sql.Tx) error { _, err := tx.Exec(query); return err }
	}
	for what, c := range map[string]struct {
		f    func(*sql.Tx) error
		runs int
		want func(error) bool
	}{
		"an abort for another's sake": {func(*sql.Tx) error { return &TxAbortedError{Reason: TxAbortLeader} }, maxTxTries, is(ErrTxAborted)},
		"no leader":                   {func(*sql.Tx) error { return ErrNoLeader }, maxTxTries, is(ErrNoLeader)},
		"a violation":                 {exec("INSERT INTO t VALUES(1)"), 1, IsUnique},
		"a violation that aborts":     {exec("INSERT OR ROLLBACK INTO t VALUES(1)"), 1, IsUnique},
		"one that was not looked at":  {func(tx *sql.Tx) error { _ = exec("INSERT OR ROLLBACK INTO t VALUES(1)")(tx); return nil }, 1, is(ErrTxAborted)},
		"a statement without end":     {exec(endless), 1, is(context.DeadlineExceeded)},
		"a statement's own context": {func(tx *sql.Tx) error {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
			defer cancel()
			_, err := tx.ExecContext(ctx, endless)
			return err
		}, 1, is(context.DeadlineExceeded)},
		"an unknown outcome": {func(*sql.Tx) error { return ErrOutcomeUnknown }, 1, is(ErrOutcomeUnknown)},
		"a closed node":      {func(*sql.Tx) error { return errors.Join(ErrClosed, ErrNotApplied) }, 1, is(ErrClosed)},
	} {
		runs := 0
		err := InTx(t.Context(), db, nil, func(tx *sql.Tx) error {
			runs++
			return errors.Join(exec("INSERT INTO t VALUES(-1)")(tx), c.f(tx))
		})
		if runs != c.runs || !c.want(err) {
			t.Errorf("%s: %d runs, want %d: %v", what, runs, c.runs, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	runs := 0
	if err := InTx(ctx, db, nil, func(*sql.Tx) error { runs++; cancel(); return ErrNoLeader }); runs != 1 || !errors.Is(err, ErrNoLeader) {
		t.Errorf("a context that ends: %d runs, %v", runs, err)
	}
	func() {
		defer func() {
			if recover() != "mine" {
				t.Error("the panic is lost")
			}
		}()
		_ = InTx(t.Context(), db, nil, func(tx *sql.Tx) error {
			_ = exec("INSERT INTO t VALUES(-1)")(tx)
			panic("mine")
		})
	}()
	mustExec(t, db, "UPDATE t SET a = a") // nothing holds the writer
	var rows int
	if err := db.QueryRow("SELECT count(*) FROM t").Scan(&rows); err != nil || rows != 1 {
		t.Errorf("%d rows, %v: what was rolled back has left something", rows, err)
	}
}

// A client that was idle for too long would be again.
func TestInTxLeavesAnIdleClient(t *testing.T) {
	n, err := New(Config{DataDir: t.TempDir(), TxIdleTimeout: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	db := n.DB()
	mustExec(t, db, "CREATE TABLE t(a)")
	runs := 0
	err = InTx(t.Context(), db, nil, func(tx *sql.Tx) error {
		runs++
		if _, err := tx.Exec("INSERT INTO t VALUES(1)"); err != nil {
			return err
		}
		mustExec(t, db, "INSERT INTO t VALUES(2)") // it waits until the transaction is over
		_, err := tx.Exec("INSERT INTO t VALUES(3)")
		return err
	})
	var aborted *TxAbortedError
	if !errors.As(err, &aborted) || aborted.Reason != TxAbortIdle || runs != 1 {
		t.Errorf("%d runs: %v", runs, err)
	}
}

func is(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}
