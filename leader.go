package colmena

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/mentasystems/colmena/internal/catalogue"
	"github.com/mentasystems/colmena/internal/members"
	"github.com/mentasystems/colmena/internal/nudge"
	"github.com/mentasystems/colmena/internal/wire"
)

// watchLeadership follows raft: it opens the databases for writing when this node has
// won and applied everything, and closes them when it has lost. raft's leader channel
// has one slot and may swallow a loss between two wins, so the term is looked at too
// (H13).
func (n *Node) watchLeadership(ctx context.Context) {
	changes := make(chan raft.Observation, 16)
	observer := raft.NewObserver(changes, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	})
	n.raft.RegisterObserver(observer)
	defer n.raft.DeregisterObserver(observer)
	tick := time.NewTicker(leaderTick)
	defer tick.Stop()
	for {
		n.followLeadership(ctx)
		select {
		case <-ctx.Done():
			return
		case <-changes:
			n.stateChanged()
		case <-n.raft.LeaderCh():
			n.stateChanged()
		case <-tick.C:
		}
	}
}

// leaderTick is how often leadership is looked at even if raft says nothing.
const leaderTick = 100 * time.Millisecond

func (n *Node) followLeadership(ctx context.Context) {
	term := n.raftLeaderTerm()
	if have := n.leading.Load(); have != 0 && have != term {
		n.loseLead()
	}
	if term == 0 || n.leading.Load() == term || n.resigning.Load() {
		return
	}
	if n.halted.Load() != nil {
		// It can win an election, its log being whole, and must not keep what it won.
		if time.Since(n.gaveUp) > giveUpPause && n.otherVoters() {
			n.gaveUp = time.Now()
			n.group.Go("give up leadership", n.giveUpLeadership)
		}
		return
	}
	if err := n.takeLead(ctx, term); err != nil {
		n.log.Warn("leadership was won but cannot be used yet", "term", term, "err", err)
		return
	}
	n.leading.Store(term)
	n.stateChanged()
	n.log.Info("leading", "term", term)
	n.event(Event{Kind: EventLeadershipWon, Term: term})
}

// giveUpPause is how often a node that cannot lead tries to hand on what it won.
const giveUpPause = time.Second

// loseLead closes the databases for writing.
func (n *Node) loseLead() {
	term := n.leading.Swap(0)
	n.dbs.StepDown()
	n.stateChanged()
	if term != 0 {
		n.event(Event{Kind: EventLeadershipLost, Term: term})
	}
}

// raftLeaderTerm is the term in which raft holds this node for the leader, 0 if none.
func (n *Node) raftLeaderTerm() uint64 {
	term := n.raft.CurrentTerm()
	if n.raft.State() != raft.Leader || n.raft.CurrentTerm() != term || n.stalled.Load() {
		return 0
	}
	return term
}

// takeLead waits until everything before this term is applied, and opens the
// databases for writing.
func (n *Node) takeLead(ctx context.Context, term uint64) error {
	ctx, cancel := context.WithTimeout(ctx, barrierTimeout)
	defer cancel()
	if err := waitFuture(ctx, n.raft.Barrier(barrierTimeout)); err != nil {
		return err
	}
	if err := n.dbs.Drain(ctx); err != nil {
		return err
	}
	if n.raftLeaderTerm() != term {
		return fmt.Errorf("the term is over")
	}
	if at := n.dbs.System().Mark().Index; n.missedFrom.Load() != 0 || !n.dbs.Follows(at) {
		return fmt.Errorf("the databases do not follow entry %d yet", at)
	}
	if v := n.members.WriteFormat(); v < members.FormatMin {
		return fmt.Errorf("a member reads formats up to %d only, and this version writes %d and newer: upgrade that member", v, members.FormatMin)
	}
	n.dbs.Lead(term)
	return n.ensureSystem(ctx)
}

const barrierTimeout = 10 * time.Second

// ensureSystem writes the first entry of a new cluster, and this node's own line.
func (n *Node) ensureSystem(ctx context.Context) error {
	if n.dbs.ClusterID() == "" {
		args := wire.NewArgs(1)
		args.Add(wire.Text(n.id.ClusterID()))
		if _, err := n.dbs.System().Exec(ctx, wire.Unit{Statements: []wire.Statement{{SQL: catalogue.Schema, Args: args.Args()}}}); err != nil {
			return err
		}
	}
	return n.members.RecordSelf(ctx)
}

// stateChanged wakes those who wait for a leader.
func (n *Node) stateChanged() {
	n.stateMu.Lock()
	defer n.stateMu.Unlock()
	close(n.stateCh)
	n.stateCh = make(chan struct{})
}

func (n *Node) stateWatch() <-chan struct{} {
	n.stateMu.Lock()
	defer n.stateMu.Unlock()
	return n.stateCh
}

// leader is where writes go now: to this node (local) or to another. ok is false
// while there is none.
func (n *Node) leader() (id string, local, ok bool) {
	if n.leading.Load() != 0 {
		return n.id.NodeID, true, true
	}
	_, lid := n.raft.LeaderWithID()
	if lid == "" || string(lid) == n.id.NodeID {
		return "", false, false // or won and not yet ready
	}
	return string(lid), false, true
}

