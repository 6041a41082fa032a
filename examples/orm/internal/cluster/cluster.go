// Package cluster runs three colmena nodes in one process, so that the programs beside it
// show a client library and not how a cluster is started. Nodes of a real cluster run on
// machines of their own: see the README.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"github.com/mentasystems/colmena"
)

// size is how many nodes there are: one of three may fail.
const size = 3

// Cluster is three nodes on loopback.
type Cluster struct {
	nodes []*colmena.Node
}

// Main runs a program on a node that does not lead, compares the replicas after it, and
// ends the process. Files are in a temporary directory that is removed.
func Main(run func(context.Context, *colmena.Node) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := inTemp(ctx, run); err != nil {
		log.Fatal(err)
	}
	fmt.Println("all", size, "replicas hold the same")
}

func inTemp(ctx context.Context, run func(context.Context, *colmena.Node) error) (err error) {
	dir, err := os.MkdirTemp("", "colmena-orm-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c, err := Start(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	follower, err := c.Follower(ctx)
	if err != nil {
		return err
	}
	if err := run(ctx, follower); err != nil {
		return err
	}
	return c.Compare(ctx)
}

// Start starts the nodes, with their files under dir, and waits until all of them vote.
func Start(ctx context.Context, dir string) (_ *Cluster, err error) {
	c := &Cluster{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	for i := range size {
		id := fmt.Sprintf("node-%d", i+1)
		cfg := colmena.Config{NodeID: id, DataDir: filepath.Join(dir, id), Bind: "127.0.0.1:0", Bootstrap: i == 0}
		if i > 0 {
			cfg.Join = []string{c.nodes[0].Addr()}
		}
		n, err := colmena.New(cfg)
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", id, err)
		}
		c.nodes = append(c.nodes, n)
	}
	for _, n := range c.nodes {
		if err := n.WaitReady(ctx); err != nil {
			return nil, fmt.Errorf("%s is not ready: %w", n.ID(), err)
		}
		if err := until(ctx, func() (bool, error) { return voters(ctx, n) }); err != nil {
			return nil, fmt.Errorf("%s does not see %d voters: %w", n.ID(), size, err)
		}
	}
	return c, nil
}

func voters(ctx context.Context, n *colmena.Node) (all bool, err error) {
	members, err := n.Members(ctx)
	count := 0
	for _, m := range members {
		if m.Voter {
			count++
		}
	}
	return count == size, err
}

// Nodes are the nodes, in the order they were started.
func (c *Cluster) Nodes() []*colmena.Node { return c.nodes }

// Follower returns a node that does not lead.
func (c *Cluster) Follower(ctx context.Context) (*colmena.Node, error) {
	if err := c.nodes[0].WaitForLeader(ctx); err != nil {
		return nil, err
	}
	for _, n := range c.nodes {
		if !n.IsLeader() {
			return n, nil
		}
	}
	return nil, errors.New("no node follows")
}

// Close closes the nodes.
func (c *Cluster) Close() error {
	errs := make([]error, len(c.nodes))
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		wg.Go(func() { errs[i] = n.Close() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// until polls a condition until ctx ends.
func until(ctx context.Context, ok func() (bool, error)) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err := ok()
		if done && err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}
