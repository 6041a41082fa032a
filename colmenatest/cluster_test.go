package colmenatest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
)

func mustExec(t testing.TB, db *sql.DB, query string, args ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	if _, err := db.ExecContext(ctx, query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func wantNumber(t testing.TB, db *sql.DB, level colmena.ConsistencyLevel, want int64, query string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(colmena.WithConsistency(context.Background(), level), Timeout)
	defer cancel()
	var n int64
	if err := db.QueryRowContext(ctx, query).Scan(&n); err != nil || n != want {
		t.Fatalf("%s at %v: %d, %v; want %d", query, level, n, err, want)
	}
}

// TestKillAndRestartKeepAcknowledgedRows writes through all nodes while each of them is
// killed and started again in turn, the leader always among them.
func TestKillAndRestartKeepAcknowledgedRows(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(id INTEGER NOT NULL)")
	var mu sync.Mutex
	acked, unknown := map[int64]bool{}, map[int64]bool{}
	quit := make(chan struct{})
	var wg sync.WaitGroup
	for w := range int64(c.Len()) {
		wg.Go(func() {
			for i := int64(0); ; i++ {
				select {
				case <-quit:
					return
				default:
				}
				running := c.connected()
				id, db := w<<32|i, c.DB(running[int(w)%len(running)])
				ctx, cancel := context.WithTimeout(context.Background(), Timeout)
				_, err := db.ExecContext(ctx, "INSERT INTO t VALUES(?)", id)
				cancel()
				mu.Lock()
				switch {
				case err == nil:
					acked[id] = true
				case errors.Is(err, colmena.ErrOutcomeUnknown):
					unknown[id] = true
				case !colmena.SafeToRetry(err) && !errors.Is(err, colmena.ErrClosed):
					t.Errorf("an error that says nothing of the outcome: %v", err)
				}
				mu.Unlock()
			}
		})
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(acked) }
	for range 3 {
		killed := c.Leader()
		c.Kill(killed)
		if c.Node(killed) != nil {
			t.Error("a killed node runs")
		}
		before := count()
		if err := until("no rows beside the killed node", func() bool { return count() > before+20 }); err != nil {
			t.Fatal(err)
		}
		c.Restart(killed)
	}
	close(quit)
	wg.Wait()
	c.WaitConverged()
	for i := range c.Len() {
		rows, err := c.DB(i).QueryContext(colmena.WithConsistency(t.Context(), colmena.None), "SELECT id, count(*) FROM t GROUP BY id")
		if err != nil {
			t.Fatal(err)
		}
		have := map[int64]int{}
		for rows.Next() {
			var id int64
			var n int
			if err := rows.Scan(&id, &n); err != nil {
				t.Fatal(err)
			}
			have[id] = n
			if n > 1 || !acked[id] && !unknown[id] {
				t.Errorf("node %d: row %d of writer %d is there %d times; acknowledged %v", i, id&0xffffffff, id>>32, n, acked[id])
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		for id := range acked {
			if have[id] != 1 {
				t.Errorf("node %d: row %d of writer %d was acknowledged and is there %d times", i, id&0xffffffff, id>>32, have[id])
			}
		}
	}
	t.Logf("%d rows acknowledged, %d of unknown outcome", len(acked), len(unknown))
}

// TestIsolatedLeaderRefusesWrites holds that of a leader that is cut off nothing is
// acknowledged, that another one leads, and that the two agree again after Heal.
func TestIsolatedLeaderRefusesWrites(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func(*Cluster, int){
		"both directions": (*Cluster).Isolate, "inbound": (*Cluster).IsolateInbound, "outbound": (*Cluster).IsolateOutbound,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := NewCluster(t, 3)
			old := c.Leader()
			mustExec(t, c.DB(old), "CREATE TABLE t(a)")
			c.WaitConverged()
			cut(c, old)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := c.DB(old).ExecContext(ctx, "INSERT INTO t VALUES('lost')")
			if !colmena.SafeToRetry(err) && !errors.Is(err, colmena.ErrOutcomeUnknown) {
				t.Errorf("a write to a leader that is cut off gives %v", err)
			}
			leader := c.Leader()
			if leader == old {
				t.Fatalf("node %d still counts as the leader", old)
			}
			mustExec(t, c.DB(leader), "INSERT INTO t VALUES('kept')")
			c.WaitConverged() // the two that are connected
			wantNumber(t, c.DB(c.Follower()), colmena.None, 1, "SELECT count(*) FROM t WHERE a = 'kept'")
			wantNumber(t, c.DB(old), colmena.None, 0, "SELECT count(*) FROM t WHERE a = 'kept'")
			c.Heal()
			c.WaitConverged()
			wantNumber(t, c.DB(old), colmena.None, 1, "SELECT count(*) FROM t WHERE a = 'kept'")
		})
	}
}

// TestIsolatedFollowerFallsBehind holds that nothing reaches a follower that is cut off, and
// that it keeps nobody from going on, nor deposes the leader when it is back.
func TestIsolatedFollowerFallsBehind(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 3)
	mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	c.WaitConverged()
	cut := c.Follower()
	c.Isolate(cut)
	for i := range 20 {
		mustExec(t, c.DB(c.Leader()), "INSERT INTO t VALUES(?)", i)
	}
	wantNumber(t, c.DB(cut), colmena.None, 0, "SELECT count(*) FROM t")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.DB(cut).ExecContext(ctx, "INSERT INTO t VALUES(-1)"); err == nil {
		t.Error("a follower that is cut off has acknowledged a write")
	}
	c.Heal()
	c.WaitConverged()
	wantNumber(t, c.DB(cut), colmena.None, 20, "SELECT count(*) FROM t WHERE a >= 0")
}

// whoAmI is a function that breaks its word: it is another one on every node.
func whoAmI(i int, cfg *colmena.Config) {
	cfg.Functions = []colmena.Function{{Name: "who", Version: "1", Func: func([]any) (any, error) { return int64(i), nil }}}
}

// TestCleanupNoticesReplicasThatDiffer has every node write another row, which no count of
// rows can tell.
func TestCleanupNoticesReplicasThatDiffer(t *testing.T) {
	t.Parallel()
	said := record(t, func(tb testing.TB) {
		c := NewCluster(tb, 3, whoAmI)
		mustExec(tb, c.DB(c.Follower()), "CREATE TABLE t(a); INSERT INTO t VALUES(7), (who())")
	})
	wantDifferences(t, said, 3)
}

// TestCleanupBringsEveryNodeBack leaves one node dead and another cut off: what they have
// written when they are back is compared too.
func TestCleanupBringsEveryNodeBack(t *testing.T) {
	t.Parallel()
	var c *Cluster
	said := record(t, func(tb testing.TB) {
		c = NewCluster(tb, 5, whoAmI, func(_ int, cfg *colmena.Config) { cfg.ClusterKeys = []string{"a key of the cluster's own"} })
		c.Kill(c.Follower())
		c.Isolate(c.Follower())
		mustExec(tb, c.DB(c.Leader()), "CREATE TABLE t(a); INSERT INTO t VALUES(7), (who())")
	})
	wantDifferences(t, said, 5)
	for i := range c.Len() {
		if c.Node(i) != nil {
			t.Errorf("node %d still runs", i)
		}
	}
}

// wantDifferences holds that each of n nodes is said to differ from the first, and that
// nothing else is said.
func wantDifferences(t *testing.T, said string, n int) {
	t.Helper()
	for i := 1; i < n; i++ {
		want := fmt.Sprintf("database default: nodes node-0 and node-%d differ: table t: row 2 is (2, 0) in the one and (2, %d) in the other", i, i)
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if lines := strings.Count(said, "\n") + 1; lines != n-1 || t.Failed() {
		t.Errorf("it says %q", said)
	}
}

// TestCompareTellsClustersApart compares nodes of two clusters, whose content differs only
// where it was made to.
func TestCompareTellsClustersApart(t *testing.T) {
	t.Parallel()
	a, b := NewCluster(t, 1), NewCluster(t, 1)
	nodes := []*colmena.Node{a.Node(0), b.Node(0)}
	for _, c := range []*Cluster{a, b} {
		mustExec(t, c.DB(0), "CREATE TABLE t(a)")
	}
	mustExec(t, a.OpenDB(0, "other"), "CREATE TABLE u(a)")
	if err := compare(t.Context(), nodes); err == nil || !strings.Contains(err.Error(), `has databases ["default"]`) {
		t.Errorf("a database too many: %v", err)
	}
	mustExec(t, b.OpenDB(0, "other"), "CREATE TABLE u(a)")
	mustExec(t, a.DB(0), "INSERT INTO t VALUES('x')")
	if err := compare(t.Context(), nodes); err == nil || !strings.Contains(err.Error(), "database default: ") {
		t.Errorf("a row too many: %v", err)
	}
}

// TestCommitThatLosesItsQuorumSaysNothingWrong has a transaction commit when the majority
// has just died: what its error says must be true when all are back.
func TestCommitThatLosesItsQuorumSaysNothingWrong(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 5, func(_ int, cfg *colmena.Config) { cfg.LeaderWait = -1 })
	leader, follower := c.Leader(), c.Follower()
	db := c.DB(follower)
	mustExec(t, db, "CREATE TABLE t(a)")
	c.WaitConverged()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.Exec("INSERT INTO t VALUES(1)"); err != nil {
		t.Fatal(err)
	}
	for i := range c.Len() {
		if i != leader && i != follower {
			c.Kill(i)
		}
	}
	commitErr := tx.Commit()
	for i := range c.Len() {
		if c.Node(i) == nil {
			c.Restart(i)
		}
	}
	c.WaitConverged()
	var rows int
	if err := c.DB(c.Leader()).QueryRow("SELECT count(*) FROM t").Scan(&rows); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d rows; commit: %v", rows, commitErr)
	denied := errors.Is(commitErr, colmena.ErrNotApplied) || errors.Is(commitErr, colmena.ErrTxAborted) || errors.Is(commitErr, colmena.ErrNoLeader)
	if commitErr == nil || denied && (rows > 0 || errors.Is(commitErr, colmena.ErrOutcomeUnknown)) {
		t.Errorf("%d rows; commit: %v", rows, commitErr)
	}
}

// TestRestartOfARunningNodeIsPlanned holds that its leadership goes to another node, and
// that a handle goes on with the next process of the node.
func TestRestartOfARunningNodeIsPlanned(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 3)
	leader := c.Leader()
	db := c.DB(leader)
	mustExec(t, db, "CREATE TABLE t(a)")
	c.Kill(c.Follower())
	c.Restart(leader)
	mustExec(t, db, "INSERT INTO t VALUES(1)")
	wantNumber(t, db, colmena.Strong, 1, "SELECT count(*) FROM t")
}

