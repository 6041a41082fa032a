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
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mentasystems/colmena"
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

// FreeAddr returns a loopback address nobody listens on, for a node that is to come
// back to it: outside the range from which the system draws ports by itself, or an
// outgoing connection might take it while the node is down.
func FreeAddr(tb testing.TB) string {
	tb.Helper()
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
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

// Compare compares all databases of all running nodes and checks their files.
func (c *Cluster) Compare() {
	c.TB.Helper()
	c.WaitConverged()
	var want map[string][]string
	for i, n := range c.Running() {
		got := map[string][]string{}
		for _, name := range n.Databases() {
			got[name] = Dump(c.TB, n, name)
		}
		if i == 0 {
			want = got
			continue
		}
		for name := range want {
			diff(c.TB, n.ID(), name, want[name], got[name])
		}
		if len(got) != len(want) {
			c.TB.Errorf("node %s has databases %v", n.ID(), n.Databases())
		}
	}
}

func diff(tb testing.TB, node, db string, want, got []string) {
	tb.Helper()
	for i := range max(len(want), len(got)) {
		var w, g string
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w != g {
			tb.Errorf("node %s, database %s, line %d of %d:\n%.300s\nthe first node has, of %d:\n%.300s", node, db, i, len(got), g, len(want), w)
			return
		}
	}
}

// Dump lists the schema and every row of a database as one node has it, the results
// kept of requests too, and fails the test if SQLite finds the file damaged.
func Dump(tb testing.TB, n *colmena.Node, name string) []string {
	tb.Helper()
	db, err := n.OpenDB(name, colmena.None)
	if err != nil {
		tb.Fatal(err)
	}
	defer db.Close()
	if check := rows(tb, db, "PRAGMA integrity_check"); len(check) != 1 || check[0] != "|ok" {
		tb.Errorf("node %s, database %s: %v", n.ID(), name, check)
	}
	lines := rows(tb, db, "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name")
	for _, t := range rows(tb, db, "SELECT name FROM sqlite_schema WHERE lower(type)='table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name") {
		lines = append(lines, "table"+t)
		lines = append(lines, rows(tb, db, "SELECT * FROM \""+strings.ReplaceAll(t[1:], "\"", "\"\"")+"\"")...)
	}
	return lines
}

func rows(tb testing.TB, db *sql.DB, query string) []string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	rs, err := db.QueryContext(ctx, query)
	if err != nil {
		tb.Fatalf("%s: %v", query, err)
	}
	defer rs.Close()
	columns, err := rs.Columns()
	if err != nil {
		tb.Fatal(err)
	}
	var out []string
	for rs.Next() {
		values, ptrs := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			ptrs[i] = &values[i]
		}
		if err := rs.Scan(ptrs...); err != nil {
			tb.Fatal(err)
		}
		var line strings.Builder
		for _, v := range values {
			fmt.Fprintf(&line, "|%v", v)
		}
		out = append(out, line.String())
	}
	if err := rs.Err(); err != nil {
		tb.Fatalf("%s: %v", query, err)
	}
	return out
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
