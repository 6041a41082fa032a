// Package testcluster runs real nodes on loopback for tests. Whatever a test did, its
// cleanup waits until all replicas have converged, compares every database of every
// node row by row, has SQLite check each file, and sees that closing leaves no
// goroutine behind. Tests that use it do not run in parallel.
package testcluster

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/samecontent"
)

// Cluster is a number of nodes. Node 0 forms the cluster, the others join it.
type Cluster struct {
	TB      testing.TB
	dir     string
	mu      sync.Mutex
	nodes   []*colmena.Node
	configs []colmena.Config
	addrs   []string
	opts    []Option
	before  goleak.Option // the goroutines there were before the cluster
	// SkipCompare leaves the comparison out, for tests that damage replicas on purpose.
	SkipCompare bool
}

// Option changes a node's configuration.
type Option func(i int, c *colmena.Config)

// Timeout bounds every wait of a cluster.
const Timeout = 30 * time.Second

// New starts n nodes and waits until all of them vote and are ready.
func New(tb testing.TB, n int, opts ...Option) *Cluster {
	tb.Helper()
	c := &Cluster{TB: tb, dir: tb.TempDir(), nodes: make([]*colmena.Node, n), addrs: make([]string, n), opts: opts}
	for i := range n {
		c.configs = append(c.configs, c.config(i, opts))
	}
	c.before = goleak.IgnoreCurrent()
	tb.Cleanup(c.close)
	for i := range n {
		c.Start(i)
	}
	c.WaitVoters(n)
	c.WaitReady()
	return c
}

func (c *Cluster) config(i int, opts []Option) colmena.Config {
	cfg := colmena.Config{
		NodeID: fmt.Sprintf("node-%d", i+1), DataDir: filepath.Join(c.dir, fmt.Sprintf("node-%d", i+1)), Bind: FreeAddr(c.TB),
		HeartbeatTimeout: 250 * time.Millisecond, ElectionTimeout: 250 * time.Millisecond, Logger: Logger(c.TB, i+1), Bootstrap: i == 0,
	}
	for _, o := range opts {
		o(i, &cfg)
	}
	return cfg
}

// nextPort counts the ports that were drawn.
var nextPort atomic.Uint32

func init() { nextPort.Store(rand.Uint32N(1000)) }

// FreeAddr returns a loopback address nobody listens on, for a node that is to come
// back to it: outside the range from which the system draws ports by itself, or an
// outgoing connection might take it while the node is down. Processes that were started one
// after the other, as tests of several packages are, draw from different thousands, and
// none draws the same soon again.
func FreeAddr(tb testing.TB) string {
	tb.Helper()
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+os.Getpid()%12*1000+int(nextPort.Add(1)%1000))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			tb.Fatal(err)
		}
		return addr
	}
	tb.Fatal("no free port between 20000 and 32000")
	return ""
}

// Add makes the cluster larger by one node and starts it. It returns the node's number.
func (c *Cluster) Add(opts ...Option) int {
	c.TB.Helper()
	i := len(c.configs)
	c.configs = append(c.configs, c.config(i, slices.Concat(c.opts, opts)))
	c.mu.Lock()
	c.nodes, c.addrs = append(c.nodes, nil), append(c.addrs, "")
	c.mu.Unlock()
	c.Start(i)
	return i
}

// Start starts a node that is not running, with the same flags at every start.
func (c *Cluster) Start(i int) *colmena.Node {
	c.TB.Helper()
	cfg := c.configs[i]
	if i > 0 && len(cfg.Join) == 0 && cfg.Bind != "" {
		cfg.Join = []string{c.addrs[0]}
	}
	return c.StartWith(i, cfg)
}

// StartWith starts a node with a configuration of the test's, as it is.
func (c *Cluster) StartWith(i int, cfg colmena.Config) *colmena.Node {
	c.TB.Helper()
	n, err := colmena.New(cfg)
	if err != nil {
		c.TB.Fatalf("start node %d: %v", i+1, err)
	}
	c.mu.Lock()
	c.nodes[i], c.addrs[i] = n, n.Addr()
	c.mu.Unlock()
	return n
}

// Config returns the configuration of a node, without what Start adds.
func (c *Cluster) Config(i int) colmena.Config { return c.configs[i] }

// Stop closes a node.
func (c *Cluster) Stop(i int) {
	c.TB.Helper()
	c.mu.Lock()
	n := c.nodes[i]
	c.nodes[i] = nil
	c.mu.Unlock()
	if n == nil {
		return
	}
	if err := n.Close(); err != nil {
		c.TB.Errorf("close node %d: %v", i+1, err)
	}
}

// Node returns a running node.
func (c *Cluster) Node(i int) *colmena.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[i]
}

// Running returns the nodes that run.
func (c *Cluster) Running() []*colmena.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*colmena.Node
	for _, n := range c.nodes {
		if n != nil {
			out = append(out, n)
		}
	}
	return out
}