func TestHandleOfADeadNodeIsClosed(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 1)
	db := c.DB(0)
	mustExec(t, db, "CREATE TABLE t(a)")
	c.Kill(0)
	c.Kill(0)
	if _, err := db.Exec("INSERT INTO t VALUES(1)"); !errors.Is(err, colmena.ErrClosed) {
		t.Errorf("a write on a dead node: %v", err)
	}
	if _, err := db.Query("SELECT * FROM t"); !errors.Is(err, colmena.ErrClosed) {
		t.Errorf("a query on a dead node: %v", err)
	}
	c.Restart(0)
	mustExec(t, db, "INSERT INTO t VALUES(1)")
}

// TestOptionsMayNotTakeTheClusterApart holds that each is refused by name, and leaves
// nothing behind.
func TestOptionsMayNotTakeTheClusterApart(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Option{
		"Bind":      func(_ int, cfg *colmena.Config) { cfg.Bind = "127.0.0.1:9999" },
		"Join":      func(_ int, cfg *colmena.Config) { cfg.Join = nil },
		"JoinAs":    func(_ int, cfg *colmena.Config) { cfg.JoinAs = colmena.JoinAsNonvoter },
		"TLS":       func(_ int, cfg *colmena.Config) { cfg.TLS = clientOnlyTLS },
		"no node":   nil,
		"ReadConns": func(_ int, cfg *colmena.Config) { cfg.ReadConns = -1 },
	} {
		said := record(t, func(tb testing.TB) {
			if o == nil {
				NewCluster(tb, 0)
			}
			NewCluster(tb, 2, o)
		})
		if want := map[string]string{"no node": "a cluster of 0 nodes"}[name]; said == "" || !strings.Contains(said, want) || want == "" && !strings.Contains(said, name) {
			t.Errorf("%s: %q", name, said)
		}
		if strings.Contains(said, "left behind") {
			t.Errorf("%s: %s", name, said)
		}
	}
}

func TestFailNextIsUsedUp(t *testing.T) {
	t.Parallel()
	said := record(t, func(tb testing.TB) { NewCluster(tb, 1).FailNext(errors.New("never met")) })
	if want := "FailNext(never met) has met no call"; !strings.Contains(said, want) {
		t.Errorf("%q, and not %q", said, want)
	}
	defer func() {
		if fmt.Sprint(recover()) != "colmenatest: FailNext(nil)" {
			t.Error("FailNext(nil) is taken")
		}
	}()
	(&Cluster{}).FailNext(nil)
}
