package colmenatest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
)

// Cluster is a number of nodes, counted from 0, that can be killed and cut off. Node 0
// formed the cluster; every node votes.
type Cluster struct {
	tb      testing.TB
	net     *network
	label   label
	faults  faults
	configs []colmena.Config

	mu    sync.Mutex
	nodes []*colmena.Node // nil while dead; guarded by mu
	pools []*sql.DB       // what DB and OpenDB gave away; guarded by mu
	byDB  []*sql.DB       // what DB gave away, by node; guarded by mu
}

// electionTimeout is short, so that tests need not wait long for the next leader, and
// long enough for a machine that is busy with other tests.
const electionTimeout = 250 * time.Millisecond

// NewCluster starts n nodes on loopback, in the test's temporary directory, and returns
// when all of them vote and are ready. What they log goes to the test's log. They hold an
// election after 250 to 500 ms without a leader, unless an option says otherwise.
//
// Options may change everything about a node's Config but NodeID, DataDir, Bind,
// Advertise, Join, Bootstrap and JoinAs, which make the cluster, and TLS: the proxies
// between the nodes have to see who dials. ClusterKeys are possible.
func NewCluster(tb testing.TB, n int, opts ...Option) *Cluster {
	tb.Helper()
	if n < 1 {
		tb.Fatalf("colmenatest: a cluster of %d nodes", n)
	}
	dir := tb.TempDir()
	c := &Cluster{tb: tb, label: newLabel(), nodes: make([]*colmena.Node, n), byDB: make([]*sql.DB, n)}
	var err error
	if c.label.do(func() { c.net, err = newNetwork(n) }); err != nil {
		tb.Fatalf("open a port: %v", err)
	}
	for i := range n {
		cfg, err := c.config(i, dir, opts)
		if err != nil {
			c.net.close()
			tb.Fatal(err)
		}
		c.configs = append(c.configs, cfg)
	}
	tb.Cleanup(c.end)
	for i := range n {
		c.start(i)
	}
	if err := c.waitVoters(); err != nil {
		tb.Fatal(err)
	}
	c.WaitConverged()
	return c
}

// config is what node i is started with, the same at every start.
func (c *Cluster) config(i int, dir string, opts []Option) (colmena.Config, error) {
	id := fmt.Sprintf("node-%d", i)
	cfg := colmena.Config{
		NodeID: id, DataDir: filepath.Join(dir, id), Bind: "127.0.0.1:0", Advertise: c.net.addr(i), Bootstrap: i == 0,
		HeartbeatTimeout: electionTimeout, ElectionTimeout: electionTimeout, Logger: newLogger(c.tb, id),
	}
	for j := range c.nodes {
		if i != 0 && j != i {
			cfg.Join = append(cfg.Join, c.net.addr(j))
		}
	}
	owned := func(cfg *colmena.Config) string {
		return fmt.Sprint(cfg.NodeID, cfg.DataDir, cfg.Bind, cfg.Advertise, cfg.Bootstrap, cfg.Join, cfg.JoinAs)
	}
	want := owned(&cfg)
	for _, o := range opts {
		o(i, &cfg)
	}
	switch {
	case owned(&cfg) != want:
		return cfg, errors.New("colmenatest: an option changed NodeID, DataDir, Bind, Advertise, Bootstrap, Join or JoinAs, which belong to the cluster")
	case cfg.TLS != nil || cfg.TLSConfig != nil:
		return cfg, errors.New("colmenatest: an option set TLS, under which the proxies between the nodes cannot tell who dials; use ClusterKeys, or nodes of your own")
	}
	return cfg, nil
}

// start starts a node that does not run.
func (c *Cluster) start(i int) {
	c.tb.Helper()
	// It may call others before it can be called.
	c.net.change(func(doors []*door) { doors[i].down = false })
	var node *colmena.Node
	var err error
	c.label.do(func() { node, err = colmena.New(c.configs[i]) })
	if err != nil {
		c.tb.Fatalf("start node %d: %v", i, err)
	}
	c.mu.Lock()
	c.nodes[i] = node
	c.mu.Unlock()
	c.net.change(func(doors []*door) { doors[i].target = node.Addr() })
}

// Len is how many nodes there are, dead ones included.
func (c *Cluster) Len() int { return len(c.configs) }

// Node returns node i, nil while it is dead.
func (c *Cluster) Node(i int) *colmena.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[i]
}

// DB returns a handle on node i's default database, the same at every call. It outlives
// the node: while node i is dead every use is colmena.ErrClosed, and after Restart it
// works again. FailNext has its calls fail. The cluster closes it.
func (c *Cluster) DB(i int) *sql.DB {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byDB[i] == nil {
		c.byDB[i] = c.openLocked(i, "", nil)
	}
	return c.byDB[i]
}

// OpenDB is DB for any database and with options: Node.OpenDB for a handle that outlives
// the node. A name or an option that is not valid shows when the handle is used.
func (c *Cluster) OpenDB(i int, name string, opts ...colmena.DBOption) *sql.DB {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.openLocked(i, name, opts)
}

// maxIdleConns is what the node's own handles have.
const maxIdleConns = 64

func (c *Cluster) openLocked(i int, name string, opts []colmena.DBOption) *sql.DB {
	var db *sql.DB
	c.label.do(func() {
		db = sql.OpenDB(&connector{node: func() *colmena.Node { return c.Node(i) }, faults: &c.faults, name: name, opts: opts})
	})
	db.SetMaxIdleConns(maxIdleConns)
	c.pools = append(c.pools, db)
	return db
}