// awaitLeader waits for a leader until deadline or ctx ends.
func (n *Node) awaitLeader(ctx context.Context, deadline time.Time) (id string, local bool, err error) {
	for {
		watch := n.stateWatch()
		if n.isClosed() {
			return "", false, ErrClosed
		}
		if id, local, ok := n.leader(); ok {
			return id, local, nil
		}
		if err := n.pause(ctx, watch, deadline); err != nil {
			return "", false, err
		}
	}
}

// pause waits for a change of state, at most until deadline.
func (n *Node) pause(ctx context.Context, watch <-chan struct{}, deadline time.Time) error {
	left := time.Until(deadline)
	if left <= 0 {
		return ErrNoLeader
	}
	timer := time.NewTimer(min(left, leaderTick))
	defer timer.Stop()
	select {
	case <-watch:
	case <-timer.C:
	case <-n.done:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// leaderDeadline is until when a call waits for a leader.
func (n *Node) leaderDeadline() time.Time {
	return time.Now().Add(max(n.cfg.LeaderWait, 0))
}

// WaitForLeader waits until this node knows a leader, or ctx ends.
func (n *Node) WaitForLeader(ctx context.Context) error {
	_, _, err := n.awaitLeader(ctx, time.Now().Add(farFuture))
	return err
}

const farFuture = 100 * 365 * 24 * time.Hour

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
		if err := n.pause(ctx, n.stateWatch(), time.Now().Add(leaderTick)); err != nil && err != ErrNoLeader {
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
func (n *Node) IsLeader() bool { return n.leading.Load() != 0 }

// Leader returns the leader as far as this node knows.
func (n *Node) Leader() (Member, bool) {
	id, _, ok := n.leader()
	if !ok {
		return Member{}, false
	}
	m := Member{ID: id}
	m.Addr, _, _ = n.members.Book.Resolve(id)
	return m, true
}

// resign hands leadership to the voter id, or to the one that is most caught up if id
// is "". New writes wait for the next leader; those under way are decided first. If
// nobody takes over, this node goes on leading.
func (n *Node) resign(ctx context.Context, id string) error {
	n.resigning.Store(true)
	defer func() {
		n.resigning.Store(false)
		n.stateChanged()
	}()
	n.loseLead()
	_ = n.dbs.Drain(ctx) // what is not decided by then is looked up by its request ID
	if n.raftLeaderTerm() == 0 {
		return nil
	}
	if id == "" {
		return waitFuture(ctx, n.raft.LeadershipTransfer())
	}
	return waitFuture(ctx, n.raft.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(id)))
}

// giveUpLeadership is for a node that cannot go on.
func (n *Node) giveUpLeadership(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, barrierTimeout)
	defer cancel()
	if err := n.resign(ctx, ""); err != nil {
		n.log.Warn("leadership could not be handed over", "err", err)
	}
}

// handOver ends this node's leadership in good order, before it closes.
func (n *Node) handOver(ctx context.Context) {
	if n.raft == nil || n.leading.Load() == 0 {
		return
	}
	if !n.otherVoters() {
		return
	}
	if err := n.resign(ctx, ""); err != nil {
		n.log.Warn("leadership could not be handed over", "err", err)
	}
}

// otherVoters reports whether anybody else could lead.
func (n *Node) otherVoters() bool {
	return slices.ContainsFunc(n.voters(), func(id string) bool { return id != n.id.NodeID })
}

// voters are the IDs of those who vote.
func (n *Node) voters() (ids []string) {
	for _, s := range n.servers() {
		if s.Suffrage == raft.Voter {
			ids = append(ids, string(s.ID))
		}
	}
	return ids
}

// servers is raft's present configuration.
func (n *Node) servers() []raft.Server {
	f := n.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	return f.Configuration().Servers
}

// newNudger makes what tells followers at once what was committed.
func (n *Node) newNudger() *nudge.Nudger {
	return nudge.New(nudge.Config{Term: n.leading.Load, Followers: n.followers, Send: n.sendNudge, Done: n.done})
}

// nudge asks for followers to be told that mark was committed.
func (n *Node) nudge(mark wire.Mark) {
	if n.net != nil {
		n.nudges.Committed(mark)
	}
}

// sendNudge sends what raft itself sends, an AppendEntries without entries.
func (n *Node) sendNudge(id string, committed wire.Mark) bool {
	self := raft.ServerID(n.id.NodeID)
	req := &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(self), Addr: n.raftNet.EncodePeer(self, raft.ServerAddress(self))},
		Term:      committed.Term, PrevLogEntry: committed.Index, PrevLogTerm: committed.Term, LeaderCommitIndex: committed.Index,
	}
	var resp raft.AppendEntriesResponse
	err := n.raftNet.AppendEntries(raft.ServerID(id), raft.ServerAddress(id), req, &resp)
	return err == nil && resp.Success
}

// followers are the IDs of the other nodes, learners among them.
func (n *Node) followers() (ids []string) {
	for _, s := range n.servers() {
		if string(s.ID) != n.id.NodeID {
			ids = append(ids, string(s.ID))
		}
	}
	return ids
}
