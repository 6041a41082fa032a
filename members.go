package colmena

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/mentasystems/colmena/internal/consensus"
	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/identity"
	"github.com/mentasystems/colmena/internal/members"
	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/rpc"
	"github.com/mentasystems/colmena/internal/snapshot"
	"github.com/mentasystems/colmena/internal/wire"
)

// Member is a node of the cluster.
type Member struct {
	ID     string
	Addr   string // address other nodes reach it at, "" while unknown
	Voter  bool   // it counts for majorities
	Leader bool
	// Promoting says that the node does not vote yet and will when it has caught up.
	Promoting bool
}

// Members lists the cluster's nodes, sorted by ID, as the leader knows them.
func (n *Node) Members(ctx context.Context) (out []Member, err error) {
	err = n.onLeader(ctx, func(context.Context) error {
		out = n.membersHere()
		return nil
	}, func(ctx context.Context, leader string) error {
		list, err := n.members.ListOf(ctx, leader)
		out = publicMembers(list)
		return err
	})
	return out, err
}

func (n *Node) membersHere() []Member { return publicMembers(n.members.List()) }

func publicMembers(list []members.Member) []Member {
	var out []Member
	for _, m := range list {
		out = append(out, Member(m))
	}
	return out
}

// AddVoter makes a node a voter: a learner is promoted when it has caught up; a node
// that is not a member yet must join by itself, with Config.Join.
func (n *Node) AddVoter(ctx context.Context, id string) error {
	return n.changeMember(ctx, members.Change{Kind: members.Promote, ID: id})
}

// AddNonvoter makes a voter a learner, which receives everything and does not vote.
// It is DemoteVoter.
func (n *Node) AddNonvoter(ctx context.Context, id string) error { return n.DemoteVoter(ctx, id) }

// DemoteVoter makes a voter a learner. The last voter cannot be demoted.
func (n *Node) DemoteVoter(ctx context.Context, id string) error {
	return n.changeMember(ctx, members.Change{Kind: members.Demote, ID: id})
}

// RemoveNode takes a node out of the cluster. It may be down. It stays out, and says so
// in its log and to OnEvent, until it is started again with Config.Join.
func (n *Node) RemoveNode(ctx context.Context, id string) error {
	return n.changeMember(ctx, members.Change{Kind: members.Remove, ID: id})
}

// TransferLeadership hands leadership to the voter id, or to the one that is most
// caught up if id is "".
func (n *Node) TransferLeadership(ctx context.Context, id string) error {
	return n.changeMember(ctx, members.Change{Kind: members.Transfer, ID: id})
}

func (n *Node) changeMember(ctx context.Context, c members.Change) error {
	return changeError(n.onLeader(ctx, func(ctx context.Context) error { return n.members.Change(ctx, c) },
		func(ctx context.Context, leader string) error { return n.members.Ask(ctx, leader, c) }))
}

// changeError makes the user's error of a change of members, the same on the leader and
// on every other node. One that was cut short may have taken some of its steps.
func changeError(err error) error {
	if err == nil || errors.Is(err, ErrClosed) || errors.Is(err, ErrNoLeader) {
		return err
	}
	w := errorToWire(err)
	text := "colmena: " + strings.TrimPrefix(w.Msg, "colmena: ")
	switch w.Code {
	case wire.ErrInternal:
		return errors.New(text)
	case wire.ErrTimeout:
		return &outcomeError{msg: text, is: []error{context.DeadlineExceeded}}
	case wire.ErrCanceled:
		return &outcomeError{msg: text, is: []error{context.Canceled}}
	case wire.ErrClosed:
		return &outcomeError{msg: text, is: []error{ErrClosed}}
	}
	return errorFromWire(w)
}

// onLeader runs here if this node leads, and otherwise asks the leader. Calls are
// idempotent, so one that got lost is made again until ctx ends or no leader is found.
func (n *Node) onLeader(ctx context.Context, here func(context.Context) error, there func(context.Context, string) error) (err error) {
	lost := n.lead.Ask(ctx, n.lead.Deadline(), func(leader string, local bool) (again bool) {
		if local {
			err = here(ctx)
		} else {
			err = there(ctx, leader)
		}
		return err != nil && ctx.Err() == nil && goesToLeader(err)
	})
	if lost != nil {
		return noLeader(ctx, lost)
	}
	return err
}