// Leader returns the number of the node that leads those which are connected, waiting for
// one that takes writes. A node that is cut off is passed over, whatever it believes.
func (c *Cluster) Leader() int {
	c.tb.Helper()
	leader, err := c.leader()
	if err != nil {
		c.tb.Fatal(err)
	}
	return leader
}

func (c *Cluster) leader() (leader int, err error) {
	leader = -1
	err = until("no node that is connected leads", func() bool {
		var term uint64
		for _, i := range c.connected() {
			n := c.Node(i)
			if n == nil || !n.IsLeader() {
				continue
			}
			// A leader that was cut off until now may not know yet that it has been deposed.
			if t := n.Status().Term; t > term {
				leader, term = i, t
			}
		}
		return leader >= 0
	})
	return leader, err
}

// Follower returns the number of a node that runs, is connected and does not lead.
func (c *Cluster) Follower() int {
	c.tb.Helper()
	leader := c.Leader()
	for _, i := range c.connected() {
		if i != leader {
			return i
		}
	}
	c.tb.Fatal("colmenatest: no follower runs and is connected")
	return -1
}

// connected lists the nodes that run and are not cut off.
func (c *Cluster) connected() (list []int) {
	for i := range c.configs {
		if c.Node(i) != nil && !c.net.cutOff(i) {
			list = append(list, i)
		}
	}
	return list
}

// Kill ends node i as SIGKILL would end its process, as far as the others can tell: first
// all its connections break and none is taken any more, so that it can neither say goodbye
// nor hand leadership on, and what it was about to send is lost; then it is closed. Its
// handles and transactions end with an error that is colmena.ErrClosed.
//
// What Kill does not show is what a killed process leaves on disk: the node's files are
// closed in good order. Killing a dead node does nothing.
func (c *Cluster) Kill(i int) {
	c.tb.Helper()
	c.net.change(func(doors []*door) { doors[i].down, doors[i].target = true, "" })
	ended := endedContext()
	if err := c.stop(i, func(n *colmena.Node) error { return n.Shutdown(ended) }); err != nil {
		c.tb.Errorf("kill node %d: %v", i, err)
	}
}

// endedContext leaves Shutdown no time for good order.
func endedContext() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// stop closes a node, if it runs.
func (c *Cluster) stop(i int, closeNode func(*colmena.Node) error) error {
	c.mu.Lock()
	node := c.nodes[i]
	c.nodes[i] = nil
	c.mu.Unlock()
	if node == nil {
		return nil
	}
	return closeNode(node)
}

// Restart starts node i again on its files and with its Config. One that runs is closed
// first, in good order, as for an upgrade. It does not wait until the node has caught up:
// WaitConverged does. A node that was cut off stays so.
func (c *Cluster) Restart(i int) {
	c.tb.Helper()
	if err := c.stop(i, (*colmena.Node).Close); err != nil {
		c.tb.Errorf("close node %d: %v", i, err)
	}
	c.net.change(func(doors []*door) { doors[i].target = "" })
	c.start(i)
}

// Isolate cuts node i off: its connections to all other nodes break, and new ones, in
// either direction, are closed when it is known who dials. The node itself runs on. Of
// two nodes that were isolated, neither reaches the other.
func (c *Cluster) Isolate(i int) {
	c.net.change(func(doors []*door) { doors[i].deaf, doors[i].mute = true, true })
}

// IsolateInbound cuts one direction: nothing that the other nodes say reaches node i, and
// what it says reaches them. Connections stay open; as after lost packets, what cannot
// pass now arrives late, when Heal comes before somebody gives the connection up.
func (c *Cluster) IsolateInbound(i int) {
	c.net.change(func(doors []*door) { doors[i].deaf = true })
}

// IsolateOutbound is IsolateInbound for the other direction: nothing that node i says
// reaches the other nodes.
func (c *Cluster) IsolateOutbound(i int) {
	c.net.change(func(doors []*door) { doors[i].mute = true })
}

// Heal ends all that Isolate, IsolateInbound and IsolateOutbound did. It revives no dead
// node.
func (c *Cluster) Heal() {
	c.net.change(func(doors []*door) {
		for _, d := range doors {
			d.deaf, d.mute = false, false
		}
	})
}

// FailNext has the next Exec, Query or Begin on a handle that DB or OpenDB returned, on
// whichever of them it comes, inside a transaction or outside, return err without
// reaching the node. Called several times, it makes as many calls fail, in this order.
// Prepare, Ping, Commit and Rollback do not count. database/sql itself tries again after
// driver.ErrBadConn, each try being a call. An error that meets no call until the test
// ends fails the test.
func (c *Cluster) FailNext(err error) {
	if err == nil {
		panic("colmenatest: FailNext(nil)")
	}
	c.faults.add(err)
}

// WaitConverged waits until all nodes that run and are not cut off have applied the same.
// It comes to an end only when nobody writes.
func (c *Cluster) WaitConverged() {
	c.tb.Helper()
	if err := c.converge(); err != nil {
		c.tb.Fatal(err)
	}
}

// until polls a condition.
func until(otherwise string, ok func() bool) error {
	deadline := time.Now().Add(Timeout)
	for !ok() {
		if time.Now().After(deadline) {
			return fmt.Errorf("colmenatest: %s within %v", otherwise, Timeout)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}
