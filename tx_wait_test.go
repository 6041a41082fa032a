package colmena_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// While one transaction holds the writer, others that have done nothing end at once, and one
// whose statement gave up waiting goes on, on every node.
func TestTransactionsThatWaitForAnother(t *testing.T) {
	c := testcluster.New(t, 3)
	leader, follower := leaderAndFollower(t, c)
	exec(t, leader, "CREATE TABLE t(a)")
	for _, n := range []*colmena.Node{leader, follower} {
		var tx [4]*sql.Tx
		for i := range tx {
			var err error
			if tx[i], err = n.DB().BeginTx(limit(t), nil); err != nil {
				t.Fatal(err)
			}
		}
		waiter, holder := tx[0], tx[1]
		if _, err := holder.Exec("INSERT INTO t VALUES(1)"); err != nil {
			t.Fatal(err)
		}
		prompt(t, "the end of a transaction that has done nothing", 2*time.Second, func() {
			if err := errors.Join(tx[2].Rollback(), tx[3].Commit()); err != nil {
				t.Error(err)
			}
		})
		for range 2 {
			short, cancel := context.WithTimeout(limit(t), 20*time.Millisecond)
			_, err := waiter.ExecContext(short, "INSERT INTO t VALUES(-1)")
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, colmena.ErrTxAborted) || !colmena.SafeToRetry(err) {
				t.Errorf("a statement that gave up waiting: %v", err)
			}
		}
		if err := holder.Commit(); err != nil {
			t.Error(err)
		}
		if _, err := waiter.Exec("INSERT INTO t VALUES(2)"); err != nil {
			t.Errorf("the transaction whose statement had given up: %v", err)
		}
		if err := waiter.Commit(); err != nil {
			t.Error(err)
		}
	}
	wantNumber(t, leader, colmena.Strong, 4, "SELECT count(*) FROM t WHERE a > 0")
	wantNumber(t, leader, colmena.Strong, 0, "SELECT count(*) FROM t WHERE a < 0")
}

// A statement that its context stops while it runs gives that context's error, on every
// node, and its transaction goes on.
func TestStatementsStoppedInATransaction(t *testing.T) {
	c := testcluster.New(t, 3)
	leader, follower := leaderAndFollower(t, c)
	exec(t, leader, "CREATE TABLE t(a)")
	const endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) "
	for name, n := range map[string]*colmena.Node{"leader": leader, "follower": follower} {
		tx, err := n.DB().BeginTx(limit(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range []string{endless + "SELECT max(n) FROM c", endless + "INSERT INTO t SELECT max(n) FROM c"} {
			for _, want := range []error{context.DeadlineExceeded, context.Canceled} {
				ctx, cancel := context.WithTimeout(limit(t), 30*time.Millisecond)
				if want == context.Canceled {
					ctx, cancel = context.WithCancel(limit(t))
					time.AfterFunc(30*time.Millisecond, cancel)
				}
				_, err := tx.ExecContext(ctx, q)
				cancel()
				if !errors.Is(err, want) || errors.Is(err, colmena.ErrTxAborted) || !colmena.SafeToRetry(err) {
					t.Errorf("%s, %s: %v, want %v", name, q, err, want)
				}
			}
		}
		if _, err := tx.Exec("INSERT INTO t VALUES(1)"); err != nil {
			t.Error(err)
		}
		if err := tx.Commit(); err != nil {
			t.Error(err)
		}
	}
	wantNumber(t, leader, colmena.Strong, 2, "SELECT count(*) FROM t")
}
