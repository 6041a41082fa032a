package colmena_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// summary is what events tell, in short: "a:INSERT", and "a:gap".
func summary(events []colmena.ApplyEvent) string {
	var out []string
	for _, e := range events {
		switch {
		case e.Gap != nil:
			out = append(out, e.DB+":gap")
		default:
			out = append(out, e.DB+":"+strings.Fields(e.Statements[0])[0])
		}
	}
	return strings.Join(out, " ")
}

// Databases apply in parallel; what is told is in the order of the log all the same.
func TestOnApplyIsInTheOrderOfTheLogAcrossDatabases(t *testing.T) {
	var follower told
	c := testcluster.New(t, 3, func(i int, cfg *colmena.Config) {
		if i == 2 {
			cfg.OnApply = follower.add
		}
	})
	if c.Node(2).IsLeader() {
		if err := c.Node(2).TransferLeadership(limit(t), ""); err != nil {
			t.Fatal(err)
		}
	}
	leader := c.Node(c.Leader())
	a, b := openDB(t, leader, "a"), openDB(t, leader, "b")
	mustExec(t, a, "CREATE TABLE t(v)")
	mustExec(t, b, "CREATE TABLE t(v)")
	c.Until("first events", func() bool { return len(follower.all()) == 2 })
	release := c.Node(2).HoldDatabase("a")
	mustExec(t, a, "INSERT INTO t VALUES(1)")
	mustExec(t, b, "UPDATE t SET v = 1")
	mustExec(t, b, "DELETE FROM t")
	ahead := openDB(t, c.Node(2), "b")
	c.Until("b to be applied while a hangs", func() bool {
		index, behind := leader.AppliedIndex(), c.Node(2).AppliedIndex()
		return behind == index
	})
	if got := summary(follower.all()); got != "a:CREATE b:CREATE" {
		t.Errorf("told while a hangs: %s", got)
	}
	mustExec(t, ahead, "INSERT INTO t VALUES(2)")
	release()
	c.Until("all events", func() bool { return len(follower.all()) >= 6 })
	events := follower.all()
	inOrder(t, 2, events)
	if got := summary(events); got != "a:CREATE b:CREATE a:INSERT b:UPDATE b:DELETE b:INSERT" {
		t.Errorf("told is %s", got)
	}
}

// A replica that has stopped for good leaves a gap, and the others' events go on.
func TestStoppedReplicaDoesNotHoldUpTheEventsOfOthers(t *testing.T) {
	var nodes [3]told
	c := testcluster.New(t, 3, func(i int, cfg *colmena.Config) { cfg.OnApply = nodes[i].add })
	c.SkipCompare = true // on purpose they differ
	leader := c.Node(c.Leader())
	a, b := openDB(t, leader, "a"), openDB(t, leader, "b")
	mustExec(t, a, "CREATE TABLE t(v); INSERT INTO t VALUES(1), (2)")
	mustExec(t, b, "CREATE TABLE t(v)")
	c.WaitConverged()
	i := c.Follower()
	c.Stop(i)
	files, err := filepath.Glob(filepath.Join(c.Config(i).DataDir, "generations", "g-*", "db.1.db"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	changed := plain(t, files[0])
	mustExec(t, changed, "DELETE FROM t WHERE v = 1")
	if err := changed.Close(); err != nil {
		t.Fatal(err)
	}
	seen := &nodes[i]
	seen.events = nil // the node is down
	c.Start(i)
	c.WaitReady()
	mustExec(t, a, "UPDATE t SET v = 3")
	c.Until("halt", func() bool { return c.Node(i).Status().Halted != nil })
	for range 3 {
		mustExec(t, a, "UPDATE t SET v = v + 1")
		mustExec(t, b, "INSERT INTO t VALUES(1)")
	}
	c.Until("events of the other database", func() bool { return strings.Count(summary(seen.all()), "b:INSERT") == 3 })
	inOrder(t, i, seen.all())
	if got := summary(seen.all()); got != "a:gap b:INSERT b:INSERT b:INSERT" {
		t.Errorf("told is %s", got)
	}
}

// Entries of a database whose file could not be made are applied later. That is a gap,
// told when they are.
func TestEntriesThatWereMissedAreAGapOnceTheyAreApplied(t *testing.T) {
	var nodes [3]told
	c := testcluster.New(t, 3, func(i int, cfg *colmena.Config) { cfg.OnApply = nodes[i].add })
	leader, follower := c.Node(c.Leader()), c.Follower()
	a := openDB(t, leader, "a")
	mustExec(t, a, "CREATE TABLE t(v)")
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
	b := openDB(t, leader, "b")
	mustExec(t, b, "CREATE TABLE t(v)")
	mustExec(t, b, "INSERT INTO t VALUES(1)")
	mustExec(t, a, "INSERT INTO t VALUES(1)")
	seen := &nodes[follower]
	c.Until("the other database's event", func() bool { return summary(seen.all()) == "a:CREATE a:INSERT" })
	for _, dir := range inTheWay {
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	c.Until("return of the follower", func() bool { return c.Node(follower).Status().Halted == nil })
	mustExec(t, b, "DELETE FROM t")
	c.Until("a gap and what came after", func() bool { return summary(seen.all()) == "a:CREATE a:INSERT :gap b:DELETE" })
	inOrder(t, follower, seen.all())
	if got := summary(nodes[c.Leader()].all()); got != "a:CREATE b:CREATE b:INSERT a:INSERT b:DELETE" {
		t.Errorf("the leader's events are %s", got)
	}
}

// OnApply may use what Setup has made.
func TestOnApplyComesAfterSetup(t *testing.T) {
	var node *colmena.Node // without a lock
	events := make(chan string, 10)
	n, err := colmena.New(colmena.Config{
		DataDir: t.TempDir(),
		Setup: func(n *colmena.Node) error {
			if _, err := n.DB().Exec("CREATE TABLE t(v)"); err != nil {
				return err
			}
			time.Sleep(50 * time.Millisecond) // a moment for it to be told
			node = n
			return nil
		},
		OnApply: func(e colmena.ApplyEvent) { events <- node.ID() + ":" + e.Statements[0] },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	select {
	case got := <-events:
		if want := n.ID() + ":CREATE TABLE t(v)"; got != want {
			t.Errorf("%q was told, not %q", got, want)
		}
	case <-limit(t).Done():
		t.Fatal("nothing was told")
	}
}
