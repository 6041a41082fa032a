package colmena

import (
	"context"
	"fmt"
	"time"

	"github.com/mentasystems/colmena/internal/catalogue"
	"github.com/mentasystems/colmena/internal/leadership"
	"github.com/mentasystems/colmena/internal/members"
	"github.com/mentasystems/colmena/internal/nudge"
	"github.com/mentasystems/colmena/internal/wire"
)

// newOffice makes what knows who leads, and has this node lead when raft has it win.
func (n *Node) newOffice() *leadership.Office {
	env := leadershipEnv{n}
	return leadership.New(leadership.Config{
		NodeID: n.id.NodeID, Raft: env, Databases: env, Ready: n.readyToLead, Begun: n.ensureSystem,
		Halted: func() bool { return n.intake.Halted() != nil },
		Won:    func(term uint64) { n.event(Event{Kind: EventLeadershipWon, Term: term}) },
		Lost:   func(term uint64) { n.event(Event{Kind: EventLeadershipLost, Term: term}) },
		Wait:   n.cfg.LeaderWait, Group: n.group, Done: n.done, Logger: n.log, Closed: ErrClosed, NoLeader: ErrNoLeader,
	})
}

// leadershipEnv is the node as internal/leadership sees it. Its parts are made later.
type leadershipEnv struct{ n *Node }

func (e leadershipEnv) LeadingTerm() uint64               { return e.n.raft.LeadingTerm() }
func (e leadershipEnv) Leader() string                    { return e.n.raft.Leader() }
func (e leadershipEnv) Voters() []string                  { return e.n.raft.Voters() }
func (e leadershipEnv) Barrier(ctx context.Context) error { return e.n.raft.Barrier(ctx) }
func (e leadershipEnv) Lead(term uint64)                  { e.n.dbs.Lead(term) }
func (e leadershipEnv) StepDown()                         { e.n.dbs.StepDown() }
func (e leadershipEnv) Drain(ctx context.Context) error   { return e.n.dbs.Drain(ctx) }

func (e leadershipEnv) Transfer(ctx context.Context, id string) error {
	return e.n.raft.Transfer(ctx, id)
}

// readyToLead tells what keeps this node from leading, though it has applied everything.
func (n *Node) readyToLead() error {
	if at := n.dbs.System().Mark().Index; n.intake.Missing() || !n.dbs.Follows(at) {
		return fmt.Errorf("the databases do not follow entry %d yet", at)
	}
	if v := n.members.WriteFormat(); v < members.FormatMin {
		return fmt.Errorf("a member reads formats up to %d only, and this version writes %d and newer: upgrade that member", v, members.FormatMin)
	}
	return nil
}

// ensureSystem writes the first entry of a new cluster, and this node's own line.
func (n *Node) ensureSystem(ctx context.Context) error {
	if n.dbs.ClusterID() == "" {
		if _, err := n.dbs.System().Exec(ctx, catalogue.ClusterUnit(n.id.ClusterID())); err != nil {
			return err
		}
	}
	return n.members.RecordSelf(ctx)
}

// WaitForLeader waits until this node knows a leader, or ctx ends.
func (n *Node) WaitForLeader(ctx context.Context) error {
	_, _, err := n.lead.Await(ctx, time.Now().Add(farFuture))
	return err
}

const farFuture = 100 * 365 * 24 * time.Hour

// readyPause is how long WaitReady waits before it looks again, if nothing changes.
const readyPause = 100 * time.Millisecond

// WaitReady waits until a leader is known and this node has applied what the leader
// had when asked, or until ctx ends.
func (n *Node) WaitReady(ctx context.Context) error {
	for {
		if err := n.WaitForLeader(ctx); err != nil {
			return err
		}
		err := n.catchUp(ctx)
		if err == nil || ctx.Err() != nil || n.isClosed() {
			return err
		}
		if err := n.lead.Pause(ctx, n.lead.Watch(), time.Now().Add(readyPause)); err != nil && err != ErrNoLeader {
			return err
		}
	}
}

func (n *Node) catchUp(ctx context.Context) error {
	// The system database comes first: it says which others there are.
	if err := n.fresh.CatchUp(ctx, catalogue.SystemName, n.dbs.System()); err != nil {
		return err
	}
	if err := n.fresh.AwaitSystem(ctx); err != nil {
		return err
	}
	for _, d := range n.dbs.All() {
		if err := n.fresh.CatchUp(ctx, d.Name(), d); err != nil {
			return err
		}
	}
	return nil
}

// IsLeader reports whether this node leads and takes writes.
func (n *Node) IsLeader() bool { return n.lead.Leading() }

// Leader returns the leader as far as this node knows.
func (n *Node) Leader() (Member, bool) {
	id, _, ok := n.lead.Leader()
	if !ok {
		return Member{}, false
	}
	m := Member{ID: id}
	m.Addr, _, _ = n.members.Book.Resolve(id)
	return m, true
}

// newNudger makes what tells followers at once what was committed.
func (n *Node) newNudger() *nudge.Nudger {
	return nudge.New(nudge.Config{
		Term: n.lead.Term, Followers: func() []string { return n.raft.Others() }, Done: n.done,
		Send: func(id string, committed wire.Mark) bool { return n.raft.Nudge(id, committed) },
	})
}

// nudge asks for followers to be told that mark was committed.
func (n *Node) nudge(mark wire.Mark) {
	if n.net != nil {
		n.nudges.Committed(mark)
	}
}
