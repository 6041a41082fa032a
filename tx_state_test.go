package colmena

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Whether a commit was applied does not follow from why the question could not be answered.
func TestUnresolvedCommitIsNotTakenForAborted(t *testing.T) {
	aborted := &TxAbortedError{Reason: TxAbortWait, Err: context.DeadlineExceeded}
	err := outcomeUnknown(aborted, "commit: asking what became of it: %v", aborted)
	if errors.Is(err, ErrNotApplied) || errors.Is(err, ErrTxAborted) || !errors.Is(err, ErrOutcomeUnknown) || SafeToRetry(err) || mayRunAgain(err) {
		t.Errorf("%v: may be run again", err)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v: the context's error is lost", err)
	}
	both := errors.Join(&TxAbortedError{Reason: TxAbortWait}, ErrOutcomeUnknown)
	if mayRunAgain(both) {
		t.Error("what may have been applied is run again")
	}
}

// A transaction that was aborted leaves what the connection remembers as it was.
func TestConnectionRemembersBeyondAnAbortedTransaction(t *testing.T) {
	n, err := New(Config{DataDir: t.TempDir(), TxIdleTimeout: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	conn, err := n.DB().Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	run := func(q string) {
		t.Helper()
		if _, err := conn.ExecContext(t.Context(), q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
	run("CREATE TABLE t(id INTEGER PRIMARY KEY)")
	run("INSERT INTO t VALUES(41)")
	run("BEGIN")
	run("SELECT 1")
	mustExec(t, n.DB(), "INSERT INTO t VALUES(42)") // it waits until the transaction is over
	if _, err := conn.ExecContext(t.Context(), "SELECT 1"); !errors.Is(err, ErrTxAborted) {
		t.Errorf("after the end of an idle transaction: %v", err)
	}
	run("ROLLBACK")
	var id int
	if err := conn.QueryRowContext(t.Context(), "SELECT last_insert_rowid()").Scan(&id); err != nil || id != 41 {
		t.Errorf("last_insert_rowid() is %d, %v", id, err)
	}
}
