package colmena_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// kv makes a table with some rows through the first node.
func kv(t *testing.T, c *testcluster.Cluster, rows int) {
	t.Helper()
	exec(t, c.Node(0), "CREATE TABLE kv(k INTEGER PRIMARY KEY, v TEXT)")
	add(t, c.Node(0), rows)
}

// add inserts rows, each with an entry of its own.
func add(t *testing.T, n *colmena.Node, rows int) {
	t.Helper()
	for range rows {
		exec(t, n, "INSERT INTO kv(v) VALUES('v' || (SELECT count(*) FROM kv))")
	}
}

func wantRows(t *testing.T, c *testcluster.Cluster, rows int64) {
	t.Helper()
	for _, n := range c.Running() {
		wantNumber(t, n, colmena.Strong, rows, "SELECT count(*) FROM kv")
	}
}

func TestFollowerRestarts(t *testing.T) {
	c := testcluster.New(t, 3)
	kv(t, c, 10)
	i := c.Follower()
	c.Stop(i)
	add(t, c.Node(c.Leader()), 10)
	c.Start(i)
	add(t, c.Node(i), 1)
	c.WaitReady()
	wantRows(t, c, 21)
}

func TestPlannedCloseOfTheLeaderIsNoOutage(t *testing.T) {
	c := testcluster.New(t, 3)
	kv(t, c, 1)
	for run := range 3 {
		i := c.Leader()
		other := c.Node(c.Follower())
		closed := make(chan time.Duration, 1)
		began := time.Now()
		go func() { c.Stop(i); closed <- time.Since(began) }()
		var longest time.Duration
		writes := 0
		var took time.Duration
		for took == 0 {
			start := time.Now()
			add(t, other, 1)
			writes++
			longest = max(longest, time.Since(start))
			select {
			case took = <-closed:
			default:
			}
		}
		t.Logf("run %d: Close took %v, %d writes meanwhile, the slowest %v", run, took, writes, longest)
		if longest > 2*time.Second {
			t.Errorf("a planned Close kept a write waiting for %v", longest)
		}
		c.Start(i)
		c.WaitReady()
	}
}

func TestAllNodesRestartInAnyOrder(t *testing.T) {
	c := testcluster.New(t, 3)
	kv(t, c, 5)
	rows := int64(5)
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
		c.WaitConverged()
		for i := range 3 {
			c.Stop((order[0] + i) % 3)
		}
		for _, i := range order {
			c.Start(i)
		}
		began := time.Now()
		add(t, c.Node(order[2]), 1)
		rows++
		t.Logf("order %v: first write after %v", order, time.Since(began))
		wantRows(t, c, rows)
		c.WaitVoters(3)
	}
}

func TestAllNodesStopAtOnceUnderLoad(t *testing.T) {
	c := testcluster.New(t, 3)
	l := startLoad(t, c, 6)
	for range max(1, size(20)/10) {
		l.await(size(100))
		done := make(chan struct{})
		for i := range 3 {
			go func() { c.Stop(i); done <- struct{}{} }()
		}
		for range 3 {
			<-done
		}
		for i := range 3 {
			c.Start(i)
		}
	}
	l.await(size(100))
	l.stop()
}

func TestHazard25EveryAddressChanges(t *testing.T) {
	for _, all := range []bool{false, true} {
		t.Run(fmt.Sprintf("JoinListsAll=%t", all), func(t *testing.T) {
			c := testcluster.New(t, 3)
			kv(t, c, 5)
			for run := range 2 {
				c.WaitConverged()
				for i := range 3 {
					c.Stop(i)
				}
				addrs := []string{testcluster.FreeAddr(t), testcluster.FreeAddr(t), testcluster.FreeAddr(t)}
				for _, i := range []int{1, 2, 0} {
					cfg := c.Config(i)
					cfg.Bind = addrs[i]
					switch {
					case all:
						cfg.Bootstrap, cfg.Join = false, addrs
					case i > 0:
						cfg.Join = addrs[:1]
					}
					c.StartWith(i, cfg)
				}
				began := time.Now()
				add(t, c.Node(run+1), 1)
				t.Logf("first write after %v", time.Since(began))
				wantRows(t, c, int64(6+run))
				c.Until("the new addresses on record", func() bool {
					for i := range 3 {
						members, err := c.Node(i).Members(limit(t))
						if err != nil || len(members) != 3 {
							return false
						}
						for j, m := range members {
							if m.Addr != addrs[j] || !m.Voter {
								return false
							}
						}
					}
					return true
				})
			}
		})
	}
}

