package colmenatest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/samecontent"
)

// end is the cluster's cleanup: it holds what must hold after every test, and closes all.
func (c *Cluster) end() {
	c.tb.Helper()
	// Whatever ends this early, the nodes are closed and the proxies too.
	defer c.close()
	if c.tb.Failed() {
		return
	}
	for _, err := range c.faults.left() {
		c.tb.Errorf("colmenatest: FailNext(%v) has met no call", err)
	}
	c.Heal()
	for i := range c.configs {
		if c.Node(i) == nil {
			c.start(i)
		}
	}
	if err := c.verify(); err != nil {
		c.tb.Error(err)
	}
}

// close closes everything, and sees that nothing goes on.
func (c *Cluster) close() {
	c.tb.Helper()
	c.mu.Lock()
	pools := c.pools
	c.pools = nil
	c.mu.Unlock()
	for _, db := range pools {
		if err := db.Close(); err != nil && !errors.Is(err, colmena.ErrClosed) {
			c.tb.Errorf("close a handle: %v", err)
		}
	}
	ended := endedContext() // all go at once: there is nobody to hand leadership to
	var wg sync.WaitGroup
	for i := range c.configs {
		wg.Go(func() {
			if err := c.stop(i, func(n *colmena.Node) error { return n.Shutdown(ended) }); err != nil {
				c.tb.Errorf("close node %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	c.net.close()
	c.label.check(c.tb)
}

// waitVoters waits until every node knows all nodes as voters.
func (c *Cluster) waitVoters() error {
	var last error
	err := until("not all nodes vote", func() bool {
		for i := range c.configs {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			members, err := c.Node(i).Members(ctx)
			cancel()
			voters := 0
			for _, m := range members {
				if m.Voter {
					voters++
				}
			}
			if err != nil || voters != len(c.configs) {
				last = fmt.Errorf("node %d knows %d voters: %w", i, voters, err)
				return false
			}
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("%w: %w", err, last)
	}
	return nil
}

// state is how far a node is: the last entry applied, of all databases and of each.
type state struct {
	applied   uint64
	databases map[string]uint64
}

func stateOf(n *colmena.Node) state {
	s := n.Status()
	marks := map[string]uint64{}
	for _, d := range s.Databases {
		marks[d.Name] = d.Index
	}
	return state{s.AppliedIndex, marks}
}

func (s state) equal(o state) bool {
	return s.applied == o.applied && maps.Equal(s.databases, o.databases)
}

// converge waits until the connected members of the cluster have come to the same state.
func (c *Cluster) converge() error {
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	nodes, err := c.members(ctx)
	if err != nil {
		return err
	}
	var states []state
	var notReady error
	err = until("the nodes have not come to the same state", func() bool {
		states = states[:0]
		for _, n := range nodes {
			if err := n.WaitReady(ctx); err != nil {
				notReady = fmt.Errorf("colmenatest: node %s is not ready: %w", n.ID(), err)
				return true
			}
			states = append(states, stateOf(n))
		}
		return !slices.ContainsFunc(states, func(s state) bool { return !s.equal(states[0]) })
	})
	if err = errors.Join(err, notReady); err != nil {
		return fmt.Errorf("%w: %s", err, describe(nodes, states))
	}
	return nil
}

// describe says how far each node is, and which has stopped.
func describe(nodes []*colmena.Node, states []state) string {
	var out string
	for i, n := range nodes {
		if i < len(states) {
			out += fmt.Sprintf("%s has applied %d %v; ", n.ID(), states[i].applied, states[i].databases)
		}
		if err := n.Status().Halted; err != nil {
			out += fmt.Sprintf("%s has stopped: %v; ", n.ID(), err)
		}
	}
	return out
}

// members lists the connected nodes that belong to the cluster: a test may have removed
// some.
func (c *Cluster) members(ctx context.Context) (nodes []*colmena.Node, err error) {
	leader, err := c.leader()
	if err != nil {
		return nil, err
	}
	node := c.Node(leader)
	if node == nil {
		return nil, fmt.Errorf("colmenatest: node %d was killed meanwhile", leader)
	}
	members, err := node.Members(ctx)
	if err != nil {
		return nil, fmt.Errorf("colmenatest: who is a member: %w", err)
	}
	for _, i := range c.connected() {
		n := c.Node(i)
		if n != nil && slices.ContainsFunc(members, func(m colmena.Member) bool { return m.ID == n.ID() }) {
			nodes = append(nodes, n)
		}
	}
	return nodes, nil
}

// verify compares all nodes with one another. A difference counts only if nothing was
// applied meanwhile: the cluster writes for itself too, after an election say.
func (c *Cluster) verify() error {
	deadline := time.Now().Add(Timeout)
	for {
		if err := c.converge(); err != nil {
			return err
		}
		ctx, cancel := context.WithDeadline(context.Background(), deadline.Add(Timeout))
		nodes, err := c.members(ctx)
		var before, after []state
		for _, n := range nodes {
			before = append(before, stateOf(n))
		}
		if err == nil {
			err = compare(ctx, nodes)
		}
		cancel()
		for _, n := range nodes {
			after = append(after, stateOf(n))
		}
		if err == nil || slices.EqualFunc(before, after, state.equal) || time.Now().After(deadline) {
			return err
		}
	}
}

// compare has SQLite examine every database of every node, and compares each with the
// first node's. It reports all that it finds.
func compare(ctx context.Context, nodes []*colmena.Node) error {
	var errs []error
	for _, n := range nodes {
		if err := n.Status().Halted; err != nil {
			errs = append(errs, fmt.Errorf("node %s has stopped: %w", n.ID(), err))
			continue
		}
		names := slices.Sorted(slices.Values(n.Databases()))
		if first := slices.Sorted(slices.Values(nodes[0].Databases())); !slices.Equal(names, first) {
			errs = append(errs, fmt.Errorf("node %s has databases %q, node %s has %q", n.ID(), names, nodes[0].ID(), first))
			continue
		}
		for _, name := range names {
			if err := compareDatabase(ctx, nodes[0], n, name); err != nil {
				errs = append(errs, fmt.Errorf("database %s: %w", name, err))
			}
		}
	}
	return errors.Join(errs...)
}

func compareDatabase(ctx context.Context, first, n *colmena.Node, name string) error {
	return withLocal(n, name, func(db *sql.DB) error {
		if err := samecontent.Check(ctx, db); err != nil {
			return fmt.Errorf("node %s: %w", n.ID(), err)
		}
		if n == first {
			return nil
		}
		return withLocal(first, name, func(of *sql.DB) error {
			d, err := samecontent.Diff(ctx, of, db)
			if err == nil && d != "" {
				err = fmt.Errorf("nodes %s and %s differ: %s", first.ID(), n.ID(), d)
			}
			return err
		})
	})
}