// Leader returns the number of the node that leads, waiting for one.
func (c *Cluster) Leader() int {
	c.TB.Helper()
	leader := -1
	c.Until("a leader", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for i, n := range c.nodes {
			if n != nil && n.IsLeader() {
				leader = i
				return true
			}
		}
		return false
	})
	return leader
}

// Follower returns the number of a running node that does not lead.
func (c *Cluster) Follower() int {
	c.TB.Helper()
	leader := c.Leader()
	for i := range c.nodes {
		if i != leader && c.Node(i) != nil {
			return i
		}
	}
	c.TB.Fatal("no follower is running")
	return -1
}

// Until polls a condition.
func (c *Cluster) Until(what string, ok func() bool) {
	c.TB.Helper()
	deadline := time.Now().Add(Timeout)
	for !ok() {
		if time.Now().After(deadline) {
			c.TB.Fatalf("no %s within %v", what, Timeout)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// WaitVoters waits until n nodes vote.
func (c *Cluster) WaitVoters(n int) {
	c.TB.Helper()
	c.Until(fmt.Sprintf("%d voters", n), func() bool {
		for _, node := range c.Running() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			members, err := node.Members(ctx)
			cancel()
			voters := 0
			for _, m := range members {
				if m.Voter {
					voters++
				}
			}
			if err != nil || voters != n {
				return false
			}
		}
		return true
	})
}

// WaitReady waits until every running node is ready.
func (c *Cluster) WaitReady() {
	c.TB.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	for _, n := range c.Running() {
		if err := n.WaitReady(ctx); err != nil {
			c.TB.Fatalf("node %s is not ready: %v", n.ID(), err)
		}
	}
}

// WaitConverged waits until every running node has applied the same.
func (c *Cluster) WaitConverged() {
	c.TB.Helper()
	c.Until("agreement on the applied index", func() bool {
		c.WaitReady()
		index := uint64(0)
		for i, n := range c.Running() {
			if i == 0 {
				index = n.AppliedIndex()
			} else if n.AppliedIndex() != index {
				return false
			}
		}
		return true
	})
}

// Compare compares all databases of all running nodes, what is kept of requests included,
// and checks their files.
func (c *Cluster) Compare() {
	c.TB.Helper()
	c.WaitConverged()
	nodes := c.Running()
	for _, n := range nodes {
		names, want := slices.Sorted(slices.Values(n.Databases())), slices.Sorted(slices.Values(nodes[0].Databases()))
		if !slices.Equal(names, want) {
			c.TB.Errorf("node %s has databases %q, the first node %q", n.ID(), names, want)
			continue
		}
		for _, name := range names {
			Check(c.TB, n, name)
			if n != nodes[0] {
				compare(c.TB, nodes[0], n, name)
			}
		}
	}
}

func compare(tb testing.TB, first, n *colmena.Node, name string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	a, b := open(tb, first, name), open(tb, n, name)
	defer a.Close()
	defer b.Close()
	if d, err := samecontent.Diff(ctx, a, b); err != nil || d != "" {
		tb.Errorf("nodes %s and %s, database %s: %s, %v", first.ID(), n.ID(), name, d, err)
	}
}

// Check fails the test if SQLite finds a database damaged on a node.
func Check(tb testing.TB, n *colmena.Node, name string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	db := open(tb, n, name)
	defer db.Close()
	if err := samecontent.Check(ctx, db); err != nil {
		tb.Errorf("node %s, database %s: %v", n.ID(), name, err)
	}
}

// open opens a database as a node alone has it.
func open(tb testing.TB, n *colmena.Node, name string) *sql.DB {
	tb.Helper()
	db, err := n.OpenDB(name, colmena.None)
	if err != nil {
		tb.Fatal(err)
	}
	return db
}

func (c *Cluster) close() {
	if !c.TB.Failed() && !c.SkipCompare {
		c.Compare()
	}
	var wg sync.WaitGroup
	for i := range c.nodes {
		wg.Go(func() { c.Stop(i) })
	}
	wg.Wait()
	if err := goleak.Find(c.before); err != nil && !c.TB.Failed() {
		c.TB.Errorf("goroutines are left behind: %v", err)
	}
}

// Logger writes a node's log to the test's.
func Logger(tb testing.TB, node int) *slog.Logger {
	return slog.New(slog.NewTextHandler(&testWriter{tb: tb}, &slog.HandlerOptions{Level: slog.LevelInfo})).With("node", node)
}

// testWriter writes to a test's log until the test ends: nodes that are still closing
// then have nothing to say.
type testWriter struct {
	tb   testing.TB
	once sync.Once
	mu   sync.Mutex
	done bool
}

func (w *testWriter) Write(b []byte) (int, error) {
	w.once.Do(func() {
		w.tb.Cleanup(func() { w.mu.Lock(); w.done = true; w.mu.Unlock() })
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.done {
		w.tb.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}