// shortLog keeps little of the log, so that one who was away needs a copy.
func shortLog(_ int, cfg *colmena.Config) {
	cfg.SnapshotThreshold = 8
	colmena.SetTrailingLogs(cfg, 4)
}

// cutLogs snapshots every running node.
func cutLogs(t *testing.T, c *testcluster.Cluster) {
	t.Helper()
	c.WaitConverged()
	for _, n := range c.Running() {
		if err := n.Snapshot(limit(t)); err != nil {
			t.Fatalf("snapshot on %s: %v", n.ID(), err)
		}
	}
}

func TestFollowerComesBackByACopy(t *testing.T) {
	c := testcluster.New(t, 3, shortLog)
	kv(t, c, 5)
	other, err := c.Node(0).OpenDB("other")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Exec("CREATE TABLE o(a)"); err != nil {
		t.Fatal(err)
	}
	rows := int64(5)
	for range 2 {
		i := c.Follower()
		c.Stop(i)
		add(t, c.Node(c.Leader()), 40)
		rows += 40
		cutLogs(t, c)
		add(t, c.Node(c.Leader()), 5)
		rows += 5
		n := c.Start(i)
		c.WaitReady()
		wantNumber(t, n, colmena.None, rows, "SELECT count(*) FROM kv")
		add(t, n, 1)
		rows++
		wantRows(t, c, rows)
		c.Compare()
		// It must also come up again by itself, from what was installed.
		c.Stop(i)
		c.Start(i)
		c.WaitReady()
		wantRows(t, c, rows)
	}
}

func TestHazard19CopyUnderLoad(t *testing.T) {
	c := testcluster.New(t, 3, shortLog)
	l := startLoad(t, c, 4)
	for range max(1, size(20)/10) {
		i := c.Follower()
		c.Stop(i)
		l.await(size(200))
		for _, n := range c.Running() {
			if err := n.Snapshot(limit(t)); err != nil {
				t.Fatal(err)
			}
		}
		l.await(size(100))
		c.Start(i)
		c.WaitReady()
		l.await(size(100))
	}
	l.stop()
}

func TestWipedFollowerEntersAgain(t *testing.T) {
	for _, copied := range []bool{false, true} {
		t.Run(fmt.Sprintf("copy=%t", copied), func(t *testing.T) {
			var opts []testcluster.Option
			if copied {
				opts = append(opts, shortLog)
			}
			c := testcluster.New(t, 3, opts...)
			kv(t, c, 20)
			if copied {
				// More entries than a learner may lack to be promoted.
				for range 1100 {
					exec(t, c.Node(c.Leader()), "UPDATE kv SET v = v || 'x' WHERE k = 1 AND length(v) < 50")
				}
				cutLogs(t, c)
			}
			i := c.Follower()
			c.Stop(i)
			if err := os.RemoveAll(c.Config(i).DataDir); err != nil {
				t.Fatal(err)
			}
			cfg := c.Config(i)
			cfg.Bootstrap, cfg.Join = false, []string{c.Node(c.Leader()).Addr()}
			n := c.StartWith(i, cfg)
			c.WaitVoters(3)
			c.WaitReady()
			wantRows(t, c, 20)
			add(t, n, 1)
			wantRows(t, c, 21)
			// Its vote counts: the cluster works without one of the others.
			c.WaitConverged()
			for j := range 3 {
				if j != i {
					c.Stop(j)
					add(t, n, 1)
					c.Start(j)
					break
				}
			}
			c.WaitReady()
			wantRows(t, c, 22)
		})
	}
}