// goesToLeader reports whether a call failed only because it did not reach the leader.
func goesToLeader(err error) bool {
	var w *wire.Error
	if errors.As(err, &w) && w.Code == wire.ErrNotLeader {
		return true
	}
	return consensus.NotLeading(err) || errors.Is(err, ErrNoLeader) || errors.Is(err, rpc.ErrNotDelivered) || errors.Is(err, rpc.ErrInterrupted)
}

func noLeader(ctx context.Context, err error) error {
	if errors.Is(err, ErrClosed) || errors.Is(err, ErrNoLeader) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNoLeader, err)
}

// newMembers makes this node's part in the keeping of the list of members.
func (n *Node) newMembers() *members.Keeper {
	env := membersEnv{n}
	return members.NewKeeper(members.Config{
		Self: n.id, Table: env, Raft: env, Join: n.cfg.Join, Voter: n.cfg.JoinAs == JoinAsVoter, Engine: engineFingerprint(), Functions: n.library.List(),
		AnswerTimeout: n.cfg.ElectionTimeout, Removed: func() { n.event(Event{Kind: EventRemoved}) }, Logger: n.log,
	})
}

// membersEnv is the node as internal/members sees it. Of the node's parts it asks when
// they are needed: they are built one after the other.
type membersEnv struct{ n *Node }

func (e membersEnv) Member(id string) (membership.Record, bool) { return e.n.dbs.Member(id) }
func (e membersEnv) Members() []membership.Record               { return e.n.dbs.Members() }

func (e membersEnv) Exec(ctx context.Context, u wire.Unit) error {
	_, err := e.n.dbs.System().Exec(ctx, u)
	return unled(err)
}

func (e membersEnv) Servers() []membership.Server { return e.n.raft.Servers() }

func (e membersEnv) AddLearner(ctx context.Context, id string) error {
	return unled(e.n.raft.AddLearner(ctx, id))
}

func (e membersEnv) AddVoter(ctx context.Context, id string) error {
	return unled(e.n.raft.AddVoter(ctx, id))
}

func (e membersEnv) Demote(ctx context.Context, id string) error {
	return unled(e.n.raft.Demote(ctx, id))
}

func (e membersEnv) Remove(ctx context.Context, id string) error {
	return unled(e.n.raft.Remove(ctx, id))
}

func (e membersEnv) Transfer(ctx context.Context, id string) error {
	return unled(e.n.lead.Resign(ctx, id))
}

func (e membersEnv) Leader() (id string, local, ok bool) { return e.n.lead.Leader() }
func (e membersEnv) Leading() bool                       { return e.n.lead.Leading() }
func (e membersEnv) Applied() uint64                     { return e.n.intake.Applied() }

// unled gives what failed only because this node leads no more one form, for whoever
// asked: the next leader is asked again.
func unled(err error) error {
	if err != nil && (errors.Is(err, engine.ErrNotLeading) || goesToLeader(err)) {
		return &wire.Error{Code: wire.ErrNotLeader, Msg: err.Error()}
	}
	return err
}

// catalogueChanged follows an entry of the system database.
func (n *Node) catalogueChanged() {
	if !n.id.Formed() && n.dbs.ClusterID() != "" {
		if err := n.id.Enter(); err != nil {
			n.log.Warn("node.json could not be written", "err", err)
		}
	}
	n.lead.Changed()
}

// acceptCopy refuses a copy of another cluster before a byte of it is stored.
func (n *Node) acceptCopy(m *snapshot.Manifest) error {
	if own := n.id.ClusterID(); m.ClusterID != own {
		return fmt.Errorf("the copy belongs to cluster %s, this node to %s", m.ClusterID, own)
	}
	return nil
}

// HasExistingState reports whether dir is a node's data directory.
func HasExistingState(dir string) (bool, error) { return identity.Exists(dir) }

// WipeLocalState removes a node's state from its data directory, which must not be in
// use: the node forgets its databases, its log and its votes. Other files are left alone.
// A directory that is no node's is refused, one that does not exist is nothing to do.
//
// The cluster still counts the node as a member until it is removed or has joined again.
func WipeLocalState(dir string) error { return identity.Wipe(dir) }
