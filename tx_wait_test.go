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

// A transaction that is told it was aborted, because it waited too long for another one, is: on
// every node.
func TestTransactionThatWaitedInVainIsAborted(t *testing.T) {
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) { cfg.TxWaitTimeout = 50 * time.Millisecond })
	leader, follower := leaderAndFollower(t, c)
	exec(t, leader, "CREATE TABLE t(a)")
	for name, n := range map[string]*colmena.Node{"leader": leader, "follower": follower} {
		var tx [2]*sql.Tx
		for i := range tx {
			var err error
			if tx[i], err = n.DB().BeginTx(limit(t), nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := tx[0].Exec("INSERT INTO t VALUES(1)"); err != nil {
			t.Fatal(err)
		}
		wantWait := func(what string, err error) {
			t.Helper()
			var aborted *colmena.TxAbortedError
			if !errors.As(err, &aborted) || aborted.Reason != colmena.TxAbortWait || aborted.Holder == "" || !colmena.SafeToRetry(err) {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
		_, err := tx[1].Exec("INSERT INTO t VALUES(-1)")
		wantWait("a statement that waits", err)
		if err := tx[0].Commit(); err != nil {
			t.Error(err)
		}
		_, err = tx[1].Exec("INSERT INTO t VALUES(-1)")
		wantWait("the next one, when the writer is free", err)
		wantWait("the commit", tx[1].Commit())
	}
	wantNumber(t, leader, colmena.Strong, 2, "SELECT sum(a) FROM t")
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

// A transaction that is idle, or open, for too long is aborted, on every node, and its client
// is told which of the two it was.
func TestTransactionsThatTakeTooLong(t *testing.T) {
	for reason, set := range map[colmena.TxAbortReason]func(*colmena.Config){
		colmena.TxAbortIdle: func(cfg *colmena.Config) { cfg.TxIdleTimeout, cfg.TxTimeout = 50*time.Millisecond, -1 },
		colmena.TxAbortTime: func(cfg *colmena.Config) { cfg.TxIdleTimeout, cfg.TxTimeout = -1, 50*time.Millisecond },
	} {
		c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) { set(cfg) })
		leader, follower := leaderAndFollower(t, c)
		exec(t, leader, "CREATE TABLE t(a)")
		for name, n := range map[string]*colmena.Node{"leader": leader, "follower": follower} {
			for _, query := range []string{"INSERT INTO t VALUES(1)", "COMMIT", "ROLLBACK"} {
				tx, err := n.DB().BeginTx(limit(t), nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Exec("INSERT INTO t VALUES(1)"); err != nil {
					t.Fatal(err)
				}
				exec(t, leader, "INSERT INTO t VALUES(2)") // it waits until the transaction is over
				switch query {
				case "COMMIT":
					err = tx.Commit()
				case "ROLLBACK":
					err = tx.Rollback()
				default:
					_, err = tx.Exec(query)
				}
				var aborted *colmena.TxAbortedError
				told := errors.As(err, &aborted) && aborted.Reason == reason && colmena.SafeToRetry(err)
				if !told && !(query == "ROLLBACK" && err == nil) {
					t.Errorf("%s, %s: %v, want %q", name, query, err, reason)
				}
				_ = tx.Rollback()
			}
		}
		wantNumber(t, leader, colmena.Strong, 0, "SELECT count(*) FROM t WHERE a = 1")
	}
}

// A read-only transaction on a follower begins as fresh as its level says, stays as it began,
// and waits for no transaction that writes.
func TestReadOnlyTransactionsOnAFollower(t *testing.T) {
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) { cfg.LeaderWait = 200 * time.Millisecond })
	leader, follower := leaderAndFollower(t, c)
	exec(t, leader, "CREATE TABLE t(a)")
	writer, err := leader.DB().BeginTx(limit(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	begin := func(level colmena.ConsistencyLevel) (*sql.Tx, error) {
		return follower.DB().BeginTx(colmena.WithConsistency(limit(t), level), &sql.TxOptions{ReadOnly: true})
	}
	count := func(tx *sql.Tx, want int, what string) {
		t.Helper()
		var n int
		if err := tx.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != want {
			t.Errorf("%s: %d rows, %v; want %d", what, n, err, want)
		}
	}
	for i := range 20 {
		exec(t, leader, "INSERT INTO t VALUES(1)")
		for _, level := range []colmena.ConsistencyLevel{colmena.Weak, colmena.Strong} {
			tx, err := begin(level)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback() }()
			count(tx, i+1, level.String())
			if i == 0 {
				defer count(tx, 1, "after all that was written")
			}
		}
	}
	if _, err := writer.Exec("DELETE FROM t"); err != nil {
		t.Fatal(err)
	}
	tx, err := begin(colmena.Strong)
	if err != nil {
		t.Fatal(err)
	}
	count(tx, 20, "beside a transaction that writes")
	if err := errors.Join(tx.Commit(), writer.Commit()); err != nil {
		t.Fatal(err)
	}
	exec(t, follower, "INSERT INTO t VALUES(2)")
	if tx, err = begin(colmena.None); err != nil {
		t.Fatal(err)
	}
	count(tx, 1, "this node's own write")
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	isolate(c, indexOf(c, follower))
	c.Until("the follower knows no leader", func() bool { _, ok := follower.Leader(); return !ok })
	if _, err := begin(colmena.Strong); !errors.Is(err, colmena.ErrNoLeader) {
		t.Errorf("Strong without a leader: %v", err)
	}
	if tx, err = begin(colmena.None); err != nil {
		t.Fatal(err)
	}
	count(tx, 1, "None without a leader")
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
	isolate(c, -1)
	c.WaitReady()
}

func indexOf(c *testcluster.Cluster, n *colmena.Node) int {
	for i := 0; ; i++ {
		if c.Node(i) == n {
			return i
		}
	}
}
