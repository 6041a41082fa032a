package colmena_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// leaderAndFollower are two running nodes of a cluster.
func leaderAndFollower(t *testing.T, c *testcluster.Cluster) (leader, follower *colmena.Node) {
	t.Helper()
	l := c.Node(c.Leader())
	for _, n := range c.Running() {
		if n != l {
			return l, n
		}
	}
	t.Fatal("there is no follower")
	return nil, nil
}

func TestTransactionsFromEveryNode(t *testing.T) {
	c := testcluster.New(t, 3)
	leader, follower := leaderAndFollower(t, c)
	exec(t, leader, "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT UNIQUE, at DEFAULT(datetime('now')))")
	for i, n := range []*colmena.Node{leader, follower} {
		tx, err := n.DB().BeginTx(limit(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprint("row", i)
		res, err := tx.Exec("INSERT INTO t(a) VALUES(?)", name)
		if err != nil {
			t.Fatal(err)
		}
		id, _ := res.LastInsertId()
		if rows, _ := res.RowsAffected(); rows != 1 || id != int64(i+1) {
			t.Errorf("node %d: ID %d, %d rows", i, id, rows)
		}
		var got string
		if err := tx.QueryRow("SELECT a FROM t WHERE id = last_insert_rowid()").Scan(&got); err != nil || got != name {
			t.Errorf("node %d reads %q, %v", i, got, err)
		}
		if err := tx.QueryRow("INSERT INTO t(a) VALUES(?) RETURNING id", name).Scan(new(int)); !colmena.IsUnique(err) {
			t.Errorf("node %d: a violation at its statement: %v", i, err)
		}
		if n, err := number(limit(t), n, colmena.Strong, "SELECT count(*) FROM t WHERE a = ?", name); err != nil || n != 0 {
			t.Errorf("node %d: others see %d rows, %v", i, n, err)
		}
		for _, q := range []string{"SAVEPOINT sp", "DELETE FROM t", "ROLLBACK TO sp", "RELEASE sp", "CREATE TABLE IF NOT EXISTS u(a)"} {
			if _, err := tx.Exec(q); err != nil {
				t.Errorf("node %d: %s: %v", i, q, err)
			}
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		wantNumber(t, n, colmena.None, int64(i+1), "SELECT count(*) FROM t")
		if tx, err = n.DB().BeginTx(limit(t), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec("DELETE FROM t"); err != nil {
			t.Fatal(err)
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		wantNumber(t, n, colmena.Strong, int64(i+1), "SELECT count(*) FROM t")
	}
}

// What a transaction writes has one time, that of its first statement, on every node. Its
// queries see the clock.
func TestTimeInATransaction(t *testing.T) {
	c := testcluster.New(t, 3)
	leader, follower := leaderAndFollower(t, c)
	exec(t, leader, "CREATE TABLE t(at DEFAULT(julianday('now')))")
	for name, n := range map[string]*colmena.Node{"leader": leader, "follower": follower} {
		tx, err := n.DB().BeginTx(limit(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		clock := func() (now float64) {
			t.Helper()
			if err := tx.QueryRow("SELECT julianday('now')").Scan(&now); err != nil {
				t.Fatal(err)
			}
			return now
		}
		began := time.Now().UnixMilli()
		c.Until("the clock has moved", func() bool { return time.Now().UnixMilli() > began+1 })
		first := clock()
		c.Until("a query sees that", func() bool { return clock() > first })
		for range 2 {
			if _, err := tx.Exec("INSERT INTO t DEFAULT VALUES"); err != nil {
				t.Fatal(err)
			}
		}
		var least, most float64
		if err := tx.QueryRow("SELECT min(at), max(at) FROM t").Scan(&least, &most); err != nil || least != most || least > first || least < 2440587.5+float64(began)/86400_000 {
			t.Errorf("%s: rows of %f to %f, %v; the first statement saw %f", name, least, most, err, first)
		}
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
}

func TestBeginAndCommitAsText(t *testing.T) {
	c := testcluster.New(t, 3)
	_, follower := leaderAndFollower(t, c)
	exec(t, follower, "CREATE TABLE t(a UNIQUE)")
	conn, err := follower.DB().Conn(limit(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	run := func(query string, wantErr bool) {
		t.Helper()
		if _, err := conn.ExecContext(limit(t), query); (err != nil) != wantErr {
			t.Errorf("%s: %v", query, err)
		}
	}
	count := func(want int) {
		t.Helper()
		var n int
		if err := conn.QueryRowContext(limit(t), "SELECT count(*) FROM t").Scan(&n); err != nil || n != want {
			t.Errorf("%d rows, %v, want %d", n, err, want)
		}
	}
	run("COMMIT", true)
	run("ROLLBACK", true)
	run("RELEASE a", true)
	run("BEGIN", false)
	run("BEGIN", true)
	run("INSERT INTO t VALUES(1)", false)
	run("INSERT INTO t VALUES(1)", true)
	count(1)
	run("ROLLBACK", false)
	count(0)
	run("BEGIN IMMEDIATE; INSERT INTO t VALUES(1); SAVEPOINT a; INSERT INTO t VALUES(2); ROLLBACK TO a; COMMIT;", false)
	count(1)
	run("SAVEPOINT outer", false)
	run("INSERT INTO t VALUES(3)", false)
	run("SAVEPOINT inner; INSERT INTO t VALUES(4); RELEASE inner", false)
	run("ROLLBACK TO inner", true)
	run("RELEASE outer", false)
	run("COMMIT", true)
	count(3)
	run("BEGIN; INSERT INTO t VALUES(5); INSERT INTO t VALUES(5); COMMIT", true)
	count(4) // SQLite leaves the transaction open
	run("ROLLBACK", false)
	count(3)
	run("BEGIN; INSERT INTO t VALUES(6)", false)
	if err := conn.Close(); err != nil { // given back in the middle of a transaction
		t.Fatal(err)
	}
	wantNumber(t, follower, colmena.Strong, 3, "SELECT count(*) FROM t")
	exec(t, follower, "INSERT INTO t VALUES(6)")
}

// What was committed before another part of a statement string failed must not be done again.
func TestStatementStringThatIsCommittedInPart(t *testing.T) {
	c := testcluster.New(t, 1)
	n := c.Node(0)
	exec(t, n, "CREATE TABLE t(a); CREATE TABLE u(a UNIQUE); INSERT INTO u VALUES(1)")
	for _, s := range []struct {
		query string
		rows  int64
	}{
		{"BEGIN; INSERT INTO t VALUES(1); COMMIT; INSERT INTO u VALUES(1)", 1},
		{"INSERT INTO t VALUES(1); BEGIN; INSERT INTO u VALUES(1); COMMIT", 1},
		{"SAVEPOINT s; INSERT INTO t VALUES(1); RELEASE s; INSERT INTO u VALUES(1)", 1},
		{"BEGIN; INSERT INTO t VALUES(1); INSERT INTO u VALUES(1); COMMIT", 0},
		{"INSERT INTO t VALUES(1); INSERT INTO u VALUES(1)", 0},
	} {
		exec(t, n, "DELETE FROM t")
		_, err := n.DB().ExecContext(limit(t), s.query)
		if !colmena.IsUnique(err) || colmena.SafeToRetry(err) != (s.rows == 0) {
			t.Errorf("%s: safe to retry is %v: %v", s.query, colmena.SafeToRetry(err), err)
		}
		wantNumber(t, n, colmena.Strong, s.rows, "SELECT count(*) FROM t")
	}
}

// A query in a transaction is held in memory up to a bound. One that exceeds it is told so, and the transaction goes on.
func TestQueryInATransactionIsBounded(t *testing.T) {
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) { cfg.MaxResultBytes = 1000 })
	leader, follower := leaderAndFollower(t, c)
	exec(t, leader, "CREATE TABLE t(a)")
	for i, n := range []*colmena.Node{leader, follower} {
		tx, err := n.DB().BeginTx(limit(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec("INSERT INTO t VALUES(zeroblob(5000))"); err != nil {
			t.Fatal(err)
		}
		var big *colmena.LimitError
		if err := tx.QueryRow("SELECT a FROM t").Scan(new([]byte)); !errors.As(err, &big) {
			t.Errorf("node %d: more than the bound: %v", i, err)
		}
		if err := tx.Commit(); err != nil {
			t.Errorf("node %d: the commit: %v", i, err)
		}
		var got []byte // outside a transaction rows stream
		ctx := colmena.WithConsistency(limit(t), colmena.Strong)
		if err := n.DB().QueryRowContext(ctx, "SELECT a FROM t").Scan(&got); err != nil || len(got) != 5000 {
			t.Errorf("node %d: outside: %d bytes, %v", i, len(got), err)
		}
	}
}

func TestBufferedTransactions(t *testing.T) {
	c := testcluster.New(t, 3)
	_, follower := leaderAndFollower(t, c)
	exec(t, follower, "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE)")
	db, err := follower.OpenDB("", colmena.Buffered())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.BeginTx(limit(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	first, err := tx.Exec("INSERT INTO t(a) VALUES(?)", "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.RowsAffected(); err == nil {
		t.Error("counts before the commit")
	}
	if _, err := tx.Exec("UPDATE t SET a = 'y'"); err != nil {
		t.Fatal(err)
	}
	var refused *colmena.RefusedError
	if err := tx.QueryRow("SELECT 1").Scan(new(int)); !errors.As(err, &refused) {
		t.Errorf("a query: %v", err)
	}
	exec(t, follower, "INSERT INTO t(a) VALUES('z')") // nobody waits for it
	if err := tx.Commit(); !colmena.IsUnique(err) {
		t.Errorf("UPDATE of all rows to one value: %v", err)
	}
	exec(t, follower, "DELETE FROM t")
	ctx := colmena.WithTxMode(limit(t), colmena.TxBuffered)
	if tx, err = follower.DB().BeginTx(ctx, nil); err != nil {
		t.Fatal(err)
	}
	first, _ = tx.Exec("INSERT INTO t(a) VALUES(?), (?)", "x", "y")
	second, _ := tx.Exec("DELETE FROM t WHERE a = 'x'")
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if id, err := first.LastInsertId(); id != 2 || err != nil {
		t.Errorf("ID %d, %v", id, err)
	}
	if n, err := second.RowsAffected(); n != 1 || err != nil {
		t.Errorf("%d rows, %v", n, err)
	}
}

func TestTransactionThatWaitsForItselfIsToldWho(t *testing.T) {
	c := testcluster.New(t, 3, func(_ int, cfg *colmena.Config) { cfg.TxWaitTimeout = 100 * time.Millisecond })
	for _, n := range c.Running() {
		exec(t, n, "CREATE TABLE IF NOT EXISTS t(a)")
		tx, err := n.DB().BeginTx(limit(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec("INSERT INTO t VALUES(1)"); err != nil {
			t.Fatal(err)
		}
		var aborted *colmena.TxAbortedError
		if _, err := n.DB().ExecContext(limit(t), "INSERT INTO t VALUES(2)"); !errors.As(err, &aborted) || aborted.Reason != colmena.TxAbortWait || aborted.Holder == "" || !colmena.SafeToRetry(err) {
			t.Errorf("a write beside its own transaction: %v", err)
		}
		if _, err := n.DB().BeginTx(limit(t), nil); !errors.As(err, &aborted) || aborted.Holder == "" {
			t.Errorf("a transaction beside its own: %v", err)
		}
		if err := tx.Commit(); err != nil {
			t.Error(err)
		}
	}
}

func TestClientThatDisappearsLeavesNothing(t *testing.T) {
	c := testcluster.New(t, 3)
	leader, follower := leaderAndFollower(t, c)
	exec(t, leader, "CREATE TABLE t(a)")
	tx, err := follower.DB().BeginTx(limit(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("INSERT INTO t VALUES(1)"); err != nil {
		t.Fatal(err)
	}
	if err := follower.Close(); err != nil {
		t.Fatal(err)
	}
	prompt(t, "a write after a client's death", 5*time.Second, func() { exec(t, leader, "INSERT INTO t VALUES(2)") })
	if err := tx.Commit(); !errors.Is(err, colmena.ErrClosed) {
		t.Errorf("commit after Close: %v", err)
	}
	wantNumber(t, leader, colmena.Strong, 2, "SELECT max(a) + count(*) - 1 FROM t")
	ctx, cancel := context.WithCancel(limit(t))
	if tx, err = leader.DB().BeginTx(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("INSERT INTO t VALUES(3)"); err != nil {
		t.Fatal(err)
	}
	cancel()
	prompt(t, "a write after a transaction was canceled", 5*time.Second, func() { exec(t, leader, "INSERT INTO t VALUES(4)") })
	wantNumber(t, leader, colmena.Strong, 0, "SELECT count(*) FROM t WHERE a = 3")
	for i := range 3 {
		if c.Node(i) == follower {
			c.Stop(i)
			c.Start(i)
		}
	}
	c.WaitReady()
}

// A commit whose leader goes away is known in the end: applied once, or never.
func TestHazard15CommitsWhileLeadershipMoves(t *testing.T) {
	c := testcluster.New(t, 3)
	exec(t, c.Node(c.Leader()), "CREATE TABLE t(id INTEGER PRIMARY KEY, w, n); CREATE TABLE c(w PRIMARY KEY, n)")
	const workers = 6
	for w := range workers {
		exec(t, c.Node(c.Leader()), "INSERT INTO c VALUES(?, 0)", w)
	}
	quit := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	committed, aborted, unknown := 0, 0, 0
	for w := range workers {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-quit:
					return
				default:
				}
				nodes := c.Running()
				n := nodes[(w+i)%len(nodes)]
				err := colmena.InTx(limit(t), n.DB(), nil, func(tx *sql.Tx) error {
					var k int
					if err := tx.QueryRow("SELECT n FROM c WHERE w = ?", w).Scan(&k); err != nil {
						return err
					}
					if _, err := tx.Exec("INSERT INTO t(w, n) VALUES(?, ?)", w, k); err != nil {
						return err
					}
					_, err := tx.Exec("UPDATE c SET n = ? WHERE w = ?", k+1, w)
					return err
				})
				mu.Lock()
				switch {
				case err == nil:
					committed++
				case errors.Is(err, colmena.ErrOutcomeUnknown):
					unknown++
				case colmena.SafeToRetry(err):
					aborted++
				default:
					t.Errorf("an error that says nothing of the outcome: %v", err)
				}
				mu.Unlock()
			}
		})
	}
	rnd := random(t)
	for range max(2, size(8)) {
		time.Sleep(time.Duration(100+rnd.IntN(200)) * time.Millisecond)
		if err := c.Node(c.Leader()).TransferLeadership(limit(t), ""); err != nil {
			t.Logf("transfer: %v", err)
		}
	}
	close(quit)
	wg.Wait()
	n := c.Node(c.Leader())
	var rows int64
	if err := n.DB().QueryRowContext(colmena.WithConsistency(limit(t), colmena.Strong), "SELECT count(*) FROM t").Scan(&rows); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d committed, %d aborted, %d unknown, %d rows", committed, aborted, unknown, rows)
	if rows < int64(committed) || rows > int64(committed+unknown) {
		t.Errorf("%d rows of %d commits and %d of unknown outcome", rows, committed, unknown)
	}
	wantNumber(t, n, colmena.Strong, 0, "SELECT (SELECT count(*) FROM t) - (SELECT sum(n) FROM c)")
	wantNumber(t, n, colmena.Strong, 0, "SELECT count(*) FROM (SELECT w, n FROM t GROUP BY w, n HAVING count(*) > 1)")
}
