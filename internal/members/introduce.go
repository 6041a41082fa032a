package members

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/rpc"
)

const (
	// tick is how often the list is looked at.
	tick = 200 * time.Millisecond
	// lonelyAfter is how long a node is without a leader before it asks whether it was removed: raft would not tell it.
	lonelyAfter = time.Second

	greetTimeout = 2 * time.Second
	joinTimeout  = 10 * time.Second // of one node that is asked for entrance
)

// Run sees to it that the cluster knows this node at its present address, until ctx ends: it joins, it comes back with another address, and, while
// it leads, it promotes learners that have caught up.
func (k *Keeper) Run(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	in := introducer{k: k}
	for {
		in.introduce(ctx)
		if k.raft.Leading() {
			k.promote(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// introducer is what a node remembers of its own membership while it runs.
type introducer struct {
	k         *Keeper
	entered   bool      // it was let in: the configuration has it, though it may not have reached this node yet
	wasMember bool      // it was in the configuration, as this node has it
	ledBy     bool      // it has heard of a leader
	lonely    time.Time // since when no leader is known
	removed   bool      // it knows that it was removed, and has said so
}

// introduce tells the cluster about this node, if the cluster's table says otherwise.
func (in *introducer) introduce(ctx context.Context) {
	k := in.k
	leader, local, led := k.raft.Leader()
	switch {
	case led:
		in.ledBy, in.lonely = true, time.Time{}
	case in.lonely.IsZero():
		in.lonely = time.Now()
	}
	lonely := !led && time.Since(in.lonely) > lonelyAfter
	member := slices.ContainsFunc(k.raft.Servers(), func(s membership.Server) bool { return s.ID == k.self.NodeID })
	switch {
	case member:
		in.wasMember = true
	case in.wasMember:
		// Removed while it ran: it stays out until it is started again.
		if lonely {
			in.noteRemoved()
		}
		return
	case in.entered:
		// It is still to hear of that, or was removed before it could.
		if !led {
			k.greet(ctx)
		}
		if lonely && k.isMissed(ctx) {
			in.noteRemoved()
		}
		return
	}
	line, known := k.table.Member(k.self.NodeID)
	want := k.line(k.cfg.Voter)
	if known {
		want.Voter = line.Voter
	}
	// One that finds no leader at its start may have been removed while it was down.
	again := lonely && !in.ledBy && len(k.cfg.Join) > 0
	if known && line == want && member && !again {
		if !led {
			k.greet(ctx) // addresses may have changed: let the others hear of this node
		}
		if lonely && k.isMissed(ctx) {
			in.noteRemoved()
		}
		return
	}
	c := joinOf(want)
	var err error
	switch {
	case led && local:
		err = k.Change(ctx, c)
	case led:
		err = k.Ask(ctx, leader, c)
	default:
		k.greet(ctx)
		err = k.join(ctx, c)
	}
	in.entered = in.entered || err == nil
	if err != nil && ctx.Err() == nil {
		k.log.Info("not a member yet", "err", err)
	}
}

// joinOf is the request for a line.
func joinOf(m membership.Record) Change {
	return Change{Kind: Join, ID: m.ID, Incarnation: m.Incarnation, Addr: m.Addr, Voter: m.Voter,
		Engine: m.Engine, FormatMin: m.FormatMin, FormatMax: m.FormatMax, Functions: m.Functions}
}

// noteRemoved says once that this node was removed.
func (in *introducer) noteRemoved() {
	if in.removed {
		return
	}
	in.removed = true
	in.k.log.Error("this node was removed from the cluster; start it again with Join to have it back", "node", in.k.self.NodeID)
	in.k.cfg.Removed()
}

// isMissed asks the members there were whether this node is one: only a leader answers, so if one that does not know this node does, it was
// removed.
func (k *Keeper) isMissed(ctx context.Context) bool {
	for _, addr := range k.knownAddrs() {
		if list, err := k.listAt(ctx, addr); err == nil {
			return !slices.ContainsFunc(list, func(m Member) bool { return m.ID == k.self.NodeID })
		}
	}
	return false
}

// greet says hello to every address at which a member might be. The handshake itself tells both sides where the other one is now.
func (k *Keeper) greet(ctx context.Context) {
	var wg sync.WaitGroup
	for _, addr := range k.knownAddrs() {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, greetTimeout)
			defer cancel()
			_, _ = k.net.Greet(ctx, addr) // it may be down; the next tick greets again
		})
	}
	wg.Wait()
}

// knownAddrs is every address at which a member might be.
func (k *Keeper) knownAddrs() []string {
	addrs := slices.Clone(k.cfg.Join)
	for _, m := range k.table.Members() {
		if addr, _, err := k.Book.Resolve(m.ID); err == nil && m.ID != k.self.NodeID {
			addrs = append(addrs, addr)
		}
	}
	slices.Sort(addrs)
	return slices.Compact(addrs)
}

// join asks the nodes of Config.Join for entrance.
func (k *Keeper) join(ctx context.Context, c Change) error {
	var errs []error
	for _, addr := range k.cfg.Join {
		err := k.joinVia(ctx, addr, c)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("join via %s: %w", addr, err))
	}
	return errors.Join(errs...)
}

func (k *Keeper) joinVia(ctx context.Context, addr string, c Change) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	peer, err := k.net.Greet(ctx, addr)
	if err != nil {
		return err
	}
	if k.self.ClusterID() == "" {
		if peer.ClusterID == "" {
			return errors.New("the node there has no cluster yet")
		}
		// The call's own handshake then names the cluster.
		if err := k.self.Join(peer.ClusterID); err != nil {
			return err
		}
	}
	if peer.NodeID == k.self.NodeID {
		return errors.New("that is this node itself")
	}
	_, err = k.net.CallAddr(ctx, addr, MethodChange, rpc.EncodeControl(&c))
	return err
}
