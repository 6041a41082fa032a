package colmena

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"
)

// keepMembership sees to it that the cluster knows this node at its present address:
// it joins, it comes back with another address, and, while it leads, it promotes
// learners that have caught up.
func (n *Node) keepMembership(ctx context.Context) {
	tick := time.NewTicker(membershipTick)
	defer tick.Stop()
	var in introducer
	for {
		n.introduce(ctx, &in)
		if n.leading.Load() != 0 {
			n.promote(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

const membershipTick = 200 * time.Millisecond

// introducer is what a node remembers of its own membership while it runs.
type introducer struct {
	wasMember bool      // it was in the configuration
	ledBy     bool      // it has heard of a leader
	lonely    time.Time // since when no leader is known
	removed   bool      // it knows that it was removed, and has said so
}

// lonelyAfter is how long a node is without a leader before it asks whether it was
// removed: raft would not tell it.
const lonelyAfter = time.Second

// introduce tells the cluster about this node, if the cluster's table says otherwise.
func (n *Node) introduce(ctx context.Context, in *introducer) {
	leader, local, led := n.leader()
	switch {
	case led:
		in.ledBy, in.lonely = true, time.Time{}
	case in.lonely.IsZero():
		in.lonely = time.Now()
	}
	lonely := !led && time.Since(in.lonely) > lonelyAfter
	member := n.inConfiguration()
	switch {
	case member:
		in.wasMember = true
	case in.wasMember:
		// Removed while it ran: it stays out until it is started again.
		if lonely {
			n.noteRemoved(in)
		}
		return
	}
	self, known := n.dbs.Member(n.id.NodeID)
	want := n.selfMember(n.cfg.JoinAs == JoinAsVoter)
	if known {
		want.Voter = self.Voter
	}
	// One that finds no leader at its start may have been removed while it was down.
	again := lonely && !in.ledBy && len(n.cfg.Join) > 0
	if known && self == want && member && !again {
		if !led {
			n.greet(ctx) // addresses may have changed: let the others hear of this node
		}
		if lonely && n.isMissed(ctx) {
			n.noteRemoved(in)
		}
		return
	}
	c := memberChange{Kind: changeJoin, ID: want.ID, Incarnation: want.Incarnation, Addr: want.Addr, Voter: want.Voter, Engine: want.Engine, FormatMin: formatMin, FormatMax: formatMax, Functions: want.Functions}
	var err error
	switch {
	case led && local:
		err = n.changeHere(ctx, c)
	case led:
		err = n.control(ctx, leader, methodChange, &c, nil)
	default:
		n.greet(ctx)
		err = n.join(ctx, c)
	}
	if err != nil && ctx.Err() == nil {
		n.log.Info("not a member yet", "err", err)
	}
}

// noteRemoved says once that this node was removed.
func (n *Node) noteRemoved(in *introducer) {
	if in.removed {
		return
	}
	in.removed = true
	n.log.Error("this node was removed from the cluster; start it again with Join to have it back", "node", n.id.NodeID)
	n.event(Event{Kind: EventRemoved})
}

// isMissed asks the members there were whether this node is one: only a leader
// answers, so if one that does not know this node does, it was removed.
func (n *Node) isMissed(ctx context.Context) bool {
	for _, addr := range n.knownAddrs() {
		if members, err := n.membersAt(ctx, addr); err == nil {
			return !slices.ContainsFunc(members, func(m Member) bool { return m.ID == n.id.NodeID })
		}
	}
	return false
}

func (n *Node) membersAt(ctx context.Context, addr string) (members []Member, err error) {
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	conn, _, err := n.net.DialAddr(ctx, addr)
	if err != nil {
		return nil, err
	}
	b, err := n.client.CallConn(ctx, conn, methodMembers, encodeControl(nil))
	if err != nil {
		return nil, err
	}
	return members, codec.NewDecoderBytes(b, &msgpackHandle).Decode(&members)
}

func (n *Node) inConfiguration() bool {
	return slices.ContainsFunc(n.servers(), func(s raft.Server) bool { return string(s.ID) == n.id.NodeID })
}

// greet says hello to every address at which a member might be. The handshake itself
// tells both sides where the other one is now.
func (n *Node) greet(ctx context.Context) {
	var wg sync.WaitGroup
	for _, addr := range n.knownAddrs() {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, greetTimeout)
			defer cancel()
			if conn, _, err := n.net.DialAddr(ctx, addr); err == nil {
				_ = conn.Close()
			}
		})
	}
	wg.Wait()
}

const greetTimeout = 2 * time.Second

// knownAddrs is every address at which a member might be.
func (n *Node) knownAddrs() []string {
	addrs := slices.Clone(n.cfg.Join)
	for _, m := range n.dbs.Members() {
		if addr, _, err := n.peers.resolve(m.ID); err == nil && m.ID != n.id.NodeID {
			addrs = append(addrs, addr)
		}
	}
	slices.Sort(addrs)
	return slices.Compact(addrs)
}

// join asks the nodes of Config.Join for entrance.
func (n *Node) join(ctx context.Context, c memberChange) error {
	var errs []error
	for _, addr := range n.cfg.Join {
		if err := n.joinVia(ctx, addr, c); err == nil {
			return nil
		} else {
			errs = append(errs, fmt.Errorf("join via %s: %w", addr, err))
		}
	}
	return errors.Join(errs...)
}

func (n *Node) joinVia(ctx context.Context, addr string, c memberChange) error {
	ctx, cancel := context.WithTimeout(ctx, barrierTimeout)
	defer cancel()
	conn, peer, err := n.net.DialAddr(ctx, addr)
	if err != nil {
		return err
	}
	if n.id.ClusterID() == "" {
		_ = conn.Close()
		if peer.ClusterID == "" {
			return errors.New("the node there has no cluster yet")
		}
		if err := n.id.Join(peer.ClusterID); err != nil {
			return err
		}
		if conn, _, err = n.net.DialAddr(ctx, addr); err != nil {
			return err
		}
	}
	if peer.NodeID == n.id.NodeID {
		_ = conn.Close()
		return errors.New("that is this node itself")
	}
	_, err = n.client.CallConn(ctx, conn, methodChange, encodeControl(&c))
	return err
}
