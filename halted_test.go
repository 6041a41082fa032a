package colmena_test

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// A node that could not make a new database's file has missed its entries. It must not
// go on, and not lead, before it has read them from the log again.
func TestEntriesOfADatabaseThatCouldNotBeMadeAreNotLost(t *testing.T) {
	c := testcluster.New(t, 3)
	leader, follower := c.Leader(), c.Follower()
	kv(t, c, 1)
	c.WaitConverged()
	generations, err := filepath.Glob(filepath.Join(c.Config(follower).DataDir, "generations", "g-*"))
	if err != nil || len(generations) != 1 {
		t.Fatalf("generations %v, %v", generations, err)
	}
	var inTheWay []string
	for inc := 2; inc < 20; inc++ { // a number may be drawn in vain
		dir := filepath.Join(generations[0], fmt.Sprintf("db.%d.db", inc))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		inTheWay = append(inTheWay, dir)
	}
	db, err := c.Node(leader).OpenDB("b")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, q := range []string{"CREATE TABLE t(v)", "INSERT INTO t VALUES(1)", "INSERT INTO t VALUES(2)"} {
		if _, err := db.ExecContext(limit(t), q); err != nil {
			t.Fatal(err)
		}
	}
	c.Until("halt of the follower", func() bool { return c.Node(follower).Status().Halted != nil })
	for _, dir := range inTheWay {
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	c.Until("return of the follower", func() bool { return c.Node(follower).Status().Halted == nil })
	if err := c.Node(leader).TransferLeadership(limit(t), c.Node(follower).ID()); err != nil {
		t.Fatal(err)
	}
	c.Until("lead of the follower", func() bool { return c.Node(follower).IsLeader() })
	for i := range 3 {
		handle, err := c.Node(i).OpenDB("b", colmena.Strong)
		if err != nil {
			t.Fatal(err)
		}
		var n int
		if err := handle.QueryRowContext(limit(t), "SELECT count(*) FROM t").Scan(&n); err != nil || n != 2 {
			t.Errorf("node %d: %d rows, %v", i, n, err)
		}
		_ = handle.Close()
	}
}

// What a snapshot covers is not delivered again at a start, and a Strong read must not
// wait for it.
func TestHazard23StrongReadAfterARestartBehindASnapshot(t *testing.T) {
	cfg := colmena.Config{DataDir: t.TempDir()}
	for run := range 2 {
		n, err := colmena.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if run == 0 {
			for _, q := range []string{"CREATE TABLE kv(k)", "INSERT INTO kv VALUES(1)"} {
				if _, err := n.DB().ExecContext(limit(t), q); err != nil {
					t.Fatal(err)
				}
			}
			if err := n.Snapshot(limit(t)); err != nil {
				t.Fatal(err)
			}
		}
		var count int
		if err := n.DB().QueryRowContext(colmena.WithConsistency(limit(t), colmena.Strong), "SELECT count(*) FROM kv").Scan(&count); err != nil || count != 1 {
			t.Errorf("run %d: %d rows, %v", run, count, err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLeadershipEventsComeInPairs(t *testing.T) {
	var won, lost [3]atomic.Int32
	c := testcluster.New(t, 3, func(i int, cfg *colmena.Config) {
		cfg.OnEvent = func(e colmena.Event) {
			switch e.Kind {
			case colmena.EventLeadershipWon:
				won[i].Add(1)
			case colmena.EventLeadershipLost:
				lost[i].Add(1)
			}
		}
	})
	leader, follower := c.Leader(), c.Follower()
	if err := c.Node(leader).TransferLeadership(limit(t), c.Node(follower).ID()); err != nil {
		t.Fatal(err)
	}
	c.Until("event of the loss", func() bool { return lost[leader].Load() == won[leader].Load() && lost[leader].Load() > 0 })
	c.Until("event of the win", func() bool { return won[follower].Load() == lost[follower].Load()+1 })
}

func TestLeadershipIsNotHandedToALearner(t *testing.T) {
	c := testcluster.New(t, 3)
	leader, follower := c.Leader(), c.Follower()
	if err := c.Node(leader).DemoteVoter(limit(t), c.Node(follower).ID()); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{c.Node(follower).ID(), "nobody"} {
		if err := c.Node(leader).TransferLeadership(limit(t), id); err == nil {
			t.Errorf("leadership was handed to %q", id)
		}
		if !c.Node(leader).IsLeader() {
			t.Errorf("the leader stepped down for %q", id)
		}
	}
}

func TestNegativeBatchWindowTakesWhatWaits(t *testing.T) {
	n, err := colmena.New(colmena.Config{DataDir: t.TempDir(), BatchWindow: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.DB().ExecContext(limit(t), "CREATE TABLE kv(k)"); err != nil {
		t.Fatal(err)
	}
	before := n.AppliedIndex()
	done := make(chan error, 64)
	writes := 0
	for range 64 {
		go func() {
			for range 5 {
				if _, err := n.DB().ExecContext(limit(t), "INSERT INTO kv VALUES(1)"); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
		writes += 5
	}
	for range 64 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if entries := n.AppliedIndex() - before; entries > uint64(writes)/2 {
		t.Errorf("%d writes took %d entries", writes, entries)
	}
}

// A follower that hangs without closing its connections is not nudged again and again.
func TestHangingFollowerIsNudgedOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("writes for a second")
	}
	c := testcluster.New(t, 3)
	kv(t, c, 1)
	leader, follower := c.Leader(), c.Follower()
	for i := range 3 {
		c.Node(i).Partition(func(id string) bool { return i == follower || id == c.Node(follower).ID() })
	}
	before := openFiles(t)
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		if _, err := c.Node(leader).DB().ExecContext(limit(t), "INSERT INTO kv(v) VALUES('x')"); err != nil {
			t.Fatal(err)
		}
	}
	if after := openFiles(t); after > before+50 {
		t.Errorf("%d open files, %d before", after, before)
	}
	for i := range 3 {
		c.Node(i).Partition(nil)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("needs /proc")
	}
	return len(entries)
}

// A replica whose file was changed behind its back computes something else. It says so,
// serves nothing of its own, lets the leader answer, and does not keep a lead it wins.
func TestDivergedReplicaStopsAndHoldsUpNobody(t *testing.T) {
	c := testcluster.New(t, 3)
	c.SkipCompare = true // on purpose they differ
	kv(t, c, 10)
	c.WaitConverged()
	follower := c.Follower()
	c.Stop(follower)
	files, err := filepath.Glob(filepath.Join(c.Config(follower).DataDir, "generations", "g-*", "db.1.db"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	plain, err := sql.Open("sqlite", files[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plain.Exec("DELETE FROM kv WHERE rowid IN (SELECT rowid FROM kv LIMIT 1)"); err != nil {
		t.Fatal(err)
	}
	if err := plain.Close(); err != nil {
		t.Fatal(err)
	}
	c.Start(follower)
	c.WaitReady()
	exec(t, c.Node(c.Leader()), "UPDATE kv SET v = 'changed'")
	stopped := c.Node(follower)
	c.Until("halt of the changed replica", func() bool { return stopped.Status().Halted != nil })
	if _, err := number(limit(t), stopped, colmena.None, "SELECT count(*) FROM kv"); !errors.Is(err, colmena.ErrReplicaHalted) {
		t.Errorf("at None a replica that parted from the others answers %v", err)
	}
	wantNumber(t, stopped, colmena.Weak, 10, "SELECT count(*) FROM kv")
	wantNumber(t, stopped, colmena.Strong, 10, "SELECT count(*) FROM kv")
	if tx, err := stopped.DB().BeginTx(limit(t), &sql.TxOptions{ReadOnly: true}); !errors.Is(err, colmena.ErrReplicaHalted) {
		t.Errorf("a read-only transaction on it: %v", err)
		if err == nil {
			_ = tx.Rollback()
		}
	}
	exec(t, stopped, "INSERT INTO kv(v) VALUES('through the halted node')")
	leader := c.Leader()
	_ = c.Node(leader).TransferLeadership(limit(t), stopped.ID())
	exec(t, c.Node(leader), "INSERT INTO kv(v) VALUES('after it was asked to lead')")
	if stopped.IsLeader() {
		t.Error("a replica that parted from the others leads")
	}
}

// Close does not wait for ever for code of the application.
func TestCloseDoesNotWaitForAHookForEver(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the grace of Close")
	}
	hook, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	n, err := colmena.New(colmena.Config{DataDir: t.TempDir(), OnApply: func(colmena.ApplyEvent) { close(hook); <-release }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.DB().ExecContext(limit(t), "CREATE TABLE t(a)"); err != nil {
		t.Fatal(err)
	}
	<-hook
	began := time.Now()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("Close took %v", took)
	}
}
